"""Logs by range and by block, complete or an error: a node that lags must not pass for a quiet chain.

With a quorum, what any of so many providers lists counts: one that leaves logs out cannot hide an account.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from keeper.chain.pool import Pool
from keeper.chain.quorum import union
from keeper.chain.rpc import Rpc
from keeper.chain.wire import TEXT, Lacking, TimedOut, address_of, data, hash_of, quantity, reading
from keeper.errors import ChainError, NoQuorum, RpcError
from keeper.types import BlockNumber, Filters, Hash, Log, hex_of

_GROWTH: Final = 2  # a range that was answered lets the next one be this much longer


class LogShape(msgspec.Struct, rename="camel"):
    """A log as nodes send it."""

    address: str
    topics: list[str]
    data: str
    block_number: str
    block_hash: str
    transaction_hash: str
    log_index: str
    removed: bool = False


_LOGS: Final = msgspec.json.Decoder(list[LogShape])


def log_of(shape: LogShape) -> Log:
    """A log with its hexadecimal parsed. Raises `ValueError`."""
    return Log(
        address_of(shape.address),
        tuple([hash_of(topic) for topic in shape.topics]),
        data(shape.data),
        BlockNumber(quantity(shape.block_number)),
        hash_of(shape.block_hash),
        hash_of(shape.transaction_hash),
        quantity(shape.log_index),
    )


async def logs_between(pool: Pool, filters: Sequence[Filters], from_block: int, to_block: int) -> list[Log]:
    """Logs that match any filter, both blocks included, in chain order.

    A range that a node refuses or does not answer in time is halved until it does. Raises `ChainError` when a
    single block is refused too, or when no provider has reached `to_block`.
    """
    query = _query(tuple(filters))
    if query.empty:
        return []
    found: list[Log] = []
    reached: dict[Rpc, int] = {}
    first = from_block
    span = to_block - from_block + 1
    while first <= to_block:
        last = min(first + span - 1, to_block)

        async def fetch(rpc: Rpc, first: int = first, last: int = last) -> list[Log]:
            await _require_height(rpc, last, reached)
            return await query.ask(rpc, {"fromBlock": hex(first), "toBlock": hex(last)})

        try:
            logs = await (pool.run(fetch) if pool.quorum == 1 else union(pool, fetch, pinned=False))
        except ChainError as error:
            cause = error.__cause__ if isinstance(error, NoQuorum) else error
            if span == 1 or not isinstance(cause, RpcError | TimedOut):
                raise
            span = max(1, (last - first + 1) // 2)
            continue
        if any(not first <= log.block_number <= last for log in logs):
            raise ChainError(
                f"A node answered eth_getLogs for blocks {first} to {last} with logs of other blocks."
            )
        found += logs
        first = last + 1
        span *= _GROWTH
    return sorted(found, key=lambda log: (log.block_number, log.index))


async def logs_of_block(pool: Pool, filters: Sequence[Filters], block_hash: Hash) -> list[Log]:
    """Logs of one block that match any filter, in order. Raises `ChainError` when no provider knows the block."""
    query = _query(tuple(filters))
    if query.empty:
        return []

    async def fetch(rpc: Rpc) -> list[Log]:
        return await query.ask(rpc, {"blockHash": hex_of(block_hash)})

    logs = await (pool.run(fetch) if pool.quorum == 1 else union(pool, fetch, pinned=True))
    if any(log.block_hash != block_hash for log in logs):
        raise ChainError(
            f"A node answered eth_getLogs for block {hex_of(block_hash)} with logs of another block."
        )
    return sorted(logs, key=lambda log: log.index)


class _Query:
    """All filters as one request, which over-selects, and the exact selection from its answer."""

    def __init__(self, filters: Sequence[Filters]) -> None:
        self._wanted: Final = {
            (address, topic)
            for filter_ in filters
            for address in filter_.addresses
            for topic in filter_.topics
        }
        self._criteria: Final = {
            "address": sorted({hex_of(address) for address, _ in self._wanted}),
            "topics": [sorted({hex_of(topic) for _, topic in self._wanted})],
        }
        self.empty: Final = not self._wanted

    async def ask(self, rpc: Rpc, blocks: dict[str, Any]) -> list[Log]:
        shapes = await rpc.ask(_LOGS, "eth_getLogs", {**blocks, **self._criteria})
        with reading(rpc.label, "eth_getLogs"):
            logs = [log_of(shape) for shape in shapes if not shape.removed]
        return [log for log in logs if log.topics and (log.address, log.topics[0]) in self._wanted]


@lru_cache(maxsize=16)
def _query(filters: tuple[Filters, ...]) -> _Query:
    return _Query(filters)  # the same filters are asked at every head


async def _require_height(rpc: Rpc, last: int, reached: dict[Rpc, int]) -> None:
    """A node asked beyond its head may answer what it has, as if that were all: make sure it is there first."""
    if last <= reached.get(rpc, -1):
        return
    with reading(rpc.label, "eth_blockNumber"):
        reached[rpc] = quantity(await rpc.ask(TEXT, "eth_blockNumber"))
    if last > reached[rpc]:
        raise Lacking(f"{rpc.label} is at block {reached[rpc]} and was asked for logs up to {last}.")
