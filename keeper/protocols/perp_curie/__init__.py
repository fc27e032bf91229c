"""Perp Curie (Perpetual Protocol v2), as published in 2.8.4."""

from keeper.protocols.perp_curie.adapter import PerpCurie, PerpCurieConfig

__all__ = ["PerpCurie", "PerpCurieConfig"]
