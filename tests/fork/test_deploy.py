"""Deploying to a real chain, and the Safe finishing the set-up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from keeper import abi, assembly
from keeper.config import Settings
from keeper.deploy import Deployment, create2_address, deploy, transaction_builder_json
from keeper.errors import ChainError, ConfigError, ExecutionError, WrongChain
from keeper.guard import scope_of
from keeper.installation import (
    LIQUIDATOR,
    PAUSE_GUARD,
    Needs,
    SafeCall,
    code_fault,
    immutables_fault,
    liquidator_immutables,
    missing_setup,
    pause_guard_immutables,
    setup_calls,
)
from keeper.keys import DETERMINISTIC_DEPLOYER, DeployerKey
from keeper.lab.node import Contract, Tx
from keeper.lab.rig import Terms, make_rig
from keeper.lab.safe import execute
from keeper.lab.solc import OwnArtifact, own_artifact
from keeper.lab.world import Lab
from keeper.multisig.safe import InnerCall
from keeper.types import ZERO_ADDRESS, Address, Hash, hex_of
from tests.conftest import OpenLab

BUILDS: Mapping[str, OwnArtifact] = {name: own_artifact(name) for name in ("PauseGuard", "Liquidator")}
DELAY_S = 1800


@dataclass(frozen=True)
class Site:
    """A world without our contracts, and the settings of someone about to deploy them."""

    lab: Lab
    settings: Settings

    @property
    def key(self) -> DeployerKey:
        """The key that pays."""
        return DeployerKey("0x" + self.lab.world.cast.deployer.key.hex(), self.lab.world.chain_id, "the test")

    def with_chain(self, **changes: Any) -> Settings:
        """The settings with other values under [chain]."""
        return self.settings.model_copy(update={"chain": self.settings.chain.model_copy(update=changes)})

    async def deploy(self, settings: Settings | None = None, **changes: Any) -> Deployment:
        """Deploy for the world's people, with `changes` of the arguments."""
        cast = self.lab.world.cast
        arguments: dict[str, Any] = {
            "deployer": self.key,
            "safe": self.lab.world.safe.address,
            "treasury": cast.treasury.address,
            "guardians": [guardian.address for guardian in cast.guardians],
            "unpause_delay_s": DELAY_S,
            "builds": BUILDS,
        }
        return await deploy(settings or self.settings, **(arguments | changes))

    async def nonce(self) -> int:
        """How many transactions it has sent."""
        sender = abi.checksum(self.lab.world.cast.deployer.address)
        return int(await self.lab.node.rpc.request("eth_getTransactionCount", sender, "latest"), 16)


@pytest.fixture(scope="module")
async def undeployed(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a real file: a keeper is set up for it and taken back."""
    snapshot = await shared_lab.node.snapshot()
    rig = await make_rig(shared_lab, tmp_path_factory.mktemp("keeper"), Terms(max_slippage_bps=200))
    await shared_lab.node.revert(snapshot)
    await shared_lab.node.steady_clock()
    return assembly.settings(rig.config).model_copy(update={"contracts": None})


@pytest.fixture
def site(lab: Lab, undeployed: Settings) -> Site:
    """Nothing of ours is deployed yet."""
    return Site(lab, undeployed)


async def needs(site: Site) -> Needs:
    """What the Liquidator must be told for the settings."""
    async with assembly.open_parts(site.settings) as parts:
        return await assembly.needs(parts, site.lab.world.cast.operator.address)


async def missing(site: Site, liquidator: Address, wanted: Needs) -> list[SafeCall]:
    """What a Liquidator still lacks at the head."""
    async with assembly.open_parts(site.settings) as parts:
        head = await parts.chain.head()
        return await parts.chain.read(missing_setup(liquidator, wanted), head.hash)


# --- creating --------------------------------------------------------------------------------------------------------


async def test_both_contracts_are_the_build_at_addresses_that_follow_from_what_they_are(site: Site) -> None:
    """What is deployed is the build, bound to the Safe, treasury and guard asked for, where CREATE2 puts it."""
    deployment = await site.deploy()
    node, world = site.lab.node, site.lab.world
    safe, treasury = world.safe.address, world.cast.treasury.address

    assert [creation.name for creation in deployment.created] == ["PauseGuard", "Liquidator"]
    assert all(creation.gas_used > 0 and creation.cost_wei > 0 for creation in deployment.created)
    guardians = sorted(guardian.address for guardian in world.cast.guardians)
    init_code = BUILDS["PauseGuard"].creation_code() + PAUSE_GUARD.constructor(safe, guardians, DELAY_S)
    assert deployment.pause_guard == create2_address(init_code)

    code = await node.code(deployment.liquidator)
    assert code_fault(BUILDS["Liquidator"], code) is None
    wanted = liquidator_immutables(safe, treasury, deployment.pause_guard)
    assert immutables_fault(BUILDS["Liquidator"], code, wanted) is None
    code = await node.code(deployment.pause_guard)
    assert code_fault(BUILDS["PauseGuard"], code) is None
    wanted = pause_guard_immutables(safe, DELAY_S, deployment.pause_guard)
    assert immutables_fault(BUILDS["PauseGuard"], code, wanted) is None

    is_guardian = PAUSE_GUARD.function("isGuardian")
    for guardian in world.cast.guardians:
        assert is_guardian.one(await node.call(deployment.pause_guard, is_guardian.encode(guardian.address)))


async def test_deploying_again_finds_everything_and_sends_nothing(site: Site) -> None:
    """A second run gives the same addresses and not one transaction, whatever the order of the guardians."""
    first = await site.deploy()
    nonce = await site.nonce()
    guardians = [guardian.address for guardian in site.lab.world.cast.guardians]
    again = await site.deploy(guardians=[*reversed(guardians), guardians[0]])
    assert (again.pause_guard, again.liquidator) == (first.pause_guard, first.liquidator)
    assert again.created == ()
    assert await site.nonce() == nonce


async def test_an_interrupted_deployment_is_continued(site: Site) -> None:
    """Where the PauseGuard is there already only the Liquidator is created."""
    first = await site.deploy()
    second = await site.deploy(treasury=site.lab.world.cast.lender.address)
    assert second.pause_guard == first.pause_guard
    assert [creation.name for creation in second.created] == ["Liquidator"]
    assert second.liquidator != first.liquidator


@pytest.mark.parametrize("transport", ["url", "ws_url", "ipc_path"])
async def test_every_transport_deploys(undeployed: Settings, fresh_lab: OpenLab, transport: str) -> None:
    """Deploying works over http, ws and ipc alike."""
    site = Site(await fresh_lab(clock="steady", ipc=True), undeployed)
    deployment = await site.deploy(site.with_chain(rpc_urls=(str(getattr(site.lab.anvil, transport)),)))
    assert len(deployment.created) == 2


async def test_a_dead_node_is_passed_over(site: Site) -> None:
    """The next configured node serves when the first does not answer."""
    deployment = await site.deploy(site.with_chain(rpc_urls=("http://127.0.0.1:9", site.lab.anvil.url)))
    assert len(deployment.created) == 2


# --- what stops it ---------------------------------------------------------------------------------------------------


async def test_no_node_at_all_is_said_without_its_key(site: Site) -> None:
    """A `ChainError` names hosts only: the rest of a URL may hold a key."""
    urls = ("http://user:secret-key@127.0.0.1:9/v3/secret-key", "ws://127.0.0.1:9/secret-key")
    with pytest.raises(
        ChainError, match=r"No node of chain.rpc_urls answers: .*http://127\.0\.0\.1:9"
    ) as caught:
        await site.deploy(site.with_chain(rpc_urls=urls))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_another_chain_is_refused(site: Site) -> None:
    """Nothing is sent to a chain that is not the configured one."""
    with pytest.raises(WrongChain, match=r"serves chain 31337, but chain\.id is 1; check chain\.rpc_urls\."):
        await site.deploy(site.with_chain(id=1))


async def test_a_chain_without_the_deterministic_deployer_is_refused(site: Site) -> None:
    """The sentence names the missing deployer and what to do."""
    await site.lab.node.set_code({DETERMINISTIC_DEPLOYER: b""})
    with pytest.raises(ConfigError, match=r"Chain 31337 has no deterministic deployer at 0x4e59b448"):
        await site.deploy()


@pytest.mark.parametrize("who", ["an account", "a contract"])
async def test_what_is_not_a_safe_is_refused(site: Site, who: str) -> None:
    """Neither an account nor some other contract passes for the Safe that will own everything."""
    world = site.lab.world
    address = world.cast.treasury.address if who == "an account" else world.tokens["WETH"].address
    nonce = await site.nonce()
    with pytest.raises(ConfigError, match=rf"{abi.checksum(address)} is not a Safe on this chain"):
        await site.deploy(safe=address)
    assert await site.nonce() == nonce


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unpause_delay_s": 31 * 86_400}, r"PauseGuard .* reverts with InvalidUnpauseDelay\(2678400\)"),
        ({"unpause_delay_s": 0}, r"PauseGuard .* reverts with InvalidUnpauseDelay\(0\)"),
        ({"guardians": [ZERO_ADDRESS]}, r"PauseGuard .* reverts with InvalidGuardian\(0x0000"),
        ({"treasury": ZERO_ADDRESS}, r"Liquidator .* reverts with InvalidAddress\(0x0000"),
    ],
)
async def test_a_constructor_that_reverts_is_explained_before_anything_is_paid(
    site: Site, changes: dict[str, Any], reason: str
) -> None:
    """The contract's own error is told, and no transaction of that contract is sent."""
    with pytest.raises(ExecutionError, match=reason):
        await site.deploy(**changes)


async def test_a_deployer_that_cannot_pay_is_told_how_much(site: Site) -> None:
    """The sentence holds what it has and what it needs; nothing is sent."""
    await site.lab.node.set_balances([site.key.address], 10**9)
    with pytest.raises(ConfigError, match=r"holds 1000000000 wei, but PauseGuard may cost \d+ wei"):
        await site.deploy()


async def test_a_gas_price_above_the_limit_stops_it(site: Site) -> None:
    """limits.max_fee_gwei binds here as it binds the daemon."""
    limits = site.settings.limits.model_copy(
        update={"max_fee_gwei": site.settings.limits.max_fee_gwei / 1000}
    )
    await site.lab.node.set_base_fee(10**9)
    await site.lab.node.mine()
    with pytest.raises(
        ExecutionError, match=r"above limits\.max_fee_gwei \(200000000 wei\): wait or raise the limit"
    ):
        await site.deploy(site.settings.model_copy(update={"limits": limits}))


async def test_a_deployment_still_in_the_pool_is_waited_for(site: Site) -> None:
    """A run that finds its own transaction unmined does not create the contract twice."""
    node, deployer = site.lab.node, site.key.address
    await node.mine_on_demand()
    transfer = {"from": abi.checksum(deployer), "to": abi.checksum(deployer), "value": "0x0"}
    await node.rpc.request("eth_sendTransaction", transfer)
    with pytest.raises(
        ChainError, match=r"1 transactions of 0x[0-9a-fA-F]{40} are not mined yet: wait for them"
    ):
        await site.deploy()


async def test_a_lost_race_is_said_and_the_next_run_takes_what_is_there(site: Site) -> None:
    """Someone else may create the very same contract first: our transaction reverts, and nothing is lost but gas."""
    node, cast = site.lab.node, site.lab.world.cast
    guardians = sorted(guardian.address for guardian in cast.guardians)
    arguments = PAUSE_GUARD.constructor(site.lab.world.safe.address, guardians, DELAY_S)
    rival = {
        "from": abi.checksum(cast.lender.address),
        "to": abi.checksum(DETERMINISTIC_DEPLOYER),
        "data": hex_of(bytes(32) + BUILDS["PauseGuard"].creation_code() + arguments),
        "gas": hex(5_000_000),
        "maxFeePerGas": hex(10**12),
        "maxPriorityFeePerGas": hex(10**11),
    }
    await node.mine_on_demand()
    running = asyncio.create_task(site.deploy())
    while int((await node.rpc.request("txpool_status"))["pending"], 16) == 0:  # noqa: ASYNC110 - a chain wakes nobody
        await asyncio.sleep(0.02)
    await node.rpc.request("eth_sendTransaction", rival)
    await node.mine()
    with pytest.raises(ExecutionError, match=r"that creates PauseGuard was mined and reverted after \d+ gas"):
        await running
    await node.mine_each_transaction()
    assert [creation.name for creation in (await site.deploy()).created] == ["Liquidator"]


async def test_foreign_code_at_the_address_is_never_accepted(site: Site) -> None:
    """One altered byte of what is found there ends the deployment."""
    deployment = await site.deploy()
    code = bytearray(await site.lab.node.code(deployment.liquidator))
    code[100] ^= 0x01
    await site.lab.node.set_code({deployment.liquidator: bytes(code)})
    with pytest.raises(
        ExecutionError, match=r"Liquidator at 0x[0-9a-fA-F]{40} has byte 0x.. at 100 where the build"
    ):
        await site.deploy()


# --- the Safe's part -------------------------------------------------------------------------------------------------


async def test_the_safe_finishes_the_set_up_with_the_calls_it_was_given(site: Site) -> None:
    """Everything is missing at first; after one 2-of-3 transaction nothing is, and a third party may not do it."""
    deployment = await site.deploy()
    wanted = await needs(site)
    calls = setup_calls(deployment.liquidator, wanted)
    assert await missing(site, deployment.liquidator, wanted) == calls

    stranger = site.lab.world.cast.operator.address
    with pytest.raises(ExecutionError, match="NotSafe"):
        await site.lab.node.send(Tx(stranger, calls[0].to, calls[0].data), LIQUIDATOR)
    await execute(site.lab.node, site.lab.world.safe, *[InnerCall(call.to, call.data) for call in calls])
    assert await missing(site, deployment.liquidator, wanted) == []


async def test_calls_that_only_make_sense_together_are_judged_together(site: Site) -> None:
    """Where a protocol says so the Safe is asked for it, once for its scope, and the Liquidator then knows."""
    deployment = await site.deploy()
    wanted = await needs(site)
    wanted.adapters[0].settled_jointly = True
    calls = setup_calls(deployment.liquidator, wanted)
    assert sum(call.text.startswith("setSettledJointly(") for call in calls) == 1
    await execute(site.lab.node, site.lab.world.safe, *[InnerCall(call.to, call.data) for call in calls])
    assert await missing(site, deployment.liquidator, wanted) == []
    liquidator = Contract(site.lab.node, deployment.liquidator, LIQUIDATOR)
    told = [await liquidator.read("settledJointly", scope_of(each.name)) for each in wanted.adapters]
    assert told == [True, *[False] * (len(wanted.adapters) - 1)]


async def test_a_half_done_set_up_asks_for_the_other_half_only(site: Site) -> None:
    """What holds is not asked for again."""
    deployment = await site.deploy()
    wanted = await needs(site)
    calls = setup_calls(deployment.liquidator, wanted)
    done = [InnerCall(call.to, call.data) for call in calls[::2]]
    await execute(site.lab.node, site.lab.world.safe, *done)
    assert await missing(site, deployment.liquidator, wanted) == calls[1::2]


async def test_what_the_safe_chose_differently_stands(site: Site) -> None:
    """Another feed and a stricter slippage are the Safe's business; a looser slippage and a wrong scope are not."""
    deployment = await site.deploy()
    wanted = await needs(site)
    calls = setup_calls(deployment.liquidator, wanted)
    world = site.lab.world

    def call(name: str, *arguments: Any) -> InnerCall:
        return InnerCall(deployment.liquidator, LIQUIDATOR.function(name).encode(*arguments))

    other_feed = call("setFeed", world.tokens["USDC"].address, world.feeds["USDT"].proxy, 3600)
    stricter = call("setMaxSlippageBps", wanted.max_slippage_bps - 1)
    every = [InnerCall(each.to, each.data) for each in calls]
    await execute(site.lab.node, world.safe, *every, other_feed, stricter)
    assert await missing(site, deployment.liquidator, wanted) == []

    looser = call("setMaxSlippageBps", wanted.max_slippage_bps + 1)
    target, selector = wanted.adapters[0].targets()[0]
    moved = call("setTarget", target, selector, Hash(b"elsewhere".ljust(32, b"\0")))
    await execute(site.lab.node, world.safe, looser, moved)
    again = [each.text.partition("(")[0] for each in await missing(site, deployment.liquidator, wanted)]
    assert again == ["setTarget", "setMaxSlippageBps"]


async def test_signers_load_the_batch_and_it_does_the_same(site: Site) -> None:
    """The file holds exactly the calls, for this chain and this Safe; executing its content leaves nothing missing."""
    deployment = await site.deploy()
    wanted = await needs(site)
    calls = setup_calls(deployment.liquidator, wanted)
    safe = site.lab.world.safe
    batch = json.loads(transaction_builder_json(calls, 31337, safe.address, 1_760_000_000_000))
    assert batch["chainId"] == "31337"
    assert batch["meta"]["createdFromSafeAddress"] == abi.checksum(safe.address)
    inner = [
        InnerCall(abi.address(tx["to"]), bytes.fromhex(tx["data"][2:]), int(tx["value"]))
        for tx in batch["transactions"]
    ]
    await execute(site.lab.node, safe, *inner)
    assert await missing(site, deployment.liquidator, wanted) == []


async def test_a_setting_read_from_something_else_is_an_error_not_an_answer(site: Site) -> None:
    """Neither an account nor another contract is taken for a Liquidator that needs everything."""
    wanted = await needs(site)
    for address in (site.lab.world.cast.treasury.address, site.lab.world.tokens["WETH"].address):
        with pytest.raises(ConfigError, match=rf"{abi.checksum(address)} answers unlike a Liquidator about"):
            await missing(site, address, wanted)
