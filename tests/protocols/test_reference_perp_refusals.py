from __future__ import annotations

from dataclasses import replace

import pytest

from keeper.errors import ExecutionError
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import latest, set_price
from keeper.lab.node import Tx
from keeper.lab.perp_exchange import HOUSE
from keeper.lab.tokens import balance_of
from keeper.lab.world import Lab
from keeper.protocols.reference_perp import Takeover
from keeper.protocols.reference_perp.exchange import account_key, number_of
from keeper.protocols.reference_perp.options import INHERIT, LIQUIDATE, PAY_IN, TRADE, WITHDRAW
from keeper.types import Outcome, Refusal
from tests.protocols.reference_perp_lab import (
    BTC,
    ETH,
    OTHER,
    TRADER,
    USDC,
    ExchangeFollower,
    following_exchange,
    units,
)


async def _unsafe(follower: ExchangeFollower, *, size: int = 20, cash_usd: int = 4_000) -> int:
    """An account that may be liquidated, but for what a test then does; OTHER could."""
    await follower.supply(OTHER)
    number = await follower.open_one(TRADER, cash_usd, (ETH, units(size)))
    await follower.move(WETH=0.925)
    assert follower.health(number, await follower.marks()).liquidatable
    return number


async def test_a_healthy_account_has_no_option(lab: Lab) -> None:
    """It is refused with its health, and the exchange refuses too."""
    async with following_exchange(lab, OTHER) as follower:
        number = await follower.open_one(TRADER, 4_000, (ETH, units(20)))
        marks = await follower.marks()
        refusal = follower.reasons(number, marks)["healthy"]
        assert int(refusal.numbers["health_factor_wad"]) > WAD and not follower.options(number, marks)
        with pytest.raises(ExecutionError, match="NotLiquidatable"):
            await follower.send(OTHER, "liquidate", number, ETH)


async def test_only_the_flag_for_liquidations_stops_us(lab: Lab) -> None:
    """While opening is paused both payouts go on and bring what was foretold; while liquidating is, there is none."""
    async with following_exchange(lab, OTHER) as follower:
        number = await _unsafe(follower)
        await follower.govern("setPauses", True, False)
        marks = await follower.marks()
        options = follower.options(number, marks)
        assert {type(option.detail) is Takeover for option in options} == {True, False}
        for option in options:
            outcome = await follower.outcome(option)
            assert isinstance(outcome, Outcome)
            assert await follower.executed(option, marks, OTHER) == outcome.seize_raw - outcome.repay_raw
        await follower.govern("setPauses", False, True)
        marks = await follower.marks()
        assert list(follower.reasons(number, marks)) == ["protocol_paused"]
        assert not follower.options(number, marks)
        with pytest.raises(ExecutionError, match="LiquidationIsPaused"):
            await follower.send(OTHER, "liquidate", number, ETH)


async def test_a_market_without_a_mark_stops_those_in_it(lab: Lab) -> None:
    """Exactly the allowed age is taken, a second more is not, and whoever is in such a market is judged by nobody;
    others go on. Without any mark there are no marks at all.
    """
    async with following_exchange(lab, OTHER) as follower:
        number = await _unsafe(follower)
        other = await follower.open_one(account(3), 20_000, (BTC, units(1)))
        await follower.set(ETH, max_age_s=100)
        head = await follower.follow()
        updated_s = (await latest(lab.node, follower.feeds[ETH])).updated_at_s
        ahead_s = updated_s + 100 - head.timestamp_s
        assert not isinstance(follower.assessed(number, await follower.marks(ahead_s)), Refusal)
        marks = await follower.marks(ahead_s + 1)
        refusal = follower.assessed(number, marks)
        assert isinstance(refusal, Refusal)
        assert (refusal.stage, refusal.reason, refusal.numbers) == ("assess", "stale_price", {"market": ETH})
        assert not isinstance(follower.assessed(other, marks), Refusal)
        await lab.node.advance(200)
        with pytest.raises(ExecutionError, match="StaleMark"):
            await follower.send(OTHER, "liquidate", number, ETH)
        await lab.node.advance(90_100)
        none = await follower.read_marks(await follower.follow(), 1)
        assert isinstance(none, Refusal) and none.reason == "no_market"
        assert none.numbers == dict.fromkeys(("market_0", "market_1", "market_2"), "stale_price")


@pytest.mark.parametrize("code", [b"", b"\xfe"])
async def test_a_feed_that_does_not_answer_stops_those_in_its_market(code: bytes, lab: Lab) -> None:
    """A feed without code, or one that fails, gives no mark; other markets go on, and the exchange agrees."""
    async with following_exchange(lab, OTHER) as follower:
        number = await _unsafe(follower)
        other = await follower.open_one(account(3), 20_000, (BTC, units(1)))
        await follower.follow()
        await lab.node.set_code({follower.feeds[ETH].proxy: code})
        marks = await follower.marks()
        refusal = follower.assessed(number, marks)
        assert isinstance(refusal, Refusal)
        assert (refusal.reason, refusal.numbers) == ("missing_price", {"market": ETH})
        assert follower.key(number) in follower.book.candidates(marks)
        assert not isinstance(follower.assessed(other, marks), Refusal)
        assert follower.adapter.prices(marks)[follower.feeds[ETH].proxy] == 0
        with pytest.raises(ExecutionError):
            await follower.send(OTHER, "liquidate", number, ETH)


async def test_a_window_used_up_leaves_only_takeovers(lab: Lab) -> None:
    """The window's rest is closed for cash, cut short; then nothing more in this window, to the unit; the takeover,
    which needs no window, stays. What was cut carries no share of the penalty the next time.
    """
    async with following_exchange(lab, OTHER) as follower:
        await follower.set(ETH, window_multiplier=WAD // 400, max_pd=0)  # 6 ETH every 30 seconds
        number = await _unsafe(follower)
        marks = await follower.marks()
        [option] = follower.cash(number, marks)
        assert option.detail.quote.size == units(6) < option.detail.quote.liquidatable
        full = await follower.outcome(option)
        await follower.send(OTHER, "liquidate", number, ETH)
        marks = await follower.marks()
        refusal = follower.reasons(number, marks)["rate_limited"]
        assert refusal.numbers["window_used_wad"] == str(units(6))
        assert follower.takeovers(number, marks) and not follower.cash(number, marks)
        with pytest.raises(ExecutionError, match="RateLimited"):
            await follower.send(OTHER, "liquidate", number, ETH)
        ahead_s = refusal.numbers["until_s"] - (await follower.node.head()).timestamp_s
        assert not follower.cash(number, await follower.marks(ahead_s - 1))
        marks = await follower.marks(ahead_s)
        assert marks.exact.timestamp_s == refusal.numbers["until_s"]
        [option] = follower.cash(number, marks)
        poor = await follower.outcome(option)
        assert isinstance(full, Outcome) and isinstance(poor, Outcome)
        assert poor.seize_raw < full.seize_raw // 2
        assert await follower.executed(option, marks, OTHER) == poor.seize_raw


async def test_closed_withdrawals_leave_only_cash(lab: Lab) -> None:
    """A takeover must withdraw in the same transaction: not while the gate is shut, to the second, nor where the
    account itself owes and would shut it. Cash passes the gate.
    """
    async with following_exchange(lab, OTHER) as follower:
        number = await _unsafe(follower)
        broke = await follower.open_one(account(3), 4_000, (BTC, units(0.8)))
        await follower.move(WBTC=0.8)
        marks = await follower.marks()
        assert follower.takeovers(number, marks)
        refusal = follower.reasons(broke, marks)["withdrawals_gated"]
        assert refusal.numbers["gated_until_s"] == marks.exact.timestamp_s + 600
        assert follower.cash(broke, marks) and not follower.takeovers(broke, marks)
        [bold] = follower.all_takeovers(broke, marks)[:1]
        assert await follower.executed(bold, marks, OTHER) is None
        await follower.send(OTHER, "flag", broke)
        until_s = await follower.contract.read("gatedUntil")
        now_s = (await follower.node.head()).timestamp_s
        marks = await follower.marks(until_s - 1 - now_s)
        assert "withdrawals_gated" in follower.reasons(number, marks)
        assert follower.cash(number, marks) and not follower.takeovers(number, marks)
        assert await follower.executed(follower.all_takeovers(number, marks)[0], marks, OTHER) is None
        marks = await follower.marks(until_s - now_s)
        [option, *_] = follower.takeovers(number, marks)
        assert (await follower.executed(option, marks, OTHER) or 0) > 0


async def test_a_deficit_beyond_the_fund_is_deleveraged_by_others(lab: Lab) -> None:
    """A deficit of exactly the fund is covered, though nothing is left for a reward; a unit more is refused."""
    async with following_exchange(lab, OTHER) as follower:
        await follower.set(ETH, max_funding_velocity=0)
        await follower.supply(OTHER)
        number = await follower.open_one(TRADER, 40_000, (ETH, units(200)))
        await follower.move(WETH=0.85)
        marks = await follower.marks()
        health = follower.health(number, marks)
        deficit = -health.detail.judged.equity
        assert 0 < deficit < marks.exact.fund
        [owed] = health.bad_debt
        scale = 10 ** (18 - owed.token.decimals)
        assert 0 <= owed.raw * scale - deficit < scale
        assert 0 <= (owed.usd_e8 or 0) * 10**10 - deficit < 10**10
        for fund, reason in ((deficit, "no_reward"), (deficit - 1, "insurance_fund_short")):
            short = replace(marks, exact=replace(marks.exact, fund=fund))
            assert reason in follower.reasons(number, short) and not follower.options(number, short)
        [option] = follower.cash(number, marks)
        outcome = await follower.outcome(option)
        assert isinstance(outcome, Outcome)
        assert await follower.executed(option, marks, OTHER) == outcome.seize_raw
        await follower.move(WETH=0.1)
        marks = await follower.marks()
        assert list(follower.reasons(number, marks)) == ["insurance_fund_short"]
        with pytest.raises(ExecutionError, match="FundShort"):
            await follower.send(OTHER, "liquidate", number, ETH)


async def test_a_takeover_that_loses_is_refused_with_its_numbers(lab: Lab) -> None:
    """Where the skew and the fee take more than the discount gives: nothing of it is an option, and it does lose."""
    async with following_exchange(lab, OTHER) as follower:
        await follower.set(keeper_share=0)
        await follower.supply(OTHER)
        number = await follower.open_one(TRADER, 4_000, (ETH, units(20)))
        await follower.open_one(account(3), 60_000, (ETH, -units(30)))
        await follower.move(WETH=0.925)
        marks = await follower.marks()
        refusal = follower.reasons(number, marks)["losing_takeover"]
        assert not follower.takeovers(number, marks) and follower.cash(number, marks)
        assert refusal.numbers["discount_wad"] == "0" and int(refusal.numbers["left_wad"]) > 0
        for option in follower.all_takeovers(number, marks):
            assert isinstance(await follower.outcome(option), Refusal)
            assert (await follower.executed(option, marks, OTHER) or 0) <= 0


async def test_a_gift_makes_no_takeover_worth_more(lab: Lab) -> None:
    """Whoever deposits in the liquidator's name does not have a takeover made that loses a part of it."""
    async with following_exchange(lab, OTHER) as follower:
        await follower.set(keeper_share=0)
        await follower.supply(OTHER)
        number = await follower.open_one(TRADER, 4_000, (ETH, units(20)))
        await follower.open_one(account(3), 60_000, (ETH, -units(30)))
        await follower.open_one(OTHER, 1_000)
        await follower.move(WETH=0.925)
        marks = await follower.marks()
        assert "losing_takeover" in follower.reasons(number, marks)
        assert not follower.takeovers(number, marks)
        gained = [
            await follower.executed(each, marks, OTHER) for each in follower.all_takeovers(number, marks)
        ]
        assert any(0 < (raw or 0) < 1_000 * USDC for raw in gained)


async def test_a_house_without_margin_takes_no_takeover(lab: Lab) -> None:
    """Closing a short that balances longs grows the skew, for which the house must have the margin; the exchange
    agrees. Cash is paid all the same.
    """
    async with following_exchange(lab, OTHER) as follower:
        await follower.supply(OTHER)
        await follower.open_one(account(3), 60_000, (ETH, units(100)))
        number = await follower.open_one(TRADER, 4_000, (ETH, -units(20)))
        await follower.move(WETH=1.075)
        deployer = lab.world.cast.deployer.address
        equity, _, initial, _, required = await follower.contract.read("assess", HOUSE)
        collateral = (await follower.contract.read("accountOf", HOUSE))[4]
        spare = min(equity, collateral) - max(initial, required)
        await follower.govern("withdraw", HOUSE, spare // 10**12, deployer)
        marks = await follower.marks()
        refusal = follower.reasons(number, marks)["house_short_of_margin"]
        assert int(refusal.numbers["equity_wad"]) < int(refusal.numbers["needed_wad"])
        assert follower.cash(number, marks)
        takeovers = follower.all_takeovers(number, marks)
        answers = [await follower.outcome(option) for option in takeovers]
        for option, answer in zip(takeovers, answers, strict=True):
            paid = isinstance(answer, Outcome)
            assert (await follower.executed(option, marks, OTHER) is not None) == paid
        await follower.govern("deposit", HOUSE, 100_000 * USDC)
        marks = await follower.marks()
        assert follower.takeovers(number, marks)


async def test_what_is_left_over_must_go_first(lab: Lab) -> None:
    """While the liquidator's own account holds a position nothing is taken over; what lies there besides comes back
    with the next takeover.
    """
    async with following_exchange(lab, OTHER) as follower:
        number = await _unsafe(follower)
        heir = await follower.open_one(OTHER, 1_000, (BTC, units(0.05)))
        marks = await follower.marks()
        assert follower.reasons(number, marks)["left_over"].numbers["heir"] == heir
        assert follower.cash(number, marks) and not follower.takeovers(number, marks)
        await follower.trade(OTHER, heir, BTC, -units(0.05))
        marks = await follower.marks()
        [option, *_] = follower.takeovers(number, marks)
        outcome = await follower.outcome(option)
        assert isinstance(outcome, Outcome)
        assert outcome.seize_raw - outcome.repay_raw > 990 * USDC
        assert await follower.executed(option, marks, OTHER) == outcome.seize_raw - outcome.repay_raw


async def test_nothing_is_left_over_or_nothing_is_done(lab: Lab) -> None:
    """Where less is inherited than the plan closes, or the account that it would open is another's, nothing of it
    happens; done as planned, the account is empty but for less than a raw unit.
    """
    async with following_exchange(lab, OTHER) as follower:
        number = await _unsafe(follower)
        marks = await follower.marks()
        [option, *_] = follower.takeovers(number, marks)
        choice = option.detail
        more = replace(option, detail=replace(choice, size=choice.size + units(1)))
        assert await follower.executed(more, marks, OTHER) is None
        await follower.open_one(account(3), 10)  # somebody else's, right before ours
        before_raw = await balance_of(lab.node, follower.exchange.token, OTHER)
        for call in follower.adapter.liquidation_calls(option, option.max_repay_raw):
            await lab.node.send(Tx(OTHER, call.target, call.data, gas=3_000_000), follower.contract.abi)
        outcome = await follower.outcome(option)
        assert isinstance(outcome, Outcome)
        gained_raw = await balance_of(lab.node, follower.exchange.token, OTHER) - before_raw
        assert gained_raw == outcome.seize_raw - outcome.repay_raw > 0
        heir = await follower.contract.read("newestOf", OTHER)
        assert heir == await follower.contract.read("accountCount") - 1 and not choice.heir.number
        owner, _, _, _, collateral, markets = await follower.contract.read("accountOf", heir)
        assert owner == OTHER and not markets and 0 <= collateral < 10**12


async def test_no_call_lets_its_caller_choose_where_value_goes(lab: Lab) -> None:
    """Nothing that the Safe allows takes an address, and where it takes an account to act for, another's is refused."""
    async with following_exchange(lab, OTHER) as follower:
        await _unsafe(follower)
        other = await follower.open_one(account(3), 1_000)
        functions = (PAY_IN, INHERIT, TRADE, WITHDRAW, LIQUIDATE)
        assert {function.selector for function in functions} == {
            selector for _, selector in follower.adapter.targets()
        }
        assert not any("address" in function.signature for function in functions)
        for step in (
            ("withdrawAll", other),
            ("trade", other, BTC, 1, 0),
            ("inherit", 1, ETH, units(1), other),
        ):
            with pytest.raises(ExecutionError, match="NotAccountOwner"):
                await follower.send(OTHER, *step)


async def test_calls_name_whose_liquidation_they_are(lab: Lab) -> None:
    """Either payout is recognised by its calldata alone; the other steps are nobody's."""
    async with following_exchange(lab, OTHER) as follower:
        number = await _unsafe(follower)
        adapter = follower.adapter
        for option in follower.options(number, await follower.marks()):
            calls = adapter.liquidation_calls(option, option.max_repay_raw)
            named = [adapter.position_of(call.data) for call in calls]
            assert [key for key in named if key is not None] == adapter.keys_of(account_key(number))
            allowed = set(adapter.targets())
            assert all((call.target, call.data[:4]) in allowed for call in calls)
        assert number_of(account_key(number)) == number


async def test_the_very_edge_is_the_exchanges_own(lab: Lab) -> None:
    """With a minimum reward that makes the equity exactly what is wanted, an account may not be liquidated; with a unit
    more it may.
    """
    async with following_exchange(lab, OTHER) as follower:
        await follower.set(ETH, max_funding_velocity=0)  # so that the same figures hold blocks later
        await follower.set(keeper_share=0)
        number = await follower.open_one(TRADER, 4_000, (ETH, units(20)))
        await follower.move(WETH=0.95)
        judged = follower.health(number, await follower.marks()).detail.judged
        spare = judged.equity - judged.required
        assert spare > 0
        await follower.set(max_reward=100 * judged.equity)
        for more in (0, 1):
            await follower.set(min_reward=3 * WAD + spare + more)
            health = follower.health(number, await follower.marks(ahead_s=0))
            assert health.liquidatable == bool(more)
            equity, *_, required = await follower.contract.read("assess", number)
            assert required - equity == more
            refused = not more
            assert (health.health_factor_wad == WAD) == refused


@pytest.mark.parametrize("short", [False, True])
async def test_the_liquidation_price_is_where_health_is_one(short: bool, lab: Lab) -> None:
    """A cent on one side of the price that is shown the account is safe, a cent on the other it is not."""
    async with following_exchange(lab, OTHER) as follower:
        await follower.set(
            ETH, max_funding_velocity=0, penalty_ratio=0
        )  # rewards that do not move with the mark
        await follower.set(BTC, max_funding_velocity=0)
        size = -units(20) if short else units(20)
        number = await follower.open_one(TRADER, 6_000, (ETH, size), (BTC, units(0.1)))
        marks = await follower.marks()
        position = follower.book.position(follower.key(number))
        price = follower.adapter.liquidation_price(position, follower.health(number, marks), marks)
        assert price is not None
        for off, unsafe in ((-1, not short), (1, short)):
            await set_price(lab.node, follower.feeds[ETH], price // 10**10 + off * 10**6)
            assert follower.health(number, await follower.marks()).liquidatable == unsafe
