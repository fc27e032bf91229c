"""The fault kit itself: faults do as they say, points are reached, and a keeper that breaks a promise is found out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from typer.testing import CliRunner

from keeper.chain.transports import connect
from keeper.cli import app
from keeper.errors import ChainError, ConfigError, RpcError
from keeper.execution.flights import Flights
from keeper.execution.sender import Sender
from keeper.execution.settling import Settling
from keeper.lab.actors import account, actor
from keeper.lab.chainlink import set_price
from keeper.lab.chaos import session
from keeper.lab.chaos.faults import METHODS, Event, Fault, Kind, Script, random_script
from keeper.lab.chaos.points import POINTS, armed
from keeper.lab.chaos.proxy import Proxy, lied, open_proxy
from keeper.lab.chaos.scripts import play
from keeper.lab.chaos.stage import Stage, open_stage
from keeper.lab.world import Lab
from keeper.ledger import Ledger
from keeper.store import Store
from keeper.types import Hash, Head

_GWEI = 10**9
FALL = Event("price", 1, 9_000, "WETH")


@pytest.fixture
async def proxy(lab: Lab) -> AsyncIterator[Proxy]:
    """A front to the shared node with nothing wrong yet."""
    async with open_proxy(lab.anvil.ws_url) as front:
        yield front


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A stage of the test's own."""
    async with open_stage(tmp_path / "rig") as opened:
        yield opened


async def _asked(front: Proxy, transport: str, method: str = "eth_chainId", *params: Any) -> Any:
    """One answer by a connection of its own."""
    rpc = await connect(front.url if transport == "http" else front.ws_url, 0.4)
    try:
        return await rpc.request(method, *params)
    finally:
        await rpc.close()


@pytest.mark.parametrize("transport", ["http", "ws"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("drop", "did not answer"),
        ("reset", "cannot be reached|closed the connection"),
        ("rate_limit", "429"),
        ("server_error", "503"),
        ("truncate", "truncated"),
        ("garbage", "not an answer|not JSON-RPC"),
    ],
)
async def test_a_fault_bites_only_within_its_span(
    proxy: Proxy, kind: Kind, said: str, transport: str
) -> None:
    """The first two requests of its method fail as it says, the third and every other method do not."""
    # a client that is cut off over HTTP asks once more by itself
    count = 4 if (kind, transport) == ("reset", "http") else 2
    proxy.play([Fault(kind, 0, count, "request", ("eth_chainId",), 503)])
    for _ in range(2):
        with pytest.raises(ChainError, match=said):
            await _asked(proxy, transport)
        assert int(await _asked(proxy, transport, "eth_blockNumber"), 16) > 0
    assert await _asked(proxy, transport) == "0x7a69"
    assert proxy.injected == {kind: count}


async def test_a_delay_is_waited_for(proxy: Proxy) -> None:
    """The answer is right, and comes no sooner than it should."""
    proxy.play([Fault("delay", 0, 1, "request", amount=80)])
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert await _asked(proxy, "ws") == "0x7a69"
    assert loop.time() - began_s >= 0.08


async def test_logs_are_doubled_kept_back_and_taken_back(proxy: Proxy, lab: Lab) -> None:
    """The same logs twice, none, and each once more with `removed`; then as they are."""
    number = hex((await set_price(lab.node, lab.world.feeds["WETH"], 1_999 * 10**8)).block_number)
    blocks = {"fromBlock": number, "toBlock": number}
    logs = await _asked(proxy, "http", "eth_getLogs", blocks)
    assert logs
    wanted: dict[Kind, Any] = {
        "duplicate_logs": [log for log in logs for _ in range(2)],
        "missing_logs": [],
        "removed_logs": [each for log in logs for each in (log, log | {"removed": True})],
    }
    for kind, answer in wanted.items():
        proxy.play([Fault(kind, 0, 1, "request")])
        assert await _asked(proxy, "http", "eth_getLogs", blocks) == answer
        assert await _asked(proxy, "http", "eth_getLogs", blocks) == logs


async def test_a_stale_head_stands_while_state_goes_on(proxy: Proxy, lab: Lab) -> None:
    """For two blocks the newest block is an old one, but what is asked of the state is as it is; then it jumps."""
    proxy.play([Fault("stale_head", 0, 2)])
    await proxy.next_block()
    first = await _asked(proxy, "http", "eth_blockNumber")
    await lab.node.set_balances([account(77)], 5)
    await lab.node.mine(3)
    await proxy.next_block()
    assert await _asked(proxy, "http", "eth_blockNumber") == first
    assert (await _asked(proxy, "http", "eth_getBlockByNumber", "latest", False))["number"] == first
    assert await _asked(proxy, "http", "eth_getBalance", "0x" + account(77).hex(), "latest") == "0x5"
    await proxy.next_block()
    assert int(await _asked(proxy, "http", "eth_blockNumber"), 16) == int(first, 16) + 3


def test_a_lie_is_one_bit_of_one_word() -> None:
    """Whatever number chooses it, exactly one bit differs; an answer without a word stays."""
    answer = "0x" + random.Random(1).randbytes(96).hex()
    for choice in range(0, 2**20, 7_919):
        assert (int(answer, 16) ^ int(lied(answer, choice), 16)).bit_count() == 1
    assert len({lied(answer, choice) for choice in range(768)}) == 768
    assert lied("0x", 5) == "0x"


async def test_the_pool_keeps_and_asks_a_tenth_more(proxy: Proxy, lab: Lab) -> None:
    """Geth's rules while they hold: a tenth of both fees, nothing evicted, known is an error; Anvil's otherwise."""
    await lab.node.mine_on_demand()
    nonce = int(await _asked(proxy, "http", "eth_getTransactionCount", _OPERATOR, "latest"), 16)
    await _hand_in(proxy, nonce, 10, 1)
    await _hand_in(proxy, nonce, 10.1, 1)  # Anvil takes a little more
    proxy.play([Fault("replacement_rule", 0, 1), Fault("keeping_pool", 0, 1), Fault("already_known", 0, 1)])
    await proxy.next_block()
    for fee, tip in ((11.2, 1.05), (11.1, 1.2)):
        with pytest.raises(RpcError, match="underpriced"):
            await _hand_in(proxy, nonce, fee, tip)
    kept = await _hand_in(proxy, nonce, 11.2, 1.2)
    with pytest.raises(RpcError, match="already known"):
        await _hand_in(proxy, nonce, 11.2, 1.2)
    await lab.node.set_base_fee(50 * _GWEI)
    await lab.node.mine()  # Anvil throws it out
    below = await _hand_in(proxy, nonce + 1, 20, 1)  # and does not take this one
    await lab.node.set_base_fee(_GWEI)
    await lab.node.mine()
    await proxy.next_block()
    await lab.node.mine()
    for name in (kept, below):
        assert (await _asked(proxy, "http", "eth_getTransactionReceipt", name))["status"] == "0x1"


async def test_an_answer_may_be_lost_and_a_transaction_swallowed(proxy: Proxy, lab: Lab) -> None:
    """With the answer lost the node has the transaction; swallowed it was acknowledged and the node does not."""
    await lab.node.mine_on_demand()
    nonce = int(await _asked(proxy, "ws", "eth_getTransactionCount", _OPERATOR, "latest"), 16)
    seen: list[bytes] = []
    proxy.watch = seen.append
    proxy.play([Fault("lost_answer", 0, 1, "request"), Fault("swallow", 1, 1, "request")])
    with pytest.raises(ChainError, match="closed the connection"):
        await _hand_in(proxy, nonce, 10, 1)
    swallowed = await _hand_in(proxy, nonce + 1, 10, 1)
    assert int((await _asked(proxy, "ws", "txpool_status"))["pending"], 16) == 1
    assert await _asked(proxy, "ws", "eth_getTransactionByHash", swallowed) is None
    assert len(seen) == 2


async def test_notices_are_lost_or_late_and_sockets_cut(proxy: Proxy, lab: Lab) -> None:
    """One head is not announced, the next one late; then a block cuts every socket."""
    proxy.play([Fault("lost_notices", 0, 1, "request"), Fault("slow_notices", 1, 1, "request", amount=80)])
    rpc = await connect(proxy.ws_url)
    heads = await rpc.subscribe("newHeads")
    loop = asyncio.get_running_loop()
    await lab.node.mine()
    await lab.node.mine()
    began_s = loop.time()
    assert int((await anext(heads))["number"], 16) == (await lab.node.head()).number
    assert loop.time() - began_s > 0.05
    proxy.renew([Fault("dropped_sockets", 0, 1)])
    await proxy.next_block()
    with pytest.raises(ChainError, match="closed the connection"):
        await anext(heads)
    await rpc.close()


async def test_nothing_passes_while_the_front_is_held(proxy: Proxy) -> None:
    """A question that comes while somebody mines is answered afterwards."""
    async with proxy.held(), proxy.held():
        asked = asyncio.create_task(_asked(proxy, "ws"))
        await asyncio.sleep(0.1)
        assert not asked.done()
    assert await asked == "0x7a69"


async def test_whoever_was_let_go_is_held_again(proxy: Proxy) -> None:
    """Where the front is held again in the moment it was let go, a question that waited goes on waiting."""
    async with proxy.held():
        asked = asyncio.create_task(_asked(proxy, "ws"))
        await asyncio.sleep(0.1)
    async with proxy.held():
        await asyncio.sleep(0.1)
        assert not asked.done()
    assert await asked == "0x7a69"


def test_a_script_is_its_seed_and_its_json() -> None:
    """The same seed gives the same script, its JSON gives it back, and all faults between node and keeper end."""
    kinds: set[str] = set()
    for seed in range(300):
        script = random_script(random.Random(seed), list(POINTS))
        assert script == random_script(random.Random(seed), list(POINTS))
        assert Script.from_json(script.to_json()) == script
        kinds |= {fault.kind for fault in script.faults}
        assert all(METHODS.get(fault.kind) is None or not fault.methods for fault in script.faults)
    assert len(kinds) > 18
    with pytest.raises(ConfigError, match="cannot be read"):
        Script.from_json('{"blocks":"many"}')


@pytest.mark.parametrize("name", POINTS)
def test_every_point_is_a_method_of_the_keeper(name: str) -> None:
    """It can be armed, and is as it was afterwards."""
    point = POINTS[name]
    with armed(name, 1, lambda: None):
        changed = point.owner_class().__dict__[point.method]
    assert point.owner_class().__dict__[point.method] is changed.__wrapped__


def test_a_point_strikes_the_nth_time(tmp_path: Path) -> None:
    """Not before the second call, then before it does anything."""

    def strike() -> None:
        raise KeyboardInterrupt

    with Store.open(f"sqlite:///{tmp_path}/keeper.db") as store, armed("accounts not committed", 2, strike):
        store.add_accounts([])
        with pytest.raises(KeyboardInterrupt):
            store.add_accounts([])
    with Store.open(f"sqlite:///{tmp_path}/keeper.db") as store:
        store.add_accounts([])


async def test_a_broadcast_before_the_record_is_found(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper that hands bytes to a node before they are on record breaks a promise, and the witness says which."""
    record = Flights.signed

    def hasty(self: Flights, signed: Any, head: Any) -> None:
        for _, attempt, _ in signed:
            stage.proxy.watch(attempt.raw) if stage.proxy.watch else None
        record(self, signed, head)

    monkeypatch.setattr(Flights, "signed", hasty)
    played = await play(stage, Script(4, (), (FALL,)), tmp_path / "run")
    assert {breach.invariant for breach in played.breaches} == {"recorded_first"}


async def test_a_profit_that_is_not_the_treasurys_is_found(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit too much in the ledger differs from the treasury and from the chain."""
    gained = Settling._profit_raw
    monkeypatch.setattr(Settling, "_profit_raw", lambda self, *of: gained(self, *of) + 1)
    played = await play(stage, Script(4, (), (FALL,)), tmp_path / "run")
    assert {breach.invariant for breach in played.breaches} == {"profit", "books"}


async def test_what_is_forgotten_at_a_death_is_found(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper that does not take over what was in flight leaves it open and its accounts alone."""

    async def forget(self: Sender, head: Head) -> None:
        self._nonces.recover(await self._chain.nonce(self._key.address, "pending"))

    monkeypatch.setattr(Sender, "recover", forget)
    death = Event("kill", 1, 1, "broadcast, not noted")
    played = await play(stage, Script(4, (), (FALL, death)), tmp_path / "run")
    assert played.tally["died"] == 1
    assert "in_flight" in {breach.invariant for breach in played.breaches}


async def test_an_entry_that_is_gone_is_found(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody takes the newest entry away while the keeper is dead."""
    tip = Ledger.tip

    def shorter(self: Ledger) -> tuple[int, Hash]:
        with self._store.transaction() as connection:
            connection.exec_driver_sql("DROP TRIGGER IF EXISTS entries_no_delete")
            connection.exec_driver_sql("DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries)")
        return tip(self)

    monkeypatch.setattr(Ledger, "tip", shorter)
    death = Event("kill", 2, 1, "outcome booked")
    played = await play(stage, Script(5, (), (FALL, death)), tmp_path / "run")
    assert "entry_lost" in {breach.invariant for breach in played.breaches}


async def test_a_crash_is_a_breach_and_the_line_starts_again(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that no keeper should end with is reported with its trace; the run goes on to its end."""
    settle = Sender.settle
    crashes = iter((True,))

    async def crash(self: Sender, *given: Any) -> Any:
        if next(crashes, False):
            raise ZeroDivisionError("a head too many")
        return await settle(self, *given)

    monkeypatch.setattr(Sender, "settle", crash)
    played = await play(stage, Script(4, (), (FALL,)), tmp_path / "run")
    assert [breach.invariant for breach in played.breaches] == ["explained"]
    assert "a head too many" in played.breaches[0].detail


def test_the_command_ends_with_one_when_a_promise_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One script, shown promise by promise; the exit code says whether all of them held."""
    command = ["lab", "chaos", "--kills", "0", "--scripts", "1", "--seed", "3"]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    assert (
        "ok   no plan is executed twice" in ran.output and "1 of 1 verdicts without a finding" in ran.output
    )
    monkeypatch.setattr(session, "script_of", lambda _: Script(4, (), (FALL,)))
    gained = Settling._profit_raw
    monkeypatch.setattr(Settling, "_profit_raw", lambda self, *of: gained(self, *of) + 1)
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 1
    assert "FAIL booked gross profit is what the treasury gained" in ran.output


_OPERATOR = "0x" + actor("operator").address.hex()


async def _hand_in(front: Proxy, nonce: int, fee_gwei: float, tip_gwei: float) -> str:
    """A transfer of nothing by the operator to itself."""
    me = actor("operator")
    fields = {
        "type": 2,
        "chainId": 31_337,
        "nonce": nonce,
        "to": me.address,
        "value": 0,
        "gas": 21_000,
        "maxFeePerGas": int(fee_gwei * _GWEI),
        "maxPriorityFeePerGas": int(tip_gwei * _GWEI),
    }
    signed = Account.sign_transaction(fields, me.key)
    return str(await _asked(front, "ws", "eth_sendRawTransaction", "0x" + signed.raw_transaction.hex()))
