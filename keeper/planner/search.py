"""The amount of a range that ranks highest.

What a liquidation nets rises with its amount to a peak and then falls, as price impact grows faster than the bonus; the
cost that the end check bounds only grows. So amounts that pass rank by what they net, others below all of them, and
the ranks have one peak. Where routes change on the way there may be several: so halves of the largest amount are
looked at first, and the neighbourhood of the best of them is searched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from keeper.seams import Reads

# A peak is flat: so small a part of the amount beside it costs some hundred-thousandth of the net.
_NEAR: Final = 256
_AT_THE_EDGE: Final = 1 << 14  # of what passes the net is not flat
_STEPS: Final = 40
_GOLDEN: Final = (382, 1000)


class Rank(NamedTuple):
    """How good an amount is: more is better. `value` is what it nets where it would pass the end check.

    `tier` is then `PASSES`, and below it for what does not pass; `margin` is how far from not passing it is.
    """

    tier: int
    value: int
    margin: int = 0


PASSES: Final = 5  # above what nearly passes, and how far those got that did not become candidates

Ranking = Callable[[int], Reads[Rank]]


def halves(low_raw: int, high_raw: int, rank: Ranking, hopeful: Callable[[int], Reads[bool]]) -> Reads[None]:
    """Rank the halves of `high_raw` down to `low_raw`, until one is not hopeful."""
    raw = high_raw
    yield from rank(raw)
    while raw > low_raw:
        raw = max(raw // 2, low_raw)
        if not (yield from hopeful(raw)):
            return
        yield from rank(raw)


def peak(low_raw: int, middle_raw: int, high_raw: int, rank: Ranking) -> Reads[None]:
    """Rank amounts from `low_raw` to `high_raw` until the best is among them, where there is but one peak."""
    ranks: dict[int, Rank] = {}
    for raw in sorted({low_raw, middle_raw, high_raw}):
        ranks[raw] = yield from rank(raw)
    best = max(ranks, key=lambda raw: (ranks[raw], -raw))
    left = max((raw for raw in ranks if raw < best), default=best - 1)
    right = min((raw for raw in ranks if raw > best), default=best + 1)
    for step in range(_STEPS):
        at = _next(left, best, right, ranks, step)
        if at is None:
            return
        ranks[at] = yield from rank(at)
        if ranks[at] > ranks[best]:
            left, best, right = (left, at, best) if at < best else (best, at, right)
        elif at < best:
            left = at
        else:
            right = at


def _next(left: int, best: int, right: int, ranks: dict[int, Rank], step: int) -> int | None:
    """Where to look next between the neighbours of the best amount; None where they are close enough."""
    near = max(best // _NEAR, 1)
    edge = ranks[best].tier == PASSES and right in ranks and ranks[right].tier < PASSES
    close = max(best // _AT_THE_EDGE, 1) if edge else near
    if right - best > close and edge:
        return _edge(best, right, ranks[best].margin, ranks[right], step)
    down, up = best - left, right - best
    if max(down - near, up - close) <= 0:
        return None
    if up <= close and (edge or right not in ranks):
        return best - near  # nothing to be gained above: is there below?
    top = None
    if step % 3 < 2 and {left, right} <= ranks.keys() and ranks[left].tier == ranks[right].tier:
        top = _top(*((raw, ranks[raw].value) for raw in (left, best, right)))
    if top is None or not left < top < right:
        top = best - down * _GOLDEN[0] // _GOLDEN[1] if down > up else best + up * _GOLDEN[0] // _GOLDEN[1]
    if abs(top - best) < near:
        top = best - near if down > up else best + near
    return top if left < top < right else best - near if down > near else best + near


def _edge(best: int, right: int, margin: int, beyond: Rank, step: int) -> int:
    """Between one that passes and one that does not: the margin is concave, so the chord's zero passes.

    Not by much, for which every other step goes twice as far.
    """
    middle = (best + right) // 2
    if beyond.tier < PASSES - 1:
        return middle
    forward = max((right - best) * margin // (margin - beyond.margin), 1)
    return min(best + forward, right - 1) if step % 2 == 0 else min(best + 2 * forward, middle)


def _top(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int | None:
    """Where the parabola through three points is highest, if it opens downwards."""
    left, right = b[0] - a[0], b[0] - c[0]
    rise, fall = b[1] - a[1], b[1] - c[1]
    bend = left * fall - right * rise
    return b[0] - (left**2 * fall - right**2 * rise) // (2 * bend) if bend > 0 else None
