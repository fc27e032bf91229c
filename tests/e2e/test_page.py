"""The signers' page in a real browser: a keeper stopped and restarted by wallets, and everything that must not work."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Browser, Page, expect

from keeper.abi import checksum
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.world import Lab, open_lab
from tests.conftest import OpenLab
from tests.e2e.browser import chromium, served, visit
from tests.e2e.process import daemon, keeper, until

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


async def picture(page: Page, name: str, part: str = "header") -> None:
    """A screenshot for the documentation, on demand."""
    if os.environ.get("KEEPER_SCREENSHOTS"):
        IMAGES.mkdir(exist_ok=True)
        await page.locator(part).evaluate("part => { document.activeElement.blur(); part.scrollIntoView(); }")
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


def scope(page: Page, name: str = "global") -> Any:
    """The card of a scope."""
    return page.locator(f'[data-scope="{name}"]')


async def test_three_signers_stop_and_restart_a_running_keeper(
    rigged: tuple[Lab, Rig], browser: Browser
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
        shown = await page.locator("#hashes .hash").evaluate_all(
            "found => found.map(one => one.dataset.hash)"
        )
        name = (await page.locator("#proposal .hint").first.inner_text()).split(" ")[0]
        document = (await keeper(rig.folder, "pause", "show", name, "--json")).document
        assert shown == [document["hashes"][which]["hex"] for which in ("domain", "message", "safe_tx")]
        assert document["signed"] == [] and len(document["missing"]) == 3
        await sign(first.name)
        await picture(page, "page-proposal", "#open")
        await sign(second.name)
        await connect(page, third.name)
        await page.locator("#execute").click()
        await expect(page.locator("#said")).to_contain_text(
            "everything is paused without a scheduled restart"
        )
        await expect(scope(page)).to_contain_text("PAUSED")
        assert running.running

        async def booked() -> bool:
            listed = await keeper(rig.folder, "ledger", "list", "--kind", "pause", "--json")
            bodies = [entry["body"] for entry in listed.document["entries"]]
            assert {body["scope"] for body in bodies} <= {"global"}
            return "chain" in {body["cause"] for body in bodies}

        await until(booked, "the daemon to book the pause")

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


def proposal(rig: Rig, lab: Lab, note: str, data: str, to: str) -> str:
    """A proposal as somebody might send it."""
    zero = "0x" + 40 * "0"
    gas = dict.fromkeys(("safeTxGas", "baseGas", "gasPrice"), "0")
    tx = {
        "to": to,
        "value": "0",
        "data": data,
        "operation": "0",
        **gas,
        "gasToken": zero,
        "refundReceiver": zero,
    }
    document = {
        "version": 1,
        "chain_id": str(lab.world.chain_id),
        "safe": checksum(lab.world.safe.address),
        "transaction": {**tx, "nonce": "900"},
        "signatures": {},
        "note": note,
    }
    return json.dumps(document)


async def load(page: Page, name: str, text: str) -> None:
    """Choose a file in the page."""
    file: Any = {"name": name, "mimeType": "application/json", "buffer": text.encode()}
    await page.locator("#load").set_input_files(file)
    await expect(page.locator("#said")).to_contain_text("Loaded")


async def test_red_flags_take_a_second_step_and_hostile_text_stays_text(
    rigged: tuple[Lab, Rig], browser: Browser
) -> None:
    """An unknown call is not signable before every flag is meant; a note in HTML is shown as it is written."""
    lab, rig = rigged
    owner = lab.world.cast.owners[0]
    note = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    async with (
        served(rig.folder) as page_of,
        visit(browser, page_of["url"], lab, [owner], color_scheme="dark", **DESK) as (page, wallets),
    ):
        await connect(page, owner.name)
        await load(page, "odd.safetx.json", proposal(rig, lab, note, "0x12345678", "0x" + 40 * "1"))
        await expect(page.locator("#its-note")).to_have_text(note)
        assert await page.locator("img, script:not([src])").count() == 0
        assert await page.title() == "Keeper: pause"
        await expect(page.locator(".flags").first).to_contain_text("2 RED FLAGS")
        await picture(page, "page-red-flags", "#open")
        await page.locator("#sign").click(force=True)
        assert "eth_signTypedData_v4" not in [method for method, _ in wallets.asked]
        url, token = page_of["url"].split("#")
        async with aiohttp.ClientSession(headers={"X-Keeper-Token": token}) as session:
            shown = await session.post(f"{url}api/show", json={"file": "odd.safetx.json"})
            seen = {"hash": (await shown.json())["document"]["hashes"]["safe_tx"]["hex"], "meant": []}
            signed = {
                "file": "odd.safetx.json",
                **seen,
                "owner": checksum(owner.address),
                "signature": "0x00",
            }
            refused = await session.post(f"{url}api/sign", json=signed)
            assert refused.status == 422 and "Nothing was signed" in (await refused.json())["error"]
        await page.locator("#meant").check()
        await page.locator("#sign").click()
        await expect(page.locator("#said")).to_contain_text("The signature of")


async def test_a_signature_of_somebody_else_is_refused(rigged: tuple[Lab, Rig], browser: Browser) -> None:
    """What does not recover to the connected account is not added, whatever the wallet says."""
    lab, rig = rigged
    first, second = lab.world.cast.owners[:2]
    async with served(rig.folder) as page_of, visit(browser, page_of["url"], lab, [first]) as (page, wallets):
        await connect(page, first.name)
        await propose(page, "slippage", _0="100")
        wallets.forger = second
        await page.locator("#sign").click()
        await expect(page.locator("#wrong")).to_contain_text("That signature is by")
        await expect(page.locator(".people .yes")).to_have_count(0)


async def test_signing_works_with_a_dead_node_by_keyboard_on_a_phone(
    rigged: tuple[Lab, Rig], browser: Browser, tmp_path: Path
) -> None:
    """Without a chain the state is not known, what was not checked is said, and Tab and Enter alone sign the file."""
    lab, rig = rigged
    owner = lab.world.cast.owners[0]
    for name in ("keeper.toml", ".env"):
        text = (rig.folder / name).read_text().replace(lab.anvil.ws_url, "http://127.0.0.1:9")
        (tmp_path / name).write_text(text)
    words = ("--nonce", "0", "--offline", "--out", "stop.safetx.json")
    assert (await keeper(tmp_path, "pause", "build", "pause", "global", "DRILL", *words)).code == 0
    async with (
        served(tmp_path) as page_of,
        visit(browser, page_of["url"], lab, [owner], color_scheme="dark", **PHONE) as (page, _),
    ):

        async def press(target: str) -> None:
            for _ in range(60):
                await page.keyboard.press("Tab")
                if await page.evaluate("document.activeElement.id") == target:
                    shown = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                    assert shown == "solid", f"the focus on {target} cannot be seen"
                    await page.keyboard.press("Enter")
                    return
            raise AssertionError(f"Tab never reaches {target}")

        await expect(page.locator("#warning")).to_contain_text("THE STATE IS NOT KNOWN")
        await expect(page.locator(".scope").first).to_contain_text("NOT KNOWN")
        await picture(page, "page-phone")
        await press("wallet-0")
        await expect(page.locator("#account")).to_be_visible()
        await press("file-0")
        await expect(page.locator(".amber").first).to_contain_text("Not checked")
        assert await page.evaluate("document.activeElement.id") == "open-title"
        await press("sign")
        await expect(page.locator("#said")).to_contain_text("The signature of")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
    signed = json.loads((tmp_path / "stop.safetx.json").read_text())["signatures"]
    assert list(signed) == [checksum(owner.address)]


async def test_a_guardian_stops_alone_and_signs_a_stop(
    fresh_lab: OpenLab, browser: Browser, tmp_path: Path
) -> None:
    """Its wallet's transaction is proved by the guard's state; its signed message is relayed by the command line."""
    lab = await fresh_lab()
    rig = await make_rig(lab, tmp_path)
    guardian, sender = lab.world.cast.guardians[0], lab.world.cast.liquidator
    async with (
        served(rig.folder) as page_of,
        visit(browser, page_of["url"], lab, [guardian, sender], **DESK) as (page, _),
    ):
        await expect(scope(page)).to_contain_text("running")
        await connect(page, sender.name)
        await page.locator("#stop-send").click()
        await expect(page.locator("#wrong")).to_contain_text("Nothing was sent")
        await connect(page, guardian.name)
        await page.locator("#stop-sign").click()
        await expect(page.locator("#said")).to_contain_text("it stops nothing before somebody relays it")
        async with page.expect_download() as download:
            await page.locator("#stop-save").click()
        file = (await download.value).suggested_filename
        saved = await (await download.value).path()
        assert (rig.folder / file).read_text() == saved.read_text()
        key = {"KEEPER_SENDER_PRIVATE_KEY": "0x" + sender.key.hex()}
        relayed = await keeper(rig.folder, "pause", "guardian", "--relay", file, env=key)
        assert relayed.code == 0, relayed.err
        await expect(scope(page)).to_contain_text("PAUSED")
        await page.locator("#stop-send").click()
        await expect(page.locator("#said")).to_contain_text("everything is paused")


async def test_only_this_page_may_call(rigged: tuple[Lab, Rig]) -> None:
    """Another host's name, another origin and a missing token are refused, and so is a path for a file."""
    _, rig = rigged
    async with served(rig.folder, "--offline") as page_of, aiohttp.ClientSession() as session:
        url, token = page_of["url"].split("#")
        mine = {"X-Keeper-Token": token}
        fine = await session.post(f"{url}api/state", json={}, headers=mine)
        assert fine.status == 200
        for headers in (
            {**mine, "Host": "evil.example"},
            {**mine, "Host": "evil.example:80"},
            {**mine, "Origin": "http://evil.example"},
            {**mine, "Origin": "null"},
            {"X-Keeper-Token": "guess"},
            {},
        ):
            for call in ("state", "build"):
                refused = await session.post(f"{url}api/{call}", json={}, headers=headers)
                assert refused.status == 403, headers
        host = url.removeprefix("http://").rstrip("/")
        reader, writer = await asyncio.open_connection(*host.split(":"))
        head = f"POST /api/state HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\nX-Keeper-Token: "
        writer.write(head.encode() + b"\xff\r\n\r\n{}")
        assert b" 403 " in await reader.readline(), "a token of any bytes"
        writer.close()
        foreign = await session.get(url, headers={"Host": "evil.example"})
        assert foreign.status == 403
        plain = await session.get(url)
        assert "default-src 'none'" in plain.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in plain.headers
        outside = await session.post(f"{url}api/show", json={"file": "../keeper.toml"}, headers=mine)
        assert outside.status == 422 and "no file of this folder" in (await outside.json())["error"]
