"""What may happen between clearing a transaction and its inclusion: nothing is lost but gas, and it is booked so."""

from __future__ import annotations

from pathlib import Path

import pytest

from keeper.abi import load
from keeper.fixed import WAD
from keeper.guard import scope_of
from keeper.lab.actors import account
from keeper.lab.artifacts import chainlink
from keeper.lab.chainlink import set_price
from keeper.lab.node import Contract, Tx
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.safe import execute, sign_hash
from keeper.lab.world import Lab
from keeper.multisig.safe import CALL, InnerCall, exec_calldata, pack_signatures
from keeper.typed_data import SafeTx, safe_tx_hash
from keeper.types import GLOBAL_SCOPE, Hash
from tests.e2e.line import Line, open_line

ETHER = 10**18
_E8 = 10**8
WHO = account(1)
_NO_INCIDENT = Hash(bytes(32))


async def _fallen(line: Line, lab: Lab) -> None:
    """One account below 1, and a keeper whose transactions wait for the test to mine them."""
    assert (await line.step()).liquidatable == 0
    await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
    await lab.node.mine_on_demand()


async def _open(lab: Lab) -> None:
    spec = PositionSpec(WHO, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
    await open_position(lab.node, lab.world.cast, lab.world.aave["3.0"], spec)


async def _reverted(line: Line, lab: Lab, error: str) -> None:
    """The keeper's one transaction was mined, reverted for `error`, cost gas, and moved nothing."""
    before_raw = await line.treasury_raw()
    await lab.node.mine()
    report = await line.step()
    [settlement] = report.settled
    assert settlement.status == 0 and settlement.profit_raw == 0
    [entry] = line.booked("reverted")
    assert int(entry.body["loss_usd_e8"]) > 0
    assert error in entry.body["error"]
    assert not line.booked("settled")
    assert await line.treasury_raw() == before_raw
    assert line.ledger.consecutive_reverts() == 1


async def test_a_price_that_moves_back_reverts(lab: Lab, tmp_path: Path) -> None:
    """The oracle recovers in the block of inclusion: the pool refuses, gas is booked as lost, nothing is booked won."""
    await _open(lab)
    async with open_line(lab, tmp_path) as line:
        await _fallen(line, lab)
        feed = lab.world.feeds["WETH"]
        assert len((await line.step()).sent) == 1
        aggregator = Contract(lab.node, feed.aggregator, chainlink("FluxAggregator").abi)
        round_id = int(await aggregator.read("latestRound")) + 1
        await line.pend(aggregator.tx(feed.reporter, "submit", round_id, 2_000 * _E8, gas=400_000))
        await _reverted(line, lab, "CallFailed")
        assert await line.health("3.0", WHO) >= WAD


async def test_a_market_that_moves_away_reverts_on_the_profit_floor(lab: Lab, tmp_path: Path) -> None:
    """Somebody sells into every pool first: the swap or the profit floor refuses, and the treasury never falls."""
    await _open(lab)
    world = lab.world
    async with open_line(lab, tmp_path) as line:
        whale = account(2)
        await lab.node.set_balances([whale], 10**6 * ETHER)
        weth, router = world.tokens["WETH"].address, load("SwapRouter")
        swapper = Contract(lab.node, world.uniswap_v3.router, router)
        await lab.node.send(Tx(whale, weth, bytes.fromhex("d0e30db0"), value_wei=300_000 * ETHER))
        await lab.node.send(
            Tx(whale, weth, load("Erc20").function("approve").encode(swapper.address, 2**255))
        )
        await _fallen(line, lab)
        assert len((await line.step()).sent) == 1
        for debt, fee in (("USDC", 500), ("USDC", 3000), ("USDC", 10000), ("USDT", 500), ("DAI", 3000)):
            path = weth + fee.to_bytes(3, "big") + world.tokens[debt].address
            order = (path, whale, 2**40, 20_000 * ETHER, 0)
            await line.pend(swapper.tx(whale, "exactInput", order, gas=3_000_000))
        await _reverted(line, lab, "")


@pytest.mark.parametrize("scope", [GLOBAL_SCOPE, scope_of("aave-3-0")], ids=["global", "protocol"])
async def test_a_pause_before_inclusion_reverts_on_chain(lab: Lab, tmp_path: Path, scope: Hash) -> None:
    """The Safe pauses between clearance and inclusion: the contract refuses, and the daemon stops at its next read."""
    await _open(lab)
    async with open_line(lab, tmp_path) as line:
        await _fallen(line, lab)
        assert len((await line.step()).sent) == 1
        await line.pend(await _safe_pause(line, lab, scope))
        await _reverted(line, lab, "ScopePaused")
        await lab.node.mine()
        report = await line.step()
        assert not report.sent
        assert line.refusals(report, WHO) == [("clear", "paused")]


async def test_a_transaction_built_before_a_pause_is_dead_after_it(lab: Lab, tmp_path: Path) -> None:
    """Pause and unpause before inclusion: the epoch has moved on, so the old transaction still reverts."""
    await _open(lab)
    async with open_line(lab, tmp_path) as line:
        await _fallen(line, lab)
        [sent] = (await line.step()).sent
        # out of the pool, as if it had been held back by somebody
        await lab.node.drop_pending()
        await lab.node.mine_each_transaction()
        pause = PAUSE.function("pause").encode(GLOBAL_SCOPE, b"DRILL\0\0\0", _NO_INCIDENT)
        schedule = PAUSE.function("scheduleUnpause").encode(GLOBAL_SCOPE)
        await execute(lab.node, lab.world.safe, InnerCall(line.rig.pause_guard, pause))
        await execute(lab.node, lab.world.safe, InnerCall(line.rig.pause_guard, schedule))
        await lab.node.advance(10)
        await line.guard().send(WHO, "executeUnpause", GLOBAL_SCOPE)
        await lab.node.mine_on_demand()
        await lab.node.rpc.request("eth_sendRawTransaction", "0x" + sent.raw.hex())
        await _reverted(line, lab, "EpochMismatch")
        await lab.node.mine()
        await line.step()
        assert len(line.booked("settled")) == 1, "under the new epoch it was built anew"


PAUSE = load("PauseGuard")


async def _safe_pause(line: Line, lab: Lab, scope: Hash) -> Tx:
    wallet = lab.world.safe
    call = PAUSE.function("pause").encode(scope, b"DRILL\0\0\0", _NO_INCIDENT)
    nonce = int(await Contract(lab.node, wallet.address, load("Safe")).read("nonce"))
    tx = SafeTx(line.rig.pause_guard, 0, call, CALL, nonce)
    digest = safe_tx_hash(lab.world.chain_id, wallet.address, tx)
    signatures = pack_signatures({owner.address: sign_hash(owner, digest) for owner in wallet.owners[:2]})
    return Tx(wallet.owners[0].address, wallet.address, exec_calldata(tx, signatures), gas=500_000)
