"""The policy version: a name for every setting that decides, and for nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from keeper import assembly
from keeper.store.canonical import canonical

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = (ROOT / "examples" / "keeper.toml").read_text()
OTHER = "0x" + "11" * 20


def _version(tmp_path: Path, text: str) -> str:
    path = tmp_path / "keeper.toml"
    path.write_text(text)
    decisive = assembly.decisive_settings(assembly.settings(path))
    return hashlib.sha256(canonical(decisive).encode()).hexdigest()


def _changed(old: str, new: str) -> str:
    assert EXAMPLE.count(old) == 1, old
    return EXAMPLE.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("min_profit_usd = 5.0", "min_profit_usd = 5.1"),
        ("max_consecutive_reverts = 3", "max_consecutive_reverts = 4"),
        ("deny_accounts = []", f'deny_accounts = ["{OTHER}"]'),
        ("from_block = 162", "from_block = 1162"),
        ("fee_tiers = [100, ", "fee_tiers = ["),
    ],
)
def test_what_decides_changes_the_version(tmp_path: Path, old: str, new: str) -> None:
    """Profit, limits, protocols and venues each have their part in it."""
    assert _version(tmp_path, EXAMPLE) != _version(tmp_path, _changed(old, new))


def test_what_does_not_decide_does_not(tmp_path: Path) -> None:
    """Where the record is kept and the order of a set are not the policy."""
    version = _version(tmp_path, EXAMPLE)
    assert _version(tmp_path, _changed("sqlite:///keeper.db", "sqlite:///other.db")) == version
    third = "0x" + "22" * 20
    there, back = (
        _changed("deny_accounts = []", f'deny_accounts = ["{one}", "{other}"]')
        for one, other in ((OTHER, third), (third, OTHER))
    )
    assert _version(tmp_path, there) == _version(tmp_path, back)
