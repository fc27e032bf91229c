"""Selling an account's other collateral: the vault pays a discount to whoever repays its debt in settlement tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keeper.fixed import BPS, WAD
from keeper.protocols.perp_curie.health import Account, Stock
from keeper.protocols.perp_curie.marks import CurieMarks
from keeper.protocols.perp_curie.rules import PPM, collateral_for_raw, collateral_value_wad, mul_ratio
from keeper.protocols.perp_curie.system import VAULT
from keeper.types import Address, Health, Option, Outcome, ProtocolCall, Refusal

LIQUIDATE_COLLATERAL: Final = VAULT.function("liquidateCollateral")

# What may be repaid shrinks with the debt, the price and the account's funding until the call is mined; asking for more
# than that reverts.
HEADROOM_BPS: Final = 10


@dataclass(frozen=True, slots=True)
class Sale:
    """What an option remembers: the vault's discounted price of one collateral, and which condition allows it."""

    marks: CurieMarks
    stock: Stock
    price: int
    why: str


def sales(health: Health, marks: CurieMarks) -> list[Option | Refusal]:
    """One option for each collateral of an account that may be sold (Vault.liquidateCollateral)."""
    account: Account = health.detail
    if account.sellable is None:
        return []
    return [_sale(health, marks, stock, account.sellable) for stock in account.stocks]


def outcome_of(sale: Sale, repay_raw: int) -> Outcome:
    """The collateral for exactly this repayment (Vault.getLiquidatableCollateralBySettlement)."""
    collateral = sale.stock.collateral
    value = repay_raw * sale.marks.system.unit_wad
    seized = collateral_for_raw(value, collateral.token.decimals, sale.price, collateral.feed.unit)
    return Outcome(repay_raw, seized)


def calls_of(sale: Sale, account: Address, repay_raw: int) -> Sequence[ProtocolCall]:
    """Vault.liquidateCollateral, denominated in the settlement token."""
    system = sale.marks.system
    data = LIQUIDATE_COLLATERAL.encode(account, sale.stock.collateral.token.address, repay_raw, True)
    return [ProtocolCall(system.vault, system.settlement.address, repay_raw, data)]


def max_repaid_raw(account: Account, stock: Stock, marks: CurieMarks) -> int:
    """The most that may be repaid for one collateral (Vault.getMaxRepaidSettlementAndLiquidatableCollateral)."""
    system, terms, collateral = marks.system, marks.system.terms, stock.collateral
    margin = mul_ratio(account.debt_value_wad, system.parameters.im_ratio_ppm)
    debt = max(-account.settlement_wad, 0, margin)
    if debt > terms.dust_raw * system.unit_wad:
        debt = mul_ratio(debt, terms.liquidation_ppm)
    repaid = debt * PPM // (PPM - terms.fund_fee_ppm)
    price, unit, decimals = discounted(stock, marks), collateral.feed.unit, collateral.token.decimals
    if collateral_for_raw(repaid, decimals, price, unit) > stock.amount_raw:
        repaid = collateral_value_wad(stock.amount_raw, decimals, price, unit)
    return repaid // system.unit_wad


def discounted(stock: Stock, marks: CurieMarks) -> int:
    """The price at which the vault sells, in the feed's units."""
    price = marks.collaterals[stock.collateral.token.address].price
    return mul_ratio(price, PPM - stock.collateral.discount_ppm)


def _sale(health: Health, marks: CurieMarks, stock: Stock, why: str) -> Option | Refusal:
    collateral = stock.collateral
    # a price that the discount cuts to nothing buys no amount; the vault would divide by it
    most = max_repaid_raw(health.detail, stock, marks) if discounted(stock, marks) else 0
    offered = most - -(-most * HEADROOM_BPS // BPS)
    if offered <= 0:
        numbers = {"collateral": collateral.token.symbol, "max_repaid_raw": most, "condition": why}
        return Refusal("options", "nothing_to_repay", numbers)
    return Option(
        key=health.key,
        repay_token=marks.system.settlement,
        seize_token=collateral.token,
        max_repay_raw=offered,
        partial_max_repay_raw=offered,
        min_repay_raw=1,
        repay_price_base=WAD,
        seize_price_base=marks.collaterals[collateral.token.address].price * (WAD // collateral.feed.unit),
        detail=Sale(marks, stock, discounted(stock, marks), why),
    )
