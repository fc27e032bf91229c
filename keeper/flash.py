"""Flash loans that need no protocol of ours: Morpho Blue's, and those of single Uniswap V3 pools.

Both lend whatever they hold. Morpho asks no premium. A pool asks its own swap fee, rounded up, and swaps for nobody
while it lends: its quote says so, and the planner keeps the plan's swaps out of it.
"""

from __future__ import annotations

from typing import Any, Final

from keeper import abi
from keeper.errors import AdapterError
from keeper.fixed import BPS
from keeper.seams import FlashKind, Reads
from keeper.types import Address, BlockTime, FlashQuote, PoolId, Refusal, Result, Reverted

_BALANCE: Final = abi.load("Erc20").function("balanceOf")
_POOL: Final = abi.load("UniswapV3Pool")
_TERMS: Final = tuple(_POOL.function(name) for name in ("token0", "token1", "fee"))
_LIQUIDITY: Final = _POOL.function("liquidity")

_PPM_PER_BPS: Final = 1_000_000 // BPS


class MorphoFlash:
    """Morpho Blue (`flashLoan`): any token it holds, free."""

    kind = FlashKind.MORPHO

    def __init__(self, morpho: Address) -> None:
        self._morpho = morpho

    def source(self) -> Address:
        """Morpho."""
        return self._morpho

    def flash(self, token: Address, at: BlockTime) -> Reads[FlashQuote | Refusal]:
        """What Morpho holds of the token; one round. Refuses with no_liquidity."""
        [held] = yield [_BALANCE.call(token, self._morpho)]
        return _lent(FlashQuote(self._morpho, token, 0, _value(_BALANCE, held, token)))


class UniswapV3Flash:
    """One Uniswap V3 pool (`flash`): either of its tokens, for its fee.

    A fee that is no whole number of basis points is refused, since premiums are counted in them.
    """

    kind = FlashKind.UNISWAP_V3

    def __init__(self, pool: Address) -> None:
        self._address = pool
        self._pool: PoolId | None = None  # what it is never changes

    def source(self) -> Address:
        """The pool."""
        return self._address

    def flash(self, token: Address, at: BlockTime) -> Reads[FlashQuote | Refusal]:
        """The fee and what the pool holds; one round.

        Refuses with not_listed, odd_fee or no_liquidity; raises `AdapterError` where the address is no pool.
        """
        *terms, liquidity, held = yield [
            *(term.call(self._address) for term in _TERMS if self._pool is None),
            _LIQUIDITY.call(self._address),
            _BALANCE.call(token, self._address),
        ]
        if self._pool is None:
            values = (_value(*each, self._address) for each in zip(_TERMS, terms, strict=True))
            self._pool = PoolId(*values)
        about = {"source": self._address, "token": token}
        if token not in self._pool.tokens:
            return Refusal("flash", "not_listed", about)
        premium_bps, odd = divmod(self._pool.fee, _PPM_PER_BPS)
        if odd:
            return Refusal("flash", "odd_fee", {**about, "fee": self._pool.fee})
        # without liquidity in range a pool lends nothing, whatever it holds
        usable = _value(_LIQUIDITY, liquidity, self._address) > 0
        available_raw = _value(_BALANCE, held, token) if usable else 0
        return _lent(FlashQuote(self._address, token, premium_bps, available_raw, self._pool))


def _lent(quote: FlashQuote) -> FlashQuote | Refusal:
    if quote.available_raw:
        return quote
    return Refusal("flash", "no_liquidity", {"source": quote.source, "token": quote.token})


def _value(function: Any, result: Result, asked: Address) -> Any:
    if isinstance(result, Reverted):
        raise AdapterError(f"{function.name} of {abi.checksum(asked)} reverted; check [flash].")
    return function.one(result)
