"""How often providers are asked: what is configured, and what they ask for themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from keeper.chain.pace import Pace, retry_after_s
from keeper.chain.pool import Pool
from keeper.chain.quorum import believe
from keeper.chain.rpc import Rpc
from keeper.chain.transports import connect
from keeper.chain.wire import RateLimited
from keeper.errors import ChainError, NoQuorum, RpcError
from tests.scripted_node import Literal, Method, Refuse, ScriptedNode
from tests.unit.test_chain_quorum import Clock


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[ScriptedNode]]:
    """Three nodes that answer `who` with their number."""
    async with AsyncExitStack() as stack:
        started = []
        for number in range(3):
            folder = tmp_path / str(number)
            folder.mkdir()
            methods: dict[str, Method] = {"eth_chainId": lambda: "0x7a69", "who": partial(int, number)}
            started.append(await stack.enter_async_context(ScriptedNode(folder, methods)))
        yield started


@pytest.fixture
def clock() -> Clock:
    """A clock that goes on while somebody sleeps."""
    return Clock()


async def who(rpc: Rpc) -> Any:
    """Which node answers."""
    return await rpc.request("who")


def limited(after: str | None = None, status: int = 429) -> Any:
    """A method that asks to be left alone."""
    headers = {} if after is None else {"Retry-After": after}
    return lambda *_: Literal("slow down", status, headers)


# --- the configured pace ---------------------------------------------------------------------------------------------


async def test_requests_go_at_the_pace_that_was_set(clock: Clock) -> None:
    """A second's worth at once, then one after another, and never more than the rate over any longer time."""
    pace = Pace(4, clock, clock.sleep)
    sent_s = []
    for _ in range(12):
        await pace.turn(1, 60, "node")
        sent_s.append(clock.now_s - 1_000)
    assert sent_s == [0, 0, 0, 0] + [0.25 * number for number in range(1, 9)]
    clock.now_s += 100
    assert pace.wait_s(4) == 0 and pace.wait_s(5) == 0.25, "a long rest earns no more than a second"


async def test_a_request_that_would_wait_too_long_is_given_up(clock: Clock) -> None:
    """It raises, names the key to change, and does not use up anybody's turn."""
    pace = Pace(1, clock, clock.sleep)
    await pace.turn(4, 10, "node")
    clock.now_s = 1_000
    for _ in range(2):
        with pytest.raises(ChainError, match=r"node would .* chain\.max_requests_per_s = 1"):
            await pace.turn(8, 10, "node")
    assert pace.wait_s(1) == 4


async def test_each_provider_has_a_pace_of_its_own(nodes: list[ScriptedNode], clock: Clock) -> None:
    """Who has used up its second is passed over for the next, and waited for only when all have."""
    pool = await Pool.open(
        [node.url for node in nodes[:2]], 31337, 5, max_requests_per_s=3, clock=clock, sleep=clock.sleep
    )
    # the chain id was asked of each
    assert [await pool.run(who) for _ in range(4)] == [0, 0, 1, 1]
    assert clock.now_s == 1_000
    await pool.run(who)
    assert clock.now_s == pytest.approx(1_000 + 1 / 3)
    await pool.close()


async def test_without_a_pace_nothing_waits(nodes: list[ScriptedNode], clock: Clock) -> None:
    """By default requests are not counted."""
    pool = await Pool.open([nodes[0].url], 31337, 5, clock=clock, sleep=clock.sleep)
    for _ in range(100):
        await pool.run(who)
    assert clock.now_s == 1_000
    await pool.close()


# --- the pause a provider asks for -----------------------------------------------------------------------------------


async def test_a_limit_is_told_from_other_errors(nodes: list[ScriptedNode]) -> None:
    """Status 429, 503 with a time, and the words nodes use; not a result that is too large, nor a contract's words."""
    rpc = await connect(nodes[0].url)
    for answer, after_s in (
        (limited("7"), 7),
        (limited(), None),
        (limited("3", 503), 3),
    ):
        nodes[0].methods["who"] = answer
        with pytest.raises(RateLimited) as caught:
            await who(rpc)
        assert caught.value.retry_after_s == after_s
    nodes[0].methods["who"] = limited(None, 503)
    with pytest.raises(ChainError) as other:
        await who(rpc)
    assert not isinstance(other.value, RateLimited)

    def refusing(code: int, message: str) -> None:
        raise Refuse(code, message)

    for code, message, is_limit in (
        (429, "enough", True),
        (-32005, "daily request count exceeded, request rate limited", True),
        (-32000, "Too Many Requests", True),
        (-32005, "exceeded its compute units per second capacity", True),
        (-32005, "query returned more than 10000 results", False),
        (3, "execution reverted: rate limit", False),
        (-32000, "header not found", False),
    ):
        nodes[0].methods["who"] = partial(refusing, code, message)
        with pytest.raises(RateLimited if is_limit else RpcError):
            await who(rpc)
    await rpc.close()


async def test_a_refused_socket_may_ask_for_a_pause() -> None:
    """Status 429 instead of a WebSocket is a limit like any other, and does not quote the URL."""

    async def full(_: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": "9"})

    application = web.Application()
    application.router.add_get("/{tail:.*}", full)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with pytest.raises(RateLimited) as caught:
        await connect(f"ws://127.0.0.1:{runner.addresses[0][1]}/SECRETKEY")
    await runner.cleanup()
    assert caught.value.retry_after_s == 9
    assert "SECRETKEY" not in str(caught.value) and caught.value.__suppress_context__


def test_retry_after_is_seconds_or_a_date() -> None:
    """Both forms are read; a past date is now; nonsense is nothing."""
    assert retry_after_s("120") == 120
    assert retry_after_s("-5") == 0
    soon = retry_after_s(format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True))
    assert soon is not None and 80 < soon <= 90
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_s("soon") is None and retry_after_s(None) is None


async def test_a_pause_is_honoured(nodes: list[ScriptedNode], clock: Clock) -> None:
    """Others are asked meanwhile; the provider itself not once before its time is over, then it is used again."""
    pool = await Pool.open([node.url for node in nodes[:2]], 31337, 5, clock=clock, sleep=clock.sleep)
    good, nodes[0].methods["who"] = nodes[0].methods["who"], limited("40")
    assert [await pool.run(who) for _ in range(5)] == [1] * 5
    nodes[0].methods["who"] = good
    clock.now_s += 39
    assert await pool.run(who) == 1
    assert nodes[0].asked("who") == 1
    clock.now_s += 2
    assert await pool.run(who) == 0
    await pool.close()


async def test_the_only_provider_is_left_alone_too(nodes: list[ScriptedNode], clock: Clock) -> None:
    """A short pause is waited out; in a long one every request fails at once, unasked."""
    pool = await Pool.open([nodes[0].url], 31337, 5, clock=clock, sleep=clock.sleep)
    good, nodes[0].methods["who"] = nodes[0].methods["who"], limited("3")
    with pytest.raises(RateLimited):
        await pool.run(who)
    nodes[0].methods["who"] = good
    assert await pool.run(who) == 0
    assert clock.now_s == pytest.approx(1_003)
    nodes[0].methods["who"] = limited("60")
    with pytest.raises(RateLimited):
        await pool.run(who)
    asked = nodes[0].asked("who")
    for _ in range(5):
        with pytest.raises(RateLimited, match="asked not to be asked for 60 s"):
            await pool.run(who)
    assert nodes[0].asked("who") == asked
    await pool.close()


async def test_pauses_without_a_time_grow(nodes: list[ScriptedNode], clock: Clock) -> None:
    """One second, then two, then four; an answer ends the growing."""
    pool = await Pool.open([nodes[0].url], 31337, 5, clock=clock, sleep=clock.sleep)
    good, nodes[0].methods["who"] = nodes[0].methods["who"], limited()
    for pause_s in (1, 2, 4):
        with pytest.raises(RateLimited):
            await pool.run(who)
        assert pool.providers[0].paused_until_s - clock.now_s == pytest.approx(pause_s)
    nodes[0].methods["who"] = good
    await pool.run(who)
    nodes[0].methods["who"] = limited()
    with pytest.raises(RateLimited):
        await pool.run(who)
    assert pool.providers[0].paused_until_s - clock.now_s == pytest.approx(1)
    await pool.close()


async def test_a_pause_does_not_lower_the_quorum(nodes: list[ScriptedNode], clock: Clock) -> None:
    """Another takes the place of who asked for one; with too few left there is no answer."""
    pool = await Pool.open([node.url for node in nodes], 31337, 5, quorum=2, clock=clock, sleep=clock.sleep)
    for node in nodes:
        node.methods["who"] = lambda: 1
    nodes[0].methods["who"] = limited("40")
    assert await believe(pool, who) == [1, 1]
    nodes[1].methods["who"] = limited("40")
    with pytest.raises(NoQuorum):
        await believe(pool, who)
    nodes[0].methods["who"] = nodes[1].methods["who"] = lambda: 1
    clock.now_s += 41
    assert await believe(pool, who) == [1, 1]
    await pool.close()
