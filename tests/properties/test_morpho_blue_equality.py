"""Morpho Blue on a chain: each market's interest, each account's health and each liquidation equal the contract's."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from keeper.errors import RpcError
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.morpho import MAX_FEE_WAD, BorrowSpec, MorphoMarket, lend, price_of
from keeper.lab.tokens import approve_txs, mint_txs
from keeper.protocols.morpho_blue.market import LIQUIDATE
from keeper.protocols.morpho_blue.rules import Totals
from keeper.types import Address, Marks, Option, Outcome, hex_of
from tests.conftest import Count
from tests.protocols.morpho_blue_lab import WBTC_WETH, Follower, following_fresh, random_specs

DEEP = os.environ.get("KEEPER_DEEP") == "1"
ACCOUNTS = 520 if DEEP else 60
ROUNDS = 8 if DEEP else 4
DAY_S = 86_400
_HEALTHY = b"position is healthy"


async def _live(follower: Follower, chance: random.Random, specs: Sequence[BorrowSpec]) -> int:
    """Some accounts borrow, repay, add or take back; how many Morpho let."""
    done = 0
    for spec in chance.sample(list(specs), max(len(specs) // 6, 6)):
        market, who = follower.morpho.markets[spec.market], spec.account
        _, shares, collateral_raw = await follower.blue.read("position", market.id, who)
        kind = chance.choice(("borrow", "repay", "repay all", "supplyCollateral", "withdrawCollateral"))
        some_raw = max(1, int(collateral_raw * chance.uniform(0.001, 0.2)))
        order: dict[str, tuple[object, ...]] = {
            "borrow": (market.params, chance.randint(1, 10**6), 0, who, who),
            "repay": (market.params, 0, max(1, int(shares * chance.uniform(0.01, 0.9))), who, b""),
            "repay all": (market.params, 0, shares, who, b""),
            "supplyCollateral": (market.params, some_raw, who, b""),
            "withdrawCollateral": (market.params, some_raw, who, who),
        }
        token = market.collateral if kind == "supplyCollateral" else market.loan
        gift_raw = some_raw if kind == "supplyCollateral" else 10**5 * 10**token.decimals
        txs = mint_txs(follower.world.cast, token, who, gift_raw)
        txs += await approve_txs(follower.node, token, who, follower.morpho.address, gift_raw)
        await follower.node.send_all(txs)
        function = follower.blue.abi.function(kind.split()[0])
        try:
            await follower.node.call(follower.blue.address, function.encode(*order[kind]), who)
        except RpcError:
            continue  # too little collateral, nothing owed: Morpho's own business
        await follower.blue.send(who, function.name, *order[kind])
        done += 1
    return done


async def _govern(follower: Follower, chance: random.Random) -> None:
    """Another fee in one market, and more to borrow in another."""
    deployer = follower.world.cast.deployer.address
    market = chance.choice(follower.morpho.markets)
    fee_wad = chance.choice((0, WAD // 100, MAX_FEE_WAD, chance.randint(0, MAX_FEE_WAD)))
    if (await follower.blue.read("market", market.id))[5] != fee_wad:
        await follower.blue.send(deployer, "setFee", market.params, fee_wad)
    market = chance.choice(follower.morpho.markets)
    await lend(follower.node, follower.world, follower.morpho, market, 10**market.loan.decimals)


async def _move(follower: Follower, chance: random.Random) -> None:
    """Other prices, and some time."""
    fall = chance.uniform(0.4, 1.0)
    await follower.set_prices(
        {symbol: fall * chance.uniform(0.9, 1.1) for symbol in ("WETH", "WBTC", "wstETH")}
        | {symbol: chance.uniform(0.98, 1.02) for symbol in ("USDC", "DAI")}
    )
    mock = follower.morpho.markets[WBTC_WETH]
    await follower.set_mock_price(mock, int(await price_of(follower.node, mock) * chance.uniform(0.8, 1.15)))
    await follower.node.advance(chance.choice((1, 60, DAY_S, 30 * DAY_S)))


async def _at(follower: Follower, timestamp_s: int, data: bytes, sender: Address) -> tuple[bytes, bytes]:
    """What Morpho answers in a block at that time: its result, or the data it reverts with."""
    message = {"from": hex_of(sender), "to": hex_of(follower.morpho.address), "data": hex_of(data)}
    try:
        answer = await follower.node.rpc.request(
            "eth_call", message, "latest", {}, {"time": hex(timestamp_s)}
        )
    except RpcError as error:
        return b"", error.data
    return bytes.fromhex(answer[2:]), b""


async def _healthy(follower: Follower, market: MorphoMarket, who: Address, timestamp_s: int) -> bool:
    """The contract's own word, by an attempt to liquidate one share."""
    data = LIQUIDATE.encode(market.params, who, 0, 1, b"")
    _, reason = await _at(follower, timestamp_s, data, follower.world.cast.liquidator.address)
    return _HEALTHY in reason


async def _compare(
    follower: Follower, specs: Sequence[BorrowSpec], marks: Marks, seen: Counter[str]
) -> list[tuple[Address, int]]:
    """Everybody's health against the contract at the marks' timestamp; who is unhealthy."""
    candidates, unhealthy = set(follower.watch.book.candidates(marks)), []
    for spec in specs:
        key, market = follower.key(spec.account, spec.market), follower.morpho.markets[spec.market]
        _, shares, collateral_raw = await follower.blue.read("position", market.id, spec.account)
        if key not in follower.watch.book:
            assert shares == 0
            seen["without debt"] += 1
            continue
        assert follower.position(spec.account, spec.market).words == (collateral_raw, shares)
        health = follower.health(spec.account, spec.market, marks)
        healthy = await _healthy(follower, market, spec.account, marks.at.timestamp_s)
        assert health.liquidatable != healthy, (spec, health)
        assert health.health_factor_wad is not None
        assert (health.health_factor_wad < WAD) == health.liquidatable
        seen["unhealthy" if health.liquidatable else "healthy"] += 1
        if health.liquidatable:
            assert key in candidates
            unhealthy.append((spec.account, spec.market))
        else:
            seen["spared"] += key not in candidates
    return unhealthy


async def _compare_totals(follower: Follower, marks: Marks) -> None:
    """Interest, fees and the shares for them, as accrueInterest books them in the next block at that time."""
    head = await follower.chain.block(marks.at.hash)
    by_id = {market.id: market for market in follower.morpho.markets}
    assert marks.exact.states
    for state in marks.exact.states.values():
        found = await follower.accrued(by_id[state.market.id], head, marks.at.timestamp_s)
        assert state.totals == found


def _amount(chance: random.Random, option: Option) -> int:
    """The maximum, the bounds of the partial range, or anything in it."""
    choices = [option.max_repay_raw, option.max_repay_raw]
    if option.partial_max_repay_raw:
        low, high = option.min_repay_raw, option.partial_max_repay_raw
        choices += [low, high, chance.randint(low, high), int(low + (high - low) * chance.random() ** 3)]
    return chance.choice(choices)


async def _liquidate(
    follower: Follower, chance: random.Random, who: Address, place: int, marks: Marks, seen: Counter[str]
) -> None:
    """One random amount, executed at the marks' timestamp: everything moves as foretold. The same call a minute later
    works too.
    """
    position = follower.position(who, place)
    [option] = follower.options(who, place, marks)
    if not isinstance(option, Option):
        assert option.reason == "dust", option
        assert (
            follower.health(who, place, marks).debt_base < 10**16
            or marks.exact.states[position.group].market.collateral.decimals < 18
        )
        seen["dust"] += 1
        return
    assert 0 <= option.partial_max_repay_raw <= option.max_repay_raw
    amount_raw = _amount(chance, option)
    expected: Outcome = follower.outcome(option, amount_raw)
    [call] = follower.adapter.liquidation_calls(option, amount_raw)
    assert expected.repay_raw <= min(call.approve_raw, max(amount_raw, option.min_repay_raw))
    done = await follower.executed(option, amount_raw, marks)
    assert done.result.status == 1, (follower.blue.abi.error(done.result.output), option, amount_raw)
    assert (done.paid_raw, done.received_raw) == (expected.repay_raw, expected.seize_raw)
    before: Totals = marks.exact.states[position.group].totals
    left_raw = max(before.borrow_assets - expected.repay_raw, 0) - expected.bad_debt_raw
    assert done.totals.borrow_assets == left_raw
    assert done.totals.supply_assets == before.supply_assets - expected.bad_debt_raw
    assert done.collateral_raw == position.words[0] - expected.seize_raw
    if amount_raw == option.max_repay_raw and option.detail.whole:
        assert done.shares == 0, "a debt was left behind"
        seen["bad debt" if expected.bad_debt_raw else "paid in full"] += 1
    else:
        assert done.shares > 0 or expected.bad_debt_raw
        seen["partial"] += 1
    later = Marks(
        type(marks.at)(marks.at.number, marks.at.hash, marks.at.timestamp_s + 60),
        marks.market,
        marks.exact,
        marks.weights,
    )
    again = await follower.executed(option, amount_raw, later)
    assert again.result.status == 1, (follower.blue.abi.error(again.result.output), option, amount_raw)
    assert again.paid_raw <= call.approve_raw
    seen["liquidated"] += 1


@pytest.mark.deep
@pytest.mark.timeout(3600 if DEEP else 600)
async def test_health_interest_and_liquidations_are_the_contracts_to_the_unit(count: Count) -> None:
    """Through random prices, time, fees, borrowing and repaying, with accounts and markets found from logs alone:
    totals with interest and fee shares equal what accrueInterest books at a future timestamp, health equals what the
    contract says there, the rows select everyone unhealthy, and a liquidation of a random amount moves what was
    foretold, written-off debt included. It still works a minute later, with what was approved.
    """
    chance = random.Random("morpho equality")
    seen: Counter[str] = Counter()
    async with following_fresh() as follower:
        specs = random_specs(chance, follower, 1, ACCOUNTS)
        await follower.open(*specs)
        await follower.fund()
        for turn in range(ROUNDS):
            if turn:
                await _move(follower, chance)
                await _govern(follower, chance)
                seen["deeds"] += await _live(follower, chance, specs)
            head = await follower.follow()
            marks = await follower.marks(head, chance.choice((1, 12, DAY_S)))
            await _compare_totals(follower, marks)
            for who, place in await _compare(follower, specs, marks, seen):
                await _liquidate(follower, chance, who, place, marks, seen)
    assert min(seen["unhealthy"], seen["healthy"]) > ACCOUNTS // 4, seen
    assert min(seen["bad debt"], seen["paid in full"], seen["partial"]) > ACCOUNTS // 20, seen
    assert seen["spared"] > seen["healthy"] // 2 and seen["deeds"] > ROUNDS, seen
    for what, number in seen.items():
        count(f"Morpho accounts, {what}", number)


async def test_the_very_edge_is_the_contracts() -> None:
    """At the lowest price at which the adapter calls an account healthy the contract does too; at one unit less of the
    oracle's 36 decimals both call it unhealthy, and the book selects it.
    """
    chance = random.Random(9)
    async with following_fresh() as follower:
        market = follower.morpho.markets[WBTC_WETH]
        for number in range(12 if DEEP else 4):
            who, amount_raw = account(500 + number), chance.choice((1, 999, 10**6, 3 * 10**9))
            await follower.open(BorrowSpec(who, WBTC_WETH, amount_raw, chance.randint(9_000, 9_999)))
            await follower.follow()
            low, high = 1, 2 * await price_of(follower.node, market)
            while high - low > 1:
                middle = (low + high) // 2
                totals = Totals(*await follower.blue.read("market", market.id))
                _, shares, _ = await follower.blue.read("position", market.id, who)
                enough = amount_raw * middle // 10**36 * market.lltv_wad // WAD >= totals.owed_up(shares)
                low, high = (low, middle) if enough else (middle, high)
            for price, healthy in ((high, True), (low, False)):
                await follower.set_mock_price(market, price)
                head = await follower.follow()
                marks = await follower.marks(head)
                health = follower.health(who, WBTC_WETH, marks)
                told = await _healthy(follower, market, who, head.timestamp_s)
                if told != healthy:
                    assert not told  # interest since the price was found
                assert health.liquidatable == (not told)
                assert told or health.key in follower.watch.book.candidates(marks)
