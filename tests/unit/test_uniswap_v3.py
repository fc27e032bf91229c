from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import ValidationError

from keeper import abi
from keeper.errors import AdapterError
from keeper.fixed import MAX_UINT256
from keeper.seams import Reads, together
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
from keeper.venues.uniswap_v3 import UniswapV3, UniswapV3Config, pack, path_text

FACTORY, QUOTER, ROUTER = (Address(bytes([n]) * 20) for n in (0xFA, 0x90, 0x80))
WETH, USDC, DAI = (Address(bytes([n]) * 20) for n in (1, 2, 3))
TIERS = (500, 3000)
SPACING = {100: 1, 500: 10, 3000: 60, 10_000: 200}
ONE = 1 << 96  # the square root price of tick 0
DEEP = 10**18

_GET_POOL = abi.load("UniswapV3Factory").function("getPool")
_POOL = abi.load("UniswapV3Pool")
_TICKS, _BITMAP = _POOL.function("ticks"), _POOL.function("tickBitmap")
_Key = tuple[Address, Address, int]


def _words(*values: int | bytes) -> bytes:
    return b"".join(
        (value % 2**256).to_bytes(32) if isinstance(value, int) else value.rjust(32, b"\0")
        for value in values
    )


def _at(number: int) -> BlockTime:
    return BlockTime(BlockNumber(number), Hash(bytes([number]) * 32), number)


@dataclass(slots=True)
class _Chain:
    """A factory with pools at a price of 1 that hold liquidity from 1200 ticks below to 1200 above; what is asked."""

    pools: dict[_Key, int]  # liquidity
    nets: dict[int, int] = field(default_factory=dict)  # of more initialised ticks in every pool
    price: int = ONE
    asked: list[str] = field(default_factory=list)
    rounds: int = 0

    def pool_address(self, key: _Key) -> bytes:
        return abi.keccak(repr(key).encode())[:20]

    def answer(self, call: Question) -> Result:
        assert isinstance(call, Call)
        function = (_GET_POOL if call.to == FACTORY else _POOL.called_by(call.data)) or _GET_POOL
        self.asked.append(function.name)
        if call.to == FACTORY:
            key = _GET_POOL.decode_input(call.data)
            assert key[0] < key[1]
            return _words(self.pool_address(key) if key in self.pools else ZERO_ADDRESS)
        found = [key for key in self.pools if self.pool_address(key) == call.to]
        if not found:
            return b""
        (key,) = found
        spacing, depth = SPACING[key[2]], self.pools[key]
        nets = {-1200: depth, 1200: -depth, **self.nets}
        if function.name == "ticks":
            (tick,) = _TICKS.decode_input(call.data)
            return _words(abs(nets[tick]), nets[tick], 0, 0, 0, 0, 0, 1)
        if function.name == "tickBitmap":
            (word,) = _BITMAP.decode_input(call.data)
            places = [tick // spacing for tick, net in nets.items() if net]
            return _words(sum(1 << place % 256 for place in places if place // 256 == word))
        answers = {
            "slot0": (self.price, 0, 0, 1, 1, 0, 1),
            "liquidity": (depth,),
            "tickSpacing": (spacing,),
        }
        return _words(*answers[function.name])

    def run(self, reads: Reads[Any]) -> Any:
        try:
            calls = next(reads)
            while True:
                self.rounds += 1
                calls = reads.send([self.answer(call) for call in calls])
        except StopIteration as end:
            return end.value


def _venue(*middles: Address, tiers: Sequence[int] = TIERS) -> UniswapV3:
    config = UniswapV3Config(factory=FACTORY, quoter=QUOTER, router=ROUTER, fee_tiers=tuple(tiers))
    return UniswapV3(config, middles)


def _synced(chain: _Chain, venue: UniswapV3, paths: Iterable[Path], number: int) -> int:
    """How many rounds it takes to know the routes' pools at a block."""
    before = chain.rounds
    chain.run(venue.sync(paths, _at(number)))
    return chain.rounds - before


def test_unseen_pools_are_all_routed() -> None:
    """Before anything is known every tier is a route: direct ones first, then through each intermediate."""
    paths = _venue(WETH, DAI).paths(WETH, USDC)
    direct = [Path((WETH, USDC), (fee,)) for fee in TIERS]
    through = [Path((WETH, DAI, USDC), (one, two)) for one in TIERS for two in TIERS]
    assert sorted(paths, key=repr) == sorted([*direct, *through], key=repr)
    assert list(paths[:2]) == direct
    assert _venue(WETH).paths(WETH, WETH) == ()


def test_a_quote_of_synced_pools_asks_nothing() -> None:
    """Once a route's pools were read at a block, quotes there take no round and equal those that read by themselves."""
    chain = _Chain({(WETH, USDC, 500): DEEP})
    venue, path = _venue(), Path((WETH, USDC), (500,))
    alone = [chain.run(venue.quote(path, 10**6, exact_out=exact_out)) for exact_out in (False, True)]
    assert _synced(chain, venue, [path], 1) == 1
    rounds = chain.rounds
    sold, bought = (chain.run(venue.quote(path, 10**6, exact_out=exact_out)) for exact_out in (False, True))
    assert chain.rounds == rounds
    assert [sold, bought] == alone
    # of a million 500 stay as a fee, and the price moves by a millionth of a millionth: less than a unit
    assert (sold.amount_in_raw, sold.amount_out_raw) == (10**6, 999_499)
    assert (bought.amount_in_raw, bought.amount_out_raw) == (1_000_502, 10**6)
    assert sold.gas == bought.gas > 0


def test_pools_are_read_once_a_block_in_one_round() -> None:
    """The first look takes four rounds: pool, price, bitmap, ticks; then one a block, and none for the same block."""
    chain = _Chain({(WETH, USDC, 500): DEEP, (WETH, USDC, 3000): DEEP})
    venue = _venue()
    paths = venue.paths(WETH, USDC)
    assert [_synced(chain, venue, paths, number) for number in (1, 1, 2, 2, 3)] == [4, 0, 1, 0, 1]
    chain.asked.clear()
    _synced(chain, venue, paths, 4)
    assert sorted(set(chain.asked)) == ["liquidity", "slot0", "tickBitmap", "ticks"]


def test_liquidity_out_of_range_is_noticed() -> None:
    """New liquidity beside the price moves neither price nor liquidity, but what a larger swap gives at that block."""
    chain = _Chain({(WETH, USDC, 500): DEEP})
    venue, path = _venue(), Path((WETH, USDC), (500,))
    amounts = (10**6, 10**16)
    known = []
    for number in (1, 2):
        _synced(chain, venue, [path], number)
        known.append([chain.run(venue.quote(path, amount)).amount_out_raw for amount in amounts])
        chain.nets = {-600: DEEP, -50: -DEEP}
    assert known[0][0] == known[1][0]
    assert known[0][1] < known[1][1]


def test_the_price_moves_on() -> None:
    """A pool whose price changed between two blocks is quoted at the new one."""
    chain = _Chain({(WETH, USDC, 500): DEEP})
    venue, path = _venue(), Path((WETH, USDC), (500,))
    _synced(chain, venue, [path], 1)
    before = chain.run(venue.quote(path, 10**6))
    chain.price = ONE * 1001 // 1000
    assert chain.run(venue.quote(path, 10**6)) == before  # as of the block that was synced
    _synced(chain, venue, [path], 2)
    assert chain.run(venue.quote(path, 10**6)).amount_out_raw == 999_500 * 1_002_001 // 1_000_000


def test_what_swaps_do_not_need_any_more_is_not_asked_for() -> None:
    """Far ticks that a large swap needed are asked for again until the price moved and nothing needed them since."""
    chain = _Chain(
        {(WETH, USDC, 100): DEEP}, nets={tick: DEEP if tick % 2 else -DEEP for tick in range(-900, 0)}
    )
    venue, path = _venue(tiers=(100,)), Path((WETH, USDC), (100,))

    def asked(number: int) -> int:
        chain.asked.clear()
        _synced(chain, venue, [path], number)
        return len(chain.asked)

    asked(1)
    assert isinstance(chain.run(venue.quote(path, 5 * 10**15)), Quote)
    assert asked(2) == asked(3) > 150
    for number in (4, 5):
        chain.price += 1
        asked(number)
    assert asked(6) < 60


def test_thousands_of_ticks_do_not_keep_the_keeper_reading() -> None:
    """A swap over more ticks than anybody would pay for is refused, after a few rounds."""
    chain = _Chain(
        {(WETH, USDC, 100): DEEP}, nets={tick: DEEP if tick % 2 else -DEEP for tick in range(-900, 0)}
    )
    venue, path = _venue(tiers=(100,)), Path((WETH, USDC), (100,))
    answer = chain.run(venue.quote(path, 10**18))
    assert isinstance(answer, Refusal) and answer.reason == "no_liquidity"
    assert chain.rounds < 16 and len(chain.asked) < 600


def test_an_exact_output_is_told_backwards() -> None:
    """The router wants an exact output's path from the token bought to the token sold."""
    venue, path = _venue(), Path((WETH, DAI, USDC), (500, 3000))
    forwards = WETH + (500).to_bytes(3) + DAI + (3000).to_bytes(3) + USDC
    backwards = USDC + (3000).to_bytes(3) + DAI + (500).to_bytes(3) + WETH
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
    chain = _Chain({(WETH, USDC, 500): DEEP})
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
    further = Path((WETH, USDC, DAI), (500, 3000))
    for _ in range(2):
        chain.asked.clear()
        assert chain.run(venue.quote(further, 100)).reason == "no_pool"
    assert chain.asked == []


def test_a_pool_created_later_is_found() -> None:
    """A thorough look routes missing pools again, so a new pool is used without a restart."""
    chain = _Chain({(WETH, USDC, 500): DEEP})
    venue = _venue()
    for path in venue.paths(WETH, USDC):
        chain.run(venue.quote(path, 100))
    chain.pools[WETH, USDC, 3000] = DEEP

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


def test_reads_of_one_round_may_learn_the_same_pool() -> None:
    """Quotes and whole routes through one unknown pool, merged into one round, are all right and ask once."""
    chain, venue, path = _Chain({(WETH, USDC, 500): DEEP}), _venue(), Path((WETH, USDC), (500,))
    quotes = chain.run(together([venue.quote(path, amount) for amount in (10**6, 10**16, 10**6)]))
    assert quotes[0] == quotes[2] == chain.run(venue.quote(path, 10**6))
    assert quotes[1] == chain.run(venue.quote(path, 10**16))
    chain.asked.clear()
    venue = _venue()
    chain.run(together([venue.sync([path], _at(1)) for _ in range(3)]))
    assert chain.asked.count("getPool") == chain.asked.count("slot0") == 1
    assert chain.run(venue.quote(path, 10**6)) == quotes[0]


def test_nobody_waits_for_a_read_that_was_given_up() -> None:
    """Who asks beside another waits for its answers, but not for one that ended, nor for one that never goes on."""
    chain, venue, path = _Chain({(WETH, USDC, 500): DEEP}), _venue(), Path((WETH, USDC), (500,))
    first, second, third = (venue.sync([path], _at(1)) for _ in range(3))
    assert len(next(first)) == 1
    assert list(next(second)) == list(next(third)) == []
    chain.run(third)
    first.close()
    with pytest.raises(StopIteration):
        second.send([])
    assert isinstance(chain.run(venue.quote(path, 10**6)), Quote)


@pytest.mark.parametrize("hop", [0, 1])
def test_a_partly_filled_quote_is_refused(hop: int) -> None:
    """A hop that runs out of liquidity gives no quote for the whole amount, nor can so much be taken from it."""
    depths = [DEEP, DEEP]
    depths[hop] = 10**6
    chain = _Chain({(WETH, DAI, 500): depths[0], (USDC, DAI, 500): depths[1]})
    path = Path((WETH, DAI, USDC), (500, 500))
    answer = chain.run(_venue().quote(path, 10**8))
    assert isinstance(answer, Refusal) and answer.reason == "no_liquidity"
    assert 0 < answer.numbers["partial_raw"] < 10**6
    answer = chain.run(_venue().quote(path, 10**8, exact_out=True))
    assert isinstance(answer, Refusal) and answer.reason == "no_liquidity"


@pytest.mark.parametrize(("depth", "price"), [(0, ONE), (0, 0)], ids=["empty", "never initialised"])
def test_a_pool_without_liquidity_is_refused(depth: int, price: int) -> None:
    """A pool that holds nothing gives no quote, neither way."""
    chain = _Chain({(WETH, USDC, 500): depth}, price=price)
    for exact_out in (False, True):
        answer = chain.run(_venue().quote(Path((WETH, USDC), (500,)), 100, exact_out=exact_out))
        assert isinstance(answer, Refusal) and answer.reason == "no_liquidity"


def test_an_amount_that_gives_nothing_is_refused() -> None:
    """Dust that rounds to nothing is no swap, and no amount asks nothing."""
    chain, venue, path = _Chain({(WETH, USDC, 500): DEEP}), _venue(), Path((WETH, USDC), (500,))
    answer = chain.run(venue.quote(path, 1))
    assert isinstance(answer, Refusal) and answer.reason == "no_liquidity"
    chain.asked.clear()
    answer = chain.run(venue.quote(path, 0))
    assert isinstance(answer, Refusal) and answer.reason == "no_amount"
    assert chain.asked == []


def test_a_pool_undone_by_a_reorganisation_is_forgotten() -> None:
    """A known pool without code is refused once and asked for again."""
    chain, venue, path = _Chain({(WETH, USDC, 500): DEEP}), _venue(), Path((WETH, USDC), (500,))
    _synced(chain, venue, [path], 1)
    assert isinstance(chain.run(venue.quote(path, 100)), Quote)
    del chain.pools[WETH, USDC, 500]
    _synced(chain, venue, [path], 2)
    answer = chain.run(venue.quote(path, 100))
    assert isinstance(answer, Refusal) and answer.reason == "no_pool"
    chain.pools[WETH, USDC, 500] = DEEP
    _synced(chain, venue, venue.paths(WETH, USDC, thorough=True), 3)
    assert isinstance(chain.run(venue.quote(path, 100)), Quote)


def test_a_wrong_factory_is_an_error() -> None:
    """What is no factory is breakage, not an empty market; nor is a pool that does not answer."""
    for answer in (Reverted(b""), b""):
        read = _venue().quote(Path((WETH, USDC), (500,)), 100)
        next(read)
        with pytest.raises(AdapterError):
            read.send([answer])
    with pytest.raises(AdapterError, match="factory"):
        wrong = _venue().sync([Path((WETH, USDC), (500,))], _at(1))
        next(wrong)
        wrong.send([Reverted(b"")])
    silent = _venue().sync([Path((WETH, USDC), (500,))], _at(1))
    next(silent)
    silent.send([_words(b"\x77" * 20)])
    with pytest.raises(AdapterError, match="0x7777"):
        silent.send([_words(ONE, 0, 0, 1, 1, 0, 1), Reverted(b""), _words(10)])


def test_the_model_takes_checked_addresses_and_known_keys() -> None:
    """Addresses are hex or 20 bytes; unknown keys, short addresses and absurd fee tiers fail."""
    text = {name: "0x" + bytes([n]).hex() * 20 for n, name in enumerate(("factory", "quoter", "router"), 1)}
    config = UniswapV3Config.model_validate(text)
    assert config.router == b"\x03" * 20 and config.fee_tiers == (100, 500, 3000, 10_000)
    wrongs: list[dict[str, Any]] = [{"router": "0x12"}, {"routers": 1}, {"fee_tiers": [0]}, {"fee_tiers": []}]
    for wrong in wrongs:
        with pytest.raises(ValidationError):
            UniswapV3Config.model_validate(text | wrong)
