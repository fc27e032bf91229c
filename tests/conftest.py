"""Fixtures every suite shares: a running world, isolated test by test, and worlds of one's own."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import eth_account  # noqa: F401 - before it is undone what loading it does
import pytest

from keeper import nesting
from keeper.lab.world import BASE_FEE_WEI, Lab, open_lab

nesting.restore()

OpenLab = Callable[..., Awaitable[Lab]]
Count = Callable[[str, int], None]
_QUICK = ("unit", "test_architecture.py", "test_docs.py")
_BROWSER = shutil.which("chromium")
collect_ignore = [] if _BROWSER else ["e2e/test_page.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs a chain is slow; the fast part is what people run after each change."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] not in _QUICK:
            item.add_marker("slow")


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Count:
    """Notes how many of something a long suite tried; the run's summary adds them up, and a deep run keeps them."""
    return lambda what, number: record_property(f"count {what}", number)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the passed tests counted, one line each."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, value in getattr(report, "user_properties", ()):
            if name.startswith("count "):
                counts[name.removeprefix("count ")] += int(value)
    for what, number in sorted(counts.items()):
        terminalreporter.write_line(f"COUNT {number:,} {what}")
    if not _BROWSER:
        terminalreporter.write_line(
            "MISSING chromium: the page of signers was not tested; scripts/setup, as root, installs it"
        )


@pytest.fixture(scope="module")
async def shared_lab() -> AsyncIterator[Lab]:
    """One world for all tests of a file, on a clock that ticks a second a block. Use `lab` in tests.

    For more of them anvil would write the states of thousands of blocks to disk, which takes longer than a new world.
    """
    async with await open_lab(clock="steady") as lab:
        yield lab


@pytest.fixture
async def lab(shared_lab: Lab) -> AsyncIterator[Lab]:
    """The file's world as it was built; whatever a test does to it is undone afterwards."""
    node = shared_lab.node
    snapshot = await node.snapshot()
    yield shared_lab
    await node.mine_on_demand()  # anvil must not mine what is pending while it goes back: that leaves gaps
    await node.drop_pending()
    await node.revert(snapshot)
    await node.mine_each_transaction()
    await node.steady_clock()
    await node.set_base_fee(BASE_FEE_WEI)


@pytest.fixture
async def fresh_lab() -> AsyncIterator[OpenLab]:
    """Opens worlds in processes of their own, as `open_lab` does, and closes them after the test."""
    async with AsyncExitStack() as stack:

        async def opened(*arguments: Any, **options: Any) -> Lab:
            return await stack.enter_async_context(await open_lab(*arguments, **options))

        yield opened


@pytest.fixture
async def own_lab(fresh_lab: OpenLab) -> Lab:
    """A world in a process of its own, for many tests that mine much: one for all would forget its first blocks."""
    return await fresh_lab(clock="steady")
