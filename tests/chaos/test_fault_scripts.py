"""Random scripts of faults: 2,000 with `KEEPER_DEEP=1`, otherwise 50; and every script that ever found something.

A failure prints the smallest script that still fails, as JSON: put it under `scripts/` and it is played from then on.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

from keeper.lab.aave import Version
from keeper.lab.chaos.faults import Script, random_script
from keeper.lab.chaos.points import POINTS
from keeper.lab.chaos.scripts import Played, play
from keeper.lab.chaos.session import SCRIPTS_A_STAGE
from keeper.lab.chaos.stage import VERSIONS, open_stage

DEEP = os.environ.get("KEEPER_DEEP") == "1"
SEED = int(os.environ.get("KEEPER_SEED", "1"))
STAGES = (2_000 if DEEP else 50) // SCRIPTS_A_STAGE
KEPT = sorted((Path(__file__).parent / "scripts").glob("*.json"))


@contextmanager
def staged(folder: Path, version: Version) -> Iterator[Callable[[Script], Played]]:
    """Plays scripts on one stage, from outside any event loop, as hypothesis needs it."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        opened = open_stage(folder / "rig", version)
        stage = runner.run(opened.__aenter__())
        count = 0

        def played(script: Script) -> Played:
            nonlocal count
            count += 1
            return runner.run(play(stage, script, folder / str(count)))

        try:
            yield played
        finally:
            runner.run(opened.__aexit__(None, None, None))


def held(played: Played) -> None:
    """Fail when anything did not hold."""
    found = "\n".join(map(str, played.breaches))
    assert not found, found


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("number", range(STAGES))
def test_no_fault_breaks_a_promise(number: int, tmp_path: Path) -> None:
    """Whatever goes wrong, no promise of the record is broken and the keeper is back at work within a minute."""
    outcomes = 0

    @seed(SEED * 1_000 + number)
    @settings(
        max_examples=SCRIPTS_A_STAGE,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def scripts(chance: random.Random) -> None:
        nonlocal outcomes
        script = random_script(chance, list(POINTS))
        note(script.to_json())
        result = played(script)
        held(result)
        outcomes += result.outcomes.get("settled", 0)

    with staged(tmp_path, VERSIONS[number % len(VERSIONS)]) as played:
        scripts()
    assert outcomes > SCRIPTS_A_STAGE, "the scripts gave the keeper nothing to do"


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_what_once_broke_a_promise_does_not_again(version: Version, tmp_path: Path) -> None:
    """Scripts that found a defect, played as they were found."""
    assert KEPT
    with staged(tmp_path, version) as played:
        for path in KEPT:
            held(played(Script.from_json(path.read_text())))
