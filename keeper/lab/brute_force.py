"""Every way to liquidate an account, tried: hundreds of amounts of every pair, by every route and every lender.

Each swap is priced by the pools' own contracts in `eth_call`s at one block (`keeper/lab/swaps.py`). Nothing is taken
from the planner; what a swap takes of gas is the venue's figure, which the planner goes by too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

from keeper.fixed import BPS, convert_up, mul_div_up
from keeper.lab.swaps import V3, Hop, Pools, Swap, Told
from keeper.lab.unhealthy import Case
from keeper.planner import plan
from keeper.seams import together
from keeper.types import USD_E8, ZERO_ADDRESS, Address, FlashQuote, Option, Outcome, Plan, Refusal

AMOUNTS: Final = 200  # of every pair, besides those at which a rule changes
_EVERY_ROUTE: Final = 8  # one of so many amounts goes on from every first route, the others from the best


@dataclass(frozen=True, slots=True)
class Step:
    """Sell all of one token for another, or buy what is still owed of it."""

    buy: bool
    token_in: Address
    token_out: Address


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """An option with its prices in dollars, scaled alike, and what its gas costs."""

    case: Case
    option: Option
    prices: Mapping[Address, int]
    decimals: Mapping[Address, int]

    def usd(self, token: Address, raw: int) -> int:
        """Dollars, scaled."""
        return raw * self.prices[token] * int(10 ** (30 - self.decimals[token]))

    def gas_in(self, token: Address, gas: int) -> int:
        """What gas costs in a token, rounded up."""
        ctx = self.case.ctx
        native = ctx.native_usd_e8 * 10**self.case.health.base_decimals
        return convert_up(gas * ctx.gas_price_wei, native, self.prices[token], 18, self.decimals[token])


@dataclass(frozen=True, slots=True, eq=False)
class Try:
    """An amount by a lender, on its way through a recipe of swaps."""

    terms: Terms
    outcome: Outcome
    loan: FlashQuote
    is_most: bool
    branches: bool  # goes on from every route of its first swap
    recipe: Sequence[Step]
    held: Mapping[Address, int]
    gas: int
    used: frozenset[Hop] = frozenset()


@dataclass(frozen=True, slots=True)
class Compared:
    """A plan beside everything that was tried; raw amounts are net profits in the profit token.

    `best_raw` is the most that any of it nets, `largest_raw` the most that a largest amount does; None where nothing
    passes the Liquidator's end check with the minimum profit. `swaps` is how many the pools were asked for.
    """

    answer: Plan | Refusal
    best_raw: int | None
    largest_raw: int | None
    swaps: int
    plan_s: float
    brute_s: float

    @property
    def net_raw(self) -> int | None:
        """What the plan nets; None where there is none."""
        if isinstance(self.answer, Refusal):
            return None
        return self.answer.expected_profit_raw - self.answer.gas_cost_raw


async def compare(case: Case) -> Compared:
    """Plan, and try everything. Raises AssertionError where a quote is not what the pools' own contracts say."""
    # reads the pools, and learns which routes are not worth a look
    await case.read(plan(case.health, case.options, case.ctx))
    began_s = time.perf_counter()
    answer = await case.read(plan(case.health, case.options, case.ctx))
    plan_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    pools = Pools(case)
    nets = await _nets(case, pools)
    brute_s = time.perf_counter() - began_s
    if isinstance(answer, Plan):
        await pools.require_true(answer)
    return Compared(
        answer,
        max((net_raw for _, net_raw in nets), default=None),
        max((net_raw for is_most, net_raw in nets if is_most), default=None),
        len(pools.told),
        plan_s,
        brute_s,
    )


# --- ways ------------------------------------------------------------------------------------------------------------


async def _nets(case: Case, pools: Pools) -> list[tuple[bool, int]]:
    """What everything nets that passes, and whether it is of a largest amount."""
    tries = [one for option in case.options for one in await _tries(_terms_of(case, option))]
    while any(one.recipe for one in tries):
        await pools.ask(swap for one in tries for swap in _swaps(pools, one))
        tries = [after for one in tries for after in _after(pools, one)]
    nets = ((one.is_most, _net(one)) for one in tries)
    return [(is_most, net_raw) for is_most, net_raw in nets if net_raw is not None]


def _terms_of(case: Case, option: Option) -> Terms:
    """Prices: the pair's by the protocol."""
    ctx, unit = case.ctx, 10**case.health.base_decimals
    prices = {
        ctx.profit_token.address: ctx.profit_usd_e8 * unit,
        option.repay_token.address: option.repay_price_base * USD_E8,
        option.seize_token.address: option.seize_price_base * USD_E8,
    }
    tokens = (ctx.profit_token, option.repay_token, option.seize_token)
    return Terms(case, option, prices, {token.address: token.decimals for token in tokens})


async def _tries(terms: Terms) -> list[Try]:
    """Every amount by every lender and recipe, before its first swap."""
    case, ctx, option = terms.case, terms.case.ctx, terms.option
    repay, seize, profit = option.repay_token.address, option.seize_token.address, ctx.profit_token.address
    answers = await case.read(together([source.flash(repay, ctx.at) for source in ctx.flash_sources]))
    loans = [loan for loan in answers if isinstance(loan, FlashQuote)]
    amounts = _amounts(terms, loans)
    tries: list[Try] = []
    for place, raw in enumerate(amounts):
        outcome = await case.read(ctx.adapter.outcome(option, raw))
        if isinstance(outcome, Refusal):
            continue
        calls = ctx.adapter.liquidation_calls(option, raw)
        borrowed_raw = max(outcome.repay_raw, sum(call.approve_raw for call in calls))
        # what is paid after it gave needs no lender, but may have one
        unlent = (
            [FlashQuote(ZERO_ADDRESS, repay, 0, borrowed_raw)]
            if any(call.paid_after for call in calls)
            else []
        )
        for loan, recipe in product((*unlent, *loans), _recipes(seize, repay, profit)):
            if borrowed_raw <= loan.available_raw:
                held = dict.fromkeys((repay, seize, profit), 0)
                held[seize] += outcome.seize_raw
                held[repay] -= outcome.repay_raw + mul_div_up(borrowed_raw, loan.premium_bps, BPS)
                branches = len(recipe) > 1 and not place % _EVERY_ROUTE
                is_most = raw == amounts[-1]
                gas = ctx.plan_gas + option.call_gas * (len(calls) - 1)
                tries.append(Try(terms, outcome, loan, is_most, branches, recipe, held, gas))
    return tries


def _amounts(terms: Terms, loans: Sequence[FlashQuote]) -> list[int]:
    """Where rules change and lenders end, and two hundred between, more of them small than large; ascending."""
    option, token = terms.option, terms.option.repay_token
    dollars = terms.case.ctx.max_repay_usd_e8 * 10**terms.case.health.base_decimals * 10**token.decimals
    limit_raw = dollars // terms.prices[token.address]
    low, high = max(option.min_repay_raw, 1), min(option.partial_max_repay_raw, limit_raw)
    amounts = {option.max_repay_raw} if option.max_repay_raw <= limit_raw else set()
    if low <= high:
        ends = {min(loan.available_raw, high) for loan in loans}
        amounts |= {low, high, *(end for end in ends if end >= low)}
        amounts |= {max(high * n * n // AMOUNTS**2, low) for n in range(1, AMOUNTS + 1)}
    return sorted(amounts)


def _recipes(seize: Address, repay: Address, profit: Address) -> list[list[Step]]:
    if seize == repay:
        return [[]] if profit == repay else [[Step(False, repay, profit)]]
    if profit == repay:
        return [[Step(False, seize, repay)]]
    if profit == seize:
        return [[Step(True, seize, repay)]]
    return [
        [Step(False, seize, repay), Step(False, repay, profit)],
        [Step(True, seize, repay), Step(False, seize, profit)],
        [Step(False, seize, profit), Step(True, profit, repay)],
    ]


def _swaps(pools: Pools, one: Try) -> list[Swap]:
    """The next swap by every route that is open to it."""
    if not one.recipe:
        return []
    step = one.recipe[0]
    raw = -one.held[step.token_out] if step.buy else one.held[step.token_in]
    if raw <= 0:
        return []
    locked = one.loan.locked
    shut = {(V3, a, locked.fee, b) for a, b in (locked.tokens, locked.tokens[::-1])} if locked else set()
    routes = pools.routes(step.token_in, step.token_out)
    return [Swap(route, raw, step.buy) for route in routes if not route.hops & (one.used | shut)]


def _after(pools: Pools, one: Try) -> list[Try]:
    """What a try becomes by its next swap: by the route that leaves most after its gas, or by every one."""
    if not one.recipe:
        return [one]
    step, *recipe = one.recipe
    if (-one.held[step.token_out] if step.buy else one.held[step.token_in]) <= 0:
        # nothing is missing; but where nothing came, the loan stays owed
        return [replace(one, recipe=recipe)] if step.buy else []
    priced = step.token_in if step.buy else step.token_out
    offers: list[tuple[int, Swap, Told]] = []
    for swap in _swaps(pools, one):
        told = pools.told[swap]
        if told and not (step.buy and told.other_raw > one.held[step.token_in]):
            value_raw = -told.other_raw if step.buy else told.other_raw
            offers.append((value_raw - one.terms.gas_in(priced, told.gas), swap, told))
    if offers and not one.branches:
        offers = [max(offers, key=lambda offer: offer[0])]
    after: list[Try] = []
    for _, swap, told in offers:
        held = dict(one.held)
        held[step.token_in] -= told.other_raw if step.buy else swap.raw
        held[step.token_out] += swap.raw if step.buy else told.other_raw
        gas, used = one.gas + told.gas, one.used | swap.route.hops
        after.append(replace(one, recipe=recipe, branches=False, held=held, gas=gas, used=used))
    return after


def _net(one: Try) -> int | None:
    """What it nets, if the loan is returned, the end check passes, and the minimum is met."""
    terms, ctx, option = one.terms, one.terms.case.ctx, one.terms.option
    profit, seize, repay = ctx.profit_token.address, option.seize_token.address, option.repay_token.address
    if min(one.held.values()) < 0:
        return None
    came_raw, went_raw = one.outcome.seize_raw, one.outcome.repay_raw
    if seize == repay:
        came_raw, went_raw = came_raw - went_raw, 0
    required = terms.usd(seize, came_raw) * (BPS - ctx.max_slippage_bps) // BPS - terms.usd(repay, went_raw)
    net_raw = one.held[profit] - terms.gas_in(profit, one.gas)
    passes = terms.usd(profit, one.held[profit]) >= required + terms.usd(profit, 1)
    return net_raw if passes and net_raw >= ctx.min_profit_raw else None
