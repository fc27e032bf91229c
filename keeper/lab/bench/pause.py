"""`keeper bench pause`: from a guardian's transaction to a closed gate and a nonce taken back.

The keeper runs as its own process. In each trial a price makes some borrowers liquidatable, the keeper's transactions
wait in the pool, and a guardian's pause joins them. It pays more, so the next block has it first. Afterwards the Safe
unpauses, and the price goes back.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keeper.abi import checksum, load
from keeper.errors import ExecutionError
from keeper.lab.bench.machine import machine, spread_ms, versions
from keeper.lab.bench.report import write_pause
from keeper.lab.bench.scene import Keeper, Scene, open_scene
from keeper.lab.bench.witness import Witness
from keeper.lab.node import Contract
from keeper.lab.rig import Terms
from keeper.lab.safe import execute
from keeper.multisig.safe import InnerCall
from keeper.types import GLOBAL_SCOPE, Hash, hex_of

IN_FLIGHT: Final = 3
LIMITS_MS: Final = {"gate_pending_ms": 50, "gate_head_ms": 10, "cancel_ms": 100}  # of the 99th percentile
_ACCOUNTS: Final = 1_000
_WARM_UP: Final = 2  # trials that are not counted
_PAUSE_GUARD: Final = load("PauseGuard")
_LIQUIDATED: Final = load("Liquidator").event("Liquidated").topic
_TIP_WEI, _MAX_FEE_WEI = 50 * 10**9, 200 * 10**9


@dataclass(frozen=True, slots=True)
class Trial:
    """One pause, in seconds; `executed` are the liquidations in its block and after it, until the unpause."""

    gate_pending_s: float
    gate_head_s: float
    cancel_s: float
    executed: int


async def pause(*, trials: int, write: bool = False, accounts: int = _ACCOUNTS) -> dict[str, Any]:
    """Measure so many pauses and return the document of `keeper bench pause --json`."""
    load_before = [round(each, 2) for each in os.getloadavg()]
    measured = await _measure(trials, accounts)
    figures: dict[str, Any] = {
        "gate_pending_ms": spread_ms(each.gate_pending_s for each in measured),
        "gate_head_ms": spread_ms(each.gate_head_s for each in measured),
        "cancel_ms": spread_ms(each.cancel_s for each in measured),
        "executed_after_pause": sum(each.executed for each in measured),
    }
    failures = [
        f"{name} p99 is {figures[name]['p99']} ms, above {limit}"
        for name, limit in LIMITS_MS.items()
        if figures[name]["p99"] > limit
    ]
    if figures["executed_after_pause"]:
        failures.append(f"{figures['executed_after_pause']} liquidations were executed after a pause")
    document = {
        "schema": 1,
        "name": "pause",
        "ok": not failures,
        "failures": failures,
        "trials": trials,
        "in_flight": IN_FLIGHT,
        "accounts": accounts,
        "machine": {**machine(), "load": load_before},
        "versions": versions(),
        "figures": figures,
        "ratios": {},
    }
    if write:
        write_pause(document)
    return document


async def _measure(trials: int, accounts: int) -> Sequence[Trial]:
    with tempfile.TemporaryDirectory(prefix="keeper-bench-") as folder:
        async with open_scene(accounts, IN_FLIGHT + 1, Path(folder)) as scene:
            keeper = await Keeper.start(scene)
            try:
                with Witness(scene.ipc_path) as witness:
                    course = _Course(scene, keeper, witness)
                    measured = [await course.trial() for _ in range(_WARM_UP + trials)]
            finally:
                await keeper.stop()
    return measured[_WARM_UP:]


class _Course:
    def __init__(self, scene: Scene, keeper: Keeper, witness: Witness) -> None:
        self._scene = scene
        self._keeper = keeper
        self._witness = witness
        self._guard = Contract(scene.lab.node, scene.rig.pause_guard, _PAUSE_GUARD)

    async def trial(self) -> Trial:
        """Fall, pause, unpause, rise."""
        node = self._scene.lab.node
        fall = await self._scene.fall_by(IN_FLIGHT)
        arrived_s = await asyncio.to_thread(self._witness.head, fall.number)
        await asyncio.to_thread(self._witness.all_pending, arrived_s, fall.transaction, IN_FLIGHT)
        await self._keeper.follow()

        began_s, paused = await self._pause()
        cancelled = await asyncio.to_thread(self._witness.all_pending, began_s, paused, IN_FLIGHT)
        await self._require_cancelled(cancelled)
        gate_pending_s = await self._keeper.closed("pending", fall.number) - began_s

        await node.mine()
        head = await node.head()
        block_s = await asyncio.to_thread(self._witness.head, head.number)
        gate_head_s = await self._keeper.closed("chain", head.number) - block_s
        await self._keeper.follow()
        await self._require_paused()
        executed = await self._executed(head.number)
        await self._unpause()
        return Trial(gate_pending_s, gate_head_s, max(cancelled.values()) - began_s, executed)

    async def _pause(self) -> tuple[float, str]:
        """A guardian's transaction in the pool, and when it was handed in."""
        call = _PAUSE_GUARD.function("pause").encode(GLOBAL_SCOPE, b"DRILL\0\0\0", Hash(bytes(32)))
        message = {
            "from": checksum(self._scene.lab.world.cast.guardians[0].address),
            "to": checksum(self._scene.rig.pause_guard),
            "data": hex_of(call),
            "gas": hex(200_000),
            "maxFeePerGas": hex(_MAX_FEE_WEI),
            "maxPriorityFeePerGas": hex(_TIP_WEI),
        }
        began_s = time.monotonic()
        return began_s, await self._scene.lab.node.rpc.request("eth_sendTransaction", message)

    async def _require_cancelled(self, hashes: dict[str, float]) -> None:
        """Raise ExecutionError unless each is a transfer of nothing from the operator to itself."""
        operator = hex_of(self._scene.lab.world.cast.operator.address)
        for name in hashes:
            sent = await self._scene.lab.node.rpc.request("eth_getTransactionByHash", name)
            if (sent["from"], sent["to"], sent["input"], sent["value"]) != (operator, operator, "0x", "0x0"):
                raise ExecutionError(f"After the pause {name} was sent, which takes nothing back.")

    async def _require_paused(self) -> None:
        if not (await self._guard.read("scopeState", GLOBAL_SCOPE))[0]:
            raise ExecutionError(
                "The guardian's pause was not mined in the block that the bench meant it for."
            )

    async def _executed(self, since: int) -> int:
        """Liquidations on the chain from block `since` on."""
        query = {
            "fromBlock": hex(since),
            "toBlock": "latest",
            "address": checksum(self._scene.rig.liquidator),
            "topics": [hex_of(_LIQUIDATED)],
        }
        return len(await self._scene.lab.node.rpc.request("eth_getLogs", query))

    async def _unpause(self) -> None:
        """By the Safe, once the price is back, so that nothing is left to liquidate."""
        node, world = self._scene.lab.node, self._scene.lab.world
        await self._scene.rise()
        await node.mine_each_transaction()
        schedule = _PAUSE_GUARD.function("scheduleUnpause").encode(GLOBAL_SCOPE)
        await execute(node, world.safe, InnerCall(self._scene.rig.pause_guard, schedule))
        await node.advance(Terms().unpause_delay_s + 1)
        await self._guard.send(world.cast.liquidator.address, "executeUnpause", GLOBAL_SCOPE)
        await node.mine_on_demand()
        await node.mine()
        await self._keeper.follow()
