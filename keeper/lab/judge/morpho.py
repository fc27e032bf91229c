"""Morpho Blue: borrowers liquidated for real on the fork, by shares and by collateral, in whole and in parts.

Who is unhealthy is reckoned in exact fractions from what the contract says once it has accrued interest, and only
where a liquidation then really runs does it count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

from keeper.abi import load
from keeper.errors import AdapterError
from keeper.lab.judge.accounts import read_token
from keeper.lab.judge.evidence import Evidence
from keeper.lab.judge.perps import Trader, Ways
from keeper.lab.judge.point import Point, approval, cheapest, lent, most_lent_raw, together
from keeper.lab.judge.scene import JUDGE, Scene
from keeper.lab.judge.terms import Listed
from keeper.lab.judge.verdict import Amount
from keeper.types import Address, Hash, Token, hex_of

_MORPHO: Final = load("MorphoBlue")
_CREATED, _BORROWED = (_MORPHO.event(name) for name in ("CreateMarket", "Borrow"))
_ACCRUE, _TOTALS, _POSITION, _LIQUIDATE = (
    _MORPHO.function(name) for name in ("accrueInterest", "market", "position", "liquidate")
)
_PRICE: Final = load("MorphoOracle").function("price")
_TOGETHER: Final = load("Multicall3").function("aggregate3")
_TOGETHER_AT: Final = Address(bytes.fromhex("cA11bde05977b3631167028862bE2a173976CA11"))

_WAD: Final = 10**18
_SCALE: Final = 10**36
_FRACTIONS: Final = 13  # sizes, the whole first,
_STEP: Final = 0.6  # each that part of the one before
_SPARE: Final = Fraction(10_001, 10_000)  # of the loan, for interest until the next block
# What Liquidator.execute costs beside the calls: the flash loan, feeds, approvals, books and the end check.
_OTHER_GAS: Final = 250_000


@dataclass(frozen=True, slots=True)
class _Now:
    """What a market says at the head: what a share owes, and what a unit of collateral is worth and may owe."""

    share: Fraction
    worth: Fraction
    may_owe: Fraction


@dataclass(frozen=True, slots=True, eq=False)
class MorphoMarket:
    """One market as it was made; all markets of a Morpho have its name."""

    name: str
    morpho: Address
    id: Hash
    params: tuple[Any, ...]
    loan: Token
    collateral: Token

    async def traders(self, evidence: Evidence) -> tuple[int, list[Trader]]:
        """Whoever ever borrowed, by the market's own events, and who of them owes more than the collateral may."""
        logs = await evidence.logs([_BORROWED.topic, self.id], self.morpho)
        accounts = list(dict.fromkeys(Address(log.topics[2][12:]) for log in logs))
        held = await self._held(evidence, accounts)
        owing = [(who, *two) for who, two in zip(accounts, held, strict=True) if two[0]]
        now = await self._now(evidence)
        if now is None:  # without a price or a rate nobody can be liquidated
            return len(owing), []
        unhealthy = []
        for who, shares, collateral_raw in owing:
            most, owed = collateral_raw * now.may_owe, shares * now.share
            if most < owed:
                unhealthy.append(Trader(self, who, int(most / owed * _WAD), (self.loan, self.collateral)))
        return len(owing), unhealthy

    async def ways(self, scene: Scene, trader: Trader) -> Ways:
        """Shares repaid and collateral seized, from all of either down."""
        [(shares, collateral_raw)] = await self._held(scene.evidence, [trader.address])
        now = await self._now(scene.evidence)
        if now is None or not collateral_raw:
            return Ways((), ("protocol_refuses", "nothing can be seized"))
        lltv = Fraction(self.params[4], _WAD)
        allowed_usd_e8 = scene.terms.max_repay_usd_e8
        incentive = min(Fraction(115, 100), 1 / (1 - Fraction(3, 10) * (1 - lltv)))
        points, short, over = [], 0, 0
        for rung in range(_FRACTIONS):
            part = Fraction(_STEP**rung)
            repaid, seized = int(shares * part), int(collateral_raw * part)
            for amounts, owed in (
                ((0, repaid), repaid * now.share),
                ((seized, 0), seized * now.worth / incentive),
            ):
                borrowed_raw = int(owed * _SPARE) + 3
                if scene.priced(self.loan) and scene.usd_e8(self.loan, borrowed_raw) > allowed_usd_e8:
                    over += 1
                    continue
                # Morpho is paid out of what it gave, so nothing is borrowed: who would lend only shows the tokens
                held = cheapest(scene, self.loan, borrowed_raw, self.collateral)
                loan = held and replace(held, pool=self.morpho, premium_bps=0, locks=frozenset())
                short += loan is None
                if loan is None or not any(amounts):
                    continue
                data = _LIQUIDATE.call(self.morpho, self.params, trader.address, *amounts, b"")
                calls = [approval(self.loan, self.morpho, borrowed_raw), data]
                points.append(
                    Point(
                        debt=self.loan,
                        collateral=self.collateral,
                        loan=loan,
                        borrowed_raw=borrowed_raw,
                        setup=(lent(loan, self.loan, borrowed_raw),),
                        acts=(together(JUDGE, calls),),
                        other_gas=_OTHER_GAS,
                    )
                )
        runs = await scene.evidence.simulate([point.steps for point in points])
        ran = [
            point.as_run(done)
            for point, done in zip(points, runs, strict=True)
            if all(step.ok for step in done)
        ]
        obstacle = ("no_route", f"{self.collateral.symbol} cannot be sold")
        if not ran and short:
            most = Amount(self.loan, most_lent_raw(scene, self.loan))
            obstacle = ("no_flash_liquidity", f"at most {most} can be borrowed")
        elif not ran and over:
            obstacle = ("over_max_repay", "")
        elif not ran:
            reasons = [_MORPHO.error(done[-1].output) or hex_of(done[-1].output) for done in runs]
            obstacle = ("protocol_refuses", reasons[-1] if reasons else "nothing is left to take")
        return Ways(tuple(ran), obstacle, tried=len(points))

    async def _held(self, evidence: Evidence, accounts: Sequence[Address]) -> list[tuple[int, int]]:
        """Borrow shares and collateral."""
        positions = await evidence.read_all(_POSITION, [(self.morpho, self.id, who) for who in accounts])
        return [(shares, collateral_raw) for _, shares, collateral_raw in positions]

    async def _now(self, evidence: Evidence) -> _Now | None:
        """The market once it has accrued interest at the head; None where it cannot, or has no price."""
        calls = [
            _ACCRUE.call(self.morpho, self.params),
            _TOTALS.call(self.morpho, self.id),
            _PRICE.call(self.params[2]),
        ]
        data = _TOGETHER.call(_TOGETHER_AT, [(call.to, True, call.data) for call in calls])
        [answer] = await evidence.calls([data])
        told = _TOGETHER.one(answer) if answer is not None else [(False, b"")]
        if not all(fine for fine, _ in told):
            return None
        _, _, borrowed, shares, *_ = _TOTALS.decode(told[1][1])
        price = int(_PRICE.one(told[2][1]))
        if not price:
            return None
        worth = Fraction(price, _SCALE)
        return _Now(Fraction(borrowed + 1, shares + 10**6), worth, worth * Fraction(self.params[4], _WAD))


async def read_morpho(evidence: Evidence, listed: Listed) -> list[MorphoMarket]:
    """Every market that was ever made, of the listed ones where some are."""
    found = []
    for log in await evidence.logs([_CREATED.topic], listed.address):
        market_id = Hash(log.topics[1])
        if listed.parts and hex_of(market_id) not in listed.parts:
            continue
        params = tuple(_CREATED.decode(log)["marketParams"])
        try:
            loan, collateral = [await read_token(evidence, token) for token in params[:2]]
        except AdapterError:  # what tells no decimals can be in no plan
            continue
        found.append(MorphoMarket(listed.name, listed.address, market_id, params, loan, collateral))
    return found
