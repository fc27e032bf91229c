"""The toy perp is held to its contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from subject import toy

from keeper.lab.conformance import CHECKS, Stage, staged


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """The toy exchange, and a keeper set up for it."""
    async with staged(toy(), tmp_path_factory.mktemp("stage")) as opened:
        yield opened


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_toy_perp_conforms(stage: Stage, check: Callable[[Stage], Awaitable[None]]) -> None:
    """What the check's docstring says."""
    await stage.hold(check)
