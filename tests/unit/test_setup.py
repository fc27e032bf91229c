"""Installation: pinned packages, the lab's tools, the compiler and the committed artifacts."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import re
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keeper import share_dir
from keeper.errors import ConfigError
from keeper.lab import install, solc

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENT = re.compile(r"^([a-z0-9][a-z0-9._-]*)(?:\[[^]]*\])?==([^ ;]+)", re.M)


def _pinned(lock: str) -> dict[str, str]:
    return dict(REQUIREMENT.findall((ROOT / lock).read_text()))


def _fail(*_: object, **__: object) -> Any:
    raise AssertionError("this must not be called")


def _tarball(folder: Path, files: dict[str, bytes], keep: tuple[str, ...]) -> tuple[install.Pack, Path]:
    path = folder / "pack.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return install.Pack("@some/pack", "1.0.0", digest, keep), path


# --- locks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock", "requirements-node.lock"])
def test_every_python_package_is_pinned_by_hash(lock: str) -> None:
    """Each requirement of a lock has a version and at least one SHA-256, and nothing else is in it."""
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / lock).read_text().strip())
    assert [b for b in blocks if not REQUIREMENT.match(b) or "--hash=sha256:" not in b] == []


def test_development_adds_to_the_runtime_and_changes_nothing() -> None:
    """What is tested is what a user runs: the development lock holds the runtime lock's versions."""
    runtime, development = _pinned("requirements.lock"), _pinned("requirements-dev.lock")
    assert {name: development.get(name) for name in runtime} == runtime


def test_every_declared_dependency_is_locked() -> None:
    """pyproject.toml asks for nothing that the runtime lock lacks."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.match(r"[a-z0-9-]+", requirement)[0] for requirement in declared}  # type: ignore[index]
    assert names <= _pinned("requirements.lock").keys()


def test_every_npm_package_is_pinned_by_hash_and_names_no_host() -> None:
    """package-lock.json holds an integrity for each package and no address to fetch it from."""
    packages = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    packages.pop("")
    assert [name for name, entry in packages.items() if not entry["integrity"].startswith("sha512-")] == []
    assert [name for name, entry in packages.items() if "resolved" in entry] == []


# --- the lab's home ----------------------------------------------------------------------------------


def test_a_checkout_is_its_own_lab_home() -> None:
    """From a checkout, tools are installed beside the package."""
    assert install.lab_home() == share_dir() == ROOT


def test_an_installed_package_keeps_the_lab_in_the_users_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From a wheel, `KEEPER_LAB_HOME` comes first, then the XDG data folder."""
    monkeypatch.setattr(install, "share_dir", lambda: tmp_path / "keeper" / "share")
    monkeypatch.delenv("KEEPER_LAB_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert install.lab_home() == tmp_path / "data" / "keeper" / "lab"
    monkeypatch.setenv("KEEPER_LAB_HOME", str(tmp_path / "chosen"))
    assert install.lab_home() == tmp_path / "chosen"


def test_installing_again_does_nothing_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the lock files have not changed, install starts no process and returns within 50 ms."""
    monkeypatch.setattr(subprocess, "run", _fail)
    lines: list[str] = []
    began = time.perf_counter()
    install.install(lines.append)
    assert time.perf_counter() - began < 0.05
    assert lines == []


def test_a_changed_lock_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other bytes in a lock file give another fingerprint, so install works again."""
    for name in install.LOCKED_FILES:
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    before = install._fingerprint(tmp_path)
    assert before == install._fingerprint(ROOT)
    (tmp_path / "package-lock.json").write_text("{}")
    assert install._fingerprint(tmp_path) != before


def test_without_node_and_a_way_to_get_it_the_reason_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine without Node.js, pip and uv is told what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^Install Node\.js 20 or newer with npm: [^.]*\.$"):
        install._install_node(ROOT / "requirements-node.lock", lambda line: None)


def test_a_failing_npm_is_reported_with_its_own_reason(tmp_path: Path) -> None:
    """npm's complaint, not its whole log, reaches the user."""
    script = tmp_path / "npm"
    script.write_text("#!/bin/sh\necho 'npm warn noise' >&2\necho 'npm error code E1' >&2\n")
    script.write_text(script.read_text() + "echo 'npm error No such package.' >&2\nexit 1\n")
    script.chmod(0o755)
    node = install.Node(tmp_path / "node", (str(script),))
    with pytest.raises(ConfigError, match=rf"^`npm ci` failed in {tmp_path}: No such package\.$"):
        install._npm(node, tmp_path, "ci")


# --- tools -------------------------------------------------------------------------------------------


def test_the_environment_chooses_a_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`ANVIL_BIN` wins, and must name something that can be run."""
    chosen = tmp_path / "my-anvil"
    monkeypatch.setenv("ANVIL_BIN", str(chosen))
    with pytest.raises(ConfigError, match="ANVIL_BIN"):
        install.tool("anvil")
    chosen.write_text("#!/bin/sh\n")
    chosen.chmod(0o755)
    assert install.tool("anvil") == chosen


def test_a_missing_tool_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a lab and with an empty PATH, the error names `keeper lab install`."""
    monkeypatch.delenv("FORGE_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "lab_home", lambda: tmp_path)
    with pytest.raises(ConfigError, match="keeper lab install"):
        install.tool("forge")


@pytest.mark.parametrize("name", ["anvil", "forge"])
def test_the_labs_own_tools_are_programs_not_wrappers(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The lab's tool is the native executable: a wrapper script would outlive being stopped."""
    monkeypatch.delenv(f"{name.upper()}_BIN", raising=False)
    assert install.tool(name).read_bytes()[:4] == b"\x7fELF"


# --- packs -------------------------------------------------------------------------------------------


def test_only_kept_files_of_a_pack_are_written(tmp_path: Path) -> None:
    """A pack is thinned to what is used."""
    pack, path = _tarball(tmp_path, {"a/kept.json": b"1", "b/dropped.json": b"2"}, ("a/kept.json",))
    install.unpack(pack, path, tmp_path / "out")
    assert [p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()] == [b"1"]


def test_a_folder_of_a_pack_keeps_what_is_right_in_it(tmp_path: Path) -> None:
    """Its files, not those of folders inside or beside it; a folder without any is an error."""
    files = {"src/a.sol": b"1", "src/b.sol": b"2", "src/deep/c.sol": b"3", "srcs/d.sol": b"4", "e.sol": b"5"}
    pack, path = _tarball(tmp_path, files, ("e.sol", "src/"))
    install.unpack(pack, path, tmp_path / "out")
    kept = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert sorted(p.read_bytes() for p in kept) == [b"1", b"2", b"5"]
    pack, path = _tarball(tmp_path, files, ("none/",))
    with pytest.raises(ConfigError, match="no file none/"):
        install.unpack(pack, path, tmp_path / "out")


def test_a_pack_with_other_bytes_is_refused(tmp_path: Path) -> None:
    """A tarball that does not match its pinned hash leaves nothing behind."""
    pack, path = _tarball(tmp_path, {"kept": b"1"}, ("kept",))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ConfigError, match="other bytes"):
        install.unpack(pack, path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pack_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    """A kept file that is not in the tarball is an error, not a silence."""
    pack, path = _tarball(tmp_path, {"kept": b"1"}, ("kept", "missing"))
    with pytest.raises(ConfigError, match="no file missing"):
        install.unpack(pack, path, tmp_path / "out")


# --- compiling ---------------------------------------------------------------------------------------

LIBRARY = """
// SPDX-License-Identifier: MIT
pragma solidity ^0.8.20;
library Sum { function total(uint256 a, uint256 b) external pure returns (uint256) { return a + b; } }
"""
USER = """
// SPDX-License-Identifier: MIT
pragma solidity ^0.8.20;
// import "./commented/Out.sol";
import {Sum} from "lib//Sum.sol"; /* import "./Neither.sol"; */
contract User {
    string constant LINK = "https://import './Nor.sol'";
    uint256 immutable START;
    constructor(uint256 start) { START = start; }
    function more(uint256 by) external view returns (uint256) { return Sum.total(START, by); }
}
"""


@pytest.fixture
def compile_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], dict[str, solc.Artifact]]:
    """Compile User.sol from a folder of its own, with an empty cache."""
    monkeypatch.setattr(solc, "cache_dir", lambda: tmp_path / "cache")
    (tmp_path / "src" / "math").mkdir(parents=True)
    (tmp_path / "src" / "User.sol").write_text(USER)
    (tmp_path / "src" / "math" / "Sum.sol").write_text(LIBRARY)
    return lambda: solc.compile_sources(
        "user", ["User.sol"], [tmp_path / "src"], {"lib//": "math/"}, solc.OWN_SOLC, solc.OWN_SETTINGS
    )


def test_imports_are_followed_and_libraries_linked(
    compile_user: Callable[[], dict[str, solc.Artifact]],
) -> None:
    """An entry comes with the libraries it links to; comments and strings are not imports."""
    artifacts = compile_user()
    assert artifacts.keys() == {"User", "Sum"}
    user = artifacts["User"]
    with pytest.raises(ConfigError, match="library Sum"):
        user.creation_code()
    linked = user.creation_code({"Sum": b"\xab" * 20})
    assert linked.count(b"\xab" * 20) == len(user.links["Sum"]) > 0
    assert len(linked) == len(user.bytecode) // 2 - 1


def test_the_same_sources_are_compiled_once(
    compile_user: Callable[[], dict[str, solc.Artifact]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second build comes from the cache; a changed import does not."""
    first = compile_user()
    monkeypatch.setattr(solc, "_compile", _fail)
    assert compile_user() == first
    (tmp_path / "src" / "math" / "Sum.sol").write_text(LIBRARY + "// changed\n")
    with pytest.raises(AssertionError, match="must not be called"):
        compile_user()


def test_what_solc_refuses_is_a_configuration_error(
    compile_user: Callable[[], dict[str, solc.Artifact]], tmp_path: Path
) -> None:
    """solc's complaint reaches the user."""
    (tmp_path / "src" / "math" / "Sum.sol").write_text(LIBRARY.replace("return a", "return nothing"))
    with pytest.raises(ConfigError, match=r"refused user: (?s:.*)Undeclared identifier"):
        compile_user()


def test_a_missing_source_is_named(
    compile_user: Callable[[], dict[str, solc.Artifact]], tmp_path: Path
) -> None:
    """An import that is nowhere is a configuration error with its name."""
    (tmp_path / "src" / "math" / "Sum.sol").unlink()
    with pytest.raises(ConfigError, match=r"lib//Sum\.sol"):
        compile_user()


# --- our own contracts -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", solc.OWN_COMMITTED)
def test_a_committed_artifact_needs_no_compiler(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """While sources and artifact agree, deploying needs neither Node.js nor solc."""
    monkeypatch.setattr(solc, "compile_sources", _fail)
    artifact = solc.own_artifact(name)
    assert artifact.name == name
    assert artifact.creation_code()


@pytest.mark.slow
def test_committed_artifacts_are_what_the_sources_compile_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Compiling anew, without the cache, writes the committed files byte for byte."""
    monkeypatch.setattr(solc, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(solc, "_committed", lambda name: tmp_path / f"{name}.json")
    written = solc.write_own_artifacts()
    assert {path.name: path.read_text() for path in written} == {
        f"{name}.json": (ROOT / "abis" / f"{name}.json").read_text() for name in solc.OWN_COMMITTED
    }


def test_a_stale_artifact_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a source has changed since, the committed artifact is passed over."""
    monkeypatch.setattr(solc, "_own_source_hash", lambda name: "other")
    monkeypatch.setattr(solc, "compile_sources", _fail)
    with pytest.raises(AssertionError, match="must not be called"):
        solc.own_artifact("PauseGuard")


def test_forge_compiles_with_the_same_settings() -> None:
    """foundry.toml and the artifacts' settings say the same, so forge tests the bytes that are deployed."""
    profile = tomllib.loads((ROOT / "foundry.toml").read_text())["profile"]["default"]
    assert profile["evm_version"] == solc.OWN_SETTINGS["evmVersion"]
    assert profile["optimizer"] is solc.OWN_SETTINGS["optimizer"]["enabled"]
    assert profile["optimizer_runs"] == solc.OWN_SETTINGS["optimizer"]["runs"]
    assert profile["bytecode_hash"] == solc.OWN_SETTINGS["metadata"]["bytecodeHash"]
    assert profile["cbor_metadata"] is solc.OWN_SETTINGS["metadata"]["appendCBOR"]
    assert profile["via_ir"] is solc.OWN_SETTINGS.get("viaIR", False)


@pytest.mark.slow
def test_a_wheel_carries_what_the_lab_and_deploying_need(tmp_path: Path) -> None:
    """Without a checkout, the locks, our sources and the ABIs come with the package."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [*install.LOCKED_FILES, "requirements-node.lock", "contracts/src/Liquidator.sol"]
    files += [f"abis/{path.name}" for path in (ROOT / "abis").glob("*.json")]
    assert {f"keeper/share/{name}" for name in files} | {
        "keeper/lab/solc-shim.cjs",
        "keeper/py.typed",
    } <= names
