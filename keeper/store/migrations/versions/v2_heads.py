"""Heads of the Merkle tree, the last blocks followed, and whether a record is a copy."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "2"
down_revision: Final = None  # version 1, from before steps were kept
branch_labels: Final = None
depends_on: Final = None

_APPEND_ONLY: Final = (
    """CREATE TRIGGER heads_no_update BEFORE UPDATE ON heads
    BEGIN SELECT RAISE(ABORT, 'heads are append-only: UPDATE refused'); END""",
    """CREATE TRIGGER heads_no_delete BEFORE DELETE ON heads
    BEGIN SELECT RAISE(ABORT, 'heads are append-only: DELETE refused'); END""",
    """CREATE TRIGGER heads_only_larger BEFORE INSERT ON heads
    WHEN NEW.size <= (SELECT max(size) FROM heads)
    BEGIN SELECT RAISE(ABORT, 'heads are append-only: only a larger one may be added'); END""",
)


def upgrade() -> None:
    """From version 1."""
    op.create_table(
        "heads",
        sa.Column(
            "size",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("at_s", sa.BigInteger, nullable=False),
        sa.Column("root", sa.Text, nullable=False),
        sa.Column("peaks", sa.Text, nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        for trigger in _APPEND_ONLY:
            op.execute(trigger)
    op.create_table(
        "blocks",
        sa.Column(
            "number",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("hash", sa.LargeBinary, nullable=False),
    )
    # else the first start would find no block that it shares with the chain, and read all logs again
    op.execute("INSERT INTO blocks SELECT DISTINCT block_number, block_hash FROM cursors")
    op.add_column("meta", sa.Column("copied_at_s", sa.BigInteger))
    op.execute("UPDATE meta SET schema_version = 2")
