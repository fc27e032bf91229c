"""Blocks by number, by hash and the newest, as one provider tells them and as a quorum knows them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import msgspec

from keeper.chain.pool import Pool
from keeper.chain.quorum import believe
from keeper.chain.rpc import Rpc
from keeper.chain.wire import Lacking, count, hash_of, quantity, reading
from keeper.errors import ChainError, NoQuorum
from keeper.types import BlockNumber, Gas, Hash, Head, Wei, hex_of

SURVEY_S: Final = 1.0  # for every provider to name its newest block


class HeaderShape(msgspec.Struct, rename="camel"):
    """A block header as nodes send it."""

    number: str
    hash: str
    parent_hash: str
    timestamp: str
    gas_limit: str
    gas_used: str
    base_fee_per_gas: str | None = None


HEADER: Final = msgspec.json.Decoder(HeaderShape)
_BLOCK: Final = msgspec.json.Decoder(HeaderShape | None)


def head_of(shape: HeaderShape, seen_s: float) -> Head:
    """A header with its quantities parsed; chains without a base fee have 0. Raises `ValueError`."""
    return Head(
        number=BlockNumber(count(shape.number)),
        hash=hash_of(shape.hash),
        parent_hash=hash_of(shape.parent_hash),
        timestamp_s=count(shape.timestamp),
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


async def known(pool: Pool, at: BlockNumber | Hash) -> Head:
    """The block with this number or hash as the providers know it; `seen_s` is 0."""

    async def work(rpc: Rpc) -> Head:
        return replace(await block_at(rpc, at), seen_s=0.0)

    if pool.quorum == 1:
        return await pool.run(work)
    return (await believe(pool, work, pinned=not isinstance(at, int)))[0]


async def newest(pool: Pool) -> Head:
    """The newest block; with a quorum the highest that so many providers know."""
    head = await (pool.run(latest) if pool.quorum == 1 else _newest_known(pool))
    pool.head = head.number
    return head


async def _newest_known(pool: Pool) -> Head:
    answers = [answer for _, answer, _ in await pool.survey(latest, SURVEY_S)]
    candidates = {answer.hash: answer for answer in answers if isinstance(answer, Head)}
    failure: ChainError = NoQuorum("No provider has told its newest block.")
    for head in sorted(candidates.values(), key=lambda head: head.number, reverse=True):
        try:
            return replace(await known(pool, head.hash), seen_s=head.seen_s)
        except ChainError as error:
            failure = error
    raise failure
