"""What is in flight: every claimed nonce that is not accounted for, in memory as in the store.

A restart knows it all again but the plan itself; a transaction of an earlier run is therefore never replaced, only
followed and, once it has expired, taken back. One that a former operator key signed can not even be taken back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog

from keeper import abi
from keeper.breakers.trips import TAKEN_BACK
from keeper.execution.fees import Offered
from keeper.execution.refusals_of_nodes import CONSEQUENCES, Complaint, Consequence
from keeper.guard.message import SignedPause
from keeper.guard.scopes import named
from keeper.ledger import Ledger
from keeper.store import Attempt, OpenTransaction, Store
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    BlockNumber,
    BlockTime,
    Hash,
    Part,
    Plan,
    PositionKey,
    Refusal,
    Wei,
)

_GRACE_BLOCKS: Final = 2  # how long after its last block a transaction is given to show up
PAUSE_RELAY: Final = PositionKey("", "pause relay", ZERO_ADDRESS)  # what a relayed pause claims its nonce for


@dataclass(frozen=True, slots=True)
class Submission:
    """A signed transaction that was recorded and handed to the network."""

    plan_id: Hash
    nonce: int
    transaction_hash: Hash
    raw: bytes
    last_block: BlockNumber
    max_fee_wei: Wei
    sent_s: float


@dataclass(slots=True)
class Flight:
    """One claimed nonce. `signed_at` is the head its last attempt was signed at, `offered_at` that of its first.

    `complaint` is why the last attempt was not taken, None where it was or nobody has answered; `published` whether
    it went to the public pool though the way out is another; `given_up` that its nonce is to be taken back; `dead`
    that it can neither succeed nor be taken back; `budgeted` that what it loses is on the budget for bad debt. `others`
    are the positions it liquidates besides its own.
    """

    transaction: OpenTransaction
    signed_at: BlockNumber
    offered_at: BlockNumber
    plan: Plan | None = None
    complaint: Complaint | None = None
    published: bool = False
    given_up: bool = False
    dead: bool = False
    budgeted: bool = False
    others: tuple[PositionKey, ...] = ()
    told: set[tuple[Hash, str]] = field(default_factory=set)  # what was answered that is on record

    @property
    def plan_id(self) -> Hash:
        """Whose nonce it is."""
        return self.transaction.plan_id

    @property
    def key(self) -> PositionKey:
        """Which position it liquidates."""
        return self.transaction.key

    @property
    def keys(self) -> tuple[PositionKey, ...]:
        """Every position it liquidates, in the order of its calls where they are several."""
        return (self.key, *self.others)

    @property
    def relaying(self) -> bool:
        """Whether it carries a guardian's signed pause instead of a liquidation."""
        return self.key == PAUSE_RELAY

    @property
    def nonce(self) -> int:
        """The claimed nonce."""
        return self.transaction.nonce

    @property
    def last(self) -> Attempt:
        """What was signed last."""
        return self.transaction.attempts[-1]

    @property
    def plan_fee_wei(self) -> Wei:
        """The most its plan's transaction, or what replaced that, may pay per gas."""
        fees = [attempt.max_fee_wei for attempt in self.transaction.attempts if attempt.purpose != "cancel"]
        return max(fees, default=self.last.max_fee_wei)

    @property
    def cancelling(self) -> bool:
        """Whether its nonce is being taken back."""
        return self.last.purpose == "cancel"

    @property
    def overtaken(self) -> bool:
        """Whether its plan was signed once more after its nonce was taken back."""
        purposes = [attempt.purpose for attempt in self.transaction.attempts]
        return "cancel" in purposes and not self.cancelling

    @property
    def consequence(self) -> Consequence | None:
        """What follows from the last complaint."""
        return CONSEQUENCES[self.complaint] if self.complaint is not None else None

    def doomed(self, number: int, stop: Refusal | None) -> bool:
        """Whether its nonce is to be taken back at block `number`, where `stop` is why nothing may be signed now."""
        return (
            self.given_up
            or self.expired(number)
            or self.consequence is Consequence.CANCEL
            or (stop is not None and stop.reason in TAKEN_BACK)
        )

    def expired(self, number: int) -> bool:
        """Whether, at block `number`, what was signed last should have been mined long ago."""
        last_block = self.last.last_block
        return last_block is None or number > last_block + _GRACE_BLOCKS


@dataclass(frozen=True, slots=True)
class Stuck:
    """A plan whose transaction must be replaced or taken back: what it offers, and how often it was signed."""

    plan: Plan
    offered: Offered
    urgency: int
    worst_case_wei: int


class Flights:
    """Everything in flight, by plan. The one place that writes of it to store and ledger together."""

    def __init__(
        self, store: Store, ledger: Ledger, operator: Address, wall_clock: Callable[[], float]
    ) -> None:
        self.operator: Final = operator
        self.store: Final = store
        self.ledger: Final = ledger
        self._wall_clock = wall_clock
        self._flights: dict[Hash, Flight] = {}
        self.ended: Final[set[Hash]] = set()  # plans that are over: none of them can be sent again
        self._log = structlog.get_logger("keeper.sender")

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._flights.values()))

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, plan_id: Hash) -> bool:
        return plan_id in self._flights

    def __getitem__(self, plan_id: Hash) -> Flight:
        return self._flights[plan_id]

    def own(self) -> list[Flight]:
        """Those of the present operator, lowest nonce first."""
        mine = [flight for flight in self if flight.transaction.sender == self.operator]
        return sorted(mine, key=lambda flight: flight.nonce)

    def owner_of(self, transaction_hash: Hash) -> Flight | None:
        """The flight whose last attempt has this hash."""
        return next((flight for flight in self if flight.last.hash == transaction_hash), None)

    def bury(self, number: int) -> None:
        """Give up on what another key signed and has expired by block `number`; its receipt is still looked for."""
        for flight in self._flights.values():
            flight.dead = flight.transaction.sender != self.operator and flight.expired(number)

    def holds(self, key: PositionKey) -> bool:
        """Whether something that may still succeed, or whose nonce is being taken back, is about this position."""
        return any(key in flight.keys and not flight.dead for flight in self)

    def worst_case_wei(self, *, budgeted: bool = False) -> int:
        """The most gas all of it can still cost, or all that the budget for bad debt pays."""
        flying = (flight for flight in self if not flight.dead and (flight.budgeted or not budgeted))
        return sum(flight.transaction.worst_case_wei for flight in flying)

    def recover(self, head: BlockNumber) -> None:
        """Take over what an earlier run left; the nonces of plans it died on before signing are freed."""
        strangers: dict[Address, int] = {}
        for transaction in self.store.open_transactions():
            if not transaction.attempts:
                self.store.release(transaction.plan_id, self.now_s())
                continue
            # as of the head before: what was signed at this one is left alone, and a run may be of one head only
            flight = self._found(transaction, BlockNumber(head - 1), head)
            self._flights[flight.plan_id] = flight
            if transaction.sender != self.operator:
                strangers[transaction.sender] = strangers.get(transaction.sender, 0) + 1
        self.ended.update(self.store.ended())
        for sender, count in strangers.items():
            detail = (
                f"{count} transactions of the former operator {abi.checksum(sender)} are in flight: they are followed "
                "and booked, but cannot be replaced or cancelled without its key."
            )
            self._log.warning("former_operator", operator=sender, in_flight=count)
            self.ledger.book("warning", None, "", None, {"detail": detail}, self.now_s())

    def claim_relay(self, message: SignedPause, nonce: int, at: BlockTime) -> Flight:
        """Claim a nonce for relaying a guardian's message. What nothing was signed for before is another claim."""
        at_s = self.now_s()
        names = (abi.keccak(message.digest + tries.to_bytes(32)) for tries in itertools.count())
        plan_id = next(name for name in names if name not in self.ended and name not in self._flights)
        transaction = OpenTransaction(plan_id, self.operator, nonce, PAUSE_RELAY, "reserved", at_s, ())
        flight = Flight(transaction, at.number, at.number)
        with self.store.transaction():
            self.store.reserve(plan_id, nonce, sender=self.operator, key=PAUSE_RELAY, at_s=at_s)
            body = {"nonce": nonce, "operator": self.operator, "block": at.number, "block_hash": at.hash}
            relayed = {"pause_guard": message.pause_guard, "scope": named(message.scope)}
            self.note("intent", flight, body | relayed, at_s)
        return flight

    def give_back(self, flights: Sequence[Flight], at_s: int) -> list[int]:
        """Free the nonces of those for which nothing was signed, whose plans have ended; the nonces."""
        free = [flight for flight in flights if not flight.transaction.attempts]
        if free:
            with self.store.transaction():
                for flight in free:
                    self.store.release(flight.plan_id, at_s)
        self.ended.update(flight.plan_id for flight in free)
        return [flight.nonce for flight in free]

    def signed(
        self,
        signed: Sequence[tuple[Flight, Attempt, Mapping[str, Any]]],
        head: BlockNumber,
    ) -> None:
        """Keep signed bytes, on the disk, before anybody sees them; with each what else its entry should say."""
        with self.store.transaction(durable=True):
            for flight, attempt, numbers in signed:
                self.store.signed(
                    flight.plan_id,
                    attempt.hash,
                    attempt.raw,
                    purpose=attempt.purpose,
                    max_fee_wei=attempt.max_fee_wei,
                    gas_limit=attempt.gas_limit,
                    last_block=attempt.last_block,
                    at_s=attempt.signed_at_s,
                    max_data_fee_wei=attempt.max_data_fee_wei,
                )
                body = {
                    "tx": attempt.hash,
                    "purpose": attempt.purpose,
                    "nonce": flight.nonce,
                    "max_fee_wei": attempt.max_fee_wei,
                    "gas_limit": attempt.gas_limit,
                    "max_data_fee_wei": attempt.max_data_fee_wei,
                    "last_block": attempt.last_block,
                    **numbers,
                }
                self.note("signed", flight, body, attempt.signed_at_s)
        for flight, attempt, _ in signed:
            attempts = (*flight.transaction.attempts, attempt)
            flight.transaction = replace(flight.transaction, state="signed", attempts=attempts)
            flight.signed_at, flight.complaint = head, None
            self._flights[flight.plan_id] = flight

    def sent(self, flight: Flight, attempt: Attempt, body: Mapping[str, Any]) -> None:
        """Note that somebody has an attempt."""
        at_s = self.now_s()
        self.store.sent(attempt.hash, at_s)
        self.note("sent", flight, {"tx": attempt.hash, **body}, at_s)
        attempts = tuple(
            replace(each, sent_at_s=at_s) if each.hash == attempt.hash else each
            for each in flight.transaction.attempts
        )
        flight.transaction = replace(flight.transaction, attempts=attempts)

    def reopen(self, transaction: OpenTransaction, body: Mapping[str, Any], head: BlockNumber) -> None:
        """Take an outcome back whose block is gone."""
        flight = self._found(replace(transaction, state="signed"), head, head)
        with self.store.transaction():
            self.store.reopen(flight.plan_id)
            self.note("reorged", flight, body, self.now_s())
        self._flights[flight.plan_id] = flight
        self.ended.discard(flight.plan_id)

    def close(self, flight: Flight) -> None:
        """Forget what is accounted for."""
        del self._flights[flight.plan_id]
        self.ended.add(flight.plan_id)

    def intend(self, flight: Flight, body: Mapping[str, Any], others: Sequence[Part], at_s: int) -> None:
        """Book a plan's intent, and for each account besides its own with whom it goes, and what is its part."""
        self.note("intent", flight, body, at_s)
        for part in others:
            shares = {"repay_raw": part.repay_raw, "seize_raw": part.seize_raw}
            self.note("joined", flight, {"with": flight.key.account, **shares}, at_s, part.key)

    def note(
        self,
        kind: str,
        flight: Flight,
        body: Mapping[str, Any],
        at_s: int,
        of: PositionKey | None = None,
    ) -> None:
        """Book an entry about one, or about what one of its accounts has in it."""
        key = of or flight.key
        self.ledger.book(kind, flight.plan_id, key.protocol, key.account, body, at_s)

    def _found(self, transaction: OpenTransaction, signed_at: BlockNumber, head: BlockNumber) -> Flight:
        """One of the store, with whom it liquidates besides and who pays for it, as its intent says."""
        intent = intent_of(transaction, self.ledger)
        others = tuple(key for key in keys_of(transaction, intent) if key != transaction.key)
        return Flight(transaction, signed_at, head, budgeted=bool(intent.get("budgeted")), others=others)

    def now_s(self) -> int:
        """Whole seconds of the wall's clock."""
        return int(self._wall_clock())


def intent_of(transaction: OpenTransaction, ledger: Ledger) -> Mapping[str, Any]:
    """What its intent says; nothing where none was booked."""
    return next((entry.body for entry in ledger.entries(1, kind="intent", plan=transaction.plan_id)), {})


def keys_of(transaction: OpenTransaction, intent: Mapping[str, Any]) -> list[PositionKey]:
    """Every position it liquidates."""
    accounts = [abi.address(each["account"]) for each in intent.get("accounts", ())]
    return [replace(transaction.key, account=account) for account in accounts] or [transaction.key]
