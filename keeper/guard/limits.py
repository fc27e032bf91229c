"""What the operator allows, what a transaction may pay, and what was spent lately."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from keeper.ledger import Ledger
from keeper.types import NO_WEI, Address, Gas, Wei

_HOUR_S: Final = 3_600
_DAY_S: Final = 86_400
_ASKED_EVERY_S: Final = 60


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows; amounts in wei or in USD with 8 decimals (`_usd_e8`)."""

    max_fee_wei: Wei
    max_gas_limit: Gas
    max_gas_spend_wei_per_hour: Wei
    max_loss_usd_e8_per_day: int
    max_consecutive_reverts: int
    max_repay_usd_e8: int
    deny_accounts: frozenset[Address]
    max_head_age_s: int
    bad_debt_budget_usd_e8_per_day: int = 0

    def room_wei(self, spent: Spent) -> int:
        """How much more may be spent on gas within the hour; ≥ 0."""
        return max(0, self.max_gas_spend_wei_per_hour - spent.gas_wei_last_hour - spent.in_flight_wei)


@dataclass(frozen=True, slots=True)
class Fees:
    """What a transaction may pay: EIP-1559 ceilings in wei per gas and a gas limit.

    `max_data_fee_wei` is the most that a chain may take for its bytes beside that.
    """

    max_fee_wei: Wei
    tip_wei: Wei
    gas_limit: Gas
    max_data_fee_wei: Wei = NO_WEI

    @property
    def worst_case_wei(self) -> int:
        """The most it can cost."""
        return self.max_fee_wei * self.gas_limit + self.max_data_fee_wei


@dataclass(frozen=True, slots=True)
class Spent:
    """What was spent lately; `in_flight_wei` is the most that everything signed and undecided can still cost.

    Of these, `budget_usd_e8_last_day` was lost, and `budgeted_wei` may yet be, at the cost of the budget for bad debt.
    """

    gas_wei_last_hour: int
    in_flight_wei: int
    loss_usd_e8_last_day: int
    consecutive_reverts: int
    budget_usd_e8_last_day: int = 0
    budgeted_wei: int = 0

    def with_in_flight(self, fees: Fees, replaced_wei: int = 0, *, budgeted: bool = False) -> Spent:
        """The same with one more transaction in flight, or with what may cost so much and is replaced by it."""
        return self._moved(max(fees.worst_case_wei, replaced_wei), budgeted=budgeted)

    def without(self, replaced_wei: int, *, budgeted: bool = False) -> Spent:
        """The same without one that may cost so much and is to be replaced: only one of the two can be mined."""
        return self._moved(-replaced_wei, budgeted=budgeted)

    def _moved(self, wei: int, *, budgeted: bool) -> Spent:
        of_budget_wei = wei if budgeted else 0
        return replace(
            self,
            in_flight_wei=self.in_flight_wei + wei,
            budgeted_wei=self.budgeted_wei + of_budget_wei,
        )


class Spending:
    """What the ledger says was spent, asked again only after an outcome was booked and every minute.

    Without an outcome, sums over a sliding window only fall: an older answer is never too lenient.
    """

    def __init__(self, ledger: Ledger, wall_clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._wall_clock = wall_clock
        self._last: tuple[int, int, Spent] | None = None

    def lately(self, in_flight_wei: int, budgeted_wei: int = 0) -> Spent:
        """What was spent lately, with `in_flight_wei` undecided, and so much of it on the budget for bad debt."""
        now_s, outcomes = int(self._wall_clock()), self._ledger.outcomes_booked
        last = self._last
        if last is None or last[0] != outcomes or not 0 <= now_s - last[1] < _ASKED_EVERY_S:
            spent = Spent(
                gas_wei_last_hour=self._ledger.gas_spent_wei(now_s - _HOUR_S),
                in_flight_wei=0,
                loss_usd_e8_last_day=self._ledger.loss_usd_e8(now_s - _DAY_S),
                consecutive_reverts=self._ledger.consecutive_reverts(),
                budget_usd_e8_last_day=self._ledger.budget_spent_usd_e8(now_s - _DAY_S),
            )
            last = self._last = (outcomes, now_s, spent)
        return replace(last[2], in_flight_wei=in_flight_wei, budgeted_wei=budgeted_wei)
