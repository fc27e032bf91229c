"""How an account is judged and liquidated: by the shares it owes or, where they are worth more than it has, by all of
its collateral, so that no dust is left on either side.

All amounts are exact as of the marks' timestamp, which is meant to be that of the block the call is included in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keeper.fixed import WAD, mul_div_down, mul_div_up
from keeper.protocols.morpho_blue.market import LIQUIDATE, PRICE_DECIMALS, market_in
from keeper.protocols.morpho_blue.marks import State
from keeper.protocols.morpho_blue.rules import (
    PRICE_SCALE,
    Moved,
    Seizure,
    incentive_wad,
    max_borrow_raw,
    with_headroom_raw,
    without_headroom_raw,
)
from keeper.types import USD_E8, Address, BadDebt, Health, Option, Outcome, Position, ProtocolCall, Refusal

# What a call takes beside others of its kind, with an oracle of four feeds and the market's interest.
_CALL_GAS: Final = 200_000


@dataclass(frozen=True, slots=True)
class Account:
    """The breakdown of a health, in raw units; `max_borrow_raw` is what the collateral may owe."""

    state: State
    collateral_raw: int
    shares: int
    owed_raw: int
    max_borrow_raw: int


@dataclass(frozen=True, slots=True)
class _Choice:
    """What an option remembers. At its maximum all shares are repaid, or all collateral seized, or neither."""

    morpho: Address
    state: State
    seizure: Seizure
    whole: bool

    def shares(self, repay_raw: int) -> int | None:
        """The shares to repay for an amount; None where all collateral is to be seized instead."""
        seizure = self.seizure
        if not self.whole:
            return seizure.totals.shares_down(repay_raw)
        return seizure.shares if seizure.covered else None

    def moved(self, shares: int | None) -> Moved:
        """What the call moves."""
        return self.seizure.seizing_all() if shares is None else self.seizure.repaying(shares)


def judge(position: Position, state: State) -> Health | Refusal:
    """The account's health as `_isHealthy` finds it, with an `Account` as its detail."""
    if state.why_not is not None:
        return state.why_not
    collateral_raw, shares = position.words
    market = state.market
    owed_raw = state.totals.owed_up(shares)
    most_raw = max_borrow_raw(collateral_raw, state.price, market.lltv_wad)
    worth_raw = mul_div_down(collateral_raw, state.price, PRICE_SCALE)
    unit = 10**market.loan.decimals
    return Health(
        key=position.key,
        health_factor_wad=mul_div_down(most_raw, WAD, owed_raw) if shares else None,
        collateral_base=mul_div_down(worth_raw, state.loan.price, unit),
        debt_base=mul_div_up(owed_raw, state.loan.price, unit),
        base_decimals=PRICE_DECIMALS,
        liquidatable=most_raw < owed_raw,
        detail=Account(state, collateral_raw, shares, owed_raw, most_raw),
        bad_debt=(lost_of(state, owed_raw - worth_raw),) if owed_raw > worth_raw else (),
    )


def lost_of(state: State, raw: int) -> BadDebt:
    """So much of a market's loan token, of which nothing will come back."""
    token = state.market.loan
    unit = 10 ** (token.decimals + PRICE_DECIMALS)
    return BadDebt(token, raw, mul_div_up(raw * state.loan.price, USD_E8, unit))


def liquidation_price(health: Health) -> int | None:
    """The collateral's price in dollars at which the account may owe just what it owes; None without either."""
    account: Account = health.detail
    lltv_wad = account.state.market.lltv_wad
    if not account.collateral_raw or not account.owed_raw or not lltv_wad:
        return None
    worth_raw = mul_div_up(account.owed_raw, WAD, lltv_wad)
    return account.state.dollars_at(mul_div_up(worth_raw, PRICE_SCALE, account.collateral_raw))


def find_options(health: Health, morpho: Address, *, chosen: bool) -> Sequence[Option | Refusal]:
    """The one pair that a market has, or why nothing can be taken; `chosen` where somebody chose the market."""
    if not health.liquidatable:
        return [Refusal("options", "healthy", {"health_factor_wad": str(health.health_factor_wad)})]
    account: Account = health.detail
    state, market = account.state, account.state.market
    if not account.collateral_raw:
        return [Refusal("options", "no_collateral", {"debt_raw": str(account.owed_raw)})]
    incentive = incentive_wad(market.lltv_wad)
    seizure = Seizure(state.totals, state.price, incentive, account.collateral_raw, account.shares)
    whole = seizure.covered or seizure.exhausted
    # Where interest may soon turn one into the other a little is left, lest the call ask for more than there is.
    most = _Choice(morpho, state, seizure, whole)
    if seizure.covered:
        most_raw = partial_raw = most.moved(seizure.shares).repay_raw
    else:
        most_raw = seizure.seizing_all().repay_raw
        partial_raw = without_headroom_raw(min(most_raw, account.owed_raw))
        most_raw = most_raw if whole else partial_raw
    # What buys a unit of collateral, and a unit for each of three roundings.
    least_raw = mul_div_up(state.price, WAD, PRICE_SCALE * incentive) + 3
    partial_raw = partial_raw if partial_raw >= least_raw else 0
    if not (most_raw if whole else partial_raw) or most.moved(most.shares(most_raw)).seize_raw <= 0:
        numbers = {"repay_raw": str(most_raw), "collateral_raw": str(account.collateral_raw)}
        return [Refusal("options", "dust", {**numbers, "debt_raw": str(account.owed_raw)})]
    return [
        Option(
            key=health.key,
            repay_token=market.loan,
            seize_token=market.collateral,
            max_repay_raw=most_raw,
            partial_max_repay_raw=partial_raw,
            min_repay_raw=least_raw,
            repay_price_base=state.loan.price,
            seize_price_base=state.collateral_price,
            detail=most,
            repay_round=state.loan.round_id,
            call_gas=_CALL_GAS if chosen else 0,
            chosen=chosen,
        )
    ]


def outcome_of(option: Option, repay_raw: int) -> Outcome:
    """What Morpho would move if the calls of this amount ran at the marks' timestamp."""
    choice = _chosen(option, repay_raw)
    moved = choice.moved(choice.shares(repay_raw))
    return Outcome(moved.repay_raw, moved.seize_raw, bad_debt_raw=moved.bad_debt_raw)


def calls_of(option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
    """Morpho.liquidate, paid out of what it seized; the callback's data is whoever calls' own.

    What it may take is a little more than is owed now: debt grows until the call is mined, and Morpho takes what is
    owed then.
    """
    choice = _chosen(option, repay_raw)
    shares = choice.shares(repay_raw)
    repay_raw = choice.moved(shares).repay_raw
    seize_raw = choice.seizure.collateral_raw if shares is None else 0
    data = LIQUIDATE.encode(choice.state.market.params, option.key.account, seize_raw, shares or 0, b"")
    token = option.repay_token.address
    return [ProtocolCall(choice.morpho, token, with_headroom_raw(repay_raw), data, paid_after=True)]


def account_of(calldata: bytes) -> Address | None:
    """The account a Morpho.liquidate is about; None for anything else."""
    if market_in(calldata) is None:
        return None
    return Address(LIQUIDATE.decode_input(calldata)[1])


def _chosen(option: Option, repay_raw: int) -> _Choice:
    """The option's choice at an amount: only at the maximum everything is taken."""
    most: _Choice = option.detail
    if repay_raw >= option.max_repay_raw:
        return most
    return _Choice(most.morpho, most.state, most.seizure, whole=False)
