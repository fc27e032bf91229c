"""Ways out: how signed bytes reach whoever builds blocks.

The public pool is asked through the chain's own nodes and answers at once. Relays get the same bytes, all of them, and
answer when and what they like: whoever answers late is no longer waited for until it has answered in time again, and
nothing a relay says is believed but by the receipt.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from keeper.chain.client import Chain
from keeper.errors import ChainError, RpcError
from keeper.execution.flights import Flight, Flights
from keeper.execution.relay import Bundle, Refund, Relay, bundle_name
from keeper.types import BlockNumber, BlockTime, Hash, hex_of

_PATIENCE_S: Final = 0.25  # how long the line waits for relays
_BLOCKS_AHEAD: Final = 3  # bundles are for one block each: so many are handed over at once
_VALID_S: Final = 120  # a bundle's block must come within so many seconds of the head it was made at


@dataclass(frozen=True, slots=True)
class Taken:
    """Somebody has the bytes and calls them `hash`; `via` are the relays that do, `failed` what others answered."""

    hash: Hash
    via: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


Answer = Taken | ChainError | None  # None: nobody has answered yet
_Ask = Callable[[Relay, Flight, BlockTime], Awaitable[None]]
_Asking = asyncio.Task[ChainError | None]


class Way(Protocol):
    """One way out. What is offered of a flight is its last attempt."""

    renews: bool  # whether what it has must be offered again at every head

    async def offer(self, flights: Sequence[Flight], at: BlockTime) -> list[Answer]:
        """Hand over; `at` is the head they were made at."""
        ...

    def late(self) -> list[tuple[Hash, Answer]]:
        """What was answered since the last offer, by hash."""
        ...

    def withdraw(self, flights: Sequence[Flight], at: BlockTime) -> None:
        """Ask that they be held back from blocks after `at`; nobody relies on it."""
        ...

    async def close(self) -> None:
        """Drop every connection."""
        ...


class PublicPool:
    """The nodes' own pool, which everybody sees."""

    renews = False

    def __init__(self, chain: Chain) -> None:
        self._chain: Final = chain

    async def offer(self, flights: Sequence[Flight], at: BlockTime) -> list[Answer]:
        """Broadcast all at once."""
        answers = await asyncio.gather(
            *(self._chain.send_raw(flight.last.raw) for flight in flights), return_exceptions=True
        )
        taken: list[Answer] = []
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, ChainError):
                raise answer
            taken.append(answer if isinstance(answer, ChainError) else Taken(answer))
        return taken

    def late(self) -> list[tuple[Hash, Answer]]:
        """Nothing: nodes are waited for."""
        return []

    def withdraw(self, flights: Sequence[Flight], at: BlockTime) -> None:
        """Nothing: only another transaction replaces one in the pool."""

    async def close(self) -> None:
        """Nothing: the chain's connections are the chain's."""


class Relays(ABC):
    """The same bytes to every relay. `failed` answers are words; a relay's word that it has them is all there is."""

    renews = False

    def __init__(self, relays: Sequence[Relay], flights: Flights) -> None:
        self._relays: Final = relays
        self._flights: Final = flights
        self._punctual: Final = dict.fromkeys(relays, True)
        # with each what it hands over, or None where it takes something back
        self._running: Final[dict[_Asking, tuple[Relay, Hash | None]]] = {}
        self._log = structlog.get_logger("keeper.relays")

    async def offer(self, flights: Sequence[Flight], at: BlockTime) -> list[Answer]:
        """Hand over to all relays side by side, and wait a little for those that answered in time before."""
        asked = [
            {
                self._start(relay, self._hand_over, flight, at, flight.last.hash): relay
                for relay in self._relays
            }
            for flight in flights
        ]
        waited = [task for tasks in asked for task, relay in tasks.items() if self._punctual[relay]]
        if waited:
            _, slow = await asyncio.wait(waited, timeout=_PATIENCE_S)
            for task in slow:
                relay = self._running[task][0]
                if self._punctual[relay]:
                    self._log.warning("relay_late", relay=relay.label, patience_s=_PATIENCE_S)
                self._punctual[relay] = False
        return [self._answer(flight.last.hash, tasks) for flight, tasks in zip(flights, asked, strict=True)]

    def late(self) -> list[tuple[Hash, Answer]]:
        """What relays answered that were not waited for."""
        answers: list[tuple[Hash, Answer]] = []
        for task in [task for task in self._running if task.done()]:
            relay, transaction_hash = self._running[task]
            answer = self._answer(transaction_hash or Hash(b""), {task: relay})
            if transaction_hash is not None:
                answers.append((transaction_hash, answer))
        return answers

    def withdraw(self, flights: Sequence[Flight], at: BlockTime) -> None:
        """Ask every relay, and wait for none."""
        for flight in flights:
            for relay in self._relays:
                self._start(relay, self._take_back, flight, at, None)

    async def close(self) -> None:
        """Give what is on its way a moment, then drop every connection."""
        if self._running:
            await asyncio.wait(self._running, timeout=_PATIENCE_S)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for relay in self._relays:
            await relay.close()

    @abstractmethod
    async def _hand_over(self, relay: Relay, flight: Flight, at: BlockTime) -> None: ...

    @abstractmethod
    async def _take_back(self, relay: Relay, flight: Flight, at: BlockTime) -> None: ...

    def _start(self, relay: Relay, ask: _Ask, flight: Flight, at: BlockTime, handed: Hash | None) -> _Asking:
        task = asyncio.create_task(self._timed(relay, ask, flight, at))
        self._running[task] = (relay, handed)
        return task

    async def _timed(self, relay: Relay, ask: _Ask, flight: Flight, at: BlockTime) -> ChainError | None:
        clock = asyncio.get_running_loop().time
        began_s, failure = clock(), None
        try:
            await ask(relay, flight, at)
        except ChainError as error:
            failure = error
        self._punctual[relay] = clock() - began_s <= _PATIENCE_S
        return failure

    def _answer(self, transaction_hash: Hash, tasks: Mapping[_Asking, Relay]) -> Answer:
        via: list[str] = []
        failures: dict[str, ChainError] = {}
        for task, relay in tasks.items():
            if not task.done():
                continue
            del self._running[task]
            failure = task.result()
            if failure is None:
                via.append(relay.label)
            else:
                failures[relay.label] = failure
                self._log.warning("relay_failed", relay=relay.label, error=str(failure))
        if via:
            words = {label: str(failure) for label, failure in failures.items()}
            return Taken(transaction_hash, tuple(via), words)
        if len(failures) < len(tasks):
            return None
        said = list(failures.values())
        return next((each for each in said if isinstance(each, RpcError)), said[0])  # a refusal tells most


class PrivateRelays(Relays):
    """Each transaction by itself, for any block up to its last: relays keep them in the order of their nonces."""

    async def _hand_over(self, relay: Relay, flight: Flight, at: BlockTime) -> None:
        attempt = flight.last
        answered = await relay.send_private(attempt.raw, BlockNumber(attempt.last_block or at.number))
        if answered != attempt.hash:
            raise ChainError(
                f"{relay.label} took a transaction and answered another hash, {hex_of(answered)}."
            )

    async def _take_back(self, relay: Relay, flight: Flight, at: BlockTime) -> None:
        for attempt in flight.transaction.attempts:
            if attempt.purpose != "cancel":
                await relay.cancel_private(attempt.hash)


class BundleRelays(Relays):
    """Bundles for the next blocks. Each leads with whatever is in flight below its nonce, without which it is void.

    So with three in flight there are three bundles for a block, each one longer than the one before, and a builder can
    take as many as still succeed. When one is mined or taken back the others must be made anew: at every head.
    """

    renews = True

    def __init__(self, relays: Sequence[Relay], flights: Flights, refund: Refund | None) -> None:
        super().__init__(relays, flights)
        self._refund: Final = refund

    async def _hand_over(self, relay: Relay, flight: Flight, at: BlockTime) -> None:
        led = [other.last.raw for other in self._flights.own() if other.nonce <= flight.nonce]
        await asyncio.gather(
            *(
                relay.send_bundle(
                    Bundle(
                        led,
                        block,
                        at.timestamp_s,
                        at.timestamp_s + _VALID_S,
                        bundle_name(flight.plan_id, block),
                    ),
                    self._refund,
                )
                for block in _blocks(at, flight.last.last_block)
            )
        )

    async def _take_back(self, relay: Relay, flight: Flight, at: BlockTime) -> None:
        later = [other for other in self._flights.own() if other.nonce >= flight.nonce]
        await asyncio.gather(
            *(
                relay.cancel_bundle(bundle_name(other.plan_id, block))
                for other in later
                for block in _blocks(at, None)
            )
        )


def _blocks(at: BlockTime, last_block: BlockNumber | None) -> list[BlockNumber]:
    """The blocks a bundle is for."""
    last = at.number + _BLOCKS_AHEAD
    return [
        BlockNumber(number)
        for number in range(at.number + 1, min(last, last if last_block is None else last_block) + 1)
    ]
