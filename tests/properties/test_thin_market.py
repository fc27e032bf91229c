"""Accounts that fall together in one thin market: in the order the keeper takes them nothing reverts, and all of them
together net what the best order nets that a search finds, by the pool's own arithmetic.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from keeper.fixed import BPS, WAD, mul_div_up
from keeper.lab.actors import account
from keeper.lab.chainlink import set_price
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.rig import Terms, make_rig
from keeper.lab.uniswap import drain_pool, move_pool, quote_v3
from keeper.lab.world import Lab
from keeper.seams import Venue
from keeper.types import Marks, Option, Quote, Refusal
from keeper.types import Path as Route
from tests.conftest import Count
from tests.e2e.line import Line, open_again

DEEP = os.environ.get("KEEPER_DEEP") == "1"
ACCOUNTS: Final = 100 if DEEP else 6
STARTS, TRIES = (8, 400) if DEEP else (3, 60)
SEED: Final = int(os.environ.get("KEEPER_SEED", "6"))
ETHER: Final = 10**18
FEE: Final = 500
MARKET: Final = "3.6"
LEFT_USD: Final = 160_000  # a side of the pool has so much for each account: too little for all of them
POOL_USD: Final = 60_000_000
WITHIN: Final = 100  # of the best, one part in


@dataclass(slots=True)
class Market:
    """What an order nets, reckoned from the pool as it was before anybody was liquidated."""

    venue: Venue
    route: Route
    offers: Sequence[tuple[Option, int, int]]  # with what all of it seizes, and what is owed for that
    gas_raw: int
    seen: dict[int, int]

    def out_raw(self, seized_raw: int) -> int:
        """What selling so much in all brings: a pool's price depends on the sum alone."""
        if seized_raw not in self.seen:
            quote = drive(self.venue.quote(self.route, seized_raw)) if seized_raw else None
            self.seen[seized_raw] = quote.amount_out_raw if isinstance(quote, Quote) else 0
        return self.seen[seized_raw]

    def most_raw(self) -> int:
        """How much seized in all nets most, gas aside."""
        _, seized_raw, owed_raw = self.offers[0]
        low, high = 0, sum(each[1] for each in self.offers)
        while high - low > 10**12:
            one, two = low + (high - low) // 3, high - (high - low) // 3
            nets = [self.out_raw(raw) - raw * owed_raw // seized_raw for raw in (one, two)]
            low, high = (one, high) if nets[0] < nets[1] else (low, two)
        return high

    def nets_raw(self, order: Sequence[int], most_raw: int) -> int:
        """What the accounts net in this order, each the amount that is best when its turn comes, or nothing."""
        sold_raw = net_raw = 0
        for place in order:
            option, seized_raw, owed_raw = self.offers[place]
            part_raw = seized_raw * option.partial_max_repay_raw // option.max_repay_raw
            amounts = {seized_raw, max(0, min(part_raw, most_raw - sold_raw))}
            nets = {
                raw: self.out_raw(sold_raw + raw)
                - self.out_raw(sold_raw)
                - mul_div_up(raw, owed_raw, seized_raw)
                - self.gas_raw
                for raw in amounts
            }
            best_raw = max(nets, key=lambda raw: nets[raw])
            if nets[best_raw] > 0:
                net_raw += nets[best_raw]
                sold_raw += best_raw
        return net_raw

    def best_raw(self, chance: random.Random) -> int:
        """The best that is found from several orders by moving one account at a time."""
        most_raw, best = self.most_raw(), 0
        places = range(len(self.offers))
        starts = [sorted(places, key=lambda place: -self.offers[place][1])]
        starts += [chance.sample(places, len(places)) for _ in range(STARTS - 1)]
        for start in starts:
            order = list(start)
            here = self.nets_raw(order, most_raw)
            for _ in range(TRIES):
                other = list(order)
                other.insert(chance.choice(places), other.pop(chance.choice(places)))
                there = self.nets_raw(other, most_raw)
                if there >= here:
                    order, here = other, there
            best = max(best, here)
        return best


def drive(reads: Any) -> Any:
    """The result of a read that needs no round."""
    try:
        next(reads)
    except StopIteration as end:
        return end.value
    raise AssertionError("a quote of a pool that is known asked for more")


async def fallen(lab: Lab, chance: random.Random) -> None:
    """Accounts of all sizes, some of which the close factor protects by half, and one pool that is too small."""
    world, node = lab.world, lab.node
    specs = [
        PositionSpec(
            account(100 + place),
            {"WETH": int(ETHER * 10 ** chance.uniform(0, 1.2))},
            {"USDC": 1},
            chance.choice((108, 110, 115)) * WAD // 100,
        )
        for place in range(ACCOUNTS)
    ]
    await open_positions(node, world.cast, world.aave[MARKET], specs)
    prices = world.prices_e8 | {"WETH": 1_700 * 10**8}
    await node.set_balances([world.cast.deployer.address], 10**32)
    pool = world.uniswap_v3.pool(world.tokens["WETH"], world.tokens["USDC"], FEE)
    sides = prices[pool.token0.symbol], prices[pool.token1.symbol]
    await move_pool(node, world.cast, world.uniswap_v3, pool, *sides)
    left_bps = min(BPS - 1, LEFT_USD * ACCOUNTS * BPS // POOL_USD)
    await drain_pool(node, world.cast, world.uniswap_v3, pool, BPS - left_bps)
    await set_price(node, world.feeds["WETH"], prices["WETH"])


async def market(line: Line, gas_used: int) -> Market:
    """The accounts and the pool at the head, at what a transaction of one account takes."""
    lab, engine = line.lab, line.engine
    head = await line.parts.chain.head()
    view = await engine.look(head)
    [name] = [name for name in line.watch.adapters if name.endswith(MARKET.replace(".", "-"))]
    adapter, marks = line.watch.adapters[name], view.marks[name]
    assert isinstance(marks, Marks)
    offers = []
    for key in line.watch.book.candidates(marks):
        health = adapter.assess(line.watch.book.position(key), marks)
        assert not isinstance(health, Refusal)
        options = adapter.options(line.watch.book.position(key), health, marks)
        option = max((one for one in options if isinstance(one, Option)), key=lambda one: one.max_repay_raw)
        outcome = await engine.ask(adapter.outcome(option, option.max_repay_raw), head)
        assert not isinstance(outcome, Refusal)
        offers.append((option, outcome.seize_raw, mul_div_up(outcome.repay_raw, BPS + 5, BPS)))
    weth, usdc = lab.world.tokens["WETH"], lab.world.tokens["USDC"]
    [venue] = line.parts.venues
    route = Route((weth.address, usdc.address), (FEE,))
    await engine.ask(venue.sync([route], view.at), head)
    assert not isinstance(view.native, Refusal)
    price_wei = line.engine._market(head).price()
    gas_raw = gas_used * price_wei * view.native.usd_e8_up * 10**6 // (10**18 * 10**8)
    found = Market(venue, route, offers, gas_raw, {})
    for part in (3, 1):
        raw = sum(seized for _, seized, _ in offers) // part
        assert found.out_raw(raw) == await quote_v3(lab.node, lab.world.uniswap_v3, weth, usdc, FEE, raw)
    return found


@pytest.mark.deep
@pytest.mark.parametrize("together", [True, False], ids=["together", "alone"])
async def test_a_thin_market_is_emptied_in_the_best_order(
    lab: Lab, tmp_path: Path, together: bool, count: Count
) -> None:
    """Whether they may share a transaction or not, no transaction reverts, and what all of them net is at most a
    hundredth less than what any order nets in which each goes alone.
    """
    chance = random.Random(SEED)
    terms = Terms(max_slippage_bps=1000, max_accounts=16 if together else 1)
    rig = await make_rig(lab, tmp_path, terms)
    rig.config.write_text(rig.config.read_text().replace("[100, 500, 3000, 10000]", f"[{FEE}]"))
    await fallen(lab, chance)
    async with open_again(lab, rig) as line:
        found = await market(line, 450_000)
        best_raw = found.best_raw(chance)
        before_raw, heads, sent = await line.treasury_raw(), 0, 0
        while True:
            report = await line.step()
            heads += 1
            sent += len(report.sent)
            if not (report.sent or report.settled):
                break
            await lab.node.mine()
        assert not line.booked("reverted", "lost_race", "cancelled")
        settled = line.booked("settled")
        assert len(settled) == sent == len(line.booked("signed"))
        gas_raw = sum(int(each.body["gas_cost_usd_e8"]) for each in settled) // 100
        net_raw = await line.treasury_raw() - before_raw - gas_raw
        how = "together" if together else "alone"
        count(f"transactions in a thin market, {how}", sent)
        count(f"basis points of the best order's profit, {how}", net_raw * BPS // best_raw)
        assert net_raw * WITHIN >= best_raw * (WITHIN - 1)
