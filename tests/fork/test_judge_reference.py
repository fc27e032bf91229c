"""The judge against a reference exchange whose right verdict is known: left alone, refused, losing, and well kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from keeper.abi import checksum
from keeper.errors import AdapterError, ExecutionError
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import set_prices
from keeper.lab.judge import Unhealthy, Verdict, judge
from keeper.lab.node import Contract, Node
from keeper.lab.perp_exchange import PerpExchange, TraderSpec, exchange_of, open_accounts, table
from keeper.lab.rig import Rig, make_rig
from keeper.lab.tokens import approve_txs, balance_of, mint
from keeper.lab.world import Lab, open_lab
from keeper.types import Address, hex_of
from tests.e2e.line import Line, open_again
from tests.fork.forgery import Change, Row, amend, drop, first, tampered
from tests.protocols.reference_perp_lab import (
    BTC,
    ETH,
    ISO,
    USDC,
    exchange_on,
    feeds_of,
    set_parameters,
    units,
)

pytestmark = pytest.mark.slow

_E8 = 10**8
_FLASH_BPS = 5  # Aave 3.6 in the lab lends cheapest
TAKER, RIVAL, WHALE = account(301), account(302), account(303)
# Accounts go by the numbers in which they are opened here; with cash in dollars and sizes.
LONG, BANKRUPT, SAFE, BULL, SHORT, RACED = range(1, 7)
_TRADERS = {
    LONG: (30_000, {"WETH": 150.0}),
    BANKRUPT: (5_000, {"WETH": 40.0}),
    SAFE: (20_000, {"WETH": 10.0}),
    BULL: (60_000, {"WBTC": 3.0, "ISO": 10_000.0}),
    SHORT: (4_600, {"WBTC": -1.0}),
    RACED: (1_500, {"ISO": -2_000.0}),
}
_UNSAFE = {LONG, BANKRUPT, SHORT, RACED}


@dataclass(frozen=True, slots=True)
class Fallen:
    """A world whose accounts lack margin and that no keeper ran on, and what the judge says of it."""

    lab: Lab
    rig: Rig
    exchange: PerpExchange
    verdict: Verdict

    @property
    def contract(self) -> Contract:
        """The exchange."""
        return exchange_of(self.lab.node, self.exchange)

    async def judged(self) -> Verdict:
        """The verdict on the exchange as it is now."""
        return await judge(self.rig.config, markets=["reference"])

    async def set(self, market: int | None = None, **changed: int) -> None:
        """Change parameters of the exchange, or of a market."""
        await set_parameters(self.lab.node, self.lab.world, self.exchange, market, **changed)

    async def paid(self, number: int, market: int) -> int:
        """What liquidating for cash pays by hand. Raises ExecutionError."""
        before_raw = await balance_of(self.lab.node, self.exchange.token, TAKER)
        await self.contract.send(TAKER, "liquidate", number, market)
        return await balance_of(self.lab.node, self.exchange.token, TAKER) - before_raw

    async def taken_over(self, found: Unhealthy, market: int, margin_raw: int) -> int:
        """What the judge's takeover with such a margin brings by hand, in the next block. Raises ExecutionError."""
        assert found.best is not None and found.best.position is not None
        contract, size = self.contract, found.best.position.raw
        heir, limit = await contract.read("newestOf", TAKER), 0 if size > 0 else 2**256 - 1
        before_raw = await balance_of(self.lab.node, self.exchange.token, TAKER)
        steps = (
            ("payIn", margin_raw),
            ("inherit", int.from_bytes(found.account), market, abs(size), heir),
            ("trade", heir, market, -size, limit),
            ("withdrawAll", heir),
        )
        txs = [contract.tx(TAKER, name, *arguments, gas=2_000_000) for name, *arguments in steps]
        await self.lab.node.send_all(txs, contract.abi)
        return await balance_of(self.lab.node, self.exchange.token, TAKER) - before_raw


@pytest.fixture(scope="module")
async def fallen(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fallen]:
    """Ether falls, all else rises: two longs and two shorts lack margin, one of them owes more than it has."""
    async with await open_lab(clock="steady") as lab:
        node, world = lab.node, lab.world
        exchange = await exchange_on(lab)
        rig = await make_rig(lab, tmp_path_factory.mktemp("reference"), tables=table(exchange))
        specs = [
            TraderSpec(
                account(310 + number), cash * USDC, {symbol: units(size) for symbol, size in sizes.items()}
            )
            for number, (cash, sizes) in _TRADERS.items()
        ]
        assert await open_accounts(node, world.cast, exchange, specs) == list(_TRADERS)
        await node.set_balances([TAKER, RIVAL, WHALE])
        await mint(node, world.cast, exchange.token, TAKER, 1_000_000 * USDC)
        await node.send_all(await approve_txs(node, exchange.token, TAKER, exchange.address, 1))
        await exchange_of(node, exchange).send(TAKER, "createAccount", False)
        prices = zip(feeds_of(world, exchange), (1_850, 41_600, 10.5), strict=True)
        await set_prices(node, {feed: int(usd * _E8) for feed, usd in prices})
        yield Fallen(lab, rig, exchange, await judge(rig.config))


@asynccontextmanager
async def _undone(node: Node) -> AsyncIterator[None]:
    """Whatever happens to the world inside did not."""
    snapshot = await node.snapshot()
    try:
        yield
    finally:
        await node.revert(snapshot)


def _named(number: int) -> Address:
    return Address(number.to_bytes(20))


def _of(verdict: Verdict, number: int) -> Unhealthy:
    [found] = [one for one in verdict.unhealthy if one.account == _named(number)]
    return found


def _left(verdict: Verdict) -> set[int]:
    return {int.from_bytes(one.account) for one in verdict.left}


# --- nobody liquidates ------------------------------------------------------------------------------------------------


async def test_accounts_that_were_left_are_found(fallen: Fallen) -> None:
    """Everybody with a position is counted but the house; who is safe is not named, and who is not is left."""
    assert fallen.verdict.totals["accounts_with_position"] == len(_TRADERS)
    assert not fallen.verdict.ok
    assert _left(fallen.verdict) == _UNSAFE
    assert len(fallen.verdict.unhealthy) == len(_UNSAFE), str(fallen.verdict)
    for number in _UNSAFE:
        equity, *_, required = await fallen.contract.read("assess", number)
        assert _of(fallen.verdict, number).health_factor_wad == equity * WAD // required


async def test_a_takeover_nobody_made_is_found(fallen: Fallen) -> None:
    """A part, as the tiers allow, brings by hand to the unit what the judge says; no other size brings more."""
    found, node = _of(fallen.verdict, LONG), fallen.lab.node
    best = found.best
    assert best is not None and best.position is not None and best.flash_source is not None
    assert 0 < best.position.raw <= units(75)
    margin_raw = best.repay.raw
    gained = {}
    for per_cent in (100, 99, 101):
        size = replace(best.position, raw=min(best.position.raw * per_cent // 100, units(75)))
        other = replace(found, best=replace(best, position=size))
        async with _undone(node):
            gained[per_cent] = await fallen.taken_over(other, ETH, margin_raw * 11 // 10)
    premium_raw = -(-margin_raw * _FLASH_BPS // 10_000)
    assert best.seize.raw - margin_raw == gained[100] == max(gained.values())
    assert best.profit.raw == gained[100] - premium_raw


async def test_no_less_margin_would_have_done(fallen: Fallen) -> None:
    """The loan that is reckoned with is the least: with a unit less the exchange refuses."""
    found = _of(fallen.verdict, LONG)
    assert found.best is not None
    margin_raw = found.best.repay.raw
    async with _undone(fallen.lab.node):
        with pytest.raises(ExecutionError, match="MarginTooLow"):
            await fallen.taken_over(found, ETH, margin_raw - 1)


@pytest.mark.parametrize(
    ("number", "market", "limit"),
    [(SHORT, BTC, None), (BANKRUPT, ETH, None), (BANKRUPT, ETH, 50)],
    ids=["short", "bankrupt", "clamped"],
)
async def test_a_reward_in_cash_is_found(fallen: Fallen, number: int, market: int, limit: int | None) -> None:
    """Without a loan, and to the unit what liquidating by hand pays: where closing costs, where a bankrupt's takeover
    could not be withdrawn, and where the exchange caps what a keeper gets.
    """
    async with _undone(fallen.lab.node):
        if limit is not None:
            await fallen.set(max_reward=limit * WAD)
        found = _of(await fallen.judged(), number)
        paid_raw = await fallen.paid(number, market)
    assert found.reason == "left" and found.best is not None and found.best.position is not None
    assert (found.best.repay.raw, found.best.flash_source) == (0, None)
    assert found.best.position.raw == units(sum(_TRADERS[number][1].values()))
    assert found.best.profit.raw == found.best.seize.raw == paid_raw
    assert limit is None or paid_raw == limit * USDC


async def test_a_window_cuts_a_reward_short(fallen: Fallen) -> None:
    """Where the house takes over only a little more, the reward is what that pays; then nothing in this block."""
    async with _undone(fallen.lab.node):
        await fallen.set(ETH, window_multiplier=WAD // 400, max_pd=0)  # 6 ETH every 30 seconds
        found = _of(await fallen.judged(), BANKRUPT)
        paid_raw = await fallen.paid(BANKRUPT, ETH)
        used = _of(await fallen.judged(), BANKRUPT)
    assert found.best is not None and found.best.seize.raw == paid_raw
    assert (used.reason, used.detail) == ("protocol_refuses", f"RateLimited({ETH})")


async def test_the_exchanges_pauses_are_quoted(fallen: Fallen) -> None:
    """Its flag for opening excuses nothing; its flag for liquidating excuses all, with its own reason."""
    deployer = fallen.lab.world.cast.deployer.address
    async with _undone(fallen.lab.node):
        await fallen.contract.send(deployer, "setPauses", True, False)
        opening = await fallen.judged()
        await fallen.contract.send(deployer, "setPauses", False, True)
        liquidating = await fallen.judged()
    for number in _UNSAFE:
        best, before = _of(opening, number).best, _of(fallen.verdict, number).best
        assert best is not None and before is not None
        assert best.profit.raw == pytest.approx(before.profit.raw, rel=1e-3)
        found = _of(liquidating, number)
        assert (found.reason, found.detail) == ("protocol_refuses", "LiquidationIsPaused()")
    assert _left(opening) == _UNSAFE and liquidating.ok


async def test_nobody_is_judged_by_a_stale_mark(fallen: Fallen) -> None:
    """Whoever holds a market without a fresh mark cannot be liquidated; others can."""
    async with _undone(fallen.lab.node):
        await fallen.set(ETH, max_age_s=100)
        await fallen.lab.node.advance(200)
        verdict = await fallen.judged()
    assert {int.from_bytes(one.account) for one in verdict.unhealthy} == _left(verdict) == {SHORT, RACED}


async def test_a_losing_takeover_is_not_left(fallen: Fallen) -> None:
    """Where the exchange pays nothing in cash, no discount, and closing costs, that is said with the numbers."""
    spec = TraderSpec(WHALE, 100_000 * USDC, {"WETH": -units(500)})
    async with _undone(fallen.lab.node):
        await open_accounts(fallen.lab.node, fallen.lab.world.cast, fallen.exchange, [spec])
        await fallen.set(keeper_share=0, execution_cost=0, min_reward=0)
        verdict = await fallen.judged()
    found = _of(verdict, LONG)
    assert (found.reason, found.best) == ("losing_takeover", None)
    assert "would come back" in found.detail and LONG not in _left(verdict)


async def test_a_loss_the_fund_cannot_cover_is_nobodys_to_take(fallen: Fallen) -> None:
    """Such an account is deleveraged, which pays nobody; the exchange's own figures say so."""
    feed = feeds_of(fallen.lab.world, fallen.exchange)[ETH]
    spec = TraderSpec(WHALE, 500_000 * USDC, {"WETH": units(1_000)})
    async with _undone(fallen.lab.node):
        [number] = await open_accounts(fallen.lab.node, fallen.lab.world.cast, fallen.exchange, [spec])
        await set_prices(fallen.lab.node, {feed: 1_000 * _E8})
        found = _of(await fallen.judged(), number)
    assert found.reason == "protocol_refuses" and found.detail.startswith("FundShort(")


async def test_rewards_that_pay_for_no_transaction_are_not_left(fallen: Fallen) -> None:
    """At a dear gas price a capped reward is less than its gas."""
    async with _undone(fallen.lab.node):
        await fallen.set(max_reward=5 * WAD)
        with fallen.lab.anvil.fork() as anvil:
            async with await Node.open(anvil.url) as node:
                await node.steady_clock()
                await node.set_base_fee(180 * 10**9)
                await node.mine()
                found = _of(await judge(fallen.rig.config, anvil.url, markets=["reference"]), BANKRUPT)
    assert found.reason == "unprofitable" and found.best is not None
    assert found.best.net_profit_usd_e8 < 0 < found.best.profit.raw


def _reconfigured(fallen: Fallen, folder: Path, by: str) -> Path:
    """A copy of the configuration with another bound of what may be borrowed, and what more `by` says."""
    line, text = "max_repay_usd = 10000000.0", fallen.rig.config.read_text()
    assert line in text
    path = folder / "keeper.toml"
    path.write_text(text.replace(line, by))
    return path


async def test_no_more_margin_than_allowed_is_borrowed(fallen: Fallen, tmp_path: Path) -> None:
    """What the operator lets borrow bounds takeovers; cash needs no loan."""
    verdict = await judge(_reconfigured(fallen, tmp_path, "max_repay_usd = 100.0"), markets=["reference"])
    assert _left(verdict) == _UNSAFE
    assert all(one.best is not None and one.best.repay.raw <= 100 * USDC for one in verdict.left)


async def test_an_operators_denial_excuses_an_account(fallen: Fallen, tmp_path: Path) -> None:
    """An account is denied by the address that its number makes."""
    denial = f'max_repay_usd = 10000000.0\ndeny_accounts = ["{checksum(_named(LONG))}"]'
    verdict = await judge(_reconfigured(fallen, tmp_path, denial), markets=["reference"])
    assert _of(verdict, LONG).reason == "denied" and _left(verdict) == _UNSAFE - {LONG}


# --- a keeper runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def kept(fallen: Fallen, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Line]:
    """The same world on a fork after a keeper did its work, but for one, where another was faster."""
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
        await node.mine_on_demand()
        assert len((await line.step()).sent) == len(_UNSAFE)
        contract = exchange_of(node, fallen.exchange)
        await line.pend(contract.tx(RIVAL, "liquidate", RACED, ISO, gas=1_000_000))
        await node.mine()
        await line.steps(20)
        yield line


async def test_after_the_keeper_nothing_is_left_and_nothing_differs(kept: Line) -> None:
    """Cash, a takeover and a race lost: all that is booked is the chain's, and the treasury has it."""
    verdict = await judge(kept.rig.config)
    assert verdict.ok and not verdict.unhealthy, str(verdict)
    explained = dict(verdict.totals["explained"])
    assert explained.pop("lost_race: CallFailed") == 1 and set(explained) == {"settled"}
    assert explained["settled"] == len(kept.booked("settled")) == verdict.totals["liquidations"] >= 2
    [usdc] = verdict.totals["treasury"]
    assert usdc["delta_raw"] == usdc["profit_raw"] == str(await kept.treasury_raw()) != "0"


async def test_the_estimate_of_gas_is_what_the_liquidator_uses(fallen: Fallen, kept: Line) -> None:
    """Within an eighth, for cash and for a takeover that opens the Liquidator's account."""
    for number in (SHORT, LONG):
        best = _of(fallen.verdict, number).best
        settled = next(one for one in kept.booked("settled") if one.account == checksum(_named(number)))
        assert best is not None
        assert best.gas == pytest.approx(int(settled.body["gas_used"]), rel=1 / 8), number


def _more_profit(rows: list[Row]) -> None:
    amend("settled", profit_raw=json.loads(first(rows, "settled")["body"])["profit_raw"] + 1)(rows)


def _another_account(rows: list[Row]) -> None:
    first(rows, "lost_race")["account"] = checksum(_named(SAFE))


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        (lambda rows: None, set()),
        (_more_profit, {"profit_raw", "treasury_delta", "profit_sum"}),
        (amend("settled", gas_cost_wei=1), {"gas_cost_wei"}),
        (drop("settled"), {"unbooked_liquidation", "unaccounted", "profit_sum"}),
        (amend("lost_race", rival_tx=hex_of(bytes(32))), {"rival"}),
        (_another_account, {"rival"}),
    ],
    ids=["untouched", "profit", "gas_cost", "settled_deleted", "no_rival", "anothers_race"],
)
async def test_a_forged_record_is_found_out(
    kept: Line, tmp_path: Path, change: Change, checks: set[str]
) -> None:
    """Where the hash chain was made whole again the exchange's own events contradict every lie."""
    verdict = await judge(tampered(kept.rig, tmp_path, change, rehash=True))
    assert {one.check for one in verdict.differences} == checks, str(verdict)
    assert verdict.ok is not bool(checks)


async def test_another_address_is_no_exchange(fallen: Fallen, tmp_path: Path) -> None:
    """A configuration that names something else is refused, with its address."""
    text, token = fallen.rig.config.read_text(), checksum(fallen.exchange.token.address)
    path = tmp_path / "keeper.toml"
    path.write_text(text.replace(checksum(fallen.exchange.address), token))
    with pytest.raises(AdapterError, match=token):
        await judge(path)
