"""Heads of the Merkle tree over the entries, proofs against them, and whether the record is whole.

A head says how many entries there were and stands for all of them (`keeper.store.merkle`). Whoever keeps one
elsewhere can later prove that an entry was in the ledger, and that the ledger has only grown since. Heads are stored
beside the entries as well: a tail that was cut off is missing under them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, desc, func, select

from keeper.errors import LedgerError
from keeper.store import Store
from keeper.store.canonical import GENESIS, recomputed
from keeper.store.merkle import Frontier, path_to
from keeper.store.schema import entries, heads
from keeper.types import Hash

_NEWEST: Final = select(heads).order_by(desc(heads.c.size)).limit(1)
_LAST_SEQ: Final = select(func.coalesce(func.max(entries.c.seq), 0))
_HASHES: Final = (
    select(entries.c.hash)
    .where(entries.c.seq > bindparam("above"), entries.c.seq <= bindparam("most"))
    .order_by(entries.c.seq)
)


@dataclass(frozen=True, slots=True)
class TreeHead:
    """How many entries there were and the root over all of them; `at_s` is None for one kept elsewhere."""

    size: int
    root: Hash
    at_s: int | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """That an entry's hash is in the tree of `head.size` entries: its siblings, from the leaf up (RFC 6962)."""

    seq: int
    entry_hash: Hash
    path: tuple[Hash, ...]
    head: TreeHead


@dataclass(frozen=True, slots=True)
class Fault:
    """The first entry that is not as it was booked, and what is wrong, in one sentence."""

    seq: int
    what: str


def newest(store: Store) -> TreeHead | None:
    """The newest stored head."""
    with store.transaction() as connection:
        row = connection.execute(_NEWEST).one_or_none()
    return _head(row)[0] if row is not None else None


def checkpoint(store: Store, at_s: int) -> TreeHead | None:
    """Store the head of everything booked so far, unless it is stored already; None while there is nothing.

    Costs two hashes per entry since the last one. Raises `LedgerError` where entries that had a head are missing.
    """
    with store.transaction() as connection:
        head, tree = _grown(connection, None)
        if head is None or head.at_s is not None:
            return head
        peaks = "".join(peak.hex() for peak in tree.peaks)
        row = {"size": head.size, "at_s": at_s, "root": head.root.hex(), "peaks": peaks}
        connection.execute(heads.insert(), row)
    return TreeHead(head.size, head.root, at_s)


def head_at(store: Store, size: int | None = None) -> TreeHead | None:
    """The head of the first `size` entries, or of all; None where that many are not there or there are none."""
    with store.transaction() as connection:
        return _grown(connection, size)[0]


def require_all(store: Store, last_seq: int) -> None:
    """Raise `LedgerError` unless the ledger reaches as far as its newest head: what was cut must not be grown over."""
    with store.transaction() as connection:
        _newest_row(connection, last_seq)


def prove(store: Store, seq: int, size: int | None = None) -> Proof:
    """The proof of an entry in the tree of the first `size` entries, or of the newest stored head that counts it.

    An entry no stored head counts yet is proved in the tree of all. Raises `LedgerError` where there is no such entry
    or tree, the entry was altered, or the stored head for the tree differs.
    """
    with store.transaction() as connection:
        last_seq: int = connection.execute(_LAST_SEQ).scalar_one()
        if size is None:
            row = _newest_row(connection, last_seq)
            size = row.size if row is not None and row.size >= seq else last_seq
        if not 1 <= seq <= size <= last_seq:
            raise LedgerError(
                f"The ledger has {last_seq} entries: there is no entry {seq} among the first {size}."
            )
        found = connection.execute(_HASHES, {"above": 0, "most": size}).scalars()
        hashes = [bytes.fromhex(text) for text in found]
        root = Hash(Frontier().grown(hashes).root)
        entry = connection.execute(select(entries).where(entries.c.seq == seq)).one()
        if recomputed(entry, hashes[seq - 2] if seq > 1 else GENESIS) != hashes[seq - 1]:
            raise LedgerError(f"Entry {seq} is not as it was booked; run `keeper ledger verify`.")
        row = connection.execute(select(heads).where(heads.c.size == size)).one_or_none()
    if row is not None and row.root != root.hex():
        raise LedgerError(f"The ledger does not fit its head of {size} entries; run `keeper ledger verify`.")
    path = tuple(Hash(one) for one in path_to(seq - 1, hashes))
    return Proof(seq, Hash(hashes[seq - 1]), path, TreeHead(size, root, row.at_s if row else None))


def verify(store: Store, kept: TreeHead | None = None) -> Fault | None:
    """The first entry that is missing, altered, out of line or gone from under a head; None when all is whole.

    `kept` is a head that was noted elsewhere, which nobody who can write to the file can have changed.
    """
    with store.transaction() as connection:
        tree, previous, proven = Frontier(), GENESIS, 0
        due = _due(connection, kept)
        head = next(due, None)
        rows = connection.execute(select(entries).order_by(entries.c.seq).execution_options(yield_per=1000))
        for row in rows:
            fault = _misfit(row, tree.size + 1, previous)
            if fault is not None:
                return fault
            previous = bytes.fromhex(row.hash)
            tree = tree.grown([previous])
            while head is not None and head.size <= tree.size:
                if head.size != tree.size or head.root != tree.root.hex():
                    return Fault(proven + 1, _rewritten(proven + 1, head))
                proven, head = tree.size, next(due, None)
    if head is not None:
        missing = tree.size + 1
        return Fault(
            missing,
            f"Entry {missing} and what followed it are missing: {head.whose} counts {head.size} entries.",
        )
    return None


@dataclass(frozen=True, slots=True)
class _Due:
    """A head the entries must fit."""

    size: int
    root: str
    whose: str


def _due(connection: Connection, kept: TreeHead | None) -> Iterator[_Due]:
    """Stored heads and the one kept elsewhere, by size."""
    waiting = _Due(kept.size, kept.root.hex(), "the head that was kept") if kept is not None else None
    query = select(heads.c.size, heads.c.root).order_by(heads.c.size)
    for row in connection.execute(query.execution_options(yield_per=1000)):
        if waiting is not None and waiting.size <= row.size:
            yield waiting
            waiting = None
        yield _Due(row.size, row.root, "a stored head")
    if waiting is not None:
        yield waiting


def _misfit(row: Row[Any], expected: int, previous: bytes) -> Fault | None:
    """What is wrong with the row that stands where entry `expected` should, behind one with the hash `previous`."""
    if row.seq != expected:
        return Fault(expected, f"Entry {expected} is missing.")
    if row.prev_hash != previous.hex():
        what = f"Entry {expected} does not follow the entry before it: entries were inserted, exchanged or altered."
        return Fault(expected, what)
    actual = recomputed(row, previous)
    if actual is None or actual.hex() != row.hash:
        return Fault(expected, f"Entry {expected} was altered: its content does not have its hash.")
    return None


def _rewritten(first: int, head: _Due) -> str:
    return (
        f"Entries {first} to {head.size} are not those {head.whose} of {head.size} entries was made of: one of them "
        "was replaced and every hash after it computed anew, or the head is wrong."
    )


def _grown(connection: Connection, size: int | None) -> tuple[TreeHead | None, Frontier]:
    """The head and tree of the first `size` entries or of all, grown from the nearest stored head below."""
    last_seq: int = connection.execute(_LAST_SEQ).scalar_one()
    newest_row = _newest_row(connection, last_seq)
    size = last_seq if size is None else size
    if not 1 <= size <= last_seq:
        return None, Frontier()
    row = newest_row
    if row is not None and row.size > size:
        row = connection.execute(_NEWEST.where(heads.c.size <= size)).one_or_none()
    head, tree = _head(row) if row is not None else (None, Frontier())
    if head is None or head.size < size:
        found = connection.execute(_HASHES, {"above": tree.size, "most": size}).scalars()
        tree = tree.grown(bytes.fromhex(text) for text in found)
        head = TreeHead(size, Hash(tree.root))
    return head, tree


def _newest_row(connection: Connection, last_seq: int) -> Row[Any] | None:
    """The newest stored head, of a ledger that reaches as far."""
    row = connection.execute(_NEWEST).one_or_none()
    if row is not None and row.size > last_seq:
        raise LedgerError(
            f"The ledger ends with entry {last_seq}, but its newest head counts {row.size}: entries were removed; "
            "move the file aside and restore a backup."
        )
    return row


def _head(row: Row[Any]) -> tuple[TreeHead, Frontier]:
    try:
        text = bytes.fromhex(row.peaks)
        tree = Frontier(row.size, tuple(text[at : at + 32] for at in range(0, len(text), 32)))
        if tree.root.hex() == row.root and len(tree.peaks) == tree.size.bit_count():
            return TreeHead(row.size, Hash(tree.root), row.at_s), tree
    except (ValueError, TypeError):
        pass  # said below, like peaks of another tree
    raise LedgerError(f"The ledger's head of {row.size} entries was altered; run `keeper ledger verify`.")
