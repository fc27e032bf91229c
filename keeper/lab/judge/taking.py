"""What a market really gives for an amount: `Pool.liquidationCall` run by the judge's own account on the fork."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from keeper.abi import load
from keeper.lab.artifacts import aave_v3_6
from keeper.lab.judge.accounts import Account, Holding, Loan, Market
from keeper.lab.judge.evidence import Done, Step
from keeper.lab.judge.point import Point, approval, cheapest, lent
from keeper.lab.judge.scene import BPS, JUDGE, Scene
from keeper.types import hex_of

_POOL: Final = load("AavePool")
_LIQUIDATION_CALL: Final = _POOL.function("liquidationCall")
_PROVIDER_SINCE: Final = 10  # the pool revision of Aave 3.6, whose LiquidationDataProvider is asked

# What Liquidator.execute costs beside the liquidation and the swaps as transactions of their own: the flash loan,
# feeds, approvals, books and the end check, less what one transaction saves.
LIQUIDATOR_GAS: Final = 150_000


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A debt of an unhealthy account and a collateral to take for it."""

    account: Account
    debt: Holding
    collateral: Holding

    @property
    def everything_raw(self) -> int:
        """More than is owed, by what interest may add until the next block."""
        return self.debt.amount_raw + self.debt.amount_raw // BPS + 1


async def take(scene: Scene, asked: Sequence[tuple[Pair, int]]) -> list[Point | str]:
    """What each pair gives for each amount offered; where the market refuses, its reason."""
    loans = [
        cheapest(scene, pair.debt.reserve.token, offered_raw, pair.collateral.reserve.token)
        for pair, offered_raw in asked
    ]
    points = [
        None if loan is None else _opening(pair, loan, offered_raw)
        for (pair, offered_raw), loan in zip(asked, loans, strict=True)
    ]
    done = iter(await scene.evidence.simulate([point.steps for point in points if point is not None]))
    return [
        "no flash liquidity" if loan is None or point is None else _taken(pair, loan, point, next(done))
        for (pair, _), loan, point in zip(asked, loans, points, strict=True)
    ]


def _opening(pair: Pair, loan: Loan, offered_raw: int) -> Point:
    """The loan, its approval, the liquidation."""
    debt, collateral = pair.debt.reserve.token, pair.collateral.reserve.token
    pool = pair.account.market.pool
    allowed = approval(debt, pool, offered_raw)
    order = (collateral.address, debt.address, pair.account.address, offered_raw, False)
    return Point(
        debt=debt,
        collateral=collateral,
        loan=loan,
        borrowed_raw=offered_raw,
        setup=(lent(loan, debt, offered_raw), Step(JUDGE, allowed.to, allowed.data)),
        acts=(Step(JUDGE, pool, _LIQUIDATION_CALL.encode(*order)),),
        other_gas=LIQUIDATOR_GAS,
    )


def _taken(pair: Pair, loan: Loan, point: Point, done: Sequence[Done]) -> Point | str:
    refused = next((step for step in done if not step.ok), None)
    if refused is not None:
        return _POOL.error(refused.output) or hex_of(refused.output)
    ran = point.as_run(done)
    # What is offered beyond what was taken need not be borrowed, but for the headroom a keeper needs too.
    borrowed_raw = min(ran.borrowed_raw, ran.repaid_raw + ran.repaid_raw // BPS + 1)
    setup = _opening(pair, loan, borrowed_raw).setup
    return replace(ran, borrowed_raw=borrowed_raw, setup=setup)


# --- Aave's own advice ------------------------------------------------------------------------------------------------


async def advised(scene: Scene, pairs: Sequence[Pair]) -> dict[Pair, tuple[int, ...]]:
    """The amounts that Aave's own LiquidationDataProvider names for each pair of a market since 3.6."""
    advice: dict[Pair, tuple[int, ...]] = {}
    for market in dict.fromkeys(pair.account.market for pair in pairs):
        if market.revision >= _PROVIDER_SINCE:
            concerned = [pair for pair in pairs if pair.account.market == market]
            advice |= await _advice(scene, market, concerned)
    return advice


async def _advice(scene: Scene, market: Market, pairs: Sequence[Pair]) -> dict[Pair, tuple[int, ...]]:
    """Put the provider where nothing is, since nobody says where one is deployed, and ask it there."""
    artifact = await asyncio.to_thread(aave_v3_6, "LiquidationDataProvider")
    code = await scene.evidence.built(artifact.creation_code(market.pool, market.provider))
    ask = artifact.abi.function("getLiquidationInfo(address,address,address)")
    calls = []
    for pair in pairs:
        debt, collateral = pair.debt.reserve.token.address, pair.collateral.reserve.token.address
        calls.append(ask.call(JUDGE, pair.account.address, collateral, debt))
    advice: dict[Pair, tuple[int, ...]] = {}
    for pair, answer in zip(pairs, await scene.evidence.calls(calls, code={JUDGE: code}), strict=True):
        if answer is not None:
            *_, most_debt_raw, _, to_pass_raw = ask.one(answer)
            advice[pair] = (most_debt_raw, to_pass_raw)
    return advice
