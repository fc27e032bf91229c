"""What is known about positions: a cursor over logs, the accounts they named, and the book that holds them.

Logs are followed by ranges from a persisted cursor, so a skipped head, a restart or a dropped connection loses
nothing. A head reads again only what its logs touched; nothing is polled account by account.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from typing import Final

import structlog

from keeper.book import Book
from keeper.chain.client import Chain
from keeper.errors import AdapterError, ChainError
from keeper.seams import Adapter, Touched, unreadable
from keeper.store import Cursor, Store
from keeper.types import BlockNumber, Filters, Hash, Head, Log, Marks, PositionKey, Refusal

_REFRESH_AT_ONCE: Final = 2_000
_REMEMBERED: Final = (
    512  # followed blocks: a reorganisation that reaches below them is read from the beginning
)
_WAITED_PARTS: Final = 16  # a protocol is tried again once it has waited such a part longer

_log = structlog.get_logger("keeper.watch")


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter and the block its protocol was deployed at."""

    adapter: Adapter
    from_block: int


@dataclass(frozen=True, slots=True)
class _Followed:
    """A block at which the book was read, and what was read again at it; None: everything."""

    at: Cursor
    touched: frozenset[PositionKey] | None


@dataclass(slots=True)
class _Owed:
    """What is still to be read of a protocol: it was read at orphaned blocks, or not understood."""

    keys: set[PositionKey] = field(default_factory=set)
    load: bool = False  # before them, what everything else relies on
    logs_from: BlockNumber | None = None  # and everybody, and the logs from this block on
    since: int = 0  # the head at which it was first not understood
    again: int = 0  # and not before this one: all others wait while it is read


class Watch:
    """Follows the chain for every configured protocol and keeps the book true as of the last followed head.

    After a reorganisation logs are read again from the newest block that both branches share, and so is every position
    that was read above it: what only the orphaned blocks did to it no log of the new branch tells.

    A protocol that cannot be understood does not hold up the others: it is `unread`, and its positions are not to be
    used, until a later head has read all of it that is owed.
    """

    def __init__(
        self, chain: Chain, sources: Sequence[Source], store: Store | None, *, remember: bool = True
    ) -> None:
        """With `remember` false what `store` knows is used but nothing is added to it."""
        self.book: Final = Book()
        self.orphaned = False  # whether blocks followed before are not below the head last fetched
        self.depth = 0  # at most so many blocks were replaced by others, as far as that was not absorbed
        self.common = BlockNumber(-1)  # the newest block that the head last fetched shares with those before
        self.unread: Final[dict[str, Refusal]] = {}  # protocols that the book is not true for, and why
        self.adapters: Final[Mapping[str, Adapter]] = {
            source.adapter.name: source.adapter for source in sources
        }
        self._sources = sources
        self._chain = chain
        self._store = store
        self._memory = store if remember else None
        self._cursor = BlockNumber(-1)  # logs up to here are in the book
        self._followed: Final[deque[_Followed]] = deque(maxlen=_REMEMBERED)
        self._owed: Final = {name: _Owed() for name in self.adapters}
        self._doubted = False  # whether what was read at orphaned blocks is still to be read again
        self._unsaved: list[Cursor] = []
        self._saved: Cursor | None = None
        self._filters: list[Filters] = []

    async def load(self, head: Head) -> None:
        """Load every adapter as of `head`."""
        for adapter in self.adapters.values():
            await self._chain.read(adapter.load(), head.hash)
        self._listen()

    async def start(self, head: Head) -> list[Log]:
        """Load every adapter, then bring accounts and book up to `head`. Raises `AdapterError` when one cannot load.

        What is returned are the logs since the record was last kept; none where it begins now.
        """
        await self.load(head)
        if self._store:
            self._followed.extend(_Followed(block, None) for block in self._store.blocks())
        self.common = await self._shared(head)
        gone = self._above(self.common)
        self._measure(gone, head)
        self._forget(gone)
        start: int = head.number
        kept = -1
        for source in self._sources:
            cursor = self._store.cursor(source.adapter.name) if self._store else None
            followed = -1 if cursor is None else min(cursor.number, self.common)
            kept = max(kept, followed)
            start = min(start, followed + 1 if followed >= 0 else source.from_block)
        logs = await self.logs(start, head.number)
        self._cursor = BlockNumber(start - 1)
        await self._remember_before(head)
        self._remember(head, None)
        for name, owed in self._owed.items():
            try:
                owed.keys |= await self._known(name, head)
            except AdapterError as error:
                self._owe_all(name, error, head)
        await self._absorb(logs, head)
        return [log for log in logs if 0 <= kept < log.block_number]

    async def logs(self, from_block: int, to_block: int) -> list[Log]:
        """Logs of every watched contract in a range of blocks, both ends included."""
        if from_block > to_block:
            return []
        return await self._chain.logs(self._filters, BlockNumber(from_block), BlockNumber(to_block))

    async def fetch(self, head: Head) -> list[Log]:
        """Logs since the cursor; after a reorganisation, of everything the branches do not share."""
        self.common = await self._shared(head)
        gone = self._above(self.common)
        if gone:
            await self._doubt(gone, head)
        self.orphaned = self._doubted  # also where a head was lost since: nobody was told then
        first = self._first()
        if head.number == first:
            return await self._chain.logs_at(self._filters, head.hash)
        return await self.logs(first, head.number)

    async def absorb(self, logs: Sequence[Log], head: Head) -> bool:
        """Read again what `logs` touched, as of `head`; true when parameters or addresses were loaded again."""
        loaded = await self._absorb(logs, head)
        self._doubted = False
        self.depth = 0
        return loaded

    async def confirm(self, marks: Mapping[str, Marks | Refusal], head: Head) -> None:
        """Read every candidate again, as of `head`: with a quorum what is planned on is what it says now."""
        for name, each in marks.items():
            if not isinstance(each, Refusal) and name not in self.unread:
                await self._read(name, self.book.candidates(each), head)

    async def _shared(self, head: Head) -> BlockNumber:
        """The newest followed block on the chain that `head` is on; -1 if there is none.

        A head further on does not say so itself, hence the questions: heads are skipped, and a reorganisation is as
        likely among the skipped ones.
        """
        if not self._followed:
            return BlockNumber(-1)
        newest = self._followed[-1].at
        if head.hash == newest.hash or (head.number == newest.number + 1 and head.parent_hash == newest.hash):
            return newest.number
        low, high = 0, len(self._followed)  # those below `low` are shared, those from `high` are not
        step = 1
        while low < high:
            # down in growing steps until one is shared, because most reorganisations are shallow
            probe = (low + high) // 2 if low else max(high - step, 0)
            if await self._is_on(self._followed[probe].at, head):
                low = probe + 1
            else:
                high = probe
                step *= 2
        return self._followed[low - 1].at.number if low else BlockNumber(-1)

    async def _is_on(self, block: Cursor, head: Head) -> bool:
        if block.number >= head.number:
            return block.hash == head.hash
        return (await self._chain.block(block.number)).hash == block.hash

    async def _doubt(self, gone: Sequence[_Followed], head: Head) -> None:
        """Forget orphaned blocks, but for what was read at them."""
        _log.warning("reorganised", head=head.number, shared=self.common, orphaned=len(gone))
        for key in {key for each in gone for key in each.touched or ()}:
            self._owed[key.protocol].keys.add(key)
        everybody = any(each.touched is None for each in gone)
        for name, owed in self._owed.items():
            # what was loaded may have been decided in a block that is no longer there
            owed.load = True
            if everybody:
                owed.keys |= self._held(name)
                try:
                    owed.keys |= await self._known(name, head)
                except AdapterError as error:
                    self._owe_all(name, error, head)
        self._doubted = True
        self._measure(gone, head)
        self._forget(gone)

    def _measure(self, gone: Sequence[_Followed], head: Head) -> None:
        """How deep the reorganisation is: none where `head` only lags behind what was followed."""
        if gone and gone[-1].at.number <= head.number:
            self.depth = max(self.depth, gone[0].at.number - self.common)

    def _above(self, number: BlockNumber) -> list[_Followed]:
        return list(takewhile(lambda each: each.at.number > number, reversed(self._followed)))

    def _forget(self, gone: Sequence[_Followed]) -> None:
        for _ in gone:
            self._followed.pop()
        self._unsaved = [block for block in self._unsaved if block.number <= self.common]
        self._cursor = min(self._cursor, self.common)
        for owed in self._owed.values():
            if owed.logs_from is not None:
                owed.logs_from = min(owed.logs_from, self._first())
                owed.again = min(owed.again, self._first())

    def _first(self) -> BlockNumber:
        """The first block whose logs were not taken in yet."""
        if self._cursor < 0:
            return BlockNumber(min(source.from_block for source in self._sources))
        return BlockNumber(self._cursor + 1)

    async def _remember_before(self, head: Head) -> None:
        """Know some blocks before the first head too: it may be orphaned as well.

        One that no node has any more is left out; a reorganisation then leads further back than it must.
        """
        last = self._followed[-1].at.number if self._followed else -1
        numbers = [head.number - 2**power for power in reversed(range(10))]
        asked = [self._chain.block(BlockNumber(number)) for number in numbers if number > last]
        for block in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(block, Head):
                self._remember(block, None)
            elif not isinstance(block, ChainError):
                raise block

    def _remember(self, head: Head, touched: frozenset[PositionKey] | None) -> None:
        block = Cursor(head.number, head.hash)
        if self._followed and self._followed[-1].at == block:
            # handled before: what was read at it then is still to be doubted with it
            before = self._followed.pop().touched
            both = None if before is None or touched is None else before | touched
            self._followed.append(_Followed(block, both))
            return
        self._followed.append(_Followed(block, touched))
        if self._memory:
            self._unsaved.append(block)

    async def _known(self, name: str, head: Head) -> set[PositionKey]:
        """Every account of a protocol that the chain lists or that was ever seen."""
        listed = await self._chain.read(self.adapters[name].enumerate(), head.hash)
        return listed | (self._store.accounts(name) if self._store else set())

    def _held(self, name: str) -> set[PositionKey]:
        return {key for key in self.book if key.protocol == name}

    async def _load(self, adapter: Adapter, head: Head) -> None:
        await self._chain.read(adapter.load(), head.hash)
        self._listen()

    def _listen(self) -> None:
        self._filters = [adapter.sources() for adapter in self.adapters.values()]

    async def _absorb(self, logs: Sequence[Log], head: Head) -> bool:
        loaded, everybody = False, bool(self.unread)
        found: list[str] = []
        for name, adapter in self.adapters.items():
            if head.number < self._owed[name].again:
                continue
            try:
                touched = await self._find(adapter, logs, head)
            except AdapterError as error:
                self._owe_all(name, error, head)
                continue
            found.append(name)
            everybody = everybody or touched.reload
        # before anything is read: whatever is, even if the rest fails, was read at this block
        keys = None if everybody else frozenset().union(*(owed.keys for owed in self._owed.values()))
        self._remember(head, keys)
        for name in found:
            await self._read(name, (), head)
        for name in found:
            owed, waits = self._owed[name], name in self.unread
            # only now: if the head was lost before, the next one must tell again that it was loaded
            loaded = loaded or (owed.load and not waits)
            # whose positions are not understood may have been loaded wrongly
            owed.load, owed.logs_from = waits, None
        self._cursor = head.number
        return loaded

    async def _find(self, adapter: Adapter, logs: Sequence[Log], head: Head) -> Touched:
        """Owe what the logs of a protocol touched, and load it where that is owed or they ask for it."""
        name, owed = adapter.name, self._owed[adapter.name]
        if owed.load:
            before = adapter.contracts()
            await self._load(adapter, head)
            if adapter.contracts() != before:
                owed.keys |= self._held(name)  # what the others were read by was wrong
        if owed.logs_from is not None:
            # by the addresses it names now: nobody listened to new ones meanwhile
            logs = await self._chain.logs([adapter.sources()], owed.logs_from, head.number)
            owed.keys |= self._held(name) | await self._known(name, head)
        touched = adapter.discover(logs)
        if touched.reload:
            # new addresses or parameters change what the words of every position mean
            owed.load = True  # once more, should this head be lost: nobody would hear that it is orphaned
            await self._load(adapter, head)
            owed.keys |= self._held(name)
        owed.keys |= touched.keys
        return touched

    def _owe_all(self, name: str, error: AdapterError, head: Head) -> None:
        """A protocol itself was not understood: everything about it is to be read again, from these logs on."""
        owed = self._owed[name]
        owed.load = True
        if owed.logs_from is None:
            owed.logs_from, owed.since = self._first(), head.number
        owed.again = head.number + max(head.number - owed.since, 0) // _WAITED_PARTS
        self.unread[name] = unreadable("follow", error)

    async def _read(self, name: str, keys: Collection[PositionKey], head: Head) -> None:
        """Read positions; the protocol stays unread as long as some were not understood, and they are owed."""
        owed = self._owed[name].keys
        owed.update(keys)
        try:
            await self.refresh(name, sorted(owed, key=lambda key: key.account), head)
        except AdapterError as error:
            self.unread[name] = unreadable("follow", error)
        else:
            self.unread.pop(name, None)

    async def refresh(self, protocol: str, keys: Sequence[PositionKey], head: Head) -> None:
        """Remember accounts and read their positions exactly as of `head` into the book."""
        adapter = self.adapters[protocol]
        if self._memory and keys:
            self._memory.add_accounts(keys)  # first: who cannot be read now is not forgotten by a restart
        ordered = sorted(keys, key=lambda key: key.market)
        for first in range(0, len(keys), _REFRESH_AT_ONCE):
            chunk = ordered[first : first + _REFRESH_AT_ONCE]
            reads = [
                adapter.refresh(list(of_market)) for _, of_market in groupby(chunk, lambda key: key.market)
            ]
            for positions in await self._chain.read_all(reads, head.hash):
                self.book.upsert(positions, adapter.rows(positions))
            self._owed[protocol].keys.difference_update(chunk)

    async def liquidations(self, key: PositionKey, from_block: int, to_block: int) -> list[Hash]:
        """The transactions that liquidated a position in a range of blocks, whoever sent them."""
        adapter = self.adapters.get(key.protocol)
        if adapter is None or from_block > to_block:
            return []
        blocks = BlockNumber(from_block), BlockNumber(to_block)
        logs = await self._chain.logs([adapter.sources()], *blocks)
        return [transaction for whose, transaction in adapter.liquidations(logs) if whose == key]

    def save(self) -> None:
        """Store how far logs were followed. Late is safe: after a crash they are read again, never missed."""
        first, last = self._followed[0].at, self._followed[-1].at
        if self._memory is None or last == self._saved:
            return
        self._memory.fold()  # before, because the first write into an emptied log waits for the disk
        with self._memory.transaction():
            for name, owed in self._owed.items():
                # no further than was understood: a restart begins there
                end = last.number + 1 if owed.logs_from is None else owed.logs_from
                at = next((each.at for each in reversed(self._followed) if each.at.number < end), None)
                if at is not None:
                    self._memory.set_cursor(name, at.number, at.hash)
                else:
                    self._memory.cut_cursor(name, end)
            self._memory.keep_blocks(self._unsaved, first.number, last.number)
        self._unsaved.clear()
        self._saved = last
