"""The daemon's loop: heads in, steps out, until it is told to stop.

A node that fails costs a head, never the run; what the money depends on (ledger, keys, a transaction that cannot be
accounted for) ends the run at once, because going on could do harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from keeper.chain.client import Chain
from keeper.engine import Engine, StepReport
from keeper.errors import AdapterError, ChainError
from keeper.ledger import Ledger
from keeper.types import Head

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


async def run_once(chain: Chain, engine: Engine) -> StepReport:
    """Handle the newest head and return."""
    head = await chain.head()
    await engine.start(head)
    return await engine.step(head)


async def run(chain: Chain, engine: Engine, ledger: Ledger, wall_clock: Callable[[], float]) -> None:
    """Handle heads until SIGINT or SIGTERM; a step that has begun is finished first."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    head = await chain.head()
    await engine.start(head)
    gc.collect()
    gc.freeze()  # accounts, interfaces and modules stay: no collection in the middle of a head walks them
    statistics = Statistics()
    ledger.book("started", None, "", None, {"head": head.number, "head_hash": head.hash}, int(wall_clock()))
    _log.info("started", head=head.number)
    try:
        await _guarded_step(engine, head, statistics)
        heads = chain.heads()
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                coming = asyncio.ensure_future(anext(heads))
                await asyncio.wait({coming, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await coming
                    break
                await _guarded_step(engine, coming.result(), statistics)
        finally:
            stopping.cancel()
            await heads.aclose()
    finally:
        ledger.book("stopped", None, "", None, statistics.body(), int(wall_clock()))
        _log.info("stopped")


async def _guarded_step(engine: Engine, head: Head, statistics: Statistics) -> None:
    try:
        statistics.count(await engine.step(head))
    except (ChainError, AdapterError) as error:
        _log.warning("head_lost", head=head.number, error=str(error))
