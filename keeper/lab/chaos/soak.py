"""A long run of one daemon under random prices, borrowers and faults: what it holds on to, and why it refuses.

Nothing here ends the daemon on purpose, because a new process would hide what the old one kept. Each block is worth
twelve seconds to the chain and to the daemon, and comes as fast as they are handled. There are no reorgs here: Anvil
takes back only a part of the state when it reorganises a fork, and an endless stage is one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from keeper.lab.chaos.daemon import Daemon
from keeper.lab.chaos.faults import Event, random_fault
from keeper.lab.chaos.line import locked
from keeper.lab.chaos.run import NETWORK, Run
from keeper.lab.chaos.stage import VERSIONS, open_stage
from keeper.lab.chaos.witness import Breach
from keeper.lab.judge.record import read_record

_PACE_S: Final = 0.04
_HEARTBEAT_EVERY: Final = 500  # blocks, or less than two hours
_SAMPLE_EVERY: Final = 10  # blocks
_WARM_UP: Final = 4  # the first one in so many samples is from while caches fill
# Medians of the first and the last quarter of the samples after that may differ by so much.
RSS_GROWTH_KIB: Final = 12 * 1024
HANDLES_GROWTH: Final = 2
# Chances that something happens at a block.
_FALL, _MOVE, _FAULT, _BASE_FEE, _PAUSE, _PROCESS = 0.05, 0.05, 0.08, 0.02, 0.005, 0.02

# Every refusal a soak may book, and why it is right. Anything else is a finding.
EXPECTED: Final[Mapping[tuple[str, str], str]] = {
    ("clear", "paused"): "a guardian paused, for a block or a few",
    ("follow", "head_lost"): "the node failed a read of that head, or answered nonsense",
    ("follow", "no_heads"): "the connection that announces heads was cut, or went silent",
    ("clear", "stale_head"): "the wall clock was put ahead, or the head held back",
    ("plan", "unprofitable"): "gas was dear for a while, and the account small",
    ("trial", "market_moved"): "those before it at that head sold into its market; it waits for the next",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """What the daemon held at a block."""

    block: int
    rss_kib: int
    handles: int


@dataclass(slots=True)
class Soaked:
    """What came of a soak."""

    seed: int
    blocks: int
    heads: int = 0
    samples: list[Sample] = field(default_factory=list)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    breaches: list[Breach] = field(default_factory=list)
    verdict: dict[str, Any] = field(default_factory=dict)

    @property
    def rss_growth_kib(self) -> int:
        """How much more memory it held at the end than after it had warmed up."""
        return _growth([sample.rss_kib for sample in self.samples])

    @property
    def handles_growth(self) -> int:
        """The same for file handles."""
        return _growth([sample.handles for sample in self.samples])


async def soak(seed: int, blocks: int, folder: Path, say: Callable[[str], None]) -> Soaked:
    """Let a daemon run for so many blocks; `say` hears how it goes. Whatever does not hold is in `breaches`."""
    chance = random.Random(seed)
    result = Soaked(seed, blocks)
    async with open_stage(folder, VERSIONS[seed % len(VERSIONS)], endless=True) as stage:
        run = await Run.begin(stage, chance, _PACE_S)
        async with run.daemon() as daemon:
            await run.until(daemon, lambda: daemon.started)
            await _through(run, daemon, result, say)
            await run.peace(daemon)
            result.heads = sum(int(event.get("heads", 0)) for event in daemon.events())
        verdict = await run.witness.conclude(forgotten=True)
    result.injected = run.injected + stage.proxy.injected
    result.endings = run.endings
    result.outcomes = run.witness.outcomes()
    result.verdict = verdict.document()
    _refusals(run, result)
    _flat(run, result)
    result.breaches = run.witness.breaches
    return result


async def _through(run: Run, daemon: Daemon, result: Soaked, say: Callable[[str], None]) -> None:
    unpause_at = -1
    proxy, chance = run.stage.proxy, run.chance
    proxy.play(())
    for block in range(result.blocks):
        if not daemon.running:
            run.witness.breaches.append(Breach("works_again", f"it ended at block {block} of the soak"))
            return
        await run.followed_blocks(1)
        if block % _HEARTBEAT_EVERY == 0:
            await run.stage.heartbeat()
        if chance.random() < _FALL:
            await run.fall()
        if chance.random() < _MOVE:
            await run.stage.happen(
                Event("price", 0, chance.randint(9_600, 10_400), chance.choice(("WETH", "WBTC")))
            )
        if chance.random() < _FAULT:
            fresh = random_fault(chance, 0, 6, NETWORK)
            old = [fault for fault in proxy.faults if fault.first + fault.count > proxy.block]
            proxy.renew([*old, replace(fresh, unit="block", first=proxy.block + 1)])
        if chance.random() < _BASE_FEE:
            await run.stage.happen(Event("base_fee", 0, chance.choice((2, 10, 40))))
        if chance.random() < _PAUSE and unpause_at < block:
            await run.stage.happen(Event("pause", 0, 0))
            unpause_at = block + chance.randint(1, 4)
        if block == unpause_at:
            await run.stage.unpause()
        if chance.random() < _PROCESS:
            await _befall(run, daemon)
        if block % _SAMPLE_EVERY == 0 and daemon.running:
            result.samples.append(Sample(block, daemon.memory_kib(), daemon.descriptors()))
        if block % 500 == 499:
            last = result.samples[-1]
            say(
                f"block {block + 1}: {last.rss_kib} KiB, {last.handles} handles, {dict(run.witness.outcomes())}"
            )
    await run.stage.unpause()


async def _befall(run: Run, daemon: Daemon) -> None:
    """Something befalls the process that it must sit out."""
    match run.chance.choice(("frozen", "clock_jump", "locked_database")):
        case "frozen":
            run.injected["frozen"] += 1
            await daemon.freeze(0.2)
        case "clock_jump":
            run.injected["clock_jump"] += 1
            run.offset_s = run.chance.choice((-86_400, -120, 120, 7_200))
            await run.blocks(3)
            run.offset_s = 0
        case "locked_database":
            run.injected["locked_database"] += 1
            with locked(run.stage.rig):
                await run.blocks(3)


def _refusals(run: Run, result: Soaked) -> None:
    last: dict[tuple[str, str], Any] = {}
    for entry in read_record(run.witness.record):
        if entry.kind == "refusal":
            reason = str(entry.body["stage"]), str(entry.body["reason"])
            result.refusals[reason] += 1
            last[reason] = entry.body
    for reason in sorted(result.refusals.keys() - EXPECTED.keys()):
        text = f"refused {result.refusals[reason]} times, last as {last[reason]}"
        run.witness.breaches.append(Breach("explained", text))


def _flat(run: Run, result: Soaked) -> None:
    if result.rss_growth_kib > RSS_GROWTH_KIB:
        run.witness.breaches.append(Breach("flat", f"memory grew by {result.rss_growth_kib} KiB"))
    if result.handles_growth > HANDLES_GROWTH:
        run.witness.breaches.append(Breach("flat", f"file handles grew by {result.handles_growth}"))


def _growth(values: Sequence[int]) -> int:
    warm = values[len(values) // _WARM_UP :]
    quarter = max(1, len(warm) // 4)
    return int(median(warm[-quarter:]) - median(warm[:quarter])) if warm else 0
