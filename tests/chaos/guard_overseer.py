"""One keeper under watch: driven head by head beside its reflexes, held to the model at every signature and hand-over.

The only door that signs a plan is wrapped, as are the places where something can happen in the middle of a step. What
does not hold is added to `breaches` with where it was, and nothing is raised inside the keeper.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes

from keeper import abi
from keeper.commands import breakers
from keeper.engine import Engine
from keeper.engine.head import StepReport
from keeper.engine.reflexes import Reflexes
from keeper.errors import ConfigError, ExecutionError
from keeper.execution.sender import Sender
from keeper.guard import PauseState, scope_named
from keeper.guard.door import door_of, hand_over
from keeper.guard.message import SignedPause
from keeper.keys import OperatorKey
from keeper.lab.actors import Actor
from keeper.lab.chaos.line import Line
from keeper.types import Address, Hash, Head
from tests.chaos.guard_ground import CANARY_USD, MOST_USD, PROTOCOL, SCOPES, Ground
from tests.chaos.guard_model import CAUSES, UNPAUSE_DELAY_S, Block, Model

_PATIENCE_S: Final = 20.0
_EXECUTE: Final = abi.load("Liquidator").function("execute")
_LIQUIDATION: Final = abi.load("AavePool").function("liquidationCall")
_LONGEST_LIFE: Final = 40  # blocks


@dataclass(frozen=True, slots=True)
class Signed:
    """A plan that was signed, as the `number`th of all."""

    plan: bytes
    nonce: int
    last_block: int
    number: int


@dataclass(slots=True)
class Overseer:
    """`at` is the block whose head is being handled; `tally` counts what happened, to show that something did."""

    ground: Ground
    model: Model = field(default_factory=Model)
    breaches: list[str] = field(default_factory=list)
    tally: Counter[str] = field(default_factory=Counter)
    events: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    at: Block | None = None
    offset_s: int = 0
    leapt_s: float = 0.0
    _signed: list[Signed] = field(default_factory=list)
    _taken_back: set[int] = field(default_factory=set)
    _known: set[bytes] = field(default_factory=set)  # plans that somebody was handed
    _paid: set[bytes] = field(default_factory=set)  # plans that succeeded on some chain it handled
    _seen: Hash = field(default_factory=lambda: Hash(b""))
    _begun: bool = False
    _steady: bool = False
    _refused: int = 0
    line: Line = field(init=False)

    def __post_init__(self) -> None:
        self.model.blocks = self.ground.blocks
        self.line = Line(self.ground.rig, self.now_s, reacts=True)
        for provider in self.ground.providers:
            provider.handed = self.handed

    def now_s(self) -> float:
        """The wall's clock."""
        return float(self.ground.head.time_s + self.offset_s)

    def monotonic(self) -> float:
        """The clock that never goes back."""
        return time.monotonic() + self.leapt_s

    def breach(self, what: str) -> None:
        """Something does not hold."""
        where = f"block {self.ground.head.number}, handling {self.at.number if self.at else '-'}"
        self.breaches.append(f"{where}: {what}")

    # --- what it is held to ---

    def walls(self) -> list[str]:
        """What says stop now."""
        assert self.at is not None, "a head is handled"
        return self.model.walls(self.at, self.now_s(), halted=self.ground.halt.exists())

    def _signs(self, to: Address, calldata: bytes) -> None:
        """A plan is about to be signed."""
        assert self.at is not None, "a head is handled"
        if walls := self.walls():
            self.breach(f"signed a plan while {', '.join(walls)}")
        if to != self.ground.rig.liquidator:
            self.breach(f"signed a plan for {to.hex()}")
        [plan] = _EXECUTE.decode_input(calldata)
        epochs = tuple(self.at.scopes[scope].epoch for scope in SCOPES)
        if tuple(plan[9:11]) != epochs:
            self.breach(f"signed epochs {plan[9:11]} where the chain has {epochs}")
        if not self.at.number < plan[11] <= self.at.number + _LONGEST_LIFE:
            self.breach(f"signed for block {plan[11]} at {self.at.number}")
        self._ramps(bytes(plan[0]), plan[4])

    def _ramps(self, plan: bytes, calls: Any) -> None:
        """After a pause one small one goes alone, and each that paid doubles the next."""
        assert self.at is not None, "a head is handled"
        now = {name for block, _, name in self.ground.executed if self._below(block)}
        self._paid |= now
        for scope, number in self.model.resumed.items():
            since = [each for each in self._signed if each.number >= number]
            if CANARY_USD << len(self._paid & {each.plan for each in since}) >= MOST_USD:
                continue  # it was over once, though a reorganisation may have taken some of them back
            paid = now & {each.plan for each in since}
            cap_usd = CANARY_USD << len(paid)
            [repaid_raw] = [
                _LIQUIDATION.decode_input(call[3])[3]
                for call in calls
                if call[3][:4] == _LIQUIDATION.selector
            ]
            if repaid_raw > cap_usd * 10**6:
                self.breach(
                    f"repays {repaid_raw} raw after the pause of {scope!r}, and at most ${cap_usd} may be"
                )
            others = {
                each.plan
                for each in since
                if each.plan in self._known
                and each.plan != plan
                and each.last_block > self.at.number
                and each.nonce not in self._taken_back
            } - {name for block, _, name in self.ground.executed}
            self.tally["small ones"] += 1
            if not paid and others:
                self.breach(f"a canary beside {len(others)} others after the pause of {scope!r}")

    def _below(self, block: Block) -> bool:
        assert self.at is not None, "a head is handled"
        return block.number <= self.at.number and self.ground.canonical(block)

    def handed(self, raw: bytes) -> None:
        """A provider was handed a transaction."""
        fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
        to = bytes(fields["to"])
        if to == bytes(self.ground.rig.liquidator):
            self._known.add(bytes(_EXECUTE.decode_input(bytes(fields["data"]))[0][0]))
            if walls := self.walls():
                self.breach(f"handed over a plan while {', '.join(walls)}")
        elif fields["data"]:
            for scope in SCOPES:
                self.model.doubt(scope)  # a pause it sends itself waits in the pool like any other

    def _believes(self, pause: PauseState, block: Block) -> None:
        for scope, state in block.scopes.items():
            said = pause.scopes[scope]
            if (said.paused, said.epoch, said.unpause_at_s, said.last_unpaused_at_s) != tuple(state):
                self.breach(f"believes {said} of {scope!r} where the chain has {state}")

    def compare(self) -> None:
        """What is on record as closed is what the model says, cause by cause, and each closes before it opens."""
        open_: dict[tuple[Hash, str], bool] = {}
        for entry in self.line.booked("pause", "resume"):
            place = scope_named(str(entry.body["scope"])), str(entry.body["cause"])
            if entry.kind == "resume" and not open_.get(place):
                self.breach(f"entry {entry.seq} resumes {place} that was not closed")
            open_[place] = entry.kind == "pause"
            if entry.body.get("by") == "person":
                open_[place[0], "chain"] = False  # what was lost was the chain's
        for scope in SCOPES:
            for cause in CAUSES:
                why = self.model.closed.get((scope, cause))
                if (scope, cause) in self.model.doubted or (why is not None and not why.certain):
                    continue
                if open_.get((scope, cause), False) != (why is not None):
                    self.breach(
                        f"{cause} of {scope!r} is booked {open_.get((scope, cause))}, and should be {why}"
                    )

    # --- driving it ---

    async def mine(self, advance_s: int = 0) -> None:
        """The next block: nothing is executed in it that a wall forbids."""
        await self.ground.quiet()
        told = self.model.told() if self._steady and self.line.running and self.ground.whole else []
        if self._steady and self.ground.halt.exists():
            told.append("halted")
        first = len(self.ground.executed)
        block = await self.ground.mine(advance_s)
        for _, place, plan in self.ground.executed[first:]:
            self.tally["executed"] += 1
            before = self.ground.blocks[block.parent]
            if any(state.paused for state in before.scopes.values()):
                self.breach(f"{plan.hex()} was executed while paused")
            if (
                any(state.paused for state in block.scopes.values())
                and self.ground.pauses[block.hash] < place
            ):
                self.breach(f"{plan.hex()} was executed after the pause in its block")
            if told:
                self.breach(f"{plan.hex()} was executed after it was told: {', '.join(told)}")

    async def step(self) -> StepReport | None:
        """The keeper handles the newest head, started first where it does not run."""
        before = dict(self.model.closed)
        fresh = not self.line.running
        if fresh:
            self._begun = True
            self.model.restart()
        lost = self.line.tally["lost"]
        report = await self.line.head()
        died = not self.line.running
        if self.line.crashes:
            self.breach(self.line.crashes.pop())
        if died:
            self._steady = False
            self.model.die(before)
            self.tally["deaths"] += 1
            return None
        if fresh:
            await self._listening()
        await self.ground.quiet()
        if self.line.tally["lost"] > lost:
            self._steady = False
        elif report is not None:
            self._steady = True
            for entry in self.line.booked("relayed")[self._refused :]:
                self._refused += 1
                if int(entry.body["status"]) == 0:
                    [intent] = [each for each in self.line.booked("intent") if each.plan_id == entry.plan_id]
                    self.model.refuse(scope_named(str(intent.body["scope"])))
            self.compare()
        return report

    async def end(self) -> None:
        """The keeper stops."""
        self._steady = False
        await self.line.end()

    async def _listening(self) -> None:
        door = door_of(self.ground.record)

        def ready() -> bool:
            heard = all(each.listened or not each.open for each in self.ground.providers)
            return door.exists() and heard

        await self.until(ready, "it listens")

    async def until(self, done: Callable[[], bool], what: str) -> None:
        """Wait for something that must happen without a head."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while not done():
            if time.monotonic() > deadline_s:
                self.breach(f"waited in vain until {what}")
                return
            await asyncio.sleep(0.003)

    # --- telling it ---

    def last_booked(self, scope: Hash, cause: str) -> str:
        """Whether a cause was last booked as `pause` or `resume`."""
        kinds = [
            entry.kind
            for entry in self.line.booked("pause", "resume")
            if scope_named(str(entry.body["scope"])) == scope and entry.body["cause"] == cause
        ]
        return kinds[-1] if kinds else ""

    async def halt(self) -> None:
        """A person stops everything on this machine."""
        self.ground.halt.touch()
        self.tally["halted"] += 1
        if self.line.running:
            await self.until(lambda: self.last_booked(SCOPES[0], "halted") == "pause", "the halt is booked")

    async def unhalt(self) -> None:
        """And lets go of it."""
        self.ground.halt.unlink(missing_ok=True)
        if self.line.running:
            await self.until(lambda: self.last_booked(SCOPES[0], "halted") != "pause", "its end is booked")

    async def pend(self, who: Actor, to: Address, data: bytes, scope: Hash) -> Hash:
        """A pause that will succeed waits in the pool."""
        shown = self.line.running and self.ground.shown
        sent = await self.ground.send(who, to, data)
        if not shown:
            self.model.doubt(scope)
            await self.ground.quiet()
            return sent
        gate, moment = self.line.engine.reflexes.gate, self.line.engine.reflexes.moment
        assert moment is not None, "it has begun"
        await self.until(lambda: scope in gate.closed("pending"), "a waiting pause closes the gate")
        self.tally["pending"] += 1
        self.model.wait(scope, moment.head.number, certain=True)
        await self.ground.quiet()
        return sent

    async def spoof(self, who: Actor, to: Address, data: bytes, scope: Hash) -> Hash:
        """Something that looks like a pause and cannot be one: it closes nothing, where that can be told."""
        before = self.last_booked(scope, "pending") if self.line.running else ""
        sent = await self.ground.send(who, to, data)
        await asyncio.sleep(0.02)
        await self.ground.quiet()
        self.tally["spoofs"] += 1
        orphaned = self.at is None or not self.ground.canonical(self.at)
        if not self.ground.whole or orphaned:
            self.model.doubt(scope)  # who cannot tell stops
            return sent
        told = before == "pause" or (scope, "pending") in self.model.doubted
        if self.line.running and not told and scope in self.line.engine.reflexes.gate.closed("pending"):
            self.breach("a spoof closed the gate")
        return sent

    async def say(self, message: SignedPause, signer: Actor) -> None:
        """A message at the door: taken exactly if PauseGuard would take it."""
        if not self.line.running:
            return
        at = self.ground.head
        scope = at.scopes[message.scope]
        good = (
            bytes(signer.address) in at.guardians
            and scope.last_unpaused_at_s < message.issued_at_s <= at.time_s + UNPAUSE_DELAY_S
        )
        try:
            await hand_over(self.ground.record, message)
        except (ExecutionError, ConfigError) as error:
            if good and self.ground.whole and self._steady:
                self.breach(f"a good message was refused: {error}")
            return
        self.tally["messages"] += 1
        if any(provider.frozen for provider in self.ground.providers):
            for cause in ("signed", "lost"):
                self.model.doubt(message.scope, cause)  # it may have been judged at an older block
        elif good:
            self.model.say(message.scope, message.issued_at_s, at)
        else:
            self.breach("a message that PauseGuard would not take was taken")
        await self.ground.quiet()

    async def let_go(self) -> None:
        """A person clears what is lost, while the keeper is stopped."""
        await self.end()
        for trip in breakers.listed(self.ground.rig.config)["breakers"]:
            if trip["breaker"] == "pause_lost":
                breakers.cleared(self.ground.rig.config, "pause_lost", "somebody looked")
                for scope in SCOPES:
                    self.model.let_go(scope)
                self.tally["let go"] += 1
                break

    # --- the places it is watched at ---

    async def _moment(self, name: str) -> None:
        event = self.events.pop(name, None)
        if event is not None:
            self.tally[f"in the middle: {name}"] += 1
            await event()


@contextmanager
def watched(whom: Callable[[], Overseer]) -> Iterator[None]:
    """Every keeper in this process is watched by whoever oversees at the time."""
    sign, cancel = OperatorKey.sign, OperatorKey.sign_cancel
    step, attempt, send, see = Engine.step, Engine.attempt, Sender.send, Reflexes.see

    @functools.wraps(sign)
    async def signs(key: Any, to: Any, calldata: Any, nonce: Any, fees: Any, clearance: Any) -> Any:
        one = whom()
        one._signs(to, calldata)
        made = await sign(key, to, calldata, nonce, fees, clearance)
        [plan] = _EXECUTE.decode_input(calldata)
        one._signed.append(Signed(bytes(plan[0]), nonce, plan[11], one.model.signatures))
        one.model.signatures += 1
        one.tally["signed"] += 1
        await one._moment("signed")
        return made

    @functools.wraps(cancel)
    async def cancels(key: Any, nonce: Any, *fees: Any) -> Any:
        whom()._taken_back.add(nonce)
        return await cancel(key, nonce, *fees)

    @functools.wraps(step)
    async def steps(engine: Any, head: Head) -> Any:
        one = whom()
        block = one.at = one.ground.blocks[head.hash]
        if one._begun:
            one._begun = False
            forgotten = [why for place, why in one.model.closed.items() if why.certain]
            if forgotten and engine.reflexes.gate.standing(PROTOCOL) is None:
                one.breach(f"the restart forgot {forgotten}")
        one._paid |= {name for at, _, name in one.ground.executed if one._below(at)}
        report = await step(engine, head)
        if one._seen != head.hash:
            one.model.take(block)
            one.model.finish(block)
        return report

    @functools.wraps(attempt)
    async def attempts(engine: Any, *arguments: Any) -> Any:
        answer = await attempt(engine, *arguments)
        await whom()._moment("tried")
        return answer

    @functools.wraps(send)
    async def sends(sender: Any, cleared: Any, standing: Any) -> Any:
        if cleared:
            await whom()._moment("cleared")
        return await send(sender, cleared, standing)

    @functools.wraps(see)
    async def sees(reflexes: Any, pause: PauseState, head: Head) -> None:
        one = whom()
        block = one.ground.blocks[head.hash]
        one._believes(pause, block)
        one._seen = head.hash
        one.model.take(block)
        await see(reflexes, pause, head)
        one.model.finish(block)

    with ExitStack() as patched:
        for owner, name, wrapper in (
            (OperatorKey, "sign", signs),
            (OperatorKey, "sign_cancel", cancels),
            (Engine, "step", steps),
            (Engine, "attempt", attempts),
            (Sender, "send", sends),
            (Reflexes, "see", sees),
        ):
            patched.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, wrapper)
        yield
