"""An adapter and a book that follow one Aave market of a local world, the way the daemon does."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from keeper.abi import load
from keeper.book import Book
from keeper.chain.client import Chain, SimCall, SimResult
from keeper.fixed import WAD
from keeper.lab.aave import AaveMarket, Version, pool_of
from keeper.lab.actors import account
from keeper.lab.chainlink import set_prices
from keeper.lab.node import Node
from keeper.lab.positions import PositionSpec, open_position, open_positions
from keeper.lab.tokens import balance_of, erc20, mint
from keeper.lab.world import Lab, World, open_lab
from keeper.protocols.aave_v3 import AaveV3, AaveV3Config
from keeper.protocols.aave_v3.market import POOL
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

STABLES: tuple[str, ...] = ("USDC", "DAI", "USDT")
ETHERS: tuple[str, ...] = ("WETH", "wstETH")
PLAIN: tuple[str, ...] = (*STABLES, *ETHERS, "WBTC")

BORROWER, OTHER = account(1), account(2)
ETHER = 10**18
# 10 WETH at $2,000 against USDC at health factor 1.05; at $1,800 it is 0.945.
POSITION = PositionSpec(BORROWER, {"WETH": 10 * ETHER}, {"USDC": 1}, 105 * 10**16)


@dataclass(slots=True)
class Follower:
    """One adapter with a book, kept up to date from logs alone."""

    lab: Lab
    chain: Chain
    market: AaveMarket
    adapter: AaveV3
    book: Book = field(default_factory=Book)
    followed: int = -1
    reloads: int = 0

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
        if touched.reload and self.followed >= 0:
            await self.chain.read(self.adapter.load(), head.hash)
            self.reloads += 1
        positions = await self.chain.read(
            self.adapter.refresh(sorted(keys, key=lambda key: key.account)), head.hash
        )
        self.book.upsert(positions, self.adapter.rows(positions))
        self.followed = head.number
        return head

    async def marks(self, head: BlockTime, ahead_s: int = 0) -> Marks:
        """Marks as of `ahead_s` after `head`."""
        at = BlockTime(BlockNumber(head.number), head.hash, head.timestamp_s + ahead_s)
        marks = await self.chain.read(self.adapter.marks(at), head.hash)
        assert isinstance(marks, Marks), marks
        return marks

    def key(self, owner: Address) -> PositionKey:
        """An account's key."""
        return PositionKey(self.adapter.name, self.adapter.market, owner)

    def health(self, owner: Address, marks: Marks) -> Health:
        """An account's health, which must not be refused."""
        health = self.adapter.assess(self.book.position(self.key(owner)), marks)
        assert isinstance(health, Health), health
        return health

    async def outcome(self, option: Option, repay_raw: int) -> Outcome:
        """What the adapter foretells of an amount, which must not be refused."""
        head = await self.node.head()
        outcome = await self.chain.read(self.adapter.outcome(option, repay_raw), head.hash)
        assert isinstance(outcome, Outcome), outcome
        return outcome

    def options(self, owner: Address, marks: Marks) -> Sequence[Option | Refusal]:
        """An account's options."""
        position = self.book.position(self.key(owner))
        return self.adapter.options(position, self.health(owner, marks), marks)

    async def executed(self, option: Option, repay_raw: int, marks: Marks) -> tuple[SimResult, int, int]:
        """What the option's calls do in the next block, at the marks' timestamp, on the node's own EVM: the last one's
        result, what the liquidator's balance of the repaid token falls by and what that of the seized token rises by.

        Nothing changes on the chain, and nothing has to be undone. The liquidator must have funds and approvals.
        """
        liquidator, gas = self.world.cast.liquidator.address, Gas(3_000_000)
        balance = load("Erc20").function("balanceOf")
        asked = [
            SimCall(liquidator, token.address, balance.encode(liquidator), gas)
            for token in (option.repay_token, option.seize_token)
        ]
        calls = self.adapter.liquidation_calls(option, repay_raw)
        head = await self.chain.block(marks.at.hash)
        steps = [*asked, *(SimCall(liquidator, call.target, call.data, gas) for call in calls), *asked]
        results = await self.chain.simulate(steps, head, marks.at.timestamp_s, head.base_fee_wei)
        before, after = ([balance.one(each.output) for each in two] for two in (results[:2], results[-2:]))
        return results[-3], before[0] - after[0], after[1] - before[1]

    async def set_prices(self, factors: dict[str, float]) -> None:
        """Report the world's first prices times these factors, all in one block."""
        feeds, first = self.world.feeds, self.world.prices_e8
        await set_prices(
            self.node, {feeds[symbol]: int(first[symbol] * factor) for symbol, factor in factors.items()}
        )


@asynccontextmanager
async def following(
    version: Version, lab: Lab | None = None, max_price_age_s: int | None = None
) -> AsyncIterator[Follower]:
    """A follower of an Aave market of `lab`, or of a fresh world with a second between blocks."""
    async with AsyncExitStack() as stack:
        if lab is None:
            lab = await stack.enter_async_context(await open_lab(clock="steady"))
        chain = await stack.enter_async_context(await Chain.open([lab.anvil.url], lab.world.chain_id))
        market = lab.world.aave[version]
        config = AaveV3Config(
            name="aave", pool_addresses_provider=market.provider, max_price_age_s=max_price_age_s
        )
        yield Follower(lab, chain, market, AaveV3(config))


def random_specs(chance: random.Random, world: World, first: int, count: int) -> list[PositionSpec]:
    """Positions of every kind: one to five collaterals, one to three debts, e-modes, isolation, cents and fortunes."""
    specs = []
    for number in range(first, first + count):
        kind = chance.choice(("plain", "plain", "plain", "stable", "ether", "isolated"))
        worth_usd = 10 ** chance.uniform(-1, 5.3) if chance.random() < 0.4 else 10 ** chance.uniform(3, 4.3)
        e_mode, lowest = 0, 1.075
        supply, borrow = PLAIN, STABLES if chance.random() < 0.6 else PLAIN
        if kind == "stable":
            e_mode, supply, borrow = 1, STABLES, STABLES
        elif kind == "ether":
            e_mode, supply, borrow = 2, ETHERS, ETHERS
        elif kind == "isolated":
            supply, borrow, lowest = ("ISO",), STABLES, 1.21
        held = chance.sample(supply, chance.randint(1, min(5, len(supply))))
        owed = chance.sample(borrow, chance.randint(1, min(3, len(borrow))))
        if e_mode and chance.random() < 0.5:
            held = list(dict.fromkeys([*held, chance.choice(PLAIN)]))
        specs.append(
            PositionSpec(
                account=account(number),
                supply={symbol: _raw(world, symbol, worth_usd * chance.uniform(0.2, 1)) for symbol in held},
                borrow={symbol: chance.randint(1, 10) for symbol in owed},
                health_factor_wad=int(chance.uniform(lowest, lowest + 0.08) * WAD),
                e_mode=e_mode,
            )
        )
    return specs


async def open_random(follower: Follower, chance: random.Random, first: int, count: int) -> list[Address]:
    """Open that many random positions, in chunks a block or so each; their accounts."""
    specs = random_specs(chance, follower.world, first, count)
    for start in range(0, len(specs), 50):
        await open_positions(follower.node, follower.world.cast, follower.market, specs[start : start + 50])
    return [spec.account for spec in specs]


def random_factors(chance: random.Random) -> dict[str, float]:
    """A bad day: stablecoins within 3 %, everything else between 40 % down and 5 % up."""
    factors = {symbol: chance.uniform(0.97, 1.03) for symbol in STABLES}
    factors |= {symbol: chance.uniform(0.6, 1.05) for symbol in (*ETHERS, "WBTC", "ISO")}
    return factors


def _raw(world: World, symbol: str, usd: float) -> int:
    return max(1, int(usd * 1e8 / world.prices_e8[symbol] * 10 ** world.tokens[symbol].decimals))


async def make_unsafe(follower: Follower, weth: float = 0.9) -> tuple[BlockTime, Marks]:
    """Open the position and let the price fall."""
    await open_position(follower.node, follower.world.cast, follower.market, POSITION)
    await follower.set_prices({"WETH": weth})
    head = await follower.follow()
    return head, await follower.marks(head, ahead_s=1)


def only_option(found: Sequence[Option | Refusal]) -> Option:
    """The one option there is, in one step."""
    (option,) = [each for each in found if isinstance(each, Refusal) or not each.detail.first.repay_raw]
    assert isinstance(option, Option), option
    return option


def reasons_of(found: Sequence[Option | Refusal]) -> list[str]:
    """Why pairs are refused, in order."""
    return [each.reason for each in found if isinstance(each, Refusal)]


async def liquidate_exactly(
    follower: Follower, option: Option, repay_raw: int, *, after_s: int = 1
) -> tuple[int, int]:
    """Give the liquidator exactly what the call asks for, approve exactly that, and call; (paid, received)."""
    node, cast = follower.node, follower.world.cast
    liquidator = cast.liquidator.address
    (call,) = follower.adapter.liquidation_calls(option, repay_raw)
    assert call.approve_token == option.repay_token.address
    await mint(node, cast, option.repay_token, liquidator, call.approve_raw)
    await erc20(node, option.repay_token).send(liquidator, "approve", call.target, call.approve_raw)
    before = await balance_of(node, option.repay_token, liquidator)
    received = await balance_of(node, option.seize_token, liquidator)
    head = await node.head()
    await node.rpc.request("evm_setNextBlockTimestamp", head.timestamp_s + after_s)
    pool = pool_of(node, follower.market)
    asset, debt, owner, amount, receive = POOL.function("liquidationCall").decode_input(call.data)
    assert receive is False
    await pool.send(liquidator, "liquidationCall", asset, debt, owner, amount, receive)
    return (
        before - await balance_of(node, option.repay_token, liquidator),
        await balance_of(node, option.seize_token, liquidator) - received,
    )
