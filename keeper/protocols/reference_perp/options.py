"""Ways to liquidate an account: each position for cash, or taken over and closed again.

The house closes a position at the mark for a reward in cash, as far as its window reaches. Or the liquidator's own
account inherits a size of it at the mark with a discount, for which it must have the margin. So a takeover's option is
one size, its amount is the margin that is borrowed and paid in, and its outcome is what is left in the account once
the size is closed with the house: all of it is withdrawn in the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keeper.fixed import BPS, MAX_UINT256, WAD, mul_div_up
from keeper.protocols.reference_perp.exchange import EXCHANGE, NEWEST, account_key, number_of
from keeper.protocols.reference_perp.health import Account
from keeper.protocols.reference_perp.marks import ExchangeMarks, Heir
from keeper.protocols.reference_perp.rules import (
    Holding,
    Market,
    Quote,
    Stake,
    assess,
    capacity_of,
    ceil_div,
    fill_of,
    quote_of,
    traded,
    value_of,
)
from keeper.types import ZERO_ADDRESS, Address, Health, Option, Outcome, ProtocolCall, Refusal

LIQUIDATE: Final = EXCHANGE.function("liquidate")
INHERIT: Final = EXCHANGE.function("inherit")
PAY_IN: Final = EXCHANGE.function("payIn")
TRADE: Final = EXCHANGE.function("trade")
WITHDRAW: Final = EXCHANGE.function("withdrawAll")

# The mark moves until the call is mined; the margin must still do then. It comes back, so it costs a loan's fee.
HEADROOM_BPS: Final = 100
# The part that the tiers allow moves with the marks; a little less of it is still allowed then.
_TIER_BPS: Final = 1
_HALVINGS: Final = 10
_DUST: Final = WAD  # a dollar's worth of a position is not worth a transaction


@dataclass(frozen=True, slots=True)
class Cash:
    """What an option remembers: a position closed with the house for a reward."""

    marks: ExchangeMarks
    market: Market
    quote: Quote


@dataclass(frozen=True, slots=True)
class Takeover:
    """What an option remembers: a signed size of one position that `heir` inherits and closes, as of the marks."""

    marks: ExchangeMarks
    market: Market
    heir: Heir
    account: Account
    stake: Stake
    size: int
    quote: Quote

    @property
    def cost(self) -> int:
        """What the heir's position starts with: the account's equity does not change by it."""
        price = self.market.live.price
        return value_of(self.stake.size, price) - value_of(self.stake.size - self.size, price)

    @property
    def names(self) -> dict[str, Any]:
        """The market and the size, as numbers of a refusal."""
        return {"market": self.market.number, "size_wad": str(self.size)}

    def inherited(self, margin_raw: int) -> Holding:
        """The liquidator's account with a margin, the discount and the position."""
        live, scale = self.market.live, self.marks.exchange.scale
        index = live.long_index if self.size > 0 else live.short_index
        collateral = self.heir.collateral + margin_raw * scale + self.quote.reward
        stake = Stake(self.market.number, self.size, self.cost, index)
        return Holding(collateral, flagged=False, cut=False, stakes=(stake,))


def find_options(health: Health, marks: ExchangeMarks) -> Sequence[Option | Refusal]:
    """Every position for cash and in sizes that pay to take over; what the exchange would refuse is a Refusal."""
    account: Account = health.detail
    if not health.liquidatable:
        return [Refusal("options", "healthy", {"health_factor_wad": str(health.health_factor_wad)})]
    if marks.liquidation_paused:
        return [Refusal("options", "protocol_paused", {"liquidation": True})]
    if account.judged.equity < -marks.fund:
        numbers = {"deficit_wad": str(-account.judged.equity), "fund_wad": str(marks.fund)}
        return [Refusal("options", "insurance_fund_short", numbers)]
    found: list[Option | Refusal] = []
    for stake in account.holding.stakes:
        found.append(_cash(health, marks, marks.markets[stake.market]))
    for stake in account.holding.stakes:
        found += _worthwhile(health, marks, stake)
    return found


def outcome_of(option: Option, margin_raw: int) -> Outcome | Refusal:
    """What is paid in cash, or what comes back of a margin; refused where the exchange would, or where it loses."""
    choice = option.detail
    if isinstance(choice, Cash):
        return Outcome(0, choice.quote.reward // choice.marks.exchange.scale)
    return _closed(choice, margin_raw)


def calls_of(option: Option, margin_raw: int) -> Sequence[ProtocolCall]:
    """Liquidate; or pay a margin in, which opens an account where there is none, inherit, close, withdraw everything.

    None names that account by its number: whoever opens one before it in the same block would shift it. The last
    refuses to pay while the account holds any position, so nothing can be left over.
    """
    choice, account = option.detail, number_of(option.key.account)
    exchange, market = choice.marks.exchange, choice.market.number
    if isinstance(choice, Cash):
        return [_call(exchange.address, LIQUIDATE.encode(account, market))]
    token = exchange.token.address
    limit = 0 if choice.size > 0 else MAX_UINT256  # what is left in the end is what counts
    return [
        ProtocolCall(exchange.address, token, margin_raw, PAY_IN.encode(margin_raw)),
        _call(exchange.address, INHERIT.encode(account, market, abs(choice.size), NEWEST)),
        _call(exchange.address, TRADE.encode(NEWEST, market, -choice.size, limit)),
        _call(exchange.address, WITHDRAW.encode(NEWEST)),
    ]


def account_of(calldata: bytes) -> Address | None:
    """Whose liquidation a call is; None for anything else."""
    for function in (LIQUIDATE, INHERIT):
        if calldata[:4] == function.selector:
            return account_key(function.decode_input(calldata)[0])
    return None


def _cash(health: Health, marks: ExchangeMarks, market: Market) -> Option | Refusal:
    quote = _quote(health, marks, market, capacity_of(market, marks.timestamp_s), cash=True)
    numbers = {"market": market.number, "liquidatable_wad": str(quote.liquidatable)}
    if not quote.size:
        state = market.state
        until_s = state.window_start_s + market.parameters.window_s
        numbers |= {"window_used_wad": str(state.window_used), "until_s": until_s}
        return Refusal("options", "rate_limited", numbers)
    if not quote.reward:
        return Refusal("options", "no_reward", {**numbers, "equity_wad": str(health.detail.judged.equity)})
    return _option(health, marks, Cash(marks, market, quote), 0)


def takeovers(health: Health, marks: ExchangeMarks, stake: Stake, heir: Heir) -> Iterator[Option]:
    """A position in sizes from the most that may be taken down to dust, whatever comes of it."""
    market = marks.markets[stake.market]
    most = _quote(health, marks, market, MAX_UINT256, cash=False).liquidatable
    if most < abs(stake.size):
        most -= most * _TIER_BPS // BPS
    for size in _sizes(most, market):
        quote = _quote(health, marks, market, size, cash=False)
        signed = size if stake.size > 0 else -size
        choice = Takeover(marks, market, heir, health.detail, stake, signed, quote)
        yield _option(health, marks, choice, _margin_raw(choice))


def _worthwhile(health: Health, marks: ExchangeMarks, stake: Stake) -> list[Option | Refusal]:
    """The sizes of a position that pay to take over; where none does, why the smallest does not."""
    heir = marks.heir
    if heir is None:
        return [Refusal("options", "no_liquidator", {"market": stake.market})]
    if heir.in_markets or heir.collateral < 0:
        numbers = {"heir": heir.number, "collateral_wad": str(heir.collateral)}
        return [Refusal("options", "left_over", {"market": stake.market, **numbers})]
    options = list(takeovers(health, marks, stake, heir))
    answers = [outcome_of(option, option.max_repay_raw) for option in options]
    paying = [each for each, answer in zip(options, answers, strict=True) if isinstance(answer, Outcome)]
    return [*paying] or [answer for answer in answers[-1:] if isinstance(answer, Refusal)]


def _sizes(most: int, market: Market) -> Iterator[int]:
    """The most that may be taken, and its halvings down to a dollar's worth."""
    for halving in range(_HALVINGS + 1):
        size = most >> halving
        if not size or (halving and size * market.live.price // WAD < _DUST):
            return
        yield size


def _quote(health: Health, marks: ExchangeMarks, market: Market, most: int, *, cash: bool) -> Quote:
    account: Account = health.detail
    return quote_of(
        marks.parameters,
        market,
        account.holding,
        account.judged,
        marks.fund,
        marks.exchange.scale,
        most=most,
        cash=cash,
    )


def _margin_raw(choice: Takeover) -> int:
    """What must be paid in, with some headroom for the mark."""
    marks = choice.marks
    judged = assess(choice.inherited(0), marks.parameters, marks.markets)
    needed = mul_div_up(max(judged.initial, judged.required), BPS + HEADROOM_BPS, BPS)
    return max(ceil_div(needed - judged.equity, marks.exchange.scale), 0) + 1


def _closed(choice: Takeover, margin_raw: int) -> Outcome | Refusal:
    """What is withdrawn of a margin once the position is inherited and closed with the house.

    Whatever anybody deposited in the liquidator's name comes with it, and makes no takeover worth more.
    """
    marks, market, scale = choice.marks, choice.market, choice.marks.exchange.scale
    # an account that owes more than it has gates withdrawals as soon as it is liquidated
    gate_s = marks.parameters.gate_s if choice.account.judged.equity < 0 else 0
    if gate_s or marks.timestamp_s < marks.gated_until_s:
        numbers: dict[str, Any] = {"gated_until_s": max(marks.gated_until_s, marks.timestamp_s + gate_s)}
        return Refusal("outcome", "withdrawals_gated", choice.names | numbers)
    heir = choice.inherited(margin_raw)
    judged = assess(heir, marks.parameters, marks.markets)
    needed = max(judged.initial, judged.required)
    if judged.equity < needed:
        numbers = {"margin_raw": margin_raw, "equity_wad": str(judged.equity), "needed_wad": str(needed)}
        return Refusal("outcome", "margin_short", choice.names | numbers)
    filled = fill_of(market, -choice.size)
    if filled is None:
        return Refusal("outcome", "over_skew_scale", choice.names | {"skew_wad": str(market.state.skew)})
    fill, cost, fee = filled
    refused = _house_short(choice, cost)
    if refused:
        return refused
    left = heir.collateral - choice.cost - cost - fee
    numbers = {"margin_raw": margin_raw, "left_wad": str(left), "discount_wad": str(choice.quote.reward)}
    numbers |= {"fill_wad": str(fill), "mark_wad": str(market.live.price), "fee_wad": str(fee)}
    if left < 0:
        return Refusal("outcome", "loss_over_margin", choice.names | numbers)
    if (left - choice.heir.collateral) // scale <= margin_raw:
        return Refusal("outcome", "losing_takeover", choice.names | numbers)
    return Outcome(margin_raw, left // scale)


def _house_short(choice: Takeover, cost: int) -> Refusal | None:
    """The house takes the closed size: it must not owe, and where the skew grows it must have the margin (trade)."""
    marks, market, skew = choice.marks, choice.market, choice.market.state.skew
    unusable = marks.unusable(marks.house)
    if unusable:
        return Refusal("outcome", "house_unpriced", choice.names | dict(unusable))
    house = traded(marks.house, market, choice.size, -cost)
    judged = assess(house, marks.parameters, marks.markets, house=True)
    grows = abs(skew - choice.size) > abs(skew)
    needed = max(judged.initial, judged.required) if grows else 0
    if judged.equity >= needed:
        return None
    numbers = {"equity_wad": str(judged.equity), "needed_wad": str(needed)}
    return Refusal("outcome", "house_short_of_margin", choice.names | numbers)


def _option(health: Health, marks: ExchangeMarks, choice: Cash | Takeover, amount_raw: int) -> Option:
    token = marks.exchange.token
    return Option(
        key=health.key,
        repay_token=token,
        seize_token=token,
        max_repay_raw=amount_raw,
        partial_max_repay_raw=amount_raw,
        min_repay_raw=amount_raw,
        repay_price_base=WAD,
        seize_price_base=WAD,
        detail=choice,
    )


def _call(exchange: Address, data: bytes) -> ProtocolCall:
    return ProtocolCall(exchange, ZERO_ADDRESS, 0, data)
