"""Tripped breakers as the ledger has them: which, for whom, on what numbers, and how each is cleared.

The ledger is their only memory: the last word of `tripped` and `cleared` about a breaker in its scope counts, so a
restart forgets none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from keeper import abi
from keeper.chain.reads import MULTICALL3
from keeper.errors import LedgerError
from keeper.guard import STOPPED, named
from keeper.ledger import Ledger
from keeper.seams import Reads
from keeper.types import GLOBAL_SCOPE, Address, Refusal, Reverted

LOSS, GAS, REVERTS = "loss_limit", "gas_budget", "reverts_in_a_row"
EXPOSURE, DEVIATION, SMALLER, VOLATILE = "exposure", "price_deviation", "volatility_smaller", "volatility"
DISAGREE, REORG, BALANCE, CODE = "providers_disagree", "reorg_depth", "operator_balance", "code_changed"
PAUSE_LOST: Final = "pause_lost"  # no breaker's: what the gate keeps closed until a person lets go of it

A_PERSON: Final = "by a person"
CLEARED: Final[Mapping[str, str]] = {  # when each lets go
    LOSS: "by itself, once no more than limits.max_loss_usd_per_day was lost within a day",
    GAS: "by itself, once what was refused fits into limits.max_gas_spend_wei_per_hour again",
    REVERTS: A_PERSON,
    EXPOSURE: "by itself, once what was refused fits into breakers.max_exposure_usd again",
    DEVIATION: "by itself, once the venue was within half of breakers.max_deviation_bps for breakers.calm_s",
    SMALLER: "by itself, once it moved less than half of breakers.volatility_smaller_bps for breakers.calm_s",
    VOLATILE: "by itself, once it moved less than half of breakers.volatility_stop_bps for breakers.calm_s",
    DISAGREE: "by itself, once breakers.disagreement_window_s passed without so many disagreeing",
    REORG: A_PERSON,
    BALANCE: "by itself, once the operator can pay for twice breakers.min_transactions",
    CODE: "by a person who acknowledges the new code",
    PAUSE_LOST: "by itself, once the chain has the pause again, or by a person",
}
_BALANCE: Final = abi.load("Multicall3").function("getEthBalance")

# Refusals under which what is in flight is taken back and not only left alone: somebody stopped it, or it was decided
# on what may be false.
TAKEN_BACK: Final = (*STOPPED, CODE, REORG, DISAGREE)


class Place(NamedTuple):
    """A breaker and what it stops: one protocol or all (""), and of it one token, market or contract or all ("")."""

    breaker: str
    protocol: str = ""
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Trip:
    """A tripped breaker with the numbers it tripped on, and the head and time at which it did."""

    place: Place
    numbers: Mapping[str, Any]
    head: int
    at_s: int

    def refusal(self) -> Refusal:
        """Why nothing in its scope is signed."""
        place = self.place
        scope = " ".join(part for part in (place.protocol, place.subject) if part) or "global"
        return Refusal(
            "clear", place.breaker, {"scope": scope, **self.numbers, "clears": CLEARED[place.breaker]}
        )

    def body(self) -> dict[str, Any]:
        """In the ledger's words."""
        return {
            "breaker": self.place.breaker,
            "subject": self.place.subject,
            "head": self.head,
            "numbers": dict(self.numbers),
        }


def open_trips(ledger: Ledger) -> dict[Place, Trip]:
    """Every breaker that is tripped according to the ledger, the longest first."""
    found: dict[Place, Trip] = {}
    for entry in reversed(ledger.entries(None, kind=("tripped", "cleared"))):
        place = Place(entry.body["breaker"], entry.protocol, entry.body["subject"])
        found.pop(place, None)
        if entry.kind == "tripped":
            found[place] = Trip(place, entry.body["numbers"], entry.body["head"], entry.at_s)
    return found


def lost_pauses(ledger: Ledger) -> list[Trip]:
    """Every pause that the chain lost, or would not take, and that still stops the keeper (`keeper.guard.gate`)."""
    found: dict[str, Trip] = {}
    for entry in reversed(ledger.entries(None, kind=("pause", "resume"))):
        body = dict(entry.body)
        if body.pop("cause", None) != "lost":
            continue
        scope, head = str(body.pop("scope")), int(body.pop("head"))
        found.pop(scope, None)
        if entry.kind == "pause":
            body.pop("message", None)
            place = Place(PAUSE_LOST, "" if scope == named(GLOBAL_SCOPE) else scope)
            found[scope] = Trip(place, body, head, entry.at_s)
    return list(found.values())


def clear(ledger: Ledger, trip: Trip, reason: str, at_s: int) -> None:
    """A person lets go of a breaker, or of a lost pause. Raises `LedgerError` without a reason."""
    if not reason.strip():
        raise LedgerError("Clearing a breaker must say why; add --reason.")
    if trip.place.breaker == PAUSE_LOST:
        scope = trip.place.protocol or named(GLOBAL_SCOPE)
        lost = {"scope": scope, "cause": "lost", "head": trip.head, "by": "person", "reason": reason}
        ledger.book("resume", None, "", None, lost, at_s)
        return
    body = {"breaker": trip.place.breaker, "subject": trip.place.subject, "by": "person", "reason": reason}
    ledger.book("cleared", None, trip.place.protocol, None, body, at_s)


def funds_of(account: Address) -> Reads[int | None]:
    """The native coin an account holds in wei, None where nobody tells it."""
    [result] = yield [_BALANCE.call(MULTICALL3, account)]
    return None if isinstance(result, Reverted) else _BALANCE.one(result)
