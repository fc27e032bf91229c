"""The record: append-only, hash-chained, and the only source of what was earned, spent and refused.

Every entry's hash is SHA-256 over the previous entry's hash (32 bytes; zeros before the first) followed by the
entry's canonical JSON, so changing, removing or inserting one is found by `verify`. Heads of a Merkle tree over these
hashes find a tail cut off whole, and prove to others what the ledger holds (`keeper.ledger.heads`).

How an entry is written down is `keeper.store.canonical`; secrets and URL keys are scrubbed there as in logs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, desc, select

from keeper import abi
from keeper.errors import LedgerError
from keeper.ledger import heads, outcomes
from keeper.ledger.entry import Booked, read
from keeper.ledger.heads import Fault, Proof, TreeHead
from keeper.ledger.refusals import Refusals, Who
from keeper.store import Store
from keeper.store.canonical import GENESIS, canonical, plain, sealed
from keeper.store.schema import entries
from keeper.types import ZERO_ADDRESS, Address, Hash, Refusal, hex_of

__all__ = ["KINDS", "Booked", "Fault", "Ledger", "Proof", "TreeHead"]

KINDS: Final = frozenset(
    {
        "decision",  # a plan was chosen
        "refusal",  # a stage refused; book with `book_refusal`
        "intent",  # a nonce was reserved
        "signed",
        "sent",
        "not_taken",  # a node refused the signed bytes
        "joined",  # an account is in the plan of another one's intent
        "settled",  # mined and succeeded
        "liquidated",  # of a settled plan of several accounts: this one was
        "skipped",  # of such a plan: this one was not, for its call failed
        "reverted",  # mined and reverted
        "lost_race",  # someone else was first; costs gas if it was mined
        "cancelled",  # a cancellation was mined
        "relayed",  # a guardian's signed pause was mined, or reverted
        "dropped",  # the nonce went to a transaction that is not ours
        "reorged",  # the block of this plan's outcome was orphaned: the outcome no longer counts
        "recovered",  # a transaction of the operator that is no plan's was found on chain; costs gas
        "reconciled",  # the chain has no transaction any more that a copy of the record did not know
        "bad_debt",  # an account owes more than it has, or no longer does, or some of it was written off
        "correction",  # an earlier entry's amounts are others; see `keeper.ledger.outcomes`
        "pause",
        "resume",
        "tripped",  # a breaker stops something; see `keeper.breakers`
        "cleared",  # it no longer does, by itself or by a person
        "watched",  # contracts are as they may be: as they were first seen, or as a person acknowledged them
        "warning",
        "started",
        "stopped",
    }
)

_TIP: Final = "tip of the ledger"
_HEADED: Final = "entries under a head"
_OF_ONE: Final = ("joined", "liquidated", "skipped", "refusal")  # said of one account of a plan
_DECISIVE: Final = frozenset({*outcomes.OUTCOMES, "correction", "reorged", "cleared", "resume"})


class Ledger:
    """Writes and reads the entries of a store; opening a read-only store gives a read-only ledger."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._refusals = Refusals()
        # How many entries were booked here that the sums below and the ramp (`keeper.guard`) depend on: unchanged, they
        # can only have aged.
        self.outcomes_booked = 0
        # After an undone transaction nobody knows which refusals were booked: the next of each is booked again.
        store.on_rollback(self._refusals.forget)

    # --- writing -----------------------------------------------------------------------------------------------------

    def book(
        self,
        kind: str,
        plan_id: Hash | None,
        protocol: str,
        account: Address | None,
        body: Mapping[str, Any],
        at_s: int,
    ) -> Booked:
        """Append one entry and commit it; `plan_id`, `protocol` and `account` are None or empty where none is meant.

        `settled` must state gas_cost_wei, gas_cost_usd_e8, profit_token and profit_raw, `reverted` and `cancelled`
        the first two, `recovered` the first, `lost_race` as `reverted` if it was mined; `settled` may add
        profit_usd_e8 (all non-negative integers). The zero address stands for an account that is not known.
        Repeats that `book_refusal` suppressed for the account are stated as `suppressed_refusals`; a `stopped` entry
        states all that are left. Raises `LedgerError` for anything that cannot be recorded.
        """
        if kind not in KINDS:
            raise LedgerError(
                f"The ledger knows no entry of kind {kind!r}; the kinds are {', '.join(sorted(KINDS))}."
            )
        complete = dict(body)
        outcomes.check(kind, complete)
        if kind == "correction":
            outcomes.check_correction(complete, self._existing(complete.get("corrects")))
        who = (protocol, "" if account in (None, ZERO_ADDRESS) else abi.checksum(account))
        repeats = self._refusals.all_suppressed() if kind == "stopped" else self._refusals.suppressed(who)
        if repeats:
            complete["suppressed_refusals"] = repeats
        booked = self._append(kind, plan_id, who, complete, at_s)
        self.outcomes_booked += kind in _DECISIVE
        if kind == "stopped":
            self._refusals.forget()
        elif kind == "refusal":
            self._refusals.stated(who)
        else:
            self._refusals.over(who)
        return booked

    def book_refusal(
        self,
        refusal: Refusal,
        *,
        protocol: str,
        account: Address | None,
        head: int,
        at_s: int,
        market: str = "",
        plan_id: Hash | None = None,
    ) -> Booked | None:
        """Append a refusal unless it only repeats what is on record (`keeper.ledger.refusals`); None when suppressed.

        The number of suppressed repeats is carried by the account's next entry as `suppressed_refusals`.
        """
        who = (protocol, abi.checksum(account) if account is not None else "")
        if self._refusals.repeats(who, refusal, market, head, at_s):
            return None
        body = {
            "stage": refusal.stage,
            "reason": refusal.reason,
            "head": head,
            "numbers": dict(refusal.numbers),
        }
        if market:
            body["market"] = market
        booked = self.book("refusal", plan_id, protocol, account, body, at_s)
        self._refusals.on_record(who, refusal, market, head, at_s)
        return booked

    def correct(self, seq: int, reason: str, amounts: Mapping[str, int], at_s: int) -> Booked:
        """Append a correction of entry `seq`: the amounts that are right, and why (`keeper.ledger.outcomes`)."""
        about = self._existing(seq)
        plan_id = Hash(bytes.fromhex(about.plan_id[2:])) if about.plan_id else None
        account = abi.address(about.account) if about.account else None
        body = {"corrects": seq, "reason": reason, **amounts}
        return self.book("correction", plan_id, about.protocol, account, body, at_s)

    def checkpoint(self, at_s: int) -> TreeHead | None:
        """Store the head of everything booked so far, unless it is stored; for when nothing is waiting."""
        last_seq, _ = self._store.remembered.get(_TIP) or self.tip()
        if self._store.remembered.get(_HEADED) == last_seq:
            return None
        head = heads.checkpoint(self._store, at_s)
        self._store.remembered[_HEADED] = last_seq
        return head

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Commit everything booked inside at once: a head with many refusals then costs one disk flush."""
        with self._store.transaction():
            yield

    # --- reading -----------------------------------------------------------------------------------------------------

    def entries(
        self,
        limit: int | None = 100,
        kind: str | Sequence[str] | None = None,
        account: Address | None = None,
        plan: Hash | None = None,
        *,
        protocol: str | None = None,
        since_s: int | None = None,
        before_seq: int | None = None,
        after_seq: int | None = None,
    ) -> list[Booked]:
        """Entries that match everything given, newest first; page on with `before_seq`, all of them if limit None."""
        query = _matching(kind, account, plan, protocol, since_s, None)
        if after_seq is not None:
            query = query.where(entries.c.seq > after_seq)
        if before_seq is not None:
            query = query.where(entries.c.seq < before_seq)
        return self._booked(query.order_by(desc(entries.c.seq)).limit(limit))

    def walk(
        self, kind: str | None = None, *, since_s: int | None = None, until_s: int | None = None
    ) -> Iterator[Booked]:
        """Entries from `since_s` on and before `until_s`, oldest first, as they are at the first; few at a time."""
        query = _matching(kind, None, None, None, since_s, until_s).order_by(entries.c.seq)
        with self._store.transaction() as connection:
            for row in connection.execute(query.execution_options(yield_per=500)):
                yield read(row)

    def entry(self, seq: int) -> Booked | None:
        """One entry by its number."""
        found = self._booked(select(entries).where(entries.c.seq == seq))
        return found[0] if found else None

    def history(self, account: Address, limit: int | None = 100) -> list[Booked]:
        """All that is on record of an account, newest first: also of the plans of others that it joined."""
        mine = entries.c.account == abi.checksum(account)
        plans = select(entries.c.plan_id).where(mine, entries.c.kind == "joined")
        shared = entries.c.plan_id.in_(plans) & entries.c.kind.not_in(_OF_ONE)
        return self._booked(select(entries).where(mine | shared).order_by(desc(entries.c.seq)).limit(limit))

    def refusals(self, account: Address, limit: int | None = 100) -> list[Booked]:
        """Why an account was not liquidated, newest first."""
        return self.entries(limit, kind="refusal", account=account)

    def gross_profit_raw(self, token: Address) -> int:
        """Everything the treasury gained in `token`, as the contract's events said, less what was orphaned."""
        mine = [e for e in self._outcomes(0) if e.body.get("profit_token") == abi.checksum(token)]
        return sum(int(entry.body["profit_raw"]) for entry in mine)

    def gas_spent_wei(self, since_s: int) -> int:
        """Gas paid for mined transactions since `since_s`; what is still in flight is `Store.in_flight_wei`."""
        return sum(int(entry.body.get("gas_cost_wei", 0)) for entry in self._outcomes(since_s))

    def loss_usd_e8(self, since_s: int) -> int:
        """USD (8 decimals) lost since `since_s`, never offset by gains.

        All gas of a reverted, cancelled or lost transaction; of a settled one, the gas beyond `profit_usd_e8` where
        that was stated (otherwise nothing: the contract enforced a minimum profit that covered the planned gas).
        """
        return sum(map(outcomes.loss_usd_e8, self._outcomes(since_s)))

    def budget_spent_usd_e8(self, since_s: int) -> int:
        """Of that, what plans lost since `since_s` that were allowed to, on the budget for bad debt."""
        on_budget = (each for each in self._outcomes(since_s) if each.body.get("budget") == outcomes.BAD_DEBT)
        return sum(map(outcomes.loss_usd_e8, on_budget))

    def consecutive_reverts(self) -> int:
        """Reverted transactions since the last settled one.

        Lost races neither count nor reset, and reverts that a stranger's market is at fault for do not count. That a
        person cleared the breaker of this name resets: somebody looked.
        """
        reverts = 0
        query = select(entries).where(entries.c.kind.in_(("settled", "reverted", "cleared", "reorged")))
        orphaned: set[str] = set()
        with self._store.transaction() as connection:
            for row in connection.execute(
                query.order_by(desc(entries.c.seq)).execution_options(yield_per=50)
            ):
                if row.kind == "reorged":
                    orphaned.add(row.plan_id)
                elif row.kind == "cleared":
                    if read(row).body.get("breaker") == "reverts_in_a_row":
                        break
                elif row.plan_id in orphaned:
                    orphaned.discard(row.plan_id)
                elif row.kind == "settled":
                    break
                elif outcomes.STRANGERS_MARKET not in read(row).body:
                    reverts += 1
        return reverts

    def tip(self) -> tuple[int, Hash]:
        """Number and hash of the newest entry; (0, zeros) when there is none."""
        with self._store.transaction() as connection:
            row = connection.execute(_NEWEST).one_or_none()
        return (row.seq, Hash(bytes.fromhex(row.hash))) if row else (0, Hash(GENESIS))

    def verify(self, kept: TreeHead | None = None) -> Fault | None:
        """The first entry that is missing, altered, out of line or gone from under a head; None when all is whole.

        `kept` is a head that was noted elsewhere.
        """
        return heads.verify(self._store, kept)

    def _append(
        self, kind: str, plan_id: Hash | None, who: Who, body: Mapping[str, Any], at_s: int
    ) -> Booked:
        if type(at_s) is not int:
            raise LedgerError(f"An entry's time must be whole seconds, not {at_s!r}.")
        protocol, account = who
        written: dict[str, Any] = plain(body, "body")
        text = canonical(written)
        plan = hex_of(plan_id) if plan_id is not None else ""
        with self._store.transaction() as connection:
            seq, prev_hash = self._store.remembered.get(_TIP) or self._whole_tip()
            seq += 1
            this_hash = Hash(sealed(prev_hash, seq, at_s, kind, plan, protocol, account, text))
            row = {
                "seq": seq,
                "at_s": at_s,
                "kind": kind,
                "plan_id": plan,
                "protocol": protocol,
                "account": account,
                "body": text,
                "prev_hash": prev_hash.hex(),
                "hash": this_hash.hex(),
            }
            connection.execute(_INSERT, row)
            self._store.remembered[_TIP] = (seq, this_hash)
        return Booked(seq, at_s, kind, plan, protocol, account, written, prev_hash, this_hash)

    def _whole_tip(self) -> tuple[int, Hash]:
        """Where the next entry goes; a ledger whose end was cut off is not grown over."""
        tip = self.tip()
        heads.require_all(self._store, tip[0])
        return tip

    def _existing(self, seq: Any) -> Booked:
        found = self.entry(seq) if type(seq) is int else None
        if found is None:
            raise LedgerError(
                f"There is no entry {seq!r} in the ledger to correct; `keeper ledger list` shows them."
            )
        return found

    def _outcomes(self, since_s: int) -> list[Booked]:
        """Mined outcomes that stand, as corrected."""
        return outcomes.standing(
            self.entries(None, kind=outcomes.OUTCOMES, since_s=since_s),
            self.entries(None, kind="reorged", since_s=since_s),
            self.entries(None, kind="correction"),
        )

    def _booked(self, query: Select[Any]) -> list[Booked]:
        with self._store.transaction() as connection:
            return [read(row) for row in connection.execute(query)]


_INSERT: Final = entries.insert()
_NEWEST: Final = select(entries.c.seq, entries.c.hash).order_by(desc(entries.c.seq)).limit(1)


def _matching(
    kind: str | Sequence[str] | None,
    account: Address | None,
    plan: Hash | None,
    protocol: str | None,
    since_s: int | None,
    until_s: int | None,
) -> Select[Any]:
    kinds = (kind,) if isinstance(kind, str) else kind
    conditions: list[ColumnElement[bool] | None] = [
        entries.c.kind.in_(kinds) if kinds is not None else None,
        entries.c.account == abi.checksum(account) if account is not None else None,
        entries.c.plan_id == hex_of(plan) if plan is not None else None,
        entries.c.protocol == protocol if protocol is not None else None,
        entries.c.at_s >= since_s if since_s is not None else None,
        entries.c.at_s < until_s if until_s is not None else None,
    ]
    return select(entries).where(*(condition for condition in conditions if condition is not None))
