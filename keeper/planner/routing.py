"""Which swaps bring back the loan and turn the rest into the profit token, and what they leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

from keeper.fixed import BPS, mul_div_down, mul_div_up
from keeper.planner.sizing import PRICED, ROUTED, DeadEnd, PlanContext, Point, Size, Terms
from keeper.seams import Reads, Venue, VenueKind, together
from keeper.types import Address, Path, PoolId, Quote, Refusal, SwapLeg

_LEG_GAS: Final = (
    90_000  # conservative, for what a quote's own gas leaves out: approvals, router, payment, checks
)


class Step(NamedTuple):
    """Sell all of one token for another, or buy just what the loan is still owed."""

    buy: bool
    token_in: Address
    token_out: Address


Recipe = tuple[Step, ...]
Route = tuple[Venue, Path]
Routes = Callable[[Address, Address], Sequence[Route]]


def recipes(seize: Address, repay: Address, profit: Address) -> tuple[Recipe, ...]:
    """Ways to turn what was seized into the loan and the profit token."""

    def sell(token_in: Address, token_out: Address) -> Step:
        return Step(False, token_in, token_out)

    def buy(token_in: Address) -> Step:
        return Step(True, token_in, repay)

    if seize == repay:
        return ((),) if profit == repay else ((sell(repay, profit),),)
    if profit == repay:
        return ((sell(seize, repay),),)
    if profit == seize:
        return ((buy(seize),),)
    return (
        (sell(seize, repay), sell(repay, profit)),
        (buy(seize), sell(seize, profit)),
        (sell(seize, profit), buy(profit)),
    )


def recipes_of(terms: Terms) -> tuple[Recipe, ...]:
    """The recipes of an option."""
    option = terms.option
    return recipes(option.seize_token.address, option.repay_token.address, terms.ctx.profit_token.address)


def routes_of(ctx: PlanContext) -> Routes:
    """Every venue's paths between two tokens, asked for once per plan."""

    @cache
    def routes(token_in: Address, token_out: Address) -> Sequence[Route]:
        return [
            (venue, path)
            for venue in ctx.venues
            for path in venue.paths(token_in, token_out, thorough=ctx.thorough)
        ]

    return routes


def synced(sizes: Sequence[Size], routes: Routes) -> Reads[None]:
    """Every pool that swaps of these sizes may use, read as of their block: one round, mostly, before any quote."""
    if not sizes:
        return
    options = {id(size.terms): size.terms for size in sizes}.values()
    steps = [step for terms in options for recipe in recipes_of(terms) for step in recipe]
    pairs = dict.fromkeys((step.token_in, step.token_out) for step in steps)
    ways = [route for pair in pairs for route in routes(*pair)]
    ctx = sizes[0].terms.ctx
    yield from together(
        [venue.sync([path for other, path in ways if other is venue], ctx.at) for venue in ctx.venues]
    )


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A size with its swaps, priced; `assured_raw` is the profit when every leg ends at its limit."""

    size: Size
    recipe: Recipe
    legs: tuple[SwapLeg, ...]
    quotes: tuple[Quote, ...]
    gross_raw: int
    assured_raw: int
    gas: int
    gas_cost_raw: int
    excess_usd_e8: int

    @property
    def net_raw(self) -> int:
        """Gross profit and what comes later, less gas."""
        return self.gross_raw + self.size.later_raw - self.gas_cost_raw

    @property
    def premium_bps(self) -> int:
        """By how much the market paid more for the collateral than the oracle says; 0 if it paid less."""
        return max(0, self.deviation_bps)

    @property
    def deviation_bps(self) -> int:
        """How far the market's price of the collateral is from the oracle's, rounded up; below 0 where it pays less."""
        terms, option = self.size.terms, self.size.terms.option
        seized_usd_e8 = terms.usd_e8_down(option.seize_token.address, self.size.outcome.seize_raw)
        owed_usd_e8 = terms.usd_e8_up(option.repay_token.address, self.size.owed_raw)
        paid_usd_e8 = terms.usd_e8_up(terms.ctx.profit_token.address, self.gross_raw) + owed_usd_e8
        return mul_div_up(paid_usd_e8, BPS, max(seized_usd_e8, 1)) - BPS

    @property
    def point(self) -> Point:
        """Its place on the curve of amounts."""
        return Point(self.size.amount_raw, self.net_raw, self.excess_usd_e8)

    @property
    def acceptable(self) -> bool:
        """Whether it is worth its gas and would pass the Liquidator's end check."""
        return self.excess_usd_e8 <= 0 and self.net_raw >= self.size.terms.ctx.min_profit_raw

    def preference(self) -> tuple[bool, int]:
        """Sort key: what the end check passes, then what nets more."""
        return self.excess_usd_e8 <= 0, self.net_raw

    def dead_end(self) -> DeadEnd:
        """Why it is not acceptable."""
        ctx = self.size.terms.ctx
        numbers: dict[str, int | bytes] = {
            **self.size.terms.names,
            "repay_raw": self.size.outcome.repay_raw,
            "seize_raw": self.size.outcome.seize_raw,
            "gross_raw": self.gross_raw,
            "gas_cost_raw": self.gas_cost_raw,
            "net_raw": self.net_raw,
            "min_profit_raw": ctx.min_profit_raw,
        }
        if self.size.outcome.seize_raw:
            numbers["deviation_bps"] = self.deviation_bps
        reason = "unprofitable"
        if self.net_raw >= ctx.min_profit_raw:
            reason = "over_slippage"
            numbers |= {"excess_usd_e8": self.excess_usd_e8, "max_slippage_bps": ctx.max_slippage_bps}
        return DeadEnd(PRICED, self.net_raw, Refusal("plan", reason, numbers))


def attempt(size: Size, recipe: Recipe, routes: Routes) -> Reads[Candidate | DeadEnd]:
    """Price a recipe leg by leg, each by its best route.

    A route may not use a pool in the direction an earlier leg used it: both quotes are for the pool as it is now, so
    the second would promise too much. The opposite direction only gets better by the earlier leg. The pool that lends
    is locked in both.
    """
    terms, ctx, option = size.terms, size.terms.ctx, size.terms.option
    repay, seize, profit = option.repay_token.address, option.seize_token.address, ctx.profit_token.address
    held = dict.fromkeys((repay, seize, profit), 0)
    held[seize] += size.outcome.seize_raw
    held[repay] -= size.owed_raw
    assured = dict(held)  # the same, with every leg at its limit
    used: set[tuple[int, Address, int, Address]] = set()
    legs: list[SwapLeg] = []
    quotes: list[Quote] = []
    gas = ctx.plan_gas
    for step in recipe:
        token_in, token_out = step.token_in, step.token_out
        amount_raw = -held[token_out] if step.buy else held[token_in]
        if amount_raw <= 0 and (step.buy or not size.owed_raw):
            continue  # nothing is missing, or nothing came
        if amount_raw <= 0:
            return _shortfall(size, token_in, -amount_raw, gas)
        open_routes = [
            route
            for route in routes(token_in, token_out)
            if used.isdisjoint(_hops(route)) and not _is_locked(route, size.flash.locked)
        ]
        answers = yield from together(
            [venue.quote(path, amount_raw, exact_out=step.buy) for venue, path in open_routes]
        )
        offers = [
            (_worth(terms, answer), venue, answer)
            for (venue, _), answer in zip(open_routes, answers, strict=True)
            if isinstance(answer, Quote)
        ]
        if not offers:
            return _no_route(size, step, amount_raw, answers)
        _, venue, quote = max(offers, key=lambda offer: offer[0])
        if quote.amount_in_raw > held[token_in]:
            return _shortfall(size, token_in, quote.amount_in_raw - held[token_in], gas)
        if step.buy:
            limit_raw = min(mul_div_up(quote.amount_in_raw, BPS + ctx.max_slippage_bps, BPS), held[token_in])
            assured[token_in] -= limit_raw
            assured[token_out] += quote.amount_out_raw
        else:
            least_in_raw = min(max(assured[token_in], 0), amount_raw)
            worst_raw = mul_div_down(quote.amount_out_raw, least_in_raw, amount_raw)
            limit_raw = mul_div_down(worst_raw, BPS - ctx.max_slippage_bps, BPS)
            assured[token_in] -= least_in_raw
            assured[token_out] += limit_raw
        held[token_in] -= quote.amount_in_raw
        held[token_out] += quote.amount_out_raw
        used |= _hops((venue, quote.path))
        legs.append(venue.swap_leg(quote, whole_balance=True, limit_raw=limit_raw))
        quotes.append(quote)
        gas += _leg_gas(quote)
    gross_raw = held[profit]
    came_raw, went_raw = size.outcome.seize_raw, size.outcome.repay_raw
    if seize == repay:
        # the Liquidator sees one balance change, so only the gain's own slippage is allowed (Liquidator._settle)
        came_raw, went_raw = came_raw - went_raw, 0
    excused_usd_e8 = mul_div_down(terms.usd_e8_down(seize, came_raw), ctx.max_slippage_bps, BPS)
    required_usd_e8 = terms.usd_e8_up(seize, came_raw) - terms.usd_e8_down(repay, went_raw) - excused_usd_e8
    return Candidate(
        size=size,
        recipe=recipe,
        legs=tuple(legs),
        quotes=tuple(quotes),
        gross_raw=gross_raw,
        assured_raw=max(assured[profit], 0),
        gas=gas,
        gas_cost_raw=ctx.gas_raw(gas),
        excess_usd_e8=required_usd_e8 - terms.usd_e8_down(profit, gross_raw),
    )


def _hops(route: Route) -> set[tuple[int, Address, int, Address]]:
    venue, path = route
    hops = zip(path.tokens[:-1], path.fees, path.tokens[1:], strict=True)
    return {(id(venue), token_in, fee, token_out) for token_in, fee, token_out in hops}


def _is_locked(route: Route, pool: PoolId | None) -> bool:
    """Whether the route passes the pool; one of another deployment that is named alike counts as well."""
    venue, path = route
    if pool is None or venue.kind is not VenueKind.UNISWAP_V3:
        return False
    hops = zip(path.tokens[:-1], path.tokens[1:], path.fees, strict=True)
    return any({one, other} == set(pool.tokens) and fee == pool.fee for one, other, fee in hops)


def _leg_gas(quote: Quote) -> int:
    return quote.gas + _LEG_GAS


def _worth(terms: Terms, quote: Quote) -> int:
    """What a quote brings, less its gas; a longer route must earn its own gas."""
    tokens, gas = quote.path.tokens, _leg_gas(quote)
    if quote.exact_out:
        return -quote.amount_in_raw - terms.gas_in(tokens[0], gas)
    return quote.amount_out_raw - terms.gas_in(tokens[-1], gas)


def _shortfall(size: Size, token: Address, short_raw: int, gas: int) -> DeadEnd:
    """The collateral does not bring back the loan."""
    terms = size.terms
    net_raw = -terms.profit_raw_up(terms.usd_e8_up(token, short_raw)) - terms.ctx.gas_raw(gas)
    numbers = {
        **terms.names,
        "repay_raw": size.outcome.repay_raw,
        "seize_raw": size.outcome.seize_raw,
        "short_token": token,
        "short_raw": short_raw,
        "net_raw": net_raw,
        "min_profit_raw": terms.ctx.min_profit_raw,
    }
    return DeadEnd(PRICED, net_raw, Refusal("plan", "unprofitable", numbers))


def _no_route(size: Size, step: Step, amount_raw: int, answers: Sequence[Quote | Refusal]) -> DeadEnd:
    reasons = Counter(answer.reason for answer in answers if isinstance(answer, Refusal))
    numbers = {
        **size.terms.names,
        "token_in": step.token_in,
        "token_out": step.token_out,
        "exact_out": step.buy,
        "amount_raw": amount_raw,
        "routes": dict(reasons),
    }
    return DeadEnd(
        ROUTED, size.most_net_raw(size.terms.ctx.max_slippage_bps), Refusal("plan", "no_route", numbers)
    )
