"""What the chain saw and a restored record does not know: found, booked, and only then may anything be sent.

A copy of a record lacks whatever was signed after it was made. Nothing of that may be guessed: every nonce the
operator has used on chain must belong to a transaction on record. Those of liquidations are found by the Liquidator's
events; for all others there is no index, so the blocks that hold them are found by halving, asking how many
transactions the operator had sent by a block. What is found is put on record as if it had never been lost, each entry
saying that it was `recovered`, and the sender then settles it like everything in flight. What the key did outside the
keeper is booked with its gas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from keeper import abi
from keeper.chain.client import Chain, Receipt
from keeper.chain.transactions import Sent
from keeper.errors import AdapterError, LedgerError, RpcError
from keeper.ledger import Ledger
from keeper.seams import Adapter, each
from keeper.store import OpenTransaction, Purpose, Store
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    BlockNumber,
    Filters,
    Hash,
    Head,
    PositionKey,
    Refusal,
    Reverted,
    hex_of,
)

_LIQUIDATOR: Final = abi.load("Liquidator")
_EXECUTE: Final = _LIQUIDATOR.function("execute")
_PROTOCOL_OF: Final = _LIQUIDATOR.function("protocolOf")
_LIQUIDATED: Final = _LIQUIDATOR.event("Liquidated")
_DECIMALS: Final = abi.load("Erc20").function("decimals")
_EXPIRED_AFTER_S: Final = (
    120  # by then nothing that was signed before can liquidate any more: it names its last block
)
_REORG_BLOCKS: Final = 64
_NOBODY: Final = PositionKey("", "", ZERO_ADDRESS)


@dataclass(frozen=True, slots=True)
class _Found:
    """A transaction that is not on record. `plan_id` is its own hash where it names no plan that is known."""

    sent: Sent
    receipt: Receipt
    purpose: Purpose | None  # None: not of our making
    plan_id: Hash
    key: PositionKey
    last_block: BlockNumber
    numbers: Mapping[str, Any]


async def reconcile(
    chain: Chain,
    store: Store,
    ledger: Ledger,
    adapters: Sequence[Adapter],
    operator: Address,
    liquidator: Address,
    wall_clock: Callable[[], float],
) -> None:
    """Put on record whatever the operator sent that a copy does not know; nothing to do for an original.

    Raises `LedgerError`, and books the refusal, while that cannot be known: a transaction may still be mined, or the
    node has forgotten the states of old blocks. Nothing is changed then, and it can be tried again.
    """
    copied_at_s = store.copied_at_s()
    if copied_at_s is None:
        return
    head, at_s = await chain.head(), int(wall_clock())
    searches = [
        _Search(chain, store, ledger, adapters, sender, liquidator, head, at_s)
        for sender in sorted({operator, *store.senders()})  # a former operator's transactions are as unknown
    ]
    for search in searches:
        await search.run(copied_at_s)
    with store.transaction(durable=True):
        body = {
            "head": head.number,
            "head_hash": head.hash,
            "nonces": {abi.checksum(search.sender): search.used for search in searches},
            "recovered": sum(search.put_on_record() for search in searches),
            "copied_at_s": copied_at_s,
        }
        ledger.book("reconciled", None, "", None, body, at_s)
        store.mark_copied(None)
    structlog.get_logger("keeper.reconcile").warning("reconciled", **body)


class _Search:
    """What one sender did, as of one head; `used` is how many nonces, once it has run."""

    def __init__(
        self,
        chain: Chain,
        store: Store,
        ledger: Ledger,
        adapters: Sequence[Adapter],
        sender: Address,
        liquidator: Address,
        head: Head,
        at_s: int,
    ) -> None:
        self.sender: Final = sender
        self.used = 0
        self._chain = chain
        self._store = store
        self._ledger = ledger
        self._adapters = {adapter.name: adapter for adapter in adapters}
        self._liquidator = liquidator
        self._head = head
        self._at_s = at_s
        self._claims = {claim.nonce: claim for claim in store.open_transactions() if claim.sender == sender}
        self._found: list[_Found] = []
        self._log = structlog.get_logger("keeper.reconcile")

    async def run(self, copied_at_s: int) -> None:
        """Find everything that is not on record. Raises `LedgerError` while it cannot be known."""
        self.used = await self._nonce_at(self._head.number)
        await self._require_quiet(copied_at_s)
        start = await self._known()
        missing = await self._missing(start)
        self._found = [await self._about(*one) for one in await self._find(missing, start)]

    def put_on_record(self) -> int:
        """Store and book what was found, inside the caller's transaction; returns how many transactions it was."""
        for one in self._found:
            self._put_on_record(one, self._claims.get(one.sent.nonce))
        return len(self._found)

    # --- what is missing -------------------------------------------------------------------------------------------

    async def _require_quiet(self, copied_at_s: int) -> None:
        """Refuse while something unknown may still be mined: its nonce would be used twice."""
        left_s = copied_at_s + _EXPIRED_AFTER_S - self._head.timestamp_s
        if left_s > 0:
            raise self._refused(
                "too_soon",
                f"what was signed until this record was restored may still be mined: start again in {left_s} s.",
                left_s=left_s,
            )
        pending = await self._chain.nonce(self.sender, "pending")
        unknown = [nonce for nonce in range(self.used, pending) if not await self._offered(nonce)]
        if unknown:
            raise self._refused(
                "in_pool",
                f"{len(unknown)} transactions of {abi.checksum(self.sender)} that this record does not know wait to be "
                "mined: start again when they are.",
                nonces=unknown,
            )

    async def _offered(self, nonce: int) -> bool:
        """Whether what the pool holds at a nonce is on record: it holds one transaction for each."""
        claim = self._claims.get(nonce)
        attempts = claim.attempts if claim else ()
        return any([await self._chain.knows(attempt.hash) for attempt in attempts])

    async def _missing(self, start: int) -> set[int]:
        """Nonces used on chain by no transaction on record since the copy was made."""
        if not self.used:
            return set()
        claimed = self._store.highest_nonce(self.sender)
        first = claimed + 1 if claimed is not None else await self._nonce_at(start)
        missing = set(range(first, self.used))
        for nonce, claim in self._claims.items():
            receipts = [await self._chain.receipt(attempt.hash) for attempt in claim.attempts]
            if nonce < self.used and not any(receipts):
                missing.add(nonce)
        return missing

    async def _find(self, missing: set[int], start: int) -> list[tuple[int, Sent]]:
        """The transactions that used these nonces, each with its block, in their order."""
        found: dict[int, tuple[int, Sent]] = {}

        async def look_at(block: int) -> None:
            for sent in await self._chain.sent_in(self.sender, block):
                if sent.nonce in missing:
                    found[sent.nonce] = (block, sent)

        wanted = [Filters((self._liquidator,), (_LIQUIDATED.topic,))]
        for log in await self._chain.logs(wanted, start, self._head.number) if missing else ():
            if _LIQUIDATED.decode(log)["operator"] == self.sender:
                await look_at(log.block_number)
        spans: list[tuple[int, int, int, int]] = []
        if missing - found.keys():
            spans.append((start, int(self._head.number), await self._nonce_at(start), self.used))
        while spans:
            low, high, before, after = spans.pop()
            if not any(before <= nonce < after for nonce in missing - found.keys()):
                continue
            if high - low <= 1:
                await look_at(high)
                continue
            middle = (low + high) // 2
            at_middle = await self._nonce_at(middle)
            spans += [(low, middle, before, at_middle), (middle, high, at_middle, after)]
        lost = sorted(missing - found.keys())
        if lost:
            raise self._refused(
                "not_found",
                f"{abi.checksum(self.sender)} used {len(lost)} nonces since block {start} whose transactions are in "
                "none of the node's blocks; start again, or configure another node.",
                nonces=lost,
            )
        return [found[nonce] for nonce in sorted(found)]

    async def _known(self) -> int:
        """A block the copy had worked through: whatever it lacks was mined later."""
        cursor = self._store.newest_cursor()
        if cursor is None:
            return 0
        if (
            cursor.number <= self._head.number
            and (await self._chain.block(cursor.number)).hash == cursor.hash
        ):
            return cursor.number
        return max(0, min(cursor.number, self._head.number) - _REORG_BLOCKS)

    async def _nonce_at(self, block: int) -> int:
        try:
            return await self._chain.nonce(self.sender, hex(block))
        except RpcError as error:
            raise self._refused(
                "no_history",
                f"the node does not have the state of block {block} any more ({error}); put an archive node into "
                "chain.rpc_urls and start again.",
                block=block,
            ) from error

    # --- what it was -----------------------------------------------------------------------------------------------

    async def _about(self, block: int, sent: Sent) -> _Found:
        receipt = await self._chain.receipt(sent.hash)
        if receipt is None or receipt.block_number != block:
            raise self._refused("moved", "the chain was reorganised meanwhile; start again.", block=block)
        claim = self._claims.get(sent.nonce)
        last_block = BlockNumber(block)
        if sent.raw and sent.to and sent.data[:4] == _EXECUTE.selector:
            return await self._plan_of(sent, sent.to, receipt, claim)
        if sent.raw and (sent.to, sent.value_wei, sent.data) == (self.sender, 0, b""):
            known = claim is not None and bool(claim.attempts)
            plan_id, key = (claim.plan_id, claim.key) if claim and known else (sent.hash, _NOBODY)
            return _Found(sent, receipt, "cancel", plan_id, key, last_block, {})
        return _Found(sent, receipt, None, sent.hash, _NOBODY, last_block, {})

    async def _plan_of(
        self, sent: Sent, liquidator: Address, receipt: Receipt, claim: OpenTransaction | None
    ) -> _Found:
        """Everything a plan's calldata tells; what was expected of it is lost, what it had to earn at least is not."""
        try:
            [plan] = _EXECUTE.decode_input(sent.data)
            plan_id, _, _, _, calls, _, _, profit_token, min_profit_raw, *epochs, last_block = plan
            target, _, _, data, _ = calls[0]
        except (AdapterError, IndexError) as error:
            raise self._refused("unreadable", f"its calldata is no plan: {error}.", tx=sent.hash) from error
        scope, decimals = await self._chain.read(
            each([_PROTOCOL_OF.call(liquidator, target, data[:4]), _DECIMALS.call(profit_token)]),
            self._head.hash,
        )
        name = (
            ""
            if isinstance(scope, Reverted)
            else _PROTOCOL_OF.one(scope).rstrip(b"\0").decode("ascii", "replace")
        )
        adapter = self._adapters.get(name)
        # a takeover begins with a deposit, which is nobody's liquidation
        told = dict.fromkeys(adapter.position_of(each[3]) for each in calls) if adapter else {}
        keys = [each for each in told if each is not None]
        key = keys[0] if keys else None
        if key is None or isinstance(decimals, Reverted):
            raise self._refused(
                "unknown_protocol",
                f"transaction {hex_of(sent.hash)} is a liquidation on the protocol {name or hex_of(target)}, which "
                "the configuration does not name; add it and start again.",
                tx=sent.hash,
            )
        numbers = {
            "block": receipt.block_number - 1,  # the newest head it can have been planned at
            "liquidator": liquidator,
            "profit_token": profit_token,
            "profit_decimals": _DECIMALS.one(decimals),
            "min_profit_raw": min_profit_raw,
            "global_epoch": epochs[0],
            "protocol_epoch": epochs[1],
            "last_block": last_block,
        }
        if len(keys) > 1:
            numbers["accounts"] = [{"account": each.account} for each in keys]
        if claim and claim.attempts and claim.plan_id != plan_id:
            raise self._refused(
                "foreign_plan",
                f"transaction {hex_of(sent.hash)} took nonce {sent.nonce}, which was signed for another plan: somebody "
                "else holds the operator's key; replace it.",
                tx=sent.hash,
            )
        purpose: Purpose = "bump" if claim and claim.attempts else "plan"
        return _Found(sent, receipt, purpose, Hash(plan_id), key, BlockNumber(last_block), numbers)

    # --- how it is put on record -----------------------------------------------------------------------------------

    def _put_on_record(self, one: _Found, claim: OpenTransaction | None) -> None:
        """The entries and claims there would be, had they not been lost."""
        sent, receipt = one.sent, one.receipt
        if claim is not None and claim.plan_id != one.plan_id and not claim.attempts:
            self._store.release(claim.plan_id, self._at_s)
            claim = None
        if one.purpose is None:
            self._book_foreign(one, claim)
            return
        if claim is None:
            self._store.reserve(one.plan_id, sent.nonce, sender=self.sender, key=one.key, at_s=self._at_s)
            body = {"nonce": sent.nonce, "operator": self.sender, **one.numbers}
            self._note("intent", one, body)
        self._store.signed(
            one.plan_id,
            sent.hash,
            sent.raw,
            purpose=one.purpose,
            max_fee_wei=sent.max_fee_wei,
            gas_limit=sent.gas_limit,
            last_block=one.last_block,
            at_s=self._at_s,
        )
        self._store.sent(sent.hash, self._at_s)
        body = {
            "tx": sent.hash,
            "purpose": one.purpose,
            "nonce": sent.nonce,
            "max_fee_wei": sent.max_fee_wei,
            "gas_limit": sent.gas_limit,
            "last_block": one.last_block,
            "mined_in": receipt.block_number,
        }
        self._note("signed", one, body)

    def _book_foreign(self, one: _Found, claim: OpenTransaction | None) -> None:
        """What somebody did with the key; the plan whose nonce it took, if there was one, was dropped."""
        sent, receipt = one.sent, one.receipt
        if claim is not None:
            self._store.dropped(claim.plan_id, self._at_s)
            key = claim.key
            self._ledger.book(
                "dropped", claim.plan_id, key.protocol, key.account, {"nonce": sent.nonce}, self._at_s
            )
        body = {
            "tx": sent.hash,
            "nonce": sent.nonce,
            "to": sent.to,
            "value_wei": sent.value_wei,
            "status": receipt.status,
            "block": receipt.block_number,
            "block_hash": receipt.block_hash,
            "gas_used": receipt.gas_used,
            "gas_cost_wei": receipt.gas_used * receipt.effective_gas_price_wei + receipt.l1_fee_wei,
        }
        self._ledger.book("recovered", None, "", None, body, self._at_s)

    def _note(self, kind: str, one: _Found, body: Mapping[str, Any]) -> None:
        whole = {**body, "recovered": True}
        self._ledger.book(kind, one.plan_id, one.key.protocol, one.key.account, whole, self._at_s)
        self._log.warning("recovered", kind=kind, plan=one.plan_id, tx=one.sent.hash)

    def _refused(self, reason: str, why: str, **numbers: Any) -> LedgerError:
        """The refusal, booked, as an error to raise."""
        self._ledger.book_refusal(
            Refusal("reconcile", reason, numbers),
            protocol="",
            account=None,
            head=self._head.number,
            at_s=self._at_s,
        )
        return LedgerError(
            f"Nothing is sent until the restored record fits the chain, and it does not yet: {why}"
        )
