"""An intent says by what it was decided: block, prices with their rounds, quotes, gas, policy; an outcome what came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.artifacts import chainlink
from keeper.lab.chainlink import set_price
from keeper.lab.node import Contract
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.world import Lab
from tests.e2e.line import Line, open_line

ETHER = 10**18
_E8 = 10**8
WHO = account(1)


async def _round(lab: Lab, symbol: str) -> int:
    proxy = Contract(lab.node, lab.world.feeds[symbol].proxy, chainlink("EACAggregatorProxy").abi)
    return int((await proxy.read("latestRoundData"))[0])


async def _intent(line: Line, lab: Lab) -> dict[str, Any]:
    await line.step()
    await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
    await lab.node.mine_on_demand()
    assert (await line.step()).sent
    [intent] = line.booked("intent")
    return dict(intent.body)


async def test_an_intent_says_what_it_was_decided_by(lab: Lab, tmp_path: Path) -> None:
    """Block and hash of the head, the oracle's prices and the rounds they are of, every swap with what was quoted."""
    spec = PositionSpec(WHO, {"WETH": 10 * ETHER}, {"DAI": 1}, 110 * WAD // 100)
    await open_position(lab.node, lab.world.cast, lab.world.aave["3.0"], spec)
    async with open_line(lab, tmp_path) as line:
        body = await _intent(line, lab)
        assert (body["block"], body["block_hash"]) == (line.head.number, "0x" + line.head.hash.hex())
        assert body["seize_price_base"] == 1_750 * _E8 == body["native_price_usd_e8"]
        rounds = {
            name: await _round(lab, symbol)
            for name, symbol in (("repay", "DAI"), ("seize", "WETH"), ("profit", "USDC"), ("native", "WETH"))
        }
        assert {name: int(body[f"{name}_round"]) for name in rounds} == rounds
        assert rounds["seize"] != rounds["repay"]
        assert body["swaps"] and all(int(swap["quoted_out_raw"]) > 0 for swap in body["swaps"])
        for swap in body["swaps"]:
            quoted, limit = (
                int(swap["quoted_in_raw" if swap["exact_out"] else "quoted_out_raw"]),
                int(swap["limit_raw"]),
            )
            assert (limit >= quoted) if swap["exact_out"] else (0 < limit <= quoted)
        assert body["policy"] == line.engine.policy.version
        await lab.node.mine()
        assert len((await line.step()).settled) == 1
        [settled] = line.booked("settled")
        assert settled.body["expected_profit_raw"] == body["expected_profit_raw"]
        assert settled.plan_id == line.booked("intent")[0].plan_id
        assert {"tx", "block", "block_hash", "status", "gas_used", "gas_cost_wei"} <= settled.body.keys()
