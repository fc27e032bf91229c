"""What a wallet is asked to sign, as the JSON of `eth_signTypedData_v4`: the very fields that are hashed here.

The hash is computed here and never taken from a wallet; a signature counts only if it recovers over that hash.
"""

from __future__ import annotations

from typing import Any, Final

from keeper import abi
from keeper.multisig.proposal import FIELDS, Proposal
from keeper.typed_data import Pause
from keeper.types import Address, hex_of

_CHAIN: Final = {"name": "chainId", "type": "uint256"}
_CONTRACT: Final = {"name": "verifyingContract", "type": "address"}
_NAME: Final = {"name": "name", "type": "string"}
_VERSION: Final = {"name": "version", "type": "string"}
_TYPES: Final = dict.fromkeys(FIELDS, "uint256") | {
    "to": "address",
    "data": "bytes",
    "operation": "uint8",
    "gasToken": "address",
    "refundReceiver": "address",
}
_SAFE_TX: Final = [{"name": name, "type": kind} for name, kind in _TYPES.items()]
_PAUSE: Final = [
    {"name": "scope", "type": "bytes32"},
    {"name": "reason", "type": "bytes8"},
    {"name": "incident", "type": "bytes32"},
    {"name": "issuedAt", "type": "uint40"},
]


def safe_tx(proposal: Proposal) -> dict[str, Any]:
    """A Safe's transaction, signed under the Safe's domain on its chain."""
    message: dict[str, str] = {}
    for name, attribute in FIELDS.items():
        value, kind = getattr(proposal.tx, attribute), _TYPES[name]
        message[name] = (
            abi.checksum(value) if kind == "address" else hex_of(value) if kind == "bytes" else str(value)
        )
    return {
        "types": {"EIP712Domain": [_CHAIN, _CONTRACT], "SafeTx": _SAFE_TX},
        "primaryType": "SafeTx",
        "domain": {"chainId": str(proposal.chain_id), "verifyingContract": abi.checksum(proposal.safe)},
        "message": message,
    }


def pause(pause_guard: Address, word: Pause) -> dict[str, Any]:
    """A guardian's word, signed under PauseGuard's domain, which names no chain."""
    return {
        "types": {"EIP712Domain": [_NAME, _VERSION, _CONTRACT], "Pause": _PAUSE},
        "primaryType": "Pause",
        "domain": {"name": "PauseGuard", "version": "1", "verifyingContract": abi.checksum(pause_guard)},
        "message": {
            "scope": hex_of(word.scope),
            "reason": hex_of(word.reason),
            "incident": hex_of(word.incident),
            "issuedAt": str(word.issued_at_s),
        },
    }
