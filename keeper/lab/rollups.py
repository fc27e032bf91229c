"""Rollups' own contracts on a local chain, as doubles: what they say bytes cost, anvil charges to nobody.

The doubles are `contracts/lab/DataFeeDoubles.sol`; each stands at the address of the real one.
"""

from __future__ import annotations

from keeper.charges import GAS_PRICE_ORACLE, NODE_INTERFACE
from keeper.lab.actors import Cast
from keeper.lab.artifacts import own
from keeper.lab.node import Contract, Node
from keeper.types import Address


async def op_stack(node: Node, cast: Cast, wei_per_unit: int, operator_fee_wei: int = 0) -> Contract:
    """From now on a transaction's bytes cost that much, 16 units each (zeros 4), as on an OP-stack chain."""
    oracle = await _etch(node, cast, "GasPriceOracleDouble", GAS_PRICE_ORACLE)
    await oracle.send(cast.deployer.address, "set", wei_per_unit, operator_fee_wei)
    return oracle


async def arbitrum(node: Node, cast: Cast, gas_per_byte: int) -> Contract:
    """From now on each byte of a transaction takes that much gas, as on Arbitrum."""
    interface = await _etch(node, cast, "NodeInterfaceDouble", NODE_INTERFACE)
    await interface.send(cast.deployer.address, "set", gas_per_byte)
    return interface


async def _etch(node: Node, cast: Cast, name: str, at: Address) -> Contract:
    artifact = own(name)
    made = await node.deploy(cast.deployer.address, artifact.creation_code())
    await node.set_code({at: await node.code(made)})
    return Contract(node, at, artifact.abi)
