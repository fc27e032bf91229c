"""What is planned at a head: every unsafe account alone, and those that may share a transaction together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import structlog

from keeper.breakers import Breakers
from keeper.chain.client import Chain
from keeper.engine.head import Policy, StepReport, View, context_of
from keeper.engine.strangers import Strangers
from keeper.engine.turns import Turns
from keeper.execution.fees import Market
from keeper.guard import Guard, Spent
from keeper.planner import PlanContext, plan
from keeper.planner.batches import Found, Room, joined
from keeper.seams import FlashSource, Reads, Venue, readable, together
from keeper.types import Health, Marks, Option, Plan, PositionKey, Refusal
from keeper.watch import Watch

_AT_ONCE: Final = 64


class PlanGas:
    """What a plan of each protocol takes besides its swaps, corrected by what is sent: up at once, down slowly.

    Only by what is sent: else an account of many reserves that pays nobody, tried at every head, would make all others
    look too dear to be tried at all.
    """

    def __init__(self, least: Mapping[str, int]) -> None:
        """`least` is what a cheap plan of each protocol takes (`Adapter.plan_gas`)."""
        self._least = least
        self._assumed = dict(least)

    def of(self, protocol: str) -> int:
        """What to assume now."""
        return self._assumed[protocol]

    def learn(self, protocol: str, too_little: int) -> None:
        """A plan took so much more than was assumed."""
        self._assumed[protocol] = max(self.of(protocol), self.of(protocol) + too_little)

    def fade(self) -> None:
        """A head passed."""
        for name, gas in self._assumed.items():
            self._assumed[name] = max(self._least[name], gas - gas // 16)


class Planning:
    """Prices plans at the next block's gas; `gas` is what they take besides swaps."""

    def __init__(
        self,
        chain: Chain,
        watch: Watch,
        venues: Sequence[Venue],
        flash_sources: Sequence[FlashSource],
        guard: Guard,
        breakers: Breakers,
        turns: Turns,
        strangers: Strangers,
        policy: Policy,
        wall_clock: Callable[[], float],
        spent: Callable[[], Spent],
    ) -> None:
        self.gas: Final = PlanGas({name: adapter.plan_gas for name, adapter in watch.adapters.items()})
        self._chain = chain
        self._watch = watch
        self._venues = venues
        self._flash_sources = flash_sources
        self._guard = guard
        self._breakers = breakers
        self._turns = turns
        self._strangers = strangers
        self._policy = policy
        self._wall_clock = wall_clock
        self._spent = spent
        self._log = structlog.get_logger("keeper")

    def alone(
        self, health: Health, view: View, market: Market, *, thorough: bool = False
    ) -> Reads[Plan | Refusal]:
        """The best plan for one unsafe position; `thorough` by every route."""
        protocol, marks = health.key.protocol, view.marks[health.key.protocol]
        if isinstance(marks, Refusal):
            return marks
        options = self._options(health, view, marks)
        strangers = not all(option.chosen for option in options if isinstance(option, Option))
        shunned = self._strangers.shunned(health.key, market.head.number) if strangers else None
        if shunned is not None:
            return shunned
        context = self._context(protocol, options, view, market)
        if isinstance(context, Refusal):
            return context
        context = replace(context, thorough=thorough, budget_usd_e8=self._may_lose_usd_e8(health, view))
        planned = plan(health, self._turns.untried(health.key, options), context)
        if strangers:
            return (yield from planned)  # what it says of a token's price must not stop others
        return (yield from self._weighing(planned, protocol))

    async def orders(
        self, wanted: Sequence[Health], view: View, market: Market, within_s: float, report: StepReport
    ) -> list[list[Plan]]:
        """Plans, best first: of each account alone and, where some may share a transaction, so. Why not is noted.

        In a crash there may be more than can be priced before the head is stale. After `within_s` pricing ends, and
        whoever was left out comes first at the next head.
        """
        head = market.head
        wanted = self._turns.ordered(wanted)
        found: list[tuple[Health, Plan | Refusal]] = []
        began_s = self._wall_clock()
        for first in range(0, len(wanted), _AT_ONCE):
            if first and self._wall_clock() - began_s >= within_s:
                self._log.warning("left_for_the_next_head", head=head.number, accounts=len(wanted) - first)
                break
            chunk = wanted[first : first + _AT_ONCE]
            reads = [readable("plan", self._looked_at(health, view, market)) for health in chunk]
            answers = await self._chain.read(together(reads), head.hash)  # plans share pools
            for health, answer in zip(chunk, answers, strict=True):
                self._turns.planned(health.key, answer, head.number)
                found.append((health, answer))
                if isinstance(answer, Refusal):
                    report.refuse(health.key, answer)
        plans = [answer for _, answer in found if isinstance(answer, Plan)]
        shared, keys = await self._shared(found, view, market)
        orders = [plans, [*shared, *(one for one in plans if one.key not in keys)]] if shared else [plans]
        return [self._strangers.few(self._turns.best_first(order), report) for order in orders]

    def budget_usd_e8(self, view: View) -> int | None:
        """What liquidating bad debt may cost now, in USD with 8 decimals; None where it may cost nothing at all."""
        if isinstance(view.native, Refusal):
            return None
        return self._guard.budget_usd_e8(self._spent(), view.native.usd_e8_up)

    def _may_lose_usd_e8(self, health: Health, view: View) -> int | None:
        """What liquidating a position may lose: no more than its bad debt is worth; None where it may lose nothing."""
        budget_usd_e8 = self.budget_usd_e8(view) if health.bad_debt else None
        if budget_usd_e8 is None:
            return None
        return min(budget_usd_e8, sum(each.usd_e8 or 0 for each in health.bad_debt))

    def _looked_at(self, health: Health, view: View, market: Market) -> Reads[Plan | Refusal]:
        thorough = self._turns.thorough(health.key, market.head.number)
        return self.alone(health, view, market, thorough=thorough)

    async def _shared(
        self, found: Sequence[tuple[Health, Plan | Refusal]], view: View, market: Market
    ) -> tuple[list[Plan], set[PositionKey]]:
        """Plans of several accounts each, and everybody whom they were made for, taken or left.

        After a pause everybody goes alone, until no liquidation must be small any more.
        """
        shared: list[Plan] = []
        keys: set[PositionKey] = set()
        several = found if self._policy.max_accounts > 1 and len(found) > 1 else ()
        room = Room(self._policy.max_accounts, *self._guard.room_gas(self._spent(), market.ceiling()))
        for name in dict.fromkeys(health.key.protocol for health, _ in several):
            marks = view.marks[name]
            if isinstance(marks, Refusal) or self._guard.stage(name) is not None:
                continue
            offers = [
                Found(health, self._options(health, view, marks), answer)
                for health, answer in found
                if health.key.protocol == name and self._may_join(health.key)
            ]
            context = self._context(name, [each for one in offers for each in one.options], view, market)
            if len(offers) < 2 or isinstance(context, Refusal):
                continue
            for joint in await self._chain.read(joined(offers, context, room), market.head.hash):
                planned = plan(joint.health, [joint.option], replace(context, adapter=joint))
                answer = await self._chain.read(self._weighing(planned, name), market.head.hash)
                if isinstance(answer, Plan) and len(answer.keys) > 1:
                    shared.append(answer)
                    keys |= joint.keys
        return shared, keys

    def _may_join(self, key: PositionKey) -> bool:
        return self._turns.may_join(key) and not self._guard.denies(key.account)

    def _options(self, health: Health, view: View, marks: Marks) -> list[Option | Refusal]:
        adapter = self._watch.adapters[health.key.protocol]
        options = adapter.options(self._watch.book.position(health.key), health, marks)
        return view.priced(self._breakers.allowed(options))

    def _weighing(self, planned: Reads[Plan | Refusal], protocol: str) -> Reads[Plan | Refusal]:
        measures = {self._policy.profit_token.address, *self._policy.kept_feeds}
        return self._breakers.weighing(planned, protocol, measures)

    def _context(
        self, protocol: str, options: Sequence[Option | Refusal], view: View, market: Market
    ) -> PlanContext | Refusal:
        """What plans of these options are priced with."""
        adapter, stage = self._watch.adapters[protocol], self._guard.stage(protocol)
        price_wei = market.price()
        context = context_of(self._policy, view, adapter, self._venues, self._flash_sources, price_wei)
        if isinstance(context, Refusal):
            return context
        most_usd_e8 = self._breakers.most_usd_e8(protocol, options)
        return replace(
            context,
            max_repay_usd_e8=min(most_usd_e8, stage.cap_usd_e8) if stage else most_usd_e8,
            plan_gas=self.gas.of(protocol),
        )
