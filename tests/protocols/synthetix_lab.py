"""An adapter and a book that follow one Synthetix perps market of a local world, the way the daemon does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from keeper.abi import load
from keeper.book import Book
from keeper.chain.client import Chain, SimCall
from keeper.lab.actors import account
from keeper.lab.chainlink import latest, set_prices
from keeper.lab.node import Contract, Node, Receipt
from keeper.lab.rig import Rig, make_rig
from keeper.lab.synthetix import (
    PerpsMarket,
    PerpSpec,
    Synthetix,
    contract_of,
    deploy_synthetix,
    market_of,
    open_perps,
    set_parameter,
    table,
)
from keeper.lab.world import Lab, World
from keeper.protocols.synthetix_v2_perps import SynthetixV2Perps, SynthetixV2PerpsConfig
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

_E8 = 10**8
TRADER, OTHER = account(1), account(2)


@dataclass(slots=True)
class PerpsFollower:
    """One adapter with a book, kept up to date from logs alone."""

    node: Node
    world: World
    chain: Chain
    synthetix: Synthetix
    market: PerpsMarket
    adapter: SynthetixV2Perps
    book: Book = field(default_factory=Book)
    followed: int = -1
    reloads: int = 0

    @property
    def contract(self) -> Contract:
        """The market's proxy with every routed function."""
        return market_of(self.node, self.market)

    async def follow(self) -> BlockTime:
        """Read what logs since the last call touched; the head that the book is now true at."""
        head = await self.node.head()
        if self.followed < 0:
            await self.chain.read(self.adapter.load(), head.hash)
        logs = await self.chain.logs([self.adapter.sources()], self.followed + 1, head.number)
        touched = self.adapter.discover(logs)
        if touched.reload and self.followed >= 0:
            await self.chain.read(self.adapter.load(), head.hash)
            self.reloads += 1
        keys = sorted(touched.keys, key=lambda key: key.account)
        positions = await self.chain.read(self.adapter.refresh(keys), head.hash)
        self.book.upsert(positions, self.adapter.rows(positions))
        self.followed = head.number
        return head

    async def read_marks(self, head: BlockTime, ahead_s: int = 0) -> Marks | Refusal:
        """Marks as of `ahead_s` after `head`, or why there are none."""
        at = BlockTime(BlockNumber(head.number), head.hash, head.timestamp_s + ahead_s)
        return await self.chain.read(self.adapter.marks(at), head.hash)

    async def marks(self, head: BlockTime, ahead_s: int = 0) -> Marks:
        """Marks as of `ahead_s` after `head`, which must not be refused."""
        marks = await self.read_marks(head, ahead_s)
        assert isinstance(marks, Marks), marks
        return marks

    def key(self, owner: Address) -> PositionKey:
        """An account's key."""
        return PositionKey(self.adapter.name, self.adapter.market, owner)

    def health(self, owner: Address, marks: Marks) -> Health:
        """An account's health."""
        health = self.adapter.assess(self.book.position(self.key(owner)), marks)
        assert isinstance(health, Health), health
        return health

    def options(self, owner: Address, marks: Marks) -> Sequence[Option | Refusal]:
        """An account's options."""
        position = self.book.position(self.key(owner))
        return self.adapter.options(position, self.health(owner, marks), marks)

    def option(self, owner: Address, marks: Marks) -> Option:
        """The one option an account has."""
        (option,) = self.options(owner, marks)
        assert isinstance(option, Option), option
        return option

    def refusal(self, owner: Address, marks: Marks) -> Refusal:
        """The one reason an account has no option."""
        (refusal,) = self.options(owner, marks)
        assert isinstance(refusal, Refusal), refusal
        return refusal

    async def outcome(self, option: Option) -> Outcome:
        """What the adapter foretells of an option, which must not be refused."""
        head = await self.node.head()
        outcome = await self.chain.read(self.adapter.outcome(option, 0), head.hash)
        assert isinstance(outcome, Outcome), outcome
        return outcome

    async def executed(self, option: Option, marks: Marks, who: Address) -> int | None:
        """What `who` is paid when it makes the option's calls in the next block, at the marks' timestamp, on the
        node's own EVM; None where one of them reverts. Nothing changes on the chain.
        """
        susd, balance, gas = option.seize_token.address, load("Erc20").function("balanceOf"), Gas(3_000_000)
        asked = SimCall(who, susd, balance.encode(who), gas)
        calls = [
            SimCall(who, call.target, call.data, gas) for call in self.adapter.liquidation_calls(option, 0)
        ]
        head = await self.chain.block(marks.at.hash)
        steps = [asked, *calls, asked]
        results = await self.chain.simulate(steps, head, marks.at.timestamp_s, head.base_fee_wei)
        if not all(result.status == 1 for result in results):
            return None
        before, after = (balance.one(results[place].output) for place in (0, -1))
        return int(after - before)

    async def move(self, factor: float) -> None:
        """Report the market's rate times a factor, and sUSD's as it was."""
        feeds = {self.market.feed: factor, self.synthetix.susd_feed: 1.0}
        prices = {feed: (await latest(self.node, feed)).price_raw for feed in feeds}
        await set_prices(self.node, {feed: max(1, int(prices[feed] * feeds[feed])) for feed in feeds})

    async def send(self, who: Address, function: str, *arguments: object) -> Receipt:
        """Call the market as somebody. Raises ExecutionError with its reason."""
        return await self.contract.send(who, function, *arguments)

    async def govern(self, name: str, function: str, *arguments: object) -> Receipt:
        """Call a contract of the system as its owner."""
        contract = contract_of(self.node, self.synthetix, name)
        return await contract.send(self.world.cast.deployer.address, function, *arguments)

    async def set_parameter(self, name: str, value: int) -> None:
        """Change one of the market's parameters."""
        await set_parameter(self.node, self.world.cast, self.synthetix, self.market, name, value)

    async def open(self, *specs: PerpSpec) -> None:
        """Open positions in order."""
        await open_perps(self.node, self.world.cast, self.synthetix, self.market, specs)


@asynccontextmanager
async def following_perps(
    lab: Lab, asset: str = "ETH", liquidator: Address | None = None
) -> AsyncIterator[PerpsFollower]:
    """A follower of one market of Synthetix, which is deployed on `lab`."""
    synthetix, world = await deploy_synthetix(lab.node, lab.world)
    async with _following(replace(lab, world=world), synthetix, asset, liquidator) as follower:
        yield follower


@asynccontextmanager
async def following_rig(lab: Lab, synthetix: Synthetix, rig: Rig) -> AsyncIterator[PerpsFollower]:
    """A follower of the ETH market of a lab from `rig_with_markets`, for its Liquidator."""
    async with _following(lab, synthetix, "ETH", rig.liquidator) as follower:
        yield follower


@asynccontextmanager
async def _following(
    lab: Lab, synthetix: Synthetix, asset: str, liquidator: Address | None
) -> AsyncIterator[PerpsFollower]:
    market = synthetix.markets[asset]
    config = SynthetixV2PerpsConfig(
        name=f"snx-{asset.lower()}", markets=(market.proxy,), susd_usd_feed=synthetix.susd_feed.proxy
    )
    async with await Chain.open([lab.anvil.url], lab.world.chain_id) as chain:
        (adapter,) = SynthetixV2Perps.made_of(config, liquidator)
        yield PerpsFollower(lab.node, lab.world, chain, synthetix, market, adapter)


def named(synthetix: Synthetix, asset: str) -> str:
    """What the keeper of a rig with several markets calls one of them."""
    return f"synthetix-{synthetix.markets[asset].proxy[:4].hex()}"


async def rig_with_markets(lab: Lab, folder: Path) -> tuple[Lab, Synthetix, Rig]:
    """Synthetix on a lab, and a keeper set up for it beside everything else; the lab as it is then."""
    synthetix, world = await deploy_synthetix(lab.node, lab.world)
    lab = replace(lab, world=world)
    return lab, synthetix, await make_rig(lab, folder, tables=table(synthetix))
