"""One provider: the connection to it, and what is held against it.

Whoever fails rests for a while, longer each time; whoever asks for a pause gets it; whoever was caught lying, on a
fork or on another chain is dropped for long. The chain id is asked on every connection, and again after every failure.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

import structlog

from keeper.chain.pace import Pace
from keeper.chain.rpc import Rpc, label_of
from keeper.chain.transports import connect
from keeper.chain.wire import TEXT, RateLimited, quantity, reading
from keeper.errors import ChainError, WrongChain

_REST_S: Final = 0.5
_LONGEST_REST_S: Final = 30.0
_PAUSE_S: Final = 1.0  # where a provider does not say how long it wants to be left alone
_LONGEST_PAUSE_S: Final = 600.0
_SAME_S: Final = 0.1
_QUARANTINE_S: Final = 30.0
_LONGEST_QUARANTINE_S: Final = 3_600.0

_log = structlog.get_logger("keeper.chain")


class Provider:
    """One URL and, while it lasts, the connection to it. Times are those of the pool's clock."""

    def __init__(self, url: str, chain_id: int, timeout_s: float, pace: Pace | None) -> None:
        self.label: Final = label_of(url)
        self.failures = 0
        self.rests_until_s = 0.0
        self.paused_until_s = 0.0
        self.dropped_until_s = 0.0
        self.differed_at_s = -math.inf  # when its logs were last found to differ
        self._url: Final = url
        self._chain_id: Final = chain_id
        self._timeout_s: Final = timeout_s
        self._pace: Final = pace
        self._pauses = 0
        self._lies = 0
        self._lock: Final = asyncio.Lock()
        self._rpc: Rpc | None = None
        self._checked = False

    async def rpc(self) -> Rpc:
        """A live connection to the right chain. Raises `ChainError` or `WrongChain`."""
        if self._checked and self._rpc is not None and self._rpc.alive:
            return self._rpc
        async with self._lock:
            if self._rpc is not None and not self._rpc.alive:
                await self._rpc.close()
                self._rpc = None
            if self._rpc is None:
                self._rpc = await connect(self._url, self._timeout_s, self._pace)
                self._checked = False
            if not self._checked:
                await self.check(self._rpc)
            return self._rpc

    async def recheck(self, rpc: Rpc) -> None:
        """Ask which chain it serves if a connection was made since it was asked last. Raises `WrongChain`."""
        async with self._lock:
            if rpc.renewed:
                await self.check(rpc)

    async def check(self, rpc: Rpc) -> None:
        """Ask which chain it serves. Raises `WrongChain`."""
        with reading(self.label, "eth_chainId"):
            served = quantity(await rpc.ask(TEXT, "eth_chainId"))
        self._checked, rpc.renewed = served == self._chain_id, False
        if not self._checked:
            raise WrongChain(
                f"{self.label} serves chain {served} and chain.id is {self._chain_id}: correct one of them."
            )

    @property
    def pushes(self) -> bool:
        """Whether it announces heads over a socket."""
        return not self.label.startswith("http")

    def holds(self, rpc: Rpc) -> bool:
        """Whether `rpc` is this provider's present connection."""
        return self._rpc is rpc

    async def close(self) -> None:
        """Drop the connection."""
        if self._rpc is not None:
            await self._rpc.close()

    # --- what is held against it ---

    def wait_s(self, now_s: float) -> float:
        """How long it should not be asked, if others can be."""
        wait_s = max(self.rests_until_s, self.paused_until_s) - now_s
        if self._pace is not None:
            wait_s = max(wait_s, self._pace.wait_s())
        return max(wait_s, 0.0)

    def answered(self) -> None:
        """It did what it was asked."""
        if self.failures or self._pauses:
            self.failures = self._pauses = 0
            self.rests_until_s = 0.0

    def rest(self, error: ChainError, now_s: float) -> None:
        """It failed: ask it last for a while, and make sure that it is still the same chain."""
        self._checked = False
        rest_s = min(_REST_S * 2.0**self.failures, _LONGEST_REST_S)
        self.failures = min(self.failures + 1, 10)
        self.rests_until_s = now_s + rest_s
        _log.warning("provider_failed", provider=self.label, error=str(error), rest_s=rest_s)

    def pause(self, limit: RateLimited, now_s: float) -> None:
        """It asked to be left alone: do so, as long as it said."""
        pause_s = limit.retry_after_s
        if pause_s is None:
            if self.paused_until_s > now_s:
                return  # one refusal of many that were on their way together
            pause_s = _PAUSE_S * 2.0**self._pauses
            self._pauses = min(self._pauses + 1, 5)
        until_s = now_s + min(pause_s, _LONGEST_PAUSE_S)
        if until_s > self.paused_until_s + _SAME_S:
            self.paused_until_s = until_s
            _log.warning("provider_paused", provider=self.label, error=str(limit), pause_s=pause_s)

    def sentence_s(self) -> float:
        """How long it is out for one more lie: each time twice as long."""
        out_s = min(_QUARANTINE_S * 2.0**self._lies, _LONGEST_QUARANTINE_S)
        self._lies = min(self._lies + 1, 10)
        return out_s
