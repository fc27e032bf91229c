"""What a node pushes, between the connection that reads it and the task that waits for it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, Final

import msgspec

from keeper.chain.wire import ANYTHING, decode
from keeper.errors import ChainError

_BACKLOG: Final = 10_000  # notifications a subscriber may lag behind before it is cut off


class Subscription:
    """Notifications of one subscription in order of arrival.

    Iterating yields decoded JSON. It raises `ChainError` when the connection is gone, and when the subscriber lags
    so far behind that remembering more would only hide it.
    """

    __slots__ = ("_arrived", "_failure", "_label", "_queue")

    def __init__(self, label: str) -> None:
        self._label: Final = label
        self._queue: Final[deque[tuple[float, msgspec.Raw]]] = deque()
        self._arrived: asyncio.Future[None] | None = None
        self._failure: str | None = None

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Any:
        return decode(ANYTHING, (await self.next_raw())[1], self._label, "a subscription")

    async def next_raw(self) -> tuple[float, msgspec.Raw]:
        """The oldest notification not yet read and when it arrived; waits for one."""
        await self._some()
        return self._queue.popleft()

    async def newest(self) -> tuple[float, msgspec.Raw]:
        """The newest notification not yet read and when it arrived; waits for one, and drops older ones.

        The time is `time.monotonic`'s.
        """
        await self._some()
        newest = self._queue.pop()
        self._queue.clear()
        return newest

    async def _some(self) -> None:
        while not self._queue:
            if self._failure is not None:
                raise ChainError(self._failure)
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived

    def push(self, raw: msgspec.Raw) -> None:
        """Queue one notification (the connection's part)."""
        if len(self._queue) < _BACKLOG and self._failure is None:
            self._queue.append((time.monotonic(), raw))
            self._wake()
        else:
            self.fail(f"A subscription at {self._label} is {_BACKLOG} notifications behind its reader.")

    def fail(self, why: str) -> None:
        """End it (the connection's part)."""
        self._failure = self._failure or why
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)
