"""The most that a chain may take for a signed transaction's bytes beside its gas."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "3"
down_revision: Final = "2"
branch_labels: Final = None
depends_on: Final = None


def upgrade() -> None:
    """From version 2, which knew of no such fee: nothing is said of what was signed before."""
    op.add_column("transactions", sa.Column("max_data_fee_wei", sa.Text))
    op.execute("UPDATE meta SET schema_version = 3")
