"""Lending and perp protocols, one adapter each, and the table that finds them by their configured `kind`.

Packages outside this one join through the entry-point group `keeper.protocols`: an entry's name is its kind and its
value a `ProtocolKind`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel

from keeper.errors import ConfigError
from keeper.protocols.aave_v3 import AaveFlash, AaveV3, AaveV3Config
from keeper.seams import Adapter, FlashSource


@dataclass(frozen=True, slots=True)
class ProtocolKind:
    """What a `kind` stands for: the model its table is read with, its adapter, and its flash source if it lends so."""

    model: type[BaseModel]
    adapter: Callable[[Any], Adapter]
    flash: Callable[[Any], FlashSource] | None = None


_BUILT_IN: Mapping[str, ProtocolKind] = {
    "aave-v3": ProtocolKind(AaveV3Config, AaveV3, AaveFlash),
}


def kinds() -> dict[str, ProtocolKind]:
    """Every known kind. Raises `ConfigError` where an installed package redefines one or offers no `ProtocolKind`."""
    found = dict(_BUILT_IN)
    for entry in entry_points(group="keeper.protocols"):
        kind = entry.load()
        if entry.name in found or not isinstance(kind, ProtocolKind):
            raise ConfigError(
                f"The installed protocol {entry.name!r} ({entry.value}) is taken or is no ProtocolKind."
            )
        found[entry.name] = kind
    return found
