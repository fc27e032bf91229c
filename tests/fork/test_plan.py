from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from keeper import abi
from keeper.book import Book
from keeper.chain.client import Chain
from keeper.errors import ExecutionError
from keeper.fixed import BPS, MAX_UINT256, WAD, mul_div_up
from keeper.flash import UniswapV3Flash
from keeper.lab.actors import account
from keeper.lab.chainlink import set_price
from keeper.lab.node import Receipt, Tx
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.safe import execute as execute_by_safe
from keeper.lab.tokens import balance_of
from keeper.lab.uniswap import Pool, move_pool, v2_router
from keeper.lab.world import Lab
from keeper.multisig.safe import InnerCall
from keeper.planner import PlanContext, encode_execute, plan
from keeper.protocols.aave_v3 import AaveFlash, AaveV3, AaveV3Config
from keeper.seams import FlashSource, VenueKind
from keeper.types import BlockTime, Health, Marks, Plan, PositionKey, Refusal, SwapLeg, Wei
from keeper.venues.uniswap_v3 import UniswapV3, UniswapV3Config

SLIPPAGE_BPS = 300
_ROUNDED_RAW = 2  # what the pool's rounding may leave more after a first step
LENDING_POOLS = (("DAI", 100), ("WETH", 500))  # with USDC
BORROWER = account(77)
LIQUIDATOR = abi.load("Liquidator")


@dataclass(frozen=True, slots=True)
class Scene:
    """A lab with an installed Liquidator and one reader."""

    lab: Lab
    rig: Rig
    chain: Chain

    async def open(self, version: str, collateral: str, debt: str, usd: int) -> None:
        """A borrower just above the threshold; then the collateral, or the debt if it is the volatile one, moves."""
        world, token = self.lab.world, self.lab.world.tokens[collateral]
        supply = {collateral: usd * 10**8 * 10**token.decimals // world.prices_e8[collateral]}
        spec = PositionSpec(BORROWER, supply, {debt: 1}, health_factor_wad=WAD * 108 // 100)
        await open_position(self.lab.node, world.cast, world.aave[version], spec)
        moved, bps = (debt, 11_200) if collateral in ("USDC", "USDT", "DAI") else (collateral, 9_000)
        prices = world.prices_e8 | {moved: world.prices_e8[moved] * bps // BPS}
        # moving a pool of the wrapped coin wraps as much as the move could take
        await self.lab.node.set_balances([world.cast.deployer.address], 10**32)
        await set_price(self.lab.node, world.feeds[moved], prices[moved])
        for pool in world.uniswap_v3.pools:
            sides = prices[pool.token0.symbol], prices[pool.token1.symbol]
            await move_pool(self.lab.node, world.cast, world.uniswap_v3, pool, *sides)

    async def plan(
        self, version: str, profit: str, lenders: Sequence[FlashSource] | None = None
    ) -> Plan | Refusal:
        """What the planner says of the borrower at the head, for inclusion in the next block.

        Lent by the market itself where no `lenders` are given.
        """
        world, head = self.lab.world, await self.chain.head()
        name = f"aave-{version.replace('.', '-')}"
        adapter = AaveV3(AaveV3Config(name=name, pool_addresses_provider=world.aave[version].provider))
        await self.chain.read(adapter.load(), head.hash)
        at = BlockTime(head.number, head.hash, head.timestamp_s + 1)
        marks = await self.chain.read(adapter.marks(at), head.hash)
        assert isinstance(marks, Marks)
        key = PositionKey(name, adapter.market, BORROWER)
        positions = await self.chain.read(adapter.refresh([key]), head.hash)
        book = Book()
        book.upsert(positions, adapter.rows(positions))
        position = book.position(key)
        health = adapter.assess(position, marks)
        assert isinstance(health, Health) and health.liquidatable
        uniswap, tokens = world.uniswap_v3, world.tokens
        config = UniswapV3Config(factory=uniswap.factory, quoter=uniswap.quoter, router=uniswap.router)
        ctx = PlanContext(
            at=at,
            adapter=adapter,
            venues=(UniswapV3(config, (tokens["WETH"].address, tokens["USDC"].address)),),
            flash_sources=(AaveFlash(adapter),) if lenders is None else lenders,
            profit_token=tokens[profit],
            profit_usd_e8=world.prices_e8[profit],
            native_usd_e8=world.prices_e8["WETH"],
            gas_price_wei=Wei(2 * 10**9),
            max_fee_wei=Wei(200 * 10**9),
            min_profit_usd_e8=10**8,
            max_slippage_bps=SLIPPAGE_BPS,
            max_repay_usd_e8=10**7 * 10**8,
        )
        return await self.chain.read(plan(health, adapter.options(position, health, marks), ctx), head.hash)

    async def execute(self, answer: Plan) -> tuple[int, Receipt]:
        """Send the plan as the operator; what the treasury gained, and the receipt."""
        world = self.lab.world
        treasury, token = world.cast.treasury.address, answer.profit_token
        before = await balance_of(self.lab.node, token, treasury)
        calldata = encode_execute(answer, 0, 0, answer.at.number + 3)
        tx = Tx(world.cast.operator.address, self.rig.liquidator, calldata)
        receipt = await self.lab.node.send(tx, LIQUIDATOR)
        return await balance_of(self.lab.node, token, treasury) - before, receipt

    def pool(self, one: str, other: str, fee: int) -> Pool:
        """A pool of the lab's Uniswap V3."""
        tokens = self.lab.world.tokens
        return self.lab.world.uniswap_v3.pool(tokens[one], tokens[other], fee)


@pytest.fixture
async def scene(lab: Lab, tmp_path: Path) -> AsyncIterator[Scene]:
    """The lab with a keeper's contracts set up by the Safe; some pools may lend."""
    tokens, uniswap = lab.world.tokens, lab.world.uniswap_v3
    pools = [uniswap.pool(tokens[one], tokens["USDC"], fee).address for one, fee in LENDING_POOLS]
    listed = ", ".join(f'"{abi.checksum(pool)}"' for pool in pools)
    tables = f"\n[flash]\nuniswap_v3_pools = [{listed}]\n"
    rig = await make_rig(lab, tmp_path, Terms(max_slippage_bps=SLIPPAGE_BPS), tables=tables)
    chain = await Chain.open([lab.anvil.url], lab.world.chain_id)
    yield Scene(lab, rig, chain)
    await chain.close()


@pytest.mark.parametrize(
    ("version", "collateral", "debt", "profit"),
    [
        pytest.param("3.0", "WETH", "USDC", "USDC", id="3.0-kept-in-the-debt"),
        pytest.param("3.6", "WETH", "DAI", "DAI", id="3.6-two-hops"),
        pytest.param("3.0", "USDC", "WETH", "USDC", id="3.0-kept-in-the-collateral"),
        pytest.param("3.6", "WETH", "USDC", "DAI", id="3.6-three-tokens"),
        pytest.param("3.6", "WBTC", "USDT", "USDC", id="3.6-three-tokens-no-return"),
        pytest.param("3.6", "USDC", "WETH", "DAI", id="3.6-short"),
    ],
)
async def test_a_plan_earns_what_it_says(
    scene: Scene, version: str, collateral: str, debt: str, profit: str
) -> None:
    """On the real contracts the treasury gains exactly the expected profit, for about the gas estimated.

    What a first step leaves is known to a few units of the pool's own rounding: then it gains hardly more.
    """
    await scene.open(version, collateral, debt, 50_000)
    answer = await scene.plan(version, profit)
    assert isinstance(answer, Plan), answer
    gained, receipt = await scene.execute(answer)
    assert 0 <= gained - answer.expected_profit_raw <= _ROUNDED_RAW * (len(answer.calls) - 1)
    assert answer.gas_estimate * 6 // 10 < receipt.gas_used <= answer.gas_estimate * 14 // 10


async def test_the_contract_enforces_the_floor(scene: Scene) -> None:
    """A unit more than the plan earns is refused on chain; exactly what it earns is not."""
    await scene.open("3.6", "WETH", "USDC", 50_000)
    answer = await scene.plan("3.6", "USDC")
    assert isinstance(answer, Plan)
    snapshot = await scene.lab.node.snapshot()
    with pytest.raises(ExecutionError, match="ProfitBelowMinimum"):
        await scene.execute(replace(answer, min_profit_raw=answer.expected_profit_raw + 1))
    await scene.lab.node.revert(snapshot)
    await scene.lab.node.steady_clock()
    gained, _ = await scene.execute(replace(answer, min_profit_raw=answer.expected_profit_raw))
    assert gained == answer.expected_profit_raw


async def test_amounts_keep_within_the_end_check(scene: Scene) -> None:
    """A liquidation too large for its pools is cut until the Liquidator's slippage check lets it pass."""
    await scene.open("3.6", "WETH", "DAI", 20_000_000)
    answer = await scene.plan("3.6", "DAI")
    assert isinstance(answer, Plan), answer
    assert answer.outcome.repay_raw < answer.option.max_repay_raw
    gained, _ = await scene.execute(answer)
    assert gained == answer.expected_profit_raw


async def test_parts_of_a_step_earn_what_they_say(scene: Scene) -> None:
    """Where one pool is too small several take a part each and the last the rest,
    and the treasury gains exactly the expected profit.
    """
    await scene.open("3.6", "WETH", "USDC", 3_000_000)
    answer = await scene.plan("3.6", "USDC")
    assert isinstance(answer, Plan), answer
    assert [leg.amount_raw == MAX_UINT256 for leg in answer.legs] == [False] * (len(answer.legs) - 1) + [True]
    assert len(answer.legs) > 1
    gained, _ = await scene.execute(answer)
    assert gained == answer.expected_profit_raw


async def test_a_pool_lends_for_its_fee(scene: Scene) -> None:
    """Where a Uniswap pool is the cheapest lender it lends, and the profit is what was said, to the unit."""
    pool = scene.pool("DAI", "USDC", 100)
    await scene.open("3.6", "WETH", "USDC", 50_000)
    answer = await scene.plan("3.6", "USDC", [UniswapV3Flash(pool.address)])
    assert isinstance(answer, Plan), answer
    assert (answer.flash.source, answer.flash.premium_bps) == (pool.address, 1)
    usdc = scene.lab.world.tokens["USDC"]
    held_raw = await balance_of(scene.lab.node, usdc, pool.address)
    gained, _ = await scene.execute(answer)
    assert gained == answer.expected_profit_raw
    borrowed_raw = sum(call.approve_raw for call in answer.calls)
    fee_raw = await balance_of(scene.lab.node, usdc, pool.address) - held_raw
    assert fee_raw == mul_div_up(borrowed_raw, 1, BPS)


async def test_the_pool_that_lends_is_not_swapped_through(scene: Scene) -> None:
    """The deepest pool of the pair is passed over while it lends: it is locked, and the plan through it reverts."""
    pool = scene.pool("WETH", "USDC", 500)
    await scene.open("3.6", "WETH", "USDC", 50_000)
    free = await scene.plan("3.6", "USDC")
    assert isinstance(free, Plan) and [quote.path.fees for quote in free.quotes] == [(500,)]
    answer = await scene.plan("3.6", "USDC", [UniswapV3Flash(pool.address)])
    assert isinstance(answer, Plan) and answer.flash.source == pool.address
    assert [quote.path.fees for quote in answer.quotes] == [(3000,)]
    with pytest.raises(ExecutionError, match="LOK"):
        await scene.execute(replace(answer, legs=free.legs))
    gained, _ = await scene.execute(answer)
    assert gained == answer.expected_profit_raw


@pytest.mark.parametrize("exact_out", [False, True])
async def test_a_leg_through_version_2(scene: Scene, exact_out: bool) -> None:
    """Router02 swaps a leg whose path is plain addresses, from what is sold to what is bought, for what it said."""
    lab, world = scene.lab, scene.lab.world
    router = v2_router(lab.node, world.uniswap_v2)
    listing = LIQUIDATOR.function("setVenue").encode(router.address, int(VenueKind.UNISWAP_V2))
    await execute_by_safe(lab.node, world.safe, InnerCall(scene.rig.liquidator, listing))
    await scene.open("3.6", "WETH", "USDC", 50_000)
    answer = await scene.plan("3.6", "WETH" if exact_out else "USDC")
    assert isinstance(answer, Plan)
    path = [world.tokens["WETH"].address, world.tokens["USDC"].address]
    borrowed_raw = sum(call.approve_raw for call in answer.calls)
    owed_raw = answer.outcome.repay_raw + mul_div_up(borrowed_raw, answer.flash.premium_bps, BPS)
    if exact_out:
        spent_raw = (await router.read("getAmountsIn", owed_raw, path))[0]
        limit_raw, profit_raw = answer.outcome.seize_raw, answer.outcome.seize_raw - spent_raw
    else:
        limit_raw = (await router.read("getAmountsOut", answer.outcome.seize_raw, path))[-1]
        profit_raw = limit_raw - owed_raw
    leg = SwapLeg(router.address, b"".join(path), exact_out, MAX_UINT256, limit_raw)
    gained, _ = await scene.execute(replace(answer, legs=(leg,), min_profit_raw=profit_raw))
    assert gained == profit_raw


async def test_one_that_fails_does_not_sink_the_rest(scene: Scene) -> None:
    """Of two accounts in one transaction the healthy one is skipped with Aave's own reason; the loan is repaid."""
    await scene.open("3.6", "WETH", "USDC", 50_000)
    answer = await scene.plan("3.6", "USDC")
    assert isinstance(answer, Plan)
    extra_raw = 1_000 * 10**6
    healthy = answer.calls[0].data.replace(BORROWER, scene.lab.world.cast.treasury.address)
    skipped = replace(answer.calls[0], data=healthy, approve_raw=extra_raw, gas_limit=500_000)
    rest = [replace(call, gas_limit=1_500_000) for call in answer.calls]
    gained, receipt = await scene.execute(replace(answer, calls=(skipped, *rest), min_profit_raw=0))
    expected_raw = answer.expected_profit_raw - mul_div_up(extra_raw, answer.flash.premium_bps, BPS)
    assert 0 <= gained - expected_raw <= _ROUNDED_RAW
    event = LIQUIDATOR.event("CallSkipped")
    [told] = [event.decode(log) for log in receipt.logs if log.topics[0] == event.topic]
    assert told["index"] == 0 and len(told["reason"]) in range(4, 257)
    with pytest.raises(ExecutionError, match="CallFailed\\(0, "):
        await scene.execute(replace(answer, calls=(replace(skipped, gas_limit=0), *rest), min_profit_raw=0))
