"""The only module that can sign, and the few things it will sign.

The operator key has doors, not a general signature: a cleared liquidation, a cancellation that can only be a
zero-value transfer to itself, and a relayed pause that can only call `PauseGuard.pauseBySig`. The deployer key can
only create contracts through the deterministic deployer, the relay key only vouch for a request to a relay. The keys of
signers are for drills and for people without a hardware wallet: an owner's signs a Safe's transaction, a guardian's a
pause or a veto, a sender's pays for what others signed. No key's secret can be read back, printed or pickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from coincurve import PrivateKey, PublicKey
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from eth_utils.exceptions import ValidationError
from hexbytes import HexBytes

from keeper import abi
from keeper.abi.rlp import rlp, rlp_list
from keeper.errors import ConfigError, KeyMisuse
from keeper.guard import Clearance, Fees
from keeper.typed_data import Pause, SafeTx, pause_hash, safe_tx_hash
from keeper.types import Address, Gas, Hash, Wei, hex_of

_TRANSFER_GAS: Final = Gas(21_000)
RELAY_GAS: Final = Gas(200_000)
_SIGNATURE_BYTES: Final = 65
_ETH_SIGN: Final = 30  # v above it: Safe.checkNSignatures
_TYPE_2: Final = b"\x02"
_NO_ACCESS_LIST: Final = b"\xc0"
_HALF_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0  # as PauseGuard's
DETERMINISTIC_DEPLOYER: Final = abi.address("0x4e59b44847b379578588920cA78FbF26c0B4956C")


@dataclass(frozen=True, slots=True)
class Signed:
    """A signed transaction, ready to broadcast."""

    raw: bytes
    hash: Hash
    nonce: int


class _Key:
    """A secp256k1 key; subclasses decide what may be signed."""

    __slots__ = ("__secret", "_chain_id", "address")

    def __init__(self, secret: str, chain_id: int, where: str) -> None:
        try:
            account: LocalAccount = Account.from_key(secret)
        except (
            ValueError,
            TypeError,
            ValidationError,
        ):  # without its cause: the message may quote the secret
            raise ConfigError(f"{where} is not a private key: it must be 32 bytes in hex.") from None
        self.__secret = PrivateKey(bytes(account.key))
        self._chain_id = chain_id
        self.address: Final = abi.address(account.address)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({abi.checksum(self.address)})"

    def __reduce__(self) -> str:
        raise KeyMisuse("A key cannot be stored or copied.")

    def _sign(self, to: Address, data: bytes, nonce: int, fees: Fees) -> Signed:
        """An EIP-1559 transaction, written out here because a library's general way takes ten times as long."""
        fields: tuple[int | bytes, ...] = (
            self._chain_id,
            nonce,
            fees.tip_wei,
            fees.max_fee_wei,
            fees.gas_limit,
            bytes(to),
            0,
            data,
        )
        unsigned = b"".join(map(rlp, fields)) + _NO_ACCESS_LIST
        signature = self._signature(abi.keccak(_TYPE_2 + rlp_list(unsigned)))
        r, s, parity = int.from_bytes(signature[:32]), int.from_bytes(signature[32:64]), signature[64]
        raw = _TYPE_2 + rlp_list(unsigned + rlp(parity) + rlp(r) + rlp(s))
        return Signed(raw, abi.keccak(raw), nonce)

    def _typed(self, digest: Hash) -> bytes:
        """A signature as contracts recover it: r, s and 27 or 28."""
        signature = self._signature(digest)
        return signature[:64] + bytes([signature[64] + 27])

    def _signature(self, digest: Hash) -> bytes:
        """r, s and the parity of y: 65 bytes."""
        return self.__secret.sign_recoverable(digest, hasher=None)


@final
class OperatorKey(_Key):
    """The hot key: holds gas only and can start nothing but what a clearance allows."""

    __slots__ = ()

    def sign(self, to: Address, calldata: bytes, nonce: int, fees: Fees, clearance: Clearance) -> Signed:
        """Sign the cleared liquidation, spending its clearance; raises `KeyMisuse` if anything differs."""
        if type(clearance) is not Clearance:
            raise KeyMisuse("A liquidation is signed only with a Clearance from the guard.")
        clearance.spend(calldata, to, fees)
        return self._sign(to, calldata, nonce, fees)

    def sign_cancel(self, nonce: int, max_fee_wei: Wei, tip_wei: Wei) -> Signed:
        """Replace whatever holds `nonce` by a transfer of nothing to ourselves; needs no clearance."""
        return self._sign(self.address, b"", nonce, Fees(max_fee_wei, tip_wei, _TRANSFER_GAS))

    def sign_pause_relay(
        self, pause_guard: Address, message: bytes, nonce: int, max_fee_wei: Wei, tip_wei: Wei
    ) -> Signed:
        """Relay a guardian's signed pause; `message` is the calldata and must call `pauseBySig`."""
        if message[:4] != abi.load("PauseGuard").function("pauseBySig").selector:
            raise KeyMisuse("Only PauseGuard.pauseBySig may be relayed.")
        return self._sign(pause_guard, message, nonce, Fees(max_fee_wei, tip_wei, RELAY_GAS))


@final
class DeployerKey(_Key):
    """The key that pays for `keeper deploy`; it owns nothing of what it deploys."""

    __slots__ = ()

    def sign_deploy(self, init_code: bytes, nonce: int, fees: Fees) -> Signed:
        """Create a contract at its CREATE2 address (salt 0) through the deterministic deployer."""
        return self._sign(DETERMINISTIC_DEPLOYER, bytes(32) + init_code, nonce, fees)


@final
class RelayKey(_Key):
    """How relays recognise us: a key without funds or rights that tells one sender of bundles from another."""

    __slots__ = ()

    def sign_header(self, body: bytes) -> str:
        """`address:signature` over the hex of the body's hash (EIP-191), which no chain takes for a transaction."""
        text = hex_of(abi.keccak(body)).encode()
        signature = self._signature(abi.keccak(b"\x19Ethereum Signed Message:\n66" + text))
        return f"{abi.checksum(self.address)}:{hex_of(signature[:64])}{signature[64] + 27:02x}"


@final
class SafeOwnerKey(_Key):
    """An owner of a Safe."""

    __slots__ = ()

    def sign_safe_tx(self, safe: Address, tx: SafeTx) -> bytes:
        """65 bytes over the hash that is computed here, from the fields, for this key's chain."""
        return self._typed(safe_tx_hash(self._chain_id, safe, tx))


@final
class GuardianKey(_Key):
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
class SenderKey(_Key):
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


def calldata_of(raw: bytes) -> bytes:
    """The calldata of a signed EIP-1559 transaction."""
    return bytes(TypedTransaction.from_bytes(HexBytes(raw)).as_dict()["data"])


def tip_of(raw: bytes) -> Wei:
    """The priority fee per gas a signed EIP-1559 transaction offers."""
    return Wei(int(TypedTransaction.from_bytes(HexBytes(raw)).as_dict()["maxPriorityFeePerGas"]))


def signer_of(digest: Hash, signature: bytes) -> Address | None:
    """Whose signature of `digest` it is, as PauseGuard reads it: no malleable twin, and nothing but the hash itself."""
    plain = len(signature) == _SIGNATURE_BYTES and signature[64] in (27, 28)
    if not plain or int.from_bytes(signature[32:64]) > _HALF_ORDER:
        return None
    return recovered(digest, signature)
