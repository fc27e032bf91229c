"""What a Safe transaction does, call by call, decoded by the interfaces this repository pins.

A call is believed to be a function of ours only if its arguments, encoded again, give the same bytes: so nothing can
hide behind padding, odd offsets or what follows the arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from keeper import abi
from keeper.errors import AdapterError
from keeper.guard.sightings import batched
from keeper.installation import LIQUIDATOR, PAUSE_GUARD
from keeper.multisig.safe import DELEGATE_CALL
from keeper.typed_data import SafeTx
from keeper.types import Address

SAFE: Final = abi.load("Safe")
_MULTI_SEND: Final = abi.load("MultiSend").function("multiSend")

# MultiSendCallOnly by address, as deployed for every chain, and the hash of its code.
# Source: safe-deployments, v1.3.0 (canonical and eip155) and v1.4.1 (canonical).
CALL_ONLY: Final = {
    abi.address("0x9641d764fc13c8B624c04430C7356C1C7C8102e2"): bytes.fromhex(
        "ecd5bd14a08c5d2122379900b2f272bdf107a7e92423c10dd5fe3254386c9939"
    ),
    abi.address("0x40A2aCCbd92BCA938b02010E17A5b8929b49130D"): bytes.fromhex(
        "a9865ac2d9c7a1591619b188c4d88167b50df6cc0c5327fcbd1c8c75f7c066ad"
    ),
    abi.address("0xA1dabEF33b3B82c7814B6D82A79e50F4AC44102B"): bytes.fromhex(
        "a9865ac2d9c7a1591619b188c4d88167b50df6cc0c5327fcbd1c8c75f7c066ad"
    ),
}


@dataclass(frozen=True, slots=True)
class Pins:
    """The contracts and protocols of the configuration, which a transaction is compared with."""

    chain_id: int
    safe: Address
    pause_guard: Address
    liquidator: Address
    protocols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decoded:
    """One call: `contract` is whose function it is, empty where the target is none of ours.

    `function` is its name, empty where no function of that contract was called; `arguments` go by name.
    """

    to: Address
    value_wei: int
    data: bytes
    operation: int
    contract: str
    function: str
    signature: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """A transaction's calls in order; `batch` is the MultiSend that makes them, `fault` why one cannot be read."""

    calls: tuple[Decoded, ...]
    batch: Address | None = None
    fault: str | None = None


def read(safe: Address, tx: SafeTx, pins: Pins | None) -> Reading:
    """Decode a transaction; without `pins` a target is named by the function that is called."""
    if tx.operation == DELEGATE_CALL and tx.data[:4] == _MULTI_SEND.selector:
        try:
            [packed] = _MULTI_SEND.decode_input(tx.data)
            if _MULTI_SEND.encode(packed) != tx.data:
                raise AdapterError("its calldata holds more than the batch.")
            calls = tuple(_decoded(safe, *call, pins) for call in _unpacked(packed))
        except AdapterError as error:
            return Reading((), tx.to, str(error))
        return Reading(calls, tx.to, None if calls else "the batch is empty.")
    return Reading((_decoded(safe, tx.operation, tx.to, tx.value_wei, tx.data, pins),))


def _unpacked(packed: bytes) -> Iterator[tuple[int, Address, int, bytes]]:
    """MultiSend's packed calls. Raises AdapterError where they do not end where the bytes do."""
    for call in batched(packed):
        if not call.whole:
            raise AdapterError(f"the call at byte {call.at} of the batch runs over its end.")
        yield call.operation, call.to, call.value_wei, call.data


def _decoded(
    safe: Address, operation: int, to: Address, value_wei: int, data: bytes, pins: Pins | None
) -> Decoded:
    for contract, interface in _candidates(safe, to, pins):
        function = interface.called_by(data)
        if function is not None:
            values = _exactly(function, data)
            if values is not None:
                arguments = dict(zip(function.names, values, strict=True))
                named = (contract, function.name, function.signature)
                return Decoded(to, value_wei, data, operation, *named, arguments)
        if pins is not None or contract == "Safe":
            return Decoded(to, value_wei, data, operation, contract, "", "", {})
    return Decoded(to, value_wei, data, operation, "", "", "", {})


def _exactly(function: abi.Function, data: bytes) -> tuple[Any, ...] | None:
    """The arguments, if they are all there is."""
    try:
        values = function.decode_input(data)
        return values if function.encode(*values) == data else None
    except AdapterError:
        return None


def _candidates(safe: Address, to: Address, pins: Pins | None) -> list[tuple[str, abi.Abi]]:
    if to == safe:
        return [("Safe", SAFE)]
    if pins is None:
        return [("PauseGuard", PAUSE_GUARD), ("Liquidator", LIQUIDATOR)]
    known = {pins.pause_guard: ("PauseGuard", PAUSE_GUARD), pins.liquidator: ("Liquidator", LIQUIDATOR)}
    return [known[to]] if to in known else []
