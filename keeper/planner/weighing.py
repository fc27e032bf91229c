"""The ways of one account against each other: what was priced, and which is the best so far.

A way is an option of the protocol's, who lends for it, and a recipe of swaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from keeper.planner.dividing import Divide, alike, at_best_price, divided, single
from keeper.planner.routing import Candidate, Recipe, attempt, recipes_of, routes_of, synced
from keeper.planner.search import PASSES, Rank, halves, peak
from keeper.planner.sizing import BORROWED, PRICED, ROUTED, DeadEnd, Funded, PlanContext, Size, Terms, size_of
from keeper.seams import Reads, together
from keeper.types import USD_E8, ZERO_ADDRESS, FlashQuote, Weighed

# A quote of pools that are known takes some 20 µs with all that is done for it.
_MAX_QUOTES: Final = 192
_MAX_QUOTES_THOROUGH: Final = 4 * _MAX_QUOTES  # more routes must not mean fewer ways
_SHARED_OUT: Final = 3  # of the best by single routes
_SPARE_RAW: Final = 8  # for roundings of what is borrowed
_FITTINGS: Final = 4  # of an amount to what is lent; several accounts may borrow the same for many amounts
_NO_BETTER_IF_LESS: Final = ("unprofitable", "bad_debt_budget", "nothing_seizable")
_LEAST_TIMES: Final = 16
_ROUNDS: Final = 4  # of sharing out an amount and looking for a better one
_GAINED: Final = 1 << 13  # part of the net profit for which another such round is worth it


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """How an account may be liquidated, and the best that was made of each amount."""

    funded: Funded
    recipe: Recipe
    results: dict[int, Candidate | DeadEnd] = field(default_factory=dict)

    def rank(self, amount_raw: int) -> Rank:
        """How good an amount that was priced is."""
        return _rank(self.results[amount_raw], amount_raw)

    def best_of(self, amounts_raw: Iterable[int]) -> int:
        """The amount that ranks highest of those that were priced, and of equals the least."""
        return max(amounts_raw, key=lambda raw: (self.rank(raw), -raw))

    def told(self) -> Weighed:
        """What was made of the amount that ranks highest."""
        amount_raw = self.best_of(self.results)
        option, profit_token = self.funded.terms.option, self.funded.terms.ctx.profit_token
        loan, result = self.funded.loan, self.results[amount_raw]
        tokens = (option.repay_token, option.seize_token, profit_token)
        symbols = {token.address: token.symbol for token in tokens}
        if isinstance(result, Candidate):
            lender, repay_raw = result.size.flash.source, result.size.outcome.repay_raw
            calls, legs = len(result.size.calls), len(result.legs)
            reason = None if result.acceptable else result.dead_end().refusal.reason
        else:
            lender, repay_raw = loan.source if loan else ZERO_ADDRESS, amount_raw
            calls, legs, reason = 0, 0, result.refusal.reason
        return Weighed(
            repay_token=option.repay_token,
            seize_token=option.seize_token,
            profit_token=profit_token,
            lender=lender,
            swaps=", ".join(
                f"buy {symbols[step.token_out]} with {symbols[step.token_in]}"
                if step.buy
                else f"sell {symbols[step.token_in]} for {symbols[step.token_out]}"
                for step in self.recipe
            ),
            repay_raw=repay_raw,
            calls=calls,
            legs=legs,
            net_raw=result.net_raw,
            reason=reason,
        )


class Weighing:
    """Prices ways within a number of quotes."""

    def __init__(self, ctx: PlanContext) -> None:
        """Nothing is weighed yet."""
        self.best: Candidate | None = None
        self.ways: list[Way] = []
        self._ctx = ctx
        self._routes = routes_of(ctx)
        self._room = _MAX_QUOTES_THOROUGH if ctx.thorough else _MAX_QUOTES
        self._sizes: dict[tuple[Terms, FlashQuote | None, int], Size | DeadEnd] = {}

    def weigh(self, options: Sequence[Funded]) -> Reads[None]:
        """Price what these options allow: `best` is what nets most of it."""
        yield from self._open(options)
        by_promise = sorted(self._priced(), key=_promise, reverse=True)
        vain: set[Way] = set()
        for way in dict.fromkeys(way for way, _, _ in by_promise):
            most_raw = way.funded.most_raw
            if not most_raw or not (yield from self._is_hopeful(way, most_raw)):
                continue
            if (yield from self._may_pass(way)):
                ranking, hopeful = partial(self._measure, way), partial(self._is_hopeful, way)
                yield from halves(way.funded.least_raw, most_raw, ranking, hopeful)
            else:
                vain.add(way)
        found = [each for each in self._priced() if each[0] not in vain]
        found.sort(key=lambda each: each[2], reverse=True)
        for place, (way, amount_raw, rank) in enumerate(found):
            if rank.tier >= PRICED and (place < _SHARED_OUT or self._is_cut_short(way, amount_raw)):
                yield from self._share_out(way, amount_raw)

    def dead_ends(self) -> list[DeadEnd]:
        """Why what was priced is not acceptable, and why the rest was not priced."""
        results = [result for way in self.ways for result in way.results.values()]
        ends = [each.dead_end() if isinstance(each, Candidate) else each for each in results]
        return ends + [size for size in self._sizes.values() if isinstance(size, DeadEnd)]

    def weighed(self) -> tuple[Weighed, ...]:
        """Every way that was priced, at the amount that ranks highest; best first."""
        priced = [way for way in self.ways if way.results]
        priced.sort(key=lambda way: way.rank(way.best_of(way.results)), reverse=True)
        return tuple(way.told() for way in priced)

    @property
    def numbers(self) -> dict[str, int]:
        """How many amounts were sized, and how many of them priced by any way."""
        return {"amounts": len(self._sizes), "priced": sum(len(way.results) for way in self.ways)}

    def _open(self, options: Sequence[Funded]) -> Reads[None]:
        """Price the largest amounts, of the options first that promise most; where quotes run out others are left."""
        found = yield from together([self._largest(option) for option in options])
        sizes = [each for largest in found for each in largest]
        sizes.sort(key=lambda each: each[1].most_net_raw(self._ctx.max_slippage_bps), reverse=True)
        yield from synced([size.terms for _, size in sizes], self._routes, self._ctx)
        room = self._room
        ways: dict[tuple[Terms, FlashQuote, Recipe], Way] = {}
        asked: list[Reads[Rank]] = []
        for option, size in sizes:
            for recipe in recipes_of(option.terms):
                # of several lenders none is asked where nothing is borrowed
                way = ways.setdefault((option.terms, size.flash, recipe), Way(option, recipe))
                if way.funded is option and (room > 0 or not asked):
                    asked.append(self._measure(way, size.amount_raw))
                    room -= self._quotes(recipe)
        self.ways = list(ways.values())
        yield from together(asked)

    def _quotes(self, recipe: Recipe) -> int:
        return sum(len(self._routes(step.token_in, step.token_out)) for step in recipe[:1])

    def _largest(self, option: Funded) -> Reads[list[tuple[Funded, Size]]]:
        """The amounts to begin with; less than the largest part where that is refused or more than there is to lend."""
        found: list[tuple[Funded, Size]] = []
        whole_raw, most_raw = option.whole_raw, option.most_raw
        fitted = 0
        while option.most_raw:
            size = yield from self._size(option, option.most_raw)
            if isinstance(size, Size):
                found.append((option, size))
                break
            numbers, fewer_raw = size.refusal.numbers, option.most_raw // 2
            if size.reached == BORROWED and numbers["available_raw"] and fitted < _FITTINGS:
                # a little more is borrowed than is repaid
                fitted += 1
                fewer_raw = option.most_raw * numbers["available_raw"] // numbers["needed_raw"] - _SPARE_RAW
            hopeless = size.refusal.reason in _NO_BETTER_IF_LESS
            if hopeless or not option.least_raw <= fewer_raw < option.most_raw:
                fewer_raw = 0
            option = replace(option, most_raw=fewer_raw)
        if whole_raw is not None and (whole_raw != most_raw or not most_raw):
            size = yield from self._size(option, whole_raw)
            found += [(option, size)] if isinstance(size, Size) else []
        return found

    def _priced(self) -> list[tuple[Way, int, Rank]]:
        """Of each way the best of its whole amount, and of the others."""
        found: list[tuple[Way, int, Rank]] = []
        for way in self.ways:
            whole = [raw for raw in way.results if raw == way.funded.whole_raw]
            parts = [raw for raw in way.results if raw != way.funded.whole_raw]
            amounts = [way.best_of(some) for some in (whole, parts) if some]
            found += [(way, raw, way.rank(raw)) for raw in amounts]
        return found

    def _share_out(self, way: Way, amount_raw: int) -> Reads[None]:
        """Share an amount out among routes, and look for a better amount shared out alike, until that gains nothing."""
        option = way.funded
        for _ in range(_ROUNDS):
            before = way.rank(amount_raw)
            yield from self._measure(way, amount_raw, divided)
            model = way.results[amount_raw]
            if not isinstance(model, Candidate) or not option.least_raw <= amount_raw <= option.most_raw:
                return
            low_raw, high_raw = max(option.least_raw, amount_raw // 2), min(option.most_raw, 2 * amount_raw)
            ranking = partial(self._measure, way, divide=alike(model.parts))
            yield from peak(low_raw, amount_raw, high_raw, ranking)
            amount_raw = way.best_of(raw for raw in way.results if low_raw <= raw <= high_raw)
            rank = way.rank(amount_raw)
            if rank.tier == before.tier and rank.value - before.value <= abs(before.value) // _GAINED:
                return
            if way.results[amount_raw] is not self.best:
                return  # another way is ahead

    def _is_cut_short(self, way: Way, amount_raw: int) -> bool:
        """Whether a way nets more than the best at the next larger amount, which only the end check forbids."""
        larger_raw = min((raw for raw in way.results if raw > amount_raw), default=amount_raw)
        result, best = way.results[larger_raw], self.best
        if not isinstance(result, Candidate) or result.rank().tier == PASSES or best is None:
            return False
        return result.net_raw > best.net_raw

    def _measure(self, way: Way, amount_raw: int, divide: Divide = single) -> Reads[Rank]:
        """Price an amount of a way; what it makes is kept if it is the best of that amount."""
        known = way.results.get(amount_raw)
        if known is not None and divide is single:
            return way.rank(amount_raw)
        size = yield from self._size(way.funded, amount_raw)
        result = (
            size
            if isinstance(size, DeadEnd)
            else (yield from attempt(size, way.recipe, self._routes, divide))
        )
        rank = _rank(result, amount_raw)
        if known is None or rank > way.rank(amount_raw):
            way.results[amount_raw] = result
        if isinstance(result, Candidate) and (self.best is None or rank > self.best.rank()):
            self.best = result
        return rank

    def _is_hopeful(self, way: Way, amount_raw: int) -> Reads[bool]:
        """Whether this amount or a smaller one could net more than the best: they move the market less.

        They may fetch what the best fetched and the slippage it bore.
        """
        size = yield from self._size(way.funded, amount_raw)
        if isinstance(size, DeadEnd) or self._room <= 0:
            return False
        best = self.best
        self._room -= self._quotes(way.recipe)
        if best is None or not best.acceptable or best is way.results.get(amount_raw):
            return True
        premium_bps = max(0, best.deviation_bps)
        return size.most_net_raw(premium_bps + self._ctx.max_slippage_bps) > best.net_raw

    def _may_pass(self, way: Way) -> Reads[bool]:
        """Whether some amount of a way passes the end check: where the largest does not, the least that may pay tells.

        Every unit fetches most where least is sold: what fails there at the best price, whatever it takes of gas, fails
        everywhere, and no room is spent between. Unless it fails by a rounding: so some times as much must fail too.
        """
        terms, most_raw = way.funded.terms, way.funded.most_raw
        if most_raw not in way.results or way.rank(most_raw).tier == PASSES:
            return True
        repay, least_raw = terms.option.repay_token.address, most_raw
        while terms.usd_e8_down(repay, least_raw) >= 2 * USD_E8:
            if least_raw // 2 < way.funded.least_raw:
                return True  # it may be too much for one route
            size = yield from self._size(way.funded, least_raw // 2)
            if isinstance(size, DeadEnd):
                if size.refusal.reason != self._ctx.too_little[0]:
                    return True  # so may this
                break
            least_raw //= 2
        for amount_raw in (least_raw, min(_LEAST_TIMES * least_raw, most_raw)):
            size = yield from self._size(way.funded, amount_raw)
            if isinstance(size, Size):
                result = yield from attempt(size, way.recipe, self._routes, at_best_price)
                if isinstance(result, Candidate) and result.rank().tier == PASSES:
                    return True
        return False

    def _size(self, option: Funded, amount_raw: int) -> Reads[Size | DeadEnd]:
        key = (option.terms, option.loan, amount_raw)
        if key not in self._sizes:
            self._sizes[key] = yield from size_of(option, amount_raw)
        return self._sizes[key]


def _promise(found: tuple[Way, int, Rank]) -> tuple[bool, int, Rank]:
    """What an amount nets, whether or not it passes: a smaller one may pass."""
    way, amount_raw, rank = found
    result = way.results[amount_raw]
    return isinstance(result, Candidate), result.net_raw, rank


def _rank(result: Candidate | DeadEnd, amount_raw: int) -> Rank:
    """What is not worth a loan grows with the amount; what has no loan or no route shrinks with it."""
    if isinstance(result, Candidate):
        return result.rank()
    shrinks = result.reached in (BORROWED, ROUTED)
    return Rank(result.reached, -amount_raw if shrinks else result.net_raw)
