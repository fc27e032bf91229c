from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keeper import abi
from keeper.data_fee import DataFee, DataRates
from keeper.engine.planning import PlanGas
from keeper.engine.turns import Turns
from keeper.fixed import BPS, MAX_UINT256, convert_up, mul_div_down, mul_div_up
from keeper.planner import PlanContext, encode_execute, plan, samples
from keeper.planner.routing import Candidate, attempt, recipes_of, routes_of
from keeper.planner.search import PASSES, Rank, halves, peak
from keeper.planner.sizing import PLAN_GAS, Size, funded, read_loans, size_of, terms_of
from keeper.seams import FlashKind, Reads, VenueKind, just, together
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    BlockNumber,
    BlockTime,
    Call,
    FlashQuote,
    Gas,
    Hash,
    Health,
    Option,
    Outcome,
    Path,
    Plan,
    PoolId,
    PositionKey,
    ProtocolCall,
    Quote,
    Refusal,
    Result,
    SwapLeg,
    Token,
    Wei,
)

WETH = Token(Address(b"\x01" * 20), "WETH", 18)
USDC = Token(Address(b"\x02" * 20), "USDC", 6)
DAI = Token(Address(b"\x03" * 20), "DAI", 18)
POOL = Address(b"\xaa" * 20)
LENDER = Address(b"\xdd" * 20)
ROUTER = Address(b"\xbb" * 20)
PRICES = {WETH.address: 2000 * 10**8, USDC.address: 10**8, DAI.address: 10**8}
TOKENS = {token.address: token for token in (WETH, USDC, DAI)}
AT = BlockTime(BlockNumber(7), Hash(b"\x07" * 32), 1_700_000_000)
KEY = PositionKey("toy", "main", Address(b"\xcc" * 20))
MILLION = 10**6


# --- a toy world: constant-product pools, one protocol, one lender ---------------------------------------------------


@dataclass(slots=True)
class _Reserves:
    """A constant-product pool of two tokens with a fee in millionths."""

    amounts: dict[Address, int]
    fee: int

    def out(self, token_in: Address, amount_in: int) -> int:
        (token_out,) = self.amounts.keys() - {token_in}
        paid = amount_in * (MILLION - self.fee)
        return paid * self.amounts[token_out] // (self.amounts[token_in] * MILLION + paid)

    def needed(self, token_in: Address, amount_out: int) -> int | None:
        (token_out,) = self.amounts.keys() - {token_in}
        left = self.amounts[token_out] - amount_out
        if left <= 0:
            return None
        return self.amounts[token_in] * amount_out * MILLION // (left * (MILLION - self.fee)) + 1

    def move(self, token_in: Address, amount_in: int, amount_out: int) -> None:
        (token_out,) = self.amounts.keys() - {token_in}
        self.amounts[token_in] += amount_in
        self.amounts[token_out] -= amount_out


PoolKey = tuple[frozenset[Address], int]


@dataclass(slots=True, eq=False)
class _Venue:
    """Quotes from pools by their exact arithmetic, as of a block that is synced."""

    pools: dict[PoolKey, _Reserves]
    middles: Sequence[Address] = ()
    quoted: int = 0
    kind: VenueKind = VenueKind.UNISWAP_V3
    router: Address = ROUTER

    def contracts(self) -> dict[str, Address]:
        return {"router": self.router}

    def pool(self, one: Address, other: Address, fee: int) -> _Reserves | None:
        return self.pools.get((frozenset((one, other)), fee))

    def fees(self, one: Address, other: Address) -> list[int]:
        return sorted(fee for pair, fee in self.pools if pair == {one, other})

    def paths(self, token_in: Address, token_out: Address, *, thorough: bool = False) -> Sequence[Path]:
        direct = [Path((token_in, token_out), (fee,)) for fee in self.fees(token_in, token_out)]
        through = [
            Path((token_in, middle, token_out), (first, second))
            for middle in self.middles
            if middle not in (token_in, token_out)
            for first in self.fees(token_in, middle)
            for second in self.fees(middle, token_out)
        ]
        return [*direct, *through]

    def sync(self, paths: Iterable[Path], at: BlockTime) -> Reads[None]:
        return just(None)

    def quote(self, path: Path, amount_raw: int, *, exact_out: bool = False) -> Reads[Quote | Refusal]:
        self.quoted += 1
        other = self.swapped(path, amount_raw, exact_out)
        if not other:
            return just(Refusal("plan", "no_liquidity", {}))
        amounts = (other, amount_raw) if exact_out else (amount_raw, other)
        return just(Quote(path, exact_out, *amounts, gas=90_000 * len(path.fees)))

    def swapped(self, path: Path, amount_raw: int, exact_out: bool, *, move: bool = False) -> int | None:
        hops = list(zip(path.tokens, path.tokens[1:], path.fees, strict=False))
        amount: int = amount_raw
        for token_in, token_out, fee in reversed(hops) if exact_out else hops:
            pool = self.pool(token_in, token_out, fee)
            if pool is None:
                return None
            other = pool.needed(token_in, amount) if exact_out else pool.out(token_in, amount)
            if not other:
                return None
            if move:
                pool.move(token_in, *((other, amount) if exact_out else (amount, other)))
            amount = other
        return amount

    def swap_leg(self, quote: Quote, *, whole_balance: bool, limit_raw: int) -> SwapLeg:
        tokens, fees = quote.path.tokens, quote.path.fees
        path = b"".join(tokens) + b"".join(fee.to_bytes(3) for fee in fees)
        amount_raw = quote.amount_out_raw if quote.exact_out else quote.amount_in_raw
        return SwapLeg(
            self.router, path, quote.exact_out, MAX_UINT256 if whole_balance else amount_raw, limit_raw
        )


def path_of(leg: SwapLeg) -> Path:
    """The inverse of the toy's packing: n + 1 tokens of 20 bytes, n fees of 3."""
    hops = (len(leg.path) - 20) // 23
    tokens = tuple(Address(leg.path[20 * i : 20 * i + 20]) for i in range(hops + 1))
    start = 20 * (hops + 1)
    return Path(
        tokens, tuple(int.from_bytes(leg.path[start + 3 * i : start + 3 * i + 3]) for i in range(hops))
    )


@dataclass(slots=True)
class _Adapter:
    """Seizes the repayment's oracle value plus a bonus."""

    bonus_bps: int = 500
    headroom_raw: int = 0
    name: str = "toy"
    market: str = "main"

    def outcome(self, option: Option, repay_raw: int) -> Reads[Outcome | Refusal]:
        return just(Outcome(repay_raw, self.seized_raw(option, repay_raw)))

    def seized_raw(self, option: Option, repay_raw: int) -> int:
        return mul_div_down(
            repay_raw * option.repay_price_base * 10**option.seize_token.decimals,
            BPS + self.bonus_bps,
            option.seize_price_base * 10**option.repay_token.decimals * BPS,
        )

    def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
        data = b"liq!" + repay_raw.to_bytes(32)
        return [ProtocolCall(POOL, option.repay_token.address, repay_raw + self.headroom_raw, data)]

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the planner must not ask the adapter for {name}")


@dataclass(slots=True)
class _Flash:
    """Lends any token at one premium."""

    premium_bps: int = 5
    available_raw: int = 10**40
    lender: Address = LENDER
    kind: FlashKind = FlashKind.AAVE_V3
    locked: PoolId | None = None

    def source(self) -> Address:
        return self.lender

    def flash(self, token: Address, at: BlockTime) -> Reads[FlashQuote | Refusal]:
        yield [Call(self.lender, token)]
        return FlashQuote(self.lender, token, self.premium_bps, self.available_raw, self.locked)


def drive(reads: Reads[Any]) -> tuple[Any, list[int]]:
    """Run a read whose calls need no answer; its result and how many calls each round had."""
    rounds: list[int] = []
    try:
        calls = next(reads)
        while True:
            rounds.append(len(calls))
            calls = reads.send([b""] * len(calls))
    except StopIteration as end:
        return end.value, rounds


def pool(one: Token, other: Token, fee: int, depth_usd: int) -> tuple[PoolKey, _Reserves]:
    """A pool at oracle prices with `depth_usd` on each side."""
    amounts = {t.address: depth_usd * 10**8 * 10**t.decimals // PRICES[t.address] for t in (one, other)}
    return (frozenset((one.address, other.address)), fee), _Reserves(amounts, fee)


def _option(repay: Token, seize: Token, max_usd: int = 100_000, **changes: Any) -> Option:
    amount = max_usd * 10**8 * 10**repay.decimals // PRICES[repay.address]
    option = Option(
        key=KEY,
        repay_token=repay,
        seize_token=seize,
        max_repay_raw=amount,
        partial_max_repay_raw=amount,
        min_repay_raw=1,
        repay_price_base=PRICES[repay.address],
        seize_price_base=PRICES[seize.address],
    )
    return replace(option, **changes)


HEALTH = Health(KEY, 95 * 10**16, 10**13, 10**13, 8, True)


def _context(venue: _Venue, profit: Token = USDC, **changes: Any) -> PlanContext:
    ctx = PlanContext(
        at=AT,
        adapter=_Adapter(),
        venues=(venue,),
        flash_sources=(_Flash(),),
        profit_token=profit,
        profit_usd_e8=PRICES[profit.address],
        native_usd_e8=PRICES[WETH.address],
        gas_price_wei=Wei(10 * 10**9),
        max_fee_wei=Wei(200 * 10**9),
        min_profit_usd_e8=5 * 10**8,
        max_slippage_bps=100,
        max_repay_usd_e8=10**6 * 10**8,
    )
    return replace(ctx, **changes)


def _rates(plan_wei: int, leg_wei: int, plan_gas: int, leg_gas: int) -> DataRates:
    return DataRates(DataFee(Wei(plan_wei), Gas(plan_gas)), DataFee(Wei(leg_wei), Gas(leg_gas)))


# --- the Liquidator, as far as money goes ----------------------------------------------------------------------------


@dataclass(slots=True)
class Books:
    """What the Liquidator holds and owes (Liquidator.sol `_run`)."""

    held: dict[Address, int] = field(default_factory=dict)
    owed: dict[Address, int] = field(default_factory=dict)


class Reverts(Exception):
    """The Liquidator's own check failed."""


def execute(plan: Plan, venue: _Venue, ctx: PlanContext) -> int:
    """Carry a plan out on the toy's pools with the contract's rules; the profit, or `Reverts`."""
    borrowed = sum(call.approve_raw for call in plan.calls)
    premium = mul_div_up(borrowed, plan.flash.premium_bps, BPS)
    held, owed = dict.fromkeys(plan.tokens, 0), dict.fromkeys(plan.tokens, 0)
    held[plan.flash.token] += borrowed - plan.outcome.repay_raw
    owed[plan.flash.token] = borrowed + premium
    held[plan.option.seize_token.address] += plan.outcome.seize_raw
    for leg in plan.legs:
        path = path_of(leg)
        first, last = path.tokens[0], path.tokens[-1]
        whole = leg.amount_raw == MAX_UINT256
        if leg.exact_out:
            amount_out = max(owed[last] - held[last], 0) if whole else leg.amount_raw
            amount_in = venue.swapped(path, amount_out, True, move=True) if amount_out else 0
            if amount_in is None or amount_in > min(leg.limit_raw, held[first]):
                raise Reverts("too much in")
        else:
            amount_in = max(held[first] - owed[first], 0) if whole else leg.amount_raw
            if amount_in > held[first]:
                raise Reverts("more than is held")
            amount_out = venue.swapped(path, amount_in, False, move=True) or 0
            if amount_out < leg.limit_raw:
                raise Reverts("too little out")
        held[first] -= amount_in
        held[last] += amount_out
    earned = {token: held[token] - owed[token] for token in plan.tokens}
    if min(earned.values()) < 0:
        raise Reverts("overspent")
    profit = earned[plan.profit_token.address]
    if profit < plan.min_profit_raw:
        raise Reverts("profit below minimum")
    if value(earned) < required(plan, ctx):
        raise Reverts("slippage exceeded")
    return profit


def value(amounts: Mapping[Address, int]) -> int:
    """USD at the oracle, scaled like the contract: exact."""
    return sum(raw * PRICES[token] * 10 ** (28 - TOKENS[token].decimals) for token, raw in amounts.items())


def required(plan: Plan, ctx: PlanContext) -> int:
    """What the treasury must receive (Liquidator.sol `_settle`, which sees one change of each token's balance)."""
    change = dict.fromkeys(plan.tokens, 0)
    change[plan.option.seize_token.address] += plan.outcome.seize_raw
    change[plan.option.repay_token.address] -= plan.outcome.repay_raw
    gained = value({token: raw for token, raw in change.items() if raw > 0})
    paid = -value({token: raw for token, raw in change.items() if raw < 0})
    return max(gained - paid - gained * ctx.max_slippage_bps // BPS, 0)


PAIRS = [
    pytest.param(repay, seize, profit, id=f"{repay.symbol}-{seize.symbol}-{profit.symbol}")
    for repay in (USDC, DAI, WETH)
    for seize in (WETH, USDC)
    for profit in (USDC, WETH, DAI)
]


def _everywhere(depth_usd: int = 50_000_000) -> dict[PoolKey, _Reserves]:
    return dict(
        pool(one, other, fee, depth_usd)
        for one, other in ((WETH, USDC), (WETH, DAI), (USDC, DAI))
        for fee in (500, 3000)
    )


# --- what a plan does ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("repay", "seize", "profit"), PAIRS)
def test_a_plan_brings_at_least_what_it_expects(repay: Token, seize: Token, profit: Token) -> None:
    """Whatever the tokens, executing the plan returns the loan and brings at least the expected profit."""
    venue = _Venue(_everywhere(), middles=(WETH.address, USDC.address))
    ctx = _context(venue, profit, max_slippage_bps=300)
    answer, _ = drive(plan(HEALTH, [_option(repay, seize)], ctx))
    assert isinstance(answer, Plan), answer
    assert execute(answer, venue, ctx) >= answer.expected_profit_raw
    assert set(answer.tokens) == {repay.address, seize.address, profit.address}


@pytest.mark.parametrize(
    ("repay", "seize", "profit", "kinds"),
    [
        (USDC, USDC, USDC, [[]]),
        (USDC, USDC, WETH, [[False]]),
        (USDC, WETH, USDC, [[False]]),
        (USDC, WETH, WETH, [[True]]),
        (DAI, WETH, USDC, [[False, False], [True, False], [False, True]]),
    ],
)
def test_legs_by_case(repay: Token, seize: Token, profit: Token, kinds: list[list[bool]]) -> None:
    """Sell for the loan's token, or buy the shortfall and keep the rest: each case has its sequence of legs."""
    venue = _Venue(_everywhere(10**10))
    answer, _ = drive(plan(HEALTH, [_option(repay, seize)], _context(venue, profit, max_slippage_bps=300)))
    assert isinstance(answer, Plan)
    assert [leg.exact_out for leg in answer.legs] in kinds


def test_collateral_that_is_the_debt_needs_no_swap() -> None:
    """Same token seized, owed and kept: gross profit is the bonus less the premium, to the unit."""
    answer, rounds = drive(plan(HEALTH, [_option(USDC, USDC)], _context(_Venue({}))))
    assert isinstance(answer, Plan)
    repay = answer.outcome.repay_raw
    assert answer.expected_profit_raw == answer.outcome.seize_raw - repay - mul_div_up(repay, 5, BPS)
    assert answer.legs == () and rounds == [1]


def test_in_kind_the_premium_must_fit_into_the_slippage_of_the_gain() -> None:
    """Where debt and collateral are one token, the Liquidator excuses slippage on the net gain only: a premium above
    that would revert on chain, so another pair is taken, or none.
    """
    venue = _Venue(_everywhere())
    ctx = _context(venue, flash_sources=(_Flash(premium_bps=9),))
    alone, _ = drive(plan(HEALTH, [_option(USDC, USDC)], ctx))
    assert isinstance(alone, Refusal) and alone.reason == "over_slippage"
    beside, _ = drive(plan(HEALTH, [_option(USDC, USDC), _option(USDC, WETH, 10_000)], ctx))
    assert isinstance(beside, Plan) and beside.option.seize_token == WETH
    assert execute(beside, venue, ctx) >= beside.expected_profit_raw


def test_a_plan_states_its_gas_and_floor() -> None:
    """Gas is priced up in the profit token, and the enforced minimum covers it and the configured minimum."""
    venue = _Venue(_everywhere(10**10))
    ctx = _context(venue)
    answer, _ = drive(plan(HEALTH, [_option(USDC, WETH)], ctx))
    assert isinstance(answer, Plan)
    assert answer.gas_estimate == PLAN_GAS + 90_000 + 90_000
    assert answer.gas_cost_wei == answer.gas_estimate * 10 * 10**9
    assert answer.gas_cost_raw == convert_up(answer.gas_cost_wei, 2000, 1, 18, 6)
    assert answer.gas_cost_raw + 5_000_000 <= answer.min_profit_raw < answer.expected_profit_raw
    assert answer.repay_usd_e8 == 100_000 * 10**8
    assert answer.profit_price_usd_e8 == 10**8 and answer.at == AT


def test_a_plans_bytes_are_in_its_cost_and_floor() -> None:
    """What a rollup takes for them, in wei or as gas, raises cost, gas and the enforced minimum, by plan and by leg."""
    venue = _Venue(_everywhere(10**10))
    ctx = _context(venue)
    free, _ = drive(plan(HEALTH, [_option(USDC, WETH)], ctx))
    wei, _ = drive(plan(HEALTH, [_option(USDC, WETH)], replace(ctx, data=_rates(10**15, 10**14, 0, 0))))
    gas, _ = drive(plan(HEALTH, [_option(USDC, WETH)], replace(ctx, data=_rates(0, 0, 9_000, 1_000))))
    assert isinstance(free, Plan) and isinstance(wei, Plan) and isinstance(gas, Plan)
    assert wei.gas_cost_wei == free.gas_cost_wei + 11 * 10**14 and wei.gas_estimate == free.gas_estimate
    assert gas.gas_cost_wei == free.gas_cost_wei + 10_000 * ctx.gas_price_wei
    assert gas.gas_estimate == free.gas_estimate + 10_000
    for one in (wei, gas):
        assert one.gas_cost_raw == convert_up(one.gas_cost_wei, 2000, 1, 18, 6)
        assert one.min_profit_raw >= one.gas_cost_raw + 5_000_000
    refusal, _ = drive(plan(HEALTH, [_option(USDC, WETH)], replace(ctx, data=_rates(10**19, 0, 0, 0))))
    assert isinstance(refusal, Refusal) and refusal.reason == "unprofitable"


def test_a_kept_token_is_not_sold() -> None:
    """What repays the loan is bought with it and the rest stays: profit, minimum and cost are in units of it."""
    venue = _Venue(_everywhere(10**8))
    ctx = _context(venue, kept={WETH.address: PRICES[WETH.address]})
    answer, _ = drive(plan(HEALTH, [_option(USDC, WETH)], ctx))
    assert isinstance(answer, Plan) and answer.profit_token == WETH
    [leg], [quote] = answer.legs, answer.quotes
    assert leg.exact_out and quote.amount_out_raw == answer.outcome.repay_raw * 10_005 // 10_000
    assert answer.expected_profit_raw == answer.outcome.seize_raw - quote.amount_in_raw
    assert execute(answer, venue, ctx) == answer.expected_profit_raw
    assert answer.gas_cost_raw == answer.gas_cost_wei  # the native coin's own price
    assert answer.min_profit_raw >= answer.gas_cost_raw + 5 * 10**18 // 2_000
    assert answer.profit_price_usd_e8 == PRICES[WETH.address]
    [way] = answer.weighed
    assert way.profit_token == WETH and way.swaps == "buy USDC with WETH"


@pytest.mark.parametrize("kept_usd", [20_000, 80_000])
def test_profits_in_different_tokens_compare_in_dollars(kept_usd: int) -> None:
    """However many units of a kept token a profit is: the option that is worth more wins, and all ways are told."""
    venue = _Venue(_everywhere(10**9))
    ctx = _context(venue, kept={WETH.address: PRICES[WETH.address]})
    options = [_option(USDC, DAI, 40_000), _option(USDC, WETH, kept_usd)]
    answer, _ = drive(plan(HEALTH, options, ctx))
    assert isinstance(answer, Plan)
    assert answer.profit_token == (WETH if kept_usd > 40_000 else USDC)
    assert {way.profit_token for way in answer.weighed} == {WETH, USDC}
    assert answer.weighed[0].profit_token == answer.profit_token


def test_the_sample_plans_differ_by_one_leg() -> None:
    """Bytes are priced by calldata that decodes as a plan's: the second has one leg more and nothing else."""
    execute_of = abi.load("Liquidator").function("execute")
    [one], [two] = (execute_of.decode_input(each) for each in samples())
    assert len(one[5]) == 1 and list(two[5]) == [*one[5], one[5][0]]
    assert [*one[:5], *one[6:]] == [*two[:5], *two[6:]]


def test_a_longer_route_must_earn_its_gas() -> None:
    """Two hops that give a little more lose to one hop when gas costs more than the difference."""
    pools = dict([pool(WETH, USDC, 500, 10**9), pool(WETH, DAI, 100, 10**9), pool(DAI, USDC, 100, 10**9)])
    venue = _Venue(pools, middles=(DAI.address,))
    option = _option(USDC, WETH, 50_000)
    cheap, _ = drive(plan(HEALTH, [option], _context(venue, gas_price_wei=Wei(10**8))))
    dear, _ = drive(plan(HEALTH, [option], _context(venue, gas_price_wei=Wei(150 * 10**9))))
    assert isinstance(cheap, Plan) and isinstance(dear, Plan)
    assert len(path_of(cheap.legs[0]).fees) == 2
    assert len(path_of(dear.legs[0]).fees) == 1


def test_no_pool_is_used_twice_in_one_direction() -> None:
    """Both legs would go through the only WETH pool; their quotes would not add up, so the route back is used."""
    venue = _Venue(
        dict([pool(WETH, USDC, 500, 20_000_000), pool(USDC, DAI, 500, 20_000_000)]), (USDC.address,)
    )
    ctx = _context(venue, USDC)
    answer, _ = drive(plan(HEALTH, [_option(DAI, WETH, 90_000)], ctx))
    assert isinstance(answer, Plan)
    directed = [
        hop
        for leg in answer.legs
        for hop in zip(path_of(leg).tokens, path_of(leg).tokens[1:], path_of(leg).fees, strict=False)
    ]
    assert len(set(directed)) == len(directed)
    assert execute(answer, venue, ctx) >= answer.expected_profit_raw


def test_the_loan_covers_what_the_calls_approve() -> None:
    """A call that approves headroom above the repayment is lent the headroom, and the premium on it is paid."""
    venue = _Venue(_everywhere())
    ctx = _context(venue, adapter=_Adapter(headroom_raw=10**6))
    answer, _ = drive(plan(HEALTH, [_option(USDC, WETH)], ctx))
    assert isinstance(answer, Plan)
    arguments = abi.load("Liquidator").function("execute").decode_input(encode_execute(answer, 0, 0, 0))[0]
    assert arguments[3] == answer.outcome.repay_raw + 10**6
    assert execute(answer, venue, ctx) >= answer.expected_profit_raw


def test_the_cheapest_loan_that_suffices_is_taken() -> None:
    """A free lender with too little does not serve the largest amount."""
    little = _Flash(0, 10 * 10**6, Address(b"\xd1" * 20))
    dear = _Flash(9, 10**40, Address(b"\xd2" * 20))
    fair = _Flash(5, 10**40, Address(b"\xd3" * 20))
    ctx = _context(_Venue(_everywhere()), flash_sources=(little, dear, fair))
    answer, _ = drive(plan(HEALTH, [_option(USDC, WETH)], ctx))
    assert isinstance(answer, Plan)
    assert answer.flash.source == fair.lender


def _lending(one: Token, other: Token, fee: int, premium_bps: int) -> _Flash:
    """A pool of the toy's that lends."""
    token0, token1 = sorted((one.address, other.address))
    return _Flash(premium_bps, lender=Address(b"\xd4" * 20), locked=PoolId(token0, token1, fee))


def test_a_pool_that_lends_is_swapped_through_by_no_leg() -> None:
    """Nor by a hop of a longer route, in either direction; without another route there is none."""
    venue = _Venue(_everywhere(), middles=(WETH.address, DAI.address))
    for recipe in ((USDC, WETH, USDC), (USDC, WETH, DAI), (USDC, WETH, WETH), (WETH, USDC, USDC)):
        repay, seize, profit = recipe
        ctx = _context(venue, profit, flash_sources=(_lending(WETH, USDC, 500, 1),), thorough=True)
        answer, _ = drive(plan(HEALTH, [_option(repay, seize)], ctx))
        assert isinstance(answer, Plan)
        hops = [
            (frozenset(pair), fee)
            for leg in answer.legs
            for *pair, fee in zip(
                path_of(leg).tokens, path_of(leg).tokens[1:], path_of(leg).fees, strict=False
            )
        ]
        assert hops and (frozenset((WETH.address, USDC.address)), 500) not in hops
    alone = _Venue(dict([pool(WETH, USDC, 500, 50_000_000)]))
    answer, _ = drive(
        plan(HEALTH, [_option(USDC, WETH)], _context(alone, flash_sources=(_lending(WETH, USDC, 500, 1),)))
    )
    assert isinstance(answer, Refusal) and answer.reason == "no_route"


def test_a_pool_that_would_be_in_the_way_lends_last() -> None:
    """A dearer lender is taken before a pool of the very pair; a pool of other tokens lends if it is the cheapest."""
    fair = _Flash(5, lender=Address(b"\xd3" * 20))
    for pools, lender in (
        ((_lending(WETH, USDC, 500, 1),), fair.lender),
        ((_lending(DAI, USDC, 500, 1),), Address(b"\xd4" * 20)),
        ((_lending(DAI, USDC, 500, 5),), fair.lender),
    ):
        ctx = _context(_Venue(_everywhere()), flash_sources=(*pools, fair))
        answer, _ = drive(plan(HEALTH, [_option(USDC, WETH)], ctx))
        assert isinstance(answer, Plan) and answer.flash.source == lender


def test_what_is_paid_after_needs_no_loan() -> None:
    """A call that is paid from what it seized borrows nothing and owes the bare repayment; it is its own source."""

    class PaidAfter(_Adapter):
        def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
            [call] = _Adapter.liquidation_calls(self, option, repay_raw)
            return [replace(call, paid_after=True)]

    ctx = _context(_Venue(_everywhere()), flash_sources=(), adapter=PaidAfter())
    answer, _ = drive(plan(HEALTH, [_option(USDC, WETH)], ctx))
    lent, _ = drive(
        plan(HEALTH, [_option(USDC, WETH)], replace(ctx, flash_sources=(_Flash(0),), adapter=_Adapter()))
    )
    assert isinstance(answer, Plan) and isinstance(lent, Plan)
    assert answer.expected_profit_raw == lent.expected_profit_raw
    (content,) = abi.load("Liquidator").function("execute").decode_input(encode_execute(answer, 0, 0, 0))
    assert content[1:4] == (POOL, USDC.address, 0)


def test_what_is_lent_bounds_the_amount() -> None:
    """Where less is lent than could be repaid, exactly that much is repaid."""
    ctx = _context(_Venue(_everywhere()), flash_sources=(_Flash(available_raw=33_333 * 10**6),))
    answer, _ = drive(plan(HEALTH, [_option(USDC, WETH)], ctx))
    assert isinstance(answer, Plan)
    assert answer.outcome.repay_raw == 33_333 * 10**6


def test_an_option_that_repays_nothing_needs_no_loan() -> None:
    """A protocol that rewards without payment is planned without a flash source."""
    option = _option(USDC, USDC, max_repay_raw=0, partial_max_repay_raw=0)

    class Rewards(_Adapter):
        def outcome(self, option: Option, repay_raw: int) -> Reads[Outcome | Refusal]:
            return just(Outcome(0, 500 * 10**6))

        def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
            return [ProtocolCall(POOL, ZERO_ADDRESS, 0, b"liq!")]

    ctx = _context(_Venue({}), adapter=Rewards(), flash_sources=())
    answer, _ = drive(plan(HEALTH, [option], ctx))
    assert isinstance(answer, Plan)
    assert answer.flash.source == ZERO_ADDRESS
    assert answer.expected_profit_raw == 500 * 10**6


@pytest.mark.parametrize("profit", [USDC, WETH])
def test_what_is_paid_later_counts_for_what_it_leaves(profit: Token) -> None:
    """A step that is paid in a later transaction is planned when that pays for both and the minimum: nothing is sold,
    and the Liquidator need not see what comes later. A little less is refused, with what it would bring.
    """
    option = _option(USDC, USDC, max_repay_raw=0, partial_max_repay_raw=0)
    later: dict[str, int] = {}

    class Flags(_Adapter):
        def outcome(self, option: Option, repay_raw: int) -> Reads[Outcome | Refusal]:
            return just(Outcome(0, later["now"], later["then"]))

        def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
            return [ProtocolCall(POOL, ZERO_ADDRESS, 0, b"flag")]

    ctx = _context(
        _Venue({}),
        adapter=Flags(),
        flash_sources=(),
        profit_token=profit,
        profit_usd_e8=PRICES[profit.address],
    )
    gas_usd_e8 = -(-ctx.gas_raw(ctx.plan_gas) * PRICES[profit.address] // 10**profit.decimals)
    enough_raw = (2 * gas_usd_e8 + ctx.min_profit_usd_e8) // 100 + 3  # USDC has 6 decimals, dollars here 8
    later |= {"now": 0, "then": enough_raw}
    answer, _ = drive(plan(HEALTH, [option], ctx))
    assert isinstance(answer, Plan), answer
    assert (answer.legs, answer.expected_profit_raw, answer.min_profit_raw) == ((), 0, 0)
    assert answer.later_raw >= answer.gas_cost_raw + ctx.min_profit_raw
    later["then"] = enough_raw - 8
    answer, _ = drive(plan(HEALTH, [option], ctx))
    assert isinstance(answer, Refusal) and answer.reason == "unprofitable"
    assert 0 < answer.numbers["later_raw"] < answer.numbers["gas_cost_raw"] + ctx.min_profit_raw
    assert "deviation_bps" not in answer.numbers, "nothing was sold, so no market deviates"


def test_what_is_paid_at_once_and_later_is_enforced_for_its_part() -> None:
    """Of a plan that earns now and later the Liquidator enforces gas and minimum less what comes later."""
    option = _option(USDC, USDC, max_repay_raw=0, partial_max_repay_raw=0)
    now_raw, later_raw = 500 * 10**6, 3 * 10**6

    class Both(_Adapter):
        def outcome(self, option: Option, repay_raw: int) -> Reads[Outcome | Refusal]:
            return just(Outcome(0, now_raw, later_raw))

        def liquidation_calls(self, option: Option, repay_raw: int) -> Sequence[ProtocolCall]:
            return [ProtocolCall(POOL, ZERO_ADDRESS, 0, b"flag")]

    ctx = _context(_Venue({}), adapter=Both(), flash_sources=())
    answer, _ = drive(plan(HEALTH, [option], ctx))
    assert isinstance(answer, Plan)
    assert answer.later_raw == later_raw - ctx.gas_raw(ctx.plan_gas)
    wanted = answer.gas_cost_raw + ctx.min_profit_raw - answer.later_raw
    assert answer.min_profit_raw == max(wanted, now_raw * (BPS - ctx.max_slippage_bps) // BPS)


def test_an_outcome_that_must_be_asked_for_is_read_and_may_be_refused() -> None:
    """What a takeover leaves is the chain's to say; amounts it refuses are left out, then the option."""
    answers = {100 * 10**6: 130 * 10**6, 50 * 10**6: 70 * 10**6}
    asked = Call(POOL, b"left?")

    class Takeover(_Adapter):
        def outcome(self, option: Option, repay_raw: int) -> Reads[Outcome | Refusal]:
            yield [asked]
            if repay_raw not in answers:
                return Refusal("plan", "price_limit", {"size_raw": repay_raw})
            return Outcome(repay_raw, answers[repay_raw])

    sizes = [
        _option(USDC, USDC, max_repay_raw=raw, partial_max_repay_raw=raw, min_repay_raw=raw)
        for raw in (200 * 10**6, 100 * 10**6, 50 * 10**6)
    ]
    ctx = _context(_Venue({}), adapter=Takeover())
    answer, rounds = drive(plan(HEALTH, sizes, ctx))
    assert isinstance(answer, Plan)
    assert (answer.outcome.repay_raw, answer.outcome.seize_raw) == (100 * 10**6, 130 * 10**6)
    assert rounds == [1, 1]  # the loan, and what every amount asks alike, once
    answers.clear()
    refused, _ = drive(plan(HEALTH, sizes, ctx))
    assert isinstance(refused, Refusal) and refused.reason == "price_limit"


def test_what_plans_take_is_learned_at_once_and_forgotten_slowly() -> None:
    """Each protocol from what its adapter says of cheap plans, and never below that again."""
    gas = PlanGas({"lending": 450_000, "perps": 1_500_000})
    gas.learn("perps", 600_000)
    assert (gas.of("lending"), gas.of("perps")) == (450_000, 2_100_000)
    gas.learn("perps", -100_000)
    gas.fade()
    assert gas.of("perps") == 2_100_000 - 2_100_000 // 16
    for _ in range(20):
        gas.fade()
    assert (gas.of("lending"), gas.of("perps")) == (450_000, 1_500_000)


# --- how much --------------------------------------------------------------------------------------------------------


def _rungs(option: Option, most_raw: int) -> list[int]:
    """Amounts an option allows: its maximum, its largest partial amount and the halves of that."""
    rungs = {option.max_repay_raw} if option.max_repay_raw <= most_raw else set()
    most_raw = min(option.partial_max_repay_raw, most_raw)
    rungs |= {max(most_raw >> n, option.min_repay_raw) for n in range(11) if most_raw >= option.min_repay_raw}
    return sorted(rungs, reverse=True)


def best_net(option: Option, venue: _Venue, ctx: PlanContext, amounts: Sequence[int]) -> int | None:
    """The best net profit of single-swap plans among `amounts`, by arithmetic of its own; None if none is allowed."""
    nets = []
    for repay in amounts:
        seized = _Adapter().seized_raw(option, repay)
        owed = repay + mul_div_up(repay, 5, BPS)
        for path in venue.paths(option.seize_token.address, option.repay_token.address):
            got = venue.swapped(path, seized, False) or 0
            gas = 650_000 + 90_000 * len(path.fees) + 90_000
            cost = convert_up(gas * ctx.gas_price_wei, 2000, 1, 18, 6)
            earned = {USDC.address: got - owed}
            gained = value({option.seize_token.address: seized})
            paid = value({USDC.address: repay})
            if got >= owed and value(earned) >= gained - paid - gained * ctx.max_slippage_bps // BPS:
                nets.append(got - owed - cost)
    return max(nets, default=None)


@settings(max_examples=150, deadline=None)
@given(
    depths=st.lists(st.integers(50_000, 10**9), min_size=1, max_size=4, unique=True),
    max_usd=st.integers(200, 3_000_000),
    partial_percent=st.integers(0, 100),
    gas_gwei=st.integers(0, 150),
    slippage_bps=st.sampled_from([0, 50, 100, 500, 1000]),
)
def test_never_worse_than_halves_of_the_largest_amount(
    depths: list[int], max_usd: int, partial_percent: int, gas_gwei: int, slippage_bps: int
) -> None:
    """The plan nets at least what the best amount of the ladder by the best single route nets; else it refuses."""
    fees = (100, 500, 3000, 10_000)
    venue = _Venue(dict(pool(WETH, USDC, fee, usd) for fee, usd in zip(fees, depths, strict=False)))
    option = _option(USDC, WETH, max_usd)
    option = replace(option, partial_max_repay_raw=option.max_repay_raw * partial_percent // 100)
    ctx = _context(venue, gas_price_wei=Wei(gas_gwei * 10**9), max_slippage_bps=slippage_bps)
    answer, _ = drive(plan(HEALTH, [option], ctx))
    rungs = _rungs(option, min(option.max_repay_raw, 10**6 * 10**6))  # what the limit allows
    expected = best_net(option, venue, ctx, rungs)
    if isinstance(answer, Plan):
        net = answer.expected_profit_raw - answer.gas_cost_raw
        assert net >= 5_000_000
        assert expected is None or net >= expected
        assert answer.gas_cost_raw + 5_000_000 <= answer.min_profit_raw <= answer.expected_profit_raw
        assert execute(answer, venue, ctx) == answer.expected_profit_raw
    else:
        assert expected is None or expected < 5_000_000 or rungs == []


@settings(max_examples=100, deadline=None)
@given(
    depths=st.lists(st.integers(200_000, 10**8), min_size=6, max_size=6),
    max_usd=st.integers(1_000, 500_000),
    tokens=st.permutations([WETH, USDC, DAI]),
)
def test_what_it_expects_is_what_it_gets(depths: list[int], max_usd: int, tokens: list[Token]) -> None:
    """With three different tokens too, executing brings no less than expected and passes every check."""
    pairs = ((WETH, USDC), (WETH, DAI), (USDC, DAI))
    keys = [(one, other, fee) for one, other in pairs for fee in (500, 3000)]
    venue = _Venue(
        dict(pool(*key, depth) for key, depth in zip(keys, depths, strict=True)),
        middles=(WETH.address, USDC.address),
    )
    repay, seize, profit = tokens
    ctx = _context(venue, profit)
    answer, rounds = drive(plan(HEALTH, [_option(repay, seize, max_usd)], ctx))
    if isinstance(answer, Plan):
        assert answer.expected_profit_raw - answer.gas_cost_raw >= ctx.min_profit_raw > 0
        assert execute(answer, venue, ctx) >= answer.expected_profit_raw
    assert len(rounds) <= 7


@settings(max_examples=60, deadline=None)
@given(
    depths=st.lists(st.integers(200_000, 10**8), min_size=6, max_size=6),
    max_usd=st.integers(1_000, 500_000),
    tokens=st.permutations([WETH, USDC, DAI]),
    slippage_bps=st.sampled_from([100, 300, 1000]),
)
def test_never_worse_than_any_way_at_any_rung(
    depths: list[int], max_usd: int, tokens: list[Token], slippage_bps: int
) -> None:
    """Each way of swapping three tokens, priced alone at each rung, nets no more than the plan; if one passes, so
    does the plan.
    """
    pairs = ((WETH, USDC), (WETH, DAI), (USDC, DAI))
    keys = [(one, other, fee) for one, other in pairs for fee in (500, 3000)]
    venue = _Venue(
        dict(pool(*key, depth) for key, depth in zip(keys, depths, strict=True)),
        middles=(WETH.address, USDC.address),
    )
    repay, seize, kept = tokens
    ctx, option = _context(venue, kept, max_slippage_bps=slippage_bps), _option(repay, seize, max_usd)
    answer, _ = drive(plan(HEALTH, [option], ctx))
    terms = terms_of(option, HEALTH, ctx)
    loans, _ = drive(read_loans([repay.address], ctx))
    nets = []
    offers = funded(terms, loans)
    assert isinstance(offers, list)
    for amount in _rungs(option, terms.most_raw):
        size, _ = drive(size_of(offers[0], amount))
        if not isinstance(size, Size):
            continue
        for way in recipes_of(terms):
            alone, _ = drive(attempt(size, way, routes_of(ctx)))
            if isinstance(alone, Candidate) and alone.acceptable:
                nets.append(alone.net_raw)
    if nets:
        assert isinstance(answer, Plan)
        assert answer.expected_profit_raw - answer.gas_cost_raw >= max(nets)


@settings(max_examples=100, deadline=None)
@given(
    moved_bps=st.integers(-120, 120),
    tokens=st.sampled_from([(USDC, WETH, USDC), (USDC, WETH, WETH), (DAI, WETH, USDC)]),
    slippage_bps=st.sampled_from([30, 100, 300]),
)
def test_the_floor_is_no_tighter_than_the_legs(
    moved_bps: int, tokens: tuple[Token, Token, Token], slippage_bps: int
) -> None:
    """When pools move after planning, the enforced minimum reverts nothing that the legs' limits let pass."""
    repay, seize, kept = tokens
    venue = _Venue(_everywhere())
    ctx = _context(venue, kept, max_slippage_bps=slippage_bps)
    answer, _ = drive(plan(HEALTH, [_option(repay, seize)], ctx))
    assert isinstance(answer, Plan)
    for reserves in venue.pools.values():
        if WETH.address in reserves.amounts:
            reserves.amounts[WETH.address] = reserves.amounts[WETH.address] * (BPS - moved_bps) // BPS
    unbound = replace(answer, min_profit_raw=0)
    try:
        profit = execute(unbound, venue, replace(ctx, max_slippage_bps=BPS))
    except Reverts:
        return
    worth_its_gas_raw = answer.gas_cost_raw + ctx.min_profit_raw
    assert profit >= answer.min_profit_raw or answer.min_profit_raw == worth_its_gas_raw


@pytest.mark.parametrize("depth_usd", [400_000, 1_000_000, 3_000_000])
def test_thin_markets_get_the_amount_that_pays_most(depth_usd: int) -> None:
    """Where price impact eats the bonus, the plan nets at least 99.8 % of the best of a thousand amounts."""
    venue = _Venue(dict([pool(WETH, USDC, 500, depth_usd)]))
    option = _option(USDC, WETH, 200_000)
    ctx = _context(venue, max_slippage_bps=1000)
    answer, rounds = drive(plan(HEALTH, [option], ctx))
    assert isinstance(answer, Plan)
    brute = best_net(option, venue, ctx, [option.max_repay_raw * i // 1000 for i in range(1, 1001)])
    assert brute is not None
    assert (answer.expected_profit_raw - answer.gas_cost_raw) * 1000 >= brute * 998
    assert len(rounds) <= 4


def test_the_end_check_bounds_the_amount() -> None:
    """Where only the allowed slippage binds, the amount comes close to what would just pass, and passes."""
    venue = _Venue(dict([pool(WETH, USDC, 500, 2_000_000)]))
    option = _option(USDC, WETH, 200_000)
    ctx = _context(venue, max_slippage_bps=60)
    answer, _ = drive(plan(HEALTH, [option], ctx))
    assert isinstance(answer, Plan)
    brute = best_net(option, venue, ctx, [option.max_repay_raw * i // 1000 for i in range(1, 1001)])
    assert brute is not None
    assert (answer.expected_profit_raw - answer.gas_cost_raw) * 100 >= brute * 90
    assert execute(answer, venue, ctx) == answer.expected_profit_raw


def test_what_the_end_check_cuts_short_is_looked_at_beside_what_passes() -> None:
    """Where the largest amount of one pair costs a little too much slippage, the most of it that passes is found, also
    if its half nets less than three other ways do.
    """
    venue = _Venue(dict([pool(WETH, USDC, 500, 10**9), pool(DAI, USDC, 500, 11_000_000)]))
    cut_short = _option(USDC, DAI, 100_000)
    options = [*(_option(USDC, WETH, usd) for usd in (50_000, 49_000, 48_000)), cut_short]
    ctx = _context(venue)
    answer, _ = drive(plan(HEALTH, options, ctx))
    assert isinstance(answer, Plan) and answer.option == cut_short
    assert cut_short.max_repay_raw * 8 // 10 < answer.outcome.repay_raw < cut_short.max_repay_raw
    assert execute(answer, venue, ctx) == answer.expected_profit_raw


def test_ways_that_can_never_pass_take_no_quotes_from_one_that_can() -> None:
    """Seven ways seize what every pool buys four per cent below the oracle, and promise most at their largest; what
    the last one seizes is sold well, but little of it. It is found whatever the others could be asked, and what they
    were asked does not grow with the halves of their amounts.
    """
    fees = (100, 200, 300, 400, 500, 600, 700, 800)
    dear = dict(pool(WETH, USDC, fee, 10**9) for fee in fees)
    for reserves in dear.values():
        reserves.amounts[WETH.address] = reserves.amounts[WETH.address] * 104 // 100
    venue = _Venue(dear | dict([pool(DAI, USDC, 100, 200_000)]))
    vain = [_option(USDC, WETH, usd) for usd in range(100_000, 107_000, 1_000)]
    ctx = _context(venue)
    answer, _ = drive(plan(HEALTH, [*vain, _option(USDC, DAI, 100_000)], ctx))
    assert isinstance(answer, Plan) and answer.option.seize_token == DAI
    assert execute(answer, venue, ctx) == answer.expected_profit_raw
    assert venue.quoted < 4 * len(vain) * len(fees)


def test_a_deep_market_is_priced_once() -> None:
    """Where no smaller amount can net more, the largest is quoted by each route, a part of it, and one beside it."""
    venue = _Venue(_everywhere(10**10))
    answer, rounds = drive(plan(HEALTH, [_option(USDC, WETH)], _context(venue)))
    assert isinstance(answer, Plan) and len(answer.legs) == 1
    assert rounds == [1] and venue.quoted <= 2 * 7


@given(high=st.integers(1, 10**24), top=st.integers(0, 1200), passes=st.integers(1, 1200))
def test_a_peak_is_found_wherever_it_is(high: int, top: int, passes: int) -> None:
    """Near the best of the halves the best amount is found to a hundredth, the last that passes to a ten-thousandth."""
    top_raw, last_raw = high * top // 1000, max(high * passes // 1000, 1)
    asked: dict[int, Rank] = {}

    def rank(raw: int) -> Reads[Rank]:
        assert 1 <= raw <= high
        margin = (last_raw**2 - raw**2) // 10
        value = raw * (2 * top_raw - raw) if margin >= 0 else margin
        asked[raw] = Rank(PASSES - (margin < 0), value, margin)
        return just(asked[raw])

    drive(halves(1, high, rank, lambda raw: just(True)))
    near, looked = max(asked, key=lambda raw: asked[raw]), len(asked)
    drive(peak(max(near // 2, 1), near, min(2 * near, high), rank))
    assert len(asked) - looked <= 30
    found = max(asked, key=lambda raw: asked[raw])
    best = max(min(top_raw, last_raw, high), 1)
    assert abs(found - best) <= (best // 100 if best == top_raw else best // 10_000) + 1


def test_the_best_option_wins() -> None:
    """Among several pairs the one that nets most is taken, not the first nor the largest."""
    venue = _Venue(dict([pool(WETH, USDC, 500, 10**9), pool(DAI, USDC, 3000, 60_000)]))
    thin, deep = _option(USDC, DAI, 200_000), _option(USDC, WETH, 150_000)
    answer, _ = drive(plan(HEALTH, [thin, deep], _context(venue)))
    assert isinstance(answer, Plan)
    assert answer.option == deep
    first, second = answer.weighed
    assert (first.seize_token, first.swaps, first.reason) == (WETH, "sell WETH for USDC", None)
    assert first.net_raw == answer.expected_profit_raw - answer.gas_cost_raw > second.net_raw
    assert (first.repay_raw, first.lender, first.legs) == (answer.outcome.repay_raw, LENDER, 1)
    assert second.seize_token == DAI


def test_a_step_is_shared_out_among_pools_that_pay_for_their_leg() -> None:
    """Of two pools alike each takes half, and so nets more than either; not where gas costs more than that gains."""
    pools = dict([pool(WETH, USDC, 500, 4_000_000), pool(WETH, USDC, 501, 4_000_000)])
    venue, option = _Venue(pools), _option(USDC, WETH, 40_000, partial_max_repay_raw=0)
    ctx = _context(venue, max_slippage_bps=1000)
    answer, _ = drive(plan(HEALTH, [option], ctx))
    assert isinstance(answer, Plan)
    first, last = (quote.amount_in_raw for quote in answer.quotes)
    assert abs(first - last) * 100 < last and first + last == answer.outcome.seize_raw
    assert [leg.amount_raw for leg in answer.legs] == [first, MAX_UINT256]
    alone = best_net(option, venue, ctx, [option.max_repay_raw])
    assert alone is not None and answer.expected_profit_raw - answer.gas_cost_raw > alone
    assert execute(answer, venue, ctx) == answer.expected_profit_raw
    bytes_, _ = drive(plan(HEALTH, [option], replace(ctx, data=_rates(0, 15 * 10**16, 0, 0))))
    assert isinstance(bytes_, Plan) and len(bytes_.legs) == 1  # nor where a leg's bytes do
    dear, _ = drive(
        plan(HEALTH, [option], replace(ctx, gas_price_wei=Wei(700 * 10**9), max_fee_wei=Wei(10**13)))
    )
    assert isinstance(dear, Plan) and len(dear.legs) == 1


def test_a_whale_in_a_shallow_market_is_taken_in_pieces() -> None:
    """Where a hundredth of the debt moves the market too far, a thousandth is planned if it pays."""
    venue = _Venue(dict([pool(WETH, USDC, 500, 150_000)]))
    answer, _ = drive(plan(HEALTH, [_option(USDC, WETH, 2_000_000)], _context(venue)))
    assert isinstance(answer, Plan), answer
    assert 500 * 10**6 < answer.outcome.repay_raw < 2_000_000 * 10**6 // 64


def test_quotes_are_bounded() -> None:
    """However many options and routes there are, a round of quotes is bounded and has the largest amount."""
    pools = dict(
        pool(one, other, fee, 10**9)
        for one, other in ((WETH, USDC), (WETH, DAI), (USDC, DAI))
        for fee in range(100, 900, 100)
    )
    venue = _Venue(pools, middles=(WETH.address, USDC.address))
    options = [_option(DAI, WETH, usd) for usd in (50_000, 60_000, 70_000)]
    answer, _ = drive(plan(HEALTH, options, _context(venue, USDC)))
    assert isinstance(answer, Plan)
    assert venue.quoted <= 2_000
    assert answer.outcome.repay_raw == options[2].max_repay_raw


# --- why not ---------------------------------------------------------------------------------------------------------


def _refused(options: Sequence[Option | Refusal], ctx: PlanContext, health: Health = HEALTH) -> Refusal:
    answer, _ = drive(plan(health, options, ctx))
    assert isinstance(answer, Refusal), answer
    assert answer.stage in {"plan", "options"}
    return answer


def test_a_healthy_account_is_refused_unasked() -> None:
    """Nothing is read for an account that is not liquidatable."""
    answer, rounds = drive(
        plan(replace(HEALTH, liquidatable=False), [_option(USDC, WETH)], _context(_Venue({})))
    )
    assert answer == Refusal("plan", "healthy", {"health_factor_wad": HEALTH.health_factor_wad})
    assert rounds == []


def test_a_fee_above_the_limit_is_refused() -> None:
    """The expected price of gas may not exceed the operator's maximum."""
    ctx = _context(_Venue(_everywhere()), gas_price_wei=Wei(11), max_fee_wei=Wei(10))
    answer = _refused([_option(USDC, WETH)], ctx)
    assert answer == Refusal("plan", "fee_over_limit", {"inclusion_price_wei": 11, "max_fee_wei": 10})


def test_the_adapters_refusal_is_passed_on() -> None:
    """Where the protocol forbids every pair, its reason stands; without any option there is none."""
    forbidden = Refusal("options", "reserve_paused", {})
    assert _refused([forbidden], _context(_Venue({}))) == forbidden
    assert _refused([], _context(_Venue({}))).reason == "no_option"


def test_a_bonus_below_gas_is_refused_without_quotes() -> None:
    """What could not pay its gas without any price impact is not quoted, and the numbers say by how much."""
    venue = _Venue(_everywhere())
    answer = _refused([_option(USDC, WETH, 20)], _context(venue))
    assert answer.reason == "unprofitable"
    assert venue.quoted == 0
    gas = convert_up(PLAN_GAS * 10 * 10**9, 2000, 1, 18, 6)
    assert answer.numbers["gas_cost_raw"] == gas
    # 5 % of 20 dollars, half as much again for the 21 seized should the market pay it, less 5 bps premium on 20
    assert answer.numbers["bound_raw"] == 1_000_000 + 10_500_000 - 10_000
    assert answer.numbers["bound_raw"] - gas < answer.numbers["min_profit_raw"] == 5_000_000


def test_a_loss_is_planned_only_as_far_as_its_budget_goes() -> None:
    """Twenty dollars whose gas is more than the bonus: refused without a budget and with too small a one, with what it
    lacks; within it the Liquidator is told that the treasury may lose nothing, and what pays needs no budget.
    """
    venue, option = _Venue(_everywhere()), _option(USDC, WETH, 20)
    answer, _ = drive(plan(HEALTH, [option], _context(venue, budget_usd_e8=20 * 10**8)))
    assert isinstance(answer, Plan) and answer.may_lose_usd_e8
    loss_raw = answer.gas_cost_raw - answer.expected_profit_raw
    assert 0 <= answer.min_profit_raw <= answer.expected_profit_raw < answer.gas_cost_raw
    assert execute(answer, venue, _context(venue)) >= 0
    # to the unit of what is lost, and not one less
    budget_usd_e8 = 100 * loss_raw
    answer, _ = drive(plan(HEALTH, [option], _context(_Venue(_everywhere()), budget_usd_e8=budget_usd_e8)))
    assert isinstance(answer, Plan) and answer.may_lose_usd_e8
    refusal = _refused([option], _context(_Venue(_everywhere()), budget_usd_e8=budget_usd_e8 - 100))
    assert (refusal.reason, refusal.numbers["net_raw"]) == ("bad_debt_budget", -loss_raw)
    assert refusal.numbers["budget_usd_e8"] == budget_usd_e8 - 100
    # nothing left to lose: what would lose nothing, and bring less than the minimum, needs a budget all the same
    cheap = _context(_Venue(_everywhere()), gas_price_wei=Wei(10**6), min_profit_usd_e8=50 * 10**8)
    within, _ = drive(plan(HEALTH, [option], replace(cheap, budget_usd_e8=1)))
    assert isinstance(within, Plan) and 0 < within.expected_profit_raw - within.gas_cost_raw < 50 * 10**6
    refusal = _refused([option], replace(cheap, budget_usd_e8=0))
    assert (refusal.reason, refusal.numbers["budget_usd_e8"]) == ("bad_debt_budget", 0)
    pays, _ = drive(plan(HEALTH, [_option(USDC, WETH, 2_000)], _context(venue, budget_usd_e8=10**9)))
    assert isinstance(pays, Plan) and not pays.may_lose_usd_e8
    assert pays.min_profit_raw >= pays.gas_cost_raw + _context(venue).min_profit_raw


def test_a_budget_pays_for_gas_and_never_for_a_swap() -> None:
    """Where selling the collateral does not bring back the loan, no budget is large enough, though the end check with
    its slippage would let it pass.
    """
    key, reserves = pool(WETH, USDC, 500, 10**9)
    reserves.amounts[USDC.address] = reserves.amounts[USDC.address] * 925 // 1_000
    ctx = _context(_Venue({key: reserves}), budget_usd_e8=10**12, max_slippage_bps=1_000)
    refusal = _refused([_option(USDC, WETH, 200)], ctx)
    assert (refusal.reason, refusal.numbers["gross_raw"] < 0) == ("unprofitable", True)


def test_a_market_above_a_lagging_oracle_is_asked() -> None:
    """Where pools pay a tenth more than the feed says, a small account that pays only there is not refused unseen."""
    key, reserves = pool(WETH, USDC, 500, 10**9)
    reserves.amounts[USDC.address] = reserves.amounts[USDC.address] * 11 // 10
    venue = _Venue({key: reserves})
    answer, _ = drive(plan(HEALTH, [_option(USDC, WETH, 130)], _context(venue)))
    assert isinstance(answer, Plan)
    assert answer.expected_profit_raw > 15_000_000


def test_unprofitable_after_price_impact_states_the_best_try() -> None:
    """Quoted and still not worth it: gross, gas and net of the amount that came closest."""
    venue = _Venue(dict([pool(WETH, USDC, 10_000, 20_000)]))
    ctx = _context(venue, max_slippage_bps=1000, gas_price_wei=Wei(20 * 10**9))
    answer = _refused([_option(USDC, WETH, 2_000)], ctx)
    assert answer.reason == "unprofitable"
    numbers = answer.numbers
    assert numbers["net_raw"] == numbers["gross_raw"] - numbers["gas_cost_raw"] < numbers["min_profit_raw"]
    assert numbers["priced"] > 0


def test_over_slippage_when_only_the_end_check_forbids() -> None:
    """Profitable, but every amount would cost more than the allowed slippage: the pool's fee alone does."""
    venue = _Venue(dict([pool(WETH, USDC, 10_000, 10**9)]))
    answer = _refused([_option(USDC, WETH)], _context(venue, max_slippage_bps=90))
    assert answer.reason == "over_slippage"
    assert answer.numbers["net_raw"] > 0 and answer.numbers["excess_usd_e8"] > 0


def test_no_route_names_the_leg() -> None:
    """Without a pool the refusal says between which tokens."""
    answer = _refused([_option(USDC, WETH)], _context(_Venue({})))
    assert answer.reason == "no_route"
    assert answer.numbers["token_in"] == WETH.address
    assert answer.numbers["token_out"] == USDC.address


def test_no_flash_liquidity_states_need_and_offer() -> None:
    """Less is lent than the least repayment: both figures are there."""
    option = _option(USDC, WETH, min_repay_raw=10**9)
    answer = _refused(
        [option], _context(_Venue(_everywhere()), flash_sources=(_Flash(available_raw=10**9 - 1),))
    )
    assert answer.reason == "no_flash_liquidity"
    assert answer.numbers["available_raw"] == 10**9 - 1 < answer.numbers["needed_raw"]
    assert (
        _refused([option], _context(_Venue(_everywhere()), flash_sources=())).reason == "no_flash_liquidity"
    )


def test_over_max_repay_states_the_limit() -> None:
    """An account that can only be liquidated whole is refused when the whole exceeds the operator's limit."""
    option = _option(USDC, WETH, partial_max_repay_raw=0)
    answer = _refused([option], _context(_Venue(_everywhere()), max_repay_usd_e8=99_999 * 10**8))
    assert answer.reason == "over_max_repay"
    assert answer.numbers["most_raw"] == 99_999 * 10**6


def test_the_limit_cuts_partial_amounts() -> None:
    """Where any amount is allowed, the operator's limit is repaid, not a rung below it."""
    ctx = _context(_Venue(_everywhere()), max_repay_usd_e8=42_000 * 10**8)
    answer, _ = drive(plan(HEALTH, [_option(USDC, WETH)], ctx))
    assert isinstance(answer, Plan)
    assert answer.repay_usd_e8 == 42_000 * 10**8


def test_nothing_seizable() -> None:
    """A liquidation that would move no collateral is refused."""
    answer = _refused([_option(USDC, WETH, max_repay_raw=0, partial_max_repay_raw=0)], _context(_Venue({})))
    assert answer.reason == "nothing_seizable"


def test_a_token_without_price_is_refused() -> None:
    """A price of zero is unknown, not cheap."""
    answer = _refused([_option(USDC, WETH, seize_price_base=0)], _context(_Venue(_everywhere())))
    assert answer.reason == "no_price"


# --- calldata and identity -------------------------------------------------------------------------------------------


def test_calldata_says_what_the_plan_says() -> None:
    """`execute` decodes to the plan's content with the epochs and the last block it was pinned to."""
    venue = _Venue(_everywhere())
    answer, _ = drive(plan(HEALTH, [_option(DAI, WETH)], _context(venue)))
    assert isinstance(answer, Plan)
    calldata = encode_execute(answer, global_epoch=3, protocol_epoch=4, last_block=99)
    (content,) = abi.load("Liquidator").function("execute").decode_input(calldata)
    (call,) = answer.calls
    batch = replace(answer, calls=(replace(call, gas_limit=700_000), call))
    (of_batch,) = abi.load("Liquidator").function("execute").decode_input(encode_execute(batch, 3, 4, 99))
    assert [each[4] for each in of_batch[4]] == [700_000, 0]
    assert of_batch[3] == 2 * call.approve_raw
    assert content == (
        answer.plan_id,
        answer.flash.source,
        DAI.address,
        answer.outcome.repay_raw,
        [(call.target, call.approve_token, call.approve_raw, call.data, 0)],
        [(leg.router, leg.path, leg.exact_out, leg.amount_raw, leg.limit_raw) for leg in answer.legs],
        list(answer.tokens),
        USDC.address,
        answer.min_profit_raw,
        3,
        4,
        99,
    )


def test_plan_ids_follow_content_and_block() -> None:
    """The same inputs give the same id; another block hash or another amount gives another."""

    def made(**changes: Any) -> Plan:
        option = _option(USDC, WETH, changes.pop("max_usd", 100_000))
        answer, _ = drive(plan(HEALTH, [option], _context(_Venue(_everywhere()), **changes)))
        assert isinstance(answer, Plan)
        return answer

    again = made(at=replace(AT, hash=Hash(b"\x08" * 32)))
    assert made() == made()
    assert len({made().plan_id, again.plan_id, made(max_usd=90_000).plan_id}) == 3


# --- reading together ------------------------------------------------------------------------------------------------


def test_together_merges_rounds_and_asks_once() -> None:
    """Reads of different length run in lock-step, equal calls of a round are asked once, results keep their order."""

    def chain_of(*names: bytes) -> Reads[list[Result]]:
        heard: list[Result] = []
        for name in names:
            heard += yield [Call(POOL, name)]
        return heard

    reads = together([chain_of(b"a", b"b"), just([]), chain_of(b"a"), chain_of(b"c", b"d", b"e")])
    assert next(reads) == [Call(POOL, b"a"), Call(POOL, b"c")]
    assert reads.send([b"A", b"C"]) == [Call(POOL, b"b"), Call(POOL, b"d")]
    assert reads.send([b"B", b"D"]) == [Call(POOL, b"e")]
    with pytest.raises(StopIteration) as end:
        reads.send([b"E"])
    assert end.value.value == [[b"A", b"B"], [], [b"A"], [b"C", b"D", b"E"]]


def test_together_of_nothing_asks_nothing() -> None:
    """No reads, no round."""
    assert drive(together([])) == ([], [])


def test_of_ways_paid_in_one_token_only_those_that_reverted_are_passed_over() -> None:
    """Every way whose trial reverts is passed over for the next one, also where all repay and seize the same token."""
    ways = [_option(USDC, USDC, max_usd) for max_usd in (4_000, 2_000, 1_000)]
    context, turns, tried = _context(_Venue({})), Turns(), []
    for head in range(len(ways)):
        turns.ordered([HEALTH])
        # the same ways at every head, but their amounts move
        again = [replace(each, max_repay_raw=each.max_repay_raw + head) for each in ways]
        answer, _ = drive(plan(HEALTH, turns.untried(HEALTH.key, again), context))
        assert isinstance(answer, Plan)
        turns.planned(HEALTH.key, answer, BlockNumber(head))
        turns.turned_down(answer, futile=True)
        tried.append(again.index(answer.option))
    assert tried == [0, 1, 2]
