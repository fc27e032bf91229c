"""Every way to liquidate an account, tried: hundreds of amounts of every pair, by every route and every lender.

Each swap is priced by the pools' own contracts in `eth_call`s at one block: QuoterV2, and the router of Uniswap V2.
Nothing is taken from the planner; what a swap takes of gas is the venue's figure, which the planner goes by too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from typing import Final

from keeper import abi
from keeper.fixed import BPS, convert_up, mul_div_up
from keeper.lab.artifacts import published
from keeper.lab.unhealthy import Case
from keeper.planner import plan
from keeper.seams import Reads, Venue, each, together
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    Call,
    FlashQuote,
    Option,
    Outcome,
    Path,
    Plan,
    Quote,
    Refusal,
    Reverted,
)
from keeper.venues.uniswap_v2 import FEE_PPM
from keeper.venues.uniswap_v3 import pack

AMOUNTS: Final = 200  # of every pair, besides those at which a rule changes
_EVERY_ROUTE: Final = (
    8  # of so many amounts one goes on from every first route, the others from the best of them
)
_LEG_GAS: Final = 90_000  # the planner's, besides what a swap itself takes
_V2_ROUTER: Final = published("@uniswap/v2-periphery/build/UniswapV2Router02.json").abi
_V3, _V2 = 3, 2
# by version and whether the amount is what comes out
_FUNCTIONS: Final = {
    (_V3, False): abi.load("QuoterV2").function("quoteExactInput"),
    (_V3, True): abi.load("QuoterV2").function("quoteExactOutput"),
    (_V2, False): _V2_ROUTER.function("getAmountsOut"),
    (_V2, True): _V2_ROUTER.function("getAmountsIn"),
}

Hop = tuple[int, Address, int, Address]  # a pool in a direction


@dataclass(frozen=True, slots=True)
class Route:
    """A path through the pools of one version of Uniswap."""

    version: int
    path: Path

    @property
    def hops(self) -> frozenset[Hop]:
        """Its pools, each in its direction."""
        hops = zip(self.path.tokens[:-1], self.path.fees, self.path.tokens[1:], strict=True)
        return frozenset((self.version, *hop) for hop in hops)


@dataclass(frozen=True, slots=True)
class Swap:
    """An amount by a route: what comes out of it if `buy`, else what goes in."""

    route: Route
    raw: int
    buy: bool


@dataclass(frozen=True, slots=True)
class Told:
    """What a swap takes in or gives out, and its gas."""

    other_raw: int
    gas: int


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
    reads = case.read(plan(case.health, case.options, case.ctx))
    answer = await reads  # the pools are read here, as by the plans of the head before
    began_s = time.perf_counter()
    again = await case.read(plan(case.health, case.options, case.ctx))
    plan_s = time.perf_counter() - began_s
    assert again == answer, "the same account at the same block was planned in two ways"
    began_s = time.perf_counter()
    pools = Pools(case)
    nets = await _nets(case, pools)
    brute_s = time.perf_counter() - began_s
    if isinstance(answer, Plan):
        await _require_true(case, pools, answer)
    return Compared(
        answer,
        max((net_raw for _, net_raw in nets), default=None),
        max((net_raw for is_most, net_raw in nets if is_most), default=None),
        len(pools.told),
        plan_s,
        brute_s,
    )


# --- swaps -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Pools:
    """What the pools' own contracts say of swaps at the case's block, each asked once."""

    case: Case
    told: dict[Swap, Told | None] = field(
        default_factory=dict
    )  # None: nothing, or the keeper does not look so far
    _routes: dict[tuple[Address, Address], list[Route]] = field(default_factory=dict)

    def routes(self, token_in: Address, token_out: Address) -> list[Route]:
        """All that there are: direct, and over one token between."""
        if (token_in, token_out) not in self._routes:
            paths = [(token_in, token_out), *((token_in, each, token_out) for each in self.case.between)]
            self._routes[token_in, token_out] = [
                Route(version, Path(tokens, fees))
                for version in (_V3, _V2)
                for tokens in paths
                if len(set(tokens)) == len(tokens)
                for fees in product(*(self._fees(version, *hop) for hop in pairwise(tokens)))
            ]
        return self._routes[token_in, token_out]

    def _fees(self, version: int, one: Address, other: Address) -> list[int]:
        world = self.case.lab.world
        opened = world.uniswap_v3.pools if version == _V3 else world.uniswap_v2.pairs
        pair = {one, other}
        found = [pool.fee for pool in opened if {pool.token0.address, pool.token1.address} == pair]
        return found if version == _V3 else [FEE_PPM for _ in found]

    async def ask(self, swaps: Iterable[Swap]) -> None:
        """Ask what was not asked before."""
        new = [swap for swap in dict.fromkeys(swaps) if swap not in self.told]
        answers = await self.case.read(each([self._call(swap) for swap in new]))
        quotes = await self.case.read(self._reckoned(new))
        for swap, answer, quote in zip(new, answers, quotes, strict=True):
            self.told[swap] = None
            if isinstance(quote, Quote):
                assert not isinstance(answer, Reverted), f"{quote} is quoted, which reverts"
                amounts = _FUNCTIONS[swap.route.version, swap.buy].decode(answer)
                other_raw = amounts[0]
                if swap.route.version == _V2:
                    other_raw = amounts[0][0 if swap.buy else -1]
                ours_raw = quote.amount_in_raw if swap.buy else quote.amount_out_raw
                assert other_raw == ours_raw, f"{quote} is {other_raw} by the pools' own contracts"
                self.told[swap] = Told(other_raw, quote.gas + _LEG_GAS)

    def _call(self, swap: Swap) -> Call:
        world, path = self.case.lab.world, swap.route.path
        function = _FUNCTIONS[swap.route.version, swap.buy]
        if swap.route.version == _V3:
            return function.call(world.uniswap_v3.quoter, pack(path, reverse=swap.buy), swap.raw)
        return function.call(world.uniswap_v2.router, swap.raw, list(path.tokens))

    def _reckoned(self, swaps: Sequence[Swap]) -> Reads[list[Quote | Refusal]]:
        """The keeper's own quotes, for their gas."""
        venues: dict[int, Venue] = {_V3: self.case.v3, _V2: self.case.v2}
        for version, venue in venues.items():
            paths = {swap.route.path for swap in swaps if swap.route.version == version}
            yield from venue.sync(paths, self.case.ctx.at)
        asked = [
            venues[swap.route.version].quote(swap.route.path, swap.raw, exact_out=swap.buy) for swap in swaps
        ]
        return (yield from together(asked))


async def _require_true(case: Case, pools: Pools, answer: Plan) -> None:
    """Hold the plan's quotes to the pools, and use no pool twice in a direction."""
    routers = {case.v3.router: _V3, case.v2.router: _V2}
    swaps = [
        Swap(
            Route(routers[leg.router], quote.path),
            quote.amount_out_raw if quote.exact_out else quote.amount_in_raw,
            quote.exact_out,
        )
        for leg, quote in zip(answer.legs, answer.quotes, strict=True)
    ]
    await pools.ask(swaps)
    for swap, quote in zip(swaps, answer.quotes, strict=True):
        told = pools.told[swap]
        assert told and told.other_raw == (quote.amount_in_raw if swap.buy else quote.amount_out_raw), quote
    hops = [hop for swap in swaps for hop in swap.route.hops]
    assert len(set(hops)) == len(hops), f"a pool is used twice in a direction: {answer}"


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
        option.repay_token.address: option.repay_price_base * ctx.base_usd_e8,
        option.seize_token.address: option.seize_price_base * ctx.base_usd_e8,
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
                tries.append(Try(terms, outcome, loan, is_most, branches, recipe, held, ctx.plan_gas))
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
    shut = {(_V3, a, locked.fee, b) for a, b in (locked.tokens, locked.tokens[::-1])} if locked else set()
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
