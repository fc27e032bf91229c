from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from keeper.chain.pool import Pool
from keeper.chain.rpc import Rpc
from keeper.errors import ChainError, ConfigError, RpcError, WrongChain
from tests.scripted_node import HangUp, Method, Refuse, ScriptedNode, Silence

DEAD = "http://127.0.0.1:1/v3/SECRETKEY"


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[ScriptedNode]]:
    """Three nodes of chain 31337 that answer `who` with their number."""
    async with AsyncExitStack() as stack:
        started = []
        for number in range(3):
            folder = tmp_path / str(number)
            folder.mkdir()
            methods: dict[str, Method] = {"eth_chainId": lambda: "0x7a69", "who": partial(int, number)}
            started.append(await stack.enter_async_context(ScriptedNode(folder, methods)))
        yield started


@pytest.fixture
async def opened(nodes: list[ScriptedNode]) -> AsyncIterator[Pool]:
    """A pool over all three."""
    pool = await Pool.open([nodes[0].ws_url, nodes[1].ipc_path, nodes[2].url], 31337, 0.5)
    yield pool
    await pool.close()


async def who(rpc: Rpc) -> Any:
    """Which node answers."""
    return await rpc.request("who")


def refuse(code: int, message: str) -> Any:
    """A method that refuses."""

    def method(*_: Any) -> Any:
        raise Refuse(code, message)

    return method


async def test_the_first_that_answers_is_used(nodes: list[ScriptedNode]) -> None:
    """A provider that is down at the start is passed over."""
    pool = await Pool.open([DEAD, nodes[1].url, nodes[2].url], 31337, 0.5)
    assert [await pool.run(who) for _ in range(3)] == [1, 1, 1]
    await pool.close()


async def test_nobody_answering_names_everyone_without_keys() -> None:
    """When all fail, the error says so for each by its label."""
    with pytest.raises(ChainError) as caught:
        await Pool.open([DEAD, "ws://127.0.0.1:2/SECRETKEY"], 31337, 0.5)
    assert "http://127.0.0.1:1 " in str(caught.value)
    assert "ws://127.0.0.1:2 " in str(caught.value)
    assert "SECRETKEY" not in str(caught.value)


async def test_a_provider_of_another_chain_stops_the_start(nodes: list[ScriptedNode]) -> None:
    """A wrong chain id is fatal even where another provider is right."""
    nodes[1].methods["eth_chainId"] = lambda: "0x1"
    with pytest.raises(WrongChain, match=r"serves chain 1 and chain\.id is 31337"):
        await Pool.open([nodes[0].url, nodes[1].ws_url], 31337, 0.5)


async def test_no_provider_is_a_config_error() -> None:
    """An empty list is the operator's mistake, not the chain's."""
    with pytest.raises(ConfigError, match="rpc_urls is empty"):
        await Pool.open([], 31337, 0.5)


@pytest.mark.parametrize("failure", [HangUp, Silence])
async def test_a_failing_provider_is_passed_over_and_rests(
    nodes: list[ScriptedNode], opened: Pool, failure: Any
) -> None:
    """Lost connections and timeouts move on to the next, which is then asked first."""
    nodes[0].methods["who"] = failure
    assert await opened.run(who) == 1
    asked = nodes[0].asked("who")
    assert await opened.run(who) == 1
    assert nodes[0].asked("who") == asked


async def test_a_rested_provider_is_preferred_again(nodes: list[ScriptedNode]) -> None:
    """After its rest a provider is asked again by its place in the list; each failure in a row rests it longer."""
    now = [100.0]
    pool = await Pool.open([nodes[0].url, nodes[1].url], 31337, 0.5, clock=lambda: now[0])
    good, nodes[0].methods["who"] = nodes[0].methods["who"], HangUp
    assert await pool.run(who) == 1
    now[0] += 0.6
    assert await pool.run(who) == 1
    now[0] += 0.6
    nodes[0].methods["who"] = good
    assert await pool.run(who) == 1
    now[0] += 0.6
    assert await pool.run(who) == 0
    await pool.close()


async def test_a_dropped_connection_is_made_anew(nodes: list[ScriptedNode]) -> None:
    """A socket that died while idle costs nobody an error."""
    pool = await Pool.open([nodes[0].ws_url], 31337, 0.5)
    assert await pool.run(who) == 0
    await nodes[0].hang_up()
    assert await pool.run(who) == 0
    assert nodes[0].connections == 2
    await pool.close()


async def test_a_provider_that_comes_back_as_another_chain_is_not_used(nodes: list[ScriptedNode]) -> None:
    """The chain id is checked on every connection."""
    pool = await Pool.open([nodes[0].ipc_path], 31337, 0.5)
    nodes[0].methods["eth_chainId"] = lambda: "0x1"
    await nodes[0].hang_up()
    with pytest.raises(WrongChain):
        await pool.run(who)
    await pool.close()


async def test_a_refusal_is_taken_to_the_next_unless_code_failed(
    nodes: list[ScriptedNode], opened: Pool
) -> None:
    """What one node lacks another may have; what the chain's code refuses is final; nobody rests for either."""
    nodes[0].methods["who"] = refuse(-32000, "header not found")
    assert await opened.run(who) == 1
    nodes[0].methods["who"] = refuse(3, "execution reverted")
    with pytest.raises(RpcError, match="reverted"):
        await opened.run(who)
    nodes[0].methods["who"] = refuse(-32000, "nonce too low")
    with pytest.raises(RpcError, match="nonce too low"):
        await opened.run(who, insist=True)
    nodes[0].methods["who"] = lambda: 0
    assert await opened.run(who) == 0


async def test_the_first_refusal_is_told_when_all_fail(nodes: list[ScriptedNode], opened: Pool) -> None:
    """A node's own words tell more than another's silence."""
    nodes[0].methods["who"] = HangUp
    nodes[1].methods["who"] = refuse(-32000, "header not found")
    nodes[2].methods["who"] = HangUp
    with pytest.raises(RpcError, match="header not found"):
        await opened.run(who)


async def test_a_survey_hears_everybody(nodes: list[ScriptedNode], opened: Pool) -> None:
    """Failing and slow providers delay nobody, and are told from who answers."""
    nodes[0].methods["who"] = Silence
    nodes[1].methods["who"] = HangUp
    answers = [answer for _, answer, _ in await opened.survey(who, 0.1)]
    assert answers[2] == 2 and all(isinstance(answer, ChainError) for answer in answers[:2])
