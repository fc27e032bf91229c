"""PauseGuard's scopes as the chain has them at one block: anything but a clean answer is a `Refusal`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from keeper import abi
from keeper.errors import AdapterError
from keeper.seams import Reads
from keeper.types import GLOBAL_SCOPE, Address, BlockTime, Hash, Refusal, Reverted, hex_of

PAUSE_GUARD: Final = abi.load("PauseGuard")
_GLOBAL: Final = "global"


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope of PauseGuard as the chain has it (`PauseGuard.Scope`)."""

    paused: bool
    epoch: int
    paused_at_s: int
    unpause_at_s: int
    last_unpaused_at_s: int
    reason: str


@dataclass(frozen=True, slots=True)
class PauseState:
    """Every scope that matters, read at one block."""

    at: BlockTime
    scopes: Mapping[Hash, Scope]

    def paused(self) -> list[Hash]:
        """The scopes that are paused."""
        return [key for key, scope in self.scopes.items() if scope.paused]

    @property
    def global_scope(self) -> Scope:
        """The scope that stops everything."""
        return self.scopes[GLOBAL_SCOPE]


def scope_of(protocol: str) -> Hash:
    """PauseGuard's scope of a configured protocol: its name in ASCII, zero-padded, readable for signers."""
    return Hash(protocol.encode("ascii").ljust(32, b"\0"))


def read_scopes(pause_guard: Address, protocols: Sequence[str], at: BlockTime) -> Reads[PauseState | Refusal]:
    """Read the global scope and each protocol's at one block; anything but a clean answer is a Refusal."""
    function = PAUSE_GUARD.function("scopeStates")
    wanted = [GLOBAL_SCOPE, *(scope_of(name) for name in protocols)]
    [answer] = yield [function.call(pause_guard, wanted)]
    if isinstance(answer, Reverted):
        return Refusal("clear", "pause_unknown", {"error": hex_of(answer.data)})
    try:
        rows = function.one(answer)
    except AdapterError as error:
        return Refusal("clear", "pause_unknown", {"error": str(error)})
    if len(rows) != len(wanted):
        return Refusal("clear", "pause_unknown", {"scopes_read": len(rows), "scopes_wanted": len(wanted)})
    scopes = {
        scope: Scope(
            paused, epoch, paused_at, unpause_at, last, reason.rstrip(b"\0").decode("ascii", "replace")
        )
        for scope, (paused, epoch, paused_at, unpause_at, last, reason) in zip(wanted, rows, strict=True)
    }
    return PauseState(at, scopes)


def named(scope: Hash) -> str:
    """A scope as people and the ledger name it."""
    return scope.rstrip(b"\0").decode("ascii", "backslashreplace") or _GLOBAL


def scope_named(name: str) -> Hash:
    """The scope of that name; see `named`."""
    return GLOBAL_SCOPE if name == _GLOBAL else scope_of(name)
