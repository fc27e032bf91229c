"""The most a liquidation of each unhealthy account could have netted, by trying.

Three passes, so that effort goes where it can matter. Every pair of debt and collateral is first bounded: what the
market gives per unit repaid, sold at the prices the pools start from, minus the least gas, is more than any amount
can net. Then amounts a factor two apart, and every amount at which a rule changes, are taken and priced over every
route. For one order of trades gross profit is concave in the amount and nothing at zero, so an amount between two of
them grosses at most twice the better one; only where that could still matter, a dense set of amounts follows. The
best are run on the fork from loan to profit, and the best of those is the finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from keeper.lab.judge.accounts import Account, Reserve
from keeper.lab.judge.point import Point, most_lent_raw
from keeper.lab.judge.scene import BPS, Scene
from keeper.lab.judge.selling import Attempt, best_of, best_of_each, quoted, reason_of
from keeper.lab.judge.taking import LIQUIDATOR_GAS, Pair, advised, take
from keeper.lab.judge.verdict import Unhealthy, usd

_LEAST_GAS: Final = LIQUIDATOR_GAS + 150_000  # no liquidationCall and trades use less
_PROBES: Final = (1, 2, 16, 256)  # parts of the debt at which a pair is first tried
_COARSE: Final = 2.0  # factor between amounts of the second pass
_DENSE: Final = 40  # amounts of the third pass
_NEAR: Final = 8  # amounts tried last, between the best one's neighbours,
_ZOOMS: Final = 2  # that many times
_MOST_COARSE: Final = 40
_LEFTOVER_BASE: Final = 1_000 * 10**8  # Aave's MIN_LEFTOVER_BASE since 3.3, in its base currency


@dataclass(slots=True, eq=False)
class _Search:
    """One pair and what was learnt of it; amounts are repaid raw units.

    `obstacle` is why it was given up, with how far it got: the farthest one speaks for its account.
    """

    pair: Pair
    most_raw: int
    points: dict[int, Point] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    low_raw: int = 0
    seized_per_repaid: float = 0.0
    obstacle: tuple[int, str, str] | None = None

    @property
    def cap_raw(self) -> int:
        """The most that the market took."""
        return max(self.points)

    @property
    def promising(self) -> list[Attempt]:
        """Attempts that the end check would let pass."""
        return [attempt for attempt in self.attempts if not attempt.over_slippage]


class Searcher:
    """Searches many accounts at once; counts what it tried."""

    def __init__(self, scene: Scene, tolerance_usd_e8: int) -> None:
        self._scene = scene
        self._min_usd_e8 = scene.terms.min_profit_usd_e8
        self._tolerance_usd_e8 = tolerance_usd_e8
        self.amounts_tried = 0
        self.runs = 0

    async def judge(self, accounts: Sequence[Account]) -> list[Unhealthy]:
        """The best found for each account and what that says of it."""
        searches = {account: [self._begin(pair) for pair in _pairs(account)] for account in accounts}
        every = [search for some in searches.values() for search in some]
        await self._probe(_open(every))
        await self._coarse(_open(every))
        await self._dense([self._worth_more(some) for some in searches.values()])
        for _ in range(_ZOOMS):
            await self._near(list(searches.values()))
        tried = [[attempt for search in some for attempt in search.attempts] for some in searches.values()]
        bests, self.runs = await best_of_each(self._scene, tried)
        return [
            self._unhealthy(account, some, best)
            for (account, some), best in zip(searches.items(), bests, strict=True)
        ]

    # --- passes ------------------------------------------------------------------------------------------------------

    def _begin(self, pair: Pair) -> _Search:
        scene, debt = self._scene, pair.debt.reserve
        if not scene.priced(debt.token, pair.collateral.reserve.token):
            return _Search(
                pair, 0, obstacle=(0, "no_price", "the Liquidator has no fresh feed for a token of the pair")
            )
        lent_raw = most_lent_raw(scene, debt.token)
        allowed_raw = scene.raw_worth(debt.token, scene.terms.max_repay_usd_e8)
        most_raw = min(pair.everything_raw, lent_raw, allowed_raw)
        if not most_raw:
            reason = "no_flash_liquidity" if not lent_raw else "over_max_repay"
            return _Search(pair, 0, obstacle=(0, reason, debt.token.symbol))
        return _Search(pair, most_raw)

    async def _probe(self, searches: Sequence[_Search]) -> None:
        """Learn what the market gives, and give up where even the pools' starting prices cannot pay."""
        await self._take([(search, search.most_raw // part) for search in searches for part in _PROBES])
        for search in searches:
            if search.points:
                search.obstacle = self._bound(search)
            else:
                reason = search.refusals[0] if search.refusals else "no amount is possible"
                search.obstacle = (1, "protocol_refuses", reason)

    async def _coarse(self, searches: Sequence[_Search]) -> None:
        await self._price([(search, point) for search in searches for point in search.points.values()])
        advice = await advised(self._scene, [search.pair for search in searches])
        wanted: list[tuple[_Search, int]] = []
        for search in searches:
            amounts = {*_breakpoints(search), *advice.get(search.pair, ())}
            amounts |= {round(amount) for amount in _grid(search.low_raw, search.cap_raw, _COARSE)}
            wanted += [(search, amount) for amount in amounts]
        await self._try(wanted)

    async def _dense(self, chosen: Iterable[Sequence[_Search]]) -> None:
        wanted: list[tuple[_Search, int]] = []
        for searches in chosen:
            for search in searches:
                step = (search.cap_raw / search.low_raw) ** (1 / _DENSE)
                wanted += [(search, round(search.low_raw * step**rung)) for rung in range(_DENSE)]
        await self._try(wanted)

    async def _near(self, accounts: Sequence[Sequence[_Search]]) -> None:
        """Between the best amount's neighbours, a few more."""
        wanted: list[tuple[_Search, int]] = []
        for searches in accounts:
            found = [(attempt, search) for search in searches for attempt in search.promising]
            if found:
                best, search = max(found, key=lambda item: item[0].net_usd_e8)
                amounts = sorted(search.points)
                at = amounts.index(best.point.repaid_raw)
                low, high = amounts[max(at - 1, 0)], amounts[min(at + 1, len(amounts) - 1)]
                wanted += [(search, low + (high - low) * rung // (_NEAR + 1)) for rung in range(1, _NEAR + 1)]
        await self._try(wanted)

    async def _try(self, wanted: Iterable[tuple[_Search, int]]) -> None:
        """Take every amount not taken yet, and price what the market accepts."""
        await self._price(await self._take(wanted))

    async def _price(self, found: Sequence[tuple[_Search, Point]]) -> None:
        search_of = {point: search for search, point in found}
        for attempt in await quoted(self._scene, list(search_of)):
            search_of[attempt.point].attempts.append(attempt)

    async def _take(self, wanted: Iterable[tuple[_Search, int]]) -> list[tuple[_Search, Point]]:
        asked = [
            (search, amount) for search, amount in dict.fromkeys(wanted) if 0 < amount <= search.most_raw
        ]
        self.amounts_tried += len(asked)
        answers = await take(self._scene, [(search.pair, amount) for search, amount in asked])
        fresh = []
        for (search, _), answer in zip(asked, answers, strict=True):
            if isinstance(answer, str):
                search.refusals.append(answer)
            elif answer.repaid_raw not in search.points and answer.seized_raw:
                search.points[answer.repaid_raw] = answer
                fresh.append((search, answer))
        return fresh

    # --- decisions ---------------------------------------------------------------------------------------------------

    def _bound(self, search: _Search) -> tuple[int, str, str] | None:
        """Why no amount can pay, or None after setting the least amount that could."""
        scene = self._scene
        search.seized_per_repaid = max(
            point.seized_raw / point.repaid_raw for point in search.points.values()
        )
        per_raw = _gain_bound(scene, search)
        if per_raw is None:
            return 2, "no_route", f"{search.pair.collateral.reserve.token.symbol} cannot be sold"
        if per_raw <= 0:
            return 3, "no_margin", "sold at the pools' starting prices it would not return the loan"
        gross_usd_e8 = scene.usd_e8(scene.profit, int(per_raw * search.cap_raw))
        needed_usd_e8 = self._min_usd_e8 + scene.gas_usd_e8(_LEAST_GAS)
        if gross_usd_e8 < needed_usd_e8:
            return 4, "too_small", f"at most ${usd(gross_usd_e8)} before gas, ${usd(needed_usd_e8)} needed"
        search.low_raw = max(search.cap_raw * needed_usd_e8 // gross_usd_e8, 1)
        return None

    def _worth_more(self, searches: Sequence[_Search]) -> list[_Search]:
        """The account's pairs of which some untried amount could change what is said of it."""
        open_ones = _open(searches)
        nets = [attempt.net_usd_e8 for search in open_ones for attempt in search.promising]
        if max(nets, default=0) > self._min_usd_e8 + self._tolerance_usd_e8:
            return []
        least_usd_e8 = self._scene.gas_usd_e8(_LEAST_GAS) + self._min_usd_e8
        return [
            search
            for search in open_ones
            if _COARSE * max((self._gross_usd_e8(attempt) for attempt in search.promising), default=0)
            >= least_usd_e8
        ]

    def _gross_usd_e8(self, attempt: Attempt) -> int:
        return self._scene.usd_e8(self._scene.profit, attempt.gross_raw)

    def _unhealthy(self, account: Account, searches: Sequence[_Search], best: Attempt | None) -> Unhealthy:
        if best is None:
            obstacles = [
                search.obstacle or (5, "no_margin", "no route returns the loan") for search in searches
            ]
            _, reason, detail = max(obstacles, default=(0, "no_collateral", ""))
        else:
            detail = ""
            reason = reason_of(self._scene, best, self._tolerance_usd_e8)
        found = None if best is None else best_of(self._scene, best)
        return Unhealthy(
            account.market.name, account.address, account.health_factor_wad, found, reason, detail
        )


def _pairs(account: Account) -> list[Pair]:
    return [Pair(account, debt, collateral) for debt in account.debts for collateral in account.collaterals]


def _open(searches: Iterable[_Search]) -> list[_Search]:
    return [search for search in searches if search.obstacle is None]


def _gain_bound(scene: Scene, search: _Search) -> float | None:
    """The most profit, in raw units per raw unit repaid, that any way of trading can bring; None without a route.

    A trade through a pool never fills better than the price it starts from, and one that goes back through a pool
    does not gain by it, so the starting prices bound every way.
    """
    pair, profit = search.pair, scene.profit
    debt, collateral = pair.debt.reserve.token, pair.collateral.reserve.token
    got = search.seized_per_repaid
    owed = 1 + min(loan.premium_bps for loan in scene.loans[debt.address]) / BPS
    rate = scene.exchanges.best_rate
    if collateral == debt:
        per_debt = 1.0 if profit == debt else rate(debt, profit)
        return (got - owed) * per_debt if per_debt else None
    bounds = []
    if to_debt := rate(collateral, debt):
        if profit == debt:
            bounds.append(got * to_debt - owed)
        elif profit == collateral:
            bounds.append(got - owed / to_debt)
        else:
            bounds.append((got * to_debt - owed) * rate(debt, profit))
            bounds.append((got - owed / to_debt) * rate(collateral, profit))
    if profit not in (debt, collateral) and (back := rate(profit, debt)):
        bounds.append(got * rate(collateral, profit) - owed / back)
    return max(bounds, default=None)


def _breakpoints(search: _Search) -> set[int]:
    """Amounts at which a rule of some Aave version changes: all, half, half of all debts, and the least leftovers."""
    debt, held, account = search.pair.debt, search.pair.collateral, search.pair.account
    owed_raw = debt.amount_raw
    amounts = {search.pair.everything_raw, owed_raw, owed_raw // 2, (owed_raw + 1) // 2, search.most_raw}
    amounts |= {search.cap_raw, search.low_raw}
    if debt.reserve.price_base:
        amounts.add(account.debt_base * 10**debt.reserve.token.decimals // (2 * debt.reserve.price_base))
        amounts |= _just_below(owed_raw - _leftover_raw(debt.reserve))
    if held.reserve.price_base:
        spare_raw = held.amount_raw - _leftover_raw(held.reserve)
        amounts |= _just_below(int(spare_raw / search.seized_per_repaid))
    return amounts


def _leftover_raw(reserve: Reserve) -> int:
    """The least of a reserve that a liquidation may leave, rounded up."""
    unit: int = 10**reserve.token.decimals
    return -(-_LEFTOVER_BASE * unit // reserve.price_base)


def _just_below(amount_raw: int) -> set[int]:
    return {amount_raw, amount_raw - amount_raw // BPS}


def _grid(low_raw: int, cap_raw: int, factor: float) -> list[float]:
    """Amounts from the least to the most, that factor apart."""
    amounts = [float(cap_raw)]
    while amounts[-1] > low_raw and len(amounts) < _MOST_COARSE:
        amounts.append(amounts[-1] / factor)
    return amounts
