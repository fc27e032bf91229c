"""Told to stop at any moment, also by a node that hangs: the daemon ends at once and leaves nothing half-done."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from keeper.fixed import WAD
from keeper.lab.actors import account, actor
from keeper.lab.chainlink import set_price
from keeper.lab.judge import judge
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.relay import open_relay
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.world import Lab
from keeper.ledger import Ledger
from keeper.store import Store
from tests.conftest import OpenLab
from tests.e2e.custody import REMOTE, kept
from tests.e2e.process import Daemon, daemon, gateway, start, until

ETHER = 10**18
_E8 = 10**8
_ENDS_WITHIN_S = 5.0
WHO = account(0)


class _Hold:
    """Stops the node, as SIGSTOP does, right before a request with these words would reach it."""

    def __init__(self, pid: int) -> None:
        self.words = b""
        self.held = asyncio.Event()
        self._pid = pid

    def __call__(self, sent: bytes) -> None:
        if self.words and self.words in sent:
            os.kill(self._pid, signal.SIGSTOP)
            self.words = b""
            self.held.set()


@asynccontextmanager
async def _behind_a_front(lab: Lab, folder: Path) -> AsyncIterator[tuple[Rig, _Hold]]:
    """A keeper with one healthy position, whose node can be stopped at a request."""
    spec = PositionSpec(WHO, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
    await open_positions(lab.node, lab.world.cast, lab.world.aave["3.0"], [spec])
    async with gateway(lab.anvil.url) as front:
        front.watch = hold = _Hold(lab.anvil.pid)
        rig = await make_rig(lab, folder, Terms(max_head_age_s=3_600), (f"http://127.0.0.1:{front.port}",))
        await lab.node.mine_every(1)
        try:
            yield rig, hold
        finally:
            os.kill(lab.anvil.pid, signal.SIGCONT)


async def _ended(one: Daemon, number: signal.Signals) -> int:
    one.process.send_signal(number)
    return await asyncio.wait_for(one.process.wait(), _ENDS_WITHIN_S)


async def _goes_on(lab: Lab, rig: Rig) -> None:
    """Whatever was left is whole: the next run takes it over, and in the end the account was liquidated once."""
    with Store.open(f"sqlite:///{rig.folder}/keeper.db", chain_id=lab.world.chain_id) as store:
        ledger = Ledger(store)
        assert ledger.verify() is None
        intents = ledger.entries(None, kind="intent")
        signed = {entry.plan_id for entry in ledger.entries(None, kind="signed")}
        assert {entry.plan_id for entry in intents} == signed, "never stopped between sign and persist"
        assert [entry.kind for entry in ledger.entries(None, kind=("started", "stopped"))] == [
            "stopped",
            "started",
        ]
        settled = ledger.entries(None, kind="settled")  # a node may have answered before it was stopped
    async with daemon(rig.folder) as again:
        await until(lambda: bool(settled or again.events("settled")), "a liquidation")
        assert await _ended(again, signal.SIGTERM) == 0
    verdict = await judge(rig.config)
    assert verdict.ok, str(verdict)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "words", [b"eth_getLogs", b"eth_simulateV1", b"eth_sendRawTransaction", b"eth_getTransactionReceipt"]
)
async def test_it_ends_while_the_node_hangs(
    fresh_lab: OpenLab, tmp_path: Path, words: bytes, number: signal.Signals
) -> None:
    """Following, trying, broadcasting or settling when node and operator stop: gone in 5 s, and all is on record."""
    lab = await fresh_lab()
    async with _behind_a_front(lab, tmp_path) as (rig, hold):
        async with daemon(tmp_path) as one:
            hold.words = words
            if words != b"eth_getLogs":
                await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
            await hold.held.wait()
            assert await _ended(one, number) == 0
            assert one.events("stopped")
        os.kill(lab.anvil.pid, signal.SIGCONT)
        if words == b"eth_getLogs":
            await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
        await _goes_on(lab, rig)


async def test_it_ends_while_a_relay_is_silent(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """Handed to a relay that never answers: gone in 5 s, and the next run, by the public pool, gets it mined."""
    lab = await fresh_lab()
    async with _behind_a_front(lab, tmp_path) as (rig, _), open_relay(lab.node, "silent") as relay:
        public, secrets = rig.config.read_text(), rig.folder / ".env"
        private = f'route = "private"\nrelays = ["{relay.url}"]\n'
        rig.config.write_text(public.replace('route = "public"\n', private))
        with secrets.open("a") as file:
            file.write(f"KEEPER_RELAY_KEY=0x{actor('relay key').key.hex()}\n")
        async with daemon(tmp_path) as one:
            await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
            await until(lambda: bool(relay.requests), "the relay to be asked")
            assert await _ended(one, signal.SIGTERM) == 0
        rig.config.write_text(public)
        await _goes_on(lab, rig)


@pytest.mark.parametrize("kind", REMOTE)
async def test_it_ends_while_a_signer_is_silent(fresh_lab: OpenLab, tmp_path: Path, kind: str) -> None:
    """Stopped while it waits for a signature: gone in 5 s, nothing signed, and the next run gets it mined."""
    lab = await fresh_lab()
    async with _behind_a_front(lab, tmp_path) as (rig, _), kept(lab, rig, kind) as custody:
        assert custody.double is not None
        async with daemon(tmp_path) as one:
            custody.double.manners = "silent"
            custody.double.waiting.clear()
            await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
            await custody.double.waiting.wait()
            assert await _ended(one, signal.SIGTERM) == 0
            assert one.events("stopped")
        with Store.open(f"sqlite:///{rig.folder}/keeper.db", chain_id=lab.world.chain_id) as store:
            ledger = Ledger(store)
            assert ledger.verify() is None
            assert ledger.entries(None, kind="intent") and not ledger.entries(None, kind="signed")
        custody.double.manners = "honest"
        async with daemon(tmp_path) as again:
            await until(lambda: bool(again.events("settled")), "a liquidation")
            assert await _ended(again, signal.SIGTERM) == 0
        assert custody.double.faults == []
        verdict = await judge(rig.config)
        assert verdict.ok, str(verdict)


async def test_it_ends_between_heads(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """Nothing to do and no node to wait for: gone in 5 s."""
    lab = await fresh_lab()
    async with _behind_a_front(lab, tmp_path) as (rig, _):
        async with daemon(tmp_path) as one:
            os.kill(lab.anvil.pid, signal.SIGSTOP)
            assert await _ended(one, signal.SIGTERM) == 0
        os.kill(lab.anvil.pid, signal.SIGCONT)
        await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
        await _goes_on(lab, rig)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_before_it_has_started(
    fresh_lab: OpenLab, tmp_path: Path, number: signal.Signals
) -> None:
    """The node hangs during the first checks: gone in 5 s, nothing signed, and the record is whole."""
    lab = await fresh_lab()
    async with _behind_a_front(lab, tmp_path) as (rig, hold):
        hold.words = b"eth_call"
        one = Daemon(await start(tmp_path, "run", log=tmp_path / "keeper.log"), tmp_path / "keeper.log")
        await hold.held.wait()
        assert await _ended(one, number) != 0
        with Store.open(f"sqlite:///{rig.folder}/keeper.db", chain_id=lab.world.chain_id) as store:
            assert Ledger(store).verify() is None and not store.open_transactions()
