"""How an Aave V3 market is found and laid out: addresses, reserves and e-mode categories, read once per reload.

Hidden here: which getters a pool version has and how a reserve's configuration is packed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keeper import abi
from keeper.errors import AdapterError
from keeper.protocols.aave_v3.rules import NEWEST_REVISION, Rules, rules_of
from keeper.seams import Reads, symbol_of
from keeper.types import ZERO_ADDRESS, Address, Call, Result, Reverted, Token, hex_of

PROVIDER: Final = abi.load("AaveAddressesProvider")
POOL: Final = abi.load("AavePool")
ORACLE: Final = abi.load("AaveOracle")
ATOKEN: Final = abi.load("AToken")
FEED: Final = abi.load("ChainlinkFeed")

GET_RESERVE_DATA: Final = POOL.function("getReserveData")
LATEST_ROUND: Final = FEED.function("latestRoundData")

_CATEGORIES: Final = range(1, 256)  # e-mode categories are uint8; 0 is "none"


@dataclass(frozen=True, slots=True)
class ReserveConfig:
    """The packed `ReserveConfigurationMap`, read field by field."""

    data: int

    def _field(self, shift: int, bits: int) -> int:
        return self.data >> shift & ((1 << bits) - 1)

    @property
    def threshold_bps(self) -> int:
        """Liquidation threshold outside e-mode."""
        return self._field(16, 16)

    @property
    def bonus_bps(self) -> int:
        """Aave's liquidation bonus, with the 10 000 it is on top of."""
        return self._field(32, 16)

    @property
    def decimals(self) -> int:
        """Decimals of the reserve's token."""
        return self._field(48, 8)

    @property
    def active(self) -> bool:
        """Whether the reserve works at all."""
        return bool(self._field(56, 1))

    @property
    def paused(self) -> bool:
        """Whether the reserve is paused, which forbids liquidations."""
        return bool(self._field(60, 1))

    @property
    def flash_loans(self) -> bool:
        """Whether the reserve lends for one transaction."""
        return bool(self._field(63, 1))

    @property
    def fee_bps(self) -> int:
        """The protocol's share of the liquidation bonus."""
        return self._field(152, 16)

    @property
    def category(self) -> int:
        """The e-mode category of the reserve (until 3.1)."""
        return self._field(168, 8)

    @property
    def counts_liquidity(self) -> bool:
        """Whether the pool counts the reserve's liquidity itself (meaningful from 3.1 to 3.3)."""
        return bool(self._field(252, 1))


@dataclass(frozen=True, slots=True)
class Reserve:
    """What is fixed about a reserve until its market is loaded again.

    `timed` says whether its price source is an aggregator that tells when a price was set; `grace_until_s` forbids
    liquidations until then.
    """

    id: int
    token: Token
    unit: int
    a_token: Address
    debt_token: Address
    stable_debt_token: Address
    price_source: Address
    timed: bool
    grace_until_s: int


@dataclass(frozen=True, slots=True)
class EMode:
    """An e-mode category; `collateral_bitmap` is by reserve id and empty where a reserve names its category."""

    category: int
    threshold_bps: int
    bonus_bps: int
    price_source: Address
    collateral_bitmap: int


@dataclass(frozen=True, slots=True)
class Market:
    """A loaded market; `reserves` is indexed by reserve id, None where a reserve was dropped."""

    provider: Address
    pool: Address
    configurator: Address
    oracle: Address
    sentinel: Address
    acl_manager: Address
    data_provider: Address
    rules: Rules
    base_decimals: int
    reserves: tuple[Reserve | None, ...]
    emodes: Mapping[int, EMode]
    warnings: tuple[str, ...]

    def listed(self) -> Iterable[Reserve]:
        """Reserves that exist, by rising id."""
        return (reserve for reserve in self.reserves if reserve is not None)

    def reserve(self, reserve_id: int) -> Reserve:
        """A reserve that exists."""
        found = self.reserves[reserve_id] if reserve_id < len(self.reserves) else None
        if found is None:
            raise AdapterError(f"The pool {hex_of(self.pool)} lists no reserve {reserve_id}: load it again.")
        return found


def contracts_of(market: Market) -> dict[str, Address]:
    """Every contract the market is made of, by what it is in it."""
    found = {
        "addresses provider": market.provider,
        "pool": market.pool,
        "configurator": market.configurator,
        "oracle": market.oracle,
        "oracle sentinel": market.sentinel,
        "ACL manager": market.acl_manager,
        "data provider": market.data_provider,
    }
    for reserve in market.listed():
        token = abi.checksum(reserve.token.address)
        found |= {
            f"price source of {token}": reserve.price_source,
            f"aToken of {token}": reserve.a_token,
            f"debt token of {token}": reserve.debt_token,
            f"stable debt token of {token}": reserve.stable_debt_token,
        }
    return {name: address for name, address in found.items() if address != ZERO_ADDRESS}


def answered(function: abi.Function, result: Result) -> Any:
    """The one output of a call that must succeed."""
    if isinstance(result, Reverted):
        raise AdapterError(
            f"{function.signature} reverted with {hex_of(result.data)}: is this an Aave V3 market?"
        )
    return function.one(result)


def load_market(provider: Address) -> Reads[Market]:
    """Read everything that changes only by governance."""
    getters = [
        PROVIDER.function(name)
        for name in (
            *("getPool", "getPoolConfigurator", "getPriceOracle", "getPriceOracleSentinel"),
            *("getACLManager", "getPoolDataProvider"),
        )
    ]
    results = yield [getter.call(provider) for getter in getters]
    pool, configurator, oracle, sentinel, acl_manager, data_provider = map(answered, getters, results)
    if ZERO_ADDRESS in (pool, oracle):
        raise AdapterError(f"The addresses provider {hex_of(provider)} names no pool or no price oracle.")

    asked = [
        (POOL.function("POOL_REVISION"), pool),
        (POOL.function("getReservesList"), pool),
        (ORACLE.function("BASE_CURRENCY_UNIT"), oracle),
        (ORACLE.function("BASE_CURRENCY"), oracle),
    ]
    results = yield [function.call(to) for function, to in asked]
    revision, assets, base_unit, base_currency = (
        answered(function, result) for (function, _), result in zip(asked, results, strict=True)
    )
    if base_currency != ZERO_ADDRESS:
        raise AdapterError(
            f"The market of {hex_of(provider)} counts in {hex_of(base_currency)} instead of dollars: not supported."
        )
    rules, known = rules_of(revision)
    reserves = yield from _load_reserves(rules, pool, oracle, assets)
    emodes = yield from (_load_categories(pool) if rules.category_emode else _load_bitmaps(pool))

    warnings = []
    if not known:
        warnings.append(
            f"The pool's revision {revision} is unknown: it runs under the rules of revision {NEWEST_REVISION} "
            f"(Aave {rules.version}) and only trials tell whether they still hold."
        )
    untimed = [reserve.token.symbol for reserve in reserves if reserve is not None and not reserve.timed]
    if untimed:
        warnings.append(
            f"These price sources tell no time, so their age is not checked: {', '.join(untimed)}."
        )
    return Market(
        provider=provider,
        pool=pool,
        configurator=configurator,
        oracle=oracle,
        sentinel=sentinel if rules.sentinel else ZERO_ADDRESS,
        acl_manager=acl_manager,
        data_provider=data_provider,
        rules=rules,
        base_decimals=len(str(base_unit)) - 1,
        reserves=reserves,
        emodes=emodes,
        warnings=tuple(warnings),
    )


def _load_reserves(
    rules: Rules, pool: Address, oracle: Address, assets: Sequence[Address]
) -> Reads[tuple[Reserve | None, ...]]:
    symbol = ATOKEN.function("symbol")
    source = ORACLE.function("getSourceOfAsset")
    grace = POOL.function("getLiquidationGracePeriod")
    count = len(assets)
    calls = [GET_RESERVE_DATA.call(pool, asset) for asset in assets]
    calls += [symbol.call(asset) for asset in assets]
    calls += [source.call(oracle, asset) for asset in assets]
    if rules.grace_period:
        calls += [grace.call(pool, asset) for asset in assets]
    results = yield calls
    data = [answered(GET_RESERVE_DATA, result) for result in results[:count]]
    symbols = [
        symbol_of(result, asset) for result, asset in zip(results[count : 2 * count], assets, strict=True)
    ]
    sources = [answered(source, result) for result in results[2 * count : 3 * count]]
    graces = [answered(grace, result) for result in results[3 * count :]] or [0] * count
    timed = yield from _probe(sources)

    found: dict[int, Reserve] = {}
    for index, asset in enumerate(assets):
        # ((configuration,), five rates and indices, lastUpdate, id, aToken, stable, variable, ...)
        row = data[index]
        decimals = ReserveConfig(row[0][0]).decimals
        found[row[7]] = Reserve(
            id=row[7],
            token=Token(asset, symbols[index], decimals),
            unit=10**decimals,
            a_token=row[8],
            debt_token=row[10],
            stable_debt_token=row[9] if rules.stable_debt else ZERO_ADDRESS,
            price_source=sources[index],
            timed=timed[index],
            grace_until_s=graces[index],
        )
    return tuple(found.get(i) for i in range(max(found, default=-1) + 1))


def _probe(sources: Sequence[Address]) -> Reads[list[bool]]:
    """Which price sources are aggregators that tell when their answer was set and in how many decimals."""
    decimals = FEED.function("decimals")
    calls: list[Call] = [call for to in sources for call in (LATEST_ROUND.call(to), decimals.call(to))]
    results = yield calls
    return [
        not isinstance(latest, Reverted)
        and len(latest) == 160
        and not isinstance(places, Reverted)
        and len(places) == 32
        for latest, places in zip(results[::2], results[1::2], strict=True)
    ]


def _load_categories(pool: Address) -> Reads[Mapping[int, EMode]]:
    """E-modes until 3.1: each has its own price source; which reserves are in it is in their configuration."""
    read = POOL.function("getEModeCategoryData")
    results = yield [read.call(pool, category) for category in _CATEGORIES]
    emodes = {}
    for category, result in zip(_CATEGORIES, results, strict=True):
        _, threshold_bps, bonus_bps, price_source, _ = answered(read, result)
        if threshold_bps:
            emodes[category] = EMode(category, threshold_bps, bonus_bps, price_source, 0)
    return emodes


def _load_bitmaps(pool: Address) -> Reads[Mapping[int, EMode]]:
    """E-modes since 3.2: each has a bitmap of the reserves that are collateral in it, and no price of its own."""
    configuration = POOL.function("getEModeCategoryCollateralConfig")
    bitmap = POOL.function("getEModeCategoryCollateralBitmap")
    results = yield [configuration.call(pool, category) for category in _CATEGORIES]
    configured = {
        category: answered(configuration, result)
        for category, result in zip(_CATEGORIES, results, strict=True)
    }
    used = [category for category, (_, threshold_bps, _) in configured.items() if threshold_bps]
    results = yield [bitmap.call(pool, category) for category in used]
    return {
        category: EMode(
            category, configured[category][1], configured[category][2], ZERO_ADDRESS, answered(bitmap, result)
        )
        for category, result in zip(used, results, strict=True)
    }
