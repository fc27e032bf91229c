"""Markets that nobody chose: what one of them does must cost little, and nothing elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from keeper.engine.head import StepReport
from keeper.engine.strangers import Strangers
from keeper.ledger import Ledger
from keeper.store import Store
from keeper.types import Address, BlockNumber, Gas, Hash, Plan, PositionKey, Refusal, Settlement, Wei
from tests.unit.test_guard import HEAD, PLAN

COST = {"gas_cost_wei": 1000, "gas_cost_usd_e8": 30}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    with Store.open(f"sqlite:///{tmp_path / 'keeper.db'}", chain_id=1) as opened:
        yield Ledger(opened)


def _key(market: str, who: int = 1) -> PositionKey:
    return PositionKey("morpho", market, Address(who.to_bytes(20)))


def _plan(market: str, who: int = 1, *, chosen: bool = False) -> Plan:
    key = _key(market, who)
    return replace(PLAN, key=key, option=replace(PLAN.option, key=key, chosen=chosen))


def _settlement(plan_id: Hash, *, status: int) -> Settlement:
    return Settlement(
        plan_id, plan_id, status, HEAD.number, HEAD.hash, Gas(1), Wei(1), profit_raw=5 if status else 0
    )


def _revert(ledger: Ledger, strangers: Strangers, market: str, block: int) -> None:
    plan_id = Hash(block.to_bytes(32))
    body = {**COST, "strangers_market": market, "block": block}
    ledger.book("reverted", plan_id, "morpho", _key(market).account, body, block)
    strangers.settled([_settlement(plan_id, status=0)])


def _alone(strangers: Strangers, market: str, block: int) -> bool:
    return isinstance(strangers.shunned(_key(market), BlockNumber(block)), Refusal)


def test_a_market_is_left_for_twice_as_long_each_time(ledger: Ledger) -> None:
    """From the block of the revert on, also after a restart; a success forgives it all."""
    strangers = Strangers(ledger, tuple, 10**9, lambda: 0.0)
    assert not _alone(strangers, "m", 100)
    _revert(ledger, strangers, "m", 100)
    assert _alone(strangers, "m", 131) and not _alone(strangers, "m", 132)
    assert not _alone(strangers, "n", 101)
    _revert(ledger, strangers, "m", 132)
    assert _alone(strangers, "m", 195) and not _alone(strangers, "m", 196)
    again = Strangers(ledger, tuple, 10**9, lambda: 0.0)
    again.recall()
    assert _alone(again, "m", 195) and not _alone(again, "m", 196)
    paid = Hash(b"\x07" * 32)
    ledger.book("intent", paid, "morpho", _key("m").account, {"strangers_market": "m"}, 197)
    strangers.settled([_settlement(paid, status=1)])
    _revert(ledger, strangers, "m", 200)
    assert not _alone(strangers, "m", 232)


def test_all_are_left_once_their_reverts_of_a_day_cost_a_quarter_of_its_losses(ledger: Ledger) -> None:
    """However many somebody makes, they cost no more than that, also after a restart; the next day they may again."""
    now_s = 1_000.0
    strangers = Strangers(ledger, tuple, 4 * 3 * COST["gas_cost_usd_e8"], lambda: now_s)
    for place in range(4):
        assert not _alone(strangers, "z", 100 + place)
        _revert(ledger, strangers, f"market {place}", 100 + place)
    again = Strangers(ledger, tuple, 4 * 3 * COST["gas_cost_usd_e8"], lambda: now_s)
    again.recall()
    for each in (strangers, again):
        refusal = each.shunned(_key("z"), BlockNumber(10**6))
        assert refusal is not None
        assert refusal.numbers["lost_usd_e8"] == 4 * 30 > refusal.numbers["most_usd_e8"] == 3 * 30
    now_s = 86_400 + 104.0
    assert not _alone(strangers, "z", 10**6) and not _alone(again, "z", 10**6)


def test_of_each_market_one_is_in_flight_and_few_of_all(ledger: Ledger) -> None:
    """The best of each, unless one of it is on its way; who chose a market waits for nobody."""
    flying: list[PositionKey] = []
    strangers, report = Strangers(ledger, lambda: flying, 10**9, lambda: 0.0), StepReport(HEAD)
    mine = [_plan("mine", who, chosen=True) for who in range(1, 9)]
    offered = [_plan("a", 1), _plan("a", 2), *mine, _plan("b"), _plan("c"), _plan("d")]
    assert strangers.few(offered, report) == [offered[0], *mine, offered[-3], offered[-2]]
    refused = [(account, refusal.reason) for _, account, refusal in report.refused]
    assert refused == [(each.key.account, "strangers_market") for each in (offered[1], offered[-1])]
    flying += [_key("a"), _key("mine")]
    assert strangers.few([_plan("a", 2)], StepReport(HEAD)) == []
    assert strangers.few([_plan("b"), _plan("c"), _plan("d")], StepReport(HEAD)) == [_plan("b"), _plan("c")]
