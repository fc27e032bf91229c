"""Records that lie: copies of a keeper's ledger with a change, and the hash chain made whole again or not."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from keeper.lab.rig import Rig

Row = dict[str, Any]


Change = Callable[[list[Row]], None]


def first(rows: list[Row], kind: str) -> Row:
    """The oldest entry of a kind."""
    return next(row for row in rows if row["kind"] == kind)


def amend(kind: str, **figures: Any) -> Change:
    """Other figures in the first entry of a kind."""

    def change(rows: list[Row]) -> None:
        row = first(rows, kind)
        row["body"] = json.dumps(json.loads(row["body"]) | figures, sort_keys=True, separators=(",", ":"))

    return change


def drop(kind: str) -> Change:
    """The first entry of a kind left out."""

    def change(rows: list[Row]) -> None:
        rows.remove(first(rows, kind))
        for place, row in enumerate(rows, 1):
            row["seq"] = place

    return change


def again(kind: str, **changes: Any) -> Change:
    """The first entry of a kind once more at the end, with changes."""

    def change(rows: list[Row]) -> None:
        rows.append(first(rows, kind) | {"seq": len(rows) + 1} | changes)

    return change


def _rehash(rows: list[Row]) -> None:
    """Make the hash chain whole again, as a forger would."""
    previous = bytes(32)
    for row in rows:
        names = ("seq", "at_s", "kind", "plan_id", "protocol", "account")
        content = {name: row[name] for name in names} | {"body": json.loads(row["body"])}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(previous + text.encode()).digest()
        row["prev_hash"], row["hash"] = previous.hex(), digest.hex()
        previous = digest


def tampered(rig: Rig, folder: Path, change: Change, *, rehash: bool) -> Path:
    """A configuration whose record is a copy of the keeper's with a change."""
    path = folder / "copy.db"
    with (
        closing(sqlite3.connect(rig.folder / "keeper.db")) as original,
        closing(sqlite3.connect(path)) as copy,
    ):
        original.backup(copy)
        for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            copy.execute(f"DROP TRIGGER {name}")
        copy.row_factory = sqlite3.Row
        rows: list[Row] = [dict(row) for row in copy.execute("SELECT * FROM entries ORDER BY seq")]
        change(rows)
        if rehash:
            _rehash(rows)
        copy.execute("DELETE FROM entries")
        for row in rows:
            places = ", ".join(f":{name}" for name in row)
            copy.execute(f"INSERT INTO entries ({', '.join(row)}) VALUES ({places})", row)  # noqa: S608
        copy.commit()
    config = folder / "keeper.toml"
    config.write_text(rig.config.read_text().replace("sqlite:///keeper.db", f"sqlite:///{path}"))
    return config
