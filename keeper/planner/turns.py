"""Whose turn it is: an order in which nobody starves, however many accounts fall at once and whatever keeps failing.

Positions left out at one head come first at the next; those whose trial was refused are tried last; a pair that
reverted is passed over for another; and who was left alone gets a look by every route from time to time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from keeper.types import Address, BlockNumber, Health, Option, Plan, PositionKey, Refusal

# Heads between thorough looks at every route: of everybody, and of one who was left alone before.
_THOROUGH_EVERY: Final = 64
_RETRY_THOROUGHLY_EVERY: Final = 16
_NEVER: Final = -1


class Turns:
    """What is remembered of unsafe positions from head to head; forgotten once they are safe or in flight."""

    def __init__(self) -> None:
        self._planned_at: dict[PositionKey, int] = {}
        self._turned_down: set[PositionKey] = set()
        self._reverted_pairs: dict[PositionKey, set[tuple[Address, Address]]] = {}

    def ordered(self, unsafe: Iterable[Health]) -> list[Health]:
        """Those planned longest ago first, as they come otherwise; whoever is missing is forgotten."""
        wanted = sorted(unsafe, key=lambda health: self._planned_at.get(health.key, _NEVER))
        self._planned_at = {health.key: self._planned_at.get(health.key, _NEVER) for health in wanted}
        self._turned_down &= self._planned_at.keys()
        self._reverted_pairs = {
            key: pairs for key, pairs in self._reverted_pairs.items() if key in self._planned_at
        }
        return wanted

    def thorough(self, key: PositionKey, head: BlockNumber) -> bool:
        """Whether a position gets a look by every route at this head."""
        left_alone = self._planned_at.get(key, _NEVER) != _NEVER
        again = left_alone and (head + key.account[-1]) % _RETRY_THOROUGHLY_EVERY == 0
        return again or head % _THOROUGH_EVERY == 0

    def untried(self, key: PositionKey, options: Sequence[Option | Refusal]) -> Sequence[Option | Refusal]:
        """The options without the pairs that reverted in trials, until none of the others makes a plan."""
        reverted = self._reverted_pairs.get(key, ())
        left = [each for each in options if isinstance(each, Refusal) or _pair(each) not in reverted]
        return left if any(isinstance(each, Option) for each in left) else options

    def planned(self, key: PositionKey, answer: Plan | Refusal, head: BlockNumber) -> None:
        """Note what planning a position came to."""
        self._planned_at[key] = head
        if isinstance(answer, Refusal):
            self._reverted_pairs.pop(key, None)
            self._turned_down.discard(key)

    def best_first(self, plans: Iterable[Plan]) -> list[Plan]:
        """By what they net, those last turned down at the end."""
        return sorted(
            plans, key=lambda one: (one.key in self._turned_down, one.gas_cost_raw - one.expected_profit_raw)
        )

    def turned_down(self, plan: Plan, *, reverted: bool) -> None:
        """A plan was tried and is not sent; `reverted` where its trial did, and nothing before it could be why."""
        self._turned_down.add(plan.key)
        if reverted:
            self._reverted_pairs.setdefault(plan.key, set()).add(_pair(plan.option))

    def sent(self, plan: Plan) -> None:
        """A plan is on its way."""
        self._turned_down.discard(plan.key)


def _pair(option: Option) -> tuple[Address, Address]:
    return option.repay_token.address, option.seize_token.address
