"""What a node says happened, and what it says would happen: everything the judge believes comes through here.

One head is pinned at the start; reads, logs and simulations are all as of it, whatever the chain does meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Self

from keeper.abi import Function, checksum
from keeper.chain.rpc import Request, Rpc
from keeper.chain.transports import connect
from keeper.chain.wire import failed_execution
from keeper.errors import AdapterError, ChainError, RpcError
from keeper.types import Address, BlockNumber, Call, Gas, Hash, Log, hex_of

_TIMEOUT_S: Final = 120.0
_TOGETHER: Final = 32  # requests in one batch
_IN_FLIGHT: Final = 2  # batches
_STEP_GAS: Final = 16_000_000  # as much as a transaction may have
_BLOCK_GAS: Final = 100 * _STEP_GAS


@dataclass(frozen=True, slots=True)
class Header:
    """The pinned head and what gas costs in the block after it."""

    number: int
    hash: Hash
    timestamp_s: int
    next_base_fee_wei: int
    tip_wei: int

    @property
    def gas_price_wei(self) -> int:
        """Base fee of the next block plus the tip the node suggests."""
        return self.next_base_fee_wei + self.tip_wei


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction of a simulated block; any sender may send."""

    sender: Address
    to: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class Done:
    """What a step did: `output` is return or revert data, `gas_used` with the transaction's own 21 000."""

    ok: bool
    output: bytes
    gas_used: Gas
    logs: tuple[Log, ...]


@dataclass(frozen=True, slots=True)
class Mined:
    """A receipt; `cost_wei` is everything its sender paid for gas."""

    transaction_hash: Hash
    status: int
    block_number: int
    block_hash: Hash
    gas_used: int
    cost_wei: int
    logs: tuple[Log, ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """A transaction in a block; `index` is its place there."""

    hash: Hash
    sender: Address
    to: Address | None
    nonce: int
    block_number: int
    index: int
    value_wei: int
    data: bytes


class Evidence:
    """One node at one pinned head. Every method raises `ChainError` when the node fails."""

    def __init__(self, rpc: Rpc, head: Header, stand_ins: Mapping[Address, bytes]) -> None:
        self.rpc: Final = rpc
        self.head: Final = head
        self._stand_ins: Final = {hex_of(who): {"code": hex_of(code)} for who, code in stand_ins.items()}
        self._turn = asyncio.Semaphore(_IN_FLIGHT)

    @classmethod
    async def open(
        cls, url: str, number: int | None = None, stand_ins: Mapping[Address, bytes] = MappingProxyType({})
    ) -> Self:
        """Connect and pin block `number`, or the newest. Close when done.

        `stand_ins` is code that addresses have in every simulation.
        """
        rpc = await connect(url, _TIMEOUT_S)
        try:
            return cls(rpc, await _header(rpc, number), stand_ins)
        except BaseException:
            await rpc.close()
            raise

    async def close(self) -> None:
        """Drop the connection."""
        await self.rpc.close()

    async def calls(
        self, calls: Sequence[Call], at: int | None = None, code: Mapping[Address, bytes] | None = None
    ) -> list[bytes | None]:
        """Return data of many calls at the head or at block `at`; None where the code refused.

        `code` is put at addresses for these calls.
        """
        where: list[Any] = [hex(self.head.number if at is None else at)]
        if code:
            where.append({hex_of(address): {"code": hex_of(body)} for address, body in code.items()})
        requests: list[Request] = [
            ("eth_call", ({"to": hex_of(call.to), "data": hex_of(call.data)}, *where)) for call in calls
        ]
        answers = await self._ask(requests)
        return [None if _refused(answer) else _bytes(_accepted(answer)) for answer in answers]

    async def built(self, creation_code: bytes) -> bytes:
        """The runtime code that creation code leaves, without creating anything."""
        return _bytes(
            await self.rpc.request("eth_call", {"data": hex_of(creation_code)}, hex(self.head.number))
        )

    async def read(self, function: Function, to: Address, *args: Any, at: int | None = None) -> Any:
        """One call that must succeed, decoded; a single output comes bare."""
        return (await self.read_all(function, [(to, *args)], at))[0]

    async def read_all(
        self, function: Function, asked: Sequence[tuple[Any, ...]], at: int | None = None
    ) -> list[Any]:
        """One function of many contracts, (address, *arguments) each; all must succeed."""
        answers = await self.calls([function.call(to, *args) for to, *args in asked], at)
        values = []
        for (to, *_), answer in zip(asked, answers, strict=True):
            if answer is None:
                raise AdapterError(
                    f"{function.signature} of {checksum(to)} reverted: the address is not what it should be."
                )
            outputs = function.decode(answer)
            values.append(outputs[0] if len(outputs) == 1 else outputs)
        return values

    async def logs(
        self, topics: Sequence[Hash | None], address: Address | None = None, first: int = 0
    ) -> list[Log]:
        """Logs up to the head that match topic by topic (None: any), in the chain's order."""
        wanted: dict[str, Any] = {"topics": [None if topic is None else hex_of(topic) for topic in topics]}
        if address is not None:
            wanted["address"] = hex_of(address)
        return await self._logs(wanted, first, self.head.number)

    async def receipts(self, hashes: Sequence[Hash]) -> dict[Hash, Mined]:
        """Receipts of those that were mined up to the head."""
        answers = await self._ask([("eth_getTransactionReceipt", (hex_of(one),)) for one in hashes])
        mined = [_mined(answer) for answer in map(_accepted, answers) if answer is not None]
        return {one.transaction_hash: one for one in mined if one.block_number <= self.head.number}

    async def transactions(self, senders: Iterable[Address], first: int) -> list[Sent]:
        """Every transaction of these senders from block `first` to the head."""
        wanted = {hex_of(sender) for sender in senders}
        blocks = range(first, self.head.number + 1)
        found: list[Sent] = []
        for answer in await self._ask([("eth_getBlockByNumber", (hex(number), True)) for number in blocks]):
            block = _accepted(answer)
            if block is None:
                raise ChainError(f"{self.rpc.label} does not know a block it has passed; ask a full node.")
            found += [_sent(one) for one in block["transactions"] if one["from"] in wanted]
        return found

    async def named(self, hashes: Sequence[Hash]) -> dict[Hash, Sent]:
        """Those of these transactions that were mined up to the head."""
        answers = await self._ask([("eth_getTransactionByHash", (hex_of(one),)) for one in hashes])
        found = [_accepted(answer) for answer in answers]
        mined = [_sent(one) for one in found if one is not None and one["blockNumber"] is not None]
        return {one.hash: one for one in mined if one.block_number <= self.head.number}

    async def block_hashes(self, numbers: Sequence[int]) -> dict[int, Hash]:
        """The hashes of these blocks of the chain as it is now."""
        answers = await self._ask([("eth_getBlockByNumber", (hex(number), False)) for number in numbers])
        blocks = zip(numbers, map(_accepted, answers), strict=True)
        return {number: Hash(_bytes(block["hash"])) for number, block in blocks if block is not None}

    async def revert_of(self, transaction: Hash) -> bytes:
        """What a mined transaction that failed reverted with, as the node's own tracer saw it."""
        options = {"tracer": "callTracer", "tracerConfig": {"onlyTopCall": True}}
        frame = await self.rpc.request("debug_traceTransaction", hex_of(transaction), options)
        return _bytes(frame.get("output") or "0x")

    async def nonces(self, senders: Sequence[Address]) -> dict[Address, int]:
        """How many transactions each sender had mined at the head."""
        block = hex(self.head.number)
        answers = await self._ask(
            [("eth_getTransactionCount", (hex_of(sender), block)) for sender in senders]
        )
        return {sender: int(_accepted(answer), 16) for sender, answer in zip(senders, answers, strict=True)}

    async def simulate(self, runs: Sequence[Sequence[Step]]) -> list[list[Done]]:
        """Each run alone, as the transactions of the block after the head; no run sees another."""
        where = {
            "number": hex(self.head.number + 1),
            "time": hex(self.head.timestamp_s + 1),
            "gasLimit": hex(_BLOCK_GAS),
        }
        requests: list[Request] = []
        for run in runs:
            block = {
                "blockOverrides": where,
                "stateOverrides": self._stand_ins,
                "calls": [_message(step) for step in run],
            }
            order = {"blockStateCalls": [block], "validation": False}
            requests.append(("eth_simulateV1", (order, hex(self.head.number))))
        answers = [_accepted(answer) for answer in await self._ask(requests)]
        return [[_done(call) for call in answer[0]["calls"]] for answer in answers]

    async def _ask(self, requests: Sequence[Request]) -> list[Any]:
        async def one(chunk: Sequence[Request]) -> list[Any]:
            async with self._turn:
                return await self.rpc.batch(chunk)

        chunks = [requests[first : first + _TOGETHER] for first in range(0, len(requests), _TOGETHER)]
        return [answer for answers in await asyncio.gather(*map(one, chunks)) for answer in answers]

    async def _logs(self, wanted: Mapping[str, Any], first: int, last: int) -> list[Log]:
        try:
            found = await self.rpc.request(
                "eth_getLogs", {**wanted, "fromBlock": hex(first), "toBlock": hex(last)}
            )
        except RpcError:
            if first == last:
                raise
            middle = (first + last) // 2
            return [*await self._logs(wanted, first, middle), *await self._logs(wanted, middle + 1, last)]
        return sorted((_log(log) for log in found), key=lambda log: (log.block_number, log.index))


async def _header(rpc: Rpc, number: int | None) -> Header:
    tag = "latest" if number is None else hex(number)
    block = await rpc.request("eth_getBlockByNumber", tag, False)
    if block is None:
        raise ChainError(f"{rpc.label} has no block {tag}.")
    fees = await rpc.request("eth_feeHistory", "0x1", block["number"], [])
    return Header(
        number=int(block["number"], 16),
        hash=Hash(_bytes(block["hash"])),
        timestamp_s=int(block["timestamp"], 16),
        next_base_fee_wei=int(fees["baseFeePerGas"][-1], 16),
        tip_wei=int(await rpc.request("eth_maxPriorityFeePerGas"), 16),
    )


def _refused(answer: Any) -> bool:
    return isinstance(answer, RpcError) and failed_execution(answer)


def _accepted(answer: Any) -> Any:
    if isinstance(answer, RpcError):
        raise answer
    return answer


def _message(step: Step) -> dict[str, str]:
    return {
        "from": hex_of(step.sender),
        "to": hex_of(step.to),
        "input": hex_of(step.data),
        "gas": hex(_STEP_GAS),
    }


def _done(call: Mapping[str, Any]) -> Done:
    output = _bytes(call["returnData"])
    if not output and call.get("error"):
        output = _bytes(call["error"].get("data") or "0x")
    return Done(
        call["status"] == "0x1",
        output,
        Gas(int(call["gasUsed"], 16)),
        tuple(_log(log) for log in call["logs"]),
    )


def _mined(receipt: Mapping[str, Any]) -> Mined:
    gas_used = int(receipt["gasUsed"], 16)
    l1_fee_wei = int(receipt.get("l1Fee") or "0x0", 16)
    return Mined(
        transaction_hash=Hash(_bytes(receipt["transactionHash"])),
        status=int(receipt["status"], 16),
        block_number=int(receipt["blockNumber"], 16),
        block_hash=Hash(_bytes(receipt["blockHash"])),
        gas_used=gas_used,
        cost_wei=gas_used * int(receipt["effectiveGasPrice"], 16) + l1_fee_wei,
        logs=tuple(_log(log) for log in receipt["logs"]),
    )


def _sent(transaction: Mapping[str, Any]) -> Sent:
    to = transaction.get("to")
    return Sent(
        hash=Hash(_bytes(transaction["hash"])),
        sender=Address(_bytes(transaction["from"])),
        to=Address(_bytes(to)) if to else None,
        nonce=int(transaction["nonce"], 16),
        block_number=int(transaction["blockNumber"], 16),
        index=int(transaction["transactionIndex"], 16),
        value_wei=int(transaction["value"], 16),
        data=_bytes(transaction["input"]),
    )


def _log(log: Mapping[str, Any]) -> Log:
    return Log(
        address=Address(_bytes(log["address"])),
        topics=tuple(Hash(_bytes(topic)) for topic in log["topics"]),
        data=_bytes(log["data"]),
        block_number=BlockNumber(int(log["blockNumber"], 16)),
        block_hash=Hash(_bytes(log["blockHash"])),
        transaction_hash=Hash(_bytes(log["transactionHash"])),
        index=int(log["logIndex"], 16),
    )


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])
