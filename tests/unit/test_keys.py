"""The doors of the keys and the policy behind them: what may be signed, by whoever holds the secret."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from keeper import abi
from keeper.errors import ConfigError, KeyMisuse, SignerError
from keeper.guard import Clearance, Fees
from keeper.keys import (
    DETERMINISTIC_DEPLOYER,
    DeployerKey,
    OperatorKey,
    Policy,
    RelayKey,
    calldata_of,
)
from keeper.keys.policy import Budget
from keeper.keys.signature import Signature
from keeper.keys.signers import LocalSigner
from keeper.keys.transaction import Unsigned
from keeper.types import GLOBAL_SCOPE, Address, Gas, Hash, Wei
from tests.unit import test_guard as standard

SECRET = "0x" + "11" * 32
CHAIN_ID = 31337
LIQUIDATOR, TRIAL, FEES = standard.LIQUIDATOR, standard.TRIAL, standard.FEES
PAUSE_GUARD = Address(b"\x0e" * 20)
OTHER = Address(b"\x0d" * 20)
POLICY = Policy(
    chain_id=CHAIN_ID,
    operator=LocalSigner(SECRET, "here").address,
    liquidator=LIQUIDATOR,
    pause_guard=PAUSE_GUARD,
    max_fee_wei=Wei(200 * 10**9),
    max_gas_limit=Gas(10**7),
    max_gas_spend_wei_per_hour=Wei(10**17),
)
EXECUTE = abi.load("Liquidator").function("execute").selector
PAUSE = abi.load("PauseGuard").function("pauseBySig")


class _Asked:
    """A signer that notes what reaches it."""

    def __init__(self) -> None:
        self._inner = LocalSigner(SECRET, "here")
        self.address = self._inner.address
        self.payloads: list[bytes] = []

    async def sign(self, payload: bytes) -> Signature:
        self.payloads.append(payload)
        return await self._inner.sign(payload)

    async def ready(self) -> str:
        return "Here."

    async def close(self) -> None: ...


def operator(policy: Policy = POLICY) -> tuple[OperatorKey, _Asked]:
    """The hot key of these tests, and who holds its secret."""
    signer = _Asked()
    return OperatorKey(signer, policy, lambda: 1_000.0), signer


def now(door: Coroutine[Any, Any, Any]) -> Any:
    """What a door answers without waiting for anything."""
    try:
        door.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")


def test_a_cleared_liquidation_is_signed_once() -> None:
    """The first signature is a plain EIP-1559 transaction of the operator; the second is refused."""
    key, signer = operator()
    clearance = standard.cleared()
    signed = now(key.sign(LIQUIDATOR, TRIAL.calldata, 5, FEES, clearance))
    assert Account.recover_transaction(signed.raw) == abi.checksum(key.address)
    assert abi.keccak(signed.raw) == signed.hash
    assert calldata_of(signed.raw) == TRIAL.calldata
    with pytest.raises(KeyMisuse):
        now(key.sign(LIQUIDATOR, TRIAL.calldata, 6, FEES, clearance))
    assert len(signer.payloads) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        (OTHER, TRIAL.calldata, FEES),
        (LIQUIDATOR, TRIAL.calldata + b"\0", FEES),
        (LIQUIDATOR, TRIAL.calldata, replace(FEES, max_fee_wei=Wei(FEES.max_fee_wei + 1))),
        (LIQUIDATOR, TRIAL.calldata, replace(FEES, gas_limit=Gas(FEES.gas_limit + 1))),
    ],
)
def test_only_what_was_cleared_is_signed(arguments: tuple[Address, bytes, Fees]) -> None:
    """Another target, other calldata, a higher fee or more gas is refused, and spends the clearance."""
    to, calldata, fees = arguments
    key, signer = operator()
    clearance = standard.cleared()
    with pytest.raises(KeyMisuse):
        now(key.sign(to, calldata, 5, fees, clearance))
    with pytest.raises(KeyMisuse):
        now(key.sign(LIQUIDATOR, TRIAL.calldata, 5, FEES, clearance))
    assert not signer.payloads


def test_a_lookalike_is_no_clearance() -> None:
    """Something that only quacks like a clearance signs nothing."""

    class Lookalike:
        plan_id = TRIAL.plan_id

        def spend(self, *_arguments: object) -> None: ...

    key, signer = operator()
    with pytest.raises(KeyMisuse):
        now(key.sign(LIQUIDATOR, TRIAL.calldata, 5, FEES, Lookalike()))  # type: ignore[arg-type]
    assert not signer.payloads


def test_the_other_doors_are_narrow() -> None:
    """A cancellation can only send nothing to itself; a relay can only call pauseBySig, and only on the PauseGuard."""
    key, signer = operator()
    cancel = now(key.sign_cancel(9, Wei(10**9), Wei(1)))
    assert calldata_of(cancel.raw) == b""
    assert Account.recover_transaction(cancel.raw) == abi.checksum(key.address)
    message = PAUSE.encode(GLOBAL_SCOPE, b"DRILL\0\0\0", Hash(bytes(32)), 5, b"\x01" * 65)
    assert calldata_of(now(key.sign_pause_relay(PAUSE_GUARD, message, 1, Wei(10), Wei(1))).raw) == message
    unpause = abi.load("PauseGuard").function("executeUnpause").encode(GLOBAL_SCOPE)
    for to, data in (
        (PAUSE_GUARD, b""),
        (PAUSE_GUARD, TRIAL.calldata),
        (PAUSE_GUARD, unpause),
        (OTHER, message),
    ):
        with pytest.raises(KeyMisuse):
            now(key.sign_pause_relay(to, data, 1, Wei(10), Wei(1)))
    assert len(signer.payloads) == 2


def test_the_operator_has_three_doors() -> None:
    """Whatever else is public on the key signs nothing."""
    doors = {name for name, _ in inspect.getmembers(OperatorKey, callable) if not name.startswith("_")}
    assert doors == {"sign", "sign_cancel", "sign_pause_relay", "settled", "ready", "close"}


def _liquidation(**changes: Any) -> Unsigned:
    return replace(Unsigned(CHAIN_ID, LIQUIDATOR, EXECUTE + b"\x01", 1, FEES), **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chain_id": 1}, "chain 1"),
        ({"to": OTHER}, "may not go to"),
        ({"to": PAUSE_GUARD}, "may not go to"),
        ({"data": b""}, "may not call"),
        ({"data": EXECUTE[:3]}, "may not call"),
        ({"data": b"\xff" + EXECUTE}, "may not call"),
        ({"data": abi.load("Liquidator").function("sweep").selector + b"\x01"}, "may not call"),
        ({"fees": replace(FEES, max_fee_wei=Wei(POLICY.max_fee_wei + 1))}, "max_fee_gwei"),
        ({"fees": replace(FEES, gas_limit=Gas(POLICY.max_gas_limit + 1))}, "max_gas_limit"),
        ({"fees": replace(FEES, tip_wei=Wei(FEES.max_fee_wei + 1))}, "tip"),
    ],
)
def test_the_policy_of_liquidations(changes: dict[str, Any], words: str) -> None:
    """Each rule alone refuses, one unit or one byte beyond what passes."""
    POLICY.liquidation(_liquidation())
    edge = replace(FEES, max_fee_wei=POLICY.max_fee_wei, gas_limit=POLICY.max_gas_limit)
    POLICY.liquidation(_liquidation(fees=edge))
    with pytest.raises(KeyMisuse, match=words):
        POLICY.liquidation(_liquidation(**changes))


@given(st.binary(max_size=40), st.binary(min_size=20, max_size=20), st.integers(1, 2**30))
def test_nothing_else_passes(data: bytes, to: bytes, chain_id: int) -> None:
    """Random targets, calldata and chains are refused by every rule."""
    tx = Unsigned(chain_id, Address(to), data, 1, FEES)
    for rule in (POLICY.liquidation, POLICY.cancellation, POLICY.pause_relay):
        with pytest.raises(KeyMisuse):
            rule(tx)


def test_a_stop_costs_at_most_what_a_liquidation_may() -> None:
    """It may outbid what an older, higher fee limit allowed, but has one gas limit and a price in money."""
    most_wei = POLICY.max_fee_wei * POLICY.max_gas_limit // 21_000
    key, signer = operator()
    now(key.sign_cancel(1, Wei(most_wei), Wei(1)))
    with pytest.raises(KeyMisuse, match="at most"):
        now(key.sign_cancel(1, Wei(most_wei + 1), Wei(1)))
    assert len(signer.payloads) == 1
    more = Unsigned(CHAIN_ID, key.address, b"", 1, Fees(Wei(1), Wei(1), Gas(21_001)))
    with pytest.raises(KeyMisuse, match="21000 gas"):
        POLICY.cancellation(more)


def test_a_stop_has_gas_for_its_bytes_where_they_cost_gas() -> None:
    """On such a chain both kinds may take that much more, and no more."""
    policy = replace(POLICY, stop_gas=Gas(1_000_000))
    key, _ = operator(policy)
    assert now(key.sign_cancel(1, Wei(10**9), Wei(1))).gas_limit == 1_021_000
    relayed = now(key.sign_pause_relay(PAUSE_GUARD, PAUSE.selector, 1, Wei(10**9), Wei(1)))
    assert relayed.gas_limit == 1_200_000
    with pytest.raises(KeyMisuse, match="1021000 gas"):
        policy.cancellation(Unsigned(CHAIN_ID, key.address, b"", 1, Fees(Wei(1), Wei(1), Gas(21_000))))


def test_a_transactions_bytes_count_in_the_budget() -> None:
    """What a chain may take for them beside the gas is part of what a liquidation can cost."""
    fees = replace(FEES, max_data_fee_wei=Wei(7))
    assert fees.worst_case_wei == FEES.worst_case_wei + 7
    key, signer = operator(replace(POLICY, max_gas_spend_wei_per_hour=Wei(FEES.worst_case_wei + 6)))
    with pytest.raises(SignerError, match="max_gas_spend_wei_per_hour"):
        now(key.sign(LIQUIDATOR, TRIAL.calldata, 5, fees, standard.cleared()))
    assert signer.payloads == []


def test_before_deployment_nothing_but_a_cancellation_is_signed() -> None:
    """Without contracts there is nowhere to send a liquidation or a pause to."""
    bare = replace(POLICY, liquidator=None, pause_guard=None)
    key, signer = operator(bare)
    with pytest.raises(KeyMisuse, match="may not go to"):
        now(key.sign(LIQUIDATOR, TRIAL.calldata, 5, FEES, standard.cleared()))
    with pytest.raises(KeyMisuse, match="may not go to"):
        now(key.sign_pause_relay(PAUSE_GUARD, PAUSE.selector, 1, Wei(10), Wei(1)))
    assert not signer.payloads


# --- the budget ------------------------------------------------------------------------------------------------------


def _charge(budget: Budget, plan_id: Hash, wei: int) -> None:
    fees = Fees(Wei(wei), Wei(1), Gas(1))
    budget.require(plan_id, fees)
    budget.count(plan_id, fees)


def test_the_budget_counts_each_plan_once_and_forgets_it_after_an_hour() -> None:
    """A replacement costs what its dearest attempt may, an outcome what it did, and an hour later nothing counts."""
    clock = 1_000.0
    budget = Budget(Wei(100), lambda: clock)
    one, two, three, four = (Hash(bytes([number]) * 32) for number in (1, 2, 3, 4))
    _charge(budget, one, 60)
    _charge(budget, one, 50)
    with pytest.raises(SignerError, match="101 wei"):
        _charge(budget, two, 41)
    _charge(budget, two, 40)
    with pytest.raises(SignerError, match="max_gas_spend_wei_per_hour"):
        _charge(budget, three, 1)
    budget.settled(one, 20)
    _charge(budget, three, 40)
    with pytest.raises(SignerError):
        _charge(budget, one, 21)
    clock += 3_599
    with pytest.raises(SignerError):
        _charge(budget, four, 1)
    clock += 1
    _charge(budget, four, 100)


def test_a_spent_budget_stops_liquidations_and_no_cancellation() -> None:
    """What stops the keeper is signed when there is no money left for anything else."""
    key, signer = operator(replace(POLICY, max_gas_spend_wei_per_hour=Wei(FEES.worst_case_wei)))
    now(key.sign(LIQUIDATOR, TRIAL.calldata, 5, FEES, standard.cleared()))
    other = replace(TRIAL, plan_id=Hash(b"\x03" * 32))
    clearance = standard.ask(trial=other, plan=replace(standard.PLAN, plan_id=other.plan_id))
    assert isinstance(clearance, Clearance)
    with pytest.raises(SignerError, match="max_gas_spend_wei_per_hour"):
        now(key.sign(LIQUIDATOR, TRIAL.calldata, 6, FEES, clearance))
    assert len(signer.payloads) == 1
    now(key.sign_cancel(5, Wei(4 * 10**9), Wei(10**9)))
    assert len(signer.payloads) == 2


@pytest.mark.parametrize(
    "loading",
    [
        "keeper.keys.signers.from_keystore(pathlib.Path('keystore'), '')",
        "keeper.deploy._web3('http://127.0.0.1:1')",
    ],
)
def test_libraries_do_not_open_a_way_to_crash(tmp_path: Path, loading: str) -> None:
    """With them loaded, an answer nested 100,000 deep is still an error in Python and not the end of the process."""
    (tmp_path / "keystore").write_text('{"version": 3}')
    code = f"""
import msgspec, pathlib, sys, keeper.deploy, keeper.errors, keeper.keys.signers
try:
    {loading}
except keeper.errors.ConfigError:
    pass
assert "py_ecc" in sys.modules
try:
    msgspec.json.decode(b"[" * 100_000)
except RecursionError:
    print("refused")
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, "refused\n"), run.stderr


# --- the other keys --------------------------------------------------------------------------------------------------


def test_the_deployer_can_only_create() -> None:
    """Whatever it is given goes to the deterministic deployer as init code."""
    key = DeployerKey(SECRET, CHAIN_ID, "KEEPER_DEPLOYER_KEY")
    signed = key.sign_deploy(b"\x60\x00", 0, FEES)
    assert calldata_of(signed.raw) == bytes(32) + b"\x60\x00"
    assert signed.raw.count(bytes(DETERMINISTIC_DEPLOYER)) == 1


@pytest.mark.parametrize(
    "key",
    [
        operator()[0],
        OperatorKey(LocalSigner(SECRET, "here"), POLICY, lambda: 0.0),
        DeployerKey(SECRET, CHAIN_ID, "a key"),
        RelayKey(SECRET, 1, "a key"),
        LocalSigner(SECRET, "here"),
    ],
    ids=lambda key: type(key).__name__,
)
def test_a_key_shows_nothing(key: Any) -> None:
    """Its repr and its state give no secret away, and it can be neither pickled nor copied."""
    assert SECRET[2:] not in repr(key) and abi.checksum(key.address) in repr(key)
    with pytest.raises(TypeError):
        vars(key)
    attempts: list[Callable[[], object]] = [
        lambda: pickle.dumps(key),
        lambda: copy.copy(key),
        lambda: copy.deepcopy(key),
    ]
    for attempt in attempts:
        with pytest.raises(KeyMisuse):
            attempt()


@pytest.mark.parametrize("bad", ["0x" + "zz" * 32, "12" * 31, "12" * 33, "00" * 32, "f" * 64, ""])
def test_a_mistyped_key_is_not_quoted(bad: str) -> None:
    """The error names where it came from, never what it is."""
    with pytest.raises(ConfigError, match="KEEPER_PRIVATE_KEY") as caught:
        LocalSigner(bad, "KEEPER_PRIVATE_KEY")
    assert not bad or bad not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_signer_that_fails_signs_nothing() -> None:
    """Its error comes out of the door as it is, and costs nothing of the budget however often it comes."""

    class Failing(_Asked):
        away = True

        async def sign(self, payload: bytes) -> Signature:
            if self.away:
                raise SignerError("The signer is away.")
            return await super().sign(payload)

    signer = Failing()
    tight = replace(POLICY, max_gas_spend_wei_per_hour=Wei(FEES.worst_case_wei))
    key = OperatorKey(signer, tight, lambda: 0.0)
    for number in range(5):
        plan_id = Hash(bytes([number]) * 32)
        clearance = standard.ask(
            trial=replace(TRIAL, plan_id=plan_id), plan=replace(standard.PLAN, plan_id=plan_id)
        )
        assert isinstance(clearance, Clearance)
        with pytest.raises(SignerError, match="away"):
            await key.sign(LIQUIDATOR, TRIAL.calldata, 5, FEES, clearance)
    signer.away = False
    assert (await key.sign(LIQUIDATOR, TRIAL.calldata, 5, FEES, standard.cleared())).nonce == 5
