"""The guard mints the right to sign, and nothing else does; every limit and every doubt refuses with its numbers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from keeper import abi
from keeper.errors import ConfigError, KeyMisuse
from keeper.guard import Clearance, Fees, Gate, Guard, Limits, PauseState, Scope, Spent, read_scopes, scope_of
from keeper.keys import DETERMINISTIC_DEPLOYER, DeployerKey, OperatorKey, calldata_of
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
    Plan,
    PositionKey,
    Refusal,
    Reverted,
    Token,
    Trial,
    Wei,
)

SECRET = "0x" + "11" * 32
CHAIN_ID = 31337
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
    calldata=b"\xde\xad\xbe\xef",
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
        ("gas_budget", {"spent": replace(NOTHING_SPENT, gas_wei_last_hour=10**17 - FEES.worst_case_wei + 1)}),
        ("gas_budget", {"spent": replace(NOTHING_SPENT, in_flight_wei=10**17 - FEES.worst_case_wei + 1)}),
        ("loss_limit", {"spent": replace(NOTHING_SPENT, loss_usd_e8_last_day=50 * 10**8 + 1)}),
        ("reverts_in_a_row", {"spent": replace(NOTHING_SPENT, consecutive_reverts=3)}),
    ],
)
def test_a_doubt_refuses(reason: str, changes: dict[str, Any]) -> None:
    """Each wall and each limit alone is enough, one unit beyond it, and says why with numbers."""
    answer = ask(**changes)
    assert isinstance(answer, Refusal)
    assert (answer.stage, answer.reason) == ("clear", reason)


def test_at_the_limits_it_clears() -> None:
    """One unit less than each refusal passes, so the limits mean what they say."""
    spent = Spent(10**17 - FEES.worst_case_wei, 0, 50 * 10**8, 2)
    limits = replace(LIMITS, max_repay_usd_e8=10**10, max_fee_wei=FEES.max_fee_wei)
    answer = ask(spent=spent, limits=limits, now_s=1_026.9, trial=replace(TRIAL, profit_raw=50))
    assert isinstance(answer, Clearance)


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


def operator() -> OperatorKey:
    """The hot key of these tests."""
    return OperatorKey(SECRET, CHAIN_ID, "KEEPER_PRIVATE_KEY")


def test_a_cleared_liquidation_is_signed_once() -> None:
    """The first signature is a plain EIP-1559 transaction of the operator; the second is refused."""
    key, clearance = operator(), cleared()
    signed = key.sign(LIQUIDATOR, TRIAL.calldata, 5, FEES, clearance)
    assert Account.recover_transaction(signed.raw) == abi.checksum(key.address)
    assert abi.keccak(signed.raw) == signed.hash
    assert calldata_of(signed.raw) == TRIAL.calldata
    with pytest.raises(KeyMisuse):
        key.sign(LIQUIDATOR, TRIAL.calldata, 6, FEES, clearance)


@pytest.mark.parametrize(
    "arguments",
    [
        (Address(b"\x0d" * 20), TRIAL.calldata, FEES),
        (LIQUIDATOR, TRIAL.calldata + b"\0", FEES),
        (LIQUIDATOR, TRIAL.calldata, replace(FEES, max_fee_wei=Wei(FEES.max_fee_wei + 1))),
        (LIQUIDATOR, TRIAL.calldata, replace(FEES, gas_limit=Gas(FEES.gas_limit + 1))),
    ],
)
def test_only_what_was_cleared_is_signed(arguments: tuple[Address, bytes, Fees]) -> None:
    """Another target, other calldata, a higher fee or more gas is refused, and spends the clearance."""
    to, calldata, fees = arguments
    key, clearance = operator(), cleared()
    with pytest.raises(KeyMisuse):
        key.sign(to, calldata, 5, fees, clearance)
    with pytest.raises(KeyMisuse):
        key.sign(LIQUIDATOR, TRIAL.calldata, 5, FEES, clearance)


def test_a_lookalike_is_no_clearance() -> None:
    """Something that only quacks like a clearance signs nothing."""

    class Lookalike:
        def spend(self, *_arguments: object) -> None: ...

    with pytest.raises(KeyMisuse):
        operator().sign(LIQUIDATOR, TRIAL.calldata, 5, FEES, Lookalike())  # type: ignore[arg-type]


def test_the_other_doors_are_narrow() -> None:
    """A cancellation can only send nothing to itself; a relay can only call pauseBySig."""
    key = operator()
    cancel = key.sign_cancel(9, Wei(10**9), Wei(1))
    assert calldata_of(cancel.raw) == b""
    assert Account.recover_transaction(cancel.raw) == abi.checksum(key.address)
    pause = abi.load("PauseGuard").function("pauseBySig")
    message = pause.encode(GLOBAL_SCOPE, b"DRILL\0\0\0", Hash(bytes(32)), 5, b"\x01" * 65)
    assert calldata_of(key.sign_pause_relay(LIQUIDATOR, message, 1, Wei(10), Wei(1)).raw) == message
    for other in (
        b"",
        TRIAL.calldata,
        abi.load("PauseGuard").function("executeUnpause").encode(GLOBAL_SCOPE),
    ):
        with pytest.raises(KeyMisuse):
            key.sign_pause_relay(LIQUIDATOR, other, 1, Wei(10), Wei(1))


def test_the_deployer_can_only_create() -> None:
    """Whatever it is given goes to the deterministic deployer as init code."""
    key = DeployerKey(SECRET, CHAIN_ID, "KEEPER_DEPLOYER_KEY")
    signed = key.sign_deploy(b"\x60\x00", 0, FEES)
    assert calldata_of(signed.raw) == bytes(32) + b"\x60\x00"
    assert signed.raw.count(bytes(DETERMINISTIC_DEPLOYER)) == 1


def test_a_key_shows_nothing() -> None:
    """Its repr, its state, its pickling and its errors give no secret away."""
    key = operator()
    assert SECRET[2:] not in repr(key)
    with pytest.raises(TypeError):
        vars(key)
    with pytest.raises(KeyMisuse):
        pickle.dumps(key)
    bad = "0x" + "zz" * 32
    with pytest.raises(ConfigError) as caught:
        OperatorKey(bad, CHAIN_ID, "KEEPER_PRIVATE_KEY")
    assert bad not in str(caught.value)


@pytest.mark.parametrize("answer", [Reverted(b""), b"", b"\0" * 31])
def test_an_unreadable_pause_is_unknown(answer: bytes | Reverted) -> None:
    """A revert, an empty answer (no contract there) or garbage never reads as running."""
    reads = read_scopes(LIQUIDATOR, ["aave"], AT)
    next(reads)
    with pytest.raises(StopIteration) as end:
        reads.send([answer])
    assert isinstance(end.value.value, Refusal)
    assert end.value.value.reason == "pause_unknown"
