"""Whether everything around our contracts is as configured: chain, addresses, protocols, money and this machine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from keeper import abi, auctions
from keeper.breakers.trips import CLEARED, Trip
from keeper.chain.client import Chain
from keeper.chain.reads import MULTICALL3
from keeper.charges import Charges
from keeper.config import Settings
from keeper.data_fee import NO_DATA_FEE, DataFee
from keeper.errors import AdapterError, SignerError
from keeper.execution.funds import Bounds
from keeper.fixed import WAD, mul_div_up
from keeper.installation import FEED_MAX_AGE_S
from keeper.planner import samples
from keeper.preflight.findings import Findings, dollars, why_not
from keeper.prices import Feed, Price, read_price
from keeper.seams import Adapter, Reads
from keeper.store import sqlite_path
from keeper.types import Address, BlockTime, Call, Head, Reverted

_ERC20: Final = abi.load("Erc20")

_LIQUIDATION_GAS: Final = 1_000_000  # more than a flash loan, a liquidation and two swaps take
_COMFORTABLE_LIQUIDATIONS: Final = 20
_ADDRESS_BYTES: Final = 20


def check_head(found: Findings, settings: Settings, head: Head, now_s: float) -> None:
    """What opening the chain has settled, and the age of its head."""
    found.good("chain id", f"The nodes serve chain {settings.chain.id}.")
    found.good("Multicall3", f"Multicall3 is at {abi.checksum(MULTICALL3)}.")
    age_s, limit_s = int(now_s) - head.timestamp_s, settings.chain.max_head_age_s
    detail = f"Block {head.number} is {age_s} s old, and chain.max_head_age_s is {limit_s}."
    if age_s > limit_s:
        found.warn("head age", detail, "Wait until the node has caught up; nothing is signed before.")
    else:
        found.good("head age", detail, required=False)


async def check_addresses(found: Findings, chain: Chain, settings: Settings, head: Head) -> dict[str, bytes]:
    """Code at every configured address that must have some, by its key."""
    addresses = dict(_configured_addresses(settings))
    answers = await asyncio.gather(*(chain.code(address, head.hash) for address in addresses.values()))
    codes = dict(zip(addresses, answers, strict=True))
    for key, address in addresses.items():
        if codes[key]:
            found.good(key, f"{abi.checksum(address)} has {len(codes[key])} bytes of code.")
        else:
            fix = "Correct it in the configuration"
            fix += ", or run `keeper deploy`." if key.startswith("contracts.") else "."
            found.bad(key, f"{key} {abi.checksum(address)} has no code on chain {settings.chain.id}.", fix)
    return codes


def _configured_addresses(settings: Settings) -> Iterable[tuple[str, Address]]:
    if settings.contracts is not None:
        # the treasury may be any account
        for name in ("liquidator", "pause_guard", "safe"):
            yield f"contracts.{name}", getattr(settings.contracts, name)
    yield "chain.wrapped_native", settings.chain.wrapped_native
    yield "profit.token", settings.profit.token
    yield "profit.native_usd_feed", settings.profit.native_usd_feed
    for index, token in enumerate(settings.profit.keep):
        yield f"profit.keep[{index}]", token
    if settings.flash.morpho is not None:
        yield "flash.morpho", settings.flash.morpho
    for index, pool in enumerate(settings.flash.uniswap_v3_pools):
        yield f"flash.uniswap_v3_pools[{index}]", pool
    for section, entries in (("protocols", settings.protocols), ("venues", settings.venues)):
        for index, entry in enumerate(entries):
            for name in type(entry).model_fields:
                value = getattr(entry, name)
                if isinstance(value, bytes) and len(value) == _ADDRESS_BYTES:
                    yield f"{section}[{index}].{name}", Address(value)


async def check_protocols(
    found: Findings, chain: Chain, adapters: Sequence[Adapter], head: Head
) -> list[Adapter]:
    """The adapters that could be loaded."""
    loaded = []
    for adapter in adapters:
        name = f"protocol {adapter.name}"
        try:
            await chain.read(adapter.load(), head.hash)
        except AdapterError as error:
            fix = "Correct its addresses in [[protocols]]."
            found.bad(name, f'Protocol "{adapter.name}" cannot be read: {str(error).removesuffix(".")}.', fix)
            continue
        loaded.append(adapter)
        found.good(name, f'Protocol "{adapter.name}" was read at block {head.number}.')
        for warning in adapter.warnings():
            detail = f'Protocol "{adapter.name}" warns: {warning.removesuffix(".")}.'
            found.warn(name, detail, "Judge whether it matters here; the keeper runs all the same.")
        for each in await auctions.find(chain, adapter.contracts(), head.hash):
            detail = (
                f'Protocol "{adapter.name}" prices {each.symbol} ({each.priced}) by the feed '
                f"{abi.checksum(each.feed)}, whose updates are auctioned ({each.version} at "
                f"{abi.checksum(each.aggregator)})."
            )
            fix = "Expect bidders to take what its updates make unsafe; docs/aave.md says what that leaves."
            found.warn(f"auctioned feed of {each.symbol}", detail, fix)
    return loaded


# --- money -----------------------------------------------------------------------------------------------------------


async def check_signer(found: Findings, ready: Callable[[], Awaitable[str]]) -> None:
    """Whether whoever holds the operator's key has it."""
    try:
        found.good("signer", await ready())
    except SignerError as error:
        found.bad("signer", str(error), "See that it runs, and correct [signer].")


def charges_of(chain: Chain, settings: Settings, operator: Address) -> Charges:
    """What the chain charges the operator, as configured; before `keeper deploy` as if the operator were called."""
    to = settings.contracts.liquidator if settings.contracts else operator
    return Charges(chain, settings.chain.data_fee, operator, to)


async def check_charges(found: Findings, charges: Charges, head: Head) -> None:
    """Whether the chain charges for bytes as is configured."""
    fault = await charges.fault(head)
    if fault is None:
        found.good("data fee", "chain.data_fee is what the chain's own contracts say.")
    else:
        fix = "Correct chain.data_fee; without it no liquidation's cost would be true."
        found.bad("data fee", fault, fix)


async def check_money(
    found: Findings,
    chain: Chain,
    charges: Charges,
    settings: Settings,
    operator: Address,
    head: Head,
    at: BlockTime,
) -> None:
    """The profit token, the price of gas, and what the operator has to pay for it."""
    token = settings.profit.token
    decimals = await chain.read(_one(Call(token, _ERC20.function("decimals").encode())), head.hash)
    if decimals is None or len(decimals) != 32:
        detail = f"profit.token {abi.checksum(token)} does not answer decimals()."
        found.bad("profit token", detail, "Set profit.token to an ERC-20 of this chain.")
    else:
        found.good("profit token", f"{abi.checksum(token)} has {int.from_bytes(decimals)} decimals.")

    feed = Feed("profit.native_usd_feed", settings.profit.native_usd_feed, FEED_MAX_AGE_S)
    price = await chain.read(read_price(feed, at), head.hash)
    if isinstance(price, Price):
        detail = f"The native coin costs ${dollars(price.usd_e8)}, as of {at.timestamp_s - price.updated_at_s} s ago."
        found.good("native price", detail)
    else:
        detail = f"profit.native_usd_feed {abi.checksum(feed.address)} {why_not(price)}."
        found.bad("native price", detail, "Set it to a Chainlink-style aggregator of the native coin in USD.")

    balance_wei = await chain.balance(operator)
    tip_wei, *_ = await chain.suggested_tips()
    price_wei = min(2 * charges.next_base_fee(head) + tip_wei, settings.limits.max_fee_wei)
    _, fee = await charges.of(samples(), head)
    fee = fee if isinstance(fee, DataFee) else NO_DATA_FEE  # a failed check already
    cost_wei = max(1, (_LIQUIDATION_GAS + fee.gas) * price_wei + fee.worst_wei)
    detail = (
        f"The operator {abi.checksum(operator)} holds {balance_wei} wei, enough for {balance_wei // cost_wei} "
        f"liquidations of {_LIQUIDATION_GAS} gas at {price_wei} wei."
    )
    wanted_wei = _COMFORTABLE_LIQUIDATIONS * cost_wei
    fix = f"Send it at least {wanted_wei - balance_wei} wei, enough for {_COMFORTABLE_LIQUIDATIONS}."
    if balance_wei < cost_wei:
        found.bad("operator balance", detail, fix)
    elif balance_wei < wanted_wei:
        found.warn("operator balance", detail, fix)
    else:
        found.good("operator balance", detail)
    budget_usd_e8 = settings.limits.bad_debt_budget_usd_e8_per_day
    if budget_usd_e8 and isinstance(price, Price):
        needed_usd_e8 = mul_div_up(cost_wei, price.usd_e8_up, WAD)
        detail = (
            f"limits.bad_debt_budget_usd_per_day is ${dollars(budget_usd_e8)}, and the gas of one liquidation may come "
            f"to ${dollars(needed_usd_e8)}."
        )
        if needed_usd_e8 > budget_usd_e8:
            found.warn("bad debt budget", detail, "Raise it, or expect none on it until gas is cheaper.")
        else:
            found.good("bad debt budget", detail, required=False)
    complaint = Bounds(settings.signer.min_balance_wei, settings.signer.max_balance_wei).complaint(
        operator, balance_wei
    )
    if complaint is not None:
        found.warn("operator bounds", *complaint)


def check_quorum(found: Findings, settings: Settings) -> None:
    """How many nodes must agree before anything is believed."""
    quorum, nodes = settings.chain.quorum, len(settings.chain.rpc_urls)
    detail = f"{quorum} of {nodes} nodes must agree on every head and everything read at it."
    if quorum == 1:
        detail = (
            "chain.quorum is 1: one provider is believed. If it lies about the pause, only the Liquidator, which asks "
            "PauseGuard itself, stands in the way."
        )
        found.warn(
            "quorum", detail, "Add independent nodes to chain.rpc_urls and set chain.quorum to 2 or more."
        )
    else:
        found.good("quorum", detail, required=False)


def check_files(found: Findings, settings: Settings) -> None:
    """The record and the halt file."""
    path = sqlite_path(settings.store.url)
    fault = unwritable(path)
    if fault is None:
        found.good("store", f"The record is kept in {path}.")
    else:
        found.bad(
            "store", f"The record cannot be kept in {path}: {fault}.", "Correct store.url or its permissions."
        )
    halt_file = settings.guard.halt_file
    if halt_file.exists():
        found.warn(
            "halt file", f"The halt file {halt_file} is there, so nothing is signed.", "Remove it to go on."
        )
    else:
        found.good("halt file", f"There is no halt file at {halt_file}.", required=False)


def check_breakers(found: Findings, tripped: Sequence[Trip]) -> None:
    """What stopped the keeper by itself and still does."""
    for trip in tripped:
        place = trip.place
        scope = " ".join(part for part in (place.protocol, place.subject) if part) or "everything"
        figures = {name: value for name, value in trip.numbers.items() if not isinstance(value, Mapping)}
        numbers = ", ".join(f"{name} {value}" for name, value in figures.items())
        detail = f"{place.breaker} stops {scope} since block {trip.head}: {numbers}."
        found.warn(f"breaker {place.breaker}", detail, f"It clears {CLEARED[place.breaker]}.")
    if not tripped:
        found.good("breakers", "No breaker is tripped.", required=False)


def unwritable(path: Path) -> str | None:
    """Why a file cannot be made or written there, as a clause."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder {folder} is not writable"
    if path.exists() and not path.is_file():
        return "it is not a file"
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return "it is not writable"
    return None


def _one(call: Call) -> Reads[bytes | None]:
    """What one call returns, None if it reverts."""
    [result] = yield [call]
    return None if isinstance(result, Reverted) else result
