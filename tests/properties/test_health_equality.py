from __future__ import annotations

import os
import random
from collections import Counter

from keeper.book import Book
from keeper.fixed import BPS, RAY, WAD
from keeper.protocols.aave_v3.health import Account, judge
from keeper.protocols.aave_v3.marks import AaveMarks
from keeper.protocols.aave_v3.positions import rows_of
from keeper.protocols.aave_v3.rules import rules_of
from keeper.types import Health
from tests.protocols.aave_v3_markets import marks_of, positions_of, random_marks

DEEP = os.environ.get("KEEPER_DEEP") == "1"

# --- without a chain: the rows never lose an account ---------------------------------------------------------------

Drawn = tuple[int, dict[int, int], dict[int, int]]


def _near_one(marks: AaveMarks, chance: random.Random, spread: float, worth_usd: float) -> Drawn:
    """An account whose health factor is within `spread` of 1, or as near as its raw units allow."""
    listed = [reserve.id for reserve in marks.market.listed()]
    group = chance.choice((0, 0, 1, 2, 3))
    collateral = {}
    weighted = 0.0
    for reserve_id in chance.sample(listed, min(len(listed), chance.randint(1, 6))):
        state, unit = marks.state(reserve_id), marks.market.reserve(reserve_id).unit
        price = marks.price(reserve_id, group)
        scaled = max(1, int(worth_usd * chance.uniform(0.1, 1) * 1e8 / price * unit))
        collateral[reserve_id] = scaled
        if marks.counted(reserve_id):
            value = scaled * state.liquidity_index_ray / RAY * price / unit
            weighted += value * marks.threshold_bps(reserve_id, group) / BPS
    owed = weighted / (1 + chance.uniform(-spread, spread))
    borrowed = chance.sample(listed, min(len(listed), chance.randint(1, 4)))
    debt = {}
    for reserve_id in borrowed:
        state, unit = marks.state(reserve_id), marks.market.reserve(reserve_id).unit
        share = owed / len(borrowed) / marks.price(reserve_id, group) * unit / (state.debt_index_ray / RAY)
        debt[reserve_id] = max(1, int(share))
    return group, collateral, debt


def test_rows_miss_no_unsafe_account() -> None:
    """Over adversarial accounts of every version (health factor within 2 % of 1, from millionths of a dollar to ten
    billions, thresholds 0 to 97 %, 1 to 128 reserves, e-modes with and without their own price), whoever the
    contract's arithmetic finds below 1 is a candidate of the book. And the filter does filter.
    """
    chance = random.Random(20_260_101)
    seen: Counter[str] = Counter()
    markets, accounts_each = (400, 500) if DEEP else (66, 330)
    for number in range(markets):
        rules = rules_of(number % 11 + 1)[0]
        exact = random_marks(rules, chance, chance.choice((2, 4, 8, 20, 61, 128)))
        spread = chance.choice((1e-9, 1e-6, 3e-4, 2e-2, 0.5))
        worth_usd = 10 ** chance.uniform(-6, 10)
        drawn = [_near_one(exact, chance, spread, worth_usd) for _ in range(accounts_each)]
        positions = positions_of(drawn, len(exact.states))
        book = Book()
        book.upsert(positions, rows_of(positions))
        marks = marks_of(exact)
        candidates = set(book.candidates(marks))
        for key in list(book.keys()):
            health = judge(book.position(key), exact)
            assert isinstance(health, Health)
            assert health.health_factor_wad is not None or health.debt_base == 0
            if health.liquidatable:
                seen["unsafe"] += 1
                assert key in candidates, (rules.version, health)
            elif health.debt_base:
                seen["safe"] += 1
                seen["spared"] += key not in candidates
    assert seen["unsafe"] > markets * accounts_each // 5
    assert seen["safe"] > markets * accounts_each // 5
    assert seen["spared"] > seen["safe"] // 10


def test_a_row_of_a_safe_account_is_near_its_health() -> None:
    """The filter is not vacuous: at $10,000 a health factor 0.1 % above 1 is spared under every version.

    Only where a raw unit is worth little: the slack is what one raw unit of every reserve is worth.
    """
    chance = random.Random(7)
    spared = 0
    for number in range(110):
        exact = random_marks(rules_of(number % 11 + 1)[0], chance, 8, (8, 18))
        drawn = [_near_one(exact, chance, 0.0, 10_000.0) for _ in range(20)]
        safer = [
            (group, {i: scaled + scaled // 1_000 + 1 for i, scaled in collateral.items()}, debt)
            for group, collateral, debt in drawn
        ]
        positions = positions_of(safer, len(exact.states))
        book = Book()
        book.upsert(positions, rows_of(positions))
        candidates = set(book.candidates(marks_of(exact)))
        for key in list(book.keys()):
            health = judge(book.position(key), exact)
            assert isinstance(health, Health)
            account: Account = health.detail
            threshold_bps = account.weighted_base_bps // max(health.collateral_base, 1)
            if threshold_bps > 4_000 and (health.health_factor_wad or 0) > WAD + WAD // 2_000:
                spared += 1
                assert key not in candidates, health
    assert spared > 200
