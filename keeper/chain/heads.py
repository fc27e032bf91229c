"""Heads as they come: the newest wins, and the stream outlives connections and providers.

Nothing is filled in: a consumer that is slow, or a connection that was down, skips to the newest head. Completeness
is the affair of ranged logs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Final

import structlog

from keeper.chain.blocks import HEADER, SURVEY_S, head_of, known, latest
from keeper.chain.compare import comparing
from keeper.chain.pool import Pool, Sleep
from keeper.chain.rpc import Rpc
from keeper.chain.subscription import Subscription
from keeper.chain.wire import decode, reading
from keeper.errors import ChainError, NoQuorum, RpcError
from keeper.types import Head

_POLL_S: Final = 0.25  # HTTP has no push
_QUIET_S: Final = 15.0  # so long without a head, the other providers are asked whether the chain stands still
_BACKOFF_S: Final = 0.1
_LONGEST_BACKOFF_S: Final = 5.0
_INTERRUPTED: Final = 2  # attempts in a row that brought no head, before that is noted

_log = structlog.get_logger("keeper.chain")


async def follow(pool: Pool, sleep: Sleep | None = None) -> AsyncGenerator[Head]:
    """Every head that is the newest when asked for, beginning with the present one.

    Providers that fail are waited for, without end: how old a head may get is for the caller to judge. A provider
    taken over to that is some blocks behind is not a reorg: its heads are passed over until it has caught up, or
    has had its time to. With a quorum, a head is one that so many providers know. Raises nothing
    that a provider caused.
    """
    sleep = sleep or pool.sleep
    failures, backoff_s = 0, _BACKOFF_S
    last: Head | None = None
    async with comparing(pool) as comparison:
        while True:
            catching_up_until_s = time.monotonic() + _QUIET_S
            try:
                async with aclosing(_from_one_provider(pool, sleep)) as heads:
                    async for head in heads:
                        if failures >= _INTERRUPTED:
                            pool.note("heads_resumed", "", f"Block {head.number} was announced.")
                        failures, backoff_s = 0, _BACKOFF_S
                        if last is not None:
                            if head.hash == last.hash:
                                continue
                            if head.number < last.number and time.monotonic() < catching_up_until_s:
                                continue
                        if comparison is not None and comparison.done():
                            comparison.result()
                        last, pool.head = head, head.number
                        catching_up_until_s = 0.0
                        yield head
            except ChainError as error:
                failures += 1
                _log.warning("heads_interrupted", error=str(error), retry_s=backoff_s)
                if failures == _INTERRUPTED:
                    pool.note("no_heads", "", str(error))
                await sleep(backoff_s)
                backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S)


async def _from_one_provider(pool: Pool, sleep: Sleep) -> AsyncGenerator[Head]:
    """Heads of the provider in use until it fails, is dropped or is left behind."""
    rpc, subscription = await pool.run(_subscribed)
    pool.follow(rpc, subscription)  # who announces a block can answer for it
    try:
        head = await latest(rpc)
        if pool.quorum > 1:
            await _confirm(pool, rpc, head)
        yield head
        heard_s = head.seen_s
        while pool.follows(rpc):
            newer = await (_announced(rpc, subscription) if subscription else _polled(rpc, sleep))
            if newer is not None and newer.hash != head.hash:
                head = newer
                if pool.quorum > 1:
                    await _confirm(pool, rpc, head)
                yield head
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > _QUIET_S:
                await _require_newest(pool, rpc, head)
                heard_s = time.monotonic()
    except ChainError as error:
        if pool.follows(rpc):
            pool.blame(rpc, error)
        raise
    finally:
        if subscription is not None and rpc.alive:
            # all that matters is that nothing more is queued; a node that fails now has ended it as well
            with suppress(ChainError):
                await rpc.unsubscribe(subscription)


async def _confirm(pool: Pool, rpc: Rpc, head: Head) -> None:
    """Raise `ChainError` unless a quorum of providers knows the head as it was announced."""
    announcer = pool.followed
    try:
        agreed = await known(pool, head.hash)
    except NoQuorum as error:
        if error.lacked and announcer is not None:
            pool.condemn(announcer, f"it announced block {head.number}, which no others know.")
        raise
    if agreed != replace(head, seen_s=0.0):
        if announcer is not None:
            pool.condemn(announcer, f"it announced block {head.number} otherwise than it is.")
        raise ChainError(f"{rpc.label} announced block {head.number} otherwise than it is.")


async def _subscribed(rpc: Rpc) -> tuple[Rpc, Subscription | None]:
    if not rpc.pushes:
        return rpc, None
    try:
        return rpc, await rpc.subscribe("newHeads")
    except RpcError:
        return rpc, None  # not every provider that speaks ws lets everyone subscribe: poll it


async def _announced(rpc: Rpc, subscription: Subscription) -> Head | None:
    """The next announced head, or None after a while of silence."""
    try:
        async with asyncio.timeout(_QUIET_S):
            seen_s, raw = await subscription.newest()
    except TimeoutError:
        return None
    shape = decode(HEADER, raw, rpc.label, "newHeads")
    with reading(rpc.label, "newHeads"):
        return head_of(shape, seen_s)


async def _polled(rpc: Rpc, sleep: Sleep) -> Head:
    await sleep(_POLL_S)
    return await latest(rpc)


async def _require_newest(pool: Pool, rpc: Rpc, head: Head) -> None:
    """Raise `ChainError` when a quorum of providers is two blocks on; one may just be arriving."""
    answers = [answer for _, answer, _ in await pool.survey(latest, SURVEY_S)]
    numbers = sorted((answer.number for answer in answers if isinstance(answer, Head)), reverse=True)
    if len(numbers) >= pool.quorum and numbers[pool.quorum - 1] >= head.number + 2:
        raise ChainError(
            f"{rpc.label} announced nothing after block {head.number} while block {numbers[pool.quorum - 1]} is there."
        )
