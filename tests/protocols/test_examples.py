from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from keeper.lab.conformance import CHECKS

ROOT = Path(__file__).parents[2]
TOY = ROOT / "examples" / "toy_perp"


def test_the_toy_perp_conforms_as_shipped(tmp_path: Path) -> None:
    """Built and installed beside the keeper, its kind is taken and the whole suite passes on it."""
    _run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], TOY, {})
    [wheel] = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(installed)
    told = _run(
        [sys.executable, "-m", "pytest", str(TOY), "-p", "no:cacheprovider"],
        ROOT,
        {"PYTHONPATH": f"{installed}{os.pathsep}{TOY}"},
    )
    assert f"{len(CHECKS)} passed" in told


def _run(words: list[str], folder: Path, environment: dict[str, str]) -> str:
    ended = subprocess.run(
        words, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout
