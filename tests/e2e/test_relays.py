"""The line through relays on real Aave: what arrives, what the public pool sees, and what bad relays can do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from keeper import abi
from keeper.execution.flights import Submission
from keeper.fixed import WAD
from keeper.guard import scope_of
from keeper.lab.actors import account, actor
from keeper.lab.chainlink import set_price
from keeper.lab.judge import judge
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.relay import Manners, RelayDouble, build, open_relay
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.world import BASE_FEE_WEI, Lab
from keeper.store import OpenTransaction
from keeper.types import GLOBAL_SCOPE, BlockTime, Hash, hex_of
from tests.e2e.line import Line, open_again
from tests.e2e.process import until

ETHER = 10**18
_E8 = 10**8
_KEY = actor("relay key")
_ONE, _TWO = account(1), account(2)


@dataclass
class Private:
    """A line that sends by relays; `public` is every hash it handed to a node's public pool."""

    line: Line
    relays: list[RelayDouble]
    public: list[Hash] = field(default_factory=list)

    async def built(self, *relays: RelayDouble) -> None:
        """The next block, by these relays or all."""
        await build(self.line.lab.node, *(relays or self.relays))

    async def in_pool(self) -> set[str]:
        """Hashes of what the node's public pool holds."""
        content: Any = await self.line.lab.node.rpc.request("txpool_content")
        return {tx["hash"] for part in content.values() for by in part.values() for tx in by.values()}

    def only(self) -> OpenTransaction:
        """The one transaction in flight."""
        [transaction] = self.line.store.open_transactions()
        return transaction


def _configure(rig: Rig, relays: list[RelayDouble], **send: object) -> None:
    urls = ", ".join(f'"{relay.url}/SECRETKEY"' for relay in relays)
    keys = "".join(f"{name} = {value!r}\n".replace("'", '"') for name, value in send.items())
    text = rig.config.read_text().replace('route = "public"\n', f"relays = [{urls}]\n{keys}")
    rig.config.write_text(text)
    with (rig.folder / ".env").open("a") as secrets:
        secrets.write(f"KEEPER_RELAY_KEY=0x{_KEY.key.hex()}\n")


@asynccontextmanager
async def _fallen(
    lab: Lab,
    folder: Path,
    *manners: Manners,
    accounts: int = 1,
    markets: tuple[str, ...] = ("3.0",),
    **send: object,
) -> AsyncIterator[Private]:
    """Accounts below 1, and a keeper that sends by relays of these manners to a node that mines when told to."""
    fallen = (_ONE, _TWO)[:accounts]
    specs = [PositionSpec(who, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100) for who in fallen]
    for market in markets:
        await open_positions(lab.node, lab.world.cast, lab.world.aave[market], specs)
    async with AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(open_relay(lab.node, each)) for each in manners]
        rig = await make_rig(lab, folder, Terms())
        _configure(rig, relays, **send)
        line = await stack.enter_async_context(open_again(lab, rig))
        private = Private(line, relays)
        send_raw = line.parts.chain.send_raw

        async def seen(raw: bytes) -> Hash:
            private.public.append(abi.keccak(raw))
            return await send_raw(raw)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(line.parts.chain, "send_raw", seen)
            if {"late", "silent"}.isdisjoint(manners):
                patch.setattr("keeper.execution.routes._PATIENCE_S", 10.0)  # a busy machine makes nobody late
            assert (await line.step()).liquidatable == 0
            await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
            await lab.node.mine_on_demand()
            yield private


async def _settled(private: Private, count: int = 1) -> None:
    """So many liquidations and nothing else were booked, to the unit, and the judge agrees."""
    entries = private.line.booked("settled", "reverted", "cancelled", "lost_race", "dropped")
    assert [entry.kind for entry in entries] == ["settled"] * count
    assert await private.line.treasury_raw() == sum(int(entry.body["profit_raw"]) for entry in entries) > 0
    assert not any("SECRETKEY" in str(entry.body) for entry in private.line.ledger.entries(None))
    verdict = await judge(private.line.rig.config)
    assert not verdict.differences, str(verdict)


async def test_a_private_transaction_is_mined_unseen(lab: Lab, tmp_path: Path) -> None:
    """The relay has it, vouched for by the relay key and valid until its last block; the public pool never does."""
    async with _fallen(lab, tmp_path, "honest", route="private") as private:
        [sent] = (await private.line.step()).sent
        [asked] = private.relays[0].requests
        assert asked.signer == _KEY.address != lab.world.cast.operator.address
        assert asked.order == {
            "tx": hex_of(sent.raw),
            "maxBlockNumber": hex(sent.last_block),
            "preferences": {"fast": True},
        }
        [entry] = private.line.booked("sent")
        assert entry.body["via"] == [private.relays[0].url]
        assert not await private.in_pool()
        await private.built()
        assert [each.status for each in (await private.line.step()).settled] == [1]
        assert not private.public
        await _settled(private)


async def test_bundles_name_their_blocks_and_lead_with_lower_nonces(lab: Lab, tmp_path: Path) -> None:
    """Two at once: three blocks ahead for each, the second behind the first, a refund, and both in one block."""
    async with _fallen(lab, tmp_path, "honest", accounts=2, route="bundle", refund_percent=90) as private:
        first, second = (await private.line.step()).sent
        head = private.line.head
        bundles = [one.order for one in private.relays[0].asked("eth_sendBundle")]
        assert sorted(int(order["blockNumber"], 16) - head.number for order in bundles) == [1, 1, 2, 2, 3, 3]
        raws = {tuple(order["txs"]) for order in bundles}
        assert raws == {(hex_of(first.raw),), (hex_of(first.raw), hex_of(second.raw))}
        assert len({order["replacementUuid"] for order in bundles}) == 6
        for order in bundles:
            assert order["refundPercent"] == 90 and order["revertingTxHashes"] == []
            assert order["refundRecipient"] == abi.checksum(lab.world.cast.operator.address)
            assert order["maxTimestamp"] > order["minTimestamp"] == head.timestamp_s
        await private.built()
        assert [each.status for each in (await private.line.step()).settled] == [1, 1]
        assert not private.public and not private.line.store.open_transactions()
        await _settled(private, 2)


async def test_bundles_are_made_anew_at_every_head(lab: Lab, tmp_path: Path) -> None:
    """Blocks that somebody else built used the targets up: the same bytes are offered for later ones, and mined."""
    async with _fallen(lab, tmp_path, "honest", route="bundle") as private:
        [sent] = (await private.line.step()).sent
        orders: list[Mapping[str, Any]] = []
        for _ in range(6):
            await lab.node.mine()
            await private.line.step()
            orders = [one.order for one in private.relays[0].asked("eth_sendBundle")]
            assert int(orders[-1]["blockNumber"], 16) == private.line.head.number + 3
        assert {tuple(order["txs"]) for order in orders} == {(hex_of(sent.raw),)}
        assert len(private.line.booked("sent")) == 1
        await private.built()
        assert [each.transaction_hash for each in (await private.line.step()).settled] == [
            sent.transaction_hash
        ]
        await _settled(private)


@pytest.mark.parametrize("route", ["private", "bundle"])
async def test_several_relays_get_the_same_bytes_under_one_nonce(
    lab: Lab, tmp_path: Path, route: str
) -> None:
    """Of five relays one lies, one is silent, one answers late: it is mined by whoever does, and once."""
    async with _fallen(lab, tmp_path, "honest", "lying", "silent", "late", "honest", route=route) as private:
        [sent] = (await private.line.step()).sent
        await until(lambda: all(relay.requests for relay in private.relays), "all to be asked")
        for relay in private.relays:
            assert {hex_of(sent.raw)} == {
                raw for one in relay.requests for raw in one.order.get("txs", [one.order.get("tx")])
            }
        handed = 1 if route == "private" else 3
        await until(lambda: private.relays[0].holding == handed, "one to take it")
        await private.built()
        assert len((await private.line.step()).settled) == 1
        await private.built()
        report = await private.line.step()
        assert not report.settled and not private.public
        await _settled(private)


async def test_a_late_relay_is_not_waited_for_twice(lab: Lab, tmp_path: Path) -> None:
    """Its answer is booked when it comes, and until it answers in time nobody waits for it."""
    async with _fallen(lab, tmp_path, "late", route="private") as private:
        [sent] = (await private.line.step()).sent
        assert not private.line.booked("sent", "not_taken")

        async def heard() -> bool:
            await lab.node.mine()
            await private.line.step()
            return bool(private.line.booked("sent"))

        await until(heard, "its answer")
        [entry] = private.line.booked("sent")
        assert entry.body["tx"] == hex_of(sent.transaction_hash)
        await private.built()
        assert len((await private.line.step()).settled) == 1
        await _settled(private)


@pytest.mark.parametrize("route", ["private", "bundle"])
@pytest.mark.parametrize("manners", ["silent", "lying", "wrong_hash"])
async def test_without_a_fallback_the_public_pool_never_sees_it(
    lab: Lab, tmp_path: Path, route: str, manners: Manners
) -> None:
    """No relay gets it mined: it expires unseen, its nonce is taken back in public, and the next plan goes on."""
    async with _fallen(lab, tmp_path, manners, route=route, fallback="none") as private:
        [sent] = (await private.line.step()).sent
        for _ in range(42):
            await lab.node.mine()
            report = await private.line.step()
            assert not report.replaced
            if private.public:
                break
            assert not await private.in_pool()
        plan, cancel = private.only().attempts
        assert (plan.hash, cancel.purpose) == (sent.transaction_hash, "cancel")
        assert set(private.public) == {cancel.hash}
        assert await private.in_pool() == {hex_of(cancel.hash)}
        await lab.node.mine()
        report = await private.line.step()
        assert [entry.kind for entry in private.line.booked("cancelled", "settled")] == ["cancelled"]
        [again] = report.sent
        assert (again.nonce, again.plan_id) != (sent.nonce, sent.plan_id)
        assert {hex_of(again.transaction_hash)}.isdisjoint(await private.in_pool())


@pytest.mark.parametrize("manners", ["silent", "lying"])
async def test_with_a_fallback_it_is_published_after_the_stated_blocks(
    lab: Lab, tmp_path: Path, manners: Manners
) -> None:
    """Three blocks unseen, then the same bytes in public, mined once."""
    async with _fallen(
        lab, tmp_path, manners, route="private", fallback="public", fallback_after_blocks=3
    ) as private:
        [sent] = (await private.line.step()).sent
        for _ in range(2):
            await lab.node.mine()
            await private.line.step()
            assert not private.public
        await lab.node.mine()
        await private.line.step()
        assert private.public == [sent.transaction_hash]
        assert private.line.booked("sent")[-1].body == {
            "tx": hex_of(sent.transaction_hash),
            "via": ["public"],
        }
        await lab.node.mine()
        assert [each.transaction_hash for each in (await private.line.step()).settled] == [
            sent.transaction_hash
        ]
        await _settled(private)


async def test_nothing_is_published_while_paused(lab: Lab, tmp_path: Path) -> None:
    """The fallback's time has come and so has a pause: the relay is asked to hold it back, and its nonce is taken."""
    async with _fallen(
        lab, tmp_path, "honest", route="bundle", fallback="public", fallback_after_blocks=1
    ) as private:
        [sent] = (await private.line.step()).sent
        line = private.line
        guardian = lab.world.cast.guardians[0].address
        order = (GLOBAL_SCOPE, b"DRILL\0\0\0", bytes(32))
        await line.pend(line.guard().tx(guardian, "pause", *order, gas=300_000))
        await lab.node.mine()
        await line.step()
        assert sent.transaction_hash not in private.public
        _, cancel = private.only().attempts
        assert cancel.purpose == "cancel" and private.public == [cancel.hash]
        relay = private.relays[0]
        bundles = [one.order for one in relay.asked("eth_sendBundle")]
        ahead = {
            each["replacementUuid"] for each in bundles if int(each["blockNumber"], 16) > line.head.number
        }

        def withdrawn() -> bool:
            return ahead <= {one.order["replacementUuid"] for one in relay.asked("eth_cancelBundle")}

        await until(withdrawn, "the relay to hear of it")
        await private.built()
        await line.step()
        assert [entry.kind for entry in line.booked("cancelled", "settled", "reverted")] == ["cancelled"]


async def test_no_bundle_leads_with_what_was_stopped(lab: Lab, tmp_path: Path) -> None:
    """One protocol is stopped after its plan was signed: the other's bundle waits until that nonce was taken back."""
    async with _fallen(lab, tmp_path, "honest", markets=("3.0", "3.6"), route="bundle") as private:
        sender, gate = private.line.engine._sender, private.line.engine.reflexes.gate
        assert sender is not None
        signs = sender._signing.plans
        stopped: list[str] = []

        async def meanwhile(*arguments: Any) -> Any:
            signed = await signs(*arguments)
            stopped.append(arguments[0][0][0].plan.key.protocol)  # the lowest nonce's
            gate.see_pending(scope_of(stopped[0]), Hash(bytes(32)), private.line.head.number)
            return signed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sender._signing, "plans", meanwhile)
            assert len((await private.line.step()).sent) == 1
        held = [flight for flight in sender._flights.own() if flight.key.protocol == stopped[0]]
        assert held[0].nonce == 0, "all others are led by it"
        await lab.node.mine()
        await private.line.step()
        orders = [one.order for one in private.relays[0].asked("eth_sendBundle")]
        given = {raw for order in orders for raw in order["txs"]}
        plans = [flight.transaction.attempts[0].raw for flight in held]
        assert given.isdisjoint(map(hex_of, plans))


async def test_the_gate_is_asked_for_each_way_out(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It closes while the public pool is told of one: the relays do not get the other any more."""
    async with _fallen(lab, tmp_path, "honest", accounts=2, route="private") as private:
        await private.line.step()
        sender, gate, head = private.line.engine._sender, private.line.engine.reflexes.gate, private.line.head
        assert sender is not None
        flights = sender._flights.own()
        flights[0].published = True
        told = private.line.parts.chain.send_raw

        async def meanwhile(raw: bytes) -> Hash:
            gate.see_pending(GLOBAL_SCOPE, Hash(bytes(32)), head.number)
            return await told(raw)

        monkeypatch.setattr(private.line.parts.chain, "send_raw", meanwhile)
        await sender._hand_over(flights, BlockTime(head.number, head.hash, head.timestamp_s))
        assert len(private.public) == 1 and len(private.relays[0].requests) == 2, "as before"


async def test_a_stuck_bundle_is_replaced_under_its_name(lab: Lab, tmp_path: Path) -> None:
    """Base fees rise: the dearer transaction's bundle bears the name of the old one for that block, and is mined."""
    async with _fallen(lab, tmp_path, "honest", route="bundle") as private:
        [sent] = (await private.line.step()).sent
        bumps: list[Submission] = []
        for _ in range(2):
            await lab.node.set_base_fee(10 * BASE_FEE_WEI)
            await lab.node.mine()
            bumps += (await private.line.step()).replaced
        [bump] = bumps
        assert bump.nonce == sent.nonce
        by_name: dict[str, set[str]] = {}
        for one in private.relays[0].asked("eth_sendBundle"):
            by_name.setdefault(one.order["replacementUuid"], set()).update(one.order["txs"])
        assert {hex_of(sent.raw), hex_of(bump.raw)} in by_name.values()
        await private.built()
        assert [each.transaction_hash for each in (await private.line.step()).settled] == [
            bump.transaction_hash
        ]
        assert not private.public
        await _settled(private)


async def test_a_leaking_relay_wins_nothing_twice(lab: Lab, tmp_path: Path) -> None:
    """It tells the public pool what it was told in private: mined from there, it is settled once."""
    async with _fallen(lab, tmp_path, "leaking", "honest", route="private") as private:
        [sent] = (await private.line.step()).sent
        assert await private.in_pool() == {hex_of(sent.transaction_hash)} and not private.public
        await lab.node.mine()
        await private.line.step()
        await private.built()
        await private.line.step()
        await _settled(private)


async def test_another_hash_is_a_failed_relay(lab: Lab, tmp_path: Path) -> None:
    """It is on record as not taken and offered again; the daemon goes on, and what was mined all the same counts."""
    async with _fallen(lab, tmp_path, "wrong_hash", route="private") as private:
        await private.line.step()
        [entry] = private.line.booked("not_taken")
        assert "another hash" in entry.body["error"] and entry.body["complaint"] == "unknown"
        await private.built()
        assert len((await private.line.step()).settled) == 1
        await _settled(private)


async def test_a_relay_that_is_away_costs_nothing(lab: Lab, tmp_path: Path) -> None:
    """It drops every connection: the other one gets it mined, and the entry says what failed."""
    async with _fallen(lab, tmp_path, "absent", "honest", route="private") as private:
        away, there = private.relays
        await private.line.step()
        [entry] = private.line.booked("sent")
        assert entry.body["via"] == [there.url] and list(entry.body["failed"]) == [away.url]
        await private.built(there)
        assert len((await private.line.step()).settled) == 1
        await _settled(private)
