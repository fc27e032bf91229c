"""One Morpho account, paid from what it gave, by Morpho's own loan, and by Aave's: on the real contracts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from keeper import abi, assembly
from keeper.assembly import Parts
from keeper.book import Book
from keeper.fixed import BPS, mul_div_up
from keeper.flash import MorphoFlash
from keeper.lab.actors import account
from keeper.lab.chainlink import set_price
from keeper.lab.morpho import BorrowSpec, Morpho, borrow, deploy_morpho, table
from keeper.lab.node import Contract, Receipt, Tx
from keeper.lab.rig import Rig, make_rig
from keeper.lab.tokens import balance_of
from keeper.lab.uniswap import move_pool
from keeper.lab.world import Lab
from keeper.planner import PlanContext, encode_execute, plan
from keeper.protocols.aave_v3 import AaveFlash, AaveV3, AaveV3Config
from keeper.protocols.morpho_blue import MorphoBlue
from keeper.seams import FlashKind, FlashSource, Reads, just
from keeper.types import (
    Address,
    BlockTime,
    FlashQuote,
    Health,
    Marks,
    Option,
    Plan,
    PositionKey,
    ProtocolCall,
    Refusal,
    Wei,
    hex_of,
)
from tests.protocols.morpho_blue_lab import WETH_DAI, WETH_USDC

ETHER = 10**18
BORROWER = account(78)
LIQUIDATOR = abi.load("Liquidator")


class Borrowing(MorphoBlue):
    """The same adapter, whose call is paid before: so that a loan is needed."""

    def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
        """The calls as they are without the callback."""
        return [replace(call, paid_after=False) for call in super().liquidation_calls(option, repay_raw)]


@dataclass(frozen=True, slots=True)
class Scene:
    """A lab with Morpho, an installed Liquidator, and the parts of its keeper."""

    lab: Lab
    morpho: Morpho
    rig: Rig
    parts: Parts

    async def plan(
        self, market: int, profit: str, adapter: MorphoBlue, lenders: Sequence[FlashSource]
    ) -> Plan:
        """The plan for the borrower in the next block."""
        world, chain = self.lab.world, self.parts.chain
        head = await chain.head()
        await chain.read(adapter.load(), head.hash)
        at = BlockTime(head.number, head.hash, head.timestamp_s + 1)
        key = PositionKey(adapter.name, hex_of(self.morpho.markets[market].id), BORROWER)
        positions = await chain.read(adapter.refresh([key]), head.hash)
        marks = await chain.read(adapter.marks(at), head.hash)
        assert isinstance(marks, Marks)
        book = Book()
        book.upsert(positions, adapter.rows(positions))
        position = book.position(key)
        health = adapter.assess(position, marks)
        assert isinstance(health, Health) and health.liquidatable
        ctx = PlanContext(
            at=at,
            adapter=adapter,
            venues=self.parts.venues,
            flash_sources=lenders,
            profit_token=world.tokens[profit],
            profit_usd_e8=world.prices_e8[profit],
            native_usd_e8=world.prices_e8["WETH"],
            gas_price_wei=Wei(2 * 10**9),
            max_fee_wei=Wei(200 * 10**9),
            min_profit_usd_e8=10**8,
            max_slippage_bps=300,
            max_repay_usd_e8=10**7 * 10**8,
        )
        answer = await chain.read(plan(health, adapter.options(position, health, marks), ctx), head.hash)
        assert isinstance(answer, Plan), answer
        return answer

    async def executed(self, answer: Plan) -> tuple[int, Receipt]:
        """Send the plan as the operator; what the treasury gained, and the receipt."""
        world, token = self.lab.world, answer.profit_token
        before_raw = await balance_of(self.lab.node, token, world.cast.treasury.address)
        calldata = encode_execute(answer, 0, 0, answer.at.number + 3)
        tx = Tx(world.cast.operator.address, self.rig.liquidator, calldata)
        receipt = await self.lab.node.send(tx, LIQUIDATOR)
        return await balance_of(self.lab.node, token, world.cast.treasury.address) - before_raw, receipt


@asynccontextmanager
async def scene_on(lab: Lab, folder: Path) -> AsyncIterator[Scene]:
    """A keeper's contracts set up by the Safe from a table for Morpho alone."""
    morpho = await deploy_morpho(lab.node, lab.world)
    rig = await make_rig(lab, folder, tables=table(morpho, lab.world))
    async with assembly.open_parts(assembly.settings(rig.config)) as parts:
        yield Scene(lab, morpho, rig, parts)


async def _fallen(scene: Scene, market: int) -> None:
    """The borrower opens a position, and WETH falls, on its feed and in all pools."""
    lab, world = scene.lab, scene.lab.world
    await borrow(lab.node, world, scene.morpho, [BorrowSpec(BORROWER, market, 10 * ETHER, 9_900)])
    prices = world.prices_e8 | {"WETH": world.prices_e8["WETH"] * 97 // 100}
    await lab.node.set_balances([world.cast.deployer.address], 10**32)
    for pool in world.uniswap_v3.pools:
        sides = prices[pool.token0.symbol], prices[pool.token1.symbol]
        await move_pool(lab.node, world.cast, world.uniswap_v3, pool, *sides)
    await set_price(lab.node, world.feeds["WETH"], prices["WETH"])


@pytest.mark.parametrize(
    ("market", "profit"),
    [
        pytest.param(WETH_USDC, "USDC", id="kept-in-the-debt"),
        pytest.param(WETH_USDC, "WETH", id="kept-in-the-collateral"),
        pytest.param(WETH_DAI, "USDC", id="three-tokens"),
    ],
)
async def test_every_way_of_paying_earns_what_it_says(
    lab: Lab, tmp_path: Path, market: int, profit: str
) -> None:
    """The treasury gains what the plan said, to the unit, and the account's debt is gone: paid from what it gave for
    the least gas, by Morpho's loan for as much profit and more gas, by Aave's for more gas and its premium.
    """
    async with scene_on(lab, tmp_path) as scene:
        await _fallen(scene, market)
        paid, lent, dear = [await _tried(scene, market, profit, way) for way in ("after", "morpho", "aave")]
        assert paid[0].flash.source == scene.morpho.address and not _borrowed(paid[0])
        assert lent[0].flash.source == scene.morpho.address and _borrowed(lent[0])
        assert dear[0].flash.source == scene.lab.world.aave["3.6"].pool
        assert paid[1] == lent[1] > dear[1]
        assert paid[2] < lent[2] < dear[2]
        if profit == scene.morpho.markets[market].loan.symbol:
            assert lent[1] - dear[1] == mul_div_up(_borrowed(dear[0]), dear[0].flash.premium_bps, BPS)


async def _tried(scene: Scene, market: int, profit: str, way: str) -> tuple[Plan, int, int]:
    """A plan of this way, what the treasury gained by it, and its gas; undone again."""
    [own] = [each for each in scene.parts.adapters if isinstance(each, MorphoBlue)]
    config = assembly.settings(scene.rig.config).protocols[-1]
    adapter = own if way == "after" else Borrowing(config)
    lenders: Sequence[FlashSource] = []
    if way == "morpho":
        lenders = [MorphoFlash(scene.morpho.address)]
    elif way == "aave":
        lenders = [await _aave(scene)]
    node = scene.lab.node
    snapshot = await node.snapshot()
    answer = await scene.plan(market, profit, adapter, lenders)
    gained_raw, receipt = await scene.executed(answer)
    assert gained_raw == answer.expected_profit_raw > 0
    position = await Contract(node, scene.morpho.address, abi.load("MorphoBlue")).read(
        "position", scene.morpho.markets[market].id, BORROWER
    )
    assert position[1] == 0
    for token in scene.lab.world.tokens.values():
        assert await balance_of(node, token, scene.rig.liquidator) == 0
    await node.revert(snapshot)
    await node.steady_clock()
    return answer, gained_raw, receipt.gas_used


async def _aave(scene: Scene) -> FlashSource:
    """Aave 3.6 as a lender, loaded."""
    chain, provider = scene.parts.chain, scene.lab.world.aave["3.6"].provider
    adapter = AaveV3(AaveV3Config(name="aave-3-6", pool_addresses_provider=provider))
    await chain.read(adapter.load(), (await chain.head()).hash)
    return AaveFlash(adapter)


def _borrowed(answer: Plan) -> int:
    (content,) = LIQUIDATOR.function("execute").decode_input(encode_execute(answer, 0, 0, 0))
    return int(content[3])


async def test_what_morpho_cannot_lend_bounds_nothing(lab: Lab, tmp_path: Path) -> None:
    """What is paid from what was seized needs no lender: where one could lend a little, everything is taken."""

    class Poor(MorphoFlash):
        def flash(self, token: Address, at: BlockTime) -> Reads[FlashQuote | Refusal]:
            return just(FlashQuote(self.source(), token, 0, 10**6))

    async with scene_on(lab, tmp_path) as scene:
        await _fallen(scene, WETH_USDC)
        [own] = [each for each in scene.parts.adapters if isinstance(each, MorphoBlue)]
        answer = await scene.plan(WETH_USDC, "USDC", own, [Poor(scene.morpho.address)])
        assert answer.outcome.repay_raw == answer.option.max_repay_raw


@pytest.mark.parametrize("flash", ["", "the same", "another"])
async def test_a_morpho_is_listed_once_wherever_it_is_named(lab: Lab, tmp_path: Path, flash: str) -> None:
    """A table's Morpho lends to every protocol and the Safe lists it; named in [flash] too it is one lender, and
    another that is named there is one more.
    """
    morpho = await deploy_morpho(lab.node, lab.world)
    lenders = [morpho.address]
    if flash == "another":
        lenders.append((await deploy_morpho(lab.node, lab.world, ())).address)
    section = f'\n[flash]\nmorpho = "{abi.checksum(lenders[-1])}"\n' if flash else ""
    rig = await make_rig(lab, tmp_path, tables=table(morpho, lab.world) + section)
    async with assembly.open_parts(assembly.settings(rig.config)) as parts:
        named = [each.source() for each in parts.flash_sources if each.kind == FlashKind.MORPHO]
    assert named == lenders
    liquidator = Contract(lab.node, rig.liquidator, LIQUIDATOR)
    for lender in lenders:
        assert await liquidator.read("flashKindOf", lender) == FlashKind.MORPHO
