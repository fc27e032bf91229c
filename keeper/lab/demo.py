"""The main job, shown: real protocols on a local chain, the daemon as its own process, a fall, a pause, an unpause.

What is claimed at the end is read from the chain and from the ledger, and the judge reads both again on its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from keeper import abi
from keeper.errors import ExecutionError
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import set_prices
from keeper.lab.judge import Verdict, judge
from keeper.lab.node import Contract
from keeper.lab.perps import Crowd, Perps, fall, open_crowd, open_perps_lab, unhealthy
from keeper.lab.positions import PositionSpec, account_data, open_positions
from keeper.lab.rig import Rig, Terms, keeper_environment, make_rig
from keeper.lab.safe import execute
from keeper.lab.tokens import balance_of
from keeper.lab.uniswap import move_pool
from keeper.lab.world import Lab
from keeper.ledger import Booked, Ledger
from keeper.multisig.safe import InnerCall
from keeper.store import Store
from keeper.types import GLOBAL_SCOPE, Address, Hash

_E8: Final = 10**8
_BLOCK_TIME_S: Final = 1
_UNPAUSE_DELAY_S: Final = 3
_CANARY_USD: Final = (
    "20000"  # after the unpause one liquidation goes first, then twice as much with each that pays
)
_PATIENCE_S: Final = 30
_QUIET_HEADS: Final = 3  # heads without anything sent after which the keeper is done with a move
_PAUSE: Final = abi.load("PauseGuard")
_DRILL: Final = b"DRILL\0\0\0"
_WALK: Final = (("WETH", 1_790, 37_000, 2_170), ("WETH", 1_500, 23_000, 1_740))  # dollars: ETH, BTC, wstETH

# Health factors at the first prices: the first wave falls with the first move, the second with the next one.
_FIRST, _SECOND, _SAFE = 105 * WAD // 100, 122 * WAD // 100, 3 * WAD


@dataclass(frozen=True, slots=True)
class _Kind:
    """A sort of borrower; amounts in whole tokens times 1000."""

    supply: Mapping[str, int]
    borrow: Mapping[str, int]
    health_factor_wad: int
    e_mode: int = 0


# Mixed reserves and decimals, one collateral or several, dust to whales, e-mode, isolation, and one that ends under
# water. Each is opened on both Aave versions.
_KINDS: Final = (
    _Kind({"WETH": 10_000}, {"USDC": 1}, _FIRST),
    _Kind({"WETH": 1_500_000}, {"USDC": 1}, _FIRST),
    _Kind({"WETH": 25_000}, {"DAI": 1}, _FIRST),
    _Kind({"WETH": 8_000, "WBTC": 300}, {"USDT": 1, "DAI": 1}, 107 * WAD // 100),
    _Kind({"WETH": 2}, {"USDC": 1}, _FIRST),
    _Kind({"wstETH": 40_000}, {"WETH": 1}, 1035 * WAD // 1000, e_mode=2),
    _Kind({"WBTC": 2_000}, {"USDC": 1}, 1075 * WAD // 1000),
    _Kind({"WETH": 60_000}, {"USDT": 1}, _SECOND),
    _Kind({"WBTC": 5_000}, {"WETH": 1}, 145 * WAD // 100),
    _Kind({"WETH": 20_000, "USDC": 15_000_000}, {"DAI": 1}, 115 * WAD // 100),
    _Kind({"ISO": 2_000_000}, {"USDC": 1}, _SAFE),
    _Kind({"WBTC": 900}, {"DAI": 1}, 115 * WAD // 100),
    _Kind({"USDC": 30_000_000}, {"WETH": 1}, _SAFE),
)


class _Show:
    """Progress on a terminal, plain lines otherwise, nothing when quiet."""

    def __init__(self, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._began:5.1f} s[/dim]  {text}")


async def run(keep: Path | None, *, quiet: bool) -> dict[str, Any]:
    """Play it through and return the document of `keeper demo --json`."""
    show = _Show(quiet)
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keeper-demo-")))
        show.say("building a chain with Aave, Perp Curie, Synthetix, Uniswap, Chainlink and a 2-of-3 Safe")
        lab, perps = await open_perps_lab()
        async with lab:
            terms = Terms(unpause_delay_s=_UNPAUSE_DELAY_S, canary_usd=_CANARY_USD)
            rig = await make_rig(lab, folder, terms, tables=perps.tables)
            return await _play(_Stage(lab, perps, rig), rig, show)


async def _play(stage: _Stage, rig: Rig, show: _Show) -> dict[str, Any]:
    lending, trading = await stage.open_positions()
    show.say(f"opened {lending} positions on two Aave markets and {trading} on Perp Curie and Synthetix")
    await stage.begin()
    before_raw = await stage.treasury_raw()
    daemon = await stage.start_daemon()
    try:
        await stage.until(stage.started, "the daemon's start")
        show.say("the daemon runs as its own process and finds nothing to do")
        await stage.move_prices(*_WALK[0][1:])
        await stage.sell_perps()
        unhealthy = await stage.unhealthy()
        show.say(f"prices fall: ETH ${_WALK[0][1]}, BTC ${_WALK[0][2]}; {unhealthy} accounts are unhealthy")
        await stage.until_quiet()
        show.say(
            f"liquidated {len(stage.booked('settled'))} times; {await stage.unhealthy()} unhealthy accounts left"
        )
        paused_at = await stage.pause()
        show.say("two of three owners pause through the Safe")
        await stage.move_prices(*_WALK[1][1:])
        candidates = await stage.unhealthy()
        show.say(
            f"prices fall again: ETH ${_WALK[1][1]}, BTC ${_WALK[1][2]}; {candidates} accounts are unhealthy"
        )
        await stage.heads(4)
        sent_while_paused = await stage.liquidations_since(paused_at)
        show.say(f"while paused: {candidates} candidates, {sent_while_paused} transactions")
        await stage.unpause(show)
        await stage.until_quiet()
        show.say(
            f"liquidated {len(stage.booked('settled'))} times; {await stage.unhealthy()} unhealthy accounts left"
        )
    finally:
        code = await stage.stop_daemon(daemon)
    show.say("asking the judge, who reads chain and record from scratch")
    verdict = await judge(rig.config)
    gained_raw = await stage.treasury_raw() - before_raw
    return stage.document(code, gained_raw, candidates, sent_while_paused, verdict)


class _Stage:
    """What the demo does to the chain and reads from the ledger."""

    def __init__(self, lab: Lab, perps: Perps, rig: Rig) -> None:
        self._lab = lab
        self._perps = perps
        self._crowd = Crowd((), {})
        self._rig = rig
        self._accounts: dict[str, list[Address]] = {name: [] for name in lab.world.aave}
        self._daemon: asyncio.subprocess.Process | None = None
        self._profit = lab.world.tokens["USDC"]

    async def open_positions(self) -> tuple[int, int]:
        """How many borrowers there are then, and how many traders."""
        world = self._lab.world
        number = 1000
        for name, market in world.aave.items():
            specs = []
            for kind in _KINDS:
                supply = {
                    symbol: thousandths * 10 ** world.tokens[symbol].decimals // 1000
                    for symbol, thousandths in kind.supply.items()
                }
                who = account(number)
                number += 1
                specs.append(PositionSpec(who, supply, kind.borrow, kind.health_factor_wad, kind.e_mode))
                self._accounts[name].append(who)
            await open_positions(self._lab.node, world.cast, market, specs)
        self._crowd = await open_crowd(self._lab, self._perps)
        return number - 1000, len(self._crowd)

    async def begin(self) -> None:
        """Blocks come by themselves from here."""
        await self._lab.node.mine_every(_BLOCK_TIME_S)

    async def move_prices(self, eth: int, btc: int, wsteth: int) -> None:
        """Through the feeds, in one block, and the markets with them."""
        world = self._lab.world
        prices_e8 = {
            **world.prices_e8,
            "WETH": eth * _E8,
            "WBTC": btc * _E8,
            "wstETH": wsteth * _E8,
        }
        await self._lab.node.mine_each_transaction()
        for pool in world.uniswap_v3.pools:
            price0, price1 = (prices_e8[token.symbol] for token in (pool.token0, pool.token1))
            await move_pool(self._lab.node, world.cast, world.uniswap_v3, pool, price0, price1)
        await set_prices(self._lab.node, {world.feeds[s]: prices_e8[s] for s in ("WETH", "WBTC", "wstETH")})
        await self._lab.node.mine_every(_BLOCK_TIME_S)

    async def sell_perps(self) -> None:
        await fall(self._lab, self._perps)

    async def unhealthy(self) -> int:
        """Accounts below a health factor of 1, as the protocols say."""
        count = await unhealthy(self._lab, self._perps, self._crowd)
        for name, market in self._lab.world.aave.items():
            data = await account_data(self._lab.node, market, self._accounts[name])
            count += sum(1 for each in data if each.health_factor_wad < WAD)
        return count

    async def treasury_raw(self) -> int:
        return await balance_of(self._lab.node, self._profit, self._lab.world.cast.treasury.address)

    async def pause(self) -> int:
        """A real 2-of-3 transaction; the number of the block it was mined in."""
        call = _PAUSE.function("pause").encode(GLOBAL_SCOPE, _DRILL, Hash(bytes(32)))
        receipt = await execute(self._lab.node, self._lab.world.safe, InnerCall(self._rig.pause_guard, call))
        return int(receipt.block_number)

    async def unpause(self, show: _Show) -> None:
        """Schedule through the Safe, wait for the delay, execute."""
        node, people = self._lab.node, self._lab.world.cast
        call = _PAUSE.function("scheduleUnpause").encode(GLOBAL_SCOPE)
        await execute(node, self._lab.world.safe, InnerCall(self._rig.pause_guard, call))
        show.say(f"the Safe schedules the unpause; the delay is {_UNPAUSE_DELAY_S} s")
        await self.heads(_UNPAUSE_DELAY_S + 1)
        guard = Contract(node, self._rig.pause_guard, _PAUSE)
        await guard.send(people.liquidator.address, "executeUnpause", GLOBAL_SCOPE)
        show.say("unpaused; one canary goes first, then twice as much with each that pays")

    async def liquidations_since(self, block: int) -> int:
        """Transactions of the operator after `block`, whatever became of them."""
        node, operator = self._lab.node, self._lab.world.cast.operator.address
        count = 0
        for nonce_at in (block, None):
            tag = "latest" if nonce_at is None else hex(nonce_at)
            nonce = int(await node.rpc.request("eth_getTransactionCount", abi.checksum(operator), tag), 16)
            count = nonce - count
        return count

    async def heads(self, count: int) -> None:
        """Wait for that many blocks."""
        first = (await self._lab.node.head()).number

        async def passed() -> bool:
            return (await self._lab.node.head()).number >= first + count

        await self.until(passed, f"{count} blocks")

    async def until_quiet(self) -> None:
        """Wait until nothing is in flight and nothing was sent for some heads."""
        last, since = -1, (await self._lab.node.head()).number

        async def quiet() -> bool:
            nonlocal last, since
            sent, done = (
                len(self.booked("sent")),
                len(self.booked("settled", "reverted", "cancelled", "dropped")),
            )
            head = (await self._lab.node.head()).number
            if sent != last or done < sent:
                last, since = sent, head
            return head - since > _QUIET_HEADS

        await self.until(quiet, "the keeper to finish")

    async def until(self, done: Callable[[], Awaitable[bool]], what: str) -> None:
        began = time.monotonic()
        while not await done():
            if self._daemon is not None and self._daemon.returncode is not None:
                log = await asyncio.to_thread((self._rig.folder / "keeper.log").read_text)
                raise ExecutionError(f"The daemon ended with code {self._daemon.returncode}: {log[-2000:]}")
            if time.monotonic() - began > _PATIENCE_S:
                raise ExecutionError(
                    f"Waited {_PATIENCE_S} s for {what}; see {self._rig.folder / 'keeper.log'}."
                )
            await asyncio.sleep(0.2)

    def booked(self, *kinds: str) -> list[Booked]:
        """Entries of these kinds, oldest first."""
        with Store.open(f"sqlite:///{self._rig.folder / 'keeper.db'}", read_only=True) as store:
            return Ledger(store).entries(None, kind=kinds)[::-1]

    async def start_daemon(self) -> asyncio.subprocess.Process:
        with (self._rig.folder / "keeper.log").open("wb") as log:
            self._daemon = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "keeper", "run", "--config", str(self._rig.config)),
                cwd=self._rig.folder,
                env=keeper_environment(),
                stderr=log,
            )
        return self._daemon

    async def started(self) -> bool:
        """Whether the daemon says that it has; its record may only be opened then."""
        return '"event": "started"' in (self._rig.folder / "keeper.log").read_text()

    async def stop_daemon(self, daemon: asyncio.subprocess.Process) -> int:
        if daemon.returncode is None:
            daemon.terminate()
        return await asyncio.wait_for(daemon.wait(), _PATIENCE_S)

    def document(
        self, code: int, gained_raw: int, candidates: int, sent_while_paused: int, verdict: Verdict
    ) -> dict[str, Any]:
        settled = self.booked("settled")
        booked_raw = sum(int(entry.body["profit_raw"]) for entry in settled)
        refused = Counter(str(entry.body["reason"]) for entry in self.booked("refusal"))
        statistics = next((entry.body for entry in self.booked("stopped")), {})
        failures = []
        if code != 0:
            failures.append(f"the daemon ended with code {code}")
        if not settled:
            failures.append("nothing was liquidated")
        if sent_while_paused:
            failures.append(f"{sent_while_paused} transactions were sent while paused")
        if booked_raw != gained_raw:
            failures.append(f"booked {booked_raw} but the treasury gained {gained_raw} raw units")
        if not verdict.ok:
            failures.append("the judge disagrees")
        return {
            "schema": 1,
            "ok": not failures,
            "failures": failures,
            "liquidations": [self._liquidation(entry) for entry in settled],
            "reverted": len(self.booked("reverted")),
            "refused": dict(refused),
            "while_paused": {"candidates": candidates, "sent": sent_while_paused},
            "unhealthy_left": [
                {"protocol": each["protocol"], "account": each["account"], "reason": each["reason"]}
                for each in verdict.document()["unhealthy"]
            ],
            "booked_profit_raw": str(booked_raw),
            "treasury_delta_raw": str(gained_raw),
            "profit_token": {"token": abi.checksum(self._profit.address), "decimals": self._profit.decimals},
            "heads": statistics.get("heads"),
            "latency_ms": {
                "p50": _milliseconds(statistics.get("reaction_p50_us")),
                "p99": _milliseconds(statistics.get("reaction_p99_us")),
            },
            "judge": verdict.document(),
        }

    def _liquidation(self, entry: Booked) -> dict[str, Any]:
        body = entry.body
        net_usd_e8 = int(body["profit_usd_e8"]) - int(body["gas_cost_usd_e8"])
        return {
            "protocol": entry.protocol,
            "account": entry.account,
            "tx": body["tx"],
            "status": body["status"],
            "expected_profit_raw": str(body["expected_profit_raw"]),
            "treasury_delta_raw": str(body["profit_raw"]),
            "token": body["profit_token"],
            "decimals": body["profit_decimals"],
            "gas_cost_wei": str(body["gas_cost_wei"]),
            "net_profit_usd": format(Decimal(net_usd_e8).scaleb(-8), "f"),
        }


def render(document: Mapping[str, Any]) -> None:
    """The final table: expected beside realised."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table(title="Liquidations", box=None, pad_edge=False, title_justify="left")
    for column in ("protocol", "account", "expected $", "realised $", "gas $", "net $"):
        table.add_column(column, justify="right" if column.endswith("$") else "left", no_wrap=True)
    for row in document["liquidations"]:
        expected = _token(row["expected_profit_raw"], row["decimals"])
        realised = _token(row["treasury_delta_raw"], row["decimals"])
        net = Decimal(row["net_profit_usd"])
        table.add_row(
            row["protocol"],
            f"{row['account'][:10]}…",
            f"{expected:,.2f}",
            f"{realised:,.2f}",
            f"{realised - net:,.2f}",
            f"{net:,.2f}",
        )
    console.print(table)
    decimals = document["profit_token"]["decimals"]
    console.print(
        f"booked {_token(document['booked_profit_raw'], decimals):,.6f}, "
        f"treasury gained {_token(document['treasury_delta_raw'], decimals):,.6f} USDC"
    )
    paused = document["while_paused"]
    console.print(f"while paused: {paused['candidates']} candidates, {paused['sent']} transactions sent")
    refused = ", ".join(f"{count} {reason}" for reason, count in document["refused"].items())
    console.print(f"refused: {refused or 'none'}")
    for left in document["unhealthy_left"]:
        console.print(f"left: {left['protocol']} {left['account']} {left['reason']}")
    latency = document["latency_ms"]
    reaction = f"{latency['p50']} ms median, {latency['p99']} ms p99"
    console.print(f"{document['heads']} heads; head to first transaction {reaction}")
    for failure in document["failures"]:
        console.print(f"FAILED: {failure}")
    if document["ok"]:
        console.print("The judge finds nothing profitable left and every booked figure on the chain.")


def _token(raw: str, decimals: int) -> Decimal:
    return Decimal(raw).scaleb(-decimals)


def _milliseconds(microseconds: Any) -> float | None:
    return None if microseconds is None else int(microseconds) / 1000
