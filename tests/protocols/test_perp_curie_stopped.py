"""Markets that are paused or closed: what accounts hold of them keeps a price, and their other markets are open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from keeper.lab.actors import account
from keeper.lab.curie import part_of, perp_curie, provide, trade
from keeper.lab.node import Contract
from keeper.lab.world import Lab
from keeper.protocols.perp_curie.health import Account
from keeper.types import Address, Health, Marks, Option, Outcome, Refusal
from tests.protocols.perp_curie_takeover import ETHER, OTHER, TRADER, USDC, Scene, taking

THIRD = account(53)
DUST = 7  # the contracts count fewer than ten units as nothing
CLOSED_WAD = {"WETH": 1_777 * ETHER + 1, "WBTC": 33_333 * ETHER + 1}


async def _stop(scene: Scene, symbol: str, *, close: bool = False) -> None:
    """Pause a market, or close it at a price of its own."""
    base = scene.follower.curie.markets[symbol].base_token
    token = Contract(scene.follower.node, base, perp_curie("BaseToken").abi)
    deployer = scene.lab.world.cast.deployer.address
    if close:
        await token.send(deployer, "close(uint256)", CLOSED_WAD[symbol])
    else:
        await token.send(deployer, "pause()")


async def _judged(scene: Scene, who: Address) -> Account:
    """An account as of the newest block, which the exchange must judge the same way to the last unit."""
    follower = scene.follower
    marks = await follower.marks(await follower.follow())
    health = follower.assessed(who, marks)
    assert isinstance(health, Health), health
    house = Contract(follower.node, follower.curie.clearing_house, perp_curie("ClearingHouse").abi)
    told = await house.read("getAccountValue", who)
    detail: Account = health.detail
    assert told == detail.value_wad // 10**12 * 10**12
    balance = part_of(follower.node, follower.curie, "AccountBalance")
    assert detail.requirement_wad == await balance.read("getMarginRequirementForLiquidation", who)
    return detail


async def _gains_what_is_foretold(scene: Scene, option: Option, marks: Marks) -> None:
    """To the unit, on the node's own EVM."""
    outcome = await scene.outcome(option, marks)
    assert isinstance(outcome, Outcome)
    premium_raw = -(-outcome.repay_raw * 5 // 10_000)
    assert await scene.tried(option, marks) == outcome.seize_raw - outcome.repay_raw - premium_raw > 0


async def _reverts(scene: Scene, option: Option, marks: Marks, code: str) -> bool:
    happened = await scene.tried(option, marks)
    return isinstance(happened, str) and code.encode().hex() in happened


async def test_what_is_held_of_a_stopped_market_is_worth_what_the_exchange_says(
    lab: Lab, tmp_path: Path
) -> None:
    """Longs, shorts and dust, before and after funding is settled, as time goes on, paused and then closed."""
    async with taking(lab, tmp_path) as scene:
        follower = scene.follower
        node, curie = follower.node, follower.curie
        await follower.fund([TRADER, OTHER, THIRD], 500 * USDC)
        for who, symbol, size in (
            (TRADER, "WETH", ETHER),
            (TRADER, "WBTC", ETHER // 50),
            (OTHER, "WETH", -ETHER),
            (OTHER, "WBTC", DUST),
            (THIRD, "WBTC", -ETHER // 60),
        ):
            await trade(node, curie, who, symbol, size)
        await node.advance(700)
        await follower.set_price({"WBTC": 0.97})
        await node.advance(700)
        values = []
        for close in (False, True):
            await _stop(scene, "WBTC", close=close)
            for _ in range(2):
                for who in (TRADER, OTHER, THIRD):
                    values.append((await _judged(scene, who)).value_wad)
                await node.advance(500)
            house = Contract(node, curie.clearing_house, perp_curie("ClearingHouse").abi)
            await house.send(THIRD, "settleAllFunding", THIRD)
            await _judged(scene, THIRD)
        assert values[2] == values[5] != values[8], (
            "alone in a stopped market nothing moves but its closing price"
        )


@pytest.mark.parametrize("held", [ETHER // 100, DUST])
@pytest.mark.parametrize("close", [False, True])
async def test_other_markets_of_the_account_are_taken_over(
    lab: Lab, tmp_path: Path, held: int, close: bool
) -> None:
    """A position, or dust, in a market that was stopped saves nobody: what is left in an open one brings to the unit
    what is foretold.
    """
    async with taking(lab, tmp_path) as scene:
        await scene.follower.fund([TRADER], 500 * USDC)
        await trade(scene.follower.node, scene.follower.curie, TRADER, "WBTC", held)
        await scene.fall(TRADER, 2 * ETHER, 0)
        await _stop(scene, "WBTC")
        if close:
            await _stop(scene, "WBTC", close=True)
        _, marks, health = await scene.look(TRADER)
        assert scene.follower.key(TRADER) in scene.follower.book.candidates(marks)
        options = scene.options(health, marks)
        assert {option.detail.stake.market.symbol for option in options} == {"vWETH"}
        await _gains_what_is_foretold(scene, options[0], marks)


async def test_nothing_of_a_stopped_market_is_taken_over(lab: Lab, tmp_path: Path) -> None:
    """A short margin is refused with the market's state: the exchange lets nobody take over there."""
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        _, marks, health = await scene.look(TRADER)
        option = scene.options(health, marks)[0]
        await scene.follower.set_price({"WETH": 0.9, "WBTC": 1.0})
        await scene.follower.node.advance(1_800)  # the index is an average too
        for close, reason in ((False, "market_paused"), (True, "market_closed")):
            await _stop(scene, "WETH", close=close)
            _, marks, health = await scene.look(TRADER)
            assert health.liquidatable
            position = scene.follower.book.position(health.key)
            found = scene.follower.adapter.options(position, health, marks)
            assert found == [Refusal("options", reason, {"market": "vWETH"})]
            assert await _reverts(scene, option, marks, "CH_MNO")
            assert scene.follower.adapter.prices(marks)[option.detail.stake.market.base] == 0


async def test_orders_in_a_stopped_market_are_left_alone(lab: Lab, tmp_path: Path) -> None:
    """While it is open they must be cancelled first; paused or closed they cannot be, and need not."""
    async with taking(lab, tmp_path) as scene:
        node, curie = scene.follower.node, scene.follower.curie
        await scene.follower.fund([TRADER], 500 * USDC)
        depth, prices = (ETHER // 1_000, 40 * ETHER), (30_000, 50_000)
        await provide(node, curie, TRADER, "WBTC", depth, prices)
        await scene.fall(TRADER, 2 * ETHER, 0)
        _, marks, health = await scene.look(TRADER)
        [cancelling, *_] = scene.options(health, marks)
        assert cancelling.detail.ordered == (curie.markets["WBTC"].base_token,)
        await _gains_what_is_foretold(scene, cancelling, marks)
        left = replace(cancelling, detail=replace(cancelling.detail, ordered=()))
        assert await _reverts(scene, left, marks, "CH_CLWTISO")
        for close in (False, True):
            await _stop(scene, "WBTC", close=close)
            _, marks, health = await scene.look(TRADER)
            [option, *_] = scene.options(health, marks)
            assert option.detail.ordered == ()
            await _gains_what_is_foretold(scene, option, marks)
            assert await _reverts(scene, cancelling, marks, "CH_MNO")
