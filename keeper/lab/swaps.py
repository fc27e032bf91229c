"""What the own contracts of pools say of swaps: QuoterV2, and Uniswap V2's router, beside the keeper's own quotes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise, product
from typing import Final

from keeper import abi
from keeper.lab.artifacts import published
from keeper.lab.unhealthy import Case
from keeper.seams import Reads, Venue, each, together
from keeper.types import Address, Call, Path, Plan, Quote, Refusal, Reverted
from keeper.venues.uniswap_v2 import FEE_PPM
from keeper.venues.uniswap_v3 import pack

V3, V2 = 3, 2  # versions of Uniswap
_LEG_GAS: Final = 90_000  # the planner's, besides what a swap itself takes
_V2_ROUTER: Final = "@uniswap/v2-periphery/build/UniswapV2Router02.json"

Hop = tuple[int, Address, int, Address]  # a pool in a direction


@dataclass(frozen=True, slots=True)
class Route:
    """A path through the pools of one version of Uniswap."""

    version: int
    path: Path

    @property
    def hops(self) -> frozenset[Hop]:
        """Its pools, each in its direction."""
        hops = zip(self.path.tokens[:-1], self.path.fees, self.path.tokens[1:], strict=True)
        return frozenset((self.version, *hop) for hop in hops)


@dataclass(frozen=True, slots=True)
class Swap:
    """An amount by a route: what comes out of it if `buy`, else what goes in."""

    route: Route
    raw: int
    buy: bool


@dataclass(frozen=True, slots=True)
class Told:
    """What a swap takes in or gives out, and its gas."""

    other_raw: int
    gas: int


@dataclass(slots=True)
class Pools:
    """What the pools' own contracts say of swaps at the case's block, each asked once.

    None where they give nothing, or the keeper does not look so far.
    """

    case: Case
    told: dict[Swap, Told | None] = field(default_factory=dict)
    _routes: dict[tuple[Address, Address], list[Route]] = field(default_factory=dict)

    def routes(self, token_in: Address, token_out: Address) -> list[Route]:
        """All that there are: direct, and over one token between."""
        if (token_in, token_out) not in self._routes:
            paths = [(token_in, token_out), *((token_in, each, token_out) for each in self.case.between)]
            self._routes[token_in, token_out] = [
                Route(version, Path(tokens, fees))
                for version in (V3, V2)
                for tokens in paths
                if len(set(tokens)) == len(tokens)
                for fees in product(*(self._fees(version, *hop) for hop in pairwise(tokens)))
            ]
        return self._routes[token_in, token_out]

    def _fees(self, version: int, one: Address, other: Address) -> list[int]:
        world = self.case.lab.world
        opened = world.uniswap_v3.pools if version == V3 else world.uniswap_v2.pairs
        pair = {one, other}
        found = [pool.fee for pool in opened if {pool.token0.address, pool.token1.address} == pair]
        return found if version == V3 else [FEE_PPM for _ in found]

    async def ask(self, swaps: Iterable[Swap]) -> None:
        """Ask what was not asked before."""
        new = [swap for swap in dict.fromkeys(swaps) if swap not in self.told]
        answers = await self.case.read(each([self._call(swap) for swap in new]))
        quotes = await self.case.read(self._reckoned(new))
        for swap, answer, quote in zip(new, answers, quotes, strict=True):
            self.told[swap] = None
            if isinstance(quote, Quote):
                assert not isinstance(answer, Reverted), f"{quote} is quoted, which reverts"
                amounts = _function(swap.route.version, swap.buy).decode(answer)
                other_raw = amounts[0]
                if swap.route.version == V2:
                    other_raw = amounts[0][0 if swap.buy else -1]
                ours_raw = quote.amount_in_raw if swap.buy else quote.amount_out_raw
                assert other_raw == ours_raw, f"{quote} is {other_raw} by the pools' own contracts"
                self.told[swap] = Told(other_raw, quote.gas + _LEG_GAS)

    async def require_true(self, answer: Plan) -> None:
        """Hold a plan's quotes to the pools, and use no pool twice in a direction; AssertionError if not."""
        routers = {self.case.v3.router: V3, self.case.v2.router: V2}
        swaps = [
            Swap(
                Route(routers[leg.router], quote.path),
                quote.amount_out_raw if quote.exact_out else quote.amount_in_raw,
                quote.exact_out,
            )
            for leg, quote in zip(answer.legs, answer.quotes, strict=True)
        ]
        await self.ask(swaps)
        for swap, quote in zip(swaps, answer.quotes, strict=True):
            told = self.told[swap]
            assert told and told.other_raw == (quote.amount_in_raw if swap.buy else quote.amount_out_raw), (
                quote
            )
        hops = [hop for swap in swaps for hop in swap.route.hops]
        assert len(set(hops)) == len(hops), f"a pool is used twice in a direction: {answer}"

    def _call(self, swap: Swap) -> Call:
        world, path = self.case.lab.world, swap.route.path
        function = _function(swap.route.version, swap.buy)
        if swap.route.version == V3:
            return function.call(world.uniswap_v3.quoter, pack(path, reverse=swap.buy), swap.raw)
        return function.call(world.uniswap_v2.router, swap.raw, list(path.tokens))

    def _reckoned(self, swaps: Sequence[Swap]) -> Reads[list[Quote | Refusal]]:
        """The keeper's own quotes, for their gas."""
        venues: dict[int, Venue] = {V3: self.case.v3, V2: self.case.v2}
        for version, venue in venues.items():
            paths = {swap.route.path for swap in swaps if swap.route.version == version}
            yield from venue.sync(paths, self.case.ctx.at)
        asked = [
            venues[swap.route.version].quote(swap.route.path, swap.raw, exact_out=swap.buy) for swap in swaps
        ]
        return (yield from together(asked))


@cache
def _function(version: int, buy: bool) -> abi.Function:
    if version == V3:
        return abi.load("QuoterV2").function("quoteExactOutput" if buy else "quoteExactInput")
    return published(_V2_ROUTER).abi.function("getAmountsIn" if buy else "getAmountsOut")
