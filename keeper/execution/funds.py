"""The operator's gas money: what it can pay for, and whether it holds too little or more than a hot key should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog

from keeper import abi
from keeper.chain.client import Chain
from keeper.ledger import Ledger
from keeper.types import Address

_LOOKED_AT_EVERY_HEADS: Final = 50


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the operator should hold; 0 stands for no bound."""

    min_wei: int = 0
    max_wei: int = 0

    def complaint(self, operator: Address, balance_wei: int) -> tuple[str, str] | None:
        """What is wrong with a balance and what to do about it, a sentence each; None where nothing is."""
        who = f"The operator {abi.checksum(operator)} holds {balance_wei} wei"
        if balance_wei < self.min_wei:
            return (
                f"{who}, less than signer.min_balance_wei ({self.min_wei}).",
                f"Refuel it with at least {self.min_wei - balance_wei} wei.",
            )
        if self.max_wei and balance_wei > self.max_wei:
            return (
                f"{who}, more than signer.max_balance_wei ({self.max_wei}): whoever steals its key has that.",
                f"Move {balance_wei - self.max_wei} wei out of it.",
            )
        return None


class Funds:
    """What the operator has for gas, asked only when it was short, and every 50 heads whether it is within bounds."""

    def __init__(
        self, chain: Chain, operator: Address, bounds: Bounds, ledger: Ledger, wall_clock: Callable[[], float]
    ) -> None:
        self._chain: Final = chain
        self._operator: Final = operator
        self._bounds: Final = bounds
        self._ledger: Final = ledger
        self._wall_clock: Final = wall_clock
        self._lacking_wei = 0  # what the operator could not pay for when it was last asked
        self._funds_wei = 0  # what it had when that was last counted; nothing until then
        self._heads = 0
        self._told = ""
        self._log = structlog.get_logger("keeper.sender")

    def lacks(self, cost_wei: int) -> None:
        """A node said that this cannot be paid for."""
        self._lacking_wei, self._funds_wei = cost_wei, 0

    def cover(self, needed_wei: int) -> bool:
        """Whether so much can be paid for, as far as is known."""
        return not self._lacking_wei or needed_wei <= self._funds_wei

    async def count(self, in_flight_wei: int) -> None:
        """Look whether it can pay again for what it could not, and now and then whether its balance is as it should."""
        self._heads += 1
        due = self._heads % _LOOKED_AT_EVERY_HEADS == 1 and self._bounds != Bounds()
        if not (self._lacking_wei or due):
            return
        balance_wei = await self._chain.balance(self._operator)
        if self._lacking_wei:
            self._funds_wei = balance_wei
            if balance_wei >= max(self._lacking_wei, in_flight_wei):
                self._lacking_wei = 0
        if due:
            self._tell(balance_wei)

    def _tell(self, balance_wei: int) -> None:
        """Log and book what is wrong with the balance, once until it is otherwise."""
        found = self._bounds.complaint(self._operator, balance_wei)
        kind = "" if found is None else "too_little" if balance_wei < self._bounds.min_wei else "too_much"
        if found is not None and kind != self._told:
            body: dict[str, Any] = {"name": "operator balance", "detail": " ".join(found), "wei": balance_wei}
            self._log.warning("operator_balance", detail=body["detail"], wei=balance_wei)
            self._ledger.book("warning", None, "", None, body, int(self._wall_clock()))
        self._told = kind
