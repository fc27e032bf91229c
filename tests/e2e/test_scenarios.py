"""Situations a keeper meets: each ends in the right liquidation or in a refusal that explain names as well."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from keeper import assembly, commands
from keeper.abi import checksum, keccak, load
from keeper.commands import breakers
from keeper.engine.head import StepReport
from keeper.errors import ChainError
from keeper.fixed import WAD
from keeper.installation import settings_of
from keeper.keys import calldata_of
from keeper.lab.aave import AaveMarket, ReserveSpec, configurator_of, pool_of
from keeper.lab.actors import account
from keeper.lab.anvil import free_port
from keeper.lab.artifacts import chainlink
from keeper.lab.chainlink import latest, set_price, set_prices
from keeper.lab.node import Contract, Tx
from keeper.lab.positions import AccountData, PositionSpec, account_data, open_position, open_positions
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.safe import execute
from keeper.lab.tokens import balance_of
from keeper.lab.uniswap import PoolSpec, drain_pool, move_pool, open_v3_pool
from keeper.lab.world import BASE_FEE_WEI, Lab, World, add_token, open_lab
from keeper.multisig.safe import InnerCall
from keeper.protocols.aave_v3.market import POOL
from keeper.types import GLOBAL_SCOPE, Address, Hash, PositionKey, hex_of
from tests.e2e.line import Line, open_again

ETHER = 10**18
_E8 = 10**8
_DAY_S = 86_400
WHO, OTHER = account(1), account(2)
VERSIONS = ["3.0", "3.6"]
FALLEN = 1_750  # dollars: where a WETH position opened at 110 % has a health factor of 0.9625
HOLDS = 110 * WAD // 100


@dataclass(slots=True)
class Stage:
    """A chain with a keeper set up on it, in a folder of the test's own."""

    lab: Lab
    rig: Rig

    @property
    def world(self) -> World:
        """Where everything is."""
        return self.lab.world

    @property
    def admin(self) -> Address:
        """Who governs the protocols."""
        return self.world.cast.deployer.address

    def configure(self, **values: str) -> None:
        """Change keys of keeper.toml, in the table they are in or else in [limits]."""
        lines = self.rig.config.read_text().splitlines()
        for key, value in values.items():
            found = [number for number, line in enumerate(lines) if line.startswith(f"{key} = ")]
            for number in found:
                lines[number] = f"{key} = {value}"
            if not found:
                lines.insert(lines.index("[limits]") + 1, f"{key} = {value}")
        self.rig.config.write_text("\n".join(lines) + "\n")

    def line(self) -> AbstractAsyncContextManager[Line]:
        """Start the keeper."""
        return open_again(self.lab, self.rig)

    async def borrow(
        self,
        market: str = "3.0",
        supply: Mapping[str, int] | None = None,
        borrow: Mapping[str, int] | None = None,
        *,
        who: Address = WHO,
        health: int | None = HOLDS,
        e_mode: int = 0,
        idle: tuple[str, ...] = (),
    ) -> None:
        """Open a position: 10 WETH against USDC at 1.1 unless told otherwise."""
        spec = PositionSpec(who, supply or {"WETH": 10 * ETHER}, borrow or {"USDC": 1}, health, e_mode, idle)
        await open_position(self.lab.node, self.world.cast, self.world.aave[market], spec)

    async def price(self, symbol: str, dollars: float) -> None:
        """Report a price."""
        await set_price(self.lab.node, self.world.feeds[symbol], int(dollars * _E8))

    async def refresh(self, *besides: str) -> None:
        """Let every feed report its price again, but these."""
        feeds = [feed for symbol, feed in self.world.feeds.items() if symbol not in besides]
        await set_prices(
            self.lab.node, {feed: (await latest(self.lab.node, feed)).price_raw for feed in feeds}
        )

    async def govern(self, market: str, function: str, symbol: str, *values: object) -> None:
        """An order of the market's governance about a reserve."""
        where = self.world.aave[market]
        asset = where.reserves[symbol].token.address
        await configurator_of(self.lab.node, where).send(self.admin, function, asset, *values)

    async def data(self, market: str, who: Address = WHO) -> AccountData:
        """What the market says of an account."""
        [data] = await account_data(self.lab.node, self.world.aave[market], [who])
        return data

    async def explained(self, market: str, who: Address = WHO) -> Explained:
        """What `keeper explain` says of an account on one market."""
        document = await commands.explain(self.rig.config, checksum(who))
        [protocol] = [each for each in document["protocols"] if each["protocol"] == name_of(market)]
        return Explained(protocol, document["history"])


@dataclass(frozen=True, slots=True)
class Explained:
    """One protocol of the document of `keeper explain`."""

    protocol: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def last(self) -> tuple[str, str]:
        """The stage that had the last word, and the word."""
        stage = self.protocol["stages"][-1]
        return stage["stage"], stage["answer"]

    @property
    def numbers(self) -> dict[str, Any]:
        """What the last word was based on."""
        numbers: dict[str, Any] = self.protocol["stages"][-1]["numbers"]
        return numbers

    def answers(self, stage: str) -> list[str]:
        """Everything a stage answered."""
        return [each["answer"] for each in self.protocol["stages"] if each["stage"] == stage]

    def calls(self) -> list[int]:
        """By how many calls each option is carried out."""
        stages = self.protocol["stages"]
        return [each["numbers"]["calls"] for each in stages if each["stage"] == "options"]


def name_of(market: str) -> str:
    """The configured name of a market of the lab."""
    return f"aave-{market.replace('.', '-')}"


def refused(report: StepReport, market: str, who: Address = WHO) -> list[tuple[str, str]]:
    """Stage and reason of every refusal of an account on one market."""
    return [
        (each.stage, each.reason)
        for name, whose, each in report.refused
        if (name, whose) == (name_of(market), who)
    ]


@pytest.fixture(scope="module")
async def rigged(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """One world, on the wall's clock because explain goes by it, with the contracts deployed and set up."""
    async with await open_lab() as lab:
        folder = tmp_path_factory.mktemp("rig")
        yield Stage(lab, await make_rig(lab, folder, Terms(max_head_age_s=3_600)))


@pytest.fixture
async def stage(rigged: Stage, tmp_path: Path) -> AsyncIterator[Stage]:
    """The keeper's files for this test alone, and the chain as it was afterwards."""
    node, rig = rigged.lab.node, rigged.rig
    snapshot = await node.snapshot()
    await node.set_base_fee(BASE_FEE_WEI)
    for name in ("keeper.toml", ".env"):
        shutil.copy(rig.folder / name, tmp_path / name)
    yield Stage(rigged.lab, dataclasses.replace(rig, folder=tmp_path, config=tmp_path / "keeper.toml"))
    await node.mine_on_demand()  # what is pending must not be mined by the way
    await node.drop_pending()
    await node.revert(snapshot)
    await node.drop_pending()
    await node.mine_each_transaction()
    await node.wall_clock()


async def settle(line: Line) -> list[StepReport]:
    """Handle heads until one comes to nothing; nothing is mined while a head is handled."""
    node = line.lab.node
    await node.mine_on_demand()
    reports = await line.steps()
    await node.mine_each_transaction()
    return reports


async def _liquidated(line: Line, market: str, who: Address = WHO) -> StepReport:
    """The next head sends, what it sends settles, and the treasury gains what is booked; the first head's report."""
    profit = line.lab.world.tokens["USDC"].address
    before_raw, booked_raw = await line.treasury_raw(), line.ledger.gross_profit_raw(profit)
    first, *_ = await settle(line)
    assert len(first.sent) >= 1, first.refused
    settled = [entry for entry in line.booked("settled") if entry.account == checksum(who)]
    assert [entry.protocol for entry in settled] == [name_of(market)] * len(settled) and settled
    assert not line.booked("reverted")
    assert await line.treasury_raw() - before_raw == line.ledger.gross_profit_raw(profit) - booked_raw > 0
    return first


async def _refused(stage: Stage, line: Line, market: str, reason: tuple[str, str]) -> Explained:
    """Nothing is sent for this reason, it is on record, and explain names it."""
    report = await line.step()
    assert not report.sent
    assert refused(report, market) == [reason]
    [entry] = [one for one in line.booked("refusal") if one.protocol == name_of(market)]
    assert (entry.body["stage"], entry.body["reason"]) == reason and entry.account == checksum(WHO)
    explained = await stage.explained(market)
    assert explained.last == reason
    assert explained.history[0]["kind"] == "refusal" and explained.history[0]["body"]["reason"] == reason[1]
    return explained


# --- the plain case, and its opposite --------------------------------------------------------------------------------


@pytest.mark.parametrize("market", VERSIONS)
async def test_explain_says_what_the_next_head_does(stage: Stage, market: str) -> None:
    """Healthy, then liquidatable with everything passed, then healthy again with its history."""
    await stage.borrow(market)
    async with stage.line() as line:
        assert (await line.step()).liquidatable == 0
        assert (await stage.explained(market)).last == ("assess", "healthy")
        await stage.price("WETH", FALLEN)
        before = await stage.explained(market)
        assert before.last == ("clear", "would_send")
        assert before.answers("book") == ["selected"] and before.answers("options") == ["allowed"] * 2
        assert before.calls() == [1, 2]
        assert (
            int(before.protocol["position"]["health_factor_wad"])
            == (await stage.data(market)).health_factor_wad
        )
        await _liquidated(line, market)
        after = await stage.explained(market)
        assert after.last == ("assess", "healthy")
        assert [entry["kind"] for entry in after.history] == ["settled", "sent", "signed", "intent"]
        [settled] = line.booked("settled")
        assert int(settled.body["profit_raw"]) >= int(
            before.protocol["stages"][-2]["numbers"]["min_profit_raw"]
        )


async def test_an_account_that_recovers_before_the_step_is_left(stage: Stage) -> None:
    """Below 1 for two blocks, healthy at the head: nothing is sent, and explain sees no reason to."""
    await stage.borrow()
    async with stage.line() as line:
        await stage.price("WETH", FALLEN)
        assert (await stage.data("3.0")).health_factor_wad < WAD
        await stage.price("WETH", 2_000)
        report = await line.step()
        assert report.liquidatable == 0 and not report.sent and not report.refused
        assert (await stage.explained("3.0")).last == ("assess", "healthy")


async def test_a_stranger_has_no_debt(stage: Stage) -> None:
    """An account that never borrowed is explained as such, and a lender without debt too."""
    for who in (account(9), stage.world.cast.lender.address):
        assert (await stage.explained("3.6", who)).last == ("discover", "no_debt")


async def test_one_owner_on_both_markets_is_two_positions(stage: Stage) -> None:
    """Both are liquidated at one head, with consecutive nonces, and booked apart."""
    for market in VERSIONS:
        await stage.borrow(market)
    async with stage.line() as line:
        await stage.price("WETH", FALLEN)
        report, *_ = await settle(line)
        assert report.liquidatable == 2
        assert [sent.nonce for sent in report.sent] == [0, 1]
        assert sorted(entry.protocol for entry in line.booked("settled")) == sorted(map(name_of, VERSIONS))
        for market in VERSIONS:
            assert (await stage.data(market)).health_factor_wad >= WAD


# --- tokens, reserves, accounts of every kind ------------------------------------------------------------------------


@pytest.mark.parametrize("market", VERSIONS)
@pytest.mark.parametrize("role", ["debt", "collateral", "both"])
async def test_a_token_without_return_values(stage: Stage, market: str, role: str) -> None:
    """USDT returns nothing from transfer and approve, and refuses to change an approval that is not zero."""
    supply = {"WETH": 10 * ETHER} if role == "debt" else {"USDT": 20_000 * 10**6}
    owed = {"debt": "USDT", "collateral": "WETH", "both": "USDT"}[role]
    await stage.borrow(market, supply, {owed: 1} | ({"WETH": 1} if role == "both" else {}))
    async with stage.line() as line:
        await stage.price("WETH", FALLEN if role == "debt" else 2_600)
        assert (await stage.explained(market)).last == ("clear", "would_send")
        await _liquidated(line, market)


@pytest.mark.parametrize("market", VERSIONS)
async def test_collateral_that_is_not_enabled_is_not_seized(stage: Stage, market: str) -> None:
    """Idle supply counts for nothing: not in the health, not as an option, and it is all there afterwards."""
    supply = {"WETH": 10 * ETHER, "WBTC": _E8}
    await stage.borrow(market, supply, idle=("WBTC",))
    wbtc = stage.world.aave[market].reserves["WBTC"].a_token
    balance = Contract(stage.lab.node, wbtc, load("Erc20"))
    held_raw = await balance.read("balanceOf", WHO)
    async with stage.line() as line:
        await stage.price("WETH", 1_400)
        explained = await stage.explained(market)
        assert explained.answers("options") == ["allowed"]
        assert explained.protocol["position"]["collateral_usd"] == "14000.00000000"
        await _liquidated(line, market)
        assert await balance.read("balanceOf", WHO) == held_raw > 0


async def test_e_mode_accounts_go_by_their_category(stage: Stage) -> None:
    """wstETH against WETH: healthy at the category's threshold, liquidated at its small bonus when the pair parts."""
    for market in VERSIONS:
        await stage.borrow(market, {"wstETH": 10 * ETHER}, {"WETH": 1}, health=1_035 * 10**15, e_mode=2)
    async with stage.line() as line:
        # outside its e-mode (threshold 79 % instead of 93 %) it would be far below 1 already
        assert (await line.step()).liquidatable == 0
        await stage.price("wstETH", 2_300)
        for market in VERSIONS:
            explained = await stage.explained(market)
            assert explained.last == ("clear", "would_send")
            health = explained.protocol["position"]["health_factor_wad"]
            assert int(health) == (await stage.data(market)).health_factor_wad < WAD
        first, *_ = await settle(line)
        assert len(first.sent) == 2
        assert len(line.booked("settled")) >= 2 and not line.booked("reverted")


@pytest.mark.parametrize("market", VERSIONS)
async def test_isolation_accounts(stage: Stage, market: str) -> None:
    """An isolated collateral is seized like any other."""
    await stage.borrow(market, {"ISO": 2_000 * ETHER}, {"USDC": 1}, health=125 * WAD // 100)
    async with stage.line() as line:
        assert (await line.step()).liquidatable == 0
        await stage.price("ISO", 7.5)
        assert (await stage.explained(market)).last == ("clear", "would_send")
        await _liquidated(line, market)


@pytest.mark.parametrize("market", VERSIONS)
async def test_an_account_under_water_is_liquidated_where_it_pays(stage: Stage, market: str) -> None:
    """All its collateral is seized at a profit; what nobody can collect any more is refused for that reason."""
    await stage.borrow(market)
    async with stage.line() as line:
        await stage.price("WETH", 1_300)
        before = await stage.data(market)
        assert before.collateral_base < before.debt_base
        await _liquidated(line, market)
        after = await stage.data(market)
        assert after.collateral_base == 0
        if market == "3.0":
            assert after.debt_base > 0, "bad debt stays with the account until 3.3"
            assert (await stage.explained(market)).last == ("options", "no_collateral")
            assert refused(await line.step(), market) == [("options", "no_collateral")]
        else:
            assert after.debt_base == 0, "the pool takes it over as a deficit since 3.3"
            assert (await stage.explained(market)).last == ("discover", "no_debt")


@pytest.mark.slow
async def test_twenty_more_reserves_as_collateral(stage: Stage) -> None:
    """Health stays exact at 21 collaterals on both versions, and the one that can be sold is seized."""
    world, node = stage.world, stage.lab.node
    symbols = [f"T{number:02}" for number in range(20)]
    for number, symbol in enumerate(symbols):
        spec = ReserveSpec(symbol, 5_000 + 50 * number, 6_000 + 60 * number, 500 + 10 * number)
        world = await add_token(node, world, symbol, 6 + number % 13, 1 + number, spec)
    supply = {symbol: 100 * 10 ** world.tokens[symbol].decimals for symbol in symbols}
    position = PositionSpec(WHO, {"WETH": 10 * ETHER, **supply}, {"USDC": 3, "DAI": 1}, 135 * WAD // 100)
    for market in VERSIONS:
        await open_position(node, world.cast, world.aave[market], position)
    async with stage.line() as line:
        assert (await line.step()).liquidatable == 0
        await stage.price("WETH", 900)
        for market in VERSIONS:
            explained = await stage.explained(market)
            assert explained.last == ("clear", "would_send")
            assert set(explained.answers("options")) == {"allowed"} and explained.calls().count(1) == 42
            health = explained.protocol["position"]["health_factor_wad"]
            assert int(health) == (await stage.data(market)).health_factor_wad < WAD
        first, *_ = await settle(line)
        assert len(first.sent) == 2
        assert {entry.protocol for entry in line.booked("settled")} == set(map(name_of, VERSIONS))


# --- markets ---------------------------------------------------------------------------------------------------------


async def test_a_route_by_two_hops_where_the_direct_pool_is_empty(stage: Stage) -> None:
    """WBTC to USDC by way of WETH."""
    world, node = stage.world, stage.lab.node
    wbtc, usdc = world.tokens["WBTC"], world.tokens["USDC"]
    await drain_pool(node, world.cast, world.uniswap_v3, world.uniswap_v3.pool(wbtc, usdc, 3000), 10_000)
    await stage.borrow("3.6", {"WBTC": _E8})
    async with stage.line() as line:
        await stage.price("WBTC", 35_000)
        report = await _liquidated(line, "3.6")
        two_hops = wbtc.address + (500).to_bytes(3) + world.tokens["WETH"].address
        assert two_hops in calldata_of(report.sent[0].raw)


async def test_no_route_is_left(stage: Stage) -> None:
    """With every pool of the collateral empty nothing can be sold, and the refusal names the two tokens."""
    world, node = stage.world, stage.lab.node
    wbtc = world.tokens["WBTC"]
    for pool in world.uniswap_v3.pools:
        if wbtc in (pool.token0, pool.token1):
            await drain_pool(node, world.cast, world.uniswap_v3, pool, 10_000)
    await stage.borrow("3.6", {"WBTC": _E8})
    async with stage.line() as line:
        await stage.price("WBTC", 35_000)
        explained = await _refused(stage, line, "3.6", ("plan", "no_route"))
        assert explained.numbers["token_in"] == checksum(wbtc.address)
        assert explained.numbers["token_out"] == checksum(world.tokens["USDC"].address)
        assert explained.numbers["routes"]["no_liquidity"] >= 2


@pytest.mark.parametrize(("market_price", "reason"), [(1_680, "over_slippage"), (1_500, "unprofitable")])
async def test_a_market_far_from_the_oracle(stage: Stage, market_price: int, reason: str) -> None:
    """What selling would cost is over the slippage allowed, or more than the bonus; both say by how much."""
    await stage.borrow()
    async with stage.line() as line:
        await _move_weth_usdc(stage, market_price)
        await stage.price("WETH", FALLEN)
        explained = await _refused(stage, line, "3.0", ("plan", reason))
        if reason == "over_slippage":
            assert int(explained.numbers["excess_usd_e8"]) > 0
            assert int(explained.numbers["net_raw"]) >= int(explained.numbers["min_profit_raw"])
        else:
            assert int(explained.numbers["net_raw"]) < int(explained.numbers["min_profit_raw"])
        await _move_weth_usdc(stage, FALLEN)
        await _liquidated(line, "3.0")


async def _move_weth_usdc(stage: Stage, dollars: int) -> None:
    world = stage.world
    for fee in (500, 3000, 10_000):
        pool = world.uniswap_v3.pool(world.tokens["WETH"], world.tokens["USDC"], fee)
        prices = {"WETH": dollars * _E8, "USDC": _E8}
        await move_pool(
            stage.lab.node,
            world.cast,
            world.uniswap_v3,
            pool,
            prices[pool.token0.symbol],
            prices[pool.token1.symbol],
        )


async def test_dust_is_not_worth_its_gas(stage: Stage) -> None:
    """A two-dollar position: unprofitable, with the profit that was possible beside the one that is wanted."""
    for market in VERSIONS:
        await stage.borrow(market, {"WETH": ETHER // 1000})
    async with stage.line() as line:
        await stage.price("WETH", FALLEN)
        report = await line.step()
        assert not report.sent
        for market in VERSIONS:
            assert refused(report, market) == [("plan", "unprofitable")]
            explained = await stage.explained(market)
            assert explained.last == ("plan", "unprofitable")
            assert int(explained.numbers["min_profit_raw"]) == 10**6
            assert 0 < int(explained.numbers["bound_raw"]) < int(explained.numbers["gas_cost_raw"]) + 10**6


# --- flash loans -----------------------------------------------------------------------------------------------------


async def _withdraw_usdc(stage: Stage, market: str) -> None:
    """The lender takes every USDC that the pool still has."""
    where, lender = stage.world.aave[market], stage.world.cast.lender.address
    usdc = where.reserves["USDC"]
    left_raw = await balance_of(stage.lab.node, usdc.token, usdc.a_token)
    await pool_of(stage.lab.node, where).send(lender, "withdraw", usdc.token.address, left_raw, lender)


async def test_one_lender_gone_the_other_is_used(stage: Stage) -> None:
    """3.0 has no USDC left to lend, so its position is liquidated with a loan of 3.6."""
    await stage.borrow("3.0")
    async with stage.line() as line:
        await _withdraw_usdc(stage, "3.0")
        await stage.price("WETH", FALLEN)
        await _liquidated(line, "3.0")
        [intent] = line.booked("intent")
        assert intent.body["flash_source"] == checksum(stage.world.aave["3.6"].pool)


@pytest.mark.parametrize("how", ["withdrawn", "disabled"])
async def test_nobody_lends(stage: Stage, how: str) -> None:
    """Every lender withdrew, or every reserve has flash loans switched off: refused with what was needed."""
    await stage.borrow("3.0")
    async with stage.line() as line:
        for market in VERSIONS:
            if how == "withdrawn":
                await _withdraw_usdc(stage, market)
            else:
                await stage.govern(market, "setReserveFlashLoaning", "USDC", False)
        await stage.price("WETH", FALLEN)
        explained = await _refused(stage, line, "3.0", ("plan", "no_flash_liquidity"))
        assert int(explained.numbers["available_raw"]) == 0 < int(explained.numbers["needed_raw"])


# --- prices ----------------------------------------------------------------------------------------------------------


async def test_a_stale_feed_stops_who_depends_on_it(stage: Stage) -> None:
    """25 hours without WBTC's feed: its holder is refused, everybody else is liquidated."""
    await stage.borrow("3.0", {"WBTC": _E8 // 2})
    await stage.borrow("3.0", who=OTHER)
    await stage.borrow("3.6", who=OTHER)
    async with stage.line() as line:
        await stage.price("WBTC", 30_000)
        await stage.lab.node.advance(90_100)
        await stage.refresh("WBTC")
        await stage.price("WETH", FALLEN)
        report, *_ = await settle(line)
        assert refused(report, "3.0") == [("assess", "stale_price")]
        assert len(report.sent) == 2
        assert {entry.account for entry in line.booked("settled")} == {checksum(OTHER)}
        explained = await stage.explained("3.0")
        assert explained.last == ("assess", "stale_price")
        assert explained.numbers["token"] == "WBTC" and int(explained.numbers["age_s"]) > 90_000
        await stage.refresh()
        await _liquidated(line, "3.0")


async def test_a_protocol_has_its_own_patience(stage: Stage) -> None:
    """An hour-old price is too old for 3.0 as configured; 3.6 goes on."""
    text = stage.rig.config.read_text()
    first = text.index("max_price_age_s = ")
    patient = text[first : text.index("\n", first)]
    stage.rig.config.write_text(text.replace(patient, "max_price_age_s = 1800", 1))
    for market in VERSIONS:
        await stage.borrow(market)
    async with stage.line() as line:
        await stage.price("WETH", FALLEN)
        await stage.lab.node.advance(3_600)
        report, *_ = await settle(line)
        assert [(name, each.stage, each.reason) for name, _, each in report.refused] == [
            ("aave-3-0", "marks", "stale_price")
        ]
        assert (await stage.explained("3.0")).last == ("marks", "stale_price")
        assert len(report.sent) == 1
        assert [entry.protocol for entry in line.booked("settled")] == ["aave-3-6"]


async def test_without_a_price_for_gas_nothing_is_planned(stage: Stage) -> None:
    """A day and an hour of silence of every feed stops everything; with the feeds back it goes on."""
    stage.configure(max_price_age_s="1000000")
    await stage.borrow("3.6")
    async with stage.line() as line:
        await stage.price("WETH", FALLEN)
        await stage.lab.node.advance(90_100)
        explained = await _refused(stage, line, "3.6", ("plan", "stale_price"))
        assert explained.numbers["feed"] == "native_usd_feed"
        await stage.refresh()
        await _liquidated(line, "3.6")


async def test_a_price_of_zero_is_no_price(stage: Stage) -> None:
    """Who holds the token cannot be judged and is refused; who does not hold it is liquidated all the same."""
    await stage.borrow("3.0", {"WBTC": _E8})
    await stage.borrow("3.0", who=OTHER)
    async with stage.line() as line:
        await _zero_price(stage, "WBTC")
        await stage.price("WETH", FALLEN)
        report, *_ = await settle(line)
        assert refused(report, "3.0") == [("assess", "missing_price")]
        assert len(report.sent) == 1
        explained = await stage.explained("3.0")
        assert explained.last == ("assess", "missing_price") and explained.numbers == {"token": "WBTC"}
        assert {entry.account for entry in line.booked("settled")} == {checksum(OTHER)}


async def _zero_price(stage: Stage, symbol: str) -> None:
    """Write the answer of the newest round, wherever the aggregator keeps its rounds."""
    node, feed = stage.lab.node, stage.world.feeds[symbol]
    answer = await latest(node, feed)
    round_id = int(await Contract(node, feed.aggregator, chainlink("FluxAggregator").abi).read("latestRound"))
    for slot in range(64):
        place = int.from_bytes(keccak(round_id.to_bytes(32) + slot.to_bytes(32)))
        if await node.storage(feed.aggregator, place) == answer.price_raw:
            await node.set_storage([(feed.aggregator, place, 0)])
            assert (await latest(node, feed)).price_raw == 0
            return
    raise AssertionError(f"the aggregator of {symbol} keeps its rounds elsewhere")


# --- governance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("market", VERSIONS)
async def test_a_paused_reserve_waits_and_a_frozen_one_does_not(stage: Stage, market: str) -> None:
    """Aave forbids liquidations with a paused reserve on either side; freezing only stops new business."""
    await stage.borrow(market)
    async with stage.line() as line:
        await stage.price("WETH", FALLEN)
        await stage.govern(market, "setReservePause(address,bool)", "WETH", True)
        explained = await _refused(stage, line, market, ("options", "reserve_paused"))
        assert explained.numbers == {"token": "WETH"}
        await stage.govern(market, "setReservePause(address,bool)", "WETH", False)
        for symbol in ("WETH", "USDC"):
            await stage.govern(market, "setReserveFreeze", symbol, True)
        if market == "3.6":
            await stage.lab.node.advance(1)
        await _liquidated(line, market)


async def test_a_grace_period_is_waited_out(stage: Stage) -> None:
    """3.1 and later: after a pause a reserve may forbid liquidations for a while more."""
    await stage.borrow("3.6")
    async with stage.line() as line:
        await stage.price("WETH", FALLEN)
        await stage.govern("3.6", "setReservePause(address,bool)", "USDC", True)
        await stage.govern("3.6", "setReservePause(address,bool,uint40)", "USDC", False, 600)
        explained = await _refused(stage, line, "3.6", ("options", "grace_period"))
        until_s = int(explained.numbers["until_s"])
        head = await stage.lab.node.head()
        assert 0 < until_s - head.timestamp_s <= 600
        await stage.lab.node.advance(until_s - head.timestamp_s + 1)
        await _liquidated(line, "3.6")


@pytest.mark.parametrize("market", VERSIONS)
async def test_a_lower_threshold_makes_an_account_liquidatable(stage: Stage, market: str) -> None:
    """Governance cuts WETH's threshold: no price moves and no account acts, and the next head liquidates."""
    await stage.borrow(market)
    async with stage.line() as line:
        assert (await line.step()).liquidatable == 0
        await stage.govern(market, "configureReserveAsCollateral", "WETH", 6_000, 7_000, 10_500)
        assert (await stage.data(market)).health_factor_wad < WAD
        await _liquidated(line, market)


async def test_a_reserve_listed_while_running(stage: Stage) -> None:
    """It is loaded, a position in it found, refused until the Safe gives the Liquidator its feed, then liquidated."""
    node = stage.lab.node
    async with stage.line() as line:
        assert (await line.step()).liquidatable == 0
        world = await add_token(node, stage.world, "NEW", 9, 50, ReserveSpec("NEW", 6_000, 7_000, 800))
        spec = PoolSpec(("NEW", "USDC"), 3000, 5_000_000)
        await open_v3_pool(node, world.cast, world.uniswap_v3, world.tokens, world.prices_e8, spec)
        assert (await line.step()).liquidatable == 0
        position = PositionSpec(WHO, {"NEW": 1_000 * 10**9}, {"USDC": 1}, 125 * WAD // 100)
        await open_position(node, world.cast, world.aave["3.6"], position)
        await set_price(node, world.feeds["NEW"], 38 * _E8)
        explained = await _refused(stage, line, "3.6", ("trial", "reverts"))
        assert "FeedMissing" in explained.numbers["error"]
        adapter = line.watch.adapters["aave-3-6"]
        assert PositionKey("aave-3-6", adapter.market, WHO) in set(line.watch.book)
        needs = await assembly.needs(line.parts, world.cast.operator.address)
        calls = [
            InnerCall(setting.call.to, setting.call.data)
            for setting in settings_of(stage.rig.liquidator, needs)
            if setting.token == world.tokens["NEW"].address
        ]
        await execute(node, world.safe, *calls)
        await _liquidated(line, "3.6")


async def test_an_unknown_revision_of_the_pool_is_a_standing_warning(stage: Stage) -> None:
    """The pool is upgraded while the keeper runs: it stops, and once the code is acknowledged it goes on by the newest
    rules it knows, and says so from then on.
    """
    await stage.borrow("3.6")
    pool = checksum(stage.world.aave["3.6"].pool)
    async with stage.line() as line:
        assert not line.watch.adapters["aave-3-6"].warnings()
        await _upgrade(stage, stage.world.aave["3.6"], 77)
        await stage.price("WETH", FALLEN)
        report = await line.step()
        assert not report.sent and refused(report, "3.6") == [("clear", "code_changed")]
        [tripped] = line.booked("tripped")
        code_hash = tripped.body["numbers"]["now"]["runs"]
    breakers.acknowledged(stage.rig.config, "aave-3-6", pool, code_hash, "read by the test")
    async with stage.line() as line:
        await _liquidated(line, "3.6")
        [warning] = line.watch.adapters["aave-3-6"].warnings()
        assert "revision 77 is unknown" in warning
        booked = [entry for entry in line.booked("warning") if "revision 77" in entry.body["detail"]]
        assert [entry.protocol for entry in booked] == ["aave-3-6"], "said once, where it is looked for"


async def _upgrade(stage: Stage, market: AaveMarket, revision: int) -> None:
    """Put code before the pool's own that answers POOL_REVISION and lets the proxy initialise it a second time."""
    node = stage.lab.node
    implementation_slot = int.from_bytes(keccak(b"eip1967.proxy.implementation")) - 1
    old = (await node.storage(market.pool, implementation_slot)).to_bytes(20)
    asked = POOL.function("POOL_REVISION").selector
    again = pool_of(node, market).abi.function("initialize").selector
    code = b"".join(
        (
            bytes.fromhex("5f3560e01c"),  # the selector
            b"\x80\x63" + asked + bytes.fromhex("14604657"),
            b"\x80\x63" + again + bytes.fromhex("14604f57"),
            bytes.fromhex("365f5f37 5f5f365f73") + old + bytes.fromhex("5af4"),  # else the old code decides
            bytes.fromhex("3d5f5f3e 604257 3d5ffd 5b3d5ff3"),
            b"\x5b\x60" + bytes([revision]) + bytes.fromhex("5f5260205ff3"),
            bytes.fromhex("5b00"),
        )
    )
    shim = account(4_000)
    await node.set_code({shim: code})
    await node.send(Tx(stage.admin, market.provider, keccak(b"setPoolImpl(address)")[:4] + bytes(12) + shim))


# --- the operator's limits -------------------------------------------------------------------------------------------


async def test_more_than_may_be_repaid(stage: Stage) -> None:
    """A position that can only be closed whole and owes more than max_repay_usd is left; 3.0 takes a part of it."""
    stage.configure(max_repay_usd="500.0")
    for market in VERSIONS:
        await stage.borrow(market, {"WETH": ETHER * 6 // 10})
    async with stage.line() as line:
        await stage.price("WETH", FALLEN)
        report = await line.step()
        assert refused(report, "3.6") == [("plan", "over_max_repay")]
        explained = await stage.explained("3.6")
        assert explained.last == ("plan", "over_max_repay")
        assert int(explained.numbers["max_repay_usd_e8"]) == 500 * _E8
        [intent] = line.booked("intent")
        assert intent.protocol == "aave-3-0" and 0 < int(intent.body["repay_usd_e8"]) <= 500 * _E8


async def test_denied_accounts_are_left(stage: Stage) -> None:
    """Planned and tried like others, never sent."""
    stage.configure(deny_accounts=f'["{checksum(WHO)}"]')
    await stage.borrow()
    await stage.borrow(who=OTHER)
    async with stage.line() as line:
        await stage.price("WETH", FALLEN)
        report = await line.step()
        assert refused(report, "3.0") == [("clear", "denied_account")]
        assert len(report.sent) == 1
        explained = await stage.explained("3.0")
        assert explained.last == ("clear", "denied_account")
        assert explained.numbers["account"] == checksum(WHO)


async def test_gas_above_the_limit_is_waited_out(stage: Stage) -> None:
    """At 300 gwei nothing is planned; once the base fee is below max_fee_gwei it is liquidated, never above it."""
    await stage.borrow(supply={"WETH": 300 * ETHER})
    async with stage.line() as line:
        await stage.lab.node.set_base_fee(300 * 10**9)
        await stage.price("WETH", FALLEN)
        explained = await _refused(stage, line, "3.0", ("plan", "fee_over_limit"))
        assert int(explained.numbers["inclusion_price_wei"]) > 200 * 10**9
        await stage.lab.node.mine(6)
        await stage.lab.node.mine_on_demand()
        report = await line.step()
        [sent] = report.sent
        assert 0 < sent.max_fee_wei <= 200 * 10**9


async def test_a_gas_budget_counts_what_is_in_flight(stage: Stage) -> None:
    """The budget of an hour covers one transaction and not two, though neither is mined yet."""
    for who in (WHO, OTHER):
        await stage.borrow(who=who)
    # a million gas at twice 10 gwei and a tip
    stage.configure(max_gas_spend_wei_per_hour=str(3 * 10**16))
    async with stage.line() as line:
        await stage.lab.node.set_base_fee(10 * 10**9)
        await stage.price("WETH", FALLEN)
        await stage.lab.node.mine_on_demand()
        nonce = await line.parts.chain.nonce(stage.lab.world.cast.operator.address)
        report = await line.step()
        [sent] = report.sent
        [(_, left, refusal)] = report.refused
        assert (refusal.stage, refusal.reason) == ("clear", "gas_budget")
        assert 15 * 10**15 < int(refusal.numbers["in_flight_wei"]) <= 30 * 10**15
        assert left is not None
    stage.configure(max_gas_spend_wei_per_hour=str(10**15))
    assert (await stage.explained("3.0", left)).last == ("clear", "gas_budget")
    [going] = {WHO, OTHER} - {left}
    explained = await stage.explained("3.0", going)
    assert explained.last == ("send", "in_flight")
    assert explained.numbers["transaction"] == hex_of(sent.transaction_hash)
    assert explained.numbers["nonce"] == sent.nonce == nonce


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [("max_consecutive_reverts", "1", "reverts_in_a_row"), ("max_loss_usd_per_day", "0.01", "loss_limit")],
)
async def test_losses_stop_the_keeper(stage: Stage, limit: str, value: str, reason: str) -> None:
    """After one reverted transaction, with a limit that allows no more, nothing is sent and explain says why."""
    stage.configure(**{limit: value})
    await stage.borrow()
    async with stage.line() as line:
        await stage.price("WETH", FALLEN)
        await _revert_one(stage, line)
        await stage.price("WETH", FALLEN)
        report = await line.step()
        assert not report.sent
        assert refused(report, "3.0") == [("clear", reason)]
        explained = await stage.explained("3.0")
        assert explained.last == ("clear", reason)
        assert explained.history[0]["kind"] == "refusal" and explained.history[1]["kind"] == "reverted"


async def _revert_one(stage: Stage, line: Line) -> None:
    """Let the price recover in the block of inclusion, before the keeper's transaction."""
    node, feed = stage.lab.node, stage.world.feeds["WETH"]
    await node.mine_on_demand()
    assert len((await line.step()).sent) == 1
    aggregator = Contract(node, feed.aggregator, chainlink("FluxAggregator").abi)
    round_id = int(await aggregator.read("latestRound")) + 1
    await line.pend(aggregator.tx(feed.reporter, "submit", round_id, 2_000 * _E8, gas=400_000))
    await node.mine()
    await node.mine_each_transaction()
    [settlement] = (await line.step()).settled
    assert settlement.status == 0


async def test_a_halt_file_stops_everything(stage: Stage) -> None:
    """While the file is there nothing is signed; once it is gone the next head liquidates."""
    await stage.borrow()
    async with stage.line() as line:
        await stage.price("WETH", FALLEN)
        (stage.rig.folder / "keeper.halt").touch()
        report = await line.step()
        assert not report.sent and refused(report, "3.0") == [("clear", "halted")]
        explained = await stage.explained("3.0")
        assert explained.last == ("clear", "halted")
        assert (await commands.pause_status(stage.rig.config))["halt_file_present"]
        (stage.rig.folder / "keeper.halt").unlink()
        await _liquidated(line, "3.0")


async def test_an_old_head_is_not_acted_on(stage: Stage) -> None:
    """At max_head_age_s a head still counts, a second later it does not; explain agrees by the wall's clock."""
    await stage.borrow()
    async with stage.line() as line:
        await stage.price("WETH", FALLEN)
        head = await line.parts.chain.head()
        line.head = dataclasses.replace(head, timestamp_s=head.timestamp_s + 3_601)  # the line's clock
        report = await line.engine.step(head)
        assert not report.sent and refused(report, "3.0") == [("clear", "stale_head")]
        line.head = dataclasses.replace(head, timestamp_s=head.timestamp_s + 3_600)
        assert len((await line.engine.step(head)).sent) == 1


async def test_explain_sees_an_old_head(stage: Stage) -> None:
    """With the chain standing still for longer than max_head_age_s, explain ends in stale_head."""
    stage.configure(max_head_age_s="1")
    await stage.borrow()
    await stage.price("WETH", FALLEN)
    await stage.lab.node.rpc.request("anvil_setTime", (await stage.lab.node.head()).timestamp_s)
    await asyncio.sleep(2.1)
    assert (await stage.explained("3.0")).last == ("clear", "stale_head")


@pytest.mark.parametrize("scope", ["global", "aave-3-0"])
async def test_a_pause_stops_its_scope(stage: Stage, scope: str) -> None:
    """Everything, or one protocol while the other goes on; pause status and explain name the scope."""
    for market in VERSIONS:
        await stage.borrow(market)
    async with stage.line() as line:
        await stage.price("WETH", FALLEN)
        key = GLOBAL_SCOPE if scope == "global" else Hash(scope.encode().ljust(32, b"\0"))
        guardian = stage.world.cast.guardians[0].address
        await line.guard().send(guardian, "pause", key, b"DRILL\0\0\0", bytes(32))
        report = await line.step()
        assert refused(report, "3.0") == [("clear", "paused")]
        assert len(report.sent) == (0 if scope == "global" else 1)
        explained = await stage.explained("3.0")
        assert explained.answers("clear") == ["paused"]
        assert explained.last == ("trial", "reverts") and "ScopePaused" in explained.numbers["error"]
        status = await commands.pause_status(stage.rig.config)
        assert {each["scope"]: each["paused"] for each in status["scopes"]}[scope]


# --- the chain itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", ["at once", "blocks later", "after a restart"])
async def test_the_book_follows_a_reorganisation(stage: Stage, seen: str) -> None:
    """What only the orphaned blocks said is forgotten, what only the new ones say is known, whenever it is noticed."""
    node = stage.lab.node
    await stage.borrow(who=OTHER)
    fork = await node.snapshot()
    await stage.borrow(who=WHO)
    await stage.borrow("3.6", who=WHO)
    await node.mine(3)
    async with stage.line() as line:
        assert (await line.step()).liquidatable == 0
        books = [(key.protocol, key.account) for key in line.watch.book]
        assert ("aave-3-0", WHO) in books and ("aave-3-6", WHO) in books
        orphaned = line.head
        if seen != "after a restart":
            await _other_history(stage, fork, orphaned.number, more=0 if seen == "at once" else 5)
            await _believed(line, stage)
    if seen == "after a restart":
        await _other_history(stage, fork, orphaned.number, more=5)
        async with stage.line() as line:
            await _believed(line, stage)


async def _other_history(stage: Stage, fork: str, height: int, more: int) -> None:
    """From the fork on WHO borrows nothing, OTHER adds a debt, a third account appears; as high as before or higher."""
    node = stage.lab.node
    await node.revert(fork)
    market = stage.world.aave["3.6"]
    specs = [PositionSpec(each, {"WETH": ETHER}, {"USDC": 1}, HOLDS) for each in (OTHER, account(3))]
    await open_positions(node, stage.world.cast, market, specs)
    missing = height + more - (await node.head()).number
    assert missing >= 0, "the other history is as long as the first"
    if missing:
        await node.mine(missing)


async def _believed(line: Line, stage: Stage) -> None:
    await line.step()
    books = {(key.protocol, key.account) for key in line.watch.book}
    assert books == {("aave-3-0", OTHER), ("aave-3-6", OTHER), ("aave-3-6", account(3))}
    await stage.price("WETH", FALLEN)
    report = await line.step()
    assert report.liquidatable == len(report.sent) == 3


@pytest.mark.parametrize("seen", ["running", "after a restart"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept by the node", "forgotten by the node"])
async def test_a_settled_liquidation_may_be_orphaned(stage: Stage, kept: bool, seen: str) -> None:
    """Its profit no longer counts; mined again or not, in the end the account is liquidated and the record is true."""
    node, profit = stage.lab.node, stage.world.tokens["USDC"].address
    await stage.borrow()
    await stage.price("WETH", FALLEN)
    await node.mine_on_demand()
    async with stage.line() as line:
        before_raw = await line.treasury_raw()
        fork = await node.snapshot()
        [sent] = (await line.step()).sent
        await node.mine()
        assert len((await line.step()).settled) == 1
        assert line.ledger.gross_profit_raw(profit) > 0
        await node.revert(fork)
        await node.drop_pending()
        await node.mine(3)
        if kept:
            await node.rpc.request("eth_sendRawTransaction", "0x" + sent.raw.hex())
        if seen == "running":
            await _taken_back(stage, line, before_raw)
    if seen == "after a restart":
        async with stage.line() as line:
            await _taken_back(stage, line, before_raw)


async def _taken_back(stage: Stage, line: Line, before_raw: int) -> None:
    node, profit = stage.lab.node, stage.world.tokens["USDC"].address
    assert await line.treasury_raw() == before_raw
    assert not (await line.step()).sent, "the nonce is in flight"
    assert len(line.booked("reorged")) == 1 and line.ledger.gross_profit_raw(profit) == 0
    # what the node kept is mined in the next block; what it forgot expires, is cancelled and planned anew
    for blocks in (39, 1, 1):
        await node.mine(blocks)
        await line.step()
    assert (await stage.data("3.0")).health_factor_wad >= WAD
    assert await line.treasury_raw() - before_raw == line.ledger.gross_profit_raw(profit) > 0
    assert not line.store.open_transactions() and not line.booked("dropped")
    assert line.ledger.verify() is None


async def test_a_dead_first_node_is_passed_over(stage: Stage) -> None:
    """The second of rpc_urls answers, and the keeper liquidates by it."""
    dead = f"http://127.0.0.1:{free_port()}"
    stage.configure(rpc_urls=f'["{dead}", "{stage.lab.anvil.ws_url}"]')
    await stage.borrow()
    async with stage.line() as line:
        await stage.price("WETH", FALLEN)
        await _liquidated(line, "3.0")


async def test_without_any_node_there_is_one_sentence(stage: Stage) -> None:
    """ChainError, which the command line ends with 3, names every node that was tried."""
    dead = [f"http://127.0.0.1:{free_port()}", f"ws://127.0.0.1:{free_port()}"]
    stage.configure(rpc_urls=f'["{dead[0]}", "{dead[1]}"]')
    with pytest.raises(ChainError) as caught:
        async with stage.line():
            pass
    assert caught.value.exit_code == 3
    assert all(url in str(caught.value) for url in dead) and "\n" not in str(caught.value)
