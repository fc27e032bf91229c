"""The reference exchange by the daemon's own line: cash, takeovers, parts until healthy, several markets, pauses."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from keeper.abi import load
from keeper.errors import ExecutionError
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import latest, set_prices
from keeper.lab.perp_exchange import (
    PerpExchange,
    TraderSpec,
    exchange_of,
    open_accounts,
    random_traders,
    table,
)
from keeper.lab.rig import make_rig
from keeper.lab.tokens import balance_of
from keeper.lab.world import Lab
from keeper.ledger import Booked
from keeper.protocols.reference_perp.exchange import account_key
from keeper.types import Address
from tests.conftest import Count
from tests.e2e.crashes import judged, seeds
from tests.e2e.line import Line, open_again
from tests.protocols.reference_perp_lab import (
    BTC,
    ETH,
    ISO,
    MARKETS,
    USDC,
    exchange_on,
    feeds_of,
    rig_with_exchange,
    set_parameters,
    units,
)

_CRASHES = 2  # of each seed
TRADER, WHALE = account(1), account(2)
EXCHANGE = load("PerpExchange")


@dataclass(frozen=True, slots=True)
class Scene:
    """A keeper at work on a lab with a reference exchange; accounts go by their numbers."""

    lab: Lab
    exchange: PerpExchange
    line: Line

    async def mark_e8(self, market: int) -> int:
        """A market's price in its feed's units."""
        return (await latest(self.lab.node, feeds_of(self.lab.world, self.exchange)[market])).price_raw

    async def open(self, owner: Address, cash_usd: int, *trades: tuple[int, int]) -> int:
        """A cross account that trades; its number."""
        sizes = {self.exchange.markets[market]: size for market, size in trades}
        spec = TraderSpec(owner, cash_usd * USDC, sizes)
        [number] = await open_accounts(self.lab.node, self.lab.world.cast, self.exchange, [spec])
        return number

    async def move(self, prices_usd: Mapping[int, int]) -> None:
        """Report these markets' prices, and the others' again."""
        feeds = feeds_of(self.lab.world, self.exchange)
        prices = {feed: (await latest(self.lab.node, feed)).price_raw for feed in feeds}
        prices |= {feeds[market]: usd * 10**8 for market, usd in prices_usd.items()}
        await set_prices(self.lab.node, prices)

    async def set(self, market: int | None = None, **changed: int) -> None:
        """Change parameters of the exchange, or of a market."""
        await set_parameters(self.lab.node, self.lab.world, self.exchange, market, **changed)

    async def size(self, number: int, market: int) -> int:
        """A position's size."""
        return int((await exchange_of(self.lab.node, self.exchange).read("holding", number, market))[0])

    async def healthy(self, number: int) -> bool:
        """The exchange's own word."""
        judged = await exchange_of(self.lab.node, self.exchange).read("assess", number)
        flagged = (await exchange_of(self.lab.node, self.exchange).read("accountOf", number))[2]
        return bool(judged[0] >= judged[4]) and not flagged

    async def work(self, most: int = 12) -> list[Booked]:
        """Let the line work until nothing is left to do; what it settled, each exactly as expected.

        The treasury gained what is booked, and the Liquidator and its account hold nothing.
        """
        line, before_raw = self.line, await self.line.treasury_raw()
        known = len(line.booked("settled"))
        await self.lab.node.mine_on_demand()  # all that a head sends is in one block
        await line.steps(most)
        await self.lab.node.mine_each_transaction()
        settled = line.booked("settled")[known:]
        for each in settled:
            assert int(each.body["profit_raw"]) == int(each.body["expected_profit_raw"]) > 0
        gained_raw = await line.treasury_raw() - before_raw
        assert gained_raw == sum(int(each.body["profit_raw"]) for each in settled)
        assert await balance_of(self.lab.node, self.exchange.token, line.rig.liquidator) == 0
        contract = exchange_of(self.lab.node, self.exchange)
        heir = await contract.read("newestOf", line.rig.liquidator)
        if heir:
            _, _, flagged, _, collateral, markets = await contract.read("accountOf", heir)
            assert (flagged, markets) == (False, 0) and 0 <= collateral < 10**12
        assert line.ledger.verify() is None
        return settled

    async def done(self) -> list[str]:
        """Every liquidation there was, by its payout, oldest first."""
        topic = EXCHANGE.event("Liquidated").topic
        head = await self.lab.node.head()
        filters = [adapter.sources() for adapter in self.line.parts.adapters if adapter.name == "reference"]
        logs = await self.line.parts.chain.logs(filters, 0, head.number)
        heirs = [EXCHANGE.event("Liquidated").decode(log)["heir"] for log in logs if log.topics[0] == topic]
        return ["takeover" if heir else "cash" for heir in heirs]


@asynccontextmanager
async def scene_on(lab: Lab, folder: Path) -> AsyncIterator[Scene]:
    """A reference exchange and a keeper at work on a lab."""
    exchange, rig = await rig_with_exchange(lab, folder)
    async with open_again(lab, rig) as line:
        yield Scene(lab, exchange, line)


@pytest.fixture
async def scene(lab: Lab, tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene on the world itself."""
    async with scene_on(lab, tmp_path) as scene:
        yield scene


async def test_a_position_is_closed_for_cash(scene: Scene) -> None:
    """Where closing costs more than the discount brings, the reward in cash is taken, to the unit."""
    await scene.set(keeper_share=WAD // 100)
    number = await scene.open(TRADER, 3_000, (ETH, units(15)))
    assert (await scene.line.step()).liquidatable == 0
    await scene.move({ETH: 1_855})
    settled = await scene.work()
    assert settled and set(await scene.done()) == {"cash"}
    assert await scene.healthy(number)


async def test_a_position_is_taken_over_and_closed(scene: Scene) -> None:
    """Where the skew pays for it the position is inherited, closed and all withdrawn in one transaction; the second
    takeover uses the account that the first one opened.
    """
    first = await scene.open(TRADER, 30_000, (ETH, units(150)))
    second = await scene.open(WHALE, 33_000, (ETH, units(150)))
    await scene.move({ETH: 1_850})
    await scene.work()
    assert set(await scene.done()) == {"takeover"}
    contract = exchange_of(scene.lab.node, scene.exchange)
    heir = await contract.read("newestOf", scene.line.rig.liquidator)
    assert heir == second + 1 == await contract.read("accountCount") - 1
    assert await scene.healthy(first) and await scene.healthy(second)


async def test_a_strangers_account_before_ours_changes_nothing(scene: Scene) -> None:
    """The first takeover opens an account, and somebody opens one right before it in the same block."""
    number = await scene.open(TRADER, 30_000, (ETH, units(150)))
    await scene.move({ETH: 1_850})
    contract, node = exchange_of(scene.lab.node, scene.exchange), scene.lab.node
    await node.mine_on_demand()
    report = await scene.line.step()
    assert len(report.sent) == 1
    await node.set_balances([WHALE])
    await scene.line.pend(contract.tx(WHALE, "createAccount", False, gas=200_000))
    await node.mine()
    [settled] = (await scene.line.step()).settled
    assert settled.status == 1
    assert await scene.done() == ["takeover"]
    assert await contract.read("newestOf", WHALE) == number + 1
    assert await contract.read("newestOf", scene.line.rig.liquidator) == number + 2
    assert await contract.read("accountCount") == number + 3
    [booked] = scene.line.booked("settled")
    assert int(booked.body["profit_raw"]) == int(booked.body["expected_profit_raw"]) > 0


async def test_parts_are_taken_until_the_account_is_healthy(scene: Scene) -> None:
    """A tenth at a time by the exchange's tiers, one transaction a head, and no more than it takes."""
    await scene.set(partial_ratio=WAD // 10, critical_ratio=0)
    number = await scene.open(TRADER, 30_000, (ETH, units(150)))
    await scene.move({ETH: 1_875})
    settled = await scene.work()
    assert len(settled) == len(await scene.done()) > 1
    assert await scene.healthy(number)
    assert 0 < await scene.size(number, ETH) < units(150)


async def test_a_cross_account_is_liquidated_over_several_markets(scene: Scene) -> None:
    """One account's margin falls short by three positions together; it is healthy in the end, by what paid most."""
    trades = ((ETH, units(20)), (BTC, units(1)), (ISO, -units(2_000)))
    number = await scene.open(TRADER, 11_500, *trades)
    assert (await scene.line.step()).liquidatable == 0
    await scene.move({ETH: 1_850, BTC: 37_000, ISO: 11})
    settled = await scene.work()
    assert len(settled) > 1
    assert await scene.healthy(number)
    left = [await scene.size(number, market) for market in (ETH, BTC, ISO)]
    assert sum(size != before for size, (_, before) in zip(left, trades, strict=True)) > 1


async def test_a_flagged_account_is_known_from_the_chain_alone(lab: Lab, tmp_path: Path) -> None:
    """A keeper that starts after everything, and reads no log of it, liquidates what another has flagged."""
    exchange = await exchange_on(lab)
    deployer, contract = lab.world.cast.deployer.address, exchange_of(lab.node, exchange)
    spec = TraderSpec(TRADER, 30_000 * USDC, {"WETH": units(150)})
    [number] = await open_accounts(lab.node, lab.world.cast, exchange, [spec])
    await set_prices(lab.node, {lab.world.feeds["WETH"]: 1_850 * 10**8})
    await contract.send(deployer, "flag", number)
    head = await lab.node.head()
    rig = await make_rig(lab, tmp_path, tables=table(exchange) + f"from_block = {head.number + 1}\n")
    async with open_again(lab, rig) as line:
        scene = Scene(lab, exchange, line)
        assert not await scene.healthy(number)
        assert await scene.work()
        assert await scene.healthy(number)


async def test_nothing_is_sent_while_the_exchange_has_paused_liquidations(scene: Scene) -> None:
    """Its flag for opening stops nothing; its flag for liquidating stops all, with the reason, until it is lifted."""
    deployer = scene.lab.world.cast.deployer.address
    contract = exchange_of(scene.lab.node, scene.exchange)
    number = await scene.open(TRADER, 30_000, (ETH, units(150)))
    await scene.move({ETH: 1_850})
    await contract.send(deployer, "setPauses", True, True)
    for _ in range(3):
        report = await scene.line.step()
        assert (report.liquidatable, report.sent) == (1, [])
        assert scene.line.refusals(report, account_key(number)) == [("options", "protocol_paused")]
        await scene.lab.node.mine()
    assert not scene.line.booked("sent")
    await contract.send(deployer, "setPauses", True, False)
    assert await scene.work()
    assert "takeover" in await scene.done()
    assert await scene.healthy(number)


async def test_a_window_used_up_is_waited_for(scene: Scene) -> None:
    """The house takes over only so much at a time; where a takeover would lose, the rest waits for the next window."""
    await scene.set(ETH, window_multiplier=WAD // 400, max_pd=0)  # 6 ETH every 30 seconds
    await scene.set(keeper_share=0)
    number = await scene.open(TRADER, 6_000, (ETH, units(30)))
    await scene.open(WHALE, 60_000, (ETH, -units(35)))  # closing the long would grow the skew
    await scene.move({ETH: 1_850})
    assert len(await scene.work()) == 1
    assert await scene.size(number, ETH) == units(24)
    report = await scene.line.step()
    assert (report.liquidatable, report.sent) == (1, [])
    assert scene.line.refusals(report, account_key(number)) == [("options", "rate_limited")]
    await scene.lab.node.advance(60)
    await scene.move({})
    assert len(await scene.work()) == 1
    assert await scene.done() == ["cash", "cash"]
    assert await scene.size(number, ETH) == units(18)


async def test_a_loss_the_fund_cannot_cover_is_left_alone(scene: Scene) -> None:
    """Auto-deleveraging pays nobody: the account is refused with the deficit, and nothing is sent."""
    number = await scene.open(TRADER, 200_000, (ETH, units(1_000)))
    await scene.move({ETH: 1_200})
    report = await scene.line.step()
    assert (report.liquidatable, report.sent) == (1, [])
    assert scene.line.refusals(report, account_key(number)) == [("options", "insurance_fund_short")]


async def test_a_way_that_takes_more_gas_than_it_pays_is_passed_over(scene: Scene) -> None:
    """A takeover that looks better than cash and is too dear once it was tried does not keep cash from being taken."""
    node = scene.lab.node
    await scene.set(partial_ratio=WAD)
    await scene.open(WHALE, 500_000, (ETH, units(500)))  # whoever closes a long is paid for it
    number = await scene.open(TRADER, 60, (ETH, units(0.4)))
    await scene.move({ETH: 1_945})
    await node.mine_on_demand()
    refused = []
    for _ in range(4):
        await node.set_base_fee(11 * 10**9)
        await node.mine()
        report = await scene.line.step()
        refused += scene.line.refusals(report, account_key(number))
        if report.sent:
            break
    await node.mine()
    await scene.line.step()
    await node.mine_each_transaction()
    assert refused == [("clear", "unprofitable")]
    assert await scene.done() == ["cash"] and await scene.healthy(number)


@pytest.fixture
async def fresh_scene(own_lab: Lab, tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene in a process of its own."""
    async with scene_on(own_lab, tmp_path) as scene:
        yield scene


@pytest.mark.deep
@pytest.mark.parametrize("seed", seeds(sample=5))
async def test_nothing_is_left_after_random_crashes(fresh_scene: Scene, seed: int, count: Count) -> None:
    """Isolated and cross accounts over all markets, random rewards, tiers and windows, and prices that fall or rise
    together: every liquidation brings what was expected to the unit, whatever else its block did, and then the judge
    finds nothing that would have paid and no figure that differs.
    """
    scene, chance = fresh_scene, random.Random(seed)
    lab, exchange = scene.lab, scene.exchange
    await _govern(scene, chance)
    crashes = settled = in_vain = 0
    while crashes < _CRASHES or not settled:
        prices_e8 = {symbol: await scene.mark_e8(market) for market, symbol in enumerate(exchange.markets)}
        for spec in random_traders(chance, exchange, prices_e8, 12, MARKETS):
            with suppress(ExecutionError):  # the skew of those before took the rest of its margin
                await open_accounts(lab.node, lab.world.cast, exchange, [spec])
        all_of = chance.choice((0.8, 0.88, 0.95, 1.05, 1.12))
        moved = {
            feed: int(prices_e8[feed.symbol] * all_of * chance.uniform(0.97, 1.03))
            for feed in feeds_of(lab.world, exchange)
        }
        await set_prices(lab.node, moved)
        settled += len(await scene.work(100))
        crashes += 1
        in_vain += await judged(scene.line, f"seed {seed}, crash {crashes}")
        await lab.node.advance(chance.choice((20, 700)))
        await set_prices(lab.node, moved)
    payouts = Counter(await scene.done())
    assert payouts.total() == settled
    count("random crashes on the reference exchange that the judge found nothing left of", crashes)
    count("unhealthy accounts on the reference exchange that the judge tried in vain", in_vain)
    count("reference exchange liquidations by the daemon, as expected to the unit", settled)
    count("of them takeovers", payouts["takeover"])


async def _govern(scene: Scene, chance: random.Random) -> None:
    """Other rewards, tiers and windows."""
    await scene.set(
        gate_s=chance.choice((0, 600)),
        partial_ratio=chance.choice((WAD // 4, WAD // 2, WAD)),
        critical_ratio=chance.choice((0, WAD // 2)),
        keeper_share=chance.choice((0, WAD // 50, WAD // 2, WAD)),
        max_reward=chance.choice((20, 5_000)) * WAD,
        max_reward_ratio=chance.choice((WAD // 50, WAD // 2)),
    )
    await scene.set(ETH, window_multiplier=chance.choice((0, WAD // 400, WAD // 5)))
