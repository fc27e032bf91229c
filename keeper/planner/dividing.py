"""One step of swaps: by its best route, or shared out among several so that none could take a part at a better price.

Parallel routes have no pool in common, so that their quotes add up. More comes of an amount in parts, until the price
at the margin is the same in all; but every part is a leg of its own, and must earn that leg's gas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from keeper.planner.sizing import Terms
from keeper.seams import Reads, Venue, VenueKind, together
from keeper.types import Address, Path, PoolId, Quote, Refusal

# Conservative, for what a quote's own gas leaves out: approvals, router, payment, checks.
_LEG_GAS: Final = 90_000
_CHUNKS: Final = 16
_FINEST: Final = 1 << 9  # of the amount: what is moved between parts in the end
_MOST_PARTS: Final = 4
_MOST_ROUTES: Final = 8  # that are looked at, those with the best price for a chunk


class Step(NamedTuple):
    """Sell all of one token for another, or buy just what the loan is still owed."""

    buy: bool
    token_in: Address
    token_out: Address


_Hop = tuple[int, Address, int, Address]


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A path through a venue's pools, and what was quoted there: one object for each in a plan.

    `hops` are its pools, each in its direction.
    """

    venue: Venue
    path: Path
    hops: frozenset[_Hop]
    known: dict[tuple[int, bool], Quote | Refusal] = field(default_factory=dict)

    @classmethod
    def of(cls, venue: Venue, path: Path) -> Route:
        """The route of a venue's path."""
        hops = zip(path.tokens[:-1], path.fees, path.tokens[1:], strict=True)
        return cls(venue, path, frozenset((id(venue), *hop) for hop in hops))

    def passes(self, pool: PoolId) -> bool:
        """Whether it passes a pool of Uniswap V3; one of another deployment that is named alike counts as well."""
        if self.venue.kind is not VenueKind.UNISWAP_V3:
            return False
        return any({one, other} == set(pool.tokens) and fee == pool.fee for _, one, fee, other in self.hops)

    def quote(self, raw: int, *, exact_out: bool) -> Reads[Quote | Refusal]:
        """What it gives for an amount, reckoned once."""
        answer = yield from self.venue.quote(self.path, raw, exact_out=exact_out)
        self.known[raw, exact_out] = answer
        return answer


Parts = Sequence[tuple[Route, Quote]]  # the largest last; empty where no route gives anything


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What a step swaps: exactly `amount_raw`, of what is sold or of what is bought.

    `assured_raw` of it is there, or missing, even if earlier legs end at their limits and an account fails. `refused`
    counts why routes do not give a quote.
    """

    terms: Terms
    step: Step
    amount_raw: int
    assured_raw: int
    routes: Sequence[Route]
    refused: Counter[str] = field(default_factory=Counter)

    def quotes(self, asked: Sequence[tuple[Route, int]]) -> Reads[list[Quote | None]]:
        """A quote of each amount by its route, None where there is none."""
        buy = self.step.buy
        new = [(route, raw) for route, raw in asked if (raw, buy) not in route.known]
        yield from together([route.quote(raw, exact_out=buy) for route, raw in new])
        answers = [route.known[raw, buy] for route, raw in asked]
        self.refused.update(answer.reason for answer in answers if isinstance(answer, Refusal))
        return [None if isinstance(answer, Refusal) else answer for answer in answers]

    def offers(self, asked: Sequence[tuple[Route, int]]) -> Reads[list[tuple[Route, Quote]]]:
        """Those that give a quote, each with it."""
        quotes = yield from self.quotes(asked)
        return [(route, quote) for (route, _), quote in zip(asked, quotes, strict=True) if quote]

    def value(self, quote: Quote) -> int:
        """What a quote brings; below 0 what it costs."""
        return -quote.amount_in_raw if self.step.buy else quote.amount_out_raw

    def worth(self, quote: Quote) -> int:
        """The same, less its gas: every leg must earn its own."""
        return self.value(quote) - self.cost(leg_gas(quote))

    def cost(self, gas: int) -> int:
        """What a leg costs that takes that gas, in what quotes are valued in."""
        return self.terms.leg_in(self.step.token_in if self.step.buy else self.step.token_out, gas)


Divide = Callable[[Task], Reads[Parts]]


def single(task: Task) -> Reads[Parts]:
    """All by the best route."""
    offers = yield from task.offers([(route, task.amount_raw) for route in task.routes])
    return [max(offers, key=lambda offer: task.worth(offer[1]))] if offers else []


def at_best_price(task: Task) -> Reads[Parts]:
    """All by the route that gives most, whatever it takes of gas."""
    offers = yield from task.offers([(route, task.amount_raw) for route in task.routes])
    return [max(offers, key=lambda offer: task.value(offer[1]))] if offers else []


def alike(model: Mapping[Step, Parts]) -> Divide:
    """Another amount shared out in the same proportions."""

    def divide(task: Task) -> Reads[Parts]:
        parts = model.get(task.step, ())
        if not parts or not all(route in task.routes for route, _ in parts):
            return (yield from single(task))
        shares = [quote.amount_out_raw if task.step.buy else quote.amount_in_raw for _, quote in parts]
        raws = [task.amount_raw * share // sum(shares) for share in shares[:-1]]
        amounts = [*raws, task.amount_raw - sum(raws)]
        return (
            yield from _quoted(task, [(route, raw) for (route, _), raw in zip(parts, amounts, strict=True)])
        )

    return divide


def divided(task: Task) -> Reads[Parts]:
    """Among as many routes as pay for themselves: chunk by chunk to who gives most for it, then evened out."""
    best = yield from single(task)
    chunk_raw = task.amount_raw // _CHUNKS
    if len(task.routes) < 2 or not chunk_raw:
        return best
    first = yield from task.offers([(route, chunk_raw) for route in task.routes])
    offers = [(route, task.value(quote)) for route, quote in first]
    offers.sort(key=lambda offer: offer[1], reverse=True)
    if best and offers and offers[0][1] * _CHUNKS - task.value(best[0][1]) <= task.cost(_LEG_GAS):
        return best  # not even at the first chunk's price could a leg more be paid
    taken = yield from _greedy(task, offers[:_MOST_ROUTES], chunk_raw)
    while len(taken) > 1:
        taken = yield from _evened(task, taken, chunk_raw // 2)
        parts = yield from _quoted(task, sorted(taken.items(), key=lambda part: part[1]))
        if parts and (not best or _total(task, parts) > _total(task, best)):
            best = parts
        elif parts and len(best) > 1:
            break  # one more part paid for itself
        spare_raw = taken.pop(min(taken, key=lambda route: taken[route]))
        taken[max(taken, key=lambda route: taken[route])] += spare_raw
    return best


def leg_gas(quote: Quote) -> int:
    """What a leg takes."""
    return quote.gas + _LEG_GAS


def _greedy(task: Task, offers: Sequence[tuple[Route, int]], chunk_raw: int) -> Reads[dict[Route, int]]:
    """Chunks to routes, each to the one that gives most for it; what is left of the amount to the largest."""
    taken: dict[Route, int] = {}
    following = dict(offers)  # what each route's next chunk brings
    values = dict.fromkeys(following, 0)
    for _ in range(_CHUNKS):
        free = [
            route
            for route in following
            if route in taken
            or (len(taken) < _MOST_PARTS and all(route.hops.isdisjoint(other.hops) for other in taken))
        ]
        if not free:
            return {}
        best = max(free, key=lambda route: following[route])
        taken[best] = taken.get(best, 0) + chunk_raw
        values[best] += following[best]
        [quote] = yield from task.quotes([(best, taken[best] + chunk_raw)])
        if quote:
            following[best] = task.value(quote) - values[best]
        else:
            del following[best]
    largest = max(taken, key=lambda route: taken[route])
    taken[largest] += task.amount_raw - chunk_raw * _CHUNKS
    return taken


def _evened(task: Task, taken: dict[Route, int], move_raw: int) -> Reads[dict[Route, int]]:
    """Smaller and smaller amounts moved from one route to another wherever that brings more."""
    taken = dict(taken)
    while move_raw * _FINEST >= task.amount_raw:
        gains: dict[Route, int] = {}
        losses: dict[Route, int] = {}
        for route, raw in taken.items():
            amounts = [raw, raw + move_raw, *([raw - move_raw] if raw > move_raw else [])]
            now, more, *less = yield from task.quotes([(route, amount) for amount in amounts])
            if now is None:
                return taken
            if more is not None:
                gains[route] = task.value(more) - task.value(now)
            if less and less[0] is not None:
                losses[route] = task.value(now) - task.value(less[0])
        pairs = [(one, two) for one in gains for two in losses if one is not two and gains[one] > losses[two]]
        if pairs:
            taker, giver = max(pairs, key=lambda pair: gains[pair[0]] - losses[pair[1]])
            taken[taker] += move_raw
            taken[giver] -= move_raw
        else:
            move_raw //= 2
    return taken


def _quoted(task: Task, amounts: Sequence[tuple[Route, int]]) -> Reads[Parts]:
    """The parts of a step; nothing where one has no quote, or where what is assured would not do for the first ones."""
    explicit_raw = sum(raw for _, raw in amounts[:-1])
    if explicit_raw and explicit_raw > task.assured_raw:
        return []
    parts = yield from task.offers(amounts)
    return parts if len(parts) == len(amounts) else []


def _total(task: Task, parts: Parts) -> int:
    return sum(task.worth(quote) for _, quote in parts)
