"""EIP-1559 transactions, before and after they are signed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Final

from keeper import abi
from keeper.abi.rlp import rlp, rlp_list, strings
from keeper.guard import Fees
from keeper.keys.signature import Signature
from keeper.types import Address, Gas, Hash, Wei

_TYPE_2: Final = b"\x02"
_NO_ACCESS_LIST: Final = b"\xc0"
_TIP, _DATA = 2, 7  # among the fields


@dataclass(frozen=True, slots=True)
class Signed:
    """A signed transaction, ready to broadcast."""

    raw: bytes
    hash: Hash
    nonce: int
    gas_limit: Gas


@dataclass(frozen=True, slots=True)
class Unsigned:
    """A transaction that nobody has signed; it never sends value."""

    chain_id: int
    to: Address
    data: bytes
    nonce: int
    fees: Fees

    def fields(self) -> bytes:
        """Its nine fields in RLP, without the list around them; a library's general way takes ten times as long."""
        fees = self.fees
        numbers: tuple[int | bytes, ...] = (
            self.chain_id,
            self.nonce,
            fees.tip_wei,
            fees.max_fee_wei,
            fees.gas_limit,
            bytes(self.to),
            0,
            self.data,
        )
        return b"".join(map(rlp, numbers)) + _NO_ACCESS_LIST


def payload_of(fields: bytes) -> bytes:
    """What is hashed with keccak and signed."""
    return _TYPE_2 + rlp_list(fields)


def with_signature(tx: Unsigned, fields: bytes, signature: Signature) -> Signed:
    """The bytes to broadcast, of a transaction and its fields."""
    raw = _TYPE_2 + rlp_list(fields + rlp(signature.parity) + rlp(signature.r) + rlp(signature.s))
    return Signed(raw, abi.keccak(raw), tx.nonce, tx.fees.gas_limit)


def calldata_of(raw: bytes) -> bytes:
    """The calldata of a signed EIP-1559 transaction."""
    return _field(raw, _DATA)


def tip_of(raw: bytes) -> Wei:
    """The priority fee per gas a signed EIP-1559 transaction offers."""
    return Wei(int.from_bytes(_field(raw, _TIP)))


def _field(raw: bytes, index: int) -> bytes:
    if raw[:1] != _TYPE_2:
        raise ValueError("These bytes are no EIP-1559 transaction.")
    return next(islice(strings(raw[1:]), index, None))
