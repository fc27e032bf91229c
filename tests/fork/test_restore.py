"""A stale backup becomes the record again: the chain says what it lacks, before anything is sent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from keeper import assembly
from keeper.abi import checksum
from keeper.errors import ChainError, LedgerError
from keeper.fixed import WAD
from keeper.keys import OperatorKey, calldata_of
from keeper.lab.actors import account
from keeper.lab.anvil import Anvil
from keeper.lab.artifacts import chainlink
from keeper.lab.chainlink import set_price
from keeper.lab.judge import judge
from keeper.lab.node import Contract, Node, Tx
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.rig import Rig, make_rig
from keeper.lab.tokens import balance_of
from keeper.lab.world import Lab, prepare
from keeper.ledger import Booked, Ledger, copies
from keeper.store import Store
from keeper.types import Hash, Wei
from tests.conftest import OpenLab
from tests.e2e.line import Line, open_again, open_line
from tests.e2e.process import daemon, keeper, until

ETHER = 10**18
_E8 = 10**8
_LONG_AGO_S = 121  # so that nothing that was signed before can be mined any more
_OUTCOMES = ("settled", "reverted", "cancelled")
WHO, OTHER, THIRD = account(1), account(2), account(3)


async def _open(lab: Lab) -> None:
    """Three accounts on one market that fall below 1 one after the other: at 1 818, 1 666 and 1 538 dollars."""
    healths = ((WHO, 110), (OTHER, 120), (THIRD, 130))
    specs = [PositionSpec(who, {"WETH": 10 * ETHER}, {"USDC": 1}, hf * WAD // 100) for who, hf in healths]
    await open_positions(lab.node, lab.world.cast, lab.world.aave["3.0"], specs)


async def _price(lab: Lab, dollars: int) -> None:
    await set_price(lab.node, lab.world.feeds["WETH"], dollars * _E8)


def _back_up(line: Line, target: Path, ago_s: int = _LONG_AGO_S) -> None:
    copies.back_up(line.store.path, target, line.head.timestamp_s - ago_s)


async def _restore(lab: Lab, rig: Rig, backup: Path, ago_s: int = _LONG_AGO_S) -> None:
    """The record is lost, the backup takes its place."""
    (rig.folder / "keeper.db").rename(rig.folder / "lost.db")
    head = await lab.node.head()
    copies.restore(backup, rig.folder / "keeper.db", lab.world.chain_id, head.timestamp_s - ago_s)


async def _send(line: Line, lab: Lab) -> list[Hash]:
    """Handle heads until what is sent is settled; nothing is mined by the way."""
    await lab.node.mine_on_demand()
    reports = await line.steps()
    await lab.node.mine_each_transaction()
    return [sent.transaction_hash for report in reports for sent in report.sent]


async def _revert(line: Line, lab: Lab) -> None:
    """The price recovers in the block of inclusion, before the keeper's transactions."""
    await lab.node.mine_on_demand()
    assert (await line.step()).sent
    feed = lab.world.feeds["WETH"]
    aggregator = Contract(lab.node, feed.aggregator, chainlink("FluxAggregator").abi)
    round_id = int(await aggregator.read("latestRound")) + 1
    await line.pend(aggregator.tx(feed.reporter, "submit", round_id, 2_000 * _E8, gas=400_000))
    await lab.node.mine()
    await lab.node.mine_each_transaction()
    assert {settlement.status for settlement in (await line.step()).settled} == {0}


async def _cancel(line: Line, lab: Lab) -> None:
    """What is in flight is lost by the node, expires, and its nonce is taken back; nothing is planned anew."""
    await lab.node.drop_pending()
    halt = line.rig.folder / "keeper.halt"
    halt.touch()
    for blocks in (39, 1, 1):
        await lab.node.mine(blocks)
        await line.step()
    halt.unlink()
    assert line.booked("cancelled")


def _key_facts(entries: list[Booked]) -> list[tuple[Any, ...]]:
    """What the chain knows of outcomes: everything but when they were booked."""
    names = ("tx", "status", "block", "block_hash", "gas_used", "gas_cost_wei", "profit_token", "profit_raw")
    return sorted((entry.kind, *(entry.body.get(name) for name in names)) for entry in entries)


def _lost(rig: Rig, *kinds: str) -> list[Booked]:
    return _booked(rig.folder, *kinds, name="lost.db")


def _booked(folder: Path, *kinds: str, name: str = "keeper.db") -> list[Booked]:
    with Store.open_file(folder / name, read_only=True) as store:
        return Ledger(store).entries(None, kind=kinds)


async def _fall(lab: Lab, dollars: int) -> None:
    """Let WETH fall in a block of its own, while blocks come every second."""
    await lab.node.mine_each_transaction()
    await _price(lab, dollars)
    await lab.node.mine_every(1)


async def _adds_up(line: Line, lab: Lab, rig: Rig, before_raw: int) -> None:
    """The restored ledger is whole, says what the lost one said, and sums to what the treasury gained."""
    profit = lab.world.tokens["USDC"].address
    assert _key_facts(line.booked(*_OUTCOMES)) == _key_facts(_lost(rig, *_OUTCOMES))
    assert line.ledger.gross_profit_raw(profit) == await line.treasury_raw() - before_raw
    assert line.ledger.verify() is None and line.store.copied_at_s() is None
    assert not line.store.open_transactions()


async def test_a_stale_backup_learns_what_happened_since(lab: Lab, tmp_path: Path) -> None:
    """Liquidations, a revert, a cancellation and a stranger's use of the key are found and booked, each once."""
    await _open(lab)
    node, operator, backup = lab.node, lab.world.cast.operator.address, tmp_path / "backup.db"
    async with open_line(lab, tmp_path / "keeper") as line:
        rig, before_raw = line.rig, await line.treasury_raw()
        await line.step()
        _back_up(line, backup)
        await _price(lab, 1_750)
        await _revert(line, lab)
        await _price(lab, 1_750)
        assert await _send(line, lab)
        await _price(lab, 1_600)
        await node.mine_on_demand()
        assert (await line.step()).sent
        await _cancel(line, lab)
        assert await _send(line, lab)
        await node.send(Tx(operator, account(9), value_wei=1, gas=21_000))  # by hand, with the keeper's key
    await _restore(lab, rig, backup)
    used = await lab.node.rpc.request("eth_getTransactionCount", "0x" + operator.hex(), "latest")
    async with open_again(lab, rig) as line:
        attempts = [attempt for one in line.store.open_transactions() for attempt in one.attempts]
        assert attempts and all(attempt.sent_at_s is not None for attempt in attempts)
        assert not (await line.step()).sent
        await _adds_up(line, lab, rig, before_raw)
        [foreign] = line.booked("recovered")
        assert (foreign.body["status"], foreign.body["value_wei"], foreign.body["gas_used"]) == (1, 1, 21_000)
        lost_gas_wei = sum(int(entry.body["gas_cost_wei"]) for entry in _lost(rig, *_OUTCOMES))
        assert line.ledger.gas_spent_wei(0) == lost_gas_wei + int(foreign.body["gas_cost_wei"])
        [done] = line.booked("reconciled")
        assert done.body["recovered"] == int(used, 16)
        assert done.body["nonces"] == {checksum(operator): int(used, 16)}
        accounts = {entry.account for entry in line.booked("settled")}
        assert accounts == {entry.account for entry in _lost(rig, "settled")} and len(accounts) == 2
        await _price(lab, 1_500)
        sent = [sent for report in await line.steps() for sent in report.sent]
        assert sent and {one.nonce for one in sent} == set(range(int(used, 16), int(used, 16) + len(sent)))
        assert not line.booked("dropped")
    verdict = await judge(rig.config)
    assert not verdict.differences


async def test_signed_bytes_are_found_as_they_were_signed(lab: Lab, tmp_path: Path) -> None:
    """What a block tells of a transaction makes its bytes again; where it does not have their hash there are none."""
    await _open(lab)
    node, operator = lab.node, lab.world.cast.operator.address
    async with open_line(lab, tmp_path / "keeper") as line:
        await line.step()
        await _price(lab, 1_750)
        [sent] = (await line.step()).sent
        [found] = await line.parts.chain.sent_in(operator, (await node.head()).number)
        assert (found.hash, found.raw, found.nonce) == (sent.transaction_hash, sent.raw, sent.nonce)
        assert (found.to, found.data) == (line.rig.liquidator, calldata_of(sent.raw))
        await node.send(Tx(operator, account(9), value_wei=1, gas=21_000))  # whose signature the node made up
        [other] = await line.parts.chain.sent_in(operator, (await node.head()).number)
        assert (other.raw, other.to, other.value_wei) == (b"", account(9), 1)
        assert await line.parts.chain.sent_in(account(8), (await node.head()).number) == []
        with pytest.raises(ChainError, match="does not know block"):
            await line.parts.chain.sent_in(operator, 10**6)


async def test_what_the_backup_saw_in_flight_is_found_whatever_became_of_it(lab: Lab, tmp_path: Path) -> None:
    """A transaction it knows as signed was taken back since: the unknown cancellation settles that plan."""
    await _open(lab)
    backup = tmp_path / "backup.db"
    async with open_line(lab, tmp_path / "keeper") as line:
        rig, before_raw = line.rig, await line.treasury_raw()
        await line.step()
        await _price(lab, 1_750)
        await lab.node.mine_on_demand()
        [sent] = (await line.step()).sent
        _back_up(line, backup)
        await _cancel(line, lab)
        await lab.node.mine_each_transaction()
    await _restore(lab, rig, backup)
    async with open_again(lab, rig) as line:
        assert [one.plan_id for one in line.store.open_transactions()] == [sent.plan_id]
        await _send(line, lab)
        [cancelled] = line.booked("cancelled")
        assert cancelled.plan_id == "0x" + sent.plan_id.hex()
        assert [entry.body["nonce"] for entry in line.booked("intent")] == [sent.nonce, sent.nonce + 1]
        profit = lab.world.tokens["USDC"].address
        assert line.ledger.gross_profit_raw(profit) == await line.treasury_raw() - before_raw > 0
        assert not line.booked("dropped")
    assert not (await judge(rig.config)).differences


async def test_what_the_backup_saw_in_flight_may_have_been_mined(lab: Lab, tmp_path: Path) -> None:
    """A transaction it knows as signed was mined as it was: nothing is missing, and it is settled as ever."""
    await _open(lab)
    backup = tmp_path / "backup.db"
    async with open_line(lab, tmp_path / "keeper") as line:
        rig, before_raw = line.rig, await line.treasury_raw()
        await line.step()
        await _price(lab, 1_750)
        await lab.node.mine_on_demand()
        assert (await line.step()).sent
        _back_up(line, backup)
        await lab.node.mine()
        await line.step()
    await _restore(lab, rig, backup)
    async with open_again(lab, rig) as line:
        [done] = line.booked("reconciled")
        assert done.body["recovered"] == 0
        await line.step()
        await _adds_up(line, lab, rig, before_raw)
        assert "expected_profit_raw" in line.booked("settled")[0].body


async def test_a_plan_that_was_only_reserved_may_have_been_executed(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup made between a nonce's reservation and its signature learns that the plan was carried out."""
    await _open(lab)
    backup = tmp_path / "backup.db"
    sign = OperatorKey.sign
    async with open_line(lab, tmp_path / "keeper") as line:
        rig, before_raw = line.rig, await line.treasury_raw()
        await line.step()

        def back_up_and_sign(key: OperatorKey, *arguments: Any) -> Any:
            if not backup.exists():
                _back_up(line, backup)
            return sign(key, *arguments)

        monkeypatch.setattr(OperatorKey, "sign", back_up_and_sign)
        await _price(lab, 1_750)
        assert await _send(line, lab)
    monkeypatch.undo()
    await _restore(lab, rig, backup)
    async with open_again(lab, rig) as line:
        await line.step()
        await _adds_up(line, lab, rig, before_raw)
        [settled] = line.booked("settled")
        assert "expected_profit_raw" in settled.body, "its intent is on record, and with it what was expected"
        kinds = [entry.kind for entry in line.booked("intent", "signed", "settled")]
        assert kinds == ["intent", "signed", "settled"]


async def _refused(lab: Lab, rig: Rig, reason: str, words: str) -> Booked:
    """The keeper does not start, says why in one sentence, books it, and still knows that it must not send."""
    with pytest.raises(LedgerError, match=words) as caught:
        async with open_again(lab, rig):
            pass
    assert "\n" not in str(caught.value) and str(caught.value).startswith("Nothing is sent until")
    with Store.open_file(rig.folder / "keeper.db", read_only=True) as store:
        assert store.copied_at_s() is not None
        [entry] = Ledger(store).entries(1)
    assert (entry.kind, entry.body["stage"], entry.body["reason"]) == ("refusal", "reconcile", reason)
    return entry


async def test_nothing_is_sent_while_something_unknown_may_be_mined(lab: Lab, tmp_path: Path) -> None:
    """Refused while an unknown transaction waits in the pool, and until what was signed before has expired."""
    await _open(lab)
    backup = tmp_path / "backup.db"
    async with open_line(lab, tmp_path / "keeper") as line:
        rig, before_raw = line.rig, await line.treasury_raw()
        await line.step()
        _back_up(line, backup)
        await _price(lab, 1_750)
        await lab.node.mine_on_demand()
        [sent] = (await line.step()).sent
    await _restore(lab, rig, backup, ago_s=0)
    left = await _refused(lab, rig, "too_soon", "start again in 120 s")
    assert left.body["numbers"] == {"left_s": 120}
    (rig.folder / "lost.db").unlink()
    await _restore(lab, rig, backup)
    waiting = await _refused(lab, rig, "in_pool", "wait to be mined")
    assert waiting.body["numbers"] == {"nonces": [sent.nonce]}
    await lab.node.mine()
    async with open_again(lab, rig) as line:
        report = await line.step()
        assert not report.sent and [one.plan_id for one in report.settled] == [sent.plan_id]
        profit = lab.world.tokens["USDC"].address
        assert line.ledger.gross_profit_raw(profit) == await line.treasury_raw() - before_raw > 0


async def test_the_block_a_backup_ends_with_may_be_orphaned(lab: Lab, tmp_path: Path) -> None:
    """What was sent on the other branch, in blocks below the one the backup knew last, is found all the same."""
    await _open(lab)
    await lab.node.mine(70)
    backup = tmp_path / "backup.db"
    async with open_line(lab, tmp_path / "keeper") as line:
        rig, before_raw = line.rig, await line.treasury_raw()
        fork = await lab.node.snapshot()
        await lab.node.mine(9)
        await line.step()
        _back_up(line, backup)
        await lab.node.revert(fork)
        await line.step()
        await _price(lab, 1_750)
        await _revert(line, lab)
        await _price(lab, 1_750)
        assert await _send(line, lab)
    with Store.open_file(backup, read_only=True) as copy:
        cursor = copy.newest_cursor()
    await lab.node.mine(9)
    assert cursor is not None and cursor.number < (await lab.node.head()).number
    assert all(entry.body["block"] <= cursor.number for entry in _booked(rig.folder, *_OUTCOMES))
    await _restore(lab, rig, backup)
    async with open_again(lab, rig) as line:
        await line.step()
        await _adds_up(line, lab, rig, before_raw)


async def test_what_waits_in_the_pool_must_be_what_is_on_record(lab: Lab, tmp_path: Path) -> None:
    """A known transaction may wait; another one at its nonce may not, for its outcome would be nobody's."""
    await _open(lab)
    backup = tmp_path / "backup.db"
    async with open_line(lab, tmp_path / "keeper") as line:
        rig = line.rig
        await line.step()
        await _price(lab, 1_750)
        await lab.node.mine_on_demand()
        [sent] = (await line.step()).sent
        _back_up(line, backup)
    await _restore(lab, rig, backup)
    async with open_again(lab, rig) as line:
        [done] = line.booked("reconciled")
        assert done.body["recovered"] == 0
    (rig.folder / "lost.db").unlink()
    await _restore(lab, rig, backup)
    await lab.node.drop_pending()
    key = assembly.operator_key(assembly.settings(rig.config))
    taken_back = await key.sign_cancel(sent.nonce, Wei(2 * sent.max_fee_wei), Wei(10**9))
    await lab.node.rpc.request("eth_sendRawTransaction", "0x" + taken_back.raw.hex())
    entry = await _refused(lab, rig, "in_pool", "does not know wait to be mined")
    assert entry.body["numbers"] == {"nonces": [sent.nonce]}
    await lab.node.mine()
    async with open_again(lab, rig) as line:
        await line.step()
        [cancelled] = line.booked("cancelled")
        assert cancelled.body["tx"] == "0x" + taken_back.hash.hex()


async def test_a_former_operator_is_looked_into_as_well(lab: Lab, tmp_path: Path) -> None:
    """What another key sent for this record before it was replaced is found, and stays its own."""
    await _open(lab)
    backup, people = tmp_path / "backup.db", lab.world.cast
    async with open_line(lab, tmp_path / "keeper") as line:
        rig = line.rig
        await line.step()
        await _price(lab, 1_750)
        assert await _send(line, lab)
        _back_up(line, backup)
        await _price(lab, 1_600)
        sent = await _send(line, lab)
    await _restore(lab, rig, backup)
    secrets = rig.folder / ".env"
    secrets.write_text(secrets.read_text().replace(people.operator.key.hex(), people.deployer.key.hex()))
    async with open_again(lab, rig) as line:
        [done] = line.booked("reconciled")
        assert set(done.body["nonces"]) == {
            checksum(each.address) for each in (people.operator, people.deployer)
        }
        found = [one for one in line.store.open_transactions() if one.sender == people.operator.address]
        assert [attempt.hash for one in found for attempt in one.attempts] == sent


async def test_a_copy_is_never_sent_from(lab: Lab, tmp_path: Path) -> None:
    """Whatever forgot to reconcile it, the sender itself takes over nothing from a copy."""
    async with open_line(lab, tmp_path / "keeper") as line:
        line.store.mark_copied(1)
        with pytest.raises(LedgerError, match="copy that was not reconciled"):
            await line.engine.start(line.head)


async def test_a_protocol_that_is_not_configured_any_more_is_asked_for(lab: Lab, tmp_path: Path) -> None:
    """A liquidation found on a protocol without an adapter is not half booked; with it back, it is."""
    await _open(lab)
    backup = tmp_path / "backup.db"
    async with open_line(lab, tmp_path / "keeper") as line:
        rig, before_raw = line.rig, await line.treasury_raw()
        await line.step()
        _back_up(line, backup)
        await _price(lab, 1_750)
        assert await _send(line, lab)
    await _restore(lab, rig, backup)
    whole = rig.config.read_text()
    rig.config.write_text(whole.replace('name = "aave-3-0"', 'name = "renamed"'))
    await _refused(lab, rig, "unknown_protocol", "aave-3-0, which the configuration does not name")
    rig.config.write_text(whole)
    async with open_again(lab, rig) as line:
        await line.step()
        await _adds_up(line, lab, rig, before_raw)


@asynccontextmanager
async def _forgetful_lab() -> AsyncIterator[Lab]:
    """A world on a node that keeps no state but the newest."""
    prepared = await prepare()
    anvil = Anvil.start(load_state=prepared.state, extra=("--prune-history",))
    try:
        async with await Node.open(anvil.url) as node:
            await node.steady_clock()
            yield Lab(anvil, node, prepared.world)
    finally:
        anvil.stop()


async def test_a_node_that_forgets_states_may_not_be_enough(tmp_path: Path) -> None:
    """Liquidations are found by their events all the same; a revert leaves none, and without history that is said."""
    async with _forgetful_lab() as lab:
        await _open(lab)
        early, late = tmp_path / "early.db", tmp_path / "late.db"
        async with open_line(lab, tmp_path / "keeper") as line:
            rig, before_raw = line.rig, await line.treasury_raw()
            await line.step()
            await _price(lab, 1_750)
            assert await _send(line, lab)
            _back_up(line, early)
            await _price(lab, 1_600)
            assert await _send(line, lab)
        await _restore(lab, rig, early)
        async with open_again(lab, rig) as line:
            await line.step()
            await _adds_up(line, lab, rig, before_raw)
            _back_up(line, late)
            await _price(lab, 1_500)
            await _revert(line, lab)
        (rig.folder / "lost.db").unlink()
        await _restore(lab, rig, late)
        entry = await _refused(lab, rig, "no_history", "put an archive node into chain.rpc_urls")
        assert set(entry.body["numbers"]) == {"block"}


async def test_a_killed_daemon_goes_on_from_a_backup(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """The whole drill as an operator does it: back up beside the daemon, lose the disk, restore, wait, go on."""
    lab = await fresh_lab()
    folder = tmp_path / "keeper"
    rig = await make_rig(lab, folder)
    await _open(lab)
    await lab.node.mine_every(1)
    before_raw = await balance_of(lab.node, lab.world.tokens["USDC"], lab.world.cast.treasury.address)

    async def settled(count: int) -> None:
        await until(lambda: len(_booked(folder, "settled")) >= count, f"{count} liquidations")

    async with daemon(folder) as one:
        made = await keeper(folder, "ledger", "backup", str(tmp_path / "backup.db"), "--json")
        assert made.code == 0 and one.running
        head = f"{made.document['size']}:{made.document['root']}"
        await _fall(lab, 1_600)
        await settled(2)
        await one.kill()
    for path in folder.glob("keeper.db*"):
        path.rename(folder / path.name.replace("keeper.db", "lost.db"))
    restored = await keeper(folder, "ledger", "restore", str(tmp_path / "backup.db"))
    assert restored.code == 0 and "asks the chain" in restored.out
    refused = await keeper(folder, "run")
    assert refused.code == 1 and re.search(r"start again in \d+ s\.$", refused.err.strip()), refused.err
    await lab.node.advance(_LONG_AGO_S)
    async with daemon(folder) as one:
        await settled(len(_lost(rig, "settled")))
        known = _key_facts(_booked(folder, *_OUTCOMES))
        assert all(fact in known for fact in _key_facts(_lost(rig, *_OUTCOMES)))
        await _fall(lab, 1_480)
        await settled(len(_lost(rig, "settled")) + 1)
        assert await one.stop() == 0
        ends = one.events("started", "stopped")
    decided = {entry.body["policy"] for entry in _booked(folder, "intent") if "recovered" not in entry.body}
    for started in _booked(folder, "started"):
        text = json.dumps(started.body["settings"], sort_keys=True, separators=(",", ":"))
        policy = "0x" + hashlib.sha256(text.encode()).hexdigest()
        assert policy == started.body["policy"] and decided == {policy}, "an intent's policy can be looked up"
    whole = await keeper(folder, "ledger", "verify", "--head", head, "--json")
    assert whole.code == 0 and whole.document["copied_at_s"] is None
    noted = f"{ends[-1]['entries']}:{ends[-1]['root']}"
    assert (await keeper(folder, "ledger", "verify", "--head", noted)).code == 0, "as the log said at the end"
    after_raw = await balance_of(lab.node, lab.world.tokens["USDC"], lab.world.cast.treasury.address)
    with Store.open_file(folder / "keeper.db", read_only=True) as store:
        profit = lab.world.tokens["USDC"].address
        assert Ledger(store).gross_profit_raw(profit) == after_raw - before_raw > 0
    assert not (await judge(rig.config)).differences
