from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from keeper.book import Book
from keeper.types import (
    Address,
    BlockNumber,
    BlockTime,
    Hash,
    Marks,
    PositionKey,
    Positions,
    Rows,
    Weights,
)

AT = BlockTime(BlockNumber(1), Hash(bytes(32)), 0)
WIDTH = 2
_COUNT = 10_000


def key(number: int, market: str = "m", protocol: str = "p") -> PositionKey:
    """The key of an account that is just a number."""
    return PositionKey(protocol, market, Address(number.to_bytes(20)))


def positions(
    numbers: Sequence[int],
    *,
    group: int | Sequence[int] = 0,
    live: bool | Sequence[bool] = True,
    always: bool = False,
    width: int = WIDTH,
    market: str = "m",
    protocol: str = "p",
) -> Positions:
    """Accounts whose first word is 2**64 · number + 7 and whose others are 0."""
    words = np.zeros((len(numbers), width, 2), dtype=np.uint64)
    words[:, 0, 0] = list(numbers)
    words[:, 0, 1] = 7
    count = len(numbers)
    return Positions(
        protocol=protocol,
        market=market,
        accounts=tuple(key(number).account for number in numbers),
        words=words,
        group=np.full(count, group) if isinstance(group, int) else np.array(group),
        live=np.full(count, live) if isinstance(live, bool) else np.array(live),
        always_check=np.full(count, always),
    )


def rows(*values: Sequence[float]) -> Rows:
    """Rows from their values."""
    return Rows(np.array(values, dtype=np.float64))


def marks(weights: Mapping[int, Weights], market: str = "m") -> Marks:
    """Marks that hold nothing but weights."""
    return Marks(AT, market, None, weights)


def weights(*values: float, slack: float = 0.5) -> Weights:
    """Weights from their values."""
    return Weights(np.array(values, dtype=np.float64), slack)


def test_an_account_below_the_slack_is_a_candidate_and_one_at_it_is_not() -> None:
    """Margins 0.49, 0.5 and 10 at slack 0.5: only the first is below."""
    book = Book()
    book.upsert(positions([1, 2, 3]), rows([0.49, 0], [0.5, 0], [11, 1]))
    assert book.candidates(marks({0: weights(1, -1)})) == [key(1)]
    assert book.candidates(marks({0: weights(1, -12)})) == [key(1), key(3)]


def test_a_margin_that_is_not_a_number_is_looked_at() -> None:
    """Not a number and minus infinity never hide an account."""
    book = Book()
    book.upsert(positions([1, 2, 3]), rows([np.nan, 0], [0, np.inf], [5, 1]))
    assert book.candidates(marks({0: weights(1, -1)})) == [key(1), key(2)]


def test_positions_keep_their_exact_words() -> None:
    """Both 64-bit halves of a word come back, and padding words are zero."""
    book = Book()
    book.upsert(positions([5], width=1), rows([1, 1]))
    book.upsert(positions([6], width=3), rows([1, 1, 1]))
    assert book.position(key(5)).words == (5 << 64 | 7, 0, 0)
    assert book.position(key(6)).words == (6 << 64 | 7, 0, 0)
    with pytest.raises(KeyError):
        book.position(key(7))
    wide = positions([6], width=3)
    wide.words[:] = 9
    book.upsert(wide, rows([0, 0, 0, 1]))
    book.upsert(positions([6], width=1), rows([1, 1]))
    assert book.position(key(6)).words == (6 << 64 | 7, 0, 0)
    assert book.candidates(marks({0: weights(1, 0, 0, -9)})) == []


def test_a_group_without_weights_is_looked_at_whole() -> None:
    """An e-mode nobody knows yet hides nobody."""
    book = Book()
    book.upsert(positions([1, 2], group=[0, 9]), rows([100, 0], [100, 0]))
    assert book.candidates(marks({0: weights(1, -1)})) == [key(2)]


def test_always_check_is_always_a_candidate_and_counted() -> None:
    """A position without a bound is returned whatever its row says."""
    book = Book()
    book.upsert(positions([1], always=True), rows([100, 0]))
    book.upsert(positions([2]), rows([100, 0]))
    assert book.candidates(marks({0: weights(1, -1)})) == [key(1)]
    assert book.always_check == 1
    book.upsert(positions([1]), rows([100, 0]))
    assert book.candidates(marks({0: weights(1, -1)})) == []
    assert book.always_check == 0


def test_who_owes_nothing_leaves() -> None:
    """A position that is no longer live is gone, one that never was held does no harm."""
    book = Book()
    book.upsert(positions([1, 2, 3]), rows([0, 1], [0, 1], [0, 1]))
    book.upsert(positions([1, 4], live=False), rows([0, 1], [0, 1]))
    assert sorted(book, key=lambda each: each.account) == [key(2), key(3)]
    assert set(book.candidates(marks({0: weights(1, -1)}))) == {key(2), key(3)}
    assert key(1) not in book
    assert len(book) == 2


def test_a_changed_group_moves_the_position() -> None:
    """An account that changes its e-mode is judged by the new weights only, once."""
    book = Book()
    book.upsert(positions([1, 2]), rows([10, 5], [10, 5]))
    book.upsert(positions([1], group=3), rows([10, 5]))
    found = marks({0: weights(1, -1), 3: weights(1, -3)})
    assert book.candidates(found) == [key(1)]
    assert book.position(key(1)).group == 3
    assert len(book) == 2


def test_markets_and_protocols_do_not_mix() -> None:
    """Marks of one market ask for its positions only; counts are by protocol."""
    book = Book()
    book.upsert(positions([1]), rows([0, 1]))
    book.upsert(positions([1], market="n", protocol="q"), rows([0, 1]))
    assert book.candidates(marks({0: weights(1, -1)}, "n")) == [key(1, "n", "q")]
    assert book.counts() == {"p": 1, "q": 1}
    book.remove([key(1), key(8)])
    assert book.counts() == {"p": 0, "q": 1}


def test_marks_of_many_markets_ask_for_the_positions_of_each() -> None:
    """Of every market they are of, by its own group's weights; of no other."""
    book = Book()
    for group, market in enumerate(("n", "o", "r")):
        book.upsert(positions([1], market=market, group=group), rows([10, 5]))
    both = replace(marks({0: weights(1, -1), 1: weights(1, -3), 2: weights(1, -3)}), parts=frozenset("no"))
    assert book.candidates(both) == [key(1, "o")]


def test_more_columns_than_weights_and_fewer() -> None:
    """A reserve added later leaves older rows as they are; columns without a weight count nothing."""
    book = Book()
    book.upsert(positions([1]), rows([10, 5]))
    book.upsert(positions([2]), rows([10, 5, 0, 8]))
    assert book.candidates(marks({0: weights(1, -1, 1, -1)})) == [key(2)]
    assert book.candidates(marks({0: weights(1, -1)})) == []


# --- large blocks: the order spares work and nothing else -----------------------------------------------------------


def _random_rows(chance: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Healths from 0.95 to 5 over four markets, a few rows empty or of one side only."""
    values = np.zeros((count, 8))
    collateral = 10 ** chance.uniform(-4, 6, count)
    place = chance.integers(0, 4, count)
    values[np.arange(count), 2 * place] = collateral
    debt = collateral / (0.95 + chance.exponential(0.8, count)) * (chance.random(count) > 0.02)
    values[np.arange(count), 2 * ((place + 1) % 4) + 1] = debt
    values[chance.random(count) < 0.01] = 0.0
    return values


@pytest.fixture
def always_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep even small blocks in order."""
    monkeypatch.setattr("keeper.book._SCANNED_WHOLE", 0)


@pytest.mark.usefixtures("always_in_order")
@pytest.mark.parametrize("seed", range(6))
def test_order_never_hides_a_candidate(seed: int) -> None:
    """Over a random walk of weights and slack, writes and removals of 10,000 rows, candidates equal a full scan, and
    most heads are answered without one.

    Sums may be taken in another order, so a margin within rounding of the slack may fall on either side.
    """
    chance = np.random.default_rng(seed)
    book = Book()
    values = _random_rows(chance, _COUNT)
    held = np.ones(_COUNT, dtype=np.bool_)
    book.upsert(positions(range(_COUNT)), Rows(values))
    price, slack = np.array([1.5, -1.0] * 4), 1e-3
    spared = 0
    for step in range(30):
        if chance.random() < 0.2:
            slack *= float(chance.choice((0.3, 1.0, 3.0)))
        if step in {6, 12, 25}:
            price[2 * chance.integers(0, 4)] *= chance.choice((0.7, 1.6)) if step < 25 else 0.0
        else:
            price *= chance.uniform(0.99, 1.01, 8)
        some = chance.choice(np.flatnonzero(held), chance.integers(1, 200), replace=False)
        if step % 3 == 1:
            values[some] = _random_rows(chance, len(some)) * chance.choice((0.01, 1.0, 100.0))
            book.upsert(positions(some.tolist()), Rows(values[some]))
        elif step % 3 == 2:
            held[some] = False
            book.remove(key(number) for number in some.tolist())
        elif step % 7 == 3:
            gone = np.flatnonzero(~held)
            held[gone] = True
            book.upsert(positions(gone.tolist()), Rows(values[gone]))
        asked = weights(*price, slack=slack)
        spared += _answered_by_order(book, asked)
        margins = values @ price
        found = [int.from_bytes(each.account) for each in book.candidates(marks({0: asked}))]
        assert len(found) == len(set(found))
        rounding = 1e-12 * np.abs(values) @ np.abs(price)
        assert set(np.flatnonzero(held & (margins < slack - rounding)).tolist()) <= set(found), step
        assert set(found) <= set(np.flatnonzero(held & (margins < slack + rounding)).tolist()), step
    assert spared >= 12


@pytest.mark.usefixtures("always_in_order")
def test_rows_that_are_not_numbers_are_in_every_prefix() -> None:
    """In a block that is kept in order, a row that cannot be measured is still a candidate at every head."""
    values = _random_rows(np.random.default_rng(1), _COUNT)
    values[17, 0], values[4_711, 3] = np.nan, np.inf
    book = Book()
    book.upsert(positions(range(_COUNT)), Rows(values))
    price = np.array([1.5, -1.0] * 4)
    for step in range(3):
        asked = weights(*(price * (1 - step / 1_000)), slack=1e-3)
        assert _answered_by_order(book, asked) is (step > 0)
        assert {key(17), key(4_711)} <= set(book.candidates(marks({0: asked})))


def _answered_by_order(book: Book, asked: Weights) -> bool:
    block = book._shelves["p", "m"].blocks[0]
    order = block._order
    if order is None or not order.useful or len(block._changed) > block.count // 8:
        return False
    return order.below(asked) is not None


@pytest.mark.usefixtures("always_in_order")
def test_order_spares_most_rows_after_a_small_move() -> None:
    """When a weight falls by a percent, at most a quarter of 20,000 rows is multiplied again, and nobody is lost."""
    chance = np.random.default_rng(3)
    book = Book()
    book.upsert(positions(range(20_000)), Rows(_random_rows(chance, 20_000)))
    price = np.array([1.3, -1.0] * 4)
    book.candidates(marks({0: weights(*price, slack=1e-3)}))
    block = book._shelves["p", "m"].blocks[0]
    order = block._order
    assert order is not None and order.useful
    assert len(order.near) == 5_000
    price[0] *= 0.99
    moved = weights(*price, slack=1e-3)
    below = order.below(moved)
    assert below is not None
    full = np.flatnonzero(block._rows[: block.count] @ moved.values < moved.slack)
    assert set(below.tolist()) == set(full.tolist())
    assert len(full) > 500
    assert order.below(weights(*(price * np.array([0.2, 1] * 4)), slack=1e-3)) is None
    book.upsert(positions(range(3_000)), Rows(_random_rows(chance, 3_000)))
    book.candidates(marks({0: moved}))
    assert block._order is not order
    assert not block._changed


class BookMachine(RuleBasedStateMachine):
    """Whatever is written and removed in whatever order, the book answers as a plain dictionary would."""

    @initialize()
    def start(self) -> None:
        """An empty book beside an empty dictionary."""
        self.book = Book()
        self.held: dict[int, tuple[int, float, float, bool]] = {}

    @rule(
        batch=st.lists(
            st.tuples(
                st.integers(1, 30),
                st.integers(0, 2),
                st.floats(0, 10, allow_nan=False),
                st.floats(0, 10, allow_nan=False),
                st.booleans(),
            ),
            min_size=1,
            max_size=12,
            unique_by=lambda each: each[0],
        ),
        always=st.booleans(),
    )
    def upsert(self, batch: list[tuple[int, int, float, float, bool]], always: bool) -> None:
        """Write a batch with all kinds of fates in it."""
        written = positions(
            [each[0] for each in batch],
            group=[each[1] for each in batch],
            live=[each[4] for each in batch],
            always=always,
        )
        self.book.upsert(written, rows(*([each[2], each[3]] for each in batch)))
        for number, group, collateral, debt, live in batch:
            self.held.pop(number, None)
            if live:
                self.held[number] = (group, collateral, debt, always)

    @rule(numbers=st.lists(st.integers(1, 30), max_size=5))
    def remove(self, numbers: list[int]) -> None:
        """Forget some, held or not."""
        self.book.remove([key(number) for number in numbers])
        for number in numbers:
            self.held.pop(number, None)

    @invariant()
    def answers_as_a_dictionary_would(self) -> None:
        """Membership, candidates, counts and exact words."""
        assert set(self.book) == {key(number) for number in self.held}
        assert len(self.book) == len(self.held)
        by_group = {0: weights(1, -1), 1: weights(0.5, -1)}
        expected = {
            key(number)
            for number, (group, collateral, debt, always) in self.held.items()
            if always or group == 2 or (1 - 0.5 * group) * collateral - debt < 0.5
        }
        found = self.book.candidates(marks(by_group))
        assert len(found) == len(set(found))
        assert set(found) == expected
        assert self.book.always_check == sum(always for *_, always in self.held.values())
        for number, (group, *_) in self.held.items():
            position = self.book.position(key(number))
            assert (position.group, position.words[0]) == (group, number << 64 | 7)


TestBookMachine = BookMachine.TestCase
TestBookMachine.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
