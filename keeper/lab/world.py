"""A world: every protocol the lab has, on one chain, with liquidity, prices and people; built once, ready in a moment.

`open_lab()` is the way in. The first call builds the chain (a second or two, plus compiling Aave 3.6 once) and keeps
its state; later calls load it. The state is keyed by everything it depends on, so it never needs to be cleared.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import hashlib
import json
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, Literal, Self, TypeVar

import msgspec

from keeper import share_dir
from keeper.errors import ConfigError
from keeper.lab.aave import (
    E_MODES,
    RESERVES,
    AaveMarket,
    ReserveSpec,
    Version,
    deploy_aave,
    list_reserves,
    supply_by_lender,
)
from keeper.lab.actors import Cast, cast
from keeper.lab.anvil import CHAIN_ID, Anvil
from keeper.lab.chainlink import Feed, deploy_feed, latest, set_prices
from keeper.lab.install import LOCKED_FILES, cache_dir, tool
from keeper.lab.node import ETHER, Node
from keeper.lab.preinstalls import Preinstalls, install_preinstalls
from keeper.lab.safe import SafeWallet, deploy_safe
from keeper.lab.tokens import deploy_token, deploy_tokens
from keeper.lab.uniswap import (
    PoolSpec,
    UniswapV2,
    UniswapV3,
    deploy_uniswap_v2,
    deploy_uniswap_v3,
    open_v3_pool,
)
from keeper.types import Token, hex_of

Clock = Literal["wall", "steady"]
T = TypeVar("T")

GENESIS_S = (
    1_735_689_600  # 2025-01-01: any fixed time in the past gives two builds the same times and accounts
)
BASE_FEE_WEI = 10**9
_E8 = 10**8
_DEPLOYER_ETHER = 10**9
_ACTOR_ETHER = 1000

PRICES_USD = {"WETH": 2000, "USDC": 1, "USDT": 1, "DAI": 1, "WBTC": 40_000, "wstETH": 2400, "ISO": 10}

V3_POOLS = (
    PoolSpec(("WETH", "USDC"), 500, 60_000_000),
    PoolSpec(("WETH", "USDC"), 3000, 20_000_000),
    PoolSpec(("WETH", "USDC"), 10000, 200_000),
    PoolSpec(("WETH", "USDT"), 500, 30_000_000),
    PoolSpec(("WETH", "DAI"), 3000, 10_000_000),
    PoolSpec(("WBTC", "WETH"), 500, 40_000_000),
    PoolSpec(("WBTC", "USDC"), 3000, 10_000_000),
    PoolSpec(("wstETH", "WETH"), 100, 20_000_000, range_factor=1.05),
    PoolSpec(("DAI", "USDC"), 100, 40_000_000, range_factor=1.02),
    PoolSpec(("USDC", "USDT"), 100, 40_000_000, range_factor=1.02),
    PoolSpec(("ISO", "WETH"), 3000, 2_000_000),
)
V2_PAIRS = (
    PoolSpec(("WETH", "USDC"), 3000, 5_000_000),
    PoolSpec(("WETH", "DAI"), 3000, 2_000_000),
    PoolSpec(("WBTC", "WETH"), 3000, 2_000_000),
)


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """What to build. Prices are whole dollars by symbol; `lender_usd` is supplied of each asset to each Aave."""

    prices_usd: dict[str, int] = field(default_factory=lambda: dict(PRICES_USD))
    v3_pools: tuple[PoolSpec, ...] = V3_POOLS
    v2_pairs: tuple[PoolSpec, ...] = V2_PAIRS
    aave: tuple[Version, ...] = ("3.0", "3.6")
    reserves: tuple[ReserveSpec, ...] = RESERVES
    lender_usd: int = 200_000_000


@dataclass(frozen=True, slots=True)
class World:
    """Where everything is. Tokens and feeds go by symbol, markets by Aave version; `prices_e8` are the first prices."""

    chain_id: int
    cast: Cast
    preinstalls: Preinstalls
    tokens: dict[str, Token]
    prices_e8: dict[str, int]
    feeds: dict[str, Feed]
    uniswap_v3: UniswapV3
    uniswap_v2: UniswapV2
    aave: dict[str, AaveMarket]
    safe: SafeWallet

    def to_json(self) -> bytes:
        """The manifest: addresses as 0x-hex."""
        return _written(self)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """A world from its manifest. Raises ConfigError when it is not one."""
        return _read(text, cls)


async def build_world(node: Node, spec: WorldSpec | None = None) -> World:
    """Deploy everything on an empty chain of id 31337."""
    spec = spec or WorldSpec()
    people = cast()
    await node.set_balances([actor.address for actor in people.everyone()], _ACTOR_ETHER * ETHER)
    await node.set_balances([people.deployer.address], _DEPLOYER_ETHER * ETHER)
    preinstalls = await install_preinstalls(node, CHAIN_ID)
    tokens = await deploy_tokens(node, people)
    prices_e8 = {symbol: price * _E8 for symbol, price in spec.prices_usd.items()}
    feeds = {symbol: await deploy_feed(node, people, symbol, prices_e8[symbol]) for symbol in tokens}
    v3 = await deploy_uniswap_v3(node, people, tokens["WETH"])
    pools = [await open_v3_pool(node, people, v3, tokens, prices_e8, pool) for pool in spec.v3_pools]
    v2 = await deploy_uniswap_v2(node, people, tokens, prices_e8, spec.v2_pairs)
    markets: dict[str, AaveMarket] = {}
    for version in spec.aave:
        market = await deploy_aave(node, people, version)
        markets[version] = await list_reserves(node, people, market, tokens, feeds, spec.reserves, E_MODES)
        supplies = {
            symbol: spec.lender_usd * _E8 * 10 ** tokens[symbol].decimals // prices_e8[symbol]
            for symbol in markets[version].reserves
        }
        await supply_by_lender(node, people, markets[version], supplies)
    safe = await deploy_safe(node, people, preinstalls)
    v3 = dataclasses.replace(v3, pools=tuple(pools))
    return World(CHAIN_ID, people, preinstalls, tokens, prices_e8, feeds, v3, v2, markets, safe)


async def add_token(
    node: Node, world: World, symbol: str, decimals: int, price_usd: int, reserve: ReserveSpec | None = None
) -> World:
    """The world with one more token and its feed, listed on every Aave market when `reserve` says how."""
    token = await deploy_token(node, world.cast, symbol, decimals)
    price_e8 = price_usd * _E8
    world = dataclasses.replace(
        world,
        tokens=world.tokens | {symbol: token},
        prices_e8=world.prices_e8 | {symbol: price_e8},
        feeds=world.feeds | {symbol: await deploy_feed(node, world.cast, symbol, price_e8)},
    )
    if reserve is None:
        return world
    markets = {
        name: await list_reserves(node, world.cast, market, world.tokens, world.feeds, [reserve])
        for name, market in world.aave.items()
    }
    return dataclasses.replace(world, aave=markets)


# --- ready in a moment ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Addition(Generic[T]):
    """What is built on top of a world and kept with it: its own manifest is a `kind`, whose fields are plain data.

    `modules` of the lab are what the built state depends on.
    """

    kind: type[T]
    modules: tuple[str, ...]
    build: Callable[[Node, World], Awaitable[tuple[World, T]]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A built chain on disk: what `Anvil.start(load_state=…)` loads, and where everything is in it."""

    state: Path
    world: World
    addition: Path


def read_addition(prepared: Prepared, addition: Addition[T]) -> T:
    """Where everything of an addition is."""
    return _read(prepared.addition.read_bytes(), addition.kind)


@dataclass(frozen=True, slots=True)
class Lab:
    """A running world. Use as an async context manager, or `close` it."""

    anvil: Anvil
    node: Node
    world: World

    async def close(self) -> None:
        """Drop the connection and end the chain."""
        await self.node.close()
        self.anvil.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


async def open_lab(
    spec: WorldSpec | None = None,
    addition: Addition[Any] | None = None,
    *,
    clock: Clock = "wall",
    block_time_s: int | None = None,
    dump_state: Path | None = None,
    ipc: bool = False,
    history: int | None = None,
) -> Lab:
    """A running world.

    With the `wall` clock block times are the wall's and every feed has just reported; `steady` continues from the
    built chain second by second, the same on every run. Blocks come with each transaction, or every `block_time_s`.
    With `history` the states of that many blocks are kept, in memory alone, where else old ones go to disk.
    """
    prepared = await prepare(spec, addition)
    kept = () if history is None else ("--prune-history", str(history))
    anvil = Anvil.start(load_state=prepared.state, dump_state=dump_state, ipc=ipc, extra=kept)
    try:
        node = await Node.open(anvil.url)
        try:
            await _start_clock(node, prepared.world, clock)
            if block_time_s is not None:
                await node.mine_every(block_time_s)
        except BaseException:
            await node.close()
            raise
    except BaseException:
        anvil.stop()
        raise
    return Lab(anvil, node, prepared.world)


async def prepare(
    spec: WorldSpec | None = None, addition: Addition[Any] | None = None, cache: Path | None = None
) -> Prepared:
    """A built world on disk, built now if nobody has. Several processes may call it at once: one builds.

    `cache` is where built worlds are kept, the lab's own cache by default.
    """
    spec = spec or WorldSpec()
    folder = (cache or cache_dir() / "lab") / _key(spec, addition)
    if not folder.is_dir():
        with await asyncio.to_thread(_alone, folder.parent):
            if not folder.is_dir():
                await _build_into(folder, spec, addition)
    world = World.from_json((folder / _MANIFEST).read_bytes())
    return Prepared(folder / _STATE, world, folder / _ADDITION)


_STATE = "state.json"
_MANIFEST = "world.json"
_ADDITION = "addition.json"
# Everything a built state depends on, besides the packages that the lock file pins.
_MODULES = (
    "actors",
    "artifacts",
    "aave",
    "chainlink",
    "node",
    "preinstalls",
    "safe",
    "tokens",
    "uniswap",
    "world",
)


async def _start_clock(node: Node, world: World, clock: Clock) -> None:
    if clock == "steady":
        await node.steady_clock()
    else:
        await node.wall_clock()
        # The stored answers are as old as the stored chain.
        answers = {feed: (await latest(node, feed)).price_raw for feed in world.feeds.values()}
        await set_prices(node, answers)
    await node.set_base_fee(BASE_FEE_WEI)


async def _build_into(folder: Path, spec: WorldSpec, addition: Addition[Any] | None) -> None:
    files = {}
    with Anvil.start(timestamp_s=GENESIS_S) as anvil:
        async with await Node.open(anvil.url) as node:
            await node.steady_clock()
            world = await build_world(node, spec)
            if addition:
                world, added = await addition.build(node, world)
                files[_ADDITION] = _written(added)
            files |= {_STATE: _without_traces(await node.dump()), _MANIFEST: world.to_json()}
    _write(folder, files)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    half = Path(tempfile.mkdtemp(prefix=".half-", dir=folder.parent))
    for name, content in files.items():
        (half / name).write_bytes(content)
    half.rename(folder)  # whole or not at all


def _without_traces(dumped: bytes) -> bytes:
    """The state with its blocks and logs but without call traces, which are most of its size."""
    state = msgspec.json.decode(dumped)
    for transaction in state["transactions"]:
        transaction["info"]["traces"] = []
    return msgspec.json.encode(state)


def _key(spec: WorldSpec, addition: Addition[Any] | None) -> str:
    digest = hashlib.sha256(msgspec.json.encode(spec, order="deterministic"))
    modules = (*_MODULES, *(addition.modules if addition else ()))
    sources = [Path(__file__).with_name(f"{module}.py") for module in modules]
    sources += sorted((share_dir() / "contracts" / "lab").glob("*.sol"))
    sources += sorted(Path(__file__).parent.glob("*.sol"))
    sources += [share_dir() / name for name in LOCKED_FILES]
    for source in sources:
        digest.update(source.read_bytes())
    digest.update(str(tool("anvil")).encode())  # another binary may write another state
    return digest.hexdigest()[:24]


def _alone(folder: Path) -> IO[str]:
    """A held lock on building in `folder`; closing it lets the next one in."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "build.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _written(manifest: Any) -> bytes:
    return json.dumps(_hexed(dataclasses.asdict(manifest)), indent=1).encode()


def _read(text: bytes, kind: type[T]) -> T:
    try:
        return msgspec.convert(_unhexed(msgspec.json.decode(text)), kind, builtin_types=(bytes,))
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(f"The manifest of a built {kind.__name__} cannot be read: {error}.") from error


def _hexed(value: Any) -> Any:
    if isinstance(value, bytes):
        return hex_of(value)
    if isinstance(value, dict):
        return {key: _hexed(item) for key, item in value.items()}
    return [_hexed(item) for item in value] if isinstance(value, list | tuple) else value


def _unhexed(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("0x"):
        return bytes.fromhex(value[2:])
    if isinstance(value, dict):
        return {key: _unhexed(item) for key, item in value.items()}
    return [_unhexed(item) for item in value] if isinstance(value, list) else value
