"""The book: every known position in columns, and the question it exists for — who may be liquidatable at these marks?

One block per protocol, market and group holds exact words beside float rows; a block's rows times its weights are its
margins. A row may only over-select: whoever is returned is judged exactly by the adapter, whoever is not is safe.
A large block also keeps its rows in order of health at some earlier weights: however weights moved since, none of a
row's terms grew or shrank by more than the most any weight did, so only a prefix has to be multiplied again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keeper.types import Address, Marks, Position, PositionKey, Positions, Rows, Weights

_SMALLEST: Final = 16
_SCANNED_WHOLE = 1 << 18  # numbers below which multiplying all is faster than choosing
_NEAR_SHARE: Final = 4  # of a block in order, a quarter of the rows is kept twice
_CHUNK: Final = 65_536
_ROUNDING: Final = 1 + 1e-9  # what float64 may be off by when healths are compared, generously
_SLOT_BITS: Final = 40
_SLOT_MASK: Final = (1 << _SLOT_BITS) - 1
_NOWHERE: Final = -1


@dataclass(frozen=True, slots=True)
class _Order:
    """Slots by rising health at `weights`: the sum of a row's positive terms over that of its negative ones and
    `slack`. `near` are the rows of the first of them side by side, because reading them where they lie is as slow as
    multiplying all.
    """

    weights: NDArray[np.float64]
    slack: float
    healths: NDArray[np.float64]
    slots: NDArray[np.intp]
    near: NDArray[np.float64]

    @property
    def useful(self) -> bool:
        """Whether a few rows are near the edge and most are not: else ordering again would not help."""
        return int(np.searchsorted(self.healths, _ROUNDING)) <= len(self.near)

    def below(self, weights: Weights) -> NDArray[np.intp] | None:
        """Slots whose margin, as of the ordering, is below the slack at other weights; None when it cannot be told
        from the rows at hand.

        With every weight between `least` and `most` times what it was, a margin is at least least · P − most · N, so
        one below `weights.slack` has P / (N + slack) < max(most, weights.slack / slack) / least.
        """
        if len(weights.values) != len(self.weights):
            return None
        moved = self.weights != weights.values
        ratios = np.ones(len(moved))
        with np.errstate(divide="ignore", over="ignore"):
            np.divide(weights.values, self.weights, out=ratios, where=moved)
        least, most = float(ratios.min(initial=1.0)), float(ratios.max(initial=1.0))
        if not (least > 0.0 and np.isfinite(most)):
            return None
        bound = max(most, weights.slack / self.slack) / least * _ROUNDING
        count = int(np.searchsorted(self.healths, bound))
        if count > len(self.near):
            return None
        return self.slots[:count][_below(self.near[:count] @ weights.values, weights.slack)]


class _Block:
    """Positions of one group: the first `count` slots of arrays that double when full."""

    def __init__(self, number: int, group: int) -> None:
        self.number = number
        self.group = group
        self.count = 0
        self.accounts: list[Address] = []
        self.words: NDArray[np.uint64] = np.zeros((0, 0, 2), dtype=np.uint64)
        self.always: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self._rows: NDArray[np.float64] = np.zeros((0, 0))
        self._order: _Order | None = None
        self._changed: set[int] = set()  # slots written since they were put in order

    def reserve(self, extra: int, width: int, columns: int) -> None:
        """Make room for `extra` more positions of `width` words and `columns` exposures; new columns hold zeros."""
        need = self.count + extra
        capacity = len(self.always)
        width, columns = max(width, self.words.shape[1]), max(columns, self._rows.shape[1])
        if need <= capacity and width == self.words.shape[1] and columns == self._rows.shape[1]:
            return
        capacity = max(capacity, _SMALLEST)
        while capacity < need:
            capacity *= 2
        words = np.zeros((capacity, width, 2), dtype=np.uint64)
        rows = np.zeros((capacity, columns))
        always = np.zeros(capacity, dtype=np.bool_)
        words[: self.count, : self.words.shape[1]] = self.words[: self.count]
        rows[: self.count, : self._rows.shape[1]] = self._rows[: self.count]
        always[: self.count] = self.always[: self.count]
        self.words, self._rows, self.always = words, rows, always

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
        self._rows[slots, : rows.shape[1]] = rows
        self._rows[slots, rows.shape[1] :] = 0.0
        self.always[slots] = always
        if self._order is not None:
            self._changed.update(slots.tolist())

    def drop(self, slot: int) -> Address | None:
        """Free a slot by moving the last account into it; that account, if one moved."""
        last = self.count - 1
        account = self.accounts.pop()
        self.count = last
        self._changed.discard(last)
        if slot == last:
            return None
        self.accounts[slot] = account
        self.words[slot] = self.words[last]
        self._rows[slot] = self._rows[last]
        self.always[slot] = self.always[last]
        if self._order is not None:
            self._changed.add(slot)
        return account

    def candidates(self, weights: Weights | None) -> list[int]:
        """Slots whose margin is below the slack or that have no bound; all of them without weights."""
        if weights is None:
            return list(range(self.count))
        rows = self._rows[: self.count]
        values = np.zeros(rows.shape[1])
        shared = min(len(values), len(weights.values))
        values[:shared] = weights.values[:shared]
        weights = Weights(values, weights.slack)
        below = self._below_by_order(weights)
        if below is None:
            below = np.flatnonzero(_below(rows @ values, weights.slack))
        always = np.flatnonzero(self.always[: self.count])
        slots: list[int] = (np.union1d(below, always) if len(always) else below).tolist()
        return slots

    def _below_by_order(self, weights: Weights) -> NDArray[np.intp] | None:
        """Slots below the slack, or None when all rows must be multiplied; puts the block in order when that pays."""
        if self.count * self._rows.shape[1] < _SCANNED_WHOLE:
            return None
        order = self._order
        if order is None or len(self._changed) > self.count // 8:
            self._sort(weights)
            return None
        found = order.below(weights) if order.useful else None
        if found is None:
            if order.useful:
                self._sort(
                    weights
                )  # the weights have moved far: this head is multiplied whole, the next are spared
            return None
        if not self._changed:
            return found
        changed = np.fromiter(self._changed, dtype=np.intp, count=len(self._changed))
        kept = [slot for slot in found.tolist() if slot < self.count and slot not in self._changed]
        fresh = changed[_below(self._rows[changed] @ weights.values, weights.slack)]
        return np.concatenate([np.array(kept, dtype=np.intp), fresh])

    def _sort(self, weights: Weights) -> None:
        self._order = None
        self._changed.clear()
        if weights.slack <= 0.0:
            return
        healths = np.empty(self.count)
        sizes = np.abs(weights.values)
        with np.errstate(invalid="ignore", over="ignore"):
            for first in range(0, self.count, _CHUNK):
                rows = self._rows[first : min(first + _CHUNK, self.count)]
                margins, gross = rows @ weights.values, np.abs(rows) @ sizes
                healths[first : first + _CHUNK] = (gross + margins) / (gross - margins + 2 * weights.slack)
        healths[np.isnan(healths)] = -np.inf  # a row that cannot be measured is in every prefix
        slots = np.argsort(healths).astype(np.intp)
        near = self._rows[slots[: self.count // _NEAR_SHARE]]
        self._order = _Order(weights.values, weights.slack, healths[slots], slots, near)


def _below(margins: NDArray[np.float64], slack: float) -> NDArray[np.bool_]:
    """Whether each margin is below the slack; one that is not a number is."""
    return ~(margins >= slack)


class _Shelf:
    """The positions of one market of one protocol; a place is a block's number and a slot in one integer."""

    def __init__(self, protocol: str, market: str) -> None:
        self.protocol = protocol
        self.market = market
        self.places: dict[Address, int] = {}
        self.blocks: list[_Block] = []
        self._of_group: dict[int, _Block] = {}

    def block(self, group: int) -> _Block:
        """The block of a group, made when it is first asked for."""
        found = self._of_group.get(group)
        if found is None:
            found = self._of_group[group] = _Block(len(self.blocks), group)
            self.blocks.append(found)
        return found

    def find(self, account: Address) -> tuple[_Block, int]:
        """Where an account is. Raises `KeyError` when it is not held."""
        place = self.places[account]
        return self.blocks[place >> _SLOT_BITS], place & _SLOT_MASK

    def slot(self, block: _Block, account: Address) -> int:
        """The account's slot in `block`, made for it when it was elsewhere or nowhere."""
        place = self.places.get(account, _NOWHERE)
        if place >> _SLOT_BITS == block.number:
            return place & _SLOT_MASK
        self.remove(account)
        slot = block.append(account)
        self.places[account] = block.number << _SLOT_BITS | slot
        return slot

    def remove(self, account: Address) -> None:
        """Forget an account; nothing happens when it is not held."""
        place = self.places.pop(account, _NOWHERE)
        if place == _NOWHERE:
            return
        moved = self.blocks[place >> _SLOT_BITS].drop(place & _SLOT_MASK)
        if moved is not None:
            self.places[moved] = place


class Book:
    """Positions by account. Not safe for threads; one event loop owns it."""

    def __init__(self) -> None:
        self._shelves: dict[tuple[str, str], _Shelf] = {}

    def __len__(self) -> int:
        """Positions held."""
        return sum(len(shelf.places) for shelf in self._shelves.values())

    def __contains__(self, key: PositionKey) -> bool:
        """Whether a position is held."""
        shelf = self._shelves.get((key.protocol, key.market))
        return shelf is not None and key.account in shelf.places

    def __iter__(self) -> Iterator[PositionKey]:
        """Every position held; the book must not change meanwhile."""
        for shelf in self._shelves.values():
            for account in shelf.places:
                yield PositionKey(shelf.protocol, shelf.market, account)

    def upsert(self, positions: Positions, rows: Rows) -> None:
        """Set these positions to what was read; one that owes nothing leaves the book, one that changed its group
        moves.
        """
        shelf = self._shelf(positions.protocol, positions.market)
        accounts, live = positions.accounts, positions.live
        for index in np.flatnonzero(~live).tolist():
            shelf.remove(accounts[index])
        for group in np.unique(positions.group[live]).tolist():
            chosen = np.flatnonzero(live & (positions.group == group))
            block = shelf.block(group)
            block.reserve(len(chosen), positions.words.shape[1], rows.values.shape[1])
            slots = np.array([shelf.slot(block, accounts[index]) for index in chosen.tolist()], dtype=np.intp)
            block.write(slots, positions.words[chosen], rows.values[chosen], positions.always_check[chosen])

    def remove(self, keys: Iterable[PositionKey]) -> None:
        """Forget these positions; those not held are ignored."""
        for key in list(keys):
            self._shelf(key.protocol, key.market).remove(key.account)

    def candidates(self, marks: Marks) -> list[PositionKey]:
        """Every position of the marks' markets that may be liquidatable, in no order."""
        found: list[PositionKey] = []
        for shelf in self._shelves.values():
            if shelf.market != marks.market and shelf.market not in marks.parts:
                continue
            for block in shelf.blocks:
                slots = block.candidates(marks.weights.get(block.group)) if block.count else []
                found += [PositionKey(shelf.protocol, shelf.market, block.accounts[slot]) for slot in slots]
        return found

    def position(self, key: PositionKey) -> Position:
        """A held position with its exact words. Raises `KeyError` for one that is not held."""
        block, slot = self._shelves[key.protocol, key.market].find(key.account)
        return Position(key, block.group, tuple(high << 64 | low for high, low in block.words[slot].tolist()))

    @property
    def always_check(self) -> int:
        """How many positions have no bound and are judged at every head: a cost, and a metric."""
        blocks = [block for shelf in self._shelves.values() for block in shelf.blocks]
        return sum(int(block.always[: block.count].sum()) for block in blocks)

    def counts(self) -> dict[str, int]:
        """Positions held, by protocol."""
        held: dict[str, int] = {}
        for shelf in self._shelves.values():
            held[shelf.protocol] = held.get(shelf.protocol, 0) + len(shelf.places)
        return held

    def _shelf(self, protocol: str, market: str) -> _Shelf:
        shelf = self._shelves.get((protocol, market))
        if shelf is None:
            shelf = self._shelves[protocol, market] = _Shelf(protocol, market)
        return shelf
