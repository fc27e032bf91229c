"""The door: a Unix socket beside the record where a guardian's signed pause is handed to the daemon itself.

One connection, one line in (`keeper.guard.message`), one line of JSON back: `{"version": 1, "ok": true, "scope": …}`
once the gate is closed and that is on record, or `{"version": 1, "ok": false, "error": …}`. Only its owner may connect.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from keeper.errors import ChainError, ConfigError, ExecutionError
from keeper.guard.message import SignedPause
from keeper.types import Refusal

_LONGEST_LINE: Final = 4_096
_PATIENCE_S: Final = 10.0

Accept = Callable[[SignedPause], Awaitable[Refusal | None]]


def door_of(record: Path) -> Path:
    """Where the daemon of this record listens."""
    return record.with_suffix(".sock")


async def serve(path: Path, accept: Accept) -> None:
    """Answer at `path` until cancelled; `accept` closes the gate, or says why not. Raises `ConfigError`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                writer.write(msgspec.json.encode(await _answer(reader, accept)) + b"\n")
                await writer.drain()
        except (TimeoutError, OSError):
            pass  # whoever asked does not listen any more; what was accepted stays so
        finally:
            writer.close()

    server = await asyncio.start_unix_server(answer, sock=_bound(path), limit=_LONGEST_LINE)
    async with server:
        await server.serve_forever()


async def hand_over(record: Path, message: SignedPause) -> dict[str, Any]:
    """Hand a signed pause to the daemon of this record and return its answer, which says `ok`.

    Raises `ConfigError` where no daemon listens, `ExecutionError` where it refuses, with its words.
    """
    path = door_of(record)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(msgspec.json.encode(message.document()) + b"\n")
                line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        raise ConfigError(
            f"No daemon answers at {path} ({type(error).__name__}); start it, or send pauseBySig from any account."
        ) from error
    try:
        said: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
    except ValueError as error:
        raise ExecutionError(f"What answers at {path} is no keeper.") from error
    if said.get("ok") is not True:
        raise ExecutionError(f"The daemon did not accept the pause: {said.get('error', 'without a reason')}")
    return said


async def _answer(reader: asyncio.StreamReader, accept: Accept) -> dict[str, Any]:
    try:
        message = SignedPause.read(await reader.readline(), "This")
        refusal = await accept(message)
    except ValueError:  # asyncio's word for a line that is too long
        return _refused(f"a message has at most {_LONGEST_LINE} bytes.")
    except (ExecutionError, ChainError) as error:
        return _refused(str(error))
    if refusal is not None:
        numbers = ", ".join(f"{name} {value}" for name, value in refusal.numbers.items())
        return _refused(f"{refusal.reason}{f' ({numbers})' if numbers else ''}.")
    return {"version": 1, "ok": True, "scope": "0x" + message.scope.hex()}


def _refused(why: str) -> dict[str, Any]:
    return {"version": 1, "ok": False, "error": why}


def _bound(path: Path) -> socket.socket:
    """A socket that nobody else may connect to; one that a dead daemon left is replaced."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"{path} cannot be listened at ({error}); remove what is there, or use a shorter path for the record."
        ) from error
    finally:
        os.umask(before)
    return listening
