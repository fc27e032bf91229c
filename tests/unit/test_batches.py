"""Accounts that are planned together: how an amount is spread, and what may fail without sinking the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keeper.engine.turns import Turns
from keeper.planner import PlanContext, plan
from keeper.planner.batches import Found, Joint, Room, joined
from keeper.seams import Reads
from keeper.trial import nets_usd_e8
from keeper.types import (
    Address,
    BlockNumber,
    Gas,
    Option,
    Outcome,
    Part,
    Plan,
    PositionKey,
    ProtocolCall,
    Refusal,
    Wei,
)
from tests.unit.test_guard import PLAN, TRIAL
from tests.unit.test_planner import (
    HEALTH,
    KEY,
    USDC,
    WETH,
    _Adapter,
    _context,
    _Flash,
    _option,
    _Venue,
    drive,
    execute,
    pool,
)

CALL_GAS = 250_000
ROOM = Room(20, 10_000_000, 100_000_000)
UNPROFITABLE = Refusal("plan", "unprofitable")
PAIRS = [pytest.param(USDC, id="kept in the debt"), pytest.param(WETH, id="kept in the collateral")]


def key_of(place: int) -> PositionKey:
    """An account of the toy's market."""
    return replace(KEY, account=Address(place.to_bytes(20)))


def option_of(place: int, max_usd: int, **changes: Any) -> Option:
    """An account's option, of dollars against ether."""
    return _option(USDC, WETH, max_usd, key=key_of(place), call_gas=CALL_GAS, **changes)


def found(options: Sequence[Option], alone: Plan | Refusal = UNPROFITABLE) -> list[Found]:
    """Accounts with one option each."""
    return [Found(replace(HEALTH, key=option.key), [option], alone) for option in options]


def together(options: Sequence[Option], ctx: PlanContext, room: Room = ROOM) -> list[Joint]:
    """Those that may share a transaction."""
    joints, _ = drive(joined(found(options), ctx, room))
    return list(joints)


def planned(joint: Joint, ctx: PlanContext) -> Plan:
    """The plan of several, which there must be."""
    answer, _ = drive(plan(joint.health, [joint.option], replace(ctx, adapter=joint)))
    assert isinstance(answer, Plan), answer
    return answer


def without(answer: Plan, failed: set[PositionKey]) -> Plan:
    """What is left of a plan whose calls for these accounts fail."""
    parts = tuple(part for part in answer.outcome.parts if part.key not in failed)
    moved = sum(part.repay_raw for part in parts), sum(part.seize_raw for part in parts)
    return replace(answer, outcome=Outcome(*moved, parts=parts))


@given(
    st.lists(st.tuples(st.integers(200, 50_000), st.integers(0, 100)), min_size=2, max_size=8),
    st.integers(0, 1_000),
)
@settings(max_examples=200, deadline=None)
def test_an_amount_is_spread_as_each_account_allows(sizes: list[tuple[int, int]], share: int) -> None:
    """Every account is taken whole or within its own bounds, one call each in the same order, never more than asked."""
    options = [
        option_of(place, usd, partial_max_repay_raw=usd * 10**6 * part // 100)
        for place, (usd, part) in enumerate(sizes, 1)
    ]
    [joint] = together(options, _context(_Venue({})))
    by_key = {option.key: option for option in options}
    asked = joint.option.min_repay_raw
    asked += (joint.option.max_repay_raw - asked) * share // 1_000
    outcome, _ = drive(joint.outcome(joint.option, asked))
    calls = joint.liquidation_calls(joint.option, asked)
    assert outcome.parts and outcome.parts[0].key == joint.option.key
    assert len(calls) == len(outcome.parts)
    assert sum(part.repay_raw for part in outcome.parts) == outcome.repay_raw <= asked
    for part, call in zip(outcome.parts, calls, strict=True):
        own = by_key[part.key]
        whole = part.repay_raw == own.max_repay_raw
        assert whole or own.min_repay_raw <= part.repay_raw <= own.partial_max_repay_raw
        assert call.approve_raw >= part.repay_raw
        assert call.gas_limit > CALL_GAS
    if share == 1_000:
        assert outcome.repay_raw == sum(option.max_repay_raw for option in options)


@pytest.mark.parametrize("profit", PAIRS)
def test_together_they_net_more_than_one_after_another(profit: Any) -> None:
    """In a market too small for all, where each is planned anew on what those before it leave; and for the gas of one
    transaction.
    """
    options = [option_of(place, usd) for place, usd in enumerate((90_000, 60_000, 40_000, 25_000), 1)]
    pools = dict([pool(WETH, USDC, 500, 4_000_000), pool(WETH, USDC, 3000, 1_500_000)])
    ctx = _context(_Venue(pools), profit, max_slippage_bps=300)
    answer = planned(together(options, ctx)[0], ctx)
    net_raw = execute(answer, _Venue(dict(pools)), ctx) - answer.gas_cost_raw
    assert net_raw == answer.expected_profit_raw - answer.gas_cost_raw
    venue = _Venue(dict([pool(WETH, USDC, 500, 4_000_000), pool(WETH, USDC, 3000, 1_500_000)]))
    after_raw = 0
    for option in options:
        alone, _ = drive(plan(HEALTH, [option], replace(ctx, venues=(venue,))))
        if isinstance(alone, Plan):
            after_raw += execute(alone, venue, ctx) - alone.gas_cost_raw
    assert net_raw > after_raw > 0


@pytest.mark.parametrize("profit", PAIRS)
def test_whoever_fails_does_not_sink_the_rest(profit: Any) -> None:
    """Of what one pool takes all may fail but one, whatever the bonus; the Liquidator's checks pass all the same."""
    options = [option_of(place, 30_000) for place in range(1, 19)]

    def venue() -> _Venue:
        return _Venue(dict([pool(WETH, USDC, 500, 90_000_000)]))

    ctx = replace(_context(venue(), profit), adapter=_Adapter(bonus_bps=1_000))
    answer = planned(together(options, ctx)[0], ctx)
    keys = set(answer.keys)
    assert len(keys) == len(options)
    for key in keys:
        assert execute(without(answer, {key}), venue(), ctx) > 0
        assert execute(without(answer, keys - {key}), venue(), ctx) > 0


@pytest.mark.parametrize("profit", PAIRS)
def test_one_may_fail_of_what_several_pools_share(profit: Any) -> None:
    """What is sold or bought in parts suffices without any one account."""
    options = [option_of(place, usd) for place, usd in enumerate((30_000, 25_000, 20_000, 15_000), 1)]

    def venue() -> _Venue:
        return _Venue(dict([pool(WETH, USDC, 500, 3_000_000), pool(WETH, USDC, 3000, 3_000_000)]))

    ctx = _context(venue(), profit, max_slippage_bps=300)
    answer = planned(together(options, ctx)[0], ctx)
    assert len(answer.legs) > 1
    for key in answer.keys:
        assert execute(without(answer, {key}), venue(), ctx) > 0


def test_explicit_parts_are_there_when_the_largest_fails() -> None:
    """Of what several pools share only as much is explicit as the others bring."""
    options = [option_of(place, usd) for place, usd in enumerate((60_000, 20_000, 20_000), 1)]
    pools = [pool(WETH, USDC, 500, 2_000_000), pool(WETH, USDC, 3000, 2_000_000)]
    ctx = _context(_Venue(dict(pools)), max_slippage_bps=1_000)
    answer = planned(together(options, ctx)[0], ctx)
    seized_raw = sum(part.seize_raw for part in answer.outcome.parts)
    explicit_raw = sum(quote.amount_in_raw for quote in answer.quotes[:-1])
    assert explicit_raw <= seized_raw - max(part.seize_raw for part in answer.outcome.parts)


def test_who_may_not_share_is_left_out() -> None:
    """Whoever cannot pay for its own call, goes alone by nature, or was refused for what no company mends."""
    ctx = _context(_Venue({}))
    dear = replace(
        ctx, gas_price_wei=Wei(100 * 10**9)
    )  # a call costs fifty dollars, a twentieth of a thousand
    options = [option_of(1, 50_000), option_of(2, 40_000), option_of(3, 500)]
    [joint] = together(options, dear)
    assert joint.keys == {key_of(1), key_of(2)}
    assert not together([options[0], replace(options[1], call_gas=0)], ctx)
    mixed = [*found(options[:1]), *found(options[1:2], Refusal("plan", "no_route"))]
    assert drive(joined(mixed, ctx, ROOM))[0] == []
    others = [options[0], replace(options[1], repay_price_base=options[1].repay_price_base + 1)]
    assert not together(others, ctx)


def test_a_batch_is_no_larger_than_a_transaction_may_be() -> None:
    """By gas thirty accounts make two batches, the largest first, each in one of them; or what the operator allows."""
    options = [option_of(place, 1_000 + place) for place in range(1, 31)]
    joints = together(options, _context(_Venue({})))
    assert [len(joint.keys) for joint in joints] == [18, 12]
    smaller = together(options[:13], _context(_Venue({})), replace(ROOM, accounts=4))
    assert [len(joint.keys) for joint in smaller] == [4, 4, 4], "and the last goes alone"
    assert not together(options, _context(_Venue({})), replace(ROOM, accounts=1))
    gas = 4_000_000  # of which a third is left to spare
    bought = together(options, _context(_Venue({})), Room(20, gas, gas))
    assert [len(joint.keys) for joint in bought] == [5]
    assert not together(options, _context(_Venue({})), Room(20, gas // 2, gas))
    assert joints[0].keys.isdisjoint(joints[1].keys)
    assert joints[0].health.key == joints[0].option.key == key_of(30)


@dataclass
class _Patience:
    """Answers for a joint so many times."""

    joint: Joint
    left: int

    def outcome(self, option: Option, repay_raw: int) -> Reads[Outcome | Refusal]:
        self.left -= 1
        assert self.left, "asked for too many amounts"
        return self.joint.outcome(option, repay_raw)

    def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
        return self.joint.liquidation_calls(option, repay_raw)


def test_a_loan_that_is_a_little_short_ends_no_search() -> None:
    """Where many amounts move the same and nearly all of it is lent, a smaller one is found by few looks."""
    headroom_raw = 10_000 * 10**6
    options = [
        option_of(1, 100_000, partial_max_repay_raw=50_000 * 10**6),
        option_of(2, 80_000, partial_max_repay_raw=0),
    ]
    venue = _Venue(dict([pool(WETH, USDC, 500, 50_000_000)]))
    lent_raw = 50_000 * 10**6 + headroom_raw - 1
    ctx = _context(venue, adapter=_Adapter(headroom_raw=headroom_raw), flash_sources=(_Flash(5, lent_raw),))
    [joint] = together(options, ctx)
    answer, _ = drive(plan(joint.health, [joint.option], replace(ctx, adapter=_Patience(joint, 500))))
    assert isinstance(answer, Plan) and answer.outcome.repay_raw > 20_000 * 10**6


def test_two_steps_of_one_account_are_no_batch() -> None:
    """What takes more than one call of an account shares its transaction with nobody."""

    class Stepping(_Adapter):
        def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
            return [*super().liquidation_calls(option, repay_raw)] * 2

    ctx = replace(_context(_Venue({})), adapter=Stepping())
    assert not together([option_of(1, 50_000), option_of(2, 40_000)], ctx)


def test_who_was_refused_together_goes_alone() -> None:
    """A refused batch bars its accounts from the next one, until they are safe; a refused plan of one does not."""
    pools = dict([pool(WETH, USDC, 500, 50_000_000)])
    ctx = _context(_Venue(pools), flash_sources=(_Flash(),))
    options = [option_of(1, 50_000), option_of(2, 40_000)]
    answer = planned(together(options, ctx)[0], ctx)
    healths = [replace(HEALTH, key=option.key) for option in options]
    turns = Turns()
    turns.ordered(healths)
    alone = replace(answer, outcome=Outcome(1, 1), key=key_of(2))
    turns.turned_down(alone, futile=False)
    assert all(turns.may_join(key_of(place)) for place in (1, 2))
    turns.turned_down(answer, futile=False)
    assert not any(turns.may_join(key_of(place)) for place in (1, 2))
    turns.planned(key_of(1), UNPROFITABLE, BlockNumber(1))
    turns.ordered([])  # as all of them are in flight
    turns.only(healths[:1])
    assert not turns.may_join(key_of(1)) and turns.may_join(key_of(2))


def test_a_plan_names_everybody_it_liquidates() -> None:
    """Its own position first; of one account just that."""
    parts = (Part(key_of(2), 1, 1), Part(key_of(1), 1, 1))
    ctx = _context(_Venue(dict([pool(WETH, USDC, 500, 50_000_000)])))
    answer = planned(together([option_of(1, 50_000), option_of(2, 40_000)], ctx)[0], ctx)
    assert replace(answer, outcome=Outcome(2, 2, parts=parts)).keys == (key_of(2), key_of(1))
    assert replace(answer, outcome=Outcome(2, 2)).keys == (answer.key,)
    assert answer.keys[0] == answer.key


def test_the_order_that_nets_more_is_sent() -> None:
    """By what trials measured, each at its own gas; what reverted, does not pay, or waits counts for nothing."""
    one = replace(PLAN, expected_profit_raw=100, gas_cost_raw=30, gas_estimate=300, profit_price_usd_e8=10**8)
    one = replace(one, profit_token=replace(one.profit_token, decimals=8))
    earned = replace(TRIAL, profit_raw=100, gas_used=Gas(200))
    assert nets_usd_e8([(one, earned)]) == 80
    assert nets_usd_e8([(one, earned), (one, replace(earned, profit_raw=90))]) == 150
    assert nets_usd_e8([(one, earned), (one, replace(earned, profit_raw=89))]) == 80, "it had better wait"
    assert nets_usd_e8([(one, replace(earned, profit_raw=89))]) == 69, "nobody was before it"
    assert nets_usd_e8([(one, UNPROFITABLE), (one, replace(earned, gas_used=Gas(2_000)))]) == 0


def test_the_limit_of_a_repayment_is_for_all_together() -> None:
    """What may be repaid by one liquidation is spread over them; who gets nothing of it is not in the plan."""
    options = [option_of(place, 30_000) for place in (1, 2, 3, 4)]
    limit_usd_e8 = 50_000 * 10**8
    ctx = _context(_Venue(dict([pool(WETH, USDC, 500, 50_000_000)])), max_repay_usd_e8=limit_usd_e8)
    answer = planned(together(options, ctx)[0], ctx)
    assert limit_usd_e8 * 999 // 1000 < answer.repay_usd_e8 <= limit_usd_e8
    assert [part.repay_raw for part in answer.outcome.parts] == [30_000 * 10**6, 20_000 * 10**6]
    assert len(answer.calls) == len(answer.keys) == 2
