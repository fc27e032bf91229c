"""Every check of the preflight, made to fail for real on a chain where all of them passed a moment before."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from keeper import abi, assembly
from keeper.chain.reads import MULTICALL3
from keeper.config import Settings
from keeper.errors import ChainError, ConfigError, WrongChain
from keeper.installation import LIQUIDATOR, PAUSE_GUARD, missing_setup
from keeper.lab.artifacts import aave_v3_0
from keeper.lab.node import Contract, Tx
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.safe import execute
from keeper.lab.solc import own_artifact
from keeper.lab.world import Lab, open_lab
from keeper.multisig.safe import InnerCall
from keeper.preflight import Check, preflight, require
from keeper.types import GLOBAL_SCOPE, ZERO_ADDRESS, Address

BUILDS = {name: own_artifact(name) for name in ("PauseGuard", "Liquidator")}
STRANGER = Address(bytes([0x99]) * 20)
SENTENCE = re.compile(r"\S.*[^.]\.")  # one line that ends with one full stop


@dataclass(frozen=True)
class Ready:
    """A keeper that is set up, and the chain under it."""

    lab: Lab
    rig: Rig
    settings: Settings

    async def checks(
        self, settings: Settings | None = None, *, operator: Address | None = None, late_s: int = 0
    ) -> dict[str, Check]:
        """The preflight by name, `late_s` after the head; every check is a sentence and every failure has a fix."""
        configured = settings or self.settings
        async with assembly.open_parts(configured) as parts:
            head = await parts.chain.head()
            who = operator or self.lab.world.cast.operator.address
            found = await preflight(
                parts.chain,
                configured,
                parts.adapters,
                parts.venues,
                parts.flash_sources,
                who,
                assembly.operator_key(configured).ready,
                BUILDS,
                head.timestamp_s + late_s,
            )
        for check in found:
            assert SENTENCE.fullmatch(check.detail), check
            assert check.ok or SENTENCE.fullmatch(check.fix), check
        return {check.name: check for check in found}

    def changed(self, section: str, **values: Any) -> Settings:
        """The settings with other values in one section."""
        table = getattr(self.settings, section).model_copy(update=values)
        return self.settings.model_copy(update={section: table})

    async def safe_calls(self, name: str, *arguments: Any) -> None:
        """Have the Safe change a setting of the Liquidator."""
        data = LIQUIDATOR.function(name).encode(*arguments)
        await execute(self.lab.node, self.lab.world.safe, InnerCall(self.rig.liquidator, data))

    async def alter(self, contract: Address, at: int) -> None:
        """Change one byte of a contract's code."""
        code = bytearray(await self.lab.node.code(contract))
        code[at] ^= 0xFF
        await self.lab.node.set_code({contract: bytes(code)})


@pytest.fixture(scope="module")
async def installed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ready]:
    """One world and one keeper for the whole module."""
    async with await open_lab(clock="steady") as lab:
        rig = await make_rig(lab, tmp_path_factory.mktemp("keeper"), Terms(unpause_delay_s=600))
        yield Ready(lab, rig, assembly.settings(rig.config))


@pytest.fixture
async def ready(installed: Ready) -> AsyncIterator[Ready]:
    """The keeper as it was set up; what a test does is undone."""
    snapshot = await installed.lab.node.snapshot()
    yield installed
    await installed.lab.node.revert(snapshot)
    await installed.lab.node.steady_clock()


def failed(checks: dict[str, Check]) -> list[str]:
    """Names of required checks that failed."""
    return [name for name, check in checks.items() if check.required and not check.ok]


def warned(checks: dict[str, Check]) -> list[str]:
    """Names of warnings."""
    return [name for name, check in checks.items() if not check.required and not check.ok]


# --- green -----------------------------------------------------------------------------------------------------------


async def test_a_keeper_that_was_set_up_may_run(ready: Ready) -> None:
    """Nothing required fails, nothing is missing, and the one warning is the standing one of a single node."""
    checks = await ready.checks()
    assert failed(checks) == []
    assert warned(checks) == ["quorum"]
    assert "stands in the way" in checks["quorum"].detail
    assert [check.name for check in require(checks.values())] == ["quorum"]
    async with assembly.open_parts(ready.settings) as parts:
        needs = await assembly.needs(parts, ready.lab.world.cast.operator.address)
        head = await parts.chain.head()
        assert await parts.chain.read(missing_setup(ready.rig.liquidator, needs), head.hash) == []


async def test_two_nodes_that_must_agree_are_no_warning(ready: Ready) -> None:
    """The standing warning goes away with a quorum of two."""
    urls = (ready.lab.anvil.url, ready.lab.anvil.ws_url)
    checks = await ready.checks(ready.changed("chain", quorum=2, rpc_urls=urls))
    assert checks["quorum"].ok
    assert checks["quorum"].detail == "2 of 2 nodes must agree on every head and everything read at it."


# --- chain -----------------------------------------------------------------------------------------------------------


async def test_another_chain_is_refused_on_opening(ready: Ready) -> None:
    """There is no preflight of a chain that is not the configured one."""
    with pytest.raises(WrongChain):
        await ready.checks(ready.changed("chain", id=1))


async def test_a_chain_that_charges_otherwise_than_configured_is_refused(ready: Ready) -> None:
    """Whether bytes cost something is asked of the chain, and the sentence names both words."""
    checks = await ready.checks()
    assert checks["data fee"].ok
    checks = await ready.checks(ready.changed("chain", data_fee="arbitrum"))
    assert failed(checks) == ["data fee"]
    assert 'chain.data_fee is "arbitrum"' in checks["data fee"].detail
    assert '"none"' in checks["data fee"].detail


async def test_an_old_head_is_a_warning_with_both_numbers(ready: Ready) -> None:
    """A node that catches up is no reason not to start: the guard signs nothing meanwhile."""
    assert (await ready.checks(late_s=26))["head age"].ok
    check = (await ready.checks(late_s=27))["head age"]
    assert (check.ok, check.required) == (False, False)
    assert re.fullmatch(r"Block \d+ is 27 s old, and chain\.max_head_age_s is 26\.", check.detail)


async def test_without_multicall3_there_is_nothing_to_ask(ready: Ready) -> None:
    """A chain that cannot be read at one block is refused on opening, and what it lacks is said."""
    await ready.lab.node.set_code({MULTICALL3: b""})
    with pytest.raises(
        ChainError, match="There is no Multicall3 at 0xca11bde05977b3631167028862be2a173976ca11"
    ):
        await ready.checks()


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("contracts", "liquidator"),
        ("contracts", "pause_guard"),
        ("contracts", "safe"),
        ("chain", "wrapped_native"),
        ("profit", "token"),
        ("profit", "native_usd_feed"),
    ],
)
async def test_an_address_without_code_is_named_by_its_key(ready: Ready, section: str, name: str) -> None:
    """The sentence holds the key of keeper.toml, the address and the chain."""
    checks = await ready.checks(ready.changed(section, **{name: STRANGER}))
    check = checks[f"{section}.{name}"]
    assert not check.ok and check.required
    assert check.detail == f"{section}.{name} {abi.checksum(STRANGER)} has no code on chain 31337."
    suffix = ", or run `keeper deploy`." if section == "contracts" else "."
    assert check.fix == f"Correct it in the configuration{suffix}"


@pytest.mark.parametrize(
    ("section", "name"), [("protocols", "pool_addresses_provider"), ("venues", "router")]
)
async def test_addresses_of_protocols_and_venues_are_checked_too(
    ready: Ready, section: str, name: str
) -> None:
    """Whatever is an address in a protocol's or a venue's own table must have code."""
    first, *rest = getattr(ready.settings, section)
    changed = ready.settings.model_copy(update={section: (first.model_copy(update={name: STRANGER}), *rest)})
    check = (await ready.checks(changed))[f"{section}[0].{name}"]
    assert check.detail == f"{section}[0].{name} {abi.checksum(STRANGER)} has no code on chain 31337."


# --- protocols -------------------------------------------------------------------------------------------------------


async def test_a_protocol_that_cannot_be_read_is_named_and_the_others_are_checked(ready: Ready) -> None:
    """A wrong provider address fails its own protocol; the other one's settings are looked at all the same."""
    first, second = ready.settings.protocols
    wrong = first.model_copy(update={"pool_addresses_provider": ready.lab.world.tokens["WETH"].address})
    checks = await ready.checks(ready.settings.model_copy(update={"protocols": (wrong, second)}))
    assert failed(checks) == [f"protocol {first.name}"]
    assert checks[f"protocol {first.name}"].detail.startswith(f'Protocol "{first.name}" cannot be read: ')
    assert any(name.endswith(f"of {second.name}") and checks[name].ok for name in checks)
    assert not any(name.startswith("target") and name.endswith(f"of {first.name}") for name in checks)


async def test_what_a_protocol_warns_of_is_a_warning(ready: Ready) -> None:
    """A reserve whose price source tells no time is the adapter's own warning, passed on with the protocol's name."""
    world = ready.lab.world
    oracle = Contract(ready.lab.node, world.aave["3.0"].oracle, aave_v3_0("AaveOracle").abi)
    assets, sources = [world.tokens["ISO"].address], [world.tokens["WETH"].address]
    await oracle.send(world.cast.deployer.address, "setAssetSources", assets, sources)
    checks = await ready.checks()
    name = ready.settings.protocols[0].name
    warning = checks[f"protocol {name}"]
    assert (warning.ok, warning.required) == (False, False)
    assert warning.detail.startswith(f'Protocol "{name}" warns: ') and "ISO" in warning.detail


# --- money -----------------------------------------------------------------------------------------------------------


async def test_a_profit_token_that_is_no_token_is_refused(ready: Ready) -> None:
    """A contract without decimals() is not what profit is measured in."""
    guard = ready.rig.pause_guard
    check = (await ready.checks(ready.changed("profit", token=guard)))["profit token"]
    assert check.detail == f"profit.token {abi.checksum(guard)} does not answer decimals()."


async def test_a_native_feed_that_is_no_feed_is_refused(ready: Ready) -> None:
    """A contract that is no aggregator cannot price gas."""
    token = ready.lab.world.tokens["USDC"].address
    checks = await ready.checks(ready.changed("profit", native_usd_feed=token))
    assert failed(checks) == ["native price"]
    assert checks["native price"].detail == (
        f"profit.native_usd_feed {abi.checksum(token)} does not answer latestRoundData() and decimals() as an "
        "aggregator does."
    )


async def test_stale_feeds_are_told_with_their_age(ready: Ready) -> None:
    """After a day and an hour without a round every feed is too old: gas cannot be priced, tokens warn."""
    await ready.lab.node.advance(90_001)
    checks = await ready.checks()
    assert failed(checks) == ["native price"]
    detail = checks["native price"].detail
    assert re.search(r"last answered 9\d{4} s ago, more than the 90000 s allowed\.$", detail)
    usdc = abi.checksum(ready.lab.world.tokens["USDC"].address)
    assert f"feed of {usdc} answers" in warned(checks)


@pytest.mark.parametrize(
    ("liquidations", "outcome"), [(0, "failed"), (1, "warned"), (19, "warned"), (21, "good")]
)
async def test_what_the_operator_can_pay_for_is_counted(
    ready: Ready, liquidations: int, outcome: str
) -> None:
    """Less than one liquidation's gas forbids a start, less than twenty warns."""
    operator = ready.lab.world.cast.operator.address
    detail = (await ready.checks())["operator balance"].detail
    cost_wei = 1_000_000 * int(re.findall(r"gas at (\d+) wei", detail)[0])
    await ready.lab.node.set_balances([operator], liquidations * cost_wei + cost_wei // 2)
    checks = await ready.checks()
    check = checks["operator balance"]
    assert f"enough for {liquidations} liquidations" in check.detail
    assert (check.ok, check.required) == {
        "failed": (False, True),
        "warned": (False, False),
        "good": (True, True),
    }[outcome]
    if outcome != "good":
        needed_wei = int(re.findall(r"Send it at least (\d+) wei", check.fix)[0])
        await ready.lab.node.set_balances([operator], liquidations * cost_wei + cost_wei // 2 + needed_wei)
        assert (await ready.checks())["operator balance"].ok


# --- our contracts ---------------------------------------------------------------------------------------------------


async def test_without_contracts_the_way_is_keeper_deploy(ready: Ready) -> None:
    """Before the deployment everything else is checked, and the one thing to do is said."""
    checks = await ready.checks(ready.settings.model_copy(update={"contracts": None}))
    assert failed(checks) == ["contracts"]
    assert checks["contracts"].fix == "Run `keeper deploy`."


@pytest.mark.parametrize("contract", ["Liquidator", "PauseGuard"])
async def test_one_altered_byte_of_code_forbids_a_start(ready: Ready, contract: str) -> None:
    """The sentence says which contract, which byte, and that it is not this version's; its word is not asked."""
    key = "liquidator" if contract == "Liquidator" else "pause_guard"
    await ready.alter(getattr(ready.rig, key), 200)
    checks = await ready.checks()
    assert failed(checks) == [f"{contract} code"]
    address = abi.checksum(getattr(ready.rig, key))
    pattern = rf"contracts\.{key} {address} has byte 0x.. at 200 where the build of {contract} has 0x..\."
    assert re.fullmatch(pattern, checks[f"{contract} code"].detail)
    told = [name for name in checks if name.startswith(("operator 0x", "feed of", "pause of"))]
    assert bool([name for name in told if name.startswith("pause of")]) == (contract == "Liquidator")
    assert bool([name for name in told if not name.startswith("pause of")]) == (contract == "PauseGuard")


@pytest.mark.parametrize("contract", ["Liquidator", "PauseGuard"])
async def test_an_immutable_changed_behind_the_getters_is_found(ready: Ready, contract: str) -> None:
    """Every place of an immutable is looked at, not only the one a getter reads."""
    key = "liquidator" if contract == "Liquidator" else "pause_guard"
    places = BUILDS[contract].immutables
    for offset, length in (places[0], places[-1]):
        snapshot = await ready.lab.node.snapshot()
        await ready.alter(getattr(ready.rig, key), offset + length - 1)
        checks = await ready.checks()
        assert f"{contract} code" in failed(checks)
        assert f"at byte {offset}, which is none of SAFE" in checks[f"{contract} code"].detail
        await ready.lab.node.revert(snapshot)


@pytest.mark.parametrize(
    ("key", "contracts"), [("treasury", ["Liquidator"]), ("safe", ["Liquidator", "PauseGuard"])]
)
async def test_contracts_for_other_people_are_refused(ready: Ready, key: str, contracts: list[str]) -> None:
    """A treasury or Safe that differs from the configured one is told with both addresses."""
    lender = ready.lab.world.cast.lender.address
    configured = ready.settings.require_contracts()
    checks = await ready.checks(ready.changed("contracts", **{key: lender}))
    for contract in contracts:
        check = checks[f"{contract} code"]
        assert not check.ok and check.required
        assert f"holds {abi.checksum(getattr(configured, key))} at byte" in check.detail
        assert f"{key.upper()} {abi.checksum(lender)}" in check.detail


async def test_a_liquidator_of_another_guard_is_refused(ready: Ready) -> None:
    """A pause of a guard the Liquidator does not ask would stop nothing."""
    node, world = ready.lab.node, ready.lab.world
    arguments = PAUSE_GUARD.constructor(world.safe.address, [], 700)
    other = await node.deploy(world.cast.deployer.address, BUILDS["PauseGuard"].creation_code() + arguments)
    checks = await ready.checks(ready.changed("contracts", pause_guard=other))
    assert failed(checks) == ["Liquidator code"]
    assert f"GUARD {abi.checksum(other)}" in checks["Liquidator code"].detail
    assert checks["PauseGuard code"].ok


async def test_a_short_unpause_delay_is_a_warning(ready: Ready) -> None:
    """Guardians need time to veto."""
    node, world = ready.lab.node, ready.lab.world
    arguments = PAUSE_GUARD.constructor(world.safe.address, [], 599)
    other = await node.deploy(world.cast.deployer.address, BUILDS["PauseGuard"].creation_code() + arguments)
    checks = await ready.checks(ready.changed("contracts", pause_guard=other))
    assert "unpause delay" in warned(checks)
    assert checks["unpause delay"].detail == "An unpause takes effect 599 s after the Safe schedules it."


async def test_a_pause_is_a_warning_with_its_reason(ready: Ready) -> None:
    """A paused keeper starts and waits; who looks sees since when and why."""
    world = ready.lab.world
    pause = PAUSE_GUARD.function("pause").encode(GLOBAL_SCOPE, b"ORACLE\0\0", bytes(32))
    await ready.lab.node.send(Tx(world.cast.guardians[0].address, ready.rig.pause_guard, pause), PAUSE_GUARD)
    checks = await ready.checks()
    assert failed(checks) == []
    assert "pause of global" in warned(checks)
    pattern = r'The scope "global" is paused since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC \(ORACLE\)\.'
    assert re.fullmatch(pattern, checks["pause of global"].detail)
    assert checks[f"pause of {ready.settings.protocols[0].name}"].ok


# --- the Safe and its settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "fix"), [(1, "Raise its threshold to at least 2"), (3, "Add an owner")]
)
async def test_a_safe_one_key_can_use_or_lock_is_a_warning(ready: Ready, threshold: int, fix: str) -> None:
    """1 of 3 falls to one theft, 3 of 3 to one loss."""
    safe = ready.lab.world.safe
    change = abi.load("Safe").function("changeThreshold").encode(threshold)
    await execute(ready.lab.node, safe, InnerCall(safe.address, change))
    checks = await ready.checks()
    assert "Safe" in warned(checks)
    assert checks["Safe"].detail == f"The Safe {abi.checksum(safe.address)} needs {threshold} of 3 owners."
    assert checks["Safe"].fix.startswith(fix)


async def test_what_is_no_safe_is_refused(ready: Ready) -> None:
    """A contract that has no owners is not the Safe."""
    token = ready.lab.world.tokens["WETH"].address
    checks = await ready.checks(ready.changed("contracts", safe=token))
    assert "Safe" in failed(checks)
    assert checks["Safe"].detail.endswith("does not answer getThreshold() and getOwners() as a Safe does.")


async def test_an_unknown_operator_forbids_a_start(ready: Ready) -> None:
    """The sentence names the operator, and the fix is the very call."""
    stranger = ready.lab.world.cast.lender.address
    checks = await ready.checks(operator=stranger)
    who = abi.checksum(stranger)
    assert failed(checks) == [f"operator {who}"]
    check = checks[f"operator {who}"]
    assert check.detail == f"The Liquidator's operator {who} is unknown."
    safe = abi.checksum(ready.lab.world.safe.address)
    assert check.fix == f"Have the Safe {safe} call setOperator({who}, true)."
    with pytest.raises(
        ConfigError, match=rf"operator {who} is unknown: have the Safe {safe} call setOperator"
    ):
        require(checks.values())


async def test_a_target_without_or_in_another_scope_forbids_a_start(ready: Ready) -> None:
    """A protocol that could not be paused by its own name must not be liquidated."""
    async with assembly.open_parts(ready.settings) as parts:
        needs = await assembly.needs(parts, STRANGER)
    protocol = ready.settings.protocols[1].name
    target, selector = needs.adapters[1].targets()[0]
    name = f"target {abi.checksum(target)} 0x{selector.hex()} of {protocol}"
    await ready.safe_calls("setTarget", target, selector, bytes(32))
    checks = await ready.checks()
    assert failed(checks) == [name]
    assert checks[name].detail == f"The Liquidator's {name} is not allowed."
    await ready.safe_calls("setTarget", target, selector, b"elsewhere".ljust(32, b"\0"))
    assert (await ready.checks())[name].detail == f'The Liquidator\'s {name} is in the scope "elsewhere".'


async def test_a_flash_source_and_a_router_must_be_allowed(ready: Ready) -> None:
    """Without either no plan could be carried out."""
    pool, router = ready.lab.world.aave["3.6"].pool, ready.settings.venues[0].router
    await ready.safe_calls("setFlashSource", pool, 0)
    await ready.safe_calls("setVenue", router, 0)
    checks = await ready.checks()
    assert failed(checks) == [f"flash source {abi.checksum(pool)}", f"router {abi.checksum(router)}"]
    router_check = checks[f"router {abi.checksum(router)}"]
    assert router_check.fix.endswith(f"call setVenue({abi.checksum(router)}, 1).")


async def test_a_missing_feed_stops_everything_only_for_the_profit_token(ready: Ready) -> None:
    """Another token's feed concerns its own reserve, so it is a warning, unless that token is kept."""
    tokens = ready.lab.world.tokens
    await ready.safe_calls("setFeed", tokens["WBTC"].address, ZERO_ADDRESS, 0)
    checks = await ready.checks()
    assert failed(checks) == []
    name = f"feed of {abi.checksum(tokens['WBTC'].address)}"
    assert name in warned(checks) and f"{name} answers" not in checks
    assert checks[name].detail == f"The Liquidator's {name} is missing."
    checks = await ready.checks(ready.changed("profit", keep=(tokens["WBTC"].address,)))
    assert failed(checks) == [name] and checks["profit.keep[0]"].ok
    await ready.safe_calls("setFeed", tokens["USDC"].address, ZERO_ADDRESS, 0)
    checks = await ready.checks()
    assert failed(checks) == [f"feed of {abi.checksum(tokens['USDC'].address)}"]


async def test_a_profit_token_no_protocol_prices_needs_a_feed_of_the_safes_choice(ready: Ready) -> None:
    """The fix cannot name the aggregator, so it says what kind is wanted; once set, the check passes."""
    node, world = ready.lab.node, ready.lab.world
    other = await node.deploy(
        world.cast.deployer.address, aave_v3_0("MintableERC20").creation_code("Euro", "EUR", 6)
    )
    settings = ready.changed("profit", token=other)
    checks = await ready.checks(settings)
    name = f"feed of {abi.checksum(other)}"
    assert failed(checks) == [name]
    assert checks[name].fix.endswith(f"call setFeed({abi.checksum(other)}, its USD aggregator, 90000).")
    await ready.safe_calls("setFeed", other, world.feeds["DAI"].proxy, 90_000)
    checks = await ready.checks(settings)
    assert failed(checks) == []
    assert checks[f"{name} answers"].ok


async def test_a_feed_that_is_no_aggregator_is_a_warning(ready: Ready) -> None:
    """The Safe can set anything that has decimals(); whether it answers shows here."""
    tokens = ready.lab.world.tokens
    await ready.safe_calls("setFeed", tokens["DAI"].address, tokens["USDC"].address, 3600)
    checks = await ready.checks()
    name = f"feed of {abi.checksum(tokens['DAI'].address)} answers"
    assert failed(checks) == [] and name in warned(checks)
    assert "does not answer latestRoundData() and decimals()" in checks[name].detail


@pytest.mark.parametrize(("bps", "outcome"), [(0, "failed"), (301, "warned"), (50, "good")])
async def test_a_slippage_limit_must_be_set_and_should_not_be_looser(
    ready: Ready, bps: int, outcome: str
) -> None:
    """Never set, nothing that swaps passes; looser than configured still limits; stricter is the Safe's right."""
    await ready.safe_calls("setMaxSlippageBps", bps)
    checks = await ready.checks()
    assert checks["slippage limit"].detail == f"The Liquidator's slippage limit is {bps} basis points."
    assert ("slippage limit" in failed(checks), "slippage limit" in warned(checks)) == (
        outcome == "failed",
        outcome == "warned",
    )


# --- this machine ----------------------------------------------------------------------------------------------------


async def test_a_record_that_cannot_be_kept_forbids_a_start(ready: Ready, tmp_path: Path) -> None:
    """The sentence names the file and what is wrong with it."""
    url = f"sqlite:///{tmp_path}/gone/keeper.db"
    checks = await ready.checks(ready.changed("store", url=url))
    assert failed(checks) == ["store"]
    expected = f"The record cannot be kept in {tmp_path}/gone/keeper.db: there is no folder {tmp_path}/gone."
    assert checks["store"].detail == expected


async def test_a_halt_file_is_a_warning(ready: Ready, tmp_path: Path) -> None:
    """The daemon may start and wait until it is gone."""
    halt = tmp_path / "keeper.halt"
    settings = ready.changed("guard", halt_file=halt)
    assert (await ready.checks(settings))["halt file"].ok
    halt.touch()
    checks = await ready.checks(settings)
    assert failed(checks) == [] and "halt file" in warned(checks)
    assert checks["halt file"].detail == f"The halt file {halt} is there, so nothing is signed."


async def test_the_fee_limit_caps_what_a_liquidation_is_taken_to_cost(ready: Ready) -> None:
    """No more is asked of the operator's balance than could ever be signed for."""
    checks = await ready.checks(ready.changed("limits", max_fee_gwei=Decimal("0.5")))
    assert "gas at 500000000 wei" in checks["operator balance"].detail


async def test_a_budget_too_small_for_one_liquidation_is_a_warning(ready: Ready) -> None:
    """What all the gas of one may come to is told beside it; without a budget nothing is said."""
    assert "bad debt budget" not in await ready.checks()
    small = ready.changed("limits", bad_debt_budget_usd_per_day=Decimal("0.01"))
    checks = await ready.checks(small)
    assert "bad debt budget" in warned(checks) and failed(checks) == []
    [needed] = re.findall(r"may come to \$([0-9.]+)\.$", checks["bad debt budget"].detail)
    enough = ready.changed("limits", bad_debt_budget_usd_per_day=Decimal(needed))
    assert (await ready.checks(enough))["bad debt budget"].ok
