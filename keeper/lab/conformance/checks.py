"""What every adapter is held to. Each check's name says what holds; each runs on a stage that is put back after it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Final

from keeper.abi import load
from keeper.lab.conformance.amounts import a_liquidation_moves_what_was_foretold_and_no_more
from keeper.lab.conformance.nonsense import overheard, stood
from keeper.lab.conformance.stage import Following, Stage, seeded, treasury_raw
from keeper.lab.conformance.subject import Seen
from keeper.lab.node import Node
from keeper.seams import Adapter, Reads
from keeper.types import (
    Address,
    BlockTime,
    Head,
    Log,
    Marks,
    Option,
    Position,
    PositionKey,
    Positions,
    Question,
    Refusal,
    Result,
)

_ACCOUNTS: Final = 12
_ROUNDS: Final = 3
_GARBLED: Final = 150  # answers a read is given, one wrong at a time


# --- figures ---------------------------------------------------------------------------------------------------------


async def health_is_the_contracts_and_no_unsafe_account_is_missed(stage: Stage) -> None:
    """After random trades, prices and time, every open position's figures are the contracts' own to the last digit, at
    the head and ahead of it; who may be liquidated by them is by the adapter, and is among the book's candidates.
    """
    chance, seen, subject = seeded(stage, "health"), Seen(), stage.subject
    async with stage.following() as following:
        accounts = await subject.populate(chance, _ACCOUNTS)
        for _ in range(_ROUNDS):
            await subject.disturb(chance, accounts)
            await stage.node.mine()
            head = await following.follow()
            await _compare(stage, following, accounts, await following.marks(head), seen)
            ahead_s = chance.randint(1, 90)
            marks = await following.marks(head, ahead_s)
            await stage.node.advance(ahead_s)
            # what is always checked may be as of its block: no bound is claimed for it
            ahead: list[Address] = []
            for positions in await _read(following, accounts, head):
                bounded = positions.live & ~positions.always_check
                ahead += [each for each, sure in zip(positions.accounts, bounded, strict=True) if sure]
            await _compare(stage, following, ahead, marks, seen)
    seen.require("unsafe account", "safe account", "account that the rows spare")


async def _compare(
    stage: Stage, following: Following, accounts: Iterable[Address], marks: Marks, seen: Seen
) -> None:
    book = following.watch.book
    candidates = set(book.candidates(marks))
    for account in accounts:
        key, told = following.key(account), await stage.subject.told(account)
        if told is None:
            assert key not in book, f"{account.hex()} is closed, but in the book"
            continue
        assert key in book, f"{account.hex()} is open, but not in the book"
        if told.liquidatable is None:
            answer = following.adapter.assess(book.position(key), marks)
            assert isinstance(answer, Refusal), f"the contracts do not judge {account.hex()}, but {answer}"
            continue
        health = following.health(key, marks)
        figures = dict(stage.subject.figures(health))
        assert figures == dict(told.figures), f"{account.hex()}: {figures} is not {told.figures}"
        assert health.liquidatable == told.liquidatable, f"{account.hex()}: {health} is not {told}"
        assert key in candidates or not told.liquidatable, f"the rows miss {account.hex()}: {health}"
        seen.note("unsafe account", when=told.liquidatable)
        seen.note("safe account", when=not told.liquidatable)
        seen.note("account that the rows spare", when=key not in candidates)


# --- discovery -------------------------------------------------------------------------------------------------------


async def an_account_is_discovered_by_each_of_its_events(stage: Stage) -> None:
    """The logs of the event alone name the account, and the book that follows them holds what a fresh read says."""
    account = await stage.subject.open_one()
    assert stage.subject.events, "the subject names no event"
    for name, steps in stage.subject.events.items():
        snapshot = await stage.node.snapshot()
        async with stage.following() as following:
            for step in steps[:-1]:
                await step(account)
            before = await following.follow()
            await steps[-1](account)
            head = await following.parts.chain.head()
            found = following.adapter.discover(await following.logs(before.number + 1, head.number))
            assert following.key(account) in found.keys, f"{name} does not name the account"
            await _is_fresh(stage, following, [account], await following.follow(), name)
        await stage.back(snapshot)


async def a_replay_finds_exactly_the_accounts_that_are_open(stage: Stage) -> None:
    """After random trades a keeper that starts anew, from `from_block` and what the chain lists, holds whoever has a
    position, nobody else, and what it holds is what one holds that followed all along.
    """
    chance, subject = seeded(stage, "replay"), stage.subject
    async with stage.following() as following:
        accounts = await subject.populate(chance, _ACCOUNTS)
        for _ in range(_ROUNDS):
            await subject.disturb(chance, accounts)
            await following.follow()
        await stage.node.mine()
        head = await following.follow()
        async with stage.following() as anew:
            book, fresh = following.watch.book, anew.watch.book
            assert set(book) == set(fresh), "a replay finds other accounts than were followed"
            for key in fresh:
                assert book.position(key) == fresh.position(key), key
                assert await subject.told(key.account), f"{key.account.hex()} is closed, but in the book"
            for account in accounts:
                is_open = await subject.told(account) is not None
                assert (anew.key(account) in fresh) == is_open, account.hex()
            listed = await anew.parts.chain.read(anew.adapter.enumerate(), head.hash)
            assert listed <= set(fresh), "enumerate() lists accounts without a position"


async def _read(following: Following, accounts: Iterable[Address], head: Head) -> list[Positions]:
    """Positions as of the head, each market's together."""
    markets: dict[str, list[PositionKey]] = {}
    for account in accounts:
        key = following.key(account)
        markets.setdefault(key.market, []).append(key)
    read = following.parts.chain.read
    return [await read(following.adapter.refresh(keys), head.hash) for keys in markets.values()]


async def _is_fresh(
    stage: Stage, following: Following, accounts: Collection[Address], head: Head, after: str
) -> None:
    book = following.watch.book
    columns = (
        each
        for positions in await _read(following, accounts, head)
        for each in zip(positions.accounts, positions.words.tolist(), positions.live, strict=True)
    )
    for account, words, live in columns:
        key, told = following.key(account), await stage.subject.told(account)
        assert bool(live) == (key in book) == (told is not None), f"{account.hex()} after {after}"
        exact = tuple(high << 64 | low for high, low in words)
        assert not live or book.position(key).words[: len(exact)] == exact, f"{account.hex()} after {after}"


# --- the whole line --------------------------------------------------------------------------------------------------


async def an_unsafe_account_is_liquidated_on_the_chain(stage: Stage) -> None:
    """By the daemon's own line and the Liquidator: each transaction ends with status 1, in a block of the number, time
    and base fee that it was tried in, and gains to the unit what its plan and its trial said there; the treasury gains
    what is booked, and the logs name the liquidation, its account and its transaction. In the end the contracts no
    longer call the account unsafe.
    """
    account = await _unsafe(stage)
    await _liquidates(stage, stage.node, account, None)
    told = await stage.subject.told(account)
    assert told is None or told.liquidatable is False, f"it is still unsafe: {told}"


async def an_unsafe_account_is_liquidated_on_a_fork(stage: Stage) -> None:
    """The same on a fork of the chain, taken while it runs."""
    account = await _unsafe(stage)
    with stage.subject.lab.anvil.fork() as anvil:
        async with await Node.open(anvil.url) as node:
            await node.steady_clock()
            await _liquidates(stage, node, account, anvil.url)


async def _unsafe(stage: Stage) -> Address:
    account = await stage.subject.open_one()
    told = await stage.subject.told(account)
    assert told and not told.liquidatable, f"the account that was opened is not sound: {told}"
    await stage.subject.make_unsafe(account)
    told = await stage.subject.told(account)
    assert told and told.liquidatable, f"the account that was made unsafe is not: {told}"
    return account


async def _liquidates(stage: Stage, node: Node, account: Address, rpc_url: str | None) -> None:
    await node.mine(2)  # heads a second apart, as the next one will be
    async with stage.working(rpc_url) as work:
        before_raw, start = await treasury_raw(stage, node), await node.head()
        reports = await work.until_idle(node)
        assert reports[0].sent, f"nothing was sent: {reports[0].refused}"
        settled = work.booked("settled")
        assert len(settled) == sum(len(report.sent) for report in reports)
        assert all(each.status == 1 for report in reports for each in report.settled), settled
        intents = {entry.plan_id: entry.body for entry in work.booked("intent")}
        for entry in settled:
            intent = intents[entry.plan_id]
            before, at, included = [await _block(node, entry.body["block"] - back) for back in (2, 1, 0)]
            assert intent["block_hash"] == at["hash"], "it was not mined in the block after its head"
            assert int(intent["next_base_fee_wei"]) == int(included["baseFeePerGas"], 16)
            times_s = [int(each["timestamp"], 16) for each in (before, at, included)]
            assert times_s[2] - times_s[1] == times_s[1] - times_s[0], f"{times_s} are no steady blocks"
            told = intent["planned_profit_raw"], intent["expected_profit_raw"], entry.body["profit_raw"]
            assert len(set(told)) == 1, f"planned, tried and realised: {told}"
        gained_raw = await treasury_raw(stage, node) - before_raw
        assert gained_raw == sum(int(entry.body["profit_raw"]) for entry in settled) > 0
        [adapter] = [each for each in work.parts.adapters if each.name == stage.subject.name]
        head = await node.head()
        logs = await work.parts.chain.logs([adapter.sources()], start.number + 1, head.number)
        named = {transaction for key, transaction in adapter.liquidations(logs) if key.account == account}
        sent = {each.transaction_hash for report in reports for each in report.settled}
        assert named == sent, "liquidations() does not tell of whom each transaction was"


async def the_protocols_own_stop_is_the_right_refusal_and_nothing_is_planned(stage: Stage) -> None:
    """While the protocol is paused, or a price is stale, the daemon's line refuses for that reason and sends nothing;
    the same account is liquidated where nothing stops it.
    """
    account = await _unsafe(stage)
    assert stage.subject.stops, "the subject names no stop"
    for name, stop in stage.subject.stops.items():
        snapshot = await stage.node.snapshot()
        for act in stop.acts:
            await act(account)
        async with stage.working() as work:
            report = await work.step()
            refused = {
                (refusal.stage, refusal.reason)
                for protocol, who, refusal in report.refused
                if protocol == stage.subject.name and who in {None, account}
            }
            assert (stop.stage, stop.reason) in refused, f"{name}: {report.refused}"
            assert not report.sent, f"{name}: {report.sent}"
        await stage.back(snapshot)
    async with stage.working() as work:
        assert (await work.step()).sent


async def _block(node: Node, number: int) -> dict[str, Any]:
    block: dict[str, Any] = await node.rpc.request("eth_getBlockByNumber", hex(number), False)
    return block


# --- what it says of itself, and what it makes of nonsense -----------------------------------------------------------


async def what_it_relies_on_is_there_and_is_all_it_calls(stage: Stage) -> None:
    """Every contract it names has code; those it calls and those it hears are among them; selectors are 4 bytes and
    named once; each feed answers; calldata of no liquidation is nobody's, and logs of others touch nothing.
    """
    async with stage.following() as following:
        adapter, node = following.adapter, stage.node
        contracts = dict(adapter.contracts())
        for name, address in contracts.items():
            assert await node.code(address), f"{name} has no code"
        sources, targets = adapter.sources(), list(adapter.targets())
        assert set(sources.addresses) <= set(contracts.values()), "it hears a contract it does not name"
        assert len(set(sources.topics)) == len(sources.topics) and all(map(_is_word, sources.topics))
        assert {address for address, _ in targets} <= set(contracts.values()), (
            "it calls what it does not name"
        )
        assert len(set(targets)) == len(targets) and all(len(selector) == 4 for _, selector in targets)
        aggregator = load("ChainlinkFeed")
        for token, feed in adapter.feeds().items():
            for function in ("decimals", "latestRoundData"):
                answer = await node.call(feed, aggregator.function(function).encode())
                assert answer, f"the feed of {token.hex()} does not answer {function}"
        assert adapter.position_of(b"") is None and adapter.position_of(b"\xff" * 68) is None
        strange = await _strange_logs(stage, following)
        assert not adapter.liquidations(strange) and not adapter.discover(strange).keys


async def _strange_logs(stage: Stage, following: Following) -> Sequence[Log]:
    """Logs of everything that one account did, as if another contract had told them, and one without any topic."""
    first = await stage.node.head()
    await _unsafe(stage)
    head = await following.follow()
    own = await following.logs(first.number + 1, head.number)
    assert following.adapter.discover(own).keys, "opening a position tells nothing"
    return [*(replace(log, address=Address(b"\x99" * 20)) for log in own), replace(own[0], topics=())]


def _is_word(topic: bytes) -> bool:
    return len(topic) == 32


async def nonsense_is_an_adapter_error_and_nothing_else(stage: Stage) -> None:
    """Given one wrong answer among right ones, every read ends in AdapterError, a refusal, or a value that the steps
    after it can bear: nothing else is raised, and no length that a node tells is believed.
    """
    chance, account = seeded(stage, "nonsense"), await _unsafe(stage)
    async with stage.following() as following:
        adapter, chain = following.adapter, following.parts.chain
        head = await following.follow()
        # at another time than the marks that are had already, which an adapter may keep
        key, at = following.key(account), BlockTime(head.number, head.hash, head.timestamp_s + 2)
        marks, position = (
            await following.marks(head, 1),
            following.watch.book.position(following.key(account)),
        )
        health = following.health(key, marks)
        options = [each for each in adapter.options(position, health, marks) if isinstance(each, Option)]
        option = options[0]

        def to_rows(fresh: Adapter, positions: Any) -> None:
            fresh.rows(positions)

        def to_options(fresh: Adapter, marks: Any) -> None:
            fresh.prices(marks)
            _judged(fresh, position, marks)

        def nothing(_: Adapter, __: Any) -> None:
            return None

        reads: Mapping[str, tuple[Callable[[Adapter], Reads[Any]], Callable[[Adapter, Any], object]]] = {
            "load": (lambda fresh: fresh.load(), nothing),
            "enumerate": (lambda fresh: fresh.enumerate(), nothing),
            "refresh": (lambda fresh: fresh.refresh([key]), to_rows),
            "marks": (lambda fresh: fresh.marks(at), to_options),
            "outcome": (lambda fresh: fresh.outcome(option, option.max_repay_raw), nothing),
        }
        for name, (read, then) in reads.items():
            answers: dict[Question, Result] = {}
            value = await chain.read(overheard(read(deepcopy(adapter)), answers), head.hash)
            assert not isinstance(value, Refusal), value
            came = {stood(chance, adapter, read, answers, then) for _ in range(_GARBLED if answers else 0)}
            assert came != {"taken"}, f"{name} takes whatever it is told"


def _judged(adapter: Adapter, position: Position, marks: Marks) -> None:
    health = adapter.assess(position, marks)
    if not isinstance(health, Refusal):
        adapter.liquidation_price(position, health, marks)
        adapter.options(position, health, marks)


CHECKS: Final[tuple[Callable[[Stage], Awaitable[None]], ...]] = (
    health_is_the_contracts_and_no_unsafe_account_is_missed,
    a_liquidation_moves_what_was_foretold_and_no_more,
    an_account_is_discovered_by_each_of_its_events,
    a_replay_finds_exactly_the_accounts_that_are_open,
    an_unsafe_account_is_liquidated_on_the_chain,
    an_unsafe_account_is_liquidated_on_a_fork,
    the_protocols_own_stop_is_the_right_refusal_and_nothing_is_planned,
    what_it_relies_on_is_there_and_is_all_it_calls,
    nonsense_is_an_adapter_error_and_nothing_else,
)
