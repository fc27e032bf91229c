"""Uniswap V2: routes over its pairs, quotes from their reserves, legs for its Router02 (v2-periphery 1.1.0).

A quote is what the router does at the same reserves (UniswapV2Library.getAmountsOut and getAmountsIn): it trades on
reserves, not on balances, so what others sent to a pair changes nothing. An exact input is always taken whole, and an
exact output is there or it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from keeper import abi
from keeper.errors import AdapterError
from keeper.fixed import MAX_UINT256
from keeper.seams import ConfigAddress, Reads, VenueKind
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    BlockTime,
    Path,
    Quote,
    Refusal,
    Reverted,
    SwapLeg,
    hex_of,
)
from keeper.venues.snapshot import Snapshot

_GET_PAIR: Final = abi.load("UniswapV2Factory").function("getPair")
_RESERVES: Final = abi.load("UniswapV2Pair").function("getReserves")

FEE_PPM: Final = 3_000  # of every pair: 997 thousandths of what goes in count
_MAX_RESERVE: Final = 2**112 - 1
# What a swap takes at the router for each of its pairs: rounded up from 79 000, but for what a pair writes for the
# first time (35 000), which a leg's own margin covers.
_HOP_GAS: Final = 80_000

_Pair = tuple[Address, Address]  # token0 < token1
_Reserves = tuple[int, int]


class UniswapV2Config(BaseModel):
    """`[[venues]] kind = "uniswap-v2"`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["uniswap-v2"] = "uniswap-v2"
    factory: ConfigAddress
    router: ConfigAddress


class UniswapV2:
    """One deployment of Uniswap V2 (or an unchanged copy); `intermediates` are tokens two-hop routes may pass."""

    kind = VenueKind.UNISWAP_V2

    def __init__(self, config: UniswapV2Config, intermediates: Sequence[Address] = ()) -> None:
        self._factory = config.factory
        self.router: Address = config.router
        self._intermediates = tuple(dict.fromkeys(intermediates))
        self._addresses: dict[_Pair, Address] = {}  # ZERO_ADDRESS: the factory knows no such pair
        self._reserves = Snapshot(self._read)

    def contracts(self) -> Mapping[str, Address]:
        """Router and factory; pairs are the factory's own code."""
        return {"router": self.router, "factory": self._factory}

    def paths(self, token_in: Address, token_out: Address, *, thorough: bool = False) -> Sequence[Path]:
        """The direct route and those through each intermediate, without pairs known to be missing.

        A thorough look asks the factory for those again.
        """
        if token_in == token_out:
            return ()
        middles = [token for token in self._intermediates if token not in (token_in, token_out)]
        routes = [(token_in, token_out), *((token_in, middle, token_out) for middle in middles)]
        paths = [Path(tokens, (FEE_PPM,) * (len(tokens) - 1)) for tokens in routes]
        if thorough:
            for pair in {pair for path in paths for pair in _pairs(path)}:
                if self._addresses.get(pair) == ZERO_ADDRESS:
                    del self._addresses[pair]
        return [
            path for path in paths if all(self._addresses.get(pair) != ZERO_ADDRESS for pair in _pairs(path))
        ]

    def sync(self, paths: Iterable[Path], at: BlockTime) -> Reads[None]:
        """Read the reserves of every pair of these routes as of `at`: one round, two for pairs that are new.

        Raises `AdapterError` when the factory answers what it never would (a wrong address).
        """
        yield from self._reserves.sync((pair for path in paths for pair in _pairs(path)), at)

    def quote(self, path: Path, amount_raw: int, *, exact_out: bool = False) -> Reads[Quote | Refusal]:
        """What the router would give for exactly `amount_raw` in, or take for exactly that out.

        As of the block last synced; a route with a pair that was not synced is read at whichever block this is asked
        at, and not kept. Refuses with `no_amount`, `no_pool` or `no_liquidity`.
        """
        if amount_raw <= 0:
            return _refused("no_amount", path, amount_raw, exact_out)
        pairs = _pairs(path)
        if any(self._addresses.get(pair) == ZERO_ADDRESS for pair in pairs):
            return _refused("no_pool", path, amount_raw, exact_out)
        reserves = yield from self._reserves.of(pairs)
        if not all(pair in reserves for pair in pairs):
            return _refused("no_pool", path, amount_raw, exact_out)
        other_raw = amount_raw
        hops = list(zip(path.tokens, pairs, strict=False))
        for token_in, pair in reversed(hops) if exact_out else hops:
            into, out_of = reserves[pair] if token_in == pair[0] else reserves[pair][::-1]
            other_raw = (
                amount_in(other_raw, into, out_of) if exact_out else amount_out(other_raw, into, out_of)
            )
            if not other_raw:
                return _refused("no_liquidity", path, amount_raw, exact_out)
        amount_in_raw, amount_out_raw = (other_raw, amount_raw) if exact_out else (amount_raw, other_raw)
        return Quote(path, exact_out, amount_in_raw, amount_out_raw, _HOP_GAS * len(pairs))

    def swap_leg(self, quote: Quote, *, whole_balance: bool, limit_raw: int) -> SwapLeg:
        """The leg for the Liquidator; the path runs from the token sold to the token bought for both kinds."""
        exact_amount_raw = quote.amount_out_raw if quote.exact_out else quote.amount_in_raw
        return SwapLeg(
            router=self.router,
            path=b"".join(quote.path.tokens),
            exact_out=quote.exact_out,
            amount_raw=MAX_UINT256 if whole_balance else exact_amount_raw,
            limit_raw=limit_raw,
        )

    def _read(self, pair: _Pair, known: dict[_Pair, _Reserves]) -> Reads[None]:
        """Read a pair's reserves into `known`, if the factory knows it."""
        address = self._addresses.get(pair)
        if address is None:
            (answer,) = yield [_GET_PAIR.call(self._factory, *pair)]
            if isinstance(answer, Reverted):
                asked = hex_of(self._factory)
                raise AdapterError(
                    f"{asked} is no Uniswap V2 factory: getPair reverted; check venues.factory."
                )
            address = self._addresses[pair] = _GET_PAIR.one(answer)
        if address == ZERO_ADDRESS:
            return
        (answer,) = yield [_RESERVES.call(address)]
        if isinstance(answer, Reverted) or not answer:
            # its creation was undone by a reorganisation
            self._addresses.pop(pair, None)
            return
        reserve0, reserve1, _ = _RESERVES.decode(answer)
        known[pair] = (reserve0, reserve1)


def amount_out(amount_raw: int, into: int, out_of: int) -> int:
    """What exactly `amount_raw` in brings at these reserves (UniswapV2Library.getAmountOut).

    0 where the pair is empty or could not hold so much (UniswapV2Pair._update).
    """
    if not into or not out_of or into + amount_raw > _MAX_RESERVE:
        return 0
    counted = amount_raw * 997
    return counted * out_of // (into * 1000 + counted)


def amount_in(amount_raw: int, into: int, out_of: int) -> int:
    """What exactly `amount_raw` out takes at these reserves (UniswapV2Library.getAmountIn).

    0 where the pair has not more than that or could not hold what it takes (UniswapV2Pair._update).
    """
    if not into or amount_raw >= out_of:
        return 0
    needed_raw = into * amount_raw * 1000 // ((out_of - amount_raw) * 997) + 1
    return needed_raw if into + needed_raw <= _MAX_RESERVE else 0


def _refused(reason: str, path: Path, amount_raw: int, exact_out: bool) -> Refusal:
    about = {"path": " ".join(map(hex_of, path.tokens)), "amount_raw": amount_raw, "exact_out": exact_out}
    return Refusal("plan", reason, about)


def _pairs(path: Path) -> list[_Pair]:
    return [(min(hop), max(hop)) for hop in zip(path.tokens, path.tokens[1:], strict=False)]
