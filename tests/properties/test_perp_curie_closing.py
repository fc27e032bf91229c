from __future__ import annotations

import os
import random
from collections import Counter

from keeper.errors import ExecutionError
from keeper.lab.actors import account
from keeper.lab.curie import MarketSpec, close, house_of, provide, trade
from keeper.lab.world import Lab
from keeper.protocols.perp_curie.closing import read_closing
from keeper.protocols.perp_curie.system import Market
from keeper.types import Refusal
from tests.conftest import Count
from tests.protocols.perp_curie_lab import ETHER, SYMBOLS, UNIT, USDC, Follower, following

DEEP = os.environ.get("KEEPER_DEEP") == "1"
CLOSES = 500 if DEEP else 24
POOLS = (MarketSpec("WETH", 40_000, 2.0, fee_ratio=1_234), MarketSpec("WBTC", 90_000, 1.5, pool_fee=10_000))
MAKER, TAKER = account(71), account(72)


async def _makers(chance: random.Random, follower: Follower) -> None:
    """Orders of many widths, so that closing crosses ticks."""
    await follower.fund([MAKER, TAKER], 1_000_000 * USDC)
    for symbol in SYMBOLS:
        price = follower.world.prices_e8[symbol] / 1e8
        for _ in range(12):
            low, high = sorted(price * chance.uniform(0.93, 1.07) for _ in range(2))
            depth = (UNIT[symbol] // 10 * chance.randint(1, 3), 200 * ETHER * chance.randint(1, 3))
            try:
                await provide(follower.node, follower.curie, MAKER, symbol, depth, (low, high * 1.01))
            except ExecutionError:
                continue


async def test_closing_costs_what_it_says(lab: Lab, count: Count) -> None:
    """For random positions in pools of many orders, long and short, up to sizes that cross several of them, with pool
    fees and exchange fees that differ: the quote that closing brings after fees and the price it leaves are the
    exchange's own to the last of 18 decimals, and what is refused as more than the block's limit closes only in part.
    """
    chance = random.Random(20_260_106)
    seen: Counter[str] = Counter()
    async with following(lab, POOLS) as follower:
        await _makers(chance, follower)
        node, curie, house = follower.node, follower.curie, house_of(follower.node, follower.curie)
        changed = house.abi.event("PositionChanged")
        await follower.follow()
        markets = {entry.base: entry for entry in follower.adapter.entries if isinstance(entry, Market)}
        for _ in range(CLOSES):
            symbol = chance.choice(SYMBOLS)
            market = markets[curie.markets[symbol].base_token]
            size = int(UNIT[symbol] * 10 ** chance.uniform(-3, 1)) * chance.choice((1, -1))
            try:
                opened = await trade(node, curie, TAKER, symbol, size)
            except ExecutionError:
                seen["not opened"] += 1
                continue
            size = sum(
                changed.decode(log)["exchangedPositionSize"]
                for log in opened.logs
                if log.topics[0] == changed.topic
            )
            await node.advance(chance.choice((1, 30)))
            marks = await follower.marks(await node.head(), 1)
            state = marks.exact.markets[market.base]
            read = read_closing(
                follower.adapter.loaded, market, TAKER, None, state.tick, marks.at.timestamp_s
            )
            closed = (await follower.chain.read(read, marks.at.hash)).close(size, state.index_wad)
            receipt = await close(node, curie, TAKER, symbol)
            [event] = [changed.decode(log) for log in receipt.logs if log.topics[0] == changed.topic]
            if isinstance(closed, Refusal):
                seen[closed.reason] += 1
                assert closed.reason == "over_tick_limit"
                assert abs(event["exchangedPositionSize"]) < abs(size)
                await node.advance(30)
                await close(node, curie, TAKER, symbol)
                continue
            quote, swapped = closed
            assert event["exchangedPositionSize"] == -size
            assert quote == event["exchangedPositionNotional"] - event["fee"]
            assert swapped.fee_wad == event["fee"]
            assert swapped.sqrt_price_x96 == event["sqrtPriceAfterX96"]
            seen["long" if size > 0 else "short"] += 1
            seen["crossing"] += abs(swapped.tick - state.tick) > market.spacing
            await node.advance(30)
    count("Perp Curie positions that were closed as forecast", seen["long"] + seen["short"])
    assert min(seen[kind] for kind in ("long", "short", "crossing")) > 0, seen
