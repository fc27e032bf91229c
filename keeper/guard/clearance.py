"""The one mint of `Clearance`: `Guard.clear`, asked once per transaction right before it is signed.

A clearance binds one calldata to the pause epochs it was built under and to a last block, and is spent by its first
use. The contract enforces the same epochs and last block on chain, so what is cleared here can still only execute
while nothing is paused.
"""

from __future__ import annotations

from typing import Final, final

from keeper import abi
from keeper.errors import KeyMisuse
from keeper.fixed import WAD, mul_div_up
from keeper.guard.gate import Gate
from keeper.guard.limits import Fees, Limits, Spent
from keeper.guard.ramp import Ramp, Stage
from keeper.guard.scopes import PauseState, scope_of
from keeper.types import GLOBAL_SCOPE, Address, BlockNumber, Hash, Head, Plan, Refusal, Trial

_MINT: Final = (
    object()
)  # possession of this object is the right to mint; nothing outside this module reads it


@final
class Clearance:
    """The right to sign one calldata, once, while the epochs it names hold. Minted only by `Guard.clear`."""

    __slots__ = (
        "_spent",
        "calldata_hash",
        "fees",
        "global_epoch",
        "last_block",
        "liquidator",
        "plan_id",
        "protocol_epoch",
    )

    calldata_hash: Hash
    fees: Fees
    global_epoch: int
    last_block: BlockNumber
    liquidator: Address
    plan_id: Hash
    protocol_epoch: int

    def __init__(self, mint: object, *, liquidator: Address, trial: Trial, fees: Fees) -> None:
        if mint is not _MINT:
            raise KeyMisuse("A Clearance is minted only by Guard.clear; ask the guard.")
        values = {
            "_spent": [],
            "calldata_hash": abi.keccak(trial.calldata),
            "fees": fees,
            "global_epoch": trial.global_epoch,
            "last_block": trial.last_block,
            "liquidator": liquidator,
            "plan_id": trial.plan_id,
            "protocol_epoch": trial.protocol_epoch,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise KeyMisuse(f"A Clearance is frozen; {name} cannot be set.")

    def __init_subclass__(cls) -> None:
        raise KeyMisuse("Clearance is final.")

    def __copy__(self) -> Clearance:
        raise KeyMisuse("A Clearance is single-use and cannot be copied.")

    def __deepcopy__(self, _memo: object) -> Clearance:
        raise KeyMisuse("A Clearance is single-use and cannot be copied.")

    def __reduce__(self) -> str:
        raise KeyMisuse("A Clearance is single-use and cannot be stored.")

    def spend(self, calldata: bytes, to: Address, fees: Fees) -> None:
        """Use it up for exactly this transaction, or raise `KeyMisuse`."""
        spent: list[None] = object.__getattribute__(self, "_spent")
        if spent:
            raise KeyMisuse("This clearance was used already; a second transaction needs a fresh one.")
        spent.append(None)
        if to != self.liquidator or abi.keccak(calldata) != self.calldata_hash:
            raise KeyMisuse("The transaction differs from the one that was cleared.")
        if fees.max_fee_wei > self.fees.max_fee_wei or fees.gas_limit > self.fees.gas_limit:
            raise KeyMisuse("The transaction may spend more on gas than was cleared.")


class Guard:
    """Pause, limits and the local halt file, asked once per transaction right before it is signed."""

    def __init__(self, liquidator: Address, limits: Limits, gate: Gate, ramp: Ramp | None = None) -> None:
        self._liquidator = liquidator
        self._limits = limits
        self._gate = gate
        self._ramp = ramp

    def stage(self, protocol: str) -> Stage | None:
        """How small liquidations of `protocol` must still be after a pause; None where only the limits hold."""
        return self._ramp.stage(protocol) if self._ramp else None

    def room_gas(self, spent: Spent, fee_wei: int) -> tuple[int, int]:
        """How much gas one transaction may have, and all that may be sent now, at a fee per gas."""
        room = self._limits.room_wei(spent) // max(1, fee_wei)
        return min(room, self._limits.max_gas_limit), room

    def room_wei(self, plan: Plan, spent: Spent, native_usd_e8: int) -> int:
        """The most a plan's transaction may cost: what is left of the hour's gas and, where it pays, of the budget."""
        room_wei = self._limits.room_wei(spent)
        if not plan.may_lose_usd_e8:
            return room_wei
        return min(room_wei, (self.budget_usd_e8(spent, native_usd_e8) or 0) * WAD // native_usd_e8)

    @property
    def max_loss_usd_e8(self) -> int:
        """The most that a day may cost, in USD with 8 decimals."""
        return self._limits.max_loss_usd_e8_per_day

    def denies(self, account: Address) -> bool:
        """Whether the operator forbids to liquidate an account."""
        return account in self._limits.deny_accounts

    def budget_usd_e8(self, spent: Spent, native_usd_e8: int) -> int | None:
        """What liquidating bad debt may cost now, in USD with 8 decimals; None where it may cost nothing at all.

        It must fit into both its own budget and what all losses of a day may come to, so that it trips no breaker.
        """
        limits = self._limits
        if not limits.bad_debt_budget_usd_e8_per_day:
            return None
        left = min(
            limits.bad_debt_budget_usd_e8_per_day - spent.budget_usd_e8_last_day,
            limits.max_loss_usd_e8_per_day - spent.loss_usd_e8_last_day,
        )
        return max(0, left - _usd_e8(spent.budgeted_wei, native_usd_e8))

    def standing(
        self, pause: PauseState | Refusal, protocol: str, head: Head, now_s: float
    ) -> Refusal | None:
        """Why nothing of `protocol` may be signed at this head, or None; asked before any work is spent on a plan."""
        stop = self._gate.standing(protocol)
        if stop is not None:
            return stop
        if isinstance(pause, Refusal):
            return pause
        if pause.at.hash != head.hash:
            return Refusal("clear", "pause_unknown", {"read_at": pause.at.number, "head": head.number})
        for name, key in (("global", GLOBAL_SCOPE), (protocol, scope_of(protocol))):
            scope = pause.scopes.get(key)
            if scope is None:
                return Refusal("clear", "pause_unknown", {"scope": name})
            if scope.paused:
                numbers = {"scope": name, "epoch": scope.epoch, "paused_at_s": scope.paused_at_s}
                return Refusal("clear", "paused", numbers | {"pause_reason": scope.reason})
        age_s = int(now_s) - head.timestamp_s
        if age_s > self._limits.max_head_age_s:
            return Refusal(
                "clear", "stale_head", {"age_s": age_s, "max_head_age_s": self._limits.max_head_age_s}
            )
        return None

    def clear(
        self,
        plan: Plan,
        trial: Trial,
        fees: Fees,
        pause: PauseState | Refusal,
        spent: Spent,
        head: Head,
        now_s: float,
        native_usd_e8: int,
    ) -> Clearance | Refusal:
        """Mint the right to sign this trial's calldata, or refuse with the numbers.

        `pause` and `trial` must both be of `head`; `now_s` is wall-clock seconds since the epoch, `native_usd_e8` what
        a whole coin of gas costs.
        """
        refusal = self.standing(pause, plan.key.protocol, head, now_s)
        if refusal is None:
            refusal = (
                self._stale(plan, trial, pause, head)
                or self._over_limit(plan, trial, fees, spent)
                or self._over_budget(plan, fees, spent, native_usd_e8)
            )
        if refusal is not None:
            return refusal
        return Clearance(_MINT, liquidator=self._liquidator, trial=trial, fees=fees)

    def _stale(self, plan: Plan, trial: Trial, pause: PauseState | Refusal, head: Head) -> Refusal | None:
        if isinstance(pause, Refusal):
            return pause
        if trial.plan_id != plan.plan_id or trial.at.hash != head.hash:
            return Refusal("clear", "stale_trial", {"tried_at": trial.at.number, "head": head.number})
        protocol_epoch = pause.scopes[scope_of(plan.key.protocol)].epoch
        if (trial.global_epoch, trial.protocol_epoch) != (pause.global_scope.epoch, protocol_epoch):
            return Refusal(
                "clear", "stale_epoch", {"global": pause.global_scope.epoch, "protocol": protocol_epoch}
            )
        if trial.last_block <= head.number:
            return Refusal("clear", "expired", {"last_block": trial.last_block, "head": head.number})
        return None

    def _over_limit(self, plan: Plan, trial: Trial, fees: Fees, spent: Spent) -> Refusal | None:
        limits = self._limits
        denied = [key.account for key in plan.keys if self.denies(key.account)]
        if denied:
            return Refusal("clear", "denied_account", {"account": denied[0]})
        if trial.profit_raw < plan.min_profit_raw:
            numbers = {"profit_raw": trial.profit_raw, "min_profit_raw": plan.min_profit_raw}
            return Refusal("clear", "unprofitable", numbers)
        if plan.repay_usd_e8 > limits.max_repay_usd_e8:
            numbers = {"repay_usd_e8": plan.repay_usd_e8, "max_repay_usd_e8": limits.max_repay_usd_e8}
            return Refusal("clear", "over_max_repay", numbers)
        stage = self.stage(plan.key.protocol)
        if stage is not None and plan.repay_usd_e8 > stage.cap_usd_e8:
            numbers = {"repay_usd_e8": plan.repay_usd_e8, "resume_cap_usd_e8": stage.cap_usd_e8}
            return Refusal("clear", "over_resume_cap", numbers)
        if fees.max_fee_wei > limits.max_fee_wei:
            numbers = {"fee_wei": fees.max_fee_wei, "max_fee_wei": limits.max_fee_wei}
            return Refusal("clear", "fee_over_limit", numbers)
        if fees.gas_limit > limits.max_gas_limit:
            numbers = {"gas_limit": fees.gas_limit, "max_gas_limit": limits.max_gas_limit}
            return Refusal("clear", "gas_over_limit", numbers)
        worst_wei = spent.gas_wei_last_hour + spent.in_flight_wei + fees.worst_case_wei
        if worst_wei > limits.max_gas_spend_wei_per_hour:
            numbers = {"gas_wei_last_hour": spent.gas_wei_last_hour, "in_flight_wei": spent.in_flight_wei}
            numbers |= {"needed_wei": fees.worst_case_wei, "limit_wei": limits.max_gas_spend_wei_per_hour}
            return Refusal("clear", "gas_budget", numbers)
        if spent.loss_usd_e8_last_day > limits.max_loss_usd_e8_per_day:
            numbers = {
                "loss_usd_e8": spent.loss_usd_e8_last_day,
                "limit_usd_e8": limits.max_loss_usd_e8_per_day,
            }
            return Refusal("clear", "loss_limit", numbers)
        if spent.consecutive_reverts >= limits.max_consecutive_reverts:
            numbers = {"reverts": spent.consecutive_reverts, "limit": limits.max_consecutive_reverts}
            return Refusal("clear", "reverts_in_a_row", numbers)
        return None

    def _over_budget(self, plan: Plan, fees: Fees, spent: Spent, native_usd_e8: int) -> Refusal | None:
        """Whether the gas of a plan that may lose could come to more than is left for it, were it to pay nothing."""
        if not plan.may_lose_usd_e8:
            return None
        needed_usd_e8 = _usd_e8(fees.worst_case_wei, native_usd_e8)
        left_usd_e8 = self.budget_usd_e8(spent, native_usd_e8) or 0
        if needed_usd_e8 <= left_usd_e8:
            return None
        numbers = {
            "needed_usd_e8": needed_usd_e8,
            "left_usd_e8": left_usd_e8,
            "spent_usd_e8": spent.budget_usd_e8_last_day,
            "in_flight_usd_e8": _usd_e8(spent.budgeted_wei, native_usd_e8),
            "budget_usd_e8": self._limits.bad_debt_budget_usd_e8_per_day,
            "lost_usd_e8": spent.loss_usd_e8_last_day,
            "max_loss_usd_e8": self._limits.max_loss_usd_e8_per_day,
        }
        return Refusal("clear", "bad_debt_budget", numbers)


def _usd_e8(wei: int, native_usd_e8: int) -> int:
    """What so much of the native coin costs, rounded up."""
    return mul_div_up(wei, native_usd_e8, WAD)
