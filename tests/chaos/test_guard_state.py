"""The whole guard as a state machine: pauses, unpauses, reorganisations, faults, restarts and clocks in any order.

A few sequences, and 200 with `KEEPER_DEEP=1`. Whatever the order, nothing is signed, handed over or executed
while any wall says stop; what closed and opened is on record and survives a restart; and once every wall is open, the
keeper works again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from keeper import assembly
from keeper.chain import pool, quorum
from keeper.lab.actors import Actor
from keeper.lab.chaos.points import POINTS
from keeper.types import Address, Hash
from tests.chaos.guard_ground import PAUSE, PRICES, SCOPES, STRANGER, Ground, open_ground
from tests.chaos.guard_model import CONFIRMATIONS, MAX_HEAD_AGE_S, UNPAUSE_DELAY_S
from tests.chaos.guard_overseer import Overseer, watched
from tests.conftest import Count

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

DEEP = os.environ.get("KEEPER_DEEP") == "1"
SEED = int(os.environ.get("KEEPER_SEED", "1"))
EXAMPLES, STEPS = (25, 40) if DEEP else (4, 30)
GROUNDS = 8 if DEEP else 2
QUORUMS = ((2, 3), (1, 1), (3, 5))  # of how many providers
_AGAIN = 6  # heads within which it works again
_OPENS = 30  # heads within which every wall can be opened

scopes = st.sampled_from(SCOPES)
guardians = st.integers(0, 1)
moments = st.sampled_from(("tried", "cleared", "signed"))
tellings = st.sampled_from(("halt", "message", "pending", "clock"))
mostly = st.sampled_from((True, True, False))
deaths = st.sampled_from([name for name, point in POINTS.items() if point.needs != "reorg"])


@dataclass(slots=True)
class Seen:
    """What happened in all sequences, and who oversees the present one."""

    tally: Counter[str] = field(default_factory=Counter)
    overseer: Overseer | None = None

    def whom(self) -> Overseer:
        """Who oversees now."""
        assert self.overseer is not None, "a sequence is under way"
        return self.overseer


class GuardMachine(RuleBasedStateMachine):
    """Everything that may happen; `ground` is shared by all sequences, and undone after each."""

    def __init__(self, ground: Ground, run: Run[Any], folder: Path, seen: Seen) -> None:
        super().__init__()
        self._run = run
        self.trail: list[str] = []
        self.seen = seen
        self.undone = ground.undone(folder)
        self.ground: Ground = run(self.undone.__aenter__())
        self.overseer = Overseer(self.ground)
        self.waiting: list[tuple[Actor, Hash]] = []
        seen.overseer = self.overseer

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do it, and remember which rule did."""
        self.did(sys._getframe(1))
        self._run(work)

    def did(self, frame: FrameType) -> None:
        """Remember a rule with its arguments: a sequence that depends on timing is not found again by its seed."""
        shown = [
            f"{name}={value!r}"
            for name, value in frame.f_locals.items()
            if name in frame.f_code.co_varnames[1 : frame.f_code.co_argcount]
        ]
        self.trail.append(f"{self.ground.head.number}: {frame.f_code.co_name}({', '.join(shown)})")

    # --- the beginning and the end ---

    @initialize(price=st.sampled_from(PRICES))
    def begin(self, price: int) -> None:
        """Accounts are below 1 and the keeper is at work."""

        async def begun() -> None:
            await self.ground.price(price)
            await self.overseer.mine()
            await self.overseer.step()

        self.run(begun())

    @invariant()
    def nothing_was_broken(self) -> None:
        """No breach, wherever it was found."""
        assert not self.overseer.breaches, "\n".join([*self.trail, *self.overseer.breaches])

    def teardown(self) -> None:
        """Once every wall is open the keeper works; then the chain is as it was."""
        try:
            if not self.overseer.breaches:
                self.run(self._works_again())
            self.nothing_was_broken()
        finally:
            self.run(self.overseer.end())
            self.run(self.undone.__aexit__(None, None, None))
            self.seen.tally.update(self.overseer.tally)

    async def _works_again(self) -> None:
        one = self.overseer
        await self._all_open()
        signed = one.tally["signed"]
        said: list[str] = []
        for _ in range(_AGAIN):
            report = await one.step()
            if one.tally["signed"] > signed:
                one.tally["worked again"] += 1
                return
            why = (
                {f"{each.stage} {each.reason} {dict(each.numbers)}" for _, _, each in report.refused}
                if report
                else one.line.last_error
            )
            said.append(str(why))
            await one.mine()
        one.breach("\n".join(["every wall is open, accounts are below 1, and nothing is signed", *said]))

    async def _all_open(self) -> None:
        """Whatever is wrong ends, whatever stops it is taken away, and there is something to do."""
        one, ground = self.overseer, self.ground
        for provider in ground.providers:
            provider.heal()
        one.offset_s, one.leapt_s, one.events = 0, one.leapt_s + 4_000, {}
        one.line.spare()
        self.waiting.clear()
        await ground.lab.node.drop_pending()
        await one.unhalt()
        paused = any(state.paused for state in ground.head.scopes.values())  # also what no keeper was told of
        if paused or one.model.closed or one.model.doubted:
            await self._let_go_and_unpaused()
        await ground.price(PRICES[-1])
        await one.mine()
        assert await ground.unhealthy(), "there must be something to do"

    async def _let_go_and_unpaused(self) -> None:
        one, ground = self.overseer, self.ground
        await one.let_go()
        for scope, cause in list(one.model.doubted):
            if cause == "signed":  # words of which nobody knows whether they were taken: the chain ends them
                await ground.send(*await ground.by_safe("pause", scope, b"CHAOS\0\0\0", bytes(32)))
                await one.mine()
                await one.step()
        for _ in range(_OPENS):
            await one.mine()
            await one.step()
            if one.breaches or not (one.model.closed or one.model.doubted or (one.at and one.walls())):
                return
            if any(cause == "lost" for _, cause in one.model.closed):
                await one.let_go()
            for scope in SCOPES:
                if ground.head.scopes[scope].paused:
                    await self._unpaused(scope)
        one.breach(f"it never opens again: {one.model.closed}, {one.at and one.walls()}")

    # --- blocks and heads ---

    @rule(blocks=st.integers(1, 3))
    def mine(self, blocks: int) -> None:
        """Blocks that the keeper may or may not see."""
        for _ in range(blocks):
            self.run(self.overseer.mine())

    @rule()
    def step(self) -> None:
        """A block, and the keeper handles it."""
        self.run(self._step())

    @rule()
    def step_again(self) -> None:
        """The same, so that it is as likely as it should be."""
        self.run(self._step())

    @rule()
    def handle(self) -> None:
        """The keeper handles what is newest, if it has not."""
        self.run(self.overseer.step())

    @rule(moment=moments, telling=tellings, scope=scopes, who=guardians, busy=mostly)
    def step_while_told(self, moment: str, telling: str, scope: Hash, who: int, busy: bool) -> None:
        """In the middle of a step somebody stops it; a `busy` one has just begun to work again."""
        one = self.overseer
        if busy:
            self.run(self._all_open())
        events: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "halt": one.halt,
            "message": partial(self._say, scope, who, 0),
            "pending": partial(self._pend, scope, who, "guardian"),
            "clock": self._clock_jumps,
        }
        one.events[moment] = events[telling]
        self.run(self._step())
        one.events.clear()

    @rule(moment=moments, telling=tellings, scope=scopes, who=guardians)
    def work_and_be_told(self, moment: str, telling: str, scope: Hash, who: int) -> None:
        """The same, so that it is as likely as it should be."""
        self.step_while_told(moment, telling, scope, who, True)

    @rule(point=deaths, nth=st.integers(1, 2))
    def step_and_die(self, point: str, nth: int) -> None:
        """It dies in the middle, if it gets to that place, and is started again with the next head."""
        self.overseer.line.dies_at(point, nth)
        self.run(self._step())
        self.overseer.line.spare()

    @rule()
    def restart(self) -> None:
        """It is stopped between two heads."""
        self.run(self.overseer.end())
        self.overseer.tally["restarts"] += 1

    @rule(price=st.sampled_from(PRICES))
    def price(self, price: int) -> None:
        """ETH moves."""
        self.run(self.ground.price(price))

    # --- pauses and unpauses ---

    @rule(scope=scopes, who=guardians, how=st.sampled_from(("guardian", "signature", "safe")))
    def pause_waits(self, scope: Hash, who: int, how: str) -> None:
        """A pause waits in the pool, for the next block."""
        self.run(self._pend(scope, who, how))

    @rule(scope=scopes, who=guardians)
    def pause_unseen(self, scope: Hash, who: int) -> None:
        """A pause is mined that nobody saw waiting."""

        async def paused() -> None:
            muted = [provider.muted for provider in self.ground.providers]
            for provider in self.ground.providers:
                provider.muted = True
            actor = self._guardian(who)
            await self.ground.send(actor, self.ground.rig.pause_guard, self.ground.pause(scope))
            await self.overseer.mine()
            await self.ground.quiet()
            for provider, before in zip(self.ground.providers, muted, strict=True):
                provider.muted = before

        self.run(paused())

    @precondition(lambda self: self.waiting)
    @rule(replaced=st.booleans())
    def pause_vanishes(self, replaced: bool) -> None:
        """A waiting pause is dropped, or its sender takes it back."""
        who, transaction = self.waiting.pop()
        self.run(self.ground.replace(who, transaction) if replaced else self.ground.drop(transaction))

    @rule(scope=scopes, how=st.sampled_from(("stranger", "forged", "failing safe", "dead")))
    def pause_is_spoofed(self, scope: Hash, how: str) -> None:
        """What waits could never pause."""
        self.run(self._spoof(scope, how))

    @precondition(lambda self: any(state.paused for state in self.ground.head.scopes.values()))
    @rule(scope=scopes)
    def unpause_is_scheduled(self, scope: Hash) -> None:
        """The Safe schedules."""

        async def scheduled() -> None:
            await self.ground.send(*await self.ground.by_safe("scheduleUnpause", scope))
            await self.overseer.mine()

        self.run(scheduled())

    @precondition(lambda self: any(state.unpause_at_s for state in self.ground.head.scopes.values()))
    @rule(scope=scopes, who=guardians)
    def unpause_is_vetoed(self, scope: Hash, who: int) -> None:
        """A guardian takes the schedule away."""
        call = PAUSE.function("vetoUnpause").encode(scope)
        self.run(self.ground.send(self._guardian(who), self.ground.rig.pause_guard, call))

    @precondition(lambda self: any(state.unpause_at_s for state in self.ground.head.scopes.values()))
    @rule(scope=scopes, waits=st.booleans())
    def unpause_is_executed(self, scope: Hash, waits: bool) -> None:
        """Anybody executes it, after the delay or too early."""

        async def executed() -> None:
            call = PAUSE.function("executeUnpause").encode(scope)
            await self.ground.send(STRANGER, self.ground.rig.pause_guard, call)
            await self.overseer.mine(UNPAUSE_DELAY_S + 1 if waits else 0)

        self.run(executed())

    @precondition(lambda self: any(state.paused for state in self.ground.head.scopes.values()))
    @rule()
    def unpause(self) -> None:
        """All of it, for whatever is paused."""
        for scope in SCOPES:
            if self.ground.head.scopes[scope].paused:
                self.run(self._unpaused(scope))

    @precondition(lambda self: any(state.paused for state in self.ground.head.scopes.values()))
    @rule()
    def unpause_and_step(self) -> None:
        """The same, with the keeper handling every block."""
        self.unpause()
        for _ in range(CONFIRMATIONS + 1):
            self.run(self._step())

    @rule(who=guardians, enabled=st.booleans())
    def guardian_changes(self, who: int, enabled: bool) -> None:
        """The Safe removes a guardian, or takes him back."""

        async def changed() -> None:
            address = self._guardian(who).address
            await self.ground.send(*await self.ground.by_safe("setGuardian", address, enabled))
            await self.overseer.mine()

        self.run(changed())

    # --- told on this machine ---

    @rule(scope=scopes, who=st.integers(0, 2), ago_s=st.sampled_from((0, 0, 0, 20, 60, 300, -29, -90)))
    def message(self, scope: Hash, who: int, ago_s: int) -> None:
        """Somebody's signed message at the door: a guardian's or a stranger's, fresh, old or of the future."""
        self.run(self._say(scope, who, ago_s))

    @rule(scope=scopes, who=guardians)
    def message_of_a_guardian_who_is_removed(self, scope: Hash, who: int) -> None:
        """His word is taken, and before the chain has it the Safe removes him."""

        async def removed() -> None:
            calls = await self.ground.by_safe("setGuardian", self._guardian(who).address, False)
            await self.ground.send(*calls)
            await self._say(scope, who, 0)
            await self.overseer.mine()
            await self._step()

        self.run(removed())

    @rule()
    def halt(self) -> None:
        """The halt file is made."""
        self.run(self.overseer.halt())

    @rule()
    def unhalt(self) -> None:
        """It is removed."""
        self.run(self.overseer.unhalt())

    @rule()
    def a_person_looks(self) -> None:
        """What is lost is cleared, if anything is."""
        if any(cause == "lost" for _, cause in self.overseer.model.closed):
            self.run(self.overseer.let_go())

    # --- faults ---

    @rule(depth=st.integers(1, 4))
    def reorg(self, depth: int) -> None:
        """The last blocks are gone with all that was in them."""
        self.waiting.clear()
        self.run(self._reorg(depth))

    @rule(depth=st.integers(1, 3), blocks=st.integers(0, 2))
    def reorg_and_step(self, depth: int, blocks: int) -> None:
        """The same, and the keeper sees it."""

        async def seen() -> None:
            await self._reorg(depth)
            for _ in range(blocks + 1):
                await self._step()

        self.waiting.clear()
        self.run(seen())

    @rule(scope=scopes, who=guardians, depth=st.integers(1, 2), busy=st.booleans())
    def pause_is_erased(self, scope: Hash, who: int, depth: int, busy: bool) -> None:
        """A pause that the keeper saw on the chain is gone again, and nobody unpaused."""
        if busy:
            self.run(self._all_open())
        self.pause_unseen(scope, who)

        async def erased() -> None:
            await self._step()
            await self._reorg(depth)
            await self._step()
            await self._step()

        self.waiting.clear()
        self.run(erased())

    @rule(number=st.integers(0, 4))
    def freeze(self, number: int) -> None:
        """A provider hears of no block any more."""
        self.run(self.ground.freeze(self._provider(number)))
        self.overseer.tally["frozen"] += 1

    @rule(number=st.integers(0, 4))
    def go_down(self, number: int) -> None:
        """A provider cannot be reached."""
        provider = self._provider(number)
        provider.open = False
        self.run(provider.hang_up())

    @rule(
        number=st.integers(0, 4),
        scope=scopes,
        paused=st.sampled_from((True, False, None)),
        epochs=st.sampled_from((-1, 0, 1)),
    )
    def lie(self, number: int, scope: Hash, paused: bool | None, epochs: int) -> None:
        """Up to q − 1 providers say otherwise of a scope than the chain."""
        liars = [each for each in self.ground.providers if each.lie]
        if len(liars) < self.ground.quorum - 1:
            self.did(sys._getframe())
            self.ground.lie(self._provider(number), scope, paused=paused, epochs=epochs)
            self.overseer.tally["lies"] += 1

    @rule()
    def heal(self) -> None:
        """All providers are well again, and forgiven."""
        self.did(sys._getframe())
        for provider in self.ground.providers:
            provider.heal()
        self.overseer.leapt_s += 4_000

    @rule(offset_s=st.sampled_from((0, 0, -7_200, -30, 20, 59, 75, 7_200)))
    def wall_clock_jumps(self, offset_s: int) -> None:
        """The machine's clock is wrong."""
        self.did(sys._getframe())
        self.overseer.offset_s = offset_s

    @rule(seconds=st.sampled_from((1, 60, 4_000)))
    def monotonic_clock_leaps(self, seconds: int) -> None:
        """The machine slept."""
        self.did(sys._getframe())
        self.overseer.leapt_s += seconds

    @rule(seconds=st.sampled_from((UNPAUSE_DELAY_S, 600, 3_000)))
    def chain_time_jumps(self, seconds: int) -> None:
        """A long time between two blocks."""
        self.run(self.overseer.mine(seconds))

    @precondition(lambda self: any(state.last_unpaused_at_s for state in self.ground.head.scopes.values()))
    @rule(scope=scopes, who=guardians)
    def message_from_before_the_unpause(self, scope: Hash, who: int) -> None:
        """What a guardian said up to the very second of an unpause is dead."""
        ago_s = self.ground.head.time_s - self.ground.head.scopes[scope].last_unpaused_at_s
        self.run(self._say(scope, who, min(ago_s, 100_000)))

    # --- how ---

    async def _clock_jumps(self) -> None:
        self.overseer.offset_s = 2 * MAX_HEAD_AGE_S

    async def _step(self) -> None:
        await self.overseer.mine()
        await self.overseer.step()

    async def _reorg(self, depth: int) -> None:
        await self.ground.quiet()
        await self.ground.reorg(depth)
        self.overseer.tally["reorgs"] += 1

    async def _pend(self, scope: Hash, who: int, how: str) -> None:
        ground, guardian = self.ground, self._guardian(who)
        if bytes(guardian.address) not in ground.head.guardians and how != "safe":
            await self._spoof(scope, "stranger")
            return
        guard = ground.rig.pause_guard
        sender, to, data = {
            "guardian": (guardian, guard, ground.pause(scope)),
            "signature": (STRANGER, guard, ground.word(guardian, scope, ground.head.time_s + 1).calldata),
            "safe": await ground.by_safe("pause", scope, b"CHAOS\0\0\0", bytes(32)),
        }[how]
        self.waiting.append((sender, await self.overseer.pend(sender, to, data, scope)))

    async def _spoof(self, scope: Hash, how: str) -> None:
        ground = self.ground
        guard, last_s = ground.rig.pause_guard, ground.head.scopes[scope].last_unpaused_at_s
        dead = ground.word(self._guardian(0), scope, last_s) if last_s else None
        made: dict[str, tuple[Actor, Address, bytes]] = {
            "stranger": (STRANGER, guard, ground.pause(scope)),
            "forged": (STRANGER, guard, ground.word(STRANGER, scope, ground.head.time_s).calldata),
            "failing safe": await ground.by_safe("pause", scope, b"CHAOS\0\0\0", bytes(32), nonce_off=1),
            "dead": (STRANGER, guard, dead.calldata if dead else ground.pause(scope)),
        }
        await self.overseer.spoof(*made[how], scope)

    async def _say(self, scope: Hash, who: int, ago_s: int) -> None:
        signer = STRANGER if who == 2 else self._guardian(who)
        message = self.ground.word(signer, scope, self.ground.head.time_s - ago_s)
        await self.overseer.say(message, signer)

    async def _unpaused(self, scope: Hash) -> None:
        ground, one = self.ground, self.overseer
        await ground.send(*await ground.by_safe("scheduleUnpause", scope))
        await one.mine()
        await ground.send(STRANGER, ground.rig.pause_guard, PAUSE.function("executeUnpause").encode(scope))
        await one.mine(UNPAUSE_DELAY_S + 1)
        one.tally["unpaused"] += not ground.head.scopes[scope].paused

    def _guardian(self, who: int) -> Actor:
        return self.ground.lab.world.cast.guardians[who]

    def _provider(self, number: int) -> Any:
        return self.ground.providers[number % len(self.ground.providers)]


@contextmanager
def shared(folder: Path, needed: tuple[int, int]) -> Iterator[tuple[Ground, Run[Any]]]:
    """One ground for many sequences, driven from outside any event loop, as hypothesis needs it."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        opened = open_ground(folder / "rig", *needed)
        ground = runner.run(opened.__aenter__())
        try:
            yield ground, runner.run
        finally:
            runner.run(opened.__aexit__(None, None, None))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Providers that are late, or lack a block, are waited for as long as a test can; the clocks are the test's."""
    seen = Seen()
    monkeypatch.setattr(quorum, "PATIENCE_S", (0.004, 0.008, 0.012))
    monkeypatch.setattr(pool, "_HEDGE_S", 0.5)

    def monotonic() -> float:
        return seen.overseer.monotonic() if seen.overseer else time.monotonic()

    monkeypatch.setattr(assembly, "time", SimpleNamespace(time=time.time, monotonic=monotonic))
    monkeypatch.setitem(pool.Pool.open.__func__.__kwdefaults__, "clock", monotonic)  # type: ignore[attr-defined]
    return seen


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("number", range(GROUNDS))
def test_nothing_is_signed_while_any_wall_says_stop(
    number: int, tmp_path: Path, hurried: Seen, count: Count
) -> None:
    """In any order of pauses, unpauses, reorganisations, faults, restarts and clock jumps; and then it works again."""
    folders = itertools.count()

    with shared(tmp_path, QUORUMS[number % len(QUORUMS)]) as (ground, run), watched(hurried.whom):

        @seed(SEED * 1_000 + number)
        def machine() -> GuardMachine:
            return GuardMachine(ground, run, tmp_path / str(next(folders)), hurried)

        run_state_machine_as_test(
            machine,  # type: ignore[arg-type]  # whatever returns a machine
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            ),
        )
    assert hurried.tally["worked again"] >= EXAMPLES, hurried.tally
    count("plans signed in between", hurried.tally["signed"])
    count("sequences of everything that closes and opens the guard", EXAMPLES)
