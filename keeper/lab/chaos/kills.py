"""Deaths of the daemon in a busy run: a real process, killed at named points and at random times, and started again.

Each life has one death in store. Until it comes borrowers are opened and prices fall, so that the daemon has work,
and other things go wrong too. A world sees some twenty lives; then a last one without a death has to finish what is
left, and everything is proved.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keeper.lab.chaos.daemon import Daemon
from keeper.lab.chaos.faults import Event, Fault, random_fault
from keeper.lab.chaos.line import locked
from keeper.lab.chaos.points import POINTS
from keeper.lab.chaos.run import NETWORK, Run
from keeper.lab.chaos.stage import VERSIONS, open_stage
from keeper.lab.chaos.witness import Breach

ANYWHERE: Final = ""  # a death at a random time instead of a named point
_LIVES_A_WORLD: Final = 20
_PACE_S: Final = 0.12
_PATIENCE: Final = 60  # blocks after which a death is not waited for any longer
_BLOCKS_BETWEEN_FALLS: Final = 10
_TROUBLED: Final = 0.4  # of all lives have something befall the process itself


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
        version = VERSIONS[result.worlds % len(VERSIONS)]
        async with open_stage(folder / f"world-{result.worlds}", version) as stage:
            waiting += await _Siege(await Run.begin(stage, chance, _PACE_S), result, say).lives(some)
        result.worlds += 1
    return result


class _Siege:
    """One world and the daemon's lives in it."""

    def __init__(self, run: Run, result: Killed, say: Callable[[str], None]) -> None:
        self.run = run
        self.chance = run.chance
        self.result = result
        self.say = say

    async def lives(self, deaths: Sequence[str]) -> list[str]:
        """Every death in turn and then peace; the deaths that never came."""
        missed = []
        for death in deaths:
            # one that ended of its own accord is started again, as whoever watches over it would
            troubled = self.chance.random() < _TROUBLED
            while not (died := await self._life(death, troubled)) and troubled:
                troubled = False
            if not died:
                missed.append(death)
        run = self.run
        async with run.daemon() as daemon:
            await run.peace(daemon)
        verdict = await run.witness.conclude()
        self.result.injected.update(run.injected + run.stage.proxy.injected)
        self.result.endings.update(run.endings)
        self.result.outcomes.update(run.witness.outcomes())
        self.result.verdicts.append(verdict.document())
        self.result.breaches += run.witness.breaches
        return missed

    async def _life(self, death: str, troubled: bool) -> bool:
        """Start the daemon, give it work and trouble until it dies; whether it died as it should."""
        run = self.run
        needs = POINTS[death].needs if death else ""
        run.stage.proxy.play(self._faults(needs))
        async with run.daemon(death, self.chance.choice((1, 1, 2))) as daemon:
            moment = self.chance.uniform(0.3, 2.5) if death == ANYWHERE else _PATIENCE * _PACE_S
            blocks, fallen_at, settled = 0, -_BLOCKS_BETWEEN_FALLS, self._settled()
            while daemon.running:
                await run.blocks(1)
                blocks += 1
                if daemon.started and blocks - fallen_at >= _BLOCKS_BETWEEN_FALLS:
                    await run.fall()
                    fallen_at = blocks
                if needs == "reorg" and self._settled() > settled:
                    await run.stage.happen(Event("reorg", 0, self.chance.randint(3, 5)))
                    settled = self._settled()
                if troubled and daemon.started:
                    await self._trouble(daemon)
                    troubled = False
                if blocks * _PACE_S >= moment:
                    daemon.kill()
            code = await daemon.ended()
        run.witness.look()
        if code >= 0:
            run.ended(daemon, code)
        elif daemon.died_at == death:
            self.result.deaths[death] += 1
            self.say(f"{self.result.kills:>4} killed {f'at: {death}' if death else 'at a random time'}")
            return True
        else:
            self.result.endings["killed far from the point where it was to die"] += 1
        return False

    async def _trouble(self, daemon: Daemon) -> None:
        """One thing that befalls the process, for some blocks."""
        run = self.run
        match self.chance.choice(("frozen", "clock_jump", "full_disk", "locked_database")):
            case "frozen":
                run.injected["frozen"] += 1
                await daemon.freeze(self.chance.uniform(0.2, 1.0))
            case "clock_jump":
                run.injected["clock_jump"] += 1
                run.offset_s = self.chance.choice((-86_400, -120, 120, 7_200))
                await run.blocks(self.chance.randint(2, 6))
                run.offset_s = 0
            case "full_disk":
                run.injected["full_disk"] += 1
                with daemon.full_disk(run.witness.record):
                    await run.blocks(self.chance.randint(2, 8))
            case "locked_database":
                run.injected["locked_database"] += 1
                with locked(run.stage.rig):
                    await run.blocks(self.chance.randint(2, 15))

    def _faults(self, needs: str) -> list[Fault]:
        """What a point needs, or a little of anything."""
        if needs == "stuck":
            return [Fault("swallow", 0, 2 * _PATIENCE)]
        count = self.chance.choice((0, 0, 1, 2))
        return [random_fault(self.chance, self.chance.randint(5, 25), 40, NETWORK) for _ in range(count)]

    def _settled(self) -> int:
        return self.run.witness.outcomes()["settled"]
