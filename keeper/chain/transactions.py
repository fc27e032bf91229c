"""Transactions with the bytes that were signed: one by its hash, or all that one account sent in a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from keeper.abi import keccak
from keeper.abi.rlp import rlp, rlp_list
from keeper.chain.rpc import Rpc
from keeper.chain.wire import Lacking, address_of, data, hash_of, quantity, reading
from keeper.errors import RpcError
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


class Shape(msgspec.Struct, rename="camel"):
    """A transaction as nodes send it, mined or waiting."""

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
    transactions: list[Shape]


_BLOCK: Final = msgspec.json.Decoder(_BlockShape | None)
_ONE: Final = msgspec.json.Decoder(Shape | None)
_TEXT: Final = msgspec.json.Decoder(str | None)


async def raw_of(rpc: Rpc, transaction_hash: Hash) -> bytes:
    """The signed bytes of a transaction, if they have its hash; empty where the node does not tell them."""
    name = hex_of(transaction_hash)
    try:
        raw = data(await rpc.ask(_TEXT, "eth_getRawTransactionByHash", name) or "0x")
    except (RpcError, ValueError):
        raw = b""  # few nodes have the method, but all tell the fields
    if keccak(raw) == transaction_hash:
        return raw
    shape = await rpc.ask(_ONE, "eth_getTransactionByHash", name)
    with reading(rpc.label, "eth_getTransactionByHash"):
        return signed_bytes(shape) if shape else b""


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


def _sent(shape: Shape) -> Sent:
    return Sent(
        hash=hash_of(shape.hash),
        nonce=quantity(shape.nonce),
        to=address_of(shape.to) if shape.to else None,
        value_wei=Wei(quantity(shape.value)),
        data=data(shape.input),
        gas_limit=Gas(quantity(shape.gas)),
        max_fee_wei=Wei(quantity(shape.max_fee_per_gas or "0x0")),
        raw=signed_bytes(shape),
    )


def signed_bytes(shape: Shape) -> bytes:
    """The signed bytes of an EIP-1559 transaction, believed only if they have its hash; empty for any other."""
    fields, signature = _fields(shape), _signature(shape)
    if not fields or len(signature) != 3:
        return b""
    raw = _TYPE_2 + rlp_list(fields + b"".join(map(rlp, signature)))
    return raw if hex_of(keccak(raw)) == shape.hash.lower() else b""


def proof_of(shape: Shape) -> tuple[Hash, bytes] | None:
    """What the sender of an EIP-1559 transaction signed, and the 65-byte signature; None where it is not shown."""
    if not signed_bytes(shape):
        return None
    parity, r, s = _signature(shape)
    if parity > 1 or max(r, s) >= 2**256:
        return None
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([27 + parity])
    return keccak(_TYPE_2 + rlp_list(_fields(shape))), signature


def _signature(shape: Shape) -> list[int]:
    return [quantity(part) for part in (shape.v, shape.r, shape.s) if part is not None]


def _fields(shape: Shape) -> bytes:
    """What is signed, but for its type; empty for another type, or where the node leaves something out."""
    tip, fee, to = shape.max_priority_fee_per_gas, shape.max_fee_per_gas, shape.to
    if shape.type != "0x2" or not (shape.chain_id and tip and fee and to):
        return b""
    fields: tuple[int | bytes, ...] = (
        *(quantity(text) for text in (shape.chain_id, shape.nonce, tip, fee, shape.gas)),
        *(data(to), quantity(shape.value), data(shape.input)),
    )
    return b"".join(map(rlp, fields)) + _NO_ACCESS_LIST
