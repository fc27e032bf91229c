"""Transactions tried in a block that does not exist yet: its number, timestamp and base fee are overridden."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from keeper.chain.rpc import Rpc
from keeper.chain.wire import (
    TEXT,
    Failure,
    address_of,
    data,
    failed_execution,
    hash_of,
    quantity,
    reading,
    revert_data,
)
from keeper.errors import ChainError, RpcError
from keeper.types import Address, BlockNumber, Gas, Hash, Head, Log, Result, Reverted, hex_of

Storage = Mapping[Address, Mapping[int, int]]  # words by slot, by contract

_NO_METHOD: Final = -32601
_NO_HASH: Final = Hash(bytes(32))
_LACKS_METHOD: Final = re.compile(r"\bmethod\b|unsupported|not supported|any variant", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SimCall:
    """A transaction to try: `gas` is its limit; `sender` needs no key and pays nothing."""

    sender: Address
    to: Address
    data: bytes
    gas: Gas


@dataclass(frozen=True, slots=True)
class SimResult:
    """What it did: `status` 1 or 0, `output` the return or revert data, and gas after refunds.

    `logs` are what the called contract itself emitted, of a block without a hash; none of a node that cannot tell.
    """

    status: int
    output: bytes
    gas_used: Gas
    logs: tuple[Log, ...] = ()


class _LogShape(msgspec.Struct):
    address: str
    topics: list[str]
    data: str


class _CallShape(msgspec.Struct, rename="camel"):
    status: str
    gas_used: str
    return_data: str = "0x"
    error: Failure | None = None
    logs: list[_LogShape] = []


class _BlockShape(msgspec.Struct):
    calls: list[_CallShape]


_BLOCKS: Final = msgspec.json.Decoder(list[_BlockShape])


def lacks_simulation(error: RpcError) -> bool:
    """Whether a node refused eth_simulateV1 because it has no such method."""
    return error.code == _NO_METHOD or _LACKS_METHOD.search(error.message) is not None


async def stacked(
    rpc: Rpc, calls: Sequence[SimCall], head: Head, next_timestamp_s: int, next_base_fee: int
) -> list[SimResult]:
    """All in one eth_simulateV1 block on top of `head`, each seeing what those before it did."""
    overrides = _overrides(head, next_timestamp_s, next_base_fee)
    # limits are counted against the block's before anything runs; what does not fit together may still go in turn
    overrides["gasLimit"] = hex(max(head.gas_limit, sum(call.gas for call in calls)))
    block = {"blockOverrides": overrides, "calls": [_message(call, "input") for call in calls]}
    blocks = await rpc.ask(
        _BLOCKS,
        "eth_simulateV1",
        {"blockStateCalls": [block], "validation": False},
        {"blockHash": hex_of(head.hash)},
    )
    if len(blocks) != 1 or len(blocks[0].calls) != len(calls):
        raise ChainError(
            f"{rpc.label} answered eth_simulateV1 for {len(calls)} calls with another number of results."
        )
    with reading(rpc.label, "eth_simulateV1"):
        return [_result_of(shape, call, head) for shape, call in zip(blocks[0].calls, calls, strict=True)]


async def called(rpc: Rpc, call: SimCall, head: Head, storage: Storage) -> Result:
    """What one call returns on `head`, or reverts with, as if `storage` held these words by contract and slot."""
    overrides = {
        hex_of(contract): {"stateDiff": {f"0x{slot:064x}": f"0x{word:064x}" for slot, word in words.items()}}
        for contract, words in storage.items()
    }
    where: tuple[Any, ...] = ({"blockHash": hex_of(head.hash)}, *([overrides] if overrides else []))
    try:
        output = await rpc.ask(TEXT, "eth_call", _message(call, "data"), *where)
    except RpcError as error:
        if not failed_execution(error):
            raise
        return Reverted(error.data)
    with reading(rpc.label, "eth_call"):
        return data(output)


async def left(rpc: Rpc, call: SimCall, look: SimCall, head: Head) -> tuple[Result, Result | None]:
    """What a call answers right after `head`, and what `look` answers after it; None of a node that shows only one."""
    try:
        results = await stacked(rpc, [call, look], head, head.timestamp_s + 1, head.base_fee_wei)
    except RpcError as error:
        if not lacks_simulation(error):
            raise
        return await called(rpc, call, head, {}), None
    done, seen = (each.output if each.status == 1 else Reverted(each.output) for each in results)
    return done, seen


async def one_by_one(
    rpc: Rpc, calls: Sequence[SimCall], head: Head, next_timestamp_s: int, next_base_fee: int
) -> list[SimResult]:
    """Each alone on `head`, by eth_call and eth_estimateGas.

    A failed one is said to use its whole limit, since nodes do not tell.
    """
    overrides = _overrides(head, next_timestamp_s, next_base_fee)
    return await asyncio.gather(*(_alone(rpc, call, head, overrides) for call in calls))


async def _alone(rpc: Rpc, call: SimCall, head: Head, overrides: dict[str, Any]) -> SimResult:
    where: tuple[Any, ...] = ({"blockHash": hex_of(head.hash)}, {}, overrides)
    message = _message(call, "data")
    try:
        output = await rpc.ask(TEXT, "eth_call", message, *where)
    except RpcError as error:
        if not failed_execution(error):
            raise
        return SimResult(0, error.data, call.gas)
    gas_used = await rpc.ask(TEXT, "eth_estimateGas", message, *where)
    with reading(rpc.label, "eth_call or eth_estimateGas"):
        return SimResult(1, data(output), Gas(quantity(gas_used)))


def _overrides(head: Head, next_timestamp_s: int, next_base_fee: int) -> dict[str, Any]:
    return {
        "number": hex(head.number + 1),
        "time": hex(next_timestamp_s),
        "baseFeePerGas": hex(next_base_fee),
    }


def _message(call: SimCall, payload: str) -> dict[str, str]:
    return {
        "from": hex_of(call.sender),
        "to": hex_of(call.to),
        payload: hex_of(call.data),
        "gas": hex(call.gas),
    }


def _result_of(shape: _CallShape, call: SimCall, head: Head) -> SimResult:
    output = data(shape.return_data)
    if shape.error is not None and not output:
        output = revert_data(shape.error.data)  # Geth leaves returnData empty and puts it here
    return SimResult(
        status=quantity(shape.status),
        output=output,
        gas_used=Gas(quantity(shape.gas_used)),
        logs=tuple(_log_of(log, head, place) for place, log in enumerate(shape.logs) if _is_of(log, call.to)),
    )


def _is_of(log: _LogShape, contract: Address) -> bool:
    return log.address.lower() == hex_of(contract)


def _log_of(shape: _LogShape, head: Head, place: int) -> Log:
    topics = tuple(hash_of(topic) for topic in shape.topics)
    number = BlockNumber(head.number + 1)
    return Log(address_of(shape.address), topics, data(shape.data), number, _NO_HASH, _NO_HASH, place)
