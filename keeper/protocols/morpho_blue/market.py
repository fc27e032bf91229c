"""Which markets there are, what they are made of, and what a dollar is in them.

A market's parameters never change: its id is their hash. So they are read once, when the market is configured or when
a first position in it is. Morpho's oracles price one token in another; what the loan is worth in dollars is told by
the configured aggregators or, of configured markets, by the aggregators that their own oracle names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from keeper import abi
from keeper.abi import keccak
from keeper.errors import AdapterError
from keeper.seams import Reads, symbol_of
from keeper.types import ZERO_ADDRESS, Address, Hash, Result, Reverted, Token, hex_of

MORPHO: Final = abi.load("MorphoBlue")
ORACLE: Final = abi.load("MorphoOracle")
FEED: Final = abi.load("ChainlinkFeed")
ERC20: Final = abi.load("Erc20")

LIQUIDATE: Final = MORPHO.function("liquidate")
_PARAMS: Final = MORPHO.function("idToMarketParams")
_FEE_RECIPIENT: Final = MORPHO.function("feeRecipient")
_DECIMALS: Final = ERC20.function("decimals")
_SYMBOL: Final = ERC20.function("symbol")
_DESCRIPTION: Final = FEED.function("description")
_FEED_DECIMALS: Final = FEED.function("decimals")
_SIDES: Final = tuple(
    tuple(ORACLE.function(f"{side}_{part}") for part in ("FEED_1", "FEED_2", "VAULT"))
    for side in ("BASE", "QUOTE")
)
_IN_DOLLARS: Final = " / USD"
PRICE_DECIMALS: Final = 18
_PARAMS_SIZE: Final = 5 * 32


@dataclass(frozen=True, slots=True)
class Market:
    """One market; `number` is its place among those this process knows, and its group of rows."""

    number: int
    id: Hash
    loan: Token
    collateral: Token
    oracle: Address
    irm: Address
    lltv_wad: int

    @property
    def params(self) -> tuple[Any, ...]:
        """What every call of Morpho names it by."""
        return (self.loan.address, self.collateral.address, self.oracle, self.irm, self.lltv_wad)

    def numbered(self, number: int) -> Market:
        """The same market with its number."""
        return replace(self, number=number)


@dataclass(frozen=True, slots=True)
class UsdFeed:
    """A Chainlink-style aggregator of a token in dollars."""

    address: Address
    decimals: int


def market_in(calldata: bytes) -> Hash | None:
    """The id of the market that a `liquidate` is about; None for anything else."""
    if calldata[:4] != LIQUIDATE.selector:
        return None
    return keccak(calldata[4 : 4 + _PARAMS_SIZE])


def read_markets(morpho: Address, ids: Sequence[Hash]) -> Reads[list[Market]]:
    """Those of `ids` that exist, not numbered yet. Raises AdapterError where `morpho` is no Morpho Blue."""
    results = yield [_FEE_RECIPIENT.call(morpho), *(_PARAMS.call(morpho, each) for each in ids)]
    told = [answered(_PARAMS, result) for result in results[1:]]
    answered(_FEE_RECIPIENT, results[0])
    created = [(each, params) for each, params in zip(ids, told, strict=True) if params[0] != ZERO_ADDRESS]
    tokens = yield from _read_tokens(
        list(dict.fromkeys(token for _, params in created for token in params[:2]))
    )
    markets: list[Market] = []
    for each, (loan, collateral, oracle, irm, lltv_wad) in created:
        if loan in tokens and collateral in tokens:
            markets.append(Market(0, each, tokens[loan], tokens[collateral], oracle, irm, lltv_wad))
    return markets


def read_feeds(
    markets: Sequence[Market], configured: Mapping[Address, Address]
) -> Reads[dict[Address, UsdFeed]]:
    """The dollar aggregators of tokens: the configured ones, else the first that an oracle of `markets` names.

    An oracle in the form of MorphoChainlinkOracleV2 names one where a side of it is a single aggregator without a
    vault, which says of itself that it counts in dollars.
    """
    getters = [getter for side in _SIDES for getter in side]
    results = yield [getter.call(market.oracle) for market in markets for getter in getters]
    named: dict[Address, Address] = {}
    for place, market in enumerate(markets):
        answers = [_address(result) for result in results[place * len(getters) :][: len(getters)]]
        for token, (feed, second, vault) in zip(
            (market.collateral, market.loan), (answers[:3], answers[3:]), strict=True
        ):
            if feed not in (None, ZERO_ADDRESS) and second == vault == ZERO_ADDRESS:
                named.setdefault(token.address, Address(feed or ZERO_ADDRESS))
    said = yield [_DESCRIPTION.call(feed) for feed in named.values()]
    wanted = {
        token: feed
        for (token, feed), result in zip(named.items(), said, strict=True)
        if _text(result).endswith(_IN_DOLLARS)
    } | dict(configured)
    counted = yield [_FEED_DECIMALS.call(feed) for feed in wanted.values()]
    feeds: dict[Address, UsdFeed] = {}
    for (of, at), result in zip(wanted.items(), counted, strict=True):
        decimals = None if isinstance(result, Reverted) or len(result) != 32 else int.from_bytes(result)
        if decimals is None or decimals > PRICE_DECIMALS:
            raise AdapterError(
                f"{abi.checksum(at)} is no dollar aggregator of {abi.checksum(of)}: correct usd_feeds."
            )
        feeds[of] = UsdFeed(at, decimals)
    return feeds


def answered(function: abi.Function, result: Result) -> Any:
    """The outputs of a call that Morpho must answer."""
    if isinstance(result, Reverted) or not result:
        raise AdapterError(f"{function.signature} was not answered: is this a Morpho Blue?")
    return function.decode(result)


def _read_tokens(addresses: Sequence[Address]) -> Reads[dict[Address, Token]]:
    """Tokens by address, without those that do not tell their decimals: nobody could value them."""
    results = yield [function.call(each) for function in (_DECIMALS, _SYMBOL) for each in addresses]
    count = len(addresses)
    tokens: dict[Address, Token] = {}
    for each, decimals, symbol in zip(addresses, results[:count], results[count:], strict=True):
        if not isinstance(decimals, Reverted) and len(decimals) == 32 and int.from_bytes(decimals) < 78:
            tokens[each] = Token(each, _symbol(symbol, each), int.from_bytes(decimals))
    return tokens


def _symbol(result: Result, token: Address) -> str:
    try:
        return symbol_of(result, token)
    except AdapterError:  # a stranger's token may answer anything
        return hex_of(token)


def _address(result: Result) -> Address | None:
    if isinstance(result, Reverted) or len(result) != 32 or any(result[:12]):
        return None
    return Address(result[12:])


def _text(result: Result) -> str:
    if isinstance(result, Reverted):
        return ""
    try:
        return str(_DESCRIPTION.one(result))
    except AdapterError:  # what is no text names no dollars
        return ""
