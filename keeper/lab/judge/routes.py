"""Every way to trade one token for another that the configured exchanges have, and what each gives.

A quote is Uniswap's own pool code run by its QuoterV2 at the pinned head; it is what the router would do there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Final, NamedTuple

from keeper.abi import Abi, load
from keeper.lab.judge.evidence import Evidence, Step
from keeper.lab.judge.terms import Exchange
from keeper.types import ZERO_ADDRESS, Address, Token

_FACTORY: Final = load("UniswapV3Factory")
_QUOTER: Final = load("QuoterV2")
_ROUTER: Final = load("SwapRouter")
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
_Q96: Final = 2**96
_FEE_UNIT: Final = 10**6
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

    exchange: Exchange
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

    def packed(self, *, backwards: bool) -> bytes:
        """The path as Uniswap's periphery reads it; exact outputs are told backwards."""
        tokens = [self.hops[0].token_in.address, *(hop.token_out.address for hop in self.hops)]
        fees = [hop.fee.to_bytes(3, "big") for hop in self.hops]
        if backwards:
            tokens, fees = tokens[::-1], fees[::-1]
        return tokens[0] + b"".join(fee + token for fee, token in zip(fees, tokens[1:], strict=True))

    def __str__(self) -> str:
        return self.hops[0].token_in.symbol + "".join(
            f" -{hop.fee}-> {hop.token_out.symbol}" for hop in self.hops
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
        if order.exact_out:
            params = (path, trader, _DEADLINE_S, self.amount_out_raw, self.amount_in_raw)
            swap = _ROUTER.function("exactOutput").encode(params)
        else:
            swap = _ROUTER.function("exactInput").encode((path, trader, _DEADLINE_S, self.amount_in_raw, 0))
        approval = _ERC20.function("approve").encode(router, self.amount_in_raw)
        return [Step(trader, token_in, approval), Step(trader, router, swap)]

    def __str__(self) -> str:
        return f"{'buy' if self.order.exact_out else 'sell'} {self.order.route}"


class Exchanges:
    """The routes among some tokens, and quotes over them, each asked once."""

    def __init__(
        self, evidence: Evidence, hops: Sequence[tuple[Exchange, Hop]], middles: Sequence[Token]
    ) -> None:
        self._evidence = evidence
        self._hops: dict[tuple[Exchange, Token, Token], list[Hop]] = {}
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
    evidence: Evidence, exchanges: Sequence[Exchange], tokens: Iterable[Token], middles: Sequence[Token]
) -> Exchanges:
    """Find every pool among the tokens and where its price stands."""
    pairs = list(combinations(sorted({*tokens, *middles}, key=lambda token: token.address), 2))
    asked = [(exchange, *pair, fee) for exchange in exchanges for pair in pairs for fee in exchange.fee_tiers]
    found = await evidence.read_all(
        _FACTORY.function("getPool"),
        [(exchange.factory, one.address, other.address, fee) for exchange, one, other, fee in asked],
    )
    pools = [(pool, *rest) for pool, rest in zip(found, asked, strict=True) if pool != ZERO_ADDRESS]
    slots = await evidence.read_all(_POOL.function("slot0"), [(pool,) for pool, *_ in pools])
    hops: list[tuple[Exchange, Hop]] = []
    for (pool, exchange, token0, token1, fee), slot in zip(pools, slots, strict=True):
        if slot[0]:
            price = (slot[0] / _Q96) ** 2
            kept = 1 - fee / _FEE_UNIT
            hops.append((exchange, Hop(pool, token0, token1, fee, price * kept)))
            hops.append((exchange, Hop(pool, token1, token0, fee, kept / price)))
    return Exchanges(evidence, hops, middles)


def _question(order: Order) -> Step:
    name = "quoteExactOutput" if order.exact_out else "quoteExactInput"
    path = order.route.packed(backwards=order.exact_out)
    quoter = order.route.exchange.quoter
    return Step(ZERO_ADDRESS, quoter, _QUOTER.function(name).encode(path, order.amount_raw))


def _trade(order: Order, answer: bytes) -> Trade | None:
    name = "quoteExactOutput" if order.exact_out else "quoteExactInput"
    other_raw, prices, _, gas = _QUOTER.function(name).decode(answer)
    if not other_raw or any(price in (_LOWEST_PRICE, _HIGHEST_PRICE) for price in prices):
        return None
    paid, got = (other_raw, order.amount_raw) if order.exact_out else (order.amount_raw, other_raw)
    return Trade(order, paid, got, gas)
