"""What every bench states alike: the machine, the versions, and how figures spread."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from keeper import __version__
from keeper.lab.install import tool

_PACKAGES: Final = ("aiohttp", "coincurve", "msgspec", "numpy", "sqlalchemy", "web3")


def spread_ms(seconds: Iterable[float]) -> dict[str, Any]:
    """The 50th, 90th and 99th percentile in milliseconds."""
    ordered = sorted(seconds)
    figure: dict[str, Any] = {
        f"p{percent}": round(ordered[math.ceil(len(ordered) * percent / 100) - 1] * 1_000, 3)
        for percent in (50, 90, 99)
    }
    return {**figure, "unit": "ms"}


def versions() -> dict[str, str]:
    """The keeper's and those of the packages that its speed depends on."""
    return {"keeper": __version__, **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def machine() -> dict[str, Any]:
    """Processor, Python and node."""
    anvil = subprocess.run([tool("anvil"), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "anvil": anvil.split("\n")[0].rpartition(" ")[2],
    }


def _cpu() -> str:
    """The processor's model, where the kernel tells it; else its architecture."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
