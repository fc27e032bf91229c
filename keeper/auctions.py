"""Feeds whose updates are auctioned (Chainlink Smart Value Recapture): which price sources read one.

Such a feed's aggregator says that it is a `DualAggregator`. One proxy, which it holds as an immutable, gets the answers
whose updates are sold: whoever wins the auction liquidates right behind the update. A report that nobody sold reaches
this proxy only once it is older than a cutoff. A source may read such a proxy through adapters that cap or combine
prices; those are followed by their getters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from keeper import abi
from keeper.chain.client import Chain
from keeper.errors import AdapterError
from keeper.seams import Reads, symbol_of
from keeper.types import ZERO_ADDRESS, Address, Hash, Result, Reverted

_SOURCE: Final = abi.load("PriceSource")
_AGGREGATOR: Final = _SOURCE.function("aggregator")
_VERSION: Final = _SOURCE.function("typeAndVersion")
# What an adapter of Aave or an oracle of Morpho says it reads.
_INNER: Final = tuple(
    _SOURCE.function(name)
    for name in (
        *("ASSET_TO_USD_AGGREGATOR", "BASE_TO_USD_AGGREGATOR", "ASSET_TO_PEG", "PEG_TO_BASE"),
        *("BASE_FEED_1", "BASE_FEED_2", "QUOTE_FEED_1", "QUOTE_FEED_2"),
    )
)
_DEEPEST: Final = 3  # adapters upon adapters
_AUCTIONED: Final = "DualAggregator "
# As adapters name them in `contracts`, where what is priced comes last.
_ROLES: Final = ("price source", "dollar feed of ", "oracle of ", "aggregator of ")
_SYMBOL: Final = abi.load("Erc20").function("symbol")
_TOKEN: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_PUSH32: Final = b"\x7f"


@dataclass(frozen=True, slots=True)
class Auctioned:
    """A feed whose updates are auctioned, which `source` reads: its proxy, its aggregator and what that calls itself.

    `priced` is what the source prices, as the protocol names it: a token's or a market's hex, beside its symbol.
    """

    priced: str
    symbol: str
    source: Address
    feed: Address
    aggregator: Address
    version: str


async def find(chain: Chain, contracts: Mapping[str, Address], at: Hash) -> list[Auctioned]:
    """Those among a protocol's contracts (`Adapter.contracts`) that price something, as of a block."""
    sources = {
        role.partition(" of ")[2] or role: address
        for role, address in contracts.items()
        if role.startswith(_ROLES)
    }
    found: list[Auctioned] = []
    reached = await chain.read(_reached(tuple(dict.fromkeys(sources.values()))), at)
    proxies = {proxy for inner in reached.values() for proxy in inner}
    dual = await chain.read(_dual(sorted(proxies)), at)
    for proxy, (aggregator, _) in list(dual.items()):
        code = await chain.code(aggregator, at)
        if _PUSH32 + bytes(12) + proxy not in code:
            del dual[proxy]  # another proxy has the auctioned answers: this one reads the standard ones
    auctioned = {priced: source for priced, source in sources.items() if dual.keys() & set(reached[source])}
    symbols = await chain.read(_symbols(auctioned), at) if auctioned else {}
    for priced, source in auctioned.items():
        found += [
            Auctioned(priced, symbols.get(priced, priced), source, feed, *dual[feed])
            for feed in reached[source]
            if feed in dual
        ]
    return found


def _symbols(priced: Iterable[str]) -> Reads[dict[str, str]]:
    """What tokens among the names call themselves."""
    tokens = {name: abi.address(name) for name in priced if _TOKEN.fullmatch(name)}
    results = (yield [_SYMBOL.call(token) for token in tokens.values()]) if tokens else []
    return {name: symbol_of(result, tokens[name]) for name, result in zip(tokens, results, strict=True)}


def _reached(sources: tuple[Address, ...]) -> Reads[Mapping[Address, list[Address]]]:
    """Of each source: itself and what it reads, as deep as adapters go."""
    reached = {source: [source] for source in sources}
    inner: dict[Address, list[Address]] = {}
    newest = list(sources)
    for _ in range(_DEEPEST):
        asked = [address for address in dict.fromkeys(newest) if address not in inner]
        results = (yield [getter.call(address) for address in asked for getter in _INNER]) if asked else []
        for number, address in enumerate(asked):
            answers = results[number * len(_INNER) : (number + 1) * len(_INNER)]
            inner[address] = [each for each in map(_address, answers) if each is not None]
        newest = []
        for within in reached.values():
            more = [each for address in within for each in inner.get(address, ()) if each not in within]
            within.extend(dict.fromkeys(more))
            newest += more
    return reached


def _dual(proxies: Iterable[Address]) -> Reads[dict[Address, tuple[Address, str]]]:
    """Those whose aggregator is one that has two kinds of readers, with it and its version."""
    proxies = list(proxies)
    results = (yield [_AGGREGATOR.call(proxy) for proxy in proxies]) if proxies else []
    behind = {
        proxy: aggregator
        for proxy, result in zip(proxies, results, strict=True)
        if (aggregator := _address(result)) is not None
    }
    results = (yield [_VERSION.call(aggregator) for aggregator in behind.values()]) if behind else []
    told = {proxy: (behind[proxy], _text(result)) for proxy, result in zip(behind, results, strict=True)}
    return {proxy: each for proxy, each in told.items() if each[1].startswith(_AUCTIONED)}


def _address(result: Result) -> Address | None:
    """An answer that is an address; None for any other, as of contracts that have no such getter."""
    if isinstance(result, Reverted) or len(result) != 32 or any(result[:12]):
        return None
    found = Address(result[12:])
    return None if found == ZERO_ADDRESS else found


def _text(result: Result) -> str:
    if isinstance(result, Reverted):
        return ""
    try:
        return str(_VERSION.one(result))
    except AdapterError:
        return ""
