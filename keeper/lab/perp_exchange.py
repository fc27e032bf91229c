"""The reference perp exchange on the world's own feeds: three markets, USDC, a rich house and an insurance fund.

The house and the fund belong to the deployer, who also sets everything; traders are whoever opens an account.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from keeper.abi import Abi, checksum, load
from keeper.fixed import MAX_UINT256, WAD
from keeper.lab.actors import Cast, account
from keeper.lab.chainlink import Feed, latest
from keeper.lab.node import Contract, Node, Receipt, Tx
from keeper.lab.solc import own_artifact
from keeper.lab.tokens import approve_txs, mint_txs
from keeper.lab.world import World
from keeper.types import Address, Token

HOUSE = 0
COLLATERAL = "USDC"
_E8 = 10**8
_SET_GAS, _OPEN_GAS, _TRADE_GAS = 600_000, 300_000, 1_000_000
_HOUSE_USD, _FUND_USD = 20_000_000, 200_000

PARAMETERS: Mapping[str, int] = {
    "executionCost": 2 * WAD,
    "minReward": 3 * WAD,
    "maxReward": 5_000 * WAD,
    "wholeBelow": 100 * WAD,
    "minProfitRatio": 3 * WAD // 10,
    "maxRewardRatio": WAD // 2,
    "keeperShare": WAD // 2,
    "partialRatio": WAD // 2,
    "criticalRatio": WAD // 2,
    "gateS": 600,
    "maxMarkets": 4,
    "adl": True,
}
_MARKET: Mapping[str, int] = {
    "maxAgeS": 90_000,
    "windowS": 30,
    "skewScale": 100_000 * WAD,
    "minMargin": 10 * WAD,
    "marginSlope": 2 * WAD,
    "minInitialRatio": 5 * WAD // 100,
    "maintenanceScalar": 6 * WAD // 10,
    "makerFee": 2 * WAD // 10_000,
    "takerFee": 6 * WAD // 10_000,
    "maxFundingVelocity": 3 * WAD,
    "penaltyRatio": 25 * WAD // 1_000,
    "windowMultiplier": WAD // 5,
    "maxPd": WAD // 100,
}


@dataclass(frozen=True, slots=True)
class MarketSpec:
    """A market to open on a feed of the world; what differs from the usual parameters goes by its name."""

    feed: str
    parameters: Mapping[str, int] = field(default_factory=dict)


# Margin that grows with size and a window; flat margins without one; and one with all of it, but small.
MARKETS = (
    MarketSpec("WETH"),
    MarketSpec(
        "WBTC",
        {
            "skewScale": 10_000 * WAD,
            "minMargin": 0,
            "marginSlope": 0,
            "minInitialRatio": WAD // 10,
            "maintenanceScalar": 625 * WAD // 1_000,
            "windowMultiplier": 0,
        },
    ),
    MarketSpec("ISO", {"skewScale": 2_000_000 * WAD, "minMargin": WAD, "penaltyRatio": WAD // 100}),
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Where it is, its collateral, and the markets' feeds by number."""

    address: Address
    token: Token
    feeds: tuple[Feed, ...]


@dataclass(frozen=True, slots=True)
class AccountSpec:
    """An account to open: collateral in raw units, then (market, size) to trade in order; below zero: short."""

    owner: Address
    isolated: bool
    collateral_raw: int
    trades: tuple[tuple[int, int], ...]


def table(exchange: Exchange) -> str:
    """Its part of `keeper.toml`."""
    return f"""
[[protocols]]
kind = "reference-perp"
name = "reference"
exchange = "{checksum(exchange.address)}"
"""


def exchange_abi() -> Abi:
    """The exchange's whole interface, errors included."""
    return load("PerpExchange")


def contract_of(node: Node, exchange: Exchange) -> Contract:
    """The exchange, to be called by hand."""
    return Contract(node, exchange.address, exchange_abi())


async def deploy_exchange(
    node: Node, world: World, specs: Sequence[MarketSpec] = MARKETS, parameters: Mapping[str, int] = PARAMETERS
) -> Exchange:
    """The exchange with these markets; the house and the fund have money."""
    people, token = world.cast, world.tokens[COLLATERAL]
    deployer = people.deployer.address
    code = bytes.fromhex(own_artifact("PerpExchange").bytecode.removeprefix("0x"))
    code += exchange_abi().constructor(token.address, deployer)
    address = await node.deploy(deployer, code)
    exchange = Exchange(address, token, tuple(world.feeds[spec.feed] for spec in specs))
    contract = contract_of(node, exchange)
    txs = [
        contract.tx(deployer, "setGuardian", people.guardians[0].address, gas=_SET_GAS),
        contract.tx(deployer, "setParameters", tuple(parameters.values()), gas=_SET_GAS),
    ]
    for number, spec in enumerate(specs):
        values = market_parameters(exchange, number, spec.parameters)
        txs.append(contract.tx(deployer, "setMarket", number, values, gas=_SET_GAS))
    unit = 10**token.decimals
    txs += mint_txs(people, token, deployer, (_HOUSE_USD + _FUND_USD) * unit)
    txs += await approve_txs(node, token, deployer, address, MAX_UINT256)
    txs.append(contract.tx(deployer, "deposit", HOUSE, _HOUSE_USD * unit, gas=_OPEN_GAS))
    txs.append(contract.tx(deployer, "growFund", _FUND_USD * unit, gas=_OPEN_GAS))
    await node.send_all(txs, contract.abi)
    return exchange


def market_parameters(exchange: Exchange, market: int, changed: Mapping[str, int]) -> tuple[object, ...]:
    """A market's `MarketParameters`, the usual ones with these changes."""
    return (exchange.feeds[market].proxy, *(_MARKET | changed).values())


async def set_parameters(node: Node, cast: Cast, exchange: Exchange, **changed: int) -> Receipt:
    """Change parameters of the whole exchange by name, as they are now."""
    contract = contract_of(node, exchange)
    now = dict(zip(PARAMETERS, await contract.read("parameters"), strict=True))
    return await contract.send(cast.deployer.address, "setParameters", tuple((now | changed).values()))


async def set_market(node: Node, cast: Cast, exchange: Exchange, market: int, **changed: int) -> Receipt:
    """Change parameters of one market by name, as they are now."""
    contract = contract_of(node, exchange)
    feed, *values = await contract.read("parametersOf", market)
    now = dict(zip(_MARKET, values, strict=True)) | changed
    return await contract.send(cast.deployer.address, "setMarket", market, (feed, *now.values()))


async def open_accounts(
    node: Node, cast: Cast, exchange: Exchange, specs: Sequence[AccountSpec]
) -> list[int]:
    """Open accounts, pay in, and trade, each step for all in a few blocks; their numbers.

    Raises ExecutionError with the exchange's reason.
    """
    contract, token, deployer = contract_of(node, exchange), exchange.token, cast.deployer.address
    await node.set_balances({spec.owner for spec in specs})
    first = int(await contract.read("accountCount"))
    numbers = list(range(first, first + len(specs)))
    await node.send_all(
        [contract.tx(spec.owner, "createAccount", spec.isolated, gas=_OPEN_GAS) for spec in specs]
    )
    total_raw = sum(spec.collateral_raw for spec in specs)
    txs = mint_txs(cast, token, deployer, total_raw)
    txs += await approve_txs(node, token, deployer, exchange.address, total_raw)
    txs += [
        contract.tx(deployer, "deposit", number, spec.collateral_raw, gas=_OPEN_GAS)
        for number, spec in zip(numbers, specs, strict=True)
    ]
    await node.send_all(txs, contract.abi)
    trades = [
        trade_tx(contract, spec.owner, number, market, size)
        for number, spec in zip(numbers, specs, strict=True)
        for market, size in spec.trades
    ]
    await node.send_all(trades, contract.abi)
    return numbers


def trade_tx(contract: Contract, owner: Address, number: int, market: int, size_delta: int) -> Tx:
    """Change an account's size at whatever price."""
    limit = MAX_UINT256 if size_delta > 0 else 0
    return contract.tx(owner, "trade", number, market, size_delta, limit, gas=_TRADE_GAS)


def random_accounts(
    chance: random.Random, prices_usd: Sequence[float], first: int, count: int
) -> list[AccountSpec]:
    """Isolated and cross accounts over all markets, of 1 to 8 times their collateral; longs and shorts."""
    specs = []
    for number in range(first, first + count):
        isolated = chance.random() < 0.4
        most = 1 if isolated else chance.randint(1, len(prices_usd))
        markets = chance.sample(range(len(prices_usd)), most)
        total_usd = 10 ** chance.uniform(2.3, 5.3)
        leverage = chance.uniform(1, 3) if chance.random() < 0.3 else chance.uniform(3, 8)
        weights = [chance.uniform(0.2, 1.0) for _ in markets]
        trades = []
        for market, weight in zip(markets, weights, strict=True):
            notional_usd = total_usd * weight / sum(weights)
            side = 1 if chance.random() < 0.55 else -1
            size = int(side * notional_usd / prices_usd[market] * WAD) + chance.randint(-999, 999)
            trades.append((market, size))
        collateral_usd = total_usd / leverage + 40 * len(markets)
        specs.append(
            AccountSpec(
                account(number), isolated, int(collateral_usd * 10**6) + chance.randint(0, 999), tuple(trades)
            )
        )
    return specs


async def prices_usd(node: Node, feeds: Iterable[Feed]) -> list[float]:
    """What each feed says now, in dollars."""
    return [(await latest(node, feed)).price_raw / _E8 for feed in feeds]
