"""Corrections: nothing that was booked changes, and every sum says what is right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keeper.errors import LedgerError
from keeper.ledger import Booked, Ledger
from keeper.store import Store
from keeper.types import Address, Hash

ALICE = Address(b"\xa1" * 20)
USDC = Address(b"\xcc" * 20)
PLAN, OTHER_PLAN = Hash(b"\x01" * 32), Hash(b"\x02" * 32)
COST = {"gas_cost_wei": 1000, "gas_cost_usd_e8": 30}
WHY = "the node told another price"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    with Store.open(f"sqlite:///{tmp_path / 'keeper.db'}", chain_id=1) as store:
        yield Ledger(store)


def _settle(ledger: Ledger, plan: Hash = PLAN, at_s: int = 10, **amounts: int) -> Booked:
    body = COST | {"profit_token": USDC, "profit_raw": 500, "profit_usd_e8": 100} | amounts
    return ledger.book("settled", plan, "aave", ALICE, body, at_s)


def _sums(ledger: Ledger, since_s: int = 0) -> tuple[int, int, int]:
    return ledger.gross_profit_raw(USDC), ledger.gas_spent_wei(since_s), ledger.loss_usd_e8(since_s)


def test_a_correction_changes_sums_and_nothing_else(ledger: Ledger) -> None:
    """The entry stays as it was, the correction names it with its plan and account, and the sums follow."""
    wrong = _settle(ledger)
    _settle(ledger, OTHER_PLAN, 11)
    assert _sums(ledger) == (1000, 2000, 0)
    correction = ledger.correct(wrong.seq, WHY, {"profit_raw": 7, "gas_cost_usd_e8": 130}, 12)
    assert ledger.entry(wrong.seq) == wrong
    assert (correction.plan_id, correction.protocol, correction.account) == (
        wrong.plan_id,
        wrong.protocol,
        wrong.account,
    )
    assert correction.body == {
        "corrects": wrong.seq,
        "reason": WHY,
        "profit_raw": 7,
        "gas_cost_usd_e8": 130,
    }
    assert _sums(ledger) == (507, 2000, 30)
    assert ledger.verify() is None


def test_the_last_word_on_each_amount_counts(ledger: Ledger) -> None:
    """A later correction goes before an earlier one, amount by amount, whichever second they are of."""
    wrong = _settle(ledger)
    ledger.correct(wrong.seq, WHY, {"profit_raw": 1, "gas_cost_wei": 1}, 12)
    ledger.correct(wrong.seq, WHY, {"profit_raw": 2**200}, 11)
    assert _sums(ledger)[:2] == (2**200, 1)


def test_a_corrected_outcome_stays_in_its_time(ledger: Ledger) -> None:
    """A correction made later belongs to the hour of what it corrects, neither earlier nor later."""
    old, new = _settle(ledger, at_s=10), _settle(ledger, OTHER_PLAN, at_s=20)
    ledger.correct(old.seq, WHY, {"gas_cost_wei": 5}, 30)
    ledger.correct(new.seq, WHY, {"gas_cost_wei": 3}, 30)
    assert ledger.gas_spent_wei(25) == 0
    assert ledger.gas_spent_wei(20) == 3
    assert ledger.gas_spent_wei(10) == 8
    ledger.correct(new.seq, WHY, {"gas_cost_wei": 2}, 1)  # by a clock that was set back
    assert ledger.gas_spent_wei(20) == 2


def test_what_was_orphaned_is_not_corrected_back(ledger: Ledger) -> None:
    """A correction of an outcome that a reorg took back counts for nothing, nor for the plan's next outcome."""
    orphaned = _settle(ledger)
    ledger.book("reorged", PLAN, "aave", ALICE, {}, 11)
    ledger.correct(orphaned.seq, WHY, {"profit_raw": 7}, 12)
    assert _sums(ledger) == (0, 0, 0)
    _settle(ledger, at_s=13)
    assert _sums(ledger) == (500, 1000, 0)


@pytest.mark.parametrize(
    ("amounts", "reason", "words"),
    [
        ({"profit_raw": -1}, WHY, "profit_raw of a correction is -1"),
        ({"profit_raw": 1.5}, WHY, "profit_raw of a correction is 1.5"),
        ({"gas_cost_wei": True}, WHY, "gas_cost_wei of a correction is True"),
        ({"head": 1}, WHY, "may state gas_cost_wei, gas_cost_usd_e8, profit_raw, profit_usd_e8, not"),
        ({}, " ", "must say why"),
    ],
)
def test_a_correction_is_exact_and_says_why(
    ledger: Ledger, amounts: dict[str, Any], reason: str, words: str
) -> None:
    """Only whole non-negative amounts that sums are made of, and never without a reason."""
    wrong = _settle(ledger)
    with pytest.raises(LedgerError, match=words):
        ledger.correct(wrong.seq, reason, amounts, 12)
    assert ledger.tip()[0] == 1


def test_only_what_can_be_corrected_is(ledger: Ledger) -> None:
    """A revert gains nothing, a refusal costs nothing, a correction is replaced and not corrected, nobody's is none."""
    revert = ledger.book("reverted", PLAN, "aave", ALICE, COST, 1)
    with pytest.raises(
        LedgerError, match="reverted entry 1 may state gas_cost_wei, gas_cost_usd_e8, not profit"
    ):
        ledger.correct(revert.seq, WHY, {"profit_raw": 1}, 2)
    warning = ledger.book("warning", None, "", None, {"detail": "…"}, 1)
    with pytest.raises(LedgerError, match="warning entry 2 may state nothing but the reason"):
        ledger.correct(warning.seq, WHY, {"gas_cost_wei": 1}, 2)
    assert ledger.correct(warning.seq, "it was about the other pool", {}, 2).account == ""
    with pytest.raises(LedgerError, match="Entry 3 is a correction itself"):
        ledger.correct(3, WHY, {}, 2)
    for nothing in (0, 4, 99):
        with pytest.raises(LedgerError, match=f"no entry {nothing} in the ledger"):
            ledger.correct(nothing, WHY, {}, 2)
    with pytest.raises(LedgerError, match="no entry '1' in the ledger"):
        ledger.book("correction", None, "", None, {"corrects": "1", "reason": WHY}, 2)
    assert ledger.tip()[0] == 3


def test_what_the_key_did_elsewhere_costs_gas(ledger: Ledger) -> None:
    """A recovered transaction counts as gas and can be corrected; it gains nothing and is no liquidation's loss."""
    with pytest.raises(LedgerError, match="recovered entry must state gas_cost_wei"):
        ledger.book("recovered", None, "", None, {}, 1)
    entry = ledger.book("recovered", None, "", None, {"gas_cost_wei": 40}, 1)
    assert _sums(ledger) == (0, 40, 0) and ledger.consecutive_reverts() == 0
    ledger.correct(entry.seq, WHY, {"gas_cost_wei": 41}, 2)
    assert _sums(ledger) == (0, 41, 0)
