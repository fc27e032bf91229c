"""Ways to liquidate an account: every debt against every collateral, how much of it, and the call that does it.

All amounts are exact as of the marks' timestamp, which is meant to be that of the block the call is included in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keeper.protocols.aave_v3.health import Account, Side
from keeper.protocols.aave_v3.market import POOL, Reserve
from keeper.protocols.aave_v3.marks import AaveMarks
from keeper.protocols.aave_v3.rules import SENTINEL_HEALTH_FACTOR_WAD, Pair
from keeper.types import Address, Health, Option, Outcome, ProtocolCall, Refusal

_LIQUIDATION_CALL: Final = POOL.function("liquidationCall")
LIQUIDATION_CALL_SELECTOR: Final = _LIQUIDATION_CALL.selector


@dataclass(frozen=True, slots=True)
class _Choice:
    """What an option remembers: its exact arithmetic, whether its maximum is all the close factor allows, and whether
    the pool writes the debts off that are left when this collateral is gone (3.3+: it is the account's last).
    """

    pool: Address
    pair: Pair
    takes_all: bool
    writes_off: bool


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
        found += [
            _option(health, health.health_factor_wad, marks, debt, side, alone=len(collateral) == 1)
            for side in collateral
            if debt.amount_raw
        ]
    return found


def outcome_of(option: Option, repay_raw: int) -> Outcome:
    """What the pool would move if the calls of this amount ran at the marks' timestamp, and write off of this debt."""
    choice: _Choice = option.detail
    pair = choice.pair
    moved = pair.amounts(_offered_raw(option, repay_raw))
    emptied = moved.seize_raw + moved.fee_raw >= pair.collateral_raw
    bad_debt_raw = pair.debt_raw - moved.repay_raw if emptied and choice.writes_off else 0
    return Outcome(moved.repay_raw, moved.seize_raw, bad_debt_raw=bad_debt_raw)


def calls_of(option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
    """Pool.liquidationCall, paid in the underlying token.

    The maximum is offered with a basis point of headroom (`Pair.offer_raw`), because debt grows until the call is mined
    and the last second of interest would otherwise leave dust, which the pool forbids since 3.3. The pool takes only
    what is owed, so `approve_raw` is what must be at hand, not what is spent.
    """
    choice: _Choice = option.detail
    offered = _offered_raw(option, repay_raw)
    data = _LIQUIDATION_CALL.encode(
        option.seize_token.address, option.repay_token.address, option.key.account, offered, False
    )
    return [ProtocolCall(choice.pool, option.repay_token.address, offered, data)]


def account_of(calldata: bytes) -> Address | None:
    """The account a Pool.liquidationCall is about; None for anything else."""
    if calldata[:4] != LIQUIDATION_CALL_SELECTOR:
        return None
    _, _, account, _, _ = _LIQUIDATION_CALL.decode_input(calldata)
    return Address(account)


def _option(
    health: Health, health_factor_wad: int, marks: AaveMarks, debt: Side, collateral: Side, *, alone: bool
) -> Option | Refusal:
    market = marks.market
    group = health.detail.group
    owed, held = market.reserve(debt.reserve_id), market.reserve(collateral.reserve_id)
    forbidden = _forbidden(marks, health_factor_wad, owed, held)
    if forbidden:
        return forbidden
    held_state = marks.state(held.id)
    pair = Pair(
        rules=market.rules,
        health_factor_wad=health_factor_wad,
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
    whole = pair.amounts(pair.cap_raw)
    takes_all = pair.pays_out(whole) and not pair.leaves_dust(whole)
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
        max_repay_raw=whole.repay_raw if takes_all else partial_max_raw,
        partial_max_repay_raw=partial_max_raw,
        min_repay_raw=pair.min_raw,
        repay_price_base=pair.debt_price,
        seize_price_base=pair.collateral_price,
        detail=_Choice(market.pool, pair, takes_all, market.rules.close_factor_by_value and alone),
        repay_round=marks.round_of(owed.id, pair.debt_price),
        seize_round=marks.round_of(held.id, pair.collateral_price),
    )


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
    return min(repay_raw, option.max_repay_raw)
