"""One anvil process: how it is started, found and surely ended.

An anvil never outlives the Python process that started it, however that process ends: the kernel kills it when the
thread that spawned it is gone (`PR_SET_PDEATHSIG` follows the thread, not the process), so all are spawned from one
thread that lives as long as the interpreter. Storage caching is off for forks: anvil keys its disk cache by chain id
and height, so a cache written for one local chain would be served to another.
"""

from __future__ import annotations

import atexit
import functools
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

from keeper.errors import ChainError
from keeper.lab.install import tool

HOST = "127.0.0.1"
CHAIN_ID = 31337
_PR_SET_PDEATHSIG = 1
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 20.0
_PORT_ATTEMPTS = 3
_HOMES = "keeper-anvil-"  # then the process that owns it


class Anvil:
    """A running anvil; `url`, `ws_url` and (when asked for) `ipc_path` reach it until `stop`."""

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, home: tempfile.TemporaryDirectory[str]
    ) -> None:
        self._process = process
        self._home = home
        self.pid = process.pid
        self.url = f"http://{HOST}:{port}"
        self.ws_url = f"ws://{HOST}:{port}"
        ipc = Path(home.name) / "anvil.ipc"
        self.ipc_path: Path | None = ipc if ipc.exists() else None

    @classmethod
    def start(
        cls,
        *,
        chain_id: int = CHAIN_ID,
        block_time_s: float | None = None,
        mining: bool = True,
        timestamp_s: int | None = None,
        load_state: Path | None = None,
        dump_state: Path | None = None,
        fork_url: str | None = None,
        fork_block: int | None = None,
        base_fee_wei: int | None = None,
        gas_limit: int | None = None,
        ipc: bool = False,
        extra: Sequence[str] = (),
    ) -> Self:
        """Start anvil on a free port and return once it listens.

        Every transaction is mined at once unless `block_time_s` is given or `mining` is false. `timestamp_s` is the
        genesis time; `dump_state` is written when `stop` ends the process. A fork keeps the chain id of what it
        forks. Any sender may be impersonated. Raises ConfigError when anvil is not installed, ChainError when it
        does not come up.
        """
        options = ["--quiet", "--no-request-size-limit", "--auto-impersonate", "--host", HOST]
        if fork_url is None:
            options += ["--chain-id", str(chain_id)]
        else:
            options += ["--fork-url", fork_url, "--no-storage-caching", "--no-rate-limit"]
            if fork_block is not None:
                options += ["--fork-block-number", str(fork_block)]
        if block_time_s is not None:
            options += ["--block-time", str(block_time_s)]
        if not mining:
            options.append("--no-mining")
        for flag, value in (
            ("--timestamp", timestamp_s),
            ("--load-state", load_state),
            ("--dump-state", dump_state),
            ("--block-base-fee-per-gas", base_fee_wei),
            ("--gas-limit", gas_limit),
        ):
            if value is not None:
                options += [flag, str(value)]
        binary = str(tool("anvil"))
        _sweep(os.getpid())
        for attempt in range(_PORT_ATTEMPTS):
            home = tempfile.TemporaryDirectory(prefix=f"{_HOMES}{os.getpid()}-")
            port = free_port()
            # states of old blocks go to disk, a few megabytes each; by default anvil leaves them there for ever
            argv = [binary, "--port", str(port), "--cache-path", home.name, *options, *extra]
            ipc_path = Path(home.name) / "anvil.ipc" if ipc else None
            if ipc_path is not None:
                argv += ["--ipc", str(ipc_path)]
            errors = Path(home.name) / "stderr"
            process = _spawn(argv, errors)
            if _listens(process, port, ipc_path):
                anvil = cls(process, port, home)
                atexit.register(anvil.stop)
                return anvil
            complaint = _complaint(errors)
            code = process.poll()
            _end(process)
            home.cleanup()
            # Another process may have taken the port between our looking and anvil's binding.
            if "in use" not in complaint or attempt == _PORT_ATTEMPTS - 1:
                ended = (
                    "did not listen in time" if code is None else f"exited with code {code} while starting"
                )
                raise ChainError(f"anvil {ended}: {complaint}.")
        raise AssertionError("unreachable: the last attempt returns or raises")

    def fork(
        self, *, block: int | None = None, block_time_s: float | None = None, mining: bool = True
    ) -> Anvil:
        """Start another anvil on top of this one's state; nothing done there reaches this one."""
        return Anvil.start(fork_url=self.url, fork_block=block, block_time_s=block_time_s, mining=mining)

    @property
    def running(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End the process by its id and wait for it; a `dump_state` file is complete afterwards. Idempotent."""
        atexit.unregister(self.stop)
        _end(self._process)
        self._home.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.stop()


@functools.cache
def _sweep(pid: int) -> None:
    """Remove what the nodes of killed processes left behind; once per process."""
    for home in Path(tempfile.gettempdir()).glob(f"{_HOMES}*-*"):
        owner = home.name.removeprefix(_HOMES).partition("-")[0]
        if owner.isdecimal() and int(owner) != pid and not _runs(int(owner)):
            shutil.rmtree(home, ignore_errors=True)  # another process may be sweeping too


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def free_port() -> int:
    """A TCP port on loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _listens(process: subprocess.Popen[bytes], port: int, ipc_path: Path | None) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        try:
            socket.create_connection((HOST, port), timeout=0.5).close()
            if ipc_path is not None:  # anvil opens it after the port
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(ipc_path))
        except OSError:
            time.sleep(0.003)
        else:
            # Whoever answers must be our child, not a stranger that took the port before anvil could.
            return process.poll() is None
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _complaint(path: Path) -> str:
    """What anvil printed, as one clause: its first line, and the deepest cause where it lists causes."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    if not lines:
        return "it printed nothing"
    first = lines[0].removeprefix("Error: ").removeprefix("error: ")
    cause = re.match(r"- Error #\d+: (.*)", lines[-1])
    return f"{first} ({cause[1]})" if cause else first


# --- spawning from one thread that never ends -------------------------------------------------------------------------

# A launcher instead of `preexec_fn`: Python code between fork and exec may deadlock in a process with threads.
_LAUNCHER = f"""
import ctypes, os, signal, sys
armed = ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, int(signal.SIGKILL), 0, 0, 0) == 0
if not armed or os.getppid() != int(sys.argv[1]):
    sys.exit("the process that wanted it is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class _Spawner(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="anvil-spawner", daemon=True)
        self._jobs: queue.SimpleQueue[tuple[list[str], Path, Future[subprocess.Popen[bytes]]]] = (
            queue.SimpleQueue()
        )
        self.start()

    def run(self) -> None:
        while True:
            argv, errors, answer = self._jobs.get()
            try:
                with errors.open("wb") as stderr:
                    answer.set_result(
                        subprocess.Popen(
                            argv,
                            stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL,
                            stderr=stderr,
                            start_new_session=True,  # Ctrl-C is ours to handle: the keeper ends first, then its chain
                        )
                    )
            except OSError as error:
                answer.set_exception(error)

    def spawn(self, argv: list[str], errors: Path) -> subprocess.Popen[bytes]:
        answer: Future[subprocess.Popen[bytes]] = Future()
        self._jobs.put((argv, errors, answer))
        return answer.result()


@functools.cache
def _spawner(pid: int) -> _Spawner:
    """One per process: a forked child inherits this cache but not the thread."""
    return _Spawner()


def _spawn(argv: list[str], errors: Path) -> subprocess.Popen[bytes]:
    if sys.platform == "linux":
        argv = [sys.executable, "-ISc", _LAUNCHER, str(os.getpid()), *argv]
    try:
        return _spawner(os.getpid()).spawn(argv, errors)
    except OSError as error:
        raise ChainError(f"anvil cannot be started: {error.strerror or error}.") from error
