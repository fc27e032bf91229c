from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keeper import abi
from keeper.chain.reads import decode_aggregate3, drive, encode_aggregate3
from keeper.errors import AdapterError, ChainError, RpcError
from keeper.seams import Reads, just
from keeper.types import Address, Call, Question, Result, Reverted

AGGREGATE3 = abi.load("Multicall3").function("aggregate3")
TARGET = Address(b"\x11" * 20)

calls_of = st.lists(
    st.builds(Call, st.binary(min_size=20, max_size=20).map(Address), st.binary(max_size=100)), max_size=8
)


def number(value: int) -> Call:
    """A call that the fake chain answers with this number."""
    return Call(TARGET, value.to_bytes(32, "big"))


class Echo:
    """Answers every call with its own calldata and remembers the rounds."""

    def __init__(self) -> None:
        self.rounds: list[int] = []

    async def __call__(self, questions: Sequence[Question]) -> Sequence[Result]:
        """Answer one round."""
        self.rounds.append(len(questions))
        return [question.data if isinstance(question, Call) else question.key for question in questions]


def summing(*rounds: Sequence[int]) -> Reads[int]:
    """Read some numbers per round and add them all up."""
    total = 0
    for values in rounds:
        results = yield [number(value) for value in values]
        assert len(results) == len(values)
        total += sum(int.from_bytes(result, "big") for result in results if isinstance(result, bytes))
    return total


async def test_rounds_of_all_reads_share_requests() -> None:
    """Reads of different lengths are answered in one request per round, each with its own results."""
    echo = Echo()
    reads: list[Reads[Any]] = [
        summing([1, 2], [3]),
        summing([10]),
        just("at once"),
        summing([], [100, 200], [5]),
    ]
    assert await drive(reads, echo) == [6, 10, "at once", 305]
    assert echo.rounds == [3, 3, 1]


async def test_a_round_without_calls_asks_nobody() -> None:
    """Nothing is requested when nothing is to be read."""
    echo = Echo()
    assert await drive([summing([]), just(1)], echo) == [0, 1]
    assert await drive([], echo) == []
    assert echo.rounds == []


async def test_an_error_ends_every_read() -> None:
    """When one read or the chain fails, the error surfaces and all generators are closed."""
    closed: list[str] = []

    def watched(name: str, *, fails: bool) -> Reads[None]:
        try:
            yield [number(1)]
            if fails:
                raise AdapterError("cannot read it")
            yield [number(2)]
        finally:
            closed.append(name)

    with pytest.raises(AdapterError, match="cannot read it"):
        await drive([watched("a", fails=False), watched("b", fails=True), watched("c", fails=False)], Echo())
    assert sorted(closed) == ["a", "b", "c"]

    async def broken(_: Sequence[Question]) -> Sequence[Result]:
        raise ChainError("gone")

    closed.clear()
    with pytest.raises(ChainError, match="gone"):
        await drive([watched("a", fails=False)], broken)
    assert closed == ["a"]


@given(calls_of)
def test_requests_are_encoded_as_the_abi_says(calls: list[Call]) -> None:
    """The written-out encoder equals the general codec for any calls."""
    assert encode_aggregate3(calls) == AGGREGATE3.encode([(call.to, True, call.data) for call in calls])


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=100)), max_size=8), st.data())
def test_results_are_decoded_as_the_abi_says(results: list[tuple[bool, bytes]], data: st.DataObject) -> None:
    """Return data of any results decodes to them; cut short or counted wrong it is refused."""
    parts = abi.Abi.from_json(
        [
            {
                "type": "constructor",
                "inputs": [
                    {
                        "name": "",
                        "type": "tuple[]",
                        "components": [{"name": "", "type": "bool"}, {"name": "", "type": "bytes"}],
                    }
                ],
            }
        ]
    )
    returned = parts.constructor(results)
    expected = [body if success else Reverted(body) for success, body in results]
    assert decode_aggregate3(returned, len(results)) == expected
    with pytest.raises(ValueError, match=r"results|bytes"):
        decode_aggregate3(returned, len(results) + 1)
    if results:
        padding = -len(results[-1][1]) % 32
        cut = data.draw(st.integers(1, len(returned) - padding))
        with pytest.raises(ValueError, match=r"result|bytes"):
            decode_aggregate3(returned[: len(returned) - padding - cut], len(results))


def test_what_multicall3_cannot_have_said_is_refused() -> None:
    """No code, a success flag that is no boolean and offsets out of bounds are errors, never results."""
    good = bytearray(b"".join(word.to_bytes(32, "big") for word in (0x20, 1, 0x20, 1, 0x40, 0)))
    assert decode_aggregate3(bytes(good), 1) == [b""]
    for place, value in [(31, 0), (127, 2), (95, 255), (64, 255), (159, 255), (128, 1), (191, 1)]:
        bad = bytearray(good)
        bad[place] = value
        with pytest.raises(ValueError, match=r"result|bytes"):
            decode_aggregate3(bytes(bad), 1)
    with pytest.raises(ValueError, match="0 bytes"):
        decode_aggregate3(b"", 1)


def test_rpc_errors_are_chain_errors() -> None:
    """Whoever stops at `ChainError` stops at a node's refusal too."""
    assert issubclass(RpcError, ChainError)
