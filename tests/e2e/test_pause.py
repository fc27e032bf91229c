"""Every way a pause is told of, on a real node: the gate closes between heads, and opens only as it should."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.datastructures import SignedTransaction

from keeper.abi import load
from keeper.chain.pending import Pending, _pending
from keeper.commands import breakers
from keeper.commands import guardian as guardians
from keeper.errors import ConfigError, ExecutionError, LedgerError
from keeper.execution.flights import Submission
from keeper.execution.signing import Cleared, Standing
from keeper.fixed import WAD
from keeper.guard import scope_of
from keeper.guard.door import door_of, hand_over
from keeper.guard.message import SignedPause, Verdict
from keeper.lab.actors import Actor, account
from keeper.lab.chainlink import set_price
from keeper.lab.judge import judge
from keeper.lab.node import Contract, Tx
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.rig import Terms, make_rig
from keeper.lab.safe import execute, sign_hash
from keeper.lab.world import Lab
from keeper.multisig.safe import CALL, InnerCall, batch, exec_calldata, pack_signatures
from keeper.typed_data import SafeTx, safe_tx_hash
from keeper.types import GLOBAL_SCOPE, Address, Hash, Refusal, Trial, hex_of
from tests.conftest import OpenLab
from tests.e2e.custody import kept
from tests.e2e.line import Line, open_again, open_line

ETHER = 10**18
_E8 = 10**8
WHO, OTHER, STRANGER = account(1), account(2), account(3)
PAUSE = load("PauseGuard")
MARKET, PROTOCOL = "3.0", "aave-3-0"
_DRILL, _NO_INCIDENT = b"DRILL\0\0\0", Hash(bytes(32))
_PATIENCE_S = 10.0
_LIAR, _NOBODY = Address(b"\x11" * 20), Address(b"\x12" * 20)
_ALWAYS_TRUE = bytes.fromhex("600160005260206000f3")  # whatever it is called with


@asynccontextmanager
async def reacting(line: Line) -> AsyncIterator[None]:
    """The keeper's reflexes beside its line, as the daemon runs them."""
    task = asyncio.create_task(line.engine.reflexes.run())
    await asyncio.sleep(0.2)  # until it listens
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


async def until(done: Callable[[], bool], what: str) -> None:
    """Wait for something that must happen without a head."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while not done():
        assert time.monotonic() < deadline_s, f"waited for {what}"
        await asyncio.sleep(0.01)


def stopped(line: Line, protocol: str = PROTOCOL) -> str | None:
    """Which cause stops a protocol now; the reason where there is no cause."""
    stop = line.engine.reflexes.gate.standing(protocol)
    return None if stop is None else str(stop.numbers.get("cause", stop.reason))


async def fallen(line: Line, lab: Lab, price: int = 1_750) -> None:
    """Accounts below 1, and blocks that wait for the test."""
    assert (await line.step()).liquidatable == 0
    await set_price(lab.node, lab.world.feeds["WETH"], price * _E8)
    await lab.node.mine_on_demand()


async def borrow(lab: Lab, *, markets: tuple[str, ...] = (MARKET,), weth: int = 10) -> None:
    """Accounts that are liquidatable once ETH has fallen."""
    for market in markets:
        specs = [
            PositionSpec(who, {"WETH": weth * ETHER}, {"USDC": 1}, 110 * WAD // 100) for who in (WHO, OTHER)
        ]
        await open_positions(lab.node, lab.world.cast, lab.world.aave[market], specs)


async def in_pool(lab: Lab) -> list[tuple[bytes, bytes]]:
    """Target and data of the operator's pending transactions, lowest nonce first."""
    content = await lab.node.rpc.request("txpool_content")
    operator = "0x" + lab.world.cast.operator.address.hex()
    mine: dict[str, Any] = next(
        (sent for who, sent in content["pending"].items() if who.lower() == operator), {}
    )
    return [
        (bytes.fromhex(mine[nonce]["to"][2:]), bytes.fromhex(mine[nonce]["input"][2:]))
        for nonce in sorted(mine, key=int)
    ]


def pause_call(scope: Hash = GLOBAL_SCOPE) -> bytes:
    """A guardian's direct call."""
    return PAUSE.function("pause").encode(scope, _DRILL, _NO_INCIDENT)


def signed_pause(
    line: Line, guardian: Actor, scope: Hash = GLOBAL_SCOPE, issued_at_s: int = 0
) -> SignedPause:
    """A guardian's message, dated as the chain is."""
    unsigned = SignedPause(
        line.rig.pause_guard, scope, _DRILL, _NO_INCIDENT, issued_at_s or line.head.timestamp_s, bytes(65)
    )
    return SignedPause(
        unsigned.pause_guard,
        scope,
        unsigned.reason,
        unsigned.incident,
        unsigned.issued_at_s,
        sign_hash(guardian, unsigned.digest),
    )


async def told(line: Line, message: SignedPause) -> None:
    """A guardian's message, closed on and relayed as where it is handed over."""
    assert await line.engine.reflexes.accept(message) is None
    await line.engine.reflexes.tell(message)


async def safe_tx(lab: Lab, line: Line, *, batched: bool) -> Tx:
    """A 2-of-3 transaction that pauses everything, alone or as the last call of a batch."""
    wallet, node = lab.world.safe, lab.node
    nonce = int(await Contract(node, wallet.address, load("Safe")).read("nonce"))
    if batched:
        harmless = PAUSE.function("setGuardian").encode(WHO, True)
        calls = [InnerCall(line.rig.pause_guard, harmless), InnerCall(line.rig.pause_guard, pause_call())]
        tx = batch(wallet.multi_send_call_only, calls, nonce)
    else:
        tx = SafeTx(line.rig.pause_guard, 0, pause_call(), CALL, nonce)
    digest = safe_tx_hash(lab.world.chain_id, wallet.address, tx)
    signatures = pack_signatures({owner.address: sign_hash(owner, digest) for owner in wallet.owners[:2]})
    return Tx(wallet.owners[0].address, wallet.address, exec_calldata(tx, signatures), gas=700_000)


async def unpaused(lab: Lab, line: Line, scope: Hash = GLOBAL_SCOPE) -> None:
    """The Safe schedules, the delay passes, anybody executes; two blocks and a wait."""
    schedule = PAUSE.function("scheduleUnpause").encode(scope)
    await lab.node.mine_each_transaction()
    await execute(lab.node, lab.world.safe, InnerCall(line.rig.pause_guard, schedule))
    await lab.node.advance(10)
    await line.guard().send(lab.world.cast.liquidator.address, "executeUnpause", scope)
    await lab.node.mine_on_demand()


# --- the pending pool ---


@pytest.mark.parametrize("how", ["guardian", "anybody with a signature", "safe", "batch"])
async def test_a_pending_pause_closes_the_gate_and_takes_back_what_is_in_flight(
    lab: Lab, tmp_path: Path, how: str
) -> None:
    """No block is needed: the gate closes, and the operator's nonces are taken by transfers of nothing at once."""
    await borrow(lab)
    async with open_line(lab, tmp_path) as line, reacting(line):
        await fallen(line, lab)
        assert len((await line.step()).sent) == 2
        assert [to for to, _ in await in_pool(lab)] == [line.rig.liquidator] * 2
        guardian = lab.world.cast.guardians[0]
        message = signed_pause(line, guardian)
        await line.pend(
            {
                "guardian": Tx(guardian.address, line.rig.pause_guard, pause_call(), gas=200_000),
                "anybody with a signature": Tx(WHO, line.rig.pause_guard, message.calldata, gas=200_000),
                "safe": await safe_tx(lab, line, batched=False),
                "batch": await safe_tx(lab, line, batched=True),
            }[how]
        )
        await until(lambda: stopped(line) == "pending", "the gate to close")
        await until(lambda: len(line.booked("signed")) == 4, "the cancellations")
        await until(lambda: len(line.booked("sent")) == 4, "the node to take them")
        operator = lab.world.cast.operator.address
        assert await in_pool(lab) == [(operator, b"")] * 2
        assert not (await line.step()).sent
        await lab.node.mine()
        report = await line.step()
        assert stopped(line) == "chain" and len(report.settled) == 2
        assert [entry.kind for entry in line.booked("settled", "cancelled", "reverted")] == ["cancelled"] * 2
        causes = [(each.kind, each.body["cause"]) for each in line.booked("pause", "resume")]
        assert causes[:3] == [("pause", "pending"), ("pause", "chain"), ("resume", "pending")]


@pytest.mark.parametrize(
    "spoof",
    [
        *("stranger", "selector only", "stranger's signature", "failing safe"),
        *("lying safe", "batch for nobody", "too large to run"),
    ],
)
async def test_a_spoof_is_ignored(lab: Lab, tmp_path: Path, spoof: str) -> None:
    """What could never pause does not stop the keeper, however much it looks like it; a true one after it does."""
    await lab.node.set_code({_LIAR: _ALWAYS_TRUE})
    await borrow(lab)
    async with open_line(lab, tmp_path) as line, reacting(line):
        await fallen(line, lab)
        await lab.node.set_balances([STRANGER])
        guard = line.rig.pause_guard
        forged = signed_pause(line, lab.world.cast.liquidator)
        safe = lab.world.safe
        nonce = int(await Contract(lab.node, safe.address, load("Safe")).read("nonce"))
        # the owners did sign it, but for another nonce
        tx = SafeTx(guard, 0, pause_call(), CALL, nonce + 1)
        digest = safe_tx_hash(lab.world.chain_id, safe.address, tx)
        signatures = pack_signatures({owner.address: sign_hash(owner, digest) for owner in safe.owners[:2]})
        made_up = batch(_NOBODY, [InnerCall(guard, pause_call())], 0).data
        await line.pend(
            {
                "stranger": Tx(STRANGER, guard, pause_call(), gas=200_000),
                "selector only": Tx(STRANGER, guard, pause_call()[:4], gas=200_000),
                "stranger's signature": Tx(STRANGER, guard, forged.calldata, gas=200_000),
                "failing safe": Tx(STRANGER, safe.address, exec_calldata(tx, signatures), gas=700_000),
                "lying safe": Tx(STRANGER, _LIAR, exec_calldata(tx, signatures), gas=700_000),
                "batch for nobody": Tx(STRANGER, _NOBODY, made_up, gas=700_000),
                "too large to run": Tx(STRANGER, guard, pause_call() + b"\1" * 130_000, gas=7_000_000),
            }[spoof]
        )
        guardian = lab.world.cast.guardians[0].address
        await asyncio.sleep(0.3)
        assert stopped(line) is None and not line.booked("pause")
        assert len((await line.step()).sent) == 2
        await line.pend(Tx(guardian, guard, pause_call(), gas=200_000))
        await until(lambda: stopped(line) == "pending", "the gate to close")


async def test_a_flood_of_spoofs_leaves_the_node_to_the_line(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few are asked about at once, all are ignored, and none of their bytes are kept."""
    async with open_line(lab, tmp_path) as line:
        await line.step()
        judged, running, most = line.parts.chain.judge, 0, 0

        async def counted(*arguments: Any) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                return await judged(*arguments)
            finally:
                running -= 1

        monkeypatch.setattr(line.parts.chain, "judge", counted)
        reflexes, guard = line.engine.reflexes, line.rig.pause_guard
        async with asyncio.TaskGroup() as group:
            for number in range(60):
                named = (Hash(number.to_bytes(32)), None, STRANGER, number)
                await reflexes._saw(Pending(*named, guard, pause_call(), bytes(100_000), None), group)
        assert stopped(line) is None and 0 < most <= 8
        assert len(reflexes._judged) == 60 and not any(reflexes._judged.values())


async def test_a_pause_that_never_lands_is_lifted_after_three_blocks(lab: Lab, tmp_path: Path) -> None:
    """It is provisional: dropped from the pool, it holds for two heads more and is gone at the third."""
    await borrow(lab)
    async with open_line(lab, tmp_path) as line, reacting(line):
        await fallen(line, lab)
        guardian = lab.world.cast.guardians[0].address
        await line.pend(Tx(guardian, line.rig.pause_guard, pause_call(), gas=200_000))
        await until(lambda: stopped(line) == "pending", "the gate to close")
        await lab.node.drop_pending()
        for _ in range(2):
            report = await line.step()
            assert line.refusals(report, WHO) == [("clear", "paused")] and not report.sent
            await lab.node.mine()
        assert len((await line.step()).sent) == 2, "and the ramp is not for what never was a pause"
        assert [entry.body["cause"] for entry in line.booked("resume")] == ["pending"]


async def test_with_a_quorum_a_pending_pause_must_be_signed(lab: Lab, tmp_path: Path) -> None:
    """What one provider only says a guardian sent is ignored; what the guardian signed closes the gate."""
    urls = (lab.anvil.ws_url, lab.anvil.url)
    rig = await make_rig(lab, tmp_path, Terms(), urls)
    rig.config.write_text(rig.config.read_text().replace("max_head_age_s", "quorum = 2\nmax_head_age_s", 1))
    async with open_again(lab, rig) as line, reacting(line):
        await line.step()
        await lab.node.mine_on_demand()
        guardian = lab.world.cast.guardians[0]
        await line.pend(Tx(guardian.address, rig.pause_guard, pause_call(), gas=200_000))  # impersonated
        await asyncio.sleep(0.3)
        assert stopped(line) is None
        await lab.node.drop_pending()
        await _paused_by_raw(lab, line, guardian)
        await until(lambda: stopped(line) == "pending", "the gate to close")


@pytest.mark.parametrize("shown", ["mined before", "of another chain", "waiting"])
async def test_with_a_quorum_one_provider_cannot_show_an_old_pause_again(
    lab: Lab, tmp_path: Path, shown: str
) -> None:
    """A guardian did sign it, but it can not be mined: a liar that keeps such a one does not stop the keeper by it."""
    rig = await make_rig(lab, tmp_path, Terms(), (lab.anvil.ws_url, lab.anvil.url))
    rig.config.write_text(rig.config.read_text().replace("max_head_age_s", "quorum = 2\nmax_head_age_s", 1))
    guardian = lab.world.cast.guardians[0]
    await lab.node.rpc.request("anvil_setNonce", hex_of(guardian.address), hex(5))
    await lab.node.mine()
    async with open_again(lab, rig) as line:
        await line.step()
        nonce = 4 if shown == "mined before" else 5
        chain_id = lab.world.chain_id + (shown == "of another chain")
        signed = _raw_pause(line, guardian, nonce, chain_id)
        told = {
            "hash": hex_of(signed.hash),
            "from": hex_of(guardian.address),
            "to": hex_of(rig.pause_guard),
            "input": hex_of(pause_call()),
            **{
                name: hex(number)
                for name, number in (("nonce", nonce), ("chainId", chain_id), ("gas", 200_000))
            },
            "maxFeePerGas": hex(100 * 10**9),
            "maxPriorityFeePerGas": hex(10**9),
            "type": "0x2",
            **{name: hex(getattr(signed, name)) for name in ("v", "r", "s")},
        }
        pending = _pending(json.dumps(told).encode(), "liar")
        assert pending.proof is not None
        async with asyncio.TaskGroup() as group:
            await line.engine.reflexes._saw(pending, group)
        assert stopped(line) == ("pending" if shown == "waiting" else None)


async def test_a_pending_pause_is_judged_by_the_newest_block(lab: Lab, tmp_path: Path) -> None:
    """The line is a block behind, at which the Safe could not yet have sent it: it closes the gate nevertheless."""
    async with open_line(lab, tmp_path) as line, reacting(line):
        await line.step()
        harmless = PAUSE.function("setGuardian").encode(WHO, True)
        await execute(lab.node, lab.world.safe, InnerCall(line.rig.pause_guard, harmless))
        await lab.node.mine_on_demand()
        await line.pend(await safe_tx(lab, line, batched=False))
        await until(lambda: stopped(line) == "pending", "the gate to close")


async def test_a_pending_pause_of_one_protocol_stops_that_one(lab: Lab, tmp_path: Path) -> None:
    """Only its own flights are taken back, and the other protocol goes on."""
    await borrow(lab, markets=("3.0", "3.6"))
    async with open_line(lab, tmp_path) as line, reacting(line):
        await fallen(line, lab)
        assert len((await line.step()).sent) == 4
        guardian = lab.world.cast.guardians[0].address
        call = pause_call(scope_of(PROTOCOL))
        await line.pend(Tx(guardian, line.rig.pause_guard, call, gas=200_000))
        await until(lambda: stopped(line) == "pending", "the gate to close")
        assert stopped(line, "aave-3-6") is None
        await until(lambda: len(line.booked("sent")) == 6, "the cancellations")
        cancelled = [each.protocol for each in line.booked("signed") if each.body["purpose"] == "cancel"]
        assert cancelled == [PROTOCOL] * 2


# --- in the middle of a step ---


async def test_nothing_is_signed_after_the_gate_closed_in_the_middle_of_a_step(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the node runs the trial a pause is seen: what was tried is not cleared."""
    await borrow(lab)
    async with open_line(lab, tmp_path) as line:
        await fallen(line, lab)
        attempt = line.engine.attempt

        async def meanwhile(*arguments: object) -> list[Trial | Refusal]:
            trials = await attempt(*arguments)  # type: ignore[arg-type]
            assert any(isinstance(trial, Trial) for trial in trials)
            line.engine.reflexes.gate.see_pending(GLOBAL_SCOPE, _NO_INCIDENT, line.head.number)
            return trials

        monkeypatch.setattr(line.engine, "attempt", meanwhile)
        report = await line.step()
        assert not report.sent and not line.booked("intent", "signed")
        assert line.refusals(report, WHO) == [("clear", "paused")]


async def test_the_sender_asks_the_gate_again(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was cleared a moment before the gate closed is not signed, and the refusal is booked."""
    await borrow(lab)
    async with open_line(lab, tmp_path) as line:
        await fallen(line, lab)
        sender = line.engine._sender
        assert sender is not None
        send = sender.send

        async def late(cleared: Sequence[Cleared], standing: Standing) -> list[Submission | Refusal]:
            line.engine.reflexes.gate.see_pending(GLOBAL_SCOPE, _NO_INCIDENT, line.head.number)
            return await send(cleared, standing)

        monkeypatch.setattr(sender, "send", late)
        report = await line.step()
        assert not report.sent and not line.booked("signed") and not line.store.open_transactions()
        assert line.refusals(report, WHO) == [("clear", "paused")]


# --- the halt file ---


async def test_a_halt_file_closes_between_heads(lab: Lab, tmp_path: Path) -> None:
    """Within a fraction of a second, and what is in flight is taken back; once it is gone, the next head goes on."""
    await borrow(lab)
    async with open_line(lab, tmp_path) as line, reacting(line):
        await fallen(line, lab)
        assert len((await line.step()).sent) == 2
        halt = line.rig.folder / "keeper.halt"
        halt.touch()
        await until(lambda: len(line.booked("sent")) == 4, "the cancellations")
        assert [to for to, _ in await in_pool(lab)] == [lab.world.cast.operator.address] * 2
        halt.unlink()
        await until(lambda: len(line.booked("resume")) == 1, "the end to be booked")
        await lab.node.mine()
        report = await line.step()
        assert len(report.settled) == 2 and len(report.sent) == 2


# --- unpausing, and reorganisations ---


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_an_unpause_waits_until_it_is_final(lab: Lab, tmp_path: Path, restarted: bool) -> None:
    """It counts when as many blocks are on top of it as configured, also for a keeper started anew at each."""
    await borrow(lab)
    rig = await make_rig(lab, tmp_path, Terms(unpause_confirmations=4))
    async with AsyncExitStack() as running:
        line = await running.enter_async_context(open_again(lab, rig))
        await fallen(line, lab)
        guardian = lab.world.cast.guardians[0].address
        await lab.node.mine_each_transaction()
        await line.guard().send(guardian, "pause", GLOBAL_SCOPE, _DRILL, _NO_INCIDENT)
        await line.step()
        assert stopped(line) == "chain"
        await unpaused(lab, line)
        for on_top in range(4):
            if restarted:
                await running.aclose()
                line = await running.enter_async_context(open_again(lab, rig))
            report = await line.step()
            assert line.refusals(report, WHO) == [("clear", "unpause_not_final")], f"{on_top} on top"
            await lab.node.mine()
        assert len((await line.step()).sent) == 2


async def test_a_fresh_record_waits_for_finality_too(lab: Lab, tmp_path: Path) -> None:
    """Who never saw the pause does not trust a young unpause either, and trusts an old one at once."""
    await borrow(lab)
    rig = await make_rig(lab, tmp_path, Terms(unpause_confirmations=3))
    guard = Contract(lab.node, rig.pause_guard, PAUSE)
    await guard.send(lab.world.cast.guardians[0].address, "pause", GLOBAL_SCOPE, _DRILL, _NO_INCIDENT)
    schedule = PAUSE.function("scheduleUnpause").encode(GLOBAL_SCOPE)
    await execute(lab.node, lab.world.safe, InnerCall(rig.pause_guard, schedule))
    await lab.node.advance(10)
    await guard.send(lab.world.cast.liquidator.address, "executeUnpause", GLOBAL_SCOPE)
    async with open_again(lab, rig) as line:
        await line.step()
        assert stopped(line) == "chain"
        await lab.node.mine(3)
        await line.step()
        assert stopped(line) is None


def _raw_pause(
    line: Line, who: Actor, nonce: int, chain_id: int, call: bytes = b"", tip: int = 10**9
) -> SignedTransaction:
    """A guardian's own transaction, or what somebody else calls, really signed."""
    signed: SignedTransaction = Account.from_key(who.key).sign_transaction(
        {
            "type": 2,
            "chainId": chain_id,
            "nonce": nonce,
            "to": line.rig.pause_guard,
            "value": 0,
            "data": call or pause_call(),
            "gas": 200_000,
            "maxFeePerGas": 100 * 10**9,
            "maxPriorityFeePerGas": tip,
        }
    )
    return signed


async def _paused_by_raw(lab: Lab, line: Line, guardian: Actor) -> None:
    """A guardian's own transaction in the pool, so that it can be sent again."""
    nonce = int(
        await lab.node.rpc.request("eth_getTransactionCount", "0x" + guardian.address.hex(), "latest"), 16
    )
    signed = _raw_pause(line, guardian, nonce, lab.world.chain_id)
    await lab.node.rpc.request("eth_sendRawTransaction", "0x" + signed.raw_transaction.hex())


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_a_reorg_that_erases_a_pause_does_not_open_the_gate(
    fresh_lab: OpenLab, tmp_path: Path, restarted: bool
) -> None:
    """The keeper stays stopped, broadcasts the guardian's transaction again, and goes on only after an unpause."""
    lab = await fresh_lab(clock="steady")
    await borrow(lab)
    rig = await make_rig(lab, tmp_path, Terms(max_head_age_s=3_600))
    async with open_again(lab, rig) as line:
        await fallen(line, lab)
        await _paused_by_raw(lab, line, lab.world.cast.guardians[0])
        await lab.node.mine()
        await line.step()
        assert stopped(line) == "chain"
        if not restarted:
            await _erased(lab, line)
    if restarted:
        async with open_again(lab, rig) as line:
            await _erased(lab, line)


async def _erased(lab: Lab, line: Line) -> None:
    await lab.node.rpc.request("anvil_reorg", 1, [])
    await lab.node.drop_pending()
    await lab.node.mine()
    report = await line.step()
    assert not report.sent and line.refusals(report, WHO) == [("clear", "paused")]
    assert {"lost"} <= {str(each.body["cause"]) for each in line.booked("pause")}
    await lab.node.mine()
    report = await line.step()
    assert not report.sent and stopped(line) == "chain", "on the chain again, by what was broadcast"
    await unpaused(lab, line)
    assert len((await line.step()).sent) == 2


async def test_repeated_pauses_do_not_swell_the_record(lab: Lab, tmp_path: Path) -> None:
    """Anybody may repeat a guardian's signed words: of each pause a few transactions are kept, the first among them."""
    stranger = lab.world.cast.liquidator
    async with open_line(lab, tmp_path) as line:
        await line.step()
        guardian, chain_id = lab.world.cast.guardians[0], lab.world.chain_id
        for _ in range(2):
            await lab.node.mine_on_demand()
            await _paused_by_raw(lab, line, guardian)
            call = signed_pause(line, guardian, issued_at_s=line.head.timestamp_s + 5).calldata
            first = await line.parts.chain.nonce(stranger.address)
            for nonce in range(first, first + 20):
                raw = _raw_pause(line, stranger, nonce, chain_id, call, tip=1).raw_transaction
                await lab.node.rpc.request("eth_sendRawTransaction", hex_of(raw))
            await lab.node.mine()
            before = len(line.booked("pause"))
            await line.step()
            assert stopped(line) == "chain" and len(line.booked("pause")) - before <= 5
            [sent] = await line.parts.chain.sent_in(guardian.address, line.head.number)
            kept = line.engine.reflexes.gate.carriers[GLOBAL_SCOPE]
            assert sent.raw in kept and len(kept) == 4
            await unpaused(lab, line)
            await line.step()


async def test_a_person_clears_a_pause_that_is_lost(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """Where nothing can be broadcast the keeper stays stopped over restarts, until a person clears it."""
    lab = await fresh_lab(clock="steady")
    await borrow(lab)
    rig = await make_rig(lab, tmp_path, Terms(max_head_age_s=3_600))
    async with open_again(lab, rig) as line:
        await fallen(line, lab)
        await lab.node.mine_each_transaction()
        guardian = lab.world.cast.guardians[0].address
        await line.guard().send(
            guardian, "pause", GLOBAL_SCOPE, _DRILL, _NO_INCIDENT
        )  # unsigned: impersonated
        await line.step()
        await lab.node.rpc.request("anvil_reorg", 1, [])
        await lab.node.mine_on_demand()
        await lab.node.drop_pending()
        await lab.node.mine()
        await line.step()
        assert line.engine.reflexes.gate.closed("lost") == [GLOBAL_SCOPE]
    async with open_again(lab, rig) as line:
        report = await line.step()
        assert not report.sent and line.refusals(report, WHO) == [("clear", "paused")]
    [lost] = breakers.listed(rig.config)["breakers"]
    assert (lost["breaker"], lost["protocol"]) == ("pause_lost", None) and "by a person" in lost["clears"]
    assert breakers.cleared(rig.config, "pause_lost", "somebody looked")["cleared"] == [lost]
    with pytest.raises(LedgerError, match="pause_lost is not tripped"):
        breakers.cleared(rig.config, "pause_lost", "once more")
    async with open_again(lab, rig) as line:
        assert len((await line.step()).sent) == 2


# --- a guardian's signed message ---


async def test_a_signed_message_closes_at_once_and_is_relayed(lab: Lab, tmp_path: Path) -> None:
    """Handed over at the door it closes the gate before anything is mined, and the operator pays for its relay."""
    await borrow(lab)
    async with open_line(lab, tmp_path) as line, reacting(line):
        record = line.rig.folder / "keeper.db"
        assert door_of(record).stat().st_mode & 0o777 == 0o600
        await fallen(line, lab)
        assert len((await line.step()).sent) == 2
        guardian = lab.world.cast.guardians[1]
        answer = await hand_over(record, signed_pause(line, guardian))
        assert answer["ok"] is True
        assert stopped(line) == "signed"
        await until(lambda: len(line.booked("sent")) == 5, "two cancellations and a relay")
        operator = lab.world.cast.operator.address
        assert [to for to, _ in await in_pool(lab)] == [operator, operator, line.rig.pause_guard]
        await lab.node.mine()
        report = await line.step()
        assert stopped(line) == "chain" and not report.sent
        [relayed] = line.booked("relayed")
        assert relayed.body["status"] == 1 and int(relayed.body["gas_cost_wei"]) > 0
        assert not line.store.open_transactions()
        await unpaused(lab, line)
        assert len((await line.step()).sent) == 2
        await lab.node.mine()
        assert len((await line.step()).settled) == 2
        with pytest.raises(ExecutionError, match="signature_expired"):
            await hand_over(record, signed_pause(line, guardian, issued_at_s=int(relayed.at_s) - 5))
        verdict = await judge(line.rig.config)
        assert verdict.ok, str(verdict)


async def test_a_guardians_file_is_handed_over(lab: Lab, tmp_path: Path) -> None:
    """`keeper pause guardian --hand-over FILE` closes the gate of the daemon that runs here; others are refused."""
    async with open_line(lab, tmp_path) as line, reacting(line):
        await line.step()
        file = tmp_path / "all.pause.json"
        file.write_text("{}")
        with pytest.raises(ExecutionError, match=r"all\.pause\.json is not a signed pause"):
            await guardians.hand_over(line.rig.config, file)
        assert stopped(line) is None
        file.write_text(signed_pause(line, lab.world.cast.guardians[0]).text())
        answer = await guardians.hand_over(line.rig.config, file)
        assert stopped(line) == "signed" and answer["what"].startswith("Stopped everything")


async def test_where_the_door_cannot_be_opened_every_other_way_is(lab: Lab, tmp_path: Path) -> None:
    """Something that is no socket stands in its place: that is said once, and a pending pause still closes the gate."""
    async with open_line(lab, tmp_path) as line:
        await line.step()
        door_of(line.rig.folder / "keeper.db").mkdir()
        async with reacting(line):
            await until(lambda: bool(line.booked("warning")), "the warning")
            await lab.node.mine_on_demand()
            guardian = lab.world.cast.guardians[0].address
            await line.pend(Tx(guardian, line.rig.pause_guard, pause_call(), gas=200_000))
            await until(lambda: stopped(line) == "pending", "the gate to close")


async def test_a_relay_waits_for_its_signer(lab: Lab, tmp_path: Path) -> None:
    """The key's holder is away: the gate is closed, the nonce is free again, and the next head relays; once."""
    rig = await make_rig(lab, tmp_path, Terms())
    async with kept(lab, rig, "web3signer") as custody, open_again(lab, rig) as line:
        assert custody.double is not None
        await line.step()
        await lab.node.mine_on_demand()
        custody.double.manners = "absent"
        message = signed_pause(line, lab.world.cast.guardians[0])
        for _ in range(2):
            await told(line, message)
        assert stopped(line) == "signed" and not line.store.open_transactions()
        assert len(line.booked("intent")) == 2 and not line.booked("signed")
        custody.double.manners = "honest"
        relayed = line.engine.reflexes
        await asyncio.gather(relayed.tell(message), relayed.tell(message))
        assert [entry.body["nonce"] for entry in line.booked("signed")] == [0]
        await lab.node.mine()
        await line.step()
        assert stopped(line) == "chain" and [each.body["status"] for each in line.booked("relayed")] == [1]


async def test_a_relayed_pause_that_a_reorg_erases_is_relayed_again(
    fresh_lab: OpenLab, tmp_path: Path
) -> None:
    """The operator's own transaction was orphaned: it is in flight again, made dearer, and the pause comes back."""
    lab = await fresh_lab(clock="steady")
    rig = await make_rig(lab, tmp_path, Terms(max_head_age_s=3_600))
    async with open_again(lab, rig) as line:
        await line.step()
        await lab.node.mine_on_demand()
        await told(line, signed_pause(line, lab.world.cast.guardians[0]))
        await lab.node.mine()
        await line.step()
        assert stopped(line) == "chain" and len(line.booked("relayed")) == 1
        await lab.node.rpc.request("anvil_reorg", 1, [])
        await lab.node.drop_pending()
        await lab.node.mine()
        await line.step()
        assert line.engine.reflexes.gate.closed("lost") == [GLOBAL_SCOPE] and len(line.booked("reorged")) == 1
        for _ in range(2):
            await lab.node.mine()
            await line.step()
        assert stopped(line) == "chain" and not line.engine.reflexes.gate.closed("lost")
        assert len(line.booked("relayed")) == 2 and not line.store.open_transactions()


async def _paused_and_unpaused(lab: Lab, line: Line) -> None:
    """By others, between two heads of the keeper."""
    await lab.node.mine_each_transaction()
    guardian = lab.world.cast.guardians[1].address
    await line.guard().send(guardian, "pause", GLOBAL_SCOPE, _DRILL, _NO_INCIDENT)
    await unpaused(lab, line)


async def test_a_relay_that_nobody_wants_any_more_gives_its_nonce_back(lab: Lab, tmp_path: Path) -> None:
    """Nodes forgot it, and an unpause ended what it says: its nonce is taken back, and liquidations go on."""
    await borrow(lab)
    async with open_line(lab, tmp_path) as line:
        await fallen(line, lab)
        await told(line, signed_pause(line, lab.world.cast.guardians[0]))
        await lab.node.drop_pending()
        await _paused_and_unpaused(lab, line)
        for _ in range(4):
            await line.step()
            await lab.node.mine()
        await line.step()
        assert stopped(line) is None and not line.store.open_transactions()
        assert len(line.booked("cancelled")) == 1 and len(line.booked("settled")) == 2


async def test_a_relay_that_reverts_gives_up_no_later_words(lab: Lab, tmp_path: Path) -> None:
    """A guardian spoke again meanwhile: only what the reverted relay said is over, and the rest is relayed."""
    async with open_line(lab, tmp_path) as line:
        await line.step()
        await lab.node.mine_on_demand()
        guardian = lab.world.cast.guardians[0]
        await told(line, signed_pause(line, guardian))
        await lab.node.drop_pending()
        await _paused_and_unpaused(lab, line)
        line.head = await line.parts.chain.head()
        await told(line, signed_pause(line, guardian, issued_at_s=line.head.timestamp_s + 1))
        await lab.node.drop_pending()
        first = line.store.open_transactions()[0].attempts[0].raw
        await lab.node.rpc.request("eth_sendRawTransaction", hex_of(first))
        await lab.node.mine()
        await line.step()
        assert [each.body["status"] for each in line.booked("relayed")] == [0]
        assert stopped(line) == "signed" and not line.engine.reflexes.gate.closed("lost")
        for _ in range(2):
            await lab.node.mine()
            await line.step()
        assert stopped(line) == "chain" and not line.store.open_transactions()


async def test_words_to_a_former_guard_end_no_run(lab: Lab, tmp_path: Path) -> None:
    """PauseGuard was deployed anew since: they are not relayed there, and the keeper stays stopped for a person."""
    async with open_line(lab, tmp_path) as line:
        await line.step()
        message = replace(signed_pause(line, lab.world.cast.guardians[0]), pause_guard=WHO)
        line.engine.reflexes.gate.see_signed(message, Verdict(told=True, vetoes=False))
        line.engine.reflexes.book()
    for _ in range(2):
        async with open_again(lab, line.rig) as line:
            await lab.node.mine()
            await line.step()
            assert stopped(line) == "lost" and not line.store.open_transactions()


async def test_a_pause_that_could_not_be_booked_is_still_to_be(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record fails for a moment while a guardian's words are taken in: a restart knows them all the same."""
    async with open_line(lab, tmp_path) as line:
        await line.step()
        reflexes = line.engine.reflexes
        with monkeypatch.context() as patch:

            def full(*_: object) -> None:
                raise LedgerError("The disk is full.")

            patch.setattr(reflexes._ledger, "book", full)
            with pytest.raises(LedgerError):
                await reflexes.accept(signed_pause(line, lab.world.cast.guardians[0]))
        assert stopped(line) == "signed"
        reflexes.book()
    async with open_again(lab, line.rig) as line:
        assert stopped(line) == "signed"


async def test_a_signed_message_vetoes_a_scheduled_unpause(lab: Lab, tmp_path: Path) -> None:
    """Handed over while everything is paused and an unpause is scheduled, it is relayed, and the schedule is gone."""
    async with open_line(lab, tmp_path) as line:
        guardian = lab.world.cast.guardians[0]
        await line.guard().send(guardian.address, "pause", GLOBAL_SCOPE, _DRILL, _NO_INCIDENT)
        schedule = PAUSE.function("scheduleUnpause").encode(GLOBAL_SCOPE)
        await execute(lab.node, lab.world.safe, InnerCall(line.rig.pause_guard, schedule))
        await lab.node.mine_on_demand()
        await line.step()
        await told(line, signed_pause(line, guardian))
        await lab.node.drop_pending()
        await lab.node.mine()
        await line.step()
        assert (await line.guard().read("scopeState", GLOBAL_SCOPE))[3] > 0, "not mined, and not given up"
        await lab.node.mine()
        await line.step()
        assert (await line.guard().read("scopeState", GLOBAL_SCOPE))[3] == 0
        assert [entry.body["status"] for entry in line.booked("relayed")] == [1]
        assert stopped(line) == "chain" and not line.store.open_transactions()


async def test_the_relay_of_words_that_were_said_anew_does_not_hold_up_the_others(
    lab: Lab, tmp_path: Path
) -> None:
    """Nodes forgot it, and nobody offers it again: its nonce is taken back, so that what was said last arrives."""
    async with open_line(lab, tmp_path) as line:
        await line.step()
        await lab.node.mine_on_demand()
        await told(line, signed_pause(line, lab.world.cast.guardians[0]))
        await lab.node.drop_pending()
        await told(line, signed_pause(line, lab.world.cast.guardians[1]))
        for _ in range(4):
            await lab.node.mine()
            await line.step()
        assert stopped(line) == "chain" and not line.store.open_transactions()


async def test_a_relay_does_not_wait_for_nonces_that_plans_gave_back(lab: Lab, tmp_path: Path) -> None:
    """It came while plans were being signed, and stopped them: it is relayed once more, in the place of the first."""
    async with open_line(lab, tmp_path) as line:
        await line.step()
        await lab.node.mine_on_demand()
        sender = line.engine._sender
        assert sender is not None
        claimed = [sender._nonces.take() for _ in range(2)]
        await told(line, signed_pause(line, lab.world.cast.guardians[0]))
        sender._nonces.give_back(claimed)
        for _ in range(3):
            await lab.node.mine()
            await line.step()
        assert stopped(line) == "chain"
        assert line.booked("relayed")[0].body["status"] == 1


async def test_a_stuck_relay_is_made_dearer_until_the_chain_has_it(lab: Lab, tmp_path: Path) -> None:
    """The base fee rises past what it offers: each head signs it again under the same nonce, and a restart goes on."""
    async with open_line(lab, tmp_path) as line:
        await line.step()
        await lab.node.mine_on_demand()
        message = signed_pause(line, lab.world.cast.guardians[0])
        await told(line, message)
        await lab.node.drop_pending()
        await lab.node.set_base_fee(40 * 10**9)
        await lab.node.mine()
        await line.step()
    async with open_again(lab, line.rig) as line:
        assert stopped(line) == "signed", "on record"
        await lab.node.mine()
        await line.step()
        await lab.node.mine()
        await line.step()
        assert stopped(line) == "chain"
        [relayed] = line.booked("relayed")
        signed = line.booked("signed")
        assert len({entry.body["nonce"] for entry in signed}) == 1 and len(signed) >= 2
        assert relayed.body["status"] == 1


@pytest.mark.parametrize(
    "wrong", ["stranger", "altered", "future", "another guard", "another scope", "nonsense"]
)
async def test_a_message_that_the_contract_would_refuse_is_refused(
    lab: Lab, tmp_path: Path, wrong: str
) -> None:
    """The daemon answers why, goes on, and closes nothing."""
    async with open_line(lab, tmp_path) as line, reacting(line):
        await line.step()
        record = line.rig.folder / "keeper.db"
        guardian = lab.world.cast.guardians[0]
        good = signed_pause(line, guardian)
        message, why = {
            "stranger": (signed_pause(line, lab.world.cast.liquidator), "not_a_guardian"),
            "altered": (
                SignedPause(
                    good.pause_guard,
                    good.scope,
                    b"LEGAL\0\0\0",
                    good.incident,
                    good.issued_at_s,
                    good.signature,
                ),
                "not_a_guardian",
            ),
            "future": (
                signed_pause(line, guardian, issued_at_s=line.head.timestamp_s + 60),
                "signature_from_future",
            ),
            "another guard": (
                SignedPause(WHO, good.scope, good.reason, good.incident, good.issued_at_s, good.signature),
                "not_ours",
            ),
            "another scope": (signed_pause(line, guardian, scope_of("morpho")), "not_ours"),
            "nonsense": (
                SignedPause(
                    good.pause_guard, good.scope, good.reason, good.incident, good.issued_at_s, bytes(65)
                ),
                "bad_signature",
            ),
        }[wrong]
        with pytest.raises(ExecutionError, match=why):
            await hand_over(record, message)
        assert stopped(line) is None and not line.booked("pause", "intent")


async def test_without_a_daemon_nobody_answers(tmp_path: Path) -> None:
    """The guardian is told to use another way."""
    message = SignedPause(WHO, GLOBAL_SCOPE, _DRILL, _NO_INCIDENT, 1, bytes(65))
    with pytest.raises(ConfigError, match="No daemon answers"):
        await hand_over(tmp_path / "keeper.db", message)


# --- beginning again ---


async def test_after_a_pause_one_canary_goes_first_and_then_a_ramp(lab: Lab, tmp_path: Path) -> None:
    """One small liquidation alone; each that pays doubles the cap, over a restart too; before a pause there is none."""
    await borrow(lab, weth=40)
    terms = Terms(canary_usd="1000")
    async with open_line(lab, tmp_path, terms) as line:
        await lab.node.mine_each_transaction()
        guardian = lab.world.cast.guardians[0].address
        await line.guard().send(guardian, "pause", GLOBAL_SCOPE, _DRILL, _NO_INCIDENT)
        await fallen(line, lab)
        await line.step()
        await unpaused(lab, line)
        report = await line.step()
        [canary] = report.sent
        waits = [each.reason for _, who, each in report.refused if who in (WHO, OTHER)]
        assert waits == ["awaits_canary"]
        [intent] = line.booked("intent")
        assert intent.body["canary"] is True and int(intent.body["resume_cap_usd_e8"]) == 1_000 * _E8
        assert int(intent.body["repay_usd_e8"]) <= 1_000 * _E8
        await line.step()
        assert len(line.booked("intent")) == 1, "it is in flight: nothing else goes"
        await lab.node.mine()
        assert len((await line.step()).sent) == 2
        caps = [int(each.body["resume_cap_usd_e8"]) for each in line.booked("intent")]
        assert caps == [1_000 * _E8, 2_000 * _E8, 2_000 * _E8]
        await lab.node.mine()
    async with open_again(lab, line.rig) as line:
        assert len((await line.step()).sent) == 2
        caps = [int(each.body["resume_cap_usd_e8"]) for each in line.booked("intent")]
        assert caps[3:] == [8_000 * _E8] * 2
        assert canary.plan_id


async def test_a_first_start_has_no_ramp(lab: Lab, tmp_path: Path) -> None:
    """Nothing was ever paused as far as the record knows: the limits alone hold."""
    await borrow(lab)
    async with open_line(lab, tmp_path, Terms(canary_usd="1000")) as line:
        await fallen(line, lab)
        assert len((await line.step()).sent) == 2
        assert all("canary" not in entry.body for entry in line.booked("intent"))
