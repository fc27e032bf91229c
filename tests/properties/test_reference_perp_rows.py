from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace

import numpy as np

from keeper.book import Book
from keeper.fixed import WAD
from keeper.protocols.reference_perp.exchange import Exchange, account_key
from keeper.protocols.reference_perp.exchange import Feed as Source
from keeper.protocols.reference_perp.health import judge
from keeper.protocols.reference_perp.marks import ExchangeMarks
from keeper.protocols.reference_perp.positions import holding_of, rows_of
from keeper.protocols.reference_perp.rules import (
    Holding,
    Live,
    Market,
    MarketParameters,
    MarketState,
    Parameters,
    Stake,
    assess,
    ceil_div,
    fill_of,
    live_of,
)
from keeper.types import ZERO_ADDRESS, BlockNumber, BlockTime, Hash, Health, Marks, Positions, Refusal, Token

DEEP = os.environ.get("KEEPER_DEEP") == "1"
SCENES, ACCOUNTS = (400, 300) if DEEP else (40, 150)
_MASK = (1 << 128) - 1
AT = BlockTime(BlockNumber(1), Hash(bytes(32)), 1_000)
NO_STATE = MarketState(0, 0, 0, 0, 0, 0, 0, 0, 0)


def _market(chance: random.Random, number: int, *, unusable: bool = False) -> Market:
    price = max(1, int(10 ** chance.uniform(-8, 7) * WAD))
    terms = MarketParameters(
        feed=ZERO_ADDRESS,
        max_age_s=3_600,
        window_s=30,
        skew_scale=10 ** chance.randint(1, 9) * WAD + chance.randint(0, WAD),
        min_margin=chance.choice((0, 1, 10 * WAD)),
        margin_slope=chance.choice((0, 1, 10 ** chance.randint(0, 19))),
        min_initial_ratio=chance.choice((1, chance.randint(1, WAD))),
        maintenance_scalar=chance.choice((1, WAD, chance.randint(1, WAD))),
        maker_fee=0,
        taker_fee=0,
        max_funding_velocity=0,
        penalty_ratio=chance.choice((0, WAD, chance.randint(0, WAD // 10))),
        window_multiplier=0,
        max_pd=0,
    )
    live = Live(price, int(chance.uniform(-0.5, 0.5) * price), int(chance.uniform(-0.5, 0.5) * price))
    if unusable:
        return Market(number, terms, NO_STATE, Live(0, 0, 0), "stale_price")
    return Market(number, terms, NO_STATE, live)


def _marks(chance: random.Random, *, unusable: bool = False) -> ExchangeMarks:
    count = chance.randint(1, 6)
    lowest = chance.choice((0, 3 * WAD, 10 ** chance.randint(0, 22)))
    source = Source(ZERO_ADDRESS, 1)
    return ExchangeMarks(
        exchange=Exchange(ZERO_ADDRESS, Token(ZERO_ADDRESS, "USDC", 6), 10**12, (source,) * count, 0),
        timestamp_s=1_000,
        parameters=Parameters(
            execution_cost=chance.choice((0, 2 * WAD)),
            min_reward=lowest,
            max_reward=chance.choice((0, lowest, 10 ** chance.randint(0, 24))),
            whole_below=0,
            min_profit_ratio=chance.choice((0, WAD // 3)),
            max_reward_ratio=WAD,
            keeper_share=chance.choice((0, WAD, chance.randint(0, WAD))),
            partial_ratio=WAD,
            critical_ratio=0,
            gate_s=0,
            max_markets=count,
            adl=True,
        ),
        markets=tuple(_market(chance, number, unusable=unusable and number == 0) for number in range(count)),
        liquidation_paused=False,
        gated_until_s=0,
        fund=0,
        house=Holding(0, flagged=False, cut=False, stakes=()),
        heir=None,
    )


def _near_the_edge(marks: ExchangeMarks, chance: random.Random, spread: float) -> Holding:
    """An account whose equity is what is wanted, give or take `spread` of it, or a few units."""
    stakes = []
    for market in chance.sample(range(len(marks.markets)), chance.randint(1, len(marks.markets))):
        size = chance.choice((-1, 1)) * max(1, int(10 ** chance.uniform(-17, 8) * WAD))
        price = marks.markets[market].live.price
        cost = int(size * price * chance.uniform(0.5, 1.5)) // WAD
        stakes.append(Stake(market, size, cost, int(chance.uniform(-0.5, 0.5) * price)))
    stakes.sort(key=lambda stake: stake.market)
    empty = Holding(0, flagged=False, cut=False, stakes=tuple(stakes))
    judged = assess(empty, marks.parameters, marks.markets)
    off = (
        chance.randint(-3, 3)
        if chance.random() < 0.5
        else int(judged.required * chance.uniform(-spread, spread))
    )
    return replace(empty, collateral=judged.required - judged.equity + off)


def _positions_of(held: list[Holding], markets: int) -> Positions:
    words = np.zeros((len(held), 2 + 3 * markets, 2), dtype=np.uint64)
    for row, holding in enumerate(held):
        figures = {0: holding.collateral, 1: holding.flagged | holding.cut << 1}
        for stake in holding.stakes:
            figures |= dict(enumerate((stake.size, stake.cost, stake.index), 2 + 3 * stake.market))
        for column, figure in figures.items():
            words[row, column] = (figure & _MASK) >> 64, figure & (1 << 64) - 1
    count = len(held)
    return Positions(
        protocol="reference",
        market="0x",
        accounts=tuple(account_key(number) for number in range(1, count + 1)),
        words=words,
        group=np.zeros(count, dtype=np.int64),
        live=np.ones(count, dtype=np.bool_),
        always_check=np.zeros(count, dtype=np.bool_),
    )


def _book_of(held: list[Holding], markets: int) -> Book:
    positions, book = _positions_of(held, markets), Book()
    book.upsert(positions, rows_of(positions))
    return book


def test_rows_miss_no_unsafe_account() -> None:
    """Over adversarial accounts in up to six markets (equity within units of the edge, sizes from nothing to a hundred
    million, prices from a hundred-millionth of a dollar to ten millions, every ratio and reward down to none), whoever
    the exchange's arithmetic would let be liquidated is a candidate of the book; and the filter does filter.
    """
    chance, seen = random.Random(20_260_401), Counter[str]()
    for number in range(SCENES):
        marks = _marks(chance)
        spread = (1e-12, 1e-6, 1e-3, 0.5)[number % 4]
        book = _book_of([_near_the_edge(marks, chance, spread) for _ in range(ACCOUNTS)], len(marks.markets))
        candidates = set(book.candidates(Marks(AT, "0x", marks, marks.weights())))
        for key in book:
            health = judge(book.position(key), marks)
            assert isinstance(health, Health)
            if health.liquidatable:
                seen["unsafe"] += 1
                assert key in candidates, (marks, health)
            else:
                seen["safe"] += 1
                seen["spared"] += key not in candidates
    assert min(seen["unsafe"], seen["safe"]) > SCENES * ACCOUNTS // 5
    assert seen["spared"] > seen["safe"] // 50, seen


def test_accounts_of_comfort_are_spared() -> None:
    """Twice what is wanted is enough not to be looked at, in every market but one without a mark: nobody can judge
    those in it, which is said of each.
    """
    chance = random.Random(20_260_402)
    for _ in range(SCENES):
        marks = _marks(chance)
        held = [_near_the_edge(marks, chance, 0.0) for _ in range(20)]
        judged = [assess(each, marks.parameters, marks.markets) for each in held]
        rich = [
            replace(one, collateral=one.collateral + 2 * (each.required + each.notional) + 100 * WAD)
            for one, each in zip(held, judged, strict=True)
        ]
        book = _book_of(rich, len(marks.markets))
        assert not list(book.candidates(Marks(AT, "0x", marks, marks.weights())))
        dark = replace(marks, markets=(_market(chance, 0, unusable=True), *marks.markets[1:]))
        found = set(book.candidates(Marks(AT, "0x", dark, dark.weights())))
        for key in book:
            stakes = holding_of(book.position(key).words).stakes
            refusal = judge(book.position(key), dark)
            assert isinstance(refusal, Refusal) == (stakes[0].market == 0) == (key in found)


def test_words_keep_signs_and_sizes() -> None:
    """Whatever the contract can hold comes back from a row of words as it was, in as many markets as there are."""
    edges = (1, -1, 2**64, -(2**64), 2**127 - 1, -(2**127))
    held = [
        Holding(
            other,
            flagged=edge > 0,
            cut=other > 0,
            stakes=(Stake(0, edge, other, edge), Stake(3, 1, edge, other)),
        )
        for edge in edges
        for other in (0, *edges)
    ]
    book = _book_of(held, 4)
    assert {holding_of(book.position(key).words) for key in book} == set(held)


def test_rounding_is_the_contracts() -> None:
    """Funding is cut towards zero and its skew capped; what is owed is rounded up, of either sign; a fill is rounded
    against the trader, and there is none beyond twice the skew's scale.
    """
    day, terms = 86_400, _market(random.Random(1), 0).parameters
    terms = replace(
        terms, skew_scale=100 * WAD, max_funding_velocity=3 * WAD, maker_fee=0, taker_fee=WAD // 1_000
    )
    capped = live_of(terms, replace(NO_STATE, long_size=1_000 * WAD), WAD, day)
    assert (capped.long_index, capped.short_index) == (3 * WAD // 2, -3 * WAD // 2)
    assert live_of(terms, replace(NO_STATE, short_size=100 * WAD), WAD, day).long_index == -3 * WAD // 2
    assert live_of(terms, replace(NO_STATE, short_size=1), 3, 7).long_index == 0
    assert [ceil_div(a, 3) for a in (-4, -3, -1, 0, 1, 4)] == [-1, -1, 0, 0, 1, 2]
    market = Market(0, terms, replace(NO_STATE, long_size=50 * WAD), Live(7, 0, 0))
    assert fill_of(market, WAD) == (11, 11, 1)
    assert fill_of(market, -WAD) == (10, -10, 0)
    assert fill_of(market, -300 * WAD) is None
