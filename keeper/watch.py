"""What is known about positions: a cursor over logs, the accounts they named, and the book that holds them.

Logs are followed by ranges from a persisted cursor, so a skipped head, a restart or a dropped connection loses
nothing. A head reads again only what its logs touched; nothing is polled account by account.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from keeper.book import Book
from keeper.chain.client import Chain
from keeper.seams import Adapter
from keeper.store import Store
from keeper.types import BlockNumber, Filters, Hash, Head, Log, PositionKey

_REFRESH_AT_ONCE: Final = 2_000
_REORG_REWIND: Final = 64  # blocks of logs read again when a head does not build on the last followed one


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last block whose logs are in the book."""

    number: BlockNumber
    hash: Hash


_NOWHERE: Final = Cursor(BlockNumber(-1), Hash(bytes(32)))


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter and the block its protocol was deployed at."""

    adapter: Adapter
    from_block: int


class Watch:
    """Follows the chain for every configured protocol and keeps the book true as of the last followed head."""

    def __init__(
        self, chain: Chain, sources: Sequence[Source], store: Store | None, *, remember: bool = True
    ) -> None:
        """With `remember` false what `store` knows is used but nothing is added to it."""
        self.book: Final = Book()
        self.orphaned = False  # whether the head last fetched was not built on what the book was true of
        self.adapters: Final[Mapping[str, Adapter]] = {
            source.adapter.name: source.adapter for source in sources
        }
        self._sources = sources
        self._chain = chain
        self._store = store
        self._memory = store if remember else None
        self._cursor = _NOWHERE
        self._saved = _NOWHERE
        self._filters: list[Filters] = []

    async def load(self, head: Head) -> None:
        """Load every adapter as of `head`."""
        await self._load(self.adapters.values(), head)

    async def start(self, head: Head) -> None:
        """Load every adapter, then bring accounts and book up to `head`."""
        await self.load(head)
        known = await self._known(head)
        start: int = head.number
        for source in self._sources:
            name = source.adapter.name
            cursor = self._store.cursor(name) if self._store else None
            if cursor is None:
                start = min(start, source.from_block)
            elif await self._left(Cursor(cursor.number, cursor.hash), head):
                start = min(start, _rewound(cursor.number, head))
            else:
                start = min(start, cursor.number + 1)
        await self._absorb(await self.logs(start, head.number), head, known)
        self._move(head)
        self.save()

    async def logs(self, from_block: int, to_block: int) -> list[Log]:
        """Logs of every watched contract in a range of blocks, both ends included."""
        if from_block > to_block:
            return []
        return await self._chain.logs(self._filters, BlockNumber(from_block), BlockNumber(to_block))

    async def fetch(self, head: Head) -> list[Log]:
        """Logs since the cursor; after a reorg, from far enough back that nothing orphaned stays believed."""
        cursor = self._cursor
        self.orphaned = await self._left(cursor, head)
        if self.orphaned:
            return await self.logs(_rewound(cursor.number, head), head.number)
        if head.number == cursor.number + 1:
            return await self._chain.logs_at(self._filters, head.hash)
        return await self.logs(cursor.number + 1, head.number)

    async def absorb(self, logs: Sequence[Log], head: Head) -> bool:
        """Read again what `logs` touched, as of `head`; true when parameters or addresses were loaded again."""
        if self.orphaned:
            # what was loaded may have been decided in a block that is no longer there
            await self.load(head)
        reloaded = await self._absorb(logs, head, set(self.book) if self.orphaned else set())
        self._move(head)
        return reloaded or self.orphaned

    async def _left(self, cursor: Cursor, head: Head) -> bool:
        """Whether the chain that `head` is on does not contain the block of `cursor`.

        A head further on does not say so itself, hence the question: heads are skipped, and a reorg is as likely
        among the skipped ones.
        """
        if head.hash == cursor.hash or cursor.number < 0:
            return False
        if head.number == cursor.number + 1:
            return head.parent_hash != cursor.hash
        return head.number <= cursor.number or (await self._chain.block(cursor.number)).hash != cursor.hash

    async def _known(self, head: Head) -> set[PositionKey]:
        known: set[PositionKey] = set()
        for name, adapter in self.adapters.items():
            known |= await self._chain.read(adapter.enumerate(), head.hash)
            if self._store:
                known |= self._store.accounts(name)
        return known

    async def _load(self, adapters: Iterable[Adapter], head: Head) -> None:
        for adapter in adapters:
            await self._chain.read(adapter.load(), head.hash)
        self._filters = [adapter.sources() for adapter in self.adapters.values()]

    async def _absorb(self, logs: Sequence[Log], head: Head, extra: set[PositionKey]) -> bool:
        reloaded = False
        keys = {name: {key for key in extra if key.protocol == name} for name in self.adapters}
        for name, adapter in self.adapters.items():
            touched = adapter.discover(logs)
            if touched.reload:
                # new addresses or parameters change what the words of every position mean
                await self._load([adapter], head)
                keys[name] |= {key for key in self.book if key.protocol == name}
                reloaded = True
            keys[name] |= touched.keys
        for name, touched_keys in keys.items():
            await self.refresh(name, sorted(touched_keys, key=lambda key: key.account), head)
        return reloaded

    async def refresh(self, protocol: str, keys: Sequence[PositionKey], head: Head) -> None:
        """Read positions exactly as of `head` into the book and remember their accounts."""
        adapter = self.adapters[protocol]
        for first in range(0, len(keys), _REFRESH_AT_ONCE):
            chunk = keys[first : first + _REFRESH_AT_ONCE]
            positions = await self._chain.read(adapter.refresh(chunk), head.hash)
            self.book.upsert(positions, adapter.rows(positions))
        if self._memory and keys:
            self._memory.add_accounts(keys)

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
        if self._memory is None or self._saved == self._cursor:
            return
        with self._memory.transaction():
            for name in self.adapters:
                self._memory.set_cursor(name, self._cursor.number, self._cursor.hash)
        self._saved = self._cursor

    def _move(self, head: Head) -> None:
        self._cursor = Cursor(head.number, head.hash)


def _rewound(cursor: BlockNumber, head: Head) -> int:
    """Where logs are read again from when the block of the cursor is gone."""
    return max(0, min(cursor, head.number) - _REORG_REWIND)
