"""Synthetix V2x perps behind the `Adapter` seam, and which events touch what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from keeper.errors import AdapterError
from keeper.protocols.synthetix_v2_perps.health import judge, liquidation_price
from keeper.protocols.synthetix_v2_perps.market import (
    MARKET,
    RATES,
    RESOLVER,
    STATE,
    SYNTH,
    Market,
    ask,
    load_market,
)
from keeper.protocols.synthetix_v2_perps.marks import MarksReader
from keeper.protocols.synthetix_v2_perps.options import (
    FLAG_SELECTOR,
    LIQUIDATE_SELECTOR,
    account_of,
    calls_of,
    find_options,
    outcome_of,
)
from keeper.protocols.synthetix_v2_perps.positions import read_positions, rows_of
from keeper.seams import UPGRADE_TOPICS, ConfigAddress, Reads, Touched
from keeper.types import (
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

_MODIFIED: Final = MARKET.event("PositionModified")
_FLAGGED: Final = MARKET.event("PositionFlagged")
_LIQUIDATED: Final = MARKET.event("PositionLiquidated")
_TOUCHING: Final = {event.topic: event for event in (_MODIFIED, _FLAGGED, _LIQUIDATED)}
# Parameters and switches come with the marks of every head; these change whom is asked at all.
_RELOADING: Final = {
    MARKET: ("RouteUpdated", "RouteRemoved", "CacheUpdated"),
    RESOLVER: ("AddressImported",),
    RATES: ("AggregatorAdded", "AggregatorRemoved"),
    SYNTH: ("TargetUpdated", "TokenStateUpdated"),
}
_RELOADING_TOPICS: Final = frozenset(
    interface.event(name).topic for interface, names in _RELOADING.items() for name in names
)
_FLAGGED_COUNT: Final = STATE.function("getFlaggedAddressesLength")
_FLAGGED_PAGE: Final = STATE.function("getFlaggedAddressesPage")


_NAMED_BY: Final = 4  # bytes of a market's address, where a table has several


class SynthetixV2PerpsConfig(BaseModel):
    """Markets, each by its proxy, and the USD aggregator that says what the reward is worth.

    The protocol itself counts a sUSD as a dollar at all times, so `susd_usd_feed` is the operator's to choose.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["synthetix-v2-perps"] = "synthetix-v2-perps"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,21}$")
    markets: tuple[ConfigAddress, ...] = Field(min_length=1)
    susd_usd_feed: ConfigAddress
    from_block: int = Field(default=0, ge=0)
    max_price_age_s: int = Field(default=90_000, gt=0)


class SynthetixV2Perps:
    """One Synthetix V2x perps market, where each account has one position with its own margin.

    `liquidator` is who would carry a liquidation out: only what it flagged itself pays it the flagger's fee. None knows
    of no such flag, and expects less.
    """

    config: Final = SynthetixV2PerpsConfig
    settled_jointly = False
    plan_gas = 550_000

    @classmethod
    def made_of(
        cls, config: SynthetixV2PerpsConfig, liquidator: Address | None
    ) -> tuple[SynthetixV2Perps, ...]:
        """One for each market of a table; several are told apart by how their addresses begin, also as pause scopes."""
        alone = len(config.markets) == 1
        return tuple(
            cls(
                config.name if alone else f"{config.name}-{proxy[:_NAMED_BY].hex()}",
                proxy,
                config,
                liquidator,
            )
            for proxy in config.markets
        )

    def __init__(
        self, name: str, market: Address, config: SynthetixV2PerpsConfig, liquidator: Address | None = None
    ) -> None:
        self.name: str = name
        self.market: str = hex_of(market)
        self._proxy = market
        self._susd_feed = config.susd_usd_feed
        self._max_price_age_s = config.max_price_age_s
        self._liquidator = liquidator
        self._market: Market | None = None
        self._marks: MarksReader | None = None

    @property
    def loaded(self) -> Market:
        """The market as last loaded."""
        if self._market is None:
            raise AdapterError(f"{self.name} was used before it was loaded.")
        return self._market

    def load(self) -> Reads[None]:
        """Read where the market's parts and the system's contracts are."""
        market = yield from load_market(self._proxy, self._susd_feed)
        self._market = market
        self._marks = MarksReader(market, self._max_price_age_s)

    def warnings(self) -> Sequence[str]:
        """Standing warnings: copies of the address book that are out of date."""
        if self.loaded.cached:
            return ()
        return (
            "Some of the market's contracts still use old addresses; nothing is liquidated until their caches are "
            "rebuilt.",
        )

    def targets(self) -> Sequence[tuple[Address, bytes]]:
        """The market's two steps; both pay nobody but their caller and whoever flagged."""
        return [(self._proxy, FLAG_SELECTOR), (self._proxy, LIQUIDATE_SELECTOR)]

    def feeds(self) -> Mapping[Address, Address]:
        """The configured aggregator of sUSD."""
        return {self.loaded.susd.address: self.loaded.susd_feed}

    def contracts(self) -> Mapping[str, Address]:
        """Proxy, state and routed parts, address book and what it names, sUSD and both price sources."""
        return self.loaded.contracts

    def sources(self) -> Filters:
        """The market's proxy, and every contract whose events may move an address."""
        topics = (*_TOUCHING, *sorted(_RELOADING_TOPICS), *UPGRADE_TOPICS)
        return Filters(tuple(dict.fromkeys(self.loaded.contracts.values())), topics)

    def discover(self, logs: Sequence[Log]) -> Touched:
        """Accounts in the market's events: every way a position changes, or is flagged, has one."""
        governing = frozenset(self.loaded.contracts.values())
        accounts: set[Address] = set()
        reload = False
        for log in logs:
            topic = log.topics[0] if log.topics else None
            if topic in _TOUCHING and log.address == self._proxy:
                accounts.add(Address(_TOUCHING[topic].decode(log)["account"]))
            elif topic in _RELOADING_TOPICS and log.address in governing:
                reload = True
        return Touched(frozenset(self._key(account) for account in accounts), reload)

    def liquidations(self, logs: Sequence[Log]) -> Sequence[tuple[PositionKey, Hash]]:
        """Either step of whoever took it: a flag lost to another is a race lost as well."""
        return [
            (self._key(Address(_TOUCHING[log.topics[0]].decode(log)["account"])), log.transaction_hash)
            for log in logs
            if log.address == self._proxy and log.topics[:1] in ((_FLAGGED.topic,), (_LIQUIDATED.topic,))
        ]

    def written_off(self, log: Log, marks: Marks | None) -> tuple[PositionKey, BadDebt] | None:
        """None: the debt pool bears it, and no event says how much."""
        return None

    def enumerate(self) -> Reads[set[PositionKey]]:
        """Flagged accounts; of all others the chain tells only the market's own contracts, so logs must."""
        state = self.loaded.state
        [count] = yield from ask([(_FLAGGED_COUNT, state, ())])
        [accounts] = yield from ask([(_FLAGGED_PAGE, state, (0, count))])
        return {self._key(Address(account)) for account in accounts}

    def keys_of(self, account: Address) -> Sequence[PositionKey]:
        """The account's one position."""
        return [self._key(account)]

    def refresh(self, keys: Sequence[PositionKey]) -> Reads[Positions]:
        """Read positions, who flagged them, and the funding entries they name."""
        return read_positions(self.name, self.market, self.loaded, keys)

    def marks(self, at: BlockTime) -> Reads[Marks | Refusal]:
        """The rate, funding and parameters as a block at `at.timestamp_s` would find them."""
        if self._marks is None:
            raise AdapterError(f"{self.name} was used before it was loaded.")
        exact = yield from self._marks.read(at)
        if isinstance(exact, Refusal):
            return exact
        return Marks(at, self.market, exact, exact.weights())

    def prices(self, marks: Marks) -> Mapping[Address, int]:
        """What sUSD is worth, the one token that is paid; dollars with 18 decimals."""
        return {self.loaded.susd.address: marks.exact.susd_price}

    def rows(self, positions: Positions) -> Rows:
        """What is certain of the margin, size by side, and size squared, shape (n, 5)."""
        return rows_of(positions)

    def assess(self, position: Position, marks: Marks) -> Health | Refusal:
        """The position's health as the market's own views would tell it at the marks' timestamp and rate."""
        return judge(position, marks.exact)

    def liquidation_price(self, position: Position, health: Health, marks: Marks) -> int | None:
        """The market's own `liquidationPrice`, dollars with 18 decimals; None where it is 0."""
        return liquidation_price(health, marks.exact)

    def options(self, position: Position, health: Health, marks: Marks) -> Sequence[Option | Refusal]:
        """The step that is allowed now, both where they are; a gate says what it measures."""
        return find_options(health, marks.exact, self._liquidator)

    def outcome(self, option: Option, repay_raw: int) -> Reads[Outcome | Refusal]:
        """What the step pays in sUSD; nothing is ever repaid."""
        return outcome_of(option)

    def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
        """flagPosition, liquidatePosition, or both."""
        return calls_of(option)

    def position_of(self, calldata: bytes) -> PositionKey | None:
        """Whose position such a step is about; None for anything else."""
        account = account_of(calldata)
        return None if account is None else self._key(account)

    def _key(self, account: Address) -> PositionKey:
        return PositionKey(self.name, self.market, account)
