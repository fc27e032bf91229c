"""The ledger's commands: documents and exit codes with nothing but the files at hand."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import sqlite3
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from keeper import cli, render
from keeper.commands import ledger as commands
from keeper.errors import ConfigError, LedgerError
from keeper.ledger import Ledger
from keeper.store import Store
from keeper.store.canonical import canonical
from keeper.types import Address, Hash

ROOT = Path(__file__).resolve().parents[2]
ALICE, USDC = Address(b"\xa1" * 20), Address(b"\xcc" * 20)
PLAN = Hash(b"\x01" * 32)
BIG = 10**30
Run = Callable[..., "Ran"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration, no secrets, no chain, and the record of one liquidation."""
    shutil.copy(ROOT / "examples" / "keeper.toml", tmp_path / "keeper.toml")
    with Store.open_file(tmp_path / "keeper.db", chain_id=1) as store:
        ledger = Ledger(store)
        ledger.book("started", None, "", None, {"head": 1}, 1_700_000_000)
        ledger.book("intent", PLAN, "aave", ALICE, {"nonce": 0, "swaps": [{"path": b"\x01"}]}, 1_700_000_100)
        body = {
            "tx": Hash(b"\x02" * 32),
            "gas_cost_wei": 7,
            "gas_cost_usd_e8": 5,
            "profit_token": USDC,
            "profit_raw": BIG,
        }
        ledger.book("settled", PLAN, "aave", ALICE, body, 1_700_000_200)
        ledger.checkpoint(1_700_000_300)
        ledger.book("stopped", None, "", None, {}, 1_700_000_400)
    return tmp_path / "keeper.toml"


@dataclass(frozen=True, slots=True)
class Ran:
    """How `keeper ledger …` ended and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process, with the test's configuration and without its taking over all logging."""
    monkeypatch.setattr("keeper.log.configure", lambda *_: None)

    def run(*words: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["keeper", "ledger", *words, "--config", str(config)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Ran(end.value.code, said.out, said.err)

    return run


def _flip(config: Path, statement: str = "UPDATE entries SET body = '{}' WHERE seq = 2") -> None:
    raw = sqlite3.connect(config.with_name("keeper.db"))
    with raw:
        for trigger in ("entries_no_update", "entries_no_delete"):
            raw.execute(f"DROP TRIGGER {trigger}")
        raw.execute(statement)
    raw.close()


def _node(left: str, right: str) -> str:
    return hashlib.sha256(b"\x01" + bytes.fromhex(left[2:]) + bytes.fromhex(right[2:])).hexdigest()


def test_an_entry_is_shown_with_a_proof_anybody_can_check(config: Path) -> None:
    """The document carries all that is hashed, the entries of its plan, and the path to the newest head's root."""
    document = commands.shown(config, 3, None)
    entry, proof = document["entry"], document["proof"]
    assert (document["schema"], entry["seq"], entry["kind"]) == (1, 3, "settled")
    assert document["plan_entries"] == [{"seq": 2, "kind": "intent"}, {"seq": 3, "kind": "settled"}]
    hashed = {name: entry[name] for name in ("seq", "at_s", "kind", "plan_id", "protocol", "account", "body")}
    previous = bytes.fromhex(entry["prev_hash"][2:])
    this = hashlib.sha256(previous + canonical(hashed).encode()).hexdigest()
    assert "0x" + this == entry["hash"] == proof["entry_hash"]
    # the third of three leaves: its only sibling is the node over the first two
    leaf = hashlib.sha256(b"\x00" + bytes.fromhex(this)).hexdigest()
    assert (proof["size"], proof["index"], len(proof["path"])) == (3, 2, 1)
    assert "0x" + _node(proof["path"][0], "0x" + leaf) == proof["root"]
    assert proof["head_at_s"] == 1_700_000_300
    assert commands.shown(config, 4, None)["proof"]["size"] == 4
    assert commands.shown(config, 1, 2)["proof"]["size"] == 2
    assert commands.shown(config, 1, None)["plan_entries"] == []
    with pytest.raises(LedgerError, match="there is no entry 5"):
        commands.shown(config, 5, None)


def test_an_altered_entry_is_not_shown_as_proved(config: Path) -> None:
    """An entry whose content does not have its hash is an error, though the hash itself is in the tree."""
    _flip(config)
    with pytest.raises(LedgerError, match="Entry 2 is not as it was booked"):
        commands.shown(config, 2, None)


def test_verifying_needs_the_file_and_nothing_else(run: Run, config: Path, tmp_path: Path) -> None:
    """Exit 0 and one document for a whole record, by configuration or by file; what is noted outside is compared."""
    ran = run("verify", "--json")
    document = json.loads(ran.out)
    assert ran.code == 0 and ran.err == ""
    assert document["ok"] and document["fault"] is None and document["entries"] == 4
    assert document["newest_head"]["size"] == 3 and document["copied_at_s"] is None
    alone = tmp_path / "alone" / "record.db"
    alone.parent.mkdir()
    shutil.copy(config.with_name("keeper.db"), alone)
    by_file = commands.verified(tmp_path / "no-such.toml", alone, None)
    assert by_file == document | {"file": str(alone)}
    head = f"4:{document['root']}"
    assert commands.verified(config, None, head)["ok"]
    assert commands.verified(config, None, head.replace("0x", ""))["ok"]
    assert commands.verified(config, None, "3:" + document["root"])["fault"]["entry"] == 1


@pytest.mark.parametrize(
    ("statement", "entry"),
    [
        ("UPDATE entries SET body = '{}' WHERE seq = 2", 2),
        ("DELETE FROM entries WHERE seq = 1", 1),
        ("DELETE FROM entries WHERE seq >= 3", 3),
    ],
    ids=["flipped", "deleted", "truncated"],
)
def test_a_record_that_is_not_whole_ends_with_1(run: Run, config: Path, statement: str, entry: int) -> None:
    """One sentence that names the entry, as text and in the document."""
    _flip(config, statement)
    ran, told = run("verify"), run("verify", "--json")
    assert ran.code == told.code == 1
    assert ran.out.count("\n") == 1 and f"ntry {entry} " in ran.out and ran.err == ""
    document = json.loads(told.out)
    assert not document["ok"] and document["root"] is None
    assert document["fault"] == {"entry": entry, "what": ran.out.strip()}


def test_what_is_no_record_at_all_is_one_sentence(run: Run, config: Path, tmp_path: Path) -> None:
    """A missing file, one that is no database and one that is another's: exit 1, nothing on stdout."""
    (tmp_path / "text.db").write_bytes(b"certainly not a database, " * 100)
    sqlite3.connect(tmp_path / "empty.db").execute("CREATE TABLE music (title TEXT)")
    for name, words in (
        ("no.db", "no record at"),
        ("text.db", "not a database"),
        ("empty.db", "not a keeper's"),
    ):
        for command in ("verify", "restore"):
            ran = run(command, str(tmp_path / name))
            assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1), ran
            assert words in ran.err and ".part" not in ran.err


def _exported(config: Path, form: str, out: Path, **options: str) -> str:
    given = {"since": None, "until": None, "kind": None} | options
    commands.exported(config, form=form, out=out, **given)
    text = out.read_text()
    out.unlink()
    return text


def test_an_export_can_be_verified_by_itself(config: Path, tmp_path: Path) -> None:
    """Both formats carry every entry, oldest first, with what its hash is made of; figures have their own columns."""
    document = json.loads(_exported(config, "json", tmp_path / "out"))
    assert document["schema"] == 1
    assert [entry["seq"] for entry in document["entries"]] == [1, 2, 3, 4]
    rows = list(csv.DictReader(io.StringIO(_exported(config, "csv", tmp_path / "out"))))
    previous = bytes(32)
    for entry, row in zip(document["entries"], rows, strict=True):
        hashed: dict[str, Any] = {
            "seq": int(row["seq"]),
            "at_s": int(row["at_s"]),
            **{name: row[name] for name in ("kind", "plan_id", "protocol", "account")},
            "body": json.loads(row["body"]),
        }
        this = hashlib.sha256(previous + canonical(hashed).encode()).digest()
        assert row["hash"] == "0x" + this.hex() == entry["hash"]
        assert row["prev_hash"] == "0x" + previous.hex() == entry["prev_hash"]
        assert entry["body"] == hashed["body"]
        previous = this
    assert (rows[2]["profit_raw"], rows[2]["gas_cost_wei"], rows[2]["at"]) == (
        str(BIG),
        "7",
        "2023-11-14T22:16:40+00:00",
    )
    assert rows[1]["nonce"] == "0" and rows[0]["profit_raw"] == ""


def test_an_export_is_narrowed_by_time_and_kind(config: Path, tmp_path: Path) -> None:
    """From `since` on, before `until`, in seconds or ISO, UTC where nothing else is said; of one kind."""

    def seqs(**options: str) -> list[int]:
        document = json.loads(_exported(config, "json", tmp_path / "out", **options))
        return [entry["seq"] for entry in document["entries"]]

    assert seqs(since="1700000100", until="1700000400") == [2, 3]
    assert seqs(since="2023-11-14T22:15:00") == [2, 3, 4]
    assert seqs(since="2023-11-14T23:15:00+01:00", until="2023-11-14T22:16:41Z") == [2, 3]
    assert seqs(since="2023-11-15") == [] and seqs(until="2023-11-14") == []
    assert seqs(kind="settled") == [3]
    for options in ({"since": "yesterday"}, {"until": "12"}, {"kind": "setled"}):
        with pytest.raises(ConfigError):
            seqs(**options)
    with pytest.raises(ConfigError, match="write csv or json"):
        _exported(config, "xml", tmp_path / "out")


def test_an_export_overwrites_nothing_and_is_private(run: Run, config: Path, tmp_path: Path) -> None:
    """Stdout unless a new file is named, which only its owner can read."""
    out = tmp_path / "ledger.csv"
    commands.exported(config, form="csv", since=None, until=None, kind=None, out=out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    ran = run("export", "--format", "csv", "--out", str(out))
    assert (ran.code, ran.out) == (2, "") and "not overwritten" in ran.err
    ran = run("export", "--format", "csv")
    assert ran.code == 0 and ran.out == out.read_text()


def test_backup_restore_and_correct_end_as_promised(run: Run, config: Path, tmp_path: Path) -> None:
    """Their documents carry the head to keep; what they refuse is exit 1, what was mistyped exit 2."""
    backup = tmp_path / "backup.db"
    made = run("backup", str(backup), "--json")
    document = json.loads(made.out)
    assert made.code == 0 and document["schema"] == 1
    assert (document["size"], document["backup"]) == (4, str(backup))
    assert run("backup", str(backup)).code == 1
    corrected = run("correct", "3", "--reason", "a slip", "--set", f"profit_raw={BIG + 1}", "--json")
    assert json.loads(corrected.out)["entry"]["body"]["profit_raw"] == str(BIG + 1)
    assert run("correct", "3", "--reason", "a slip", "--set", "profit_raw=1.5").code == 2
    assert run("correct", "3", "--reason", "a slip", "--set", "swaps=1").code == 1
    newer = run("restore", str(backup))
    assert newer.code == 1 and "has entries that the backup lacks" in newer.err
    config.with_name("keeper.db").rename(tmp_path / "aside.db")
    restored = run("restore", str(backup), "--json")
    assert restored.code == 0 and json.loads(restored.out)["root"] == document["root"]
    verified = json.loads(run("verify", "--json").out)
    assert verified["ok"] and verified["copied_at_s"] > 1_700_000_000


def test_entries_are_listed_by_kinds_there_are(config: Path) -> None:
    """A kind that does not exist is a mistake, not an empty list."""
    document = commands.listed(config, limit=10, kind="intent", account="0x" + "a1" * 20)
    assert [entry["seq"] for entry in document["entries"]] == [2]
    with pytest.raises(ConfigError, match="setled is no kind of entry; the kinds are bad_debt, cancelled, "):
        commands.listed(config, limit=10, kind="setled", account=None)


def test_people_can_read_what_is_printed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every document has its plain form, with whole hashes and the head that can be noted as it stands."""
    document = commands.shown(config, 2, None)
    render.ledger_show(document)
    said = capsys.readouterr().out
    assert (
        document["entry"]["hash"] in said and '[{"path": "0x01"}]' in said and "2 intent, 3 settled" in said
    )
    head = next(word for word in said.replace(",", " ").split() if word.startswith("3:"))
    assert commands.verified(config, None, head)["ok"]
    render.ledger_verify(commands.verified(config, None, None))
    assert "is whole: 4 entries" in capsys.readouterr().out
    render.ledger_list(commands.listed(config, limit=10, kind=None, account=None))
    assert "swaps=[1]" in capsys.readouterr().out
