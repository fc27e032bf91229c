"""A long run of one daemon under random prices, borrowers and faults: 10,000 blocks with `KEEPER_DEEP=1`, else 200."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keeper.lab.chaos.soak import soak

DEEP = os.environ.get("KEEPER_DEEP") == "1"
SEED = int(os.environ.get("KEEPER_SEED", "1"))
BLOCKS = 10_000 if DEEP else 200


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.timeout(3_600)
async def test_a_long_run_holds_on_to_nothing(tmp_path: Path) -> None:
    """Memory and file handles stay flat, the ledger verifies, every refusal is one that has a reason, none is left."""
    soaked = await soak(SEED, BLOCKS, tmp_path, print)
    assert len(soaked.samples) >= BLOCKS // 10 - 1
    assert soaked.outcomes["settled"] > BLOCKS // 50, "the run was not busy"
    assert soaked.injected.total() > BLOCKS // 20, "too little went wrong"
    assert not soaked.breaches, "\n".join(map(str, soaked.breaches))
    assert not soaked.endings and not soaked.verdict["left"]
