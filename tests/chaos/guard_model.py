"""What a keeper must be stopped by, worked out from what was done to it and to the chain, without a line of its guard.

The chain's word is what the chain said itself at each block. What the keeper was told or could read is remembered as
long as it has to remember it; where a death may have taken a memory away, nothing is asked of it any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from keeper.types import Hash

CONFIRMATIONS: Final = 2  # that an unpause needs
MAX_HEAD_AGE_S: Final = 60
_PROVISIONAL_BLOCKS: Final = 3
CAUSES: Final = ("chain", "lost", "pending", "signed")
Place = tuple[Hash, str]  # a scope and what closes it


class Scope(NamedTuple):
    """One scope of PauseGuard."""

    paused: bool
    epoch: int
    unpause_at_s: int
    last_unpaused_at_s: int


@dataclass(frozen=True, slots=True)
class Block:
    """A block as the chain has it."""

    number: int
    hash: Hash
    parent: Hash
    time_s: int
    scopes: Mapping[Hash, Scope]
    guardians: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Closed:
    """Why a scope must be closed. Where it is not `certain` the keeper may have forgotten it.

    `epoch` is of a pause the chain had; `issued_at_s` of a guardian's word, which `vetoes` a schedule; `lifts_at` the
    block at which a pause that only waits is forgotten, None until the next head.
    """

    certain: bool = True
    epoch: int = 0
    issued_at_s: int = 0
    vetoes: bool = False
    lifts_at: int | None = None


@dataclass(slots=True)
class Model:
    """What one keeper was told since its record began."""

    blocks: dict[Hash, Block] = field(default_factory=dict)
    closed: dict[Place, Closed] = field(default_factory=dict)
    doubted: dict[Place, int | None] = field(default_factory=dict)  # it may be closed too, up to this block
    resumed: dict[Hash, int] = field(default_factory=dict)  # by scope, how many signatures there were before
    signatures: int = 0

    # --- what it is told ---

    def wait(self, scope: Hash, head: int, *, certain: bool) -> None:
        """A pause waits in the pool and was shown; `head` is the newest block that it handled."""
        self.closed[scope, "pending"] = Closed(certain, lifts_at=head + _PROVISIONAL_BLOCKS)

    def say(self, scope: Hash, issued_at_s: int, at: Block) -> None:
        """A guardian's word was accepted, judged at a block."""
        state = at.scopes[scope]
        vetoes = bool(state.unpause_at_s) and issued_at_s >= state.unpause_at_s - UNPAUSE_DELAY_S
        if not state.paused or vetoes:
            self.closed[scope, "signed"] = Closed(issued_at_s=issued_at_s, vetoes=vetoes)

    def refuse(self, scope: Hash) -> None:
        """The chain did not take a guardian's word."""
        word = self.closed.pop((scope, "signed"), None)
        if word is not None:
            self.closed[scope, "lost"] = replace(word, epoch=-1)

    def let_go(self, scope: Hash) -> None:
        """A person cleared what was lost."""
        if self.closed.pop((scope, "lost"), None) is not None:
            self.closed.pop((scope, "chain"), None)
            self.resumed[scope] = self.signatures

    def doubt(self, scope: Hash, cause: str = "pending") -> None:
        """Something may close a scope, or have closed it, that nobody can tell for certain."""
        self.doubted[scope, cause] = None

    def take(self, head: Block) -> None:
        """It read what the chain says at a head, but not yet whether an unpause is final."""
        for place, until in list(self.doubted.items()):
            if until is None:
                self.doubted[place] = head.number + _PROVISIONAL_BLOCKS
            elif place[1] == "pending" and head.number > until:
                del self.doubted[place]
        for scope, state in head.scopes.items():
            if state.paused:
                self.closed[scope, "chain"] = Closed(epoch=state.epoch)
                word = self.closed.get((scope, "signed"), Closed())
                if not state.unpause_at_s:
                    for cause in ("signed", "lost"):
                        self.doubted.pop((scope, cause), None)
                self._open(
                    scope, "pending", "lost", *(() if word.vetoes and state.unpause_at_s else ("signed",))
                )
                continue
            known = self.closed.get((scope, "chain"))
            if known is not None and state.epoch <= known.epoch:
                self.closed[scope, "lost"] = known
            pending = self.closed.get((scope, "pending"))
            if pending is not None:
                lifts_at = head.number + _PROVISIONAL_BLOCKS if pending.lifts_at is None else pending.lifts_at
                self.closed[scope, "pending"] = replace(pending, lifts_at=lifts_at)
                if head.number >= lifts_at:
                    self._open(scope, "pending")

    def finish(self, head: Block) -> None:
        """It also asked which unpauses are final."""
        for scope, state in head.scopes.items():
            if state.paused or not state.last_unpaused_at_s:
                continue
            known, lost = self.closed.get((scope, "chain")), self.closed.get((scope, "lost"))
            if not self.final(scope, head):
                self.closed.setdefault((scope, "chain"), Closed(epoch=state.epoch - 1))
            elif known is None or state.epoch > known.epoch:
                if known is not None:
                    self._open(scope, "chain")
                    self.resumed[scope] = self.signatures
                word = self.closed.get((scope, "signed"))
                if word is not None and word.issued_at_s <= state.last_unpaused_at_s:
                    self._open(scope, "signed")
                if lost is not None and (lost.epoch >= 0 or lost.issued_at_s <= state.last_unpaused_at_s):
                    self._open(scope, "lost")

    def restart(self) -> None:
        """It begins again from its record."""
        self.doubted = dict.fromkeys(self.doubted)
        for place, why in self.closed.items():
            if place[1] == "pending":
                self.closed[place] = replace(why, lifts_at=None)

    def die(self, before: Mapping[Place, Closed]) -> None:
        """It ended where what changed since `before` may not have been on record."""
        for place in self.closed.keys() | before.keys():
            if self.closed.get(place) != before.get(place):
                self.closed[place] = replace(self.closed.get(place) or before[place], certain=False)
        self.restart()

    # --- what follows ---

    def final(self, scope: Hash, head: Block) -> bool:
        """Whether the last unpause is as deep below `head` as it must be; what was before the test is."""
        last, at = head.scopes[scope].last_unpaused_at_s, head
        while (before := self.blocks.get(at.parent)) is not None:
            if before.scopes[scope].last_unpaused_at_s != last:
                return head.number - at.number >= CONFIRMATIONS
            at = before
        return True

    def told(self) -> list[str]:
        """What it was told without the chain that closes it."""
        return [
            f"{cause} {scope!r}"
            for (scope, cause), why in self.closed.items()
            if why.certain and cause != "chain"
        ]

    def walls(self, head: Block, now_s: float, *, halted: bool) -> list[str]:
        """Everything that says stop to whoever handles `head`."""
        found = ["halted"] if halted else []
        for scope, state in head.scopes.items():
            if state.paused:
                found.append(f"the chain has {scope!r} paused")
            elif state.last_unpaused_at_s and not self.final(scope, head):
                found.append(f"the unpause of {scope!r} is not final")
        found += [f"{cause} {scope!r}" for (scope, cause), why in self.closed.items() if why.certain]
        if now_s - head.time_s > MAX_HEAD_AGE_S:
            found.append(f"the head is {now_s - head.time_s:.0f} s old")
        return found

    def _open(self, scope: Hash, *causes: str) -> None:
        for cause in causes:
            self.closed.pop((scope, cause), None)


UNPAUSE_DELAY_S: Final = 30
