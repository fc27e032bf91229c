"""Breakers: what stops the keeper by itself, each tripped by numbers and cleared by its own rule.

They are told what happened between heads and asked on the way to a signature, from memory alone: nothing here waits
for a node or the disk. What tripped or cleared is booked with the head's other entries; the ledger is what a restart
knows. A crash before that loses nothing that stays true: it trips again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import structlog

from keeper import abi
from keeper.breakers import trips
from keeper.breakers.latches import Budget, Latch, Moves
from keeper.breakers.trips import Place, Trip, open_trips
from keeper.data_fee import NO_DATA_FEE, DataFee
from keeper.fixed import BPS, mul_div_down
from keeper.guard import Spent
from keeper.ledger import Ledger
from keeper.seams import Reads
from keeper.types import Address, Hash, Head, Option, Plan, PositionKey, Refusal

__all__ = ["Breakers", "Terms"]

_OF_TOKENS: Final = (trips.DEVIATION, trips.SMALLER, trips.VOLATILE)
_OF_ROOM: Final = (trips.GAS, trips.EXPOSURE, trips.BALANCE)  # what is in flight has its room already
_PERCENT: Final = 100
_TRANSACTION_GAS: Final = 1_000_000  # more than a flash loan, a liquidation and two swaps take
_name = cache(abi.checksum)


@dataclass(frozen=True, slots=True)
class Terms:
    """Where each breaker trips; USD with 8 decimals. The first four are the operator's `[limits]`."""

    max_gas_spend_wei_per_hour: int
    max_loss_usd_e8_per_day: int
    max_consecutive_reverts: int
    max_repay_usd_e8: int
    max_exposure_usd_e8: int
    max_deviation_bps: int
    volatility_window_s: int
    volatility_smaller_bps: int
    volatility_smaller_percent: int
    volatility_stop_bps: int
    calm_s: int
    quorum: int
    disagreement_window_s: int
    max_reorg_depth: int
    min_transactions: int


class Breakers:
    """Every breaker, as of what the ledger remembers and what it was told since."""

    def __init__(self, terms: Terms, ledger: Ledger, wall_clock: Callable[[], float]) -> None:
        self._terms = terms
        self._ledger = ledger
        self._wall_clock = wall_clock
        self._open = open_trips(ledger)
        self._unbooked: list[tuple[str, Place, Mapping[str, Any], int]] = []
        self._head = 0
        self._now_s = 0  # of the last head
        self._gas = Budget(terms.max_gas_spend_wei_per_hour)
        self._exposure: dict[str, Budget] = {}
        self._flying: dict[Hash, tuple[str, int]] = {}  # protocol and USD of debt of what is in flight
        self._moves: dict[tuple[str, Address], Moves] = {}
        self._latches: dict[Place, Latch] = {}
        self._measured: dict[Place, int] = {}  # the widest deviations of this head
        self._disagreed_s: dict[str, int] = {}  # who contradicted the others, and when last
        self._log = structlog.get_logger("keeper.breakers")
        for place, trip in self._open.items():
            self._restore(place, trip)

    def open(self) -> Sequence[Trip]:
        """What is tripped."""
        return list(self._open.values())

    def trip_of_code(self, protocol: str, contract: str) -> Trip | None:
        """The trip of a watched contract, None where it is as it may be."""
        return self._open.get(Place(trips.CODE, protocol, contract))

    # --- asked on the way to a signature -----------------------------------------------------------------------------

    def standing(self, protocol: str, *, new: bool = True) -> Refusal | None:
        """Why nothing of a protocol may be signed, or None; without `new`: be replaced."""
        for place, trip in self._open.items():
            if (
                place.protocol in ("", protocol)
                and place.breaker not in _OF_TOKENS
                and (new or place.breaker not in _OF_ROOM)
            ):
                return trip.refusal()
        return None

    def allowed(self, options: Iterable[Option | Refusal]) -> list[Option | Refusal]:
        """The options, a refusal in the place of each whose tokens moved too far."""
        return [
            each if isinstance(each, Refusal) else self._of_tokens(each, trips.VOLATILE) or each
            for each in options
        ]

    def most_usd_e8(self, protocol: str, options: Iterable[Option | Refusal]) -> int:
        """The largest debt to repay now: less while a token of the options moves far, and what exposure is left."""
        most = self._terms.max_repay_usd_e8
        if any(isinstance(each, Option) and self._of_tokens(each, trips.SMALLER) for each in options):
            most = mul_div_down(most, self._terms.volatility_smaller_percent, _PERCENT)
        return max(0, min(most, self._terms.max_exposure_usd_e8 - self._exposed_usd_e8(protocol)))

    def weighing(
        self, planned: Reads[Plan | Refusal], protocol: str, measures: Collection[Address]
    ) -> Reads[Plan | Refusal]:
        """A planner's answer, refused where the venue pays too far from the protocol's price.

        Of a pair the seized token is at fault, or the repaid one where the seized is what profit is measured in.
        """
        answer = yield from planned
        measured = _deviation_of(answer)
        if measured is not None:
            (repay, seize), deviation_bps = measured
            place = Place(trips.DEVIATION, protocol, _name(repay if seize in measures else seize))
            limit_bps = self._terms.max_deviation_bps
            self._measured[place] = max(abs(deviation_bps), self._measured.get(place, 0))
            if self._measured[place] >= limit_bps:
                self._latch(place, limit_bps).update(self._measured[place], self._now_s)
                self._trip(place, {"deviation_bps": deviation_bps, "limit_bps": limit_bps})
        if isinstance(answer, Refusal):
            return answer
        return self._of_tokens(answer.option, trips.DEVIATION) or answer

    def admits(self, plan: Plan, *, new: bool = True) -> Refusal | None:
        """Why a tried plan may not be signed, or None: it then counts as in flight until the head is over."""
        protocol = plan.key.protocol
        others = self._exposed_usd_e8(protocol, besides=plan.plan_id)
        if self._budget(protocol).refuses(others, plan.repay_usd_e8):
            numbers = {
                "in_flight_usd_e8": others,
                "repay_usd_e8": plan.repay_usd_e8,
                "limit_usd_e8": self._terms.max_exposure_usd_e8,
            }
            place = Place(trips.EXPOSURE, protocol)
            if self._budget(protocol).wanted:
                self._trip(place, numbers)
            return Trip(place, numbers, self._head, 0).refusal()
        refusal = self.standing(protocol, new=new)
        for breaker in (trips.VOLATILE, trips.DEVIATION):
            refusal = refusal or self._of_tokens(plan.option, breaker)
        if refusal is None:
            self._flying[plan.plan_id] = (protocol, plan.repay_usd_e8)
        return refusal

    # --- told what happened ------------------------------------------------------------------------------------------

    def at(self, head: Head) -> None:
        """A new head."""
        self._head, self._now_s = head.number, head.timestamp_s
        self._measured.clear()
        self._disagreement()

    def saw(self, prices: Mapping[str, Mapping[Address, int]]) -> None:
        """Each protocol's prices by token, as of the head; a price of 0 is none."""
        for protocol, of_protocol in prices.items():
            for token, price in of_protocol.items():
                moves = self._moves.get((protocol, token))
                if moves is None:
                    moves = self._moves[protocol, token] = Moves(self._terms.volatility_window_s)
                if price > 0 and (self._open or not moves.still(price)):
                    self._moved(protocol, token, moves.bps(price, self._now_s))

    def funds(self, balance_wei: int | None, gas_price_wei: int, data_fee: DataFee = NO_DATA_FEE) -> None:
        """What the operator holds, None where it could not be read; what a unit of gas and a plan's bytes may cost."""
        if balance_wei is None or not self._terms.min_transactions:
            return
        each_wei = (_TRANSACTION_GAS + data_fee.gas) * gas_price_wei + data_fee.worst_wei
        needed_wei = self._terms.min_transactions * each_wei
        place = Place(trips.BALANCE)
        if balance_wei < needed_wei:
            self._trip(place, {"balance_wei": balance_wei, "needed_wei": needed_wei})
        elif balance_wei >= 2 * needed_wei:
            self._clear(place, {"balance_wei": balance_wei, "needed_wei": needed_wei})

    def reorganised(self, depth: int) -> None:
        """So many blocks that had been followed are not on the chain any more."""
        if depth > self._terms.max_reorg_depth:
            self._trip(Place(trips.REORG), {"depth": depth, "limit": self._terms.max_reorg_depth})

    def disagreed(self, provider: str) -> None:
        """A provider contradicted the others."""
        self._disagreed_s[provider] = int(self._wall_clock())
        self._disagreement()

    def changed(self, protocol: str, contract: str, numbers: Mapping[str, Any]) -> None:
        """A watched contract of a protocol, or of all (""), is not as it was acknowledged; the numbers say how."""
        place = Place(trips.CODE, protocol, contract)
        trip = self._open.get(place)
        if trip is not None and trip.numbers.get("now") != numbers["now"]:
            del self._open[place]  # changed once more: what is to be acknowledged is this
        self._trip(place, numbers)

    def closed(self, spent: Spent, refused: Iterable[Refusal], in_flight: Mapping[Hash, PositionKey]) -> None:
        """A head is over: what was spent lately, what was refused at it, and which plans are in flight now."""
        self._flying = {plan_id: self._flown(plan_id, key) for plan_id, key in in_flight.items()}
        for protocol, budget in self._exposure.items():
            used = self._exposed_usd_e8(protocol)
            if budget.fits(used):
                self._clear(Place(trips.EXPOSURE, protocol), {"in_flight_usd_e8": used})
        self._count_gas(spent, refused)
        terms = self._terms
        lost, reverts = spent.loss_usd_e8_last_day, spent.consecutive_reverts
        loss = {"loss_usd_e8": lost, "limit_usd_e8": terms.max_loss_usd_e8_per_day}
        if lost > terms.max_loss_usd_e8_per_day:
            self._trip(Place(trips.LOSS), loss)
        else:
            self._clear(Place(trips.LOSS), loss)
        if reverts >= terms.max_consecutive_reverts:
            self._trip(Place(trips.REVERTS), {"reverts": reverts, "limit": terms.max_consecutive_reverts})
        for place, deviation_bps in self._measured.items():
            latch = self._latches.get(place)
            if latch is not None and not latch.update(deviation_bps, self._now_s):
                self._clear(place, {"deviation_bps": deviation_bps})

    def book(self) -> None:
        """Put on record what tripped and cleared since it was last asked to."""
        for kind, place, numbers, head in self._unbooked:
            body = {
                "breaker": place.breaker,
                "subject": place.subject,
                "head": head,
                "numbers": dict(numbers),
            }
            if kind == "cleared":
                body["by"] = "itself"
            self._ledger.book(kind, None, place.protocol, None, body, int(self._wall_clock()))
            said = {f"n_{name}": value for name, value in numbers.items()}
            scope = {"breaker": place.breaker, "protocol": place.protocol, "subject": place.subject}
            self._log.warning(kind, head=head, **scope, **said)
        self._unbooked.clear()

    # --- each breaker's own ------------------------------------------------------------------------------------------

    def _moved(self, protocol: str, token: Address, move_bps: int) -> None:
        terms = self._terms
        if move_bps < terms.volatility_smaller_bps and not self._open:
            return
        for breaker, limit_bps in (
            (trips.SMALLER, terms.volatility_smaller_bps),
            (trips.VOLATILE, terms.volatility_stop_bps),
        ):
            place = Place(breaker, protocol, _name(token))
            numbers = {"move_bps": move_bps, "limit_bps": limit_bps, "window_s": terms.volatility_window_s}
            if move_bps >= limit_bps:
                self._latch(place, limit_bps).update(move_bps, self._now_s)
                self._trip(place, numbers)
            elif place in self._open and not self._latch(place, limit_bps).update(move_bps, self._now_s):
                self._clear(place, numbers)

    def _disagreement(self) -> None:
        """So many disagreeing providers as must agree: what is believed may be what they made up together."""
        now_s, window_s = int(self._wall_clock()), self._terms.disagreement_window_s
        lately = sorted(who for who, at_s in self._disagreed_s.items() if now_s - at_s < window_s)
        place, numbers = Place(trips.DISAGREE), {"providers": lately, "quorum": self._terms.quorum}
        if len([who for who in lately if who]) >= self._terms.quorum:
            self._trip(place, numbers | {"window_s": window_s})
        elif "" not in lately:
            self._clear(place, numbers)

    def _count_gas(self, spent: Spent, refused: Iterable[Refusal]) -> None:
        used = spent.gas_wei_last_hour + spent.in_flight_wei
        place = Place(trips.GAS)
        for refusal in refused:
            if refusal.reason == trips.GAS and "needed_wei" in refusal.numbers:
                self._gas.refuses(used, refusal.numbers["needed_wei"])
        if not self._gas.fits(used):
            numbers = {"gas_wei_last_hour": spent.gas_wei_last_hour, "in_flight_wei": spent.in_flight_wei}
            self._trip(place, numbers | {"needed_wei": self._gas.wanted, "limit_wei": self._gas.limit})
        else:
            self._clear(place, {"gas_wei_last_hour": spent.gas_wei_last_hour})

    def _flown(self, plan_id: Hash, key: PositionKey) -> tuple[str, int]:
        """What is in flight of a plan; of an earlier run's as its intent says, and the most there may be without."""
        known = self._flying.get(plan_id)
        if known is None:
            intents = self._ledger.entries(1, kind="intent", plan=plan_id)
            stated = intents[0].body.get("repay_usd_e8") if intents else None
            known = key.protocol, self._terms.max_repay_usd_e8 if stated is None else int(stated)
        return known

    def _exposed_usd_e8(self, protocol: str, besides: Hash | None = None) -> int:
        flying = self._flying.items()
        return sum(usd for plan, (whose, usd) in flying if whose == protocol and plan != besides)

    def _budget(self, protocol: str) -> Budget:
        return self._exposure.setdefault(protocol, Budget(self._terms.max_exposure_usd_e8))

    def _latch(self, place: Place, trip_at: int) -> Latch:
        latch = self._latches.get(place)
        if latch is None:
            latch = self._latches[place] = Latch(trip_at, (trip_at + 1) // 2, self._terms.calm_s)
        return latch

    def _of_tokens(self, option: Option, breaker: str) -> Refusal | None:
        if not self._open:
            return None
        for token in (option.seize_token, option.repay_token):
            trip = self._open.get(Place(breaker, option.key.protocol, _name(token.address)))
            if trip is not None:
                return trip.refusal()
        return None

    def _restore(self, place: Place, trip: Trip) -> None:
        """Go on waiting for what lets go of it."""
        terms, numbers = self._terms, trip.numbers
        limits = {
            trips.DEVIATION: terms.max_deviation_bps,
            trips.SMALLER: terms.volatility_smaller_bps,
            trips.VOLATILE: terms.volatility_stop_bps,
        }
        if place.breaker in limits:
            self._latch(place, limits[place.breaker]).tripped = True
        elif place.breaker == trips.EXPOSURE:
            self._budget(place.protocol).wanted = min(int(numbers["repay_usd_e8"]), terms.max_exposure_usd_e8)
        elif place.breaker == trips.GAS:
            self._gas.wanted = min(int(numbers["needed_wei"]), self._gas.limit)
        elif place.breaker == trips.DISAGREE:
            self._disagreed_s[""] = trip.at_s  # nobody new, but the window goes on

    def _trip(self, place: Place, numbers: Mapping[str, Any]) -> None:
        if place not in self._open:
            self._open[place] = Trip(place, numbers, self._head, int(self._wall_clock()))
            self._unbooked.append(("tripped", place, numbers, self._head))

    def _clear(self, place: Place, numbers: Mapping[str, Any]) -> None:
        if self._open.pop(place, None) is not None:
            self._unbooked.append(("cleared", place, numbers, self._head))


def _deviation_of(answer: Plan | Refusal) -> tuple[tuple[Address, Address], int] | None:
    """The repaid and the seized token of a priced plan, and how far from the protocol's prices it sells, in bps.

    Positive where the market pays more for the collateral. None where nothing was priced.
    """
    if isinstance(answer, Refusal):
        numbers = answer.numbers
        if "deviation_bps" not in numbers:
            return None
        return (numbers["repay_token"], numbers["seize_token"]), numbers["deviation_bps"]
    option, outcome = answer.option, answer.outcome
    repaid = outcome.repay_raw * option.repay_price_base * 10**option.seize_token.decimals
    seized = outcome.seize_raw * option.seize_price_base * 10**option.repay_token.decimals
    if repaid <= 0:
        return None
    seized_usd_e8 = max(1, mul_div_down(answer.repay_usd_e8, seized, repaid))
    profit_usd_e8 = mul_div_down(
        answer.expected_profit_raw, answer.profit_price_usd_e8, 10**answer.profit_token.decimals
    )
    paid_usd_e8 = answer.repay_usd_e8 * (BPS + answer.flash.premium_bps) // BPS + profit_usd_e8
    return (
        (option.repay_token.address, option.seize_token.address),
        (paid_usd_e8 - seized_usd_e8) * BPS // seized_usd_e8,
    )
