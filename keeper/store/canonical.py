"""How an entry is written down so that anybody can recompute its hash.

Canonical JSON: keys sorted, no spaces, ASCII; integers beyond ±2**53 as decimal strings, because other readers would
round them; bytes as 0x hex (20 bytes: a checksummed address); Decimal as plain decimal text; no floats. An entry's
hash is SHA-256 over the previous entry's 32-byte hash followed by the canonical JSON of its fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from sqlalchemy import Row

from keeper import abi
from keeper.errors import LedgerError
from keeper.log import MAX_EXACT_JSON_INT, secrets
from keeper.types import hex_of

GENESIS: Final = bytes(32)  # the hash before the first entry
_ENCODER: Final = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
)  # made once: entries are booked while a liquidation waits


def canonical(value: Any) -> str:
    """Canonical JSON of plain JSON types without floats."""
    return _ENCODER.encode(value)


def digest(
    prev_hash: bytes,
    seq: int,
    at_s: int,
    kind: str,
    plan_id: str,
    protocol: str,
    account: str,
    body: Mapping[str, Any],
) -> bytes:
    """The hash of an entry whose plain body is `body`."""
    return sealed(prev_hash, seq, at_s, kind, plan_id, protocol, account, canonical(body))


def sealed(
    prev_hash: bytes, seq: int, at_s: int, kind: str, plan_id: str, protocol: str, account: str, body: str
) -> bytes:
    """The hash of an entry whose body is already written down: its canonical JSON, spelt out key by key."""
    account, kind, plan_id, protocol = map(encode_basestring_ascii, (account, kind, plan_id, protocol))
    entry = (
        f'{{"account":{account},"at_s":{at_s},"body":{body},"kind":{kind},"plan_id":{plan_id},'
        f'"protocol":{protocol},"seq":{seq}}}'
    )
    return hashlib.sha256(prev_hash + entry.encode("ascii")).digest()


def recomputed(row: Row[Any], previous: bytes) -> bytes | None:
    """The hash a stored row should have, or None when the row is not canonical or not linked to `previous`."""
    try:
        body = json.loads(row.body)
        if canonical(body) != row.body or row.prev_hash != previous.hex():
            return None
        return sealed(previous, row.seq, row.at_s, row.kind, row.plan_id, row.protocol, row.account, row.body)
    except (ValueError, TypeError, RecursionError):
        return None  # an altered body need not be JSON at all


def plain(value: Any, where: str) -> Any:
    """`value` as canonical JSON types, scrubbed of secrets; `LedgerError` names `where` for what has none."""
    match value:
        case None | bool():
            return value
        case str():
            return secrets.scrub(str(value))
        case int():
            return value if abs(value) <= MAX_EXACT_JSON_INT else str(value)
        case bytes():
            return abi.checksum(value) if len(value) == 20 else hex_of(value)
        case Decimal() if value.is_finite():
            return format(value, "f")
        case Mapping():
            return {key: plain(item, f"{where}.{key}") for key, item in _text_keys(value, where)}
        case list() | tuple():
            return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise LedgerError(
        f"{where} is a {type(value).__name__} and cannot be recorded; use integers, text, bytes or lists of them."
    )


def _text_keys(value: Mapping[Any, Any], where: str) -> list[tuple[str, Any]]:
    for key in value:
        if not isinstance(key, str):
            raise LedgerError(f"{where} has the key {key!r}, which is not text; the ledger needs names.")
    return list(value.items())
