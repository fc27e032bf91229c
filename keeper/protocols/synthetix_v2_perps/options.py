"""Ways to liquidate a position: both steps at once, or the one that is allowed now.

A position is first flagged and then liquidated. Whoever flagged it is paid a share of its notional when it is
liquidated, by whomever that is; who liquidates it is paid a flat fee. The second step is gated: by the position's own
size, and by how far all positions lean to one side. A gated position can still be flagged, and is liquidated later by
what the chain says alone: that it is flagged, and by whom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from keeper.protocols.synthetix_v2_perps.health import Account
from keeper.protocols.synthetix_v2_perps.market import FLAG, LIQUIDATE, STATE, Market, ask
from keeper.protocols.synthetix_v2_perps.marks import PerpsMarks
from keeper.protocols.synthetix_v2_perps.rules import (
    Parameters,
    flag_fee,
    liquidation_delta,
    premium_discount,
)
from keeper.seams import Reads
from keeper.types import ZERO_ADDRESS, Address, Health, Option, Outcome, ProtocolCall, Refusal

FLAG_SELECTOR: Final = FLAG.selector
LIQUIDATE_SELECTOR: Final = LIQUIDATE.selector
_TOO_LARGE: Final = "over_liquidation_delta"
_ORDERS: Final = STATE.function("delayedOrders")


class Step(StrEnum):
    """What one transaction does to a position."""

    BOTH = "flag and liquidate"
    FLAG = "flag"
    LIQUIDATE = "liquidate"


@dataclass(frozen=True, slots=True)
class Choice:
    """What an option remembers: what is done, and in sUSD what it pays at once and what a later liquidation owes."""

    market: Market
    step: Step
    reward_raw: int
    later_raw: int


def find_options(health: Health, marks: PerpsMarks, liquidator: Address | None) -> Sequence[Option | Refusal]:
    """The one way there is now, or why there is none; `liquidator` is who carries it out."""
    account: Account = health.detail
    if not health.liquidatable:
        return [Refusal("options", "healthy", {"health_factor_wad": str(health.health_factor_wad)})]
    parameters, size = marks.parameters, account.holding.size
    flag_raw, keeper_raw = flag_fee(parameters, size, marks.price), parameters.keeper_fee_raw
    gate = _gate(parameters, size, marks.skew)
    if account.flagger is None:
        if gate is not None:
            # what is too large for anybody else is closed by an endorsed account, which pays the flag alone
            later_raw = flag_raw if gate.reason == _TOO_LARGE else flag_raw + keeper_raw
            return [_option(health, marks, Step.FLAG, 0, later_raw)]
        return [_option(health, marks, Step.BOTH, flag_raw + keeper_raw, 0)]
    ours = account.flagger == liquidator
    if gate is not None:
        numbers = {**gate.numbers, "flagger": account.flagger, "flag_fee_raw": flag_raw if ours else 0}
        return [Refusal("options", gate.reason, numbers)]
    reward_raw = keeper_raw + (flag_raw if ours else 0)
    if not reward_raw:
        return [Refusal("options", "flagged_by_another", {"flagger": account.flagger, "keeper_fee_raw": 0})]
    return [_option(health, marks, Step.LIQUIDATE, reward_raw, 0)]


def outcome_of(option: Option) -> Reads[Outcome | Refusal]:
    """What the transaction pays; flagging also pays the keeper's deposit of an order that is pending."""
    choice: Choice = option.detail
    deposit_raw = 0
    if choice.step is not Step.LIQUIDATE:
        [order] = yield from ask([(_ORDERS, choice.market.state, (option.key.account,))])
        _, size_delta, _, _, _, keeper_deposit_raw, _, _, _ = order
        deposit_raw = keeper_deposit_raw if size_delta else 0
    return Outcome(0, choice.reward_raw + deposit_raw, choice.later_raw)


def calls_of(option: Option) -> Sequence[ProtocolCall]:
    """The step's calls; nothing is paid, so nothing is approved."""
    choice: Choice = option.detail
    steps = {Step.BOTH: (FLAG, LIQUIDATE), Step.FLAG: (FLAG,), Step.LIQUIDATE: (LIQUIDATE,)}[choice.step]
    return [
        ProtocolCall(choice.market.proxy, ZERO_ADDRESS, 0, function.encode(option.key.account))
        for function in steps
    ]


def account_of(calldata: bytes) -> Address | None:
    """The account that a step is about; None for anything else."""
    for function in (FLAG, LIQUIDATE):
        if calldata[:4] == function.selector:
            return Address(function.decode_input(calldata)[0])
    return None


def _gate(parameters: Parameters, size: int, skew: int) -> Refusal | None:
    """Why the market would not let the second step pass now (PerpsV2MarketLiquidate.liquidatePosition)."""
    delta, pd = liquidation_delta(parameters, size), premium_discount(parameters, skew)
    if delta >= parameters.max_liquidation_delta:
        numbers = {"delta": delta, "max_liquidation_delta": parameters.max_liquidation_delta}
        return Refusal("options", _TOO_LARGE, numbers)
    if pd >= parameters.max_pd:
        return Refusal("options", "over_max_pd", {"pd": pd, "max_pd": parameters.max_pd})
    return None


def _option(health: Health, marks: PerpsMarks, step: Step, reward_raw: int, later_raw: int) -> Option:
    susd = marks.market.susd
    return Option(
        key=health.key,
        repay_token=susd,
        seize_token=susd,
        max_repay_raw=0,
        partial_max_repay_raw=0,
        min_repay_raw=0,
        repay_price_base=marks.susd_price,
        seize_price_base=marks.susd_price,
        detail=Choice(marks.market, step, reward_raw, later_raw),
        repay_round=marks.susd_round,
        seize_round=marks.susd_round,
    )
