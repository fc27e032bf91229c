"""Perps by the daemon's own line: both steps at once, and a gated liquidation across blocks and a restart."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from keeper.abi import checksum, load
from keeper.errors import ExecutionError
from keeper.lab.actors import account
from keeper.lab.artifacts import synthetix as synthetix_artifact
from keeper.lab.chainlink import latest, set_prices
from keeper.lab.node import Contract
from keeper.lab.synthetix import (
    UNIT,
    PerpsMarket,
    PerpSpec,
    Synthetix,
    contract_of,
    market_of,
    open_perps,
    random_perps,
    state_of,
    trade_tx,
)
from keeper.lab.tokens import balance_of
from keeper.lab.world import Lab
from keeper.protocols.synthetix_v2_perps import FLAG_SELECTOR, LIQUIDATE_SELECTOR
from keeper.types import Address
from tests.conftest import Count
from tests.e2e.crashes import judged, seeds
from tests.e2e.line import Line, open_again
from tests.protocols.synthetix_lab import named, rig_with_markets

TRADER, WHALE = account(1), account(2)
_E8 = 10**8
_CRASHES = 2  # of each seed
_GATING = {"ETH": 1_300 * UNIT, "BTC": 130 * UNIT}  # a skew at which the second step is gated
_MOVES = (0.85, 0.93, 0.97, 1.03, 1.07, 1.15)


async def _fall(lab: Lab, synthetix: Synthetix, price_usd: int) -> None:
    """The market's rate falls; sUSD keeps its own."""
    feeds = {synthetix.markets["ETH"].feed: price_usd * _E8, synthetix.susd_feed: _E8}
    await set_prices(lab.node, feeds)


async def _size(lab: Lab, market: PerpsMarket, who: bytes) -> int:
    return int((await market_of(lab.node, market).read("positions", who))[4])


async def test_an_unsafe_position_is_flagged_and_liquidated_at_once(lab: Lab, tmp_path: Path) -> None:
    """One transaction closes it; the treasury gains exactly what is booked, and what was expected is what came."""
    lab, synthetix, rig = await rig_with_markets(lab, tmp_path)
    market = synthetix.markets["ETH"]
    await open_perps(lab.node, lab.world.cast, synthetix, market, [PerpSpec(TRADER, 2_000 * UNIT, 20 * UNIT)])
    async with open_again(lab, rig) as line:
        assert (await line.step()).liquidatable == 0
        await _fall(lab, synthetix, 1_905)
        before_raw = await line.treasury_raw()
        first, *later = await line.steps()
        assert first.liquidatable == len(first.sent) == 1
        [settled] = line.booked("settled")
        gained_raw = await line.treasury_raw() - before_raw
        assert gained_raw == int(settled.body["profit_raw"]) == int(settled.body["expected_profit_raw"]) > 0
        assert await _size(lab, market, TRADER) == 0
        assert later[-1].liquidatable == 0
        assert line.ledger.verify() is None


async def _flag_only(line: Line, lab: Lab, synthetix: Synthetix) -> None:
    """The skew gates the second step, so the first is sent alone and earns nothing yet."""
    market = synthetix.markets["ETH"]
    await _fall(lab, synthetix, 1_905)
    report = await line.step()
    assert (report.liquidatable, len(report.sent)) == (1, 1), report.refused
    await lab.node.mine()
    gated = await line.step()
    [settled], [intent] = line.booked("settled"), line.booked("intent")
    assert int(settled.body["profit_raw"]) == int(intent.body["min_profit_raw"]) == 0
    assert int(intent.body["later_raw"]) > 0
    assert line.refusals(gated, TRADER) == [("options", "over_max_pd")]
    state = state_of(lab.node, market)
    assert await state.read("positionFlagger", TRADER) == line.rig.liquidator
    assert await _size(lab, market, TRADER)


async def test_a_gated_position_is_flagged_now_and_liquidated_later(lab: Lab, tmp_path: Path) -> None:
    """The flag is sent alone for what the second step will pay; a keeper started anew carries on by the chain alone, is
    refused while the gate stands, and earns both fees to the unit once it opens.
    """
    lab, synthetix, rig = await rig_with_markets(lab, tmp_path)
    market = synthetix.markets["ETH"]
    specs = [PerpSpec(WHALE, 2_000_000 * UNIT, 1_300 * UNIT), PerpSpec(TRADER, 10_000 * UNIT, 100 * UNIT)]
    await open_perps(lab.node, lab.world.cast, synthetix, market, specs)
    async with open_again(lab, rig) as line:
        await _flag_only(line, lab, synthetix)
    async with open_again(lab, rig) as line:
        waiting = await line.step()
        assert (waiting.liquidatable, waiting.sent) == (1, [])
        contract = market_of(lab.node, market)
        await lab.node.send(trade_tx(contract, WHALE, -300 * UNIT), contract.abi)
        before_raw = await line.treasury_raw()
        await line.steps()
        settled = line.booked("settled")[-1]
        gained_raw = await line.treasury_raw() - before_raw
        assert gained_raw == int(settled.body["profit_raw"]) == int(settled.body["expected_profit_raw"])
        assert gained_raw > 600 * 10**6, "the flagger's fee, not the keeper's alone"
        assert await _size(lab, market, TRADER) == 0
        assert line.ledger.verify() is None


async def test_a_flag_that_would_not_pay_for_both_steps_is_refused(lab: Lab, tmp_path: Path) -> None:
    """A gated position whose fees are less than the gas of two transactions is left alone, with the numbers."""
    lab, synthetix, rig = await rig_with_markets(lab, tmp_path)
    market = synthetix.markets["ETH"]
    specs = [PerpSpec(WHALE, 2_000_000 * UNIT, 1_300 * UNIT), PerpSpec(TRADER, 60 * UNIT, UNIT // 4)]
    await open_perps(lab.node, lab.world.cast, synthetix, market, specs)
    async with open_again(lab, rig) as line:
        await lab.node.set_base_fee(50 * 10**9)
        await _fall(lab, synthetix, 1_770)
        report = await line.step()
        assert (report.liquidatable, report.sent) == (1, [])
        [(_, who, refusal)] = report.refused
        assert (who, refusal.reason) == (TRADER, "unprofitable")
        assert refusal.numbers["seize_raw"] == 0 and refusal.numbers["later_raw"] < 0


async def test_a_flag_lost_to_another_is_a_lost_race(lab: Lab, tmp_path: Path) -> None:
    """A rival flags first in the block of ours: it costs gas, is booked as lost, and does not count as a revert."""
    lab, synthetix, rig = await rig_with_markets(lab, tmp_path)
    market, rival = synthetix.markets["ETH"], lab.world.cast.liquidator.address
    await open_perps(lab.node, lab.world.cast, synthetix, market, [PerpSpec(TRADER, 2_000 * UNIT, 20 * UNIT)])
    async with open_again(lab, rig) as line:
        await line.step()
        await _fall(lab, synthetix, 1_905)
        await lab.node.mine_on_demand()
        assert len((await line.step()).sent) == 1
        contract = market_of(lab.node, market)
        await line.pend(contract.tx(rival, "flagPosition", TRADER, gas=1_500_000))
        await lab.node.mine()
        await line.step()
        assert [entry.account for entry in line.booked("lost_race")] == [checksum(TRADER)]
        assert not line.booked("reverted", "settled") and line.ledger.consecutive_reverts() == 0
        assert await contract.read("isFlagged", TRADER)


async def test_a_flag_that_others_complete_is_paid_all_the_same(lab: Lab, tmp_path: Path) -> None:
    """A rival sends the second step of ours: our share comes to the Liquidator, and from there to the treasury only."""
    lab, synthetix, rig = await rig_with_markets(lab, tmp_path)
    market, cast = synthetix.markets["ETH"], lab.world.cast
    specs = [PerpSpec(WHALE, 2_000_000 * UNIT, 1_300 * UNIT), PerpSpec(TRADER, 10_000 * UNIT, 100 * UNIT)]
    await open_perps(lab.node, cast, synthetix, market, specs)
    async with open_again(lab, rig) as line:
        await _flag_only(line, lab, synthetix)
        contract = market_of(lab.node, market)
        await lab.node.send(trade_tx(contract, WHALE, -300 * UNIT), contract.abi)
        await contract.send(cast.liquidator.address, "liquidatePosition", TRADER)
        assert (await line.step()).liquidatable == 0
        due_raw = await balance_of(lab.node, synthetix.susd, rig.liquidator)
        assert due_raw > 600 * UNIT
        liquidator = Contract(lab.node, rig.liquidator, load("Liquidator"))
        await liquidator.send(cast.liquidator.address, "sweep", [synthetix.susd.address])
        assert await balance_of(lab.node, synthetix.susd, cast.treasury.address) == due_raw
        assert line.ledger.verify() is None


@pytest.mark.deep
@pytest.mark.parametrize("seed", seeds(sample=4))
async def test_nothing_is_left_after_random_crashes(
    own_lab: Lab, tmp_path: Path, seed: int, count: Count
) -> None:
    """Longs and shorts of two markets whose rates fall or rise, gated by a whale's skew or not: the treasury gains what
    is booked, every booked profit is what was expected, whoever is left liquidatable was refused with numbers, and the
    judge finds nothing that would have paid and no figure that differs.
    """
    lab, synthetix, rig = await rig_with_markets(own_lab, tmp_path)
    chance, owners = random.Random(seed), {}
    skews = {asset: chance.choice((-1, 0, 1)) * size for asset, size in _GATING.items()}
    for place, market in enumerate(synthetix.markets.values()):
        price_usd = (await latest(lab.node, market.feed)).price_raw / _E8
        specs = random_perps(chance, price_usd, 3_000 + 100 * place, 12)
        if skews[market.asset]:
            specs.append(PerpSpec(WHALE, 3_000_000 * UNIT, skews[market.asset]))
        await open_perps(lab.node, lab.world.cast, synthetix, market, specs)
        owners[market.asset] = [spec.account for spec in specs]
    async with open_again(lab, rig) as line:
        await line.step()
        crashes = in_vain = 0
        while crashes < _CRASHES or not line.booked("settled"):
            moved = {
                market.feed: int((await latest(lab.node, market.feed)).price_raw * chance.choice(_MOVES))
                for market in synthetix.markets.values()
            }
            await set_prices(lab.node, moved | {synthetix.susd_feed: _E8})
            before_raw, known = await line.treasury_raw(), len(line.booked("settled"))
            await lab.node.mine_on_demand()
            reports = await line.steps(40)
            await lab.node.mine_each_transaction()
            settled = line.booked("settled")[known:]
            assert not line.booked("reverted", "lost_race")
            gained_raw = await line.treasury_raw() - before_raw
            assert gained_raw == sum(int(entry.body["profit_raw"]) for entry in settled)
            assert all(each.body["profit_raw"] == each.body["expected_profit_raw"] for each in settled)
            refused = {who for _, who, _ in reports[-1].refused}
            for asset in synthetix.markets:
                assert refused.issuperset(await _unsafe(lab, synthetix, owners, asset))
            crashes += 1
            in_vain += await judged(line, f"seed {seed}, crash {crashes}")
            await lab.node.advance(chance.choice((20, 700)))
            for asset, size in (each for each in skews.items() if each[1]):
                contract = market_of(lab.node, synthetix.markets[asset])
                with suppress(ExecutionError):  # its margin may be short by now
                    await lab.node.send(trade_tx(contract, WHALE, -size // 4), contract.abi)
        flags = [entry for entry in line.booked("settled") if not int(entry.body["profit_raw"])]
        count("random crashes on Synthetix that the judge found nothing left of", crashes)
        count("unhealthy accounts on Synthetix that the judge tried in vain", in_vain)
        count("Synthetix liquidations by the daemon, as expected to the unit", len(line.booked("settled")))
        count("of them flags alone, for a gated second step", len(flags))


async def _unsafe(
    lab: Lab, synthetix: Synthetix, owners: Mapping[str, Sequence[Address]], asset: str
) -> list[Address]:
    """Whom the market itself lets liquidate."""
    contract = market_of(lab.node, synthetix.markets[asset])
    return [who for who in owners[asset] if await contract.read("canLiquidate", who)]


async def _upgrade(lab: Lab, synthetix: Synthetix, market: PerpsMarket) -> Address:
    """Governance routes both steps to a new deployment of the part that does them."""
    deployer, name = lab.world.cast.deployer.address, "PerpsV2MarketLiquidate"
    resolver = synthetix.contracts["AddressResolver"]
    code = synthetix_artifact(name).creation_code(market.proxy, market.state, deployer, resolver)
    new = await lab.node.deploy(deployer, code)
    await state_of(lab.node, market).send(deployer, "addAssociatedContracts", [new])
    await contract_of(lab.node, synthetix, "AddressResolver").send(deployer, "rebuildCaches", [new])
    router = Contract(lab.node, market.proxy, synthetix_artifact("ProxyPerpsV2").abi)
    for selector in (FLAG_SELECTOR, LIQUIDATE_SELECTOR):
        await router.send(deployer, "addRoute", selector, new, False)
    manager = contract_of(lab.node, synthetix, "FuturesMarketManager")
    await manager.send(deployer, "updateMarketsImplementations", [market.proxy])
    return new


async def test_new_code_stops_its_market_until_somebody_looks(lab: Lab, tmp_path: Path) -> None:
    """Both steps are routed elsewhere: an unsafe position is left alone there, and liquidated in the other market."""
    lab, synthetix, rig = await rig_with_markets(lab, tmp_path)
    eth, btc = synthetix.markets["ETH"], synthetix.markets["BTC"]
    await open_perps(lab.node, lab.world.cast, synthetix, eth, [PerpSpec(TRADER, 2_000 * UNIT, 20 * UNIT)])
    await open_perps(lab.node, lab.world.cast, synthetix, btc, [PerpSpec(WHALE, 2_000 * UNIT, UNIT)])
    async with open_again(lab, rig) as line:
        await line.step()
        new = await _upgrade(lab, synthetix, eth)
        feeds = {eth.feed: 1_905 * _E8, btc.feed: 38_100 * _E8, synthetix.susd_feed: _E8}
        await set_prices(lab.node, feeds)
        report = await line.step()
        assert report.liquidatable == 2
        assert [entry.protocol for entry in line.booked("intent")] == [named(synthetix, "BTC")]
        assert [each.reason for name, _, each in report.refused if name == named(synthetix, "ETH")] == [
            "code_changed"
        ]
        stopped = {entry.body["subject"]: entry for entry in line.booked("tripped")}
        assert set(stopped) == {"part that flags", "part that liquidates"}
        assert stopped["part that flags"].body["numbers"]["now"]["address"] == checksum(new)
