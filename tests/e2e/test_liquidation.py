"""The main job, on the chain itself and on a fork of a running chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keeper.abi import checksum
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import set_price
from keeper.lab.judge import judge
from keeper.lab.node import Node
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.rig import Terms, make_rig
from keeper.lab.tokens import balance_of
from keeper.lab.uniswap import move_pool
from keeper.lab.world import Lab
from tests.e2e.line import open_again, open_line

ETHER = 10**18
_E8 = 10**8


@pytest.fixture(params=["chain", "fork"])
async def place(request: pytest.FixtureRequest, lab: Lab) -> AsyncIterator[Lab]:
    """The world itself, or a fork of it taken while it runs."""
    if request.param == "chain":
        yield lab
        return
    with lab.anvil.fork() as anvil:
        async with await Node.open(anvil.url) as node:
            await node.steady_clock()
            yield Lab(anvil, node, lab.world)


@pytest.mark.parametrize("market", ["3.0", "3.6"])
@pytest.mark.parametrize("debt", ["USDC", "DAI", "USDT", "WETH"])
async def test_an_unsafe_account_is_liquidated(place: Lab, tmp_path: Path, market: str, debt: str) -> None:
    """It becomes healthy or clean, the treasury gains exactly what is booked, and what was expected is what came."""
    who = account(1)
    supply = {"WBTC": 2 * _E8} if debt == "WETH" else {"WETH": 10 * ETHER}
    spec = PositionSpec(who, supply, {debt: 1}, 110 * WAD // 100)
    await open_position(place.node, place.world.cast, place.world.aave[market], spec)
    async with open_line(place, tmp_path) as line:
        assert (await line.step()).liquidatable == 0
        falling, price = ("WBTC", 34_000) if debt == "WETH" else ("WETH", 1_750)
        await set_price(place.node, place.world.feeds[falling], price * _E8)
        before_raw = await line.treasury_raw()
        first, *later = await line.steps()
        assert first.liquidatable == len(first.sent) == 1
        gained_raw = await line.treasury_raw() - before_raw
        settled = line.booked("settled")
        assert gained_raw == sum(int(entry.body["profit_raw"]) for entry in settled) > 0
        assert gained_raw == line.ledger.gross_profit_raw(place.world.tokens["USDC"].address)
        assert int(settled[0].body["profit_raw"]) == int(settled[0].body["expected_profit_raw"])
        assert await line.health(market, who) >= WAD
        assert later[-1].liquidatable == 0
        assert line.ledger.verify() is None


async def test_it_borrows_where_it_costs_least(lab: Lab, tmp_path: Path) -> None:
    """A pool named in [flash] is listed by the set-up, lends where it is cheaper than Aave, and is booked as it was."""
    world = lab.world
    pool = world.uniswap_v3.pool(world.tokens["DAI"], world.tokens["USDC"], 100).address
    tables = f'\n[flash]\nuniswap_v3_pools = ["{checksum(pool)}"]\n'
    rig = await make_rig(lab, tmp_path, Terms(), tables=tables)
    spec = PositionSpec(account(1), {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
    await open_position(lab.node, world.cast, world.aave["3.6"], spec)
    async with open_again(lab, rig) as line:
        await set_price(lab.node, world.feeds["WETH"], 1_750 * _E8)
        [told] = (await judge(rig.config)).left
        assert told.best is not None
        assert (told.best.flash_source, told.best.flash_premium_bps) == (pool, 1)
        before_raw = await line.treasury_raw()
        await line.steps()
        [settled] = line.booked("settled")
        assert await line.treasury_raw() - before_raw == int(settled.body["profit_raw"]) > 0
        assert settled.body["profit_raw"] == settled.body["expected_profit_raw"]
        [intent] = line.booked("intent")
        assert bytes.fromhex(intent.body["flash_source"][2:]) == pool
        assert intent.body["flash_premium_bps"] == 1


async def test_it_sells_where_version_2_pays_best(lab: Lab, tmp_path: Path) -> None:
    """Where all pools of V3 followed the fall and the pair of V2 did not, everything that was seized is sold to that
    pair, for what was expected to the unit; the judge names the same route and finds nothing amiss.
    """
    world, weth = lab.world, lab.world.tokens["WETH"]
    tables = f"""
[[venues]]
kind = "uniswap-v2"
factory = "{checksum(world.uniswap_v2.factory)}"
router = "{checksum(world.uniswap_v2.router)}"
"""
    rig = await make_rig(lab, tmp_path, Terms(), tables=tables)
    spec = PositionSpec(account(1), {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
    await open_position(lab.node, world.cast, world.aave["3.6"], spec)
    prices = world.prices_e8 | {"WETH": 1_750 * _E8}
    await lab.node.set_balances([world.cast.deployer.address], 10**32)
    for pool in world.uniswap_v3.pools:
        if weth in (pool.token0, pool.token1):
            sides = prices[pool.token0.symbol], prices[pool.token1.symbol]
            await move_pool(lab.node, world.cast, world.uniswap_v3, pool, *sides)
    await set_price(lab.node, world.feeds["WETH"], prices["WETH"])
    [pair] = [
        each for each in world.uniswap_v2.pairs if {each.token0, each.token1} == {weth, world.tokens["USDC"]}
    ]
    [told] = (await judge(rig.config)).left
    assert told.best is not None and told.best.route == ("sell WETH -v2-> USDC",)
    held_raw = await balance_of(lab.node, weth, pair.address)
    async with open_again(lab, rig) as line:
        before_raw = await line.treasury_raw()
        await line.steps()
        settled = line.booked("settled")
        assert await line.treasury_raw() - before_raw == sum(int(each.body["profit_raw"]) for each in settled)
        assert all(each.body["profit_raw"] == each.body["expected_profit_raw"] for each in settled)
        assert int(settled[0].body["profit_raw"]) >= told.best.profit.raw * 99 // 100
        seized_raw = sum(int(each.body["seize_raw"]) for each in line.booked("intent"))
        assert await balance_of(lab.node, weth, pair.address) - held_raw == seized_raw > 0
    verdict = await judge(rig.config)
    assert verdict.ok, str(verdict)
