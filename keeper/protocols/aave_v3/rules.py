"""Aave V3's arithmetic, exactly, for every pool revision: what each version rounds, caps and forbids.

Versions differ in small things that decide whether a liquidation is possible or how much it moves. They are named
once, in `Rules`, and nothing outside this module compares version numbers. Sources: GenericLogic, LiquidationLogic,
ValidationLogic, ReserveLogic and MathUtils of aave-v3-core 1.19.3 (3.0.x) and aave-v3-origin 3.1 to 3.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keeper.fixed import (
    BPS,
    RAY,
    SECONDS_PER_YEAR,
    mul_div_down,
    mul_div_up,
    percent_div_half_up,
    percent_mul_half_up,
    ray_mul_down,
    ray_mul_half_up,
    ray_mul_up,
    wad_div_half_up,
)

CLOSE_FACTOR_BPS: Final = 5_000  # LiquidationLogic.DEFAULT_LIQUIDATION_CLOSE_FACTOR
FULL_CLOSE_HEALTH_FACTOR_WAD: Final = 95 * 10**16  # LiquidationLogic.CLOSE_FACTOR_HF_THRESHOLD
SENTINEL_HEALTH_FACTOR_WAD: Final = 95 * 10**16  # ValidationLogic.MINIMUM_HEALTH_FACTOR_LIQUIDATION_THRESHOLD
FULL_CLOSE_BASE: Final = 2_000 * 10**8  # LiquidationLogic.MIN_BASE_MAX_CLOSE_FACTOR_THRESHOLD (3.3+)
LEFTOVER_BASE: Final = 1_000 * 10**8  # LiquidationLogic.MIN_LEFTOVER_BASE (3.3+)

# A whole position grows by interest between the trial and the block that includes it; what is offered must still
# clear it there. One basis point is an hour at 88 % a year, and the pool takes only what is owed.
HEADROOM_BPS: Final = 1


@dataclass(frozen=True, slots=True)
class Rules:
    """What one version of the pool does differently.

    stable_debt            stable-rate debt exists (until 3.1)
    category_emode         a reserve is in one e-mode category, which may have its own price (until 3.1)
    grace_period           a reserve can forbid liquidations for a while (3.1+)
    virtual_balance        liquidity is counted by the pool, not read from the token (3.1+)
    virtual_balance_opt_in a reserve's configuration says whether the pool counts (3.1 to 3.3)
    close_factor_by_value  the close factor is of the whole debt, small sides close fully, dust is forbidden (3.3+)
    taylor_interest        compound interest is x + x²/2 + x³/6 instead of the binomial terms (3.4+)
    directed_rounding      balances round down, debts up, and the health factor is not cut to whole bps (3.5+)
    zero_threshold_counts  collateral with liquidation threshold 0 counts and can be seized (3.6+)
    against_liquidator     seized collateral rounds down and the protocol's fee up (3.7+)
    sentinel               the price oracle sentinel is asked (until 3.6)
    """

    version: str
    stable_debt: bool = False
    category_emode: bool = False
    grace_period: bool = True
    virtual_balance: bool = True
    virtual_balance_opt_in: bool = False
    close_factor_by_value: bool = True
    taylor_interest: bool = True
    directed_rounding: bool = True
    zero_threshold_counts: bool = True
    against_liquidator: bool = False
    sentinel: bool = True


_V35 = Rules("3.5", zero_threshold_counts=False)
_V34 = Rules("3.4", directed_rounding=False, zero_threshold_counts=False)
_V33 = Rules(
    "3.3",
    virtual_balance_opt_in=True,
    taylor_interest=False,
    directed_rounding=False,
    zero_threshold_counts=False,
)
_V32 = Rules(
    "3.2",
    virtual_balance_opt_in=True,
    close_factor_by_value=False,
    taylor_interest=False,
    directed_rounding=False,
    zero_threshold_counts=False,
)
_V31 = Rules(
    "3.1",
    stable_debt=True,
    category_emode=True,
    virtual_balance_opt_in=True,
    close_factor_by_value=False,
    taylor_interest=False,
    directed_rounding=False,
    zero_threshold_counts=False,
)
_V30 = Rules(
    "3.0",
    stable_debt=True,
    category_emode=True,
    grace_period=False,
    virtual_balance=False,
    close_factor_by_value=False,
    taylor_interest=False,
    directed_rounding=False,
    zero_threshold_counts=False,
)

# Pool.POOL_REVISION of each release; 3.0.0 to 3.0.2 were deployed as 1 to 3, 3.2.0 and 3.2.1 as 5 and 6.
_BY_REVISION: Final[dict[int, Rules]] = {
    1: _V30,
    2: _V30,
    3: _V30,
    4: _V31,
    5: _V32,
    6: _V32,
    7: _V33,
    8: _V34,
    9: _V35,
    10: Rules("3.6"),
    11: Rules("3.7", against_liquidator=True, sentinel=False),
}
NEWEST_REVISION: Final = max(_BY_REVISION)


def rules_of(revision: int) -> tuple[Rules, bool]:
    """The rules of a pool revision and whether they are known; an unknown one runs under the newest known rules."""
    known = revision in _BY_REVISION
    return _BY_REVISION[revision if known else NEWEST_REVISION], known


# --- interest --------------------------------------------------------------------------------------------------------


def linear_interest_ray(rate_ray: int, elapsed_s: int) -> int:
    """Growth of the liquidity index (MathUtils.calculateLinearInterest)."""
    return RAY + rate_ray * elapsed_s // SECONDS_PER_YEAR


def compounded_interest_ray(rules: Rules, rate_ray: int, elapsed_s: int) -> int:
    """Growth of the variable borrow index (MathUtils.calculateCompoundedInterest)."""
    if elapsed_s == 0:
        return RAY
    linear = rate_ray * elapsed_s // SECONDS_PER_YEAR
    if rules.taylor_interest:
        return RAY + linear + ray_mul_half_up(linear, linear // 2 + ray_mul_half_up(linear, linear // 6))
    square = ray_mul_half_up(rate_ray, rate_ray) // (SECONDS_PER_YEAR * SECONDS_PER_YEAR)
    cube = ray_mul_half_up(square, rate_ray) // SECONDS_PER_YEAR
    second = elapsed_s * (elapsed_s - 1) * square // 2
    third = elapsed_s * (elapsed_s - 1) * max(elapsed_s - 2, 0) * cube // 6
    return RAY + linear + second + third


def liquidity_index_ray(index_ray: int, rate_ray: int, elapsed_s: int) -> int:
    """The liquidity index `elapsed_s` after its last update (ReserveLogic.getNormalizedIncome)."""
    return (
        index_ray if elapsed_s == 0 else ray_mul_half_up(linear_interest_ray(rate_ray, elapsed_s), index_ray)
    )


def debt_index_ray(rules: Rules, index_ray: int, rate_ray: int, elapsed_s: int) -> int:
    """The variable borrow index `elapsed_s` after its last update (ReserveLogic.getNormalizedDebt)."""
    if elapsed_s == 0:
        return index_ray
    return ray_mul_half_up(compounded_interest_ray(rules, rate_ray, elapsed_s), index_ray)


# --- an account ------------------------------------------------------------------------------------------------------


def collateral_raw(rules: Rules, scaled: int, index_ray: int) -> int:
    """An aToken balance (3.5+: TokenMath.getATokenBalance)."""
    return ray_mul_down(scaled, index_ray) if rules.directed_rounding else ray_mul_half_up(scaled, index_ray)


def debt_raw(rules: Rules, scaled: int, index_ray: int) -> int:
    """A variable debt balance (3.5+: TokenMath.getVTokenBalance)."""
    return ray_mul_up(scaled, index_ray) if rules.directed_rounding else ray_mul_half_up(scaled, index_ray)


def collateral_base(amount_raw: int, price: int, unit: int) -> int:
    """Collateral in the base currency, rounded down (GenericLogic._getUserBalanceInBaseCurrency)."""
    return mul_div_down(amount_raw, price, unit)


def debt_base(rules: Rules, amount_raw: int, price: int, unit: int) -> int:
    """Debt in the base currency (GenericLogic._getUserDebtInBaseCurrency)."""
    return (
        mul_div_up(amount_raw, price, unit)
        if rules.directed_rounding
        else mul_div_down(amount_raw, price, unit)
    )


def health_factor_wad(rules: Rules, collateral: int, weighted: int, debt: int) -> int | None:
    """The health factor, None without debt (GenericLogic.calculateUserAccountData).

    `collateral` and `debt` are in the base currency; `weighted` is Σ collateral · threshold in base currency · bps.
    Until 3.4 the average threshold is cut to whole basis points first.
    """
    if debt == 0:
        return None
    if rules.directed_rounding:
        return wad_div_half_up(weighted, debt) // BPS
    average_bps = weighted // collateral if collateral else 0
    return wad_div_half_up(percent_mul_half_up(collateral, average_bps), debt)


# --- a liquidation ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Amounts:
    """What one liquidation call moves, in raw units: paid, received, and kept by the protocol as its fee."""

    repay_raw: int
    seize_raw: int
    fee_raw: int


@dataclass(frozen=True, slots=True)
class Pair:
    """One debt and one collateral of a liquidatable account, as of one timestamp.

    `bonus_bps` is Aave's own figure (10 500 pays 5 % more); `fee_bps` is the protocol's share of the bonus.
    `liquidity_raw` is what the collateral reserve can pay out, None where the pool does not count it.
    """

    rules: Rules
    health_factor_wad: int
    total_debt_base: int
    debt_raw: int
    debt_price: int
    debt_unit: int
    debt_index_ray: int
    collateral_raw: int
    collateral_price: int
    collateral_unit: int
    collateral_index_ray: int
    bonus_bps: int
    fee_bps: int
    liquidity_raw: int | None

    @property
    def cap_raw(self) -> int:
        """The most debt the close factor lets one call repay (LiquidationLogic.executeLiquidationCall)."""
        half = self.health_factor_wad > FULL_CLOSE_HEALTH_FACTOR_WAD
        if not self.rules.close_factor_by_value:
            return percent_mul_half_up(self.debt_raw, CLOSE_FACTOR_BPS if half else BPS)
        owed = debt_base(self.rules, self.debt_raw, self.debt_price, self.debt_unit)
        held = collateral_base(self.collateral_raw, self.collateral_price, self.collateral_unit)
        if not half or held < FULL_CLOSE_BASE or owed < FULL_CLOSE_BASE:
            return self.debt_raw
        allowed_base = percent_mul_half_up(self.total_debt_base, CLOSE_FACTOR_BPS)
        return (
            self.debt_raw
            if owed <= allowed_base
            else mul_div_down(allowed_base, self.debt_unit, self.debt_price)
        )

    @property
    def offer_raw(self) -> int:
        """What to offer for all that one call may take, so that a block a little later still takes all of it.

        Interest grows both sides meanwhile. Where the collateral runs out first, the offer must also buy more of it
        than there is, in whole raw units, or the pool would see a unit left behind; it takes no more than is owed.
        """
        whole = self.amounts(self.cap_raw)
        offer = with_headroom_raw(whole.repay_raw)
        if whole.seize_raw + whole.fee_raw < self.collateral_raw:
            return offer
        plain = mul_div_up(with_headroom_raw(self.collateral_raw), BPS, self.bonus_bps) + 1
        buying = mul_div_up(
            plain * self.collateral_price, self.debt_unit, self.debt_price * self.collateral_unit
        )
        return max(offer, buying)

    def amounts(self, debt_to_cover_raw: int) -> Amounts:
        """What the pool moves when offered this much (LiquidationLogic._calculateAvailableCollateralToLiquidate)."""
        rules = self.rules
        repay = min(debt_to_cover_raw, self.cap_raw)
        plain = repay * self.debt_price * self.collateral_unit // (self.collateral_price * self.debt_unit)
        taken = self._with_bonus(plain)
        if taken > self.collateral_raw:
            taken = self.collateral_raw
            worth = taken * self.collateral_price * self.debt_unit // (self.debt_price * self.collateral_unit)
            repay = (
                mul_div_up(worth, BPS, self.bonus_bps)
                if rules.directed_rounding
                else percent_div_half_up(worth, self.bonus_bps)
            )
        fee = 0
        if self.fee_bps and rules.against_liquidator:
            fee = mul_div_up(taken - mul_div_down(taken, BPS, self.bonus_bps), self.fee_bps, BPS)
        elif self.fee_bps:
            fee = percent_mul_half_up(taken - percent_div_half_up(taken, self.bonus_bps), self.fee_bps)
        return Amounts(repay, taken - fee, fee)

    def leaves_dust(self, moved: Amounts) -> bool:
        """Whether both sides remain and one is too small to leave (MustNotLeaveDust, 3.3+)."""
        if not self.rules.close_factor_by_value:
            return False
        debt_left = self.debt_raw - moved.repay_raw
        collateral_left = self.collateral_raw - moved.seize_raw - moved.fee_raw
        if debt_left <= 0 or collateral_left <= 0:
            return False
        return (
            debt_base(self.rules, debt_left, self.debt_price, self.debt_unit) < LEFTOVER_BASE
            or collateral_base(collateral_left, self.collateral_price, self.collateral_unit) < LEFTOVER_BASE
        )

    def pays_out(self, moved: Amounts) -> bool:
        """Whether the collateral reserve holds enough of the token to hand over."""
        return self.liquidity_raw is None or moved.seize_raw <= self.liquidity_raw

    @property
    def partial_max_raw(self) -> int:
        """The most to repay that leaves enough on both sides and that the collateral reserve can pay out; ≥ 0."""
        most = self.cap_raw
        take = None if self.liquidity_raw is None else self.liquidity_raw
        if self.rules.close_factor_by_value:
            if self.rules.directed_rounding:
                keep = (LEFTOVER_BASE - 1) * self.debt_unit // self.debt_price + 1
            else:
                keep = mul_div_up(LEFTOVER_BASE, self.debt_unit, self.debt_price)
            most = min(most, self.debt_raw - keep)
            spare = self.collateral_raw - mul_div_up(
                LEFTOVER_BASE, self.collateral_unit, self.collateral_price
            )
            take = spare if take is None else min(take, spare)
        if take is not None:
            most = min(most, self._repay_taking_at_most(take))
        return max(most, 0)

    @property
    def min_raw(self) -> int:
        """A repayment that surely burns at least one scaled unit on both sides (InvalidBurnAmount otherwise).

        The seized amount is at least the plain amount less two units of rounding, so three spare units suffice.
        """
        seize = -(-self.collateral_index_ray // RAY) + 3
        repay = mul_div_up(
            seize * self.collateral_price, self.debt_unit, self.debt_price * self.collateral_unit
        )
        return max(repay, -(-self.debt_index_ray // RAY) + 1)

    def _with_bonus(self, plain: int) -> int:
        if self.rules.against_liquidator:
            return mul_div_down(plain, self.bonus_bps, BPS)
        return percent_mul_half_up(plain, self.bonus_bps)

    def _repay_taking_at_most(self, take: int) -> int:
        """The inverse of `amounts`: the largest repayment that takes no more than `take` of collateral."""
        if take < 0:
            return 0
        slack = 1 if self.rules.against_liquidator else BPS // 2 + 1
        plain = ((take + 1) * BPS - slack) // self.bonus_bps
        return ((plain + 1) * self.collateral_price * self.debt_unit - 1) // (
            self.debt_price * self.collateral_unit
        )


def with_headroom_raw(amount_raw: int) -> int:
    """What to offer so that a whole position is still cleared after some interest; the pool takes only what is owed."""
    return amount_raw + mul_div_up(amount_raw, HEADROOM_BPS, BPS) + 1


def row_threshold(rules: Rules, threshold_bps: int, *, counted: bool) -> float:
    """The threshold a float row is weighted with so that a row's margin never exceeds the contract's.

    Until 3.4 the contract cuts the average threshold to whole basis points, which costs at most one.
    """
    if not counted:
        return 0.0
    return (threshold_bps if rules.directed_rounding else threshold_bps - 1) / BPS
