from __future__ import annotations

from pathlib import Path

import pytest

from keeper.errors import ExecutionError
from keeper.fixed import BPS, mul_div_up
from keeper.lab.curie import MarketSpec, part_of, trade
from keeper.lab.tokens import balance_of
from keeper.lab.world import Lab
from keeper.types import Outcome, Refusal
from tests.protocols.perp_curie_takeover import ETHER, TRADER, WHALE, Scene, taking

FLASH_BPS = 5
MEDIUM = (MarketSpec("WETH", 300_000, 2.0), MarketSpec("WBTC", 300_000))


def _profit_raw(outcome: Outcome) -> int:
    return outcome.seize_raw - outcome.repay_raw - mul_div_up(outcome.repay_raw, FLASH_BPS, BPS)


async def _limit_ticks(scene: Scene, ticks: int) -> None:
    base = scene.follower.curie.markets["WETH"].base_token
    exchange = part_of(scene.follower.node, scene.follower.curie, "Exchange")
    deployer = scene.lab.world.cast.deployer.address
    await exchange.send(deployer, "setMaxTickCrossedWithinBlock", base, ticks)


async def test_a_takeover_is_one_transaction(lab: Lab, tmp_path: Path) -> None:
    """Margin borrowed and deposited, the position taken over, closed and everything withdrawn: the treasury gains what
    was forecast to the unit under a floor of exactly that, a unit more reverts, and the exchange holds nothing of the
    Liquidator's. Half of a position goes at a time until the account is healthy again.
    """
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        rounds, health = 0, None
        while True:
            _, marks, health = await scene.look(TRADER)
            if not health.liquidatable:
                break
            option = scene.options(health, marks)[0]
            outcome = await scene.outcome(option, marks)
            assert isinstance(outcome, Outcome), outcome
            expected = _profit_raw(outcome)
            assert await scene.tried(option, marks, expected + 1) == (
                f"ProfitBelowMinimum({expected}, {expected + 1})"
            )
            gained, _ = await scene.execute(option, min_profit_raw=expected)
            assert gained == expected > 0
            assert await scene.left_over() == ([], 0)
            rounds += 1
        assert rounds >= 1
        usdc = lab.world.tokens["USDC"]
        assert await balance_of(lab.node, usdc, scene.rig.liquidator) == 0


async def test_a_losing_takeover_reverts(lab: Lab, tmp_path: Path) -> None:
    """Where closing costs more than the discount, the adapter refuses with the numbers, and whoever sends it anyway
    gets a revert, since the loan cannot be returned.
    """
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        market = scene.follower.curie.markets["WETH"]
        registry = part_of(lab.node, scene.follower.curie, "MarketRegistry")
        await registry.send(lab.world.cast.deployer.address, "setFeeRatio", market.base_token, 30_000)
        _, marks, health = await scene.look(TRADER)
        option = scene.options(health, marks)[0]
        refusal = await scene.outcome(option, marks)
        assert isinstance(refusal, Refusal) and refusal.reason == "losing_takeover", refusal
        assert refusal.numbers["returned_raw"] < refusal.numbers["margin_raw"]
        with pytest.raises(ExecutionError, match="Overspent"):
            await scene.execute(option)


async def test_the_tick_limit_counts_from_its_last_update(lab: Lab, tmp_path: Path) -> None:
    """Within fifteen seconds of the exchange's last look at the price, a close may go as far from that as later from
    the price itself: whichever limit governance sets, what is forecast to close whole does, and what is not reverts.
    """
    async with taking(lab, tmp_path, MEDIUM) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        await trade(scene.follower.node, scene.follower.curie, WHALE, "WETH", -ETHER)
        answers: dict[int, set[bool]] = {}
        for pause_s in (1, 20):
            for ticks in (20, 30, 45, 60, 90, 140):
                snapshot = await lab.node.snapshot()
                await _limit_ticks(scene, ticks)
                _, marks, health = await scene.look(TRADER, pause_s)
                option = scene.options(health, marks)[0]
                outcome, happened = await scene.outcome(option, marks), await scene.tried(option, marks)
                assert isinstance(outcome, Outcome) == isinstance(happened, int), (outcome, happened)
                if isinstance(outcome, Outcome):
                    assert happened == _profit_raw(outcome)
                answers.setdefault(ticks, set()).add(isinstance(outcome, Outcome))
                await lab.node.revert(snapshot)
                await lab.node.steady_clock()
                scene.follower.followed = -1
        assert {True, False} in answers.values()  # the time since the last look decides


async def test_a_rest_left_on_the_exchange_reverts(lab: Lab, tmp_path: Path) -> None:
    """A position that would not close whole within the block's tick limit is refused; sent anyway with margin to spare,
    it reverts at the last call, and without that call a rest would have stayed in the Liquidator's name.
    """
    async with taking(lab, tmp_path, MEDIUM) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        low, high = 1, 1_000  # the fewest ticks in which the position closes whole is above low, at most high
        while high - low > 1:
            middle = (low + high) // 2
            await _limit_ticks(scene, middle)
            _, marks, health = await scene.look(TRADER)
            outcome = await scene.outcome(scene.options(health, marks)[0], marks)
            low, high = (low, middle) if isinstance(outcome, Outcome) else (middle, high)
        await _limit_ticks(scene, low)
        _, marks, health = await scene.look(TRADER)
        option = scene.options(health, marks)[0]
        refusal = await scene.outcome(option, marks)
        assert isinstance(refusal, Refusal) and refusal.reason == "over_tick_limit", refusal
        assert 0 < int(refusal.numbers["base_closed_wad"]) < int(refusal.numbers["size_wad"])
        calls = scene.follower.adapter.liquidation_calls(option, option.max_repay_raw)
        with pytest.raises(ExecutionError, match=f"CallFailed\\({len(calls) - 1}, "):
            await scene.execute(option, calls=calls)
        gained, _ = await scene.execute(option, calls=calls[:-1])
        assert gained > 0
        bases, _ = await scene.left_over()
        assert bases == [scene.follower.curie.markets["WETH"].base_token]
        head = await lab.node.head()
        read = scene.follower.adapter.outcome(option, option.max_repay_raw)
        refusal = await scene.follower.chain.read(read, head.hash)
        assert isinstance(refusal, Refusal) and refusal.reason == "left_over", refusal
