"""Aave V3 behind the `Adapter` seam: accounts from events, positions in columns, exact health and options.

A position's words are: the low and high half of the user's configuration bitmap, a flag for stable-rate debt, then for
each reserve by id the scaled collateral and the scaled variable debt, each only where the bitmap says it is used.
Reserves are only ever appended, so older and shorter rows keep their meaning when a reserve is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from keeper import abi
from keeper.errors import AdapterError
from keeper.fixed import BPS, WAD
from keeper.protocols.aave_v3.market import ATOKEN, ORACLE, POOL, PROVIDER, Market, Reserve, load_market
from keeper.protocols.aave_v3.marks import AaveMarks, read_marks
from keeper.protocols.aave_v3.rules import (
    SENTINEL_HEALTH_FACTOR_WAD,
    Pair,
    collateral_base,
    collateral_raw,
    debt_base,
    debt_raw,
    health_factor_wad,
    with_headroom_raw,
)
from keeper.seams import Reads, Touched, just
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    BlockTime,
    Filters,
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
    Result,
    Reverted,
    Rows,
    hex_of,
)

_LIQUIDATION_CALL: Final = POOL.function("liquidationCall")
LIQUIDATION_CALL_SELECTOR: Final = _LIQUIDATION_CALL.selector

_CONFIGURATOR: Final = abi.load("AavePoolConfigurator")
_USER_CONFIGURATION: Final = POOL.function("getUserConfiguration")
_USER_EMODE: Final = POOL.function("getUserEMode")
_SCALED_BALANCE: Final = ATOKEN.function("scaledBalanceOf")
_BALANCE: Final = ATOKEN.function("balanceOf")

_BORROWING_MASK: Final = int("01" * 128, 2)  # UserConfiguration.BORROWING_MASK
_HALF: Final = 128
_HALF_MASK: Final = (1 << _HALF) - 1
_WORD_MASK: Final = (1 << 64) - 1
_FIRST_RESERVE_WORD: Final = 3

# Which topics of an event name accounts whose position it touched.
_POOL_EVENTS: Final[Mapping[str, tuple[int, ...]]] = {
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
# Thresholds, bonuses, fees and pauses are read with the marks at every head; these change what is read at all.
_RELOADING: Final = {
    PROVIDER: (
        "PoolUpdated",
        "PoolConfiguratorUpdated",
        "PriceOracleUpdated",
        "PriceOracleSentinelUpdated",
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
_TOUCHING_TOPICS: Final = {POOL.event(name).topic: places for name, places in _POOL_EVENTS.items()}
_TRANSFER_TOPIC: Final = ATOKEN.event("Transfer").topic
_RELOADING_TOPICS: Final = frozenset(
    interface.event(name).topic for interface, names in _RELOADING.items() for name in names
)


def _address(value: object) -> object:
    return abi.address(value) if isinstance(value, str) else value


class AaveV3Config(BaseModel):
    """One Aave V3 market. `max_price_age_s` is checked where a price source tells its time; None checks nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["aave-v3"] = "aave-v3"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    pool_addresses_provider: Annotated[bytes, BeforeValidator(_address), Field(min_length=20, max_length=20)]
    from_block: int = Field(default=0, ge=0)
    max_price_age_s: int | None = Field(default=90_000, gt=0)


@dataclass(frozen=True, slots=True)
class Side:
    """One reserve on one side of an account: its amount and what that is worth in the base currency."""

    reserve_id: int
    amount_raw: int
    value_base: int


@dataclass(frozen=True, slots=True)
class Account:
    """The breakdown of a health: both sides, and Σ collateral value · threshold in base currency · bps.

    `uncounted` are reserve ids enabled as collateral that the version ignores, their threshold being 0.
    """

    collateral: tuple[Side, ...]
    debt: tuple[Side, ...]
    uncounted: tuple[int, ...]
    weighted_base_bps: int


@dataclass(frozen=True, slots=True)
class _Choice:
    """What an option remembers: its exact arithmetic, and whether its maximum takes all the close factor allows."""

    pool: Address
    pair: Pair
    takes_all: bool


class AaveV3:
    """One Aave V3 market of any version from 3.0 to 3.7; `market` is its addresses provider."""

    def __init__(self, config: AaveV3Config) -> None:
        self.name: str = config.name
        self.market: str = hex_of(config.pool_addresses_provider)
        self._provider = Address(config.pool_addresses_provider)
        self._max_price_age_s = config.max_price_age_s
        self._market: Market | None = None
        self._a_tokens: frozenset[Address] = frozenset()

    @property
    def loaded(self) -> Market:
        """The market as last loaded."""
        if self._market is None:
            raise AdapterError(f"{self.name} was used before it was loaded.")
        return self._market

    def load(self) -> Reads[None]:
        """Read addresses, reserves and e-modes."""
        self._market = yield from load_market(self._provider)
        self._a_tokens = frozenset(reserve.a_token for reserve in self._market.listed())

    def warnings(self) -> Sequence[str]:
        """Standing warnings: an unknown pool revision, price sources without a time."""
        return self.loaded.warnings

    def targets(self) -> Sequence[tuple[Address, bytes]]:
        """The pool's liquidationCall."""
        return [(self.loaded.pool, LIQUIDATION_CALL_SELECTOR)]

    def feeds(self) -> Mapping[Address, Address]:
        """Every reserve's token with its price source, where that is an aggregator and the market counts in USD."""
        if not self.loaded.base_is_usd:
            return {}
        return {
            reserve.token.address: reserve.price_source for reserve in self.loaded.listed() if reserve.timed
        }

    # --- discovery ---------------------------------------------------------------------------------------------------

    def sources(self) -> Filters:
        """Pool, configurator, oracle, addresses provider and every aToken."""
        market = self.loaded
        places = (market.provider, market.pool, market.configurator, market.oracle, *sorted(self._a_tokens))
        return Filters(places, (*_TOUCHING_TOPICS, _TRANSFER_TOPIC, *sorted(_RELOADING_TOPICS)))

    def discover(self, logs: Sequence[Log]) -> Touched:
        """Accounts in pool events and aToken transfers; a structural event asks for a reload."""
        market = self.loaded
        governing = (market.provider, market.configurator, market.oracle)
        accounts: set[bytes] = set()
        reload = False
        for log in logs:
            topic = log.topics[0] if log.topics else None
            if log.address == market.pool and topic in _TOUCHING_TOPICS:
                accounts.update(log.topics[place][12:] for place in _TOUCHING_TOPICS[topic])
            elif topic == _TRANSFER_TOPIC and log.address in self._a_tokens:
                accounts.update(entry[12:] for entry in log.topics[1:3])
            elif topic in _RELOADING_TOPICS and log.address in governing:
                reload = True
        accounts.discard(ZERO_ADDRESS)
        return Touched(frozenset(self._key(Address(account)) for account in accounts), reload)

    def enumerate(self) -> Reads[set[PositionKey]]:
        """Aave lists no accounts on chain."""
        empty: set[PositionKey] = set()
        return just(empty)

    # --- positions ---------------------------------------------------------------------------------------------------

    def refresh(self, keys: Sequence[PositionKey]) -> Reads[Positions]:
        """Read bitmaps and e-modes, then the balances the bitmaps name, of accounts that owe something."""
        market = self.loaded
        accounts = tuple(key.account for key in keys)
        calls = [_USER_CONFIGURATION.call(market.pool, account) for account in accounts]
        calls += [_USER_EMODE.call(market.pool, account) for account in accounts]
        results = (yield calls) if calls else []
        bitmaps = [_word(result, _USER_CONFIGURATION) for result in results[: len(accounts)]]
        group = np.array([_word(result, _USER_EMODE) for result in results[len(accounts) :]], dtype=np.int64)

        words = np.zeros((len(accounts), _FIRST_RESERVE_WORD + 2 * len(market.reserves), 2), dtype=np.uint64)
        live = np.zeros(len(accounts), dtype=np.bool_)
        cells: list[tuple[int, int]] = []
        calls = []
        for row, (account, bitmap) in enumerate(zip(accounts, bitmaps, strict=True)):
            live[row] = bool(bitmap & _BORROWING_MASK)
            if not live[row]:
                continue
            _put(words, row, 0, bitmap & _HALF_MASK)
            _put(words, row, 1, bitmap >> _HALF)
            for reserve_id in _used(bitmap):
                reserve = market.reserve(reserve_id)
                column = _FIRST_RESERVE_WORD + 2 * reserve_id
                if bitmap >> (2 * reserve_id + 1) & 1:
                    cells.append((row, column))
                    calls.append(_SCALED_BALANCE.call(reserve.a_token, account))
                if bitmap >> (2 * reserve_id) & 1:
                    cells.append((row, column + 1))
                    calls.append(_SCALED_BALANCE.call(reserve.debt_token, account))
                    if reserve.stable_debt_token != ZERO_ADDRESS:
                        cells.append((row, 2))
                        calls.append(_BALANCE.call(reserve.stable_debt_token, account))
        results = (yield calls) if calls else []
        for (row, column), result in zip(cells, results, strict=True):
            amount = _word(result, _SCALED_BALANCE)
            if column != 2:
                _put(words, row, column, amount)
            elif amount:
                _put(words, row, column, 1)
        return Positions(
            protocol=self.name,
            market=self.market,
            accounts=accounts,
            words=words,
            group=group,
            live=live,
            always_check=words[:, 2, 1] != 0,
        )

    def rows(self, positions: Positions) -> Rows:
        """Scaled collateral and debt of each reserve in turn, shape (n, 2 · reserves)."""
        exact = positions.words[:, _FIRST_RESERVE_WORD:]
        return Rows(exact[:, :, 0].astype(np.float64) * 2.0**64 + exact[:, :, 1].astype(np.float64))

    # --- marks and health --------------------------------------------------------------------------------------------

    def marks(self, at: BlockTime) -> Reads[Marks | Refusal]:
        """Prices, indices and parameters as a block at `at.timestamp_s` would compute them."""
        exact = yield from read_marks(self.loaded, self._max_price_age_s, at)
        if isinstance(exact, Refusal):
            return exact
        groups = (0, *self.loaded.emodes)
        return Marks(at, self.market, exact, {group: exact.weights(group) for group in groups})

    def assess(self, position: Position, marks: Marks) -> Health | Refusal:
        """The account's health as Pool.getUserAccountData would answer at the marks' timestamp and prices."""
        exact: AaveMarks = marks.exact
        market = exact.market
        rules = market.rules
        group = position.group
        if position.words[2]:
            return Refusal("assess", "stable_rate_debt", {"account": hex_of(position.key.account)})
        if group and group not in market.emodes:
            return Refusal("assess", "unknown_emode", {"category": group})
        bitmap = position.words[0] | position.words[1] << _HALF
        collateral: list[Side] = []
        debt: list[Side] = []
        uncounted: list[int] = []
        weighted = 0
        for reserve_id in _used(bitmap):
            reserve = market.reserve(reserve_id)
            state = exact.state(reserve_id)
            price = exact.price(reserve_id, group)
            refusal = _unusable(reserve, price, state.stale, state.price_age_s)
            if refusal:
                return refusal
            column = _FIRST_RESERVE_WORD + 2 * reserve_id
            enabled = bitmap >> (2 * reserve_id + 1) & 1
            if enabled and not exact.counted(reserve_id):
                uncounted.append(reserve_id)
            elif enabled:
                amount = collateral_raw(rules, position.words[column], state.liquidity_index_ray)
                value = collateral_base(amount, price, reserve.unit)
                collateral.append(Side(reserve_id, amount, value))
                weighted += value * exact.threshold_bps(reserve_id, group)
            if bitmap >> (2 * reserve_id) & 1:
                amount = debt_raw(rules, position.words[column + 1], state.debt_index_ray)
                debt.append(Side(reserve_id, amount, debt_base(rules, amount, price, reserve.unit)))
        total_collateral = sum(side.value_base for side in collateral)
        total_debt = sum(side.value_base for side in debt)
        health = health_factor_wad(rules, total_collateral, weighted, total_debt)
        return Health(
            key=position.key,
            health_factor_wad=health,
            collateral_base=total_collateral,
            debt_base=total_debt,
            base_decimals=market.base_decimals,
            liquidatable=health is not None and health < WAD,
            detail=Account(tuple(collateral), tuple(debt), tuple(uncounted), weighted),
        )

    def liquidation_price(self, position: Position, health: Health, marks: Marks) -> int | None:
        """The price of the largest collateral at which the health factor is 1, all else equal, in the base currency.

        None where no price of it does that: without debt or collateral, or when the rest alone decides.
        """
        exact: AaveMarks = marks.exact
        account: Account = health.detail
        if not account.collateral or not health.debt_base:
            return None
        largest = max(account.collateral, key=lambda side: side.value_base)
        reserve_id = largest.reserve_id
        threshold = exact.threshold_bps(reserve_id, position.group)
        owed = next((side for side in account.debt if side.reserve_id == reserve_id), Side(reserve_id, 0, 0))
        per_price = largest.amount_raw * threshold - owed.amount_raw * BPS
        others = account.weighted_base_bps - largest.value_base * threshold
        missing = (health.debt_base - owed.value_base) * BPS - others
        if per_price <= 0 or missing <= 0:
            return None
        return missing * exact.market.reserve(reserve_id).unit // per_price

    # --- liquidation -------------------------------------------------------------------------------------------------

    def options(self, position: Position, health: Health, marks: Marks) -> Sequence[Option | Refusal]:
        """Every debt against every collateral, as of the marks' timestamp; a forbidden pair says why."""
        if not health.liquidatable:
            return [Refusal("options", "healthy", {"health_factor_wad": str(health.health_factor_wad)})]
        account: Account = health.detail
        exact: AaveMarks = marks.exact
        collateral = [side for side in account.collateral if side.amount_raw]
        found: list[Option | Refusal] = [
            Refusal(
                "options", "collateral_not_enabled", {"token": exact.market.reserve(reserve_id).token.symbol}
            )
            for reserve_id in account.uncounted
        ]
        if not collateral:
            return [*found, Refusal("options", "no_collateral", {"debt_base": str(health.debt_base)})]
        for debt in account.debt:
            found += [
                self._option(position, health, exact, debt, side) for side in collateral if debt.amount_raw
            ]
        return found

    def outcome(self, option: Option, repay_raw: int) -> Outcome:
        """What the pool would move at the marks' timestamp if `liquidation_calls(option, repay_raw)` ran then."""
        choice: _Choice = option.detail
        moved = choice.pair.amounts(_offered_raw(option, repay_raw))
        return Outcome(moved.repay_raw, moved.seize_raw)

    def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
        """Pool.liquidationCall for the underlying token.

        The maximum is offered with a basis point of headroom, because the debt grows until the call is mined and a
        whole position must not be missed by its last second of interest; the pool takes only what is owed.
        """
        choice: _Choice = option.detail
        offered = _offered_raw(option, repay_raw)
        data = _LIQUIDATION_CALL.encode(
            option.seize_token.address, option.repay_token.address, option.key.account, offered, False
        )
        return [ProtocolCall(choice.pool, option.repay_token.address, offered, data)]

    def _option(
        self, position: Position, health: Health, exact: AaveMarks, debt: Side, collateral: Side
    ) -> Option | Refusal:
        market = exact.market
        group = position.group
        owed, held = market.reserve(debt.reserve_id), market.reserve(collateral.reserve_id)
        forbidden = _forbidden(exact, health, owed, held)
        if forbidden:
            return forbidden
        owed_state, held_state = exact.state(owed.id), exact.state(held.id)
        pair = Pair(
            rules=market.rules,
            health_factor_wad=health.health_factor_wad or 0,
            total_debt_base=health.debt_base,
            debt_raw=debt.amount_raw,
            debt_price=exact.liquidation_debt_price(owed.id, group),
            debt_unit=owed.unit,
            debt_index_ray=owed_state.debt_index_ray,
            collateral_raw=collateral.amount_raw,
            collateral_price=exact.price(held.id, group),
            collateral_unit=held.unit,
            collateral_index_ray=held_state.liquidity_index_ray,
            bonus_bps=exact.bonus_bps(held.id, group),
            fee_bps=held_state.config.fee_bps,
            liquidity_raw=held_state.liquidity_raw,
        )
        whole = pair.amounts(pair.cap_raw)
        takes_all = pair.pays_out(whole) and not pair.leaves_dust(whole)
        partial_max_raw = min(pair.partial_max_raw, whole.repay_raw)
        max_raw = whole.repay_raw if takes_all else partial_max_raw
        min_raw = pair.min_raw
        if partial_max_raw < min_raw:
            if not takes_all:
                reason = "dust" if pair.pays_out(whole) else "insufficient_liquidity"
                numbers = {"repay_raw": str(whole.repay_raw), "seize_raw": str(whole.seize_raw)}
                return Refusal("options", reason, {**_named(owed, held), **numbers})
            partial_max_raw = 0
        return Option(
            key=position.key,
            repay_token=owed.token,
            seize_token=held.token,
            max_repay_raw=max_raw,
            partial_max_repay_raw=partial_max_raw,
            min_repay_raw=min_raw,
            repay_price_base=pair.debt_price,
            seize_price_base=pair.collateral_price,
            detail=_Choice(market.pool, pair, takes_all),
        )

    def _key(self, account: Address) -> PositionKey:
        return PositionKey(self.name, self.market, account)


def _word(result: Result, function: abi.Function) -> int:
    """A one-word answer; the configuration bitmap is a struct of one word."""
    if isinstance(result, Reverted) or len(result) != 32:
        raise AdapterError(f"{function.signature} did not answer one word.")
    return int.from_bytes(result)


def _put(words: NDArray[np.uint64], row: int, column: int, value: int) -> None:
    words[row, column, 0] = value >> 64
    words[row, column, 1] = value & _WORD_MASK


def _used(bitmap: int) -> list[int]:
    """Reserve ids with a bit for collateral or borrowing, rising."""
    used = []
    pairs = (bitmap | bitmap >> 1) & _BORROWING_MASK
    while pairs:
        lowest = pairs & -pairs
        used.append((lowest.bit_length() - 1) >> 1)
        pairs ^= lowest
    return used


def _unusable(reserve: Reserve, price: int, stale: bool, age_s: int | None) -> Refusal | None:
    if not price:
        return Refusal("assess", "missing_price", {"token": reserve.token.symbol})
    if stale:
        return Refusal("assess", "stale_price", {"token": reserve.token.symbol, "age_s": age_s})
    return None


def _forbidden(exact: AaveMarks, health: Health, owed: Reserve, held: Reserve) -> Refusal | None:
    """Why the pool would reject this pair whatever the amount (ValidationLogic.validateLiquidationCall)."""
    for reserve in (held, owed):
        config = exact.state(reserve.id).config
        if not config.active:
            return Refusal("options", "reserve_inactive", {"token": reserve.token.symbol})
        if config.paused:
            return Refusal("options", "reserve_paused", {"token": reserve.token.symbol})
        if reserve.grace_until_s and reserve.grace_until_s >= exact.timestamp_s:
            return Refusal(
                "options", "grace_period", {"token": reserve.token.symbol, "until_s": reserve.grace_until_s}
            )
    if not exact.sentinel_allows and (health.health_factor_wad or 0) >= SENTINEL_HEALTH_FACTOR_WAD:
        return Refusal("options", "sentinel", {"health_factor_wad": str(health.health_factor_wad)})
    return None


def _offered_raw(option: Option, repay_raw: int) -> int:
    choice: _Choice = option.detail
    if choice.takes_all and repay_raw >= option.max_repay_raw:
        return with_headroom_raw(option.max_repay_raw)
    return min(repay_raw, option.max_repay_raw)


def _named(owed: Reserve, held: Reserve) -> dict[str, str]:
    return {"repay_token": owed.token.symbol, "seize_token": held.token.symbol}
