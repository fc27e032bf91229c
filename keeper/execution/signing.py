"""Asking for signatures and putting them on record, whoever holds the key and however long that takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import structlog

from keeper.errors import ExecutionError, SignerError
from keeper.execution.fees import Offered
from keeper.execution.flights import Flight, Flights
from keeper.guard import Clearance
from keeper.guard.message import SignedPause
from keeper.keys import OperatorKey
from keeper.store import Attempt, Purpose
from keeper.types import Address, BlockNumber, Plan, Refusal, Trial

_LONG_S: Final = (
    2.0  # how long signatures are asked for at one head; plans left over are made anew at the next
)
# What an entry says of a replacement that differs from its plan's intent.
_RENEWED: Final = (
    "expected_profit_raw",
    "tried_gas",
    "data_fee_wei",
    "data_gas",
    "global_epoch",
    "protocol_epoch",
)
Standing = Callable[[str], Refusal | None]  # why nothing of a protocol may be signed now
_Signed = tuple[Flight, Attempt, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Cleared:
    """A plan that may be sent; `numbers` go into the ledger's intent."""

    plan: Plan
    trial: Trial
    clearance: Clearance
    numbers: Mapping[str, Any]


class Signing:
    """Nothing waits between a signature and its storing; what was signed is stored also when asking is broken off."""

    def __init__(
        self, key: OperatorKey, flights: Flights, liquidator: Address, monotonic: Callable[[], float]
    ) -> None:
        self._key: Final = key
        self._flights: Final = flights
        self._liquidator: Final = liquidator
        self._monotonic: Final = monotonic
        self._log = structlog.get_logger("keeper.sender")

    async def plans(
        self, wanted: Sequence[tuple[Cleared, Flight]], head: BlockNumber, at_s: int, standing: Standing
    ) -> tuple[list[Attempt], Refusal]:
        """What was signed and is on record, from the first on; and why nothing after that was."""
        until_s = self._monotonic() + _LONG_S
        attempts: list[Attempt] = []
        with self._kept(head) as signed:
            for one, flight in wanted:
                stop = standing(one.plan.key.protocol)
                if stop is not None:
                    return attempts, stop
                if self._monotonic() > until_s:
                    return attempts, Refusal("send", "not_signed", {"error": "There was no time left."})
                try:
                    attempt = await self._plan(one, flight, at_s)
                except SignerError as error:
                    self._log.warning("not_signed", head=head, error=str(error))
                    return attempts, Refusal("send", "not_signed", {"error": str(error)})
                tip = {"tip_wei": one.clearance.fees.tip_wei}
                signed.append((flight, attempt, tip | dict(_renewed(one, flight))))
                attempts.append(attempt)
        return attempts, Refusal("send", "not_signed")

    async def cancellations(
        self, wanted: Sequence[tuple[Flight, Offered]], head: BlockNumber, at_s: int
    ) -> list[Flight]:
        """Those for which a transfer of nothing to ourselves was signed and is on record."""
        with self._kept(head) as signed:
            for flight, offered in wanted:
                try:
                    raw = await self._key.sign_cancel(flight.nonce, offered.max_fee_wei, offered.tip_wei)
                except SignerError as error:
                    self._log.warning("not_signed", head=head, error=str(error))
                    break  # asked again at the next head
                # its "last block" is this one: if it is not mined within the same grace, a dearer one follows
                attempt = Attempt(
                    raw.hash, "cancel", raw.raw, offered.max_fee_wei, raw.gas_limit, head, at_s, None
                )
                signed.append((flight, attempt, {}))
        return [flight for flight, _, _ in signed]

    async def relay(
        self, message: SignedPause, flight: Flight, offered: Offered, head: BlockNumber, at_s: int
    ) -> bool:
        """Whether the relay of a guardian's message was signed and is on record."""
        fees = (offered.max_fee_wei, offered.tip_wei)
        with self._kept(head) as signed:
            try:
                made = await self._key.sign_pause_relay(
                    message.pause_guard, message.calldata, flight.nonce, *fees
                )
            except SignerError as error:
                self._log.warning("not_signed", head=head, error=str(error))
                return False
            purpose: Purpose = "bump" if flight.transaction.attempts else "plan"
            attempt = Attempt(made.hash, purpose, made.raw, fees[0], made.gas_limit, head, at_s, None)
            signed.append((flight, attempt, {}))
        return True

    async def _plan(self, one: Cleared, flight: Flight, at_s: int) -> Attempt:
        fees = one.clearance.fees
        signed = await self._key.sign(self._liquidator, one.trial.calldata, flight.nonce, fees, one.clearance)
        return Attempt(
            signed.hash,
            "bump" if flight.transaction.attempts else "plan",
            signed.raw,
            fees.max_fee_wei,
            fees.gas_limit,
            one.trial.last_block,
            at_s,
            None,
            fees.max_data_fee_wei,
        )

    @contextmanager
    def _kept(self, head: BlockNumber) -> Iterator[list[_Signed]]:
        """A list for what is signed, all of which is on record when this ends."""
        signed: list[_Signed] = []
        try:
            yield signed
        except (asyncio.CancelledError, ExecutionError):
            if signed:
                self._flights.signed(signed, head)
            raise
        if signed:
            self._flights.signed(signed, head)


def _renewed(one: Cleared, flight: Flight) -> Mapping[str, Any]:
    """What the entry of a replacement says beside its fees; a plan's first transaction has an intent that does."""
    if not flight.transaction.attempts:
        return {}
    at = one.trial.at
    return {"block": at.number, "block_hash": at.hash, **{name: one.numbers[name] for name in _RENEWED}}
