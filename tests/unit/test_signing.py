from __future__ import annotations

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st
from rlp import encode  # type: ignore[import-untyped]

from keeper.abi.rlp import strings
from keeper.guard import Fees
from keeper.keys import DETERMINISTIC_DEPLOYER, DeployerKey, calldata_of, tip_of
from keeper.types import Gas, Wei

SECRETS = st.integers(1, 2**250).map(lambda number: f"0x{number:064x}")
AMOUNTS = st.integers(0, 2**96)


@settings(max_examples=300, deadline=None)
@given(
    SECRETS,
    st.integers(1, 2**53),
    st.integers(0, 2**62),
    AMOUNTS,
    AMOUNTS,
    st.integers(0, 2**40),
    st.binary(max_size=70_000),
)
def test_signed_bytes_are_what_the_reference_library_signs(
    secret: str, chain_id: int, nonce: int, max_fee: int, tip: int, gas: int, code: bytes
) -> None:
    """For any key, chain, nonce, fees and data, bytes and hash are exactly eth-account's."""
    key = DeployerKey(secret, chain_id, "a key")
    signed = key.sign_deploy(code, nonce, Fees(Wei(max_fee), Wei(tip), Gas(gas)))
    expected = Account.from_key(secret).sign_transaction(
        {
            "type": 2,
            "chainId": chain_id,
            "nonce": nonce,
            "to": bytes(DETERMINISTIC_DEPLOYER),
            "value": 0,
            "data": bytes(32) + code,
            "gas": gas,
            "maxFeePerGas": max_fee,
            "maxPriorityFeePerGas": tip,
        }
    )
    assert (signed.raw, signed.hash, signed.nonce) == (expected.raw_transaction, expected.hash, nonce)
    assert (calldata_of(signed.raw), tip_of(signed.raw)) == (bytes(32) + code, tip)
    assert key.address == bytes.fromhex(Account.from_key(secret).address[2:])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=20))
def test_a_list_is_read_as_the_reference_library_writes_it(content: list[bytes]) -> None:
    """Every string comes back, and what is cut short is not taken for a whole list."""
    encoded = encode(content)
    assert list(strings(encoded)) == content
    if content and len(content[-1]) > 1:
        with pytest.raises(ValueError, match="middle of a string"):
            list(strings(encoded[:-1]))
    with pytest.raises(ValueError, match="not a list"):
        list(strings(encode(b"one string")))
