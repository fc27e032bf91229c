"""The signers' page in a real browser: a keeper stopped and restarted by wallets, and everything that must not work."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.world import Lab, open_lab
from tests.e2e.browser import chromium, served, visit
from tests.e2e.process import daemon, keeper

IMAGES = Path(__file__).parents[2] / "docs" / "images"
PHONE = {"viewport": {"width": 360, "height": 780}}
DESK = {"viewport": {"width": 800, "height": 900}}
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One browser for all."""
    async with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
async def rigged(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Lab, Rig]]:
    """A world with a keeper set up."""
    async with await open_lab() as lab:
        yield lab, await make_rig(lab, tmp_path_factory.mktemp("rig"), Terms(unpause_delay_s=600))


async def picture(page: Page, name: str) -> None:
    """A screenshot for the documentation, on demand."""
    if os.environ.get("KEEPER_SCREENSHOTS"):
        IMAGES.mkdir(exist_ok=True)
        await page.evaluate("document.activeElement.blur(); document.documentElement.scrollIntoView()")
        await page.screenshot(path=IMAGES / f"{name}.png", full_page=False)


async def connect(page: Page, name: str) -> None:
    """Choose a wallet."""
    await page.get_by_role("button", name=f"Connect {name}", exact=True).click()
    await expect(page.locator("#said")).to_contain_text("Connected 0x")


async def propose(page: Page, action: str, **words: str) -> None:
    """Build a transaction in the form."""
    if not await page.locator("#new[open]").count():
        await page.locator("#new > summary").click()
    await page.locator("#action").select_option(action)
    for at, word in words.items():
        field = page.locator(f"#word-{at[1:]}")
        if await field.evaluate("element => element.tagName") == "SELECT":
            await field.select_option(word)
        else:
            await field.fill(word)
    await page.locator("#build-it").click()
    await expect(page.locator("#said")).to_contain_text("Proposed in")


async def proposed_file(folder: Path) -> dict[str, Any]:
    """The newest proposal."""
    newest = max(folder.glob("*.safetx.json"), key=lambda path: path.stat().st_mtime_ns)
    return dict(json.loads(newest.read_text()))


def scope(page: Page, name: str = "global") -> Any:
    """The card of a scope."""
    return page.locator(f'[data-scope="{name}"]')


async def test_three_signers_stop_and_restart_a_running_keeper(
    rigged: tuple[Lab, Rig], browser: Browser, tmp_path: Path
) -> None:
    """Two wallets sign, a third executes, the daemon books the pause; scheduled, vetoed, scheduled again, restarted."""
    lab, rig = rigged
    cast = lab.world.cast
    first, second, third = cast.owners
    people = [*cast.owners, cast.guardians[0]]
    async with (
        daemon(rig.folder, log="daemon.log") as running,
        served(rig.folder) as page_of,
        visit(browser, page_of["url"], lab, people, color_scheme="dark", **DESK) as (page, wallets),
    ):

        async def sign(name: str) -> None:
            await connect(page, name)
            await page.locator("#sign").click()
            await expect(page.locator("#said")).to_contain_text("The signature of")

        async def through_safe(action: str, proof: str, **words: str) -> None:
            await propose(page, action, **words)
            await sign(first.name)
            await expect(page.locator("#execute")).to_have_attribute("aria-disabled", "true")
            await sign(second.name)
            await connect(page, third.name)
            await page.locator("#try").click()
            await expect(page.locator("#tried")).to_contain_text("It would work now.")
            await page.locator("#execute").click()
            await expect(page.locator("#said")).to_contain_text(proof)

        await expect(scope(page)).to_contain_text("running")
        await propose(page, "pause", _0="global", _1="EXPLOIT")
        await expect(page.locator(".does")).to_contain_text("STOPS EVERYTHING at once. Reason: EXPLOIT.")
        made = await proposed_file(rig.folder)
        shown = await page.locator("#hashes .hash").evaluate_all(
            "found => found.map(one => one.dataset.hash)"
        )
        name = (await page.locator("#proposal .hint").first.inner_text()).split(" ")[0]
        document = (await keeper(rig.folder, "pause", "show", name, "--json")).document
        assert shown == [document["hashes"][which]["hex"] for which in ("domain", "message", "safe_tx")]
        assert made["signatures"] == {}
        await sign(first.name)
        await picture(page, "page-proposal")
        await sign(second.name)
        await connect(page, third.name)
        await page.locator("#execute").click()
        await expect(page.locator("#said")).to_contain_text(
            "everything is paused without a scheduled restart"
        )
        await expect(scope(page)).to_contain_text("PAUSED")
        await running.logs("paused")
        booked = (await keeper(rig.folder, "ledger", "list", "--kind", "pause", "--json")).document
        assert [entry["kind"] for entry in booked["entries"]] == ["pause"]

        await through_safe("schedule", "everything has a scheduled restart", _0="global")
        await expect(scope(page).locator(".clock")).to_contain_text("Restart possible in 0:0")
        before = await scope(page).locator(".clock").inner_text()
        await expect(scope(page).locator(".clock")).not_to_have_text(before)
        await picture(page, "page-scheduled")
        await connect(page, cast.guardians[0].name)
        await page.locator("#unpause-global").click()
        await expect(page.locator("#wrong")).to_contain_text("Nothing was sent: it would revert with")
        await page.locator("#veto-global").click()
        await expect(page.locator("#said")).to_contain_text("everything has no scheduled restart")
        await expect(scope(page).locator(".clock")).to_have_count(0)

        await through_safe("schedule", "everything has a scheduled restart", _0="global")
        await lab.node.advance(601)
        await expect(scope(page).locator(".clock")).to_contain_text("Restart is due")
        await page.locator("#unpause-global").click()
        await expect(page.locator("#said")).to_contain_text("everything runs")
        await expect(scope(page)).to_contain_text("running")
        assert {method for method, _ in wallets.asked} == {
            "eth_requestAccounts",
            "eth_chainId",
            "eth_signTypedData_v4",
            "eth_sendTransaction",
        }
