"""The ledger: nothing lost, nothing changed, nothing invented, and no flood of the same refusal."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keeper import abi
from keeper.errors import LedgerError
from keeper.ledger import KINDS, Booked, Ledger
from keeper.log import secrets
from keeper.store import Store
from keeper.store.canonical import canonical, digest, plain
from keeper.types import Address, Hash, Refusal

ROOT = Path(__file__).resolve().parents[2]
ALICE = Address(b"\xa1" * 20)
BOB = Address(b"\xb0" * 20)
USDC = Address(b"\xcc" * 20)
WETH = Address(b"\xee" * 20)
PLAN = Hash(b"\x01" * 32)
OTHER_PLAN = Hash(b"\x02" * 32)
COST = {"gas_cost_wei": 1000, "gas_cost_usd_e8": 30}

COLUMNS = ("seq", "at_s", "kind", "plan_id", "protocol", "account", "body", "prev_hash", "hash")
FORGERIES: dict[str, Any] = {
    "seq": 99,
    "at_s": 12345,
    "kind": "settled",
    "plan_id": "0x05",
    "protocol": "other",
    "account": "0x06",
    "body": '{"n":100}',
    "prev_hash": "00" * 32,
    "hash": "11" * 32,
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A fresh store, open for writing."""
    with Store.open(f"sqlite:///{tmp_path / 'keeper.db'}", chain_id=1) as opened:
        yield opened


@pytest.fixture
def ledger(store: Store) -> Ledger:
    """An empty ledger."""
    return Ledger(store)


def _note(ledger: Ledger, at_s: int = 1, **body: Any) -> Booked:
    return ledger.book("decision", PLAN, "aave", ALICE, body, at_s)


def _refuse(
    ledger: Ledger,
    head: int,
    reason: str = "unprofitable",
    account: Address | None = ALICE,
    *,
    at_s: int | None = None,
    market: str = "",
    **numbers: Any,
) -> Booked | None:
    refusal = Refusal("plan", reason, numbers or {"net_profit_raw": -head})
    at_s = head if at_s is None else at_s
    return ledger.book_refusal(refusal, protocol="aave", account=account, head=head, at_s=at_s, market=market)


def _settle(ledger: Ledger, plan: Hash, at_s: int, token: Address = USDC, **amounts: int | str) -> Booked:
    body = COST | {"profit_token": token, "profit_raw": 500} | amounts
    return ledger.book("settled", plan, "aave", ALICE, body, at_s)


def _revert(ledger: Ledger, plan: Hash, at_s: int) -> Booked:
    return ledger.book("reverted", plan, "aave", ALICE, COST, at_s)


def _fault_at(ledger: Ledger) -> int | None:
    """Where `verify` finds the first fault; its sentence names the place too."""
    fault = ledger.verify()
    assert fault is None or re.search(rf"\b{fault.seq}\b", fault.what)
    return fault.seq if fault else None


# --- the record ------------------------------------------------------------------------------------------------------


def test_an_entry_reads_back_as_it_was_booked(ledger: Ledger) -> None:
    """Every column and every value of the body survives, in canonical types."""
    booked = ledger.book(
        "decision",
        PLAN,
        "aave",
        ALICE,
        {
            "small": 2**53,
            "big": 2**53 + 1,
            "negative": -(2**256),
            "token": USDC,
            "block_hash": b"\xfe" * 32,
            "usd": Decimal("1E+3"),
            "path": (1, [b"\x01", None, True], {"z": "ü", "a": ""}),
        },
        77,
    )
    assert ledger.entries() == [booked] == [ledger.entry(1)]
    assert ledger.entry(2) is None
    assert (booked.seq, booked.at_s, booked.kind, booked.protocol) == (1, 77, "decision", "aave")
    assert (booked.plan_id, booked.account) == ("0x" + "01" * 32, abi.checksum(ALICE))
    assert booked.body == {
        "small": 2**53,
        "big": str(2**53 + 1),
        "negative": str(-(2**256)),
        "token": abi.checksum(USDC),
        "block_hash": "0x" + "fe" * 32,
        "usd": "1000",
        "path": [1, ["0x01", None, True], {"z": "ü", "a": ""}],
    }


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": 1.5}, r"body\.x\.a is a float"),
        ([1, float("nan")], r"body\.x\[1\] is a float"),
        ({1, 2}, r"body\.x is a set"),
        (Decimal("NaN"), r"body\.x is a Decimal"),
        ({1: "one"}, r"body\.x has the key 1"),
        (object(), r"body\.x is a object"),
    ],
)
def test_what_has_no_exact_form_is_refused(ledger: Ledger, value: Any, where: str) -> None:
    """Floats and other inexact or unordered values raise with their place, and nothing is stored."""
    with pytest.raises(LedgerError, match=where):
        _note(ledger, x=value)
    assert ledger.entries() == []


def test_an_unknown_kind_or_time_is_refused(ledger: Ledger) -> None:
    """An entry of a kind nobody reads, or at a fraction of a second, cannot be stored."""
    with pytest.raises(LedgerError, match="no entry of kind 'setled'"):
        ledger.book("setled", PLAN, "aave", ALICE, {}, 1)
    with pytest.raises(LedgerError, match="whole seconds"):
        _note(ledger, at_s=1.5)  # type: ignore[arg-type]
    assert ledger.tip() == (0, bytes(32))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.binary(max_size=40),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=12,
    )
)
@settings(deadline=None)
def test_canonical_json_has_one_spelling(value: Any) -> None:
    """Whatever can be recorded is ASCII, reads back as itself and is written the same way the second time."""
    written = canonical(plain(value, "body"))
    assert written.isascii()
    again = json.loads(written)
    assert canonical(plain(again, "body")) == written


def test_secrets_never_reach_the_record(ledger: Ledger, store: Store) -> None:
    """Registered secrets and keys inside URLs are scrubbed from a body at any depth."""
    secrets.register("canary-password")
    try:
        _note(ledger, error=["could not reach wss://user:pw@node.example/v2/apikey: canary-password refused"])
    finally:
        secrets.clear()
    with store.transaction() as connection:
        text = connection.exec_driver_sql("SELECT body FROM entries").scalar_one()
    assert text == '{"error":["could not reach wss://node.example [secret] refused"]}'


# --- the chain -------------------------------------------------------------------------------------------------------


def test_each_entry_is_chained_to_the_one_before(ledger: Ledger) -> None:
    """The first links to zeros, every other to its predecessor's hash, and the tip is the last."""
    first, second, third = (_note(ledger, n=n) for n in range(3))
    assert first.prev_hash == bytes(32)
    assert second.prev_hash == first.hash
    assert third.prev_hash == second.hash
    assert len({first.hash, second.hash, third.hash}) == 3
    assert ledger.tip() == (3, third.hash)
    assert ledger.verify() is None


def test_the_hash_can_be_recomputed_by_anybody(ledger: Ledger, store: Store) -> None:
    """SHA-256 of the previous hash and the canonical JSON of the stored columns gives the stored hash."""
    _note(ledger, n=1)
    _note(ledger, n=2, amount=10**30)
    code = """
import hashlib, json, sqlite3, sys
row = sqlite3.connect(sys.argv[1]).execute(
    "SELECT seq, at_s, kind, plan_id, protocol, account, body, prev_hash FROM entries WHERE seq = 2").fetchone()
entry = dict(zip(("seq", "at_s", "kind", "plan_id", "protocol", "account"), row))
entry["body"] = json.loads(row[6])
text = json.dumps(entry, sort_keys=True, separators=(",", ":"))
print(hashlib.sha256(bytes.fromhex(row[7]) + text.encode()).hexdigest())
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == ledger.tip()[1].hex()


def _forge(store: Store, statement: str, *values: Any) -> None:
    """Change the file behind the keeper's back, without the triggers that would stop it."""
    raw = sqlite3.connect(store.path)
    with raw:
        for trigger in ("entries_no_update", "entries_no_delete", "entries_only_next"):
            raw.execute(f"DROP TRIGGER {trigger}")
        raw.execute(statement, values)
    raw.close()


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("seq", [1, 2, 4])
def test_any_change_is_found_at_its_entry(ledger: Ledger, store: Store, column: str, seq: int) -> None:
    """Changing one column of one entry makes `verify` point at that entry, first, middle or last."""
    for n in range(4):
        _note(ledger, n=n)
    forged = "22" * 32 if (column, seq) == ("prev_hash", 1) else FORGERIES[column]
    _forge(store, f"UPDATE entries SET {column} = ? WHERE seq = ?", forged, seq)  # noqa: S608  # our own names
    assert _fault_at(ledger) == seq


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('{"n": 1}', "spacing"),
        ("{'n':1}", "not JSON"),
        ('{"n":1,"n":1}', "a key twice"),
        ("[" * 9999, "depth"),
    ],
)
def test_a_body_must_be_canonical(ledger: Ledger, store: Store, body: str, why: str) -> None:
    """A body spelt differently is found even where it means the same."""
    for n in range(3):
        _note(ledger, n=n)
    _forge(store, "UPDATE entries SET body = ? WHERE seq = 2", body)
    assert _fault_at(ledger) == 2, why


def test_a_removed_entry_is_found(ledger: Ledger, store: Store) -> None:
    """A hole is reported with the number that is missing."""
    for n in range(4):
        _note(ledger, n=n)
    _forge(store, "DELETE FROM entries WHERE seq = 2")
    assert _fault_at(ledger) == 2


def test_a_rewritten_entry_is_found_even_with_a_fresh_hash(ledger: Ledger, store: Store) -> None:
    """Whoever recomputes an altered entry's own hash is caught at the next entry."""
    for n in range(3):
        _note(ledger, n=n)
    with Store.open(f"sqlite:///{store.path.parent / 'other.db'}") as other:
        forger = Ledger(other)
        _note(forger, n=0)
        forged = _note(forger, n=999)
    _forge(store, "UPDATE entries SET body = ?, hash = ? WHERE seq = 2", '{"n":999}', forged.hash.hex())
    assert _fault_at(ledger) == 3


def test_a_renumbered_chain_is_found(ledger: Ledger, store: Store) -> None:
    """A chain whose hashes all fit but whose numbers skip one is not whole."""
    _note(ledger, n=0)
    forged = digest(bytes(32), 2, 1, "decision", "", "", "", {})
    _forge(
        store,
        "UPDATE entries SET seq = 2, plan_id = '', protocol = '', account = '', body = '{}', hash = ?",
        forged.hex(),
    )
    assert _fault_at(ledger) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = '{}' WHERE seq = 1",
        "DELETE FROM entries WHERE seq = 2",
        "DELETE FROM entries",
        "INSERT OR REPLACE INTO entries SELECT 1, 0, kind, '', '', '', '{}', prev_hash, hash FROM entries LIMIT 1",
        "INSERT OR REPLACE INTO entries SELECT 2, 0, kind, '', '', '', '{}', prev_hash, hash FROM entries LIMIT 1",
        "INSERT INTO entries SELECT 9, 0, kind, '', '', '', '{}', hash, hash FROM entries WHERE seq = 2",
        "INSERT INTO entries SELECT 3, 0, kind, '', '', '', '{}', prev_hash, hash FROM entries WHERE seq = 2",
        "REPLACE INTO entries SELECT * FROM entries",
    ],
)
def test_the_table_is_append_only(ledger: Ledger, store: Store, statement: str) -> None:
    """SQLite itself refuses to change, remove, replace or skip entries, or to add one that links elsewhere."""
    _note(ledger, n=1)
    _note(ledger, n=2)
    before = ledger.entries()
    raw = sqlite3.connect(store.path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        raw.execute(statement)
    raw.close()
    assert ledger.entries() == before
    assert ledger.verify() is None
    assert _note(ledger, n=3).seq == 3


def test_a_kill_in_the_middle_of_writing_loses_nothing_committed(tmp_path: Path) -> None:
    """After SIGKILL at a random moment every entry reported as booked is there, whole, chained, with its intent."""
    url = f"sqlite:///{tmp_path / 'keeper.db'}"
    code = f"""
import itertools
from keeper.ledger import Ledger
from keeper.store import Store
from keeper.types import Address, Hash, PositionKey
store = Store.open({url!r})
ledger = Ledger(store)
key = PositionKey("aave", "m", Address(bytes([7]) * 20))
for n in itertools.count(ledger.tip()[0]):
    plan = Hash(n.to_bytes(32, "big"))
    with store.transaction():
        store.reserve(plan, n, sender=key.account, key=key, at_s=n)
        ledger.book("intent", plan, "aave", key.account, {{"nonce": n, "padding": "x" * 3000}}, n)
    print(n, flush=True)
"""
    total = 0
    for lines in (1, 4, 9, 16):
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            reported = [int(writer.stdout.readline()) for _ in range(lines)]
            time.sleep(0.0007 * lines)  # so that the kill falls on different moments of an entry
            os.kill(writer.pid, signal.SIGKILL)
            reported += [int(line) for line in writer.stdout if line.endswith(b"\n")]
        assert reported == list(range(total, total + len(reported)))
        with Store.open(url) as store:
            ledger = Ledger(store)
            entries = ledger.entries(None)
            assert ledger.verify() is None
            nonces = [transaction.nonce for transaction in store.open_transactions()]
            assert nonces == [entry.body["nonce"] for entry in reversed(entries)] == list(range(len(entries)))
            # what was reported is there; at most one more was committed and not yet reported
            assert total + len(reported) <= len(entries) <= total + len(reported) + 1
            total = len(entries)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_entries_are_found_by_what_is_asked(ledger: Ledger) -> None:
    """Kind, account, plan, protocol, time and position narrow the answer together; newest first, then the limit."""
    ledger.book("decision", PLAN, "aave", ALICE, {}, 10)
    ledger.book("sent", PLAN, "aave", ALICE, {}, 20)
    ledger.book("sent", OTHER_PLAN, "morpho", BOB, {}, 30)
    ledger.book("warning", None, "", None, {}, 40)

    def found(**query: Any) -> list[int]:
        return [entry.seq for entry in ledger.entries(**query)]

    assert found() == [4, 3, 2, 1]
    assert found(limit=2) == [4, 3]
    assert found(limit=2, before_seq=3) == [2, 1]
    assert found(kind="sent") == [3, 2]
    assert found(kind=("decision", "warning")) == [4, 1]
    assert found(account=ALICE) == [2, 1]
    assert found(plan=PLAN, kind="sent") == [2]
    assert found(protocol="morpho") == [3]
    assert found(since_s=20) == [4, 3, 2]
    assert found(account=ALICE, plan=OTHER_PLAN) == []


def test_a_reader_sees_the_ledger_while_it_grows(ledger: Ledger, store: Store) -> None:
    """Another process may read and verify while the daemon writes, but not write."""
    _note(ledger)
    with Store.open(f"sqlite:///{store.path}", read_only=True) as beside:
        reader = Ledger(beside)
        assert len(reader.entries()) == 1
        _note(ledger)
        assert (reader.tip()[0], reader.verify()) == (2, None)
        with pytest.raises(LedgerError, match="readonly"):
            _note(reader)


def test_an_altered_body_is_an_error_where_it_is_read(ledger: Ledger, store: Store) -> None:
    """A body that is no JSON is not taken for an empty one."""
    _note(ledger)
    _forge(store, "UPDATE entries SET body = 'gone'")
    with pytest.raises(LedgerError, match="Entry 1 of the ledger cannot be read"):
        ledger.entries()


# --- sums ------------------------------------------------------------------------------------------------------------


def test_gross_profit_is_the_sum_of_settled_deltas_per_token(ledger: Ledger) -> None:
    """Only settled entries of the token count, however large the amounts and whatever was expected."""
    _settle(ledger, PLAN, 1, profit_raw=2**100)
    _settle(ledger, OTHER_PLAN, 2, profit_raw=7)
    _settle(ledger, Hash(bytes(32)), 3, token=WETH, profit_raw=9)
    _note(ledger, expected_profit_raw=1000, profit_token=USDC, profit_raw=1000)
    _revert(ledger, PLAN, 4)
    assert ledger.gross_profit_raw(USDC) == 2**100 + 7
    assert ledger.gross_profit_raw(WETH) == 9
    assert ledger.gross_profit_raw(ALICE) == 0


def test_gas_is_the_sum_over_everything_mined_since(ledger: Ledger) -> None:
    """Settled, reverted, cancelled and mined lost races cost gas; the moment itself is included, earlier is not."""
    _settle(ledger, PLAN, 9, gas_cost_wei=2**90)
    _settle(ledger, PLAN, 10, gas_cost_wei=2**80)
    _revert(ledger, PLAN, 11)
    ledger.book("cancelled", PLAN, "aave", ALICE, COST, 12)
    ledger.book("lost_race", PLAN, "aave", ALICE, COST, 13)
    ledger.book("lost_race", PLAN, "aave", ALICE, {}, 14)
    ledger.book("intent", PLAN, "aave", ALICE, COST, 15)
    assert ledger.gas_spent_wei(10) == 2**80 + 3000
    assert ledger.gas_spent_wei(16) == 0


def test_losses_are_never_offset_by_gains(ledger: Ledger) -> None:
    """Loss is all gas of failures, and of a settled one only the gas beyond its stated profit."""
    _settle(ledger, PLAN, 10, gas_cost_usd_e8=100, profit_usd_e8=10**9)
    assert ledger.loss_usd_e8(0) == 0
    _settle(ledger, PLAN, 11, gas_cost_usd_e8=100, profit_usd_e8=40)
    assert ledger.loss_usd_e8(0) == 60
    _settle(ledger, PLAN, 12, gas_cost_usd_e8=100)
    assert ledger.loss_usd_e8(0) == 60
    _revert(ledger, PLAN, 13)
    ledger.book("lost_race", PLAN, "aave", ALICE, COST, 14)
    ledger.book("cancelled", PLAN, "aave", ALICE, COST, 15)
    assert ledger.loss_usd_e8(0) == 60 + 90
    assert ledger.loss_usd_e8(14) == 60


def test_what_was_lost_on_the_budget_is_part_of_what_was_lost(ledger: Ledger) -> None:
    """Only outcomes that say so count against it: what they lost, as corrected, within the time asked about."""
    _settle(ledger, PLAN, 10, gas_cost_usd_e8=100, profit_usd_e8=40, budget="bad_debt")
    ledger.book("reverted", OTHER_PLAN, "aave", ALICE, {**COST, "budget": "bad_debt"}, 11)
    _revert(ledger, OTHER_PLAN, 12)
    assert (ledger.budget_spent_usd_e8(0), ledger.loss_usd_e8(0)) == (60 + 30, 60 + 30 + 30)
    assert ledger.budget_spent_usd_e8(11) == 30
    [settled] = ledger.entries(kind="settled")
    ledger.correct(settled.seq, "the node misread its price", {"gas_cost_usd_e8": 200}, 13)
    assert ledger.budget_spent_usd_e8(0) == 160 + 30
    ledger.book("reorged", PLAN, "aave", ALICE, {}, 14)
    assert ledger.budget_spent_usd_e8(0) == 30


def test_an_orphaned_outcome_no_longer_counts(ledger: Ledger) -> None:
    """After a reorg neither profit nor gas of the orphaned outcome is counted; the next outcome of the plan is."""
    _settle(ledger, PLAN, 10, profit_raw=5, gas_cost_wei=10)
    _settle(ledger, OTHER_PLAN, 11, profit_raw=7, gas_cost_wei=20)
    ledger.book("reorged", PLAN, "aave", ALICE, {}, 12)
    assert (ledger.gross_profit_raw(USDC), ledger.gas_spent_wei(0)) == (7, 20)
    _revert(ledger, PLAN, 13)
    assert (ledger.gross_profit_raw(USDC), ledger.gas_spent_wei(0), ledger.loss_usd_e8(0)) == (7, 1020, 30)


def test_reverts_in_a_row_end_with_a_success_or_an_operator(ledger: Ledger) -> None:
    """Counted are reverts since the last settled entry or explicit reset; lost races change nothing."""
    assert ledger.consecutive_reverts() == 0
    _revert(ledger, PLAN, 1)
    _settle(ledger, PLAN, 2)
    assert ledger.consecutive_reverts() == 0
    _revert(ledger, PLAN, 3)
    ledger.book("lost_race", PLAN, "aave", ALICE, COST, 4)
    _note(ledger)
    ledger.book("cleared", None, "", None, {"breaker": "loss_limit"}, 5)
    _revert(ledger, OTHER_PLAN, 6)
    assert ledger.consecutive_reverts() == 2
    ledger.book("cleared", None, "", None, {"breaker": "reverts_in_a_row"}, 7)
    assert ledger.consecutive_reverts() == 0
    _revert(ledger, PLAN, 8)
    assert ledger.consecutive_reverts() == 1


def test_a_strangers_market_stops_nothing_by_its_reverts(ledger: Ledger) -> None:
    """What somebody else's oracle did says nothing of the keeper; its gas is counted all the same."""
    ledger.book("reverted", PLAN, "morpho", ALICE, {**COST, "strangers_market": "0x01"}, 1)
    assert ledger.consecutive_reverts() == 0
    _revert(ledger, OTHER_PLAN, 2)
    assert ledger.consecutive_reverts() == 1
    assert ledger.gas_spent_wei(0) == 2 * COST["gas_cost_wei"]


def test_an_orphaned_success_does_not_end_a_row_of_reverts(ledger: Ledger) -> None:
    """A settled entry that was reorged away no longer resets the count, and an orphaned revert no longer counts."""
    _revert(ledger, PLAN, 1)
    _settle(ledger, OTHER_PLAN, 2)
    ledger.book("reorged", OTHER_PLAN, "aave", ALICE, {}, 3)
    assert ledger.consecutive_reverts() == 1
    _revert(ledger, OTHER_PLAN, 4)
    assert ledger.consecutive_reverts() == 2
    ledger.book("reorged", OTHER_PLAN, "aave", ALICE, {}, 5)
    assert ledger.consecutive_reverts() == 1


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_whoever_keeps_sums_hears_when_they_change(ledger: Ledger, kind: str) -> None:
    """The count of decisive entries moves with every kind that can change a sum, or begins a ramp, and no other."""
    _revert(ledger, PLAN, 1)

    def sums() -> tuple[int, ...]:
        read = ledger.gross_profit_raw(USDC), ledger.gas_spent_wei(0), ledger.loss_usd_e8(0)
        return (*read, ledger.consecutive_reverts())

    before, heard = sums(), ledger.outcomes_booked
    body: dict[str, Any] = COST | {"profit_token": USDC, "profit_raw": 1, "breaker": "reverts_in_a_row"}
    if kind == "correction":
        body = {"corrects": 1, "reason": "the node told another price", "gas_cost_wei": 7}
    ledger.book(kind, PLAN, "aave", ALICE, body, 2)
    assert (sums() != before or kind == "resume") == (ledger.outcomes_booked != heard)


@pytest.mark.parametrize("kind", ["settled", "reverted", "cancelled"])
@pytest.mark.parametrize(
    "broken", [{"gas_cost_wei": None}, {"gas_cost_usd_e8": -1}, {"gas_cost_wei": 1.0}, {"gas_cost_wei": True}]
)
def test_an_outcome_must_state_its_cost(ledger: Ledger, kind: str, broken: dict[str, Any]) -> None:
    """A mined outcome without exact non-negative costs is refused rather than counted as free."""
    complete = COST | {"profit_token": USDC, "profit_raw": 1}
    incomplete = {name: value for name, value in (complete | broken).items() if value is not None}
    with pytest.raises(LedgerError, match=f"{kind} entry"):
        ledger.book(kind, PLAN, "aave", ALICE, incomplete, 1)
    assert ledger.book(kind, PLAN, "aave", ALICE, complete, 1).seq == 1


@pytest.mark.parametrize("missing", ["profit_token", "profit_raw"])
def test_a_settled_entry_must_state_its_profit(ledger: Ledger, missing: str) -> None:
    """Profit without its token, or a token without its profit, is refused."""
    body: dict[str, Any] = COST | {"profit_token": USDC, "profit_raw": 1}
    del body[missing]
    with pytest.raises(LedgerError, match=f"must state {missing}"):
        ledger.book("settled", PLAN, "aave", ALICE, body, 1)
    with pytest.raises(LedgerError, match="20-byte address"):
        ledger.book("settled", PLAN, "aave", ALICE, body | {"profit_raw": 1, "profit_token": "0xcc"}, 1)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_repeated_refusal_is_booked_once_and_counted(ledger: Ledger) -> None:
    """The same reason at successive heads with other amounts is one entry; the next entry says how many were not."""
    first = _refuse(ledger, 1)
    assert first is not None
    assert first.body == {
        "stage": "plan",
        "reason": "unprofitable",
        "head": 1,
        "numbers": {"net_profit_raw": -1},
    }
    assert [_refuse(ledger, head) for head in range(2, 12)] == [None] * 10
    changed = _refuse(ledger, 12, "stale_price")
    assert changed is not None
    assert changed.body["suppressed_refusals"] == 10
    again = _refuse(ledger, 14, "no_route")
    assert again is not None
    assert "suppressed_refusals" not in again.body
    assert [entry.body["reason"] for entry in ledger.refusals(ALICE)] == [
        "no_route",
        "stale_price",
        "unprofitable",
    ]


def test_a_skipped_head_does_not_make_a_refusal_news(ledger: Ledger) -> None:
    """Heads are not always consecutive (the newest wins); what matters is what the account met last."""
    _refuse(ledger, 1)
    assert _refuse(ledger, 9) is None


def test_a_refusal_that_comes_back_is_news(ledger: Ledger) -> None:
    """After a head at which only another reason was given, the first reason is booked again."""
    _refuse(ledger, 1, "a")
    assert _refuse(ledger, 2, "b") is not None
    assert _refuse(ledger, 3, "b") is None
    assert _refuse(ledger, 4, "a") is not None


def test_several_refusals_of_one_head_do_not_flood(ledger: Ledger) -> None:
    """Two options refused for two reasons at every head are two entries, not two per head."""
    for head in range(1, 50):
        _refuse(ledger, head, "no_route", token=USDC)
        _refuse(ledger, head, "no_route", token=WETH)
        _refuse(ledger, head, "unprofitable")
    assert [entry.body["head"] for entry in ledger.refusals(ALICE)] == [1, 1, 1]


def test_what_is_refused_distinguishes_how_much_does_not(ledger: Ledger) -> None:
    """Other names, words, booleans or addresses among the numbers are news; amounts, hashes and prose are not."""
    _refuse(ledger, 1, amount=1, token=USDC, scope="global", block=b"\x01" * 32, error="at block 17: no")
    same: dict[str, Any] = {
        "amount": 2**70,
        "token": USDC,
        "scope": "global",
        "block": b"\x02" * 32,
        "error": "at block 18: no",
    }
    assert _refuse(ledger, 2, **same) is None
    assert _refuse(ledger, 3, **(same | {"token": WETH})) is not None
    assert _refuse(ledger, 4, **(same | {"scope": "aave"})) is not None
    assert _refuse(ledger, 5, **same, limit=5) is not None


def test_accounts_markets_and_protocols_are_apart(ledger: Ledger) -> None:
    """A refusal of one account, market or protocol never hides another's, nor counts for it."""
    for head in (1, 2, 3):
        _refuse(ledger, head)
        _refuse(ledger, head, account=BOB)
        _refuse(ledger, head, account=None)
        _refuse(ledger, head, market="second")
        ledger.book_refusal(
            Refusal("plan", "unprofitable", {"net_profit_raw": 1}),
            protocol="morpho",
            account=ALICE,
            head=head,
            at_s=head,
        )
    entries = ledger.entries(kind="refusal")
    assert len(entries) == 5
    assert {entry.body["head"] for entry in entries} == {1}
    assert [entry.body.get("market") for entry in ledger.refusals(ALICE)] == [None, "second", None]
    changed = _refuse(ledger, 4, "other", account=BOB)
    assert changed is not None
    assert changed.body["suppressed_refusals"] == 2


def test_another_entry_of_the_account_makes_a_refusal_news(ledger: Ledger) -> None:
    """A decision carries the count of what was suppressed before it, and the same refusal after it is booked."""
    _refuse(ledger, 1)
    _refuse(ledger, 2)
    _refuse(ledger, 3)
    ledger.book("decision", PLAN, "aave", BOB, {}, 3)
    assert ledger.book("decision", PLAN, "aave", ALICE, {}, 3).body == {"suppressed_refusals": 2}
    assert _refuse(ledger, 4) is not None


def test_silence_makes_a_refusal_news(ledger: Ledger) -> None:
    """Ten minutes without a refusal end it; up to that it is the same one."""
    _refuse(ledger, 1, at_s=0)
    assert _refuse(ledger, 2, at_s=600) is None
    assert _refuse(ledger, 3, at_s=1201) is not None


def test_a_restart_books_refusals_again(store: Store) -> None:
    """What was suppressed is remembered by the process only."""
    _refuse(Ledger(store), 1)
    assert _refuse(Ledger(store), 2) is not None


def test_the_last_entry_says_what_was_never_carried(ledger: Ledger) -> None:
    """A stopped entry states the repeats of all accounts that no later entry carried."""
    for head in (1, 2, 3):
        _refuse(ledger, head)
        _refuse(ledger, head, account=BOB)
    assert ledger.book("stopped", None, "", None, {}, 4).body == {"suppressed_refusals": 4}
    assert ledger.book("stopped", None, "", None, {}, 5).body == {}


def test_an_undone_refusal_is_booked_at_the_next_head(ledger: Ledger) -> None:
    """If the batch a refusal was booked in is undone, it is not taken for recorded."""
    with pytest.raises(ZeroDivisionError), ledger.batch():
        assert _refuse(ledger, 1) is not None
        raise ZeroDivisionError
    assert ledger.refusals(ALICE) == []
    assert _refuse(ledger, 2) is not None
    assert ledger.verify() is None


def test_a_batch_is_one_commit(ledger: Ledger, store: Store) -> None:
    """Refusals of one head become visible to others at once, all together and in order."""
    with Store.open(f"sqlite:///{store.path}", read_only=True) as beside:
        with ledger.batch():
            for n in range(5):
                _refuse(ledger, 1, account=Address(bytes([n]) * 20))
            assert Ledger(beside).entries() == []
        assert [entry.seq for entry in Ledger(beside).entries()] == [5, 4, 3, 2, 1]
    assert ledger.verify() is None


def test_every_kind_can_be_booked(ledger: Ledger) -> None:
    """All kinds of the design are known, and what each requires is enough."""
    complete = COST | {"profit_token": USDC, "profit_raw": 1}
    wanted = (
        "decision refusal intent signed sent settled reverted lost_race pause resume warning started stopped"
    )
    assert set(wanted.split()) <= KINDS
    for kind in sorted(KINDS - {"correction"}):
        ledger.book(kind, PLAN, "aave", ALICE, complete, 1)
    ledger.correct(1, "a slip", {}, 2)
    assert ledger.tip()[0] == len(KINDS)
    assert all(re.fullmatch(r"[a-z_]+", kind) for kind in KINDS)


def test_an_account_shares_the_story_of_a_plan_it_joined(ledger: Ledger) -> None:
    """What came of the transaction that it is in is part of its history; what is said of the others only is not."""
    ledger.book("intent", PLAN, "aave", ALICE, {}, 1)
    ledger.book("joined", PLAN, "aave", BOB, {"with": ALICE}, 1)
    ledger.book("signed", PLAN, "aave", ALICE, {}, 1)
    ledger.book("settled", PLAN, "aave", ALICE, {**COST, "profit_token": USDC, "profit_raw": 1}, 2)
    ledger.book("liquidated", PLAN, "aave", ALICE, {}, 2)
    ledger.book("liquidated", PLAN, "aave", BOB, {}, 2)
    ledger.book("reorged", PLAN, "aave", ALICE, {}, 3)
    ledger.book("intent", OTHER_PLAN, "aave", ALICE, {}, 4)
    _refuse(ledger, 5)
    kinds = [entry.kind for entry in ledger.history(BOB)]
    assert kinds == ["reorged", "liquidated", "settled", "signed", "joined", "intent"]
    assert [entry.kind for entry in ledger.history(BOB, 2)] == kinds[:2]
    assert [entry.seq for entry in ledger.history(ALICE)] == [9, 8, 7, 5, 4, 3, 1]
