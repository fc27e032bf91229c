from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keeper.errors import AdapterError
from keeper.fixed import BPS, RAY, WAD, ray_div_half_up
from keeper.protocols.aave_v3.market import load_market
from keeper.protocols.aave_v3.rules import (
    FULL_CLOSE_BASE,
    LEFTOVER_BASE,
    Pair,
    Rules,
    collateral_base,
    collateral_raw,
    compounded_interest_ray,
    debt_base,
    debt_index_ray,
    debt_raw,
    health_factor_wad,
    linear_interest_ray,
    liquidity_index_ray,
    rules_of,
    with_headroom_raw,
)
from keeper.types import Address

YEAR_S = 365 * 24 * 60 * 60
V30, V32, V33, V34, V35, V36, V37 = (rules_of(revision)[0] for revision in (1, 6, 7, 8, 9, 10, 11))
ALL_RULES = [rules_of(revision)[0] for revision in range(1, 12)]

# The borrower of the offline proof: 10 WETH at $1,800 against 15,500 USDC, 5 % bonus, a tenth of it to the protocol.
WETH_USDC = Pair(
    rules=V30,
    health_factor_wad=96 * 10**16,
    total_debt_base=15_500 * 10**8,
    debt_raw=15_500 * 10**6,
    debt_price=10**8,
    debt_unit=10**6,
    debt_index_ray=RAY,
    collateral_raw=10 * 10**18,
    collateral_price=1_800 * 10**8,
    collateral_unit=10**18,
    collateral_index_ray=RAY,
    bonus_bps=10_500,
    fee_bps=1_000,
    liquidity_raw=None,
)


def test_each_revision_has_its_rules_and_a_newer_one_gets_the_newest() -> None:
    """POOL_REVISION 1 to 11 name releases 3.0 to 3.7; an unknown revision runs under 3.7's rules and says so."""
    versions = [rules_of(revision)[0].version for revision in range(1, 12)]
    assert versions == ["3.0", "3.0", "3.0", "3.1", "3.2", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7"]
    assert all(rules_of(revision)[1] for revision in range(1, 12))
    assert rules_of(12) == (V37, False)
    assert rules_of(0) == (V37, False)


def test_linear_interest_is_simple_interest() -> None:
    """5 % over a year is 5 %; an index is multiplied by it, rounded half up."""
    assert linear_interest_ray(RAY // 20, YEAR_S) == RAY * 105 // 100
    assert linear_interest_ray(RAY // 20, 0) == RAY
    assert liquidity_index_ray(2 * RAY, RAY // 20, YEAR_S) == RAY * 210 // 100
    # a rate of one ray unit earns nothing within the year: rounded down
    assert linear_interest_ray(1, YEAR_S - 1) == RAY


def test_compound_interest_of_one_and_two_seconds_until_3_3() -> None:
    """The binomial terms appear one by one: none after a second, half the square of the rate after two."""
    rate = RAY // 10
    per_second = rate // YEAR_S  # 3.170979198376458650e18, so the linear term of two seconds rounds once
    assert compounded_interest_ray(V33, rate, 0) == RAY
    assert compounded_interest_ray(V33, rate, 1) == RAY + per_second
    square = (rate * rate // RAY) // YEAR_S**2
    assert compounded_interest_ray(V33, rate, 2) == RAY + 2 * rate // YEAR_S + square
    assert square == 10_055_109_076  # 1e25 / 31536000² = 10 055 109 076.5


def test_compound_interest_of_a_year_since_3_4() -> None:
    """10 % over a year is 1 + 0.1 + 0.1²/2 + 0.1³/6, by Horner's scheme with half-up products."""
    assert compounded_interest_ray(V34, RAY // 10, YEAR_S) == 1_105_166_666_666_666_666_666_666_667
    assert debt_index_ray(V36, 2 * RAY, RAY // 10, YEAR_S) == 2_210_333_333_333_333_333_333_333_334
    assert debt_index_ray(V36, 2 * RAY, RAY // 10, 0) == 2 * RAY


def test_balances_round_half_up_until_3_4_and_against_the_account_since_3_5() -> None:
    """7 scaled units at index 1.1 are 7.7: 8 and 8 before, 7 of collateral and 8 of debt since; 1 at 1.1 differs."""
    index = RAY * 11 // 10
    assert (collateral_raw(V34, 7, index), debt_raw(V34, 7, index)) == (8, 8)
    assert (collateral_raw(V35, 7, index), debt_raw(V35, 7, index)) == (7, 8)
    assert (collateral_raw(V34, 1, index), debt_raw(V34, 1, index)) == (1, 1)
    assert (collateral_raw(V35, 1, index), debt_raw(V35, 1, index)) == (1, 2)


def test_values_round_down_and_debt_up_since_3_5() -> None:
    """A third of a base unit of debt is nothing before 3.5 and one unit since; collateral always rounds down."""
    assert (debt_base(V34, 1, 1, 3), debt_base(V35, 1, 1, 3)) == (0, 1)
    assert collateral_base(2, 1, 3) == 0


def test_health_factor_of_the_textbook() -> None:
    """2 BTC at $68,000 with threshold 80 % against $110,000 has health factor 0.98909 in every version."""
    for rules in ALL_RULES:
        health = health_factor_wad(rules, 136_000 * 10**8, 136_000 * 10**8 * 8_000, 110_000 * 10**8)
        assert health is not None
        assert abs(health - 989_090_909_090_909_091) <= 1
    assert health_factor_wad(V36, 10**8, 8_000 * 10**8, 0) is None


def test_the_average_threshold_is_cut_to_whole_basis_points_until_3_4() -> None:
    """$100 at 82.5 % and $33 at 75 % average 80.6390…%: with $107.24 owed the cut decides whether it is safe."""
    collateral, weighted, debt = 133 * 10**8, 100 * 10**8 * 8_250 + 33 * 10**8 * 7_500, 10_724 * 10**6
    # 133 · 0.8063 = 107.2379 < 107.24 <= 107.25 = 82.5 + 24.75
    assert health_factor_wad(V34, collateral, weighted, debt) == 999_980_417_754_569_191
    assert health_factor_wad(V35, collateral, weighted, debt) == 1_000_093_248_787_765_759


def test_half_may_be_closed_above_health_0_95_and_all_at_it() -> None:
    """Until 3.2 the close factor depends on the health factor only, and 0.95 exactly closes everything."""
    assert replace(WETH_USDC, health_factor_wad=95 * 10**16 + 1).cap_raw == 7_750 * 10**6
    assert replace(WETH_USDC, health_factor_wad=95 * 10**16).cap_raw == 15_500 * 10**6
    # half of an odd amount rounds up
    assert replace(WETH_USDC, debt_raw=3, health_factor_wad=96 * 10**16).cap_raw == 2


def test_small_sides_close_fully_since_3_3() -> None:
    """Half applies only if that reserve's collateral and its debt are both worth at least $2,000."""
    debt = replace(WETH_USDC, rules=V33, debt_raw=2_000 * 10**6, total_debt_base=2_000 * 10**8)
    assert debt.cap_raw == 1_000 * 10**6
    assert replace(debt, debt_raw=1_999_999_999, total_debt_base=199_999_999_900).cap_raw == 1_999_999_999
    collateral = replace(debt, collateral_price=200 * 10**8)  # 10 units at $200
    assert collateral.cap_raw == 1_000 * 10**6
    assert replace(collateral, collateral_raw=10 * 10**18 - 1).cap_raw == 2_000 * 10**6
    assert replace(debt, health_factor_wad=95 * 10**16).cap_raw == 2_000 * 10**6


def test_half_is_of_the_whole_debt_since_3_3() -> None:
    """With three debts of $3,000 one whole reserve may be repaid; before 3.3 only its half."""
    three = replace(WETH_USDC, rules=V36, debt_raw=3_000 * 10**6, total_debt_base=9_000 * 10**8)
    assert three.cap_raw == 3_000 * 10**6
    assert replace(three, rules=V32).cap_raw == 1_500 * 10**6
    two = replace(three, total_debt_base=5_000 * 10**8)
    assert two.cap_raw == 2_500 * 10**6


def test_a_liquidation_pays_the_bonus_less_the_protocols_share() -> None:
    """7,750 USDC buy 4.5208333 WETH, of which a tenth of the 5 % bonus, 0.0215278 WETH, stays with the protocol."""
    moved = WETH_USDC.amounts(7_750 * 10**6)
    assert moved.repay_raw == 7_750 * 10**6
    assert moved.seize_raw + moved.fee_raw == 4_520_833_333_333_333_333
    assert moved.fee_raw == 21_527_777_777_777_778
    # more than the close factor allows is cut to it
    assert WETH_USDC.amounts(2**256 - 1) == moved


def test_collateral_that_runs_out_limits_the_repayment() -> None:
    """1 WETH at $1,800 pays at most 1,800 / 1.05 = 1,714.285714 USDC, rounded half up and up since 3.5."""
    short = replace(WETH_USDC, collateral_raw=10**18, fee_bps=0)
    assert short.amounts(7_750 * 10**6).repay_raw == 1_714_285_714  # 1714.285714285…
    assert replace(short, rules=V35).amounts(7_750 * 10**6).repay_raw == 1_714_285_715
    assert short.amounts(7_750 * 10**6).seize_raw == 10**18


def test_3_7_rounds_every_amount_against_the_liquidator() -> None:
    """Of 10 raw units of collateral 105 % is 10.5: 11 before 3.7 and 10 since; a fee of 0.1 becomes a whole unit."""
    even = replace(
        WETH_USDC,
        debt_raw=10**6,
        debt_price=1,
        debt_unit=1,
        collateral_raw=10**6,
        collateral_price=1,
        collateral_unit=1,
        rules=V36,
        health_factor_wad=9 * 10**17,
    )
    before = even.amounts(10)
    assert (before.seize_raw, before.fee_raw) == (
        11,
        0,
    )  # bonus 11 - 10.476 (10) = 1, a tenth of it rounds to 0
    since = replace(even, rules=V37).amounts(10)
    assert (since.seize_raw, since.fee_raw) == (9, 1)  # 10 - floor(9.52) = 1, a tenth of it rounds up


def test_dust_may_not_be_left_since_3_3() -> None:
    """Leaving $999.99 on either side while the other side remains is forbidden; clearing a side never is."""
    pair = replace(WETH_USDC, rules=V36, health_factor_wad=9 * 10**17)
    assert not pair.leaves_dust(pair.amounts(14_500 * 10**6))
    assert pair.leaves_dust(pair.amounts(14_500 * 10**6 + 1))
    assert not pair.leaves_dust(pair.amounts(15_500 * 10**6))
    assert not replace(pair, rules=V32).leaves_dust(pair.amounts(15_000 * 10**6))
    # 9.5 WETH are worth $17,100; what buys more than 8.9444 of them leaves less than $1,000
    rich = replace(pair, collateral_raw=95 * 10**17, debt_raw=40_000 * 10**6, total_debt_base=40_000 * 10**8)
    assert not rich.leaves_dust(rich.amounts(rich.partial_max_raw))
    assert rich.leaves_dust(rich.amounts(rich.partial_max_raw + 1))
    assert not rich.leaves_dust(rich.amounts(40_000 * 10**6))


def test_the_partial_bound_respects_half_up_rounding() -> None:
    """With 10 raw units to spare above the leftover, 9 may be repaid and not 10: 105 % of 10 rounds up to 11."""
    pair = replace(
        WETH_USDC,
        rules=V36,
        health_factor_wad=9 * 10**17,
        debt_raw=10**15,
        debt_price=1,
        debt_unit=1,
        total_debt_base=10**15,
        collateral_raw=LEFTOVER_BASE + 10,
        collateral_price=1,
        collateral_unit=1,
    )
    assert pair.partial_max_raw == 9
    assert replace(pair, rules=V37).partial_max_raw == 10
    assert replace(pair, liquidity_raw=5).partial_max_raw == 5  # 5.25 rounds to 5


def test_the_offer_counts_in_units_of_collateral() -> None:
    """4,515 satoshi at $26,126 are cleared by 1.1204 USDT; a basis point more would not buy one satoshi more."""
    pair = Pair(
        rules=V37,
        health_factor_wad=998_008_331_447_814_121,
        total_debt_base=446_128_222,
        debt_raw=4_502_122,
        debt_price=99_092_877,
        debt_unit=10**6,
        debt_index_ray=RAY,
        collateral_raw=4_515,
        collateral_price=2_612_687_692_141,
        collateral_unit=10**8,
        collateral_index_ray=RAY,
        bonus_bps=10_625,
        fee_bps=1_000,
        liquidity_raw=None,
    )
    whole = pair.amounts(pair.cap_raw)
    assert whole.repay_raw == 1_120_402
    assert pair.leaves_dust(pair.amounts(with_headroom_raw(whole.repay_raw)))
    assert pair.amounts(pair.offer_raw) == whole
    assert not pair.leaves_dust(whole)


def test_headroom_covers_more_than_a_minute_of_steep_interest() -> None:
    """A basis point and one unit: more than 5 minutes at 1000 % a year."""
    assert with_headroom_raw(10**12) == 10**12 + 10**8 + 1
    assert with_headroom_raw(1) == 3
    growth = compounded_interest_ray(V36, 10 * RAY, 300)
    assert debt_raw(V36, 10**12, growth) <= with_headroom_raw(10**12)


prices = st.integers(1, 10**14)
units = st.sampled_from([10**0, 10**2, 10**6, 10**8, 10**18])


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """Any pair the rules could meet, most of them worth between a cent and a billion dollars."""
    rules: Rules = draw(st.sampled_from(ALL_RULES))
    debt_price, collateral_price = draw(prices), draw(prices)
    debt_unit, collateral_unit = draw(units), draw(units)
    debt_worth = draw(st.integers(1, 10**17) | st.integers(FULL_CLOSE_BASE // 4, 2 * FULL_CLOSE_BASE))
    collateral_worth = draw(st.integers(1, 10**17) | st.integers(FULL_CLOSE_BASE // 4, 2 * FULL_CLOSE_BASE))
    debt = max(debt_worth * debt_unit // debt_price, 1)
    collateral = max(collateral_worth * collateral_unit // collateral_price, 1)
    owed = debt_base(rules, debt, debt_price, debt_unit)
    return Pair(
        rules=rules,
        health_factor_wad=draw(st.sampled_from([10**17, 95 * 10**16, 95 * 10**16 + 1, WAD - 1])),
        total_debt_base=owed + draw(st.integers(0, 10**13)),
        debt_raw=debt,
        debt_price=debt_price,
        debt_unit=debt_unit,
        debt_index_ray=draw(st.integers(RAY, 3 * RAY)),
        collateral_raw=collateral,
        collateral_price=collateral_price,
        collateral_unit=collateral_unit,
        collateral_index_ray=draw(st.integers(RAY, 3 * RAY)),
        bonus_bps=draw(st.integers(10_001, 12_000)),
        fee_bps=draw(st.integers(0, 5_000)),
        liquidity_raw=draw(st.none() | st.integers(0, 2 * collateral)),
    )


@settings(max_examples=1_000, deadline=None)
@given(pairs())
def test_the_largest_partial_repayment_is_allowed_and_largest(pair: Pair) -> None:
    """`partial_max_raw` leaves no dust and can be paid out; one unit more breaks a rule, or is beyond the cap.

    Where the collateral reserve is short, the bound ignores the fee that stays inside, so only safety is claimed.
    """
    most = pair.partial_max_raw
    assert 0 <= most <= pair.cap_raw
    if most:
        moved = pair.amounts(most)
        assert not pair.leaves_dust(moved)
        assert pair.pays_out(moved)
    if most < pair.cap_raw and pair.liquidity_raw is None:
        more = pair.amounts(most + 1)
        assert pair.leaves_dust(more) or more.repay_raw >= pair.debt_raw or _clears_collateral(pair, most + 1)


def _clears_collateral(pair: Pair, repay_raw: int) -> bool:
    moved = pair.amounts(repay_raw)
    return moved.seize_raw + moved.fee_raw == pair.collateral_raw


@settings(max_examples=1_000, deadline=None)
@given(pairs(), st.integers(0, 10**6))
def test_the_smallest_repayment_burns_something_on_both_sides(pair: Pair, more: int) -> None:
    """From `min_raw` on, seized and repaid amounts are worth at least one scaled unit each (no InvalidBurnAmount)."""
    moved = pair.amounts(pair.min_raw + more)
    if moved.repay_raw == pair.min_raw + more and not _clears_collateral(pair, moved.repay_raw):
        assert moved.seize_raw * RAY // pair.collateral_index_ray >= 1
        assert ray_div_half_up(moved.repay_raw, pair.debt_index_ray) >= 1
        assert moved.repay_raw * RAY // pair.debt_index_ray >= 1


@settings(max_examples=1_000, deadline=None)
@given(pairs(), st.integers(0, 20_000))
def test_the_offer_takes_all_now_and_a_little_later(pair: Pair, growth_ppb: int) -> None:
    """Offering `offer_raw` moves exactly what the cap allows, even where a raw unit of collateral is worth more than
    the headroom; and after up to 0.002 % of interest on both sides a side that was cleared is still cleared.
    """
    whole = pair.amounts(pair.cap_raw)
    assert pair.amounts(pair.offer_raw) == whole
    grown = replace(
        pair,
        debt_raw=pair.debt_raw + pair.debt_raw * growth_ppb // 10**9,
        collateral_raw=pair.collateral_raw + pair.collateral_raw * growth_ppb // 10**9,
    )
    later = grown.amounts(pair.offer_raw)
    assert later == grown.amounts(grown.cap_raw) or later.repay_raw == pair.offer_raw
    if _clears_collateral(pair, pair.cap_raw) and _clears_collateral(grown, grown.cap_raw):
        assert later.seize_raw + later.fee_raw == grown.collateral_raw
    if whole.repay_raw == pair.debt_raw and grown.cap_raw == grown.debt_raw:
        assert later == grown.amounts(grown.cap_raw)


@settings(max_examples=500, deadline=None)
@given(pairs(), st.integers(1, 10**20))
def test_no_call_moves_more_than_there_is(pair: Pair, repay_raw: int) -> None:
    """Repayment never exceeds what was offered or the cap by more than the rounding of one unit; seized plus fee
    never exceeds the collateral, and the fee never exceeds the bonus.
    """
    moved = pair.amounts(repay_raw)
    assert moved.repay_raw <= min(repay_raw, pair.cap_raw) + 1
    assert 0 <= moved.fee_raw <= moved.seize_raw + moved.fee_raw <= pair.collateral_raw
    taken = moved.seize_raw + moved.fee_raw
    assert moved.fee_raw <= taken - taken * BPS // pair.bonus_bps + 1


@pytest.mark.parametrize("rules", ALL_RULES, ids=lambda rules: rules.version)
def test_a_side_worth_exactly_the_leftover_may_be_left(rules: Rules) -> None:
    """$1,000 of debt and of collateral may remain, to the base unit."""
    pair = replace(
        WETH_USDC,
        rules=rules,
        health_factor_wad=9 * 10**17,
        debt_raw=3_000 * 10**6,
        total_debt_base=3_000 * 10**8,
        collateral_raw=3_100 * 10**6,
        collateral_price=10**8,
        collateral_unit=10**6,
    )
    moved = pair.amounts(2_000 * 10**6)
    assert moved.seize_raw + moved.fee_raw == 2_100 * 10**6
    assert not pair.leaves_dust(moved)
    assert pair.leaves_dust(pair.amounts(2_000 * 10**6 + 1)) is rules.close_factor_by_value
    assert LEFTOVER_BASE == 1_000 * 10**8


def test_a_market_that_counts_in_another_currency_is_not_loaded() -> None:
    """Limits are in dollars: prices in ether would let through some thousand times as much."""
    read = load_market(Address(b"\x01" * 20))
    next(read)
    read.send([number.to_bytes(32) for number in range(1, 7)])
    no_reserves = (32).to_bytes(32) + bytes(32)
    with pytest.raises(AdapterError, match=r"counts in 0x.*ee instead of dollars"):
        read.send([(3).to_bytes(32), no_reserves, (10**18).to_bytes(32), (0xEE).to_bytes(32)])
