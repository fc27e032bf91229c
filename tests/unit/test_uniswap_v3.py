from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import ValidationError

from keeper import abi
from keeper.errors import AdapterError
from keeper.fixed import MAX_UINT256
from keeper.seams import Reads, together
from keeper.types import ZERO_ADDRESS, Address, Call, Path, Question, Quote, Refusal, Result, Reverted
from keeper.venues.uniswap_v3 import UniswapV3, UniswapV3Config, pack, path_text

FACTORY, QUOTER, ROUTER = (Address(bytes([n]) * 20) for n in (0xFA, 0x90, 0x80))
WETH, USDC, DAI = (Address(bytes([n]) * 20) for n in (1, 2, 3))
TIERS = (500, 3000)
NOWHERE = 79228162514264337593543950336  # a price well inside the limits

_GET_POOL = abi.load("UniswapV3Factory").function("getPool")
_LIQUIDITY = abi.load("UniswapV3Pool").function("liquidity")
_QUOTE_IN = abi.load("QuoterV2").function("quoteExactInput")
_QUOTE_OUT = abi.load("QuoterV2").function("quoteExactOutput")


def _word(value: int | bytes) -> bytes:
    return value.to_bytes(32) if isinstance(value, int) else value.rjust(32, b"\0")


def _quoted(amount: int, prices: Sequence[int], gas: int = 70_000) -> bytes:
    """ABI encoding of (uint256, uint160[], uint32[], uint256)."""
    ticks = [1] * len(prices)
    offsets = [4 * 32, 4 * 32 + 32 * (1 + len(prices))]
    head = [amount, *offsets, gas]
    return b"".join(map(_word, [*head, len(prices), *prices, len(ticks), *ticks]))


@dataclass(slots=True)
class _Chain:
    """A factory with some pools and a quoter that gives twice the input, or takes half the output."""

    pools: dict[tuple[Address, Address, int], int]  # liquidity
    prices: Sequence[int] | None = None
    revert: bytes | None = None
    asked: list[str] = field(default_factory=list)

    def pool_address(self, key: tuple[Address, Address, int]) -> bytes:
        return abi.keccak(repr(key).encode())[:20]

    def answer(self, call: Question) -> Result:
        assert isinstance(call, Call)
        selector = call.data[:4]
        if call.to == FACTORY and selector == _GET_POOL.selector:
            self.asked.append("getPool")
            key = _GET_POOL.decode_input(call.data)
            assert key[0] < key[1]
            return _word(self.pool_address(key) if key in self.pools else ZERO_ADDRESS)
        if selector == _LIQUIDITY.selector:
            self.asked.append("liquidity")
            return {self.pool_address(key): _word(depth) for key, depth in self.pools.items()}.get(
                call.to, b""
            )
        assert call.to == QUOTER
        self.asked.append("quote")
        if self.revert is not None:
            return Reverted(self.revert)
        ask = _QUOTE_IN if selector == _QUOTE_IN.selector else _QUOTE_OUT
        path, amount = ask.decode_input(call.data)
        hops = (len(path) - 20) // 23
        other = amount * 2 if ask is _QUOTE_IN else amount // 2
        return _quoted(other, self.prices or [NOWHERE] * hops)

    def run(self, reads: Reads[Any]) -> Any:
        try:
            calls = next(reads)
            while True:
                calls = reads.send([self.answer(call) for call in calls])
        except StopIteration as end:
            return end.value


def _venue(*middles: Address, tiers: Sequence[int] = TIERS) -> UniswapV3:
    config = UniswapV3Config(factory=FACTORY, quoter=QUOTER, router=ROUTER, fee_tiers=tuple(tiers))
    return UniswapV3(config, middles)


def test_unseen_pools_are_all_routed() -> None:
    """Before anything is known every tier is a route: direct ones first, then through each intermediate."""
    paths = _venue(WETH, DAI).paths(WETH, USDC)
    direct = [Path((WETH, USDC), (fee,)) for fee in TIERS]
    through = [Path((WETH, DAI, USDC), (one, two)) for one in TIERS for two in TIERS]
    assert sorted(paths, key=repr) == sorted([*direct, *through], key=repr)
    assert list(paths[:2]) == direct
    assert _venue(WETH).paths(WETH, WETH) == ()


def test_a_quote_is_one_round_and_equals_the_quoters_answer() -> None:
    """Exact input and exact output put the asked amount on its side and the quoter's answer on the other."""
    chain = _Chain({(WETH, USDC, 500): 10})
    venue, path = _venue(), Path((WETH, USDC), (500,))
    assert chain.run(venue.quote(path, 100)) == Quote(path, False, 100, 200, 70_000)
    assert chain.run(venue.quote(path, 100, exact_out=True)) == Quote(path, True, 50, 100, 70_000)


def test_an_exact_output_is_asked_backwards() -> None:
    """The quoter and the router want an exact output's path from the token bought to the token sold."""
    venue, path = _venue(), Path((WETH, DAI, USDC), (500, 3000))
    forwards = WETH + (500).to_bytes(3) + DAI + (3000).to_bytes(3) + USDC
    backwards = USDC + (3000).to_bytes(3) + DAI + (500).to_bytes(3) + WETH
    assert next(venue.quote(path, 7))[-1] == _QUOTE_IN.call(QUOTER, forwards, 7)
    assert next(venue.quote(path, 7, exact_out=True))[-1] == _QUOTE_OUT.call(QUOTER, backwards, 7)
    sold, bought = Quote(path, False, 7, 14, 0), Quote(path, True, 7, 14, 0)
    leg = venue.swap_leg(sold, whole_balance=False, limit_raw=13)
    assert (leg.router, leg.path, leg.exact_out, leg.amount_raw, leg.limit_raw) == (
        ROUTER,
        forwards,
        False,
        7,
        13,
    )
    leg = venue.swap_leg(bought, whole_balance=False, limit_raw=8)
    assert (leg.path, leg.exact_out, leg.amount_raw, leg.limit_raw) == (backwards, True, 14, 8)
    assert venue.swap_leg(sold, whole_balance=True, limit_raw=0).amount_raw == MAX_UINT256
    assert path_text(path) == f"0x{WETH.hex()} 500 0x{DAI.hex()} 3000 0x{USDC.hex()}"
    assert pack(path) == forwards


def test_a_missing_pool_is_asked_for_once() -> None:
    """A tier without a pool is refused, leaves the routes, and costs no call until it is looked for again."""
    chain = _Chain({(WETH, USDC, 500): 10})
    venue = _venue()
    missing = Path((WETH, USDC), (3000,))
    for path in venue.paths(WETH, USDC):
        chain.run(venue.quote(path, 100))
    assert list(venue.paths(WETH, USDC)) == [Path((WETH, USDC), (500,))]
    chain.asked.clear()
    answer = chain.run(venue.quote(missing, 100))
    assert isinstance(answer, Refusal)
    assert (answer.stage, answer.reason, answer.numbers["amount_raw"]) == ("plan", "no_pool", 100)
    assert chain.asked == []


def test_a_pool_created_later_is_found() -> None:
    """A thorough look routes missing pools again, so a new pool is used without a restart."""
    chain = _Chain({(WETH, USDC, 500): 10})
    venue = _venue()
    for path in venue.paths(WETH, USDC):
        chain.run(venue.quote(path, 100))
    chain.pools[WETH, USDC, 3000] = 10

    def found(*, thorough: bool) -> bool:
        return any(
            path.fees == (3000,) and isinstance(chain.run(venue.quote(path, 100)), Quote)
            for path in venue.paths(WETH, USDC, thorough=thorough)
        )

    assert not found(thorough=False)
    assert found(thorough=True)
    assert found(thorough=False)


def test_two_hops_keep_to_the_deepest_tiers() -> None:
    """Of a hop's tiers only the two deepest for their fee are combined, and direct routes come deepest first."""
    tiers = (100, 500, 3000, 10_000)
    depths = {100: 10, 500: 10_000, 3000: 90_000, 10_000: 1}
    pools = {
        (min(a, b), max(a, b), fee): depths[fee]
        for a, b in ((WETH, DAI), (DAI, USDC), (WETH, USDC))
        for fee in tiers
    }
    chain, venue = _Chain(pools), _venue(DAI, tiers=tiers)
    everything = venue.paths(WETH, USDC)
    for _ in range(2):
        chain.run(together([venue.quote(path, 100) for path in everything]))
    assert len(venue.paths(WETH, USDC, thorough=True)) == len(everything) == 4 + 4 * 4
    direct = [path.fees for path in venue.paths(WETH, USDC) if len(path.fees) == 1]
    through = [path.fees for path in venue.paths(WETH, USDC) if len(path.fees) == 2]
    assert direct == [(3000,), (500,), (100,), (10_000,)]
    assert sorted(through) == [(500, 500), (500, 3000), (3000, 500), (3000, 3000)]


def test_quotes_of_one_round_may_learn_the_same_pool() -> None:
    """Two first quotes through one unknown pool, merged into one round, are both right."""
    chain, venue, path = _Chain({(WETH, USDC, 500): 10}), _venue(), Path((WETH, USDC), (500,))
    quotes = chain.run(together([venue.quote(path, 100), venue.quote(path, 50)]))
    assert [quote.amount_out_raw for quote in quotes] == [200, 100]
    assert chain.asked == ["getPool", "quote", "quote"]


@pytest.mark.parametrize("limit", [4295128740, 1461446703485210103287273052203988822378723970341])
@pytest.mark.parametrize("hop", [0, 1])
def test_a_partly_filled_quote_is_refused(limit: int, hop: int) -> None:
    """A hop that ends at the price limit ran out of liquidity: what it gave is no quote for the whole amount."""
    prices = [NOWHERE, NOWHERE]
    prices[hop] = limit
    chain = _Chain({(WETH, DAI, 500): 10, (USDC, DAI, 500): 10}, prices=prices)
    answer = chain.run(_venue().quote(Path((WETH, DAI, USDC), (500, 500)), 100))
    assert isinstance(answer, Refusal)
    assert answer.reason == "no_liquidity" and answer.numbers["partial_raw"] == 200


def test_a_reverting_quoter_is_a_refusal_with_its_data() -> None:
    """An empty pool or too large an output makes the quoter revert; the data is kept."""
    chain = _Chain({(WETH, USDC, 500): 0}, revert=b"\x08\xc3\x79\xa0")
    answer = chain.run(_venue().quote(Path((WETH, USDC), (500,)), 100))
    assert isinstance(answer, Refusal)
    assert answer.reason == "no_liquidity" and answer.numbers["revert"] == "0x08c379a0"


def test_an_amount_that_gives_nothing_is_refused() -> None:
    """Dust that rounds to nothing is no swap, and no amount asks nothing."""
    chain, venue, path = _Chain({(WETH, USDC, 500): 10}), _venue(), Path((WETH, USDC), (500,))
    answer = chain.run(venue.quote(path, 1, exact_out=True))
    assert isinstance(answer, Refusal) and answer.reason == "no_liquidity"
    chain.asked.clear()
    answer = chain.run(venue.quote(path, 0))
    assert isinstance(answer, Refusal) and answer.reason == "no_amount"
    assert chain.asked == []


def test_a_pool_undone_by_a_reorganisation_is_forgotten() -> None:
    """A known pool without code is refused once and asked for again."""
    chain, venue, path = _Chain({(WETH, USDC, 500): 10}), _venue(), Path((WETH, USDC), (500,))
    assert isinstance(chain.run(venue.quote(path, 100)), Quote)
    del chain.pools[WETH, USDC, 500]
    answer = chain.run(venue.quote(path, 100))
    assert isinstance(answer, Refusal) and answer.reason == "no_pool"
    chain.pools[WETH, USDC, 500] = 10
    assert isinstance(chain.run(venue.quote(path, 100)), Quote)


def test_a_wrong_factory_is_an_error() -> None:
    """What is no factory is breakage, not an empty market."""
    quote = _venue().quote(Path((WETH, USDC), (500,)), 100)
    next(quote)
    with pytest.raises(AdapterError, match="factory"):
        quote.send([Reverted(b""), Reverted(b"")])
    quote = _venue().quote(Path((WETH, USDC), (500,)), 100)
    next(quote)
    with pytest.raises(AdapterError):
        quote.send([b"", b""])


def test_the_model_takes_checked_addresses_and_known_keys() -> None:
    """Addresses are hex or 20 bytes; unknown keys, short addresses and absurd fee tiers fail."""
    text = {name: "0x" + bytes([n]).hex() * 20 for n, name in enumerate(("factory", "quoter", "router"), 1)}
    config = UniswapV3Config.model_validate(text)
    assert config.router == b"\x03" * 20 and config.fee_tiers == (100, 500, 3000, 10_000)
    wrongs: list[dict[str, Any]] = [{"router": "0x12"}, {"routers": 1}, {"fee_tiers": [0]}, {"fee_tiers": []}]
    for wrong in wrongs:
        with pytest.raises(ValidationError):
            UniswapV3Config.model_validate(text | wrong)
