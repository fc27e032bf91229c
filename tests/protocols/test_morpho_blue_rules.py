"""Morpho Blue's figures, re-derived, and rows that lose nobody."""

from __future__ import annotations

import math
import os
import random
from dataclasses import replace

import numpy as np
import pytest

from keeper.book import Book
from keeper.fixed import WAD
from keeper.protocols.morpho_blue.market import Market
from keeper.protocols.morpho_blue.marks import MorphoMarks, State, UsdPrice
from keeper.protocols.morpho_blue.options import judge, liquidation_price
from keeper.protocols.morpho_blue.positions import rows_of
from keeper.protocols.morpho_blue.rules import PRICE_SCALE, Seizure, Totals, accrued, incentive_wad
from keeper.types import Address, BlockNumber, BlockTime, Hash, Health, Marks, Positions, Refusal, Token

DEEP = os.environ.get("KEEPER_DEEP") == "1"
LOAN, COLLATERAL = Token(Address(b"\1" * 20), "L", 6), Token(Address(b"\2" * 20), "C", 18)
AT = BlockTime(BlockNumber(1), Hash(bytes(32)), 1)


@pytest.mark.parametrize(
    ("lltv", "incentive"),
    [
        (0.77, 1.074114),
        (0.86, 1.043841),
        (0.915, 1.026167),
        (0.945, 1.016777),
        (0.625, 1.126761),
        (0.385, 1.15),
        (0.0, 1.15),
    ],
)
def test_the_incentive_follows_the_published_formula(lltv: float, incentive: float) -> None:
    """min(1.15, 1 / (1 − 0.3 · (1 − LLTV))): the published figures to their last digit, never rounded up."""
    found = incentive_wad(round(lltv * 1_000) * WAD // 1_000)
    assert found == pytest.approx(incentive * WAD, abs=5e11)
    assert found <= min(1.15, 1 / (1 - 0.3 * (1 - lltv))) * WAD * (1 + 1e-15)


def test_interest_follows_the_exponential() -> None:
    """A year at 10 % in one accrual is e^0.1 − 1 less the fourth term; the fee mints shares worth its part of it."""
    before = Totals(10**15, 10**21, 8 * 10**14, 8 * 10**20, 0, WAD // 10)
    after = accrued(before, WAD // 10 // (365 * 86_400), 365 * 86_400)
    interest = after.borrow_assets - before.borrow_assets
    assert interest == pytest.approx(8e14 * math.expm1(0.1), rel=5e-5)
    assert interest < 8e14 * math.expm1(0.1)
    assert after.supply_assets - before.supply_assets == interest
    minted = after.supply_shares - before.supply_shares
    assert minted * after.supply_assets / after.supply_shares == pytest.approx(interest / 10, rel=1e-6)


def _random_state(chance: random.Random, number: int) -> State:
    assets = int(10 ** chance.uniform(0, 30))
    shares = int(assets * 10**6 * chance.uniform(0.2, 1.0))
    lltv_wad = chance.choice((0, WAD - 1, chance.randint(1, 999) * WAD // 1_000))
    market = Market(
        number, Hash(bytes([number % 256]) * 32), LOAN, COLLATERAL, LOAN.address, LOAN.address, lltv_wad
    )
    totals = Totals(2 * assets, 2 * shares, assets, shares, 1, 0)
    price = int(10 ** chance.uniform(10, 50))
    return State(market, totals, price, UsdPrice(WAD, 1, 0))


def _positions(words: list[tuple[int, int]], state: State) -> Positions:
    count = len(words)
    columns = np.zeros((count, 2, 2), dtype=np.uint64)
    for row, two in enumerate(words):
        for column, word in enumerate(two):
            columns[row, column] = word >> 64, word & (1 << 64) - 1
    return Positions(
        "morpho",
        "0x01",
        tuple(Address(number.to_bytes(20)) for number in range(count)),
        columns,
        np.full(count, state.market.number, dtype=np.int64),
        np.ones(count, dtype=np.bool_),
        np.zeros(count, dtype=np.bool_),
    )


def test_rows_miss_nobody_on_the_very_edge() -> None:
    """In markets of every size, price and LLTV, for accounts from dust to more than there is whose debt is the first
    share too much: each is a candidate of the book. And those half a percent away are not, where a unit is little.
    """
    chance = random.Random(20_261_126)
    edges = spared = far = 0
    for number in range(2_000 if DEEP else 200):
        state = _random_state(chance, number)
        exact = MorphoMarks(1, {number: state}, {})
        marks = Marks(AT, "0x00", exact, {number: state.weights}, frozenset({"0x01"}))
        words, safer = [], []
        for _ in range(20):
            collateral_raw = min(int(10 ** chance.uniform(0, 38)), 2**128 - 1)
            most_raw = collateral_raw * state.price // PRICE_SCALE * state.market.lltv_wad // WAD
            shares = state.totals.shares_down(most_raw)  # on the edge, give or take a share
            while state.totals.owed_up(shares) > most_raw and shares:
                shares -= 1
            while state.totals.owed_up(shares + 1) <= most_raw:
                shares += 1
            if shares + 1 < 2**128:
                words.append((collateral_raw, shares + 1))
                safer.append((collateral_raw, max(shares - shares // 200, 0)))
        book = Book()
        for unsafe, rows in ((True, words), (False, safer)):
            positions = _positions(rows, state)
            book = Book()
            book.upsert(positions, rows_of(positions))
            candidates = set(book.candidates(marks))
            for key in book:
                health = judge(book.position(key), state)
                assert isinstance(health, Health)
                assert health.liquidatable == unsafe
                if unsafe:
                    assert key in candidates, (state, book.position(key))
                    edges += 1
                elif health.detail.owed_raw > 10_000:
                    far += 1
                    spared += key not in candidates
    assert edges > 3_000 and spared == far > 500


def test_a_market_without_a_price_selects_everybody() -> None:
    """Whoever owes a share is looked at, and the refusal says why nothing is done."""
    chance = random.Random(1)
    known = _random_state(chance, 0)
    why = Refusal("assess", "missing_price", {})
    state = State(known.market, known.totals, 0, known.loan, why)
    exact = MorphoMarks(1, {0: state}, {})
    marks = Marks(AT, "0x01", exact, {0: state.weights})
    positions = _positions([(2**128 - 1, 1), (0, 2**128 - 1)], state)
    book = Book()
    book.upsert(positions, rows_of(positions))
    assert len(book.candidates(marks)) == 2
    assert judge(book.position(next(iter(book))), state) == why


def test_all_collateral_never_repays_more_shares_than_there_are() -> None:
    """By shares where the collateral covers the debt with interest to come, by collateral where it does not; in the
    little between neither is asked for in full, and no amount of either asks for more than there is.
    """
    chance = random.Random(7)
    between = 0
    for number in range(20_000 if DEEP else 4_000):
        state = _random_state(chance, number)
        shares = max(1, int(state.totals.borrow_shares * chance.random()))
        incentive = incentive_wad(state.market.lltv_wad)
        full = Seizure(state.totals, state.price, incentive, 0, shares).seized_by(shares)
        collateral_raw = max(1, int(full * (1 + chance.choice((0, 1e-5, 1e-4, 0.1)) * chance.uniform(-1, 2))))
        seizure = Seizure(state.totals, state.price, incentive, collateral_raw, shares)
        assert not (seizure.covered and seizure.exhausted)
        if seizure.covered:
            moved = seizure.repaying(shares)
            assert moved.seize_raw < collateral_raw and moved.bad_debt_raw == 0
        elif seizure.exhausted:
            moved = seizure.seizing_all()
            assert moved.repay_raw <= state.totals.owed_up(shares)
            assert moved.bad_debt_raw + moved.repay_raw <= state.totals.owed_up(shares) + 1
        else:
            between += 1
    assert between > 20


def test_where_nothing_may_be_owed_no_price_makes_it_healthy() -> None:
    """At an LLTV of 0 there is no liquidation price, and every debt is unhealthy."""
    known = _random_state(random.Random(3), 0)
    market = replace(known.market, lltv_wad=0)
    state = replace(known, market=market)
    positions = _positions([(10**18, 10**6)], state)
    book = Book()
    book.upsert(positions, rows_of(positions))
    health = judge(book.position(next(iter(book))), state)
    assert isinstance(health, Health)
    assert health.liquidatable
    assert liquidation_price(health) is None
