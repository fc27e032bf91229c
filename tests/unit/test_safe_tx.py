from __future__ import annotations

import pytest

from keeper.abi import address, load
from keeper.errors import ExecutionError
from keeper.multisig.safe import (
    CALL,
    DELEGATE_CALL,
    InnerCall,
    batch,
    exec_calldata,
    executed,
    pack_signatures,
)
from keeper.typed_data import SafeTx
from keeper.types import Address, BlockNumber, Hash, Log

SAFE = address("0x63fA7Fe9Ee24094CB5366b076EC6d6DaC8946D3C")
LOW, MIDDLE, HIGH = (Address(bytes([number]) * 20) for number in (1, 127, 255))
TX_HASH = Hash(b"\xaa" * 32)


def log(topics: tuple[Hash, ...], data: bytes, emitter: Address = SAFE) -> Log:
    """A log of the Safe unless said otherwise."""
    return Log(emitter, topics, data, BlockNumber(1), Hash(bytes(32)), Hash(bytes(32)), 0)


def test_signatures_are_packed_by_owner() -> None:
    """Whatever the order they come in, signatures are joined by ascending owner."""
    signatures = {owner: owner[:1] * 65 for owner in (HIGH, LOW, MIDDLE)}
    assert pack_signatures(signatures) == b"\x01" * 65 + b"\x7f" * 65 + b"\xff" * 65


def test_a_cut_signature_is_refused() -> None:
    """A signature of another length names its owner instead of shifting all that follow."""
    with pytest.raises(ExecutionError, match=r"0x01010101.*64 bytes"):
        pack_signatures({LOW: b"\x01" * 64, HIGH: b"\x02" * 65})


def test_success_is_believed_only_from_the_safe_itself() -> None:
    """ExecutionSuccess counts in both versions' layouts; a failure, another hash or another emitter does not."""
    abi = load("Safe")
    success, failure = abi.event("ExecutionSuccess").topic, abi.event("ExecutionFailure").topic
    assert executed([log((success, TX_HASH), bytes(32))], SAFE, TX_HASH)  # 1.4.1
    assert executed([log((success,), TX_HASH + bytes(32))], SAFE, TX_HASH)  # 1.3.0
    assert not executed([log((failure, TX_HASH), bytes(32))], SAFE, TX_HASH)
    assert not executed([log((success, Hash(b"\xbb" * 32)), bytes(32))], SAFE, TX_HASH)
    assert not executed([log((success, TX_HASH), bytes(32), emitter=LOW)], SAFE, TX_HASH)
    assert not executed([], SAFE, TX_HASH)


def test_a_batch_is_one_delegated_call_of_plain_calls() -> None:
    """MultiSend's packed form: operation, target, value, length and data of each call, one after another."""
    calls = [InnerCall(LOW, b"\x01\x02\x03"), InnerCall(HIGH, b"", value_wei=5)]
    tx = batch(MIDDLE, calls, nonce=9)
    assert (tx.to, tx.operation, tx.value_wei, tx.nonce, tx.safe_tx_gas) == (MIDDLE, DELEGATE_CALL, 0, 9, 0)
    (packed,) = load("MultiSend").function("multiSend").decode_input(tx.data)
    first = bytes([CALL]) + LOW + bytes(32) + (3).to_bytes(32) + b"\x01\x02\x03"
    assert packed == first + bytes([CALL]) + HIGH + (5).to_bytes(32) + bytes(32)
    with pytest.raises(ExecutionError, match="at least one call"):
        batch(MIDDLE, [], nonce=9)


def test_execution_carries_every_field() -> None:
    """What is sent decodes to what was signed."""
    tx = SafeTx(LOW, 1, b"\x05", CALL, 2, 3, 4, 5, MIDDLE, HIGH)
    sent = load("Safe").function("execTransaction").decode_input(exec_calldata(tx, b"\x07" * 65))
    assert sent == (LOW, 1, b"\x05", CALL, 3, 4, 5, MIDDLE, HIGH, b"\x07" * 65)
