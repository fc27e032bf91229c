"""From a cleared plan to a settlement: record, sign, record, broadcast, account for.

The order is the promise: the intent with its nonce is stored before the key is asked, the signed bytes before they
are broadcast, and the receipt is the only thing that says "liquidated". What the treasury gained is read from the
Liquidator's own event, never estimated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from keeper import abi
from keeper.chain.client import Chain, Receipt
from keeper.chain.simulation import SimCall
from keeper.errors import ChainError, ExecutionError, RpcError
from keeper.execution.fees import cancel_fees, inclusion_price
from keeper.fixed import WAD, mul_div_up
from keeper.guard import Clearance
from keeper.keys import OperatorKey, calldata_of, tip_of
from keeper.ledger import Ledger
from keeper.prices import Price
from keeper.store import Attempt, OpenTransaction, Store
from keeper.trial import explain_revert
from keeper.types import (
    Address,
    Entry,
    Gas,
    Hash,
    Head,
    Plan,
    PositionKey,
    Refusal,
    Settlement,
    Submission,
    Trial,
    Wei,
    hex_of,
)

_LIQUIDATED: Final = abi.load("Liquidator").event("Liquidated")
_GRACE_BLOCKS: Final = (
    2  # how long after its last block a transaction is given before its nonce is taken back
)
_TRANSFER_GAS: Final = Gas(21_000)
_REORG_BLOCKS: Final = 64  # an outcome this many blocks back is believed for good


@dataclass(frozen=True, slots=True)
class Cleared:
    """A plan that may be sent; `numbers` go into the ledger's intent."""

    plan: Plan
    trial: Trial
    clearance: Clearance
    numbers: Mapping[str, Any]


class Sender:
    """Owns the operator's nonces; everything in flight is in the store, so a restart knows it too."""

    def __init__(
        self,
        chain: Chain,
        key: OperatorKey,
        store: Store,
        ledger: Ledger,
        liquidator: Address,
        wall_clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._chain = chain
        self._key = key
        self._store = store
        self._ledger = ledger
        self._liquidator = liquidator
        self._wall_clock = wall_clock
        self._monotonic = monotonic
        self._next_nonce = 0
        self._used_nonces = 0  # the operator's nonce on chain, as of the last settling
        self._doubtful = True  # whether recent outcomes must be looked up again: at a start they must
        self._open: dict[Hash, OpenTransaction] = {}
        self._released: set[Hash] = set()
        self._not_taken: dict[Hash, str] = {}  # why the nodes last refused signed bytes
        self._log = structlog.get_logger("keeper.sender")

    @property
    def operator(self) -> Address:
        """The account that pays the gas."""
        return self._key.address

    def in_flight(self, key: PositionKey) -> bool:
        """Whether a transaction for this position is signed and not accounted for."""
        return any(transaction.key == key for transaction in self._open.values())

    def given_up(self, plan_id: Hash) -> bool:
        """Whether an earlier run reserved this very plan and died before signing it: a plan is reserved once."""
        return plan_id in self._released

    def in_flight_wei(self) -> int:
        """The most gas everything in flight can still cost."""
        return sum(transaction.worst_case_wei for transaction in self._open.values())

    async def recover(self) -> None:
        """Take over what an earlier run left: nonces without a signature are freed, the rest is in flight."""
        for transaction in self._store.open_transactions():
            if transaction.sender != self.operator:
                continue
            if transaction.attempts:
                self._open[transaction.plan_id] = transaction
            else:
                self._store.release(transaction.plan_id, self._now_s())
                self._released.add(transaction.plan_id)
        on_chain = await self._chain.nonce(self.operator, "latest")
        claimed = self._store.highest_nonce(self.operator)
        self._next_nonce = max(on_chain, 0 if claimed is None else claimed + 1)

    async def send(self, cleared: Sequence[Cleared]) -> list[Submission]:
        """Record, sign, record and broadcast cleared liquidations, in this order.

        A node that does not take the bytes is not an error of the plan: the transaction stays in flight until it is
        mined or its nonce is taken back.
        """
        if not cleared:
            return []
        at_s = self._now_s()
        reserved = [self._reservation(one.plan, number, at_s) for number, one in enumerate(cleared)]
        with self._store.transaction():
            for one, transaction in zip(cleared, reserved, strict=True):
                self._store.reserve(
                    transaction.plan_id,
                    transaction.nonce,
                    sender=self.operator,
                    key=transaction.key,
                    at_s=at_s,
                )
                body = {"nonce": transaction.nonce, "liquidator": self._liquidator, **one.numbers}
                self._note("intent", transaction, body, at_s)
        self._next_nonce += len(cleared)
        attempts = [
            self._signed_plan(one, transaction, at_s)
            for one, transaction in zip(cleared, reserved, strict=True)
        ]
        self._record(list(zip(reserved, attempts, strict=True)))
        sent_s = self._monotonic()
        await self._broadcast(
            [(one.plan.plan_id, attempt) for one, attempt in zip(cleared, attempts, strict=True)]
        )
        return [
            Submission(
                one.plan.plan_id,
                transaction.nonce,
                attempt.hash,
                attempt.raw,
                one.trial.last_block,
                attempt.max_fee_wei,
                sent_s,
            )
            for one, transaction, attempt in zip(cleared, reserved, attempts, strict=True)
        ]

    async def settle(
        self, head: Head, native: Price | Refusal, tip_wei: Wei, most_fee_wei: Wei
    ) -> list[Settlement]:
        """Account for everything in flight that the chain has decided, and take back nonces that expired.

        Without a price for gas nothing is settled yet: a booked loss must not be a guess. `most_fee_wei` is the most
        the operator pays per gas.
        """
        if self._doubtful:
            await self._reopen_orphaned(head)
            self._doubtful = False
        if isinstance(native, Refusal) or not self._open:
            return []
        # A nonce is lost only if it was used at an earlier settling already and no receipt shows up now: one asked
        # for before its block, or of a node that lags, may be missing for a while.
        used_before, self._used_nonces = (
            self._used_nonces,
            await self._chain.nonce(self.operator, "latest"),
        )
        self._next_nonce = max(self._next_nonce, self._used_nonces)
        settlements: list[Settlement] = []
        for transaction in list(self._open.values()):
            mined = await self._mined(transaction)
            if mined is not None and mined[1].block_number > head.number:
                continue  # the book is still at `head`: it must not plan on a position that has moved since
            if mined is not None:
                attempt, receipt = mined
                why = "" if receipt.status == 1 else await self._why(attempt, receipt)
                settlements.append(self._close(transaction, attempt, receipt, native, why))
            elif not self._expired(transaction, head):
                continue
            elif used_before > transaction.nonce:
                self._lose(transaction)
            elif self._used_nonces <= transaction.nonce:
                await self._cancel(transaction, head, tip_wei, most_fee_wei)
        return settlements

    def doubt(self) -> None:
        """The chain was reorganised: look at the blocks of recent outcomes again before anything else is settled."""
        self._doubtful = True

    async def _reopen_orphaned(self, head: Head) -> None:
        """Take back every outcome whose block is gone; its nonce is in flight again, mined elsewhere or not at all.

        Nothing is broadcast again: a node keeps what it orphaned, and what nobody kept expires and is cancelled, so
        that a nonce is never left open below those that follow.
        """
        for transaction, settlement in self._store.settled_after(head.number - _REORG_BLOCKS, self.operator):
            receipt = await self._chain.receipt(settlement.transaction_hash)
            if receipt is None and await self._stands(settlement, head):
                continue  # nodes may have a block and not its receipts yet
            if receipt is not None and receipt.block_hash == settlement.block_hash:
                continue
            body = {
                "tx": settlement.transaction_hash,
                "block": settlement.block_number,
                "block_hash": settlement.block_hash,
            }
            with self._store.transaction():
                self._store.reopen(transaction.plan_id)
                self._note("reorged", transaction, body, self._now_s())
            self._open[transaction.plan_id] = replace(transaction, state="signed")
            self._used_nonces = 0
            self._log.warning("reorged", plan=transaction.plan_id, **body)

    async def _stands(self, settlement: Settlement, head: Head) -> bool:
        """Whether the block of an outcome is still on the chain."""
        number = settlement.block_number
        return number <= head.number and (await self._chain.block(number)).hash == settlement.block_hash

    def _reservation(self, plan: Plan, number: int, at_s: int) -> OpenTransaction:
        nonce = self._next_nonce + number
        return OpenTransaction(plan.plan_id, self.operator, nonce, plan.key, "reserved", at_s, ())

    def _signed_plan(self, one: Cleared, transaction: OpenTransaction, at_s: int) -> Attempt:
        fees = one.clearance.fees
        signed = self._key.sign(self._liquidator, one.trial.calldata, transaction.nonce, fees, one.clearance)
        return Attempt(
            signed.hash,
            "plan",
            signed.raw,
            fees.max_fee_wei,
            fees.gas_limit,
            one.trial.last_block,
            at_s,
            None,
        )

    def _record(self, signed: Sequence[tuple[OpenTransaction, Attempt]]) -> None:
        """Keep signed bytes, on the disk, before anybody sees them."""
        with self._store.transaction(durable=True):
            for transaction, attempt in signed:
                self._store.signed(
                    transaction.plan_id,
                    attempt.hash,
                    attempt.raw,
                    purpose="cancel" if attempt.purpose == "cancel" else "plan",
                    max_fee_wei=attempt.max_fee_wei,
                    gas_limit=attempt.gas_limit,
                    last_block=attempt.last_block,
                    at_s=attempt.signed_at_s,
                )
                body = {
                    "tx": attempt.hash,
                    "purpose": attempt.purpose,
                    "nonce": transaction.nonce,
                    "max_fee_wei": attempt.max_fee_wei,
                    "gas_limit": attempt.gas_limit,
                    "last_block": attempt.last_block,
                }
                self._note("signed", transaction, body, attempt.signed_at_s)
        for transaction, attempt in signed:
            attempts = (*transaction.attempts, attempt)
            self._open[transaction.plan_id] = replace(transaction, state="signed", attempts=attempts)

    async def _broadcast(self, signed: Sequence[tuple[Hash, Attempt]]) -> None:
        answers = await asyncio.gather(
            *(self._chain.send_raw(attempt.raw) for _, attempt in signed), return_exceptions=True
        )
        at_s = self._now_s()
        wrong: Hash | None = None
        with self._store.transaction():
            for (plan_id, attempt), answer in zip(signed, answers, strict=True):
                transaction = self._open[plan_id]
                if isinstance(answer, ChainError):
                    code = answer.code if isinstance(answer, RpcError) else None
                    body = {"tx": attempt.hash, "error": str(answer), "code": code}
                    if self._not_taken.get(attempt.hash) != str(answer):
                        self._not_taken[attempt.hash] = str(answer)
                        self._note("not_taken", transaction, body, at_s)
                        self._log.warning("not_taken", plan=plan_id, tx=attempt.hash, error=str(answer))
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    self._store.sent(attempt.hash, at_s)
                    self._note("sent", transaction, {"tx": attempt.hash}, at_s)
                    key = transaction.key
                    self._log.info(
                        "sent", protocol=key.protocol, account=key.account, plan=plan_id, tx=attempt.hash
                    )
                    attempts = tuple(
                        replace(each, sent_at_s=at_s) if each.hash == attempt.hash else each
                        for each in transaction.attempts
                    )
                    self._open[plan_id] = replace(transaction, attempts=attempts)
                    wrong = wrong or (attempt.hash if answer != attempt.hash else None)
        if wrong is not None:
            raise ExecutionError(
                f"The node answered another hash for transaction {hex_of(wrong)}; stop using it."
            )

    def _note(self, kind: str, transaction: OpenTransaction, body: Mapping[str, Any], at_s: int) -> None:
        key = transaction.key
        self._ledger.book(kind, transaction.plan_id, key.protocol, key.account, body, at_s)

    async def _mined(self, transaction: OpenTransaction) -> tuple[Attempt, Receipt] | None:
        for attempt in transaction.attempts:
            receipt = await self._chain.receipt(attempt.hash)
            if receipt is not None:
                return attempt, receipt
        return None

    def _close(
        self, transaction: OpenTransaction, attempt: Attempt, receipt: Receipt, native: Price, why: str
    ) -> Settlement:
        liquidated = attempt.purpose != "cancel" and receipt.status == 1
        settlement = Settlement(
            plan_id=transaction.plan_id,
            transaction_hash=attempt.hash,
            status=receipt.status,
            block_number=receipt.block_number,
            block_hash=receipt.block_hash,
            gas_used=receipt.gas_used,
            gas_cost_wei=Wei(receipt.gas_used * receipt.effective_gas_price_wei + receipt.l1_fee_wei),
            profit_raw=self._profit_raw(transaction, receipt) if liquidated else 0,
        )
        kind = "settled" if liquidated else "cancelled" if attempt.purpose == "cancel" else "reverted"
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
        }
        if liquidated:
            body |= self._gain(transaction, settlement.profit_raw)
        else:
            body |= {"loss_usd_e8": gas_cost_usd_e8, "error": why}
        at_s = self._now_s()
        key = transaction.key
        with self._store.transaction():
            self._store.settled(settlement, at_s)
            self._note(kind, transaction, body, at_s)
        del self._open[transaction.plan_id]
        self._log.info(kind, protocol=key.protocol, account=key.account, plan=transaction.plan_id, **body)
        return settlement

    async def _why(self, attempt: Attempt, receipt: Receipt) -> str:
        """The revert in words, by replaying the transaction on the state its block left behind."""
        call = SimCall(self.operator, self._liquidator, calldata_of(attempt.raw), attempt.gas_limit)
        try:
            mined = await self._chain.block(receipt.block_hash)
            [result] = await self._chain.simulate([call], mined, mined.timestamp_s + 1, mined.base_fee_wei)
        except ChainError as error:
            # nodes forget old states; the loss is certain without words for it, and must not wait for them
            return f"unknown, it could not be replayed: {error}"
        return explain_revert(result.output) if result.status != 1 else "out of date: it would succeed now"

    def _profit_raw(self, transaction: OpenTransaction, receipt: Receipt) -> int:
        # the Liquidator it was built for: another may be configured by now
        liquidator = abi.address(self._intent(transaction).body["liquidator"])
        for log in receipt.logs:
            if log.address == liquidator and log.topics[0] == _LIQUIDATED.topic:
                event = _LIQUIDATED.decode(log)
                if event["planId"] == transaction.plan_id:
                    profit: int = event["profit"]
                    return profit
        raise ExecutionError(
            f"Transaction 0x{receipt.transaction_hash.hex()} succeeded without a Liquidated event for its plan; "
            "what it was sent to is not our Liquidator."
        )

    def _gain(self, transaction: OpenTransaction, profit_raw: int) -> dict[str, Any]:
        """Realised beside expected; token and price are those of the intent, which a restart can read again."""
        intent = self._intent(transaction)
        price_usd_e8 = int(intent.body["profit_price_usd_e8"])
        decimals = int(intent.body["profit_decimals"])
        return {
            "profit_token": abi.address(intent.body["profit_token"]),
            "profit_decimals": decimals,
            "profit_raw": profit_raw,
            "profit_usd_e8": profit_raw * price_usd_e8 // 10**decimals,
            "expected_profit_raw": int(intent.body["expected_profit_raw"]),
        }

    def _intent(self, transaction: OpenTransaction) -> Entry:
        [intent] = self._ledger.entries(1, kind="intent", plan=transaction.plan_id)
        return intent

    def _lose(self, transaction: OpenTransaction) -> None:
        """The nonce went to a transaction that is not ours: somebody else holds the key, or the store is stale."""
        at_s = self._now_s()
        with self._store.transaction():
            self._store.dropped(transaction.plan_id, at_s)
            self._note("dropped", transaction, {"nonce": transaction.nonce}, at_s)
        del self._open[transaction.plan_id]
        self._log.error("dropped", nonce=transaction.nonce, plan=transaction.plan_id)

    async def _cancel(
        self, transaction: OpenTransaction, head: Head, tip_wei: Wei, most_fee_wei: Wei
    ) -> None:
        """Take the nonce back with a transfer of nothing to ourselves, dearer each time one was taken but not mined."""
        first, last = transaction.attempts[0], transaction.attempts[-1]
        offered = (last.max_fee_wei, tip_of(last.raw))
        most_wei = max(most_fee_wei, first.max_fee_wei)
        max_fee_wei, cancel_tip_wei = cancel_fees(offered, head, tip_wei, most_wei)
        untaken = last.sent_at_s is None and last.max_fee_wei >= inclusion_price(head, tip_wei)
        if last.purpose == "cancel" and (untaken or max_fee_wei <= last.max_fee_wei):
            # no node has it (the operator may be out of gas), or it is as dear as it may get: offer it again
            await self._broadcast([(transaction.plan_id, last)])
            return
        signed = self._key.sign_cancel(transaction.nonce, max_fee_wei, cancel_tip_wei)
        # its "last block" is this one: if it is not mined within the same grace, a dearer one follows
        attempt = Attempt(
            signed.hash, "cancel", signed.raw, max_fee_wei, _TRANSFER_GAS, head.number, self._now_s(), None
        )
        self._record([(transaction, attempt)])
        await self._broadcast([(transaction.plan_id, attempt)])

    def _expired(self, transaction: OpenTransaction, head: Head) -> bool:
        last_block = transaction.attempts[-1].last_block
        return last_block is None or head.number > last_block + _GRACE_BLOCKS

    def _now_s(self) -> int:
        return int(self._wall_clock())
