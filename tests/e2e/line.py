"""A keeper in the test's own process, on a world whose clock the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keeper import abi, assembly
from keeper.abi import checksum
from keeper.assembly import Parts
from keeper.engine import Engine
from keeper.engine.head import StepReport
from keeper.lab.node import Contract, Tx
from keeper.lab.positions import account_data
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.tokens import balance_of
from keeper.lab.world import Lab
from keeper.ledger import Booked, Ledger
from keeper.store import Store
from keeper.types import Address, Hash, Head
from keeper.watch import Watch

PAUSE_GUARD = abi.load("PauseGuard")


@dataclass(slots=True)
class Line:
    """The keeper and the chain it works on; `head` is the one it last saw, whose time is its clock."""

    lab: Lab
    rig: Rig
    parts: Parts
    engine: Engine
    watch: Watch
    ledger: Ledger
    store: Store
    head: Head

    async def step(self) -> StepReport:
        """Handle the newest head."""
        self.head = await self.parts.chain.head()
        return await self.engine.step(self.head)

    async def steps(self, most: int = 12) -> list[StepReport]:
        """Handle heads, one block mined after each, until one comes to nothing."""
        reports: list[StepReport] = []
        for _ in range(most):
            report = await self.step()
            reports.append(report)
            if not (report.sent or report.settled):
                return reports
            await self.lab.node.mine()
        raise AssertionError(f"still busy after {most} heads: {reports[-1]}")

    async def treasury_raw(self) -> int:
        """What the treasury holds of the profit token."""
        profit = self.lab.world.tokens["USDC"]
        return await balance_of(self.lab.node, profit, self.lab.world.cast.treasury.address)

    async def health(self, market: str, account: Address) -> int:
        """The pool's own word."""
        [data] = await account_data(self.lab.node, self.lab.world.aave[market], [account])
        return data.health_factor_wad

    def booked(self, *kinds: str) -> list[Booked]:
        """Entries of these kinds, oldest first."""
        return self.ledger.entries(None, kind=kinds)[::-1]

    def refusals(self, report: StepReport, account: Address) -> list[tuple[str, str]]:
        """Stage and reason of every refusal of one account at one head."""
        return [(each.stage, each.reason) for _, who, each in report.refused if who == account]

    async def pend(self, tx: Tx) -> Hash:
        """Hand in a transaction that will be first in the next block, without mining it."""
        message = {
            "from": checksum(tx.sender),
            "to": checksum(tx.to) if tx.to else None,
            "data": "0x" + tx.data.hex(),
            "gas": hex(tx.gas),
            "maxFeePerGas": hex(200 * 10**9),
            "maxPriorityFeePerGas": hex(100 * 10**9),
        }
        await self.lab.node.rpc.request("anvil_impersonateAccount", checksum(tx.sender))
        sent: Any = await self.lab.node.rpc.request("eth_sendTransaction", message)
        return Hash(bytes.fromhex(sent[2:]))

    def guard(self) -> Contract:
        """PauseGuard, to be called by hand."""
        return Contract(self.lab.node, self.rig.pause_guard, PAUSE_GUARD)


@asynccontextmanager
async def open_line(
    lab: Lab, folder: Path, terms: Terms | None = None, rpc_urls: Sequence[str] = (), *, sign: bool = True
) -> AsyncIterator[Line]:
    """Deploy, set up and start a keeper; `step` drives it."""
    rig = await make_rig(lab, folder, terms or Terms(), rpc_urls)
    async with open_again(lab, rig, sign=sign) as line:
        yield line


@asynccontextmanager
async def open_again(lab: Lab, rig: Rig, *, sign: bool = True) -> AsyncIterator[Line]:
    """Start a keeper that was set up before, from its files."""
    settings = assembly.settings(rig.config)
    async with assembly.open_parts(settings) as parts:
        head = await parts.chain.head()
        line: Line | None = None
        with Store.open(settings.store.url, chain_id=settings.chain.id) as store:

            def clock() -> float:
                return float((line.head if line else head).timestamp_s)

            key = assembly.operator_key(settings, clock)
            engine, watch = await assembly.engine(parts, store, key, sign=sign, wall_clock=clock)
            line = Line(lab, rig, parts, engine, watch, Ledger(store), store, head)
            await engine.start(head)
            yield line
