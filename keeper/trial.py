"""Trying the exact calldata as at inclusion: next block's number, timestamp and base fee, in the order of sending.

A trial is the last word on profit: what the Liquidator itself would return, measured at the treasury. Plans are
tried stacked, so a second plan sees what the first one did to pools and reserves; one that fails leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keeper import abi
from keeper.chain.client import Chain
from keeper.chain.simulation import SimCall, SimResult
from keeper.charges import Charges, next_base_fee
from keeper.errors import AdapterError, ChainError
from keeper.fixed import BPS, mul_div_up
from keeper.prices import Price
from keeper.seams import each
from keeper.types import (
    Address,
    BlockNumber,
    BlockTime,
    Gas,
    Hash,
    Head,
    Log,
    Plan,
    Quote,
    Refusal,
    Reverted,
    SwapLeg,
    Token,
    Trial,
    hex_of,
)

_EXECUTE: Final = abi.load("Liquidator").function("execute")
_SKIPPED: Final = abi.load("Liquidator").event("CallSkipped")
_BALANCE, _TRANSFER = (abi.load("Erc20").function(name) for name in ("balanceOf", "transfer"))
_MOVE_GAS: Final = Gas(500_000)
_TOLLS_HOLD_BLOCKS: Final = 64
_TRIAL_GAS: Final = Gas(8_000_000)
# A call keeps a 64th of its gas for its caller, so what runs out a few calls deep leaves some of the whole.
_ALL_BUT: Final = 8
# Over a call's own limit: what its callers keep back on the way, and what the Liquidator wants to see beyond it.
_SPARE_PERCENT: Final = 125
_SPARE_FLAT: Final = 30_000
_TENTHS: Final = 10


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
                skipped=tuple(index for index, _ in skipped(attempt.plan.plan_id, result.logs)),
                spare_gas=_spare_gas(attempt.plan),
            )
        )
    return trials


def skipped(plan_id: Hash, logs: Sequence[Log]) -> list[tuple[int, str]]:
    """The calls of a plan that failed without sinking it, by the Liquidator's own word, each with its reason."""
    events = [_SKIPPED.decode(log) for log in logs if log.topics[:1] == (_SKIPPED.topic,)]
    return [
        (event["index"], explain_revert(event["reason"])) for event in events if event["planId"] == plan_id
    ]


def _spare_gas(plan: Plan) -> Gas:
    """The Liquidator reverts where a call that may fail would not get its limit, which it hardly ever uses up."""
    most = max(call.gas_limit for call in plan.calls)
    return Gas(most * _SPARE_PERCENT // 100 + _SPARE_FLAT if most else 0)


def _refused(result: SimResult) -> Refusal:
    """Why a trial failed; one that used up its gas is too large for one transaction, whatever it says itself."""
    numbers: dict[str, Any] = {"error": explain_revert(result.output)}
    if result.gas_used < _TRIAL_GAS - _TRIAL_GAS // _ALL_BUT:
        return Refusal("trial", "reverts", numbers)
    return Refusal("trial", "out_of_gas", numbers | {"gas_used": result.gas_used, "gas_limit": _TRIAL_GAS})


def nets_usd_e8(way: Sequence[tuple[Plan, Trial | Refusal]]) -> int:
    """What plans that were tried in this order net together, of what would be sent; each at the gas of its trial."""
    nets = [
        (one, trial.profit_raw + one.later_raw - one.gas_cost_raw * trial.gas_used // one.gas_estimate)
        for place, (one, trial) in enumerate(way)
        if isinstance(trial, Trial) and not (place and market_moved(one, trial))
    ]
    return sum(max(0, raw) * one.profit_price_usd_e8 // 10**one.profit_token.decimals for one, raw in nets)


def market_moved(plan: Plan, trial: Trial | Refusal) -> Refusal | None:
    """Whether those before it moved its market so far that it had better be planned anew on what they leave."""
    earned = trial.profit_raw if isinstance(trial, Trial) else plan.expected_profit_raw
    if earned * _TENTHS >= plan.expected_profit_raw * (_TENTHS - 1):
        return None
    numbers = {"profit_raw": earned, "planned_profit_raw": plan.expected_profit_raw}
    return Refusal("trial", "market_moved", numbers)


class Tolls:
    """Which tokens arrive short where they are sent, as those that take a fee on transfers do: no plan can carry one.

    Looked at only where a trial reverted, by moving some of it in a simulation, and remembered for some blocks.
    """

    def __init__(self, chain: Chain, liquidator: Address) -> None:
        self._chain = chain
        self._liquidator = liquidator
        self._known: dict[Address, tuple[int, Mapping[str, int]]] = {}

    async def blame(
        self, plan: Plan, refusal: Refusal, contracts: Mapping[str, Address], head: Head
    ) -> Refusal:
        """A trial's refusal, or `fee_on_transfer` where it reverted and a token of the pair takes one.

        `contracts` are the protocol's by name, among which those are looked for that hold the token.
        """
        if (refusal.stage, refusal.reason) != ("trial", "reverts"):
            return refusal
        option, outcome = plan.option, plan.outcome
        pair = (option.repay_token, outcome.repay_raw), (option.seize_token, outcome.seize_raw)
        try:
            for token, amount_raw in pair:
                holders = [call.target for call in plan.calls]
                holders += [at for role, at in contracts.items() if abi.checksum(token.address) in role]
                toll = await self._toll(token, amount_raw, holders, head)
                if toll:
                    named = {"token": token.symbol, "address": token.address}
                    return Refusal("trial", "fee_on_transfer", {**named, **toll, **refusal.numbers})
        except ChainError:
            return refusal  # it stands for itself; this was about its words only
        return refusal

    async def _toll(
        self, token: Token, amount_raw: int, holders: Sequence[Address], head: Head
    ) -> Mapping[str, int]:
        """What was sent and what arrived, where that is less; empty where it is not, or nobody can tell."""
        since, toll = self._known.get(token.address, (-_TOLLS_HOLD_BLOCKS, {}))
        if head.number - since < _TOLLS_HOLD_BLOCKS:
            return toll
        toll = {}
        balances = await self._chain.read(
            each([_BALANCE.call(token.address, holder) for holder in holders]), head.hash
        )
        held = [0 if isinstance(one, Reverted) or len(one) != 32 else int.from_bytes(one) for one in balances]
        sent_raw, holder = max(zip(held, holders, strict=True), default=(0, self._liquidator))
        sent_raw = min(sent_raw, amount_raw)
        if sent_raw > 0:
            mine = _BALANCE.encode(self._liquidator)
            look = SimCall(self._liquidator, token.address, mine, _MOVE_GAS)
            move = SimCall(holder, token.address, _TRANSFER.encode(self._liquidator, sent_raw), _MOVE_GAS)
            steps = await self._chain.simulate(
                [look, move, look], head, head.timestamp_s + 1, next_base_fee(head)
            )
            before, after = (int.from_bytes(steps[place].output[:32]) for place in (0, 2))
            arrived_raw = after - before
            # a node that tries each alone shows nothing arriving, which says nothing
            if steps[1].status == 1 and 0 < arrived_raw < sent_raw:
                fee_bps = mul_div_up(sent_raw - arrived_raw, BPS, sent_raw)
                toll = {"sent_raw": sent_raw, "arrived_raw": arrived_raw, "fee_bps": fee_bps}
        self._known[token.address] = head.number, toll
        return toll


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
    parts = [
        {"account": part.key.account, "repay_raw": part.repay_raw, "seize_raw": part.seize_raw}
        for part in plan.outcome.parts
    ]
    return {
        **({"accounts": parts} if parts else {}),
        **({} if option.chosen else {"strangers_market": plan.key.market}),
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
        "budgeted": plan.may_lose_usd_e8 > 0,
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
