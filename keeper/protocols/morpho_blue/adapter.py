"""Morpho Blue behind the `Adapter` seam.

All markets are one adapter's, because one contract holds them and the Safe allows a contract under one pause scope.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from keeper import abi
from keeper.errors import AdapterError
from keeper.protocols.morpho_blue.market import (
    LIQUIDATE,
    MORPHO,
    Market,
    UsdFeed,
    market_in,
    read_feeds,
    read_markets,
)
from keeper.protocols.morpho_blue.marks import read_marks
from keeper.protocols.morpho_blue.options import (
    account_of,
    calls_of,
    find_options,
    judge,
    liquidation_price,
    lost_of,
    outcome_of,
)
from keeper.protocols.morpho_blue.positions import nobody, read_positions, rows_of
from keeper.seams import UPGRADE_TOPICS, ConfigAddress, Reads, Touched, just
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    BadDebt,
    BlockTime,
    Filters,
    Hash,
    Health,
    Log,
    Marks,
    Option,
    Outcome,
    Position,
    PositionKey,
    Positions,
    ProtocolCall,
    Refusal,
    Rows,
    hex_of,
)

# Which topic of an event names whose position it touched; the first after the event's own is always the market.
_TOUCHING: Final = {
    MORPHO.event(name).topic: place
    for name, place in (
        ("Borrow", 2),
        ("Repay", 3),
        ("SupplyCollateral", 3),
        ("WithdrawCollateral", 2),
        ("Liquidate", 3),
    )
}
_LIQUIDATE: Final = MORPHO.event("Liquidate")
_LIQUIDATED: Final = _LIQUIDATE.topic
_LONGEST_PAUSE: Final = 64  # heads


def _market_id(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"0x[0-9a-fA-F]{64}", value):
        raise ValueError(f"{value!r} is not a market id: 0x and 64 hexadecimal digits are expected.")
    return bytes.fromhex(value[2:])


MarketId = Annotated[Hash, BeforeValidator(_market_id)]


class MorphoBlueConfig(BaseModel):
    """One Morpho Blue. Without `markets` every market in which somebody owes is followed.

    `usd_feeds` are pairs of a token and its dollar aggregator, for tokens that no listed market's oracle names one of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["morpho-blue"] = "morpho-blue"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    morpho: ConfigAddress
    markets: tuple[MarketId, ...] = ()
    usd_feeds: tuple[tuple[ConfigAddress, ConfigAddress], ...] = ()
    from_block: int = Field(default=0, ge=0)
    max_price_age_s: int | None = Field(default=90_000, gt=0)


class MorphoBlue:
    """One Morpho Blue; a key's market is the market's id, and `market` is Morpho itself.

    `morpho` is the contract, which lends to everybody. Markets are numbered as they become known, and a market's number
    is its positions' group: one block of the book.
    """

    config: Final = MorphoBlueConfig
    settled_jointly = False
    plan_gas = 350_000

    @classmethod
    def made_of(cls, config: MorphoBlueConfig, liquidator: Address | None) -> tuple[MorphoBlue]:
        """The Morpho of one table; who liquidates makes no difference here."""
        return (cls(config),)

    def __init__(self, config: MorphoBlueConfig) -> None:
        self.name: str = config.name
        self.market: str = hex_of(config.morpho)
        self.morpho: Address = config.morpho
        self._listed = frozenset(config.markets)
        self._configured = dict(config.usd_feeds)
        self._max_price_age_s = config.max_price_age_s
        self._markets: dict[Hash, Market] = {}
        self._owing: set[Hash] = set()  # markets in which somebody owed when last read
        self._silent: dict[
            Hash, tuple[int, int]
        ] = {}  # head at which an oracle failed, and heads it is left then
        self._feeds: Mapping[Address, UsdFeed] | None = None

    @property
    def markets(self) -> Sequence[Market]:
        """Every market known so far, by number."""
        return list(self._markets.values())

    def load(self) -> Reads[None]:
        """Read the listed markets and which aggregators tell dollars. Raises AdapterError for a market there is not."""
        yield from self._learn(
            [each for each in sorted(self._listed) if each not in self._markets], check=True
        )
        if missing := sorted(self._listed - self._markets.keys()):
            raise AdapterError(
                f"Morpho {abi.checksum(self.morpho)} has no usable market {hex_of(missing[0])}: correct markets."
            )
        self._feeds = yield from read_feeds(self._trusted(), self._configured)

    def warnings(self) -> Sequence[str]:
        """Standing warnings: strangers' markets are followed; markets with debt that nobody can value."""
        told = []
        if not self._listed:
            told.append(
                "No markets are listed, so every market with debt whose tokens have a dollar feed is followed, and its "
                "oracle asked, whoever made it, but few transactions are sent; list the markets to be followed."
            )
        if unvalued := [each for each in self.markets if each.id in self._listed and not self._valued(each)]:
            pairs = ", ".join(f"{each.collateral.symbol}/{each.loan.symbol}" for each in unvalued)
            told.append(f"No dollar feed is known for a token of these markets; add usd_feeds: {pairs}.")
        return told

    def targets(self) -> Sequence[tuple[Address, bytes]]:
        """Morpho's liquidate; it pays nobody but its caller."""
        return [(self.morpho, LIQUIDATE.selector)]

    def feeds(self) -> Mapping[Address, Address]:
        """Tokens with the configured aggregators, else those that listed markets' oracles name."""
        return {token: feed.address for token, feed in self._known_feeds().items()}

    def contracts(self) -> Mapping[str, Address]:
        """Morpho, and the oracles, rate models and aggregators of listed markets.

        Those of markets that were found are left out: whoever makes a market could else stop all others.
        """
        found = {"Morpho": self.morpho}
        for market in self._trusted():
            found |= {
                f"oracle of {hex_of(market.id)}": market.oracle,
                f"rate model of {hex_of(market.id)}": market.irm,
            }
        found |= {
            f"dollar feed of {abi.checksum(token)}": feed.address
            for token, feed in self._known_feeds().items()
        }
        return {role: address for role, address in found.items() if address != ZERO_ADDRESS}

    def sources(self) -> Filters:
        """Morpho's own events, and upgrades of whatever it relies on.

        A market without a Borrow owes nothing, so its creation needs no look.
        """
        return Filters(tuple(dict.fromkeys(self.contracts().values())), (*_TOUCHING, *UPGRADE_TOPICS))

    def discover(self, logs: Sequence[Log]) -> Touched:
        """Accounts in Morpho's events, of listed markets where some are listed."""
        found: set[PositionKey] = set()
        for log in logs:
            place = _TOUCHING.get(log.topics[0]) if log.topics and log.address == self.morpho else None
            if place is not None and (not self._listed or log.topics[1] in self._listed):
                found.add(self._key(log.topics[1], Address(log.topics[place][12:])))
        return Touched(frozenset(found), reload=False)

    def liquidations(self, logs: Sequence[Log]) -> Sequence[tuple[PositionKey, Hash]]:
        """Morpho's Liquidate events: the market is their first indexed value, the account the third."""
        return [
            (self._key(log.topics[1], Address(log.topics[3][12:])), log.transaction_hash)
            for log in logs
            if log.address == self.morpho and log.topics[:1] == (_LIQUIDATED,)
        ]

    def written_off(self, log: Log, marks: Marks | None) -> tuple[PositionKey, BadDebt] | None:
        """What Liquidate says was left when all collateral was gone, of markets that are known."""
        if log.address != self.morpho or log.topics[:1] != (_LIQUIDATED,):
            return None
        event = _LIQUIDATE.decode(log)
        market, raw = self._markets.get(event["id"]), event["badDebtAssets"]
        if market is None or not raw:
            return None
        state = marks.exact.states.get(market.number) if marks else None
        lost = lost_of(state, raw) if state else BadDebt(market.loan, raw, None)
        return self._key(market.id, event["borrower"]), lost

    def enumerate(self) -> Reads[set[PositionKey]]:
        """Morpho lists no accounts on chain."""
        none: set[PositionKey] = set()
        return just(none)

    def keys_of(self, account: Address) -> Sequence[PositionKey]:
        """One for each market known so far."""
        return [self._key(market.id, account) for market in self.markets]

    def refresh(self, keys: Sequence[PositionKey]) -> Reads[Positions]:
        """Read positions in one market, and what that market is where this is the first of it."""
        if not keys:
            return nobody(self.name, keys)
        market_id = Hash(bytes.fromhex(keys[0].market[2:]))
        if market_id not in self._markets and not self._listed:
            yield from self._learn([market_id])
        market = self._markets.get(market_id)
        if market is None:
            return nobody(self.name, keys)
        positions = yield from read_positions(self.name, self.morpho, market, keys)
        if positions.live.any():
            self._owing.add(market_id)
        return positions

    def marks(self, at: BlockTime) -> Reads[Marks | Refusal]:
        """Totals with interest, oracle prices and dollars as a block at `at.timestamp_s` would find them.

        A stranger's oracle that fails may burn all gas there is each time, so it is asked less and less.
        """
        asked = [
            each
            for each in self.markets
            if each.id in self._owing and self._valued(each) and not self._pauses(each, at)
        ]
        exact = yield from read_marks(self.morpho, asked, self._known_feeds(), self._max_price_age_s, at)
        for market in asked:
            state = exact.states[market.number]
            if not state.totals.borrow_shares:
                self._owing.discard(market.id)
            if state.why_not is None or state.why_not.reason != "oracle_reverts" or self._listed:
                self._silent.pop(market.id, None)
            elif (silent := self._silent.get(market.id, (-1, 0)))[0] != at.number:
                self._silent[market.id] = (at.number, min(max(1, 2 * silent[1]), _LONGEST_PAUSE))
        return Marks(
            at,
            self.market,
            exact,
            {number: state.weights for number, state in exact.states.items()},
            frozenset(hex_of(market.id) for market in asked),
        )

    def prices(self, marks: Marks) -> Mapping[Address, int]:
        """Every token's price by its dollar feed, with 18 decimals, 0 where there is none."""
        prices: Mapping[Address, int] = marks.exact.prices
        return prices

    def rows(self, positions: Positions) -> Rows:
        """Collateral and borrow shares, shape (n, 2)."""
        return rows_of(positions)

    def assess(self, position: Position, marks: Marks) -> Health | Refusal:
        """The account's health as `_isHealthy` would find it at the marks' timestamp and price.

        Refused where these marks know nothing of its market: it has no dollar feed, or was not known before this head.
        Bad debt is told only where somebody chose the market: in their own, strangers owe whatever they like.
        """
        state = marks.exact.states.get(position.group)
        if state is None:
            market = self.markets[position.group]
            reason = "oracle_reverts" if market.id in self._silent else "new_market"
            reason = reason if self._valued(market) else "no_usd_feed"
            return Refusal("assess", reason, {"market": position.key.market})
        health = judge(position, state)
        if isinstance(health, Refusal) or self._listed:
            return health
        return replace(health, bad_debt=())

    def liquidation_price(self, position: Position, health: Health, marks: Marks) -> int | None:
        """The collateral's price in dollars, by the market's oracle, at which the account may owe just what it owes."""
        return liquidation_price(health)

    def options(self, position: Position, health: Health, marks: Marks) -> Sequence[Option | Refusal]:
        """The market's one pair; it goes alone where anybody's oracle, which may burn all gas, is believed."""
        return find_options(health, self.morpho, chosen=bool(self._listed))

    def outcome(self, option: Option, repay_raw: int) -> Reads[Outcome | Refusal]:
        """What Morpho would move if `liquidation_calls(option, repay_raw)` ran at the marks' timestamp."""
        return just(outcome_of(option, repay_raw))

    def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
        """Morpho.liquidate by shares, or by all collateral where the debt is more; with headroom for interest."""
        return calls_of(option, repay_raw)

    def position_of(self, calldata: bytes) -> PositionKey | None:
        """Whose liquidation this Morpho.liquidate is, and in which market; None for anything else."""
        market_id, account = market_in(calldata), account_of(calldata)
        return None if market_id is None or account is None else self._key(market_id, account)

    def _learn(self, ids: Sequence[Hash], *, check: bool = False) -> Reads[None]:
        """Read what markets are made of; with `check` that it is a Morpho at all, though none is asked for."""
        if not ids and not check:
            return
        for market in (yield from read_markets(self.morpho, ids)):
            # another read in the same rounds may have learnt of it first
            self._markets.setdefault(market.id, market.numbered(len(self._markets)))

    def _trusted(self) -> list[Market]:
        """The markets somebody chose."""
        return [market for market in self.markets if market.id in self._listed]

    def _known_feeds(self) -> Mapping[Address, UsdFeed]:
        if self._feeds is None:
            raise AdapterError(f"{self.name} was used before it was loaded.")
        return self._feeds

    def _valued(self, market: Market) -> bool:
        """Whether both tokens have a dollar feed: what has none can neither be judged nor be sold."""
        return {market.loan.address, market.collateral.address} <= self._known_feeds().keys()

    def _pauses(self, market: Market, at: BlockTime) -> bool:
        """Whether a market's oracle, which failed, is left at a head; at the one where it failed it is asked again."""
        failed_at, pause = self._silent.get(market.id, (at.number, 0))
        return failed_at < at.number <= failed_at + pause

    def _key(self, market_id: bytes, account: Address) -> PositionKey:
        return PositionKey(self.name, hex_of(market_id), account)
