"""What does not wait for the next head: seeing a pause come, closing the gate on it, and taking back what is in flight.

Runs beside the line in the same thread. Closing the gate is one synchronous step, and the line asks the gate again
right before it signs: so whatever it is waiting for, nothing is signed after a pause was seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from keeper.abi import load
from keeper.chain.client import Chain, Pending, SimCall
from keeper.errors import AdapterError, ChainError, ConfigError
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
_CARRIERS: Final = 4  # that many transactions are kept for each pause
_JUDGED: Final = 4_096  # pending transactions that are remembered to have been looked at
_SIDE_BY_SIDE: Final = 8  # that many of them nodes are asked about at once
_PAUSE_GAS: Final = Gas(5_000_000)  # more than a Safe's largest batch around a pause takes
_GAS_PER_BYTE: Final = (
    64  # of calldata: more than any chain asks for, so that size alone makes nothing unknown
)
_EXEC: Final = load("Safe").function("execTransaction")
_PAUSED: Final = load("PauseGuard").event("Paused")
_STATES: Final = load("PauseGuard").function("scopeStates")

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
        self._few = asyncio.Semaphore(_SIDE_BY_SIDE)
        self._looked_for: set[tuple[Hash, int]] = (
            set()
        )  # pauses, by scope and epoch, whose carrier was looked for

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
        for scope, message in list(self.gate.messages.items()):
            if message.pause_guard != self._pause_guard:
                self.gate.give_up(scope, "it was said to another PauseGuard than is configured now")
        self._looked_for = {pause for pause in self.gate.epochs().items() if pause[0] in self.gate.carriers}

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
        head = self.moment.head.number if self.moment else 0
        while self.gate.changes:
            change = self.gate.changes[0]
            body = {"scope": named(change.scope), "cause": change.cause, "head": head, **change.body}
            self._ledger.book(change.kind, None, "", None, body, int(self._wall_clock()))
            del self.gate.changes[0]  # only now: what could not be booked is still to be
            at_us = int(change.at_s * 1_000_000)
            _log.warning(change.kind, head=head, scope=body["scope"], cause=change.cause, at_us=at_us)

    async def _keep_carriers(self, head: Head) -> None:
        """Have the transactions that paused what is paused, while nodes tell: a reorg may make them forget."""
        pauses = self.gate.epochs().items()
        self._looked_for &= pauses
        lost = self.gate.closed("lost")
        wanted = {pause for pause in pauses - self._looked_for if pause[0] not in lost}
        if not wanted:
            return
        filters = Filters((self._pause_guard,), (_PAUSED.topic,))
        try:
            logs = await self._chain.logs([filters], max(head.number - _NO_REORG_DEEPER, 0), head.number)
            said = [(log, _PAUSED.decode(log)) for log in logs]
            for pause in sorted(wanted):
                told = [log for log, event in said if (event["scope"], event["epoch"]) == pause]
                for log in told[
                    :_CARRIERS
                ]:  # the first is what paused it; anybody may repeat a signed one at will
                    name = log.transaction_hash
                    raw = await self._chain.raw(name) or self._judged.get(name, b"")
                    if not raw:
                        _log.warning("carrier_unknown", tx=name)  # it cannot be sent again
                    self.gate.carried(pause[0], raw)
        except (ChainError, AdapterError) as error:
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
        """Judge each once, a few side by side: spoofs must not hold up the one that is true, nor the line."""
        if pending.to is None or pending.hash in self._judged:
            return
        scopes = paused_by(pending.to, pending.data, self._pause_guard) & self._scopes.keys()
        if scopes:
            while len(self._judged) >= _JUDGED:
                del self._judged[next(iter(self._judged))]
            self._judged[pending.hash] = pending.raw
            group.create_task(self._judge(pending, pending.to, scopes))

    async def _judge(self, pending: Pending, to: Address, scopes: Set[Hash]) -> None:
        try:
            async with self._few:
                # with a quorum one provider's word for who sent it is not enough to stop for
                if self._chain.quorum > 1 and not await self._proven(pending):
                    _log.info("pending_pause_unproven", tx=pending.hash, sender=pending.sender)
                    scopes = set()
                else:
                    scopes = await self._paused_after(pending, to, sorted(scopes))
        except ChainError as error:
            _log.warning("pending_pause_unknown", tx=pending.hash, error=str(error))  # unknown is a pause
        if not scopes:
            _log.info("pending_pause_ignored", tx=pending.hash, sender=pending.sender)
            self._judged[pending.hash] = b""  # strangers' bytes are not worth keeping
        for scope in scopes:
            self.gate.see_pending(scope, pending.hash, self.moment.head.number if self.moment else None)
        self.book()

    async def _proven(self, pending: Pending) -> bool:
        """Whether its sender signed it, for this chain, and its nonce is not used up: an old one is easily shown."""
        if pending.proof is None or pending.chain_id != self._chain.chain_id:
            return False
        if self._recovered(*pending.proof) != pending.sender:
            return False
        return pending.nonce >= await self._chain.nonce(pending.sender)

    async def _paused_after(self, pending: Pending, to: Address, scopes: list[Hash]) -> frozenset[Hash]:
        """Which of these are paused once it was mined: what it calls may be anybody's, and do nothing of what it says.

        Asked at the head at hand and, where it would do nothing there, at the newest one.
        """
        at = self.moment.head if self.moment else None
        if at is not None and (paused := await self._paused_at(at, pending, to, scopes)):
            return paused
        newest = await self._chain.head()  # the line may be some blocks behind
        if at is not None and newest.hash == at.hash:
            return frozenset()
        return await self._paused_at(newest, pending, to, scopes)

    async def _paused_at(
        self, head: Head, pending: Pending, to: Address, scopes: list[Hash]
    ) -> frozenset[Hash]:
        """As above; where no provider shows what a transaction leaves behind, whether it succeeds must do."""
        gas = Gas(_PAUSE_GAS + _GAS_PER_BYTE * len(pending.data))
        call = SimCall(pending.sender, to, pending.data, gas)
        look = SimCall(pending.sender, self._pause_guard, _STATES.encode(scopes), _PAUSE_GAS)

        def verdict(done: Result, seen: Result | None) -> frozenset[Hash]:
            if isinstance(done, Reverted):
                return frozenset()  # what is paused then was paused before
            if seen is None:
                return frozenset(scopes if _succeeds(pending.data, done) else ())
            states = _STATES.one(b"" if isinstance(seen, Reverted) else seen)
            if len(states) != len(scopes):
                raise AdapterError(f"{len(states)} scopes are told of instead of {len(scopes)}.")
            return frozenset(scope for scope, (paused, *_) in zip(scopes, states, strict=True) if paused)

        return await self._chain.judge(call, look, head, verdict)

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


def _succeeds(payload: bytes, answer: bytes) -> bool:
    """Whether a call that did not revert did what it says: a Safe may answer that its inner call failed."""
    return payload[:4] != _EXEC.selector or bool(int.from_bytes(answer))
