"""What the signers' commands do: proposals built, shown, signed, merged, tried and executed; guardians' pauses.

Everything but sending works from the files alone, and says what could not be checked. No red flag is ever hidden, and
nothing is signed or sent while one stands unless the signer says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keeper import abi, assembly
from keeper.chain.client import Chain, Receipt
from keeper.commands import safe_chain
from keeper.commands.desk import Desk, open_desk, read_text, rewrite, write_new
from keeper.commands.shapes import SCHEMA, account_of
from keeper.errors import ChainError, ConfigError, ExecutionError, KeeperError
from keeper.guard import Fees
from keeper.installation import Build, SafeCall
from keeper.multisig import builder, proposal, signatures, wallet
from keeper.multisig.decode import Decoded, Pins, Reading, read
from keeper.multisig.flags import Facts, Flag, red_flags, unchecked
from keeper.multisig.meaning import Clock, proofs, text, words
from keeper.multisig.proposal import Proposal
from keeper.multisig.safe import InnerCall, exec_calldata, executed, pack_signatures
from keeper.multisig.safe_errors import explain, why_refused
from keeper.types import Address, Hash, Head, Reverted, hex_of

Builds = Callable[[], Mapping[str, Build]]


@dataclass(frozen=True, slots=True)
class Judged:
    """A proposal with all that is known about it."""

    proposal: Proposal
    reading: Reading
    flags: list[Flag]
    unchecked: list[str]
    facts: Facts | None
    head: Head | None


async def build(
    config: Path,
    action: str,
    given: list[str],
    *,
    nonce: int | None,
    note: str,
    out: Path | None,
    offline: bool,
) -> dict[str, Any]:
    """A new unsigned proposal in a new file."""
    async with open_desk(config, offline) as desk:
        pins, head = desk.require_pins(), None
        owners: tuple[Address, ...] = ()
        if desk.chain is not None:
            head = await desk.chain.head()
            now, _, owners = await safe_chain.read_safe(desk.chain, head, pins.safe)
            nonce = now if nonce is None else nonce
        calls = builder.build(builder.Site(pins, owners), action, given)
        if nonce is None:
            raise ConfigError(
                f"The nonce is not known without the chain ({desk.why_not}); give it with --nonce."
            )
        batch = builder.MULTI_SEND
        if len(calls) > 1 and desk.chain is not None and head is not None:
            batch = await safe_chain.multi_send(desk.chain, head)
    made = builder.propose(pins, calls, nonce, note, batch)
    path = out or Path("-".join([action, *given[:1], str(nonce)]) + proposal.SUFFIX)
    write_new(path, made.text())
    return _summary(made, path)


async def set_up(chain: Chain, pins: Pins, calls: Sequence[SafeCall], beside: Path) -> Path | None:
    """The calls that finish a deployment as a proposal beside `beside`; None where there is nothing left to do.

    A file that holds this very transaction is left alone, with its signatures.
    """
    if not calls:
        return None
    head = await chain.head()
    nonce, _, _ = await safe_chain.read_safe(chain, head, pins.safe)
    batch = await safe_chain.multi_send(chain, head) if len(calls) > 1 else builder.MULTI_SEND
    inner = [InnerCall(call.to, call.data) for call in calls]
    made = builder.propose(pins, inner, nonce, "Set up the liquidation keeper.", batch)
    path = beside.with_name(beside.stem + proposal.SUFFIX)
    try:
        there = _read(path)
    except KeeperError:
        there = None
    if there is None or there.hash != made.hash:
        rewrite(path, made.text())
    return path


async def show(config: Path, file: Path, builds: Builds, *, offline: bool) -> dict[str, Any]:
    """Everything a signer must know before signing."""
    async with open_desk(config, offline) as desk:
        judged = await _judge(desk, _read(file), builds)
    return _document(judged, file)


async def sign(
    config: Path,
    file: Path,
    builds: Builds,
    *,
    signature: str | None,
    owner: str | None,
    out: Path | None,
    offline: bool,
    despite_red_flags: bool,
) -> dict[str, Any]:
    """The proposal with one more signature: of the environment's key, or one that a wallet made."""
    if (signature is None) != (owner is None):
        raise ConfigError("--signature and --owner go together: whose signature is it?")
    unsigned = _read(file)
    async with open_desk(config, offline) as desk:
        judged = await _judge(desk, unsigned, builds)
    _require_no_flags(judged, despite_red_flags, "signed")
    if signature is not None and owner is not None:
        who, given = account_of(owner), proposal.hexadecimal(signature, "--signature")
    else:
        key = assembly.owner_key(unsigned.chain_id)
        who, given = key.address, key.sign_safe_tx(unsigned.safe, unsigned.tx)
    if judged.facts is not None and who not in judged.facts.owners:
        raise ExecutionError(f"{abi.checksum(who)} is no owner of the Safe; nothing was signed.")
    signed = signatures.attach(unsigned, who, given)
    rewrite(out or file, signed.text())
    return _summary(signed, out or file)


def merge(files: Sequence[Path], out: Path) -> dict[str, Any]:
    """Several files of one transaction as one, in a new file or over one of them."""
    together = signatures.merged([(str(file), _read(file)) for file in files])
    if out in files:
        rewrite(out, together.text())
    else:
        write_new(out, together.text())
    return _summary(together, out)


async def simulate(config: Path, file: Path, builds: Builds) -> dict[str, Any]:
    """What the Safe would do with it now, whoever signed so far; nothing is sent."""
    async with open_desk(config, False) as desk:
        judged = await _judge(desk, _read(file), builds)
        facts, head = _require_facts(judged, desk)
        return await _tried(desk.require_chain(), head, judged, facts)


async def execute(config: Path, file: Path, builds: Builds, *, despite_red_flags: bool) -> dict[str, Any]:
    """Send it with the sender's key, and believe only what guard and settings say afterwards."""
    async with open_desk(config, False) as desk:
        judged, calldata = await _ready(desk, file, builds, despite_red_flags)
        made, chain = judged.proposal, desk.require_chain()
        key = assembly.sender_key(chain.chain_id)

        def signed(nonce: int, fees: Fees) -> bytes:
            return key.sign_relay(made.safe, calldata, nonce, fees).raw

        receipt = await safe_chain.send(chain, key.address, made.safe, calldata, desk.max_fee_wei, signed)
        return await _happened(chain, receipt, made, judged.reading)


async def prepare(config: Path, file: Path, builds: Builds, *, despite_red_flags: bool) -> dict[str, Any]:
    """The transaction by which any wallet executes it: all checked and tried as by `execute`, nothing sent."""
    async with open_desk(config, False) as desk:
        judged, calldata = await _ready(desk, file, builds, despite_red_flags)
    return for_a_wallet(judged.proposal.chain_id, judged.proposal.safe, calldata)


async def confirm(config: Path, file: Path, sent: Hash) -> dict[str, Any]:
    """Wait for what a wallet sent, and believe only what guard and settings say afterwards."""
    made = _read(file)
    async with open_desk(config, False) as desk:
        chain = desk.require_chain()
        receipt = await safe_chain.mined(chain, sent)
        return await _happened(chain, receipt, made, read(made.safe, made.tx, desk.pins))


def for_a_wallet(chain_id: int, to: Address, calldata: bytes) -> dict[str, Any]:
    """A transaction as a wallet is asked to send it."""
    return {"chain_id": hex(chain_id), "to": abi.checksum(to), "data": hex_of(calldata), "value": "0x0"}


# --- judging and trying ----------------------------------------------------------------------------------------------


async def _judge(desk: Desk, made: Proposal, builds: Builds) -> Judged:
    reading = read(made.safe, made.tx, desk.pins)
    facts, head, why_not = None, None, desk.why_not
    if desk.chain is not None and desk.chain.chain_id != made.chain_id:
        why_not = f"the configured nodes serve chain {desk.chain.chain_id}"
    elif desk.chain is not None:
        contracts = desk.settings.contracts if desk.settings else None
        ours = safe_chain.Contracts(builds(), contracts.treasury) if contracts else None
        try:
            head = await desk.chain.head()
            facts = await safe_chain.read_facts(desk.chain, head, made, reading, desk.pins, ours)
        except ChainError as error:
            facts, why_not = None, f"the nodes stopped answering ({error})"
    flags = red_flags(made, reading, signatures.signers(made), desk.pins, facts)
    return Judged(made, reading, flags, unchecked(reading, desk.pins, facts, why_not), facts, head)


async def _ready(desk: Desk, file: Path, builds: Builds, despite_red_flags: bool) -> tuple[Judged, bytes]:
    """A proposal that was signed and tried, and the calldata that executes it. Raises ExecutionError: why not."""
    judged = await _judge(desk, _read(file), builds)
    facts, head = _require_facts(judged, desk)
    _require_no_flags(judged, despite_red_flags, "sent")
    good = signatures.valid(judged.proposal, facts.owners)
    if len(good) < facts.threshold:
        missing = ", ".join(abi.checksum(owner) for owner in facts.owners if owner not in good)
        raise ExecutionError(
            f"Nothing was sent: {len(good)} of {facts.threshold} signatures are there; not signed have {missing}."
        )
    tried = await _tried(desk.require_chain(), head, judged, facts)
    if not tried["ok"]:
        raise ExecutionError(f"Nothing was sent: {_why(tried)}")
    return judged, exec_calldata(judged.proposal.tx, pack_signatures(good))


async def _happened(chain: Chain, receipt: Receipt, made: Proposal, reading: Reading) -> dict[str, Any]:
    """What a mined execution brought about. Raises ExecutionError where the Safe or the state says that it did not."""
    if not executed(receipt.logs, made.safe, made.hash):
        raise ExecutionError(
            f"{hex_of(receipt.transaction_hash)} was mined with status 1, and yet FAILED: the Safe reports no "
            f"ExecutionSuccess of it. Nonce {made.tx.nonce} is used up if this was it: build it again with safeTxGas 0."
        )
    wanted = [proof for call in reading.calls for proof in proofs(call)]
    return await safe_chain.proved(chain, receipt, wanted)


async def _tried(chain: Chain, head: Head, judged: Judged, facts: Facts) -> dict[str, Any]:
    made = judged.proposal
    good = signatures.valid(made, facts.owners)
    answer, packed = await safe_chain.try_safe(chain, head, made, good, facts.threshold, facts.owners)
    inner = await safe_chain.try_inner(chain, head, made, judged.reading)
    calls = [
        {"to": abi.checksum(call.to), "words": _words(call, facts), "ok": works, "reason": why}
        for call, (works, why) in zip(judged.reading.calls, inner, strict=True)
    ]
    causes = []
    if isinstance(answer, Reverted):
        code = safe_chain.safe_code(answer)
        causes.append(explain(code) if code else f"The Safe reverts with {safe_chain.reason(answer.data)}.")
        if code == "GS026":
            causes.append(why_refused(made, packed, facts.nonce, facts.owners))
    elif not int.from_bytes(answer):
        causes.append("The Safe would report ExecutionFailure: status 1, nonce used up, nothing done.")
    if causes:
        causes += [
            f"The call to {call['to']} reverts with {call['reason']}."
            for call in calls
            if call["ok"] is False
        ]
    if facts.nonce != made.tx.nonce:
        causes.append(f"It has nonce {made.tx.nonce} and the Safe is at {facts.nonce}.")
    return {
        "schema": SCHEMA,
        "ok": not causes,
        "block": {"number": head.number, "hash": hex_of(head.hash)},
        "signatures": {
            "valid": len(good),
            "threshold": facts.threshold,
            "complete": len(good) >= facts.threshold,
        },
        "calls": calls,
        "causes": causes,
        "red_flags": [{"name": flag.name, "what": flag.what} for flag in judged.flags],
    }


def _require_facts(judged: Judged, desk: Desk) -> tuple[Facts, Head]:
    if judged.facts is None or judged.head is None:
        desk.require_chain()
        raise ExecutionError(" ".join([*(flag.what for flag in judged.flags), *judged.unchecked]))
    return judged.facts, judged.head


def _require_no_flags(judged: Judged, despite_red_flags: bool, done: str) -> None:
    if judged.flags and not despite_red_flags:
        raise ExecutionError(
            f"Nothing was {done}: {' '.join(flag.what for flag in judged.flags)} Only if every word of this is meant, "
            "say --despite-red-flags."
        )


def _document(judged: Judged, file: Path) -> dict[str, Any]:
    made, facts = judged.proposal, judged.facts
    good = signatures.valid(made, facts.owners if facts else None)
    owners = facts.owners if facts else tuple(sorted(good))
    hashes = {"domain": made.domain_hash, "message": made.message_hash, "safe_tx": made.hash}
    rivals, unreadable = _beside(file, made)
    return {
        "schema": SCHEMA,
        "ok": not judged.flags,
        "file": str(file),
        "chain_id": str(made.chain_id),
        "safe": abi.checksum(made.safe),
        "nonce": str(made.tx.nonce),
        "safe_nonce": str(facts.nonce) if facts else None,
        "note": made.note,
        "batch_by": abi.checksum(judged.reading.batch) if judged.reading.batch else None,
        "calls": [
            {
                "to": abi.checksum(call.to),
                "contract": call.contract or None,
                "value_wei": str(call.value_wei),
                "data": hex_of(call.data),
                "function": call.signature or None,
                "arguments": {name: text(value) for name, value in call.arguments.items()},
                "words": _words(call, facts),
            }
            for call in judged.reading.calls
        ],
        "hashes": {name: grouped(value) for name, value in hashes.items()},
        "typed_data": wallet.safe_tx(made),
        "threshold": facts.threshold if facts else None,
        "signed": [{"owner": abi.checksum(who), "kind": signatures.kind(good[who])} for who in sorted(good)],
        "missing": [abi.checksum(owner) for owner in owners if owner not in good] if facts else None,
        "red_flags": [{"name": flag.name, "what": flag.what} for flag in judged.flags],
        "unchecked": judged.unchecked,
        "rivals": rivals,
        "unreadable": unreadable,
    }


def grouped(value: Hash) -> dict[str, str]:
    """A hash as it is, and as hardware wallets show it: Ledger in capitals, Trezor in small letters, in eights."""
    digits = value.hex()
    groups = " ".join(digits[at : at + 8] for at in range(0, len(digits), 8))
    return {"hex": hex_of(value), "ledger": f"0x {groups.upper()}", "trezor": f"0x {groups}"}


def _words(call: Decoded, facts: Facts | None) -> str:
    clock = Clock(facts.unpause_delay_s, facts.now_s) if facts else Clock()
    return words(call, clock) or "This program does not know what this call does."


def _beside(file: Path, made: Proposal) -> tuple[list[dict[str, str]], list[str]]:
    """Rivals for the same nonce in the same folder, and files there that cannot be read."""
    rivals, unreadable = [], []
    for path in sorted(file.parent.glob(f"*{proposal.SUFFIX}")):
        if path == file:
            continue
        try:
            other = _read(path)
        except KeeperError as error:
            unreadable.append(str(error))
            continue
        if made.rivals(other):
            rivals.append({"file": str(path), "hash": hex_of(other.hash), "note": other.note})
    return rivals, unreadable


def _summary(made: Proposal, path: Path) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "file": str(path),
        "chain_id": str(made.chain_id),
        "safe": abi.checksum(made.safe),
        "nonce": str(made.tx.nonce),
        "note": made.note,
        "safe_tx_hash": hex_of(made.hash),
        "signed": [abi.checksum(who) for who in sorted(made.signatures)],
    }


def _why(tried: Mapping[str, Any]) -> str:
    return " ".join(tried["causes"])


def _read(file: Path) -> Proposal:
    return proposal.parse(read_text(file), str(file))
