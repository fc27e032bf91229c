"""The reference exchange by the daemon's own line: cash, takeovers, parts until healthy, several markets, pauses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from keeper.abi import load
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import latest, set_prices
from keeper.lab.perp_exchange import (
    AccountSpec,
    Exchange,
    contract_of,
    open_accounts,
    set_market,
    set_parameters,
)
from keeper.lab.tokens import balance_of
from keeper.lab.world import Lab
from keeper.ledger import Booked
from keeper.protocols.reference_perp.exchange import account_key
from keeper.types import Address
from tests.e2e.line import Line, open_again
from tests.protocols.reference_perp_lab import BTC, ETH, ISO, USDC, rig_with_exchange, units

TRADER, WHALE = account(1), account(2)
EXCHANGE = load("PerpExchange")


@dataclass(frozen=True, slots=True)
class Scene:
    """A keeper at work on a lab with a reference exchange; accounts go by their numbers."""

    lab: Lab
    exchange: Exchange
    line: Line

    async def open(self, owner: Address, cash_usd: int, *trades: tuple[int, int]) -> int:
        """A cross account that trades; its number."""
        spec = AccountSpec(owner, False, cash_usd * USDC, trades)
        [number] = await open_accounts(self.lab.node, self.lab.world.cast, self.exchange, [spec])
        return number

    async def move(self, prices_usd: Mapping[int, int]) -> None:
        """Report these markets' prices, and the others' again."""
        feeds = self.exchange.feeds
        prices = {feed: (await latest(self.lab.node, feed)).price_raw for feed in feeds}
        prices |= {feeds[market]: usd * 10**8 for market, usd in prices_usd.items()}
        await set_prices(self.lab.node, prices)

    async def set(self, market: int | None = None, **changed: int) -> None:
        """Change parameters of the exchange, or of a market."""
        if market is None:
            await set_parameters(self.lab.node, self.lab.world.cast, self.exchange, **changed)
        else:
            await set_market(self.lab.node, self.lab.world.cast, self.exchange, market, **changed)

    async def size(self, number: int, market: int) -> int:
        """A position's size."""
        return int((await contract_of(self.lab.node, self.exchange).read("holding", number, market))[0])

    async def healthy(self, number: int) -> bool:
        """The exchange's own word."""
        judged = await contract_of(self.lab.node, self.exchange).read("assess", number)
        flagged = (await contract_of(self.lab.node, self.exchange).read("accountOf", number))[2]
        return bool(judged[0] >= judged[4]) and not flagged

    async def work(self) -> list[Booked]:
        """Let the line work until nothing is left to do; what it settled, each exactly as expected.

        The treasury gained what is booked, and the Liquidator and its account hold nothing.
        """
        line, before_raw = self.line, await self.line.treasury_raw()
        known = len(line.booked("settled"))
        await line.steps()
        settled = line.booked("settled")[known:]
        for each in settled:
            assert int(each.body["profit_raw"]) == int(each.body["expected_profit_raw"]) > 0
        gained_raw = await line.treasury_raw() - before_raw
        assert gained_raw == sum(int(each.body["profit_raw"]) for each in settled)
        assert await balance_of(self.lab.node, self.exchange.token, line.rig.liquidator) == 0
        contract = contract_of(self.lab.node, self.exchange)
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


@pytest.fixture
async def scene(lab: Lab, tmp_path: Path) -> AsyncIterator[Scene]:
    """A reference exchange with a keeper at work."""
    exchange, rig = await rig_with_exchange(lab, tmp_path)
    async with open_again(lab, rig) as line:
        yield Scene(lab, exchange, line)


async def test_a_position_is_closed_for_cash(scene: Scene) -> None:
    """Where closing costs more than the discount brings, the reward in cash is taken, to the unit."""
    await scene.set(keeperShare=WAD // 100)
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
    contract = contract_of(scene.lab.node, scene.exchange)
    heir = await contract.read("newestOf", scene.line.rig.liquidator)
    assert heir == second + 1 == await contract.read("accountCount") - 1
    assert await scene.healthy(first) and await scene.healthy(second)


async def test_parts_are_taken_until_the_account_is_healthy(scene: Scene) -> None:
    """A tenth at a time by the exchange's tiers, one transaction a head, and no more than it takes."""
    await scene.set(partialRatio=WAD // 10, criticalRatio=0)
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


async def test_nothing_is_sent_while_the_exchange_has_paused_liquidations(scene: Scene) -> None:
    """Its flag for opening stops nothing; its flag for liquidating stops all, with the reason, until it is lifted."""
    deployer = scene.lab.world.cast.deployer.address
    contract = contract_of(scene.lab.node, scene.exchange)
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
    await scene.set(ETH, windowMultiplier=WAD // 400, maxPd=0)  # 6 ETH every 30 seconds
    await scene.set(keeperShare=0)
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
