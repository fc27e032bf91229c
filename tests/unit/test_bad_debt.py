"""When bad debt is news: first seen, doubled, over; and write-offs, once each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from keeper.engine.bad_debt import BadDebts
from keeper.engine.head import StepReport, View
from keeper.errors import AdapterError
from keeper.ledger import Ledger
from keeper.seams import Adapter
from keeper.store import Store
from keeper.types import (
    Address,
    BadDebt,
    BlockNumber,
    BlockTime,
    Gas,
    Hash,
    Head,
    Health,
    Log,
    Marks,
    PositionKey,
    Refusal,
    Token,
    Wei,
)

USDC = Token(Address(b"\xcc" * 20), "USDC", 6)
WHO = PositionKey("aave", "main", Address(b"\xa1" * 20))
OWES = Health(WHO, 7 * 10**17, 10, 12, 8, True, bad_debt=(BadDebt(USDC, 100, 10_000),))
MARKS = Marks(BlockTime(BlockNumber(1), Hash(bytes(32)), 1), "main", None, {})
LOG = Log(USDC.address, (), b"", BlockNumber(5), Hash(b"\5" * 32), Hash(b"\x0a" * 32), 3)
BROKEN = replace(LOG, index=4)
OTHERS = replace(LOG, index=5)


class _Adapter:
    """Tells one write-off, cannot read another log, and knows nothing of a third."""

    def written_off(self, log: Log, marks: Marks | None) -> tuple[PositionKey, BadDebt] | None:
        if log == BROKEN:
            raise AdapterError("not to be read")
        return None if log == OTHERS else (WHO, BadDebt(USDC, 7, 700 if marks else None))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    with Store.open(f"sqlite:///{tmp_path / 'keeper.db'}", chain_id=1) as store:
        yield Ledger(store)


def _debts(ledger: Ledger) -> BadDebts:
    """What a start knows."""
    return BadDebts(ledger, {"aave": cast(Adapter, _Adapter())}, lambda: 1_000.0)


def _at(
    debts: BadDebts,
    number: int,
    *unsafe: Health,
    marks: Mapping[str, Any] | None = None,
    refused: Refusal | None = None,
    logs: tuple[Log, ...] = (),
) -> None:
    """One head."""
    at = Hash(bytes([number]) * 32)
    head = Head(BlockNumber(number), at, Hash(bytes(32)), number, Wei(1), Gas(1), Gas(1))
    nothing = Refusal("plan", "no_price")
    view = View(MARKS.at, nothing, nothing, nothing, {}, nothing, {"aave": MARKS} if marks is None else marks)
    report = StepReport(head)
    if refused is not None:
        report.refuse(WHO, refused)
    debts.heard += logs
    debts.book(unsafe, view, report)


def _owing(usd_e8: int) -> Health:
    return replace(OWES, bad_debt=(BadDebt(USDC, usd_e8 // 100, usd_e8),))


def _booked(ledger: Ledger) -> list[tuple[str, int, int]]:
    """State, block and since when, of all that is on record."""
    entries = ledger.entries(None, kind="bad_debt")[::-1]
    return [(each.body["state"], each.body["block"], each.body["since_block"]) for each in entries]


def test_it_is_news_once_and_when_it_has_doubled(ledger: Ledger) -> None:
    """At each head the same or a little more is no news, also after a restart; twice what is on record is."""
    debts = _debts(ledger)
    _at(debts, 1)
    for number, usd_e8 in ((2, 10_000), (3, 10_000), (4, 19_999)):
        _at(debts, number, _owing(usd_e8))
    assert _booked(ledger) == [("standing", 2, 2)]
    debts = _debts(ledger)
    _at(debts, 5, _owing(19_999))
    _at(debts, 6, _owing(20_000))
    assert _booked(ledger) == [("standing", 2, 2), ("standing", 6, 2)]
    [newest] = ledger.entries(1, kind="bad_debt")
    assert newest.body["usd_e8"] == 20_000
    assert newest.body["owed"][0]["raw"] == 200 and newest.body["owed"][0]["symbol"] == "USDC"


def test_it_is_over_when_the_account_was_judged_and_has_none(ledger: Ledger) -> None:
    """With the most that was seen; what nobody could judge at a head stays as it is, and later it is news again."""
    debts = _debts(ledger)
    _at(debts, 1, OWES)
    _at(debts, 2, _owing(15_000))
    unknown: list[dict[str, Any]] = [
        {"marks": {"aave": Refusal("marks", "stale_price")}},
        {"marks": {}},
        {"marks": {"aave": replace(MARKS, market="another")}},
        {"refused": Refusal("assess", "stale_price")},
    ]
    for number, circumstances in enumerate(unknown, 3):
        _at(debts, number, **circumstances)
    assert _booked(ledger) == [("standing", 1, 1)]
    _at(debts, 8, replace(OWES, bad_debt=()), refused=Refusal("plan", "unprofitable"))
    assert _booked(ledger)[1:] == [("over", 8, 1)]
    [over] = ledger.entries(1, kind="bad_debt")
    assert over.body["most_usd_e8"] == 15_000
    _at(_debts(ledger), 9)
    assert len(_booked(ledger)) == 2
    _at(debts, 10, OWES)
    assert _booked(ledger)[2:] == [("standing", 10, 10)]


def test_a_write_off_is_booked_once(ledger: Ledger) -> None:
    """Told again, by the same process or the next, it is on record; in another block it is another. What happened
    while nobody ran comes with the first head, without marks it has no worth, and a log nobody can read holds up none.
    """
    debts = _debts(ledger)
    debts.heard = [LOG]
    _at(debts, 6, logs=(BROKEN, LOG, OTHERS), marks={})
    _at(debts, 7, logs=(LOG,))
    _at(_debts(ledger), 8, logs=(LOG,))
    [entry] = ledger.entries(None, kind="bad_debt")
    assert (entry.body["state"], entry.body["raw"], entry.body["usd_e8"]) == ("written_off", 7, None)
    assert (entry.body["block"], entry.body["log_index"], entry.body["tx"]) == (5, 3, "0x" + "0a" * 32)
    _at(debts, 9, logs=(replace(LOG, block_hash=Hash(b"\6" * 32)),))
    assert [each.body["usd_e8"] for each in ledger.entries(None, kind="bad_debt")] == [700, None]
