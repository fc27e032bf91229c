"""Backups and restoring: copies are whole and private, know that they are copies, and never replace anything newer."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from keeper.errors import LedgerError
from keeper.ledger import Ledger, TreeHead, copies, heads
from keeper.store import Store
from keeper.types import Address, BlockNumber, Hash, PositionKey

ALICE = Address(b"\xa1" * 20)
KEY = PositionKey("aave", "m", ALICE)


def _grow(path: Path, count: int = 1, chain_id: int = 1) -> None:
    """A record with so many more entries, each with its claim."""
    with Store.open_file(path, chain_id=chain_id) as store:
        ledger = Ledger(store)
        for n in range(ledger.tip()[0], ledger.tip()[0] + count):
            plan = Hash(n.to_bytes(32))
            with store.transaction():
                store.reserve(plan, n, sender=ALICE, key=KEY, at_s=n)
                ledger.book("intent", plan, "aave", ALICE, {"nonce": n, "padding": "x" * 500}, n)
        ledger.checkpoint(99)


def _lines(path: Path) -> list[str]:
    """Everything in a file but the mark, as plain SQL."""
    raw = sqlite3.connect(path)
    lines = sorted(line for line in raw.iterdump() if 'INSERT INTO "meta"' not in line)
    raw.close()
    return lines


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A closed record of five entries."""
    path = tmp_path / "keeper.db"
    _grow(path, 5)
    return path


# --- backing up ------------------------------------------------------------------------------------------------------


def test_a_backup_is_the_record_in_one_private_file(record: Path, tmp_path: Path) -> None:
    """All tables and triggers, one file of mode 0600 whatever the umask, nothing beside it, and the head to keep."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    before = os.umask(0)
    try:
        head = copies.back_up(record, folder / "backup.db", 500)
    finally:
        os.umask(before)
    assert [path.name for path in folder.iterdir()] == ["backup.db"]
    assert stat.S_IMODE((folder / "backup.db").stat().st_mode) == 0o600
    assert _lines(folder / "backup.db") == _lines(record)
    with Store.open_file(folder / "backup.db", read_only=True) as copy, Store.open_file(record) as original:
        assert heads.newest(original) == head
        assert (copy.copied_at_s(), original.copied_at_s()) == (500, None)
        assert [one.nonce for one in copy.open_transactions()] == list(range(5))


def test_a_backup_can_be_read_where_nothing_can_be_written(record: Path, tmp_path: Path) -> None:
    """Reading it leaves no file beside it, not even for a moment: it needs no journal."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    copies.back_up(record, folder / "backup.db", 500)
    with Store.open_file(folder / "backup.db", read_only=True) as copy:
        assert Ledger(copy).verify() is None
        assert [path.name for path in folder.iterdir()] == ["backup.db"]


def test_a_backup_beside_a_writer_is_of_one_moment(record: Path, tmp_path: Path) -> None:
    """While entries come as fast as they can, every copy holds each entry with its claim, and the writer loses none."""
    done = threading.Event()
    written: list[int] = []

    def write() -> None:
        with Store.open_file(record) as store:
            ledger = Ledger(store)
            while not done.is_set():
                n = ledger.tip()[0]
                plan = Hash(n.to_bytes(32))
                with store.transaction():
                    store.reserve(plan, n, sender=ALICE, key=KEY, at_s=n)
                    ledger.book("intent", plan, "aave", ALICE, {"nonce": n, "padding": "x" * 500}, n)
                ledger.checkpoint(n)
            written.append(ledger.tip()[0])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(6):
            head = copies.back_up(record, tmp_path / f"backup-{number}.db", 500)
            with Store.open_file(tmp_path / f"backup-{number}.db", read_only=True) as copy:
                assert head is not None and Ledger(copy).tip()[0] == head.size == len(
                    copy.open_transactions()
                )
    finally:
        done.set()
        writer.join()
    with Store.open_file(record) as store:
        assert Ledger(store).tip()[0] == written[0] > 5 and Ledger(store).verify() is None


def test_a_backup_overwrites_nothing(record: Path, tmp_path: Path) -> None:
    """A file that is there stays as it is, be it a backup, the record itself or anything else."""
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    for target in (other, record):
        before = target.read_bytes()
        with pytest.raises(LedgerError, match="is there already and is not overwritten"):
            copies.back_up(record, target, 500)
        assert target.read_bytes() == before
    with pytest.raises(LedgerError, match="cannot be written"):
        copies.back_up(record, tmp_path / "nowhere" / "backup.db", 500)
    with pytest.raises(LedgerError, match="no record at"):
        copies.back_up(tmp_path / "missing.db", tmp_path / "backup.db", 500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keeper.db", "keeper.db.lock", "notes.txt"]


def _flip(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TRIGGER entries_no_update")
        raw.execute("UPDATE entries SET body = '{}' WHERE seq = 3")
    raw.close()


def test_what_is_not_whole_is_not_copied(record: Path, tmp_path: Path) -> None:
    """A damaged record makes no backup and a damaged backup no record, and the entry is named."""
    copies.back_up(record, tmp_path / "good.db", 500)
    shutil.copy(tmp_path / "good.db", tmp_path / "bad.db")
    _flip(tmp_path / "bad.db")
    _flip(record)
    with pytest.raises(LedgerError, match=r"keeper\.db is not whole and was not copied: Entry 3 was altered"):
        copies.back_up(record, tmp_path / "backup.db", 500)
    record.unlink()
    with pytest.raises(LedgerError, match=r"bad\.db is not whole and was not copied: Entry 3 was altered"):
        copies.restore(tmp_path / "bad.db", record, 1, 600)
    assert not (tmp_path / "backup.db").exists() and not record.exists()
    assert not list(tmp_path.glob(".*"))


# --- restoring -------------------------------------------------------------------------------------------------------


def test_a_lost_record_comes_back(record: Path, tmp_path: Path) -> None:
    """The backup stays as it was; the record is whole, private, as copied, and knows since when it is a copy."""
    head = copies.back_up(record, tmp_path / "backup.db", 500)
    lines, before = _lines(record), (tmp_path / "backup.db").read_bytes()
    record.unlink()
    assert copies.restore(tmp_path / "backup.db", record, 1, 600) == head
    assert (tmp_path / "backup.db").read_bytes() == before
    assert _lines(record) == lines and stat.S_IMODE(record.stat().st_mode) == 0o600
    with Store.open_file(record, chain_id=1) as store:
        assert store.copied_at_s() == 600 and Ledger(store).verify() is None
    _grow(record, 2)
    assert not list(tmp_path.glob(".*"))


def test_an_older_record_gives_way(record: Path, tmp_path: Path) -> None:
    """What the backup contains entry by entry may be replaced; its journal does not get into the new record."""
    shutil.copy(record, tmp_path / "older.db")
    _grow(record, 3)
    head = copies.back_up(record, tmp_path / "backup.db", 500)
    record.unlink()
    (tmp_path / "older.db").rename(record)
    reader = sqlite3.connect(record)  # while somebody reads, the journal stays
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM entries").fetchone()
    with Store.open_file(record) as writer:
        writer.set_cursor("aave", BlockNumber(1), Hash(bytes(32)))
    assert Path(f"{record}-wal").stat().st_size
    assert copies.restore(tmp_path / "backup.db", record, 1, 600) == head
    reader.close()
    with Store.open_file(record) as store:
        assert Ledger(store).tip()[0] == 8 and store.cursor("aave") is None


def _newer(record: Path) -> None:
    _grow(record, 1)


def _other(record: Path) -> None:
    record.unlink()
    with Store.open_file(record, chain_id=1) as store:
        Ledger(store).book("warning", None, "", None, {"detail": "another ledger"}, 1)


def _broken(record: Path) -> None:
    record.write_bytes(b"certainly not a database, " * 100)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_newer, "has entries that the backup lacks, 6 in all"),
        (_other, "has entries that the backup lacks, 1 in all"),
        (_broken, "cannot be compared with what is there"),
    ],
    ids=["newer", "other", "broken"],
)
def test_what_may_be_newer_is_not_replaced(
    record: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    """A record with an entry the backup lacks, or that cannot be read, stays until it is moved away."""
    copies.back_up(record, tmp_path / "backup.db", 500)
    spoil(record)
    before = record.read_bytes()
    with pytest.raises(LedgerError, match=words) as caught:
        copies.restore(tmp_path / "backup.db", record, 1, 600)
    assert "then restore" in str(caught.value) and record.read_bytes() == before
    record.rename(tmp_path / "aside.db")
    copies.restore(tmp_path / "backup.db", record, 1, 600)
    with Store.open_file(record) as store:
        assert Ledger(store).tip()[0] == 5


def test_a_journal_left_behind_is_not_written_into_the_backup(record: Path, tmp_path: Path) -> None:
    """If only the main file was moved away, its journal holds that record's last entries: nothing is done."""
    copies.back_up(record, tmp_path / "backup.db", 500)
    record.rename(tmp_path / "aside.db")
    journal = Path(f"{record}-wal")
    journal.write_bytes(b"last entries")
    with pytest.raises(LedgerError, match=r"keeper\.db-wal belongs to a record that was moved away"):
        copies.restore(tmp_path / "backup.db", record, 1, 600)
    assert journal.read_bytes() == b"last entries" and not record.exists()


def test_a_running_keeper_is_not_restored_under(record: Path, tmp_path: Path) -> None:
    """While somebody writes to the record, restoring is refused; a backup of another chain is, too."""
    copies.back_up(record, tmp_path / "backup.db", 500)
    with Store.open_file(record), pytest.raises(LedgerError, match="is writing to"):
        copies.restore(tmp_path / "backup.db", record, 1, 600)
    with pytest.raises(LedgerError, match="record of chain 1, not of chain 2"):
        copies.restore(tmp_path / "backup.db", tmp_path / "second.db", 2, 600)
    with pytest.raises(LedgerError, match="no record at"):
        copies.restore(tmp_path / "missing.db", record, 1, 600)
    with Store.open_file(record) as store:
        assert store.copied_at_s() is None


def test_a_backup_of_nothing_is_still_a_backup(tmp_path: Path) -> None:
    """A record without entries can be copied and put back; it has no head."""
    record = tmp_path / "keeper.db"
    Store.open_file(record, chain_id=1).close()
    assert copies.back_up(record, tmp_path / "backup.db", 500) is None
    assert copies.restore(tmp_path / "backup.db", record, 1, 600) is None
    _grow(record, 1)
    with Store.open_file(record) as store:
        assert heads.newest(store) == TreeHead(1, store_root(store), 99)


def store_root(store: Store) -> Hash:
    """The root of all entries."""
    head = heads.head_at(store)
    assert head is not None
    return head.root
