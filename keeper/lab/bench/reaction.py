"""`keeper bench reaction`: from a head to an accepted transaction.

Four variants react to the same thing, the head of a block in which a price feed made one of N borrowers
liquidatable: the keeper as its own process, the floor, and the two naive loops. They take turns in random order within
each round, so what the machine does meanwhile falls on all of them.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from eth_account import Account

from keeper.lab.bench.machine import machine, spread_ms, versions
from keeper.lab.bench.naive import Naive, Sweep
from keeper.lab.bench.report import write_page
from keeper.lab.bench.scene import Keeper, Scene, open_scene
from keeper.lab.bench.witness import Witness
from keeper.types import Address, hex_of

SIZES: Final = (1_000, 10_000)
_WARM_UP: Final = 2  # rounds that are not counted: connections, caches and what the keeper learns of pools
_ONE_BY_ONE, _IN_BATCHES = 100, 1_000  # accounts sampled
_SAMPLED: Final = {
    "keeper": None,
    "keeper_inside": None,
    "floor": None,
    "naive": _ONE_BY_ONE,
    "multicall": _IN_BATCHES,
}
_SEED: Final = 7
_GAS: Final = 1_500_000
_MAX_FEE_WEI, _TIP_WEI = 100 * 10**9, 10**9

Round = dict[str, float]  # seconds by variant


async def reaction(*, heads: int, write: bool = False, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """Measure `heads` rounds at each size and return the document of `keeper bench reaction --json`."""
    load = [round(each, 2) for each in os.getloadavg()]
    figures = {str(size): _figures(await _measure(size, heads), size) for size in sizes}
    document = {
        "schema": 1,
        "name": "reaction",
        "heads": heads,
        "machine": {**machine(), "load": load},
        "versions": versions(),
        "figures": figures,
        "ratios": _ratios(figures[str(sizes[-1])]),
    }
    if write:
        write_page(document)
    return document


async def _measure(size: int, heads: int) -> list[Round]:
    rounds = _WARM_UP + heads
    with tempfile.TemporaryDirectory(prefix="keeper-bench-") as folder:
        async with open_scene(size, rounds + 1, Path(folder)) as scene:  # one to fall after the last is gone
            keeper = await Keeper.start(scene)
            try:
                with Witness(scene.ipc_path) as witness:
                    course = _Course(scene, keeper, witness)
                    measured = [await course.round() for _ in range(rounds)]
            finally:
                await keeper.stop()
    return measured[_WARM_UP:]


class _Course:
    """The variants, run in turn on one scene. The keeper stands still while it is not its turn."""

    def __init__(self, scene: Scene, keeper: Keeper, witness: Witness) -> None:
        self._scene = scene
        self._keeper = keeper
        self._witness = witness
        self._chance = random.Random(_SEED)
        self._naive = _naive(scene)
        keeper.hold()

    async def round(self) -> Round:
        """Every variant once, in random order."""
        variants = [self._react_keeper, self._react_floor, self._react_naive, self._react_multicall]
        self._chance.shuffle(variants)
        measured: Round = {}
        for variant in variants:
            measured |= await variant()
        return measured

    async def _react_keeper(self) -> Round:
        await self._keeper.release()
        fall = await self._scene.fall()
        arrived_s = await asyncio.to_thread(self._witness.head, fall.number)
        sent, accepted_s = await asyncio.to_thread(self._witness.pending, arrived_s, fall.transaction)
        await self._scene.take(sent)
        inside_s = await self._keeper.reacted(fall.number)
        self._keeper.hold()
        # on a busy machine either side may be woken late, so the larger figure counts
        return {"keeper": max(accepted_s - arrived_s, inside_s), "keeper_inside": inside_s}

    async def _react_floor(self) -> Round:
        prepared = await self._prepared()
        # the head before must have arrived, or that is what it would be fired at
        head = await self._scene.lab.node.head()
        await asyncio.to_thread(self._witness.head, head.number)
        self._witness.load(prepared)
        fall = await self._scene.fall()
        accepted_s = await asyncio.to_thread(self._witness.accepted)
        arrived_s = await asyncio.to_thread(self._witness.head, fall.number)
        await self._scene.rise()
        return {"floor": accepted_s - arrived_s}

    async def _react_naive(self) -> Round:
        return await self._sweep("naive", self._naive.one_by_one, _ONE_BY_ONE)

    async def _react_multicall(self) -> Round:
        return await self._sweep("multicall", self._naive.in_batches, _IN_BATCHES)

    async def _sweep(self, name: str, look: Callable[[Sequence[Address]], Sweep], sampled: int) -> Round:
        accounts = self._scene.accounts
        others = [account for account in accounts if account != self._scene.target]
        sample = [self._scene.target, *self._chance.sample(others, min(sampled, len(accounts)) - 1)]
        self._chance.shuffle(sample)
        await self._scene.fall()
        sweep = await asyncio.to_thread(look, sample)
        await self._scene.rise()
        return {name: sweep.scaled_s(len(accounts))}

    async def _prepared(self) -> bytes:
        """The keeper's last liquidation, signed beforehand by another key."""
        world, node = self._scene.lab.world, self._scene.lab.node
        actor = world.cast.lender
        nonce = await node.rpc.request("eth_getTransactionCount", hex_of(actor.address), "latest")
        signed = Account.from_key(actor.key).sign_transaction(
            {
                "type": 2,
                "chainId": world.chain_id,
                "nonce": int(nonce, 16),
                "to": self._scene.rig.liquidator,
                "value": 0,
                "data": self._scene.last_calldata,
                "gas": _GAS,
                "maxFeePerGas": _MAX_FEE_WEI,
                "maxPriorityFeePerGas": _TIP_WEI,
            }
        )
        return bytes(signed.raw_transaction)


def _naive(scene: Scene) -> Naive:
    world = scene.lab.world
    return Naive(
        scene.lab.anvil.url,
        scene.market.pool,
        world.preinstalls.multicall3,
        (world.tokens[scene.collateral].address, world.tokens[scene.debt].address),
        world.cast.liquidator,
    )


def _figures(rounds: Sequence[Round], accounts: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, sampled in _SAMPLED.items():
        figures[name] = spread_ms(each[name] for each in rounds)
        if sampled is not None and sampled < accounts:
            figures[name] |= {"sampled": sampled, "note": "sampled and scaled"}
    return figures


def _ratios(figures: Mapping[str, Any]) -> dict[str, float]:
    """Of medians: how many floors the keeper takes, and how many keepers the loops take."""
    keeper_ms = figures["keeper"]["p50"]
    return {
        "floor": round(keeper_ms / figures["floor"]["p50"], 1),
        "naive": round(figures["naive"]["p50"] / keeper_ms, 1),
        "multicall": round(figures["multicall"]["p50"] / keeper_ms, 1),
    }
