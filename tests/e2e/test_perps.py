"""Lending and perps in one daemon: one book, one head, one stacked trial, one record."""

from __future__ import annotations

from pathlib import Path

from keeper.lab.actors import account
from keeper.lab.chainlink import set_prices
from keeper.lab.perps import Perps, fall, open_crowd, open_perps_lab, unhealthy
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.rig import make_rig
from keeper.lab.world import Lab
from tests.e2e.line import Line, open_again

BORROWERS = [account(1), account(2)]
_E8 = 10**8
_A_WHILE_S = 12  # longer than Curie's marks average in the lab


async def _fall(lab: Lab, perps: Perps) -> None:
    """ETH by a tenth, everywhere, and one block a second again."""
    feeds = {lab.world.feeds["WETH"]: 1_800 * _E8, perps.synthetix.susd_feed: _E8}
    await set_prices(lab.node, feeds)
    await fall(lab, perps)
    await lab.node.advance(_A_WHILE_S)
    await lab.node.mine()
    await lab.node.mine_on_demand()  # what one head sends goes into one block


async def _protocols(line: Line) -> set[str]:
    """Whose liquidations were sent, Synthetix's markets as one."""
    return {entry.protocol.split("-")[0] for entry in line.booked("sent")}


async def test_one_head_liquidates_on_every_protocol(tmp_path: Path) -> None:
    """Borrowers and traders fall together: one head plans, tries and sends for all of them, each gains what its trial
    in that order said, to the unit, and in the end nobody's liquidation pays any more and the record holds.
    """
    lab, perps = await open_perps_lab("steady")
    async with lab:
        crowd = await open_crowd(lab, perps)
        for who, market in zip(BORROWERS, lab.world.aave.values(), strict=True):
            spec = PositionSpec(who, {"WETH": 10 * 10**18}, {"USDC": 1}, 105 * 10**16)
            await open_positions(lab.node, lab.world.cast, market, [spec])
        rig = await make_rig(lab, tmp_path, tables=perps.tables)
        async with open_again(lab, rig) as line:
            assert (await line.step()).liquidatable == 0
            before_raw = await line.treasury_raw()
            await _fall(lab, perps)
            unsafe = await unhealthy(lab, perps, crowd)
            assert unsafe >= 4
            first = await line.step()
            assert first.liquidatable == unsafe + len(BORROWERS)
            assert await _protocols(line) == {"aave", "curie", "synthetix"}
            await lab.node.mine()
            settled = (await line.step()).settled
            assert len(settled) == len(first.sent) and all(one.status == 1 for one in settled)
            for entry in line.booked("settled"):
                assert entry.body["profit_raw"] == entry.body["expected_profit_raw"], entry.protocol
            await line.steps(most=20)
            gained_raw = await line.treasury_raw() - before_raw
            assert gained_raw == line.ledger.gross_profit_raw(lab.world.tokens["USDC"].address) > 0
            assert line.ledger.verify() is None
