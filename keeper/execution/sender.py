"""From a cleared plan to signed bytes on their way: record, sign, record, offer, and see it through.

The order is the promise: the intent with its nonce is stored before the key is asked, and the signed bytes before
anybody sees them. Nothing here waits between a signature and its storing, and what was signed is stored however the
asking for more ends: a stop finds either no signature or one on record. A nonce for which nothing was signed is free
again, at once where the key's holder failed and at the next start where the run ended. What is in flight is then
replaced (`Sender.stuck`), offered again or taken back (`Sender.tend`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import structlog

from keeper.chain.client import Chain
from keeper.errors import ChainError, LedgerError, RpcError
from keeper.execution.fees import Market, Offered
from keeper.execution.flights import Flight, Flights, Stuck, Submission
from keeper.execution.funds import Funds
from keeper.execution.nonces import Nonces
from keeper.execution.refusals_of_nodes import CONSEQUENCES, Complaint, Consequence, complaint_of
from keeper.execution.routes import Answer, PublicPool, Taken, Way
from keeper.execution.settling import Rivals, Settling
from keeper.execution.signing import Cleared, Signing, Standing
from keeper.guard import Fees, Gate
from keeper.guard.message import SignedPause
from keeper.keys import OperatorKey, calldata_of, tip_of
from keeper.prices import Price
from keeper.store import Attempt, OpenTransaction
from keeper.types import (
    Address,
    BlockTime,
    Hash,
    Head,
    Plan,
    PositionKey,
    Refusal,
    Settlement,
    Wei,
)

_PATIENCE_BLOCKS: Final = 2  # how long a transaction is left alone before it is looked at again


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
        gate: Gate,
        treasury: Address,
        funds: Funds,
        monotonic: Callable[[], float],
        way: Way | None = None,
        public_after_blocks: int | None = None,
    ) -> None:
        self._chain = chain
        self._key = key
        self._flights = flights
        self._signing = Signing(key, flights, liquidator, monotonic)
        self._settling = Settling(chain, flights, rivals, calldata_of, treasury)
        self._liquidator = liquidator
        self._gate = gate
        self._funds = funds
        self._monotonic = monotonic
        self._pool = PublicPool(chain)
        self._way: Way = way or self._pool
        self._public_after_blocks = public_after_blocks
        self._nonces = Nonces(flights.store, key.address)
        self._alone = asyncio.Lock()  # who signs without a clearance; two at once would sign the same
        self._log = structlog.get_logger("keeper.sender")

    def in_flight(self, key: PositionKey) -> bool:
        """Whether a transaction for this position is signed and not accounted for."""
        return self._flights.holds(key)

    def liquidating(self, protocol: str | None) -> bool:
        """Whether anything in flight may still liquidate, of one protocol or of any."""
        return any(
            protocol in (None, flight.key.protocol)
            for flight in self._flights
            if not (flight.cancelling or flight.relaying or flight.dead)
        )

    def in_flight_plans(self) -> dict[Hash, PositionKey]:
        """Every plan that may still be mined, and which position it liquidates."""
        return {
            flight.plan_id: flight.key for flight in self._flights if not (flight.relaying or flight.dead)
        }

    def in_flight_wei(self, *, budgeted: bool = False) -> int:
        """The most gas everything in flight can still cost, or all that the budget for bad debt pays."""
        return self._flights.worst_case_wei(budgeted=budgeted)

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
        relays = {flight.plan_id: calldata_of(flight.last.raw) for flight in self._flights if flight.relaying}
        settlements = await self._settling.settle(head, native)
        for settlement in settlements:
            if settlement.status == 0 and settlement.plan_id in relays:
                for scope, message in list(self._gate.messages.items()):
                    if message.calldata == relays[settlement.plan_id]:  # else it said something else since
                        self._gate.give_up(scope, "the relay of the guardian's message reverted")
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
                others, budgeted = plan.keys[1:], plan.may_lose_usd_e8 > 0
                flight = Flight(transaction, head.number, head.number, plan, budgeted=budgeted, others=others)
                body = {"nonce": nonce, "operator": self._key.address, "liquidator": self._liquidator}
                self._flights.intend(flight, body | dict(one.numbers), plan.outcome.parts[1:], at_s)
                flights.append(flight)
        return flights

    async def _hand_over(self, flights: Sequence[Flight], head: BlockTime) -> None:
        """Offer what was signed last, each by its way, and note what was answered.

        One way is waited for before the next, so the gate is asked for each; a bundle leads with what is below it.
        """
        for way in dict.fromkeys(map(self._way_of, flights)):
            mine = [flight for flight in flights if self._way_of(flight) is way and self._may_leave(flight)]
            if way.renews:
                held = [flight.nonce for flight in self._flights.own() if not self._may_leave(flight)]
                mine = [flight for flight in mine if flight.nonce < min(held, default=flight.nonce + 1)]
            offered = [flight.last for flight in mine]
            answers = await way.offer(mine, head)
            self._note_answers(list(zip(mine, offered, answers, strict=True)))

    def _may_leave(self, flight: Flight) -> bool:
        stops = flight.cancelling or flight.relaying
        return stops or self._gate.standing(flight.key.protocol) is None

    def _way_of(self, flight: Flight) -> Way:
        public = flight.cancelling or flight.published or flight.relaying
        return self._pool if public else self._way

    def _note_answers(self, answers: Sequence[tuple[Flight, Attempt, Answer]]) -> None:
        with self._flights.store.transaction():
            for flight, attempt, answer in answers:
                if isinstance(answer, Taken):
                    self._note_taken(flight, attempt, answer)
                elif answer is not None:
                    self._note_refused(flight, attempt, answer)

    def _note_taken(self, flight: Flight, attempt: Attempt, taken: Taken) -> None:
        if attempt.hash == flight.last.hash:
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
        if attempt.hash == flight.last.hash:  # else it was replaced while the node thought about it
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
            and not flight.doomed(market.head.number, stop := standing(flight.key.protocol))
            and stop is None
        ]
        return [each for each in found if each is not None]

    def give_up(self, plan_id: Hash) -> None:
        """What is stuck was not cleared to be replaced: its nonce is to be taken back."""
        self._flights[plan_id].given_up = True

    async def tend(self, head: Head, market: Market, standing: Standing) -> None:
        """Look after what is in flight, not mined and not signed at this very head.

        - Given up, expired, refused for good, or of a protocol that is paused or halted: its nonce is taken back. At
          this very head too where a cancellation came first (see `stop`), while the key's holder took its time.
        - Not taken, or not mined for two blocks though its fee suffices, since nodes forget: offered again. On
          another way than the public pool, published once `public_after_blocks` have passed.

        What nobody knows whether it may be signed now (`standing`) waits.
        """
        await self._funds.count(self._flights.worst_case_wei())
        at = BlockTime(head.number, head.hash, head.timestamp_s)

        def back(flight: Flight) -> bool:
            if flight.relaying and not (flight.given_up or flight.cancelling):
                return False  # see `relay_pause`
            if flight.signed_at == head.number and not flight.overtaken:
                return False
            return flight.cancelling or flight.doomed(head.number, standing(flight.key.protocol))

        signed = await self._take_back(back, market)
        # chosen only now: a signature may have taken its time
        again = [each for each in self._unmined() if each not in signed and self._again(each, head, standing)]
        if signed or again:
            await self._hand_over([*signed, *again], at)

    async def stop(self, market: Market) -> None:
        """Take back, now and whatever else goes on, everything that the gate has closed on.

        What `send` waits for a signature of meanwhile is then signed last: `send` does not hand it over, and `tend`
        takes its nonce back once more.
        """
        head = market.head

        def back(flight: Flight) -> bool:
            stopped = self._gate.standing(flight.key.protocol) is not None
            return stopped and not (flight.cancelling or flight.relaying)

        signed = await self._take_back(back, market)
        if signed:
            await self._hand_over(signed, BlockTime(head.number, head.hash, head.timestamp_s))

    async def relay_pause(self, message: SignedPause, market: Market) -> None:
        """Have a guardian's signed pause mined: sign its relay, and a dearer one at each head until it is."""
        at = BlockTime(market.head.number, market.head.hash, market.head.timestamp_s)
        async with self._alone:
            relays = [flight for flight in self._unmined() if flight.relaying and not flight.cancelling]
            flight = next((each for each in relays if calldata_of(each.last.raw) == message.calldata), None)
            if flight is not None and self._nonces.hole_below(flight.nonce):
                flight = None  # plans that would fill the hole are stopped: it is relayed in their place
            if flight is not None and flight.signed_at >= at.number:
                return
            offered = market.cancellation(_offered(flight) if flight else Offered(Wei(0), Wei(0)), Wei(0))
            if flight is None or offered.max_fee_wei > flight.last.max_fee_wei:
                flight = flight or self._flights.claim_relay(message, self._nonces.take(), at)
                at_s = self._flights.now_s()
                try:
                    await self._signing.relay(message, flight, offered, at.number, at_s)
                finally:
                    self._nonces.give_back(self._flights.give_back([flight], at_s))
                if not flight.transaction.attempts:
                    return
        await self._hand_over([flight], at)

    def relay_only(self, messages: Collection[SignedPause]) -> None:
        """The chain lacks these and no others: whatever relays another is taken back unless it is mined first.

        Nobody would offer it again, and all nonces above it would wait.
        """
        wanted = {message.calldata for message in messages}
        for flight in self._unmined():
            if flight.relaying and not flight.cancelling and calldata_of(flight.last.raw) not in wanted:
                flight.given_up = True

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

    async def _take_back(self, chosen: Callable[[Flight], bool], market: Market) -> list[Flight]:
        """Sign, for each that is chosen, a transfer of nothing to ourselves which may replace it; those signed for."""
        head, at_s = market.head, self._flights.now_s()
        async with self._alone:
            offers = [(each, self._cancellation(each, market)) for each in self._unmined() if chosen(each)]
            wanted = [(flight, offered) for flight, offered in offers if offered is not None]
            plans = [flight for flight, _ in wanted if not flight.cancelling]
            self._way.withdraw(plans, BlockTime(head.number, head.hash, head.timestamp_s))
            return await self._signing.cancellations(wanted, head.number, at_s)

    def _again(self, flight: Flight, head: Head, standing: Standing) -> bool:
        """Whether to offer what was signed last, at an earlier head, once more."""
        if flight.signed_at == head.number or (flight.relaying and not flight.cancelling):
            return False
        if flight.cancelling:
            return flight.last.sent_at_s is None or flight.expired(head.number)
        stop = standing(flight.key.protocol)
        doomed = flight.doomed(head.number, stop)  # and not signed for: the key's holder does not answer
        return not doomed and stop is None and self._worth_offering(flight, head)

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
        if not refused and offered.price(market.base_fee_wei) >= market.price(urgency):
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


def _offered(flight: Flight) -> Offered:
    return Offered(flight.last.max_fee_wei, tip_of(flight.last.raw))
