"""`keeper bench plan`: how fast plans are made, and how good they are.

Random accounts that fell, on Aave and Morpho by turns, in pools of three depths, are planned and compared with every
amount, pair, route and lender tried on the pools' own contracts (`lab/brute_force.py`), and with what is usual: the
largest amount by the best single route.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from random import Random
from statistics import median
from typing import Any, Final

from keeper.lab.bench.machine import machine, spread_ms, versions
from keeper.lab.bench.report import write_plan
from keeper.lab.brute_force import AMOUNTS, Compared, compare
from keeper.lab.unhealthy import DEPTHS, PROTOCOLS, open_ground

LEAST: Final = 0.999  # of the best that was found
_SEED: Final = 6


async def plan(*, cases: int, write: bool = False) -> dict[str, Any]:
    """Plan so many accounts of each depth and protocol; the document of `keeper bench plan --json`."""
    load = [round(each, 2) for each in os.getloadavg()]
    found = await _compared(cases)
    every = [one for some in found.values() for one in some]
    worst = min((_vs_brute_force(one) for one in every if one.best_raw is not None), default=None)
    figures: dict[str, Any] = {
        "plans_per_second": round(len(every) / sum(one.plan_s for one in every), 1),
        "plan_ms": spread_ms(one.plan_s for one in every),
        "vs_brute_force_worst": None if worst is None else round(worst, 6),
        **{f"gain_{depth}_median": _gain(some) for depth, some in found.items()},
    }
    failures = (
        [] if worst is None or worst >= LEAST else [f"a plan nets {worst:.4%} of the best that was found"]
    )
    below = sum(_is_below_largest(one) for one in every)
    failures += [f"{below} plans net less than a largest amount by a single route"] if below else []
    document = {
        "schema": 1,
        "name": "plan",
        "ok": not failures,
        "failures": failures,
        "cases": len(every),
        "planned": sum(one.net_raw is not None for one in every),
        "only_planned": sum(one.net_raw is not None and one.largest_raw is None for one in every),
        "amounts": AMOUNTS,
        "swaps": sum(one.swaps for one in every),
        "machine": {**machine(), "load": load},
        "versions": versions(),
        "figures": figures,
        "ratios": {
            "brute_force": round(sum(one.brute_s for one in every) / sum(one.plan_s for one in every), 1)
        },
    }
    if write:
        write_plan(document)
    return document


async def _compared(cases: int) -> dict[str, list[Compared]]:
    """By depth."""
    chance = Random(_SEED)
    found: dict[str, list[Compared]] = {depth: [] for depth in DEPTHS}
    async with open_ground() as ground:
        for _ in range(cases):
            for depth in DEPTHS:
                for protocol in PROTOCOLS:
                    async with ground.case(protocol, depth, chance) as case:
                        found[depth].append(await compare(case))
    return found


def _vs_brute_force(one: Compared) -> float:
    """What the plan nets of the best that was found; more than 1 where sharing out brings more; 0 without a plan."""
    return (one.net_raw or 0) / (one.best_raw or 1)


def _gain(some: Sequence[Compared]) -> float | None:
    """The median, as a fraction, over what the largest amount nets by single routes, where that nets anything."""
    gains = [one.net_raw / one.largest_raw - 1 for one in some if one.net_raw and one.largest_raw]
    return round(median(gains), 4) if gains else None


def _is_below_largest(one: Compared) -> bool:
    return one.largest_raw is not None and (one.net_raw or 0) < one.largest_raw
