"""Uniswap V3: routes over its pools, quotes from its QuoterV2, legs for its SwapRouter (v3-periphery 1.4.4).

A quote equals what the router does at the same state, with one trap: for an exact input the pool stops at the price
limit when liquidity runs out and QuoterV2 still answers with the partial output. The router would then leave what it
could not sell: the first hop's input with its caller, a later hop's input inside the router, where anybody may take
it. Such a quote is recognised by a price at the limit (QuoterV2's `sqrtPriceX96AfterList`) and refused. For an exact
output both contracts revert by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from keeper import abi
from keeper.errors import AdapterError
from keeper.fixed import MAX_UINT256
from keeper.seams import ConfigAddress, Reads, VenueKind
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    Path,
    Quote,
    Refusal,
    Result,
    Reverted,
    SwapLeg,
    hex_of,
)

_FACTORY: Final = abi.load("UniswapV3Factory")
_POOL: Final = abi.load("UniswapV3Pool")
_QUOTER: Final = abi.load("QuoterV2")

# v3-core TickMath.MIN_SQRT_RATIO + 1 and MAX_SQRT_RATIO - 1: where a swap ends when liquidity runs out.
_PRICE_LIMITS: Final = (4295128740, 1461446703485210103287273052203988822378723970341)

# Of a two-hop route's tiers only the deepest are worth a quote.
_TIERS_PER_HOP: Final = 2

_GET_POOL: Final = _FACTORY.function("getPool")
_LIQUIDITY: Final = _POOL.function("liquidity")
_QUOTE_IN: Final = _QUOTER.function("quoteExactInput")
_QUOTE_OUT: Final = _QUOTER.function("quoteExactOutput")

_Pool = tuple[Address, Address, int]  # token0 < token1, fee
_FeeTier = Annotated[int, Field(gt=0, lt=1_000_000)]


class UniswapV3Config(BaseModel):
    """`[[venues]] kind = "uniswap-v3"`; fee tiers in millionths."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["uniswap-v3"] = "uniswap-v3"
    factory: ConfigAddress
    quoter: ConfigAddress
    router: ConfigAddress
    fee_tiers: Annotated[tuple[_FeeTier, ...], Field(min_length=1)] = (100, 500, 3000, 10_000)


class UniswapV3:
    """One deployment of Uniswap V3 (or an unchanged copy); `intermediates` are tokens two-hop routes may pass.

    Which pools exist and how deep they are is learnt with the quotes, in the same round, and only narrows `paths`
    that are not thorough.
    """

    kind = VenueKind.UNISWAP_V3

    def __init__(self, config: UniswapV3Config, intermediates: Sequence[Address] = ()) -> None:
        self._factory = config.factory
        self._quoter = config.quoter
        self.router: Address = config.router
        self._fees = config.fee_tiers
        self._intermediates = tuple(dict.fromkeys(intermediates))
        self._addresses: dict[_Pool, Address] = {}  # ZERO_ADDRESS: the factory knows no such pool
        self._depths: dict[_Pool, int] = {}  # liquidity in range when last seen

    def contracts(self) -> Mapping[str, Address]:
        """Router, quoter and factory; pools are the factory's own code."""
        return {"router": self.router, "quoter": self._quoter, "factory": self._factory}

    def paths(self, token_in: Address, token_out: Address, *, thorough: bool = False) -> Sequence[Path]:
        """Direct routes by every fee tier, then two-hop routes through each intermediate: by the deepest tiers, or by
        all if `thorough`, which also asks the factory again for pools it did not know.

        No pool is left out before it was seen.
        """
        if token_in == token_out:
            return ()
        middles = [token for token in self._intermediates if token not in (token_in, token_out)]
        if thorough:
            self._forget({token_in, token_out, *middles})
        direct = [Path((token_in, token_out), (fee,)) for fee in self._tiers(token_in, token_out)]
        through = [
            Path((token_in, middle, token_out), fees)
            for middle in middles
            for fees in product(
                self._tiers(token_in, middle, deepest=not thorough),
                self._tiers(middle, token_out, deepest=not thorough),
            )
        ]
        return (*direct, *through)

    def quote(self, path: Path, amount_raw: int, *, exact_out: bool = False) -> Reads[Quote | Refusal]:
        """What the router would give for exactly `amount_raw` in, or take for exactly that out.

        One round. Refuses with `no_pool` or `no_liquidity`; raises `AdapterError` when factory or quoter answer
        what they never would (a wrong address).
        """
        pools = [_pool(*hop) for hop in zip(path.tokens, path.tokens[1:], path.fees, strict=False)]
        about = {"path": path_text(path), "amount_raw": amount_raw, "exact_out": exact_out}
        if amount_raw <= 0:
            return Refusal("plan", "no_amount", about)
        located = [self._addresses.get(pool) for pool in pools]
        if ZERO_ADDRESS in located:
            return Refusal("plan", "no_pool", about)
        ask = _QUOTE_OUT if exact_out else _QUOTE_IN
        surveys = [
            _GET_POOL.call(self._factory, *pool) if address is None else _LIQUIDITY.call(address)
            for pool, address in zip(pools, located, strict=True)
        ]
        *surveyed, answer = yield [
            *surveys,
            ask.call(self._quoter, pack(path, reverse=exact_out), amount_raw),
        ]
        # what was asked is settled by `located`: another quote of the same round may have learnt the pool meanwhile
        found = [self._learn(*seen) for seen in zip(pools, located, surveyed, strict=True)]
        if not all(found):
            return Refusal("plan", "no_pool", about)
        if isinstance(answer, Reverted):
            return Refusal("plan", "no_liquidity", {**about, "revert": hex_of(answer.data)})
        other_raw, prices_after, _, gas = ask.decode(answer)
        if other_raw == 0 or any(price in _PRICE_LIMITS for price in prices_after):
            return Refusal("plan", "no_liquidity", {**about, "partial_raw": other_raw})
        amount_in_raw, amount_out_raw = (other_raw, amount_raw) if exact_out else (amount_raw, other_raw)
        return Quote(path, exact_out, amount_in_raw, amount_out_raw, gas)

    def swap_leg(self, quote: Quote, *, whole_balance: bool, limit_raw: int) -> SwapLeg:
        """The leg for the Liquidator; an exact output's path runs backwards, as the router wants it."""
        exact_amount_raw = quote.amount_out_raw if quote.exact_out else quote.amount_in_raw
        return SwapLeg(
            router=self.router,
            path=pack(quote.path, reverse=quote.exact_out),
            exact_out=quote.exact_out,
            amount_raw=MAX_UINT256 if whole_balance else exact_amount_raw,
            limit_raw=limit_raw,
        )

    def _learn(self, pool: _Pool, address: Address | None, answer: Result) -> bool:
        """Note what the factory (asked where `address` was unknown) or the pool answered: whether there is a pool."""
        if address is None:
            if isinstance(answer, Reverted):
                asked = hex_of(self._factory)
                raise AdapterError(
                    f"{asked} is no Uniswap V3 factory: getPool reverted; check venues.factory."
                )
            self._addresses[pool] = _GET_POOL.one(answer)
            return self._addresses[pool] != ZERO_ADDRESS
        if isinstance(answer, Reverted) or not answer:
            # its creation was undone by a reorganisation
            self._addresses.pop(pool, None)
            self._depths.pop(pool, None)
            return False
        self._depths[pool] = _LIQUIDITY.one(answer)
        return True

    def _tiers(self, one: Address, other: Address, *, deepest: bool = False) -> list[int]:
        """Fee tiers whose pool may exist, deepest for its fee first; only the deepest of those seen, if asked so."""
        pools = [_pool(one, other, fee) for fee in self._fees]
        unseen = [
            pool for pool in pools if pool not in self._depths and self._addresses.get(pool) != ZERO_ADDRESS
        ]
        seen = [pool for pool in pools if pool in self._depths]
        seen.sort(key=lambda pool: self._depths[pool] // pool[2], reverse=True)
        return [fee for _, _, fee in (*unseen, *(seen[:_TIERS_PER_HOP] if deepest else seen))]

    def _forget(self, tokens: set[Address]) -> None:
        """Ask the factory again for pools it did not know."""
        for pool in [pool for pool, address in self._addresses.items() if address == ZERO_ADDRESS]:
            if tokens.issuperset(pool[:2]):
                del self._addresses[pool]


def pack(path: Path, *, reverse: bool = False) -> bytes:
    """Tokens and fees packed as v3-periphery `Path` reads them; backwards for an exact output."""
    tokens, fees = (path.tokens[::-1], path.fees[::-1]) if reverse else (path.tokens, path.fees)
    return tokens[0] + b"".join(fee.to_bytes(3) + token for fee, token in zip(fees, tokens[1:], strict=True))


def path_text(path: Path) -> str:
    """A route for people: `0xaa… 500 0xbb… 3000 0xcc…`."""
    hops = (f" {fee} {hex_of(token)}" for fee, token in zip(path.fees, path.tokens[1:], strict=True))
    return hex_of(path.tokens[0]) + "".join(hops)


def _pool(one: Address, other: Address, fee: int) -> _Pool:
    return (one, other, fee) if one < other else (other, one, fee)
