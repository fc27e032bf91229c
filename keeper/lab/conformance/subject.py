"""What the author of a protocol writes so that its adapter can be held to the chain."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from keeper.lab.world import Lab
from keeper.types import Address, Health

Act = Callable[[Address], Awaitable[object]]
Figures = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Told:
    """What the protocol's contracts say of one open position at the head.

    `figures` are compared, name by name, with `Subject.figures` of the adapter's health: equal to the last digit.
    `liquidatable` is None where the contracts revert instead of judging it; the adapter must then refuse to.
    """

    liquidatable: bool | None
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stop:
    """A way in which the protocol itself stops liquidations of an account, and the refusal that must come of it.

    `stage` and `reason` are the refusal's; the last of `acts` does it, those before prepare it.
    """

    acts: Sequence[Act]
    stage: str
    reason: str


class Subject(Protocol):
    """One protocol on a running lab, with its real bytecode.

    Accounts are those of `PositionKey`s: whatever 20 bytes the adapter knows a position by. `lab` ticks a second a
    block and is put back between checks, so a subject keeps nothing in memory that a check changes on the chain.
    """

    lab: Lab
    table: str  # its part of `keeper.toml`; empty where the lab's own has it
    name: str  # of the adapter that table makes
    events: Mapping[str, Sequence[Act]]  # for each event that touches an account: steps, whose last emits it
    stops: Mapping[str, Stop]  # its own pause, where it has one, and a stale price

    async def populate(self, chance: Random, count: int) -> Sequence[Address]:
        """Open that many random positions, on either side, small and large; their accounts."""
        ...

    async def disturb(self, chance: Random, accounts: Sequence[Address]) -> None:
        """Move prices, let time pass, and let some accounts trade; over a few calls some must become unsafe."""
        ...

    async def open_one(self) -> Address:
        """Open one sound position of a size whose liquidation pays well; its account."""
        ...

    async def make_unsafe(self, account: Address) -> None:
        """Move prices until that position may be liquidated at a profit, and nobody else's need be."""
        ...

    async def told(self, account: Address) -> Told | None:
        """What the contracts say of an account; None where it has no position."""
        ...

    def figures(self, health: Health) -> Figures:
        """The adapter's figures under the names that `told` gives them."""
        ...


@dataclass(slots=True)
class Seen:
    """What a check came across, so that none passes by having looked at nothing."""

    counts: dict[str, int] = field(default_factory=dict)

    def note(self, kind: str, *, when: bool = True) -> None:
        """Count one of a kind."""
        self.counts[kind] = self.counts.get(kind, 0) + when

    def require(self, *kinds: str) -> None:
        """Raises AssertionError naming the first kind that was never met."""
        for kind in kinds:
            assert self.counts.get(kind), f"The subject showed no {kind}: {self.counts}."
