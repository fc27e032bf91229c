"""Aave V3, every version from 3.0 to 3.7."""

from keeper.protocols.aave_v3.adapter import LIQUIDATION_CALL_SELECTOR, AaveV3, AaveV3Config, Account, Side
from keeper.protocols.aave_v3.flash import AaveFlash

__all__ = ["LIQUIDATION_CALL_SELECTOR", "AaveFlash", "AaveV3", "AaveV3Config", "Account", "Side"]
