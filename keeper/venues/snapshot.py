"""What is known of a venue's pools as of one block: each is read once, however many plans of a head ask for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from keeper.seams import Reads, together
from keeper.types import BlockTime, Hash

P = TypeVar("P")
S = TypeVar("S")

Read = Callable[[P, dict[P, S]], Reads[None]]
_MOST_ROUNDS: Final = 8  # that reading pools takes; more than there can be


class Snapshot(Generic[P, S]):
    """States by pool, at the block last synced."""

    def __init__(self, read: Read[P, S]) -> None:
        """`read` puts the state of one pool into a mapping, as of whichever block it is asked at, if there is one."""
        self._read = read
        self._at: Hash | None = None
        self._states: dict[P, S] = {}
        self._asked: set[P] = set()  # being read

    def sync(self, pools: Iterable[P], at: BlockTime) -> Reads[None]:
        """Read those pools that were not read at this block; who asks beside another waits for the same answers."""
        if at.hash != self._at:
            self._at, self._states, self._asked = at.hash, {}, set()
        states, asked = self._states, self._asked
        wanted = [pool for pool in dict.fromkeys(pools) if pool not in states]
        mine = [pool for pool in wanted if pool not in asked]
        asked.update(mine)
        try:
            yield from together([self._read(pool, states) for pool in mine])
        finally:
            asked.difference_update(mine)
        for _ in range(_MOST_ROUNDS):
            if asked.isdisjoint(wanted):
                break
            yield ()

    def of(self, pools: Sequence[P]) -> Reads[Mapping[P, S]]:
        """The states of these pools as synced; otherwise read now, at whichever block that is, and not kept.

        Pools that do not exist are missing.
        """
        if all(pool in self._states for pool in pools):
            return self._states
        states: dict[P, S] = {}
        yield from together([self._read(pool, states) for pool in pools])
        return states
