"""The book: every known position in columns, and the question it exists for — who may be liquidatable at these marks?

One block per protocol, market and group holds exact words beside float rows; a block's rows times its weights are its
margins. A row may only over-select: whoever is returned is judged exactly by the adapter, whoever is not is safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keeper.types import Address, Marks, Position, PositionKey, Positions, Rows, Weights

_SMALLEST: Final = 16


class _Block:
    """Positions of one protocol, market and group: the first `count` slots of arrays that double when full."""

    def __init__(self, protocol: str, market: str, group: int) -> None:
        self.protocol = protocol
        self.market = market
        self.group = group
        self.count = 0
        self.accounts: list[Address] = []
        self.words: NDArray[np.uint64] = np.zeros((0, 0, 2), dtype=np.uint64)
        self.rows: NDArray[np.float64] = np.zeros((0, 0))
        self.always: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)

    def reserve(self, extra: int, width: int, columns: int) -> None:
        """Make room for `extra` more positions of `width` words and `columns` exposures; new columns hold zeros."""
        need = self.count + extra
        capacity = len(self.always)
        width, columns = max(width, self.words.shape[1]), max(columns, self.rows.shape[1])
        if need <= capacity and width == self.words.shape[1] and columns == self.rows.shape[1]:
            return
        capacity = max(capacity, _SMALLEST)
        while capacity < need:
            capacity *= 2
        words = np.zeros((capacity, width, 2), dtype=np.uint64)
        rows = np.zeros((capacity, columns))
        always = np.zeros(capacity, dtype=np.bool_)
        words[: self.count, : self.words.shape[1]] = self.words[: self.count]
        rows[: self.count, : self.rows.shape[1]] = self.rows[: self.count]
        always[: self.count] = self.always[: self.count]
        self.words, self.rows, self.always = words, rows, always

    def append(self, account: Address) -> int:
        """A slot for a new account."""
        self.accounts.append(account)
        self.count += 1
        return self.count - 1

    def write(
        self,
        slots: NDArray[np.intp],
        words: NDArray[np.uint64],
        rows: NDArray[np.float64],
        always: NDArray[np.bool_],
    ) -> None:
        """Set whole slots; columns beyond what is given become zero."""
        self.words[slots, : words.shape[1]] = words
        self.words[slots, words.shape[1] :] = 0
        self.rows[slots, : rows.shape[1]] = rows
        self.rows[slots, rows.shape[1] :] = 0.0
        self.always[slots] = always

    def drop(self, slot: int) -> Address | None:
        """Free a slot by moving the last account into it; that account, if one moved."""
        last = self.count - 1
        account = self.accounts.pop()
        self.count = last
        if slot == last:
            return None
        self.accounts[slot] = account
        self.words[slot] = self.words[last]
        self.rows[slot] = self.rows[last]
        self.always[slot] = self.always[last]
        return account

    def candidates(self, weights: Weights | None) -> NDArray[np.intp]:
        """Slots whose margin is below the slack or that have no bound; all of them without weights."""
        if weights is None:
            return np.arange(self.count)
        columns = self.rows.shape[1]
        values = weights.values[:columns]
        margins = self.rows[: self.count, : len(values)] @ values
        # "not at least the slack" rather than "below it": a margin that is not a number is looked at too
        return np.flatnonzero(~(margins >= weights.slack) | self.always[: self.count])


@dataclass(frozen=True, slots=True)
class _Place:
    block: _Block
    slot: int


class Book:
    """Positions by account. Not safe for threads; one event loop owns it."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, str, int], _Block] = {}
        self._places: dict[PositionKey, _Place] = {}

    def __len__(self) -> int:
        """Positions held."""
        return len(self._places)

    def __contains__(self, key: PositionKey) -> bool:
        """Whether a position is held."""
        return key in self._places

    def __iter__(self) -> Iterator[PositionKey]:
        """Every position held."""
        return iter(self._places)

    def upsert(self, positions: Positions, rows: Rows) -> None:
        """Set these positions to what was read; one that owes nothing leaves the book, one that changed its group
        moves.
        """
        keys = [PositionKey(positions.protocol, positions.market, account) for account in positions.accounts]
        live = positions.live
        self.remove(key for key, lives in zip(keys, live, strict=True) if not lives)
        for group in np.unique(positions.group[live]).tolist():
            chosen = np.flatnonzero(live & (positions.group == group))
            block = self._block(positions.protocol, positions.market, group)
            block.reserve(len(chosen), positions.words.shape[1], rows.values.shape[1])
            slots = np.fromiter(
                (self._slot(block, keys[index]) for index in chosen.tolist()),
                dtype=np.intp,
                count=len(chosen),
            )
            block.write(slots, positions.words[chosen], rows.values[chosen], positions.always_check[chosen])

    def remove(self, keys: Iterable[PositionKey]) -> None:
        """Forget these positions; those not held are ignored."""
        for key in keys:
            place = self._places.pop(key, None)
            if place is None:
                continue
            moved = place.block.drop(place.slot)
            if moved is not None:
                self._places[PositionKey(key.protocol, key.market, moved)] = place

    def candidates(self, marks: Marks) -> list[PositionKey]:
        """Every position of the marks' market that may be liquidatable, in no order."""
        found: list[PositionKey] = []
        for block in self._of_market(marks.market):
            accounts = block.accounts
            found += [
                PositionKey(block.protocol, block.market, accounts[slot])
                for slot in block.candidates(marks.weights.get(block.group)).tolist()
            ]
        return found

    def position(self, key: PositionKey) -> Position:
        """A held position with its exact words. Raises `KeyError` for one that is not held."""
        place = self._places[key]
        words = place.block.words[place.slot].tolist()
        return Position(key, place.block.group, tuple(high << 64 | low for high, low in words))

    @property
    def always_check(self) -> int:
        """How many positions have no bound and are judged at every head: a cost, and a metric."""
        return sum(int(block.always[: block.count].sum()) for block in self._blocks.values())

    def counts(self) -> dict[str, int]:
        """Positions held, by protocol."""
        held: dict[str, int] = {}
        for block in self._blocks.values():
            held[block.protocol] = held.get(block.protocol, 0) + block.count
        return held

    def _block(self, protocol: str, market: str, group: int) -> _Block:
        return self._blocks.setdefault((protocol, market, group), _Block(protocol, market, group))

    def _of_market(self, market: str) -> Sequence[_Block]:
        return [block for block in self._blocks.values() if block.market == market and block.count]

    def _slot(self, block: _Block, key: PositionKey) -> int:
        place = self._places.get(key)
        if place is not None and place.block is block:
            return place.slot
        if place is not None:
            self.remove([key])
        slot = block.append(key.account)
        self._places[key] = _Place(block, slot)
        return slot
