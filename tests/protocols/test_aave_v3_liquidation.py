from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import pytest

from keeper.abi import load
from keeper.errors import AdapterError, ExecutionError
from keeper.fixed import MAX_UINT256, WAD
from keeper.lab.aave import (
    FLASH_PREMIUM_BPS,
    ReserveSpec,
    Version,
    configurator_of,
    list_reserves,
    oracle_of,
    pool_of,
)
from keeper.lab.actors import account
from keeper.lab.artifacts import aave_v3_0
from keeper.lab.chainlink import deploy_feed, set_price
from keeper.lab.node import Contract
from keeper.lab.positions import PositionSpec, account_data, open_position
from keeper.lab.tokens import balance_of, deploy_token, erc20, mint
from keeper.lab.world import Lab
from keeper.protocols.aave_v3 import AaveFlash
from keeper.protocols.aave_v3.market import ATOKEN, FEED, ORACLE, POOL
from keeper.seams import Reads
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    BlockNumber,
    BlockTime,
    Call,
    FlashQuote,
    Marks,
    Option,
    Refusal,
    Result,
    Reverted,
)
from tests.protocols.aave_v3_lab import Follower, following

T = TypeVar("T")

VERSIONS: tuple[Version, ...] = ("3.0", "3.6")
BORROWER, OTHER = account(1), account(2)
ETHER = 10**18
# 10 WETH at $2,000 against USDC at health factor 1.05; at $1,800 it is 0.945.
POSITION = PositionSpec(BORROWER, {"WETH": 10 * ETHER}, {"USDC": 1}, 105 * 10**16)


async def _unsafe(follower: Follower, weth: float = 0.9) -> tuple[BlockTime, Marks]:
    """Open the position and let the price fall."""
    await open_position(follower.node, follower.world.cast, follower.market, POSITION)
    await follower.set_prices({"WETH": weth})
    head = await follower.follow()
    return head, await follower.marks(head, ahead_s=1)


def _only(found: Sequence[Option | Refusal]) -> Option:
    (option,) = found
    assert isinstance(option, Option), option
    return option


def _reasons(found: Sequence[Option | Refusal]) -> list[str]:
    return [each.reason for each in found if isinstance(each, Refusal)]


async def _liquidate(
    follower: Follower, option: Option, repay_raw: int, *, after_s: int = 1
) -> tuple[int, int]:
    """Give the liquidator exactly what the call asks for, approve exactly that, and call; (paid, received)."""
    node, cast = follower.node, follower.world.cast
    liquidator = cast.liquidator.address
    (call,) = follower.adapter.liquidation_calls(option, repay_raw)
    assert call.approve_token == option.repay_token.address
    await mint(node, cast, option.repay_token, liquidator, call.approve_raw)
    await erc20(node, option.repay_token).send(liquidator, "approve", call.target, call.approve_raw)
    before = await balance_of(node, option.repay_token, liquidator)
    received = await balance_of(node, option.seize_token, liquidator)
    head = await node.head()
    await node.rpc.request("evm_setNextBlockTimestamp", head.timestamp_s + after_s)
    pool = pool_of(node, follower.market)
    asset, debt, owner, amount, receive = POOL.function("liquidationCall").decode_input(call.data)
    assert receive is False
    await pool.send(liquidator, "liquidationCall", asset, debt, owner, amount, receive)
    return (
        before - await balance_of(node, option.repay_token, liquidator),
        await balance_of(node, option.seize_token, liquidator) - received,
    )


# --- amounts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_whole_position_is_cleared_five_minutes_late(version: Version, lab: Lab) -> None:
    """Below 0.95 all debt may be repaid. The call offers a little more than is owed, so interest of 5 minutes does not
    leave dust, the exact approval suffices, and the account owes nothing afterwards.
    """
    async with following(version, lab) as follower:
        whale = PositionSpec(OTHER, {"DAI": 10**9 * ETHER}, {"USDC": 150_000_000 * 10**6})
        await open_position(follower.node, lab.world.cast, follower.market, whale)
        _, marks = await _unsafe(follower)
        option = _only(follower.options(BORROWER, marks))
        owed = follower.health(BORROWER, marks).detail.debt[0].amount_raw
        assert option.max_repay_raw == owed
        paid, _ = await _liquidate(follower, option, option.max_repay_raw, after_s=300)
        assert owed < paid <= owed + owed // 10_000 + 1
        (after,) = await account_data(follower.node, follower.market, [BORROWER])
        assert after.debt_base == 0
        await follower.follow()
        assert follower.key(BORROWER) not in follower.book


@pytest.mark.parametrize("version", VERSIONS)
async def test_half_is_cleared_above_0_95(version: Version, lab: Lab) -> None:
    """At health factor 0.97 half the debt may be repaid, in both generations, and less if asked."""
    async with following(version, lab) as follower:
        _, marks = await _unsafe(follower, 0.93)
        health = follower.health(BORROWER, marks)
        assert 96 * WAD < (health.health_factor_wad or 0) * 100 < 98 * WAD
        option = _only(follower.options(BORROWER, marks))
        owed = health.detail.debt[0].amount_raw
        assert abs(option.max_repay_raw - owed // 2) <= 1
        assert option.partial_max_repay_raw == option.max_repay_raw
        paid, received = await _liquidate(follower, option, 10**9)
        outcome = follower.adapter.outcome(option, 10**9)
        assert paid == outcome.repay_raw == 10**9
        assert abs(received - outcome.seize_raw) <= outcome.seize_raw // 10**9  # mined two seconds later


async def test_a_close_factor_that_would_leave_dust_is_cut_back(lab: Lab) -> None:
    """3.6: half of $2,200 would leave $950 of a debt of $2,050, which is forbidden; what leaves exactly $1,000 is
    offered instead, and one unit more is refused by the pool.
    """
    async with following("3.6", lab) as follower:
        node, market = follower.node, follower.market
        spec = PositionSpec(BORROWER, {"WETH": 14 * 10**17}, {"USDC": 2_050 * 10**6, "DAI": 150 * ETHER})
        await open_position(node, lab.world.cast, market, spec)
        await follower.set_prices({"WETH": 1_850 / 2_000})
        marks = await follower.marks(await follower.follow(), ahead_s=4)
        health = follower.health(BORROWER, marks)
        assert 95 * 10**16 < (health.health_factor_wad or 0) < WAD
        found = [each for each in follower.options(BORROWER, marks) if isinstance(each, Option)]
        option = next(each for each in found if each.repay_token.symbol == "USDC")
        owed = next(side for side in health.detail.debt if side.reserve_id == market.reserves["USDC"].id)
        assert option.max_repay_raw == option.partial_max_repay_raw == owed.amount_raw - 1_000 * 10**6
        pair = option.detail.pair
        assert pair.leaves_dust(pair.amounts(pair.cap_raw))
        liquidator = lab.world.cast.liquidator.address
        await mint(node, lab.world.cast, option.repay_token, liquidator, 2 * option.max_repay_raw)
        await erc20(node, option.repay_token).send(liquidator, "approve", market.pool, MAX_UINT256)
        marks = await follower.marks(await follower.follow(), ahead_s=1)
        found = [each for each in follower.options(BORROWER, marks) if isinstance(each, Option)]
        option = next(each for each in found if each.repay_token.symbol == "USDC")
        beyond = replace(option, max_repay_raw=option.max_repay_raw + 1)
        refused, *_ = await follower.executed(beyond, beyond.max_repay_raw, marks)
        assert load("AavePool").error(refused.output) == "MustNotLeaveDust()"
        _, paid, _ = await follower.executed(option, option.max_repay_raw, marks)
        assert paid == option.max_repay_raw


@pytest.mark.parametrize("version", VERSIONS)
async def test_bad_debt_is_seized_whole_and_forgotten_where_the_pool_does(version: Version, lab: Lab) -> None:
    """When the collateral is worth less than the debt, all of it is seized for less than the debt. 3.6 writes the rest
    off and the account leaves the book; 3.0 leaves it owing, with nothing to seize.
    """
    async with following(version, lab) as follower:
        _, marks = await _unsafe(follower, 0.5)
        option = _only(follower.options(BORROWER, marks))
        health = follower.health(BORROWER, marks)
        assert health.collateral_base < health.debt_base
        outcome = follower.adapter.outcome(option, option.max_repay_raw)
        # the fee is a tenth of the 5 % bonus, so 99.5 % of the collateral comes out
        assert 9.95 * ETHER < outcome.seize_raw < 9.96 * ETHER
        assert option.max_repay_raw < health.detail.debt[0].amount_raw
        await _liquidate(follower, option, option.max_repay_raw)
        head = await follower.follow()
        if version == "3.6":
            assert follower.key(BORROWER) not in follower.book
            return
        marks = await follower.marks(head)
        assert follower.health(BORROWER, marks).health_factor_wad == 0
        assert follower.key(BORROWER) in follower.book.candidates(marks)
        assert _reasons(follower.options(BORROWER, marks)) == ["no_collateral"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_drained_reserve_limits_what_can_be_seized(version: Version, lab: Lab) -> None:
    """With 1 WETH left in the pool, the whole cannot be seized but a part can; with almost none, nothing."""
    async with following(version, lab) as follower:
        node, cast, market = follower.node, lab.world.cast, follower.market
        await open_position(node, cast, market, POSITION)
        weth = market.reserves["WETH"]
        whale = PositionSpec(OTHER, {"DAI": 10**9 * ETHER}, {})
        await open_position(node, cast, market, whale)
        left = await balance_of(node, weth.token, weth.a_token)
        pool = pool_of(node, market)
        await pool.send(OTHER, "borrow", weth.token.address, left - ETHER, 2, 0, OTHER)
        await follower.set_prices({"WETH": 0.9})
        head = await follower.follow()
        marks = await follower.marks(head, ahead_s=3)
        option = _only(follower.options(BORROWER, marks))
        outcome = follower.adapter.outcome(option, option.max_repay_raw)
        assert 0.99 * ETHER < outcome.seize_raw <= ETHER
        assert option.max_repay_raw == option.partial_max_repay_raw
        _, received = await _liquidate(follower, option, option.max_repay_raw)
        assert received == outcome.seize_raw
        available = await balance_of(node, weth.token, weth.a_token)
        await pool.send(OTHER, "borrow", weth.token.address, available - 2, 2, 0, OTHER)
        head = await follower.follow()
        assert _reasons(follower.options(BORROWER, await follower.marks(head))) == ["insufficient_liquidity"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_liquidation_price_is_where_the_account_turns(version: Version, lab: Lab) -> None:
    """A thousandth above it the account is safe, a thousandth below it is not; without debt there is none."""
    async with following(version, lab) as follower:
        await open_position(follower.node, lab.world.cast, follower.market, POSITION)
        head = await follower.follow()
        marks = await follower.marks(head)
        health = follower.health(BORROWER, marks)
        price = follower.adapter.liquidation_price(
            follower.book.position(follower.key(BORROWER)), health, marks
        )
        assert price is not None
        assert abs(price * 105 // 100 - 2_000 * 10**8) < 10**6
        for factor, unsafe in ((1.001, False), (0.999, True)):
            await follower.set_prices({"WETH": price * factor / (2_000 * 10**8)})
            head = await follower.follow()
            assert follower.health(BORROWER, await follower.marks(head)).liquidatable is unsafe


async def test_collateral_that_counts_in_an_emode_only(lab: Lab) -> None:
    """3.6: an asset without a threshold of its own is collateral for accounts in its e-mode, with the e-mode's
    threshold and bonus; health and liquidation are the pool's.
    """
    async with following("3.6", lab) as follower:
        node, cast = follower.node, lab.world.cast
        admin, configurator = cast.deployer.address, configurator_of(node, follower.market)
        token = await deploy_token(node, cast, "LST", 18)
        feed = await deploy_feed(node, cast, "LST", 2_000 * 10**8)
        follower.market = await list_reserves(
            node,
            cast,
            follower.market,
            lab.world.tokens | {"LST": token},
            lab.world.feeds | {"LST": feed},
            [ReserveSpec("LST", 0, 0, -10_000)],
        )
        await configurator.send(admin, "setEModeCategory", 3, 9_000, 9_200, 10_200, "LST")
        await configurator.send(admin, "setAssetCollateralInEMode", token.address, 3, True)
        weth = follower.market.reserves["WETH"].token.address
        await configurator.send(admin, "setAssetBorrowableInEMode", weth, 3, True)
        await open_position(
            node, cast, follower.market, PositionSpec(BORROWER, {"LST": 10 * ETHER}, e_mode=3)
        )
        pool = pool_of(node, follower.market)
        await pool.send(BORROWER, "setUserUseReserveAsCollateral", token.address, True)
        await pool.send(BORROWER, "borrow", weth, 88 * 10**17, 2, 0, BORROWER)
        await set_price(node, feed, 1_880 * 10**8)
        head = await follower.follow()
        (truth,) = await account_data(node, follower.market, [BORROWER])
        health = follower.health(BORROWER, await follower.marks(head))
        assert health.health_factor_wad == truth.health_factor_wad < WAD
        marks = await follower.marks(head, ahead_s=4)
        option = _only(follower.options(BORROWER, marks))
        outcome = follower.adapter.outcome(option, option.max_repay_raw)
        value_in = outcome.repay_raw * 2_000 * 102 // 100
        assert (
            abs(outcome.seize_raw + outcome.seize_raw // 500 - value_in // 1_880) < outcome.seize_raw // 1_000
        )
        assert (await _liquidate(follower, option, 10**17))[1] == follower.adapter.outcome(
            option, 10**17
        ).seize_raw


async def test_an_emode_price_values_debt_outside_the_emode_too(lab: Lab) -> None:
    """3.0.x: once governance takes the borrowed asset out of the category, its health counts at its own price, but a
    liquidation still values it at the category's.
    """
    async with following("3.0", lab) as follower:
        node, cast, market = follower.node, lab.world.cast, follower.market
        admin, configurator = cast.deployer.address, configurator_of(node, market)
        feed = await deploy_feed(node, cast, "ETHX", 2_100 * 10**8)
        source = account(7)
        await oracle_of(node, market).send(admin, "setAssetSources", [source], [feed.proxy])
        await configurator.send(admin, "setEModeCategory", 2, 9_000, 9_300, 10_100, source, "ETH")
        spec = PositionSpec(BORROWER, {"wstETH": 10 * ETHER}, {"WETH": 1}, 12 * 10**17, e_mode=2)
        await open_position(node, cast, market, spec)
        weth = market.reserves["WETH"].token.address
        await configurator.send(admin, "setAssetEModeCategory", weth, 0)
        await follower.set_prices({"WETH": 1.5})
        head = await follower.follow()
        (truth,) = await account_data(node, market, [BORROWER])
        assert (
            follower.health(BORROWER, await follower.marks(head)).health_factor_wad == truth.health_factor_wad
        )
        marks = await follower.marks(head, ahead_s=4)
        option = _only(follower.options(BORROWER, marks))
        assert (option.repay_price_base, option.seize_price_base) == (2_100 * 10**8, 2_100 * 10**8)
        expected = follower.adapter.outcome(option, ETHER)
        assert await _liquidate(follower, option, ETHER) == (ETHER, expected.seize_raw)


# --- what the pool forbids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_paused_reserve_forbids_its_pairs(version: Version, lab: Lab) -> None:
    """Pausing either side refuses the pair with its reason, without a reload, and the pool reverts too."""
    async with following(version, lab) as follower:
        _, marks = await _unsafe(follower)
        option = _only(follower.options(BORROWER, marks))
        configurator = configurator_of(follower.node, follower.market)
        admin = lab.world.cast.deployer.address
        for symbol in ("WETH", "USDC"):
            asset = follower.market.reserves[symbol].token.address
            await configurator.send(admin, "setReservePause(address,bool)", asset, True)
            head = await follower.follow()
            found = follower.options(BORROWER, await follower.marks(head))
            assert _reasons(found) == ["reserve_paused"]
            assert found[0].numbers == {"token": symbol}  # type: ignore[union-attr]
            with pytest.raises(ExecutionError):
                await _liquidate(follower, option, option.max_repay_raw)
            await configurator.send(admin, "setReservePause(address,bool)", asset, False)
        assert follower.reloads == 0


async def test_a_grace_period_forbids_until_it_is_over(lab: Lab) -> None:
    """3.1+: unpausing with a grace of 100 s refuses liquidations up to and including its last second."""
    async with following("3.6", lab) as follower:
        await _unsafe(follower)
        configurator = configurator_of(follower.node, follower.market)
        admin, asset = lab.world.cast.deployer.address, follower.market.reserves["WETH"].token.address
        await configurator.send(admin, "setReservePause(address,bool)", asset, True)
        await configurator.send(admin, "setReservePause(address,bool,uint40)", asset, False, 100)
        head = await follower.follow()
        assert follower.reloads == 1
        inside = follower.options(BORROWER, await follower.marks(head, ahead_s=100))
        assert _reasons(inside) == ["grace_period"]
        outside = follower.options(BORROWER, await follower.marks(head, ahead_s=101))
        option = _only(outside)
        await _liquidate(follower, option, option.max_repay_raw, after_s=101)


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_sentinel_protects_above_0_95_only(version: Version, lab: Lab) -> None:
    """While the sequencer is down nobody above health factor 0.95 can be liquidated; below it everybody can."""
    async with following(version, lab) as follower:
        node, admin = follower.node, lab.world.cast.deployer.address
        sequencer = aave_v3_0("SequencerOracle")
        oracle = Contract(node, await node.deploy(admin, sequencer.creation_code(admin)), sequencer.abi)
        guard = aave_v3_0("PriceOracleSentinel")
        code = guard.creation_code(follower.market.provider, oracle.address, 60)
        sentinel = await node.deploy(admin, code)
        provider = Contract(node, follower.market.provider, aave_v3_0("PoolAddressesProvider").abi)
        await _unsafe(follower, 0.93)
        await provider.send(admin, "setPriceOracleSentinel", sentinel)
        now = (await node.head()).timestamp_s
        await oracle.send(admin, "setAnswer", True, now)
        marks = await follower.marks(await follower.follow())
        assert follower.reloads == 1
        assert _reasons(follower.options(BORROWER, marks)) == ["sentinel"]
        await follower.set_prices({"WETH": 0.8})
        marks = await follower.marks(await follower.follow())
        assert isinstance(_only(follower.options(BORROWER, marks)), Option)
        await follower.set_prices({"WETH": 0.93})
        await oracle.send(admin, "setAnswer", False, now)
        await node.advance(100)
        marks = await follower.marks(await follower.follow())
        option = _only(follower.options(BORROWER, marks))
        await _liquidate(follower, option, option.max_repay_raw)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_healthy_account_has_no_options(version: Version, lab: Lab) -> None:
    """At health factor 1.05 the answer is "healthy"."""
    async with following(version, lab) as follower:
        await open_position(follower.node, lab.world.cast, follower.market, POSITION)
        marks = await follower.marks(await follower.follow())
        assert _reasons(follower.options(BORROWER, marks)) == ["healthy"]


async def test_stable_rate_debt_is_always_looked_at_and_refused(lab: Lab) -> None:
    """3.0.x: an account with any stable-rate debt has no bound and no exact health here, and says so."""
    async with following("3.0", lab) as follower:
        node, market = follower.node, follower.market
        usdc = market.reserves["USDC"].token.address
        await configurator_of(node, market).send(
            lab.world.cast.deployer.address, "setReserveStableRateBorrowing", usdc, True
        )
        await open_position(node, lab.world.cast, market, POSITION)
        head = await follower.follow()
        assert follower.book.always_check == 0
        await pool_of(node, market).send(BORROWER, "swapBorrowRateMode", usdc, 2)
        head = await follower.follow()
        marks = await follower.marks(head)
        assert follower.book.always_check == 1
        assert follower.key(BORROWER) in follower.book.candidates(marks)
        refusal = follower.adapter.assess(follower.book.position(follower.key(BORROWER)), marks)
        assert isinstance(refusal, Refusal)
        assert refusal.reason == "stable_rate_debt"


# --- prices ----------------------------------------------------------------------------------------------------------


async def test_a_stale_price_refuses_those_who_depend_on_it(lab: Lab) -> None:
    """With prices older than allowed, an account is refused by the token concerned; one that uses only fresh prices is
    judged; when every price is old there are no marks at all.
    """
    async with following("3.6", lab, max_price_age_s=3_600) as follower:
        node, cast, market = follower.node, lab.world.cast, follower.market
        await open_position(node, cast, market, POSITION)
        await open_position(
            node, cast, market, PositionSpec(OTHER, {"DAI": 100 * ETHER}, {"USDC": 1}, 2 * WAD)
        )
        await node.advance(3_600)
        await follower.set_prices({"DAI": 1.0, "USDC": 1.0})
        head = await follower.follow()
        marks = await follower.marks(head)
        refusal = follower.adapter.assess(follower.book.position(follower.key(BORROWER)), marks)
        assert isinstance(refusal, Refusal)
        assert (refusal.reason, refusal.numbers["token"]) == ("stale_price", "WETH")
        assert refusal.numbers["age_s"] > 3_600
        assert not follower.health(OTHER, marks).liquidatable
        await node.advance(3_700)
        head = await follower.follow()
        nothing = await follower.chain.read(follower.adapter.marks(head), head.hash)
        assert isinstance(nothing, Refusal)
        assert (nothing.stage, nothing.reason) == ("marks", "stale_price")


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_missing_price_refuses_those_who_depend_on_it(version: Version, lab: Lab) -> None:
    """One asset without a source makes getAssetsPrices revert as a whole: the others are still priced, and who owes or
    holds the unpriced asset is a candidate, refused by name.
    """
    async with following(version, lab) as follower:
        node, cast, market = follower.node, lab.world.cast, follower.market
        owes = PositionSpec(BORROWER, {"WETH": 10 * ETHER}, {"WBTC": 1}, 2 * WAD)
        fine = PositionSpec(OTHER, {"DAI": 100 * ETHER}, {"USDC": 1}, 2 * WAD)
        for spec in (owes, fine):
            await open_position(node, cast, market, spec)
        await follower.follow()
        await oracle_of(node, market).send(
            cast.deployer.address,
            "setAssetSources",
            [market.reserves["WBTC"].token.address],
            [ZERO_ADDRESS],
        )
        head = await follower.follow()
        marks = await follower.marks(head)
        assert follower.book.candidates(marks) == [follower.key(BORROWER)]
        refusal = follower.adapter.assess(follower.book.position(follower.key(BORROWER)), marks)
        assert isinstance(refusal, Refusal)
        assert (refusal.reason, refusal.numbers) == ("missing_price", {"token": "WBTC"})
        assert follower.health(OTHER, marks).health_factor_wad is not None
        assert any("WBTC" in warning for warning in follower.adapter.warnings())


# --- odd answers -----------------------------------------------------------------------------------------------------


def _altered(read: Reads[T], alter: Callable[[Call, Result], Result]) -> Reads[T]:
    """A read that gets other answers than the chain's."""
    answers: Sequence[Result] | None = None
    while True:
        try:
            calls = read.send(answers)  # type: ignore[arg-type]  # the first send of a generator is None
        except StopIteration as end:
            value: T = end.value
            return value
        results = yield calls
        answers = [alter(call, result) for call, result in zip(calls, results, strict=True)]


def _word(value: int) -> bytes:
    return value.to_bytes(32)


async def test_an_unknown_revision_runs_under_the_newest_rules_with_a_warning(lab: Lab) -> None:
    """Revision 12 is read and judged by the newest known rules; the warning names it."""
    async with following("3.6", lab) as follower:
        head = await follower.follow()

        def newer(call: Call, result: Result) -> Result:
            return _word(12) if call.data == POOL.function("POOL_REVISION").selector else result

        await follower.chain.read(_altered(follower.adapter.load(), newer), head.hash)
        assert follower.adapter.loaded.rules.version == "3.7"
        assert any("revision 12" in warning for warning in follower.adapter.warnings())


async def test_symbols_of_every_kind(lab: Lab) -> None:
    """bytes32 symbols as MKR's are read; a token without one goes by its address; feeds that do not tell the time are
    named in a warning.
    """
    async with following("3.6", lab) as follower:
        head = await follower.follow()
        reserves = follower.market.reserves
        symbol, latest = ATOKEN.function("symbol").selector, FEED.function("latestRoundData").selector

        def odd(call: Call, result: Result) -> Result:
            if call.data == symbol and call.to == reserves["WETH"].token.address:
                return b"MKR".ljust(32, b"\0")
            if call.data == symbol and call.to == reserves["DAI"].token.address:
                return Reverted(b"")
            if call.data == symbol and call.to == reserves["USDT"].token.address:
                return b""
            if call.data == latest and call.to == lab.world.feeds["WBTC"].proxy:
                return Reverted(b"")
            return result

        await follower.chain.read(_altered(follower.adapter.load(), odd), head.hash)
        symbols = [reserve.token.symbol for reserve in follower.adapter.loaded.listed()]
        hexes = ["0x" + reserves[name].token.address.hex() for name in ("DAI", "USDT")]
        assert symbols == ["MKR", "USDC", hexes[0], "WBTC", hexes[1], "wstETH", "ISO"]
        assert any("WBTC" in warning for warning in follower.adapter.warnings())
        assert lab.world.tokens["WBTC"].address not in follower.adapter.feeds()


@pytest.mark.parametrize("answer", [b"", b"\1" * 31, b"\1" * 64, Reverted(b"\1")])
async def test_nonsense_is_an_error_and_never_a_number(answer: Result, lab: Lab) -> None:
    """A short, long or reverted answer to a bitmap, a reserve or the list of prices raises."""
    async with following("3.6", lab) as follower:
        head, _ = await _unsafe(follower)
        adapter = follower.adapter

        def alter(selector: bytes) -> Callable[[Call, Result], Result]:
            return lambda call, result: answer if call.data[:4] == selector else result

        user = POOL.function("getUserConfiguration").selector
        with pytest.raises(AdapterError):
            await follower.chain.read(
                _altered(adapter.refresh([follower.key(BORROWER)]), alter(user)), head.hash
            )
        data = POOL.function("getReserveData").selector
        with pytest.raises(AdapterError):
            await follower.chain.read(_altered(adapter.marks(head), alter(data)), head.hash)
        if not isinstance(answer, Reverted):
            prices = ORACLE.function("getAssetsPrices").selector
            with pytest.raises(AdapterError):
                await follower.chain.read(_altered(adapter.marks(head), alter(prices)), head.hash)


async def test_marks_before_the_last_update_are_refused_loudly(lab: Lab) -> None:
    """Interest cannot be projected backwards."""
    async with following("3.6", lab) as follower:
        head, _ = await _unsafe(follower)
        past = BlockTime(BlockNumber(head.number), head.hash, head.timestamp_s - 3_600)
        with pytest.raises(AdapterError, match="was updated at"):
            await follower.chain.read(follower.adapter.marks(past), head.hash)


# --- flash loans -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_flash_loans_cost_the_premium_and_are_bounded_by_liquidity(version: Version, lab: Lab) -> None:
    """Premium and liquidity are the pool's; a paused, disabled or unlisted token is refused by reason."""
    async with following(version, lab) as follower:
        await follower.follow()
        node, market = follower.node, follower.market
        flash = AaveFlash(follower.adapter)
        usdc = market.reserves["USDC"]
        assert flash.source() == market.pool

        async def asked(token: Address) -> FlashQuote | Refusal:
            return await follower.chain.read(flash.flash(token), (await node.head()).hash)

        available = await balance_of(node, usdc.token, usdc.a_token)
        quote = FlashQuote(market.pool, usdc.token.address, FLASH_PREMIUM_BPS[version], available)
        assert await asked(usdc.token.address) == quote
        configurator, admin = configurator_of(node, market), lab.world.cast.deployer.address
        await configurator.send(admin, "setReserveFlashLoaning", usdc.token.address, False)
        await configurator.send(
            admin, "setReservePause(address,bool)", market.reserves["DAI"].token.address, True
        )
        refused = [
            await asked(token)
            for token in (usdc.token.address, market.reserves["DAI"].token.address, account(5))
        ]
        assert _reasons([each for each in refused if isinstance(each, Refusal)]) == [
            "flash_loans_disabled",
            "reserve_paused",
            "not_listed",
        ]
        assert MAX_UINT256 > available > 0
