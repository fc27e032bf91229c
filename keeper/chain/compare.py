"""Providers held against each other every few seconds: who serves another chain, is behind, or is on a fork.

What they answer also ranks them. It runs beside the heads, never between a head and what follows from it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from keeper.chain.blocks import SURVEY_S, block_at, latest
from keeper.chain.pool import OUT_S, Pool
from keeper.chain.provider import Provider
from keeper.errors import ChainError
from keeper.types import BlockNumber, Head

_EVERY_S: Final = 5.0
_SETTLED_BLOCKS: Final = 2  # so far below the newest head, providers should tell the same block
_OUTRANKED: Final = 3  # surveys in a row in which another was best, before heads come from that one


@asynccontextmanager
async def comparing(pool: Pool) -> AsyncIterator[asyncio.Task[None] | None]:
    """Compare providers for as long as this is open; the task that does ends only by a failure of ours.

    One provider on a socket is checked when it connects, and that is all.
    """
    [*others, last] = pool.providers
    if not others and last.pushes:
        yield None
        return
    task = asyncio.create_task(_for_ever(Comparison(pool)), name="compare providers")
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _for_ever(comparison: Comparison) -> None:
    while True:
        await comparison.pool.sleep(_EVERY_S)
        await comparison.survey()


class Comparison:
    """What the last survey left behind."""

    def __init__(self, pool: Pool) -> None:
        self.pool: Final = pool
        self._reached = -1  # the block that a quorum had at the last survey
        self._outranked = 0

    async def survey(self) -> None:
        """Ask every provider once, drop whom the others refute, and rank the rest."""
        pool = self.pool
        heads: dict[Provider, Head] = {}
        latencies_s: dict[Provider, float] = {}
        for provider, answer, took_s in await pool.survey(latest, SURVEY_S, check=True):
            if isinstance(answer, ChainError):
                pool.hold_against(provider, answer)
            else:
                heads[provider], latencies_s[provider] = answer, took_s
        if len(heads) >= pool.quorum:
            newest = sorted(heads.values(), key=lambda head: head.number, reverse=True)[pool.quorum - 1]
            self._drop_late(heads, newest)
            await self._drop_forked(newest)
            for provider, head in heads.items():
                late_s = newest.timestamp_s - head.timestamp_s if head.number < newest.number else 0
                pool.ranking.observe(provider, latencies_s[provider], max(late_s, 0))
            pool.ranking.settle()
            self._follow_the_best()

    def _drop_late(self, heads: dict[Provider, Head], newest: Head) -> None:
        """Who has not reached what a quorum had at the last survey is behind, whatever a block's time is."""
        reached, self._reached = min(self._reached, newest.number), newest.number
        for provider, head in heads.items():
            if head.number < reached:
                why = f"it is behind: its newest block is {head.number} while others had {reached} before."
                self.pool.drop(provider, why, OUT_S)

    async def _drop_forked(self, newest: Head) -> None:
        """A majority of at least the quorum, and of two, says which block is at a settled height."""
        height = BlockNumber(newest.number - _SETTLED_BLOCKS)
        if len(self.pool.providers) < 2 or height < 0:
            return
        answers = await self.pool.survey(lambda rpc: block_at(rpc, height), SURVEY_S)
        told = {provider: answer for provider, answer, _ in answers if isinstance(answer, Head)}
        ranked = Counter(head.hash for head in told.values()).most_common()
        if len(ranked) < 2:
            return
        common, count = ranked[0]
        if count < max(self.pool.quorum, 2) or 2 * count <= len(told):
            return
        for provider, head in told.items():
            if head.hash != common:
                why = f"it is on a fork: it has another block {height} than others."
                self.pool.drop(provider, why, OUT_S, contradicted=True)

    def _follow_the_best(self) -> None:
        best, followed = self.pool.best, self.pool.followed
        self._outranked = self._outranked + 1 if followed not in (None, best) else 0
        if followed is not None and best is not None and self._outranked >= _OUTRANKED:
            self._outranked = 0
            self.pool.leave(f"{best.label} answers and hears of blocks sooner than {followed.label}.")
