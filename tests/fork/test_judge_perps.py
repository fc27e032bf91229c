"""The judge against perps whose right verdict is known: left alone, losing, gated, paused, and well kept."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from keeper.abi import checksum, load
from keeper.errors import ExecutionError
from keeper.lab import curie as perp
from keeper.lab import synthetix as synth
from keeper.lab.actors import account
from keeper.lab.chainlink import set_prices
from keeper.lab.curie import Curie, MarketSpec, house_of, part_of, trade
from keeper.lab.judge import Unhealthy, Verdict, judge
from keeper.lab.node import Contract, Node
from keeper.lab.rig import Rig, make_rig
from keeper.lab.synthetix import UNIT, PerpSpec, Synthetix, market_of, open_perps
from keeper.lab.tokens import balance_of
from keeper.lab.uniswap import quote_v3
from keeper.lab.world import Lab, open_lab
from keeper.types import Address
from tests.e2e.line import Line, open_again

pytestmark = pytest.mark.slow

ETHER = 10**18
USDC = 10**6
_E8 = 10**8
_FLASH_BPS = 5  # Aave 3.6 in the lab lends cheapest
LONG, SHORT, SAFE, MAKER, HOLDER, WHALE, TAKER = (account(number) for number in range(101, 108))
UNSAFE, RACED, SOUND, GATED, BIG, FLAGGER = (account(number) for number in range(201, 207))


@dataclass(frozen=True, slots=True)
class Fallen:
    """A world with perps that no keeper ran on after they became unsafe, and what the judge says of it."""

    lab: Lab
    rig: Rig
    curie: Curie
    synthetix: Synthetix
    verdict: Verdict

    def name(self, asset: str) -> str:
        """How a market of Synthetix is called."""
        return f"synthetix-{self.synthetix.markets[asset].proxy[:4].hex()}"

    async def judged(self, *markets: str) -> Verdict:
        """The verdict on the chain as it is now."""
        return await judge(self.rig.config, markets=markets)


async def _push(lab: Lab, curie: Curie, size: int, blocks: int) -> None:
    """A whale moves the pool, block by block, and averages get time to follow."""
    for _ in range(blocks):
        with suppress(ExecutionError):
            await trade(lab.node, curie, WHALE, "WETH", size)
        await lab.node.advance(30)
    await lab.node.advance(1_800)


async def _trade(lab: Lab, curie: Curie) -> None:
    """Takers, a maker and a holder of other collateral, then the pool falls until all but one lack margin."""
    node, cast = lab.node, lab.world.cast
    cash = {LONG: 500, SAFE: 2_000, MAKER: 530, HOLDER: 25, SHORT: 250}
    await perp.deposit(node, cast, curie, curie.settlement, {who: usd * USDC for who, usd in cash.items()})
    await perp.deposit(node, cast, curie, curie.settlement, {WHALE: 10_000_000 * USDC})
    await perp.deposit(node, cast, curie, curie.collaterals["WETH"], {HOLDER: ETHER // 4})
    for who, size in ((HOLDER, 1.5), (SHORT, -1), (LONG, 2), (SAFE, 1), (MAKER, 2)):
        await trade(node, curie, who, "WETH", int(size * ETHER))
    price = lab.world.prices_e8["WETH"] / _E8
    depth = (ETHER // 20, 100 * ETHER)
    await perp.provide(node, curie, MAKER, "WETH", depth, (price / 2, price * 2))
    for _ in range(3):
        await _push(lab, curie, -17 * ETHER // 10, 6)


@pytest.fixture(scope="module")
async def fallen(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fallen]:
    """Perp Curie's pool and Synthetix' rates fall: in one market at once, in the other gated by a whale's skew."""
    async with await open_lab(clock="steady") as built:
        node = built.node
        synthetix, world = await synth.deploy_synthetix(node, built.world)
        lab = replace(built, world=world)
        curie = await perp.deploy_curie(node, world, [MarketSpec("WETH", 300_000, 2.0)])
        tables = synth.table(synthetix) + perp.table(curie)
        rig = await make_rig(lab, tmp_path_factory.mktemp("perps"), tables=tables)
        await _trade(lab, curie)
        ether, bitcoin = synthetix.markets["ETH"], synthetix.markets["BTC"]
        specs = [
            PerpSpec(UNSAFE, 2_000 * UNIT, 20 * UNIT),
            PerpSpec(RACED, 300 * UNIT, 3 * UNIT),
            PerpSpec(SOUND, 2_000 * UNIT, -UNIT),
        ]
        await open_perps(node, world.cast, synthetix, ether, specs)
        specs = [PerpSpec(BIG, 6_000_000 * UNIT, 130 * UNIT), PerpSpec(GATED, 19_000 * UNIT, 5 * UNIT)]
        await open_perps(node, world.cast, synthetix, bitcoin, specs)
        prices = {ether.feed: 1_905 * _E8, bitcoin.feed: world.prices_e8["WBTC"] * 91 // 100}
        await set_prices(node, {**prices, synthetix.susd_feed: _E8})
        yield Fallen(lab, rig, curie, synthetix, await judge(rig.config))


@asynccontextmanager
async def _undone(node: Node) -> AsyncIterator[None]:
    """Whatever happens to the world inside did not."""
    snapshot = await node.snapshot()
    try:
        yield
    finally:
        await node.revert(snapshot)


def _of(verdict: Verdict, who: Address) -> Unhealthy:
    [found] = [one for one in verdict.unhealthy if one.account == who]
    return found


# --- nobody liquidates ------------------------------------------------------------------------------------------------


async def test_only_those_their_protocol_lets_liquidate_are_named(fallen: Fallen) -> None:
    """Everybody with a position is counted; who is safe is not named, and who is not is left."""
    assert fallen.verdict.totals["accounts_with_position"] == 12
    left = {(one.protocol, one.account) for one in fallen.verdict.left}
    assert left == {
        *(("curie", who) for who in (LONG, MAKER, HOLDER)),
        *((fallen.name("ETH"), who) for who in (UNSAFE, RACED)),
        (fallen.name("BTC"), GATED),
    }
    assert len(fallen.verdict.unhealthy) == len(left), str(fallen.verdict)
    assert _of(fallen.verdict, LONG).health_factor_wad is not None


async def _taken_over(fallen: Fallen, found: Unhealthy, margin_raw: int) -> int:
    """What a takeover by hand brings beyond its margin, all of it in one block. Raises ExecutionError."""
    lab, curie, best = fallen.lab, fallen.curie, found.best
    assert best is not None and best.position is not None
    base, settlement = best.position.token.address, curie.settlement
    house, vault = house_of(lab.node, curie), part_of(lab.node, curie, "Vault")
    await perp.deposit(lab.node, lab.world.cast, curie, settlement, {TAKER: margin_raw})
    orders = await part_of(lab.node, curie, "OrderBook").read("getOpenOrderIds", found.account, base)
    gas = 4_000_000
    steps = [house.tx(TAKER, "cancelAllExcessOrders", found.account, base, gas=gas)] if orders else []
    order = (found.account, base, best.position.raw)
    steps.append(house.tx(TAKER, "liquidate(address,address,int256)", *order, gas=gas))
    closing = (base, 0, 0, perp.DEADLINE_S, perp.NO_REFERRAL)
    steps.append(house.tx(TAKER, "closePosition", closing, gas=gas))
    steps.append(vault.tx(TAKER, "withdrawAll", settlement.address, gas=gas))
    await lab.node.send_all(steps, house.abi)
    return await balance_of(lab.node, settlement, TAKER) - margin_raw


@pytest.mark.parametrize("who", [LONG, MAKER], ids=["taker", "maker"])
async def test_a_takeover_nobody_made_is_found(fallen: Fallen, who: Address) -> None:
    """What it would have brought is what it brings by hand, less the loan's price."""
    found, node = _of(fallen.verdict, who), fallen.lab.node
    assert found.reason == "left" and found.best is not None and found.best.position is not None
    assert (found.best.position.token.symbol, found.best.route) == ("vWETH", ())
    margin_raw = found.best.repay.raw
    async with _undone(node):
        gained_raw = await _taken_over(fallen, found, margin_raw)
    premium_raw = -(-margin_raw * _FLASH_BPS // 10_000)
    assert found.best.profit.raw == pytest.approx(gained_raw - premium_raw, rel=1e-3)
    assert found.best.seize.raw - margin_raw - premium_raw == found.best.profit.raw


async def test_a_short_position_is_judged_as_well(fallen: Fallen) -> None:
    """When the pool rises whoever sold short is unhealthy, and closing by hand brings what the judge says."""
    lab, curie = fallen.lab, fallen.curie
    async with _undone(lab.node):
        await set_prices(lab.node, {lab.world.feeds["WETH"]: 2_250 * _E8})
        for _ in range(5):
            await _push(lab, curie, 19 * ETHER // 10, 6)
        found = _of(await fallen.judged("curie"), SHORT)
        assert found.reason == "left" and found.best is not None and found.best.position is not None
        assert found.best.position.raw < 0
        gained_raw = await _taken_over(fallen, found, found.best.repay.raw)
    premium_raw = -(-found.best.repay.raw * _FLASH_BPS // 10_000)
    assert found.best.profit.raw == pytest.approx(gained_raw - premium_raw, rel=1e-3)


async def test_no_less_margin_would_have_done(fallen: Fallen) -> None:
    """The loan that is reckoned with is the least: with two per cent less the exchange refuses."""
    found, node = _of(fallen.verdict, LONG), fallen.lab.node
    assert found.best is not None
    async with _undone(node):
        with pytest.raises(ExecutionError, match="CH_NEFCI"):
            await _taken_over(fallen, found, found.best.repay.raw * 98 // 100)


async def test_a_takeover_that_leaves_a_rest_is_none(fallen: Fallen) -> None:
    """Where a block's tick limit stops the whole just short of closing, a part that closes to the last unit is found,
    although the whole would gain more.
    """
    lab, curie, whole = fallen.lab, fallen.curie, _of(fallen.verdict, LONG)
    assert whole.best is not None and whole.best.position is not None
    base, deployer = whole.best.position.token.address, lab.world.cast.deployer.address
    exchange, balance = (part_of(lab.node, curie, name) for name in ("Exchange", "AccountBalance"))

    async def by_hand(found: Unhealthy, ticks: int) -> tuple[int, bool]:
        """What it gains, and whether a rest stays."""
        assert found.best is not None
        async with _undone(lab.node):
            await exchange.send(deployer, "setMaxTickCrossedWithinBlock", base, ticks)
            gained_raw = await _taken_over(fallen, found, 2 * found.best.repay.raw)
            return gained_raw, bool(await balance.read("getBaseTokens", TAKER))

    low, high = 1, 100  # a rest stays at the first, none at the second
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if (await by_hand(whole, middle))[1] else (low, middle)
    more_raw, rest = await by_hand(whole, low)
    assert rest
    async with _undone(lab.node):
        await exchange.send(deployer, "setMaxTickCrossedWithinBlock", base, low)
        found = _of(await fallen.judged("curie"), LONG)
    assert found.best is not None and found.best.position is not None
    assert 0 < found.best.position.raw < whole.best.position.raw
    gained_raw, rest = await by_hand(found, low)
    assert 0 < gained_raw < more_raw and not rest


async def test_other_collateral_nobody_bought_is_found(fallen: Fallen) -> None:
    """Where the vault sells it cheaper than the market buys it, that is the best there is, and it really is had."""
    lab, curie, found = fallen.lab, fallen.curie, _of(fallen.verdict, HOLDER)
    best, weth = found.best, fallen.lab.world.tokens["WETH"]
    assert best is not None and (best.seize.token, best.position) == (weth, None)
    vault = part_of(lab.node, curie, "Vault")
    async with _undone(lab.node):
        await perp.deposit(lab.node, lab.world.cast, curie, curie.settlement, {TAKER: best.repay.raw})
        await vault.send(TAKER, "withdrawAll", curie.settlement.address)
        usdc = Contract(lab.node, curie.settlement.address, load("Erc20"))
        await usdc.send(TAKER, "approve", curie.vault, best.repay.raw)
        await vault.send(TAKER, "liquidateCollateral", HOLDER, weth.address, best.repay.raw, True)
        got_raw = await balance_of(lab.node, weth, TAKER)
        sold_raw = await quote_v3(lab.node, lab.world.uniswap_v3, weth, curie.settlement, 500, got_raw)
    assert got_raw == best.seize.raw
    premium_raw = -(-best.repay.raw * _FLASH_BPS // 10_000)
    assert sold_raw - best.repay.raw - premium_raw == pytest.approx(best.profit.raw, abs=1)


async def _flagged_and_liquidated(fallen: Fallen, asset: str, who: Address) -> int:
    """What both steps by hand pay, in sUSD."""
    lab = fallen.lab
    market = market_of(lab.node, fallen.synthetix.markets[asset])
    await lab.node.set_balances([TAKER])
    await market.send(TAKER, "flagPosition", who)
    await market.send(TAKER, "liquidatePosition", who)
    return await balance_of(lab.node, fallen.synthetix.susd, TAKER)


async def test_a_position_nobody_flagged_is_found(fallen: Fallen) -> None:
    """Both fees are what flagging and liquidating by hand pays, and they are sold where the judge says."""
    lab, susd, found = fallen.lab, fallen.synthetix.susd, _of(fallen.verdict, UNSAFE)
    assert found.reason == "left" and found.best is not None and found.best.position is not None
    assert (found.best.repay.raw, found.best.flash_source) == (0, None)
    assert found.best.position.raw == 20 * UNIT
    async with _undone(lab.node):
        paid_raw = await _flagged_and_liquidated(fallen, "ETH", UNSAFE)
        sold_raw = await quote_v3(
            lab.node, lab.world.uniswap_v3, susd, lab.world.tokens["USDC"], 100, paid_raw
        )
    assert (found.best.seize.raw, found.best.profit.raw) == (paid_raw, sold_raw)
    assert paid_raw > 100 * UNIT


def test_the_document_says_what_a_perp_has_and_what_it_lacks(fallen: Fallen) -> None:
    """A position beside the amounts, no loan for a fee and no health factor where none is told; text says it too."""
    rows = {row["account"]: row for row in fallen.verdict.document()["left"]}
    fee, takeover = rows[checksum(UNSAFE)], rows[checksum(LONG)]
    assert (fee["health_factor_wad"], fee["best"]["flash_source"]) == (None, None)
    assert fee["best"]["position"]["raw"] == str(20 * UNIT)
    assert takeover["best"]["position"]["symbol"] == "vWETH" and takeover["best"]["flash_source"]
    assert 0 < int(takeover["health_factor_wad"]) < 10**18
    assert "position 20 sETH" in str(fallen.verdict) and "position 1 vWETH" in str(fallen.verdict)


async def test_a_gated_position_is_left_for_what_a_flag_would_pay_later(fallen: Fallen) -> None:
    """Nobody can liquidate it now; but the flag alone earns what both steps pay once the skew has gone."""
    lab, found = fallen.lab, _of(fallen.verdict, GATED)
    assert found.reason == "left" and "instantaneous P/D exceeded" in found.detail
    async with _undone(lab.node):
        with pytest.raises(ExecutionError, match="instantaneous P/D exceeded"):
            await _flagged_and_liquidated(fallen, "BTC", GATED)
        contract = market_of(lab.node, fallen.synthetix.markets["BTC"])
        await lab.node.send(synth.trade_tx(contract, BIG, -30 * UNIT), contract.abi)
        await contract.send(TAKER, "liquidatePosition", GATED)
        paid_raw = await balance_of(lab.node, fallen.synthetix.susd, TAKER)
    assert found.best is not None and found.best.seize.raw == paid_raw


async def test_a_gate_behind_a_flag_is_nobodys_fault(fallen: Fallen) -> None:
    """Once it is flagged nothing can be done, and the verdict says what stands in the way."""
    lab = fallen.lab
    async with _undone(lab.node):
        await lab.node.set_balances([FLAGGER])
        await market_of(lab.node, fallen.synthetix.markets["BTC"]).send(FLAGGER, "flagPosition", GATED)
        verdict = await fallen.judged(fallen.name("BTC"))
    [found] = verdict.unhealthy
    assert (found.account, found.reason, found.best) == (GATED, "gated", None)
    assert "instantaneous P/D exceeded" in found.detail and not verdict.left


async def test_steps_that_cost_more_than_they_pay_are_not_left(fallen: Fallen) -> None:
    """At a dear gas price both fees pay for no transaction."""
    with fallen.lab.anvil.fork() as anvil:
        async with await Node.open(anvil.url) as node:
            await node.steady_clock()
            await node.set_base_fee(180 * 10**9)
            await node.mine()
            verdict = await judge(fallen.rig.config, anvil.url, markets=[fallen.name("ETH")])
    found = _of(verdict, UNSAFE)
    assert found.reason == "unprofitable" and found.best is not None
    assert found.best.net_profit_usd_e8 < 0 < found.best.profit.raw and not verdict.left


async def test_a_losing_takeover_is_not_left(fallen: Fallen) -> None:
    """Where closing costs more than the discount, that is said with the numbers."""
    lab, curie = fallen.lab, fallen.curie
    async with _undone(lab.node):
        registry = part_of(lab.node, curie, "MarketRegistry")
        base = curie.markets["WETH"].base_token
        await registry.send(lab.world.cast.deployer.address, "setFeeRatio", base, 30_000)
        verdict = await fallen.judged("curie")
    found = _of(verdict, LONG)
    assert (found.reason, found.best) == ("losing_takeover", None)
    assert "would come back" in found.detail and {one.account for one in verdict.left} == {HOLDER}


async def test_an_exchange_that_refuses_is_quoted(fallen: Fallen) -> None:
    """While the protocol itself is paused nothing was left, and its own reason is told."""
    lab, curie = fallen.lab, fallen.curie
    async with _undone(lab.node):
        await house_of(lab.node, curie).send(lab.world.cast.deployer.address, "pause")
        verdict = await fallen.judged("curie")
    found = _of(verdict, LONG)
    assert found.reason == "protocol_refuses" and "Pausable: paused" in found.detail


def _reconfigured(fallen: Fallen, folder: Path, line: str, by: str) -> Path:
    """A copy of the configuration with one line changed."""
    text = fallen.rig.config.read_text()
    assert line in text
    path = folder / "keeper.toml"
    path.write_text(text.replace(line, by))
    return path


async def test_a_loan_that_costs_more_than_slippage_allows_is_not_left(
    fallen: Fallen, tmp_path: Path
) -> None:
    """The Liquidator's end check counts the loan's price against a takeover's gain; cash without a loan passes it."""
    strict = _reconfigured(fallen, tmp_path, "max_slippage_bps = 300", "max_slippage_bps = 20")
    verdict = await judge(strict)
    found = _of(verdict, LONG)
    assert found.reason == "over_slippage" and found.best is not None
    assert found.best.net_profit_usd_e8 > 5 * _E8
    assert {one.account for one in verdict.left} >= {UNSAFE, RACED}


async def test_profit_in_another_token_is_bought_with_the_rest(fallen: Fallen, tmp_path: Path) -> None:
    """What a takeover leaves over its loan is sold for the profit token, and fees that cannot be are named."""
    world = fallen.lab.world
    usdc, weth = world.tokens["USDC"], world.tokens["WETH"]
    line = 'token = "{}"'
    tokens = [line.format(checksum(token.address)) for token in (usdc, weth)]
    verdict = await judge(_reconfigured(fallen, tmp_path, *tokens))
    best = _of(verdict, LONG).best
    assert best is not None and best.route == ("sell USDC -500-> WETH",)
    premium_raw = -(-best.repay.raw * _FLASH_BPS // 10_000)
    left_raw = best.seize.raw - best.repay.raw - premium_raw
    bought_raw = await quote_v3(fallen.lab.node, world.uniswap_v3, usdc, weth, 500, left_raw)
    assert (best.profit.token, best.profit.raw) == (weth, bought_raw)
    assert (_of(verdict, UNSAFE).reason, _of(verdict, UNSAFE).best) == ("no_route", None)


@pytest.mark.parametrize(("most_usd", "reason"), [(100.0, "left"), (0.1, "over_max_repay")])
async def test_no_more_margin_than_allowed_is_borrowed(
    fallen: Fallen, tmp_path: Path, most_usd: float, reason: str
) -> None:
    """What the operator lets borrow bounds takeovers and sales, and where nothing is left of them that is said."""
    limit = f"max_repay_usd = {most_usd}"
    config = _reconfigured(fallen, tmp_path, "max_repay_usd = 10000000.0", limit)
    verdict = await judge(config, markets=["curie"])
    assert {_of(verdict, who).reason for who in (LONG, MAKER)} == {reason}
    for one in verdict.unhealthy:
        assert one.best is None or one.best.repay.raw <= most_usd * USDC


async def test_a_price_older_than_allowed_excuses(fallen: Fallen, tmp_path: Path) -> None:
    """Who may not believe the exchange's price may not liquidate by it."""
    house = f'clearing_house = "{checksum(fallen.curie.clearing_house)}"'
    strict = _reconfigured(fallen, tmp_path, house, f"{house}\nmax_price_age_s = 600")
    async with _undone(fallen.lab.node):
        for reason in ("left", "stale_price"):
            verdict = await judge(strict, markets=["curie"])
            assert {one.reason for one in verdict.unhealthy} == {reason}
            await fallen.lab.node.advance(700)


async def test_a_paused_scope_and_a_denied_account_excuse(fallen: Fallen, tmp_path: Path) -> None:
    """Signers pause one market of a table, the operator denies one trader: all others should have been liquidated."""
    lab, rig = fallen.lab, fallen.rig
    async with _undone(lab.node):
        guard = Contract(lab.node, rig.pause_guard, load("PauseGuard"))
        scope = fallen.name("ETH").encode().ljust(32, b"\0")
        await guard.send(lab.world.cast.guardians[0].address, "pause", scope, b"incident", bytes(32))
        limits = f'max_repay_usd = 10000000.0\ndeny_accounts = ["{checksum(LONG)}"]'
        denying = _reconfigured(fallen, tmp_path, "max_repay_usd = 10000000.0", limits)
        verdict = await judge(denying)
    assert {_of(verdict, who).reason for who in (UNSAFE, RACED)} == {"paused"}
    assert _of(verdict, LONG).reason == "denied"
    assert {one.account for one in verdict.left} == {MAKER, HOLDER, GATED}


# --- a keeper runs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kept:
    """The same world after a keeper did its work: what was said while a gate stood, and once it had opened."""

    line: Line
    gated: Verdict
    opened: Verdict


async def _rest(line: Line) -> None:
    """Let the keeper work until averages have followed its own trades and there still is nothing to do."""
    for _ in range(10):
        await line.lab.node.advance(120)
        reports = await line.steps(30)
        if not any(report.sent for report in reports):
            return
    raise AssertionError("still busy")


@pytest.fixture(scope="module")
async def kept(fallen: Fallen, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kept]:
    """On a fork: somebody else flags one position first, the keeper does the rest, before and after the skew goes."""
    folder = tmp_path_factory.mktemp("kept")
    async with AsyncExitStack() as stack:
        anvil = stack.enter_context(fallen.lab.anvil.fork())
        node = await stack.enter_async_context(await Node.open(anvil.url))
        await node.steady_clock()
        config = folder / "keeper.toml"
        config.write_text(fallen.rig.config.read_text().replace(fallen.lab.anvil.ws_url, anvil.ws_url))
        shutil.copy(fallen.rig.folder / ".env", folder / ".env")
        rig = replace(fallen.rig, folder=folder, config=config)
        line = await stack.enter_async_context(open_again(Lab(anvil, node, fallen.lab.world), rig))
        ether, bitcoin = (market_of(node, fallen.synthetix.markets[asset]) for asset in ("ETH", "BTC"))
        await node.set_balances([FLAGGER])
        await node.mine_on_demand()
        await line.step()
        await line.pend(ether.tx(FLAGGER, "flagPosition", RACED, gas=1_000_000))
        await node.mine()
        await node.mine_each_transaction()
        await _rest(line)
        gated = await judge(config)
        await node.send(synth.trade_tx(bitcoin, BIG, -30 * UNIT), bitcoin.abi)
        opened = await judge(config)
        await _rest(line)
        yield Kept(line, gated, opened)


async def test_while_a_gate_stands_nothing_more_was_to_do(kept: Kept) -> None:
    """The keeper's own flag is all there was; of a position that another flagged the fee pays for no transaction."""
    assert kept.gated.ok, str(kept.gated)
    assert {one.account: one.reason for one in kept.gated.unhealthy} == {
        GATED: "gated",
        RACED: "unprofitable",
    }


async def test_what_an_open_gate_pays_the_flagger_is_left(kept: Kept) -> None:
    """Once the skew has gone, both fees of the position are the Liquidator's to take, and nobody else's."""
    [found] = kept.opened.left
    assert found.account == GATED and found.best is not None
    [settled] = [entry for entry in kept.line.booked("settled") if int(entry.body["profit_raw"]) > 600 * USDC]
    assert int(settled.body["profit_raw"]) == found.best.profit.raw


async def test_after_the_keeper_nothing_is_left_and_nothing_differs(kept: Kept) -> None:
    """Takeovers, sales, fees without a loan, a flag that pays later, a race lost: all that is booked is the chain's."""
    verdict = await judge(kept.line.rig.config)
    assert verdict.ok, str(verdict)
    assert GATED not in {one.account for one in verdict.unhealthy}
    explained = dict(verdict.totals["explained"])
    assert explained.pop("lost_race: CallFailed") == 1 and set(explained) == {"settled"}
    settled = kept.line.booked("settled")
    assert explained["settled"] == len(settled) == verdict.totals["liquidations"]
    assert {0} < {int(entry.body["profit_raw"]) for entry in settled}
    [usdc] = verdict.totals["treasury"]
    assert usdc["delta_raw"] == usdc["profit_raw"] == str(await kept.line.treasury_raw()) != "0"


async def test_the_estimate_of_gas_is_what_the_liquidator_uses(fallen: Fallen, kept: Kept) -> None:
    """Within an eighth for each way to liquidate: takeover, sale, both steps of a fee."""
    errors = {}
    for who in (LONG, MAKER, HOLDER, UNSAFE):
        best = _of(fallen.verdict, who).best
        settled = next(entry for entry in kept.line.booked("settled") if entry.account == checksum(who))
        assert best is not None
        errors[who.hex()] = best.gas / int(settled.body["gas_used"]) - 1
    assert max(abs(error) for error in errors.values()) < 1 / 8, errors
