from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace

import numpy as np

from keeper.book import Book
from keeper.protocols.synthetix_v2_perps.health import judge
from keeper.protocols.synthetix_v2_perps.market import Market
from keeper.protocols.synthetix_v2_perps.marks import PerpsMarks
from keeper.protocols.synthetix_v2_perps.positions import holding_of, rows_of
from keeper.protocols.synthetix_v2_perps.rules import (
    UNIT,
    Funding,
    Holding,
    Parameters,
    can_liquidate,
    divided,
    flag_fee,
    funding_entry,
    liquidation_margin,
    liquidation_premium,
    margin_left,
    multiplied,
)
from keeper.types import Address, BlockNumber, BlockTime, Hash, Health, Marks, Positions, Token

DEEP = os.environ.get("KEEPER_DEEP") == "1"
MARKETS, ACCOUNTS = (600, 400) if DEEP else (60, 200)
_MASK = (1 << 128) - 1
AT = BlockTime(BlockNumber(1), Hash(bytes(32)), 1_000)
NOBODY = Address(bytes(20))
MARKET = Market(NOBODY, NOBODY, b"", b"", Token(NOBODY, "sUSD", 18), NOBODY, 10**8, {}, True)


def _random_parameters(chance: random.Random) -> Parameters:
    lowest = chance.choice((0, UNIT, 10 ** chance.randint(0, 20)))
    return Parameters(
        max_funding_velocity=chance.randint(0, 100) * UNIT,
        skew_scale=10 ** chance.randint(1, 11) * UNIT + chance.randint(0, 10**18),
        premium_multiplier=chance.randint(1, 10**19),
        buffer_ratio=chance.randint(0, UNIT // 10),
        max_liquidation_delta=UNIT,
        max_pd=UNIT,
        min_flag_fee_raw=lowest,
        max_flag_fee_raw=lowest + chance.choice((0, 10 ** chance.randint(0, 22))),
        flag_fee_ratio=chance.randint(0, UNIT // 50),
        keeper_fee_raw=chance.choice((0, 2 * UNIT, 10 ** chance.randint(0, 20))),
    )


def _random_marks(chance: random.Random) -> PerpsMarks:
    price = max(1, int(10 ** chance.uniform(-8, 7) * UNIT))
    return PerpsMarks(
        market=MARKET,
        timestamp_s=1_000,
        parameters=_random_parameters(chance),
        skew=0,
        price=price,
        entry=int(chance.uniform(-0.5, 0.5) * price),
        susd_price=UNIT,
        susd_round=1,
    )


def _near_the_edge(marks: PerpsMarks, chance: random.Random, spread: float) -> Holding:
    """A position whose margin is what is wanted, give or take `spread` of it, or a few units."""
    terms, price = marks.parameters, marks.price
    size = chance.choice((-1, 1)) * max(1, int(10 ** chance.uniform(-6, 9) * UNIT))
    last_price = max(1, int(price * chance.uniform(0.5, 1.5)))
    entry = marks.entry + int(chance.uniform(-0.2, 0.2) * price)
    empty = Holding(0, size, last_price, entry)
    wanted = liquidation_margin(terms, size, price) + liquidation_premium(terms, size, price)
    exact = wanted - margin_left(empty, price, marks.entry)
    off = chance.randint(-3, 3) if chance.random() < 0.5 else int(wanted * chance.uniform(-spread, spread))
    return replace(empty, margin_raw=min(max(exact + off, 0), _MASK >> 1))


def _positions_of(held: list[Holding]) -> Positions:
    words = np.zeros((len(held), 6, 2), dtype=np.uint64)
    for row, holding in enumerate(held):
        values = (holding.margin_raw, holding.size, holding.last_price, holding.entry)
        for column, value in enumerate(values):
            words[row, column] = (value & _MASK) >> 64, value & (1 << 64) - 1
    count = len(held)
    return Positions(
        protocol="snx",
        market="0x",
        accounts=tuple(Address(number.to_bytes(20, "big")) for number in range(1, count + 1)),
        words=words,
        group=np.zeros(count, dtype=np.int64),
        live=np.ones(count, dtype=np.bool_),
        always_check=np.zeros(count, dtype=np.bool_),
    )


def test_rows_miss_no_unsafe_position() -> None:
    """Over adversarial positions (margins within units of the edge, sizes from a millionth to a billion, prices from a
    hundred-millionth of a dollar to ten millions, every fee and ratio down to none), whoever the market's arithmetic
    would let be flagged is a candidate of the book; and the filter does filter.
    """
    chance, seen = random.Random(20_260_303), Counter[str]()
    for number in range(MARKETS):
        exact = _random_marks(chance)
        spread = (1e-12, 1e-6, 1e-3, 0.5)[number % 4]
        positions = _positions_of([_near_the_edge(exact, chance, spread) for _ in range(ACCOUNTS)])
        book = Book()
        book.upsert(positions, rows_of(positions))
        candidates = set(book.candidates(Marks(AT, "0x", exact, exact.weights())))
        for key in book:
            health = judge(book.position(key), exact)
            assert isinstance(health, Health)
            if health.liquidatable:
                seen["unsafe"] += 1
                assert key in candidates, (exact, health)
            else:
                seen["safe"] += 1
                seen["spared"] += key not in candidates
    assert min(seen["unsafe"], seen["safe"]) > MARKETS * ACCOUNTS // 5
    assert seen["spared"] > seen["safe"] // 20


def test_words_keep_signs_and_sizes() -> None:
    """Whatever the contract can hold comes back from a row of words as it was."""
    edges = (0, 1, -1, 2**64, -(2**64), 2**127 - 1, -(2**127))
    held = [Holding(abs(edge) & (_MASK >> 1), edge, 2**128 - 1, other) for edge in edges for other in edges]
    book, positions = Book(), _positions_of(held)
    book.upsert(positions, rows_of(positions))
    found = {holding_of(book.position(key).words) for key in book}
    assert found == set(held)


def test_quotients_are_cut_towards_zero() -> None:
    """As Solidity divides: of either sign the fraction is dropped."""
    factors = ((3, 5), (-3, 5), (-UNIT - 1, 1), (UNIT + 1, -1), (-UNIT - 1, -1))
    assert [multiplied(x, y) for x, y in factors] == [0, 0, -1, -1, 1]
    third = UNIT // 3
    assert [divided(x, y) for x, y in ((-1, 3), (1, -3), (-1, -3))] == [-third, -third, third]


def test_the_flag_fee_is_clamped_and_funding_capped() -> None:
    """A minimum above the share of the notional wins, then the maximum; a skew beyond its scale counts as the scale."""
    terms = replace(
        _random_parameters(random.Random(1)),
        min_flag_fee_raw=2 * UNIT,
        max_flag_fee_raw=5 * UNIT,
        flag_fee_ratio=UNIT // 100,
        skew_scale=100 * UNIT,
        max_funding_velocity=3 * UNIT,
    )
    assert [flag_fee(terms, size * UNIT, UNIT) for size in (1, -200, 300, 499, -501)] == [
        *(2 * UNIT, 2 * UNIT, 3 * UNIT, 499 * UNIT // 100, 5 * UNIT)
    ]
    day = 86_400
    capped = funding_entry(terms, Funding(100 * UNIT, 0, 0, 0), UNIT, day)
    assert capped == -3 * UNIT // 2  # half a day's velocity, paid by the longs
    for skew, entry in ((10_000 * UNIT, capped), (-10_000 * UNIT, -capped), (0, 0)):
        assert funding_entry(terms, Funding(skew, 0, 0, 0), UNIT, day) == entry
    assert not can_liquidate(terms, Holding(0, 0, 0, 0), UNIT, 0)
