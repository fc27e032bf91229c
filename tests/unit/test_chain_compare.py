"""Providers held against each other: ranked without flapping; who is behind, forked or elsewhere is dropped."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest

from keeper.chain.blocks import latest, newest
from keeper.chain.compare import Comparison
from keeper.chain.heads import follow
from keeper.chain.pool import Notice, Pool
from keeper.chain.ranking import Ranking
from keeper.errors import ChainError, LedgerError, NoQuorum, WrongChain
from tests.scripted_node import HangUp, Literal, ScriptedNode, Silence
from tests.unit.test_chain_heads import Naps, block
from tests.unit.test_chain_quorum import Told, folders, label, pool_of, stack

__all__ = ["folders", "stack"]


class ChainNode(ScriptedNode):
    """A node with blocks; `fork` replaces the newest ones by others of the same numbers."""

    def __init__(self, folder: Path, height: int = 10) -> None:
        self.blocks = [block(number) for number in range(height + 1)]
        super().__init__(
            folder,
            {
                "eth_getBlockByNumber": self._by_number,
                "eth_getBlockByHash": lambda name, _: next(
                    (b for b in self.blocks if b["hash"] == name), None
                ),
                "eth_subscribe": lambda *_: "0xs",
                "eth_unsubscribe": lambda *_: True,
            },
        )

    def _by_number(self, name: str, _: bool) -> Any:
        number = len(self.blocks) - 1 if name == "latest" else int(name, 16)
        return self.blocks[number] if number < len(self.blocks) else None

    def mine(self, count: int = 1) -> None:
        """Add blocks."""
        first = len(self.blocks)
        self.blocks += [block(number) for number in range(first, first + count)]

    def fork(self, depth: int) -> None:
        """Be on another branch."""
        height = len(self.blocks)
        self.blocks[-depth:] = [block(number, fork=9) for number in range(height - depth, height)]

    async def announce(self) -> None:
        """Tell subscribers of the newest block."""
        await self.notify("0xs", self.blocks[-1])


@pytest.fixture
def nodes(folders: Iterator[Path]) -> list[ChainNode]:
    """Three nodes of one chain at block 10."""
    return [ChainNode(next(folders)) for _ in range(3)]


async def surveyed(pool: Told, comparison: Comparison) -> None:
    """Let the time between two surveys pass and look."""
    pool.time.now_s += 5
    await comparison.survey()


# --- ranking ---------------------------------------------------------------------------------------------------------


def ranked(ranking: Ranking[str], samples_s: dict[str, float], times: int = 1) -> list[str]:
    """The order after these delays were measured so often."""
    for _ in range(times):
        for member, seconds in samples_s.items():
            ranking.observe(member, seconds, 0.0)
        ranking.settle()
    return list(ranking.order)


def test_the_faster_moves_up_and_stays_there() -> None:
    """From the configured order to the measured one; a clear difference is seen within a few surveys."""
    ranking = Ranking(["far", "near", "middle"])
    assert ranked(ranking, {}) == ["far", "near", "middle"]
    assert ranked(ranking, {"far": 0.3, "near": 0.01, "middle": 0.1}, 2) == ["far", "near", "middle"]
    assert ranked(ranking, {"far": 0.3, "near": 0.01, "middle": 0.1}, 3) == ["near", "middle", "far"]


def test_a_ranking_does_not_flap() -> None:
    """Noise of a factor of two around equal speeds changes nothing in a thousand surveys; nor does one bad sample."""
    chance = random.Random(1)
    ranking = Ranking(["a", "b", "c"])
    orders = {
        tuple(ranked(ranking, {name: 0.1 * chance.uniform(0.7, 1.4) for name in "abc"})) for _ in range(1000)
    }
    assert orders == {("a", "b", "c")}
    assert ranked(ranking, {"a": 0.3, "b": 0.1, "c": 0.1}) == ["a", "b", "c"]


def test_one_change_is_one_swap() -> None:
    """When a provider becomes slow for good it falls back once, and does not return until it is clearly faster."""
    chance = random.Random(2)
    ranking = Ranking(["a", "b"])
    ranked(ranking, {"a": 0.1, "b": 0.1}, 20)
    changes, order = 0, list(ranking.order)
    for number in range(400):
        slow = 0.4 if number < 200 else 0.15
        now = ranked(ranking, {"a": slow * chance.uniform(0.8, 1.2), "b": 0.1 * chance.uniform(0.8, 1.2)})
        changes, order = changes + (now != order), now
    assert (changes, order) == (1, ["b", "a"])


def test_late_heads_count_as_much_as_slow_answers() -> None:
    """A provider that answers fast but hears of blocks seconds later is worse than a slow one that is up to date."""
    ranking = Ranking(["late", "slow"])
    for _ in range(20):
        ranking.observe("late", 0.01, 2.0)
        ranking.observe("slow", 0.3, 0.0)
        ranking.settle()
    assert list(ranking.order) == ["slow", "late"]
    assert ranking.delay_s("late") == pytest.approx(2.01, rel=0.1)


async def test_heads_move_to_a_clearly_better_provider(stack: AsyncExitStack, nodes: list[ChainNode]) -> None:
    """Only after it was best several surveys in a row, and whoever waits for a head is told at once."""
    pool = await pool_of(stack, nodes, 1, sleep=asyncio.sleep)
    comparison = Comparison(pool)
    for provider, delay_s in zip(pool.providers, (2.0, 0.001, 0.002), strict=True):
        for _ in range(60):
            pool.ranking.observe(provider, delay_s, 0.0)
    async with aclosing(follow(pool, Naps())) as heads:
        assert (await anext(heads)).number == 10
        assert pool.followed is pool.providers[0]
        coming = asyncio.ensure_future(anext(heads))
        for number in range(1, 4):
            await surveyed(pool, comparison)
            assert (pool.followed is None) == (number == 3)
        nodes[1].mine()
        assert (await coming).number == 11
        assert pool.followed is pool.providers[1]
    assert pool.notices == []


# --- who is dropped --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quorum", [1, 2])
async def test_a_provider_that_is_behind_is_dropped_until_it_caught_up(
    stack: AsyncExitStack, nodes: list[ChainNode], quorum: int
) -> None:
    """Behind is who lacks what a quorum had a survey ago; a moment behind is not. It is noted once."""
    pool = await pool_of(stack, nodes, quorum)
    comparison = Comparison(pool)
    for node in nodes[1:]:
        node.mine(3)
    await surveyed(pool, comparison)
    assert pool.notices == [], "it may just be hearing of it"
    for _ in range(4):
        await surveyed(pool, comparison)
    assert pool.dropped == [label(nodes[0])]
    assert "newest block is 10 while others had 13" in pool.notices[0].detail
    assert (await pool.run(latest)).number == 13
    nodes[0].mine(3)
    for _ in range(5):
        await surveyed(pool, comparison)
    assert pool.dropped == [label(nodes[0])] and pool.best is pool.providers[1]
    assert pool.providers[0].dropped_until_s < pool.time.now_s


async def test_one_that_claims_to_be_ahead_accuses_nobody(
    stack: AsyncExitStack, nodes: list[ChainNode]
) -> None:
    """With a quorum of two, one provider's high head is nobody else's lag."""
    pool = await pool_of(stack, nodes, 2)
    comparison = Comparison(pool)
    nodes[0].mine(10**5)
    for _ in range(3):
        await surveyed(pool, comparison)
    assert pool.notices == []


@pytest.mark.parametrize("quorum", [1, 2])
async def test_a_provider_on_a_fork_is_dropped(
    stack: AsyncExitStack, nodes: list[ChainNode], quorum: int
) -> None:
    """Two settled blocks down all must tell the same one; a fork at the very tip is left to settle."""
    pool = await pool_of(stack, nodes, quorum)
    comparison = Comparison(pool)
    nodes[2].fork(2)
    await surveyed(pool, comparison)
    assert pool.notices == []
    nodes[2].fork(3)
    await surveyed(pool, comparison)
    assert pool.dropped == [label(nodes[2])]
    assert "another block 8 than others" in pool.notices[0].detail


async def test_two_providers_on_two_forks_accuse_nobody(
    stack: AsyncExitStack, nodes: list[ChainNode]
) -> None:
    """Without a majority it is not known who is on the fork."""
    pool = await pool_of(stack, nodes[:2], 1)
    nodes[1].fork(5)
    await surveyed(pool, Comparison(pool))
    assert pool.notices == []


@pytest.mark.parametrize("transport", ["http", "ipc"])
async def test_a_provider_that_becomes_another_chain_is_found(nodes: list[ChainNode], transport: str) -> None:
    """Its chain id is asked at every survey, even on a connection that never dropped, and it answers nothing more."""
    async with AsyncExitStack() as stack:
        for node in nodes:
            node.methods["eth_chainId"] = lambda: "0x7a69"
            await stack.enter_async_context(node)
        pool = await Told.open([node.at(transport) for node in nodes[:2]], 31337, 5)
        stack.push_async_callback(pool.close)
        pool.notices = []
        pool.listener = pool.notices.append
        nodes[0].methods["eth_chainId"] = lambda: "0x1"
        nodes[0].mine(50)
        comparison = Comparison(pool)
        for _ in range(2):
            await comparison.survey()
        assert [notice.name for notice in pool.notices] == ["provider_dropped"]
        assert "serves chain 1 and chain.id is 31337" in pool.notices[0].detail
        assert (await pool.run(latest)).number == 10
        nodes[1].methods["eth_getBlockByNumber"] = HangUp
        with pytest.raises(ChainError, match="serves chain 1"):
            await pool.run(latest)


@pytest.mark.parametrize("ending", ["hangs up on a request", "closes when idle"])
async def test_a_connection_made_anew_below_is_checked(nodes: list[ChainNode], ending: str) -> None:
    """An HTTP node that closed the connection and is back may be another chain: it is asked before it is believed."""
    async with nodes[0]:
        nodes[0].methods["eth_chainId"] = lambda: "0x7a69"
        pool = await Pool.open([nodes[0].url], 31337, 5)
        asked = nodes[0].asked("eth_chainId")
        for _ in range(3):
            assert (await pool.run(latest)).number == 10
        assert nodes[0].asked("eth_chainId") == asked, "not again while the connection lasts"
        good = nodes[0].methods["eth_getBlockByNumber"]
        if ending == "closes when idle":
            answer = json.dumps({"jsonrpc": "2.0", "id": 0, "result": nodes[0].blocks[-1]})
            text = answer.replace('"id": 0', '"id": {id}')
            nodes[0].methods["eth_getBlockByNumber"] = lambda *_: Literal(text, 200, {"Connection": "close"})
            assert (await pool.run(latest)).number == 10
        answers = iter([HangUp()] if ending == "hangs up on a request" else [])

        def restarted(*arguments: Any) -> Any:
            nodes[0].methods["eth_chainId"] = lambda: "0x1"
            return next(answers, None) or good(*arguments)

        nodes[0].methods["eth_getBlockByNumber"] = restarted
        with pytest.raises(WrongChain):
            await pool.run(latest)
        await pool.close()


@pytest.mark.parametrize("failure", [HangUp, Silence])
async def test_a_dead_provider_is_found_before_it_is_needed(
    stack: AsyncExitStack, nodes: list[ChainNode], failure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A survey lets it rest, so that no request is spent on it."""
    monkeypatch.setattr("keeper.chain.compare.SURVEY_S", 0.5)
    pool = await pool_of(stack, nodes, 1)
    nodes[0].methods["eth_getBlockByNumber"] = failure
    await surveyed(pool, Comparison(pool))
    asked = nodes[0].asked("eth_getBlockByNumber")
    assert (await pool.run(latest)).number == 10
    assert nodes[0].asked("eth_getBlockByNumber") == asked


# --- heads under a quorum --------------------------------------------------------------------------------------------


async def test_a_head_is_one_that_a_quorum_knows(stack: AsyncExitStack, nodes: list[ChainNode]) -> None:
    """A block that only its announcer has is never a head, and heads go on from somebody else."""
    pool = await pool_of(stack, nodes, 2, sleep=asyncio.sleep)
    async with aclosing(follow(pool, Naps())) as heads:
        assert (await anext(heads)).number == 10
        coming = asyncio.ensure_future(anext(heads))
        await asyncio.sleep(0.05)
        for node in nodes:
            node.mine()
        nodes[0].fork(1)
        for node in nodes:
            await node.announce()
        async with asyncio.timeout(20):
            assert (await coming).hash.hex() == block(11)["hash"][2:]
        assert pool.followed is not pool.providers[0]
        assert pool.dropped == [label(nodes[0])]
        assert "announced block 11, which no others know" in pool.notices[0].detail


async def test_a_record_that_cannot_be_written_ends_the_heads(
    stack: AsyncExitStack, nodes: list[ChainNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong beside the heads, and is no provider's doing, comes out with the next head."""
    monkeypatch.setattr("keeper.chain.compare._EVERY_S", 0.01)
    pool = await pool_of(stack, nodes, 1, sleep=asyncio.sleep)

    def full(_: Notice) -> None:
        raise LedgerError("The disk is full.")

    pool.listener = full
    nodes[2].fork(3)
    async with aclosing(follow(pool, Naps())) as heads:
        await anext(heads)
        with pytest.raises(LedgerError):
            while True:
                nodes[0].mine()
                await nodes[0].announce()
                await anext(heads)


async def test_a_head_announced_otherwise_than_it_is(stack: AsyncExitStack, nodes: list[ChainNode]) -> None:
    """Its fields must be those the quorum knows: a base fee or a time that only the announcer tells is not used."""
    pool = await pool_of(stack, nodes, 2, sleep=asyncio.sleep)
    async with aclosing(follow(pool, Naps())) as heads:
        await anext(heads)
        coming = asyncio.ensure_future(anext(heads))
        await asyncio.sleep(0.05)
        for node in nodes:
            node.mine()
        await nodes[0].notify("0xs", block(11) | {"baseFeePerGas": "0x1"})
        async with asyncio.timeout(20):
            assert (await coming).base_fee_wei == 7
        assert pool.dropped == [label(nodes[0])]


async def test_without_a_quorum_no_head_comes_and_that_is_said(
    stack: AsyncExitStack, nodes: list[ChainNode]
) -> None:
    """One of two left is not enough; it is noted, and when the second is back heads go on by themselves."""
    pool = await pool_of(stack, nodes[:2], 2, sleep=asyncio.sleep)
    async with aclosing(follow(pool, Naps())) as heads:
        await anext(heads)
        good = nodes[1].methods["eth_getBlockByHash"]
        nodes[1].methods["eth_getBlockByHash"] = HangUp
        coming = asyncio.ensure_future(anext(heads))
        await asyncio.sleep(0.05)
        for node in nodes[:2]:
            node.mine()
            await node.announce()
        await asyncio.sleep(0.3)
        assert not coming.done()
        assert [notice.name for notice in pool.notices] == ["no_heads"], "who is left is not to blame"
        assert "1 of the 2 providers that must agree answered" in pool.notices[0].detail
        nodes[1].methods["eth_getBlockByHash"] = good
        async with asyncio.timeout(20):
            assert (await coming).number == 11
        assert [notice.name for notice in pool.notices] == ["no_heads", "heads_resumed"]


async def test_the_newest_block_is_the_highest_a_quorum_knows(
    stack: AsyncExitStack, nodes: list[ChainNode]
) -> None:
    """Neither the one that is behind nor the one that invents blocks is taken at its word."""
    pool = await pool_of(stack, nodes, 2)
    for node in nodes[1:]:
        node.mine(2)
    assert (await newest(pool)).number == 12
    nodes[2].mine(5)
    nodes[2].fork(5)
    nodes[0].mine(2)
    assert (await newest(pool)).number == 12
    nodes[0].fork(2)
    nodes[1].methods["eth_getBlockByHash"] = HangUp
    with pytest.raises(NoQuorum):
        await newest(pool)


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """Whoever compares providers stops with whoever follows heads."""
    yield
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert "compare providers" not in names
