"""The reference perpetual-futures exchange on a local chain: deployed, its markets listed, a house and traders in it.

Sizes, prices, money and ratios are integers scaled by 1e18, as in the contract; amounts of the token are raw.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from keeper.abi import load
from keeper.fixed import MAX_UINT256, WAD
from keeper.lab.actors import Cast, account
from keeper.lab.chainlink import Feed
from keeper.lab.node import Contract, Node, Receipt, Tx
from keeper.lab.solc import own_artifact
from keeper.lab.tokens import approve_txs, mint_txs
from keeper.types import Address, Token

HOUSE = 0
NAME = "PerpExchange"

_CREATE_GAS, _DEPOSIT_GAS, _TRADE_GAS = 200_000, 300_000, 900_000
_LAB_OWNER = 900_000  # traders' addresses are the lab's accounts from this number on


@dataclass(frozen=True, slots=True)
class ExchangeParameters:
    """`IPerpExchange.Parameters`, in its order."""

    execution_cost: int = 2 * WAD
    min_reward: int = 3 * WAD
    max_reward: int = 5000 * WAD
    whole_below: int = 100 * WAD
    min_profit_ratio: int = 3 * WAD // 10
    max_reward_ratio: int = WAD // 2
    keeper_share: int = WAD // 2
    partial_ratio: int = WAD // 2
    critical_ratio: int = WAD // 2
    gate_s: int = 600
    max_markets: int = 4
    adl: bool = True


@dataclass(frozen=True, slots=True)
class MarketParameters:
    """`IPerpExchange.MarketParameters` without its feed, in its order."""

    max_age_s: int = 86_400
    window_s: int = 30
    skew_scale: int = 100_000 * WAD
    min_margin: int = 10 * WAD
    margin_slope: int = 2 * WAD
    min_initial_ratio: int = 5 * WAD // 100
    maintenance_scalar: int = 6 * WAD // 10
    maker_fee: int = 2 * WAD // 10_000
    taker_fee: int = 6 * WAD // 10_000
    max_funding_velocity: int = 3 * WAD
    penalty_ratio: int = 25 * WAD // 1000
    window_multiplier: int = WAD
    max_pd: int = WAD // 100


# Tiered as Synthetix has it, and flat as Perpetual Protocol's Curie has it.
TIERED = MarketParameters()
FLAT = MarketParameters(
    skew_scale=10_000 * WAD,
    min_margin=0,
    margin_slope=0,
    min_initial_ratio=WAD // 10,
    maintenance_scalar=625 * WAD // 1000,
)
MARKETS: Mapping[str, MarketParameters] = {"WETH": TIERED, "WBTC": FLAT}


@dataclass(frozen=True, slots=True)
class PerpExchange:
    """Where it is, what it takes, and its markets' symbols in the order of their numbers."""

    address: Address
    token: Token
    markets: tuple[str, ...]

    def market(self, symbol: str) -> int:
        """A market's number."""
        return self.markets.index(symbol)


@dataclass(frozen=True, slots=True)
class TraderSpec:
    """An account to open: its owner, what it pays in, and the sizes it trades by symbol, positive long."""

    owner: Address
    collateral_raw: int
    sizes: Mapping[str, int] = field(default_factory=dict)
    isolated: bool = False


async def deploy_perp_exchange(
    node: Node,
    cast: Cast,
    token: Token,
    feeds: Mapping[str, Feed],
    markets: Mapping[str, MarketParameters] = MARKETS,
    parameters: ExchangeParameters | None = None,
    house_raw: int | None = None,
) -> PerpExchange:
    """The exchange with these markets; the deployer owns it, the first guardian pauses it.

    The house starts with `house_raw` of the token, ten million whole ones by default.
    """
    deployer = cast.deployer.address
    code = own_artifact(NAME).creation_code() + load(NAME).constructor(token.address, deployer)
    exchange = PerpExchange(await node.deploy(deployer, code), token, tuple(markets))
    contract = exchange_of(node, exchange)
    await contract.send(deployer, "setGuardian", cast.guardians[0].address)
    await contract.send(deployer, "setParameters", dataclasses.astuple(parameters or ExchangeParameters()))
    for symbol, market in markets.items():
        listed = (feeds[symbol].proxy, *dataclasses.astuple(market))
        await contract.send(deployer, "setMarket", exchange.market(symbol), listed)
    amount_raw = 10_000_000 * 10**token.decimals if house_raw is None else house_raw
    await node.send_all(await _deposit_txs(node, cast, exchange, {HOUSE: amount_raw}), contract.abi)
    return exchange


def exchange_of(node: Node, exchange: PerpExchange) -> Contract:
    """The exchange as a contract."""
    return Contract(node, exchange.address, load(NAME))


async def open_accounts(
    node: Node, cast: Cast, exchange: PerpExchange, specs: Sequence[TraderSpec]
) -> list[int]:
    """Open accounts and let them trade, at any price; their numbers, in order.

    Raises ExecutionError with the exchange's reason when one has not the margin.
    """
    contract = exchange_of(node, exchange)
    await node.set_balances({spec.owner for spec in specs})
    created = await node.send_all(
        [contract.tx(spec.owner, "createAccount", spec.isolated, gas=_CREATE_GAS) for spec in specs],
        contract.abi,
    )
    numbers = [_number(contract, receipt) for receipt in created]
    paid = {number: spec.collateral_raw for number, spec in zip(numbers, specs, strict=True)}
    await node.send_all(await _deposit_txs(node, cast, exchange, paid), contract.abi)
    trades = [
        trade_tx(node, exchange, spec.owner, number, symbol, size)
        for number, spec in zip(numbers, specs, strict=True)
        for symbol, size in spec.sizes.items()
    ]
    await node.send_all(trades, contract.abi)
    return numbers


def trade_tx(node: Node, exchange: PerpExchange, owner: Address, number: int, symbol: str, size: int) -> Tx:
    """A trade at any price, not sent."""
    limit = MAX_UINT256 if size > 0 else 0
    arguments = (number, exchange.market(symbol), size, limit)
    return exchange_of(node, exchange).tx(owner, "trade", *arguments, gas=_TRADE_GAS)


def random_traders(
    rng: random.Random,
    exchange: PerpExchange,
    prices_e8: Mapping[str, int],
    count: int,
    markets: Mapping[str, MarketParameters] = MARKETS,
) -> list[TraderSpec]:
    """Traders of either side with 500 to 50,000 whole tokens each, in one market or several, isolated or not.

    Each uses between a fifth and four fifths of its collateral as initial margin, so all can open at these prices.
    """
    specs = []
    for number in range(count):
        collateral = round(500 * 100 ** rng.random())
        isolated = rng.random() < 0.3
        symbols = rng.sample(exchange.markets, 1 if isolated else rng.randint(1, len(exchange.markets)))
        used = collateral * WAD * rng.randint(20, 80) // 100 // len(symbols)
        sizes = {
            symbol: rng.choice((1, -1)) * _size_for(used, prices_e8[symbol], markets[symbol])
            for symbol in symbols
        }
        owner = account(_LAB_OWNER + number)
        specs.append(TraderSpec(owner, collateral * 10**exchange.token.decimals, sizes, isolated))
    return specs


def _size_for(margin: int, price_e8: int, market: MarketParameters) -> int:
    """A size whose initial margin is near `margin` and not above, by the ratio that twice the least one would give."""
    money = max(margin - market.min_margin, WAD)
    size = money * WAD // market.min_initial_ratio * 10**8 // price_e8
    ratio = size * market.margin_slope // market.skew_scale + market.min_initial_ratio
    return money * WAD // ratio * 10**8 // price_e8


async def _deposit_txs(
    node: Node, cast: Cast, exchange: PerpExchange, amounts_raw: Mapping[int, int]
) -> list[Tx]:
    """The deployer pays for all, from tokens it mints itself."""
    deployer, total = cast.deployer.address, sum(amounts_raw.values())
    contract = exchange_of(node, exchange)
    return [
        *mint_txs(cast, exchange.token, deployer, total),
        *await approve_txs(node, exchange.token, deployer, exchange.address, total),
        *(
            contract.tx(deployer, "deposit", number, amount, gas=_DEPOSIT_GAS)
            for number, amount in amounts_raw.items()
        ),
    ]


def _number(contract: Contract, receipt: Receipt) -> int:
    event = contract.abi.event("AccountCreated")
    (log,) = (log for log in receipt.logs if log.topics[0] == event.topic)
    return int(event.decode(log)["account"])
