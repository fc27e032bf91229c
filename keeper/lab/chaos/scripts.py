"""Scripts of faults, played in this process: the line driven in lock-step through the front, then judged.

A block: what spans it goes wrong, what happens in the world happens, a block is mined, the keeper handles it. When
all of that is over the price falls once more, and the keeper has to come back to work by itself.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keeper.engine.head import StepReport
from keeper.lab.chaos.faults import PROCESS, RULES, Event, Fault, Script
from keeper.lab.chaos.line import Line, impatient, locked
from keeper.lab.chaos.stage import MINUTE, Stage
from keeper.lab.chaos.witness import Breach, Witness

# Long enough for several transactions in a row to be lost, to expire (three blocks, two of grace), and to be outbid
# while the base fee comes down from where a script put it.
MOST_BLOCKS: Final = 60
_TIMEOUT_S: Final = 1.5  # a busy machine may need a second for what takes milliseconds
_BUSY_MS: Final = 30
_QUIET: Final = 3  # heads that come to nothing, after which the keeper is done
_LAST_FALL: Final = Event("price", 0, 9_000, "WETH")


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a script. `recovered` is in blocks after the last fault, as is `finished`."""

    script: Script
    breaches: tuple[Breach, ...]
    tally: dict[str, int]
    injected: dict[str, int]
    outcomes: dict[str, int]
    recovered: int
    finished: int
    verdict: dict[str, Any]


async def play(stage: Stage, script: Script, folder: Path) -> Played:
    """Play one script on a stage, which is as it was afterwards; what does not hold is in `breaches`."""
    async with stage.undone(folder, script.transport) as here:
        witness = await Witness.begin(here.lab, here.rig)
        with impatient(timeout_s=_TIMEOUT_S, busy_ms=_BUSY_MS, quiet_s=_TIMEOUT_S):
            player = _Player(here, script, witness)
            try:
                await player.through()
                recovered, finished = await player.back_to_work()
            finally:
                player.line.spare()
                await player.line.end()
        verdict = await witness.conclude(
            withheld=any(fault.kind == "missing_logs" for fault in script.faults)
        )
        breaches = [*witness.breaches, *(Breach("explained", crash) for crash in player.line.crashes)]
        if recovered > MINUTE:
            text = f"no head was handled for {recovered} blocks: {player.line.last_error}"
            breaches.append(Breach("works_again", text))
        return Played(
            script,
            tuple(breaches),
            dict(player.line.tally),
            dict(here.proxy.injected),
            dict(witness.outcomes()),
            recovered,
            finished,
            verdict.document(),
        )


class _Player:
    def __init__(self, stage: Stage, script: Script, witness: Witness) -> None:
        self.stage = stage
        self.script = script
        self.witness = witness
        self.line = Line(stage.rig, self._clock)
        self._now_s = 0
        self._offset_s = 0
        stage.proxy.injected.clear()
        stage.proxy.watch = witness.see

    def _clock(self) -> float:
        return float(self._now_s + self._offset_s)

    async def through(self) -> None:
        """All blocks of the script."""
        self.stage.proxy.play(self.script.faults)
        unpause_at = -1
        for block in range(self.script.blocks):
            events = [event for event in self.script.events if event.block == block]
            for event in events:
                await self.stage.happen(event)
                if event.kind == "pause":
                    unpause_at = max(unpause_at, block + event.amount)
            if block == unpause_at:
                await self.stage.unpause()
            await self._block(block, [event for event in events if event.kind == "kill"])
        await self.stage.unpause()
        self.line.spare()
        self.line.disk_full, self._offset_s = False, 0

    async def back_to_work(self) -> tuple[int, int]:
        """Blocks until a head was handled again, and until nothing was left to do."""
        rules = {fault.kind for fault in self.script.faults if fault.kind in RULES}
        self.stage.proxy.play([Fault(kind, 0, MOST_BLOCKS) for kind in sorted(rules)])
        if self.script.lies:
            # one provider was believed, and what it said stays believed until positions are read again
            await self.line.end()
        recovered, quiet = 0, 0
        await self.stage.happen(_LAST_FALL)
        for block in range(1, MOST_BLOCKS + 1):
            report = await self._step()
            await self.stage.proxy.next_block()
            await self.stage.mine()
            if not recovered and report is not None:
                recovered = block
            idle = report is not None and not (report.sent or report.settled) and not self.line.in_flight()
            quiet = quiet + 1 if idle else 0
            if quiet == _QUIET:
                return recovered, block
        return recovered or MOST_BLOCKS, MOST_BLOCKS

    async def _block(self, block: int, deaths: list[Event]) -> None:
        with ExitStack() as wrong:
            self._offset_s = 0
            self.line.disk_full = False
            for fault in self._process_faults(block):
                if fault.kind == "clock_jump":
                    self._offset_s += fault.amount
                elif fault.kind == "full_disk":
                    self.line.disk_full = True
                else:
                    wrong.enter_context(locked(self.stage.rig))
            await self.stage.proxy.next_block()
            await self.stage.mine()
            for death in deaths:
                self.line.dies_at(death.what, death.amount)
            await self._step()

    async def _step(self) -> StepReport | None:
        self._now_s = await self.stage.now_s() + 1
        report = await self.line.head()
        if not self.line.running:
            self.witness.look()
        return report

    def _process_faults(self, block: int) -> list[Fault]:
        return [fault for fault in self.script.faults if fault.kind in PROCESS and fault.spans(block)]
