"""The daemon killed at named points and at random times in a busy run: 240 times with `KEEPER_DEEP=1`, otherwise 10."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keeper.lab.chaos.kills import ANYWHERE, kill
from keeper.lab.chaos.points import POINTS

DEEP = os.environ.get("KEEPER_DEEP") == "1"
SEED = int(os.environ.get("KEEPER_SEED", "1"))
KILLS, AT_EACH_POINT = (240, 10) if DEEP else (10, 0)


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.timeout(3_600)
async def test_a_death_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    """Every death comes; no plan, nonce, entry, transaction, profit or account is lost or doubled by any of them."""
    killed = await kill(SEED, KILLS, tmp_path, print)
    assert killed.kills == KILLS
    assert all(killed.deaths[point] >= AT_EACH_POINT for point in POINTS), killed.deaths
    assert killed.deaths[ANYWHERE] == KILLS // 6
    assert killed.outcomes["settled"] > KILLS // 4, "the run was not busy"
    assert not killed.breaches, "\n".join(map(str, killed.breaches))
    assert all(verdict["ok"] for verdict in killed.verdicts)
