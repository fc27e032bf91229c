"""What nodes say when they do not take signed bytes, word for word, and what follows from it."""

from __future__ import annotations

import pytest

from keeper.errors import ChainError, RpcError
from keeper.execution.refusals_of_nodes import CONSEQUENCES, Complaint, Consequence, complaint_of

_HASH = "0x4f3b1c9d1f3c0e0dd1a0b2e3f4a5968778695a4b3c2d1e0f00112233445566aa"

# node, code, message, what it means
WORDS = [
    ("geth", -32000, "already known", Complaint.KNOWN),
    ("geth", -32000, "nonce too low: next nonce 7, tx nonce 6", Complaint.NONCE_TOO_LOW),
    ("geth", -32000, "nonce too high: tx nonce 9, gapped nonce 7", Complaint.NONCE_TOO_HIGH),
    ("geth", -32000, "future transaction tries to replace pending", Complaint.NONCE_TOO_HIGH),
    ("geth", -32000, "replacement transaction underpriced", Complaint.REPLACEMENT_UNDERPRICED),
    ("geth", -32000, "transaction underpriced", Complaint.UNDERPRICED),
    (
        "geth",
        -32000,
        "transaction underpriced: gas tip cap 0, minimum needed 1",
        Complaint.UNDERPRICED,
    ),
    (
        "geth",
        -32000,
        "transaction gas price below minimum: gas tip cap 0, minimum needed 1",
        Complaint.UNDERPRICED,
    ),
    ("geth", -32000, "txpool is full", Complaint.UNDERPRICED),
    (
        "geth",
        -32000,
        "max fee per gas less than block base fee: address 0xf39F, maxFeePerGas: 1, baseFee: 7",
        Complaint.FEE_BELOW_BASE,
    ),
    (
        "geth",
        -32000,
        "insufficient funds for gas * price + value: balance 0, tx cost 21000, overshot 21000",
        Complaint.INSUFFICIENT_FUNDS,
    ),
    ("geth", -32000, "exceeds block gas limit", Complaint.GAS_LIMIT),
    (
        "geth",
        -32000,
        "transaction gas limit too high (cap: 16777216, tx: 20000000)",
        Complaint.GAS_LIMIT,
    ),
    ("geth", -32000, "intrinsic gas too low: gas 20000, minimum needed 21000", Complaint.GAS_LIMIT),
    (
        "geth",
        -32000,
        "tx fee (1.20 ether) exceeds the configured cap (1.00 ether)",
        Complaint.GAS_LIMIT,
    ),
    ("geth", 3, "execution reverted", Complaint.REVERTED),
    ("geth", -32000, "account limit exceeded: pooled 64 txs", Complaint.UNKNOWN),
    ("geth", -32000, "invalid sender", Complaint.UNKNOWN),
    ("reth", -32000, "already known", Complaint.KNOWN),
    ("reth", -32000, "nonce too low: next nonce 7, tx nonce 6", Complaint.NONCE_TOO_LOW),
    ("reth", -32000, "nonce too high", Complaint.NONCE_TOO_HIGH),
    ("reth", -32000, "replacement transaction underpriced", Complaint.REPLACEMENT_UNDERPRICED),
    ("reth", -32000, "transaction underpriced", Complaint.UNDERPRICED),
    (
        "reth",
        -32003,
        "transaction priority fee below minimum required priority fee 1000000",
        Complaint.UNDERPRICED,
    ),
    ("reth", -32003, "txpool is full", Complaint.UNDERPRICED),
    ("reth", -32000, "max fee per gas less than block base fee", Complaint.FEE_BELOW_BASE),
    (
        "reth",
        -32003,
        "insufficient funds for gas * price + value: have 0 want 21000",
        Complaint.INSUFFICIENT_FUNDS,
    ),
    ("reth", -32000, "exceeds block gas limit", Complaint.GAS_LIMIT),
    ("reth", -32000, "exceeds max transaction gas limit", Complaint.GAS_LIMIT),
    ("reth", -32000, "intrinsic gas too high", Complaint.GAS_LIMIT),
    (
        "reth",
        -32000,
        "tx fee (1200000000000000000 wei) exceeds the configured cap (1000000000000000000 wei)",
        Complaint.GAS_LIMIT,
    ),
    ("erigon", -32000, "already known", Complaint.KNOWN),
    ("erigon", -32000, "existing txn with same hash", Complaint.KNOWN),
    ("erigon", -32000, "INTERNAL_ERROR: existing tx with same hash", Complaint.KNOWN),
    ("erigon", -32000, "nonce too low", Complaint.NONCE_TOO_LOW),
    ("erigon", -32000, "could not replace existing tx", Complaint.REPLACEMENT_UNDERPRICED),
    ("erigon", -32000, "replacement transaction underpriced", Complaint.REPLACEMENT_UNDERPRICED),
    ("erigon", -32000, "underpriced", Complaint.UNDERPRICED),
    ("erigon", -32000, "fee too low", Complaint.UNDERPRICED),
    ("erigon", -32000, "pending sub-pool is full", Complaint.UNDERPRICED),
    ("erigon", -32000, "insufficient funds", Complaint.INSUFFICIENT_FUNDS),
    ("erigon", -32000, "gas limit is too high", Complaint.GAS_LIMIT),
    ("erigon", -32000, "IntrinsicGas", Complaint.GAS_LIMIT),
    ("nethermind", -32010, "AlreadyKnown", Complaint.KNOWN),
    ("nethermind", -32010, "already known", Complaint.KNOWN),
    ("nethermind", -32010, "OldNonce, Current nonce: 7, nonce of rejected tx: 6", Complaint.NONCE_TOO_LOW),
    ("nethermind", -32010, "NonceGap, Future nonce. Expected nonce: 7", Complaint.NONCE_TOO_HIGH),
    ("nethermind", -32010, "nonce too far in future", Complaint.NONCE_TOO_HIGH),
    ("nethermind", -32010, "ReplacementNotAllowed", Complaint.REPLACEMENT_UNDERPRICED),
    (
        "nethermind",
        -32010,
        "FeeTooLow, MaxFeePerGas too low. MaxFeePerGas: 1, BaseFee: 7",
        Complaint.FEE_BELOW_BASE,
    ),
    ("nethermind", -32010, "FeeTooLowToCompete", Complaint.UNDERPRICED),
    (
        "nethermind",
        -32010,
        "InsufficientFunds, Account balance: 0, cumulative cost: 21000",
        Complaint.INSUFFICIENT_FUNDS,
    ),
    ("nethermind", -32010, "GasLimitExceeded, Gas limit: 30000000", Complaint.GAS_LIMIT),
    ("nethermind", -32010, "gas limit reached", Complaint.GAS_LIMIT),
    ("besu", -32000, "Known transaction", Complaint.KNOWN),
    ("besu", -32001, "Nonce too low", Complaint.NONCE_TOO_LOW),
    ("besu", -32001, "transaction nonce 6 below sender account nonce 7", Complaint.NONCE_TOO_LOW),
    ("besu", -32006, "Nonce too high", Complaint.NONCE_TOO_HIGH),
    (
        "besu",
        -32000,
        "Transaction nonce is too distant from current sender nonce",
        Complaint.NONCE_TOO_HIGH,
    ),
    ("besu", -32000, "An invalid transaction with a lower nonce exists", Complaint.NONCE_TOO_HIGH),
    ("besu", -32000, "Replacement transaction underpriced", Complaint.REPLACEMENT_UNDERPRICED),
    ("besu", -32009, "Gas price below configured minimum gas price", Complaint.UNDERPRICED),
    ("besu", -32009, "Gas price below current base fee", Complaint.FEE_BELOW_BASE),
    ("besu", -32004, "Upfront cost exceeds account balance", Complaint.INSUFFICIENT_FUNDS),
    (
        "besu",
        -32004,
        "transaction up-front cost 0x5208 exceeds transaction sender account balance 0x0",
        Complaint.INSUFFICIENT_FUNDS,
    ),
    ("besu", -32005, "Transaction gas limit exceeds block gas limit", Complaint.GAS_LIMIT),
    ("besu", -32003, "Intrinsic gas exceeds gas limit", Complaint.GAS_LIMIT),
    ("besu", -32000, "Transaction fee cap exceeded", Complaint.GAS_LIMIT),
    ("besu", -32000, "Execution reverted", Complaint.REVERTED),
    ("besu", -32008, "Initial sync is still in progress", Complaint.UNKNOWN),
    ("anvil", -32000, f"Tx: [{_HASH}] already Imported", Complaint.KNOWN),
    ("anvil", -32003, "transaction already imported", Complaint.KNOWN),
    ("anvil", -32003, "nonce too low", Complaint.NONCE_TOO_LOW),
    ("anvil", -32003, "Nonce too high", Complaint.NONCE_TOO_HIGH),
    ("anvil", -32003, "replacement transaction underpriced", Complaint.REPLACEMENT_UNDERPRICED),
    (
        "anvil",
        -32003,
        f"Tx: [{_HASH}] insufficient gas price to replace existing transaction",
        Complaint.REPLACEMENT_UNDERPRICED,
    ),
    ("anvil", -32003, "max fee per gas less than block base fee", Complaint.FEE_BELOW_BASE),
    ("anvil", -32003, "Insufficient funds for gas * price + value", Complaint.INSUFFICIENT_FUNDS),
    ("anvil", -32003, "intrinsic gas too high -- tx.gas_limit > env.block.gas_limit", Complaint.GAS_LIMIT),
    (
        "anvil",
        -32003,
        "Transaction gas limit is greater than the block gas limit, gas_limit: 2, cap: 1",
        Complaint.GAS_LIMIT,
    ),
    ("anvil", 3, "execution reverted: custom error 0x1234", Complaint.REVERTED),
]


@pytest.mark.parametrize(("node", "code", "message", "complaint"), WORDS)
def test_every_node_is_understood_in_its_own_words(
    node: str, code: int, message: str, complaint: Complaint
) -> None:
    """The exact wording of each node means one thing, whatever the code."""
    assert complaint_of(RpcError("eth_sendRawTransaction", code, message)) is complaint, node


def test_a_node_that_was_not_reached_has_not_refused() -> None:
    """Whatever the words of a failed connection are, they are not a refusal."""
    assert complaint_of(ChainError("nonce too low")) is Complaint.UNKNOWN


def test_every_complaint_has_one_consequence() -> None:
    """Nothing is signed again for what a node has already or whose nonce is used; nothing unknown ends a plan."""
    assert CONSEQUENCES.keys() == set(Complaint)
    signing = {
        each for each, then in CONSEQUENCES.items() if then in (Consequence.REPLACE, Consequence.CANCEL)
    }
    assert signing == {
        Complaint.REPLACEMENT_UNDERPRICED,
        Complaint.FEE_BELOW_BASE,
        Complaint.UNDERPRICED,
        Complaint.GAS_LIMIT,
        Complaint.REVERTED,
    }
    assert {each for each, then in CONSEQUENCES.items() if then is Consequence.REFILL} == {
        Complaint.INSUFFICIENT_FUNDS
    }
    assert {each for each, then in CONSEQUENCES.items() if then is Consequence.WAIT} == {
        Complaint.KNOWN,
        Complaint.NONCE_TOO_LOW,
    }
