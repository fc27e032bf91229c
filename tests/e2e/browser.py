"""Chromium on the signers' page, with wallets announced by EIP-6963 that sign and send for the lab's actors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eth_account import Account
from playwright.async_api import Browser, Page, async_playwright

from keeper.abi import checksum
from keeper.lab.actors import Actor
from keeper.lab.world import Lab
from tests.e2e.process import end, start

_ANNOUNCE = """
for (const [name, address] of WALLETS) {
  const provider = { on() {}, request: ({ method, params }) => window.walletAnswers(address, method, params ?? []) };
  const info = { uuid: address, name, icon: "data:,", rdns: "test.wallet" };
  const announce = () =>
    dispatchEvent(new CustomEvent("eip6963:announceProvider", { detail: Object.freeze({ info, provider }) }));
  addEventListener("eip6963:requestProvider", announce);
  announce();
}
"""


@dataclass
class Wallets:
    """What stands behind the wallets: keys, the chain, and what they were asked; `forger` signs instead where set."""

    lab: Lab
    actors: dict[str, Actor]
    asked: list[tuple[str, Any]] = field(default_factory=list)
    forger: Actor | None = None

    async def answer(self, address: str, method: str, params: list[Any]) -> Any:
        """EIP-1193, as far as the page uses it."""
        self.asked.append((method, params))
        actor = self.actors[address]
        match method:
            case "eth_requestAccounts":
                return [address]
            case "eth_chainId":
                return hex(self.lab.world.chain_id)
            case "eth_signTypedData_v4":
                assert params[0] == address
                key = (self.forger or actor).key
                return "0x" + Account.sign_typed_data(key, full_message=json.loads(params[1])).signature.hex()
            case "eth_sendTransaction":
                rpc = self.lab.node.rpc
                tx = {
                    **{name: value for name, value in params[0].items() if name != "from"},
                    "chainId": self.lab.world.chain_id,
                    "gas": 1_000_000,
                    "maxFeePerGas": 100 * 10**9,
                    "maxPriorityFeePerGas": 10**9,
                    "nonce": int(await rpc.request("eth_getTransactionCount", address, "latest"), 16),
                }
                raw = Account.sign_transaction(tx, actor.key).raw_transaction
                return await rpc.request("eth_sendRawTransaction", "0x" + raw.hex())
        raise AssertionError(f"the page asked a wallet for {method}")


@asynccontextmanager
async def served(folder: Path, *options: str) -> AsyncIterator[dict[str, Any]]:
    """`keeper pause page` in a folder; the document it prints."""
    process = await start(folder, "pause", "page", "--json", *options, log=folder / "page.log")
    try:
        assert process.stdout is not None
        lines = b""
        while not lines.rstrip().endswith(b"}"):
            line = await process.stdout.readline()
            assert line, (folder / "page.log").read_text()
            lines += line
        yield json.loads(lines)
    finally:
        await end(process)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A headless browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield browser
        await browser.close()


@asynccontextmanager
async def visit(
    browser: Browser, url: str, lab: Lab, people: Sequence[Actor] = (), **options: Any
) -> AsyncIterator[tuple[Page, Wallets]]:
    """The page with a wallet for each of these people; no script of it may fail."""
    actors = {checksum(who.address): who for who in people}
    wallets = Wallets(lab, actors)
    context = await browser.new_context(**options)
    page = await context.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    await page.expose_function("walletAnswers", wallets.answer)
    pairs = json.dumps([[who.name, address] for address, who in actors.items()])
    await page.add_init_script(_ANNOUNCE.replace("WALLETS", pairs))
    await page.goto(url)
    try:
        yield page, wallets
        assert said == []
    finally:
        await context.close()
