"""Synthetix V2x perps (PerpsV2): isolated margin, velocity funding, liquidation in two steps for a reward in sUSD."""

from keeper.protocols.synthetix_v2_perps.adapter import SynthetixV2Perps, SynthetixV2PerpsConfig
from keeper.protocols.synthetix_v2_perps.health import Account
from keeper.protocols.synthetix_v2_perps.options import FLAG_SELECTOR, LIQUIDATE_SELECTOR, Step

__all__ = [
    "FLAG_SELECTOR",
    "LIQUIDATE_SELECTOR",
    "Account",
    "Step",
    "SynthetixV2Perps",
    "SynthetixV2PerpsConfig",
]
