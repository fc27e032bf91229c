"""How a position closes in its pool: the pool as it will be, the block's tick limit, and what the exchange charges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from keeper.protocols.perp_curie.pool import WORD_TICKS, PoolState, Swapped, sqrt_ratio_at, swap
from keeper.protocols.perp_curie.rules import PPM, PRICE_LIMIT_S, mul_div, mul_div_up, price_wad
from keeper.protocols.perp_curie.system import (
    EXCHANGE,
    LAST_TICK,
    LAST_TICK_TIME,
    ORDERS,
    POOL,
    REGISTRY,
    Market,
    System,
    answered,
    answers,
    signed,
    word,
)
from keeper.seams import Reads
from keeper.types import Address, Refusal, Result

_MAX_TICKS: Final = 1_000  # Exchange._MAX_TICK_CROSSED_WITHIN_BLOCK_CAP
_MAX_TICK_CROSSED: Final = EXCHANGE.function("getMaxTickCrossedWithinBlock")
_MARKET_INFO: Final = REGISTRY.function("getMarketInfoByTrader")
_SLOT0, _LIQUIDITY, _BITMAP, _TICK = (
    POOL.function(name) for name in ("slot0", "liquidity", "tickBitmap", "ticks")
)
_ORDER_IDS, _ORDER = ORDERS.function("getOpenOrderIds"), ORDERS.function("getOpenOrderById")


@dataclass(frozen=True, slots=True)
class Closing:
    """A pool and the terms of closing a position in it at one time.

    The price may end `max_ticks` from `center` at most; fees and the spread to the index are in millionths.
    """

    pool: PoolState
    center: int
    max_ticks: int
    exchange_fee_ppm: int
    max_spread_ppm: int

    def close(self, size: int, index_wad: int) -> tuple[int, Swapped] | Refusal:
        """The quote that closing a signed size brings or costs, all fees paid, and the swap (Exchange.swap).

        Refused where the exchange would close only a part, or none.
        """
        long, pool = size > 0, self.pool
        if not self.max_ticks:
            return Refusal("outcome", "market_closed_for_trades", {"max_ticks": 0})
        limit_tick = self.center - self.max_ticks if long else self.center + self.max_ticks
        numbers = {"tick": pool.tick, "tick_limit": limit_tick}
        limit_x96 = sqrt_ratio_at(limit_tick)
        if (pool.sqrt_price_x96 <= limit_x96) if long else (pool.sqrt_price_x96 >= limit_x96):
            return Refusal("outcome", "over_tick_limit", numbers | {"base_closed_wad": "0"})
        amount = mul_div_up(size, PPM, PPM - pool.fee_ppm) if long else -size
        swapped = swap(pool, amount, limit_x96, self.exchange_fee_ppm, base_to_quote=long)
        if swapped is None:
            return Refusal("outcome", "pool_moved", numbers)
        if not swapped.complete or abs(swapped.tick - self.center) > self.max_ticks:
            closed = swapped.base * (PPM - pool.fee_ppm) // PPM if long else swapped.base
            numbers |= {"tick_after": swapped.tick}
            return Refusal("outcome", "over_tick_limit", numbers | {"base_closed_wad": str(closed)})
        before, after = (
            mul_div(price_wad(at) - index_wad, PPM, index_wad)
            for at in (pool.sqrt_price_x96, swapped.sqrt_price_x96)
        )
        if not min(before, -self.max_spread_ppm) <= after <= max(before, self.max_spread_ppm):
            spread = {"spread_ppm": after, "max_spread_ppm": self.max_spread_ppm}
            return Refusal("outcome", "over_price_spread", spread)
        quote = swapped.quote if long else -(swapped.quote * (PPM - pool.fee_ppm) // PPM)
        return quote - swapped.fee_wad, swapped


def read_closing(
    system: System,
    market: Market,
    liquidator: Address,
    without: Address | None,
    near_tick: int,
    now_s: int,
) -> Reads[Closing]:
    """Read the pool and the terms as the liquidator will find them at `now_s`.

    `without` is an account whose orders will have been cancelled; ticks are read around `near_tick`.
    """
    words = list(_words(near_tick, market.spacing))
    results = yield [
        _MAX_TICK_CROSSED.call(system.exchange, market.base),
        _MARKET_INFO.call(system.registry, liquidator, market.base),
        system.exchange_slot(LAST_TICK, market.base),
        system.exchange_slot(LAST_TICK_TIME, market.base),
        _SLOT0.call(market.pool),
        _LIQUIDITY.call(market.pool),
        *(_BITMAP.call(market.pool, place) for place in words),
        *([_ORDER_IDS.call(system.orders, without, market.base)] if without else []),
    ]
    _, exchange_fee, pool_fee, _, max_spread = answered(_MARKET_INFO, results[1])
    sqrt_price_x96, tick, *_ = answers(_SLOT0, results[4])
    center = signed(word(results[2]) & 0xFFFFFF, 24)
    if now_s >= word(results[3]) + PRICE_LIMIT_S:
        center = tick
    initialized = [
        place * market.spacing
        for base, result in zip(words, results[6:], strict=False)
        for place in _set_bits(base, answered(_BITMAP, result))
    ]
    order_ids = answered(_ORDER_IDS, results[-1]) if without else []
    asked = [_TICK.call(market.pool, at) for at in initialized]
    asked += [_ORDER.call(system.orders, order_id) for order_id in order_ids]
    more: Sequence[Result] = (yield asked) if asked else ()
    gross_net = {at: answers(_TICK, result)[:2] for at, result in zip(initialized, more, strict=False)}
    liquidity = answered(_LIQUIDITY, results[5])
    for result in more[len(initialized) :]:
        amount, lower, upper, *_ = answered(_ORDER, result)
        liquidity -= amount if lower <= tick < upper else 0
        for at, change in ((lower, -amount), (upper, amount)):
            if at in gross_net:
                gross_net[at] = (gross_net[at][0] - amount, gross_net[at][1] + change)
    return Closing(
        pool=PoolState(
            sqrt_price_x96=sqrt_price_x96,
            tick=tick,
            liquidity=liquidity,
            spacing=market.spacing,
            fee_ppm=pool_fee,
            liquidity_net=_nets(gross_net),
            lowest=words[0] * WORD_TICKS * market.spacing,
            highest=((words[-1] + 1) * WORD_TICKS - 1) * market.spacing,
        ),
        center=center,
        max_ticks=answered(_MAX_TICK_CROSSED, results[0]),
        exchange_fee_ppm=exchange_fee,
        max_spread_ppm=max_spread,
    )


def _nets(gross_net: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    """What liquidity gains at each tick on the way up; a tick that no liquidity ends at is not there any more."""
    return {at: net for at, (gross, net) in gross_net.items() if gross}


def _words(tick: int, spacing: int) -> Iterator[int]:
    """The places in the pool's bitmap that any close within a block can reach."""
    first = (tick - 2 * _MAX_TICKS) // spacing // WORD_TICKS
    last = (tick + 2 * _MAX_TICKS) // spacing // WORD_TICKS
    yield from range(first, last + 1)


def _set_bits(place: int, bitmap: int) -> Iterator[int]:
    """The compressed ticks that are initialized in a word of the bitmap."""
    return (place * WORD_TICKS + bit for bit in range(WORD_TICKS) if bitmap >> bit & 1)
