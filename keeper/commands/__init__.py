"""What each command does, as a document: plain JSON types, versioned by `schema`, amounts as decimal strings."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from keeper import abi, assembly, auctions
from keeper.assembly import Parts
from keeper.commands import pause as signers
from keeper.commands.accounts import auctioned_of, in_flight, position_of, stages_of
from keeper.commands.breakers import trip_of, tripped
from keeper.commands.shapes import SCHEMA, account_of, entry_of
from keeper.config import Settings, write_contracts
from keeper.daemon import book_notices, run_once
from keeper.daemon import run as run_daemon
from keeper.errors import ConfigError
from keeper.guard import read_scopes
from keeper.installation import Build, missing_setup
from keeper.ledger import Ledger
from keeper.log import plain
from keeper.multisig.decode import Pins
from keeper.preflight import Check, preflight, require
from keeper.seams import readable
from keeper.store import Store, sqlite_path
from keeper.types import Address, BlockTime, Head, Marks, PositionKey, Refusal, hex_of
from keeper.watch import Watch

Builds = Mapping[str, Build]  # our two contracts by name, as built


async def run(config: Path, builds: Builds, *, once: bool, dry_run: bool) -> None:
    """The daemon; refuses to start on anything that preflight requires and does not find."""
    configured = assembly.settings(config)
    key = assembly.operator_key(configured)
    async with assembly.open_parts(configured) as parts:
        parts.closing.push_async_callback(key.close)
        standing = require(await _checks(parts, key.address, key.ready, builds))
        for check in standing:
            structlog.get_logger("keeper").warning("standing_warning", name=check.name, detail=check.detail)
        with Store.open(configured.store.url, chain_id=configured.chain.id) as store:
            engine, _ = await assembly.engine(parts, store, key, sign=not dry_run)
            ledger = Ledger(store)
            for check in standing:
                body = {"name": check.name, "detail": check.detail}
                ledger.book("warning", None, "", None, body, int(time.time()))
            book_notices(parts.chain, ledger, engine.breakers, time.time)
            if once:
                await run_once(parts.chain, engine)
            else:
                await run_daemon(parts.chain, engine, ledger, time.time)


async def scan(config: Path, *, liquidatable: bool, limit: int) -> dict[str, Any]:
    """Positions with debt, least healthy first."""
    configured = assembly.settings(config)
    async with assembly.open_parts(configured) as parts:
        head = await parts.chain.head()
        with _memory(configured) as store:
            watch = Watch(parts.chain, parts.sources, store, remember=False)
            await watch.start(head)
        at = BlockTime(head.number, head.hash, head.timestamp_s)
        rows: list[tuple[int, dict[str, Any]]] = []
        refused: list[dict[str, Any]] = []
        for name, adapter in watch.adapters.items():
            marks: Marks | Refusal = await parts.chain.read(readable("marks", adapter.marks(at)), head.hash)
            marks = watch.unread.get(name, marks)
            if isinstance(marks, Refusal):
                refused.append({"protocol": name, **_refusal(marks)})
                continue
            for key in watch.book:
                if key.protocol != name:
                    continue
                health = adapter.assess(watch.book.position(key), marks)
                if isinstance(health, Refusal):
                    refused.append(
                        {"protocol": name, "account": abi.checksum(key.account), **_refusal(health)}
                    )
                elif health.health_factor_wad is not None and (health.liquidatable or not liquidatable):
                    rows.append((health.health_factor_wad, position_of(adapter, watch, health, marks)))
    rows.sort(key=lambda row: row[0])
    return {
        "schema": SCHEMA,
        "block": _block(head),
        "positions": [row for _, row in rows[:limit]],
        "refused": refused,
    }


async def explain(config: Path, account_text: str) -> dict[str, Any]:
    """Every stage's answer for one account now, and its history of refusals."""
    account = account_of(account_text)
    configured = assembly.settings(config)
    key = assembly.operator_key(configured)
    async with assembly.open_parts(configured) as parts:
        head = await parts.chain.head()
        with _memory(configured) as store:
            engine, watch = await assembly.engine(parts, store, key, sign=False)
            await engine.prepare(head)
            await watch.load(head)
            keys: list[PositionKey] = []
            for name, adapter in watch.adapters.items():
                # before the look: an adapter may learn from an account which markets there are to look at
                known = {key for key in store.accounts(name) if key.account == account}
                held = sorted(known.union(adapter.keys_of(account)), key=lambda key: key.market)
                await watch.refresh(name, held, head)
                keys += held
            view = await engine.look(head)
            auctioned = {
                name: await auctions.find(parts.chain, adapter.contracts(), head.hash)
                for name, adapter in watch.adapters.items()
            }
            flying = in_flight(store)
            protocols = [
                await stages_of(engine, watch, key, view, head, flying.get(key))
                | {"auctioned_feeds": [auctioned_of(each) for each in auctioned[key.protocol]]}
                for key in keys
            ]
            history = [entry_of(entry) for entry in Ledger(store).history(account, 50)]
    return {
        "schema": SCHEMA,
        "account": abi.checksum(account),
        "block": _block(head),
        "protocols": protocols,
        "breakers": [trip_of(trip) for trip in engine.breakers.open()],
        "history": history,
    }


async def doctor(config: Path, builds: Builds) -> dict[str, Any]:
    """Every check with its detail and, where it fails, what to do."""
    configured = assembly.settings(config)
    key = assembly.operator_key(configured)
    async with assembly.open_parts(configured) as parts:
        parts.closing.push_async_callback(key.close)
        checks = await _checks(parts, key.address, key.ready, builds)
    return {
        "schema": SCHEMA,
        "ok": all(check.ok or not check.required for check in checks),
        "checks": [
            {
                "name": check.name,
                "ok": check.ok,
                "required": check.required,
                "detail": check.detail,
                "fix": check.fix,
            }
            for check in checks
        ],
    }


async def deploy(
    config: Path,
    builds: Builds,
    *,
    safe: str,
    treasury: str,
    guardians: Sequence[str],
    unpause_delay_s: int,
    out: Path,
) -> dict[str, Any]:
    """Both contracts, `[contracts]` in the configuration, and what the Safe still has to do as a file it can import."""
    from keeper.deploy import deploy as create  # noqa: PLC0415 - web3 takes a second to import
    from keeper.deploy import transaction_builder_json  # noqa: PLC0415

    configured = assembly.settings(config)
    deployment = await create(
        configured,
        assembly.deployer_key(configured),
        account_of(safe),
        account_of(treasury),
        [account_of(guardian) for guardian in guardians],
        unpause_delay_s,
        builds,
    )
    write_contracts(
        config, deployment.liquidator, deployment.pause_guard, deployment.safe, deployment.treasury
    )
    operator = assembly.operator_key(configured).address
    async with assembly.open_parts(assembly.settings(config)) as parts:
        head = await parts.chain.head()
        needed = missing_setup(deployment.liquidator, await assembly.needs(parts, operator))
        calls = await parts.chain.read(needed, head.hash)
        # first the file that any Safe's interface takes: a chain without MultiSendCallOnly has no other
        chain_id, at_ms = configured.chain.id, int(time.time() * 1000)
        _write(out, transaction_builder_json(calls, chain_id, deployment.safe, at_ms))
        names = tuple(adapter.name for adapter in parts.adapters)
        pins = Pins(chain_id, deployment.safe, deployment.pause_guard, deployment.liquidator, names)
        proposal = await signers.set_up(parts.chain, pins, calls, out)
    return {
        "schema": SCHEMA,
        "pause_guard": abi.checksum(deployment.pause_guard),
        "liquidator": abi.checksum(deployment.liquidator),
        "safe": abi.checksum(deployment.safe),
        "treasury": abi.checksum(deployment.treasury),
        "created": [
            {"name": made.name, "tx": hex_of(made.transaction_hash), "gas_cost_wei": str(made.cost_wei)}
            for made in deployment.created
        ],
        "config": str(config),
        "out": str(out),
        "safetx": str(proposal) if proposal else None,
        "safe_transactions": [
            {"to": abi.checksum(call.to), "data": hex_of(call.data), "description": call.what}
            for call in calls
        ],
    }


async def pause_status(config: Path) -> dict[str, Any]:
    """Every scope's state at the newest head; an unreadable one is an error, never "running"."""
    configured = assembly.settings(config)
    contracts = configured.require_contracts()
    async with assembly.open_parts(configured) as parts:
        head = await parts.chain.head()
        names = [adapter.name for adapter in parts.adapters]
        at = BlockTime(head.number, head.hash, head.timestamp_s)
        state = await parts.chain.read(read_scopes(contracts.pause_guard, names, at), head.hash)
    if isinstance(state, Refusal):
        raise ConfigError(
            f"contracts.pause_guard {abi.checksum(contracts.pause_guard)} does not answer as a PauseGuard; correct it."
        )
    scopes = []
    for name, scope in zip(["global", *names], state.scopes.values(), strict=True):
        scopes.append(
            {
                "scope": name,
                "paused": scope.paused,
                "epoch": scope.epoch,
                "reason": scope.reason,
                "paused_at_s": scope.paused_at_s or None,
                "unpause_at_s": scope.unpause_at_s or None,
                "last_unpaused_at_s": scope.last_unpaused_at_s or None,
            }
        )
    halted = configured.guard.halt_file.exists()
    return {
        "schema": SCHEMA,
        "block": _block(head),
        "at_s": head.timestamp_s,
        "halt_file_present": halted,
        "scopes": scopes,
        "breakers": [trip_of(trip) for trip in tripped(configured)],
    }


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}); choose another file with --out."
        ) from error


async def _checks(
    parts: Parts, operator: Address, ready: Callable[[], Awaitable[str]], builds: Builds
) -> list[Check]:
    if parts.settings.send.relays:
        parts.settings.relay_key()  # raises where it is missing
    return await preflight(
        parts.chain,
        parts.settings,
        parts.adapters,
        parts.venues,
        parts.flash_sources,
        operator,
        ready,
        builds,
        time.time(),
        tripped(parts.settings),
    )


@contextmanager
def _memory(configured: Settings) -> Iterator[Store]:
    """The keeper's store to read from, or an empty one where none was made yet."""
    if sqlite_path(configured.store.url).exists():
        with Store.open(configured.store.url, chain_id=configured.chain.id, read_only=True) as store:
            yield store
        return
    with tempfile.TemporaryDirectory() as folder, Store.open(f"sqlite:///{folder}/empty.db") as store:
        yield store


def _block(head: Head) -> dict[str, Any]:
    return {"number": head.number, "hash": hex_of(head.hash)}


def _refusal(refusal: Refusal) -> dict[str, Any]:
    return {"stage": refusal.stage, "reason": refusal.reason, "numbers": plain(refusal.numbers)}
