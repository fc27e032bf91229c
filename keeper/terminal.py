"""What every command of the terminal shares: its common options, how it waits, how it prints."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

Config = Annotated[Path, typer.Option("--config", help="The configuration file.", metavar="PATH")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
DEFAULT_CONFIG = Path("keeper.toml")


def wait(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a command to its end."""
    return asyncio.run(work)


def say(document: Any, readable: Callable[[Any], None], json: bool) -> None:
    """A document on stdout: as JSON, or as people read it."""
    if json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
        sys.stdout.flush()
    else:
        readable(document)


def builds() -> dict[str, Any]:
    """Our two contracts as built; compiled now if need be."""
    from keeper.lab.solc import own_artifact  # noqa: PLC0415 - `keeper --help` must be quick

    return {name: own_artifact(name) for name in ("PauseGuard", "Liquidator")}
