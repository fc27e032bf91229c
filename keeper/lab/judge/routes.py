"""Every way to trade one token for another that the configured exchanges have, and what each gives.

A quote is Uniswap's own code run at the pinned head, by QuoterV2 or by version 2's router; it is what the router would
do there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Final, NamedTuple

from keeper.abi import Abi, load
from keeper.lab.judge.evidence import Evidence, Step
from keeper.lab.judge.terms import Exchange, Pairs
from keeper.types import ZERO_ADDRESS, Address, Token

_FACTORY: Final = load("UniswapV3Factory")
_QUOTER: Final = load("QuoterV2")
_ROUTER: Final = load("SwapRouter")
_PAIRS: Final = load("UniswapV2Factory")
_PAIR: Final = load("UniswapV2Pair")
_ERC20: Final = load("Erc20")
_POOL: Final = Abi.from_json(
    [
        {
            "type": "function",
            "name": "slot0",
            "inputs": [],
            "outputs": [
                {"name": name, "type": kind}
                for name, kind in (
                    ("sqrtPriceX96", "uint160"),
                    ("tick", "int24"),
                    ("observationIndex", "uint16"),
                    ("observationCardinality", "uint16"),
                    ("observationCardinalityNext", "uint16"),
                    ("feeProtocol", "uint8"),
                    ("unlocked", "bool"),
                )
            ],
        }
    ]
)
_QUOTING, _SWAPPING = ("uint256", "address[]"), ("uint256", "uint256", "address[]", "address", "uint256")
_PAIR_ROUTER: Final = Abi.from_json(
    [
        {
            "type": "function",
            "name": name,
            "inputs": [{"name": "", "type": kind} for kind in kinds],
            "outputs": [{"name": "amounts", "type": "uint256[]"}],
        }
        for name, kinds in (
            ("getAmountsOut", _QUOTING),
            ("getAmountsIn", _QUOTING),
            ("swapExactTokensForTokens", _SWAPPING),
            ("swapTokensForExactTokens", _SWAPPING),
        )
    ]
)
_Q96: Final = 2**96
_FEE_UNIT: Final = 10**6
_PAIR_FEE: Final = 3_000  # of every pair
_PAIR_GAS: Final = 70_000  # of one, on paper; what counts in the end is what ran
# Uniswap's TickMath: a pool that ends here ran out of liquidity before the amount was traded.
_LOWEST_PRICE, _HIGHEST_PRICE = 4295128739 + 1, 1461446703485210103287273052203988822378723970342 - 1
_DEADLINE_S: Final = 2**40
_QUOTES_TOGETHER: Final = 40
_ROUNDING: Final = 1 + 1e-9  # floats only bound from above here


@dataclass(frozen=True, slots=True, eq=False)
class Hop:
    """One pool in one direction; `rate` is raw out per raw in before the trade moves the price, fee taken."""

    pool: Address
    token_in: Token
    token_out: Token
    fee: int
    rate: float


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One or two hops through one exchange."""

    exchange: Exchange | Pairs
    hops: tuple[Hop, ...]

    @property
    def rate(self) -> float:
        """An upper bound on raw out per raw in: no trade is filled better than the prices it starts from."""
        rate = _ROUNDING
        for hop in self.hops:
            rate *= hop.rate
        return rate

    @property
    def directions(self) -> frozenset[tuple[Address, Address]]:
        """The pools and which token goes into each."""
        return frozenset((hop.pool, hop.token_in.address) for hop in self.hops)

    @property
    def tokens(self) -> list[Address]:
        """The tokens in their order."""
        return [self.hops[0].token_in.address, *(hop.token_out.address for hop in self.hops)]

    def packed(self, *, backwards: bool) -> bytes:
        """The path as version 3's periphery reads it; exact outputs are told backwards."""
        tokens = self.tokens
        fees = [hop.fee.to_bytes(3, "big") for hop in self.hops]
        if backwards:
            tokens, fees = tokens[::-1], fees[::-1]
        return tokens[0] + b"".join(fee + token for fee, token in zip(fees, tokens[1:], strict=True))

    def __str__(self) -> str:
        return self.hops[0].token_in.symbol + "".join(
            f" -{'v2' if isinstance(self.exchange, Pairs) else hop.fee}-> {hop.token_out.symbol}"
            for hop in self.hops
        )


class Order(NamedTuple):
    """An amount to trade over a route: exactly in, or exactly out."""

    route: Route
    amount_raw: int
    exact_out: bool


@dataclass(frozen=True, slots=True)
class Trade:
    """An order and what it comes to; `gas` is the pools' share of it."""

    order: Order
    amount_in_raw: int
    amount_out_raw: int
    gas: int

    def steps(self, trader: Address) -> list[Step]:
        """The approval and the swap, as the router takes them."""
        order, token_in = self.order, self.order.route.hops[0].token_in.address
        router = order.route.exchange.router
        path = order.route.packed(backwards=order.exact_out)
        if isinstance(order.route.exchange, Pairs):
            swap = self._swap_of_pairs(trader)
        elif order.exact_out:
            params = (path, trader, _DEADLINE_S, self.amount_out_raw, self.amount_in_raw)
            swap = _ROUTER.function("exactOutput").encode(params)
        else:
            swap = _ROUTER.function("exactInput").encode((path, trader, _DEADLINE_S, self.amount_in_raw, 0))
        approval = _ERC20.function("approve").encode(router, self.amount_in_raw)
        return [Step(trader, token_in, approval), Step(trader, router, swap)]

    def _swap_of_pairs(self, trader: Address) -> bytes:
        rest = (self.order.route.tokens, trader, _DEADLINE_S)
        if self.order.exact_out:
            amounts = (self.amount_out_raw, self.amount_in_raw)
            return _PAIR_ROUTER.function("swapTokensForExactTokens").encode(*amounts, *rest)
        return _PAIR_ROUTER.function("swapExactTokensForTokens").encode(self.amount_in_raw, 0, *rest)

    def __str__(self) -> str:
        return f"{'buy' if self.order.exact_out else 'sell'} {self.order.route}"


class Exchanges:
    """The routes among some tokens, and quotes over them, each asked once."""

    def __init__(
        self, evidence: Evidence, hops: Sequence[tuple[Exchange | Pairs, Hop]], middles: Sequence[Token]
    ) -> None:
        self._evidence = evidence
        self._hops: dict[tuple[Exchange | Pairs, Token, Token], list[Hop]] = {}
        for exchange, hop in hops:
            self._hops.setdefault((exchange, hop.token_in, hop.token_out), []).append(hop)
        self._exchanges = tuple(dict.fromkeys(exchange for exchange, _ in hops))
        self._middles = tuple(middles)
        self._trades: dict[Order, Trade | None] = {}
        self._routes: dict[tuple[Token, Token], tuple[Route, ...]] = {}

    @property
    def quoted(self) -> int:
        """How many orders were quoted."""
        return len(self._trades)

    def routes(self, token_in: Token, token_out: Token) -> tuple[Route, ...]:
        """Every direct route and every route over one of the middle tokens."""
        known = self._routes.get((token_in, token_out))
        if known is None:
            known = self._routes[token_in, token_out] = tuple(self._find(token_in, token_out))
        return known

    def best_rate(self, token_in: Token, token_out: Token) -> float:
        """The best bound on raw out per raw in; 0 without a route."""
        return max((route.rate for route in self.routes(token_in, token_out)), default=0.0)

    async def trades(self, orders: Iterable[Order]) -> dict[Order, Trade | None]:
        """What each order comes to; None where the pools cannot fill it."""
        wanted = list(dict.fromkeys(orders))
        fresh = [order for order in wanted if order not in self._trades]
        # A quote undoes what it tried, so many may follow one another in one simulated block, which is much faster.
        chunks = [fresh[first : first + _QUOTES_TOGETHER] for first in range(0, len(fresh), _QUOTES_TOGETHER)]
        answers = await self._evidence.simulate([[_question(order) for order in chunk] for chunk in chunks])
        for chunk, done in zip(chunks, answers, strict=True):
            for order, step in zip(chunk, done, strict=True):
                self._trades[order] = _trade(order, step.output) if step.ok else None
        return {order: self._trades[order] for order in wanted}

    def _find(self, token_in: Token, token_out: Token) -> Iterable[Route]:
        for exchange in self._exchanges:
            for hop in self._hops.get((exchange, token_in, token_out), ()):
                yield Route(exchange, (hop,))
            for middle in self._middles:
                if middle not in (token_in, token_out):
                    first = self._hops.get((exchange, token_in, middle), ())
                    second = self._hops.get((exchange, middle, token_out), ())
                    yield from (Route(exchange, hops) for hops in product(first, second))


async def survey(
    evidence: Evidence,
    exchanges: Sequence[Exchange | Pairs],
    tokens: Iterable[Token],
    middles: Sequence[Token],
) -> Exchanges:
    """Find every pool among the tokens and where its price stands."""
    pairs = list(combinations(sorted({*tokens, *middles}, key=lambda token: token.address), 2))
    hops: list[tuple[Exchange | Pairs, Hop]] = []
    for exchange in exchanges:
        if isinstance(exchange, Pairs):
            found = await _pairs(evidence, exchange, pairs)
        else:
            found = await _pools(evidence, exchange, pairs)
        hops += [(exchange, hop) for hop in found]
    return Exchanges(evidence, hops, middles)


async def _pools(evidence: Evidence, exchange: Exchange, pairs: Sequence[tuple[Token, Token]]) -> list[Hop]:
    """Both directions of every pool of version 3."""
    asked = [(*pair, fee) for pair in pairs for fee in exchange.fee_tiers]
    found = await evidence.read_all(
        _FACTORY.function("getPool"),
        [(exchange.factory, one.address, other.address, fee) for one, other, fee in asked],
    )
    pools = [(pool, *rest) for pool, rest in zip(found, asked, strict=True) if pool != ZERO_ADDRESS]
    slots = await evidence.read_all(_POOL.function("slot0"), [(pool,) for pool, *_ in pools])
    hops: list[Hop] = []
    for (pool, token0, token1, fee), slot in zip(pools, slots, strict=True):
        if slot[0]:
            price, kept = (slot[0] / _Q96) ** 2, 1 - fee / _FEE_UNIT
            hops.append(Hop(pool, token0, token1, fee, price * kept))
            hops.append(Hop(pool, token1, token0, fee, kept / price))
    return hops


async def _pairs(evidence: Evidence, exchange: Pairs, pairs: Sequence[tuple[Token, Token]]) -> list[Hop]:
    """Both directions of every pair of version 2."""
    found = await evidence.read_all(
        _PAIRS.function("getPair"), [(exchange.factory, one.address, other.address) for one, other in pairs]
    )
    pools = [(pool, *pair) for pool, pair in zip(found, pairs, strict=True) if pool != ZERO_ADDRESS]
    reserves = await evidence.read_all(_PAIR.function("getReserves"), [(pool,) for pool, *_ in pools])
    hops: list[Hop] = []
    for (pool, token0, token1), (reserve0, reserve1, *_) in zip(pools, reserves, strict=True):
        if reserve0 and reserve1:
            price, kept = reserve1 / reserve0, 1 - _PAIR_FEE / _FEE_UNIT
            hops.append(Hop(pool, token0, token1, _PAIR_FEE, price * kept))
            hops.append(Hop(pool, token1, token0, _PAIR_FEE, kept / price))
    return hops


def _question(order: Order) -> Step:
    route, exchange = order.route, order.route.exchange
    if isinstance(exchange, Pairs):
        name = "getAmountsIn" if order.exact_out else "getAmountsOut"
        data = _PAIR_ROUTER.function(name).encode(order.amount_raw, route.tokens)
        return Step(ZERO_ADDRESS, exchange.router, data)
    name = "quoteExactOutput" if order.exact_out else "quoteExactInput"
    path = route.packed(backwards=order.exact_out)
    return Step(ZERO_ADDRESS, exchange.quoter, _QUOTER.function(name).encode(path, order.amount_raw))


def _trade(order: Order, answer: bytes) -> Trade | None:
    if isinstance(order.route.exchange, Pairs):
        name = "getAmountsIn" if order.exact_out else "getAmountsOut"
        amounts = _PAIR_ROUTER.function(name).one(answer)
        return (
            Trade(order, amounts[0], amounts[-1], _PAIR_GAS * len(order.route.hops)) if amounts[-1] else None
        )
    name = "quoteExactOutput" if order.exact_out else "quoteExactInput"
    other_raw, prices, _, gas = _QUOTER.function(name).decode(answer)
    if not other_raw or any(price in (_LOWEST_PRICE, _HIGHEST_PRICE) for price in prices):
        return None
    paid, got = (other_raw, order.amount_raw) if order.exact_out else (order.amount_raw, other_raw)
    return Trade(order, paid, got, gas)
