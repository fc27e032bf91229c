"""The nouns and their units.

One line carries them: a `Head` refreshes the `Position`s it touched; each is assessed to a `Health`, planned into a
`Plan`, tried into a `Trial`, cleared into a `Clearance` (minted in `keeper.guard`), sent as a `Submission`, settled by
a `Settlement` and booked in the ledger. Any step may answer a `Refusal`.

Integers wear their unit in the name; addresses and hashes are bytes and are checksummed only where people read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NewType

import numpy as np
from numpy.typing import NDArray

Address = NewType("Address", bytes)  # 20 bytes
Hash = NewType("Hash", bytes)  # 32 bytes
Wei = NewType("Wei", int)
Gas = NewType("Gas", int)
BlockNumber = NewType("BlockNumber", int)

NO_WEI = Wei(0)
NO_GAS = Gas(0)
ZERO_ADDRESS = Address(bytes(20))
USD_E8 = 10**8  # a dollar
GLOBAL_SCOPE = Hash(bytes(32))  # PauseGuard's scope for everything

# --- what a chain is asked and answers -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One read: `data` is sent to `to` by eth_call."""

    to: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class Slot:
    """One read: the word at `key` of a contract's storage, for what none of its functions tells."""

    of: Address
    key: Hash


Question = Call | Slot


@dataclass(frozen=True, slots=True)
class Reverted:
    """A read that reverted, with its revert data."""

    data: bytes


Result = bytes | Reverted


@dataclass(frozen=True, slots=True)
class Log:
    """An event as the chain recorded it."""

    address: Address
    topics: tuple[Hash, ...]
    data: bytes
    block_number: BlockNumber
    block_hash: Hash
    transaction_hash: Hash
    index: int


@dataclass(frozen=True, slots=True)
class Filters:
    """Logs worth fetching: any of `addresses` with a first topic among `topics`."""

    addresses: tuple[Address, ...]
    topics: tuple[Hash, ...]


@dataclass(frozen=True, slots=True)
class Head:
    """A block header as the chain announced it; `seen_s` is the keeper's own monotonic clock at arrival."""

    number: BlockNumber
    hash: Hash
    parent_hash: Hash
    timestamp_s: int
    base_fee_wei: Wei
    gas_limit: Gas
    gas_used: Gas
    seen_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BlockTime:
    """The block something is evaluated at; prices and indices are as of `timestamp_s`."""

    number: BlockNumber
    hash: Hash
    timestamp_s: int


# --- positions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PositionKey:
    """One account in one market of one configured protocol."""

    protocol: str
    market: str
    account: Address


@dataclass(frozen=True, slots=True)
class Positions:
    """Many positions of one market, in columns.

    `words` has shape (n, width, 2), dtype uint64: each exact quantity as its high and low 64 bits; an adapter gives
    the words their meaning. `group` chooses the row block a position belongs to (an e-mode category). `live` is
    false where nothing is owed: such a position leaves the book. `always_check` marks positions without a bound.
    """

    protocol: str
    market: str
    accounts: tuple[Address, ...]
    words: NDArray[np.uint64]
    group: NDArray[np.int64]
    live: NDArray[np.bool_]
    always_check: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Position:
    """One position with its exact words decoded to integers."""

    key: PositionKey
    group: int
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Float exposures of positions, shape (n, columns): margin = values · weights, which may only over-select."""

    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Weights:
    """What one row block is multiplied with, and the slack below which a position may be liquidatable."""

    values: NDArray[np.float64]
    slack: float


@dataclass(frozen=True, slots=True)
class Marks:
    """Everything that moves without a position being touched: prices, accrued indices, governance parameters.

    `exact` is the adapter's own frozen record in integers; `weights` maps a row group to its column weights. Where one
    adapter has many markets, `parts` are those these marks are of, each a group of its own.
    """

    at: BlockTime
    market: str
    exact: Any
    weights: Mapping[int, Weights]
    parts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Token:
    """An ERC-20 with the decimals it reports."""

    address: Address
    symbol: str
    decimals: int


@dataclass(frozen=True, slots=True)
class BadDebt:
    """Debt in one token that no collateral covers; `usd_e8` is its worth, rounded up, None without a price of it."""

    token: Token
    raw: int
    usd_e8: int | None


@dataclass(frozen=True, slots=True)
class Health:
    """A position judged exactly as the protocol's contract would.

    Values are in the market's base currency with `base_decimals`. `health_factor_wad` is None without debt.
    `detail` is the adapter's own breakdown, read by `options`. `bad_debt` is by how much the debt exceeds all that the
    account has at the protocol's prices, by token owed; empty where it does not, or where the adapter cannot tell.
    """

    key: PositionKey
    health_factor_wad: int | None
    collateral_base: int
    debt_base: int
    base_decimals: int
    liquidatable: bool
    detail: Any = None
    bad_debt: tuple[BadDebt, ...] = ()


# --- decisions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """A decision not to act: which stage, one snake_case reason, and the numbers it was taken on."""

    stage: str
    reason: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Option:
    """One way to liquidate a position: repay `repay_token`, seize `seize_token`, at most `max_repay_raw`.

    Amounts to consider are `max_repay_raw`, anything from `min_repay_raw` to `partial_max_repay_raw`, and nothing
    between (dust rules forbid leaving too little); `detail` is the adapter's own. Rounds are those of the prices'
    feeds, None where nobody tells them. `call_gas` is what each further call of its kind takes in one transaction: of
    its own second step, or of another account's; 0 where it goes alone. Not `chosen`: a stranger
    tells the prices, and what they say of a token concerns no other position.
    """

    key: PositionKey
    repay_token: Token
    seize_token: Token
    max_repay_raw: int
    partial_max_repay_raw: int
    min_repay_raw: int
    repay_price_base: int
    seize_price_base: int
    detail: Any = None
    repay_round: int | None = None
    seize_round: int | None = None
    call_gas: int = 0
    chosen: bool = True


class Part(NamedTuple):
    """What one of several accounts has in an outcome."""

    key: PositionKey
    repay_raw: int
    seize_raw: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a liquidation of an option would move: the liquidator pays `repay_raw` and receives `seize_raw`.

    `later_raw` of the seized token is what it makes due to the liquidator in a later transaction, for gas again.
    `bad_debt_raw` of the repaid token is what is written off with it, at the cost of who lent it. `parts` are those of
    several accounts, one call each in the same order, and none where it is of one account.
    """

    repay_raw: int
    seize_raw: int
    later_raw: int = 0
    bad_debt_raw: int = 0
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class ProtocolCall:
    """One call of the Liquidator to a protocol; exactly `approve_raw` of `approve_token` is approved for it.

    With a `gas_limit` it may fail, and the plan goes on without it; 0 for a call that must succeed. `paid_after`: the
    protocol calls back between paying out and taking its payment (Morpho's `liquidate`), so the plan borrows nothing;
    it must be the plan's only call, and the data it passes on empty.
    """

    target: Address
    approve_token: Address
    approve_raw: int
    data: bytes
    gas_limit: int = 0
    paid_after: bool = False


@dataclass(frozen=True, slots=True)
class Path:
    """A route through one venue: n+1 tokens and n pool parameters (fee tiers)."""

    tokens: tuple[Address, ...]
    fees: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Quote:
    """What a venue gives for exactly `amount_in_raw`, or takes for exactly `amount_out_raw` when `exact_out`."""

    path: Path
    exact_out: bool
    amount_in_raw: int
    amount_out_raw: int
    gas: int


@dataclass(frozen=True, slots=True)
class SwapLeg:
    """A swap as the Liquidator takes it; `amount_raw` may be MAX_UINT256 (whole balance, or the flash shortfall)."""

    router: Address
    path: bytes
    exact_out: bool
    amount_raw: int
    limit_raw: int


class PoolId(NamedTuple):
    """A Uniswap V3 pool: its tokens, the lower address first, and its fee in millionths."""

    token0: Address
    token1: Address
    fee: int

    @property
    def tokens(self) -> tuple[Address, Address]:
        """Both tokens."""
        return self.token0, self.token1


@dataclass(frozen=True, slots=True)
class FlashQuote:
    """What it costs to borrow `token` for one transaction, and how much there is.

    `locked` is the pool that lends, which swaps for nobody meanwhile.
    """

    source: Address
    token: Address
    premium_bps: int
    available_raw: int
    locked: PoolId | None = None


@dataclass(frozen=True, slots=True)
class Weighed:
    """A way that a plan was weighed against, or its own, at the amount where it nets most.

    `net_raw` is in `profit_token`; `reason` says why it could not be taken, None where it could.
    """

    repay_token: Token
    seize_token: Token
    profit_token: Token
    lender: Address
    swaps: str
    repay_raw: int
    calls: int
    legs: int
    net_raw: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A complete liquidation, priced: what the Liquidator will do and what is expected of it.

    Profit is in raw units of `profit_token`. `expected_profit_raw` is gross (the treasury's delta); `gas_cost_raw` is
    the operator's gas priced in the profit token; `min_profit_raw` is what the contract enforces; `quotes` are what
    the legs were priced by. `later_raw` is what a later transaction is expected to bring, less its gas. `weighed` are
    the ways there were, best first. Costs and gas contain what its bytes should: `data_fee_wei`, `data_gas`. One that
    may lose `may_lose_usd_e8` nets less than the configured minimum, because its account has bad debt: the contract
    enforces that the treasury loses nothing, and gas beyond the profit is paid from a budget.
    """

    plan_id: Hash
    key: PositionKey
    option: Option
    outcome: Outcome
    flash: FlashQuote
    calls: tuple[ProtocolCall, ...]
    legs: tuple[SwapLeg, ...]
    tokens: tuple[Address, ...]
    profit_token: Token
    expected_profit_raw: int
    min_profit_raw: int
    gas_cost_raw: int
    gas_estimate: int
    gas_cost_wei: Wei
    profit_price_usd_e8: int
    repay_usd_e8: int
    health_factor_wad: int
    at: BlockTime
    quotes: tuple[Quote, ...] = ()
    later_raw: int = 0
    weighed: tuple[Weighed, ...] = ()
    may_lose_usd_e8: int = 0
    data_fee_wei: Wei = NO_WEI
    data_gas: Gas = NO_GAS

    @property
    def keys(self) -> tuple[PositionKey, ...]:
        """Every position it liquidates, `key` first."""
        return tuple(part.key for part in self.outcome.parts) or (self.key,)


@dataclass(frozen=True, slots=True)
class Trial:
    """What the exact calldata did in a simulated next block; its gas contains `data_gas`, which its bytes take.

    `skipped` are the calls that failed of those that may, where the node tells; `spare_gas` is what must be left for
    such a call to be tried at all, beyond what it took.
    """

    plan_id: Hash
    calldata: bytes
    at: BlockTime
    global_epoch: int
    protocol_epoch: int
    last_block: BlockNumber
    next_base_fee_wei: Wei
    gas_used: Gas
    profit_raw: int
    data_fee_wei: Wei = NO_WEI
    data_gas: Gas = NO_GAS
    skipped: tuple[int, ...] = ()
    spare_gas: Gas = NO_GAS


@dataclass(frozen=True, slots=True)
class Settlement:
    """A mined transaction: `profit_raw` is what the contract's own event says the treasury gained, 0 if reverted."""

    plan_id: Hash
    transaction_hash: Hash
    status: int
    block_number: BlockNumber
    block_hash: Hash
    gas_used: Gas
    gas_cost_wei: Wei
    profit_raw: int


def hex_of(value: bytes) -> str:
    """0x-prefixed lower-case hex."""
    return "0x" + value.hex()
