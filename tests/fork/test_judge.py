"""The judge against worlds whose right verdict is known: neglected, thin, well kept, and kept but lied about."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from keeper.abi import checksum, keccak, load
from keeper.lab.aave import configurator_of
from keeper.lab.actors import account
from keeper.lab.chainlink import set_price
from keeper.lab.judge import Unhealthy, Verdict, judge
from keeper.lab.node import Contract, Tx
from keeper.lab.positions import PositionSpec, account_data, liquidate, open_positions
from keeper.lab.rig import Rig, make_rig
from keeper.lab.tokens import balance_of, mint
from keeper.lab.uniswap import PoolSpec, move_pool, quote_v3
from keeper.lab.world import Lab, WorldSpec, open_lab
from keeper.types import GLOBAL_SCOPE, Address, hex_of
from tests.e2e.line import Line, open_line
from tests.fork.forgery import Row, again, amend, drop, first, tampered

pytestmark = pytest.mark.slow

ETHER = 10**18
_WAD = 10**18
_E8 = 10**8
_OPENED_AT = 1_035 * _WAD // 1000
_FALLEN_USD = 1_800  # from 2,000: a health factor of 0.93
_FALLEN_DEEP, _FALLEN_DUST, _FALLEN_DAI = 1, 2, 3
_PREMIUM_BPS = 5  # Aave 3.6 in the lab lends cheapest


def _who(version: str, number: int) -> Address:
    return account(int(version.replace(".", "")) * 100 + number)


async def _open(lab: Lab, *supplies: tuple[int, int, str]) -> None:
    """On every market: accounts by number with that much WETH as collateral and a debt in that token."""
    for version, market in lab.world.aave.items():
        specs = [
            PositionSpec(_who(version, number), {"WETH": weth}, {debt: 1}, _OPENED_AT)
            for number, weth, debt in supplies
        ]
        await open_positions(lab.node, lab.world.cast, market, specs)


async def _fall(lab: Lab) -> None:
    """The price falls, and arbitrage takes the pool along."""
    world = lab.world
    await set_price(lab.node, world.feeds["WETH"], _FALLEN_USD * _E8)
    prices = {**world.prices_e8, "WETH": _FALLEN_USD * _E8}
    for pool in world.uniswap_v3.pools:
        if "WETH" in (pool.token0.symbol, pool.token1.symbol):
            price0, price1 = prices[pool.token0.symbol], prices[pool.token1.symbol]
            await move_pool(lab.node, world.cast, world.uniswap_v3, pool, price0, price1)


def _reconfigured(rig: Rig, folder: Path, replaced: str, by: str) -> Path:
    """A copy of the configuration with one line changed, on the same record."""
    text = rig.config.read_text().replace("sqlite:///keeper.db", f"sqlite:///{rig.folder}/keeper.db")
    assert replaced in text
    path = folder / "keeper.toml"
    path.write_text(text.replace(replaced, by))
    return path


def _of(verdict: Verdict, who: Address) -> Unhealthy:
    [found] = [one for one in verdict.unhealthy if one.account == who]
    return found


# --- nobody liquidates ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Neglected:
    """A world with unhealthy accounts that no keeper ran on, and what the judge says of it."""

    lab: Lab
    rig: Rig
    verdict: Verdict


@pytest.fixture(scope="module")
async def neglected(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Neglected]:
    """A deep and a dust account on every market, and one more whose debt is not the profit token."""
    async with await open_lab(clock="steady") as lab:
        rig = await make_rig(lab, tmp_path_factory.mktemp("neglected"))
        await _open(
            lab,
            (_FALLEN_DEEP, 10 * ETHER, "USDC"),
            (_FALLEN_DUST, ETHER // 500, "USDC"),
            (_FALLEN_DAI, 8 * ETHER, "DAI"),
        )
        await _fall(lab)
        yield Neglected(lab, rig, await judge(rig.config))


@pytest.mark.parametrize("version", ["3.0", "3.6"])
async def test_a_profitable_account_nobody_liquidated_is_found(neglected: Neglected, version: str) -> None:
    """What it would have brought is what liquidating it by hand brings, sold where the judge says, less the loan."""
    lab, world = neglected.lab, neglected.lab.world
    found = _of(neglected.verdict, _who(version, _FALLEN_DEEP))
    assert found.reason == "left" and found in neglected.verdict.left and found.best is not None
    market, usdc, weth = world.aave[version], world.tokens["USDC"], world.tokens["WETH"]
    assert found.best.route == ("sell WETH -500-> USDC",)
    snapshot = await lab.node.snapshot()
    before_raw = await balance_of(lab.node, weth, world.cast.liquidator.address)
    receipt = await liquidate(
        lab.node, world.cast, market, found.account, "WETH", "USDC", found.best.repay.raw
    )
    seized_raw = await balance_of(lab.node, weth, world.cast.liquidator.address) - before_raw
    sold_raw = await quote_v3(lab.node, world.uniswap_v3, weth, usdc, 500, found.best.seize.raw)
    await lab.node.revert(snapshot)
    # a second or two of interest lies between the judge's block and this one
    assert seized_raw == pytest.approx(found.best.seize.raw, rel=1e-6)
    lent_raw = found.best.repay.raw * (10_000 + _PREMIUM_BPS) // 10_000
    headroom_raw = found.best.repay.raw // 10**7  # the premium on a basis point more than is repaid
    assert found.best.profit.raw == pytest.approx(sold_raw - lent_raw, abs=headroom_raw + 1)
    assert found.best.net_profit_usd_e8 < found.best.profit.raw * 100
    assert found.best.gas > receipt.gas_used


@pytest.mark.parametrize("version", ["3.0", "3.6"])
async def test_debt_that_is_not_the_profit_token_is_bought_back(neglected: Neglected, version: str) -> None:
    """Two trades, or one and what is left over, end in the profit token."""
    found = _of(neglected.verdict, _who(version, _FALLEN_DAI))
    assert found.reason == "left" and found.best is not None
    assert found.best.profit.token.symbol == "USDC" and found.best.repay.token.symbol == "DAI"
    assert len(found.best.route) == 2


@pytest.mark.parametrize("version", ["3.0", "3.6"])
async def test_dust_is_not_left(neglected: Neglected, version: str) -> None:
    """An account that could not pay for the gas is unhealthy and rightly alone, and the verdict says why."""
    found = _of(neglected.verdict, _who(version, _FALLEN_DUST))
    assert found.reason == "too_small" and found.best is None
    assert found not in neglected.verdict.left


async def test_only_unhealthy_accounts_are_named(neglected: Neglected) -> None:
    """Everybody with debt is counted, everybody below a health factor of 1 is named, nobody else is."""
    lab = neglected.lab
    assert neglected.verdict.totals["accounts_with_debt"] == 6
    named = {(one.protocol, one.account): one.health_factor_wad for one in neglected.verdict.unhealthy}
    truth = {}
    for version, market in lab.world.aave.items():
        accounts = [_who(version, number) for number in (_FALLEN_DEEP, _FALLEN_DUST, _FALLEN_DAI)]
        for who, data in zip(accounts, await account_data(lab.node, market, accounts), strict=True):
            truth[f"aave-{version.replace('.', '-')}", who] = data.health_factor_wad
    assert named == truth and max(truth.values()) < _WAD


async def test_judging_leaves_the_chain_as_it_was(neglected: Neglected) -> None:
    """The head before is the head after."""
    before = await neglected.lab.node.head()
    again = await judge(neglected.rig.config, neglected.lab.anvil.url, markets=["aave-3-6"])
    assert await neglected.lab.node.head() == before
    assert {one.protocol for one in again.unhealthy} == {"aave-3-6"}


def test_the_command_prints_one_document_and_fails(neglected: Neglected) -> None:
    """`--json` prints the schema promised to users; the exit code is 1 when something was left."""
    command = [sys.executable, "-m", "keeper.lab.judge", "--json", "--market", "aave-3-0", "--config"]
    run = subprocess.run([*command, neglected.rig.config], capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    document = json.loads(run.stdout)
    assert document["schema"] == 1 and document["ok"] is False
    assert {one["account"] for one in document["left"]} == {
        checksum(_who("3.0", number)) for number in (_FALLEN_DEEP, _FALLEN_DAI)
    }
    assert set(document) == {
        *("schema", "ok", "left", "unhealthy", "differences", "paused_liquidations", "totals")
    }
    [dust] = [one for one in document["unhealthy"] if one["best"] is None]
    assert set(dust) >= {"protocol", "account", "health_factor_wad", "best", "reason"}
    best = document["left"][0]["best"]
    assert set(best["repay"]) == {"token", "symbol", "decimals", "raw"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--config", "nowhere.toml"], 2), (["--rpc", "http://127.0.0.1:1"], 3), (["--market", "nobody"], 2)],
    ids=["no_configuration", "no_chain", "no_market"],
)
def test_the_exit_code_tells_what_is_wrong(neglected: Neglected, arguments: list[str], code: int) -> None:
    """Nothing is printed on stdout when there is no verdict, and one line says why on stderr."""
    command = [sys.executable, "-m", "keeper.lab.judge", "--config", str(neglected.rig.config), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (code, ""), run.stderr
    assert run.stderr.startswith("judge: ") and run.stderr.count("\n") == 1


async def test_what_the_operator_forbade_is_not_left(neglected: Neglected, tmp_path: Path) -> None:
    """A denied account is excused, and no liquidation found for the other repays more than is allowed."""
    denied = _who("3.0", _FALLEN_DEEP)
    limits = f'max_repay_usd = 100.0\ndeny_accounts = ["{checksum(denied)}"]'
    config = _reconfigured(neglected.rig, tmp_path, "max_repay_usd = 10000000.0", limits)
    verdict = await judge(config)
    assert _of(verdict, denied).reason == "denied"
    for one in verdict.unhealthy:
        if one.best is not None:
            assert one.best.repay.raw <= 100 * 10**one.best.repay.token.decimals
    assert _of(verdict, _who("3.6", _FALLEN_DEEP)).reason == "left"


async def test_more_slippage_than_allowed_is_not_left(neglected: Neglected, tmp_path: Path) -> None:
    """Where selling costs more than the Liquidator's end check allows, nothing may be taken."""
    config = _reconfigured(neglected.rig, tmp_path, "max_slippage_bps = 300", "max_slippage_bps = 5")
    verdict = await judge(config)
    assert _of(verdict, _who("3.6", _FALLEN_DEEP)).reason == "over_slippage"
    assert not verdict.left


async def test_bad_debt_is_named_as_such(neglected: Neglected) -> None:
    """An account that owes and holds nothing is unhealthy for ever (until 3.2), and nobody can take anything."""
    lab, who = neglected.lab, _who("3.0", _FALLEN_DEEP)
    snapshot = await lab.node.snapshot()
    await set_price(lab.node, lab.world.feeds["WETH"], 700 * _E8)
    await liquidate(lab.node, lab.world.cast, lab.world.aave["3.0"], who, "WETH", "USDC")
    verdict = await judge(neglected.rig.config, markets=["aave-3-0"])
    await lab.node.revert(snapshot)
    assert _of(verdict, who).health_factor_wad == 0
    assert _of(verdict, who).reason == "no_collateral" and _of(verdict, who).best is None


async def test_a_market_that_refuses_is_quoted(neglected: Neglected) -> None:
    """Where the protocol itself is paused nothing was left, and the verdict carries the protocol's own reason."""
    lab, world = neglected.lab, neglected.lab.world
    snapshot = await lab.node.snapshot()
    market = world.aave["3.6"]
    await configurator_of(lab.node, market).send(world.cast.deployer.address, "setPoolPause(bool)", True)
    verdict = await judge(neglected.rig.config, markets=["aave-3-6"])
    await lab.node.revert(snapshot)
    found = _of(verdict, _who("3.6", _FALLEN_DEEP))
    assert (found.reason, found.detail) == ("protocol_refuses", "ReservePaused()")


async def test_a_pause_excuses_what_is_left(neglected: Neglected) -> None:
    """While signers have paused one market only the other's accounts should have been liquidated."""
    lab, rig = neglected.lab, neglected.rig
    guard = Contract(lab.node, rig.pause_guard, load("PauseGuard"))
    snapshot = await lab.node.snapshot()
    scope = b"aave-3-0".ljust(32, b"\0")
    await guard.send(lab.world.cast.guardians[0].address, "pause", scope, b"incident", bytes(32))
    verdict = await judge(rig.config)
    await lab.node.revert(snapshot)
    assert _of(verdict, _who("3.0", _FALLEN_DEEP)).reason == "paused"
    assert {one.protocol for one in verdict.left} == {"aave-3-6"}


async def test_two_dozen_accounts_are_judged_in_twenty_seconds(neglected: Neglected) -> None:
    """The search fits at the end of every run."""
    lab = neglected.lab
    snapshot = await lab.node.snapshot()
    for version, market in lab.world.aave.items():
        specs = [
            PositionSpec(
                _who(version, 20 + number),
                {"WETH": 10 * ETHER, "wstETH": 2 * ETHER}
                if number % 3 == 0
                else {"WETH": (number + 1) * ETHER},
                {"USDC": 1, "DAI": 1} if number % 2 else {"USDT": 1},
                9 * _WAD // 10 * _OPENED_AT // _WAD * 115 // 100,
            )
            for number in range(9)
        ]
        await open_positions(lab.node, lab.world.cast, market, specs)
    await set_price(lab.node, lab.world.feeds["WETH"], 1_550 * _E8)
    verdict = await judge(neglected.rig.config)
    await lab.node.revert(snapshot)
    assert len(verdict.unhealthy) == 24
    assert verdict.totals["seconds"] < 20, verdict.totals


# --- a market too thin for the whole ----------------------------------------------------------------------------------


async def test_a_thin_pool_is_profitable_only_in_part(tmp_path: Path) -> None:
    """All that may be repaid cannot be sold for the loan, and the judge finds the part that can."""
    spec = WorldSpec(v3_pools=(PoolSpec(("WETH", "USDC"), 500, 60_000),), v2_pairs=())
    async with await open_lab(spec, clock="steady") as lab:
        world = lab.world
        folder = tmp_path / "stricter"
        folder.mkdir()
        rig = await make_rig(lab, tmp_path / "rig")
        await _open(lab, (_FALLEN_DEEP, 200 * ETHER, "USDC"))
        await _fall(lab)
        verdict = await judge(rig.config)
        assert len(verdict.left) == 2
        for one in verdict.left:
            assert one.best is not None
            version = one.protocol.removeprefix("aave-").replace("-", ".")
            [data] = await account_data(lab.node, world.aave[version], [one.account])
            part = one.best.repay.raw * 100 / data.debt_base
            assert 0.001 < part < 0.1
            ratio = one.best.seize.raw / one.best.repay.raw
            whole_raw = data.debt_base // 100
            tokens = (world.tokens["WETH"], world.tokens["USDC"])
            sold_raw = await quote_v3(lab.node, world.uniswap_v3, *tokens, 500, int(whole_raw * ratio))
            assert sold_raw < whole_raw
            # No amount a twentieth more or less nets more, but for the end check.
            for other in (0.95, 1.05):
                repay_raw = int(one.best.repay.raw * other)
                got_raw = await quote_v3(lab.node, world.uniswap_v3, *tokens, 500, int(repay_raw * ratio))
                gross_raw = got_raw - repay_raw * (10_000 + _PREMIUM_BPS) // 10_000
                assert gross_raw <= one.best.profit.raw * 1.001
        net_usd = Decimal(min(one.best.net_profit_usd_e8 for one in verdict.left if one.best)).scaleb(-8)
        for less_usd, reason in (("0.55", "left"), ("0.25", "within_tolerance"), ("-0.25", "unprofitable")):
            minimum = f"min_profit_usd = {net_usd - Decimal(less_usd):.8f}"
            strict = await judge(_reconfigured(rig, folder, "min_profit_usd = 1.0", minimum))
            worst = min(strict.unhealthy, key=lambda one: one.best.net_profit_usd_e8 if one.best else 0)
            assert worst.reason == reason, str(strict)


# --- a keeper runs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kept:
    """A world on which the keeper did its work and still has its record open; `before` is the verdict before it."""

    line: Line
    before: Verdict

    @property
    def lab(self) -> Lab:
        """The world."""
        return self.line.lab

    @property
    def rig(self) -> Rig:
        """The keeper's files."""
        return self.line.rig


@pytest.fixture(scope="module")
async def kept(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kept]:
    """Accounts on every market, liquidated by the keeper until nothing is left to do."""
    async with await open_lab(clock="steady") as lab:
        await _open(
            lab,
            (_FALLEN_DEEP, 10 * ETHER, "USDC"),
            (_FALLEN_DUST, ETHER // 500, "USDC"),
            (_FALLEN_DAI, 8 * ETHER, "DAI"),
        )
        async with open_line(lab, tmp_path_factory.mktemp("kept")) as line:
            await line.step()
            await _fall(lab)
            before = await judge(line.rig.config)
            await line.steps()
            yield Kept(line, before)


async def test_after_the_keeper_nothing_is_left_and_nothing_differs(kept: Kept) -> None:
    """What was left before is gone, dust remains, and every figure of the record is the chain's."""
    assert len(kept.before.left) == 4
    verdict = await judge(kept.rig.config)
    assert verdict.ok, str(verdict)
    assert {one.account for one in verdict.unhealthy} == {_who(v, _FALLEN_DUST) for v in ("3.0", "3.6")}
    settled = verdict.totals["explained"]["settled"]
    assert settled == verdict.totals["outcomes"] == verdict.totals["liquidations"] >= 4
    assert verdict.totals["in_flight"] == 0
    assert verdict.totals["gas_cost_wei"] == verdict.totals["gas_booked_wei"] != "0"
    [usdc] = verdict.totals["treasury"]
    assert usdc["delta_raw"] == usdc["profit_raw"] == str(await kept.line.treasury_raw())


async def test_the_estimate_of_gas_is_what_the_liquidator_uses(kept: Kept) -> None:
    """Within an eighth, and without bias: the constant for the Liquidator is not a guess."""
    errors = []
    for entry in kept.line.booked("settled"):
        best = next(one.best for one in kept.before.unhealthy if checksum(one.account) == entry.account)
        assert best is not None
        errors.append(best.gas / int(entry.body["gas_used"]) - 1)
    assert max(abs(error) for error in errors) < 1 / 8, errors
    assert abs(sum(errors) / len(errors)) < 0.06, errors


async def test_payments_from_others_are_told_apart(kept: Kept) -> None:
    """A gift to the treasury is reported as such and is no difference."""
    lab, usdc = kept.lab, kept.lab.world.tokens["USDC"]
    snapshot = await lab.node.snapshot()
    await mint(lab.node, lab.world.cast, usdc, lab.world.cast.treasury.address, 777)
    verdict = await judge(kept.rig.config)
    await lab.node.revert(snapshot)
    assert verdict.ok, str(verdict)
    [row] = verdict.totals["treasury"]
    assert row["from_others_raw"] == "777"
    assert int(row["delta_raw"]) == int(row["profit_raw"]) + 777


async def test_a_transaction_that_was_never_signed_for_is_reported(kept: Kept) -> None:
    """Whatever the operator's key did to the Liquidator beside the record is a difference, also when it failed."""
    lab = kept.lab
    snapshot = await lab.node.snapshot()
    stray = Tx(lab.world.cast.operator.address, kept.rig.liquidator, b"\x01\x02\x03\x04", gas=100_000)
    tx_hash = await kept.line.pend(stray)
    await lab.node.mine()
    verdict = await judge(kept.rig.config)
    await lab.node.revert(snapshot)
    found = {(one.check, one.transaction) for one in verdict.differences}
    assert found == {("unsigned_transaction", hex_of(tx_hash)), ("unbooked_transaction", hex_of(tx_hash))}


# --- a record that lies -----------------------------------------------------------------------------------------------


def _more_profit(rows: list[Row]) -> None:
    amend("settled", profit_raw=json.loads(first(rows, "settled")["body"])["profit_raw"] + 1)(rows)


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        (lambda rows: None, set()),
        (_more_profit, {"profit_raw", "treasury_delta", "profit_sum"}),
        (amend("settled", profit_token="0x" + "11" * 20), {"profit_token", "profit_sum"}),
        (amend("settled", gas_cost_wei=1), {"gas_cost_wei"}),
        (amend("settled", gas_used=21_000), {"gas_used"}),
        (amend("settled", block_hash="0x" + "00" * 32), {"block_hash"}),
        (amend("settled", tx="0x" + "22" * 32), {"receipt", "unbooked_liquidation"}),
        (drop("settled"), {"unbooked_liquidation", "unaccounted", "profit_sum"}),
        (drop("signed"), {"unsigned_transaction", "signed_before", "sent_unsigned"}),
        (again("settled"), {"settled_twice", "profit_sum"}),
        (again("signed", plan_id="0x" + "33" * 32), {"nonce_reused", "unaccounted"}),
        (again("sent", body='{"tx":"0x' + "44" * 32 + '"}'), {"sent_unsigned"}),
    ],
    ids=[
        *("untouched", "profit", "token", "gas_cost", "gas_used", "block_hash", "other_transaction"),
        *("settled_deleted", "signed_deleted", "settled_twice", "extra_nonce", "sent_unsigned"),
    ],
)
async def test_a_forged_record_is_found_out(
    kept: Kept, tmp_path: Path, change: Callable[[list[Row]], None], checks: set[str]
) -> None:
    """Even where the hash chain was made whole again, the chain itself contradicts every lie."""
    verdict = await judge(tampered(kept.rig, tmp_path, change, rehash=True))
    assert {one.check for one in verdict.differences} == checks, str(verdict)
    assert verdict.ok is not bool(checks)


@pytest.mark.parametrize(
    "change",
    [_more_profit, lambda rows: rows.pop(2), lambda rows: first(rows, "intent").update(body="not JSON")],
    ids=["altered", "deleted", "unreadable"],
)
async def test_a_careless_change_breaks_the_hash_chain(
    kept: Kept, tmp_path: Path, change: Callable[[list[Row]], None]
) -> None:
    """Altering or deleting an entry without forging everything behind it is found without asking the chain."""
    verdict = await judge(tampered(kept.rig, tmp_path, change, rehash=False))
    assert "hash_chain" in {one.check for one in verdict.differences}


# --- a guard that fails -----------------------------------------------------------------------------------------------


async def test_a_liquidation_while_paused_is_reported(lab: Lab, tmp_path: Path) -> None:
    """The guard's events say paused; that its storage forgot, and keeper and Liquidator went on, is no excuse."""
    await _open(lab, (_FALLEN_DEEP, 10 * ETHER, "USDC"))
    async with open_line(lab, tmp_path) as line:
        await line.step()
        await line.guard().send(
            lab.world.cast.guardians[0].address, "pause", GLOBAL_SCOPE, b"incident", bytes(32)
        )
        await _forget(line, GLOBAL_SCOPE)
        await _fall(lab)
        await line.steps()
        settled = line.booked("settled")
        assert settled
        verdict = await judge(line.rig.config)
    assert {one.scope for one in verdict.paused_liquidations} == {"everything"}
    assert {hex_of(one.plan_id) for one in verdict.paused_liquidations} == {
        entry.plan_id for entry in settled
    }
    assert not verdict.ok and not verdict.differences


async def _forget(line: Line, scope: bytes) -> None:
    """Zero the scope's words in the guard's storage, wherever its mapping is."""
    node, guard = line.lab.node, line.rig.pause_guard
    for slot in range(8):
        place = int.from_bytes(keccak(scope + slot.to_bytes(32, "big")), "big")
        await node.set_storage([(guard, place, 0), (guard, place + 1, 0)])
    state = await line.guard().read("scopeState", scope)
    assert state[0] is False and state[1] == 0
