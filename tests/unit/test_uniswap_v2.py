from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import ValidationError

from keeper import abi
from keeper.errors import AdapterError
from keeper.fixed import MAX_UINT256
from keeper.seams import Reads, VenueKind
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    BlockNumber,
    BlockTime,
    Call,
    Hash,
    Path,
    Question,
    Quote,
    Refusal,
    Result,
    Reverted,
)
from keeper.venues.uniswap_v2 import FEE_PPM, UniswapV2, UniswapV2Config, amount_in, amount_out

FACTORY, ROUTER = (Address(bytes([n]) * 20) for n in (0xFA, 0x80))
WETH, USDC, DAI = (Address(bytes([n]) * 20) for n in (1, 2, 3))
DIRECT = Path((WETH, USDC), (FEE_PPM,))

_GET_PAIR = abi.load("UniswapV2Factory").function("getPair")


@dataclass(slots=True)
class _Chain:
    """A factory and its pairs' reserves; what is asked."""

    pairs: dict[tuple[Address, Address], tuple[int, int]]
    asked: list[str] = field(default_factory=list)

    def answer(self, call: Question) -> Result:
        assert isinstance(call, Call)
        if call.to == FACTORY:
            self.asked.append("getPair")
            pair = _GET_PAIR.decode_input(call.data)
            return (abi.keccak(b"".join(pair))[:20] if pair in self.pairs else ZERO_ADDRESS).rjust(32, b"\0")
        self.asked.append("getReserves")
        for pair, reserves in self.pairs.items():
            if abi.keccak(b"".join(pair))[:20] == call.to:
                return b"".join(value.to_bytes(32) for value in (*reserves, 0))
        return b""

    def run(self, reads: Reads[Any]) -> Any:
        try:
            calls = next(reads)
            while True:
                calls = reads.send([self.answer(call) for call in calls])
        except StopIteration as end:
            return end.value


def _venue(*middles: Address) -> UniswapV2:
    return UniswapV2(UniswapV2Config(factory=FACTORY, router=ROUTER), middles)


def _at(number: int) -> BlockTime:
    return BlockTime(BlockNumber(number), Hash(bytes([number]) * 32), number)


def test_known_figures() -> None:
    """The library's own arithmetic: 0.3 % stay in the pair, proceeds are rounded down and costs up."""
    assert amount_out(1000, 10**6, 2 * 10**6) == 1992
    assert amount_in(1992, 10**6, 2 * 10**6) == 1000
    assert amount_in(1993, 10**6, 2 * 10**6) == 1001
    assert amount_in(2 * 10**6, 10**6, 2 * 10**6) == amount_out(1, 0, 5) == amount_out(5, 5, 0) == 0
    most = 2**112 - 1
    assert amount_out(most - 10**6, 10**6, 10**6) > 0 == amount_out(most - 10**6 + 1, 10**6, 10**6)
    assert amount_in(10**6 - 1, most // 10**6, 10**6) == 0


def test_a_quote_is_as_of_the_synced_block() -> None:
    """Reserves are read once a block; quotes of what was synced ask nothing, others read by themselves."""
    chain = _Chain({(WETH, USDC): (10**6, 2 * 10**6)})
    venue = _venue()
    alone = chain.run(venue.quote(DIRECT, 1000))
    assert alone == Quote(DIRECT, False, 1000, 1992, alone.gas)
    chain.run(venue.sync([DIRECT], _at(1)))
    chain.asked.clear()
    chain.pairs[WETH, USDC] = (10**6, 10**6)
    assert chain.run(venue.quote(DIRECT, 1000)) == alone
    assert chain.run(venue.quote(DIRECT, 1992, exact_out=True)) == Quote(DIRECT, True, 1000, 1992, alone.gas)
    chain.run(venue.sync([DIRECT], _at(1)))
    assert chain.asked == []
    chain.run(venue.sync([DIRECT], _at(2)))
    assert chain.asked == ["getReserves"]
    assert chain.run(venue.quote(DIRECT, 1000)).amount_out_raw == 996


def test_two_hops_go_on_with_what_the_first_gave() -> None:
    """Direct and by an intermediate; an exact output is reckoned from its end."""
    chain = _Chain({(WETH, DAI): (10**6, 10**6), (USDC, DAI): (10**6, 2 * 10**6)})
    venue = _venue(DAI, WETH)
    assert [path.tokens for path in venue.paths(WETH, USDC)] == [(WETH, USDC), (WETH, DAI, USDC)]
    assert venue.paths(WETH, WETH) == ()
    path = venue.paths(WETH, USDC)[1]
    first = amount_out(1000, 10**6, 10**6)
    assert chain.run(venue.quote(path, 1000)).amount_out_raw == amount_out(first, 2 * 10**6, 10**6)
    second = amount_in(400, 2 * 10**6, 10**6)
    assert chain.run(venue.quote(path, 400, exact_out=True)).amount_in_raw == amount_in(second, 10**6, 10**6)


def test_a_leg_tells_its_tokens_in_order() -> None:
    """The path is the tokens from the one sold to the one bought, for an exact output too."""
    venue, path = _venue(), Path((WETH, DAI, USDC), (FEE_PPM, FEE_PPM))
    assert (venue.kind, int(venue.kind)) == (VenueKind.UNISWAP_V2, 2)
    sold, bought = Quote(path, False, 7, 14, 0), Quote(path, True, 7, 14, 0)
    leg = venue.swap_leg(sold, whole_balance=False, limit_raw=13)
    assert (leg.router, leg.path, leg.exact_out, leg.amount_raw, leg.limit_raw) == (
        ROUTER,
        WETH + DAI + USDC,
        False,
        7,
        13,
    )
    leg = venue.swap_leg(bought, whole_balance=False, limit_raw=8)
    assert (leg.path, leg.exact_out, leg.amount_raw, leg.limit_raw) == (WETH + DAI + USDC, True, 14, 8)
    assert venue.swap_leg(sold, whole_balance=True, limit_raw=0).amount_raw == MAX_UINT256


def test_what_is_not_there_is_refused() -> None:
    """No amount, no pair, an empty pair and more than there is are refused, each by its name."""
    chain = _Chain({(WETH, USDC): (10**6, 2 * 10**6), (WETH, DAI): (0, 0)})
    venue = _venue()
    missing, empty = Path((USDC, DAI), (FEE_PPM,)), Path((WETH, DAI), (FEE_PPM,))
    asked = [(DIRECT, 0, False), (missing, 5, False), (empty, 5, False), (DIRECT, 2 * 10**6, True)]
    refusals = [chain.run(venue.quote(path, raw, exact_out=exact_out)) for path, raw, exact_out in asked]
    assert all(isinstance(refusal, Refusal) for refusal in refusals)
    assert [refusal.reason for refusal in refusals] == [
        "no_amount",
        "no_pool",
        "no_liquidity",
        "no_liquidity",
    ]


def test_a_missing_pair_is_asked_for_again_by_a_thorough_look_only() -> None:
    """It leaves the routes, and a pair created later is found without a restart."""
    chain, venue = _Chain({}), _venue()
    chain.run(venue.quote(DIRECT, 1000))
    chain.pairs[WETH, USDC] = (10**6, 10**6)
    assert venue.paths(WETH, USDC) == []
    assert isinstance(chain.run(venue.quote(DIRECT, 1000)), Refusal)
    assert list(venue.paths(WETH, USDC, thorough=True)) == [DIRECT]
    assert isinstance(chain.run(venue.quote(DIRECT, 1000)), Quote)
    del chain.pairs[WETH, USDC]  # a reorganisation undid it
    assert chain.run(venue.quote(DIRECT, 1000)).reason == "no_pool"
    chain.pairs[WETH, USDC] = (10**6, 10**6)
    assert isinstance(chain.run(venue.quote(DIRECT, 1000)), Quote)


def test_a_wrong_factory_is_an_error() -> None:
    """What is no factory is breakage, not an empty market."""
    for answer in (Reverted(b""), b""):
        read = _venue().quote(DIRECT, 100)
        next(read)
        with pytest.raises(AdapterError):
            read.send([answer])


def test_the_model_takes_checked_addresses_and_known_keys() -> None:
    """Addresses are hex or 20 bytes; unknown keys and short addresses fail."""
    text = {name: "0x" + bytes([n]).hex() * 20 for n, name in enumerate(("factory", "router"), 1)}
    assert UniswapV2Config.model_validate(text).router == b"\x02" * 20
    for wrong in ({"router": "0x12"}, {"quoter": text["router"]}):
        with pytest.raises(ValidationError):
            UniswapV2Config.model_validate(text | wrong)
