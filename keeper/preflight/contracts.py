"""Whether the contracts of the configuration are our build, for our people, and set up for what is configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from keeper import abi
from keeper.chain.client import Chain
from keeper.config import Contracts, Settings
from keeper.errors import AdapterError
from keeper.guard import Scope, read_scopes
from keeper.installation import (
    PAUSE_GUARD,
    SLIPPAGE,
    Build,
    Needs,
    Setting,
    code_fault,
    feed_setting,
    feeds_of,
    immutables_fault,
    liquidator_immutables,
    pause_guard_immutables,
    read_settings,
    settings_of,
)
from keeper.preflight.findings import Findings, dollars, why_not
from keeper.prices import Feed, Price, read_price
from keeper.seams import Reads, together
from keeper.types import ZERO_ADDRESS, Address, BlockTime, Refusal, Reverted, hex_of

_SAFE: Final = abi.load("Safe")
_SHORT_UNPAUSE_DELAY_S: Final = 600


async def check_contracts(
    found: Findings,
    chain: Chain,
    settings: Settings,
    codes: Mapping[str, bytes],
    builds: Mapping[str, Build],
    needs: Needs,
    at: BlockTime,
) -> None:
    """Check Safe, PauseGuard and Liquidator; `codes` is the code at every configured address, by key."""
    contracts = settings.contracts
    if contracts is None:
        detail = f"[contracts] of {settings.path} is not filled in."
        found.bad("contracts", detail, "Run `keeper deploy`.")
        return
    if codes["contracts.safe"]:
        await chain.read(_check_safe(found, contracts.safe), at.hash)
    if codes["contracts.pause_guard"]:
        code, build = codes["contracts.pause_guard"], builds["PauseGuard"]
        names = [adapter.name for adapter in needs.adapters]
        await chain.read(_check_pause_guard(found, contracts, code, build, names, at), at.hash)
    if codes["contracts.liquidator"]:
        code, build = codes["contracts.liquidator"], builds["Liquidator"]
        wanted = liquidator_immutables(contracts.safe, contracts.treasury, contracts.pause_guard)
        if _is_build(found, "liquidator", contracts.liquidator, code, build, wanted):
            await chain.read(_check_settings(found, settings, contracts, needs, at), at.hash)


def _check_safe(found: Findings, safe: Address) -> Reads[None]:
    threshold_read, owners_read = _SAFE.function("getThreshold"), _SAFE.function("getOwners")
    results = yield [threshold_read.call(safe), owners_read.call(safe)]
    try:
        threshold = threshold_read.one(_answer(results[0]))
        owners = owners_read.one(_answer(results[1]))
    except AdapterError:
        detail = f"contracts.safe {abi.checksum(safe)} does not answer getThreshold() and getOwners() as a Safe does."
        found.bad("Safe", detail, "Set contracts.safe to the Safe that owns the settings.")
        return
    detail = f"The Safe {abi.checksum(safe)} needs {threshold} of {len(owners)} owners."
    if threshold < 2:
        found.warn("Safe", detail, "Raise its threshold to at least 2: one stolen key changes every setting.")
    elif threshold == len(owners):
        found.warn("Safe", detail, "Add an owner: one lost key locks every setting and every unpause.")
    else:
        found.good("Safe", detail)


def _check_pause_guard(
    found: Findings, contracts: Contracts, code: bytes, build: Build, protocols: Sequence[str], at: BlockTime
) -> Reads[None]:
    guard = contracts.pause_guard
    delay_read = PAUSE_GUARD.function("UNPAUSE_DELAY")
    [result] = yield [delay_read.call(guard)]
    try:
        delay_s = delay_read.one(_answer(result))
    except AdapterError:
        delay_s = 0  # which no PauseGuard holds
    immutables = pause_guard_immutables(contracts.safe, delay_s, guard)
    if not _is_build(found, "pause_guard", guard, code, build, immutables):
        return
    detail = f"An unpause takes effect {delay_s} s after the Safe schedules it."
    if delay_s < _SHORT_UNPAUSE_DELAY_S:
        fix = f"Deploy with a delay of at least {_SHORT_UNPAUSE_DELAY_S} s, so that guardians have time to veto."
        found.warn("unpause delay", detail, fix)
    else:
        found.good("unpause delay", detail, required=False)
    pause = yield from read_scopes(guard, protocols, at)
    if isinstance(pause, Refusal):
        detail = f"contracts.pause_guard {abi.checksum(guard)} does not say what is paused."
        found.bad("pause state", detail, "Use another node; what is unknown counts as paused.")
        return
    for name, scope in zip(["global", *protocols], pause.scopes.values(), strict=True):
        _check_scope(found, name, scope)


def _check_scope(found: Findings, name: str, scope: Scope) -> None:
    if not scope.paused:
        detail = f'The scope "{name}" is running at epoch {scope.epoch}.'
        found.good(f"pause of {name}", detail, required=False)
        return
    since = datetime.fromtimestamp(scope.paused_at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
    detail = f'The scope "{name}" is paused since {since} UTC ({scope.reason or "no reason given"}).'
    fix = "Have the Safe schedule an unpause once the reason is gone; nothing of it is signed before."
    found.warn(f"pause of {name}", detail, fix)


def _is_build(
    found: Findings, key: str, address: Address, code: bytes, build: Build, immutables: Mapping[str, bytes]
) -> bool:
    """Whether it is our contract for the configured addresses, so that what it says can be believed."""
    name, who = f"{build.name} code", f"contracts.{key} {abi.checksum(address)}"
    fault = code_fault(build, code)
    if fault is not None:
        fix = "Run `keeper deploy`, or correct [contracts]; that contract is not this version's."
        found.bad(name, f"{who} {fault}.", fix)
        return False
    fault = immutables_fault(build, code, immutables)
    if fault is not None:
        fix = "Correct [contracts], or run `keeper deploy` for these addresses; that contract serves others."
        found.bad(name, f"{who} {fault}.", fix)
        return False
    found.good(name, f"{who} is this version's {build.name} for the configured addresses.")
    return True


def _check_settings(
    found: Findings, settings: Settings, contracts: Contracts, needs: Needs, at: BlockTime
) -> Reads[None]:
    safe, liquidator = contracts.safe, contracts.liquidator
    measures = (settings.profit.token, *settings.profit.keep)  # what profit is measured in
    values = yield from read_settings(wanted := settings_of(liquidator, needs))
    for setting, value in zip(wanted, values, strict=True):
        others = setting.token is not None and setting.token not in measures
        # a market whose token has no feed stops no other, and a limit looser than wanted still limits
        only_warn = others or (setting.subject == SLIPPAGE and value > 0)
        _check_setting(found, setting, value, safe, required=not only_warn)
    for token in (token for token in measures if token not in feeds_of(needs)):
        # no protocol prices it, so only its being there can be checked
        feed = feed_setting(liquidator, token, ZERO_ADDRESS)
        [value] = yield from read_settings([feed])
        call = f"setFeed({abi.checksum(token)}, its USD aggregator, {needs.feed_max_age_s})"
        _check_setting(found, feed, value, safe, call)
        wanted, values = [*wanted, feed], [*values, value]
    feeds = [
        Feed(setting.subject, value[0], value[1])
        for setting, value in zip(wanted, values, strict=True)
        if setting.token is not None and setting.holds(value)
    ]
    prices = yield from together([read_price(feed, at) for feed in feeds])
    for source, price in zip(feeds, prices, strict=True):
        _check_answer(found, source, price, at)


def _check_setting(
    found: Findings, setting: Setting, value: Any, safe: Address, call: str = "", *, required: bool = True
) -> None:
    detail = f"The Liquidator's {setting.subject} is {setting.shown(value)}."
    if setting.holds(value):
        found.good(setting.subject, detail, required=required)
        return
    fix = f"Have the Safe {abi.checksum(safe)} call {call or setting.call.text}."
    (found.bad if required else found.warn)(setting.subject, detail, fix)


def _check_answer(found: Findings, feed: Feed, price: Price | Refusal, at: BlockTime) -> None:
    if isinstance(price, Price):
        age_s = at.timestamp_s - price.updated_at_s
        detail = f"{abi.checksum(feed.address)} said ${dollars(price.usd_e8)} {age_s} s ago."
        found.good(f"{feed.name} answers", detail, required=False)
    else:
        detail = f"The {feed.name}, {abi.checksum(feed.address)}, {why_not(price)}."
        fix = (
            "Wait for its next round, or have the Safe call setFeed with another Chainlink-style aggregator."
        )
        found.warn(f"{feed.name} answers", detail, fix)


def _answer(result: bytes | Reverted) -> bytes:
    if isinstance(result, Reverted):
        raise AdapterError(f"a getter reverted with {hex_of(result.data)}.")
    return result
