"""Safe transactions as bytes: how calls are batched, how signatures are packed, what is sent, what proves it happened.

Pure: no key and no network. Works for Safe 1.3.0 and 1.4.1, whose hashes and signatures are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from keeper.abi import checksum, load
from keeper.errors import ExecutionError
from keeper.typed_data import SafeTx
from keeper.types import Address, Hash, Log

CALL: Final = 0
DELEGATE_CALL: Final = 1
_SIGNATURE_BYTES: Final = 65


@dataclass(frozen=True, slots=True)
class InnerCall:
    """One call inside a batch."""

    to: Address
    data: bytes
    value_wei: int = 0


def batch(multi_send: Address, calls: Sequence[InnerCall], nonce: int) -> SafeTx:
    """Several calls as one transaction through MultiSendCallOnly, all or nothing (`MultiSend.multiSend`).

    Raises ExecutionError when there are none.
    """
    if not calls:
        raise ExecutionError("A Safe batch needs at least one call.")
    packed = b"".join(
        bytes([CALL]) + call.to + _word(call.value_wei) + _word(len(call.data)) + call.data for call in calls
    )
    data = load("MultiSend").function("multiSend").encode(packed)
    return SafeTx(multi_send, 0, data, DELEGATE_CALL, nonce)


def pack_signatures(signatures: Mapping[Address, bytes]) -> bytes:
    """65-byte signatures by owner, joined in ascending order of owners as `Safe.checkNSignatures` demands.

    Raises ExecutionError for a signature of another length.
    """
    for owner, signature in signatures.items():
        if len(signature) != _SIGNATURE_BYTES:
            raise ExecutionError(f"The signature of {checksum(owner)} has {len(signature)} bytes, not 65.")
    return b"".join(signatures[owner] for owner in sorted(signatures))


def exec_calldata(tx: SafeTx, signatures: bytes) -> bytes:
    """Calldata of `Safe.execTransaction`; anyone may send it."""
    return (
        load("Safe")
        .function("execTransaction")
        .encode(
            tx.to,
            tx.value_wei,
            tx.data,
            tx.operation,
            tx.safe_tx_gas,
            tx.base_gas,
            tx.gas_price_wei,
            tx.gas_token,
            tx.refund_receiver,
            signatures,
        )
    )


def executed(logs: Iterable[Log], safe: Address, tx_hash: Hash) -> bool:
    """Whether the Safe itself reports the inner call of `tx_hash` as done.

    A receipt's status is not enough: with `safe_tx_gas` set it is success even when the inner call failed. The hash is
    a topic since 1.4.0 and the first data word before.
    """
    topic = load("Safe").event("ExecutionSuccess").topic
    return any(
        log.address == safe
        and log.topics[:1] == (topic,)
        and (log.topics[1] if len(log.topics) > 1 else Hash(log.data[:32])) == tx_hash
        for log in logs
    )


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")
