from __future__ import annotations

import dataclasses
from pathlib import Path

from keeper.charges import Charges
from keeper.fixed import BPS, mul_div_up
from keeper.lab.curie import house_of, part_of, provide, trade
from keeper.lab.world import Lab
from keeper.planner import encode_execute
from keeper.protocols.perp_curie.takeover import CANCEL
from keeper.trial import Attempt, try_stacked
from keeper.types import BlockNumber, BlockTime, Health, Outcome, Refusal
from tests.protocols.perp_curie_lab import move_market
from tests.protocols.perp_curie_takeover import ETHER, TRADER, USDC, Scene, taking

FLASH_BPS = 5
ORDERS = 36  # some 200 000 gas each to cancel


async def _maker_falls(scene: Scene) -> None:
    """A maker around the price, in two markets and with a position besides, whose margin a fall uses up."""
    node, curie = scene.follower.node, scene.follower.curie
    await scene.follower.fund([TRADER], 1_000 * USDC)
    await trade(node, curie, TRADER, "WETH", ETHER)
    await provide(node, curie, TRADER, "WETH", (ETHER, 2_000 * ETHER), (1_700, 2_300))
    await provide(node, curie, TRADER, "WBTC", (ETHER // 100, 400 * ETHER), (30_000, 50_000))
    vault, balance = part_of(node, curie, "Vault"), part_of(node, curie, "AccountBalance")
    await scene.follower.set_price({"WETH": 0.8})
    for _ in range(30):
        value = int(await vault.read("getAccountValue", TRADER)) * 10**12
        if value < int(await balance.read("getMarginRequirementForLiquidation", TRADER)):
            return
        await move_market(scene.follower, "WETH", -0.02)
    raise AssertionError("the market did not move enough")


async def test_a_maker_s_orders_are_cancelled_first(lab: Lab, tmp_path: Path) -> None:
    """An account with open orders is always looked at and judged by the exchange's own words at each head. Its orders
    are cancelled in the same transaction, in every market, and what is then taken over gains what was forecast; without
    that the exchange would refuse.
    """
    async with taking(lab, tmp_path) as scene:
        await _maker_falls(scene)
        node, curie = scene.follower.node, scene.follower.curie
        head, marks, health = await scene.look(TRADER)
        assert health.key in scene.follower.book.candidates(marks)
        value = await house_of(node, curie).read("getAccountValue", TRADER, at=head.hash)
        assert health.collateral_base == max(value, 0)
        option = scene.options(health, marks)[0]
        outcome = await scene.outcome(option, marks)
        assert isinstance(outcome, Outcome), outcome
        expected = outcome.seize_raw - outcome.repay_raw - mul_div_up(outcome.repay_raw, FLASH_BPS, BPS)
        calls = scene.follower.adapter.liquidation_calls(option, option.max_repay_raw)
        cancelled = [call for call in calls if call.data[:4] == CANCEL.selector]
        assert len(cancelled) == 2
        assert [scene.follower.adapter.position_of(call.data) for call in calls].count(health.key) == 1
        refused = await scene.tried(option, marks, calls=[call for call in calls if call not in cancelled])
        assert isinstance(refused, str) and b"CH_CLWTISO".hex() in refused
        assert await scene.tried(option, marks) == expected
        gained, _ = await scene.execute(option)
        assert gained == expected
        assert await scene.left_over() == ([], 0)


async def test_a_maker_is_judged_anew_when_others_trade(lab: Lab, tmp_path: Path) -> None:
    """What orders are worth moves with trades that touch nobody's account but the trader's: the next marks know it."""
    async with taking(lab, tmp_path) as scene:
        node, curie = scene.follower.node, scene.follower.curie
        await scene.follower.fund([TRADER], 1_000 * USDC)
        await provide(node, curie, TRADER, "WETH", (ETHER, 2_000 * ETHER), (1_700, 2_300))
        found = []
        for _ in range(2):
            head = await scene.follower.follow()
            marks = await scene.follower.marks(head)
            health = scene.follower.assessed(TRADER, marks)
            assert isinstance(health, Health)
            value = await house_of(node, curie).read("getAccountValue", TRADER, at=head.hash)
            assert health.collateral_base == value
            found.append(value)
            await move_market(scene.follower, "WETH", -0.05)
        assert found[0] != found[1]


async def test_a_market_that_was_not_read_refuses(lab: Lab, tmp_path: Path) -> None:
    """A position in a market that marks do not know yet is refused, never left out."""
    async with taking(lab, tmp_path) as scene:
        node, curie = scene.follower.node, scene.follower.curie
        await scene.follower.fund([TRADER], 1_000 * USDC)
        await trade(node, curie, TRADER, "WETH", ETHER // 10)
        head = await scene.follower.follow()
        marks = await scene.follower.marks(head)
        unread = dataclasses.replace(marks, exact=dataclasses.replace(marks.exact, entries=()))
        assert isinstance(scene.follower.assessed(TRADER, marks), Health)
        found = scene.follower.assessed(TRADER, unread)
        assert found == Refusal("assess", "market_not_read", {"markets": 0})


async def test_orders_that_were_not_read_refuse(lab: Lab, tmp_path: Path) -> None:
    """A maker that marks do not know yet is refused, never guessed."""
    async with taking(lab, tmp_path) as scene:
        node, curie = scene.follower.node, scene.follower.curie
        await scene.follower.fund([TRADER], 1_000 * USDC)
        await trade(node, curie, TRADER, "WETH", ETHER // 10)
        head = await scene.follower.follow()
        marks = await scene.follower.marks(BlockTime(head.number, head.hash, head.timestamp_s))
        await provide(node, curie, TRADER, "WETH", (ETHER, 2_000 * ETHER), (1_700, 2_300))
        await scene.follower.follow()
        found = scene.follower.assessed(TRADER, marks)
        assert isinstance(found, Refusal) and found.reason == "orders_not_read"


async def test_more_orders_than_one_transaction_can_cancel_are_refused_with_their_gas(
    lab: Lab, tmp_path: Path
) -> None:
    """The trial has no word for it but what it used: it is refused as that; tried with enough it would have paid."""
    async with taking(lab, tmp_path) as scene:
        node, curie = scene.follower.node, scene.follower.curie
        await scene.follower.fund([TRADER], 500 * USDC)
        await trade(node, curie, TRADER, "WETH", 2 * ETHER)
        for place in range(ORDERS):
            prices = (30_000.0 - 400 * place, 60_000.0 + 400 * place)
            await provide(node, curie, TRADER, "WBTC", (ETHER // 100_000, ETHER // 2), prices)
        for _ in range(3):
            await move_market(scene.follower, "WETH", -0.04)
        _, marks, health = await scene.look(TRADER)
        assert health.liquidatable
        [option, *_] = scene.options(health, marks)
        head = await scene.follower.chain.block(marks.at.hash)
        plan = scene.plan(option, marks.at)
        last = BlockNumber(head.number + 50)
        attempt = Attempt(plan, encode_execute(plan, 0, 0, last), 0, 0, last)
        operator, liquidator = scene.lab.world.cast.operator.address, scene.rig.liquidator
        charges = Charges(scene.follower.chain, "none", operator, liquidator)
        [refusal] = await try_stacked(charges, [attempt], head, marks.at.timestamp_s, liquidator)
        assert isinstance(refusal, Refusal), refusal
        assert (refusal.stage, refusal.reason) == ("trial", "out_of_gas")
        assert 7_000_000 < refusal.numbers["gas_used"] <= refusal.numbers["gas_limit"] == 8_000_000
        gained = await scene.tried(option, marks)
        assert isinstance(gained, int) and gained > 0, gained
