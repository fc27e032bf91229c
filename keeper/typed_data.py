"""What people sign, as EIP-712 hashes: a Safe's transaction and a guardian's pause.

Pure: no key and no network. The Safe's are those of versions 1.3.0 and 1.4.1, which are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keeper.abi import keccak
from keeper.types import ZERO_ADDRESS, Address, Hash

# Safe.sol: DOMAIN_SEPARATOR_TYPEHASH and SAFE_TX_TYPEHASH
_SAFE_DOMAIN_TYPE: Final = keccak(b"EIP712Domain(uint256 chainId,address verifyingContract)")
_SAFE_TX_TYPE: Final = keccak(
    b"SafeTx(address to,uint256 value,bytes data,uint8 operation,uint256 safeTxGas,uint256 baseGas,"
    b"uint256 gasPrice,address gasToken,address refundReceiver,uint256 nonce)"
)
# PauseGuard.sol: its domain names no chain, so one signature pauses every deployment at its address
_GUARD_DOMAIN_TYPE: Final = keccak(b"EIP712Domain(string name,string version,address verifyingContract)")
_PAUSE_TYPE: Final = keccak(b"Pause(bytes32 scope,bytes8 reason,bytes32 incident,uint40 issuedAt)")


@dataclass(frozen=True, slots=True)
class SafeTx:
    """One transaction of a Safe, in the order its owners sign the fields.

    The gas fields stay zero unless somebody needs refunds: with `safe_tx_gas` set, an inner call that fails does not
    revert the transaction, which then looks like success.
    """

    to: Address
    value_wei: int
    data: bytes
    operation: int
    nonce: int
    safe_tx_gas: int = 0
    base_gas: int = 0
    gas_price_wei: int = 0
    gas_token: Address = ZERO_ADDRESS
    refund_receiver: Address = ZERO_ADDRESS


@dataclass(frozen=True, slots=True)
class Pause:
    """A guardian's word that `scope` stops; `reason` is 8 bytes, `issued_at_s` when it was decided."""

    scope: Hash
    reason: bytes
    incident: Hash
    issued_at_s: int


def domain_separator(chain_id: int, safe: Address) -> Hash:
    """EIP-712 domain of a Safe (`Safe.domainSeparator`)."""
    return keccak(_SAFE_DOMAIN_TYPE + _word(chain_id) + _padded(safe))


def struct_hash(tx: SafeTx) -> Hash:
    """EIP-712 hash of the transaction alone: what a hardware wallet shows as the message hash."""
    return keccak(
        _SAFE_TX_TYPE
        + _padded(tx.to)
        + _word(tx.value_wei)
        + keccak(tx.data)
        + _word(tx.operation)
        + _word(tx.safe_tx_gas)
        + _word(tx.base_gas)
        + _word(tx.gas_price_wei)
        + _padded(tx.gas_token)
        + _padded(tx.refund_receiver)
        + _word(tx.nonce)
    )


def safe_tx_hash(chain_id: int, safe: Address, tx: SafeTx) -> Hash:
    """What owners sign (`Safe.getTransactionHash`)."""
    return keccak(b"\x19\x01" + domain_separator(chain_id, safe) + struct_hash(tx))


def guard_domain(pause_guard: Address) -> Hash:
    """EIP-712 domain of a PauseGuard (`PauseGuard.DOMAIN_SEPARATOR`)."""
    return keccak(_GUARD_DOMAIN_TYPE + keccak(b"PauseGuard") + keccak(b"1") + _padded(pause_guard))


def pause_struct_hash(pause: Pause) -> Hash:
    """EIP-712 hash of the pause alone."""
    reason = pause.reason.ljust(32, b"\0")
    return keccak(_PAUSE_TYPE + pause.scope + reason + pause.incident + _word(pause.issued_at_s))


def pause_hash(pause_guard: Address, pause: Pause) -> Hash:
    """What a guardian signs for `PauseGuard.pauseBySig`."""
    return keccak(b"\x19\x01" + guard_domain(pause_guard) + pause_struct_hash(pause))


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _padded(address: Address) -> bytes:
    return bytes(12) + address
