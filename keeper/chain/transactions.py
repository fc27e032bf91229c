"""What one account sent in one block, with the bytes it signed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from keeper.abi import keccak
from keeper.abi.rlp import rlp, rlp_list
from keeper.chain.rpc import Rpc
from keeper.chain.wire import Lacking, address_of, data, hash_of, quantity, reading
from keeper.types import Address, Gas, Hash, Wei, hex_of

_TYPE_2: Final = b"\x02"
_NO_ACCESS_LIST: Final = b"\xc0"


@dataclass(frozen=True, slots=True)
class Sent:
    """A mined transaction; `to` is None where it created a contract.

    `raw` are the signed bytes of an EIP-1559 transaction without access list, the only kind a keeper sends; empty for
    any other.
    """

    hash: Hash
    nonce: int
    to: Address | None
    value_wei: Wei
    data: bytes
    gas_limit: Gas
    max_fee_wei: Wei
    raw: bytes


class _Shape(msgspec.Struct, rename="camel"):
    hash: str
    sender: str = msgspec.field(name="from")
    nonce: str
    input: str
    to: str | None = None
    value: str = "0x0"
    gas: str = "0x0"
    type: str = "0x0"
    chain_id: str | None = None
    max_fee_per_gas: str | None = None
    max_priority_fee_per_gas: str | None = None
    v: str | None = None
    r: str | None = None
    s: str | None = None


class _BlockShape(msgspec.Struct):
    transactions: list[_Shape]


_BLOCK: Final = msgspec.json.Decoder(_BlockShape | None)
_ONE: Final = msgspec.json.Decoder(_Shape | None)


async def sent_in(rpc: Rpc, sender: Address, number: int) -> list[Sent]:
    """The transactions of `sender` in the block with this number. Raises `ChainError` where the node lacks it."""
    shape = await rpc.ask(_BLOCK, "eth_getBlockByNumber", hex(number), True)
    if shape is None:
        raise Lacking(f"{rpc.label} does not know block {number}.")
    with reading(rpc.label, "eth_getBlockByNumber"):
        return [_sent(one) for one in shape.transactions if address_of(one.sender) == sender]


async def sender_of(rpc: Rpc, transaction_hash: Hash) -> Address | None:
    """Who sent a transaction; None where the node does not know it."""
    shape = await rpc.ask(_ONE, "eth_getTransactionByHash", hex_of(transaction_hash))
    with reading(rpc.label, "eth_getTransactionByHash"):
        return address_of(shape.sender) if shape is not None else None


def _sent(shape: _Shape) -> Sent:
    return Sent(
        hash=hash_of(shape.hash),
        nonce=quantity(shape.nonce),
        to=address_of(shape.to) if shape.to else None,
        value_wei=Wei(quantity(shape.value)),
        data=data(shape.input),
        gas_limit=Gas(quantity(shape.gas)),
        max_fee_wei=Wei(quantity(shape.max_fee_per_gas or "0x0")),
        raw=_raw(shape),
    )


def _raw(shape: _Shape) -> bytes:
    """The signed bytes, believed only if they have the transaction's hash."""
    tip, fee, to = shape.max_priority_fee_per_gas, shape.max_fee_per_gas, shape.to
    signature = [quantity(part) for part in (shape.v, shape.r, shape.s) if part is not None]
    if shape.type != "0x2" or len(signature) != 3 or not (shape.chain_id and tip and fee and to):
        return b""
    fields: tuple[int | bytes, ...] = (
        *(quantity(text) for text in (shape.chain_id, shape.nonce, tip, fee, shape.gas)),
        *(data(to), quantity(shape.value), data(shape.input)),
    )
    content = b"".join(map(rlp, fields)) + _NO_ACCESS_LIST + b"".join(map(rlp, signature))
    raw = _TYPE_2 + rlp_list(content)
    return raw if hex_of(keccak(raw)) == shape.hash.lower() else b""
