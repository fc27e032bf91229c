"""What the breakers' commands do: the record read, and a person's word put on it. None of them asks the chain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keeper import abi, assembly
from keeper.breakers.trips import CLEARED, CODE, Trip, clear, lost_pauses, open_trips
from keeper.commands.shapes import SCHEMA, account_of
from keeper.config import Settings
from keeper.errors import ConfigError, LedgerError
from keeper.ledger import Ledger
from keeper.log import plain
from keeper.store import Store, sqlite_path
from keeper.upgrades import acknowledge


def tripped(configured: Settings) -> list[Trip]:
    """Every tripped breaker by the record, where there is one."""
    if not sqlite_path(configured.store.url).is_file():
        return []
    with Store.open(configured.store.url, read_only=True) as store:
        return _tripped(Ledger(store))


def trip_of(trip: Trip) -> dict[str, Any]:
    """A tripped breaker as a document."""
    place = trip.place
    return {
        "breaker": place.breaker,
        "protocol": place.protocol or None,
        "subject": place.subject or None,
        "since_s": trip.at_s,
        "head": trip.head,
        "numbers": plain(dict(trip.numbers)),
        "clears": CLEARED[place.breaker],
    }


def listed(config: Path) -> dict[str, Any]:
    """What is tripped; works beside a running daemon."""
    return {"schema": SCHEMA, "breakers": [trip_of(trip) for trip in tripped(assembly.settings(config))]}


def cleared(config: Path, name: str, reason: str) -> dict[str, Any]:
    """A person lets go of a breaker, everywhere it is tripped; changed code is acknowledged instead."""
    if name not in CLEARED:
        raise ConfigError(f"{name} is no breaker; they are {', '.join(CLEARED)}.")
    if name == CODE:
        raise ConfigError(
            "Changed code is acknowledged, contract by contract: `keeper breakers acknowledge`."
        )
    with _writing(config) as ledger:
        mine = [trip for trip in _tripped(ledger) if trip.place.breaker == name]
        if not mine:
            raise LedgerError(f"{name} is not tripped; `keeper breakers list` shows what is.")
        with ledger.batch():
            for trip in mine:
                clear(ledger, trip, reason, int(time.time()))
    return {"schema": SCHEMA, "cleared": [trip_of(trip) for trip in mine]}


def acknowledged(config: Path, protocol: str, contract: str, code_hash: str, reason: str) -> dict[str, Any]:
    """A person has read the code that a contract runs now."""
    address = abi.checksum(account_of(contract))
    whose = "" if protocol == "global" else protocol
    with _writing(config) as ledger:
        mine = [
            trip
            for trip in open_trips(ledger).values()
            if (trip.place.breaker, trip.place.protocol) == (CODE, whose)
            and trip.numbers["now"]["address"] == address
        ]
        if not mine:
            raise LedgerError(
                f"No change of {address} of {protocol} waits; `keeper breakers list` shows what does."
            )
        for trip in mine:
            acknowledge(ledger, trip, code_hash, reason, int(time.time()))
    return {"schema": SCHEMA, "cleared": [trip_of(trip) for trip in mine]}


def _tripped(ledger: Ledger) -> list[Trip]:
    return [*open_trips(ledger).values(), *lost_pauses(ledger)]


@contextmanager
def _writing(config: Path) -> Iterator[Ledger]:
    configured = assembly.settings(config)
    if not sqlite_path(configured.store.url).exists():
        raise LedgerError(f"There is no record at {sqlite_path(configured.store.url)}; correct store.url.")
    with Store.open(configured.store.url, chain_id=configured.chain.id) as store:
        yield Ledger(store)
