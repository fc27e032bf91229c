from __future__ import annotations

import os
import random
from collections import Counter
from contextlib import suppress
from dataclasses import astuple, replace

import pytest

from keeper.errors import ExecutionError
from keeper.fixed import MAX_UINT256, WAD
from keeper.lab.chainlink import latest
from keeper.lab.node import Tx
from keeper.lab.perp_exchange import random_traders
from keeper.lab.world import Lab
from keeper.protocols.reference_perp import Cash
from keeper.protocols.reference_perp.rules import Market, capacity_of, quote_of
from keeper.types import Address, Health, Marks, Outcome
from tests.conftest import Count
from tests.protocols.reference_perp_lab import BTC, ETH, ISO, MARKETS, ExchangeFollower, following_exchange

DEEP = os.environ.get("KEEPER_DEEP") == "1"
ACCOUNTS = 520 if DEEP else 40
ROUNDS = 8 if DEEP else 4


async def _trades(follower: ExchangeFollower, chance: random.Random, owners: dict[int, Address]) -> int:
    """Some accounts change a size, turn, close, deposit or withdraw; how many the exchange let."""
    contract, done = follower.contract, 0
    for number in chance.sample(sorted(owners), max(6, len(owners) // 8)):
        market, kind = (
            chance.choice((ETH, BTC, ISO)),
            chance.choice(("trade", "trade", "withdraw", "deposit")),
        )
        size = (await contract.read("holding", number, market))[0]
        try:
            if kind == "trade" and size:
                delta = chance.choice((-size, -3 * size // 2, int(size * chance.uniform(-0.9, 0.9)) or 1))
                await follower.trade(owners[number], number, market, delta)
            elif kind == "withdraw":
                await follower.send(
                    owners[number], "withdraw", number, chance.randint(1, 10**8), owners[number]
                )
            elif kind == "deposit":
                await follower.govern("deposit", number, chance.randint(1, 10**7))
            else:
                continue
            done += 1
        except ExecutionError:
            continue  # too little margin, a frozen account, a gate: the exchange's own business
    return done


async def _change_a_parameter(follower: ExchangeFollower, chance: random.Random) -> None:
    name, value = chance.choice(
        (
            ("min_margin", chance.randint(0, 20) * WAD),
            ("margin_slope", chance.randint(0, 4) * WAD),
            ("maintenance_scalar", chance.randint(40, 80) * WAD // 100),
            ("max_funding_velocity", chance.randint(0, 18) * WAD),
            ("penalty_ratio", chance.randint(1, 50) * WAD // 1_000),
            ("window_multiplier", chance.choice((0, WAD // 2_000, WAD // 100))),
        )
    )
    await follower.set(chance.choice((ETH, BTC, ISO)), **{name: value})
    name, value = chance.choice(
        (
            ("max_reward", chance.choice((1, 20, 5_000)) * WAD),
            ("whole_below", chance.choice((0, 100, 5_000)) * WAD),
            ("partial_ratio", chance.randint(10, 100) * WAD // 100),
            ("critical_ratio", chance.randint(0, 100) * WAD // 100),
            ("keeper_share", chance.randint(0, 100) * WAD // 100),
            ("gate_s", chance.choice((0, 0, 600))),
            ("min_reward", chance.choice((0, 3, 40)) * WAD),
        )
    )
    await follower.set(**{name: value})


async def _compare(
    follower: ExchangeFollower, chance: random.Random, marks: Marks, numbers: list[int], seen: Counter[str]
) -> None:
    """Every account's figures, and what each liquidation would do, against the exchange's views at the same block."""
    exact, contract = marks.exact, follower.contract
    for market in exact.markets:
        live = await contract.read("liveOf", market.number)
        assert (market.live.price, market.live.long_index, market.live.short_index) == (live[0], *live[2:])
        assert capacity_of(market, exact.timestamp_s) == await contract.read("capacityOf", market.number)
    candidates, held = set(follower.book.candidates(marks)), set(follower.book)
    for number in numbers:
        key, told = follower.key(number), await contract.read("assess", number)
        markets = (await contract.read("accountOf", number))[5]
        if key not in held:
            assert not markets
            seen["closed"] += 1
            continue
        health = follower.health(number, marks)
        assert astuple(health.detail.judged) == told
        assert health.liquidatable == (told[0] < told[4])
        assert bool(health.detail.holding.flagged) == (await contract.read("accountOf", number))[2]
        seen["equal"] += 1
        if not health.liquidatable:
            assert health.health_factor_wad is not None and health.health_factor_wad >= WAD
            seen["spared"] += key not in candidates
            continue
        assert key in candidates
        seen["unsafe"] += 1
        seen["bankrupt"] += told[0] <= 0
        seen["flagged"] += health.detail.holding.flagged
        seen["cut"] += health.detail.holding.cut
        for stake in health.detail.holding.stakes:
            size = chance.choice((1, abs(stake.size), chance.randint(1, abs(stake.size)), 2**127))
            market, at = exact.markets[stake.market], (number, stake.market)
            assert _quoted(health, marks, market, None) == await contract.read("quoteLiquidation", *at)
            assert _quoted(health, marks, market, size) == await contract.read("quoteInheritance", *at, size)
            seen["quotes"] += 2


def _quoted(health: Health, marks: Marks, market: Market, size: int | None) -> tuple[int, ...]:
    exact, account = marks.exact, health.detail
    most = capacity_of(market, exact.timestamp_s) if size is None else size
    terms = (exact.parameters, market, account.holding, account.judged, exact.fund, exact.exchange.scale)
    return astuple(quote_of(*terms, most=min(most, MAX_UINT256), cash=size is None))


async def _liquidate_some(
    follower: ExchangeFollower, chance: random.Random, numbers: list[int], seen: Counter[str]
) -> None:
    """Every option's gain on the node's own EVM, then a few of them for real, each by fresh marks."""
    who, unsafe = follower.world.cast.liquidator.address, []
    marks = await follower.marks(ahead_s=7)
    held = set(follower.book)
    for number in numbers:
        if follower.key(number) not in held or not follower.health(number, marks).liquidatable:
            continue
        unsafe.append(number)
        options = follower.cash(number, marks) + follower.all_takeovers(number, marks)
        for option in chance.sample(options, min(len(options), 4)):
            foretold, came = await follower.outcome(option), await follower.executed(option, marks, who)
            if isinstance(foretold, Outcome):
                assert came == foretold.seize_raw - foretold.repay_raw > 0, (option.detail, foretold)
                seen["cash" if isinstance(option.detail, Cash) else "takeovers"] += 1
            else:
                assert came is None or came <= 0, (option.detail, foretold)
                seen[foretold.reason] += 1
    for number in chance.sample(unsafe, len(unsafe) // 3):
        marks = await follower.marks()
        if follower.key(number) not in set(follower.book):
            continue
        options = follower.options(number, marks)
        for option in chance.sample(options, min(len(options), 1)):
            if not isinstance(await follower.outcome(option), Outcome):
                continue
            for call in follower.adapter.liquidation_calls(option, option.max_repay_raw):
                await follower.node.send(
                    Tx(who, call.target, call.data, gas=3_000_000), follower.contract.abi
                )
            seen["done"] += 1


@pytest.mark.deep
async def test_figures_equal_the_exchanges(lab: Lab, count: Count) -> None:
    """Over random accounts, trades, marks, time and parameters, every figure is the exchange's own to the last unit,
    every account that may be liquidated is a candidate, and what each liquidation brings was foretold.
    """
    chance, seen = random.Random("reference 2026"), Counter[str]()
    async with following_exchange(lab, lab.world.cast.liquidator.address) as follower:
        prices_e8 = {feed.symbol: (await latest(lab.node, feed)).price_raw for feed in follower.feeds}
        specs = random_traders(chance, follower.exchange, prices_e8, ACCOUNTS, MARKETS)
        numbers = await follower.open(*(replace(spec, sizes={}) for spec in specs))
        for number, spec in zip(numbers, specs, strict=True):
            for symbol, size in spec.sizes.items():
                with suppress(ExecutionError):  # the skew of those before took the rest of its margin
                    await follower.trade(spec.owner, number, follower.exchange.market(symbol), size)
        owners = {number: spec.owner for number, spec in zip(numbers, specs, strict=True)}
        for _ in range(ROUNDS):
            await lab.node.advance(chance.randint(1, 6 * 3_600))
            all_of = chance.choice((0.85, 0.93, 1.07, 1.15))
            await follower.move(
                **{symbol: all_of * chance.uniform(0.96, 1.04) for symbol in ("WETH", "WBTC", "ISO")}
            )
            seen["trades"] += await _trades(follower, chance, owners)
            await _change_a_parameter(follower, chance)
            await lab.node.mine()  # the window counts blocks, and marks are for a later one
            await _compare(follower, chance, await follower.marks(ahead_s=0), numbers, seen)
            await _liquidate_some(follower, chance, numbers, seen)
    assert seen["equal"] > ACCOUNTS * ROUNDS // 2
    for kind in ("unsafe", "spared", "trades", "quotes", "cash", "takeovers", "done"):
        assert seen[kind] > 0, seen
    count("reference exchange accounts equal to its own views", seen["equal"])
    count("reference exchange liquidations that brought what was foretold", seen["cash"] + seen["takeovers"])
