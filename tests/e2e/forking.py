"""Keepers that start from a process which has loaded the keeper once: a fork of it is where `python -m keeper` comes to
after a second of imports. From there on it is the same program, in a process of its own.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parents[2]
_MOST: Final = 1 << 17  # bytes of one order


class Process:
    """As much of `asyncio.subprocess.Process` as tests need."""

    def __init__(self, pid: int, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader | None) -> None:
        self.pid: Final = pid
        self.stdout: Final = stdout
        self.stderr: Final = stderr
        self._pidfd: Final = os.pidfd_open(pid)
        self._code: int | None = None

    @property
    def returncode(self) -> int | None:
        """How it ended, negative by a signal; None while it runs."""
        if self._code is None and select.select([self._pidfd], [], [], 0)[0]:
            self._code = int(_ask({"reap": self.pid}))
            os.close(self._pidfd)
        return self._code

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        while (code := self.returncode) is None:
            loop.add_reader(self._pidfd, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(self._pidfd)
        return code

    async def communicate(self) -> tuple[bytes, bytes]:
        """All it wrote, and wait for its end."""
        out, err = await asyncio.gather(self.stdout.read(), self.stderr.read() if self.stderr else _nothing())
        await self.wait()
        return out, err


async def fork(folder: Path, words: tuple[str, ...], env: Mapping[str, str], log: Path | None) -> Process:
    """`keeper words…` in a folder, with nothing but `env`; stderr goes to a file where one is given."""
    theirs: list[int] = []
    ours: list[int] = []
    try:
        for _ in range(1 if log else 2):
            read, write = os.pipe()
            ours.append(read)
            theirs.append(write)
        if log:
            theirs.append(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644))
        pid = int(_ask({"folder": str(folder), "words": words, "env": dict(env)}, theirs))
    finally:
        for number in theirs:
            os.close(number)
    readers = [await _reader(number) for number in ours]
    return Process(pid, *readers) if len(readers) > 1 else Process(pid, readers[0], None)


async def _reader(number: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    pipe = os.fdopen(number, "rb", buffering=0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader


async def _nothing() -> bytes:
    return b""


def _ask(order: Mapping[str, Any], files: list[int] | None = None) -> str:
    line, _ = _loaded()
    socket.send_fds(line, [json.dumps(order).encode()], files or [])
    return line.recv(_MOST).decode()


@cache
def _loaded() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The line to a process that has loaded the keeper; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=_ROOT,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    return ours, process


def _serve(line: socket.socket) -> None:
    """Fork and reap as asked; returns in a child, which then is a keeper."""
    while True:
        message, files, *_ = socket.recv_fds(line, _MOST, 2)
        if not message:
            sys.exit(0)
        order = json.loads(message)
        if "reap" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["reap"], 0)[1])
        elif not (answer := os.fork()):
            line.close()
            for standard, number in enumerate(files, start=1):
                os.dup2(number, standard)
                os.close(number)
            os.chdir(order["folder"])
            os.environ.clear()
            os.environ.update(order["env"])
            random.seed()
            sys.argv = ["keeper", *order["words"]]
            return
        for number in files:
            os.close(number)
        line.send(str(answer).encode())


if __name__ == "__main__":
    import keeper.commands
    import keeper.commands.breakers
    import keeper.commands.guardian
    import keeper.commands.ledger
    import keeper.render  # noqa: F401

    # a shell's background job ignores it, and so would whatever it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("keeper", run_name="__main__", alter_sys=True)
