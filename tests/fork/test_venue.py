from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from keeper import abi
from keeper.chain.client import Chain
from keeper.lab.node import Contract
from keeper.lab.tokens import approve_txs, balance_of, mint
from keeper.lab.uniswap import DEADLINE_S, drain_pool
from keeper.lab.world import Lab
from keeper.seams import Reads, T, together
from keeper.types import Address, Path, Quote, Refusal, Token
from keeper.venues.uniswap_v3 import UniswapV3, UniswapV3Config

ROUTER = abi.load("SwapRouter")


@pytest.fixture
async def chain(lab: Lab) -> AsyncIterator[Chain]:
    """The keeper's own reader of the lab's chain."""
    chain = await Chain.open([lab.anvil.url], lab.world.chain_id)
    yield chain
    await chain.close()


@pytest.fixture
def venue(lab: Lab) -> UniswapV3:
    """The lab's Uniswap V3, routed through WETH and USDC."""
    uniswap = lab.world.uniswap_v3
    config = UniswapV3Config(factory=uniswap.factory, quoter=uniswap.quoter, router=uniswap.router)
    return UniswapV3(config, (_token(lab, "WETH").address, _token(lab, "USDC").address))


def _token(lab: Lab, symbol: str) -> Token:
    return lab.world.tokens[symbol]


def _path(lab: Lab, *route: str | int) -> Path:
    """`_path(lab, "WETH", 500, "USDC")`."""
    tokens = tuple(_token(lab, part).address for part in route if isinstance(part, str))
    return Path(tokens, tuple(part for part in route if isinstance(part, int)))


async def _read(lab: Lab, chain: Chain, reads: Reads[T]) -> T:
    return await chain.read(reads, (await lab.node.head()).hash)


async def _swap(
    lab: Lab, venue: UniswapV3, quote: Quote, trader: Address, *, limit_raw: int | None = None
) -> tuple[int, int]:
    """Carry a quote out at the real router, as the Liquidator would; what was paid and what was received."""
    sold, bought = (
        next(token for token in lab.world.tokens.values() if token.address == address)
        for address in (quote.path.tokens[0], quote.path.tokens[-1])
    )
    await mint(lab.node, lab.world.cast, sold, trader, quote.amount_in_raw)
    await lab.node.send_all(await approve_txs(lab.node, sold, trader, venue.router, quote.amount_in_raw))
    before = await balance_of(lab.node, sold, trader), await balance_of(lab.node, bought, trader)
    limit = (
        limit_raw
        if limit_raw is not None
        else (quote.amount_in_raw if quote.exact_out else quote.amount_out_raw)
    )
    leg = venue.swap_leg(quote, whole_balance=False, limit_raw=limit)
    order = (leg.path, trader, DEADLINE_S, leg.amount_raw, leg.limit_raw)
    router = Contract(lab.node, leg.router, ROUTER)
    await router.send(trader, "exactOutput" if leg.exact_out else "exactInput", order)
    after = await balance_of(lab.node, sold, trader), await balance_of(lab.node, bought, trader)
    return before[0] - after[0], after[1] - before[1]


@pytest.mark.parametrize("exact_out", [False, True], ids=["exact-in", "exact-out"])
@pytest.mark.parametrize(
    ("route", "amount_in", "amount_out"),
    [
        pytest.param(("WETH", 500, "USDC"), 25 * 10**18, 50_000 * 10**6, id="one-hop"),
        pytest.param(("WETH", 10_000, "USDC"), 40 * 10**18, 60_000 * 10**6, id="thin-pool"),
        pytest.param(("USDT", 500, "WETH"), 70_000 * 10**6, 31 * 10**18, id="no-return-token-sold"),
        pytest.param(("WETH", 500, "USDT"), 31 * 10**18, 70_000 * 10**6, id="no-return-token-bought"),
        pytest.param(("USDT", 500, "WETH", 3000, "USDC"), 9_999_999, 9_999_999, id="two-hops"),
        pytest.param(("WBTC", 500, "WETH", 3000, "DAI"), 3 * 10**8, 10**23, id="two-hops-large"),
    ],
)
async def test_a_quote_is_what_the_router_does(
    lab: Lab,
    chain: Chain,
    venue: UniswapV3,
    route: tuple[str | int, ...],
    amount_in: int,
    amount_out: int,
    exact_out: bool,
) -> None:
    """Both amounts of a quote are those of the real swap of its leg at the same state, to the unit."""
    amount = amount_out if exact_out else amount_in
    quote = await _read(lab, chain, venue.quote(_path(lab, *route), amount, exact_out=exact_out))
    assert isinstance(quote, Quote)
    paid, received = await _swap(lab, venue, quote, lab.world.cast.liquidator.address)
    assert (paid, received) == (quote.amount_in_raw, quote.amount_out_raw)
    assert amount in (paid, received)


async def test_a_tier_without_a_pool_is_refused(lab: Lab, chain: Chain, venue: UniswapV3) -> None:
    """What the factory does not know is `no_pool`, and the routes then hold only pools that exist."""
    weth, usdt = _token(lab, "WETH").address, _token(lab, "USDT").address
    answer = await _read(lab, chain, venue.quote(_path(lab, "WETH", 3000, "USDT"), 10**18))
    assert isinstance(answer, Refusal) and answer.reason == "no_pool"
    await _read(lab, chain, together([venue.quote(path, 10**18) for path in venue.paths(weth, usdt)]))
    for path in venue.paths(weth, usdt):
        assert isinstance(await _read(lab, chain, venue.quote(path, 10**18)), Quote), path
    assert {path.fees for path in venue.paths(weth, usdt)} == {(500,), (500, 100), (3000, 100)}


async def test_an_empty_pool_is_refused(lab: Lab, chain: Chain, venue: UniswapV3) -> None:
    """A pool that exists but holds no liquidity gives no quote, in either direction and of either kind."""
    pool = lab.world.uniswap_v3.pool(_token(lab, "WETH"), _token(lab, "USDC"), 500)
    await drain_pool(lab.node, lab.world.cast, lab.world.uniswap_v3, pool, 10_000)
    for route, amount in ((("WETH", 500, "USDC"), 10**18), (("USDC", 500, "WETH"), 10**9)):
        for exact_out in (False, True):
            answer = await _read(lab, chain, venue.quote(_path(lab, *route), amount, exact_out=exact_out))
            assert isinstance(answer, Refusal) and answer.reason == "no_liquidity", answer


async def test_what_does_not_fit_is_refused(lab: Lab, chain: Chain, venue: UniswapV3) -> None:
    """More than a pool can take is refused, though the quoter answers and the router sells a part of it."""
    path, too_much = _path(lab, "WETH", 10_000, "USDC"), 10_000 * 10**18
    answer = await _read(lab, chain, venue.quote(path, too_much))
    assert isinstance(answer, Refusal) and answer.reason == "no_liquidity"
    assert answer.numbers["partial_raw"] > 0
    answer = await _read(lab, chain, venue.quote(path, 10**7 * 10**6, exact_out=True))
    assert isinstance(answer, Refusal) and answer.reason == "no_liquidity"

    forced = Quote(path, False, too_much, 0, 0)
    paid, received = await _swap(lab, venue, forced, lab.world.cast.liquidator.address, limit_raw=0)
    assert 0 < paid < too_much and received > 0


async def test_a_later_hop_that_does_not_fit_is_refused(lab: Lab, chain: Chain, venue: UniswapV3) -> None:
    """A second hop that runs dry is refused too: there the router keeps what it could not sell, for anybody to take."""
    path, amount = _path(lab, "WBTC", 500, "WETH", 10_000, "USDC"), 50 * 10**8
    answer = await _read(lab, chain, venue.quote(path, amount))
    assert isinstance(answer, Refusal) and answer.reason == "no_liquidity"

    forced = Quote(path, False, amount, 0, 0)
    paid, received = await _swap(lab, venue, forced, lab.world.cast.liquidator.address, limit_raw=0)
    assert paid == amount and received > 0
    assert await balance_of(lab.node, _token(lab, "WETH"), venue.router) > 0


async def test_many_quotes_at_once_are_each_right(lab: Lab, chain: Chain, venue: UniswapV3) -> None:
    """A full round of quotes in one read answers each as if it were asked alone: none is starved of gas."""
    paths = [_path(lab, "WBTC", 500, "WETH", fee, "USDC") for fee in (500, 3000)]
    amounts = [(path, 10**8 + step) for path in paths for step in range(128)]
    quotes = await _read(lab, chain, together([venue.quote(path, amount) for path, amount in amounts]))
    assert {type(quote) for quote in quotes} == {Quote}
    for index in (0, 127, 128, 255):
        path, amount = amounts[index]
        alone = await _read(lab, chain, venue.quote(path, amount))
        together_one = quotes[index]
        assert isinstance(alone, Quote) and isinstance(together_one, Quote)
        # what is warm already in a shared call costs less gas
        assert replace(together_one, gas=0) == replace(alone, gas=0)
