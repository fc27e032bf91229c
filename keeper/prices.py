"""The two prices that are not a protocol's: gas in dollars and the profit token in dollars, from Chainlink-style feeds.

A price that is zero (also once it is cut to 8 decimals), negative, unanswered or older than its feed's age limit is
unknown, and unknown means stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keeper import abi
from keeper.errors import AdapterError
from keeper.fixed import mul_div_down, mul_div_up
from keeper.seams import Reads
from keeper.types import Address, BlockTime, Refusal, Reverted

USD_DECIMALS: Final = 8
_FEED: Final = abi.load("ChainlinkFeed")


@dataclass(frozen=True, slots=True)
class Feed:
    """An aggregator and the age in seconds above which its answer is stale."""

    name: str
    address: Address
    max_age_s: int


@dataclass(frozen=True, slots=True)
class Price:
    """A dollar price with 8 decimals, rounded down (for gains) and up (for costs), its round and its time."""

    usd_e8: int
    usd_e8_up: int
    updated_at_s: int
    round_id: int | None = None


def read_price(feed: Feed, at: BlockTime) -> Reads[Price | Refusal]:
    """Read `latestRoundData` as of `at`."""
    decimals_call = _FEED.function("decimals").call(feed.address)
    round_call = _FEED.function("latestRoundData").call(feed.address)
    decimals_data, round_data = yield [decimals_call, round_call]
    if isinstance(decimals_data, Reverted) or isinstance(round_data, Reverted):
        error = decimals_data if isinstance(decimals_data, Reverted) else round_data
        return Refusal("plan", "no_price", {"feed": feed.name, "error": repr(error)})
    try:
        decimals = _FEED.function("decimals").one(decimals_data)
        round_id, answer, _, updated_at_s, _ = _FEED.function("latestRoundData").decode(round_data)
    except AdapterError as error:
        return Refusal("plan", "no_price", {"feed": feed.name, "error": str(error)})
    age_s = at.timestamp_s - updated_at_s
    scaled = (answer, 10**USD_DECIMALS, 10**decimals)
    usd_e8 = mul_div_down(*scaled)
    if usd_e8 <= 0 or age_s > feed.max_age_s:
        numbers = {"feed": feed.name, "answer": answer, "age_s": age_s, "max_age_s": feed.max_age_s}
        return Refusal("plan", "stale_price" if usd_e8 > 0 else "no_price", numbers)
    return Price(usd_e8, mul_div_up(*scaled), updated_at_s, round_id)
