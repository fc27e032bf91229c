"""What the operator key may sign, whoever holds its secret: the one policy behind every door.

A transaction goes to the chain it is for, to one of three places, and there calls one function; it sends no value,
which `Unsigned` cannot even say. A liquidation keeps the configured ceilings of fee and gas, and all of them together
the hourly gas budget. What stops the keeper (a cancellation, a relayed pause) has a fixed gas limit and is never
refused by the budget, nor by a fee ceiling that was lowered under what it has to outbid: it may cost what one
liquidation may.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from keeper import abi
from keeper.errors import KeyMisuse, SignerError
from keeper.guard import Fees
from keeper.keys.transaction import Unsigned
from keeper.types import NO_GAS, Address, Gas, Hash, Wei

TRANSFER_GAS: Final = Gas(21_000)
RELAY_GAS: Final = Gas(200_000)
_EXECUTE: Final = abi.load("Liquidator").function("execute").selector
_PAUSE: Final = abi.load("PauseGuard").function("pauseBySig").selector
_HOUR_S: Final = 3_600


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be signed; before `keeper deploy` there are no contracts, and only cancellations are allowed.

    `stop_gas` is what a stop may take more than its execution, where a chain charges bytes as gas.
    """

    chain_id: int
    operator: Address
    liquidator: Address | None
    pause_guard: Address | None
    max_fee_wei: Wei
    max_gas_limit: Gas
    max_gas_spend_wei_per_hour: Wei
    stop_gas: Gas = NO_GAS

    @property
    def transfer_gas(self) -> Gas:
        """The gas limit of a cancellation."""
        return Gas(TRANSFER_GAS + self.stop_gas)

    @property
    def relay_gas(self) -> Gas:
        """The gas limit of a relayed pause."""
        return Gas(RELAY_GAS + self.stop_gas)

    def liquidation(self, tx: Unsigned) -> None:
        """Raise `KeyMisuse` unless it calls the Liquidator's `execute` within the ceilings."""
        self._require(tx, self.liquidator, _EXECUTE, "a liquidation")
        if tx.fees.max_fee_wei > self.max_fee_wei:
            raise KeyMisuse(
                f"The fee {tx.fees.max_fee_wei} wei is above limits.max_fee_gwei; nothing was signed."
            )
        if tx.fees.gas_limit > self.max_gas_limit:
            raise KeyMisuse(
                f"The gas limit {tx.fees.gas_limit} is above limits.max_gas_limit; nothing was signed."
            )

    def cancellation(self, tx: Unsigned) -> None:
        """Raise `KeyMisuse` unless it is a transfer of nothing to ourselves."""
        self._require(tx, self.operator, b"", "a cancellation")
        self._stops(tx, self.transfer_gas)

    def pause_relay(self, tx: Unsigned) -> None:
        """Raise `KeyMisuse` unless it calls PauseGuard's `pauseBySig`."""
        self._require(tx, self.pause_guard, _PAUSE, "a relayed pause")
        self._stops(tx, self.relay_gas)

    def _require(self, tx: Unsigned, to: Address | None, selector: bytes, what: str) -> None:
        if tx.chain_id != self.chain_id:
            raise KeyMisuse(
                f"{what.capitalize()} is for chain {tx.chain_id}, not {self.chain_id}: not signed."
            )
        if to is None or tx.to != to:
            raise KeyMisuse(f"{what.capitalize()} may not go to {abi.checksum(tx.to)}: not signed.")
        if tx.data[:4] != selector:
            raise KeyMisuse(f"{what.capitalize()} may not call 0x{tx.data[:4].hex()}: not signed.")
        if tx.fees.tip_wei > tx.fees.max_fee_wei:
            raise KeyMisuse(f"{what.capitalize()} may not offer a tip above its fee: not signed.")

    def _stops(self, tx: Unsigned, gas_limit: Gas) -> None:
        most_wei = self.max_fee_wei * self.max_gas_limit
        if tx.fees.gas_limit != gas_limit or tx.fees.worst_case_wei > most_wei:
            raise KeyMisuse(f"A stop may take {gas_limit} gas and cost {most_wei} wei at most: not signed.")


class Budget:
    """What the liquidations signed within an hour can cost: each its dearest attempt, or what it cost in the end.

    Counted from what this process signed, apart from the ledger by which the guard counts: neither trusts the other.
    """

    def __init__(self, limit_wei: Wei, wall_clock: Callable[[], float]) -> None:
        self._limit_wei: Final = limit_wei
        self._wall_clock: Final = wall_clock
        self._signed: dict[Hash, tuple[int, int]] = {}  # by plan: when it was signed last, and its cost

    def require(self, plan_id: Hash, fees: Fees) -> None:
        """Raise `SignerError` where one more, or a replacement, would exceed the limit; later there is room again."""
        now_s = int(self._wall_clock())
        self._signed = {
            plan: (at_s, wei) for plan, (at_s, wei) in self._signed.items() if now_s - at_s < _HOUR_S
        }
        others_wei = sum(wei for plan, (_, wei) in self._signed.items() if plan != plan_id)
        total_wei = others_wei + self._dearest_wei(plan_id, fees)
        if total_wei > self._limit_wei:
            raise SignerError(
                f"Liquidations signed within an hour could cost {total_wei} wei, more than "
                f"limits.max_gas_spend_wei_per_hour allows ({self._limit_wei}); nothing was signed."
            )

    def count(self, plan_id: Hash, fees: Fees) -> None:
        """One was signed."""
        self._signed[plan_id] = (int(self._wall_clock()), self._dearest_wei(plan_id, fees))

    def settled(self, plan_id: Hash, cost_wei: int) -> None:
        """Count what a plan cost in the end, instead of what it could have."""
        if plan_id in self._signed:
            self._signed[plan_id] = (self._signed[plan_id][0], cost_wei)

    def _dearest_wei(self, plan_id: Hash, fees: Fees) -> int:
        return max(fees.worst_case_wei, self._signed.get(plan_id, (0, 0))[1])
