from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from keeper import abi
from keeper.deploy import batch_checksum, create2_address, transaction_builder_json
from keeper.installation import SafeCall
from keeper.types import Address

SAFE = abi.address("0x63fA7Fe9Ee24094CB5366b076EC6d6DaC8946D3C")
TARGET = abi.address("0x1afeb70f4bE53CCF4ebf269B4b28270Af8912B9E")
CALLS = (
    SafeCall(
        TARGET, bytes.fromhex("558a7297") + b"\1".rjust(64, b"\0"), 'setOperator(0x…, "yes")', "let it start"
    ),
    SafeCall(
        TARGET,
        bytes.fromhex("f7a8b1c2") + b"\2".rjust(32, b"\0"),
        "setMaxSlippageBps(100)",
        "lose at most 1 %",
    ),
)
CREATED_MS = 1_760_000_000_000


def batch(
    calls: tuple[SafeCall, ...] = CALLS, chain_id: int = 1, created_ms: int = CREATED_MS
) -> dict[str, Any]:
    """A batch as whoever imports it reads it."""
    read: dict[str, Any] = json.loads(transaction_builder_json(calls, chain_id, SAFE, created_ms))
    return read


def test_a_batch_has_the_shape_that_transaction_builder_imports() -> None:
    """Version, chain id and values are strings, calldata is raw, and no method is named that would replace it."""
    read = batch()
    assert read["version"] == "1.0"
    assert read["chainId"] == "1"
    assert read["createdAt"] == CREATED_MS
    assert read["meta"]["createdFromSafeAddress"] == abi.checksum(SAFE)
    assert [(tx["to"], tx["data"]) for tx in read["transactions"]] == [
        (abi.checksum(call.to), "0x" + call.data.hex()) for call in CALLS
    ]
    for tx in read["transactions"]:
        assert tx["value"] == "0"
        assert tx["contractMethod"] is None
        assert tx["contractInputsValues"] is None


def test_a_batch_says_in_words_what_each_call_does() -> None:
    """The words stand in the description, numbered as the calls are."""
    expected = '1. setOperator(0x…, "yes"): let it start. 2. setMaxSlippageBps(100): lose at most 1 %.'
    assert batch()["meta"]["description"] == expected


def test_the_checksum_is_the_one_transaction_builder_computes() -> None:
    """A batch whose checksum was computed by a JavaScript implementation of Safe's rule has the same one here.

    The rule: an object is its sorted keys as JSON, then each value followed by a comma; the name counts as null and
    the checksum is left out.
    """
    foreign = {
        "version": "1.0",
        "chainId": "10",
        "createdAt": 1700000000123,
        "meta": {
            "name": "whatever",
            "description": 'quotes " and \\ and ünïcode … stay as they are',
            "txBuilderVersion": "1.16.5",
            "createdFromSafeAddress": "0x63fA7Fe9Ee24094CB5366b076EC6d6DaC8946D3C",
            "createdFromOwnerAddress": "",
        },
        "transactions": [
            {
                "to": "0x1afeb70f4bE53CCF4ebf269B4b28270Af8912B9E",
                "value": "12",
                "data": None,
                "contractMethod": {
                    "inputs": [{"internalType": "bool", "name": "on", "type": "bool"}],
                    "name": "toggle",
                    "payable": False,
                },
                "contractInputsValues": {"on": "true"},
            },
            {
                "to": "0x1afeb70f4bE53CCF4ebf269B4b28270Af8912B9E",
                "value": "0",
                "data": "0x01",
                "list": [1, []],
            },
        ],
    }
    assert batch_checksum(foreign) == "0xdd802e703b1fb9117ec4e0c2a94501499f11038b11cdee0e30dc4773737d8e6e"


def test_a_written_batch_carries_its_own_checksum_whatever_its_name() -> None:
    """Reading the file back and computing again gives the same; renaming is no edit."""
    read = batch()
    assert read["meta"]["checksum"] == batch_checksum(read)
    read["meta"]["name"] = "another name"
    assert read["meta"]["checksum"] == batch_checksum(read)


@pytest.mark.parametrize(
    "other",
    [
        batch(tuple(reversed(CALLS))),
        batch(CALLS[:1]),
        batch(chain_id=10),
        batch(created_ms=CREATED_MS + 1),
    ],
    ids=["order", "fewer", "chain", "time"],
)
def test_every_edit_changes_the_checksum(other: dict[str, Any]) -> None:
    """Order, number, chain and time are all covered."""
    assert other["meta"]["checksum"] != batch()["meta"]["checksum"]


@pytest.mark.parametrize(
    ("deployer", "expected"),
    [
        ("0x0000000000000000000000000000000000000000", "0x4D1A2e2bB4F88F0250f26Ffff098B0b30B26BF38"),
        ("0xdeadbeef00000000000000000000000000000000", "0xB928f69Bb1D91Cd65274e3c79d8986362984fDA3"),
    ],
)
def test_create2_addresses_follow_eip_1014(
    monkeypatch: pytest.MonkeyPatch, deployer: str, expected: str
) -> None:
    """The EIP's own examples with salt 0 and init code 0x00."""
    monkeypatch.setattr("keeper.deploy.DETERMINISTIC_DEPLOYER", Address(bytes.fromhex(deployer[2:])))
    assert abi.checksum(create2_address(b"\0")) == expected


def test_web3_is_not_imported_until_something_is_deployed() -> None:
    """Importing the module costs a start nothing; checked in a fresh interpreter."""
    code = "import sys, keeper.deploy; sys.exit('web3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
