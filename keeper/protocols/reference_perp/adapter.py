"""The reference perp exchange behind the `Adapter` seam, and which events touch what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from keeper.errors import AdapterError
from keeper.protocols.reference_perp import options as ways
from keeper.protocols.reference_perp.exchange import (
    EXCHANGE,
    HOUSE,
    Exchange,
    account_key,
    ask,
    load_exchange,
    number_of,
)
from keeper.protocols.reference_perp.health import judge, liquidation_price
from keeper.protocols.reference_perp.marks import MarksReader, prices_of
from keeper.protocols.reference_perp.positions import read_positions, rows_of
from keeper.seams import UPGRADE_TOPICS, ConfigAddress, Reads, Touched, just
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

# Each names its account first. A winner that is deleveraged and an heir have a Modified of their own.
_TOUCHING: Final = frozenset(
    EXCHANGE.event(name).topic
    for name in (
        "BadDebt",
        "Deposited",
        "Flagged",
        "Liquidated",
        "Modified",
        "Socialized",
        "Unflagged",
        "Withdrawn",
    )
)
_LIQUIDATED: Final = EXCHANGE.event("Liquidated").topic
# Parameters, pauses and the fund come with the marks of every head; these change what is read at all.
_MARKET_SET: Final = EXCHANGE.event("MarketSet").topic
_CREATED: Final = EXCHANGE.event("AccountCreated").topic
_HOLDERS: Final = EXCHANGE.function("holders")
_PAGE: Final = 2_000  # accounts, 64 kB


class ReferencePerpConfig(BaseModel):
    """One reference perp exchange; it says itself how old its marks may be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["reference-perp"] = "reference-perp"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    exchange: ConfigAddress
    from_block: int = Field(default=0, ge=0)


class ReferencePerp:
    """One reference perp exchange; an account's margin is shared by all its markets, so its `market` is the exchange.

    A key's account is the account's number. `liquidator` is the contract whose own account takes positions over;
    without one only cash is taken.
    """

    config: Final = ReferencePerpConfig
    settled_jointly = True
    plan_gas = 450_000

    @classmethod
    def made_of(cls, config: ReferencePerpConfig, liquidator: Address | None) -> tuple[ReferencePerp]:
        """The exchange of one table, as `liquidator` would take positions over there."""
        return (cls(config, liquidator),)

    def __init__(self, config: ReferencePerpConfig, liquidator: Address | None = None) -> None:
        self.name: str = config.name
        self.market: str = hex_of(config.exchange)
        self._address = config.exchange
        self._liquidator = liquidator
        self._exchange: Exchange | None = None
        self._marks: MarksReader | None = None

    @property
    def loaded(self) -> Exchange:
        """The exchange as last loaded."""
        if self._exchange is None:
            raise AdapterError(f"{self.name} was used before it was loaded.")
        return self._exchange

    def load(self) -> Reads[None]:
        """Read the collateral, every market's feed, and which account the liquidator has."""
        self._exchange = yield from load_exchange(self._address, self._liquidator)
        self._marks = MarksReader(self._exchange, self._liquidator)

    def warnings(self) -> Sequence[str]:
        """None: what it relies on is in the exchange alone."""
        return ()

    def targets(self) -> Sequence[tuple[Address, bytes]]:
        """What a liquidation for cash and a takeover call. None lets its caller choose where value goes: the exchange
        pays whoever calls it, and pays in, inherits, trades and withdraws for the caller's own account alone.
        """
        steps = (ways.LIQUIDATE, ways.PAY_IN, ways.INHERIT, ways.TRADE, ways.WITHDRAW)
        return [(self._address, step.selector) for step in steps]

    def feeds(self) -> Mapping[Address, Address]:
        """None: the collateral counts as a dollar here."""
        return {}

    def contracts(self) -> Mapping[str, Address]:
        """The exchange, its collateral, and every market's feed."""
        return self.loaded.contracts

    def sources(self) -> Filters:
        """The exchange's own events, and upgrades of whatever it relies on."""
        topics = (*sorted(_TOUCHING), _MARKET_SET, _CREATED, *UPGRADE_TOPICS)
        return Filters(tuple(dict.fromkeys(self.loaded.contracts.values())), topics)

    def discover(self, logs: Sequence[Log]) -> Touched:
        """Accounts in the exchange's events, the house aside: it comes with the marks.

        A changed market asks for a reload, and so does a new account of the liquidator.
        """
        accounts: set[Address] = set()
        reload = False
        for log in logs:
            if log.address != self._address or not log.topics:
                continue
            if log.topics[0] in _TOUCHING:
                accounts.add(account_key(int.from_bytes(log.topics[1])))
            elif log.topics[0] == _CREATED:
                reload |= log.topics[2][12:] == self._liquidator
            else:
                reload |= log.topics[0] == _MARKET_SET
        return Touched(frozenset(self._key(one) for one in accounts if number_of(one) != HOUSE), reload)

    def liquidations(self, logs: Sequence[Log]) -> Sequence[tuple[PositionKey, Hash]]:
        """Liquidated, for cash or to an heir."""
        return [
            (self._key(account_key(int.from_bytes(log.topics[1]))), log.transaction_hash)
            for log in logs
            if log.address == self._address and log.topics[:1] == (_LIQUIDATED,)
        ]

    def written_off(self, log: Log, marks: Marks | None) -> tuple[PositionKey, BadDebt] | None:
        """None: the fund bears it, or other traders do, as its own events tell in sums."""
        return None

    def enumerate(self) -> Reads[set[PositionKey]]:
        """Every holder of every market."""
        found: set[PositionKey] = set()
        unfinished, first = list(range(len(self.loaded.feeds))), 0
        while unfinished:
            pages = yield from ask(
                [(_HOLDERS, self._address, (market, first, _PAGE)) for market in unfinished]
            )
            found |= {self._key(account_key(number)) for page in pages for number in page}
            unfinished = [
                market for market, page in zip(unfinished, pages, strict=True) if len(page) == _PAGE
            ]
            first += _PAGE
        return found

    def keys_of(self, account: Address) -> Sequence[PositionKey]:
        """The account's one position."""
        return [self._key(account)]

    def refresh(self, keys: Sequence[PositionKey]) -> Reads[Positions]:
        """Read accounts with their positions in every market."""
        return read_positions(self.name, self.market, self.loaded, keys)

    def marks(self, at: BlockTime) -> Reads[Marks | Refusal]:
        """Marks, funding and everything else a liquidation depends on, in a block at `at.timestamp_s`."""
        if self._marks is None:
            raise AdapterError(f"{self.name} was used before it was loaded.")
        exact = yield from self._marks.read(at)
        if exact is None:
            yield from self.load()
            exact = yield from self._marks.read(at)
        if exact is None:
            raise AdapterError(f"{self.name} answers differently within one block: do not trust the node.")
        if isinstance(exact, Refusal):
            return exact
        return Marks(at, self.market, exact, exact.weights())

    def prices(self, marks: Marks) -> Mapping[Address, int]:
        """Every market's mark by its feed, as no token stands for it; with 18 decimals, 0 where there is none."""
        return prices_of(marks.exact.markets)

    def rows(self, positions: Positions) -> Rows:
        """What does not move with the marks, and sizes by market and side, shape (n, 2 + 4 · markets)."""
        return rows_of(positions)

    def assess(self, position: Position, marks: Marks) -> Health | Refusal:
        """The account's health as the exchange's own `assess` would tell it at the marks' timestamp."""
        return judge(position, marks.exact)

    def liquidation_price(self, position: Position, health: Health, marks: Marks) -> int | None:
        """The mark of its largest position at which its health is 1, all else equal; with 18 decimals."""
        return liquidation_price(health, marks.exact)

    def options(self, position: Position, health: Health, marks: Marks) -> Sequence[Option | Refusal]:
        """Every position for cash, and in sizes to take over."""
        return ways.find_options(health, marks.exact)

    def outcome(self, option: Option, repay_raw: int) -> Reads[Outcome | Refusal]:
        """What is paid in cash, or what comes back of a margin; the marks tell it without a round."""
        return just(ways.outcome_of(option, repay_raw))

    def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
        """Liquidate; or pay a margin in, inherit, close and withdraw everything."""
        return ways.calls_of(option, repay_raw)

    def position_of(self, calldata: bytes) -> PositionKey | None:
        """Whose liquidation such a call is; None for anything else."""
        account = ways.account_of(calldata)
        return None if account is None else self._key(account)

    def _key(self, account: Address) -> PositionKey:
        return PositionKey(self.name, self.market, account)
