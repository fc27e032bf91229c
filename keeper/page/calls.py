"""What the page may ask for: each call is one function of the signers' commands, on the files of one folder.

What a person saw is what is signed and sent: a call names the hash and the red flags that were on the screen, and is
refused where they are others by now.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from keeper import abi, commands
from keeper.commands import guardian, pause
from keeper.commands.desk import open_desk, read_text, rewrite, write_new
from keeper.errors import ConfigError, ExecutionError, KeeperError
from keeper.log import secrets as known_secrets
from keeper.multisig import builder, proposal, signatures
from keeper.types import Hash, hex_of

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, slots=True)
class Table:
    """Where the page works; `one_hand` keeps two calls from writing one file at a time."""

    config: Path
    folder: Path
    builds: pause.Builds
    offline: bool
    one_hand: asyncio.Lock = field(default_factory=asyncio.Lock)

    def path(self, name: str, suffix: str = proposal.SUFFIX) -> Path:
        """A file of the folder by its bare name. Raises ConfigError."""
        if not _NAME.fullmatch(name) or not name.endswith(suffix):
            raise ConfigError(
                f"{proposal.shown(name)} is no file of this folder; its name must end with {suffix}."
            )
        return self.folder / name


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a call."""


class State(_Call):
    """Nothing is asked."""


class Build(_Call):
    """An action with its words, as for `keeper pause build`."""

    action: str
    words: list[str]
    nonce: int | None = None
    note: str = ""


class Load(_Call):
    """A file that somebody sent."""

    name: str
    text: str


class OnFile(_Call):
    """A proposal by the name of its file."""

    file: str


class Seen(OnFile):
    """A proposal as it was on the screen: its hash, and the red flags that are meant."""

    hash: str
    meant: list[str]


class Sign(Seen):
    """A wallet's signature of what was on the screen."""

    owner: str
    signature: str


class Sent(OnFile):
    """An execution that a wallet sent."""

    tx: str


class Alone(_Call):
    """What a wallet does without the Safe: `pause`, `veto` or `unpause` with their words."""

    action: str
    words: list[str]
    sender: str


class AloneSent(_Call):
    """The same, once a wallet sent it."""

    action: str
    words: list[str]
    tx: str


class Word(_Call):
    """A stop that a guardian signs instead of sending."""

    scope: str
    reason: str
    incident: str | None


class Kept(Word):
    """The same with the guardian's signature."""

    issued_at_s: int
    guardian: str
    signature: str


async def _state(table: Table, _: State) -> dict[str, Any]:
    """The guard's scopes at the newest head or why they are unknown, what can be built, and the files there are."""
    status, why_not, pins, oldest_s = None, None, None, None
    try:
        async with open_desk(table.config, True) as desk:
            pins = desk.pins
            oldest_s = desk.settings.chain.max_head_age_s if desk.settings else None
        if table.offline:
            why_not = "it was started with --offline"
        elif pins is None:
            why_not = "there is no configuration with [contracts]"
        else:
            status = await commands.pause_status(table.config)
    except KeeperError as error:
        why_not = known_secrets.scrub(str(error))
    return {
        "status": status,
        "why_not": why_not,
        "now_s": int(time.time()),
        "max_head_age_s": oldest_s,
        "chain_id": pins.chain_id if pins else None,
        "safe": abi.checksum(pins.safe) if pins else None,
        "scopes": [builder.GLOBAL, *pins.protocols] if pins else [],
        "actions": [
            {"name": name, "takes": action.takes, "means": action.means}
            for name, action in builder.ACTIONS.items()
        ],
        "files": [_listed(path) for path in _files(table)],
    }


async def _build(table: Table, given: Build) -> dict[str, Any]:
    async with table.one_hand:
        out = table.folder / _free_name(table, given)
        return await pause.build(
            table.config,
            given.action,
            given.words,
            nonce=given.nonce,
            note=given.note,
            out=out,
            offline=table.offline,
        )


async def _load(table: Table, given: Load) -> dict[str, Any]:
    """Its signatures go to the file of the same transaction; without one it becomes a new file."""
    made = proposal.parse(given.text, given.name)
    async with table.one_hand:
        for path in _files(table):
            there = _parsed(path)
            if isinstance(there, proposal.Proposal) and there.difference(made) is None:
                together = signatures.merged([(path.name, there), (given.name, made)])
                rewrite(path, together.text())
                return {"file": path.name, "merged": True}
        path = table.path(given.name)
        write_new(path, given.text)
    return {"file": path.name, "merged": False}


async def _show(table: Table, given: OnFile) -> dict[str, Any]:
    path = table.path(given.file)
    shown = await pause.show(table.config, path, table.builds, offline=table.offline)
    return {"document": shown, "text": read_text(path)}


async def _sign(table: Table, given: Sign) -> dict[str, Any]:
    async with table.one_hand:
        despite = await _as_seen(table, given)
        return await pause.sign(
            table.config,
            table.path(given.file),
            table.builds,
            signature=given.signature,
            owner=given.owner,
            out=None,
            offline=table.offline,
            despite_red_flags=despite,
        )


async def _try(table: Table, given: OnFile) -> dict[str, Any]:
    return await pause.simulate(table.config, table.path(given.file), table.builds)


async def _prepare(table: Table, given: Seen) -> dict[str, Any]:
    despite = await _as_seen(table, given)
    return await pause.prepare(table.config, table.path(given.file), table.builds, despite_red_flags=despite)


async def _confirm(table: Table, given: Sent) -> dict[str, Any]:
    return await pause.confirm(table.config, table.path(given.file), _hash(given.tx))


async def _alone(table: Table, given: Alone) -> dict[str, Any]:
    return await guardian.prepare(table.config, given.action, given.words, given.sender)


async def _alone_sent(table: Table, given: AloneSent) -> dict[str, Any]:
    return await guardian.confirm(table.config, given.action, given.words, _hash(given.tx))


async def _word(table: Table, given: Word) -> dict[str, Any]:
    return await guardian.word(table.config, given.scope, given.reason, given.incident)


async def _keep(table: Table, given: Kept) -> dict[str, Any]:
    path = table.path(f"{given.scope}-{given.issued_at_s}.pause.json", ".pause.json")
    async with table.one_hand:
        kept = await guardian.keep(
            table.config,
            given.scope,
            given.reason,
            given.incident,
            given.issued_at_s,
            given.guardian,
            given.signature,
            path,
        )
    return {"document": kept, "text": read_text(path)}


async def _as_seen(table: Table, given: Seen) -> bool:
    """Whether red flags stand, all of them meant. Raises ExecutionError where the screen showed something else."""
    path = table.path(given.file)
    shown = await pause.show(table.config, path, table.builds, offline=table.offline)
    if shown["hashes"]["safe_tx"]["hex"] != given.hash:
        raise ExecutionError(
            f"{given.file} is another transaction by now than the screen shows; open it again."
        )
    flags = {flag["what"] for flag in shown["red_flags"]}
    if given.meant and flags - set(given.meant):
        raise ExecutionError("Other red flags stand by now than the screen shows; open the file again.")
    return bool(flags and given.meant)


def _files(table: Table) -> list[Path]:
    return [path for path in sorted(table.folder.glob(f"*{proposal.SUFFIX}")) if _NAME.fullmatch(path.name)]


def _parsed(path: Path) -> proposal.Proposal | str:
    try:
        return proposal.parse(read_text(path), path.name)
    except KeeperError as error:
        return str(error)


def _listed(path: Path) -> dict[str, Any]:
    made = _parsed(path)
    if isinstance(made, str):
        return {"file": path.name, "error": made}
    return {
        "file": path.name,
        "error": None,
        "nonce": str(made.tx.nonce),
        "note": made.note,
        "hash": hex_of(made.hash),
        "signatures": len(signatures.valid(made)),
    }


def _free_name(table: Table, given: Build) -> str:
    """A name for a new proposal that no file has: the page never asks for one. Raises ConfigError."""
    if given.action not in builder.ACTIONS:
        raise ConfigError(f"{proposal.shown(given.action)} is nothing to build.")
    stem = f"{given.action}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    name, number = f"{stem}{proposal.SUFFIX}", 2
    while (table.folder / name).exists():
        name, number = f"{stem}-{number}{proposal.SUFFIX}", number + 1
    return name


def _hash(text: str) -> Hash:
    return Hash(proposal.hexadecimal(text, "The transaction's hash", 32))


_Do = Callable[[Table, Any], Awaitable[dict[str, Any]]]
CALLS: Final[Mapping[str, tuple[type[_Call], _Do]]] = {
    "state": (State, _state),
    "build": (Build, _build),
    "load": (Load, _load),
    "show": (OnFile, _show),
    "sign": (Sign, _sign),
    "try": (OnFile, _try),
    "prepare": (Seen, _prepare),
    "confirm": (Sent, _confirm),
    "alone": (Alone, _alone),
    "alone-sent": (AloneSent, _alone_sent),
    "word": (Word, _word),
    "keep": (Kept, _keep),
}
