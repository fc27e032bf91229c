"""Accounts as columns: which words a position has, how they are read, and the float row that stands for it.

A position's words are: the settlement balance in raw units, the realized profit that is not booked yet, the number of
markets with open orders, the debt in raw units above which the vault sells its collateral, then four for each market or
collateral in the order they were learned: a taker's size, open notional, and the premium growth at its last settlement
in two halves; or a collateral's raw amount. Negative numbers are in two's complement. Entries are only ever appended,
so a shorter row keeps its meaning when one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keeper.errors import AdapterError
from keeper.protocols.perp_curie.rules import FUNDING_PERIOD_S, Q96
from keeper.protocols.perp_curie.system import (
    BALANCE,
    MANAGER,
    ORDERS,
    VAULT,
    Collateral,
    Entry,
    Market,
    System,
    answered,
    answers,
    signed,
    word,
)
from keeper.seams import Reads
from keeper.types import Address, Position, Question, Reverted, Rows

_BASES, _TOKENS = BALANCE.function("getBaseTokens"), VAULT.function("getCollateralTokens")
_SETTLED, _TOKEN_BALANCE = VAULT.function("getBalance"), VAULT.function("getBalanceByToken")
_PNL, _INFO = BALANCE.function("getPnlAndPendingFee"), BALANCE.function("getAccountInfo")
_THRESHOLD = MANAGER.function("getDebtThresholdByTrader")
_ORDER_IDS = ORDERS.function("getOpenOrderIds")

_BITS: Final = 128
_MASK: Final = (1 << _BITS) - 1
_WORD_MASK: Final = (1 << 64) - 1
FIRST_ENTRY: Final = 4
PER_ENTRY: Final = 4


@dataclass(frozen=True, slots=True)
class Taken:
    """A taker's position in one market."""

    market: Market
    size: int
    open_notional_wad: int
    growth_x96: int


@dataclass(frozen=True, slots=True)
class Held:
    """An amount of one collateral."""

    collateral: Collateral
    amount_raw: int


@dataclass(frozen=True, slots=True)
class Holdings:
    """A position's words by name."""

    balance_raw: int
    owed_wad: int
    markets_with_orders: int
    debt_threshold_raw: int
    taken: tuple[Taken, ...]
    held: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Orders:
    """An account with open orders: the markets it is in, and those it has orders in."""

    bases: tuple[Address, ...]
    ordered: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the first look at an account says: balances, and which markets and collaterals it uses."""

    account: Address
    balance_raw: int
    owed_wad: int
    bases: tuple[Address, ...]
    tokens: tuple[Address, ...]

    def owes(self, system: System) -> bool:
        """Whether other collateral stands for a debt."""
        return bool(self.tokens) and self.balance_raw * system.unit_wad + self.owed_wad < 0


def words_of(entries: Sequence[Entry]) -> int:
    """How many words a position has."""
    return FIRST_ENTRY + PER_ENTRY * len(entries)


def holdings(position: Position, entries: Sequence[Entry]) -> Holdings:
    """A position's words by name."""
    words = position.words
    taken, held = [], []
    for place, entry in enumerate(entries):
        column = FIRST_ENTRY + PER_ENTRY * place
        if column >= len(words):
            break
        size, notional, high, low = words[column : column + PER_ENTRY]
        if isinstance(entry, Market):
            if size or notional:
                growth = signed(high << _BITS | low)
                taken.append(Taken(entry, signed(size, _BITS), signed(notional, _BITS), growth))
        elif size:
            held.append(Held(entry, size))
    return Holdings(
        signed(words[0], _BITS), signed(words[1], _BITS), words[2], words[3], tuple(taken), tuple(held)
    )


def look(system: System, accounts: Sequence[Address]) -> Reads[list[Seen]]:
    """Which markets and collaterals accounts use; the exchange's own words where a market cannot be priced."""
    calls = [
        call
        for account in accounts
        for call in (
            _BASES.call(system.balance, account),
            _TOKENS.call(system.vault, account),
            _SETTLED.call(system.vault, account),
            _PNL.call(system.balance, account),
        )
    ]
    results = (yield calls) if calls else []
    rows = [results[at : at + 4] for at in range(0, len(results), 4)]
    unpriced = [account for account, row in zip(accounts, rows, strict=True) if isinstance(row[3], Reverted)]
    stored: dict[Address, int] = {}
    if unpriced:
        words = yield [system.owed_slot(account) for account in unpriced]
        stored = {account: signed(word(result)) for account, result in zip(unpriced, words, strict=True)}
    return [
        Seen(
            account=account,
            balance_raw=answered(_SETTLED, row[2]),
            owed_wad=stored[account] if account in stored else answers(_PNL, row[3])[0],
            bases=tuple(answered(_BASES, row[0])),
            tokens=tuple(answered(_TOKENS, row[1])),
        )
        for account, row in zip(accounts, rows, strict=True)
    ]


def fill(
    system: System, entries: Sequence[Entry], seen: Sequence[Seen]
) -> Reads[tuple[NDArray[np.uint64], dict[Address, Orders]]]:
    """The words of accounts, and who has open orders."""
    places = {
        entry.base if isinstance(entry, Market) else entry.token.address: place
        for place, entry in enumerate(entries)
    }
    questions: list[Question] = []
    for each in seen:
        for base in each.bases:
            questions.append(_INFO.call(system.balance, each.account, base))
            questions.append(_ORDER_IDS.call(system.orders, each.account, base))
        questions += [_TOKEN_BALANCE.call(system.vault, each.account, token) for token in each.tokens]
        if each.tokens:
            questions.append(_THRESHOLD.call(system.manager, each.account))
    results = iter((yield questions) if questions else ())
    words = np.zeros((len(seen), words_of(entries), 2), dtype=np.uint64)
    makers: dict[Address, Orders] = {}
    for row, each in enumerate(seen):
        with_orders: list[Address] = []
        for base in each.bases:
            size, notional, growth = answered(_INFO, next(results))
            figures: tuple[Any, ...] = (size, notional, growth >> _BITS, growth & _MASK)
            _put(words, row, FIRST_ENTRY + PER_ENTRY * places[base], figures)
            if answered(_ORDER_IDS, next(results)):
                with_orders.append(base)
        for token in each.tokens:
            amount = answered(_TOKEN_BALANCE, next(results))
            _put(words, row, FIRST_ENTRY + PER_ENTRY * places[token], (amount,))
        threshold = answered(_THRESHOLD, next(results)) if each.tokens else 0
        first = (each.balance_raw, each.owed_wad, len(with_orders), min(threshold, _MASK >> 1))
        _put(words, row, 0, first)
        if with_orders:
            makers[each.account] = Orders(each.bases, tuple(with_orders))
    return words, makers


def rows_of(words: NDArray[np.uint64], unit_wad: int) -> Rows:
    """A constant, the sum of all absolute constants, then each entry's amount and its absolute, in 10⁻¹⁸ dollars.

    What an account owes for funding since its last settlement is its size times what the growth has gained: the part
    of the old growth is a constant.
    """
    count = (words.shape[1] - FIRST_ENTRY) // PER_ENTRY
    values = np.zeros((len(words), 2 + 2 * count))
    balance, owed = _floats(words[:, 0:1]) * unit_wad, _floats(words[:, 1:2])
    values[:, 0] = balance + owed
    values[:, 1] = np.abs(balance) + np.abs(owed)
    for place in range(count):
        column = FIRST_ENTRY + PER_ENTRY * place
        size, notional = _floats(words[:, column : column + 1]), _floats(words[:, column + 1 : column + 2])
        growth = _floats(words[:, column + 2 : column + 4])
        funded = size * growth / Q96 / FUNDING_PERIOD_S
        values[:, 0] += notional + funded
        values[:, 1] += np.abs(notional) + np.abs(funded)
        values[:, 2 + 2 * place] = size
        values[:, 3 + 2 * place] = np.abs(size)
    return Rows(values)


def _put(words: NDArray[np.uint64], row: int, column: int, figures: Sequence[int]) -> None:
    for place, figure in enumerate(figures):
        value = figure & _MASK
        if figure not in (value, signed(value, _BITS)):
            raise AdapterError(
                f"An account's figure {figure} is more than {_BITS} bits: do not trust the node."
            )
        words[row, column + place, 0] = value >> 64
        words[row, column + place, 1] = value & _WORD_MASK


def _floats(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers of one or more words in two's complement, highest first, as floats of shape (n,).

    A negative one is complemented first: of the difference to a power of two nothing small would be left.
    """
    limbs = words.reshape(len(words), words.shape[1] * words.shape[2])
    negative = limbs[:, 0] >> np.uint64(63) != 0
    flipped = np.where(negative[:, None], ~limbs, limbs)
    found = np.zeros(len(words))
    for place in range(flipped.shape[1]):
        found = found * 2.0**64 + flipped[:, place].astype(np.float64)
    return np.where(negative, -(found + 1.0), found)
