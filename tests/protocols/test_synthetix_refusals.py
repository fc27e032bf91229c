from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from keeper.errors import ExecutionError
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import latest, set_price
from keeper.lab.synthetix import RATE_STALE_PERIOD_S, UNIT, PerpSpec, key_of, trade_tx
from keeper.lab.tokens import balance_of
from keeper.lab.world import Lab
from keeper.protocols.synthetix_v2_perps import Step
from keeper.types import Refusal
from tests.protocols.synthetix_lab import OTHER, TRADER, PerpsFollower, following_perps

POSITION = PerpSpec(TRADER, 1_000 * UNIT, 10 * UNIT)
_E8 = 10**8
Act = Callable[[PerpsFollower], Awaitable[object]]
ETH, SUSD = key_of("sETH"), key_of("sUSD")


async def _unsafe(follower: PerpsFollower) -> None:
    """A position that may be liquidated, and somebody who could."""
    await follower.open(POSITION)
    await follower.node.set_balances([OTHER])
    await follower.move(0.9)
    await follower.follow()


SWITCHES = [
    ("system_suspended", "suspendSystem", (7,), "resumeSystem", ()),
    ("exchange_suspended", "suspendExchange", (7,), "resumeExchange", ()),
    ("futures_suspended", "suspendFutures", (7,), "resumeFutures", ()),
    (
        "market_suspended",
        "suspendFuturesMarket",
        (key_of("sETHPERP"), 7),
        "resumeFuturesMarket",
        (key_of("sETHPERP"),),
    ),
    ("synth_suspended", "suspendSynth", (ETH, 7), "resumeSynth", (ETH,)),
]


@pytest.mark.parametrize(("reason", "suspend", "given", "resume", "back"), SWITCHES)
async def test_whatever_is_suspended_is_refused(
    reason: str, suspend: str, given: tuple[object, ...], resume: str, back: tuple[object, ...], lab: Lab
) -> None:
    """Each of the system's switches is told apart, with its reason code; the market then lets nobody flag, and once it
    is switched on again there are marks again.
    """
    async with following_perps(lab) as follower:
        await _unsafe(follower)
        await follower.govern("SystemStatus", suspend, *given)
        refusal = await follower.read_marks(await follower.follow())
        assert isinstance(refusal, Refusal)
        assert (refusal.stage, refusal.reason) == ("marks", reason)
        assert refusal.numbers == {"asset": "sETH", "reason_code": 7}
        with pytest.raises(ExecutionError, match=r"[Ss]uspended"):
            await follower.send(OTHER, "flagPosition", TRADER)
        await follower.govern("SystemStatus", resume, *back)
        await follower.marks(await follower.follow())
        await follower.send(OTHER, "flagPosition", TRADER)


async def test_a_reward_that_could_not_be_passed_on_is_refused(lab: Lab) -> None:
    """With sUSD suspended the market would still pay, but nobody could move what it paid."""
    async with following_perps(lab) as follower:
        await _unsafe(follower)
        await follower.govern("SystemStatus", "suspendSynth", SUSD, 7)
        refusal = await follower.read_marks(await follower.follow())
        assert isinstance(refusal, Refusal) and refusal.reason == "susd_suspended"


async def _stale(follower: PerpsFollower) -> None:
    await follower.node.advance(RATE_STALE_PERIOD_S + 10)


async def _jumped(follower: PerpsFollower) -> None:
    await follower.move(0.2)


async def _unlisted(follower: PerpsFollower) -> None:
    await follower.govern("ExchangeRates", "removeAggregator", ETH)


async def _flagged(follower: PerpsFollower) -> None:
    flags = account(9_000)  # where Chainlink would keep its flags: it answers 1 to whatever is asked
    await follower.node.set_code({flags: bytes.fromhex("600160005260206000f3")})
    setting = (key_of("SystemSettings"), key_of("aggregatorWarningFlags"), flags)
    await follower.govern("FlexibleStorage", "setAddressValue", *setting)


@pytest.mark.parametrize(
    ("reason", "act"),
    [
        ("stale_price", _stale),
        ("circuit_broken", _jumped),
        ("missing_price", _unlisted),
        ("flagged_price", _flagged),
    ],
)
async def test_a_rate_of_no_use_is_refused(reason: str, act: Act, lab: Lab) -> None:
    """Old, too far from the last one, gone, or warned of: each has its own reason, and the market refuses it too."""
    async with following_perps(lab) as follower:
        await _unsafe(follower)
        await act(follower)
        refusal = await follower.read_marks(await follower.follow())
        assert isinstance(refusal, Refusal)
        assert (refusal.stage, refusal.reason) == ("marks", reason)
        assert refusal.numbers["asset"] == "sETH"
        with pytest.raises(ExecutionError):
            await follower.send(OTHER, "flagPosition", TRADER)


async def test_a_rate_is_as_old_as_the_block_it_is_for(lab: Lab) -> None:
    """The age counts at the marks' own time: exactly the allowed age is taken, a second more is not."""
    async with following_perps(lab) as follower:
        await _unsafe(follower)
        head = await follower.node.head()
        updated_s = (await latest(follower.node, follower.market.feed)).updated_at_s
        ahead_s = updated_s + RATE_STALE_PERIOD_S - head.timestamp_s
        await follower.marks(head, ahead_s)
        refusal = await follower.read_marks(head, ahead_s + 1)
        assert isinstance(refusal, Refusal) and refusal.reason == "stale_price"
        assert refusal.numbers["age_s"] == RATE_STALE_PERIOD_S + 1


async def test_without_a_price_of_susd_nothing_is_priced(lab: Lab) -> None:
    """The reward's own feed must be fresh too."""
    async with following_perps(lab) as follower:
        await _unsafe(follower)
        await follower.node.advance(RATE_STALE_PERIOD_S + 10)
        await set_price(follower.node, follower.market.feed, 1_800 * _E8)
        refusal = await follower.read_marks(await follower.follow())
        assert isinstance(refusal, Refusal) and refusal.reason == "stale_price"
        assert refusal.numbers["asset"] == "sUSD"


async def test_addresses_out_of_date_stop_the_market(lab: Lab) -> None:
    """Where a part still asks an old contract nobody can tell what it would answer; rebuilt caches end that."""
    async with following_perps(lab) as follower:
        await _unsafe(follower)
        old = follower.synthetix.contracts["SystemStatus"]
        await follower.govern("AddressResolver", "importAddresses", [key_of("Exchanger")], [old])
        refusal = await follower.read_marks(await follower.follow())
        assert isinstance(refusal, Refusal) and refusal.reason == "caches_stale"
        assert "rebuilt" in follower.adapter.warnings()[0]
        exchanger = follower.synthetix.contracts["Exchanger"]
        await follower.govern("AddressResolver", "importAddresses", [key_of("Exchanger")], [exchanger])
        await follower.marks(await follower.follow())
        assert follower.adapter.warnings() == ()


async def test_a_healthy_position_has_no_option(lab: Lab) -> None:
    """It is refused with its health, and the market refuses to flag it."""
    async with following_perps(lab) as follower:
        await follower.open(POSITION)
        await follower.node.set_balances([OTHER])
        marks = await follower.marks(await follower.follow())
        refusal = follower.refusal(TRADER, marks)
        assert (refusal.reason, int(refusal.numbers["health_factor_wad"]) > WAD) == ("healthy", True)
        with pytest.raises(ExecutionError, match="cannot be liquidated"):
            await follower.send(OTHER, "flagPosition", TRADER)


async def test_a_position_too_large_to_close_at_once_is_only_flagged(lab: Lab) -> None:
    """Its share of the skew scale gates the second step, to the unit; what is expected of it is told, and once it is
    flagged the refusal has the numbers. An endorsed account's force pays the flagger, and nobody else.
    """
    async with following_perps(lab, liquidator=OTHER) as follower:
        await _unsafe(follower)
        delta = 10 * UNIT * UNIT // (1_000_000 * UNIT)
        await follower.set_parameter("maxLiquidationDelta", delta + 1)
        marks = await follower.marks(await follower.follow())
        assert follower.option(TRADER, marks).detail.step is Step.BOTH
        await follower.set_parameter("maxLiquidationDelta", delta)
        marks = await follower.marks(await follower.follow())
        option = follower.option(TRADER, marks)
        outcome = await follower.outcome(option)
        assert option.detail.step is Step.FLAG
        fee_raw = await follower.contract.read("liquidationFee", TRADER)
        assert (outcome.seize_raw, outcome.later_raw) == (0, fee_raw)
        await follower.send(OTHER, "flagPosition", TRADER)
        with pytest.raises(ExecutionError, match="price impact of liquidation exceeded"):
            await follower.send(OTHER, "liquidatePosition", TRADER)
        marks = await follower.marks(await follower.follow())
        refusal = follower.refusal(TRADER, marks)
        assert refusal.reason == "over_liquidation_delta"
        assert refusal.numbers == {
            "delta": delta,
            "max_liquidation_delta": delta,
            "flagger": OTHER,
            "flag_fee_raw": fee_raw,
        }
        endorsed, susd = follower.world.cast.lender.address, follower.synthetix.susd
        await follower.govern("FuturesMarketManager", "addEndorsedAddresses", [endorsed])
        await follower.send(endorsed, "forceLiquidatePosition", TRADER)
        assert await balance_of(follower.node, susd, OTHER) == fee_raw
        assert await balance_of(follower.node, susd, endorsed) == 0


async def test_a_market_that_leans_too_far_lets_nobody_close(lab: Lab) -> None:
    """The skew gates the second step until it is less; a position that was flagged is then liquidated for both fees."""
    async with following_perps(lab, liquidator=OTHER) as follower:
        await _unsafe(follower)
        pd = 10 * UNIT * UNIT // (1_000_000 * UNIT)
        await follower.set_parameter("maxPD", pd)
        outcome = await follower.outcome(
            follower.option(TRADER, await follower.marks(await follower.follow()))
        )
        assert outcome.later_raw == 2 * UNIT + await follower.contract.read("liquidationFee", TRADER)
        await follower.send(OTHER, "flagPosition", TRADER)
        with pytest.raises(ExecutionError, match="instantaneous P/D exceeded"):
            await follower.send(OTHER, "liquidatePosition", TRADER)
        marks = await follower.marks(await follower.follow())
        refusal = follower.refusal(TRADER, marks)
        assert (refusal.reason, refusal.numbers["pd"], refusal.numbers["max_pd"]) == ("over_max_pd", pd, pd)
        other = follower.world.cast.lender.address
        await follower.open(PerpSpec(other, 1_000 * UNIT, -UNIT))
        marks = await follower.marks(await follower.follow(), ahead_s=1)
        option = follower.option(TRADER, marks)
        assert option.detail.step is Step.LIQUIDATE
        outcome = await follower.outcome(option)
        assert outcome.seize_raw == await follower.executed(option, marks, OTHER)
        assert outcome.seize_raw == 2 * UNIT + await follower.contract.read("liquidationFee", TRADER)


async def test_what_another_flagged_pays_the_keepers_fee_alone(lab: Lab) -> None:
    """The flagger's fee is the flagger's; where nothing is left for the keeper, nothing is done."""
    async with following_perps(lab) as follower:
        await _unsafe(follower)
        await follower.send(OTHER, "flagPosition", TRADER)
        marks = await follower.marks(await follower.follow(), ahead_s=1)
        option = follower.option(TRADER, marks)
        assert (await follower.outcome(option)).seize_raw == 2 * UNIT
        assert await follower.executed(option, marks, follower.world.cast.liquidator.address) == 2 * UNIT
        await follower.govern("PerpsV2MarketSettings", "setKeeperLiquidationFee", 0)
        refusal = follower.refusal(TRADER, await follower.marks(await follower.follow()))
        assert (refusal.reason, refusal.numbers["flagger"]) == ("flagged_by_another", OTHER)


async def test_a_flagged_position_stays_liquidatable_when_it_recovers(lab: Lab) -> None:
    """The market checks nothing but the flag, so a book that went by health would lose it."""
    async with following_perps(lab) as follower:
        await _unsafe(follower)
        await follower.send(OTHER, "flagPosition", TRADER)
        await follower.move(1.2)
        marks = await follower.marks(await follower.follow(), ahead_s=1)
        health = follower.health(TRADER, marks)
        assert health.liquidatable and (health.health_factor_wad or 0) > WAD
        assert follower.key(TRADER) in follower.book.candidates(marks)
        option = follower.option(TRADER, marks)
        assert await follower.executed(option, marks, OTHER) is not None
        with pytest.raises(ExecutionError, match="Position flagged"):
            await follower.node.send(trade_tx(follower.contract, TRADER, -UNIT), follower.contract.abi)


async def test_flagging_pays_the_deposit_of_a_pending_order(lab: Lab) -> None:
    """Whoever flags is paid what the trader had set aside for whoever executes the order."""
    async with following_perps(lab) as follower:
        await follower.open(POSITION)
        await follower.node.set_balances([OTHER])
        await follower.send(TRADER, "submitOffchainDelayedOrder", -UNIT, 0)
        await follower.move(0.9)
        marks = await follower.marks(await follower.follow(), ahead_s=1)
        option = follower.option(TRADER, marks)
        outcome = await follower.outcome(option)
        assert outcome.seize_raw == option.detail.reward_raw + UNIT  # the market's minimum keeper fee
        assert outcome.seize_raw == await follower.executed(option, marks, OTHER)


@pytest.mark.parametrize("short", [False, True])
async def test_the_very_edge_is_the_markets_own(short: bool, lab: Lab) -> None:
    """With the keeper's fee set so that the margin is exactly what is wanted a position may be liquidated; with a unit
    less it may not.
    """
    async with following_perps(lab) as follower:
        await follower.set_parameter("maxFundingVelocity", 0)  # so that the same figures hold blocks later
        await follower.open(PerpSpec(TRADER, 1_000 * UNIT, -10 * UNIT if short else 10 * UNIT))
        await follower.move(1.03 if short else 0.97)
        account = follower.health(TRADER, await follower.marks(await follower.follow())).detail
        spare = account.remaining_raw - account.premium_raw - account.liquidation_margin_raw
        assert spare > 0
        for less in (0, 1):
            fee = 2 * UNIT + spare - less
            await follower.govern("PerpsV2MarketSettings", "setKeeperLiquidationFee", fee)
            health = follower.health(TRADER, await follower.marks(await follower.follow()))
            assert health.liquidatable == (not less)
            assert await follower.contract.read("canLiquidate", TRADER) == (not less)
            assert health.health_factor_wad == WAD
