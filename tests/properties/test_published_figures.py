"""Figures that others published of liquidations, derived again from the protocols' own bytecode.

Everything about an account is asked in one call at one block, so that no interest comes between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from keeper.abi import load
from keeper.chain.reads import MULTICALL3, decode_aggregate3, encode_aggregate3
from keeper.fixed import MAX_UINT256, WAD
from keeper.lab.aave import AaveMarket, Version, configurator_of, pool_of
from keeper.lab.actors import account
from keeper.lab.artifacts import aave_v3_6, chainlink
from keeper.lab.chainlink import set_price, set_prices
from keeper.lab.morpho import PRICE_SCALE, BorrowSpec, Morpho, borrow, morpho_of, open_morpho_lab, price_of
from keeper.lab.node import Contract, Tx
from keeper.lab.positions import AccountData, PositionSpec, account_data, liquidate, open_positions
from keeper.lab.tokens import mint_txs
from keeper.lab.uniswap import PoolSpec, open_v3_pool
from keeper.lab.world import Lab
from keeper.types import Address, Call, Path, Result, Reverted
from keeper.venues.uniswap_v3 import pack

_E8: Final = 10**8
_ETHER: Final = 10**18
_USDC: Final = 10**6
_RICH_USD: Final = 10**8
_BORROW_GAS, _SUBMIT_GAS = 800_000, 400_000
_ERC20: Final = load("Erc20")


@dataclass(frozen=True, slots=True)
class Taken:
    """A liquidation: the account before and after, and what the liquidator paid and received."""

    before: AccountData
    after: AccountData
    repaid_raw: int
    seized_raw: int


def _answered(answers: Sequence[Result]) -> list[bytes]:
    """Answers of which none is a revert."""
    found = [answer for answer in answers if not isinstance(answer, Reverted)]
    assert len(found) == len(answers), answers
    return found


def _uint(word: bytes) -> int:
    return int.from_bytes(word)


@dataclass(frozen=True, slots=True)
class Ground:
    """A lab with Morpho."""

    lab: Lab
    morpho: Morpho

    async def at_once(self, *calls: Call) -> list[Result]:
        """Answers of calls that one contract makes one after the other at the head; nothing is kept of them."""
        return decode_aggregate3(await self.lab.node.call(MULTICALL3, encode_aggregate3(calls)), len(calls))

    async def fund(self, *symbols: str) -> None:
        """Give that contract plenty to repay with."""
        world, txs = self.lab.world, list[Tx]()
        for symbol in symbols:
            token = world.tokens[symbol]
            raw = _RICH_USD * _E8 * 10**token.decimals // world.prices_e8[symbol]
            txs += mint_txs(world.cast, token, MULTICALL3, raw)
        await self.lab.node.send_all(txs)

    def act(
        self, market: AaveMarket, who: Address, held: str, owed: str, raw: int = MAX_UINT256
    ) -> list[Call]:
        """Approve and liquidate."""
        tokens = self.lab.world.tokens
        approve, order = (
            _ERC20.function("approve"),
            pool_of(self.lab.node, market).abi.function("liquidationCall"),
        )
        return [
            approve.call(tokens[owed].address, market.pool, MAX_UINT256),
            order.call(market.pool, tokens[held].address, tokens[owed].address, who, raw, False),
        ]

    async def taken(
        self, market: AaveMarket, who: Address, held: str, owed: str, raw: int = MAX_UINT256
    ) -> Taken | str:
        """What liquidating an account would do at the head, or why it reverts."""
        pool = pool_of(self.lab.node, market).abi
        asked = self._balances(held, owed)
        look = pool.function("getUserAccountData").call(market.pool, who)
        answers = await self.at_once(look, *asked, *self.act(market, who, held, owed, raw), look, *asked)
        done = answers[4]
        if isinstance(done, Reverted):
            return str(pool.error(done.data))
        before, held0, owed0, _, _, after, held1, owed1 = _answered(answers)
        data = [AccountData(*pool.function("getUserAccountData").decode(each)) for each in (before, after)]
        return Taken(data[0], data[1], _uint(owed0) - _uint(owed1), _uint(held1) - _uint(held0))

    def _balances(self, *symbols: str) -> list[Call]:
        balance = _ERC20.function("balanceOf")
        return [balance.call(self.lab.world.tokens[symbol].address, MULTICALL3) for symbol in symbols]

    async def rule(self, market: AaveMarket, symbol: str, ltv_bps: int, threshold_bps: int) -> None:
        """Let a reserve count for so much, with a bonus of 5 % of which the protocol keeps nothing."""
        configurator, admin = configurator_of(self.lab.node, market), self.lab.world.cast.deployer.address
        asset = self.lab.world.tokens[symbol].address
        await configurator.send(admin, "configureReserveAsCollateral", asset, ltv_bps, threshold_bps, 10_500)
        await configurator.send(admin, "setLiquidationProtocolFee", asset, 0)


@pytest.fixture(scope="module")
async def shared_ground() -> AsyncIterator[Ground]:
    """One lab for all tests of the file."""
    lab, morpho = await open_morpho_lab("steady")
    async with lab:
        yield Ground(lab, morpho)


@pytest.fixture
async def ground(shared_ground: Ground) -> AsyncIterator[Ground]:
    """The file's lab; whatever a test does to it is undone afterwards."""
    node = shared_ground.lab.node
    snapshot = await node.snapshot()
    yield shared_ground
    await node.revert(snapshot)
    await node.steady_clock()


async def test_the_textbook(ground: Ground) -> None:
    """2 BTC at $68,000 against $110,000 at a threshold of 80 %, bonus 5 %, half of it repaid (Aave 3.0): health .98909,
    .849265 BTC seized, $2,750 gained, health 1.13818 after, unsafe again below $59,744; to be just safe $7,500
    would have done, less than a seventh.
    """
    lab, market, who = ground.lab, ground.lab.world.aave["3.0"], account(21)
    node, feed = lab.node, lab.world.feeds["WBTC"]
    await ground.rule(market, "WBTC", 7_900, 8_000)
    await ground.fund("USDC")
    await set_price(node, feed, 72_000 * _E8)
    spec = PositionSpec(who, {"WBTC": 2 * _E8}, {"USDC": 110_000 * _USDC})
    await open_positions(node, lab.world.cast, market, [spec])
    await set_price(node, feed, 68_000 * _E8)
    taken = await ground.taken(market, who, "WBTC", "USDC")
    assert isinstance(taken, Taken), taken
    assert taken.before.health_factor_wad / WAD == pytest.approx(0.98909, abs=5e-6)
    assert taken.repaid_raw / _USDC == pytest.approx(55_000, abs=0.01)
    assert taken.seized_raw / _E8 == pytest.approx(0.849265, abs=5e-7)
    assert taken.seized_raw / _E8 * 68_000 - taken.repaid_raw / _USDC == pytest.approx(2_750, abs=0.01)
    assert taken.after.health_factor_wad / WAD == pytest.approx(1.13818, abs=5e-6)
    for repaid_usd, is_safe in ((7_499, False), (7_501, True)):
        little = await ground.taken(market, who, "WBTC", "USDC", repaid_usd * _USDC)
        assert isinstance(little, Taken) and (little.after.health_factor_wad >= WAD) is is_safe
    assert taken.repaid_raw / _USDC / 7_500 == pytest.approx(7.3, abs=0.05)
    await liquidate(node, lab.world.cast, market, who, "WBTC", "USDC")
    for price_usd, is_safe in ((59_745, True), (59_744, False)):
        await set_price(node, feed, price_usd * _E8)
        [data] = await account_data(node, market, [who])
        assert (data.health_factor_wad >= WAD) is is_safe


async def test_which_collateral_heals(ground: Ground) -> None:
    """Of several collaterals taking one changes the health factor by r(HF − LT(1 + b))/(D − r) (Aave 3.6): up for one,
    down for the other, though the LTV falls with either; and everything stays covered just while b·r ≤ C − D.
    """
    lab, market, who = ground.lab, ground.lab.world.aave["3.6"], account(22)
    world, node = lab.world, lab.node
    await ground.fund("USDC")
    supply = {"WETH": 25 * _ETHER, "WBTC": 125 * _E8 // 100}  # $50,000 each
    spec = PositionSpec(who, supply, {"USDC": 70_000 * _USDC})
    await open_positions(node, world.cast, market, [spec])
    rules = {"WETH": (0.825, 0.05), "WBTC": (0.75, 0.0625)}

    async def fall(factor: float) -> None:
        await set_prices(node, {world.feeds[each]: int(world.prices_e8[each] * factor) for each in supply})

    await fall(0.7556)
    signs = {}
    for symbol, (threshold, bonus) in rules.items():
        taken = await ground.taken(market, who, symbol, "USDC", 5_000 * _USDC)
        assert isinstance(taken, Taken), taken
        health, after = (each.health_factor_wad / WAD for each in (taken.before, taken.after))
        repaid, debt = taken.repaid_raw / _USDC, taken.before.debt_base / _E8
        change = repaid * (health - threshold * (1 + bonus)) / (debt - repaid)
        assert after - health == pytest.approx(change, abs=1e-8)
        signs[symbol] = change > 0
        assert _ltv(taken.after) < _ltv(taken.before) < 1 / (1 + bonus)
    assert signs == {"WETH": False, "WBTC": True}
    await fall(0.715)
    [data] = await account_data(node, market, [who])
    edge_usd = (data.collateral_base - data.debt_base) / _E8 / rules["WETH"][1]
    for repaid_usd, is_covered in ((edge_usd * 0.999, True), (edge_usd * 1.001, False)):
        taken = await ground.taken(market, who, "WETH", "USDC", int(repaid_usd * _USDC))
        assert isinstance(taken, Taken), taken
        assert (taken.after.collateral_base >= taken.after.debt_base) is is_covered


def _ltv(data: AccountData) -> float:
    return data.debt_base / data.collateral_base


@pytest.mark.parametrize(("of_pool", "published"), [(0.01, 0.9337), (0.05, 0.8658), (0.2, 0.6803)])
async def test_when_a_sale_makes_it_worse(ground: Ground, of_pool: float, published: float) -> None:
    """Where the seized is sold to a constant product pool whose price is the oracle's, a small liquidation makes an
    account of collateral c worse exactly above LTV 1/((1 + b)(1 + 2c/y)), y what the pool has of the debt's token.
    """
    lab, market, y_usd = ground.lab, ground.lab.world.aave["3.6"], 10_000_000
    world, node = lab.world, lab.node
    frontier = 1 / (1.05 * (1 + 2 * of_pool))
    assert frontier == pytest.approx(published, abs=5e-5)
    spec = PoolSpec(("WETH", "DAI"), 100, y_usd, range_factor=1e40)
    pool = await open_v3_pool(node, world.cast, world.uniswap_v3, world.tokens, world.prices_e8, spec)
    await ground.fund("DAI")
    await ground.rule(market, "WETH", 9_400, 9_450)
    worth_usd = of_pool * y_usd
    factors = {account(23): 0.999, account(24): 1.001}
    specs = [
        PositionSpec(
            who,
            {"WETH": int(worth_usd / 2_000 * _ETHER)},
            {"DAI": int(worth_usd * frontier * factor) * _ETHER},
        )
        for who, factor in factors.items()
    ]
    await open_positions(node, world.cast, market, specs)
    await ground.rule(market, "WETH", 5_000, 6_000)  # now either may be liquidated
    quoter = Contract(node, world.uniswap_v3.quoter, load("QuoterV2"))
    weth, dai = (world.tokens[symbol].address for symbol in ("WETH", "DAI"))
    sqrt_before, *_ = await Contract(node, pool.address, load("UniswapV3Pool")).read("slot0")
    for who, factor in factors.items():
        taken = await ground.taken(market, who, "WETH", "DAI", int(worth_usd / 10_000) * _ETHER)
        assert isinstance(taken, Taken), taken
        path = pack(Path((weth, dai), (pool.fee,)))
        _, [sqrt_after], *_ = await quoter.read("quoteExactInput", path, taken.seized_raw)
        fall = (sqrt_after / sqrt_before) ** (2 if weth < dai else -2)
        assert fall < 1
        assert (_ltv(taken.after) / fall > _ltv(taken.before)) is (factor > 1)


@pytest.mark.parametrize(
    ("number", "lltv", "published"),
    [
        (0, 0.86, 1.043841),
        (1, 0.77, 1.074114),
        (2, 0.945, 1.016777),
        (3, 0.915, 1.026167),
        (4, 0.625, 1.126761),
    ],
)
async def test_what_morpho_gives(ground: Ground, number: int, lltv: float, published: float) -> None:
    """Morpho's `liquidate` gives min(1.15, 1/(1 − 0.3(1 − LLTV))) for what is repaid."""
    lab, deployed = ground.lab, ground.morpho
    market, who = deployed.markets[number], account(25)
    assert market.lltv_wad == int(lltv * 1_000) * WAD // 1_000
    await ground.fund(market.loan.symbol)
    held_raw = 100_000 * _E8 * 10**market.collateral.decimals // lab.world.prices_e8[market.collateral.symbol]
    await borrow(lab.node, lab.world, deployed, [BorrowSpec(who, number, held_raw, 9_900)])
    falling = market.collateral.symbol
    await set_price(lab.node, lab.world.feeds[falling], lab.world.prices_e8[falling] * 97 // 100)
    blue = morpho_of(lab.node, deployed).abi.function("liquidate")
    approve = _ERC20.function("approve").call(market.loan.address, deployed.address, MAX_UINT256)
    act = blue.call(deployed.address, market.params, who, held_raw // 10, 0, b"")
    _, done = _answered(await ground.at_once(approve, act))
    seized_raw, repaid_raw = blue.decode(done)
    price = await price_of(lab.node, market)
    factor = seized_raw * price / PRICE_SCALE / repaid_raw
    assert factor == pytest.approx(min(1.15, 1 / (1 - 0.3 * (1 - lltv))), abs=1e-8)
    assert factor == pytest.approx(published, abs=5e-7)


# --- Aave since 3.3 --------------------------------------------------------------------------------------------------

_WETH_USD: Final = 1_600  # after the fall


async def _fallen(
    ground: Ground, specs: Sequence[tuple[Version, PositionSpec]], prices_usd: Mapping[str, int]
) -> None:
    """Let all of these borrow and the prices fall in one block, before any interest: debts are what they say."""
    world, node = ground.lab.world, ground.lab.node
    txs: list[Tx] = []
    for version, spec in specs:
        market = world.aave[version]
        await open_positions(node, world.cast, market, [replace(spec, borrow={})])
        for symbol, raw in spec.borrow.items():
            order = (world.tokens[symbol].address, raw, 2, 0, spec.account)
            txs.append(pool_of(node, market).tx(spec.account, "borrow", *order, gas=_BORROW_GAS))
    for symbol, price_usd in prices_usd.items():
        feed = Contract(node, world.feeds[symbol].aggregator, chainlink("FluxAggregator").abi)
        report = (int(await feed.read("latestRound")) + 1, price_usd * _E8)
        txs.append(feed.tx(world.feeds[symbol].reporter, "submit", *report, gas=_SUBMIT_GAS))
    receipts = await node.send_all(txs)
    assert len({receipt.block_number for receipt in receipts}) == 1


def _weth(usd: float) -> int:
    """So many dollars of WETH after the fall."""
    return round(usd * 10**6) * 10**12 // _WETH_USD


async def test_half_or_all(ground: Ground) -> None:
    """Half of the whole debt is the most only above health .95 and where both the collateral and the debt that are
    named are worth $2,000; else all. Until 3.3 it was half of the debt that is named.
    """
    new, old = (ground.lab.world.aave[version] for version in ("3.6", "3.0"))
    at_95, above_95, debt_2000, less_debt, held_2000, less_held, three, three_old = map(
        account, range(31, 39)
    )
    rest = {"wstETH": 5 * 10**17}
    debts = {"USDC": 3_000 * _USDC, "USDT": 3_000 * _USDC, "DAI": 3_000 * _ETHER}
    specs: list[tuple[Version, PositionSpec]] = [
        ("3.6", PositionSpec(at_95, {"WETH": _weth(9_500)}, {"USDC": 8_250 * _USDC})),
        ("3.6", PositionSpec(above_95, {"WETH": _weth(9_500)}, {"USDC": 8_250 * _USDC - 1})),
        ("3.6", PositionSpec(debt_2000, {"WETH": _weth(2_350)}, {"USDC": 2_000 * _USDC})),
        ("3.6", PositionSpec(less_debt, {"WETH": _weth(2_350)}, {"USDC": 2_000 * _USDC - 1})),
        ("3.6", PositionSpec(held_2000, {"WETH": _weth(2_000), **rest}, {"USDC": 2_650 * _USDC})),
        ("3.6", PositionSpec(less_held, {"WETH": _weth(2_000) - 10**8, **rest}, {"USDC": 2_650 * _USDC})),
        ("3.6", PositionSpec(three, {"WETH": _weth(10_580)}, debts)),
        ("3.0", PositionSpec(three_old, {"WETH": _weth(10_580)}, debts)),
    ]
    await ground.fund("USDC")
    await _fallen(ground, specs, {"WETH": _WETH_USD})

    async def taken(market: AaveMarket, who: Address) -> Taken:
        answer = await ground.taken(market, who, "WETH", "USDC")
        assert isinstance(answer, Taken), answer
        return answer

    whole, half = await taken(new, at_95), await taken(new, above_95)
    assert whole.before.health_factor_wad == 95 * WAD // 100 < half.before.health_factor_wad
    assert (whole.repaid_raw, half.repaid_raw) == (8_250 * _USDC, (8_250 * _USDC - 1) // 2)
    assert (await taken(new, debt_2000)).repaid_raw == 1_000 * _USDC
    assert (await taken(new, less_debt)).repaid_raw == 2_000 * _USDC - 1
    # half would leave less than $1,000 of the collateral, so it is forbidden; a little less collateral is all taken
    assert await ground.taken(new, held_2000, "WETH", "USDC") == "MustNotLeaveDust()"
    assert (await taken(new, less_held)).repaid_raw == pytest.approx(2_000 * _USDC / 1.05, abs=2)
    assert (await taken(new, three)).repaid_raw == 3_000 * _USDC
    assert (await taken(old, three_old)).repaid_raw == 1_500 * _USDC


async def test_what_may_be_left(ground: Ground) -> None:
    """Where something of both sides is left each must be worth $1,000, so that the most may be refused; Aave's own
    LiquidationDataProvider tells what is not.
    """
    market, who = ground.lab.world.aave["3.6"], account(41)
    debts = {"USDC": 2_050 * _USDC, "DAI": 150 * _ETHER}
    await ground.fund("USDC")
    await _fallen(ground, [("3.6", PositionSpec(who, {"WETH": _weth(2_600)}, debts))], {"WETH": _WETH_USD})
    assert await ground.taken(market, who, "WETH", "USDC") == "MustNotLeaveDust()"
    tokens = ground.lab.world.tokens
    provider = Contract(
        ground.lab.node, market.liquidation_data_provider, aave_v3_6("LiquidationDataProvider").abi
    )
    told: Any = await provider.read(
        "getLiquidationInfo(address,address,address)", who, tokens["WETH"].address, tokens["USDC"].address
    )
    advised_raw = told[6]
    taken = await ground.taken(market, who, "WETH", "USDC", advised_raw)
    assert isinstance(taken, Taken), taken
    assert taken.repaid_raw == advised_raw == 1_050 * _USDC
    assert await ground.taken(market, who, "WETH", "USDC", advised_raw + 1) == "MustNotLeaveDust()"


async def test_when_a_deficit_is_burned(ground: Ground) -> None:
    """Bad debt stays while any collateral is left, and becomes the reserve's deficit with the last of it."""
    lab, market, who = ground.lab, ground.lab.world.aave["3.6"], account(42)
    supply = {"wstETH": _ETHER, "USDT": 100 * _USDC}
    await ground.fund("USDC")
    spec = PositionSpec(who, supply, {"USDC": 1_700 * _USDC})
    await _fallen(ground, [("3.6", spec)], {"wstETH": 600})
    pool, usdc = pool_of(lab.node, market).abi, market.reserves["USDC"]
    look = pool.function("getReserveDeficit").call(market.pool, usdc.token.address)
    owed = _ERC20.function("balanceOf").call(usdc.variable_debt, who)
    answers = await ground.at_once(
        *ground.act(market, who, "wstETH", "USDC"),
        look,
        owed,
        *ground.act(market, who, "USDT", "USDC"),
        look,
        owed,
    )
    answered = _answered(answers)
    deficit, left, deficit_after, left_after = (_uint(answered[place]) for place in (2, 3, 6, 7))
    assert deficit == 0 < left
    assert left_after == 0 < deficit_after
    assert deficit_after == pytest.approx(left - 100 * _USDC / 1.045, abs=2)
