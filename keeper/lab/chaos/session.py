"""A session of chaos as one document: what was injected, what happened, which promises held, what the judge says."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from keeper import log
from keeper.lab.chaos.faults import Script, random_script
from keeper.lab.chaos.kills import ANYWHERE, Killed, kill
from keeper.lab.chaos.points import POINTS
from keeper.lab.chaos.scripts import Played, play
from keeper.lab.chaos.stage import VERSIONS, open_stage
from keeper.lab.chaos.witness import INVARIANTS, Breach, counted

SCHEMA: Final = 1
SCRIPTS_A_STAGE: Final = 10  # what they are played on remembers no more blocks than a few hundred each
_LOOKED_AT: Final = tuple(name for name in INVARIANTS if name != "flat")  # only a long run can tell


@dataclass(slots=True)
class Series:
    """Scripts that were played; `failed` are those after which something did not hold, with their seeds."""

    count: int = 0
    tally: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_recovery: int = 0
    slowest_finish: int = 0
    failed: list[tuple[int, Played]] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def breaches(self) -> list[Breach]:
        """Everything that did not hold."""
        return [breach for _, played in self.failed for breach in played.breaches]

    def add(self, seed: int, played: Played) -> None:
        """Count one."""
        self.count += 1
        self.tally.update(played.tally)
        self.injected.update(played.injected)
        self.outcomes.update(played.outcomes)
        self.slowest_recovery = max(self.slowest_recovery, played.recovered)
        self.slowest_finish = max(self.slowest_finish, played.finished)
        self.verdicts.append(played.verdict)
        if played.breaches:
            self.failed.append((seed, played))


def script_of(seed: int) -> Script:
    """The script that a seed stands for."""
    return random_script(random.Random(seed), list(POINTS))


async def play_seeds(seeds: Sequence[int], folder: Path, say: Callable[[str], None]) -> Series:
    """Play the scripts of these seeds, some to a stage; `say` hears of each that fails and of every stage."""
    series = Series()
    for first in range(0, len(seeds), SCRIPTS_A_STAGE):
        place = folder / f"stage-{first}"
        async with open_stage(place / "rig", VERSIONS[first // SCRIPTS_A_STAGE % len(VERSIONS)]) as stage:
            for seed in seeds[first : first + SCRIPTS_A_STAGE]:
                played = await play(stage, script_of(seed), place / str(seed))
                series.add(seed, played)
                for breach in played.breaches:
                    say(f"script {seed}: {breach}")
        say(f"{series.count:>4} scripts played")
    return series


async def run(seed: int, kills: int, scripts: int, *, quiet: bool) -> dict[str, Any]:
    """The document of `keeper lab chaos --json`."""
    console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
    log.configure("critical")  # that a node failed is what was asked for
    with tempfile.TemporaryDirectory(prefix="keeper-chaos-") as folder:
        killed = await kill(seed, kills, Path(folder) / "kills", console.print)
        series = await play_seeds(range(seed, seed + scripts), Path(folder) / "scripts", console.print)
    return document(seed, killed, series)


def document(seed: int, killed: Killed, series: Series) -> dict[str, Any]:
    """Both parts and what held."""
    breaches = [*killed.breaches, *series.breaches]
    verdicts = [*killed.verdicts, *series.verdicts]
    return {
        "schema": SCHEMA,
        "ok": not breaches,
        "seed": seed,
        "kills": {
            "count": killed.kills,
            "at_random_times": killed.deaths[ANYWHERE],
            "at_points": {name: killed.deaths[name] for name in POINTS},
            "ended_by_itself": dict(killed.endings),
            "injected": dict(killed.injected),
            "booked": dict(killed.outcomes),
        },
        "scripts": {
            "count": series.count,
            "heads": dict(series.tally),
            "injected": dict(series.injected),
            "booked": dict(series.outcomes),
            "slowest_recovery_blocks": series.slowest_recovery,
            "slowest_finish_blocks": series.slowest_finish,
            "failed": [
                {
                    "seed": one,
                    "script": played.script.to_json(),
                    "breaches": [str(breach) for breach in played.breaches],
                }
                for one, played in series.failed
            ],
        },
        "invariants": counted(breaches, _LOOKED_AT),
        "judge": {
            "verdicts": len(verdicts),
            "ok": sum(1 for verdict in verdicts if verdict["ok"]),
            "left": sum(len(verdict["left"]) for verdict in verdicts),
            "differences": sum(len(verdict["differences"]) for verdict in verdicts),
            "while_paused": sum(len(verdict["paused_liquidations"]) for verdict in verdicts),
        },
    }


def render(found: Mapping[str, Any]) -> None:
    """The same for people."""
    console = Console(highlight=False, soft_wrap=True)
    kills, scripts, judge = found["kills"], found["scripts"], found["judge"]
    table = Table(title="Deaths", box=None, pad_edge=False, title_justify="left", show_header=False)
    table.add_row("at random times", str(kills["at_random_times"]))
    for point, count in kills["at_points"].items():
        table.add_row(point, str(count))
    console.print(table)
    for name, part in (("kills", kills), ("scripts", scripts)):
        console.print(f"{name}: injected {_listed(part['injected'])}")
        console.print(f"{name}: booked {_listed(part['booked'])}")
    for ending, count in kills["ended_by_itself"].items():
        console.print(f"ended by itself {count} times: {ending}")
    console.print(
        f"{scripts['count']} scripts; heads: {_listed(scripts['heads'])}; at work again after at most "
        f"{scripts['slowest_recovery_blocks']} blocks, done after {scripts['slowest_finish_blocks']}"
    )
    for failed in scripts["failed"]:
        console.print(f"FAILED: script {failed['seed']}: {failed['script']}")
    for invariant in found["invariants"].values():
        console.print(f"{'ok  ' if invariant['holds'] else 'FAIL'} {invariant['promise']}")
        for breach in invariant["breaches"]:
            console.print(f"       {breach}")
    console.print(
        f"the judge: {judge['ok']} of {judge['verdicts']} verdicts without a finding, {judge['left']} accounts left, "
        f"{judge['differences']} figures that differ, {judge['while_paused']} liquidations while paused"
    )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "nothing"
