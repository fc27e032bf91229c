"""Heads as they come: the newest wins, and the stream outlives connections and providers.

Nothing is filled in: a consumer that is slow, or a connection that was down, skips to the newest head. Completeness
is the affair of ranged logs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Final

import msgspec
import structlog

from keeper.chain.pool import Pool
from keeper.chain.rpc import Rpc
from keeper.chain.subscription import Subscription
from keeper.chain.wire import Lacking, decode, hash_of, quantity, reading
from keeper.errors import ChainError, RpcError, WrongChain
from keeper.types import BlockNumber, Gas, Hash, Head, Wei, hex_of

_POLL_S: Final = 0.25  # HTTP has no push
_QUIET_S: Final = 15.0  # so long without a head, the other providers are asked whether the chain stands still
_SURVEY_S: Final = 1.0
_BACKOFF_S: Final = 0.1
_LONGEST_BACKOFF_S: Final = 5.0

_log = structlog.get_logger("keeper.chain")

Sleep = Callable[[float], Awaitable[None]]


class HeaderShape(msgspec.Struct, rename="camel"):
    """A block header as nodes send it."""

    number: str
    hash: str
    parent_hash: str
    timestamp: str
    gas_limit: str
    gas_used: str
    base_fee_per_gas: str | None = None


_HEADER: Final = msgspec.json.Decoder(HeaderShape)
_BLOCK: Final = msgspec.json.Decoder(HeaderShape | None)


def head_of(shape: HeaderShape, seen_s: float) -> Head:
    """A header with its quantities parsed; chains without a base fee have 0. Raises `ValueError`."""
    return Head(
        number=BlockNumber(quantity(shape.number)),
        hash=hash_of(shape.hash),
        parent_hash=hash_of(shape.parent_hash),
        timestamp_s=quantity(shape.timestamp),
        base_fee_wei=Wei(quantity(shape.base_fee_per_gas or "0x0")),
        gas_limit=Gas(quantity(shape.gas_limit)),
        gas_used=Gas(quantity(shape.gas_used)),
        seen_s=seen_s,
    )


async def latest(rpc: Rpc) -> Head:
    """The node's newest block."""
    shape = await rpc.ask(_BLOCK, "eth_getBlockByNumber", "latest", False)
    if shape is None:
        raise ChainError(f"{rpc.label} has no latest block; it is not ready yet.")
    with reading(rpc.label, "eth_getBlockByNumber"):
        return head_of(shape, time.monotonic())


async def block_at(rpc: Rpc, at: BlockNumber | Hash) -> Head:
    """The block with this number or hash. Raises `ChainError` where the node does not have it."""
    if isinstance(at, int):
        method, name = "eth_getBlockByNumber", hex(at)
    else:
        method, name = "eth_getBlockByHash", hex_of(at)
    shape = await rpc.ask(_BLOCK, method, name, False)
    if shape is None:
        raise Lacking(f"{rpc.label} does not know block {name}.")
    with reading(rpc.label, method):
        return head_of(shape, time.monotonic())


async def follow(pool: Pool, sleep: Sleep = asyncio.sleep) -> AsyncGenerator[Head]:
    """Every head that is the newest when asked for, beginning with the present one.

    Providers that fail are waited for, without end: how old a head may get is for the caller to judge. A provider
    taken over to that is some blocks behind is not a reorg: its heads are passed over until it has caught up, or
    has had its time to. Raises only `WrongChain`.
    """
    backoff_s = _BACKOFF_S
    last: Head | None = None
    while True:
        catching_up_until_s = time.monotonic() + _QUIET_S
        try:
            async with aclosing(_from_one_provider(pool, sleep)) as heads:
                async for head in heads:
                    backoff_s = _BACKOFF_S
                    if last is not None:
                        if head.hash == last.hash:
                            continue
                        if head.number < last.number and time.monotonic() < catching_up_until_s:
                            continue
                    last = head
                    catching_up_until_s = 0.0
                    yield head
        except WrongChain:
            raise
        except ChainError as error:
            _log.warning("heads_interrupted", error=str(error), retry_s=backoff_s)
            await sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _LONGEST_BACKOFF_S)


async def _from_one_provider(pool: Pool, sleep: Sleep) -> AsyncGenerator[Head]:
    """Heads of the provider in use until it fails or is left behind."""
    rpc, subscription = await pool.run(_subscribed)
    pool.prefer(rpc)  # who announces a block can answer for it
    try:
        head = await latest(rpc)
        yield head
        heard_s = head.seen_s
        while True:
            newest = await (_announced(rpc, subscription) if subscription else _polled(rpc, sleep))
            if newest is not None and newest.hash != head.hash:
                head = newest
                yield head
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > _QUIET_S:
                await _require_newest(pool, rpc, head)
                heard_s = time.monotonic()
    except ChainError as error:
        pool.blame(rpc, error)
        raise
    finally:
        if subscription is not None and rpc.alive:
            # all that matters is that nothing more is queued; a node that fails now has ended it as well
            with suppress(ChainError):
                await rpc.unsubscribe(subscription)


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
    shape = decode(_HEADER, raw, rpc.label, "newHeads")
    with reading(rpc.label, "newHeads"):
        return head_of(shape, seen_s)


async def _polled(rpc: Rpc, sleep: Sleep) -> Head:
    await sleep(_POLL_S)
    return await latest(rpc)


async def _require_newest(pool: Pool, rpc: Rpc, head: Head) -> None:
    """Raise `ChainError` when any provider, or this one when asked, is two blocks on; one may just be arriving."""
    for other in await pool.survey(latest, _SURVEY_S):
        if other.number >= head.number + 2:
            raise ChainError(
                f"{rpc.label} announced nothing after block {head.number} while block {other.number} is there."
            )
