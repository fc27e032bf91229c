"""Attempts at what lies between the parts: reorganisations, replacements, relays, restarts and limits at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from keeper.chain.client import Chain
from keeper.engine import Engine
from keeper.errors import ChainError
from keeper.fixed import WAD
from keeper.keys import OperatorKey
from keeper.lab.actors import account
from keeper.lab.chainlink import set_price
from keeper.lab.node import Tx
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.world import BASE_FEE_WEI, Lab
from keeper.types import Address
from keeper.watch import Watch
from tests.conftest import OpenLab
from tests.e2e.line import Line, open_again, open_line

ETHER = 10**18
GWEI = 10**9
_E8 = 10**8
WHO, OTHER = account(1), account(2)


async def _open(lab: Lab, *who: Address) -> None:
    specs = [PositionSpec(one, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100) for one in who]
    await open_positions(lab.node, lab.world.cast, lab.world.aave["3.0"], specs)


async def _fall(lab: Lab) -> None:
    """The price falls, and transactions wait for the test to mine them."""
    await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
    await lab.node.mine_on_demand()


@dataclass(slots=True)
class Settled:
    """A chain of the test's own with a liquidation that was booked, and the keeper that booked it."""

    lab: Lab
    rig: Rig
    line: Line
    before_raw: int

    async def stands(self, line: Line) -> None:
        """What is booked is what the treasury has, nothing is left open, and the account was helped once."""
        profit = self.lab.world.tokens["USDC"].address
        assert line.ledger.gross_profit_raw(profit) == await line.treasury_raw() - self.before_raw
        assert not line.store.open_transactions()


@asynccontextmanager
async def _settled(lab: Lab, folder: Path) -> AsyncIterator[Settled]:
    await _open(lab, WHO)
    rig = await make_rig(lab, folder, Terms(max_head_age_s=3_600))
    async with open_again(lab, rig) as line:
        before_raw = await line.treasury_raw()
        await _fall(lab)
        assert len((await line.step()).sent) == 1
        await lab.node.mine()
        assert len((await line.step()).settled) == 1
        yield Settled(lab, rig, line, before_raw)


@pytest.mark.parametrize("what", ["logs", "look"])
async def test_a_head_lost_while_a_reorg_is_noticed_takes_outcomes_back(
    fresh_lab: OpenLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The head that shows the reorganisation is lost; the next one takes the orphaned outcome back all the same."""
    lab = await fresh_lab(clock="steady")
    async with _settled(lab, tmp_path) as before:
        line = before.line
        await lab.node.rpc.request("anvil_reorg", 1, [])
        await lab.node.mine()

        async def failing(*_: object) -> None:
            raise ChainError("The node is gone.")

        with monkeypatch.context() as broken:
            broken.setattr(Watch if what == "logs" else Engine, what, failing)
            with pytest.raises(ChainError):
                await line.step()
        await lab.node.mine()
        await line.step()
        assert len(line.booked("reorged")) == 1
        for blocks in (39, 1, 1, 1):
            await lab.node.mine(blocks)
            await line.step()
        await before.stands(line)


async def test_a_death_before_the_first_settling_takes_outcomes_back(
    fresh_lab: OpenLab, tmp_path: Path
) -> None:
    """The chain is reorganised while the keeper is down, and it dies after it started and before its first head."""
    lab = await fresh_lab(clock="steady")
    async with _settled(lab, tmp_path) as before:
        pass
    await lab.node.rpc.request("anvil_reorg", 1, [])
    await lab.node.mine()
    async with open_again(lab, before.rig):
        pass
    async with open_again(lab, before.rig) as line:
        await line.step()
        assert len(line.booked("reorged")) == 1


async def test_a_dry_run_hides_no_reorganisation(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """A dry run in between follows the new branch; the run after it takes the orphaned outcome back all the same."""
    lab = await fresh_lab(clock="steady")
    async with _settled(lab, tmp_path) as before:
        pass
    await lab.node.rpc.request("anvil_reorg", 1, [])
    await lab.node.mine()
    async with open_again(lab, before.rig, sign=False) as dry:
        await dry.step()
    async with open_again(lab, before.rig) as line:
        await line.step()
        assert len(line.booked("reorged")) == 1


async def test_a_lower_fee_limit_does_not_undercut_what_is_in_flight(lab: Lab, tmp_path: Path) -> None:
    """Replaced dearer, then started again under a lower `max_fee_gwei`: what takes it back outbids it, once."""
    await _open(lab, WHO)
    async with open_line(lab, tmp_path) as line:
        assert (await line.step()).liquidatable == 0
        await _fall(lab)
        assert len((await line.step()).sent) == 1
        for _ in range(2):
            await lab.node.set_base_fee(60 * GWEI)
            await lab.node.mine()
        await lab.node.set_base_fee(60 * GWEI)
        assert len((await line.step()).replaced) == 1
    text = line.rig.config.read_text()
    line.rig.config.write_text(text.replace("max_fee_gwei = 200.0", "max_fee_gwei = 10.0"))
    await lab.node.drop_pending()
    await lab.node.set_base_fee(BASE_FEE_WEI)
    await lab.node.mine(45)
    for _ in range(2):
        await lab.node.drop_pending()
        async with open_again(lab, line.rig) as again:
            await lab.node.mine()
            await again.step()
            [stuck] = again.store.open_transactions()
            _, bump, cancel = stuck.attempts
            assert cancel.purpose == "cancel" and 10 * cancel.max_fee_wei >= 11 * bump.max_fee_wei


async def test_two_deaths_before_signing_in_one_block(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started a third time at the same head: the plan it died on is still not tried, and that ends nothing."""
    await _open(lab, WHO)
    async with open_line(lab, tmp_path) as line:
        assert (await line.step()).liquidatable == 0
        await _fall(lab)

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(OperatorKey, "sign", die)
            with pytest.raises(KeyboardInterrupt):
                await line.step()
    async with open_again(lab, line.rig):
        pass
    async with open_again(lab, line.rig) as again:
        report = await again.step()
        assert again.refusals(report, WHO) == [("send", "plan_ended")]
        await lab.node.mine()
        assert len((await again.step()).sent) == 1


async def test_what_can_be_paid_for_is_sent_though_a_dearer_one_could_not(lab: Lab, tmp_path: Path) -> None:
    """Gas was dear when the operator ran short; it is cheap again, and what is left pays for the next liquidation."""
    await _open(lab, WHO)
    async with open_line(lab, tmp_path) as line:
        assert (await line.step()).liquidatable == 0
        await lab.node.set_base_fee(60 * GWEI)
        await _fall(lab)
        await lab.node.set_base_fee(60 * GWEI)
        await lab.node.mine()
        await lab.node.set_base_fee(60 * GWEI)
        await lab.node.set_balances([lab.world.cast.operator.address], 3 * ETHER // 100)
        assert len((await line.step()).sent) == 1
        assert [entry.body["complaint"] for entry in line.booked("not_taken")] == ["insufficient_funds"]
        for _ in range(8):
            await lab.node.set_base_fee(BASE_FEE_WEI)
            await lab.node.mine(20)
            await line.step()
        assert line.booked("settled"), line.booked("refusal")[-1].body


@pytest.mark.parametrize("whose", ["ours", "a stranger's"])
async def test_a_receipt_that_comes_late_is_not_a_nonce_lost(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """Receipts are missing for longer than the transaction lives: who used the nonce is looked up, never inferred."""
    await _open(lab, WHO)
    async with open_line(lab, tmp_path) as line:
        operator = lab.world.cast.operator.address
        before_raw = await line.treasury_raw()
        assert (await line.step()).liquidatable == 0
        await _fall(lab)
        assert len((await line.step()).sent) == 1
        if whose != "ours":
            await lab.node.drop_pending()
            await line.pend(Tx(operator, operator, b"", 21_000))
        await lab.node.mine()

        async def missing(*_: object) -> None:
            return None

        with monkeypatch.context() as patch:
            patch.setattr(Chain, "receipt", missing)
            for blocks in (1, 45, 1, 1):
                await line.step()
                await lab.node.mine(blocks)
            await line.step()
        await line.step()
        gained_raw = await line.treasury_raw() - before_raw
        assert line.ledger.gross_profit_raw(lab.world.tokens["USDC"].address) == gained_raw
        assert len(line.booked("settled")) == 1, (
            "a stranger's stands in the way of one plan, not of the account"
        )
        assert len(line.booked("dropped")) == (whose != "ours")


async def test_one_wrong_nonce_leaves_no_gap(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node once says that more nonces were used than were: the next transaction takes the one that is next."""
    await _open(lab, WHO)
    async with open_line(lab, tmp_path) as line:
        assert (await line.step()).liquidatable == 0
        await _fall(lab)
        [first] = (await line.step()).sent
        nonce = Chain.nonce

        async def more(chain: Chain, who: Address, tag: str = "latest") -> int:
            return 3 + await nonce(chain, who, tag)

        with monkeypatch.context() as patch:
            patch.setattr(Chain, "nonce", more)
            await line.step()
        await lab.node.mine()
        assert len((await line.step()).settled) == 1
        await lab.node.mine_each_transaction()
        await set_price(lab.node, lab.world.feeds["WETH"], 1_500 * _E8)
        [second] = (await line.step()).sent
        assert second.nonce == first.nonce + 1


async def test_runs_of_one_head_each_take_back_what_expired(lab: Lab, tmp_path: Path) -> None:
    """Started for a single head again and again: a transaction that was lost does not hold its account for ever."""
    await _open(lab, WHO)
    async with open_line(lab, tmp_path) as line:
        assert (await line.step()).liquidatable == 0
        await _fall(lab)
        assert len((await line.step()).sent) == 1
    await lab.node.drop_pending()
    await lab.node.mine(45)
    for _ in range(4):
        async with open_again(lab, line.rig) as once:
            await once.step()
        await lab.node.mine()
    async with open_again(lab, line.rig) as once:
        assert len(once.booked("cancelled")) == 1


async def test_an_outcome_whose_receipt_is_forgotten_stands(
    fresh_lab: OpenLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old record remembers no blocks, so every outcome is doubted; those whose block is there are not taken back."""
    lab = await fresh_lab(clock="steady")
    async with _settled(lab, tmp_path) as before:
        with before.line.store.transaction() as connection:
            connection.exec_driver_sql("DELETE FROM blocks")

    async def forgotten(*_: object) -> None:
        return None

    monkeypatch.setattr(Chain, "receipt", forgotten)
    async with open_again(lab, before.rig) as line:
        await line.step()
        assert not line.booked("reorged")
        await before.stands(line)
