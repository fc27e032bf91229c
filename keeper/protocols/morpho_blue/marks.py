"""What moves at every head: what markets owe in all, oracle prices, rates, and what a loan token is worth in dollars.

Asked are the markets in which somebody owes, whose both tokens can be valued; two rounds for all of them, because a
rate model is asked with what its market said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from keeper import abi
from keeper.errors import AdapterError
from keeper.fixed import WAD, mul_div_down
from keeper.protocols.morpho_blue.market import (
    FEED,
    MORPHO,
    ORACLE,
    PRICE_DECIMALS,
    Market,
    UsdFeed,
    answered,
)
from keeper.protocols.morpho_blue.rules import MAX_UINT128, PRICE_SCALE, Totals, accrued
from keeper.seams import Reads
from keeper.types import ZERO_ADDRESS, Address, BlockTime, Refusal, Result, Reverted, Weights

_TOTALS: Final = MORPHO.function("market")
_PRICE: Final = ORACLE.function("price")
_ROUND: Final = FEED.function("latestRoundData")
_RATE: Final = abi.load("MorphoIrm").function("borrowRateView")
# Where the driver's batches go through anyway: it tells the time at which the other calls of a round are answered.
_CLOCK: Final = abi.load("Multicall3").function("getCurrentBlockTimestamp")
_CLOCK_AT: Final = Address(bytes.fromhex("cA11bde05977b3631167028862bE2a173976CA11"))

# Float64 keeps 53 bits; a part in 10^12 covers every rounding of a row's two terms.
_FLOAT_MARGIN: Final = 1e-12
# A debt without a price weighs so much that its owner is always looked at, and the refusal is recorded.
_UNPRICED: Final = 1e200
# The contract cuts what may be owed twice, by less than a unit before and after the LLTV, and rounds the debt up by
# less than one; whoever owes a whole unit too much is therefore below 2 here.
_SLACK: Final = 2.0


@dataclass(frozen=True, slots=True)
class UsdPrice:
    """Dollars with 18 decimals, the round they are of, and how old they are in seconds."""

    price: int
    round_id: int
    age_s: int


@dataclass(frozen=True, slots=True)
class State:
    """A market as of one time, with its interest accrued; `why_not` says why nobody can be liquidated in it.

    `price` is the oracle's, scaled by 1e36; `loan` and `collateral` are dollars, the latter by the oracle's own price.
    """

    market: Market
    totals: Totals
    price: int
    loan: UsdPrice
    why_not: Refusal | None = None

    @property
    def collateral_price(self) -> int:
        """What a whole collateral token is worth in dollars with 18 decimals, by the market's own oracle."""
        return self.dollars_at(self.price)

    def dollars_at(self, price: int) -> int:
        """The same at another price of the oracle."""
        market = self.market
        return mul_div_down(
            price * self.loan.price, 10**market.collateral.decimals, PRICE_SCALE * 10**market.loan.decimals
        )

    @property
    def weights(self) -> Weights:
        """Row weights: what a raw unit of collateral may owe, and what a borrow share owes."""
        if self.why_not is not None:
            return Weights(np.array([0.0, -_UNPRICED]), _SLACK)
        may_owe = self.price / PRICE_SCALE * (self.market.lltv_wad / WAD) * (1 - _FLOAT_MARGIN)
        owes = self.totals.owed_per_share * (1 + _FLOAT_MARGIN)
        return Weights(np.array([may_owe, -owes]), _SLACK)


@dataclass(frozen=True, slots=True)
class MorphoMarks:
    """States by market number, and dollar prices by token; a market that was not asked has no state."""

    timestamp_s: int
    states: Mapping[int, State]
    prices: Mapping[Address, int]


def read_marks(
    morpho: Address,
    markets: Sequence[Market],
    feeds: Mapping[Address, UsdFeed],
    max_price_age_s: int | None,
    at: BlockTime,
) -> Reads[MorphoMarks]:
    """Read what `markets` say, all of whose tokens have a feed, as a block at `at.timestamp_s` would find them.

    A rate model is asked for the rate since the last accrual. `at` may lie after the block that answers; then the last
    accrual it is told of lies as much earlier, so that it sees the time that will have passed.
    """
    if not markets:
        return MorphoMarks(at.timestamp_s, {}, {})
    valued = list(dict.fromkeys(token.address for each in markets for token in (each.loan, each.collateral)))
    results = yield [
        _CLOCK.call(_CLOCK_AT),
        *(_TOTALS.call(morpho, each.id) for each in markets),
        *(_PRICE.call(each.oracle) for each in markets),
        *(_ROUND.call(feeds[token].address) for token in valued),
    ]
    count = len(markets)
    now_s = int(answered(_CLOCK, results[0])[0])
    totals = [Totals(*answered(_TOTALS, result)) for result in results[1 : 1 + count]]
    prices = [_price(result) for result in results[1 + count : 1 + 2 * count]]
    dollars = {
        token: _usd(result, feeds[token], at)
        for token, result in zip(valued, results[1 + 2 * count :], strict=True)
    }
    if late := [each for each in totals if each.last_update_s > at.timestamp_s]:
        raise AdapterError(
            f"A market accrued at {late[0].last_update_s}, after the timestamp {at.timestamp_s} asked for."
        )
    changing = [
        place
        for place, (market, each) in enumerate(zip(markets, totals, strict=True))
        if market.irm != ZERO_ADDRESS and each.last_update_s < at.timestamp_s
    ]
    rates = yield [
        _RATE.call(markets[place].irm, markets[place].params, _asked(totals[place], at.timestamp_s - now_s))
        for place in changing
    ]
    rate_of = dict(zip(changing, rates, strict=True))
    states = {}
    for place, market in enumerate(markets):
        rate_wad = _rate(rate_of[place]) if place in rate_of else 0
        loan, price = dollars[market.loan.address], prices[place]
        after = accrued(totals[place], rate_wad or 0, at.timestamp_s)
        why_not = _why_not(market, after, rate_wad, price, loan, max_price_age_s)
        states[market.number] = State(market, after, price or 0, loan, why_not)
    return MorphoMarks(at.timestamp_s, states, {token: each.price for token, each in dollars.items()})


def _why_not(
    market: Market,
    totals: Totals,
    rate_wad: int | None,
    price: int | None,
    loan: UsdPrice,
    max_price_age_s: int | None,
) -> Refusal | None:
    numbers = {"market": market.id, "loan": market.loan.symbol, "collateral": market.collateral.symbol}
    if (
        rate_wad is None
        or max(totals.borrow_assets, totals.supply_assets, totals.supply_shares) > MAX_UINT128
    ):
        return Refusal("assess", "no_rate", {**numbers, "irm": market.irm})
    if not price:
        reason = "oracle_reverts" if price is None else "missing_price"
        return Refusal("assess", reason, {**numbers, "oracle": market.oracle})
    if not loan.price:
        return Refusal("assess", "missing_usd_price", numbers)
    if max_price_age_s is not None and loan.age_s > max_price_age_s:
        return Refusal("assess", "stale_price", {**numbers, "age_s": loan.age_s})
    return None


def _asked(totals: Totals, ahead_s: int) -> tuple[int, ...]:
    return (
        totals.supply_assets,
        totals.supply_shares,
        totals.borrow_assets,
        totals.borrow_shares,
        totals.last_update_s - ahead_s,
        totals.fee_wad,
    )


def _price(result: Result) -> int | None:
    """An oracle's price; None where it does not tell one, or one that no liquidation could be reckoned with."""
    if isinstance(result, Reverted) or len(result) != 32:
        return None
    price = int.from_bytes(result)
    return price if price <= MAX_UINT128 * PRICE_SCALE else None


def _rate(result: Result) -> int | None:
    if isinstance(result, Reverted) or len(result) != 32:
        return None
    return int.from_bytes(result)


def _usd(result: Result, feed: UsdFeed, at: BlockTime) -> UsdPrice:
    """What an aggregator says, 0 where that is nothing."""
    if isinstance(result, Reverted) or len(result) != 160:
        return UsdPrice(0, 0, 0)
    round_id, answer, _, updated_s, _ = _ROUND.decode(result)
    price = max(answer, 0) * 10 ** (PRICE_DECIMALS - feed.decimals)
    return UsdPrice(price, round_id, max(at.timestamp_s - updated_s, 0))
