"""Backups that are whole, and putting one back so that nothing newer is lost and nothing is sent twice.

Every copy is verified and knows that it is one: whichever way it becomes the record again, the daemon first asks the
chain what happened since (`keeper.execution.reconcile`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keeper.errors import LedgerError
from keeper.ledger import Ledger, heads
from keeper.ledger.heads import TreeHead
from keeper.store import Store
from keeper.store.backup import left_behind, place_new, replace_record, snapshot
from keeper.store.database import writing_alone


def back_up(record: Path, target: Path, at_s: int) -> TreeHead | None:
    """Write a verified copy of a record, beside whoever writes to it, to a new file of mode 0600; returns its head.

    Raises `LedgerError` when the target exists, or the record is missing or not whole.
    """
    if target.exists():
        raise LedgerError(f"{target} is there already and is not overwritten; choose another file.")
    with snapshot(record, target.parent) as draft:
        with _copy(draft, record, None, at_s) as store:
            head = heads.head_at(store)
        place_new(draft, target)
    return head


def restore(backup: Path, record: Path, chain_id: int, at_s: int) -> TreeHead | None:
    """Make a backup the record, unless there is one with anything that the backup lacks; returns its head.

    Raises `LedgerError` when a keeper runs on the record, when the record is newer, other or unreadable, and when the
    backup is of another chain or not whole. The backup itself stays as it is.
    """
    with writing_alone(record):
        left = left_behind(record)
        if left is not None:
            raise LedgerError(
                f"{left} belongs to a record that was moved away; move it there too, then restore."
            )
        with snapshot(backup, record.parent) as draft:
            with _copy(draft, backup, chain_id, at_s) as store:
                if record.exists():
                    _require_older(record, store)
                head = heads.head_at(store)
            replace_record(draft, record)
    return head


@contextmanager
def _copy(draft: Path, source: Path, chain_id: int | None, at_s: int) -> Iterator[Store]:
    """The draft, open, brought up to today's schema, verified and marked as a copy."""
    try:
        opened = Store.open_file(draft, chain_id=chain_id)
    except LedgerError as error:
        raise LedgerError(
            str(error).replace(str(draft), str(source))
        ) from error  # the draft's name tells nothing
    with opened as store:
        fault = heads.verify(store)
        if fault is not None:
            raise LedgerError(f"{source} is not whole and was not copied: {fault.what}")
        store.mark_copied(at_s)
        yield store


def _require_older(record: Path, copy: Store) -> None:
    """Raise unless every entry of the present record is in the copy as well."""
    aside = f"move {record.name} away, and {record.name}-wal with it if it is there, then restore."
    try:
        with Store.open_file(record, read_only=True) as present:
            last_seq, last_hash = Ledger(present).tip()
    except LedgerError as error:
        raise LedgerError(f"The backup cannot be compared with what is there ({error}); {aside}") from error
    same = Ledger(copy).entry(last_seq) if last_seq else None
    if last_seq and (same is None or same.hash != last_hash):
        raise LedgerError(f"{record} has entries that the backup lacks, {last_seq} in all; {aside}")
