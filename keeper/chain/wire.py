"""The shapes of JSON-RPC: questions, answers, hexadecimal values, and revert data wherever a node put it.

Parsed by msgspec, which keeps big integers exact, and only as deep as needed: a result stays raw bytes until its
reader decodes it into the shape it expects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from keeper.errors import ChainError, RpcError

T = TypeVar("T")

_HEX: Final = re.compile(r"0x((?:[0-9a-fA-F]{2})*)(?![0-9a-fA-F])")


class Failure(msgspec.Struct):
    """A JSON-RPC error object."""

    code: int = 0
    message: str = ""
    data: Any = None


class Notice(msgspec.Struct):
    """What a subscription pushes."""

    subscription: str
    result: msgspec.Raw


class Answer(msgspec.Struct):
    """One message of a node: an answer (with `id`) or a notification (with `params`)."""

    id: int | None = None
    result: msgspec.Raw = msgspec.Raw()
    error: Failure | None = None
    params: Notice | None = None


class Question(msgspec.Struct):
    """One request."""

    id: int
    method: str
    params: Sequence[Any]
    jsonrpc: str = "2.0"


ENCODE: Final = msgspec.json.Encoder().encode
ANSWER: Final = msgspec.json.Decoder(Answer)
ANSWERS: Final = msgspec.json.Decoder(list[Answer])
ANYTHING: Final = msgspec.json.Decoder(Any)
TEXT: Final = msgspec.json.Decoder(str)


def quantity(text: str) -> int:
    """A JSON-RPC quantity as a number. Raises `ValueError`."""
    number = int(text, 16)
    if number < 0 or not text.startswith("0x"):
        raise ValueError(f"{text!r} is not a quantity")
    return number


def data(text: str) -> bytes:
    """JSON-RPC data as bytes. Raises `ValueError`."""
    if not text.startswith("0x"):
        raise ValueError(f"{text[:20]!r} is not hexadecimal data")
    return bytes.fromhex(text[2:])


def decode(decoder: msgspec.json.Decoder[T], raw: bytes | msgspec.Raw, label: str, what: str) -> T:
    """Parse an answer; anything but the shape `decoder` expects is a `ChainError` naming the provider."""
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ChainError(f"{label} answered {what} with what is not an answer: {error}.") from error


def result_of(answer: Answer, method: str, label: str) -> msgspec.Raw:
    """The undecoded result. Raises `RpcError` for an answered refusal, `ChainError` for an answer without content."""
    if answer.error is not None:
        raise RpcError(method, answer.error.code, answer.error.message, _revert_data(answer.error.data))
    if not answer.result:
        raise ChainError(f"{label} answered {method} with neither a result nor an error.")
    return answer.result


def outcome_of(answer: Answer, method: str, label: str) -> msgspec.Raw | RpcError:
    """Like `result_of`, with an answered refusal as a value."""
    try:
        return result_of(answer, method, label)
    except RpcError as error:
        return error


def _revert_data(found: Any) -> bytes:
    """Revert data in an error's `data`; empty where there is none.

    Geth, Reth and Anvil answer `"0x…"`, Parity's heirs `"Reverted 0x…"`; Hardhat, Ganache and proxies answer an
    object with it under `data`, `return` or `result`, or further inside.
    """
    if isinstance(found, str):
        match = _HEX.search(found)
        return bytes.fromhex(match[1]) if match else b""
    if not isinstance(found, Mapping):
        return b""
    named = [found[key] for key in ("data", "return", "result") if key in found]
    # other strings beside it may be hexadecimal too: a transaction's hash, say
    nested = [value for value in found.values() if isinstance(value, Mapping)]
    return next(filter(None, map(_revert_data, named + nested)), b"")
