"""What a transaction pays: the stated bidding rule and the gas limit.

Rule: the tip is what the middle transaction of recent blocks paid, and with every replacement one step further up
(the 75th percentile, then the 90th); the ceiling is twice the next base fee plus the tip. A replacement pays at least
an eighth more of both than what it replaces. Nothing pays more than the operator's `max_fee_gwei`, nor more than
leaves the configured minimum of the profit its own trial measured.

A share of the profit, where `send.priority_share_bps` asks for one, is paid on top of that tip: of what would be left
of the trial's profit at the price above, after gas and bytes, that part per unit of the trial's gas. Both limits hold
for it too, and two more. It leaves the configured minimum of the profit that the contract enforces, so that no market
and no account that fails makes it a loss; and of what the limits of all gas leave, half stays for replacing it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from keeper.charges import next_base_fee
from keeper.data_fee import DataFee
from keeper.fixed import BPS, MAX_UINT256, WAD, mul_div_up
from keeper.guard import Fees
from keeper.types import NO_WEI, Gas, Head, Plan, Refusal, Trial, Wei

_GAS_MARGIN_PERCENT: Final = 30
_GAS_MARGIN_FLAT: Final = 60_000


@dataclass(frozen=True, slots=True)
class Offered:
    """What a transaction offers per unit of gas."""

    max_fee_wei: Wei
    tip_wei: Wei

    def price(self, base_fee_wei: Wei) -> int:
        """What a block of this base fee would charge; below its base fee it cannot be mined."""
        return min(self.max_fee_wei, base_fee_wei + self.tip_wei)


@dataclass(frozen=True, slots=True)
class Market:
    """Prices of inclusion at one head. `tips_wei` rise with urgency; `most_fee_wei` is the operator's own limit.

    `base_fee_of` tells the base fee of the block after a head, `share_bps` is the part of the profit added to a tip.
    """

    head: Head
    tips_wei: tuple[Wei, ...]
    most_fee_wei: Wei
    base_fee_of: Callable[[Head], Wei] = next_base_fee
    share_bps: int = 0

    @property
    def base_fee_wei(self) -> Wei:
        """Of the next block."""
        return self.base_fee_of(self.head)

    def tip(self, urgency: int = 0) -> Wei:
        """The tip for a transaction that was replaced so many times."""
        return self.tips_wei[min(urgency, len(self.tips_wei) - 1)]

    def price(self, urgency: int = 0) -> Wei:
        """What a unit of gas costs in the next block."""
        return Wei(self.base_fee_wei + self.tip(urgency))

    def ceiling(self) -> Wei:
        """The most a transaction that replaces none offers for a unit of gas."""
        return Wei(min(2 * self.base_fee_wei + self.tip(), self.most_fee_wei))

    def bid(
        self,
        trial: Trial,
        affordable_wei: Wei,
        replaced: Offered | None = None,
        urgency: int = 0,
        worth_wei: Wei = NO_WEI,
        assured_wei: int = MAX_UINT256,
        room_wei: int = MAX_UINT256,
    ) -> Fees | Refusal:
        """Fees for what was tried, or for replacing what offers `replaced`.

        A unit of its gas may cost `affordable_wei`; at `worth_wei` nothing would be left of its profit. A share makes
        that unit no dearer than `assured_wei`, and the whole no dearer than half of `room_wei`: so it can be replaced.

        The gas limit carries a margin because a block that already touched the market makes the trial skip storage
        writes (interest accrual) that inclusion a block later pays for. What a call that may fail must find left is on
        top of that.
        """
        gas_limit = Gas(
            trial.gas_used * (100 + _GAS_MARGIN_PERCENT) // 100 + _GAS_MARGIN_FLAT + trial.spare_gas
        )
        data_fee_wei = DataFee(trial.data_fee_wei).worst_wei
        least_wei, tip_wei = self.price(urgency), self.tip(urgency)
        share_wei = min(
            max(0, worth_wei - least_wei) * self.share_bps // BPS,
            min(affordable_wei, assured_wei, self.most_fee_wei) - least_wei,
            (room_wei // 2 - data_fee_wei) // gas_limit - 2 * self.base_fee_wei - tip_wei,
        )
        tip_wei = Wei(tip_wei + max(0, share_wei))
        if replaced is not None:
            tip_wei = max(tip_wei, _raised(replaced.tip_wei))
            least_wei = max(least_wei, _raised(replaced.max_fee_wei))
        if least_wei > self.most_fee_wei:
            numbers = {"inclusion_price_wei": least_wei, "max_fee_wei": self.most_fee_wei}
            return Refusal("clear", "fee_over_limit", numbers)
        if least_wei > affordable_wei:
            numbers = {"inclusion_price_wei": least_wei, "affordable_wei": affordable_wei}
            return Refusal(
                "clear",
                "unprofitable",
                numbers | {"profit_raw": trial.profit_raw, "tried_gas": trial.gas_used},
            )
        wanted_wei = max(2 * self.base_fee_wei + tip_wei, least_wei)
        ceiling_wei = Wei(min(wanted_wei, self.most_fee_wei, affordable_wei))
        return Fees(
            max_fee_wei=ceiling_wei,
            tip_wei=min(ceiling_wei, tip_wei),
            gas_limit=gas_limit,
            max_data_fee_wei=data_fee_wei,
        )

    def cancellation(self, replaced: Offered, plan_fee_wei: Wei) -> Offered:
        """What takes a nonce back from a stuck transaction.

        Both a quarter above what it offered, because nodes ask for more of both, and at least today's rule; but never
        more than a quarter above the operator's limit, so that no wait makes a transfer of nothing dear. An older
        limit, by which the plan offered `plan_fee_wei`, counts too.
        """
        wanted_wei = max(_dearer(replaced.max_fee_wei), 2 * self.base_fee_wei + self.tip())
        ceiling_wei = min(wanted_wei, _dearer(max(self.most_fee_wei, plan_fee_wei)))
        return Offered(Wei(ceiling_wei), Wei(min(ceiling_wei, _dearer(max(replaced.tip_wei, self.tip())))))


def affordable_wei(plan: Plan, trial: Trial, min_profit_usd_e8: int, native_usd_e8: int) -> Wei:
    """The most a unit of gas may cost if the minimum is to be left of what the trial earned and what comes later.

    Of a plan that may lose, as much as loses no more than that.
    """
    least_usd_e8 = -plan.may_lose_usd_e8 or min_profit_usd_e8
    return _left_wei(plan, trial, least_usd_e8, native_usd_e8)


def worth_wei(plan: Plan, trial: Trial, native_usd_e8: int) -> Wei:
    """What a unit of gas costs where nothing is left of what the trial earned and what comes later."""
    return _left_wei(plan, trial, 0, native_usd_e8)


def assured_wei(plan: Plan, trial: Trial, min_profit_usd_e8: int, native_usd_e8: int) -> Wei:
    """What a unit of gas may cost if the minimum is to be left even of the least that the contract lets pass.

    Nobody enforces what comes later.
    """
    least = replace(trial, profit_raw=plan.min_profit_raw)
    return _left_wei(replace(plan, later_raw=0), least, min_profit_usd_e8, native_usd_e8)


def _left_wei(plan: Plan, trial: Trial, least_usd_e8: int, native_usd_e8: int) -> Wei:
    """What its bytes cost in wei is taken off first."""
    scale = 10**plan.profit_token.decimals
    earned_raw = trial.profit_raw + plan.later_raw
    room_raw = max(0, earned_raw - mul_div_up(least_usd_e8, scale, plan.profit_price_usd_e8))
    room_wei = room_raw * plan.profit_price_usd_e8 * WAD // (scale * native_usd_e8) - trial.data_fee_wei
    return Wei(max(0, room_wei) // max(1, trial.gas_used))


def _raised(wei: Wei) -> Wei:
    """By an eighth: Geth asks for a tenth more of both fees."""
    return Wei(wei * 9 // 8 + 1)


def _dearer(wei: int) -> int:
    return wei * 5 // 4 + 1
