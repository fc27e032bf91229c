"""What moves at every head: prices, accrued indices and switches, read in one round of calls.

Hidden here: how an account's e-mode changes the price, threshold and bonus of a reserve, and what is done about a
price that is missing or old.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keeper import abi
from keeper.errors import AdapterError
from keeper.fixed import RAY
from keeper.protocols.aave_v3.market import (
    ATOKEN,
    GET_RESERVE_DATA,
    LATEST_ROUND,
    ORACLE,
    POOL,
    Market,
    Reserve,
    ReserveConfig,
    answered,
)
from keeper.protocols.aave_v3.rules import debt_index_ray, liquidity_index_ray, row_threshold
from keeper.seams import Reads
from keeper.types import ZERO_ADDRESS, BlockTime, Call, Refusal, Result, Reverted, Weights

_SENTINEL: Final = abi.load("AavePriceOracleSentinel")
_ALLOWED: Final = _SENTINEL.function("isLiquidationAllowed")
_PRICES: Final = ORACLE.function("getAssetsPrices")
_PRICE: Final = ORACLE.function("getAssetPrice")
_VIRTUAL_BALANCE: Final = POOL.function("getVirtualUnderlyingBalance")
_BALANCE: Final = ATOKEN.function("balanceOf")
_PREMIUM: Final = POOL.function("FLASHLOAN_PREMIUM_TOTAL")

_RESERVE_DATA_SIZE: Final = 15 * 32

# Float64 keeps 53 bits; a row multiplies and adds a few hundred terms, so a part in 10^12 covers every rounding of it.
_FLOAT_MARGIN: Final = 1e-12
# A debt without a price weighs so much that its owner is always looked at, and the refusal is recorded.
_UNPRICED: Final = 1e200


@dataclass(frozen=True, slots=True)
class ReserveState:
    """A reserve as of one timestamp.

    `price` is 0 where the oracle has none. `price_age_s` and `round_id` are None where nobody tells them; `stale` says
    that the price is too old.
    `liquidity_raw` is what the reserve can pay out, None where the pool does not count it.
    """

    config: ReserveConfig
    liquidity_index_ray: int
    debt_index_ray: int
    liquidity_raw: int | None
    price: int
    price_age_s: int | None
    stale: bool
    round_id: int | None = None


@dataclass(frozen=True, slots=True)
class AaveMarks:
    """Prices, indices and parameters as of `timestamp_s`; `category_prices` are e-mode prices (until 3.1).

    `flash_premium_bps` is what a flash loan of any of the reserves costs.
    """

    market: Market
    timestamp_s: int
    states: tuple[ReserveState | None, ...]
    category_prices: Mapping[int, int]
    sentinel_allows: bool
    flash_premium_bps: int

    def state(self, reserve_id: int) -> ReserveState:
        """The state of a reserve that exists."""
        state = self.states[reserve_id] if reserve_id < len(self.states) else None
        if state is None:
            raise AdapterError(f"Reserve {reserve_id} has no marks: its market must be loaded again.")
        return state

    def in_category(self, reserve_id: int, group: int) -> bool:
        """Whether a reserve as collateral follows the parameters of e-mode `group`."""
        emode = self.market.emodes.get(group)
        if emode is None:
            return False
        if self.market.rules.category_emode:
            return self.state(reserve_id).config.category == group
        return bool(emode.collateral_bitmap >> reserve_id & 1)

    def threshold_bps(self, reserve_id: int, group: int) -> int:
        """The liquidation threshold of a collateral for an account in e-mode `group`."""
        if self.in_category(reserve_id, group):
            return self.market.emodes[group].threshold_bps
        return self.state(reserve_id).config.threshold_bps

    def bonus_bps(self, reserve_id: int, group: int) -> int:
        """The liquidation bonus of a collateral for an account in e-mode `group`, 10 000 included."""
        if self.in_category(reserve_id, group):
            return self.market.emodes[group].bonus_bps
        return self.state(reserve_id).config.bonus_bps

    def counted(self, reserve_id: int) -> bool:
        """Whether the reserve counts as collateral at all (GenericLogic skips threshold 0 until 3.5)."""
        return self.market.rules.zero_threshold_counts or self.state(reserve_id).config.threshold_bps != 0

    def price(self, reserve_id: int, group: int) -> int:
        """A reserve's price for an account in e-mode `group` (GenericLogic.calculateUserAccountData)."""
        state = self.state(reserve_id)
        if group and state.config.category == group:
            return self.category_prices.get(group) or state.price
        return state.price

    def round_of(self, reserve_id: int, price: int) -> int | None:
        """The oracle round a price is of; None where nobody tells it, or where it is an e-mode's own price."""
        state = self.state(reserve_id)
        return state.round_id if price == state.price else None

    def liquidation_debt_price(self, reserve_id: int, group: int) -> int:
        """What a liquidation prices debt at: until 3.1 an e-mode's own price, whatever the debt's category
        (LiquidationLogic._getConfigurationData).
        """
        return self.category_prices.get(group) or self.state(reserve_id).price

    def weights(self) -> dict[int, Weights]:
        """Row weights by e-mode, each of shape (2 · reserves,): collateral and debt of each reserve in turn.

        A margin Σ collateral · threshold − Σ debt below `slack` may be unsafe. The bound: rows already hold a raw unit
        less of collateral and more of debt than the contract may see; it then rounds each value by less than one base
        unit and the sum by less than one more, and until 3.4 cuts the average threshold by less than a basis point.
        """
        listed = list(self.market.listed())
        slack = 2.0 * len(listed) + 2.0
        plain = np.zeros(2 * len(self.states))
        for reserve in listed:
            self._weigh(plain, reserve, 0)
        weighed = {0: Weights(plain, slack)}
        for group in self.market.emodes:
            values = plain.copy()
            for reserve in listed:
                repriced = self.price(reserve.id, group) != self.price(reserve.id, 0)
                if repriced or self.in_category(reserve.id, group):
                    self._weigh(values, reserve, group)
            weighed[group] = Weights(values, slack)
        return weighed

    def _weigh(self, values: NDArray[np.float64], reserve: Reserve, group: int) -> None:
        """Set one reserve's two weights."""
        state = self.state(reserve.id)
        raw_value = self.price(reserve.id, group) / reserve.unit
        threshold = row_threshold(
            self.market.rules, self.threshold_bps(reserve.id, group), counted=self.counted(reserve.id)
        )
        collateral = state.liquidity_index_ray / RAY * raw_value * threshold
        debt = state.debt_index_ray / RAY * raw_value
        values[2 * reserve.id] = collateral * (1 - _FLOAT_MARGIN)
        values[2 * reserve.id + 1] = -(debt * (1 + _FLOAT_MARGIN)) if raw_value else -_UNPRICED


class MarksReader:
    """Reads the marks of one loaded market; the calls are the same at every head and encoded once."""

    def __init__(self, market: Market, max_price_age_s: int | None) -> None:
        self._market = market
        self._max_price_age_s = max_price_age_s
        self._reserves = list(market.listed())
        self._priced = [emode for emode in market.emodes.values() if emode.price_source != ZERO_ADDRESS]
        self._assets = [reserve.token.address for reserve in self._reserves]
        self._assets += [emode.price_source for emode in self._priced]
        self._timed = [] if max_price_age_s is None else [each for each in self._reserves if each.timed]
        calls = [_PRICES.call(market.oracle, self._assets)]
        calls += [GET_RESERVE_DATA.call(market.pool, reserve.token.address) for reserve in self._reserves]
        calls += [liquidity_call(market, reserve) for reserve in self._reserves]
        calls += [LATEST_ROUND.call(reserve.price_source) for reserve in self._timed]
        calls.append(_PREMIUM.call(market.pool))
        if market.sentinel != ZERO_ADDRESS:
            calls.append(_ALLOWED.call(market.sentinel))
        self._calls: Sequence[Call] = tuple(calls)

    def read(self, at: BlockTime) -> Reads[AaveMarks | Refusal]:
        """Read one head's prices and indices in one round, projected to `at.timestamp_s`.

        All prices come in one call; where one of them makes it revert they are asked one by one, and only the reserve
        without a price is unusable. Refused only when no reserve has a usable price.
        """
        market, count, timed = self._market, len(self._reserves), self._timed
        results = yield self._calls
        rounds = results[1 + 2 * count : 1 + 2 * count + len(timed)]
        told = {reserve.id: _round(result, at) for reserve, result in zip(timed, rounds, strict=True)}
        if isinstance(results[0], Reverted):
            singles = yield [_PRICE.call(market.oracle, asset) for asset in self._assets]
            prices: Sequence[int] = [0 if isinstance(one, Reverted) else _PRICE.one(one) for one in singles]
        else:
            prices = _PRICES.one(results[0])
        if len(prices) != len(self._assets):
            raise AdapterError(f"The oracle gave {len(prices)} prices for {len(self._assets)} assets.")

        states: list[ReserveState | None] = [None] * len(market.reserves)
        for index, reserve in enumerate(self._reserves):
            row = _reserve_row(results[1 + index])
            elapsed_s = at.timestamp_s - row[6]
            if elapsed_s < 0:
                raise AdapterError(
                    f"{reserve.token.symbol} was updated at {row[6]}, after the timestamp {at.timestamp_s} asked for."
                )
            config = ReserveConfig(row[0])
            round_id, age_s = told.get(reserve.id, (None, None))
            states[reserve.id] = ReserveState(
                config=config,
                liquidity_index_ray=liquidity_index_ray(row[1], row[2], elapsed_s),
                debt_index_ray=debt_index_ray(market.rules, row[3], row[4], elapsed_s),
                liquidity_raw=liquidity_of(market, config, results[1 + count + index]),
                price=prices[index],
                price_age_s=age_s,
                stale=reserve.id in told and (age_s is None or age_s > (self._max_price_age_s or 0)),
                round_id=round_id,
            )
        known = [state for state in states if state is not None]
        if known and not any(state.price and not state.stale for state in known):
            reason = "stale_price" if any(state.stale for state in known) else "missing_price"
            return Refusal("marks", reason, {"reserves": count, "max_price_age_s": self._max_price_age_s})
        return AaveMarks(
            market=market,
            timestamp_s=at.timestamp_s,
            states=tuple(states),
            category_prices=dict(
                zip((emode.category for emode in self._priced), prices[count:], strict=True)
            ),
            sentinel_allows=market.sentinel == ZERO_ADDRESS or bool(answered(_ALLOWED, results[-1])),
            flash_premium_bps=answered(_PREMIUM, results[1 + 2 * count + len(timed)]),
        )


def _reserve_row(result: Result) -> list[int]:
    """Configuration, liquidity index and rate, debt index and rate, the stable rate, and the last update: the first
    words of `getReserveData`, the rest of which was read at load.
    """
    if isinstance(result, Reverted) or len(result) != _RESERVE_DATA_SIZE:
        raise AdapterError(
            f"{GET_RESERVE_DATA.signature} did not answer {_RESERVE_DATA_SIZE} bytes: is this an Aave V3 market?"
        )
    return [int.from_bytes(result[start : start + 32]) for start in range(0, 7 * 32, 32)]


def liquidity_call(market: Market, reserve: Reserve) -> Call:
    """Ask how much of a reserve's token can be paid out."""
    if market.rules.virtual_balance:
        return _VIRTUAL_BALANCE.call(market.pool, reserve.token.address)
    return _BALANCE.call(reserve.token.address, reserve.a_token)


def liquidity_of(market: Market, config: ReserveConfig, result: Result) -> int | None:
    """The answer to `liquidity_call`; None where the pool does not count it (GHO from 3.1 to 3.3)."""
    if market.rules.virtual_balance_opt_in and not config.counts_liquidity:
        return None
    return int(answered(_VIRTUAL_BALANCE, result))


def _round(result: Result, at: BlockTime) -> tuple[int | None, int | None]:
    """A feed's round and how old its answer is in seconds, None where it does not tell any more."""
    if isinstance(result, Reverted):
        return None, None
    round_id, _, _, updated_s, _ = LATEST_ROUND.decode(result)
    return round_id, max(at.timestamp_s - updated_s, 0) if updated_s else None
