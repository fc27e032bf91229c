"""A Uniswap V3 pool walked in integers: where a swap ends, what it moves, and what the exchange charges for it.

The pools of Perp Curie trade base (token 0) against quote (token 1). `TickMath`, `SqrtPriceMath`, `SwapMath` and
`UniswapV3Pool.swap` of v3-core are followed step by step, and beside them `OrderBook.replaySwap`, which repeats them to
find the exchange's own fee.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from keeper.protocols.perp_curie.rules import PPM, Q96, mul_div_up

MIN_TICK: Final = -887_272
MAX_TICK: Final = 887_272
WORD_TICKS: Final = 256
_MAX_UINT256: Final = 2**256 - 1

# TickMath.getSqrtRatioAtTick: √1.0001 to the power of −2ⁿ in 128 binary places.
_FACTORS: Final = (
    0xFFFCB933BD6FAD37AA2D162D1A594001,
    0xFFF97272373D413259A46990580E213A,
    0xFFF2E50F5F656932EF12357CF3C7FDCC,
    0xFFE5CACA7E10E4E61C3624EAA0941CD0,
    0xFFCB9843D60F6159C9DB58835C926644,
    0xFF973B41FA98C081472E6896DFB254C0,
    0xFF2EA16466C96A3843EC78B326B52861,
    0xFE5DEE046A99A2A811C461F1969C3053,
    0xFCBE86C7900A88AEDCFFC83B479AA3A4,
    0xF987A7253AC413176F2B074CF7815E54,
    0xF3392B0822B70005940C7A398E4B70F3,
    0xE7159475A2C29B7443B29C7FA6E889D9,
    0xD097F3BDFD2022B8845AD8F792AA5825,
    0xA9F746462D870FDF8A65DC1F90E061E5,
    0x70D869A156D2A1B890BB3DF62BAF32F7,
    0x31BE135F97D08FD981231505542FCFA6,
    0x9AA508B5B7A84E1C677DE54F3E99BC9,
    0x5D6AF8DEDB81196699C329225EE604,
    0x2216E584F5FA1EA926041BEDFE98,
    0x48A170391F7DC42444E8FA2,
)


def sqrt_ratio_at(tick: int) -> int:
    """The square root price of a tick (TickMath.getSqrtRatioAtTick)."""
    ratio = 1 << 128
    for bit, factor in enumerate(_FACTORS):
        if abs(tick) >> bit & 1:
            ratio = ratio * factor >> 128
    if tick > 0:
        ratio = _MAX_UINT256 // ratio
    return -(-ratio >> 32)


def tick_at(sqrt_price_x96: int) -> int:
    """The greatest tick whose square root price is at most this one (TickMath.getTickAtSqrtRatio)."""
    low, high = MIN_TICK, MAX_TICK
    while low < high:
        middle = -(-(low + high) // 2)
        if sqrt_ratio_at(middle) <= sqrt_price_x96:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool at one block; `liquidity_net` are the initialized ticks that are known, from `lowest` to `highest`."""

    sqrt_price_x96: int
    tick: int
    liquidity: int
    spacing: int
    fee_ppm: int
    liquidity_net: Mapping[int, int]
    lowest: int
    highest: int


@dataclass(frozen=True, slots=True)
class Swapped:
    """What a swap moved: base and quote with the pool's fee on what went in, and the exchange's fee in quote.

    `complete` says that nothing is left of what was asked.
    """

    sqrt_price_x96: int
    tick: int
    base: int
    quote: int
    fee_wad: int
    complete: bool


def swap(
    pool: PoolState, amount: int, limit_x96: int, exchange_fee_ppm: int, *, base_to_quote: bool
) -> Swapped | None:
    """Sell exactly `amount` base, or with `base_to_quote` false buy exactly so much, until the price reaches the limit.

    None where that leaves what is known of the pool.
    """
    price, tick, liquidity = pool.sqrt_price_x96, pool.tick, pool.liquidity
    remaining = amount
    given = taken = fee = 0
    while remaining and price != limit_x96:
        next_tick, initialized = _next_tick(pool, tick, base_to_quote)
        if not pool.lowest <= next_tick <= pool.highest:
            return None
        next_tick = max(MIN_TICK, min(MAX_TICK, next_tick))
        next_price = sqrt_ratio_at(next_tick)
        target = max(next_price, limit_x96) if base_to_quote else min(next_price, limit_x96)
        start = price
        if base_to_quote:
            price, spent, got, charged = _sell_step(price, target, liquidity, remaining, pool.fee_ppm)
            remaining -= spent + charged
            given += spent + charged
            taken += got
            # OrderBook.replaySwap: the exchange's fee is on the quote that comes out
            fee += mul_div_up(got, exchange_fee_ppm, PPM) if liquidity else 0
        else:
            price, spent, got = _buy_step(price, target, liquidity, remaining)
            remaining -= got
            given += spent + mul_div_up(spent, pool.fee_ppm, PPM - pool.fee_ppm)
            taken += got
            fee += mul_div_up(spent, exchange_fee_ppm, PPM - exchange_fee_ppm) if liquidity else 0
        if price == next_price:
            if initialized:
                net = pool.liquidity_net[next_tick]
                liquidity += -net if base_to_quote else net
            tick = next_tick - 1 if base_to_quote else next_tick
        elif price != start:
            tick = tick_at(price)
    base, quote = (given, taken) if base_to_quote else (taken, given)
    return Swapped(price, tick, base, quote, fee, not remaining)


def _next_tick(pool: PoolState, tick: int, down: bool) -> tuple[int, bool]:
    """The next initialized tick within one word of the bitmap, or the word's edge (TickBitmap)."""
    spacing = pool.spacing
    compressed = tick // spacing
    if down:
        edge = compressed // WORD_TICKS * WORD_TICKS
        for place in range(compressed, edge - 1, -1):
            if place * spacing in pool.liquidity_net:
                return place * spacing, True
        return edge * spacing, False
    first = compressed + 1
    edge = first // WORD_TICKS * WORD_TICKS + WORD_TICKS - 1
    for place in range(first, edge + 1):
        if place * spacing in pool.liquidity_net:
            return place * spacing, True
    return edge * spacing, False


def _sell_step(
    price: int, target: int, liquidity: int, remaining: int, fee_ppm: int
) -> tuple[int, int, int, int]:
    """One step of an exact input of base (SwapMath.computeSwapStep): price, base in, quote out, the pool's fee."""
    available = remaining * (PPM - fee_ppm) // PPM
    needed = _base_between(target, price, liquidity, up=True)
    reached = target if available >= needed else _price_after_base_in(price, liquidity, available)
    full = reached == target
    spent = needed if full else _base_between(reached, price, liquidity, up=True)
    got = _quote_between(reached, price, liquidity, up=False)
    fee = mul_div_up(spent, fee_ppm, PPM - fee_ppm) if full else remaining - spent
    return reached, spent, got, fee


def _buy_step(price: int, target: int, liquidity: int, remaining: int) -> tuple[int, int, int]:
    """One step of an exact output of base: price, quote in without any fee, base out."""
    available = _base_between(price, target, liquidity, up=False)
    reached = target if remaining >= available else _price_after_base_out(price, liquidity, remaining)
    full = reached == target
    spent = _quote_between(price, reached, liquidity, up=True)
    got = available if full else _base_between(price, reached, liquidity, up=False)
    return reached, spent, min(got, remaining)


def _base_between(low: int, high: int, liquidity: int, *, up: bool) -> int:
    """SqrtPriceMath.getAmount0Delta."""
    scaled, distance = liquidity << 96, high - low
    if up:
        return -(-mul_div_up(scaled, distance, high) // low)
    return scaled * distance // high // low


def _quote_between(low: int, high: int, liquidity: int, *, up: bool) -> int:
    """SqrtPriceMath.getAmount1Delta."""
    return mul_div_up(liquidity, high - low, Q96) if up else liquidity * (high - low) // Q96


def _price_after_base_in(price: int, liquidity: int, amount: int) -> int:
    """SqrtPriceMath.getNextSqrtPriceFromAmount0RoundingUp for an addition."""
    if not amount:
        return price
    scaled = liquidity << 96
    product = amount * price
    if product <= _MAX_UINT256 and scaled + product <= _MAX_UINT256:
        return mul_div_up(scaled, price, scaled + product)
    return -(-scaled // (scaled // price + amount))


def _price_after_base_out(price: int, liquidity: int, amount: int) -> int:
    """SqrtPriceMath.getNextSqrtPriceFromAmount0RoundingUp for a removal."""
    scaled = liquidity << 96
    return mul_div_up(scaled, price, scaled - amount * price)
