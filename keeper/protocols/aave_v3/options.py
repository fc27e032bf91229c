"""Ways to liquidate an account: every debt against every collateral, how much of it, and the calls that do it.

Where the close factor allows a part only, two calls may take more than one: the first as much as just leaves the
account unsafe, the second what the close factor allows of the rest (Qin et al. 2021, "An Empirical Study of DeFi
Liquidations").

All amounts are exact as of the marks' timestamp, which is meant to be that of the block the call is included in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from keeper.fixed import BPS, RAY, WAD
from keeper.protocols.aave_v3.health import Account, Side
from keeper.protocols.aave_v3.market import POOL, Reserve
from keeper.protocols.aave_v3.marks import AaveMarks
from keeper.protocols.aave_v3.rules import (
    SENTINEL_HEALTH_FACTOR_WAD,
    Amounts,
    Pair,
    collateral_base,
    debt_base,
    health_factor_wad,
)
from keeper.types import Address, Health, Option, Outcome, ProtocolCall, Refusal

_LIQUIDATION_CALL: Final = POOL.function("liquidationCall")
LIQUIDATION_CALL_SELECTOR: Final = _LIQUIDATION_CALL.selector

# What a call takes where others of its kind came before it in the transaction, and with every reserve the account uses.
_CALL_GAS: Final = 160_000
_RESERVE_GAS: Final = 40_000
_WORTH_A_STEP: Final = 100  # a second step must take so large a part more
_STEPS_BACK: Final = (20, 10, 7)  # from where the account would be safe, as powers of a half
_NOTHING: Final = Amounts(0, 0, 0)


@dataclass(frozen=True, slots=True)
class _Choice:
    """What an option remembers: its exact arithmetic, whether its maximum is all the close factor allows, and whether
    the pool writes the debts off that are left when this collateral is gone (3.3+: it is the account's last).

    `first` is what a step before it moves, `pair` what that leaves.
    """

    pool: Address
    pair: Pair
    takes_all: bool
    writes_off: bool
    first: Amounts = _NOTHING


def find_options(health: Health, marks: AaveMarks) -> Sequence[Option | Refusal]:
    """Every pair of the account; a forbidden one says why."""
    if not health.liquidatable or health.health_factor_wad is None:
        return [Refusal("options", "healthy", {"health_factor_wad": str(health.health_factor_wad)})]
    account: Account = health.detail
    collateral = [side for side in account.collateral if side.amount_raw]
    found: list[Option | Refusal] = [
        Refusal("options", "collateral_not_enabled", {"token": marks.market.reserve(reserve_id).token.symbol})
        for reserve_id in account.uncounted
    ]
    if not collateral:
        return [*found, Refusal("options", "no_collateral", {"debt_base": str(health.debt_base)})]
    for debt in account.debt:
        for side in collateral if debt.amount_raw else ():
            found += _options(health, health.health_factor_wad, marks, debt, side, alone=len(collateral) == 1)
    return found


def outcome_of(option: Option, repay_raw: int) -> Outcome:
    """What the pool would move if the calls of this amount ran at the marks' timestamp, and write off of this debt."""
    choice: _Choice = option.detail
    pair, first = choice.pair, choice.first
    moved = pair.amounts(_offered_raw(option, repay_raw))
    emptied = moved.seize_raw + moved.fee_raw >= pair.collateral_raw
    bad_debt_raw = pair.debt_raw - moved.repay_raw if emptied and choice.writes_off else 0
    return Outcome(
        first.repay_raw + moved.repay_raw, first.seize_raw + moved.seize_raw, bad_debt_raw=bad_debt_raw
    )


def calls_of(option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
    """Pool.liquidationCall, paid in the underlying token.

    The maximum is offered with a basis point of headroom (`Pair.offer_raw`), because debt grows until the call is mined
    and the last second of interest would otherwise leave dust, which the pool forbids since 3.3. The pool takes only
    what is owed, so `approve_raw` is what must be at hand, not what is spent.
    """
    choice: _Choice = option.detail
    repay, seize = option.repay_token.address, option.seize_token.address
    steps = [choice.first.repay_raw, _offered_raw(option, repay_raw)]
    return [
        ProtocolCall(
            choice.pool, repay, raw, _LIQUIDATION_CALL.encode(seize, repay, option.key.account, raw, False)
        )
        for raw in steps
        if raw
    ]


def account_of(calldata: bytes) -> Address | None:
    """The account a Pool.liquidationCall is about; None for anything else."""
    if calldata[:4] != LIQUIDATION_CALL_SELECTOR:
        return None
    _, _, account, _, _ = _LIQUIDATION_CALL.decode_input(calldata)
    return Address(account)


def _options(
    health: Health, factor_wad: int, marks: AaveMarks, debt: Side, collateral: Side, *, alone: bool
) -> list[Option | Refusal]:
    """A pair in one step and, where that takes more, in two."""
    market = marks.market
    group = health.detail.group
    owed, held = market.reserve(debt.reserve_id), market.reserve(collateral.reserve_id)
    forbidden = _forbidden(marks, factor_wad, owed, held)
    if forbidden:
        return [forbidden]
    held_state = marks.state(held.id)
    pair = Pair(
        rules=market.rules,
        health_factor_wad=factor_wad,
        total_debt_base=health.debt_base,
        debt_raw=debt.amount_raw,
        debt_price=marks.liquidation_debt_price(owed.id, group),
        debt_unit=owed.unit,
        debt_index_ray=marks.state(owed.id).debt_index_ray,
        collateral_raw=collateral.amount_raw,
        collateral_price=marks.price(held.id, group),
        collateral_unit=held.unit,
        collateral_index_ray=held_state.liquidity_index_ray,
        bonus_bps=marks.bonus_bps(held.id, group),
        fee_bps=held_state.config.fee_bps,
        liquidity_raw=held_state.liquidity_raw,
    )
    choice = _Choice(market.pool, pair, True, market.rules.close_factor_by_value and alone)
    single = _option(health, marks, owed, held, choice)
    first, rest = _first_step(pair, _Rest.of(health, marks, debt, collateral))
    if isinstance(single, Refusal) or not first.repay_raw:
        return [single]
    double = _option(health, marks, owed, held, replace(choice, pair=rest, takes_all=False, first=first))
    if isinstance(double, Refusal):
        return [single]
    more_raw = double.max_repay_raw - single.max_repay_raw
    return [single, double] if more_raw * _WORTH_A_STEP >= single.max_repay_raw else [single]


def _option(
    health: Health, marks: AaveMarks, owed: Reserve, held: Reserve, choice: _Choice
) -> Option | Refusal:
    account: Account = health.detail
    pair, before_raw = choice.pair, choice.first.repay_raw
    whole = pair.amounts(pair.cap_raw)
    takes_all = choice.takes_all and pair.pays_out(whole) and not pair.leaves_dust(whole)
    partial_max_raw = min(pair.partial_max_raw, whole.repay_raw)
    if partial_max_raw < pair.min_raw:
        partial_max_raw = 0
    if not takes_all and not partial_max_raw:
        return Refusal(
            "options",
            "dust" if pair.pays_out(whole) else "insufficient_liquidity",
            {
                "repay_token": owed.token.symbol,
                "seize_token": held.token.symbol,
                "repay_raw": str(whole.repay_raw),
                "seize_raw": str(whole.seize_raw),
            },
        )
    return Option(
        key=health.key,
        repay_token=owed.token,
        seize_token=held.token,
        max_repay_raw=before_raw + (whole.repay_raw if takes_all else partial_max_raw),
        partial_max_repay_raw=before_raw + partial_max_raw if partial_max_raw else 0,
        min_repay_raw=before_raw + pair.min_raw,
        repay_price_base=pair.debt_price,
        seize_price_base=pair.collateral_price,
        detail=replace(choice, takes_all=takes_all),
        repay_round=marks.round_of(owed.id, pair.debt_price),
        seize_round=marks.round_of(held.id, pair.collateral_price),
        call_gas=_CALL_GAS + _RESERVE_GAS * (len(account.collateral) + len(account.debt)),
    )


@dataclass(frozen=True, slots=True)
class _Rest:
    """What an account has besides a pair, in the base currency, and what the pair's sides are judged by."""

    collateral_base: int
    weighted_base_bps: int
    debt_base: int
    collateral_price: int
    debt_price: int
    threshold_bps: int

    @classmethod
    def of(cls, health: Health, marks: AaveMarks, debt: Side, collateral: Side) -> _Rest:
        """All of an account but these two."""
        account: Account = health.detail
        threshold_bps = marks.threshold_bps(collateral.reserve_id, account.group)
        return cls(
            collateral_base=health.collateral_base - collateral.value_base,
            weighted_base_bps=account.weighted_base_bps - collateral.value_base * threshold_bps,
            debt_base=health.debt_base - debt.value_base,
            collateral_price=marks.price(collateral.reserve_id, account.group),
            debt_price=marks.price(debt.reserve_id, account.group),
            threshold_bps=threshold_bps,
        )


def _first_step(pair: Pair, rest: _Rest) -> tuple[Amounts, Pair]:
    """The most to repay first that surely leaves the account unsafe, and the pair it leaves; nothing where one step
    does as well.

    Balances are kept in scaled units, so what is left is known to a few raw units: the account is judged by the most
    collateral and the least debt it may have then, and the second step finds at least what the pair says.
    """
    slack = 2 * (-(-max(pair.debt_index_ray, pair.collateral_index_ray) // RAY) + 1)

    def left(repay_raw: int) -> tuple[Amounts, Pair, int]:
        moved = pair.amounts(repay_raw)
        debt_raw = pair.debt_raw - moved.repay_raw - slack
        collateral_raw = pair.collateral_raw - moved.seize_raw - moved.fee_raw
        held = collateral_base(collateral_raw + slack, rest.collateral_price, pair.collateral_unit)
        debt = rest.debt_base + debt_base(pair.rules, max(debt_raw, 0), rest.debt_price, pair.debt_unit)
        weighted = rest.weighted_base_bps + held * rest.threshold_bps
        after = replace(
            pair,
            health_factor_wad=health_factor_wad(pair.rules, rest.collateral_base + held, weighted, debt)
            or WAD,
            total_debt_base=debt,
            debt_raw=debt_raw,
            collateral_raw=collateral_raw - slack,
            liquidity_raw=None if pair.liquidity_raw is None else pair.liquidity_raw - moved.seize_raw,
        )
        return moved, after, debt * BPS - weighted

    least_raw, most_raw = pair.min_raw, pair.cap_raw
    if most_raw >= pair.debt_raw or least_raw >= most_raw:
        return _NOTHING, pair
    # what is missing to safety is linear in what is repaid, but for rounding
    missing, too_much = left(least_raw)[2], left(most_raw)[2]
    if missing <= 0:
        return _NOTHING, pair
    raw = most_raw if too_much > 0 else least_raw + (most_raw - least_raw) * missing // (missing - too_much)
    for shift in _STEPS_BACK:
        moved, after, _ = left(raw - (raw >> shift))
        if after.health_factor_wad < WAD:
            break
    else:
        return _NOTHING, pair
    last = after.amounts(after.cap_raw)
    enough = min(after.debt_raw, after.collateral_raw - last.seize_raw - last.fee_raw) > 0
    return (moved, after) if enough and not pair.leaves_dust(moved) else (_NOTHING, pair)


def _forbidden(marks: AaveMarks, health_factor_wad: int, owed: Reserve, held: Reserve) -> Refusal | None:
    """Why the pool would reject this pair whatever the amount (ValidationLogic.validateLiquidationCall)."""
    for reserve in (held, owed):
        config = marks.state(reserve.id).config
        if not config.active:
            return Refusal("options", "reserve_inactive", {"token": reserve.token.symbol})
        if config.paused:
            return Refusal("options", "reserve_paused", {"token": reserve.token.symbol})
        if reserve.grace_until_s >= marks.timestamp_s:
            return Refusal(
                "options", "grace_period", {"token": reserve.token.symbol, "until_s": reserve.grace_until_s}
            )
    if not marks.sentinel_allows and health_factor_wad >= SENTINEL_HEALTH_FACTOR_WAD:
        return Refusal("options", "sentinel", {"health_factor_wad": str(health_factor_wad)})
    return None


def _offered_raw(option: Option, repay_raw: int) -> int:
    """The amount the call carries: at the maximum a little more than what is owed, else the amount itself."""
    choice: _Choice = option.detail
    if choice.takes_all and repay_raw >= option.max_repay_raw:
        return choice.pair.offer_raw
    return min(repay_raw, option.max_repay_raw) - choice.first.repay_raw
