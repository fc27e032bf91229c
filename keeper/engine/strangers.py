"""Which strangers' markets are left alone, by what the record says came of transactions there."""

from __future__ import annotations

from collections.abc import Iterable

from keeper.ledger import Booked, Ledger
from keeper.ledger.outcomes import STRANGERS_MARKET
from keeper.planner.turns import Turns
from keeper.types import Settlement


class Strangers:
    """Tells `turns` of a market that made a transaction revert, and that one succeeded there."""

    def __init__(self, ledger: Ledger, turns: Turns) -> None:
        self._ledger = ledger
        self._turns = turns

    def recall(self) -> None:
        """What was learnt before this start."""
        for entry in reversed(self._ledger.entries(kind="reverted")):
            self._learn(entry)

    def settled(self, settlements: Iterable[Settlement]) -> None:
        """What a head's outcomes, which are on record, teach."""
        for each in settlements:
            if each.status == 0 or each.profit_raw:
                kind = "intent" if each.status else "reverted"
                for entry in self._ledger.entries(1, kind=kind, plan=each.plan_id):
                    self._learn(entry)

    def _learn(self, entry: Booked) -> None:
        """By the intent of one that succeeded it is forgiven."""
        market = entry.body.get(STRANGERS_MARKET)
        if market and entry.kind == "reverted":
            self._turns.shun(entry.protocol, market, int(entry.body["block"]))
        elif market:
            self._turns.forgive(entry.protocol, market)
