"""The only package that can sign, and the few things it will sign.

The operator key has doors, not a general signature: a cleared liquidation, a cancellation that can only be a
zero-value transfer to itself, and a relayed pause that can only call `PauseGuard.pauseBySig`. Behind each stands one
`Policy`, asked before whoever holds the secret (`keeper.keys.signers`). The deployer key can only create contracts
through the deterministic deployer, the relay key only vouch for a request to a relay; those of signers are in
`keeper.keys.people`. No key's secret can be read back, printed or pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from keeper import abi
from keeper.errors import KeyMisuse
from keeper.guard import Clearance, Fees
from keeper.keys.key import Key, LocalKey
from keeper.keys.people import GuardianKey, SafeOwnerKey, SenderKey, recovered
from keeper.keys.policy import Budget, Policy
from keeper.keys.signers import Signer
from keeper.keys.transaction import Signed, Unsigned, calldata_of, payload_of, tip_of, with_signature
from keeper.types import Address, Hash, Wei, hex_of

__all__ = [
    "DETERMINISTIC_DEPLOYER",
    "DeployerKey",
    "GuardianKey",
    "OperatorKey",
    "Policy",
    "RelayKey",
    "SafeOwnerKey",
    "SenderKey",
    "Signed",
    "calldata_of",
    "recovered",
    "tip_of",
]

DETERMINISTIC_DEPLOYER: Final = abi.address("0x4e59b44847b379578588920cA78FbF26c0B4956C")


@final
class OperatorKey(Key):
    """The hot key: holds gas only and can start nothing but what a clearance allows.

    Its secret is with `signer`, which may be far away: every door waits for it, and one that is in this process answers
    without letting anybody else run. A door raises `KeyMisuse` for what the policy forbids and `SignerError` where the
    hourly budget has no room, or the signer does not answer with our signature of exactly this transaction.
    """

    __slots__ = ("_budget", "_policy", "_signer")

    def __init__(self, signer: Signer, policy: Policy, wall_clock: Callable[[], float]) -> None:
        self._signer = signer
        self._policy = policy
        self._budget = Budget(policy.max_gas_spend_wei_per_hour, wall_clock)
        self.address = signer.address

    async def sign(
        self, to: Address, calldata: bytes, nonce: int, fees: Fees, clearance: Clearance
    ) -> Signed:
        """Sign the cleared liquidation, spending its clearance; raises `KeyMisuse` if anything differs."""
        if type(clearance) is not Clearance:
            raise KeyMisuse("A liquidation is signed only with a Clearance from the guard.")
        clearance.spend(calldata, to, fees)
        tx = Unsigned(self._policy.chain_id, to, calldata, nonce, fees)
        self._policy.liquidation(tx)
        self._budget.require(clearance.plan_id, fees)
        signed = await self._sign(tx)
        self._budget.count(clearance.plan_id, fees)
        return signed

    async def sign_cancel(self, nonce: int, max_fee_wei: Wei, tip_wei: Wei) -> Signed:
        """Replace whatever holds `nonce` by a transfer of nothing to ourselves; needs no clearance."""
        fees = Fees(max_fee_wei, tip_wei, self._policy.transfer_gas)
        tx = Unsigned(self._policy.chain_id, self.address, b"", nonce, fees)
        self._policy.cancellation(tx)
        return await self._sign(tx)

    async def sign_pause_relay(
        self, pause_guard: Address, message: bytes, nonce: int, max_fee_wei: Wei, tip_wei: Wei
    ) -> Signed:
        """Relay a guardian's signed pause; `message` is the calldata and must call `pauseBySig`."""
        fees = Fees(max_fee_wei, tip_wei, self._policy.relay_gas)
        tx = Unsigned(self._policy.chain_id, pause_guard, message, nonce, fees)
        self._policy.pause_relay(tx)
        return await self._sign(tx)

    def settled(self, plan_id: Hash, cost_wei: int) -> None:
        """What a plan cost in the end: the gas budget counts that from now on."""
        self._budget.settled(plan_id, cost_wei)

    async def ready(self) -> str:
        """Where the key is, as a sentence, once its holder has confirmed it. Raises `SignerError`."""
        return await self._signer.ready()

    async def close(self) -> None:
        """Drop connections to whoever holds the secret."""
        await self._signer.close()

    async def _sign(self, tx: Unsigned) -> Signed:
        fields = tx.fields()
        return with_signature(tx, fields, await self._signer.sign(payload_of(fields)))


@final
class DeployerKey(LocalKey):
    """The key that pays for `keeper deploy`; it owns nothing of what it deploys."""

    __slots__ = ()

    def sign_deploy(self, init_code: bytes, nonce: int, fees: Fees) -> Signed:
        """Create a contract at its CREATE2 address (salt 0) through the deterministic deployer."""
        return self._sign(DETERMINISTIC_DEPLOYER, bytes(32) + init_code, nonce, fees)


@final
class RelayKey(LocalKey):
    """How relays recognise us: a key without funds or rights that tells one sender of bundles from another."""

    __slots__ = ()

    def sign_header(self, body: bytes) -> str:
        """`address:signature` over the hex of the body's hash (EIP-191), which no chain takes for a transaction."""
        text = hex_of(abi.keccak(body)).encode()
        signature = self._typed(abi.keccak(b"\x19Ethereum Signed Message:\n66" + text))
        return f"{abi.checksum(self.address)}:{hex_of(signature)}"
