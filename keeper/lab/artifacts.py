"""Where the bytecode of real protocols is found, and how it is linked.

Packages publish build outputs in four shapes (hardhat, truffle JSON, truffle JavaScript, waffle); all become one
`Artifact`. What a package ships only as source is compiled by `keeper.lab.solc`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keeper import share_dir
from keeper.abi import Abi
from keeper.errors import ConfigError
from keeper.lab import solc
from keeper.lab.install import node_modules
from keeper.types import Address

_AAVE_V3_0 = "@aave/core-v3/artifacts/contracts"
_CHAINLINK = "@chainlink/contracts/truffle"
_SYNTHETIX = "synthetix/contracts"
_SYNTHETIX_SOLC = "0.5.16"
_SYNTHETIX_SETTINGS: Mapping[str, Any] = {"optimizer": {"enabled": True, "runs": 200}}
_SYNTHETIX_ENTRIES = (
    "AddressResolver",
    "CircuitBreaker",
    "ExchangeRates",
    "FlexibleStorage",
    "FuturesMarketManager",
    "PerpsV2ExchangeRate",
    "PerpsV2Market",
    "PerpsV2MarketDelayedExecution",
    "PerpsV2MarketDelayedIntent",
    "PerpsV2MarketLiquidate",
    "PerpsV2MarketSettings",
    "PerpsV2MarketState",
    "PerpsV2MarketViews",
    "ProxyERC20",
    "ProxyPerpsV2",
    "Synth",
    "SystemStatus",
    "TokenState",
)
_MORPHO = "@morpho-org/morpho-blue/src"
_MORPHO_SOLC = "0.8.19"
_MORPHO_SETTINGS: Mapping[str, Any] = {
    "evmVersion": "paris",
    "optimizer": {"enabled": True, "runs": 999_999},
    "viaIR": True,
    "metadata": {"bytecodeHash": "none"},
}
_SYNTHETIX_REMAPPINGS = {
    "openzeppelin-solidity-2.3.0/": "openzeppelin-solidity/",
    "@chainlink/contracts-0.0.10/": "@chainlink/contracts/",  # these interfaces have not changed since
}


@dataclass(frozen=True, slots=True)
class Artifact:
    """A compiled contract: `bytecode` is hex with placeholders at `links`, (library, byte offset) pairs."""

    name: str
    abi: Abi
    bytecode: str
    links: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, name: str, output: Mapping[str, Any]) -> Artifact:
        """From a compiler output in any of the published shapes."""
        code = output.get("bytecode") or output["evm"]["bytecode"]
        references = output.get("linkReferences") or output.get("evm", {}).get("bytecode", {}).get(
            "linkReferences"
        )
        if isinstance(code, Mapping):
            references, code = references or code.get("linkReferences"), code["object"]
        links = tuple(
            (library, int(place["start"]))
            for libraries in (references or {}).values()
            for library, places in libraries.items()
            for place in places
        )
        return cls(name, Abi.from_json(output["abi"]), code.removeprefix("0x"), links)

    def creation_code(self, *arguments: Any, libraries: Mapping[str, Address] | None = None) -> bytes:
        """Bytecode with its libraries' addresses filled in, followed by the encoded constructor arguments.

        Raises ConfigError when a library is missing.
        """
        code = self.bytecode
        for library, start in self.links:
            if library not in (libraries or {}):
                raise ConfigError(f"{self.name} needs the address of its library {library}.")
            code = code[: 2 * start] + (libraries or {})[library].hex() + code[2 * start + 40 :]
        return bytes.fromhex(code) + (self.abi.constructor(*arguments) if arguments else b"")


@functools.cache
def published(path: str, name: str | None = None) -> Artifact:
    """The artifact at a path inside node_modules; `.js` is Chainlink's truffle wrapper around the same JSON.

    Raises ConfigError when it is not there.
    """
    file = node_modules() / path
    text = _read(file)
    if file.suffix == ".js":
        start = text.index("contract({") + len("contract(")
        output = json.JSONDecoder().raw_decode(text[start:])[0]
    else:
        output = json.loads(text)
    return Artifact.of(name or file.stem, output)


def aave_v3_0(name: str) -> Artifact:
    """A contract of Aave 3.0.x as published."""
    return published(_aave_v3_0_paths()[name])


@functools.cache
def aave_v3_6(name: str) -> Artifact:
    """A contract of Aave 3.6, compiled from its published source; half a minute of work the first time."""
    built = _aave_v3_6()
    # A contract's interface names its own errors only, but most come from the libraries it delegates to.
    errors = [entry for library in built.values() for entry in library.abi if entry["type"] == "error"]
    return _compiled(built[name], errors)


@functools.cache
def synthetix(name: str) -> Artifact:
    """A contract of Synthetix V2x, compiled from its published source when first asked for; a quarter of a minute."""
    return _compiled(_synthetix()[name])


@functools.cache
def morpho(name: str) -> Artifact:
    """Morpho Blue or one of its package's mocks, compiled from the published source when first asked for."""
    parts = ("Morpho", "libraries/EventsLib", "mocks/IrmMock", "mocks/OracleMock")
    entries = [f"{_MORPHO}/{part}.sol" for part in parts]
    built = solc.compile_sources("morpho", entries, [node_modules()], {}, _MORPHO_SOLC, _MORPHO_SETTINGS)
    return _compiled(built[name])


@functools.cache
def morpho_double(name: str) -> Artifact:
    """A rate model or an oracle of our own for Morpho markets: npm has none of those that are in use."""
    folder = Path(__file__).parent
    return _compiled(
        solc.compile_sources(
            "morpho-doubles", ["morpho.sol"], [folder], {}, solc.OWN_SOLC, solc.OWN_SETTINGS
        )[name]
    )


def synthetix_interface(name: str) -> Sequence[Mapping[str, Any]]:
    """The interface of such a contract as the compiler prints it."""
    return _synthetix()[name].abi


@functools.cache
def own(name: str) -> Artifact:
    """A contract of `contracts/lab`, compiled when its source changed."""
    return _compiled(_own()[name])


def chainlink(name: str) -> Artifact:
    """A contract of Chainlink's data feeds (solc 0.6 line)."""
    return published(f"{_CHAINLINK}/v0.6/{name}.js")


def source_text(path: str) -> str:
    """A text file inside node_modules. Raises ConfigError when it is not there."""
    return _read(node_modules() / path)


@functools.cache
def _aave_v3_0_paths() -> Mapping[str, str]:
    root = node_modules()
    return {
        file.stem: str(file.relative_to(root))
        for file in (root / _AAVE_V3_0).rglob("*.json")
        if not file.name.endswith(".dbg.json")
    }


@functools.cache
def _aave_v3_6() -> Mapping[str, solc.Artifact]:
    return solc.build_aave_v3_6()


@functools.cache
def _synthetix() -> Mapping[str, solc.Artifact]:
    entries, roots = [f"{_SYNTHETIX}/{entry}.sol" for entry in _SYNTHETIX_ENTRIES], [node_modules()]
    return solc.compile_sources(
        "synthetix", entries, roots, _SYNTHETIX_REMAPPINGS, _SYNTHETIX_SOLC, _SYNTHETIX_SETTINGS
    )


@functools.cache
def _own() -> Mapping[str, solc.Artifact]:
    root = share_dir()
    entries = sorted(str(file.relative_to(root)) for file in (root / "contracts" / "lab").glob("*.sol"))
    return solc.compile_sources("lab", entries, [root], {}, solc.OWN_SOLC, solc.OWN_SETTINGS)


def _compiled(built: solc.Artifact, errors: Sequence[Mapping[str, Any]] = ()) -> Artifact:
    links = tuple((library, start) for library, places in built.links.items() for start in places)
    return Artifact(
        built.name, Abi.from_json([*built.abi, *errors]), built.bytecode.removeprefix("0x"), links
    )


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError as error:
        raise ConfigError(f"{file} is missing: run `keeper lab install`.") from error
