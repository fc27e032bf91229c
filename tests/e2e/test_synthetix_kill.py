"""A gated liquidation whose keeper is killed between the two steps."""

from __future__ import annotations

from pathlib import Path

from keeper.lab.actors import account
from keeper.lab.chainlink import set_prices
from keeper.lab.synthetix import UNIT, PerpSpec, market_of, open_perps, state_of, trade_tx
from keeper.lab.tokens import balance_of
from keeper.ledger import Ledger
from keeper.store import Store
from tests.conftest import OpenLab
from tests.e2e.process import daemon, until
from tests.protocols.synthetix_lab import rig_with_markets

TRADER, WHALE = account(1), account(2)
_E8 = 10**8


async def test_a_kill_between_the_steps_loses_nothing(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """Killed as soon as its flag is mined, a keeper started anew books the flag, waits for the gate, and is paid both
    fees once it opens; the record adds up.
    """
    lab, synthetix, rig = await rig_with_markets(await fresh_lab(), tmp_path)
    market = synthetix.markets["ETH"]
    contract, state = market_of(lab.node, market), state_of(lab.node, market)
    specs = [PerpSpec(WHALE, 2_000_000 * UNIT, 1_300 * UNIT), PerpSpec(TRADER, 10_000 * UNIT, 100 * UNIT)]
    await open_perps(lab.node, lab.world.cast, synthetix, market, specs)
    profit, treasury = lab.world.tokens["USDC"], lab.world.cast.treasury.address
    before_raw = await balance_of(lab.node, profit, treasury)
    await lab.node.mine_every(1)

    async def flagged() -> bool:
        return bool(await contract.read("isFlagged", TRADER))

    async def closed() -> bool:
        return not (await contract.read("positions", TRADER))[4]

    async with daemon(rig.folder) as first:
        await set_prices(lab.node, {market.feed: 1_905 * _E8, synthetix.susd_feed: _E8})
        await until(flagged, "the flag")
        await first.kill()
    assert await state.read("positionFlagger", TRADER) == rig.liquidator
    async with daemon(rig.folder, log="second.log") as second:
        await lab.node.mine(2)
        assert await flagged() and not await closed()
        await lab.node.send(trade_tx(contract, WHALE, -300 * UNIT), contract.abi)
        await until(closed, "the second step")
        await until(
            lambda: any(int(event["profit_raw"]) for event in second.events("settled")), "its settlement"
        )
        await second.stop()
    with Store.open(f"sqlite:///{rig.folder / 'keeper.db'}", chain_id=lab.world.chain_id) as store:
        ledger = Ledger(store)
        settled = ledger.entries(None, kind=("settled",))
        gained_raw = await balance_of(lab.node, profit, treasury) - before_raw
        assert [int(entry.body["profit_raw"]) for entry in settled] == [gained_raw, 0]
        assert gained_raw > 600 * 10**6
        assert ledger.verify() is None
