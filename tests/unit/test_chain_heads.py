from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest

from keeper.chain.blocks import latest
from keeper.chain.heads import follow
from keeper.chain.pool import Notice, Pool
from tests.scripted_node import HangUp, Refuse, ScriptedNode


def block(number: int, fork: int = 0) -> dict[str, str]:
    """A header; `fork` makes another one of the same number."""
    return {
        "number": hex(number),
        "hash": f"0x{number:032x}{fork:032x}",
        "parentHash": f"0x{number - 1:064x}",
        "timestamp": hex(1_700_000_000 + number),
        "baseFeePerGas": "0x7",
        "gasLimit": hex(30_000_000),
        "gasUsed": "0x0",
    }


class HeadNode(ScriptedNode):
    """A node with a settable head."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.newest = block(1)
        super().__init__(
            folder,
            {
                "eth_chainId": lambda: "0x7a69",
                "eth_getBlockByNumber": lambda *_: self.newest,
                "eth_subscribe": lambda *_: "0xs",
                "eth_unsubscribe": lambda *_: True,
            },
        )

    async def mine(self, number: int, fork: int = 0) -> None:
        """Move the head and announce it."""
        self.newest = block(number, fork)
        await self.notify("0xs", self.newest)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[HeadNode]]:
    """Two nodes of one chain."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(HeadNode(tmp_path / str(i))) for i in range(2)]


class Naps:
    """A sleep that returns at once and remembers how long it should have taken; `enough` is set by the ninth."""

    def __init__(self) -> None:
        self.taken_s: list[float] = []
        self.enough = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        """Sleep, so to speak."""
        self.taken_s.append(seconds)
        if len(self.taken_s) == 9:
            self.enough.set()
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("transport", ["http", "ws", "ipc"])
async def test_heads_begin_with_the_present_and_follow(nodes: list[HeadNode], transport: str) -> None:
    """The present head comes first, then new ones with their fields and arrival time, whatever the transport."""
    pool = await Pool.open([nodes[0].at(transport)], 31337, 1)
    async with aclosing(follow(pool, Naps())) as heads:
        assert (await anext(heads)).number == 1
        before_s = time.monotonic()
        await nodes[0].mine(2)
        head = await anext(heads)
        assert (head.number, head.hash.hex(), head.parent_hash.hex()) == (2, f"{2:032x}{0:032x}", f"{1:064x}")
        assert (head.timestamp_s, head.base_fee_wei, head.gas_limit) == (1_700_000_002, 7, 30_000_000)
        assert before_s <= head.seen_s <= time.monotonic()
        await nodes[0].mine(2, fork=1)
        assert (await anext(heads)).hash.hex() == f"{2:032x}{1:032x}"
    await pool.close()


async def test_the_newest_wins(nodes: list[HeadNode]) -> None:
    """A slow consumer skips to the newest head, stamped with when it arrived, and sees none twice."""
    pool = await Pool.open([nodes[0].ws_url], 31337, 1)
    async with aclosing(follow(pool)) as heads:
        await anext(heads)
        for number in range(2, 7):
            await nodes[0].mine(number)
        await asyncio.sleep(0.05)
        arrived_before_s = time.monotonic()
        head = await anext(heads)
        assert head.number == 6
        assert head.seen_s < arrived_before_s
        await nodes[0].mine(6)
        await nodes[0].mine(7)
        assert (await anext(heads)).number == 7
    await pool.close()


@pytest.mark.parametrize("socket", ["ws", "ipc"])
async def test_heads_survive_a_lost_connection(nodes: list[HeadNode], socket: str) -> None:
    """After a drop the stream reconnects and goes on with the newest head; what was missed is not replayed."""
    pool = await Pool.open([nodes[0].at(socket)], 31337, 1)
    async with aclosing(follow(pool, Naps())) as heads:
        await anext(heads)
        await nodes[0].hang_up()
        nodes[0].newest = block(9)
        assert (await anext(heads)).number == 9
        await nodes[0].mine(10)
        assert (await anext(heads)).number == 10
    assert nodes[0].connections == 2
    await pool.close()


async def test_waiting_for_a_provider_grows_longer(nodes: list[HeadNode]) -> None:
    """While nobody answers, retries are spaced ever wider up to a limit, and the first answer ends the wait."""
    pool = await Pool.open([nodes[0].url], 31337, 1)
    naps = Naps()
    good, nodes[0].methods["eth_getBlockByNumber"] = nodes[0].methods["eth_getBlockByNumber"], HangUp
    async with aclosing(follow(pool, naps)) as heads:
        coming = asyncio.ensure_future(anext(heads))
        await naps.enough.wait()
        nodes[0].methods["eth_getBlockByNumber"] = good
        assert (await coming).number == 1
    assert naps.taken_s[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    await pool.close()


async def test_another_provider_takes_over(nodes: list[HeadNode]) -> None:
    """When the provider in use is gone for good, heads come from the next."""
    pool = await Pool.open([nodes[0].ws_url, nodes[1].ipc_path], 31337, 1)
    async with aclosing(follow(pool, Naps())) as heads:
        await anext(heads)
        nodes[0].methods["eth_chainId"] = HangUp
        nodes[1].newest = block(4)
        await nodes[0].hang_up()
        assert (await anext(heads)).number == 4
    await pool.close()


async def test_a_provider_that_lags_is_no_reorg(
    nodes: list[HeadNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a takeover, heads below the last one are passed over until the new provider has caught up."""
    pool = await Pool.open([nodes[0].ws_url, nodes[1].ws_url], 31337, 1)
    nodes[0].newest, nodes[1].newest = block(5), block(3)
    async with aclosing(follow(pool, Naps())) as heads:
        assert (await anext(heads)).number == 5
        nodes[0].methods["eth_chainId"] = HangUp
        await nodes[0].hang_up()
        coming = asyncio.ensure_future(anext(heads))
        await asyncio.sleep(0.1)
        await nodes[1].mine(4)
        await asyncio.sleep(0.05)
        assert not coming.done()
        await nodes[1].mine(5, fork=1)
        assert (await coming).hash.hex() == f"{5:032x}{1:032x}"
        await nodes[1].mine(4, fork=2)
        assert (await anext(heads)).number == 4, "below the last head, but the same provider says so: a reorg"
        monkeypatch.setattr("keeper.chain.heads._QUIET_S", 0.0)
        nodes[1].newest = block(2)
        await nodes[1].hang_up()
        assert (await anext(heads)).number == 2, "it had its time to catch up"
    await pool.close()


async def test_reads_go_to_whoever_announces_heads(nodes: list[HeadNode]) -> None:
    """The provider that announced a block is asked about it first, even when it is not the first of the list."""
    pool = await Pool.open([nodes[0].ws_url, nodes[1].ws_url], 31337, 1)
    async with aclosing(follow(pool, Naps())) as heads:
        await anext(heads)
        good, nodes[0].methods["eth_chainId"] = nodes[0].methods["eth_chainId"], HangUp
        nodes[1].newest = block(4)
        await nodes[0].hang_up()
        assert (await anext(heads)).number == 4
        nodes[0].methods["eth_chainId"] = good
        await asyncio.sleep(0.6)
        assert (await pool.run(latest)).number == 4
    await pool.close()


async def test_a_provider_that_stands_still_is_left(
    nodes: list[HeadNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A live connection that announces nothing while the chain moves on is found out and replaced."""
    monkeypatch.setattr("keeper.chain.heads._QUIET_S", 0.05)
    pool = await Pool.open([nodes[0].ws_url, nodes[1].ws_url], 31337, 1)
    async with aclosing(follow(pool, Naps())) as heads:
        await anext(heads)
        coming = asyncio.ensure_future(anext(heads))
        await asyncio.sleep(0.2)
        assert not coming.done(), "a chain without blocks is no reason to leave"
        nodes[1].newest = block(3)
        async with asyncio.timeout(5):
            assert (await coming).number == 3
    await pool.close()


async def test_a_provider_that_forbids_subscribing_is_polled(nodes: list[HeadNode]) -> None:
    """A socket without newHeads still yields heads."""

    def forbidden(*_: Any) -> Any:
        raise Refuse(-32601, "the method eth_subscribe does not exist")

    nodes[0].methods["eth_subscribe"] = forbidden
    pool = await Pool.open([nodes[0].ws_url], 31337, 1)
    async with aclosing(follow(pool, Naps())) as heads:
        assert (await anext(heads)).number == 1
        nodes[0].newest = block(2)
        assert (await anext(heads)).number == 2
    await pool.close()


async def test_a_malformed_header_is_not_a_head(nodes: list[HeadNode]) -> None:
    """Nonsense on the subscription restarts it instead of reaching the engine."""
    pool = await Pool.open([nodes[0].ws_url], 31337, 1)
    naps = Naps()
    async with aclosing(follow(pool, naps)) as heads:
        await anext(heads)
        await nodes[0].notify("0xs", block(2) | {"hash": "0x12"})
        nodes[0].newest = block(3)
        assert (await anext(heads)).number == 3
    assert naps.taken_s == [0.1]
    await pool.close()


async def test_another_chain_is_waited_out(nodes: list[HeadNode]) -> None:
    """A provider that returns as another chain gives no head and is dropped; once it is itself again, heads go on."""
    pool = await Pool.open([nodes[0].ws_url], 31337, 1)
    notices: list[Notice] = []
    pool.listener = notices.append
    async with aclosing(follow(pool, Naps())) as heads:
        await anext(heads)
        good, nodes[0].methods["eth_chainId"] = nodes[0].methods["eth_chainId"], lambda: "0x1"
        await nodes[0].hang_up()
        nodes[0].newest = block(9)
        coming = asyncio.ensure_future(anext(heads))
        await asyncio.sleep(0.1)
        assert not coming.done()
        nodes[0].methods["eth_chainId"] = good
        assert (await coming).number == 9
    assert [notice.name for notice in notices] == ["provider_dropped", "no_heads", "heads_resumed"]
    assert notices[0].provider == nodes[0].ws_url and "serves chain 1" in notices[0].detail
    await pool.close()


async def test_leaving_the_stream_ends_the_subscription(nodes: list[HeadNode]) -> None:
    """Closing the generator unsubscribes and leaves the connection for others."""
    pool = await Pool.open([nodes[0].ws_url], 31337, 1)
    async with aclosing(follow(pool)) as heads:
        await anext(heads)
    assert nodes[0].asked("eth_unsubscribe") == 1
    await pool.close()
