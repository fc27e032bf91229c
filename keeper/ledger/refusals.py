"""When a refusal is news and when it only repeats what is on record.

Refusals of one account are the same while market, stage, reason and the kind of their numbers are: the numbers' names,
and among them the values that are words, booleans or addresses. One is news when it first appears and a repeat while
it keeps appearing at successive heads, whatever its amounts; several that alternate within one head each count on
their own. It is news again after a head at which the account was refused only otherwise, after any other entry of the
account, after ten minutes of silence, and after a restart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from keeper.types import Refusal

_WORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}|0x[0-9a-fA-F]{40}")
_NEWS_AFTER_S: Final = 600  # a refusal not seen for this long is news again

Who = tuple[str, str]  # protocol, checksummed account


@dataclass(slots=True)
class _Standing:
    """Refusals an account is under: signature → (head, time) last seen; and how many repeats went unbooked."""

    signatures: dict[tuple[str, ...], tuple[int, int]] = field(default_factory=dict)
    head: int = -1
    previous_head: int = -1
    suppressed: int = 0


class Refusals:
    """What every account is refused for, as far as this process has seen."""

    def __init__(self) -> None:
        self._standing: dict[Who, _Standing] = {}

    def repeats(self, who: Who, refusal: Refusal, market: str, head: int, at_s: int) -> bool:
        """Whether this refusal only repeats what is on record; if so it is counted."""
        standing = self._standing.setdefault(who, _Standing())
        if head != standing.head:
            standing.previous_head, standing.head = standing.head, head
        signature = _signature(refusal, market)
        seen_head, seen_s = standing.signatures.get(signature, (-1, at_s))
        repeated = seen_head >= 0 and seen_head in (standing.head, standing.previous_head)
        if not repeated or at_s - seen_s > _NEWS_AFTER_S:
            return False
        standing.signatures[signature] = (head, at_s)
        standing.suppressed += 1
        return True

    def on_record(self, who: Who, refusal: Refusal, market: str, head: int, at_s: int) -> None:
        """This refusal was booked."""
        self._standing[who].signatures[_signature(refusal, market)] = (head, at_s)

    def suppressed(self, who: Who) -> int:
        """How many repeats of an account no entry has stated yet."""
        standing = self._standing.get(who)
        return standing.suppressed if standing else 0

    def all_suppressed(self) -> int:
        """How many repeats of all accounts no entry has stated yet."""
        return sum(standing.suppressed for standing in self._standing.values())

    def stated(self, who: Who) -> None:
        """A refusal that was booked stated the repeats before it."""
        if who in self._standing:
            self._standing[who].suppressed = 0

    def over(self, who: Who) -> None:
        """Something else happened to an account: the same refusal afterwards is news."""
        self._standing.pop(who, None)

    def forget(self) -> None:
        """The next refusal of every account is news."""
        self._standing.clear()


def _signature(refusal: Refusal, market: str) -> tuple[str, ...]:
    shape = [
        f"{name}={value!r}" if _is_identity(value) else name
        for name, value in sorted(refusal.numbers.items())
    ]
    return (market, refusal.stage, refusal.reason, *shape)


def _is_identity(value: Any) -> bool:
    """Whether a value says what is refused (a token, a scope) rather than how much, when or in which words."""
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return isinstance(value, bool) or (isinstance(value, bytes) and len(value) == 20)
