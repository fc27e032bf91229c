"""Whole files of a record: a snapshot beside whoever writes, and how a finished file takes its place.

Whatever is made is made under another name in the same folder first, so that neither a full disk nor a killed process
leaves half a record where a whole one is looked for.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from keeper.errors import LedgerError
from keeper.store.database import in_our_words

_BESIDE: Final = ("-wal", "-shm", "-journal", ".lock")


@contextmanager
def snapshot(record: Path, folder: Path) -> Iterator[Path]:
    """A copy of a record as it is at one moment, mode 0600, under a passing name in `folder`.

    A daemon may write meanwhile. Whatever has not been put in its place is removed at the end. Raises `LedgerError`
    when the record is missing or the disk refuses.
    """
    if not record.exists():
        raise LedgerError(f"There is no record at {record}; name the file of one.")
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{record.name}-", suffix=".part")  # mode 0600
    except OSError as error:
        raise LedgerError(f"{folder} cannot be written ({error.strerror}); choose another folder.") from error
    os.close(handle)
    draft = Path(name)
    try:
        with in_our_words(record, "copy"), closing(_connect(record)) as source:
            source.execute("VACUUM INTO ?", (name,))
        yield draft
    finally:
        for path in (draft, *(draft.with_name(draft.name + end) for end in _BESIDE)):
            path.unlink(missing_ok=True)


def place_new(draft: Path, target: Path) -> None:
    """Put a closed file where none is yet, needing no other file beside it. Raises `LedgerError` where one is."""
    with in_our_words(draft, "close"), closing(_connect(draft)) as connection:
        # what is kept must be readable where nothing can be written
        connection.execute("PRAGMA journal_mode = DELETE")
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise LedgerError(f"{target} is there already and is not overwritten; choose another file.") from None
    except OSError as error:
        raise LedgerError(f"{target} cannot be written ({error.strerror}); choose another file.") from error
    _replace(draft, target)


def replace_record(draft: Path, record: Path) -> None:
    """Put a closed file in a record's place; nothing of the old record stays, its journal least of all."""
    for end in _BESIDE[:-1]:  # before: SQLite would write an old journal into the new file
        record.with_name(record.name + end).unlink(missing_ok=True)
    _replace(draft, record)


def left_behind(record: Path) -> Path | None:
    """A journal whose record was moved away without it, and with it that record's last entries."""
    beside = (record.with_name(record.name + end) for end in ("-wal", "-journal"))
    return (
        None
        if record.exists()
        else next((path for path in beside if path.exists() and path.stat().st_size), None)
    )


def _connect(path: Path) -> sqlite3.Connection:
    # Nothing is created, and what a read-only connection would leave beside the file is cleared away.
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=rw", uri=True, isolation_level=None)


def _replace(draft: Path, target: Path) -> None:
    try:
        _flush(draft)
        draft.replace(target)
        _flush(target.parent)
    except OSError as error:
        raise LedgerError(f"{target} cannot be written ({error.strerror}); check the disk.") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
