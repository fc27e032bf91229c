from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from keeper.lab.conformance import CHECKS, Stage, staged
from tests.protocols.conformance_subjects import SUBJECTS


@pytest.fixture(scope="module", params=SUBJECTS)
async def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stage]:
    """A protocol on a chain of its own, and a keeper set up for it."""
    async with staged(SUBJECTS[request.param](), tmp_path_factory.mktemp("stage")) as opened:
        yield opened


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_an_adapter_conforms(stage: Stage, check: Callable[[Stage], Awaitable[None]]) -> None:
    """The protocol's own contracts agree with what the check's name says of the adapter."""
    await stage.hold(check)
