"""The pending pool as far as providers show it: every transaction that mentions a contract, as soon as it is known.

Bodies are asked for where a provider sends them, else each is fetched by its hash. Whoever offers neither is noted
once and left alone; whoever fails is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from keeper.chain.pool import Pool
from keeper.chain.provider import Provider
from keeper.chain.rpc import Rpc
from keeper.chain.subscription import Subscription
from keeper.chain.transactions import Shape, proof_of, signed_bytes
from keeper.chain.wire import TEXT, address_of, data, decode, hash_of, quantity, reading
from keeper.errors import ChainError, RpcError
from keeper.types import Address, Hash

_AGAIN_S: Final = 1.0
_LONGEST_AGAIN_S: Final = 30.0
_FETCHED_AT_ONCE: Final = 32
_TOPIC: Final = "newPendingTransactions"

_log = structlog.get_logger("keeper.chain")


@dataclass(frozen=True, slots=True)
class Pending:
    """A transaction that waits in the pool; `sender` as the node says, `to` None where it creates a contract.

    `raw` are its signed bytes and `proof` what was signed and the signature, where the node shows them; `chain_id` is
    None where it names no chain.
    """

    hash: Hash
    chain_id: int | None
    sender: Address
    nonce: int
    to: Address | None
    data: bytes
    raw: bytes
    proof: tuple[Hash, bytes] | None


_BODY: Final = msgspec.json.Decoder(Shape)
_KNOWN: Final = msgspec.json.Decoder(msgspec.Raw)
Saw = Callable[[Pending], Awaitable[None]]


async def watch_pool(pool: Pool, mentions: Address, saw: Saw) -> None:
    """Tell `saw` of every pending transaction whose call mentions an address, by any provider; runs until cancelled."""
    await asyncio.gather(
        *(_watch(pool, provider, mentions.hex().encode(), saw) for provider in pool.providers)
    )


async def _watch(pool: Pool, provider: Provider, mentions: bytes, saw: Saw) -> None:
    again_s = _AGAIN_S
    while True:
        try:
            rpc = await provider.rpc()
            subscription = await _subscribed(rpc)
            if subscription is None:
                pool.note("no_pending_pool", provider.label, "It does not show pending transactions.")
                return
            again_s = _AGAIN_S
            if not await _listen(rpc, subscription, mentions, saw):
                why = "It shows only hashes of pending transactions, and chain.max_requests_per_s has no room for more."
                pool.note("no_pending_pool", provider.label, why)
                return
        except ChainError as error:
            if again_s == _AGAIN_S:
                _log.warning("pending_pool_interrupted", provider=provider.label, error=str(error))
            await asyncio.sleep(again_s)
            again_s = min(2 * again_s, _LONGEST_AGAIN_S)


async def _listen(rpc: Rpc, subscription: Subscription, mentions: bytes, saw: Saw) -> bool:
    """Look at everything that is announced; False where only hashes are, of a provider that must be spared."""
    fetching: set[asyncio.Task[None]] = set()

    async def fetch(name: str) -> None:
        found: msgspec.Raw = await rpc.ask(_KNOWN, "eth_getTransactionByHash", name)
        await look(bytes(found))

    async def look(raw: bytes) -> None:
        if mentions in raw.lower():  # most never get as far as being parsed
            await saw(_pending(raw, rpc.label))

    try:
        while True:
            raw = bytes((await subscription.next_raw())[1])
            if raw[:1] != b'"':
                await look(raw)
                continue
            if rpc.paced:
                return False
            for done in [task for task in fetching if task.done()]:
                fetching.discard(done)
                done.result()
            if len(fetching) >= _FETCHED_AT_ONCE:
                await asyncio.wait(fetching, return_when=asyncio.FIRST_COMPLETED)
            fetching.add(asyncio.create_task(fetch(decode(TEXT, raw, rpc.label, _TOPIC))))
    finally:
        for task in fetching:
            task.cancel()
        await asyncio.gather(*fetching, return_exceptions=True)
        if rpc.alive:
            with suppress(ChainError):  # what nobody reads must not be queued
                await rpc.unsubscribe(subscription)


async def _subscribed(rpc: Rpc) -> Subscription | None:
    if not rpc.pushes:
        return None
    for params in ((_TOPIC, True), (_TOPIC,)):
        try:
            return await rpc.subscribe(*params)
        except RpcError:
            continue
    return None


def _pending(raw: bytes, label: str) -> Pending:
    shape = decode(_BODY, raw, label, _TOPIC)
    with reading(label, _TOPIC):
        to = address_of(shape.to) if shape.to else None
        sender, shown = address_of(shape.sender), (signed_bytes(shape), proof_of(shape))
        chain_id = quantity(shape.chain_id) if shape.chain_id else None
        named = (hash_of(shape.hash), chain_id, sender, quantity(shape.nonce))
        return Pending(*named, to, data(shape.input), *shown)
