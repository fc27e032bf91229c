"""A liquidation keeper for lending and perpetual protocols."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"


def share_dir() -> Path:
    """The folder that holds `package.json`, `contracts/` and `abis/`.

    It is the root of a source checkout, or the copy that an installed package carries.
    """
    package = Path(__file__).resolve().parent
    checkout = package.parent
    return checkout if (checkout / "package.json").is_file() else package / "share"
