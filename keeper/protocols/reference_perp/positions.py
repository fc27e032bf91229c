"""Accounts as columns: which words one has, how they are read, and the float row that stands for it.

An account's words are its collateral and whether it is flagged and was cut short, then three for each market by number:
size, cost and index, all in two's complement of 128 bits as the contract keeps them. Markets are only ever added, so a
shorter row keeps its meaning when one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keeper.errors import AdapterError
from keeper.fixed import WAD
from keeper.protocols.reference_perp.exchange import EXCHANGE, Exchange, Question, ask, number_of
from keeper.protocols.reference_perp.rules import Holding, Stake
from keeper.seams import Reads
from keeper.types import PositionKey, Positions, Rows

ACCOUNT_OF: Final = EXCHANGE.function("accountOf")
POSITION_OF: Final = EXCHANGE.function("holding")

_BITS: Final = 128
_MASK: Final = (1 << _BITS) - 1
_WORD_MASK: Final = (1 << 64) - 1
_FIRST, _PER_MARKET = 2, 3
CONSTANTS, PER_MARKET = 2, 4  # columns of a row
_FLAGGED, _CUT = 1, 2


def holding_of(words: Sequence[int]) -> Holding:
    """What an account's words say of it."""
    stakes = []
    for column in range(_FIRST, len(words), _PER_MARKET):
        size, cost, index = (_signed(word) for word in words[column : column + _PER_MARKET])
        if size:
            stakes.append(Stake((column - _FIRST) // _PER_MARKET, size, cost, index))
    flags = words[1]
    return Holding(_signed(words[0]), bool(flags & _FLAGGED), bool(flags & _CUT), tuple(stakes))


def told_holding(account: Sequence[Any], positions: Sequence[tuple[int, Sequence[Any]]]) -> Holding:
    """An account as `accountOf` tells it, with its positions as `holding` does, each with its market."""
    _, _, flagged, cut, collateral, _ = account
    stakes = (Stake(market, size, cost, index) for market, (size, cost, index, _) in positions if size)
    return Holding(collateral, flagged, cut, tuple(stakes))


def rows_of(positions: Positions) -> Rows:
    """Two columns for what does not move with the marks, and its absolute; then for each market the size where it is
    long, and short, the size squared, and whether there is any. Shape (n, 2 + 4 · markets), money in units of 10⁻¹⁸.

    What does not move is the collateral less what positions cost, and less what their sides had owed when they were
    settled: exact here, so that only a float's own rounding is left, which the weights allow for.
    """
    exact = positions.words
    count = (exact.shape[1] - _FIRST) // _PER_MARKET
    values = np.zeros((len(exact), CONSTANTS + PER_MARKET * count))
    for row, words in enumerate(exact.tolist()):
        holding = holding_of([high << 64 | low for high, low in words])
        constant = holding.collateral * WAD
        for stake in holding.stakes:
            size = abs(stake.size)
            constant += size * stake.index - stake.cost * WAD
            column = CONSTANTS + PER_MARKET * stake.market
            values[row, column if stake.size > 0 else column + 1] = size
            values[row, column + 2] = float(size) ** 2
            values[row, column + 3] = 1.0
        values[row, 0] = constant / WAD
        values[row, 1] = abs(constant) / WAD
    return Rows(values)


def read_positions(
    protocol: str, key_market: str, exchange: Exchange, keys: Sequence[PositionKey]
) -> Reads[Positions]:
    """Read accounts, then their positions."""
    numbers = [number_of(key.account) for key in keys]
    accounts = yield from ask([(ACCOUNT_OF, exchange.address, (number,)) for number in numbers])
    held = [_markets_in(account[5], exchange) for account in accounts]
    asked: list[Question] = [
        (POSITION_OF, exchange.address, (number, market))
        for number, markets in zip(numbers, held, strict=True)
        for market in markets
    ]
    told = iter((yield from ask(asked)))
    words = np.zeros((len(keys), _FIRST + _PER_MARKET * len(exchange.feeds), 2), dtype=np.uint64)
    for row, (account, markets) in enumerate(zip(accounts, held, strict=True)):
        _, _, flagged, cut, collateral, _ = account
        _put(words, row, 0, (collateral, flagged * _FLAGGED | cut * _CUT))
        for market in markets:
            size, cost, index, _ = next(told)
            _put(words, row, _FIRST + _PER_MARKET * market, (size, cost, index))
    return Positions(
        protocol=protocol,
        market=key_market,
        accounts=tuple(key.account for key in keys),
        words=words,
        group=np.zeros(len(keys), dtype=np.int64),
        live=np.array([bool(markets) for markets in held], dtype=np.bool_),
        always_check=np.zeros(len(keys), dtype=np.bool_),
    )


def _markets_in(bits: int, exchange: Exchange) -> list[int]:
    """The markets an account is in."""
    if bits >> len(exchange.feeds):
        raise AdapterError(f"An account is in a market beyond the {len(exchange.feeds)} that were loaded.")
    return [market for market in range(len(exchange.feeds)) if bits >> market & 1]


def _put(words: NDArray[np.uint64], row: int, column: int, figures: Sequence[int]) -> None:
    for place, figure in enumerate(figures):
        value = figure & _MASK
        words[row, column + place, 0] = value >> 64
        words[row, column + place, 1] = value & _WORD_MASK


def _signed(word: int) -> int:
    return word - (1 << _BITS) if word >> (_BITS - 1) else word
