"""What is believed: with a quorum of q, what q providers say alike, or all that any of q tells.

Fewer than q answers are an error, never a smaller quorum. Where answers differ everybody is asked: a strict majority
of at least q decides, and whoever contradicts it about a fixed block lied. So q − 1 liars are never believed; to go on
in spite of them takes q others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import eq
from typing import Final, TypeVar

from keeper.chain.pool import Answers, Pool, Work, merged
from keeper.chain.rpc import Rpc
from keeper.chain.wire import Lacking, failed_execution
from keeper.errors import ChainError, NoQuorum, RpcError

T = TypeVar("T")
Camps = Sequence[Answers[T]]  # answers that are alike, the largest camp first

PATIENCE_S: Final = (
    0.05,
    0.1,
    0.2,
    0.4,
    0.8,
    1.6,
)  # for a provider that hears of a block later than the others
_OLD_NEWS_S: Final = 600.0  # a provider whose logs differ is noted again after this


async def believe(
    pool: Pool, work: Work[T], *, pinned: bool = True, alike: Callable[[T, T], bool] = eq
) -> list[T]:
    """What a quorum of providers say alike: at least so many answers, the first one to be taken.

    Raises `NoQuorum` when fewer answer, and when they differ and no strict majority of at least the quorum decides. A
    `pinned` question, about a fixed block, has one true answer, and whoever gives another is dropped; any other may be
    answered differently by who hears of a block later, and is asked again for a while.
    """
    waits_s = iter(() if pinned else PATIENCE_S)
    while True:
        answers = await _answers(pool, work, alike, (RpcError, Lacking))
        camps = _camps(answers, alike)
        if pinned:
            _judge(pool, camps)
        if _decisive(pool, camps):
            return [answer for _, answer in camps[0]]
        wait_s = next(waits_s, None)
        if wait_s is None:
            told = "; ".join(" and ".join(provider.label for provider, _ in camp) for camp in camps)
            raise NoQuorum(
                f"{len(answers)} providers disagree, and no majority of at least {pool.quorum} agrees: {told}. "
                "Trust none."
            )
        await pool.sleep(wait_s)


async def union(pool: Pool, work: Work[Sequence[T]], *, pinned: bool) -> list[T]:
    """Everything that any of a quorum of providers lists, in no order: what one leaves out another tells.

    Where they differ everybody is asked and the difference is noted. Raises `NoQuorum` when too few answer.
    """
    answers = await _answers(pool, work, _same_items, (Lacking,))
    listed = dict.fromkeys(item for _, answer in answers for item in answer)
    now_s = pool.clock()
    for provider, answer in answers:
        missing = len(listed) - len(answer)
        if missing and now_s - provider.differed_at_s >= _OLD_NEWS_S:
            provider.differed_at_s = now_s
            pool.note("logs_differ", provider.label, f"{missing} of {len(listed)} logs are missing.")
    if pinned:
        _judge(pool, _camps(answers, _same_items))
    return list(listed)


async def tell(pool: Pool, work: Work[T]) -> T:
    """Let a quorum of providers do `work` and return the first success, so that no single one can swallow it.

    Raises like `Pool.run` with `insist` when nobody does it.
    """
    done, failures = await pool.run_each(work, pool.quorum)
    if not done:
        raise merged(list(failures.values()))
    return done[0][1]


async def _answers(
    pool: Pool, work: Work[T], alike: Callable[[T, T], bool], patient_with: tuple[type[ChainError], ...]
) -> Answers[T]:
    """The answers of a quorum of providers if they are alike, else of all that answer."""

    async def patiently(rpc: Rpc) -> T:
        for wait_s in PATIENCE_S:
            try:
                return await work(rpc)
            except patient_with as error:
                if isinstance(error, RpcError) and failed_execution(error):
                    raise
            await pool.sleep(wait_s)
        return await work(rpc)

    answers, failures = await pool.run_each(patiently, pool.quorum, alike)
    if len(answers) < pool.quorum:
        cause = merged(list(failures.values()))
        raise NoQuorum(
            f"{len(answers)} of the {pool.quorum} providers that must agree answered: {cause}",
            lacked=all(isinstance(error, RpcError | Lacking) for error in failures.values()),
        ) from cause
    for provider, error in failures.items():
        if isinstance(error, RpcError | Lacking):
            # what others could do it could not, patiently asked: it lags, or is on a fork
            provider.rest(error, pool.clock())
    return answers


def _same_items(one: Sequence[T], other: Sequence[T]) -> bool:
    return set(one) == set(other)


def _camps(answers: Answers[T], alike: Callable[[T, T], bool]) -> Camps[T]:
    camps: list[Answers[T]] = []
    for one in answers:
        for camp in camps:
            if alike(camp[0][1], one[1]):
                camp.append(one)
                break
        else:
            camps.append([one])
    return sorted(camps, key=len, reverse=True)


def _decisive(pool: Pool, camps: Camps[T]) -> bool:
    """Whether a strict majority of at least the quorum says one thing."""
    return len(camps[0]) >= pool.quorum and 2 * len(camps[0]) > sum(map(len, camps))


def _judge(pool: Pool, camps: Camps[T]) -> None:
    """About a fixed block there is one truth: where a decisive majority tells it, all others lied."""
    if not _decisive(pool, camps):
        return
    for camp in camps[1:]:
        for provider, _ in camp:
            pool.condemn(provider, f"it lied: {len(camps[0])} others contradict it about one block.")
