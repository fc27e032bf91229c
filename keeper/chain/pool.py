"""Several providers as one: the best that answers is used, the next on failure.

The provider whose heads are followed comes first, then the others by rank; whoever is at rest, or asked for a pause,
comes later, and whoever was dropped last of all. With one provider nothing is held back but what it asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self, TypeVar

import structlog

from keeper.chain.pace import Pace
from keeper.chain.provider import Provider
from keeper.chain.ranking import Ranking
from keeper.chain.rpc import Rpc
from keeper.chain.subscription import Subscription
from keeper.chain.wire import Lacking, RateLimited, TimedOut, failed_execution
from keeper.errors import ChainError, ConfigError, RpcError, WrongChain

T = TypeVar("T")
Work = Callable[[Rpc], Awaitable[T]]
Answers = list[tuple[Provider, T]]
Sleep = Callable[[float], Awaitable[None]]

OUT_S: Final = 15.0  # how long one that is behind, on a fork or on another chain is dropped
_HEDGE_S: Final = 1.0  # so late, another provider is asked besides
_VERDICT_S: Final = 3.0  # for everybody to speak, where providers contradict each other
_SHORT_PAUSE_S: Final = 5.0  # a pause that is waited out where nobody else is left to ask

_log = structlog.get_logger("keeper.chain")


@dataclass(frozen=True, slots=True)
class Notice:
    """Something about providers that belongs in the record: what, whose label (empty: of all of them), and why.

    `head` is the last block that was handed out before; `contradicted` says that others told otherwise than it.
    """

    name: str
    provider: str
    detail: str
    head: int
    contradicted: bool = False


class Pool:
    """The configured providers. Open with `Pool.open`; every method raises `ChainError` when none can answer."""

    def __init__(
        self, providers: Sequence[Provider], quorum: int, clock: Callable[[], float], sleep: Sleep
    ) -> None:
        self.providers: Final = providers
        self.quorum: Final = quorum
        self.clock: Final = clock
        self.sleep: Final = sleep
        self.ranking: Final = Ranking(providers)
        self.listener: Callable[[Notice], None] | None = None
        self.head = 0  # the number of the last head that was handed out
        self._followed: Provider | None = None
        self._subscription: Subscription | None = None

    @classmethod
    async def open(
        cls,
        urls: Sequence[str],
        chain_id: int,
        timeout_s: float,
        *,
        quorum: int = 1,
        max_requests_per_s: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> Self:
        """Connect to all of them; one that answers is enough, one that serves another chain is `WrongChain`."""
        if not urls:
            raise ConfigError("chain.rpc_urls is empty: name at least one node.")
        if not 1 <= quorum <= len(urls):
            raise ConfigError(
                f"chain.quorum is {quorum} with {len(urls)} chain.rpc_urls; it must be 1 to {len(urls)}."
            )

        def provider(url: str) -> Provider:
            pace = None if max_requests_per_s is None else Pace(max_requests_per_s, clock, sleep)
            return Provider(url, chain_id, timeout_s, pace)

        pool = cls([provider(url) for url in urls], quorum, clock, sleep)
        answers = await asyncio.gather(
            *(provider.rpc() for provider in pool.providers), return_exceptions=True
        )
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        fatal = [
            error for error in failures if isinstance(error, WrongChain) or not isinstance(error, ChainError)
        ]
        if fatal or len(failures) == len(answers):
            await pool.close()
            raise (
                fatal[0] if fatal else merged([error for error in failures if isinstance(error, ChainError)])
            )
        for one, answer in zip(pool.providers, answers, strict=True):
            if isinstance(answer, ChainError):
                pool.hold_against(one, answer)
        return pool

    async def close(self) -> None:
        """Drop every connection, side by side: one that hangs must not hold up the others."""
        await asyncio.gather(*(provider.close() for provider in self.providers))

    # --- asking ---

    async def run(self, work: Work[T], *, insist: bool = False) -> T:
        """Let the first provider that can do `work`.

        A failed provider is passed over for the next. So is one that refuses (it may lag, or lack the method),
        unless the code it ran failed, which would fail everywhere; with `insist` a refusal is always the answer.
        """
        failures: list[ChainError] = []
        for provider in self._order():
            try:
                answer = await self._attempt(provider, work)
            except (RpcError, Lacking) as error:
                if insist or (isinstance(error, RpcError) and failed_execution(error)):
                    raise
                failures.append(error)
            except ChainError as error:
                self.hold_against(provider, error)
                failures.append(error)
            else:
                provider.answered()
                return answer
        raise merged(failures)

    async def run_each(
        self, work: Work[T], count: int, alike: Callable[[T, T], bool] | None = None
    ) -> tuple[Answers[T], dict[Provider, ChainError]]:
        """The answers of `count` providers, others in place of whoever fails or is late; and who failed.

        Fewer where not so many answer, and those of all providers where they are not `alike`.
        """
        waiting = list(self._order())
        asked: dict[asyncio.Task[T], tuple[Provider, float]] = {}
        answers: Answers[T] = []
        failures: dict[Provider, ChainError] = {}

        def ask(number: int) -> None:
            for provider in waiting[:number]:
                asked[asyncio.create_task(self._attempt(provider, work))] = provider, self.clock()
            del waiting[:number]

        async def hear(timeout_s: float | None) -> None:
            done, _ = await asyncio.wait(asked, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                provider, _ = asked.pop(task)
                try:
                    answers.append((provider, task.result()))
                except ChainError as error:
                    failures[provider] = error
                    if not isinstance(error, RpcError | Lacking):
                        self.hold_against(provider, error)
                else:
                    provider.answered()

        try:
            ask(count)
            while asked and len(answers) < count:
                await hear(_HEDGE_S if waiting else None)
                late = sum(self.clock() - began_s >= _HEDGE_S for _, began_s in asked.values())
                ask(max(count - len(answers) - (len(asked) - late), 0))
            if alike is not None and not all(alike(answers[0][1], answer) for _, answer in answers):
                ask(len(waiting))
                until_s = time.monotonic() + _VERDICT_S
                while asked and (left_s := until_s - time.monotonic()) > 0:
                    await hear(left_s)
        finally:
            for task, (provider, began_s) in asked.items():
                task.cancel()
                if self.clock() - began_s >= _HEDGE_S:
                    provider.rest(TimedOut(f"{provider.label} is much later than others."), self.clock())
            await asyncio.gather(*asked, return_exceptions=True)
        return answers, failures

    async def survey(
        self, work: Work[T], timeout_s: float, *, check: bool = False
    ) -> list[tuple[Provider, T | ChainError, float]]:
        """What every provider answers within `timeout_s`, or its error, and how many seconds that took.

        With `check` each is asked first whether it still serves the same chain.
        """

        async def asked(provider: Provider) -> tuple[Provider, T | ChainError, float]:
            began_s = time.monotonic()
            answer: T | ChainError
            try:
                async with asyncio.timeout(timeout_s):
                    if check:
                        await provider.check(await provider.rpc())
                        began_s = time.monotonic()
                    answer = await self._attempt(provider, work)
            except TimeoutError:
                answer = TimedOut(f"{provider.label} did not answer a survey in {timeout_s:g} s.")
            except ChainError as error:
                answer = error
            return provider, answer, time.monotonic() - began_s

        return await asyncio.gather(*(asked(provider) for provider in self.providers))

    # --- whom to ask ---

    def follow(self, rpc: Rpc, subscription: Subscription | None) -> None:
        """Ask the provider behind `rpc` before all others while its heads are followed, unless it is at rest."""
        self._followed = next((provider for provider in self.providers if provider.holds(rpc)), None)
        self._subscription = subscription

    @property
    def followed(self) -> Provider | None:
        """Whose heads are followed."""
        return self._followed

    @property
    def best(self) -> Provider | None:
        """The best ranked of those that nothing is held against."""
        now_s = self.clock()
        for provider in self.ranking.order:
            if max(provider.dropped_until_s, provider.rests_until_s, provider.paused_until_s) <= now_s:
                return provider
        return None

    def follows(self, rpc: Rpc) -> bool:
        """Whether the provider behind `rpc` is the one whose heads are followed."""
        return self._followed is not None and self._followed.holds(rpc)

    def leave(self, why: str) -> None:
        """Stop following the present provider: whoever waits for its next head is told at once."""
        self._followed = None
        if self._subscription is not None:
            self._subscription.fail(why)

    def blame(self, rpc: Rpc, error: ChainError) -> None:
        """Hold `error` against the provider behind `rpc`, for whoever knows it only by its connection."""
        for provider in self.providers:
            if provider.holds(rpc):
                self.hold_against(provider, error)

    def hold_against(self, provider: Provider, error: ChainError) -> None:
        """Let a provider that failed rest, or have the pause it asked for."""
        if isinstance(error, RateLimited):
            provider.pause(error, self.clock())
            return
        if isinstance(error, WrongChain):
            self.drop(provider, str(error), OUT_S)
        provider.rest(error, self.clock())

    def condemn(self, provider: Provider, why: str) -> None:
        """Drop a provider that lied, longer each time."""
        self.drop(provider, why, provider.sentence_s(), contradicted=True)

    def drop(self, provider: Provider, why: str, for_s: float, *, contradicted: bool = False) -> None:
        """Ask a provider only where too few others are left, for so long at least, and follow it no more."""
        now_s = self.clock()
        if provider.dropped_until_s <= now_s:
            self.note("provider_dropped", provider.label, why, contradicted=contradicted)
        provider.dropped_until_s = max(provider.dropped_until_s, now_s + for_s)
        if provider is self._followed:
            self.leave(f"{provider.label} was dropped.")

    def note(self, name: str, provider: str, detail: str, *, contradicted: bool = False) -> None:
        """Log something about a provider and tell the listener."""
        _log.warning(name, provider=provider, detail=detail)
        if self.listener is not None:
            self.listener(Notice(name, provider, detail, self.head, contradicted))

    def _order(self) -> Sequence[Provider]:
        """Who is asked first: of those that may be asked whom we follow, then by rank; the dropped last of all."""
        if len(self.providers) == 1:
            return self.providers
        now_s = self.clock()
        return sorted(
            self.ranking.order,
            key=lambda provider: (
                provider.dropped_until_s > now_s,
                provider.wait_s(now_s),
                provider is not self._followed,
            ),
        )

    async def _attempt(self, provider: Provider, work: Work[T]) -> T:
        if provider.paused_until_s:
            pause_s = provider.paused_until_s - self.clock()
            if pause_s > _SHORT_PAUSE_S:
                raise RateLimited(f"{provider.label} asked not to be asked for {pause_s:.0f} s.", pause_s)
            if pause_s > 0:
                await self.sleep(pause_s)
        rpc = await provider.rpc()
        try:
            answer = await work(rpc)
        except ChainError as error:
            if rpc.alive or isinstance(error, RpcError):
                raise
            # the connection died, perhaps of idleness: once more on a new one
            answer = await work(await provider.rpc())
        if rpc.renewed:
            await provider.recheck(rpc)  # another chain may have answered
        return answer


def merged(failures: Sequence[ChainError]) -> ChainError:
    """One error for many: a refusal tells most, else every provider's failure in one message."""
    for error in failures:
        if isinstance(error, RpcError):
            return error
    if len(failures) == 1:
        return failures[0]
    timed_out = all(isinstance(error, TimedOut) for error in failures)
    return (TimedOut if timed_out else ChainError)(" ".join(str(error) for error in failures))
