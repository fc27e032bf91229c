"""What a node's refusal of signed bytes means, and the one thing that follows from it.

Codes differ from node to node, and so do the words: those of Geth, Reth, Erigon, Nethermind (by name until 2026, in
Geth's words since), Besu and Anvil are known here. What none of the patterns matches is `UNKNOWN`, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Final

from keeper.chain.wire import already_known, failed_execution
from keeper.errors import ChainError, RpcError


class Complaint(Enum):
    """Why signed bytes were not taken."""

    KNOWN = "already_known"
    NONCE_TOO_LOW = "nonce_too_low"
    NONCE_TOO_HIGH = "nonce_too_high"
    REPLACEMENT_UNDERPRICED = "replacement_underpriced"
    FEE_BELOW_BASE = "fee_below_base"
    UNDERPRICED = "underpriced"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    GAS_LIMIT = "gas_limit"  # more gas, or more gas money, than the node lets through
    REVERTED = "reverted"
    UNKNOWN = "unknown"  # also: no node was reached


class Consequence(Enum):
    """What the sender does about it; whatever it does, receipts are asked for at every head."""

    WAIT = "a node has it, or its nonce is used: the receipts say the rest"
    OFFER = "the same bytes are offered again at the next head"
    REFILL = "as OFFER, and nothing else is sent until the operator can pay for it"
    REPLACE = "a dearer one follows at the next head, or a cancellation where the profit does not allow it"
    CANCEL = "no node will ever take it: its nonce is taken back at the next head"


CONSEQUENCES: Final[Mapping[Complaint, Consequence]] = {
    Complaint.KNOWN: Consequence.WAIT,
    Complaint.NONCE_TOO_LOW: Consequence.WAIT,
    Complaint.NONCE_TOO_HIGH: Consequence.OFFER,
    Complaint.REPLACEMENT_UNDERPRICED: Consequence.REPLACE,
    Complaint.FEE_BELOW_BASE: Consequence.REPLACE,
    Complaint.UNDERPRICED: Consequence.REPLACE,
    Complaint.INSUFFICIENT_FUNDS: Consequence.REFILL,
    Complaint.GAS_LIMIT: Consequence.CANCEL,
    Complaint.REVERTED: Consequence.CANCEL,
    Complaint.UNKNOWN: Consequence.OFFER,
}

# The first that matches counts: what is said of a replacement or of the base fee is also said to be underpriced.
_PATTERNS: Final = tuple(
    (complaint, re.compile(pattern, re.IGNORECASE))
    for complaint, pattern in (
        (
            Complaint.REPLACEMENT_UNDERPRICED,
            r"replacement transaction underpriced|could not replace existing|ReplacementNotAllowed"
            r"|insufficient gas price to replace",
        ),
        (
            Complaint.FEE_BELOW_BASE,
            r"less than block base ?fee|below current base ?fee|MaxFeePerGas too low",
        ),
        (Complaint.INSUFFICIENT_FUNDS, r"insufficient ?funds|up-?front cost\b.* exceeds|cause overdraft"),
        (Complaint.NONCE_TOO_LOW, r"nonce too low|OldNonce|nonce \d+ below"),
        (
            Complaint.NONCE_TOO_HIGH,
            r"nonce too high|NonceGap|nonce is too distant|nonce ?too ?far|with a lower nonce exists"
            r"|future transaction tries to replace",
        ),
        (
            Complaint.GAS_LIMIT,
            r"exceeds block gas limit|gas limit (reached|(is )?too high|is greater)|GasLimitExceeded|intrinsic ?gas"
            r"|exceeds max transaction gas|exceeds the configured cap|fee cap exceeded",
        ),
        (
            Complaint.UNDERPRICED,
            r"underpriced|fee ?too ?low|below (configured )?minimum|pool is full",
        ),
    )
)


def complaint_of(error: ChainError) -> Complaint:
    """The class of a failed broadcast; anything but an answered refusal is `UNKNOWN`."""
    if not isinstance(error, RpcError):
        return Complaint.UNKNOWN
    if already_known(error):
        return Complaint.KNOWN
    for complaint, pattern in _PATTERNS:
        if pattern.search(error.message):
            return complaint
    return Complaint.REVERTED if failed_execution(error) else Complaint.UNKNOWN
