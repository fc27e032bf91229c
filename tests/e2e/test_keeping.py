"""Seized tokens that are kept: they reach the treasury as they are, and everything that does is on record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from keeper.abi import checksum
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import set_price
from keeper.lab.judge import judge
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.rig import Terms
from keeper.lab.tokens import balance_of, mint
from keeper.lab.world import Lab
from tests.e2e.line import open_line

ETHER = 10**18
_E8 = 10**8


async def test_a_kept_token_reaches_the_treasury_as_it_is(lab: Lab, tmp_path: Path) -> None:
    """Only what repays the loan is sold; profit, minimum and cost are in the kept token; nothing stays behind."""
    world, treasury = lab.world, lab.world.cast.treasury.address
    weth, usdc, dai = (world.tokens[name] for name in ("WETH", "USDC", "DAI"))
    spec = PositionSpec(account(1), {"WETH": 10 * ETHER}, {"DAI": 1}, 110 * WAD // 100)
    await open_position(lab.node, world.cast, world.aave["3.6"], spec)
    async with open_line(lab, tmp_path, Terms(keep=("WETH",))) as line:
        await line.step()
        await mint(lab.node, world.cast, dai, line.rig.liquidator, 7)  # somebody's gift
        await set_price(lab.node, world.feeds["WETH"], 1_750 * _E8)
        before = {token: await balance_of(lab.node, token, treasury) for token in (weth, usdc, dai)}
        await line.steps()
        gained = {token: await balance_of(lab.node, token, treasury) - before[token] for token in before}
        [intent, *_], [settled, *more] = line.booked("intent"), line.booked("settled")

        assert gained[weth] == sum(int(each.body["profit_raw"]) for each in [settled, *more]) > 0
        assert gained[usdc] == 0 and gained[dai] == 7
        assert settled.body["profit_token"] == checksum(weth.address)
        assert settled.body["profit_raw"] == settled.body["expected_profit_raw"]
        assert int(settled.body["profit_usd_e8"]) == int(settled.body["profit_raw"]) * 1_750 * _E8 // ETHER
        received = {each["token"]: int(each["raw"]) for each in settled.body["received"]}
        assert received == {checksum(weth.address): int(settled.body["profit_raw"]), checksum(dai.address): 7}
        for token in world.tokens.values():
            assert await balance_of(lab.node, token, line.rig.liquidator) == 0

        swaps = intent.body["swaps"]
        assert all(each["exact_out"] for each in swaps)
        sold_raw = sum(int(each["quoted_in_raw"]) for each in swaps)
        assert sold_raw + int(intent.body["planned_profit_raw"]) == int(intent.body["seize_raw"])
        minimum_raw = int(intent.body["gas_cost_raw"]) + -(-(10**8) * ETHER // (1_750 * _E8))
        assert int(intent.body["min_profit_raw"]) >= minimum_raw
        verdict = await judge(line.rig.config)
        assert verdict.ok, verdict.document()


async def test_what_is_not_kept_is_sold(lab: Lab, tmp_path: Path) -> None:
    """A token beside the list becomes the profit token, whatever is kept of others."""
    spec = PositionSpec(account(1), {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
    await open_position(lab.node, lab.world.cast, lab.world.aave["3.6"], spec)
    async with open_line(lab, tmp_path, Terms(keep=("WBTC",))) as line:
        await line.step()
        await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
        before_raw = await line.treasury_raw()
        await line.steps()
        [settled, *_] = line.booked("settled")
        assert await line.treasury_raw() - before_raw >= int(settled.body["profit_raw"]) > 0
        assert settled.body["profit_token"] == checksum(lab.world.tokens["USDC"].address)


async def test_without_a_price_nothing_is_kept(lab: Lab, tmp_path: Path) -> None:
    """A kept token whose feed on the Liquidator is stale is refused with its age, and nothing of it is sold instead."""
    spec = PositionSpec(account(1), {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
    await open_position(lab.node, lab.world.cast, lab.world.aave["3.6"], spec)
    async with open_line(lab, tmp_path, Terms(keep=("WETH",))) as line:
        await line.step()
        await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
        feeds = line.engine.policy.kept_feeds
        [(token, feed)] = feeds.items()
        stale = {token: replace(feed, max_age_s=-1)}
        line.engine._policy = replace(line.engine.policy, kept_feeds=stale)
        report = await line.step()
        assert report.sent == []
        assert line.refusals(report, account(1)) == [("plan", "stale_price")]
