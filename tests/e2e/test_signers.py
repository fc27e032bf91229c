"""Whoever holds the operator's key: liquidations are signed, and whatever goes wrong leaves the record right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from keeper.fixed import WAD
from keeper.keys.policy import Budget
from keeper.lab.actors import account
from keeper.lab.chainlink import set_price
from keeper.lab.judge import judge
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.signer_doubles import KmsDouble, Manners, Web3SignerDouble
from keeper.lab.world import Lab
from keeper.types import Address, Hash, PositionKey, Wei
from tests.e2e.custody import KINDS, REMOTE, Custody, kept
from tests.e2e.line import Line, open_again

ETHER = 10**18
_E8 = 10**8
WHO, OTHER, THIRD = account(1), account(2), account(3)


@asynccontextmanager
async def _ready(
    lab: Lab, folder: Path, kind: str, *who: Address, double: Any = None
) -> AsyncIterator[tuple[Rig, Custody]]:
    """Healthy accounts, and the files of a keeper whose key is kept so."""
    specs = [PositionSpec(one, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100) for one in who]
    await open_positions(lab.node, lab.world.cast, lab.world.aave["3.0"], specs)
    rig = await make_rig(lab, folder, Terms())
    async with kept(lab, rig, kind, double) as custody:
        yield rig, custody


async def _fall(line: Line) -> None:
    """The accounts are unsafe from now on, and transactions wait for the test to mine them."""
    assert (await line.step()).liquidatable == 0
    await set_price(line.lab.node, line.lab.world.feeds["WETH"], 1_750 * _E8)
    await line.lab.node.mine_on_demand()


@asynccontextmanager
async def _fallen(
    lab: Lab, folder: Path, kind: str, *who: Address, double: Any = None
) -> AsyncIterator[tuple[Line, Custody]]:
    """Both at once, with the keeper running."""
    async with _ready(lab, folder, kind, *who, double=double) as (rig, custody), open_again(lab, rig) as line:
        await _fall(line)
        yield line, custody


async def _stopped(line: Line, asked: asyncio.Event) -> None:
    """Break off the step under way once the signer is being asked."""
    step = asyncio.ensure_future(line.step())
    await asked.wait()
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step


async def _finish(line: Line) -> None:
    """Go on until nothing is left to do; then what is booked is what the chain has."""
    for _ in range(12):
        await line.lab.node.mine()
        report = await line.step()
        if not (report.sent or report.settled or line.store.open_transactions()):
            break
    assert not line.store.open_transactions()
    verdict = await judge(line.rig.config)
    assert verdict.ok, str(verdict)


def _doubles(kind: str, lab: Lab, manners: Manners) -> Web3SignerDouble | KmsDouble:
    make = Web3SignerDouble if kind == "web3signer" else KmsDouble
    return make(lab.world.cast.operator.key, manners)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_liquidation_is_signed_wherever_the_key_is(lab: Lab, tmp_path: Path, kind: str) -> None:
    """Signed, mined, settled and judged; what a remote signer was asked is what the real one takes."""
    async with _fallen(lab, tmp_path, kind, WHO) as (line, custody):
        before_raw = await line.treasury_raw()
        [sent] = (await line.step()).sent
        await lab.node.mine()
        [settlement] = (await line.step()).settled
        assert (settlement.transaction_hash, settlement.status) == (sent.transaction_hash, 1)
        assert settlement.profit_raw == await line.treasury_raw() - before_raw > 0
        await _finish(line)
        if custody.double is not None:
            assert custody.double.asked and custody.double.faults == []


@pytest.mark.parametrize("kind", REMOTE)
@pytest.mark.parametrize("manners", ["other_key", "other_digest", "garbage", "refusing", "absent"])
async def test_nothing_is_sent_that_we_did_not_sign(
    lab: Lab, tmp_path: Path, kind: str, manners: Manners
) -> None:
    """A lying or failing signer costs the head: refused by name, the nonce free; once it is honest, it goes on."""
    async with _fallen(lab, tmp_path, kind, WHO, double=_doubles(kind, lab, manners)) as (line, custody):
        report = await line.step()
        assert not report.sent and line.refusals(report, WHO) == [("send", "not_signed")]
        assert not line.booked("signed", "sent") and not line.store.open_transactions()
        assert (await lab.node.rpc.request("txpool_status"))["pending"] == "0x0"
        [refusal] = [entry for entry in line.booked("refusal") if entry.body["reason"] == "not_signed"]
        assert "127.0.0.1" in refusal.body["numbers"]["error"]
        await lab.node.mine()
        assert custody.double is not None
        custody.double.manners = "honest"
        [sent] = (await line.step()).sent
        assert sent.nonce == 0
        await _finish(line)
        assert len(line.booked("settled")) == 1


@dataclass
class _SignsTheFirst(Web3SignerDouble):
    """Signs once, and is `then` like; `second` is set when it is asked for the second signature."""

    then: Manners = "silent"
    second: asyncio.Event = field(default_factory=asyncio.Event)

    def signature(self, digest: Hash) -> tuple[int, int, int]:
        made = super().signature(digest)
        self.manners, self.waiting = self.then, self.second
        return made


@dataclass
class _Meanwhile(Web3SignerDouble):
    """Lets something happen when it is asked for its `at`-th signature, before it answers."""

    at: int = 1
    do: Callable[[], object] = print
    count: int = 0

    def signature(self, digest: Hash) -> tuple[int, int, int]:
        self.count += 1
        if self.count == self.at:
            self.do()
        return super().signature(digest)


async def test_a_signer_that_fails_half_way_leaves_no_gap(lab: Lab, tmp_path: Path) -> None:
    """What was signed before is sent; all after it is refused, and the next plans take the nonces that were freed."""
    double = _SignsTheFirst(lab.world.cast.operator.key, then="absent")
    async with _fallen(lab, tmp_path, "web3signer", WHO, OTHER, THIRD, double=double) as (line, _):
        report = await line.step()
        assert [each.nonce for each in report.sent] == [0]
        refused = [refusal.reason for _, _, refusal in report.refused]
        assert refused.count("not_signed") == 2
        double.manners = double.then = "honest"
        await lab.node.mine()
        report = await line.step()
        assert [each.nonce for each in report.sent] == [1, 2]
        await _finish(line)
        assert len(line.booked("settled")) == 3 and len(line.booked("signed")) == 3


async def test_a_key_whose_own_budget_is_spent_ends_no_run(lab: Lab, tmp_path: Path) -> None:
    """By what it signed itself there is no room, whatever the record says: refused, the nonce free, and it goes on."""
    async with _fallen(lab, tmp_path, "env", WHO) as (line, _):
        sender = line.engine._sender
        assert sender is not None
        sender._key._budget = Budget(Wei(0), lambda: 0.0)
        report = await line.step()
        assert not report.sent and line.refusals(report, WHO) == [("send", "not_signed")]
        assert not line.booked("signed") and not line.store.open_transactions()
        sender._key._budget = Budget(Wei(ETHER), lambda: 0.0)
        await lab.node.mine()
        assert [each.nonce for each in (await line.step()).sent] == [0]
        await _finish(line)


async def test_a_stop_at_the_second_signature(lab: Lab, tmp_path: Path) -> None:
    """The first signature is on record, the other nonce free; the next run offers the one and uses the other."""
    double = _SignsTheFirst(lab.world.cast.operator.key)
    async with _ready(lab, tmp_path, "web3signer", WHO, OTHER, double=double) as (rig, _):
        async with open_again(lab, rig) as line:
            await _fall(line)
            await _stopped(line, double.second)
            assert [entry.body["nonce"] for entry in line.booked("intent")] == [0, 1]
            assert [entry.body["nonce"] for entry in line.booked("signed")] == [0]
            assert not line.booked("sent")
        double.manners = double.then = "honest"
        async with open_again(lab, rig) as again:
            assert [each.state for each in again.store.open_transactions()] == ["signed"]
            await lab.node.mine()
            assert [each.nonce for each in (await again.step()).sent] == [1]
            await _finish(again)
            assert len(again.booked("settled")) == 2 == len(again.booked("signed"))


async def test_a_stop_before_the_first_signature(lab: Lab, tmp_path: Path) -> None:
    """Only the intent is on record; the next run frees its nonce and uses it for another plan."""
    double = KmsDouble(lab.world.cast.operator.key, "silent")
    async with _ready(lab, tmp_path, "aws-kms", WHO, double=double) as (rig, _):
        async with open_again(lab, rig) as line:
            await _fall(line)
            await _stopped(line, double.waiting)
            assert [each.state for each in line.store.open_transactions()] == ["reserved"]
        double.manners = "honest"
        async with open_again(lab, rig) as again:
            assert not again.store.open_transactions()
            await lab.node.mine()
            assert [each.nonce for each in (await again.step()).sent] == [0]
            await _finish(again)


@pytest.mark.parametrize("when", [1, 2])
async def test_a_stop_by_file_while_a_signer_takes_its_time(lab: Lab, tmp_path: Path, when: int) -> None:
    """Halted while signatures are waited for: nothing more is signed, nothing handed over, and all is taken back."""
    halt = tmp_path / "keeper.halt"
    double = _Meanwhile(lab.world.cast.operator.key, at=when, do=halt.touch)
    async with _fallen(lab, tmp_path, "web3signer", WHO, OTHER, double=double) as (line, _):
        report = await line.step()
        assert not report.sent and not line.booked("sent")
        assert {refusal.reason for _, _, refusal in report.refused} == {"halted"}
        signed = [entry.body["nonce"] for entry in line.booked("signed")]
        assert signed == [0, 1][:when]
        assert (await lab.node.rpc.request("txpool_status"))["pending"] == "0x0"
        for _ in range(3):
            await lab.node.mine()
            await line.step()
        assert len(line.booked("cancelled")) == when and not line.store.open_transactions()
        halt.unlink()
        await _finish(line)
        assert len(line.booked("settled")) == 2


@dataclass
class _Holds(Web3SignerDouble):
    """Keeps the next signature back once `hold` is set, until `go` is; answers others meanwhile."""

    hold: bool = False
    held: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def delay(self, request: web.Request) -> None:
        if self.hold:
            self.hold = False
            self.held.set()
            await self.go.wait()
        await super().delay(request)


async def test_a_replacement_signed_over_a_cancellation_is_taken_back_at_once(
    lab: Lab, tmp_path: Path
) -> None:
    """The gate closes while a bump waits for its signature: cancelled once, the bump kept, and cancelled over it."""
    double = _Holds(lab.world.cast.operator.key)
    async with _fallen(lab, tmp_path, "web3signer", WHO, double=double) as (line, _):
        await line.step()
        for _ in range(2):
            await lab.node.set_base_fee(20 * 10**9)
            await lab.node.mine()
        await lab.node.set_base_fee(20 * 10**9)
        double.hold = True
        step = asyncio.ensure_future(line.step())
        await double.held.wait()
        (tmp_path / "keeper.halt").touch()
        sender, moment = line.engine._sender, line.engine.reflexes.moment
        assert sender is not None and moment is not None
        await asyncio.gather(sender.stop(moment.market), sender.stop(moment.market))
        double.go.set()
        report = await step
        assert not report.replaced and not report.sent
        [transaction] = line.store.open_transactions()
        attempts = [(each.purpose, each.sent_at_s is not None) for each in transaction.attempts]
        assert attempts == [("plan", True), ("cancel", True), ("bump", False), ("cancel", True)]
        await lab.node.mine()
        [settlement] = (await line.step()).settled
        assert settlement.transaction_hash == transaction.attempts[-1].hash
        assert not line.store.open_transactions() and len(line.booked("cancelled")) == 1
        (tmp_path / "keeper.halt").unlink()
        await _finish(line)


async def test_a_nonce_claimed_meanwhile_waits_for_those_below(lab: Lab, tmp_path: Path) -> None:
    """Another claims a nonce while a signer fails: the freed one below it is used next, also after a start."""
    double = _Meanwhile(lab.world.cast.operator.key, at=2)
    async with _ready(lab, tmp_path, "web3signer", WHO, OTHER, double=double) as (rig, _):
        async with open_again(lab, rig) as line:
            await _fall(line)
            sender = line.engine._sender
            assert sender is not None
            taken: list[int] = []

            def claim() -> None:
                taken.append(sender._nonces.take())
                operator, key = lab.world.cast.operator.address, PositionKey("", "", THIRD)
                line.store.reserve(Hash(bytes(32)), taken[0], sender=operator, key=key, at_s=1)
                double.manners = "other_key"

            double.do = claim
            assert [each.nonce for each in (await line.step()).sent] == [0]
            assert taken == [2] and sender._nonces.take() == 1
        async with open_again(lab, rig) as again:
            double.manners = "honest"
            await lab.node.mine()
            assert [each.nonce for each in (await again.step()).sent] == [1]
            await _finish(again)


async def test_a_cancellation_waits_for_its_signer(lab: Lab, tmp_path: Path) -> None:
    """Halted while the signer is away: nothing is booked as taken back until it is, and the head is not lost."""
    async with _fallen(lab, tmp_path, "aws-kms", WHO) as (line, custody):
        [sent] = (await line.step()).sent
        assert custody.double is not None
        custody.double.manners = "absent"
        halt = tmp_path / "keeper.halt"
        halt.touch()
        await lab.node.rpc.request("anvil_dropTransaction", "0x" + sent.transaction_hash.hex())
        await lab.node.mine()
        await line.step()
        assert [entry.body["purpose"] for entry in line.booked("signed")] == ["plan"]
        custody.double.manners = "honest"
        await lab.node.mine()
        await line.step()
        assert [entry.body["purpose"] for entry in line.booked("signed")] == ["plan", "cancel"]
        await lab.node.mine()
        await line.step()
        assert len(line.booked("cancelled")) == 1 and not line.store.open_transactions()


async def test_the_operators_balance_is_watched(lab: Lab, tmp_path: Path) -> None:
    """Too little and too much are booked once each, and again after it was otherwise."""
    rig = await make_rig(lab, tmp_path, Terms())
    text = rig.config.read_text()
    bounds = f'kind = "env"\nmin_balance_wei = {ETHER}\nmax_balance_wei = {2 * ETHER}'
    rig.config.write_text(text.replace('kind = "env"', bounds))
    operator = lab.world.cast.operator.address
    async with open_again(lab, rig) as line:
        for wei in (ETHER - 1, ETHER - 1, ETHER, 2 * ETHER + 1, ETHER - 1):
            await lab.node.set_balances([operator], wei)
            for _ in range(50):
                await lab.node.mine()
                await line.step()
        told = [
            entry.body for entry in line.booked("warning") if entry.body.get("name") == "operator balance"
        ]
        assert [int(body["wei"]) for body in told] == [ETHER - 1, 2 * ETHER + 1, ETHER - 1]
        assert (
            "signer.min_balance_wei" in told[0]["detail"]
            and "Refuel it with at least 1 wei" in told[0]["detail"]
        )
        assert "Move 1 wei out of it" in told[1]["detail"]
