"""Every `keeper` command that the README shows, run in its order on a local chain."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import time
from pathlib import Path

import pytest

from keeper.abi import checksum
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.rig import Terms, keeper_environment, write_configuration
from keeper.lab.safe import execute
from keeper.lab.world import Lab
from keeper.multisig.safe import InnerCall
from keeper.types import Address
from tests.conftest import OpenLab
from tests.test_docs import shown_commands

_BORROWER = account(77)
# Shown in the README, and run by others: the installation (tests/unit/test_setup.py), what runs this test, and the
# demo (tests/e2e/test_demo.py).
_NOT_HERE = ("pip", "cp", "scripts/test", "scripts/demo", "scripts/judge")


@pytest.mark.slow
async def test_the_readme_can_be_followed(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """Deploy, set up by the Safe, check, scan, dry-run, run, and read beside the running daemon: all exit 0."""
    lab = await fresh_lab()
    spec = PositionSpec(_BORROWER, {"WETH": 10**19}, {"USDC": 1}, 110 * WAD // 100)
    await open_position(lab.node, lab.world.cast, lab.world.aave["3.0"], spec)
    write_configuration(lab, tmp_path, Terms())
    people = lab.world.cast
    names = {
        "0x…SAFE": checksum(lab.world.safe.address),
        "0x…TREASURY": checksum(people.treasury.address),
        "0x…GUARDIAN": checksum(people.guardians[0].address),
        "0x…ACCOUNT": checksum(_BORROWER),
    }
    daemon: asyncio.subprocess.Process | None = None
    ran = []
    try:
        for page, line in shown_commands():
            words = [names.get(word, word) for word in shlex.split(line, comments=True)]
            if page != "README.md" or words[0] in _NOT_HERE:
                assert page != "README.md" or words[0] in _NOT_HERE
                continue
            ran.append(words[1])
            if words[1:] == ["run"]:
                daemon = await _start(words[1:], tmp_path)
                continue
            process = await _start(words[1:], tmp_path)
            output, errors = await process.communicate()
            assert process.returncode == 0, f"{line}: {errors.decode()[-2000:]}"
            assert output or words[1] in ("run", "ledger"), f"{line} printed nothing"
            if words[1] == "deploy":
                await _execute_setup(lab, tmp_path / "safe-setup.json")
        assert daemon is not None and daemon.returncode is None, "the daemon shown runs on"
        daemon.terminate()
        assert await asyncio.wait_for(daemon.wait(), 30) == 0
    finally:
        if daemon is not None and daemon.returncode is None:
            daemon.kill()
            await daemon.wait()
    assert ran == ["deploy", "doctor", "scan", "run", "run", "pause", "explain", "ledger", "ledger"]


async def _execute_setup(lab: Lab, path: Path) -> None:
    batch = json.loads(await asyncio.to_thread(path.read_text))
    calls = [
        InnerCall(Address(bytes.fromhex(one["to"][2:])), bytes.fromhex(one["data"][2:]))
        for one in batch["transactions"]
    ]
    await execute(lab.node, lab.world.safe, *calls)


async def _start(words: list[str], folder: Path) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "keeper", *words),
        cwd=folder,
        env=keeper_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    if words == ["run"]:
        began = time.monotonic()
        assert process.stderr is not None
        while time.monotonic() - began < 60:
            if b'"started"' in await process.stderr.readline():
                break
    return process
