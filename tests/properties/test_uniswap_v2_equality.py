from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import combinations, permutations

import pytest

from keeper.chain.client import Chain
from keeper.errors import ExecutionError
from keeper.lab.actors import account
from keeper.lab.artifacts import published
from keeper.lab.node import Contract
from keeper.lab.tokens import approve_txs, balance_of, deploy_token, mint
from keeper.lab.uniswap import DEADLINE_S, v2_router
from keeper.lab.world import Lab
from keeper.seams import each, together
from keeper.types import Path, Quote, Refusal, Reverted, Token
from keeper.venues.uniswap_v2 import FEE_PPM, UniswapV2, UniswapV2Config
from tests.conftest import Count

DEEP = os.environ.get("KEEPER_DEEP") == "1"
ROUNDS = 50 if DEEP else 5
SWAPS = 200 if DEEP else 100  # quotes a round
SEED = int(os.environ.get("KEEPER_SEED", "6"))
PLENTY = 10**36
TRADER = account(62)
ROUTER = published("@uniswap/v2-periphery/build/UniswapV2Router02.json").abi


@dataclass(slots=True)
class Market:
    """Pairs of three tokens, one of them almost empty."""

    lab: Lab
    chance: random.Random
    tokens: list[Token] = field(default_factory=list)

    @property
    def router(self) -> Contract:
        """The lab's Router02."""
        return v2_router(self.lab.node, self.lab.world.uniswap_v2)

    async def open(self) -> None:
        """Deploy the tokens and add liquidity of any size and price."""
        node, cast = self.lab.node, self.lab.world.cast
        await node.set_balances([TRADER], PLENTY)
        for number in range(3):
            token = await deploy_token(node, cast, f"T{number}", 18)
            await mint(node, cast, token, TRADER, PLENTY)
            await node.send_all(await approve_txs(node, token, TRADER, self.router.address, PLENTY))
            self.tokens.append(token)
        for depth, pair in zip((6, 18, 24), combinations(self.tokens, 2), strict=True):
            amounts = [int(10 ** (depth + self.chance.uniform(-2, 2))) for _ in pair]
            addresses = [token.address for token in pair]
            await self.router.send(TRADER, "addLiquidity", *addresses, *amounts, 0, 0, TRADER, DEADLINE_S)

    def order(self) -> tuple[Path, int, bool]:
        """A random swap: one or two hops, tiny to more than there is, sometimes more than a pair can hold."""
        route = self.chance.choice([*permutations(self.tokens, 2), *permutations(self.tokens, 3)])
        amount_raw = int(10 ** self.chance.choice((self.chance.uniform(0, 25), self.chance.uniform(0, 36))))
        path = Path(tuple(token.address for token in route), (FEE_PPM,) * (len(route) - 1))
        return path, amount_raw, self.chance.random() < 0.5


@pytest.fixture
async def market(lab: Lab) -> Market:
    """Pairs of new tokens on the lab's Uniswap V2, from the seed."""
    market = Market(lab, random.Random(SEED))
    await market.open()
    return market


@pytest.fixture
async def chain(lab: Lab) -> AsyncIterator[Chain]:
    """The keeper's own reader of the lab's chain."""
    chain = await Chain.open([lab.anvil.url], lab.world.chain_id)
    yield chain
    await chain.close()


@pytest.fixture
def venue(lab: Lab) -> UniswapV2:
    """The lab's Uniswap V2."""
    uniswap = lab.world.uniswap_v2
    return UniswapV2(UniswapV2Config(factory=uniswap.factory, router=uniswap.router))


async def swap(market: Market, venue: UniswapV2, quote: Quote) -> tuple[int, int, int]:
    """Carry a quote out at the real router, limits at the quote; what was paid and received, and the gas."""
    leg = venue.swap_leg(quote, whole_balance=False, limit_raw=0)
    tokens = [leg.path[at : at + 20] for at in range(0, len(leg.path), 20)]
    sold, bought = (
        next(token for token in market.tokens if token.address == end) for end in (tokens[0], tokens[-1])
    )
    node = market.lab.node
    before = await balance_of(node, sold, TRADER), await balance_of(node, bought, TRADER)
    name = "swapTokensForExactTokens" if leg.exact_out else "swapExactTokensForTokens"
    limit_raw = quote.amount_in_raw if leg.exact_out else quote.amount_out_raw
    receipt = await market.router.send(TRADER, name, leg.amount_raw, limit_raw, tokens, TRADER, DEADLINE_S)
    paid_raw = before[0] - await balance_of(node, sold, TRADER)
    received_raw = await balance_of(node, bought, TRADER) - before[1]
    return paid_raw, received_raw, receipt.gas_used


async def test_quotes_equal_the_routers(
    lab: Lab, market: Market, chain: Chain, venue: UniswapV2, count: Count
) -> None:
    """Amounts of random swaps are getAmountsOut's and getAmountsIn's to the unit; where those revert, it is refused.

    What the library quotes though no pair could do it (nothing comes out, or a reserve would overflow) is refused too,
    and reverts at the router.
    """
    quoted = refused = impossible = 0
    for _ in range(ROUNDS):
        orders = [market.order() for _ in range(SWAPS)]
        head = await lab.node.head()
        await chain.read(venue.sync([path for path, _, _ in orders], head), head.hash)
        reads = [venue.quote(path, raw, exact_out=exact_out) for path, raw, exact_out in orders]
        quotes = await chain.read(together(reads), head.hash)
        calls = [
            ROUTER.function("getAmountsIn" if exact_out else "getAmountsOut").call(
                venue.router, amount_raw, list(path.tokens)
            )
            for path, amount_raw, exact_out in orders
        ]
        answers = await chain.read(each(calls), head.hash)
        for (path, amount_raw, exact_out), quote, answer in zip(orders, quotes, answers, strict=True):
            about = (path, amount_raw, exact_out, quote)
            if isinstance(answer, Reverted):
                assert isinstance(quote, Refusal) and quote.reason == "no_liquidity", about
                refused += 1
                continue
            amounts = ROUTER.function("getAmountsOut").one(answer)
            if isinstance(quote, Refusal):
                assert quote.reason == "no_liquidity", about
                forced = Quote(path, exact_out, amounts[0], amounts[-1], 0)
                with pytest.raises(ExecutionError):
                    await swap(market, venue, forced)
                impossible += 1
                continue
            assert (quote.amount_in_raw, quote.amount_out_raw) == (amounts[0], amounts[-1]), about
            quoted += 1
        done = next(quote for quote in quotes if isinstance(quote, Quote))
        assert (await swap(market, venue, done))[:2] == (done.amount_in_raw, done.amount_out_raw)
    assert min(quoted, refused, impossible) > SWAPS // 20
    count("swaps in Uniswap V2 equal to the router's", quoted)
    count("swaps in Uniswap V2 refused as at the router", refused + impossible)


async def test_a_quote_is_what_the_router_does(
    lab: Lab, market: Market, chain: Chain, venue: UniswapV2
) -> None:
    """Each kind of swap over one and two pairs moves the quoted amounts, for about the gas that is stated."""
    one, other, third = market.tokens
    for tokens in ((other, third), (other, third, one), (one, third, other)):
        for exact_out in (False, True):
            path = Path(tuple(token.address for token in tokens), (FEE_PPM,) * (len(tokens) - 1))
            head = await lab.node.head()
            quote = await chain.read(venue.quote(path, 10**5, exact_out=exact_out), head.hash)
            assert isinstance(quote, Quote), quote
            paid_raw, received_raw, gas = await swap(market, venue, quote)
            assert (paid_raw, received_raw) == (quote.amount_in_raw, quote.amount_out_raw)
            assert (received_raw if exact_out else paid_raw) == 10**5
            taken = gas - 25_000  # the transaction's own, and its calldata
            assert taken - 35_000 <= quote.gas <= taken * 3 // 2, taken


async def test_tokens_sent_to_a_pair_change_nothing(
    lab: Lab, market: Market, chain: Chain, venue: UniswapV2
) -> None:
    """The router goes by reserves: what somebody gave a pair is neither quoted nor does it spoil a quote."""
    one, other, _ = market.tokens
    path = Path((one.address, other.address), (FEE_PPM,))
    head = await lab.node.head()
    before = await chain.read(venue.quote(path, 1000), head.hash)
    factory = Contract(
        lab.node, lab.world.uniswap_v2.factory, published("@uniswap/v2-core/build/UniswapV2Factory.json").abi
    )
    pair = await factory.read("getPair", one.address, other.address)
    await mint(lab.node, lab.world.cast, other, pair, 10**20)
    head = await lab.node.head()
    quote = await chain.read(venue.quote(path, 1000), head.hash)
    assert isinstance(quote, Quote) and quote == before
    assert (await swap(market, venue, quote))[:2] == (quote.amount_in_raw, quote.amount_out_raw)
