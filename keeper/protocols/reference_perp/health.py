"""An account judged as the exchange judges it, exactly, at the marks' timestamp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keeper.fixed import WAD, mul_div_up
from keeper.protocols.reference_perp.marks import ExchangeMarks
from keeper.protocols.reference_perp.positions import holding_of
from keeper.protocols.reference_perp.rules import Assessment, Holding, assess, margins_of, value_of
from keeper.types import USD_E8, BadDebt, Health, Position, Refusal

DECIMALS: Final = 18


@dataclass(frozen=True, slots=True)
class Account:
    """The breakdown of a health: what the account holds, and what the exchange's `assess` says of it."""

    holding: Holding
    judged: Assessment


def judge(position: Position, marks: ExchangeMarks) -> Health | Refusal:
    """Equity over what the account must keep: maintenance margin and possible rewards. Liquidatable below 1.

    A market without a mark is a Refusal, as the exchange then judges nobody in it.
    """
    holding = holding_of(position.words)
    unusable = marks.unusable(holding)
    if unusable:
        return Refusal("assess", unusable["reason"], {"market": unusable["market"]})
    judged = assess(holding, marks.parameters, marks.markets)
    equity = max(judged.equity, 0)
    return Health(
        key=position.key,
        health_factor_wad=equity * WAD // judged.required if judged.required else None,
        collateral_base=equity,
        debt_base=judged.required,
        base_decimals=DECIMALS,
        liquidatable=judged.equity < judged.required,
        detail=Account(holding, judged),
        bad_debt=_deficit(marks, -judged.equity),
    )


def _deficit(marks: ExchangeMarks, short_wad: int) -> tuple[BadDebt, ...]:
    """By how much the equity is below zero."""
    if short_wad <= 0:
        return ()
    exchange = marks.exchange
    return (
        BadDebt(exchange.token, -(-short_wad // exchange.scale), mul_div_up(short_wad, USD_E8, 10**DECIMALS)),
    )


def liquidation_price(health: Health, marks: ExchangeMarks) -> int | None:
    """The mark of its largest position at which equity is what it must be, funding and rewards as they are now."""
    account: Account = health.detail
    holding, judged = account.holding, account.judged
    if not holding.stakes:
        return None
    largest = max(
        holding.stakes, key=lambda stake: abs(value_of(stake.size, marks.markets[stake.market].live.price))
    )
    market, size = marks.markets[largest.market], abs(largest.size)
    price, least = market.live.price, market.parameters.min_margin
    _, maintenance = margins_of(market.parameters, size, price)
    # what the equity exceeds the requirement by, without what moves with this mark
    fixed = judged.equity - judged.required - value_of(largest.size, price) + maintenance - least
    per_price = largest.size * price - (maintenance - least) * WAD
    if not per_price:
        return None
    found = -fixed * price * WAD // per_price
    return found if found > 0 else None
