"""A world with perps: Perp Curie and Synthetix V2x beside everything else, ready in a moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from keeper.fixed import BPS
from keeper.lab import curie, synthetix
from keeper.lab.actors import account
from keeper.lab.curie import Curie, average_over, deploy_curie, deposit, move_to, part_of, trade
from keeper.lab.node import Node
from keeper.lab.synthetix import PerpSpec, Synthetix, deploy_synthetix, market_of, open_perps
from keeper.lab.world import Addition, Clock, Lab, World, open_lab, prepare, read_addition
from keeper.types import Address


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
    await average_over(node, world.cast, exchange, _AVERAGED_S)
    markets, world = await deploy_synthetix(node, world)
    return world, Perps(exchange, markets)


PERPS: Final = Addition(Perps, ("curie", "perps", "synthetix"), _build)


async def open_perps_lab(clock: Clock = "wall") -> tuple[Lab, Perps]:
    """A running world with perps, as `open_lab` opens one."""
    perps = read_addition(await prepare(addition=PERPS), PERPS)
    return await open_lab(addition=PERPS, clock=clock), perps


# --- people and prices -----------------------------------------------------------------------------------------------

_WHALE: Final = account(9_100_001)
_WHALE_USD: Final = 20_000_000
_AVERAGED_S: Final = 10  # over which the lab's Curie averages its prices: delays are seconds here
_UNIT: Final = 10**18
_FALLEN_USD: Final = {"WETH": 1_880, "WBTC": 37_500}
_SYMBOLS: Final = {"ETH": "WETH", "BTC": "WBTC"}
_FIRST: Final = 2_000
# Longs by size, and margin in basis points of what they are worth.
_CURIE_LONGS: Final = (("WETH", 6, 1_100), ("WETH", 30, 1_250), ("WETH", 15, 3_000), ("WBTC", 1, 1_120))
_SYNTHETIX_LONGS: Final = (("ETH", 10, 700), ("ETH", 60, 900), ("ETH", 20, 2_000), ("BTC", 1, 700))


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who holds what: accounts of Curie, and of each Synthetix market."""

    curie: tuple[Address, ...]
    synthetix: Mapping[str, tuple[Address, ...]]

    def __len__(self) -> int:
        return len(self.curie) + sum(map(len, self.synthetix.values()))


async def open_crowd(lab: Lab, perps: Perps) -> Crowd:
    """Longs on both exchanges, and the whale who moves Curie's own prices."""
    node, world = lab.node, lab.world
    usdc = perps.curie.settlement
    dollars = {_WHALE: _WHALE_USD}
    traders = [account(_FIRST + number) for number in range(len(_CURIE_LONGS))]
    for who, (symbol, size, margin_bps) in zip(traders, _CURIE_LONGS, strict=True):
        dollars[who] = size * world.prices_e8[symbol] * margin_bps // (10**8 * BPS)
    amounts_raw = {who: usd * 10**usdc.decimals for who, usd in dollars.items()}
    await deposit(node, world.cast, perps.curie, usdc, amounts_raw)
    for who, (symbol, size, _) in zip(traders, _CURIE_LONGS, strict=True):
        await trade(node, perps.curie, who, symbol, size * _UNIT)
    holders: dict[str, list[PerpSpec]] = {asset: [] for asset in perps.synthetix.markets}
    for number, (asset, size, margin_bps) in enumerate(_SYNTHETIX_LONGS, _FIRST + len(traders)):
        worth = size * world.prices_e8[_SYMBOLS[asset]] * _UNIT // 10**8
        holders[asset].append(PerpSpec(account(number), worth * margin_bps // BPS, size * _UNIT))
    for asset, specs in holders.items():
        await open_perps(node, world.cast, perps.synthetix, perps.synthetix.markets[asset], specs)
    names = {asset: tuple(spec.account for spec in specs) for asset, specs in holders.items()}
    return Crowd(tuple(traders), names)


async def fall(lab: Lab, perps: Perps) -> None:
    """Let the whale sell on Curie, whose marks follow its own pools as well as the feeds."""
    for symbol, usd in _FALLEN_USD.items():
        await move_to(lab.node, perps.curie, _WHALE, symbol, usd)


async def unhealthy(lab: Lab, perps: Perps, crowd: Crowd) -> int:
    """Accounts that the exchanges themselves call liquidatable."""
    vault, balance = (part_of(lab.node, perps.curie, name) for name in ("Vault", "AccountBalance"))
    scale = 10 ** (18 - perps.curie.settlement.decimals)
    count = 0
    for who in crowd.curie:
        value = int(await vault.read("getAccountValue", who)) * scale
        count += value < int(await balance.read("getMarginRequirementForLiquidation", who))
    for asset, holders in crowd.synthetix.items():
        market = market_of(lab.node, perps.synthetix.markets[asset])
        count += sum([bool(await market.read("canLiquidate", who)) for who in holders])
    return count
