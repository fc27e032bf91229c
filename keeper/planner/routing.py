"""Which swaps bring back the loan and turn the rest into the profit token, and what they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from keeper.fixed import BPS, mul_div_down, mul_div_up
from keeper.planner.dividing import Divide, Parts, Route, Step, Task, leg_gas, single
from keeper.planner.search import PASSES, Rank
from keeper.planner.sizing import PRICED, ROUTED, DeadEnd, PlanContext, Size, Terms
from keeper.seams import Reads, together
from keeper.types import Address, Refusal, SwapLeg

Recipe = tuple[Step, ...]
Routes = Callable[[Address, Address], Sequence[Route]]


def recipes_of(terms: Terms) -> tuple[Recipe, ...]:
    """Ways to turn what was seized into the loan and the profit token."""
    repay, seize = terms.option.repay_token.address, terms.option.seize_token.address
    profit = terms.ctx.profit_token.address

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


def routes_of(ctx: PlanContext) -> Routes:
    """Every venue's paths between two tokens, asked for once per plan."""

    @cache
    def routes(token_in: Address, token_out: Address) -> Sequence[Route]:
        return [
            Route.of(venue, path)
            for venue in ctx.venues
            for path in venue.paths(token_in, token_out, thorough=ctx.thorough)
        ]

    return routes


def synced(options: Sequence[Terms], routes: Routes, ctx: PlanContext) -> Reads[None]:
    """Every pool that swaps of these options may use, read as of their block: one round, mostly, before any quote."""
    steps = [step for terms in options for recipe in recipes_of(terms) for step in recipe]
    pairs = dict.fromkeys((step.token_in, step.token_out) for step in steps)
    ways = [route for pair in pairs for route in routes(*pair)]
    yield from together(
        [venue.sync([each.path for each in ways if each.venue is venue], ctx.at) for venue in ctx.venues]
    )


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A size with its swaps, priced; `assured_raw` is the profit when every leg ends at its limit."""

    size: Size
    parts: Mapping[Step, Parts]
    legs: tuple[SwapLeg, ...]
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
    def deviation_bps(self) -> int:
        """How far the market's price of the collateral is from the oracle's, rounded up; below 0 where it pays less."""
        terms, option = self.size.terms, self.size.terms.option
        seized_usd_e8 = terms.usd_e8_down(option.seize_token.address, self.size.outcome.seize_raw)
        owed_usd_e8 = terms.usd_e8_up(option.repay_token.address, self.size.owed_raw)
        paid_usd_e8 = terms.usd_e8_up(terms.ctx.profit_token.address, self.gross_raw) + owed_usd_e8
        return mul_div_up(paid_usd_e8, BPS, max(seized_usd_e8, 1)) - BPS

    @property
    def worth_it(self) -> bool:
        """Whether it is worth its gas, or the budget pays for that."""
        return self.gross_raw >= 0 and self.net_raw >= self.size.terms.ctx.least_net_raw

    @property
    def acceptable(self) -> bool:
        """Whether it is worth it, and would pass the Liquidator's end check."""
        return self.worth_it and self.excess_usd_e8 <= 0

    def rank(self) -> Rank:
        """What the end check passes, then what nets more; of what it does not pass, what comes closer to passing."""
        margin = -self.excess_usd_e8
        return Rank(PASSES, self.net_raw, margin) if margin >= 0 else Rank(PASSES - 1, margin, margin)

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
        reason, budget = ctx.too_little if self.gross_raw >= 0 else ("unprofitable", {})
        numbers |= budget
        if self.worth_it:
            reason = "over_slippage"
            numbers |= {"excess_usd_e8": self.excess_usd_e8, "max_slippage_bps": ctx.max_slippage_bps}
        return DeadEnd(PRICED, self.net_raw, Refusal("plan", reason, numbers))


def attempt(
    size: Size, recipe: Recipe, routes: Routes, divide: Divide = single
) -> Reads[Candidate | DeadEnd]:
    """Price a recipe step by step, each by its best route or as `divide` shares it out.

    A route may not use a pool in the direction an earlier leg used it: both quotes are for the pool as it is now, so
    the second would promise too much. The opposite direction only gets better by the earlier leg. The pool that lends
    is locked in both.
    """
    terms, ctx, option = size.terms, size.terms.ctx, size.terms.option
    repay, seize, profit = option.repay_token.address, option.seize_token.address, ctx.profit_token.address
    held = dict.fromkeys((repay, seize, profit), 0)
    held[seize] += size.outcome.seize_raw
    held[repay] -= size.owed_raw
    assured = dict(held)  # the same, with every leg at its limit, and without the largest of several accounts
    largest = size.largest
    if largest is not None:
        assured[seize] -= largest.seize_raw
        assured[repay] += largest.repay_raw
    locked = size.flash.locked
    used: set[object] = set()
    parts: dict[Step, Parts] = {}
    legs: list[SwapLeg] = []
    gas = size.gas
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
            if used.isdisjoint(route.hops) and (locked is None or not route.passes(locked))
        ]
        assured_raw = -assured[token_out] if step.buy else assured[token_in]
        task = Task(terms, step, amount_raw, assured_raw, open_routes)
        shared = yield from divide(task)
        if not shared:
            return _no_route(size, task)
        parts[step] = shared
        left_raw = amount_raw
        for route, quote in shared:
            if quote.amount_in_raw > held[token_in]:
                return _shortfall(size, token_in, quote.amount_in_raw - held[token_in], gas)
            part_raw = quote.amount_out_raw if step.buy else quote.amount_in_raw
            left_raw -= part_raw
            if step.buy:
                limit_raw = min(
                    mul_div_up(quote.amount_in_raw, BPS + ctx.max_slippage_bps, BPS), held[token_in]
                )
                assured[token_in] -= limit_raw
                assured[token_out] += quote.amount_out_raw
            else:
                least_in_raw = min(max(assured[token_in], 0), part_raw)
                worst_raw = mul_div_down(quote.amount_out_raw, least_in_raw, part_raw)
                if largest is not None and not left_raw:
                    worst_raw = 0  # however many accounts fail, what came is sold: the end check binds
                limit_raw = mul_div_down(worst_raw, BPS - ctx.max_slippage_bps, BPS)
                assured[token_in] -= least_in_raw
                assured[token_out] += limit_raw
            held[token_in] -= quote.amount_in_raw
            held[token_out] += quote.amount_out_raw
            used |= route.hops
            # the last one takes what is there then, which is not quite what is expected now
            legs.append(route.venue.swap_leg(quote, whole_balance=not left_raw, limit_raw=limit_raw))
            gas += leg_gas(quote)
    gross_raw = held[profit]
    came_raw, went_raw = size.outcome.seize_raw, size.outcome.repay_raw
    if seize == repay:
        # the Liquidator sees one balance change, so only the gain's own slippage is allowed (Liquidator._settle)
        came_raw, went_raw = came_raw - went_raw, 0
    excused_usd_e8 = mul_div_down(terms.usd_e8_down(seize, came_raw), ctx.max_slippage_bps, BPS)
    required_usd_e8 = terms.usd_e8_up(seize, came_raw) - terms.usd_e8_down(repay, went_raw) - excused_usd_e8
    return Candidate(
        size=size,
        parts=parts,
        legs=tuple(legs),
        gross_raw=gross_raw,
        assured_raw=0 if largest is not None else max(assured[profit], 0),
        gas=gas,
        gas_cost_raw=ctx.gas_raw(gas, size.pieces(len(legs))),
        excess_usd_e8=required_usd_e8 - terms.usd_e8_down(profit, gross_raw),
    )


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


def _no_route(size: Size, task: Task) -> DeadEnd:
    numbers = {
        **size.terms.names,
        "token_in": task.step.token_in,
        "token_out": task.step.token_out,
        "exact_out": task.step.buy,
        "amount_raw": task.amount_raw,
        "routes": dict(task.refused),
    }
    return DeadEnd(
        ROUTED, size.most_net_raw(size.terms.ctx.max_slippage_bps), Refusal("plan", "no_route", numbers)
    )
