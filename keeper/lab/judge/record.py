"""The keeper's ledger, opened as the plain SQLite table it is, and its hash chain recomputed.

The format, as its own documentation states it: an entry's hash is SHA-256 over the previous entry's 32-byte hash
(zeros before the first) followed by the entry's JSON with sorted keys, no spaces and ASCII only.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from keeper.errors import LedgerError
from keeper.lab.judge.verdict import Difference
from keeper.types import Hash

_COLUMNS: Final = "seq, at_s, kind, plan_id, protocol, account, body, prev_hash, hash"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row. `body` is empty where the text is not JSON; `text` is what stands there."""

    seq: int
    at_s: int
    kind: str
    plan_id: str
    protocol: str
    account: str
    text: str
    prev_hash: str
    hash: str
    body: Mapping[str, Any]

    def integer(self, name: str) -> int | None:
        """A figure of the body, which writes large ones as text; None where it is missing or no number."""
        value = self.body.get(name)
        if isinstance(value, bool) or not isinstance(value, int | str):
            return None
        try:
            return int(value)
        except ValueError:
            return None

    def word(self, name: str) -> str:
        """Text of the body in lower case; empty where it is missing."""
        return str(self.body.get(name, "")).lower()

    @property
    def transaction(self) -> Hash | None:
        """The transaction the entry is about."""
        text = self.word("tx").removeprefix("0x")
        try:
            value = bytes.fromhex(text)
        except ValueError:
            return None
        return Hash(value) if len(value) == 32 else None


def read_record(path: Path) -> list[Entry]:
    """All entries in order; none where no ledger was ever made. Raises `LedgerError` when the file is not one."""
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute(f"SELECT {_COLUMNS} FROM entries ORDER BY seq").fetchall()  # noqa: S608
    except sqlite3.Error as error:
        raise LedgerError(f"{path} cannot be read as a ledger: {error}.") from error
    return [_entry(row) for row in rows]


def broken_chain(entries: Sequence[Entry]) -> list[Difference]:
    """The first entry that is missing, altered or out of line, if there is one; those behind it hang from it."""
    previous = bytes(32)
    for expected, entry in enumerate(entries, 1):
        if entry.seq != expected:
            return [Difference("hash_chain", f"entry {expected} is missing", min(expected, entry.seq))]
        if entry.prev_hash != previous.hex():
            return [Difference("hash_chain", "does not follow the entry before it", entry.seq)]
        content = {
            "seq": entry.seq,
            "at_s": entry.at_s,
            "kind": entry.kind,
            "plan_id": entry.plan_id,
            "protocol": entry.protocol,
            "account": entry.account,
            "body": entry.body,
        }
        digest = hashlib.sha256(previous + _canonical(content)).digest()
        if _canonical(entry.body) != entry.text.encode() or digest.hex() != entry.hash:
            return [Difference("hash_chain", "was altered", entry.seq, booked=entry.hash, chain=digest.hex())]
        previous = digest
    return []


def _entry(row: Sequence[Any]) -> Entry:
    seq, at_s, kind, plan_id, protocol, account, text, prev_hash, this_hash = row
    return Entry(seq, at_s, kind, plan_id, protocol, account, text, prev_hash, this_hash, _body(text))


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _body(text: str) -> Mapping[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
