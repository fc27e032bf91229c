"""A protocol whose answers cannot be understood: it alone waits, and is read again without a gap."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from keeper import assembly
from keeper.abi import checksum
from keeper.chain.client import Chain
from keeper.commands import scan
from keeper.engine.head import StepReport
from keeper.errors import AdapterError, ChainError
from keeper.fixed import WAD
from keeper.lab.aave import oracle_of, pool_of
from keeper.lab.actors import account
from keeper.lab.chainlink import set_price
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.world import Lab
from keeper.protocols.aave_v3 import AaveV3
from keeper.seams import Adapter, Touched
from keeper.types import Address, Filters, Head, Log, PositionKey
from keeper.watch import Watch
from tests.conftest import OpenLab
from tests.e2e.line import Line, open_again

ETHER = 10**18
_E8 = 10**8
BROKEN, WELL = "aave-3-0", "aave-3-6"
MARKETS = {BROKEN: "3.0", WELL: "3.6"}
OLD, OTHER, NEW = (account(number) for number in range(1, 4))
WAITS, SERVED, CAME = ((BROKEN, checksum(OLD)), (WELL, checksum(OTHER)), (BROKEN, checksum(NEW)))
UNREADABLE = (BROKEN, None, "follow", "unreadable")


@dataclass(slots=True)
class Place:
    """A chain of the test's own, and the keeper on it while it runs."""

    lab: Lab
    rig: Rig
    running: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self) -> Line:
        """Start the keeper from its files."""
        return await self.running.enter_async_context(open_again(self.lab, self.rig))

    async def open(self, protocol: str, who: Address) -> None:
        """10 WETH against USDC at 110 %."""
        spec = PositionSpec(who, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
        world = self.lab.world
        await open_positions(self.lab.node, world.cast, world.aave[MARKETS[protocol]], [spec])

    async def fall(self) -> None:
        """WETH falls, and everybody is unsafe."""
        await set_price(self.lab.node, self.lab.world.feeds["WETH"], 1_750 * _E8)

    async def truth(self) -> Mapping[PositionKey, tuple[int, ...]]:
        """The book of somebody who begins now and reads everything."""
        async with assembly.open_parts(assembly.settings(self.rig.config)) as parts:
            watch = Watch(parts.chain, parts.sources, None)
            await watch.start(await parts.chain.head())
        return held(watch)


def held(watch: Watch) -> dict[PositionKey, tuple[int, ...]]:
    """Everything a book holds, word for word."""
    return {key: watch.book.position(key).words for key in watch.book}


def broken(line: Line, door: str, breaking: pytest.MonkeyPatch) -> None:
    """Make one door of one protocol fail; for `load` every log asks for it."""
    adapter: Adapter = line.watch.adapters[BROKEN]
    discover = adapter.discover

    def fails(*_: Any) -> Any:
        raise AdapterError("It answered nonsense.")

    def asks(logs: Sequence[Log]) -> Touched:
        return Touched(discover(logs).keys, reload=True)

    breaking.setattr(adapter, door, fails)
    if door == "load":
        breaking.setattr(adapter, "discover", asks)


def sent(line: Line) -> list[tuple[str, str | None]]:
    """Whose liquidations were sent so far, by protocol and account."""
    return sorted((each.protocol, each.account) for each in line.booked("sent"))


def refused(report: StepReport) -> set[tuple[Any, ...]]:
    """Who was refused, where and why."""
    return {(protocol, who, each.stage, each.reason) for protocol, who, each in report.refused}


@pytest.fixture
async def place(fresh_lab: OpenLab, tmp_path: Path) -> AsyncIterator[Place]:
    """A chain with two Aave markets, an account in each."""
    lab = await fresh_lab(clock="steady")
    place = Place(lab, await make_rig(lab, tmp_path, Terms(max_head_age_s=3_600)))
    await place.open(BROKEN, OLD)
    await place.open(WELL, OTHER)
    yield place
    await place.running.aclose()


@pytest.mark.parametrize("door", ["discover", "load", "refresh", "rows"])
async def test_one_protocol_waits_and_the_others_go_on(
    place: Place, door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it cannot be read nothing of it is sent, with the reason on record, and the other is liquidated; at the
    first head that can be read it is liquidated too, those included who came meanwhile.
    """
    line = await place.start()
    await line.step()
    with monkeypatch.context() as breaking:
        broken(line, door, breaking)
        await place.open(BROKEN, NEW)
        await place.fall()
        report = await line.step()
        assert UNREADABLE in refused(report)
        assert sent(line) == [SERVED]
        await place.lab.node.mine()
        assert UNREADABLE in refused(await line.step())
        assert sent(line) == [SERVED]
    assert {each.protocol for each in line.booked("refusal") if each.body["reason"] == "unreadable"} == {
        BROKEN
    }
    await place.lab.node.mine()
    await line.step()
    assert sent(line) == sorted([WAITS, CAME, SERVED])
    assert not line.watch.unread
    await line.steps()
    assert held(line.watch) == await place.truth()
    assert len(line.booked("settled")) == 3
    assert line.ledger.verify() is None


@pytest.mark.parametrize("door", ["discover", "load", "refresh"])
@pytest.mark.parametrize("then", ["a restart", "a reorganisation"])
async def test_what_was_not_understood_is_never_skipped(
    place: Place, door: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a restart nor a reorganisation in the middle makes it forget who came while it could not be read."""
    line = await place.start()
    await line.step()
    with monkeypatch.context() as breaking:
        broken(line, door, breaking)
        await place.open(BROKEN, NEW)
        await line.step()
        await place.lab.node.mine(3)
        await line.step()
        if then == "a reorganisation":
            await place.lab.node.rpc.request("anvil_reorg", 2, [])
            await place.lab.node.mine()
            await line.step()
        assert BROKEN in line.watch.unread and NEW not in {key.account for key in line.watch.book}
    if then == "a restart":
        await place.running.aclose()
        line = await place.start()
    await place.lab.node.mine()
    await line.step()
    assert NEW in {key.account for key in line.watch.book}
    assert not line.watch.unread
    assert held(line.watch) == await place.truth()


async def test_a_branch_that_begins_below_what_was_not_understood_is_read_from_there(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes in its first blocks is found, though logs were owed only from a later block on."""
    node = place.lab.node
    line = await place.start()
    for _ in range(4):
        await node.mine(5)
        await line.step()
    with monkeypatch.context() as breaking:
        broken(line, "discover", breaking)
        await node.mine()
        failed = (await line.step()).head.number
        await node.rpc.request("anvil_rollback", 20)
        await place.open(BROKEN, NEW)
        assert (await node.head()).number < failed
        await node.mine(25)
        await line.step()
    await node.mine()
    await line.step()
    assert NEW in {key.account for key in line.watch.book}
    assert held(line.watch) == await place.truth()


async def test_a_head_that_is_handled_twice_is_doubted_for_both(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only the second time read goes with the block too, when that is orphaned."""
    world, node = place.lab.world, place.lab.node
    line = await place.start()
    await line.step()
    before = held(line.watch)
    usdc, rate = world.tokens["USDC"].address, 2
    await pool_of(node, world.aave[MARKETS[BROKEN]]).send(OLD, "borrow", usdc, 10**8, rate, 0, OLD)
    with monkeypatch.context() as breaking:
        broken(line, "discover", breaking)
        await line.step()
    await line.step()
    assert held(line.watch) != before
    await node.rpc.request("anvil_reorg", 1, [])
    await node.mine()
    await line.step()
    assert held(line.watch) == await place.truth() == before


async def test_a_restart_begins_where_a_deep_reorganisation_led_to(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block is shared any more and a protocol is not understood: the next run reads it from the start."""
    monkeypatch.setattr("keeper.watch._REMEMBERED", 3)
    node = place.lab.node
    line = await place.start()
    with monkeypatch.context() as breaking:
        for _ in range(4):
            await node.mine(5)
            await line.step()
        broken(line, "discover", breaking)
        await node.rpc.request("anvil_rollback", 20)
        await place.open(BROKEN, NEW)
        await node.mine(25)
        await line.step()
        assert line.watch.common == -1
    await place.running.aclose()
    line = await place.start()
    await line.step()
    assert NEW in {key.account for key in line.watch.book}
    assert held(line.watch) == await place.truth()


async def test_what_a_lost_head_loaded_is_loaded_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An oracle's new source goes with its block, though that head was lost before anything else was read at it."""
    world, node = place.lab.world, place.lab.node
    line = await place.start()
    await line.step()
    before = [dict(adapter.feeds()) for adapter in line.watch.adapters.values()]
    for market in MARKETS.values():
        oracle = oracle_of(node, world.aave[market])
        changed = [world.tokens["USDC"].address], [world.feeds["WETH"].proxy]
        await oracle.send(world.cast.deployer.address, "setAssetSources", *changed)
    load = Watch._load

    async def failing(watch: Watch, adapter: Adapter, head: Head) -> None:
        if adapter.name == WELL:
            raise ChainError("The node is gone.")
        await load(watch, adapter, head)

    with monkeypatch.context() as lost:
        lost.setattr(Watch, "_load", failing)
        with pytest.raises(ChainError):
            await line.step()
    await node.rpc.request("anvil_reorg", 2, [])
    await node.mine()
    await line.step()
    assert [dict(adapter.feeds()) for adapter in line.watch.adapters.values()] == before


async def test_positions_that_are_not_understood_have_their_protocol_loaded_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it was loaded wrongly no event ever asks for another load, and whoever was read by that is read again."""
    world, node = place.lab.world, place.lab.node
    line = await place.start()
    await line.step()
    adapter = line.watch.adapters[BROKEN]
    assert isinstance(adapter, AaveV3)
    first, second, *_ = adapter.loaded.listed()
    wrong = replace(adapter.loaded, reserves=(replace(first, a_token=second.a_token), second))
    monkeypatch.setattr(adapter, "_market", wrong)
    await pool_of(node, world.aave[MARKETS[BROKEN]]).send(
        OLD, "borrow", world.tokens["USDC"].address, 10**8, 2, 0, OLD
    )
    await line.step()
    assert not line.watch.unread and held(line.watch) != await place.truth()
    spec = PositionSpec(NEW, {"WETH": 10 * ETHER}, {"WBTC": 1}, 110 * WAD // 100)
    await open_positions(node, world.cast, world.aave[MARKETS[BROKEN]], [spec])
    await line.step()
    assert BROKEN in line.watch.unread
    await node.mine()
    await line.step()
    assert not line.watch.unread
    assert held(line.watch) == await place.truth()


async def test_the_longer_it_waits_the_less_often_its_logs_are_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that it is owed is not read again at every head, however long that is, since the others wait meanwhile."""
    line = await place.start()
    await line.step()
    asked: list[int] = []
    logs = Chain.logs

    async def counted(chain: Chain, filters: Sequence[Filters], first: int, last: int) -> list[Log]:
        if filters == [line.watch.adapters[BROKEN].sources()]:
            asked.append(last - first + 1)
        return await logs(chain, filters, first, last)

    with monkeypatch.context() as breaking:
        broken(line, "discover", breaking)
        breaking.setattr(Chain, "logs", counted)
        for blocks in (1, 1, 30, 30, 1, 1):
            await place.lab.node.mine(blocks)
            assert UNREADABLE in refused(await line.step())
    assert asked == [2, 32, 62]
    await place.open(BROKEN, NEW)
    await place.lab.node.mine()
    assert UNREADABLE not in refused(await line.step())
    assert held(line.watch) == await place.truth()


@pytest.mark.parametrize("door", ["discover", "enumerate"])
async def test_a_keeper_starts_beside_a_protocol_that_waits(
    place: Place, door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has never followed a block: the other is liquidated, and the next head has it all, however long its past."""
    works = getattr(AaveV3, door)

    def fails(adapter: AaveV3, *arguments: Any) -> Any:
        if adapter.name == BROKEN:
            raise AdapterError("It answered nonsense.")
        return works(adapter, *arguments)

    await place.fall()
    with monkeypatch.context() as breaking:
        breaking.setattr(AaveV3, door, fails)
        line = await place.start()
        assert UNREADABLE in refused(await line.step())
        assert sent(line) == [SERVED]
    await place.lab.node.mine()
    await line.step()
    assert sent(line) == [WAITS, SERVED]
    assert not line.watch.unread


async def test_a_list_of_accounts_that_cannot_be_read_after_a_reorganisation_costs_one_protocol(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody is to be read again, one protocol does not say who that is, and the other does not wait for it."""
    await place.lab.node.mine()
    line = await place.start()
    await place.lab.node.rpc.request("anvil_reorg", 1, [])
    await place.lab.node.mine()
    await place.fall()
    with monkeypatch.context() as breaking:
        broken(line, "enumerate", breaking)
        report = await line.step()
        assert UNREADABLE in refused(report)
        assert sent(line) == [SERVED]
    await place.lab.node.mine()
    await line.steps()
    assert sent(line) == [WAITS, SERVED]
    assert held(line.watch) == await place.truth()


async def test_what_cannot_be_confirmed_is_not_planned_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a quorum candidates are read again: those that cannot be read are read at the next head, and no others."""
    urls = f'"{place.lab.anvil.ws_url}", "{place.lab.anvil.url}"'
    text = place.rig.config.read_text().replace(f'"{place.lab.anvil.ws_url}"', urls)
    place.rig.config.write_text(text.replace("max_head_age_s", "quorum = 2\nmax_head_age_s", 1))
    line = await place.start()
    await line.step()
    await place.fall()
    with monkeypatch.context() as breaking:
        broken(line, "refresh", breaking)
        report = await line.step()
        assert UNREADABLE in refused(report)
        assert sent(line) == [SERVED]
    await place.lab.node.mine()
    await line.step()
    assert sent(line) == [WAITS, SERVED]


async def test_ways_that_cannot_be_told_cost_the_account_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a protocol's ways to liquidate cannot be worked out the account is refused, and others are liquidated."""
    line = await place.start()
    await line.step()
    await place.fall()
    with monkeypatch.context() as breaking:
        broken(line, "options", breaking)
        report = await line.step()
        assert (BROKEN, OLD, "plan", "unreadable") in refused(report)
        assert sent(line) == [SERVED]
    await place.lab.node.mine()
    await line.step()
    assert sent(line) == [WAITS, SERVED]


async def test_a_scan_names_what_it_could_not_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A protocol that is not understood is no empty list: it stands among the refusals, beside others' positions."""
    refresh = AaveV3.refresh

    def fails(adapter: AaveV3, keys: Sequence[PositionKey]) -> Any:
        if adapter.name == BROKEN:
            raise AdapterError("It answered nonsense.")
        return refresh(adapter, keys)

    monkeypatch.setattr(AaveV3, "refresh", fails)
    document = await scan(place.rig.config, liquidatable=False, limit=10)
    assert [each["protocol"] for each in document["positions"]] == [WELL]
    assert [(each["protocol"], each["reason"]) for each in document["refused"]] == [(BROKEN, "unreadable")]
