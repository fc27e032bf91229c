"""Ticks of a Uniswap V3 pool: their prices, and where the bitmap says that liquidity changes (TickMath, TickBitmap)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from keeper.fixed import MAX_UINT256

MIN_TICK: Final = -887_272
MAX_TICK: Final = 887_272
WORD: Final = 256  # compressed ticks in one word of the bitmap

# √1.0001 to the power of −2ⁿ in 128 binary places.
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


class Tick(NamedTuple):
    """An initialised tick: the liquidity it adds when crossed upwards.

    `fresh` of its two fee growths were never written, which whoever crosses it first pays for.
    """

    liquidity_net: int
    fresh: int


@lru_cache(maxsize=1 << 16)
def sqrt_ratio_at(tick: int) -> int:
    """The square root price of a tick, with 96 binary places (TickMath.getSqrtRatioAtTick)."""
    ratio = 1 << 128
    left = abs(tick)
    while left:
        lowest = left & -left
        ratio = ratio * _FACTORS[lowest.bit_length() - 1] >> 128
        left ^= lowest
    if tick > 0:
        ratio = MAX_UINT256 // ratio
    return -(-ratio >> 32)


# Where a swap without a limit of its own ends when liquidity runs out (the periphery's limits).
MIN_SQRT_PRICE: Final = sqrt_ratio_at(MIN_TICK) + 1
MAX_SQRT_PRICE: Final = sqrt_ratio_at(MAX_TICK) - 1


def word_of(tick: int, spacing: int) -> int:
    """The word of the bitmap that a tick is in."""
    return tick // spacing // WORD


def next_in_word(words: Mapping[int, int], tick: int, spacing: int, *, down: bool) -> tuple[int, bool] | None:
    """The next tick a swap stops at, and whether it is initialised (TickBitmap.nextInitializedTickWithinOneWord).

    None where the word it depends on is not known.
    """
    compressed = tick // spacing + (not down)
    index, bit = divmod(compressed, WORD)
    word = words.get(index)
    if word is None:
        return None
    if down:
        within = word & ((2 << bit) - 1)
        place = within.bit_length() - 1 if within else 0
    else:
        within = word >> bit << bit
        place = (within & -within).bit_length() - 1 if within else WORD - 1
    return (index * WORD + place) * spacing, within != 0


def initialised(words: Mapping[int, int], tick: int, spacing: int, *, down: bool) -> Iterator[int]:
    """Initialised ticks from a price at `tick` on, nearest first, until the first word that is not known."""
    while (found := next_in_word(words, tick, spacing, down=down)) is not None:
        stop, is_initialised = found
        if is_initialised:
            yield stop
        tick = stop - 1 if down else stop
