from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from keeper.abi import address, load
from keeper.errors import ChainError, ExecutionError
from keeper.fixed import BPS, WAD
from keeper.lab.aave import (
    FLASH_PREMIUM_BPS,
    AaveMarket,
    ReserveSpec,
    configurator_of,
    oracle_of,
    pool_of,
    supply_by_lender,
)
from keeper.lab.actors import account
from keeper.lab.anvil import Anvil
from keeper.lab.artifacts import aave_v3_0, aave_v3_6, chainlink, own
from keeper.lab.chainlink import latest, set_price, set_prices
from keeper.lab.crowd import write_accounts
from keeper.lab.node import ETHER, Contract, Node, Tx
from keeper.lab.positions import (
    AccountData,
    PositionSpec,
    account_data,
    liquidate,
    open_position,
    open_positions,
)
from keeper.lab.safe import execute, execute_tx, safe_contract
from keeper.lab.tokens import balance_of, erc20, mint
from keeper.lab.uniswap import DEADLINE_S, drain_pool, move_pool, quote_v3, swap_v3, v2_router
from keeper.lab.world import Lab, World, add_token
from keeper.multisig.safe import CALL, InnerCall
from keeper.typed_data import SafeTx, domain_separator, safe_tx_hash
from keeper.types import Address, Token
from tests.conftest import OpenLab

VERSIONS = ("3.0", "3.6")
BORROWER = account(1)
E8 = 10**8


@pytest.fixture(params=VERSIONS)
def market(lab: Lab, request: pytest.FixtureRequest) -> AaveMarket:
    """Each Aave market in turn."""
    return lab.world.aave[request.param]


def weth_position(health_factor_wad: int = 105 * WAD // 100, who: Address = BORROWER) -> PositionSpec:
    """10 WETH against USDC."""
    return PositionSpec(who, {"WETH": 10 * ETHER}, {"USDC": 1}, health_factor_wad)


async def data_of(lab: Lab, market: AaveMarket, who: Address = BORROWER) -> AccountData:
    """One account's data."""
    return (await account_data(lab.node, market, [who]))[0]


# --- anvil -----------------------------------------------------------------------------------------------------------

ORPHANING = """
import sys, threading, time
from keeper.lab.anvil import Anvil
started = []
thread = threading.Thread(target=lambda: started.append(Anvil.start()))
thread.start(); thread.join()
time.sleep(0.3)
print(started[0].pid, started[0].running, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killed_parent_leaves_no_anvil() -> None:
    """Killed with SIGKILL, a process leaves no anvil behind; a thread of it that ends does not take anvil along."""
    with subprocess.Popen([sys.executable, "-c", ORPHANING], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, running = parent.stdout.readline().split()
        assert running == "True"
        assert alive(int(pid))
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 5
        while alive(int(pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not alive(int(pid))
    left = list(Path(tempfile.gettempdir()).glob(f"keeper-anvil-{parent.pid}-*"))
    assert left, "whoever is killed cannot tidy up"
    sweeping = "from keeper.lab.anvil import Anvil; Anvil.start().stop()"
    subprocess.run([sys.executable, "-c", sweeping], check=True)
    assert not any(home.exists() for home in left)


def test_states_of_old_blocks_are_gone_with_the_node() -> None:
    """A long chain's states take disk only while the node runs."""
    with Anvil.start(ipc=True) as anvil:
        assert anvil.ipc_path is not None
        home = anvil.ipc_path.parent
        asyncio.run(_mined(anvil.url, 800))
        assert any(home.rglob("*.json")), "they are where they are tidied up"
    assert not home.exists()


async def _mined(url: str, blocks: int) -> None:
    async with await Node.open(url) as node:
        await node.mine(blocks)


def test_failed_start_is_one_clear_sentence() -> None:
    """A fork of nothing says what went wrong, and leaves no process."""
    with pytest.raises(
        ChainError, match=r"^anvil exited with code 1 while starting: failed to .* refused.*\.$"
    ):
        Anvil.start(fork_url="http://127.0.0.1:1")


async def test_every_transport_reaches_the_same_chain() -> None:
    """HTTP, WebSocket and IPC answer from one chain."""
    with Anvil.start(ipc=True) as anvil:
        assert anvil.ipc_path is not None
        heads = []
        for url in (anvil.url, anvil.ws_url, str(anvil.ipc_path)):
            async with await Node.open(url) as node:
                await node.mine()
                heads.append((await node.head()).number)
        assert heads == [1, 2, 3]
    assert not anvil.running


async def test_dumped_state_loads_with_its_logs(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """What `stop` dumps is the chain: its height, balances and logs are there after loading."""
    state = tmp_path / "state.json"
    lab = await fresh_lab(clock="steady", dump_state=state)
    usdc, head = lab.world.tokens["USDC"], await lab.node.head()
    await mint(lab.node, lab.world.cast, usdc, BORROWER, 7)
    await lab.close()
    with Anvil.start(load_state=state) as anvil:
        async with await Node.open(anvil.url) as node:
            assert (await node.head()).number == head.number + 1
            assert await balance_of(node, usdc, BORROWER) == 7
            logs = await node.rpc.request(
                "eth_getLogs", {"fromBlock": "0x0", "address": "0x" + usdc.address.hex()}
            )
    assert int(logs[-1]["blockNumber"], 16) == head.number + 1
    assert len(logs) > 10


async def test_clocks(fresh_lab: OpenLab) -> None:
    """The steady clock ticks once a block, `advance` jumps, and the wall clock is the wall's with fresh prices."""
    steady = (await fresh_lab(clock="steady")).node
    start = (await steady.head()).timestamp_s
    await steady.mine(2)
    await steady.advance(100)
    await steady.mine()
    assert (await steady.head()).timestamp_s == start + 103
    wall = await fresh_lab(clock="wall")
    await wall.node.mine()
    assert abs((await wall.node.head()).timestamp_s - time.time()) <= 2
    answers = [await latest(wall.node, feed) for feed in wall.world.feeds.values()]
    assert all(abs(answer.updated_at_s - time.time()) <= 2 for answer in answers)
    with pytest.raises(ChainError, match="ahead of the wall clock"):
        await wall.node.advance(1000)
        await wall.node.wall_clock()


async def test_blocks_come_by_interval_or_on_demand(lab: Lab) -> None:
    """Without mining a transaction waits for `mine`; with an interval a block comes by itself."""
    node, tx = (
        lab.node,
        {"from": "0x" + lab.world.cast.operator.address.hex(), "gas": "0x5208", "value": "0x1"},
    )
    tx["to"] = "0x" + BORROWER.hex()
    await node.mine_on_demand()
    before = (await node.head()).number
    waiting = await node.rpc.request("eth_sendTransaction", tx)
    assert await node.rpc.request("eth_getTransactionReceipt", waiting) is None
    await node.mine()
    assert (await node.rpc.request("eth_getTransactionReceipt", waiting))["status"] == "0x1"
    await node.mine_every(1)
    await node.send(Tx(lab.world.cast.operator.address, BORROWER, value_wei=1, gas=21_000))
    assert (await node.head()).number >= before + 2


async def test_snapshot_and_revert(lab: Lab, market: AaveMarket) -> None:
    """Reverting restores state, height and time; a snapshot works once."""
    node, head = lab.node, await lab.node.head()
    snapshot = await node.snapshot()
    await open_position(node, lab.world.cast, market, weth_position())
    await node.advance(1000)
    await node.revert(snapshot)
    assert await node.head() == head
    assert (await data_of(lab, market)).debt_base == 0
    with pytest.raises(ChainError, match="no snapshot"):
        await node.revert(snapshot)


async def test_fork_sees_the_same_and_changes_nothing(lab: Lab, market: AaveMarket) -> None:
    """A fork answers as its origin does, can be changed at will, and neither disturbs the other afterwards."""
    node = lab.node
    opened = await open_position(node, lab.world.cast, market, weth_position())
    head = await node.head()
    with lab.anvil.fork() as child:
        async with await Node.open(child.url) as forked:
            assert (await account_data(forked, market, [BORROWER])) == [opened]
            await set_price(forked, lab.world.feeds["WETH"], 1800 * E8)
            await liquidate(forked, lab.world.cast, market, BORROWER, "WETH", "USDC")
            after = (await account_data(forked, market, [BORROWER]))[0]
            await set_price(node, lab.world.feeds["WETH"], 2100 * E8)
            assert (await account_data(forked, market, [BORROWER])) == [after]
    assert after.debt_base < opened.debt_base
    # a rise of the price is all that happened at the origin, besides two seconds' interest
    assert await account_data(node, market, [BORROWER]) != [opened]
    assert (await data_of(lab, market)).collateral_base == opened.collateral_base * 21 // 20
    assert (await node.head()).number == head.number + 1


async def test_a_revert_names_its_reason(lab: Lab, market: AaveMarket) -> None:
    """A transaction that fails is an error with the contract's own words."""
    reason = {"3.0": r"Error\(36\)", "3.6": r"HealthFactorLowerThanLiquidationThreshold\(\)"}[market.version]
    await open_position(lab.node, lab.world.cast, market, weth_position())
    usdc = lab.world.tokens["USDC"].address
    with pytest.raises(ExecutionError, match=f"reverted: {reason}"):
        await pool_of(lab.node, market).send(BORROWER, "borrow", usdc, 10**12, 2, 0, BORROWER)


# --- the world -------------------------------------------------------------------------------------------------------


async def test_world_survives_its_manifest(lab: Lab) -> None:
    """A manifest holds everything, and every address in it has code or is a person."""
    world = lab.world
    assert World.from_json(world.to_json()) == world
    contracts = [
        world.preinstalls.multicall3,
        world.preinstalls.permit2,
        world.preinstalls.create2_deployer,
        world.uniswap_v3.quoter,
        world.uniswap_v2.router,
        world.safe.address,
        *(token.address for token in world.tokens.values()),
        *(pool.address for pool in (*world.uniswap_v3.pools, *world.uniswap_v2.pairs)),
        *(market.pool for market in world.aave.values()),
        *(reserve.variable_debt for market in world.aave.values() for reserve in market.reserves.values()),
    ]
    assert all([await lab.node.code(contract) for contract in contracts])


async def test_preinstalls_answer(lab: Lab) -> None:
    """Multicall3 aggregates, and Permit2's domain is this chain's."""
    pre, usdc = lab.world.preinstalls, lab.world.tokens["USDC"].address
    decimals = load("Erc20").function("decimals").encode()
    aggregate = load("Multicall3").function("aggregate3")
    answer = aggregate.one(await lab.node.call(pre.multicall3, aggregate.encode([(usdc, False, decimals)])))
    assert int.from_bytes(answer[0][1], "big") == 6
    domain = await lab.node.call(pre.permit2, bytes.fromhex("3644e515"))  # DOMAIN_SEPARATOR()
    cached = await lab.node.code(pre.permit2)
    assert domain in cached  # the patched immutable, not recomputed for another chain id


async def test_tokens_have_their_habits(lab: Lab) -> None:
    """USDT-like returns nothing and insists on zeroing allowances; USDC is a proxy that blacklists; WETH wraps."""
    node, world = lab.node, lab.world
    usdt, usdc, weth = (world.tokens[symbol] for symbol in ("USDT", "USDC", "WETH"))
    await mint(node, world.cast, usdt, BORROWER, 10**6)
    transfer = load("Erc20").function("transfer").encode(account(2), 400)
    assert await node.call(usdt.address, transfer, sender=BORROWER) == b""
    await node.set_balances([BORROWER])
    await erc20(node, usdt).send(BORROWER, "approve", account(2), 5)
    with pytest.raises(ExecutionError, match=r"AllowanceNotZero\(5\)"):
        await node.send(
            Tx(BORROWER, usdt.address, load("Erc20").function("approve").encode(account(2), 6)),
            own("NoReturnToken").abi,
        )
    await mint(node, world.cast, usdc, BORROWER, 10**6)
    await node.send(
        Tx(world.cast.deployer.address, usdc.address, bytes.fromhex("f9f92be4") + bytes(12) + BORROWER)
    )
    with pytest.raises(ExecutionError, match="blacklisted"):
        await erc20(node, usdc).send(BORROWER, "transfer", account(2), 1)
    await mint(node, world.cast, weth, BORROWER, ETHER)
    assert await balance_of(node, weth, BORROWER) == ETHER
    assert {token.symbol: await erc20(node, token).read("decimals") for token in world.tokens.values()} == {
        token.symbol: token.decimals for token in world.tokens.values()
    }


async def test_v3_swaps_give_what_was_quoted(lab: Lab) -> None:
    """A swap through every V3 pool gives exactly QuoterV2's quote, whichever tokens it holds."""
    node, world = lab.node, lab.world
    for pool in world.uniswap_v3.pools:
        amount = 10 ** (pool.token0.decimals - 1)
        await mint(node, world.cast, pool.token0, BORROWER, amount)
        await node.set_balances([BORROWER])
        quoted = await quote_v3(node, world.uniswap_v3, pool.token0, pool.token1, pool.fee, amount)
        received = await swap_v3(node, world.uniswap_v3, BORROWER, pool.token0, pool.token1, pool.fee, amount)
        assert received == quoted > 0


async def test_v2_swap_gives_what_was_quoted(lab: Lab) -> None:
    """A V2 swap gives exactly what the router's `getAmountsOut` said."""
    node, world = lab.node, lab.world
    weth, usdc, router = world.tokens["WETH"], world.tokens["USDC"], v2_router(lab.node, world.uniswap_v2)
    await mint(node, world.cast, weth, BORROWER, ETHER)
    await node.set_balances([BORROWER])
    path = [weth.address, usdc.address]
    quoted = (await router.read("getAmountsOut", ETHER, path))[1]
    await erc20(node, weth).send(BORROWER, "approve", router.address, ETHER)
    await router.send(BORROWER, "swapExactTokensForTokens", ETHER, 0, path, BORROWER, DEADLINE_S)
    assert await balance_of(node, usdc, BORROWER) == quoted > 0


async def test_pools_move_and_drain(lab: Lab) -> None:
    """`move_pool` trades a pool to a price; `drain_pool` makes the same swap slip more."""
    node, world, v3 = lab.node, lab.world, lab.world.uniswap_v3
    weth, usdc = world.tokens["WETH"], world.tokens["USDC"]
    pool = v3.pool(weth, usdc, 500)
    prices = {weth: 1500 * E8, usdc: E8}
    await move_pool(node, world.cast, v3, pool, prices[pool.token0], prices[pool.token1])
    deep = await quote_v3(node, v3, weth, usdc, 500, ETHER)
    assert 1498 * 10**6 < deep < 1500 * 10**6
    whale = 10_000 * ETHER
    before = await quote_v3(node, v3, weth, usdc, 500, whale)
    await drain_pool(node, world.cast, v3, pool, 9_000)
    assert await quote_v3(node, v3, weth, usdc, 500, whale) < before * 9 // 10


async def test_pushed_price_reaches_consumers(lab: Lab, market: AaveMarket) -> None:
    """A reported price is a new round with its events, read at once by Aave's oracle; other feeds grow stale."""
    node, feeds = lab.node, lab.world.feeds
    before = {symbol: await latest(node, feed) for symbol, feed in feeds.items()}
    await node.advance(3600)
    receipt = await set_price(node, feeds["WETH"], 1234 * E8 + 5)
    updated = chainlink("FluxAggregator").abi.event("AnswerUpdated")
    events = [updated.decode(log) for log in receipt.logs if log.topics[0] == updated.topic]
    assert [event["current"] for event in events] == [1234 * E8 + 5]
    assert receipt.logs[0].address == feeds["WETH"].aggregator
    oracle = oracle_of(node, market)
    assert await oracle.read("getAssetPrice", lab.world.tokens["WETH"].address) == 1234 * E8 + 5
    now = (await node.head()).timestamp_s
    after = await latest(node, feeds["WETH"])
    assert (after.round_id, after.updated_at_s) == (before["WETH"].round_id + 1, now)
    assert now - (await latest(node, feeds["USDC"])).updated_at_s >= 3600
    together = await set_prices(node, {feeds["DAI"]: E8 - 1, feeds["USDT"]: E8 + 1})
    assert together[0].block_number == together[1].block_number
    assert (await latest(node, feeds["DAI"])).price_raw == E8 - 1


# --- Aave ------------------------------------------------------------------------------------------------------------


async def test_borrowing_to_a_health_factor(lab: Lab, market: AaveMarket) -> None:
    """Positions come out at the wanted health factor: one or several assets, e-mode, isolation, idle collateral."""
    specs = [
        weth_position(),
        PositionSpec(account(2), {"WBTC": 10**8, "WETH": ETHER}, {"USDC": 1, "DAI": 2}, 11 * WAD // 10),
        PositionSpec(account(3), {"ISO": 1000 * ETHER}, {"USDT": 1}, 13 * WAD // 10),
        PositionSpec(
            account(4), {"USDC": 10**10, "WETH": ETHER}, {"DAI": 1}, 1025 * WAD // 1000, 1, ("WETH",)
        ),
        PositionSpec(account(5), {"wstETH": ETHER}, {"WETH": 1}, 104 * WAD // 100, e_mode=2),
    ]
    opened = await open_positions(lab.node, lab.world.cast, market, specs)
    for spec, data in zip(specs, opened, strict=True):
        assert spec.health_factor_wad is not None
        # truncation of the average threshold is worth up to a basis point
        assert 0 <= data.health_factor_wad - spec.health_factor_wad < WAD * 2 // BPS
    assert [data.liquidation_threshold_bps for data in opened[2:]] == [6000, 9500, 9300]
    assert opened[3].collateral_base == 10_000 * E8
    mode = await pool_of(lab.node, market).read("getUserEMode", account(4))
    assert mode == 1


async def test_too_low_a_health_factor_is_refused(lab: Lab, market: AaveMarket) -> None:
    """Below what the loan-to-value limit allows, the error says how low one can go."""
    with pytest.raises(ExecutionError, match=r"health factor 1\.0100.* no lower than 1\.0312"):
        await open_position(lab.node, lab.world.cast, market, weth_position(101 * WAD // 100))


async def test_isolation_has_a_debt_ceiling(lab: Lab, market: AaveMarket) -> None:
    """Against isolated collateral only marked assets may be borrowed, and not beyond the ceiling."""
    weth_against_iso = PositionSpec(account(3), {"ISO": 1000 * ETHER}, {"WETH": 1}, 2 * WAD)
    with pytest.raises(ExecutionError):
        await open_position(lab.node, lab.world.cast, market, weth_against_iso)
    beyond = PositionSpec(account(6), {"ISO": 3_000_000 * ETHER}, {"USDC": 1}, 15 * WAD // 10)
    with pytest.raises(ExecutionError):
        await open_position(lab.node, lab.world.cast, market, beyond)


async def test_liquidation_by_hand_pays_the_bonus(lab: Lab, market: AaveMarket) -> None:
    """After a price push, liquidating lowers the debt and pays 105 % less the protocol's tenth of the bonus."""
    node, world = lab.node, lab.world
    opened = await open_position(node, world.cast, market, weth_position())
    with pytest.raises(ExecutionError, match=r"Error\(45\)|HealthFactorNotBelowThreshold"):
        await liquidate(node, world.cast, market, BORROWER, "WETH", "USDC")
    await set_price(node, world.feeds["WETH"], 1850 * E8)
    assert (await data_of(lab, market)).health_factor_wad < WAD
    usdc, weth, liquidator = world.tokens["USDC"], world.tokens["WETH"], world.cast.liquidator.address
    repay = 4_000 * 10**6
    await mint(node, world.cast, usdc, liquidator, 1)
    weth_before = await balance_of(node, weth, liquidator)
    treasury_before = await balance_of(node, a_weth(market), world.cast.treasury.address)
    receipt = await liquidate(node, world.cast, market, BORROWER, "WETH", "USDC", repay)
    event = pool_of(node, market).abi.event("LiquidationCall")
    logged = next(event.decode(log) for log in receipt.logs if log.topics[0] == event.topic)
    assert logged["debtToCover"] == repay
    seized = await balance_of(node, weth, liquidator) - weth_before
    fee = await balance_of(node, a_weth(market), world.cast.treasury.address) - treasury_before
    bought = repay * 10**12 * E8 // (1850 * E8)
    assert abs(seized - bought * 1045 // 1000) <= 10**6  # 4.5 % stay with the liquidator
    assert abs(fee - bought * 5 // 1000) <= 10**6  # 0.5 % go to the protocol
    after = await data_of(lab, market)
    assert abs(opened.debt_base - after.debt_base - 4_000 * E8) < E8 // 100


def a_weth(market: AaveMarket) -> Token:
    """The market's aWETH as a token."""
    return Token(market.reserves["WETH"].a_token, "aWETH", 18)


async def test_flash_loans_cost_their_premium(lab: Lab, market: AaveMarket) -> None:
    """Both markets lend for one transaction at the stated premium."""
    name = "FLASHLOAN_PREMIUM_TOTAL"
    assert await pool_of(lab.node, market).read(name) == FLASH_PREMIUM_BPS[market.version]
    node, dai, deployer = lab.node, lab.world.tokens["DAI"], lab.world.cast.deployer.address
    # Aave's own example of a borrower: it mints itself the premium.
    receiver = await node.deploy(deployer, aave_v3_0("MockFlashLoanReceiver").creation_code(market.provider))
    amount, held = 50_000_000 * ETHER, await balance_of(node, dai, market.reserves["DAI"].a_token)
    order = (receiver, [dai.address], [amount], [0], deployer, b"", 0)
    await pool_of(node, market).send(deployer, "flashLoan", *order)
    premium = amount * FLASH_PREMIUM_BPS[market.version] // BPS
    assert await balance_of(node, dai, market.reserves["DAI"].a_token) == held + premium


async def test_a_paused_reserve_refuses(lab: Lab, market: AaveMarket) -> None:
    """The deployer may pause a reserve as a protocol's own guardians do; liquidation then reverts."""
    await open_position(lab.node, lab.world.cast, market, weth_position())
    await set_price(lab.node, lab.world.feeds["WETH"], 1800 * E8)
    asset = lab.world.tokens["WETH"].address
    deployer = lab.world.cast.deployer.address
    await configurator_of(lab.node, market).send(deployer, "setReservePause(address,bool)", asset, True)
    with pytest.raises(ExecutionError, match=r"Error\(29\)|ReservePaused"):
        await liquidate(lab.node, lab.world.cast, market, BORROWER, "WETH", "USDC")


async def test_accounts_with_twenty_reserves(lab: Lab) -> None:
    """Tokens and reserves can be added; an account may hold twenty of them."""
    node, world = lab.node, lab.world
    symbols = [f"T{number:02}" for number in range(13)]
    for number, symbol in enumerate(symbols):
        world = await add_token(
            node, world, symbol, 6 + number, 3 + number, ReserveSpec(symbol, 6000, 7000, 800)
        )
    for market in world.aave.values():
        supply = {
            symbol: 10**reserve.token.decimals * 1000 * E8 // world.prices_e8[symbol]
            for symbol, reserve in market.reserves.items()
            if symbol != "ISO"
        }
        await supply_by_lender(node, world.cast, market, {symbol: supply[symbol] for symbol in symbols})
        data = await open_position(
            node, world.cast, market, PositionSpec(BORROWER, supply, {"USDC": 9, "T05": 1}, 2 * WAD)
        )
        assert abs(data.collateral_base - 19_000 * E8) < E8
        assert len(market.reserves) == 20


async def test_crowd_is_consistent_and_liquidatable(lab: Lab, market: AaveMarket) -> None:
    """Accounts written into storage add up to the tokens' supplies, are what was asked for, and can be liquidated."""
    node, world = lab.node, lab.world
    crowd = await write_accounts(node, world.cast, market, 1000, health_factors=(1.03, 1.5))
    data = await account_data(node, market, crowd.accounts)
    assert all(
        abs(d.health_factor_wad / WAD / hf - 1) < 2e-4
        for d, hf in zip(data, crowd.health_factors, strict=True)
    )
    holders = [*crowd.accounts, world.cast.lender.address, world.cast.treasury.address, account(1_001_000)]
    scaled = aave_v3_6("VariableDebtTokenInstance").abi
    for token in (market.reserves["WETH"].a_token, market.reserves["USDC"].variable_debt):
        function = scaled.function("scaledBalanceOf")
        held = sum(
            map(function.one, await node.call_all([function.call(token, holder) for holder in holders]))
        )
        assert held == await Contract(node, token, scaled).read("scaledTotalSupply")
    await set_price(node, world.feeds["WETH"], 1500 * E8)
    now = await account_data(node, market, crowd.accounts)
    number = next(
        i for i, d in enumerate(now) if d.health_factor_wad < WAD and d.liquidation_threshold_bps == 8250
    )
    await liquidate(node, world.cast, market, crowd.accounts[number], "WETH", "USDC")
    assert (await data_of(lab, market, crowd.accounts[number])).debt_base < now[number].debt_base


async def test_crowd_is_found_by_logs(lab: Lab, market: AaveMarket) -> None:
    """Every written borrower has a Borrow event from the Pool, whose own code is back in place."""
    event, code = pool_of(lab.node, market).abi.event("Borrow"), await lab.node.code(market.pool)
    crowd = await write_accounts(lab.node, lab.world.cast, market, 60)
    query = {"fromBlock": "0x0", "address": "0x" + market.pool.hex(), "topics": ["0x" + event.topic.hex()]}
    logs = await lab.node.rpc.request("eth_getLogs", query)
    assert {bytes.fromhex(log["topics"][2][26:]) for log in logs} >= set(crowd.accounts)
    assert await lab.node.code(market.pool) == code


# --- Safe ------------------------------------------------------------------------------------------------------------


async def test_safe_contracts_have_their_mainnet_addresses(lab: Lab) -> None:
    """Same bytecode, same factory, same addresses as Safe 1.4.1 on every chain."""
    safe = lab.world.safe
    assert safe.singleton == address("0x29fcB43b46531BcA003ddC8FCB67FFE91900C762")
    assert safe.proxy_factory == address("0x4e1DCf7AD4e460CfD30791CCC4F9c8a4f820ec67")
    assert safe.multi_send_call_only == address("0x9641d764fc13c8B624c04430C7356C1C7C8102e2")
    assert await safe_contract(lab.node, safe).read("VERSION") == "1.4.1"
    assert await safe_contract(lab.node, safe).read("getThreshold") == 2


async def test_safe_hash_is_the_chains(lab: Lab) -> None:
    """Domain and transaction hash equal what the Safe computes, with every field set."""
    safe, contract = lab.world.safe, safe_contract(lab.node, lab.world.safe)
    tx = SafeTx(account(9), 12, b"\x01\x02" * 50, 1, 7, 100_000, 21_000, 3, account(8), account(7))
    fields = (tx.to, tx.value_wei, tx.data, tx.operation, tx.safe_tx_gas, tx.base_gas, tx.gas_price_wei)
    expected = await contract.read("getTransactionHash", *fields, tx.gas_token, tx.refund_receiver, tx.nonce)
    assert safe_tx_hash(lab.world.chain_id, safe.address, tx) == expected
    assert domain_separator(lab.world.chain_id, safe.address) == await contract.read("domainSeparator")


def transfer_of(lab: Lab, amount_raw: int) -> InnerCall:
    """USDC from the Safe to the borrower."""
    data = load("Erc20").function("transfer").encode(BORROWER, amount_raw)
    return InnerCall(lab.world.tokens["USDC"].address, data)


async def test_safe_executes_calls_and_batches(lab: Lab) -> None:
    """Two of three owners move the Safe's tokens, by one call and by a batch; any two will do, in any order."""
    node, world, usdc = lab.node, lab.world, lab.world.tokens["USDC"]
    await mint(node, world.cast, usdc, world.safe.address, 1000)
    await execute(node, world.safe, transfer_of(lab, 100))
    one, two, three = world.safe.owners
    for number, pair in enumerate(((one, three), (three, one), (three, two)), start=1):
        await execute(node, world.safe, transfer_of(lab, 10), transfer_of(lab, 1), signers=pair)
        assert await balance_of(node, usdc, BORROWER) == 100 + 11 * number


async def test_safe_refuses_what_is_not_signed_or_fails_inside(lab: Lab) -> None:
    """One signature, a stranger's signature and a failing inner call are errors, even when the receipt says success."""
    node, safe, cast = lab.node, lab.world.safe, lab.world.cast
    with pytest.raises(ExecutionError, match="GS020"):
        await execute(node, safe, transfer_of(lab, 1), signers=safe.owners[:1])
    with pytest.raises(ExecutionError, match="GS026"):
        await execute(node, safe, transfer_of(lab, 1), signers=(safe.owners[0], cast.operator))
    with pytest.raises(ExecutionError, match="GS013"):
        await execute(node, safe, transfer_of(lab, 1))  # it has nothing to transfer
    call, nonce = transfer_of(lab, 1), await safe_contract(node, safe).read("nonce")
    trap = SafeTx(call.to, 0, call.data, CALL, nonce, safe_tx_gas=50_000)
    with pytest.raises(ExecutionError, match="inner call failed"):
        await execute_tx(node, safe, trap)


# --- ready in a moment ------------------------------------------------------------------------------------------------


async def test_a_built_world_is_ready_again(
    fresh_lab: OpenLab, record_property: Callable[[str, object], None]
) -> None:
    """The second opening loads the first one's state: same addresses, same block; its time is reported."""
    first = await fresh_lab(clock="steady")
    began = time.monotonic()
    second = await fresh_lab(clock="steady")
    record_property("ready_again_s", round(time.monotonic() - began, 3))
    assert first.world == second.world
    assert (await first.node.head()).hash == (await second.node.head()).hash


def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    """Two processes that want the same new world at once both get it, whole, built by one of them."""
    code = (
        "import asyncio; from pathlib import Path; from keeper.lab.world import *;"
        "from keeper.lab.uniswap import PoolSpec;"
        "spec = WorldSpec(v3_pools=(PoolSpec(('WETH', 'USDC'), 500, 1_000_003),), v2_pairs=(), aave=('3.0',));"
        f"print(asyncio.run(prepare(spec, cache=Path({str(tmp_path)!r}))).world.safe.address.hex())"
    )
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=120)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert answers[0] == answers[1] != ""
    assert len([folder for folder in (tmp_path).iterdir() if folder.is_dir()]) == 1
