"""The keeper in this process, head by head, as the daemon and whoever restarts it would run it.

A node that fails costs a head. Whatever ends the daemon (its record cannot be written, the node fails while it
starts, a death at a named point) is followed by a new start before the next head, from the files alone.
"""

from __future__ import annotations

import asyncio
import importlib
import sqlite3
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keeper import assembly
from keeper.chain.client import Chain
from keeper.engine import Engine
from keeper.engine.head import StepReport
from keeper.errors import AdapterError, ChainError, KeeperError
from keeper.lab.chaos.points import armed
from keeper.lab.rig import Rig
from keeper.ledger import Booked, Ledger
from keeper.store import Store, sqlite_path
from keeper.types import Hash

_LAB: Final = Path(__file__).parent.parent
_KEEPER: Final = _LAB.parent
_NO_LIMIT: Final = 2**30  # pages


class Died(BaseException):
    """The process is gone at this very place: nothing after it runs."""


@dataclass(slots=True)
class Line:
    """A keeper that is started, handles the newest head when told to, and is started again after it ended.

    `tally` counts what became of each head it was told of: handled, same, lost, ended (by which error), died.
    `crashes` are errors that no keeper should end with. One that `reacts` has its reflexes beside it, as in the daemon.
    """

    rig: Rig
    clock: Callable[[], float]
    reacts: bool = False
    tally: Counter[str] = field(default_factory=Counter)
    disk_full: bool = False
    last_error: str = ""
    crashes: list[str] = field(default_factory=list)
    _deaths: ExitStack = field(default_factory=ExitStack)
    _life: AsyncExitStack | None = None
    _parts: assembly.Parts | None = None
    _engine: Engine | None = None
    _reacting: asyncio.Task[None] | None = None
    _store: Store | None = None
    _seen: Hash = field(default_factory=lambda: Hash(b""))

    @property
    def running(self) -> bool:
        """Whether it has started and not ended, nor died beside the line."""
        return self._life is not None and not self._dead()

    @property
    def engine(self) -> Engine:
        """Its line, while it is running."""
        assert self._engine is not None, "it has started"
        return self._engine

    def booked(self, *kinds: str) -> list[Booked]:
        """Its entries of these kinds, oldest first, while it is running."""
        assert self._store is not None, "it has started"
        return Ledger(self._store).entries(None, kind=kinds)[::-1]

    async def head(self) -> StepReport | None:
        """Handle the newest head, starting first if need be; None when it did not come to the end of it."""
        if self._dead():
            self.tally["died"] += 1
            self.spare()
            await self.end()
        handling = asyncio.ensure_future(self._head())
        await asyncio.wait({handling})
        error = handling.exception()
        if error is None:
            report = handling.result()
            self.tally["same" if report is None else "handled"] += 1
            return report
        self.last_error = str(error)
        if isinstance(error, ChainError | AdapterError) and self._engine is not None:
            self.tally["lost"] += 1  # while it starts the same ends the daemon
            return None
        if isinstance(error, Died) or (
            isinstance(error, BaseExceptionGroup)
            and error.subgroup(Died) is not None  # in what ran beside the line
        ):
            self.tally["died"] += 1
            self.spare()
        elif isinstance(error, KeeperError):
            self.tally[f"ended by {type(error).__name__}"] += 1
        else:
            self.crashes.append("".join(traceback.format_exception(error)[-3:]))
        await self.end()
        return None

    def dies_at(self, point: str, nth: int) -> None:
        """From now on it dies the `nth` time it gets to a named point, whichever of several comes first."""
        self._deaths.enter_context(armed(point, nth, _die))

    def spare(self) -> None:
        """It no longer dies anywhere."""
        self._deaths.close()

    def in_flight(self) -> bool:
        """Whether its record says that a nonce is claimed and not accounted for."""
        return self._store is not None and bool(self._store.open_transactions())

    async def end(self) -> None:
        """Close everything without finishing anything."""
        life, self._life = self._life, None
        self._engine = self._store = self._parts = self._reacting = None
        # a process that is gone does not go on with what it did beside
        begun = [task for task in asyncio.all_tasks() if _is_keepers(task)]
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)
        if life is not None:
            await life.aclose()

    def _dead(self) -> bool:
        beside = self._reacting
        return beside is not None and beside.done() and _is_death(beside.exception())

    async def _head(self) -> StepReport | None:
        if self._life is None:
            await self._start()
        assert self._parts is not None and self._engine is not None, "it has started"
        if self._reacting is not None and self._reacting.done():
            self._reacting.result()  # it raises what ended them
        self._limit_disk()
        head = await self._parts.chain.head()
        if head.hash == self._seen:
            return None
        report = await self._engine.step(head)
        self._seen = head.hash
        return report

    async def _start(self) -> None:
        self._life = AsyncExitStack()
        self._seen = Hash(b"")
        settings = assembly.settings(self.rig.config)
        self._parts = await self._life.enter_async_context(assembly.open_parts(settings))
        self._store = self._life.enter_context(Store.open(settings.store.url, chain_id=settings.chain.id))
        self._limit_disk()
        key = assembly.operator_key(settings, self.clock)
        engine, _ = await assembly.engine(self._parts, self._store, key, sign=True, wall_clock=self.clock)
        await engine.start(await self._parts.chain.head())
        self._engine = engine
        self._reacting = asyncio.create_task(engine.reflexes.run()) if self.reacts else None

    def _limit_disk(self) -> None:
        """A record that may not grow by a page, while the disk is said to be full."""
        assert self._store is not None, "it was opened"
        with self._store.transaction() as connection:
            pages = (
                connection.exec_driver_sql("PRAGMA page_count").scalar_one() if self.disk_full else _NO_LIMIT
            )
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")


@contextmanager
def locked(rig: Rig) -> Iterator[None]:
    """Another program writes to the record for as long as this lasts; without a record there is nothing to lock."""
    path = sqlite_path(assembly.settings(rig.config).store.url)
    if not path.exists():
        yield
        return
    other = sqlite3.connect(path, isolation_level=None)
    try:
        with suppress(sqlite3.OperationalError):
            other.execute("BEGIN IMMEDIATE")
        yield
    finally:
        other.close()


@contextmanager
def impatient(*, timeout_s: float, busy_ms: int, quiet_s: float) -> Iterator[None]:
    """Nodes, a locked record and silent heads are waited for as long as this: what takes minutes takes seconds then."""
    database = importlib.import_module("keeper.store.database")
    heads = importlib.import_module("keeper.chain.heads")
    options = Chain.open.__func__.__kwdefaults__  # type: ignore[attr-defined]
    before = [
        _exchanged(options, "timeout_s", timeout_s),
        _exchanged(vars(database), "_BUSY_TIMEOUT_MS", busy_ms),
        _exchanged(vars(heads), "_QUIET_S", quiet_s),
    ]
    try:
        yield
    finally:
        for undo in before:
            undo()


def _exchanged(names: dict[str, Any], name: str, value: Any) -> Callable[[], None]:
    before, names[name] = names[name], value
    return lambda: names.update({name: before})


def _is_keepers(task: asyncio.Task[Any]) -> bool:
    """Whether a task runs the keeper's own code, not the lab's."""
    code = getattr(task.get_coro(), "cr_code", None)
    return (
        code is not None and _KEEPER in (path := Path(code.co_filename)).parents and _LAB not in path.parents
    )


def _is_death(error: BaseException | None) -> bool:
    return isinstance(error, Died) or (isinstance(error, BaseExceptionGroup) and bool(error.subgroup(Died)))


def _die() -> None:
    raise Died
