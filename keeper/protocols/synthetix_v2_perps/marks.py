"""What moves at every head: the rate, funding, parameters and switches, and what sUSD is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from keeper.errors import AdapterError
from keeper.protocols.synthetix_v2_perps.market import (
    FEED,
    RATES,
    SETTINGS,
    STATE,
    STATUS,
    SUSD_KEY,
    Market,
    answered,
    ask,
    calls_of,
)
from keeper.protocols.synthetix_v2_perps.rules import UNIT, Funding, Parameters, funding_entry
from keeper.seams import Reads
from keeper.types import BlockTime, Refusal, Weights

# Float64 keeps 53 bits; a row multiplies and adds five terms, so a part in 10^12 covers every rounding of it.
_FLOAT_MARGIN: Final = 1e-12
# The contract cuts profit and funding to whole units once each, towards zero.
_CUT_RAW: Final = 2
_ENTRY: Final = STATE.function("fundingSequence")


@dataclass(frozen=True, slots=True)
class PerpsMarks:
    """A market as of `timestamp_s`: `entry` is what the funding sequence would get then, `price` its rate.

    `susd_price` is dollars with 18 decimals for a whole sUSD, by its own feed, which said so in `susd_round`.
    """

    market: Market
    timestamp_s: int
    parameters: Parameters
    skew: int
    price: int
    entry: int
    susd_price: int
    susd_round: int

    def weights(self) -> Mapping[int, Weights]:
        """Row weights, shape (5,): see `positions.rows_of` for the columns.

        A margin Σ value · weight is what a position's margin exceeds its liquidation margin and premium by, less the
        part of both fees that does not grow with size, which is the slack. The bound: fees and premium are cut down
        to whole units one by one, so the contract wants at most what is counted here; the flagger's fee is at most
        its share of the notional plus its minimum; and profit and funding each lose less than a unit.
        """
        terms = self.parameters
        price, moved = self.price / UNIT, (self.price + self.entry) / UNIT
        wanted = price * (terms.buffer_ratio + terms.flag_fee_ratio) / UNIT
        spare = (price + abs(self.entry) / UNIT + wanted) * _FLOAT_MARGIN
        premium = price * (terms.premium_multiplier / UNIT) / terms.skew_scale
        values = np.array(
            [
                1.0 - _FLOAT_MARGIN,
                -1.0 - _FLOAT_MARGIN,
                moved - wanted - spare,
                -moved - wanted - spare,
                -premium * (1.0 + _FLOAT_MARGIN),
            ]
        )
        slack = (terms.keeper_fee_raw + terms.min_flag_fee_raw) * (1.0 + _FLOAT_MARGIN) + _CUT_RAW + 1.0
        return {0: Weights(values, slack)}


class MarksReader:
    """Reads the marks of one loaded market; the calls are the same at every head and encoded once."""

    def __init__(self, market: Market, max_susd_price_age_s: int) -> None:
        self._market = market
        self._max_susd_price_age_s = max_susd_price_age_s
        status, rates, settings, state = market.status, market.rates, market.settings, market.state
        switches: dict[str, tuple[str, Sequence[Any]]] = {
            "system_suspended": ("systemSuspension", ()),
            "exchange_suspended": ("exchangeSuspension", ()),
            "futures_suspended": ("futuresSuspension", ()),
            "market_suspended": ("futuresMarketSuspension", (market.key,)),
            "synth_suspended": ("synthSuspension", (market.base,)),
            "susd_suspended": ("synthSuspension", (SUSD_KEY,)),  # the reward could not be passed on
        }
        asked = {reason: (STATUS.function(name), status, given) for reason, (name, given) in switches.items()}
        self._switches = tuple(asked)
        for name in ("rateAndUpdatedTime", "rateAndInvalid", "rateIsFlagged"):
            asked[name] = (RATES.function(name), rates, (market.base,))
        asked["rateStalePeriod"] = (RATES.function("rateStalePeriod"), rates, ())
        asked["parameters"] = (SETTINGS.function("parameters"), settings, (market.key,))
        for name in ("minKeeperFee", "maxKeeperFee", "liquidationFeeRatio", "keeperLiquidationFee"):
            asked[name] = (SETTINGS.function(name), settings, ())
        for name in (
            "marketSkew",
            "fundingLastRecomputed",
            "fundingRateLastRecomputed",
            "fundingSequenceLength",
        ):
            asked[name] = (STATE.function(name), state, ())
        asked["susd"] = (FEED.function("latestRoundData"), market.susd_feed, ())
        self._asked = asked
        self._calls = calls_of(list(asked.values()))

    def read(self, at: BlockTime) -> Reads[PerpsMarks | Refusal]:
        """Read one head in two rounds, projected to `at.timestamp_s`.

        Refused where the market would let nobody liquidate: caches_stale, (system, exchange, futures, market, synth,
        susd)_suspended, missing_price, stale_price, flagged_price or circuit_broken; and where sUSD's own feed is of
        no use, as missing_price or stale_price.
        """
        market = self._market
        if not market.cached:
            return Refusal("marks", "caches_stale", {"market": market.proxy})
        results = yield self._calls
        told = {
            name: answered(function, result)
            for (name, (function, _, _)), result in zip(self._asked.items(), results, strict=True)
        }
        refusal = self._suspended(told) or self._unpriced(told, at) or self._unpriced_susd(told, at)
        if refusal is not None:
            return refusal
        recomputed_s = told["fundingLastRecomputed"]
        if at.timestamp_s < recomputed_s:
            raise AdapterError(
                f"Funding was recomputed at {recomputed_s}, after the timestamp {at.timestamp_s} asked for."
            )
        [entry] = yield from ask([(_ENTRY, market.state, (told["fundingSequenceLength"] - 1,))])
        parameters = _parameters(told)
        if not parameters.skew_scale:
            raise AdapterError(f"The market {market.asset} has no skew scale: it is not set up.")
        skew, price = told["marketSkew"], told["rateAndInvalid"][0]
        funding = Funding(skew, told["fundingRateLastRecomputed"], entry, recomputed_s)
        round_id, answer, _, _, _ = told["susd"]
        return PerpsMarks(
            market=market,
            timestamp_s=at.timestamp_s,
            parameters=parameters,
            skew=skew,
            price=price,
            entry=funding_entry(parameters, funding, price, at.timestamp_s),
            susd_price=answer * UNIT // market.price_unit,
            susd_round=round_id,
        )

    def _suspended(self, told: Mapping[str, Any]) -> Refusal | None:
        for reason in self._switches:
            suspended, code = told[reason]
            if suspended:
                return Refusal("marks", reason, {"asset": self._market.asset, "reason_code": code})
        return None

    def _unpriced(self, told: Mapping[str, Any], at: BlockTime) -> Refusal | None:
        rate, updated_s = told["rateAndUpdatedTime"]
        age_s, most_s = at.timestamp_s - updated_s, told["rateStalePeriod"]
        numbers = {"asset": self._market.asset, "rate": rate}
        if not rate:
            return Refusal("marks", "missing_price", numbers)
        if age_s > most_s:
            return Refusal("marks", "stale_price", {**numbers, "age_s": age_s, "max_price_age_s": most_s})
        if told["rateIsFlagged"]:
            return Refusal("marks", "flagged_price", numbers)
        # what is left is a rate too far from the last one, which the breaker stops until it is reset
        return Refusal("marks", "circuit_broken", numbers) if told["rateAndInvalid"][1] else None

    def _unpriced_susd(self, told: Mapping[str, Any], at: BlockTime) -> Refusal | None:
        _, answer, _, updated_s, _ = told["susd"]
        age_s, most_s = at.timestamp_s - updated_s, self._max_susd_price_age_s
        if answer <= 0:
            return Refusal("marks", "missing_price", {"asset": "sUSD"})
        if age_s > most_s:
            return Refusal(
                "marks", "stale_price", {"asset": "sUSD", "age_s": age_s, "max_price_age_s": most_s}
            )
        return None


def _parameters(told: Mapping[str, Any]) -> Parameters:
    """Of the market's 22 parameters those that decide a liquidation, with the fees."""
    given = told["parameters"]
    return Parameters(
        max_funding_velocity=given[8],
        skew_scale=given[9],
        premium_multiplier=given[18],
        buffer_ratio=given[19],
        max_liquidation_delta=given[20],
        max_pd=given[21],
        min_flag_fee_raw=told["minKeeperFee"],
        max_flag_fee_raw=told["maxKeeperFee"],
        flag_fee_ratio=told["liquidationFeeRatio"],
        keeper_fee_raw=told["keeperLiquidationFee"],
    )
