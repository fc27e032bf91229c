"""The reference exchange: accounts liquidated for cash, and taken over and closed, for real on the fork.

Nothing of the exchange's arithmetic is done here. It says itself what its tiers allow and what an heir must have; what
a way pays, or why it is refused, is what running it came to. A takeover goes from margin to withdrawal in one
transaction, which the exchange refuses where a position would stay with the heir.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from keeper.abi import load
from keeper.lab.judge.accounts import read_token
from keeper.lab.judge.evidence import Done, Evidence, Step
from keeper.lab.judge.perps import Trader, Ways
from keeper.lab.judge.point import Point, approval, cheapest, lent, most_lent_raw, together
from keeper.lab.judge.scene import JUDGE, Scene
from keeper.lab.judge.terms import Listed
from keeper.lab.judge.verdict import Amount
from keeper.types import Address, Call, Token, hex_of

_EXCHANGE: Final = load("PerpExchange")
_ACCOUNT, _ASSESS, _HOLDING, _QUOTE = (
    _EXCHANGE.function(name) for name in ("accountOf", "assess", "holding", "quoteInheritance")
)
_PAY_IN, _INHERIT, _TRADE, _WITHDRAW = (
    _EXCHANGE.function(name) for name in ("payIn", "inherit", "trade", "withdrawAll")
)
_HOUSE: Final = 0
_WAD: Final = 10**18
_ANY: Final = 2**256 - 1

# A takeover's gain is concave in its size but for the whole position, so sizes a factor two apart, and a few more
# between the best one's neighbours, come close to the best there is.
_HALVINGS: Final = 10
_NEAR: Final = 8
# What Liquidator.execute costs beside the calls: feeds, books and the end check, and for a takeover the flash loan.
_CASH_GAS: Final = 100_000
_TAKEOVER_GAS: Final = 250_000


@dataclass(frozen=True, slots=True)
class _Lot:
    """A signed size of an account's position in one market."""

    market: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """One exchange as it stands on chain; `scale` is money per raw unit of its token."""

    name: str
    exchange: Address
    token: Token
    scale: int

    async def traders(self, evidence: Evidence) -> tuple[int, list[Trader]]:
        """Every account that was ever opened, by the exchange's own events, and its word on each.

        An account goes by its number. One that cannot be assessed, as a mark of it is stale, cannot be liquidated
        either, and is not among them; nor is the house, which nobody is paid for.
        """
        logs = await evidence.logs([_EXCHANGE.event("AccountCreated").topic], self.exchange)
        numbers = [number for log in logs if (number := int.from_bytes(log.topics[1])) != _HOUSE]
        accounts = await evidence.read_all(_ACCOUNT, [(self.exchange, number) for number in numbers])
        holders = [number for number, row in zip(numbers, accounts, strict=True) if row[-1]]
        answers = await evidence.calls([_ASSESS.call(self.exchange, number) for number in holders])
        found = []
        for number, answer in zip(holders, answers, strict=True):
            if answer is None:
                continue
            equity, *_, required = _ASSESS.one(answer)
            if equity < required:
                health = equity * _WAD // required
                found.append(Trader(self, Address(number.to_bytes(20)), health, (self.token,)))
        return len(holders), found

    async def ways(self, scene: Scene, trader: Trader) -> Ways:
        """Every position for cash, and in a ladder of sizes to take over."""
        if not scene.priced(self.token):
            return Ways((), ("no_price", self.token.symbol))
        number = int.from_bytes(trader.address)
        held = await self._held(scene.evidence, number)
        paid, unpaid = await self._cash(scene, number, held)
        taken, tried, refused = await self._takeovers(scene, number, held)
        reason = next(iter((*unpaid, *refused)), "no loan for the margin")
        return Ways((*paid, *taken), ("protocol_refuses", reason), tried=len(held) + tried)

    async def _held(self, evidence: Evidence, number: int) -> list[_Lot]:
        """Its whole positions."""
        *_, bits = await evidence.read(_ACCOUNT, self.exchange, number)
        markets = [market for market in range(bits.bit_length()) if bits >> market & 1]
        rows = await evidence.read_all(_HOLDING, [(self.exchange, number, market) for market in markets])
        return [_Lot(market, row[0]) for market, row in zip(markets, rows, strict=True)]

    # --- for cash ----------------------------------------------------------------------------------------------------

    async def _cash(self, scene: Scene, number: int, held: Sequence[_Lot]) -> tuple[list[Point], list[str]]:
        """What closing each position with the house paid, and why it did not."""
        liquidate = _EXCHANGE.function("liquidate")
        points = [
            Point(
                debt=self.token,
                collateral=self.token,
                loan=None,
                borrowed_raw=0,
                setup=(),
                acts=(together(JUDGE, [liquidate.call(self.exchange, number, lot.market)]),),
                other_gas=_CASH_GAS,
                position=self._position(lot),
            )
            for lot in held
        ]
        runs = await scene.evidence.simulate([point.steps for point in points])
        refused = [_reason(step) for done in runs for step in done if not step.ok]
        ran = [
            point.as_run(done)
            for point, done in zip(points, runs, strict=True)
            if all(step.ok for step in done)
        ]
        paid = [point for point in ran if point.seized_raw]
        return paid, [*refused, *("no reward" for _ in ran[len(paid) :])]

    # --- taking over -------------------------------------------------------------------------------------------------

    async def _takeovers(
        self, scene: Scene, number: int, held: Sequence[_Lot]
    ) -> tuple[list[Point], int, list[str]]:
        """What came back, how many were tried, and why the exchange refused others."""
        asked = [(number, lot.market, _ANY) for lot in held]
        steps = [Step(JUDGE, self.exchange, _QUOTE.encode(*arguments)) for arguments in asked]
        [answers] = await scene.evidence.simulate([steps])
        ladder = [
            _Lot(lot.market, size if lot.size > 0 else -size)
            for lot, answer in zip(held, answers, strict=True)
            if answer.ok
            for halving in range(_HALVINGS + 1)
            if (size := _QUOTE.one(answer.output)[1] >> halving)
        ]
        found, refused = await self._run(scene, number, ladder)
        nearer = [lot for whole in held for lot in _between(whole.market, ladder, found)]
        more, _ = await self._run(scene, number, nearer)
        points = [*found.values(), *more.values()]
        return points, len(ladder) + len(nearer), [*(_reason(one) for one in answers if not one.ok), *refused]

    async def _run(
        self, scene: Scene, number: int, lots: Sequence[_Lot]
    ) -> tuple[dict[_Lot, Point], list[str]]:
        """Which of the lots could be taken over, each with the least margin, and why others could not."""
        heir = await scene.evidence.read(_EXCHANGE.function("accountCount"), self.exchange)
        # The Liquidator's first takeover opens an account, which costs gas; later ones do not.
        known = await scene.evidence.read(
            _EXCHANGE.function("newestOf"), self.exchange, scene.terms.liquidator
        )
        opened = (
            [Step(JUDGE, self.exchange, _EXCHANGE.function("createAccount").encode(False))] if known else []
        )
        margins, short = await self._margins(scene, number, heir, lots)
        points = {
            lot: point
            for lot, margin_raw in margins.items()
            if (point := self._takeover(scene, number, heir, lot, margin_raw, opened)) is not None
        }
        runs = await scene.evidence.simulate([point.steps for point in points.values()])
        found: dict[_Lot, Point] = {}
        refused = list(short)
        for (lot, point), done in zip(points.items(), runs, strict=True):
            wrong = next((step for step in done if not step.ok), None)
            if wrong is None:
                found[lot] = point.as_run(done)
            else:
                refused.append(_reason(wrong))
        return found, refused

    async def _margins(
        self, scene: Scene, number: int, heir: int, lots: Sequence[_Lot]
    ) -> tuple[dict[_Lot, int], list[str]]:
        """The least margin of each lot: all that may be borrowed, less what an heir with that has to spare."""
        allowed_raw = scene.raw_worth(self.token, scene.terms.max_repay_usd_e8)
        most_raw = min(most_lent_raw(scene, self.token), allowed_raw)
        loan = cheapest(scene, self.token, most_raw)
        if loan is None or not most_raw:
            return {}, []
        judged = Step(JUDGE, self.exchange, _ASSESS.encode(heir))
        lending = lent(loan, self.token, most_raw)
        runs = await scene.evidence.simulate(
            [
                [lending, together(JUDGE, self._inheriting(number, heir, lot, most_raw)), judged]
                for lot in lots
            ]
        )
        margins: dict[_Lot, int] = {}
        refused = []
        for lot, (_, inherited, assessed) in zip(lots, runs, strict=True):
            if inherited.ok:
                equity, _, initial, _, required = _ASSESS.one(assessed.output)
                spare_raw = (equity - max(initial, required)) // self.scale
                margins[lot] = max(most_raw - spare_raw, 1)
            else:
                refused.append(_reason(inherited))
        return margins, refused

    def _inheriting(self, number: int, heir: int, lot: _Lot, margin_raw: int) -> list[Call]:
        return [
            approval(self.token, self.exchange, margin_raw),
            _PAY_IN.call(self.exchange, margin_raw),
            _INHERIT.call(self.exchange, number, lot.market, abs(lot.size), heir),
        ]

    def _takeover(
        self, scene: Scene, number: int, heir: int, lot: _Lot, margin_raw: int, opened: Sequence[Step]
    ) -> Point | None:
        """Margin in, a size inherited and closed with the house, everything out; None without a loan."""
        loan = cheapest(scene, self.token, margin_raw)
        if loan is None:
            return None
        worst = 0 if lot.size > 0 else _ANY  # what comes back in the end is what counts
        calls = [
            *self._inheriting(number, heir, lot, margin_raw),
            _TRADE.call(self.exchange, heir, lot.market, -lot.size, worst),
            _WITHDRAW.call(self.exchange, heir),
        ]
        return Point(
            debt=self.token,
            collateral=self.token,
            loan=loan,
            borrowed_raw=margin_raw,
            setup=(lent(loan, self.token, margin_raw), *opened),
            acts=(together(JUDGE, calls),),
            other_gas=_TAKEOVER_GAS,
            position=self._position(lot),
        )

    def _position(self, lot: _Lot) -> Amount:
        return Amount(Token(self.exchange, f"of market {lot.market}", 18), lot.size)


def _between(market: int, tried: Sequence[_Lot], found: Mapping[_Lot, Point]) -> list[_Lot]:
    """Sizes between the neighbours of the one that brought most in a market."""
    ran = [lot for lot in found if lot.market == market]
    if not ran:
        return []
    best = max(ran, key=lambda lot: found[lot].seized_raw - found[lot].owed_raw)
    sizes = sorted(abs(lot.size) for lot in tried if lot.market == market)
    at, sign = sizes.index(abs(best.size)), 1 if best.size > 0 else -1
    low, high = sizes[max(at - 1, 0)], sizes[min(at + 1, len(sizes) - 1)]
    between = {low + (high - low) * rung // (_NEAR + 1) for rung in range(1, _NEAR + 1)} - set(sizes)
    return [_Lot(market, sign * size) for size in sorted(between)]


async def read_reference(evidence: Evidence, listed: Listed) -> Reference:
    """An exchange's token and scale. Raises `AdapterError` when the address is not a reference exchange's."""
    token, scale = [
        await evidence.read(_EXCHANGE.function(name), listed.address) for name in ("TOKEN", "SCALE")
    ]
    return Reference(listed.name, listed.address, await read_token(evidence, token), scale)


def _reason(done: Done) -> str:
    return _EXCHANGE.error(done.output) or hex_of(done.output)
