"""What the signers' commands ask of the chain, and the one way in which they send: try, send, wait, prove."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keeper import abi
from keeper.chain.client import Chain, Receipt, SimCall, SimResult
from keeper.commands.shapes import SCHEMA
from keeper.errors import AdapterError, ChainError, ConfigError, ExecutionError
from keeper.guard import Fees
from keeper.installation import (
    LIQUIDATOR,
    PAUSE_GUARD,
    Build,
    code_fault,
    immutables_fault,
    liquidator_immutables,
    pause_guard_immutables,
)
from keeper.multisig.decode import CALL_ONLY, SAFE, Pins, Reading
from keeper.multisig.flags import Facts
from keeper.multisig.meaning import Proof
from keeper.multisig.proposal import Proposal
from keeper.multisig.safe import CALL, exec_calldata, pack_signatures
from keeper.multisig.safe_errors import code_in
from keeper.seams import each
from keeper.types import Address, Gas, Hash, Head, Result, Reverted, Wei, hex_of

CALL_GAS: Final = Gas(10_000_000)  # for trying
_MINED_TIMEOUT_S: Final = 180
_THRESHOLD_SLOT: Final = 4  # of every Safe since 1.0: singleton, modules, owners, ownerCount, threshold
_ANYBODY: Final = Address(b"\x11" * 20)


@dataclass(frozen=True, slots=True)
class Contracts:
    """What our contracts must look like: their builds, and for whom the Liquidator works."""

    builds: Mapping[str, Build]
    treasury: Address


async def read_facts(
    chain: Chain, head: Head, proposal: Proposal, reading: Reading, pins: Pins | None, ours: Contracts | None
) -> Facts:
    """What the chain says about a proposal. Raises ConfigError where its Safe does not answer as one."""
    safe, tx = proposal.safe, proposal.tx
    fields = (
        tx.to,
        tx.value_wei,
        tx.data,
        tx.operation,
        tx.safe_tx_gas,
        tx.base_gas,
        tx.gas_price_wei,
        tx.gas_token,
        tx.refund_receiver,
        tx.nonce,
    )
    asked: list[tuple[str, tuple[Any, ...]]] = [("VERSION", ()), ("nonce", ()), ("getThreshold", ())]
    asked += [("getOwners", ()), ("getTransactionHash", fields)]
    version, nonce, threshold, owners, chain_hash = await _safe_answers(chain, head, safe, asked)
    targets = {call.to for call in reading.calls} | ({reading.batch} if reading.batch else set())
    codes = {target: await chain.code(target, head.hash) for target in sorted(targets)}
    delay_s = await unpause_delay_s(chain, head, pins.pause_guard) if pins else None
    faults = {}
    if pins is not None and ours is not None:
        wanted = {
            pins.pause_guard: (
                "PauseGuard",
                pause_guard_immutables(pins.safe, delay_s or 0, pins.pause_guard),
            ),
            pins.liquidator: (
                "Liquidator",
                liquidator_immutables(pins.safe, ours.treasury, pins.pause_guard),
            ),
        }
        for target in sorted(targets & set(wanted)):
            name, immutables = wanted[target]
            build, code = ours.builds[name], codes[target]
            fault = code_fault(build, code) or immutables_fault(build, code, immutables)
            if fault is not None:
                faults[target] = fault
    return Facts(
        now_s=head.timestamp_s,
        chain_id=chain.chain_id,
        version=version,
        nonce=nonce,
        threshold=threshold,
        owners=tuple(owners),
        chain_hash=Hash(chain_hash),
        unpause_delay_s=delay_s,
        code_faults=faults,
        code_hashes={target: abi.keccak(code) for target, code in codes.items()},
    )


async def read_safe(chain: Chain, head: Head, safe: Address) -> tuple[int, int, tuple[Address, ...]]:
    """Nonce, threshold and owners of a Safe, the owners in its own order. Raises ConfigError for what is none."""
    asked: list[tuple[str, tuple[Any, ...]]] = [("nonce", ()), ("getThreshold", ()), ("getOwners", ())]
    nonce, threshold, owners = await _safe_answers(chain, head, safe, asked)
    return nonce, threshold, tuple(owners)


async def multi_send(chain: Chain, head: Head) -> Address:
    """A MultiSendCallOnly that is deployed here. Raises ConfigError: a batch through an empty address does nothing."""
    for address, wanted in CALL_ONLY.items():
        if abi.keccak(await chain.code(address, head.hash)) == wanted:
            return address
    raise ConfigError(
        f"Chain {chain.chain_id} has no MultiSendCallOnly at {', '.join(map(abi.checksum, CALL_ONLY))}: have it "
        "deployed, or make the calls one by one."
    )


async def unpause_delay_s(chain: Chain, head: Head, pause_guard: Address) -> int | None:
    """The guard's delay; None for what does not answer as a PauseGuard."""
    delay = PAUSE_GUARD.function("UNPAUSE_DELAY")
    [answer] = await chain.read(each([delay.call(pause_guard)]), head.hash)
    try:
        return None if isinstance(answer, Reverted) else int(delay.one(answer))
    except AdapterError:
        return None


async def try_safe(
    chain: Chain,
    head: Head,
    proposal: Proposal,
    good: Mapping[Address, bytes],
    threshold: int,
    owners: Sequence[Address],
) -> tuple[Result, bytes]:
    """What `execTransaction` does now with these valid signatures, and the packed signatures it was tried with.

    Where fewer than the threshold signed, the threshold is overridden by their number; where nobody did, by one, and
    an owner sends it, which a Safe takes for its signature.
    """
    sender, packed, storage = _ANYBODY, pack_signatures(good), {}
    if len(good) < threshold:
        storage = {proposal.safe: {_THRESHOLD_SLOT: max(len(good), 1)}}
    if not good:
        sender = owners[0]
        packed = bytes(12) + sender + bytes(32) + b"\x01"
    call = SimCall(sender, proposal.safe, exec_calldata(proposal.tx, packed), CALL_GAS)
    return await chain.call(call, head, storage), packed


async def try_inner(
    chain: Chain, head: Head, proposal: Proposal, reading: Reading
) -> list[tuple[bool | None, str]]:
    """What each call does when the Safe makes them in turn: whether it works (None: not tried), and why not."""
    if any(call.operation != CALL or call.value_wei for call in reading.calls):
        return [(None, "only plain calls without value can be tried alone")] * len(reading.calls)
    calls = [SimCall(proposal.safe, call.to, call.data, CALL_GAS) for call in reading.calls]
    results = await chain.simulate(calls, head, head.timestamp_s + 1, head.base_fee_wei)
    return [(bool(result.status), "" if result.status else reason(result.output)) for result in results]


def reason(reverted: bytes) -> str:
    """Revert data in words, escaped: a contract may revert with what fools a terminal."""
    if not reverted:
        return "no reason"
    for interface in (PAUSE_GUARD, LIQUIDATOR, SAFE):
        found = interface.error(reverted)
        if found is not None:
            return "".join(char if char.isprintable() else repr(char)[1:-1] for char in found)
    return hex_of(reverted)


def safe_code(answer: Reverted) -> str | None:
    """The Safe's own error code in what it reverted with."""
    return code_in(reason(answer.data))


async def require_works(
    chain: Chain, sender: Address, to: Address, calldata: bytes
) -> tuple[Head, SimResult]:
    """Try a call at the newest head. Raises ExecutionError, naming the cause, where it would revert."""
    head = await chain.head()
    call = SimCall(sender, to, calldata, CALL_GAS)
    [trial] = await chain.simulate([call], head, head.timestamp_s + 1, head.base_fee_wei)
    if not trial.status:
        raise ExecutionError(f"Nothing was sent: it would revert with {reason(trial.output)}.")
    return head, trial


async def send(
    chain: Chain,
    sender: Address,
    to: Address,
    calldata: bytes,
    max_fee_wei: Wei,
    sign: Callable[[int, Fees], bytes],
) -> Receipt:
    """Send what was tried already and wait for it; `sign` gives the signed bytes for a nonce and fees.

    Raises ExecutionError where it reverts or cannot be paid for, ChainError where it is not mined in time.
    """
    head, trial = await require_works(chain, sender, to, calldata)
    # refunds and the 64th that every call holds back: gas that is not used is not paid
    gas = Gas(trial.gas_used * 3 // 2 + 100_000)
    tip_wei = (await chain.suggested_tips())[0]
    if head.base_fee_wei + tip_wei > max_fee_wei:
        raise ExecutionError(
            f"Nothing was sent: gas costs {head.base_fee_wei + tip_wei} wei, above the limit of {max_fee_wei} wei "
            "(limits.max_fee_gwei); raise it."
        )
    ceiling_wei = Wei(min(2 * head.base_fee_wei + tip_wei, max_fee_wei))
    balance_wei = await chain.balance(sender)
    if balance_wei < gas * ceiling_wei:
        raise ExecutionError(
            f"Nothing was sent: {abi.checksum(sender)} holds {balance_wei} wei and this may cost {gas * ceiling_wei}."
        )
    # the mined nonce, not the pending one: sending again replaces what still waits, and never doubles it
    sent = await chain.send_raw(sign(await chain.nonce(sender), Fees(ceiling_wei, tip_wei, gas)))
    return await mined(chain, sent)


async def mined(chain: Chain, sent: Hash) -> Receipt:
    """Wait for a transaction. Raises ExecutionError where it reverted, ChainError where it is not mined in time."""
    deadline_s = time.monotonic() + _MINED_TIMEOUT_S
    while (receipt := await chain.receipt(sent)) is None:
        if time.monotonic() > deadline_s:
            raise ChainError(
                f"{hex_of(sent)} was sent and is not mined after {_MINED_TIMEOUT_S} s: look for it before you "
                "send again."
            )
        await asyncio.sleep(0.2)
    if receipt.status != 1:
        raise ExecutionError(f"{hex_of(sent)} was mined and reverted: nothing changed but gas was paid.")
    return receipt


async def proved(chain: Chain, receipt: Receipt, wanted: Sequence[Proof]) -> dict[str, Any]:
    """A document of what a mined transaction brought about. Raises ExecutionError where it did not."""
    failed = await disproved(chain, receipt.block_hash, wanted)
    if failed:
        raise ExecutionError(
            f"{hex_of(receipt.transaction_hash)} was mined, and yet it did not happen that {'; '.join(failed)}."
        )
    return {
        "schema": SCHEMA,
        "ok": True,
        "tx": hex_of(receipt.transaction_hash),
        "block": {"number": receipt.block_number, "hash": hex_of(receipt.block_hash)},
        "proved": [proof.what for proof in wanted],
    }


async def disproved(chain: Chain, at: Hash, wanted: Sequence[Proof]) -> list[str]:
    """What was to hold at a block and does not, in words; empty when all of it does."""
    answers = await chain.read(each([proof.read for proof in wanted]), at)
    failed = []
    for proof, answer in zip(wanted, answers, strict=True):
        try:
            if isinstance(answer, Reverted) or not proof.holds(proof.decode(answer)):
                failed.append(proof.what)
        except AdapterError as error:
            failed.append(f"{proof.what} (it answers {error})")
    return failed


async def _safe_answers(
    chain: Chain, head: Head, safe: Address, asked: Sequence[tuple[str, tuple[Any, ...]]]
) -> list[Any]:
    functions = [SAFE.function(name) for name, _ in asked]
    calls = [function.call(safe, *given) for function, (_, given) in zip(functions, asked, strict=True)]
    answers = await chain.read(each(calls), head.hash)
    try:
        return [
            function.one(b"" if isinstance(answer, Reverted) else answer)
            for function, answer in zip(functions, answers, strict=True)
        ]
    except AdapterError:
        raise ConfigError(
            f"{abi.checksum(safe)} does not answer as a Safe on chain {chain.chain_id}."
        ) from None
