"""A proposed Safe transaction as a file, `NAME.safetx.json`, that travels between signers by any channel.

    {"version": 1, "chain_id": "1", "safe": "0x…",
     "transaction": {"to": "0x…", "value": "0", "data": "0x…", "operation": "0", "safeTxGas": "0", "baseGas": "0",
                     "gasPrice": "0", "gasToken": "0x…", "refundReceiver": "0x…", "nonce": "7"},
     "signatures": {"0xOWNER": "0x…65 bytes"}, "note": "what it is for"}

Numbers are decimal strings, fields have EIP-712's own names. Nothing in the file is trusted: hashes are computed from
the fields. A `safe_tx_hash` that another tool wrote is only ever compared with the one computed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from keeper import abi
from keeper.errors import ExecutionError
from keeper.typed_data import SafeTx, domain_separator, safe_tx_hash, struct_hash
from keeper.types import Address, Hash, hex_of

SUFFIX: Final = ".safetx.json"
VERSION: Final = 1
_LONGEST: Final = 1_000_000  # characters; a file is a few kilobytes
_MOST_BRACKETS: Final = 8  # a proposal has three; a parser of C may crash on what is nested without end
_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"')

# The fields of SafeTx by their names in EIP-712, in the order they are signed.
FIELDS: Final[Mapping[str, str]] = {
    "to": "to",
    "value": "value_wei",
    "data": "data",
    "operation": "operation",
    "safeTxGas": "safe_tx_gas",
    "baseGas": "base_gas",
    "gasPrice": "gas_price_wei",
    "gasToken": "gas_token",
    "refundReceiver": "refund_receiver",
    "nonce": "nonce",
}
_ADDRESSES: Final = ("to", "gasToken", "refundReceiver")
_REQUIRED: Final = ("version", "chain_id", "safe", "transaction", "signatures", "note")


@dataclass(frozen=True, slots=True)
class Proposal:
    """One transaction of one Safe with the signatures gathered so far, by owner; `claimed_hash` as the file said."""

    chain_id: int
    safe: Address
    tx: SafeTx
    note: str
    signatures: Mapping[Address, bytes] = field(default_factory=dict)
    claimed_hash: Hash | None = None

    @property
    def domain_hash(self) -> Hash:
        """What a hardware wallet shows as domain hash."""
        return domain_separator(self.chain_id, self.safe)

    @property
    def message_hash(self) -> Hash:
        """What a hardware wallet shows as message hash."""
        return struct_hash(self.tx)

    @property
    def hash(self) -> Hash:
        """What owners sign."""
        return safe_tx_hash(self.chain_id, self.safe, self.tx)

    def difference(self, other: Proposal) -> str | None:
        """The first field in which two proposals differ, as the file names it; None for the same transaction."""
        if self.chain_id != other.chain_id:
            return "chain_id"
        if self.safe != other.safe:
            return "safe"
        for name, attribute in FIELDS.items():
            if getattr(self.tx, attribute) != getattr(other.tx, attribute):
                return name
        return None

    def rivals(self, other: Proposal) -> bool:
        """Whether only one of the two can ever be executed: same Safe and nonce, another transaction."""
        same_place = (self.chain_id, self.safe, self.tx.nonce) == (other.chain_id, other.safe, other.tx.nonce)
        return same_place and self.hash != other.hash

    def text(self) -> str:
        """The file, the same bytes for the same proposal."""
        tx: dict[str, str] = {}
        for name, attribute in FIELDS.items():
            value = getattr(self.tx, attribute)
            written = abi.checksum if name in _ADDRESSES else hex_of if name == "data" else str
            tx[name] = written(value)
        document = {
            "version": VERSION,
            "chain_id": str(self.chain_id),
            "safe": abi.checksum(self.safe),
            "transaction": tx,
            "signatures": {
                abi.checksum(who): hex_of(self.signatures[who]) for who in sorted(self.signatures)
            },
            "note": self.note,
        }
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def parse(text: str, where: str) -> Proposal:
    """A proposal from a file's text. Raises ExecutionError with one sentence that begins with `where`."""
    document = read_object(text, where)
    keys(document, _REQUIRED, where, optional=("safe_tx_hash",))
    if document["version"] != VERSION or isinstance(document["version"], bool):
        raise ExecutionError(
            f"{where}: version is {shown(document['version'])}, and this program reads {VERSION}."
        )
    raw, gathered = document["transaction"], document["signatures"]
    if not isinstance(raw, dict):
        raise ExecutionError(f"{where}: transaction is {shown(raw)}, not an object.")
    if not isinstance(gathered, dict):
        raise ExecutionError(
            f"{where}: signatures is {shown(gathered)}, not an object of owner and signature."
        )
    keys(raw, tuple(FIELDS), f"{where}: transaction")
    values: dict[str, Any] = {}
    for name, attribute in FIELDS.items():
        place = f"{where}: transaction.{name}"
        if name in _ADDRESSES:
            values[attribute] = address(raw[name], place)
        elif name == "data":
            values[attribute] = hexadecimal(raw[name], place)
        else:
            values[attribute] = number(raw[name], place, 1 if name == "operation" else 2**256 - 1)
    signatures: dict[Address, bytes] = {}
    for owner, signature in gathered.items():
        who = address(owner, f"{where}: signatures")
        if who in signatures:
            raise ExecutionError(f"{where}: {abi.checksum(who)} signs twice; leave one of its signatures.")
        signatures[who] = hexadecimal(signature, f"{where}: signatures.{owner}", 65)
    claimed = document.get("safe_tx_hash")
    return Proposal(
        chain_id=number(document["chain_id"], f"{where}: chain_id", 2**64 - 1),
        safe=address(document["safe"], f"{where}: safe"),
        tx=SafeTx(**values),
        note=words(document["note"], f"{where}: note"),
        signatures=signatures,
        claimed_hash=None if claimed is None else Hash(hexadecimal(claimed, f"{where}: safe_tx_hash", 32)),
    )


# --- strict values, for every file signers exchange ------------------------------------------------------------------


def read_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object without repeated keys. Raises ExecutionError."""
    if len(text) > _LONGEST:
        raise ExecutionError(f"{where} has {len(text)} characters; no file of signers is so long.")
    bare = _STRING.sub("", text)
    if bare.count("{") + bare.count("[") > _MOST_BRACKETS:
        raise ExecutionError(f"{where} is nested as no file of signers is; have it sent again.")

    def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ExecutionError(f"{where}: the key {shown(name)} stands there twice; leave one.")
            found[name] = value
        return found

    try:
        document = json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        raise ExecutionError(f"{where} is not JSON ({error}); have it sent again.") from error
    if not isinstance(document, dict):
        raise ExecutionError(f"{where} is not a JSON object; have it sent again.")
    return document


def keys(found: Mapping[str, Any], required: Iterable[str], where: str, optional: Iterable[str] = ()) -> None:
    """Raise ExecutionError unless exactly these keys are there."""
    wanted = tuple(required)
    for name in wanted:
        if name not in found:
            raise ExecutionError(f"{where}: the key {name} is missing.")
    for name in found:
        if name not in wanted and name not in optional:
            raise ExecutionError(f"{where}: the key {shown(name)} is unknown; remove it.")


def number(value: Any, where: str, most: int) -> int:
    """A decimal string up to `most`. Raises ExecutionError."""
    if not isinstance(value, str) or not re.fullmatch(r"0|[1-9][0-9]{0,77}", value) or int(value) > most:
        bound = f"{most.bit_length()} bits" if most > 1 else "0 or 1"
        raise ExecutionError(f"{where} is {shown(value)}, not a decimal number in quotes, {bound} at most.")
    return int(value)


def hexadecimal(value: Any, where: str, size: int | None = None) -> bytes:
    """Bytes from 0x-hex, of `size` where given. Raises ExecutionError."""
    if not isinstance(value, str) or not re.fullmatch(r"0x(?:[0-9a-fA-F]{2})*", value):
        raise ExecutionError(f"{where} is {shown(value)}, not 0x and hexadecimal digits.")
    content = bytes.fromhex(value[2:])
    if size is not None and len(content) != size:
        raise ExecutionError(f"{where} has {len(content)} bytes, not {size}.")
    return content


def address(value: Any, where: str) -> Address:
    """An address from 0x-hex; mixed case must carry its checksum. Raises ExecutionError."""
    try:
        return abi.address(value if isinstance(value, str) else str(value))
    except ValueError as error:
        raise ExecutionError(f"{where}: {error}") from None


def words(value: Any, where: str) -> str:
    """Text that cannot fool a terminal: printable, of at most 2000 characters. Raises ExecutionError."""
    if not isinstance(value, str) or len(value) > 2_000 or not all(char.isprintable() for char in value):
        raise ExecutionError(f"{where} is {shown(value)}, not printable text of at most 2000 characters.")
    return value


def shown(value: Any) -> str:
    """A value of a file in an error, cut and without characters that could fool a terminal."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
