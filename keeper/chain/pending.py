"""The pending pool as far as providers show it: every transaction that mentions a contract, as soon as it is known.

Bodies are asked for where a provider sends them, else each is fetched by its hash. Whoever offers neither is noted
once and left alone; whoever fails is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from keeper.chain.pool import Pool
from keeper.chain.provider import Provider
from keeper.chain.rpc import Rpc
from keeper.chain.subscription import Subscription
from keeper.chain.wire import TEXT, address_of, data, decode, hash_of, reading
from keeper.errors import ChainError, RpcError
from keeper.types import Address, Hash

_AGAIN_S: Final = 1.0
_TOPIC: Final = "newPendingTransactions"

_log = structlog.get_logger("keeper.chain")


@dataclass(frozen=True, slots=True)
class Pending:
    """A transaction that waits in the pool; `sender` as the node says, `to` None where it creates a contract."""

    hash: Hash
    sender: Address
    to: Address | None
    data: bytes


class _Shape(msgspec.Struct):
    hash: str
    sender: str = msgspec.field(name="from")
    input: str
    to: str | None = None


_BODY: Final = msgspec.json.Decoder(_Shape)
_KNOWN: Final = msgspec.json.Decoder(msgspec.Raw)
Saw = Callable[[Pending], Awaitable[None]]


async def watch_pool(pool: Pool, mentions: Address, saw: Saw) -> None:
    """Tell `saw` of every pending transaction whose call mentions an address, by any provider; runs until cancelled."""
    await asyncio.gather(
        *(_watch(pool, provider, mentions.hex().encode(), saw) for provider in pool.providers)
    )


async def _watch(pool: Pool, provider: Provider, mentions: bytes, saw: Saw) -> None:
    failed = False
    while True:
        try:
            rpc = await provider.rpc()
            subscription = await _subscribed(rpc)
            if subscription is None:
                pool.note("no_pending_pool", provider.label, "It does not show pending transactions.")
                return
            failed = False
            while True:
                _, raw = await subscription.next_raw()
                pending = await _mentioning(rpc, bytes(raw), mentions)
                if pending is not None:
                    await saw(pending)
        except ChainError as error:
            if not failed:
                _log.warning("pending_pool_interrupted", provider=provider.label, error=str(error))
            failed = True
            await asyncio.sleep(_AGAIN_S)


async def _subscribed(rpc: Rpc) -> Subscription | None:
    if not rpc.pushes:
        return None
    for params in ((_TOPIC, True), (_TOPIC,)):
        try:
            return await rpc.subscribe(*params)
        except RpcError:
            continue
    return None


async def _mentioning(rpc: Rpc, raw: bytes, mentions: bytes) -> Pending | None:
    """What was announced, if it mentions the address; most never get as far as being parsed."""
    if raw[:1] == b'"':
        name = decode(TEXT, raw, rpc.label, _TOPIC)
        found: msgspec.Raw = await rpc.ask(_KNOWN, "eth_getTransactionByHash", name)
        raw = bytes(found)
        if raw == b"null":
            return None  # mined elsewhere or gone by now
    if mentions not in raw.lower():
        return None
    shape = decode(_BODY, raw, rpc.label, _TOPIC)
    with reading(rpc.label, _TOPIC):
        to = address_of(shape.to) if shape.to else None
        return Pending(hash_of(shape.hash), address_of(shape.sender), to, data(shape.input))
