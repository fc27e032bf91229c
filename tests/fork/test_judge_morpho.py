"""The judge against Morpho accounts whose right verdict is known: left alone, underwater, dust, denied, well kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from keeper.abi import checksum
from keeper.lab.actors import account
from keeper.lab.chainlink import latest, set_prices
from keeper.lab.judge import Unhealthy, Verdict, judge
from keeper.lab.morpho import BorrowSpec, borrow, deploy_morpho, set_oracle, table
from keeper.lab.rig import Rig, make_rig
from keeper.lab.world import Lab
from keeper.types import Address
from tests.e2e.line import open_again
from tests.protocols.morpho_blue_lab import WBTC_WETH, WETH_DAI, WETH_USDC

ETHER = 10**18
LOST, SUNK, SMALL, SAFE, DARK = (account(number) for number in range(301, 306))


async def _fallen(lab: Lab, folder: Path, *, listed: bool = True) -> Rig:
    """A keeper set up, and accounts that became unhealthy with nobody at work; one market has lost its price."""
    node, world = lab.node, lab.world
    morpho = await deploy_morpho(node, world)
    rig = await make_rig(lab, folder, tables=table(morpho, world, listed=listed))
    specs = [
        BorrowSpec(LOST, WETH_USDC, 10 * ETHER, 9_900),
        BorrowSpec(SUNK, WETH_DAI, 10 * ETHER, 9_990),
        BorrowSpec(SMALL, WETH_USDC, ETHER // 5_000, 9_900),
        BorrowSpec(SAFE, WETH_USDC, 10 * ETHER, 5_000),
        BorrowSpec(DARK, WBTC_WETH, 10**8, 9_900),
    ]
    await borrow(node, world, morpho, specs)
    prices = {feed: (await latest(node, feed)).price_raw for feed in world.feeds.values()}
    prices[world.feeds["WETH"]] = prices[world.feeds["WETH"]] * 93 // 100
    await set_prices(node, prices)
    await set_oracle(node, world, morpho.markets[WBTC_WETH], 0)
    return rig


def _of(verdict: Verdict, who: Address) -> Unhealthy:
    [found] = [one for one in verdict.unhealthy if one.account == who]
    return found


@pytest.mark.parametrize("listed", [True, False])
async def test_whoever_pays_and_was_left_is_named(lab: Lab, tmp_path: Path, listed: bool) -> None:
    """The whole debt of one, all collateral of one whose debt is more; dust is unprofitable, and neither who is safe
    nor whose oracle tells nothing is named.
    """
    rig = await _fallen(lab, tmp_path, listed=listed)
    verdict = await judge(rig.config)
    assert {one.account for one in verdict.left} == {LOST, SUNK}, str(verdict)
    assert {one.account for one in verdict.unhealthy} == {LOST, SUNK, SMALL}
    assert verdict.totals["accounts_with_position"] == 5
    assert _of(verdict, SMALL).reason == "unprofitable"
    lost, sunk = _of(verdict, LOST).best, _of(verdict, SUNK).best
    assert lost is not None and sunk is not None
    assert lost.repay.raw == pytest.approx(17_200 * 99 // 100 * 10**6, rel=1e-5)
    assert sunk.seize.raw == 10 * ETHER
    assert lost.flash_premium_bps == sunk.flash_premium_bps == 0
    assert await judge(rig.config, markets=["aave-3-6"]) != verdict


async def test_who_is_denied_is_excused(lab: Lab, tmp_path: Path) -> None:
    """The operator's own decision leaves an account alone."""
    rig = await _fallen(lab, tmp_path)
    text = rig.config.read_text()
    rig.config.write_text(text.replace("[limits]", f'[limits]\ndeny_accounts = ["{checksum(LOST)}"]'))
    verdict = await judge(rig.config)
    assert _of(verdict, LOST).reason == "denied"
    assert {one.account for one in verdict.left} == {SUNK}


async def test_a_keeper_at_work_leaves_nobody(lab: Lab, tmp_path: Path) -> None:
    """It nets what the judge said was to be had, within a percent, and nothing booked differs from the chain."""
    rig = await _fallen(lab, tmp_path)
    best = {who: _of(await judge(rig.config), who).best for who in (LOST, SUNK)}
    async with open_again(lab, rig) as line:
        await lab.node.mine_on_demand()
        await line.steps()
        await lab.node.mine_each_transaction()
        settled = {each.account: int(each.body["profit_raw"]) for each in line.booked("settled")}
    assert set(settled) == {checksum(LOST), checksum(SUNK)}
    for who, found in best.items():
        assert found is not None
        assert settled[checksum(who)] >= found.profit.raw * 99 // 100
    verdict = await judge(rig.config)
    assert verdict.ok, str(verdict)
