from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from keeper.chain.client import SimCall
from keeper.fixed import MAX_UINT256
from keeper.lab.curie import close, deposit, part_of, provide, trade
from keeper.lab.tokens import approve_txs, erc20, mint
from keeper.lab.world import Lab
from keeper.protocols.perp_curie.collateral import Sale
from keeper.types import Gas, Health, Marks, Option, Outcome, Refusal
from tests.protocols.perp_curie_lab import move_market
from tests.protocols.perp_curie_takeover import ETHER, OTHER, TRADER, USDC, Scene, taking


async def _by_margin(scene: Scene) -> None:
    """The account's value falls below its margin for positions and the buffer."""
    await scene.fall(TRADER, 2 * ETHER, 450)


async def _by_ratio(scene: Scene) -> None:
    """The debt grows over three quarters of what the collateral counts, though margin is enough for the position."""
    await scene.follower.fund([TRADER], 1_000 * USDC)
    await trade(scene.follower.node, scene.follower.curie, TRADER, "WETH", ETHER)
    vault = part_of(scene.follower.node, scene.follower.curie, "Vault")
    await vault.send(TRADER, "withdraw", scene.follower.curie.settlement.address, 950 * USDC)
    await scene.follower.set_price({"WETH": 0.75})
    for _ in range(30):
        if await vault.read("isLiquidatable", TRADER):
            return
        await move_market(scene.follower, "WETH", -0.01)
    raise AssertionError("the debt did not grow enough")


async def _by_threshold(scene: Scene) -> None:
    """The debt is over what any account may owe."""
    await scene.follower.fund([TRADER], 1_000 * USDC)
    await trade(scene.follower.node, scene.follower.curie, TRADER, "WETH", 2 * ETHER)
    node, curie = scene.follower.node, scene.follower.curie
    vault = part_of(node, curie, "Vault")
    await vault.send(TRADER, "withdraw", curie.settlement.address, 900 * USDC)
    await move_market(scene.follower, "WETH", -0.04)
    manager = part_of(node, curie, "CollateralManager")
    await manager.send(scene.lab.world.cast.deployer.address, "setDebtThreshold", 10)


async def _sold(scene: Scene, option: Option, repay_raw: int, marks: Marks) -> tuple[int, int] | str:
    """What the liquidator pays and receives when it makes the call itself at the marks' time; nothing changes."""
    chain, buyer = scene.follower.chain, scene.lab.world.cast.liquidator.address
    head, gas = await chain.block(marks.at.hash), Gas(3_000_000)
    balance = erc20(scene.lab.node, option.repay_token).abi.function("balanceOf")
    asked = [
        SimCall(buyer, token.address, balance.encode(buyer), gas)
        for token in (option.repay_token, option.seize_token)
    ]
    [call] = scene.follower.adapter.liquidation_calls(option, repay_raw)
    assert (call.approve_token, call.approve_raw) == (option.repay_token.address, repay_raw)
    steps = [*asked, SimCall(buyer, call.target, call.data, gas), *asked]
    results = await chain.simulate(steps, head, marks.at.timestamp_s, head.base_fee_wei)
    if not results[2].status:
        return results[2].output.hex()
    before, after = ([balance.one(each.output) for each in two] for two in (results[:2], results[3:]))
    return before[0] - after[0], after[1] - before[1]


@pytest.mark.parametrize(
    ("condition", "happen", "symbol", "amount"),
    [
        pytest.param("margin", _by_margin, "WETH", ETHER // 20, id="margin"),
        pytest.param("debt_ratio", _by_ratio, "WBTC", 2_200_000, id="debt-ratio"),
        pytest.param("debt_threshold", _by_threshold, "WETH", 2 * ETHER, id="debt-threshold"),
    ],
)
async def test_each_condition_sells_collateral(
    lab: Lab,
    tmp_path: Path,
    condition: str,
    happen: Callable[[Scene], Awaitable[None]],
    symbol: str,
    amount: int,
) -> None:
    """Under each of the vault's three conditions collateral is offered at the vault's discounted price; the most that
    may be repaid is the vault's own figure less a tenth of a percent, and every amount moves what its outcome says.
    """
    async with taking(lab, tmp_path) as scene:
        node, curie, cast = scene.follower.node, scene.follower.curie, lab.world.cast
        await deposit(node, cast, curie, curie.collaterals[symbol], {TRADER: amount})
        await happen(scene)
        _, marks, health = await scene.look(TRADER)
        assert health.detail.sellable == condition, health.detail
        [option] = [each for each in scene.options(health, marks) if isinstance(each.detail, Sale)]
        assert option.detail.why == condition
        buyer, usdc = cast.liquidator.address, lab.world.tokens["USDC"]
        await mint(node, cast, usdc, buyer, 10**12)
        await node.send_all(await approve_txs(node, usdc, buyer, curie.vault, MAX_UINT256))
        _, marks, health = await scene.look(TRADER)
        [option] = [each for each in scene.options(health, marks) if isinstance(each.detail, Sale)]
        for repay_raw in (option.max_repay_raw, option.max_repay_raw // 3, 1_000_003):
            outcome = await scene.outcome(option, marks, repay_raw)
            assert isinstance(outcome, Outcome)
            assert await _sold(scene, option, repay_raw, marks) == (outcome.repay_raw, outcome.seize_raw)
        over = await _sold(scene, option, option.max_repay_raw * 1_002 // 1_000, marks)
        assert isinstance(over, str) and b"V_MSAE".hex() in over


async def test_a_maker_s_collateral_is_sold_beside_its_orders(lab: Lab, tmp_path: Path) -> None:
    """Nothing is cancelled for it; what is offered is the vault's own figure, and moves what its outcome says."""
    async with taking(lab, tmp_path) as scene:
        node, curie, cast = scene.follower.node, scene.follower.curie, lab.world.cast
        await deposit(node, cast, curie, curie.collaterals["WETH"], {TRADER: ETHER // 20})
        await scene.follower.fund([TRADER], 100 * USDC)
        await provide(node, curie, TRADER, "WBTC", (ETHER // 200, 200 * ETHER), (30_000, 50_000))
        await scene.fall(TRADER, 2 * ETHER, 330)
        buyer, usdc = cast.liquidator.address, lab.world.tokens["USDC"]
        await mint(node, cast, usdc, buyer, 10**12)
        await node.send_all(await approve_txs(node, usdc, buyer, curie.vault, MAX_UINT256))
        _, marks, health = await scene.look(TRADER)
        assert health.detail.with_orders
        [option] = [each for each in scene.options(health, marks) if isinstance(each.detail, Sale)]
        outcome = await scene.outcome(option, marks)
        assert isinstance(outcome, Outcome)
        assert await _sold(scene, option, option.max_repay_raw, marks) == (
            outcome.repay_raw,
            outcome.seize_raw,
        )


async def test_an_account_that_may_not_be_sold_is_not(lab: Lab, tmp_path: Path) -> None:
    """Collateral of an account for which no condition holds is not offered, and the vault would not sell it."""
    async with taking(lab, tmp_path) as scene:
        node, curie, cast = scene.follower.node, scene.follower.curie, lab.world.cast
        await deposit(node, cast, curie, curie.collaterals["WETH"], {TRADER: ETHER})
        await scene.follower.fund([TRADER], 1_000 * USDC)
        await trade(node, curie, TRADER, "WETH", ETHER)
        _, marks, health = await scene.look(TRADER)
        assert not health.liquidatable
        position = scene.follower.book.position(health.key)
        [refusal] = scene.follower.adapter.options(position, health, marks)
        assert isinstance(refusal, Refusal) and refusal.reason == "healthy"
        assert not await part_of(node, curie, "Vault").read("isLiquidatable", TRADER)


async def test_a_feed_of_another_kind_refuses_its_owners_only(lab: Lab, tmp_path: Path) -> None:
    """A collateral that governance prices by a contract of another kind stops nobody who has none of it."""
    async with taking(lab, tmp_path) as scene:
        node, curie, cast = scene.follower.node, scene.follower.curie, lab.world.cast
        await scene.follower.fund([TRADER, OTHER], 1_000 * USDC)
        for owner in (TRADER, OTHER):
            await trade(node, curie, owner, "WETH", ETHER // 2)
        dai = lab.world.tokens["DAI"]
        manager, strange = part_of(node, curie, "CollateralManager"), lab.world.feeds["DAI"].proxy
        config = (strange, 900_000, 50_000, MAX_UINT256)
        await manager.send(cast.deployer.address, "addCollateral", dai.address, config)
        await deposit(node, cast, curie, dai, {TRADER: 10 * ETHER})
        marks = await scene.follower.marks(await scene.follower.follow())
        assert scene.follower.assessed(TRADER, marks) == Refusal(
            "assess", "unknown_feed", {"collateral": "DAI"}
        )
        assert isinstance(scene.follower.assessed(OTHER, marks), Health)
        assert dai.address not in scene.follower.adapter.feeds()


async def test_other_collateral_without_debt_is_no_position(lab: Lab, tmp_path: Path) -> None:
    """Whoever only deposited is not looked at; a debt that collateral stands for is a position."""
    async with taking(lab, tmp_path) as scene:
        node, curie, cast = scene.follower.node, scene.follower.curie, lab.world.cast
        await deposit(node, cast, curie, curie.collaterals["WETH"], {TRADER: ETHER})
        await scene.follower.follow()
        assert scene.follower.key(TRADER) not in scene.follower.book
        await trade(node, curie, TRADER, "WETH", ETHER // 2)
        await close(node, curie, TRADER, "WETH")
        marks = await scene.follower.marks(await scene.follower.follow())
        assert scene.follower.key(TRADER) in scene.follower.book.candidates(marks)
        health = scene.follower.assessed(TRADER, marks)
        assert isinstance(health, Health) and health.health_factor_wad is None
        assert not health.liquidatable
        assert not await part_of(node, curie, "Vault").read("isLiquidatable", TRADER)


async def test_a_stale_collateral_price_refuses_its_owners(lab: Lab, tmp_path: Path) -> None:
    """An account is not judged by a collateral whose price is too old."""
    async with taking(lab, tmp_path) as scene:
        node, curie, cast = scene.follower.node, scene.follower.curie, lab.world.cast
        await deposit(node, cast, curie, curie.collaterals["WETH"], {TRADER: ETHER})
        await scene.follower.fund([TRADER], 1_000 * USDC)
        await trade(node, curie, TRADER, "WBTC", ETHER // 40)
        await node.advance(90_001)
        await scene.follower.set_price({"WBTC": 1.0})
        marks = await scene.follower.marks(await scene.follower.follow())
        found = scene.follower.assessed(TRADER, marks)
        assert not isinstance(found, Health)
        assert found == Refusal("assess", "stale_price", {"collateral": "WETH"})
