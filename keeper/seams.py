"""The places where implementations swap: protocols, venues and flash sources.

All three are sans-I/O: a read is a generator that yields calls and receives return data, and whoever drives it pins
every round to one block hash. Adapters therefore run the same against a live node, a fork or a recorded fixture.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, Final, Protocol, TypeVar

from pydantic import BeforeValidator, Field

from keeper import abi
from keeper.errors import AdapterError
from keeper.types import (
    Address,
    BadDebt,
    BlockTime,
    Filters,
    FlashQuote,
    Hash,
    Health,
    Log,
    Marks,
    Option,
    Outcome,
    Path,
    Position,
    PositionKey,
    Positions,
    ProtocolCall,
    Question,
    Quote,
    Refusal,
    Result,
    Reverted,
    Rows,
    SwapLeg,
    hex_of,
)

T = TypeVar("T")

Reads = Generator[Sequence[Question], Sequence[Result], T]


def _address(value: object) -> object:
    return abi.address(value) if isinstance(value, str) else value


# An address in the configuration of a protocol or a venue, where it is text.
ConfigAddress = Annotated[Address, BeforeValidator(_address), Field(min_length=20, max_length=20)]

# What an EIP-1967 proxy says when its code, its beacon or who may change them is replaced.
UPGRADE_TOPICS: Final = tuple(
    abi.load("Eip1967").event(name).topic for name in ("Upgraded", "BeaconUpgraded", "AdminChanged")
)

_SYMBOL: Final = abi.load("Erc20").function("symbol")
_LONGEST_SYMBOL: Final = 64


class VenueKind(IntEnum):
    """How the Liquidator swaps at a router (`ILiquidator.VenueKind`)."""

    NONE = 0
    UNISWAP_V3 = 1
    UNISWAP_V2 = 2


class FlashKind(IntEnum):
    """How the Liquidator borrows from a flash source (`ILiquidator.FlashKind`)."""

    NONE = 0
    AAVE_V3 = 1
    MORPHO = 2
    UNISWAP_V3 = 3


@dataclass(frozen=True, slots=True)
class Touched:
    """What logs say: positions to read again, and whether addresses or parameters must be loaded again first."""

    keys: frozenset[PositionKey]
    reload: bool


class Taking(Protocol):
    """How much an option moves, and by which calls: what planning asks of an adapter."""

    def outcome(self, option: Option, repay_raw: int) -> Reads[Outcome | Refusal]:
        """What repaying `repay_raw` would move, rounded as the contract rounds; no round where the option tells it.

        Where the liquidator inherits a position, it is what is left once that position is closed again.
        """
        ...

    def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
        """Calls of the Liquidator that carry it out."""
        ...


class Adapter(Taking, Protocol):
    """One lending or perp protocol instance; one file in `keeper/protocols`.

    `settled_jointly`: its calls only make sense together (margin goes in, a position is taken over and closed, and
    margin comes out), so the Liquidator must judge their sum instead of each.

    `market` is the market of its keys; an adapter of many markets names each of them in its keys, and itself here.

    `plan_gas` is what a cheap plan takes besides its swaps (flash loan, liquidation, feeds, end check): a first guess,
    since the trial and not this figure has the last word on a plan that seems to pay.
    """

    name: str
    market: str
    settled_jointly: bool
    plan_gas: int

    def load(self) -> Reads[None]:
        """Read the addresses and parameters everything else relies on; run at start and when `Touched.reload`."""
        ...

    def warnings(self) -> Sequence[str]:
        """Standing warnings after `load` (an unknown protocol revision, say)."""
        ...

    def targets(self) -> Sequence[tuple[Address, bytes]]:
        """Contracts the Liquidator calls for it, each with a 4-byte selector; valid after `load`."""
        ...

    def feeds(self) -> Mapping[Address, Address]:
        """Every token it may repay or seize with the USD aggregator its own oracle names; valid after `load`.

        The Liquidator asks such an aggregator for `latestRoundData` and `decimals`. A token whose price comes from
        elsewhere is left out.
        """
        ...

    def contracts(self) -> Mapping[str, Address]:
        """Every contract it relies on, by what it is to it; whose code changes stops it. Valid after `load`."""
        ...

    def sources(self) -> Filters:
        """Logs that touch positions, marks, parameters or code; valid after `load`."""
        ...

    def discover(self, logs: Sequence[Log]) -> Touched:
        """Positions those logs touched."""
        ...

    def liquidations(self, logs: Sequence[Log]) -> Sequence[tuple[PositionKey, Hash]]:
        """Every liquidation in those logs: of which position, and by which transaction."""
        ...

    def written_off(self, log: Log, marks: Marks | None) -> tuple[PositionKey, BadDebt] | None:
        """Whose debt the log says nobody will repay any more, and how much; None where it says no such thing.

        Its worth is by `marks`, where there are any. Raises `AdapterError` for a log that cannot be read.
        """
        ...

    def enumerate(self) -> Reads[set[PositionKey]]:
        """Accounts, where the chain lists them; else empty."""
        ...

    def keys_of(self, account: Address) -> Sequence[PositionKey]:
        """Every position an account may have in the markets known so far; valid after `load`."""
        ...

    def refresh(self, keys: Sequence[PositionKey]) -> Reads[Positions]:
        """Read positions of one market exactly, in columns."""
        ...

    def marks(self, at: BlockTime) -> Reads[Marks | Refusal]:
        """Read prices, indices and parameters as of `at`; a stale or missing price is a Refusal."""
        ...

    def prices(self, marks: Marks) -> Mapping[Address, int]:
        """Every token's price in the base currency, 0 where there is none."""
        ...

    def rows(self, positions: Positions) -> Rows:
        """Float exposures that may only over-select."""
        ...

    def assess(self, position: Position, marks: Marks) -> Health | Refusal:
        """Judge one position exactly, with the contract's own rounding."""
        ...

    def liquidation_price(self, position: Position, health: Health, marks: Marks) -> int | None:
        """The price in base currency of its largest collateral at which it becomes liquidatable; None without one."""
        ...

    def options(self, position: Position, health: Health, marks: Marks) -> Sequence[Option | Refusal]:
        """Every way the protocol allows to liquidate it now; a forbidden pair is a Refusal."""
        ...

    def position_of(self, calldata: bytes) -> PositionKey | None:
        """Which position's liquidation the calldata of such a call is; None where it is none."""
        ...


class Venue(Protocol):
    """A place to swap; one file in `keeper/venues`. `router` is what the Liquidator calls."""

    kind: VenueKind
    router: Address

    def contracts(self) -> Mapping[str, Address]:
        """Every contract it relies on, by what it is to it."""
        ...

    def paths(self, token_in: Address, token_out: Address, *, thorough: bool = False) -> Sequence[Path]:
        """Routes worth quoting, direct and by intermediate tokens; with `thorough` every route there may be."""
        ...

    def sync(self, paths: Iterable[Path], at: BlockTime) -> Reads[None]:
        """Learn the pools of these routes as of `at`, the block that the rounds are pinned to."""
        ...

    def quote(self, path: Path, amount_raw: int, *, exact_out: bool = False) -> Reads[Quote | Refusal]:
        """What the route gives, as of the block last synced; an empty or missing pool is a Refusal.

        No round where the route was synced and what is known of its pools suffices.
        """
        ...

    def swap_leg(self, quote: Quote, *, whole_balance: bool, limit_raw: int) -> SwapLeg:
        """The leg as the Liquidator takes it; `whole_balance` swaps what is there instead of the quoted amount."""
        ...


class FlashSource(Protocol):
    """Where the repayment is borrowed for one transaction."""

    kind: FlashKind

    def source(self) -> Address:
        """The contract that lends; valid once what it belongs to is loaded."""
        ...

    def flash(self, token: Address, at: BlockTime) -> Reads[FlashQuote | Refusal]:
        """Premium and available liquidity as of `at`; no round where what the protocol's marks say is enough."""
        ...


def just(value: Any) -> Reads[Any]:
    """A read that needs no call."""
    yield from ()
    return value


def each(calls: Sequence[Question]) -> Reads[Sequence[Result]]:
    """The plain results of some calls."""
    results = yield calls
    return results


def readable(stage: str, read: Reads[T | Refusal]) -> Reads[T | Refusal]:
    """The read, refusing what cannot be understood: one market's nonsense must not stop the others."""
    try:
        return (yield from read)
    except AdapterError as error:
        return unreadable(stage, error)


def unreadable(stage: str, error: AdapterError) -> Refusal:
    """What an adapter could not understand, as a decision."""
    return Refusal(stage, "unreadable", {"error": str(error)})


def symbol_of(result: Result, token: Address) -> str:
    """A token's symbol, whether it answers a string or (as MKR does) bytes32; its address where it has none to show."""
    if isinstance(result, Reverted):
        return hex_of(token)
    if len(result) == 32:
        text = result.rstrip(b"\0").decode("utf-8", "replace")
    else:
        text = _SYMBOL.one(result) if result else ""
    return text if 0 < len(text) <= _LONGEST_SYMBOL and text.isprintable() else hex_of(token)


def together(reads: Sequence[Reads[T]]) -> Reads[list[T]]:
    """Run several reads in lock-step: each round asks what all unfinished ones ask, every distinct call once.

    Results keep the order of `reads`. At one block hash equal calls have equal answers, so nothing is asked twice.
    """
    if len(reads) == 1:
        return [(yield from reads[0])]
    results: dict[int, T] = {}
    asking: dict[int, Sequence[Question]] = {}

    def advance(index: int, answers: Sequence[Result] | None) -> None:
        try:
            asking[index] = reads[index].send(answers)  # type: ignore[arg-type]  # the first send of a generator is None
        except StopIteration as end:
            results[index] = end.value

    for index in range(len(reads)):
        advance(index, None)
    while asking:
        round_calls = list(dict.fromkeys(call for calls in asking.values() for call in calls))
        answers = yield round_calls
        by_call = dict(zip(round_calls, answers, strict=True))
        waiting, asking = asking, {}
        for index, calls in waiting.items():
            advance(index, [by_call[call] for call in calls])
    return [results[index] for index in range(len(reads))]
