"""Beginning small again: after a pause one small liquidation, and only once it has paid the next, twice as large.

It begins with every `resume` of a pause that the chain had; what was only announced, the halt file and a first start
do not count. One success doubles the cap, one revert starts over, and at `limits.max_repay_usd` it is over until the
next pause. All of it is read from the ledger, so a restart changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keeper.guard.scopes import named
from keeper.ledger import Booked, Ledger
from keeper.types import GLOBAL_SCOPE

_CAUSES: Final = ("chain", "lost")
_OUTCOMES: Final = ("settled", "reverted", "reorged")


@dataclass(frozen=True, slots=True)
class Stage:
    """What may be repaid by one liquidation, in USD with 8 decimals; a `canary` goes alone.

    Alone of all, or of the liquidations of `protocol` where only that was paused.
    """

    cap_usd_e8: int
    canary: bool
    protocol: str | None


class Ramp:
    """Where each scope is on its way back. Asked again only after something was booked that can change it."""

    def __init__(self, ledger: Ledger, canary_usd_e8: int, most_usd_e8: int) -> None:
        self._ledger = ledger
        self._canary_usd_e8 = canary_usd_e8
        self._most_usd_e8 = most_usd_e8
        self._over: dict[str, int] = {}  # by scope, the resume whose ramp was walked to its end
        self._known: dict[str, Stage | None] = {}
        self._booked = -1

    def stage(self, protocol: str) -> Stage | None:
        """The narrower of the global and the protocol's own stage; None where nothing but the limits holds."""
        if self._canary_usd_e8 >= self._most_usd_e8:
            return None
        if self._booked != self._ledger.outcomes_booked:
            self._known, self._booked = {}, self._ledger.outcomes_booked
        if protocol not in self._known:
            resumes = self._ledger.entries(None, kind="resume")
            stages = [self._of(scope, resumes) for scope in (named(GLOBAL_SCOPE), protocol)]
            narrow = [stage for stage in stages if stage is not None]
            self._known[protocol] = min(narrow, key=lambda stage: stage.cap_usd_e8, default=None)
        return self._known[protocol]

    def _of(self, scope: str, resumes: Sequence[Booked]) -> Stage | None:
        since = next(
            (e for e in resumes if e.body.get("scope") == scope and e.body.get("cause") in _CAUSES), None
        )
        if since is None or self._over.get(scope) == since.seq:
            return None
        own = None if scope == named(GLOBAL_SCOPE) else scope
        succeeded: list[str] = []
        outcomes = self._ledger.entries(None, kind=_OUTCOMES, protocol=own, after_seq=since.seq)
        for entry in outcomes[::-1]:
            if entry.kind == "settled" and int(entry.body["profit_raw"]) > 0:
                succeeded.append(entry.plan_id)
            elif entry.kind == "reverted":
                succeeded.clear()
            elif entry.plan_id in succeeded:
                succeeded.remove(entry.plan_id)
            if self._canary_usd_e8 << len(succeeded) >= self._most_usd_e8:
                self._over[scope] = since.seq
                return None
        return Stage(self._canary_usd_e8 << len(succeeded), canary=not succeeded, protocol=own)
