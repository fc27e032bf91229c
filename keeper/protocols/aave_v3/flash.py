"""Flash loans from an Aave V3 pool (`flashLoanSimple`).

The premium is `premium_bps` of the amount, rounded half up until 3.4 and up since 3.5: count it rounded up.
"""

from __future__ import annotations

from keeper.protocols.aave_v3.adapter import AaveV3
from keeper.seams import FlashKind, Reads
from keeper.types import Address, BlockTime, FlashQuote, Refusal


class AaveFlash:
    """The pool of a loaded `AaveV3` as a flash source."""

    kind = FlashKind.AAVE_V3

    def __init__(self, aave: AaveV3) -> None:
        self._aave = aave

    def source(self) -> Address:
        """The pool."""
        return self._aave.loaded.pool

    def flash(self, token: Address, at: BlockTime) -> Reads[FlashQuote | Refusal]:
        """Premium and what the reserve holds; a token the pool does not lend is a Refusal."""
        market = self._aave.loaded
        reserve = next((reserve for reserve in market.listed() if reserve.token.address == token), None)
        if reserve is None:
            return Refusal("flash", "not_listed", {"source": market.pool, "token": token})
        marks = yield from self._aave.marks(at)
        if isinstance(marks, Refusal):
            return marks
        state = marks.exact.state(reserve.id)
        if state.config.paused or not state.config.active or not state.config.flash_loans:
            reason = "reserve_paused" if state.config.paused else "flash_loans_disabled"
            return Refusal("flash", reason, {"source": market.pool, "token": reserve.token.symbol})
        if not state.liquidity_raw:
            return Refusal("flash", "no_liquidity", {"source": market.pool, "token": reserve.token.symbol})
        return FlashQuote(market.pool, token, marks.exact.flash_premium_bps, state.liquidity_raw)
