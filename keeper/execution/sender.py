"""From a cleared plan to signed bytes on their way: record, sign, record, offer, and see it through.

The order is the promise: the intent with its nonce is stored before the key is asked, and the signed bytes before
anybody sees them. Nothing here waits between a signature and its storing, and what was signed is stored however the
asking for more ends: a stop finds either no signature or one on record. A nonce for which nothing was signed is free
again, at once where the key's holder failed and at the next start where the run ended. What is in flight is then
replaced (`Sender.stuck`), offered again or taken back (`Sender.tend`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from keeper.breakers.trips import TAKEN_BACK
from keeper.chain.client import Chain
from keeper.errors import ChainError, ExecutionError, LedgerError, RpcError
from keeper.execution.fees import Market, Offered
from keeper.execution.flights import Flight, Flights
from keeper.execution.funds import Funds
from keeper.execution.nonces import Nonces
from keeper.execution.refusals_of_nodes import CONSEQUENCES, Complaint, Consequence, complaint_of
from keeper.execution.routes import Answer, PublicPool, Taken, Way
from keeper.execution.settling import Rivals, Settling
from keeper.execution.signing import Cleared, Signing, Standing
from keeper.guard import Fees
from keeper.keys import OperatorKey, calldata_of, tip_of
from keeper.prices import Price
from keeper.store import Attempt, OpenTransaction
from keeper.trial import next_base_fee
from keeper.types import (
    Address,
    BlockTime,
    Hash,
    Head,
    Plan,
    PositionKey,
    Refusal,
    Settlement,
    Submission,
    hex_of,
)

_PATIENCE_BLOCKS: Final = 2  # how long a transaction is left alone before it is looked at again
# Refusals under which nothing is left in flight.
_STOPPED: Final = ("paused", "halted", *TAKEN_BACK)


@dataclass(frozen=True, slots=True)
class Stuck:
    """A plan whose transaction must be replaced or taken back: what it offers, and how often it was signed."""

    plan: Plan
    offered: Offered
    urgency: int
    worst_case_wei: int


class Sender:
    """Owns the operator's nonces; everything in flight is in the store, so a restart knows it too.

    `way` is how plans leave, by default the public pool; with another one they are published after
    `public_after_blocks` blocks, or never where that is None. Cancellations always go to the public pool.
    """

    def __init__(
        self,
        chain: Chain,
        key: OperatorKey,
        flights: Flights,
        rivals: Rivals,
        liquidator: Address,
        funds: Funds,
        monotonic: Callable[[], float],
        way: Way | None = None,
        public_after_blocks: int | None = None,
    ) -> None:
        self._chain = chain
        self._key = key
        self._flights = flights
        self._signing = Signing(key, flights, liquidator, monotonic)
        self._settling = Settling(chain, flights, rivals, calldata_of)
        self._liquidator = liquidator
        self._funds = funds
        self._monotonic = monotonic
        self._pool = PublicPool(chain)
        self._way: Way = way or self._pool
        self._public_after_blocks = public_after_blocks
        self._nonces = Nonces(flights.store, key.address)
        self._log = structlog.get_logger("keeper.sender")

    def in_flight(self, key: PositionKey) -> bool:
        """Whether a transaction for this position is signed and not accounted for."""
        return self._flights.holds(key)

    def in_flight_plans(self) -> dict[Hash, PositionKey]:
        """Every plan that may still be mined, and which position it liquidates."""
        return {flight.plan_id: flight.key for flight in self._flights if not flight.dead}

    def in_flight_wei(self) -> int:
        """The most gas everything in flight can still cost."""
        return self._flights.worst_case_wei()

    def refuses(self, plan: Plan, fees: Fees) -> Refusal | None:
        """Why a cleared plan is not sent: the operator is out of gas, or this very plan has ended already.

        It has where an earlier run died on it, or a node that lags shows its head again.
        """
        if plan.plan_id in self._flights.ended:
            return Refusal("send", "plan_ended", {"head": plan.at.number})
        others = [flight.transaction for flight in self._flights if flight.plan_id != plan.plan_id]
        needed_wei = fees.worst_case_wei + sum(each.worst_case_wei for each in others)
        if not self._funds.cover(needed_wei):
            return Refusal("send", "insufficient_funds", {"needed_wei": needed_wei})
        return None

    async def recover(self, head: Head) -> None:
        """Take over what an earlier run left: nonces without a signature are freed, the rest is in flight."""
        if self._flights.store.copied_at_s() is not None:
            raise LedgerError("The record is a copy that was not reconciled with the chain: nothing is sent.")
        self._flights.recover(head.number)
        self._nonces.recover(await self._chain.nonce(self._key.address, "latest"))

    async def settle(self, head: Head, native: Price | Refusal) -> list[Settlement]:
        """Account for everything in flight that the chain has decided; see `Settling.settle`."""
        self._flights.bury(head.number)
        open_before = [flight.plan_id for flight in self._flights]
        settlements = await self._settling.settle(head, native)
        costs_wei = {each.plan_id: each.gas_cost_wei for each in settlements}
        for plan_id in open_before:
            if plan_id not in self._flights:
                self._key.settled(plan_id, costs_wei.get(plan_id, 0))
        self._nonces.used = self._settling.used(self._key.address) or self._nonces.used
        return settlements

    def doubt(self, above: int) -> None:
        """The chain may have been reorganised above this block: nothing settled there is believed unseen."""
        self._settling.doubt(above)

    # --- signing and handing over ---

    async def send(self, cleared: Sequence[Cleared], standing: Standing) -> list[Submission | Refusal]:
        """Record, sign, record and hand over cleared liquidations, in this order; one in flight is replaced.

        A replacement takes the nonce of what it replaces, so that at most one of them is ever executed. A node that
        does not take the bytes is not an error of the plan: it stays in flight until it is mined or taken back.

        The key's holder may take its time. Where it fails, that plan and all after it are refused, for nonces without a
        transaction hold up those above. Where something stops a plan meanwhile (`standing`), it is not signed any more,
        or not handed over: `tend` takes it back or, should the stop be over, offers it.
        """
        if not cleared:
            return []
        head, at_s = cleared[0].trial.at, self._flights.now_s()
        flights = self._reserved(cleared, head, at_s)
        attempts, failure = await self._signing.plans(
            list(zip(cleared, flights, strict=True)), head.number, at_s, standing
        )
        self._nonces.give_back(self._flights.give_back(flights[len(attempts) :], at_s))
        stops = [standing(flight.key.protocol) for flight in flights[: len(attempts)]]
        sent_s = self._monotonic()
        await self._hand_over(
            [flight for flight, stop in zip(flights, stops, strict=False) if stop is None], head
        )
        answers = [
            stop
            or Submission(
                flight.plan_id,
                flight.nonce,
                attempt.hash,
                attempt.raw,
                one.trial.last_block,
                attempt.max_fee_wei,
                sent_s,
            )
            for one, flight, attempt, stop in zip(cleared, flights, attempts, stops, strict=False)
        ]
        return answers + [failure] * (len(cleared) - len(attempts))

    def _reserved(self, cleared: Sequence[Cleared], head: BlockTime, at_s: int) -> list[Flight]:
        """The flight of each: the one it replaces, or a new one whose nonce is claimed and on record."""
        flights: list[Flight] = []
        with self._flights.store.transaction():
            for one in cleared:
                plan = one.plan
                if plan.plan_id in self._flights:
                    flights.append(self._flights[plan.plan_id])
                    continue
                nonce = self._nonces.take()
                transaction = OpenTransaction(
                    plan.plan_id, self._key.address, nonce, plan.key, "reserved", at_s, ()
                )
                self._flights.store.reserve(
                    plan.plan_id, nonce, sender=self._key.address, key=plan.key, at_s=at_s
                )
                flight = Flight(transaction, head.number, head.number, plan)
                body = {"nonce": nonce, "operator": self._key.address, "liquidator": self._liquidator}
                self._flights.note("intent", flight, body | dict(one.numbers), at_s)
                flights.append(flight)
        return flights

    async def _hand_over(self, flights: Sequence[Flight], head: BlockTime) -> None:
        """Offer what was signed last, each by its way, and note what was answered."""
        for way in dict.fromkeys(map(self._way_of, flights)):
            mine = [flight for flight in flights if self._way_of(flight) is way]
            offered = [flight.last for flight in mine]
            answers = await way.offer(mine, head)
            self._note_answers(list(zip(mine, offered, answers, strict=True)))

    def _way_of(self, flight: Flight) -> Way:
        return self._pool if flight.cancelling or flight.published else self._way

    def _note_answers(self, answers: Sequence[tuple[Flight, Attempt, Answer]]) -> None:
        wrong: Hash | None = None
        with self._flights.store.transaction():
            for flight, attempt, answer in answers:
                if isinstance(answer, Taken):
                    self._note_taken(flight, attempt, answer)
                    if answer.hash != attempt.hash:
                        wrong = attempt.hash
                elif answer is not None:
                    self._note_refused(flight, attempt, answer)
        if wrong is not None:
            raise ExecutionError(
                f"The node answered another hash for transaction {hex_of(wrong)}; stop using it."
            )

    def _note_taken(self, flight: Flight, attempt: Attempt, taken: Taken) -> None:
        flight.complaint = None
        via = ["public"] if flight.published else list(taken.via)
        what = (attempt.hash, "published" if flight.published else "taken")
        if what in flight.told:
            return  # offered again, and said before
        flight.told.add(what)
        body: dict[str, Any] = {"via": via} if via else {}
        if taken.failed:
            body["failed"] = dict(taken.failed)
        self._flights.sent(flight, attempt, body)
        key = flight.key
        self._log.info(
            "sent", protocol=key.protocol, account=key.account, plan=flight.plan_id, tx=attempt.hash, **body
        )

    def _note_refused(self, flight: Flight, attempt: Attempt, error: ChainError) -> None:
        complaint = complaint_of(error)
        if complaint is Complaint.KNOWN:
            self._note_taken(flight, attempt, Taken(attempt.hash))
            return
        flight.complaint = complaint
        if CONSEQUENCES[complaint] is Consequence.REFILL:
            self._funds.lacks(attempt.worst_case_wei)
        if (attempt.hash, str(error)) in flight.told:
            return
        flight.told.add((attempt.hash, str(error)))
        code = error.code if isinstance(error, RpcError) else None
        body = {"tx": attempt.hash, "error": str(error), "code": code, "complaint": complaint.value}
        self._flights.note("not_taken", flight, body, self._flights.now_s())
        self._log.warning("not_taken", plan=flight.plan_id, **body)

    # --- seeing it through ---

    def stuck(self, market: Market, standing: Standing) -> list[Stuck]:
        """What was refused as too cheap, or not mined for two blocks while it offers less than inclusion now costs.

        Lowest nonce first. The caller tries and clears each afresh and sends it again, or gives it up; `standing` says
        why nothing of a protocol may be signed at this head, and then nothing of it is replaced.
        """
        self._note_late()
        found = [
            self._too_cheap(flight, market)
            for flight in self._unmined()
            if not flight.cancelling
            and not _doomed(flight, market.head, stop := standing(flight.key.protocol))
            and stop is None
        ]
        return [each for each in found if each is not None]

    def give_up(self, plan_id: Hash) -> None:
        """What is stuck was not cleared to be replaced: its nonce is to be taken back."""
        self._flights[plan_id].given_up = True

    async def tend(self, head: Head, market: Market, standing: Standing) -> None:
        """Look after what is in flight, not mined and not signed at this very head.

        - Given up, expired, refused for good, or of a protocol that is paused or halted: its nonce is taken back.
        - Not taken, or not mined for two blocks though its fee suffices, since nodes forget: offered again. On
          another way than the public pool, published once `public_after_blocks` have passed.

        What nobody knows whether it may be signed now (`standing`) waits.
        """
        await self._funds.count(self._flights.worst_case_wei())
        back: list[tuple[Flight, Offered]] = []
        again: list[Flight] = []
        for flight in self._unmined():
            if flight.signed_at == head.number:
                continue
            stop = standing(flight.key.protocol)
            if flight.cancelling or _doomed(flight, head, stop):
                offered = self._cancellation(flight, market)
                if offered is not None:
                    back.append((flight, offered))
                elif flight.last.sent_at_s is None or flight.expired(head.number):
                    again.append(flight)
            elif stop is None and self._worth_offering(flight, head):
                again.append(flight)
        await self._take_back(back, again, head)

    def _unmined(self) -> list[Flight]:
        used = self._settling.used(self._key.address)
        return [flight for flight in self._flights.own() if flight.nonce >= used]

    def _note_late(self) -> None:
        late = [(self._flights.owner_of(of), answer) for of, answer in self._way.late()]
        # who refuses what another has by now changes nothing
        said = [
            (flight, flight.last, answer)
            for flight, answer in late
            if flight is not None and (isinstance(answer, Taken) or flight.last.sent_at_s is None)
        ]
        if said:
            self._note_answers(said)

    async def _take_back(
        self, back: Sequence[tuple[Flight, Offered]], again: Sequence[Flight], head: Head
    ) -> None:
        """Replace each by a transfer of nothing to ourselves, and offer `again` what needs no new signature."""
        at, at_s = BlockTime(head.number, head.hash, head.timestamp_s), self._flights.now_s()
        self._way.withdraw([flight for flight, _ in back if not flight.cancelling], at)
        signed = await self._signing.cancellations(back, head.number, at_s)
        if signed or again:
            await self._hand_over([*signed, *again], at)

    def _cancellation(self, flight: Flight, market: Market) -> Offered | None:
        """What takes its nonce back, dearer each time one was taken but not mined; None to leave it as it is."""
        last = flight.last
        offered = market.cancellation(_offered(flight), flight.plan_fee_wei)
        if not flight.cancelling:
            return offered
        if offered.max_fee_wei <= last.max_fee_wei:
            return None  # as dear as it may get
        if flight.consequence is Consequence.REPLACE:
            return offered
        # no node has it (the operator may be out of gas): dearer would not help
        untaken = last.sent_at_s is None and last.max_fee_wei >= market.price()
        return offered if flight.expired(market.head.number) and not untaken else None

    def _too_cheap(self, flight: Flight, market: Market) -> Stuck | None:
        """How it is stuck; None where it is not, or is of an earlier run, whose plans are not remembered."""
        refused = flight.consequence is Consequence.REPLACE
        waited = market.head.number - flight.signed_at >= _PATIENCE_BLOCKS
        if flight.plan is None or not (refused or waited):
            return None
        offered, urgency = _offered(flight), len(flight.transaction.attempts)
        if not refused and offered.price(next_base_fee(market.head)) >= market.price(urgency):
            return None
        return Stuck(flight.plan, offered, urgency, flight.transaction.worst_case_wei)

    def _worth_offering(self, flight: Flight, head: Head) -> bool:
        """Whether to offer the same bytes again, perhaps to the public pool from now on."""
        if flight.last.last_block is None or head.number >= flight.last.last_block:
            return False  # it could only be mined to revert
        after = self._public_after_blocks
        if not flight.published and self._way is not self._pool and after is not None:
            flight.published = head.number - flight.offered_at >= after
            if flight.published:
                self._log.warning("published", plan=flight.plan_id, tx=flight.last.hash, after_blocks=after)
                return True
        untaken = flight.last.sent_at_s is None and flight.consequence is not Consequence.WAIT
        waited = head.number - flight.signed_at >= _PATIENCE_BLOCKS
        return untaken or waited or self._way_of(flight).renews


def _doomed(flight: Flight, head: Head, stop: Refusal | None) -> bool:
    return (
        flight.given_up
        or flight.expired(head.number)
        or flight.consequence is Consequence.CANCEL
        or (stop is not None and stop.reason in _STOPPED)
    )


def _offered(flight: Flight) -> Offered:
    return Offered(flight.last.max_fee_wei, tip_of(flight.last.raw))
