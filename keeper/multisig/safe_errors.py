"""Every error code of Safe 1.3.0 and 1.4.1 in words, with what to do about it.

GS026 alone has four causes that look alike on chain; `why_refused` tells them apart by recovering the signers again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from keeper import abi
from keeper.keys import recovered
from keeper.multisig.proposal import Proposal
from keeper.types import Address

_CODE: Final = re.compile(r"\bGS\d{3}\b")

# code: (what happened, what to do)
CODES: Final = {
    "GS000": ("the call that sets up the Safe failed", "use the set-up data of a deployment that worked"),
    "GS001": ("the Safe has no threshold: it was never set up", "check the Safe's address and chain"),
    "GS002": ("the set-up call goes to an address without code", "check the module's address and chain"),
    "GS010": ("too little gas was sent along for what safeTxGas asks", "send it with a higher gas limit"),
    "GS011": ("the Safe cannot refund the gas in ether", "build it again with gasPrice 0"),
    "GS012": ("the Safe cannot refund the gas in gasToken", "build it again with gasPrice 0"),
    "GS013": (
        "the call inside failed",
        "see why below, and build a transaction that works at the present state",
    ),
    "GS020": ("there are fewer signatures than the threshold asks for", "have more owners sign"),
    "GS021": (
        "a contract signature points into the signatures themselves",
        "have that owner sign with a key",
    ),
    "GS022": ("a contract signature points beyond the data", "have that owner sign with a key"),
    "GS023": ("a contract signature is cut short", "have that owner sign with a key"),
    "GS024": ("an owner that is a contract does not accept its signature", "have another owner sign"),
    "GS025": (
        "an owner's approval is claimed that was never given on chain",
        "have that owner sign with a key",
    ),
    "GS026": (
        "a signature is not by an owner, or they are not in ascending order of owners",
        "see the cause below",
    ),
    "GS027": (
        "the data given with a contract signature is not what was signed",
        "have that owner sign with a key",
    ),
    "GS030": ("only an owner can approve a hash", "approve it from an owner's account"),
    "GS031": ("only the Safe itself can change itself", "propose it as a transaction of the Safe to itself"),
    "GS100": ("the Safe's modules were set up before", "use enableModule"),
    "GS101": ("that address cannot be a module", "check the module's address"),
    "GS102": ("the module is enabled already", "leave it out"),
    "GS103": (
        "the module before it in the list is another one",
        "read the list of modules and build it again",
    ),
    "GS104": ("only an enabled module may do this", "check which module calls"),
    "GS105": ("the list of modules does not begin there", "begin at 0x…01 or at a module"),
    "GS106": ("a page of modules must hold at least one", "ask for a larger page"),
    "GS200": ("the Safe's owners were set up before", "change owners one by one"),
    "GS201": ("the threshold would exceed the number of owners", "lower the threshold"),
    "GS202": ("the threshold would be 0", "set it to 1 at least"),
    "GS203": ("that address cannot be an owner", "check it: neither 0, 0x…01 nor the Safe itself may be one"),
    "GS204": ("that account is an owner already", "leave it out"),
    "GS205": ("the owner before it in the list is another one", "read the owners and build it again"),
    "GS300": ("that contract is no transaction guard", "check the guard's address"),
    "GS400": ("the Safe cannot be its own fallback handler", "choose another handler"),
}


def code_in(text: str) -> str | None:
    """The Safe's error code in a revert reason."""
    found = _CODE.search(text)
    return found[0] if found else None


def explain(code: str) -> str:
    """An error code as one sentence: what happened and what to do."""
    if code not in CODES:
        return f"{code} is no error of Safe 1.3.0 or 1.4.1: the contract may be another version."
    what, remedy = CODES[code]
    return f"{code}: {what}; {remedy}."


def why_refused(
    proposal: Proposal,
    packed: bytes,
    nonce: int,
    owners: Sequence[Address],
) -> str:
    """Why a Safe at `nonce` with these owners answers GS026 to packed signatures of a proposal."""
    if proposal.tx.nonce != nonce:
        return (
            f"Wrong nonce: it was signed for nonce {proposal.tx.nonce} and the Safe is at {nonce}, so the Safe sees "
            "other signers; "
            + (
                f"execute what has nonce {nonce} first."
                if proposal.tx.nonce > nonce
                else "build and sign it again, the old signatures are worthless."
            )
        )
    signers = [recovered(proposal.hash, packed[at : at + 65]) for at in range(0, len(packed), 65)]
    for place, signer in enumerate(signers, 1):
        if signer is None:
            return f"Signature {place} is by nobody: it is spoilt; have that owner sign again."
        if signer not in owners:
            return (
                f"Signature {place} is by {abi.checksum(signer)}, who is no owner: it was removed, or signed "
                "another transaction; have an owner sign."
            )
    known = [signer for signer in signers if signer is not None]
    if len(set(known)) != len(known):
        return "An owner's signature is there twice; leave one."
    if known != sorted(known):
        return "The signatures are not in ascending order of their owners; `keeper pause exec` sorts them."
    return "All signatures are by owners, in order, and for the present nonce: the Safe must have changed meanwhile."
