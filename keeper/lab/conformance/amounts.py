"""What a liquidation really moves, beside what the adapter foretold of it."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Final

from keeper.abi import load
from keeper.chain.client import SimCall, SimResult
from keeper.errors import AdapterError
from keeper.fixed import BPS
from keeper.lab.conformance.stage import Following, Stage, seeded
from keeper.lab.conformance.subject import Seen
from keeper.lab.tokens import mint_txs
from keeper.seams import Adapter
from keeper.types import Address, Gas, Head, Marks, Option, Refusal

_ACCOUNTS: Final = 12
_OPTIONS: Final = 4  # of one account whose liquidation is tried at each of its amounts
_HEADROOM_BPS: Final = 20  # that a maximum may stay below what the contracts allow
_ERC20: Final = load("Erc20")
_CALL_GAS, _TOKEN_GAS = Gas(4_000_000), Gas(200_000)


async def a_liquidation_moves_what_was_foretold_and_no_more(stage: Stage) -> None:
    """At the bounds of each option of an unsafe account the contracts move, in a block at the marks' time, exactly what
    `outcome` says; what it refuses reverts or loses; what is above the maximum by more than the fifth of a percent
    that may be kept free for moving prices is refused or moves no more. Every call is one that `targets` names, and
    one of them, which `position_of` reads, is that position's liquidation.
    """
    chance, seen, subject = seeded(stage, "amounts"), Seen(), stage.subject
    async with stage.following() as following:
        one = await subject.open_one()
        accounts = await subject.populate(chance, _ACCOUNTS)
        await subject.make_unsafe(one)
        await _amounts_hold(stage, following, chance, seen)
        await subject.disturb(chance, accounts)
        await _amounts_hold(stage, following, chance, seen)
    seen.require("liquidation that moved what was foretold")


async def _amounts_hold(stage: Stage, following: Following, chance: Random, seen: Seen) -> None:
    await _fund(stage, _options(following, await following.marks(await following.follow(), 1)))
    head = await following.follow()
    marks = await following.marks(head, 1)
    for option in _options(following, marks):
        _is_well_formed(following.adapter, option)
        most = await _holds(stage, following, option, option.max_repay_raw, head, marks, seen)
        if option.partial_max_repay_raw:
            low, high = option.min_repay_raw, option.partial_max_repay_raw
            for amount_raw in {low, high, chance.randint(low, high)} - {option.max_repay_raw}:
                await _holds(stage, following, option, amount_raw, head, marks, seen)
        if most is not None:
            await _is_the_most(stage, following, option, most, head, marks)


def _options(following: Following, marks: Marks) -> list[Option]:
    """A few options of every account that has any."""
    found: list[Option] = []
    book, adapter = following.watch.book, following.adapter
    for key in sorted(book.candidates(marks), key=lambda key: key.account):
        health = adapter.assess(book.position(key), marks)
        if not isinstance(health, Refusal):
            answers = adapter.options(book.position(key), health, marks)
            options = [each for each in answers if isinstance(each, Option)]
            if not health.liquidatable:
                assert not options, f"{key.account.hex()} is sound and has options"
            found += options[:_OPTIONS]
    return found


def _is_well_formed(adapter: Adapter, option: Option) -> None:
    assert 0 <= option.partial_max_repay_raw <= option.max_repay_raw, _short(option)
    assert option.min_repay_raw <= option.partial_max_repay_raw or not option.partial_max_repay_raw, _short(
        option
    )
    calls = adapter.liquidation_calls(option, option.max_repay_raw)
    for call in calls:
        assert (call.target, call.data[:4]) in set(adapter.targets()), f"{call} is not in targets()"
        assert not call.approve_raw or call.approve_token == option.repay_token.address, call
        assert adapter.position_of(call.data) in {None, option.key}, call
    named = {adapter.position_of(call.data) for call in calls}
    assert option.key in named, f"position_of finds nobody in the calls of {option.key.account.hex()}"
    assert option.key in adapter.keys_of(option.key.account), f"keys_of misses {option.key.account.hex()}"


def _short(option: Option) -> str:
    pair = f"{option.repay_token.symbol} for {option.seize_token.symbol}"
    return f"{option.key.account.hex()}, at most {option.max_repay_raw} {pair}"


async def _fund(stage: Stage, options: Iterable[Option]) -> None:
    """Give the Liquidator twice what each of these could take."""
    amounts: dict[Address, int] = {}
    tokens = {option.repay_token.address: option.repay_token for option in options}
    for option in options:
        token = option.repay_token.address
        amounts[token] = max(amounts.get(token, 0), 2 * option.max_repay_raw)
    cast = stage.subject.lab.world.cast
    for token, amount_raw in amounts.items():
        if amount_raw:
            await stage.node.send_all(mint_txs(cast, tokens[token], stage.rig.liquidator, amount_raw))


async def _holds(
    stage: Stage,
    following: Following,
    option: Option,
    amount_raw: int,
    head: Head,
    marks: Marks,
    seen: Seen,
) -> tuple[int, int] | None:
    """What one amount really moves, (paid, received), if the adapter says that it can be done."""
    foretold = await following.parts.chain.read(following.adapter.outcome(option, amount_raw), head.hash)
    moved = await _moved(stage, following, option, amount_raw, head, marks)
    if isinstance(foretold, Refusal):
        gained = moved is not None and option.repay_token == option.seize_token and moved[1] > moved[0]
        assert not gained, f"{foretold} for what paid {moved}: {_short(option)}"
        seen.note("refused outcome")
        return None
    assert moved is not None, f"{foretold} for what reverts: {_short(option)}"
    if option.repay_token == option.seize_token:
        same = moved[1] - moved[0] == foretold.seize_raw - foretold.repay_raw
    else:
        same = moved == (foretold.repay_raw, foretold.seize_raw)
    assert same, f"{moved} was moved, {foretold} was foretold: {_short(option)}"
    seen.note("liquidation that moved what was foretold")
    return moved


async def _is_the_most(
    stage: Stage,
    following: Following,
    option: Option,
    most: tuple[int, int],
    head: Head,
    marks: Marks,
) -> None:
    above_raw = option.max_repay_raw + option.max_repay_raw * _HEADROOM_BPS // BPS + 1
    try:
        foretold = await following.parts.chain.read(following.adapter.outcome(option, above_raw), head.hash)
        moved = await _moved(stage, following, option, above_raw, head, marks)
    except AdapterError:
        return
    if isinstance(foretold, Refusal) or moved is None:
        return
    if option.repay_token == option.seize_token:
        assert moved[1] - moved[0] <= most[1] - most[0], f"more than the maximum gains more: {_short(option)}"
    else:
        assert moved[0] <= most[0], f"the contracts take more than the maximum: {_short(option)}"


async def _moved(
    stage: Stage, following: Following, option: Option, amount_raw: int, head: Head, marks: Marks
) -> tuple[int, int] | None:
    """What the Liquidator pays and receives when it makes an option's calls in the next block; None where one reverts.

    Where both tokens are one, what it pays is 0 and what it receives is the difference, which may be below zero.
    """
    who, balance, approve = stage.rig.liquidator, _ERC20.function("balanceOf"), _ERC20.function("approve")
    tokens = (option.repay_token.address, option.seize_token.address)
    asked = [SimCall(who, token, balance.encode(who), _TOKEN_GAS) for token in tokens]
    acts: list[SimCall] = []
    for call in following.adapter.liquidation_calls(option, amount_raw):
        if call.approve_raw:
            allowance = approve.encode(call.target, call.approve_raw)
            acts.append(SimCall(who, call.approve_token, allowance, _TOKEN_GAS))
        acts.append(SimCall(who, call.target, call.data, _CALL_GAS))
    results: list[SimResult] = await following.parts.chain.simulate(
        [*asked, *acts, *asked], head, marks.at.timestamp_s, head.base_fee_wei
    )
    if not all(result.status == 1 for result in results):
        return None
    before, after = ([balance.one(each.output) for each in two] for two in (results[:2], results[-2:]))
    if tokens[0] == tokens[1]:
        return 0, after[1] - before[1]
    return before[0] - after[0], after[1] - before[1]
