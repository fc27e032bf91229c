from __future__ import annotations

from dataclasses import astuple

import pytest

from keeper.errors import AdapterError
from keeper.fixed import MAX_UINT256, WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import deploy_feed
from keeper.lab.perp_exchange import HOUSE, TraderSpec
from keeper.lab.world import Lab
from keeper.protocols.reference_perp import ReferencePerp, ReferencePerpConfig
from keeper.protocols.reference_perp.exchange import account_key, number_of
from keeper.protocols.reference_perp.positions import holding_of
from keeper.seams import Adapter
from keeper.types import Address
from tests.protocols.reference_perp_lab import (
    BTC,
    ETH,
    ISO,
    MARKETS,
    OTHER,
    TRADER,
    USDC,
    ExchangeFollower,
    following_exchange,
    units,
)


def test_the_adapter_fits_its_seam() -> None:
    """It is what the engine takes; using it before it is loaded says so; a key carries an account's number."""
    config = ReferencePerpConfig(name="reference", exchange=Address(b"\1" * 20))
    adapter: Adapter
    (adapter,) = ReferencePerp.made_of(config, None)
    assert (adapter.name, adapter.market, adapter.settled_jointly) == ("reference", "0x" + "01" * 20, True)
    for use in (adapter.sources, lambda: next(adapter.marks(None))):  # type: ignore[arg-type]
        with pytest.raises(AdapterError, match="before it was loaded"):
            use()
    assert [number_of(account_key(number)) for number in (1, 2**160 - 1)] == [1, 2**160 - 1]
    with pytest.raises(AdapterError, match="do not trust"):
        account_key(2**160)


async def test_loading_finds_the_exchange(lab: Lab) -> None:
    """Collateral, feeds and their units, the liquidator's account, and every contract by what it is."""
    liquidator = lab.world.cast.liquidator.address
    async with following_exchange(lab, liquidator) as follower:
        await follower.follow()
        adapter, exchange = follower.adapter, follower.adapter.loaded
        assert (exchange.token, exchange.scale, exchange.heir) == (lab.world.tokens["USDC"], 10**12, 0)
        assert [(feed.address, feed.scale) for feed in exchange.feeds] == [
            (feed.proxy, 10**10) for feed in follower.feeds
        ]
        assert {to for to, _ in adapter.targets()} == {follower.exchange.address}
        assert len(set(adapter.targets())) == 5 and adapter.feeds() == {} and adapter.warnings() == ()
        assert set(adapter.contracts().values()) == {
            follower.exchange.address,
            exchange.token.address,
            *(feed.proxy for feed in follower.feeds),
        }
        marks = await follower.marks()
        assert marks.exact.heir.number == 0
        await follower.send(liquidator, "createAccount", True)
        assert (await follower.marks()).exact.heir.number == 1 and follower.reloads == 1


async def test_what_is_no_exchange_is_said_so(lab: Lab) -> None:
    """Another contract's address, and an address without code, are one clear error each."""
    async with following_exchange(lab) as follower:
        head = await follower.node.head()
        for at in (follower.exchange.token.address, account(99)):
            (adapter,) = ReferencePerp.made_of(ReferencePerpConfig(name="x", exchange=at), None)
            with pytest.raises(AdapterError):
                await follower.chain.read(adapter.load(), head.hash)


async def test_an_inheritance_names_both(lab: Lab) -> None:
    """Who loses a position and who inherits it are both read again."""
    async with following_exchange(lab) as follower:
        number = await follower.open_one(TRADER, 2_000, (ETH, units(10)))
        heir = await follower.open_one(OTHER, 50_000, (BTC, units(1)))
        await follower.follow()
        await follower.move(WETH=0.92)
        await follower.follow()
        await follower.send(OTHER, "inherit", number, ETH, units(1), heir)
        head = await follower.node.head()
        logs = await follower.chain.logs([follower.adapter.sources()], head.number, head.number)
        assert follower.adapter.discover(logs).keys == {follower.key(number), follower.key(heir)}
        await follower.follow()
        await _is_what_is_held(follower, [number, heir])


async def test_a_deleveraged_winner_is_found(lab: Lab) -> None:
    """A bankrupt is closed against a winner, and the rest of its loss socialized: both accounts are read again, and
    whoever bears a part of the loss does by the marks.
    """
    async with following_exchange(lab) as follower:
        number = await follower.open_one(TRADER, 160_000, (ETH, units(1_000)))
        winner = await follower.open_one(OTHER, 50_000, (ETH, -units(100)))
        other = await follower.open_one(account(3), 50_000, (ETH, -units(100)))
        await follower.follow()
        await follower.move(WETH=0.5)
        await follower.follow()
        await follower.send(OTHER, "deleverage", number, ETH, 10)
        head = await follower.node.head()
        logs = await follower.chain.logs([follower.adapter.sources()], head.number, head.number)
        assert {follower.key(number), follower.key(winner)} <= follower.adapter.discover(logs).keys
        await follower.follow()
        await _is_what_is_held(follower, [number, winner, other])
        marks = await follower.marks(ahead_s=0)
        for key in follower.book:
            judged = follower.adapter.assess(follower.book.position(key), marks).detail.judged  # type: ignore[union-attr]
            assert judged.equity == (await follower.contract.read("assess", number_of(key.account)))[0]


async def _is_what_is_held(follower: ExchangeFollower, numbers: list[int]) -> None:
    for number in numbers:
        _, _, flagged, cut, collateral, markets = await follower.contract.read("accountOf", number)
        if not markets:
            assert follower.key(number) not in set(follower.book)
            continue
        holding = holding_of(follower.book.position(follower.key(number)).words)
        assert (holding.collateral, holding.flagged, holding.cut) == (collateral, flagged, cut)
        assert [stake.market for stake in holding.stakes] == [at for at in range(8) if markets >> at & 1]
        for stake in holding.stakes:
            size, cost, index, _ = await follower.contract.read("holding", number, stake.market)
            assert (stake.size, stake.cost, stake.index) == (size, cost, index)


async def test_an_account_that_the_fund_helps_is_found(lab: Lab) -> None:
    """A step of deleveraging that reaches no winner pays what the fund has into the account, and trades nothing."""
    async with following_exchange(lab) as follower:
        number = await follower.open_one(TRADER, 160_000, (ETH, units(1_000)))
        await follower.open_one(OTHER, 50_000, (ETH, -units(100)))
        await follower.move(WETH=0.5)
        await follower.send(OTHER, "flag", number)
        await follower.follow()
        await follower.send(OTHER, "deleverage", number, ETH, 0)
        head = await follower.node.head()
        logs = await follower.chain.logs([follower.adapter.sources()], head.number, head.number)
        assert follower.adapter.discover(logs).keys == {follower.key(number)}
        await follower.follow()
        await _is_what_is_held(follower, [number])


async def test_holders_are_listed_by_the_chain(lab: Lab) -> None:
    """A keeper without logs finds everybody with a position, flagged or not, and only those; the house is none."""
    async with following_exchange(lab) as follower:
        first = await follower.open_one(TRADER, 2_000, (ETH, units(10)))
        second = await follower.open_one(OTHER, 50_000, (BTC, units(1)), (ISO, -units(10)))
        await follower.open_one(account(3), 10)
        await follower.follow()
        await follower.move(WETH=0.92)
        await follower.send(OTHER, "flag", first)
        head = await follower.node.head()
        found = await follower.chain.read(follower.adapter.enumerate(), head.hash)
        assert found == {follower.key(first), follower.key(second)}
        assert number_of(Address(bytes(20))) == HOUSE


async def test_liquidations_name_account_and_transaction(lab: Lab) -> None:
    """For cash or to an heir; another exchange's are not ours."""
    async with following_exchange(lab) as follower:
        number = await follower.open_one(TRADER, 2_000, (ETH, units(10)))
        heir = await follower.open_one(OTHER, 50_000)
        await follower.set(partial_ratio=WAD // 10)
        await follower.follow()
        await follower.move(WETH=0.92)
        receipts = [
            await follower.send(OTHER, "inherit", number, ETH, units(0.1), heir),
            await follower.send(OTHER, "liquidate", number, ETH),
        ]
        logs = [log for receipt in receipts for log in receipt.logs]
        wanted = [(follower.key(number), receipt.transaction_hash) for receipt in receipts]
        assert list(follower.adapter.liquidations(logs)) == wanted
        (other,) = ReferencePerp.made_of(ReferencePerpConfig(name="x", exchange=Address(b"\1" * 20)), None)
        assert list(other.liquidations(logs)) == [] and not other.discover(logs).keys


async def test_a_new_market_is_loaded(lab: Lab) -> None:
    """A market that is added, or gets another feed, asks for a reload; marks read before that know it as well."""
    async with following_exchange(lab) as follower:
        number = await follower.open_one(TRADER, 20_000, (ETH, units(10)))
        await follower.follow()
        cast = lab.world.cast
        feed = await deploy_feed(lab.node, cast, "NEW", 50 * 10**8)
        values = (feed.proxy, *astuple(MARKETS["WETH"]))
        await follower.govern("setMarket", 3, values)
        head = await follower.node.head()
        marks = await follower.read_marks(head)
        assert marks.exact.markets[3].live.price == 50 * WAD  # type: ignore[union-attr]
        await follower.follow()
        assert follower.reloads == 1 and follower.adapter.loaded.feeds[3].address == feed.proxy
        await follower.send(TRADER, "trade", number, 3, units(5), MAX_UINT256)
        await follower.follow()
        await _is_what_is_held(follower, [number])
        await follower.govern("setMarket", ETH, values)
        marks = await follower.marks()
        assert marks.exact.markets[ETH].live.price == 50 * WAD and follower.reloads == 2
        assert follower.adapter.prices(marks)[feed.proxy] == 50 * WAD


async def test_an_isolated_account_is_judged_like_any(lab: Lab) -> None:
    """It holds one market; its margin is its own."""
    async with following_exchange(lab) as follower:
        [number] = await follower.open(TraderSpec(TRADER, 2_000 * USDC, {"WETH": units(10)}, isolated=True))
        marks = await follower.marks(ahead_s=0)
        judged = follower.health(number, marks).detail.judged
        assert judged.equity == (await follower.contract.read("assess", number))[0]
