"""A Safe 1.4.1 at its canonical addresses and owners who sign; a transaction is believed only on proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keeper.abi import checksum, keccak, load
from keeper.errors import ExecutionError
from keeper.lab.actors import Actor, Cast
from keeper.lab.artifacts import published
from keeper.lab.node import Contract, Node, Receipt, Tx
from keeper.lab.preinstalls import Preinstalls
from keeper.multisig.safe import (
    CALL,
    InnerCall,
    batch,
    exec_calldata,
    executed,
    pack_signatures,
)
from keeper.typed_data import SafeTx, safe_tx_hash
from keeper.types import ZERO_ADDRESS, Address, Hash

_ARTIFACTS = "@safe-global/safe-contracts/build/artifacts/contracts"
_SALT = Hash(bytes(32))
_PROXY_NONCE = 7
THRESHOLD = 2


@dataclass(frozen=True, slots=True)
class SafeWallet:
    """A 2-of-3 Safe and the canonical contracts around it."""

    address: Address
    singleton: Address
    proxy_factory: Address
    fallback_handler: Address
    multi_send: Address
    multi_send_call_only: Address
    owners: tuple[Actor, ...]
    threshold: int


async def deploy_safe(node: Node, cast: Cast, preinstalls: Preinstalls) -> SafeWallet:
    """Safe 1.4.1 by the singleton factory, so every contract has its mainnet address, and one Safe of the owners."""
    deployer = cast.deployer.address

    async def canonical(path: str) -> Address:
        code = published(f"{_ARTIFACTS}/{path}.sol/{path.rsplit('/', 1)[-1]}.json").creation_code()
        await node.send(Tx(deployer, preinstalls.safe_singleton_factory, _SALT + code))
        preimage = b"\xff" + preinstalls.safe_singleton_factory + _SALT + keccak(code)
        return Address(keccak(preimage)[12:])

    await canonical("Safe")
    singleton, factory = await canonical("SafeL2"), await canonical("proxies/SafeProxyFactory")
    handler = await canonical("handler/CompatibilityFallbackHandler")
    multi_send, call_only = (
        await canonical("libraries/MultiSend"),
        await canonical("libraries/MultiSendCallOnly"),
    )
    owners = [owner.address for owner in cast.owners]
    setup = load("Safe").function("setup")
    no_refund = (ZERO_ADDRESS, 0, ZERO_ADDRESS)
    initializer = setup.encode(owners, THRESHOLD, ZERO_ADDRESS, b"", handler, *no_refund)
    proxies = Contract(
        node, factory, published(f"{_ARTIFACTS}/proxies/SafeProxyFactory.sol/SafeProxyFactory.json").abi
    )
    created = await proxies.send(deployer, "createProxyWithNonce", singleton, initializer, _PROXY_NONCE)
    event = proxies.abi.event("ProxyCreation")
    address = next(event.decode(log)["proxy"] for log in created.logs if log.topics[0] == event.topic)
    return SafeWallet(address, singleton, factory, handler, multi_send, call_only, cast.owners, THRESHOLD)


async def execute(
    node: Node, wallet: SafeWallet, *calls: InnerCall, signers: Sequence[Actor] | None = None
) -> Receipt:
    """Sign one call, or a batch of several, by `signers` (else as many owners as are needed), send it, and prove it.

    Raises ExecutionError when it reverts or when the Safe does not report the inner calls as done.
    """
    nonce = int(await safe_contract(node, wallet).read("nonce"))
    if len(calls) == 1:
        tx = SafeTx(calls[0].to, calls[0].value_wei, calls[0].data, CALL, nonce)
    else:
        tx = batch(wallet.multi_send_call_only, calls, nonce)
    return await execute_tx(node, wallet, tx, signers)


async def execute_tx(
    node: Node, wallet: SafeWallet, tx: SafeTx, signers: Sequence[Actor] | None = None
) -> Receipt:
    """Like `execute`, for a transaction already built."""
    tx_hash = safe_tx_hash(int(await node.rpc.request("eth_chainId"), 16), wallet.address, tx)
    chosen = wallet.owners[: wallet.threshold] if signers is None else signers
    signatures = pack_signatures({owner.address: sign_hash(owner, tx_hash) for owner in chosen})
    # Anyone may send it; an owner does, as in life.
    receipt = await node.send(
        Tx(wallet.owners[0].address, wallet.address, exec_calldata(tx, signatures)), load("Safe")
    )
    if not executed(receipt.logs, wallet.address, tx_hash):
        raise ExecutionError(f"Safe {checksum(wallet.address)} mined a transaction whose inner call failed.")
    return receipt


def sign_hash(actor: Actor, digest: Hash) -> bytes:
    """A 65-byte signature of a hash that is already EIP-712 encoded."""
    # Imported here: half a second that reading a world does not need.
    from eth_account import Account  # noqa: PLC0415

    return bytes(Account.unsafe_sign_hash(digest, actor.key).signature)


def safe_contract(node: Node, wallet: SafeWallet) -> Contract:
    """The Safe as a contract."""
    return Contract(node, wallet.address, load("Safe"))
