"""Red flags: what a signer must not overlook in a proposed transaction, each in plain words.

A flag is never a guess: what could not be checked is said apart from it. The one delegatecall that is let pass is the
canonical MultiSendCallOnly, when its code was read and is the published one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from keeper import abi
from keeper.multisig.decode import CALL_ONLY, Decoded, Pins, Reading
from keeper.multisig.meaning import SELF_CHANGES, ascii_of, words
from keeper.multisig.proposal import Proposal
from keeper.multisig.safe import CALL, DELEGATE_CALL
from keeper.types import GLOBAL_SCOPE, ZERO_ADDRESS, Address, Hash, hex_of

VERSIONS: Final = ("1.3.0", "1.4.1")
FAR_AHEAD: Final = 10  # nonces; a few may be signed ahead for an emergency, more is a mistake
# Calls that name a pause scope, and the argument that does; scope 0 is everything, or none.
_SCOPED: Final[Mapping[str, str]] = {
    "pause": "scope",
    "scheduleUnpause": "scope",
    "vetoUnpause": "scope",
    "executeUnpause": "scope",
    "removeGuardianAndScheduleUnpause": "scope",
    "setTarget": "protocol",
    "setSettledJointly": "protocol",
}


@dataclass(frozen=True, slots=True)
class Flag:
    """One red flag: a snake_case name and a sentence."""

    name: str
    what: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the chain says about a proposal at one block.

    `chain_hash` is the Safe's own hash of the transaction. `code_faults` says for each contract called that is one of
    ours how its code differs from the build; `code_hashes` the hash of the code at every other target.
    """

    now_s: int
    chain_id: int
    version: str
    nonce: int
    threshold: int
    owners: tuple[Address, ...]
    chain_hash: Hash
    unpause_delay_s: int | None
    code_faults: Mapping[Address, str]
    code_hashes: Mapping[Address, Hash]


def red_flags(
    proposal: Proposal,
    reading: Reading,
    signers: Mapping[Address, Address | None],
    pins: Pins | None,
    facts: Facts | None,
) -> list[Flag]:
    """Every red flag that stands; `signers` is whom each owner's signature is really by, None where by nobody."""
    return [
        *_about_the_file(proposal, signers),
        *_about_the_safe(proposal, pins, facts),
        *_about_gas(proposal),
        *_about_delegation(proposal, reading, facts),
        *(flag for call in reading.calls for flag in _about_a_call(call, reading, pins, facts)),
    ]


def unchecked(reading: Reading, pins: Pins | None, facts: Facts | None, why_not: str) -> list[str]:
    """What could not be checked, and why; `why_not` says why the chain was not asked."""
    found = []
    if pins is None:
        found.append(
            "Whether chain, Safe, targets and pause scopes are yours: there is no configuration to compare with."
        )
    if facts is None:
        found.append(
            "Owners, threshold, nonce, the Safe's own hash and the code of every target: "
            + (why_not or "no chain")
        )
    elif pins is None and any(call.contract in ("PauseGuard", "Liquidator") for call in reading.calls):
        found.append("The code of the targets: without a configuration nothing says for whom it should work.")
    return found


def _about_the_file(proposal: Proposal, signers: Mapping[Address, Address | None]) -> Iterator[Flag]:
    if proposal.claimed_hash is not None and proposal.claimed_hash != proposal.hash:
        yield Flag(
            "file_hash",
            f"The file says its hash is {hex_of(proposal.claimed_hash)}, but its fields give {hex_of(proposal.hash)}.",
        )
    for owner, signer in signers.items():
        if signer != owner:
            by = "is by nobody" if signer is None else f"is by {abi.checksum(signer)}"
            yield Flag(
                "bad_signature",
                f"The signature given for {abi.checksum(owner)} {by}: it is of something else, or spoilt.",
            )


def _about_the_safe(proposal: Proposal, pins: Pins | None, facts: Facts | None) -> Iterator[Flag]:
    for known, where in ((pins, "the configuration"), (facts, "the node")):
        if known is not None and known.chain_id != proposal.chain_id:
            yield Flag(
                "wrong_chain", f"It is for chain {proposal.chain_id}; {where} is of chain {known.chain_id}."
            )
            break
    if pins is not None and pins.safe != proposal.safe:
        yield Flag(
            "wrong_safe",
            f"It is for the Safe {abi.checksum(proposal.safe)}; the configuration's is {abi.checksum(pins.safe)}.",
        )
    if facts is None:
        return
    if facts.version not in VERSIONS:
        yield Flag(
            "unknown_version",
            f"The Safe says it is version {facts.version!r}; known are {' and '.join(VERSIONS)}.",
        )
    if facts.chain_hash != proposal.hash:
        yield Flag(
            "chain_hash",
            f"The Safe computes the hash {hex_of(facts.chain_hash)}, this program {hex_of(proposal.hash)}.",
        )
    nonce = proposal.tx.nonce
    if nonce < facts.nonce:
        yield Flag(
            "nonce_used",
            f"Nonce {nonce} is used up: the Safe is at {facts.nonce}, so this can never be executed.",
        )
    elif nonce > facts.nonce + FAR_AHEAD:
        yield Flag(
            "nonce_far_ahead",
            f"Nonce {nonce} is {nonce - facts.nonce} ahead of the Safe's {facts.nonce}: signed now, it can be executed "
            "long after everybody forgot it.",
        )
    for owner in proposal.signatures:
        if owner not in facts.owners:
            yield Flag("not_an_owner", f"{abi.checksum(owner)} signed and is not an owner of the Safe.")


def _about_gas(proposal: Proposal) -> Iterator[Flag]:
    tx = proposal.tx
    if tx.safe_tx_gas:
        yield Flag(
            "safe_tx_gas",
            f"safeTxGas is {tx.safe_tx_gas}: if the call inside fails, the transaction still looks like success and "
            "uses up the nonce.",
        )
    if tx.base_gas:
        yield Flag("base_gas", f"baseGas is {tx.base_gas}: the Safe pays for gas beyond what is used.")
    if tx.gas_price_wei:
        yield Flag(
            "gas_price", f"gasPrice is {tx.gas_price_wei}: the Safe's money goes to whoever executes this."
        )
    if tx.gas_token != ZERO_ADDRESS:
        yield Flag(
            "gas_token", f"gasToken is {abi.checksum(tx.gas_token)}: the Safe pays for gas with that token."
        )
    if tx.refund_receiver != ZERO_ADDRESS:
        yield Flag(
            "refund_receiver", f"refundReceiver is {abi.checksum(tx.refund_receiver)}: gas money goes there."
        )


def _about_delegation(proposal: Proposal, reading: Reading, facts: Facts | None) -> Iterator[Flag]:
    tx = proposal.tx
    if reading.fault:
        yield Flag("unreadable_batch", f"The batch cannot be read: {reading.fault}")
    if reading.batch is not None and tx.value_wei:
        yield Flag("value", f"It sends {tx.value_wei} wei along with the batch.")
    if tx.operation != DELEGATE_CALL:
        return
    to = abi.checksum(tx.to)
    danger = "code there runs as the Safe itself and can take it over"
    if reading.batch is None or tx.to not in CALL_ONLY:
        yield Flag("delegatecall", f"It is a DELEGATECALL to {to}: {danger}.")
    elif facts is None:
        yield Flag(
            "delegatecall",
            f"It is a DELEGATECALL to {to}, which should be MultiSendCallOnly; its code was not checked: {danger}.",
        )
    elif facts.code_hashes.get(tx.to) != CALL_ONLY[tx.to]:
        yield Flag(
            "delegatecall",
            f"It is a DELEGATECALL to {to}, whose code is not that of MultiSendCallOnly: {danger}.",
        )


def _about_a_call(call: Decoded, reading: Reading, pins: Pins | None, facts: Facts | None) -> Iterator[Flag]:
    to, selector = abi.checksum(call.to), hex_of(call.data[:4])
    if call.operation not in (CALL, DELEGATE_CALL):
        yield Flag(
            "unknown_operation", f"A call to {to} has the operation {call.operation}, which no Safe knows."
        )
    if call.value_wei:
        yield Flag("value", f"It sends {call.value_wei} wei to {to}.")
    if call.operation == DELEGATE_CALL and reading.batch is not None:
        yield Flag(
            "delegatecall", f"Inside the batch is a DELEGATECALL to {to}: code there runs as the Safe itself."
        )
    if call.contract == "":
        known = "" if pins is None else ", and that is neither the Safe nor PauseGuard nor Liquidator"
        yield Flag("unknown_target", f"It calls {selector} of {to}, which is not known{known}.")
    elif call.function in SELF_CHANGES and call.contract == "Safe":
        yield Flag(SELF_CHANGES[call.function], f"It changes the Safe itself: {words(call)}")
    elif words(call) is None:
        name = call.signature or selector
        yield Flag(
            "unknown_selector",
            f"It calls {name} of {to} ({call.contract}), which no keeper's Safe has to call.",
        )
    if facts is not None and call.to in facts.code_faults:
        yield Flag("target_code", f"The {call.contract or 'contract'} at {to} {facts.code_faults[call.to]}.")
    scope = call.arguments.get(_SCOPED.get(call.function, ""), GLOBAL_SCOPE)
    if pins is not None and scope != GLOBAL_SCOPE and ascii_of(scope) not in pins.protocols:
        yield Flag(
            "unknown_scope",
            f'"{ascii_of(scope)}" is none of the protocols {", ".join(pins.protocols)}: no pause of theirs is meant.',
        )
