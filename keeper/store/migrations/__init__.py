"""How a record written by an older keeper comes to today's schema: alembic, one file in `versions` per step.

Version 1 is the base and has no file. A step is frozen once released: it says what it does in its own words and takes
nothing from `keeper.store.schema`, which moves on; tests hold the two together.
"""

from __future__ import annotations

from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

_PLACE: Final = "keeper.store:migrations"


def upgrade(connection: Connection) -> None:
    """Run every step that the record lacks, inside the caller's transaction: all of them or none."""
    config = Config()
    config.set_main_option("script_location", _PLACE)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
