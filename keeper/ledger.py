"""The record: append-only, hash-chained, and the only source of what was earned, spent and refused.

Every entry's hash is SHA-256 over the previous entry's hash (32 bytes; zeros before the first) followed by the
entry's canonical JSON, so changing, removing or inserting one is found by `verify`. What a chain cannot show is a
tail cut off whole: note `tip()` somewhere else to be able to prove that.

How an entry is written down is `keeper.store.canonical`; secrets and URL keys are scrubbed there as in logs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, desc, select

from keeper import abi
from keeper.errors import LedgerError
from keeper.store import Store
from keeper.store.canonical import GENESIS, canonical, digest, plain, recomputed
from keeper.store.schema import entries
from keeper.types import Address, Entry, Hash, Refusal, hex_of

KINDS: Final = frozenset(
    {
        "decision",  # a plan was chosen
        "refusal",  # a stage refused; book with `book_refusal`
        "intent",  # a nonce was reserved
        "signed",
        "sent",
        "not_taken",  # a node refused the signed bytes
        "settled",  # mined and succeeded
        "reverted",  # mined and reverted
        "lost_race",  # someone else was first; costs gas if it was mined
        "cancelled",  # a cancellation was mined
        "dropped",  # the nonce went to a transaction that is not ours
        "reorged",  # the block of this plan's outcome was orphaned: the outcome no longer counts
        "pause",
        "resume",
        "warning",
        "started",
        "stopped",
    }
)

# What an outcome must state, so that no sum below has to guess; `profit_raw` is in units of `profit_token`.
_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "settled": ("gas_cost_wei", "gas_cost_usd_e8", "profit_token", "profit_raw"),
    "reverted": ("gas_cost_wei", "gas_cost_usd_e8"),
    "cancelled": ("gas_cost_wei", "gas_cost_usd_e8"),
    "lost_race": (),
}
_OUTCOMES: Final = tuple(_REQUIRED)
_TIP: Final = "tip of the ledger"
_DECISIVE: Final = frozenset({*_OUTCOMES, "reorged", "resume"})
_AMOUNTS: Final = ("gas_cost_wei", "gas_cost_usd_e8", "profit_raw", "profit_usd_e8")
_WORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}|0x[0-9a-fA-F]{40}")
_NEWS_AFTER_S: Final = 600  # a refusal not seen for this long is news again


@dataclass(frozen=True, slots=True)
class Booked(Entry):
    """An entry as it stands in the ledger, with its place in the hash chain."""

    prev_hash: Hash
    hash: Hash


@dataclass(slots=True)
class _Standing:
    """Refusals an account is under: signature → (head, time) last seen; and how many repeats went unbooked."""

    signatures: dict[tuple[str, ...], tuple[int, int]] = field(default_factory=dict)
    head: int = -1
    previous_head: int = -1
    suppressed: int = 0


_Account = tuple[str, str]  # protocol, checksummed account


class Ledger:
    """Writes and reads the entries of a store; opening a read-only store gives a read-only ledger."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._standing: dict[_Account, _Standing] = {}
        # How many entries were booked here that the sums below depend on: unchanged, they can only have aged.
        self.outcomes_booked = 0
        # After an undone transaction nobody knows which refusals were booked: the next of each is booked again.
        store.on_rollback(self._standing.clear)

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
        the first two, `lost_race` too if it was mined; `settled` may add profit_usd_e8 (all non-negative integers).
        Repeats that `book_refusal` suppressed for the account are stated as `suppressed_refusals`; a `stopped` entry
        states all that are left. Raises `LedgerError` for anything that cannot be recorded.
        """
        if kind not in KINDS:
            raise LedgerError(
                f"The ledger knows no entry of kind {kind!r}; the kinds are {', '.join(sorted(KINDS))}."
            )
        complete = dict(body)
        _check_outcome(kind, complete)
        who = (protocol, abi.checksum(account) if account is not None else "")
        repeats = self._repeats(kind, who)
        if repeats:
            complete["suppressed_refusals"] = repeats
        booked = self._append(kind, plan_id, who, complete, at_s)
        self.outcomes_booked += kind in _DECISIVE
        if kind == "stopped":
            self._standing.clear()
        elif kind != "refusal":
            self._standing.pop(who, None)  # something happened to it: the same refusal afterwards is news
        elif who in self._standing:
            self._standing[who].suppressed = 0
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
        """Append a refusal unless it only repeats what is on record; None when suppressed.

        The rule: refusals of one account are the same while market, stage, reason and the kind of their numbers are:
        the numbers' names, and among them the values that are words, booleans or addresses. One is booked when it
        first appears and suppressed while it keeps appearing at successive heads, whatever its amounts; several that
        alternate within one head each count on their own. It is booked again after a head at which the account was
        refused only otherwise, after any other entry of the account, after ten minutes of silence, and after a
        restart. The number of suppressed repeats is carried by the account's next entry as `suppressed_refusals`.
        """
        who = (protocol, abi.checksum(account) if account is not None else "")
        standing = self._standing.setdefault(who, _Standing())
        if head != standing.head:
            standing.previous_head, standing.head = standing.head, head
        signature = _signature(refusal, market)
        seen_head, seen_s = standing.signatures.get(signature, (-1, at_s))
        repeated = seen_head >= 0 and seen_head in (standing.head, standing.previous_head)
        if repeated and at_s - seen_s <= _NEWS_AFTER_S:
            standing.signatures[signature] = (head, at_s)
            standing.suppressed += 1
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
        standing.signatures[signature] = (head, at_s)
        return booked

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
    ) -> list[Booked]:
        """Entries that match everything given, newest first; page on with `before_seq`, all of them if limit None."""
        kinds = (kind,) if isinstance(kind, str) else kind
        conditions: list[ColumnElement[bool] | None] = [
            entries.c.kind.in_(kinds) if kinds is not None else None,
            entries.c.account == abi.checksum(account) if account is not None else None,
            entries.c.plan_id == hex_of(plan) if plan is not None else None,
            entries.c.protocol == protocol if protocol is not None else None,
            entries.c.at_s >= since_s if since_s is not None else None,
            entries.c.seq < before_seq if before_seq is not None else None,
        ]
        query = select(entries).where(*(condition for condition in conditions if condition is not None))
        return self._booked(query.order_by(desc(entries.c.seq)).limit(limit))

    def entry(self, seq: int) -> Booked | None:
        """One entry by its number."""
        found = self._booked(select(entries).where(entries.c.seq == seq))
        return found[0] if found else None

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
        loss = 0
        for entry in self._outcomes(since_s):
            cost = int(entry.body.get("gas_cost_usd_e8", 0))
            earned = int(entry.body.get("profit_usd_e8", cost)) if entry.kind == "settled" else 0
            loss += max(0, cost - earned)
        return loss

    def consecutive_reverts(self) -> int:
        """Reverted transactions since the last settled one.

        Lost races neither count nor reset. A `resume` entry whose body says `"reverts_cleared": true` resets: an
        operator looked.
        """
        reverts = 0
        query = select(entries).where(entries.c.kind.in_(("settled", "reverted", "resume", "reorged")))
        orphaned: set[str] = set()
        with self._store.transaction() as connection:
            for row in connection.execute(
                query.order_by(desc(entries.c.seq)).execution_options(yield_per=50)
            ):
                if row.kind == "reorged":
                    orphaned.add(row.plan_id)
                elif row.kind == "resume":
                    if _read(row).body.get("reverts_cleared") is True:
                        break
                elif row.plan_id in orphaned:
                    orphaned.discard(row.plan_id)
                elif row.kind == "settled":
                    break
                else:
                    reverts += 1
        return reverts

    def tip(self) -> tuple[int, Hash]:
        """Number and hash of the newest entry; (0, zeros) when there is none."""
        with self._store.transaction() as connection:
            row = connection.execute(_NEWEST).one_or_none()
        return (row.seq, Hash(bytes.fromhex(row.hash))) if row else (0, Hash(GENESIS))

    def verify(self) -> int | None:
        """The number of the first entry that is missing, altered or out of line; None when the chain is whole."""
        expected_seq, previous = 1, GENESIS
        with self._store.transaction() as connection:
            query = select(entries).order_by(entries.c.seq).execution_options(yield_per=1000)
            for row in connection.execute(query):
                actual = recomputed(row, previous)
                if row.seq != expected_seq or actual is None or actual.hex() != row.hash:
                    return min(expected_seq, int(row.seq))
                expected_seq, previous = expected_seq + 1, actual
        return None

    def _append(
        self, kind: str, plan_id: Hash | None, who: _Account, body: Mapping[str, Any], at_s: int
    ) -> Booked:
        if type(at_s) is not int:
            raise LedgerError(f"An entry's time must be whole seconds, not {at_s!r}.")
        protocol, account = who
        written: dict[str, Any] = plain(body, "body")
        plan = hex_of(plan_id) if plan_id is not None else ""
        with self._store.transaction() as connection:
            seq, prev_hash = self._store.remembered.get(_TIP) or self.tip()
            seq += 1
            this_hash = Hash(digest(prev_hash, seq, at_s, kind, plan, protocol, account, written))
            row = {
                "seq": seq,
                "at_s": at_s,
                "kind": kind,
                "plan_id": plan,
                "protocol": protocol,
                "account": account,
                "body": canonical(written),
                "prev_hash": prev_hash.hex(),
                "hash": this_hash.hex(),
            }
            connection.execute(_INSERT, row)
            self._store.remembered[_TIP] = (seq, this_hash)
        return Booked(seq, at_s, kind, plan, protocol, account, written, prev_hash, this_hash)

    def _repeats(self, kind: str, who: _Account) -> int:
        if kind == "stopped":
            return sum(standing.suppressed for standing in self._standing.values())
        standing = self._standing.get(who)
        return standing.suppressed if standing else 0

    def _outcomes(self, since_s: int) -> list[Booked]:
        """Mined outcomes that still stand: not followed by a `reorged` entry of the same plan."""
        last_reorg: dict[str, int] = {}
        for entry in reversed(self.entries(None, kind="reorged", since_s=since_s)):
            last_reorg[entry.plan_id] = entry.seq
        outcomes = self.entries(None, kind=_OUTCOMES, since_s=since_s)
        return [entry for entry in outcomes if entry.seq > last_reorg.get(entry.plan_id, 0)]

    def _booked(self, query: Select[Any]) -> list[Booked]:
        with self._store.transaction() as connection:
            return [_read(row) for row in connection.execute(query)]


_INSERT: Final = entries.insert()
_NEWEST: Final = select(entries.c.seq, entries.c.hash).order_by(desc(entries.c.seq)).limit(1)


def _read(row: Row[Any]) -> Booked:
    try:
        body = json.loads(row.body)
        hashes = Hash(bytes.fromhex(row.prev_hash)), Hash(bytes.fromhex(row.hash))
    except ValueError as error:
        raise LedgerError(
            f"Entry {row.seq} of the ledger cannot be read; run `keeper ledger verify` and restore a backup."
        ) from error
    return Booked(row.seq, row.at_s, row.kind, row.plan_id, row.protocol, row.account, body, *hashes)


def _check_outcome(kind: str, body: Mapping[str, Any]) -> None:
    for name in _REQUIRED.get(kind, ()):
        if name not in body:
            raise LedgerError(f"A {kind} entry must state {name}; add it to the body.")
    for name in _AMOUNTS if kind in _REQUIRED else ():
        value = body.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise LedgerError(f"{name} of a {kind} entry is {value!r}; it must be a whole number, 0 or more.")
    token = body.get("profit_token", bytes(20))
    if not isinstance(token, bytes) or len(token) != 20:
        raise LedgerError(f"profit_token of a {kind} entry is {token!r}; it must be a 20-byte address.")


def _signature(refusal: Refusal, market: str) -> tuple[str, ...]:
    shape = [
        f"{name}={value!r}" if _is_identity(value) else name
        for name, value in sorted(refusal.numbers.items())
    ]
    return (market, refusal.stage, refusal.reason, *shape)


def _is_identity(value: Any) -> bool:
    """Whether a value says what is refused (a token, a scope) rather than how much, when or in which words."""
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return isinstance(value, bool) or (isinstance(value, bytes) and len(value) == 20)
