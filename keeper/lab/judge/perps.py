"""The most that liquidating a trader could have netted, by trying; what is common to all perps.

A protocol's file finds the traders it may liquidate and runs every way to do so on the fork. What such a way pays is
then sold and judged as any liquidation's proceeds are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from keeper.lab.judge.evidence import Evidence
from keeper.lab.judge.point import Point
from keeper.lab.judge.scene import Scene
from keeper.lab.judge.selling import Attempt, best_of, best_of_each, quoted, reason_of
from keeper.lab.judge.verdict import Amount, Unhealthy
from keeper.types import Address, Token


@dataclass(frozen=True, slots=True, eq=False)
class Trader:
    """An account that its market calls unhealthy; `tokens` are all that liquidating it could move."""

    market: Perps
    address: Address
    health_factor_wad: int | None
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Ways:
    """Every way to liquidate a trader that ran, and `detail` of them; `tried` counts all.

    `obstacle` is the reason, and more of it, where there is none, or none whose proceeds can be sold.
    """

    points: tuple[Point, ...]
    obstacle: tuple[str, str]
    detail: str = ""
    tried: int = 0


class Perps(Protocol):
    """One market or exchange of perps."""

    @property
    def name(self) -> str:
        """Its configured name, which is its pause scope."""
        ...

    async def traders(self, evidence: Evidence) -> tuple[int, list[Trader]]:
        """How many accounts have a position, and those of them that may be liquidated."""
        ...

    async def ways(self, scene: Scene, trader: Trader) -> Ways:
        """Try every way to liquidate a trader."""
        ...


async def judge_traders(
    scene: Scene, traders: Sequence[Trader], tolerance_usd_e8: int
) -> tuple[list[Unhealthy], int, int]:
    """The best found for each trader and what that says of it; how many amounts were tried, how many run to the end."""
    found = await asyncio.gather(*(trader.market.ways(scene, trader) for trader in traders))
    tried = [await quoted(scene, [point for point in ways.points if _priced(scene, point)]) for ways in found]
    bests, runs = await best_of_each(scene, tried)
    rows = [
        _unhealthy(scene, trader, ways, best, tolerance_usd_e8)
        for trader, ways, best in zip(traders, found, bests, strict=True)
    ]
    return rows, sum(ways.tried for ways in found), runs


def _unhealthy(
    scene: Scene, trader: Trader, ways: Ways, best: Attempt | None, tolerance_usd_e8: int
) -> Unhealthy:
    if best is None:
        shown, (reason, detail) = None, _obstacle(scene, ways)
    else:
        shown, reason, detail = best_of(scene, best), reason_of(scene, best, tolerance_usd_e8), ways.detail
    return Unhealthy(trader.market.name, trader.address, trader.health_factor_wad, shown, reason, detail)


def _obstacle(scene: Scene, ways: Ways) -> tuple[str, str]:
    """Why no way came to anything; of takeovers the largest tells."""
    priced = [point for point in ways.points if _priced(scene, point)]
    if ways.points and not priced:
        return "no_price", "the Liquidator has no fresh feed for a token of it"
    takeovers = [point for point in priced if point.loan and point.debt == point.collateral]
    if not takeovers:
        return ways.obstacle
    point = max(takeovers, key=lambda each: each.repaid_raw)
    if point.seized_raw > point.owed_raw:
        return "no_route", f"{point.collateral.symbol} cannot be sold"
    back, owed = Amount(point.collateral, point.seized_raw), Amount(point.debt, point.owed_raw)
    return "losing_takeover", f"{back} would come back and {owed} be owed"


def _priced(scene: Scene, point: Point) -> bool:
    return scene.priced(point.debt, point.collateral)
