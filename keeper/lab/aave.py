"""Aave markets of two generations, deployed from their own code and supplied by a lender.

3.0.x is what most forks still run; 3.6 is the latest published. They differ in libraries, in how a reserve is listed
and in e-mode (one category per asset against bitmaps per category); `AaveMarket` hides which is which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from keeper.fixed import RAY
from keeper.lab.actors import Cast
from keeper.lab.artifacts import Artifact, aave_v3_0, aave_v3_6
from keeper.lab.chainlink import Feed
from keeper.lab.node import Contract, Node, Tx
from keeper.lab.tokens import approve_txs, mint_txs
from keeper.types import ZERO_ADDRESS, Address, Token

Version = Literal["3.0", "3.6"]

BASE_DECIMALS = 8
FLASH_PREMIUM_BPS: Mapping[Version, int] = {"3.0": 9, "3.6": 5}
LIQUIDATION_PROTOCOL_FEE_BPS = 1000
_RESERVE_FACTOR_BPS = 1000
_BPS = 10_000
_ADMIN_GAS = 600_000
_SUPPLY_GAS = 500_000

# Interest: optimal use 80 %, 4 % a year there, 75 % more beyond it.
_OPTIMAL_USE_BPS, _SLOPE1_BPS, _SLOPE2_BPS = 8000, 400, 7500


@dataclass(frozen=True, slots=True)
class ReserveSpec:
    """How an asset is listed; `liquidation_bonus_bps` is the excess. A debt ceiling makes it an isolated asset."""

    symbol: str
    ltv_bps: int
    liquidation_threshold_bps: int
    liquidation_bonus_bps: int
    e_mode: int = 0
    borrowable_in_isolation: bool = False
    debt_ceiling_usd: int = 0


@dataclass(frozen=True, slots=True)
class EModeSpec:
    """An efficiency mode: assets that move together may borrow more against each other."""

    category: int
    label: str
    ltv_bps: int
    liquidation_threshold_bps: int
    liquidation_bonus_bps: int


STABLECOINS = EModeSpec(1, "Stablecoins", 9300, 9500, 100)
ETH_CORRELATED = EModeSpec(2, "ETH correlated", 9000, 9300, 100)
E_MODES = (STABLECOINS, ETH_CORRELATED)

RESERVES = (
    ReserveSpec("WETH", 8000, 8250, 500, e_mode=ETH_CORRELATED.category),
    ReserveSpec("USDC", 7700, 8000, 450, e_mode=STABLECOINS.category, borrowable_in_isolation=True),
    ReserveSpec("DAI", 7700, 8000, 400, e_mode=STABLECOINS.category, borrowable_in_isolation=True),
    ReserveSpec("WBTC", 7000, 7500, 625),
    ReserveSpec("USDT", 7500, 7800, 450, e_mode=STABLECOINS.category, borrowable_in_isolation=True),
    ReserveSpec("wstETH", 7500, 7900, 700, e_mode=ETH_CORRELATED.category),
    ReserveSpec("ISO", 5000, 6000, 1000, debt_ceiling_usd=10_000_000),
)


@dataclass(frozen=True, slots=True)
class Reserve:
    """A listed asset and its tokens; `stable_debt` is the zero address since 3.2, `id` its place in bitmaps."""

    token: Token
    id: int
    isolated: bool
    a_token: Address
    variable_debt: Address
    stable_debt: Address


@dataclass(frozen=True, slots=True)
class AaveMarket:
    """One Aave market; `implementations` are what listing another reserve needs."""

    version: Version
    provider: Address
    pool: Address
    configurator: Address
    oracle: Address
    acl: Address
    data_provider: Address
    liquidation_data_provider: Address
    implementations: dict[str, Address]
    reserves: dict[str, Reserve]


async def deploy_aave(node: Node, cast: Cast, version: Version) -> AaveMarket:
    """The protocol without reserves; the deployer holds every administrative role."""
    deployer = cast.deployer.address
    of = _ARTIFACTS[version]
    new = version == "3.6"

    async def deploy(name: str, *arguments: object) -> Address:
        return await node.deploy(deployer, of(name).creation_code(*arguments, libraries=libraries))

    libraries: dict[str, Address] = {}
    for library in _LIBRARIES[version]:
        libraries[library] = await deploy(library)
    provider = Contract(
        node,
        await deploy("PoolAddressesProvider", f"Lab {version}", deployer),
        of("PoolAddressesProvider").abi,
    )
    at = provider.address
    if new:
        strategy = await deploy("DefaultReserveInterestRateStrategyV2", at)
        pool_code = await deploy("PoolInstance", at, strategy)
    else:
        ray = RAY // _BPS
        curve = (_OPTIMAL_USE_BPS * ray, 0, _SLOPE1_BPS * ray, _SLOPE2_BPS * ray)
        # The stable rate is never borrowed; its parameters only have to be there.
        strategy = await deploy(
            "DefaultReserveInterestRateStrategy",
            at,
            *curve,
            200 * ray,
            7500 * ray,
            100 * ray,
            800 * ray,
            2000 * ray,
        )
        pool_code = await deploy("Pool", at)
    configurator_code = await deploy("PoolConfiguratorInstance" if new else "PoolConfigurator")
    oracle = await deploy("AaveOracle", at, [], [], ZERO_ADDRESS, ZERO_ADDRESS, 10**BASE_DECIMALS)
    await provider.send(deployer, "setPriceOracle", oracle)
    await provider.send(deployer, "setACLAdmin", deployer)
    acl = await deploy("ACLManager", at)
    await provider.send(deployer, "setACLManager", acl)
    for role in ("addPoolAdmin", "addEmergencyAdmin", "addRiskAdmin", "addAssetListingAdmin"):
        await Contract(node, acl, of("ACLManager").abi).send(deployer, role, deployer)
    await provider.send(deployer, "setPoolImpl", pool_code)
    await provider.send(deployer, "setPoolConfiguratorImpl", configurator_code)
    pool, configurator = await provider.read("getPool"), await provider.read("getPoolConfigurator")
    data_provider = await deploy("AaveProtocolDataProvider", at)
    await provider.send(deployer, "setPoolDataProvider", data_provider)
    if new:
        implementations = {
            "a_token": await deploy("ATokenInstance", pool, ZERO_ADDRESS, cast.treasury.address),
            "variable_debt": await deploy("VariableDebtTokenInstance", pool, ZERO_ADDRESS),
            "strategy": strategy,
        }
    else:
        implementations = {
            "a_token": await deploy("AToken", pool),
            "variable_debt": await deploy("VariableDebtToken", pool),
            "stable_debt": await deploy("StableDebtToken", pool),
            "strategy": strategy,
        }
    market = AaveMarket(
        version=version,
        provider=at,
        pool=pool,
        configurator=configurator,
        oracle=oracle,
        acl=acl,
        data_provider=data_provider,
        liquidation_data_provider=await deploy("LiquidationDataProvider", pool, at) if new else ZERO_ADDRESS,
        implementations=implementations,
        reserves={},
    )
    update_premium = "updateFlashloanPremium" if new else "updateFlashloanPremiumTotal"
    await configurator_of(node, market).send(deployer, update_premium, FLASH_PREMIUM_BPS[version])
    return market


async def list_reserves(
    node: Node,
    cast: Cast,
    market: AaveMarket,
    tokens: Mapping[str, Token],
    feeds: Mapping[str, Feed],
    specs: Sequence[ReserveSpec],
    e_modes: Sequence[EModeSpec] = (),
) -> AaveMarket:
    """List assets with their feeds and parameters; the market with its new reserves."""
    deployer = cast.deployer.address
    configurator = configurator_of(node, market)
    listed = [tokens[spec.symbol] for spec in specs]
    oracle = Contract(node, market.oracle, _ARTIFACTS[market.version]("AaveOracle").abi)
    await oracle.send(
        deployer,
        "setAssetSources",
        [token.address for token in listed],
        [feeds[token.symbol].proxy for token in listed],
    )
    for token in listed:
        await configurator.send(deployer, "initReserves", [_listing(cast, market, token)])
    txs = [tx for mode in e_modes for tx in _e_mode(cast, configurator, market.version, mode)]
    for spec in specs:
        txs += _parameters(cast, configurator, market.version, tokens[spec.symbol], spec)
    await node.send_all(txs, configurator.abi)
    reserves = {spec.symbol: await _reserve(node, market, tokens[spec.symbol], spec) for spec in specs}
    return dataclasses.replace(market, reserves=market.reserves | reserves)


async def supply_by_lender(
    node: Node, cast: Cast, market: AaveMarket, amounts_raw: Mapping[str, int]
) -> None:
    """Let the lender supply that much of each asset, so that it can be borrowed and flash-borrowed."""
    lender = cast.lender.address
    txs: list[Tx] = []
    for symbol, amount in amounts_raw.items():
        token = market.reserves[symbol].token
        txs += mint_txs(cast, token, lender, amount)
        txs += await approve_txs(node, token, lender, market.pool, amount)
        txs.append(
            pool_of(node, market).tx(lender, "supply", token.address, amount, lender, 0, gas=_SUPPLY_GAS)
        )
    await node.send_all(txs, pool_of(node, market).abi)


def pool_of(node: Node, market: AaveMarket) -> Contract:
    """The market's Pool with its own generation's interface, errors included."""
    return Contract(node, market.pool, _ARTIFACTS[market.version](_POOL[market.version]).abi)


def configurator_of(node: Node, market: AaveMarket) -> Contract:
    """The market's PoolConfigurator: every parameter, and the pauses."""
    return Contract(node, market.configurator, _ARTIFACTS[market.version](_CONFIGURATOR[market.version]).abi)


def oracle_of(node: Node, market: AaveMarket) -> Contract:
    """The market's AaveOracle."""
    return Contract(node, market.oracle, _ARTIFACTS[market.version]("AaveOracle").abi)


_ARTIFACTS: Mapping[Version, Callable[[str], Artifact]] = {"3.0": aave_v3_0, "3.6": aave_v3_6}
_POOL: Mapping[Version, str] = {"3.0": "Pool", "3.6": "PoolInstance"}
_CONFIGURATOR: Mapping[Version, str] = {"3.0": "PoolConfigurator", "3.6": "PoolConfiguratorInstance"}
# In the order in which they link each other.
_LIBRARIES: Mapping[Version, Sequence[str]] = {
    "3.0": (
        "SupplyLogic",
        "BorrowLogic",
        "LiquidationLogic",
        "BridgeLogic",
        "EModeLogic",
        "PoolLogic",
        "ConfiguratorLogic",
        "FlashLoanLogic",
    ),
    "3.6": (
        "SupplyLogic",
        "BorrowLogic",
        "LiquidationLogic",
        "PoolLogic",
        "ConfiguratorLogic",
        "FlashLoanLogic",
    ),
}


def _listing(cast: Cast, market: AaveMarket, token: Token) -> tuple[object, ...]:
    """`ConfiguratorInputTypes.InitReserveInput` of either generation."""
    use, symbol = market.implementations, token.symbol
    names = (f"Aave {symbol}", f"a{symbol}", f"Aave variable debt {symbol}", f"variableDebt{symbol}")
    if market.version == "3.6":
        rates = b"".join(
            value.to_bytes(32, "big") for value in (_OPTIMAL_USE_BPS, 0, _SLOPE1_BPS, _SLOPE2_BPS)
        )
        return (use["a_token"], use["variable_debt"], token.address, *names, b"", rates)
    return (
        *(use["a_token"], use["stable_debt"], use["variable_debt"], token.decimals, use["strategy"]),
        *(token.address, cast.treasury.address, ZERO_ADDRESS, *names),
        *(f"Aave stable debt {symbol}", f"stableDebt{symbol}", b"\x10"),
    )


def _e_mode(cast: Cast, configurator: Contract, version: Version, mode: EModeSpec) -> list[Tx]:
    bonus = _BPS + mode.liquidation_bonus_bps
    common = (mode.category, mode.ltv_bps, mode.liquidation_threshold_bps, bonus)
    arguments = (*common, mode.label) if version == "3.6" else (*common, ZERO_ADDRESS, mode.label)
    return [configurator.tx(cast.deployer.address, "setEModeCategory", *arguments, gas=_ADMIN_GAS)]


def _parameters(
    cast: Cast, configurator: Contract, version: Version, token: Token, spec: ReserveSpec
) -> list[Tx]:
    asset, bonus = token.address, _BPS + spec.liquidation_bonus_bps
    orders: list[tuple[object, ...]] = [
        ("configureReserveAsCollateral", asset, spec.ltv_bps, spec.liquidation_threshold_bps, bonus),
        ("setReserveBorrowing", asset, True),
        ("setReserveFactor", asset, _RESERVE_FACTOR_BPS),
        ("setReserveFlashLoaning", asset, True),
        ("setLiquidationProtocolFee", asset, LIQUIDATION_PROTOCOL_FEE_BPS),
    ]
    if spec.debt_ceiling_usd:
        orders.append(("setDebtCeiling", asset, spec.debt_ceiling_usd * 100))  # in cents
    if spec.borrowable_in_isolation:
        orders.append(("setBorrowableInIsolation", asset, True))
    if spec.e_mode and version == "3.6":
        orders.append(("setAssetCollateralInEMode", asset, spec.e_mode, True))
        orders.append(("setAssetBorrowableInEMode", asset, spec.e_mode, True))
    elif spec.e_mode:
        orders.append(("setAssetEModeCategory", asset, spec.e_mode))
    return [
        configurator.tx(cast.deployer.address, str(order[0]), *order[1:], gas=_ADMIN_GAS) for order in orders
    ]


async def _reserve(node: Node, market: AaveMarket, token: Token, spec: ReserveSpec) -> Reserve:
    tokens = Contract(node, market.data_provider, _ARTIFACTS[market.version]("AaveProtocolDataProvider").abi)
    a_token, stable_debt, variable_debt = await tokens.read("getReserveTokensAddresses", token.address)
    identity = (await pool_of(node, market).read("getReservesList")).index(token.address)
    return Reserve(token, identity, spec.debt_ceiling_usd > 0, a_token, variable_debt, stable_debt)
