"""Which scopes a transaction would pause: direct calls of PauseGuard, and whatever a Safe carries to it.

Only what it says; whether it would succeed is for the chain to answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from keeper import abi
from keeper.errors import AdapterError
from keeper.guard.scopes import PAUSE_GUARD
from keeper.types import Address, Hash

_PAUSES: Final = tuple(PAUSE_GUARD.function(name) for name in ("pause", "pauseBySig"))
_EXEC: Final = abi.load("Safe").function("execTransaction")
_MULTI_SEND: Final = abi.load("MultiSend").function("multiSend")
_DEEPEST: Final = 4  # Safes inside batches inside Safes
_HEADER: Final = 1 + 20 + 32 + 32  # of one call in a batch: operation, target, value, length of data


class Inner(NamedTuple):
    """One call of a batch, which begins at byte `at`; not `whole` where it runs over the end."""

    at: int
    operation: int
    to: Address
    value_wei: int
    data: bytes
    whole: bool


def paused_by(to: Address, data: bytes, pause_guard: Address) -> set[Hash]:
    """The scopes that a call of `to` with `data` would pause; empty for anything else, malformed included."""
    return set(_scopes(to, data, pause_guard, _DEEPEST))


def _scopes(to: Address, data: bytes, pause_guard: Address, depth: int) -> Iterator[Hash]:
    selector = data[:4]
    try:
        if to == pause_guard:
            for function in _PAUSES:
                if selector == function.selector:
                    yield Hash(function.decode_input(data)[0])
        elif depth and selector == _EXEC.selector:
            target, _, inner, *_ = _EXEC.decode_input(data)
            yield from _scopes(Address(target), inner, pause_guard, depth - 1)
        elif depth and selector == _MULTI_SEND.selector:
            for call in batched(_MULTI_SEND.decode_input(data)[0]):
                yield from _scopes(call.to, call.data, pause_guard, depth - 1)
    except AdapterError:
        return  # the contracts would not read it either


def batched(packed: bytes) -> Iterator[Inner]:
    """MultiSend's packed calls in order, as far as they go."""
    at = 0
    while at < len(packed):
        begins = at + _HEADER
        ends = begins + int.from_bytes(packed[begins - 32 : begins])
        to, value_wei = Address(packed[at + 1 : at + 21]), int.from_bytes(packed[at + 21 : at + 53])
        yield Inner(at, packed[at], to, value_wei, packed[begins:ends], ends <= len(packed))
        at = ends
