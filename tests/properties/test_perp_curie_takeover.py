from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

from keeper.fixed import BPS, mul_div_up
from keeper.lab.curie import MarketSpec, part_of
from keeper.lab.world import Lab, open_lab
from keeper.types import Address, Health, Marks, Option, Outcome, Refusal
from tests.conftest import Count
from tests.protocols.perp_curie_lab import SYMBOLS, random_accounts, to_index
from tests.protocols.perp_curie_takeover import Scene, taking

DEEP = os.environ.get("KEEPER_DEEP") == "1"
CRASHES = 100 if DEEP else 5
TRADERS = 6
SLIPPAGE_BPS = 300
FLASH_BPS = 5
THIN = (MarketSpec("WETH", 30_000, 2.0), MarketSpec("WBTC", 60_000, 1.5, pool_fee=10_000, fee_ratio=9_000))


def _profit_raw(outcome: Outcome) -> int:
    """What the treasury gains when the margin was borrowed."""
    return outcome.seize_raw - outcome.repay_raw - mul_div_up(outcome.repay_raw, FLASH_BPS, BPS)


def _passes(outcome: Outcome, slippage_bps: int) -> bool:
    """Whether the loan's premium is within the slippage that the Liquidator allows of what a takeover gains."""
    gained_raw = outcome.seize_raw - outcome.repay_raw
    return _profit_raw(outcome) * BPS >= gained_raw * (BPS - slippage_bps)


async def _held_to_the_chain(scene: Scene, option: Option, marks: Marks, seen: Counter[str]) -> None:
    """The forecast is what happens: the profit to the unit, and a revert where it was refused."""
    outcome = await scene.outcome(option, marks)
    happened = await scene.tried(option, marks)
    if isinstance(outcome, Refusal):
        seen[outcome.reason] += 1
        assert outcome.numbers
        assert isinstance(happened, str), (outcome, happened)
        return
    expected = _profit_raw(outcome)
    if not _passes(outcome, SLIPPAGE_BPS):
        seen["premium over the slippage"] += 1
        assert isinstance(happened, str)
        return
    seen["maker"] += bool(option.detail.ordered)
    seen["exact"] += 1
    seen["short" if option.detail.size < 0 else "long"] += 1
    assert happened == expected, (option.detail.names, outcome, happened)
    refused = await scene.tried(option, marks, expected + 1)
    assert refused == f"ProfitBelowMinimum({expected}, {expected + 1})"


async def _crash(chance: random.Random, scene: Scene, traders: list[Address], seen: Counter[str]) -> None:
    follower = scene.follower
    moves = {symbol: chance.choice((1, -1)) * chance.uniform(0.05, 0.3) for symbol in SYMBOLS}
    await follower.set_price({symbol: 1 + move for symbol, move in moves.items()})
    for symbol in SYMBOLS:
        await to_index(follower, symbol)
    if chance.random() < 0.3:
        await follower.node.advance(chance.randint(1, 40))
    head = await follower.follow()
    marks = await follower.marks(head, chance.randint(1, 12))
    for trader in traders:
        if follower.key(trader) not in follower.book:
            continue
        health = follower.assessed(trader, marks)
        assert isinstance(health, Health), health
        if not health.detail.takeover:
            continue
        seen["liquidatable"] += 1
        options = [one for one in scene.options(health, marks) if one.repay_token == one.seize_token]
        for option in chance.sample(options, min(len(options), 4)):
            await _held_to_the_chain(scene, option, marks, seen)
        best: tuple[int, Option] | None = None
        for option in options:
            outcome = await scene.outcome(option, marks)
            if isinstance(outcome, Outcome) and _passes(outcome, SLIPPAGE_BPS // 2):
                best = max(best or (0, option), (_profit_raw(outcome), option), key=lambda one: one[0])
        if best:
            gained, _ = await scene.execute(best[1])
            seen["executed"] += 1
            assert gained >= 0
            assert await scene.left_over() == ([], 0)
            return  # the others' figures are of a head that has moved


async def _run(lab: Lab, folder: Path, seed: int, crashes: int, seen: Counter[str]) -> None:
    chance = random.Random(seed)
    async with taking(lab, folder, THIN) as scene:
        traders: list[Address] = []
        for number in range(crashes):
            traders += await random_accounts(chance, scene.follower, 10_000 * seed + 100 * number, TRADERS)
            for _ in range(3):
                await _crash(chance, scene, traders, seen)
        balance = part_of(scene.follower.node, scene.follower.curie, "AccountBalance")
        assert await balance.read("getBaseTokens", scene.rig.liquidator) == []


async def test_takeovers_move_what_they_say(tmp_path: Path, count: Count) -> None:
    """Over random crashes on thin pools, for longs and shorts of random accounts and several sizes of each position: a
    takeover through the Liquidator in a block at the marks' time gains the treasury exactly what its outcome says, a
    unit more is refused on chain, and what the adapter refuses reverts. Nothing stays behind on the exchange.
    """
    seen: Counter[str] = Counter()
    per_lab = 5
    for number in range(CRASHES // per_lab):
        async with await open_lab(clock="steady") as lab:
            await _run(lab, tmp_path / str(number), 20_260_104 + number, per_lab, seen)
    count("crashes of Perp Curie", CRASHES)
    count("takeovers that were forecast to the unit", seen["exact"])
    assert min(seen[kind] for kind in ("exact", "executed")) > 0, seen
    if DEEP:
        assert min(seen[kind] for kind in ("short", "long", "losing_takeover", "maker")) > 0, seen
