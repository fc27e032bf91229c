"""What every search is measured by: prices, gas, loans and routes as of the pinned head.

Dollars are taken from the feeds the Safe gave the Liquidator, because its end check uses those; a token whose feed is
missing or stale could not be part of any plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from keeper.abi import address, keccak, load
from keeper.errors import ConfigError
from keeper.lab.judge.accounts import Loan
from keeper.lab.judge.evidence import Evidence
from keeper.lab.judge.routes import Exchanges
from keeper.lab.judge.terms import Terms
from keeper.types import Address, Token

# The judge's own account on the fork; nobody has its key.
JUDGE: Final = Address(keccak(b"liquidation keeper: the judge")[12:])

BPS: Final = 10_000
_VALUE_DECIMALS: Final = 36  # of a USD value per raw unit, as in Liquidator
_E8_PER_VALUE: Final = 10 ** (_VALUE_DECIMALS - 8)
_WEI: Final = 10**18
_NATIVE_MAX_AGE_S: Final = 25 * 60 * 60
_LIQUIDATOR: Final = load("Liquidator")
_FEED: Final = load("ChainlinkFeed")
_L1_FEE: Final = load("GasPriceOracle").function("getL1Fee")
_L1_GAS: Final = load("NodeInterface").function("gasEstimateL1Component")
_GAS_PRICE_ORACLE: Final = address("0x420000000000000000000000000000000000000F")
_NODE_INTERFACE: Final = address("0x00000000000000000000000000000000000000C8")
# As long as most liquidations are, and as hard to compress: half of it zeros.
_BYTES: Final = b"".join(keccak(bytes([number])) + bytes(32) for number in range(22))


@dataclass(frozen=True, slots=True)
class Prices:
    """Dollars: `unit` is per raw unit of a token, scaled by 10**36, exactly; only usable feeds are in it.

    `native_usd_e8` prices gas; None where its feed is unusable.
    """

    unit: Mapping[Address, int]
    native_usd_e8: int | None


async def read_prices(evidence: Evidence, terms: Terms, tokens: Sequence[Address]) -> Prices:
    """The Liquidator's price of each token that it has a fresh feed for, and the native token's."""
    feed_of = _LIQUIDATOR.function("feedOf")
    feeds = await evidence.read_all(feed_of, [(terms.liquidator, token) for token in tokens])
    known = [(token, *feed) for token, feed in zip(tokens, feeds, strict=True) if any(feed[0])]
    unit: dict[Address, int] = {}
    rounds = await _answers(evidence, [feed for _, feed, *_ in known])
    for (token, _, max_age_s, token_decimals, feed_decimals), (answer, age_s) in zip(
        known, rounds, strict=True
    ):
        if answer > 0 and 0 <= age_s <= max_age_s:
            unit[token] = answer * 10 ** (_VALUE_DECIMALS - token_decimals - feed_decimals)
    decimals = await evidence.read(_FEED.function("decimals"), terms.native_usd_feed)
    [(answer, age_s)] = await _answers(evidence, [terms.native_usd_feed])
    usable = answer > 0 and 0 <= age_s <= _NATIVE_MAX_AGE_S
    return Prices(unit, answer * 10**8 // 10**decimals if usable else None)


async def read_data_wei(evidence: Evidence, terms: Terms) -> int:
    """About what the bytes of a liquidation cost on this chain. Raises `ConfigError` where its contracts do not say."""
    if terms.data_fee == "none":
        return 0
    oracle = terms.data_fee == "op-stack"
    call = (
        _L1_FEE.call(_GAS_PRICE_ORACLE, _BYTES)
        if oracle
        else _L1_GAS.call(_NODE_INTERFACE, terms.liquidator, False, _BYTES)
    )
    [answer] = await evidence.calls([call])
    if not answer:
        raise ConfigError(
            f'chain.data_fee is "{terms.data_fee}", but the chain does not tell what bytes cost.'
        )
    if oracle:
        return int(_L1_FEE.one(answer))
    return int(_L1_GAS.decode(answer)[0]) * evidence.head.gas_price_wei


async def _answers(evidence: Evidence, feeds: Sequence[Address]) -> list[tuple[int, int]]:
    """Each feed's answer and its age in seconds; (0, 0) where it refuses."""
    latest = _FEED.function("latestRoundData")
    found = []
    for answer in await evidence.calls([latest.call(feed) for feed in feeds]):
        _, price, _, updated_s, _ = latest.decode(answer) if answer is not None else (0, 0, 0, 0, 0)
        found.append((price, evidence.head.timestamp_s + 1 - updated_s if answer is not None else 0))
    return found


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything a search needs beside the accounts; `evidence` is the fork."""

    evidence: Evidence
    terms: Terms
    profit: Token
    prices: Prices
    native_usd_e8: int
    gas_price_wei: int
    data_wei: int
    max_slippage_bps: int
    loans: Mapping[Address, Sequence[Loan]]
    exchanges: Exchanges

    def priced(self, *tokens: Token) -> bool:
        """Whether the Liquidator has a price of each."""
        return all(token.address in self.prices.unit for token in tokens)

    def value(self, token: Token, raw: int) -> int:
        """Dollars scaled by 10**36."""
        return raw * self.prices.unit[token.address]

    def usd_e8(self, token: Token, raw: int) -> int:
        """Dollars with 8 decimals, rounded down."""
        return self.value(token, raw) // _E8_PER_VALUE

    def gas_usd_e8(self, gas: int) -> int:
        """What gas costs in dollars with 8 decimals, rounded up."""
        return -(-gas * self.gas_price_wei * self.native_usd_e8 // _WEI)

    def cost_usd_e8(self, gas: int) -> int:
        """What a liquidation that takes so much gas costs with its bytes; rounded up."""
        return -(-(gas * self.gas_price_wei + self.data_wei) * self.native_usd_e8 // _WEI)

    def raw_worth(self, token: Token, usd_e8: int) -> int:
        """How much of a token that many dollars are, rounded down."""
        return usd_e8 * _E8_PER_VALUE // self.prices.unit[token.address]
