"""What others answer becomes a signature Ethereum takes, or an error: DER, the lower s, parity by recovery."""

from __future__ import annotations

import pytest
from eth_keys.datatypes import PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from keeper import abi
from keeper.keys.signature import ORDER, Signature, address_of, completed, read_der, read_public_key
from keeper.lab.signer_doubles import encode_der
from keeper.types import Hash

NUMBERS = st.one_of(
    st.integers(1, 300), st.integers(1, ORDER - 1), st.integers(0, 255).map(lambda bits: 1 << bits)
)
SECRETS = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32))
DIGESTS = st.binary(min_size=32, max_size=32).map(Hash)


@settings(max_examples=500, deadline=None)
@given(NUMBERS, NUMBERS)
def test_der_is_read_back(r: int, s: int) -> None:
    """Any two numbers, short ones and those whose first bit is set among them, come back from their DER."""
    assert read_der(encode_der(r, s)) == (r, s)


@settings(max_examples=500, deadline=None)
@given(NUMBERS, NUMBERS, st.data())
def test_only_one_encoding_is_read(r: int, s: int, data: st.DataObject) -> None:
    """A byte changed, dropped, added or doubled anywhere is refused or says other numbers, in their one encoding."""
    right = encode_der(r, s)
    at = data.draw(st.integers(0, len(right)))
    new = data.draw(st.binary(max_size=2))
    wrong = right[:at] + new + right[at + data.draw(st.integers(0, 2)) :]
    try:
        read = read_der(wrong)
    except ValueError:
        return
    assert encode_der(*read) == wrong and (wrong == right or read != (r, s))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=80))
def test_anything_else_is_refused(garbage: bytes) -> None:
    """Whatever bytes come, they are a canonical encoding or a `ValueError`, never another error."""
    try:
        read = read_der(garbage)
    except ValueError:
        return
    assert encode_der(*read) == garbage


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "30",
        "3000",
        "3006020101",
        "300602010102010100",
        "30070201010201010a",
        "3007020200010201" + "01",
        "3006020181020101",
        "3006020101020181",
        "3005020002010101",
        "30060201010301" + "01",
        "3106020101020101",
        "308106020101020101",
        "3080020101020101" + "0000",
        "3005020101020100"[:-2],
    ],
)
def test_malformed_der(wrong: str) -> None:
    """Cut off, trailing, zero-padded, negative, empty, of another type, long and indefinite lengths."""
    with pytest.raises(ValueError, match=r"sequence|integer|bytes follow"):
        read_der(bytes.fromhex(wrong))


@settings(max_examples=200, deadline=None)
@given(SECRETS, DIGESTS, st.booleans())
def test_a_signature_is_completed(secret: bytes, digest: Hash, upper: bool) -> None:
    """With the upper or the lower s, what comes out is the one low signature, with the parity that was not told."""
    key = PrivateKey(secret)
    made = key.sign_msg_hash(digest)
    signer = address_of(key.public_key.to_bytes())
    s = ORDER - made.s if upper else made.s
    assert completed(made.r, s, digest, signer) == Signature(made.r, made.s, made.v)
    assert made.s <= ORDER // 2


@settings(max_examples=100, deadline=None)
@given(SECRETS, DIGESTS, DIGESTS)
def test_a_signature_of_anything_else_is_refused(secret: bytes, digest: Hash, other: Hash) -> None:
    """Of another digest, by another key, or with its numbers exchanged."""
    key = PrivateKey(secret)
    made = key.sign_msg_hash(digest)
    signer = address_of(key.public_key.to_bytes())
    attempts = [(made.s, made.r, digest)]
    if other != digest:
        attempts.append((made.r, made.s, other))
    stranger = PrivateKey(abi.keccak(secret)).sign_msg_hash(digest)
    attempts.append((stranger.r, stranger.s, digest))
    for r, s, of in attempts:
        with pytest.raises(ValueError, match="of another key or of another digest"):
            completed(r, s, of, signer)


@pytest.mark.parametrize(("r", "s"), [(0, 1), (1, 0), (ORDER, 1), (1, ORDER), (2**256, 1), (-1, 1)])
def test_numbers_out_of_range_are_refused(r: int, s: int) -> None:
    """Zero, the order and beyond are no part of a signature."""
    with pytest.raises(ValueError, match="out of range"):
        completed(r, s, Hash(bytes(32)), address_of(bytes(64)))


def test_a_public_key_is_read_from_its_one_form() -> None:
    """An uncompressed secp256k1 key is read; another curve, a compressed key and a cut one are refused."""
    point = PrivateKey(b"\x11" * 32).public_key.to_bytes()
    header = bytes.fromhex("3056301006072a8648ce3d020106052b8104000a03420004")
    assert read_public_key(header + point) == point
    p256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
    for wrong in (b"", header, header + point[:-1], header + point + b"\0", p256 + point):
        with pytest.raises(ValueError, match="secp256k1"):
            read_public_key(wrong)
