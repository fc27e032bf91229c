"""Morpho Blue: which logs touch whose position, which markets are followed, and what tells dollars."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from keeper.abi import checksum, load
from keeper.chain.client import Chain
from keeper.errors import AdapterError
from keeper.fixed import WAD
from keeper.lab.artifacts import morpho as artifact
from keeper.lab.morpho import (
    BorrowSpec,
    MarketSpec,
    MorphoMarket,
    borrow,
    deploy_morpho,
    open_market,
)
from keeper.lab.tokens import approve_txs, mint_txs
from keeper.lab.world import Lab, add_token
from keeper.protocols.morpho_blue import MorphoBlue, MorphoBlueConfig
from keeper.protocols.morpho_blue.market import LIQUIDATE
from keeper.seams import Adapter, symbol_of
from keeper.types import Address, Hash, Refusal, hex_of
from tests.protocols.morpho_blue_lab import (
    BORROWER,
    ETHER,
    OTHER,
    POSITION,
    USDC_WETH,
    WBTC_WETH,
    WETH_USDC,
    Follower,
    following,
)

ABIS = Path(__file__).parents[2] / "abis"
Act = Callable[[Follower, MorphoMarket], Awaitable[object]]


def test_the_adapter_fits_its_seam() -> None:
    """It is what the engine takes; using it before it is loaded says so."""
    config = MorphoBlueConfig(name="morpho", morpho=Address(b"\1" * 20))
    adapter: Adapter
    (adapter,) = MorphoBlue.made_of(config, None)
    assert (adapter.name, adapter.market, adapter.settled_jointly) == ("morpho", "0x" + "01" * 20, False)
    with pytest.raises(AdapterError, match="before it was loaded"):
        adapter.sources()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"markets": ["0x12"]}, "'0x12' is not a market id: 0x and 64 hexadecimal digits"),
        ({"markets": ["0x" + "zz" * 32]}, "64 hexadecimal digits are expected"),
        ({"usd_feeds": [["0x" + "11" * 20]]}, "usd_feeds"),
        ({"irm": "0x" + "11" * 20}, "Extra inputs are not permitted"),
    ],
)
def test_a_mistaken_table_is_refused(given: dict[str, object], told: str) -> None:
    """What is no market id, no pair and no key says so."""
    with pytest.raises(ValidationError, match=told):
        MorphoBlueConfig.model_validate({"name": "morpho", "morpho": "0x" + "11" * 20, **given})


def test_the_interface_is_the_contracts_own() -> None:
    """Every function and event the adapter speaks is in the published code, with these types."""
    published, events = artifact("Morpho").abi, artifact("EventsLib").abi
    for entry in json.loads((ABIS / "MorphoBlue.json").read_text()):
        mine = load("MorphoBlue")
        if entry["type"] == "function":
            function = published.function(entry["name"])
            assert function.selector == mine.function(entry["name"]).selector
        else:
            assert events.event(entry["name"]).topic == mine.event(entry["name"]).topic
    rate = load("MorphoIrm").function("borrowRateView")
    assert artifact("IrmMock").abi.function("borrowRateView").selector == rate.selector
    price = load("MorphoOracle").function("price")
    assert artifact("OracleMock").abi.function("price").selector == price.selector


@asynccontextmanager
async def _followed(lab: Lab, *, listed: bool = False) -> AsyncIterator[Follower]:
    """A follower of a new Morpho with a position, up to date."""
    deployed = await deploy_morpho(lab.node, lab.world)
    ids = [market.id for market in deployed.markets] if listed else []
    async with following(lab, deployed, ids) as follower:
        await follower.open(POSITION)
        await follower.follow()
        yield follower


async def _give(follower: Follower, token: str, amount_raw: int, who: Address = BORROWER) -> None:
    node, world = follower.node, follower.world
    txs = mint_txs(world.cast, world.tokens[token], who, amount_raw)
    txs += await approve_txs(node, world.tokens[token], who, follower.morpho.address, amount_raw)
    await node.send_all(txs)


async def _repay(follower: Follower, market: MorphoMarket) -> None:
    await _give(follower, "USDC", 10**9, OTHER)
    await follower.blue.send(OTHER, "repay", market.params, 10**8, 0, BORROWER, b"")


async def _borrow(follower: Follower, market: MorphoMarket) -> None:
    await follower.blue.send(BORROWER, "borrow", market.params, 10**8, 0, BORROWER, OTHER)


async def _add(follower: Follower, market: MorphoMarket) -> None:
    await _give(follower, "WETH", ETHER, OTHER)
    await follower.blue.send(OTHER, "supplyCollateral", market.params, ETHER, BORROWER, b"")


async def _take(follower: Follower, market: MorphoMarket) -> None:
    await follower.blue.send(BORROWER, "withdrawCollateral", market.params, ETHER // 10, BORROWER, OTHER)


async def _liquidate(follower: Follower, market: MorphoMarket) -> None:
    await follower.set_prices({"WETH": 0.93})
    await follower.fund()
    who = follower.world.cast.liquidator.address
    await follower.blue.send(who, "liquidate", market.params, BORROWER, ETHER, 0, b"")


@pytest.mark.parametrize("act", [_repay, _borrow, _add, _take, _liquidate])
@pytest.mark.parametrize("listed", [True, False])
async def test_every_way_a_position_changes_is_found(lab: Lab, act: Act, listed: bool) -> None:
    """Also where somebody else does it: afterwards the book holds what the contract says, and only who was touched was
    read again.
    """
    async with _followed(lab, listed=listed) as follower:
        await lab.node.set_balances([OTHER])
        market = follower.morpho.markets[WETH_USDC]
        before = follower.position(BORROWER, WETH_USDC).words
        await act(follower, market)
        await follower.follow()
        _, shares, collateral_raw = await follower.blue.read("position", market.id, BORROWER)
        assert follower.position(BORROWER, WETH_USDC).words == (collateral_raw, shares) != before
        assert set(follower.watch.book) == {follower.key(BORROWER, WETH_USDC)}


async def test_who_owes_nothing_leaves_the_book(lab: Lab) -> None:
    """After the last share is repaid the account is gone, and its market is not asked any more."""
    async with _followed(lab) as follower:
        market = follower.morpho.markets[WETH_USDC]
        assert (await follower.marks(await follower.follow())).exact.states
        await _give(follower, "USDC", 20_000 * 10**6)
        _, shares, _ = await follower.blue.read("position", market.id, BORROWER)
        await follower.blue.send(BORROWER, "repay", market.params, 0, shares, BORROWER, b"")
        head = await follower.follow()
        assert len(follower.watch.book) == 0
        await follower.marks(head)
        assert not (await follower.marks(head)).exact.states


async def test_a_liquidation_names_position_and_transaction(lab: Lab) -> None:
    """By its event and by its calldata alone; other calls are nobody's."""
    async with _followed(lab) as follower:
        await follower.set_prices({"WETH": 0.93})
        await follower.fund()
        market, who = follower.morpho.markets[WETH_USDC], follower.world.cast.liquidator.address
        receipt = await follower.blue.send(who, "liquidate", market.params, BORROWER, ETHER, 0, b"")
        key = follower.key(BORROWER, WETH_USDC)
        assert follower.adapter.liquidations(receipt.logs) == [(key, receipt.transaction_hash)]
        marks = await follower.marks(await follower.follow())
        option = follower.option(BORROWER, WETH_USDC, marks)
        [call] = follower.adapter.liquidation_calls(option, option.max_repay_raw)
        assert follower.adapter.position_of(call.data) == key
        assert follower.adapter.position_of(b"\1\2\3\4" + call.data[4:]) is None
        assert (call.target, call.data[:4]) in follower.adapter.targets()
        assert follower.adapter.targets() == [(follower.morpho.address, LIQUIDATE.selector)]
        assert key in follower.adapter.keys_of(BORROWER)


async def test_only_listed_markets_are_followed_where_some_are(lab: Lab) -> None:
    """The account's other position is not known, neither from logs nor from an earlier run; without a list both are."""
    deployed = await deploy_morpho(lab.node, lab.world)
    specs = [POSITION, BorrowSpec(BORROWER, USDC_WETH, 10**10, 9_000)]
    await borrow(lab.node, lab.world, deployed, specs)
    async with following(lab, deployed, [deployed.markets[WETH_USDC].id]) as follower:
        head = await follower.follow()
        assert set(follower.watch.book) == {follower.key(BORROWER, WETH_USDC)}
        logs = await follower.watch.logs(0, head.number)
        assert follower.adapter.discover(logs).keys == set(follower.watch.book)
        other = follower.key(BORROWER, USDC_WETH)
        await follower.watch.refresh("morpho", [other], await follower.chain.head())
        assert other not in follower.watch.book
        assert len((await follower.marks(head)).exact.states) == 1
    async with following(lab, deployed) as follower:
        head = await follower.follow()
        assert len(follower.watch.book) == len((await follower.marks(head)).exact.states) == 2
        assert "No markets are listed" in follower.adapter.warnings()[0]


async def test_a_market_made_meanwhile_is_followed_from_its_first_debt(lab: Lab) -> None:
    """It needs no reload: the first borrower's log names it, and the next head has its price."""
    async with _followed(lab) as follower:
        spec = MarketSpec("wstETH", "USDC", 86 * WAD // 100)
        await follower.blue.send(lab.world.cast.deployer.address, "enableLltv", 80 * WAD // 100)
        follower.morpho = await open_market(lab.node, lab.world, follower.morpho, spec)
        marks = await follower.marks(await follower.follow())
        assert len(marks.exact.states) == 1
        await follower.open(BorrowSpec(OTHER, 6, 3 * ETHER, 9_000))
        head = await follower.follow()
        told = follower.judged(OTHER, 6, marks)
        assert isinstance(told, Refusal) and told.reason == "new_market"
        assert follower.health(OTHER, 6, await follower.marks(head)).debt_base > 0


async def test_oracles_of_listed_markets_name_the_feeds(lab: Lab) -> None:
    """Where none is configured, one dollar aggregator on a side is taken from a listed market's own oracle; of two on a
    side neither is, a mock names none, and whoever is found by logs alone is not asked at all.
    """
    world, deployed = lab.world, await deploy_morpho(lab.node, lab.world)
    two = MarketSpec("wstETH", "USDC", 86 * WAD // 100, through="DAI")
    deployed = await open_market(lab.node, world, deployed, two)
    await borrow(lab.node, world, deployed, [POSITION])
    async with await Chain.open([lab.anvil.url], world.chain_id) as chain:
        head = await chain.head()

        async def loaded(*places: int) -> MorphoBlue:
            ids = tuple(deployed.markets[place].id for place in places)
            adapter = MorphoBlue(MorphoBlueConfig(name="m", morpho=deployed.address, markets=ids))
            await chain.read(adapter.load(), head.hash)
            return adapter

        named = (await loaded(WETH_USDC)).feeds()
        assert named == {
            world.tokens[symbol].address: world.feeds[symbol].proxy for symbol in ("WETH", "USDC")
        }
        assert set((await loaded(6)).feeds()) == {world.tokens["USDC"].address}
        mock = await loaded(WBTC_WETH)
        assert mock.feeds() == {}
        assert "WBTC/WETH" in mock.warnings()[0]
        both = await loaded(WETH_USDC, WBTC_WETH)
        assert "WBTC/WETH" in both.warnings()[0] and len(both.feeds()) == 2
        relied = set(both.contracts().values())
        assert {deployed.address, deployed.irms["adaptive"], world.feeds["USDC"].proxy} <= relied
        assert deployed.markets[USDC_WETH].oracle not in relied
        found = await loaded()
        assert found.feeds() == {} and set(found.contracts().values()) == {deployed.address}


@pytest.mark.parametrize("symbol", ["", "A\n", "A" * 65, "\u202eHTEW"])
def test_a_strangers_token_is_named_by_its_address_where_its_symbol_is_none(symbol: str) -> None:
    """Whoever makes a market may name its tokens by a megabyte, and each is remembered."""
    token, text = Address(b"\7" * 20), symbol.encode()
    answer = (32).to_bytes(32) + len(text).to_bytes(32) + text + bytes(-len(text) % 32)
    assert symbol_of(answer, token) == hex_of(token)


async def test_markets_of_strangers_tokens_are_left_alone(lab: Lab) -> None:
    """A token nobody gave a feed is neither judged by what its oracle says nor asked about; the others go on."""
    world = await add_token(lab.node, lab.world, "ODD", 18, 1)
    async with _followed(lab) as follower:
        deployed = await open_market(
            lab.node, world, follower.morpho, MarketSpec("ODD", "USDC", 86 * WAD // 100)
        )
        await borrow(lab.node, world, deployed, [BorrowSpec(OTHER, 6, 10**21, 9_000)])
        follower.morpho = deployed
        marks = await follower.marks(await follower.follow())
        assert follower.key(OTHER, 6) in follower.watch.book
        told = follower.judged(OTHER, 6, marks)
        assert isinstance(told, Refusal) and told.reason == "no_usd_feed"
        assert len(marks.exact.states) == 1
        assert follower.watch.book.candidates(marks) == []
        await follower.watch.load(await follower.chain.head())
        assert world.tokens["ODD"].address not in follower.adapter.feeds()


async def test_what_is_no_morpho_or_no_market_says_so(lab: Lab) -> None:
    """A wrong address, a market that was never made, and a feed that is none, each in one sentence."""
    deployed = await deploy_morpho(lab.node, lab.world)
    weth, nobody = lab.world.tokens["WETH"].address, lab.world.cast.operator.address
    missing = Hash(b"\7" * 32)
    named = MorphoBlueConfig(name="m", morpho=deployed.address)
    given = (
        ({"morpho": weth}, "is this a Morpho Blue"),
        ({"markets": (missing,)}, f"{checksum(deployed.address)} has no usable market {hex_of(missing)}"),
        ({"usd_feeds": ((weth, nobody),)}, f"{checksum(nobody)} is no dollar aggregator of {checksum(weth)}"),
    )
    async with await Chain.open([lab.anvil.url], lab.world.chain_id) as chain:
        head = await chain.head()
        for changed, told in given:
            adapter = MorphoBlue(named.model_copy(update=changed))
            with pytest.raises(AdapterError, match=told):
                await chain.read(adapter.load(), head.hash)
