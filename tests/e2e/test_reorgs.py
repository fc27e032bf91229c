"""Reorganisations on a real node, shallow and deep, while the keeper runs and while it does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from keeper import assembly
from keeper.errors import ChainError
from keeper.fixed import MAX_UINT256, WAD
from keeper.lab.aave import pool_of
from keeper.lab.actors import account
from keeper.lab.chainlink import set_price
from keeper.lab.node import Node, Tx
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.tokens import approve_txs, mint_txs
from keeper.lab.world import Lab
from keeper.types import Address, Head, PositionKey
from keeper.watch import Watch
from tests.conftest import OpenLab
from tests.e2e.line import Line, open_again

ETHER = 10**18
_E8 = 10**8
MARKET = "3.0"
SAME, MORE, GONE, NEW = (account(number) for number in range(1, 5))
DEPTHS = [1, 3, 64, 100]
_VARIABLE_RATE = 2
_GAS = 600_000


@dataclass(slots=True)
class Place:
    """A chain, a keeper set up on it in a folder of the test's own, and that keeper while it runs."""

    lab: Lab
    rig: Rig
    running: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def node(self) -> Node:
        """Control over the chain."""
        return self.lab.node

    async def start(self) -> Line:
        """Start the keeper from its files."""
        return await self.running.enter_async_context(open_again(self.lab, self.rig))

    async def stop(self) -> None:
        """End it."""
        await self.running.aclose()

    async def open(self, *who: Address) -> None:
        """10 WETH each against USDC at 110 %."""
        specs = [PositionSpec(one, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100) for one in who]
        await open_positions(self.node, self.lab.world.cast, self.lab.world.aave[MARKET], specs)

    async def changes(self) -> Sequence[Tx]:
        """Transactions for one block: NEW opens a position, MORE owes more, GONE repays everything."""
        world = self.lab.world
        market, lender = world.aave[MARKET], world.cast.lender.address
        usdc, weth, pool = world.tokens["USDC"], world.tokens["WETH"], pool_of(self.node, market)
        await self.node.set_balances([NEW])
        await self.node.send_all(
            [
                *mint_txs(world.cast, weth, lender, 10 * ETHER),
                *await approve_txs(self.node, weth, lender, market.pool, 10 * ETHER),
                *mint_txs(world.cast, usdc, GONE, 10**12),
                *await approve_txs(self.node, usdc, GONE, market.pool, MAX_UINT256),
            ]
        )
        borrow = (usdc.address, 100 * 10**6, _VARIABLE_RATE, 0)
        return [
            pool.tx(lender, "supply", weth.address, 10 * ETHER, NEW, 0, gas=_GAS),
            pool.tx(NEW, "borrow", *borrow, NEW, gas=_GAS),
            pool.tx(MORE, "borrow", *borrow, MORE, gas=_GAS),
            pool.tx(GONE, "repay", usdc.address, MAX_UINT256, _VARIABLE_RATE, GONE, gas=_GAS),
        ]

    async def height(self) -> int:
        """The newest block's number."""
        return (await self.node.head()).number

    async def reorganise(self, kind: str, depth: int) -> None:
        """Replace the newest blocks by empty ones and one more, or by nothing."""
        if kind == "reorg":
            await self.node.rpc.request("anvil_reorg", depth, [])
            await self.node.mine()
        else:
            await self.node.rpc.request("anvil_rollback", depth)

    async def truth(self) -> Mapping[PositionKey, tuple[int, ...]]:
        """The book of somebody who begins now and reads everything."""
        async with assembly.open_parts(assembly.settings(self.rig.config)) as parts:
            watch = Watch(parts.chain, parts.sources, None)
            await watch.start(await parts.chain.head())
        return held(watch)


def held(watch: Watch) -> dict[PositionKey, tuple[int, ...]]:
    """Everything a book holds, word for word."""
    return {key: watch.book.position(key).words for key in watch.book}


def accounts(words: Mapping[PositionKey, Any]) -> set[Address]:
    """Whose positions those are."""
    return {key.account for key in words}


@pytest.fixture
async def place(fresh_lab: OpenLab, tmp_path: Path) -> AsyncIterator[Place]:
    """A chain of the test's own: a node that went back and forth often enough mixes its branches up."""
    lab = await fresh_lab(clock="steady")
    place = Place(lab, await make_rig(lab, tmp_path, Terms(max_head_age_s=3_600)))
    yield place
    await place.stop()


async def _told(line: Line, depth: int) -> None:
    """Mine so many blocks, telling the keeper of each."""
    for _ in range(depth):
        await line.step()
        await line.lab.node.mine()


@pytest.mark.parametrize(
    ("kind", "seen"),
    [
        ("reorg", "block by block"),
        ("reorg", "at once"),
        ("reorg", "after a restart"),
        ("rollback", "at once"),
        ("rollback", "after a restart"),
    ],
)
@pytest.mark.parametrize("depth", DEPTHS)
async def test_the_book_is_that_of_the_new_branch(place: Place, depth: int, kind: str, seen: str) -> None:
    """A new account, more debt and a repayment are all undone: word for word what reading from scratch gives.

    They happened in the lowest orphaned block only, so that nothing on the new branch tells of them.
    """
    await place.open(SAME, MORE, GONE)
    changes = await place.changes()
    before = await place.truth()
    fork = await place.height()
    line = await place.start()
    await place.node.send_all(changes)
    assert await place.height() == fork + 1
    if seen == "block by block":
        await _told(line, depth - 1)
    elif depth > 1:
        await place.node.mine(depth - 1)
    await line.step()
    assert accounts(held(line.watch)) == {SAME, MORE, NEW}
    if seen == "after a restart":
        await place.stop()
    await place.reorganise(kind, depth)
    if seen == "after a restart":
        line = await place.start()
        assert line.watch.common == fork, "found by what the first run remembered"
    report = await line.step()
    assert held(line.watch) == await place.truth() == before
    assert not report.refused, "who was found on the orphaned branch only is harmless"
    await place.node.send_all(changes)
    await line.step()
    assert held(line.watch) == await place.truth() != before


@pytest.mark.parametrize("seen", ["running", "after a restart"])
@pytest.mark.parametrize("depth", DEPTHS)
async def test_an_orphaned_liquidation_is_open_again_once(place: Place, depth: int, seen: str) -> None:
    """Whatever the depth it is known, booked as reorged once, done again once, and the sums are the chain's."""
    world, node = place.lab.world, place.node
    profit = world.tokens["USDC"].address
    await place.open(SAME)
    line = await place.start()
    before_raw = await line.treasury_raw()
    await set_price(node, world.feeds["WETH"], 1_750 * _E8)
    await node.mine_on_demand()
    assert len((await line.step()).sent) == 1
    await node.mine()
    assert len((await line.step()).settled) == 1
    await _told(line, depth - 1)
    await line.step()
    assert line.ledger.gross_profit_raw(profit) == await line.treasury_raw() - before_raw > 0
    if seen == "after a restart":
        await place.stop()
    await place.reorganise("reorg", depth)
    if seen == "after a restart":
        line = await place.start()
    assert await line.treasury_raw() == before_raw
    assert not (await line.step()).sent, "its nonce is in flight again"
    assert len(line.booked("reorged")) == 1
    assert line.ledger.gross_profit_raw(profit) == 0
    for blocks in (39, 1, 1, 1):
        await node.mine(blocks)
        await line.step()
    assert len(line.booked("reorged")) == 1
    assert len(line.booked("settled")) == 2, "the one that was orphaned, and the one that stands"
    assert await line.health(MARKET, SAME) >= WAD
    assert line.ledger.gross_profit_raw(profit) == await line.treasury_raw() - before_raw > 0
    assert not line.store.open_transactions()
    assert line.ledger.verify() is None


async def test_an_outcome_above_a_head_that_lags_stays_in_doubt(place: Place) -> None:
    """A node falls back below an outcome that stands; orphaned before the next head, it is taken back all the same."""
    await place.open(SAME)
    line = await place.start()
    await set_price(place.node, place.lab.world.feeds["WETH"], 1_750 * _E8)
    await place.node.mine_on_demand()
    behind = (await line.step()).head
    await place.node.mine()
    assert len((await line.step()).settled) == 1
    for _ in range(2):
        await line.engine.step(behind)
        assert not line.booked("reorged"), "it stands"
    await place.reorganise("reorg", 1)
    await line.step()
    assert len(line.booked("reorged")) == 1


async def test_an_outcome_below_the_fork_stands(place: Place) -> None:
    """What was settled in a block that both branches share is not asked about again."""
    await place.open(SAME)
    line = await place.start()
    await set_price(place.node, place.lab.world.feeds["WETH"], 1_750 * _E8)
    await line.steps()
    await _told(line, 5)
    await line.step()
    await place.reorganise("reorg", 5)
    await line.step()
    assert line.watch.orphaned
    assert len(line.booked("settled")) == 1 and not line.booked("reorged")


async def test_the_first_head_may_be_orphaned(place: Place) -> None:
    """A keeper that began on the branch that went knows blocks before its first head, and reads everybody again."""
    await place.open(SAME, MORE, GONE)
    changes = await place.changes()
    before = await place.truth()
    line = await place.start()
    await place.stop()
    await place.node.mine(50)
    fork = await place.height()
    await place.node.send_all(changes)
    line = await place.start()
    await place.reorganise("reorg", 1)
    await line.step()
    assert line.watch.common == fork
    assert held(line.watch) == await place.truth() == before


async def test_deeper_than_is_remembered_is_read_from_the_beginning(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block of the old branch is known any more: everything is read again, and nothing is missed."""
    monkeypatch.setattr("keeper.watch._REMEMBERED", 3)
    await place.open(SAME, MORE, GONE)
    changes = await place.changes()
    before = await place.truth()
    line = await place.start()
    await place.node.send_all(changes)
    await _told(line, 9)
    await line.step()
    await place.reorganise("reorg", 10)
    await line.step()
    assert line.watch.common == -1
    assert held(line.watch) == await place.truth() == before


async def test_what_a_failed_step_read_is_doubted_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that failed after reading some positions leaves nothing of its block behind when that is orphaned."""
    await place.open(SAME, MORE, GONE)
    changes = await place.changes()
    before = await place.truth()
    line = await place.start()
    await place.node.send_all(changes)
    refresh = Watch.refresh

    async def failing(watch: Watch, protocol: str, keys: Sequence[PositionKey], head: Head) -> None:
        await refresh(watch, protocol, keys, head)
        raise ChainError("The node is gone.")

    with monkeypatch.context() as broken:
        broken.setattr(Watch, "refresh", failing)
        with pytest.raises(ChainError):
            await line.step()
    assert accounts(held(line.watch)) == {SAME, MORE, NEW}
    await place.reorganise("reorg", 1)
    await line.step()
    assert held(line.watch) == await place.truth() == before


async def test_a_failure_while_a_reorg_is_followed_loses_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node fails at every stage of following it in turn; the head after the last failure has it all."""
    await place.open(SAME, MORE, GONE)
    changes = await place.changes()
    before = await place.truth()
    line = await place.start()
    await place.node.send_all(changes)
    await _told(line, 2)
    await line.step()
    await place.reorganise("reorg", 3)

    async def failing(*_: object) -> None:
        raise ChainError("The node is gone.")

    for stage in ("_shared", "logs", "_load", "refresh"):
        with monkeypatch.context() as broken:
            broken.setattr(Watch, stage, failing)
            with pytest.raises(ChainError):
                await line.step()
        await place.node.mine()
    await line.step()
    assert held(line.watch) == await place.truth() == before
