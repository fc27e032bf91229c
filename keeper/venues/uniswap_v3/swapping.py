"""What a swap in one Uniswap V3 pool moves, to the last unit (SqrtPriceMath, SwapMath, UniswapV3Pool.swap).

A swap goes from stop to stop: ticks where liquidity changes, and the edges of the bitmap's words, at which the pool
rounds too. Whichever side is exact, a step that reaches its stop moves the same amounts: `SwapMath` goes all the way
exactly if what is left is at least the step's input with its fee (exact input), or its output (exact output). So the
steps from the pool's price on are reckoned once, as running sums, and a swap is a search in them and one last step.

Nothing here can overflow where the contract would not: each last step ends before a stop the amounts of which fit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final, NamedTuple

from keeper.fixed import MAX_UINT256, mul_div_down, mul_div_up
from keeper.venues.uniswap_v3.ticks import (
    MAX_SQRT_PRICE,
    MAX_TICK,
    MIN_SQRT_PRICE,
    MIN_TICK,
    Tick,
    initialised,
    next_in_word,
    sqrt_ratio_at,
    word_of,
)

PPM: Final = 1_000_000
_Q96: Final = 1 << 96
# Words of the bitmap looked at either side of the price: a factor of five at a spacing of 1, and nearly every price
# there is at 10 and more.
REACH_WORDS: Final = 64
# More ticks than a swap can pay for: a pool in which somebody made thousands must not keep the keeper reading.
MOST_CROSSED: Final = 256
_TICKS_AT_ONCE: Final = 16

# What a pool's steps cost, rounded up: to each stop, over an initialised tick, and what is first written there.
_STOP_GAS: Final = 6_500
_CROSSING_GAS: Final = 22_000
_FRESH_GAS: Final = 18_000


class Swapped(NamedTuple):
    """What a swap moved, `given` with the fee, and over how many initialised ticks; `gas` is what all its stops cost.

    Not `complete`: the pool's liquidity ended before the amount did.
    """

    sqrt_price_x96: int
    given_raw: int
    taken_raw: int
    crossed: int
    gas: int
    complete: bool


class Lane:
    """The steps of swaps in one direction; `down` sells token 0. `words` and `ticks` may come to hold more later."""

    __slots__ = (
        "_crossed",
        "_down",
        "_ended",
        "_fee",
        "_gas",
        "_given",
        "_liquidity",
        "_origin",
        "_prices",
        "_spacing",
        "_taken",
        "_tick",
        "_ticks",
        "_words",
    )

    def __init__(
        self,
        sqrt_price_x96: int,
        tick: int,
        liquidity: int,
        fee_ppm: int,
        spacing: int,
        words: Mapping[int, int],
        ticks: Mapping[int, Tick],
        *,
        down: bool,
    ) -> None:
        """`words` of the bitmap by their index, `ticks` those that are initialised."""
        self._down = down
        self._fee = fee_ppm
        self._spacing = spacing
        self._words = words
        self._ticks = ticks
        self._tick = tick  # where the next step is looked for
        self._origin = word_of(tick, spacing)
        self._ended = False  # no step after the last one
        self._prices = [sqrt_price_x96]
        self._liquidity = [liquidity]
        self._given = [0]
        self._taken = [0]
        self._crossed = [0]
        self._gas = [0]

    def swap(self, amount_raw: int, *, exact_out: bool) -> Swapped | None:
        """Give exactly `amount_raw`, or take it if `exact_out`; None where `wanted` must be known first."""
        totals = self._taken if exact_out else self._given
        while totals[-1] < amount_raw and not self._ended:
            if not self._advance():
                return None
        at = bisect_left(totals, amount_raw)
        if at == len(totals):
            return self._swapped(at - 1, complete=False)
        if totals[at] == amount_raw:
            return self._swapped(at, complete=True)
        at -= 1
        left_raw = amount_raw - totals[at]
        step = last_step_out if exact_out else last_step_in
        price, other_raw = step(self._prices[at], self._liquidity[at], left_raw, self._fee, down=self._down)
        given, taken = (other_raw, left_raw) if exact_out else (left_raw, other_raw)
        return Swapped(
            price,
            self._given[at] + given,
            self._taken[at] + taken,
            self._crossed[at],
            self._gas[at],
            complete=True,
        )

    def wanted(self) -> tuple[list[int], list[int]]:
        """Words and ticks to be known before the next step; in growing portions, since who needs one needs more."""
        following = self._tick if self._down else self._tick + self._spacing
        word = word_of(following, self._spacing)
        if word in self._words:
            return [], self.ticks_ahead(max(_TICKS_AT_ONCE, self._crossed[-1]))
        count = min(max(1, abs(word - self._origin)), REACH_WORDS + 1 - abs(word - self._origin))
        onwards = -1 if self._down else 1
        return list(range(word, word + onwards * count, onwards)), []

    @property
    def reached(self) -> int:
        """The tick up to which swaps needed to know the pool so far."""
        return self._tick

    def ticks_ahead(self, most: int) -> list[int]:
        """The next initialised ticks whose liquidity is not known, among so many."""
        ahead = initialised(self._words, self._tick, self._spacing, down=self._down)
        return [tick for _, tick in zip(range(most), ahead, strict=False) if tick not in self._ticks]

    def _swapped(self, at: int, *, complete: bool) -> Swapped:
        return Swapped(
            self._prices[at],
            self._given[at],
            self._taken[at],
            self._crossed[at],
            self._gas[at],
            complete=complete,
        )

    def _advance(self) -> bool:
        """Reckon one more step, all the way to its stop; false where too little is known."""
        down, tick, start, liquidity = self._down, self._tick, self._prices[-1], self._liquidity[-1]
        following = tick if down else tick + self._spacing
        out_of_reach = abs(word_of(following, self._spacing) - self._origin) > REACH_WORDS
        if out_of_reach or self._crossed[-1] >= MOST_CROSSED:
            self._ended = True
            return True
        found = next_in_word(self._words, tick, self._spacing, down=down)
        if found is None:
            return False
        stop, is_initialised = found
        if is_initialised and stop not in self._ticks:
            return False
        price = sqrt_ratio_at(max(MIN_TICK, min(MAX_TICK, stop)))
        if not MIN_SQRT_PRICE < price < MAX_SQRT_PRICE:
            price, self._ended = (MIN_SQRT_PRICE if down else MAX_SQRT_PRICE), True
        given, taken = full_step(start, price, liquidity, self._fee, down=down)
        self._given.append(self._given[-1] + given)
        self._taken.append(self._taken[-1] + taken)
        self._prices.append(price)
        crosses = is_initialised and not self._ended
        gas = _STOP_GAS
        if crosses:
            net, fresh = self._ticks[stop]
            liquidity += -net if down else net
            gas += _CROSSING_GAS + fresh * _FRESH_GAS
        self._liquidity.append(liquidity)
        self._crossed.append(self._crossed[-1] + crosses)
        self._gas.append(self._gas[-1] + gas)
        self._tick = stop - 1 if down else stop
        return True


def full_step(price: int, target: int, liquidity: int, fee_ppm: int, *, down: bool) -> tuple[int, int]:
    """Given with its fee and taken, where a step reaches its target (SwapMath.computeSwapStep)."""
    if down:
        spent = amount0_up(target, price, liquidity)
        taken = amount1_down(target, price, liquidity)
    else:
        spent = amount1_up(price, target, liquidity)
        taken = amount0_down(price, target, liquidity)
    return spent + mul_div_up(spent, fee_ppm, PPM - fee_ppm), taken


def last_step_in(price: int, liquidity: int, left_raw: int, fee_ppm: int, *, down: bool) -> tuple[int, int]:
    """Price after and amount taken, where exactly `left_raw` goes in before the target (SwapMath.computeSwapStep).

    The fee is whatever of it does not move the price.
    """
    spent = mul_div_down(left_raw, PPM - fee_ppm, PPM)
    after = price_after_input(price, liquidity, spent, down=down)
    return after, (amount1_down(after, price, liquidity) if down else amount0_down(price, after, liquidity))


def last_step_out(price: int, liquidity: int, left_raw: int, fee_ppm: int, *, down: bool) -> tuple[int, int]:
    """Price after and amount given with its fee, where exactly `left_raw` comes out (SwapMath.computeSwapStep)."""
    after = price_after_output(price, liquidity, left_raw, down=down)
    spent = amount0_up(after, price, liquidity) if down else amount1_up(price, after, liquidity)
    return after, spent + mul_div_up(spent, fee_ppm, PPM - fee_ppm)


def price_after_input(price: int, liquidity: int, amount_raw: int, *, down: bool) -> int:
    """SqrtPriceMath.getNextSqrtPriceFromInput."""
    if not down:
        return price + amount_raw * _Q96 // liquidity
    scaled, product = liquidity << 96, amount_raw * price
    if scaled + product <= MAX_UINT256:
        return mul_div_up(scaled, price, scaled + product)
    return -(-scaled // (scaled // price + amount_raw))


def price_after_output(price: int, liquidity: int, amount_raw: int, *, down: bool) -> int:
    """SqrtPriceMath.getNextSqrtPriceFromOutput."""
    if down:
        return price - mul_div_up(amount_raw, _Q96, liquidity)
    scaled = liquidity << 96
    return mul_div_up(scaled, price, scaled - amount_raw * price)


def amount0_up(low: int, high: int, liquidity: int) -> int:
    """Token 0 between two prices, rounded up (SqrtPriceMath.getAmount0Delta)."""
    return -(-mul_div_up(liquidity << 96, high - low, high) // low)


def amount0_down(low: int, high: int, liquidity: int) -> int:
    """Token 0 between two prices, rounded down (SqrtPriceMath.getAmount0Delta)."""
    return (liquidity << 96) * (high - low) // high // low


def amount1_up(low: int, high: int, liquidity: int) -> int:
    """Token 1 between two prices, rounded up (SqrtPriceMath.getAmount1Delta)."""
    return mul_div_up(liquidity, high - low, _Q96)


def amount1_down(low: int, high: int, liquidity: int) -> int:
    """Token 1 between two prices, rounded down (SqrtPriceMath.getAmount1Delta)."""
    return liquidity * (high - low) >> 96
