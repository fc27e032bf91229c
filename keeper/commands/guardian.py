"""What guardians and passers-by do alone: pause, veto, relay or hand over a signed pause, restart what is due."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from keeper import abi, assembly
from keeper.commands import safe_chain
from keeper.commands.desk import open_desk, read_text, write_new
from keeper.commands.pause import for_a_wallet, grouped
from keeper.commands.shapes import SCHEMA, account_of
from keeper.errors import ConfigError, ExecutionError
from keeper.guard import Fees
from keeper.guard import door as doors
from keeper.guard.message import SUFFIX, SignedPause
from keeper.installation import PAUSE_GUARD
from keeper.multisig import builder, signatures, wallet
from keeper.multisig.decode import Pins, read
from keeper.multisig.meaning import Proof, proofs, scope_words
from keeper.multisig.proposal import hexadecimal
from keeper.multisig.safe import InnerCall
from keeper.store import sqlite_path
from keeper.typed_data import guard_domain, pause_hash, pause_struct_hash
from keeper.types import Address, Hash, hex_of


async def unpause(config: Path, scope: str) -> dict[str, Any]:
    """Execute a scheduled unpause whose delay has passed; anybody may."""
    async with open_desk(config, False) as desk:
        chain, pins = desk.require_chain(), desk.require_pins()
        calldata = _alone(pins, "unpause", [scope])
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
    return _written(message, key.address, out, scope)


async def word(config: Path, scope: str, reason: str, incident: str | None) -> dict[str, Any]:
    """What a guardian's wallet is to sign, to stop without the chain; `keep` takes its signature."""
    async with open_desk(config, True) as desk:
        pins = desk.require_pins()
    said = builder.pause_of(pins.protocols, scope, reason, incident, int(time.time()))
    return {
        "schema": SCHEMA,
        "what": f"Stops {scope_words(said.scope)} at once",
        "issued_at_s": said.issued_at_s,
        "typed_data": wallet.pause(pins.pause_guard, said),
        "hashes": {
            "domain": grouped(guard_domain(pins.pause_guard)),
            "message": grouped(pause_struct_hash(said)),
            "pause": grouped(pause_hash(pins.pause_guard, said)),
        },
    }


async def keep(
    config: Path,
    scope: str,
    reason: str,
    incident: str | None,
    issued_at_s: int,
    who: str,
    signature: str,
    out: Path,
) -> dict[str, Any]:
    """A guardian's word as a file. Raises ExecutionError where the signature is another's, or of something else."""
    async with open_desk(config, True) as desk:
        pins = desk.require_pins()
    said = builder.pause_of(pins.protocols, scope, reason, incident, issued_at_s)
    signer, given = account_of(who), hexadecimal(signature, "The signature")
    signed = SignedPause.made(pins.pause_guard, said, given)
    signatures.require_guardian(signed, signer)
    return _written(signed, signer, out, scope)


async def prepare(config: Path, action: str, given: list[str], sender: str) -> dict[str, Any]:
    """The transaction by which a wallet pauses, vetoes or restarts by itself, tried as if it had been sent."""
    who = account_of(sender)
    async with open_desk(config, False) as desk:
        chain, pins = desk.require_chain(), desk.require_pins()
        calldata = _alone(pins, action, given)
        await safe_chain.require_works(chain, who, pins.pause_guard, calldata)
    return for_a_wallet(pins.chain_id, pins.pause_guard, calldata)


async def confirm(config: Path, action: str, given: list[str], sent: Hash) -> dict[str, Any]:
    """Wait for what a wallet sent, and believe only what the guard says afterwards."""
    async with open_desk(config, False) as desk:
        chain, pins = desk.require_chain(), desk.require_pins()
        calldata = _alone(pins, action, given)
        receipt = await safe_chain.mined(chain, sent)
        return await safe_chain.proved(chain, receipt, _proofs_of(pins, pins.pause_guard, calldata))


def _alone(pins: Pins, action: str, given: list[str]) -> bytes:
    """Calldata of what guardians (`pause`, `veto`) and passers-by (`unpause`) do without the Safe."""
    if action == "unpause" and len(given) == 1:
        return PAUSE_GUARD.function("executeUnpause").encode(builder.scope_named(pins.protocols, given[0]))
    if action not in ("pause", "veto"):
        raise ConfigError(f"{action} {' '.join(given)} is nothing that a guardian does alone.")
    [call] = builder.build(builder.Site(pins), action, given)
    return call.data


def _written(signed: SignedPause, who: Address, out: Path | None, scope: str) -> dict[str, Any]:
    path = out or Path(f"{scope}-{signed.issued_at_s}{SUFFIX}")
    write_new(path, signed.text())
    return {
        "schema": SCHEMA,
        "file": str(path),
        "guardian": abi.checksum(who),
        "pause_guard": abi.checksum(signed.pause_guard),
        "scope": scope,
        "what": f"Stops {scope_words(signed.scope)} at once",
        "relay": {
            "to": abi.checksum(signed.pause_guard),
            "data": hex_of(signed.calldata),
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
        calldata = _alone(pins, "veto", [scope])

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
