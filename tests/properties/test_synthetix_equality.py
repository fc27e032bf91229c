from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from keeper.errors import ExecutionError
from keeper.fixed import WAD
from keeper.lab.chainlink import latest
from keeper.lab.node import Tx
from keeper.lab.synthetix import UNIT, deposit_tx, random_perps, set_parameter, trade_tx
from keeper.lab.world import Lab
from keeper.types import Address, Marks, Option
from tests.conftest import Count
from tests.protocols.synthetix_lab import PerpsFollower, following_perps

DEEP = os.environ.get("KEEPER_DEEP") == "1"
POSITIONS = 520 if DEEP else 40
ROUNDS = 8 if DEEP else 4
_E8 = 10**8


async def _trades(follower: PerpsFollower, chance: random.Random, accounts: list[Address]) -> int:
    """Some accounts change their size or their margin, or submit an order; how many the market let."""
    contract, done = follower.contract, 0
    for who in chance.sample(accounts, max(4, len(accounts) // 8)):
        size = (await contract.read("positions", who))[4]
        kind = chance.choice(("smaller", "larger", "deposit", "withdraw", "order", "close"))
        tx: Tx
        if kind in ("smaller", "larger"):
            share = chance.uniform(0.1, 0.9) * (-1 if kind == "smaller" else 1)
            tx = trade_tx(contract, who, int(size * share))
        elif kind == "close":
            tx = trade_tx(contract, who, -size)
        elif kind == "order":
            tx = contract.tx(who, "submitOffchainDelayedOrder", -size // 2, 0 if size > 0 else 2**127)
        else:
            tx = deposit_tx(contract, who, chance.randint(-50, -1) * UNIT)
        try:
            await follower.node.send(tx, contract.abi)
            done += 1
        except ExecutionError:
            continue  # too much leverage, too little margin, a pending order: the market's own business
    return done


async def _compare(
    follower: PerpsFollower, marks: Marks, accounts: list[Address], seen: Counter[str]
) -> None:
    """Every account's figures against the market's own views at the same block."""
    abi, proxy = follower.contract.abi, follower.market.proxy
    names = (
        "positions",
        "remainingMargin",
        "canLiquidate",
        "liquidationPrice",
        "liquidationFee",
        "isFlagged",
    )
    functions = [abi.function(name) for name in names]
    answers = await follower.node.call_all(
        [function.call(proxy, who) for who in accounts for function in functions]
    )
    candidates = set(follower.book.candidates(marks))
    for place, who in enumerate(accounts):
        row = answers[place * len(names) : (place + 1) * len(names)]
        held, remaining, liquidatable, price, fee, flagged = (
            function.decode(answer) for function, answer in zip(functions, row, strict=True)
        )
        if not held[0][4]:
            assert follower.key(who) not in set(follower.book)
            seen["closed"] += 1
            continue
        health = follower.health(who, marks)
        assert health.collateral_base == health.detail.remaining_raw == remaining[0]
        assert not (remaining[0] and health.bad_debt)
        assert health.liquidatable == (liquidatable[0] or flagged[0])
        position = follower.book.position(follower.key(who))
        assert (follower.adapter.liquidation_price(position, health, marks) or 0) == price[0]
        assert (health.detail.flagger is not None) == flagged[0]
        seen["equal"] += 1
        if health.liquidatable:
            assert follower.key(who) in candidates
            seen["unsafe"] += 1
        else:
            assert health.health_factor_wad is None or health.health_factor_wad >= WAD
            seen["spared"] += follower.key(who) not in candidates
        if liquidatable[0]:
            assert health.detail.liquidation_margin_raw > fee[0] > 0


@pytest.mark.deep
@pytest.mark.parametrize("asset", ["ETH", "BTC"])
async def test_figures_equal_the_markets(asset: str, lab: Lab, count: Count) -> None:
    """Over random accounts, trades, orders, rates, time and parameters, every figure is the market's own to the last
    unit, every account that may be liquidated is a candidate, and what each liquidation pays was foretold.
    """
    chance, seen = random.Random(f"{asset} 2026"), Counter[str]()
    async with following_perps(lab, asset, liquidator=lab.world.cast.liquidator.address) as follower:
        price_usd = (await latest(lab.node, follower.market.feed)).price_raw / _E8
        specs = random_perps(chance, price_usd, 1_000, POSITIONS)
        await follower.open(*specs)
        accounts = [spec.account for spec in specs]
        for _ in range(ROUNDS):
            await lab.node.advance(chance.randint(1, 6 * 3_600))
            await follower.move(chance.uniform(0.93, 1.06))
            seen["trades"] += await _trades(follower, chance, accounts)
            await _change_a_parameter(follower, chance)
            head = await follower.follow()
            await _compare(follower, await follower.marks(head), accounts, seen)
            await _liquidate_some(follower, chance, accounts, seen)
    assert seen["equal"] > POSITIONS * ROUNDS // 2
    assert min(seen["unsafe"], seen["spared"], seen["trades"], seen["paid"]) > 0, seen
    count("Synthetix accounts equal to the market's own views", seen["equal"])
    count("Synthetix liquidations that paid what was foretold", seen["paid"])


async def _change_a_parameter(follower: PerpsFollower, chance: random.Random) -> None:
    name, value = chance.choice(
        (
            ("liquidationBufferRatio", chance.randint(20, 200) * UNIT // 10_000),
            ("liquidationPremiumMultiplier", chance.randint(1, 30) * UNIT // 10),
            ("maxFundingVelocity", chance.randint(1, 40) * UNIT),
            ("skewScale", chance.randint(6, 14) * 10 ** (5 if follower.market.asset == "ETH" else 4) * UNIT),
        )
    )
    await set_parameter(follower.node, follower.world.cast, follower.synthetix, follower.market, name, value)


async def _liquidate_some(
    follower: PerpsFollower, chance: random.Random, accounts: list[Address], seen: Counter[str]
) -> None:
    """Every option's reward on the node's own EVM, then a few of them for real, each by fresh marks."""
    who, unsafe = follower.world.cast.liquidator.address, []
    marks = await follower.marks(await follower.follow(), ahead_s=7)
    held = set(follower.book)
    for owner in accounts:
        if follower.key(owner) in held:
            for option in _possible(follower, owner, marks):
                foretold = (await follower.outcome(option)).seize_raw
                assert await follower.executed(option, marks, who) == foretold
                seen["paid"] += 1
                seen[str(option.detail.step)] += 1
                unsafe.append(owner)
    for owner in chance.sample(unsafe, len(unsafe) // 3):
        marks = await follower.marks(await follower.follow(), ahead_s=1)
        for option in _possible(follower, owner, marks):
            for call in follower.adapter.liquidation_calls(option, 0):
                tx = Tx(who, call.target, call.data, gas=2_000_000)
                await follower.node.send(tx, follower.contract.abi)


def _possible(follower: PerpsFollower, owner: Address, marks: Marks) -> list[Option]:
    return [each for each in follower.options(owner, marks) if isinstance(each, Option)]
