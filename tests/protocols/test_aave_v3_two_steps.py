from __future__ import annotations

from fractions import Fraction

import pytest

from keeper.fixed import BPS, MAX_UINT256, WAD
from keeper.lab.aave import Version, configurator_of
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.tokens import erc20, mint
from keeper.lab.world import Lab
from keeper.types import Option, Outcome
from tests.protocols.aave_v3_lab import BORROWER, ETHER, Follower, following

_CLOSE_FACTOR = 0.5
_FIRST_PRICE_USD = 2_000
# Threshold and bonus, dollars of collateral and of debt, and how much more two steps gain than one.
CASES = [
    pytest.param(8_000, 500, 100_000, 81_000, 0.07716049, id="0.80"),
    pytest.param(8_300, 500, 100_000, 84_000, 0.09264406, id="0.83"),
    pytest.param(8_000, 1_000, 100_000, 80_200, 0.02078138, id="0.80-dear"),
]


def gained_base(option: Option, outcome: Outcome) -> float:
    """What a liquidation gains at the protocol's prices."""
    seized = Fraction(outcome.seize_raw * option.seize_price_base, 10**option.seize_token.decimals)
    repaid = Fraction(outcome.repay_raw * option.repay_price_base, 10**option.repay_token.decimals)
    return float(seized - repaid)


async def opened(follower: Follower, threshold_bps: int, bonus_bps: int, collateral: int, debt: int) -> None:
    """An account with so many dollars of ether, after its fall, against so many of debt; no fee for the protocol."""
    lab, ether = follower.lab, follower.world.tokens["WETH"].address
    configurator, governor = configurator_of(follower.node, follower.market), lab.world.cast.deployer.address
    terms = (threshold_bps - 500, threshold_bps, BPS + bonus_bps)
    await configurator.send(governor, "configureReserveAsCollateral", ether, *terms)
    await configurator.send(governor, "setLiquidationProtocolFee", ether, 0)
    spec = PositionSpec(BORROWER, {"WETH": 100 * ETHER}, {"USDC": debt * 10**6})
    await open_position(follower.node, lab.world.cast, follower.market, spec)
    await follower.set_prices({"WETH": collateral / 100 / _FIRST_PRICE_USD})


@pytest.mark.parametrize("version", ["3.0", "3.6"])
@pytest.mark.parametrize(("threshold_bps", "bonus_bps", "collateral", "debt", "gain"), CASES)
async def test_two_steps_gain_what_the_formula_says(
    lab: Lab,
    version: Version,
    threshold_bps: int,
    bonus_bps: int,
    collateral: int,
    debt: int,
    gain: float,
) -> None:
    """The published figures, to a part in ten thousand; and the contracts move what was foretold, to the unit, at the
    most, at the least and between.
    """
    threshold, bonus = threshold_bps / BPS, bonus_bps / BPS
    formula = (1 - threshold * collateral / debt) / (1 - threshold * (1 + bonus))
    assert abs((1 - _CLOSE_FACTOR) / _CLOSE_FACTOR * formula - gain) < 1e-7
    async with following(version, lab) as follower:
        await opened(follower, threshold_bps, bonus_bps, collateral, debt)
        usdc, rich = lab.world.tokens["USDC"], lab.world.cast.liquidator.address
        await mint(follower.node, lab.world.cast, usdc, rich, debt * 10**6)
        await erc20(follower.node, usdc).send(rich, "approve", follower.market.pool, MAX_UINT256)
        marks = await follower.marks(await follower.follow(), ahead_s=1)
        assert (follower.health(BORROWER, marks).health_factor_wad or 0) < WAD
        single, double = (each for each in follower.options(BORROWER, marks) if isinstance(each, Option))
        assert len(follower.adapter.liquidation_calls(double, double.max_repay_raw)) == 2
        at_most = [await follower.outcome(each, each.max_repay_raw) for each in (single, double)]
        one, two = (gained_base(each, found) for each, found in zip((single, double), at_most, strict=True))
        assert abs(two / one - 1 - gain) < gain / 10_000
        assert at_most[1].repay_raw == double.max_repay_raw
        between = (double.min_repay_raw + double.max_repay_raw) // 2
        for raw in (double.min_repay_raw, between, double.max_repay_raw):
            foretold = await follower.outcome(double, raw)
            result, paid, received = await follower.executed(double, raw, marks)
            assert (result.status, paid, received) == (1, foretold.repay_raw, foretold.seize_raw)


@pytest.mark.parametrize("version", ["3.0", "3.6"])
async def test_where_one_step_takes_all_there_is_no_second(lab: Lab, version: Version) -> None:
    """Below a health factor of 0.95 the close factor is the whole debt."""
    async with following(version, lab) as follower:
        await opened(follower, 8_000, 500, 100_000, 85_000)
        marks = await follower.marks(await follower.follow(), ahead_s=1)
        [option] = follower.options(BORROWER, marks)
        assert isinstance(option, Option) and not option.detail.first.repay_raw
