"""How a Perp Curie exchange is found and laid out: its contracts, and the markets and collaterals that accounts use.

The exchange lists neither, so both are learned from accounts: whatever one of them holds is read once and kept in the
order of its first use, which gives a position's words their places.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keeper import abi
from keeper.errors import AdapterError
from keeper.protocols.perp_curie.rules import Parameters, ten_to
from keeper.seams import Reads, symbol_of
from keeper.types import ZERO_ADDRESS, Address, Call, Hash, Result, Reverted, Slot, Token, hex_of

HOUSE: Final = abi.load("CurieClearingHouse")
VAULT: Final = abi.load("CurieVault")
BALANCE: Final = abi.load("CurieAccountBalance")
EXCHANGE: Final = abi.load("CurieExchange")
ORDERS: Final = abi.load("CurieOrderBook")
REGISTRY: Final = abi.load("CurieMarketRegistry")
CONFIG: Final = abi.load("CurieConfig")
MANAGER: Final = abi.load("CurieCollateralManager")
FUND: Final = abi.load("CurieInsuranceFund")
BASE: Final = abi.load("CurieBaseToken")
FEED: Final = abi.load("CuriePriceFeed")
POOL: Final = abi.load("UniswapV3Pool")
ERC20: Final = abi.load("Erc20")

# Exchange has no getter for these mappings by base token. `ClearingHouseCallee` and `UniswapV3CallbackBridge` take the
# storage below; its first words are checked at load.
EXCHANGE_FIRST_SLOT: Final = 205
LAST_TICK, FIRST_TRADED, LAST_SETTLED, GROWTH, LAST_TICK_TIME = 208, 209, 210, 211, 214
# AccountBalance has none for `_owedRealizedPnlMap` that works while a market cannot be priced.
BALANCE_FIRST_SLOT: Final = 154
OWED: Final = 157
_MOST_DECIMALS: Final = 18  # of a price: the exchange's own


@dataclass(frozen=True, slots=True)
class Feed:
    """A price source: Chainlink behind a cached average, with what one whole unit of its price is."""

    address: Address
    aggregator: Address
    unit: int


@dataclass(frozen=True, slots=True)
class Market:
    """A base token; its index price comes from `feed` unless `dispatcher` says otherwise."""

    base: Address
    symbol: str
    pool: Address
    spacing: int
    dispatcher: Address
    feed: Feed


@dataclass(frozen=True, slots=True)
class Collateral:
    """A token that counts besides the settlement token; ratios in millionths."""

    token: Token
    feed: Feed
    ratio_ppm: int
    discount_ppm: int


@dataclass(frozen=True, slots=True)
class Terms:
    """CollateralManager: when collateral may be sold and how much of it; `_raw` in the settlement token."""

    mm_buffer_ppm: int
    debt_ratio_ppm: int
    liquidation_ppm: int
    fund_fee_ppm: int
    dust_raw: int


Entry = Market | Collateral


@dataclass(frozen=True, slots=True)
class System:
    """A loaded exchange; `unit_wad` is one raw unit of the settlement token in 10⁻¹⁸."""

    house: Address
    vault: Address
    exchange: Address
    orders: Address
    balance: Address
    registry: Address
    config: Address
    manager: Address
    fund: Address
    quote: Address
    settlement: Token
    unit_wad: int
    parameters: Parameters
    terms: Terms

    def exchange_slot(self, mapping: int, base: Address, offset: int = 0) -> Slot:
        """A word of one of the exchange's mappings by base token."""
        return Slot(self.exchange, _place(mapping, base, offset))

    def owed_slot(self, account: Address) -> Slot:
        """An account's realized profit that the vault has not booked yet."""
        return Slot(self.balance, _place(OWED, account, 0))


def answered(function: abi.Function, result: Result) -> Any:
    """The one output of a call that must succeed."""
    return _required(function, result, function.one)


def answers(function: abi.Function, result: Result) -> tuple[Any, ...]:
    """All outputs of a call that must succeed."""
    found: tuple[Any, ...] = _required(function, result, function.decode)
    return found


def word(result: Result) -> int:
    """A storage word."""
    if isinstance(result, Reverted) or len(result) != 32:
        raise AdapterError("A word of storage is not 32 bytes: do not trust the node.")
    return int.from_bytes(result)


def signed(value: int, bits: int = 256) -> int:
    """Two's complement of so many bits as a number."""
    return value - (1 << bits) if value >> (bits - 1) else value


def load_system(house: Address) -> Reads[System]:
    """Read what only governance changes."""
    parts = yield from _gather(
        [
            (HOUSE, name, house)
            for name in (
                *("getVault", "getExchange", "getOrderBook", "getAccountBalance", "getClearingHouseConfig"),
                *("getInsuranceFund", "getQuoteToken"),
            )
        ]
    )
    vault, exchange, orders, balance, config, fund, quote = parts
    settlement, decimals, manager, registry = yield from _gather(
        [
            (VAULT, "getSettlementToken", vault),
            (VAULT, "decimals", vault),
            (VAULT, "getCollateralManager", vault),
            (EXCHANGE, "getMarketRegistry", exchange),
        ]
    )
    yield from _check_layout(exchange, balance, orders, config)
    figures = yield from _gather(
        [(CONFIG, name, config) for name in ("getImRatio", "getMmRatio", "getLiquidationPenaltyRatio")]
        + [(CONFIG, name, config) for name in ("getMaxFundingRate", "getTwapInterval")]
        + [(CONFIG, "getSettlementTokenBalanceCap", config)]
        + [
            (MANAGER, name, manager)
            for name in (
                *("getMmRatioBuffer", "getDebtNonSettlementTokenValueRatio", "getLiquidationRatio"),
                *("getCLInsuranceFundFeeRatio", "getCollateralValueDust"),
            )
        ]
    )
    marking, symbol = CONFIG.function("getMarkPriceConfig"), ERC20.function("symbol")
    results = yield [marking.call(config), symbol.call(settlement)]
    mark_twap_s, premium_interval_s = answers(marking, results[0])
    return System(
        house=house,
        vault=vault,
        exchange=exchange,
        orders=orders,
        balance=balance,
        registry=registry,
        config=config,
        manager=manager,
        fund=fund,
        quote=quote,
        settlement=Token(settlement, symbol_of(results[1], settlement), decimals),
        unit_wad=ten_to(18 - decimals),
        parameters=Parameters(
            im_ratio_ppm=figures[0],
            mm_ratio_ppm=figures[1],
            penalty_ppm=figures[2],
            max_funding_ppm=figures[3],
            twap_interval_s=figures[4],
            balance_cap_raw=figures[5],
            mark_twap_s=mark_twap_s,
            premium_interval_s=premium_interval_s,
        ),
        terms=Terms(*figures[6:]),
    )


def learn_one(system: System, at: Address, kind: type[Entry]) -> Reads[Entry]:
    """Read a market by its base token, or a collateral."""
    return _market(system, at) if kind is Market else _collateral(system, at)


def contracts_of(system: System, entries: Iterable[Entry]) -> dict[str, Address]:
    """Every contract the exchange is made of, by what it is in it."""
    found = {
        "clearing house": system.house,
        "vault": system.vault,
        "exchange": system.exchange,
        "order book": system.orders,
        "account balance": system.balance,
        "market registry": system.registry,
        "configuration": system.config,
        "collateral manager": system.manager,
        "insurance fund": system.fund,
        "quote token": system.quote,
        "settlement token": system.settlement.address,
    }
    for entry in entries:
        if isinstance(entry, Market):
            at = abi.checksum(entry.base)
            found |= {
                f"base token {at}": entry.base,
                f"pool of {at}": entry.pool,
                f"price dispatcher of {at}": entry.dispatcher,
                f"price feed of {at}": entry.feed.address,
                f"aggregator of {at}": entry.feed.aggregator,
            }
        else:
            at = abi.checksum(entry.token.address)
            found |= {
                f"collateral {at}": entry.token.address,
                f"price feed of collateral {at}": entry.feed.address,
                f"aggregator of collateral {at}": entry.feed.aggregator,
            }
    return {role: address for role, address in found.items() if address != ZERO_ADDRESS}


def _market(system: System, base: Address) -> Reads[Entry]:
    symbol, pool_of, feed_of = (
        BASE.function("symbol"),
        REGISTRY.function("getPool"),
        BASE.function("getPriceFeed"),
    )
    results = yield [symbol.call(base), pool_of.call(system.registry, base), feed_of.call(base)]
    name, pool, dispatcher = (
        symbol_of(results[0], base),
        answered(pool_of, results[1]),
        answered(feed_of, results[2]),
    )
    spacing, inner = POOL.function("tickSpacing"), FEED.function("getChainlinkPriceFeedV3")
    results = yield [spacing.call(pool), inner.call(dispatcher)]
    feed = yield from _feed(dispatcher if isinstance(results[1], Reverted) else inner.one(results[1]))
    return Market(base, name, pool, answered(spacing, results[0]), dispatcher, feed)


def _collateral(system: System, token: Address) -> Reads[Entry]:
    config = MANAGER.function("getCollateralConfig")
    decimals, symbol = ERC20.function("decimals"), ERC20.function("symbol")
    results = yield [config.call(system.manager, token), decimals.call(token), symbol.call(token)]
    feed_address, ratio_ppm, discount_ppm, _ = answered(config, results[0])
    feed = yield from _feed(feed_address)
    described = Token(token, symbol_of(results[2], token), answered(decimals, results[1]))
    return Collateral(described, feed, ratio_ppm, discount_ppm)


def _feed(address: Address) -> Reads[Feed]:
    """A price source; one of another kind, or finer than prices are, has no aggregator, and marks will refuse it."""
    places, aggregator = FEED.function("decimals"), FEED.function("getAggregator")
    results = yield [places.call(address), aggregator.call(address)]
    if any(isinstance(result, Reverted) for result in results):
        return Feed(address, ZERO_ADDRESS, 1)
    decimals = answered(places, results[0])
    if decimals > _MOST_DECIMALS:
        return Feed(address, ZERO_ADDRESS, 1)
    return Feed(address, answered(aggregator, results[1]), ten_to(decimals))


def _gather(asked: Sequence[tuple[abi.Abi, str, Address]]) -> Reads[list[Any]]:
    functions = [interface.function(name) for interface, name, _ in asked]
    calls: list[Call] = [function.call(to) for function, (_, _, to) in zip(functions, asked, strict=True)]
    results = yield calls
    return [answered(function, result) for function, result in zip(functions, results, strict=True)]


def _check_layout(exchange: Address, balance: Address, orders: Address, config: Address) -> Reads[None]:
    """Storage is read by place: the words before those places must be what the contracts say they hold."""
    expected = [
        (exchange, EXCHANGE_FIRST_SLOT, orders),
        (exchange, EXCHANGE_FIRST_SLOT + 1, balance),
        (exchange, EXCHANGE_FIRST_SLOT + 2, config),
        (balance, BALANCE_FIRST_SLOT, config),
        (balance, BALANCE_FIRST_SLOT + 1, orders),
    ]
    results = yield [Slot(of, Hash(place.to_bytes(32))) for of, place, _ in expected]
    for (of, place, address), result in zip(expected, results, strict=True):
        if word(result) != int.from_bytes(address):
            raise AdapterError(
                f"The storage of {hex_of(of)} is not laid out as Perp Curie 2.8.4 at {place}: it cannot be read."
            )


def _place(mapping: int, key: Address, offset: int) -> Hash:
    """Where a mapping keeps the value of an address (Solidity's storage layout)."""
    start = int.from_bytes(abi.keccak(bytes(12) + key + mapping.to_bytes(32)))
    return Hash(((start + offset) % 2**256).to_bytes(32))


def _required(function: abi.Function, result: Result, decode: Any) -> Any:
    if isinstance(result, Reverted):
        raise AdapterError(
            f"{function.signature} reverted with {hex_of(result.data)}: is this a Perp Curie exchange?"
        )
    return decode(result)
