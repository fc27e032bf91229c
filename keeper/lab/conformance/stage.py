"""Where an adapter is held to the chain: a keeper set up for it on the subject's lab, put back after every check."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Final

from keeper import assembly
from keeper.assembly import Parts
from keeper.engine.head import StepReport
from keeper.lab.conformance.subject import Subject
from keeper.lab.node import Node
from keeper.lab.rig import Rig, make_rig
from keeper.lab.tokens import balance_of
from keeper.lab.world import BASE_FEE_WEI
from keeper.ledger import Booked, Ledger
from keeper.seams import Adapter
from keeper.store import Store
from keeper.types import Address, BlockTime, Head, Health, Log, Marks, PositionKey
from keeper.watch import Source, Watch

_BUSY: Final = 20  # heads after which a keeper that is still sending is going in circles


@dataclass(frozen=True, slots=True)
class Stage:
    """A subject, and a keeper whose contracts the Safe has set up for it."""

    subject: Subject
    rig: Rig

    @property
    def node(self) -> Node:
        """The subject's chain."""
        return self.subject.lab.node

    async def hold(self, check: Callable[[Stage], Awaitable[None]]) -> None:
        """Run one check; whatever it does to the chain is undone."""
        snapshot = await self.node.snapshot()
        try:
            await check(self)
        finally:
            await self.back(snapshot)

    async def back(self, snapshot: str) -> None:
        """Put the chain back to a snapshot, and its clock and fees to what they were."""
        await self.node.mine_on_demand()
        await self.node.drop_pending()
        await self.node.revert(snapshot)
        await self.node.mine_each_transaction()
        await self.node.steady_clock()
        await self.node.set_base_fee(BASE_FEE_WEI)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[Following]:
        """The adapter as the keeper's configuration makes it, followed from here on as the daemon follows it."""
        async with assembly.open_parts(assembly.settings(self.rig.config)) as parts:
            [source] = [each for each in parts.sources if each.adapter.name == self.subject.name]
            followed = Following(parts, source, Watch(parts.chain, [source], None))
            await followed.watch.start(await parts.chain.head())
            yield followed

    @asynccontextmanager
    async def working(self, rpc_url: str | None = None) -> AsyncIterator[Work]:
        """A keeper at work on the subject's chain, or on the chain at `rpc_url`; `Work.step` drives it."""
        config = self._configured(rpc_url or self.subject.lab.anvil.url)
        settings = assembly.settings(config)
        async with assembly.open_parts(settings) as parts:
            head = await parts.chain.head()
            now_s = [head.timestamp_s]

            def clock() -> float:
                return float(now_s[-1])

            store = config.with_name("keeper.db")
            with Store.open(f"sqlite:///{store}", chain_id=settings.chain.id) as opened:
                key = assembly.operator_key(settings, clock)
                engine, _ = await assembly.engine(parts, opened, key, sign=True, wall_clock=clock)
                await engine.start(head)

                async def step() -> StepReport:
                    newest = await parts.chain.head()
                    now_s.append(newest.timestamp_s)
                    return await engine.step(newest)

                yield Work(parts, Ledger(opened), step)

    def _configured(self, rpc_url: str) -> Path:
        """The keeper's files again in a folder of their own, for the chain at `rpc_url`."""
        folder = next(
            each for number in count() if not (each := self.rig.folder / f"keeper-{number}").exists()
        )
        folder.mkdir()
        for name in (self.rig.config.name, ".env"):
            (folder / name).touch(mode=0o600)
            (folder / name).write_text((self.rig.folder / name).read_text())
        config = folder / self.rig.config.name
        config.write_text(config.read_text().replace(self.subject.lab.anvil.ws_url, rpc_url))
        return config


@dataclass(frozen=True, slots=True)
class Following:
    """The adapter and a book that is kept true from logs."""

    parts: Parts
    source: Source
    watch: Watch

    @property
    def adapter(self) -> Adapter:
        """The subject's adapter."""
        return self.source.adapter

    async def follow(self) -> Head:
        """Read what logs since the last call touched; the head that the book is now true at."""
        head = await self.parts.chain.head()
        await self.watch.absorb(await self.watch.fetch(head), head)
        return head

    async def logs(self, first: int, last: int) -> Sequence[Log]:
        """Logs that the adapter asks for."""
        return await self.watch.logs(first, last)

    async def marks(self, head: Head, ahead_s: int = 0) -> Marks:
        """Marks as of `ahead_s` after `head`, which must not be refused."""
        at = BlockTime(head.number, head.hash, head.timestamp_s + ahead_s)
        marks = await self.parts.chain.read(self.adapter.marks(at), head.hash)
        assert isinstance(marks, Marks), f"marks are refused: {marks}"
        return marks

    def key(self, account: Address) -> PositionKey:
        """An account's key: of its markets the one whose position is held, the first where none is."""
        keys = self.adapter.keys_of(account)
        return next((key for key in keys if key in self.watch.book), keys[0])

    def health(self, key: PositionKey, marks: Marks) -> Health:
        """A held position's health, which must not be refused."""
        health = self.adapter.assess(self.watch.book.position(key), marks)
        assert isinstance(health, Health), f"{key.account.hex()} is refused: {health}"
        return health


@dataclass(frozen=True, slots=True)
class Work:
    """A keeper at work; `step` handles the newest head, whose time is its clock."""

    parts: Parts
    ledger: Ledger
    step: Callable[[], Awaitable[StepReport]]

    async def until_idle(self, node: Node) -> list[StepReport]:
        """Handle heads, one block mined after each, until one comes to nothing."""
        reports: list[StepReport] = []
        for _ in range(_BUSY):
            reports.append(await self.step())
            if not (reports[-1].sent or reports[-1].settled):
                return reports
            await node.mine()
        raise AssertionError(f"still busy after {_BUSY} heads: {reports[-1]}")

    def booked(self, kind: str) -> list[Booked]:
        """Entries of a kind, oldest first."""
        return self.ledger.entries(None, kind=(kind,))[::-1]


@asynccontextmanager
async def staged(subject: AbstractAsyncContextManager[Subject], folder: Path) -> AsyncIterator[Stage]:
    """A subject opened, and a keeper set up for it in `folder`."""
    async with subject as opened:
        yield Stage(opened, await make_rig(opened.lab, folder, tables=opened.table))


async def treasury_raw(stage: Stage, node: Node) -> int:
    """What the treasury holds of the profit token."""
    world = stage.subject.lab.world
    return await balance_of(node, world.tokens["USDC"], world.cast.treasury.address)


def seeded(stage: Stage, what: str) -> Random:
    """Randomness that is the same on every run of a check over a subject."""
    return Random(f"{stage.subject.name} {what}")
