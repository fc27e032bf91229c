"""A toy perp exchange as a package of its own: one market, isolated margin, a reward in cash."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from keeper.abi import Abi, Function, load
from keeper.errors import AdapterError
from keeper.seams import UPGRADE_TOPICS, ConfigAddress, Reads, Touched, just, symbol_of
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
    Result,
    Reverted,
    Rows,
    Token,
    Weights,
    hex_of,
)

TOY: Final = Abi.from_json(json.loads(Path(__file__).with_name("ToyPerp.json").read_text()))
ERC20, FEED = load("Erc20"), load("ChainlinkFeed")

MONEY_DECIMALS: Final = 6
UNIT: Final = 10**20  # size has 18 decimals, prices 8, money 6
MAINTENANCE: Final = 20  # the twentieth of the notional
REWARD: Final = 5  # the fifth of the maintenance margin
WAD: Final = 10**18
_PRICE_TO_BASE: Final = 100  # from 8 decimals to 6
_ERROR: Final = 1e-12  # of each term of a row, far above what floats lose


class ToyPerpConfig(BaseModel):
    """Its table in `keeper.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["toy-perp"] = "toy-perp"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    exchange: ConfigAddress
    from_block: int = Field(default=0, ge=0)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the exchange was made with."""

    token: Token
    feed: Address
    max_age_s: int


@dataclass(frozen=True, slots=True)
class ToyMarks:
    """What moves: the feed's price, and whether liquidations are stopped."""

    price_e8: int
    paused: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """The contract's two figures, in raw units of its token."""

    equity_raw: int
    maintenance_raw: int


class ToyPerp:
    """The adapter of one toy exchange. Words of a position: margin_raw, size (18 decimals), entry_e8."""

    config: Final = ToyPerpConfig
    settled_jointly = False
    plan_gas = 250_000

    @classmethod
    def made_of(cls, config: ToyPerpConfig, liquidator: Address | None) -> tuple[ToyPerp]:
        """The one adapter of a table; a reward in cash is nobody's position, whoever the Liquidator is."""
        return (cls(config),)

    def __init__(self, config: ToyPerpConfig) -> None:
        self.name, self.market = config.name, hex_of(config.exchange)
        self._address = config.exchange
        self._loaded: Loaded | None = None

    # --- what it is --------------------------------------------------------------------------------------------------

    def load(self) -> Reads[None]:
        """Read the token and the feed. Raises `AdapterError` where this is no toy exchange."""
        asked = [TOY.function(name) for name in ("TOKEN", "FEED", "MAX_AGE_S")]
        results = yield [function.call(self._address) for function in asked]
        token, feed, max_age_s = (_one(*each) for each in zip(asked, results, strict=True))
        symbol, decimals = yield [ERC20.function(name).call(token) for name in ("symbol", "decimals")]
        places = _one(ERC20.function("decimals"), decimals)
        if places != MONEY_DECIMALS:
            raise AdapterError(
                f"{hex_of(token)} has {places} decimals; a toy exchange counts in {MONEY_DECIMALS}."
            )
        self._loaded = Loaded(Token(token, symbol_of(symbol, token), places), feed, max_age_s)

    def warnings(self) -> Sequence[str]:
        """None."""
        return ()

    def targets(self) -> Sequence[tuple[Address, bytes]]:
        """`liquidate`, which pays nobody but its caller."""
        return [(self._address, TOY.function("liquidate").selector)]

    def feeds(self) -> Mapping[Address, Address]:
        """None: the exchange takes its token for a dollar."""
        return {}

    def contracts(self) -> Mapping[str, Address]:
        """The exchange, its token and its feed."""
        loaded = self._known()
        return {"exchange": self._address, "token": loaded.token.address, "feed": loaded.feed}

    # --- what it hears -----------------------------------------------------------------------------------------------

    def sources(self) -> Filters:
        """Both events of positions, and what a proxy in front would say."""
        own = (TOY.event("Changed").topic, TOY.event("Liquidated").topic)
        return Filters((self._address,), (*own, *UPGRADE_TOPICS))

    def discover(self, logs: Sequence[Log]) -> Touched:
        """Whose position changed or was liquidated."""
        own = [log for log in logs if log.address == self._address and log.topics]
        touched = [
            event.decode(log)["account"]
            for event in (TOY.event("Changed"), TOY.event("Liquidated"))
            for log in own
            if log.topics[0] == event.topic
        ]
        return Touched(
            frozenset(map(self._key, touched)), any(log.topics[0] in UPGRADE_TOPICS for log in own)
        )

    def liquidations(self, logs: Sequence[Log]) -> Sequence[tuple[PositionKey, Hash]]:
        """Whose position was liquidated, by which transaction."""
        event = TOY.event("Liquidated")
        return [
            (self._key(event.decode(log)["account"]), log.transaction_hash)
            for log in logs
            if log.address == self._address and log.topics[:1] == (event.topic,)
        ]

    def written_off(self, log: Log, marks: Marks | None) -> tuple[PositionKey, BadDebt] | None:
        """None: what is missing is missing from the exchange, and no event tells."""
        return None

    def enumerate(self) -> Reads[set[PositionKey]]:
        """Empty: the exchange lists nobody."""
        return just(set())

    # --- what it reads -----------------------------------------------------------------------------------------------

    def keys_of(self, account: Address) -> Sequence[PositionKey]:
        """The account's one position."""
        return [self._key(account)]

    def refresh(self, keys: Sequence[PositionKey]) -> Reads[Positions]:
        """Margin, size and entry; no position where the size is 0."""
        held = TOY.function("held")
        results = yield [held.call(self._address, key.account) for key in keys]
        told = [_answered(held, result) for result in results]
        words = np.zeros((len(told), 3, 2), dtype=np.uint64)
        for row, figures in enumerate(told):
            for column, figure in enumerate(figures):
                word = figure & (1 << 128) - 1
                words[row, column] = word >> 64, word & (1 << 64) - 1
        return Positions(
            protocol=self.name,
            market=self.market,
            accounts=tuple(key.account for key in keys),
            words=words,
            group=np.zeros(len(told), dtype=np.int64),
            live=np.array([size != 0 for _, size, _ in told], dtype=np.bool_),
            always_check=np.zeros(len(told), dtype=np.bool_),
        )

    def marks(self, at: BlockTime) -> Reads[Marks | Refusal]:
        """The price and the pause; a price the contract would not take at `at` is a refusal."""
        loaded, round_data = self._known(), FEED.function("latestRoundData")
        told, stopped = yield [round_data.call(loaded.feed), TOY.function("paused").call(self._address)]
        paused = _one(TOY.function("paused"), stopped)
        if isinstance(told, Reverted):
            return Refusal("marks", "no_price", {"feed": hex_of(loaded.feed)})
        _, price_e8, _, updated_at_s, _ = round_data.decode(told)
        if not 0 < price_e8 < 1 << 96:
            return Refusal("marks", "no_price", {"price_e8": str(price_e8)})
        if not 0 <= at.timestamp_s - updated_at_s <= loaded.max_age_s:
            numbers = {"updated_at_s": str(updated_at_s), "max_age_s": str(loaded.max_age_s)}
            return Refusal("marks", "stale_price", numbers)
        values = np.array([1.0, -_ERROR, float(price_e8), -price_e8 * (1 / MAINTENANCE + _ERROR)])
        # Both of the contract's figures are cut to a raw unit.
        weights = {0: Weights(values, slack=2.0 * UNIT)}
        return Marks(at, self.market, ToyMarks(price_e8, paused), weights)

    def prices(self, marks: Marks) -> Mapping[Address, int]:
        """The market's price, under its feed: no token stands for the market."""
        return {self._known().feed: marks.exact.price_e8 // _PRICE_TO_BASE}

    # --- how it judges -----------------------------------------------------------------------------------------------

    def rows(self, positions: Positions) -> Rows:
        """What a position is worth at a price of 0, and its size, each with its absolute value."""
        rows = np.zeros((len(positions.accounts), 4), dtype=np.float64)
        for row, words in enumerate(positions.words.tolist()):
            margin_raw, size, entry_e8 = _decoded([high << 64 | low for high, low in words])
            constant = margin_raw * UNIT - size * entry_e8
            rows[row] = constant, abs(constant), size, abs(size)
        return Rows(rows)

    def assess(self, position: Position, marks: Marks) -> Health | Refusal:
        """Equity and maintenance margin as `judge` tells them."""
        margin_raw, size, entry_e8 = _decoded(position.words)
        price_e8 = marks.exact.price_e8
        gain = size * (price_e8 - entry_e8)
        equity_raw = margin_raw + (gain // UNIT if gain >= 0 else -(-gain // UNIT))
        maintenance_raw = abs(size) * price_e8 // UNIT // MAINTENANCE
        there = max(equity_raw, 0)
        return Health(
            key=position.key,
            health_factor_wad=there * WAD // maintenance_raw if maintenance_raw else None,
            collateral_base=there,
            debt_base=maintenance_raw,
            base_decimals=MONEY_DECIMALS,
            liquidatable=equity_raw < maintenance_raw,
            detail=Judged(equity_raw, maintenance_raw),
        )

    def liquidation_price(self, position: Position, health: Health, marks: Marks) -> int | None:
        """The price at which equity is the maintenance margin, cut to 6 decimals; None where no price is."""
        margin_raw, size, entry_e8 = _decoded(position.words)
        # margin · UNIT + size · (price − entry) = |size| · price / 20, solved for the price
        above = MAINTENANCE * (size * entry_e8 - margin_raw * UNIT)
        below = MAINTENANCE * size - abs(size)
        price_e8 = above // below
        return price_e8 // _PRICE_TO_BASE if price_e8 > 0 else None

    # --- how it liquidates -------------------------------------------------------------------------------------------

    def options(self, position: Position, health: Health, marks: Marks) -> Sequence[Option | Refusal]:
        """The one way there is: the whole position, for a reward in cash."""
        if not health.liquidatable:
            return [Refusal("options", "healthy", {"health_factor_wad": str(health.health_factor_wad)})]
        if marks.exact.paused:
            return [Refusal("options", "protocol_paused", {})]
        judged: Judged = health.detail
        reward_raw = min(judged.maintenance_raw // REWARD, max(judged.equity_raw, 0))
        if not reward_raw:
            return [Refusal("options", "no_reward", {"equity_raw": str(judged.equity_raw)})]
        token, dollar = self._known().token, 10**health.base_decimals
        return [Option(position.key, token, token, 0, 0, 0, dollar, dollar, detail=reward_raw)]

    def outcome(self, option: Option, repay_raw: int) -> Reads[Outcome | Refusal]:
        """Nothing is paid, the reward is received."""
        return just(Outcome(0, option.detail))

    def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
        """One call, which pays its caller."""
        data = TOY.function("liquidate").encode(option.key.account)
        return [ProtocolCall(self._address, ZERO_ADDRESS, 0, data)]

    def position_of(self, calldata: bytes) -> PositionKey | None:
        """Whose liquidation it is."""
        try:
            [account] = TOY.function("liquidate").decode_input(calldata)
        except AdapterError:
            return None
        return self._key(Address(account))

    def _key(self, account: Address) -> PositionKey:
        return PositionKey(self.name, self.market, account)

    def _known(self) -> Loaded:
        if self._loaded is None:
            raise AdapterError(f"{self.name} is not loaded yet: load it first.")
        return self._loaded


def _answered(function: Function, result: Result) -> tuple[Any, ...]:
    if isinstance(result, Reverted):
        raise AdapterError(
            f"{function.signature} reverted with {hex_of(result.data)}: is this a toy exchange?"
        )
    return function.decode(result)


def _one(function: Function, result: Result) -> Any:
    [value] = _answered(function, result)
    return value


def _decoded(words: Sequence[int]) -> tuple[int, int, int]:
    margin_raw, size, entry_e8 = words
    return margin_raw, size - (1 << 128) if size >> 127 else size, entry_e8
