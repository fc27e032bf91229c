"""An adapter and a book that follow a Perp Curie exchange of a local world, the way the daemon does."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

from keeper.book import Book
from keeper.chain.client import Chain
from keeper.errors import ExecutionError
from keeper.lab.actors import account
from keeper.lab.chainlink import set_prices
from keeper.lab.curie import (
    MARKETS,
    Curie,
    MarketSpec,
    deploy_curie,
    deposit,
    perp_oracle,
    pool_of,
    provide,
    trade,
)
from keeper.lab.node import Contract, Node
from keeper.lab.world import Lab, World, open_lab
from keeper.protocols.perp_curie import PerpCurie, PerpCurieConfig
from keeper.types import Address, BlockNumber, BlockTime, Health, Marks, PositionKey, Refusal

ETHER = 10**18
USDC = 10**6
SYMBOLS = ("WETH", "WBTC")
WHALE = account(9_000_002)
UNIT = {"WETH": ETHER, "WBTC": ETHER // 20}  # about 2,000 dollars of base token


@dataclass(slots=True)
class Follower:
    """One adapter with a book, kept up to date from logs alone."""

    lab: Lab
    chain: Chain
    curie: Curie
    adapter: PerpCurie
    markets_of: Sequence[MarketSpec] = MARKETS
    book: Book = field(default_factory=Book)
    followed: int = -1

    @property
    def node(self) -> Node:
        """The local node."""
        return self.lab.node

    @property
    def world(self) -> World:
        """Everything deployed."""
        return self.lab.world

    async def follow(self) -> BlockTime:
        """Read what logs since the last call touched; the head that the book is now true at."""
        head = await self.node.head()
        if self.followed < 0:
            await self.chain.read(self.adapter.load(), head.hash)
        logs = await self.chain.logs([self.adapter.sources()], self.followed + 1, head.number)
        touched = self.adapter.discover(logs)
        keys = set(touched.keys)
        if touched.reload:
            await self.chain.read(self.adapter.load(), head.hash)
            keys |= set(self.book)
        await self.refresh(sorted(keys, key=lambda key: key.account), head)
        self.followed = head.number
        return head

    async def refresh(self, keys: Sequence[PositionKey], head: BlockTime) -> None:
        """Read these positions into the book."""
        positions = await self.chain.read(self.adapter.refresh(keys), head.hash)
        self.book.upsert(positions, self.adapter.rows(positions))

    async def marks(self, head: BlockTime, ahead_s: int = 0) -> Marks:
        """Marks as of `ahead_s` after `head`."""
        at = BlockTime(BlockNumber(head.number), head.hash, head.timestamp_s + ahead_s)
        marks = await self.chain.read(self.adapter.marks(at), head.hash)
        assert isinstance(marks, Marks), marks
        return marks

    def key(self, owner: Address) -> PositionKey:
        """An account's key."""
        return PositionKey(self.adapter.name, self.adapter.market, owner)

    def assessed(self, owner: Address, marks: Marks) -> Health | Refusal:
        """What the adapter says of an account."""
        return self.adapter.assess(self.book.position(self.key(owner)), marks)

    async def fund(self, owners: Sequence[Address], amount_raw: int) -> None:
        """Let accounts deposit that much of the settlement token each."""
        await deposit(
            self.node, self.world.cast, self.curie, self.curie.settlement, dict.fromkeys(owners, amount_raw)
        )

    async def set_price(self, factors: dict[str, float]) -> None:
        """Report the world's first prices times these factors, all in one block."""
        feeds, first = self.world.feeds, self.world.prices_e8
        await set_prices(
            self.node, {feeds[symbol]: int(first[symbol] * factor) for symbol, factor in factors.items()}
        )


@asynccontextmanager
async def following(
    lab: Lab | None = None, markets: Sequence[MarketSpec] = MARKETS
) -> AsyncIterator[Follower]:
    """A follower of a new exchange on `lab`, or on a fresh world with a second between blocks."""
    async with AsyncExitStack() as stack:
        if lab is None:
            lab = await stack.enter_async_context(await open_lab(clock="steady"))
        chain = await stack.enter_async_context(await Chain.open([lab.anvil.url], lab.world.chain_id))
        curie = await deploy_curie(lab.node, lab.world, markets)
        config = PerpCurieConfig(name="curie", clearing_house=curie.clearing_house)
        follower = Follower(lab, chain, curie, PerpCurie(config), markets)
        await follower.fund([WHALE], 10_000_000 * USDC)
        yield follower


async def random_accounts(chance: random.Random, follower: Follower, first: int, count: int) -> list[Address]:
    """Traders in one or two markets, some with other collateral, some with maker orders."""
    owners = [account(first + number) for number in range(count)]
    node, cast, curie = follower.node, follower.world.cast, follower.curie
    cash = {owner: chance.randint(50, 1_200) * USDC for owner in owners}
    await deposit(node, cast, curie, curie.settlement, cash)
    for symbol, amount in (("WETH", ETHER // 3), ("WBTC", 10**6)):
        holders = [owner for owner in owners if chance.random() < 0.3]
        if holders:
            amounts = {owner: int(amount * chance.uniform(0.1, 2)) for owner in holders}
            await deposit(node, cast, curie, curie.collaterals[symbol], amounts)
    for owner in owners:
        for symbol in chance.sample(SYMBOLS, chance.choice((1, 1, 2))):
            await random_trade(chance, follower, owner, symbol)
        if chance.random() < 0.15:
            await random_order(chance, follower, owner)
    return owners


async def random_trade(chance: random.Random, follower: Follower, owner: Address, symbol: str) -> bool:
    """A trade of some hundred or thousand dollars, if the exchange lets the account make it."""
    size = int(UNIT[symbol] * chance.choice((0.05, 0.5, 2)) * chance.uniform(0.2, 2)) * chance.choice((1, -1))
    try:
        await trade(follower.node, follower.curie, owner, symbol, size)
    except ExecutionError:
        return False
    return True


async def random_order(chance: random.Random, follower: Follower, owner: Address) -> bool:
    """A maker order around the price, if the exchange lets the account make it."""
    symbol = chance.choice(SYMBOLS)
    price = follower.world.prices_e8[symbol] / 1e8
    prices = (price * chance.uniform(0.5, 0.98), price * chance.uniform(1.02, 2))
    depth = (UNIT[symbol] * chance.randint(1, 2), 2_000 * ETHER * chance.randint(1, 2))
    try:
        await provide(follower.node, follower.curie, owner, symbol, depth, prices)
    except ExecutionError:
        return False
    return True


async def to_index(follower: Follower, symbol: str) -> None:
    """Let a whale trade the pool towards the index price, block by block, and give averages time to follow."""
    node, curie, market = follower.node, follower.curie, follower.curie.markets[symbol]
    depth_usd = next(spec.depth_usd for spec in follower.markets_of if spec.symbol == symbol)
    pool, feed = pool_of(node, curie, symbol), perp_oracle("ChainlinkPriceFeedV3").abi
    for step in range(12):
        price = ((await pool.read("slot0"))[0] / 2**96) ** 2
        index = (await Contract(node, market.feed, feed).read("getPrice", 0)) / 1e8
        gap = index / price - 1
        if abs(gap) < 0.005:
            break
        size = int(UNIT[symbol] * depth_usd / 2_000 * min(abs(gap), 0.08) / 2) * (1 if gap > 0 else -1)
        with suppress(ExecutionError):
            await trade(node, curie, WHALE, symbol, size)
        await node.advance(20 + step)
    await node.advance(1_800)


async def move_market(follower: Follower, symbol: str, factor: float) -> None:
    """Let a whale trade the pool by a part of what its depth is, block by block, and give averages time to follow."""
    depth_usd = next(spec.depth_usd for spec in follower.markets_of if spec.symbol == symbol)
    size = int(UNIT[symbol] * depth_usd / 2_000 * abs(factor) / 6) * (1 if factor > 0 else -1)
    for _ in range(6):
        with suppress(ExecutionError):
            await trade(follower.node, follower.curie, WHALE, symbol, size)
        await follower.node.advance(30)
    await follower.node.advance(1_800)
