"""Migrations: a record of the first schema goes on as if it had always been of today's, and nothing in it changes."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from keeper.errors import LedgerError
from keeper.ledger import Ledger, copies, heads
from keeper.store import Store
from keeper.store.schema import SCHEMA_VERSION, metadata
from keeper.types import Address, Hash

ROOT = Path(__file__).resolve().parents[2]

# What the keeper of schema version 1 wrote, word for word.
_V1 = """
CREATE TABLE meta (
	id INTEGER NOT NULL,
	schema_version INTEGER NOT NULL,
	chain_id BIGINT,
	PRIMARY KEY (id),
	CONSTRAINT one_row CHECK (id = 1)
);
CREATE TABLE entries (
	seq INTEGER NOT NULL,
	at_s BIGINT NOT NULL,
	kind TEXT NOT NULL,
	plan_id TEXT NOT NULL,
	protocol TEXT NOT NULL,
	account TEXT NOT NULL,
	body TEXT NOT NULL,
	prev_hash TEXT NOT NULL,
	hash TEXT NOT NULL,
	PRIMARY KEY (seq)
);
CREATE INDEX entries_by_kind ON entries (kind, at_s);
CREATE INDEX entries_by_account ON entries (account, seq);
CREATE INDEX entries_by_plan ON entries (plan_id, seq);
CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: UPDATE refused'); END;
CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: DELETE refused'); END;
CREATE TRIGGER entries_only_next BEFORE INSERT ON entries
    WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM entries)
      OR NEW.prev_hash <> coalesce((SELECT hash FROM entries ORDER BY seq DESC LIMIT 1), NEW.prev_hash)
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: only the next entry may be added'); END;
CREATE TABLE cursors (
	protocol TEXT NOT NULL,
	block_number BIGINT NOT NULL,
	block_hash BLOB NOT NULL,
	PRIMARY KEY (protocol)
);
CREATE TABLE accounts (
	protocol TEXT NOT NULL,
	market TEXT NOT NULL,
	account BLOB NOT NULL,
	PRIMARY KEY (protocol, market, account)
)
 WITHOUT ROWID
;
CREATE TABLE intents (
	plan_id BLOB NOT NULL,
	sender BLOB NOT NULL,
	nonce BIGINT NOT NULL,
	protocol TEXT NOT NULL,
	market TEXT NOT NULL,
	account BLOB NOT NULL,
	state TEXT NOT NULL,
	reserved_at_s BIGINT NOT NULL,
	closed_at_s BIGINT,
	settled_hash BLOB,
	status SMALLINT,
	block_number BIGINT,
	block_hash BLOB,
	gas_used BIGINT,
	gas_cost_wei TEXT,
	profit_raw TEXT,
	PRIMARY KEY (plan_id),
	CONSTRAINT known_state CHECK (state IN ('reserved', 'signed', 'settled', 'dropped', 'released'))
);
CREATE UNIQUE INDEX one_claim_per_nonce ON intents (sender, nonce) WHERE state != 'released';
CREATE INDEX intents_by_state ON intents (state);
CREATE TABLE transactions (
	hash BLOB NOT NULL,
	plan_id BLOB NOT NULL,
	purpose TEXT NOT NULL,
	raw BLOB NOT NULL,
	max_fee_wei TEXT NOT NULL,
	gas_limit BIGINT NOT NULL,
	last_block BIGINT,
	signed_at_s BIGINT NOT NULL,
	sent_at_s BIGINT,
	PRIMARY KEY (hash),
	CONSTRAINT known_purpose CHECK (purpose IN ('plan', 'bump', 'cancel')),
	FOREIGN KEY(plan_id) REFERENCES intents (plan_id)
);
CREATE INDEX ix_transactions_plan_id ON transactions (plan_id);
INSERT INTO meta VALUES (1, 1, 31337);
INSERT INTO entries VALUES
(1, 1, 'warning', '', '', '', '{"detail":"n0"}', '0000000000000000000000000000000000000000000000000000000000000000',
    '7aaacbcc775a8558a5d8e4c0fb56e0c15097a08f04aea0c632cc77f3e979f45b'),
(2, 2, 'warning', '', '', '', '{"detail":"n1"}', '7aaacbcc775a8558a5d8e4c0fb56e0c15097a08f04aea0c632cc77f3e979f45b',
    '407d9684ef3e82ee5215e10c56b6630883dde541350dbf7b1c2e42267cf958d7'),
(3, 3, 'warning', '', '', '', '{"detail":"n2"}', '407d9684ef3e82ee5215e10c56b6630883dde541350dbf7b1c2e42267cf958d7',
    'cccac6de20a8ee9cd3bbe29f2bdb85768ec1543399221d6cec82c714bf62d01b');
INSERT INTO cursors VALUES ('aave', 7, zeroblob(32));
INSERT INTO accounts VALUES ('aave', 'm', zeroblob(20));
INSERT INTO intents (plan_id, sender, nonce, protocol, market, account, state, reserved_at_s)
    VALUES (zeroblob(32), x'0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a', 5, 'aave', 'm', zeroblob(20), 'signed', 9);
INSERT INTO transactions VALUES (zeroblob(32), zeroblob(32), 'plan', x'02', '9', 21000, 8, 9, NULL);
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A record as version 1 left it."""
    path = tmp_path / "keeper.db"
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA journal_mode = WAL")
    raw.executescript(_V1)
    raw.close()
    return path


def _shape(path: Path) -> dict[str, Any]:
    """Columns, indexes and triggers of every table, however they were made."""
    raw = sqlite3.connect(path)
    names = [
        name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    ]
    shape = {
        name: (
            [column[1:] for column in raw.execute(f"PRAGMA table_info({name})")],
            sorted(index[1:] for index in raw.execute(f"PRAGMA index_list({name})")),
            sorted(
                raw.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?", [name])
            ),
        )
        for name in names
    }
    raw.close()
    return shape


def _rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    raw = sqlite3.connect(path)
    tables = ("entries", "cursors", "accounts", "intents", "transactions")
    rows = {name: raw.execute(f"SELECT * FROM {name}").fetchall() for name in tables}  # noqa: S608
    rows["transactions"] = [row[:9] for row in rows["transactions"]]  # a later step adds a column
    raw.close()
    return rows


def test_an_old_record_is_brought_up_to_date_in_place(old: Path) -> None:
    """Every row is as it was, the old entries are still verified, and new ones, claims and heads follow them."""
    before = _rows(old)
    with Store.open_file(old, chain_id=31337) as store:
        ledger = Ledger(store)
        assert ledger.verify() is None and ledger.tip()[0] == 3
        assert store.copied_at_s() is None
        [claim] = store.open_transactions()
        assert (claim.nonce, claim.sender, len(claim.attempts)) == (5, Address(b"\x0a" * 20), 1)
        assert (
            claim.worst_case_wei == 9 * 21_000
        )  # of a chain that took nothing for bytes, as far as was known
        assert _rows(old) == before
        followed = {(block.number, block.hash) for block in store.blocks()}
        assert followed == {(number, block_hash) for _, number, block_hash in before["cursors"]} != set()
        ledger.book("warning", None, "", None, {"detail": "n3"}, 4)
        head = ledger.checkpoint(5)
        assert head is not None and head.size == 4 and heads.prove(store, 2).head == head
    with Store.open_file(old, read_only=True) as store:
        assert Ledger(store).verify(head) is None


def test_it_is_then_what_a_new_record_is(old: Path, tmp_path: Path) -> None:
    """Columns, keys, indexes and triggers are those of a record made today, and those the code declares."""
    Store.open_file(old).close()
    Store.open_file(tmp_path / "new.db").close()
    assert _shape(old) == _shape(tmp_path / "new.db")
    engine = create_engine(f"sqlite:///{old}", poolclass=NullPool)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_newest_step_is_the_schema_version() -> None:
    """The steps form one line that ends at the version the code writes."""
    config = Config()
    config.set_main_option("script_location", "keeper.store:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [str(SCHEMA_VERSION)]


def test_a_failed_upgrade_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a step fails halfway the record is of the old schema, whole, and can be opened by the old keeper."""
    before = _shape(old), _rows(old)
    raw = sqlite3.connect(old)
    raw.execute(
        "CREATE TRIGGER no_mark BEFORE UPDATE ON meta BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
    )
    raw.commit()
    with pytest.raises(LedgerError, match="the disk is full"):
        Store.open_file(old)
    raw.execute("DROP TRIGGER no_mark")
    raw.commit()
    raw.close()
    assert (_shape(old), _rows(old)) == before
    Store.open_file(old).close()


def test_a_reader_does_not_upgrade(old: Path) -> None:
    """Whoever only reads is told to start the keeper, and the file stays as it is."""
    before = _shape(old)
    with pytest.raises(
        LedgerError, match=f"older than the {SCHEMA_VERSION} this keeper writes; start the keeper on it once"
    ):
        Store.open_file(old, read_only=True)
    assert _shape(old) == before


def test_an_old_record_can_be_backed_up_and_an_old_backup_restored(old: Path, tmp_path: Path) -> None:
    """The copy is of today's schema, the old file is not touched."""
    before = _shape(old)
    head = copies.back_up(old, tmp_path / "backup.db", 9)
    assert head is not None and head.size == 3 and _shape(old) == before
    restored = tmp_path / "restored.db"
    assert copies.restore(old, restored, 31337, 10) == head
    with Store.open_file(restored) as store:
        assert store.copied_at_s() == 10 and Ledger(store).verify() is None
    assert _shape(old) == before


def test_only_an_upgrade_needs_alembic(old: Path, tmp_path: Path) -> None:
    """A record of today's schema is made and opened without importing it: a start must be quick."""
    code = """
import sys
from pathlib import Path
from keeper.ledger import Ledger
from keeper.store import Store
path = Path(sys.argv[1])
for _ in range(2):
    with Store.open_file(path) as store:
        Ledger(store).book("started", None, "", None, {}, 1)
print(any(name.split(".")[0] in ("alembic", "mako") for name in sys.modules))
"""
    said = [
        subprocess.run(
            [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        for path in (tmp_path / "new.db", old)
    ]
    assert said == ["False", "True"]


def test_a_claim_of_the_old_record_binds(old: Path) -> None:
    """The index that keeps a nonce from being claimed twice is still there."""
    with Store.open_file(old) as store, pytest.raises(LedgerError, match="Nonce 5 is claimed"):
        store.reserve(
            Hash(b"\x01" * 32),
            5,
            sender=Address(b"\x0a" * 20),
            key=store.open_transactions()[0].key,
            at_s=1,
        )
