"""What trips a breaker and what lets go of it again, in numbers alone.

Two thresholds and a calm time between them: a value that hovers around one limit trips once and does not flap.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from keeper.fixed import BPS


@dataclass(slots=True)
class Latch:
    """Trips at `trip_at`, and lets go once the value stayed below `clear_below` for `calm_s` seconds.

    A value from `clear_below` up to `trip_at` changes nothing but that the calm begins anew.
    """

    trip_at: int
    clear_below: int
    calm_s: int
    tripped: bool = False
    _calm_since_s: int | None = None

    def update(self, value: int, now_s: int) -> bool:
        """Whether it is tripped after this value."""
        if value >= self.trip_at:
            self.tripped, self._calm_since_s = True, None
        elif value >= self.clear_below:
            self._calm_since_s = None
        elif self.tripped:
            self._calm_since_s = now_s if self._calm_since_s is None else self._calm_since_s
            if now_s - self._calm_since_s >= self.calm_s:
                self.tripped, self._calm_since_s = False, None
        return self.tripped


@dataclass(slots=True)
class Moves:
    """How far one price moved within the last `window_s` seconds; prices are positive.

    Of earlier prices only those are kept that can still become the lowest or the highest, so that a head costs the
    same however many the window holds.
    """

    window_s: int
    price: int = 0
    _seen_s: int = 0
    _lows: deque[tuple[int, int]] = field(default_factory=deque)  # until when, which price: rising
    _highs: deque[tuple[int, int]] = field(default_factory=deque)  # falling

    def still(self, price: int) -> bool:
        """Whether this price is the only one within the window, so that `bps` would say 0."""
        return price == self.price and not self._lows

    def bps(self, price: int, now_s: int) -> int:
        """The distance from the lowest to the highest price within the window, in basis points of the lowest."""
        if self.price and price != self.price:
            self._keep(self.price)
        self.price, self._seen_s = price, now_s
        for kept in (self._lows, self._highs):
            while kept and kept[0][0] < now_s - self.window_s:
                kept.popleft()
        low = min(price, self._lows[0][1]) if self._lows else price
        high = max(price, self._highs[0][1]) if self._highs else price
        return (high - low) * BPS // low

    def _keep(self, price: int) -> None:
        while self._lows and self._lows[-1][1] >= price:
            self._lows.pop()
        while self._highs and self._highs[-1][1] <= price:
            self._highs.pop()
        self._lows.append((self._seen_s, price))
        self._highs.append((self._seen_s, price))


@dataclass(slots=True)
class Budget:
    """What may be used at a time. Trips when something does not fit, and lets go when that would fit again."""

    limit: int
    wanted: int = 0  # by what did not fit; 0: nothing was refused

    def refuses(self, used: int, wanted: int) -> bool:
        """Whether `wanted` does not fit beside what is used; if it would fit alone it is waited for."""
        if used + wanted <= self.limit:
            return False
        if wanted <= self.limit:  # nobody waits for what would not even fit alone
            self.wanted = max(self.wanted, wanted)
        return True

    def fits(self, used: int) -> bool:
        """Whether what was refused would fit now; if so it is forgotten."""
        if self.wanted and used + self.wanted <= self.limit:
            self.wanted = 0
        return not self.wanted
