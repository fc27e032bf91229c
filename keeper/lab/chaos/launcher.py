"""`keeper` with a fate: `python -m keeper.lab.chaos.launcher WORDS…` runs the command line, changed from outside.

Its fate is JSON in the environment variable `CHAOS_FATE`. Nothing of the keeper is imported before the clock is
exchanged, because modules keep what they import.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import runpy
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

VARIABLE: Final = "CHAOS_FATE"
_SECONDS: Final = struct.Struct("<d")
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class Fate:
    """What is done to one run of the keeper.

    `clock` is a file of eight bytes with the wall clock's time, which whoever made it moves; `point` where the
    process dies, the `nth` time it gets there.
    """

    clock: str = ""
    point: str = ""
    nth: int = 1

    def environment(self) -> dict[str, str]:
        """As the launcher reads it."""
        return {VARIABLE: json.dumps(asdict(self))}


def write_clock(path: Path, now_s: float) -> None:
    """Set the wall clock of every keeper that goes by this file."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(_SECONDS.pack(now_s))


def main() -> None:
    """Run the command line under its fate."""
    fate = Fate(**json.loads(os.environ.pop(VARIABLE, "{}")))
    if sys.platform == "linux":  # it never outlives who wanted it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if fate.clock:
        time.time = _clock(Path(fate.clock))
    from keeper.lab.chaos.line import impatient  # noqa: PLC0415 - not before the clock is exchanged
    from keeper.lab.chaos.points import armed  # noqa: PLC0415

    with ExitStack() as stack:
        stack.enter_context(impatient(timeout_s=1.0, busy_ms=1_000, quiet_s=2.0))
        if fate.point:
            stack.enter_context(armed(fate.point, fate.nth, lambda: _die(fate.point)))
        runpy.run_module("keeper", run_name="__main__", alter_sys=True)


def _clock(path: Path) -> Callable[[], float]:
    with path.open("rb") as file:
        shared = mmap.mmap(file.fileno(), _SECONDS.size, access=mmap.ACCESS_READ)

    def now_s() -> float:
        seconds: float = _SECONDS.unpack(shared)[0]
        return seconds

    return now_s


def _die(point: str) -> None:
    os.write(sys.stderr.fileno(), json.dumps({"event": "died", "point": point}).encode() + b"\n")
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
