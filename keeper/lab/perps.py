"""A world with perps: Perp Curie and Synthetix V2x beside everything else, ready in a moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keeper.lab import curie, synthetix
from keeper.lab.curie import Curie, deploy_curie
from keeper.lab.node import Node
from keeper.lab.synthetix import Synthetix, deploy_synthetix
from keeper.lab.world import Addition, Clock, Lab, World, open_lab, prepare, read_addition


@dataclass(frozen=True, slots=True)
class Perps:
    """Where each exchange is."""

    curie: Curie
    synthetix: Synthetix

    @property
    def tables(self) -> str:
        """Their part of `keeper.toml`."""
        return curie.table(self.curie) + synthetix.table(self.synthetix)


async def _build(node: Node, world: World) -> tuple[World, Perps]:
    exchange = await deploy_curie(node, world)
    markets, world = await deploy_synthetix(node, world)
    return world, Perps(exchange, markets)


PERPS: Final = Addition(Perps, ("curie", "perps", "synthetix"), _build)


async def open_perps_lab(clock: Clock = "wall") -> tuple[Lab, Perps]:
    """A running world with perps, as `open_lab` opens one."""
    perps = read_addition(await prepare(addition=PERPS), PERPS)
    return await open_lab(addition=PERPS, clock=clock), perps
