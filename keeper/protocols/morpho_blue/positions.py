"""Accounts as columns: a position's words are its collateral and its borrow shares; a row holds the same two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from keeper.errors import AdapterError
from keeper.protocols.morpho_blue.market import MORPHO, Market, answered
from keeper.protocols.morpho_blue.rules import MAX_UINT128
from keeper.seams import Reads
from keeper.types import Address, PositionKey, Positions, Rows

_POSITION: Final = MORPHO.function("position")
_WORD_MASK: Final = (1 << 64) - 1
_WORDS: Final = 2


def rows_of(positions: Positions) -> Rows:
    """Collateral and borrow shares, shape (n, 2)."""
    exact = positions.words
    return Rows(exact[:, :, 0].astype(np.float64) * 2.0**64 + exact[:, :, 1].astype(np.float64))


def read_positions(
    protocol: str, morpho: Address, market: Market, keys: Sequence[PositionKey]
) -> Reads[Positions]:
    """Read what accounts have in one market; one that owes nothing is not live."""
    results = yield [_POSITION.call(morpho, market.id, key.account) for key in keys]
    words = np.zeros((len(keys), _WORDS, 2), dtype=np.uint64)
    for row, result in enumerate(results):
        _, shares, collateral_raw = answered(_POSITION, result)
        for column, amount in enumerate((collateral_raw, shares)):
            if amount > MAX_UINT128:
                raise AdapterError(f"{_POSITION.signature} answered {amount}: do not trust the node.")
            words[row, column] = amount >> 64, amount & _WORD_MASK
    return _positions(protocol, keys, words, market.number)


def nobody(protocol: str, keys: Sequence[PositionKey]) -> Positions:
    """Accounts of a market that does not exist: none owes anything."""
    return _positions(protocol, keys, np.zeros((len(keys), _WORDS, 2), dtype=np.uint64), 0)


def _positions(
    protocol: str, keys: Sequence[PositionKey], words: NDArray[np.uint64], group: int
) -> Positions:
    return Positions(
        protocol=protocol,
        market=keys[0].market if keys else "",
        accounts=tuple(key.account for key in keys),
        words=words,
        group=np.full(len(keys), group, dtype=np.int64),
        live=np.asarray(words[:, 1].any(axis=1), dtype=np.bool_),
        always_check=np.zeros(len(keys), dtype=np.bool_),
    )
