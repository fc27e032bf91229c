"""An account judged as the exchange judges it, exactly: value, margin requirement, and what may be taken from it."""

from __future__ import annotations

from dataclasses import dataclass

from keeper.fixed import WAD, mul_div_up
from keeper.protocols.perp_curie.marks import CurieMarks
from keeper.protocols.perp_curie.positions import Holdings, holdings, words_of
from keeper.protocols.perp_curie.rules import (
    collateral_value_wad,
    floor_wad,
    funding_payment_wad,
    liquidatable_size,
    mul_ratio,
    position_value_wad,
    without_dust,
)
from keeper.protocols.perp_curie.system import Collateral, Market, System
from keeper.types import USD_E8, Address, BadDebt, Health, Position, Refusal


@dataclass(frozen=True, slots=True)
class Stake:
    """A position in one market; sizes are signed, `value_wad` absolute."""

    market: Market
    size: int
    open_notional_wad: int
    value_wad: int
    liquidatable: int
    funding_wad: int


@dataclass(frozen=True, slots=True)
class Stock:
    """One collateral of an account and its value before the haircut."""

    collateral: Collateral
    amount_raw: int
    value_wad: int


@dataclass(frozen=True, slots=True)
class Account:
    """The breakdown of a health.

    `value_wad` is exact; the clearing house compares it cut to a raw unit of the settlement token.
    `settlement_wad` is the value without other collateral, `debt_value_wad` what margin is required for.
    """

    value_wad: int
    requirement_wad: int
    settlement_wad: int
    collateral_wad: int
    debt_value_wad: int
    takeover: bool
    sellable: str | None
    stakes: tuple[Stake, ...]
    stocks: tuple[Stock, ...]
    with_orders: bool


def judge(position: Position, marks: CurieMarks) -> Health | Refusal:
    """The account's health, with an `Account` as its detail; a price it depends on that cannot be used is a Refusal."""
    found = holdings(position, marks.entries)
    if any(position.words[words_of(marks.entries) :]):
        return Refusal("assess", "market_not_read", {"markets": len(marks.entries)})
    refused = _unpriced(found, marks)
    if refused:
        return refused
    account = position.key.account
    judged = _maker(account, found, marks) if found.markets_with_orders else _taker(found, marks)
    if isinstance(judged, Refusal):
        return judged
    value = floor_wad(judged.value_wad, marks.system.unit_wad)
    health = None
    if judged.requirement_wad:
        health = max(value, 0) * WAD // judged.requirement_wad
    return Health(
        key=position.key,
        health_factor_wad=health,
        collateral_base=max(value, 0),
        debt_base=judged.requirement_wad,
        base_decimals=18,
        liquidatable=judged.takeover or judged.sellable is not None,
        detail=judged,
        bad_debt=_deficit(judged, marks.system),
    )


def _deficit(judged: Account, system: System) -> tuple[BadDebt, ...]:
    """By how much the account is below zero, other collateral counted whole."""
    short_wad = -judged.settlement_wad - sum(stock.value_wad for stock in judged.stocks)
    if short_wad <= 0:
        return ()
    return (BadDebt(system.settlement, -(-short_wad // system.unit_wad), mul_div_up(short_wad, USD_E8, WAD)),)


def _unpriced(found: Holdings, marks: CurieMarks) -> Refusal | None:
    for taken in found.taken:
        if why := marks.markets[taken.market.base].unusable:
            return Refusal("assess", why, {"market": taken.market.symbol})
    for held in found.held:
        token = held.collateral.token
        if why := marks.collaterals[token.address].unusable:
            return Refusal("assess", why, {"collateral": token.symbol})
    return None


def _stocks(found: Holdings, marks: CurieMarks) -> tuple[tuple[Stock, ...], int]:
    stocks, counted = [], 0
    for held in found.held:
        entry = held.collateral
        price = marks.collaterals[entry.token.address].price
        value = collateral_value_wad(held.amount_raw, entry.token.decimals, price, entry.feed.unit)
        counted += mul_ratio(value, entry.ratio_ppm)
        stocks.append(Stock(entry, held.amount_raw, value))
    return tuple(stocks), counted


def _taker(found: Holdings, marks: CurieMarks) -> Account:
    system, parameters = marks.system, marks.system.parameters
    stakes: list[tuple[Market, int, int, int, int]] = []
    for taken in found.taken:
        market = taken.market
        state = marks.markets[market.base]
        funding = funding_payment_wad(taken.size, taken.growth_x96, state.growth_x96)
        value = position_value_wad(without_dust(taken.size), state.mark_wad)
        stakes.append((market, taken.size, taken.open_notional_wad, value, funding))
    stocks, counted = _stocks(found, marks)
    funding = sum(each[4] for each in stakes)
    settled = found.balance_raw * system.unit_wad + found.owed_wad - funding
    settlement = settled + sum(value + notional for _, _, notional, value, _ in stakes)
    worth = settlement + counted
    total = sum(abs(value) for _, _, _, value, _ in stakes)
    requirement = mul_ratio(total, parameters.mm_ratio_ppm)
    cut = floor_wad(worth, system.unit_wad)
    return Account(
        value_wad=worth,
        requirement_wad=requirement,
        settlement_wad=settlement,
        collateral_wad=counted,
        debt_value_wad=_debt_value(stakes, marks),
        takeover=cut < requirement,
        sellable=_why_sellable(found, worth, settlement, counted, total, marks) if stocks else None,
        stakes=tuple(
            Stake(
                market,
                without_dust(size),
                notional,
                abs(value),
                liquidatable_size(without_dust(size), abs(value), total, cut, requirement),
                owed,
            )
            for market, size, notional, value, owed in stakes
        ),
        stocks=stocks,
        with_orders=False,
    )


def _debt_value(stakes: list[tuple[Market, int, int, int, int]], marks: CurieMarks) -> int:
    """AccountBalance.getTotalDebtValue without orders: quote owed in all, and base owed in each market."""
    base = sum(
        position_value_wad(size, marks.markets[market.base].mark_wad)
        for market, size, *_ in stakes
        if size < 0
    )
    quote = min(sum(notional for _, _, notional, *_ in stakes), 0)
    return -(base + quote)


def _why_sellable(
    found: Holdings, worth: int, settlement: int, counted: int, total: int, marks: CurieMarks
) -> str | None:
    """Which of the vault's three conditions lets its collateral be sold (Vault.isLiquidatable)."""
    system, terms = marks.system, marks.system.terms
    if worth < mul_ratio(total, system.parameters.mm_ratio_ppm + terms.mm_buffer_ppm):
        return "margin"
    debt = max(-settlement, 0)
    if debt > mul_ratio(counted, terms.debt_ratio_ppm):
        return "debt_ratio"
    if debt // system.unit_wad > found.debt_threshold_raw:
        return "debt_threshold"
    return None


def _maker(account: Address, found: Holdings, marks: CurieMarks) -> Account | Refusal:
    """The exchange's own figures; what a takeover would leave is known once the orders are cancelled.

    Other collateral is sold without cancelling any.
    """
    state = marks.makers.get(account)
    if state is None:
        return Refusal("assess", "orders_not_read", {"account": account})
    if state.unusable:
        return Refusal("assess", state.unusable, {"account": account})
    values = {
        base: position_value_wad(size, marks.markets[base].mark_wad) for base, size in state.sizes.items()
    }
    total = sum(abs(value) for value in values.values())
    stocks, counted = _stocks(found, marks)
    settlement = state.value_wad - counted
    markets = {entry.base: entry for entry in marks.entries if isinstance(entry, Market)}
    return Account(
        value_wad=state.value_wad,
        requirement_wad=state.requirement_wad,
        settlement_wad=settlement,
        collateral_wad=counted,
        debt_value_wad=state.debt_value_wad,
        takeover=state.value_wad < state.requirement_wad,
        sellable=_why_sellable(found, state.value_wad, settlement, counted, total, marks) if stocks else None,
        stakes=tuple(
            Stake(
                markets[base],
                size,
                0,
                abs(values[base]),
                liquidatable_size(size, abs(values[base]), total, state.value_wad, state.requirement_wad),
                0,
            )
            for base, size in state.sizes.items()
        ),
        stocks=stocks,
        with_orders=True,
    )
