"""Whose signatures a proposal carries, how one is added, and how files of several signers become one.

A signature is believed only by recovering who made it, over the hash computed here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from keeper import abi
from keeper.errors import ExecutionError
from keeper.guard.message import SignedPause
from keeper.keys import recovered
from keeper.multisig.proposal import Proposal
from keeper.types import Address

_ETH_SIGN: Final = 30  # v above it: the owner signed eth_sign's message


def signers(proposal: Proposal) -> dict[Address, Address | None]:
    """By owner, whose signature is really there; None where it is nobody's."""
    return {owner: recovered(proposal.hash, given) for owner, given in proposal.signatures.items()}


def valid(proposal: Proposal, owners: Collection[Address] | None = None) -> dict[Address, bytes]:
    """The signatures that are their owner's, and by one of `owners` where those are known."""
    return {
        owner: proposal.signatures[owner]
        for owner, signer in signers(proposal).items()
        if signer == owner and (owners is None or owner in owners)
    }


def kind(signature: bytes) -> str:
    """How a valid signature was made."""
    return "eth_sign" if signature[64] > _ETH_SIGN else "eip712"


def attach(proposal: Proposal, owner: Address, signature: bytes) -> Proposal:
    """The proposal with one more signature. Raises ExecutionError, saying why, for one that is not the owner's."""
    who = abi.checksum(owner)
    if len(signature) > 65 or (len(signature) == 65 and signature[64] == 0):
        bare = signature[:64] + b"\x1b" if len(signature) == 65 else b""
        hint = " (its wallet may have written 00 for 1b: then give it with 1b)"
        raise ExecutionError(
            "That is a contract's signature, which these tools do not take: have an owner sign with a key"
            f"{hint if recovered(proposal.hash, bare) == owner else ''}."
        )
    if len(signature) != 65:
        raise ExecutionError(f"A signature has 65 bytes, and this one has {len(signature)}.")
    if signature[64] == 1:
        low = signature[:64] + b"\x1c"
        hint = " (its wallet may have written 01 for 1c: then give it with 1c)"
        raise ExecutionError(
            "That claims an approval given on chain, which these tools do not take: sign the hash"
            f"{hint if recovered(proposal.hash, low) == owner else ''}."
        )
    signer = recovered(proposal.hash, signature)
    if signer is None:
        raise ExecutionError(f"That signature is nobody's: it is spoilt; have {who} sign again.")
    if signer != owner:
        personal = signature[:64] + bytes([signature[64] + 4]) if signature[64] in (27, 28) else b""
        if recovered(proposal.hash, personal) == owner:
            raise ExecutionError(
                f"{who} signed the hash as a message, which a Safe takes with a last byte of {personal[64]:02x}: "
                "give it with that."
            )
        raise ExecutionError(
            f"That signature is by {abi.checksum(signer)}, not by {who}: another account signed, or {who} signed "
            "something else."
        )
    return replace(proposal, signatures={**proposal.signatures, owner: signature})


def merged(files: Sequence[tuple[str, Proposal]]) -> Proposal:
    """One proposal with everybody's signatures.

    Raises ExecutionError where two files hold different transactions, naming the field, or where an owner's signature
    is not by that owner.
    """
    first_name, first = files[0]
    together = replace(first, signatures={})
    for name, proposal in files:
        field = first.difference(proposal)
        if field is not None:
            rivals = (
                f" They are rivals for nonce {first.tx.nonce}: only one of them can be executed."
                if first.rivals(proposal)
                else ""
            )
            raise ExecutionError(f"{name} is another transaction than {first_name}: {field} differs.{rivals}")
        if proposal.claimed_hash not in (None, proposal.hash):
            raise ExecutionError(f"{name} says another hash than its fields give; have it sent again.")
        for owner, signature in proposal.signatures.items():
            try:
                together = attach(together, owner, signature)
            except ExecutionError as error:
                raise ExecutionError(f"{name}: {abi.checksum(owner)}: {error}") from None
    return together


def require_guardian(signed: SignedPause, who: Address) -> None:
    """Raise ExecutionError unless the signature is `who`'s, of this very pause."""
    signer = recovered(signed.digest, signed.signature)
    if signer != who:
        by = "nobody's" if signer is None else f"by {abi.checksum(signer)}"
        raise ExecutionError(
            f"That signature is {by}, not by {abi.checksum(who)}: another account signed, or something else was signed."
        )
