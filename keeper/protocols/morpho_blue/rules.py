"""Morpho Blue's own arithmetic, step by step as the contract rounds it (`Morpho.sol` 1.0.0 and its libraries)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keeper.fixed import BPS, WAD, mul_div_down, mul_div_up

PRICE_SCALE: Final = 10**36  # an oracle tells raw units of the loan for 10^36 raw units of collateral
MAX_UINT128: Final = 2**128 - 1
_VIRTUAL_SHARES: Final = 10**6
_VIRTUAL_ASSETS: Final = 1
_CURSOR_WAD: Final = 3 * 10**17
_MOST_INCENTIVE_WAD: Final = 115 * 10**16

# Interest grows a debt between the trial and the block that includes it; what is at hand and what is held must still
# suffice there. One basis point is an hour at 88 % a year.
_HEADROOM_BPS: Final = 1


@dataclass(frozen=True, slots=True)
class Totals:
    """What all accounts of a market have together, as `market(id)` tells it."""

    supply_assets: int
    supply_shares: int
    borrow_assets: int
    borrow_shares: int
    last_update_s: int
    fee_wad: int

    def owed_up(self, shares: int) -> int:
        """What so many borrow shares owe (SharesMathLib.toAssetsUp)."""
        return mul_div_up(shares, self.borrow_assets + _VIRTUAL_ASSETS, self.borrow_shares + _VIRTUAL_SHARES)

    def owed_down(self, shares: int) -> int:
        """The same, rounded down (toAssetsDown)."""
        return mul_div_down(
            shares, self.borrow_assets + _VIRTUAL_ASSETS, self.borrow_shares + _VIRTUAL_SHARES
        )

    def shares_up(self, assets: int) -> int:
        """The borrow shares of so much debt (toSharesUp)."""
        return mul_div_up(assets, self.borrow_shares + _VIRTUAL_SHARES, self.borrow_assets + _VIRTUAL_ASSETS)

    def shares_down(self, assets: int) -> int:
        """The same, rounded down (toSharesDown)."""
        return mul_div_down(
            assets, self.borrow_shares + _VIRTUAL_SHARES, self.borrow_assets + _VIRTUAL_ASSETS
        )

    @property
    def owed_per_share(self) -> float:
        """What a borrow share owes, for rows."""
        return (self.borrow_assets + _VIRTUAL_ASSETS) / (self.borrow_shares + _VIRTUAL_SHARES)


def accrued(totals: Totals, rate_wad: int, timestamp_s: int) -> Totals:
    """A market after `_accrueInterest` at a time, at the rate a second that its rate model then gives."""
    elapsed_s = timestamp_s - totals.last_update_s
    interest = mul_div_down(totals.borrow_assets, _compounded_wad(rate_wad, elapsed_s), WAD)
    supply_assets = totals.supply_assets + interest
    fee_assets = mul_div_down(interest, totals.fee_wad, WAD)
    fee_shares = mul_div_down(
        fee_assets,
        totals.supply_shares + _VIRTUAL_SHARES,
        supply_assets - fee_assets + _VIRTUAL_ASSETS,
    )
    return Totals(
        supply_assets=supply_assets,
        supply_shares=totals.supply_shares + fee_shares,
        borrow_assets=totals.borrow_assets + interest,
        borrow_shares=totals.borrow_shares,
        last_update_s=timestamp_s,
        fee_wad=totals.fee_wad,
    )


def _compounded_wad(rate_wad: int, elapsed_s: int) -> int:
    """e^(rate · time) − 1 by three terms (MathLib.wTaylorCompounded)."""
    first = rate_wad * elapsed_s
    second = mul_div_down(first, first, 2 * WAD)
    return first + second + mul_div_down(second, first, 3 * WAD)


def max_borrow_raw(collateral_raw: int, price: int, lltv_wad: int) -> int:
    """The most that a collateral may owe (`_isHealthy`)."""
    return mul_div_down(mul_div_down(collateral_raw, price, PRICE_SCALE), lltv_wad, WAD)


def incentive_wad(lltv_wad: int) -> int:
    """What is seized for a unit repaid (liquidationIncentiveFactor), 1 included."""
    kept = WAD - mul_div_down(_CURSOR_WAD, WAD - lltv_wad, WAD)
    return min(_MOST_INCENTIVE_WAD, mul_div_down(WAD, WAD, kept))


@dataclass(frozen=True, slots=True)
class Moved:
    """What one `liquidate` moves: paid, received, and written off of what the suppliers are owed."""

    repay_raw: int
    seize_raw: int
    bad_debt_raw: int


@dataclass(frozen=True, slots=True)
class Seizure:
    """An unhealthy account as of one time, and what taking from it does."""

    totals: Totals
    price: int
    incentive_wad: int
    collateral_raw: int
    shares: int

    @property
    def covered(self) -> bool:
        """Whether the collateral pays for the whole debt, with interest for a while to come."""
        return with_headroom_raw(self.seized_by(self.shares)) <= self.collateral_raw

    @property
    def exhausted(self) -> bool:
        """Whether all collateral pays for no more than the debt; what is left of the debt is then written off."""
        return self.shares_for(self.collateral_raw) <= self.shares

    def seized_by(self, shares: int) -> int:
        """The collateral that repaying so many shares takes."""
        worth = mul_div_down(self.totals.owed_down(shares), self.incentive_wad, WAD)
        return mul_div_down(worth, PRICE_SCALE, self.price)

    def shares_for(self, seize_raw: int) -> int:
        """The shares that taking so much collateral repays."""
        worth = mul_div_up(seize_raw, self.price, PRICE_SCALE)
        return self.totals.shares_up(mul_div_up(worth, WAD, self.incentive_wad))

    def repaying(self, shares: int) -> Moved:
        """`liquidate` by repaid shares."""
        return self._moved(shares, self.seized_by(shares))

    def seizing_all(self) -> Moved:
        """`liquidate` by seized assets: the whole collateral."""
        return self._moved(self.shares_for(self.collateral_raw), self.collateral_raw)

    def _moved(self, shares: int, seize_raw: int) -> Moved:
        totals, repay_raw = self.totals, self.totals.owed_up(shares)
        bad_debt_raw = 0
        if seize_raw == self.collateral_raw and shares < self.shares:
            left = Totals(
                supply_assets=totals.supply_assets,
                supply_shares=totals.supply_shares,
                borrow_assets=max(totals.borrow_assets - repay_raw, 0),
                borrow_shares=totals.borrow_shares - shares,
                last_update_s=totals.last_update_s,
                fee_wad=totals.fee_wad,
            )
            bad_debt_raw = min(left.borrow_assets, left.owed_up(self.shares - shares))
        return Moved(repay_raw, seize_raw, bad_debt_raw)


def with_headroom_raw(amount_raw: int) -> int:
    """A little more than an amount that interest grows."""
    return amount_raw + mul_div_up(amount_raw, _HEADROOM_BPS, BPS) + 2


def without_headroom_raw(amount_raw: int) -> int:
    """A little less than an amount that interest must not reach; ≥ 0."""
    return max(amount_raw - mul_div_up(amount_raw, _HEADROOM_BPS, BPS) - 2, 0)
