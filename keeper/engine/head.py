"""What the line works by, what it reads at one head, and what one head came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from keeper.guard import PauseState
from keeper.prices import Feed, Price
from keeper.types import (
    Address,
    BlockTime,
    DataRates,
    Head,
    Marks,
    PositionKey,
    Refusal,
    Settlement,
    Submission,
    Token,
    Wei,
)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the line works by; USD with 8 decimals."""

    pause_guard: Address
    liquidator: Address
    operator: Address
    profit_token: Token
    profit_feed: Feed
    kept_feeds: Mapping[Address, Feed]  # of seized tokens that are not sold
    native_feed: Feed
    min_profit_usd_e8: int
    max_slippage_bps: int
    max_fee_wei: Wei
    priority_share_bps: int
    max_repay_usd_e8: int
    decisive: Mapping[str, Any]  # every setting that decides, in the ledger's words
    version: str  # their hash


@dataclass(frozen=True, slots=True)
class View:
    """Everything read at one head that is not a position."""

    at: BlockTime
    pause: PauseState | Refusal
    native: Price | Refusal
    profit: Price | Refusal
    kept: Mapping[Address, Price | Refusal]
    data: DataRates | Refusal
    marks: Mapping[str, Marks | Refusal]

    def price_of(self, measure: Address) -> Price | Refusal:
        """The price of a token that profit is measured in, which is the profit token or a kept one."""
        return self.kept.get(measure, self.profit)

    def without(self, unread: Mapping[str, Refusal]) -> View:
        """The same with reasons instead of some protocols' marks, so that nothing of them is acted on."""
        return replace(self, marks={**self.marks, **unread})


@dataclass(slots=True)
class StepReport:
    """What one head came to; `reaction_us` is from its arrival to the first broadcast of what was not in flight."""

    head: Head
    liquidatable: int = 0
    sent: list[Submission] = field(default_factory=list)
    replaced: list[Submission] = field(default_factory=list)
    settled: list[Settlement] = field(default_factory=list)
    refused: list[tuple[str, Address | None, Refusal]] = field(default_factory=list)
    reaction_us: int | None = None

    def refuse(self, key: PositionKey, refusal: Refusal) -> None:
        """Note why a position is left alone at this head."""
        self.refused.append((key.protocol, key.account, refusal))
