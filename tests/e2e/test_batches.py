"""Several accounts in one transaction, and one in several steps, on the chain itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keeper import abi
from keeper.engine.head import StepReport
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import set_price
from keeper.lab.judge import judge
from keeper.lab.node import Tx
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.rig import Terms
from keeper.lab.tokens import approve_txs, balance_of, mint_txs
from keeper.lab.uniswap import move_pool
from keeper.lab.world import Lab
from keeper.ledger import copies
from keeper.planner.batches import Joint
from keeper.types import Address, Option, ProtocolCall, Refusal
from tests.e2e.line import Line, open_again, open_line

ETHER = 10**18
MARKET = "3.6"
SMALL = account(4)
RICH_RAW = 10**12
LONG_AGO_S = 121  # so that nothing that was signed before can be mined any more
DEAR_WEI = 20 * 10**9
ACCOUNTS = [account(place) for place in (1, 2, 3)]


async def fallen(lab: Lab, accounts: list[Address]) -> None:
    """Accounts with ether against USDC, of different sizes."""
    specs = [
        PositionSpec(
            who, {"WETH": ETHER // 5 if who == SMALL else (10 + place) * ETHER}, {"USDC": 1}, 110 * WAD // 100
        )
        for place, who in enumerate(accounts)
    ]
    await open_positions(lab.node, lab.world.cast, lab.world.aave[MARKET], specs)


async def fall(lab: Lab) -> None:
    """The price of ether, everywhere, to where such accounts are liquidatable whole."""
    world, weth = lab.world, lab.world.tokens["WETH"]
    prices = world.prices_e8 | {"WETH": 1_700 * 10**8}
    await set_price(lab.node, world.feeds["WETH"], prices["WETH"])
    await lab.node.set_balances([world.cast.deployer.address], 10**32)
    for pool in world.uniswap_v3.pools:
        if weth in (pool.token0, pool.token1):
            sides = prices[pool.token0.symbol], prices[pool.token1.symbol]
            await move_pool(lab.node, world.cast, world.uniswap_v3, pool, *sides)


async def debt_raw(lab: Lab, market: str, who: Address) -> int:
    """What an account owes in dollars."""
    debt = lab.world.aave[market].reserves["USDC"].variable_debt
    return await balance_of(lab.node, replace(lab.world.tokens["USDC"], address=debt), who)


def told(line: Line, kind: str) -> dict[str, Any]:
    """Entries of a kind by their account."""
    return {entry.account.lower(): entry.body for entry in line.booked(kind)}


def named(*accounts: Address) -> set[str]:
    """As the ledger writes them, in lower case."""
    return {"0x" + each.hex() for each in accounts}


async def test_accounts_share_a_transaction(lab: Lab, tmp_path: Path) -> None:
    """One transaction liquidates all, for what its trial said to the unit; every account has its entries."""
    await fallen(lab, ACCOUNTS)
    async with open_line(lab, tmp_path, Terms(max_accounts=8)) as line:
        await fall(lab)
        before_raw = await line.treasury_raw()
        first, *_ = await line.steps()
        assert (first.liquidatable, len(first.sent)) == (3, 1)
        [settled] = line.booked("settled")
        assert await line.treasury_raw() - before_raw == int(settled.body["profit_raw"]) > 0
        assert settled.body["profit_raw"] == settled.body["expected_profit_raw"]
        [intent] = line.booked("intent")
        assert {each["account"].lower() for each in intent.body["accounts"]} == named(*ACCOUNTS)
        assert told(line, "joined").keys() | {intent.account.lower()} == named(*ACCOUNTS)
        assert told(line, "liquidated").keys() == named(*ACCOUNTS)
        assert not line.booked("skipped", "reverted")
        for who in ACCOUNTS:
            assert await line.health(MARKET, who) >= WAD
    verdict = await judge(line.rig.config)
    assert verdict.ok, str(verdict)


async def ready_rival(lab: Lab) -> None:
    """Give the cast's liquidator what it needs to take anybody."""
    market, token, rich = lab.world.aave[MARKET], lab.world.tokens["USDC"], lab.world.cast.liquidator.address
    approvals = await approve_txs(lab.node, token, rich, market.pool, RICH_RAW)
    await lab.node.send_all([*mint_txs(lab.world.cast, token, rich, RICH_RAW), *approvals])


async def rival(line: Line, who: Address) -> None:
    """Its liquidation of an account, first in the next block."""
    world = line.lab.world
    tokens = world.tokens["WETH"].address, world.tokens["USDC"].address
    data = abi.load("AavePool").function("liquidationCall").encode(*tokens, who, RICH_RAW, False)
    await line.pend(Tx(world.cast.liquidator.address, world.aave[MARKET].pool, data))


async def test_who_was_liquidated_by_another_does_not_sink_the_rest(lab: Lab, tmp_path: Path) -> None:
    """One that a rival takes first in the same block is booked as skipped, with the protocol's reason; the others are
    liquidated, for as much as the chain says.
    """
    await fallen(lab, ACCOUNTS)
    await ready_rival(lab)
    async with open_line(lab, tmp_path, Terms(max_accounts=8)) as line:
        await fall(lab)
        before_raw = await line.treasury_raw()
        await lab.node.mine_on_demand()
        assert len((await line.step()).sent) == 1
        await rival(line, ACCOUNTS[0])
        await lab.node.mine()
        await lab.node.mine_each_transaction()
        await line.steps()
        [settled] = line.booked("settled")
        assert await line.treasury_raw() - before_raw == int(settled.body["profit_raw"]) > 0
        assert int(settled.body["profit_raw"]) < int(settled.body["expected_profit_raw"])
        skipped = told(line, "skipped")
        assert skipped.keys() == named(ACCOUNTS[0])
        assert "HealthFactorNotBelowThreshold" in next(iter(skipped.values()))["error"]
        assert told(line, "liquidated").keys() == named(*ACCOUNTS[1:])
        assert not line.booked("reverted", "lost_race")
    verdict = await judge(line.rig.config)
    assert verdict.ok, str(verdict)


async def test_a_share_is_of_what_cannot_fail(lab: Lab, tmp_path: Path) -> None:
    """A part of the profit for inclusion is none of what accounts bring whose calls may fail: when a rival takes two of
    three, what comes of the third still leaves the minimum.
    """
    await fallen(lab, ACCOUNTS[:2])
    third = PositionSpec(ACCOUNTS[2], {"WETH": 3 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
    await open_positions(lab.node, lab.world.cast, lab.world.aave[MARKET], [third])
    await ready_rival(lab)
    async with open_line(lab, tmp_path, Terms(max_accounts=8, priority_share_bps=10_000)) as line:
        await fall(lab)
        await lab.node.mine_on_demand()
        [sent] = (await line.step()).sent
        await lab.node.drop_pending()
        for who in ACCOUNTS[:2]:
            await rival(line, who)
        await lab.node.mine()
        await lab.node.rpc.request("eth_sendRawTransaction", "0x" + sent.raw.hex())
        await lab.node.mine()
        await line.step()
        [settled] = line.booked("settled")
        assert told(line, "liquidated").keys() == named(ACCOUNTS[2])
        net_usd_e8 = int(settled.body["profit_usd_e8"]) - int(settled.body["gas_cost_usd_e8"])
        assert net_usd_e8 >= 10**8


async def test_who_does_not_pay_alone_pays_with_others(lab: Lab, tmp_path: Path) -> None:
    """Where gas is dear a small account is refused alone, and liquidated together with larger ones."""
    await fallen(lab, [*ACCOUNTS[:2], SMALL])
    async with open_line(lab, tmp_path, Terms(max_accounts=8)) as line:
        await fall(lab)
        await lab.node.set_base_fee(DEAR_WEI)
        await lab.node.mine()
        head = await line.parts.chain.head()
        view = await line.engine.look(head)
        [health] = [each for each in line.engine._assess(view, StepReport(head)) if each.key.account == SMALL]
        alone = await line.engine.ask(line.engine.plan(health, view, head), head)
        assert isinstance(alone, Refusal) and alone.reason == "unprofitable"
        report = await line.step()
        assert (len(report.sent), line.refusals(report, SMALL)) == (1, [])
        await line.steps()
        assert told(line, "liquidated").keys() == named(*ACCOUNTS[:2], SMALL)
        assert await line.health(MARKET, SMALL) >= WAD


async def test_who_fails_in_the_trial_goes_alone_afterwards(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account whose call fails in the trial is told so, does not sink the others, and shares nothing any more."""
    calls_of = Joint.liquidation_calls

    def spoilt(joint: Joint, option: Option, repay_raw: int) -> list[ProtocolCall]:
        swapped = SMALL, account(9)  # who owes nothing
        return [
            replace(call, data=call.data.replace(*swapped)) for call in calls_of(joint, option, repay_raw)
        ]

    monkeypatch.setattr(Joint, "liquidation_calls", spoilt)
    await fallen(lab, [*ACCOUNTS[:2], SMALL])
    async with open_line(lab, tmp_path, Terms(max_accounts=8)) as line:
        await fall(lab)
        await lab.node.set_base_fee(DEAR_WEI)
        await lab.node.mine()
        await lab.node.mine_on_demand()
        report = await line.step()
        assert (len(report.sent), line.refusals(report, SMALL)) == (1, [("trial", "skipped")])
        for _ in range(2):  # heads at which all of them are in flight
            await lab.node.drop_pending()
            await lab.node.mine()
            report = await line.step()
            assert not (report.sent or report.settled)
        await lab.node.mine()
        report = await line.step()
        assert told(line, "liquidated").keys() == named(*ACCOUNTS[:2])
        assert told(line, "skipped").keys() == named(SMALL)
        await lab.node.mine_each_transaction()
        assert line.refusals(report, SMALL) == [("plan", "unprofitable")]
        assert len(line.booked("intent")) == 1
        [small] = [key for key in line.watch.book if key.account == SMALL]
        assert not line.engine._turns.may_join(small), "not even with others"
    assert (await judge(line.rig.config)).differences == ()


async def test_a_restart_knows_every_account_in_flight(lab: Lab, tmp_path: Path) -> None:
    """A keeper that starts anew plans nothing for accounts of a transaction that is not mined, and books it whole."""
    await fallen(lab, ACCOUNTS)
    async with open_line(lab, tmp_path, Terms(max_accounts=8)) as line:
        await fall(lab)
        await lab.node.mine_on_demand()
        assert len((await line.step()).sent) == 1
    async with open_again(lab, line.rig) as line:
        again = await line.step()
        assert (again.liquidatable, again.sent, again.refused) == (3, [], [])
        await lab.node.mine()
        await lab.node.mine_each_transaction()
        await line.steps()
        assert told(line, "liquidated").keys() == named(*ACCOUNTS)
        assert len(line.booked("intent")) == len(line.booked("settled")) == 1
    verdict = await judge(line.rig.config)
    assert verdict.ok, str(verdict)


async def test_a_restored_record_learns_of_every_account(lab: Lab, tmp_path: Path) -> None:
    """A backup older than the transaction finds it on chain, with all its accounts, and books each of them."""
    await fallen(lab, ACCOUNTS)
    backup, terms = tmp_path / "backup.db", Terms(max_accounts=8)
    async with open_line(lab, tmp_path / "keeper", terms) as line:
        rig, before_raw = line.rig, await line.treasury_raw()
        await line.step()
        copies.back_up(line.store.path, backup, line.head.timestamp_s - LONG_AGO_S)
        await fall(lab)
        await line.steps()
        assert len(line.booked("settled")) == 1
    (rig.folder / "keeper.db").rename(rig.folder / "lost.db")
    copies.restore(backup, rig.folder / "keeper.db", lab.world.chain_id, line.head.timestamp_s - LONG_AGO_S)
    async with open_again(lab, rig) as line:
        assert not (await line.step()).sent
        assert told(line, "liquidated").keys() == named(*ACCOUNTS)
        gained_raw = await line.treasury_raw() - before_raw
        assert line.ledger.gross_profit_raw(lab.world.tokens["USDC"].address) == gained_raw > 0
    assert (await judge(rig.config)).differences == ()


async def test_an_orphaned_batch_holds_all_its_accounts_again(own_lab: Lab, tmp_path: Path) -> None:
    """While its block is gone none of them is planned anew; it is mined once more, and booked once more."""
    await fallen(own_lab, ACCOUNTS)
    async with open_line(own_lab, tmp_path, Terms(max_accounts=8, max_head_age_s=3_600)) as line:
        await fall(own_lab)
        assert len((await line.step()).sent) == 1
        assert len((await line.step()).settled) == 1
        await own_lab.node.mine_on_demand()
        await own_lab.node.rpc.request("anvil_reorg", 1, [])
        await own_lab.node.drop_pending()
        await own_lab.node.mine()
        again = await line.step()
        assert (again.liquidatable, again.sent, len(line.booked("reorged"))) == (3, [], 1)
        for _ in range(4):
            await own_lab.node.mine()
            assert not (await line.step()).sent
        assert len(line.booked("settled")) == 2 and len(line.booked("intent")) == 1
        assert [each.kind for each in line.booked("liquidated", "skipped")] == ["liquidated"] * 6
    assert (await judge(line.rig.config)).differences == ()


@pytest.mark.parametrize("market", ["3.0", "3.6"])
async def test_an_account_is_liquidated_in_two_steps(lab: Lab, tmp_path: Path, market: str) -> None:
    """Where the close factor allows half, one transaction takes more than half: twice, for what was expected."""
    who = ACCOUNTS[0]
    spec = PositionSpec(who, {"WETH": 20 * ETHER}, {"USDC": 1}, 114 * WAD // 100)
    await open_positions(lab.node, lab.world.cast, lab.world.aave[market], [spec])
    owed_raw = await debt_raw(lab, market, who)
    async with open_line(lab, tmp_path, Terms(max_accounts=8)) as line:
        await fall(lab)
        before_raw = await line.treasury_raw()
        first, *_ = await line.steps()
        assert (first.liquidatable, len(first.sent)) == (1, 1)
        [settled] = line.booked("settled")
        assert await line.treasury_raw() - before_raw == int(settled.body["profit_raw"]) > 0
        assert settled.body["profit_raw"] == settled.body["expected_profit_raw"]
        receipt = await line.parts.chain.receipt(first.sent[0].transaction_hash)
        assert receipt is not None
        topic = abi.load("AavePool").event("LiquidationCall").topic
        assert [log.topics[0] for log in receipt.logs].count(topic) == 2
        assert owed_raw - await debt_raw(lab, market, who) > owed_raw * 52 // 100
        assert await line.health(market, who) >= WAD
    verdict = await judge(line.rig.config)
    assert verdict.ok, str(verdict)
