"""From receipts to outcomes: what the chain decided about everything in flight, booked once.

A receipt is the only thing that says "liquidated", and what the treasury gained is read from the Liquidator's own
event, never estimated. A revert is a lost race where somebody else liquidated the account after the trial and before
us, and what they left behind can have been why; anything else that reverted is ours to explain.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import structlog

from keeper import abi
from keeper.chain.client import Chain, Receipt
from keeper.chain.simulation import SimCall
from keeper.errors import AdapterError, ChainError, ExecutionError, NoQuorum, RpcError
from keeper.execution.flights import Flight, Flights
from keeper.fixed import WAD, mul_div_up
from keeper.ledger.outcomes import BAD_DEBT, STRANGERS_MARKET
from keeper.prices import Price
from keeper.store import Attempt
from keeper.trial import explain_revert, skipped
from keeper.types import Address, Hash, Head, PositionKey, Refusal, Settlement, Wei, hex_of

Rivals = Callable[[PositionKey, int, int], Awaitable[Sequence[Hash]]]  # who liquidated it in which blocks

_LIQUIDATED: Final = abi.load("Liquidator").event("Liquidated")
_TRANSFER: Final = abi.load("Erc20").event("Transfer")
_WORD: Final = 32
# How a plan fails whatever others do to the position: these are never a race.
_UNRACED: Final = (
    *("PlanExpired", "ScopePaused", "EpochMismatch", "NotOperator", "StaleFeed", "FeedMissing"),
    *("TargetNotAllowed", "RouterNotAllowed", "FlashSourceNotAllowed", "TokenNotListed"),
)


class Settling:
    """Asks for receipts and closes flights; `rivals` tells which transactions liquidated a position.

    What comes to the `treasury` from the Liquidator is booked of every token.
    """

    def __init__(
        self,
        chain: Chain,
        flights: Flights,
        rivals: Rivals,
        calldata_of: Callable[[bytes], bytes],
        treasury: Address,
    ) -> None:
        self._treasury = treasury
        self._chain = chain
        self._flights = flights
        self._rivals = rivals
        self._calldata_of = calldata_of
        self._used: dict[Address, int] = {}  # nonces used on chain, by sender, as of the last settling
        self._doubted_above: int | None = None  # outcomes in blocks above must be looked up again
        self._log = structlog.get_logger("keeper.sender")

    def doubt(self, above: int) -> None:
        """The chain may have been reorganised above this block: look at outcomes there again before all else."""
        self._doubted_above = above if self._doubted_above is None else min(self._doubted_above, above)

    def used(self, sender: Address) -> int:
        """How many nonces of `sender` were used on chain at the last settling."""
        return self._used.get(sender, 0)

    async def settle(self, head: Head, native: Price | Refusal) -> list[Settlement]:
        """Account for everything in flight that the chain has decided.

        Without a price for gas nothing is booked yet: a booked loss must not be a guess.
        """
        if self._doubted_above is not None and await self._reopen_orphaned(self._doubted_above, head):
            self._doubted_above = None
        if not len(self._flights):
            return []
        # A nonce is lost only if it was used at an earlier settling already and no receipt shows up now: one asked
        # for before its block, or of a node that lags, may be missing for a while.
        used_before, self._used = self._used, {}
        for sender in {flight.transaction.sender for flight in self._flights}:
            self._used[sender] = await self._chain.nonce(sender, "latest")
        settlements: list[Settlement] = []
        for flight in self._flights:
            mined = await self._mined(flight)
            if mined is None:
                if used_before.get(flight.transaction.sender, 0) > flight.nonce and flight.expired(
                    head.number
                ):
                    await self._lose(flight, head)
            elif mined[1].block_number <= head.number and not isinstance(native, Refusal):
                # else the book is still at `head`: it must not plan on a position that has moved since
                settlements.append(await self._close(flight, *mined, native))
        return settlements

    async def _reopen_orphaned(self, above: int, head: Head) -> bool:
        """Take back every outcome whose block is gone; its nonce is in flight again, mined elsewhere or not at all.

        Nothing is broadcast again here: a node keeps what it orphaned, and what nobody kept is offered again or
        expires and is cancelled, so that a nonce is never left open below those that follow. False where an outcome
        above `head` still stands: at a node that lags, it may go without another sign of it.
        """
        outcomes = self._flights.store.settled_after(above)
        for transaction, settlement in outcomes:
            receipt = await self._chain.receipt(settlement.transaction_hash)
            if receipt is not None and receipt.block_hash == settlement.block_hash:
                continue
            number = settlement.block_number
            # nodes index receipts late, and forget old ones: the block tells as well
            known = receipt is None and number <= head.number
            if known and (await self._chain.block(number)).hash == settlement.block_hash:
                continue
            body = {
                "tx": settlement.transaction_hash,
                "block": settlement.block_number,
                "block_hash": settlement.block_hash,
            }
            self._flights.reopen(transaction, body, head.number)
            self._used.clear()
            self._log.warning("reorged", plan=transaction.plan_id, **body)
        return all(
            settlement.block_number <= head.number or transaction.plan_id in self._flights
            for transaction, settlement in outcomes
        )

    async def _mined(self, flight: Flight) -> tuple[Attempt, Receipt] | None:
        for attempt in flight.transaction.attempts:
            receipt = await self._chain.receipt(attempt.hash)
            if receipt is not None:
                return attempt, receipt
        return None

    async def _close(self, flight: Flight, attempt: Attempt, receipt: Receipt, native: Price) -> Settlement:
        liquidated = attempt.purpose != "cancel" and receipt.status == 1 and not flight.relaying
        settlement = Settlement(
            plan_id=flight.plan_id,
            transaction_hash=attempt.hash,
            status=receipt.status,
            block_number=receipt.block_number,
            block_hash=receipt.block_hash,
            gas_used=receipt.gas_used,
            gas_cost_wei=Wei(receipt.gas_used * receipt.effective_gas_price_wei + receipt.l1_fee_wei),
            profit_raw=self._profit_raw(flight, receipt) if liquidated else 0,
        )
        # rounded up: gas is a cost
        gas_cost_usd_e8 = mul_div_up(settlement.gas_cost_wei, native.usd_e8_up, WAD)
        body: dict[str, Any] = {
            "tx": attempt.hash,
            "status": receipt.status,
            "block": receipt.block_number,
            "block_hash": receipt.block_hash,
            "gas_used": receipt.gas_used,
            "gas_cost_wei": settlement.gas_cost_wei,
            "gas_cost_usd_e8": gas_cost_usd_e8,
            "data_fee_wei": receipt.l1_fee_wei,
            "data_gas": receipt.l1_gas,
        }
        if liquidated:
            kind = "settled"
            body |= self._gain(flight, attempt, settlement.profit_raw)
            body["received"] = self._received(flight, receipt)
        else:
            kind, why = await self._why(flight, attempt, receipt)
            body |= {"loss_usd_e8": gas_cost_usd_e8, **why}
        if flight.budgeted:
            lost_usd_e8 = max(0, gas_cost_usd_e8 - body.get("profit_usd_e8", 0))
            body |= {"loss_usd_e8": lost_usd_e8, "budget": BAD_DEBT}
        at_s = self._flights.now_s()
        with self._flights.store.transaction():
            self._flights.store.settled(settlement, at_s)
            self._flights.note(kind, flight, body, at_s)
            for of, what, numbers in self._each(flight, receipt) if liquidated else ():
                self._flights.note(what, flight, numbers, at_s, of)
        self._flights.close(flight)
        key = flight.key
        self._log.info(kind, protocol=key.protocol, account=key.account, plan=flight.plan_id, **body)
        return settlement

    def _each(self, flight: Flight, receipt: Receipt) -> list[tuple[PositionKey, str, dict[str, Any]]]:
        """What a plan of several accounts came to for each, by the Liquidator's own events; calls keep their order."""
        if not flight.others:
            return []
        liquidator = self._liquidator(flight)
        failed = dict(skipped(flight.plan_id, [log for log in receipt.logs if log.address == liquidator]))
        mined = {"tx": receipt.transaction_hash, "block": receipt.block_number}
        return [
            (key, "skipped", {**mined, "error": failed[place]})
            if place in failed
            else (key, "liquidated", mined)
            for place, key in enumerate(flight.keys)
        ]

    async def _why(self, flight: Flight, attempt: Attempt, receipt: Receipt) -> tuple[str, dict[str, Any]]:
        """The kind of an outcome that liquidated nothing, and what else there is to say of it."""
        if flight.relaying and attempt.purpose != "cancel":
            return "relayed", {
                "error": "" if receipt.status == 1 else await self._replayed(flight, attempt, receipt)
            }
        if attempt.purpose == "cancel":
            return "cancelled", {"error": "" if receipt.status == 1 else "the transfer reverted"}
        error = await self._replayed(flight, attempt, receipt)
        if error.partition("(")[0] in _UNRACED:
            return "reverted", {"error": error}
        try:
            rival = await self._rival(flight, attempt, receipt)
        except (ChainError, AdapterError) as failure:
            # the loss is certain without knowing to whom, and must not wait for nodes that forget
            return "reverted", {"error": error, "rival_unknown": str(failure)}
        if rival is None:
            terms = self._terms(flight, attempt)
            strangers = {STRANGERS_MARKET: terms[STRANGERS_MARKET]} if STRANGERS_MARKET in terms else {}
            return "reverted", {"error": error, **strangers}
        return "lost_race", {"error": error, "rival_tx": rival}

    async def _rival(self, flight: Flight, attempt: Attempt, receipt: Receipt) -> Hash | None:
        """Who liquidated one of its accounts after the trial of what was mined and before it; the first of several."""
        own = {each.hash for each in flight.transaction.attempts}
        tried_at = int(self._terms(flight, attempt)["block"])
        block = receipt.block_number
        found = [one for key in flight.keys for one in await self._rivals(key, tried_at + 1, block)]
        for transaction in dict.fromkeys(found):
            theirs = await self._chain.receipt(transaction) if transaction not in own else None
            if theirs is not None and (theirs.block_number, theirs.index) < (
                receipt.block_number,
                receipt.index,
            ):
                return transaction
        return None

    async def _replayed(self, flight: Flight, attempt: Attempt, receipt: Receipt) -> str:
        """The revert in words, by replaying the transaction on the state its block left behind."""
        to = abi.address(self._terms(flight, flight.last)["pause_guard" if flight.relaying else "liquidator"])
        call = SimCall(flight.transaction.sender, to, self._calldata_of(attempt.raw), attempt.gas_limit)
        try:
            mined = await self._chain.block(receipt.block_hash)
            [result] = await self._chain.simulate([call], mined, mined.timestamp_s + 1, mined.base_fee_wei)
        except ChainError as error:
            # nodes forget old states; the loss is certain without words for it, and must not wait for them
            return f"unknown, it could not be replayed: {error}"
        return explain_revert(result.output) if result.status != 1 else "out of date: it would succeed now"

    def _profit_raw(self, flight: Flight, receipt: Receipt) -> int:
        liquidator = self._liquidator(flight)
        for log in receipt.logs:
            if log.address == liquidator and log.topics[0] == _LIQUIDATED.topic:
                event = _LIQUIDATED.decode(log)
                if event["planId"] == flight.plan_id:
                    profit: int = event["profit"]
                    return profit
        raise ExecutionError(
            f"Transaction 0x{receipt.transaction_hash.hex()} succeeded without a Liquidated event for its plan; "
            "what it was sent to is not our Liquidator."
        )

    def _received(self, flight: Flight, receipt: Receipt) -> list[dict[str, Any]]:
        """Every token that came to the treasury with it: profit, what swaps left over, and what was swept before."""
        ends = (bytes(12) + self._liquidator(flight), bytes(12) + self._treasury)
        sums: dict[Address, int] = {}
        for log in receipt.logs:
            # anybody may have made a token, and it may say anything
            if log.topics == (_TRANSFER.topic, *ends) and len(log.data) == _WORD:
                sums[log.address] = sums.get(log.address, 0) + int.from_bytes(log.data)
        return [{"token": token, "raw": raw} for token, raw in sums.items()]

    def _gain(self, flight: Flight, attempt: Attempt, profit_raw: int) -> dict[str, Any]:
        """Realised beside expected, by what was booked before it was sent, which a restart can read again."""
        terms = self._terms(flight, attempt)
        decimals = int(terms["profit_decimals"])
        gain = {
            "profit_token": abi.address(terms["profit_token"]),
            "profit_decimals": decimals,
            "profit_raw": profit_raw,
        }
        if "expected_profit_raw" not in terms:  # recovered: what was expected, and at which price, is lost
            return gain
        price_usd_e8 = int(terms["profit_price_usd_e8"])
        return gain | {
            "profit_usd_e8": profit_raw * price_usd_e8 // 10**decimals,
            "expected_profit_raw": int(terms["expected_profit_raw"]),
            "expected_data_fee_wei": int(terms.get("data_fee_wei", 0)),
            "expected_data_gas": int(terms.get("data_gas", 0)),
        }

    def _liquidator(self, flight: Flight) -> Address:
        """The Liquidator it was built for: another may be configured by now."""
        return abi.address(self._terms(flight, flight.last)["liquidator"])

    def _terms(self, flight: Flight, attempt: Attempt) -> dict[str, Any]:
        """The plan's intent, and over it what is on record of the attempt: a replacement was tried afresh."""
        [intent] = self._flights.ledger.entries(1, kind="intent", plan=flight.plan_id)
        signed = self._flights.ledger.entries(None, kind="signed", plan=flight.plan_id)
        own = next((each.body for each in signed if each.body["tx"] == hex_of(attempt.hash)), {})
        return {**intent.body, **own}

    async def _lose(self, flight: Flight, head: Head) -> None:
        """Close it if its nonce went to a transaction that is not ours: somebody else holds the key, or the store is
        stale. Where it went to one of ours only the receipt is missing, because nodes index late.
        """
        body: dict[str, Any] = {"nonce": flight.nonce}
        try:
            taker = await self._taker(flight, head)
        except ChainError as error:
            if not (isinstance(error, RpcError) or (isinstance(error, NoQuorum) and error.lacked)):
                raise
            # nodes forget old states: nobody can tell any more, and whoever went on asking would handle no head
            body["error"] = str(error)
        else:
            if taker is None or taker in {attempt.hash for attempt in flight.transaction.attempts}:
                return
            body["tx"] = taker
        at_s = self._flights.now_s()
        with self._flights.store.transaction():
            self._flights.store.dropped(flight.plan_id, at_s)
            self._flights.note("dropped", flight, body, at_s)
        self._flights.close(flight)
        self._log.error("dropped", plan=flight.plan_id, **body)

    async def _taker(self, flight: Flight, head: Head) -> Hash | None:
        """Which transaction used its nonce, by halving the blocks since it was planned; None for the moment."""
        sender, low, high = flight.transaction.sender, self._planned_at(flight), int(head.number)
        while high - low > 1:
            middle = (low + high) // 2
            used = await self._chain.nonce(sender, hex(middle))
            low, high = (low, middle) if used > flight.nonce else (middle, high)
        found = await self._chain.sent_in(sender, high)
        return next((sent.hash for sent in found if sent.nonce == flight.nonce), None)

    def _planned_at(self, flight: Flight) -> int:
        [intent] = self._flights.ledger.entries(1, kind="intent", plan=flight.plan_id)
        return int(intent.body.get("block", 0))
