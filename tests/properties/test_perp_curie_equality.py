from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from keeper.book import Book
from keeper.errors import RpcError
from keeper.fixed import WAD
from keeper.lab.curie import house_of, part_of
from keeper.protocols.perp_curie.collateral import max_repaid_raw, sales
from keeper.protocols.perp_curie.health import Account, Stock, judge
from keeper.protocols.perp_curie.marks import CollateralState, CurieMarks, MarketState
from keeper.protocols.perp_curie.positions import FIRST_ENTRY, PER_ENTRY, rows_of
from keeper.protocols.perp_curie.rules import Parameters
from keeper.protocols.perp_curie.system import Collateral, Entry, Feed, Market, System, Terms, learn_one
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    BlockNumber,
    BlockTime,
    Hash,
    Health,
    Marks,
    PositionKey,
    Positions,
    Refusal,
    Token,
    hex_of,
)
from tests.conftest import Count
from tests.protocols.perp_curie_lab import (
    SYMBOLS,
    Follower,
    following,
    move_market,
    random_accounts,
    random_order,
    random_trade,
)

DEEP = os.environ.get("KEEPER_DEEP") == "1"
ACCOUNTS = 520 if DEEP else 40
ROUNDS = 8 if DEEP else 4
CENT = WAD // 100
MASK = (1 << 128) - 1

# --- without a chain: the rows never lose an account -----------------------------------------------------------------


def _at(number: int) -> Address:
    return Address(number.to_bytes(20))


def _random_marks(chance: random.Random, markets: int) -> CurieMarks:
    parameters = Parameters(
        100_000, chance.choice((10_000, 62_500, 300_000)), 25_000, 100_000, 900, 1800, 900, 0
    )
    system = System(
        _at(1),
        _at(2),
        _at(3),
        _at(4),
        _at(5),
        _at(6),
        _at(7),
        _at(8),
        _at(9),
        _at(10),
        settlement=Token(_at(11), "USDC", 6),
        unit_wad=10**12,
        parameters=parameters,
        terms=Terms(2_000, 750_000, 500_000, 30_000, 500 * 10**6),
    )
    feed = Feed(_at(12), _at(13), 10**8)
    listed = [Market(_at(100 + n), f"v{n}", _at(200 + n), 60, _at(300 + n), feed) for n in range(markets)]
    states = {
        market.base: MarketState(
            None,
            int(10 ** chance.uniform(12, 24)),
            1,
            int(10 ** chance.uniform(0, 42)) * chance.choice((1, -1)),
            1,
            0,
        )
        for market in listed
    }
    entries: tuple[Entry, ...] = tuple(listed)
    return CurieMarks(system, entries, 0, False, False, states, {}, {})


def _positions(words: list[list[int]]) -> Positions:
    count, width = len(words), len(words[0])
    exact = np.array(
        [[(word >> 64 & 2**64 - 1, word & 2**64 - 1) for word in row] for row in words], dtype=np.uint64
    )
    assert exact.shape == (count, width, 2)
    accounts = tuple(_at(1_000 + number) for number in range(count))
    none = np.zeros(count, dtype=np.bool_)
    return Positions("curie", "main", accounts, exact, np.zeros(count, dtype=np.int64), ~none, none)


def _drawn(chance: random.Random, marks: CurieMarks, worth_usd: float) -> list[int]:
    """An account's words; its balance is set so that its value is about its margin requirement."""
    words = [0] * (FIRST_ENTRY + PER_ENTRY * len(marks.entries))
    for place in chance.sample(range(len(marks.entries)), chance.randint(1, len(marks.entries))):
        market = marks.entries[place]
        assert isinstance(market, Market)
        state = marks.markets[market.base]
        size = int(worth_usd * chance.uniform(0.01, 1) * 1e36 / state.mark_wad) * chance.choice((1, -1))
        entered = -size * state.mark_wad // WAD * chance.randint(90, 110) // 100
        growth = state.growth_x96 + int(state.growth_x96 * chance.uniform(-1e-3, 1e-3))
        column = FIRST_ENTRY + PER_ENTRY * place
        figures = (size, entered, growth >> 128, growth & MASK)
        words[column : column + PER_ENTRY] = [figure & MASK for figure in figures]
    return words


def _judged(marks: CurieMarks, words: list[int]) -> Account:
    book = Book()
    positions = _positions([words])
    book.upsert(positions, rows_of(positions.words, marks.system.unit_wad))
    (key,) = book
    health = judge(book.position(key), marks)
    assert isinstance(health, Health)
    detail: Account = health.detail
    return detail


def test_rows_miss_no_unsafe_account() -> None:
    """Over adversarial accounts (value within units to a cent of the requirement, one to twelve markets, prices over
    twelve orders of magnitude, premium growths of either sign), whoever the contracts' arithmetic finds short of
    margin is a candidate of the book. And the filter does filter.
    """
    chance = random.Random(20_260_102)
    seen: Counter[str] = Counter()
    for number in range(400 if DEEP else 60):
        exact = _random_marks(chance, 1 + number % 12)
        rows = []
        for _ in range(60):
            words = _drawn(chance, exact, 10 ** chance.uniform(0, 11))
            bare = _judged(exact, words)
            near = chance.choice((1, 10**6, 10**12, CENT, WAD, 1_000 * WAD))
            wanted = bare.requirement_wad - bare.value_wad + chance.randint(-near, near)
            words[0] = wanted // 10**12 & MASK
            words[1] = wanted % 10**12
            rows.append(words)
        positions = _positions(rows)
        book = Book()
        book.upsert(positions, rows_of(positions.words, exact.system.unit_wad))
        at = BlockTime(BlockNumber(1), Hash(bytes(32)), 0)
        candidates = set(book.candidates(Marks(at, "main", exact, exact.weights())))
        for key in list(book):
            health = judge(book.position(key), exact)
            assert isinstance(health, Health)
            if health.liquidatable:
                seen["unsafe"] += 1
                # the clearing house compares the value cut to a raw unit of the settlement token
                seen["cut"] += health.detail.value_wad >= health.detail.requirement_wad
                assert key in candidates, health
            else:
                seen["safe"] += 1
                seen["spared"] += key not in candidates
    assert seen["unsafe"] > 600
    assert seen["cut"] > 10
    assert seen["spared"] > seen["safe"] // 10


def test_a_price_that_the_discount_cuts_to_nothing_is_refused() -> None:
    """A collateral at the least price its feed can tell is not offered, and stops nothing else."""
    token, feed = Token(_at(20), "DUST", 18), Feed(_at(21), _at(22), 10**8)
    dust = Collateral(token, feed, 500_000, 100_000)
    bare = _random_marks(random.Random(1), 1)
    marks = replace(
        bare, entries=(*bare.entries, dust), collaterals={token.address: CollateralState(None, 1)}
    )
    owing = Account(-WAD, WAD, -WAD, 0, WAD, False, "margin", (), (Stock(dust, 10**20, 10**12),), False)
    health = Health(PositionKey("curie", "main", _at(30)), 0, 0, WAD, 18, True, owing)
    [refusal] = sales(health, marks)
    assert isinstance(refusal, Refusal) and refusal.reason == "nothing_to_repay"


@pytest.mark.parametrize(
    ("symbol", "decimals", "aggregator", "name"),
    [
        (b"MKR".ljust(32, b"\0"), 8, _at(22), "MKR"),
        (b"", 8, _at(22), hex_of(_at(20))),
        (b"MKR".ljust(32, b"\0"), 19, ZERO_ADDRESS, "MKR"),
    ],
    ids=("bytes32", "nameless", "too fine"),
)
def test_no_collateral_is_too_strange_to_be_learned(
    symbol: bytes, decimals: int, aggregator: Address, name: str
) -> None:
    """A token that answers bytes32 or nothing for its symbol, and one whose feed is finer than the exchange's prices,
    are read: whoever holds one must not keep all others from being read.
    """
    exchange = _random_marks(random.Random(1), 1).system
    config = b"".join(word.to_bytes(32) for word in (int.from_bytes(_at(21)), 500_000, 100_000, 0))
    answers = iter([[config, (18).to_bytes(32), symbol], [decimals.to_bytes(32), _at(22).rjust(32, b"\0")]])
    reading = learn_one(exchange, _at(20), Collateral)
    next(reading)
    with pytest.raises(StopIteration) as done:
        while True:
            reading.send(next(answers))
    learned = done.value.value
    assert (learned.token.symbol, learned.feed.aggregator) == (name, aggregator)


# --- on the chain ----------------------------------------------------------------------------------------------------


async def _equal(follower: Follower, marks: Marks, owners: list[Address], seen: Counter[str]) -> None:
    """Every figure of every account is the exchange's own."""
    node, curie = follower.node, follower.curie
    house, vault = house_of(node, curie), part_of(node, curie, "Vault")
    balance, exchange = part_of(node, curie, "AccountBalance"), part_of(node, curie, "Exchange")
    for market in curie.markets.values():
        mark = await balance.read("getMarkPrice", market.base_token)
        assert marks.exact.markets[market.base_token].mark_wad == mark
    candidates = {key.account for key in follower.book.candidates(marks)}
    for owner in owners:
        if follower.key(owner) not in follower.book:
            assert not await balance.read("getBaseTokens", owner)
            continue
        health = follower.assessed(owner, marks)
        assert isinstance(health, Health), health
        detail: Account = health.detail
        value = await house.read("getAccountValue", owner)
        assert detail.value_wad // 10**12 * 10**12 == value
        if not detail.stocks:
            below_zero = [-value // 10**12] if value < 0 else []
            assert [owed.raw for owed in health.bad_debt] == below_zero
        requirement = await balance.read("getMarginRequirementForLiquidation", owner)
        assert detail.requirement_wad == requirement
        expected = max(value, 0) * WAD // requirement if requirement else None
        assert health.health_factor_wad == expected
        for stake in detail.stakes:
            try:
                most = await balance.read("getLiquidatablePositionSize", owner, stake.market.base, value)
            except RpcError:  # the share does not fit 24 bits: nobody can liquidate here
                most = 0
                seen["overflown"] += 1
            assert stake.liquidatable == most
            seen["partial"] += 0 < abs(most) < abs(stake.size)
            if not detail.with_orders:
                owed = await exchange.read("getPendingFundingPayment", owner, stake.market.base)
                assert stake.funding_wad == owed
                seen["funded"] += owed != 0
        sellable = await vault.read("isLiquidatable", owner)
        for stock in detail.stocks:
            token = stock.collateral.token.address
            most_raw, _ = await vault.read("getMaxRepaidSettlementAndLiquidatableCollateral", owner, token)
            # the exchange tells a maker's value in whole units of the settlement token
            assert most_raw <= max_repaid_raw(detail, stock, marks.exact) <= most_raw + detail.with_orders
        assert detail.debt_value_wad == await balance.read("getTotalDebtValue", owner)
        assert (detail.sellable is not None) == sellable
        seen["sellable maker" if detail.with_orders else "sellable"] += sellable
        if value < requirement:
            assert health.liquidatable
            assert owner in candidates
            seen["unsafe"] += 1
        seen["accounts"] += 1
        seen["makers"] += detail.with_orders
        seen["spared"] += owner not in candidates


async def test_figures_equal_the_exchange_s(count: Count) -> None:
    """After random trades, orders, price moves and time, for random accounts with one or two markets, long and short,
    some with other collateral or open orders: account value, pending funding, margin requirement, mark price, debt
    value, liquidatable sizes and whether collateral may be sold are the exchange's own to the last unit, whoever is
    short of margin is a candidate of the book, and all that was found by logs alone. Marks computed ahead of the head
    are what the exchange says when that time has come.
    """
    chance = random.Random(20_260_103)
    seen: Counter[str] = Counter()
    async with following() as follower:
        owners = await random_accounts(chance, follower, 1, ACCOUNTS)
        for number in range(ROUNDS):
            if number:
                moves = {symbol: chance.uniform(-0.45, 0.45) for symbol in SYMBOLS}
                await follower.set_price({symbol: 1 + move / 2 for symbol, move in moves.items()})
                for symbol, move in moves.items():
                    await move_market(follower, symbol, move)
                for owner in chance.sample(owners, ACCOUNTS // 3):
                    await random_trade(chance, follower, owner, chance.choice(SYMBOLS))
                for owner in chance.sample(owners, ACCOUNTS // 10):
                    await random_order(chance, follower, owner)
            head = await follower.follow()
            await _equal(follower, await follower.marks(head), owners, seen)
            takers = [owner for owner in owners if not await _has_orders(follower, owner)]
            ahead_s = chance.randint(1, 90)
            ahead = await follower.marks(head, ahead_s)
            await follower.node.advance(ahead_s)
            await _equal(follower, ahead, takers, seen)
    count("Perp Curie accounts that were compared with the exchange", seen["accounts"])
    kinds = ("unsafe", "partial", "funded", "makers", "spared", "sellable", "sellable maker")
    assert min(seen[kind] for kind in kinds) > 0, seen


async def _has_orders(follower: Follower, owner: Address) -> bool:
    return bool(await part_of(follower.node, follower.curie, "AccountBalance").read("hasOrder", owner))
