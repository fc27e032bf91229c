from __future__ import annotations

import json
from pathlib import Path

import pytest

from keeper.errors import AdapterError
from keeper.lab.actors import account
from keeper.lab.artifacts import synthetix, synthetix_interface
from keeper.lab.node import Contract
from keeper.lab.synthetix import UNIT, PerpSpec, key_of
from keeper.lab.world import Lab
from keeper.protocols.synthetix_v2_perps import (
    FLAG_SELECTOR,
    LIQUIDATE_SELECTOR,
    SynthetixV2Perps,
    SynthetixV2PerpsConfig,
)
from keeper.seams import Adapter
from keeper.types import Address, PositionKey
from tests.protocols.synthetix_lab import OTHER, TRADER, PerpsFollower, following_perps

ABIS = Path(__file__).parents[2] / "abis"
POSITION = PerpSpec(TRADER, 1_000 * UNIT, 10 * UNIT)


def test_the_adapter_fits_its_seam() -> None:
    """It is what the engine takes; using it before it is loaded says so."""
    first, second = Address(b"\1" * 20), Address(b"\2" * 20)
    config = SynthetixV2PerpsConfig(name="snx", markets=(first,), susd_usd_feed=Address(b"\3" * 20))
    adapter: Adapter
    (adapter,) = SynthetixV2Perps.made_of(config, None)
    several = SynthetixV2Perps.made_of(config.model_copy(update={"markets": (first, second)}), None)
    assert [one.name for one in several] == ["snx-01010101", "snx-02020202"]
    assert (adapter.name, adapter.market, adapter.settled_jointly) == ("snx", "0x" + "01" * 20, False)
    with pytest.raises(AdapterError, match="before it was loaded"):
        adapter.sources()
    with pytest.raises(AdapterError, match="before it was loaded"):
        next(adapter.marks(None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "contracts"),
    [
        ("AddressResolver", ("AddressResolver",)),
        ("ExchangeRates", ("ExchangeRates",)),
        (
            "PerpsMarket",
            ("ProxyPerpsV2", "PerpsV2Market", "PerpsV2MarketLiquidate", "PerpsV2MarketViews"),
        ),
        ("PerpsSettings", ("PerpsV2MarketSettings",)),
        ("PerpsState", ("PerpsV2MarketState",)),
        ("Synth", ("Synth", "ProxyERC20")),
        ("SystemStatus", ("SystemStatus",)),
    ],
)
def test_the_interfaces_are_the_contracts_own(name: str, contracts: tuple[str, ...]) -> None:
    """Every function and event the adapter speaks is in the published source, with these types."""
    published = {
        (entry["type"], entry.get("name"), _types(entry, "inputs"), _types(entry, "outputs"))
        for contract in contracts
        for entry in synthetix_interface(contract)
    }
    for entry in json.loads((ABIS / f"Synthetix{name}.json").read_text()):
        key = (entry["type"], entry["name"], _types(entry, "inputs"), _types(entry, "outputs"))
        assert key in published, entry["name"]


def _types(entry: object, side: str) -> str:
    assert isinstance(entry, dict)
    return json.dumps(
        [
            (part["type"], part.get("indexed"), [inner["type"] for inner in part.get("components", ())])
            for part in entry.get(side, ())
        ]
    )


async def test_loading_finds_the_market(lab: Lab) -> None:
    """Its two steps, sUSD with its feed, every contract by what it is, and nothing to warn of."""
    async with following_perps(lab) as follower:
        await follower.follow()
        adapter, market, system = follower.adapter, follower.market, follower.synthetix.contracts
        assert list(adapter.targets()) == [
            (market.proxy, FLAG_SELECTOR),
            (market.proxy, LIQUIDATE_SELECTOR),
        ]
        assert adapter.feeds() == {follower.synthetix.susd.address: follower.synthetix.susd_feed.proxy}
        assert adapter.loaded.asset == "sETH" and adapter.warnings() == ()
        found = adapter.contracts()
        assert found["part that flags"] == found["part that liquidates"]
        assert found["part that liquidates"] == market.fragments["PerpsV2MarketLiquidate"]
        assert found["part that trades"] == market.fragments["PerpsV2Market"]
        assert found["part that answers"] == market.fragments["PerpsV2MarketViews"]
        assert (found["market"], found["market state"]) == (market.proxy, market.state)
        assert found["price source"] == market.feed.proxy
        named = {role: system[name] for role, name in {"exchange rates": "ExchangeRates"}.items()}
        assert named.items() <= found.items()
        assert set(system.values()) - set(found.values()) == {
            follower.world.cast.deployer.address,
            system["Exchanger"],
            system["PerpsV2ExchangeRate"],
        }


async def test_what_is_no_market_is_said_so(lab: Lab) -> None:
    """Another contract's address, and an address without code, are one clear error each."""
    async with following_perps(lab) as follower:
        head = await follower.node.head()
        for at in (follower.synthetix.susd.address, account(99)):
            config = SynthetixV2PerpsConfig(
                name="snx", markets=(at,), susd_usd_feed=follower.synthetix.susd_feed.proxy
            )
            with pytest.raises(AdapterError):
                await follower.chain.read(SynthetixV2Perps.made_of(config, None)[0].load(), head.hash)


async def test_both_steps_count_as_liquidations_of_their_market(lab: Lab) -> None:
    """Each names the position and its transaction; another market's are not ours."""
    async with following_perps(lab) as follower:
        await follower.open(POSITION)
        await follower.node.set_balances([OTHER])
        await follower.follow()
        await follower.move(0.9)
        steps = [await follower.send(OTHER, name, TRADER) for name in ("flagPosition", "liquidatePosition")]
        logs = [log for receipt in steps for log in receipt.logs]
        wanted = [(follower.key(TRADER), receipt.transaction_hash) for receipt in steps]
        assert list(follower.adapter.liquidations(logs)) == wanted
        proxy = follower.synthetix.markets["BTC"].proxy
        config = SynthetixV2PerpsConfig(
            name="snx-btc", markets=(proxy,), susd_usd_feed=follower.synthetix.susd_feed.proxy
        )
        other, head = SynthetixV2Perps.made_of(config, None)[0], await follower.node.head()
        await follower.chain.read(other.load(), head.hash)
        assert list(other.liquidations(logs)) == []
        assert not other.discover(logs).keys


async def test_flagged_accounts_are_listed_by_the_chain(lab: Lab) -> None:
    """A keeper without logs finds what is flagged, and only that."""
    async with following_perps(lab) as follower:
        await follower.open(POSITION, PerpSpec(OTHER, 1_000 * UNIT, 10 * UNIT))
        await follower.follow()
        await follower.move(0.9)
        await follower.send(OTHER, "flagPosition", TRADER)
        head = await follower.node.head()
        assert await follower.chain.read(follower.adapter.enumerate(), head.hash) == {
            PositionKey("snx-eth", follower.adapter.market, TRADER)
        }


async def test_moved_contracts_are_loaded_again(lab: Lab) -> None:
    """A new route, a new price source and a new entry in the address book each ask for a reload and are found."""
    async with following_perps(lab) as follower:
        await follower.open(POSITION)
        await follower.follow()
        node, deployer = follower.node, follower.world.cast.deployer.address
        router = Contract(node, follower.market.proxy, synthetix("ProxyPerpsV2").abi)
        new = follower.synthetix.markets["BTC"].fragments["PerpsV2MarketLiquidate"]
        await router.send(deployer, "addRoute", FLAG_SELECTOR, new, False)
        assert await _reloads(follower) == 1
        assert follower.adapter.contracts()["part that flags"] == new
        feed = follower.world.feeds["WBTC"].proxy
        await follower.govern("ExchangeRates", "addAggregator", key_of("sETH"), feed)
        assert await _reloads(follower) == 2
        assert follower.adapter.contracts()["price source"] == feed
        await follower.govern("AddressResolver", "importAddresses", [key_of("Other")], [account(5)])
        assert await _reloads(follower) == 3


async def _reloads(follower: PerpsFollower) -> int:
    """How often the adapter was loaded again, once what just happened was followed."""
    await follower.follow()
    return follower.reloads


async def test_calldata_names_its_account(lab: Lab) -> None:
    """Either step's calldata says whose position it is about; anything else says nothing."""
    async with following_perps(lab) as follower:
        await follower.open(POSITION)
        await follower.move(0.9)
        marks = await follower.marks(await follower.follow())
        calls = follower.adapter.liquidation_calls(follower.option(TRADER, marks), 0)
        assert [call.data[:4] for call in calls] == [FLAG_SELECTOR, LIQUIDATE_SELECTOR]
        assert [follower.adapter.position_of(call.data) for call in calls] == [follower.key(TRADER)] * 2
        assert follower.adapter.position_of(b"\1\2\3\4" + bytes(32)) is None
