"""The reference perpetual-futures exchange: isolated and cross margin, cash and inherited payouts, one house."""

from keeper.protocols.reference_perp.adapter import ReferencePerp, ReferencePerpConfig
from keeper.protocols.reference_perp.health import Account
from keeper.protocols.reference_perp.options import Cash, Takeover

__all__ = ["Account", "Cash", "ReferencePerp", "ReferencePerpConfig", "Takeover"]
