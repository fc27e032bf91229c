"""The exchange as loaded: its collateral, its markets' feeds, and the account that takes positions over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keeper import abi
from keeper.errors import AdapterError
from keeper.fixed import MAX_UINT256
from keeper.protocols.reference_perp.rules import MarketParameters
from keeper.seams import Reads
from keeper.types import Address, Call, Result, Reverted, Token, hex_of

EXCHANGE: Final = abi.load("PerpExchange")
FEED: Final = abi.load("ChainlinkFeed")
ERC20: Final = abi.load("Erc20")

HOUSE: Final = 0
NEWEST: Final = MAX_UINT256  # stands for the caller's newest account, whatever its number turns out to be
_MAX_DECIMALS: Final = 18
_MAX_MARKETS: Final = 256  # the bits of an account's word

Question = tuple[abi.Function, Address, Sequence[Any]]  # what is asked of whom, with which arguments


@dataclass(frozen=True, slots=True)
class Feed:
    """Where a market's mark comes from; `scale` is the price per unit of its answer."""

    address: Address
    scale: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """A loaded exchange; `scale` is money per raw unit of the collateral, feeds go by market.

    `heir` is the newest account of whoever takes positions over, 0 where it has none or nobody does.
    """

    address: Address
    token: Token
    scale: int
    feeds: tuple[Feed, ...]
    heir: int

    @property
    def contracts(self) -> Mapping[str, Address]:
        """Everything it relies on, by what it is to it."""
        feeds = {f"price source of market {number}": feed.address for number, feed in enumerate(self.feeds)}
        return {"exchange": self.address, "collateral": self.token.address, **feeds}


def load_exchange(address: Address, liquidator: Address | None) -> Reads[Exchange]:
    """Read everything that changes only by governance, and the liquidator's account."""
    names = ("TOKEN", "SCALE", "marketCount")
    asked: list[Question] = [(EXCHANGE.function(name), address, ()) for name in names]
    if liquidator is not None:
        asked.append((EXCHANGE.function("newestOf"), address, (liquidator,)))
    token, scale, count, *newest = yield from ask(asked)
    if count > _MAX_MARKETS:
        raise AdapterError(f"{hex_of(address)} tells of {count} markets: do not trust the node.")
    parameters_of = EXCHANGE.function("parametersOf")
    asked = [(ERC20.function("symbol"), token, ()), (ERC20.function("decimals"), token, ())]
    symbol, decimals, *parameters = yield from ask(
        asked + [(parameters_of, address, (market,)) for market in range(count)]
    )
    sources = [MarketParameters(*each).feed for each in parameters]
    places = yield from ask([(FEED.function("decimals"), source, ()) for source in sources])
    if any(place > _MAX_DECIMALS for place in places):
        raise AdapterError(f"{hex_of(address)} names feeds finer than it can price: do not trust the node.")
    return Exchange(
        address=address,
        token=Token(token, symbol, decimals),
        scale=scale,
        feeds=tuple(
            Feed(source, 10 ** (_MAX_DECIMALS - place)) for source, place in zip(sources, places, strict=True)
        ),
        heir=newest[0] if newest else HOUSE,
    )


def ask(asked: Sequence[Question]) -> Reads[list[Any]]:
    """One round of calls that must succeed: of each its one output, or the tuple of several; no round for none."""
    if not asked:
        return []
    results = yield [function.call(to, *arguments) for function, to, arguments in asked]
    return [answered(function, result) for (function, _, _), result in zip(asked, results, strict=True)]


def answered(function: abi.Function, result: Result) -> Any:
    """The output of a call that must succeed, or the tuple of several."""
    if isinstance(result, Reverted):
        raise AdapterError(
            f"{function.signature} reverted with {hex_of(result.data)}: is this a reference perp exchange?"
        )
    outputs = function.decode(result)
    return outputs[0] if len(outputs) == 1 else outputs


def calls_of(asked: Sequence[Question]) -> tuple[Call, ...]:
    """The same calls encoded once, for what is asked at every head."""
    return tuple(function.call(to, *arguments) for function, to, arguments in asked)


def number_of(account: Address) -> int:
    """An account's number; the exchange counts accounts, and a key carries the number as an address."""
    return int.from_bytes(account)


def account_key(number: int) -> Address:
    """The address that stands for an account's number. Raises `AdapterError` where it does not fit."""
    try:
        return Address(number.to_bytes(20))
    except OverflowError as error:
        raise AdapterError(f"An account's number {number} is no number: do not trust the node.") from error
