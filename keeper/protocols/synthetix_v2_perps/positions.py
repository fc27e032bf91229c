"""Positions as columns: which words one has, how they are read, and the float row that stands for it.

A position's words are its margin, its size, its last price, the funding sequence's entry at its last change, and the
address that flagged it in two halves. Signed words are in two's complement of 128 bits, as the contract keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keeper.errors import AdapterError
from keeper.protocols.synthetix_v2_perps.market import STATE, Market, answered, ask
from keeper.protocols.synthetix_v2_perps.rules import UNIT, Holding
from keeper.seams import Reads
from keeper.types import ZERO_ADDRESS, Address, Position, PositionKey, Positions, Rows

_POSITIONS: Final = STATE.function("positions")
_FLAGGER: Final = STATE.function("positionFlagger")
_ENTRY: Final = STATE.function("fundingSequence")

_MARGIN, _SIZE, _LAST_PRICE, _FUNDING, _FLAGGER_HIGH, _FLAGGER_LOW, _WIDTH = range(7)
_COLUMNS: Final = 5
_BITS: Final = 128
_MASK: Final = (1 << _BITS) - 1
_WORD_MASK: Final = (1 << 64) - 1


def holding_of(words: Sequence[int]) -> Holding:
    """What a position's words say of it."""
    return Holding(words[_MARGIN], _signed(words[_SIZE]), words[_LAST_PRICE], _signed(words[_FUNDING]))


def flagger_of(position: Position) -> Address | None:
    """Who flagged it; None where nobody has."""
    flagger = position.words[_FLAGGER_HIGH] << _BITS | position.words[_FLAGGER_LOW]
    return Address(flagger.to_bytes(20)) if flagger else None


def rows_of(positions: Positions) -> Rows:
    """Shape (n, 5): what is certain of the margin where it is above zero, and below; the size where it is long, and
    short; and the size squared.

    What is certain is the margin less what the position cost, and less the funding up to then: exact here, so that
    only a float's own rounding is left, which the weights allow for.
    """
    exact = positions.words
    values = np.zeros((len(exact), _COLUMNS))
    for row, words in enumerate(exact.tolist()):
        holding = holding_of([high << 64 | low for high, low in words])
        certain = holding.margin_raw * UNIT - holding.size * (holding.last_price + holding.entry)
        values[row] = (
            max(certain, 0) / UNIT,
            max(-certain, 0) / UNIT,
            float(max(holding.size, 0)),
            float(max(-holding.size, 0)),
            float(holding.size) ** 2,
        )
    return Rows(values)


def read_positions(
    protocol: str, key_market: str, market: Market, keys: Sequence[PositionKey]
) -> Reads[Positions]:
    """Read positions and who flagged them, then the funding entries that they name."""
    accounts = tuple(key.account for key in keys)
    calls = [_POSITIONS.call(market.state, account) for account in accounts]
    calls += [_FLAGGER.call(market.state, account) for account in accounts]
    results = (yield calls) if calls else []
    count = len(accounts)
    held = [answered(_POSITIONS, result) for result in results[:count]]
    flaggers = [answered(_FLAGGER, result) for result in results[count:]]
    # (id, lastFundingIndex, margin, lastPrice, size)
    live = np.array([bool(size) for _, _, _, _, size in held], dtype=np.bool_)
    indices = sorted({index for _, index, _, _, size in held if size})
    if 0 in indices:
        raise AdapterError(f"The market {market.asset} has a position that no funding entry belongs to.")
    entries = dict(zip(indices, (yield from _entries(market, indices)), strict=True))
    words = np.zeros((count, _WIDTH, 2), dtype=np.uint64)
    for row in np.flatnonzero(live).tolist():
        _, index, margin, last_price, size = held[row]
        flagger = int.from_bytes(flaggers[row])
        values = (margin, size, last_price, entries[index], flagger >> _BITS, flagger & _MASK)
        for column, value in enumerate(values):
            _put(words, row, column, value & _MASK)
    return Positions(
        protocol=protocol,
        market=key_market,
        accounts=accounts,
        words=words,
        group=np.zeros(count, dtype=np.int64),
        live=live,
        # once flagged a position may be liquidated whatever has become of it
        always_check=np.array([flagger != ZERO_ADDRESS for flagger in flaggers], dtype=np.bool_),
    )


def _entries(market: Market, indices: Sequence[int]) -> Reads[list[int]]:
    if not indices:
        return []
    found = yield from ask([(_ENTRY, market.state, (index,)) for index in indices])
    return found


def _put(words: NDArray[np.uint64], row: int, column: int, value: int) -> None:
    words[row, column, 0] = value >> 64
    words[row, column, 1] = value & _WORD_MASK


def _signed(word: int) -> int:
    return word - (1 << _BITS) if word >> (_BITS - 1) else word
