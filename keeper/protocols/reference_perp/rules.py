"""The exchange's arithmetic, exactly: funding, equity, margins, tiers, rewards and fills, rounded as the contract does.

Money, sizes, prices and ratios have 18 decimals. Quotients round down, up or towards zero where
`contracts/src/reference/PerpExchange.sol` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keeper.fixed import MAX_UINT256, WAD
from keeper.types import Address

_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the whole exchange goes by; the fields of its `Parameters` in their order."""

    execution_cost: int
    min_reward: int
    max_reward: int
    whole_below: int
    min_profit_ratio: int
    max_reward_ratio: int
    keeper_share: int
    partial_ratio: int
    critical_ratio: int
    gate_s: int
    max_markets: int
    adl: bool


@dataclass(frozen=True, slots=True)
class MarketParameters:
    """What one market goes by; the fields of its `MarketParameters` in their order."""

    feed: Address
    max_age_s: int
    window_s: int
    skew_scale: int
    min_margin: int
    margin_slope: int
    min_initial_ratio: int
    maintenance_scalar: int
    maker_fee: int
    taker_fee: int
    max_funding_velocity: int
    penalty_ratio: int
    window_multiplier: int
    max_pd: int


@dataclass(frozen=True, slots=True)
class MarketState:
    """A market as last written; the fields of its `MarketState` in their order."""

    long_size: int
    short_size: int
    rate: int
    long_index: int
    short_index: int
    updated_s: int
    window_start_s: int
    last_taken_block: int
    window_used: int

    @property
    def skew(self) -> int:
        """Longs less shorts of all traders."""
        return self.long_size - self.short_size


@dataclass(frozen=True, slots=True)
class Live:
    """A market at a timestamp: mark, and what one unit of either side has owed since the beginning."""

    price: int
    long_index: int
    short_index: int


@dataclass(frozen=True, slots=True)
class Market:
    """A market as of a timestamp; `unusable` says why it has no mark, and its `live` is then all zero."""

    number: int
    parameters: MarketParameters
    state: MarketState
    live: Live
    unusable: str | None = None


@dataclass(frozen=True, slots=True)
class Stake:
    """A position in one market: signed size, what was paid for it, and its side's index when it was settled."""

    market: int
    size: int
    cost: int
    index: int


@dataclass(frozen=True, slots=True)
class Holding:
    """An account: its collateral, which may be a debt, and its positions by rising market."""

    collateral: int
    flagged: bool
    cut: bool
    stakes: tuple[Stake, ...]


@dataclass(frozen=True, slots=True)
class Assessment:
    """An account judged; liquidatable where `equity` is below `required`."""

    equity: int
    notional: int
    initial: int
    maintenance: int
    required: int


@dataclass(frozen=True, slots=True)
class Quote:
    """What a liquidation would do: `liquidatable` by the tiers, `size` by window or wish. Fields as in the contract."""

    price: int = 0
    liquidatable: int = 0
    size: int = 0
    charge: int = 0
    reward: int = 0
    to_fund: int = 0
    from_fund: int = 0
    missing: int = 0


def live_of(parameters: MarketParameters, state: MarketState, price: int, timestamp_s: int) -> Live:
    """Funding brought up to `timestamp_s` (_live)."""
    elapsed = timestamp_s - state.updated_s
    skew = _towards_zero(state.skew * WAD, parameters.skew_scale)
    skew = max(min(skew, WAD), -WAD)
    rate = state.rate + _towards_zero(skew * parameters.max_funding_velocity * elapsed, WAD * _DAY_S)
    accrued = _towards_zero((state.rate + rate) * elapsed * price, 2 * _DAY_S * WAD)
    return Live(price, state.long_index + accrued, state.short_index - accrued)


def value_of(size: int, price: int) -> int:
    """What a size is worth, rounded down (_value)."""
    return size * price // WAD


def owed_by(stake: Stake, live: Live) -> int:
    """Funding and socialized loss since the stake was settled, rounded up (_owed)."""
    index = live.long_index if stake.size > 0 else live.short_index
    return ceil_div(abs(stake.size) * (index - stake.index), WAD)


def margins_of(parameters: MarketParameters, size: int, price: int) -> tuple[int, int]:
    """Initial and maintenance margin of an absolute size (_margins)."""
    if not size:
        return 0, 0
    notional = ceil_div(size * price, WAD)
    ratio = ceil_div(size * parameters.margin_slope, parameters.skew_scale) + parameters.min_initial_ratio
    initial = ceil_div(notional * ratio, WAD) + parameters.min_margin
    ratio = ceil_div(ratio * parameters.maintenance_scalar, WAD)
    return initial, ceil_div(notional * ratio, WAD) + parameters.min_margin


def penalty_of(parameters: MarketParameters, notional: int) -> int:
    """Penalty on closing that much (_penalty)."""
    return ceil_div(notional * parameters.penalty_ratio, WAD)


def share_of(parameters: Parameters, penalty: int) -> int:
    """The keeper's part of a penalty (_share)."""
    return penalty * parameters.keeper_share // WAD


def fixed_reward(parameters: Parameters) -> int:
    """What the reward in cash is at least, but for its cap: the cost and the least profit."""
    cost = parameters.execution_cost
    return cost + max(parameters.min_reward, cost * parameters.min_profit_ratio // WAD)


def reward_of(parameters: Parameters, share: int) -> int:
    """The reward in cash before the cap by the account's margin (_reward)."""
    reward = max(fixed_reward(parameters), parameters.execution_cost + share)
    return min(reward, parameters.max_reward)


def assess(
    holding: Holding, parameters: Parameters, markets: Sequence[Market], *, house: bool = False
) -> Assessment:
    """Equity with pending funding, and margins (_assess); every market it is in must have a mark."""
    equity, notional, initial, maintenance, rewards = holding.collateral, 0, 0, 0, 0
    for stake in holding.stakes:
        market = markets[stake.market]
        price, size = market.live.price, abs(stake.size)
        equity += value_of(stake.size, price) - stake.cost - owed_by(stake, market.live)
        worth = ceil_div(size * price, WAD)
        first, least = margins_of(market.parameters, size, price)
        notional, initial, maintenance = notional + worth, initial + first, maintenance + least
        if not house:
            rewards += reward_of(parameters, share_of(parameters, penalty_of(market.parameters, worth)))
    return Assessment(equity, notional, initial, maintenance, maintenance + rewards)


def capacity_of(market: Market, timestamp_s: int) -> int:
    """Size the house would take over in a block after the last in which it did (_capacity)."""
    terms, state = market.parameters, market.state
    most = (terms.maker_fee + terms.taker_fee) * terms.skew_scale // WAD * terms.window_multiplier // WAD
    most *= terms.window_s
    if not most:
        return MAX_UINT256
    used = state.window_used if timestamp_s < state.window_start_s + terms.window_s else 0
    if used < most:
        return most - used
    return most if abs(state.skew) * WAD < terms.max_pd * terms.skew_scale else 0


def tier_of(parameters: Parameters, size: int, price: int, judged: Assessment) -> int:
    """How much of an absolute size may be closed at once (_tier)."""
    notional = ceil_div(size * price, WAD)
    critical = judged.maintenance * parameters.critical_ratio // WAD
    if notional <= parameters.whole_below or judged.equity < critical:
        return size
    part = ceil_div(judged.notional * parameters.partial_ratio, WAD)
    return min(size, ceil_div(size * part, notional))


def quote_of(
    parameters: Parameters,
    market: Market,
    holding: Holding,
    judged: Assessment,
    fund: int,
    scale: int,
    *,
    most: int,
    cash: bool,
) -> Quote:
    """What closing up to `most` of a position would do (_quote); `scale` is money per raw unit of the collateral."""
    size = next((abs(stake.size) for stake in holding.stakes if stake.market == market.number), 0)
    price = market.live.price
    if not size or judged.equity >= judged.required:
        return Quote(price)
    liquidatable = tier_of(parameters, size, price, judged)
    closed = min(liquidatable, most)
    if not closed:
        return Quote(price, liquidatable)
    penalty = penalty_of(market.parameters, ceil_div(closed * price, WAD))
    if judged.equity <= 0:
        deficit = -judged.equity
        if deficit > fund:
            return Quote(price, liquidatable, closed, from_fund=fund, missing=deficit - fund)
        reward = min(reward_of(parameters, penalty) if cash else penalty, fund - deficit)
        reward -= reward % scale if cash else 0
        return Quote(price, liquidatable, closed, reward=reward, from_fund=deficit + reward)
    _, before = margins_of(market.parameters, size, price)
    _, rest = margins_of(market.parameters, size - closed, price)
    margin = judged.equity * (before - rest) // judged.maintenance
    if cash:
        whole = penalty_of(market.parameters, ceil_div(liquidatable * price, WAD))
        share = 0 if holding.cut else share_of(parameters, whole)
        reward = min(reward_of(parameters, share), margin * parameters.max_reward_ratio // WAD)
        reward -= reward % scale
        charge = min(max(penalty, reward), margin)
    else:
        charge = min(penalty, margin)
        reward = share_of(parameters, charge)
    return Quote(price, liquidatable, closed, charge, reward, to_fund=charge - reward)


def fill_of(market: Market, size_delta: int) -> tuple[int, int, int] | None:
    """Fill price, signed cost and fee of a trade with the house (_fill); None where the skew allows none."""
    terms, skew, price = market.parameters, market.state.skew, market.live.price
    twice = 2 * terms.skew_scale
    moved = twice + 2 * skew + size_delta
    if moved <= 0:
        return None
    fill = ceil_div(price * moved, twice) if size_delta > 0 else price * moved // twice
    cost = ceil_div(size_delta * fill, WAD)
    size = abs(size_delta)
    shrinking = 0 if (skew > 0) == (size_delta > 0) else min(size, abs(skew))
    notional = abs(cost)
    maker = notional * shrinking // size
    fee = ceil_div(maker * terms.maker_fee + (notional - maker) * terms.taker_fee, WAD)
    return fill, cost, fee


def traded(holding: Holding, market: Market, size_delta: int, cost: int) -> Holding:
    """An account after it took a size for a cost, everything owed in that market settled; its equity is the contract's.

    What it realizes and what stays unrealized is not told apart: the new position counts as paid for.
    """
    number, live = market.number, market.live
    stake = next((each for each in holding.stakes if each.market == number), Stake(number, 0, 0, 0))
    size = stake.size + size_delta
    index = live.long_index if size > 0 else live.short_index
    kept = {each.market: each for each in holding.stakes if each.market != number}
    if size:
        kept[number] = Stake(number, size, 0, index)
    collateral = holding.collateral - stake.cost - owed_by(stake, live) - cost
    stakes = tuple(kept[place] for place in sorted(kept))
    return Holding(collateral, holding.flagged, holding.cut, stakes)


def ceil_div(a: int, b: int) -> int:
    """⌈a / b⌉ for positive `b`; of a negative `a` towards zero."""
    return -(-a // b)


def _towards_zero(a: int, b: int) -> int:
    return a // b if a >= 0 else -(-a // b)
