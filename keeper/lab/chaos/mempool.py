"""A transaction pool as Geth's, before a node that has another.

Anvil replaces a transaction for one wei more, forgets what the base fee has outgrown together with every later nonce,
and drops what a reorg took out of a block. Geth asks for a tenth more of both fees and keeps the others. Which of
these rules hold at a time is for whoever hands in the transaction to say.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Final

from eth_account import Account
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes

from keeper.abi import keccak
from keeper.chain.rpc import Rpc
from keeper.errors import RpcError
from keeper.types import Hash, hex_of

_REMEMBERED: Final = 64  # transactions of one sender that a reorg may bring back
_REFUSED: Final = -32_000  # Geth's code for whatever its pool does not take


@dataclass(frozen=True, slots=True)
class Handed:
    """A transaction as it was handed in."""

    raw: bytes
    hash: Hash
    sender: str
    nonce: int
    max_fee_wei: int
    tip_wei: int

    @classmethod
    def read(cls, raw: bytes) -> Handed:
        """What a signed EIP-1559 transaction says."""
        fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
        sender = str(Account.recover_transaction(raw)).lower()
        fees = (fields["maxFeePerGas"], fields["maxPriorityFeePerGas"])
        return cls(raw, keccak(raw), sender, int(fields["nonce"]), *map(int, fees))

    def replaces(self, other: Handed) -> bool:
        """Whether Geth would let this one take the other's place."""
        return 10 * self.max_fee_wei >= 11 * other.max_fee_wei and 10 * self.tip_wei >= 11 * other.tip_wei


class Mempool:
    """Transactions on their way to `node`, by sender and nonce."""

    def __init__(self, node: Rpc) -> None:
        self._node: Final = node
        self._known: dict[tuple[str, int], Handed] = {}
        self._kept: set[Hash] = set()

    def forget(self) -> None:
        """Begin with nothing known."""
        self._known.clear()
        self._kept.clear()

    async def hand_in(self, raw: bytes, rules: Set[str]) -> str:
        """The node's answer to `eth_sendRawTransaction` under `rules`. Raises `RpcError` for a refusal."""
        this = Handed.read(raw)
        place = (this.sender, this.nonce)
        before = self._known.get(place)
        if "swallow" in rules:
            return hex_of(this.hash)
        if before is not None and await self._pending(before):
            if before.hash == this.hash and "already_known" in rules:
                raise _refused("already known")
            if before.hash != this.hash and "replacement_rule" in rules and not this.replaces(before):
                raise _refused("replacement transaction underpriced")
        keeps = "keeping_pool" in rules
        try:
            answer: str = await self._node.request("eth_sendRawTransaction", hex_of(raw))
        except RpcError as error:
            if not (keeps and "max fee per gas less than block base fee" in error.message):
                raise
            answer = hex_of(this.hash)
        self._known[place] = this
        if keeps:
            self._kept.add(this.hash)
        return answer

    async def next_block(self) -> None:
        """Offer the node again whatever is kept, not mined, and no longer in its own pool."""
        for sender in {sender for sender, _ in self._known}:
            used = await self._used(sender)
            for nonce in sorted(nonce for whose, nonce in self._known if whose == sender):
                this = self._known[sender, nonce]
                if nonce < used - _REMEMBERED:
                    self._kept.discard(this.hash)
                    del self._known[sender, nonce]
                elif nonce >= used and this.hash in self._kept and not await self._node_has(this):
                    await self._offer(this)

    async def _pending(self, this: Handed) -> bool:
        """Whether a pool like Geth's would still hold it."""
        if await self._used(this.sender) > this.nonce:
            return False
        return this.hash in self._kept or await self._node_has(this)

    async def _used(self, sender: str) -> int:
        return int(await self._node.request("eth_getTransactionCount", sender, "latest"), 16)

    async def _node_has(self, this: Handed) -> bool:
        return await self._node.request("eth_getTransactionByHash", hex_of(this.hash)) is not None

    async def _offer(self, this: Handed) -> None:
        try:
            await self._node.request("eth_sendRawTransaction", hex_of(this.raw))
        except RpcError:
            return  # still below the base fee, or its sender cannot pay: it stays kept


def _refused(why: str) -> RpcError:
    return RpcError("eth_sendRawTransaction", _REFUSED, why)
