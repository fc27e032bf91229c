"""What holds for the whole tree: layers, names, sizes, start-up cost and what may never be written down."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BANNED_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
MAX_LINES = 450
# In pieces, so that this file does not contain what it forbids.
FORBIDDEN_TEXT = re.compile(
    "|".join(
        (
            r"pypi\." + "org",
            r"pythonhosted\." + "org",
            r"npmjs\." + "(org|com)",
            r"yarnpkg\." + "com",
            r"file:/" + "//",
            r"(?<![\w.])/" + r"(work|root)/",
            r"(?<![\w.])/" + r"opt/(pypi|wheels)",
        )
    )
)


def _tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def _fresh_python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout


def test_imports_go_down_only() -> None:
    """Every import contract in pyproject.toml is kept."""
    lint = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_files_are_named_for_what_they_hide() -> None:
    """No file or folder has a name that says nothing."""
    parts = {(path, part) for path in _tracked() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert [str(path) for path, part in sorted(parts) if part.lower() in BANNED_NAMES] == []


def test_files_stay_short() -> None:
    """No module exceeds the cap (tests may: one file per verb)."""
    lines = {path: len(path.read_text().splitlines()) for path in _tracked("keeper/*.py")}
    assert {str(path): count for path, count in lines.items() if count > MAX_LINES} == {}


@pytest.mark.parametrize("module", ["web3", "solcx", "eth_account"])
def test_the_command_line_starts_without(module: str) -> None:
    """Importing the command line loads nothing that only deploying, the lab or a keystore needs."""
    assert _fresh_python(f"import sys, keeper.commands; print({module!r} in sys.modules)").strip() == "False"


def test_no_file_names_a_registry_or_a_machine() -> None:
    """Locks and sources install from any registry, on any machine: none is named in a tracked file."""
    found = []
    for path in _tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and the like hold no addresses
        found += [f"{path}:{match[0]}" for match in FORBIDDEN_TEXT.finditer(text)]
    assert found == []


def test_scripts_stop_at_the_first_error() -> None:
    """Every script can be run, and is strict about failures and unset variables."""
    scripts = _tracked("scripts", ".ci")
    assert scripts
    for script in scripts:
        assert script.stat().st_mode & 0o111, script
        assert "\nset -euo pipefail\n" in script.read_text(), script
