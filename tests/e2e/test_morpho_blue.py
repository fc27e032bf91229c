"""Morpho Blue by the daemon's own line, beside Aave in one daemon, on the chain itself and on a fork of it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from keeper import commands
from keeper.abi import checksum, load
from keeper.errors import RpcError
from keeper.fixed import WAD
from keeper.guard import PauseState, scope_of
from keeper.lab.actors import account
from keeper.lab.chainlink import latest, set_prices
from keeper.lab.judge import judge
from keeper.lab.morpho import (
    MARKETS,
    BorrowSpec,
    MarketSpec,
    Morpho,
    MorphoMarket,
    borrow,
    deploy_morpho,
    morpho_of,
    open_market,
    price_of,
    set_oracle,
    table,
)
from keeper.lab.node import Node
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.tokens import balance_of
from keeper.lab.world import Lab
from keeper.ledger import Booked, copies
from keeper.types import Address, hex_of
from tests.e2e.line import Line, open_again
from tests.protocols.morpho_blue_lab import USDC_WETH, WBTC_USDC, WBTC_WETH, WETH_DAI, WETH_USDC, WSTETH_WETH

WHO, OTHER = account(1), account(2)
ETHER = 10**18
_E8 = 10**8
_USDC_FOR_ETHER = 10**24  # an oracle's price of a WETH at one USDC
_LONG_AGO_S = 121  # so that nothing that was signed before can be mined any more


@pytest.fixture(params=["chain", "fork"])
async def place(request: pytest.FixtureRequest, lab: Lab) -> AsyncIterator[Lab]:
    """The world itself, or a fork of it taken while it runs."""
    if request.param == "chain":
        yield lab
        return
    with lab.anvil.fork() as anvil:
        async with await Node.open(anvil.url) as node:
            await node.steady_clock()
            yield Lab(anvil, node, lab.world)


@dataclass(frozen=True, slots=True)
class Scene:
    """A keeper at work on a lab with Morpho and Aave."""

    lab: Lab
    morpho: Morpho
    rig: Rig
    line: Line

    async def open(self, *specs: BorrowSpec) -> None:
        """Open positions on Morpho."""
        await borrow(self.lab.node, self.lab.world, self.morpho, specs)

    async def move(self, factors: Mapping[str, float]) -> None:
        """Report these tokens' prices, times what they are, and the others' again."""
        feeds = self.lab.world.feeds
        prices = {
            feed: int((await latest(self.lab.node, feed)).price_raw * factors.get(symbol, 1))
            for symbol, feed in feeds.items()
        }
        await set_prices(self.lab.node, prices)

    async def owed(self, who: Address, market: int) -> tuple[int, int]:
        """An account's borrow shares and collateral."""
        position = await morpho_of(self.lab.node, self.morpho).read(
            "position", self.morpho.markets[market].id, who
        )
        return int(position[1]), int(position[2])

    async def work(self) -> list[Booked]:
        """Let the line work until nothing is left to do; what it settled, each exactly as expected.

        The treasury gained what is booked, and the Liquidator holds nothing.
        """
        before_raw, known = await self.line.treasury_raw(), len(self.line.booked("settled"))
        await self.lab.node.mine_on_demand()
        reports = await self.line.steps()
        await self.lab.node.mine_each_transaction()
        assert reports[-1].liquidatable == 0, reports[-1].refused
        settled = self.line.booked("settled")[known:]
        for each in settled:
            assert int(each.body["profit_raw"]) == int(each.body["expected_profit_raw"]) > 0
        gained_raw = await self.line.treasury_raw() - before_raw
        assert gained_raw == sum(int(each.body["profit_raw"]) for each in settled)
        for token in self.lab.world.tokens.values():
            assert await balance_of(self.lab.node, token, self.rig.liquidator) == 0
        assert self.line.ledger.verify() is None
        return settled


@asynccontextmanager
async def scene_on(
    lab: Lab, folder: Path, *, listed: bool = True, max_accounts: int = 1
) -> AsyncIterator[Scene]:
    """A keeper for Morpho and both Aaves at work on a lab."""
    morpho = await deploy_morpho(lab.node, lab.world)
    rig = await make_rig(
        lab, folder, Terms(max_accounts=max_accounts), tables=table(morpho, lab.world, listed=listed)
    )
    async with open_again(lab, rig) as line:
        yield Scene(lab, morpho, rig, line)


@pytest.mark.parametrize("listed", [True, False])
async def test_unhealthy_accounts_of_both_protocols_are_liquidated(
    place: Lab, tmp_path: Path, listed: bool
) -> None:
    """One account on Morpho and one on Aave fall at once; both are liquidated by one daemon, Morpho's whole debt is
    repaid to the last share, and what was expected is what came.
    """
    async with scene_on(place, tmp_path, listed=listed) as scene:
        await scene.open(BorrowSpec(WHO, WETH_USDC, 10 * ETHER, 9_800))
        spec = PositionSpec(OTHER, {"WETH": 10 * ETHER}, {"USDC": 1}, 104 * WAD // 100)
        await open_position(place.node, place.world.cast, place.world.aave["3.6"], spec)
        assert (await scene.line.step()).liquidatable == 0
        await scene.move({"WETH": 0.95})
        settled = await scene.work()
        assert {each.protocol for each in settled} == {"morpho", "aave-3-6"}
        assert (await scene.owed(WHO, WETH_USDC))[0] == 0
        assert await scene.line.health("3.6", OTHER) >= WAD


_FALLS = {
    WETH_USDC: {"WETH": 0.93},
    WBTC_USDC: {"WBTC": 0.93},
    WSTETH_WETH: {"wstETH": 0.97},
    WETH_DAI: {"WETH": 0.95},
    USDC_WETH: {"WETH": 1.05},
}


@pytest.mark.parametrize("market", list(_FALLS))
async def test_every_kind_of_market_is_liquidated(lab: Lab, tmp_path: Path, market: int) -> None:
    """Whatever the decimals, the rate model, and whether the profit token is owed, held or neither: the debt is paid
    in full and the rest of the collateral stays the borrower's.
    """
    async with scene_on(lab, tmp_path) as scene:
        token = scene.morpho.markets[market].collateral
        amount_raw = 20_000 * _E8 * 10**token.decimals // lab.world.prices_e8[token.symbol]
        await scene.open(BorrowSpec(WHO, market, amount_raw, 9_800))
        await scene.line.step()
        await scene.move(_FALLS[market])
        [settled] = await scene.work()
        shares, collateral_raw = await scene.owed(WHO, market)
        assert shares == 0 < collateral_raw < amount_raw
        [intent] = scene.line.booked("intent")
        assert (intent.body["bad_debt_raw"], intent.account) == (0, checksum(WHO)), settled


async def test_the_largest_debt_comes_first_whoever_counts_it(lab: Lab, tmp_path: Path) -> None:
    """Protocols count dollars in different decimals: a large debt on Aave comes before a small one on Morpho."""
    async with scene_on(lab, tmp_path) as scene:
        await scene.open(BorrowSpec(WHO, WETH_USDC, ETHER, 9_800))
        spec = PositionSpec(OTHER, {"WETH": 10 * ETHER}, {"USDC": 1}, 104 * WAD // 100)
        await open_position(lab.node, lab.world.cast, lab.world.aave["3.6"], spec)
        await scene.line.step()
        await scene.move({"WETH": 0.95})
        (tmp_path / "keeper.halt").touch()
        report = await scene.line.step()
        assert [who for _, who, each in report.refused if each.stage == "clear"] == [OTHER, WHO], (
            report.refused
        )


async def test_bad_debt_is_realised_and_told(lab: Lab, tmp_path: Path) -> None:
    """Where the collateral is worth less than the debt with the incentive, all of it is seized; what is written off is
    booked beforehand to the unit, and nothing of the position is left.
    """
    async with scene_on(lab, tmp_path) as scene:
        await scene.open(BorrowSpec(WHO, WETH_USDC, 10 * ETHER, 9_900))
        await scene.line.step()
        blue, market = morpho_of(lab.node, scene.morpho), scene.morpho.markets[WETH_USDC]
        await scene.move({"WETH": 0.8})
        await scene.work()
        assert await scene.owed(WHO, WETH_USDC) == (0, 0)
        [intent] = scene.line.booked("intent")
        supplied_raw, _, borrowed_raw, shares, *_ = await blue.read("market", market.id)
        assert (borrowed_raw, shares) == (0, 0)
        written_off_raw = 5_000_000 * 10**6 - supplied_raw
        assert written_off_raw > 0
        # interest between the lender's supply and the liquidation went the other way
        assert abs(int(intent.body["bad_debt_raw"]) - written_off_raw) < 10**4
        states = {entry.body["state"]: entry for entry in scene.line.booked("bad_debt")}
        assert list(states) == ["standing", "over", "written_off"]
        assert abs(int(states["written_off"].body["raw"]) - written_off_raw) < 10**4


@pytest.mark.parametrize("listed", [True, False])
async def test_accounts_of_one_market_share_a_transaction(lab: Lab, tmp_path: Path, listed: bool) -> None:
    """What Morpho lends pays for all of them, a bad debt among them, and the judge finds nothing amiss; where nobody
    chose the market each goes alone.
    """
    async with scene_on(lab, tmp_path, listed=listed, max_accounts=8) as scene:
        await scene.open(
            BorrowSpec(WHO, WETH_USDC, 10 * ETHER, 9_700),
            BorrowSpec(OTHER, WETH_USDC, 7 * ETHER, 9_600),
            BorrowSpec(account(3), WETH_USDC, 5 * ETHER, 9_900),
        )
        await scene.line.step()
        await scene.move({"WETH": 0.88})
        settled = await scene.work()
        intents = scene.line.booked("intent")
        assert len(settled) == len(intents) == (1 if listed else 3)
        assert sum(int(each.body["bad_debt_raw"]) for each in intents) > 0
        assert {each.body["flash_premium_bps"] for each in intents} == {0}
        assert len(scene.line.booked("liquidated")) == (3 if listed else 0)
        assert not scene.line.booked("skipped", "reverted")
        assert [(await scene.owed(who, WETH_USDC))[0] for who in (WHO, OTHER, account(3))] == [0, 0, 0]
    verdict = await judge(scene.rig.config)
    assert verdict.ok, (settled, str(verdict))


async def test_one_account_in_two_markets_is_liquidated_in_both(lab: Lab, tmp_path: Path) -> None:
    """Positions of one account in several markets are positions of their own, in flight beside each other."""
    async with scene_on(lab, tmp_path) as scene:
        await scene.open(
            BorrowSpec(WHO, WETH_USDC, 5 * ETHER, 9_900), BorrowSpec(WHO, WETH_DAI, 7 * ETHER, 9_900)
        )
        await scene.line.step()
        await scene.move({"WETH": 0.95})
        settled = await scene.work()
        assert len(settled) == 2
        assert [(await scene.owed(WHO, market))[0] for market in (WETH_USDC, WETH_DAI)] == [0, 0]


async def test_explain_and_scan_tell_each_market_apart(lab: Lab, tmp_path: Path) -> None:
    """Before the daemon ever ran, every listed market answers for the account: two by its positions, the others that
    nothing is owed there; and scan lists both.
    """
    async with scene_on(lab, tmp_path) as scene:
        held = (WETH_USDC, WETH_DAI)
        await scene.open(*(BorrowSpec(WHO, market, 5 * ETHER, 9_900) for market in held))
        await scene.move({"WETH": 0.98})
        told = await commands.explain(scene.rig.config, checksum(WHO))
        of_morpho = {each["market"]: each for each in told["protocols"] if each["protocol"] == "morpho"}
        ids = [hex_of(market.id) for market in scene.morpho.markets]
        assert set(of_morpho) == set(ids)
        for place, market_id in enumerate(ids):
            stages = [(each["stage"], each["answer"]) for each in of_morpho[market_id]["stages"]]
            if place in held:
                assert ("assess", "liquidatable") in stages and ("options", "allowed") in stages
                assert ("trial", "pays") in stages
            else:
                assert stages == [("discover", "no_debt")]
        scanned = await commands.scan(scene.rig.config, liquidatable=True, limit=10)
        assert {each["market"] for each in scanned["positions"]} == {ids[place] for place in held}


async def test_a_restart_knows_markets_and_accounts(lab: Lab, tmp_path: Path) -> None:
    """A keeper that lists no market, started again after the logs it learnt of them by, liquidates all the same; and
    what opened while it was away.
    """
    async with scene_on(lab, tmp_path, listed=False) as scene:
        await scene.open(BorrowSpec(WHO, WETH_USDC, 5 * ETHER, 9_900))
        await scene.line.step()
    await borrow(lab.node, lab.world, scene.morpho, [BorrowSpec(OTHER, WBTC_USDC, _E8, 9_900)])
    async with open_again(lab, scene.rig) as line:
        again = Scene(lab, scene.morpho, scene.rig, line)
        assert (await line.step()).liquidatable == 0
        scanned = await commands.scan(scene.rig.config, liquidatable=False, limit=10)
        markets = scene.morpho.markets
        assert {each["market"] for each in scanned["positions"]} == {
            hex_of(markets[place].id) for place in (WETH_USDC, WBTC_USDC)
        }
        await again.move({"WETH": 0.95, "WBTC": 0.95})
        assert len(await again.work()) == 2
        assert [(await again.owed(*where))[0] for where in ((WHO, WETH_USDC), (OTHER, WBTC_USDC))] == [0, 0]


async def test_a_crash_leaves_nobody_unhealthy(lab: Lab, tmp_path: Path) -> None:
    """Thirty random accounts in all markets, prices that fall in steps, some below what is owed: after each step nobody
    is left, profit is as foretold throughout, and the judge agrees.
    """
    chance = random.Random(20_261_126)
    async with scene_on(lab, tmp_path) as scene:
        specs = []
        for number in range(30):
            place = chance.choice(range(len(MARKETS)))
            token = scene.morpho.markets[place].collateral
            worth_usd = chance.randint(1_000, 30_000)
            amount_raw = worth_usd * _E8 * 10**token.decimals // lab.world.prices_e8[token.symbol]
            specs.append(BorrowSpec(account(100 + number), place, amount_raw, chance.randint(8_500, 9_950)))
        await scene.open(*specs)
        await scene.line.step()
        mock = scene.morpho.markets[WBTC_WETH]
        done = 0
        for _ in range(3):
            await scene.move({"WETH": 0.97, "WBTC": 0.92, "wstETH": 0.95})
            price = await price_of(lab.node, mock)
            await set_oracle(lab.node, lab.world, mock, price * 95 // 100)
            done += len(await scene.work())
        assert done > 10
        verdict = await judge(scene.rig.config)
        assert verdict.ok, str(verdict)


async def _trap(scene: Scene, thief: Address) -> tuple[MorphoMarket, int]:
    """A market of the thief's own on real tokens, where a hundredth of a WETH stands for a fortune that he then takes;
    what liquidating it would cost.
    """
    node, world, usdc = scene.lab.node, scene.lab.world, scene.lab.world.tokens["USDC"]
    lent_raw, worth = 100_000 * 10**6, 10**36 * 10**6 * 10**6 // ETHER
    spec = MarketSpec("WETH", "USDC", 86 * WAD // 100, irm="none", oracle="mock")
    deployed = await open_market(node, world, scene.morpho, spec)
    market = deployed.markets[-1]
    await set_oracle(node, world, market, 100 * worth)
    await borrow(node, world, deployed, [BorrowSpec(thief, len(MARKETS), ETHER // 100, 0)])
    blue = morpho_of(node, scene.morpho)
    await blue.send(thief, "borrow", market.params, lent_raw, 0, thief, thief)
    await set_oracle(node, world, market, 11 * worth)
    assert await balance_of(node, usdc, thief) == lent_raw
    return market, lent_raw


async def test_a_market_of_a_thiefs_own_takes_nothing(lab: Lab, tmp_path: Path) -> None:
    """The keeper finds it, sees that real pools do not pay for it, and leaves it; and whoever stole the operator's key
    cannot make the Liquidator pay the thief's debt either: alone, out of what it gave, or beside one that pays.
    """
    async with scene_on(lab, tmp_path, listed=False) as scene:
        thief, world, line = account(666), lab.world, scene.line
        market, owed_raw = await _trap(scene, thief)
        await scene.open(BorrowSpec(WHO, WETH_USDC, 10 * ETHER, 9_800))
        await line.step()
        await scene.move({"WETH": 0.95})
        await lab.node.mine_on_demand()
        report = await line.step()
        assert (report.liquidatable, len(report.sent)) == (2, 1)
        [(stage, _)] = line.refusals(report, thief)
        assert stage == "plan"
        view = await line.engine.look(line.head)
        assert isinstance(view.pause, PauseState)
        epochs = (view.pause.global_scope.epoch, view.pause.scopes[scope_of("morpho")].epoch)
        usdc, weth = world.tokens["USDC"].address, world.tokens["WETH"].address
        liquidate, execute = load("MorphoBlue").function("liquidate"), load("Liquidator").function("execute")
        blue = morpho_of(lab.node, scene.morpho)
        honest = scene.morpho.markets[WETH_USDC]

        async def attempted(*victims: tuple[MorphoMarket, Address, int], paid_after: bool = False) -> str:
            calls = []
            for of, who, approved_raw in victims:
                shares = (await blue.read("position", of.id, who))[1]
                data = liquidate.encode(of.params, who, 0, shares, b"")
                calls.append((scene.morpho.address, usdc, approved_raw, data, 0))
            lender = scene.morpho.address if paid_after else world.aave["3.6"].pool
            loan_raw = 0 if paid_after else sum(each[2] for each in victims)
            plan: tuple[object, ...] = (
                bytes(32),
                lender,
                usdc,
                loan_raw,
                calls,
                [],
                [usdc, weth],
                usdc,
                0,
                *epochs,
                10**9,
            )
            with pytest.raises(RpcError) as refused:
                await lab.node.call(line.rig.liquidator, execute.encode(plan), world.cast.operator.address)
            return load("Liquidator").error(refused.value.data) or ""

        fortune = (market, thief, owed_raw + 10**6)
        assert (await attempted(fortune)).startswith("Overspent")
        assert (await attempted(fortune, paid_after=True)).startswith("Overspent")
        assert (await attempted((honest, WHO, 17_000 * 10**6), fortune)).startswith("Overspent")
        await lab.node.mine_each_transaction()


async def test_a_restored_record_finds_the_position_again(lab: Lab, tmp_path: Path) -> None:
    """A copy does not know what was sent after it was made: the liquidation is found on chain, settled, and put down
    for the position in its own market.
    """
    copy, record = tmp_path / "copy.db", tmp_path / "keeper.db"
    async with scene_on(lab, tmp_path) as scene:
        await scene.open(BorrowSpec(WHO, WETH_USDC, 10 * ETHER, 9_800))
        await scene.line.step()
        copies.back_up(scene.line.store.path, copy, scene.line.head.timestamp_s - _LONG_AGO_S)
        await scene.move({"WETH": 0.95})
        [lost] = await scene.work()
    record.rename(tmp_path / "lost.db")
    head = await lab.node.head()
    copies.restore(copy, record, lab.world.chain_id, head.timestamp_s - _LONG_AGO_S)
    async with open_again(lab, scene.rig) as line:
        await line.step()
        [found] = line.booked("settled")
        assert (found.account, found.body["tx"]) == (lost.account, lost.body["tx"])
        assert found.body["profit_raw"] == lost.body["profit_raw"]
    with sqlite3.connect(record) as rows:
        [(market,)] = rows.execute("SELECT market FROM intents").fetchall()
    assert market == hex_of(scene.morpho.markets[WETH_USDC].id)


async def _market_of_a_thief(
    scene: Scene, thief: Address, collateral_raw: int, owed_raw: int
) -> MorphoMarket:
    """A market on real tokens by an oracle that does what its maker wants, where the thief owes so much."""
    node, world = scene.lab.node, scene.lab.world
    spec = MarketSpec("WETH", "USDC", 86 * WAD // 100, irm="none", oracle="mock")
    deployed = await open_market(node, world, scene.morpho, spec)
    market = deployed.markets[-1]
    await set_oracle(node, world, market, 10**36)
    await borrow(node, world, deployed, [BorrowSpec(thief, len(MARKETS), collateral_raw, 0)])
    blue = morpho_of(node, scene.morpho)
    await blue.send(thief, "borrow", market.params, owed_raw, 0, thief, thief)
    return market


async def test_a_strangers_oracle_speaks_for_its_own_market_alone(lab: Lab, tmp_path: Path) -> None:
    """It says half of what WETH costs everywhere: that stops no liquidation of WETH in another market."""
    async with scene_on(lab, tmp_path, listed=False) as scene:
        text = scene.rig.config.read_text()
        assert "max_deviation_bps = 100000" in text
        scene.rig.config.write_text(text.replace("max_deviation_bps = 100000", "max_deviation_bps = 500"))
        thief = account(666)
        market = await _market_of_a_thief(scene, thief, ETHER, 1_500 * 10**6)
        await scene.open(BorrowSpec(WHO, WETH_USDC, 10 * ETHER, 9_800))
        await set_oracle(lab.node, lab.world, market, 1_000 * _USDC_FOR_ETHER)
        await scene.move({"WETH": 0.96})
    async with open_again(lab, scene.rig) as line:
        await lab.node.mine_on_demand()
        report = await line.step()
        assert report.liquidatable == 2
        assert line.refusals(report, WHO) == []
        assert not line.booked("tripped")
        await lab.node.mine_each_transaction()


async def test_no_budget_pays_for_debts_that_a_stranger_makes_up(lab: Lab, tmp_path: Path) -> None:
    """Whoever makes a market can owe in it what nobody ever lent: what nets a loss there is left, whatever the budget
    and nothing of it is put down as bad debt.
    """
    async with scene_on(lab, tmp_path, listed=False) as scene:
        lines = scene.rig.config.read_text().splitlines()
        lines.insert(lines.index("[limits]") + 1, "bad_debt_budget_usd_per_day = 100")
        scene.rig.config.write_text("\n".join(lines) + "\n")
        thief = account(666)
        market = await _market_of_a_thief(scene, thief, 3 * 10**15, 1_000 * 10**6)
    async with open_again(lab, scene.rig) as line:
        await line.step()
        await set_oracle(lab.node, lab.world, market, 2_000 * _USDC_FOR_ETHER)
        report = await line.step()
        assert report.liquidatable == 1 and not report.sent
        [(stage, told)] = line.refusals(report, thief)
        assert (stage, told) == ("plan", "unprofitable")
        assert not line.booked("bad_debt")


async def test_a_strangers_market_makes_one_transaction_revert(lab: Lab, tmp_path: Path) -> None:
    """Its oracle tells who only tries another price than a transaction: the market is left for a while, also after a
    restart, and that says nothing of how well the keeper works.
    """
    bad, good = (f"7f{price:064x}60005260206000f3" for price in (1_000 * _USDC_FOR_ETHER, 10**36))
    two_faced = bytes.fromhex(f"3a602d57{bad}5b{good}")  # by GASPRICE
    async with scene_on(lab, tmp_path, listed=False) as scene:
        thief, line = account(666), scene.line
        market = await _market_of_a_thief(scene, thief, ETHER, 1_500 * 10**6)
        await line.step()
        await lab.node.set_code({market.oracle: two_faced})
        await lab.node.mine_on_demand()
        await lab.node.mine()
        assert len((await line.step()).sent) == 1
        await lab.node.mine()
        report = await line.step()
        assert line.refusals(report, thief) == [("plan", "strangers_market")] and not report.sent
        assert len(line.booked("reverted")) == 1
        assert line.ledger.consecutive_reverts() == 0
    async with open_again(lab, scene.rig) as line:
        report = await line.step()
        assert line.refusals(report, thief) == [("plan", "strangers_market")] and not report.sent
        await lab.node.mine_each_transaction()
