"""What must survive a crash besides the ledger: cursors, known accounts, and every nonce and signature.

The sender's promise is kept here: `reserve` before the key is asked, `signed` before bytes are broadcast, `settled`
from a receipt. After a crash at any point `open_transactions` says exactly which nonces may be in flight.

    reserved ──signed──▶ signed ──settled──▶ settled      (reopen: settled ──▶ signed, after a reorg)
       │                   └─────dropped──▶ dropped       (the nonce went to a transaction that is not ours)
       └─────release──▶ released                          (never signed; the nonce is free again)

Every method commits on its own; group several with `transaction()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, Table, and_, bindparam, desc, func, literal_column, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from keeper.errors import LedgerError
from keeper.store.database import Database
from keeper.store.schema import accounts, blocks, cursors, intents, transactions
from keeper.types import NO_WEI, Address, BlockNumber, Gas, Hash, PositionKey, Settlement, Wei, hex_of

Purpose = Literal["plan", "bump", "cancel"]

_OPEN: Final = ("reserved", "signed")

# What runs between a clearance and its broadcast, built once: building a statement costs more than running it. States
# are literals: SQLite plans again whenever a partial index hangs on a parameter.
_INTENT: Final = select(intents).where(intents.c.plan_id == bindparam("plan"))
_HOLDERS: Final = select(intents.c.plan_id).where(
    or_(
        intents.c.plan_id == bindparam("plan"),
        and_(
            intents.c.sender == bindparam("by"),
            intents.c.nonce == bindparam("number"),
            intents.c.state != literal_column("'released'"),
        ),
    )
)
_CLAIM: Final = {
    "sqlite": sqlite.insert(intents).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(intents).on_conflict_do_nothing(),
}
_CHANGE: Final = intents.update().where(intents.c.plan_id == bindparam("plan"))
_SIGN: Final = _CHANGE.where(
    or_(*(intents.c.state == literal_column(f"'{state}'") for state in _OPEN))
).values(state="signed")
_KEEP: Final = transactions.insert()


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last block whose logs were read."""

    number: BlockNumber
    hash: Hash


@dataclass(frozen=True, slots=True)
class Attempt:
    """One signed transaction; `last_block` is None for a cancellation, `sent_at_s` until it was handed to a node.

    `max_data_fee_wei` is the most that a chain may take for its bytes beside its gas.
    """

    hash: Hash
    purpose: Purpose
    raw: bytes
    max_fee_wei: Wei
    gas_limit: Gas
    last_block: BlockNumber | None
    signed_at_s: int
    sent_at_s: int | None
    max_data_fee_wei: Wei = NO_WEI

    @property
    def worst_case_wei(self) -> int:
        """The most it can cost."""
        return self.max_fee_wei * self.gas_limit + self.max_data_fee_wei


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """A nonce that is claimed and not yet accounted for, with everything signed for it, oldest first."""

    plan_id: Hash
    sender: Address
    nonce: int
    key: PositionKey
    state: str
    reserved_at_s: int
    attempts: tuple[Attempt, ...]

    @property
    def worst_case_wei(self) -> int:
        """The most gas it can still cost: only one of the attempts can be mined."""
        return max((attempt.worst_case_wei for attempt in self.attempts), default=0)


class Store(Database):
    """The keeper's memory on disk; see `Database.open` for opening one."""

    # --- discovery ---------------------------------------------------------------------------------------------------

    def cursor(self, protocol: str) -> Cursor | None:
        """Where the logs of a configured protocol were left off, or None at the first start."""
        with self.transaction() as connection:
            row = connection.execute(select(cursors).where(cursors.c.protocol == protocol)).one_or_none()
        return Cursor(BlockNumber(row.block_number), Hash(row.block_hash)) if row else None

    def set_cursor(self, protocol: str, number: BlockNumber, block_hash: Hash) -> None:
        """Remember that logs up to this block were read; moving back is allowed (a reorg)."""
        place = {"block_number": number, "block_hash": block_hash}
        with self.transaction() as connection:
            insert = _insert(connection, cursors).values(protocol=protocol, **place)
            connection.execute(insert.on_conflict_do_update(index_elements=["protocol"], set_=place))

    def cut_cursor(self, protocol: str, number: int) -> None:
        """Forget where logs were left off, unless it was below this block."""
        with self.transaction() as connection:
            above = cursors.c.block_number >= number
            connection.execute(cursors.delete().where(cursors.c.protocol == protocol, above))

    def blocks(self) -> list[Cursor]:
        """The followed blocks that are remembered, oldest first."""
        with self.transaction() as connection:
            rows = connection.execute(select(blocks).order_by(blocks.c.number))
            return [Cursor(BlockNumber(row.number), Hash(row.hash)) for row in rows]

    def keep_blocks(self, followed: Sequence[Cursor], first: BlockNumber, last: BlockNumber) -> None:
        """Remember followed blocks, and of all only those from `first` to `last`."""
        with self.transaction() as connection:
            if followed:
                insert = _insert(connection, blocks)
                connection.execute(
                    insert.on_conflict_do_update(
                        index_elements=["number"], set_={"hash": insert.excluded.hash}
                    ),
                    [{"number": block.number, "hash": block.hash} for block in followed],
                )
            connection.execute(blocks.delete().where(or_(blocks.c.number < first, blocks.c.number > last)))

    def newest_cursor(self) -> Cursor | None:
        """The last block that was worked through, or None before any was."""
        query = select(cursors).order_by(desc(cursors.c.block_number)).limit(1)
        with self.transaction() as connection:
            row = connection.execute(query).one_or_none()
        return Cursor(BlockNumber(row.block_number), Hash(row.block_hash)) if row else None

    def accounts(self, protocol: str) -> set[PositionKey]:
        """Every account ever seen in a protocol."""
        query = select(accounts.c.market, accounts.c.account).where(accounts.c.protocol == protocol)
        with self.transaction() as connection:
            return {PositionKey(protocol, market, account) for market, account in connection.execute(query)}

    def add_accounts(self, keys: Iterable[PositionKey]) -> None:
        """Remember accounts; known ones cost no write."""
        rows = [{"protocol": key.protocol, "market": key.market, "account": key.account} for key in keys]
        if rows:
            with self.transaction() as connection:
                connection.execute(_insert(connection, accounts).on_conflict_do_nothing(), rows)

    # --- nonces and signatures ---------------------------------------------------------------------------------------

    def reserve(self, plan_id: Hash, nonce: int, *, sender: Address, key: PositionKey, at_s: int) -> None:
        """Claim a nonce for a plan before anything is signed.

        Raises `LedgerError` when the plan was ever reserved before or the nonce is claimed.
        """
        with self.transaction() as connection:
            claim = {
                "plan_id": plan_id,
                "sender": sender,
                "nonce": nonce,
                "protocol": key.protocol,
                "market": key.market,
                "account": key.account,
                "state": "reserved",
                "reserved_at_s": at_s,
            }
            # what holds it is asked only where something does
            if connection.execute(_CLAIM[connection.dialect.name], claim).rowcount:
                return
            for row in connection.execute(_HOLDERS, {"plan": plan_id, "by": sender, "number": nonce}):
                if row.plan_id == plan_id:
                    raise LedgerError(
                        f"Plan {hex_of(plan_id)} was reserved before; every attempt needs a new plan."
                    )
                raise LedgerError(
                    f"Nonce {nonce} is claimed by plan {hex_of(row.plan_id)}; take the next one."
                )
            raise LedgerError(f"Nonce {nonce} could not be claimed for plan {hex_of(plan_id)}.")

    def release(self, plan_id: Hash, at_s: int) -> None:
        """Give back a nonce for which nothing was signed."""
        with self.transaction() as connection:
            self._expect(connection, plan_id, "released", "reserved")
            self._change(connection, plan_id, state="released", closed_at_s=at_s)

    def ended(self) -> set[Hash]:
        """Plans that are accounted for or gave their nonce back, none of which can be reserved again."""
        query = select(intents.c.plan_id).where(intents.c.state.not_in(_OPEN))
        with self.transaction() as connection:
            return set(connection.execute(query).scalars())

    def signed(
        self,
        plan_id: Hash,
        transaction_hash: Hash,
        raw: bytes,
        *,
        purpose: Purpose = "plan",
        max_fee_wei: Wei,
        gas_limit: Gas,
        last_block: BlockNumber | None,
        at_s: int,
        max_data_fee_wei: Wei = NO_WEI,
    ) -> None:
        """Keep signed bytes before they are broadcast; a bump or a cancellation adds to its plan's attempts."""
        with self.transaction() as connection:
            if connection.execute(_SIGN, {"plan": plan_id}).rowcount != 1:
                self._expect(connection, plan_id, "signed", *_OPEN)
            row = {
                "hash": transaction_hash,
                "plan_id": plan_id,
                "purpose": purpose,
                "raw": raw,
                "max_fee_wei": str(max_fee_wei),
                "gas_limit": gas_limit,
                "last_block": last_block,
                "signed_at_s": at_s,
                "max_data_fee_wei": str(max_data_fee_wei),
            }
            connection.execute(_KEEP, row)

    def sent(self, transaction_hash: Hash, at_s: int) -> None:
        """Note that signed bytes were handed to a node; the first time counts."""
        with self.transaction() as connection:
            this = transactions.c.hash == transaction_hash
            if connection.execute(select(transactions.c.hash).where(this)).one_or_none() is None:
                raise LedgerError(
                    f"Transaction {hex_of(transaction_hash)} was sent but never recorded as signed."
                )
            connection.execute(
                transactions.update().where(this, transactions.c.sent_at_s.is_(None)).values(sent_at_s=at_s)
            )

    def settled(self, settlement: Settlement, at_s: int) -> None:
        """Close a plan with its receipt, be it the plan's own transaction, a bump or the cancellation.

        The same settlement again changes nothing; another one for a settled plan raises `LedgerError` (`reopen`
        first: its receipt must have been orphaned).
        """
        with self.transaction() as connection:
            row = self._expect(connection, settlement.plan_id, "settled", "signed", "settled")
            if row.state == "settled":
                if _settlement(row) != settlement:
                    raise LedgerError(
                        f"Plan {hex_of(settlement.plan_id)} is settled otherwise; reopen it first."
                    )
                return
            own = and_(
                transactions.c.hash == settlement.transaction_hash,
                transactions.c.plan_id == settlement.plan_id,
            )
            if connection.execute(select(transactions.c.hash).where(own)).one_or_none() is None:
                raise LedgerError(
                    f"Transaction {hex_of(settlement.transaction_hash)} was never signed for plan "
                    f"{hex_of(settlement.plan_id)}; it cannot settle it."
                )
            self._change(
                connection,
                settlement.plan_id,
                state="settled",
                closed_at_s=at_s,
                settled_hash=settlement.transaction_hash,
                status=settlement.status,
                block_number=settlement.block_number,
                block_hash=settlement.block_hash,
                gas_used=settlement.gas_used,
                gas_cost_wei=str(settlement.gas_cost_wei),
                profit_raw=str(settlement.profit_raw),
            )

    def reopen(self, plan_id: Hash) -> None:
        """Forget a settlement whose block was orphaned; the plan is in flight again."""
        with self.transaction() as connection:
            self._expect(connection, plan_id, "reopened", "settled")
            outcome = dict.fromkeys(
                (
                    "closed_at_s",
                    "settled_hash",
                    "status",
                    "block_number",
                    "block_hash",
                    "gas_used",
                    "gas_cost_wei",
                )
            )
            self._change(connection, plan_id, state="signed", profit_raw=None, **outcome)

    def dropped(self, plan_id: Hash, at_s: int) -> None:
        """Close a plan whose nonce was consumed by a transaction that is not among its attempts."""
        with self.transaction() as connection:
            self._expect(connection, plan_id, "dropped", *_OPEN)
            self._change(connection, plan_id, state="dropped", closed_at_s=at_s)

    def settlement(self, plan_id: Hash) -> Settlement | None:
        """How a plan ended on chain, or None while it has not."""
        with self.transaction() as connection:
            row = self._intent(connection, plan_id)
        return _settlement(row) if row is not None and row.state == "settled" else None

    def open_transactions(self) -> list[OpenTransaction]:
        """Every claimed nonce without an outcome, lowest nonce first: what a restart has to account for."""
        query = select(intents).where(intents.c.state.in_(_OPEN)).order_by(intents.c.sender, intents.c.nonce)
        with self.transaction() as connection:
            return [self._open(connection, row) for row in connection.execute(query).all()]

    def settled_after(self, number: int) -> list[tuple[OpenTransaction, Settlement]]:
        """Plans that were settled in a block above `number`, as they were before, with how they ended."""
        query = select(intents).where(intents.c.state == "settled", intents.c.block_number > number)
        with self.transaction() as connection:
            rows = connection.execute(query.order_by(intents.c.sender, intents.c.nonce)).all()
            return [(self._open(connection, row), _settlement(row)) for row in rows]

    def highest_nonce(self, sender: Address) -> int | None:
        """The highest nonce ever claimed by a sender and not released."""
        query = select(func.max(intents.c.nonce)).where(
            intents.c.sender == sender, intents.c.state != "released"
        )
        with self.transaction() as connection:
            nonce: int | None = connection.execute(query).scalar_one()
        return nonce

    def given_back(self, sender: Address) -> set[int]:
        """Nonces a sender released and did not claim again."""
        query = select(intents.c.nonce, intents.c.state).where(intents.c.sender == sender)
        with self.transaction() as connection:
            rows = connection.execute(query).all()
        held = {row.nonce for row in rows if row.state != "released"}
        return {row.nonce for row in rows} - held

    def senders(self) -> set[Address]:
        """Everybody who ever claimed a nonce: the operators, past and present."""
        with self.transaction() as connection:
            return set(connection.execute(select(intents.c.sender).distinct()).scalars())

    def in_flight_wei(self) -> int:
        """The most gas everything open can still cost."""
        return sum(transaction.worst_case_wei for transaction in self.open_transactions())

    def _intent(self, connection: Connection, plan_id: Hash) -> Row[Any] | None:
        return connection.execute(_INTENT, {"plan": plan_id}).one_or_none()

    def _expect(self, connection: Connection, plan_id: Hash, verb: str, *states: str) -> Row[Any]:
        row = self._intent(connection, plan_id)
        if row is None:
            raise LedgerError(f"Plan {hex_of(plan_id)} cannot be {verb}: it was never reserved.")
        if row.state not in states:
            raise LedgerError(f"Plan {hex_of(plan_id)} cannot be {verb}: it is {row.state}.")
        return row

    def _change(self, connection: Connection, plan_id: Hash, **values: Any) -> None:
        connection.execute(_CHANGE, {"plan": plan_id, **values})

    def _open(self, connection: Connection, row: Row[Any]) -> OpenTransaction:
        return OpenTransaction(
            row.plan_id,
            row.sender,
            row.nonce,
            PositionKey(row.protocol, row.market, row.account),
            row.state,
            row.reserved_at_s,
            self._attempts(connection, row.plan_id),
        )

    def _attempts(self, connection: Connection, plan_id: Hash) -> tuple[Attempt, ...]:
        query = select(transactions).where(transactions.c.plan_id == plan_id)
        # by fee and not by time: each attempt offers more than the one before, whatever the clock said
        rows: Sequence[Row[Any]] = sorted(
            connection.execute(query).all(), key=lambda row: int(row.max_fee_wei)
        )
        return tuple(
            Attempt(
                row.hash,
                row.purpose,
                row.raw,
                Wei(int(row.max_fee_wei)),
                Gas(row.gas_limit),
                row.last_block,
                row.signed_at_s,
                row.sent_at_s,
                Wei(int(row.max_data_fee_wei or 0)),
            )
            for row in rows
        )


def _insert(connection: Connection, table: Table) -> Any:
    """An INSERT that can say ON CONFLICT, which SQLite and Postgres spell alike but SQLAlchemy keeps apart."""
    dialect = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[connection.dialect.name]
    return dialect(table)


def _settlement(row: Row[Any]) -> Settlement:
    return Settlement(
        plan_id=row.plan_id,
        transaction_hash=row.settled_hash,
        status=row.status,
        block_number=row.block_number,
        block_hash=row.block_hash,
        gas_used=row.gas_used,
        gas_cost_wei=Wei(int(row.gas_cost_wei)),
        profit_raw=int(row.profit_raw),
    )
