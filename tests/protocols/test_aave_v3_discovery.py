from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from keeper.abi import load
from keeper.errors import AdapterError
from keeper.lab.aave import (
    ReserveSpec,
    Version,
    configurator_of,
    list_reserves,
    oracle_of,
    pool_of,
    supply_by_lender,
)
from keeper.lab.actors import account
from keeper.lab.artifacts import aave_v3_0
from keeper.lab.chainlink import Feed, deploy_feed
from keeper.lab.node import Contract
from keeper.lab.positions import PositionSpec, account_data, liquidate, open_position
from keeper.lab.tokens import deploy_token, erc20, mint
from keeper.lab.world import Lab, add_token
from keeper.protocols.aave_v3 import LIQUIDATION_CALL_SELECTOR, AaveFlash, AaveV3, AaveV3Config
from keeper.protocols.aave_v3.market import ATOKEN, POOL, PROVIDER
from keeper.seams import Adapter, FlashKind, FlashSource, Touched
from keeper.types import (
    Address,
    BlockNumber,
    Hash,
    Log,
)
from tests.protocols.aave_v3_lab import Follower, following

VERSIONS: tuple[Version, ...] = ("3.0", "3.6")
BORROWER, FRIEND = account(1), account(2)
ETHER = 10**18
POSITION = PositionSpec(BORROWER, {"WETH": 10 * ETHER, "DAI": 100 * ETHER}, {"USDC": 1}, 12 * 10**17)


def test_an_adapter_and_a_flash_source_fit_their_seams() -> None:
    """Both are what the engine takes; using either before it is loaded says so."""
    aave = AaveV3(AaveV3Config(name="aave", pool_addresses_provider=Address(b"\1" * 20)))
    adapter: Adapter = aave
    flash: FlashSource = AaveFlash(aave)
    assert (adapter.name, adapter.market) == ("aave", "0x" + "01" * 20)
    assert flash.kind is FlashKind.AAVE_V3
    with pytest.raises(AdapterError, match="before it was loaded"):
        adapter.sources()


@pytest.mark.parametrize("version", VERSIONS)
async def test_loading_finds_the_market(version: Version, lab: Lab) -> None:
    """Reserves in their order with symbols, decimals and feeds; the pool's one function; no warnings."""
    async with following(version, lab) as follower:
        await follower.follow()
        adapter, world = follower.adapter, lab.world
        loaded = adapter.loaded
        assert loaded.rules.version == version
        assert [reserve.token for reserve in loaded.listed()] == [
            reserve.token for reserve in follower.market.reserves.values()
        ]
        assert [reserve.id for reserve in loaded.listed()] == list(range(7))
        assert adapter.warnings() == ()
        assert adapter.targets() == [(follower.market.pool, LIQUIDATION_CALL_SELECTOR)]
        assert (
            LIQUIDATION_CALL_SELECTOR
            == POOL.function("liquidationCall").selector
            == bytes.fromhex("00a718a9")
        )
        assert adapter.feeds() == {
            token.address: world.feeds[symbol].proxy for symbol, token in world.tokens.items()
        }
        assert {mode: (each.threshold_bps, each.bonus_bps) for mode, each in loaded.emodes.items()} == {
            1: (9_500, 10_100),
            2: (9_300, 10_100),
        }
        assert follower.market.pool in adapter.sources().addresses
        nobody = await follower.chain.read(adapter.enumerate(), (await follower.node.head()).hash)
        assert nobody == set()


# --- every way a position can change ------------------------------------------------------------------------------


async def _touched(follower: Follower, act: Callable[[], Awaitable[object]]) -> Touched:
    before = (await follower.node.head()).number
    await act()
    after = (await follower.node.head()).number
    logs = await follower.chain.logs([follower.adapter.sources()], before + 1, after)
    return follower.adapter.discover(logs)


@pytest.mark.parametrize("version", VERSIONS)
async def test_whatever_changes_a_position_names_its_account(version: Version, lab: Lab) -> None:
    """Supply, borrow, repay (by a third party, with aTokens), withdraw, e-mode, collateral switch, transfer of
    aTokens, liquidation: the account is among those touched each time, and nothing asks for a reload.
    """
    async with following(version, lab) as follower:
        await follower.follow()
        node, market, cast = follower.node, follower.market, lab.world.cast
        pool = pool_of(node, market)
        lender = cast.lender.address
        weth, usdc, dai = (market.reserves[symbol] for symbol in ("WETH", "USDC", "DAI"))
        opened = await _touched(follower, lambda: open_position(node, cast, market, POSITION))
        assert follower.key(BORROWER) in opened.keys
        await node.set_balances([FRIEND])
        for token, owner in ((usdc.token, lender), (weth.token, lender), (usdc.token, BORROWER)):
            await mint(node, cast, token, owner, 1_000 * 10**token.decimals)
            await erc20(node, token).send(owner, "approve", market.pool, 2**255)
        a_dai = Contract(node, dai.a_token, load("Erc20"))

        def by(sender: Address, name: str, *args: object) -> Callable[[], Awaitable[object]]:
            return lambda: pool.send(sender, name, *args)

        acts: Mapping[str, Callable[[], Awaitable[object]]] = {
            "supply on behalf": by(lender, "supply", weth.token.address, ETHER, BORROWER, 0),
            "borrow": by(BORROWER, "borrow", usdc.token.address, 10**6, 2, 0, BORROWER),
            "repay by another": by(lender, "repay", usdc.token.address, 10**6, 2, BORROWER),
            "supply": by(BORROWER, "supply", usdc.token.address, 10**7, BORROWER, 0),
            "repay with aTokens": by(BORROWER, "repayWithATokens", usdc.token.address, 10**6, 2),
            "withdraw": by(BORROWER, "withdraw", weth.token.address, 10**15, lender),
            "collateral switch": by(BORROWER, "setUserUseReserveAsCollateral", usdc.token.address, False),
            "e-mode": by(BORROWER, "setUserEMode", 1),
            "give aTokens": lambda: a_dai.send(BORROWER, "transfer", FRIEND, ETHER),
            "get aTokens": lambda: a_dai.send(FRIEND, "transfer", BORROWER, ETHER // 2),
        }
        for name, act in acts.items():
            touched = await _touched(follower, act)
            assert follower.key(BORROWER) in touched.keys, name
            assert not touched.reload, name
        await follower.set_prices({"WETH": 0.5})
        assert (
            follower.key(BORROWER)
            in (
                await _touched(follower, lambda: liquidate(node, cast, market, BORROWER, "WETH", "USDC"))
            ).keys
        )
        assert follower.key(Address(bytes(20))) not in opened.keys


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_structural_change_asks_for_a_reload(version: Version, lab: Lab) -> None:
    """A listed reserve, an e-mode, its members, a price source, an upgrade: each asks for a reload; a price does not.
    After it the new reserve's aToken is watched too.
    """
    async with following(version, lab) as follower:
        await follower.follow()
        node, market, world = follower.node, follower.market, lab.world
        admin = world.cast.deployer.address
        configurator = configurator_of(node, market)
        old = version == "3.0"
        wbtc = market.reserves["WBTC"].token.address
        label: tuple[object, ...] = (Address(bytes(20)), "new") if old else ("new",)
        join = ("setAssetEModeCategory", wbtc, 3) if old else ("setAssetCollateralInEMode", wbtc, 3, True)
        extra = ReserveSpec("NEW", 5_000, 6_000, 500)

        acts: Mapping[str, Callable[[], Awaitable[object]]] = {
            "e-mode": lambda: configurator.send(admin, "setEModeCategory", 3, 8_000, 8_100, 10_100, *label),
            "member": lambda: configurator.send(admin, *join),
            "price source": lambda: oracle_of(node, market).send(
                admin, "setAssetSources", [wbtc], [world.feeds["WETH"].proxy]
            ),
            "sentinel": lambda: Contract(node, market.provider, aave_v3_0("PoolAddressesProvider").abi).send(
                admin, "setPriceOracleSentinel", account(9)
            ),
            "reserve": lambda: add_token(node, world, "NEW", 18, 3, extra),
        }
        for name, act in acts.items():
            assert (await _touched(follower, act)).reload, name
        assert not (await _touched(follower, lambda: follower.set_prices({"WETH": 0.9}))).reload
        watched = set(follower.adapter.sources().addresses)
        head = await node.head()
        await follower.chain.read(follower.adapter.load(), head.hash)
        assert set(follower.adapter.sources().addresses) - watched == {
            follower.adapter.loaded.reserve(7).a_token,
            follower.adapter.loaded.reserve(7).price_source,
        }
        assert follower.adapter.loaded.emodes[3].threshold_bps == 8_100


async def test_every_pool_event_names_its_account_by_itself(lab: Lab) -> None:
    """Each event's own log, without the transfers around it, touches the account that its interface calls onBehalfOf,
    or else user, and nobody else.
    """
    async with following("3.6", lab) as follower:
        await follower.follow()
        names = [entry["name"] for entry in _pool_entries() if entry["type"] == "event"]
        assert len(names) == 12
        for entry in _pool_entries():
            if entry["type"] != "event":
                continue
            indexed = [part["name"] for part in entry["inputs"] if part["indexed"]]
            owner = "onBehalfOf" if "onBehalfOf" in indexed else "user"
            parties = tuple(Hash(bytes(12) + account(20 + place)) for place in range(len(indexed)))
            log = _log(follower.market.pool, (POOL.event(entry["name"]).topic, *parties))
            touched = follower.adapter.discover([log])
            assert touched.keys == {follower.key(account(20 + indexed.index(owner)))}, entry["name"]


def _pool_entries() -> list[dict[str, Any]]:
    path = Path(__file__).parents[2] / "abis" / "AavePool.json"
    entries: list[dict[str, Any]] = json.loads(path.read_text())
    return entries


async def test_logs_of_others_touch_nothing(lab: Lab) -> None:
    """The same topics from another contract, a log without topics, a transfer of something else."""
    async with following("3.6", lab) as follower:
        await follower.follow()
        topics = [
            POOL.event("Borrow").topic,
            ATOKEN.event("Transfer").topic,
            PROVIDER.event("PoolUpdated").topic,
        ]
        party = Hash(bytes(12) + BORROWER)
        logs = [_log(account(7), (topic, party, party, party)) for topic in topics]
        logs.append(_log(follower.market.pool, ()))
        assert follower.adapter.discover(logs) == Touched(frozenset(), False)


def _log(address: Address, topics: tuple[Hash, ...]) -> Log:
    return Log(address, topics, b"", BlockNumber(1), Hash(bytes(32)), Hash(bytes(32)), 0)


# --- size ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
async def test_seventy_reserves_and_accounts_that_use_twenty(version: Version, lab: Lab) -> None:
    """Reserve ids beyond 63 need the upper half of the bitmap: an account with 12 collaterals and 8 debts among 70
    reserves has the pool's health, and one opened before the reserves were listed keeps its own.
    """
    async with following(version, lab) as follower:
        node, cast = follower.node, lab.world.cast
        early = await open_position(node, cast, follower.market, POSITION)
        await follower.follow()
        chosen = [f"T{number}" for number in range(63)]
        await _list(follower, chosen)
        held, owed = chosen[::5][:11] + chosen[-1:], chosen[3::7][:8]
        reserves = follower.market.reserves
        assert reserves[chosen[-1]].id == 69
        lent = {symbol: 10**6 * 10 ** reserves[symbol].token.decimals for symbol in owed}
        await supply_by_lender(node, cast, follower.market, lent)
        wide = PositionSpec(
            FRIEND,
            {symbol: 1_000 * 10 ** reserves[symbol].token.decimals for symbol in held},
            dict.fromkeys(owed, 1),
            13 * 10**17,
        )
        await open_position(node, cast, follower.market, wide)
        head = await follower.follow()
        assert follower.reloads == 1
        marks = await follower.marks(head)
        truths = await account_data(node, follower.market, [BORROWER, FRIEND])
        for owner, truth in zip((BORROWER, FRIEND), truths, strict=True):
            health = follower.health(owner, marks)
            assert (health.collateral_base, health.debt_base) == (truth.collateral_base, truth.debt_base)
            assert health.health_factor_wad == truth.health_factor_wad
        assert truths[0].collateral_base == early.collateral_base
        assert len(follower.health(FRIEND, marks).detail.collateral) == 12
        assert len(follower.health(FRIEND, marks).detail.debt) == 8
        assert follower.book.candidates(marks) == []


async def _list(follower: Follower, symbols: Sequence[str]) -> None:
    """List new tokens of 6, 8 and 18 decimals at $1 to $3 on the follower's market."""
    node, world = follower.node, follower.world
    tokens, feeds = dict(world.tokens), dict(world.feeds)
    for number, symbol in enumerate(symbols):
        tokens[symbol] = await deploy_token(node, world.cast, symbol, (6, 8, 18)[number % 3])
        # one feed for every third token: what is tried here is width, not prices
        feeds[symbol] = (
            feeds[symbols[number - 3]] if number > 2 else await _feed(follower, symbol, number + 1)
        )
    specs = [_plain(symbol) for symbol in symbols]
    follower.market = await list_reserves(node, world.cast, follower.market, tokens, feeds, specs)


async def _feed(follower: Follower, symbol: str, price_usd: int) -> Feed:
    return await deploy_feed(follower.node, follower.world.cast, symbol, price_usd * 10**8)


def _plain(symbol: str) -> ReserveSpec:
    return ReserveSpec(symbol, 5_000, 6_000, 500)
