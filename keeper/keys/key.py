"""What all keys share: whose they are, and, where the secret is in this process, how they sign."""

from __future__ import annotations

from typing import Final

from keeper import abi
from keeper.errors import KeyMisuse
from keeper.guard import Fees
from keeper.keys.signers import LocalSigner
from keeper.keys.transaction import Signed, Unsigned, payload_of, with_signature
from keeper.types import Address, Hash


class Key:
    """Whose it is, and nothing else, is what a key tells of itself."""

    __slots__ = ("address",)

    address: Address

    def __repr__(self) -> str:
        return f"{type(self).__name__}({abi.checksum(self.address)})"

    def __reduce__(self) -> str:
        raise KeyMisuse("A key cannot be stored or copied.")


class LocalKey(Key):
    """A key in this process; subclasses decide what may be signed."""

    __slots__ = ("_chain_id", "_signer")

    def __init__(self, secret: str, chain_id: int, where: str) -> None:
        self._signer: Final = LocalSigner(secret, where)
        self._chain_id: Final = chain_id
        self.address = self._signer.address

    def _sign(self, to: Address, data: bytes, nonce: int, fees: Fees) -> Signed:
        tx = Unsigned(self._chain_id, to, data, nonce, fees)
        fields = tx.fields()
        return with_signature(tx, fields, self._signer.sign_digest(abi.keccak(payload_of(fields))))

    def _typed(self, digest: Hash) -> bytes:
        """A signature as contracts recover it: r, s and 27 or 28."""
        made = self._signer.sign_digest(digest)
        return made.r.to_bytes(32) + made.s.to_bytes(32) + bytes((made.parity + 27,))
