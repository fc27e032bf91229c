"""The daemon's loop: heads in, steps out, until it is told to stop.

A node that fails costs a head, never the run; what the money depends on (ledger, keys, a transaction that cannot be
accounted for) ends the run at once, because going on could do harm.

Told to stop, it lets the step under way end by itself for a moment and then abandons it where it waits for others.
What was signed is on record however the step ends; a nonce for which nothing was signed is freed at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from keeper.breakers import Breakers
from keeper.chain.client import Chain, Notice
from keeper.engine import Engine
from keeper.engine.head import StepReport
from keeper.errors import AdapterError, ChainError, NoQuorum
from keeper.ledger import Ledger
from keeper.types import Head, Refusal

_GRACE_S: Final = 1.5  # how long a step may go on after the signal
_GOODBYE_S: Final = 0.3  # how long a node may take to hear that it is over

_log = structlog.get_logger("keeper.daemon")


@dataclass(slots=True)
class Statistics:
    """What a run came to, booked when it stops; reaction is from a head's arrival to its first broadcast."""

    heads: int = 0
    sent: int = 0
    reactions_us: list[int] = field(default_factory=list)

    def count(self, report: StepReport) -> None:
        """Add one head."""
        self.heads += 1
        self.sent += len(report.sent)
        if report.reaction_us is not None:
            self.reactions_us.append(report.reaction_us)

    def body(self) -> dict[str, int]:
        """In the ledger's words; percentiles only where there was something to measure."""
        body = {"heads": self.heads, "sent": self.sent}
        if self.reactions_us:
            ordered = sorted(self.reactions_us)
            body["reaction_p50_us"] = ordered[len(ordered) // 2]
            body["reaction_p99_us"] = ordered[len(ordered) * 99 // 100]
        return body


def book_notices(chain: Chain, ledger: Ledger, breakers: Breakers, wall_clock: Callable[[], float]) -> None:
    """Book what happens to providers; a time without heads is a refusal, because nothing is done in it."""

    def book(notice: Notice) -> None:
        at_s = int(wall_clock())
        if notice.name == "no_heads":
            _refuse(ledger, "no_heads", notice.detail, notice.head, at_s)
        else:
            body = {"name": notice.name, "provider": notice.provider, "detail": notice.detail}
            ledger.book("warning", None, "", None, {**body, "head": notice.head}, at_s)
        if notice.contradicted:
            breakers.disagreed(notice.provider)

    chain.listen(book)


async def run_once(chain: Chain, engine: Engine) -> StepReport:
    """Handle the newest head and return."""
    head = await chain.head()
    await engine.start(head)
    return await engine.step(head)


async def run(chain: Chain, engine: Engine, ledger: Ledger, wall_clock: Callable[[], float]) -> None:
    """Handle heads until SIGINT or SIGTERM, and be done within seconds of it whatever the nodes do."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    working = asyncio.create_task(_work(chain, engine, ledger, wall_clock, stopping))
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({working}, timeout=_GRACE_S)
        if not working.done():
            _log.warning("step_abandoned")
    finally:
        await _end(working)
        await _end(stopping)
    if working.done() and not working.cancelled():
        working.result()


async def _work(
    chain: Chain,
    engine: Engine,
    ledger: Ledger,
    wall_clock: Callable[[], float],
    stopping: asyncio.Future[Any],
) -> None:
    first = await chain.head()
    await engine.start(first)
    gc.collect()
    gc.freeze()  # accounts, interfaces and modules stay: no collection in the middle of a head walks them
    statistics = Statistics()
    policy = {"policy": engine.policy.version, "settings": engine.policy.decisive}
    body = {"head": first.number, "head_hash": first.hash, **policy}
    ledger.book("started", None, "", None, body, int(wall_clock()))
    _log.info("started", head=first.number, **_ledger_head(ledger, int(wall_clock())))
    heads = chain.heads()
    reacting = asyncio.create_task(engine.reflexes.run())
    try:
        await _guarded_step(engine, first, statistics, ledger, wall_clock)
        while (head := await _next(heads, stopping, reacting)) is not None:
            await _guarded_step(engine, head, statistics, ledger, wall_clock)
    finally:
        reacting.cancel()
        ledger.book("stopped", None, "", None, statistics.body(), int(wall_clock()))
        _log.info("stopped", **_ledger_head(ledger, int(wall_clock())))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await heads.aclose()
        await _end(reacting)


async def _next(
    heads: AsyncGenerator[Head], stopping: asyncio.Future[Any], reacting: asyncio.Future[None]
) -> Head | None:
    """The next head, or None when it is told to stop; raises what ended the reflexes."""
    coming = asyncio.ensure_future(anext(heads))
    try:
        await asyncio.wait({coming, stopping, reacting}, return_when=asyncio.FIRST_COMPLETED)
        if reacting.done():
            reacting.result()
        return None if stopping.done() else coming.result()
    finally:
        await _end(coming)


async def _end(task: asyncio.Future[Any]) -> None:
    """Cancel it, and once more if its farewell hangs."""
    for _ in range(2):
        if task.done():
            return
        task.cancel()
        await asyncio.wait({task}, timeout=_GOODBYE_S)


def _ledger_head(ledger: Ledger, at_s: int) -> dict[str, Any]:
    """The ledger's head, stored and for the log: wherever logs are kept, so is what the ledger must fit."""
    head = ledger.checkpoint(at_s)
    return {"entries": head.size, "root": head.root} if head else {}


async def _guarded_step(
    engine: Engine, head: Head, statistics: Statistics, ledger: Ledger, wall_clock: Callable[[], float]
) -> None:
    try:
        statistics.count(await engine.step(head))
    except (ChainError, AdapterError) as error:
        _log.warning("head_lost", head=head.number, error=str(error))
        reason = "no_quorum" if isinstance(error, NoQuorum) else "head_lost"
        _refuse(ledger, reason, str(error), head.number, int(wall_clock()))


def _refuse(ledger: Ledger, reason: str, error: str, head: int, at_s: int) -> None:
    refusal = Refusal("follow", reason, {"error": error})
    ledger.book_refusal(refusal, protocol="", account=None, head=head, at_s=at_s)
