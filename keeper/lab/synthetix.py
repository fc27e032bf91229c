"""Synthetix V2x perps, deployed from their own code: markets behind routing proxies, rates from Chainlink feeds, sUSD.

Real is everything a trade or a liquidation runs through but the Exchanger and the FeePool, which are stubs
(`contracts/lab/SynthetixStubs.sol`). In the address book the deployer stands for two contracts it is only called by:
the Issuer, by which it mints sUSD, and SystemSettings, by which it sets how rates are checked.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from keeper.abi import Abi, checksum
from keeper.lab.actors import Cast, account
from keeper.lab.artifacts import own, synthetix, synthetix_interface
from keeper.lab.chainlink import Feed, deploy_feed
from keeper.lab.node import Contract, Node, Receipt, Tx
from keeper.lab.tokens import mint_txs
from keeper.lab.uniswap import PoolSpec, open_v3_pool
from keeper.lab.world import World
from keeper.types import ZERO_ADDRESS, Address, Token

UNIT = 10**18
_E8 = 10**8
RATE_STALE_PERIOD_S = 90_000
MAX_DEVIATION = 3 * UNIT  # a rate three times the last one breaks the circuit

# What each part of a market answers for; where two have a function, the first is routed (`rebuildCache` and the like
# are every contract's own business, and are not routed at all).
FRAGMENTS = (
    "PerpsV2Market",
    "PerpsV2MarketLiquidate",
    "PerpsV2MarketDelayedIntent",
    "PerpsV2MarketDelayedExecution",
    "PerpsV2MarketViews",
)
_NOT_ROUTED = frozenset(
    {
        "acceptOwnership",
        "isResolverCached",
        "marketState",
        "messageSender",
        "nominateNewOwner",
        "nominatedOwner",
        "owner",
        "proxy",
        "rebuildCache",
        "resolver",
        "resolverAddressesRequired",
        "setMessageSender",
        "setProxy",
    }
)
_VIEWS = ("view", "pure")
_LIBRARY = "SafeDecimalMath"
_Deploy = Callable[..., Awaitable[Address]]
_ADMIN_GAS, _TRADE_GAS, _ISSUE_GAS = 500_000, 1_500_000, 200_000


@dataclass(frozen=True, slots=True)
class MarketSpec:
    """A market to open; amounts in units of 10^18. Any other parameter goes by its name in `parameters`."""

    asset: str
    feed: str
    skew_scale: int
    parameters: Mapping[str, int] = field(default_factory=dict)


# The first two of the real system's markets, with fees for trades that it had priced out.
MARKETS = (
    MarketSpec("ETH", "WETH", 1_000_000 * UNIT, {"maxMarketValue": 22_300 * UNIT}),
    MarketSpec("BTC", "WBTC", 100_000 * UNIT, {"maxMarketValue": 756 * UNIT}),
)
_PARAMETERS: Mapping[str, int] = {
    "takerFee": 6 * UNIT // 10_000,
    "makerFee": 2 * UNIT // 10_000,
    "takerFeeDelayedOrder": 6 * UNIT // 10_000,
    "makerFeeDelayedOrder": 2 * UNIT // 10_000,
    "takerFeeOffchainDelayedOrder": 6 * UNIT // 10_000,
    "makerFeeOffchainDelayedOrder": 10**12,
    "maxLeverage": 55 * UNIT,
    "maxMarketValue": 1_000 * UNIT,
    "maxFundingVelocity": 9 * UNIT,
    "nextPriceConfirmWindow": 2,
    "delayedOrderConfirmWindow": 120,
    "minDelayTimeDelta": 60,
    "maxDelayTimeDelta": 6_000,
    "offchainDelayedOrderMinAge": 1,
    "offchainDelayedOrderMaxAge": 30,
    "offchainPriceDivergence": UNIT // 10,
    "liquidationPremiumMultiplier": 1_562_500 * 10**12,
    "liquidationBufferRatio": 75 * UNIT // 10_000,
    "maxLiquidationDelta": 601 * 10**12,
    "maxPD": 1_202 * 10**12,
}
# In an order in which each is allowed: no minimum may exceed what it is a minimum of.
_FEES = (
    ("setMinInitialMargin", 40 * UNIT),
    ("setMaxKeeperFee", 1_000 * UNIT),
    ("setMinKeeperFee", 1 * UNIT),
    ("setLiquidationFeeRatio", 35 * UNIT // 10_000),
    ("setKeeperLiquidationFee", 2 * UNIT),
)
SUSD_POOL = PoolSpec(("sUSD", "USDC"), 100, 10_000_000, range_factor=1.02)


@dataclass(frozen=True, slots=True)
class PerpsMarket:
    """One market: `proxy` is what everybody calls, `fragments` are what answers, by contract name."""

    asset: str
    key: bytes
    base: bytes
    proxy: Address
    state: Address
    fragments: Mapping[str, Address]
    feed: Feed


@dataclass(frozen=True, slots=True)
class Synthetix:
    """Where everything is: contracts by their name in the address book, markets by asset."""

    contracts: Mapping[str, Address]
    susd: Token
    susd_feed: Feed
    markets: Mapping[str, PerpsMarket]


def table(deployed: Synthetix) -> str:
    """Its part of `keeper.toml`."""
    markets = ", ".join(f'"{checksum(market.proxy)}"' for market in deployed.markets.values())
    return f"""
[[protocols]]
kind = "synthetix-v2-perps"
name = "synthetix"
markets = [{markets}]
susd_usd_feed = "{checksum(deployed.susd_feed.proxy)}"
"""


async def deploy_synthetix(
    node: Node, world: World, specs: Sequence[MarketSpec] = MARKETS
) -> tuple[Synthetix, World]:
    """The protocol with these markets on the world's feeds, and the world with sUSD and a pool of it."""
    people, deployer = world.cast, world.cast.deployer.address
    libraries = {_LIBRARY: await _deploy(node, people, {}, _LIBRARY)}
    deploy = partial(_deploy, node, people, libraries)
    resolver = await deploy("AddressResolver", deployer)
    at: dict[str, Address] = {"AddressResolver": resolver, "Issuer": deployer, "SystemSettings": deployer}
    at["SystemStatus"] = await deploy("SystemStatus", deployer)
    at["FlexibleStorage"] = await deploy("FlexibleStorage", resolver)
    for name in (
        "CircuitBreaker",
        "ExchangeRates",
        "FuturesMarketManager",
        "PerpsV2ExchangeRate",
        "PerpsV2MarketSettings",
    ):
        at[name] = await deploy(name, deployer, resolver)
    for name in ("Exchanger", "FeePool"):
        at[name] = await node.deploy(deployer, own(f"Synthetix{name}Stub").creation_code())
    susd, at["SynthsUSD"] = await _deploy_susd(node, deploy, deployer, resolver)
    book = Contract(node, resolver, synthetix("AddressResolver").abi)
    names = [name for name in at if name != "AddressResolver"]
    await book.send(
        deployer, "importAddresses", [key_of(name) for name in names], [at[name] for name in names]
    )
    cached = (
        "CircuitBreaker",
        "ExchangeRates",
        "FuturesMarketManager",
        "PerpsV2ExchangeRate",
        "PerpsV2MarketSettings",
        "SynthsUSD",
    )
    await book.send(deployer, "rebuildCaches", [at[name] for name in cached])

    deployed = Synthetix(at, susd, await deploy_feed(node, people, "sUSD", _E8), {})
    await _configure(node, people, deployed)
    for spec in specs:
        market = await _open_market(node, world, deploy, deployed, spec)
        deployed = dataclasses.replace(deployed, markets={**deployed.markets, spec.asset: market})
    world = dataclasses.replace(
        world,
        tokens=world.tokens | {susd.symbol: susd},
        prices_e8=world.prices_e8 | {susd.symbol: _E8},
        feeds=world.feeds | {susd.symbol: deployed.susd_feed},
    )

    def mint(cast: Cast, token: Token, to: Address, amount_raw: int) -> list[Tx]:
        if token == susd:
            return issue_txs(node, cast, deployed, {to: amount_raw})
        return mint_txs(cast, token, to, amount_raw)

    uniswap = world.uniswap_v3
    pool = await open_v3_pool(node, people, uniswap, world.tokens, world.prices_e8, SUSD_POOL, mint)
    uniswap = dataclasses.replace(uniswap, pools=(*uniswap.pools, pool))
    return deployed, dataclasses.replace(world, uniswap_v3=uniswap)


def key_of(name: str) -> bytes:
    """A name as Synthetix keeps names: 32 bytes."""
    return name.encode().ljust(32, b"\0")


def contract_of(node: Node, deployed: Synthetix, name: str) -> Contract:
    """A contract of the address book."""
    return Contract(node, deployed.contracts[name], synthetix(name).abi)


def market_of(node: Node, market: PerpsMarket) -> Contract:
    """A market as everybody calls it: its proxy, with every routed function and every event."""
    return Contract(node, market.proxy, market_abi())


def state_of(node: Node, market: PerpsMarket) -> Contract:
    """A market's PerpsV2MarketState."""
    return Contract(node, market.state, synthetix("PerpsV2MarketState").abi)


def market_abi() -> Abi:
    """Every routed function of a market, once, and its events."""
    entries = [entry for entry, _ in _routes().values()]
    seen: set[str] = set()
    for fragment in FRAGMENTS:
        for entry in synthetix_interface(fragment):
            if entry["type"] == "event" and entry["name"] not in seen:
                seen.add(entry["name"])
                entries.append(entry)
    return Abi.from_json(entries)


def issue_txs(node: Node, cast: Cast, deployed: Synthetix, amounts_raw: Mapping[Address, int]) -> list[Tx]:
    """Transactions that give accounts sUSD, by the deployer as Issuer."""
    synth = Contract(node, deployed.contracts["SynthsUSD"], synthetix("Synth").abi)
    deployer = cast.deployer.address
    return [synth.tx(deployer, "issue", to, raw, gas=_ISSUE_GAS) for to, raw in amounts_raw.items()]


@dataclass(frozen=True, slots=True)
class PerpSpec:
    """A position to open: margin in sUSD, size in the asset (below zero: short), both in units of 10^18."""

    account: Address
    margin_raw: int
    size_raw: int


async def open_perps(
    node: Node, cast: Cast, deployed: Synthetix, market: PerpsMarket, specs: Sequence[PerpSpec]
) -> None:
    """Deposit margins and trade, in order, in a few blocks. Raises ExecutionError with the market's reason."""
    contract = market_of(node, market)
    await node.set_balances({spec.account for spec in specs})
    totals: dict[Address, int] = {}
    for spec in specs:
        totals[spec.account] = totals.get(spec.account, 0) + spec.margin_raw
    await node.send_all(issue_txs(node, cast, deployed, totals))
    await node.send_all([deposit_tx(contract, spec.account, spec.margin_raw) for spec in specs], contract.abi)
    await node.send_all([trade_tx(contract, spec.account, spec.size_raw) for spec in specs], contract.abi)


def random_perps(chance: random.Random, price_usd: float, first: int, count: int) -> list[PerpSpec]:
    """Longs and shorts of 1 to 40 times their margin, from small change to more than may be liquidated at once."""
    specs = []
    for number in range(first, first + count):
        notional_usd = 10 ** chance.uniform(2.5, 5.0 if chance.random() < 0.95 else 6.2)
        leverage = chance.uniform(1, 6) if chance.random() < 0.3 else chance.uniform(6, 40)
        margin_usd = max(notional_usd / leverage, 60.0)
        side = 1 if chance.random() < 0.55 else -1
        size = int(side * notional_usd / price_usd * UNIT) + chance.randint(-999, 999)
        specs.append(PerpSpec(account(number), int(margin_usd * UNIT) + chance.randint(0, 999), size))
    return specs


def deposit_tx(contract: Contract, account: Address, margin_raw: int) -> Tx:
    """Move sUSD into an account's margin, or out of it below zero."""
    return contract.tx(account, "transferMargin", margin_raw, gas=_TRADE_GAS)


def trade_tx(contract: Contract, account: Address, size_raw: int) -> Tx:
    """Change an account's size at whatever price."""
    worst = 2**127 if size_raw > 0 else 0
    return contract.tx(account, "modifyPosition", size_raw, worst, gas=_TRADE_GAS)


async def set_parameter(
    node: Node, cast: Cast, deployed: Synthetix, market: PerpsMarket, name: str, value: int
) -> Receipt:
    """Change one parameter of a market, by its name in `Parameters`."""
    settings = contract_of(node, deployed, "PerpsV2MarketSettings")
    setter = f"set{name[0].upper()}{name[1:]}"
    return await settings.send(cast.deployer.address, setter, market.key, value)


async def _deploy(
    node: Node, cast: Cast, libraries: Mapping[str, Address], name: str, *arguments: object
) -> Address:
    code = synthetix(name).creation_code(*arguments, libraries=libraries)
    return await node.deploy(cast.deployer.address, code)


async def _deploy_susd(
    node: Node, deploy: _Deploy, deployer: Address, resolver: Address
) -> tuple[Token, Address]:
    """sUSD: the ERC-20 that holders use, and the Synth behind it that the system calls."""
    proxy = await deploy("ProxyERC20", deployer)
    balances = await deploy("TokenState", deployer, deployer)
    names = ("Synth sUSD", "sUSD", deployer, key_of("sUSD"), 0)
    synth = await deploy("Synth", proxy, balances, *names, resolver)
    await Contract(node, proxy, synthetix("ProxyERC20").abi).send(deployer, "setTarget", synth)
    state = Contract(node, balances, synthetix("TokenState").abi)
    await state.send(deployer, "setAssociatedContract", synth)
    return Token(proxy, "sUSD", 18), synth


async def _configure(node: Node, cast: Cast, deployed: Synthetix) -> None:
    """How rates are checked, what keepers earn, and who may suspend: the deployer."""
    deployer = cast.deployer.address
    storage = contract_of(node, deployed, "FlexibleStorage")
    status = contract_of(node, deployed, "SystemStatus")
    settings = contract_of(node, deployed, "PerpsV2MarketSettings")

    def setting(name: str, value: int) -> Tx:
        order = (key_of("SystemSettings"), key_of(name), value)
        return storage.tx(deployer, "setUIntValue", *order, gas=_ADMIN_GAS)

    txs = [
        setting("rateStalePeriod", RATE_STALE_PERIOD_S),
        setting("priceDeviationThresholdFactor", MAX_DEVIATION),
    ]
    txs += [settings.tx(deployer, name, value, gas=_ADMIN_GAS) for name, value in _FEES]
    txs += [
        status.tx(deployer, "updateAccessControl", key_of(section), deployer, True, True, gas=_ADMIN_GAS)
        for section in ("System", "Exchange", "Futures", "Synth")
    ]
    await node.send_all(txs)


async def _open_market(
    node: Node, world: World, deploy: _Deploy, deployed: Synthetix, spec: MarketSpec
) -> PerpsMarket:
    deployer = world.cast.deployer.address
    resolver, base, key = deployed.contracts["AddressResolver"], f"s{spec.asset}", f"s{spec.asset}PERP"
    feed = world.feeds[spec.feed]
    rates = contract_of(node, deployed, "ExchangeRates")
    await rates.send(deployer, "addAggregator", key_of(base), feed.proxy)
    proxy = await deploy("ProxyPerpsV2", deployer)
    state = await deploy("PerpsV2MarketState", deployer, [], key_of(base), key_of(key), ZERO_ADDRESS)
    fragments = {name: await deploy(name, proxy, state, deployer, resolver) for name in FRAGMENTS[:-1]}
    fragments["PerpsV2MarketViews"] = await deploy("PerpsV2MarketViews", state, deployer, resolver)
    market = PerpsMarket(spec.asset, key_of(key), key_of(base), proxy, state, fragments, feed)
    states, router = state_of(node, market), Contract(node, proxy, synthetix("ProxyPerpsV2").abi)
    txs = [
        states.tx(deployer, "addAssociatedContracts", list(fragments.values()), gas=_ADMIN_GAS),
        states.tx(deployer, "linkOrInitializeState", gas=_ADMIN_GAS),
    ]
    for selector, (entry, fragment) in _routes().items():
        view = entry["stateMutability"] in _VIEWS
        txs.append(router.tx(deployer, "addRoute", selector, fragments[fragment], view, gas=_ADMIN_GAS))
    await node.send_all(txs)
    book = contract_of(node, deployed, "AddressResolver")
    await book.send(deployer, "rebuildCaches", list(fragments.values()))
    await contract_of(node, deployed, "FuturesMarketManager").send(deployer, "addProxiedMarkets", [proxy])
    given: dict[str, Any] = {**_PARAMETERS, "skewScale": spec.skew_scale, **spec.parameters}
    given["offchainMarketKey"] = key_of(f"oc{spec.asset}PERP")
    settings = contract_of(node, deployed, "PerpsV2MarketSettings")
    await settings.send(
        deployer, "setParameters", market.key, tuple(given[name] for name in _parameter_names())
    )
    return market


def _parameter_names() -> list[str]:
    """The fields of `Parameters`, in order."""
    entries = synthetix_interface("PerpsV2MarketSettings")
    (parameters,) = [entry for entry in entries if entry.get("name") == "parameters"]
    return [str(field["name"]) for field in parameters["outputs"][0]["components"]]


def _routes() -> dict[bytes, tuple[Mapping[str, Any], str]]:
    """Every routed selector with its function and the fragment that answers it."""
    routes: dict[bytes, tuple[Mapping[str, Any], str]] = {}
    for fragment in FRAGMENTS:
        for entry in synthetix_interface(fragment):
            if entry["type"] == "function" and entry["name"] not in _NOT_ROUTED:
                selector = Abi.from_json([entry]).function(entry["name"]).selector
                routes.setdefault(selector, (entry, fragment))
    return routes
