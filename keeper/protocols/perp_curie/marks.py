"""What moves at every head: mark prices, premiums and index prices, as a block at the wanted time would compute them.

Pools and feeds are averaged by observations, so the same reads give every figure at a later time of the same state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from keeper import abi
from keeper.errors import AdapterError
from keeper.fixed import WAD
from keeper.protocols.perp_curie.pool import sqrt_ratio_at
from keeper.protocols.perp_curie.positions import Orders
from keeper.protocols.perp_curie.rules import (
    COLLATERAL_TWAP_S,
    FUNDING_PERIOD_S,
    MARKET_PRICE_S,
    MIN_TWAP_S,
    PPM,
    Q96,
    RING,
    Observation,
    div,
    index_twap,
    mark_price_wad,
    premium_growth_x96,
    price_wad,
    price_x96,
)
from keeper.protocols.perp_curie.system import (
    BALANCE,
    BASE,
    FEED,
    FIRST_TRADED,
    GROWTH,
    HOUSE,
    LAST_SETTLED,
    POOL,
    VAULT,
    Collateral,
    Entry,
    Feed,
    Market,
    System,
    answered,
    answers,
    signed,
    word,
)
from keeper.seams import Reads, each, together
from keeper.types import ZERO_ADDRESS, Address, BlockTime, Call, Refusal, Result, Reverted, Weights, hex_of

_NOW: Final = Call(
    Address(bytes.fromhex("cA11bde05977b3631167028862bE2a173976CA11")),
    abi.load("Multicall3").function("getCurrentBlockTimestamp").encode(),
)
_OPEN, _PAUSED, _FEED_OF = (BASE.function(name) for name in ("isOpen", "isPaused", "getPriceFeed"))
_STOPPED_AT, _LAST_INDEX, _LAST_PRICE = (
    BASE.function(name) for name in ("getPausedTimestamp", "getPausedIndexPrice", "getClosedPrice")
)
_SLOT0, _OBSERVE = POOL.function("slot0"), POOL.function("observe")
_LATEST, _INDEX = FEED.function("getLatestOrCachedPrice"), FEED.function("currentObservationIndex")
_OBSERVATION, _ELSEWHERE = FEED.function("observations"), FEED.function("isToUseUniswapV3PriceFeed")
_HOUSE_PAUSED, _VAULT_PAUSED = HOUSE.function("paused"), VAULT.function("paused")
_ACCOUNT_VALUE = HOUSE.function("getAccountValue")
_REQUIREMENT = BALANCE.function("getMarginRequirementForLiquidation")
_DEBT_VALUE, _TOTAL_SIZE = (BALANCE.function(name) for name in ("getTotalDebtValue", "getTotalPositionSize"))

FEED_CHANGED: Final = "price_feed_changed"
_FIRST_LOOK: Final = 8
_FLOAT_MARGIN: Final = 1e-12
_UNPRICED: Final = 1e200


@dataclass(frozen=True, slots=True)
class MarketState:
    """A market as of one timestamp; `unusable` says why it has no mark price, and its figures are then 0.

    `stopped` says why nothing in it can be taken over: it is not open, but what accounts hold of it has a price.
    """

    unusable: str | None
    mark_wad: int
    index_wad: int
    growth_x96: int
    sqrt_price_x96: int
    tick: int
    stopped: str | None = None


@dataclass(frozen=True, slots=True)
class CollateralState:
    """A collateral's price over 15 minutes in the feed's units; `unusable` says why there is none."""

    unusable: str | None
    price: int


@dataclass(frozen=True, slots=True)
class MakerState:
    """What the exchange itself says of an account with open orders; sizes by market, orders' amounts included."""

    unusable: str | None
    value_wad: int
    requirement_wad: int
    debt_value_wad: int
    sizes: Mapping[Address, int]
    ordered: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class CurieMarks:
    """Everything an account's health depends on as of `timestamp_s`."""

    system: System
    entries: tuple[Entry, ...]
    timestamp_s: int
    house_paused: bool
    vault_paused: bool
    markets: Mapping[Address, MarketState]
    collaterals: Mapping[Address, CollateralState]
    makers: Mapping[Address, MakerState]

    def weights(self) -> dict[int, Weights]:
        """Row weights of shape (2 + 2 · entries,) for the columns of `rows_of`; in 10⁻¹⁸ dollars.

        The bound: the exchange cuts the account's value to a raw unit of the settlement token and every product to a
        unit of 10⁻¹⁸, three for each entry at most; the column of absolute values pays for the rounding of floats.
        """
        values = np.zeros(2 + 2 * len(self.entries))
        values[0], values[1] = 1.0, -_FLOAT_MARGIN
        mm = self.system.parameters.mm_ratio_ppm / PPM
        for place, entry in enumerate(self.entries):
            column = 2 + 2 * place
            if isinstance(entry, Collateral):
                continue  # whoever has any is always looked at
            state = self.markets[entry.base]
            if state.unusable:
                values[column + 1] = -_UNPRICED
                continue
            mark, funding = state.mark_wad / WAD, state.growth_x96 / Q96 / FUNDING_PERIOD_S
            values[column] = mark - funding
            values[column + 1] = -(mark * mm + _FLOAT_MARGIN * (mark + abs(funding)))
        slack = float(self.system.unit_wad + 4 * len(self.entries) + 4)
        return {0: Weights(values, slack)}


def read_marks(
    system: System,
    entries: Sequence[Entry],
    makers: Mapping[Address, Orders],
    at: BlockTime,
    max_price_age_s: int,
) -> Reads[CurieMarks | Refusal]:
    """Read and compute every mark as of `at.timestamp_s`; refused where no market has one.

    `makers` are accounts with open orders.
    """
    reads: list[Reads[Any]] = [each([_HOUSE_PAUSED.call(system.house), _VAULT_PAUSED.call(system.vault)])]
    for entry in entries:
        if isinstance(entry, Market):
            reads.append(_market_state(system, entry, at.timestamp_s, max_price_age_s))
        else:
            reads.append(_collateral_state(system, entry, at.timestamp_s, max_price_age_s))
    reads += [_maker_state(system, account, orders) for account, orders in makers.items()]
    paused, *states = yield from together(reads)
    markets, collaterals = {}, {}
    for entry, state in zip(entries, states, strict=False):
        if isinstance(entry, Market):
            markets[entry.base] = state
        else:
            collaterals[entry.token.address] = state
    if markets and all(state.unusable for state in markets.values()):
        symbols = {entry.symbol: markets[entry.base].unusable for entry in _markets(entries)}
        return Refusal("marks", "no_market", symbols)
    return CurieMarks(
        system=system,
        entries=tuple(entries),
        timestamp_s=at.timestamp_s,
        house_paused=bool(answered(_HOUSE_PAUSED, paused[0])),
        vault_paused=bool(answered(_VAULT_PAUSED, paused[1])),
        markets=markets,
        collaterals=collaterals,
        makers=dict(zip(makers, states[len(entries) :], strict=True)),
    )


def _markets(entries: Iterable[Entry]) -> Iterable[Market]:
    return (entry for entry in entries if isinstance(entry, Market))


@dataclass(frozen=True, slots=True)
class _Traded:
    """What the pool and the exchange say of a market; `twaps` are square root prices over `intervals`."""

    unusable: str | None
    sqrt_price_x96: int
    tick: int
    intervals: tuple[int, ...] = ()
    twaps: tuple[int, ...] = ()
    last_settled_s: int = 0
    growth_x96: int = 0


def _market_state(system: System, market: Market, now_s: int, max_price_age_s: int) -> Reads[MarketState]:
    both: list[Any] = yield from together(
        [_traded(system, market, now_s), _feed_state(system, market.feed, now_s, max_price_age_s)]
    )
    traded: _Traded | MarketState = both[0]
    feed: _FeedState = both[1]
    if isinstance(traded, MarketState):
        return traded

    def unusable(why: str) -> MarketState:
        return MarketState(why, 0, 0, 0, traded.sqrt_price_x96, traded.tick)

    if traded.unusable or feed.unusable:
        return unusable(traded.unusable or feed.unusable or "")
    _, _, premium_s, funding_s = traded.intervals
    scale = WAD // market.feed.unit
    index = [feed.over(seconds, now_s) for seconds in (0, premium_s, funding_s)]
    index_wad, premium_index_wad, funding_index_wad = (None if one is None else one * scale for one in index)
    if index_wad is None or premium_index_wad is None or funding_index_wad is None:
        return unusable("no_index_price")
    market_wad, twap_wad, premium_wad = (price_wad(one) for one in traded.twaps[:3])
    mark_wad = mark_price_wad(market_wad, twap_wad, premium_wad, premium_index_wad, index_wad)
    if not mark_wad:
        return unusable("no_mark_price")
    growth = premium_growth_x96(
        traded.growth_x96,
        traded.last_settled_s,
        now_s,
        price_x96(traded.twaps[3]),
        funding_index_wad,
        system.parameters.max_funding_ppm,
    )
    return MarketState(None, mark_wad, index_wad, growth, traded.sqrt_price_x96, traded.tick)


def _traded(system: System, market: Market, now_s: int) -> Reads[_Traded | MarketState]:
    """An open market, whose feed is still to be asked; one that is not open has its last price already."""
    base, parameters = market.base, system.parameters
    results = yield [
        _NOW,
        *(_OPEN.call(base), _PAUSED.call(base), _FEED_OF.call(base)),
        *(_ELSEWHERE.call(market.dispatcher), _SLOT0.call(market.pool)),
        *(system.exchange_slot(mapping, base) for mapping in (FIRST_TRADED, LAST_SETTLED, GROWTH)),
    ]
    block_s = int.from_bytes(_bytes(results[0]))
    if now_s < block_s:
        raise AdapterError(f"The block's time is {block_s}, after the timestamp {now_s} asked for.")
    sqrt_price_x96, tick, *_ = answers(_SLOT0, results[5])
    first_traded_s, last_settled_s, growth_x96 = (word(result) for result in results[6:])
    if not answered(_OPEN, results[1]):
        why = "market_paused" if answered(_PAUSED, results[2]) else "market_closed"
        told = _Traded(why, sqrt_price_x96, tick, (), (), last_settled_s, signed(growth_x96))
        return (yield from _stopped(system, market, told, first_traded_s, block_s))
    if answered(_FEED_OF, results[3]) != market.dispatcher:
        return _Traded(FEED_CHANGED, sqrt_price_x96, tick)
    if isinstance(results[4], Reverted) or _ELSEWHERE.one(results[4]):
        return _Traded("index_not_from_chainlink", sqrt_price_x96, tick)
    funding_s = min(parameters.twap_interval_s, now_s - first_traded_s) if first_traded_s else 0
    intervals = (MARKET_PRICE_S, parameters.mark_twap_s, parameters.premium_interval_s, funding_s)
    twaps = yield from _market_twaps(market.pool, sqrt_price_x96, tick, intervals, block_s, now_s)
    if twaps is None:
        return _Traded("market_not_ready", sqrt_price_x96, tick)
    return _Traded(None, sqrt_price_x96, tick, intervals, tuple(twaps), last_settled_s, signed(growth_x96))


def _stopped(
    system: System, market: Market, told: _Traded, first_traded_s: int, block_s: int
) -> Reads[MarketState]:
    """A market that is not open: positions are worth its last index price, or the price it was closed at, and funding
    is what it had come to when it was paused.
    """
    base, parameters = market.base, system.parameters
    asked = [_STOPPED_AT, _LAST_INDEX]
    if told.unusable == "market_closed":
        asked.append(_LAST_PRICE)
    results = yield [function.call(base) for function in asked]
    stopped_s, index_wad, *closed_wad = map(answered, asked, results)
    funding_s = min(parameters.twap_interval_s, stopped_s - first_traded_s) if first_traded_s else 0
    sqrt_twap_x96 = told.sqrt_price_x96
    if funding_s >= MIN_TWAP_S:
        ago_s = block_s - stopped_s
        [result] = yield [_OBSERVE.call(market.pool, (ago_s + funding_s, ago_s))]
        if isinstance(result, Reverted):
            return MarketState("market_not_ready", 0, 0, 0, told.sqrt_price_x96, told.tick)
        sums = answers(_OBSERVE, result)[0]
        if len(sums) != 2:
            raise AdapterError(f"A pool answers {len(sums)} of 2 times: do not trust the node.")
        sqrt_twap_x96 = sqrt_ratio_at(div(sums[1] - sums[0], funding_s))
    growth = premium_growth_x96(
        told.growth_x96,
        told.last_settled_s,
        stopped_s,
        price_x96(sqrt_twap_x96),
        index_wad,
        parameters.max_funding_ppm,
    )
    mark_wad = closed_wad[0] if closed_wad else index_wad
    return MarketState(
        None, mark_wad, index_wad, growth, told.sqrt_price_x96, told.tick, stopped=told.unusable
    )


def _market_twaps(
    pool: Address, sqrt_price_x96: int, tick: int, intervals: Sequence[int], block_s: int, now_s: int
) -> Reads[list[int] | None]:
    """Square root prices over each interval up to `now_s`; None where the pool does not reach back so far."""
    ahead_s = now_s - block_s
    ago = sorted({max(seconds - ahead_s, 0) for seconds in intervals if seconds >= MIN_TWAP_S} | {0})
    results = yield [_OBSERVE.call(pool, ago)]
    if isinstance(results[0], Reverted):
        return None
    told = answers(_OBSERVE, results[0])[0]
    if len(told) != len(ago):
        raise AdapterError(f"{hex_of(pool)} answers {len(told)} of {len(ago)} times: do not trust the node.")
    sums = dict(zip(ago, told, strict=True))
    last = sums[0] + tick * ahead_s
    found = []
    for seconds in intervals:
        if seconds < MIN_TWAP_S:
            found.append(sqrt_price_x96)
            continue
        back_s = seconds - ahead_s
        then = sums[back_s] if back_s >= 0 else sums[0] - tick * back_s
        found.append(sqrt_ratio_at(div(last - then, seconds)))
    return found


# --- feeds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _FeedState:
    unusable: str | None
    price: int
    updated_s: int
    observations: tuple[Observation, ...]

    def over(self, seconds: int, now_s: int) -> int | None:
        return index_twap(self.observations, self.price, self.updated_s, seconds, now_s)


def _feed_state(system: System, feed: Feed, now_s: int, max_price_age_s: int) -> Reads[_FeedState]:
    """The feed's last price, and its observations back to before the longest average of any use."""
    if feed.aggregator == ZERO_ADDRESS:
        return _FeedState("unknown_feed", 0, 0, ())
    results = yield [_LATEST.call(feed.address), _INDEX.call(feed.address)]
    if any(isinstance(result, Reverted) for result in results):
        return _FeedState("unknown_feed", 0, 0, ())
    price, updated_s = answers(_LATEST, results[0])
    newest = answered(_INDEX, results[1])
    if not price:
        return _FeedState("missing_price", 0, 0, ())
    if now_s - updated_s > max_price_age_s:
        return _FeedState("stale_price", price, updated_s, ())
    parameters = system.parameters
    target_s = now_s - max(COLLATERAL_TWAP_S, parameters.premium_interval_s, parameters.twap_interval_s)
    observations: list[Observation] = []
    while True:
        look = min(_FIRST_LOOK if not observations else len(observations), RING - len(observations))
        places = [(newest - len(observations) - step) % RING for step in range(look)]
        results = yield [_OBSERVATION.call(feed.address, place) for place in places]
        for result in results:
            seen = Observation(*answers(_OBSERVATION, result))
            if not seen.timestamp_s:
                return _FeedState(None, price, updated_s, tuple(observations[::-1]))
            observations.append(seen)
        if observations[-1].timestamp_s <= target_s or len(observations) == RING:
            return _FeedState(None, price, updated_s, tuple(observations[::-1]))


def _collateral_state(
    system: System, collateral: Collateral, now_s: int, max_price_age_s: int
) -> Reads[CollateralState]:
    feed = yield from _feed_state(system, collateral.feed, now_s, max_price_age_s)
    price = None if feed.unusable else feed.over(COLLATERAL_TWAP_S, now_s)
    return CollateralState(feed.unusable or ("missing_price" if not price else None), price or 0)


# --- makers ----------------------------------------------------------------------------------------------------------


def _maker_state(system: System, account: Address, orders: Orders) -> Reads[MakerState]:
    """What orders are worth moves with every trade of others: the exchange is asked."""
    results = yield [
        _ACCOUNT_VALUE.call(system.house, account),
        _REQUIREMENT.call(system.balance, account),
        _DEBT_VALUE.call(system.balance, account),
        *(_TOTAL_SIZE.call(system.balance, account, base) for base in orders.bases),
    ]
    if any(isinstance(result, Reverted) for result in results):
        return MakerState("market_not_ready", 0, 0, 0, {}, orders.ordered)
    sizes = [answered(_TOTAL_SIZE, result) for result in results[3:]]
    return MakerState(
        unusable=None,
        value_wad=answered(_ACCOUNT_VALUE, results[0]),
        requirement_wad=answered(_REQUIREMENT, results[1]),
        debt_value_wad=answered(_DEBT_VALUE, results[2]),
        sizes=dict(zip(orders.bases, sizes, strict=True)),
        ordered=orders.ordered,
    )


def _bytes(result: Result) -> bytes:
    if isinstance(result, Reverted):
        raise AdapterError("Multicall3 does not tell the block's time.")
    return result
