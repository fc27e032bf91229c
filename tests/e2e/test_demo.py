"""The demo as users run it: its document, its exit code, and that it can fail."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from keeper.lab.rig import keeper_environment


@pytest.mark.slow
async def test_the_demo_is_green() -> None:
    """It liquidates on every protocol, sends nothing while paused, and books what the treasury gained."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "keeper", "demo", "--json"),
        env=keeper_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    document = json.loads(output)
    assert process.returncode == 0, (document["failures"], errors.decode()[-2000:])
    assert document["schema"] == 1 and document["ok"]
    names = {row["protocol"] for row in document["liquidations"]}
    assert (
        names >= {"aave-3-0", "aave-3-6", "curie"}
        and sum(name.startswith("synthetix-") for name in names) == 2
    )
    assert all(row["status"] == 1 and int(row["treasury_delta_raw"]) > 0 for row in document["liquidations"])
    assert document["while_paused"]["candidates"] > 0 and document["while_paused"]["sent"] == 0
    assert document["booked_profit_raw"] == document["treasury_delta_raw"]
    assert document["heads"] > 0 and document["latency_ms"]["p50"] > 0
    assert all(left["reason"] for left in document["unhealthy_left"])
    assert document["judge"]["ok"] and not document["judge"]["left"]
