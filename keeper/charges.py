"""What a chain charges for: the next block's base fee, and a transaction's bytes beside its execution.

An OP-stack chain takes a fee in wei with every transaction (`GasPriceOracle.getL1Fee`, a predeploy). Arbitrum charges
gas beside what execution takes (`NodeInterface.gasEstimateL1Component`, for which nodes answer themselves: no contract
can call it). Only this module knows which chain it is: a `DataFee` has both parts, and where bytes cost nothing both
are zero. What the chain's contract does not answer is refused; no fee is ever guessed.

Rollups move their base fees by rules of their own, which headers do not tell: there the next one is taken to be an
eighth above the head's, more than the large ones' rules move it within a block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from keeper import abi
from keeper.abi.rlp import rlp, rlp_list
from keeper.chain.client import Chain
from keeper.chain.simulation import SimCall, SimResult
from keeper.data_fee import NO_DATA_FEE, DataFee, DataFeeKind
from keeper.errors import AdapterError
from keeper.seams import each
from keeper.types import ZERO_ADDRESS, Address, Call, Gas, Head, Refusal, Result, Reverted, Wei

GAS_PRICE_ORACLE: Final = abi.address("0x420000000000000000000000000000000000000F")
NODE_INTERFACE: Final = abi.address("0x00000000000000000000000000000000000000C8")

_L1_FEE: Final = abi.load("GasPriceOracle").function("getL1Fee")
_OTHER: Final = abi.load("GasPriceOracle").function("getOperatorFee").call(GAS_PRICE_ORACLE, 10**6)
_L1_GAS: Final = abi.load("NodeInterface").function("gasEstimateL1Component")
_ELASTICITY: Final = 2  # EIP-1559: the gas target is half the limit
_CHANGE_DENOMINATOR: Final = 8
_TRANSFER_GAS: Final = Gas(21_000)
_LARGE_GAS: Final = Gas(2_000_000)
# Fields that are not known before a transaction is signed, as long and as hard to compress as they get.
_UNKNOWN: Final = abi.keccak(b"fields of a transaction")


def next_base_fee(head: Head) -> Wei:
    """The base fee of the block after `head` (EIP-1559)."""
    target = max(1, head.gas_limit // _ELASTICITY)  # a node may say anything
    base = head.base_fee_wei
    if head.gas_used > target:
        rise = base * (head.gas_used - target) // target // _CHANGE_DENOMINATOR
        return Wei(base + max(rise, 1))
    return Wei(base - base * (target - head.gas_used) // target // _CHANGE_DENOMINATOR)


def stop_gas(kind: DataFeeKind) -> Gas:
    """What a cancellation or a relayed pause may take more where bytes are charged as gas; only the used is paid."""
    return Gas(1_000_000 if kind == "arbitrum" else 0)


class Charges:
    """Asks one chain about transactions by `sender` to `to`. Raises `ChainError` when no node answers."""

    def __init__(self, chain: Chain, kind: DataFeeKind, sender: Address, to: Address) -> None:
        self._chain: Final = chain
        self._kind: Final = kind
        self._sender: Final = sender
        self._to: Final = to

    def next_base_fee(self, head: Head) -> Wei:
        """What a unit of gas costs at least in the block after `head`."""
        if self._kind == "none":
            return next_base_fee(head)
        return Wei(head.base_fee_wei + -(-head.base_fee_wei // _CHANGE_DENOMINATOR))

    async def of(self, calldatas: Sequence[bytes], head: Head) -> list[DataFee | Refusal]:
        """What transactions with this calldata pay for their bytes as of `head`, in order."""
        match self._kind:
            case "op-stack":
                calls = [_L1_FEE.call(GAS_PRICE_ORACLE, self._envelope(data)) for data in calldatas]
                *fees, other = await self._chain.read(each([*calls, _OTHER]), head.hash)
                return [_unpriced(other) or _in_wei(answer) for answer in fees]
            case "arbitrum":
                calls = [_L1_GAS.call(NODE_INTERFACE, self._to, False, data) for data in calldatas]
                return [
                    _in_gas(answer) for answer in await asyncio.gather(*(self._ask(c, head) for c in calls))
                ]
            case _:
                return [NO_DATA_FEE] * len(calldatas)

    async def simulate(
        self, calldatas: Sequence[bytes], gas: Gas, head: Head, next_timestamp_s: int
    ) -> list[tuple[SimResult, DataFee | Refusal]]:
        """Try transactions stacked in the block after `head`, each with what it pays for its bytes.

        What it used counts the gas of its bytes once, if it succeeds. Some nodes count that in what they simulate and
        others do not, so a transfer of nothing to nobody goes first: whether it takes more than its 21,000 tells.
        """
        calls = [SimCall(self._sender, self._to, data, gas) for data in calldatas]
        probes = [SimCall(self._sender, ZERO_ADDRESS, b"", _LARGE_GAS)] if self._kind == "arbitrum" else []
        results, fees = await asyncio.gather(
            self._chain.simulate([*probes, *calls], head, next_timestamp_s, self.next_base_fee(head)),
            self.of(calldatas, head),
        )
        counted = any(result.gas_used > _TRANSFER_GAS for result in results[: len(probes)])
        return [
            (result if counted or result.status != 1 else _with_gas_of(result, fee), fee)
            for result, fee in zip(results[len(probes) :], fees, strict=True)
        ]

    async def fault(self, head: Head) -> str | None:
        """Why this chain is not of the configured kind, as a sentence; None where it is."""
        asked = [_L1_FEE.call(GAS_PRICE_ORACLE, b""), _OTHER]
        oracle, other = await self._chain.read(each(asked), head.hash)
        interface = await self._ask(_L1_GAS.call(NODE_INTERFACE, self._to, False, b""), head)
        told: dict[DataFeeKind, DataFee | Refusal] = {
            "op-stack": _in_wei(oracle),
            "arbitrum": _in_gas(interface),
        }
        kind = next((kind for kind, fee in told.items() if isinstance(fee, DataFee)), "none")
        if kind != self._kind:
            return f'chain.data_fee is "{self._kind}", and the chain\'s own contracts say "{kind}".'
        if kind == "op-stack" and _unpriced(other):
            return (
                "The chain charges an operator fee beside the data fee (getOperatorFee), which is not priced."
            )
        return None

    async def _ask(self, call: Call, head: Head) -> Result:
        return await self._chain.call(SimCall(self._sender, call.to, call.data, _LARGE_GAS), head)

    def _envelope(self, calldata: bytes) -> bytes:
        """The transaction as the oracle wants it: encoded, and not signed."""
        nonce, tip, fee, gas_limit = _UNKNOWN[:3], _UNKNOWN[3:9], _UNKNOWN[9:15], _UNKNOWN[15:18]
        fields: tuple[int | bytes, ...] = (
            self._chain.chain_id,
            nonce,
            tip,
            fee,
            gas_limit,
            bytes(self._to),
            0,
            calldata,
        )
        return b"\x02" + rlp_list(b"".join(map(rlp, fields)) + rlp_list(b""))


def _unpriced(operator_fee: Result) -> Refusal | None:
    """Why costs are unknown where a chain takes an operator fee; those without one may not have the function."""
    if isinstance(operator_fee, Reverted) or not any(operator_fee):
        return None
    return Refusal("trial", "operator_fee", {"fee_wei_per_million_gas": int.from_bytes(operator_fee)})


def _in_wei(answer: Result) -> DataFee | Refusal:
    return _understood(answer, GAS_PRICE_ORACLE, lambda data: DataFee(wei=Wei(_L1_FEE.one(data))))


def _in_gas(answer: Result) -> DataFee | Refusal:
    return _understood(answer, NODE_INTERFACE, lambda data: DataFee(gas=Gas(_L1_GAS.decode(data)[0])))


def _understood(answer: Result, contract: Address, fee_of: Callable[[bytes], DataFee]) -> DataFee | Refusal:
    error = repr(answer)
    if not isinstance(answer, Reverted):
        try:
            return fee_of(answer)
        except AdapterError as failure:
            error = str(failure)
    return Refusal("trial", "no_data_fee", {"contract": abi.checksum(contract), "error": error})


def _with_gas_of(result: SimResult, fee: DataFee | Refusal) -> SimResult:
    return replace(result, gas_used=Gas(result.gas_used + (fee.gas if isinstance(fee, DataFee) else 0)))
