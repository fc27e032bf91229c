"""A daemon on a stage: blocks pass, prices fall, whoever watches it starts it again, and in the end there is peace."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from keeper.lab.chaos.daemon import Daemon
from keeper.lab.chaos.faults import CONTENT, LIES, POOL, SOCKET, TRANSPORT, Kind
from keeper.lab.chaos.launcher import Fate, write_clock
from keeper.lab.chaos.stage import Stage
from keeper.lab.chaos.witness import Breach, Witness

# What may go wrong between a daemon and its node. The only provider does not lie here: it would get away with it.
NETWORK: Final[tuple[tuple[Kind, ...], ...]] = (
    TRANSPORT,
    tuple(kind for kind in CONTENT if kind not in LIES),
    SOCKET,
    POOL,
)
_QUIET: Final = 6  # blocks without anything new, after which a daemon is done
_MOST_BLOCKS: Final = 200  # to finish what is left
_EXIT_S: Final = 5.0
_LOOK_S, _LOOKS = 0.01, 15  # how often, and how many times, the record is looked at for a head
_FIRST_BORROWER: Final = 10_000


@dataclass(slots=True)
class Run:
    """One stage, one record, any number of daemons one after another; `endings` says why they ended by themselves."""

    stage: Stage
    chance: random.Random
    witness: Witness
    pace_s: float
    offset_s: int = 0
    borrowers: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)

    @classmethod
    async def begin(cls, stage: Stage, chance: random.Random, pace_s: float) -> Run:
        """Before the first daemon."""
        run = cls(stage, chance, await Witness.begin(stage.lab, stage.rig), pace_s)
        stage.proxy.watch = run.witness.see
        await stage.begin()
        await run.block()
        return run

    # --- the chain ---------------------------------------------------------------------------------------------------

    async def block(self) -> None:
        """The next block, and the wall clock a second after it."""
        await self.stage.proxy.next_block()
        await self.stage.mine()
        write_clock(self.stage.rig.folder / "clock", await self.stage.now_s() + 1 + self.offset_s)

    async def blocks(self, count: int) -> None:
        """So many blocks, at the run's pace."""
        for _ in range(count):
            await self.block()
            await asyncio.sleep(self.pace_s)

    async def followed_blocks(self, count: int) -> None:
        """So many blocks, the next one as soon as the daemon has handled one, or after a while."""
        for _ in range(count):
            await self.block()
            number = (await self.stage.lab.node.head()).number
            for _ in range(_LOOKS):
                await asyncio.sleep(_LOOK_S)
                if self.witness.followed() >= number:
                    break

    async def fall(self) -> None:
        """One to three new borrowers, and a price at which they are unsafe."""
        count = self.chance.randint(1, 3)
        await self.stage.fall(_FIRST_BORROWER + self.borrowers, count, self.chance.randint(8_800, 9_300))
        self.borrowers += count

    # --- the daemon --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def daemon(self, point: str = "", nth: int = 1) -> AsyncIterator[Daemon]:
        """A daemon that dies at a named point, or at none; it is gone at the end."""
        daemon = await Daemon.start(self.stage.rig, Fate(str(self.stage.rig.folder / "clock"), point, nth))
        try:
            yield daemon
        finally:
            if daemon.running:
                daemon.kill()
                await daemon.ended()

    def ended(self, daemon: Daemon, code: int) -> None:
        """It ended by itself: the reason it gave is kept, and a crash is no reason."""
        events = daemon.events()
        for event in events:
            if event.get("event") == "unhandled exception":
                self.witness.breaches.append(Breach("explained", str(event.get("exception"))[-2_000:]))
        said = [text for event in events if (text := str(event.get("event"))).startswith("keeper: ")]
        reason = said[-1].replace(str(self.stage.rig.folder), "…") if said else "it said nothing"
        self.endings[f"code {code}: {reason}"] += 1

    async def until(self, daemon: Daemon, done: Callable[[], bool]) -> bool:
        """Let blocks pass until something is so; otherwise, with nothing wrong, it is a breach."""
        for _ in range(_MOST_BLOCKS):
            await self.blocks(1)
            if done():
                return True
            if not daemon.running:
                self.ended(daemon, await daemon.ended())
                break
        text = f"with nothing wrong it did not finish within {_MOST_BLOCKS} blocks, or ended"
        self.witness.breaches.append(Breach("works_again", text))
        return False

    async def peace(self, daemon: Daemon) -> None:
        """Nothing is wrong any more: prices fall once more, the daemon finishes, and ends when it is told to."""
        self.stage.proxy.play(())
        self.offset_s = 0
        if not await self.until(daemon, lambda: daemon.started):
            return
        await self.fall()
        if not await self.until(daemon, self._quiet()):
            return
        code, seconds = await daemon.stop()
        if code != 0 or seconds > _EXIT_S:
            text = f"told to stop, it ended with code {code} after {seconds:.1f} s"
            self.witness.breaches.append(Breach("explained", text))

    def _quiet(self) -> Callable[[], bool]:
        """Says whether nothing is in flight and nothing was sent for some blocks."""
        before, since = -1, 0

        def quiet() -> bool:
            nonlocal before, since
            intents = self.witness.outcomes()["intent"]
            same = intents == before and not self.witness.in_flight()
            before, since = intents, since + 1 if same else 0
            return since >= _QUIET

        return quiet
