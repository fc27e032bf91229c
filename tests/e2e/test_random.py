"""Random portfolios on random markets through random price paths: nothing profitable is left and every figure is true.

Each seed is one world, a few accounts on both versions of Aave and a path of prices. `KEEPER_DEEP=1` plays 200 seeds,
otherwise a sample; a failure names its seed, and `KEEPER_SEED=17,23` plays those alone.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from keeper.engine.head import StepReport
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import set_prices
from keeper.lab.judge import judge
from keeper.lab.positions import PositionSpec, account_data, open_positions
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.uniswap import PoolSpec, move_pool
from keeper.lab.world import BASE_FEE_WEI, V3_POOLS, Lab, WorldSpec, open_lab
from keeper.types import Address
from tests.conftest import Count
from tests.e2e.line import Line, open_again

_E8 = 10**8
STABLES: tuple[str, ...] = ("USDC", "DAI", "USDT")
ETHERS: tuple[str, ...] = ("WETH", "wstETH")
PLAIN: tuple[str, ...] = (*STABLES, *ETHERS, "WBTC")


def _depth(bps: int) -> tuple[PoolSpec, ...]:
    """The usual pools with this part of their depth; those with a narrow range keep a million."""
    least = {pool: 1_000_000 if pool.fee == 100 else 20_000 for pool in V3_POOLS}
    return tuple(
        replace(pool, depth_usd=max(pool.depth_usd * bps // 10_000, least[pool])) for pool in V3_POOLS
    )


# As deep as it gets, a hundredth of that, and one where most direct pools are missing.
WORLDS = (
    WorldSpec(),
    WorldSpec(v3_pools=_depth(100)),
    WorldSpec(v3_pools=tuple(pool for pool in _depth(1_000) if pool.fee != 3000 or "ISO" in pool.symbols)),
)
if "KEEPER_SEED" in os.environ:
    SEEDS = [int(seed) for seed in os.environ["KEEPER_SEED"].split(",")]
else:
    SEEDS = list(range(200 if os.environ.get("KEEPER_DEEP") == "1" else 6))
_LOOKS_AGAIN = 16  # heads within which everybody left alone got a thorough look
_SEEDS_A_GROUND = 20  # anvil forgets the states of old blocks, which the judge reads, after some thousands
# A ground's seeds together, so that it is set up once.
CASES = sorted(((seed % len(WORLDS), seed // (len(WORLDS) * _SEEDS_A_GROUND)), seed) for seed in SEEDS)


@dataclass(frozen=True, slots=True)
class Move:
    """New prices by symbol in dollars with 8 decimals; whether the pools follow, and how long it has been."""

    prices_e8: Mapping[str, int]
    pools_follow: bool
    after_s: int


@pytest.fixture(scope="module")
async def ground(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Lab, Rig]]:
    """A world on a steady clock with a keeper set up in it, new after some seeds."""
    async with await open_lab(WORLDS[request.param[0]], clock="steady") as lab:
        yield lab, await make_rig(lab, tmp_path_factory.mktemp("rig"), Terms())


@pytest.fixture
async def place(ground: tuple[Lab, Rig], tmp_path: Path) -> AsyncIterator[tuple[Lab, Rig]]:
    """The keeper's files for one seed alone, and the world as it was afterwards."""
    lab, rig = ground
    node, snapshot = lab.node, await lab.node.snapshot()
    for name in ("keeper.toml", ".env"):
        (tmp_path / name).write_bytes((rig.folder / name).read_bytes())
    await node.set_base_fee(BASE_FEE_WEI)
    yield lab, replace(rig, folder=tmp_path, config=tmp_path / "keeper.toml")
    await node.mine_on_demand()
    await node.drop_pending()
    await node.revert(snapshot)
    await node.drop_pending()
    await node.mine_each_transaction()
    await node.steady_clock()


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize(("ground", "seed"), CASES, indirect=["ground"], scope="module")
async def test_nothing_profitable_is_left(place: tuple[Lab, Rig], seed: int, count: Count) -> None:
    """The judge agrees, the treasury never falls, and what is booked is what it gained."""
    lab, rig = place
    chance = random.Random(seed)
    accounts = await _portfolios(lab, chance, seed)
    async with open_again(lab, rig) as line:
        await lab.node.mine_on_demand()
        began_raw = await line.treasury_raw()
        unhealthy = 0
        path = _path(lab, chance)
        for move in path:
            await _make(lab, move)
            unhealthy = max(unhealthy, await _unhealthy(lab, accounts))
            await _until_quiet(line)
        while not unhealthy:  # a path that put nobody at risk shows nothing yet
            path.append(_crash(path[-1]))
            await _make(lab, path[-1])
            unhealthy = await _unhealthy(lab, accounts)
            await _until_quiet(line)
        verdict = await judge(rig.config)
        if verdict.left:
            # a fee tier that looked worse than two others is quoted in a thorough look only
            for _ in range(_LOOKS_AGAIN):
                await line.step()
                await lab.node.mine()
            await _until_quiet(line)
            verdict = await judge(rig.config)
        gained_raw = await line.treasury_raw() - began_raw
        assert line.ledger.gross_profit_raw(lab.world.tokens["USDC"].address) == gained_raw
        assert line.ledger.verify() is None
        assert not line.store.open_transactions()
        assert len(line.booked("intent")) == len(line.booked("settled", "reverted"))
    assert verdict.ok, f"seed {seed}: {verdict}"
    count("random portfolios on random price paths (seeds from 0)", 1)


async def _until_quiet(line: Line) -> list[StepReport]:
    """Handle heads until one comes to nothing; the treasury never falls from one to the next."""
    reports: list[StepReport] = []
    held_raw = await line.treasury_raw()
    while not reports or reports[-1].sent or reports[-1].settled:
        assert len(reports) < 40, f"still busy: {reports[-1]}"
        reports.append(await line.step())
        await line.lab.node.mine()
        now_raw = await line.treasury_raw()
        assert now_raw >= held_raw
        held_raw = now_raw
    return reports


async def _portfolios(lab: Lab, chance: random.Random, seed: int) -> dict[str, list[Address]]:
    """Accounts on both markets: up to five collaterals and three debts, e-modes, isolation, cents and fortunes."""
    accounts: dict[str, list[Address]] = {}
    for place, (version, market) in enumerate(lab.world.aave.items()):
        count = chance.randint(4, 9)
        owners = [account(10_000 + seed * 100 + place * 50 + number) for number in range(count + 1)]
        exposed = PositionSpec(owners[0], {"WETH": _raw(lab, "WETH", 20_000)}, {"USDC": 1}, 110 * WAD // 100)
        specs = [exposed, *(_spec(lab, chance, who) for who in owners[1:])]
        await open_positions(lab.node, lab.world.cast, market, specs)
        accounts[version] = [spec.account for spec in specs]
    return accounts


def _spec(lab: Lab, chance: random.Random, who: Address) -> PositionSpec:
    kind = chance.choice(("plain", "plain", "plain", "stable", "ether", "isolated"))
    # from a dollar to half a million per asset, most of it ordinary
    worth_usd = 10 ** (chance.uniform(0, 5.7) if chance.random() < 0.4 else chance.uniform(3, 5))
    e_mode, lowest, supply = 0, 1.075, PLAIN
    borrow = STABLES if chance.random() < 0.6 else PLAIN
    if kind == "stable":
        e_mode, supply, borrow = 1, STABLES, STABLES
    elif kind == "ether":
        e_mode, supply, borrow = 2, ETHERS, ETHERS
    elif kind == "isolated":
        supply, borrow, lowest = ("ISO",), STABLES, 1.21
    held = chance.sample(supply, chance.randint(1, min(5, len(supply))))
    owed = chance.sample(borrow, chance.randint(1, min(3, len(borrow))))
    if e_mode and chance.random() < 0.5:
        held = list(dict.fromkeys([*held, chance.choice(PLAIN)]))
    idle = (chance.choice(held),) if len(held) > 1 and not e_mode and chance.random() < 0.2 else ()
    return PositionSpec(
        account=who,
        supply={symbol: _raw(lab, symbol, worth_usd * chance.uniform(0.2, 1)) for symbol in held},
        borrow={symbol: chance.randint(1, 10) for symbol in owed},
        health_factor_wad=int(chance.uniform(lowest, lowest + 0.1) * WAD),
        e_mode=e_mode,
        idle=idle,
    )


def _raw(lab: Lab, symbol: str, usd: float) -> int:
    world = lab.world
    return max(1, int(usd * _E8 * 10 ** world.tokens[symbol].decimals / world.prices_e8[symbol]))


def _path(lab: Lab, chance: random.Random) -> list[Move]:
    """Three to six moves of every price: mostly down, one of them a crash, some back up; stablecoins hold roughly."""
    prices = {symbol: float(price) for symbol, price in lab.world.prices_e8.items()}
    moves: list[Move] = []
    count = chance.randint(3, 6)
    crash = chance.randrange(count)
    for number in range(count):
        market = chance.choice((chance.uniform(0.93, 1.01), chance.uniform(0.8, 0.95)))
        if number == crash:
            market = chance.uniform(0.65, 0.9)
        elif chance.random() < 0.3:
            market = chance.uniform(1.0, 1.06)
        for symbol in ("WETH", "WBTC", "ISO"):
            prices[symbol] *= market * chance.uniform(0.97, 1.03)
        # these keep near each other, as their pools' narrow liquidity expects
        prices["wstETH"] = prices["WETH"] * 1.2 * chance.uniform(0.97, 1.03)
        prices |= {symbol: _E8 * chance.uniform(0.993, 1.007) for symbol in STABLES}
        rounded = {symbol: int(price) for symbol, price in prices.items()}
        moves.append(Move(rounded, chance.random() < 0.7, chance.choice((1, 12, 3_600))))
    return moves


def _crash(after: Move) -> Move:
    """A fifth off everything that is not a stablecoin."""
    prices = {s: price if s in STABLES else price * 4 // 5 for s, price in after.prices_e8.items()}
    return replace(after, prices_e8=prices, pools_follow=True)


async def _make(lab: Lab, move: Move) -> None:
    """Time passes, the pools trade where the market went, and every feed reports in one block."""
    node, world = lab.node, lab.world
    await node.mine_each_transaction()
    await node.advance(move.after_s)
    if move.pools_follow:
        for pool in world.uniswap_v3.pools:
            prices = (move.prices_e8[pool.token0.symbol], move.prices_e8[pool.token1.symbol])
            await move_pool(node, world.cast, world.uniswap_v3, pool, *prices)
    await set_prices(node, {world.feeds[symbol]: price for symbol, price in move.prices_e8.items()})
    await node.mine_on_demand()


async def _unhealthy(lab: Lab, accounts: Mapping[str, Sequence[Address]]) -> int:
    count = 0
    for version, owners in accounts.items():
        data = await account_data(lab.node, lab.world.aave[version], owners)
        count += sum(1 for each in data if each.health_factor_wad < WAD)
    return count
