"""The documentation is true: commands, options, keys, links and outputs it shows exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main

from keeper.assembly import PROTOCOLS, VENUES
from keeper.cli import app
from keeper.lab.conformance import CHECKS, Subject
from keeper.seams import Adapter

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
SCRIPTS = ("scripts/demo", "scripts/test")
# What runs the conformance suite: over a package that a reader writes, and over one protocol of the repository.
SUITES = (
    ".venv/bin/pytest examples/toy_perp",
    ".venv/bin/pytest tests/protocols/test_conformance.py -k reference-perp",
)
_CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def shown_commands() -> list[tuple[str, str]]:
    """Every command a page shows, with the page."""
    found = []
    for page in PAGES:
        for block in _CONSOLE.findall(page.read_text()):
            found += [(page.name, line[2:]) for line in block.splitlines() if line.startswith("$ ")]
    return found


def command_tree(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every runnable command of the command line by its words."""
    inner = getattr(command, "commands", None)
    if inner is None:
        return {path: command}
    return {key: value for name in inner for key, value in command_tree(inner[name], (*path, name)).items()}


TREE = command_tree(typer.main.get_command(app))


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_a_shown_command_is_understood(page: str, line: str) -> None:
    """Its program, subcommand and every option exist, and its arguments parse."""
    words = shlex.split(line, comments=True)
    if words[0] in ("touch", "rm"):
        assert words[1:] == ["keeper.halt"], line
        return
    if words[0] == ".venv/bin/pytest":
        assert line in SUITES
        return
    if words[0] != "keeper":
        assert words[0] in SCRIPTS or words[0] in ("pip", "cp") or (ROOT / words[0]).is_file(), line
        for name in words[1:] if words[0] == "cp" else ():
            assert name in {"keeper.toml", ".env"} or (ROOT / name).is_file(), line
        return
    path = max((p for p in TREE if tuple(words[1 : 1 + len(p)]) == p), key=len, default=None)
    assert path is not None, f"{page} shows {line}, which is no command"
    TREE[path].make_context("keeper", words[1 + len(path) :], resilient_parsing=False)


@pytest.mark.parametrize("path", sorted(TREE), ids=" ".join)
def test_a_command_is_documented(path: tuple[str, ...]) -> None:
    """Some page names it, and its help says what it does."""
    text = "\n".join(page.read_text() for page in PAGES)
    words = " ".join(path)
    assert words in text.replace("`", " "), f"no page names `keeper {words}`"
    assert TREE[path].help


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there."""
    for target in _LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_shows_a_whole_demo() -> None:
    """The shown output is a real run's: it ends with the judge's word and sets expected beside realised."""
    text = (ROOT / "README.md").read_text()
    shown = text.split("<!-- demo output -->")[1].split("<!-- end of demo output -->")[0]
    assert "expected" in shown and "realised" in shown
    assert "while paused:" in shown and ", 0 transactions sent" in shown
    assert "The judge finds nothing profitable left" in shown


def test_every_module_is_in_the_architecture() -> None:
    """The layout names each module and package of the keeper, and none that is not there."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    layout = text.split("## Where things are")[1].split("```")[1]
    named = set(re.findall(r"\b([a-z_]+)(?:\.py|/)", layout))
    there = {
        path.stem
        for path in (ROOT / "keeper").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and not path.name.startswith("__")
    }
    assert named == there


def test_tests_that_a_page_names_are_there() -> None:
    """A page that says which test holds a rule names one that exists."""
    there = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert named and named <= there, named - there


def test_supported_kinds_are_the_ones_built() -> None:
    """The README's tables name every kind the configuration accepts."""
    text = (ROOT / "README.md").read_text()
    for kind in (*PROTOCOLS, *VENUES):
        assert f"`{kind}`" in text


def test_adding_a_protocol_is_told_whole() -> None:
    """The page names everything an adapter and a subject must have, and every check they are held to; what its Python
    imports is there, and it parses; the example's files are those it lists.
    """
    text = (ROOT / "docs" / "adding-a-protocol.md").read_text()
    wanted = [name for shape in (Adapter, Subject) for name in (*shape.__annotations__, *vars(shape))]
    wanted += [check.__name__ for check in CHECKS]
    for name in wanted:
        assert name.startswith("_") or f"`{name}`" in text or f"`{name}(" in text, f"the page has no {name}"
    example = ROOT / "examples" / "toy_perp"
    assert (example / "pyproject.toml").read_text() in text
    listed = re.findall(r"^    (\S+)", text.split("```")[1], re.MULTILINE)
    assert set(listed) == {
        str(path.relative_to(example))
        for path in example.rglob("*")
        if path.suffix in {".toml", ".json", ".sol", ".py"}
    }
    blocks = _PYTHON.findall(text)
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert [each.name for each in node.names if not hasattr(module, each.name)] == []


def test_the_version_is_one() -> None:
    """pyproject and changelog agree that this is unreleased or name the same version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## Unreleased" in changelog or f"## {version}" in changelog
