"""The exchange's arithmetic on plain integers, rounded as its contracts round (Perp Curie 2.8.4).

Amounts and prices are in 10⁻¹⁸ (`_wad`) unless a name says otherwise; ratios are in millionths (`_ppm`); `_x96` values
carry 96 binary places. Solidity divides signed integers toward zero: `div` and `mul_div` do too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keeper.fixed import WAD

Q96: Final[int] = 1 << 96
PPM: Final[int] = 1_000_000
DUST: Final = 10  # AccountBalance._DUST
SMALL_POSITION_WAD: Final = 100 * WAD  # AccountBalance._MIN_PARTIAL_LIQUIDATE_POSITION_VALUE
FUNDING_PERIOD_S: Final = 86_400  # Funding._DEFAULT_FUNDING_PERIOD
MARKET_PRICE_S: Final = 15  # AccountBalance._getMarkPrice
MIN_TWAP_S: Final = 10  # UniswapV3Broker.getSqrtMarketTwapX96From: below it the current price is meant
COLLATERAL_TWAP_S: Final = 900  # Vault._COLLATERAL_TWAP_INTERVAL
PRICE_LIMIT_S: Final = 15  # Exchange._PRICE_LIMIT_INTERVAL
RING: Final = 1_800  # CumulativeTwap.MAX_OBSERVATION


@dataclass(frozen=True, slots=True)
class Parameters:
    """ClearingHouseConfig; intervals in seconds."""

    im_ratio_ppm: int
    mm_ratio_ppm: int
    penalty_ppm: int
    max_funding_ppm: int
    twap_interval_s: int
    mark_twap_s: int
    premium_interval_s: int
    balance_cap_raw: int


def ten_to(power: int) -> int:
    """10 to a natural power."""
    return int(10**power)


def div(a: int, b: int) -> int:
    """a / b toward zero, as Solidity."""
    return -(-a // b) if a < 0 else a // b


def mul_div(a: int, b: int, denominator: int) -> int:
    """a·b / denominator toward zero (PerpMath.mulDiv); the denominator is positive."""
    product = abs(a) * abs(b) // denominator
    return -product if (a < 0) != (b < 0) else product


def mul_div_up(a: int, b: int, denominator: int) -> int:
    """⌈a·b / denominator⌉ of naturals (FullMath.mulDivRoundingUp)."""
    return -(-a * b // denominator)


def mul_ratio(value: int, ppm: int) -> int:
    """value · ppm / 10⁶ toward zero (PerpMath.mulRatio)."""
    return mul_div(value, ppm, PPM)


def price_x96(sqrt_price_x96: int) -> int:
    """A square root price as a price (PerpMath.formatSqrtPriceX96ToPriceX96)."""
    return sqrt_price_x96 * sqrt_price_x96 // Q96


def price_wad(sqrt_price_x96: int) -> int:
    """A square root price as a price in 10⁻¹⁸ (AccountBalance._getMarketPrice)."""
    return price_x96(sqrt_price_x96) * WAD // Q96


def floor_wad(value_wad: int, unit_wad: int) -> int:
    """A value cut to whole raw units of the settlement token, downwards (SettlementTokenMath.formatSettlementToken)."""
    return value_wad // unit_wad * unit_wad


# --- the index price -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Observation:
    """A price, its sum over seconds before it was set, and when it was set (CumulativeTwap.Observation)."""

    price: int
    cumulative: int
    timestamp_s: int


def index_twap(
    observations: Sequence[Observation], price: int, updated_s: int, interval_s: int, now_s: int
) -> int | None:
    """The feed's price over the last `interval_s` (CachedTwap._getTwap); None where the feed would revert.

    A feed that is updated in a block in which it had cached its average answers the old one until that block is over;
    this is what it answers from the next on. `observations` are consecutive ones up to the newest, from one at or
    before the interval or from the oldest of all.
    """
    if not interval_s or not observations:
        return price
    newest = observations[-1]
    if updated_s < newest.timestamp_s or now_s < updated_s:
        return None
    if updated_s == newest.timestamp_s and price != newest.price:
        return None
    target_s = now_s - interval_s
    now = newest.cumulative + newest.price * (updated_s - newest.timestamp_s) + price * (now_s - updated_s)
    then = _cumulative_at(observations, target_s)
    if then is None:
        return price
    if now < then:  # it extrapolates its newest observation beyond an update to a lower price
        return None
    return (now - then) // interval_s or price


def _cumulative_at(observations: Sequence[Observation], target_s: int) -> int | None:
    newest = observations[-1]
    if newest.timestamp_s <= target_s:
        return newest.cumulative + newest.price * (target_s - newest.timestamp_s)
    for before, after in zip(observations[-2::-1], observations[:0:-1], strict=True):
        if before.timestamp_s <= target_s:
            grown, elapsed_s = after.cumulative - before.cumulative, after.timestamp_s - before.timestamp_s
            return before.cumulative + grown * (target_s - before.timestamp_s) // elapsed_s
    return None


# --- mark price and funding ------------------------------------------------------------------------------------------


def mark_price_wad(
    market_wad: int, market_twap_wad: int, premium_market_wad: int, premium_index_wad: int, index_wad: int
) -> int | None:
    """The median that positions are valued at (AccountBalance._getMarkPrice); None where it would revert."""
    with_premium = index_wad + premium_market_wad - premium_index_wad
    if with_premium < 0:
        return None
    return sorted((market_wad, market_twap_wad, with_premium))[1]


def premium_growth_x96(
    stored_x96: int,
    last_settled_s: int,
    now_s: int,
    market_twap_x96: int,
    index_twap_wad: int,
    max_funding_ppm: int,
) -> int:
    """The premium's sum over seconds as of `now_s` (Exchange._getFundingGrowthGlobalAndTwaps)."""
    if last_settled_s in (0, now_s):
        return stored_x96
    index_x96 = index_twap_wad * Q96 // WAD
    most = mul_ratio(index_x96, max_funding_ppm)
    premium = max(-most, min(most, market_twap_x96 - index_x96))
    return stored_x96 + premium * (now_s - last_settled_s)


def funding_payment_wad(base: int, last_growth_x96: int, growth_x96: int) -> int:
    """What a taker owes for funding (Funding.calcPendingFundingPaymentWithLiquidityCoefficient without orders)."""
    return div(mul_div(base, growth_x96 - last_growth_x96, Q96), FUNDING_PERIOD_S)


def position_value_wad(size: int, mark_wad: int) -> int:
    """A position at the mark price (AccountBalance._getPositionValue)."""
    return mul_div(size, mark_wad, WAD)


def without_dust(size: int) -> int:
    """What the contracts count of a size: fewer than ten units are nothing."""
    return 0 if abs(size) < DUST else size


def liquidatable_size(
    size: int, value_wad: int, total_value_wad: int, account_value_wad: int, requirement_wad: int
) -> int:
    """The most of a position that may be taken over (AccountBalance.getLiquidatablePositionSize); signed.

    `value_wad` and `total_value_wad` are absolute: of this position and of all. Where half of all is more than 16.7
    times this one, the contract fails to cut the share to 24 bits, so nothing can be taken here.
    """
    if account_value_wad >= requirement_wad or not size:
        return 0
    if value_wad <= SMALL_POSITION_WAD or account_value_wad < div(requirement_wad, 2):
        return size
    share_ppm = total_value_wad * PPM // (2 * value_wad)
    return mul_ratio(size, min(PPM, share_ppm)) if share_ppm < 1 << 24 else 0


# --- collateral besides the settlement token -------------------------------------------------------------------------


def collateral_value_wad(amount_raw: int, decimals: int, price: int, price_unit: int) -> int:
    """A token amount at the feed's price (Vault._getSettlementByCollateral)."""
    if decimals > 18:
        return amount_raw * price // price_unit // ten_to(decimals - 18)
    return amount_raw * ten_to(18 - decimals) * price // price_unit


def collateral_for_raw(value_wad: int, decimals: int, price: int, price_unit: int) -> int:
    """A value as a token amount (Vault._getCollateralBySettlement)."""
    if decimals > 18:
        return mul_div_up(value_wad * ten_to(decimals - 18), price_unit, price)
    return mul_div_up(value_wad, price_unit, price) // ten_to(18 - decimals)
