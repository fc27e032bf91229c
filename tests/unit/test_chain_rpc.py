from __future__ import annotations

import asyncio
import sys
from collections import UserDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from keeper.chain.blocks import HeaderShape, head_of
from keeper.chain.rpc import label_of
from keeper.chain.transports import connect
from keeper.chain.wire import count, quantity, revert_data
from keeper.errors import ChainError, RpcError
from tests.scripted_node import HangUp, Literal, Refuse, ScriptedNode, Silence

REVERT = "0x08c379a0" + "00" * 31 + "20"
BIG = 2**256 - 1


def raising(error: Exception) -> Any:
    """A method that answers with an error."""

    def method(*_: Any) -> Any:
        raise error

    return method


@pytest.fixture(params=["http", "ws", "ipc"])
def transport(request: pytest.FixtureRequest) -> str:
    """Each way to a node."""
    return str(request.param)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ScriptedNode]:
    """A node with methods that answer, refuse, stay silent and hang up."""
    methods = {
        "echo": lambda *params: list(params),
        "eth_blockNumber": lambda: "0x10",
        "nothing": lambda: None,
        "silent": Silence,
        "hang_up": HangUp,
        "refused": raising(Refuse(-32000, "nonce too low")),
        "reverted": raising(Refuse(3, "execution reverted", REVERT)),
    }
    async with ScriptedNode(tmp_path, methods) as started:
        yield started


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("https://user:pass@node.example:8443/v3/SECRETKEY?token=SECRET", "https://node.example:8443"),
        ("wss://node.example/ws/SECRETKEY", "wss://node.example"),
        ("http://[::1]:8545/SECRETKEY", "http://[::1]:8545"),
        ("http://node.example:notaport/SECRETKEY", "http://node.example"),
        ("/run/node.ipc", "ipc:/run/node.ipc"),
    ],
)
def test_a_label_names_the_provider_without_what_may_be_a_key(url: str, label: str) -> None:
    """Credentials, path and query never reach a label."""
    assert label_of(url) == label


async def test_results_come_back_exactly(node: ScriptedNode, transport: str) -> None:
    """Integers beyond 64 bits survive, null is a result, and answers find their request in any order."""
    rpc = await connect(node.at(transport))
    assert await rpc.request("echo", BIG, "x", {"a": [True, None]}) == [BIG, "x", {"a": [True, None]}]
    assert await rpc.request("nothing") is None
    assert await asyncio.gather(*(rpc.request("echo", i) for i in range(50))) == [[i] for i in range(50)]
    await rpc.close()


async def test_a_large_answer_arrives_whole(node: ScriptedNode, transport: str) -> None:
    """An answer of several megabytes, which no socket delivers in one piece, is one answer."""
    node.methods["large"] = lambda: "0x" + "ab" * 3_000_000
    rpc = await connect(node.at(transport))
    large, small = await asyncio.gather(rpc.request("large"), rpc.request("eth_blockNumber"))
    assert len(large) == 6_000_002
    assert small == "0x10"
    await rpc.close()


async def test_a_batch_keeps_order_and_places_errors(node: ScriptedNode, transport: str) -> None:
    """Every request of a batch has its answer or its `RpcError` in its own place."""
    rpc = await connect(node.at(transport))
    answers = await rpc.batch([("echo", [i]) for i in range(1200)] + [("reverted", []), ("echo", ["end"])])
    assert answers[:1200] == [[i] for i in range(1200)]
    assert isinstance(answers[1200], RpcError)
    assert answers[1200].data == bytes.fromhex(REVERT[2:])
    assert answers[1201] == ["end"]
    assert await rpc.batch([]) == []
    await rpc.close()


@pytest.mark.parametrize(
    "data",
    [
        REVERT,
        f"Reverted {REVERT}",
        {"message": "reverted", "txHash": "0x" + "11" * 32, "data": REVERT},
        {"originalError": {"code": 3, "data": REVERT}},
        {"0x" + "22" * 32: {"error": "revert", "return": REVERT}},
        {"code": 3, "data": {"data": REVERT}},
    ],
)
async def test_revert_data_is_found_wherever_nodes_put_it(
    node: ScriptedNode, transport: str, data: Any
) -> None:
    """A refusal is an `RpcError` with the node's code, its message and the revert data."""
    node.methods["reverted"] = raising(Refuse(3, "execution reverted", data))
    rpc = await connect(node.at(transport))
    with pytest.raises(RpcError, match="reverted failed: execution reverted") as caught:
        await rpc.request("reverted")
    assert (caught.value.code, caught.value.data) == (3, bytes.fromhex(REVERT[2:]))
    await rpc.close()


@pytest.mark.parametrize(
    "data", [None, "", "0x", "out of luck", "0xabc", 7, ["0x1234"], {"txHash": "0x1234"}]
)
async def test_a_refusal_without_revert_data_has_none(node: ScriptedNode, data: Any) -> None:
    """Nothing is taken for revert data that is not."""
    node.methods["refused"] = raising(Refuse(-32000, "nonce too low", data))
    rpc = await connect(node.ipc_path)
    with pytest.raises(RpcError, match="nonce too low") as caught:
        await rpc.request("refused")
    assert caught.value.data == b""
    await rpc.close()


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":{id},"result":"0x1',  # truncated
        '{"jsonrpc":"2.0","id":{id}}',  # neither result nor error
        '{"jsonrpc":"2.0","id":{id},"error":"no"}',  # an error that is not an object
        '{"jsonrpc":"2.0","id":"x","result":"0x1"}',  # not our id's type
        '["0x1"]',
        "null",
        "<html>rate limited</html>",
    ],
)
async def test_a_malformed_answer_is_a_chain_error(node: ScriptedNode, transport: str, text: str) -> None:
    """Whatever is not a JSON-RPC answer is a `ChainError` that names the provider, at once."""
    node.methods["broken"] = lambda: Literal(text)
    rpc = await connect(node.at(transport) + ("" if transport == "ipc" else "/v3/SECRETKEY"))
    with pytest.raises(ChainError, match=r"127\.0\.0\.1|ipc:") as caught:
        await rpc.request("broken")
    assert not isinstance(caught.value, RpcError)
    assert "SECRETKEY" not in str(caught.value)
    await rpc.close()


def test_hostile_nesting_is_looked_through_once() -> None:
    """However deep an error's `data` is nested, nothing in it is looked at twice, and no depth is too much."""
    looks = 0

    class Level(UserDict[str, Any]):
        """One level, which counts who looks for what it holds."""

        def __getitem__(self, key: str) -> Any:
            nonlocal looks
            looks += 1
            return super().__getitem__(key)

    found: Any = "nothing"
    for _ in range(10):
        found = Level(data=found)
    assert revert_data(found) == b"" and looks <= 30
    deep: Any = REVERT
    for _ in range(5_000):
        deep = {"data": deep}
    assert revert_data(deep) == bytes.fromhex(REVERT[2:])


def test_no_number_is_larger_than_the_chain_or_the_record_can_hold() -> None:
    """A word has 256 bits, and what blocks are counted and timed by fits into the record's columns."""
    assert quantity("0x" + "f" * 64) == BIG
    with pytest.raises(ValueError, match="not a quantity"):
        quantity("0x1" + "0" * 64)
    assert count("0x7" + "f" * 15) == 2**63 - 1
    shape = HeaderShape("0x10", "0x" + "01" * 32, "0x" + "02" * 32, "0x20", "0x1", "0x1")
    assert head_of(shape, 0).number == 16
    for name in ("number", "timestamp"):
        with pytest.raises(ValueError, match=f"0x8{'0' * 15}"):
            head_of(replace(shape, **{name: "0x8" + "0" * 15}), 0)


async def test_hostile_nesting_is_a_chain_error(node: ScriptedNode, transport: str) -> None:
    """An answer nested deeper than the interpreter's limit is refused like any other nonsense."""
    node.methods["nested"] = lambda: Literal(
        '{"jsonrpc":"2.0","id":{id},"error":{"code":3,"data":' + "[" * 5000 + "]" * 5000 + "}}"
    )
    rpc = await connect(node.at(transport))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # the default, which other tests' libraries may have raised
    try:
        with pytest.raises(ChainError, match="recursion"):
            await rpc.request("nested")
    finally:
        sys.setrecursionlimit(limit)
    await rpc.close()


async def test_an_answer_of_the_wrong_type_is_a_chain_error(node: ScriptedNode, transport: str) -> None:
    """A result in another shape than its reader expects is a `ChainError`, and the connection lives on."""
    node.methods["eth_subscribe"] = lambda *_: 7
    rpc = await connect(node.at(transport))
    with pytest.raises(ChainError, match=r"has no subscriptions|not an answer"):
        await rpc.subscribe("newHeads")
    assert await rpc.request("eth_blockNumber") == "0x10"
    await rpc.close()


async def test_silence_ends_in_a_timeout(node: ScriptedNode, transport: str) -> None:
    """A node that does not answer is a `ChainError` after the timeout; others are served meanwhile and after."""
    rpc = await connect(node.at(transport), timeout_s=0.2)
    silent = asyncio.ensure_future(rpc.request("silent"))
    assert await rpc.request("eth_blockNumber") == "0x10"
    with pytest.raises(ChainError, match=r"did not answer silent in 0.2 s"):
        await silent
    assert await rpc.request("eth_blockNumber") == "0x10"
    await rpc.close()


async def test_a_lost_connection_fails_everyone_who_waits(node: ScriptedNode, transport: str) -> None:
    """When the node hangs up, no request waits for its timeout."""
    rpc = await connect(node.at(transport), timeout_s=30)
    waiting = [asyncio.ensure_future(rpc.request("hang_up" if i == 2 else "silent")) for i in range(3)]
    done, _ = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    assert {type(task.exception()) for task in done} == {ChainError}
    if transport != "http":
        assert not rpc.alive
        await asyncio.wait(waiting, timeout=5)
        assert all(task.done() for task in waiting)
        with pytest.raises(ChainError, match="closed the connection"):
            await rpc.request("eth_blockNumber")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await rpc.close()


async def test_a_cancelled_request_leaves_nothing_behind(node: ScriptedNode, transport: str) -> None:
    """Cancelling whoever waits neither disturbs others nor trips over the late answer."""
    rpc = await connect(node.at(transport))
    task = asyncio.ensure_future(rpc.request("echo", 1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await rpc.request("echo", 2) == [2]
    await rpc.close()


async def test_a_closed_connection_says_so(node: ScriptedNode, transport: str) -> None:
    """After `close` every request is a `ChainError`; closing twice is harmless."""
    rpc = await connect(node.at(transport))
    await rpc.close()
    await rpc.close()
    with pytest.raises(ChainError, match="is closed"):
        await rpc.request("eth_blockNumber")
    assert not rpc.alive


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/v3/SECRETKEY",
        "ws://127.0.0.1:1/v3/SECRETKEY",
        "/nowhere/node.ipc",
        "http:///SECRETKEY",
    ],
)
async def test_an_unreachable_node_is_named_without_its_key(url: str) -> None:
    """Neither the message nor what it is chained to shows more of the URL than its label."""
    with pytest.raises(ChainError) as caught:
        rpc = await connect(url)
        try:
            await rpc.request("eth_blockNumber")
        finally:
            await rpc.close()
    assert label_of(url) in str(caught.value)
    assert "SECRETKEY" not in str(caught.value)
    assert caught.value.__suppress_context__


async def test_http_errors_say_their_status(node: ScriptedNode) -> None:
    """A status without JSON-RPC is a `ChainError`; JSON-RPC inside an error status is read as such."""
    rpc = await connect(node.url)
    node.methods["broken"] = lambda: Literal("out of order", 502)
    with pytest.raises(ChainError, match="HTTP status 502"):
        await rpc.request("broken")
    node.methods["broken"] = lambda: Literal(
        '{"jsonrpc":"2.0","id":{id},"error":{"code":-32005,"message":"limit"}}', 400
    )
    with pytest.raises(RpcError, match="limit") as caught:
        await rpc.request("broken")
    assert caught.value.code == -32005
    await rpc.close()


async def test_an_incomplete_batch_is_a_chain_error(node: ScriptedNode) -> None:
    """A batch answered in part, or refused as a whole, gives no results."""
    rpc = await connect(node.url)
    node.methods["part"] = lambda: Literal('[{"jsonrpc":"2.0","id":{id},"result":1}]')
    with pytest.raises(ChainError, match="1 of 2 requests"):
        await rpc.batch([("part", []), ("echo", [])])
    node.methods["part"] = lambda: Literal(
        '{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"batch"}}'
    )
    with pytest.raises(RpcError, match="batch"):
        await rpc.batch([("part", []), ("echo", [])])
    await rpc.close()


@pytest.mark.parametrize("socket", ["ws", "ipc"])
async def test_subscriptions_deliver_in_order_until_the_connection_drops(
    node: ScriptedNode, socket: str
) -> None:
    """Notifications arrive in order; after the connection is lost the rest is read, then `ChainError` raised."""
    node.methods["eth_subscribe"] = lambda *_: "0xs"
    rpc = await connect(node.at(socket))
    subscription = await rpc.subscribe("newHeads")
    for number in range(3):
        await node.notify("0xs", {"number": number})
    await node.notify("0xother", {"number": 99})
    assert await rpc.request("eth_blockNumber") == "0x10"
    assert [await anext(subscription), await anext(subscription)] == [{"number": 0}, {"number": 1}]
    await node.hang_up()
    assert await anext(subscription) == {"number": 2}
    with pytest.raises(ChainError, match="closed the connection"):
        await anext(subscription)
    await rpc.close()


async def test_the_first_notification_may_share_a_packet_with_the_subscription(node: ScriptedNode) -> None:
    """A notification read together with the answer to eth_subscribe is not lost."""
    node.methods["eth_subscribe"] = lambda *_: Literal(
        '{"jsonrpc":"2.0","id":{id},"result":"0xs"}\n'
        '{"jsonrpc":"2.0","method":"eth_subscription","params":{"subscription":"0xs","result":1}}'
    )
    rpc = await connect(node.ipc_path)
    assert await anext(await rpc.subscribe("newHeads")) == 1
    await rpc.close()


async def test_newest_skips_what_a_slow_reader_missed(node: ScriptedNode) -> None:
    """`newest` returns the last notification and forgets older ones."""
    node.methods["eth_subscribe"] = lambda *_: "0xs"
    rpc = await connect(node.ws_url)
    subscription = await rpc.subscribe("newHeads")
    for number in range(5):
        await node.notify("0xs", number)
    await rpc.request("eth_blockNumber")
    assert bytes((await subscription.newest())[1]) == b"4"
    await node.notify("0xs", 5)
    assert bytes((await subscription.newest())[1]) == b"5"
    await rpc.close()


async def test_a_subscriber_that_lags_too_far_is_cut_off(node: ScriptedNode, monkeypatch: Any) -> None:
    """Memory for a reader that never comes is bounded, and what was dropped is an error, not a gap."""
    monkeypatch.setattr("keeper.chain.subscription._BACKLOG", 3)
    node.methods["eth_subscribe"] = lambda *_: "0xs"
    rpc = await connect(node.ipc_path)
    subscription = await rpc.subscribe("logs")
    for number in range(5):
        await node.notify("0xs", number)
    await rpc.request("eth_blockNumber")
    assert [await anext(subscription) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ChainError, match="3 notifications behind"):
        await anext(subscription)
    await rpc.close()


async def test_unsubscribing_ends_the_flow(node: ScriptedNode) -> None:
    """After `unsubscribe` the node is told and nothing more is queued."""
    node.methods |= {"eth_subscribe": lambda *_: "0xs", "eth_unsubscribe": lambda _: True}
    rpc = await connect(node.ws_url)
    subscription = await rpc.subscribe("newHeads")
    await rpc.unsubscribe(subscription)
    await rpc.unsubscribe(subscription)
    assert [params for name, params in node.requests if name == "eth_unsubscribe"] == [["0xs"]]
    await rpc.close()
