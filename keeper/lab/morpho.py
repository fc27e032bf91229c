"""Morpho Blue beside a world: its own code, markets of several kinds on the world's feeds, people who lend and borrow.

Rate model and oracle are doubles of our own (`morpho.sol`): npm has neither of those that most markets use. Two of the
markets are on the package's own mocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keeper.abi import checksum, keccak
from keeper.lab.actors import account
from keeper.lab.artifacts import morpho, morpho_double
from keeper.lab.node import Contract, Node, Receipt, Tx
from keeper.lab.tokens import approve_txs, mint_txs
from keeper.lab.world import Addition, Clock, Lab, World, open_lab, prepare, read_addition
from keeper.types import ZERO_ADDRESS, Address, Hash, Token, hex_of

WAD: Final = 10**18
PRICE_SCALE: Final = 10**36
MAX_FEE_WAD: Final = WAD // 4
_E8: Final = 10**8
_LENT_USD: Final = 5_000_000
_LENDER: Final = account(9_200_001)
_FEE_RECIPIENT: Final = account(9_200_002)
_GAS: Final = 600_000


@dataclass(frozen=True, slots=True)
class MarketSpec:
    """A market to open. `irm` is adaptive, mock or none; `oracle` is chainlink, over two feeds where `through` names
    one more, or mock.
    """

    collateral: str
    loan: str
    lltv_wad: int
    irm: str = "adaptive"
    oracle: str = "chainlink"
    fee_wad: int = 0
    through: str | None = None


def _percent(tenths: int) -> int:
    return tenths * WAD // 1_000


# Decimals 18/6, 8/6, 18/18, 18/18, 6/18 and 8/18; every LLTV but one is among those Morpho's owner enabled.
MARKETS: Final = (
    MarketSpec("WETH", "USDC", _percent(860)),
    MarketSpec("WBTC", "USDC", _percent(770), fee_wad=WAD // 10),
    MarketSpec("wstETH", "WETH", _percent(945), fee_wad=MAX_FEE_WAD),
    MarketSpec("WETH", "DAI", _percent(915), irm="mock"),
    MarketSpec("USDC", "WETH", _percent(625), irm="none"),
    MarketSpec("WBTC", "WETH", _percent(385), oracle="mock", fee_wad=WAD // 20),
)


@dataclass(frozen=True, slots=True)
class MorphoMarket:
    """One market as it was opened."""

    id: Hash
    loan: Token
    collateral: Token
    oracle: Address
    irm: Address
    lltv_wad: int

    @property
    def params(self) -> tuple[Any, ...]:
        """What every call names it by."""
        return (self.loan.address, self.collateral.address, self.oracle, self.irm, self.lltv_wad)


@dataclass(frozen=True, slots=True)
class Morpho:
    """Where everything is; markets in the order of their specs."""

    address: Address
    irms: Mapping[str, Address]
    markets: tuple[MorphoMarket, ...]


@dataclass(frozen=True, slots=True)
class BorrowSpec:
    """A position to open: collateral in raw units, and debt as so much of the most it may borrow."""

    account: Address
    market: int
    collateral_raw: int
    of_most_bps: int


def table(deployed: Morpho, world: World, *, listed: bool = True) -> str:
    """Its part of `keeper.toml`, with the world's feeds and, where `listed`, all markets."""
    feeds = ", ".join(
        f'["{checksum(token.address)}", "{checksum(world.feeds[symbol].proxy)}"]'
        for symbol, token in world.tokens.items()
    )
    markets = ", ".join(f'"{hex_of(market.id)}"' for market in deployed.markets) if listed else ""
    return f"""
[[protocols]]
kind = "morpho-blue"
name = "morpho"
morpho = "{checksum(deployed.address)}"
markets = [{markets}]
usd_feeds = [{feeds}]
"""


async def deploy_morpho(node: Node, world: World, specs: Sequence[MarketSpec] = MARKETS) -> Morpho:
    """Morpho with markets of these kinds and a lender in each."""
    deployer = world.cast.deployer.address
    address = await node.deploy(deployer, morpho("Morpho").creation_code(deployer))
    blue = Contract(node, address, morpho("Morpho").abi)
    irms = {
        "adaptive": await node.deploy(deployer, morpho_double("AdaptiveIrm").creation_code()),
        "mock": await node.deploy(deployer, morpho("IrmMock").creation_code()),
        "none": ZERO_ADDRESS,
    }
    for irm in irms.values():
        await blue.send(deployer, "enableIrm", irm)
    for lltv_wad in sorted({spec.lltv_wad for spec in specs}):
        await blue.send(deployer, "enableLltv", lltv_wad)
    await blue.send(deployer, "setFeeRecipient", _FEE_RECIPIENT)
    deployed = Morpho(address, irms, ())
    for spec in specs:
        deployed = await open_market(node, world, deployed, spec)
    return deployed


async def open_market(node: Node, world: World, deployed: Morpho, spec: MarketSpec) -> Morpho:
    """Morpho with one more market, its lender in it."""
    deployer, blue = world.cast.deployer.address, morpho_of(node, deployed)
    loan, collateral = world.tokens[spec.loan], world.tokens[spec.collateral]
    oracle = await _deploy_oracle(node, world, spec)
    params = (loan.address, collateral.address, oracle, deployed.irms[spec.irm], spec.lltv_wad)
    await blue.send(deployer, "createMarket", params)
    market_id = keccak(b"".join(_word(part) for part in params))
    if spec.fee_wad:
        await blue.send(deployer, "setFee", params, spec.fee_wad)
    market = MorphoMarket(market_id, loan, collateral, oracle, params[3], spec.lltv_wad)
    await lend(node, world, deployed, market, _raw(world, spec.loan, _LENT_USD))
    return Morpho(deployed.address, deployed.irms, (*deployed.markets, market))


async def lend(node: Node, world: World, deployed: Morpho, market: MorphoMarket, amount_raw: int) -> None:
    """Let the lender supply so much."""
    await node.set_balances([_LENDER])
    txs = mint_txs(world.cast, market.loan, _LENDER, amount_raw)
    txs += await approve_txs(node, market.loan, _LENDER, deployed.address, amount_raw)
    supply = morpho_of(node, deployed).tx(
        _LENDER, "supply", market.params, amount_raw, 0, _LENDER, b"", gas=_GAS
    )
    await node.send_all([*txs, supply], morpho("Morpho").abi)


async def borrow(node: Node, world: World, deployed: Morpho, specs: Sequence[BorrowSpec]) -> None:
    """Open these positions at the oracles' present prices."""
    await node.set_balances([spec.account for spec in specs])
    blue, txs = morpho_of(node, deployed), list[Tx]()
    for spec in specs:
        market = deployed.markets[spec.market]
        txs += mint_txs(world.cast, market.collateral, spec.account, spec.collateral_raw)
        txs += await approve_txs(node, market.collateral, spec.account, deployed.address, spec.collateral_raw)
        amount = (market.params, spec.collateral_raw, spec.account, b"")
        txs.append(blue.tx(spec.account, "supplyCollateral", *amount, gas=_GAS))
        price = await price_of(node, market)
        most_raw = spec.collateral_raw * price // PRICE_SCALE * market.lltv_wad // WAD
        owed_raw = most_raw * spec.of_most_bps // 10_000
        if owed_raw:
            owed = (market.params, owed_raw, 0, spec.account, spec.account)
            txs.append(blue.tx(spec.account, "borrow", *owed, gas=_GAS))
    await node.send_all(txs, blue.abi)


async def price_of(node: Node, market: MorphoMarket) -> int:
    """What the market's oracle says: raw units of the loan for 10^36 raw units of collateral."""
    return int(await Contract(node, market.oracle, morpho("OracleMock").abi).read("price"))


async def set_oracle(node: Node, world: World, market: MorphoMarket, price: int) -> Receipt:
    """Give a market on the mock oracle another price."""
    contract = Contract(node, market.oracle, morpho("OracleMock").abi)
    return await contract.send(world.cast.deployer.address, "setPrice", price)


def morpho_of(node: Node, deployed: Morpho) -> Contract:
    """Morpho as a contract."""
    return Contract(node, deployed.address, morpho("Morpho").abi)


# --- ready in a moment ------------------------------------------------------------------------------------------------


async def _build(node: Node, world: World) -> tuple[World, Morpho]:
    return world, await deploy_morpho(node, world)


MORPHO: Final = Addition(Morpho, ("morpho",), _build)


async def open_morpho_lab(clock: Clock = "wall") -> tuple[Lab, Morpho]:
    """A running world with Morpho, as `open_lab` opens one."""
    deployed = read_addition(await prepare(addition=MORPHO), MORPHO)
    return await open_lab(addition=MORPHO, clock=clock), deployed


async def _deploy_oracle(node: Node, world: World, spec: MarketSpec) -> Address:
    deployer = world.cast.deployer.address
    loan, collateral = world.tokens[spec.loan], world.tokens[spec.collateral]
    if spec.oracle == "chainlink":
        second = ZERO_ADDRESS if spec.through is None else world.feeds[spec.through].proxy
        base, quote = world.feeds[spec.collateral].proxy, world.feeds[spec.loan].proxy
        sides = (base, second, collateral.decimals, quote, loan.decimals)
        code = morpho_double("ChainlinkOracle").creation_code(*sides)
        return await node.deploy(deployer, code)
    oracle = await node.deploy(deployer, morpho("OracleMock").creation_code())
    worth = world.prices_e8[spec.collateral] * PRICE_SCALE * 10**loan.decimals
    price = worth // (world.prices_e8[spec.loan] * 10**collateral.decimals)
    await Contract(node, oracle, morpho("OracleMock").abi).send(deployer, "setPrice", price)
    return oracle


def _raw(world: World, symbol: str, usd: int) -> int:
    amount_raw: int = usd * _E8 * 10 ** world.tokens[symbol].decimals // world.prices_e8[symbol]
    return amount_raw


def _word(value: int | bytes) -> bytes:
    return value.to_bytes(32) if isinstance(value, int) else bytes(value).rjust(32, b"\0")
