"""Accounts as columns: which words a position has, how they are read, and the float row that stands for it.

A position's words are: the low and high half of the user's configuration bitmap, a flag for stable-rate debt, then for
each reserve by id the scaled collateral and the scaled variable debt, each only where the bitmap says it is used.
Reserves are only ever appended, so a shorter row keeps its meaning when a reserve is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keeper import abi
from keeper.errors import AdapterError
from keeper.protocols.aave_v3.market import ATOKEN, POOL, Market
from keeper.seams import Reads
from keeper.types import ZERO_ADDRESS, Position, PositionKey, Positions, Result, Reverted, Rows

_USER_CONFIGURATION: Final = POOL.function("getUserConfiguration")
_USER_EMODE: Final = POOL.function("getUserEMode")
_SCALED_BALANCE: Final = ATOKEN.function("scaledBalanceOf")
_BALANCE: Final = ATOKEN.function("balanceOf")

_BORROWING_MASK: Final = int("01" * 128, 2)  # UserConfiguration.BORROWING_MASK
_HALF: Final = 128
_HALF_MASK: Final = (1 << _HALF) - 1
_WORD_MASK: Final = (1 << 64) - 1
_STABLE: Final = 2
_FIRST_RESERVE: Final = 3
_EMODE_BITS, _BALANCE_BITS = 8, 128  # as every version stores them


@dataclass(frozen=True, slots=True)
class Holding:
    """What an account has in one reserve, scaled; `enabled` says it counts as collateral, `borrowed` that it owes."""

    reserve_id: int
    enabled: bool
    borrowed: bool
    scaled_collateral: int
    scaled_debt: int


def has_stable_debt(position: Position) -> bool:
    """Whether the account owes at a stable rate, which no row bounds."""
    return bool(position.words[_STABLE])


def holdings(position: Position) -> list[Holding]:
    """The reserves an account uses, by rising id."""
    words = position.words
    bitmap = words[0] | words[1] << _HALF
    found = []
    for reserve_id in _used(bitmap):
        column = _FIRST_RESERVE + 2 * reserve_id
        bits = bitmap >> (2 * reserve_id)
        found.append(Holding(reserve_id, bool(bits & 2), bool(bits & 1), words[column], words[column + 1]))
    return found


def rows_of(positions: Positions) -> Rows:
    """Scaled collateral and debt of each reserve in turn, shape (n, 2 · reserves), rounded against the account.

    Indices never fall below 1, so a scaled unit is at least a raw one, which is the most a version rounds a balance
    by: one less of collateral and one more of debt bound what the contract sees, in every version.
    """
    exact = positions.words[:, _FIRST_RESERVE:]
    values = exact[:, :, 0].astype(np.float64) * 2.0**64 + exact[:, :, 1].astype(np.float64)
    values[:, 0::2] = np.maximum(values[:, 0::2] - 1.0, 0.0)
    values[:, 1::2] += values[:, 1::2] > 0.0
    return Rows(values)


def read_positions(
    protocol: str, key_market: str, market: Market, keys: Sequence[PositionKey]
) -> Reads[Positions]:
    """Read bitmaps and e-modes, then the balances the bitmaps name, of accounts that owe something."""
    accounts = tuple(key.account for key in keys)
    count = len(accounts)
    calls = [_USER_CONFIGURATION.call(market.pool, account) for account in accounts]
    calls += [_USER_EMODE.call(market.pool, account) for account in accounts]
    results = (yield calls) if calls else []
    bitmaps = [_word(result, _USER_CONFIGURATION) for result in results[:count]]
    emodes = [_word(result, _USER_EMODE, _EMODE_BITS) for result in results[count:]]
    group = np.array(emodes, dtype=np.int64)
    live = np.array([bool(bitmap & _BORROWING_MASK) for bitmap in bitmaps], dtype=np.bool_)
    words = np.zeros((count, _FIRST_RESERVE + 2 * len(market.reserves), 2), dtype=np.uint64)

    cells: list[tuple[int, int]] = []
    calls = []
    for row in np.flatnonzero(live).tolist():
        account, bitmap = accounts[row], bitmaps[row]
        _put(words, row, 0, bitmap & _HALF_MASK)
        _put(words, row, 1, bitmap >> _HALF)
        for reserve_id in _used(bitmap):
            reserve = market.reserve(reserve_id)
            column = _FIRST_RESERVE + 2 * reserve_id
            bits = bitmap >> (2 * reserve_id)
            if bits & 2:
                cells.append((row, column))
                calls.append(_SCALED_BALANCE.call(reserve.a_token, account))
            if bits & 1:
                cells.append((row, column + 1))
                calls.append(_SCALED_BALANCE.call(reserve.debt_token, account))
            if bits & 1 and reserve.stable_debt_token != ZERO_ADDRESS:
                cells.append((row, _STABLE))
                calls.append(_BALANCE.call(reserve.stable_debt_token, account))
    results = (yield calls) if calls else []
    for (row, column), result in zip(cells, results, strict=True):
        amount = _word(result, _SCALED_BALANCE, _BALANCE_BITS)
        if column != _STABLE:
            _put(words, row, column, amount)
        elif amount:
            _put(words, row, column, 1)
    return Positions(
        protocol=protocol,
        market=key_market,
        accounts=accounts,
        words=words,
        group=group,
        live=live,
        always_check=words[:, _STABLE, 1] != 0,
    )


def _word(result: Result, function: abi.Function, bits: int = 256) -> int:
    """A one-word answer of so many bits, read without the codec: there are hundreds of thousands at start."""
    if isinstance(result, Reverted) or len(result) != 32:
        raise AdapterError(f"{function.signature} did not answer one word: is this an Aave V3 market?")
    value = int.from_bytes(result)
    if value >> bits:
        raise AdapterError(
            f"{function.signature} answered {value}, more than {bits} bits: do not trust the node."
        )
    return value


def _put(words: NDArray[np.uint64], row: int, column: int, value: int) -> None:
    words[row, column, 0] = value >> 64
    words[row, column, 1] = value & _WORD_MASK


def _used(bitmap: int) -> list[int]:
    """Reserve ids with a bit for collateral or borrowing, rising."""
    used = []
    pairs = (bitmap | bitmap >> 1) & _BORROWING_MASK
    while pairs:
        lowest = pairs & -pairs
        used.append((lowest.bit_length() - 1) >> 1)
        pairs ^= lowest
    return used
