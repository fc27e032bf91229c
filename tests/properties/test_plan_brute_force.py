"""Plans against brute force on real pools: hundreds of amounts of every pair, by every route and every lender, each leg
priced by QuoterV2 itself. The plan nets at least nearly the best of them, and its own legs are priced so as well.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import pytest

from keeper import abi
from keeper.book import Book
from keeper.chain.client import Chain
from keeper.fixed import BPS, WAD, convert_up, mul_div_up
from keeper.flash import MorphoFlash, UniswapV3Flash
from keeper.lab.actors import account
from keeper.lab.chainlink import set_prices
from keeper.lab.morpho import BorrowSpec, Morpho, borrow, deploy_morpho
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.uniswap import drain_pool, move_pool
from keeper.lab.world import Lab
from keeper.planner import PlanContext, plan
from keeper.protocols.aave_v3 import AaveFlash, AaveV3, AaveV3Config
from keeper.protocols.morpho_blue import MorphoBlue, MorphoBlueConfig
from keeper.seams import Adapter, FlashSource, Reads, each
from keeper.types import (
    Address,
    BlockTime,
    FlashQuote,
    Health,
    Marks,
    Option,
    Outcome,
    Path,
    Plan,
    Refusal,
    Reverted,
    Wei,
)
from keeper.venues.uniswap_v3 import UniswapV3, UniswapV3Config, pack
from tests.conftest import Count

DEEP = os.environ.get("KEEPER_DEEP") == "1"
CASES = 500 if DEEP else 6
AMOUNTS = 200
SEED = int(os.environ.get("KEEPER_SEED", "6"))
BORROWER = account(78)
QUOTER = abi.load("QuoterV2")
_LEG_GAS: Final = 90_000
_WORST: Final = 1_000  # the plan may net so much less than the best: one part in
# What an account is worth, in dollars, and how much of every pool's liquidity is there.
MARKETS: Final = {"deep": (5_000, BPS), "medium": (150_000, 3_000), "thin": (400_000, 300)}


@dataclass(slots=True)
class Case:
    """An account to liquidate, and everything known of it at one block."""

    chain: Chain
    at: BlockTime
    health: Health
    options: Sequence[Option]
    ctx: PlanContext
    venue: UniswapV3
    quoter: Address

    async def read(self, reads: Reads[Any]) -> Any:
        """Read at the case's block."""
        return await self.chain.read(reads, self.at.hash)

    async def told(self, asked: Sequence[tuple[Path, int, bool]]) -> list[int]:
        """QuoterV2's word on swaps: what comes out, or goes in for an exact output; 0 where it reverts."""
        names = ["quoteExactOutput" if out else "quoteExactInput" for _, _, out in asked]
        calls = [
            QUOTER.function(name).call(self.quoter, pack(path, reverse=out), raw)
            for name, (path, raw, out) in zip(names, asked, strict=True)
        ]
        answers = await self.read(each(calls))
        return [
            0 if isinstance(answer, Reverted) else int(QUOTER.function(name).decode(answer)[0])
            for name, answer in zip(names, answers, strict=True)
        ]


@dataclass(slots=True)
class Try:
    """An amount by a lender, on its way through a recipe."""

    option: Option
    outcome: Outcome
    held: dict[Address, int]
    gas: int
    raw: int
    used: set[tuple[Address, int, Address]]
    lost: bool = False


def _recipes(seize: Address, repay: Address, profit: Address) -> list[list[tuple[bool, Address, Address]]]:
    if seize == repay:
        return [[]] if profit == repay else [[(False, repay, profit)]]
    if profit == repay:
        return [[(False, seize, repay)]]
    if profit == seize:
        return [[(True, seize, repay)]]
    return [
        [(False, seize, repay), (False, repay, profit)],
        [(True, seize, repay), (False, seize, profit)],
        [(False, seize, profit), (True, profit, repay)],
    ]


def _amounts(option: Option) -> list[int]:
    """Every breakpoint and some two hundred amounts, more of them small than large."""
    low, high = max(option.min_repay_raw, 1), option.partial_max_repay_raw
    amounts = {option.max_repay_raw}
    if low <= high:
        amounts |= {low, high, *(max(high * n * n // AMOUNTS**2, low) for n in range(1, AMOUNTS + 1))}
    return sorted(amounts)


async def brute(case: Case, *, largest: bool = False) -> int | None:
    """The best net profit of single routes; of the largest amounts alone, if asked so. None where nothing passes."""
    ctx, best = case.ctx, None
    profit = ctx.profit_token.address
    for option in case.options:
        repay, seize = option.repay_token.address, option.seize_token.address
        loans = [await case.read(source.flash(repay, case.at)) for source in ctx.flash_sources]
        amounts = [option.max_repay_raw] if largest else _amounts(option)
        outcomes = [await case.read(ctx.adapter.outcome(option, raw)) for raw in amounts]
        for loan in (loan for loan in loans if isinstance(loan, FlashQuote)):
            for recipe in _recipes(seize, repay, profit):
                tries = []
                for raw, outcome in zip(amounts, outcomes, strict=True):
                    calls = ctx.adapter.liquidation_calls(option, raw)
                    needed = max(outcome.repay_raw, sum(call.approve_raw for call in calls))
                    if needed > loan.available_raw:
                        continue
                    held = dict.fromkeys((repay, seize, profit), 0)
                    held[seize] += outcome.seize_raw
                    held[repay] -= outcome.repay_raw + mul_div_up(needed, loan.premium_bps, BPS)
                    gas = ctx.plan_gas + option.call_gas * (len(calls) - 1)
                    tries.append(Try(option, outcome, held, gas, raw, set()))
                for step in recipe:
                    await _swap(case, tries, step, loan)
                nets = [net for one in tries if (net := _net(case, one)) is not None]
                best = max([*nets, *([best] if best is not None else [])], default=None)
    return best


async def _swap(
    case: Case, tries: Sequence[Try], step: tuple[bool, Address, Address], loan: FlashQuote
) -> None:
    """One step of each, by the route that leaves most after its gas."""
    buy, token_in, token_out = step
    asked: list[tuple[Try, Path, int]] = []
    for one in tries:
        raw = -one.held[token_out] if buy else one.held[token_in]
        one.lost |= raw < 0 and not buy
        for path in case.venue.paths(token_in, token_out):
            hops = set(zip(path.tokens[:-1], path.fees, path.tokens[1:], strict=True))
            pools = {(frozenset((a, b)), fee) for a, fee, b in hops}
            locked = loan.locked and (frozenset(loan.locked.tokens), loan.locked.fee) in pools
            if raw > 0 and not one.lost and not locked and not hops & one.used:
                asked.append((one, path, raw))
    answers = await case.told([(path, raw, buy) for _, path, raw in asked])
    offers: dict[int, list[tuple[int, int, Path, int]]] = defaultdict(list)
    for (one, path, raw), other in zip(asked, answers, strict=True):
        if not other or (buy and other > one.held[token_in]):
            continue
        quote = await case.read(case.venue.quote(path, raw, exact_out=buy))
        if isinstance(quote, Refusal):
            continue  # further than the keeper looks
        gas = quote.gas + _LEG_GAS
        priced = token_in if buy else token_out
        gas_raw = _in_token(case, one.option, priced, gas)
        offers[id(one)].append(((-other if buy else other) - gas_raw, other, path, gas))
    for one in tries:
        raw = -one.held[token_out] if buy else one.held[token_in]
        if one.lost or raw <= 0:
            continue
        if not offers[id(one)]:
            one.lost = True
            continue
        _, other, path, gas = max(offers[id(one)], key=lambda offer: offer[0])
        one.held[token_in] -= other if buy else raw
        one.held[token_out] += raw if buy else other
        one.used |= set(zip(path.tokens[:-1], path.fees, path.tokens[1:], strict=True))
        one.gas += gas


def _prices(case: Case, option: Option) -> dict[Address, tuple[int, int]]:
    """Dollars with 8 decimals a token, and its decimals; the pair's by the protocol."""
    ctx, unit = case.ctx, 10**case.health.base_decimals
    return {
        ctx.profit_token.address: (ctx.profit_usd_e8 * unit, ctx.profit_token.decimals),
        option.repay_token.address: (option.repay_price_base * 10**8, option.repay_token.decimals),
        option.seize_token.address: (option.seize_price_base * 10**8, option.seize_token.decimals),
    }


def _in_token(case: Case, option: Option, token: Address, gas: int) -> int:
    price, decimals = _prices(case, option)[token]
    native = case.ctx.native_usd_e8 * 10**case.health.base_decimals
    return convert_up(gas * case.ctx.gas_price_wei, native, price, 18, decimals)


def _net(case: Case, one: Try) -> int | None:
    """What it nets, if the loan is returned, the end check passes, and the minimum is met."""
    ctx, option = case.ctx, one.option
    profit, seize, repay = ctx.profit_token.address, option.seize_token.address, option.repay_token.address
    if one.lost or min(one.held.values()) < 0:
        return None

    def usd(token: Address, raw: int) -> int:
        price, decimals = _prices(case, option)[token]
        return raw * price * int(10 ** (30 - decimals))

    came, went = one.outcome.seize_raw, one.outcome.repay_raw
    if seize == repay:
        came, went = came - went, 0
    required = usd(seize, came) * (BPS - ctx.max_slippage_bps) // BPS - usd(repay, went)
    net = one.held[profit] - ctx.gas_raw(one.gas)
    dollar = usd(profit, 1)
    passes = usd(profit, one.held[profit]) >= required + dollar and net >= ctx.min_profit_raw
    return net if passes else None


async def _confirmed(case: Case, answer: Plan) -> None:
    """The plan's quotes are QuoterV2's, and no pool is used twice in a direction."""
    told = await case.told(
        [
            (quote.path, quote.amount_out_raw if quote.exact_out else quote.amount_in_raw, quote.exact_out)
            for quote in answer.quotes
        ]
    )
    assert told == [
        quote.amount_in_raw if quote.exact_out else quote.amount_out_raw for quote in answer.quotes
    ]
    hops = [
        hop
        for quote in answer.quotes
        for hop in zip(quote.path.tokens, quote.path.fees, quote.path.tokens[1:], strict=False)
    ]
    assert len(set(hops)) == len(hops)


@dataclass(slots=True)
class Ground:
    """A lab with both protocols."""

    lab: Lab
    chain: Chain
    morpho: Morpho

    async def case(self, protocol: str, market: str, chance: random.Random) -> Case | None:
        """A random account that fell, in a market of this depth; None where it did not fall far enough."""
        world, node = self.lab.world, self.lab.node
        worth_usd, left_bps = MARKETS[market]
        worth_usd = int(worth_usd * 10 ** chance.uniform(-0.3, 0.3))
        if protocol == "aave":
            collateral, debt = chance.choice(
                (("WETH", "USDC"), ("WETH", "DAI"), ("WBTC", "USDC"), ("WBTC", "DAI"), ("USDC", "WETH"))
            )
            raw = worth_usd * 10**8 * 10 ** world.tokens[collateral].decimals // world.prices_e8[collateral]
            spec = PositionSpec(BORROWER, {collateral: raw}, {debt: 1}, health_factor_wad=WAD * 108 // 100)
            aave = world.aave["3.6"]
            await open_position(node, world.cast, aave, spec)
            adapter: Any = AaveV3(AaveV3Config(name="aave", pool_addresses_provider=aave.provider))
        else:
            number = chance.choice((0, 1, 3))
            shape = self.morpho.markets[number]
            collateral, debt = shape.collateral.symbol, shape.loan.symbol
            raw = worth_usd * 10**8 * 10**shape.collateral.decimals // world.prices_e8[collateral]
            await borrow(node, world, self.morpho, [BorrowSpec(BORROWER, number, raw, 9_700)])
            adapter = MorphoBlue(
                MorphoBlueConfig(
                    name="morpho",
                    morpho=self.morpho.address,
                    markets=tuple(each.id for each in self.morpho.markets),
                    usd_feeds=tuple(
                        (token.address, world.feeds[symbol].proxy) for symbol, token in world.tokens.items()
                    ),
                )
            )
        factor = chance.uniform(1.09, 1.12) if collateral == "USDC" else chance.uniform(0.88, 0.92)
        moved = debt if collateral == "USDC" else collateral
        prices = dict(world.prices_e8)
        prices[moved] = int(prices[moved] * factor)
        await node.set_balances([world.cast.deployer.address], 10**32)
        await set_prices(node, {world.feeds[symbol]: price for symbol, price in prices.items()})
        for pool in world.uniswap_v3.pools:
            sides = prices[pool.token0.symbol], prices[pool.token1.symbol]
            await move_pool(node, world.cast, world.uniswap_v3, pool, *sides)
            if left_bps < BPS:
                await drain_pool(node, world.cast, world.uniswap_v3, pool, BPS - left_bps)
        return await self._seen(adapter, collateral, debt, prices, chance)

    async def _seen(
        self, adapter: Adapter, collateral: str, debt: str, prices: dict[str, int], chance: random.Random
    ) -> Case | None:
        world, head = self.lab.world, await self.chain.head()
        await self.chain.read(adapter.load(), head.hash)
        at = BlockTime(head.number, head.hash, head.timestamp_s + 1)
        book = Book()
        for key in adapter.keys_of(BORROWER):
            positions = await self.chain.read(adapter.refresh([key]), head.hash)
            book.upsert(positions, adapter.rows(positions))
        marks = await self.chain.read(adapter.marks(at), head.hash)
        assert isinstance(marks, Marks), marks
        keys = [key for key in adapter.keys_of(BORROWER) if key in book]
        judged = {key: adapter.assess(book.position(key), marks) for key in keys}
        unsafe = {key: one for key, one in judged.items() if isinstance(one, Health) and one.liquidatable}
        if not unsafe:
            return None
        key, health = next(iter(unsafe.items()))
        options = [
            one for one in adapter.options(book.position(key), health, marks) if isinstance(one, Option)
        ]
        uniswap, tokens = world.uniswap_v3, world.tokens
        config = UniswapV3Config(factory=uniswap.factory, quoter=uniswap.quoter, router=uniswap.router)
        venue = UniswapV3(config, (tokens["WETH"].address, tokens["USDC"].address))
        profit = tokens[chance.choice((collateral, debt, "USDC", "WETH"))]
        aave = AaveV3(AaveV3Config(name="a", pool_addresses_provider=world.aave["3.6"].provider))
        await self.chain.read(aave.load(), head.hash)
        lends = uniswap.pool(tokens["WETH"], tokens["USDC"], 500).address
        sources: list[FlashSource] = [
            MorphoFlash(self.morpho.address),
            AaveFlash(aave),
            UniswapV3Flash(lends),
        ]
        ctx = PlanContext(
            at=at,
            adapter=adapter,
            venues=(venue,),
            flash_sources=sources[chance.randrange(3) :],
            profit_token=profit,
            profit_usd_e8=prices[profit.symbol],
            native_usd_e8=prices["WETH"],
            gas_price_wei=Wei(int(10 ** chance.uniform(7, 10))),
            max_fee_wei=Wei(200 * 10**9),
            min_profit_usd_e8=10**8,
            max_slippage_bps=chance.choice((100, 300, 1000)),
            max_repay_usd_e8=10**8 * 10**8,
        )
        return Case(self.chain, at, health, options, ctx, venue, uniswap.quoter)


@pytest.fixture
async def ground(lab: Lab) -> AsyncIterator[Ground]:
    """Both protocols on one lab."""
    morpho = await deploy_morpho(lab.node, lab.world)
    async with await Chain.open([lab.anvil.url], lab.world.chain_id) as chain:
        yield Ground(lab, chain, morpho)


@pytest.mark.deep
@pytest.mark.parametrize("protocol", ["aave", "morpho"])
async def test_a_plan_nets_what_brute_force_nets(ground: Ground, protocol: str, count: Count) -> None:
    """No amount, pair, route or lender nets a thousandth more than the plan; nor the largest amount by one route."""
    chance = random.Random(f"{protocol} {SEED}")
    gains: dict[str, list[float]] = defaultdict(list)
    planned = 0
    for number in range(CASES):
        market = list(MARKETS)[number % len(MARKETS)]
        snapshot = await ground.lab.node.snapshot()
        case = await ground.case(protocol, market, chance)
        assert case is not None
        answer = await case.read(plan(case.health, case.options, case.ctx))
        best, naive = await brute(case), await brute(case, largest=True)
        if isinstance(answer, Plan):
            net = answer.expected_profit_raw - answer.gas_cost_raw
            await _confirmed(case, answer)
            assert net >= case.ctx.min_profit_raw > 0
            assert best is None or best * (_WORST - 1) <= net * _WORST, (market, net, best, answer)
            assert naive is None or naive <= net
            planned += 1
            if naive:
                gains[market].append(net / naive - 1)
        else:
            assert best is None, (market, answer, best)
        await ground.lab.node.revert(snapshot)
        await ground.lab.node.steady_clock()
    count("plans against brute force", planned)
    for market, found in gains.items():
        count(f"basis points gained in {market} pools (median, {protocol})", int(median(found) * BPS))
    assert planned >= CASES // 2
