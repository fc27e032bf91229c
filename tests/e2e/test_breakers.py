"""Each breaker on the real line: what trips it stops the next liquidation, and when it clears the keeper goes on."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from keeper import commands
from keeper.abi import checksum
from keeper.commands import breakers
from keeper.daemon import book_notices
from keeper.errors import ConfigError, LedgerError
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import latest, set_price, set_prices
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.solc import own_artifact
from keeper.lab.uniswap import move_pool
from keeper.lab.world import BASE_FEE_WEI, Lab, open_lab
from keeper.ledger import Booked
from keeper.types import Address, Hash
from tests.e2e.line import Line, open_again
from tests.front import Front

ETHER = 10**18
_E8 = 10**8
WHO, OTHER = account(1), account(2)
FALLEN = 1_750  # where a WETH position opened at 110 % has a health factor of 0.9625


@dataclass(slots=True)
class Stage:
    """A chain with a keeper set up on it, in a folder of the test's own."""

    lab: Lab
    rig: Rig

    def configure(self, **values: object) -> None:
        """Change keys of keeper.toml, in the table they are in or else in [breakers]."""
        lines = self.rig.config.read_text().splitlines()
        for key, value in values.items():
            kept = [line for line in lines if not line.startswith(f"{key} = ")]
            place = next((n for n, line in enumerate(lines) if line.startswith(f"{key} = ")), None)
            kept.insert(kept.index("[breakers]") + 1 if place is None else place, f"{key} = {value}")
            lines = kept
        self.rig.config.write_text("\n".join(lines) + "\n")

    def line(self) -> AbstractAsyncContextManager[Line]:
        """Start the keeper."""
        return open_again(self.lab, self.rig)

    async def borrow(self, *who: Address, wei: int = 10 * ETHER) -> None:
        """So much WETH each against USDC at 110 %."""
        specs = [PositionSpec(one, {"WETH": wei}, {"USDC": 1}, 110 * WAD // 100) for one in who]
        await open_positions(self.lab.node, self.lab.world.cast, self.lab.world.aave["3.0"], specs)

    async def price(self, dollars: int) -> None:
        """Report a price of WETH."""
        await set_price(self.lab.node, self.lab.world.feeds["WETH"], dollars * _E8)

    async def trade(self, dollars: int) -> None:
        """Let the pools of WETH and USDC pay so much for a WETH."""
        world = self.lab.world
        for fee in (500, 3000, 10_000):
            pool = world.uniswap_v3.pool(world.tokens["WETH"], world.tokens["USDC"], fee)
            prices = [
                dollars * _E8 if token.symbol == "WETH" else _E8 for token in (pool.token0, pool.token1)
            ]
            await move_pool(self.lab.node, world.cast, world.uniswap_v3, pool, *prices)

    async def refused(self, line: Line, reason: str, who: Address = WHO) -> None:
        """Nothing is sent for this reason, and every command names it."""
        report = await line.step()
        assert not report.sent
        assert line.refusals(report, who) == [("clear", reason)]
        assert line.booked("tripped")[-1].body["breaker"] == reason
        assert [each["breaker"] for each in breakers.listed(self.rig.config)["breakers"]] == [reason]
        status = await commands.pause_status(self.rig.config)
        explained = await commands.explain(self.rig.config, checksum(who))
        for document in (status, explained):
            assert [each["breaker"] for each in document["breakers"]] == [reason]
        [protocol] = [each for each in explained["protocols"] if each["protocol"] == "aave-3-0"]
        assert ("clear", reason) in [(stage["stage"], stage["answer"]) for stage in protocol["stages"]]
        builds = {name: own_artifact(name) for name in ("PauseGuard", "Liquidator")}
        found = (await commands.doctor(self.rig.config, builds))["checks"]
        [check] = [each for each in found if each["name"] == f"breaker {reason}"]
        assert not check["ok"] and not check["required"] and "clears" in check["fix"]

    async def cleared_but_not_yet_sent(self, line: Line) -> None:
        """A head at which something clears is still one at which nothing is sent."""
        assert not (await line.step()).sent
        assert line.booked("cleared")

    async def pass_time(self, seconds: int) -> None:
        """Let time pass, with every feed reporting what it said before."""
        node, feeds = self.lab.node, self.lab.world.feeds.values()
        await node.advance(seconds)
        await set_prices(node, {feed: (await latest(node, feed)).price_raw for feed in feeds})

    async def liquidates(self, line: Line) -> None:
        """The next head sends, and what it sends earns."""
        await self.lab.node.mine_on_demand()
        first, *_ = await line.steps()
        assert first.sent, first.refused
        assert {sent.plan_id for sent in first.sent} <= {_plan_of(entry) for entry in line.booked("settled")}
        await self.lab.node.mine_each_transaction()


def _plan_of(entry: Booked) -> Hash:
    return Hash(bytes.fromhex(entry.plan_id[2:]))


@pytest.fixture(scope="module")
async def rigged(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """One world, on the wall's clock because explain goes by it, with the contracts deployed and set up."""
    async with await open_lab() as lab:
        yield Stage(lab, await make_rig(lab, tmp_path_factory.mktemp("rig"), Terms(max_head_age_s=3_600)))


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
    await node.mine_each_transaction()
    await node.wall_clock()


async def test_reverts_in_a_row_wait_for_a_person(stage: Stage) -> None:
    """Neither a restart nor the daemon's own writer lets go; a person with a reason does, and the keeper liquidates."""
    stage.configure(max_consecutive_reverts=2)
    await stage.borrow(WHO)
    config = stage.rig.config
    async with stage.line() as line:
        for number in (1, 2):
            cost = {"gas_cost_wei": 1, "gas_cost_usd_e8": 1, "tx": bytes(32)}
            line.ledger.book("reverted", Hash(bytes([number]) * 32), "aave-3-0", OTHER, cost, 1)
    async with stage.line() as line:
        await line.step()
        await stage.price(FALLEN)
        await stage.refused(line, "reverts_in_a_row")
        with pytest.raises(LedgerError, match="stop it"):
            breakers.cleared(config, "reverts_in_a_row", "too early: the daemon runs")
    async with stage.line() as line:
        await stage.refused(line, "reverts_in_a_row")
    with pytest.raises(ConfigError, match="no breaker"):
        breakers.cleared(config, "reverts", "a slip")
    with pytest.raises(ConfigError, match="acknowledge"):
        breakers.cleared(config, "code_changed", "another way in")
    with pytest.raises(LedgerError, match="--reason"):
        breakers.cleared(config, "reverts_in_a_row", "")
    breakers.cleared(config, "reverts_in_a_row", "the router is allowed again")
    with pytest.raises(LedgerError, match="not tripped"):
        breakers.cleared(config, "reverts_in_a_row", "twice")
    async with stage.line() as line:
        [entry] = line.booked("cleared")
        assert (entry.body["by"], entry.body["reason"]) == ("person", "the router is allowed again")
        await stage.liquidates(line)


async def test_a_loss_clears_with_its_day(stage: Stage) -> None:
    """What was lost counts for a day; then it clears by itself and the keeper liquidates."""
    await stage.borrow(WHO)
    async with stage.line() as line:
        cost = {"gas_cost_wei": 1, "gas_cost_usd_e8": 1_001 * _E8, "tx": bytes(32)}
        line.ledger.book("cancelled", Hash(b"\1" * 32), "aave-3-0", OTHER, cost, line.head.timestamp_s)
    async with stage.line() as line:
        await line.step()
        await stage.price(FALLEN)
        await stage.refused(line, "loss_limit")
        await stage.pass_time(86_401)
        await stage.price(FALLEN)
        assert not (await line.step()).sent
        assert [entry.body["breaker"] for entry in line.booked("cleared")] == ["loss_limit"]
        await stage.lab.node.mine()
        await stage.liquidates(line)


async def test_gas_that_was_refused_is_waited_for(stage: Stage) -> None:
    """One of two fits into the hour's budget; the other waits until the first was mined for less, and is liquidated."""
    await stage.borrow(WHO, OTHER)
    node = stage.lab.node
    stage.configure(max_gas_spend_wei_per_hour=3 * 10**16)
    async with stage.line() as line:
        await node.set_base_fee(10 * 10**9)
        await stage.price(FALLEN)
        await node.mine_on_demand()
        report = await line.step()
        [sent] = report.sent
        [(_, left, _)] = report.refused
        [tripped] = line.booked("tripped")
        assert tripped.body["breaker"] == "gas_budget"
        assert 0 < int(tripped.body["numbers"]["needed_wei"]) <= 3 * 10**16
        assert left is not None and sent.nonce == 0
        await node.mine()
        await stage.cleared_but_not_yet_sent(line)
        assert [entry.body["breaker"] for entry in line.booked("cleared")] == ["gas_budget"]
        await node.mine()
        await stage.liquidates(line)


async def test_exposure_per_protocol(stage: Stage) -> None:
    """What is planned while something is in flight is cut to what is left, and what does not fit waits for it."""
    await stage.borrow(WHO, OTHER)
    stage.configure(max_exposure_usd="10000.0")
    async with stage.line() as line:
        await stage.price(FALLEN)
        await stage.lab.node.mine_on_demand()
        report = await line.step()
        assert len(report.sent) == 1
        [(_, left, refusal)] = report.refused
        assert refusal.reason == "exposure" and left is not None
        [intent] = line.booked("intent")
        repaid = int(intent.body["repay_usd_e8"])
        assert int(refusal.numbers["in_flight_usd_e8"]) == repaid <= 10_000 * _E8
        assert repaid + int(refusal.numbers["repay_usd_e8"]) > 10_000 * _E8
    async with stage.line() as line:
        await stage.refused(line, "exposure", left)
        assert len(line.booked("tripped")) == 1, "the restart goes on with it"
        await stage.lab.node.mine()
        await stage.cleared_but_not_yet_sent(line)
        await stage.lab.node.mine()
        await stage.liquidates(line)


async def test_a_venue_far_from_the_feed(stage: Stage) -> None:
    """The pools pay 14 % more than the feed says: nothing of that token is sent until they were near for a while."""
    await stage.borrow(WHO)
    stage.configure(max_deviation_bps=500, calm_s=60)
    async with stage.line() as line:
        await stage.price(FALLEN)
        await stage.refused(line, "price_deviation")
        [tripped] = line.booked("tripped")
        assert tripped.body["subject"] == checksum(stage.lab.world.tokens["WETH"].address)
        assert int(tripped.body["numbers"]["deviation_bps"]) > 1_000
        await stage.trade(FALLEN)
        await stage.refused(line, "price_deviation")
        await stage.pass_time(30)
        await stage.refused(line, "price_deviation")
        await stage.pass_time(31)
        await stage.cleared_but_not_yet_sent(line)
        assert [entry.body["breaker"] for entry in line.booked("cleared")] == ["price_deviation"]
        await stage.lab.node.mine()
        await stage.liquidates(line)


async def test_a_venue_that_pays_too_little(stage: Stage) -> None:
    """A feed that lags behind a crash trips it too, by what the planner found."""
    await stage.borrow(WHO)
    stage.configure(max_deviation_bps=500)
    async with stage.line() as line:
        await stage.trade(1_500)
        await stage.price(FALLEN)
        report = await line.step()
        assert line.refusals(report, WHO) == [("plan", "unprofitable")]
        [tripped] = line.booked("tripped")
        assert int(tripped.body["numbers"]["deviation_bps"]) < -1_000


async def test_a_spike_first_makes_smaller_then_stops(stage: Stage) -> None:
    """After a fall of 14 % a quarter of max_repay_usd is repaid at most, after one of 25 % nothing until it is calm."""
    await stage.borrow(WHO, wei=10 * ETHER)
    stage.configure(
        volatility_smaller_bps=1_000, volatility_stop_bps=2_000, calm_s=60, max_repay_usd="8000.0"
    )
    node = stage.lab.node
    async with stage.line() as line:
        await line.step()
        await stage.price(FALLEN)
        await node.mine_on_demand()
        [sent] = (await line.step()).sent
        weth = checksum(stage.lab.world.tokens["WETH"].address)
        for tripped, name in zip(line.booked("tripped"), ("aave-3-0", "aave-3-6"), strict=True):
            assert (tripped.protocol, tripped.body["breaker"]) == (name, "volatility_smaller")
            assert tripped.body["subject"] == weth
        [intent] = line.booked("intent")
        assert 1_500 * _E8 < int(intent.body["repay_usd_e8"]) <= 2_000 * _E8
        await node.mine()
        assert [each.plan_id for each in (await line.step()).settled] == [sent.plan_id]
        await node.mine_each_transaction()
        await stage.price(1_600)
        report = await line.step()
        assert not report.sent
        assert line.refusals(report, WHO) == [("clear", "volatility")]
        explained = await commands.explain(stage.rig.config, checksum(WHO))
        [protocol] = [each for each in explained["protocols"] if each["protocol"] == "aave-3-0"]
        assert (protocol["stages"][-1]["stage"], protocol["stages"][-1]["answer"]) == ("clear", "volatility")
        await stage.pass_time(301)
        assert not (await line.step()).sent
        await stage.pass_time(30)
        assert not (await line.step()).sent and not line.booked("cleared")
        await stage.pass_time(31)
        await node.mine_on_demand()
        assert (await line.step()).sent, "calm for a minute after the window"
        cleared = sorted((entry.protocol, entry.body["breaker"]) for entry in line.booked("cleared"))
        assert cleared == [
            (name, each) for name in ("aave-3-0", "aave-3-6") for each in ("volatility", "volatility_smaller")
        ]


async def test_an_operator_without_gas_money(stage: Stage) -> None:
    """Nothing new is sent below two transactions' worth; refilled, it goes on by itself."""
    await stage.borrow(WHO)
    stage.configure(min_transactions=2)
    operator = stage.lab.world.cast.operator.address
    async with stage.line() as line:
        await stage.lab.node.set_balances([operator], 10**15)
        await stage.price(FALLEN)
        await stage.refused(line, "operator_balance")
        await stage.lab.node.set_balances([operator], ETHER)
        await stage.lab.node.mine()
        await stage.liquidates(line)
        assert [entry.body["breaker"] for entry in line.booked("cleared")] == ["operator_balance"]


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
async def test_a_deep_reorganisation_waits_for_a_person(stage: Stage, running: bool) -> None:
    """Four blocks where three are allowed, while it runs or was stopped: everything stops, also what is in flight."""
    await stage.borrow(WHO)
    stage.configure(max_reorg_depth=3)
    node = stage.lab.node
    async with stage.line() as line:
        for _ in range(5):
            await node.mine()
            await line.step()
        if running:
            await node.rpc.request("anvil_reorg", 4, [])
            await stage.price(FALLEN)
            await stage.refused(line, "reorg_depth")
    if not running:
        await node.rpc.request("anvil_reorg", 4, [])
        await stage.price(FALLEN)
    async with stage.line() as line:
        await stage.refused(line, "reorg_depth")
        [tripped] = line.booked("tripped")
        assert int(tripped.body["numbers"]["depth"]) == 4
    breakers.cleared(stage.rig.config, "reorg_depth", "the chain is whole again")
    async with stage.line() as line:
        await stage.liquidates(line)


@pytest.mark.parametrize("fault", ["shallow", "behind"])
async def test_a_shallow_reorganisation_or_a_head_that_lags_is_followed(stage: Stage, fault: str) -> None:
    """As many blocks as are allowed stop nothing, nor does a node that is further behind on the same branch."""
    await stage.borrow(WHO)
    stage.configure(max_reorg_depth=3)
    node = stage.lab.node
    async with stage.line() as line:
        for _ in range(6):
            await node.mine()
            await line.step()
        if fault == "shallow":
            await node.rpc.request("anvil_reorg", 3, [])
        else:
            await node.rpc.request("anvil_rollback", 5)
            await line.step()
        await stage.price(FALLEN)
        await stage.liquidates(line)
        assert not line.booked("tripped")


async def test_providers_that_contradict_each_other(stage: Stage) -> None:
    """Two that lied under a quorum of two stop everything and take back what is in flight, until the window is over."""
    await stage.borrow(WHO)
    node = stage.lab.node
    async with AsyncExitStack() as fronts:
        served = [await fronts.enter_async_context(Front(stage.lab.anvil.url).serve()) for _ in range(4)]
        urls = [front.ws_url for front in served]
        stage.configure(rpc_urls=f"{urls}\nquorum = 2", disagreement_window_s=600)
        async with stage.line() as line:
            chain = line.parts.chain
            book_notices(chain, line.ledger, line.engine.breakers, lambda: float(line.head.timestamp_s))
            await line.step()
            await stage.price(FALLEN)
            await node.mine_on_demand()
            [sent] = (await line.step()).sent
            for liar in (0, 1):
                chain._pool.condemn(
                    chain._pool.providers[liar], "it lied: 2 others contradict it about one block."
                )
            await node.set_base_fee(10 * BASE_FEE_WEI)
            await node.mine()
            await line.step()
            [tripped] = line.booked("tripped")
            assert tripped.body["breaker"] == "providers_disagree"
            assert len(tripped.body["numbers"]["providers"]) == 2
            purposes = [entry.body["purpose"] for entry in line.booked("signed")]
            assert purposes == ["plan", "cancel"] and sent.nonce == 0
            await node.set_base_fee(BASE_FEE_WEI)
            await node.mine()
            await line.step()
            assert line.booked("cancelled") and not line.booked("cleared")
            await stage.pass_time(601)
            assert len((await line.step()).sent) == 1
            assert [entry.body["breaker"] for entry in line.booked("cleared")] == ["providers_disagree"]
