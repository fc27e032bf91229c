"""Several providers as one: the first that answers is used, the next on failure, q of them where q must agree.

A provider that fails rests for a while, longer each time, and then has its place in the list again. One that serves
another chain is never used. With one provider nothing is held back: every request is tried.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import structlog

from keeper.chain.rpc import Rpc, connect, label_of
from keeper.chain.wire import TEXT, Lacking, TimedOut, failed_execution, quantity, reading
from keeper.errors import ChainError, ConfigError, RpcError, WrongChain

T = TypeVar("T")

_REST_S: Final = 0.5
_LONGEST_REST_S: Final = 30.0

_log = structlog.get_logger("keeper.chain")


class _Provider:
    """One URL and, while it lasts, the connection to it."""

    def __init__(self, url: str, chain_id: int, timeout_s: float) -> None:
        self.label: Final = label_of(url)
        self.failures = 0
        self.rests_until_s = 0.0
        self._url: Final = url
        self._chain_id: Final = chain_id
        self._timeout_s: Final = timeout_s
        self._lock: Final = asyncio.Lock()
        self._rpc: Rpc | None = None

    async def rpc(self) -> Rpc:
        """A live connection to the right chain. Raises `ChainError` or `WrongChain`."""
        if self._rpc is not None and self._rpc.alive:
            return self._rpc
        async with self._lock:
            if self._rpc is not None:
                if self._rpc.alive:
                    return self._rpc
                await self._rpc.close()
                self._rpc = None
            rpc = await connect(self._url, self._timeout_s)
            try:
                await self._check(rpc)
            except BaseException:
                await rpc.close()
                raise
            self._rpc = rpc
            return rpc

    def holds(self, rpc: Rpc) -> bool:
        """Whether `rpc` is this provider's present connection."""
        return self._rpc is rpc

    async def _check(self, rpc: Rpc) -> None:
        with reading(self.label, "eth_chainId"):
            served = quantity(await rpc.ask(TEXT, "eth_chainId"))
        if served != self._chain_id:
            raise WrongChain(
                f"{self.label} serves chain {served} and chain.id is {self._chain_id}: correct one of them."
            )

    async def close(self) -> None:
        if self._rpc is not None:
            await self._rpc.close()


class Pool:
    """The configured providers. Open with `Pool.open`; every method raises `ChainError` when none can answer."""

    def __init__(self, providers: Sequence[_Provider], clock: Callable[[], float]) -> None:
        self._providers: Final = providers
        self._clock: Final = clock
        self._preferred: _Provider | None = None

    @classmethod
    async def open(
        cls, urls: Sequence[str], chain_id: int, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> Pool:
        """Connect to all of them; one that answers is enough, one that serves another chain is `WrongChain`."""
        if not urls:
            raise ConfigError("chain.rpc_urls is empty: name at least one node.")
        pool = cls([_Provider(url, chain_id, timeout_s) for url in urls], clock)
        answers = await asyncio.gather(
            *(provider.rpc() for provider in pool._providers), return_exceptions=True
        )
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        fatal = [
            error for error in failures if isinstance(error, WrongChain) or not isinstance(error, ChainError)
        ]
        if fatal or len(failures) == len(answers):
            await pool.close()
            raise (
                fatal[0] if fatal else _merged([error for error in failures if isinstance(error, ChainError)])
            )
        for provider, answer in zip(pool._providers, answers, strict=True):
            if isinstance(answer, ChainError):
                pool._rest(provider, answer)
        return pool

    async def close(self) -> None:
        """Drop every connection, side by side: one that hangs must not hold up the others."""
        await asyncio.gather(*(provider.close() for provider in self._providers))

    async def run(self, work: Callable[[Rpc], Awaitable[T]], *, insist: bool = False) -> T:
        """Let the first provider that can do `work`.

        A failed provider is passed over for the next. So is one that refuses (it may lag, or lack the method),
        unless the code it ran failed, which would fail everywhere; with `insist` a refusal is always the answer.
        """
        failures: list[ChainError] = []
        for provider in self._order():
            try:
                return await self._attempt(provider, work)
            except (RpcError, Lacking) as error:
                if insist or (isinstance(error, RpcError) and failed_execution(error)):
                    raise
                failures.append(error)
            except ChainError as error:
                self._rest(provider, error)
                failures.append(error)
        raise _merged(failures)

    async def run_each(self, work: Callable[[Rpc], Awaitable[T]], count: int) -> list[T]:
        """The answers of `count` different providers. Raises `ChainError` when fewer than that answer."""
        order = self._order()
        answers: list[T] = []
        failures: list[ChainError] = []
        while len(answers) < count and order:
            asked, order = order[: count - len(answers)], order[count - len(answers) :]
            for provider, answer in zip(
                asked,
                await asyncio.gather(
                    *(self._attempt(provider, work) for provider in asked), return_exceptions=True
                ),
                strict=True,
            ):
                if isinstance(answer, ChainError):
                    if not isinstance(answer, RpcError | Lacking):
                        self._rest(provider, answer)
                    failures.append(answer)
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    answers.append(answer)
        if len(answers) < count:
            raise ChainError(
                f"{len(answers)} of the {count} providers that must agree answered: {_merged(failures)}"
            )
        return answers

    async def survey(self, work: Callable[[Rpc], Awaitable[T]], timeout_s: float) -> list[T]:
        """The answers of all providers that give one within `timeout_s`; the others are left out."""

        async def asked(provider: _Provider) -> list[T]:
            try:
                async with asyncio.timeout(timeout_s):
                    return [await self._attempt(provider, work)]
            except (ChainError, TimeoutError):
                return []

        answers = await asyncio.gather(*(asked(provider) for provider in self._providers))
        return [answer for found in answers for answer in found]

    def prefer(self, rpc: Rpc) -> None:
        """Ask the provider behind `rpc` before all others, unless it is at rest."""
        self._preferred = next((provider for provider in self._providers if provider.holds(rpc)), None)

    def blame(self, rpc: Rpc, error: ChainError) -> None:
        """Let the provider behind `rpc` rest: what it did is known better to whoever holds its subscription."""
        for provider in self._providers:
            if provider.holds(rpc):
                self._rest(provider, error)

    def _order(self) -> list[_Provider]:
        """Who is asked first: of those not at rest the preferred one, then by place in the list; the others last."""
        if len(self._providers) == 1:
            return list(self._providers)
        now_s = self._clock()
        return sorted(
            self._providers,
            key=lambda provider: (max(provider.rests_until_s - now_s, 0.0), provider is not self._preferred),
        )

    def _rest(self, provider: _Provider, error: ChainError) -> None:
        rest_s = min(_REST_S * 2.0**provider.failures, _LONGEST_REST_S)
        provider.failures = min(provider.failures + 1, 10)
        provider.rests_until_s = self._clock() + rest_s
        _log.warning("provider_failed", provider=provider.label, error=str(error), rest_s=rest_s)

    async def _attempt(self, provider: _Provider, work: Callable[[Rpc], Awaitable[T]]) -> T:
        rpc = await provider.rpc()
        try:
            answer = await work(rpc)
        except ChainError as error:
            if rpc.alive or isinstance(error, RpcError):
                raise
            # the connection died, perhaps of idleness: once more on a new one
            answer = await work(await provider.rpc())
        if provider.failures:
            provider.failures = 0
            provider.rests_until_s = 0.0
        return answer


def _merged(failures: Sequence[ChainError]) -> ChainError:
    """One error for many: a refusal tells most, else every provider's failure in one message."""
    for error in failures:
        if isinstance(error, RpcError):
            return error
    if len(failures) == 1:
        return failures[0]
    timed_out = all(isinstance(error, TimedOut) for error in failures)
    return (TimedOut if timed_out else ChainError)(" ".join(str(error) for error in failures))
