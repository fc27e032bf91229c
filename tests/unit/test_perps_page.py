"""The example of docs/perps.md: every figure follows from the page's formulas, and is what the contract's test expects.

`contracts/test/reference/PerpExample.t.sol` runs the same story on the contract.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from keeper import abi
from keeper.protocols.reference_perp import ReferencePerp, ReferencePerpConfig
from keeper.types import Address

ROOT = Path(__file__).parent.parent.parent
WAD = 10**18
_ROW = re.compile(r"^\| (?!figure)([^|]+?) \| (−?[\d.,]+) \|$", re.MULTILINE)
_CHECK = re.compile(r'check\("([^"]+)", .*, (-?[\d._]+)e18\);')


def wad(text: str) -> int:
    """A decimal number in 18-decimal fixed point, exactly."""
    value = Decimal(text.replace(",", "").replace("_", "").replace("−", "-")) * WAD
    assert value == int(value), text
    return int(value)


def shown_figures() -> dict[str, int]:
    """The page's figures by name."""
    page = (ROOT / "docs" / "perps.md").read_text()
    rows = _ROW.findall(page.split("## An example")[1])
    assert len({name for name, _ in rows}) == len(rows), "a figure stands twice"
    return {name: wad(value) for name, value in rows}


# --- the page's formulas, in integers ---------------------------------------------------------------------------------


def up(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


SKEW_SCALE = 10_000 * WAD
MIN_INITIAL, SLOPE, SCALAR, MIN_MARGIN = wad("0.09"), 10 * WAD, wad("0.5"), 10 * WAD
VELOCITY, MAKER_FEE, TAKER_FEE = 3 * WAD, wad("0.0002"), wad("0.0006")
PENALTY, SHARE, COST, MIN_REWARD, MAX_REWARD = wad("0.025"), wad("0.5"), 2 * WAD, 3 * WAD, 500 * WAD
MIN_PROFIT, MAX_REWARD_RATIO, PARTIAL, CRITICAL = wad("0.3"), wad("0.5"), wad("0.5"), wad("0.5")
WHOLE_BELOW = 100 * WAD
RAW = 10**12


@dataclass
class Account:
    """Collateral, and one position with the index it was settled at."""

    collateral: int
    size: int = 0
    cost: int = 0
    index: int = 0


@dataclass
class Market:
    """One market with its house, fund and fees."""

    mark: int
    house: Account
    traders: list[Account] = field(default_factory=list)
    rate: int = 0
    long_index: int = 0
    short_index: int = 0
    fund: int = 0
    fees: int = 0

    def skew(self) -> int:
        """The traders' longs less their shorts."""
        return -self.house.size

    def days(self, days: int) -> None:
        """Funding of some days at the present mark."""
        ratio = max(-WAD, min(WAD, self.skew() * WAD // SKEW_SCALE))
        end = self.rate + ratio * VELOCITY * days // WAD
        per_unit = (self.rate + end) * days * self.mark // (2 * WAD)
        self.rate, self.long_index, self.short_index = (
            end,
            self.long_index + per_unit,
            self.short_index - per_unit,
        )

    def index(self, size: int) -> int:
        """The index of a size's side."""
        return self.long_index if size > 0 else self.short_index

    def owed(self, who: Account) -> int:
        """Pending funding and socialized loss."""
        return up(abs(who.size) * (self.index(who.size) - who.index), WAD)

    def equity(self, who: Account) -> int:
        """What an account has at the present mark."""
        return who.collateral + who.size * self.mark // WAD - who.cost - self.owed(who)

    def margins(self, size: int) -> tuple[int, int]:
        """Initial and maintenance margin."""
        if size == 0:
            return 0, 0
        notional = up(abs(size) * self.mark, WAD)
        ratio = up(abs(size) * SLOPE, SKEW_SCALE) + MIN_INITIAL
        maintenance = up(notional * up(ratio * SCALAR, WAD), WAD)
        return up(notional * ratio, WAD) + MIN_MARGIN, maintenance + MIN_MARGIN

    def penalty(self, size: int) -> int:
        """The penalty on closing a size."""
        return up(up(abs(size) * self.mark, WAD) * PENALTY, WAD)

    def reward(self, size: int) -> int:
        """What a keeper may get in cash for closing a size."""
        share = self.penalty(size) * SHARE // WAD
        return min(max(COST + MIN_REWARD, COST * (WAD + MIN_PROFIT) // WAD, COST + share), MAX_REWARD)

    def required(self, who: Account) -> int:
        """Below this an account is liquidatable."""
        return self.margins(who.size)[1] + self.reward(who.size)

    def move(self, who: Account, delta: int, cost: int) -> None:
        """Grow a position, or reduce it without turning it; a closed part takes its share of the cost along."""
        who.collateral -= self.owed(who)
        after = who.size + delta
        grows = who.size * delta >= 0
        basis = who.cost + cost if grows else who.cost * after // who.size
        who.collateral += basis - who.cost - cost
        who.size, who.cost, who.index = after, basis, self.index(after)

    def exchange(self, who: Account, other: Account, delta: int, cost: int) -> None:
        """One takes what the other gives."""
        self.move(who, delta, cost)
        self.move(other, -delta, -cost)

    def trade(self, who: Account, delta: int) -> int:
        """Trade with the house; returns the fill price."""
        numerator = self.mark * (2 * SKEW_SCALE + 2 * self.skew() + delta)
        fill = up(numerator, 2 * SKEW_SCALE) if delta > 0 else numerator // (2 * SKEW_SCALE)
        cost = up(delta * fill, WAD)
        # In this story a buy only grows the skew and a sale only shrinks it.
        fee = up(abs(cost) * (TAKER_FEE if delta > 0 else MAKER_FEE), WAD)
        who.collateral -= fee
        self.fees += fee
        self.exchange(who, self.house, delta, cost)
        return fill

    def tier(self, who: Account) -> int:
        """The size that a liquidation may close."""
        size, equity = abs(who.size), self.equity(who)
        maintenance = self.margins(size)[1]
        notional = up(size * self.mark, WAD)
        if equity >= self.required(who):
            return 0
        if notional <= WHOLE_BELOW or equity < maintenance * CRITICAL // WAD:
            return size
        return min(size, up(size * up(notional * PARTIAL, WAD), notional))

    def close(self, who: Account, other: Account, size: int) -> None:
        """Against another account, at the mark."""
        delta = -size if who.size > 0 else size
        cost = (who.size + delta) * self.mark // WAD - who.size * self.mark // WAD
        self.exchange(who, other, delta, cost)

    def margin_of(self, who: Account, closed: int) -> int:
        """The equity that goes with a closed part."""
        before, after = self.margins(who.size)[1], self.margins(abs(who.size) - closed)[1]
        return self.equity(who) * (before - after) // before


def reckoned_figures() -> dict[str, int]:
    """The story once more, by the formulas alone."""
    f: dict[str, int] = {}
    market = Market(1000 * WAD, Account(20_000 * WAD))
    ann, ben, cy, dan = (Account(amount * WAD) for amount in (1100, 1000, 500, 1000))

    f["Ann's fill price"] = market.trade(ann, 10 * WAD)
    f["Ann's collateral"] = ann.collateral
    f["Ann's equity"] = market.equity(ann)
    f["Ann's initial margin"], f["Ann's maintenance margin"] = market.margins(ann.size)
    f["what Ann must keep"] = market.required(ann)
    f["Ben's fill price"] = market.trade(ben, -2 * WAD)
    f["Ben's collateral"] = ben.collateral

    market.mark = 950 * WAD
    market.days(1)
    f["funding rate"] = market.rate
    f["owed by one unit long"] = market.long_index
    f["Ann's equity at 950"] = market.equity(ann)
    f["Ann's maintenance margin at 950"] = market.margins(ann.size)[1]
    f["what Ann must keep at 950"] = market.required(ann)

    f["size closed"] = closed = market.tier(ann)
    margin = market.margin_of(ann, closed)
    reward = min(market.reward(closed), margin * MAX_REWARD_RATIO // WAD) // RAW * RAW
    f["charge"] = charge = min(max(market.penalty(closed), reward), margin)
    f["the keeper's reward"] = reward
    f["the fund's part"] = charge - reward
    market.fund += charge - reward
    ann.collateral -= charge
    market.close(ann, market.house, closed)
    f["Ann's equity after"] = market.equity(ann)
    f["Ann's maintenance margin after"] = market.margins(ann.size)[1]
    f["what Ann must keep after"] = market.required(ann)

    market.mark = 875 * WAD
    f["Ann's equity at 875"] = market.equity(ann)
    f["Ann's maintenance margin at 875"] = market.margins(ann.size)[1]
    f["size inherited"] = closed = market.tier(ann)
    assert market.penalty(closed) == wad("109.375")
    f["all that Ann can be charged"] = charge = min(market.penalty(closed), market.margin_of(ann, closed))
    f["Dan's discount"] = discount = charge * SHARE // WAD
    market.fund += charge - discount
    f["the fund"] = market.fund
    ann.collateral -= charge
    dan.collateral += discount
    market.close(ann, dan, closed)
    f["Dan's equity"] = market.equity(dan)

    market.mark = 642 * WAD
    f["Cy's fill price"] = market.trade(cy, -2 * WAD)
    market.mark = 640 * WAD
    f["Dan's equity at 640"] = market.equity(dan)
    deficit, f["the fund pays"] = -market.equity(dan), market.fund
    f["the loss that is left"] = loss = deficit - market.fund
    dan.collateral += market.fund
    market.fund = 0

    size = abs(dan.size)
    for winner in (ben, cy):
        part = min(abs(winner.size), size)
        profit = (winner.size * market.mark // WAD - winner.cost) * part // abs(winner.size)
        borne = up(loss * part, size)
        if profit < borne:
            assert winner is cy
            continue
        f["Ben loses"] = borne
        winner.collateral -= borne
        dan.collateral += borne
        market.close(dan, winner, part)
        size, loss = size - part, loss - borne
    f["laid on everybody"] = loss
    f["on each unit"] = per_unit = up(loss * WAD, max(abs(dan.size), abs(cy.size)))
    before = market.equity(market.house)
    market.short_index += per_unit
    dan.collateral += loss
    market.close(dan, market.house, size)
    f["the house loses"] = before - market.equity(market.house)

    for name, who in (("Ann", ann), ("Ben", ben), ("Cy", cy), ("Dan", dan), ("the house", market.house)):
        f[f"{name}'s last equity"] = market.equity(who)
    f["fees"] = market.fees
    f["tokens held"] = (20_000 + 1100 + 1000 + 500 + 1000) * WAD - reward
    equities = sum(market.equity(who) for who in (ann, ben, cy, dan, market.house))
    assert equities + market.fund + market.fees == f["tokens held"]
    return f


PARAMETERS = {
    "skewScale": SKEW_SCALE,
    "minInitialRatio": MIN_INITIAL,
    "marginSlope": SLOPE,
    "maintenanceScalar": SCALAR,
    "minMargin": MIN_MARGIN,
    "maxFundingVelocity": VELOCITY,
    "penaltyRatio": PENALTY,
    "keeperShare": SHARE,
    "minReward": MIN_REWARD,
    "minProfitRatio": MIN_PROFIT,
    "maxReward": MAX_REWARD,
    "maxRewardRatio": MAX_REWARD_RATIO,
    "partialRatio": PARTIAL,
    "criticalRatio": CRITICAL,
    "wholeBelow": WHOLE_BELOW,
    "executionCost": COST,
    "takerFee": TAKER_FEE,
    "makerFee": MAKER_FEE,
}

# --- tests ------------------------------------------------------------------------------------------------------------


def test_every_figure_follows_from_the_formulas() -> None:
    """The page's figures are what its formulas give in integers, none is missing and none too many."""
    assert shown_figures() == reckoned_figures()


def test_the_contract_is_held_to_the_same_figures() -> None:
    """The Solidity test expects exactly the page's figures of the contract."""
    source = (ROOT / "contracts" / "test" / "reference" / "PerpExample.t.sol").read_text()
    assert {name: wad(value) for name, value in _CHECK.findall(source)} == shown_figures()


def test_the_parameters_are_the_same() -> None:
    """The page, this test and the Solidity test speak of one market."""
    example = (ROOT / "docs" / "perps.md").read_text().split("## An example")[1]
    stated = re.findall(r"`(\w+)` ([\d,]*\d(?:\.\d+)?)", example.split("At a mark")[0])
    assert {name: wad(value) for name, value in stated} == PARAMETERS
    source = (ROOT / "contracts" / "test" / "reference" / "PerpExample.t.sol").read_text()
    for name, value in PARAMETERS.items():
        found = re.search(rf"{name}: ([\d._]+)e18", source)
        assert found is not None and wad(found[1]) == value, name


def test_the_page_names_every_call_of_a_takeover() -> None:
    """Whatever a keeper calls, and how it finds its own account, stands on the page by its name in the contract."""
    page = (ROOT / "docs" / "perps.md").read_text()
    config = ReferencePerpConfig(name="reference", exchange=Address(bytes(20)))
    called = {selector for _, selector in ReferencePerp(config).targets()}
    interface = abi.load("PerpExchange")
    names = ("inherit", "liquidate", "newestOf", "NEWEST", "payIn", "trade", "withdrawAll")
    assert called <= {interface.function(name).selector for name in names}
    assert [name for name in names if f"`{name}`" not in page] == []
