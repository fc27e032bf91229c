"""Perp Curie behind the `Adapter` seam, and which events touch what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from keeper.errors import AdapterError
from keeper.fixed import WAD
from keeper.protocols.perp_curie import collateral, takeover
from keeper.protocols.perp_curie.health import Account, judge
from keeper.protocols.perp_curie.marks import FEED_CHANGED, CurieMarks, read_marks
from keeper.protocols.perp_curie.positions import Orders, fill, look, rows_of
from keeper.protocols.perp_curie.rules import PPM
from keeper.protocols.perp_curie.system import (
    BALANCE,
    CONFIG,
    HOUSE,
    MANAGER,
    REGISTRY,
    VAULT,
    Collateral,
    Entry,
    Market,
    System,
    contracts_of,
    learn_one,
    load_system,
)
from keeper.seams import UPGRADE_TOPICS, ConfigAddress, Reads, Touched, just, readable, together
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

# Which topic of an event names the account whose position it touched.
_TOUCHING: Final = {
    HOUSE: {
        "PositionChanged": 1,
        "PositionClosed": 1,
        "PositionLiquidated": 1,
        "LiquidityChanged": 1,
        "FundingPaymentSettled": 1,
    },
    BALANCE: {"PnlRealized": 1},
    VAULT: {"Deposited": 2, "Withdrawn": 2, "CollateralLiquidated": 1, "BadDebtSettled": 1},
}
# Prices, pauses and growths come with the marks of every head; these change what is read at all, or with what.
_RELOADING: Final = {
    REGISTRY: ("PoolAdded",),
    VAULT: ("CollateralManagerChanged", "ClearingHouseChanged"),
    CONFIG: (
        "LiquidationPenaltyRatioChanged",
        "TwapIntervalChanged",
        "SettlementTokenBalanceCapChanged",
        "MaxFundingRateChanged",
        "MarkPriceMarketTwapIntervalChanged",
        "MarkPricePremiumIntervalChanged",
    ),
    MANAGER: (
        "PriceFeedChanged",
        "CollateralRatioChanged",
        "DiscountRatioChanged",
        "MmRatioBufferChanged",
        "DebtNonSettlementTokenValueRatioChanged",
        "LiquidationRatioChanged",
        "CLInsuranceFundFeeRatioChanged",
        "DebtThresholdChanged",
        "WhitelistedDebtThresholdChanged",
        "CollateralValueDustChanged",
    ),
}
_TOUCHING_TOPICS: Final = {
    interface.event(name).topic: place
    for interface, names in _TOUCHING.items()
    for name, place in names.items()
}
# Which topic of an event names a market or a collateral that accounts use.
_NAMING_TOPICS: Final[Mapping[Hash, tuple[type[Entry], int]]] = {
    HOUSE.event("PositionChanged").topic: (Market, 2),
    HOUSE.event("LiquidityChanged").topic: (Market, 2),
    VAULT.event("Deposited").topic: (Collateral, 1),
}
_RELOADING_TOPICS: Final = frozenset(
    interface.event(name).topic for interface, names in _RELOADING.items() for name in names
)
_LIQUIDATED_TOPICS: Final = (
    HOUSE.event("PositionLiquidated").topic,
    VAULT.event("CollateralLiquidated").topic,
)


class PerpCurieConfig(BaseModel):
    """One Perp Curie exchange. `max_price_age_s` is how old a Chainlink answer may be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["perp-curie"] = "perp-curie"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    clearing_house: ConfigAddress
    from_block: int = Field(default=0, ge=0)
    max_price_age_s: int = Field(default=90_000, gt=0)


class PerpCurie:
    """One Perp Curie exchange; an account's margin is shared by all its markets, so its `market` is the exchange.

    `liquidator` is the contract that inherits what is taken over; without one, nothing can be planned.
    """

    config: Final = PerpCurieConfig
    settled_jointly = True
    plan_gas = 1_500_000

    @classmethod
    def made_of(cls, config: PerpCurieConfig, liquidator: Address | None) -> tuple[PerpCurie]:
        """The exchange of one table."""
        return (cls(config, liquidator),)

    def __init__(self, config: PerpCurieConfig, liquidator: Address | None = None) -> None:
        self.name: str = config.name
        self.market: str = hex_of(config.clearing_house)
        self._house = config.clearing_house
        self._liquidator = liquidator
        self._max_price_age_s = config.max_price_age_s
        self._system: System | None = None
        self._entries: list[Entry] = []
        self._heard: dict[Address, type[Entry]] = {}  # tokens that logs named and nobody has read yet
        self._makers: dict[Address, Orders] = {}

    @property
    def loaded(self) -> System:
        """The exchange as last loaded."""
        if self._system is None:
            raise AdapterError(f"{self.name} was used before it was loaded.")
        return self._system

    @property
    def entries(self) -> Sequence[Entry]:
        """The markets and collaterals that accounts were seen to use, in the order of their words."""
        return self._entries

    def load(self) -> Reads[None]:
        """Read addresses and parameters, and again those of every known market and collateral."""
        self._system = yield from load_system(self._house)
        wanted = {_identity(entry): type(entry) for entry in self._entries} | self._heard
        # what a reorganisation took away is dropped: every position is read again after this
        reads: list[Reads[Entry | Refusal]] = [
            readable("load", learn_one(self._system, *each)) for each in wanted.items()
        ]
        again = yield from together(reads)
        self._entries = [each for each in again if not isinstance(each, Refusal)]
        self._heard.clear()

    def warnings(self) -> Sequence[str]:
        """None: another layout of storage refuses to load."""
        return ()

    def contracts(self) -> Mapping[str, Address]:
        """The exchange's contracts, and every known market's and collateral's."""
        return contracts_of(self.loaded, self._entries)

    def feeds(self) -> Mapping[Address, Address]:
        """Every known collateral with its Chainlink aggregator; the settlement token counts as a dollar here."""
        return {
            entry.token.address: entry.feed.aggregator
            for entry in self._entries
            if isinstance(entry, Collateral) and entry.feed.aggregator != ZERO_ADDRESS
        }

    def targets(self) -> Sequence[tuple[Address, bytes]]:
        """What a takeover and a sale call. None lets its caller choose where value goes: the vault credits and pays
        whoever calls it, and a position that is taken over or closed is the caller's own.
        """
        system = self.loaded
        return [
            (system.vault, takeover.DEPOSIT.selector),
            (system.vault, takeover.WITHDRAW.selector),
            (system.vault, collateral.LIQUIDATE_COLLATERAL.selector),
            (system.house, takeover.CANCEL.selector),
            (system.house, takeover.LIQUIDATE.selector),
            (system.house, takeover.CLOSE.selector),
            (system.exchange, takeover.REQUIRE_CLOSED.selector),
        ]

    def sources(self) -> Filters:
        """The exchange's own contracts: those that tell of accounts, of parameters, or only of their upgrades."""
        system = self.loaded
        places = (
            *(system.house, system.balance, system.vault, system.registry, system.config, system.manager),
            *(system.exchange, system.orders, system.fund),
        )
        topics = (*_TOUCHING_TOPICS, *sorted(_RELOADING_TOPICS), *UPGRADE_TOPICS)
        return Filters(places, topics)

    def discover(self, logs: Sequence[Log]) -> Touched:
        """Accounts in events of trades, orders, funding, profit and deposits; a parameter's event asks for a reload."""
        system = self.loaded
        speaking = (system.house, system.balance, system.vault)
        governing = {system.vault, system.registry, system.config, system.manager}
        known = {_identity(entry) for entry in self._entries} | {system.settlement.address}
        accounts: set[bytes] = set()
        reload = False
        for log in logs:
            topic = log.topics[0] if log.topics else None
            if topic in _TOUCHING_TOPICS and log.address in speaking:
                place = _TOUCHING_TOPICS[topic]
                accounts.add(log.topics[place][12:])
                if topic in _NAMING_TOPICS:
                    kind, place = _NAMING_TOPICS[topic]
                    token = Address(log.topics[place][12:])
                    if token not in known:
                        self._heard[token] = kind
            elif topic in _RELOADING_TOPICS and log.address in governing:
                reload = True
        accounts -= {ZERO_ADDRESS, system.fund}
        keys = (self._key(Address(account)) for account in accounts)
        return Touched(frozenset(keys), reload or bool(self._heard))

    def liquidations(self, logs: Sequence[Log]) -> Sequence[tuple[PositionKey, Hash]]:
        """PositionLiquidated and CollateralLiquidated: the account is their first indexed value."""
        system = self.loaded
        return [
            (self._key(Address(log.topics[1][12:])), log.transaction_hash)
            for log in logs
            if log.address in (system.house, system.vault)
            and log.topics
            and log.topics[0] in _LIQUIDATED_TOPICS
        ]

    def written_off(self, log: Log, marks: Marks | None) -> tuple[PositionKey, BadDebt] | None:
        """None: the insurance fund bears it, and no event says whose it was."""
        return None

    def enumerate(self) -> Reads[set[PositionKey]]:
        """The exchange lists no accounts on chain."""
        nobody: set[PositionKey] = set()
        return just(nobody)

    def keys_of(self, account: Address) -> Sequence[PositionKey]:
        """The account's one position."""
        return [self._key(account)]

    def refresh(self, keys: Sequence[PositionKey]) -> Reads[Positions]:
        """Read what accounts use, learn what was not known, then their positions exactly."""
        system = self.loaded
        seen = yield from look(system, [key.account for key in keys])
        known = {_identity(entry) for entry in self._entries}
        used: dict[Address, type[Entry]] = {base: Market for each in seen for base in each.bases}
        used.update((token, Collateral) for each in seen for token in each.tokens)
        fresh = [learn_one(system, *each) for each in used.items() if each[0] not in known]
        self._entries += yield from together(fresh)
        words, makers = yield from fill(system, self._entries, seen)
        for each in seen:
            self._makers.pop(each.account, None)
        self._makers |= makers
        return Positions(
            protocol=self.name,
            market=self.market,
            accounts=tuple(each.account for each in seen),
            words=words,
            group=np.zeros(len(seen), dtype=np.int64),
            live=np.array([bool(each.bases) or each.owes(system) for each in seen], dtype=np.bool_),
            always_check=np.array(
                [bool(each.tokens) or each.account in makers for each in seen], dtype=np.bool_
            ),
        )

    def rows(self, positions: Positions) -> Rows:
        """Constants, then signed and absolute amounts of each entry in turn, shape (n, 2 + 2 · entries)."""
        return rows_of(positions.words, self.loaded.unit_wad)

    def marks(self, at: BlockTime) -> Reads[Marks | Refusal]:
        """Mark prices, premium growths and collateral prices as a block at `at.timestamp_s` would compute them.

        It may lie in the future of its own block hash; accounts with orders are as of the block itself.
        """
        exact = yield from self._read_marks(at)
        if isinstance(exact, CurieMarks) and any(
            state.unusable == FEED_CHANGED for state in exact.markets.values()
        ):
            yield from self.load()
            exact = yield from self._read_marks(at)
        if isinstance(exact, Refusal):
            return exact
        return Marks(at, self.market, exact, exact.weights())

    def _read_marks(self, at: BlockTime) -> Reads[CurieMarks | Refusal]:
        return read_marks(self.loaded, self._entries, self._makers, at, self._max_price_age_s)

    def prices(self, marks: Marks) -> Mapping[Address, int]:
        """Every base token's mark price and every collateral's price in 10⁻¹⁸ dollars, 0 where there is none."""
        exact = marks.exact
        found = {base: 0 if state.stopped else state.mark_wad for base, state in exact.markets.items()}
        for entry in exact.entries:
            if isinstance(entry, Collateral):
                state = exact.collaterals[entry.token.address]
                found[entry.token.address] = state.price * (WAD // entry.feed.unit)
        return found

    def assess(self, position: Position, marks: Marks) -> Health | Refusal:
        """The account's health as the clearing house and the vault would judge it at the marks' timestamp."""
        return judge(position, marks.exact)

    def options(self, position: Position, health: Health, marks: Marks) -> Sequence[Option | Refusal]:
        """Every market in sizes down to dust, each an option of its own, and every collateral that may be sold."""
        exact: CurieMarks = marks.exact
        if not health.liquidatable:
            return [Refusal("options", "healthy", {"health_factor_wad": str(health.health_factor_wad)})]
        if self._liquidator is None:
            return [Refusal("options", "no_liquidator", {})]
        if exact.vault_paused or exact.house_paused:
            paused = {"clearing_house": exact.house_paused, "vault": exact.vault_paused}
            return [Refusal("options", "protocol_paused", paused)]
        found = collateral.sales(health, exact)
        return [*found, *(takeover.takeovers(health, exact) if health.detail.takeover else [])]

    def outcome(self, option: Option, repay_raw: int) -> Reads[Outcome | Refusal]:
        """What comes back of a margin, or what is sold for a repayment, at the marks' timestamp and the read block."""
        choice = option.detail
        if isinstance(choice, collateral.Sale):
            return just(collateral.outcome_of(choice, repay_raw))
        return takeover.outcome_of(choice, repay_raw, self._taker)

    def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
        """Deposit, cancel orders, take over, close, withdraw and hold nothing; or buy collateral."""
        choice = option.detail
        if isinstance(choice, collateral.Sale):
            return collateral.calls_of(choice, option.key.account, repay_raw)
        return takeover.calls_of(choice, repay_raw, self._taker)

    def position_of(self, calldata: bytes) -> PositionKey | None:
        """Whose position or collateral such a call takes; None for anything else."""
        for function in (takeover.LIQUIDATE, collateral.LIQUIDATE_COLLATERAL):
            if calldata[:4] == function.selector:
                return self._key(Address(function.decode_input(calldata)[0]))
        return None

    def _key(self, account: Address) -> PositionKey:
        return PositionKey(self.name, self.market, account)

    @property
    def _taker(self) -> Address:
        if self._liquidator is None:
            raise AdapterError(
                f"{self.name} does not know the Liquidator, which would own what it takes over."
            )
        return self._liquidator

    def liquidation_price(self, position: Position, health: Health, marks: Marks) -> int | None:
        """The mark price of its largest position at which the health factor is 1, all else equal; in 10⁻¹⁸ dollars."""
        account: Account = health.detail
        if account.with_orders or not account.stakes:
            return None
        largest = max(account.stakes, key=lambda stake: stake.value_wad)
        if not largest.size:
            return None
        ratio = self.loaded.parameters.mm_ratio_ppm
        value = largest.value_wad if largest.size > 0 else -largest.value_wad
        others = account.value_wad - value - (account.requirement_wad - largest.value_wad * ratio // PPM)
        per_price = largest.size * PPM - abs(largest.size) * ratio
        price = -others * PPM * WAD // per_price
        return price if price > 0 else None


def _identity(entry: Entry) -> Address:
    return entry.base if isinstance(entry, Market) else entry.token.address
