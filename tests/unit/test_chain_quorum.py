"""q providers that must agree: nothing a smaller number says is believed, and who contradicts them is found."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import combinations, count
from pathlib import Path
from typing import Any

import pytest

from keeper.abi import keccak
from keeper.chain.client import Chain, SimCall
from keeper.chain.pool import Notice, Pool, Sleep
from keeper.chain.quorum import believe
from keeper.chain.rpc import Rpc
from keeper.errors import AdapterError, ChainError, NoQuorum, RpcError
from keeper.types import ZERO_ADDRESS, Gas, Hash, Result, Reverted
from tests.scripted_node import HangUp, Method, Refuse, ScriptedNode, Silence
from tests.unit.test_chain_client import AT, FILTERS, HEAD, POOL, RECEIPT, block_hash, log


class Clock:
    """A clock that goes on only while somebody sleeps, and then at once."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        """What time it is."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Sleep, so to speak."""
        self.now_s += seconds


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """One folder after another."""

    def made() -> Iterator[Path]:
        for number in count():
            folder = tmp_path / str(number)
            folder.mkdir()
            yield folder

    return made()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What is entered here is left after the test."""
    async with AsyncExitStack() as opened:
        yield opened


class Told(Pool):
    """A pool that remembers what it told about its providers."""

    notices: list[Notice]
    time: Clock

    @property
    def dropped(self) -> list[str]:
        """Labels of the providers it dropped, in order."""
        return [notice.provider for notice in self.notices if notice.name == "provider_dropped"]


async def pool_of(
    stack: AsyncExitStack,
    nodes: Sequence[ScriptedNode],
    quorum: int,
    timeout_s: float = 20,
    sleep: Sleep | None = None,
) -> Told:
    """A pool over the IPC sockets of nodes, on a clock of its own, which sleeping moves unless told otherwise."""
    for node in nodes:
        node.methods.setdefault("eth_chainId", lambda: "0x7a69")
        await stack.enter_async_context(node)
    clock = Clock()
    urls = [node.ipc_path for node in nodes]
    pool = await Told.open(urls, 31337, timeout_s, quorum=quorum, clock=clock, sleep=sleep or clock.sleep)
    stack.push_async_callback(pool.close)
    pool.notices, pool.time = [], clock
    pool.listener = pool.notices.append
    return pool


def saying(folders: Iterator[Path], *answers: Any) -> list[ScriptedNode]:
    """Nodes that each answer `who` with one of these."""
    return [
        ScriptedNode(next(folders), {"who": answer if callable(answer) else partial(_same, answer)})
        for answer in answers
    ]


def _same(answer: Any) -> Any:
    return answer


def label(node: ScriptedNode) -> str:
    """How its provider is called."""
    return f"ipc:{node.ipc_path}"


async def who(rpc: Rpc) -> Any:
    """What a node says."""
    return await rpc.request("who")


def refusing(message: str, code: int = -32000) -> Method:
    """A method that refuses."""

    def method(*_: Any) -> Any:
        raise Refuse(code, message)

    return method


# --- who is believed -------------------------------------------------------------------------------------------------


async def test_with_a_quorum_of_one_the_first_is_believed(
    stack: AsyncExitStack, folders: Iterator[Path]
) -> None:
    """Nobody else is asked: q = 1 resists no liar and costs nothing."""
    nodes = saying(folders, "lie", "truth", "truth")
    pool = await pool_of(stack, nodes, 1)
    assert await believe(pool, who) == ["lie"]
    assert [node.asked("who") for node in nodes] == [1, 0, 0]


@pytest.mark.parametrize(("quorum", "providers"), [(2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (3, 5), (3, 6)])
async def test_a_quorum_is_never_told_a_lie_by_fewer(
    stack: AsyncExitStack, folders: Iterator[Path], quorum: int, providers: int
) -> None:
    """Whichever q − 1 providers lie alike, the answer is the truth or none; with 2q − 1 providers always the truth."""
    nodes = saying(folders, *["truth"] * providers)
    pool = await pool_of(stack, nodes, quorum)
    for liars in combinations(range(providers), quorum - 1):
        for number, node in enumerate(nodes):
            node.methods["who"] = partial(_same, "lie" if number in liars else "truth")
        try:
            answers = await believe(pool, who)
        except NoQuorum:
            assert providers < 2 * quorum - 1
        else:
            assert len(answers) >= quorum and set(answers) == {"truth"}
        pool.time.now_s += 10_000


async def test_agreeing_costs_no_more_than_the_quorum(stack: AsyncExitStack, folders: Iterator[Path]) -> None:
    """While answers are alike nobody beyond the quorum is asked."""
    nodes = saying(folders, 1, 1, 1)
    pool = await pool_of(stack, nodes, 2)
    assert await believe(pool, who) == [1, 1]
    assert [node.asked("who") for node in nodes] == [1, 1, 0]


@pytest.mark.parametrize("failure", [HangUp, Silence, refusing("header not found")])
async def test_failover_never_lowers_the_quorum(
    stack: AsyncExitStack, folders: Iterator[Path], failure: Any
) -> None:
    """Another takes the place of one that fails; with fewer than q left there is no answer; it comes back by itself."""
    nodes = saying(folders, 1, 1, 1)
    pool = await pool_of(stack, nodes, 2, timeout_s=2)
    nodes[0].methods["who"] = failure
    assert await believe(pool, who) == [1, 1]
    good, nodes[2].methods["who"] = nodes[2].methods["who"], failure
    with pytest.raises(NoQuorum, match="1 of the 2 providers that must agree answered"):
        await believe(pool, who)
    nodes[2].methods["who"] = good
    assert await believe(pool, who) == [1, 1]


async def test_a_late_provider_holds_nobody_up(
    stack: AsyncExitStack, folders: Iterator[Path], monkeypatch: Any
) -> None:
    """Who is much later than others is not waited for, and asked last the next time."""
    monkeypatch.setattr("keeper.chain.pool._HEDGE_S", 0.05)
    nodes = saying(folders, Silence, 1, 1)
    for node in nodes:
        await stack.enter_async_context(node)
        node.methods["eth_chainId"] = lambda: "0x7a69"
    pool = await Pool.open([node.ipc_path for node in nodes], 31337, 60, quorum=2)
    stack.push_async_callback(pool.close)
    assert await believe(pool, who) == [1, 1]
    assert await believe(pool, who) == [1, 1]
    assert [node.asked("who") for node in nodes] == [1, 2, 2]


async def test_a_block_heard_of_later_is_waited_for(stack: AsyncExitStack, folders: Iterator[Path]) -> None:
    """A node two moments behind is asked again, and nothing is held against it."""
    refusals = iter([True, True])

    def late() -> int:
        if next(refusals, False):
            raise Refuse(-32000, "header not found")
        return 1

    pool = await pool_of(stack, saying(folders, late, 1), 2)
    assert await believe(pool, who) == [1, 1]
    assert pool.notices == [] and [provider.failures for provider in pool.providers] == [0, 0]


# --- who is found ----------------------------------------------------------------------------------------------------


async def test_a_liar_is_dropped_for_ever_longer(stack: AsyncExitStack, folders: Iterator[Path]) -> None:
    """Each lie about a fixed block is noted by label, and the next ones are not even asked for, twice as long."""
    nodes = saying(folders, "lie", 1, 1)
    pool = await pool_of(stack, nodes, 2)
    for number, out_s in enumerate([30, 60, 120], 1):
        assert await believe(pool, who) == [1, 1]
        assert pool.dropped == [label(nodes[0])] * number
        pool.time.now_s += out_s - 1
        assert await believe(pool, who) == [1, 1]
        assert nodes[0].asked("who") == number
        pool.time.now_s += 2
    assert "2 others contradict it" in pool.notices[0].detail


async def test_without_a_majority_nobody_is_accused(stack: AsyncExitStack, folders: Iterator[Path]) -> None:
    """Two against two: no answer and nobody dropped; when they agree again, all is well."""
    nodes = saying(folders, 1, 2, 1, 2)
    pool = await pool_of(stack, nodes, 2)
    with pytest.raises(NoQuorum, match="4 providers disagree") as caught:
        await believe(pool, who)
    assert all(label(node) in str(caught.value) for node in nodes)
    assert pool.notices == []
    nodes[1].methods["who"] = partial(_same, 1)
    assert (await believe(pool, who))[0] == 1


async def test_a_majority_below_the_quorum_decides_nothing(
    stack: AsyncExitStack, folders: Iterator[Path]
) -> None:
    """Two of three say one thing and three must agree: the two may be the liars."""
    pool = await pool_of(stack, saying(folders, 1, 1, 2), 3)
    with pytest.raises(NoQuorum, match="no majority of at least 3"):
        await believe(pool, who)
    assert pool.notices == []


async def test_a_dropped_provider_still_counts_where_too_few_are_left(
    stack: AsyncExitStack, folders: Iterator[Path]
) -> None:
    """It is asked last, never believed alone, and so cannot keep the others from agreeing by having lied once."""
    nodes = saying(folders, "lie", 1, 1)
    pool = await pool_of(stack, nodes, 2)
    await believe(pool, who)
    nodes[2].methods["who"] = HangUp
    with pytest.raises(NoQuorum):
        await believe(pool, who)
    nodes[0].methods["who"] = partial(_same, 1)
    assert await believe(pool, who) == [1, 1]


async def test_what_changes_with_time_accuses_nobody(stack: AsyncExitStack, folders: Iterator[Path]) -> None:
    """A question about no fixed block is asked again until the later node has caught up, and nobody is dropped."""
    nonces = iter([6, 6])
    pool = await pool_of(stack, saying(folders, 7, lambda: next(nonces, 7)), 2)
    assert await believe(pool, who, pinned=False) == [7, 7]
    assert pool.notices == []


async def test_a_provider_that_lacks_what_others_have_rests(
    stack: AsyncExitStack, folders: Iterator[Path]
) -> None:
    """One on a fork, or far behind, does not cost every head its patience."""
    nodes = saying(folders, refusing("header not found"), 1, 1)
    pool = await pool_of(stack, nodes, 2)
    await believe(pool, who)
    asked = nodes[0].asked("who")
    assert await believe(pool, who) == [1, 1]
    assert nodes[0].asked("who") == asked


# --- what is asked ---------------------------------------------------------------------------------------------------


def logging(folders: Iterator[Path], *lists: list[dict[str, Any]]) -> list[ScriptedNode]:
    """Nodes at block 100, each with logs of its own."""
    return [
        ScriptedNode(next(folders), {"eth_blockNumber": lambda: "0x64", "eth_getLogs": partial(_logs, logs)})
        for logs in lists
    ]


def _logs(logs: list[dict[str, Any]], query: dict[str, Any]) -> list[dict[str, Any]]:
    if "blockHash" in query:
        return [each for each in logs if each["blockHash"] == query["blockHash"]]
    first, last = (int(query[name], 16) for name in ("fromBlock", "toBlock"))
    return [each for each in logs if first <= int(each["blockNumber"], 16) <= last]


@pytest.mark.parametrize("quorum", [2, 3])
@pytest.mark.parametrize("spare", [0, 1, 2])
async def test_fewer_than_a_quorum_cannot_hide_a_log(
    stack: AsyncExitStack, folders: Iterator[Path], quorum: int, spare: int
) -> None:
    """Whichever q − 1 providers leave it out, of a block or of a range, it is found."""
    everything = [log(7, 0), log(7, 1), log(9, 0)]
    providers = quorum + spare
    nodes = logging(folders, *[everything] * providers)
    pool = await pool_of(stack, nodes, quorum)
    chain = Chain(pool, 31337)
    for omitting in combinations(range(providers), quorum - 1):
        for number, node in enumerate(nodes):
            left = everything[1:] if number in omitting else everything
            node.methods["eth_getLogs"] = partial(_logs, left)
        assert [each.index for each in await chain.logs_at(FILTERS, block_hash(7))] == [0, 1]
        assert [each.block_number for each in await chain.logs(FILTERS, 0, 100)] == [7, 7, 9]
        pool.time.now_s += 10_000


async def test_who_leaves_logs_out_is_noted_and_dropped(
    stack: AsyncExitStack, folders: Iterator[Path]
) -> None:
    """The difference is noted once in a while; about one block, a majority drops who omits and who invents."""
    nodes = logging(folders, [log(7, 0)], [], [log(7, 0)])
    pool = await pool_of(stack, nodes, 2)
    chain = Chain(pool, 31337)
    for _ in range(3):
        assert len(await chain.logs_at(FILTERS, block_hash(7))) == 1
    assert [(notice.name, notice.provider) for notice in pool.notices] == [
        ("logs_differ", label(nodes[1])),
        ("provider_dropped", label(nodes[1])),
    ]
    pool.time.now_s += 10_000
    nodes[1].methods["eth_getLogs"] = partial(_logs, [log(7, 0), log(7, 1)])
    assert len(await chain.logs_at(FILTERS, block_hash(7))) == 2, "read too much rather than too little"
    assert pool.dropped == [label(nodes[1])] * 2


async def test_a_range_that_differs_accuses_nobody(stack: AsyncExitStack, folders: Iterator[Path]) -> None:
    """Numbers may mean other blocks to a node that hears of a reorg later."""
    pool = await pool_of(stack, logging(folders, [log(7, 0)], [], [log(7, 0)]), 2)
    chain = Chain(pool, 31337)
    assert len(await chain.logs(FILTERS, 0, 100)) == 1
    assert pool.dropped == []


async def test_a_range_too_long_for_all_is_halved(stack: AsyncExitStack, folders: Iterator[Path]) -> None:
    """What every node refuses as too much is asked for in parts, as without a quorum."""
    everything = [log(number, 0) for number in range(101)]
    nodes = logging(folders, everything, everything)

    def limited(query: dict[str, Any]) -> Any:
        if int(query["toBlock"], 16) - int(query["fromBlock"], 16) >= 30:
            raise Refuse(-32005, "query returned more than 10000 results")
        return _logs(everything, query)

    for node in nodes:
        node.methods["eth_getLogs"] = limited
    chain = Chain(await pool_of(stack, nodes, 2), 31337)
    assert len(await chain.logs(FILTERS, 0, 100)) == 101


async def test_a_receipt_counts_when_a_quorum_has_it(stack: AsyncExitStack, folders: Iterator[Path]) -> None:
    """One that invents or withholds a receipt is outvoted; two that differ are no answer."""
    nodes = saying(folders, 0, 0, 0)
    for node, told in zip(nodes, (None, RECEIPT, RECEIPT), strict=True):
        node.methods["eth_getTransactionReceipt"] = partial(lambda told, _: told, told)
    chain = Chain(await pool_of(stack, nodes, 2), 31337)
    receipt = await chain.receipt(Hash(b"\x66" * 32))
    assert receipt is not None and receipt.status == 1
    nodes[2].methods["eth_getTransactionReceipt"] = lambda _: RECEIPT | {"status": "0x0"}
    with pytest.raises(NoQuorum):
        await chain.receipt(Hash(b"\x66" * 32))


async def test_a_transaction_is_told_to_a_quorum(stack: AsyncExitStack, folders: Iterator[Path]) -> None:
    """One that swallows it, or fails, does not keep it from the others; all refusing is a refusal."""
    raw = b"\x02signed"
    nodes = saying(folders, 0, 0, 0)
    for node in nodes:
        node.methods["eth_sendRawTransaction"] = lambda _: "0x" + keccak(raw).hex()
    pool = await pool_of(stack, nodes, 2)
    chain = Chain(pool, 31337)
    assert await chain.send_raw(raw) == keccak(raw)
    assert [node.asked("eth_sendRawTransaction") for node in nodes] == [1, 1, 0]
    for node in nodes[:2]:
        node.methods["eth_sendRawTransaction"] = refusing("nonce too low")
    assert await chain.send_raw(raw) == keccak(raw)
    nodes[2].methods["eth_sendRawTransaction"] = refusing("nonce too low")
    with pytest.raises(RpcError, match="nonce too low"):
        await chain.send_raw(raw)


@pytest.mark.parametrize("quorum", [1, 2])
async def test_one_provider_cannot_answer_for_a_transaction_with_another_hash(
    stack: AsyncExitStack, folders: Iterator[Path], quorum: int
) -> None:
    """It may have swallowed it: another is told in its place, and what others took was taken."""
    raw = b"\x02signed"
    nodes = saying(folders, 0, 0, 0)
    for node in nodes[1:]:
        node.methods["eth_sendRawTransaction"] = lambda _: "0x" + keccak(raw).hex()
    nodes[0].methods["eth_sendRawTransaction"] = lambda _: "0x" + "66" * 32
    chain = Chain(await pool_of(stack, nodes, quorum), 31337)
    assert await chain.send_raw(raw) == keccak(raw)
    assert [node.asked("eth_sendRawTransaction") for node in nodes] == [1, 1, quorum - 1]
    for node in nodes:
        node.methods["eth_sendRawTransaction"] = lambda _: "0x" + "66" * 32
    with pytest.raises(ChainError, match="of another transaction"):
        await chain.send_raw(raw)


async def test_a_trial_is_what_a_quorum_says(stack: AsyncExitStack, folders: Iterator[Path]) -> None:
    """Status and output must be the same, gas nearly so and the highest counts; nobody is dropped for a trial."""

    def result(gas: int, output: str = "0x01") -> list[dict[str, Any]]:
        return [{"calls": [{"status": "0x1", "gasUsed": hex(gas), "returnData": output, "logs": []}]}]

    nodes = saying(folders, 0, 0)
    nodes[0].methods["eth_simulateV1"] = lambda *_: result(100_000)
    nodes[1].methods["eth_simulateV1"] = lambda *_: result(101_000)
    pool = await pool_of(stack, nodes, 2)
    chain = Chain(pool, 31337)
    call = SimCall(ZERO_ADDRESS, POOL, b"", Gas(1_000_000))
    [trial] = await chain.simulate([call], HEAD, 1_700_000_012, 9)
    assert (trial.status, trial.gas_used) == (1, 101_000)
    for lie in (result(300_000), result(100_000, "0x02")):
        nodes[1].methods["eth_simulateV1"] = partial(lambda lie, *_: lie, lie)
        with pytest.raises(NoQuorum):
            await chain.simulate([call], HEAD, 1_700_000_012, 9)
    del nodes[1].methods["eth_simulateV1"]
    nodes[1].methods |= {"eth_call": lambda *_: "0x01", "eth_estimateGas": lambda *_: hex(100_500)}
    [trial] = await chain.simulate([call], HEAD, 1_700_000_012, 9)
    assert trial.gas_used == 100_500
    assert pool.notices == []


async def test_only_a_verdict_must_be_agreed_upon(stack: AsyncExitStack, folders: Iterator[Path]) -> None:
    """Anybody's code may answer every node otherwise: what the look afterwards shows counts, or the call alone."""

    def left_by(output: str, seen: str) -> list[dict[str, Any]]:
        calls = [{"status": "0x1", "gasUsed": "0x1", "returnData": each} for each in (output, seen)]
        return [{"calls": calls}]

    def verdict(done: Result, seen: Result | None) -> str:
        if seen == b"\xff":
            raise AdapterError("a look that shows nothing")
        return "called" if seen is None and not isinstance(done, Reverted) else str(seen)

    nodes = saying(folders, 0, 0, 0)
    for number, node in enumerate(nodes):
        node.methods["eth_simulateV1"] = partial(lambda answer, *_: answer, left_by(f"0x0{number}", "0x77"))
    chain = Chain(await pool_of(stack, nodes, 2), 31337)
    call = SimCall(ZERO_ADDRESS, POOL, b"", Gas(1_000_000))
    assert await chain.judge(call, call, HEAD, verdict) == str(b"\x77")
    for lie in ("0x66", "0xff"):
        nodes[0].methods["eth_simulateV1"] = partial(lambda answer, *_: answer, left_by("0x00", lie))
        assert await chain.judge(call, call, HEAD, verdict) == str(b"\x77"), "two of three say so"
    for node in nodes:
        del node.methods["eth_simulateV1"]
        node.methods["eth_call"] = lambda *_: "0x01"
    assert await chain.judge(call, call, HEAD, verdict) == "called"


async def test_code_and_blocks_are_asked_of_a_quorum(stack: AsyncExitStack, folders: Iterator[Path]) -> None:
    """A block by hash has one truth and costs a liar its place; code too."""
    nodes = saying(folders, 0, 0, 0)
    header = {
        "number": "0x64",
        "hash": "0x" + AT.hex(),
        "parentHash": "0x" + AT.hex(),
        "timestamp": "0x65",
        "gasLimit": "0x1",
        "gasUsed": "0x0",
        "baseFeePerGas": "0x7",
    }
    for number, node in enumerate(nodes):
        lie = {"baseFeePerGas": "0x1"} if number == 1 else {}
        node.methods["eth_getBlockByHash"] = partial(lambda block, *_: block, header | lie)
        node.methods["eth_getCode"] = lambda *_: "0x60"
    pool = await pool_of(stack, nodes, 2)
    chain = Chain(pool, 31337)
    assert (await chain.block(AT)).base_fee_wei == 7
    assert pool.dropped == [label(nodes[1])]
    nodes[0].methods["eth_getCode"] = lambda *_: "0x"
    nodes[2].methods["eth_getCode"] = HangUp
    with pytest.raises(ChainError):
        await chain.code(POOL, AT)
