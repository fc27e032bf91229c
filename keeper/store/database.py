"""One SQLite file, one writing process, one connection, and errors in the keeper's own words.

Commits happen inline on the caller's thread. The journal is a write-ahead log: every commit survives the death of the
process, in order, and a `durable` one also a power cut, with all commits before it. Only what must not be lost before
something leaves this machine (signed bytes) asks for that, because it waits milliseconds for the disk.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from keeper.errors import ConfigError, LedgerError
from keeper.store.schema import SCHEMA_VERSION, alembic_version, meta, metadata

_BUSY_TIMEOUT_MS: Final = 2_000


class Database:
    """An open store; `open` is the way in, `close` or `with` the way out.

    A writer holds `<file>.lock` for its lifetime, so a second one fails at once instead of corrupting nonces; readers
    (`read_only=True`) take no lock and never block it.
    """

    def __init__(self, path: Path, connection: Connection) -> None:
        self.path: Final = path
        self._connection: Final = connection
        self._resources = ExitStack()
        self._depth = 0
        self._doomed = False
        self._durable = False
        self._owner: asyncio.Task[Any] | None = None
        self._rollback_hooks: list[Callable[[], None]] = []
        # What its one writer knows of stored rows without reading them again; emptied when a transaction is undone.
        self.remembered: Final[dict[str, Any]] = {}
        self.on_rollback(self.remembered.clear)

    @classmethod
    def open(cls, url: str, *, chain_id: int | None = None, read_only: bool = False) -> Self:
        """Open `sqlite:///path`; see `open_file`. Raises `ConfigError` for another kind of URL."""
        return cls.open_file(sqlite_path(url), chain_id=chain_id, read_only=read_only)

    @classmethod
    def open_file(cls, path: Path, *, chain_id: int | None = None, read_only: bool = False) -> Self:
        """Open a file, creating it (mode 0600) for a writer, who also brings an older schema up to date.

        Raises `LedgerError` when another process writes to it, when it belongs to another chain or a newer schema, or
        when it is missing or damaged.
        """
        if read_only and not path.exists():
            raise LedgerError(
                f"There is no record at {path} yet; start the keeper once, or correct store.url."
            )
        with ExitStack() as undo:
            if not read_only:
                undo.enter_context(writing_alone(path))
                _create_private(path)
            engine = _engine(path, read_only)
            undo.callback(engine.dispose)
            with in_our_words(path, "open"):
                self = cls(path, engine.connect())
            undo.callback(self._connection.close)
            self._prepare(chain_id, read_only)
            self._resources = undo.pop_all()
        return self

    def close(self) -> None:
        """Close the file and let another process write; safe to call twice."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[Connection]:
        """All or nothing: whatever is stored inside is committed once, at the end of the outermost block.

        With `durable` the outermost block returns only when it and all commits before it are on the disk; inside a
        block that is not, it is refused.

        Blocks nest. An exception at any depth undoes the whole, even if it is caught further out. Never await
        inside: another task's writes would join, and that is refused with `LedgerError`.
        """
        task = _current_task()
        if self._depth and task is not self._owner:
            raise LedgerError(
                f"Two tasks wrote to {self.path} in one transaction; never await inside transaction()."
            )
        outermost = self._depth == 0
        if durable and not (outermost or self._durable):
            raise LedgerError(
                f"A durable step on {self.path} was begun inside one that is not; make the outer durable."
            )
        with in_our_words(self.path, "write to"):
            if outermost:
                self._owner, self._doomed, self._durable = task, False, durable
                self._flush_on_commit(durable)
                self._connection.begin()
            self._depth += 1
            done = False
            try:
                yield self._connection
                done = True
            finally:
                self._depth -= 1
                self._doomed = self._doomed or not done
                if outermost:
                    self._finish(done)

    def _flush_on_commit(self, durable: bool) -> None:
        # Between transactions only: SQLite ignores the change inside one. The driver's own connection, because
        # SQLAlchemy's would begin a transaction to execute it.
        driver: Any = self._connection.connection.driver_connection
        driver.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")

    def fold(self) -> None:
        """Move the write-ahead log into the file; for a quiet moment.

        The next commits then overwrite the log. One that makes it longer is a durable commit several times slower,
        and the one that fills it would have to move it all.
        """
        with in_our_words(self.path, "fold"):
            driver: Any = self._connection.connection.driver_connection
            driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def on_rollback(self, hook: Callable[[], None]) -> None:
        """Call `hook` whenever a transaction is undone, so that what mirrors it in memory can forget it too."""
        self._rollback_hooks.append(hook)

    def _finish(self, done: bool) -> None:
        committed = False
        try:
            if not self._doomed:
                self._connection.commit()
                committed = True
        finally:
            if not committed:
                self._connection.rollback()
                for hook in self._rollback_hooks:
                    hook()
        if done and self._doomed:
            raise LedgerError(
                f"A step of a transaction on {self.path} failed and was hidden; nothing was stored."
            )

    def copied_at_s(self) -> int | None:
        """Since when this file is a copy, so that the chain may know transactions it does not; None for an original."""
        with self.transaction() as connection:
            copied_at_s: int | None = connection.execute(select(meta.c.copied_at_s)).scalar_one()
        return copied_at_s

    def mark_copied(self, at_s: int | None) -> None:
        """Say that this file is a copy, or (None) that the chain has nothing any more that it does not know."""
        with self.transaction() as connection:
            connection.execute(meta.update().values(copied_at_s=at_s))

    def _prepare(self, chain_id: int | None, read_only: bool) -> None:
        with self.transaction() as connection:
            tables = inspect(connection).get_table_names()
            if not tables and not read_only:
                metadata.create_all(connection)
                connection.execute(alembic_version.insert().values(version_num=str(SCHEMA_VERSION)))
                connection.execute(
                    meta.insert().values(id=1, schema_version=SCHEMA_VERSION, chain_id=chain_id)
                )
                return
            row = connection.execute(_IDENTITY).one_or_none() if meta.name in tables else None
            if row is None:
                raise LedgerError(f"{self.path} is a database but not a keeper's record; name another file.")
            if row.schema_version < SCHEMA_VERSION and not read_only:
                from keeper.store.migrations import upgrade  # noqa: PLC0415 - alembic takes a quarter second to import

                upgrade(connection)
                row = connection.execute(_IDENTITY).one()
            if row.schema_version != SCHEMA_VERSION:
                raise LedgerError(
                    f"{self.path} has schema version {row.schema_version}, {_age(row.schema_version)}"
                )
            if chain_id is not None and row.chain_id is None and not read_only:
                connection.execute(meta.update().values(chain_id=chain_id))
            elif chain_id is not None and row.chain_id not in (None, chain_id):
                raise LedgerError(
                    f"{self.path} is the record of chain {row.chain_id}, not of chain {chain_id}; "
                    f"point store.url at another file or correct chain.id."
                )


# What every schema since the first has.
_IDENTITY: Final = select(meta.c.schema_version, meta.c.chain_id)


def _age(version: int) -> str:
    if version > SCHEMA_VERSION:
        return (
            f"newer than the {SCHEMA_VERSION} this keeper writes; use the keeper version that wrote it, or point "
            "store.url at a new file."
        )
    return (
        f"older than the {SCHEMA_VERSION} this keeper writes; start the keeper on it once, which upgrades it."
    )


def sqlite_path(url: str) -> Path:
    """The file of a `sqlite:///path` URL; anything else is a `ConfigError` that does not repeat the URL."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError("store.url is not a database URL; write sqlite:///keeper.db.") from None
    if (
        parsed.drivername != "sqlite"
        or parsed.host
        or parsed.query
        or parsed.database in (None, "", ":memory:")
    ):
        raise ConfigError("store.url must name an SQLite file for now; write sqlite:///keeper.db.")
    return Path(str(parsed.database))


def _engine(path: Path, read_only: bool) -> Engine:
    # One connection for one thread; hide_parameters keeps signed bytes out of error messages.
    place = URL.create("sqlite", database=str(path))
    if read_only and not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists():
        # a closed record where nothing can be written: SQLite would want to make a journal there even to read
        place = URL.create(
            "sqlite", database=f"file:{quote(str(path.absolute()))}", query={"immutable": "1", "uri": "true"}
        )
    engine = create_engine(
        place,
        connect_args={"check_same_thread": True, "timeout": _BUSY_TIMEOUT_MS / 1000, "isolation_level": None},
        poolclass=StaticPool,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: object) -> None:
        if read_only:
            connection.execute("PRAGMA query_only = ON")
            # who reads a damaged record must be told which entry it is, not that it is no UTF-8
            connection.text_factory = lambda text: text.decode(errors="replace")
        else:
            [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise LedgerError(
                    f"{path} is on a file system without write-ahead logging; move store.url elsewhere."
                )
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # The driver would begin only at the first write, and could then fail halfway through with "database is
        # locked"; a writer takes its place in the queue at once.
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def writing_alone(path: Path) -> Iterator[None]:
    """Hold the writer's lock on a file. Raises `LedgerError` while another process holds it."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise LedgerError(f"{lock_path} cannot be written ({error.strerror}); correct store.url.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise LedgerError(
                f"Another keeper (process {holder}) is writing to {path}; stop it, or give this one another store.url."
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def _create_private(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise LedgerError(f"{path} cannot be created ({error.strerror}); correct store.url.") from error


@contextmanager
def in_our_words(path: Path, verb: str) -> Iterator[None]:
    """Turn whatever the database raises into a `LedgerError` that names the file and what was tried."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = getattr(error, "orig", None) or error
        raise LedgerError(
            f"The keeper could not {verb} its record {path}: {cause}; check the file, its permissions and the disk."
        ) from error


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # no event loop: the command line and tests
