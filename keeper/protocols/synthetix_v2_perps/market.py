"""Where a market's parts are: what its proxy routes to, its state, and the system's contracts by the address book.

The parts of a market keep their own copies of the address book. Where one of them is out of date nobody but the part
itself knows whom it asks, so nothing is decided until the copies are made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keeper import abi
from keeper.errors import AdapterError
from keeper.seams import Reads
from keeper.types import ZERO_ADDRESS, Address, Call, Result, Reverted, Token, hex_of

MARKET: Final = abi.load("SynthetixPerpsMarket")
STATE: Final = abi.load("SynthetixPerpsState")
SETTINGS: Final = abi.load("SynthetixPerpsSettings")
RATES: Final = abi.load("SynthetixExchangeRates")
STATUS: Final = abi.load("SynthetixSystemStatus")
RESOLVER: Final = abi.load("SynthetixAddressResolver")
SYNTH: Final = abi.load("SynthetixSynth")
FEED: Final = abi.load("ChainlinkFeed")

FLAG: Final = MARKET.function("flagPosition")
LIQUIDATE: Final = MARKET.function("liquidatePosition")
SUSD_KEY: Final = b"sUSD".ljust(32, b"\0")
_SUSD_DECIMALS: Final = 18  # Synth.DECIMALS

Asked = tuple[abi.Function, Address, Sequence[Any]]  # what is asked of whom, with which arguments

# What is asked of the proxy by whom it routes these to; the first two carry a liquidation out.
_PARTS: Final = {
    "part that flags": FLAG,
    "part that liquidates": LIQUIDATE,
    "part that trades": MARKET.function("modifyPosition"),
    "part that answers": MARKET.function("canLiquidate"),
}
_SYSTEM: Final = {
    "exchange rates": "ExchangeRates",
    "system status": "SystemStatus",
    "market settings": "PerpsV2MarketSettings",
    "settings storage": "FlexibleStorage",
    "market manager": "FuturesMarketManager",
    "fee pool": "FeePool",
    "synth of sUSD": "SynthsUSD",
    "circuit breaker": "CircuitBreaker",
}
# Whose copies of the address book decide what a liquidation does.
_COPYING: Final = ("exchange rates", "market manager", "market settings", "synth of sUSD")


@dataclass(frozen=True, slots=True)
class Market:
    """A loaded market; `contracts` are all it relies on, by what they are to it, `proxy` and `state` among them.

    `asset` is its traded asset's name. `cached` says whether every copy of the address book is up to date. `price_unit`
    is one dollar in sUSD's feed.
    """

    proxy: Address
    state: Address
    key: bytes
    base: bytes
    susd: Token
    susd_feed: Address
    price_unit: int
    contracts: Mapping[str, Address]
    cached: bool

    @property
    def asset(self) -> str:
        """The traded asset's name."""
        return self.base.rstrip(b"\0").decode("ascii", "replace")

    @property
    def rates(self) -> Address:
        """ExchangeRates."""
        return self.contracts["exchange rates"]

    @property
    def status(self) -> Address:
        """SystemStatus."""
        return self.contracts["system status"]

    @property
    def settings(self) -> Address:
        """PerpsV2MarketSettings."""
        return self.contracts["market settings"]


def load_market(proxy: Address, susd_feed: Address) -> Reads[Market]:
    """Read everything that changes only by governance."""
    route = MARKET.function("getRoute")
    key, base = MARKET.function("marketKey"), MARKET.function("baseAsset")
    asked: list[Asked] = [(key, proxy, ()), (base, proxy, ())]
    asked += [(route, proxy, (function.selector,)) for function in _PARTS.values()]
    market_key, base_key, *routes = yield from ask(asked)
    parts = {name: Address(answer[1]) for name, answer in zip(_PARTS, routes, strict=True)}
    if ZERO_ADDRESS in (parts["part that flags"], parts["part that liquidates"]):
        raise AdapterError(
            f"{abi.checksum(proxy)} routes no liquidation: is this a Synthetix V2x perps market?"
        )

    part = parts["part that liquidates"]
    state, resolver = yield from ask(
        [(MARKET.function("marketState"), part, ()), (MARKET.function("resolver"), part, ())]
    )
    address_of = RESOLVER.function("getAddress")
    named = [(address_of, resolver, (name.encode().ljust(32, b"\0"),)) for name in _SYSTEM.values()]
    system = dict(zip(_SYSTEM, (yield from ask(named)), strict=True))
    missing = [_SYSTEM[role] for role, address in system.items() if address == ZERO_ADDRESS]
    if missing:
        raise AdapterError(f"The address book {abi.checksum(resolver)} does not name {', '.join(missing)}.")

    copying = [parts["part that flags"], part, *(system[role] for role in _COPYING)]
    cached = MARKET.function("isResolverCached")
    synth = system["synth of sUSD"]
    susd, balances, aggregator, decimals, *copies = yield from ask(
        [
            (SYNTH.function("proxy"), synth, ()),
            (SYNTH.function("tokenState"), synth, ()),
            (RATES.function("aggregators"), system["exchange rates"], (base_key,)),
            (FEED.function("decimals"), susd_feed, ()),
            *((cached, address, ()) for address in copying),
        ]
    )
    contracts = {
        "market": proxy,
        "market state": state,
        **parts,
        "address book": resolver,
        **system,
        "sUSD": susd,
        "balances of sUSD": balances,
        "price source": aggregator,
        "price source of sUSD": susd_feed,
    }
    return Market(
        proxy=proxy,
        state=state,
        key=market_key,
        base=base_key,
        susd=Token(susd, "sUSD", _SUSD_DECIMALS),
        susd_feed=susd_feed,
        price_unit=10**decimals,
        contracts={role: address for role, address in contracts.items() if address != ZERO_ADDRESS},
        cached=all(copies),
    )


def ask(asked: Sequence[Asked]) -> Reads[list[Any]]:
    """One round of calls that must succeed: of each its one output, or the tuple of several."""
    results = yield [function.call(to, *arguments) for function, to, arguments in asked]
    return [answered(function, result) for (function, _, _), result in zip(asked, results, strict=True)]


def answered(function: abi.Function, result: Result) -> Any:
    """The output of a call that must succeed, or the tuple of several."""
    if isinstance(result, Reverted):
        raise AdapterError(
            f"{function.signature} reverted with {hex_of(result.data)}: is this a Synthetix V2x perps market?"
        )
    outputs = function.decode(result)
    return outputs[0] if len(outputs) == 1 else outputs


def calls_of(asked: Sequence[Asked]) -> tuple[Call, ...]:
    """The same calls encoded once, for what is asked at every head."""
    return tuple(function.call(to, *arguments) for function, to, arguments in asked)
