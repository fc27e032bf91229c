"""The judge against a record of everything that can become of a transaction: each outcome follows from the chain."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keeper.abi import checksum
from keeper.fixed import MAX_UINT256, WAD
from keeper.lab.aave import pool_of
from keeper.lab.actors import account
from keeper.lab.artifacts import chainlink
from keeper.lab.chainlink import set_price
from keeper.lab.judge import judge
from keeper.lab.node import ETHER, Contract, Tx
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.tokens import approve_txs, mint_txs
from keeper.lab.world import open_lab
from keeper.types import Address, hex_of
from tests.e2e.line import Line, open_line
from tests.fork.forgery import Change, Row, amend, first, tampered

_E8 = 10**8
_EXPIRY = 45  # blocks after which nothing signed before can execute
# In the order in which they fall: at these prices of ether their health factors are below 1.
ORPHANED, REVERTED, RACED, CANCELLED, DROPPED = (account(number) for number in range(1, 6))
FALLS = {ORPHANED: 1_800, REVERTED: 1_750, RACED: 1_710, CANCELLED: 1_670, DROPPED: 1_630}


class Storm:
    """A keeper to which everything happens, one account after the other."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.node = line.lab.node
        self.world = line.lab.world

    async def sent(self, who: Address) -> bytes:
        """The account falls, and the keeper's liquidation of it waits in the pool; its signed bytes."""
        await self.node.mine_each_transaction()
        await set_price(self.node, self.world.feeds["WETH"], FALLS[who] * _E8)
        await self.node.mine_on_demand()
        await self.line.step()
        [waiting] = [one for one in self.line.store.open_transactions() if one.key.account == who]
        return waiting.attempts[-1].raw

    async def settle(self) -> None:
        """Handle heads until nothing is in flight and nothing is unsafe."""
        for _ in range(20):
            await self.node.mine()
            report = await self.line.step()
            if not (report.sent or report.liquidatable or self.line.store.open_transactions()):
                return
        raise AssertionError(f"still busy: {self.line.store.open_transactions()}")

    async def orphan(self) -> None:
        """Mined and settled, then orphaned, then mined again on the other branch."""
        raw = await self.sent(ORPHANED)
        fork = await self.node.snapshot()
        await self.settle()
        await self.node.revert(fork)
        await self.node.drop_pending()
        await self.node.mine(3)
        await self.node.rpc.request("eth_sendRawTransaction", hex_of(raw))
        await self.line.step()
        await self.settle()

    async def revert(self) -> None:
        """The price is back in the block of inclusion."""
        await self.sent(REVERTED)
        feed = self.world.feeds["WETH"]
        aggregator = Contract(self.node, feed.aggregator, chainlink("FluxAggregator").abi)
        round_id = int(await aggregator.read("latestRound")) + 1
        await self.line.pend(aggregator.tx(feed.reporter, "submit", round_id, 2_000 * _E8, gas=400_000))
        await self.settle()

    async def race(self) -> None:
        """Somebody else liquidates the account in the same block, first."""
        market, cast = self.world.aave["3.0"], self.world.cast
        usdc, rival = self.world.tokens["USDC"], cast.liquidator.address
        await self.node.mine_each_transaction()
        await self.node.send_all(mint_txs(cast, usdc, rival, 10**6 * 10**usdc.decimals))
        await self.node.send_all(await approve_txs(self.node, usdc, rival, market.pool, MAX_UINT256))
        await self.sent(RACED)
        weth = self.world.tokens["WETH"].address
        order = (weth, usdc.address, RACED, MAX_UINT256, False)
        await self.line.pend(pool_of(self.node, market).tx(rival, "liquidationCall", *order, gas=1_000_000))
        await self.settle()

    async def cancel(self) -> None:
        """Forgotten by the node until it is out of date."""
        await self.sent(CANCELLED)
        await self.node.drop_pending()
        await self.node.mine(_EXPIRY)
        await self.line.step()
        await self.settle()

    async def drop(self) -> None:
        """The operator's key, elsewhere, uses the nonce."""
        await self.sent(DROPPED)
        await self.node.drop_pending()
        await self.line.pend(Tx(self.world.cast.operator.address, account(99), value_wei=1, gas=21_000))
        await self.node.mine(_EXPIRY)
        await self.line.step()
        await self.settle()


@pytest.fixture(scope="module")
async def stormy(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Line]:
    """A world in which all of it happened."""
    async with await open_lab(clock="steady") as lab:
        specs = [
            PositionSpec(who, {"WETH": 10 * ETHER}, {"USDC": 1}, 2_000 * WAD // (dollars + 10))
            for who, dollars in FALLS.items()
        ]
        await open_positions(lab.node, lab.world.cast, lab.world.aave["3.0"], specs)
        async with open_line(lab, tmp_path_factory.mktemp("stormy")) as line:
            storm = Storm(line)
            await line.step()
            await storm.orphan()
            await storm.revert()
            await storm.race()
            await storm.cancel()
            await storm.drop()
            yield line


async def test_every_outcome_is_explained(stormy: Line) -> None:
    """All that the ledger says became of a transaction follows from receipts, traces, nonces and blocks alone."""
    verdict = await judge(stormy.rig.config)
    assert verdict.ok, str(verdict)
    explained = verdict.totals["explained"]
    assert sum(explained.values()) == verdict.totals["outcomes"]
    assert explained.pop("settled") >= len(FALLS) - 1
    assert explained == {
        "cancelled": 1,
        "dropped": 1,
        "lost_race: CallFailed": 1,
        "reorged": 1,
        "reverted: CallFailed": 1,
    }


def _renamed(kind: str, other: str) -> Change:
    def change(rows: list[Row]) -> None:
        first(rows, kind)["kind"] = other

    return change


def _blames_itself(rows: list[Row]) -> None:
    amend("lost_race", rival_tx=json.loads(first(rows, "settled")["body"])["tx"])(rows)


def _blames_for(who: Address) -> Change:
    def change(rows: list[Row]) -> None:
        first(rows, "lost_race")["account"] = checksum(who)

    return change


def _on_the_chain(rows: list[Row]) -> None:
    settled = [row for row in rows if row["kind"] == "settled"]
    body = json.loads(settled[-1]["body"])
    amend("reorged", block=body["block"], block_hash=body["block_hash"])(rows)


def _own_nonce(rows: list[Row]) -> None:
    nonces = [json.loads(row["body"])["nonce"] for row in rows if row["kind"] == "intent"]
    amend("dropped", nonce=max(nonces) + 1)(rows)


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        (_blames_itself, {"rival"}),
        (_blames_for(CANCELLED), {"rival"}),
        (amend("lost_race", rival_tx="0x" + "55" * 32), {"rival"}),
        (_renamed("cancelled", "reverted"), {"status"}),
        (_renamed("reverted", "cancelled"), {"status", "cancellation"}),
        (_on_the_chain, {"reorged"}),
        (_own_nonce, {"dropped"}),
        (amend("reverted", gas_cost_wei=1), {"gas_cost_wei"}),
    ],
    ids=[
        *("rival_is_us", "rival_took_another", "rival_unknown", "cancelled_as_reverted"),
        *("reverted_as_cancelled", "orphan_on_chain", "nonce_not_taken", "loss"),
    ],
)
async def test_a_false_explanation_is_found_out(
    stormy: Line, tmp_path: Path, change: Change, checks: set[str]
) -> None:
    """Another reason, another rival, another block: the chain contradicts it."""
    verdict = await judge(tampered(stormy.rig, tmp_path, change, rehash=True))
    assert {one.check for one in verdict.differences} == checks, str(verdict)
