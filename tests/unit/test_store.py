"""The store: one writer, nothing half written, and every nonce accounted for."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.schema import CreateIndex, CreateTable

from keeper.errors import ConfigError, LedgerError
from keeper.store import Attempt, Cursor, Store, sqlite_path
from keeper.store.schema import SCHEMA_VERSION, metadata
from keeper.types import Address, BlockNumber, Gas, Hash, PositionKey, Settlement, Wei

ROOT = Path(__file__).resolve().parents[2]
SENDER = Address(b"\x0a" * 20)
KEY = PositionKey("aave", "0xmarket", Address(b"\x0b" * 20))


def _hash(number: int) -> Hash:
    return Hash(number.to_bytes(32, "big"))


def _url(path: Path) -> str:
    return f"sqlite:///{path / 'keeper.db'}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A fresh store of chain 31337, open for writing."""
    with Store.open(_url(tmp_path), chain_id=31337) as opened:
        yield opened


def _reserve(store: Store, plan: int, nonce: int, sender: Address = SENDER) -> None:
    store.reserve(_hash(plan), nonce, sender=sender, key=KEY, at_s=100)


def _sign(
    store: Store, plan: int, transaction: int, *, cancel: bool = False, max_fee_wei: int = 5, at_s: int = 101
) -> None:
    store.signed(
        _hash(plan),
        _hash(transaction),
        b"raw",
        purpose="cancel" if cancel else "plan",
        max_fee_wei=Wei(max_fee_wei),
        gas_limit=Gas(1000),
        last_block=None if cancel else BlockNumber(9),
        at_s=at_s,
    )


def _settlement(plan: int, transaction: int, profit_raw: int = 2**200) -> Settlement:
    return Settlement(
        plan_id=_hash(plan),
        transaction_hash=_hash(transaction),
        status=1,
        block_number=BlockNumber(8),
        block_hash=_hash(88),
        gas_used=Gas(900),
        gas_cost_wei=Wei(2**100),
        profit_raw=profit_raw,
    )


# --- opening -------------------------------------------------------------------------------------------------------


def test_a_new_store_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    """The file, its journal and its lock are created with mode 0600 whatever the umask."""
    before = os.umask(0)
    try:
        with Store.open(_url(tmp_path)) as store:
            store.set_cursor("aave", BlockNumber(1), _hash(1))
            modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("keeper.db", "keeper.db-shm", "keeper.db-wal", "keeper.db.lock"), 0o600)


def _synchronous(store: Store, *, durable: bool) -> int:
    with store.transaction(durable=durable) as connection:
        level: int = connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
    return level


def test_a_durable_commit_reaches_the_disk(store: Store) -> None:
    """The journal is write-ahead; a durable commit is flushed (FULL is 2), the one after it not (NORMAL is 1)."""
    with store.transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 2000
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    assert [_synchronous(store, durable=durable) for durable in (False, True, False, True)] == [1, 2, 1, 2]


def test_durability_is_not_promised_where_it_cannot_be_kept(store: Store) -> None:
    """A durable block inside one that is not is refused, and nothing is stored; inside a durable one it joins."""
    with pytest.raises(LedgerError, match="make the outer durable"), store.transaction():
        _reserve(store, 1, 0)
        with store.transaction(durable=True):
            _sign(store, 1, 10)
    assert store.open_transactions() == []
    with store.transaction(durable=True):
        _reserve(store, 1, 0)
        with store.transaction(durable=True):
            _sign(store, 1, 10)
    assert [transaction.state for transaction in store.open_transactions()] == ["signed"]


def test_a_second_writer_is_refused_and_told_by_whom(tmp_path: Path, store: Store) -> None:
    """While one process writes, another cannot open the store, and learns the first one's process id."""
    code = f"""
from keeper.errors import LedgerError
from keeper.store import Store
try:
    Store.open({_url(tmp_path)!r})
except LedgerError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"process {os.getpid()}" in run.stdout
    assert store.path.name in run.stdout


def test_the_lock_goes_with_its_holder(tmp_path: Path) -> None:
    """A closed store, and one whose opening failed, can be opened again at once."""
    Store.open(_url(tmp_path), chain_id=1).close()
    with pytest.raises(LedgerError, match="chain 1, not of chain 2"):
        Store.open(_url(tmp_path), chain_id=2)
    Store.open(_url(tmp_path), chain_id=1).close()


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    """close() may be called again, as `with` after an explicit close does."""
    with Store.open(_url(tmp_path)) as store:
        store.close()
    with Store.open(_url(tmp_path)) as again:
        assert again.open_transactions() == []


def test_readers_neither_lock_nor_write(tmp_path: Path, store: Store) -> None:
    """A reader opens beside the writer, sees what is committed, and cannot change anything."""
    store.set_cursor("aave", BlockNumber(7), _hash(7))
    with Store.open(_url(tmp_path), read_only=True) as reader:
        assert reader.cursor("aave") == Cursor(BlockNumber(7), _hash(7))
        with pytest.raises(LedgerError, match="readonly"):
            reader.set_cursor("aave", BlockNumber(8), _hash(8))
        store.set_cursor("aave", BlockNumber(9), _hash(9))
        assert reader.cursor("aave") == Cursor(BlockNumber(9), _hash(9))


def test_a_closed_record_can_be_read_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder on a read-only medium no journal is made, not even while the record is open."""
    with Store.open(_url(tmp_path)) as store:
        store.set_cursor("aave", BlockNumber(7), _hash(7))
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("keeper.store.database.os.access", lambda path, mode: path != tmp_path)
    with Store.open(_url(tmp_path), read_only=True) as reader:
        assert reader.cursor("aave") == Cursor(BlockNumber(7), _hash(7))
        assert sorted(tmp_path.iterdir()) == before


def test_a_reader_creates_nothing(tmp_path: Path) -> None:
    """Reading a record that does not exist is an error, and still none exists afterwards."""
    with pytest.raises(LedgerError, match="no record"):
        Store.open(_url(tmp_path), read_only=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("version", "age"), [(SCHEMA_VERSION + 1, "newer"), (SCHEMA_VERSION - 1, "older")])
def test_another_schema_is_refused(tmp_path: Path, version: int, age: str) -> None:
    """A record of a newer or older schema is not touched; the message says which it is."""
    Store.open(_url(tmp_path)).close()
    with sqlite3.connect(tmp_path / "keeper.db") as raw:
        raw.execute("UPDATE meta SET schema_version = ?", (version,))
    raw.close()
    for read_only in (False, True):
        with pytest.raises(LedgerError, match=f"schema version {version}, {age} than the {SCHEMA_VERSION}"):
            Store.open(_url(tmp_path), read_only=read_only)


def test_what_is_not_a_record_is_refused(tmp_path: Path) -> None:
    """Neither a foreign database nor a file that is none is taken for a record, or altered."""
    path = tmp_path / "keeper.db"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE music (title TEXT)")
    raw.close()
    with pytest.raises(LedgerError, match="not a keeper's record"):
        Store.open(_url(tmp_path))
    path.write_bytes(b"certainly not a database, " * 100)
    with pytest.raises(LedgerError, match="not a database"):
        Store.open(_url(tmp_path))
    assert path.read_bytes() == b"certainly not a database, " * 100


def test_a_missing_folder_is_a_sentence(tmp_path: Path) -> None:
    """A store in a folder that does not exist is an error that names the file."""
    with pytest.raises(LedgerError, match=r"nowhere/keeper\.db\.lock cannot be written .*store\.url"):
        Store.open(f"sqlite:///{tmp_path}/nowhere/keeper.db")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///a.db?mode=ro", "nonsense"])
def test_only_files_hold_a_record(url: str) -> None:
    """A URL that is not a plain SQLite file is a ConfigError."""
    with pytest.raises(ConfigError, match=r"store\.url"):
        sqlite_path(url)


def test_a_url_with_a_password_is_not_repeated() -> None:
    """The error for another database does not quote its URL."""
    with pytest.raises(ConfigError) as caught:
        sqlite_path("postgresql://keeper:canary@db/keeper")
    assert "canary" not in str(caught.value)


def test_the_schema_is_ready_for_postgres() -> None:
    """Every table and index can be said in Postgres, the partial index included."""
    dialect = PGDialect_psycopg()  # type: ignore[no-untyped-call]
    tables = [str(CreateTable(table).compile(dialect=dialect)) for table in metadata.sorted_tables]
    indexes = [
        str(CreateIndex(index).compile(dialect=dialect))
        for table in metadata.sorted_tables
        for index in table.indexes
    ]
    assert all(statement.strip().startswith("CREATE TABLE") for statement in tables)
    assert any("one_claim_per_nonce" in text and "WHERE state != 'released'" in text for text in indexes)
    assert "BIGINT" in next(text for text in tables if "CREATE TABLE entries" in text)


# --- transactions of the store ----------------------------------------------------------------------------------------


def test_a_block_is_all_or_nothing(store: Store) -> None:
    """Whatever was stored inside a failing block, nested or not, is gone."""
    with pytest.raises(ZeroDivisionError), store.transaction():
        _reserve(store, 1, 0)
        store.set_cursor("aave", BlockNumber(1), _hash(1))
        raise ZeroDivisionError
    assert store.open_transactions() == []
    assert store.cursor("aave") is None


def test_a_hidden_failure_undoes_the_block(store: Store) -> None:
    """An inner failure that the caller swallows still undoes the whole, and says so."""
    with pytest.raises(LedgerError, match="was hidden"), store.transaction():
        _reserve(store, 1, 0)
        with pytest.raises(LedgerError, match="never reserved"):
            _sign(store, 2, 20)
    assert store.open_transactions() == []
    _reserve(store, 1, 0)
    assert len(store.open_transactions()) == 1


def test_rollback_hooks_run_only_when_undone(store: Store) -> None:
    """What mirrors the store in memory hears of every undone block and of no committed one."""
    heard: list[str] = []
    store.on_rollback(lambda: heard.append("undone"))
    _reserve(store, 1, 0)
    assert heard == []
    with pytest.raises(LedgerError):
        _reserve(store, 1, 1)
    assert heard == ["undone"]


async def test_two_tasks_cannot_share_a_block(store: Store) -> None:
    """Awaiting inside a block cannot let another task's writes slip into it."""
    inside = asyncio.Event()
    refused = asyncio.Event()

    async def intruder() -> None:
        await inside.wait()
        with pytest.raises(LedgerError, match="never await"):
            store.set_cursor("intruder", BlockNumber(1), _hash(1))
        refused.set()

    task = asyncio.create_task(intruder())
    with store.transaction():
        store.set_cursor("aave", BlockNumber(1), _hash(1))
        inside.set()
        await refused.wait()
    await task
    assert store.cursor("aave") is not None
    assert store.cursor("intruder") is None


def test_failures_do_not_quote_signed_bytes(store: Store) -> None:
    """An error of the database becomes a LedgerError without the statement's parameters."""
    _reserve(store, 1, 0)
    _sign(store, 1, 10)
    _reserve(store, 2, 1)
    with pytest.raises(LedgerError) as caught:
        store.signed(
            _hash(2),
            _hash(10),
            b"canary-raw-bytes",
            max_fee_wei=Wei(1),
            gas_limit=Gas(1),
            last_block=BlockNumber(1),
            at_s=1,
        )
    assert "UNIQUE" in str(caught.value)
    assert "canary" not in str(caught.value) + str(caught.value.__cause__)


# --- discovery -------------------------------------------------------------------------------------------------------


def test_accounts_and_cursors_survive_a_restart(tmp_path: Path) -> None:
    """What was discovered is there again, once each and per protocol; a cursor may move back."""
    other = PositionKey("morpho", "m", KEY.account)
    second_market = PositionKey("aave", "second", KEY.account)
    with Store.open(_url(tmp_path)) as store:
        store.add_accounts([KEY, other, KEY])
        store.add_accounts([second_market, KEY])
        store.add_accounts([])
        store.set_cursor("aave", BlockNumber(10), _hash(10))
        store.set_cursor("aave", BlockNumber(4), _hash(4))
    with Store.open(_url(tmp_path)) as store:
        assert store.accounts("aave") == {KEY, second_market}
        assert store.accounts("morpho") == {other}
        assert store.accounts("unknown") == set()
        assert store.cursor("aave") == Cursor(BlockNumber(4), _hash(4))
        assert store.cursor("morpho") is None


def test_followed_blocks_are_remembered_within_bounds(tmp_path: Path) -> None:
    """They come back oldest first; another branch replaces its numbers, and what is outside the bounds is forgotten."""
    with Store.open(_url(tmp_path)) as store:
        store.keep_blocks(
            [Cursor(BlockNumber(number), _hash(number)) for number in range(1, 8)],
            BlockNumber(3),
            BlockNumber(7),
        )
        # a reorganisation: 5 is another block, 6 and 7 are gone
        store.keep_blocks([Cursor(BlockNumber(5), _hash(50))], BlockNumber(3), BlockNumber(5))
    with Store.open(_url(tmp_path)) as store:
        assert store.blocks() == [
            Cursor(BlockNumber(3), _hash(3)),
            Cursor(BlockNumber(4), _hash(4)),
            Cursor(BlockNumber(5), _hash(50)),
        ]
        store.keep_blocks([], BlockNumber(4), BlockNumber(4))
        assert store.blocks() == [Cursor(BlockNumber(4), _hash(4))]


# --- nonces and signatures -------------------------------------------------------------------------------------------


def test_a_restart_finds_what_may_be_in_flight(tmp_path: Path) -> None:
    """Reserved and signed plans come back lowest nonce first, with every attempt oldest first and its bytes."""
    with Store.open(_url(tmp_path)) as store:
        _reserve(store, 2, 6)
        _reserve(store, 1, 5)
        _sign(store, 1, 10)
        _sign(store, 1, 11, cancel=True, max_fee_wei=7)
        store.sent(_hash(10), 102)
        store.sent(_hash(10), 999)
    with Store.open(_url(tmp_path)) as store:
        first, second = store.open_transactions()
    assert (first.plan_id, first.nonce, first.sender, first.key, first.state) == (
        _hash(1),
        5,
        SENDER,
        KEY,
        "signed",
    )
    assert first.attempts == (
        Attempt(_hash(10), "plan", b"raw", Wei(5), Gas(1000), BlockNumber(9), 101, 102),
        Attempt(_hash(11), "cancel", b"raw", Wei(7), Gas(1000), None, 101, None),
    )
    assert (second.plan_id, second.state, second.attempts) == (_hash(2), "reserved", ())


def test_attempts_keep_their_order_when_the_clock_goes_back(store: Store) -> None:
    """The newest attempt is the one that offers most, though the clock was put back a day before it was signed."""
    _reserve(store, 1, 7)
    _sign(store, 1, 10, max_fee_wei=9, at_s=90_000)
    _sign(store, 1, 11, cancel=True, max_fee_wei=10, at_s=3_600)
    [transaction] = store.open_transactions()
    assert [attempt.hash for attempt in transaction.attempts] == [_hash(10), _hash(11)]


def test_gas_in_flight_is_the_worst_of_each_nonce(store: Store) -> None:
    """Of several attempts at one nonce only the dearest counts; settled ones no longer do."""
    _reserve(store, 1, 0)
    _sign(store, 1, 10, max_fee_wei=5)
    _sign(store, 1, 11, cancel=True, max_fee_wei=7)
    _reserve(store, 2, 1)
    _sign(store, 2, 20, max_fee_wei=2**70)
    _reserve(store, 3, 2)
    assert store.in_flight_wei() == (7 + 2**70) * 1000
    store.settled(_settlement(2, 20), 103)
    assert store.in_flight_wei() == 7 * 1000


def test_a_plan_and_a_nonce_are_claimed_once(store: Store) -> None:
    """Neither can be claimed again while claimed or after it was used; another sender's nonces are its own."""
    _reserve(store, 1, 5)
    with pytest.raises(LedgerError, match="was reserved before"):
        _reserve(store, 1, 6)
    with pytest.raises(LedgerError, match="Nonce 5 is claimed by plan 0x00"):
        _reserve(store, 2, 5)
    _reserve(store, 3, 5, sender=Address(b"\x0c" * 20))
    _sign(store, 1, 10)
    store.settled(_settlement(1, 10), 103)
    with pytest.raises(LedgerError, match="Nonce 5 is claimed"):
        _reserve(store, 2, 5)


def test_a_released_nonce_is_free(store: Store) -> None:
    """Only an unsigned claim can be released; its nonce can be claimed by another plan, its plan id never again."""
    _reserve(store, 1, 5)
    store.release(_hash(1), 102)
    assert store.open_transactions() == []
    assert store.highest_nonce(SENDER) is None
    _reserve(store, 2, 5)
    with pytest.raises(LedgerError, match="was reserved before"):
        _reserve(store, 1, 6)
    _sign(store, 2, 10)
    with pytest.raises(LedgerError, match="cannot be released: it is signed"):
        store.release(_hash(2), 103)
    assert store.highest_nonce(SENDER) == 5


def test_the_database_itself_holds_one_claim_per_nonce(store: Store) -> None:
    """Even without the check in `reserve`, two open claims on one nonce cannot be stored."""
    _reserve(store, 1, 5)
    with pytest.raises(LedgerError, match="UNIQUE"), store.transaction() as connection:
        connection.exec_driver_sql(
            "INSERT INTO intents (plan_id, sender, nonce, protocol, market, account, state, reserved_at_s) "
            "SELECT x'02', sender, nonce, protocol, market, account, state, reserved_at_s FROM intents"
        )


def test_a_settlement_comes_back_exactly(store: Store) -> None:
    """Amounts beyond 64 bits survive, the same settlement again changes nothing, another one is refused."""
    _reserve(store, 1, 5)
    _sign(store, 1, 10)
    assert store.settlement(_hash(1)) is None
    store.settled(_settlement(1, 10), 103)
    store.settled(_settlement(1, 10), 104)
    assert store.settlement(_hash(1)) == _settlement(1, 10)
    with pytest.raises(LedgerError, match="settled otherwise"):
        store.settled(_settlement(1, 10, profit_raw=1), 105)
    assert store.settlement(_hash(1)) == _settlement(1, 10)
    assert store.open_transactions() == []


def test_only_what_was_signed_for_a_plan_settles_it(store: Store) -> None:
    """A receipt of a transaction that was never signed, or was signed for another plan, settles nothing."""
    _reserve(store, 1, 5)
    with pytest.raises(LedgerError, match="cannot be settled: it is reserved"):
        store.settled(_settlement(1, 10), 103)
    _sign(store, 1, 10)
    _reserve(store, 2, 6)
    _sign(store, 2, 20)
    for transaction in (99, 20):
        with pytest.raises(LedgerError, match="never signed for plan"):
            store.settled(_settlement(1, transaction), 103)
    with pytest.raises(LedgerError, match="never recorded as signed"):
        store.sent(_hash(99), 103)
    with pytest.raises(LedgerError, match="never reserved"):
        store.settled(_settlement(7, 10), 103)


def test_a_reorg_puts_a_plan_back_in_flight(store: Store) -> None:
    """A reopened plan is open again with all its attempts and can be settled by another of them."""
    _reserve(store, 1, 5)
    _sign(store, 1, 10)
    _sign(store, 1, 11, cancel=True, max_fee_wei=7)
    with pytest.raises(LedgerError, match="cannot be reopened: it is signed"):
        store.reopen(_hash(1))
    store.settled(_settlement(1, 10), 103)
    store.reopen(_hash(1))
    assert store.settlement(_hash(1)) is None
    [transaction] = store.open_transactions()
    assert [attempt.hash for attempt in transaction.attempts] == [_hash(10), _hash(11)]
    store.settled(_settlement(1, 11, profit_raw=0), 104)
    assert store.settlement(_hash(1)) == _settlement(1, 11, profit_raw=0)


def test_a_dropped_plan_is_closed_for_good(store: Store) -> None:
    """A plan whose nonce went elsewhere is no longer open, cannot be signed or settled, and keeps its nonce."""
    _reserve(store, 1, 5)
    _sign(store, 1, 10)
    store.dropped(_hash(1), 103)
    assert store.open_transactions() == []
    assert store.highest_nonce(SENDER) == 5
    with pytest.raises(LedgerError, match="cannot be signed: it is dropped"):
        _sign(store, 1, 12)
    with pytest.raises(LedgerError, match="cannot be settled: it is dropped"):
        store.settled(_settlement(1, 10), 104)


def test_a_folded_store_overwrites_its_log(store: Store) -> None:
    """After folding, what is written no longer makes the write-ahead log longer, and nothing is lost."""
    log = store.path.with_name(store.path.name + "-wal")
    for number in range(1, 20):
        _reserve(store, number, number)
    grown = log.stat().st_size
    store.fold()
    for number in range(20, 30):
        _reserve(store, number, number)
    assert log.stat().st_size == grown
    assert [transaction.nonce for transaction in store.open_transactions()] == list(range(1, 30))
