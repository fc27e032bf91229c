from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from keeper.lab.actors import account
from keeper.lab.curie import (
    MarketSpec,
    close,
    deposit,
    house_of,
    open_market,
    part_of,
    perp_curie,
    provide,
    trade,
)
from keeper.lab.node import Contract
from keeper.lab.tokens import approve_txs, mint
from keeper.lab.world import Lab
from keeper.types import Address, Log, PositionKey
from tests.protocols.perp_curie_lab import (
    ETHER,
    USDC,
    WHALE,
    Follower,
    following,
    random_accounts,
    random_order,
    random_trade,
)
from tests.protocols.perp_curie_takeover import TRADER, taking

ONE, TWO = account(61), account(62)


async def _true(follower: Follower, owners: Sequence[Address]) -> None:
    """What the book learned by logs is what a fresh read of every account says."""
    head = await follower.follow()
    held = {key.account: follower.book.position(key).words for key in follower.book}
    keys = [PositionKey(follower.adapter.name, follower.adapter.market, owner) for owner in owners]
    await follower.refresh(keys, head)
    fresh = {key.account: follower.book.position(key).words for key in follower.book}
    for owner in owners:
        assert held.get(owner) == fresh.get(owner), owner.hex()


async def test_every_kind_of_event_is_found(lab: Lab) -> None:
    """After each thing that can happen to an account, its position in the book is what a fresh read says, by logs
    alone: deposits for oneself and by another, trades, orders opened and removed, funding, closing, withdrawing.
    """
    async with following(lab) as follower:
        node, curie, cast = follower.node, follower.curie, follower.world.cast
        house, vault, usdc = (
            house_of(node, curie),
            part_of(node, curie, "Vault"),
            follower.world.tokens["USDC"],
        )
        base = curie.markets["WETH"].base_token

        async def gift() -> None:
            await mint(node, cast, usdc, TWO, USDC)
            await node.send_all(await approve_txs(node, usdc, TWO, curie.vault, USDC))
            await vault.send(TWO, "depositFor", ONE, usdc.address, USDC)

        async def unprovide() -> None:
            [order] = await part_of(node, curie, "OrderBook").read("getOpenOrderIds", ONE, base)
            info = await part_of(node, curie, "OrderBook").read("getOpenOrderById", order)
            await house.send(ONE, "removeLiquidity", (base, info[1], info[2], info[0], 0, 0, 2**40))

        steps: list[Callable[[], Awaitable[object]]] = [
            lambda: follower.fund([ONE, TWO], 2_000 * USDC),
            lambda: trade(node, curie, ONE, "WETH", ETHER),
            gift,
            lambda: deposit(node, cast, curie, curie.collaterals["WBTC"], {ONE: 10**6}),
            lambda: provide(node, curie, ONE, "WETH", (ETHER // 2, 1_000 * ETHER), (1_500, 2_500)),
            lambda: trade(node, curie, TWO, "WBTC", -ETHER // 40),
            lambda: trade(node, curie, WHALE, "WETH", 100 * ETHER),
            unprovide,
            lambda: node.advance(3_600),
            lambda: vault.send(ONE, "withdraw", usdc.address, 100 * USDC),
            lambda: vault.send(ONE, "withdrawAll", curie.collaterals["WBTC"].address),
            lambda: close(node, curie, ONE, "WETH"),
            lambda: close(node, curie, TWO, "WBTC"),
        ]
        for step in steps:
            await step()
            await _true(follower, [ONE, TWO, WHALE])
        assert follower.key(ONE) not in follower.book


async def test_random_accounts_are_found(lab: Lab) -> None:
    """Whatever random accounts do, none differs from a fresh read, and everybody with a position is in the book."""
    chance = random.Random(20_260_105)
    async with following(lab) as follower:
        owners = await random_accounts(chance, follower, 1, 12)
        for _ in range(3):
            for owner in owners:
                await random_trade(chance, follower, owner, chance.choice(("WETH", "WBTC")))
            await random_order(chance, follower, chance.choice(owners))
            await follower.node.advance(chance.randint(1, 3_000))
            await _true(follower, owners)
            balance = part_of(follower.node, follower.curie, "AccountBalance")
            for owner in owners:
                if await balance.read("getBaseTokens", owner):
                    assert follower.key(owner) in follower.book


async def test_a_new_market_is_learned_from_its_first_trade(lab: Lab) -> None:
    """A market that is listed while the keeper runs is read, watched and priced once somebody trades in it, and what
    the positions before it mean does not change.
    """
    async with following(lab) as follower:
        node, curie = follower.node, follower.curie
        await follower.fund([ONE], 5_000 * USDC)
        await trade(node, curie, ONE, "WETH", ETHER)
        marks = await follower.marks(await follower.follow())
        before = follower.assessed(ONE, marks)
        known = set(follower.adapter.contracts().values())
        spec = MarketSpec("wstETH", 1_000_000)
        curie.markets["wstETH"] = await open_market(node, follower.world, curie, spec)
        await node.advance(3_600)
        await provide(node, curie, WHALE, "wstETH", (400 * ETHER, 960_000 * ETHER), (1_200, 4_800))
        await node.advance(3_600)
        await trade(node, curie, ONE, "wstETH", ETHER)
        marks = await follower.marks(await follower.follow())
        added = set(follower.adapter.contracts().values()) - known
        market = curie.markets["wstETH"]
        assert {market.base_token, market.pool, market.dispatcher, market.feed} <= added
        assert before != follower.assessed(ONE, marks)
        await _true(follower, [ONE])
        [first, second] = follower.assessed(ONE, marks).detail.stakes  # type: ignore[union-attr]
        assert (first.market.symbol, second.market.symbol) == ("vWETH", "vwstETH")


async def test_a_market_moved_to_another_feed_is_read_again(lab: Lab) -> None:
    """Where governance gives a base token another price feed, the next marks come from it."""
    async with following(lab) as follower:
        node, curie, deployer = follower.node, follower.curie, follower.world.cast.deployer.address
        await follower.fund([ONE], 5_000 * USDC)
        await trade(node, curie, ONE, "WETH", ETHER)
        await follower.marks(await follower.follow())
        other = await open_market(node, follower.world, curie, MarketSpec("wstETH", 1))
        base = Contract(node, curie.markets["WETH"].base_token, perp_curie("BaseToken").abi)
        await base.send(deployer, "setPriceFeed", other.dispatcher)
        marks = await follower.marks(await follower.follow())
        state = marks.exact.markets[curie.markets["WETH"].base_token]
        assert state.unusable is None
        assert state.index_wad == await base.read("getIndexPrice", 0) == 2_400 * ETHER
        assert state.mark_wad == await part_of(node, curie, "AccountBalance").read(
            "getMarkPrice", curie.markets["WETH"].base_token
        )


async def test_liquidations_are_told_by_account_and_transaction(lab: Lab, tmp_path: Path) -> None:
    """A takeover's log names whose position it was and which transaction did it; so does the call itself."""
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        _, marks, health = await scene.look(TRADER)
        option = scene.options(health, marks)[0]
        _, receipt = await scene.execute(option)
        adapter = scene.follower.adapter
        logs: list[Log] = list(receipt.logs)
        assert adapter.liquidations(logs) == [(health.key, receipt.transaction_hash)]
        assert scene.follower.key(scene.rig.liquidator) in adapter.discover(logs).keys
        told = [adapter.position_of(call.data) for call in adapter.liquidation_calls(option, 1)]
        assert [one for one in told if one is not None] == [health.key]
