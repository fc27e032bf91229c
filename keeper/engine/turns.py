"""Whose turn it is: an order in which nobody starves, however many accounts fall at once and whatever keeps failing.

Positions left out at one head come first at the next; those whose trial was refused are tried last; a way that
came to nothing is passed over for another; who failed together with others goes alone; and who was left alone gets a
look by every route from time to time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from keeper.planner.sizing import net_usd_e8
from keeper.types import Address, BlockNumber, Health, Option, Plan, PositionKey, Refusal

# Heads between thorough looks at every route: of everybody, and of one who was left alone before.
_THOROUGH_EVERY: Final = 64
_RETRY_THOROUGHLY_EVERY: Final = 16
_NEVER: Final = -1

# The tokens repaid and seized, and which one of those with both: a perp's sizes and markets are all paid in one token.
_Way = tuple[Address, Address, int]


class Turns:
    """What is remembered of unsafe positions from head to head; forgotten once they are safe or in flight.

    Who goes alone is remembered also while it is in flight.
    """

    def __init__(self) -> None:
        self._planned_at: dict[PositionKey, int] = {}
        self._turned_down: set[PositionKey] = set()
        self._alone: set[PositionKey] = set()
        self._futile: dict[PositionKey, set[_Way]] = {}
        self._offered: dict[PositionKey, list[tuple[_Way, Option]]] = {}

    def ordered(self, unsafe: Iterable[Health]) -> list[Health]:
        """Those planned longest ago first, as they come otherwise; whoever is missing is forgotten."""
        wanted = sorted(unsafe, key=lambda health: self._planned_at.get(health.key, _NEVER))
        self._planned_at = {health.key: self._planned_at.get(health.key, _NEVER) for health in wanted}
        self._turned_down &= self._planned_at.keys()
        self._futile = {key: ways for key, ways in self._futile.items() if key in self._planned_at}
        self._offered.clear()
        return wanted

    def thorough(self, key: PositionKey, head: BlockNumber) -> bool:
        """Whether a position gets a look by every route at this head."""
        left_alone = self._planned_at.get(key, _NEVER) != _NEVER
        again = left_alone and (head + key.account[-1]) % _RETRY_THOROUGHLY_EVERY == 0
        return again or head % _THOROUGH_EVERY == 0

    def untried(self, key: PositionKey, options: Sequence[Option | Refusal]) -> Sequence[Option | Refusal]:
        """The options without the ways that came to nothing, until none of the others makes a plan."""
        offered = self._offered[key] = _ways(options)
        futile = self._futile.get(key, ())
        left = [option for way, option in offered if way not in futile]
        return left or options

    def planned(self, key: PositionKey, answer: Plan | Refusal, head: BlockNumber) -> None:
        """Note what planning a position came to."""
        self._planned_at[key] = head
        if isinstance(answer, Refusal):
            self._futile.pop(key, None)
            self._turned_down.discard(key)

    def best_first(self, plans: Iterable[Plan]) -> list[Plan]:
        """By what they net, those last turned down at the end."""
        return sorted(plans, key=lambda one: (one.key in self._turned_down, -net_usd_e8(one)))

    def turned_down(self, plan: Plan, *, futile: bool) -> None:
        """A plan was tried and is not sent.

        `futile` where its trial reverted, and nothing before it could be why, or took more gas than the plan pays. Of
        several accounts each goes alone from then on, whatever the limit was that it met.
        """
        if len(plan.keys) > 1:
            self.part(plan.keys)
            return
        self._turned_down.add(plan.key)
        if futile:
            offered = self._offered.get(plan.key, ())
            ways = {way for way, option in offered if option is plan.option}
            self._futile.setdefault(plan.key, set()).update(ways)

    def part(self, keys: Iterable[PositionKey]) -> None:
        """These do not share a transaction any more: theirs was refused, or they failed in it."""
        self._alone.update(keys)

    def only(self, unsafe: Iterable[Health]) -> None:
        """All there are, also those in flight: who goes alone does so again should that come to nothing."""
        self._alone &= {health.key for health in unsafe}

    def may_join(self, key: PositionKey) -> bool:
        """Whether a position may share a transaction with others."""
        return key not in self._alone

    def sent(self, plan: Plan) -> None:
        """A plan is on its way."""
        self._turned_down.discard(plan.key)


def _ways(options: Iterable[Option | Refusal]) -> list[tuple[_Way, Option]]:
    seen: Counter[tuple[Address, Address]] = Counter()
    found: list[tuple[_Way, Option]] = []
    for option in options:
        if isinstance(option, Option):
            pair = option.repay_token.address, option.seize_token.address
            found.append(((*pair, seen[pair]), option))
            seen[pair] += 1
    return found
