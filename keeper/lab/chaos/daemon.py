"""The keeper's daemon as a process of its own, and what can be done to one without its knowing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from keeper.lab.chaos.launcher import Fate
from keeper.lab.rig import Rig, keeper_environment

_PATIENCE_S: Final = 30.0


@dataclass(slots=True)
class Daemon:
    """One run of `keeper run`; what it logs is added to `log` from `began` on."""

    process: asyncio.subprocess.Process
    log: Path
    began: int

    @classmethod
    async def start(cls, rig: Rig, fate: Fate) -> Self:
        """Start it; `started` says when it is at work."""
        log = rig.folder / "keeper.log"
        with log.open("ab") as stderr:
            began = stderr.tell()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "keeper.lab.chaos.launcher", "run", "--config", str(rig.config)),
                cwd=rig.folder,
                env=keeper_environment() | fate.environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=stderr,
            )
        return cls(process, log, began)

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process.returncode is None

    @property
    def started(self) -> bool:
        """Whether it has said that it is at work."""
        return any(event.get("event") == "started" for event in self.events())

    @property
    def died_at(self) -> str:
        """The named point at which it died; empty while it lives or when it ended otherwise."""
        points = [str(event["point"]) for event in self.events() if event.get("event") == "died"]
        return points[-1] if points else ""

    def events(self) -> list[dict[str, Any]]:
        """What it logged; lines that are not JSON come as the event they are."""
        with self.log.open("rb") as file:
            file.seek(self.began)
            lines = file.read().decode(errors="replace").splitlines()
        return [_event(line) for line in lines]

    def descriptors(self) -> int:
        """How many file handles it holds."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def memory_kib(self) -> int:
        """Its resident memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return 0

    def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing said."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def stop(self) -> tuple[int, float]:
        """SIGTERM; the exit code and how many seconds it took."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        return await self.ended(), loop.time() - began_s

    async def ended(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        return await asyncio.wait_for(self.process.wait(), _PATIENCE_S)

    async def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            self.process.send_signal(signal.SIGCONT)

    @contextmanager
    def full_disk(self, record: Path) -> Iterator[None]:
        """No file it writes may grow beyond what its record is now."""
        sizes = [path.stat().st_size for path in record.parent.glob(f"{record.name}*")]
        before = self._limit(max(sizes, default=0))
        try:
            yield
        finally:
            self._limit(before)

    def _limit(self, size: int) -> int:
        try:
            soft, hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, hard))
        except ProcessLookupError:
            return size
        return soft


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {"event": line}
    return event if isinstance(event, dict) else {"event": line}
