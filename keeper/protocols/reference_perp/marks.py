"""What moves at every head: marks, funding, parameters, pause, fund, the house, and the liquidator's account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from keeper.errors import AdapterError
from keeper.fixed import WAD
from keeper.protocols.reference_perp.exchange import (
    EXCHANGE,
    FEED,
    HOUSE,
    Exchange,
    Question,
    answered,
    calls_of,
)
from keeper.protocols.reference_perp.positions import (
    ACCOUNT_OF,
    CONSTANTS,
    PER_MARKET,
    POSITION_OF,
    told_holding,
)
from keeper.protocols.reference_perp.rules import (
    Holding,
    Live,
    Market,
    MarketParameters,
    MarketState,
    Parameters,
    fixed_reward,
    live_of,
)
from keeper.seams import Reads
from keeper.types import Address, BlockTime, Refusal, Result, Reverted, Weights

# A row adds up four terms for each of 256 markets at most, so a part in 10^12 covers every rounding of a float.
_FLOAT_MARGIN: Final = 1e-12
_UNPRICED: Final = 1e200
# The contract rounds each of value, debt of funding, two ratios, margin, penalty and share once, by a unit at most.
_CUT: Final = 16.0
_PARAMETERS_OF, _STATE_OF = EXCHANGE.function("parametersOf"), EXCHANGE.function("stateOf")
_ROUND: Final = FEED.function("latestRoundData")
_ROUND_LENGTH: Final = 5 * 32  # less is an address without code
_NOTHING: Final = Live(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Heir:
    """The liquidator's newest account, number 0 where it is still to be opened; `collateral` is what lies there."""

    number: int
    collateral: int
    in_markets: bool


@dataclass(frozen=True, slots=True)
class ExchangeMarks:
    """The exchange as of `timestamp_s`; `heir` is None where nobody takes positions over."""

    exchange: Exchange
    timestamp_s: int
    parameters: Parameters
    markets: tuple[Market, ...]
    liquidation_paused: bool
    gated_until_s: int
    fund: int
    house: Holding
    heir: Heir | None

    def unusable(self, holding: Holding) -> Mapping[str, Any] | None:
        """The first market of an account that has no mark, and why; None where it can be judged."""
        for stake in holding.stakes:
            if why := self.markets[stake.market].unusable:
                return {"market": stake.market, "reason": why}
        return None

    def weights(self) -> Mapping[int, Weights]:
        """Row weights, shape (2 + 4 · markets,): see `positions.rows_of` for the columns.

        The bound: margin grows with size and with its square as the ratio does; the reward is at most the fixed one
        and the share of the penalty together, and at most its cap; each rounding takes less than a unit, or a unit of
        the ratio, which is what `_CUT` and the column of absolutes pay for.
        """
        terms, values = self.parameters, np.zeros(CONSTANTS + PER_MARKET * len(self.markets))
        values[0], values[1] = 1.0, -_FLOAT_MARGIN
        fixed = fixed_reward(terms)
        capped = terms.max_reward <= fixed
        for market in self.markets:
            column, given, live = CONSTANTS + PER_MARKET * market.number, market.parameters, market.live
            if market.unusable:
                values[column : column + 2] = -_UNPRICED
                continue
            price, scalar = live.price / WAD, given.maintenance_scalar / WAD
            slope = given.margin_slope / given.skew_scale / WAD * scalar
            ratio = given.min_initial_ratio / WAD * scalar
            share = 0.0 if capped else given.penalty_ratio / WAD * (terms.keeper_share / WAD)
            wanted = price * (ratio + share) + slope
            for side, signed, index in ((0, price, live.long_index), (1, -price, live.short_index)):
                owed = index / WAD
                spare = _FLOAT_MARGIN * (price + abs(owed) + wanted)
                values[column + side] = signed - owed - wanted - spare
            values[column + 2] = -price * slope * (1.0 + _FLOAT_MARGIN)
            reward = float(min(terms.max_reward, fixed))
            values[column + 3] = -(reward + given.min_margin + ratio) * (1.0 + _FLOAT_MARGIN) - _CUT
        return {0: Weights(values, 1.0)}


class MarksReader:
    """Reads the marks of one loaded exchange in one round; the calls are the same at every head and encoded once."""

    def __init__(self, exchange: Exchange, liquidator: Address | None) -> None:
        self._exchange = exchange
        at, heir = exchange.address, exchange.heir
        asked: dict[str, Question] = {
            name: (EXCHANGE.function(name), at, ())
            for name in ("marketCount", "parameters", "liquidationPaused", "gatedUntil", "fund")
        }
        asked["house"] = (ACCOUNT_OF, at, (HOUSE,))
        if liquidator is not None:
            asked["newestOf"] = (EXCHANGE.function("newestOf"), at, (liquidator,))
            asked["heir"] = (ACCOUNT_OF, at, (heir,))
        for number, feed in enumerate(exchange.feeds):
            asked[f"parameters {number}"] = (_PARAMETERS_OF, at, (number,))
            asked[f"state {number}"] = (_STATE_OF, at, (number,))
            asked[f"house {number}"] = (POSITION_OF, at, (HOUSE, number))
            asked[f"feed {number}"] = (_ROUND, feed.address, ())
        self._asked = asked
        self._calls = calls_of(list(asked.values()))

    def read(self, at: BlockTime) -> Reads[ExchangeMarks | Refusal | None]:
        """One head, projected to `at.timestamp_s`; None where what was loaded is no longer so.

        Refused with no_market where no market has a mark.
        """
        results = yield self._calls
        raw = dict(zip(self._asked, results, strict=True))
        told = {
            name: answered(function, raw[name])
            for name, (function, _, _) in self._asked.items()
            if function is not _ROUND
        }
        exchange, count = self._exchange, len(self._exchange.feeds)
        given = [MarketParameters(*told[f"parameters {number}"]) for number in range(count)]
        moved = (
            any(each.feed != feed.address for each, feed in zip(given, exchange.feeds, strict=True))
            or told.get("newestOf", exchange.heir) != exchange.heir
        )
        if moved or told["marketCount"] != count:
            return None
        markets = tuple(
            _market(exchange, number, given[number], MarketState(*told[f"state {number}"]), raw, at)
            for number in range(count)
        )
        if all(market.unusable for market in markets):
            reasons = {f"market_{market.number}": market.unusable for market in markets}
            return Refusal("marks", "no_market", reasons)
        return ExchangeMarks(
            exchange=exchange,
            timestamp_s=at.timestamp_s,
            parameters=Parameters(*told["parameters"]),
            markets=markets,
            liquidation_paused=told["liquidationPaused"],
            gated_until_s=told["gatedUntil"],
            fund=told["fund"],
            house=told_holding(told["house"], [(number, told[f"house {number}"]) for number in range(count)]),
            heir=_heir(exchange, told) if "heir" in told else None,
        )


def _heir(exchange: Exchange, told: Mapping[str, Any]) -> Heir:
    if not exchange.heir:
        return Heir(0, 0, False)
    _, _, _, _, collateral, markets = told["heir"]
    return Heir(exchange.heir, collateral, bool(markets))


def _market(
    exchange: Exchange,
    number: int,
    parameters: MarketParameters,
    state: MarketState,
    raw: Mapping[str, Result],
    at: BlockTime,
) -> Market:
    if at.timestamp_s < state.updated_s:
        raise AdapterError(
            f"Funding was updated at {state.updated_s}, after the timestamp {at.timestamp_s} asked for."
        )
    price, why = _price(exchange, number, parameters, raw[f"feed {number}"], at)
    live = _NOTHING if why else live_of(parameters, state, price, at.timestamp_s)
    return Market(number, parameters, state, live, why)


def _price(
    exchange: Exchange, number: int, parameters: MarketParameters, result: Result, at: BlockTime
) -> tuple[int, str | None]:
    """The mark, or why the exchange would take none (_answer)."""
    if isinstance(result, Reverted) or len(result) < _ROUND_LENGTH:
        return 0, "missing_price"
    _, answer, _, updated_s, _ = answered(_ROUND, result)
    if answer <= 0:
        return 0, "missing_price"
    if not 0 <= at.timestamp_s - updated_s <= parameters.max_age_s:
        return 0, "stale_price"
    return answer * exchange.feeds[number].scale, None


def prices_of(markets: Sequence[Market]) -> Mapping[Address, int]:
    """Every feed's mark, 0 where it is of no use."""
    return {market.parameters.feed: market.live.price for market in markets}
