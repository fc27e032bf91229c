"""The market's arithmetic, exactly: funding, margins, fees and gates, each rounded as its contract rounds it.

Everything is in units of 10^18; signed quotients round towards zero, as Solidity's do. Sources: PerpsV2MarketBase,
PerpsV2MarketLiquidate and PerpsV2MarketViews of synthetix 2.102.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

UNIT: Final = 10**18
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Parameters:
    """What governance sets: the market's parameters, then the fees that all markets share (PerpsV2MarketSettings)."""

    max_funding_velocity: int
    skew_scale: int
    premium_multiplier: int
    buffer_ratio: int
    max_liquidation_delta: int
    max_pd: int
    min_flag_fee_raw: int
    max_flag_fee_raw: int
    flag_fee_ratio: int
    keeper_fee_raw: int


@dataclass(frozen=True, slots=True)
class Funding:
    """The state funding grows from: the rate and the newest entry of the sequence, both as of `recomputed_s`."""

    skew: int
    rate: int
    entry: int
    recomputed_s: int


@dataclass(frozen=True, slots=True)
class Holding:
    """One position; `entry` is the funding sequence's at its last change. Below zero `size` is short."""

    margin_raw: int
    size: int
    last_price: int
    entry: int


def multiplied(x: int, y: int) -> int:
    """x · y / 10^18, towards zero (multiplyDecimal of either library)."""
    return _towards_zero(x * y, UNIT)


def divided(x: int, y: int) -> int:
    """x · 10^18 / y, towards zero (divideDecimal of either library)."""
    return _towards_zero(x * UNIT, y)


def funding_entry(parameters: Parameters, funding: Funding, price: int, timestamp_s: int) -> int:
    """The entry the funding sequence would get at `timestamp_s` (PerpsV2MarketBase._nextFundingEntry)."""
    elapsed = divided(timestamp_s - funding.recomputed_s, _DAY_S)
    proportional = min(max(divided(funding.skew, parameters.skew_scale), -UNIT), UNIT)
    velocity = multiplied(proportional, parameters.max_funding_velocity)
    rate = funding.rate + multiplied(velocity, elapsed)
    average = -divided(funding.rate + rate, 2 * UNIT)
    return funding.entry + multiplied(multiplied(average, elapsed), price)


def margin_left(holding: Holding, price: int, entry: int) -> int:
    """Margin with profit and funding, which may be below zero (_marginPlusProfitFunding)."""
    profit = multiplied(holding.size, price - holding.last_price)
    return holding.margin_raw + profit + multiplied(holding.size, entry - holding.entry)


def flag_fee(parameters: Parameters, size: int, price: int) -> int:
    """What whoever flagged a position is paid when it is liquidated (_liquidationFee)."""
    proportional = multiplied(multiplied(abs(size), price), parameters.flag_fee_ratio)
    return max(min(proportional, parameters.max_flag_fee_raw), parameters.min_flag_fee_raw)


def liquidation_margin(parameters: Parameters, size: int, price: int) -> int:
    """The buffer and both fees, which the margin must exceed (_liquidationMargin)."""
    buffer = multiplied(multiplied(abs(size), price), parameters.buffer_ratio)
    return buffer + flag_fee(parameters, size, price) + parameters.keeper_fee_raw


def liquidation_premium(parameters: Parameters, size: int, price: int) -> int:
    """What closing the position is taken to cost, by its size alone (_liquidationPremium)."""
    notional = abs(multiplied(size, price))
    share = divided(abs(size), parameters.skew_scale)
    return multiplied(multiplied(share, notional), parameters.premium_multiplier)


def can_liquidate(parameters: Parameters, holding: Holding, price: int, entry: int) -> bool:
    """Whether a position that is not flagged may be (_canLiquidate)."""
    if not holding.size:
        return False
    left = margin_left(holding, price, entry) - liquidation_premium(parameters, holding.size, price)
    return max(left, 0) <= liquidation_margin(parameters, holding.size, price)


def liquidation_price(parameters: Parameters, holding: Holding, price: int, entry: int) -> int:
    """The market's own estimate, with fees and funding as of `price` (_approxLiquidationPrice); 0 if there is none."""
    if not holding.size:
        return 0
    size = holding.size
    wanted = liquidation_margin(parameters, size, price) + liquidation_premium(parameters, size, price)
    found = holding.last_price + divided(wanted - holding.margin_raw, size) - (entry - holding.entry)
    return max(found, 0)


def liquidation_delta(parameters: Parameters, size: int) -> int:
    """A position's share of the skew scale, which must stay below `max_liquidation_delta` (liquidatePosition)."""
    return divided(abs(size), parameters.skew_scale)


def premium_discount(parameters: Parameters, skew: int) -> int:
    """The market's skew as a share of the scale, which must stay below `max_pd` (liquidatePosition)."""
    return divided(abs(skew), parameters.skew_scale)


def _towards_zero(numerator: int, denominator: int) -> int:
    quotient = abs(numerator) // abs(denominator)
    return quotient if (numerator < 0) == (denominator < 0) else -quotient
