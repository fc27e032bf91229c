"""What waits in the pool is told as soon as a provider shows it, however it shows it, and nothing else is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from keeper.chain.pending import Pending, watch_pool
from keeper.chain.pool import Notice, Pool
from keeper.types import Address
from tests.scripted_node import Refuse, ScriptedNode

GUARD = Address(b"\xab" * 20)
SENDER = "0x" + "11" * 20
CHAIN_ID = 31337


def body(number: int, *, to: str = "0x" + "22" * 20, payload: str = "0x") -> dict[str, Any]:
    """A pending transaction as nodes show it, with more than is needed."""
    return {
        "hash": f"0x{number:064x}",
        "from": SENDER,
        "to": to,
        "input": payload,
        "nonce": "0x0",
        "value": "0x0",
        "blockHash": None,
    }


TO_GUARD = body(1, to="0x" + "aB" * 20)
CARRYING = body(2, payload="0x6a761202" + "00" * 12 + "ab" * 20)
OTHER = body(3)
CREATION = {**body(4, payload="0x60" + "ab" * 20), "to": None}


def shows(what: str) -> Callable[..., Any]:
    """`eth_subscribe` of a node that shows full bodies, hashes only, or nothing."""

    def subscribe(topic: str, *rest: Any) -> Any:
        assert topic == "newPendingTransactions"
        if what == "nothing" or (what == "hashes" and rest):
            raise Refuse(-32602, "invalid params")
        return "0x1"

    return subscribe


@asynccontextmanager
async def watching(
    node: ScriptedNode, transport: str = "ws", **options: Any
) -> AsyncIterator[tuple[list[Pending], list[Notice]]]:
    """What was told of the pool so far, while it is watched, and what was noted."""
    pool = await Pool.open([node.at(transport)], CHAIN_ID, 2.0, **options)
    told: list[Pending] = []
    noted: list[Notice] = []
    pool.listener = noted.append

    async def saw(pending: Pending) -> None:
        told.append(pending)

    task = asyncio.create_task(watch_pool(pool, GUARD, saw))
    try:
        yield told, noted
        assert not task.done() or task.exception() is None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await pool.close()


async def until(done: Callable[[], bool]) -> None:
    """Wait for something, at most for two seconds."""
    deadline_s = time.monotonic() + 2.0
    while not done():
        assert time.monotonic() < deadline_s, "waited in vain"
        await asyncio.sleep(0.005)


def methods(what: str) -> dict[str, Any]:
    """A node of the right chain that knows every transaction here by its hash."""
    known = {each["hash"]: each for each in (TO_GUARD, CARRYING, OTHER, CREATION)}
    return {
        "eth_chainId": lambda *_: hex(CHAIN_ID),
        "eth_subscribe": shows(what),
        "eth_unsubscribe": lambda *_: True,
        "eth_getTransactionByHash": known.get,
    }


@pytest.mark.parametrize("transport", ["ws", "ipc"])
@pytest.mark.parametrize("what", ["bodies", "hashes"])
async def test_what_mentions_the_address_is_told(tmp_path: Path, what: str, transport: str) -> None:
    """As the target or anywhere in the calldata, in any case of letters; what the node forgot is passed over."""
    async with ScriptedNode(tmp_path, methods(what)) as node, watching(node, transport) as (told, noted):
        await until(lambda: node.asked("eth_subscribe") == (1 if what == "bodies" else 2))
        await asyncio.sleep(0.05)
        if what == "hashes":
            await node.notify("0x1", f"0x{9:064x}")
        for each in (OTHER, TO_GUARD, CARRYING, CREATION):
            await node.notify("0x1", each if what == "bodies" else each["hash"])
        await until(lambda: len(told) == 3)
        assert {int.from_bytes(each.hash) for each in told} == {1, 2, 4}
        [direct] = [each for each in told if each.to == GUARD]
        assert direct.sender == bytes.fromhex(SENDER[2:]) and not noted
        assert node.asked("eth_getTransactionByHash") == (0 if what == "bodies" else 5)


@pytest.mark.parametrize("transport", ["ws", "http"])
async def test_who_shows_no_pool_is_noted_once(tmp_path: Path, transport: str) -> None:
    """It is no error, and it is not asked again."""
    async with ScriptedNode(tmp_path, methods("nothing")) as node, watching(node, transport) as (told, noted):
        await until(lambda: bool(noted))
        assert [note.name for note in noted] == ["no_pending_pool"] and not told


async def test_a_provider_that_counts_requests_is_not_asked_for_every_hash(tmp_path: Path) -> None:
    """With a limit on requests the pool of one that shows hashes only is left alone, and that is noted."""
    async with (
        ScriptedNode(tmp_path, methods("hashes")) as node,
        watching(node, max_requests_per_s=50) as (told, noted),
    ):
        await until(lambda: node.asked("eth_subscribe") == 2)
        await asyncio.sleep(0.05)
        await node.notify("0x1", TO_GUARD["hash"])
        await until(lambda: bool(noted))
        assert "only hashes" in noted[0].detail
        assert node.asked("eth_unsubscribe") == 1, "nothing is queued that nobody reads"
        assert node.asked("eth_getTransactionByHash") == 0 and not told


async def test_a_broken_connection_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the node hung up, or sent nonsense, what comes next is told."""
    monkeypatch.setattr("keeper.chain.pending._AGAIN_S", 0.01)
    async with ScriptedNode(tmp_path, methods("bodies")) as node, watching(node) as (told, noted):
        await until(lambda: node.asked("eth_subscribe") == 1)
        await node.hang_up()
        await until(lambda: node.asked("eth_subscribe") == 2)
        await asyncio.sleep(0.05)
        await node.notify("0x1", {"hash": "ab" * 20})
        await until(lambda: node.asked("eth_subscribe") == 3)
        await asyncio.sleep(0.05)
        await node.notify("0x1", TO_GUARD)
        await until(lambda: len(told) == 1)
        assert not noted and node.asked("eth_unsubscribe") == 1, "of the one that sent nonsense"
