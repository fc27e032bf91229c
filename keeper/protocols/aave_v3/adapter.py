"""Aave V3 behind the `Adapter` seam, and which events touch what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from keeper import abi
from keeper.errors import AdapterError
from keeper.fixed import mul_div_up
from keeper.protocols.aave_v3.health import judge, liquidation_price
from keeper.protocols.aave_v3.market import (
    ATOKEN,
    ORACLE,
    POOL,
    PROVIDER,
    Market,
    contracts_of,
    load_market,
)
from keeper.protocols.aave_v3.marks import MarksReader
from keeper.protocols.aave_v3.options import (
    LIQUIDATION_CALL_SELECTOR,
    account_of,
    calls_of,
    find_options,
    outcome_of,
)
from keeper.protocols.aave_v3.positions import read_positions, rows_of
from keeper.seams import UPGRADE_TOPICS, ConfigAddress, Reads, Touched, just
from keeper.types import (
    USD_E8,
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

_CONFIGURATOR: Final = abi.load("AavePoolConfigurator")

# Which topics of a pool event name the accounts whose position it touched.
_TOUCHING: Final[Mapping[str, tuple[int, ...]]] = {
    "Supply": (2,),
    "MintUnbacked": (2,),
    "Withdraw": (2,),
    "Borrow": (2,),
    "Repay": (2,),
    "SwapBorrowRateMode": (2,),
    "RebalanceStableBorrowRate": (2,),
    "UserEModeSet": (1,),
    "ReserveUsedAsCollateralEnabled": (2,),
    "ReserveUsedAsCollateralDisabled": (2,),
    "LiquidationCall": (3,),
    "DeficitCreated": (1,),
}
# Thresholds, bonuses, fees and pauses come with the marks of every head; these change what is read at all.
_RELOADING: Final = {
    PROVIDER: (
        "PoolUpdated",
        "PoolConfiguratorUpdated",
        "PriceOracleUpdated",
        "PriceOracleSentinelUpdated",
        "ACLManagerUpdated",
        "PoolDataProviderUpdated",
        "AddressSet",
        "AddressSetAsProxy",
        "ProxyCreated",
    ),
    _CONFIGURATOR: (
        "ReserveInitialized",
        "ReserveDropped",
        "EModeCategoryAdded",
        "EModeAssetCategoryChanged",
        "AssetCollateralInEModeChanged",
        "LiquidationGracePeriodChanged",
        "LiquidationGracePeriodDisabled",
        "ATokenUpgraded",
        "StableDebtTokenUpgraded",
        "VariableDebtTokenUpgraded",
    ),
    ORACLE: ("AssetSourceUpdated", "FallbackOracleUpdated"),
}
_TOUCHING_TOPICS: Final = {POOL.event(name).topic: places for name, places in _TOUCHING.items()}
_LIQUIDATED_TOPIC: Final = POOL.event("LiquidationCall").topic
_DEFICIT: Final = POOL.event("DeficitCreated")
_TRANSFER_TOPIC: Final = ATOKEN.event("Transfer").topic
_RELOADING_TOPICS: Final = frozenset(
    interface.event(name).topic for interface, names in _RELOADING.items() for name in names
)


class AaveV3Config(BaseModel):
    """One Aave V3 market. `max_price_age_s` is checked where a price source tells its time; None checks nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["aave-v3"] = "aave-v3"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    pool_addresses_provider: ConfigAddress
    from_block: int = Field(default=0, ge=0)
    max_price_age_s: int | None = Field(default=90_000, gt=0)


class AaveV3:
    """One Aave V3 market of any version from 3.0 to 3.7; its `market` is its addresses provider."""

    config: Final = AaveV3Config
    settled_jointly = False
    plan_gas = 450_000

    @classmethod
    def made_of(cls, config: AaveV3Config, liquidator: Address | None) -> tuple[AaveV3]:
        """The market of one table; who liquidates makes no difference here."""
        return (cls(config),)

    def __init__(self, config: AaveV3Config) -> None:
        self.name: str = config.name
        self.market: str = hex_of(config.pool_addresses_provider)
        self._provider = config.pool_addresses_provider
        self._max_price_age_s = config.max_price_age_s
        self._market: Market | None = None
        self._marks: MarksReader | None = None
        self._latest: Marks | None = None
        self._a_tokens: frozenset[Address] = frozenset()

    @property
    def loaded(self) -> Market:
        """The market as last loaded."""
        if self._market is None:
            raise AdapterError(f"{self.name} was used before it was loaded.")
        return self._market

    def load(self) -> Reads[None]:
        """Read addresses, reserves and e-modes."""
        market = yield from load_market(self._provider)
        self._market = market
        self._marks = MarksReader(market, self._max_price_age_s)
        self._latest = None
        self._a_tokens = frozenset(reserve.a_token for reserve in market.listed())

    def warnings(self) -> Sequence[str]:
        """Standing warnings: an unknown pool revision, price sources that tell no time."""
        return self.loaded.warnings

    def targets(self) -> Sequence[tuple[Address, bytes]]:
        """The pool's liquidationCall."""
        return [(self.loaded.pool, LIQUIDATION_CALL_SELECTOR)]

    def feeds(self) -> Mapping[Address, Address]:
        """Every reserve's token with its price source, where that is an aggregator."""
        return {
            reserve.token.address: reserve.price_source for reserve in self.loaded.listed() if reserve.timed
        }

    def contracts(self) -> Mapping[str, Address]:
        """Provider, pool, configurator, oracle and its sources, roles, and every reserve's tokens."""
        return contracts_of(self.loaded)

    def sources(self) -> Filters:
        """Pool, configurator, oracle and its sources, addresses provider and every aToken."""
        market = self.loaded
        prices = {reserve.price_source for reserve in market.listed()}
        places = (
            market.provider,
            market.pool,
            market.configurator,
            market.oracle,
            *sorted(self._a_tokens | prices),
        )
        topics = (*_TOUCHING_TOPICS, _TRANSFER_TOPIC, *sorted(_RELOADING_TOPICS), *UPGRADE_TOPICS)
        return Filters(places, topics)

    def discover(self, logs: Sequence[Log]) -> Touched:
        """Accounts in pool events and aToken transfers; a structural event asks for a reload.

        Transfers include every mint and burn, so a balance that changed by any way at all is found.
        """
        market = self.loaded
        governing = (market.provider, market.configurator, market.oracle)
        accounts: set[bytes] = set()
        reload = False
        for log in logs:
            topic = log.topics[0] if log.topics else None
            if log.address == market.pool and topic in _TOUCHING_TOPICS:
                places = (place for place in _TOUCHING_TOPICS[topic] if place < len(log.topics))
                accounts.update(log.topics[place][12:] for place in places)
            elif topic == _TRANSFER_TOPIC and log.address in self._a_tokens:
                accounts.update(party[12:] for party in log.topics[1:3])
            elif topic in _RELOADING_TOPICS and log.address in governing:
                reload = True
        accounts.discard(ZERO_ADDRESS)
        return Touched(frozenset(self._key(Address(account)) for account in accounts), reload)

    def liquidations(self, logs: Sequence[Log]) -> Sequence[tuple[PositionKey, Hash]]:
        """The pool's LiquidationCall events: the account is their third indexed value."""
        return [
            (self._key(Address(log.topics[3][12:])), log.transaction_hash)
            for log in logs
            if log.address == self.loaded.pool and log.topics[:1] == (_LIQUIDATED_TOPIC,)
        ]

    def written_off(self, log: Log, marks: Marks | None) -> tuple[PositionKey, BadDebt] | None:
        """The pool's DeficitCreated (3.3+): what an account still owed when its last collateral was seized."""
        market = self.loaded
        if log.address != market.pool or log.topics[:1] != (_DEFICIT.topic,):
            return None
        event = _DEFICIT.decode(log)
        owed = next((each for each in market.listed() if each.token.address == event["debtAsset"]), None)
        if owed is None:
            raise AdapterError(f"{self.name} wrote off {hex_of(event['debtAsset'])}, which it does not list.")
        price = marks.exact.state(owed.id).price if marks else 0
        worth = mul_div_up(event["amountCreated"] * price, USD_E8, owed.unit * 10**market.base_decimals)
        return self._key(event["user"]), BadDebt(owed.token, event["amountCreated"], worth if price else None)

    def enumerate(self) -> Reads[set[PositionKey]]:
        """Aave lists no accounts on chain."""
        nobody: set[PositionKey] = set()
        return just(nobody)

    def keys_of(self, account: Address) -> Sequence[PositionKey]:
        """The account's one position."""
        return [self._key(account)]

    def refresh(self, keys: Sequence[PositionKey]) -> Reads[Positions]:
        """Read bitmaps and e-modes, then only the balances the bitmaps name."""
        return read_positions(self.name, self.market, self.loaded, keys)

    def rows(self, positions: Positions) -> Rows:
        """Scaled collateral and debt of each reserve in turn, shape (n, 2 · reserves)."""
        return rows_of(positions)

    def marks(self, at: BlockTime) -> Reads[Marks | Refusal]:
        """Prices, indices and parameters as a block at `at.timestamp_s` would compute them.

        Indices are projected from each reserve's last update, so `at` may lie in the future of its own block hash.
        The last marks are kept: asked for again, by a flash source say, they cost no round.
        """
        if self._marks is None:
            raise AdapterError(f"{self.name} was used before it was loaded.")
        if self._latest is not None and self._latest.at == at:
            return self._latest
        exact = yield from self._marks.read(at)
        if isinstance(exact, Refusal):
            return exact
        self._latest = Marks(at, self.market, exact, exact.weights())
        return self._latest

    def prices(self, marks: Marks) -> Mapping[Address, int]:
        """Every reserve's price in the base currency, 0 where there is none."""
        market, states = self.loaded, marks.exact.states
        return {each.token.address: states[each.id].price for each in market.listed()}

    def assess(self, position: Position, marks: Marks) -> Health | Refusal:
        """The account's health as Pool.getUserAccountData would answer at the marks' timestamp and prices."""
        return judge(position, marks.exact)

    def liquidation_price(self, position: Position, health: Health, marks: Marks) -> int | None:
        """The price of the largest collateral at which the health factor is 1, in the base currency; None if none."""
        return liquidation_price(health, marks.exact)

    def options(self, position: Position, health: Health, marks: Marks) -> Sequence[Option | Refusal]:
        """Every debt against every collateral, as of the marks' timestamp; a forbidden pair says why."""
        return find_options(health, marks.exact)

    def outcome(self, option: Option, repay_raw: int) -> Reads[Outcome | Refusal]:
        """What the pool would move if `liquidation_calls(option, repay_raw)` ran at the marks' timestamp."""
        return just(outcome_of(option, repay_raw))

    def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
        """Pool.liquidationCall for the underlying token; at the maximum it offers a basis point more than is owed."""
        return calls_of(option, repay_raw)

    def position_of(self, calldata: bytes) -> PositionKey | None:
        """Whose liquidation this Pool.liquidationCall is; None for anything else."""
        account = account_of(calldata)
        return None if account is None else self._key(account)

    def _key(self, account: Address) -> PositionKey:
        return PositionKey(self.name, self.market, account)
