"""The upgrade watch: whether every contract the keeper relies on still is what it was, or what a person acknowledged.

Of each contract its code and the EIP-1967 slots are known: implementation, beacon and admin; of a proxy also the code
it runs, and of all of them the libraries that code is linked to. At a start everything is read and held against the
ledger, so that a change while the keeper was down is found; after that events say what to read at once, and a few
contracts are read again at every head, each within `every_blocks`. Its first sight, with code, is its baseline. A
change trips the breaker `code_changed` for its protocol until a person acknowledges the new code.

Not seen are changes that neither code nor these slots show: proxies of other kinds, and what a price source reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from keeper import abi
from keeper.breakers import Breakers
from keeper.breakers.trips import CODE, Trip, clear
from keeper.chain.client import Chain
from keeper.errors import ChainError, LedgerError
from keeper.ledger import Ledger
from keeper.seams import UPGRADE_TOPICS, Adapter, Reads
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    BlockNumber,
    Filters,
    Hash,
    Head,
    Log,
    Reverted,
    hex_of,
)

_IMPLEMENTATION: Final = abi.load("Eip1967").function("implementation")
_SLOTS: Final = tuple(
    Hash((int.from_bytes(abi.keccak(f"eip1967.proxy.{name}".encode())) - 1).to_bytes(32))
    for name in ("implementation", "beacon", "admin")
)
_AT_ONCE: Final = 16  # contracts read side by side
_PUSH1, _PUSH20, _PUSH32 = 0x60, 0x73, 0x7F


class Part(NamedTuple):
    """A contract by what it is to a protocol; the protocol "" is all of them."""

    protocol: str
    role: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a contract is: `code` is the hash of its own code, `runs` of the code a call to it runs."""

    address: Address
    code: Hash
    runs: Hash
    implementation: Address
    beacon: Address
    admin: Address

    def body(self) -> dict[str, str]:
        """In the ledger's words; what is not there is left out."""
        addresses = {"address": self.address, "implementation": self.implementation}
        addresses |= {"beacon": self.beacon, "admin": self.admin}
        named = {name: abi.checksum(value) for name, value in addresses.items() if value != ZERO_ADDRESS}
        return {**named, "code": hex_of(self.code), "runs": hex_of(self.runs)}


class Upgrades:
    """Watches the contracts of every adapter, and `shared` ones by what they are to all protocols."""

    def __init__(
        self,
        chain: Chain,
        adapters: Mapping[str, Adapter],
        shared: Mapping[str, Address],
        ledger: Ledger,
        breakers: Breakers,
        wall_clock: Callable[[], float],
        every_blocks: int,
    ) -> None:
        self._chain = chain
        self._adapters = adapters
        self._shared = shared
        self._ledger = ledger
        self._breakers = breakers
        self._wall_clock = wall_clock
        self._every_blocks = every_blocks
        self._known = known_parts(ledger)
        self._parts: dict[Part, Address] = {}
        self._libraries: dict[Part, Address] = {}
        self._read: set[Hash] = set()  # code whose libraries are known
        self._suspects: set[Part] = set()
        self._events: list[Log] = []  # among which it is who made them suspects
        self._next = 0  # whose turn it is

    async def start(self, head: Head, since: int) -> None:
        """Read everything at `head`; what changed is looked for in the logs from block `since` on."""
        self._list()
        await self._check(list(self._parts), head, since)

    def suspects(self, logs: Sequence[Log], *, reloaded: bool) -> bool:
        """Whether something must be read again before anything is signed.

        That is what says itself that it was upgraded and, where adapters were loaded again, what has moved and what
        their events name.
        """
        named = {log.address for log in logs if log.topics and log.topics[0] in UPGRADE_TOPICS}
        if reloaded:
            before = self._parts
            self._list()
            named |= {Address(bytes(topic)[-20:]) for log in logs for topic in log.topics[1:]}
            self._suspects |= {part for part, address in self._parts.items() if before.get(part) != address}
        if named:
            self._suspects |= {part for part, address in self._parts.items() if address in named}
        if self._suspects:
            self._events += logs
        return bool(self._suspects)

    async def settle(self, head: Head) -> None:
        """Read every suspect again. What could not be read stays one."""
        await self._check(sorted(self._suspects), head, max(0, head.number - self._every_blocks))
        self._suspects.clear()
        self._events.clear()

    async def patrol(self, head: Head) -> None:
        """Read the next few contracts again, so that each was read within `every_blocks` heads."""
        parts = list(self._parts)
        count = -(-len(parts) // self._every_blocks)
        turn = [parts[(self._next + place) % len(parts)] for place in range(count)]
        await self._check(turn, head, max(0, head.number - self._every_blocks))
        self._next += count

    def _list(self) -> None:
        """Name every contract again."""
        parts = {Part("", role): address for role, address in self._shared.items()}
        for name, adapter in self._adapters.items():
            parts |= {Part(name, role): address for role, address in adapter.contracts().items()}
        self._parts = parts | self._libraries

    async def _check(self, parts: Sequence[Part], head: Head, since: int) -> None:
        """Hold contracts against what is known of them, and then the libraries they turn out to have."""
        waiting = list(parts)
        unknown: dict[str, dict[str, dict[str, str]]] = {}  # by protocol and role: what was never seen before
        while waiting:
            batch, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
            answers = await asyncio.gather(*(self._facts(part, head) for part in batch))
            for part, (facts, code) in zip(batch, answers, strict=True):
                if part in self._known:
                    await self._judge(part, facts, head, since)
                elif code:  # nothing can rely on what has none: its address was misread, and is read again
                    unknown.setdefault(part.protocol, {})[part.role] = facts.body()
                if facts.runs not in self._read:
                    waiting += await self._find_libraries(part, code, head)
                    self._read.add(facts.runs)
        for protocol, contracts in unknown.items():
            body = {"contracts": contracts, "head": head.number}
            self._ledger.book("watched", None, protocol, None, body, int(self._wall_clock()))
            self._known |= {Part(protocol, role): now for role, now in contracts.items()}

    async def _find_libraries(self, part: Part, code: bytes, head: Head) -> list[Part]:
        """What the code of a contract is linked to and nobody watches yet."""
        owner, there = part.role.partition(" library ")[0], set(self._parts.values())
        pushed = [address for address in linked(code) if address not in there]
        codes = await asyncio.gather(*(self._chain.code(address, head.hash) for address in pushed))
        found = {
            Part(part.protocol, f"{owner} library {abi.checksum(address)}"): address
            for address, its_code in zip(pushed, codes, strict=True)
            if its_code
        }
        self._libraries |= found
        self._parts |= found
        return list(found)

    async def _facts(self, part: Part, head: Head) -> tuple[Facts, bytes]:
        """What a contract is at `head`, with the code it runs."""
        address = self._parts[part]
        words = [self._chain.storage(address, slot, head.hash) for slot in _SLOTS]
        code, *slots = await asyncio.gather(self._chain.code(address, head.hash), *words)
        implementation, beacon, admin = (Address(bytes(slot)[-20:]) for slot in slots)
        if beacon != ZERO_ADDRESS:
            implementation = await self._chain.read(_implementation_of(beacon), head.hash)
        runs = code
        if implementation != ZERO_ADDRESS:
            runs = await self._chain.code(implementation, head.hash)
        facts = Facts(address, _hash(code), _hash(runs), implementation, beacon, admin)
        return facts, runs

    async def _judge(self, part: Part, facts: Facts, head: Head, since: int) -> None:
        was, now = self._known[part], facts.body()
        trip = self._breakers.trip_of_code(*part)
        if now != (was if trip is None else trip.numbers["now"]):
            who = await self._who(part, was["address"], facts, head, since)
            self._breakers.changed(*part, {"was": was, "now": now, **who})

    async def _who(self, part: Part, was_at: str, facts: Facts, head: Head, since: int) -> dict[str, Any]:
        """The transaction that changed a contract and its sender, as far as an event tells; it stops either way."""
        nobody = {"transaction": None, "sender": None}
        moved = abi.checksum(facts.address) != was_at
        try:
            about = [log for log in self._events if _tells(log, facts, moved)]
            if not about:
                filters = [Filters((facts.address,), UPGRADE_TOPICS)]
                if part.protocol in self._adapters:
                    filters.append(self._adapters[part.protocol].sources())
                logs = await self._chain.logs(filters, BlockNumber(min(since, head.number)), head.number)
                about = [log for log in logs if _tells(log, facts, moved)]
            if not about:
                return nobody
            sender = await self._chain.sender_of(about[-1].transaction_hash)
        except ChainError as error:
            return nobody | {"error": str(error)}
        return {
            "transaction": hex_of(about[-1].transaction_hash),
            "sender": None if sender is None else abi.checksum(sender),
            "block": about[-1].block_number,
        }


def linked(code: bytes) -> list[Address]:
    """Addresses that code pushes as 20 bytes, which is how a compiler links a library; in order, without repeats."""
    found: dict[Address, None] = {}
    at = 0
    while at < len(code):
        operation = code[at]
        if operation == _PUSH20 and at + 21 <= len(code):
            found[Address(code[at + 1 : at + 21])] = None
        at += operation - _PUSH1 + 2 if _PUSH1 <= operation <= _PUSH32 else 1
    return list(found)


def known_parts(ledger: Ledger) -> dict[Part, dict[str, str]]:
    """Every contract as it may be, by the ledger: as first seen, or as acknowledged since."""
    return {
        Part(entry.protocol, role): now
        for entry in reversed(ledger.entries(None, kind="watched"))
        for role, now in entry.body["contracts"].items()
    }


def acknowledge(ledger: Ledger, trip: Trip, code_hash: str, reason: str, at_s: int) -> None:
    """A person knows the new code of a contract, by its hash: it is what the contract may be from now on.

    Raises `LedgerError` where the hash is not that of the code which is there.
    """
    place, now = trip.place, trip.numbers["now"]
    if place.breaker != CODE:
        raise LedgerError(f"{place.breaker} is not about code; clear it instead.")
    if code_hash.lower() != now["runs"]:
        raise LedgerError(
            f"The {place.subject} runs code with the hash {now['runs']}, not {code_hash}; "
            "acknowledge only what was read."
        )
    with ledger.batch():
        body = {"contracts": {place.subject: dict(now)}, "head": trip.head, "reason": reason}
        ledger.book("watched", None, place.protocol, None, body, at_s)
        clear(ledger, trip, reason, at_s)


def _tells(log: Log, facts: Facts, moved: bool) -> bool:
    """Whether an event tells of a contract's change: it names the new address, or is the contract's own word."""
    if moved:
        return any(bytes(topic)[-20:] == facts.address for topic in log.topics[1:])
    return log.address == facts.address and log.topics[:1] != () and log.topics[0] in UPGRADE_TOPICS


def _implementation_of(beacon: Address) -> Reads[Address]:
    """What a beacon names, the zero address where it names none."""
    [result] = yield [_IMPLEMENTATION.call(beacon)]
    return ZERO_ADDRESS if isinstance(result, Reverted) else Address(result[12:32].rjust(20, b"\0"))


def _hash(code: bytes) -> Hash:
    return Hash(abi.keccak(code))
