"""What the line works by, what it reads at one head, and what one head came to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from keeper.breakers.trips import funds_of
from keeper.chain.client import Chain
from keeper.charges import Charges
from keeper.data_fee import DataFee, DataRates
from keeper.execution.flights import Submission
from keeper.guard import PauseState, read_scopes
from keeper.planner import PlanContext, samples
from keeper.prices import Feed, Price, read_price
from keeper.seams import Adapter, FlashSource, Reads, Venue, readable
from keeper.types import (
    Address,
    BlockTime,
    Head,
    Marks,
    Option,
    PositionKey,
    Refusal,
    Settlement,
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
    max_accounts: int
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

    def priced(self, options: Sequence[Option | Refusal]) -> list[Option | Refusal]:
        """The options; where what one seizes is kept and has no price, why."""
        prices = (
            self.kept.get(each.seize_token.address) if isinstance(each, Option) else None for each in options
        )
        return [
            price if isinstance(price, Refusal) else each for each, price in zip(options, prices, strict=True)
        ]

    def without(self, unread: Mapping[str, Refusal]) -> View:
        """The same with reasons instead of some protocols' marks, so that nothing of them is acted on."""
        return replace(self, marks={**self.marks, **unread})


async def read_view(
    chain: Chain, charges: Charges, policy: Policy, adapters: Mapping[str, Adapter], head: Head
) -> tuple[View, int | None]:
    """Pause, prices and every protocol's marks at `head` in one round, and the operator's funds where they are told."""
    at = BlockTime(head.number, head.hash, head.timestamp_s)
    reads: list[Reads[Any]] = [
        read_scopes(policy.pause_guard, list(adapters), at),
        read_price(policy.native_feed, at),
        read_price(policy.profit_feed, at),
        funds_of(policy.operator),
        *(read_price(feed, at) for feed in policy.kept_feeds.values()),
        *(readable("marks", adapter.marks(at)) for adapter in adapters.values()),
    ]
    (pause, native, profit, funds_wei, *others), (one, two) = await asyncio.gather(
        chain.read_all(reads, head.hash), charges.of(samples(), head)
    )
    kept = dict(zip(policy.kept_feeds, others, strict=False))
    marks = dict(zip(adapters, others[len(kept) :], strict=True))
    return View(at, pause, native, profit, kept, _rates(one, two), marks), funds_wei


def _rates(one: DataFee | Refusal, two: DataFee | Refusal) -> DataRates | Refusal:
    if isinstance(one, Refusal):
        return replace(one, stage="plan")
    return replace(two, stage="plan") if isinstance(two, Refusal) else DataRates.by(one, two)


def context_of(
    policy: Policy,
    view: View,
    adapter: Adapter,
    venues: Sequence[Venue],
    flash_sources: Sequence[FlashSource],
    gas_price_wei: Wei,
) -> PlanContext | Refusal:
    """What plans of a protocol are priced with at a head, or why nothing can be priced at it."""
    native, profit, data = view.native, view.profit, view.data
    if isinstance(native, Refusal):
        return native
    if isinstance(profit, Refusal):
        return profit
    if isinstance(data, Refusal):
        return data
    return PlanContext(
        at=view.at,
        adapter=adapter,
        venues=venues,
        flash_sources=flash_sources,
        profit_token=policy.profit_token,
        profit_usd_e8=profit.usd_e8,
        native_usd_e8=native.usd_e8_up,
        gas_price_wei=gas_price_wei,
        max_fee_wei=policy.max_fee_wei,
        min_profit_usd_e8=policy.min_profit_usd_e8,
        max_slippage_bps=policy.max_slippage_bps,
        max_repay_usd_e8=policy.max_repay_usd_e8,
        data=data,
        kept={token: price.usd_e8 for token, price in view.kept.items() if isinstance(price, Price)},
    )


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

    def take(self, keys: Iterable[PositionKey]) -> None:
        """These are liquidated after all: what they came to alone does not count."""
        taken = {(key.protocol, key.account) for key in keys}
        self.refused = [each for each in self.refused if each[2].stage != "plan" or each[:2] not in taken]
