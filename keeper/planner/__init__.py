"""What to liquidate, how much of it and by which route: the plan with the best net profit, or why there is none.

A way is an option of the protocol's, who lends for it, and a recipe of swaps. The pools of all routes are read in one
round, and quotes are reckoned from that. The largest amounts of all ways are priced first, those that promise most at
oracle prices before others; smaller ones follow only where they could still net more, so a deep market is priced
nearly once, and only where even the least that could pay is sold dear enough, so that what every pool buys too cheap is
given up at once. Each way is priced by its best single routes until its best amount is found; the best of them are then
shared out among several routes, which moves the best amount, and so on until nothing is gained.

Two limits of a plan come from the Liquidator's end check. Its profit may not fall below `min_profit_raw`, and what
swaps and the flash premium cost may not exceed `max_slippage_bps` of the seized value at oracle prices; amounts
that would exceed it are left out.

**min_profit_raw** is the larger of
- gas at the expected price and what a rollup takes for the bytes, plus the configured minimum: below it the liquidation
  is not worth its cost, and
- the profit that is left when every leg ends at its own limit, less `max_slippage_bps`: legs alone guarantee nearly
  this much, so enforcing it reverts nothing that legs would let pass, yet binds their combination.

An account with bad debt may be liquidated at a loss that a budget pays (`PlanContext.budget_usd_e8`). The Liquidator
then enforces that the treasury loses nothing, so only gas can be lost; such a plan has `may_lose_usd_e8`.

Where a liquidation is paid in a later transaction only, what that is expected to bring less its own gas counts as
profit too: the Liquidator then enforces so much less, down to nothing.

**Leg limits** allow `max_slippage_bps` on each quote. A leg that sells what an earlier leg left over is allowed to
receive less by as much as the earlier leg's own limit may leave less.

**Kept tokens.** Where what is seized is to be kept (`PlanContext.kept`), it is the profit token of its options: only
what repays the loan is bought with it, the rest goes to the treasury as it is, and minimum and cost are put into it at
the price of the Liquidator's own feed. Plans that are measured in different tokens compare in dollars.

Everything is integers; proceeds are rounded down, costs up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from keeper import abi
from keeper.fixed import BPS, mul_div_down
from keeper.planner.routing import Candidate
from keeper.planner.sizing import (
    DeadEnd,
    PlanContext,
    borrowed_raw,
    funded,
    measured,
    net_usd_e8,
    read_loans,
    terms_of,
)
from keeper.planner.weighing import Weighing
from keeper.seams import Reads, together
from keeper.types import ZERO_ADDRESS, Hash, Health, Option, Plan, Refusal, Token

__all__ = ["PlanContext", "encode_execute", "plan", "samples"]

_EXECUTE: Final = abi.load("Liquidator").function("execute")
_CALL_BYTES: Final = 164  # of a liquidation with five words of arguments
_PATH_BYTES: Final = 43  # of a leg through one pool


def plan(health: Health, options: Sequence[Option | Refusal], ctx: PlanContext) -> Reads[Plan | Refusal]:
    """The plan with the best net profit among all options, amounts and routes, or the refusal that came closest.

    Refuses with healthy, fee_over_limit, no_option (or the adapter's refusals where it forbids every option),
    nothing_seizable, over_max_repay, no_flash_liquidity, no_route, over_slippage, unprofitable or bad_debt_budget.
    `_raw` numbers of profit and gas are in the profit token.
    """
    if not health.liquidatable:
        return Refusal("plan", "healthy", {"health_factor_wad": health.health_factor_wad})
    if ctx.gas_price_wei > ctx.max_fee_wei:
        numbers = {"inclusion_price_wei": ctx.gas_price_wei, "max_fee_wei": ctx.max_fee_wei}
        return Refusal("plan", "fee_over_limit", numbers)
    allowed = [option for option in options if isinstance(option, Option)]
    if not allowed:
        refusals = [option for option in options if isinstance(option, Refusal)]
        return refusals[0] if refusals else Refusal("plan", "no_option")
    alike: dict[Token, list[Option]] = {}
    for option in allowed:
        alike.setdefault(measured(ctx, option.seize_token).profit_token, []).append(option)
    answers = yield from together(
        [_best_of(health, its, measured(ctx, its[0].seize_token)) for its in alike.values()]
    )
    plans = sorted([each for each in answers if isinstance(each, Plan)], key=_worth_usd_e8, reverse=True)
    if not plans:
        return answers[0]
    return replace(plans[0], weighed=tuple(way for each in plans for way in each.weighed))


def _worth_usd_e8(plan: Plan) -> int:
    """What it nets, with what a later transaction brings."""
    scale = 10**plan.profit_token.decimals
    return net_usd_e8(plan) + mul_div_down(plan.later_raw, plan.profit_price_usd_e8, scale)


def _best_of(health: Health, options: Sequence[Option], ctx: PlanContext) -> Reads[Plan | Refusal]:
    """The best of options whose profit is measured in one token."""
    terms = [terms_of(option, health, ctx) for option in options]
    loans = yield from read_loans([each.option.repay_token.address for each in terms], ctx)
    offers = [funded(each, loans) for each in terms]
    weighing = Weighing(ctx)
    yield from weighing.weigh([one for each in offers if not isinstance(each, DeadEnd) for one in each])
    if weighing.best is not None and weighing.best.acceptable:
        return replace(_plan_of(weighing.best, health), weighed=weighing.weighed())
    dead_ends = [each for each in offers if isinstance(each, DeadEnd)] + weighing.dead_ends()
    closest = max(dead_ends, key=lambda dead_end: (dead_end.reached, dead_end.net_raw))
    return replace(closest.refusal, numbers={**closest.refusal.numbers, **weighing.numbers})


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


def samples() -> tuple[bytes, bytes]:
    """Calldata like that of plans with one leg and with two: bytes are priced by it before a plan's own are known."""
    words = [abi.keccak(bytes([number])) for number in range(8)]
    source, one, two, target, router = (word[:20] for word in words[:5])
    raw = int.from_bytes(words[5][:10])
    calls = [(target, one, raw, b"".join(words)[:_CALL_BYTES], 0)]
    leg = (router, b"".join(words)[:_PATH_BYTES], False, raw, raw)
    ends = ([one, two], two, raw, 1, 1, 2**28)
    first, second = (
        _EXECUTE.encode((words[6], source, one, raw, calls, [leg] * legs, *ends)) for legs in (1, 2)
    )
    return first, second


def _plan_of(best: Candidate, health: Health) -> Plan:
    size, ctx, option = best.size, best.size.terms.ctx, best.size.terms.option
    assured_raw = mul_div_down(best.assured_raw, BPS - ctx.max_slippage_bps, BPS)
    approved = [call.approve_token for call in size.calls if call.approve_token != ZERO_ADDRESS]
    pair = (option.repay_token.address, option.seize_token.address)
    budgeted = best.net_raw < ctx.min_profit_raw
    least_raw = 0 if budgeted else best.gas_cost_raw + ctx.min_profit_raw - size.later_raw
    data_fee = ctx.data.of(size.pieces(len(best.legs)))
    draft = Plan(
        plan_id=Hash(bytes(32)),
        key=size.outcome.parts[0].key if size.outcome.parts else option.key,
        option=option,
        outcome=size.outcome,
        flash=size.flash,
        calls=size.calls,
        legs=best.legs,
        quotes=tuple(quote for parts in best.parts.values() for _, quote in parts),
        tokens=tuple(dict.fromkeys([*pair, ctx.profit_token.address, *approved])),
        profit_token=ctx.profit_token,
        expected_profit_raw=best.gross_raw,
        min_profit_raw=max(least_raw, assured_raw),
        gas_cost_raw=best.gas_cost_raw,
        gas_estimate=best.gas + data_fee.gas,
        gas_cost_wei=ctx.cost_wei(best.gas, data_fee),
        profit_price_usd_e8=ctx.profit_usd_e8,
        repay_usd_e8=size.terms.usd_e8_up(option.repay_token.address, size.outcome.repay_raw),
        health_factor_wad=health.health_factor_wad or 0,
        at=ctx.at,
        later_raw=size.later_raw,
        may_lose_usd_e8=ctx.budget_usd_e8 or 0 if budgeted else 0,
        data_fee_wei=data_fee.wei,
        data_gas=data_fee.gas,
    )
    who = f"{option.key.protocol}\0{option.key.market}".encode() + option.key.account
    content = ctx.at.hash + abi.keccak(who) + encode_execute(draft, 0, 0, 0)
    return replace(draft, plan_id=abi.keccak(content))
