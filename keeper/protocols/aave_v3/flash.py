"""Flash loans from an Aave V3 pool (`flashLoanSimple`).

The premium is `premium_bps` of the amount, rounded half up until 3.4 and up since 3.5: count it rounded up.
"""

from __future__ import annotations

from typing import Final

from keeper.protocols.aave_v3.adapter import AaveV3
from keeper.protocols.aave_v3.market import POOL, ReserveConfig, answered
from keeper.protocols.aave_v3.marks import liquidity_call, liquidity_of
from keeper.seams import FlashKind, Reads
from keeper.types import Address, FlashQuote, Refusal

_PREMIUM: Final = POOL.function("FLASHLOAN_PREMIUM_TOTAL")
_CONFIGURATION: Final = POOL.function("getConfiguration")


class AaveFlash:
    """The pool of a loaded `AaveV3` as a flash source."""

    kind = FlashKind.AAVE_V3

    def __init__(self, aave: AaveV3) -> None:
        self._aave = aave

    def source(self) -> Address:
        """The pool."""
        return self._aave.loaded.pool

    def flash(self, token: Address) -> Reads[FlashQuote | Refusal]:
        """Premium and what the reserve holds now; a token the pool does not lend is a Refusal."""
        market = self._aave.loaded
        reserve = next((reserve for reserve in market.listed() if reserve.token.address == token), None)
        if reserve is None:
            return Refusal("flash", "not_listed", {"source": market.pool, "token": token})
        results = yield [
            _PREMIUM.call(market.pool),
            _CONFIGURATION.call(market.pool, token),
            liquidity_call(market, reserve),
        ]
        config = ReserveConfig(answered(_CONFIGURATION, results[1])[0])
        if config.paused or not config.active or not config.flash_loans:
            reason = "reserve_paused" if config.paused else "flash_loans_disabled"
            return Refusal("flash", reason, {"source": market.pool, "token": reserve.token.symbol})
        available_raw = liquidity_of(market, config, results[2])
        if not available_raw:
            return Refusal("flash", "no_liquidity", {"source": market.pool, "token": reserve.token.symbol})
        return FlashQuote(market.pool, token, answered(_PREMIUM, results[0]), available_raw)
