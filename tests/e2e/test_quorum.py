"""q providers against q − 1 liars, on a real chain: nothing is done on a lie, nothing is missed by one."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from keeper.abi import load
from keeper.chain.client import Notice
from keeper.errors import NoQuorum
from keeper.fixed import MAX_UINT256, WAD
from keeper.lab.aave import pool_of
from keeper.lab.actors import account
from keeper.lab.artifacts import chainlink
from keeper.lab.chainlink import Feed, set_price
from keeper.lab.node import Contract, Node, Tx
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.tokens import approve_txs, mint_txs
from keeper.lab.world import Lab
from keeper.types import GLOBAL_SCOPE, Hash
from tests.e2e.line import PAUSE_GUARD, Line, open_again
from tests.front import Front, Storage, as_before, as_if

ETHER = 10**18
_E8 = 10**8
MARKET = "3.0"
WHO = account(1)
FALLEN = 1_750 * _E8
_GAS = 600_000


@dataclass(slots=True)
class Stage:
    """A chain with a keeper set up on it, and the providers it is asked through."""

    lab: Lab
    rig: Rig
    stack: AsyncExitStack
    fronts: list[Front] = dataclasses.field(default_factory=list)
    notices: list[Notice] = dataclasses.field(default_factory=list)

    @property
    def node(self) -> Node:
        """Control over the chain."""
        return self.lab.node

    @property
    def feed(self) -> Feed:
        """The price of WETH."""
        return self.lab.world.feeds["WETH"]

    async def line(self, quorum: int, providers: int) -> Line:
        """A keeper that asks through so many more providers, all honest so far."""
        for _ in range(providers):
            self.fronts.append(await self.stack.enter_async_context(Front(self.lab.anvil.url).serve()))
        urls = ", ".join(f'"{front.ws_url}"' for front in self.fronts)
        text = self.rig.config.read_text().splitlines()
        kept = [line for line in text if not line.startswith(("rpc_urls", "quorum"))]
        kept.insert(1, f"rpc_urls = [{urls}]\nquorum = {quorum}")
        self.rig.config.write_text("\n".join(kept) + "\n")
        line = await self.stack.enter_async_context(open_again(self.lab, self.rig))
        line.parts.chain.listen(self.notices.append)
        assert (await line.step()).liquidatable == 0
        return line

    async def open(self) -> None:
        """10 WETH against USDC at 110 %."""
        spec = PositionSpec(WHO, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
        await open_position(self.node, self.lab.world.cast, self.lab.world.aave[MARKET], spec)

    async def price_tx(self, price_e8: int) -> Tx:
        """A report of the feed."""
        flux = Contract(self.node, self.feed.aggregator, chainlink("FluxAggregator").abi)
        round_id = int(await flux.read("latestRound")) + 1
        return flux.tx(self.feed.reporter, "submit", round_id, price_e8, gas=_GAS)

    def pause_tx(self) -> Tx:
        """A guardian stops everything."""
        guard = Contract(self.node, self.rig.pause_guard, PAUSE_GUARD)
        guardian = self.lab.world.cast.guardians[0].address
        return guard.tx(guardian, "pause", GLOBAL_SCOPE, b"DRILL\0\0\0", Hash(bytes(32)), gas=_GAS)

    async def repaid(self) -> Sequence[Tx]:
        """WHO owes nothing any more."""
        world = self.lab.world
        market, usdc = world.aave[MARKET], world.tokens["USDC"]
        await self.node.send_all(
            [
                *mint_txs(world.cast, usdc, WHO, 10**12),
                *await approve_txs(self.node, usdc, WHO, market.pool, MAX_UINT256),
            ]
        )
        pool = pool_of(self.node, market)
        return [pool.tx(WHO, "repay", usdc.address, MAX_UINT256, 2, WHO, gas=_GAS)]

    def liars(self, quorum: int, place: str) -> list[Front]:
        """q − 1 of the providers, those asked first or those asked last."""
        return self.fronts[: quorum - 1] if place == "first" else self.fronts[-(quorum - 1) :]

    @property
    def dropped(self) -> set[str]:
        """Providers that were dropped, by label."""
        return {notice.provider for notice in self.notices if notice.name == "provider_dropped"}


@pytest.fixture(scope="module")
async def rigged(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Lab, Rig]]:
    """The session's world with the contracts deployed and set up, undone after the module."""
    snapshot = await shared_lab.node.snapshot()
    yield shared_lab, await make_rig(shared_lab, tmp_path_factory.mktemp("rig"), Terms(max_head_age_s=3_600))
    await shared_lab.node.revert(snapshot)


@pytest.fixture
async def stage(rigged: tuple[Lab, Rig], lab: Lab, tmp_path: Path) -> AsyncIterator[Stage]:
    """The keeper's files for this test alone, and a borrower at 110 %."""
    rig = rigged[1]
    for name in ("keeper.toml", ".env"):
        shutil.copy(rig.folder / name, tmp_path / name)
    async with AsyncExitStack() as stack:
        rig = dataclasses.replace(rig, folder=tmp_path, config=tmp_path / "keeper.toml")
        stage = Stage(lab, rig, stack)
        await stage.open()
        yield stage


async def _liquidated(line: Line) -> None:
    """What is sent settles, and the account is safe."""
    await line.lab.node.mine_on_demand()
    reports = await line.steps()
    await line.lab.node.mine_each_transaction()
    assert sum(len(report.settled) for report in reports) >= 1
    assert await line.health(MARKET, WHO) >= WAD


# --- lies that would make it act -------------------------------------------------------------------------------------


async def _fallen_price(stage: Stage) -> Storage:
    return await as_if(stage.node, [await stage.price_tx(FALLEN)])


async def _more_debt(stage: Stage) -> Storage:
    # the price is near enough that the debt alone makes it unsafe
    world = stage.lab.world
    pool = pool_of(stage.node, world.aave[MARKET])
    order = (world.tokens["USDC"].address, 400 * 10**6, 2, 0, WHO)
    lie = await as_if(stage.node, [pool.tx(WHO, "borrow", *order, gas=_GAS)])
    await set_price(stage.node, stage.feed, 1_860 * _E8)
    return lie


async def _denied_pause(stage: Stage) -> Storage:
    lie = await as_before(stage.node, [stage.pause_tx()])
    await set_price(stage.node, stage.feed, FALLEN)
    return lie


async def _denied_repayment(stage: Stage) -> Storage:
    lie = await as_before(stage.node, await stage.repaid())
    await set_price(stage.node, stage.feed, FALLEN)
    return lie


TEMPTING = [_fallen_price, _more_debt, _denied_pause, _denied_repayment]
Lie = Callable[[Stage], Any]


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("quorum", [2, 3])
@pytest.mark.parametrize("lie", TEMPTING)
async def test_liars_do_not_make_it_send(stage: Stage, lie: Lie, quorum: int, place: str) -> None:
    """q − 1 providers tell the same lie about price, debt or pause: nothing is sent, and all of them are dropped."""
    line = await stage.line(quorum, 2 * quorum - 1)
    told = await lie(stage)
    liars = stage.liars(quorum, place)
    for front in liars:
        front.lie = told
    for _ in range(3):
        await stage.node.mine()
        assert not (await line.step()).sent
    assert stage.dropped <= {front.ws_url for front in liars}
    if place == "first":
        assert stage.dropped == {front.ws_url for front in liars}


@pytest.mark.parametrize("lie", [_fallen_price, _denied_pause, _denied_repayment])
async def test_a_quorum_of_one_believes_the_lie(stage: Stage, lie: Lie) -> None:
    """What the standing warning warns of: it acts, and only the contract stands in the way."""
    line = await stage.line(1, 1)
    stage.fronts[0].lie = await lie(stage)
    await stage.node.mine_on_demand()
    await stage.node.mine()
    before_raw = await line.treasury_raw()
    assert len((await line.step()).sent) == 1
    await stage.node.mine()
    stage.fronts[0].lie = {}
    [settlement] = (await line.step()).settled
    await stage.node.mine_each_transaction()
    assert settlement.status == 0 and await line.treasury_raw() == before_raw


async def test_a_quorum_of_one_asks_nothing_twice(stage: Stage) -> None:
    """A head costs one look and one question for logs; acting on it a plan's rounds, a trial and the sending."""
    line = await stage.line(1, 1)
    [front] = stage.fronts
    for fallen in (False, True):
        await (set_price(stage.node, stage.feed, FALLEN) if fallen else stage.node.mine())
        line.head = head = await line.parts.chain.head()
        front.asked.clear()
        report = await line.engine.step(head)
        assert len(report.sent) == fallen
        acting = [*4 * ["eth_call"], "eth_simulateV1", "eth_sendRawTransaction"] if fallen else []
        afterwards = ["eth_feeHistory"] if fallen else []  # what a replacement would have to offer
        patrol = ["eth_getCode", *3 * ["eth_getStorageAt"]]  # last, the contract whose turn it is
        assert sorted(front.asked[:2]) == ["eth_call", "eth_getLogs"]
        assert front.asked[2:-4] == [*acting, *afterwards]
        assert front.asked[-4:] == patrol


@pytest.mark.parametrize("quorum", [2, 3])
@pytest.mark.parametrize("lie", TEMPTING)
async def test_without_enough_others_a_lie_stops_it(stage: Stage, lie: Lie, quorum: int) -> None:
    """With exactly q providers nobody can say who lies: the head is lost, and the next one without the lie is not."""
    line = await stage.line(quorum, quorum)
    stage.fronts[-1].lie = await lie(stage)
    await stage.node.mine()
    with pytest.raises(NoQuorum):
        await line.step()
    assert not line.booked("intent") and not stage.dropped
    stage.fronts[-1].lie = {}
    await stage.node.mine()
    assert not (await line.step()).sent


async def _one_word(stage: Stage) -> Storage:
    """What WHO owes of USDC, and nothing else: the pool's own sums stay what they are."""
    world = stage.lab.world
    market, usdc = world.aave[MARKET], world.tokens["USDC"]
    order = (usdc.address, 400 * 10**6, 2, 0, WHO)
    lie = await as_if(stage.node, [pool_of(stage.node, market).tx(WHO, "borrow", *order, gas=_GAS)])
    debt = market.reserves["USDC"].variable_debt
    words = lie["0x" + debt.hex()]
    # above a balance stands the index it was last told at; the total supply is a word of its own
    [balance] = [slot for slot in words if await stage.node.storage(debt, int(slot, 16)) >> 128]
    await set_price(stage.node, stage.feed, FALLEN)
    return {"0x" + debt.hex(): {balance: words[balance]}}


async def test_a_candidate_is_read_again_by_a_quorum(stage: Stage) -> None:
    """One word of an account about to be liquidated: with two providers nothing is sent, with three the truth is."""
    line = await stage.line(2, 2)
    lie = await _one_word(stage)
    stage.fronts[1].lie = lie
    await stage.node.mine()
    with pytest.raises(NoQuorum):
        await line.step()
    assert not line.booked("intent")
    await stage.stack.aclose()
    async with AsyncExitStack() as stack:
        again = Stage(stage.lab, stage.rig, stack)
        await set_price(stage.node, stage.feed, 2_000 * _E8)
        line = await again.line(2, 3)
        again.fronts[1].lie = lie
        await set_price(stage.node, stage.feed, FALLEN)
        await stage.node.mine_on_demand()
        assert len((await line.step()).sent) == 1
        await stage.node.mine_each_transaction()
        assert again.dropped == {again.fronts[1].ws_url}
        [intent] = line.booked("intent")
        # of the 15 000 that are really owed against 17 500: what leaves it just unsafe, and half of the rest
        assert abs(int(intent.body["repay_raw"]) - 9_602_803_738) < 10**6


# --- lies that would make it miss ------------------------------------------------------------------------------------


async def _hidden_fall(stage: Stage) -> Storage:
    return await as_before(stage.node, [await stage.price_tx(FALLEN)])


async def _claimed_repayment(stage: Stage) -> Storage:
    lie = await as_if(stage.node, await stage.repaid())
    await set_price(stage.node, stage.feed, FALLEN)
    return lie


async def _claimed_pause(stage: Stage) -> Storage:
    lie = await as_if(stage.node, [stage.pause_tx()])
    await set_price(stage.node, stage.feed, FALLEN)
    return lie


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("quorum", [2, 3])
@pytest.mark.parametrize("lie", [_hidden_fall, _claimed_repayment, _claimed_pause])
async def test_liars_do_not_make_it_miss(stage: Stage, lie: Lie, quorum: int, place: str) -> None:
    """q − 1 providers hide a fall, a debt, or say that all is paused: the account is liquidated at that very head."""
    line = await stage.line(quorum, 2 * quorum - 1)
    told = await lie(stage)
    for front in stage.liars(quorum, place):
        front.lie = told
    await _liquidated(line)
    assert stage.dropped <= {front.ws_url for front in stage.liars(quorum, place)}


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("quorum", [2, 3])
async def test_liars_cannot_hide_an_account(stage: Stage, quorum: int, place: str) -> None:
    """An account whose every log q − 1 providers leave out, at start and later, is known and liquidated."""

    def without_logs(method: str, _: list[Any], result: Any) -> Any:
        return [] if method == "eth_getLogs" else result

    line = await stage.line(quorum, quorum)
    for front in stage.liars(quorum, place):
        front.answer = without_logs
    other = account(2)
    spec = PositionSpec(other, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
    await open_position(stage.node, stage.lab.world.cast, stage.lab.world.aave[MARKET], spec)
    await line.step()
    assert {key.account for key in line.watch.book} == {WHO, other}
    noted = {notice.provider for notice in stage.notices if notice.name == "logs_differ"}
    assert noted == {front.ws_url for front in stage.liars(quorum, place)}
    await set_price(stage.node, stage.feed, FALLEN)
    await stage.node.mine_on_demand()
    assert len((await line.step()).sent) == 2
    await stage.node.mine()
    await stage.node.mine_each_transaction()
    assert len((await line.step()).settled) == 2


async def test_a_log_left_out_at_the_start_is_told_by_others(stage: Stage) -> None:
    """One of two providers knows no history at all: a keeper that starts finds everybody nevertheless."""
    line = await stage.line(2, 2)
    assert {key.account for key in line.watch.book} == {WHO}
    stage.fronts[0].answer = lambda method, _, result: [] if method == "eth_getLogs" else result
    (stage.rig.folder / "keeper.db").unlink()
    async with AsyncExitStack() as stack:
        await stage.stack.aclose()
        for front in stage.fronts:
            await stack.enter_async_context(front.serve())
        again = Stage(stage.lab, stage.rig, stack, stage.fronts)
        fresh = await again.line(2, 0)
        assert {key.account for key in fresh.watch.book} == {WHO}


# --- invented events and unreadable ones -----------------------------------------------------------------------------


async def test_invented_logs_do_no_harm(stage: Stage) -> None:
    """Events that never were, even such as no contract emits, cost a reading and the liar its place."""
    line = await stage.line(2, 3)
    pool = load("AavePool")
    topics = ["0x" + pool.event(name).topic.hex() for name in ("Borrow", "LiquidationCall")]

    def inventing(method: str, params: list[Any], result: Any) -> Any:
        if method != "eth_getLogs" or "blockHash" not in params[0]:
            return result
        market = "0x" + stage.lab.world.aave[MARKET].pool.hex()
        invented = {
            "address": market,
            "data": "0x",
            "blockNumber": hex(line.head.number),
            "blockHash": params[0]["blockHash"],
            "transactionHash": "0x" + "12" * 32,
            "removed": False,
        }
        return result + [invented | {"topics": [topic], "logIndex": hex(900)} for topic in topics]

    stage.fronts[0].answer = inventing
    await stage.node.mine()
    report = await line.step()
    assert not report.refused
    assert stage.dropped == {stage.fronts[0].ws_url}
    await set_price(stage.node, stage.feed, FALLEN)
    await _liquidated(line)
