"""Several accounts in one transaction, which share its loan, its sale and the gas that every transaction takes.

Accounts of one market that owe the same token and hold the same are planned as if they were one: an amount is spread
over them, those that pay most for it first, and weighed like any other. So the sum is sold at once, and the amount at
which the market pays for no more is found for all together. Each call may fail without sinking the others: what is sold
in the end has no limit of its own then, but the Liquidator's end check and the minimum profit bind all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Final, NamedTuple

from keeper.fixed import BPS, mul_div_up
from keeper.planner.sizing import PlanContext, Terms, measured, terms_of
from keeper.seams import Reads, Taking, readable, together
from keeper.types import Address, Health, Option, Outcome, Part, Plan, PositionKey, ProtocolCall, Refusal

# Of all calls of one transaction: with its swaps it then stays below what a trial has.
_MOST_GAS: Final = 4_500_000
_LIMIT_TIMES: Final = 3  # a call that may fail gets so many times the gas it should take
_TOO_LITTLE: Final = ("unprofitable", "bad_debt_budget")  # what company may mend
_SWAPS_GAS: Final = 400_000  # as far as the gas limit is foreseen here, generously
_MARGIN_PERCENT: Final = 140


@dataclass(frozen=True, slots=True)
class Room:
    """How many accounts may be in a transaction, how much gas it may be given, and all of them together."""

    accounts: int
    gas: int
    gas_in_all: int


@dataclass(frozen=True, slots=True)
class Found:
    """An unsafe account, its options, and what it came to alone."""

    health: Health
    options: Sequence[Option | Refusal]
    alone: Plan | Refusal


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """Accounts that are taken together: one option made of theirs, and what an amount of it is of each."""

    health: Health
    option: Option
    keys: frozenset[PositionKey]
    _members: Sequence[_Member]
    _adapter: Taking
    # most accounts are taken whole at every amount
    _outcomes: dict[tuple[PositionKey, int], Outcome] = field(default_factory=dict)
    _calls: dict[tuple[PositionKey, int], list[ProtocolCall]] = field(default_factory=dict)

    def outcome(self, option: Option, repay_raw: int) -> Reads[Outcome | Refusal]:
        """The sum of what the accounts' own amounts move; see `Taking`."""
        parts: list[Part] = []
        outcomes: list[Outcome] = []
        for one, amount_raw in self._spread(repay_raw):
            outcome = self._outcomes.get((one.key, amount_raw))
            if outcome is None:
                answer = yield from self._adapter.outcome(one, amount_raw)
                if isinstance(answer, Refusal):
                    return answer
                outcome = self._outcomes[one.key, amount_raw] = answer
            outcomes.append(outcome)
            parts.append(Part(one.key, outcome.repay_raw, outcome.seize_raw))
        return Outcome(
            repay_raw=sum(each.repay_raw for each in outcomes),
            seize_raw=sum(each.seize_raw for each in outcomes),
            later_raw=sum(each.later_raw for each in outcomes),
            bad_debt_raw=sum(each.bad_debt_raw for each in outcomes),
            parts=tuple(parts),
        )

    def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
        """One call of each account, which may fail, and is paid from the loan for all; see `Taking`."""
        calls: list[ProtocolCall] = []
        for one, raw in self._spread(repay_raw):
            if (one.key, raw) not in self._calls:
                self._calls[one.key, raw] = [
                    replace(call, gas_limit=_LIMIT_TIMES * one.call_gas, paid_after=False)
                    for call in self._adapter.liquidation_calls(one, raw)
                ]
            calls += self._calls[one.key, raw]
        return calls

    def _spread(self, repay_raw: int) -> Iterator[tuple[Option, int]]:
        left_raw = repay_raw
        for _, option, _, least_raw in self._members:
            whole = left_raw >= option.max_repay_raw
            raw = option.max_repay_raw if whole else min(left_raw, option.partial_max_repay_raw)
            if raw >= least_raw:
                left_raw -= raw
                yield option, raw


class _Member(NamedTuple):
    """An account's option, what all of it moves, and the least of it that pays for its own call."""

    health: Health
    option: Option
    outcome: Outcome
    least_raw: int


def joined(found: Sequence[Found], ctx: PlanContext, room: Room) -> Reads[list[Joint]]:
    """Accounts of one protocol that may share transactions, each in one at most."""
    left = room.gas_in_all
    chosen = [(one.health, option) for one in found if (option := _choice(one, ctx.adapter)) is not None]
    chosen.sort(key=lambda each: _kind(each[1]))
    joints: list[Joint] = []
    for _, group in groupby(chosen, key=lambda each: _kind(each[1])):
        alike = list(group)
        health, first = alike[0]
        terms = terms_of(first, health, measured(ctx, first.seize_token))
        answers = yield from together([_member(health, option, terms) for health, option in alike])
        members = sorted([member for member in answers if member], key=_pays, reverse=True)
        for some in _batches(members, room, ctx):
            left -= _gas_limit(some, ctx)
            if left < 0:
                return joints
            joints.append(_joint(some, ctx.adapter))
    return joints


def _choice(found: Found, adapter: Taking) -> Option | None:
    """How an account would be taken with others: by the pair it would be alone, or by its largest where it is small."""
    alone = found.alone
    if isinstance(alone, Refusal) and alone.reason not in _TOO_LITTLE:
        return None
    options = [
        option
        for option in found.options
        if isinstance(option, Option)
        and option.call_gas
        and (isinstance(alone, Refusal) or _pair(option) == _pair(alone.option))
        and len(adapter.liquidation_calls(option, option.max_repay_raw)) == 1
    ]
    return max(options, key=_debt_base, default=None)


def _pair(option: Option) -> tuple[Address, Address]:
    return option.repay_token.address, option.seize_token.address


def _kind(option: Option) -> tuple[str, Address, Address, int, int]:
    """Options of one kind are sold by the same swaps and valued alike."""
    return (option.key.market, *_pair(option), option.repay_price_base, option.seize_price_base)


def _debt_base(option: Option) -> int:
    unit: int = 10**option.repay_token.decimals
    return option.max_repay_raw * option.repay_price_base // unit


def _member(health: Health, option: Option, terms: Terms) -> Reads[_Member | None]:
    """None where all of it is refused, or would not even pay for its call at the protocol's prices."""
    outcome = yield from readable("plan", terms.ctx.adapter.outcome(option, option.max_repay_raw))
    if isinstance(outcome, Refusal):
        return None
    came_usd_e8 = terms.usd_e8_down(option.seize_token.address, outcome.seize_raw)
    gained_usd_e8 = came_usd_e8 - terms.usd_e8_up(option.repay_token.address, outcome.repay_raw)
    cost_raw = terms.ctx.gas_raw(option.call_gas)
    gained_raw = terms.profit_raw_up(gained_usd_e8)
    if gained_raw <= cost_raw:
        return None
    least_raw = mul_div_up(option.max_repay_raw, cost_raw, gained_raw)
    return _Member(health, option, outcome, max(least_raw, option.min_repay_raw))


def _pays(member: _Member) -> tuple[int, int]:
    """How much is seized for what is repaid, and then how much there is."""
    outcome = member.outcome
    return outcome.seize_raw * BPS**2 // max(outcome.repay_raw, 1), outcome.repay_raw


def _batches(members: Sequence[_Member], room: Room, ctx: PlanContext) -> Iterator[list[_Member]]:
    """As many together as the gas and the operator allow; who would be left alone is in none."""
    some: list[_Member] = []
    for member in members:
        more = [*some, member]
        fits = _calls_gas(more) <= _MOST_GAS and _gas_limit(more, ctx) <= min(room.gas, room.gas_in_all)
        if some and not (fits and len(more) <= room.accounts):
            if len(some) > 1:
                yield some
            more = [member]
        some = more
    if len(some) > 1:
        yield some


def _calls_gas(members: Sequence[_Member]) -> int:
    return sum(member.option.call_gas for member in members)


def _gas_limit(members: Sequence[_Member], ctx: PlanContext) -> int:
    """About what a transaction of so many will be given: what one call must find left may be a good part of it."""
    most = max(member.option.call_gas for member in members)
    used = ctx.plan_gas + _SWAPS_GAS + _calls_gas(members)
    return used * _MARGIN_PERCENT // 100 + most * _LIMIT_TIMES * _MARGIN_PERCENT // 100


def _joint(members: Sequence[_Member], adapter: Taking) -> Joint:
    most_raw = sum(member.option.max_repay_raw for member in members)
    health, first, _, least_raw = members[0]
    option = replace(
        first,
        max_repay_raw=most_raw,
        partial_max_repay_raw=most_raw,
        min_repay_raw=least_raw if least_raw <= first.partial_max_repay_raw else first.max_repay_raw,
        call_gas=max(member.option.call_gas for member in members),
    )
    return Joint(health, option, frozenset(each.option.key for each in members), members, adapter)
