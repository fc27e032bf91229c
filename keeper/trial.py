"""Trying the exact calldata as at inclusion: next block's number, timestamp and base fee, in the order of sending.

A trial is the last word on profit: what the Liquidator itself would return, measured at the treasury. Plans are
tried stacked, so a second plan sees what the first one did to pools and reserves; one that fails leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keeper import abi
from keeper.chain.simulation import SimResult
from keeper.charges import Charges
from keeper.errors import AdapterError
from keeper.prices import Price
from keeper.types import (
    Address,
    BlockNumber,
    BlockTime,
    Gas,
    Head,
    Plan,
    Quote,
    Refusal,
    SwapLeg,
    Trial,
    hex_of,
)

_EXECUTE: Final = abi.load("Liquidator").function("execute")
_TRIAL_GAS: Final = Gas(8_000_000)
# A call keeps a 64th of its gas for its caller, so what runs out a few calls deep leaves some of the whole.
_ALL_BUT: Final = 8


@dataclass(frozen=True, slots=True)
class Attempt:
    """A plan with the calldata that would be sent and what that calldata is pinned to."""

    plan: Plan
    calldata: bytes
    global_epoch: int
    protocol_epoch: int
    last_block: BlockNumber


async def try_stacked(
    charges: Charges, attempts: Sequence[Attempt], head: Head, next_timestamp_s: int, liquidator: Address
) -> list[Trial | Refusal]:
    """Run the attempts one after another in a simulated next block; answers keep the order of `attempts`.

    Raises `ChainError` when the node cannot simulate.
    """
    if not attempts:
        return []
    tried = await charges.simulate([each.calldata for each in attempts], _TRIAL_GAS, head, next_timestamp_s)
    at = BlockTime(head.number, head.hash, head.timestamp_s)
    trials: list[Trial | Refusal] = []
    for attempt, (result, fee) in zip(attempts, tried, strict=True):
        if result.status != 1:
            trials.append(_refused(result))
            continue
        if isinstance(fee, Refusal):
            trials.append(fee)
            continue
        try:
            profit_raw = _EXECUTE.one(result.output)
        except AdapterError:
            # an address without code "succeeds" and returns nothing
            trials.append(Refusal("trial", "no_liquidator", {"liquidator": abi.checksum(liquidator)}))
            continue
        trials.append(
            Trial(
                plan_id=attempt.plan.plan_id,
                calldata=attempt.calldata,
                at=at,
                global_epoch=attempt.global_epoch,
                protocol_epoch=attempt.protocol_epoch,
                last_block=attempt.last_block,
                next_base_fee_wei=charges.next_base_fee(head),
                gas_used=result.gas_used,
                profit_raw=profit_raw,
                data_fee_wei=fee.wei,
                data_gas=fee.gas,
            )
        )
    return trials


def _refused(result: SimResult) -> Refusal:
    """Why a trial failed; one that used up its gas is too large for one transaction, whatever it says itself."""
    numbers: dict[str, Any] = {"error": explain_revert(result.output)}
    if result.gas_used < _TRIAL_GAS - _TRIAL_GAS // _ALL_BUT:
        return Refusal("trial", "reverts", numbers)
    return Refusal("trial", "out_of_gas", numbers | {"gas_used": result.gas_used, "gas_limit": _TRIAL_GAS})


def explain_revert(data: bytes) -> str:
    """Revert data in words: the Liquidator's, with the protocol's own in it; what nobody names stays bytes."""
    return _in_words(data, lambda carried: _in_words(carried, hex_of))


def _in_words(data: bytes, inner: Callable[[bytes], str]) -> str:
    for name in ("Liquidator", "PauseGuard", "AavePool", "PerpExchange"):
        text = abi.load(name).error(data, inner)
        if text is not None:
            return text
    return hex_of(data)


def describe(
    plan: Plan, trial: Trial, native: Price | Refusal, profit: Price | Refusal, policy: str
) -> dict[str, Any]:
    """A plan and its trial in the ledger's words, with the prices and the policy it was decided by."""
    option = plan.option
    return {
        "policy": policy,
        "block": plan.at.number,
        "block_hash": plan.at.hash,
        "health_factor_wad": plan.health_factor_wad,
        "repay_token": option.repay_token.address,
        "repay_raw": plan.outcome.repay_raw,
        "repay_usd_e8": plan.repay_usd_e8,
        "repay_price_base": option.repay_price_base,
        "repay_round": option.repay_round,
        "seize_token": option.seize_token.address,
        "seize_raw": plan.outcome.seize_raw,
        "seize_price_base": option.seize_price_base,
        "bad_debt_raw": plan.outcome.bad_debt_raw,
        "seize_round": option.seize_round,
        "flash_source": plan.flash.source,
        "flash_premium_bps": plan.flash.premium_bps,
        "swaps": [_swap(leg, quote) for leg, quote in zip(plan.legs, plan.quotes, strict=True)],
        "profit_token": plan.profit_token.address,
        "profit_decimals": plan.profit_token.decimals,
        "profit_price_usd_e8": plan.profit_price_usd_e8,
        "profit_round": profit.round_id if isinstance(profit, Price) else None,
        "native_price_usd_e8": native.usd_e8_up if isinstance(native, Price) else None,
        "native_round": native.round_id if isinstance(native, Price) else None,
        "planned_profit_raw": plan.expected_profit_raw,
        "expected_profit_raw": trial.profit_raw,
        "min_profit_raw": plan.min_profit_raw,
        "later_raw": plan.later_raw,
        "gas_estimate": plan.gas_estimate,
        "tried_gas": trial.gas_used,
        "data_fee_wei": trial.data_fee_wei,
        "data_gas": trial.data_gas,
        "gas_cost_raw": plan.gas_cost_raw,
        "next_base_fee_wei": trial.next_base_fee_wei,
        "global_epoch": trial.global_epoch,
        "protocol_epoch": trial.protocol_epoch,
        "last_block": trial.last_block,
    }


def _swap(leg: SwapLeg, quote: Quote) -> dict[str, Any]:
    """A leg as it is sent, beside what it was quoted."""
    return {
        "router": leg.router,
        "path": leg.path,
        "exact_out": leg.exact_out,
        "quoted_in_raw": quote.amount_in_raw,
        "quoted_out_raw": quote.amount_out_raw,
        "limit_raw": leg.limit_raw,
    }
