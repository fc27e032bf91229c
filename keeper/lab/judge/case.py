"""Both sides of the comparison, gathered once: what the ledger says and what the chain says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keeper.lab.judge.evidence import Mined, Sent
from keeper.lab.judge.record import Entry
from keeper.lab.judge.terms import Terms
from keeper.lab.judge.verdict import Difference
from keeper.types import Address, Hash, Log

OUTCOMES: Final = ("settled", "reverted", "cancelled", "relayed", "lost_race", "dropped", "recovered")


@dataclass(frozen=True, slots=True)
class Liquidated:
    """A Liquidated event."""

    log: Log
    plan_id: Hash
    protocol: Hash
    profit_token: Address
    profit_raw: int


@dataclass(frozen=True, slots=True)
class Case:
    """Both sides, gathered. `outcomes` are those of the ledger that were not undone by a reorganisation.

    `nonces` are how many transactions each operator had mined, by its address in lower case.
    """

    terms: Terms
    entries: Sequence[Entry]
    outcomes: Sequence[Entry]
    receipts: Mapping[Hash, Mined]
    events: Sequence[Liquidated]
    swept: Sequence[Log]
    sent: Sequence[Sent]
    nonces: Mapping[str, int]

    def operators(self) -> Mapping[str, str]:
        """Who each plan was signed by, as its intent says; plans without one are the newest operator's."""
        named = {entry.plan_id: entry.word("operator") for entry in self.of_kind("intent")}
        newest = next(reversed(named.values()), "")
        return {entry.plan_id: named.get(entry.plan_id, newest) for entry in self.entries}

    def of_kind(self, *kinds: str) -> list[Entry]:
        """Entries of some kinds, in order."""
        return [entry for entry in self.entries if entry.kind in kinds]


def standing(entries: Sequence[Entry]) -> list[Entry]:
    """Outcomes not followed by a `reorged` entry of their plan."""
    undone = {entry.plan_id: entry.seq for entry in entries if entry.kind == "reorged"}
    return [entry for entry in entries if entry.kind in OUTCOMES and entry.seq > undone.get(entry.plan_id, 0)]


def decoded(logs: Iterable[Log], event: Any, address: Address | None = None) -> list[dict[str, Any]]:
    """The values of those logs that are this event, of one contract where it is given."""
    return [
        event.decode(log)
        for log in logs
        if log.topics and log.topics[0] == event.topic and address in (None, log.address)
    ]


def about(entry: Entry, check: str, detail: str, booked: Any = None, chain: Any = None) -> Difference:
    """A difference that an entry is about."""
    return Difference(
        check=check,
        detail=detail,
        seq=entry.seq,
        plan_id=entry.plan_id,
        transaction=entry.word("tx"),
        booked=None if booked is chain is None else str(booked),
        chain=None if booked is chain is None else str(chain),
    )
