"""What the ledger's commands do: the record read, proved, copied and put back. None of them asks the chain."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

from keeper import assembly
from keeper.commands.shapes import SCHEMA, account_of, entry_of
from keeper.errors import ConfigError, LedgerError
from keeper.ledger import KINDS, Booked, Ledger, TreeHead, copies, heads
from keeper.store import Store, sqlite_path
from keeper.store.canonical import canonical
from keeper.types import Hash, hex_of

_HEAD: Final = re.compile(r"(\d{1,15}):(?:0x)?([0-9a-fA-F]{64})")
_COLUMNS: Final = ("seq", "at_s", "at", "kind", "plan_id", "protocol", "account")
# The figures of a body that accounts are made of; `body` holds all of it.
_FIGURES: Final = (
    *("tx", "nonce", "block", "status", "gas_used", "gas_cost_wei", "gas_cost_usd_e8"),
    *("profit_token", "profit_decimals", "profit_raw", "profit_usd_e8", "expected_profit_raw"),
    *("data_fee_wei", "data_gas"),
)
_CHAINED: Final = ("body", "prev_hash", "hash")


def listed(config: Path, *, limit: int, kind: str | None, account: str | None) -> dict[str, Any]:
    """Entries, newest first; works beside a running daemon."""
    _require_kind(kind)
    who = account_of(account) if account else None
    with _reading(config) as store:
        entries = Ledger(store).entries(limit, kind=kind, account=who)
        return {"schema": SCHEMA, "entries": [entry_of(entry) for entry in entries]}


def shown(config: Path, seq: int, size: int | None) -> dict[str, Any]:
    """One entry, the others of its plan, and the proof that it is under a head: of `size` entries, or the newest."""
    with _reading(config) as store:
        ledger = Ledger(store)
        proof = heads.prove(store, seq, size)
        [entry] = ledger.entries(1, before_seq=seq + 1)
        plan = Hash(bytes.fromhex(entry.plan_id[2:])) if entry.plan_id else None
        others = ledger.entries(None, plan=plan)[::-1] if plan else []
    return {
        "schema": SCHEMA,
        "entry": _chained(entry),
        "plan_entries": [{"seq": other.seq, "kind": other.kind} for other in others],
        "proof": {
            "index": seq - 1,
            "entry_hash": hex_of(proof.entry_hash),
            "path": [hex_of(sibling) for sibling in proof.path],
            **_head(proof.head),
        },
    }


def verified(config: Path, file: Path | None, head: str | None) -> dict[str, Any]:
    """Whether a record is whole: the configured one, or any file; `head` is one that was noted elsewhere."""
    kept = _parsed_head(head) if head else None
    path = file or sqlite_path(assembly.settings(config).store.url)
    with Store.open_file(path, read_only=True) as store, store.transaction():  # all of it at one moment
        ledger = Ledger(store)
        fault = ledger.verify(kept)
        last_seq, tip = ledger.tip()
        copied_at_s = store.copied_at_s()
        stored = None if fault else heads.newest(store)
        whole = None if fault else heads.head_at(store)
    return {
        "schema": SCHEMA,
        "ok": fault is None,
        "file": str(path),
        "fault": {"entry": fault.seq, "what": fault.what} if fault else None,
        "entries": last_seq,
        "tip_hash": hex_of(tip),
        "root": hex_of(whole.root) if whole else None,
        "newest_head": _head(stored) if stored else None,
        "copied_at_s": copied_at_s,
    }


def exported(
    config: Path, *, form: str, since: str | None, until: str | None, kind: str | None, out: Path | None
) -> None:
    """Write entries, oldest first, as one JSON document or as CSV with a header line, to stdout or a new file."""
    _require_kind(kind)
    since_s, until_s = _moment("--since", since), _moment("--until", until)
    if form not in _WRITERS:
        raise ConfigError(f"--format is {form}; write csv or json.")
    with _reading(config) as store, _output(out) as stream:
        _WRITERS[form](Ledger(store).walk(kind, since_s=since_s, until_s=until_s), stream)


def backed_up(config: Path, target: Path) -> dict[str, Any]:
    """A verified copy beside a running daemon."""
    record = sqlite_path(assembly.settings(config).store.url)
    head = copies.back_up(record, target, int(time.time()))
    return {"schema": SCHEMA, "record": str(record), "backup": str(target), **_head(head)}


def restored(config: Path, backup: Path) -> dict[str, Any]:
    """A backup in the record's place; at its next start the daemon asks the chain what the backup does not know."""
    configured = assembly.settings(config)
    record = sqlite_path(configured.store.url)
    head = copies.restore(backup, record, configured.chain.id, int(time.time()))
    return {"schema": SCHEMA, "record": str(record), "backup": str(backup), **_head(head)}


def corrected(config: Path, seq: int, reason: str, amounts: list[str]) -> dict[str, Any]:
    """A correction of an entry, appended; the daemon must not run."""
    configured = assembly.settings(config)
    stated: dict[str, int] = {}
    for amount in amounts:
        name, _, figure = amount.partition("=")
        if not re.fullmatch(r"\d{1,80}", figure):
            raise ConfigError(f"--set {amount} is no amount; write its name, = and a whole number.")
        stated[name] = int(figure)
    if not sqlite_path(configured.store.url).exists():
        raise LedgerError(f"There is no record at {sqlite_path(configured.store.url)}; correct store.url.")
    with Store.open(configured.store.url, chain_id=configured.chain.id) as store:
        entry = Ledger(store).correct(seq, reason, stated, int(time.time()))
    return {"schema": SCHEMA, "entry": _chained(entry)}


def _write_json(entries: Iterator[Booked], stream: TextIO) -> None:
    # line by line: a record need not fit into memory
    stream.write(f'{{\n"schema": {SCHEMA},\n"entries": [')
    for number, entry in enumerate(entries):
        stream.write(",\n" if number else "\n")
        stream.write(json.dumps(_chained(entry)))
    stream.write("\n]\n}\n")


def _write_csv(entries: Iterator[Booked], stream: TextIO) -> None:
    lines = csv.writer(stream, lineterminator="\n")
    lines.writerow((*_COLUMNS, *_FIGURES, *_CHAINED))
    for entry in entries:
        at = datetime.fromtimestamp(entry.at_s, UTC).isoformat()
        who = (entry.seq, entry.at_s, at, entry.kind, entry.plan_id, entry.protocol, entry.account)
        figures = [entry.body.get(name, "") for name in _FIGURES]
        chained = (canonical(entry.body), hex_of(entry.prev_hash), hex_of(entry.hash))
        lines.writerow((*who, *figures, *chained))


_WRITERS: Final = {"csv": _write_csv, "json": _write_json}


@contextmanager
def _reading(config: Path) -> Iterator[Store]:
    with Store.open(assembly.settings(config).store.url, read_only=True) as store:
        yield store


@contextmanager
def _output(out: Path | None) -> Iterator[TextIO]:
    """Stdout, or a new file of mode 0600: what is there is not overwritten, and the record is nobody else's."""
    if out is None:
        yield sys.stdout
        return
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{out} is there already and is not overwritten; choose another file.") from None
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}); choose another file.") from error
    with os.fdopen(handle, "w", encoding="ascii") as stream:
        yield stream


def _chained(entry: Booked) -> dict[str, Any]:
    return {**entry_of(entry), "prev_hash": hex_of(entry.prev_hash)}


def _head(head: TreeHead | None) -> dict[str, Any]:
    if head is None:
        return {"size": 0, "root": None, "head_at_s": None}
    return {"size": head.size, "root": hex_of(head.root), "head_at_s": head.at_s}


def _parsed_head(text: str) -> TreeHead:
    match = _HEAD.fullmatch(text)
    if match is None or not int(match[1]):
        raise ConfigError(
            f"--head {text} is no head; write the number of entries, a colon and 64 hex digits."
        )
    return TreeHead(int(match[1]), Hash(bytes.fromhex(match[2])))


def _require_kind(kind: str | None) -> None:
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"{kind} is no kind of entry; the kinds are {', '.join(sorted(KINDS))}.")


def _moment(option: str, text: str | None) -> int | None:
    """Seconds since the epoch, or an ISO date or time, in UTC unless it says otherwise."""
    if text is None:
        return None
    if text.isdecimal() and len(text) > 8:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option} {text} is no time; write 2026-01-31, 2026-01-31T12:00 or seconds since the epoch."
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
