"""Perp Curie: positions taken over and closed for real, and collateral bought, all on the fork.

Whoever liquidates inherits the position, so a takeover is run from margin to withdrawal, in one transaction, and only
what comes back counts. A rest that stays on the exchange disqualifies it: a keeper may not be left with one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

_HOUSE: Final = load("CurieClearingHouse")
_VAULT: Final = load("CurieVault")
_BALANCE: Final = load("CurieAccountBalance")
_BOOK: Final = load("CurieOrderBook")
_CONFIG: Final = load("CurieConfig")
_BASE: Final = load("CurieBaseToken")
_FEED: Final = load("CuriePriceFeed")
_CHAINLINK, _LATEST = (
    _FEED.function("getChainlinkPriceFeedV3"),
    _FEED.function("getLatestOrCachedPrice"),
)
_COLLATERAL: Final = load("CurieCollateralManager").function("getCollateralConfig")
_VALUE, _REQUIRED = (
    _HOUSE.function("getAccountValue"),
    _BALANCE.function("getMarginRequirementForLiquidation"),
)
_LIQUIDATE: Final = _HOUSE.function("liquidate(address,address,int256)")
_LIQUIDATABLE: Final = _BALANCE.function("getLiquidatablePositionSize")
_SELLABLE, _MOST = (
    _VAULT.function(name) for name in ("isLiquidatable", "getMaxRepaidSettlementAndLiquidatableCollateral")
)
_BASES, _SETTLED = _BALANCE.function("getBaseTokens"), _VAULT.function("getBalance")

_WAD: Final = 10**18
_PPM: Final = 10**6
_DEADLINE_S: Final = 2**40
_NO_REFERRAL: Final = bytes(32)
_FRACTIONS: Final = 13  # sizes of a position, the whole first,
_STEP: Final = 0.6  # each that part of the one before
_AMPLE: Final = 200  # per cent of the initial margin that is surely accepted
# Per cent of the initial margin, for the sizes that brought most: the least that is accepted costs least.
_MARGINS: Final = (90, 95, 97, 98, 99, 100, 101, 102, 103, 105, 110, 125, 150)
_TIGHTENED: Final = 3
_ASKED_BPS: Final = 9_990  # of what may be repaid now, since it shrinks until the next block
_BPS: Final = 10_000
# What Liquidator.execute costs beside the calls: the flash loan, feeds, approvals, books and the end check.
_OTHER_GAS: Final = 250_000


@dataclass(frozen=True, slots=True)
class _Lot:
    """A signed size of one position and the exchange's initial margin for it, by its mark price."""

    base: Token
    size: int
    margin_raw: int


@dataclass(frozen=True, slots=True, eq=False)
class Curie:
    """One exchange as it stands on chain."""

    name: str
    house: Address
    vault: Address
    balance: Address
    book: Address
    settlement: Token
    margin_ppm: int
    max_price_age_s: int

    async def traders(self, evidence: Evidence) -> tuple[int, list[Trader]]:
        """Who ever traded or made a market, by the clearing house's own events, and the exchange's word on each.

        Whoever's value cannot be told cannot be liquidated either, and is not among them.
        """
        topics = [_HOUSE.event(name).topic for name in ("PositionChanged", "LiquidityChanged")]
        logs = [log for topic in topics for log in await evidence.logs([topic], self.house)]
        accounts = list(dict.fromkeys(Address(log.topics[1][12:]) for log in logs))
        values = await evidence.calls([_VALUE.call(self.house, who) for who in accounts])
        required = await evidence.calls([_REQUIRED.call(self.balance, who) for who in accounts])
        sellable = await evidence.calls([_SELLABLE.call(self.vault, who) for who in accounts])
        bases = await evidence.read_all(_BASES, [(self.balance, who) for who in accounts])
        found = []
        for who, value, needed, sells in zip(accounts, values, required, sellable, strict=True):
            if value is None or needed is None:
                continue
            value_wad, needed_wad = _VALUE.one(value), _REQUIRED.one(needed)
            if value_wad < needed_wad or (sells is not None and _SELLABLE.one(sells)):
                health = value_wad * _WAD // needed_wad if needed_wad else None
                found.append(Trader(self, who, health, await self._tokens(evidence, who)))
        return sum(1 for held in bases if held), found

    async def ways(self, scene: Scene, trader: Trader) -> Ways:
        """Every position in a ladder of sizes, and every collateral in a ladder of amounts; none by a stale price."""
        stale = await self._stale(scene.evidence, trader)
        if stale is not None:
            return Ways((), ("stale_price", stale))
        if not scene.priced(self.settlement):
            return Ways((), ("no_price", self.settlement.symbol))
        allowed_raw = scene.raw_worth(self.settlement, scene.terms.max_repay_usd_e8)
        most_raw = min(most_lent_raw(scene, self.settlement), allowed_raw)
        takeovers, tried, refused = await self._takeovers(scene, trader, most_raw)
        sales, offered, forbidden = await self._sales(scene, trader, most_raw)
        if sales:
            obstacle = ("no_margin", "no route returns the loan")
        elif reasons := [*refused, *forbidden]:
            obstacle = ("protocol_refuses", reasons[0])
        elif tried or offered:
            obstacle = ("over_max_repay" if most_raw == allowed_raw else "no_flash_liquidity", "")
        else:
            obstacle = ("no_position", "")
        return Ways((*takeovers, *sales), obstacle, tried=tried + offered)

    async def _tokens(self, evidence: Evidence, who: Address) -> tuple[Token, ...]:
        held = await evidence.read(_VAULT.function("getCollateralTokens"), self.vault, who)
        return (self.settlement, *[await read_token(evidence, token) for token in held])

    async def _stale(self, evidence: Evidence, trader: Trader) -> str | None:
        """Which price that the account's value depends on is older than the operator allows."""
        bases = await evidence.read(_BASES, self.balance, trader.address)
        held = [token.address for token in trader.tokens[1:]]
        manager = await evidence.read(_VAULT.function("getCollateralManager"), self.vault)
        terms = await evidence.read_all(_COLLATERAL, [(manager, token) for token in held])
        sources = await evidence.read_all(_BASE.function("getPriceFeed"), [(base,) for base in bases])
        feeds = await evidence.read_all(_CHAINLINK, [(source,) for source in sources])
        priced = [*zip(bases, feeds, strict=True), *zip(held, (row[0] for row in terms), strict=True)]
        latest = await evidence.read_all(_LATEST, [(feed,) for _, feed in priced])
        for (token, _), (_, updated_s) in zip(priced, latest, strict=True):
            age_s = evidence.head.timestamp_s + 1 - updated_s
            if age_s > self.max_price_age_s:
                return f"that of {(await read_token(evidence, token)).symbol} is {age_s} s old"
        return None

    # --- taking over -------------------------------------------------------------------------------------------------

    async def _takeovers(
        self, scene: Scene, trader: Trader, most_raw: int
    ) -> tuple[list[Point], int, list[str]]:
        """What came back, how many were tried, and why the exchange refused others."""
        cancels = await self._cancels(scene.evidence, trader)
        lots, forbidden = await self._lots(scene, trader, cancels)
        ample = [
            (lot, min(lot.margin_raw * _AMPLE // 100, most_raw))
            for lot in lots
            if 0 < lot.margin_raw <= most_raw
        ]
        found, refused = await self._run(scene, trader, cancels, ample)
        found.sort(key=lambda each: each[1].seized_raw - each[1].repaid_raw, reverse=True)
        tight = [
            (lot, lot.margin_raw * share // 100)
            for lot, point in found[:_TIGHTENED]
            for share in _MARGINS
            if lot.margin_raw * share // 100 < point.repaid_raw
        ]
        tighter, _ = await self._run(scene, trader, cancels, tight)
        points = [point for _, point in (*found, *tighter)]
        return points, len(lots) + len(tight), [*forbidden, *refused]

    async def _cancels(self, evidence: Evidence, trader: Trader) -> list[Call]:
        """Cancelling its orders, which come before a takeover."""
        bases = await evidence.read(_BASES, self.balance, trader.address)
        orders = _BOOK.function("getOpenOrderIds")
        open_ones = await evidence.read_all(orders, [(self.book, trader.address, base) for base in bases])
        cancel = _HOUSE.function("cancelAllExcessOrders")
        return [
            cancel.call(self.house, trader.address, base)
            for base, ids in zip(bases, open_ones, strict=True)
            if ids
        ]

    async def _lots(
        self, scene: Scene, trader: Trader, cancels: Sequence[Call]
    ) -> tuple[list[_Lot], list[str]]:
        """What may be taken over once its orders are cancelled, whole and in parts; or why they may not be."""
        evidence, who = scene.evidence, trader.address
        before = together(JUDGE, cancels)
        asked = (Step(JUDGE, self.balance, _BASES.encode(who)), Step(JUDGE, self.house, _VALUE.encode(who)))
        [answers] = await evidence.simulate([[before, *asked]])
        refused = [_reason(step) for step in answers if not step.ok]
        if refused:
            return [], refused
        bases, value_wad = _BASES.one(answers[1].output), _VALUE.one(answers[2].output)
        questions = [Step(JUDGE, self.balance, _LIQUIDATABLE.encode(who, base, value_wad)) for base in bases]
        [[_, *sizes]] = await evidence.simulate([[before, *questions]])
        lots: list[_Lot] = []
        for base, answer in zip(bases, sizes, strict=True):
            if answer.ok and (whole := _LIQUIDATABLE.one(answer.output)):
                lots += await self._parts(evidence, base, whole)
        return lots, [_reason(step) for step in sizes if not step.ok]

    async def _parts(self, evidence: Evidence, base: Address, whole: int) -> list[_Lot]:
        mark_wad = await evidence.read(_BALANCE.function("getMarkPrice"), self.balance, base)
        token = await read_token(evidence, base)
        unit = 10 ** (18 - self.settlement.decimals)
        lots = []
        for rung in range(_FRACTIONS):
            size = whole if not rung else int(whole * _STEP**rung)
            margin_wad = abs(size) * mark_wad // _WAD * self.margin_ppm // _PPM
            lots.append(_Lot(token, size, margin_wad // unit))
        return lots

    async def _run(
        self, scene: Scene, trader: Trader, cancels: Sequence[Call], wanted: Sequence[tuple[_Lot, int]]
    ) -> tuple[list[tuple[_Lot, Point]], list[str]]:
        """Which of the lots could be taken over with such a margin, and why others could not."""
        points = [
            (lot, point)
            for lot, margin_raw in wanted
            if (point := self._takeover(scene, trader, cancels, lot, margin_raw)) is not None
        ]
        left = [
            Step(JUDGE, self.balance, _BASES.encode(JUDGE)),
            Step(JUDGE, self.vault, _SETTLED.encode(JUDGE)),
        ]
        runs = await scene.evidence.simulate([[*point.steps, *left] for _, point in points])
        found, refused = [], []
        for (lot, point), done in zip(points, runs, strict=True):
            *_, taken, bases, settled = done
            if not taken.ok:
                refused.append(_reason(taken))
            elif _BASES.one(bases.output) or _SETTLED.one(settled.output):
                refused.append("a rest stays on the exchange")
            else:
                found.append((lot, point.as_run(done)))
        return found, refused

    def _takeover(
        self, scene: Scene, trader: Trader, cancels: Sequence[Call], lot: _Lot, margin_raw: int
    ) -> Point | None:
        """Margin in, orders cancelled, position taken over and closed, everything out; None without a loan."""
        loan = cheapest(scene, self.settlement, margin_raw)
        if loan is None:
            return None
        settlement, base = self.settlement.address, lot.base.address
        closing = (base, 0, 0, _DEADLINE_S, _NO_REFERRAL)
        calls = [
            approval(self.settlement, self.vault, margin_raw),
            _VAULT.function("deposit").call(self.vault, settlement, margin_raw),
            *cancels,
            _LIQUIDATE.call(self.house, trader.address, base, lot.size),
            _HOUSE.function("closePosition").call(self.house, closing),
            _VAULT.function("withdrawAll").call(self.vault, settlement),
        ]
        return Point(
            debt=self.settlement,
            collateral=self.settlement,
            loan=loan,
            borrowed_raw=margin_raw,
            setup=(lent(loan, self.settlement, margin_raw),),
            acts=(together(JUDGE, calls),),
            other_gas=_OTHER_GAS,
            position=Amount(lot.base, lot.size),
        )

    # --- buying collateral -------------------------------------------------------------------------------------------

    async def _sales(self, scene: Scene, trader: Trader, most_raw: int) -> tuple[list[Point], int, list[str]]:
        """Vault.liquidateCollateral where its own condition holds, as `_takeovers`."""
        evidence = scene.evidence
        [allowed] = await evidence.calls([_SELLABLE.call(self.vault, trader.address)])
        held = trader.tokens[1:]
        if allowed is None or not _SELLABLE.one(allowed) or not held:
            return [], 0, []
        asked = [(self.vault, trader.address, token.address) for token in held]
        most = await evidence.read_all(_MOST, asked)
        wanted = [(token, min(row[0], most_raw)) for token, row in zip(held, most, strict=True)]
        points = list(self._purchases(scene, trader, wanted))
        runs = await evidence.simulate([point.steps for point in points])
        ran = [
            point.as_run(done) for point, done in zip(points, runs, strict=True) if all(s.ok for s in done)
        ]
        refused = [_reason(step) for done in runs for step in done if not step.ok]
        return [point for point in ran if point.seized_raw], len(points), refused

    def _purchases(self, scene: Scene, trader: Trader, held: Iterable[tuple[Token, int]]) -> Iterable[Point]:
        for token, most_raw in held:
            for rung in range(_FRACTIONS):
                amount_raw = int(most_raw * _ASKED_BPS // _BPS * _STEP**rung)
                loan = cheapest(scene, self.settlement, amount_raw)
                if not amount_raw or loan is None:
                    continue
                calls = [
                    approval(self.settlement, self.vault, amount_raw),
                    _VAULT.function("liquidateCollateral").call(
                        self.vault, trader.address, token.address, amount_raw, True
                    ),
                ]
                yield Point(
                    debt=self.settlement,
                    collateral=token,
                    loan=loan,
                    borrowed_raw=amount_raw,
                    setup=(lent(loan, self.settlement, amount_raw),),
                    acts=(together(JUDGE, calls),),
                    other_gas=_OTHER_GAS,
                )


async def read_curie(evidence: Evidence, listed: Listed) -> Curie:
    """An exchange's contracts. Raises `AdapterError` when the clearing house is not Perp Curie's."""
    house = listed.address
    vault, balance, book, config = [
        await evidence.read(_HOUSE.function(name), house)
        for name in ("getVault", "getAccountBalance", "getOrderBook", "getClearingHouseConfig")
    ]
    settlement = await evidence.read(_VAULT.function("getSettlementToken"), vault)
    margin_ppm = await evidence.read(_CONFIG.function("getImRatio"), config)
    token = await read_token(evidence, settlement)
    return Curie(listed.name, house, vault, balance, book, token, margin_ppm, listed.max_price_age_s)


def _reason(done: Done) -> str:
    return _HOUSE.error(done.output) or hex_of(done.output)
