"""Accounts that owe more than they hold: on record once, and liquidated at a loss only as far as a budget allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keeper import commands
from keeper.abi import checksum, load
from keeper.errors import ChainError
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import latest, set_price, set_prices
from keeper.lab.judge import judge
from keeper.lab.positions import PositionSpec, account_data, open_positions
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.uniswap import move_pool
from keeper.lab.world import BASE_FEE_WEI, Lab
from keeper.ledger import Booked
from keeper.types import Address, Filters
from tests.e2e.line import Line, open_again
from tests.fork.forgery import Change, Row, tampered

ETHER = 10**18
_E8 = 10**8
_DAY_S = 86_400
ACCOUNTS = [account(number) for number in (1, 2, 3)]
# Six dollars of WETH against USDC at 1.1: at $900 two dollars and seventy cents against four and a half.
FALLEN = 900
ALMOST = 1_300  # sixty cents are missing, which is less than the gas
BUDGET_USD = "2.5"  # the gas of one may come to two dollars, and comes to one


async def _in_trouble(lab: Lab, dollars: int = FALLEN) -> None:
    """Three small accounts, each of which nets less than its gas, as the pools followed the fall."""
    specs = [PositionSpec(who, {"WETH": 3 * 10**15}, {"USDC": 1}, 110 * WAD // 100) for who in ACCOUNTS]
    await open_positions(lab.node, lab.world.cast, lab.world.aave["3.6"], specs)
    await _fall(lab, dollars)


async def _fall(lab: Lab, dollars: int) -> None:
    """WETH costs so much, by its feed and in every pool."""
    world, weth = lab.world, lab.world.tokens["WETH"]
    prices = world.prices_e8 | {"WETH": dollars * _E8}
    await lab.node.set_balances([world.cast.deployer.address], 10**32)
    for pool in world.uniswap_v3.pools:
        if weth in (pool.token0, pool.token1):
            sides = prices[pool.token0.symbol], prices[pool.token1.symbol]
            await move_pool(lab.node, world.cast, world.uniswap_v3, pool, *sides)
    await set_price(lab.node, world.feeds["WETH"], prices["WETH"])
    await _tick(lab)


async def _tick(lab: Lab) -> None:
    """A block that leaves gas as dear as it was."""
    await lab.node.set_base_fee(BASE_FEE_WEI)
    await lab.node.mine()


def _allow(rig: Rig, budget_usd: str) -> None:
    """Write the budget into keeper.toml."""
    lines = [line for line in rig.config.read_text().splitlines() if not line.startswith("bad_debt_budget")]
    lines.insert(lines.index("[limits]") + 1, f"bad_debt_budget_usd_per_day = {budget_usd}")
    rig.config.write_text("\n".join(lines) + "\n")


def _states(line: Line, who: Address | None = None) -> list[tuple[str, dict[str, Any]]]:
    """What is on record of bad debt, oldest first."""
    found: list[Booked] = line.booked("bad_debt")
    return [
        (entry.body["state"], dict(entry.body)) for entry in found if who in (None, _address(entry.account))
    ]


def _address(text: str) -> Address:
    return Address(bytes.fromhex(text[2:]))


async def test_no_loss_is_larger_than_the_bad_debt_it_ends(lab: Lab, tmp_path: Path) -> None:
    """Without a budget nothing is sent, and the numbers say what it would cost; with one neither, where the gas costs
    more than what is missing.
    """
    rig = await make_rig(lab, tmp_path, Terms())
    await _in_trouble(lab, ALMOST)
    async with open_again(lab, rig) as line:
        report = await line.step()
        assert not report.sent
        for who in ACCOUNTS:
            [refusal] = [each for _, whose, each in report.refused if whose == who]
            assert (refusal.stage, refusal.reason) == ("plan", "unprofitable")
            assert refusal.numbers["net_raw"] < 0 < refusal.numbers["gross_raw"]
    _allow(rig, BUDGET_USD)
    async with open_again(lab, rig) as line:
        report = await line.step()
        assert not report.sent
        for _, _, refusal in report.refused:
            assert (refusal.stage, refusal.reason) == ("plan", "bad_debt_budget")
            assert -refusal.numbers["net_raw"] * 100 > refusal.numbers["budget_usd_e8"] > 60_000_000


async def test_a_loss_fits_its_budget_or_is_not_made(lab: Lab, tmp_path: Path) -> None:
    """The first account is liquidated, the treasury loses nothing, what gas cost beyond its gain is booked against the
    budget, and what is left is too little for the next: also after a restart, before the first is mined and after,
    until the day is over.
    """
    rig = await make_rig(lab, tmp_path, Terms())
    await _in_trouble(lab)
    _allow(rig, BUDGET_USD)
    await lab.node.mine_on_demand()
    async with open_again(lab, rig) as line:
        before_raw = await line.treasury_raw()
        report = await line.step()
        [sent] = report.sent
        left = [refusal for _, _, refusal in report.refused]
        assert [(each.stage, each.reason) for each in left] == [("clear", "bad_debt_budget")] * 2
        assert left[0].numbers["in_flight_usd_e8"] > 0 == left[0].numbers["spent_usd_e8"]
    async with open_again(lab, rig) as line:
        report = await line.step()
        again = [refusal for _, _, refusal in report.refused]
        assert not report.sent
        assert [(each.stage, each.reason) for each in again] == [("plan", "bad_debt_budget")] * 2
        assert again[0].numbers["budget_usd_e8"] == left[0].numbers["left_usd_e8"]
        await _tick(lab)
        report = await line.step()
        [settlement] = report.settled
        assert settlement.plan_id == sent.plan_id and settlement.status == 1
        [settled] = line.booked("settled")
        gained_raw = await line.treasury_raw() - before_raw
        assert gained_raw == int(settled.body["profit_raw"]) == int(settled.body["expected_profit_raw"]) > 0
        lost_usd_e8 = int(settled.body["loss_usd_e8"])
        assert settled.body["budget"] == "bad_debt"
        assert lost_usd_e8 == int(settled.body["gas_cost_usd_e8"]) - int(settled.body["profit_usd_e8"]) > 0
        assert line.ledger.budget_spent_usd_e8(0) == line.ledger.loss_usd_e8(0) == lost_usd_e8
        for _ in range(3):
            await _tick(lab)
            report = await line.step()
            assert not report.sent
            assert {(each.stage, each.reason) for _, _, each in report.refused} == {
                ("clear", "bad_debt_budget")
            }
            assert report.refused[0][2].numbers["spent_usd_e8"] == lost_usd_e8
    async with open_again(lab, rig) as line:
        report = await line.step()
        assert not report.sent
        [first, _] = [refusal for _, _, refusal in report.refused]
        assert first.reason == "bad_debt_budget" and first.numbers["spent_usd_e8"] == lost_usd_e8
        assert first.numbers["left_usd_e8"] == 250_000_000 - lost_usd_e8 < first.numbers["needed_usd_e8"]
        await lab.node.mine_each_transaction()
        await lab.node.advance(_DAY_S + 1)
        feeds = lab.world.feeds.values()
        await set_prices(lab.node, {feed: (await latest(lab.node, feed)).price_raw for feed in feeds})
        await _tick(lab)
        assert len((await line.step()).sent) == 1
        await _tick(lab)
        assert len((await line.step()).settled) == 1
    verdict = await judge(rig.config)
    assert verdict.ok, str(verdict)


async def test_bad_debt_is_on_record_once(lab: Lab, tmp_path: Path) -> None:
    """One entry when it is first seen, none at later heads or after a restart, one more when it has doubled; then what
    the pool wrote off, to the unit of its own event, and that it is over. Scan and explain show it meanwhile.
    """
    rig = await make_rig(lab, tmp_path, Terms())
    await _in_trouble(lab, ALMOST)
    who, market = ACCOUNTS[0], lab.world.aave["3.6"]
    [data] = await account_data(lab.node, market, [who])
    async with open_again(lab, rig) as line:
        first = (await line.step()).head.number
        for _ in range(2):
            await _tick(lab)
            await line.step()
        [(state, body)] = _states(line, who)
        assert (state, body["since_block"], body["block"]) == ("standing", first, first)
        short_base = data.debt_base - data.collateral_base
        assert 0 <= int(body["usd_e8"]) - short_base <= 2
        [owed] = body["owed"]
        assert owed["symbol"] == "USDC" and 0 <= int(owed["raw"]) - short_base // 100 <= 2
    scanned = await commands.scan(rig.config, liquidatable=True, limit=10)
    [row] = [each for each in scanned["positions"] if each["account"] == checksum(who)]
    assert row["bad_debt"][0]["raw"] == str(owed["raw"]) and float(row["bad_debt_usd"]) > 0
    async with open_again(lab, rig) as line:
        await _tick(lab)
        await line.step()
        assert len(_states(line)) == len(ACCOUNTS)
        await set_price(lab.node, lab.world.feeds["WETH"], 1_000 * _E8)
        await _tick(lab)
        await line.step()
        [_, (state, body)] = _states(line, who)
        assert (state, body["since_block"]) == ("standing", first)
        assert int(body["usd_e8"]) > 2 * short_base
    _allow(rig, "100.0")
    told = await commands.explain(rig.config, checksum(who))
    [stages] = [each["stages"] for each in told["protocols"] if each["protocol"] == "aave-3-6"]
    by_stage = {each["stage"]: each for each in stages}
    assert int(by_stage["assess"]["numbers"]["bad_debt_usd_e8"]) == int(body["usd_e8"])
    assert int(by_stage["assess"]["numbers"]["budget_usd_e8"]) == 100 * _E8
    assert by_stage["weigh"]["answer"] == "within_budget"
    assert by_stage["trial"]["numbers"]["budgeted"] is True
    async with open_again(lab, rig) as line:
        await line.step()
        await _tick(lab)
        report = await line.step()
        assert len(report.settled) == len(ACCOUNTS)
        event = load("AavePool").event("DeficitCreated")
        logs = await line.parts.chain.logs([Filters((market.pool,), (event.topic,))], 0, report.head.number)
        created: dict[Any, int] = {each["user"]: each["amountCreated"] for each in map(event.decode, logs)}
        for whose in ACCOUNTS:
            states = dict(_states(line, whose))
            assert int(states["written_off"]["raw"]) == created[whose] > 0
            assert states["over"]["since_block"] == first
            [intent] = [each for each in line.booked("intent") if _address(each.account) == whose]
            assert abs(int(intent.body["bad_debt_raw"]) - created[whose]) <= 1
        booked = len(_states(line))
    async with open_again(lab, rig) as line:
        await line.step()
        assert len(_states(line)) == booked
    verdict = await judge(rig.config)
    assert verdict.ok, str(verdict)
    for lie in (_written_off(raw="1"), _written_off(log_index=0), _written_off(tx="0x" + "11" * 32), _twice):
        folder = tmp_path / "forged"
        folder.mkdir(exist_ok=True)
        verdict = await judge(tampered(rig, folder, lie, rehash=True))
        assert [each.check for each in verdict.differences] == ["written_off"], str(verdict)
        (folder / "copy.db").unlink()


async def test_a_lost_head_loses_no_write_off(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the pool wrote off in a block whose handling a node broke off is booked with the next head."""
    rig = await make_rig(lab, tmp_path, Terms())
    await _in_trouble(lab)
    _allow(rig, "100.0")
    async with open_again(lab, rig) as line:
        assert len((await line.step()).sent) == len(ACCOUNTS)
        await _tick(lab)

        async def fail(*_: Any) -> None:
            raise ChainError("the node went away")

        with monkeypatch.context() as broken, pytest.raises(ChainError):
            broken.setattr(line.engine, "_execute", fail)
            await line.step()
        await _tick(lab)
        await line.step()
        assert [state for state, _ in _states(line)].count("written_off") == len(ACCOUNTS)


def _written_off(**figures: Any) -> Change:
    """Other figures in the first write-off on record."""

    def change(rows: list[Row]) -> None:
        row = _first_write_off(rows)
        row["body"] = json.dumps(json.loads(row["body"]) | figures, sort_keys=True, separators=(",", ":"))

    return change


def _twice(rows: list[Row]) -> None:
    """The first write-off once more."""
    rows.append(_first_write_off(rows) | {"seq": len(rows) + 1})


def _first_write_off(rows: list[Row]) -> Row:
    return next(row for row in rows if row["kind"] == "bad_debt" and '"written_off"' in row["body"])
