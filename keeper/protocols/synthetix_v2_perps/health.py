"""A position judged as the market judges it, at the marks' timestamp and rate, exactly."""

from __future__ import annotations

from dataclasses import dataclass

from keeper.fixed import WAD, mul_div_up
from keeper.protocols.synthetix_v2_perps.marks import PerpsMarks
from keeper.protocols.synthetix_v2_perps.positions import flagger_of, holding_of
from keeper.protocols.synthetix_v2_perps.rules import (
    Holding,
    can_liquidate,
    liquidation_margin,
    liquidation_premium,
    margin_left,
)
from keeper.protocols.synthetix_v2_perps.rules import liquidation_price as price_of
from keeper.types import USD_E8, Address, BadDebt, Health, Position

SUSD_DECIMALS = 18


@dataclass(frozen=True, slots=True)
class Account:
    """The breakdown of a health, in sUSD; `remaining_raw` is cut off at zero. `flagger` is None before a flag."""

    holding: Holding
    remaining_raw: int
    liquidation_margin_raw: int
    premium_raw: int
    flagger: Address | None


def judge(position: Position, marks: PerpsMarks) -> Health:
    """What is left of the margin over what must be: the liquidation margin and the premium of closing.

    Both are in sUSD, which the protocol counts as dollars. A position may be liquidated at exactly 1 too, and once it
    is flagged at any health.
    """
    holding, flagger = holding_of(position.words), flagger_of(position)
    parameters, price = marks.parameters, marks.price
    left_raw = margin_left(holding, price, marks.entry)
    account = Account(
        holding=holding,
        remaining_raw=max(left_raw, 0),
        liquidation_margin_raw=liquidation_margin(parameters, holding.size, price),
        premium_raw=liquidation_premium(parameters, holding.size, price),
        flagger=flagger,
    )
    wanted = account.liquidation_margin_raw + account.premium_raw
    return Health(
        key=position.key,
        health_factor_wad=account.remaining_raw * WAD // wanted if wanted else None,
        collateral_base=account.remaining_raw,
        debt_base=wanted,
        base_decimals=SUSD_DECIMALS,
        liquidatable=flagger is not None or can_liquidate(parameters, holding, price, marks.entry),
        detail=account,
        bad_debt=(BadDebt(marks.market.susd, -left_raw, mul_div_up(-left_raw, USD_E8, WAD)),)
        if left_raw < 0
        else (),
    )


def liquidation_price(health: Health, marks: PerpsMarks) -> int | None:
    """The market's own estimate of the rate at which the position may be liquidated; None where it is never."""
    account: Account = health.detail
    return price_of(marks.parameters, account.holding, marks.price, marks.entry) or None
