"""Attempts to make the keeper lose money, stall or book what is not so; each was one that worked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keeper import abi
from keeper.chain.client import Receipt, SimResult
from keeper.errors import RpcError
from keeper.fixed import WAD
from keeper.keys import OperatorKey, tip_of
from keeper.lab.actors import account
from keeper.lab.artifacts import chainlink
from keeper.lab.chainlink import set_price
from keeper.lab.node import Contract, Tx
from keeper.lab.positions import PositionSpec, open_position, open_positions
from keeper.lab.safe import execute
from keeper.lab.world import BASE_FEE_WEI, Lab
from keeper.multisig.safe import InnerCall
from keeper.types import Gas, Hash, hex_of
from tests.e2e.line import Line, open_again, open_line

ETHER = 10**18
_E8 = 10**8
WHO = account(1)


async def _fallen(line: Line, lab: Lab) -> None:
    """One account below 1, and a keeper whose transactions wait for the test to mine them."""
    assert (await line.step()).liquidatable == 0
    await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
    await lab.node.mine_on_demand()


async def _open(lab: Lab, market: str = "3.0") -> None:
    spec = PositionSpec(WHO, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
    await open_position(lab.node, lab.world.cast, lab.world.aave[market], spec)


async def test_an_operator_out_of_gas_recovers_when_refilled(lab: Lab, tmp_path: Path) -> None:
    """However long cancellations were refused, a small refill frees the nonce and the account is liquidated."""
    await _open(lab)
    async with open_line(lab, tmp_path) as line:
        await _fallen(line, lab)
        operator = lab.world.cast.operator.address
        await lab.node.set_balances([operator], 0)
        assert len((await line.step()).sent) == 1
        assert line.booked("not_taken")
        for _ in range(45):
            await lab.node.mine(4)
            await line.step()
        await lab.node.set_balances([operator], ETHER // 10)
        for _ in range(6):
            await lab.node.mine(4)
            await line.step()
        assert line.booked("settled"), [(e.kind, e.body) for e in line.booked("not_taken")[-1:]]


async def test_a_cancellation_outbids_the_tip_it_replaces(lab: Lab, tmp_path: Path) -> None:
    """The tip the network suggests has fallen since: both fees still grow by the tenth that nodes ask for."""
    await _open(lab)
    async with open_line(lab, tmp_path) as line:
        await _fallen(line, lab)
        assert len((await line.step()).sent) == 1
        await lab.node.set_base_fee(100 * BASE_FEE_WEI)
        await lab.node.mine(45)
        await line.step()
        [stuck] = line.store.open_transactions()
        plan, cancel = stuck.attempts
        assert cancel.purpose == "cancel"
        assert 10 * cancel.max_fee_wei >= 11 * plan.max_fee_wei
        assert 10 * tip_of(cancel.raw) >= 11 * tip_of(plan.raw)


async def test_a_cancellation_is_never_dearer_than_the_operator_allows(lab: Lab, tmp_path: Path) -> None:
    """Taken and never mined, for a long time: it stays within a quarter of `max_fee_gwei`."""
    await _open(lab)
    async with open_line(lab, tmp_path) as line:
        await _fallen(line, lab)
        assert len((await line.step()).sent) == 1
        for _ in range(45):
            await lab.node.drop_pending()
            await lab.node.mine(4)
            await line.step()
        [stuck] = line.store.open_transactions()
        assert len(stuck.attempts) > 20
        assert max(attempt.max_fee_wei for attempt in stuck.attempts) <= 251 * 10**9


async def test_a_revert_nobody_can_explain_any_more_is_settled(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node has dropped the state of the block: the loss is booked without words, and the line goes on."""
    await _open(lab)
    async with open_line(lab, tmp_path) as line:
        await _fallen(line, lab)
        assert len((await line.step()).sent) == 1
        await _price_in_the_next_block(line, lab, 2_000)
        await lab.node.mine()
        simulate = line.parts.chain.simulate

        async def pruned(*arguments: object, **named: object) -> object:
            raise RpcError("eth_simulateV1", -32000, "missing trie node")

        monkeypatch.setattr(line.parts.chain, "simulate", pruned)
        report = await line.step()
        monkeypatch.setattr(line.parts.chain, "simulate", simulate)
        assert [each.status for each in report.settled] == [0]


async def _price_in_the_next_block(line: Line, lab: Lab, dollars: int) -> None:
    """The oracle's next report, mined before anything of ours."""
    feed = lab.world.feeds["WETH"]
    aggregator = Contract(lab.node, feed.aggregator, chainlink("FluxAggregator").abi)
    round_id = int(await aggregator.read("latestRound")) + 1
    await line.pend(aggregator.tx(feed.reporter, "submit", round_id, dollars * _E8, gas=400_000))


async def test_mined_between_two_questions_is_not_lost(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation mined after its receipt was asked for and before the nonce was is booked, not dropped."""
    await _open(lab)
    async with open_line(lab, tmp_path) as line:
        await _fallen(line, lab)
        assert len((await line.step()).sent) == 1
        await lab.node.drop_pending()
        await lab.node.mine(45)
        await line.step()
        await lab.node.drop_pending()
        await lab.node.mine(4)
        [stuck] = line.store.open_transactions()
        for attempt in stuck.attempts[-1:]:
            await lab.node.rpc.request("eth_sendRawTransaction", "0x" + attempt.raw.hex())
        ask = line.parts.chain.receipt
        asked: list[Hash] = []

        async def mined_meanwhile(transaction_hash: Hash) -> Receipt | None:
            answer = await ask(transaction_hash)
            asked.append(transaction_hash)
            if len(asked) == len(stuck.attempts):
                await lab.node.mine()
            return answer

        monkeypatch.setattr(line.parts.chain, "receipt", mined_meanwhile)
        await line.step()
        monkeypatch.undo()
        await line.step()
        assert not line.booked("dropped")
        assert len(line.booked("cancelled")) == 1


async def test_a_nonce_that_somebody_took_is_lost_only_after_long(lab: Lab, tmp_path: Path) -> None:
    """Somebody with the key was first: until ours has expired a late receipt is waited for, then it is named who took
    the nonce, and the account is taken anew.
    """
    await _open(lab)
    async with open_line(lab, tmp_path) as line:
        await _fallen(line, lab)
        [sent] = (await line.step()).sent
        await lab.node.drop_pending()
        taker = await line.pend(Tx(lab.world.cast.operator.address, WHO, gas=21_000))
        await lab.node.mine()
        while line.head.number <= sent.last_block:
            await line.step()
            assert not line.booked("dropped")
            await lab.node.mine()
        for _ in range(4):
            await line.step()
            await lab.node.mine()
        [dropped] = line.booked("dropped")
        assert dropped.body["tx"] == hex_of(taker)
        await line.step()
        assert [entry.body["status"] for entry in line.booked("settled")] == [1]


async def test_a_death_before_signing_does_not_forbid_the_same_plan(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper dies between intent and signature and starts again before the next block: it goes on."""
    await _open(lab)
    async with open_line(lab, tmp_path) as line:
        await _fallen(line, lab)

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(OperatorKey, "sign", die)
        with pytest.raises(KeyboardInterrupt):
            await line.step()
        monkeypatch.undo()
    async with open_again(lab, line.rig) as again:
        report = await again.step()
        assert again.refusals(report, WHO) == [("send", "plan_ended")]
        await lab.node.mine()
        assert len((await again.step()).sent) == 1


async def test_one_unreadable_protocol_does_not_stop_the_other(lab: Lab, tmp_path: Path) -> None:
    """A market that answers what its adapter cannot read is refused by name; the other goes on."""
    await _open(lab)
    async with open_line(lab, tmp_path) as line:
        await _fallen(line, lab)
        token = lab.world.aave["3.6"].pool
        await lab.node.set_code({token: bytes.fromhex("60006000f3")})
        report = await line.step()
        assert len(report.sent) == 1


async def test_refused_plans_do_not_starve_the_others(lab: Lab, tmp_path: Path) -> None:
    """More accounts than are tried at a head promise most and always fail their trial: the others still get a turn."""
    world = lab.world
    poison = [account(n) for n in range(10, 28)]
    specs = [PositionSpec(who, {"WBTC": 2 * 10**8}, {"USDC": 1}, 110 * WAD // 100) for who in poison]
    specs.append(PositionSpec(WHO, {"WETH": 2 * ETHER}, {"USDC": 1}, 110 * WAD // 100))
    await open_positions(lab.node, world.cast, world.aave["3.0"], specs)
    async with open_line(lab, tmp_path) as line:
        data = abi.load("Liquidator").function("setFeed").encode(world.tokens["WBTC"].address, bytes(20), 0)
        await execute(lab.node, world.safe, InnerCall(line.rig.liquidator, data))
        assert (await line.step()).liquidatable == 0
        await set_price(lab.node, world.feeds["WBTC"], world.prices_e8["WBTC"] * 88 // 100)
        await set_price(lab.node, world.feeds["WETH"], 1_750 * _E8)
        sent = []
        for _ in range(4):
            report = await line.step()
            sent += report.sent
            await lab.node.mine()
        assert sent


async def test_a_pair_that_always_reverts_does_not_hide_the_others(lab: Lab, tmp_path: Path) -> None:
    """The best pair of an account fails its trial at every head: the next best one is taken."""
    world = lab.world
    spec = PositionSpec(WHO, {"WBTC": 2 * 10**8, "WETH": ETHER}, {"USDC": 1}, 110 * WAD // 100)
    await open_positions(lab.node, world.cast, world.aave["3.0"], [spec])
    async with open_line(lab, tmp_path) as line:
        wbtc, weth = world.tokens["WBTC"].address, world.tokens["WETH"].address
        data = abi.load("Liquidator").function("setFeed").encode(wbtc, bytes(20), 0)
        await execute(lab.node, world.safe, InnerCall(line.rig.liquidator, data))
        await line.step()
        await set_price(lab.node, world.feeds["WBTC"], world.prices_e8["WBTC"] * 85 // 100)
        first = await line.step()
        assert not first.sent and line.refusals(first, WHO) == [("trial", "reverts")]
        await lab.node.mine()
        second = await line.step()
        assert len(second.sent) == 1
        [intent] = line.booked("intent")
        assert intent.body["seize_token"] == abi.checksum(weth)


async def test_gas_beyond_the_plan_is_not_paid_at_a_loss(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account of many reserves costs more gas than was planned: what the trial used decides, not the estimate."""
    await _open(lab)
    async with open_line(lab, tmp_path) as line:
        await _fallen(line, lab)
        simulate = line.parts.chain.simulate

        async def costly(*arguments: Any) -> list[SimResult]:
            results = await simulate(*arguments)
            return [replace(each, gas_used=Gas(each.gas_used * 1_000)) for each in results]

        monkeypatch.setattr(line.parts.chain, "simulate", costly)
        report = await line.step()
        assert not report.sent
        assert line.refusals(report, WHO) == [("clear", "unprofitable")]
        monkeypatch.undo()
        await lab.node.mine()
        assert len((await line.step()).sent) == 1, "one costly trial makes nothing else look dear"


async def test_more_accounts_than_can_be_priced_in_time(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a block's time is used up, what was priced is sent, and who was left out comes first at the next head."""
    crowd = [account(n) for n in range(10, 15)]
    specs = [PositionSpec(who, {"WETH": ETHER}, {"USDC": 1}, 110 * WAD // 100) for who in crowd]
    await open_positions(lab.node, lab.world.cast, lab.world.aave["3.0"], specs)
    async with open_line(lab, tmp_path) as line:
        await _fallen(line, lab)
        monkeypatch.setattr("keeper.engine.planning._AT_ONCE", 2)
        counts = []
        planned: set[Hash] = set()
        for _ in range(3):
            monkeypatch.setattr(line.engine._planning, "_wall_clock", _Ticking(line))
            report = await line.step()
            counts.append(len(report.sent))
            planned |= {sent.plan_id for sent in report.sent}
        assert counts == [2, 2, 1] and len(planned) == 5


class _Ticking:
    """A clock that stands at the newest head and goes on by two seconds whenever it is asked."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._asked = 0

    def __call__(self) -> float:
        self._asked += 1
        return self._line.head.timestamp_s + 2 * self._asked
