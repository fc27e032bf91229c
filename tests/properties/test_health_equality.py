from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keeper.abi import load
from keeper.book import Book
from keeper.errors import RpcError
from keeper.fixed import BPS, MAX_UINT256, RAY, WAD
from keeper.lab.aave import Version, configurator_of, oracle_of, pool_of
from keeper.lab.chainlink import deploy_feed
from keeper.lab.node import Contract
from keeper.lab.positions import AccountData, account_data
from keeper.lab.tokens import erc20, mint_txs
from keeper.protocols.aave_v3.health import Account, judge
from keeper.protocols.aave_v3.marks import AaveMarks
from keeper.protocols.aave_v3.positions import rows_of
from keeper.protocols.aave_v3.rules import rules_of
from keeper.types import Address, Health, Marks, Option, hex_of
from tests.conftest import Count
from tests.protocols.aave_v3_lab import Follower, following, open_random, random_factors
from tests.protocols.aave_v3_markets import marks_of, positions_of, random_marks

DEEP = os.environ.get("KEEPER_DEEP") == "1"
POSITIONS = 1_000 if DEEP else 60
ROUNDS = 8 if DEEP else 5
MONTH_S = 30 * 86_400

# --- without a chain: the rows never lose an account ---------------------------------------------------------------

Drawn = tuple[int, dict[int, int], dict[int, int]]


def _near_one(marks: AaveMarks, chance: random.Random, spread: float, worth_usd: float) -> Drawn:
    """An account whose health factor is within `spread` of 1, or as near as its raw units allow."""
    listed = [reserve.id for reserve in marks.market.listed()]
    group = chance.choice((0, 0, 1, 2, 3))
    collateral = {}
    weighted = 0.0
    for reserve_id in chance.sample(listed, min(len(listed), chance.randint(1, 6))):
        state, unit = marks.state(reserve_id), marks.market.reserve(reserve_id).unit
        price = marks.price(reserve_id, group)
        scaled = max(1, int(worth_usd * chance.uniform(0.1, 1) * 1e8 / price * unit))
        collateral[reserve_id] = scaled
        if marks.counted(reserve_id):
            value = scaled * state.liquidity_index_ray / RAY * price / unit
            weighted += value * marks.threshold_bps(reserve_id, group) / BPS
    owed = weighted / (1 + chance.uniform(-spread, spread))
    borrowed = chance.sample(listed, min(len(listed), chance.randint(1, 4)))
    debt = {}
    for reserve_id in borrowed:
        state, unit = marks.state(reserve_id), marks.market.reserve(reserve_id).unit
        share = owed / len(borrowed) / marks.price(reserve_id, group) * unit / (state.debt_index_ray / RAY)
        debt[reserve_id] = max(1, int(share))
    return group, collateral, debt


def test_rows_miss_no_unsafe_account() -> None:
    """Over adversarial accounts of every version (health factor within 2 % of 1, from millionths of a dollar to ten
    billions, thresholds 0 to 97 %, 1 to 128 reserves, e-modes with and without their own price), whoever the
    contract's arithmetic finds below 1 is a candidate of the book. And the filter does filter.
    """
    chance = random.Random(20_260_101)
    seen: Counter[str] = Counter()
    markets, accounts_each = (400, 500) if DEEP else (66, 330)
    for number in range(markets):
        rules = rules_of(number % 11 + 1)[0]
        exact = random_marks(rules, chance, chance.choice((2, 4, 8, 20, 61, 128)))
        spread = chance.choice((1e-9, 1e-6, 3e-4, 2e-2, 0.5))
        worth_usd = 10 ** chance.uniform(-6, 10)
        drawn = [_near_one(exact, chance, spread, worth_usd) for _ in range(accounts_each)]
        positions = positions_of(drawn, len(exact.states))
        book = Book()
        book.upsert(positions, rows_of(positions))
        marks = marks_of(exact)
        candidates = set(book.candidates(marks))
        for key in list(book):
            health = judge(book.position(key), exact)
            assert isinstance(health, Health)
            assert health.health_factor_wad is not None or health.debt_base == 0
            if health.liquidatable:
                seen["unsafe"] += 1
                assert key in candidates, (rules.version, health)
            elif health.debt_base:
                seen["safe"] += 1
                seen["spared"] += key not in candidates
    assert seen["unsafe"] > markets * accounts_each // 5
    assert seen["safe"] > markets * accounts_each // 5
    assert seen["spared"] > seen["safe"] // 10


def _judged(marks: AaveMarks, drawn: Drawn) -> tuple[Health, bool]:
    """An account's health, and whether the book would name it."""
    positions = positions_of([drawn], len(marks.states))
    book = Book()
    book.upsert(positions, rows_of(positions))
    (key,) = book
    health = judge(book.position(key), marks)
    assert isinstance(health, Health)
    return health, bool(book.candidates(marks_of(marks)))


def test_rows_miss_nobody_on_the_very_edge() -> None:
    """For accounts from dust to more than there is, the debt is raised to the first raw unit that makes the exact
    health factor fall below 1, where the float margin is all rounding: each is a candidate.
    """
    chance = random.Random(20_260_102)
    edges = 0
    for number in range(1_100 if DEEP else 110):
        exact = random_marks(rules_of(number % 11 + 1)[0], chance, chance.choice((2, 5, 20, 63)))
        # beyond ten billion dollars float64 no longer holds every base unit, and the relative margin must do
        worth_usd = 10 ** (chance.uniform(11, 15) if number % 3 else chance.uniform(-6, 11))
        drawn = _near_one(exact, chance, 1e-6, worth_usd)
        group, collateral, debt = drawn
        reserve_id = max(debt, key=lambda each: debt[each])
        low, high = 0, 4 * debt[reserve_id] + 4
        if not _judged(exact, (group, collateral, debt | {reserve_id: high}))[0].liquidatable:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            if _judged(exact, (group, collateral, debt | {reserve_id: middle}))[0].liquidatable:
                high = middle
            else:
                low = middle
        health, named = _judged(exact, (group, collateral, debt | {reserve_id: high}))
        assert health.liquidatable
        assert named, (exact.market.rules.version, health)
        edges += 1
    assert edges > 50


def test_a_row_of_a_safe_account_is_near_its_health() -> None:
    """The filter is not vacuous: at $10,000 a health factor 0.1 % above 1 is spared under every version.

    Only where a raw unit is worth little: rows hold a raw unit less of collateral and one more of debt.
    """
    chance = random.Random(7)
    spared = 0
    for number in range(110):
        exact = random_marks(rules_of(number % 11 + 1)[0], chance, 8, (8, 18))
        drawn = [_near_one(exact, chance, 0.0, 10_000.0) for _ in range(20)]
        safer = [
            (group, {i: scaled + scaled // 1_000 + 1 for i, scaled in collateral.items()}, debt)
            for group, collateral, debt in drawn
        ]
        positions = positions_of(safer, len(exact.states))
        book = Book()
        book.upsert(positions, rows_of(positions))
        candidates = set(book.candidates(marks_of(exact)))
        for key in list(book):
            health = judge(book.position(key), exact)
            assert isinstance(health, Health)
            account: Account = health.detail
            threshold_bps = account.weighted_base_bps // max(health.collateral_base, 1)
            if threshold_bps > 4_000 and (health.health_factor_wad or 0) > WAD + WAD // 2_000:
                spared += 1
                assert key not in candidates, health
    assert spared > 200


# --- on a chain: health and liquidations equal the pool's ----------------------------------------------------------


async def _own_emode_price(follower: Follower) -> None:
    """Give e-mode 2 a price of its own, a percent above its assets' first price (3.0 only)."""
    deployer, node = follower.world.cast.deployer.address, follower.node
    feed = await deploy_feed(node, follower.world.cast, "ETHX", 2_020 * 10**8)
    source = Address(b"\xee" * 20)
    await oracle_of(node, follower.market).send(deployer, "setAssetSources", [source], [feed.proxy])
    await configurator_of(node, follower.market).send(
        deployer, "setEModeCategory", 2, 9_000, 9_300, 10_100, source, "ETH correlated"
    )


async def _live(follower: Follower, chance: random.Random, accounts: Sequence[Address]) -> Counter[str]:
    """Let some accounts do what accounts do: change e-mode, switch collateral, repay, borrow, give aTokens away."""
    pool, node, market = pool_of(follower.node, follower.market), follower.node, follower.market
    done: Counter[str] = Counter()
    for owner in chance.sample(list(accounts), max(len(accounts) // 5, 1)):
        symbol = chance.choice(list(market.reserves))
        asset = market.reserves[symbol].token.address
        amount = 10 ** max(market.reserves[symbol].token.decimals - 2, 0)
        order: tuple[object, ...] = chance.choice(
            [
                ("setUserEMode", chance.choice((0, 1, 2))),
                ("setUserUseReserveAsCollateral", asset, chance.random() < 0.5),
                ("borrow", asset, amount, 2, 0, owner),
                ("withdraw", asset, amount, owner),
                ("transfer", chance.choice(accounts), amount),
            ]
        )
        contract = (
            pool
            if order[0] != "transfer"
            else Contract(
                node, market.reserves[symbol].a_token, erc20(node, market.reserves[symbol].token).abi
            )
        )
        try:
            await node.call(contract.address, contract.abi.function(str(order[0])).encode(*order[1:]), owner)
        except RpcError:
            done["refused by the pool"] += 1
            continue
        await contract.send(owner, str(order[0]), *order[1:])
        done[str(order[0])] += 1
    return done


def _assert_equal(
    follower: Follower, owners: Sequence[Address], truths: Sequence[AccountData], marks: Marks
) -> int:
    """Every figure of every account is the pool's, and every unsafe one is a candidate; how many are unsafe."""
    candidates = set(follower.book.candidates(marks))
    unsafe = 0
    for owner, truth in zip(owners, truths, strict=True):
        key = follower.key(owner)
        if key not in follower.book:
            assert truth.debt_base == 0, hex_of(owner)
            continue
        health = follower.health(owner, marks)
        account: Account = health.detail
        assert health.collateral_base == truth.collateral_base
        assert health.debt_base == truth.debt_base
        assert (health.health_factor_wad or MAX_UINT256) == truth.health_factor_wad
        if health.collateral_base:
            assert account.weighted_base_bps // health.collateral_base == truth.liquidation_threshold_bps
        assert health.liquidatable == (truth.health_factor_wad < WAD)
        if health.liquidatable:
            unsafe += 1
            assert key in candidates
    return unsafe


async def _truths_at(follower: Follower, owners: Sequence[Address], timestamp_s: int) -> list[AccountData]:
    """What the pool would say in a block at that time, by overriding the block's time."""
    function = pool_of(follower.node, follower.market).abi.function("getUserAccountData")
    answers = []
    for owner in owners:
        message = {"to": hex_of(follower.market.pool), "data": hex_of(function.encode(owner))}
        answers.append(
            await follower.node.rpc.request("eth_call", message, "latest", {}, {"time": hex(timestamp_s)})
        )
    return [AccountData(*function.decode(bytes.fromhex(answer[2:]))) for answer in answers]


@dataclass(frozen=True, slots=True)
class Turn:
    """Prices move, time passes, and a fifth of the accounts do what accounts do."""

    prices: int
    after_s: int
    deeds: int


TURNS = st.lists(
    st.builds(
        Turn,
        prices=st.integers(0, 2**32),
        after_s=st.sampled_from((1, 60, MONTH_S, 5 * MONTH_S)),
        deeds=st.integers(0, 2**32),
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module", params=["3.0", "3.6"])
async def crowd(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Follower, list[Address]]]:
    """A market with random positions, found from logs alone."""
    async with following(request.param) as follower:
        if request.param == "3.0":
            await _own_emode_price(follower)
        owners = await open_random(follower, random.Random(f"health {request.param}"), 0, POSITIONS)
        await follower.follow()
        assert len(follower.book) >= POSITIONS * 9 // 10
        yield follower, owners


@pytest.mark.deep
@pytest.mark.timeout(1800 if DEEP else 300)
@settings(
    max_examples=ROUNDS,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(turns=TURNS, ahead_s=st.sampled_from((1, 12, 86_400, 10 * MONTH_S)))
async def test_health_equals_the_pools_to_the_last_digit(
    crowd: tuple[Follower, list[Address]], turns: list[Turn], ahead_s: int, count: Count
) -> None:
    """Through random prices, months of interest and what users do, with accounts found from logs alone: collateral,
    debt, average threshold and health factor equal Pool.getUserAccountData at the head and at a future timestamp,
    and the rows select everyone below 1.
    """
    opened, owners = crowd
    follower = replace(opened, book=deepcopy(opened.book))
    snapshot = await follower.node.snapshot()
    try:
        for turn in turns:
            await follower.set_prices(random_factors(random.Random(turn.prices)))
            await follower.node.advance(turn.after_s)
            await _live(follower, random.Random(turn.deeds), owners)
            head = await follower.follow()
            truths = await account_data(follower.node, follower.market, owners)
            unsafe = _assert_equal(follower, owners, truths, await follower.marks(head))
            some = random.Random(turn.deeds).sample(owners, 10)
            later = await _truths_at(follower, some, head.timestamp_s + ahead_s)
            _assert_equal(follower, some, later, await follower.marks(head, ahead_s))
            count(
                f"health factors compared with getUserAccountData, {POSITIONS:,} positions a version",
                len(owners),
            )
            count("of them below 1 and in the book's selection", unsafe)
    finally:
        await follower.node.revert(snapshot)


async def _fund(follower: Follower) -> None:
    """Give the liquidator a fortune in every token, and the pool its approval."""
    cast, node, market = follower.world.cast, follower.node, follower.market
    liquidator = cast.liquidator.address
    txs = []
    for reserve in market.reserves.values():
        txs += mint_txs(cast, reserve.token, liquidator, 10**7 * 10**reserve.token.decimals)
        txs.append(
            erc20(node, reserve.token).tx(liquidator, "approve", market.pool, MAX_UINT256, gas=100_000)
        )
    await node.send_all(txs)


def _amount(chance: random.Random, option: Option) -> int:
    """The maximum, the bounds of the partial range, or anything in it."""
    choices = [option.max_repay_raw, option.max_repay_raw]
    if option.partial_max_repay_raw:
        low, high = option.min_repay_raw, option.partial_max_repay_raw
        choices += [low, high, chance.randint(low, high), int(low + (high - low) * chance.random() ** 3)]
    return chance.choice(choices)


@pytest.mark.deep
@pytest.mark.timeout(1800 if DEEP else 300)
@pytest.mark.parametrize("version", ["3.0", "3.6"])
async def test_a_liquidation_moves_what_was_foretold_to_the_unit(version: Version, count: Count) -> None:
    """For random unsafe accounts, pairs and amounts within an option's bounds, executed at the marks' timestamp: the
    call succeeds, and what the liquidator pays and receives equals the outcome. One unit beyond the partial bound,
    where the rules forbid dust, the pool refuses.
    """
    chance = random.Random(f"liquidation {version}")
    tried, dusty, partial = 0, 0, 0
    async with following(version) as follower:
        if version == "3.0":
            await _own_emode_price(follower)
        owners = await open_random(follower, chance, 0, POSITIONS)
        await _fund(follower)
        for _ in range(ROUNDS):
            await follower.set_prices(random_factors(chance))
            await follower.node.advance(chance.choice((1, MONTH_S, 4 * MONTH_S)))
            head = await follower.follow()
            marks = await follower.marks(head, ahead_s=chance.choice((1, 12, 600)))
            for owner in owners:
                if follower.key(owner) not in follower.book or not follower.health(owner, marks).liquidatable:
                    continue
                options = [each for each in follower.options(owner, marks) if isinstance(each, Option)]
                assert options
                for option in options:
                    whole = await follower.outcome(option, option.max_repay_raw)
                    assert whole.repay_raw == option.max_repay_raw
                    assert 0 <= option.partial_max_repay_raw <= option.max_repay_raw
                    assert (
                        option.partial_max_repay_raw == 0
                        or option.min_repay_raw <= option.partial_max_repay_raw
                    )
                option = chance.choice(options)
                amount = _amount(chance, option)
                expected = await follower.outcome(option, amount)
                calls = follower.adapter.liquidation_calls(option, amount)
                assert expected.repay_raw <= sum(call.approve_raw for call in calls)
                result, paid, received = await follower.executed(option, amount, marks)
                assert result.status == 1, load("AavePool").error(result.output)
                if option.repay_token == option.seize_token:
                    assert received == -paid == expected.seize_raw - expected.repay_raw
                else:
                    assert (paid, received) == (expected.repay_raw, expected.seize_raw), (option, amount)
                tried += 1
                partial += amount < option.max_repay_raw
                more = option.partial_max_repay_raw + 1
                pair = option.detail.pair
                last = more - option.detail.first.repay_raw
                if 1 < more < option.max_repay_raw and pair.leaves_dust(pair.amounts(last)):
                    result, *_ = await follower.executed(option, more, marks)
                    assert load("AavePool").error(result.output) == "MustNotLeaveDust()"
                    dusty += 1
    assert tried > POSITIONS // 3
    assert partial > tried // 8
    assert dusty > 0 or version == "3.0"
    count("liquidations whose amounts equal the outcome foretold", tried)
