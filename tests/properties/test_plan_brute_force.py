"""Plans against brute force on real pools: hundreds of amounts of every pair, by every route and every lender, each
swap priced by the pools' own contracts. The plan nets at least nearly the best of them, and its own legs are priced so
as well.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import AsyncIterator
from random import Random
from statistics import median
from typing import Final

import pytest

from keeper.fixed import BPS
from keeper.lab.brute_force import compare
from keeper.lab.unhealthy import DEPTHS, PROTOCOLS, Ground, open_ground
from keeper.types import Plan
from tests.conftest import Count

DEEP: Final = os.environ.get("KEEPER_DEEP") == "1"
CASES: Final = 500 if DEEP else 3  # of each protocol
SEED: Final = int(os.environ.get("KEEPER_SEED", "6"))
_LEAST_GAIN: Final = 0.05  # in thin pools
_WORST: Final = 1_000  # the plan may net so much less than the best: one part in


@pytest.fixture(scope="module")
async def ground() -> AsyncIterator[Ground]:
    """Both protocols on one lab."""
    async with open_ground() as opened:
        yield opened


@pytest.mark.deep
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_plan_nets_what_brute_force_nets(ground: Ground, protocol: str, count: Count) -> None:
    """No amount, pair, route or lender nets a thousandth more than the plan, no largest amount by single routes nets
    more, and no plan nets less than the minimum; where none is made nothing passes.
    """
    chance = Random(f"{protocol} {SEED}")
    gains: dict[str, list[float]] = defaultdict(list)
    planned = only_planned = swaps = 0
    for number in range(CASES):
        depth = list(DEPTHS)[number % len(DEPTHS)]
        async with ground.case(protocol, depth, chance) as case:
            found = await compare(case)
            swaps += found.swaps
            if not isinstance(found.answer, Plan):
                assert found.best_raw is None, (number, depth, found)
                continue
            net_raw = found.answer.expected_profit_raw - found.answer.gas_cost_raw
            assert net_raw >= case.ctx.min_profit_raw > 0
            assert found.best_raw is None or found.best_raw * (_WORST - 1) <= net_raw * _WORST, (
                number,
                depth,
                found,
            )
            assert found.largest_raw is None or found.largest_raw <= net_raw, (number, depth, found)
            planned += 1
            if found.largest_raw:
                gains[depth].append(net_raw / found.largest_raw - 1)
            else:
                only_planned += 1
    count("plans against brute force", planned)
    count("plans where no largest amount passes", only_planned)
    count("swaps that brute force asked pools for", swaps)
    for depth, some in gains.items():
        count(f"basis points gained in {depth} pools (median, {protocol})", int(median(some) * BPS))
    assert planned >= CASES // 2
    # what it is for: where price impact eats the bonus, the largest amount by one route leaves money behind
    assert not DEEP or median(gains["thin"]) >= _LEAST_GAIN
