from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from keeper.errors import RpcError
from keeper.fixed import WAD
from keeper.lab.curie import deposit, house_of, part_of, trade
from keeper.lab.world import Lab
from keeper.protocols.perp_curie.closing import read_closing
from keeper.protocols.perp_curie.health import judge
from keeper.protocols.perp_curie.pool import MAX_TICK, MIN_TICK, sqrt_ratio_at, tick_at
from keeper.seams import Reads
from keeper.types import Health, PositionKey, Refusal
from tests.protocols.perp_curie_lab import following
from tests.protocols.perp_curie_takeover import ETHER, OTHER, TRADER, USDC, taking


async def test_the_liquidation_price_is_where_margin_ends(lab: Lab) -> None:
    """With its largest position's mark price on the wrong side of the liquidation price an account is short of margin,
    on the other it is not; for longs and shorts, in one market and two.
    """
    async with following(lab) as follower:
        node, curie = follower.node, follower.curie
        await follower.fund([TRADER, OTHER], 1_000 * USDC)
        await trade(node, curie, TRADER, "WETH", 2 * ETHER)
        await trade(node, curie, OTHER, "WETH", -2 * ETHER)
        await trade(node, curie, OTHER, "WBTC", ETHER // 40)
        head = await follower.follow()
        marks = await follower.marks(head)
        base = curie.markets["WETH"].base_token
        for owner, falls in ((TRADER, True), (OTHER, False)):
            position = follower.book.position(follower.key(owner))
            health = follower.assessed(owner, marks)
            assert isinstance(health, Health)
            price = follower.adapter.liquidation_price(position, health, marks)
            assert price is not None
            assert (price < marks.exact.markets[base].mark_wad) == falls
            short = []
            for mark in (price * 9_999 // 10_000, price * 10_001 // 10_000):
                moved = replace(marks.exact.markets[base], mark_wad=mark)
                exact = replace(marks.exact, markets={**marks.exact.markets, base: moved})
                judged = judge(position, exact)
                assert isinstance(judged, Health)
                short.append(judged.liquidatable)
            assert short == [falls, not falls]


async def test_a_feed_that_cannot_average_has_no_price(lab: Lab) -> None:
    """A price that fell long after the feed was last touched makes its average revert: whoever is in that market is
    judged by nobody, neither the exchange nor us, until somebody trades.
    """
    async with following(lab) as follower:
        node, curie = follower.node, follower.curie
        await follower.fund([TRADER], 1_000 * USDC)
        await trade(node, curie, TRADER, "WETH", ETHER)
        await node.advance(2_000)
        await follower.set_price({"WETH": 0.9, "WBTC": 1.0})
        await node.advance(50_000)
        marks = await follower.marks(await follower.follow())
        with pytest.raises(RpcError, match="subtraction overflow"):
            await house_of(node, curie).read("getAccountValue", TRADER)
        refused = Refusal("assess", "no_index_price", {"market": "vWETH"})
        assert follower.assessed(TRADER, marks) == refused
        await trade(node, curie, TRADER, "WETH", -ETHER // 100)
        await node.mine()
        assert isinstance(follower.assessed(TRADER, await follower.marks(await follower.follow())), Health)


async def test_what_the_safe_and_the_breakers_are_told(lab: Lab, tmp_path: Path) -> None:
    """Targets are functions by which nobody chooses where value goes; collaterals' feeds are Chainlink's; prices are
    mark prices and collateral prices in one unit; the contracts are all there are.
    """
    async with taking(lab, tmp_path) as scene:
        follower, adapter = scene.follower, scene.follower.adapter
        node, curie, world = follower.node, follower.curie, lab.world
        await deposit(node, world.cast, curie, curie.collaterals["WBTC"], {TRADER: 10**6})
        await follower.fund([TRADER], 1_000 * USDC)
        await trade(node, curie, TRADER, "WETH", ETHER)
        marks = await follower.marks(await follower.follow())
        names = {
            (curie.clearing_house, house_of(node, curie).abi.function(name).selector)
            for name in ("liquidate(address,address,int256)", "closePosition", "cancelAllExcessOrders")
        }
        vault = part_of(node, curie, "Vault").abi
        names |= {
            (curie.vault, vault.function(n).selector)
            for n in ("deposit", "withdrawAll", "liquidateCollateral")
        }
        exchange = part_of(node, curie, "Exchange").abi
        names.add((curie.exchange, exchange.function("getPnlToBeRealized").selector))
        assert set(adapter.targets()) == names
        wbtc = curie.collaterals["WBTC"].address
        assert adapter.feeds() == {wbtc: world.feeds["WBTC"].proxy}
        prices = adapter.prices(marks)
        assert prices[wbtc] == 40_000 * WAD
        assert (
            prices[curie.markets["WETH"].base_token]
            == marks.exact.markets[curie.markets["WETH"].base_token].mark_wad
        )
        found = set(adapter.contracts().values())
        assert {
            curie.clearing_house,
            curie.vault,
            curie.exchange,
            curie.order_book,
            curie.account_balance,
        } <= found
        assert {curie.market_registry, curie.config, curie.collateral_manager, curie.insurance_fund} <= found
        assert {curie.quote_token, curie.settlement.address, wbtc} <= found
        assert adapter.warnings() == ()


async def test_the_cancelled_orders_are_not_in_the_pool(lab: Lab) -> None:
    """A pool read without an account's orders is the pool after they were removed."""
    async with following(lab) as follower:
        node, curie = follower.node, follower.curie
        await follower.fund([TRADER], 100_000 * USDC)
        base = curie.markets["WETH"].base_token
        house, orders = house_of(node, curie), part_of(node, curie, "OrderBook")
        for lower, upper in ((75_000, 76_980), (74_400, 75_600), (76_800, 77_400)):
            order = (base, 20 * ETHER, 40_000 * ETHER, lower, upper, 0, 0, False, 2**40)
            await house.send(TRADER, "addLiquidity", order)
        marks = await follower.marks(await follower.follow())
        market = next(entry for entry in follower.adapter.entries if getattr(entry, "base", None) == base)

        async def closing(without: bool) -> object:
            head = await node.head()
            read = read_closing(
                follower.adapter.loaded,
                market,  # type: ignore[arg-type]
                OTHER,
                TRADER if without else None,
                marks.exact.markets[base].tick,
                head.timestamp_s + 30,
            )
            return (await follower.chain.read(read, head.hash)).pool

        before, forecast = await closing(False), await closing(True)
        for order_id in await orders.read("getOpenOrderIds", TRADER, base):
            info = await orders.read("getOpenOrderById", order_id)
            await house.send(TRADER, "removeLiquidity", (base, info[1], info[2], info[0], 0, 0, 2**40))
        after = await closing(False)
        assert forecast == after != before


async def test_marks_cost_two_rounds(lab: Lab) -> None:
    """However many markets and collaterals there are, a head's marks take two rounds; a feed that was updated more
    often within its average takes one more for every doubling.
    """
    async with following(lab) as follower:
        node, curie = follower.node, follower.curie
        await deposit(node, follower.world.cast, curie, curie.collaterals["WBTC"], {TRADER: 10**6})
        await follower.fund([TRADER], 1_000 * USDC)
        for symbol in ("WETH", "WBTC"):
            await trade(node, curie, TRADER, symbol, ETHER // 100)

        async def rounds() -> int:
            head = await follower.follow()
            read, count = follower.adapter.marks(head), 0

            def counted() -> Reads[None]:
                nonlocal count
                answers = None
                while True:
                    try:
                        asked = read.send(answers)  # type: ignore[arg-type]  # the first send of a generator is None
                    except StopIteration:
                        return
                    count += 1
                    answers = yield asked

            await follower.chain.read(counted(), head.hash)
            return count

        assert await rounds() == 2
        for step in range(12):
            await follower.set_price({"WETH": 1 + step / 1_000})
            await trade(node, curie, TRADER, "WETH", ETHER // 100)
        assert await rounds() == 3


def test_ticks_and_prices_are_inverse() -> None:
    """A tick's price is its own, one less belongs to the tick below, at both ends as well (TickMath's constants)."""
    assert sqrt_ratio_at(MIN_TICK) == 4295128739
    assert sqrt_ratio_at(MAX_TICK) == 1461446703485210103287273052203988822378723970342
    assert sqrt_ratio_at(0) == 2**96
    for tick in (MIN_TICK + 1, -100_000, -1, 0, 1, 75_963, 100_000, MAX_TICK - 1):
        assert tick_at(sqrt_ratio_at(tick)) == tick
        assert tick_at(sqrt_ratio_at(tick) - 1) == tick - 1


async def test_a_stranger_s_key_is_not_followed(lab: Lab) -> None:
    """An account that does nothing on the exchange is read as nothing and leaves no position."""
    async with following(lab) as follower:
        head = await follower.follow()
        await follower.refresh([PositionKey("curie", follower.adapter.market, OTHER)], head)
        assert follower.key(OTHER) not in follower.book
