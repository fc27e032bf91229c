"""The gate: which scopes are stopped, by what, and what opens each again. Closing is one synchronous step.

| cause | closes | opens |
|---|---|---|
| `halted` | the halt file is there | it is gone |
| `pending` | a pause waits in the pool | the chain has it, or 3 blocks passed without it |
| `signed` | a guardian handed over a signed message | the chain has it, or an unpause came after it |
| `chain` | a head says so | an unpause is as many blocks deep as is configured |
| `lost` | the chain lost a pause, or will not take one | it is there, or unpaused later; a person clears `pause_lost` |

A pause therefore counts at zero confirmations and whoever tells of it. An unpause is told from a pause that was
orphaned by the epoch, which grows only when a scope is unpaused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keeper.guard.message import SignedPause, Verdict
from keeper.guard.scopes import PauseState, Scope, scope_named, scope_of
from keeper.ledger import Booked
from keeper.types import GLOBAL_SCOPE, BlockNumber, Hash, Refusal, hex_of

STOPPED: Final = ("halted", "paused", "unpause_not_final")  # refusals under which nothing is left in flight
PROVISIONAL_BLOCKS: Final = 3
_BOOKED: Final = ("scope", "cause", "head", "carried_by")  # what an entry says besides a cause's own numbers
_DECISIVE: Final = (
    "epoch",
    "message",
)  # by which a later unpause is told from an earlier one, also after a restart


@dataclass(frozen=True, slots=True)
class Change:
    """One cause that closed a scope or no longer does, for the ledger; `at_s` is the monotonic clock's."""

    kind: str  # `pause` or `resume`
    scope: Hash
    cause: str
    body: Mapping[str, Any]
    at_s: float = field(default_factory=time.monotonic)


class Gate:
    """What stands between a cleared plan and the key. Everything here is memory; `changes` are the ledger's to keep."""

    def __init__(self, halt_file: Path, unpause_confirmations: int) -> None:
        self.unpause_confirmations: Final = unpause_confirmations
        self.shut = asyncio.Event()  # something closed that was open, since this was last cleared
        self.changes: list[Change] = []  # not booked yet
        self.carriers: dict[Hash, tuple[bytes, ...]] = {}  # signed transactions that carried a scope's pause
        self.messages: dict[Hash, SignedPause] = {}  # a guardian's words, until an unpause is final
        self._halt_file = halt_file
        self._halted = False
        self._closed: dict[tuple[Hash, str], dict[str, Any]] = {}
        self._final: set[tuple[Hash, int]] = set()  # unpauses, by scope and time

    # --- what is asked before anything is signed ---

    def standing(self, protocol: str) -> Refusal | None:
        """Why nothing of `protocol` may be signed now, or None."""
        if self.look_for_halt_file():
            return Refusal("clear", "halted", {"halt_file": str(self._halt_file)})
        if not self._closed:
            return None
        for name, scope in (("global", GLOBAL_SCOPE), (protocol, scope_of(protocol))):
            for (closed, cause), numbers in self._closed.items():
                if closed == scope:
                    reason = "unpause_not_final" if "unpaused_at_s" in numbers else "paused"
                    shown = {key: value for key, value in numbers.items() if key != "message"}
                    return Refusal("clear", reason, {"scope": name, "cause": cause, **shown})
        return None

    def closed(self, cause: str) -> list[Hash]:
        """The scopes that this cause closes."""
        return [scope for scope, why in self._closed if why == cause]

    def epochs(self) -> dict[Hash, int]:
        """The epoch of each pause that the chain has, by scope."""
        return {scope: why["epoch"] for (scope, cause), why in self._closed.items() if cause == "chain"}

    # --- what closes it, and opens it again ---

    def look_for_halt_file(self) -> bool:
        """Whether the halt file is there; to be asked between heads too, because nobody announces it."""
        try:
            there = self._halt_file.exists()
        except OSError:
            there = True  # nobody can tell
        if there != self._halted:
            self._halted = there
            kind = "pause" if there else "resume"
            body = {"halt_file": str(self._halt_file)}
            self.changes.append(Change(kind, GLOBAL_SCOPE, "halted", body))
            if there:
                self.shut.set()
        return there

    def see_pending(self, scope: Hash, transaction: Hash, head: BlockNumber | None) -> None:
        """A transaction that would pause `scope` waits in the pool; `head` is the newest one that is known."""
        lifts_after = None if head is None else head + PROVISIONAL_BLOCKS
        self._close(scope, "pending", {"tx": hex_of(transaction), "lifts_after": lifts_after})

    def see_signed(self, message: SignedPause, verdict: Verdict) -> None:
        """A guardian says so, and proved who it is; the chain may have to be told."""
        self.messages[message.scope] = message
        if verdict.told:
            numbers = {"message": message.document(), "vetoes": verdict.vetoes, "block": verdict.block}
            self._close(message.scope, "signed", numbers)

    def see_chain(self, pause: PauseState) -> None:
        """Take in what the chain says at a head; an unpause only `see_final` believes."""
        head = pause.at.number
        for scope, state in pause.scopes.items():
            known = self._closed.get((scope, "chain"))
            if state.paused:
                self._close(scope, "chain", _of(state))
                signed = self._closed.get((scope, "signed"), {})
                vetoing = bool(state.unpause_at_s) and signed.get("vetoes") is True
                earlier = head < signed.get("block", 0)  # asked before it was said: no answer to it
                for cause in ("pending", "lost") if vetoing or earlier else ("pending", "lost", "signed"):
                    self._open(scope, cause, {"head": head})
                continue
            if known is not None and state.epoch <= known["epoch"]:
                known.pop("unpaused_at_s", None)
                self._close(scope, "lost", {"epoch": known["epoch"]})
            self._lift(scope, head)

    def see_final(self, pause: PauseState, after_s: int | None) -> None:
        """Every unpause before `after_s` is final; None: every one that there is."""
        for scope, state in pause.scopes.items():
            if state.paused or not state.last_unpaused_at_s:
                continue
            unpause = (scope, state.last_unpaused_at_s)
            if after_s is None or state.last_unpaused_at_s < after_s:
                self._final.add(unpause)
            known = self._closed.get((scope, "chain"))
            if unpause not in self._final:
                since = known or {"epoch": state.epoch - 1}
                self._close(scope, "chain", {**since, "unpaused_at_s": state.last_unpaused_at_s})
            elif known is None or state.epoch > known["epoch"]:
                numbers = {"head": pause.at.number, "epoch": state.epoch}
                self._open(scope, "chain", numbers)
                self.carriers.pop(scope, None)
                refused = self._closed.get((scope, "lost"), {}).get("message")
                if refused is None or int(refused["issued_at"]) <= state.last_unpaused_at_s:
                    self._open(scope, "lost", numbers)  # but not by an unpause from before those words
                message = self.messages.get(scope)
                if message is not None and message.issued_at_s <= state.last_unpaused_at_s:
                    self._open(scope, "signed", numbers)  # said before the unpause: dead, as in the contract
                    del self.messages[scope]

    def unsettled(self, pause: PauseState) -> bool:
        """Whether there is an unpause that `see_final` has to judge."""
        return any(
            not state.paused
            and state.last_unpaused_at_s
            and ((scope, "chain") in self._closed or (scope, state.last_unpaused_at_s) not in self._final)
            for scope, state in pause.scopes.items()
        )

    def carried(self, scope: Hash, raw: bytes) -> None:
        """The chain has this scope's pause from a transaction whose signed bytes are `raw`; empty where unknown."""
        if raw:
            self.carriers[scope] = (*self.carriers.get(scope, ()), raw)
            body = {**self._closed[scope, "chain"], "carried_by": list(self.carriers[scope])}
            self.changes.append(Change("pause", scope, "chain", body))

    def give_up(self, scope: Hash, why: str) -> None:
        """The chain does not take a guardian's words: a person must look."""
        message = self.messages.pop(scope, None)
        if message is not None and (scope, "signed") in self._closed:
            self._close(scope, "lost", {"error": why, "message": message.document()})
            self._open(scope, "signed", {})

    def remember(self, entries: Iterable[Booked]) -> None:
        """Close what an earlier run left closed, from its `pause` and `resume` entries, oldest first."""
        for entry in entries:
            body = entry.body
            if "cause" not in body:
                continue
            if body["cause"] == "halted":
                self._halted = entry.kind == "pause"  # the next look books what has changed since
                continue
            scope, cause = scope_named(str(body["scope"])), str(body["cause"])
            if entry.kind == "resume":
                self._forget(scope, cause, *(("chain",) if body.get("by") == "person" else ()))
                continue
            kept = {name: value for name, value in body.items() if name not in _BOOKED}
            if cause == "pending":
                kept["lifts_after"] = None  # from the first head on
            if cause == "signed":
                self.messages[scope] = SignedPause.of(kept["message"])
            elif cause == "lost" and "error" in kept:
                self.messages.pop(scope, None)  # the chain would not take it
            if "carried_by" in body:
                self.carriers[scope] = tuple(bytes.fromhex(raw[2:]) for raw in body["carried_by"])
            self._closed[scope, cause] = kept

    def _lift(self, scope: Hash, head: BlockNumber) -> None:
        pending = self._closed.get((scope, "pending"))
        if pending is not None:
            if pending["lifts_after"] is None:
                pending["lifts_after"] = head + PROVISIONAL_BLOCKS
            if head >= pending["lifts_after"]:
                self._open(scope, "pending", {"head": head})

    def _close(self, scope: Hash, cause: str, numbers: dict[str, Any]) -> None:
        known = self._closed.get((scope, cause))
        self._closed[scope, cause] = numbers
        if known is None or any(known.get(name) != numbers.get(name) for name in _DECISIVE):
            self.changes.append(Change("pause", scope, cause, dict(numbers)))
            self.shut.set()

    def _open(self, scope: Hash, cause: str, numbers: dict[str, Any]) -> None:
        if self._closed.pop((scope, cause), None) is not None:
            self.changes.append(Change("resume", scope, cause, numbers))

    def _forget(self, scope: Hash, *causes: str) -> None:
        for cause in causes:
            self._closed.pop((scope, cause), None)
        if "chain" in causes:
            self.carriers.pop(scope, None)
            if (scope, "signed") not in self._closed:
                self.messages.pop(scope, None)


def _of(state: Scope) -> dict[str, Any]:
    return {"epoch": state.epoch, "paused_at_s": state.paused_at_s, "pause_reason": state.reason}
