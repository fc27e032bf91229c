"""An adapter and a book that follow one Morpho Blue of a local world, the way the daemon does."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from keeper.abi import load
from keeper.chain.client import Chain, SimCall, SimResult
from keeper.fixed import MAX_UINT256
from keeper.lab.actors import account
from keeper.lab.chainlink import set_prices
from keeper.lab.morpho import BorrowSpec, Morpho, MorphoMarket, borrow, morpho_of, open_morpho_lab, set_oracle
from keeper.lab.node import Contract, Node
from keeper.lab.tokens import erc20, mint_txs
from keeper.lab.world import Lab, World
from keeper.protocols.morpho_blue import MorphoBlue, MorphoBlueConfig
from keeper.protocols.morpho_blue.rules import Totals
from keeper.seams import Reads
from keeper.types import (
    Address,
    BlockTime,
    Gas,
    Hash,
    Head,
    Health,
    Marks,
    Option,
    Outcome,
    Position,
    PositionKey,
    Refusal,
    hex_of,
)
from keeper.watch import Source, Watch

BORROWER, OTHER = account(1), account(2)
WETH_USDC, WBTC_USDC, WSTETH_WETH, WETH_DAI, USDC_WETH, WBTC_WETH = range(6)
ETHER = 10**18
# 10 WETH at $2,000 in a market of 86 %, $16,340 of at most $17,200 owed; at $1,900 that is exactly the most, and the
# debt's interest has grown meanwhile.
POSITION = BorrowSpec(BORROWER, WETH_USDC, 10 * ETHER, 9_500)


_MARKET, _POSITION = (load("MorphoBlue").function(name) for name in ("market", "position"))


@dataclass(frozen=True, slots=True)
class Executed:
    """A liquidation's result, what was paid and received for it, and what market and account look like afterwards."""

    result: SimResult
    paid_raw: int
    received_raw: int
    totals: Totals
    shares: int
    collateral_raw: int


@dataclass(slots=True)
class Follower:
    """One adapter with a watch, kept up to date from logs alone."""

    lab: Lab
    chain: Chain
    morpho: Morpho
    adapter: MorphoBlue
    watch: Watch = field(init=False)
    started: bool = False

    def __post_init__(self) -> None:
        self.watch = Watch(self.chain, [Source(self.adapter, 0)], None)

    @property
    def node(self) -> Node:
        """The local node."""
        return self.lab.node

    @property
    def world(self) -> World:
        """Everything deployed."""
        return self.lab.world

    @property
    def blue(self) -> Contract:
        """Morpho, to be called by hand."""
        return morpho_of(self.node, self.morpho)

    async def follow(self) -> BlockTime:
        """Read what logs since the last call touched; the head that the book is now true at."""
        head = await self.chain.head()
        if self.started:
            await self.watch.absorb(await self.watch.fetch(head), head)
        else:
            await self.watch.start(head)
            self.started = True
        return BlockTime(head.number, head.hash, head.timestamp_s)

    async def marks(self, head: BlockTime, ahead_s: int = 0) -> Marks:
        """Marks as of `ahead_s` after `head`."""
        at = BlockTime(head.number, head.hash, head.timestamp_s + ahead_s)
        marks = await self.chain.read(self.adapter.marks(at), head.hash)
        assert isinstance(marks, Marks), marks
        return marks

    def key(self, owner: Address, market: int) -> PositionKey:
        """An account's key in a market."""
        return PositionKey(self.adapter.name, hex_of(self.morpho.markets[market].id), owner)

    def position(self, owner: Address, market: int) -> Position:
        """An account's position in a market."""
        return self.watch.book.position(self.key(owner, market))

    def judged(self, owner: Address, market: int, marks: Marks) -> Health | Refusal:
        """What the adapter says of an account."""
        return self.adapter.assess(self.position(owner, market), marks)

    def health(self, owner: Address, market: int, marks: Marks) -> Health:
        """An account's health, which must not be refused."""
        health = self.judged(owner, market, marks)
        assert isinstance(health, Health), health
        return health

    def options(self, owner: Address, market: int, marks: Marks) -> Sequence[Option | Refusal]:
        """An account's options."""
        health = self.health(owner, market, marks)
        return self.adapter.options(self.position(owner, market), health, marks)

    def option(self, owner: Address, market: int, marks: Marks) -> Option:
        """An account's one option."""
        [option] = self.options(owner, market, marks)
        assert isinstance(option, Option), option
        return option

    def outcome(self, option: Option, repay_raw: int) -> Outcome:
        """What the adapter foretells of an amount, which must not be refused."""
        outcome = _told(self.adapter.outcome(option, repay_raw))
        assert isinstance(outcome, Outcome), outcome
        return outcome

    async def executed(self, option: Option, repay_raw: int, marks: Marks) -> Executed:
        """What the option's call does in the next block, at the marks' timestamp, on the node's own EVM.

        Nothing changes on the chain, and nothing has to be undone. The liquidator must have funds and approvals.
        """
        liquidator, gas = self.world.cast.liquidator.address, Gas(3_000_000)
        balance = load("Erc20").function("balanceOf")
        asked = [
            SimCall(liquidator, token.address, balance.encode(liquidator), gas)
            for token in (option.repay_token, option.seize_token)
        ]
        (call,) = self.adapter.liquidation_calls(option, repay_raw)
        market_id = bytes.fromhex(option.key.market[2:])
        asked_after = [
            SimCall(liquidator, call.target, data, gas)
            for data in (_MARKET.encode(market_id), _POSITION.encode(market_id, option.key.account))
        ]
        head = await self.chain.block(marks.at.hash)
        steps = [*asked, SimCall(liquidator, call.target, call.data, gas), *asked, *asked_after]
        results = await self.chain.simulate(steps, head, marks.at.timestamp_s, head.base_fee_wei)
        before, after = ([balance.one(each.output) for each in two] for two in (results[:2], results[3:5]))
        _, shares, collateral_raw = _POSITION.decode(results[6].output)
        return Executed(
            results[2],
            before[0] - after[0],
            after[1] - before[1],
            Totals(*_MARKET.decode(results[5].output)),
            shares,
            collateral_raw,
        )

    async def accrued(self, market: MorphoMarket, head: Head, timestamp_s: int) -> Totals:
        """A market's totals after accrueInterest in the next block at that time, on the node's own EVM."""
        sender, gas = self.world.cast.liquidator.address, Gas(1_000_000)
        accrue = self.blue.abi.function("accrueInterest").encode(market.params)
        steps = [
            SimCall(sender, self.morpho.address, data, gas) for data in (accrue, _MARKET.encode(market.id))
        ]
        done, told = await self.chain.simulate(steps, head, timestamp_s, head.base_fee_wei)
        assert done.status == 1, done
        return Totals(*_MARKET.decode(told.output))

    async def fund(self) -> None:
        """Give the liquidator a fortune in every loan token, and Morpho its approval."""
        liquidator, txs = self.world.cast.liquidator.address, []
        for token in {market.loan.address: market.loan for market in self.morpho.markets}.values():
            txs += mint_txs(self.world.cast, token, liquidator, 10**7 * 10**token.decimals)
            txs.append(
                erc20(self.node, token).tx(
                    liquidator, "approve", self.morpho.address, MAX_UINT256, gas=100_000
                )
            )
        await self.node.send_all(txs)

    async def set_prices(self, factors: Mapping[str, float]) -> None:
        """Report the world's first prices times these factors, all in one block."""
        feeds, first = self.world.feeds, self.world.prices_e8
        await set_prices(
            self.node, {feeds[symbol]: int(first[symbol] * factor) for symbol, factor in factors.items()}
        )

    async def set_mock_price(self, market: MorphoMarket, price: int) -> None:
        """Set a mock oracle."""
        await set_oracle(self.node, self.world, market, price)

    async def open(self, *specs: BorrowSpec) -> None:
        """Open positions."""
        await borrow(self.node, self.world, self.morpho, specs)


def _told(read: Reads[Outcome | Refusal]) -> Outcome | Refusal:
    """What a read that asks nothing says."""
    try:
        next(read)
    except StopIteration as end:
        answer: Outcome | Refusal = end.value
        return answer
    raise AssertionError("the read asks the chain")


@asynccontextmanager
async def following(
    lab: Lab, morpho: Morpho, listed: Sequence[Hash] = (), max_price_age_s: int | None = None
) -> AsyncIterator[Follower]:
    """A follower of a Morpho of `lab` whose tokens all have their feeds configured."""
    world = lab.world
    async with await Chain.open([lab.anvil.url], world.chain_id) as chain:
        config = MorphoBlueConfig(
            name="morpho",
            morpho=morpho.address,
            markets=tuple(listed),
            usd_feeds=tuple(
                (token.address, world.feeds[symbol].proxy) for symbol, token in world.tokens.items()
            ),
            max_price_age_s=max_price_age_s,
        )
        yield Follower(lab, chain, morpho, MorphoBlue(config))


@asynccontextmanager
async def following_fresh(listed: bool = False) -> AsyncIterator[Follower]:
    """A follower on a world of its own, with a second between blocks."""
    async with AsyncExitStack() as stack:
        lab, morpho = await open_morpho_lab(clock="steady")
        await stack.enter_async_context(lab)
        ids = [market.id for market in morpho.markets] if listed else []
        yield await stack.enter_async_context(following(lab, morpho, ids))


def random_specs(chance: random.Random, follower: Follower, first: int, count: int) -> list[BorrowSpec]:
    """Positions of every market and of every size from dust to fortunes, near and far from the edge."""
    world, specs = follower.world, []
    for number in range(first, first + count):
        place = chance.randrange(len(follower.morpho.markets))
        token = follower.morpho.markets[place].collateral
        worth_usd = 10 ** chance.uniform(-2, 1) if chance.random() < 0.2 else 10 ** chance.uniform(2, 4.3)
        amount_raw = int(worth_usd * 10**8 * 10**token.decimals / world.prices_e8[token.symbol]) or 1
        specs.append(BorrowSpec(account(number), place, amount_raw, chance.randint(6_000, 9_990)))
    return specs
