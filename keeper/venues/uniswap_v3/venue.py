"""Uniswap V3: routes over its pools, quotes reckoned from their state, legs for its SwapRouter (v3-periphery 1.4.4).

A quote equals what the router does at the same state. Where liquidity runs out a pool stops, and for an exact input
the router would then leave what it could not sell: the first hop's input with its caller, a later hop's input inside
the router, where anybody may take it. Such a quote is refused, as is one that leads further from the price than
`swapping.REACH_WORDS`.

No quoter is asked. `UniswapV3Config.quoter` stays what the checks before a start and the upgrade watch look at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    BlockTime,
    Path,
    Quote,
    Refusal,
    Reverted,
    SwapLeg,
    hex_of,
)
from keeper.venues.snapshot import Snapshot
from keeper.venues.uniswap_v3.state import PoolState, first_questions, first_state, gone

_GET_POOL: Final = abi.load("UniswapV3Factory").function("getPool")

# Of a two-hop route's tiers only the deepest are worth a quote.
_TIERS_PER_HOP: Final = 2

# What a swap takes at the router for each of its pools, besides the stops on its way: rounded up from 84 000, but for
# what a pool writes for the first time (26 000), which a leg's own margin covers.
_HOP_GAS: Final = 105_000

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

    Which pools exist and how deep they are is learnt when they are read, and only narrows `paths` that are not
    thorough.
    """

    kind = VenueKind.UNISWAP_V3

    def __init__(self, config: UniswapV3Config, intermediates: Sequence[Address] = ()) -> None:
        self._factory = config.factory
        self._quoter = config.quoter
        self.router: Address = config.router
        self._fees = config.fee_tiers
        self._intermediates = tuple(dict.fromkeys(intermediates))
        self._addresses: dict[_Pool, Address] = {}  # ZERO_ADDRESS: the factory knows no such pool
        self._seen: dict[_Pool, PoolState] = {}  # as last read, at whichever block
        self._states = Snapshot(self._read)

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

    def sync(self, paths: Iterable[Path], at: BlockTime) -> Reads[None]:
        """Read every pool of these routes as of `at`, so that quotes there take no round but for very large amounts.

        One round for pools that were read before, unless their price moved far; up to four for others. Raises
        `AdapterError` when factory or pools answer what they never would (a wrong address).
        """
        yield from self._states.sync((pool for path in paths for pool in _pools(path)), at)

    def quote(self, path: Path, amount_raw: int, *, exact_out: bool = False) -> Reads[Quote | Refusal]:
        """What the router would give for exactly `amount_raw` in, or take for exactly that out.

        As of the block last synced; a route with a pool that was not synced is read at whichever block this is asked
        at, and not kept. Refuses with `no_amount`, `no_pool` or `no_liquidity`.
        """
        if amount_raw <= 0:
            return _refused("no_amount", path, amount_raw, exact_out)
        pools = _pools(path)
        if any(self._addresses.get(pool) == ZERO_ADDRESS for pool in pools):
            return _refused("no_pool", path, amount_raw, exact_out)
        states = yield from self._states.of(pools)
        if not all(pool in states for pool in pools):
            return _refused("no_pool", path, amount_raw, exact_out)
        gas = _HOP_GAS * len(pools)
        other_raw = amount_raw
        hops = list(zip(path.tokens, pools, strict=False))
        for token_in, pool in reversed(hops) if exact_out else hops:
            state = states[pool]
            lane = state.lane(down=token_in == pool[0])
            swapped = None
            while state.sqrt_price_x96 and not (swapped := lane.swap(other_raw, exact_out=exact_out)):
                yield from state.learn(*lane.wanted())
            if swapped is None or not swapped.complete:
                partial_raw = swapped.taken_raw if swapped else 0
                return _refused("no_liquidity", path, amount_raw, exact_out, partial_raw=partial_raw)
            other_raw = swapped.given_raw if exact_out else swapped.taken_raw
            if not other_raw:
                return _refused("no_liquidity", path, amount_raw, exact_out, partial_raw=0)
            gas += swapped.gas
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

    def _read(self, pool: _Pool, states: dict[_Pool, PoolState]) -> Reads[None]:
        """Read a pool into `states`, if the factory knows it."""
        address = self._addresses.get(pool)
        if address is None:
            (answer,) = yield [_GET_POOL.call(self._factory, *pool)]
            if isinstance(answer, Reverted):
                asked = hex_of(self._factory)
                raise AdapterError(
                    f"{asked} is no Uniswap V3 factory: getPool reverted; check venues.factory."
                )
            address = self._addresses[pool] = _GET_POOL.one(answer)
        if address == ZERO_ADDRESS:
            return
        known = self._seen.get(pool)
        answers = yield known.questions() if known else first_questions(address)
        if gone(answers):
            # its creation was undone by a reorganisation
            self._addresses.pop(pool, None)
            self._seen.pop(pool, None)
            return
        state = known.renewed(answers) if known else first_state(address, pool[2], answers)
        self._seen[pool] = state
        yield from state.settle()
        states[pool] = state

    def _tiers(self, one: Address, other: Address, *, deepest: bool = False) -> list[int]:
        """Fee tiers whose pool may exist, deepest for its fee first; only the deepest of those seen, if asked so."""
        pools = [_pool(one, other, fee) for fee in self._fees]
        unseen = [
            pool for pool in pools if pool not in self._seen and self._addresses.get(pool) != ZERO_ADDRESS
        ]
        seen = [pool for pool in pools if pool in self._seen]
        seen.sort(key=lambda pool: self._seen[pool].liquidity // pool[2], reverse=True)
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


def _refused(reason: str, path: Path, amount_raw: int, exact_out: bool, **numbers: int) -> Refusal:
    about = {"path": path_text(path), "amount_raw": amount_raw, "exact_out": exact_out}
    return Refusal("plan", reason, {**about, **numbers})


def _pools(path: Path) -> list[_Pool]:
    return [_pool(*hop) for hop in zip(path.tokens, path.tokens[1:], path.fees, strict=False)]


def _pool(one: Address, other: Address, fee: int) -> _Pool:
    return (one, other, fee) if one < other else (other, one, fee)
