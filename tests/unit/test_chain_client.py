from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from keeper import abi
from keeper.chain.client import Chain, SimCall
from keeper.errors import ChainError, ConfigError, RpcError
from keeper.seams import Reads
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    BlockNumber,
    Call,
    Filters,
    Gas,
    Hash,
    Head,
    Result,
    Reverted,
    Wei,
)
from tests.scripted_node import Refuse, ScriptedNode

POOL = Address(b"\x11" * 20)
TOKEN = Address(b"\x22" * 20)
BORROW = Hash(b"\x33" * 32)
MOVED = Hash(b"\x44" * 32)
AT = Hash(b"\x55" * 32)
HEAD = Head(BlockNumber(100), AT, AT, 1_700_000_000, Wei(7), Gas(30_000_000), Gas(0))
MULTICALL3 = "0xca11bde05977b3631167028862be2a173976ca11"
AGGREGATE3 = abi.load("Multicall3").function("aggregate3")


def log(block: int, index: int, address: bytes = POOL, topic: bytes = BORROW, **other: Any) -> dict[str, Any]:
    """A log as nodes send it."""
    return {
        "address": "0x" + address.hex(),
        "topics": ["0x" + topic.hex()],
        "data": "0x",
        "blockNumber": hex(block),
        "blockHash": f"0x{block:064x}",
        "transactionHash": "0x" + "66" * 32,
        "logIndex": hex(index),
        "removed": False,
    } | other


def block_hash(number: int) -> Hash:
    """The hash `log` gives a block."""
    return Hash(number.to_bytes(32, "big"))


class LogNode(ScriptedNode):
    """Blocks 0 to `height`, each with its logs; at most `limit` blocks per eth_getLogs."""

    def __init__(self, folder: Path, logs: Sequence[dict[str, Any]], height: int, limit: int) -> None:
        folder.mkdir()
        self.logs = list(logs)
        self.height = height
        self.limit = limit
        super().__init__(
            folder,
            {
                "eth_chainId": lambda: "0x7a69",
                "eth_getCode": lambda *_: "0x00",
                "eth_blockNumber": lambda: hex(self.height),
                "eth_getLogs": self._get_logs,
            },
        )

    def _get_logs(self, query: dict[str, Any]) -> Any:
        if "blockHash" in query:
            if int(query["blockHash"], 16) > self.height:
                raise Refuse(-32000, "unknown block")
            return [entry for entry in self.logs if entry["blockHash"] == query["blockHash"]]
        first, last = int(query["fromBlock"], 16), int(query["toBlock"], 16)
        if last - first >= self.limit:
            raise Refuse(-32005, "query returned more than 10000 results")
        return [entry for entry in self.logs if first <= int(entry["blockNumber"], 16) <= last]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What a test opens, closed in reverse order."""
    async with AsyncExitStack() as opened:
        yield opened


async def chain_of(stack: AsyncExitStack, *nodes: ScriptedNode, quorum: int = 1) -> Chain:
    """A chain over running nodes."""
    for node in nodes:
        node.methods.setdefault("eth_chainId", lambda: "0x7a69")
        node.methods.setdefault("eth_getCode", lambda *_: "0x00")
        await stack.enter_async_context(node)
    chain = await Chain.open([node.ipc_path for node in nodes], 31337, quorum, timeout_s=1)
    stack.push_async_callback(chain.close)
    return chain


# --- logs ---

FILTERS = [Filters((POOL,), (BORROW,)), Filters((TOKEN,), (MOVED,))]


@pytest.mark.parametrize("limit", [1, 3, 50, 1000])
async def test_ranges_are_split_until_the_node_takes_them(
    stack: AsyncExitStack, tmp_path: Path, limit: int
) -> None:
    """Whatever range a node allows, every log of every block comes once and in chain order."""
    logs = [log(number, index) for number in range(101) for index in (1, 0)]
    chain = await chain_of(stack, LogNode(tmp_path / "a", logs[::-1], 100, limit))
    found = await chain.logs(FILTERS, 0, 100)
    assert [(entry.block_number, entry.index) for entry in found] == [
        (n, i) for n in range(101) for i in (0, 1)
    ]
    assert [entry.block_number for entry in await chain.logs(FILTERS, 7, 7)] == [7, 7]
    assert await chain.logs(FILTERS, 8, 7) == []


async def test_a_block_that_is_refused_is_an_error(stack: AsyncExitStack, tmp_path: Path) -> None:
    """When not even one block is answered, nothing is pretended."""
    chain = await chain_of(stack, LogNode(tmp_path / "a", [], 100, 0))
    with pytest.raises(RpcError, match="more than 10000"):
        await chain.logs(FILTERS, 0, 100)


async def test_only_what_matches_a_filter_is_returned(stack: AsyncExitStack, tmp_path: Path) -> None:
    """All filters go in one request, which over-selects; what matches none, and what was removed, is left out."""
    logs = [
        log(1, 0, POOL, BORROW),
        log(1, 1, POOL, MOVED),
        log(1, 2, TOKEN, BORROW),
        log(1, 3, TOKEN, MOVED),
        log(1, 4, POOL, BORROW, removed=True),
        log(1, 5, POOL, BORROW, topics=[]),
    ]
    node = LogNode(tmp_path / "a", logs, 5, 1000)
    chain = await chain_of(stack, node)
    assert [entry.index for entry in await chain.logs(FILTERS, 0, 5)] == [0, 3]
    assert [entry.index for entry in await chain.logs_at(FILTERS, block_hash(1))] == [0, 3]
    assert node.asked("eth_getLogs") == 2
    assert await chain.logs([Filters((), (BORROW,)), Filters((POOL,), ())], 0, 5) == []
    assert node.asked("eth_getLogs") == 2


async def test_a_lagging_node_does_not_pass_for_a_quiet_chain(stack: AsyncExitStack, tmp_path: Path) -> None:
    """Logs beyond a node's head are asked of the next; when nobody is there yet, it is an error."""
    behind = LogNode(tmp_path / "a", [], 99, 1000)
    ahead = LogNode(tmp_path / "b", [log(100, 0)], 100, 1000)
    chain = await chain_of(stack, behind, ahead)
    assert [entry.block_number for entry in await chain.logs(FILTERS, 90, 100)] == [100]
    assert [entry.block_number for entry in await chain.logs_at(FILTERS, block_hash(100))] == [100]
    with pytest.raises(ChainError, match="was asked for logs up to 101"):
        await chain.logs(FILTERS, 90, 101)
    with pytest.raises(RpcError, match="unknown block"):
        await chain.logs_at(FILTERS, block_hash(101))


async def test_logs_of_other_blocks_are_refused(stack: AsyncExitStack, tmp_path: Path) -> None:
    """An answer to another question than was asked is an error."""
    node = LogNode(tmp_path / "a", [], 100, 1000)
    node.methods["eth_getLogs"] = lambda _: [log(50, 0)]
    chain = await chain_of(stack, node)
    with pytest.raises(ChainError, match="other blocks"):
        await chain.logs(FILTERS, 0, 10)
    with pytest.raises(ChainError, match="another block"):
        await chain.logs_at(FILTERS, block_hash(10))


@pytest.mark.parametrize(
    "broken",
    [
        {"address": "0x12"},
        {"topics": "0x"},
        {"data": "00"},
        {"blockNumber": None},
        {"logIndex": "0x-1"},
        {"blockHash": "0x"},
    ],
)
async def test_a_malformed_log_is_a_chain_error(
    stack: AsyncExitStack, tmp_path: Path, broken: dict[str, Any]
) -> None:
    """No field of a log is guessed."""
    node = LogNode(tmp_path / "a", [log(1, 0) | broken], 100, 1000)
    node.methods["eth_getLogs"] = lambda _: node.logs
    chain = await chain_of(stack, node)
    with pytest.raises(ChainError, match=r"ipc:.*what is not an answer"):
        await chain.logs(FILTERS, 0, 10)


# --- reads ---


def asking(*calls: Call) -> Reads[Sequence[Result]]:
    """One round."""
    return (yield calls)


class CallNode(ScriptedNode):
    """Answers single calls from a table of calldata to return data; a whole aggregate3 runs on `gas` units.

    A call's gas is its first calldata byte. One that needs more than is left eats it all, as an invalid opcode
    does; the aggregate itself fails when less than one unit remains.
    """

    def __init__(self, folder: Path, gas: int) -> None:
        folder.mkdir()
        self.gas = gas
        super().__init__(folder, {"eth_call": self._eth_call})

    def _eth_call(self, message: dict[str, str], at: dict[str, str]) -> Any:
        assert at == {"blockHash": "0x" + AT.hex()}
        payload = bytes.fromhex(message["data"][2:])
        if message["to"] != MULTICALL3:
            return self._alone(payload)
        left = self.gas
        results: list[tuple[bool, bytes]] = []
        for _, _, call in AGGREGATE3.decode_input(payload)[0]:
            if left < 1:
                raise Refuse(-32000, "out of gas")
            if call[0] > left:
                left //= 64
                results.append((False, b""))
            elif call[0] == 0:
                results.append((False, call[1:]))
            else:
                left -= call[0]
                results.append((True, call))
        body = abi.Abi.from_json([{"type": "constructor", "inputs": list(_RETURNS)}]).constructor(results)
        return "0x" + body.hex()

    def _alone(self, call: bytes) -> Any:
        if call[0] > self.gas:
            raise Refuse(-32000, "out of gas")
        if call[0] == 0:
            raise Refuse(3, "execution reverted", "0x" + call[1:].hex())
        return "0x" + call.hex()


_RETURNS = (
    {
        "name": "",
        "type": "tuple[]",
        "components": [{"name": "", "type": "bool"}, {"name": "", "type": "bytes"}],
    },
)


async def test_a_starved_call_never_passes_for_a_revert(stack: AsyncExitStack, tmp_path: Path) -> None:
    """Calls that ran out of a shared eth_call's gas are answered as if each had been asked alone."""
    node = CallNode(tmp_path / "a", 100)
    chain = await chain_of(stack, node)
    calls = [
        Call(POOL, bytes([gas, number])) for number, gas in enumerate([60, 60, 1, 99, 0, 0, 101, 100, 30])
    ]
    calls[5] = Call(POOL, b"\x00")
    expected = [Reverted(call.data[1:]) if call.data[0] == 0 else call.data for call in calls]
    expected[6] = Reverted(b"")  # more than the node ever allows
    assert await chain.read(asking(*calls), AT) == expected


async def test_more_calls_than_one_eth_call_carries_keep_their_order(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    """Large rounds go out in chunks of 500, halved where a node cannot run them, and come back in order."""
    node = CallNode(tmp_path / "a", 300)
    chain = await chain_of(stack, node)
    calls = [Call(POOL, b"\x01" + number.to_bytes(2, "big")) for number in range(1300)]
    assert await chain.read(asking(*calls), AT) == [call.data for call in calls]
    assert node.asked("eth_call") == 3 + 2 * 2


async def test_an_aggregate_that_is_not_one_is_a_chain_error(stack: AsyncExitStack, tmp_path: Path) -> None:
    """Return data that cannot be Multicall3's, and a node that does not know the block, yield no results."""
    node = CallNode(tmp_path / "a", 100)
    chain = await chain_of(stack, node)
    for answer in ("0x", "0x" + "00" * 64, "0xzz", "12"):
        node.methods["eth_call"] = lambda *_, answer=answer: answer
        with pytest.raises(ChainError, match="what is not an answer"):
            await chain.read(asking(Call(POOL, b"\x01")), AT)

    def unknown(*_: Any) -> Any:
        raise Refuse(-32000, "header not found")

    node.methods["eth_call"] = unknown
    with pytest.raises(ChainError, match="header not found"):
        await chain.read(asking(Call(POOL, b"\x01")), AT)


# --- opening ---


async def test_a_chain_without_multicall3_is_refused(stack: AsyncExitStack, tmp_path: Path) -> None:
    """The error says what is missing and where."""
    node = ScriptedNode(tmp_path, {"eth_getCode": lambda *_: "0x"})
    with pytest.raises(ChainError, match="There is no Multicall3 at 0xca11bde0"):
        await chain_of(stack, node)


@pytest.mark.parametrize("quorum", [0, 2, -1])
async def test_a_quorum_that_cannot_be_met_is_a_config_error(
    stack: AsyncExitStack, tmp_path: Path, quorum: int
) -> None:
    """One provider cannot be two."""
    with pytest.raises(ConfigError, match=r"chain\.quorum"):
        await chain_of(stack, ScriptedNode(tmp_path, {}), quorum=quorum)


# --- transactions ---


async def test_a_known_transaction_is_sent_already(stack: AsyncExitStack, tmp_path: Path) -> None:
    """Broadcasting again what a node has is its hash; any other refusal is an RpcError."""
    raw = b"\x02signed"
    node = ScriptedNode(tmp_path, {})
    chain = await chain_of(stack, node)
    for message in ("already known", "transaction already imported", "known transaction: 0x12"):

        def known(_: str, message: str = message) -> Any:
            raise Refuse(-32000, message)

        node.methods["eth_sendRawTransaction"] = known
        assert await chain.send_raw(raw) == abi.keccak(raw)

    def refused(_: str) -> Any:
        raise Refuse(-32000, "nonce too low")

    node.methods["eth_sendRawTransaction"] = refused
    with pytest.raises(RpcError, match="nonce too low"):
        await chain.send_raw(raw)
    node.methods["eth_sendRawTransaction"] = lambda _: "0x12"
    with pytest.raises(ChainError, match="not an answer"):
        await chain.send_raw(raw)


RECEIPT = {
    "transactionHash": "0x" + "66" * 32,
    "status": "0x1",
    "blockNumber": "0x64",
    "blockHash": "0x" + AT.hex(),
    "transactionIndex": "0x4",
    "gasUsed": "0x5208",
    "effectiveGasPrice": "0x77359400",
    "logs": [log(100, 3)],
    "l1Fee": "0x9",
    "gasUsedForL1": "0x7",
}


async def test_receipts_are_exact_or_errors(stack: AsyncExitStack, tmp_path: Path) -> None:
    """A receipt carries what was paid, rollup fee included; none is None; a partial one is an error."""
    node = ScriptedNode(tmp_path, {"eth_getTransactionReceipt": lambda _: RECEIPT})
    chain = await chain_of(stack, node)
    receipt = await chain.receipt(Hash(b"\x66" * 32))
    assert receipt is not None
    assert (receipt.status, receipt.block_number, receipt.index, receipt.gas_used) == (1, 100, 4, 21_000)
    assert (receipt.effective_gas_price_wei, receipt.l1_fee_wei, receipt.l1_gas) == (2_000_000_000, 9, 7)
    assert [entry.index for entry in receipt.logs] == [3]
    plain = {name: value for name, value in RECEIPT.items() if name not in ("l1Fee", "gasUsedForL1")}
    node.methods["eth_getTransactionReceipt"] = lambda _: plain
    receipt = await chain.receipt(Hash(b"\x66" * 32))
    assert receipt is not None
    assert (receipt.l1_fee_wei, receipt.l1_gas) == (0, 0)
    node.methods["eth_getTransactionReceipt"] = lambda _: None
    assert await chain.receipt(Hash(b"\x66" * 32)) is None
    node.methods["eth_getTransactionReceipt"] = lambda _: {k: v for k, v in RECEIPT.items() if k != "status"}
    with pytest.raises(ChainError, match="status"):
        await chain.receipt(Hash(b"\x66" * 32))
    node.methods["eth_getTransactionReceipt"] = lambda _: RECEIPT | {"gasUsed": "0x8" + "0" * 15}
    with pytest.raises(ChainError, match="more than there can be"):
        await chain.receipt(Hash(b"\x66" * 32))


async def test_the_tip_is_what_recent_blocks_paid(stack: AsyncExitStack, tmp_path: Path) -> None:
    """Medians over blocks with transactions, rising; where there were none, the node's own suggestion."""
    paid = [["0x5", "0x6", "0x20"], ["0x0"] * 3, ["0x9"] * 3, ["0x7", "0x8", "0x9"]]
    fees = {"gasUsedRatio": [0.5, 0.0, 0.9, 0.1], "reward": paid}
    node = ScriptedNode(
        tmp_path, {"eth_feeHistory": lambda *_: fees, "eth_maxPriorityFeePerGas": lambda: "0x3b9aca00"}
    )
    chain = await chain_of(stack, node)
    assert await chain.suggested_tips() == (7, 8, 9)
    assert node.requests[-1][1][2] == [50, 75, 90]
    fees["gasUsedRatio"] = [0.0] * 4
    assert await chain.suggested_tips() == (10**9,)
    fees |= {"gasUsedRatio": [0.5, 0.5], "reward": [["0x5", "0x6", "0x7"], ["0x5"]]}
    with pytest.raises(ChainError, match="what is not an answer"):
        await chain.suggested_tips()


async def test_without_eth_simulate_transactions_are_tried_one_by_one(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    """A node that lacks the method is asked once; then eth_call and eth_estimateGas answer with the overrides."""
    seen: list[Any] = []

    def call(message: dict[str, str], at: Any, state: Any, overrides: Any) -> Any:
        seen.append((at, state, overrides))
        if message["data"] == "0x01":
            raise Refuse(3, "execution reverted", "0x1234")
        return "0xabcd"

    node = ScriptedNode(tmp_path, {"eth_call": call, "eth_estimateGas": lambda *_: "0x5208"})
    chain = await chain_of(stack, node)
    calls = [SimCall(ZERO_ADDRESS, POOL, data, Gas(1_000_000)) for data in (b"\x00", b"\x01")]
    for _ in range(2):
        good, bad = await chain.simulate(calls, HEAD, 1_700_000_012, 9)
        assert (good.status, good.output, good.gas_used) == (1, b"\xab\xcd", 21_000)
        assert (bad.status, bad.output) == (0, b"\x12\x34")
    assert node.asked("eth_simulateV1") == 1
    assert seen[0] == (
        {"blockHash": "0x" + AT.hex()},
        {},
        {"number": "0x65", "time": hex(1_700_000_012), "baseFeePerGas": "0x9"},
    )
    assert await chain.simulate([], HEAD, 1_700_000_012, 9) == []


async def test_simulated_reverts_are_found_where_geth_puts_them(
    stack: AsyncExitStack, tmp_path: Path
) -> None:
    """Revert data in the call's error counts as its output; a block with other calls than asked is an error."""
    failed = {
        "status": "0x0",
        "gasUsed": "0x1",
        "returnData": "0x",
        "logs": [],
        "error": {"code": 3, "message": "execution reverted", "data": "0x1234"},
    }
    node = ScriptedNode(tmp_path, {"eth_simulateV1": lambda *_: [{"calls": [failed]}]})
    chain = await chain_of(stack, node)
    call = SimCall(ZERO_ADDRESS, POOL, b"", Gas(1))
    (result,) = await chain.simulate([call], HEAD, 1_700_000_012, 9)
    assert (result.status, result.output) == (0, b"\x12\x34")
    with pytest.raises(ChainError, match="another number of results"):
        await chain.simulate([call, call], HEAD, 1_700_000_012, 9)


async def test_blocks_that_nobody_has_are_errors(stack: AsyncExitStack, tmp_path: Path) -> None:
    """A block is found by number or hash or is a ChainError naming it."""
    node = ScriptedNode(
        tmp_path, {"eth_getBlockByNumber": lambda *_: None, "eth_getBlockByHash": lambda *_: None}
    )
    chain = await chain_of(stack, node)
    with pytest.raises(ChainError, match="does not know block 0x7"):
        await chain.block(BlockNumber(7))
    with pytest.raises(ChainError, match="does not know block 0x5555"):
        await chain.block(AT)
    with pytest.raises(ChainError, match="no latest block"):
        await chain.head()
