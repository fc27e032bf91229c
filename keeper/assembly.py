"""The composition root: settings in, parts wired together out. The only place that knows every kind there is.

A protocol from outside the package registers its adapter's class under the entry-point group `keeper.protocols`, with
the two things every adapter's class has: `config`, its pydantic model, and `made_of(model, liquidator)`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from keeper import abi
from keeper.breakers import Breakers, Terms
from keeper.chain.client import Chain
from keeper.charges import Charges, stop_gas
from keeper.config import DEPLOYER_KEY, PRIVATE_KEY, RELAY_KEY, Contracts, Settings, load
from keeper.engine import Engine
from keeper.engine.head import Policy
from keeper.engine.reflexes import Reflexes
from keeper.errors import ConfigError
from keeper.execution.flights import Flights
from keeper.execution.funds import Bounds, Funds
from keeper.execution.reconcile import reconcile
from keeper.execution.relay import Refund, Relay
from keeper.execution.routes import BundleRelays, PrivateRelays, Way
from keeper.execution.sender import Sender
from keeper.flash import MorphoFlash, UniswapV3Flash
from keeper.guard import Gate, Guard, Limits, Ramp
from keeper.guard.door import door_of
from keeper.installation import Needs
from keeper.keys import DeployerKey, GuardianKey, OperatorKey, RelayKey, SafeOwnerKey, SenderKey, recovered
from keeper.keys.aws_kms import AwsKms
from keeper.keys.policy import Policy as KeyPolicy
from keeper.keys.signers import LocalSigner, Signer, from_keystore
from keeper.keys.sigv4 import Credentials
from keeper.keys.web3signer import Web3Signer
from keeper.ledger import Ledger
from keeper.log import secrets
from keeper.prices import Feed
from keeper.protocols.aave_v3 import AaveFlash, AaveV3
from keeper.protocols.morpho_blue import MorphoBlue
from keeper.protocols.perp_curie import PerpCurie
from keeper.protocols.reference_perp import ReferencePerp
from keeper.protocols.synthetix_v2_perps import SynthetixV2Perps
from keeper.seams import Adapter, FlashSource, Venue, each
from keeper.signer import (
    AWS_CREDENTIALS,
    KEYSTORE_PASSWORD,
    AwsKmsSigner,
    EnvSigner,
    KeystoreSigner,
    Web3SignerSigner,
)
from keeper.store import Store, sqlite_path
from keeper.store.canonical import canonical, plain
from keeper.types import Address, Gas, Reverted, Token, Wei, hex_of
from keeper.upgrades import Upgrades
from keeper.venues.uniswap_v2 import UniswapV2, UniswapV2Config
from keeper.venues.uniswap_v3 import UniswapV3, UniswapV3Config
from keeper.watch import Source, Watch

PROTOCOLS: Final[Mapping[str, Any]] = {
    "aave-v3": AaveV3,
    "morpho-blue": MorphoBlue,
    "perp-curie": PerpCurie,
    "reference-perp": ReferencePerp,
    "synthetix-v2-perps": SynthetixV2Perps,
}
VENUES: Final[Mapping[str, type[BaseModel]]] = {"uniswap-v3": UniswapV3Config, "uniswap-v2": UniswapV2Config}
OWNER_KEY: Final = "KEEPER_SIGNER_PRIVATE_KEY"
GUARDIAN_KEY: Final = "KEEPER_GUARDIAN_PRIVATE_KEY"
SENDER_KEY: Final = "KEEPER_SENDER_PRIVATE_KEY"
_NATIVE_FEED_MAX_AGE_S: Final = 90_000  # a day's heartbeat and an hour


@dataclass(frozen=True, slots=True)
class Parts:
    """What a command works with: an open chain and the configured protocols and venues, not yet loaded.

    Whatever is opened on top of them is closed with them, by `closing`.
    """

    settings: Settings
    chain: Chain
    sources: tuple[Source, ...]
    venues: tuple[Venue, ...]
    flash_sources: tuple[FlashSource, ...]
    closing: AsyncExitStack

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The configured protocols."""
        return tuple(source.adapter for source in self.sources)


def settings(path: Path) -> Settings:
    """Read the configuration; every problem in it is one `ConfigError`."""
    models = {kind: adapter.config for kind, adapter in _protocols().items()}
    return load(path, models, VENUES, os.environ)


def deployer_key(configured: Settings) -> DeployerKey:
    """The key that pays for deploying, from the environment or `.env`; it never owns anything."""
    return DeployerKey(configured.deployer_key(), configured.chain.id, DEPLOYER_KEY)


@asynccontextmanager
async def open_parts(configured: Settings) -> AsyncIterator[Parts]:
    """Connect to the chain and build what the settings name; everything is closed at the end."""
    given, sources = configured.chain, _sources(configured)
    async with AsyncExitStack() as closing:
        chain = await Chain.open(
            given.rpc_urls, given.id, given.quorum, max_requests_per_s=given.max_requests_per_s or None
        )
        closing.push_async_callback(chain.close)
        between = [configured.chain.wrapped_native, configured.profit.token]
        venues = [_venue(model, between) for model in configured.venues]
        flash = _flash_sources(configured, [source.adapter for source in sources])
        yield Parts(configured, chain, sources, tuple(venues), tuple(flash), closing)


def operator_key(configured: Settings, wall_clock: Callable[[], float] = time.time) -> OperatorKey:
    """The hot key, wherever it is kept; no network is used before it is asked. Raises `ConfigError`."""
    signer = _signer(configured)
    contracts, given = configured.contracts, limits(configured)
    bounds = KeyPolicy(
        chain_id=configured.chain.id,
        operator=signer.address,
        liquidator=contracts.liquidator if contracts else None,
        pause_guard=contracts.pause_guard if contracts else None,
        max_fee_wei=given.max_fee_wei,
        max_gas_limit=given.max_gas_limit,
        max_gas_spend_wei_per_hour=given.max_gas_spend_wei_per_hour,
        stop_gas=stop_gas(configured.chain.data_fee),
    )
    return OperatorKey(signer, bounds, wall_clock)


def _signer(configured: Settings) -> Signer:
    match configured.signer:
        case EnvSigner():
            return LocalSigner(configured.private_key(), f"the secret {PRIVATE_KEY}")
        case KeystoreSigner() as kept:
            return from_keystore(kept.keystore, configured.signer_secret(KEYSTORE_PASSWORD))
        case Web3SignerSigner() as kept:
            return Web3Signer(kept.url, kept.address)
        case AwsKmsSigner() as kept:
            key_id, secret, token = AWS_CREDENTIALS
            who = Credentials(
                configured.signer_secret(key_id),
                configured.signer_secret(secret),
                configured.signer_secret(token) if token in configured.signer_secrets else "",
            )
            return AwsKms(kept.url, kept.region, kept.key_id, who, kept.address)


def owner_key(chain_id: int) -> SafeOwnerKey:
    """A Safe owner's key, from the environment only: it has no place beside the daemon's files."""
    return SafeOwnerKey(_signer_secret(OWNER_KEY), chain_id, OWNER_KEY)


def guardian_key(chain_id: int) -> GuardianKey:
    """A guardian's key, from the environment only."""
    return GuardianKey(_signer_secret(GUARDIAN_KEY), chain_id, GUARDIAN_KEY)


def sender_key(chain_id: int) -> SenderKey:
    """The key that pays for what others signed, from the environment only."""
    return SenderKey(_signer_secret(SENDER_KEY), chain_id, SENDER_KEY)


def _signer_secret(name: str) -> str:
    secret = os.environ.get(name, "")
    if not secret:
        raise ConfigError(f"{name} is not set; put it into the environment of this one command.")
    secrets.register(secret)
    return secret


async def engine(
    parts: Parts,
    store: Store,
    operator: OperatorKey,
    *,
    sign: bool,
    wall_clock: Callable[[], float] = time.time,
) -> tuple[Engine, Watch]:
    """Wire the line. Without `sign` everything happens but sending, and how far it followed the chain is not stored:

    it settles nothing, and whoever does must doubt what the heads in between orphaned.
    """
    configured = parts.settings
    contracts = configured.require_contracts()
    liquidator = contracts.liquidator
    parts.closing.push_async_callback(operator.close)
    ledger = Ledger(store)
    watch = Watch(parts.chain, parts.sources, store, remember=sign)
    gate = Gate(configured.guard.halt_file, configured.pause.unpause_confirmations)
    ramp = Ramp(ledger, configured.resume.canary_usd_e8, configured.limits.max_repay_usd_e8)
    sender = None
    if sign:
        await reconcile(parts.chain, store, ledger, parts.adapters, operator.address, liquidator, wall_clock)
        flights = Flights(store, ledger, operator.address, wall_clock)
        send = configured.send
        sender = Sender(
            parts.chain,
            operator,
            flights,
            watch.liquidations,
            liquidator,
            gate,
            contracts.treasury,
            Funds(parts.chain, operator.address, bounds(configured), ledger, wall_clock),
            time.monotonic,
            await _way(parts, flights),
            send.fallback_after_blocks if send.fallback == "public" else None,
        )
    breakers = Breakers(terms(configured), ledger, wall_clock)
    recheck_blocks = configured.breakers.recheck_code_blocks
    shared = _shared_contracts(parts, contracts)
    line = Engine(
        chain=parts.chain,
        charges=Charges(parts.chain, configured.chain.data_fee, operator.address, liquidator),
        watch=watch,
        venues=parts.venues,
        flash_sources=parts.flash_sources,
        guard=Guard(liquidator, limits(configured), gate, ramp),
        reflexes=Reflexes(
            chain=parts.chain,
            gate=gate,
            sender=sender,
            ledger=ledger,
            pause_guard=contracts.pause_guard,
            protocols=tuple(watch.adapters),
            door=door_of(sqlite_path(configured.store.url)) if sign else None,
            recovered=recovered,
            wall_clock=wall_clock,
        ),
        breakers=breakers,
        upgrades=Upgrades(parts.chain, watch.adapters, shared, ledger, breakers, wall_clock, recheck_blocks),
        ledger=ledger,
        sender=sender,
        policy=await policy(parts, contracts, operator.address),
        wall_clock=wall_clock,
    )
    return line, watch


async def _way(parts: Parts, flights: Flights) -> Way | None:
    """How plans leave, None being the public pool; raises `ConfigError` where relays are given and no key for them."""
    send = parts.settings.send
    if send.route == "public":
        return None
    key = RelayKey(parts.settings.relay_key(), parts.settings.chain.id, RELAY_KEY)
    relays = [await Relay.open(url, key.sign_header) for url in send.relays]
    way: Way
    if send.route == "private":
        way = PrivateRelays(relays, flights)
    else:
        refund = Refund(send.refund_percent, flights.operator) if send.refund_percent else None
        way = BundleRelays(relays, flights, refund)
    parts.closing.push_async_callback(way.close)
    return way


async def policy(parts: Parts, contracts: Contracts, operator: Address) -> Policy:
    """What the line works by; feeds of what profit is measured in are those the Safe gave the Liquidator."""
    configured = parts.settings
    decisive = decisive_settings(configured)
    liquidator, keep = contracts.liquidator, configured.profit.keep
    token, feed = await _measure(parts.chain, liquidator, "profit.token", configured.profit.token)
    kept = [await _measure(parts.chain, liquidator, "profit.keep", one) for one in keep]
    return Policy(
        pause_guard=contracts.pause_guard,
        liquidator=liquidator,
        operator=operator,
        profit_token=token,
        profit_feed=feed,
        kept_feeds={one.address: its_feed for one, its_feed in kept},
        native_feed=Feed("native_usd_feed", configured.profit.native_usd_feed, _NATIVE_FEED_MAX_AGE_S),
        min_profit_usd_e8=configured.profit.min_profit_usd_e8,
        max_slippage_bps=configured.profit.max_slippage_bps,
        max_fee_wei=configured.limits.max_fee_wei,
        priority_share_bps=configured.send.priority_share_bps,
        max_repay_usd_e8=configured.limits.max_repay_usd_e8,
        max_accounts=configured.limits.max_accounts,
        decisive=decisive,
        version=hex_of(hashlib.sha256(canonical(decisive).encode()).digest()),
    )


async def _measure(chain: Chain, liquidator: Address, key: str, token: Address) -> tuple[Token, Feed]:
    """A token that profit is measured in, and its feed. Raises `ConfigError` where it cannot be."""
    head = await chain.head()
    erc20, interface = abi.load("Erc20"), abi.load("Liquidator")
    calls = [
        erc20.function("decimals").call(token),
        erc20.function("symbol").call(token),
        interface.function("feedOf").call(liquidator, token),
    ]
    decimals_data, symbol_data, feed_data = await chain.read(each(calls), head.hash)
    if isinstance(decimals_data, Reverted) or not decimals_data:
        raise ConfigError(f"{key} {abi.checksum(token)} is not an ERC-20 on this chain; correct keeper.toml.")
    if isinstance(feed_data, Reverted) or not feed_data:
        raise ConfigError(
            f"contracts.liquidator {abi.checksum(liquidator)} is not a Liquidator; run `keeper deploy` or correct it."
        )
    feed, max_age_s, _, _ = interface.function("feedOf").one(feed_data)
    if not any(feed):
        raise ConfigError(
            f"The Liquidator has no feed for {key} {abi.checksum(token)}; the Safe must call setFeed for it."
        )
    symbol = "" if isinstance(symbol_data, Reverted) else erc20.function("symbol").one(symbol_data)
    decimals = erc20.function("decimals").one(decimals_data)
    return Token(token, symbol, decimals), Feed(key.replace(".", "_"), Address(feed), max_age_s)


def decisive_settings(configured: Settings) -> dict[str, Any]:
    """The settings that decide what is liquidated and how, as plain JSON."""
    limits = configured.limits.model_dump()
    limits["deny_accounts"] = sorted(limits["deny_accounts"])
    sections = {
        "chain": {"data_fee": configured.chain.data_fee},
        "limits": limits,
        "breakers": configured.breakers.model_dump(),
        "flash": configured.flash.model_dump(),
        "profit": configured.profit.model_dump(),
        "protocols": [model.model_dump() for model in configured.protocols],
        "resume": configured.resume.model_dump(),
        "send": {"priority_share_bps": configured.send.priority_share_bps},
        "venues": [model.model_dump() for model in configured.venues],
    }
    settings: dict[str, Any] = plain(sections, "settings")
    return settings


async def needs(parts: Parts, operator: Address) -> Needs:
    """What the Liquidator must be told for these parts; loads every adapter at the newest head."""
    head = await parts.chain.head()
    for adapter in parts.adapters:
        await parts.chain.read(adapter.load(), head.hash)
    return Needs(
        operator=operator,
        adapters=parts.adapters,
        venues=parts.venues,
        flash_sources=parts.flash_sources,
        max_slippage_bps=parts.settings.profit.max_slippage_bps,
        feeds={},
    )


def limits(configured: Settings) -> Limits:
    """The operator's limits in the guard's units."""
    given = configured.limits
    return Limits(
        max_fee_wei=given.max_fee_wei,
        max_gas_limit=Gas(given.max_gas_limit),
        max_gas_spend_wei_per_hour=Wei(given.max_gas_spend_wei_per_hour),
        max_loss_usd_e8_per_day=given.max_loss_usd_e8_per_day,
        max_consecutive_reverts=given.max_consecutive_reverts,
        max_repay_usd_e8=given.max_repay_usd_e8,
        deny_accounts=given.deny_accounts,
        max_head_age_s=configured.chain.max_head_age_s,
        bad_debt_budget_usd_e8_per_day=given.bad_debt_budget_usd_e8_per_day,
    )


def bounds(configured: Settings) -> Bounds:
    """What the operator should hold."""
    return Bounds(configured.signer.min_balance_wei, configured.signer.max_balance_wei)


def terms(configured: Settings) -> Terms:
    """Where the breakers trip, in their units."""
    limits, breakers = configured.limits, configured.breakers
    stated = breakers.model_dump(exclude={"max_exposure_usd", "recheck_code_blocks"})
    return Terms(
        max_gas_spend_wei_per_hour=limits.max_gas_spend_wei_per_hour,
        max_loss_usd_e8_per_day=limits.max_loss_usd_e8_per_day,
        max_consecutive_reverts=limits.max_consecutive_reverts,
        max_repay_usd_e8=limits.max_repay_usd_e8,
        max_exposure_usd_e8=breakers.max_exposure_usd_e8,
        quorum=configured.chain.quorum,
        **stated,
    )


def _shared_contracts(parts: Parts, contracts: Contracts) -> dict[str, Address]:
    """What every liquidation goes through, by what it is."""
    shared = {"Liquidator": contracts.liquidator, "PauseGuard": contracts.pause_guard}
    for venue in parts.venues:
        shared |= {f"{role} {abi.checksum(at)}": at for role, at in venue.contracts().items()}
    flash = parts.settings.flash
    shared |= {f"flash source {abi.checksum(pool)}": pool for pool in flash.uniswap_v3_pools}
    return shared | ({"Morpho": flash.morpho} if flash.morpho else {})


def _flash_sources(configured: Settings, adapters: Sequence[Adapter]) -> list[FlashSource]:
    """The Aave pools and Morphos among the protocols, and what `[flash]` names; each once."""
    given = configured.flash
    sources: list[FlashSource] = [AaveFlash(adapter) for adapter in adapters if isinstance(adapter, AaveV3)]
    morphos = [adapter.morpho for adapter in adapters if isinstance(adapter, MorphoBlue)]
    morphos += [given.morpho] if given.morpho else []
    sources += [MorphoFlash(morpho) for morpho in dict.fromkeys(morphos)]
    return sources + [UniswapV3Flash(pool) for pool in given.uniswap_v3_pools]


def _sources(configured: Settings) -> tuple[Source, ...]:
    """Every market that the tables name, each once: two names for one would act on every position twice."""
    kinds, liquidator = _protocols(), configured.contracts and configured.contracts.liquidator
    sources: list[Source] = []
    named: dict[str, str] = {}
    for model in configured.protocols:
        for adapter in kinds[model.kind].made_of(model, liquidator):
            if adapter.name in named.values():
                raise ConfigError(
                    f"More than one market is named {adapter.name}; list each once, or rename a table."
                )
            other = named.setdefault(adapter.market, adapter.name)
            if other != adapter.name:
                same = f"{other} and {adapter.name} are the same market, {adapter.market}"
                raise ConfigError(f"{same}; remove one of them from [[protocols]].")
            sources.append(Source(adapter, model.from_block))
    return tuple(sources)


def _venue(model: Any, between: Sequence[Address]) -> Venue:
    return UniswapV2(model, between) if isinstance(model, UniswapV2Config) else UniswapV3(model, between)


def _protocols() -> dict[str, Any]:
    """Every kind's adapter, from inside and outside the package."""
    return {**PROTOCOLS, **{point.name: point.load() for point in entry_points(group="keeper.protocols")}}
