"""`keeper pause` as signers type it: from a proposal to a stopped keeper, with exit codes, and no key in any output."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keeper.abi import checksum
from keeper.lab.actors import Actor
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.world import Lab, open_lab
from keeper.types import ZERO_ADDRESS
from tests.e2e.process import Ran, keeper


@pytest.fixture(scope="module")
async def rigged(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Lab, Rig]]:
    """A world with a keeper set up."""
    async with await open_lab() as lab:
        yield lab, await make_rig(lab, tmp_path_factory.mktemp("rig"), Terms(unpause_delay_s=1))


async def run(folder: Path, *words: str, **keys: Actor) -> Ran:
    """A command with keys in its environment, none of which may appear in what it prints."""
    env = {f"KEEPER_{role.upper()}_PRIVATE_KEY": "0x" + who.key.hex() for role, who in keys.items()}
    ran = await keeper(folder, "pause", *words, env=env)
    for who in keys.values():
        assert who.key.hex() not in (ran.out + ran.err).lower()
    return ran


async def test_signers_stop_and_restart_the_keeper(rigged: tuple[Lab, Rig]) -> None:
    """Built, shown, signed twice, executed; a guardian vetoes the restart; scheduled again, anybody restarts."""
    lab, rig = rigged
    folder, cast = rig.folder, lab.world.cast

    async def through_safe(*words: str) -> Ran:
        out = f"{words[0]}-{len(list(folder.iterdir()))}.safetx.json"
        built = await run(folder, *words, "--out", out)
        assert built.code == 0, built.err
        for owner in cast.owners[:2]:
            signed = await run(folder, "sign", out, signer=owner)
            assert signed.code == 0, signed.err
        return await run(folder, "exec", out, "--json", sender=cast.liquidator)

    async def paused() -> bool:
        status = await keeper(folder, "pause", "status", "--json")
        return bool(status.document["scopes"][0]["paused"])

    out = "now.safetx.json"
    assert (await run(folder, "build", "pause", "global", "DRILL", "--out", out)).code == 0
    shown = await run(folder, "show", out)
    assert shown.code == 0, shown.err
    assert "STOPS EVERYTHING at once" in shown.out and "Ledger  0x " in shown.out
    assert (await run(folder, "simulate", out)).code == 0
    unsigned = await run(folder, "exec", out, sender=cast.liquidator)
    assert unsigned.code == 1 and "0 of 2 signatures are there" in unsigned.err
    assert not await paused()
    ran = await through_safe("build", "pause", "global", "DRILL")
    assert ran.code == 0 and ran.document["proved"], ran.err
    assert await paused()
    assert (await through_safe("schedule", "global")).code == 0
    vetoed = await run(folder, "veto", "global", "--guardian", "--json", guardian=cast.guardians[0])
    assert vetoed.code == 0, vetoed.err
    early = await run(folder, "unpause", "global", sender=cast.liquidator)
    assert early.code == 1 and "UnpauseNotScheduled" in early.err
    assert (await through_safe("schedule", "global")).code == 0
    await lab.node.advance(2)
    restarted = await run(folder, "unpause", "global", sender=cast.liquidator)
    assert restarted.code == 0 and "proved: everything runs" in restarted.out
    assert not await paused()


async def test_a_red_flag_is_an_exit_code(rigged: tuple[Lab, Rig]) -> None:
    """`show` ends with 1, in words and in JSON; `sign` refuses; --despite-red-flags signs."""
    lab, rig = rigged
    module = checksum(lab.world.cast.lender.address)
    built = await run(rig.folder, "build", "threshold", "1", "--out", "bad.safetx.json", "--nonce", "900")
    assert built.code == 0
    shown = await run(rig.folder, "show", "bad.safetx.json")
    assert shown.code == 1 and shown.out.count("RED FLAG") == 2 and module not in shown.out
    document = (await run(rig.folder, "show", "bad.safetx.json", "--json")).document
    assert {flag["name"] for flag in document["red_flags"]} == {"threshold_change", "nonce_far_ahead"}
    owner = lab.world.cast.owners[0]
    refused = await run(rig.folder, "sign", "bad.safetx.json", signer=owner)
    assert refused.code == 1 and "Nothing was signed: " in refused.err
    assert json.loads((rig.folder / "bad.safetx.json").read_text())["signatures"] == {}
    meant = await run(rig.folder, "sign", "bad.safetx.json", "--despite-red-flags", signer=owner)
    assert meant.code == 0


async def test_mistakes_are_one_sentence_and_a_code(rigged: tuple[Lab, Rig], tmp_path: Path) -> None:
    """Arguments and files end with 2, spoilt proposals with 1, a chain that is away with 3."""
    lab, rig = rigged
    for code, words, sentence in [
        (2, ("build", "explode"), "explode is nothing to build"),
        (2, ("build", "pause", "elsewhere", "DRILL"), "elsewhere is no pause scope"),
        (2, ("show", "nowhere.safetx.json"), "cannot be read"),
        (1, ("show", ".env"), "is not JSON"),
        (2, ("sign", "nowhere.safetx.json"), "cannot be read"),
        (2, ("guardian", "global"), "KEEPER_GUARDIAN_PRIVATE_KEY is not set"),
        (2, ("guardian", "--relay", "a.pause.json", "--hand-over", "a.pause.json"), "give one of them"),
    ]:
        ran = await run(rig.folder, *words)
        assert (ran.code, ran.out) == (code, ""), ran
        assert sentence in ran.err and len(ran.err.splitlines()) == 1, ran.err
    for name in ("keeper.toml", ".env"):
        text = (rig.folder / name).read_text().replace(lab.anvil.ws_url, "http://127.0.0.1:9")
        (tmp_path / name).write_text(text)
    offline = ("build", "pause", "global", "DRILL", "--nonce", "3", "--offline", "--out", "it.safetx.json")
    assert (await run(tmp_path, *offline)).code == 0
    shown = await run(tmp_path, "show", "it.safetx.json")
    assert shown.code == 0 and "NOT CHECKED" in shown.out
    away = await run(tmp_path, "exec", "it.safetx.json", sender=lab.world.cast.liquidator)
    assert away.code == 3 and "This needs the chain" in away.err


async def test_a_drill_is_timed_and_sends_nothing(rigged: tuple[Lab, Rig]) -> None:
    """Every step with its milliseconds; who is no guardian is told so by an exit code."""
    lab, rig = rigged
    before = await lab.node.head()
    guardian = checksum(lab.world.cast.guardians[0].address)
    ran = await run(rig.folder, "drill", "--guardian", guardian)
    assert ran.code == 0, ran.err
    assert ran.out.count(" ms  ") == 6 and "on a fork of the chain" in ran.out
    assert (await run(rig.folder, "drill", "--guardian", checksum(ZERO_ADDRESS))).code == 1
    assert await lab.node.head() == before
