"""Markets that nobody chose, and of which anybody may make as many as they like.

A stranger's oracle may tell a trial another price than the transaction, which then reverts. So of each such market one
transaction is in flight at a time, and few of all. A market that made one revert is left alone, for twice as long each
time; and all of them are once a day's reverts there have cost a part of what a day may cost at all, so that nobody can
use it up from there and stop the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from keeper.engine.head import StepReport
from keeper.ledger import Booked, Ledger
from keeper.ledger.outcomes import STRANGERS_MARKET
from keeper.types import BlockNumber, Plan, PositionKey, Refusal, Settlement

_MOST_IN_FLIGHT: Final = 3
_PART_OF_LOSSES: Final = 4
_DAY_S: Final = 86_400
_SHUNNED_BLOCKS: Final = 32
_MOST_DOUBLED: Final = 10

_Market = tuple[str, str]


class Strangers:
    """What the record says came of transactions in such markets.

    `flying` tells the positions in flight, `max_loss_usd_e8` is the most that a day may cost.
    """

    def __init__(
        self,
        ledger: Ledger,
        flying: Callable[[], Iterable[PositionKey]],
        max_loss_usd_e8: int,
        wall_clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._flying = flying
        self._most_usd_e8 = max_loss_usd_e8 // _PART_OF_LOSSES
        self._wall_clock = wall_clock
        self._lost: list[tuple[int, int]] = []  # when, and USD with 8 decimals
        self._met: set[_Market] = set()
        self._shunned: dict[_Market, tuple[int, int]] = {}  # how often in a row, and up to which block

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

    def shunned(self, key: PositionKey, head: BlockNumber) -> Refusal | None:
        """Why a position in such a market is left alone at `head`, or None."""
        since_s = self._wall_clock() - _DAY_S
        self._lost = [(at_s, usd_e8) for at_s, usd_e8 in self._lost if at_s > since_s]
        lost_usd_e8 = sum(usd_e8 for _, usd_e8 in self._lost)
        _, until = self._shunned.get((key.protocol, key.market), (0, 0))
        if head >= until and lost_usd_e8 <= self._most_usd_e8:
            return None
        lost = {"lost_usd_e8": lost_usd_e8, "most_usd_e8": self._most_usd_e8}
        return Refusal("plan", "strangers_market", {"market": key.market, "until_block": until, **lost})

    def few(self, plans: Sequence[Plan], report: StepReport) -> list[Plan]:
        """The plans without those of such markets that must wait for one in flight or before them; why is noted."""
        kept: list[Plan] = []
        flying = {(key.protocol, key.market) for key in self._flying()}
        for plan in plans:
            market = plan.key.protocol, plan.key.market
            if not plan.option.chosen:
                self._met.add(market)
                others = flying & self._met
                if market in others or len(others) >= _MOST_IN_FLIGHT:
                    numbers = {"market": plan.key.market, "in_flight": len(others)}
                    for key in plan.keys:
                        report.refuse(key, Refusal("plan", "strangers_market", numbers))
                    continue
                flying.add(market)
            kept.append(plan)
        return kept

    def _learn(self, entry: Booked) -> None:
        """A success forgives everything: a revert need not be the market's fault, as where the borrower repaid."""
        if STRANGERS_MARKET not in entry.body:
            return
        market = entry.protocol, str(entry.body[STRANGERS_MARKET])
        self._met.add(market)
        if entry.kind != "reverted":
            self._shunned.pop(market, None)
            return
        times = self._shunned.get(market, (0, 0))[0]
        until = int(entry.body["block"]) + (_SHUNNED_BLOCKS << min(times, _MOST_DOUBLED))
        self._shunned[market] = times + 1, until
        self._lost.append((entry.at_s, int(entry.body["gas_cost_usd_e8"])))
