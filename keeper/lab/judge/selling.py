"""What becomes of a liquidation: seized collateral returns the loan, and the rest becomes the profit token.

Every order of trades over every route is quoted; the most promising are then run whole on the fork, loan to profit,
and only what ran counts. A quote promises too much where two trades of one liquidation go through the same pool in
the same direction, so runs are chosen among both kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from keeper.abi import load
from keeper.lab.judge.evidence import Done, Step
from keeper.lab.judge.point import Point
from keeper.lab.judge.routes import Order, Trade
from keeper.lab.judge.scene import BPS, JUDGE, Scene
from keeper.lab.judge.verdict import LEFT, WITHIN_TOLERANCE, Amount, Best
from keeper.types import Token

_ERC20: Final = load("Erc20")

# What a swap costs beside what its pools do: router, transfers and the transaction itself.
TRADE_GAS: Final = 60_000

_KEPT: Final = 2  # of each trade's routes, the most promising
_RUNS: Final = 8  # of an account, the best on paper
_CROSSING_RUNS: Final = 4  # and of those whose quotes may promise too much


class Leg(NamedTuple):
    """Sell all of one token for another, or buy what the loan is still owed."""

    buy: bool
    token_in: Token
    token_out: Token


@dataclass(frozen=True, slots=True)
class Attempt:
    """A liquidation with its trades; `gross_raw` is in the profit token, before gas.

    `ran` says whether the figures are from running it, or from quotes.
    """

    point: Point
    trades: tuple[Trade, ...]
    gross_raw: int
    gas: int
    net_usd_e8: int
    over_slippage: bool
    ran: bool

    @property
    def crosses_itself(self) -> bool:
        """Whether two trades use a pool in the same direction."""
        directions = [direction for trade in self.trades for direction in trade.order.route.directions]
        return len(directions) != len(set(directions))

    def rank(self) -> tuple[bool, int]:
        """Sort key: what the Liquidator's end check lets pass, then what nets more."""
        return not self.over_slippage, self.net_usd_e8


def ways(collateral: Token, debt: Token, profit: Token) -> tuple[tuple[Leg, ...], ...]:
    """Every order of trades that returns the loan and ends in the profit token."""
    sell, buy = False, True
    if collateral == debt:
        return ((),) if profit == debt else ((Leg(sell, debt, profit),),)
    if profit == debt:
        return ((Leg(sell, collateral, debt),),)
    if profit == collateral:
        return ((Leg(buy, collateral, debt),),)
    return (
        (Leg(sell, collateral, debt), Leg(sell, debt, profit)),
        (Leg(buy, collateral, debt), Leg(sell, collateral, profit)),
        (Leg(sell, collateral, profit), Leg(buy, profit, debt)),
    )


@dataclass(frozen=True, slots=True)
class _Underway:
    """A liquidation whose trades are partly chosen; `held` is what is left over what is owed, by token."""

    point: Point
    legs: tuple[Leg, ...]
    trades: tuple[Trade, ...]
    held: dict[Token, int]


async def quoted(scene: Scene, points: Sequence[Point]) -> list[Attempt]:
    """What every point comes to by every way and its most promising routes, as quoted."""
    underway = [_start(scene, point, way) for point in points for way in _ways(scene, point)]
    attempts: list[Attempt] = []
    while underway:
        open_ends: list[tuple[_Underway, Leg, list[Order]]] = []
        for each in underway:
            leg, rest = _next_leg(each)
            if leg is not None:
                open_ends.append((rest, leg, _orders(scene, rest, leg)))
            elif min(rest.held.values()) >= 0:
                attempts.append(_reckoned(scene, rest.point, rest.trades, rest.held))
        trades = await scene.exchanges.trades([order for _, _, orders in open_ends for order in orders])
        underway = []
        for each, leg, orders in open_ends:
            filled = [trade for order in orders if (trade := trades[order]) is not None]
            filled.sort(key=lambda trade: _worth_e8(scene, trade), reverse=True)
            underway += [_after(each, leg, trade) for trade in filled[:_KEPT]]
    return attempts


async def run(scene: Scene, attempts: Sequence[Attempt]) -> list[Attempt | None]:
    """What each attempt really comes to on the fork; None for those that do not really run."""
    runs = [
        [
            *one.point.steps,
            *(step for trade in one.trades for step in trade.steps(JUDGE)),
            *(Step(JUDGE, token.address, _BALANCE) for token in _tokens(scene, one.point)),
        ]
        for one in attempts
    ]
    return [
        _ran(scene, one, done)
        for one, done in zip(attempts, await scene.evidence.simulate(runs), strict=True)
    ]


def _ran(scene: Scene, one: Attempt, done: Sequence[Done]) -> Attempt | None:
    if not all(step.ok for step in done):
        return None
    tokens, first = _tokens(scene, one.point), len(one.point.steps)
    balances = [_ERC20.function("balanceOf").one(step.output) for step in done[-len(tokens) :]]
    held = dict(zip(tokens, balances, strict=True))
    held[one.point.debt] -= one.point.borrowed_raw + one.point.premium_raw
    if min(held.values()) < 0:
        return None
    swaps = done[first + 1 : first + 2 * len(one.trades) : 2]
    point = one.point.as_run(done)
    gas = point.gas + point.other_gas + sum(step.gas_used for step in swaps)
    return _judged(scene, point, one.trades, held, gas, ran=True)


_BALANCE: Final = _ERC20.function("balanceOf").encode(JUDGE)


async def best_of_each(scene: Scene, tried: Sequence[Sequence[Attempt]]) -> tuple[list[Attempt | None], int]:
    """Of each account's attempts the best that really ran, and how many were run."""
    chosen = [_chosen(attempts) for attempts in tried]
    flat = [attempt for some in chosen for attempt in some]
    ran = iter(await run(scene, flat))
    bests: list[Attempt | None] = []
    for some in chosen:
        found = [attempt for attempt in (next(ran) for _ in some) if attempt is not None]
        bests.append(max(found, key=Attempt.rank, default=None))
    return bests, len(flat)


def _chosen(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts of an account to run: the best on paper, of those that cross themselves and of those that do not."""
    ranked = sorted(attempts, key=Attempt.rank, reverse=True)
    plain = [attempt for attempt in ranked if not attempt.crosses_itself]
    crossing = [attempt for attempt in ranked if attempt.crosses_itself]
    return plain[:_RUNS] + crossing[:_CROSSING_RUNS]


def reason_of(scene: Scene, best: Attempt, tolerance_usd_e8: int) -> str:
    """What the best says of an account that was not liquidated."""
    if best.over_slippage:
        return "over_slippage"
    over_usd_e8 = best.net_usd_e8 - scene.terms.min_profit_usd_e8
    if over_usd_e8 > tolerance_usd_e8:
        return LEFT
    return WITHIN_TOLERANCE if over_usd_e8 > 0 else "unprofitable"


def best_of(scene: Scene, attempt: Attempt) -> Best:
    """An attempt as the verdict shows it."""
    point = attempt.point
    return Best(
        position=point.position,
        repay=Amount(point.debt, point.repaid_raw),
        seize=Amount(point.collateral, point.seized_raw),
        profit=Amount(scene.profit, attempt.gross_raw),
        route=tuple(str(trade) for trade in attempt.trades),
        flash_source=None if point.loan is None else point.loan.pool,
        flash_premium_bps=0 if point.loan is None else point.loan.premium_bps,
        gas=attempt.gas,
        gas_cost_usd_e8=scene.cost_usd_e8(attempt.gas),
        net_profit_usd_e8=attempt.net_usd_e8,
        over_slippage=attempt.over_slippage,
    )


def _ways(scene: Scene, point: Point) -> tuple[tuple[Leg, ...], ...]:
    return ways(point.collateral, point.debt, scene.profit)


def _tokens(scene: Scene, point: Point) -> list[Token]:
    return list(dict.fromkeys((point.debt, point.collateral, scene.profit)))


def _start(scene: Scene, point: Point, way: tuple[Leg, ...]) -> _Underway:
    held = dict.fromkeys(_tokens(scene, point), 0)
    held[point.collateral] += point.seized_raw
    held[point.debt] -= point.owed_raw
    return _Underway(point, way, (), held)


def _next_leg(each: _Underway) -> tuple[Leg | None, _Underway]:
    """The first leg that still has something to trade, and the rest behind it."""
    for place, leg in enumerate(each.legs):
        if _amount_raw(each, leg) > 0:
            return leg, replace(each, legs=each.legs[place + 1 :])
    return None, replace(each, legs=())


def _amount_raw(each: _Underway, leg: Leg) -> int:
    return -each.held[leg.token_out] if leg.buy else each.held[leg.token_in]


def _orders(scene: Scene, each: _Underway, leg: Leg) -> list[Order]:
    amount_raw = _amount_raw(each, leg)
    loan = each.point.loan
    locked = {loan.pool} if loan is not None and loan.locks else set()
    return [
        Order(route, amount_raw, leg.buy)
        for route in scene.exchanges.routes(leg.token_in, leg.token_out)
        if locked.isdisjoint(hop.pool for hop in route.hops)
    ]


def _after(each: _Underway, leg: Leg, trade: Trade) -> _Underway:
    held = dict(each.held)
    held[leg.token_in] -= trade.amount_in_raw
    held[leg.token_out] += trade.amount_out_raw
    return replace(each, trades=(*each.trades, trade), held=held)


def _worth_e8(scene: Scene, trade: Trade) -> int:
    """What a trade brings, or saves, in dollars after its gas."""
    first, last = trade.order.route.hops[0].token_in, trade.order.route.hops[-1].token_out
    gain = (
        -scene.usd_e8(first, trade.amount_in_raw)
        if trade.order.exact_out
        else scene.usd_e8(last, trade.amount_out_raw)
    )
    return gain - scene.gas_usd_e8(trade.gas)


def _reckoned(scene: Scene, point: Point, trades: tuple[Trade, ...], held: dict[Token, int]) -> Attempt:
    gas = point.gas + point.other_gas + sum(trade.gas + TRADE_GAS for trade in trades)
    return _judged(scene, point, trades, held, gas, ran=False)


def _judged(
    scene: Scene, point: Point, trades: tuple[Trade, ...], held: dict[Token, int], gas: int, *, ran: bool
) -> Attempt:
    """The net, and the Liquidator's end check: what arrives must be worth what was gained, less the slippage allowed
    on what came in (`Liquidator._settle`).
    """
    debt, collateral = point.debt, point.collateral
    if debt == collateral:
        gained, paid = scene.value(collateral, max(point.seized_raw - point.repaid_raw, 0)), 0
    else:
        gained, paid = scene.value(collateral, point.seized_raw), scene.value(debt, point.repaid_raw)
    required = gained - paid - gained * scene.max_slippage_bps // BPS
    arrived = sum(scene.value(token, raw) for token, raw in held.items())
    gross_raw = held[scene.profit]
    net_usd_e8 = scene.usd_e8(scene.profit, gross_raw) - scene.cost_usd_e8(gas)
    return Attempt(point, trades, gross_raw, gas, net_usd_e8, arrived < required, ran)
