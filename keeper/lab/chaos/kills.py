"""Deaths of the daemon in a busy run: a real process, killed at named points and at random times, and started again.

Each life has one death in store. Until it comes borrowers are opened and prices fall, so that the daemon has work,
and other things go wrong too. A world sees some twenty lives; then a last one without a death has to finish what is
left, and everything is proved.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keeper.lab.chaos.daemon import Daemon
from keeper.lab.chaos.faults import CONTENT, LIES, POOL, SOCKET, TRANSPORT, Event, Fault, random_fault
from keeper.lab.chaos.launcher import Fate, write_clock
from keeper.lab.chaos.line import locked
from keeper.lab.chaos.points import POINTS
from keeper.lab.chaos.stage import Stage, open_stage
from keeper.lab.chaos.witness import Breach, Witness

ANYWHERE: Final = ""  # a death at a random time instead of a named point
_LIVES_A_WORLD: Final = 20
_PACE_S: Final = 0.12  # between blocks, which are worth twelve seconds to the chain and to the daemon
_PATIENCE: Final = 60  # blocks after which a death is not waited for any longer
_BLOCKS_BETWEEN_FALLS: Final = 10
_QUIET: Final = 6  # blocks without anything new, after which the daemon is done
_FIRST_BORROWER: Final = 10_000
_MOST_BLOCKS: Final = 200  # to finish what is left
_TROUBLED: Final = 0.4  # of all lives have something befall the process itself
_EXIT_S: Final = 5.0
# One provider that lies gets away with it, so the only one does not here.
_NETWORK: Final = (
    TRANSPORT,
    tuple(kind for kind in CONTENT if kind not in LIES),
    SOCKET,
    POOL,
)


@dataclass(slots=True)
class Killed:
    """What came of a run: deaths by point (`ANYWHERE` among them), how lives ended besides, and what was wrong."""

    seed: int
    deaths: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    breaches: list[Breach] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    worlds: int = 0

    @property
    def kills(self) -> int:
        """All deaths."""
        return self.deaths.total()


def deaths_for(kills: int, chance: random.Random) -> list[str]:
    """So many deaths in random order: a sixth of them at random times, the rest at every point alike."""
    anywhere = kills // 6
    names = list(POINTS)
    named = [names[number % len(names)] for number in range(kills - anywhere)]
    if kills < len(names):
        named = chance.sample(names, kills - anywhere)
    deaths = [*named, *[ANYWHERE] * anywhere]
    chance.shuffle(deaths)
    return deaths


async def kill(seed: int, kills: int, folder: Path, say: Callable[[str], None]) -> Killed:
    """Kill the daemon so many times; `say` hears of each. Whatever does not hold is in `breaches`."""
    chance = random.Random(seed)
    result = Killed(seed)
    waiting = deaths_for(kills, chance)
    while waiting:
        some, waiting = waiting[:_LIVES_A_WORLD], waiting[_LIVES_A_WORLD:]
        place = folder / f"world-{result.worlds}"
        async with open_stage(place, chance.choice(("3.0", "3.6"))) as stage:
            missed = await _Siege(
                stage, chance, result, await Witness.begin(stage.lab, stage.rig), say
            ).lives(some)
        result.worlds += 1
        waiting += missed
    return result


class _Siege:
    """One world and the daemon's lives in it."""

    def __init__(
        self,
        stage: Stage,
        chance: random.Random,
        result: Killed,
        witness: Witness,
        say: Callable[[str], None],
    ) -> None:
        self.stage = stage
        self.chance = chance
        self.result = result
        self.witness = witness
        self.say = say
        self.clock = stage.rig.folder / "clock"
        self.offset_s = 0
        self.borrowers = 0
        stage.proxy.watch = witness.see

    async def lives(self, deaths: Sequence[str]) -> list[str]:
        """Every death in turn and then peace; the deaths that never came."""
        await self.stage.begin()
        await self._block()
        missed = []
        for death in deaths:
            # one that ended of its own accord is started again, as whoever watches over it would
            troubled = self.chance.random() < _TROUBLED
            while not (died := await self._life(death, troubled)) and troubled:
                troubled = False
            if not died:
                missed.append(death)
        await self._peace()
        verdict = await self.witness.conclude()
        self.result.injected.update(self.stage.proxy.injected)
        self.result.outcomes.update(self.witness.outcomes())
        self.result.verdicts.append(verdict.document())
        self.result.breaches += self.witness.breaches
        return missed

    async def _life(self, death: str, troubled: bool) -> bool:
        """Start the daemon, give it work and trouble until it dies; whether it died as it should."""
        needs = POINTS[death].needs if death else ""
        self.stage.proxy.play(self._faults(needs))
        fate = Fate(str(self.clock), death, self.chance.choice((1, 1, 2)))
        async with self._daemon(fate) as daemon:
            moment = self.chance.uniform(0.3, 2.5) if death == ANYWHERE else _PATIENCE * _PACE_S
            blocks, fallen_at, settled = 0, -_BLOCKS_BETWEEN_FALLS, self._settled()
            while daemon.running:
                await self._block()
                blocks += 1
                if daemon.started and blocks - fallen_at >= _BLOCKS_BETWEEN_FALLS:
                    await self._fall()
                    fallen_at = blocks
                if needs == "reorg" and self._settled() > settled:
                    await self.stage.happen(Event("reorg", 0, self.chance.randint(3, 5)))
                    settled = self._settled()
                if troubled and daemon.started:
                    await self._trouble(daemon)
                    troubled = False
                if blocks * _PACE_S >= moment:
                    daemon.kill()
                await asyncio.sleep(_PACE_S)
            code = await daemon.ended()
        self.witness.look()
        if code >= 0:
            self._ended(daemon, code)
        elif daemon.died_at == death:
            self.result.deaths[death] += 1
            self.say(f"{self.result.kills:>4} killed {f'at: {death}' if death else 'at a random time'}")
            return True
        else:
            self.result.endings["killed far from its point"] += 1
        return False

    async def _trouble(self, daemon: Daemon) -> None:
        """One thing that befalls the process, for some blocks."""
        match self.chance.choice(("freeze", "clock", "disk", "lock")):
            case "freeze":
                self.result.injected["frozen"] += 1
                await daemon.freeze(self.chance.uniform(0.2, 1.0))
            case "clock":
                self.result.injected["clock_jump"] += 1
                self.offset_s = self.chance.choice((-86_400, -120, 120, 7_200))
                await self._blocks(self.chance.randint(2, 6))
                self.offset_s = 0
            case "disk":
                self.result.injected["full_disk"] += 1
                with daemon.full_disk(self.witness.record):
                    await self._blocks(self.chance.randint(2, 8))
            case "lock":
                self.result.injected["locked_database"] += 1
                with locked(self.stage.rig):
                    await self._blocks(self.chance.randint(2, 15))

    async def _peace(self) -> None:
        """Nothing is wrong any more; prices fall once more, the daemon finishes, and ends when it is told to."""
        self.stage.proxy.play(())
        async with self._daemon(Fate(str(self.clock))) as daemon:
            await self._until(daemon, lambda: daemon.started)
            await self._fall()
            await self._until(daemon, self._quiet())
            code, seconds = await daemon.stop()
        if code != 0 or seconds > _EXIT_S:
            text = f"told to stop, it ended with code {code} after {seconds:.1f} s"
            self.witness.breaches.append(Breach("explained", text))

    def _quiet(self) -> Callable[[], bool]:
        """Says whether nothing is in flight and nothing was sent for some blocks."""
        before, since = -1, 0

        def quiet() -> bool:
            nonlocal before, since
            outcomes = self.witness.outcomes()
            same = outcomes["intent"] == before and not self.witness.in_flight()
            before, since = outcomes["intent"], since + 1 if same else 0
            return since >= _QUIET

        return quiet

    async def _until(self, daemon: Daemon, done: Callable[[], bool]) -> None:
        for _ in range(_MOST_BLOCKS):
            await self._blocks(1)
            if done():
                return
            if not daemon.running:
                break
        text = f"with nothing wrong it did not finish in {_MOST_BLOCKS} blocks, or ended"
        self.witness.breaches.append(Breach("works_again", text))

    async def _blocks(self, count: int) -> None:
        for _ in range(count):
            await self._block()
            await asyncio.sleep(_PACE_S)

    async def _block(self) -> None:
        await self.stage.proxy.next_block()
        await self.stage.mine()
        write_clock(self.clock, await self.stage.now_s() + 1 + self.offset_s)

    async def _fall(self) -> None:
        count = self.chance.randint(1, 3)
        await self.stage.fall(_FIRST_BORROWER + self.borrowers, count, self.chance.randint(8_800, 9_300))
        self.borrowers += count

    def _faults(self, needs: str) -> list[Fault]:
        """What a point needs, or a little of anything."""
        if needs == "stuck":
            return [Fault("swallow", 0, 2 * _PATIENCE)]
        count = self.chance.choice((0, 0, 1, 2))
        return [random_fault(self.chance, self.chance.randint(5, 25), 40, _NETWORK) for _ in range(count)]

    def _settled(self) -> int:
        return self.witness.outcomes()["settled"]

    def _ended(self, daemon: Daemon, code: int) -> None:
        """It ended by itself: for which reason is kept, and a crash is no reason."""
        events = [str(event.get("event")) for event in daemon.events()]
        if "unhandled exception" in events:
            trace = str(daemon.events()[events.index("unhandled exception")].get("exception"))
            self.witness.breaches.append(Breach("explained", trace[-2_000:]))
        said = [event for event in events if event.startswith("keeper: ")]
        self.result.endings[f"code {code}: {said[-1] if said else 'it said nothing'}"] += 1

    @asynccontextmanager
    async def _daemon(self, fate: Fate) -> AsyncIterator[Daemon]:
        daemon = await Daemon.start(self.stage.rig, fate)
        try:
            yield daemon
        finally:
            if daemon.running:
                daemon.kill()
                await daemon.ended()
