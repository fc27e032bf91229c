"""A keeper ready to run on a local world: contracts deployed, set up by the Safe, configuration written.

It goes the way an operator goes: `keeper deploy`'s own code, then a real 2-of-3 Safe transaction with the calls that
the deployment asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keeper import assembly, config
from keeper.abi import checksum
from keeper.data_fee import DataFeeKind
from keeper.deploy import deploy
from keeper.installation import setup_calls
from keeper.keys import DeployerKey
from keeper.lab.safe import execute
from keeper.lab.solc import own_artifact
from keeper.lab.world import Lab
from keeper.multisig.safe import InnerCall
from keeper.types import Address

CONTRACTS: Final = ("PauseGuard", "Liquidator")


@dataclass(frozen=True, slots=True)
class Terms:
    """What the local operator asks for."""

    profit: str = "USDC"
    keep: tuple[str, ...] = ()
    min_profit_usd: str = "1.0"
    max_slippage_bps: int = 300
    unpause_delay_s: int = 5
    max_loss_usd_per_day: str = "1000"
    max_consecutive_reverts: int = 5
    max_head_age_s: int = 26
    max_price_age_s: int = 90_000
    unpause_confirmations: int = 0
    canary_usd: str = "10000000"  # as much as any: no ramp
    data_fee: DataFeeKind = "none"
    priority_share_bps: int = 0
    max_accounts: int = 1


@dataclass(frozen=True, slots=True)
class Rig:
    """Where the keeper is: its folder with `keeper.toml`, `.env`, `keeper.db`, and its two contracts."""

    folder: Path
    config: Path
    liquidator: Address
    pause_guard: Address


async def make_rig(
    lab: Lab, folder: Path, terms: Terms = Terms(), rpc_urls: Sequence[str] = (), tables: str = ""
) -> Rig:
    """Deploy and set up a keeper for every Aave market and the Uniswap V3 of `lab`, and what more `tables` name."""
    path = write_configuration(lab, folder, terms, rpc_urls, tables)
    world, people = lab.world, lab.world.cast
    settings = assembly.settings(path)
    deployment = await deploy(
        settings,
        DeployerKey("0x" + people.deployer.key.hex(), world.chain_id, "the deployer's key"),
        world.safe.address,
        people.treasury.address,
        [guardian.address for guardian in people.guardians],
        terms.unpause_delay_s,
        {name: own_artifact(name) for name in CONTRACTS},
    )
    config.write_contracts(
        path, deployment.liquidator, deployment.pause_guard, deployment.safe, deployment.treasury
    )
    async with assembly.open_parts(assembly.settings(path)) as parts:
        needs = await assembly.needs(parts, people.operator.address)
    calls = [InnerCall(call.to, call.data) for call in setup_calls(deployment.liquidator, needs)]
    await execute(lab.node, world.safe, *calls)
    return Rig(folder, path, deployment.liquidator, deployment.pause_guard)


def write_configuration(
    lab: Lab, folder: Path, terms: Terms, rpc_urls: Sequence[str] = (), tables: str = ""
) -> Path:
    """`keeper.toml` without contracts, and `.env` with the operator's and the deployer's key."""
    folder.mkdir(parents=True, exist_ok=True)
    path, secrets = folder / "keeper.toml", folder / ".env"
    people = lab.world.cast
    path.write_text(_toml(lab, terms, rpc_urls or (lab.anvil.ws_url,)) + tables)
    secrets.touch(mode=0o600)
    secrets.write_text(
        f"KEEPER_PRIVATE_KEY=0x{people.operator.key.hex()}\nKEEPER_DEPLOYER_KEY=0x{people.deployer.key.hex()}\n"
    )
    return path


def keeper_environment() -> dict[str, str]:
    """The environment of a keeper started here: nothing of ours that would override its files."""
    return {name: value for name, value in os.environ.items() if not name.startswith("KEEPER_")}


def _toml(lab: Lab, terms: Terms, rpc_urls: Sequence[str]) -> str:
    world = lab.world
    protocols = "".join(
        f"""
[[protocols]]
kind = "aave-v3"
name = "aave-{version.replace(".", "-")}"
pool_addresses_provider = "{checksum(market.provider)}"
max_price_age_s = {terms.max_price_age_s}
"""
        for version, market in world.aave.items()
    )
    uniswap = world.uniswap_v3
    return f"""[chain]
id = {world.chain_id}
rpc_urls = [{", ".join(f'"{url}"' for url in rpc_urls)}]
max_head_age_s = {terms.max_head_age_s}
wrapped_native = "{checksum(world.tokens["WETH"].address)}"
data_fee = "{terms.data_fee}"

[signer]
kind = "env"

[profit]
token = "{checksum(world.tokens[terms.profit].address)}"
keep = [{", ".join(f'"{checksum(world.tokens[one].address)}"' for one in terms.keep)}]
min_profit_usd = {terms.min_profit_usd}
max_slippage_bps = {terms.max_slippage_bps}
native_usd_feed = "{checksum(world.feeds["WETH"].proxy)}"

[limits]
max_fee_gwei = 200.0
max_gas_spend_wei_per_hour = 1000000000000000000
max_loss_usd_per_day = {terms.max_loss_usd_per_day}
max_consecutive_reverts = {terms.max_consecutive_reverts}
max_repay_usd = 10000000.0
max_accounts = {terms.max_accounts}

[pause]
unpause_confirmations = {terms.unpause_confirmations}

[resume]
canary_usd = {terms.canary_usd}

[breakers]
max_exposure_usd = 1000000000000.0
max_deviation_bps = 100000
volatility_smaller_bps = 1000000
volatility_stop_bps = 1000000
disagreement_window_s = 1
max_reorg_depth = 1000000
min_transactions = 0

[send]
route = "public"
priority_share_bps = {terms.priority_share_bps}
{protocols}
[[venues]]
kind = "uniswap-v3"
factory = "{checksum(uniswap.factory)}"
quoter = "{checksum(uniswap.quoter)}"
router = "{checksum(uniswap.router)}"
fee_tiers = [100, 500, 3000, 10000]

[store]
url = "sqlite:///keeper.db"
"""
