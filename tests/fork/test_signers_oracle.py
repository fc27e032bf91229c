"""Hashes and signatures beside two others that know: the deployed Safe itself, and Safe's own Python library."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from safe_eth.eth import EthereumClient
from safe_eth.safe.safe_tx import SafeTx as TheirSafeTx

from keeper.abi import checksum
from keeper.keys import SafeOwnerKey
from keeper.lab.node import Tx
from keeper.lab.safe import execute_tx, safe_contract
from keeper.lab.world import Lab
from keeper.multisig.decode import SAFE
from keeper.multisig.proposal import Proposal, parse
from keeper.multisig.safe import exec_calldata, executed, pack_signatures
from keeper.multisig.signatures import attach, signers
from keeper.typed_data import SafeTx, domain_separator, safe_tx_hash
from keeper.types import Address
from tests.conftest import Count

UINTS = st.integers(0, 2**256 - 1)
ADDRESSES = st.binary(min_size=20, max_size=20).map(Address)
TRANSACTIONS = st.builds(
    SafeTx,
    to=ADDRESSES,
    value_wei=UINTS,
    data=st.binary(max_size=300),
    operation=st.integers(0, 1),
    nonce=st.integers(1, 2**64),
    safe_tx_gas=UINTS,
    base_gas=UINTS,
    gas_price_wei=UINTS,
    gas_token=ADDRESSES,
    refund_receiver=ADDRESSES,
)
EXAMPLES = 60


def theirs(url: str, chain_id: int, safe: Address, tx: SafeTx) -> Any:
    """The same transaction in Safe's own library."""
    make: Any = TheirSafeTx  # its types ask for checksummed strings of their own
    client: Any = EthereumClient
    return make(
        client(url),
        checksum(safe),
        checksum(tx.to),
        tx.value_wei,
        tx.data,
        tx.operation,
        tx.safe_tx_gas,
        tx.base_gas,
        tx.gas_price_wei,
        checksum(tx.gas_token),
        checksum(tx.refund_receiver),
        safe_nonce=tx.nonce,
        safe_version="1.4.1",
        chain_id=chain_id,
    )


def arguments(tx: SafeTx) -> tuple[Any, ...]:
    """The fields as `getTransactionHash` takes them."""
    first = (tx.to, tx.value_wei, tx.data, tx.operation, tx.safe_tx_gas, tx.base_gas, tx.gas_price_wei)
    return (*first, tx.gas_token, tx.refund_receiver, tx.nonce)


async def test_hashes_equal_the_safes_and_the_librarys_for_random_transactions(
    shared_lab: Lab, count: Count
) -> None:
    """For any fields all three compute the same hash, and the file gives the transaction back."""
    world, wanted = shared_lab.world, []

    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(TRANSACTIONS)
    def compare(tx: SafeTx) -> None:
        ours = safe_tx_hash(world.chain_id, world.safe.address, tx)
        assert theirs(shared_lab.anvil.url, world.chain_id, world.safe.address, tx).safe_tx_hash == ours
        made = Proposal(world.chain_id, world.safe.address, tx, "note")
        assert parse(made.text(), "it") == made
        wanted.append((tx, ours))

    compare()
    safe = safe_contract(shared_lab.node, world.safe)
    for tx, ours in wanted:
        assert await safe.read("getTransactionHash", *arguments(tx)) == ours
    assert await safe.read("domainSeparator") == domain_separator(world.chain_id, world.safe.address)
    count("Safe transactions hashed alike by three", len(wanted))


async def test_what_the_library_signs_is_taken_here_and_executed(lab: Lab) -> None:
    """Signatures made by Safe's library are verified, packed here and accepted by the Safe."""
    world = lab.world
    nonce = int(await safe_contract(lab.node, world.safe).read("nonce"))
    made = Proposal(world.chain_id, world.safe.address, SafeTx(world.safe.address, 0, b"", 0, nonce), "")
    # the library takes nonce 0 for none, so it asks the chain
    other = theirs(lab.anvil.url, world.chain_id, world.safe.address, made.tx)
    for owner in world.safe.owners[:2]:
        other.sign(owner.key)
    for at, owner in enumerate(sorted(world.safe.owners[:2], key=lambda each: each.address)):
        made = attach(made, owner.address, bytes(other.signatures[65 * at : 65 * at + 65]))
    packed = pack_signatures(made.signatures)
    assert packed == bytes(other.signatures)
    receipt = await lab.node.send(
        Tx(world.cast.lender.address, made.safe, exec_calldata(made.tx, packed)), SAFE
    )
    assert executed(receipt.logs, made.safe, made.hash)


async def test_what_is_signed_here_is_taken_by_the_library_and_executed(lab: Lab) -> None:
    """Signatures made here name the same signers there, and the library executes them."""
    world = lab.world
    # not nonce 0, which the library takes for none
    await execute_tx(lab.node, world.safe, SafeTx(world.safe.address, 0, b"", 0, 0))
    tx = SafeTx(world.safe.address, 0, b"", 0, 1)
    made = Proposal(world.chain_id, world.safe.address, tx, "")
    for owner in world.safe.owners[1:]:
        key = SafeOwnerKey("0x" + owner.key.hex(), world.chain_id, "a key")
        made = attach(made, owner.address, key.sign_safe_tx(made.safe, tx))
    assert signers(made) == {owner.address: owner.address for owner in world.safe.owners[1:]}
    other = theirs(lab.anvil.url, world.chain_id, world.safe.address, tx)
    other.signatures = pack_signatures(made.signatures)
    assert set(other.signers) == {checksum(owner.address) for owner in world.safe.owners[1:]}
    assert other.call() == 1
    sent, _ = other.execute(world.cast.liquidator.key.hex())
    receipt = other.ethereum_client.get_transaction_receipt(
        sent, timeout=30
    )  # the node mines in its own time
    assert receipt is not None and receipt["status"] == 1
    assert await safe_contract(lab.node, world.safe).read("nonce") == 2
