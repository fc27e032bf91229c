"""Rules of Aave that decide whether an account can be liquidated at all, met by the whole line on real bytecode."""

from __future__ import annotations

from pathlib import Path

import pytest

from keeper import commands
from keeper.abi import checksum
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.artifacts import aave_v3_0, own
from keeper.lab.chainlink import set_price
from keeper.lab.node import Contract
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.rig import Terms, make_rig
from keeper.lab.world import Lab
from tests.e2e.line import open_again

ETHER = 10**18
_E8 = 10**8
WHO = account(1)


@pytest.mark.parametrize(
    ("market", "supply", "owed", "falling"),
    [
        ("3.6", {"WETH": 10 * ETHER}, "USDT", 1_750),
        ("3.0", {"USDT": 20_000 * 10**6}, "WETH", 2_600),
    ],
    ids=["owed", "held"],
)
async def test_a_token_that_takes_a_fee_is_refused_by_its_name(
    lab: Lab, tmp_path: Path, market: str, supply: dict[str, int], owed: str, falling: int
) -> None:
    """Its issuer switches a fee on: whichever side it is on, the plan reverts when it is tried, and the refusal names
    the token and what it takes; explain says the same. Once the fee is off the account is liquidated.
    """
    world, node = lab.world, lab.node
    usdt = Contract(node, world.tokens["USDT"].address, own("NoReturnToken").abi)
    rig = await make_rig(lab, tmp_path, Terms())
    spec = PositionSpec(WHO, supply, {owed: 1}, 110 * WAD // 100)
    await open_position(node, world.cast, world.aave[market], spec)
    await usdt.send(world.cast.deployer.address, "setFee", 20)
    await set_price(node, world.feeds["WETH"], falling * _E8)
    async with open_again(lab, rig) as line:
        report = await line.step()
        assert not report.sent
        [(name, who, refusal)] = report.refused
        assert (name, who) == (f"aave-{market.replace('.', '-')}", WHO)
        assert (refusal.stage, refusal.reason) == ("trial", "fee_on_transfer")
        numbers = refusal.numbers
        assert (numbers["token"], numbers["fee_bps"]) == ("USDT", 20)
        assert numbers["arrived_raw"] == numbers["sent_raw"] - numbers["sent_raw"] * 20 // 10_000
        told = await commands.explain(rig.config, checksum(WHO))
        [stages] = [each["stages"] for each in told["protocols"] if each["protocol"] == name]
        assert (stages[-1]["stage"], stages[-1]["answer"]) == ("trial", "fee_on_transfer")
        await usdt.send(world.cast.deployer.address, "setFee", 0)
        await line.steps()
        assert [entry.account for entry in line.booked("settled")][:1] == [checksum(WHO)]
        assert await line.health(market, WHO) >= WAD


async def test_a_sequencer_that_was_down_is_waited_for(lab: Lab, tmp_path: Path) -> None:
    """While the sentinel says that the sequencer is down, and for its grace period after, an account above 0.95 is
    refused for that reason; then it is liquidated.
    """
    world, node, admin = lab.world, lab.node, lab.world.cast.deployer.address
    market = world.aave["3.6"]
    oracle_code, sentinel_code = aave_v3_0("SequencerOracle"), aave_v3_0("PriceOracleSentinel")
    sequencer = Contract(node, await node.deploy(admin, oracle_code.creation_code(admin)), oracle_code.abi)
    sentinel = await node.deploy(admin, sentinel_code.creation_code(market.provider, sequencer.address, 60))
    provider = Contract(node, market.provider, aave_v3_0("PoolAddressesProvider").abi)
    rig = await make_rig(lab, tmp_path, Terms())
    spec = PositionSpec(WHO, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
    await open_position(node, world.cast, market, spec)
    async with open_again(lab, rig) as line:
        await line.step()
        await sequencer.send(admin, "setAnswer", True, (await node.head()).timestamp_s)
        await provider.send(admin, "setPriceOracleSentinel", sentinel)
        await set_price(node, world.feeds["WETH"], 1_750 * _E8)
        assert line.refusals(await line.step(), WHO) == [("options", "sentinel")]
        await sequencer.send(admin, "setAnswer", False, (await node.head()).timestamp_s)
        assert line.refusals(await line.step(), WHO) == [("options", "sentinel")]
        await node.advance(61)
        await line.steps()
        assert [entry.account for entry in line.booked("settled")][:1] == [checksum(WHO)]
        assert await line.health("3.6", WHO) >= WAD
