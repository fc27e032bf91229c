"""The keys of signers, for drills and for people without a hardware wallet; and whose signature one is.

An owner's key signs a Safe's transaction, a guardian's a pause or a veto, a sender's pays for what others signed.
"""

from __future__ import annotations

from typing import Final, final

from coincurve import PublicKey

from keeper import abi
from keeper.errors import KeyMisuse
from keeper.guard import Fees
from keeper.keys.key import LocalKey
from keeper.keys.transaction import Signed
from keeper.typed_data import Pause, SafeTx, pause_hash, safe_tx_hash
from keeper.types import Address, Hash

_SIGNATURE_BYTES: Final = 65
_ETH_SIGN: Final = 30  # v above it: Safe.checkNSignatures


@final
class SafeOwnerKey(LocalKey):
    """An owner of a Safe."""

    __slots__ = ()

    def sign_safe_tx(self, safe: Address, tx: SafeTx) -> bytes:
        """65 bytes over the hash that is computed here, from the fields, for this key's chain."""
        return self._typed(safe_tx_hash(self._chain_id, safe, tx))


@final
class GuardianKey(LocalKey):
    """A guardian: it can only make the keeper stop, or stay stopped."""

    __slots__ = ()

    def sign_pause(self, pause_guard: Address, pause: Pause) -> bytes:
        """65 bytes for `PauseGuard.pauseBySig`, which anybody may relay."""
        return self._typed(pause_hash(pause_guard, pause))

    def sign_pause_call(self, pause_guard: Address, pause: Pause, nonce: int, fees: Fees) -> Signed:
        """A transaction that pauses, paid by the guardian."""
        call = abi.load("PauseGuard").function("pause").encode(pause.scope, pause.reason, pause.incident)
        return self._sign(pause_guard, call, nonce, fees)

    def sign_veto_call(self, pause_guard: Address, scope: Hash, nonce: int, fees: Fees) -> Signed:
        """A transaction that vetoes a scheduled unpause."""
        return self._sign(
            pause_guard, abi.load("PauseGuard").function("vetoUnpause").encode(scope), nonce, fees
        )


@final
class SenderKey(LocalKey):
    """Whoever pays for what others signed; it decides nothing."""

    __slots__ = ()

    def sign_relay(self, to: Address, calldata: bytes, nonce: int, fees: Fees) -> Signed:
        """Send what anybody may send: a Safe's signed transaction, a signed pause, or an unpause whose delay passed."""
        guard = abi.load("PauseGuard")
        allowed = (
            abi.load("Safe").function("execTransaction"),
            guard.function("pauseBySig"),
            guard.function("executeUnpause"),
        )
        if calldata[:4] not in [function.selector for function in allowed]:
            raise KeyMisuse("The sender's key only sends what anybody may send.")
        return self._sign(to, calldata, nonce, fees)


def recovered(digest: Hash, signature: bytes) -> Address | None:
    """Whose 65-byte signature of a hash this is, as a Safe reads it; None for nobody's.

    With v 27 or 28 the hash itself was signed, with v above 30 the message that `eth_sign` makes of it.
    """
    if len(signature) != _SIGNATURE_BYTES:
        return None
    v = signature[64]
    if v > _ETH_SIGN:
        v -= 4
        digest = abi.keccak(b"\x19Ethereum Signed Message:\n32" + digest)
    if v not in (27, 28):
        return None
    try:
        key = PublicKey.from_signature_and_message(signature[:64] + bytes([v - 27]), digest, hasher=None)
    except ValueError:  # r or s out of range, or on no point of the curve
        return None
    return Address(abi.keccak(key.format(compressed=False)[1:])[12:])
