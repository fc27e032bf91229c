"""Morpho Blue 1.0.0: isolated markets of one loan and one collateral each, all in one contract."""

from keeper.protocols.morpho_blue.adapter import MorphoBlue, MorphoBlueConfig

__all__ = ["MorphoBlue", "MorphoBlueConfig"]
