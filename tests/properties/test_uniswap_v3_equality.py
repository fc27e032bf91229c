from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise, permutations
from math import prod
from typing import Final

import pytest

from keeper import abi
from keeper.chain.client import Chain
from keeper.errors import ExecutionError
from keeper.lab.actors import account
from keeper.lab.artifacts import published
from keeper.lab.node import Contract, Node
from keeper.lab.tokens import approve_txs, deploy_token, mint
from keeper.lab.uniswap import DEADLINE_S, TICK_SPACING
from keeper.lab.world import Lab
from keeper.seams import Reads, each, together
from keeper.types import Address, BlockTime, Path, Refusal, Result, Reverted, Token
from keeper.venues.uniswap_v3 import UniswapV3, UniswapV3Config, pack
from keeper.venues.uniswap_v3.state import PoolState, first_questions, first_state
from keeper.venues.uniswap_v3.swapping import REACH_WORDS, Swapped
from keeper.venues.uniswap_v3.ticks import MAX_SQRT_PRICE, MAX_TICK, MIN_SQRT_PRICE, MIN_TICK, sqrt_ratio_at
from tests.conftest import Count

DEEP = os.environ.get("KEEPER_DEEP") == "1"
ROUNDS = 50 if DEEP else 5
SWAPS = 200 if DEEP else 100  # quotes a round
SEED = int(os.environ.get("KEEPER_SEED", "6"))

QUOTER = abi.load("QuoterV2")
FACTORY = abi.load("UniswapV3Factory")
POOL = published("@uniswap/v3-core/artifacts/contracts/UniswapV3Pool.sol/UniswapV3Pool.json").abi
POSITIONS = published(
    "@uniswap/v3-periphery/artifacts/contracts/NonfungiblePositionManager.sol/NonfungiblePositionManager.json"
).abi
TRADER = account(61)
PLENTY: Final = 10**36
FAR: Final = 100_000  # ticks: beyond where any pool begins or has liquidity around it

Key = tuple[Address, Address, int]


@dataclass(slots=True)
class Market:
    """Three tokens with pools of every tier between the neighbours, and which ticks are initialised, by our books."""

    lab: Lab
    chance: random.Random
    tokens: list[Token]
    pools: dict[Key, Address] = field(default_factory=dict)
    homes: dict[Key, int] = field(default_factory=dict)  # first prices
    gross: dict[Key, dict[int, int]] = field(default_factory=dict)  # liquidity that ends at a tick
    depths: dict[Key, tuple[int, int, float]] = field(default_factory=dict)
    ticks: dict[Key, int] = field(default_factory=dict)
    owned: list[tuple[int, Key, int, int, int]] = field(default_factory=list)  # id, pool, ticks, liquidity

    @property
    def node(self) -> Node:
        """The chain."""
        return self.lab.node

    async def open(self) -> None:
        """Pools at random prices, some with positive and some with negative ticks, with the protocol's fee on."""
        uniswap, positions = self.lab.world.uniswap_v3, self._positions()
        for one, other in pairwise(sorted(self.tokens, key=lambda token: token.address)):
            for fee in TICK_SPACING:
                price = sqrt_ratio_at(self.chance.randint(-60_000, 60_000)) + self.chance.randint(0, 10**6)
                key = (one.address, other.address, fee)
                await positions.send(TRADER, "createAndInitializePoolIfNecessary", *key, price)
                factory = Contract(self.node, uniswap.factory, FACTORY)
                self.pools[key] = await factory.read("getPool", *key)
                self.homes[key] = price
                self.gross[key] = {}
                owner = self.lab.world.cast.deployer.address
                parts = self.chance.randint(4, 10), self.chance.choice((0, self.chance.randint(4, 10)))
                await Contract(self.node, self.pools[key], POOL).send(owner, "setFeeProtocol", *parts)
                for _ in range(self.chance.randint(3, 9)):
                    await self.provide(key)

    async def provide(self, key: Key) -> None:
        """Liquidity in a random range, which need not hold the price."""
        spacing = TICK_SPACING[key[2]]
        slot0 = await Contract(self.node, self.pools[key], POOL).read("slot0")
        at = slot0[1] if abs(slot0[1]) < 2 * FAR else tick_at(self.homes[key])
        widest = min(12_000 if spacing == 1 else 100_000, 200 * 256 * spacing)
        middle = at + int(self.chance.choice((0, 0, 1)) * self.chance.uniform(-1, 1) * widest / 2)
        width = max(spacing, int(widest ** self.chance.random()))
        lower = max((middle - width) // spacing, MIN_TICK // spacing + 1) * spacing
        upper = min((middle + width) // spacing + 1, MAX_TICK // spacing) * spacing
        liquidity = int(10 ** self.chance.choice((self.chance.uniform(3, 16), self.chance.uniform(16, 22))))
        # amounts that suffice for it: the manager finds the liquidity they make
        low, high = sqrt_ratio_at(lower), sqrt_ratio_at(upper)
        most = (liquidity * (high - low) << 96) // (low * high) + 1, liquidity * (high - low) // 2**96 + 1
        order = (*key, lower, upper, *most, 0, 0, TRADER, DEADLINE_S)
        try:
            minted = await self._positions().send(TRADER, "mint", order)
        except ExecutionError:
            return  # amounts too small to make any liquidity
        increased = POSITIONS.event("IncreaseLiquidity")
        event = next(increased.decode(log) for log in minted.logs if log.topics[0] == increased.topic)
        for tick in (lower, upper):
            self.gross[key][tick] = self.gross[key].get(tick, 0) + event["liquidity"]
        self.owned.append((event["tokenId"], key, lower, upper, event["liquidity"]))

    async def withdraw(self) -> None:
        """Take a random position away again."""
        token_id, key, *ticks, liquidity = self.owned.pop(self.chance.randrange(len(self.owned)))
        order = (token_id, liquidity, 0, 0, DEADLINE_S)
        await self._positions().send(TRADER, "decreaseLiquidity", order)
        for tick in ticks:
            self.gross[key][tick] -= liquidity

    async def trade(self, venue: UniswapV3) -> None:
        """Move a price by a real swap, some by much."""
        path, amount_raw, _ = self.order()
        router = Contract(self.node, venue.router, abi.load("SwapRouter"))
        order = (pack(path), TRADER, DEADLINE_S, amount_raw, 0)
        try:
            await router.send(TRADER, "exactInput", order)
        except ExecutionError:
            return  # it would have moved nothing

    async def bring_back(self) -> None:
        """Trade prices that left all liquidity behind to where they began; some pools are left there for a while."""
        path = "@uniswap/v3-periphery/artifacts/contracts/SwapRouter.sol/SwapRouter.json"
        router = Contract(self.node, self.lab.world.uniswap_v3.router, published(path).abi)
        for key, tick in self.ticks.items():
            if abs(tick) < FAR or self.chance.random() < 0.5:
                continue
            sold, bought = key[:2] if tick > 0 else (key[1], key[0])
            # in pieces: one transaction has not the gas for all words of a bitmap
            pieces = range(tick, 0, -2 * FAR if tick > 0 else 2 * FAR)
            for limit in (*(sqrt_ratio_at(piece) for piece in pieces[1:]), self.homes[key]):
                order = (sold, bought, key[2], TRADER, DEADLINE_S, PLENTY // 10**4, 0, limit)
                with suppress(ExecutionError):  # past that piece already
                    await router.send(TRADER, "exactInputSingle", order)

    def order(self) -> tuple[Path, int, bool]:
        """A random swap: one or two hops, either way, tiny to more than there is."""
        ordered = sorted(self.tokens, key=lambda token: token.address)
        routes = [(one, other) for one, other in permutations(range(3), 2) if abs(one - other) == 1]
        route = self.chance.choice([*routes, (0, 1, 2), (2, 1, 0)])
        tokens = tuple(ordered[place].address for place in route)
        fees = tuple(self.chance.choice(list(TICK_SPACING)) for _ in route[1:])
        exact_out = self.chance.random() < 0.5
        whole_raw = self._whole_raw(tokens, fees, exact_out=exact_out)
        share = 10 ** self.chance.choice((self.chance.uniform(-2, 0.1), self.chance.uniform(-24, 0)))
        return Path(tokens, fees), int(whole_raw * share) + self.chance.randint(1, 9), exact_out

    def _whole_raw(self, tokens: Sequence[Address], fees: Sequence[int], *, exact_out: bool) -> float:
        """About as much as the pools of a route hold, of the token whose amount is told."""
        whole_raw = float("inf")
        rates = []
        for one, other, fee in zip(tokens, tokens[1:], fees, strict=False):
            *held, price = self.depths[min(one, other), max(one, other), fee]
            rates.append(price if one < other else 1 / price)
            whole_raw = min(whole_raw * rates[-1], held[one < other])
        return whole_raw if exact_out else whole_raw / prod(rates)

    async def look(self) -> None:
        """Note how much every pool holds, its price and its tick."""
        for key, address in self.pools.items():
            slot0 = await Contract(self.node, address, POOL).read("slot0")
            held = [
                await Contract(self.node, token, abi.load("Erc20")).read("balanceOf", address)
                for token in key[:2]
            ]
            self.depths[key] = (held[0], held[1], (slot0[0] / 2**96) ** 2)
            self.ticks[key] = slot0[1]

    def crossed(self, key: Key, tick: int, price_after: int, *, down: bool) -> int:
        """Initialised ticks a swap from `tick` to a price crosses, by our books."""
        ticks = [each_tick for each_tick, liquidity in self.gross[key].items() if liquidity]
        if down:
            return sum(one <= tick and sqrt_ratio_at(one) >= price_after for one in ticks)
        return sum(one > tick and sqrt_ratio_at(one) <= price_after for one in ticks)

    def counted(self, key: Key, before: int, after: int) -> int:
        """The same as PoolTicksCounter counts it, which rounds negative ticks towards zero."""
        spacing = TICK_SPACING[key[2]]
        ticks = {tick for tick, liquidity in self.gross[key].items() if liquidity}
        places = [int(tick / spacing) for tick in (before, after)]
        found = sum(min(places) <= tick // spacing <= max(places) for tick in ticks)
        return found - (after in ticks and before > after) - (before in ticks and before < after)

    def _positions(self) -> Contract:
        return Contract(self.node, self.lab.world.uniswap_v3.positions, POSITIONS)


@pytest.fixture
async def market(lab: Lab) -> AsyncIterator[Market]:
    """Pools of three new tokens on the lab's Uniswap, from the seed."""
    tokens = [await deploy_token(lab.node, lab.world.cast, f"T{n}", 18) for n in range(3)]
    market = Market(lab, random.Random(SEED), tokens)
    uniswap = lab.world.uniswap_v3
    await lab.node.set_balances([TRADER], PLENTY)
    for token in tokens:
        await mint(lab.node, lab.world.cast, token, TRADER, PLENTY)
        for spender in (uniswap.positions, uniswap.router):
            await lab.node.send_all(await approve_txs(lab.node, token, TRADER, spender, PLENTY))
    await market.open()
    yield market


def tick_at(sqrt_price_x96: int) -> int:
    """TickMath.getTickAtSqrtRatio, by search."""
    low, high = MIN_TICK, MAX_TICK
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sqrt_ratio_at(middle) <= sqrt_price_x96 else (low, middle - 1)
    return low


def walked(address: Address, fee: int, amount_raw: int, *, down: bool, exact_out: bool) -> Reads[Swapped]:
    """A swap in a pool that nothing is known of."""
    state = first_state(address, fee, (yield first_questions(address)))
    yield from state.settle()
    return (yield from finished(state, amount_raw, down=down, exact_out=exact_out))


def finished(state: PoolState, amount_raw: int, *, down: bool, exact_out: bool) -> Reads[Swapped]:
    """A swap in a pool, with whatever it must learn for it."""
    lane = state.lane(down=down)
    while (swapped := lane.swap(amount_raw, exact_out=exact_out)) is None:
        yield from state.learn(*lane.wanted())
    return swapped


def asked(path: Path, amount_raw: int, exact_out: bool) -> tuple[str, bytes, int]:
    """QuoterV2's question."""
    return "quoteExactOutput" if exact_out else "quoteExactInput", pack(path, reverse=exact_out), amount_raw


async def test_quotes_equal_the_quoters(lab: Lab, market: Market, count: Count) -> None:
    """Amounts of random swaps are QuoterV2's to the unit; who it would leave with a part, or refuses, is refused.

    Pools change between the rounds by swaps, new and withdrawn liquidity, while the venue keeps what it learnt.
    """
    uniswap = lab.world.uniswap_v3
    config = UniswapV3Config(factory=uniswap.factory, quoter=uniswap.quoter, router=uniswap.router)
    venue = UniswapV3(config)
    chain = await Chain.open([lab.anvil.url], lab.world.chain_id)
    quoted = refused = 0
    try:
        for _ in range(ROUNDS):
            await market.look()
            for _ in range(2):
                await market.trade(venue)
                await market.provide(market.chance.choice(list(market.pools)))
            await market.withdraw()
            await market.bring_back()
            await market.look()
            orders = [market.order() for _ in range(SWAPS)]
            head = await lab.node.head()
            await chain.read(venue.sync([path for path, _, _ in orders], head), head.hash)
            reads = [venue.quote(path, raw, exact_out=exact_out) for path, raw, exact_out in orders]
            quotes = await chain.read(together(reads), head.hash)
            answers = await _quoters(chain, uniswap.quoter, orders, head)
            for (path, amount_raw, exact_out), quote, answer in zip(orders, quotes, answers, strict=True):
                about = (path, amount_raw, exact_out, quote)
                if isinstance(quote, Refusal):
                    assert quote.reason == "no_liquidity", about
                    refused += 1
                    assert _short(path, answer, exact_out, market), about
                    continue
                assert not isinstance(answer, Reverted), about
                name, _, _ = asked(path, amount_raw, exact_out)
                other_raw, prices, _, _ = QUOTER.function(name).decode(answer)
                assert other_raw == (quote.amount_in_raw if exact_out else quote.amount_out_raw), about
                assert not {MIN_SQRT_PRICE, MAX_SQRT_PRICE}.intersection(prices), about
                quoted += 1
    finally:
        await chain.close()
    assert quoted > refused > 0
    count("swaps in Uniswap V3 equal to QuoterV2's", quoted)
    count("swaps in Uniswap V3 refused as QuoterV2 cuts them short", refused)


async def _quoters(
    chain: Chain, quoter: Address, orders: list[tuple[Path, int, bool]], head: BlockTime
) -> list[Result]:
    calls = []
    for order in orders:
        name, *rest = asked(*order)
        calls.append(QUOTER.function(name).call(quoter, *rest))
    answers: list[Result] = []
    for first in range(0, len(calls), 25):
        answers += await chain.read(each(calls[first : first + 25]), head.hash)
    # where pools are walked to their ends one takes the gas of those after it: what failed is asked alone
    return [
        (await chain.read(each([call]), head.hash))[0] if isinstance(answer, Reverted) else answer
        for call, answer in zip(calls, answers, strict=True)
    ]


def _short(path: Path, answer: Result, exact_out: bool, market: Market) -> bool:
    """Whether the pools cannot do the whole swap: the quoter reverts, a price ends at the limit or out of reach."""
    if isinstance(answer, Reverted):
        return True
    name = "quoteExactOutput" if exact_out else "quoteExactInput"
    other_raw, prices, _, _ = QUOTER.function(name).decode(answer)
    if not other_raw or {MIN_SQRT_PRICE, MAX_SQRT_PRICE}.intersection(prices):
        return True
    hops = list(zip(path.tokens, path.tokens[1:], path.fees, strict=False))
    return any(
        abs(tick_at(price) - market.ticks[min(one, other), max(one, other), fee])
        > (REACH_WORDS - 1) * 256 * TICK_SPACING[fee]
        for price, (one, other, fee) in zip(prices, reversed(hops) if exact_out else hops, strict=True)
    )


async def test_a_swap_ends_where_the_quoter_says(lab: Lab, market: Market, count: Count) -> None:
    """End price and ticks crossed of one pool's swaps are QuoterV2's too, also of what is filled only in part."""
    uniswap = lab.world.uniswap_v3
    chain = await Chain.open([lab.anvil.url], lab.world.chain_id)
    crossings = 0
    try:
        for _ in range(ROUNDS):
            await market.provide(market.chance.choice(list(market.pools)))
            await market.look()
            head = await lab.node.head()
            orders = [order for order in (market.order() for _ in range(SWAPS)) if len(order[0].fees) == 1]
            answers = await _quoters(chain, uniswap.quoter, orders, head)
            for (path, amount_raw, exact_out), answer in zip(orders, answers, strict=True):
                one, other = path.tokens
                down, key = one < other, (min(one, other), max(one, other), path.fees[0])
                about = (path, amount_raw, exact_out)
                read = walked(market.pools[key], key[2], amount_raw, down=down, exact_out=exact_out)
                swapped = await chain.read(read, head.hash)
                if isinstance(answer, Reverted):
                    assert not swapped.complete, about
                    continue
                name, _, _ = asked(path, amount_raw, exact_out)
                other_raw, (price,), (ticks,), _ = QUOTER.function(name).decode(answer)
                if not swapped.complete and price not in (MIN_SQRT_PRICE, MAX_SQRT_PRICE):
                    assert _short(path, answer, exact_out, market), about
                    continue
                assert other_raw == (swapped.given_raw if exact_out else swapped.taken_raw), about
                if not swapped.complete:
                    continue  # the rest of the way to the limit was not walked
                assert price == swapped.sqrt_price_x96, about
                assert swapped.crossed == market.crossed(key, market.ticks[key], price, down=down), about
                crossings += swapped.crossed
                after = tick_at(price)
                if price != sqrt_ratio_at(after):
                    assert ticks == market.counted(key, market.ticks[key], after), about
    finally:
        await chain.close()
    assert crossings > SWAPS
    count("ticks crossed in Uniswap V3", crossings)


async def test_gas_is_about_what_the_router_takes(lab: Lab, market: Market) -> None:
    """A quote's gas is the router's call: at most what a pool writes for the first time is missing, and little is left.

    Over many ticks too; the transaction's own gas and calldata aside.
    """
    uniswap = lab.world.uniswap_v3
    config = UniswapV3Config(factory=uniswap.factory, quoter=uniswap.quoter, router=uniswap.router)
    venue = UniswapV3(config)
    router = Contract(lab.node, venue.router, abi.load("SwapRouter"))
    chain = await Chain.open([lab.anvil.url], lab.world.chain_id)
    most = 0
    try:
        for swap in range(SWAPS // 2):
            if swap % 20 == 0:
                await market.look()
            path, amount_raw, exact_out = market.order()
            head = await lab.node.head()
            quote = await chain.read(venue.quote(path, amount_raw, exact_out=exact_out), head.hash)
            if isinstance(quote, Refusal):
                continue
            leg = venue.swap_leg(quote, whole_balance=False, limit_raw=PLENTY if exact_out else 0)
            order = (leg.path, TRADER, DEADLINE_S, leg.amount_raw, leg.limit_raw)
            receipt = await router.send(TRADER, "exactOutput" if exact_out else "exactInput", order)
            taken = receipt.gas_used - 21_000 - 16 * len(leg.path) - 1_500
            hops, on_the_way = len(path.fees), quote.gas - 105_000 * len(path.fees)
            assert taken - 30_000 * hops <= quote.gas <= taken + 50_000 * hops + on_the_way // 2, (
                path,
                taken,
            )
            most = max(most, on_the_way)
    finally:
        await chain.close()
    assert most > 100_000
