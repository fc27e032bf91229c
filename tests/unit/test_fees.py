"""The bidding rule: what is offered first, what a replacement adds, and where it ends."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from keeper.charges import next_base_fee
from keeper.execution.fees import Market, Offered, affordable_wei, assured_wei, worth_wei
from keeper.guard import Fees
from keeper.types import Gas, Refusal, Wei
from tests.unit.test_guard import HEAD, PLAN, TRIAL

GWEI = 10**9
PLENTY = Wei(10**30)
MARKET = Market(
    replace(HEAD, base_fee_wei=Wei(10 * GWEI)), (Wei(1), Wei(2 * GWEI), Wei(5 * GWEI)), Wei(200 * GWEI)
)
BASE = next_base_fee(MARKET.head)
FEES = st.integers(0, 2**60).map(Wei)


def _bid(affordable: Wei = PLENTY, replaced: Offered | None = None, urgency: int = 0) -> Fees:
    answer = MARKET.bid(TRIAL, affordable, replaced, urgency)
    assert isinstance(answer, Fees)
    return answer


def test_a_head_without_room_for_gas_has_a_base_fee() -> None:
    """Whatever limit a node says a block has: what follows is a number."""
    for limit, used in ((0, 0), (1, 0), (1, 1), (0, 10**9)):
        head = replace(MARKET.head, gas_limit=Gas(limit), gas_used=Gas(used))
        assert next_base_fee(head) >= 0


def test_the_first_offer_is_the_stated_rule() -> None:
    """Twice the next base fee plus the middle tip; the gas limit carries its margin."""
    fees = _bid()
    assert (fees.max_fee_wei, fees.tip_wei) == (2 * BASE + 1, 1)
    assert fees.gas_limit == TRIAL.gas_used * 130 // 100 + 60_000


def test_what_a_call_must_find_left_is_in_the_gas_limit() -> None:
    """On top of the margin, which is of what the trial used."""
    answer = MARKET.bid(replace(TRIAL, spare_gas=Gas(500_000)), PLENTY)
    assert isinstance(answer, Fees) and answer.gas_limit == _bid().gas_limit + 500_000


def test_tips_rise_with_every_replacement_and_stop_at_the_highest() -> None:
    """The first replacement tips by the 75th percentile, all later ones by the 90th."""
    assert [_bid(urgency=number).tip_wei for number in range(4)] == [1, 2 * GWEI, 5 * GWEI, 5 * GWEI]


@given(FEES, FEES, st.integers(0, 5), FEES)
def test_a_replacement_pays_an_eighth_more_of_both_or_is_refused(
    fee: Wei, tip: Wei, urgency: int, affordable: Wei
) -> None:
    """Whatever it replaces: both fees rise by 12.5 % at least, and neither limit is ever passed."""
    old = Offered(fee, Wei(min(fee, tip)))
    answer = MARKET.bid(TRIAL, affordable, old, urgency)
    if isinstance(answer, Refusal):
        least = max(MARKET.price(urgency), fee * 9 // 8 + 1)
        assert least > min(affordable, MARKET.most_fee_wei)
        assert answer.reason == ("fee_over_limit" if least > MARKET.most_fee_wei else "unprofitable")
        return
    assert 8 * answer.max_fee_wei >= 9 * old.max_fee_wei
    assert 8 * answer.tip_wei >= 9 * old.tip_wei
    assert answer.tip_wei <= answer.max_fee_wei <= min(affordable, MARKET.most_fee_wei)
    assert answer.max_fee_wei >= MARKET.price(urgency)


def test_fees_stop_at_what_the_profit_allows() -> None:
    """Between inclusion and the rule's ceiling the profit decides; below inclusion nothing is offered."""
    inclusion = MARKET.price()
    assert _bid(Wei(inclusion + 7)).max_fee_wei == inclusion + 7
    answer = MARKET.bid(TRIAL, Wei(inclusion - 1))
    assert isinstance(answer, Refusal) and answer.reason == "unprofitable"


@given(st.integers(1, 10**12), st.integers(0, 10**11), st.integers(1, 10**13), st.integers(1, 10**10))
def test_what_a_plan_can_afford_leaves_its_minimum(
    profit_raw: int, minimum_usd_e8: int, native_usd_e8: int, price_usd_e8: int
) -> None:
    """At the affordable price the trial's gas leaves the minimum profit; one wei more per gas does not."""
    one, tried = replace(PLAN, profit_price_usd_e8=price_usd_e8), replace(TRIAL, profit_raw=profit_raw)
    affordable = affordable_wei(one, tried, minimum_usd_e8, native_usd_e8)
    scale = 10**one.profit_token.decimals
    minimum_raw = -(-minimum_usd_e8 * scale // price_usd_e8)

    def left_raw(price_wei: int) -> Fraction:
        return profit_raw - Fraction(
            price_wei * tried.gas_used * native_usd_e8 * scale, 10**18 * price_usd_e8
        )

    if profit_raw <= minimum_raw:
        assert affordable == 0
    else:
        assert left_raw(affordable) >= minimum_raw > left_raw(affordable + 1)


@given(st.integers(0, 10**20), st.integers(0, 10**17))
def test_what_bytes_cost_is_paid_before_gas(profit_raw: int, data_wei: int) -> None:
    """The affordable price leaves the minimum after the data fee; one wei more per gas does not."""
    tried = replace(TRIAL, profit_raw=profit_raw, data_fee_wei=Wei(data_wei))
    affordable = affordable_wei(PLAN, tried, 10**8, 2_000 * 10**8)
    scale = 10**PLAN.profit_token.decimals
    room_wei = Fraction((profit_raw - scale) * 10**18, 2_000 * scale) - data_wei
    assert affordable <= max(Fraction(0), room_wei) / int(tried.gas_used) < affordable + 1


def test_what_bytes_may_cost_is_in_the_worst_case() -> None:
    """Three blocks of the chain that takes them, each an eighth dearer than the one before."""
    fees = MARKET.bid(replace(TRIAL, data_fee_wei=Wei(512)), PLENTY)
    assert isinstance(fees, Fees) and fees.max_data_fee_wei == 729
    assert fees.worst_case_wei == fees.max_fee_wei * fees.gas_limit + 729


@given(
    share=st.integers(0, 10_000),
    earned=st.integers(0, 10**9),
    minimum=st.integers(0, 10**8),
    data_wei=st.integers(0, 10**15),
    urgency=st.integers(0, 3),
    old=st.none() | st.integers(0, 50 * GWEI).map(Wei),
)
@example(share=10_000, earned=10**8, minimum=5 * 10**7, data_wei=0, urgency=0, old=None)
@example(share=5_000, earned=10**8, minimum=10**6, data_wei=0, urgency=0, old=None)
@example(share=10_000, earned=10**8, minimum=10**7, data_wei=10**15, urgency=1, old=Wei(GWEI))
def test_a_share_of_the_profit_is_added_to_the_tip(
    share: int, earned: int, minimum: int, data_wei: int, urgency: int, old: Wei | None
) -> None:
    """The stated part of what is left at the rule's price; never past the operator's limit, never into the minimum."""
    minimum_usd_e8 = minimum * 10**8 // 10**PLAN.profit_token.decimals
    tried = replace(TRIAL, profit_raw=earned, data_fee_wei=Wei(data_wei))
    worth = worth_wei(PLAN, tried, 2_000 * 10**8)
    affordable = affordable_wei(PLAN, tried, minimum_usd_e8, 2_000 * 10**8)
    market = replace(MARKET, share_bps=share)
    replaced = None if old is None else Offered(old, old)
    plain = MARKET.bid(tried, affordable, replaced, urgency, worth)
    fees = market.bid(tried, affordable, replaced, urgency, worth)
    if isinstance(plain, Refusal):
        assert fees == plain  # a share decides nothing
        return
    assert isinstance(fees, Fees)
    rule_wei = market.price(urgency)
    wanted = market.tip(urgency) + (worth - rule_wei) * share // 10_000
    most = min(affordable, market.most_fee_wei)
    if replaced is None:
        assert fees.tip_wei == min(wanted, market.tip(urgency) + most - rule_wei)
    else:
        assert 8 * fees.tip_wei >= 9 * replaced.tip_wei and 8 * fees.max_fee_wei >= 9 * replaced.max_fee_wei
    assert fees.tip_wei >= plain.tip_wei and fees.gas_limit == plain.gas_limit
    paid = min(fees.max_fee_wei, BASE + fees.tip_wei)
    assert rule_wei <= paid <= fees.max_fee_wei <= most


@given(st.integers(0, 2 * 10**17), st.integers(0, 10**15))
def test_a_share_never_stands_in_the_way(room_wei: int, data_wei: int) -> None:
    """What passes all limits without a share does so with one, and no share takes more than half of what they leave."""
    tried = replace(TRIAL, data_fee_wei=Wei(data_wei))
    market = replace(MARKET, share_bps=10_000)
    plain, most = MARKET.bid(tried, PLENTY), market.bid(tried, PLENTY, worth_wei=PLENTY)
    fees = market.bid(tried, PLENTY, worth_wei=PLENTY, room_wei=room_wei)
    assert isinstance(plain, Fees) and isinstance(most, Fees) and isinstance(fees, Fees)
    if plain.worst_case_wei > room_wei // 2:
        assert fees == plain
    else:
        assert fees.worst_case_wei <= room_wei // 2
        assert fees == most or fees.worst_case_wei + fees.gas_limit > room_wei // 2


@given(st.integers(0, 10**9), st.integers(0, 10**8), st.integers(0, 10**15))
def test_a_share_is_of_what_the_contract_enforces(enforced: int, minimum: int, data_wei: int) -> None:
    """At the price that is paid with a share, the least profit that passes on chain leaves the configured minimum."""
    plan, tried = (
        replace(PLAN, min_profit_raw=enforced),
        replace(TRIAL, profit_raw=10**9, data_fee_wei=Wei(data_wei)),
    )
    prices = minimum * 10**8 // 10**PLAN.profit_token.decimals, 2_000 * 10**8
    affordable, assured = affordable_wei(plan, tried, *prices), assured_wei(plan, tried, *prices)
    market = replace(MARKET, share_bps=10_000)
    plain = MARKET.bid(tried, affordable)
    fees = market.bid(tried, affordable, worth_wei=worth_wei(plan, tried, prices[1]), assured_wei=assured)
    assert isinstance(plain, Fees) and isinstance(fees, Fees)
    paid = min(fees.max_fee_wei, BASE + fees.tip_wei)
    assert fees == plain if assured <= MARKET.price() else paid == min(assured, MARKET.most_fee_wei)


def test_no_share_is_given_of_what_comes_later() -> None:
    """A later transaction may never pay: a step that earns nothing that is enforced bids by the rule alone."""
    plan, tried = replace(PLAN, min_profit_raw=0, later_raw=10**9), replace(TRIAL, profit_raw=0)
    prices = 10**8, 2_000 * 10**8
    affordable, assured = affordable_wei(plan, tried, *prices), assured_wei(plan, tried, *prices)
    worth = worth_wei(plan, tried, prices[1])
    market = replace(MARKET, share_bps=10_000)
    assert affordable > market.price()
    assert market.bid(tried, affordable, None, 0, worth, assured) == MARKET.bid(tried, affordable)


def test_a_budget_pays_no_share_and_no_more_than_it_has() -> None:
    """What a budget pays the gas of bids by the rule alone, as it has no profit that a part could be given of; and as
    the base fee rises, no more than may be lost.
    """
    plan, tried = replace(PLAN, may_lose_usd_e8=100 * 10**8), replace(TRIAL, profit_raw=1)
    affordable, worth = (
        affordable_wei(plan, tried, 10**8, 2_000 * 10**8),
        worth_wei(plan, tried, 2_000 * 10**8),
    )
    market = replace(MARKET, share_bps=10_000)
    assert market.bid(tried, affordable, worth_wei=worth) == MARKET.bid(tried, affordable)
    spent_usd_e8 = affordable * tried.gas_used * 2_000 * 10**8 // 10**18
    assert 0 <= 100 * 10**8 + 100 - spent_usd_e8 <= 100
    price_wei = MARKET.price()
    cost_usd_e8 = -(-price_wei * tried.gas_used * 2_000 * 10**8 // 10**18)
    little = replace(plan, may_lose_usd_e8=cost_usd_e8 // 2)
    refusal = MARKET.bid(tried, affordable_wei(little, tried, 10**8, 2_000 * 10**8))
    assert isinstance(refusal, Refusal) and refusal.reason == "unprofitable"
    assert refusal.numbers["affordable_wei"] < price_wei


def test_a_plan_may_spend_what_comes_later() -> None:
    """A step that earns nothing itself may bid as much as one that earned at once what the next will bring."""
    earns = affordable_wei(PLAN, replace(TRIAL, profit_raw=9 * 10**6), 10**8, 2_000 * 10**8)
    waits = affordable_wei(
        replace(PLAN, later_raw=9 * 10**6), replace(TRIAL, profit_raw=0), 10**8, 2_000 * 10**8
    )
    assert earns == waits > 0


@given(FEES, FEES, FEES)
def test_a_cancellation_is_dearer_but_bounded(fee: Wei, tip: Wei, first: Wei) -> None:
    """A quarter above what it replaces as long as that is within a quarter of the operator's own limit."""
    old = Offered(fee, Wei(min(fee, tip)))
    offered = MARKET.cancellation(old, first)
    most = max(MARKET.most_fee_wei, first) * 5 // 4 + 1
    assert offered.tip_wei <= offered.max_fee_wei <= most
    if fee * 5 // 4 + 1 <= most:
        assert 8 * offered.max_fee_wei >= 9 * fee and 8 * offered.tip_wei >= 9 * old.tip_wei


def test_what_a_block_charges_is_capped_by_the_ceiling() -> None:
    """Base fee plus tip, or the ceiling where that is lower."""
    offered = Offered(Wei(100), Wei(10))
    assert [offered.price(Wei(base)) for base in (50, 95, 200)] == [60, 100, 100]


def test_gas_limits_are_whole_numbers_of_gas() -> None:
    """The margin is rounded down and added to a flat one."""
    fees = MARKET.bid(replace(TRIAL, gas_used=Gas(7)), PLENTY)
    assert isinstance(fees, Fees) and fees.gas_limit == 60_009
