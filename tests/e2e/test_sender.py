"""What the sender does with a transaction that is not mined: replaced, taken back, or lost to somebody else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from keeper import abi
from keeper.chain.pool import Pool
from keeper.errors import RpcError
from keeper.fixed import WAD
from keeper.keys import calldata_of, tip_of
from keeper.lab.aave import pool_of
from keeper.lab.actors import account, actor
from keeper.lab.chainlink import set_price
from keeper.lab.judge import judge
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.rig import Terms
from keeper.lab.safe import execute
from keeper.lab.tokens import approve_txs, mint_txs
from keeper.lab.world import BASE_FEE_WEI, Lab
from keeper.multisig.safe import InnerCall
from keeper.store import Attempt, OpenTransaction
from keeper.types import GLOBAL_SCOPE, Address, Hash, hex_of
from tests.e2e.line import Line, open_again, open_line

ETHER = 10**18
GWEI = 10**9
_E8 = 10**8
_BIG, _SMALL = account(1), account(2)
LIQUIDATOR = abi.load("Liquidator")


@asynccontextmanager
async def _fallen(
    lab: Lab, folder: Path, sizes: dict[Address, int], terms: Terms | None = None
) -> AsyncIterator[Line]:
    """Accounts below 1, and a keeper whose transactions wait for the test to mine them."""
    specs = [PositionSpec(who, {"WETH": wei}, {"USDC": 1}, 110 * WAD // 100) for who, wei in sizes.items()]
    await open_positions(lab.node, lab.world.cast, lab.world.aave["3.0"], specs)
    async with open_line(lab, folder, terms) as line:
        assert (await line.step()).liquidatable == 0
        await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
        await lab.node.mine_on_demand()
        yield line


async def _passed_over(line: Line, base_fee_wei: int, blocks: int = 2) -> None:
    """Blocks too dear for what is in flight, with a head handled at each but the last."""
    for number in range(blocks):
        await line.lab.node.set_base_fee(base_fee_wei)
        await line.lab.node.mine()
        if number < blocks - 1:
            report = await line.step()
            assert not (report.replaced or report.settled)
    await line.lab.node.set_base_fee(base_fee_wei)


def _only(line: Line) -> OpenTransaction:
    [transaction] = line.store.open_transactions()
    return transaction


def _outbids(new: Attempt, old: Attempt) -> bool:
    return 8 * new.max_fee_wei >= 9 * old.max_fee_wei and 8 * tip_of(new.raw) >= 9 * tip_of(old.raw)


async def _dropped(line: Line, transaction_hash: Hash) -> None:
    await line.lab.node.rpc.request("anvil_dropTransaction", hex_of(transaction_hash))


async def _broadcast(line: Line, raw: bytes) -> None:
    await line.lab.node.rpc.request("eth_sendRawTransaction", hex_of(raw))


async def _in_pool(line: Line) -> set[str]:
    content: Any = await line.lab.node.rpc.request("txpool_content")
    return {tx["hash"] for part in content.values() for by in part.values() for tx in by.values()}


async def _judged(line: Line) -> None:
    verdict = await judge(line.rig.config)
    assert not verdict.differences, str(verdict)


async def test_a_stuck_transaction_is_replaced_and_liquidates(lab: Lab, tmp_path: Path) -> None:
    """Too cheap for two blocks: tried afresh, cleared afresh, dearer by an eighth, same plan and nonce; and it pays."""
    async with _fallen(lab, tmp_path, {_BIG: 10 * ETHER}) as line:
        before_raw = await line.treasury_raw()
        [sent] = (await line.step()).sent
        await _passed_over(line, 10 * BASE_FEE_WEI)
        report = await line.step()
        assert [each.plan_id for each in report.replaced] == [sent.plan_id] and not report.sent
        plan, bump = _only(line).attempts
        assert (plan.purpose, bump.purpose) == ("plan", "bump") and _outbids(bump, plan)
        assert bump.last_block == report.head.number + (plan.last_block or 0) - int(
            line.booked("intent")[0].body["block"]
        )
        signed = line.booked("signed")
        assert [entry.body["nonce"] for entry in signed] == [sent.nonce] * 2
        assert signed[1].body["block"] == report.head.number
        assert calldata_of(bump.raw) != calldata_of(plan.raw), "its last block is a new one"
        await lab.node.mine()
        [settlement] = (await line.step()).settled
        assert (settlement.status, settlement.transaction_hash) == (1, bump.hash)
        [entry] = line.booked("settled")
        gained_raw = await line.treasury_raw() - before_raw
        assert gained_raw == int(entry.body["profit_raw"]) == int(entry.body["expected_profit_raw"]) > 0
        await _judged(line)


async def test_a_forgotten_transaction_is_offered_again(lab: Lab, tmp_path: Path) -> None:
    """The node dropped it though its fee suffices: the same bytes, nothing new is signed, and it is mined once."""
    async with _fallen(lab, tmp_path, {_BIG: 10 * ETHER}) as line:
        [sent] = (await line.step()).sent
        await _dropped(line, sent.transaction_hash)
        await lab.node.mine()
        await line.step()
        assert not await _in_pool(line)
        await lab.node.mine()
        await line.step()
        assert await _in_pool(line) == {hex_of(sent.transaction_hash)}
        await lab.node.mine()
        [settlement] = (await line.step()).settled
        assert (
            settlement.transaction_hash == sent.transaction_hash and len(line.booked("signed", "sent")) == 2
        )


@pytest.mark.parametrize(
    ("words", "complaint", "purposes", "offered"),
    [
        ("transaction underpriced", "underpriced", ["plan", "bump"], True),
        ("replacement transaction underpriced", "replacement_underpriced", ["plan", "bump"], True),
        ("max fee per gas less than block base fee", "fee_below_base", ["plan", "bump"], True),
        ("exceeds block gas limit", "gas_limit", ["plan", "cancel"], True),
        ("execution reverted", "reverted", ["plan", "cancel"], True),
        ("nonce too high", "nonce_too_high", ["plan"], True),
        ("the backend is busy", "unknown", ["plan"], True),
        ("nonce too low", "nonce_too_low", ["plan"], False),
    ],
)
async def test_what_follows_from_a_refusal_follows_at_the_next_head(
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    complaint: str,
    purposes: list[str],
    offered: bool,
) -> None:
    """Dearer, taken back, offered again or waited for, as stated, without the two blocks of patience."""
    async with _fallen(lab, tmp_path, {_BIG: 10 * ETHER}) as line:

        async def refuse(_: bytes) -> Hash:
            raise RpcError("eth_sendRawTransaction", -32000, words)

        with monkeypatch.context() as patch:
            patch.setattr(line.parts.chain, "send_raw", refuse)
            [sent] = (await line.step()).sent
        [entry] = line.booked("not_taken")
        assert entry.body["complaint"] == complaint and entry.body["tx"] == hex_of(sent.transaction_hash)
        await lab.node.mine()
        report = await line.step()
        attempts = _only(line).attempts
        assert [each.purpose for each in attempts] == purposes
        assert [each.transaction_hash for each in report.replaced] == [
            each.hash for each in attempts if each.purpose == "bump"
        ]
        assert all(_outbids(new, old) for old, new in pairwise(attempts))
        assert await _in_pool(line) == ({hex_of(attempts[-1].hash)} if offered else set())
        await lab.node.mine(2)
        await line.step()
        await lab.node.mine()
        await line.step()
        outcome = "cancelled" if "cancel" in purposes else "settled"
        assert [each.kind for each in line.booked("settled", "cancelled", "reverted")][:1] == [outcome]


async def test_without_gas_money_nothing_else_is_sent(lab: Lab, tmp_path: Path) -> None:
    """The operator cannot pay for the first: it is offered again, others wait, and a refill lets both be mined."""
    async with _fallen(lab, tmp_path, {_BIG: 10 * ETHER, _SMALL: 5 * ETHER}) as line:
        operator = lab.world.cast.operator.address
        await lab.node.set_balances([operator], 10**12)
        assert len((await line.step()).sent) == 2, "both were cleared before anybody was asked"
        assert {entry.body["complaint"] for entry in line.booked("not_taken")} == {"insufficient_funds"}
        third = account(3)
        await lab.node.mine_each_transaction()
        spec = PositionSpec(third, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
        await open_positions(lab.node, lab.world.cast, lab.world.aave["3.0"], [spec])
        await set_price(lab.node, lab.world.feeds["WETH"], 1_550 * _E8)
        await lab.node.mine_on_demand()
        report = await line.step()
        assert line.refusals(report, third) == [("send", "insufficient_funds")]
        assert len(line.booked("signed")) == 2
        await lab.node.set_balances([operator], ETHER)
        for _ in range(4):
            await lab.node.mine()
            await line.step()
        assert len(line.booked("settled")) >= 3
        await _judged(line)


@pytest.mark.parametrize(("how", "blocks"), [("pause", 2), ("halt", 2), ("pause", 0), ("halt", 1)])
async def test_nothing_is_replaced_while_stopped(lab: Lab, tmp_path: Path, how: str, blocks: int) -> None:
    """Stuck or waiting when the stop comes: nothing dearer is signed, its nonce is taken back, only that is mined."""
    async with _fallen(lab, tmp_path, {_BIG: 10 * ETHER}) as line:
        [sent] = (await line.step()).sent
        await _passed_over(line, 10 * BASE_FEE_WEI, blocks)
        if how == "halt":
            (line.rig.folder / "keeper.halt").touch()
        else:
            await line.pend(
                line.guard().tx(
                    lab.world.cast.guardians[0].address,
                    "pause",
                    GLOBAL_SCOPE,
                    b"DRILL\0\0\0",
                    bytes(32),
                    gas=300_000,
                )
            )
            await lab.node.mine()
        report = await line.step()
        assert not report.replaced and not report.sent
        plan, cancel = _only(line).attempts
        assert cancel.purpose == "cancel" and _outbids(cancel, plan)
        await lab.node.mine()
        [settlement] = (await line.step()).settled
        assert settlement.transaction_hash == cancel.hash
        assert [entry.kind for entry in line.booked("cancelled", "settled", "reverted")] == ["cancelled"]
        assert [entry.body["purpose"] for entry in line.booked("signed")] == ["plan", "cancel"]
        assert await lab.node.rpc.request("eth_getTransactionReceipt", hex_of(sent.transaction_hash)) is None
        await _judged(line)


async def test_fees_stop_at_what_the_profit_allows(lab: Lab, tmp_path: Path) -> None:
    """Base fees rise until a liquidation would no longer leave its minimum: it is taken back, never sent at a loss."""
    terms = Terms(min_profit_usd="5.0")
    async with _fallen(lab, tmp_path, {_SMALL: ETHER // 2}, terms) as line:
        await line.step()
        fee_wei, heads = 3 * BASE_FEE_WEI, 0
        while _only(line).attempts[-1].purpose != "cancel":
            await _passed_over(line, fee_wei)
            await line.step()
            fee_wei, heads = 4 * fee_wei, heads + 1
            assert heads < 10
        *liquidations, cancel = _only(line).attempts
        assert len(liquidations) >= 2, "it was replaced while it paid"
        assert ("clear", "unprofitable") in [
            (entry.body["stage"], entry.body["reason"]) for entry in line.booked("refusal")
        ]
        intent, *renewed = (*line.booked("intent"), *line.booked("signed")[1:-1])
        price_e8 = 1_750 * _E8
        for attempt, entry in zip(liquidations, [intent, *renewed], strict=True):
            worst_usd_e8 = attempt.max_fee_wei * int(entry.body["tried_gas"]) * price_e8 // ETHER
            earned_usd_e8 = int(entry.body["expected_profit_raw"]) * _E8 // 10**6
            assert earned_usd_e8 - worst_usd_e8 >= 5 * _E8 - 1
        assert _outbids(cancel, liquidations[-1])
        await lab.node.mine()
        await line.step()
        assert [entry.kind for entry in line.booked("cancelled", "settled", "reverted")] == ["cancelled"]


async def test_fees_stop_at_the_operators_limit(lab: Lab, tmp_path: Path) -> None:
    """Where a block asks for more than `max_fee_gwei`, a liquidation that could pay it is still taken back."""
    async with _fallen(lab, tmp_path, {_BIG: 100 * ETHER}) as line:
        await line.step()
        await _passed_over(line, 300 * GWEI)
        report = await line.step()
        assert line.refusals(report, _BIG) == [("clear", "fee_over_limit")]
        assert [each.purpose for each in _only(line).attempts] == ["plan", "cancel"]


async def test_one_nonce_serves_one_plan(lab: Lab, tmp_path: Path) -> None:
    """Two in flight, one replaced and one taken back, then new ones: every nonce belongs to one plan, without a gap."""
    async with _fallen(lab, tmp_path, {_BIG: 10 * ETHER, _SMALL: ETHER // 4}) as line:
        assert len((await line.step()).sent) == 2
        await _passed_over(line, 50 * BASE_FEE_WEI)
        report = await line.step()
        assert len(report.replaced) == 1
        purposes = [each.attempts[-1].purpose for each in line.store.open_transactions()]
        assert sorted(purposes) == ["bump", "cancel"]
        for _ in range(4):
            await lab.node.set_base_fee(BASE_FEE_WEI)
            await lab.node.mine()
            await line.step()
        assert not line.store.open_transactions()
        assert sorted(entry.kind for entry in line.booked("settled", "cancelled")) == [
            "cancelled",
            "settled",
            "settled",
        ]
        plans: defaultdict[int, set[str]] = defaultdict(set)
        for entry in line.booked("signed"):
            plans[int(entry.body["nonce"])].add(entry.plan_id)
        assert all(len(users) == 1 for users in plans.values())
        assert sorted(plans) == list(range(min(plans), min(plans) + 3))
        await _judged(line)


async def test_a_restart_follows_what_it_cannot_replace(lab: Lab, tmp_path: Path) -> None:
    """Stuck at a restart: its plan is forgotten, so it is offered again, not replaced, and taken back when expired."""
    async with _fallen(lab, tmp_path, {_BIG: 10 * ETHER}) as line:
        [sent] = (await line.step()).sent
    async with open_again(lab, line.rig) as again:
        await _passed_over(again, 10 * BASE_FEE_WEI, 3)
        assert not (await again.step()).replaced
        assert [each.hash for each in _only(again).attempts] == [sent.transaction_hash]
        await lab.node.mine(40)
        await again.step()
        assert _only(again).attempts[-1].purpose == "cancel"


async def test_sending_costs_one_flush_and_one_request_each(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From clearance to broadcast on the public route: two commits, one flushed, then only the broadcasts."""
    async with _fallen(lab, tmp_path, {_BIG: 10 * ETHER, _SMALL: 5 * ETHER}) as line:
        happened: list[str] = []
        transaction, run = line.store.transaction, Pool.run
        depth = 0

        @contextmanager
        def counted(*, durable: bool = False) -> Iterator[Any]:
            nonlocal depth
            depth += 1
            try:
                with transaction(durable=durable) as connection:
                    yield connection
            finally:
                depth -= 1
            if not depth:
                happened.append("flush" if durable else "commit")

        async def asked(self: Pool, *arguments: Any, **named: Any) -> Any:
            happened.append("request")
            return await run(self, *arguments, **named)

        sender = line.engine._sender
        assert sender is not None
        send = sender.send

        async def watched(*arguments: Any) -> Any:
            monkeypatch.setattr(line.store, "transaction", counted)
            monkeypatch.setattr(Pool, "run", asked)
            try:
                return await send(*arguments)
            finally:
                monkeypatch.undo()

        monkeypatch.setattr(sender, "send", watched)
        assert len((await line.step()).sent) == 2
        assert happened == ["commit", "flush", "request", "request", "commit"]


# --- lost races ------------------------------------------------------------------------------------------------------


async def _rival(line: Line, who: Address, repay_raw: int) -> Hash:
    """Somebody else's liquidation of an account, waiting to be first in the next block."""
    lab, world = line.lab, line.lab.world
    market, rival = world.aave["3.0"], world.cast.liquidator.address
    debt = market.reserves["USDC"].token
    order = (market.reserves["WETH"].token.address, debt.address, who, repay_raw, False)
    return await line.pend(pool_of(lab.node, market).tx(rival, "liquidationCall", *order, gas=1_500_000))


async def _fund_rival(lab: Lab) -> None:
    world = lab.world
    market, rival = world.aave["3.0"], world.cast.liquidator.address
    debt = market.reserves["USDC"].token
    await lab.node.send_all(
        [
            *mint_txs(world.cast, debt, rival, 10**12),
            *await approve_txs(lab.node, debt, rival, market.pool, 2**255),
        ]
    )


async def test_a_lost_race_is_booked_with_its_winner(lab: Lab, tmp_path: Path) -> None:
    """A rival's liquidation comes first in our block: its transaction and our gas are booked, and no revert counts."""
    await _fund_rival(lab)
    async with _fallen(lab, tmp_path, {_BIG: 10 * ETHER}) as line:
        [sent] = (await line.step()).sent
        theirs = await _rival(line, _BIG, 2**256 - 1)
        await lab.node.mine()
        [settlement] = (await line.step()).settled
        assert (settlement.status, settlement.transaction_hash) == (0, sent.transaction_hash)
        [entry] = line.booked("lost_race")
        assert entry.body["rival_tx"] == hex_of(theirs)
        assert int(entry.body["gas_cost_wei"]) == settlement.gas_cost_wei > 0
        assert int(entry.body["loss_usd_e8"]) == int(entry.body["gas_cost_usd_e8"]) > 0
        assert not line.booked("reverted") and line.ledger.consecutive_reverts() == 0
        await _judged(line)


async def test_a_lost_race_does_not_reset_reverts_in_a_row(lab: Lab, tmp_path: Path) -> None:
    """Reverts before and after a lost race stand in a row."""
    await _fund_rival(lab)
    async with _fallen(lab, tmp_path, {_BIG: 10 * ETHER}) as line:
        cost = {"gas_cost_wei": 1, "gas_cost_usd_e8": 1, "tx": bytes(32)}
        line.ledger.book("reverted", Hash(b"\1" * 32), "aave-3-0", _SMALL, cost, line.head.timestamp_s)
        await line.step()
        await _rival(line, _BIG, 2**256 - 1)
        await lab.node.mine()
        await line.step()
        assert line.booked("lost_race") and line.ledger.consecutive_reverts() == 1


async def test_a_liquidation_behind_ours_is_no_lost_race(lab: Lab, tmp_path: Path) -> None:
    """The Safe forbade its router, ours reverts, and a rival comes later in that block: it took nothing from us."""
    await _fund_rival(lab)
    async with _fallen(lab, tmp_path, {_BIG: 10 * ETHER}) as line:
        [sent] = (await line.step()).sent
        await _dropped(line, sent.transaction_hash)
        forbid = LIQUIDATOR.function("setVenue").encode(lab.world.uniswap_v3.router, 0)
        await lab.node.mine_each_transaction()
        await execute(lab.node, lab.world.safe, InnerCall(line.rig.liquidator, forbid))
        await lab.node.mine_on_demand()
        await _broadcast(line, sent.raw)
        market = lab.world.aave["3.0"]
        order = (
            market.reserves["WETH"].token.address,
            market.reserves["USDC"].token.address,
            _BIG,
            2**256 - 1,
            False,
        )
        behind = pool_of(lab.node, market).tx(
            lab.world.cast.liquidator.address, "liquidationCall", *order, gas=1_500_000
        )
        message = {
            "from": abi.checksum(behind.sender),
            "to": hex_of(market.pool),
            "data": hex_of(behind.data),
            "gas": hex(behind.gas),
            "maxFeePerGas": hex(3 * GWEI // 2),
            "maxPriorityFeePerGas": "0x0",
        }
        await lab.node.rpc.request("anvil_impersonateAccount", abi.checksum(behind.sender))
        await lab.node.rpc.request("eth_sendTransaction", message)
        await lab.node.mine()
        await line.step()
        [entry] = line.booked("reverted")
        assert entry.body["error"] == "CallFailed(0, Error(45))", (
            "by the end of the block the account was healthy"
        )
        assert line.ledger.consecutive_reverts() == 1


# --- a new operator key ----------------------------------------------------------------------------------------------


async def _rotate(line: Line, name: str) -> None:
    """Give the keeper another hot key, as an operator does: the Safe allows it, it gets gas, `.env` names it."""
    new = actor(name)
    await line.lab.node.drop_pending()
    await line.lab.node.mine_each_transaction()
    allow = LIQUIDATOR.function("setOperator").encode(new.address, True)
    await execute(line.lab.node, line.lab.world.safe, InnerCall(line.rig.liquidator, allow))
    await line.lab.node.set_balances([new.address], ETHER)
    await line.lab.node.mine_on_demand()
    secrets = line.rig.folder / ".env"
    lines = [each for each in secrets.read_text().splitlines() if "KEEPER_PRIVATE_KEY" not in each]
    secrets.write_text("\n".join([*lines, f"KEEPER_PRIVATE_KEY=0x{new.key.hex()}"]))


async def test_what_a_former_operator_sent_is_settled_when_mined(lab: Lab, tmp_path: Path) -> None:
    """The key changed while a transaction was in flight: it is followed, not doubled, and booked as what it was."""
    async with _fallen(lab, tmp_path, {_BIG: 10 * ETHER}) as line:
        before_raw = await line.treasury_raw()
        [sent] = (await line.step()).sent
        await _rotate(line, "second operator")
    async with open_again(lab, line.rig) as again:
        [warning] = again.booked("warning")
        assert abi.checksum(lab.world.cast.operator.address) in warning.body["detail"]
        assert not (await again.step()).sent, "the account is in flight"
        await _broadcast(again, sent.raw)
        await lab.node.mine()
        [settlement] = (await again.step()).settled
        assert (settlement.transaction_hash, settlement.status) == (sent.transaction_hash, 1)
        [entry] = again.booked("settled")
        assert await again.treasury_raw() - before_raw == int(entry.body["profit_raw"])
        assert len(again.booked("signed")) == 1
        await _judged(again)


async def test_a_new_operator_takes_over_what_has_expired(lab: Lab, tmp_path: Path) -> None:
    """The old transaction can no longer execute: the new key liquidates, and the same nonce of two keys is no clash."""
    async with _fallen(lab, tmp_path, {_BIG: 10 * ETHER}) as line:
        [old] = (await line.step()).sent
        await _rotate(line, "second operator")
        # as many transactions behind it as the first one had
        nonce = hex(old.nonce)
        await lab.node.rpc.request("anvil_setNonce", abi.checksum(actor("second operator").address), nonce)
    async with open_again(lab, line.rig) as again:
        assert not (await again.step()).sent
        await lab.node.mine(45)
        [new] = (await again.step()).sent
        assert (new.nonce, new.plan_id) != (old.nonce, old.plan_id) and new.nonce == old.nonce
        await lab.node.mine()
        await again.step()
        assert len(again.booked("settled")) == 1
        await _judged(again)
        await _broadcast(again, old.raw)
        await lab.node.mine()
        [settlement] = (await again.step()).settled
        assert (settlement.transaction_hash, settlement.status) == (old.transaction_hash, 0)
        [entry] = again.booked("reverted")
        assert "PlanExpired" in entry.body["error"]
        await _judged(again)
