"""What guardians and passers-by do alone: pause, veto, relay or hand over a signed pause, restart what is due."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from keeper import abi, assembly
from keeper.commands import safe_chain
from keeper.commands.desk import open_desk, read_text, write_new
from keeper.commands.shapes import SCHEMA
from keeper.errors import ExecutionError
from keeper.guard import Fees
from keeper.guard import door as doors
from keeper.guard.message import SUFFIX, SignedPause
from keeper.installation import PAUSE_GUARD
from keeper.multisig import builder
from keeper.multisig.decode import Pins, read
from keeper.multisig.meaning import Proof, proofs, scope_words
from keeper.multisig.safe import InnerCall
from keeper.store import sqlite_path
from keeper.types import Address, hex_of


async def unpause(config: Path, scope: str) -> dict[str, Any]:
    """Execute a scheduled unpause whose delay has passed; anybody may."""
    async with open_desk(config, False) as desk:
        chain, pins = desk.require_chain(), desk.require_pins()
        named = builder.scope_named(pins.protocols, scope)
        calldata = PAUSE_GUARD.function("executeUnpause").encode(named)
        key = assembly.sender_key(chain.chain_id)

        def signed(nonce: int, fees: Fees) -> bytes:
            return key.sign_relay(pins.pause_guard, calldata, nonce, fees).raw

        receipt = await safe_chain.send(
            chain, key.address, pins.pause_guard, calldata, desk.max_fee_wei, signed
        )
        return await safe_chain.proved(chain, receipt, _proofs_of(pins, pins.pause_guard, calldata))


async def pause(
    config: Path, scope: str, reason: str, incident: str | None, *, send: bool, out: Path | None
) -> dict[str, Any]:
    """A guardian's own pause: sent at once with its key, or a signed message that anybody may relay."""
    async with open_desk(config, not send) as desk:
        pins = desk.require_pins()
        word = builder.pause_of(pins.protocols, scope, reason, incident, int(time.time()))
        key = assembly.guardian_key(pins.chain_id)
        if send:
            chain = desk.require_chain()
            calldata = PAUSE_GUARD.function("pause").encode(word.scope, word.reason, word.incident)

            def signed(nonce: int, fees: Fees) -> bytes:
                return key.sign_pause_call(pins.pause_guard, word, nonce, fees).raw

            receipt = await safe_chain.send(
                chain, key.address, pins.pause_guard, calldata, desk.max_fee_wei, signed
            )
            return await safe_chain.proved(chain, receipt, _proofs_of(pins, pins.pause_guard, calldata))
    message = SignedPause.made(pins.pause_guard, word, key.sign_pause(pins.pause_guard, word))
    path = out or Path(f"{scope}-{word.issued_at_s}{SUFFIX}")
    write_new(path, message.text())
    return {
        "schema": SCHEMA,
        "file": str(path),
        "guardian": abi.checksum(key.address),
        "pause_guard": abi.checksum(pins.pause_guard),
        "scope": scope,
        "what": f"Stops {scope_words(word.scope)} at once",
        "relay": {
            "to": abi.checksum(pins.pause_guard),
            "data": hex_of(message.calldata),
        },
    }


async def relay(config: Path, file: Path) -> dict[str, Any]:
    """Send a guardian's signed pause with the sender's key, whoever signed it."""
    message = SignedPause.read(read_text(file).encode(), str(file))
    guard, word = message.pause_guard, message.word
    async with open_desk(config, False) as desk:
        chain, pins = desk.require_chain(), desk.require_pins()
        if guard != pins.pause_guard:
            raise ExecutionError(f"{file} is for the PauseGuard {abi.checksum(guard)}, which is not yours.")
        calldata, key = message.calldata, assembly.sender_key(chain.chain_id)

        def signed(nonce: int, fees: Fees) -> bytes:
            return key.sign_relay(guard, calldata, nonce, fees).raw

        receipt = await safe_chain.send(chain, key.address, guard, calldata, desk.max_fee_wei, signed)
        paused = PAUSE_GUARD.function("pause").encode(word.scope, word.reason, word.incident)
        return await safe_chain.proved(chain, receipt, _proofs_of(pins, guard, paused))


async def hand_over(config: Path, file: Path) -> dict[str, Any]:
    """Give a guardian's signed pause to the daemon of this configuration, which stops at once and relays it."""
    message = SignedPause.read(read_text(file).encode(), str(file))
    await doors.hand_over(sqlite_path(assembly.settings(config).store.url), message)
    return {"schema": SCHEMA, "file": str(file), "what": f"Stopped {scope_words(message.scope)}"}


async def veto(config: Path, scope: str) -> dict[str, Any]:
    """Take a scheduled restart back with a guardian's own key."""
    async with open_desk(config, False) as desk:
        chain, pins = desk.require_chain(), desk.require_pins()
        named = builder.scope_named(pins.protocols, scope)
        key = assembly.guardian_key(chain.chain_id)
        calldata = PAUSE_GUARD.function("vetoUnpause").encode(named)

        def signed(nonce: int, fees: Fees) -> bytes:
            return key.sign_veto_call(pins.pause_guard, named, nonce, fees).raw

        receipt = await safe_chain.send(
            chain, key.address, pins.pause_guard, calldata, desk.max_fee_wei, signed
        )
        return await safe_chain.proved(chain, receipt, _proofs_of(pins, pins.pause_guard, calldata))


def _proofs_of(pins: Pins, to: Address, calldata: bytes) -> list[Proof]:
    call = InnerCall(to, calldata)
    tx = builder.propose(pins, [call], 0).tx
    return [proof for decoded in read(pins.safe, tx, pins).calls for proof in proofs(decoded)]
