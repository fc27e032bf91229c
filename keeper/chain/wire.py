"""The shapes of JSON-RPC: questions, answers, hexadecimal values, and revert data wherever a node put it.

Parsed by msgspec, which keeps big integers exact, and only as deep as needed: a result stays raw bytes until its
reader decodes it into the shape it expects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec

from keeper.errors import ChainError, RpcError
from keeper.fixed import MAX_UINT256
from keeper.types import Address, Hash

T = TypeVar("T")

_HEX: Final = re.compile(r"0x((?:[0-9a-fA-F]{2})*)(?![0-9a-fA-F])")
_EXECUTION_REVERTED: Final = 3  # Geth's code for a revert, taken over by the others
_NOT_EXECUTED: Final = frozenset(
    {-32700, -32600, -32601, -32602}
)  # JSON-RPC's parse error … invalid parameters
_MOST_COUNTED: Final = 2**63 - 1
_DATA: Final = ("data", "return", "result")  # what an error may keep revert data under
_FAILED_EXECUTION: Final = re.compile(
    r"revert|out ?of ?gas|OOG|opcode|invalid ?jump|stack ?(under|over)flow|bad (jump|instruction)",
    re.IGNORECASE,
)

_RATE_LIMITED: Final = re.compile(
    r"rate.?limit|too many requests|per second|throttl|capacity (limit|exceeded)|exceeded .*capacity",
    re.IGNORECASE,
)
_TOO_MANY_REQUESTS: Final = 429  # HTTP's status, which some nodes use as a JSON-RPC code

_KNOWN_TRANSACTION: Final = re.compile(
    r"already ?(known|imported)|known transaction|existing txn? with same hash", re.IGNORECASE
)

UNREADABLE: Final = (
    ValueError,
    RecursionError,
)  # msgspec's own errors are ValueErrors; nesting may be hostile


class Lacking(ChainError):
    """A healthy node does not have what it was asked for, perhaps not yet."""


class TimedOut(ChainError):
    """A node did not answer in time: what it was asked may be too much, or it may be gone."""


class RateLimited(ChainError):
    """A node wants to be asked less; `retry_after_s` is how long it asked to be left alone, where it said so."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


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


def _remembering(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Logs come by the ten thousand and repeat their addresses, topics and blocks: parse each text once."""
    return lru_cache(maxsize=4096)(parse)


@_remembering
def quantity(text: str) -> int:
    """A JSON-RPC quantity as a number of at most 256 bits. Raises `ValueError`."""
    number = int(text, 16)
    if not 0 <= number <= MAX_UINT256 or not text.startswith("0x"):
        raise ValueError(f"{text[:80]!r} is not a quantity")
    return number


def count(text: str) -> int:
    """A quantity that the record has a column of 63 bits for. Raises `ValueError`."""
    number = quantity(text)
    if number > _MOST_COUNTED:
        raise ValueError(f"{text!r} is more than there can be")
    return number


def data(text: str) -> bytes:
    """JSON-RPC data as bytes. Raises `ValueError`."""
    if not text.startswith("0x"):
        raise ValueError(f"{text[:20]!r} is not hexadecimal data")
    return bytes.fromhex(text[2:])


@_remembering
def hash_of(text: str) -> Hash:
    """A block or transaction hash or a topic as 32 bytes. Raises `ValueError`."""
    value = data(text)
    if len(value) != 32:
        raise ValueError(f"{text[:80]!r} is not a hash")
    return Hash(value)


@_remembering
def address_of(text: str) -> Address:
    """An address as 20 bytes; a node's own need no checksum. Raises `ValueError`."""
    value = data(text)
    if len(value) != 20:
        raise ValueError(f"{text[:80]!r} is not an address")
    return Address(value)


@contextmanager
def reading(label: str, what: str) -> Iterator[None]:
    """Turn a value that cannot be parsed into a `ChainError` naming the provider."""
    try:
        yield
    except UNREADABLE as error:
        raise ChainError(f"{label} answered {what} with what is not an answer: {error}.") from error


def failed_execution(error: RpcError) -> bool:
    """Whether a node ran the code it was given and the code failed, rather than the node."""
    if error.code == _EXECUTION_REVERTED:
        return True
    return error.code not in _NOT_EXECUTED and _FAILED_EXECUTION.search(error.message) is not None


def already_known(error: RpcError) -> bool:
    """Whether a node refused a transaction only because it has it."""
    return _KNOWN_TRANSACTION.search(error.message) is not None


def decode(decoder: msgspec.json.Decoder[T], raw: bytes | msgspec.Raw, label: str, what: str) -> T:
    """Parse an answer; anything but the shape `decoder` expects is a `ChainError` naming the provider."""
    try:
        return decoder.decode(raw)
    except UNREADABLE as error:
        raise ChainError(f"{label} answered {what} with what is not an answer: {error}.") from error


def result_of(answer: Answer, method: str, label: str) -> msgspec.Raw:
    """The undecoded result. Raises `RpcError` for an answered refusal, `RateLimited` for one that asks for patience,
    `ChainError` for an answer without content.
    """
    if answer.error is not None:
        error = RpcError(method, answer.error.code, answer.error.message, revert_data(answer.error.data))
        if _asks_for_less(error):
            raise RateLimited(f"{label} limits how often it is asked: {error.message}.")
        raise error
    if not answer.result:
        raise ChainError(f"{label} answered {method} with neither a result nor an error.")
    return answer.result


def _asks_for_less(error: RpcError) -> bool:
    limited = error.code == _TOO_MANY_REQUESTS or _RATE_LIMITED.search(error.message) is not None
    return limited and not failed_execution(error)  # a contract may revert with such words


def outcome_of(answer: Answer, method: str, label: str) -> msgspec.Raw | RpcError:
    """Like `result_of`, with an answered refusal as a value."""
    try:
        return result_of(answer, method, label)
    except RpcError as error:
        return error


def revert_data(found: Any) -> bytes:
    """Revert data in an error's `data`; empty where there is none.

    Geth, Reth and Anvil answer `"0x…"`, Parity's heirs `"Reverted 0x…"`; Hardhat, Ganache and proxies answer an
    object with it under `data`, `return` or `result`, or further inside.
    """
    left = [found]
    while left:
        one = left.pop()
        if isinstance(one, str):
            match = _HEX.search(one)
            if match and match[1]:
                return bytes.fromhex(match[1])
        elif isinstance(one, Mapping):
            # other strings beside it may be hexadecimal too: a transaction's hash, say
            nested = [value for key, value in one.items() if key not in _DATA and isinstance(value, Mapping)]
            left += reversed([*(one[key] for key in _DATA if key in one), *nested])
    return b""
