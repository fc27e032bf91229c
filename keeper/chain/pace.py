"""How often a provider may be asked: a configured pace, and the pause it asks for itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from keeper.errors import ChainError

_BURST_S: Final = 1.0  # what a provider was not asked in so long may be asked at once
_NOTHING_S: Final = 0.001


class Pace:
    """At most so many requests per second; a second's worth may come at once after a rest."""

    def __init__(
        self,
        per_s: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._per_s: Final = per_s
        self._clock: Final = clock
        self._sleep: Final = sleep
        self._spent_until_s = 0.0  # by when all requests let through so far are paid for

    def wait_s(self, requests: int = 1) -> float:
        """How long so many requests would have to wait now."""
        now_s = self._clock()
        wait_s = self._after(requests, now_s) - now_s
        return wait_s if wait_s > _NOTHING_S else 0.0

    async def turn(self, requests: int, most_s: float, label: str) -> None:
        """Wait until so many requests may go. Raises `ChainError` where that would take longer than `most_s`."""
        now_s = self._clock()
        after_s = self._after(requests, now_s)
        wait_s = after_s - now_s
        if wait_s > most_s:
            raise ChainError(
                f"{label} would have to be asked more often than chain.max_requests_per_s = {self._per_s} allows; "
                "raise it, or add a node."
            )
        self._spent_until_s = after_s
        if wait_s > _NOTHING_S:
            await self._sleep(wait_s)

    def _after(self, requests: int, now_s: float) -> float:
        return max(self._spent_until_s, now_s - _BURST_S) + requests / self._per_s


def retry_after_s(header: str | None) -> float | None:
    """HTTP's Retry-After, seconds or a date, as seconds from now; None where it is missing or unreadable."""
    if header is None:
        return None
    try:
        return max(float(int(header)), 0.0)
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max((until - datetime.now(UTC)).total_seconds(), 0.0)
