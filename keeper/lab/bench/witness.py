"""Who watches the node while something else is measured: one socket, one thread, one clock.

Everything is stamped with the kernel's monotonic clock, which every process on the machine shares, in the turn in
which the bytes were received. A prepared message can be fired at the next head from the very thread that sees it:
that is the floor, the least a program can do between a head and an accepted transaction.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec

from keeper.errors import ChainError

T = TypeVar("T")

_CHUNK: Final = 1 << 20
_PATIENCE_S: Final = 30.0
_HEADS, _PENDING, _FIRED = 1, 2, 3


class Witness:
    """Arrival times of heads and of pending transactions at an IPC subscriber, in seconds of `time.monotonic`."""

    def __init__(self, ipc_path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(ipc_path))
        self._news = threading.Condition()
        self._subscriptions: dict[int, str] = {}
        self._heads: dict[int, float] = {}
        self._pending: dict[str, float] = {}
        self._fired_s: float | None = None
        self._loaded: bytes | None = None
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._watch, name="witness", daemon=True)
        self._thread.start()
        for number, topic in ((_HEADS, "newHeads"), (_PENDING, "newPendingTransactions")):
            self._socket.sendall(_question(number, "eth_subscribe", [topic]))
            self._wait(partial(self._subscriptions.get, number), f"a subscription to {topic}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def head(self, number: int) -> float:
        """When the head of this number arrived; waits for it. Raises ChainError when it does not come."""
        return self._wait(lambda: self._heads.get(number), f"head {number}")

    def pending(self, since_s: float, besides: str) -> tuple[str, float]:
        """The hash of the first transaction announced as pending from then on, and when; waits for it.

        A node may announce `besides`, which it has mined by then, late.
        """

        def later() -> tuple[str, float] | None:
            news = self._pending.items()
            return next(((name, at_s) for name, at_s in news if at_s >= since_s and name != besides), None)

        return self._wait(later, "a pending transaction")

    def all_pending(self, since_s: float, besides: str, count: int) -> dict[str, float]:
        """The first `count` transactions announced as pending from then on, and when; waits for them."""

        def enough() -> dict[str, float] | None:
            news = {n: at_s for n, at_s in self._pending.items() if at_s >= since_s and n != besides}
            return news if len(news) >= count else None

        return self._wait(enough, f"{count} pending transactions")

    def load(self, raw: bytes) -> None:
        """Send this signed transaction as soon as the next head arrives."""
        with self._news:
            self._fired_s = None
            self._loaded = _question(_FIRED, "eth_sendRawTransaction", ["0x" + raw.hex()])

    def accepted(self) -> float:
        """When the node answered that it took what was loaded; waits for it."""
        return self._wait(lambda: self._fired_s, "an answer to the prepared transaction")

    def _wait(self, find: Callable[[], T | None], what: str) -> T:
        deadline_s = time.monotonic() + _PATIENCE_S
        with self._news:
            while (found := find()) is None:
                if self._failure is not None:
                    raise ChainError(self._failure)
                if not self._news.wait(deadline_s - time.monotonic()):
                    raise ChainError(f"The bench waited {_PATIENCE_S:.0f} s for {what}.")
            return found

    def _watch(self) -> None:
        rest = b""
        while received := self._socket.recv(_CHUNK):
            at_s = time.monotonic()
            *lines, rest = (rest + received).split(b"\n")
            for line in lines:
                if line:
                    self._note(line, at_s)
        with self._news:
            self._failure = "The node closed the bench's connection."
            self._news.notify_all()

    def _note(self, line: bytes, at_s: float) -> None:
        # told apart by its bytes: the floor must not pay for parsing
        if self._loaded is not None and b'"parentHash"' in line:
            self._socket.sendall(self._loaded)
            self._loaded = None
        message: dict[str, Any] = msgspec.json.decode(line)
        with self._news:
            if "error" in message:
                self._failure = f"The node refused the bench's request: {message['error']}."
            elif message.get("id") == _FIRED:
                self._fired_s = at_s
            elif "id" in message:
                self._subscriptions[message["id"]] = message["result"]
            elif message["params"]["subscription"] == self._subscriptions[_HEADS]:
                self._heads[int(message["params"]["result"]["number"], 16)] = at_s
            else:
                self._pending[message["params"]["result"]] = at_s
            self._news.notify_all()


def _question(number: int, method: str, params: list[str]) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "id": number, "method": method, "params": params}) + b"\n"
