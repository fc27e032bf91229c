"""Which provider is best: moving averages of how fast each answers and how late its heads are.

Places change only where one provider is clearly better than the one before it, so that two equal ones never swap
back and forth.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_WEIGHT: Final = 0.2  # of a new sample
_SAMPLES: Final = 3  # before these a provider keeps the place the configuration gave it
_BETTER: Final = 2.0  # how many times better …
_BETTER_S: Final = 0.02  # … and by how many seconds, before it moves up


class Ranking(Generic[K]):
    """Providers, best first; as configured until they were measured."""

    def __init__(self, members: Sequence[K]) -> None:
        self._order: Final = list(members)
        self._delay_s: Final[dict[K, float]] = {}
        self._samples: Final[dict[K, int]] = dict.fromkeys(members, 0)

    @property
    def order(self) -> Sequence[K]:
        """Best first."""
        return self._order

    def delay_s(self, member: K) -> float:
        """Its average delay: answering plus hearing of blocks; 0 before it was measured."""
        return self._delay_s.get(member, 0.0)

    def observe(self, member: K, latency_s: float, lateness_s: float) -> None:
        """Add one measurement: how long an answer took, and how much older its head was than the newest."""
        sample_s = latency_s + lateness_s
        before_s = self._delay_s.get(member, sample_s)
        self._delay_s[member] = before_s + _WEIGHT * (sample_s - before_s)
        self._samples[member] += 1

    def settle(self) -> None:
        """Let whoever is clearly better than its neighbour above move up one place."""
        for place in range(len(self._order) - 1, 0, -1):
            above, below = self._order[place - 1], self._order[place]
            if self._clearly_better(below, above):
                self._order[place - 1], self._order[place] = below, above

    def _clearly_better(self, one: K, other: K) -> bool:
        if min(self._samples[one], self._samples[other]) < _SAMPLES:
            return False
        return self._delay_s[other] > self._delay_s[one] * _BETTER + _BETTER_S
