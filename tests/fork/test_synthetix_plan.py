from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from keeper import abi
from keeper.errors import ExecutionError
from keeper.lab.actors import account
from keeper.lab.node import Receipt, Tx
from keeper.lab.rig import Rig
from keeper.lab.synthetix import UNIT, PerpSpec, state_of, trade_tx
from keeper.lab.tokens import balance_of
from keeper.lab.world import Lab
from keeper.planner import PlanContext, encode_execute, plan
from keeper.protocols.synthetix_v2_perps import Step
from keeper.types import Plan, Refusal, Wei
from keeper.venues.uniswap_v3 import UniswapV3, UniswapV3Config
from tests.protocols.synthetix_lab import PerpsFollower, following_rig, rig_with_markets

TRADER, WHALE = account(77), account(78)
LIQUIDATOR = abi.load("Liquidator")


@dataclass(frozen=True, slots=True)
class Scene:
    """A lab with Synthetix and an installed Liquidator, and a follower of its ETH market."""

    lab: Lab
    rig: Rig
    follower: PerpsFollower

    async def plan(self, profit: str = "sUSD", **terms: int) -> Plan | Refusal:
        """What the planner says of the trader at the head, for inclusion in the next block."""
        follower, world = self.follower, self.lab.world
        head = await follower.follow()
        marks = await follower.marks(head, ahead_s=1)
        health = follower.health(TRADER, marks)
        uniswap, tokens = world.uniswap_v3, world.tokens
        config = UniswapV3Config(factory=uniswap.factory, quoter=uniswap.quoter, router=uniswap.router)
        ctx = PlanContext(
            at=marks.at,
            adapter=follower.adapter,
            venues=(UniswapV3(config, (tokens["WETH"].address, tokens["USDC"].address)),),
            flash_sources=(),
            profit_token=tokens[profit],
            profit_usd_e8=10**8,
            native_usd_e8=world.prices_e8["WETH"],
            gas_price_wei=Wei(terms.get("gas_price_gwei", 2) * 10**9),
            max_fee_wei=Wei(200 * 10**9),
            min_profit_usd_e8=10**8,
            max_slippage_bps=300,
            max_repay_usd_e8=10**7 * 10**8,
        )
        position = follower.book.position(follower.key(TRADER))
        options = follower.adapter.options(position, health, marks)
        return await follower.chain.read(plan(health, options, ctx), head.hash)

    async def execute(self, answer: Plan) -> tuple[int, Receipt]:
        """Send the plan as the operator; what the treasury gained, and the receipt."""
        world, token = self.lab.world, answer.profit_token
        treasury = world.cast.treasury.address
        before = await balance_of(self.lab.node, token, treasury)
        calldata = encode_execute(answer, 0, 0, answer.at.number + 3)
        receipt = await self.lab.node.send(
            Tx(world.cast.operator.address, self.rig.liquidator, calldata), LIQUIDATOR
        )
        return await balance_of(self.lab.node, token, treasury) - before, receipt


@pytest.fixture
async def scene(lab: Lab, tmp_path: Path) -> AsyncIterator[Scene]:
    """The lab with Synthetix and a keeper's contracts set up by the Safe."""
    lab, synthetix, rig = await rig_with_markets(lab, tmp_path)
    async with following_rig(lab, synthetix, rig) as follower:
        yield Scene(lab, rig, follower)


@pytest.mark.parametrize("profit", ["sUSD", "USDC", "DAI"])
async def test_both_steps_at_once_earn_what_they_say(scene: Scene, profit: str) -> None:
    """In one transaction, kept in sUSD or sold for another token, the treasury gains the forecast to the unit."""
    await scene.follower.open(PerpSpec(TRADER, 2_000 * UNIT, 20 * UNIT))
    await scene.follower.move(0.95)
    answer = await scene.plan(profit)
    assert isinstance(answer, Plan), answer
    assert answer.option.detail.step is Step.BOTH and not answer.later_raw
    assert answer.flash.available_raw == answer.outcome.repay_raw == 0
    gained, _ = await scene.execute(answer)
    assert gained == answer.expected_profit_raw > 0
    assert not (await scene.follower.contract.read("positions", TRADER))[4]


async def test_the_contract_enforces_the_floor(scene: Scene) -> None:
    """A unit more than the reward is refused on chain, and with it the flag."""
    await scene.follower.open(PerpSpec(TRADER, 2_000 * UNIT, -20 * UNIT))
    await scene.follower.move(1.05)
    answer = await scene.plan()
    assert isinstance(answer, Plan)
    with pytest.raises(ExecutionError, match="ProfitBelowMinimum"):
        await scene.execute(replace(answer, min_profit_raw=answer.expected_profit_raw + 1))
    assert not await scene.follower.contract.read("isFlagged", TRADER)


async def test_a_gated_liquidation_is_paid_in_its_second_step(scene: Scene) -> None:
    """The flag alone earns nothing and asks nothing of the Liquidator; blocks later the second step earns both fees to
    the unit. While gas is dear the flag is refused, with what the second step would bring.
    """
    follower = scene.follower
    await follower.open(
        PerpSpec(WHALE, 2_000_000 * UNIT, 1_300 * UNIT), PerpSpec(TRADER, 4_000 * UNIT, 40 * UNIT)
    )
    await follower.move(0.95)
    dear = await scene.plan(gas_price_gwei=199)
    assert isinstance(dear, Refusal)
    assert (dear.reason, dear.numbers["seize_raw"]) == ("unprofitable", 0)
    assert 0 < dear.numbers["later_raw"] < dear.numbers["gas_cost_raw"]
    flag = await scene.plan()
    assert isinstance(flag, Plan), flag
    assert flag.option.detail.step is Step.FLAG
    assert (flag.expected_profit_raw, flag.min_profit_raw, flag.outcome.seize_raw) == (0, 0, 0)
    gained, _ = await scene.execute(flag)
    assert gained == 0
    gated = await scene.plan()
    assert isinstance(gated, Refusal) and gated.reason == "over_max_pd"
    await scene.lab.node.mine(5)
    contract = follower.contract
    await scene.lab.node.send(trade_tx(contract, WHALE, -300 * UNIT), contract.abi)
    second = await scene.plan()
    assert isinstance(second, Plan), second
    assert second.option.detail.step is Step.LIQUIDATE
    gained, _ = await scene.execute(second)
    assert gained == second.expected_profit_raw == second.outcome.seize_raw > 260 * UNIT


async def test_a_pending_order_pays_for_its_own_flag(scene: Scene) -> None:
    """The deposit for its keeper comes with the flag, also where the second step is gated."""
    follower = scene.follower
    await follower.open(PerpSpec(WHALE, 2_000_000 * UNIT, 1_300 * UNIT))
    await follower.open(PerpSpec(TRADER, 10_000 * UNIT, 100 * UNIT))
    await follower.send(TRADER, "submitOffchainDelayedOrder", -UNIT, 0)
    await follower.move(0.95)
    answer = await scene.plan()
    assert isinstance(answer, Plan), answer
    assert answer.expected_profit_raw == UNIT
    gained, _ = await scene.execute(answer)
    assert gained == UNIT
    flagger = await state_of(scene.lab.node, follower.market).read("positionFlagger", TRADER)
    assert flagger == scene.rig.liquidator
