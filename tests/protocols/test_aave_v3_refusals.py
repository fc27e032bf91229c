from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from keeper.errors import AdapterError, ExecutionError
from keeper.fixed import WAD
from keeper.lab.aave import (
    Version,
    configurator_of,
    oracle_of,
    pool_of,
)
from keeper.lab.artifacts import aave_v3_0
from keeper.lab.node import Contract
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.world import Lab
from keeper.protocols.aave_v3.market import ATOKEN, FEED, ORACLE, POOL
from keeper.seams import Reads
from keeper.types import (
    ZERO_ADDRESS,
    BlockNumber,
    BlockTime,
    Call,
    Option,
    Refusal,
    Result,
    Reverted,
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

T = TypeVar("T")

VERSIONS: tuple[Version, ...] = ("3.0", "3.6")


# --- what the pool forbids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_paused_reserve_forbids_its_pairs(version: Version, lab: Lab) -> None:
    """Pausing either side refuses the pair with its reason, without a reload, and the pool reverts too."""
    async with following(version, lab) as follower:
        _, marks = await make_unsafe(follower)
        option = only_option(follower.options(BORROWER, marks))
        configurator = configurator_of(follower.node, follower.market)
        admin = lab.world.cast.deployer.address
        for symbol in ("WETH", "USDC"):
            asset = follower.market.reserves[symbol].token.address
            await configurator.send(admin, "setReservePause(address,bool)", asset, True)
            head = await follower.follow()
            found = follower.options(BORROWER, await follower.marks(head))
            assert reasons_of(found) == ["reserve_paused"]
            assert found[0].numbers == {"token": symbol}  # type: ignore[union-attr]
            with pytest.raises(ExecutionError):
                await liquidate_exactly(follower, option, option.max_repay_raw)
            await configurator.send(admin, "setReservePause(address,bool)", asset, False)
        assert follower.reloads == 0


async def test_a_grace_period_forbids_until_it_is_over(lab: Lab) -> None:
    """3.1+: unpausing with a grace of 100 s refuses liquidations up to and including its last second."""
    async with following("3.6", lab) as follower:
        await make_unsafe(follower)
        configurator = configurator_of(follower.node, follower.market)
        admin, asset = lab.world.cast.deployer.address, follower.market.reserves["WETH"].token.address
        await configurator.send(admin, "setReservePause(address,bool)", asset, True)
        await configurator.send(admin, "setReservePause(address,bool,uint40)", asset, False, 100)
        head = await follower.follow()
        assert follower.reloads == 1
        inside = follower.options(BORROWER, await follower.marks(head, ahead_s=100))
        assert reasons_of(inside) == ["grace_period"]
        outside = follower.options(BORROWER, await follower.marks(head, ahead_s=101))
        option = only_option(outside)
        await liquidate_exactly(follower, option, option.max_repay_raw, after_s=101)


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_sentinel_protects_above_0_95only_option(version: Version, lab: Lab) -> None:
    """While the sequencer is down nobody above health factor 0.95 can be liquidated; below it everybody can."""
    async with following(version, lab) as follower:
        node, admin = follower.node, lab.world.cast.deployer.address
        sequencer = aave_v3_0("SequencerOracle")
        oracle = Contract(node, await node.deploy(admin, sequencer.creation_code(admin)), sequencer.abi)
        guard = aave_v3_0("PriceOracleSentinel")
        code = guard.creation_code(follower.market.provider, oracle.address, 60)
        sentinel = await node.deploy(admin, code)
        provider = Contract(node, follower.market.provider, aave_v3_0("PoolAddressesProvider").abi)
        await make_unsafe(follower, 0.93)
        await provider.send(admin, "setPriceOracleSentinel", sentinel)
        now = (await node.head()).timestamp_s
        await oracle.send(admin, "setAnswer", True, now)
        marks = await follower.marks(await follower.follow())
        assert follower.reloads == 1
        assert reasons_of(follower.options(BORROWER, marks)) == ["sentinel"]
        await follower.set_prices({"WETH": 0.8})
        marks = await follower.marks(await follower.follow())
        assert isinstance(only_option(follower.options(BORROWER, marks)), Option)
        await follower.set_prices({"WETH": 0.93})
        await oracle.send(admin, "setAnswer", False, now)
        await node.advance(100)
        marks = await follower.marks(await follower.follow())
        option = only_option(follower.options(BORROWER, marks))
        await liquidate_exactly(follower, option, option.max_repay_raw)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_healthy_account_has_no_options(version: Version, lab: Lab) -> None:
    """At health factor 1.05 the answer is "healthy"."""
    async with following(version, lab) as follower:
        await open_position(follower.node, lab.world.cast, follower.market, POSITION)
        marks = await follower.marks(await follower.follow())
        assert reasons_of(follower.options(BORROWER, marks)) == ["healthy"]


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
        pairs = zip(calls, results, strict=True)
        answers = [alter(call, result) if isinstance(call, Call) else result for call, result in pairs]


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
        head, _ = await make_unsafe(follower)
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
        head, _ = await make_unsafe(follower)
        past = BlockTime(BlockNumber(head.number), head.hash, head.timestamp_s - 3_600)
        with pytest.raises(AdapterError, match="was updated at"):
            await follower.chain.read(follower.adapter.marks(past), head.hash)
