"""What a market really gives for an amount: `Pool.liquidationCall` run by the judge's own account on the fork.

The debt comes from the aToken that would lend it, so a market's liquidity is what it would be during a flash loan.
Nothing is computed here: what was paid and received is read from the tokens' Transfer events.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from keeper.abi import load
from keeper.lab.artifacts import aave_v3_6
from keeper.lab.judge.accounts import Account, Holding, Loan, Market
from keeper.lab.judge.evidence import Done, Step
from keeper.lab.judge.scene import BPS, JUDGE, Scene
from keeper.types import Log, Token, hex_of

_POOL: Final = load("AavePool")
_ERC20: Final = load("Erc20")
_LIQUIDATION_CALL: Final = _POOL.function("liquidationCall")
_TRANSFER: Final = _ERC20.event("Transfer")
_PROVIDER_SINCE: Final = 10  # the pool revision of Aave 3.6, whose LiquidationDataProvider is asked


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


@dataclass(frozen=True, slots=True)
class Point:
    """One amount that the market accepted: what was borrowed for it, paid and received, and the call's gas."""

    pair: Pair
    loan: Loan
    borrowed_raw: int
    repaid_raw: int
    seized_raw: int
    gas: int

    @property
    def premium_raw(self) -> int:
        """The flash loan's price, rounded up."""
        return -(-self.borrowed_raw * self.loan.premium_bps // BPS)

    @property
    def owed_raw(self) -> int:
        """What the seized collateral must bring back of the repaid token."""
        return self.repaid_raw + self.premium_raw


async def take(scene: Scene, asked: Sequence[tuple[Pair, int]]) -> list[Point | str]:
    """What each pair gives for each amount offered; where the market refuses, its reason."""
    loans = [_loan(scene, pair.debt.reserve.token, offered_raw) for pair, offered_raw in asked]
    runs = [
        opening(pair, loan, offered_raw)
        for (pair, offered_raw), loan in zip(asked, loans, strict=True)
        if loan is not None
    ]
    done = iter(await scene.evidence.simulate(runs))
    return [
        "no flash liquidity" if loan is None else _point(pair, loan, offered_raw, next(done))
        for (pair, offered_raw), loan in zip(asked, loans, strict=True)
    ]


def opening(pair: Pair, loan: Loan, offered_raw: int) -> list[Step]:
    """The first three steps of every run: the loan, its approval, the liquidation."""
    debt, collateral = pair.debt.reserve.token.address, pair.collateral.reserve.token.address
    pool = pair.account.market.pool
    call = _LIQUIDATION_CALL.encode(collateral, debt, pair.account.address, offered_raw, False)
    return [
        Step(loan.holder, debt, _ERC20.function("transfer").encode(JUDGE, offered_raw)),
        Step(JUDGE, debt, _ERC20.function("approve").encode(pool, offered_raw)),
        Step(JUDGE, pool, call),
    ]


def taken(point: Point, done: Done) -> Point:
    """The point as one run of its liquidation really had it."""
    return replace(
        point,
        repaid_raw=_moved(done.logs, point.pair.debt.reserve.token, out=True),
        seized_raw=_moved(done.logs, point.pair.collateral.reserve.token, out=False),
        gas=done.gas_used,
    )


def _loan(scene: Scene, token: Token, amount_raw: int) -> Loan | None:
    """The cheapest loan of at least that much."""
    return next(
        (loan for loan in scene.loans.get(token.address, ()) if loan.available_raw >= amount_raw), None
    )


def _point(pair: Pair, loan: Loan, offered_raw: int, done: Sequence[Done]) -> Point | str:
    refused = next((step for step in done if not step.ok), None)
    if refused is not None:
        return _POOL.error(refused.output) or hex_of(refused.output)
    point = taken(Point(pair, loan, offered_raw, 0, 0, 0), done[2])
    # What is offered beyond what was taken need not be borrowed, but for the headroom a keeper needs too.
    return replace(point, borrowed_raw=min(offered_raw, point.repaid_raw + point.repaid_raw // BPS + 1))


def _moved(logs: Sequence[Log], token: Token, *, out: bool) -> int:
    """How much of a token left the judge's account, or reached it."""
    total = 0
    for log in logs:
        if log.address == token.address and log.topics[0] == _TRANSFER.topic:
            moved = _TRANSFER.decode(log)
            if moved["from" if out else "to"] == JUDGE:
                total += moved["value"]
    return total


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
