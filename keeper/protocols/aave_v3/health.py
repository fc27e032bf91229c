"""An account judged as the pool judges it: `Pool.getUserAccountData` at the marks' timestamp and prices, exactly."""

from __future__ import annotations

from dataclasses import dataclass

from keeper.fixed import BPS, WAD, mul_div_up
from keeper.protocols.aave_v3.market import Market
from keeper.protocols.aave_v3.marks import AaveMarks
from keeper.protocols.aave_v3.positions import has_stable_debt, holdings
from keeper.protocols.aave_v3.rules import (
    collateral_base,
    collateral_raw,
    debt_base,
    debt_raw,
    health_factor_wad,
)
from keeper.types import USD_E8, BadDebt, Health, Position, Refusal


@dataclass(frozen=True, slots=True)
class Side:
    """One reserve on one side of an account: its amount and what that is worth in the base currency."""

    reserve_id: int
    amount_raw: int
    value_base: int


@dataclass(frozen=True, slots=True)
class Account:
    """The breakdown of a health: both sides, and Σ collateral value · threshold in base currency · bps.

    `uncounted` are reserve ids enabled as collateral that the version ignores, their threshold being 0.
    """

    group: int
    collateral: tuple[Side, ...]
    debt: tuple[Side, ...]
    uncounted: tuple[int, ...]
    weighted_base_bps: int


def judge(position: Position, marks: AaveMarks) -> Health | Refusal:
    """The account's health, with an `Account` as its detail; a price it depends on that cannot be used is a Refusal."""
    market = marks.market
    rules = market.rules
    group = position.group
    if has_stable_debt(position):
        return Refusal("assess", "stable_rate_debt", {"account": position.key.account})
    if group and group not in market.emodes:
        return Refusal("assess", "unknown_emode", {"category": group})
    collateral: list[Side] = []
    debt: list[Side] = []
    uncounted: list[int] = []
    weighted = 0
    for holding in holdings(position):
        reserve = market.reserve(holding.reserve_id)
        state = marks.state(holding.reserve_id)
        price = marks.price(holding.reserve_id, group)
        if not price:
            return Refusal("assess", "missing_price", {"token": reserve.token.symbol})
        if state.stale:
            return Refusal(
                "assess", "stale_price", {"token": reserve.token.symbol, "age_s": state.price_age_s}
            )
        if holding.enabled and not marks.counted(holding.reserve_id):
            uncounted.append(holding.reserve_id)
        elif holding.enabled:
            amount = collateral_raw(rules, holding.scaled_collateral, state.liquidity_index_ray)
            value = collateral_base(amount, price, reserve.unit)
            collateral.append(Side(holding.reserve_id, amount, value))
            weighted += value * marks.threshold_bps(holding.reserve_id, group)
        if holding.borrowed:
            amount = debt_raw(rules, holding.scaled_debt, state.debt_index_ray)
            debt.append(Side(holding.reserve_id, amount, debt_base(rules, amount, price, reserve.unit)))
    total_collateral = sum(side.value_base for side in collateral)
    total_debt = sum(side.value_base for side in debt)
    health = health_factor_wad(rules, total_collateral, weighted, total_debt)
    return Health(
        key=position.key,
        health_factor_wad=health,
        collateral_base=total_collateral,
        debt_base=total_debt,
        base_decimals=market.base_decimals,
        liquidatable=health is not None and health < WAD,
        detail=Account(group, tuple(collateral), tuple(debt), tuple(uncounted), weighted),
        bad_debt=_uncovered(market, debt, total_debt, total_debt - total_collateral),
    )


def _uncovered(market: Market, debts: list[Side], owed_base: int, short_base: int) -> tuple[BadDebt, ...]:
    """What is short of collateral, laid on every debt by its value; each part is rounded up."""
    if short_base <= 0:
        return ()
    unit = owed_base * 10**market.base_decimals
    return tuple(
        BadDebt(
            market.reserve(debt.reserve_id).token,
            mul_div_up(debt.amount_raw, short_base, owed_base),
            mul_div_up(debt.value_base * short_base, USD_E8, unit),
        )
        for debt in debts
        if debt.amount_raw
    )


def liquidation_price(health: Health, marks: AaveMarks) -> int | None:
    """The price of the largest collateral at which the health factor is 1, all else equal, in the base currency.

    None where no price of it does that: without debt or collateral, or when the rest alone decides.
    """
    account: Account = health.detail
    if not account.collateral or not health.debt_base:
        return None
    largest = max(account.collateral, key=lambda side: side.value_base)
    threshold_bps = marks.threshold_bps(largest.reserve_id, account.group)
    owed = next((side for side in account.debt if side.reserve_id == largest.reserve_id), Side(0, 0, 0))
    per_price = largest.amount_raw * threshold_bps - owed.amount_raw * BPS
    others = account.weighted_base_bps - largest.value_base * threshold_bps
    missing = (health.debt_base - owed.value_base) * BPS - others
    if per_price <= 0 or missing <= 0:
        return None
    return missing * marks.market.reserve(largest.reserve_id).unit // per_price
