"""Contracts that live at one address on every chain, put there by code instead of deployed.

Runtime code comes from Optimism's genesis library. Permit2 caches its chain id and domain separator as immutables, so
both are patched for this chain.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from keeper.abi import address, keccak
from keeper.lab.artifacts import source_text
from keeper.lab.node import Node
from keeper.types import Address

_SOURCE = "@eth-optimism/contracts-bedrock/src/libraries/Preinstalls.sol"
_PERMIT2_CHAIN_ID_AT = 6945
_PERMIT2_DOMAIN_AT = 6983
_DOMAIN_TYPE = keccak(b"EIP712Domain(string name,uint256 chainId,address verifyingContract)")


@dataclass(frozen=True, slots=True)
class Preinstalls:
    """Addresses that are the same everywhere."""

    multicall3: Address
    permit2: Address
    safe_singleton_factory: Address
    create2_deployer: Address
    entry_point: Address


async def install_preinstalls(node: Node, chain_id: int) -> Preinstalls:
    """Put their code in place."""
    text = source_text(_SOURCE)
    addresses = {
        name: address(at)
        for name, at in re.findall(r"address internal constant (\w+) = (0x[0-9a-fA-F]{40})", text)
    }
    codes = {
        name: bytes.fromhex(code)
        for name, code in re.findall(
            r'bytes internal constant (\w+?)(?:Template)?Code =\s*hex"([0-9a-f]+)"', text
        )
    }
    codes["Permit2"] = _permit2(codes["Permit2"], addresses["Permit2"], chain_id)
    await node.set_code({addresses[name]: code for name, code in codes.items() if name in addresses})
    return Preinstalls(
        multicall3=addresses["MultiCall3"],
        permit2=addresses["Permit2"],
        safe_singleton_factory=addresses["SafeSingletonFactory"],
        create2_deployer=addresses["DeterministicDeploymentProxy"],
        entry_point=addresses["EntryPoint"],
    )


def _permit2(template: bytes, at: Address, chain_id: int) -> bytes:
    chain = chain_id.to_bytes(32, "big")
    domain = keccak(_DOMAIN_TYPE + keccak(b"Permit2") + chain + bytes(12) + at)
    code = bytearray(template)
    code[_PERMIT2_CHAIN_ID_AT : _PERMIT2_CHAIN_ID_AT + 32] = chain
    code[_PERMIT2_DOMAIN_AT : _PERMIT2_DOMAIN_AT + 32] = domain
    return bytes(code)
