"""Feeds whose updates are auctioned: which sources read one, whatever stands between, and where it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keeper import auctions, commands
from keeper.abi import checksum
from keeper.auctions import Auctioned
from keeper.chain.client import Chain
from keeper.fixed import WAD
from keeper.lab.aave import oracle_of
from keeper.lab.actors import account
from keeper.lab.artifacts import chainlink, own
from keeper.lab.chainlink import auction, latest
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.rig import CONTRACTS, Terms, make_rig
from keeper.lab.solc import own_artifact
from keeper.lab.world import Lab
from keeper.protocols.aave_v3 import AaveV3, AaveV3Config
from keeper.types import ZERO_ADDRESS, Address
from tests.e2e.line import open_again

ETHER = 10**18
_E8 = 10**8
_CUTOFF_S = 60
WHO = account(1)


@pytest.fixture
async def chain(lab: Lab) -> AsyncIterator[Chain]:
    """A connection of the keeper's own."""
    async with await Chain.open([lab.anvil.url], lab.world.chain_id) as opened:
        yield opened


async def _found(lab: Lab, chain: Chain) -> list[Auctioned]:
    """What is auctioned of the newer Aave's prices."""
    head = await chain.head()
    adapter = AaveV3(AaveV3Config(name="aave", pool_addresses_provider=lab.world.aave["3.6"].provider))
    await chain.read(adapter.load(), head.hash)
    return await auctions.find(chain, adapter.contracts(), head.hash)


async def _reads(lab: Lab, symbol: str, source: Address) -> None:
    """Let the market price a token by another source."""
    market, token = lab.world.aave["3.6"], lab.world.tokens[symbol]
    admin = lab.world.cast.deployer.address
    await oracle_of(lab.node, market).send(admin, "setAssetSources", [token.address], [source])


async def test_the_proxy_that_gets_auctioned_answers_is_found_and_no_other(lab: Lab, chain: Chain) -> None:
    """Also behind an adapter that caps its price; a proxy that reads the same aggregator's standard answers, and feeds
    of other kinds, are left out.
    """
    world, node, cast = lab.world, lab.node, lab.world.cast
    assert await _found(lab, chain) == []
    feed, weth = world.feeds["WETH"], world.tokens["WETH"]
    double = await auction(node, cast, feed, _CUTOFF_S)
    told = (feed.proxy, double.address, "DualAggregator 1.0.0")
    expected = Auctioned(checksum(weth.address), "WETH", feed.proxy, *told)
    assert await _found(lab, chain) == [expected]
    capped = own("CapAdapterDouble").creation_code(feed.proxy, 5_000 * _E8)
    source = await node.deploy(cast.deployer.address, capped)
    standard = chainlink("EACAggregatorProxy").creation_code(double.address, ZERO_ADDRESS)
    await _reads(lab, "wstETH", source)
    await _reads(lab, "WBTC", await node.deploy(cast.deployer.address, standard))
    wsteth = Auctioned(checksum(world.tokens["wstETH"].address), "wstETH", source, *told)
    assert await _found(lab, chain) == [expected, wsteth]


async def test_a_standard_report_comes_through_after_the_cutoff(lab: Lab) -> None:
    """The double does what it stands for: what was not auctioned is seen late, what was at once."""
    feed, node = lab.world.feeds["WETH"], lab.node
    double = await auction(node, lab.world.cast, feed, _CUTOFF_S)
    sender = lab.world.cast.reporter.address
    await double.send(sender, "transmit", 1_900 * _E8)
    assert (await latest(node, feed)).price_raw == 2_000 * _E8
    assert await double.read("latestAnswer") == 1_900 * _E8
    await node.advance(_CUTOFF_S + 1)
    assert (await latest(node, feed)).price_raw == 1_900 * _E8
    await double.send(sender, "transmitSecondary", 1_800 * _E8)
    assert (await latest(node, feed)).price_raw == 1_800 * _E8


async def test_doctor_and_explain_name_it_and_what_is_left_is_liquidated(lab: Lab, tmp_path: Path) -> None:
    """Doctor warns once for each market with the feed and the asset, and lets the keeper run; explain lists it. Where
    nobody bids the update comes late, and the account is liquidated then.
    """
    world, node = lab.world, lab.node
    rig = await make_rig(lab, tmp_path, Terms())
    feed = world.feeds["WETH"]
    double = await auction(node, world.cast, feed, _CUTOFF_S)
    spec = PositionSpec(WHO, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
    await open_position(node, world.cast, world.aave["3.6"], spec)
    document = await commands.doctor(rig.config, {name: own_artifact(name) for name in CONTRACTS})
    warned = [check for check in document["checks"] if check["name"] == "auctioned feed of WETH"]
    assert len(warned) == len(world.aave)
    for check in warned:
        assert not check["ok"] and not check["required"] and "docs/aave.md" in check["fix"]
        for what in (feed.proxy, double.address, world.tokens["WETH"].address):
            assert checksum(what) in check["detail"]
    told = await commands.explain(rig.config, checksum(WHO))
    for protocol in told["protocols"]:
        [row] = protocol["auctioned_feeds"]
        assert (row["symbol"], row["feed"]) == ("WETH", checksum(feed.proxy))
    async with open_again(lab, rig) as line:
        await double.send(world.cast.reporter.address, "transmit", 1_750 * _E8)
        assert (await line.step()).liquidatable == 0
        await node.advance(_CUTOFF_S + 1)
        await line.steps()
        assert [entry.account for entry in line.booked("settled")][:1] == [checksum(WHO)]
