"""Which nonce the operator uses next: the lowest that nothing holds, neither on chain nor on record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from keeper.store import Store
from keeper.types import Address


class Nonces:
    """The operator's. A nonce that was given back is taken again before any other: those above wait for it."""

    def __init__(self, store: Store, sender: Address) -> None:
        self.used = 0  # on chain, as it was last told: a wrong answer must not outlast the next
        self._store: Final = store
        self._sender: Final = sender
        self._claimed = 0  # on record
        self._free: set[int] = set()

    def recover(self, used: int) -> None:
        """Learn from the record what is claimed and what was given back."""
        self.used = used
        highest = self._store.highest_nonce(self._sender)
        self._claimed = 0 if highest is None else highest + 1
        self._free = {nonce for nonce in self._store.given_back(self._sender) if nonce < self._claimed}

    def take(self) -> int:
        """The next one, for the record to claim."""
        self._free = {nonce for nonce in self._free if nonce >= self.used}
        if self._free:
            nonce = min(self._free)
            self._free.remove(nonce)
        else:
            nonce = max(self.used, self._claimed)
            self._claimed = nonce + 1
        return nonce

    def hole_below(self, nonce: int) -> bool:
        """Whether this one waits for one that was given back."""
        return any(self.used <= free < nonce for free in self._free)

    def give_back(self, nonces: Iterable[int]) -> None:
        """Nothing was signed for these, and the record has freed them."""
        self._free.update(nonces)
