"""Nodes under strain: one hears of every block a little later, one has too little memory for a multicall."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from keeper.chain.wire import failed_execution
from keeper.errors import ChainError, RpcError
from keeper.types import Call
from tests.scripted_node import Refuse
from tests.unit.test_chain_client import AT, POOL, CallNode, asking, chain_of


class LateNode(CallNode):
    """Does not know the block the first `refusals` times it is asked about it."""

    def __init__(self, folder: Path, refusals: int) -> None:
        super().__init__(folder, 100)
        answer = self.methods["eth_call"]

        def late(*arguments: object) -> object:
            nonlocal refusals
            refusals -= 1
            if refusals >= 0:
                raise Refuse(-32000, "header not found")
            return answer(*arguments)

        self.methods["eth_call"] = late


async def test_a_quorum_waits_for_the_later_node(tmp_path: Path) -> None:
    """A node two moments behind is waited for; one that never comes ends the read."""
    call = Call(POOL, b"\x01")
    async with AsyncExitStack() as stack:
        nodes = CallNode(tmp_path / "a", 100), LateNode(tmp_path / "b", 2)
        chain = await chain_of(stack, *nodes, quorum=2)
        assert await chain.read(asking(call), AT) == [call.data]
    async with AsyncExitStack() as stack:
        nodes = CallNode(tmp_path / "c", 100), LateNode(tmp_path / "d", 99)
        chain = await chain_of(stack, *nodes, quorum=2)
        with pytest.raises(ChainError, match="1 of the 2 providers"):
            await chain.read(asking(call), AT)


@pytest.mark.parametrize("word", ["MemoryOOG", "OutOfGas", "PrecompileOOG"])
def test_running_out_in_any_words_is_a_failed_execution(word: str) -> None:
    """What Anvil says when many quotes do not fit into one call: such a call is halved, and the head is not lost."""
    assert failed_execution(RpcError("eth_call", -32603, f"EVM error {word}"))
