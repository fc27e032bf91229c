"""An adapter and a book that follow a reference perp exchange of a local world, the way the daemon does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from keeper.abi import load
from keeper.book import Book
from keeper.chain.client import Chain, SimCall
from keeper.fixed import MAX_UINT256, WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import latest, set_prices
from keeper.lab.node import Contract, Node, Receipt
from keeper.lab.perp_exchange import (
    MARKETS,
    AccountSpec,
    Exchange,
    MarketSpec,
    contract_of,
    deploy_exchange,
    open_accounts,
    set_market,
    set_parameters,
    table,
    trade_tx,
)
from keeper.lab.rig import Rig, make_rig
from keeper.lab.tokens import approve_txs, mint
from keeper.lab.world import Lab, World
from keeper.protocols.reference_perp import Cash, ReferencePerp, ReferencePerpConfig, Takeover
from keeper.protocols.reference_perp.exchange import account_key
from keeper.protocols.reference_perp.options import takeovers
from keeper.types import (
    Address,
    BlockNumber,
    BlockTime,
    Gas,
    Health,
    Marks,
    Option,
    Outcome,
    PositionKey,
    Refusal,
)

TRADER, OTHER = account(1), account(2)
ETH, BTC, ISO = 0, 1, 2
USDC = 10**6


@dataclass(slots=True)
class ExchangeFollower:
    """One adapter with a book, kept up to date from logs alone; accounts go by their numbers."""

    node: Node
    world: World
    chain: Chain
    exchange: Exchange
    adapter: ReferencePerp
    book: Book = field(default_factory=Book)
    followed: int = -1
    reloads: int = 0

    @property
    def contract(self) -> Contract:
        """The exchange."""
        return contract_of(self.node, self.exchange)

    async def follow(self) -> BlockTime:
        """Read what logs since the last call touched; the head that the book is now true at."""
        head = await self.node.head()
        if self.followed < 0:
            await self.chain.read(self.adapter.load(), head.hash)
        logs = await self.chain.logs([self.adapter.sources()], self.followed + 1, head.number)
        touched = self.adapter.discover(logs)
        keys = set(touched.keys)
        if touched.reload and self.followed >= 0:
            await self.chain.read(self.adapter.load(), head.hash)
            keys |= set(self.book)
            self.reloads += 1
        listed = sorted(keys, key=lambda key: key.account)
        positions = await self.chain.read(self.adapter.refresh(listed), head.hash)
        self.book.upsert(positions, self.adapter.rows(positions))
        self.followed = head.number
        return head

    async def read_marks(self, head: BlockTime, ahead_s: int = 0) -> Marks | Refusal:
        """Marks as of `ahead_s` after `head`, or why there are none."""
        at = BlockTime(BlockNumber(head.number), head.hash, head.timestamp_s + ahead_s)
        return await self.chain.read(self.adapter.marks(at), head.hash)

    async def marks(self, ahead_s: int = 1) -> Marks:
        """Marks as of `ahead_s` after the head, which the book follows to; they must not be refused."""
        marks = await self.read_marks(await self.follow(), ahead_s)
        assert isinstance(marks, Marks), marks
        return marks

    def key(self, number: int) -> PositionKey:
        """An account's key."""
        return PositionKey(self.adapter.name, self.adapter.market, account_key(number))

    def assessed(self, number: int, marks: Marks) -> Health | Refusal:
        """An account's health, or why it cannot be told."""
        return self.adapter.assess(self.book.position(self.key(number)), marks)

    def health(self, number: int, marks: Marks) -> Health:
        """An account's health."""
        health = self.assessed(number, marks)
        assert isinstance(health, Health), health
        return health

    def answers(self, number: int, marks: Marks) -> Sequence[Option | Refusal]:
        """Every option and refusal of an account."""
        health = self.health(number, marks)
        return self.adapter.options(self.book.position(self.key(number)), health, marks)

    def options(self, number: int, marks: Marks) -> list[Option]:
        """An account's options."""
        return [each for each in self.answers(number, marks) if isinstance(each, Option)]

    def reasons(self, number: int, marks: Marks) -> dict[str, Refusal]:
        """An account's refusals by their reason."""
        return {each.reason: each for each in self.answers(number, marks) if isinstance(each, Refusal)}

    def cash(self, number: int, marks: Marks) -> list[Option]:
        """An account's options for cash."""
        return [each for each in self.options(number, marks) if isinstance(each.detail, Cash)]

    def takeovers(self, number: int, marks: Marks) -> list[Option]:
        """An account's options that inherit a position, largest first."""
        return [each for each in self.options(number, marks) if isinstance(each.detail, Takeover)]

    def all_takeovers(self, number: int, marks: Marks) -> list[Option]:
        """The same with those that would not pay."""
        health, heir = self.health(number, marks), marks.exact.heir
        return [
            option
            for stake in health.detail.holding.stakes
            for option in takeovers(health, marks.exact, stake, heir)
        ]

    async def outcome(self, option: Option) -> Outcome | Refusal:
        """What the adapter foretells of an option."""
        head = await self.node.head()
        return await self.chain.read(self.adapter.outcome(option, option.max_repay_raw), head.hash)

    async def executed(self, option: Option, marks: Marks, who: Address) -> int | None:
        """What `who` gains when it makes the option's calls in the next block, at the marks' timestamp, on the node's
        own EVM; None where one of them reverts. Nothing changes on the chain.
        """
        token, balance, gas = option.seize_token.address, load("Erc20").function("balanceOf"), Gas(4_000_000)
        asked = SimCall(who, token, balance.encode(who), gas)
        calls = [
            SimCall(who, call.target, call.data, gas)
            for call in self.adapter.liquidation_calls(option, option.max_repay_raw)
        ]
        head = await self.chain.block(marks.at.hash)
        steps = [asked, *calls, asked]
        results = await self.chain.simulate(steps, head, marks.at.timestamp_s, head.base_fee_wei)
        if not all(result.status == 1 for result in results):
            return None
        before, after = (balance.one(results[place].output) for place in (0, -1))
        return int(after - before)

    async def move(self, **factors: float) -> None:
        """Report every market's price again, times a factor where one is given by the feed's symbol."""
        prices = {feed: (await latest(self.node, feed)).price_raw for feed in self.exchange.feeds}
        await set_prices(
            self.node,
            {feed: max(1, int(price * factors.get(feed.symbol, 1.0))) for feed, price in prices.items()},
        )

    async def send(self, who: Address, function: str, *arguments: object) -> Receipt:
        """Call the exchange as somebody. Raises ExecutionError with its reason."""
        return await self.contract.send(who, function, *arguments)

    async def govern(self, function: str, *arguments: object) -> Receipt:
        """Call the exchange as its owner."""
        return await self.send(self.world.cast.deployer.address, function, *arguments)

    async def set(self, market: int | None = None, **changed: int) -> None:
        """Change parameters of the exchange, or of a market."""
        if market is None:
            await set_parameters(self.node, self.world.cast, self.exchange, **changed)
        else:
            await set_market(self.node, self.world.cast, self.exchange, market, **changed)

    async def open(self, *specs: AccountSpec) -> list[int]:
        """Open accounts in order."""
        return await open_accounts(self.node, self.world.cast, self.exchange, specs)

    async def open_one(self, owner: Address, cash_usd: int, *trades: tuple[int, int]) -> int:
        """Open a cross account that trades; its number."""
        [number] = await self.open(AccountSpec(owner, False, cash_usd * USDC, trades))
        return number

    async def trade(self, owner: Address, number: int, market: int, size_delta: int) -> Receipt:
        """Trade at whatever price."""
        return await self.node.send(
            trade_tx(self.contract, owner, number, market, size_delta), self.contract.abi
        )

    async def supply(self, who: Address) -> None:
        """Give somebody dollars that the exchange may take."""
        await self.node.set_balances([who])
        await mint(self.node, self.world.cast, self.exchange.token, who, 50_000_000 * USDC)
        allowed = await approve_txs(self.node, self.exchange.token, who, self.exchange.address, MAX_UINT256)
        if allowed:
            await self.node.send_all(allowed)


@asynccontextmanager
async def following_exchange(
    lab: Lab, liquidator: Address | None = None, specs: Sequence[MarketSpec] = MARKETS
) -> AsyncIterator[ExchangeFollower]:
    """A follower of a reference exchange, which is deployed on `lab`."""
    exchange = await deploy_exchange(lab.node, lab.world, specs)
    async with _following(lab, exchange, liquidator) as follower:
        if liquidator is not None:
            await follower.supply(liquidator)
        yield follower


@asynccontextmanager
async def following_rig(lab: Lab, exchange: Exchange, rig: Rig) -> AsyncIterator[ExchangeFollower]:
    """A follower of the exchange of a lab from `rig_with_exchange`, for its Liquidator."""
    async with _following(lab, exchange, rig.liquidator) as follower:
        yield follower


@asynccontextmanager
async def _following(
    lab: Lab, exchange: Exchange, liquidator: Address | None
) -> AsyncIterator[ExchangeFollower]:
    config = ReferencePerpConfig(name="reference", exchange=exchange.address)
    async with await Chain.open([lab.anvil.url], lab.world.chain_id) as chain:
        (adapter,) = ReferencePerp.made_of(config, liquidator)
        yield ExchangeFollower(lab.node, lab.world, chain, exchange, adapter)


async def rig_with_exchange(lab: Lab, folder: Path) -> tuple[Exchange, Rig]:
    """A reference exchange on a lab, and a keeper set up for it beside everything else."""
    exchange = await deploy_exchange(lab.node, lab.world)
    return exchange, await make_rig(lab, folder, tables=table(exchange))


def units(size: float) -> int:
    """A size in units of 10⁻¹⁸."""
    return int(size * WAD)
