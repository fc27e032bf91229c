"""Random accounts on Aave and Morpho that fell, beside pools of three depths, and what their plans are priced with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from keeper.book import Book
from keeper.chain.client import Chain
from keeper.errors import ExecutionError
from keeper.fixed import BPS, WAD
from keeper.flash import MorphoFlash, UniswapV3Flash
from keeper.lab.aave import Version
from keeper.lab.actors import account
from keeper.lab.chainlink import set_prices
from keeper.lab.morpho import BorrowSpec, Morpho, borrow, open_morpho_lab
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.uniswap import add_ranges, shift_pools
from keeper.lab.world import Lab
from keeper.planner import PlanContext
from keeper.protocols.aave_v3 import AaveFlash, AaveV3, AaveV3Config
from keeper.protocols.morpho_blue import MorphoBlue, MorphoBlueConfig
from keeper.seams import Adapter, FlashSource, Reads
from keeper.types import Address, BlockTime, Health, Marks, Option, Wei
from keeper.venues.uniswap_v2 import UniswapV2, UniswapV2Config
from keeper.venues.uniswap_v3 import UniswapV3, UniswapV3Config

PROTOCOLS: Final = ("aave", "morpho")
BORROWER: Final = account(78)


@dataclass(frozen=True, slots=True)
class Depth:
    """What an account is worth, in dollars, and how much of every pool's liquidity is left."""

    worth_usd: int
    left_bps: int


DEPTHS: Final[Mapping[str, Depth]] = {
    "deep": Depth(5_000, BPS),
    "medium": Depth(150_000, 3_000),
    "thin": Depth(120_000, 300),
}

# More liquidity near the price, so that swaps cross ticks: between two multiples of it, of so many dollars.
_RANGES: Final = (
    (0.80, 0.86, 20_000),
    (0.84, 0.90, 40_000),
    (0.90, 0.97, 10_000),
    (0.98, 1.02, 30_000),
    (1.04, 1.12, 20_000),
    (1.10, 1.20, 40_000),
)
_E8: Final = 10**8
_VERSIONS: Final[tuple[Version, ...]] = ("3.0", "3.6")
_SYMBOLS: Final = ("WETH", "WBTC", "USDC", "DAI")  # that are lent, owed, swapped and kept
_BETWEEN: Final = ("WETH", "USDC")
_VOLATILE: Final = (("WETH",), ("WBTC",), ("WETH", "WBTC"))
_STABLE: Final = (("USDC",), ("DAI",), ("USDC", "DAI"))
_MORPHO_MARKETS: Final = (0, 1, 3, 4)  # WETH/USDC, WBTC/USDC, WETH/DAI, USDC/WETH
_OPENED_WAD: Final = WAD * 108 // 100  # the health factor on Aave before the fall
_OPENED_BPS: Final = 9_700  # and how much of the most is owed on Morpho


@dataclass(frozen=True, slots=True)
class Case:
    """An account to liquidate, the ways there are, and the context of its plan, as of one block."""

    chain: Chain
    lab: Lab
    health: Health
    options: Sequence[Option]
    ctx: PlanContext
    v3: UniswapV3
    v2: UniswapV2

    @property
    def between(self) -> Sequence[Address]:
        """The tokens over which two-hop routes may lead."""
        return [self.lab.world.tokens[symbol].address for symbol in _BETWEEN]

    async def read(self, reads: Reads[Any]) -> Any:
        """Read at the case's block."""
        return await self.chain.read(reads, self.ctx.at.hash)


@dataclass(frozen=True, slots=True)
class Ground:
    """A lab with both protocols, and what a keeper knows of them."""

    lab: Lab
    chain: Chain
    morpho: Morpho
    aaves: Mapping[Version, AaveV3]
    blue: MorphoBlue
    v3: UniswapV3
    v2: UniswapV2

    @asynccontextmanager
    async def case(self, protocol: str, depth: str, chance: Random) -> AsyncIterator[Case]:
        """A random account of "aave" or "morpho" that fell, in pools of a depth; undone afterwards."""
        node = self.lab.node
        snapshot = await node.snapshot()
        try:
            on_aave = protocol == "aave"
            fallen = await (self._on_aave if on_aave else self._on_morpho)(DEPTHS[depth], chance)
            yield await self._seen(*fallen, chance)
        finally:
            await node.revert(snapshot)
            await node.steady_clock()

    async def _on_aave(self, depth: Depth, chance: Random) -> tuple[Adapter, tuple[str, ...], dict[str, int]]:
        """An account of one or two collaterals and debts, long or short."""
        world, node = self.lab.world, self.lab.node
        version = chance.choice(_VERSIONS)
        sides = [chance.choice(_VOLATILE), chance.choice(_STABLE)]
        is_short = chance.random() < 1 / 4
        held, owed = reversed(sides) if is_short else sides
        worth_usd = _worth_usd(depth, chance) // len(held)
        supply = {symbol: self._raw(symbol, worth_usd) for symbol in held}
        weights = {symbol: chance.randint(1, 3) for symbol in owed}
        spec = PositionSpec(BORROWER, supply, weights, health_factor_wad=_OPENED_WAD)
        await open_position(node, world.cast, world.aave[version], spec)
        prices = await self._moved(owed if is_short else held, is_short, depth, chance)
        return self.aaves[version], (*held, *owed), prices

    async def _on_morpho(
        self, depth: Depth, chance: Random
    ) -> tuple[Adapter, tuple[str, ...], dict[str, int]]:
        """An account in one of the markets."""
        number = chance.choice(_MORPHO_MARKETS)
        market = self.morpho.markets[number]
        held, owed = market.collateral.symbol, market.loan.symbol
        raw = self._raw(held, _worth_usd(depth, chance))
        await borrow(
            self.lab.node, self.lab.world, self.morpho, [BorrowSpec(BORROWER, number, raw, _OPENED_BPS)]
        )
        is_short = held in _BETWEEN and held != "WETH"
        prices = await self._moved((owed if is_short else held,), is_short, depth, chance)
        return self.blue, (held, owed), prices

    def _raw(self, symbol: str, usd: int) -> int:
        world = self.lab.world
        return usd * _E8 * int(10 ** world.tokens[symbol].decimals) // world.prices_e8[symbol]

    async def _moved(
        self, symbols: Sequence[str], rises: bool, depth: Depth, chance: Random
    ) -> dict[str, int]:
        """Move these tokens' prices, at the feeds and in the pools, and let liquidity go; the new prices."""
        world, node = self.lab.world, self.lab.node
        prices = dict(world.prices_e8)
        for symbol in symbols:
            factor = chance.uniform(1.09, 1.14) if rises else chance.uniform(0.84, 0.92)
            prices[symbol] = int(prices[symbol] * factor)
        await set_prices(node, {world.feeds[symbol]: prices[symbol] for symbol in symbols})
        await shift_pools(
            node, world.cast, world.uniswap_v3, world.uniswap_v2, _SYMBOLS, prices, depth.left_bps
        )
        return prices

    async def _seen(
        self, adapter: Adapter, symbols: Sequence[str], prices: Mapping[str, int], chance: Random
    ) -> Case:
        """The account as a keeper sees it at the head. Raises ExecutionError where it cannot be liquidated."""
        world, read, head = self.lab.world, self.chain.read, await self.chain.head()
        at = BlockTime(head.number, head.hash, head.timestamp_s + 1)
        book = Book()
        for key in adapter.keys_of(BORROWER):
            positions = await read(adapter.refresh([key]), head.hash)
            book.upsert(positions, adapter.rows(positions))
        marks = await read(adapter.marks(at), head.hash)
        if not isinstance(marks, Marks):
            raise ExecutionError(f"The marks of {adapter.name} are refused: {marks}.")
        health = self._unsafe(adapter, book, marks)
        answers = adapter.options(book.position(health.key), health, marks)
        options = [one for one in answers if isinstance(one, Option)]
        profit = world.tokens[chance.choice((*symbols, "USDC", "WETH"))]
        uniswap, tokens = world.uniswap_v3, world.tokens
        sources: list[FlashSource] = [
            MorphoFlash(self.morpho.address),
            AaveFlash(self.aaves["3.6"]),
            UniswapV3Flash(uniswap.pool(tokens["WETH"], tokens["USDC"], 500).address),
        ]
        most_usd = chance.choice((10**8, 10**8, DEPTHS["medium"].worth_usd // 3))
        ctx = PlanContext(
            at=at,
            adapter=adapter,
            venues=(self.v3, self.v2),
            flash_sources=sources[chance.choice((0, 0, 1, 1, 2)) :],
            profit_token=profit,
            profit_usd_e8=prices[profit.symbol],
            native_usd_e8=prices["WETH"],
            gas_price_wei=Wei(int(10 ** chance.uniform(7, 10))),
            max_fee_wei=Wei(200 * 10**9),
            min_profit_usd_e8=_E8,
            max_slippage_bps=chance.choice((50, 100, 300, 1000)),
            max_repay_usd_e8=most_usd * _E8,
            thorough=chance.random() < 1 / 4,
        )
        return Case(self.chain, self.lab, health, options, ctx, self.v3, self.v2)

    @staticmethod
    def _unsafe(adapter: Adapter, book: Book, marks: Marks) -> Health:
        keys = [key for key in adapter.keys_of(BORROWER) if key in book]
        answers = [adapter.assess(book.position(key), marks) for key in keys]
        unsafe = [one for one in answers if isinstance(one, Health) and one.liquidatable]
        if not unsafe:
            raise ExecutionError(f"The account on {adapter.name} did not fall far enough: {answers}.")
        return unsafe[0]


@asynccontextmanager
async def open_ground() -> AsyncIterator[Ground]:
    """A lab of its own, the same on every run."""
    lab, morpho = await open_morpho_lab("steady")
    async with lab, await Chain.open([lab.anvil.url], lab.world.chain_id) as chain:
        world = lab.world
        aaves = {version: _aave(version, world.aave[version].provider) for version in _VERSIONS}
        blue = MorphoBlue(
            MorphoBlueConfig(
                name="morpho",
                morpho=morpho.address,
                markets=tuple(market.id for market in morpho.markets),
                usd_feeds=tuple(
                    (token.address, world.feeds[symbol].proxy) for symbol, token in world.tokens.items()
                ),
            )
        )
        for pool in world.uniswap_v3.pools:
            if {pool.token0.symbol, pool.token1.symbol} <= set(_SYMBOLS):
                await add_ranges(lab.node, world.cast, world.uniswap_v3, pool, world.prices_e8, _RANGES)
        head = await chain.head()
        adapters: list[Adapter] = [*aaves.values(), blue]
        for adapter in adapters:
            await chain.read(adapter.load(), head.hash)
        v3, v2, between = (
            world.uniswap_v3,
            world.uniswap_v2,
            [world.tokens[each].address for each in _BETWEEN],
        )
        yield Ground(
            lab,
            chain,
            morpho,
            aaves,
            blue,
            UniswapV3(UniswapV3Config(factory=v3.factory, quoter=v3.quoter, router=v3.router), between),
            UniswapV2(UniswapV2Config(factory=v2.factory, router=v2.router), between),
        )


def _aave(version: Version, provider: Address) -> AaveV3:
    return AaveV3(AaveV3Config(name=f"aave-{version.replace('.', '-')}", pool_addresses_provider=provider))


def _worth_usd(depth: Depth, chance: Random) -> int:
    return int(depth.worth_usd * 10 ** chance.uniform(-0.3, 0.3))
