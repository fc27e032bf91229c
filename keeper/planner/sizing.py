"""How much of an option to take, and what that amount moves, borrows and could earn at most.

No market is asked here: what survives can pay for itself at oracle prices, and is worth quoting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from keeper.data_fee import NO_DATA_RATES, DataFee, DataRates
from keeper.fixed import BPS, convert_up, mul_div_down, mul_div_up
from keeper.seams import FlashSource, Reads, Taking, Venue, readable, together
from keeper.types import (
    USD_E8,
    ZERO_ADDRESS,
    Address,
    BlockTime,
    FlashQuote,
    Health,
    Option,
    Outcome,
    Part,
    Plan,
    ProtocolCall,
    Refusal,
    Token,
    Wei,
)

# For everything but swaps where nobody says otherwise.
PLAN_GAS: Final = 450_000
# By how much a market may pay more than the oracle says before anybody has asked it: feeds lag in a crash.
_PREMIUM_BPS: Final = 5_000
_NATIVE_DECIMALS: Final = 18


@dataclass(frozen=True, slots=True)
class PlanContext:
    """What plans are priced with at one block; `_usd_e8` prices are dollars per whole token with 8 decimals.

    `gas_price_wei` is what inclusion is expected to cost (base fee and tip), `max_fee_wei` the most the operator
    allows; `data` is about what bytes cost beside it. `kept` prices the seized tokens that are not sold. `thorough`
    asks venues for every route instead of the likely ones. `budget_usd_e8` is what a liquidation of bad debt may lose,
    None where nothing may be lost.
    """

    at: BlockTime
    adapter: Taking
    venues: Sequence[Venue]
    flash_sources: Sequence[FlashSource]
    profit_token: Token
    profit_usd_e8: int
    native_usd_e8: int
    gas_price_wei: Wei
    max_fee_wei: Wei
    min_profit_usd_e8: int
    max_slippage_bps: int
    max_repay_usd_e8: int
    plan_gas: int = PLAN_GAS
    thorough: bool = False
    data: DataRates = NO_DATA_RATES
    kept: Mapping[Address, int] = field(default_factory=dict)
    budget_usd_e8: int | None = None

    @property
    def least_net_raw(self) -> int:
        """The least a plan must net in the profit token: the minimum, or a loss that the budget pays, rounded up."""
        if not self.budget_usd_e8:
            return self.min_profit_raw  # also of a budget that is used up
        return -mul_div_down(self.budget_usd_e8, 10**self.profit_token.decimals, self.profit_usd_e8)

    @property
    def too_little(self) -> tuple[str, dict[str, int]]:
        """Why a plan that nets less is refused, with the budget where there is one."""
        if self.budget_usd_e8 is None:
            return "unprofitable", {}
        return "bad_debt_budget", {"budget_usd_e8": self.budget_usd_e8}

    @property
    def min_profit_raw(self) -> int:
        """The configured minimum in the profit token, rounded up."""
        return mul_div_up(self.min_profit_usd_e8, 10**self.profit_token.decimals, self.profit_usd_e8)

    def cost_wei(self, gas: int, data: DataFee) -> Wei:
        """What execution costs that takes that gas, with what its bytes take."""
        return Wei((gas + data.gas) * self.gas_price_wei + data.wei)

    def gas_raw(self, gas: int, legs: int = 0) -> int:
        """What a plan of so many legs costs in the profit token, with its bytes; rounded up."""
        cost_wei = self.cost_wei(gas, self.data.of(legs))
        return convert_up(
            cost_wei, self.native_usd_e8, self.profit_usd_e8, _NATIVE_DECIMALS, self.profit_token.decimals
        )


def net_usd_e8(plan: Plan) -> int:
    """What a plan nets at once, for plans that measure it in different tokens."""
    net_raw = plan.expected_profit_raw - plan.gas_cost_raw
    return mul_div_down(net_raw, plan.profit_price_usd_e8, 10**plan.profit_token.decimals)


def measured(ctx: PlanContext, seize_token: Token) -> PlanContext:
    """The context with what profit is measured in where that token is seized: the token itself where it is kept."""
    price_usd_e8 = ctx.kept.get(seize_token.address)
    if price_usd_e8 is None:
        return ctx
    return replace(ctx, profit_token=seize_token, profit_usd_e8=price_usd_e8)


# --- an option and an amount of it -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """An option with the prices of its tokens, in dollars with 8 + base decimals per whole token.

    `units` are a whole token of each in raw units, times ten to the base decimals: raw · price / unit is `_usd_e8`.
    """

    ctx: PlanContext
    option: Option
    prices: Mapping[Address, int]
    units: Mapping[Address, int]

    @property
    def most_raw(self) -> int:
        """The largest repayment `max_repay_usd_e8` allows."""
        repay = self.option.repay_token.address
        return mul_div_down(self.ctx.max_repay_usd_e8, self.units[repay], self.prices[repay])

    @property
    def names(self) -> dict[str, bytes | int]:
        """The pair, as numbers of a refusal."""
        return {
            "repay_token": self.option.repay_token.address,
            "seize_token": self.option.seize_token.address,
        }

    def usd_e8_down(self, token: Address, raw: int) -> int:
        """Dollars at oracle prices, rounded down (also below zero)."""
        return mul_div_down(raw, self.prices[token], self.units[token])

    def usd_e8_up(self, token: Address, raw: int) -> int:
        """Dollars at oracle prices, rounded up."""
        return -self.usd_e8_down(token, -raw)

    def profit_raw_up(self, usd_e8: int) -> int:
        """Dollars in the profit token at its oracle price, rounded up."""
        token = self.ctx.profit_token.address
        return mul_div_up(usd_e8, self.units[token], self.prices[token])

    def later_raw(self, outcome: Outcome) -> int:
        """What a later transaction brings in the profit token at oracle prices, less its own gas; rounded down."""
        if not outcome.later_raw:
            return 0
        due_usd_e8 = self.usd_e8_down(self.option.seize_token.address, outcome.later_raw)
        return -self.profit_raw_up(-due_usd_e8) - self.ctx.gas_raw(self.ctx.plan_gas)

    def leg_in(self, token: Address, gas: int) -> int:
        """What a leg that takes that gas costs in units of a token, with its bytes; rounded up."""
        cost_wei = self.ctx.cost_wei(gas, self.ctx.data.leg)
        price = self.prices[token] * 10**_NATIVE_DECIMALS
        return mul_div_up(cost_wei * self.ctx.native_usd_e8, self.units[token], price)


def terms_of(option: Option, health: Health, ctx: PlanContext) -> Terms:
    """An option's terms at the context's prices; a market's base currency is taken for the dollar."""
    scale = 10**health.base_decimals
    # where the profit token is one of the pair, the protocol's price stands for both, so that none is made by mixing
    prices = {
        ctx.profit_token.address: ctx.profit_usd_e8 * scale,
        option.repay_token.address: option.repay_price_base * USD_E8,
        option.seize_token.address: option.seize_price_base * USD_E8,
    }
    tokens = (ctx.profit_token, option.repay_token, option.seize_token)
    return Terms(ctx, option, prices, {token.address: scale * 10**token.decimals for token in tokens})


@dataclass(frozen=True, slots=True)
class DeadEnd:
    """Why something did not become a plan: how far it got and how close it came."""

    reached: int
    net_raw: int
    refusal: Refusal


SIZED, BORROWED, ROUTED, PRICED = range(4)


@dataclass(frozen=True, slots=True, eq=False)
class Size:
    """An option at one amount: what it moves, the loan it takes, and at most what it can net.

    `owed_raw` is what the seized collateral must bring back in the repaid token: the repayment and the premium.
    `later_raw` is what a later transaction brings in the profit token, less its gas.
    """

    terms: Terms
    amount_raw: int
    outcome: Outcome
    calls: tuple[ProtocolCall, ...]
    flash: FlashQuote
    owed_raw: int
    later_raw: int

    @property
    def gas(self) -> int:
        """What it takes besides its swaps."""
        return self.terms.ctx.plan_gas + self.terms.option.call_gas * (len(self.calls) - 1)

    def pieces(self, legs: int) -> int:
        """As many legs as its calldata is long as that of: every call after the first counts as one."""
        return legs + len(self.calls) - 1

    @property
    def largest(self) -> Part | None:
        """Of several accounts the one that moves most: it may fail, and the others must still be sold and paid for."""
        return max(self.outcome.parts, key=lambda part: part.repay_raw, default=None)

    def most_net_raw(self, premium_bps: int) -> int:
        """The profit if the market paid that much above the oracle, without any swap's cost, less the least gas."""
        terms, option = self.terms, self.terms.option
        seized_usd_e8 = terms.usd_e8_up(option.seize_token.address, self.outcome.seize_raw)
        owed_usd_e8 = terms.usd_e8_down(option.repay_token.address, self.owed_raw)
        most_usd_e8 = mul_div_up(seized_usd_e8, BPS + premium_bps, BPS) - owed_usd_e8
        return terms.profit_raw_up(most_usd_e8) + self.later_raw - terms.ctx.gas_raw(self.gas, self.pieces(0))


@dataclass(frozen=True, slots=True, eq=False)
class Funded:
    """An option and one who could lend for it (None: nobody does).

    `whole_raw` is an amount, if the limits allow it, and so is anything from `least_raw` to `most_raw` (0: nothing).
    """

    terms: Terms
    loan: FlashQuote | None
    whole_raw: int | None
    least_raw: int
    most_raw: int


def funded(terms: Terms, loans: Mapping[Address, Sequence[FlashQuote]]) -> list[Funded] | DeadEnd:
    """An option by each lender that no other is better than whatever the amount, cheapest first."""
    if min(terms.prices.values()) <= 0:
        return DeadEnd(SIZED, 0, Refusal("plan", "no_price", terms.names))
    option, limit_raw = terms.option, terms.most_raw
    whole_raw = option.max_repay_raw if option.max_repay_raw <= limit_raw else None
    least_raw, most_raw = max(option.min_repay_raw, 1), min(option.partial_max_repay_raw, limit_raw)
    most_raw = most_raw if least_raw <= most_raw else 0
    if whole_raw is None and not most_raw:
        numbers = {**terms.names, "max_repay_usd_e8": terms.ctx.max_repay_usd_e8, "most_raw": limit_raw}
        return DeadEnd(SIZED, 0, Refusal("plan", "over_max_repay", numbers))
    by_nobody = Funded(terms, None, whole_raw, least_raw, most_raw)
    if any(call.paid_after for call in terms.ctx.adapter.liquidation_calls(option, option.max_repay_raw)):
        return [by_nobody]
    offers: list[Funded] = []
    lent_raw = 0  # by a cheaper one that is not in the way
    for loan in sorted(loans[option.repay_token.address], key=lambda loan: _order(loan, terms)):
        if loan.available_raw > lent_raw:
            within_raw = min(most_raw, max(loan.available_raw, least_raw))
            offers.append(replace(by_nobody, loan=loan, most_raw=within_raw))
            lent_raw = lent_raw if _is_in_the_way(loan, terms) else loan.available_raw
    return offers or [by_nobody]


def size_of(funded: Funded, amount_raw: int) -> Reads[Size | DeadEnd]:
    """One amount of an option, as its lender funds it."""
    terms, loan = funded.terms, funded.loan
    ctx, option = terms.ctx, terms.option
    outcome = yield from readable("plan", ctx.adapter.outcome(option, amount_raw))
    if isinstance(outcome, Refusal):
        return DeadEnd(SIZED, 0, outcome)
    numbers = {**terms.names, "repay_raw": outcome.repay_raw, "seize_raw": outcome.seize_raw}
    if outcome.seize_raw <= 0 and outcome.later_raw <= 0:
        return DeadEnd(SIZED, 0, Refusal("plan", "nothing_seizable", numbers))
    calls = tuple(ctx.adapter.liquidation_calls(option, amount_raw))
    needed_raw = borrowed_raw(option, outcome, calls)
    if not needed_raw:
        source = next((call.target for call in calls if call.paid_after), ZERO_ADDRESS)
        loan = FlashQuote(source, option.repay_token.address, 0, 0)
    if loan is None or loan.available_raw < needed_raw:
        numbers |= {"needed_raw": needed_raw, "available_raw": loan.available_raw if loan else 0}
        return DeadEnd(BORROWED, 0, Refusal("plan", "no_flash_liquidity", numbers))
    owed_raw = outcome.repay_raw + mul_div_up(needed_raw, loan.premium_bps, BPS)
    size = Size(terms, amount_raw, outcome, calls, loan, owed_raw, terms.later_raw(outcome))
    most_raw = size.most_net_raw(_PREMIUM_BPS)
    if most_raw < ctx.least_net_raw:
        reason, budget = ctx.too_little
        gas_raw = ctx.gas_raw(size.gas, size.pieces(0))
        numbers |= {
            "bound_raw": most_raw + gas_raw,
            "gas_cost_raw": gas_raw,
            "min_profit_raw": ctx.min_profit_raw,
        }
        numbers |= {"later_raw": size.later_raw} if outcome.later_raw else {}
        return DeadEnd(SIZED, most_raw, Refusal("plan", reason, numbers | budget))
    return size


def read_loans(tokens: Sequence[Address], ctx: PlanContext) -> Reads[dict[Address, list[FlashQuote]]]:
    """What every source lends of each token."""
    asked = [(token, source) for token in dict.fromkeys(tokens) for source in ctx.flash_sources]
    answers = yield from together([readable("flash", source.flash(token, ctx.at)) for token, source in asked])
    loans: dict[Address, list[FlashQuote]] = {token: [] for token in tokens}
    for (token, _), answer in zip(asked, answers, strict=True):
        if isinstance(answer, FlashQuote):
            loans[token].append(answer)
    return loans


def _order(loan: FlashQuote, terms: Terms) -> tuple[int, bool, bool]:
    return loan.premium_bps, _is_in_the_way(loan, terms), loan.locked is not None


def _is_in_the_way(loan: FlashQuote, terms: Terms) -> bool:
    """Whether the loan locks a pool of the very tokens to be swapped: then a dearer one may net more."""
    return loan.locked is not None and terms.prices.keys() >= set(loan.locked.tokens)


def borrowed_raw(option: Option, outcome: Outcome, calls: Sequence[ProtocolCall]) -> int:
    """The flash loan: what is repaid, or what the calls approve where that is more (debt grows until inclusion).

    Nothing where the seized collateral is sold before it is paid for.
    """
    if any(call.paid_after for call in calls):
        return 0
    approved_raw = sum(call.approve_raw for call in calls if call.approve_token == option.repay_token.address)
    return max(outcome.repay_raw, approved_raw)
