"""Reads pinned to one block hash: many generators, one Multicall3 call per round.

Each generator yields calls and is sent their return data; the calls of all that still run are merged into one
`Multicall3.aggregate3`, so a head's whole look at the world costs one round trip; words of storage come beside it, in
one batch. The codec is written out for this one signature because it runs on every head.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from keeper.abi import keccak
from keeper.chain.rpc import Rpc
from keeper.chain.wire import TEXT, data, failed_execution, hash_of, reading
from keeper.errors import ChainError, RpcError
from keeper.seams import Reads
from keeper.types import Address, Call, Hash, Question, Result, Reverted, Slot, hex_of

MULTICALL3: Final = Address(bytes.fromhex("cA11bde05977b3631167028862bE2a173976CA11"))
CHUNK: Final = 500  # calls in one eth_call
IN_FLIGHT: Final = 2  # eth_calls at once

_SELECTOR: Final = keccak(b"aggregate3((address,bool,bytes)[])")[:4]
_TARGET: Final = "0x" + MULTICALL3.hex()
_WORD: Final = 32
_PADDING: Final = bytes(_WORD)
_ALLOW_FAILURE_AND_OFFSET: Final = (1).to_bytes(_WORD, "big") + (3 * _WORD).to_bytes(_WORD, "big")
_TRUE: Final = (1).to_bytes(_WORD, "big")
_FALSE: Final = bytes(_WORD)

Execute = Callable[[Sequence[Question]], Awaitable[Sequence[Result]]]

_uint = int.from_bytes


async def drive(reads: Sequence[Reads[Any]], execute: Execute) -> list[Any]:
    """Run generators to their return values, in order; `execute` answers the calls of one round of all of them.

    The first error of any generator, or of `execute`, ends them all.
    """
    values: list[Any] = [None] * len(reads)
    running: list[tuple[int, Reads[Any], Sequence[Question]]] = []
    try:
        for place, read in enumerate(reads):
            try:
                running.append((place, read, next(read)))
            except StopIteration as done:
                values[place] = done.value
        while running:
            merged = [call for _, _, calls in running for call in calls]
            results = await execute(merged) if merged else []
            waiting, running = running, []
            at = 0
            for place, read, calls in waiting:
                answers = results[at : at + len(calls)]
                at += len(calls)
                try:
                    running.append((place, read, read.send(answers)))
                except StopIteration as done:
                    values[place] = done.value
    finally:
        for read in reads:
            read.close()
    return values


def encode_aggregate3(calls: Sequence[Call]) -> bytes:
    """Calldata of `Multicall3.aggregate3` with every call allowed to fail."""
    count = len(calls)
    heads = [_SELECTOR, _WORD.to_bytes(_WORD, "big"), count.to_bytes(_WORD, "big")]
    bodies: list[bytes] = []
    offset = count * _WORD
    for call in calls:
        payload = call.data
        size = len(payload)
        gap = -size % _WORD
        heads.append(offset.to_bytes(_WORD, "big"))
        bodies += (
            _PADDING[:12],
            call.to,
            _ALLOW_FAILURE_AND_OFFSET,
            size.to_bytes(_WORD, "big"),
            payload,
            _PADDING[:gap],
        )
        offset += 4 * _WORD + size + gap
    return b"".join(heads + bodies)


def decode_aggregate3(returned: bytes, count: int) -> list[Result]:
    """The results of `count` calls out of `aggregate3`'s return data. Raises `ValueError` for anything else."""
    if len(returned) < 2 * _WORD or _uint(returned[:_WORD], "big") != _WORD:
        raise ValueError(f"{len(returned)} bytes are not an array of results")
    if _uint(returned[_WORD : 2 * _WORD], "big") != count:
        raise ValueError(f"{_uint(returned[_WORD : 2 * _WORD], 'big')} results came for {count} calls")
    base = 2 * _WORD
    total = len(returned)
    if base + count * _WORD > total:
        raise ValueError(f"{total} bytes cannot hold {count} results")
    results: list[Result] = []
    for head in range(base, base + count * _WORD, _WORD):
        start = base + _uint(returned[head : head + _WORD], "big")
        if start + 2 * _WORD > total:
            raise ValueError(f"a result starts at byte {start} of {total}")
        body = start + _uint(returned[start + _WORD : start + 2 * _WORD], "big") + _WORD
        end = body + _uint(returned[body - _WORD : body], "big")
        if end > total:
            raise ValueError(f"a result ends at byte {end} of {total}")
        succeeded = returned[start : start + _WORD]
        if succeeded == _TRUE:
            results.append(returned[body:end])
        elif succeeded == _FALSE:
            results.append(Reverted(returned[body:end]))
        else:
            raise ValueError("a result neither succeeded nor failed")
    return results


async def execute_at(rpc: Rpc, questions: Sequence[Question], at: Hash) -> list[Result]:
    """Answer calls at a block hash, `CHUNK` to an eth_call, `IN_FLIGHT` of those at once, and slots in one batch.

    Raises `ChainError`, also when the node does not know the block.
    """
    slots = [question for question in questions if isinstance(question, Slot)]
    calls = [question for question in questions if isinstance(question, Call)]
    if not slots:
        return await _called(rpc, calls, at)
    answers = await asyncio.gather(_called(rpc, calls, at), _stored(rpc, slots, at))
    results, words = map(iter, answers)
    return [next(words if isinstance(question, Slot) else results) for question in questions]


async def _stored(rpc: Rpc, slots: Sequence[Slot], at: Hash) -> list[Result]:
    where = {"blockHash": hex_of(at)}
    requests = [("eth_getStorageAt", [hex_of(slot.of), hex_of(slot.key), where]) for slot in slots]
    words: list[Result] = []
    for answer in await rpc.batch(requests):
        if isinstance(answer, RpcError):
            raise answer
        with reading(rpc.label, "eth_getStorageAt"):
            words.append(hash_of(answer))
    return words


async def _called(rpc: Rpc, calls: Sequence[Call], at: Hash) -> list[Result]:
    if not calls:
        return []
    if len(calls) <= CHUNK:
        return await _chunk(rpc, calls, at)
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def gated(chunk: Sequence[Call]) -> list[Result]:
        async with gate:
            return await _chunk(rpc, chunk, at)

    chunks = [calls[first : first + CHUNK] for first in range(0, len(calls), CHUNK)]
    answered = await asyncio.gather(*(gated(chunk) for chunk in chunks))
    return [result for results in answered for result in results]


async def _chunk(rpc: Rpc, calls: Sequence[Call], at: Hash) -> list[Result]:
    try:
        returned = await _eth_call(rpc, _TARGET, encode_aggregate3(calls), at)
    except RpcError as error:
        if not failed_execution(error):
            raise
        # aggregate3 lets every call fail, so what failed is the whole: too much gas for one eth_call
        if len(calls) == 1:
            return [await _alone(rpc, calls[0], at)]
        middle = len(calls) // 2
        return await _chunk(rpc, calls[:middle], at) + await _chunk(rpc, calls[middle:], at)
    with reading(rpc.label, "Multicall3.aggregate3"):
        results = decode_aggregate3(returned, len(calls))
    # One call that eats all gas makes it and those after it fail without data, exactly like a bare revert: what
    # failed that way is asked again alone. A starved call must never pass for a contract's answer.
    doubtful = [
        place for place, result in enumerate(results) if isinstance(result, Reverted) and not result.data
    ]
    if doubtful:
        answers = await asyncio.gather(*(_alone(rpc, calls[place], at) for place in doubtful))
        for place, answer in zip(doubtful, answers, strict=True):
            results[place] = answer
    return results


async def _alone(rpc: Rpc, call: Call, at: Hash) -> Result:
    try:
        return await _eth_call(rpc, hex_of(call.to), call.data, at)
    except RpcError as error:
        if failed_execution(error):
            return Reverted(error.data)
        raise


async def _eth_call(rpc: Rpc, to: str, payload: bytes, at: Hash) -> bytes:
    message = {"to": to, "data": "0x" + payload.hex()}
    returned = await rpc.ask(TEXT, "eth_call", message, {"blockHash": "0x" + at.hex()})
    with reading(rpc.label, "eth_call"):
        return data(returned)


async def require_multicall3(rpc: Rpc) -> None:
    """Raise `ChainError` unless Multicall3 is deployed on the chain."""
    code = await rpc.ask(TEXT, "eth_getCode", _TARGET, "latest")
    if len(code) <= len("0x"):
        raise ChainError(
            f"There is no Multicall3 at {_TARGET} on this chain: deploy it there (its presigned transaction "
            "is public) before the keeper can read this chain."
        )
