"""Solidity sources in, artifacts out: py-solc-x over a native compiler, or over npm's where there is none.

Results are cached by what went in (every source, the settings, the compiler's version), so a build happens once.
Those that are deployed are also committed under `abis/`; there the sources' hash decides whether a file still stands
for them, and a machine without Node.js can deploy.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from keeper import share_dir
from keeper.errors import ConfigError, KeeperError
from keeper.lab.install import cache_dir, find_node, install, node_modules

OWN_SOLC: Final = "0.8.37"
OWN_SETTINGS: Final[Mapping[str, Any]] = {
    "evmVersion": "cancun",
    "optimizer": {"enabled": True, "runs": 200},
    "metadata": {"appendCBOR": False, "bytecodeHash": "none"},
}
OWN_COMMITTED: Final = {
    "PauseGuard": "contracts/src/PauseGuard.sol",
    "Liquidator": "contracts/src/Liquidator.sol",
    "PerpExchange": "contracts/src/reference/PerpExchange.sol",
}

AAVE_SOLC: Final = "0.8.27"
AAVE_SETTINGS: Final[Mapping[str, Any]] = {
    "evmVersion": "cancun",
    "optimizer": {"enabled": True, "runs": 200},
    "metadata": {"bytecodeHash": "none"},
}
_AAVE: Final = "@aave-dao/aave-v3-origin/src/contracts"
_AAVE_ENTRIES: Final = (
    "instances/PoolInstance",
    "instances/PoolConfiguratorInstance",
    "instances/ATokenInstance",
    "instances/VariableDebtTokenInstance",
    "protocol/configuration/PoolAddressesProvider",
    "protocol/configuration/ACLManager",
    "misc/AaveOracle",
    "misc/DefaultReserveInterestRateStrategyV2",
    "helpers/AaveProtocolDataProvider",
    "helpers/UiPoolDataProviderV3",
    "helpers/LiquidationDataProvider",
    "mocks/oracle/CLAggregators/MockAggregator",
    "mocks/flashloan/MockFlashLoanReceiver",
)
_AAVE_REMAPPINGS: Final = {
    "openzeppelin-contracts/contracts/": "@openzeppelin/contracts/",
    "openzeppelin-contracts-upgradeable/contracts/": "@openzeppelin/contracts-upgradeable/",
    "solidity-utils/": "@bgd-labs/solidity-utils/src/",
}

_OUTPUTS: Final = (
    "abi",
    "evm.bytecode.object",
    "evm.bytecode.linkReferences",
    "evm.deployedBytecode.object",
    "evm.deployedBytecode.immutableReferences",
)
_CACHE_FORMAT: Final = 1
# Strings are matched too, and kept: Aave's sources have an import path with "//" in it.
_STRING_OR_COMMENT: Final = re.compile(r"""("[^"\n]*"|'[^'\n]*')|/\*.*?\*/|//[^\n]*""", re.S)
_IMPORT: Final = re.compile(r"""(?:^|[;}\s])import\s+(?:[^"';]*?\bfrom\s+)?["']([^"']+)["']""")


class Artifact(msgspec.Struct, frozen=True, rename="camel"):
    """One compiled contract.

    `bytecode` and `runtime` are 0x-hex; where a library's address belongs they hold solc's placeholder. `links` gives
    the byte offsets in `bytecode` of every library by name; `immutables` the (offset, length) in `runtime` of bytes
    that the constructor fills in.
    """

    name: str
    source: str
    abi: list[dict[str, Any]]
    bytecode: str
    runtime: str
    links: dict[str, list[int]] = {}
    immutables: list[tuple[int, int]] = []

    def creation_code(self, libraries: Mapping[str, bytes] | None = None) -> bytes:
        """The bytecode with every library's address in place, to which constructor arguments are appended.

        Raises:
            ConfigError: a library is missing, or there is no code (an interface or an abstract contract).
        """
        code = self.bytecode.removeprefix("0x")
        for library, offsets in self.links.items():
            address = (libraries or {}).get(library)
            if address is None:
                raise ConfigError(
                    f"{self.name} cannot be deployed without the address of its library {library}."
                )
            for offset in offsets:
                code = code[: 2 * offset] + address.hex() + code[2 * (offset + 20) :]
        if not code:
            raise ConfigError(
                f"{self.name} has no code of its own: it is an interface or an abstract contract."
            )
        return bytes.fromhex(code)


class OwnArtifact(Artifact, frozen=True, rename="camel", kw_only=True):
    """An artifact of this project with what it was made from."""

    solc: str
    settings: dict[str, Any]
    source_hash: str


def compile_sources(
    name: str,
    entries: Sequence[str],
    roots: Sequence[Path],
    remappings: Mapping[str, str],
    solc_version: str,
    settings: Mapping[str, Any],
) -> dict[str, Artifact]:
    """Compile source units and everything they import, or take the result of having done so from the cache.

    Entries and imports are looked up under each of `roots` in turn, after `remappings` of their beginnings. The result
    holds, by contract name, the contracts of the entries and the libraries that must be deployed to link them.

    Raises:
        ConfigError: a source is missing, solc refuses one, two contracts share a name, or there is no compiler.
    """
    sources = _gather(entries, roots, remappings)
    job = _standard_json(sources, settings)
    key = _digest(_CACHE_FORMAT, sorted(entries), job, solc_version)
    cached = cache_dir() / "solc" / f"{name}-{key[:32]}.json"
    if cached.is_file():
        return _by_name(msgspec.json.decode(cached.read_bytes(), type=list[Artifact]))
    artifacts = _wanted(_compile(name, job, solc_version), set(entries))
    result = _by_name(artifacts)
    _replace(cached, msgspec.json.encode(artifacts))
    return result


def build_contracts() -> dict[str, Artifact]:
    """Every contract of this project, by name."""
    root = share_dir()
    entries = sorted(str(path.relative_to(root)) for path in (root / "contracts" / "src").rglob("*.sol"))
    return compile_sources("own", entries, [root], {}, OWN_SOLC, OWN_SETTINGS)


def build_aave_v3_6() -> dict[str, Artifact]:
    """Aave v3.6 from its published sources, by contract name; half a minute of work the first time.

    Its licence allows use but not republication here, so neither source nor bytecode is ever committed.
    """
    entries = [f"{_AAVE}/{entry}.sol" for entry in _AAVE_ENTRIES]
    return compile_sources("aave-v3.6", entries, [node_modules()], _AAVE_REMAPPINGS, AAVE_SOLC, AAVE_SETTINGS)


def own_artifact(name: str) -> OwnArtifact:
    """One of `OWN_COMMITTED`: the committed artifact when it was made from these very sources, else compiled now.

    Raises:
        ConfigError: the name is not one of `OWN_COMMITTED`, or compiling was needed and failed.
    """
    if name not in OWN_COMMITTED:
        raise ConfigError(
            f"{name} is not one of the contracts that are deployed: {', '.join(OWN_COMMITTED)}."
        )
    committed = _committed(name)
    if committed.is_file():
        artifact = msgspec.json.decode(committed.read_bytes(), type=OwnArtifact)
        if artifact.source_hash == _own_source_hash(name):
            return artifact
    return _compile_own(name)


def write_own_artifacts() -> list[Path]:
    """Compile `OWN_COMMITTED` and write what `abis/` should hold; the same sources give the same bytes."""
    written = []
    for name in OWN_COMMITTED:
        raw = msgspec.json.format(msgspec.json.encode(_compile_own(name), order="sorted"), indent=1)
        _replace(_committed(name), raw + b"\n")
        written.append(_committed(name))
    return written


def solc_binary(version: str) -> Path:
    """A program that answers `--version` and `--standard-json` like solc `version`; forge takes it with `--use`.

    A native compiler that py-solc-x has installed comes first; `KEEPER_NATIVE_SOLC=1` lets it fetch one. Otherwise it
    is a wrapper over npm's, `.cache/solc/bin/solc-v<version>` in the lab's home.

    Raises:
        ConfigError: the lab is not installed, or the asked-for native compiler could not be fetched.
    """
    import solcx  # noqa: PLC0415 - a tenth of a second that a warm cache does not need

    if os.environ.get("KEEPER_NATIVE_SOLC") == "1":
        try:
            solcx.install_solc(version)
        except (OSError, ValueError, solcx.exceptions.SolcInstallationError) as error:
            raise ConfigError(f"A native solc {version} could not be fetched: {error}.") from error
    if version in map(str, solcx.get_installed_solc_versions()):
        return Path(solcx.install.get_executable(version))
    package, node = node_modules() / f"solc-{version}", find_node()
    if node is None or not package.is_dir():
        raise ConfigError(f"There is no solc {version}: run `keeper lab install`.")
    shim = Path(__file__).with_name("solc-shim.cjs")
    command = f"SOLC_PACKAGE={shlex.quote(str(package))} exec {shlex.quote(str(node.binary))} {shlex.quote(str(shim))}"
    wrapper = cache_dir() / "solc" / "bin" / f"solc-v{version}"
    content = f'#!/bin/sh\n{command} "$@"\n'.encode()
    if not wrapper.is_file() or wrapper.read_bytes() != content:
        _replace(wrapper, content, mode=0o755)
    return wrapper


def _compile_own(name: str) -> OwnArtifact:
    # Alone, not with the other contracts: nothing outside its imports can then change a byte of the result.
    compiled = compile_sources(name, [OWN_COMMITTED[name]], [share_dir()], {}, OWN_SOLC, OWN_SETTINGS)[name]
    return OwnArtifact(
        **msgspec.structs.asdict(compiled),
        solc=OWN_SOLC,
        settings=dict(OWN_SETTINGS),
        source_hash=_own_source_hash(name),
    )


def _own_source_hash(name: str) -> str:
    sources = _gather([OWN_COMMITTED[name]], [share_dir()], {})
    return _digest(_CACHE_FORMAT, _standard_json(sources, OWN_SETTINGS), OWN_SOLC)


def _committed(name: str) -> Path:
    return share_dir() / "abis" / f"{name}.json"


def _gather(entries: Sequence[str], roots: Sequence[Path], remappings: Mapping[str, str]) -> dict[str, str]:
    """Contents by source unit name, as solc names units: a relative import is resolved against its importer's name."""
    sources: dict[str, str] = {}
    waiting = list(entries)
    while waiting:
        unit = waiting.pop()
        if unit in sources:
            continue
        sources[unit] = _read(unit, roots, remappings)
        for imported in _IMPORT.findall(_STRING_OR_COMMENT.sub(r"\1", sources[unit])):
            relative = imported.startswith(".")
            waiting.append(os.path.normpath(Path(unit).parent / imported) if relative else imported)
    return dict(sorted(sources.items()))


def _read(unit: str, roots: Sequence[Path], remappings: Mapping[str, str]) -> str:
    path = unit
    for beginning, replacement in remappings.items():
        if unit.startswith(beginning):
            path = replacement + unit.removeprefix(beginning)
    for root in roots:
        if (root / path).is_file():
            return (root / path).read_text(encoding="utf-8")
    raise ConfigError(f"There is no Solidity source {unit}: run `keeper lab install`.")


def _standard_json(sources: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "language": "Solidity",
        "sources": {unit: {"content": content} for unit, content in sources.items()},
        "settings": {**settings, "outputSelection": {"*": {"*": list(_OUTPUTS)}}},
    }


def _compile(name: str, job: Mapping[str, Any], solc_version: str) -> dict[str, dict[str, Any]]:
    import solcx  # noqa: PLC0415 - see solc_binary

    try:
        answer: dict[str, Any] = solcx.compile_standard(dict(job), solc_binary=solc_binary(solc_version))
    except solcx.exceptions.SolcError as error:
        raise ConfigError(f"solc {solc_version} refused {name}: {error.message}") from error
    contracts: dict[str, dict[str, Any]] = answer["contracts"]
    return contracts


def _wanted(compiled: Mapping[str, Mapping[str, Any]], entries: set[str]) -> list[Artifact]:
    todo = [(unit, contract) for unit in sorted(entries) for contract in compiled.get(unit, {})]
    artifacts: dict[tuple[str, str], Artifact] = {}
    while todo:
        unit, contract = todo.pop(0)
        if (unit, contract) not in artifacts:
            output = compiled[unit][contract]
            artifacts[unit, contract] = _artifact(unit, contract, output)
            todo += [(at, library) for at, names in _links(output).items() for library in names]
    return list(artifacts.values())


def _artifact(unit: str, contract: str, output: Mapping[str, Any]) -> Artifact:
    runtime = output["evm"]["deployedBytecode"]
    immutables = runtime.get("immutableReferences", {}).values()
    return Artifact(
        name=contract,
        source=unit,
        abi=output["abi"],
        bytecode="0x" + output["evm"]["bytecode"]["object"],
        runtime="0x" + runtime["object"],
        links={
            library: [place["start"] for place in places]
            for names in _links(output).values()
            for library, places in names.items()
        },
        immutables=sorted((place["start"], place["length"]) for places in immutables for place in places),
    )


def _links(output: Mapping[str, Any]) -> dict[str, dict[str, list[dict[str, int]]]]:
    links: dict[str, dict[str, list[dict[str, int]]]] = output["evm"]["bytecode"].get("linkReferences", {})
    return links


def _by_name(artifacts: Sequence[Artifact]) -> dict[str, Artifact]:
    named: dict[str, Artifact] = {}
    for artifact in artifacts:
        if (other := named.setdefault(artifact.name, artifact)) is not artifact:
            raise ConfigError(
                f"Two contracts are named {artifact.name}: in {other.source} and {artifact.source}."
            )
    return named


def _digest(*parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def _replace(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file so that whoever reads it meanwhile sees the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_bytes(content)
    half.chmod(mode)
    half.replace(path)


def main() -> None:
    """`python -m keeper.lab.solc`: install the lab and compile all that it deploys, as `scripts/setup` does.

    With `--write-abis` it then brings our contracts under `abis/` up to date with their sources.
    """

    def report(line: str) -> None:
        print(line, file=sys.stderr)

    def timed(what: str, build: Callable[[], object]) -> None:
        began = time.monotonic()
        build()
        if (took := time.monotonic() - began) > 1:
            report(f"Compiled {what} in {took:.0f} s")

    try:
        install(report)
        timed("the keeper's contracts", build_contracts)
        timed("Aave v3.6", build_aave_v3_6)
        for path in write_own_artifacts() if "--write-abis" in sys.argv[1:] else ():
            report(f"Wrote {path}")
    except KeeperError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
