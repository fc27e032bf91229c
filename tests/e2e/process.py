"""The keeper as its users run it: a process in the folder with its files, and what may stand before a node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keeper.lab.rig import keeper_environment
from tests.e2e.forking import Process, fork

_PATIENCE_S = 90


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout. Raises ValueError when there is anything else."""
        return json.loads(self.out)


async def start(
    folder: Path, *words: str, env: Mapping[str, str] | None = None, log: Path | None = None
) -> Process:
    """Start `keeper words…` in a folder; stderr goes to a file where one is given."""
    return await fork(folder, words, {**keeper_environment(), **(env or {})}, log)


async def keeper(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> Ran:
    """Run `keeper words…` in a folder to its end."""
    process = await start(folder, *words, env=env)
    try:
        out, err = await asyncio.wait_for(process.communicate(), _PATIENCE_S)
    finally:
        await end(process)
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


@dataclass(slots=True)
class Daemon:
    """A running `keeper run`."""

    process: Process
    log: Path

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What it logged since it was started, all events or those of these names; a half-written line is left out."""
        lines = self.log.read_text().splitlines(keepends=True)
        entries = [json.loads(line) for line in lines if line.endswith("\n")]
        return [entry for entry in entries if not names or entry["event"] in names]

    async def logs(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until it has logged an event so many times."""
        await until(lambda: len(self.events(name)) >= count or not self.running, name)
        found = self.events(name)
        assert len(found) >= count, f"it ended with {self.process.returncode}: {self.log.read_text()[-2000:]}"
        return found

    @property
    def running(self) -> bool:
        """Whether the process is still there."""
        return self.process.returncode is None

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), _PATIENCE_S)

    async def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing said."""
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def daemon(folder: Path, *options: str, log: str = "keeper.log") -> AsyncIterator[Daemon]:
    """A daemon that has started; it is killed at the end if it still runs."""
    path = folder / log
    path.write_bytes(b"")
    running = Daemon(await start(folder, "run", *options, log=path), path)
    try:
        await running.logs("started")
        yield running
    finally:
        await end(running.process)


async def until(
    done: Callable[[], bool | Awaitable[bool]], what: str, patience_s: float = _PATIENCE_S
) -> None:
    """Wait for something, looking ten times a second."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = done()
        if answer is True or (not isinstance(answer, bool) and await answer):
            return
        assert time.monotonic() < deadline, f"waited {patience_s} s for {what}"
        await asyncio.sleep(0.1)


async def end(process: Process) -> None:
    """Kill a process that still runs."""
    if process.returncode is None:
        process.kill()
        await process.wait()


class Gateway:
    """A provider's front: passes bytes on to a node, at any path, until it is told to hang up or to stay away."""

    def __init__(self, port: int, path: str) -> None:
        self.port = 0
        self.open = True
        self.watch: Callable[[bytes], None] | None = (
            None  # is shown what clients send, before it is passed on
        )
        self.accepted = 0
        self._node_port = port
        self._path = path.encode()
        self._writers: set[asyncio.StreamWriter] = set()

    def hang_up(self) -> None:
        """Drop every connection; while `open` is false new ones are dropped as well."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.accepted += 1
        if not self.open:
            writer.transport.abort()
            return
        node_reader, node_writer = await asyncio.open_connection("127.0.0.1", self._node_port)
        self._writers |= {writer, node_writer}
        try:
            await asyncio.gather(
                self._pass(reader, node_writer, self.watch), self._pass(node_reader, writer, None)
            )
        finally:
            self._writers -= {writer, node_writer}
            for one in (writer, node_writer):
                one.close()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        watch: Callable[[bytes], None] | None,
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65_536):
                if watch is not None:
                    watch(chunk)
                writer.write(chunk.replace(b" " + self._path + b" HTTP/1.1", b" / HTTP/1.1"))
                await writer.drain()
        if not writer.transport.is_closing():
            writer.close()


@asynccontextmanager
async def gateway(node_url: str, path: str = "/") -> AsyncIterator[Gateway]:
    """A front to the node at `node_url`, on a port of its own; requests to `path` arrive there as requests to /."""
    front = Gateway(int(node_url.rsplit(":", 1)[1]), path)
    server = await asyncio.start_server(front.serve, "127.0.0.1", 0)
    front.port = server.sockets[0].getsockname()[1]
    try:
        yield front
    finally:
        server.close()
        front.hang_up()
        await server.wait_closed()
