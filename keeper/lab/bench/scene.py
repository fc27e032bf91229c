"""What the bench measures on: borrowers of whom one more falls at each step of the price, and the keeper's process.

The crowd is written into the market's storage and stays healthy throughout. Before it come a few borrowers opened by
real transactions, their health factors a tenth of a percent apart: each step of the feed makes exactly one of them
liquidatable, and stepping back makes it healthy again.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec

from keeper.errors import ExecutionError
from keeper.fixed import WAD
from keeper.lab.aave import AaveMarket
from keeper.lab.actors import account
from keeper.lab.artifacts import chainlink
from keeper.lab.chainlink import set_price
from keeper.lab.crowd import write_accounts
from keeper.lab.node import ETHER, Contract
from keeper.lab.positions import PositionSpec, account_data, open_positions
from keeper.lab.rig import Rig, Terms, keeper_environment, make_rig
from keeper.lab.uniswap import move_pool
from keeper.lab.world import Lab, WorldSpec, open_lab
from keeper.store import Store
from keeper.types import Address, hex_of

T = TypeVar("T")

MARKET: Final = "3.6"
_PROTOCOL: Final = "aave-3-6"
_CROWD_HEALTH: Final = (1.3, 3.0)
_OPENED_WAD: Final = 104 * WAD // 100  # the lowest a loan-to-value limit allows is 1.0312
_STEP: Final = 0.001
_SUPPLY: Final = {"WETH": 10 * ETHER}
_DEBT: Final = {"USDC": 1}
_FIRST_TARGET: Final = 500
_SUBMIT_GAS: Final = 400_000
_PATIENCE_S: Final = 60.0
_POLL_S: Final = 0.02
_QUIET_S: Final = 0.1  # what a step still does after its cursor is stored


@dataclass(frozen=True, slots=True)
class Fall:
    """A block with one report of the feed: its number and the report's transaction hash."""

    number: int
    transaction: str


@dataclass(slots=True)
class Scene:
    """A chain with `accounts` borrowers in one market, the last ones of which are `targets`, most endangered first."""

    lab: Lab
    market: AaveMarket
    rig: Rig
    accounts: tuple[Address, ...]
    targets: tuple[Address, ...]
    levels_e8: tuple[int, ...]
    collateral: str = "WETH"
    debt: str = "USDC"
    taken: int = 0
    last_calldata: bytes = b""

    @property
    def ipc_path(self) -> Path:
        """The node's socket."""
        assert self.lab.anvil.ipc_path is not None, "a scene's node is opened with one"
        return self.lab.anvil.ipc_path

    @property
    def target(self) -> Address:
        """Who falls next."""
        return self.targets[self.taken]

    async def fall(self) -> Fall:
        """One block in which the feed makes the target liquidatable. Nothing is asked of the node after it."""
        return await self._report(self.levels_e8[self.taken + 1])

    async def fall_by(self, accounts: int) -> Fall:
        """One block in which the feed makes so many targets liquidatable at once."""
        return await self._report(self.levels_e8[self.taken + accounts])

    async def rise(self) -> None:
        """One block in which the feed makes it healthy again, without anything that was pending."""
        await self.lab.node.drop_pending()
        await self._report(self.levels_e8[self.taken])

    async def take(self, sent: str) -> None:
        """Mine the keeper's transaction and go on to the next target.

        Raises ExecutionError unless the operator sent it and the target was liquidated.
        """
        node = self.lab.node
        transaction = await node.rpc.request("eth_getTransactionByHash", sent)
        if transaction["from"] != hex_of(self.lab.world.cast.operator.address):
            raise ExecutionError(f"The transaction {sent} is not the operator's.")
        await node.mine()
        [data] = await account_data(node, self.market, [self.target])
        if data.health_factor_wad < WAD:
            raise ExecutionError(f"{hex_of(self.target)} was not liquidated: {data}.")
        self.taken += 1
        self.last_calldata = bytes.fromhex(transaction["input"][2:])

    async def _report(self, price_e8: int) -> Fall:
        """As `set_price` does, with the block mined by hand and without asking what came of it."""
        node, feed, flux = self.lab.node, self.lab.world.feeds["WETH"], chainlink("FluxAggregator").abi
        round_id = int(await Contract(node, feed.aggregator, flux).read("latestRound")) + 1
        number = (await node.head()).number + 1
        message = {
            "from": hex_of(feed.reporter),
            "to": hex_of(feed.aggregator),
            "data": hex_of(flux.function("submit").encode(round_id, price_e8)),
            "gas": hex(_SUBMIT_GAS),
        }
        transaction = await node.rpc.request("eth_sendTransaction", message)
        await node.mine()
        return Fall(number, transaction)


@asynccontextmanager
async def open_scene(accounts: int, falls: int, folder: Path) -> AsyncIterator[Scene]:
    """Build it: `accounts` borrowers, of whom `falls` fall one after another. Blocks are mined by hand from then on."""
    async with await open_lab(WorldSpec(aave=(MARKET,)), ipc=True) as lab:
        node, world = lab.node, lab.world
        market = world.aave[MARKET]
        targets = tuple(account(_FIRST_TARGET + number) for number in range(falls))
        specs = [
            PositionSpec(who, _SUPPLY, _DEBT, int(_OPENED_WAD * (1 + _STEP) ** number))
            for number, who in enumerate(targets)
        ]
        await open_positions(node, world.cast, market, specs)
        # halfway between two targets, the first time above all of them
        top = world.prices_e8["WETH"] * WAD / _OPENED_WAD * (1 + _STEP / 2)
        levels_e8 = tuple(int(top / (1 + _STEP) ** number) for number in range(falls + 1))
        await set_price(node, world.feeds["WETH"], levels_e8[0])
        prices_e8 = {**world.prices_e8, "WETH": levels_e8[0]}
        for pool in world.uniswap_v3.pools:
            sides = prices_e8[pool.token0.symbol], prices_e8[pool.token1.symbol]
            await move_pool(node, world.cast, world.uniswap_v3, pool, *sides)
        rig = await make_rig(lab, folder, Terms(), [str(lab.anvil.ipc_path)])
        crowd = await write_accounts(node, world.cast, market, accounts - falls, health_factors=_CROWD_HEALTH)
        await node.mine_on_demand()
        await node.mine()
        yield Scene(lab, market, rig, (*crowd.accounts, *targets), targets, levels_e8)


class Keeper:
    """The keeper as an operator runs it: its own process, its own configuration, log and record."""

    def __init__(self, scene: Scene, process: asyncio.subprocess.Process) -> None:
        self._scene = scene
        self._process = process
        self._log = scene.rig.folder / "keeper.log"

    @classmethod
    async def start(cls, scene: Scene) -> Self:
        """Start it and wait until it knows every account. Raises ExecutionError when it does not come to that."""
        with (scene.rig.folder / "keeper.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "keeper", "run", "--config", str(scene.rig.config)),
                cwd=scene.rig.folder,
                env=keeper_environment(),
                stderr=log,
            )
        keeper = cls(scene, process)
        await keeper._until(lambda: bool(keeper.logged("started")), "the keeper's start")
        known = len(keeper._read(lambda store: store.accounts(_PROTOCOL)))
        if known < len(scene.accounts):
            raise ExecutionError(f"The keeper found {known} of {len(scene.accounts)} accounts.")
        return keeper

    def hold(self) -> None:
        """Stop its clock, so that it takes no part in what else is measured."""
        self._process.send_signal(signal.SIGSTOP)

    async def release(self) -> None:
        """Let it go on, and wait until it has caught up with the chain at a quiet head."""
        self._process.send_signal(signal.SIGCONT)
        await self._scene.lab.node.mine()
        head = (await self._scene.lab.node.head()).number
        await self._until(lambda: self._cursor() >= head, f"the keeper to reach block {head}")
        await asyncio.sleep(_QUIET_S)

    async def follow(self) -> None:
        """Wait until it has worked through the newest head."""
        head = (await self._scene.lab.node.head()).number
        await self._until(lambda: self._cursor() >= head, f"the keeper to reach block {head}")

    async def closed(self, cause: str, since: int) -> float:
        """When the gate was closed by a cause at or after head `since`, by the monotonic clock; waits for it."""

        def line() -> dict[str, Any] | None:
            found = (
                each for each in self.logged("pause") if each["cause"] == cause and each["head"] >= since
            )
            return next(found, None)

        await self._until(lambda: line() is not None, f"the gate to be closed by {cause}")
        return int((line() or {})["at_us"]) / 1_000_000

    async def reacted(self, number: int) -> float:
        """Its own measure of a head: seconds from arrival to the first broadcast. Waits until all of it is booked."""
        taken = self._scene.taken
        await self._until(lambda: len(self.logged("settled")) >= taken, "the liquidation to be booked")
        [line] = [line for line in self.logged("reacted") if line["head"] == number]
        return float(line["reaction_us"]) / 1_000_000

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Its log lines of one kind, oldest first."""
        lines = self._log.read_bytes().splitlines()
        found = [msgspec.json.decode(line) for line in lines if b'"event": "%s"' % event.encode() in line]
        return [line for line in found if line["event"] == event]

    async def stop(self) -> None:
        """End it as an operator does."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        await asyncio.wait_for(self._process.wait(), _PATIENCE_S)

    def _cursor(self) -> int:
        cursor = self._read(lambda store: store.cursor(_PROTOCOL))
        return -1 if cursor is None else cursor.number

    def _read(self, question: Callable[[Store], T]) -> T:
        with Store.open(f"sqlite:///{self._scene.rig.folder / 'keeper.db'}", read_only=True) as store:
            return question(store)

    async def _until(self, done: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + _PATIENCE_S
        while not done():
            if self._process.returncode is not None or time.monotonic() > deadline_s:
                raise ExecutionError(f"The bench waited for {what}: {self._log.read_text()[-2000:]}")
            await asyncio.sleep(_POLL_S)
