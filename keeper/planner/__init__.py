"""What to liquidate, how much of it and by which route: the plan with the best net profit, or why there is none.

For every way the protocol allows (an `Option`) a ladder of repay amounts is priced: flash premium, seized collateral,
and swaps that return the loan and bring the rest into the profit token. The pools of all routes are read in one round,
and quotes are reckoned from that. The largest amounts of all options are quoted first, by all routes; smaller ones
follow only if they could still net more at oracle prices, so a deep market is priced once. Where the best amount lies
inside the ladder, its neighbourhood is priced too.

Two limits of a plan come from the Liquidator's end check. Its profit may not fall below `min_profit_raw`, and what
swaps and the flash premium cost may not exceed `max_slippage_bps` of the seized value at oracle prices; amounts
that would exceed it are left out.

**min_profit_raw** is the larger of
- gas at the expected price plus the configured minimum: below it the liquidation is not worth its gas, and
- the profit that is left when every leg ends at its own limit, less `max_slippage_bps`: legs alone guarantee nearly
  this much, so enforcing it reverts nothing that legs would let pass, yet binds their combination.

Where a liquidation is paid in a later transaction only, what that is expected to bring less its own gas counts as
profit too: the Liquidator then enforces so much less, down to nothing.

**Leg limits** allow `max_slippage_bps` on each quote. A leg that sells what an earlier leg left over is allowed to
receive less by as much as the earlier leg's own limit may leave less.

Everything is integers; proceeds are rounded down, costs up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

from keeper import abi
from keeper.fixed import BPS, mul_div_down
from keeper.planner.routing import Candidate, Routes, attempt, recipes_of, routes_of, synced
from keeper.planner.sizing import (
    DeadEnd,
    Ladder,
    PlanContext,
    Point,
    Size,
    borrowed_raw,
    ladder_of,
    read_loans,
    refined,
    size_of,
    terms_of,
)
from keeper.seams import Reads, together
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    FlashQuote,
    Hash,
    Health,
    Option,
    Plan,
    Refusal,
    Wei,
    tokens_of,
)

__all__ = ["PlanContext", "encode_execute", "plan"]

_EXECUTE: Final = abi.load("Liquidator").function("execute")

# A quote of pools that are known takes some 20 µs with all that is done for it.
_MAX_QUOTES: Final = 192
_MAX_QUOTES_THOROUGH: Final = 4 * _MAX_QUOTES  # more routes must not mean fewer amounts


def plan(health: Health, options: Sequence[Option | Refusal], ctx: PlanContext) -> Reads[Plan | Refusal]:
    """The plan with the best net profit among all options, amounts and routes, or the refusal that came closest.

    Refuses with healthy, fee_over_limit, no_option (or the adapter's refusals where it forbids every option),
    nothing_seizable, over_max_repay, no_flash_liquidity, no_route, over_slippage or unprofitable. `_raw` numbers of
    profit and gas are in the profit token.
    """
    if not health.liquidatable:
        return Refusal("plan", "healthy", {"health_factor_wad": health.health_factor_wad})
    if ctx.gas_price_wei > ctx.max_fee_wei:
        numbers = {"inclusion_price_wei": ctx.gas_price_wei, "max_fee_wei": ctx.max_fee_wei}
        return Refusal("plan", "fee_over_limit", numbers)
    terms = [terms_of(option, health, ctx) for option in options if isinstance(option, Option)]
    if not terms:
        refusals = [option for option in options if isinstance(option, Refusal)]
        return refusals[0] if refusals else Refusal("plan", "no_option")

    loans = yield from read_loans([each.option.repay_token.address for each in terms], ctx)
    routes = routes_of(ctx)
    ladders = [ladder_of(each, loans) for each in terms]
    dead_ends = [ladder for ladder in ladders if isinstance(ladder, DeadEnd)]
    climbable = [ladder for ladder in ladders if isinstance(ladder, Ladder)]
    large = [size_of(each.terms, raw, loans) for each in climbable for raw in each.large_raw]
    sized = yield from together(large)
    results = yield from _priced(_sizes(sized), routes, ctx)
    best = _best(results)
    if best is not None and best.acceptable:
        found = yield from together([_hopeful(each, best, loans) for each in climbable])
        hopeful = [size for sizes in found for size in sizes]
    else:
        small = [size_of(each.terms, raw, loans) for each in climbable for raw in each.small_raw]
        smaller = yield from together(small)
        sized += smaller
        hopeful = _sizes(smaller)
    results += yield from _priced(hopeful, routes, ctx)
    best = _best(results)
    if best is not None:
        amounts = refined(_curve(results, best), best.point)
        near = yield from together([size_of(best.size.terms, amount_raw, loans) for amount_raw in amounts])
        results += yield from together([attempt(size, best.recipe, routes) for size in _sizes(near)])
        best = _best(results)
    if best is not None and best.acceptable:
        return _plan_of(best, health)
    dead_ends += [size for size in sized if isinstance(size, DeadEnd)]
    dead_ends += [each.dead_end() if isinstance(each, Candidate) else each for each in results]
    closest = max(dead_ends, key=lambda dead_end: (dead_end.reached, dead_end.net_raw))
    return replace(
        closest.refusal, numbers={**closest.refusal.numbers, "amounts": len(sized), "priced": len(results)}
    )


def encode_execute(plan: Plan, global_epoch: int, protocol_epoch: int, last_block: int) -> bytes:
    """Calldata of `Liquidator.execute(Plan)`, pinned to PauseGuard's epochs and a last block."""
    content = (
        plan.plan_id,
        plan.flash.source,
        plan.flash.token,
        borrowed_raw(plan.option, plan.outcome, plan.calls),
        [
            (call.target, call.approve_token, call.approve_raw, call.data, call.gas_limit)
            for call in plan.calls
        ],
        [(leg.router, leg.path, leg.exact_out, leg.amount_raw, leg.limit_raw) for leg in plan.legs],
        plan.tokens,
        plan.profit_token.address,
        plan.min_profit_raw,
        global_epoch,
        protocol_epoch,
        last_block,
    )
    return _EXECUTE.encode(content)


def _priced(sizes: Sequence[Size], routes: Routes, ctx: PlanContext) -> Reads[list[Candidate | DeadEnd]]:
    yield from synced(sizes, routes)
    return (yield from together(_within_budget(sizes, routes, ctx)))


def _within_budget(
    sizes: Sequence[Size], routes: Routes, ctx: PlanContext
) -> list[Reads[Candidate | DeadEnd]]:
    """Attempts on the options that promise most; where quotes run out, ladders are thinned, then options left out."""
    options = [list(group) for _, group in groupby(sizes, key=lambda size: id(size.terms))]
    options.sort(
        key=lambda rungs: max(size.most_net_raw(ctx.max_slippage_bps) for size in rungs), reverse=True
    )
    attempts: list[Reads[Candidate | DeadEnd]] = []
    room = _MAX_QUOTES_THOROUGH if ctx.thorough else _MAX_QUOTES
    for rungs in options:
        ways = recipes_of(rungs[0].terms)
        quotes = sum(len(routes(step.token_in, step.token_out)) for way in ways for step in way[:1])
        kept = min(len(rungs), max(room // max(quotes, 1), 0 if attempts else 1))
        room -= kept * quotes
        thinned = [rungs[rung * len(rungs) // kept] for rung in range(kept)]
        attempts += [attempt(size, way, routes) for size in thinned for way in ways]
    return attempts


def _hopeful(
    ladder: Ladder, best: Candidate, loans: Mapping[Address, Sequence[FlashQuote]]
) -> Reads[list[Size]]:
    """The smaller amounts that could net more than `best`: they move the market less.

    They may fetch what the best fetched and the slippage it bore. The bound falls with the amount, so the first
    that cannot reach `best` ends the search.
    """
    premium_bps = best.premium_bps + best.size.terms.ctx.max_slippage_bps
    sizes: list[Size] = []
    for amount_raw in ladder.small_raw:
        size = yield from size_of(ladder.terms, amount_raw, loans)
        if isinstance(size, Size):
            if size.most_net_raw(premium_bps) <= best.net_raw:
                break
            sizes.append(size)
    return sizes


def _sizes(sized: Iterable[Size | DeadEnd]) -> list[Size]:
    return [size for size in sized if isinstance(size, Size)]


def _best(results: Iterable[Candidate | DeadEnd]) -> Candidate | None:
    return max(_candidates(results), key=Candidate.preference, default=None)


def _candidates(results: Iterable[Candidate | DeadEnd]) -> list[Candidate]:
    return [result for result in results if isinstance(result, Candidate)]


def _curve(results: Iterable[Candidate | DeadEnd], best: Candidate) -> list[Point]:
    """The points of the best candidate's option and recipe where any amount between is allowed, by rising amount."""
    highest_raw = best.size.terms.option.partial_max_repay_raw
    alike = (c for c in _candidates(results) if c.size.terms is best.size.terms and c.recipe == best.recipe)
    return sorted(c.point for c in alike if c.size.amount_raw <= highest_raw)


def _plan_of(best: Candidate, health: Health) -> Plan:
    size, ctx, option = best.size, best.size.terms.ctx, best.size.terms.option
    assured_raw = mul_div_down(best.assured_raw, BPS - ctx.max_slippage_bps, BPS)
    approved = [call.approve_token for call in size.calls if call.approve_token != ZERO_ADDRESS]
    pair = (option.repay_token.address, option.seize_token.address)
    draft = Plan(
        plan_id=Hash(bytes(32)),
        key=option.key,
        option=option,
        outcome=size.outcome,
        flash=size.flash,
        calls=size.calls,
        legs=best.legs,
        quotes=best.quotes,
        tokens=tokens_of([*pair, ctx.profit_token.address, *approved]),
        profit_token=ctx.profit_token,
        expected_profit_raw=best.gross_raw,
        min_profit_raw=max(best.gas_cost_raw + ctx.min_profit_raw - size.later_raw, assured_raw),
        gas_cost_raw=best.gas_cost_raw,
        gas_estimate=best.gas,
        gas_cost_wei=Wei(best.gas * ctx.gas_price_wei),
        profit_price_usd_e8=ctx.profit_usd_e8,
        repay_usd_e8=size.terms.usd_e8_up(option.repay_token.address, size.outcome.repay_raw),
        health_factor_wad=health.health_factor_wad or 0,
        at=ctx.at,
        later_raw=size.later_raw,
    )
    who = "\0".join((option.key.protocol, option.key.market)).encode() + option.key.account
    content = ctx.at.hash + abi.keccak(who) + encode_execute(draft, 0, 0, 0)
    return replace(draft, plan_id=abi.keccak(content))
