"""An entry as it stands in the ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

from keeper.errors import LedgerError
from keeper.types import Hash


@dataclass(frozen=True, slots=True)
class Booked:
    """One line of the ledger: what happened, to which plan and account, with its numbers as canonical JSON types.

    The hashes are its place in the chain.
    """

    seq: int
    at_s: int
    kind: str
    plan_id: str
    protocol: str
    account: str
    body: Mapping[str, Any]
    prev_hash: Hash
    hash: Hash


def read(row: Row[Any]) -> Booked:
    """A stored row. Raises `LedgerError` where it was altered beyond reading; whether it was at all, `verify` says."""
    try:
        body = json.loads(row.body)
        hashes = Hash(bytes.fromhex(row.prev_hash)), Hash(bytes.fromhex(row.hash))
    except (ValueError, TypeError, RecursionError) as error:
        raise LedgerError(
            f"Entry {row.seq} of the ledger cannot be read; run `keeper ledger verify` and restore a backup."
        ) from error
    return Booked(row.seq, row.at_s, row.kind, row.plan_id, row.protocol, row.account, body, *hashes)
