"""The wire format of relays and block builders: JSON-RPC over HTTP, each request vouched for by its sender.

`X-Flashbots-Signature` carries `address:signature` over the body's hash. Fields are those that Flashbots, Titan, rsync
and their like document alike; a refund names the transaction it is reckoned from, because their defaults differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from keeper import abi
from keeper.chain.rpc import Rpc
from keeper.chain.transports import connect
from keeper.chain.wire import TEXT, hash_of, reading
from keeper.types import Address, BlockNumber, Hash, hex_of

SIGNATURE_HEADER: Final = "X-Flashbots-Signature"
_TIMEOUT_S: Final = 2.0  # a block's auction is over by then


@dataclass(frozen=True, slots=True)
class Refund:
    """What a builder returns of the reward it gets for a bundle: `percent` of it, 1 to 99."""

    percent: int
    recipient: Address


@dataclass(frozen=True, slots=True)
class Bundle:
    """Signed transactions for one block, all or none of them; none may revert. `name` replaces and cancels it."""

    transactions: Sequence[bytes]
    block: BlockNumber
    min_timestamp_s: int
    max_timestamp_s: int
    name: UUID


class Relay:
    """One relay. Every method raises `RpcError` for an answered refusal and `ChainError` for all else."""

    def __init__(self, rpc: Rpc) -> None:
        self.label: Final = rpc.label
        self._rpc: Final = rpc

    @classmethod
    async def open(cls, url: str, vouch: Callable[[bytes], str]) -> Relay:
        """A relay at an http(s) URL, first spoken to with the first request; `vouch` makes the header's value."""
        return cls(await connect(url, _TIMEOUT_S, headers=lambda body: {SIGNATURE_HEADER: vouch(body)}))

    async def close(self) -> None:
        """Drop the connection."""
        await self._rpc.close()

    async def send_private(self, raw: bytes, last_block: BlockNumber) -> Hash:
        """Hand over one transaction for any block up to `last_block`, and to all builders; the hash it answers."""
        order = {
            "tx": hex_of(raw),
            "maxBlockNumber": hex(last_block),
            "preferences": {"fast": True},
        }
        text = await self._rpc.ask(TEXT, "eth_sendPrivateTransaction", order)
        with reading(self.label, "eth_sendPrivateTransaction"):
            return hash_of(text)

    async def cancel_private(self, transaction_hash: Hash) -> None:
        """Ask that a transaction be held back from blocks to come."""
        await self._rpc.request("eth_cancelPrivateTransaction", {"txHash": hex_of(transaction_hash)})

    async def send_bundle(self, bundle: Bundle, refund: Refund | None) -> None:
        """Hand over a bundle. What is answered differs from relay to relay and promises nothing."""
        order: dict[str, Any] = {
            "txs": [hex_of(raw) for raw in bundle.transactions],
            "blockNumber": hex(bundle.block),
            "minTimestamp": bundle.min_timestamp_s,
            "maxTimestamp": bundle.max_timestamp_s,
            "revertingTxHashes": [],
            "replacementUuid": str(bundle.name),
        }
        if refund is not None:
            order |= {
                "refundPercent": refund.percent,
                "refundRecipient": abi.checksum(refund.recipient),
                "refundTxHashes": [hex_of(abi.keccak(bundle.transactions[-1]))],
            }
        await self._rpc.request("eth_sendBundle", order)

    async def cancel_bundle(self, name: UUID) -> None:
        """Ask that a bundle be held back."""
        await self._rpc.request("eth_cancelBundle", {"replacementUuid": str(name)})


def bundle_name(plan_id: Hash, block: BlockNumber) -> UUID:
    """The name of the bundle that ends with a plan's transaction at one block: a replacement bears the same."""
    return UUID(bytes=abi.keccak(plan_id + block.to_bytes(8))[:16], version=4)
