"""The whole line on Perp Curie: found by logs, planned, tried, sent, settled and booked."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from keeper import assembly, commands
from keeper.abi import checksum
from keeper.installation import setup_calls
from keeper.lab.curie import MARKETS, MarketSpec, part_of, table
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.safe import execute
from keeper.lab.world import Lab
from keeper.ledger import copies
from keeper.multisig.safe import InnerCall
from keeper.types import Address
from tests.conftest import Count
from tests.e2e.crashes import judged, seeds
from tests.e2e.line import Line, open_again
from tests.protocols.perp_curie_lab import SYMBOLS, following, random_accounts, to_index
from tests.protocols.perp_curie_takeover import ETHER, TRADER, USDC, Scene

THIN = (MarketSpec("WETH", 30_000, 2.0), MarketSpec("WBTC", 60_000, 1.5, pool_fee=10_000, fee_ratio=9_000))
_CRASHES = 2  # of each seed
_TRADERS = 6
_PATIENCE = 20
_LONG_AGO_S = 121  # so that nothing that was signed before can be mined any more


async def _configure(lab: Lab, rig: Rig, clearing_house: Address) -> None:
    """Add the exchange to the configuration, and let the Safe allow what it needs."""
    table = f'\n[[protocols]]\nkind = "perp-curie"\nname = "curie"\nclearing_house = "{checksum(clearing_house)}"\n'
    rig.config.write_text(rig.config.read_text() + table)
    async with assembly.open_parts(assembly.settings(rig.config)) as parts:
        needs = await assembly.needs(parts, lab.world.cast.operator.address)
    calls = [InnerCall(call.to, call.data) for call in setup_calls(rig.liquidator, needs)]
    await execute(lab.node, lab.world.safe, *calls)


async def test_the_line_takes_positions_over(lab: Lab, tmp_path: Path) -> None:
    """A position short of margin is taken over piece by piece until the account is healthy; the treasury gains exactly
    what is booked and what the trial said, to the unit, and the exchange holds nothing in the Liquidator's name.
    """
    rig = await make_rig(lab, tmp_path, Terms(max_slippage_bps=300))
    async with following(lab) as follower:
        await _configure(lab, rig, follower.curie.clearing_house)
        scene = Scene(follower, rig, lab)
        await scene.fall(TRADER, 2 * ETHER, 500)
        await lab.node.mine()  # so that the keeper sees how long a block takes
        async with open_again(lab, rig) as line:
            before_raw = await line.treasury_raw()
            first, *later = await line.steps()
            assert first.liquidatable == len(first.sent) == 1, first.refused
            settled = line.booked("settled")
            gained_raw = await line.treasury_raw() - before_raw
            assert gained_raw == sum(int(entry.body["profit_raw"]) for entry in settled) > 0
            assert {entry.protocol for entry in settled} == {"curie"}
            for entry in settled:
                assert entry.body["profit_raw"] == entry.body["expected_profit_raw"]
            assert later[-1].liquidatable == 0
            assert line.ledger.verify() is None
        vault, balance = (part_of(lab.node, follower.curie, name) for name in ("Vault", "AccountBalance"))
        value = int(await vault.read("getAccountValue", TRADER)) * 10**12
        assert value >= int(await balance.read("getMarginRequirementForLiquidation", TRADER))
        assert await scene.left_over() == ([], 0)


async def test_an_account_is_explained(lab: Lab, tmp_path: Path) -> None:
    """A command that never saw the exchange's accounts reads one, learns its markets, and says what it would do."""
    rig = await make_rig(lab, tmp_path, Terms(max_slippage_bps=300))
    async with following(lab) as follower:
        await _configure(lab, rig, follower.curie.clearing_house)
        await Scene(follower, rig, lab).fall(TRADER, 2 * ETHER, 500)
        answer = await commands.explain(rig.config, checksum(TRADER))
        [stages] = [each["stages"] for each in answer["protocols"] if each["protocol"] == "curie"]
        said = [(stage["stage"], stage["answer"]) for stage in stages]
        assert (
            ("assess", "liquidatable") in said and ("plan", "planned") in said and ("trial", "pays") in said
        )


async def test_a_lost_takeover_is_found_again(lab: Lab, tmp_path: Path) -> None:
    """A takeover that a restored record does not know is found on chain and booked for the account it was of, although
    its first call is a deposit, which is nobody's.
    """
    rig = await make_rig(lab, tmp_path / "keeper", Terms(max_slippage_bps=300))
    async with following(lab) as follower:
        await _configure(lab, rig, follower.curie.clearing_house)
        scene = Scene(follower, rig, lab)
        await follower.fund([TRADER], 500 * USDC)
        async with open_again(lab, rig) as line:
            before_raw = await line.treasury_raw()
            await line.step()
            backup = tmp_path / "backup.db"
            copies.back_up(line.store.path, backup, line.head.timestamp_s - _LONG_AGO_S)
            await scene.fall(TRADER, 2 * ETHER, 0)
            await line.steps()
            known = [entry.body["tx"] for entry in line.booked("settled")]
            assert known
        (rig.folder / "keeper.db").rename(rig.folder / "lost.db")
        head = await lab.node.head()
        copies.restore(backup, rig.folder / "keeper.db", lab.world.chain_id, head.timestamp_s - _LONG_AGO_S)
        async with open_again(lab, rig) as line:
            await line.step()
            found = line.booked("settled")
            assert [entry.body["tx"] for entry in found] == known
            assert {(entry.protocol, entry.account) for entry in found} == {("curie", checksum(TRADER))}
            profit = lab.world.tokens["USDC"].address
            assert line.ledger.gross_profit_raw(profit) == await line.treasury_raw() - before_raw
            assert line.ledger.verify() is None


async def _rest(line: Line) -> int:
    """Let the keeper work until averages have followed its own trades and there still is nothing to do; the treasury
    gains exactly what is booked. How many liquidations there were.
    """
    before_raw, known = await line.treasury_raw(), len(line.booked("settled"))
    await line.lab.node.mine_on_demand()  # all that a head sends is in one block
    quiet = 0
    for _ in range(_PATIENCE):
        await line.lab.node.advance(120)
        quiet = 0 if any(report.sent for report in await line.steps(40)) else quiet + 1
        if quiet == 2:  # at the first head that knows of a maker it is not judged yet
            break
    else:
        raise AssertionError("still busy")
    await line.lab.node.mine_each_transaction()
    settled = line.booked("settled")[known:]
    assert await line.treasury_raw() - before_raw == sum(int(each.body["profit_raw"]) for each in settled)
    return len(settled)


@pytest.mark.deep
@pytest.mark.parametrize("seed", seeds(sample=3))
async def test_nothing_is_left_after_random_crashes(
    own_lab: Lab, tmp_path: Path, seed: int, count: Count
) -> None:
    """Takers and makers of either side, some with other collateral, on deep and thin pools that fall or rise: the
    treasury gains what is booked, nothing stays on the exchange in the Liquidator's name, and the judge finds nothing
    that would have paid and no figure that differs.
    """
    lab, chance = own_lab, random.Random(seed)
    async with following(lab, chance.choice((MARKETS, THIN))) as follower:
        rig = await make_rig(lab, tmp_path, tables=table(follower.curie))
        scene = Scene(follower, rig, lab)
        async with open_again(lab, rig) as line:
            await line.step()
            crashes = settled = in_vain = 0
            while crashes < _CRASHES or not settled:
                await random_accounts(chance, follower, 100 * (crashes + 1), _TRADERS)
                moves = {symbol: chance.choice((1, -1)) * chance.uniform(0.05, 0.3) for symbol in SYMBOLS}
                await follower.set_price({symbol: 1 + move for symbol, move in moves.items()})
                for symbol in SYMBOLS:
                    await to_index(follower, symbol)
                settled += await _rest(line)
                crashes += 1
                in_vain += await judged(line, f"seed {seed}, crash {crashes}")
                assert await scene.left_over() == ([], 0)
            count("random crashes on Perp Curie that the judge found nothing left of", crashes)
            count("unhealthy accounts on Perp Curie that the judge tried in vain", in_vain)
            count("Perp Curie liquidations by the daemon", settled)
