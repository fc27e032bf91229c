"""Each breaker trips on its numbers, clears by its own rule and no other, and a restart forgets none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keeper import abi
from keeper.breakers import Breakers, Terms
from keeper.breakers.latches import Budget, Latch, Moves
from keeper.breakers.trips import CLEARED, TAKEN_BACK, Place, clear, open_trips
from keeper.data_fee import DataFee
from keeper.errors import LedgerError
from keeper.guard import STOPPED, Spent
from keeper.ledger import Ledger
from keeper.store import Store
from keeper.types import (
    Address,
    BlockNumber,
    Gas,
    Hash,
    Head,
    Option,
    Plan,
    PositionKey,
    Refusal,
    Token,
    Wei,
)
from tests.unit.test_guard import PLAN

WETH = Token(Address(b"\x0e" * 20), "WETH", 18)
USDC = PLAN.profit_token
CALM = Spent(0, 0, 0, 0)
USD = 10**8
TERMS = Terms(
    max_gas_spend_wei_per_hour=1_000,
    max_loss_usd_e8_per_day=50 * USD,
    max_consecutive_reverts=3,
    max_repay_usd_e8=1_000 * USD,
    max_exposure_usd_e8=1_500 * USD,
    max_deviation_bps=500,
    volatility_window_s=300,
    volatility_smaller_bps=1_000,
    volatility_smaller_percent=25,
    volatility_stop_bps=3_000,
    calm_s=600,
    quorum=2,
    disagreement_window_s=3_600,
    max_reorg_depth=4,
    min_transactions=2,
)


@dataclass(slots=True)
class Bench:
    """Breakers over a real ledger, at a time of the test's own."""

    breakers: Breakers
    ledger: Ledger
    now_s: int = 10_000

    def at(self, now_s: int, prices: dict[Address, int] | None = None) -> None:
        """A head at this time."""
        self.now_s = now_s
        self.breakers.at(_head(now_s))
        self.breakers.saw({"aave": prices or {}})

    def close(
        self, spent: Spent = CALM, *refused: Refusal, in_flight: dict[Hash, PositionKey] | None = None
    ) -> list[tuple[str, str]]:
        """End a head: what was booked of it, as kind and breaker."""
        last = self.ledger.tip()[0]
        self.breakers.closed(spent, refused, in_flight or {})
        self.breakers.book()
        fresh = [each for each in reversed(self.ledger.entries(None)) if each.seq > last]
        return [(each.kind, each.body["breaker"]) for each in fresh]

    def standing(self, protocol: str = "aave", *, new: bool = True) -> str | None:
        """The breaker that stops a protocol."""
        refusal = self.breakers.standing(protocol, new=new)
        return refusal.reason if refusal else None

    def restart(self, terms: Terms = TERMS) -> None:
        """Forget everything but the ledger."""
        self.breakers = Breakers(terms, self.ledger, lambda: self.now_s)
        self.breakers.at(_head(self.now_s))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Fresh breakers."""
    with Store.open(f"sqlite:///{tmp_path / 'keeper.db'}") as store:
        bench = Bench(None, Ledger(store))  # type: ignore[arg-type]  # made at once below
        bench.restart()
        yield bench


def _head(timestamp_s: int) -> Head:
    block = Hash(timestamp_s.to_bytes(32))
    return Head(BlockNumber(timestamp_s), block, block, timestamp_s, Wei(1), Gas(1), Gas(0))


def _option(**changes: Any) -> Option:
    """A dollar of USDC against WETH at 2 000."""
    option = replace(PLAN.option, repay_token=USDC, seize_token=WETH)
    return replace(option, repay_price_base=USD, seize_price_base=2_000 * USD, **changes)


def _plan(number: int = 1, repay_usd: int = 1_000, market_pays_bps: int = 0) -> Plan:
    """Repays so much USDC for WETH worth 5 % more at the oracle; the market pays so much more for that."""
    repay_raw = repay_usd * 10**6
    seized = repay_usd * 105 // 100
    paid = seized * (10_000 + market_pays_bps) // 10_000
    return replace(
        PLAN,
        plan_id=Hash(number.to_bytes(32)),
        option=_option(),
        outcome=replace(PLAN.outcome, repay_raw=repay_raw, seize_raw=seized * 10**18 // 2_000),
        flash=replace(PLAN.flash, premium_bps=0),
        repay_usd_e8=repay_usd * USD,
        expected_profit_raw=(paid - repay_usd) * 10**6,
    )


def _weigh(bench: Bench, answer: Plan | Refusal) -> Plan | Refusal:
    def planned() -> Any:
        yield from ()
        return answer

    weighing = bench.breakers.weighing(planned(), "aave", {USDC.address})
    try:
        next(weighing)
    except StopIteration as end:
        value: Plan | Refusal = end.value
        return value
    raise AssertionError("it asked the chain")


# --- numbers alone ---------------------------------------------------------------------------------------------------

_VALUES = st.sampled_from([499, 500, 999, 1_000]) | st.integers(0, 2_000)
_STEPS = st.lists(st.tuples(_VALUES, st.integers(0, 400)), max_size=80)


@given(_STEPS)
def test_a_latch_does_not_flap(steps: list[tuple[int, int]]) -> None:
    """It trips at once at the limit, and lets go only after a calm time in which nothing reached half of it."""
    latch, now_s, tripped = Latch(1_000, 500, 600), 0, False
    seen: list[tuple[int, int]] = []
    for value, passed_s in steps:
        now_s += passed_s
        seen.append((now_s, value))
        before, tripped = tripped, latch.update(value, now_s)
        if value >= 1_000:
            assert tripped
        elif not before:
            assert not tripped, "below the limit nothing trips"
        elif not tripped:
            calm = [at_s for at_s, _ in seen[1 + max(i for i, (_, v) in enumerate(seen) if v >= 500) :]]
            assert calm and now_s - calm[0] >= 600
        else:
            loud = max(i for i, (_, v) in enumerate(seen) if v >= 500)
            assert not seen[loud + 1 :] or now_s - seen[loud + 1][0] < 600, "a calm time was over"


@given(st.lists(st.integers(500, 999), max_size=50), st.booleans())
def test_between_its_limits_a_latch_stays_as_it_is(values: list[int], tripped: bool) -> None:
    """Whatever moves between half the limit and the limit neither trips nor clears, however long it lasts."""
    latch = Latch(1_000, 500, 600, tripped)
    assert all(latch.update(value, 10_000 * place) is tripped for place, value in enumerate(values))


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 10**12)), min_size=1, max_size=40))
def test_a_move_is_the_distance_within_the_window(steps: list[tuple[int, int]]) -> None:
    """Lowest to highest of every price that held at any head of the window, exactly."""
    moves, now_s, held = Moves(300), 1_000, []
    for passed_s, price in steps:
        now_s += passed_s
        held.append((now_s, price))
        within = [p for i, (at_s, p) in enumerate(held) if at_s >= now_s - 300 or i == len(held) - 1]
        low = min(within)
        assert moves.bps(price, now_s) == (max(within) - low) * 10_000 // low
        assert moves.still(price) == (set(within) == {price})


@given(st.integers(1, 1_000), st.lists(st.tuples(st.integers(0, 1_500), st.integers(0, 1_500)), max_size=30))
def test_a_budget_waits_for_what_it_refused(limit: int, asked: list[tuple[int, int]]) -> None:
    """It refuses exactly what does not fit, and lets go only when the largest of what could fit alone does."""
    budget, largest = Budget(limit), 0
    for used, wanted in asked:
        assert budget.refuses(used, wanted) == (used + wanted > limit)
        if used + wanted > limit and wanted <= limit:
            largest = max(largest, wanted)
        fits = budget.fits(used)
        assert fits == (not largest or used + largest <= limit)
        largest = 0 if fits else largest


# --- each breaker ----------------------------------------------------------------------------------------------------


def test_a_loss_clears_with_the_day(bench: Bench) -> None:
    """Beyond the limit, not at it; booked once; over when the sum is within it again."""
    at_limit = replace(CALM, loss_usd_e8_last_day=50 * USD)
    assert bench.close(at_limit) == []
    beyond = replace(CALM, loss_usd_e8_last_day=50 * USD + 1)
    assert bench.close(beyond) == [("tripped", "loss_limit")]
    assert bench.close(beyond) == []
    assert bench.standing() == bench.standing("other") == "loss_limit"
    assert bench.close(at_limit) == [("cleared", "loss_limit")]
    assert bench.standing() is None


def test_reverts_in_a_row_wait_for_a_person(bench: Bench) -> None:
    """No success and no restart clears them; a person's word does, and only with a reason."""
    assert bench.close(replace(CALM, consecutive_reverts=2)) == []
    assert bench.close(replace(CALM, consecutive_reverts=3)) == [("tripped", "reverts_in_a_row")]
    assert bench.close(CALM) == []
    bench.restart()
    assert bench.close(CALM) == [] and bench.standing() == "reverts_in_a_row"
    [trip] = open_trips(bench.ledger).values()
    assert trip.numbers == {"reverts": 3, "limit": 3}
    with pytest.raises(LedgerError, match="--reason"):
        clear(bench.ledger, trip, " ", 1)
    clear(bench.ledger, trip, "the router was forbidden", 1)
    bench.restart()
    assert bench.standing() is None


def test_gas_waits_for_what_was_refused(bench: Bench) -> None:
    """Tripped by what the guard refused, also over a restart; over once that fits beside what was spent."""

    def refused(needed_wei: int) -> Refusal:
        return Refusal("clear", "gas_budget", {"needed_wei": needed_wei})

    assert bench.close(replace(CALM, gas_wei_last_hour=900), refused(1_001)) == [], "it would never fit"
    spent = Spent(500, 300, 0, 0)
    assert bench.close(spent, refused(400)) == [("tripped", "gas_budget")]
    assert bench.standing() == "gas_budget" and bench.standing(new=False) is None
    bench.restart()
    assert bench.close(replace(spent, in_flight_wei=101)) == []
    assert bench.close(replace(spent, in_flight_wei=100)) == [("cleared", "gas_budget")]


def test_exposure_counts_what_is_in_flight_per_protocol(bench: Bench) -> None:
    """The second plan does not fit beside the first, another protocol's does, and sizes follow what is left."""
    one, two = _plan(1), _plan(2, 600)
    assert bench.breakers.most_usd_e8("aave", [one.option]) == 1_000 * USD
    assert bench.breakers.admits(one) is None
    assert bench.breakers.admits(one) is None, "its own replacement fits"
    refusal = bench.breakers.admits(two)
    assert refusal is not None and (refusal.stage, refusal.reason) == ("clear", "exposure")
    assert refusal.numbers["in_flight_usd_e8"] == 1_000 * USD
    assert bench.breakers.admits(replace(two, key=replace(two.key, protocol="other"))) is None
    assert bench.breakers.most_usd_e8("aave", [one.option]) == 500 * USD
    assert bench.close(in_flight={one.plan_id: one.key}) == [("tripped", "exposure")]
    assert bench.standing() == "exposure" and bench.standing("other") is None
    assert bench.close() == [("cleared", "exposure")]
    assert bench.breakers.admits(two) is None


def test_exposure_of_an_earlier_run_is_what_its_intent_says(bench: Bench) -> None:
    """After a restart what is in flight counts as booked, and as the most there may be where nothing was."""
    one = _plan(1)
    bench.ledger.book("intent", one.plan_id, "aave", None, {"repay_usd_e8": 700 * USD}, 1)
    bench.close(in_flight={one.plan_id: one.key})
    assert bench.breakers.most_usd_e8("aave", []) == 800 * USD
    bench.close(in_flight={_plan(9).plan_id: one.key})
    assert bench.breakers.most_usd_e8("aave", []) == 500 * USD


@pytest.mark.parametrize("pays_bps", [600, -600])
def test_a_venue_far_from_the_feed_stops_the_token(bench: Bench, pays_bps: int) -> None:
    """Either way; other tokens go on; over after a calm time of measurements near the feed."""
    near, far = _plan(1, market_pays_bps=200), _plan(2, market_pays_bps=pays_bps)
    bench.at(10_000)
    assert isinstance(_weigh(bench, near), Plan)
    answer = _weigh(bench, far)
    assert isinstance(answer, Refusal) and answer.reason == "price_deviation"
    assert abs(answer.numbers["deviation_bps"] - pays_bps) <= 1
    assert isinstance(_weigh(bench, near), Refusal), "the token is stopped, not the plan"
    assert bench.breakers.admits(near) is not None
    other = replace(
        near, option=replace(near.option, seize_token=replace(WETH, address=Address(b"\x0f" * 20)))
    )
    assert isinstance(_weigh(bench, other), Plan)
    assert bench.close() == [("tripped", "price_deviation")] and bench.standing() is None
    bench.restart()
    for now_s, booked in ((10_100, []), (10_600, []), (10_700, [("cleared", "price_deviation")])):
        bench.at(now_s)
        assert isinstance(_weigh(bench, near), Refusal)
        assert bench.close() == booked
    assert isinstance(_weigh(bench, near), Plan)


def test_a_refused_plan_tells_the_deviation_too(bench: Bench) -> None:
    """Where the market pays so little that nothing pays, the planner's refusal trips it and stays the answer."""
    numbers = {"repay_token": USDC.address, "seize_token": WETH.address, "deviation_bps": -900}
    bench.at(10_000)
    answer = _weigh(bench, Refusal("plan", "over_slippage", numbers))
    assert isinstance(answer, Refusal) and answer.reason == "over_slippage"
    assert bench.close() == [("tripped", "price_deviation")]
    assert [place.subject for place in open_trips(bench.ledger)] == [abi.checksum(WETH.address)]


def test_a_spike_makes_sizes_smaller_and_then_stops_the_token(bench: Bench) -> None:
    """First a quarter of the size, then nothing; each lets go after its calm time, and a restart forgets neither."""
    option, token = _option(), WETH.address
    bench.at(10_000, {token: 2_000})
    bench.at(10_012, {token: 1_819})
    assert bench.close() == []
    bench.at(10_024, {token: 1_818})
    assert bench.close() == [("tripped", "volatility_smaller")]
    assert bench.breakers.most_usd_e8("aave", [option]) == 250 * USD
    assert bench.breakers.most_usd_e8("aave", [replace(option, seize_token=USDC)]) == 1_000 * USD
    assert bench.breakers.allowed([option]) == [option]
    bench.at(10_036, {token: 1_500})
    assert bench.close() == [("tripped", "volatility")]
    [refusal] = bench.breakers.allowed([option])
    assert isinstance(refusal, Refusal) and refusal.reason == "volatility"
    assert bench.standing() is None, "other tokens go on"
    assert bench.breakers.admits(replace(_plan(), option=option)) is not None
    bench.restart()
    calm_from_s = 10_400
    for now_s in range(calm_from_s, calm_from_s + 600, 12):
        bench.at(now_s, {token: 1_500})
        assert bench.close() == []
    bench.at(calm_from_s + 600, {token: 1_500})
    assert sorted(bench.close()) == [("cleared", "volatility"), ("cleared", "volatility_smaller")]
    assert bench.breakers.allowed([option]) == [option]


def test_a_quorum_of_liars_stops_everything(bench: Bench) -> None:
    """One liar of a quorum of two does not, however often; two within the window do, until it has passed."""
    for _ in range(5):
        bench.breakers.disagreed("one")
    assert bench.close() == []
    bench.now_s += 3_599
    bench.breakers.disagreed("two")
    assert bench.close() == [("tripped", "providers_disagree")]
    assert bench.standing() == bench.standing(new=False) == "providers_disagree"
    tripped_s = bench.now_s
    bench.restart()
    bench.at(tripped_s + 3_599)
    assert bench.close() == []
    bench.at(tripped_s + 3_600)
    assert bench.close() == [("cleared", "providers_disagree")]


def test_a_deep_reorganisation_waits_for_a_person(bench: Bench) -> None:
    """At the limit it goes on, beyond it nothing clears it but a person."""
    bench.breakers.reorganised(4)
    assert bench.close() == []
    bench.breakers.reorganised(5)
    assert bench.close() == [("tripped", "reorg_depth")]
    bench.breakers.reorganised(0)
    bench.restart()
    assert bench.close() == [] and bench.standing(new=False) == "reorg_depth"


def test_a_poor_operator_waits_for_twice_what_is_needed(bench: Bench) -> None:
    """Below two transactions nothing new is sent until four can be paid: a base fee that wavers flaps nothing."""
    bench.breakers.funds(2_000_000 * 100, 100)
    assert bench.close() == []
    bench.breakers.funds(2_000_000 * 100 - 1, 100)
    assert bench.close() == [("tripped", "operator_balance")]
    assert bench.standing() == "operator_balance" and bench.standing(new=False) is None
    for price_wei in (100, 60, 51):
        bench.breakers.funds(2_000_000 * 100 - 1, price_wei)
        assert bench.close() == []
    bench.breakers.funds(None, 1)
    assert bench.close() == [], "what is not known clears nothing"
    bench.breakers.funds(4_000_000 * 100, 100)
    assert bench.close() == [("cleared", "operator_balance")]


def test_what_bytes_cost_is_needed_too(bench: Bench) -> None:
    """A rollup's fee at its worst, or its gas, comes on top of each of the two transactions."""
    fee = DataFee(Wei(512), Gas(50_000))
    bench.breakers.funds(2 * (1_050_000 * 100 + 729), 100, fee)
    assert bench.close() == []
    bench.breakers.funds(2 * (1_050_000 * 100 + 729) - 1, 100, fee)
    assert bench.close() == [("tripped", "operator_balance")]


def test_changed_code_stops_its_protocol_and_tells_the_newest_change(bench: Bench) -> None:
    """The same change is booked once, another one of the same contract again; other protocols go on."""
    first, second = {"now": {"runs": "0x01"}, "was": {}}, {"now": {"runs": "0x02"}, "was": {}}
    bench.breakers.changed("aave", "pool", first)
    bench.breakers.changed("aave", "pool", first)
    assert bench.close() == [("tripped", "code_changed")]
    assert bench.standing("other") is None
    bench.breakers.changed("aave", "pool", second)
    assert bench.close() == [("tripped", "code_changed")]
    [trip] = open_trips(bench.ledger).values()
    assert trip.place == Place("code_changed", "aave", "pool") and trip.numbers["now"] == {"runs": "0x02"}
    bench.breakers.changed("", "router", first)
    assert bench.standing("other") == "code_changed"


def test_every_breaker_says_how_it_clears() -> None:
    """No breaker is without a rule, and what takes transactions back is one of them."""
    assert all(text.startswith(("by itself, once ", "by a person")) for text in CLEARED.values())
    assert set(TAKEN_BACK) <= {*CLEARED, *STOPPED}
