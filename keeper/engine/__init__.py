"""The line, one step per head: follow, assess, plan, try, clear, send, settle, book.

`Engine.step(head)` is the whole of it and takes clock and chain from outside, so the lab can drive it in lock-step.
Within a step everything is read at that head's block hash; a newer head starts a new step and nothing is carried
over but the book, the ledger and what is in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from keeper.breakers import Breakers
from keeper.chain.client import Chain
from keeper.charges import Charges
from keeper.data_fee import NO_DATA_RATES
from keeper.engine.booking import Booking
from keeper.engine.head import Policy, StepReport, View, read_view
from keeper.engine.planning import Planning
from keeper.engine.reflexes import Moment, Reflexes
from keeper.engine.strangers import Strangers
from keeper.engine.turns import Turns
from keeper.errors import AdapterError
from keeper.execution.fees import Market, affordable_wei, assured_wei, worth_wei
from keeper.execution.flights import Stuck
from keeper.execution.sender import Sender
from keeper.execution.signing import Cleared
from keeper.fixed import WAD
from keeper.guard import Clearance, Guard, PauseState, Spending, Spent, Stage, scope_of
from keeper.ledger import Ledger
from keeper.planner import encode_execute
from keeper.seams import FlashSource, Reads, Venue, unreadable
from keeper.trial import Attempt, Tolls, describe, market_moved, nets_usd_e8, try_stacked
from keeper.types import (
    Address,
    BlockNumber,
    Head,
    Health,
    Plan,
    Refusal,
    Trial,
    Wei,
)
from keeper.upgrades import Upgrades
from keeper.watch import Watch

T = TypeVar("T")

_MOST_PER_HEAD: Final = 16  # plans tried and sent at one head; those refused are last in line at the next
_MANY_LEGS: Final = 2  # in whose bytes the operator's funds are counted
_LIFETIME_S: Final = 36  # a transaction not mined by then can never execute; it is built anew
_TIP_EVERY_HEADS: Final = 50


class Engine:
    """Drives the line. `sender` is None in a dry run: everything happens but signing."""

    def __init__(
        self,
        *,
        chain: Chain,
        charges: Charges,
        watch: Watch,
        venues: Sequence[Venue],
        flash_sources: Sequence[FlashSource],
        guard: Guard,
        reflexes: Reflexes,
        breakers: Breakers,
        upgrades: Upgrades,
        ledger: Ledger,
        sender: Sender | None,
        policy: Policy,
        wall_clock: Callable[[], float],
    ) -> None:
        self.reflexes: Final = reflexes
        self._chain = chain
        self._charges = charges
        self._watch = watch
        self._guard = guard
        self.breakers = breakers
        self._upgrades = upgrades
        self._ledger = ledger
        self._sender = sender
        self._policy = policy
        self._wall_clock = wall_clock
        self._tips_wei: tuple[Wei, ...] = (Wei(0),)
        self._block_time_s = 1
        self._heads = 0
        self._turns = Turns()
        self._strangers = Strangers(
            ledger,
            lambda: sender.in_flight_plans().values() if sender else (),
            guard.max_loss_usd_e8,
            wall_clock,
        )
        self._planning = Planning(
            chain,
            watch,
            venues,
            flash_sources,
            guard,
            breakers,
            self._turns,
            self._strangers,
            policy,
            wall_clock,
            self._spent,
        )
        self._tolls = Tolls(chain, policy.liquidator)
        self._spending = Spending(ledger, wall_clock)
        self._booking = Booking(ledger, watch.adapters, wall_clock)
        self._log = structlog.get_logger("keeper")

    @property
    def policy(self) -> Policy:
        """What the line works by."""
        return self._policy

    async def prepare(self, head: Head) -> None:
        """Learn what the next block will look like, its tip and how long blocks take, and what was left stopped."""
        self.reflexes.remember()
        self._strangers.recall()
        self._tips_wei = await self._chain.suggested_tips()
        if head.number > 0:
            parent = await self._chain.block(head.parent_hash)
            self._block_time_s = max(1, head.timestamp_s - parent.timestamp_s)
        self.reflexes.moment = Moment(head, self._market(head))

    async def start(self, head: Head) -> None:
        """Bring fees, book and in-flight transactions up to `head`."""
        await self.prepare(head)
        self._booking.bad_debts.heard = await self._watch.start(head)
        self.breakers.at(head)
        await self._upgrades.start(head, self._watch.common + 1)
        self.breakers.book()
        self._booking.warned()  # by preflight
        if self._sender:
            self._sender.doubt(self._watch.common)
            await self._sender.recover(head)

    async def step(self, head: Head) -> StepReport:
        """Run the line at `head`. Raises `ChainError` when the node fails; the next head then starts afresh."""
        report = StepReport(head)
        self.breakers.at(head)
        self.reflexes.moment = Moment(head, self._market(head))
        # the look first: it is what the node takes longer for
        view, logs = await asyncio.gather(self.look(head), self._watch.fetch(head), return_exceptions=True)
        # only now: whichever failed, the other must not go on beside the next step
        if isinstance(view, BaseException):
            raise view
        if isinstance(logs, BaseException):
            raise logs
        if self._sender and self._watch.orphaned:
            self._sender.doubt(self._watch.common)
        self.breakers.reorganised(self._watch.depth)
        reloaded = await self._watch.absorb(logs, head)
        # nobody is told them again, should this head be lost
        self._booking.bad_debts.heard += logs
        suspects = self._upgrades.suspects(logs, reloaded=reloaded)
        if reloaded:
            view = await self.look(head)
            self._booking.warn()
        view = view.without(self._watch.unread)
        if suspects:
            await self._upgrades.settle(head)
        self.breakers.saw(self._prices(view))
        self.reflexes.book()  # before anything is planned: how large it may be follows from the record
        if self._sender:
            report.settled = await self._sender.settle(head, view.native)
            self._strangers.settled(report.settled)
        if self._chain.quorum > 1:
            await self._watch.confirm(view.marks, head)
            view = view.without(self._watch.unread)
        unsafe = self._assess(view, report)
        report.liquidatable = len(unsafe)
        self._turns.only(unsafe)
        wanted = self._wanted(unsafe, view, head, report)
        orders = await self._planning.orders(wanted, view, self._market(head), self._block_time_s, report)
        await self._execute(orders, view, head, report)
        if report.sent:
            report.reaction_us = int((report.sent[0].sent_s - head.seen_s) * 1_000_000)
            self._log.info("reacted", head=head.number, sent=len(report.sent), reaction_us=report.reaction_us)
        if self._sender:
            await self._sender.tend(head, self._market(head), partial(self.standing, view, head, new=False))
        await self.reflexes.carry()
        self._book(report, unsafe, view)
        self._watch.save()
        await self._housekeep()
        await self._upgrades.patrol(head)
        self.breakers.book()
        return report

    async def look(self, head: Head) -> View:
        """Read pause, prices and every protocol's marks at `head`, in one round; the gate learns of a pause at once."""
        adapters = self._watch.adapters
        view, funds_wei = await read_view(self._chain, self._charges, self._policy, adapters, head)
        if isinstance(view.pause, PauseState):
            await self.reflexes.see(view.pause, head)
        data = NO_DATA_RATES if isinstance(view.data, Refusal) else view.data
        self.breakers.funds(funds_wei, self._market(head).ceiling(), data.of(_MANY_LEGS))
        return view

    def plan(
        self, health: Health, view: View, head: Head, *, thorough: bool = False
    ) -> Reads[Plan | Refusal]:
        """The best plan for one unsafe position, priced at the next block's gas; `thorough` by every route."""
        return self._planning.alone(health, view, self._market(head), thorough=thorough)

    async def attempt(self, plans: Sequence[Plan], pause: PauseState, head: Head) -> list[Trial | Refusal]:
        """Try plans stacked, each as the calldata that would be sent under the epochs of `pause`."""
        last_block = BlockNumber(head.number + max(2, _LIFETIME_S // self._block_time_s))
        attempts: list[Attempt] = []
        for one in plans:
            epochs = (pause.global_scope.epoch, pause.scopes[scope_of(one.key.protocol)].epoch)
            attempts.append(Attempt(one, encode_execute(one, *epochs, last_block), *epochs, last_block))
        next_s = head.timestamp_s + self._block_time_s
        return await try_stacked(self._charges, attempts, head, next_s, self._policy.liquidator)

    async def blame(self, plan: Plan, refusal: Refusal, head: Head) -> Refusal:
        """Why a plan is not sent, in the right words where its trial reverted for a token's sake."""
        contracts = self._watch.adapters[plan.key.protocol].contracts()
        return await self._tolls.blame(plan, refusal, contracts, head)

    async def ask(self, read: Reads[T], head: Head) -> T:
        """Drive one read at `head`."""
        return await self._chain.read(read, head.hash)

    def standing(self, view: View, head: Head, protocol: str, *, new: bool = True) -> Refusal | None:
        """Why nothing of `protocol` may be signed at `head`, or None; without `new`: not even be replaced."""
        refusal = self._guard.standing(view.pause, protocol, head, self._wall_clock())
        return refusal or self.breakers.standing(protocol, new=new)

    def budget_usd_e8(self, view: View) -> int | None:
        """What liquidating bad debt may cost now, in USD with 8 decimals; None where it may cost nothing at all."""
        return self._planning.budget_usd_e8(view)

    def stage(self, protocol: str) -> Stage | None:
        """How small liquidations of `protocol` must still be after a pause; None where only the limits hold."""
        return self._guard.stage(protocol)

    def clear(self, plan: Plan, trial: Trial, view: View, head: Head) -> Clearance | Refusal:
        """Ask the guard for the right to send what was tried."""
        return self._clear(plan, trial, view, head, self._spent())

    def describe(self, plan: Plan, trial: Trial, view: View) -> dict[str, Any]:
        """A tried plan in the ledger's words, and how it is limited where that is after a pause."""
        stage = self.stage(plan.key.protocol)
        limited = {"resume_cap_usd_e8": stage.cap_usd_e8, "canary": stage.canary} if stage else {}
        profit = view.price_of(plan.profit_token.address)
        return {**describe(plan, trial, view.native, profit, self._policy.version), **limited}

    def _clear(
        self, plan: Plan, trial: Trial, view: View, head: Head, spent: Spent, stuck: Stuck | None = None
    ) -> Clearance | Refusal:
        if isinstance(view.native, Refusal):
            return view.native
        native_usd_e8 = view.native.usd_e8_up
        least_usd_e8 = self._policy.min_profit_usd_e8
        affordable = affordable_wei(plan, trial, least_usd_e8, native_usd_e8)
        worth = worth_wei(plan, trial, native_usd_e8)
        assured = assured_wei(plan, trial, least_usd_e8, native_usd_e8)
        replaced, urgency = (stuck.offered, stuck.urgency) if stuck else (None, 0)
        room_wei = self._guard.room_wei(plan, spent, native_usd_e8)
        fees = self._market(head).bid(trial, affordable, replaced, urgency, worth, assured, room_wei)
        if isinstance(fees, Refusal):
            return fees
        now_s = self._wall_clock()
        refusal = self.breakers.admits(plan, new=stuck is None)
        return refusal or self._guard.clear(plan, trial, fees, view.pause, spent, head, now_s, native_usd_e8)

    def _prices(self, view: View) -> dict[str, Mapping[Address, int]]:
        """Every protocol's prices, where they could be read."""
        adapters = self._watch.adapters
        return {
            name: adapters[name].prices(marks)
            for name, marks in view.marks.items()
            if not isinstance(marks, Refusal)
        }

    def _market(self, head: Head) -> Market:
        policy = self._policy
        rule = self._charges.next_base_fee
        return Market(head, self._tips_wei, policy.max_fee_wei, rule, policy.priority_share_bps)

    def _spent(self) -> Spent:
        """What was spent lately, with what is in flight."""
        if self._sender is None:
            return self._spending.lately(0)
        sender = self._sender
        return self._spending.lately(sender.in_flight_wei(), sender.in_flight_wei(budgeted=True))

    async def _spent_meanwhile(self) -> Spent:
        return self._spent()

    def _assess(self, view: View, report: StepReport) -> list[Health]:
        """Every position that is liquidatable by the protocol's own arithmetic, largest debt first."""
        unsafe: list[Health] = []
        for name, marks in view.marks.items():
            if isinstance(marks, Refusal):
                report.refused.append((name, None, marks))
                continue
            adapter = self._watch.adapters[name]
            for key in self._watch.book.candidates(marks):
                try:
                    health = adapter.assess(self._watch.book.position(key), marks)
                except AdapterError as error:
                    health = unreadable("assess", error)
                if isinstance(health, Refusal):
                    report.refuse(key, health)
                elif health.liquidatable:
                    unsafe.append(health)
        return sorted(unsafe, key=lambda health: -(health.debt_base * WAD // 10**health.base_decimals))

    def _wanted(self, unsafe: Iterable[Health], view: View, head: Head, report: StepReport) -> list[Health]:
        """Those that are not in flight; while stopped none is, and why is noted."""
        wanted: list[Health] = []
        for health in unsafe:
            if self._sender and self._sender.in_flight(health.key):
                continue
            refusal = self.standing(view, head, health.key.protocol)
            if refusal is not None:
                report.refuse(health.key, refusal)
            else:
                wanted.append(health)
        return wanted

    async def _execute(
        self, orders: Sequence[Sequence[Plan]], view: View, head: Head, report: StepReport
    ) -> None:
        """Try what is stuck and the best plans stacked, in each order; of the one that nets most clear and send what
        still pays, as it was tried.
        """
        market, standing = self._market(head), partial(self.standing, view, head, new=False)
        stuck = self._sender.stuck(market, standing) if self._sender else []
        replacing = {each.plan.plan_id: each for each in stuck}
        room = max(0, _MOST_PER_HEAD - len(stuck))
        stacks = [[*(each.plan for each in stuck), *order[:room]] for order in orders]
        if not any(stacks) or isinstance(view.pause, Refusal):
            return
        # in this order: the ledger is summed, where it must be, while the node runs the trials
        tried = asyncio.gather(*(self.attempt(stack, view.pause, head) for stack in stacks))
        found, spent = await asyncio.gather(tried, self._spent_meanwhile())
        ways = [list(zip(stack, trials, strict=True)) for stack, trials in zip(stacks, found, strict=True)]
        cleared: list[Cleared] = []
        refused: list[tuple[Plan, Refusal]] = []
        untouched = True
        for one, trial in max(ways, key=nets_usd_e8):
            late, untouched = not untouched, untouched and isinstance(trial, Refusal)
            old = replacing.get(one.plan_id)
            if late and not old and (behind := market_moved(one, trial)):
                refused.append((one, behind))
                continue
            besides = spent.without(old.worst_case_wei, budgeted=one.may_lose_usd_e8 > 0) if old else spent
            waits = None if old else self._awaits(one, cleared)
            answer = waits or self._approve(one, trial, view, head, besides, old)
            if isinstance(answer, Refusal):
                if answer.reason != "dry_run":
                    # a trial may have reverted only because of those before it
                    self._turns.turned_down(one, futile=untouched or answer.reason == "unprofitable")
                refused.append((one, answer))
                if self._sender and old:
                    self._sender.give_up(one.plan_id)
            else:
                self._turns.sent(one)
                report.take(one.keys)
                cleared.append(answer)
                fees, replaced_wei = answer.clearance.fees, old.worst_case_wei if old else 0
                spent = besides.with_in_flight(fees, replaced_wei, budgeted=one.may_lose_usd_e8 > 0)
            if isinstance(trial, Trial):
                self._part(one, trial, report)
        if self._sender:
            for asked, each in zip(cleared, await self._sender.send(cleared, standing), strict=True):
                if isinstance(each, Refusal):
                    self._refuse(asked.plan, each, report)
                else:
                    (report.replaced if each.plan_id in replacing else report.sent).append(each)
        for one, refusal in refused:  # only now: what may be sent does not wait for why the rest is not
            self._refuse(one, await self.blame(one, refusal, head), report)

    def _refuse(self, plan: Plan, refusal: Refusal, report: StepReport) -> None:
        """Note why every account of a plan is left alone at this head."""
        for key in plan.keys:
            report.refuse(key, refusal)

    def _part(self, plan: Plan, trial: Trial, report: StepReport) -> None:
        """Note whose call failed in the trial of a plan of several accounts: the others are liquidated without."""
        failed = [plan.outcome.parts[index].key for index in trial.skipped]
        self._turns.part(failed)
        for key in failed:
            report.refuse(key, Refusal("trial", "skipped", {"plan": plan.plan_id}))

    def _awaits(self, plan: Plan, cleared: Sequence[Cleared]) -> Refusal | None:
        """Why a plan waits: after a pause the first liquidation goes alone, and must have paid before the next."""
        stage = self.stage(plan.key.protocol)
        if stage is None or not stage.canary or not self._sender:
            return None
        others = any(stage.protocol in (None, one.plan.key.protocol) for one in cleared)
        if not others and not self._sender.liquidating(stage.protocol):
            return None
        return Refusal("clear", "awaits_canary", {"resume_cap_usd_e8": stage.cap_usd_e8})

    def _approve(
        self, plan: Plan, trial: Trial | Refusal, view: View, head: Head, spent: Spent, stuck: Stuck | None
    ) -> Cleared | Refusal:
        """A tried plan with the right to send it, or why it is not sent."""
        if isinstance(trial, Refusal):
            return trial
        clearance = self._clear(plan, trial, view, head, spent, stuck)
        if isinstance(clearance, Refusal):
            return clearance
        if self._sender is None:
            return Refusal("send", "dry_run", self.describe(plan, trial, view))
        if stuck is None:
            self._planning.gas.learn(
                plan.key.protocol, (trial.gas_used - plan.gas_estimate) // len(plan.keys)
            )
        return self._sender.refuses(plan, clearance.fees) or Cleared(
            plan, trial, clearance, self.describe(plan, trial, view)
        )

    def _book(self, report: StepReport, unsafe: Sequence[Health], view: View) -> None:
        in_flight = self._sender.in_flight_plans() if self._sender else {}
        self.breakers.closed(self._spent(), [refusal for _, _, refusal in report.refused], in_flight)
        with self._ledger.batch():
            self.breakers.book()
            self._booking.head(report, unsafe, view)

    async def _housekeep(self) -> None:
        self._spent()  # asked here, so that no liquidation waits for it; nor for how large it may be
        for name in self._watch.adapters:
            self.stage(name)
        self._ledger.checkpoint(int(self._wall_clock()))
        self._heads += 1
        self._planning.gas.fade()
        if self._heads % _TIP_EVERY_HEADS == 0 or (self._sender and self._sender.in_flight_wei()):
            self._tips_wei = await self._chain.suggested_tips()
