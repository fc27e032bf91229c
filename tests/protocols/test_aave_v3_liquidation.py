from __future__ import annotations

from dataclasses import replace

import pytest

from keeper.abi import load
from keeper.errors import ExecutionError
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
from keeper.lab.chainlink import deploy_feed, set_price
from keeper.lab.positions import PositionSpec, account_data, open_position
from keeper.lab.tokens import balance_of, deploy_token, erc20, mint
from keeper.lab.world import Lab
from keeper.protocols.aave_v3 import AaveFlash
from keeper.types import (
    Address,
    BadDebt,
    BlockTime,
    FlashQuote,
    Option,
    Refusal,
    Token,
)
from tests.protocols.aave_v3_lab import (
    BORROWER,
    ETHER,
    OTHER,
    POSITION,
    following,
    liquidate_exactly,
    make_unsafe,
    only_option,
    reasons_of,
)

VERSIONS: tuple[Version, ...] = ("3.0", "3.6")


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_whole_position_is_cleared_five_minutes_late(version: Version, lab: Lab) -> None:
    """Below 0.95 all debt may be repaid. The call offers a little more than is owed, so interest of 5 minutes does not
    leave dust, the exact approval suffices, and the account owes nothing afterwards.
    """
    async with following(version, lab) as follower:
        whale = PositionSpec(OTHER, {"DAI": 10**9 * ETHER}, {"USDC": 150_000_000 * 10**6})
        await open_position(follower.node, lab.world.cast, follower.market, whale)
        _, marks = await make_unsafe(follower)
        option = only_option(follower.options(BORROWER, marks))
        owed = follower.health(BORROWER, marks).detail.debt[0].amount_raw
        assert option.max_repay_raw == owed
        paid, _ = await liquidate_exactly(follower, option, option.max_repay_raw, after_s=300)
        assert owed < paid <= owed + owed // 10_000 + 1
        (after,) = await account_data(follower.node, follower.market, [BORROWER])
        assert after.debt_base == 0
        await follower.follow()
        assert follower.key(BORROWER) not in follower.book


@pytest.mark.parametrize("version", VERSIONS)
async def test_half_is_cleared_above_0_95(version: Version, lab: Lab) -> None:
    """At health factor 0.97 half the debt may be repaid, in both generations, and less if asked."""
    async with following(version, lab) as follower:
        _, marks = await make_unsafe(follower, 0.93)
        health = follower.health(BORROWER, marks)
        assert 96 * WAD < (health.health_factor_wad or 0) * 100 < 98 * WAD
        option = only_option(follower.options(BORROWER, marks))
        owed = health.detail.debt[0].amount_raw
        assert abs(option.max_repay_raw - owed // 2) <= 1
        assert option.partial_max_repay_raw == option.max_repay_raw
        paid, received = await liquidate_exactly(follower, option, 10**9)
        outcome = await follower.outcome(option, 10**9)
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
    off, as foretold to the unit, and the account leaves the book; 3.0 leaves it owing, with nothing to seize.
    """
    async with following(version, lab) as follower:
        head, _ = await make_unsafe(follower, 0.5)
        marks = await follower.marks(head, ahead_s=3)
        option = only_option(follower.options(BORROWER, marks))
        health = follower.health(BORROWER, marks)
        [short] = health.bad_debt
        assert 0 <= (short.usd_e8 or 0) - (health.debt_base - health.collateral_base) <= 1
        assert short.token.symbol == "USDC" and 0 <= short.raw - (short.usd_e8 or 0) // 100 <= 1
        outcome = await follower.outcome(option, option.max_repay_raw)
        # the fee is a tenth of the 5 % bonus, so 99.5 % of the collateral comes out
        assert 9.95 * ETHER < outcome.seize_raw < 9.96 * ETHER
        assert option.max_repay_raw < health.detail.debt[0].amount_raw
        await liquidate_exactly(follower, option, option.max_repay_raw)
        head = await follower.follow()
        adapter = follower.adapter
        logs = await follower.chain.logs([adapter.sources()], 0, head.number)
        told = [lost for log in logs if (lost := adapter.written_off(log, marks)) is not None]
        if version == "3.6":
            assert follower.key(BORROWER) not in follower.book
            worth = outcome.bad_debt_raw * 100
            assert told == [(follower.key(BORROWER), BadDebt(short.token, outcome.bad_debt_raw, worth))]
            return
        assert not told and not outcome.bad_debt_raw
        marks = await follower.marks(head)
        assert follower.health(BORROWER, marks).health_factor_wad == 0
        assert follower.key(BORROWER) in follower.book.candidates(marks)
        assert reasons_of(follower.options(BORROWER, marks)) == ["no_collateral"]


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
        option = only_option(follower.options(BORROWER, marks))
        outcome = await follower.outcome(option, option.max_repay_raw)
        assert 0.99 * ETHER < outcome.seize_raw <= ETHER
        assert option.max_repay_raw == option.partial_max_repay_raw
        _, received = await liquidate_exactly(follower, option, option.max_repay_raw)
        assert received == outcome.seize_raw
        available = await balance_of(node, weth.token, weth.a_token)
        await pool.send(OTHER, "borrow", weth.token.address, available - 2, 2, 0, OTHER)
        head = await follower.follow()
        assert reasons_of(follower.options(BORROWER, await follower.marks(head))) == [
            "insufficient_liquidity"
        ]


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


async def test_collateral_that_counts_in_an_emodeonly_option(lab: Lab) -> None:
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
        option = only_option(follower.options(BORROWER, marks))
        outcome = await follower.outcome(option, option.max_repay_raw)
        value_in = outcome.repay_raw * 2_000 * 102 // 100
        assert (
            abs(outcome.seize_raw + outcome.seize_raw // 500 - value_in // 1_880) < outcome.seize_raw // 1_000
        )
        foretold = await follower.outcome(option, 10**17)
        assert (await liquidate_exactly(follower, option, 10**17))[1] == foretold.seize_raw


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
        option = only_option(follower.options(BORROWER, marks))
        assert (option.repay_price_base, option.seize_price_base) == (2_100 * 10**8, 2_100 * 10**8)
        expected = await follower.outcome(option, ETHER)
        assert await liquidate_exactly(follower, option, ETHER) == (ETHER, expected.seize_raw)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_siloed_debt_is_liquidated_like_any_other(version: Version, lab: Lab) -> None:
    """Who borrowed an asset that may be an account's only debt is judged and liquidated as the pool does it."""
    async with following(version, lab) as follower:
        node, market = follower.node, follower.market
        dai = market.reserves["DAI"].token.address
        admin = lab.world.cast.deployer.address
        await configurator_of(node, market).send(admin, "setSiloedBorrowing", dai, True)
        await open_position(node, lab.world.cast, market, replace(POSITION, borrow={"DAI": 1}))
        usdc = market.reserves["USDC"].token.address
        with pytest.raises(ExecutionError):
            await pool_of(node, market).send(BORROWER, "borrow", usdc, 10**6, 2, 0, BORROWER)
        await follower.set_prices({"WETH": 0.93})
        head = await follower.follow()
        (truth,) = await account_data(node, market, [BORROWER])
        health = follower.health(BORROWER, await follower.marks(head))
        assert health.health_factor_wad == truth.health_factor_wad < WAD
        option = only_option(follower.options(BORROWER, await follower.marks(head, ahead_s=3)))
        foretold = await follower.outcome(option, ETHER)
        assert await liquidate_exactly(follower, option, ETHER) == (ETHER, foretold.seize_raw)


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_protocols_fee_is_kept_from_the_bonus(version: Version, lab: Lab) -> None:
    """Whatever share of the bonus governance keeps, none of it or half, what arrives is what was foretold, and what is
    kept goes to the pool's treasury.
    """
    async with following(version, lab) as follower:
        node, market, cast = follower.node, follower.market, lab.world.cast
        weth = market.reserves["WETH"]
        kept_as = Token(weth.a_token, "aWETH", 18)
        _, marks = await make_unsafe(follower, 0.93)
        received = []
        for share_bps in (0, 5_000):
            configurator = configurator_of(node, market)
            await configurator.send(
                cast.deployer.address, "setLiquidationProtocolFee", weth.token.address, share_bps
            )
            marks = await follower.marks(await follower.follow(), ahead_s=3)
            option = only_option(follower.options(BORROWER, marks))
            foretold = await follower.outcome(option, 10**9)
            before = await balance_of(node, kept_as, cast.treasury.address)
            _, arrived = await liquidate_exactly(follower, option, 10**9)
            kept = await balance_of(node, kept_as, cast.treasury.address) - before
            assert arrived == foretold.seize_raw
            received.append((arrived, kept))
        (whole, nothing), (less, kept) = received
        assert nothing <= 1 and abs(whole - less - kept) <= whole // 10**6
        assert abs(kept * 42 - whole) <= whole // 10**4  # half of 5 % of what is paid, which is 1 of 42


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
            head = await node.head()
            at = BlockTime(head.number, head.hash, head.timestamp_s)
            return await follower.chain.read(flash.flash(token, at), head.hash)

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
        assert reasons_of([each for each in refused if isinstance(each, Refusal)]) == [
            "flash_loans_disabled",
            "reserve_paused",
            "not_listed",
        ]
        assert MAX_UINT256 > available > 0
