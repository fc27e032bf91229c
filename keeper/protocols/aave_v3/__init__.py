"""Aave V3, every version from 3.0 to 3.7."""

from keeper.protocols.aave_v3.adapter import AaveV3, AaveV3Config
from keeper.protocols.aave_v3.flash import AaveFlash
from keeper.protocols.aave_v3.health import Account, Side
from keeper.protocols.aave_v3.options import LIQUIDATION_CALL_SELECTOR

__all__ = ["LIQUIDATION_CALL_SELECTOR", "AaveFlash", "AaveV3", "AaveV3Config", "Account", "Side"]
