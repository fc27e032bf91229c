"""Heads: what was cut off, put in, exchanged or rewritten is found, and what stands there can be proved to others."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keeper.errors import LedgerError
from keeper.ledger import Booked, Ledger, TreeHead, heads
from keeper.store import Store
from keeper.store.canonical import canonical, digest
from keeper.store.merkle import Frontier, root_by_path
from keeper.types import Address, Hash

ALICE = Address(b"\xa1" * 20)
PLAN = Hash(b"\x01" * 32)
_TRIGGERS = (
    *("entries_no_update", "entries_no_delete", "entries_only_next"),
    *("heads_no_update", "heads_no_delete", "heads_only_larger"),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A fresh store, open for writing."""
    with Store.open(f"sqlite:///{tmp_path / 'keeper.db'}", chain_id=1) as opened:
        yield opened


@pytest.fixture
def ledger(store: Store) -> Ledger:
    """An empty ledger."""
    return Ledger(store)


def _book(ledger: Ledger, count: int, first: int = 0) -> list[Booked]:
    return [
        ledger.book("decision", PLAN, "aave", ALICE, {"n": n}, 100 + n) for n in range(first, first + count)
    ]


_Statement = str | tuple[str, tuple[Any, ...]]


def _forge(store: Store, *statements: _Statement) -> None:
    """Change the file behind the keeper's back, without the triggers that would stop it."""
    raw = sqlite3.connect(store.path)
    with raw:
        for trigger in _TRIGGERS:
            raw.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            raw.execute(*((statement,) if isinstance(statement, str) else statement))
    raw.close()


def _root(ledger: Ledger, size: int) -> Hash:
    """The root, computed from the entries alone."""
    return Hash(Frontier().grown([entry.hash for entry in ledger.walk()][:size]).root)


# --- making heads ----------------------------------------------------------------------------------------------------


def test_a_head_is_the_root_over_everything_booked(ledger: Ledger, store: Store) -> None:
    """Heads grown from heads have the roots of trees built at once, and their own size and time."""
    assert ledger.checkpoint(1) is None and heads.newest(store) is None
    for size, at_s in ((1, 10), (2, 11), (7, 12), (8, 13), (21, 14)):
        _book(ledger, size - ledger.tip()[0])
        assert ledger.checkpoint(at_s) == TreeHead(size, _root(ledger, size), at_s) == heads.newest(store)
    assert heads.head_at(store, 5) == TreeHead(5, _root(ledger, 5))
    assert heads.head_at(store, 7) == TreeHead(7, _root(ledger, 7), 12)
    assert heads.head_at(store, 22) is None
    assert ledger.verify() is None


def test_a_head_is_stored_once(ledger: Ledger, store: Store) -> None:
    """Without a new entry there is no new head, whoever asks: this ledger, another one or the next process."""
    _book(ledger, 3)
    head = ledger.checkpoint(10)
    assert ledger.checkpoint(11) is None
    assert Ledger(store).checkpoint(12) is None
    store.close()
    with Store.open_file(store.path) as again:
        assert Ledger(again).checkpoint(13) == head == heads.newest(again)


def test_an_undone_head_is_made_again(ledger: Ledger, store: Store) -> None:
    """A head whose transaction failed is not taken for stored."""
    _book(ledger, 3)
    with pytest.raises(ZeroDivisionError), ledger.batch():
        ledger.checkpoint(10)
        raise ZeroDivisionError
    assert heads.newest(store) is None
    assert ledger.checkpoint(11) == TreeHead(3, _root(ledger, 3), 11)


def test_booking_costs_no_hash_of_the_tree(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Appending never touches the tree, and a checkpoint only what is new: a liquidation waits for neither."""
    _book(ledger, 40)
    ledger.checkpoint(1)
    hashed: list[bytes] = []
    real = hashlib.sha256

    def counting(data: bytes = b"") -> object:
        if data[:1] in (b"\0", b"\1"):
            hashed.append(data)
        return real(data)

    monkeypatch.setattr("keeper.store.merkle.hashlib.sha256", counting)
    _book(ledger, 5)
    assert not [data for data in hashed if len(data) in (33, 65)]
    ledger.checkpoint(2)
    assert 5 <= len(hashed) <= 5 * 2 + 2 * 6 + 6


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE heads SET root = peaks",
        "DELETE FROM heads",
        "INSERT OR REPLACE INTO heads SELECT size, 0, root, peaks FROM heads",
        "INSERT INTO heads VALUES (1, 0, '', '')",
    ],
)
def test_heads_are_append_only(ledger: Ledger, store: Store, statement: str) -> None:
    """SQLite itself refuses to change or remove a head, or to add a smaller one."""
    _book(ledger, 2)
    ledger.checkpoint(1)
    raw = sqlite3.connect(store.path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        raw.execute(statement)
    raw.close()


# --- what is found ---------------------------------------------------------------------------------------------------


def _move(seq: int, to: int) -> tuple[str, tuple[int, int]]:
    return "UPDATE entries SET seq = ? WHERE seq = ?", (to, seq)


_INSERTED: list[_Statement] = [
    *(_move(seq, seq + 1) for seq in (8, 7, 6, 5)),
    "INSERT INTO entries SELECT 5, at_s, kind, '', '', '', '{}', prev_hash, hash FROM entries WHERE seq = 6",
]


@pytest.mark.parametrize(
    ("statements", "seq", "words"),
    [
        (["DELETE FROM entries WHERE seq = 4"], 4, "Entry 4 is missing"),
        (["DELETE FROM entries WHERE seq = 1"], 1, "Entry 1 is missing"),
        (
            ["DELETE FROM entries WHERE seq > 6"],
            7,
            "Entry 7 and what followed it are missing: a stored head counts 8",
        ),
        (["DELETE FROM entries"], 1, "Entry 1 and what followed it are missing"),
        ([_move(3, 99), _move(4, 3), _move(99, 4)], 3, "Entry 3 does not follow"),
        ([_move(2, 99), _move(7, 2), _move(99, 7)], 2, "Entry 2 does not follow"),
        (_INSERTED, 5, "Entry 5 was altered"),
        (["UPDATE entries SET body = CAST(x'7bff7d' AS TEXT) WHERE seq = 6"], 6, "Entry 6 was altered"),
        (["UPDATE heads SET root = 'no root' WHERE size = 5"], 1, "the head is wrong"),
        (["UPDATE heads SET size = -1 WHERE size = 5"], 1, "the head is wrong"),
    ],
)
def test_what_is_not_as_it_was_is_named(
    ledger: Ledger, store: Store, statements: list[_Statement], seq: int, words: str
) -> None:
    """Removed, cut off, exchanged, put in, no text any more, or under a forged head: the first place and what it is."""
    _book(ledger, 5)
    ledger.checkpoint(1)
    _book(ledger, 3, 5)
    ledger.checkpoint(2)
    _forge(store, *statements)
    with Store.open_file(store.path, read_only=True) as reader:
        fault = Ledger(reader).verify()
    assert fault is not None and fault.seq == seq
    assert words in fault.what and fault.what.endswith(".") and "\n" not in fault.what


def _rewrite(store: Store, seq: int) -> None:
    """Forge entry `seq` and compute every hash after it anew, as somebody would who knows the format."""
    previous = bytes(32)
    statements: list[_Statement] = []
    for entry in Ledger(store).walk():
        body = dict(entry.body) | ({"n": 999} if entry.seq == seq else {})
        this = digest(
            previous, entry.seq, entry.at_s, entry.kind, entry.plan_id, entry.protocol, entry.account, body
        )
        values = (canonical(body), previous.hex(), this.hex(), entry.seq)
        statements.append(("UPDATE entries SET body = ?, prev_hash = ?, hash = ? WHERE seq = ?", values))
        previous = this
    _forge(store, *statements)


def test_a_rewritten_tail_does_not_fit_the_heads(ledger: Ledger, store: Store) -> None:
    """A forger who computes all hashes anew is caught by the first head over the forged entry, not by one before."""
    _book(ledger, 5)
    ledger.checkpoint(1)
    _book(ledger, 3, 5)
    ledger.checkpoint(2)
    _rewrite(store, 7)
    fault = ledger.verify()
    assert fault is not None and fault.seq == 6
    assert "Entries 6 to 8 are not those a stored head of 8 entries was made of" in fault.what


def _cut_heads_too(store: Store) -> None:
    _forge(store, "DELETE FROM entries WHERE seq > 6", "DELETE FROM heads WHERE size > 6")


def _forge_everything(store: Store) -> None:
    _rewrite(store, 2)
    raw = sqlite3.connect(store.path)
    with raw:
        raw.execute("DELETE FROM heads")
    raw.close()
    Ledger(store).checkpoint(3)


@pytest.mark.parametrize(
    ("forge", "seq"), [(_cut_heads_too, 7), (_forge_everything, 1)], ids=["cut", "forged"]
)
def test_a_head_kept_elsewhere_finds_what_the_file_cannot(
    ledger: Ledger, store: Store, forge: Callable[[Store], None], seq: int
) -> None:
    """Whoever can write to the file can make it fit itself, but not a head that was noted outside."""
    _book(ledger, 8)
    kept = ledger.checkpoint(1)
    assert kept is not None and ledger.verify(kept) is None
    _book(ledger, 2, 8)
    ledger.checkpoint(2)
    assert ledger.verify(kept) is None, "the ledger only grew"
    forge(store)
    assert ledger.verify() is None
    fault = ledger.verify(TreeHead(kept.size, kept.root))
    assert fault is not None and fault.seq == seq and "the head that was kept" in fault.what


def test_a_kept_head_need_not_be_a_stored_one(ledger: Ledger) -> None:
    """Any size at which somebody noted the root can be checked, also beyond the newest stored head, and not more."""
    _book(ledger, 6)
    ledger.checkpoint(1)
    _book(ledger, 3, 6)
    for size in range(1, 10):
        assert ledger.verify(TreeHead(size, _root(ledger, size))) is None
        fault = ledger.verify(TreeHead(size, Hash(bytes(32))))
        assert fault is not None and fault.seq <= size
    fault = ledger.verify(TreeHead(10, _root(ledger, 9)))
    assert fault is not None and fault.seq == 10


def test_a_shortened_ledger_is_not_grown_over(ledger: Ledger, store: Store) -> None:
    """Neither an entry nor a head is added to a ledger that ends before its newest head, here or after a restart."""
    _book(ledger, 4)
    ledger.checkpoint(1)
    _forge(store, "DELETE FROM entries WHERE seq > 2")
    store.remembered.clear()
    for one in (ledger, Ledger(store)):
        with pytest.raises(LedgerError, match=r"ends with entry 2, but its newest head counts 4"):
            _book(one, 1)
        with pytest.raises(LedgerError, match=r"ends with entry 2"):
            one.checkpoint(2)


def test_a_head_with_forged_peaks_is_not_grown_from(ledger: Ledger, store: Store) -> None:
    """A head whose subtrees do not have its root is an error, not the base of wrong heads."""
    _book(ledger, 3)
    ledger.checkpoint(1)
    _forge(store, "UPDATE heads SET peaks = '00' || substr(peaks, 3)")
    _book(ledger, 1, 3)
    with pytest.raises(LedgerError, match="head of 3 entries was altered"):
        ledger.checkpoint(2)


# --- proofs ----------------------------------------------------------------------------------------------------------


def test_an_entry_is_proved_under_the_newest_head(ledger: Ledger, store: Store) -> None:
    """The proof leads from the entry's hash to the stored root; what no head counts yet is proved under all entries."""
    _book(ledger, 11)
    head = ledger.checkpoint(5)
    _book(ledger, 2, 11)
    for entry in ledger.walk():
        proof = heads.prove(store, entry.seq)
        assert proof.head == (head if entry.seq <= 11 else TreeHead(13, _root(ledger, 13)))
        assert proof.entry_hash == entry.hash
        assert root_by_path(entry.seq - 1, proof.head.size, entry.hash, proof.path) == proof.head.root


def test_an_entry_can_be_proved_under_a_published_size(ledger: Ledger, store: Store) -> None:
    """For the root of any size that counts it; for no other."""
    _book(ledger, 9)
    for size in (4, 6, 9):
        proof = heads.prove(store, 4, size)
        assert proof.head == TreeHead(size, _root(ledger, size))
        assert root_by_path(3, size, proof.entry_hash, proof.path) == proof.head.root
    for seq, wanted in ((4, 3), (4, 10), (0, 5), (10, None)):
        with pytest.raises(LedgerError, match=r"has 9 entries: there is no entry"):
            heads.prove(store, seq, wanted)


def test_nothing_is_proved_against_a_head_that_does_not_fit(ledger: Ledger, store: Store) -> None:
    """A root that no longer is that of the entries is an error, not a proof."""
    _book(ledger, 4)
    ledger.checkpoint(1)
    _rewrite(store, 2)
    with pytest.raises(LedgerError, match="does not fit its head of 4 entries"):
        heads.prove(store, 3)
