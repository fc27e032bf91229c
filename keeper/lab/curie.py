"""Perp Curie (Perpetual Protocol v2) on a world: its published bytecode, markets over the world's feeds, and traders.

An addition to a built world: nothing deploys it but who asks. It brings its own Uniswap V3 factory, whose pools trade
virtual tokens that only its clearing house can move.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

from keeper.abi import checksum
from keeper.fixed import MAX_UINT256
from keeper.lab.actors import Cast, account
from keeper.lab.artifacts import Artifact, published
from keeper.lab.node import Contract, Node, Receipt, Tx
from keeper.lab.tokens import approve_txs, mint_txs
from keeper.lab.world import World
from keeper.types import Address, Token

DEADLINE_S = 2**40
_ORDER_GAS = 14_000_000  # each order that an account has makes its next one dearer
NO_REFERRAL = bytes(32)
LIQUIDITY_PROVIDER = account(9_000_001)
WAD = 10**18

_CURIE = "@perp/curie-contract/artifacts/contracts"
_ORACLE = "@perp/perp-oracle-contract/artifacts/contracts"
_UNISWAP = "@uniswap/v3-core/artifacts/contracts"
_FEED_TIMEOUT_S = 30 * 86_400
_TWAP_S = 900
_OBSERVATIONS = 500
_READY_S = 3_600  # the pools need half an hour of history before a mark price exists
_TICK_BASE = 1.0001
_TICK_SPACING = {500: 10, 3000: 60, 10000: 200}
_TRADE_GAS = 2_500_000
_DEPOSIT_GAS = 400_000
_MAX_TICKS_PER_BLOCK = 1_000  # the exchange's own cap
_WHATEVER_IT_TAKES = 10**27


@dataclass(frozen=True, slots=True)
class MarketSpec:
    """A market over the feed of `symbol`.

    `depth_usd` of each side lies between the price divided and multiplied by `range_factor`; `pool_fee` is Uniswap's,
    `fee_ratio` the exchange's and `fund_ratio` the insurance fund's share of that, all in millionths.
    """

    symbol: str
    depth_usd: int
    range_factor: float = 3.0
    pool_fee: int = 3000
    fee_ratio: int = 1000
    fund_ratio: int = 100_000


@dataclass(frozen=True, slots=True)
class CollateralSpec:
    """A token besides the settlement token that counts: ratios in millionths."""

    symbol: str
    collateral_ratio: int
    discount_ratio: int


MARKETS = (MarketSpec("WETH", 4_000_000), MarketSpec("WBTC", 6_000_000, pool_fee=10_000))
COLLATERALS = (CollateralSpec("WETH", 700_000, 100_000), CollateralSpec("WBTC", 650_000, 120_000))


@dataclass(frozen=True, slots=True)
class CurieMarket:
    """A base token with its pool and price feeds."""

    symbol: str
    base_token: Address
    pool: Address
    dispatcher: Address
    feed: Address


@dataclass(frozen=True, slots=True)
class Curie:
    """Where everything is; markets and collateral tokens go by the world's symbols."""

    settlement: Token
    clearing_house: Address
    config: Address
    vault: Address
    exchange: Address
    order_book: Address
    account_balance: Address
    insurance_fund: Address
    collateral_manager: Address
    market_registry: Address
    factory: Address
    quote_token: Address
    markets: dict[str, CurieMarket]
    collaterals: dict[str, Token]


def table(curie: Curie) -> str:
    """Its part of `keeper.toml`."""
    return f"""
[[protocols]]
kind = "perp-curie"
name = "curie"
clearing_house = "{checksum(curie.clearing_house)}"
"""


def perp_curie(name: str) -> Artifact:
    """A contract of Perp Curie as published."""
    return published(f"{_CURIE}/{name}.sol/{name}.json")


def perp_oracle(name: str) -> Artifact:
    """A contract of its oracle package as published."""
    return published(f"{_ORACLE}/{name}.sol/{name}.json")


async def deploy_curie(
    node: Node,
    world: World,
    markets: Sequence[MarketSpec] = MARKETS,
    collaterals: Sequence[CollateralSpec] = COLLATERALS,
    *,
    insurance_usd: int = 100_000,
) -> Curie:
    """The whole exchange with liquid markets, settled in USDC, an hour after its pools were opened."""
    deployer, usdc = world.cast.deployer.address, world.tokens["USDC"]

    async def deploy(name: str, *arguments: object) -> Contract:
        code = perp_curie(name)
        at = await node.deploy(deployer, code.creation_code())
        contract = Contract(node, at, code.abi)
        if arguments or name == "ClearingHouseConfig":
            await contract.send(deployer, "initialize", *arguments)
        return contract

    factory_code = published(f"{_UNISWAP}/UniswapV3Factory.sol/UniswapV3Factory.json")
    factory = Contract(node, await node.deploy(deployer, factory_code.creation_code()), factory_code.abi)
    config = await deploy("ClearingHouseConfig")
    quote = await _virtual_token(node, deployer, "QuoteToken", lowest=0x80)
    await quote.send(deployer, "initialize", "vUSD", "vUSD")
    registry = await deploy("MarketRegistry", factory.address, quote.address)
    book = await deploy("OrderBook", registry.address)
    exchange = await deploy("Exchange", registry.address, book.address, config.address)
    balance = await deploy("AccountBalance", config.address, book.address)
    fund = await deploy("InsuranceFund", usdc.address)
    vault = await deploy("Vault", fund.address, config.address, balance.address, exchange.address)
    ratios = (5, 750_000, 500_000, 2_000, 30_000, 10_000 * 10**usdc.decimals, 500 * 10**usdc.decimals)
    manager = await deploy("CollateralManager", config.address, vault.address, *ratios)
    house = await deploy(
        "ClearingHouse",
        *(config.address, vault.address, quote.address, factory.address),
        *(exchange.address, balance.address, fund.address),
    )
    for callee in (registry, book, exchange, balance, vault):
        await callee.send(deployer, "setClearingHouse", house.address)
    await book.send(deployer, "setExchange", exchange.address)
    await exchange.send(deployer, "setAccountBalance", balance.address)
    await balance.send(deployer, "setVault", vault.address)
    await fund.send(deployer, "setVault", vault.address)
    await vault.send(deployer, "setCollateralManager", manager.address)
    await config.send(deployer, "setSettlementTokenBalanceCap", MAX_UINT256)
    await quote.send(deployer, "mintMaximumTo", house.address)
    await quote.send(deployer, "addWhitelist", house.address)
    for spec in collaterals:
        feed = await _feed(node, deployer, world, spec.symbol)
        token = world.tokens[spec.symbol].address
        await manager.send(
            deployer,
            "addCollateral",
            token,
            (feed, spec.collateral_ratio, spec.discount_ratio, MAX_UINT256),
        )
    curie = Curie(
        settlement=usdc,
        clearing_house=house.address,
        config=config.address,
        vault=vault.address,
        exchange=exchange.address,
        order_book=book.address,
        account_balance=balance.address,
        insurance_fund=fund.address,
        collateral_manager=manager.address,
        market_registry=registry.address,
        factory=factory.address,
        quote_token=quote.address,
        markets={},
        collaterals={spec.symbol: world.tokens[spec.symbol] for spec in collaterals},
    )
    for spec_ in markets:
        curie.markets[spec_.symbol] = await open_market(node, world, curie, spec_)
    await node.send_all(mint_txs(world.cast, usdc, fund.address, insurance_usd * 10**usdc.decimals))
    await node.advance(_READY_S)
    for spec_ in markets:
        await _provide(node, world, curie, spec_)
    await node.advance(_READY_S)
    return curie


async def open_market(node: Node, world: World, curie: Curie, spec: MarketSpec) -> CurieMarket:
    """A listed market without liquidity, its pool at the world's price."""
    deployer = world.cast.deployer.address
    feed = await _feed(node, deployer, world, spec.symbol)
    dispatcher = await node.deploy(deployer, perp_oracle("PriceFeedDispatcher").creation_code(feed))
    base = await _virtual_token(node, deployer, "BaseToken", below=curie.quote_token)
    await base.send(deployer, "initialize", f"v{spec.symbol}", f"v{spec.symbol}", dispatcher)
    factory = Contract(
        node, curie.factory, published(f"{_UNISWAP}/UniswapV3Factory.sol/UniswapV3Factory.json").abi
    )
    await factory.send(deployer, "createPool", base.address, curie.quote_token, spec.pool_fee)
    at = await factory.read("getPool", base.address, curie.quote_token, spec.pool_fee)
    pool = Contract(node, at, published(f"{_UNISWAP}/UniswapV3Pool.sol/UniswapV3Pool.json").abi)
    price_e8 = world.prices_e8[spec.symbol]
    await pool.send(deployer, "initialize", isqrt((price_e8 << 192) // 10**8))
    await pool.send(deployer, "increaseObservationCardinalityNext", _OBSERVATIONS)
    await base.send(deployer, "mintMaximumTo", curie.clearing_house)
    for virtual in (base.address, curie.quote_token):
        token = Contract(node, virtual, base.abi)
        for holder in (curie.clearing_house, at):
            await token.send(deployer, "addWhitelist", holder)
    registry = _contract(node, "MarketRegistry", curie.market_registry)
    await registry.send(deployer, "addPool", base.address, spec.pool_fee)
    await registry.send(deployer, "setFeeRatio", base.address, spec.fee_ratio)
    await registry.send(deployer, "setInsuranceFundFeeRatio", base.address, spec.fund_ratio)
    exchange = _contract(node, "Exchange", curie.exchange)
    await exchange.send(deployer, "setMaxTickCrossedWithinBlock", base.address, _MAX_TICKS_PER_BLOCK)
    return CurieMarket(spec.symbol, base.address, at, dispatcher, feed)


# --- people ----------------------------------------------------------------------------------------------------------


def house_of(node: Node, curie: Curie) -> Contract:
    """The clearing house: trades, liquidations."""
    return _contract(node, "ClearingHouse", curie.clearing_house)


def part_of(node: Node, curie: Curie, name: str) -> Contract:
    """One of its other contracts by its published name, as in `AccountBalance`."""
    return _contract(node, name, _places(curie)[name])


async def deposit(
    node: Node, cast: Cast, curie: Curie, token: Token, amounts_raw: Mapping[Address, int]
) -> None:
    """Give accounts that much of a token and let each deposit it."""
    vault = part_of(node, curie, "Vault")
    await node.set_balances(amounts_raw)
    txs: list[Tx] = []
    for who, amount in amounts_raw.items():
        txs += mint_txs(cast, token, who, amount)
        txs += await approve_txs(node, token, who, curie.vault, amount)
        txs.append(vault.tx(who, "deposit", token.address, amount, gas=_DEPOSIT_GAS))
    await node.send_all(txs, vault.abi)


def trade_tx(node: Node, curie: Curie, who: Address, symbol: str, size: int) -> Tx:
    """A trade of that much base token in 10⁻¹⁸, short when negative."""
    base = curie.markets[symbol].base_token
    short = size < 0
    order = (base, short, short, abs(size), 0, DEADLINE_S, 0, NO_REFERRAL)
    return house_of(node, curie).tx(who, "openPosition", order, gas=_TRADE_GAS)


async def trade(node: Node, curie: Curie, who: Address, symbol: str, size: int) -> Receipt:
    """Trade that much base token in 10⁻¹⁸, short when negative. Raises ExecutionError when it reverts."""
    return await node.send(trade_tx(node, curie, who, symbol, size), house_of(node, curie).abi)


async def move_to(node: Node, curie: Curie, who: Address, symbol: str, price_usd: int) -> Receipt:
    """Trade a pool to a price; the exchange lets it move by some 10 % within a quarter of a minute."""
    limit_x96 = isqrt(price_usd << 192)
    short = limit_x96 < (await pool_of(node, curie, symbol).read("slot0"))[0]
    base = curie.markets[symbol].base_token
    order = (base, short, True, _WHATEVER_IT_TAKES, 0, DEADLINE_S, limit_x96, NO_REFERRAL)
    return await house_of(node, curie).send(who, "openPosition", order)


async def average_over(node: Node, cast: Cast, curie: Curie, seconds: int) -> None:
    """Let mark and index prices average over so long instead of a quarter and half of an hour."""
    config = part_of(node, curie, "ClearingHouseConfig")
    for name in ("setTwapInterval", "setMarkPriceMarketTwapInterval", "setMarkPricePremiumInterval"):
        await config.send(cast.deployer.address, name, seconds)


async def close(node: Node, curie: Curie, who: Address, symbol: str) -> Receipt:
    """Close what the account holds in a market."""
    order = (curie.markets[symbol].base_token, 0, 0, DEADLINE_S, NO_REFERRAL)
    return await house_of(node, curie).send(who, "closePosition", order)


async def provide(
    node: Node,
    curie: Curie,
    who: Address,
    symbol: str,
    depth_wad: tuple[int, int],
    prices: tuple[float, float],
) -> Receipt:
    """Open a maker order of so much base and quote between two prices."""
    spacing = await pool_of(node, curie, symbol).read("tickSpacing")
    ticks = [math.floor(math.log(price, _TICK_BASE) / spacing) * spacing for price in prices]
    order = (curie.markets[symbol].base_token, *depth_wad, *ticks, 0, 0, False, DEADLINE_S)
    house = house_of(node, curie)
    return await node.send(house.tx(who, "addLiquidity", order, gas=_ORDER_GAS), house.abi)


# --- inside ----------------------------------------------------------------------------------------------------------


def _contract(node: Node, name: str, at: Address) -> Contract:
    return Contract(node, at, perp_curie(name).abi)


def pool_of(node: Node, curie: Curie, symbol: str) -> Contract:
    """The Uniswap V3 pool of a market."""
    abi = published(f"{_UNISWAP}/UniswapV3Pool.sol/UniswapV3Pool.json").abi
    return Contract(node, curie.markets[symbol].pool, abi)


def _places(curie: Curie) -> dict[str, Address]:
    return {
        "AccountBalance": curie.account_balance,
        "ClearingHouseConfig": curie.config,
        "CollateralManager": curie.collateral_manager,
        "Exchange": curie.exchange,
        "InsuranceFund": curie.insurance_fund,
        "MarketRegistry": curie.market_registry,
        "OrderBook": curie.order_book,
        "Vault": curie.vault,
    }


async def _virtual_token(
    node: Node, deployer: Address, name: str, *, lowest: int = 0, below: Address | None = None
) -> Contract:
    """A virtual token whose address sorts as the pools need it: every base token below the quote token."""
    code = perp_curie(name)
    while True:
        at = await node.deploy(deployer, code.creation_code())
        if at[0] >= lowest and (below is None or at < below):
            return Contract(node, at, code.abi)


async def _feed(node: Node, deployer: Address, world: World, symbol: str) -> Address:
    code = perp_oracle("ChainlinkPriceFeedV3")
    return await node.deploy(
        deployer, code.creation_code(world.feeds[symbol].proxy, _FEED_TIMEOUT_S, _TWAP_S)
    )


async def _provide(node: Node, world: World, curie: Curie, spec: MarketSpec) -> None:
    """The big maker of a market."""
    maker, price = LIQUIDITY_PROVIDER, world.prices_e8[spec.symbol] / 10**8
    settlement = curie.settlement
    await deposit(node, world.cast, curie, settlement, {maker: 2 * spec.depth_usd * 10**settlement.decimals})
    base = spec.depth_usd * WAD * 10**8 // world.prices_e8[spec.symbol]
    prices = (price / spec.range_factor, price * spec.range_factor)
    await provide(node, curie, maker, spec.symbol, (base, spec.depth_usd * WAD), prices)
