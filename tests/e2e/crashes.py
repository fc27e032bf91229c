"""Random crashes of perps by the daemon's own line: which seeds are played, and the judge's word after each crash."""

from __future__ import annotations

import os

from keeper.lab.judge import judge
from tests.e2e.line import Line

_DEEP_SEEDS = 50  # of two crashes each


def seeds(sample: int) -> list[int]:
    """From 0 on: enough for a hundred crashes in a deep run, else a sample. `KEEPER_SEED=17,23` plays those alone."""
    if "KEEPER_SEED" in os.environ:
        return [int(seed) for seed in os.environ["KEEPER_SEED"].split(",")]
    return list(range(_DEEP_SEEDS if os.environ.get("KEEPER_DEEP") == "1" else sample))


async def judged(line: Line, what: str) -> int:
    """On the chain as it is nothing profitable is left, and everything is booked as it happened.

    `what` names the seed and the crash. How many unhealthy accounts were tried in vain.
    """
    verdict = await judge(line.rig.config)
    assert verdict.ok, f"{what}: {verdict}"
    assert line.ledger.verify() is None and not line.store.open_transactions(), what
    return len(verdict.unhealthy)
