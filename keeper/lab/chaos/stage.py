"""A small real chain for things to go wrong on: one Aave market, borrowers, a keeper's files, a front to its node.

It is undone by snapshot, and opened anew after some runs: Anvil keeps the states of a few thousand blocks only, those
that were undone among them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from keeper import abi
from keeper.fixed import WAD
from keeper.lab.aave import Version
from keeper.lab.actors import account
from keeper.lab.anvil import Anvil
from keeper.lab.chainlink import latest, set_price, set_prices
from keeper.lab.chaos.faults import Event
from keeper.lab.chaos.proxy import Proxy, open_proxy
from keeper.lab.node import ETHER, Contract, Node
from keeper.lab.positions import PositionSpec, account_data, open_positions
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.safe import execute
from keeper.lab.uniswap import move_pool
from keeper.lab.world import BASE_FEE_WEI, Lab, WorldSpec, open_lab
from keeper.multisig.safe import InnerCall
from keeper.types import GLOBAL_SCOPE, Address, Hash

VERSIONS: Final[tuple[Version, ...]] = ("3.0", "3.6")
BLOCK_TIME_S: Final = 12
MINUTE: Final = 60 // BLOCK_TIME_S  # blocks
_GWEI: Final = 10**9
_DEBTS: Final = ("USDC", "DAI", "USDT")
_PAUSE: Final = abi.load("PauseGuard")
_REASON: Final = b"CHAOS\0\0\0"
_NO_INCIDENT: Final = Hash(bytes(32))
_DEEPEST_REORG: Final = 8
_RECENT: Final = 512
_HISTORY: Final = 3_000  # blocks; the judge asks how rich the treasury was before the keeper's first
# Generous: what stops a keeper of its own accord is not what is tried here.
_TERMS: Final = Terms(max_loss_usd_per_day="1000000", max_consecutive_reverts=50, max_accounts=4)
_GAS_BUDGET: Final = (
    "max_gas_spend_wei_per_hour = 1000000000000000000",
    "max_gas_spend_wei_per_hour = 10" + "0" * 20,
)


@dataclass(frozen=True, slots=True)
class Stage:
    """A chain with a keeper set up on it; `rig` is the keeper's files, `proxy` the only node it knows."""

    lab: Lab
    rig: Rig
    proxy: Proxy
    version: Version
    borrowers: tuple[Address, ...]
    paused: set[Hash] = field(default_factory=set)  # by a guardian, and not unpaused since

    async def begin(self) -> None:
        """From here on nothing is mined unasked, and a reorg stays above what was set up."""
        node = self.lab.node
        await node.steady_clock(BLOCK_TIME_S)
        await node.set_base_fee(BASE_FEE_WEI)
        await node.mine_on_demand()
        await node.mine(_DEEPEST_REORG)
        self.paused.clear()

    async def mine(self) -> None:
        """The next block, with what is pending."""
        async with self.proxy.held():
            await self.lab.node.mine()

    async def now_s(self) -> int:
        """The chain's time."""
        return (await self.lab.node.head()).timestamp_s

    async def happen(self, event: Event) -> None:
        """Let an event of the world happen, in blocks of its own; a death and the end of a pause are not of it."""
        node, world = self.lab.node, self.lab.world
        match event.kind:
            case "price":
                price_e8 = (await latest(node, world.feeds[event.what])).price_raw
                await self.report(event.what, price_e8 * event.amount // 10_000)
            case "base_fee":
                await node.set_base_fee(event.amount * _GWEI)
            case "reorg":
                async with self.proxy.held():
                    await node.rpc.request("anvil_reorg", event.amount, [])
            case "pause":
                async with self._mined_at_once():
                    guardian = world.cast.guardians[0].address
                    await self._guard().send(guardian, "pause", GLOBAL_SCOPE, _REASON, _NO_INCIDENT)
                self.paused.add(GLOBAL_SCOPE)
            case "kill":
                pass

    async def report(self, symbol: str, price_e8: int) -> None:
        """A feed reports a price, in a block of its own."""
        async with self._mined_at_once():
            await set_price(self.lab.node, self.lab.world.feeds[symbol], price_e8)

    async def heartbeat(self) -> None:
        """Every feed reports what it said last, and the pools are traded back to the first prices."""
        node, world = self.lab.node, self.lab.world
        async with self._mined_at_once():
            feeds = world.feeds.values()
            await set_prices(node, {feed: (await latest(node, feed)).price_raw for feed in feeds})
            for pool in world.uniswap_v3.pools:
                first = (world.prices_e8[pool.token0.symbol], world.prices_e8[pool.token1.symbol])
                await move_pool(node, world.cast, world.uniswap_v3, pool, *first)

    async def fall(self, first: int, count: int, bps: int) -> None:
        """New borrowers, numbered from `first`, just healthy at the first price, and then a price of `bps` of it."""
        world = self.lab.world
        await self.report("WETH", world.prices_e8["WETH"])
        specs = [
            PositionSpec(
                account(number),
                {"WETH": (5 + number % 30) * ETHER},
                {_DEBTS[number % len(_DEBTS)]: 1},
                (108 + number % 8) * WAD // 100,
            )
            for number in range(first, first + count)
        ]
        async with self.proxy.held():
            await open_positions(self.lab.node, world.cast, world.aave[self.version], specs)
        await self.report("WETH", world.prices_e8["WETH"] * bps // 10_000)

    async def unpause(self) -> None:
        """Scheduled by the Safe and executed once the delay is over; nothing when nothing was paused.

        A pause that was orphaned is made again first: a keeper that saw it waits for its end.
        """
        if not (await self._guard().read("scopeState", GLOBAL_SCOPE))[0]:
            if not self.paused:
                return
            await self.happen(Event("pause", 0, 0))
        self.paused.clear()
        call = InnerCall(self.rig.pause_guard, _PAUSE.function("scheduleUnpause").encode(GLOBAL_SCOPE))
        async with self._mined_at_once():
            await execute(self.lab.node, self.lab.world.safe, call)
            await self._guard().send(self.lab.world.cast.guardians[0].address, "executeUnpause", GLOBAL_SCOPE)

    async def unhealthy(self) -> int:
        """Borrowers below a health factor of 1, as the market says."""
        data = await account_data(self.lab.node, self.lab.world.aave[self.version], self.borrowers)
        return sum(1 for each in data if each.health_factor_wad < WAD)

    @asynccontextmanager
    async def undone(self, folder: Path, transport: str) -> AsyncIterator[Stage]:
        """The keeper's files in a folder of their own, and the chain as it was afterwards."""
        node, snapshot = self.lab.node, await self.lab.node.snapshot()
        folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a folder of the lab's own
        for name in ("keeper.toml", ".env"):
            shutil.copy(self.rig.folder / name, folder / name)
        rig = replace(self.rig, folder=folder, config=folder / "keeper.toml")
        configure(rig, [self.proxy.url if transport == "http" else self.proxy.ws_url])
        await self.begin()
        try:
            yield replace(self, rig=rig)
        finally:
            self.proxy.play(())
            self.proxy.mempool.forget()
            await node.drop_pending()
            await node.revert(snapshot)
            await node.drop_pending()

    def _guard(self) -> Contract:
        return Contract(self.lab.node, self.rig.pause_guard, _PAUSE)

    @asynccontextmanager
    async def _mined_at_once(self) -> AsyncIterator[None]:
        async with self.proxy.held():
            await self.lab.node.mine_each_transaction()
            try:
                yield
            finally:
                await self.lab.node.mine_on_demand()


@asynccontextmanager
async def open_stage(
    folder: Path, version: Version = "3.0", *, endless: bool = False
) -> AsyncIterator[Stage]:
    """A fresh chain of one market with borrowers on it, on a clock of `BLOCK_TIME_S` a block, and a keeper set up.

    An `endless` one may grow by any number of blocks: it is a fork of itself as it was set up, whose states the
    original remembers, and keeps the states of its last blocks only.
    """
    async with contextlib.AsyncExitStack() as stack:
        opening = open_lab(WorldSpec(aave=(version,)), clock="steady", ipc=True, history=_HISTORY)
        lab = await stack.enter_async_context(await opening)
        rig = await make_rig(lab, folder, _TERMS)
        borrowers = await _borrow(lab, version)
        if endless:
            lab = await stack.enter_async_context(await _forked(lab))
        assert lab.anvil.ipc_path is not None, "it was asked for"
        proxy = await stack.enter_async_context(open_proxy(str(lab.anvil.ipc_path)))
        configure(rig, [proxy.ws_url])
        text = rig.config.read_text()
        assert _GAS_BUDGET[0] in text, "the rig writes it"
        rig.config.write_text(text.replace(*_GAS_BUDGET))
        yield Stage(lab, rig, proxy, version, borrowers)


async def _forked(lab: Lab) -> Lab:
    extra = ("--prune-history", str(_RECENT))
    anvil = await asyncio.to_thread(Anvil.start, fork_url=lab.anvil.url, ipc=True, extra=extra)
    return Lab(anvil, await Node.open(anvil.url), lab.world)


def configure(rig: Rig, urls: Sequence[str]) -> None:
    """Let the keeper know these nodes and no others."""
    listed = ", ".join(f'"{url}"' for url in urls)
    text = re.sub(r"(?m)^rpc_urls = .*$", f"rpc_urls = [{listed}]", rig.config.read_text())
    rig.config.write_text(text)


async def _borrow(lab: Lab, version: Version) -> tuple[Address, ...]:
    """Borrowers whose health factors lie close together, so that every fall puts somebody at risk."""
    specs = [
        PositionSpec(
            account(100 + number),
            {"WBTC": (number + 1) * 10**8} if number % 4 == 3 else {"WETH": (5 + 7 * number) * ETHER},
            {_DEBTS[number % len(_DEBTS)]: 1},
            (108 + 4 * number) * WAD // 100,
        )
        for number in range(10)
    ]
    await open_positions(lab.node, lab.world.cast, lab.world.aave[version], specs)
    return tuple(spec.account for spec in specs)
