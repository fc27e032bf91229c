"""A rehearsal of the emergency: on a fork of the configured chain where the lab is installed, else by simulation.

On the fork a guardian pauses, the Safe pauses, schedules, a guardian vetoes, the Safe schedules again and anybody
restarts; owners approve by impersonation, so no key is needed. The real chain is only read.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from keeper import assembly
from keeper.assembly import Parts
from keeper.chain.client import SimCall
from keeper.commands import safe_chain
from keeper.commands.shapes import SCHEMA, account_of
from keeper.config import Settings
from keeper.errors import ConfigError, ExecutionError, KeeperError
from keeper.installation import PAUSE_GUARD
from keeper.lab.anvil import Anvil
from keeper.lab.install import tool
from keeper.lab.node import Contract, Node, Tx
from keeper.multisig import builder
from keeper.multisig.decode import SAFE, Pins
from keeper.multisig.proposal import Proposal
from keeper.multisig.safe import InnerCall, exec_calldata
from keeper.types import GLOBAL_SCOPE, Address, Hash, Reverted

_REASON: Final = b"DRILL\0\0\0"
_INCIDENT: Final = Hash(bytes(32))
_ETHER: Final = 10**18


async def run(config: Path, guardian: str) -> dict[str, Any]:
    """Rehearse, and say step by step what worked and how long it took."""
    settings = assembly.settings(config)
    contracts, who = settings.require_contracts(), account_of(guardian)
    names = tuple(model.name for model in settings.protocols)
    pins = Pins(settings.chain.id, contracts.safe, contracts.pause_guard, contracts.liquidator, names)
    steps: list[dict[str, Any]] = []
    try:
        tool("anvil")
    except ConfigError:
        how = "by simulation, because the lab is not installed (`keeper lab install`)"
        async with assembly.open_parts(settings) as parts:
            await _simulate(parts, pins, who, steps)
    else:
        how = "on a fork of the chain"
        await _rehearse(settings, pins, who, steps)
    return {"schema": SCHEMA, "ok": all(step["ok"] for step in steps), "how": how, "steps": steps}


async def _simulate(parts: Parts, pins: Pins, guardian: Address, steps: list[dict[str, Any]]) -> None:
    chain, head = parts.chain, await parts.chain.head()
    call = PAUSE_GUARD.function("pause").encode(GLOBAL_SCOPE, _REASON, _INCIDENT)

    async def by_guardian() -> str:
        answer = await chain.call(SimCall(guardian, pins.pause_guard, call, safe_chain.CALL_GAS), head)
        if isinstance(answer, Reverted):
            raise ExecutionError(f"it reverts with {safe_chain.reason(answer.data)}")
        return ""

    async def by_safe() -> str:
        nonce, threshold, owners = await safe_chain.read_safe(chain, head, pins.safe)
        proposal = _proposal(pins, nonce, "pause", GLOBAL_SCOPE, _REASON, _INCIDENT)
        answer, _ = await safe_chain.try_safe(chain, head, proposal, {}, threshold, owners)
        if isinstance(answer, Reverted) or not int.from_bytes(answer):
            raise ExecutionError(
                f"it reverts with {safe_chain.reason(answer.data)}"
                if isinstance(answer, Reverted)
                else "it fails"
            )
        return ""

    await _step(steps, "the guardian pauses everything", by_guardian)
    await _step(steps, "the Safe pauses everything, its threshold overridden", by_safe)


async def _rehearse(settings: Settings, pins: Pins, guardian: Address, steps: list[dict[str, Any]]) -> None:
    with Anvil.start(fork_url=settings.chain.rpc_urls[0]) as anvil:
        async with await Node.open(anvil.url) as node:
            safe, guard = Contract(node, pins.safe, SAFE), Contract(node, pins.pause_guard, PAUSE_GUARD)
            owners, threshold = await safe.read("getOwners"), await safe.read("getThreshold")
            await node.set_balances([guardian, *owners], 10 * _ETHER)

            async def through_safe(function: str, *arguments: Any) -> None:
                proposal = _proposal(pins, await safe.read("nonce"), function, *arguments)
                approvers = sorted(owners)[:threshold]
                for owner in approvers:
                    await safe.send(owner, "approveHash", proposal.hash)
                approved = b"".join(bytes(12) + owner + bytes(32) + b"\x01" for owner in approvers)
                await node.send(Tx(approvers[0], pins.safe, exec_calldata(proposal.tx, approved)), SAFE)

            async def state() -> Any:
                return await guard.read("scopeState", GLOBAL_SCOPE)

            async def guardian_pauses() -> str:
                await guard.send(guardian, "pause", GLOBAL_SCOPE, _REASON, _INCIDENT)
                return _must((await state())[0], "the guard says that nothing is paused")

            async def safe_pauses() -> str:
                await through_safe("pause", GLOBAL_SCOPE, _REASON, _INCIDENT)
                return _must((await state())[0], "the guard says that nothing is paused")

            async def safe_schedules() -> str:
                await through_safe("scheduleUnpause", GLOBAL_SCOPE)
                return _must((await state())[3] > 0, "the guard has nothing scheduled")

            async def guardian_vetoes() -> str:
                await guard.send(guardian, "vetoUnpause", GLOBAL_SCOPE)
                return _must((await state())[3] == 0, "the restart is still scheduled")

            async def anybody_restarts() -> str:
                await node.advance(await guard.read("UNPAUSE_DELAY") + 1)
                before = (await state())[1]
                await guard.send(owners[-1], "executeUnpause", GLOBAL_SCOPE)
                paused, epoch, *_ = await state()
                return _must(not paused and epoch == before + 1, "the guard still says paused")

            snapshot = await node.snapshot()
            await _step(steps, "the guardian pauses everything", guardian_pauses)
            await node.revert(snapshot)
            await _step(steps, f"{threshold} owners pause everything through the Safe", safe_pauses)
            await _step(steps, "the Safe schedules the restart", safe_schedules)
            await _step(steps, "the guardian vetoes it", guardian_vetoes)
            await _step(steps, "the Safe schedules it again", safe_schedules)
            await _step(steps, "after the delay anybody restarts", anybody_restarts)


def _proposal(pins: Pins, nonce: int, function: str, *arguments: Any) -> Proposal:
    call = InnerCall(pins.pause_guard, PAUSE_GUARD.function(function).encode(*arguments))
    return builder.propose(pins, [call], nonce)


async def _step(steps: list[dict[str, Any]], what: str, work: Callable[[], Awaitable[str]]) -> None:
    began = time.perf_counter()
    try:
        detail, done = await work(), True
    except KeeperError as error:
        detail, done = str(error), False
    steps.append(
        {"what": what, "ok": done, "detail": detail, "ms": round((time.perf_counter() - began) * 1000, 1)}
    )


def _must(holds: bool, otherwise: str) -> str:
    if not holds:
        raise ExecutionError(otherwise)
    return ""
