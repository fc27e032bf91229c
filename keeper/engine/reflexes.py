"""What does not wait for the next head: seeing a pause come, closing the gate on it, and taking back what is in flight.

Runs beside the line in the same thread. Closing the gate is one synchronous step, and the line asks the gate again
right before it signs: so whatever it is waiting for, nothing is signed after a pause was seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from keeper.abi import load
from keeper.chain.client import Chain, Pending, SimCall
from keeper.errors import ChainError, ConfigError
from keeper.execution.fees import Market
from keeper.execution.sender import Sender
from keeper.guard import Gate, PauseState, named, scope_of
from keeper.guard.door import serve
from keeper.guard.message import SignedPause, read_verdict
from keeper.guard.sightings import paused_by
from keeper.ledger import Ledger
from keeper.types import (
    GLOBAL_SCOPE,
    Address,
    BlockNumber,
    BlockTime,
    Filters,
    Gas,
    Hash,
    Head,
    Refusal,
    Result,
    Reverted,
)

_HALT_FILE_EVERY_S: Final = 0.1
_NO_REORG_DEEPER: Final = 128  # where a pause's transaction is looked for, to have it if it is orphaned
_JUDGED: Final = 4_096  # pending transactions that are remembered to have been looked at
_PAUSE_GAS: Final = Gas(5_000_000)  # more than a Safe's largest batch around a pause takes
_EXEC: Final = load("Safe").function("execTransaction")
_PAUSED: Final = load("PauseGuard").event("Paused")

_log = structlog.get_logger("keeper")


@dataclass(slots=True)
class Moment:
    """Where the line is: the last head it was given, and what inclusion costs there."""

    head: Head
    market: Market


class Reflexes:
    """Owns what reacts between heads. `moment` is None until the line has begun; without a sender nothing is sent."""

    def __init__(
        self,
        *,
        chain: Chain,
        gate: Gate,
        sender: Sender | None,
        ledger: Ledger,
        pause_guard: Address,
        protocols: tuple[str, ...],
        door: Path | None,
        recovered: Callable[[Hash, bytes], Address | None],
        wall_clock: Callable[[], float],
    ) -> None:
        self.moment: Moment | None = None
        self._chain = chain
        self.gate = gate
        self._sender = sender
        self._ledger = ledger
        self._pause_guard = pause_guard
        self._scopes = {GLOBAL_SCOPE: None, **{scope_of(name): name for name in protocols}}
        self._door = door
        self._recovered = recovered
        self._wall_clock = wall_clock
        self._judged: dict[Hash, bytes] = {}  # with the signed bytes, where they were shown
        self._looked_for: set[Hash] = set()  # paused scopes whose carrier was looked for

    async def run(self) -> None:
        """React until cancelled. Raises what the record or the configuration raise: without them nothing is safe."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._take_back())
                group.create_task(self._watch_halt_file())
                group.create_task(self._watch_pool(group))
                group.create_task(self._open_door(group))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    def remember(self) -> None:
        """Close again what an earlier run left closed."""
        self.gate.remember(self._ledger.entries(None, kind=("pause", "resume"))[::-1])

    # --- at a head ---

    async def see(self, pause: PauseState, head: Head) -> None:
        """Take in what the chain says at `head`; whether an unpause is final costs a question while it is not known."""
        self.gate.see_chain(pause)
        if self.gate.unsettled(pause):
            after_s: int | None = None
            confirmations = self.gate.unpause_confirmations
            if confirmations:
                # later than the unpause by its time: then the unpause is as deep as it must be
                number = max(head.number - confirmations + 1, 0)
                after_s = (await self._chain.block(BlockNumber(number))).timestamp_s
            self.gate.see_final(pause, after_s)

    async def carry(self) -> None:
        """Bring onto the chain what it does not say: a guardian's own words, and pauses that a reorg erased."""
        if self._sender is None or self.moment is None:
            self.book()
            return
        await self._keep_carriers(self.moment.head)
        self.book()
        missing = {*self.gate.closed("signed"), *self.gate.closed("lost")}
        words = {scope: self.gate.messages[scope] for scope in missing & self.gate.messages.keys()}
        self._sender.relay_only(words.values())
        for scope in sorted(missing):
            if scope in words:
                await self._sender.relay_pause(words[scope], self.moment.market)
            for raw in self.gate.carriers.get(scope, ()):
                try:
                    await self._chain.send_raw(raw)
                except ChainError as error:
                    _log.warning("rebroadcast_refused", scope=named(scope), error=str(error))

    def book(self) -> None:
        """Put on record what closed or opened the gate since the last time."""
        changes, self.gate.changes = self.gate.changes, []
        head = self.moment.head.number if self.moment else 0
        for change in changes:
            body = {"scope": named(change.scope), "cause": change.cause, "head": head, **change.body}
            at_us = int(change.at_s * 1_000_000)
            _log.warning(change.kind, head=head, scope=body["scope"], cause=change.cause, at_us=at_us)
            self._ledger.book(change.kind, None, "", None, body, int(self._wall_clock()))

    async def _keep_carriers(self, head: Head) -> None:
        """Have the transactions that paused what is paused, while nodes tell: a reorg may make them forget."""
        closed = set(self.gate.closed("chain"))
        self._looked_for &= closed
        wanted = closed - self._looked_for - self.gate.carriers.keys() - set(self.gate.closed("lost"))
        if not wanted:
            return
        filters = Filters((self._pause_guard,), (_PAUSED.topic,))
        try:
            logs = await self._chain.logs([filters], max(head.number - _NO_REORG_DEEPER, 0), head.number)
            for log in logs:
                if log.topics[1] in wanted:
                    name = log.transaction_hash
                    raw = await self._chain.raw(name) or self._judged.get(name, b"")
                    if not raw:
                        _log.warning("carrier_unknown", tx=name)  # it cannot be sent again
                    self.gate.carried(log.topics[1], raw)
        except ChainError as error:
            _log.warning("carrier_unknown", error=str(error))
        else:
            self._looked_for |= wanted

    # --- between heads ---

    async def accept(self, message: SignedPause) -> Refusal | None:
        """Close the gate on a guardian's word, or why it is not believed; see `tell`."""
        if message.pause_guard != self._pause_guard or message.scope not in self._scopes:
            return Refusal("pause", "not_ours", {"scope": named(message.scope)})
        signer = self._recovered(message.digest, message.signature) if message.canonical else None
        if signer is None:
            return Refusal("pause", "bad_signature")
        head = await self._chain.head()
        at = BlockTime(head.number, head.hash, head.timestamp_s)
        verdict = await self._chain.read(
            read_verdict(message, signer, self._scopes[message.scope], at), head.hash
        )
        if isinstance(verdict, Refusal):
            return verdict
        self.gate.see_signed(message, verdict)
        self.book()
        return None

    async def tell(self, message: SignedPause) -> None:
        """Have the chain told what a guardian said, if the gate is closed on it and the chain does not know."""
        if message.scope not in self.gate.closed("signed") or self._sender is None or self.moment is None:
            return
        try:
            await self._sender.relay_pause(message, self.moment.market)
        except ChainError as error:
            _log.warning("relay_waits", error=str(error))  # the next head tries again

    async def _saw(self, pending: Pending, group: asyncio.TaskGroup) -> None:
        """Judge each once, side by side: spoofs must not hold up the one that is true."""
        if pending.to is None or pending.hash in self._judged:
            return
        scopes = paused_by(pending.to, pending.data, self._pause_guard) & self._scopes.keys()
        if scopes:
            self._judged[pending.hash] = pending.raw
            if len(self._judged) > _JUDGED:
                del self._judged[next(iter(self._judged))]
            group.create_task(self._judge(pending, pending.to, scopes))

    async def _judge(self, pending: Pending, to: Address, scopes: set[Hash]) -> None:
        # with a quorum one provider's word for who sent it is not enough to stop for
        proven = pending.proof is not None and self._recovered(*pending.proof) == pending.sender
        if self._chain.quorum > 1 and not proven:
            _log.info("pending_pause_unproven", tx=pending.hash, sender=pending.sender)
            return
        call = SimCall(pending.sender, to, pending.data, _PAUSE_GAS)
        try:
            if not await self._pauses(call):
                _log.info("pending_pause_ignored", tx=pending.hash, sender=pending.sender)
                return
        except ChainError as error:
            _log.warning("pending_pause_unknown", tx=pending.hash, error=str(error))  # unknown is a pause
        for scope in scopes:
            self.gate.see_pending(scope, pending.hash, self.moment.head.number if self.moment else None)

    async def _pauses(self, call: SimCall) -> bool:
        """Whether it does what it says on the head at hand or, where it does not, on the newest one."""
        at = self.moment.head if self.moment else None
        if at is not None and _succeeds(call, await self._chain.call(call, at)):
            return True
        newest = await self._chain.head()  # the line may be some blocks behind
        return newest != at and _succeeds(call, await self._chain.call(call, newest))

    async def _watch_pool(self, group: asyncio.TaskGroup) -> None:
        await self._chain.watch_pool(self._pause_guard, lambda pending: self._saw(pending, group))

    async def _open_door(self, group: asyncio.TaskGroup) -> None:
        if self._door is None:
            return

        async def heard(message: SignedPause) -> Refusal | None:
            refusal = await self.accept(message)
            if refusal is None:
                group.create_task(self.tell(message))  # a guardian does not wait for who holds our key
            return refusal

        try:
            await serve(self._door, heard)
        except ConfigError as error:
            # every other way to pause is open
            _log.warning("no_door", detail=str(error))
            self._ledger.book("warning", None, "", None, {"detail": str(error)}, int(self._wall_clock()))

    async def _watch_halt_file(self) -> None:
        while True:
            self.gate.look_for_halt_file()
            self.book()
            await asyncio.sleep(_HALT_FILE_EVERY_S)

    async def _take_back(self) -> None:
        while True:
            await self.gate.shut.wait()
            self.gate.shut.clear()
            if self._sender is not None and self.moment is not None:
                try:
                    await self._sender.stop(self.moment.market)
                except ChainError as error:
                    _log.warning("not_taken_back", error=str(error))  # the next head tries again
            self.book()


def _succeeds(call: SimCall, answer: Result) -> bool:
    """Whether a call did what it says: a Safe may answer that its inner call failed."""
    if isinstance(answer, Reverted):
        return False
    return call.data[:4] != _EXEC.selector or bool(int.from_bytes(answer))
