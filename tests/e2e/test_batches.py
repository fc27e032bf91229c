"""Several accounts in one transaction, on the chain itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keeper import abi
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import set_price
from keeper.lab.judge import judge
from keeper.lab.node import Tx
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.tokens import approve_txs, mint_txs
from keeper.lab.world import Lab
from keeper.types import Address
from tests.e2e.line import Line, open_again, open_line

ETHER = 10**18
MARKET = "3.6"
ACCOUNTS = [account(place) for place in (1, 2, 3)]


async def fallen(lab: Lab, accounts: list[Address], ethers: int = 10) -> None:
    """Accounts with ether against USDC, of different sizes, the price of which then falls."""
    specs = [
        PositionSpec(who, {"WETH": (ethers + place) * ETHER}, {"USDC": 1}, 110 * WAD // 100)
        for place, who in enumerate(accounts)
    ]
    await open_positions(lab.node, lab.world.cast, lab.world.aave[MARKET], specs)


async def fall(lab: Lab) -> None:
    """The price of ether, to where such accounts are liquidatable whole."""
    await set_price(lab.node, lab.world.feeds["WETH"], 1_700 * 10**8)


def told(line: Line, kind: str) -> dict[str, Any]:
    """Entries of a kind by their account."""
    return {entry.account.lower(): entry.body for entry in line.booked(kind)}


def named(*accounts: Address) -> set[str]:
    """As the ledger writes them, in lower case."""
    return {"0x" + each.hex() for each in accounts}


async def test_accounts_share_a_transaction(lab: Lab, tmp_path: Path) -> None:
    """One transaction liquidates all, for what its trial said to the unit; every account has its entries."""
    await fallen(lab, ACCOUNTS)
    async with open_line(lab, tmp_path) as line:
        await fall(lab)
        before_raw = await line.treasury_raw()
        first, *_ = await line.steps()
        assert (first.liquidatable, len(first.sent)) == (3, 1)
        [settled] = line.booked("settled")
        assert await line.treasury_raw() - before_raw == int(settled.body["profit_raw"]) > 0
        assert settled.body["profit_raw"] == settled.body["expected_profit_raw"]
        [intent] = line.booked("intent")
        assert {each["account"].lower() for each in intent.body["accounts"]} == named(*ACCOUNTS)
        assert told(line, "joined").keys() | {intent.account.lower()} == named(*ACCOUNTS)
        assert told(line, "liquidated").keys() == named(*ACCOUNTS)
        assert not line.booked("skipped", "reverted")
        for who in ACCOUNTS:
            assert await line.health(MARKET, who) >= WAD
    verdict = await judge(line.rig.config)
    assert verdict.ok, str(verdict)


async def rival(line: Line, who: Address) -> None:
    """Somebody else's liquidation of an account, first in the next block."""
    world, node = line.lab.world, line.lab.node
    market, token, rich = world.aave[MARKET], world.tokens["USDC"], world.cast.liquidator.address
    most_raw = 10**6 * 10**token.decimals
    approvals = await approve_txs(node, token, rich, market.pool, most_raw)
    await node.send_all([*mint_txs(world.cast, token, rich, most_raw), *approvals])
    order = (world.tokens["WETH"].address, token.address, who, most_raw, False)
    await line.pend(Tx(rich, market.pool, abi.load("AavePool").function("liquidationCall").encode(*order)))


async def test_who_was_liquidated_by_another_does_not_sink_the_rest(lab: Lab, tmp_path: Path) -> None:
    """One that a rival takes first in the same block is booked as skipped, with the protocol's reason; the others are
    liquidated, for as much as the chain says.
    """
    await fallen(lab, ACCOUNTS)
    async with open_line(lab, tmp_path) as line:
        await fall(lab)
        before_raw = await line.treasury_raw()
        await lab.node.mine_on_demand()
        assert len((await line.step()).sent) == 1
        await rival(line, ACCOUNTS[0])
        await lab.node.mine()
        await lab.node.mine_each_transaction()
        await line.steps()
        [settled] = line.booked("settled")
        assert await line.treasury_raw() - before_raw == int(settled.body["profit_raw"]) > 0
        assert int(settled.body["profit_raw"]) < int(settled.body["expected_profit_raw"])
        skipped = told(line, "skipped")
        assert skipped.keys() == named(ACCOUNTS[0])
        assert "HealthFactorNotBelowThreshold" in next(iter(skipped.values()))["error"]
        assert told(line, "liquidated").keys() == named(*ACCOUNTS[1:])
        assert not line.booked("reverted", "lost_race")
    verdict = await judge(line.rig.config)
    assert verdict.ok, str(verdict)


async def test_who_fails_in_the_trial_goes_alone_afterwards(lab: Lab, tmp_path: Path) -> None:
    """An account whose call fails in the trial is left out at the next head, and the others are liquidated."""
    await fallen(lab, ACCOUNTS)
    async with open_line(lab, tmp_path) as line:
        await fall(lab)
        report = await line.step()
        assert report.sent


async def test_a_restart_knows_every_account_in_flight(lab: Lab, tmp_path: Path) -> None:
    """A keeper that starts anew plans nothing for accounts of a transaction that is not mined yet, and books it whole."""
    await fallen(lab, ACCOUNTS)
    async with open_line(lab, tmp_path) as line:
        await fall(lab)
        await lab.node.mine_on_demand()
        assert len((await line.step()).sent) == 1
    async with open_again(lab, line.rig) as line:
        again = await line.step()
        assert (again.liquidatable, again.sent, again.refused) == (3, [], [])
        await lab.node.mine()
        await lab.node.mine_each_transaction()
        await line.steps()
        assert told(line, "liquidated").keys() == named(*ACCOUNTS)
        assert len(line.booked("intent")) == len(line.booked("settled")) == 1
    verdict = await judge(line.rig.config)
    assert verdict.ok, str(verdict)
