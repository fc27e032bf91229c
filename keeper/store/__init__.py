"""The record on disk: SQLite now, a schema Postgres can take."""

from keeper.store.database import Database, sqlite_path
from keeper.store.store import Attempt, Cursor, OpenTransaction, Purpose, Store

__all__ = ["Attempt", "Cursor", "Database", "OpenTransaction", "Purpose", "Store", "sqlite_path"]
