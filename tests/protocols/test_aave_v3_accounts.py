from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from keeper.errors import AdapterError
from keeper.fixed import RAY
from keeper.protocols.aave_v3.health import judge, liquidation_price
from keeper.protocols.aave_v3.market import EMode, ReserveConfig
from keeper.protocols.aave_v3.marks import AaveMarks, ReserveState, liquidity_of
from keeper.protocols.aave_v3.options import find_options, outcome_of
from keeper.protocols.aave_v3.positions import holdings, read_positions, rows_of
from keeper.protocols.aave_v3.rules import Rules, rules_of
from keeper.types import ZERO_ADDRESS, Address, Health, Option, Position, PositionKey, Refusal
from tests.protocols.aave_v3_markets import (
    MARKET,
    PROTOCOL,
    address,
    config_word,
    market,
    positions_of,
    random_marks,
    reserve,
)

V30, V31, V33, V35, V36 = (rules_of(revision)[0] for revision in (1, 4, 7, 9, 10))
DOLLAR = 10**8


def marks(
    rules: Rules,
    configs: Sequence[int],
    prices: Sequence[int],
    *,
    category_prices: dict[int, int] | None = None,
) -> AaveMarks:
    """Reserves of 8 decimals at index 1; e-mode 1 with threshold 95 % and a bonus of 1 %."""
    states = [
        ReserveState(ReserveConfig(config), RAY, RAY, None, price, 0, False)
        for config, price in zip(configs, prices, strict=True)
    ]
    reserves = [reserve(number, 8) for number in range(len(configs))]
    emodes = {1: EMode(1, 9_500, 10_100, address(9) if category_prices else ZERO_ADDRESS, 0)}
    return AaveMarks(market(rules, reserves, emodes), 1_000, tuple(states), category_prices or {}, True, 5)


def position(group: int, collateral: dict[int, int], debt: dict[int, int], width: int = 3) -> Position:
    """One account with scaled amounts by reserve."""
    built = positions_of([(group, collateral, debt)], width)
    words = tuple(high << 64 | low for high, low in built.words[0].tolist())
    return Position(PositionKey(PROTOCOL, MARKET, Address(built.accounts[0])), group, words)


def judged(account: Position, at: AaveMarks) -> Health:
    """A health that is not refused."""
    health = judge(account, at)
    assert isinstance(health, Health), health
    return health


def test_words_of_high_reserves_are_found() -> None:
    """Reserve 127, whose bits are the last of 256, and amounts of 120 bits survive the columns."""
    huge = 2**120 - 1
    found = holdings(position(0, {0: 5, 127: huge}, {64: 7}, width=128))
    assert [(each.reserve_id, each.enabled, each.borrowed) for each in found] == [
        (0, True, False),
        (64, False, True),
        (127, True, False),
    ]
    assert (found[2].scaled_collateral, found[1].scaled_debt) == (huge, 7)


@pytest.mark.parametrize(("emode", "balance"), [(1 << 200, 5), (256, 5), (0, 1 << 128), (0, 1 << 255)])
def test_words_no_market_could_hold_are_an_error(emode: int, balance: int) -> None:
    """An e-mode beyond 8 bits or a balance beyond 128 is a node's nonsense, not a crash and not a position."""
    lent = market(V36, [reserve(0, 8)], {})
    read = read_positions(PROTOCOL, MARKET, lent, [PositionKey(PROTOCOL, MARKET, address(7))])
    assert len(next(read)) == 2
    with pytest.raises(AdapterError, match="do not trust the node"):
        # collateral and debt in reserve 0, then how much of each
        read.send([(3).to_bytes(32), emode.to_bytes(32)])
        read.send([balance.to_bytes(32)] * 2)


def test_rows_round_against_the_account() -> None:
    """A unit less of collateral, a unit more of debt, and nothing where there is nothing."""
    values = rows_of(positions_of([(0, {0: 10, 1: 1}, {1: 4})], 3)).values
    assert values.tolist() == [[9.0, 0.0, 0.0, 5.0, 0.0, 0.0]]


def test_threshold_zero_counts_since_3_6_only() -> None:
    """Collateral whose threshold became 0 is ignored and cannot be seized until 3.5; since 3.6 it counts as value
    without weight and can be seized.
    """
    account = position(0, {0: 1_000 * DOLLAR, 1: 500 * DOLLAR}, {2: 900 * DOLLAR})
    configs = [config_word(threshold_bps=each, decimals=8) for each in (8_000, 0, 8_000)]
    old, new = (marks(rules, configs, [DOLLAR] * 3) for rules in (V33, V36))
    last = marks(V35, configs, [DOLLAR] * 3)
    assert judged(account, old).collateral_base == judged(account, last).collateral_base == 1_000 * DOLLAR
    assert judged(account, new).collateral_base == 1_500 * DOLLAR
    # 800 / 900: the last digit is rounded half up until 3.4 and down since 3.5
    assert judged(account, old).health_factor_wad == 888_888_888_888_888_889
    assert judged(account, new).health_factor_wad == 888_888_888_888_888_888
    refused = [each for each in find_options(judged(account, old), old) if isinstance(each, Refusal)]
    assert [(each.reason, each.numbers) for each in refused] == [("collateral_not_enabled", {"token": "T1"})]
    seizable = [each for each in find_options(judged(account, new), new) if isinstance(each, Option)]
    assert [option.seize_token.symbol for option in seizable] == ["T0", "T1"]


def test_an_emode_may_have_its_own_price_until_3_1() -> None:
    """Members are valued at the e-mode's price for accounts in it, others and outsiders at their own; a liquidation
    values the debt at the e-mode's price even when the debt is no member.
    """
    configs = [config_word(threshold_bps=8_000, decimals=8, category=each) for each in (1, 0, 0)]
    at = marks(V31, configs, [DOLLAR, DOLLAR, DOLLAR], category_prices={1: 2 * DOLLAR})
    account = position(1, {0: 1_000 * DOLLAR, 1: 10 * DOLLAR}, {2: 1_995 * DOLLAR})
    health = judged(account, at)
    assert (health.collateral_base, health.debt_base) == (2_010 * DOLLAR, 1_995 * DOLLAR)
    assert judged(position(0, {0: 1_000 * DOLLAR}, {2: DOLLAR}), at).collateral_base == 1_000 * DOLLAR
    option = next(each for each in find_options(health, at) if isinstance(each, Option))
    assert (option.repay_price_base, option.seize_price_base) == (2 * DOLLAR, 2 * DOLLAR)
    # half of the debt at $2 and 1 % bonus would be 1,007 tokens; there are 1,000
    assert outcome_of(option, option.max_repay_raw).seize_raw == 1_000 * DOLLAR
    assert at.bonus_bps(0, 1) == 10_100
    assert at.bonus_bps(1, 1) == 10_500
    assert at.threshold_bps(0, 1) == 9_500
    assert at.threshold_bps(0, 0) == 8_000


def test_dust_has_no_partial_range() -> None:
    """A debt of 2 raw units can be repaid whole but has no partial amounts: they would burn nothing."""
    configs = [config_word(threshold_bps=8_000, decimals=8)] * 3
    at = marks(V30, configs, [DOLLAR] * 3)
    health = judged(position(0, {0: 4 * DOLLAR}, {2: 4 * DOLLAR, 1: 2}), at)
    options = [each for each in find_options(health, at) if isinstance(each, Option)]
    dust = next(option for option in options if option.repay_token.symbol == "T1")
    assert (dust.max_repay_raw, dust.partial_max_repay_raw) == (2, 0)
    assert dust.min_repay_raw > 2


def test_an_unknown_emode_is_refused() -> None:
    """An account in a category that was not loaded is not judged by other parameters."""
    at = marks(V36, [config_word(threshold_bps=8_000, decimals=8)] * 3, [DOLLAR] * 3)
    refusal = judge(position(7, {0: 1}, {1: 1}), at)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.numbers) == ("unknown_emode", {"category": 7})


def test_a_reserve_that_is_not_listed_is_an_error() -> None:
    """A bitmap that names a dropped or unknown reserve means the market must be loaded again."""
    at = marks(V36, [config_word(threshold_bps=8_000, decimals=8)] * 3, [DOLLAR] * 3)
    with pytest.raises(AdapterError, match="lists no reserve 5"):
        judge(position(0, {5: 1}, {1: 1}, width=6), at)


def test_liquidity_is_unbounded_only_where_the_pool_does_not_count_it() -> None:
    """From 3.1 to 3.3 a reserve says by a bit whether its balance is virtual; before and since all are bounded."""
    answer = (5).to_bytes(32)
    counted, uncounted = ReserveConfig(1 << 252), ReserveConfig(0)
    at = {rules.version: market(rules, [], {}) for rules in (V30, V31, V33, V36)}
    assert [liquidity_of(each, uncounted, answer) for each in at.values()] == [5, None, None, 5]
    assert [liquidity_of(each, counted, answer) for each in at.values()] == [5, 5, 5, 5]


def test_the_liquidation_price_makes_the_health_factor_one() -> None:
    """At the price given, rounded down, the health factor is 1 less at most what one base unit of price is worth."""
    chance = random.Random(5)
    found = 0
    for number in range(300):
        at = random_marks(rules_of(number % 11 + 1)[0], chance, 6, (8, 18))
        ids = [each.id for each in at.market.listed()]
        held, owed = chance.choice(ids), chance.choice(ids)
        unit, price = at.market.reserve(held).unit, at.price(held, 0)
        collateral = 10**12 * unit // price  # $10,000
        debt = 10**12 * at.market.reserve(owed).unit // at.price(owed, 0) * chance.randint(1, 9) // 10
        account = position(0, {held: max(collateral, 1)}, {owed: max(debt, 1)}, width=6)
        health = judged(account, at)
        target = liquidation_price(health, at)
        if target is None or held == owed or target < 10**5:
            continue
        states = list(at.states)
        state = states[held]
        assert state is not None
        states[held] = replace(state, price=target)
        moved = judged(account, replace(at, states=tuple(states)))
        assert abs((moved.health_factor_wad or 0) - 10**18) < 2 * 10**14, (health, target)
        found += 1
    assert found > 50
