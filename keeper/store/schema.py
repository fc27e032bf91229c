"""Tables of the record, neutral between SQLite and Postgres.

Amounts that may exceed 64 bits are decimal text; hashes and addresses are bytes; `entries` is text throughout, so
that a line of the ledger can be read and hashed with nothing but the database at hand. Times are whole seconds since
the epoch.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    event,
)

SCHEMA_VERSION: Final = 3

metadata: Final = MetaData()

# One row: which schema this is, the one chain the record is about, and since when it is a copy of a record that went on
# without it.
meta: Final = Table(
    "meta",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("schema_version", Integer, nullable=False),
    Column("chain_id", BigInteger),
    Column("copied_at_s", BigInteger),
    CheckConstraint("id = 1", name="one_row"),
)

# Alembic's own mark: the last migration this schema contains. Written here too, so that only an upgrade needs alembic.
alembic_version: Final = Table(
    "alembic_version",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

entries: Final = Table(
    "entries",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at_s", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("plan_id", Text, nullable=False),
    Column("protocol", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("prev_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Index("entries_by_kind", "kind", "at_s"),
    Index("entries_by_account", "account", "seq"),
    Index("entries_by_plan", "plan_id", "seq"),
)

# Heads of the Merkle tree over `entries`: its size and root, and the roots of its complete subtrees, so that the next
# head costs only what is new. Hexadecimal text.
heads: Final = Table(
    "heads",
    metadata,
    Column("size", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at_s", BigInteger, nullable=False),
    Column("root", Text, nullable=False),
    Column("peaks", Text, nullable=False),
)

cursors: Final = Table(
    "cursors",
    metadata,
    Column("protocol", Text, primary_key=True),
    Column("block_number", BigInteger, nullable=False),
    Column("block_hash", LargeBinary, nullable=False),
)

# The last blocks that were followed, oldest forgotten: where a reorganisation left them is looked for here.
blocks: Final = Table(
    "blocks",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
)

# A million rows are normal here, so the key is the row: no second copy in an index.
accounts: Final = Table(
    "accounts",
    metadata,
    Column("protocol", Text, primary_key=True),
    Column("market", Text, primary_key=True),
    Column("account", LargeBinary, primary_key=True),
    sqlite_with_rowid=False,
)

# One plan's claim on one nonce, from before it is signed until its outcome is known.
intents: Final = Table(
    "intents",
    metadata,
    Column("plan_id", LargeBinary, primary_key=True),
    Column("sender", LargeBinary, nullable=False),
    Column("nonce", BigInteger, nullable=False),
    Column("protocol", Text, nullable=False),
    Column("market", Text, nullable=False),
    Column("account", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("reserved_at_s", BigInteger, nullable=False),
    Column("closed_at_s", BigInteger),
    Column("settled_hash", LargeBinary),
    Column("status", SmallInteger),
    Column("block_number", BigInteger),
    Column("block_hash", LargeBinary),
    Column("gas_used", BigInteger),
    Column("gas_cost_wei", Text),
    Column("profit_raw", Text),
    CheckConstraint("state IN ('reserved', 'signed', 'settled', 'dropped', 'released')", name="known_state"),
    Index("intents_by_state", "state"),
)

# A released nonce was never signed for and may be claimed again; every other claim is for good.
Index(
    "one_claim_per_nonce",
    intents.c.sender,
    intents.c.nonce,
    unique=True,
    sqlite_where=intents.c.state != "released",
    postgresql_where=intents.c.state != "released",
)

# Everything signed for an intent: the plan's own transaction, its fee bumps, its cancellation.
transactions: Final = Table(
    "transactions",
    metadata,
    Column("hash", LargeBinary, primary_key=True),
    Column("plan_id", LargeBinary, ForeignKey("intents.plan_id"), nullable=False, index=True),
    Column("purpose", Text, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    Column("max_fee_wei", Text, nullable=False),
    Column("gas_limit", BigInteger, nullable=False),
    Column("last_block", BigInteger),
    Column("signed_at_s", BigInteger, nullable=False),
    Column("sent_at_s", BigInteger),
    Column("max_data_fee_wei", Text),
    CheckConstraint("purpose IN ('plan', 'bump', 'cancel')", name="known_purpose"),
)

# INSERT OR REPLACE removes a row without firing a DELETE trigger, hence the third of each: only the next seq that links
# to the newest hash may come in, and only a larger head.
_APPEND_ONLY: Final = {
    entries: (
        """CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: UPDATE refused'); END""",
        """CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: DELETE refused'); END""",
        """CREATE TRIGGER entries_only_next BEFORE INSERT ON entries
    WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM entries)
      OR NEW.prev_hash <> coalesce((SELECT hash FROM entries ORDER BY seq DESC LIMIT 1), NEW.prev_hash)
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: only the next entry may be added'); END""",
    ),
    heads: (
        """CREATE TRIGGER heads_no_update BEFORE UPDATE ON heads
    BEGIN SELECT RAISE(ABORT, 'heads are append-only: UPDATE refused'); END""",
        """CREATE TRIGGER heads_no_delete BEFORE DELETE ON heads
    BEGIN SELECT RAISE(ABORT, 'heads are append-only: DELETE refused'); END""",
        """CREATE TRIGGER heads_only_larger BEFORE INSERT ON heads
    WHEN NEW.size <= (SELECT max(size) FROM heads)
    BEGIN SELECT RAISE(ABORT, 'heads are append-only: only a larger one may be added'); END""",
    ),
}
for _table, _triggers in _APPEND_ONLY.items():
    for _trigger in _triggers:
        _statement = DDL(_trigger)  # type: ignore[no-untyped-call]  # SQLAlchemy left DDL.__init__ unannotated
        event.listen(_table, "after_create", _statement.execute_if(dialect="sqlite"))
