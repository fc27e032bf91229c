"""The guard mints the right to sign, and nothing else does; every limit and every doubt refuses with its numbers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keeper import abi
from keeper.errors import KeyMisuse
from keeper.guard import Clearance, Fees, Gate, Guard, Limits, PauseState, Scope, Spent, read_scopes, scope_of
from keeper.types import (
    GLOBAL_SCOPE,
    Address,
    BlockNumber,
    BlockTime,
    FlashQuote,
    Gas,
    Hash,
    Head,
    Option,
    Outcome,
    Part,
    Plan,
    PositionKey,
    Refusal,
    Reverted,
    Token,
    Trial,
    Wei,
)

LIQUIDATOR = Address(b"\x0a" * 20)
WHO = Address(b"\x0b" * 20)
TOKEN = Token(Address(b"\x0c" * 20), "USDC", 6)
HEAD = Head(BlockNumber(100), Hash(b"\x01" * 32), Hash(bytes(32)), 1_000, Wei(10**9), Gas(30_000_000), Gas(0))
AT = BlockTime(HEAD.number, HEAD.hash, HEAD.timestamp_s)
KEY = PositionKey("aave", "0x", WHO)
FEES = Fees(Wei(3 * 10**9), Wei(10**9), Gas(900_000))
RUNNING = Scope(False, 4, 0, 0, 0, "")
PAUSE = PauseState(AT, {GLOBAL_SCOPE: RUNNING, scope_of("aave"): replace(RUNNING, epoch=7)})
NOTHING_SPENT = Spent(0, 0, 0, 0)
LIMITS = Limits(
    max_fee_wei=Wei(200 * 10**9),
    max_gas_limit=Gas(10**7),
    max_gas_spend_wei_per_hour=Wei(10**17),
    max_loss_usd_e8_per_day=50 * 10**8,
    max_consecutive_reverts=3,
    max_repay_usd_e8=10**14,
    deny_accounts=frozenset(),
    max_head_age_s=26,
)
PLAN = Plan(
    plan_id=Hash(b"\x02" * 32),
    key=KEY,
    option=Option(KEY, TOKEN, TOKEN, 1, 1, 1, 1, 1),
    outcome=Outcome(1, 1),
    flash=FlashQuote(LIQUIDATOR, TOKEN.address, 5, 10),
    calls=(),
    legs=(),
    tokens=(TOKEN.address,),
    profit_token=TOKEN,
    expected_profit_raw=100,
    min_profit_raw=50,
    gas_cost_raw=10,
    gas_estimate=800_000,
    gas_cost_wei=Wei(1),
    profit_price_usd_e8=10**8,
    repay_usd_e8=10**10,
    health_factor_wad=9 * 10**17,
    at=AT,
)
TRIAL = Trial(
    plan_id=PLAN.plan_id,
    calldata=abi.load("Liquidator").function("execute").selector + b"\xde\xad\xbe\xef",
    at=AT,
    global_epoch=4,
    protocol_epoch=7,
    last_block=BlockNumber(103),
    next_base_fee_wei=Wei(10**9),
    gas_used=Gas(700_000),
    profit_raw=100,
)


def guard(limits: Limits = LIMITS, halt_file: Path = Path("/nonexistent/halt")) -> Guard:
    """A guard that lets the standard plan pass."""
    return Guard(LIQUIDATOR, limits, Gate(halt_file, 0))


def ask(**changes: Any) -> Clearance | Refusal:
    """Clear the standard plan with some of its circumstances changed."""
    arguments: dict[str, Any] = {
        "plan": PLAN,
        "trial": TRIAL,
        "fees": FEES,
        "pause": PAUSE,
        "spent": NOTHING_SPENT,
        "head": HEAD,
        "now_s": 1_001.5,
        "native_usd_e8": 2_000 * 10**8,
    }
    limits = changes.pop("limits", LIMITS)
    return guard(limits).clear(**{**arguments, **changes})


def cleared() -> Clearance:
    """A fresh clearance for the standard plan."""
    clearance = ask()
    assert isinstance(clearance, Clearance)
    return clearance


def paused(scope: Hash) -> PauseState:
    """The standard pause state with one scope paused."""
    return PauseState(AT, {**PAUSE.scopes, scope: replace(PAUSE.scopes[scope], paused=True, reason="DRILL")})


def without(scope: Hash) -> PauseState:
    """The standard pause state with one scope unread."""
    return PauseState(AT, {key: value for key, value in PAUSE.scopes.items() if key != scope})


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("paused", {"pause": paused(GLOBAL_SCOPE)}),
        ("paused", {"pause": paused(scope_of("aave"))}),
        ("pause_unknown", {"pause": without(GLOBAL_SCOPE)}),
        ("pause_unknown", {"pause": without(scope_of("aave"))}),
        ("pause_unknown", {"pause": replace(PAUSE, at=replace(AT, hash=Hash(b"\x09" * 32)))}),
        ("pause_unknown", {"pause": Refusal("clear", "pause_unknown")}),
        ("stale_head", {"now_s": 1_027.0}),
        ("stale_trial", {"trial": replace(TRIAL, at=replace(AT, hash=Hash(b"\x09" * 32)))}),
        ("stale_trial", {"trial": replace(TRIAL, plan_id=Hash(b"\x03" * 32))}),
        ("stale_epoch", {"trial": replace(TRIAL, global_epoch=3)}),
        ("stale_epoch", {"trial": replace(TRIAL, protocol_epoch=6)}),
        ("expired", {"trial": replace(TRIAL, last_block=HEAD.number)}),
        ("unprofitable", {"trial": replace(TRIAL, profit_raw=49)}),
        ("denied_account", {"limits": replace(LIMITS, deny_accounts=frozenset({WHO}))}),
        ("over_max_repay", {"limits": replace(LIMITS, max_repay_usd_e8=10**10 - 1)}),
        ("fee_over_limit", {"limits": replace(LIMITS, max_fee_wei=Wei(FEES.max_fee_wei - 1))}),
        ("gas_over_limit", {"limits": replace(LIMITS, max_gas_limit=Gas(FEES.gas_limit - 1))}),
        ("gas_budget", {"spent": replace(NOTHING_SPENT, gas_wei_last_hour=10**17 - FEES.worst_case_wei + 1)}),
        ("gas_budget", {"spent": replace(NOTHING_SPENT, in_flight_wei=10**17 - FEES.worst_case_wei + 1)}),
        ("gas_budget", {"fees": replace(FEES, max_data_fee_wei=Wei(10**17 - FEES.worst_case_wei + 1))}),
        ("loss_limit", {"spent": replace(NOTHING_SPENT, loss_usd_e8_last_day=50 * 10**8 + 1)}),
        ("reverts_in_a_row", {"spent": replace(NOTHING_SPENT, consecutive_reverts=3)}),
    ],
)
def test_a_doubt_refuses(reason: str, changes: dict[str, Any]) -> None:
    """Each wall and each limit alone is enough, one unit beyond it, and says why with numbers."""
    answer = ask(**changes)
    assert isinstance(answer, Refusal)
    assert (answer.stage, answer.reason) == ("clear", reason)


def test_no_company_hides_a_denied_account() -> None:
    """A plan of several accounts is refused for any one of them."""
    denied = replace(KEY, account=Address(b"\x0d" * 20))
    several = replace(PLAN, outcome=Outcome(2, 2, parts=(Part(KEY, 1, 1), Part(denied, 1, 1))))
    limits = replace(LIMITS, deny_accounts=frozenset({denied.account}))
    answer = ask(plan=several, limits=limits)
    assert isinstance(answer, Refusal) and answer.numbers == {"account": denied.account}
    assert isinstance(ask(limits=limits), Clearance)


def test_room_for_gas_is_what_the_hour_leaves() -> None:
    """One transaction may have no more than the highest limit; all together what was neither spent nor is in flight."""
    spent = replace(NOTHING_SPENT, gas_wei_last_hour=10**16, in_flight_wei=2 * 10**16)
    limits = replace(LIMITS, max_gas_limit=Gas(5_000_000))
    assert guard(limits).room_gas(spent, 10**10) == (5_000_000, 7_000_000)
    assert guard(limits).room_gas(replace(spent, in_flight_wei=10**17), 10**10) == (0, 0)


def test_what_a_transaction_may_cost_is_what_all_limits_leave() -> None:
    """Of the hour's gas, and of the budget where that pays."""
    spent = replace(NOTHING_SPENT, gas_wei_last_hour=10**16, in_flight_wei=2 * 10**16, budgeted_wei=10**15)
    assert guard(BUDGET).room_wei(PLAN, spent, 2_000 * 10**8) == 7 * 10**16
    assert guard(BUDGET).room_wei(LOSING, spent, 2_000 * 10**8) == 9 * 10**15, "eighteen dollars"
    assert guard(LIMITS).room_wei(LOSING, spent, 2_000 * 10**8) == 0


def test_at_the_limits_it_clears() -> None:
    """One unit less than each refusal passes, so the limits mean what they say."""
    spent = Spent(10**17 - FEES.worst_case_wei, 0, 50 * 10**8, 2)
    limits = replace(LIMITS, max_repay_usd_e8=10**10, max_fee_wei=FEES.max_fee_wei)
    limits = replace(limits, max_gas_limit=FEES.gas_limit)
    answer = ask(spent=spent, limits=limits, now_s=1_026.9, trial=replace(TRIAL, profit_raw=50))
    assert isinstance(answer, Clearance)


# The standard fees may come to $5.40 of gas.
BUDGET = replace(LIMITS, bad_debt_budget_usd_e8_per_day=20 * 10**8)
LOSING = replace(PLAN, may_lose_usd_e8=1, min_profit_raw=0)


@pytest.mark.parametrize(
    ("limits", "spent"),
    [
        (LIMITS, NOTHING_SPENT),
        (replace(BUDGET, bad_debt_budget_usd_e8_per_day=540_000_000 - 1), NOTHING_SPENT),
        (BUDGET, replace(NOTHING_SPENT, budget_usd_e8_last_day=20 * 10**8 - 540_000_000 + 1)),
        (BUDGET, replace(NOTHING_SPENT, loss_usd_e8_last_day=50 * 10**8 - 540_000_000 + 1)),
        (BUDGET, NOTHING_SPENT.with_in_flight(replace(FEES, gas_limit=Gas(2_500_000)), budgeted=True)),
    ],
)
def test_a_plan_that_may_lose_needs_room_for_all_its_gas(limits: Limits, spent: Spent) -> None:
    """Without a budget, a unit beyond it, beyond the day's losses or beside what is in flight, it is refused with the
    numbers; one that may not lose asks nobody.
    """
    answer = ask(plan=LOSING, limits=limits, spent=spent)
    assert isinstance(answer, Refusal) and (answer.stage, answer.reason) == ("clear", "bad_debt_budget")
    assert answer.numbers["left_usd_e8"] < answer.numbers["needed_usd_e8"] == 540_000_000
    assert isinstance(ask(limits=limits, spent=spent), Clearance)


def test_a_plan_that_may_lose_may_use_up_what_is_left() -> None:
    """To the last unit of the budget and of the day's losses; what replaces it takes its place."""
    spent = replace(NOTHING_SPENT, budget_usd_e8_last_day=20 * 10**8 - 540_000_000)
    assert isinstance(ask(plan=LOSING, limits=BUDGET, spent=spent), Clearance)
    spent = replace(NOTHING_SPENT, loss_usd_e8_last_day=50 * 10**8 - 540_000_000)
    assert isinstance(ask(plan=LOSING, limits=BUDGET, spent=spent), Clearance)
    flying = NOTHING_SPENT.with_in_flight(FEES, budgeted=True)
    assert (flying.in_flight_wei, flying.budgeted_wei) == (FEES.worst_case_wei, FEES.worst_case_wei)
    assert flying.without(FEES.worst_case_wei, budgeted=True) == NOTHING_SPENT
    cheaper = replace(FEES, gas_limit=Gas(FEES.gas_limit // 2))
    both = NOTHING_SPENT.with_in_flight(cheaper, FEES.worst_case_wei, budgeted=True)
    assert both == flying, "the replaced one may be mined all the same"
    assert guard(LIMITS).budget_usd_e8(NOTHING_SPENT, 2_000 * 10**8) is None
    assert guard(BUDGET).budget_usd_e8(flying, 2_000 * 10**8) == 20 * 10**8 - 540_000_000


def test_the_halt_file_stops_everything(tmp_path: Path) -> None:
    """Its mere presence is enough, and its absence lets go on."""
    halt = tmp_path / "keeper.halt"
    stopping = guard(halt_file=halt)
    assert stopping.standing(PAUSE, "aave", HEAD, 1_001.0) is None
    halt.touch()
    refusal = stopping.standing(PAUSE, "aave", HEAD, 1_001.0)
    assert refusal is not None and refusal.reason == "halted"


def test_a_clearance_cannot_be_made_copied_or_changed() -> None:
    """Only the guard mints one; it is final, frozen, and cannot be duplicated or stored."""
    with pytest.raises(KeyMisuse):
        Clearance(object(), liquidator=LIQUIDATOR, trial=TRIAL, fees=FEES)
    clearance = cleared()
    attempts: list[Callable[[], object]] = [
        lambda: copy.copy(clearance),
        lambda: copy.deepcopy(clearance),
        lambda: pickle.dumps(clearance),
        lambda: setattr(clearance, "fees", replace(FEES, gas_limit=Gas(10**9))),
        lambda: type("Forged", (Clearance,), {}),
    ]
    for attempt in attempts:
        with pytest.raises(KeyMisuse):
            attempt()


@pytest.mark.parametrize("answer", [Reverted(b""), b"", b"\0" * 31])
def test_an_unreadable_pause_is_unknown(answer: bytes | Reverted) -> None:
    """A revert, an empty answer (no contract there) or garbage never reads as running."""
    reads = read_scopes(LIQUIDATOR, ["aave"], AT)
    next(reads)
    with pytest.raises(StopIteration) as end:
        reads.send([answer])
    assert isinstance(end.value.value, Refusal)
    assert end.value.value.reason == "pause_unknown"
