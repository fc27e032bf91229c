"""Answers that make no sense: whatever a node says, an adapter raises AdapterError, refuses, or is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from random import Random
from typing import Any, Final

from keeper.errors import AdapterError
from keeper.seams import Adapter, Reads
from keeper.types import Question, Refusal, Result, Reverted

_MOST: Final = 20_000  # questions of one round: whoever asks more believes any length it is told
_WORD: Final = 32

Answers = Mapping[Question, Result]


def overheard(read: Reads[Any], heard: dict[Question, Result]) -> Reads[Any]:
    """The read, with every answer noted in `heard`."""
    given: Sequence[Result] | None = None
    while True:
        try:
            asked = read.send(given)  # type: ignore[arg-type]  # the first send of a generator is None
        except StopIteration as end:
            return end.value
        given = yield asked
        heard.update(zip(asked, given, strict=True))


def garbled(chance: Random, result: Result) -> Result:
    """An answer that is empty, cut, too long, a revert, all zeros, all ones, or wrong in one word."""
    if isinstance(result, Reverted) or not result:
        return chance.choice((b"", bytes(_WORD), b"\xff" * _WORD, Reverted(b"\x01")))
    at = chance.randrange(0, len(result), _WORD)
    word = chance.choice((bytes(_WORD), b"\xff" * _WORD, chance.randbytes(_WORD), _near(chance, result, at)))
    return chance.choice(
        (
            b"",
            result[: chance.randrange(len(result))],
            result + bytes(_WORD),
            Reverted(b"\x01"),
            bytes(len(result)),
            b"\xff" * len(result),
            result[:at] + word + result[at + _WORD :],
            result[:at] + word + result[at + _WORD :],
        )
    )


def believed(read: Reads[Any], answers: Answers, wrong: Answers) -> Any:
    """Run a read on recorded answers, some of them `wrong`; an address nobody asked before has no code."""
    given: Sequence[Result] | None = None
    while True:
        try:
            asked = read.send(given)  # type: ignore[arg-type]  # the first send of a generator is None
        except StopIteration as end:
            return end.value
        assert len(asked) < _MOST, f"{len(asked)} questions on the word of a node"
        given = [wrong.get(each, answers.get(each, b"")) for each in asked]


def stood(
    chance: Random,
    adapter: Adapter,
    read: Callable[[Adapter], Reads[Any]],
    answers: Answers,
    then: Callable[[Adapter, Any], object],
) -> str:
    """What an adapter makes of one garbled answer: `error`, `refused` or `taken`, which `then` must bear too.

    Any other exception than AdapterError is raised on.
    """
    question = chance.choice(list(answers))
    wrong = {question: garbled(chance, answers[question])}
    fresh = deepcopy(adapter)
    try:
        value = believed(read(fresh), answers, wrong)
        if isinstance(value, Refusal):
            return "refused"
        then(fresh, value)
    except AdapterError:
        return "error"
    return "taken"


def _near(chance: Random, result: bytes, at: int) -> bytes:
    word = int.from_bytes(result[at : at + _WORD]) ^ 1 << chance.randrange(256)
    return word.to_bytes(_WORD)
