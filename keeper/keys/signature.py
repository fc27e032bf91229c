"""secp256k1 signatures as Ethereum takes them, made of what others answer: strict DER, low s, parity by recovery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from coincurve import PublicKey

from keeper import abi
from keeper.types import Address, Hash

ORDER: Final = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
_SEQUENCE: Final = 0x30
_INTEGER: Final = 0x02
_LONGEST: Final = 72  # two integers of 33 bytes with their headers, and the sequence's
# The header of every secp256k1 key in X.509 form: id-ecPublicKey, secp256k1, 65 bytes uncompressed (RFC 5480).
_PUBLIC_KEY_HEADER: Final = bytes.fromhex("3056301006072a8648ce3d020106052b8104000a034200" + "04")


@dataclass(frozen=True, slots=True)
class Signature:
    """r, s (never above half the order) and the parity of y, 0 or 1."""

    r: int
    s: int
    parity: int


def completed(r: int, s: int, digest: Hash, signer: Address) -> Signature:
    """`signer`'s signature of `digest` with the lower s and its parity; raises `ValueError` if it is not one."""
    if not (0 < r < ORDER and 0 < s < ORDER):
        raise ValueError("r or s is out of range")
    s = min(s, ORDER - s)
    for parity in (0, 1):
        compact = r.to_bytes(32) + s.to_bytes(32) + bytes((parity,))
        try:
            key = PublicKey.from_signature_and_message(compact, digest, hasher=None)
        except ValueError:
            continue  # no point of the curve has this r with this parity
        if address_of(key.format(compressed=False)[1:]) == signer:
            return Signature(r, s, parity)
    raise ValueError("the signature is of another key or of another digest")


def address_of(public_key: bytes) -> Address:
    """The address of an uncompressed public key of 64 bytes."""
    return Address(abi.keccak(public_key)[12:])


def read_der(encoded: bytes) -> tuple[int, int]:
    """r and s of an ECDSA-Sig-Value (RFC 3279) in DER; raises `ValueError` for anything but the one right encoding."""
    if not 2 < len(encoded) <= _LONGEST or encoded[0] != _SEQUENCE or encoded[1] != len(encoded) - 2:
        raise ValueError("it is not one DER sequence")
    r, rest = _integer(encoded[2:])
    s, rest = _integer(rest)
    if rest:
        raise ValueError("bytes follow s")
    return r, s


def read_public_key(encoded: bytes) -> bytes:
    """The 64 bytes of a secp256k1 key in a SubjectPublicKeyInfo (RFC 5480); raises `ValueError` for anything else."""
    if len(encoded) != len(_PUBLIC_KEY_HEADER) + 64 or not encoded.startswith(_PUBLIC_KEY_HEADER):
        raise ValueError("it is not an uncompressed secp256k1 key")
    return encoded[len(_PUBLIC_KEY_HEADER) :]


def _integer(encoded: bytes) -> tuple[int, bytes]:
    """A positive INTEGER in its shortest form, and what follows it."""
    length = encoded[1] if len(encoded) > 2 else 0
    content, rest = encoded[2 : 2 + length], encoded[2 + length :]
    if not content or len(content) != length or encoded[0] != _INTEGER:
        raise ValueError("an integer is cut off or missing")
    if content[0] & 0x80:
        raise ValueError("an integer is negative")
    if length > 1 and content[0] == 0 and not content[1] & 0x80:
        raise ValueError("an integer has a leading zero")
    return int.from_bytes(content), rest
