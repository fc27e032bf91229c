"""Write-offs on record against the chain's own events: of whom, and how much."""

from __future__ import annotations

from typing import Any, Final

from keeper.abi import load
from keeper.errors import AdapterError
from keeper.lab.judge.case import Case, about
from keeper.lab.judge.evidence import Evidence
from keeper.lab.judge.record import Entry
from keeper.lab.judge.verdict import Difference
from keeper.types import Hash, Log, hex_of

# Whose debt was written off and how much of it, by each protocol's own event.
_EVENTS: Final = (
    (load("AavePool").event("DeficitCreated"), "user", "amountCreated"),
    (load("MorphoBlue").event("Liquidate"), "borrower", "badDebtAssets"),
)


async def false_write_offs(case: Case, evidence: Evidence) -> list[Difference]:
    """Those on record that the chain does not tell, or tells once and the record twice.

    What a reorganisation undid stays on record with its block and is no difference.
    """
    entries = [entry for entry in case.of_kind("bad_debt") if entry.word("state") == "written_off"]
    now = await evidence.block_hashes(sorted({entry.integer("block") or 0 for entry in entries}))
    found: list[Difference] = []
    seen: set[tuple[Hash | None, int | None]] = set()
    for entry in entries:
        block_hash = now.get(entry.integer("block") or 0)
        if block_hash is None or hex_of(block_hash) != entry.word("block_hash"):
            continue
        place = entry.transaction, entry.integer("log_index")
        if place in seen:
            found.append(about(entry, "written_off", "it is on record twice"))
        seen.add(place)
        found += _untold(case, entry)
    return found


def _untold(case: Case, entry: Entry) -> list[Difference]:
    mined = case.receipts.get(entry.transaction or Hash(b""))
    logs = [] if mined is None else [log for log in mined.logs if log.index == entry.integer("log_index")]
    booked = entry.account.lower(), entry.integer("raw")
    told = [told for log in logs if (told := _told(log)) is not None]
    if booked in told:
        return []
    return [
        about(entry, "written_off", "the chain tells no such write-off", booked, told[0] if told else None)
    ]


def _told(log: Log) -> tuple[str, Any] | None:
    for event, whose, how_much in _EVENTS:
        if log.topics[:1] == (event.topic,):
            try:
                values = event.decode(log)
            except AdapterError:
                return None
            return hex_of(values[whose]), values[how_much]
    return None
