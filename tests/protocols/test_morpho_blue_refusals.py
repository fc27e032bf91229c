"""Morpho Blue: what is not liquidated, and the reason that is told for it."""

from __future__ import annotations

import pytest

from keeper.lab.morpho import BorrowSpec, deploy_morpho, price_of
from keeper.lab.world import Lab
from keeper.types import Refusal
from tests.protocols.morpho_blue_lab import (
    BORROWER,
    ETHER,
    OTHER,
    POSITION,
    WBTC_WETH,
    WETH_USDC,
    Follower,
    following,
)

_REVERTS = bytes.fromhex("60006000fd")
_BURNS = bytes.fromhex("5b600056")


async def _refused(follower: Follower, market: int = WETH_USDC) -> str:
    """Why the borrower is left alone; the book looks at it all the same."""
    marks = await follower.marks(await follower.follow())
    assert follower.key(BORROWER, market) in follower.watch.book.candidates(marks)
    told = follower.judged(BORROWER, market, marks)
    assert isinstance(told, Refusal), told
    assert told.numbers["market"] == follower.morpho.markets[market].id
    return told.reason


@pytest.mark.parametrize("code", [_REVERTS, _BURNS])
async def test_an_oracle_that_fails_stops_its_market_alone(lab: Lab, code: bytes) -> None:
    """Whether it reverts or burns all gas there is: its accounts are refused, and another market's are judged."""
    deployed = await deploy_morpho(lab.node, lab.world)
    async with following(lab, deployed) as follower:
        await follower.open(POSITION, BorrowSpec(OTHER, WBTC_WETH, 10**8, 9_500))
        await lab.node.set_code({deployed.markets[WETH_USDC].oracle: code})
        assert await _refused(follower) == "oracle_reverts"
        marks = await follower.marks(await follower.follow())
        assert not follower.health(OTHER, WBTC_WETH, marks).liquidatable


@pytest.mark.parametrize("listed", [False, True])
async def test_a_strangers_oracle_that_goes_on_failing_is_asked_less_and_less(lab: Lab, listed: bool) -> None:
    """It may burn all gas there is at every look; once it answers it is asked at every head. A listed one always is."""
    deployed = await deploy_morpho(lab.node, lab.world)
    ids = [market.id for market in deployed.markets] if listed else []
    async with following(lab, deployed, ids) as follower:
        await follower.open(POSITION, BorrowSpec(OTHER, WBTC_WETH, 10**8, 9_500))
        head = await follower.follow()
        oracle = deployed.markets[WETH_USDC].oracle
        code = await lab.node.code(oracle)
        failing, honest = (follower.position(*of).group for of in ((BORROWER, WETH_USDC), (OTHER, WBTC_WETH)))
        await lab.node.set_code({oracle: _BURNS})
        asked = []
        for place in range(13):
            if place == 9:
                await lab.node.set_code({oracle: code})
            await lab.node.mine()
            head = await follower.follow()
            for _ in range(2):
                states = (await follower.marks(head)).exact.states
                assert honest in states
                asked.append(place * (failing in states))
        often = range(1, 13) if listed else (2, 5, 10, 11, 12)
        assert [place for place in asked if place] == [place for place in often for _ in range(2)]
        told = follower.judged(BORROWER, WETH_USDC, await follower.marks(head))
        assert not isinstance(told, Refusal)


async def test_a_price_of_nothing_is_no_price(lab: Lab) -> None:
    """At 0 Morpho would hand over all collateral for nothing and write the debt off: that is refused."""
    deployed = await deploy_morpho(lab.node, lab.world)
    async with following(lab, deployed) as follower:
        await follower.open(BorrowSpec(BORROWER, WBTC_WETH, 10**8, 9_500))
        await follower.set_mock_price(deployed.markets[WBTC_WETH], 0)
        assert await _refused(follower, WBTC_WETH) == "missing_price"
        await follower.set_mock_price(deployed.markets[WBTC_WETH], 2**256 - 1)
        assert await _refused(follower, WBTC_WETH) == "oracle_reverts"


async def test_a_rate_model_that_fails_stops_its_market(lab: Lab) -> None:
    """Morpho could not accrue interest either."""
    deployed = await deploy_morpho(lab.node, lab.world)
    async with following(lab, deployed) as follower:
        await follower.open(POSITION)
        await lab.node.set_code({deployed.irms["adaptive"]: _REVERTS})
        await lab.node.mine()
        assert await _refused(follower) == "no_rate"


async def test_a_loan_without_a_price_in_dollars_is_refused(lab: Lab) -> None:
    """Its aggregator may be old, or gone."""
    deployed = await deploy_morpho(lab.node, lab.world)
    async with following(lab, deployed, max_price_age_s=3_600) as follower:
        await follower.open(POSITION)
        await lab.node.advance(4_000)
        assert await _refused(follower) == "stale_price"
        await lab.node.set_code({lab.world.feeds["USDC"].aggregator: _REVERTS})
        assert await _refused(follower) in ("oracle_reverts", "missing_usd_price")


async def test_a_healthy_account_has_no_option(lab: Lab) -> None:
    """The refusal carries the number it rests on."""
    deployed = await deploy_morpho(lab.node, lab.world)
    async with following(lab, deployed) as follower:
        await follower.open(POSITION)
        marks = await follower.marks(await follower.follow())
        [told] = follower.options(BORROWER, WETH_USDC, marks)
        assert isinstance(told, Refusal) and told.reason == "healthy"
        assert int(told.numbers["health_factor_wad"]) > 10**18


async def test_what_is_unhealthy_by_rounding_alone_is_dust(lab: Lab) -> None:
    """A debt of one raw unit, unhealthy because debts are rounded up, buys not a unit of collateral: it is left."""
    deployed = await deploy_morpho(lab.node, lab.world)
    async with following(lab, deployed) as follower:
        market = deployed.markets[WBTC_WETH]
        await follower.open(BorrowSpec(BORROWER, WBTC_WETH, 2, 0))
        await follower.blue.send(BORROWER, "borrow", market.params, 1, 0, BORROWER, BORROWER)
        await follower.set_mock_price(market, 12 * 10**35)
        marks = await follower.marks(await follower.follow())
        assert follower.health(BORROWER, WBTC_WETH, marks).liquidatable
        [told] = follower.options(BORROWER, WBTC_WETH, marks)
        assert isinstance(told, Refusal) and told.reason == "dust", told


async def test_the_liquidation_price_is_where_it_becomes_unhealthy(lab: Lab) -> None:
    """In dollars of the collateral by the market's oracle: a little above it is healthy, a little below it is not."""
    deployed = await deploy_morpho(lab.node, lab.world)
    async with following(lab, deployed) as follower:
        await follower.open(BorrowSpec(BORROWER, WBTC_WETH, 10**8, 9_000), POSITION)
        market = deployed.markets[WBTC_WETH]
        marks = await follower.marks(await follower.follow())
        health = follower.health(BORROWER, WBTC_WETH, marks)
        position = follower.position(BORROWER, WBTC_WETH)
        price = follower.adapter.liquidation_price(position, health, marks)
        assert price is not None
        now = marks.exact.states[position.group].collateral_price
        assert now == pytest.approx(40_000 * ETHER, rel=1e-9)
        assert price == pytest.approx(now * 0.9, rel=1e-6)
        oracle = await price_of(lab.node, market)
        for factor, liquidatable in ((10_001, False), (9_999, True)):
            await follower.set_mock_price(market, oracle * price // now * factor // 10_000)
            marks = await follower.marks(await follower.follow())
            assert follower.health(BORROWER, WBTC_WETH, marks).liquidatable == liquidatable
