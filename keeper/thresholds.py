"""Where the daemon stops itself, `[limits]` and `[breakers]`, and what every table of the file is made of."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from keeper.types import Address, Wei

# At most 8 decimals (9 for gwei), so that conversion to integers is exact.
Usd = Annotated[Decimal, Field(ge=0, le=10**12, decimal_places=8)]
Gwei = Annotated[Decimal, Field(gt=0, le=10**9, decimal_places=9)]


class Section(BaseModel):
    """A table of the file: frozen, and closed to keys it does not name."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Limits(Section):
    """`[limits]`: where the daemon stops itself."""

    max_fee_gwei: Gwei = Field(Decimal(200), description="Highest fee per gas that is ever signed, in gwei.")
    # at least what a stop may take at a quarter above the highest fee, where bytes are charged as gas
    max_gas_limit: int = Field(
        10_000_000,
        ge=1_600_000,
        le=2**24,
        description="Highest gas limit of a liquidation that is ever signed.",
    )
    max_gas_spend_wei_per_hour: int = Field(
        10**17, gt=0, description="Most gas money per hour in wei, in-flight transactions included."
    )
    max_loss_usd_per_day: Usd = Field(
        Decimal(50), description="Most USD lost per day; gas of reverts and lost races counts."
    )
    bad_debt_budget_usd_per_day: Usd = Field(
        Decimal(0),
        description="Of that, most USD a day that liquidating bad debt may cost on purpose; 0: nothing.",
    )
    max_consecutive_reverts: int = Field(3, ge=1, description="Reverts in a row after which nothing is sent.")
    max_repay_usd: Usd = Field(Decimal(10**6), description="Largest debt repaid by one liquidation, in USD.")
    max_accounts: int = Field(
        16, ge=1, le=64, description="Most accounts liquidated by one transaction; 1: each goes alone."
    )
    deny_accounts: frozenset[Address] = Field(frozenset(), description="Accounts never liquidated.")

    @property
    def max_fee_wei(self) -> Wei:
        """The highest fee per gas in wei, exactly."""
        return Wei(scaled(self.max_fee_gwei, 9))

    @property
    def max_loss_usd_e8_per_day(self) -> int:
        """The most USD lost per day with 8 decimals, exactly."""
        return scaled(self.max_loss_usd_per_day, 8)

    @property
    def bad_debt_budget_usd_e8_per_day(self) -> int:
        """The most USD lost to bad debt per day with 8 decimals, exactly."""
        return scaled(self.bad_debt_budget_usd_per_day, 8)

    @property
    def max_repay_usd_e8(self) -> int:
        """The largest repaid debt in USD with 8 decimals, exactly."""
        return scaled(self.max_repay_usd, 8)

    @field_validator("bad_debt_budget_usd_per_day")
    @classmethod
    def _within_the_loss(cls, budget_usd: Decimal, info: ValidationInfo) -> Decimal:
        most_usd = info.data.get("max_loss_usd_per_day", budget_usd)
        if budget_usd > most_usd:
            raise ValueError(
                f"it is above max_loss_usd_per_day ({most_usd}), of which it is a part; lower it, or raise that."
            )
        return budget_usd


class Breakers(Section):
    """`[breakers]`: when the daemon stops itself besides the limits; `keeper breakers list` shows what tripped."""

    max_exposure_usd: Usd = Field(Decimal(3 * 10**6), description="Most debt in flight per protocol, in USD.")
    max_deviation_bps: int = Field(
        500,
        ge=1,
        description="How far the venue's price of a token may be from the protocol's, in basis points.",
    )
    volatility_window_s: int = Field(
        300, ge=1, le=86_400, description="Prices are held against those of so many seconds."
    )
    volatility_smaller_bps: int = Field(
        1500, ge=1, description="A token that moved so far within the window is liquidated in smaller sizes."
    )
    volatility_smaller_percent: int = Field(
        25, ge=1, le=100, description="How much of limits.max_repay_usd a liquidation may then repay."
    )
    volatility_stop_bps: int = Field(
        3500, ge=1, description="A token that moved so far within the window is not liquidated at all."
    )
    calm_s: int = Field(
        600, ge=1, description="How long moves and deviations must stay below half before they count as over."
    )
    disagreement_window_s: int = Field(
        3600,
        ge=1,
        description="As many nodes as make a quorum that were contradicted within it stop everything.",
    )
    max_reorg_depth: int = Field(
        10, ge=0, description="A reorganisation of more blocks stops everything until a person looked."
    )
    min_transactions: int = Field(
        2, ge=0, description="Nothing new is sent when the operator cannot pay for so many; 0: never."
    )
    recheck_code_blocks: int = Field(
        300, ge=1, description="Every watched contract's code is read again within so many blocks."
    )

    @property
    def max_exposure_usd_e8(self) -> int:
        """The most debt in flight in USD with 8 decimals, exactly."""
        return scaled(self.max_exposure_usd, 8)

    @field_validator("volatility_stop_bps")
    @classmethod
    def _smaller_first(cls, stop_bps: int, info: ValidationInfo) -> int:
        smaller_bps = info.data.get("volatility_smaller_bps", 0)
        if stop_bps < smaller_bps:
            raise ValueError(f"it is below volatility_smaller_bps ({smaller_bps}); sizes get smaller first.")
        return stop_bps


def scaled(amount: Decimal, decimals: int) -> int:
    """An amount as an integer with so many decimals, exactly."""
    return int(amount.scaleb(decimals))
