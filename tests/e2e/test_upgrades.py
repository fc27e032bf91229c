"""The upgrade watch on real contracts: what changed stops its protocol until a person acknowledges the new code."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from keeper.abi import checksum, keccak
from keeper.commands import breakers
from keeper.engine.head import View
from keeper.errors import ChainError, LedgerError
from keeper.fixed import WAD
from keeper.lab.aave import AaveMarket, configurator_of, oracle_of
from keeper.lab.actors import account
from keeper.lab.artifacts import aave_v3_0
from keeper.lab.chainlink import set_price
from keeper.lab.node import Contract, Node, Receipt, Tx
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.world import Lab
from keeper.ledger import Booked
from keeper.types import ZERO_ADDRESS, Address, Head, hex_of
from keeper.upgrades import linked
from tests.e2e.line import Line, open_again

ETHER = 10**18
WHO = account(1)
OLD, NEW = "aave-3-0", "aave-3-6"
SLOTS = {
    name: int.from_bytes(keccak(f"eip1967.proxy.{name}".encode())) - 1
    for name in ("implementation", "beacon", "admin")
}


@dataclass(slots=True)
class Stage:
    """A chain with a keeper set up on it, in a folder of the test's own, and the governance of its protocols."""

    lab: Lab
    rig: Rig

    @property
    def node(self) -> Node:
        """Control over the chain."""
        return self.lab.node

    @property
    def market(self) -> AaveMarket:
        """Aave 3.0."""
        return self.lab.world.aave["3.0"]

    @property
    def admin(self) -> Address:
        """Who governs the protocols."""
        return self.lab.world.cast.deployer.address

    def line(self) -> AbstractAsyncContextManager[Line]:
        """Start the keeper."""
        return open_again(self.lab, self.rig)

    async def fall(self, *markets: str) -> None:
        """A position on each market, and a price at which it is unsafe."""
        for market in markets:
            spec = PositionSpec(WHO, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
            await open_position(self.node, self.lab.world.cast, self.lab.world.aave[market], spec)
        await set_price(self.node, self.lab.world.feeds["WETH"], 1_750 * 10**8)

    async def govern(self, function: str, *arguments: object) -> Receipt:
        """An order to the addresses provider of Aave 3.0."""
        provider = Contract(self.node, self.market.provider, aave_v3_0("PoolAddressesProvider").abi)
        return await provider.send(self.admin, function, *arguments)

    async def new_pool(self) -> Address:
        """Another deployment of the pool's code, with one byte of its metadata changed, that initialises once more."""
        implementation = await self.node.storage(self.market.pool, SLOTS["implementation"])
        code = bytearray(await self.node.code(Address(implementation.to_bytes(20))))
        code[-10] ^= 0xFF  # in the metadata, which nothing runs
        fresh = account(4_000)
        await self.node.set_code({fresh: bytes(code)})
        # it counts as uninitialised, so that the provider's `upgradeToAndCall` may initialise it again
        await self.node.set_storage([(self.market.pool, 0, 0)])
        return fresh

    def acknowledge(self, entry: Booked, *, protocol: str = OLD) -> None:
        """A person has read what runs there now."""
        now = entry.body["numbers"]["now"]
        breakers.acknowledged(self.rig.config, protocol, now["address"], now["runs"], "read by the test")


@pytest.fixture(scope="module")
async def rigged(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Lab, Rig]]:
    """The file's world with the contracts deployed and set up, undone after the module."""
    snapshot = await shared_lab.node.snapshot()
    yield shared_lab, await make_rig(shared_lab, tmp_path_factory.mktemp("rig"), Terms(max_head_age_s=3_600))
    await shared_lab.node.revert(snapshot)


@pytest.fixture
async def stage(rigged: tuple[Lab, Rig], lab: Lab, tmp_path: Path) -> Stage:
    """The keeper's files for this test alone; every contract is read again within four blocks."""
    rig = rigged[1]
    shutil.copy(rig.folder / ".env", tmp_path / ".env")
    text = (rig.folder / "keeper.toml").read_text()
    (tmp_path / "keeper.toml").write_text(text.replace("[breakers]", "[breakers]\nrecheck_code_blocks = 4"))
    return Stage(lab, dataclasses.replace(rig, folder=tmp_path, config=tmp_path / "keeper.toml"))


def known(line: Line) -> dict[tuple[str, str], dict[str, str]]:
    """What is on record of every contract, by protocol and role."""
    return {
        (entry.protocol, role): now
        for entry in line.booked("watched")
        for role, now in entry.body["contracts"].items()
    }


def said(line: Line) -> list[tuple[str, str]]:
    """Protocol and contract of every change on record."""
    changes = [entry for entry in line.booked("tripped") if entry.body["breaker"] == "code_changed"]
    return [(entry.protocol, entry.body["subject"]) for entry in changes]


async def stopped(line: Line, *names: str) -> None:
    """At the next head exactly these protocols send nothing, for this reason."""
    report = await line.step()
    refused = {name: refusal.reason for name, who, refusal in report.refused if who == WHO}
    assert refused == dict.fromkeys(names, "code_changed")
    going_on = {entry.protocol for entry in line.booked("intent")}
    assert going_on == {OLD, NEW} - set(names)


async def test_a_first_start_takes_everything_as_it_is(stage: Stage) -> None:
    """Pool, its libraries, oracle, sources, roles, tokens, router, quoter and our own two are on record, once."""
    world = stage.lab.world
    async with stage.line() as line:
        watched = known(line)
        assert len(line.booked("watched")) == 3 and not line.booked("tripped")
        for name, market in ((OLD, stage.market), (NEW, world.aave["3.6"])):
            expected = {
                "addresses provider": market.provider,
                "pool": market.pool,
                "configurator": market.configurator,
                "oracle": market.oracle,
                "ACL manager": market.acl,
                "data provider": market.data_provider,
            }
            for symbol, reserve in market.reserves.items():
                token = checksum(reserve.token.address)
                expected[f"price source of {token}"] = world.feeds[symbol].proxy
                expected[f"aToken of {token}"] = reserve.a_token
                expected[f"debt token of {token}"] = reserve.variable_debt
            for role, address in expected.items():
                assert watched[name, role]["address"] == checksum(address)
            libraries = [role for protocol, role in watched if protocol == name and "pool library" in role]
            assert len(libraries) >= 5, "the pool is linked to its logic"
        pool = watched[OLD, "pool"]
        implementation = Address(bytes.fromhex(pool["implementation"][2:]))
        assert pool["runs"] == hex_of(keccak(await stage.node.code(implementation)))
        assert pool["code"] == hex_of(keccak(await stage.node.code(stage.market.pool)))
        shared = {
            role.split(" ")[0]: now["address"] for (protocol, role), now in watched.items() if not protocol
        }
        assert shared["router"] == checksum(world.uniswap_v3.router)
        assert shared["quoter"] == checksum(world.uniswap_v3.quoter)
        assert shared["Liquidator"] == checksum(stage.rig.liquidator)
        assert shared["PauseGuard"] == checksum(stage.rig.pause_guard)
    async with stage.line() as line:
        assert len(line.booked("watched")) == 3 and not line.booked("tripped")


async def test_what_has_no_code_is_no_baseline(stage: Stage) -> None:
    """An address without code was misread: what is really there is the first sight, and no change."""
    acl = stage.market.acl
    code = await stage.node.code(acl)
    await stage.node.set_code({acl: b""})
    async with stage.line() as line:
        assert (OLD, "ACL manager") not in known(line) and (OLD, "pool") in known(line)
        await stage.node.set_code({acl: code})
        for _ in range(5):
            await stage.node.mine()
            await line.step()
        assert known(line)[OLD, "ACL manager"]["code"] == hex_of(keccak(code)) and not line.booked("tripped")


async def test_an_upgraded_pool_stops_its_protocol_alone(stage: Stage) -> None:
    """Who did it is on record; only the hash of the code that runs there now lets it go on, over restarts."""
    async with stage.line() as line:
        await line.step()
        receipt = await stage.govern("setPoolImpl", await stage.new_pool())
        await stage.fall("3.0", "3.6")
        await stopped(line, OLD)
        [entry] = line.booked("tripped")
        numbers = entry.body["numbers"]
        assert (entry.protocol, entry.body["subject"]) == (OLD, "pool")
        assert numbers["transaction"] == hex_of(receipt.transaction_hash)
        assert numbers["sender"] == checksum(stage.admin)
        assert (
            numbers["was"]["implementation"] != numbers["now"]["implementation"] == checksum(account(4_000))
        )
        assert numbers["now"]["runs"] == hex_of(keccak(await stage.node.code(account(4_000))))
    async with stage.line() as line:
        assert not (await line.step()).sent and said(line) == [(OLD, "pool")]
    pool, was = checksum(stage.market.pool), numbers["was"]["runs"]
    for protocol, contract, code_hash in ((OLD, pool, was), (NEW, pool, was), (OLD, checksum(WHO), was)):
        with pytest.raises(LedgerError):
            breakers.acknowledged(stage.rig.config, protocol, contract, code_hash, "a slip")
    with pytest.raises(LedgerError, match="--reason"):
        breakers.acknowledged(stage.rig.config, OLD, pool, numbers["now"]["runs"], "")
    stage.acknowledge(entry)
    async with stage.line() as line:
        await stage.node.mine()
        assert (await line.step()).sent and said(line) == [(OLD, "pool")]


async def test_an_upgrade_while_the_keeper_was_down_is_found_at_its_start(stage: Stage) -> None:
    """Nothing is sent at the first head already, and who did it is looked for in the blocks that were missed."""
    async with stage.line() as line:
        await line.step()
    receipt = await stage.govern("setPoolImpl", await stage.new_pool())
    await stage.fall("3.0", "3.6")
    await stage.node.mine(3)
    async with stage.line() as line:
        await stopped(line, OLD)
        [entry] = line.booked("tripped")
        assert entry.body["numbers"]["transaction"] == hex_of(receipt.transaction_hash)


async def test_code_that_changes_without_a_word_is_found_within_so_many_blocks(stage: Stage) -> None:
    """A library of the pool, for one protocol; the router, for all of them; nobody can tell who did it."""
    async with stage.line() as line:
        await line.step()
        role = next(role for protocol, role in known(line) if protocol == OLD and "pool library" in role)
        library = Address(bytes.fromhex(known(line)[OLD, role]["address"][2:]))
        router = stage.lab.world.uniswap_v3.router
        for address in (library, router):
            await stage.node.set_code({address: await stage.node.code(address) + b"\x00"})
        for _ in range(4):
            await stage.node.mine()
            await line.step()
        expected = {(OLD, role), ("", f"router {checksum(router)}")}
        assert set(said(line)) == expected and len(said(line)) == 2
        assert {entry.body["numbers"]["transaction"] for entry in line.booked("tripped")} == {None}
        await stage.fall("3.0", "3.6")
        await stopped_all(line)
        by_protocol = {entry.protocol: entry for entry in line.booked("tripped")}
    stage.acknowledge(by_protocol[""], protocol="global")
    async with stage.line() as line:
        await stopped(line, OLD)


async def stopped_all(line: Line) -> None:
    """At the next head nothing is sent at all."""
    report = await line.step()
    assert not report.sent and not line.booked("intent")
    assert {refusal.reason for _, who, refusal in report.refused if who == WHO} == {"code_changed"}


@pytest.mark.parametrize("slot", sorted(SLOTS))
async def test_each_slot_of_a_proxy_is_watched(stage: Stage, slot: str) -> None:
    """Implementation, beacon or admin of a price source turned proxy: its protocols stop, another word follows another
    change, and taken back it still waits for a person.
    """
    source = stage.lab.world.feeds["ISO"].proxy
    aggregator = int.from_bytes(stage.lab.world.feeds["WETH"].aggregator)
    async with stage.line() as line:
        await line.step()
        for value, entries in ((aggregator, 2), (aggregator, 2), (aggregator + 1, 4), (0, 6)):
            await stage.node.set_storage([(source, SLOTS[slot], value)])
            for _ in range(4):
                await stage.node.mine()
                await line.step()
            assert len(line.booked("tripped")) == entries
        assert {protocol for protocol, _ in said(line)} == {OLD, NEW}
        last = {entry.protocol: entry for entry in line.booked("tripped")}
        numbers = last[OLD].body["numbers"]
        assert numbers["now"] == numbers["was"] and slot not in numbers["now"]
        await stage.fall("3.0", "3.6")
        await stopped_all(line)
    for name in (OLD, NEW):
        stage.acknowledge(last[name], protocol=name)
    async with stage.line() as line:
        await stage.node.mine()
        assert (await line.step()).sent


async def test_a_new_price_source_of_a_token_stops_its_protocol(stage: Stage) -> None:
    """Not its code but its address changed: the oracle's event tells who did it."""
    async with stage.line() as line:
        await line.step()
        usdc, feed = stage.lab.world.tokens["USDC"].address, stage.lab.world.feeds["WETH"].proxy
        oracle = oracle_of(stage.node, stage.market)
        receipt = await oracle.send(stage.admin, "setAssetSources", [usdc], [feed])
        assert not (await line.step()).sent
        assert said(line) == [(OLD, f"price source of {checksum(usdc)}")]
        [entry] = [each for each in line.booked("tripped") if each.body["breaker"] == "code_changed"]
        assert entry.body["numbers"]["transaction"] == hex_of(receipt.transaction_hash)
        assert entry.body["numbers"]["sender"] == checksum(stage.admin)
        refusal = line.engine.breakers.standing(OLD)
        assert refusal is not None and line.engine.breakers.standing(NEW) is None


async def test_a_proxys_own_word_is_looked_into_at_once(stage: Stage) -> None:
    """A price source that says Upgraded, which no event of Aave tells: both its protocols stop at that very head."""
    config = stage.rig.config
    config.write_text(config.read_text().replace("recheck_code_blocks = 4", "recheck_code_blocks = 1000"))
    source, logic, fresh = stage.lab.world.feeds["ISO"].proxy, account(4_003), account(4_004)
    upgrade = b"\x73" + fresh + b"\x7f" + SLOTS["implementation"].to_bytes(32) + b"\x55"  # sstore
    upgrade += b"\x73" + fresh + b"\x7f" + keccak(b"Upgraded(address)") + bytes.fromhex("5f5fa200")
    proxy = (
        bytes.fromhex("3615603257")  # called with nothing it upgrades itself
        + bytes.fromhex("365f5f37 5f5f365f73")
        + logic
        + bytes.fromhex("5af4 3d5f5f3e 602e57 3d5ffd 5b3d5ff3 5b")
        + upgrade
    )
    await stage.node.set_code({logic: await stage.node.code(source), source: proxy})
    async with stage.line() as line:
        await line.step()
        receipt = await stage.node.send(Tx(stage.admin, source, b""))
        await line.step()
        token = checksum(stage.lab.world.tokens["ISO"].address)
        assert sorted(said(line)) == [(OLD, f"price source of {token}"), (NEW, f"price source of {token}")]
        numbers = line.booked("tripped")[0].body["numbers"]
        assert numbers["transaction"] == hex_of(receipt.transaction_hash)
        assert numbers["now"]["implementation"] == checksum(fresh)


@pytest.mark.parametrize(
    ("order", "role"),
    [
        ("setACLManager", "ACL manager"),
        ("setPoolDataProvider", "data provider"),
        ("setPriceOracle", "oracle"),
        ("setPoolConfiguratorImpl", "configurator"),
    ],
)
async def test_what_the_addresses_provider_names_is_watched(stage: Stage, order: str, role: str) -> None:
    """Each order of the real provider stops the protocol at the next head, with its transaction."""
    other = stage.lab.world.aave["3.6"]
    values = {
        "setACLManager": other.acl,
        "setPoolDataProvider": other.data_provider,
        "setPriceOracle": other.oracle,
    }
    async with stage.line() as line:
        await line.step()
        if order in values:
            value = values[order]
        else:
            implementation = await stage.node.storage(stage.market.configurator, SLOTS["implementation"])
            value = account(4_001)
            await stage.node.set_code(
                {value: await stage.node.code(Address(implementation.to_bytes(20))) + b"\0"}
            )
            await stage.node.set_storage([(stage.market.configurator, 0, 0)])
        receipt = await stage.govern(order, value)
        await line.step()
        assert (OLD, role) in said(line)
        [entry] = [each for each in line.booked("tripped") if each.body["subject"] == role]
        assert entry.body["numbers"]["transaction"] == hex_of(receipt.transaction_hash)
        assert line.engine.breakers.standing(NEW) is None


async def test_an_upgrade_in_a_lost_head_is_found_at_the_next(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that fails between the two looks at one head, after its logs were taken in, hides nothing."""
    config = stage.rig.config
    config.write_text(config.read_text().replace("recheck_code_blocks = 4", "recheck_code_blocks = 1000"))
    async with stage.line() as line:
        await line.step()
        await stage.govern("setPriceOracle", stage.lab.world.aave["3.6"].oracle)
        look, looks = line.engine.look, 0

        async def fail_the_second(head: Head) -> View:
            nonlocal looks
            looks += 1
            if looks == 2:
                raise ChainError("the node went away")
            return await look(head)

        with monkeypatch.context() as broken, pytest.raises(ChainError):
            broken.setattr(line.engine, "look", fail_the_second)
            await line.step()
        assert looks == 2 and not said(line)
        await stage.node.mine()
        await line.step()
        assert (OLD, "oracle") in said(line)


async def test_a_changed_token_stops_its_protocol(stage: Stage) -> None:
    """An aToken upgraded by the configurator: balances may mean something else."""
    usdc = stage.market.reserves["USDC"]
    implementation = stage.market.implementations["a_token"]
    fresh = account(4_002)
    code = await stage.node.code(implementation) + b"\0"
    async with stage.line() as line:
        await line.step()
        await stage.node.set_code({fresh: code})
        await stage.node.set_storage([(usdc.a_token, 0, 0)])
        names = (f"Aave {usdc.token.symbol}", f"a{usdc.token.symbol}")
        treasury = stage.lab.world.cast.treasury.address
        order = (usdc.token.address, treasury, ZERO_ADDRESS, *names, fresh, b"\x10")
        await configurator_of(stage.node, stage.market).send(stage.admin, "updateAToken", order)
        await line.step()
        assert said(line) == [(OLD, f"aToken of {checksum(usdc.token.address)}")]


async def test_an_upgrade_takes_back_what_is_in_flight(stage: Stage) -> None:
    """A liquidation that waits is cancelled: it was decided by code that is no longer there."""
    async with stage.line() as line:
        await line.step()
        await stage.fall("3.0")
        fresh = await stage.new_pool()
        await stage.node.mine_on_demand()
        assert len((await line.step()).sent) == 1
        await stage.node.drop_pending()
        provider = Contract(stage.node, stage.market.provider, aave_v3_0("PoolAddressesProvider").abi)
        await line.pend(provider.tx(stage.admin, "setPoolImpl", fresh, gas=3_000_000))
        await stage.node.mine()
        await line.step()
        assert [entry.body["purpose"] for entry in line.booked("signed")] == ["plan", "cancel"]


def test_links_are_read_from_code_and_not_from_data() -> None:
    """Twenty bytes that are pushed are found, in order and once; the same bytes inside another push are none."""
    one, two = bytes(range(1, 21)), bytes(range(21, 41))
    code = b"\x60\x73" + b"\x73" + two + b"\x7f\x73" + one + bytes(11) + b"\x73" + one + b"\x50\x73" + two
    assert linked(code) == [two, one]
    assert linked(b"\x73" + one[:19]) == [] and linked(b"") == []
