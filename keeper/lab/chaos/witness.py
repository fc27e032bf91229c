"""The promises of the record, watched from outside while the keeper runs and proved from chain and file afterwards.

What left the keeper is compared with its record at the moment it arrives at the node, before the node sees it; what
the record once said is remembered across deaths. The rest is read when it is over, most of it by the judge.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keeper import assembly
from keeper.abi import keccak
from keeper.lab.judge import Verdict, judge
from keeper.lab.judge.evidence import Evidence
from keeper.lab.judge.record import read_record
from keeper.lab.rig import Rig
from keeper.lab.tokens import balance_of
from keeper.lab.world import Lab
from keeper.ledger import Ledger
from keeper.store import Store, sqlite_path
from keeper.types import Address, hex_of

# What must hold whatever went wrong, in words, by name.
INVARIANTS: Final[Mapping[str, str]] = {
    "executed_twice": "no plan is executed twice",
    "nonce_reused": "no nonce is signed for two plans",
    "recorded_first": "no transaction reaches a node before its signature is on record",
    "unrecorded": "no transaction of the operator is on chain without a signed entry",
    "entry_lost": "no entry that was ever there is gone or changed",
    "verified": "the ledger's hash chain is whole",
    "profit": "booked gross profit is what the treasury gained",
    "in_flight": "nothing is left in flight",
    "books": "every booked figure is the chain's",
    "while_paused": "nothing was liquidated while paused",
    "left": "nothing profitable is left",
    "works_again": "the keeper works again within a minute",
    "explained": "it ends and refuses only for reasons that are listed",
    "flat": "memory and file handles stay flat",
}
_TWICE: Final = frozenset({"executed_twice", "settled_twice", "liquidated_twice"})


@dataclass(frozen=True, slots=True)
class Breach:
    """An invariant that does not hold, and how."""

    invariant: str
    detail: str

    def __str__(self) -> str:
        return f"{INVARIANTS[self.invariant]}: NOT so: {self.detail}"


@dataclass(slots=True)
class Witness:
    """Sees one run of a rig; `breaches` grows while it runs."""

    lab: Lab
    rig: Rig
    record: Path
    profit: Address
    first_block: int
    treasury_raw: int
    breaches: list[Breach] = field(default_factory=list)
    handed_in: int = 0
    _entries: list[str] = field(default_factory=list)

    @classmethod
    async def begin(cls, lab: Lab, rig: Rig) -> Witness:
        """Before the keeper is started for the first time."""
        settings = assembly.settings(rig.config)
        head = await lab.node.head()
        return cls(
            lab=lab,
            rig=rig,
            record=sqlite_path(settings.store.url),
            profit=settings.profit.token,
            first_block=head.number + 1,
            treasury_raw=await _treasury_raw(lab),
        )

    def see(self, raw: bytes) -> None:
        """A transaction that was just handed to a node: its signature must be on record by now."""
        self.handed_in += 1
        name = hex_of(keccak(raw))
        if not self._asked("SELECT 1 FROM entries WHERE kind = 'signed' AND body LIKE ?", f"%{name}%"):
            self.breaches.append(Breach("recorded_first", f"{name} was broadcast before it was recorded"))

    def look(self) -> None:
        """Compare the record with what it said before, and remember what it says now."""
        hashes = [entry.hash for entry in read_record(self.record)]
        for seq, (before, now) in enumerate(zip(self._entries, hashes, strict=False), 1):
            if before != now:
                self.breaches.append(Breach("entry_lost", f"entry {seq} was {before} and is {now}"))
                break
        if len(hashes) < len(self._entries):
            self.breaches.append(
                Breach("entry_lost", f"{len(self._entries)} entries were there and {len(hashes)} are")
            )
        self._entries = hashes

    def outcomes(self) -> Counter[str]:
        """How many entries of each kind the record has."""
        return Counter(dict(self._asked("SELECT kind, count(*) FROM entries GROUP BY kind")))

    def in_flight(self) -> int:
        """How many nonces the record has claimed and not accounted for."""
        return len(self._asked("SELECT 1 FROM intents WHERE state IN ('reserved', 'signed')"))

    def followed(self) -> int:
        """The last block whose logs the record says were read."""
        [(number,)] = self._asked("SELECT max(block_number) FROM cursors") or [(None,)]
        return -1 if number is None else int(number)

    async def conclude(self, *, withheld: bool = False, forgotten: bool = False) -> Verdict:
        """Prove everything else from the finished chain and record; what does not hold is added to `breaches`.

        With `withheld` the only node kept logs back: accounts the keeper never heard of may then be left. With
        `forgotten` the chain has lost the states of old blocks, without which the judge cannot explain what was
        booked: it is then asked about accounts and pauses alone.
        """
        self.look()
        self._nonces()
        known = self._ledger(await _treasury_raw(self.lab) - self.treasury_raw)
        await self._transactions()
        verdict = await judge(self._unbooked() if forgotten else self.rig.config, self.lab.anvil.url)
        for difference in verdict.differences if not forgotten else ():
            name = "executed_twice" if difference.check in _TWICE else "books"
            self.breaches.append(Breach(name, str(difference)))
        self.breaches += [Breach("while_paused", str(one)) for one in verdict.paused_liquidations]
        heard_of = [one for one in verdict.left if one.account in known or not withheld]
        self.breaches += [Breach("left", str(one)) for one in heard_of]
        return verdict

    def _unbooked(self) -> Path:
        """The configuration with a record in which nothing was ever booked."""
        path = self.rig.folder / "unbooked.toml"
        text = re.sub(r'(?m)^url = "sqlite:.*$', 'url = "sqlite:///unbooked.db"', self.rig.config.read_text())
        path.write_text(text)
        return path

    def _nonces(self) -> None:
        plans: dict[int | None, str] = {}
        for entry in read_record(self.record):
            if entry.kind == "signed":
                plan = plans.setdefault(entry.integer("nonce"), entry.plan_id)
                if plan != entry.plan_id:
                    text = f"nonce {entry.integer('nonce')} was signed for {plan} and for {entry.plan_id}"
                    self.breaches.append(Breach("nonce_reused", text))

    def _ledger(self, gained_raw: int) -> set[Address]:
        """Check sums, hash chain and what is open; the accounts the keeper knows of."""
        if not self.record.exists():
            return set()
        with Store.open(f"sqlite:///{self.record}", read_only=True) as store:
            ledger = Ledger(store)
            booked_raw, broken = ledger.gross_profit_raw(self.profit), ledger.verify()
            open_ = store.open_transactions()
            names = [protocol.name for protocol in assembly.settings(self.rig.config).protocols]
            known = {key.account for name in names for key in store.accounts(name)}
        if broken is not None:
            self.breaches.append(Breach("verified", f"entry {broken} does not fit"))
        if booked_raw != gained_raw:
            self.breaches.append(
                Breach("profit", f"booked {booked_raw}, the treasury gained {gained_raw} raw units")
            )
        for transaction in open_:
            attempts = ", ".join(f"{one.purpose} at {one.max_fee_wei} wei" for one in transaction.attempts)
            text = f"nonce {transaction.nonce} is {transaction.state}: {attempts or 'never signed'}"
            self.breaches.append(Breach("in_flight", text))
        return known

    async def _transactions(self) -> None:
        signed = {entry.transaction for entry in read_record(self.record) if entry.kind == "signed"}
        operator = self.lab.world.cast.operator.address
        evidence = await Evidence.open(self.lab.anvil.url)
        try:
            for sent in await evidence.transactions([operator], self.first_block):
                if sent.hash not in signed:
                    text = f"nonce {sent.nonce} in block {sent.block_number}: {hex_of(sent.hash)}"
                    self.breaches.append(Breach("unrecorded", text))
        finally:
            await evidence.close()

    def _asked(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        """Rows of the record as another process sees them: committed. None while there are no tables."""
        if not self.record.exists():
            return []
        with closing(sqlite3.connect(f"{self.record.as_uri()}?mode=ro", uri=True)) as database:
            try:
                return database.execute(query, values).fetchall()
            except sqlite3.OperationalError:
                return []


def counted(breaches: Sequence[Breach], names: Iterable[str]) -> dict[str, Any]:
    """These invariants with whether each held and, where not, how it did not."""
    return {
        name: {
            "holds": all(breach.invariant != name for breach in breaches),
            "promise": INVARIANTS[name],
            "breaches": [breach.detail for breach in breaches if breach.invariant == name],
        }
        for name in names
    }


async def _treasury_raw(lab: Lab) -> int:
    return await balance_of(lab.node, lab.world.tokens["USDC"], lab.world.cast.treasury.address)
