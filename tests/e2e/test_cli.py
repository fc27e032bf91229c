"""The command line as its users run it: documents, exit codes, a sentence for every mistake, and no secret anywhere."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from keeper.abi import checksum, load
from keeper.errors import RpcError
from keeper.fixed import WAD
from keeper.lab.actors import account, actor
from keeper.lab.anvil import Anvil, free_port
from keeper.lab.chainlink import set_price
from keeper.lab.judge import judge
from keeper.lab.positions import PositionSpec, account_data, open_position, open_positions
from keeper.lab.rig import Rig, Terms, make_rig, write_configuration
from keeper.lab.safe import execute_tx
from keeper.lab.signer_doubles import Manners
from keeper.lab.tokens import balance_of
from keeper.lab.world import Lab, open_lab
from keeper.ledger import Booked, Ledger
from keeper.multisig.proposal import parse
from keeper.multisig.safe import InnerCall
from keeper.multisig.safe import batch as batched
from keeper.store import Store
from keeper.types import Address
from tests.conftest import OpenLab
from tests.e2e.custody import KINDS, Double, kept
from tests.e2e.process import Daemon, Ran, daemon, gateway, keeper, until

ETHER = 10**18
_E8 = 10**8
WHO = account(1)
HOLDS = 110 * WAD // 100
FALLEN = 1_750
POSITION_KEYS = {
    *(
        "protocol",
        "market",
        "account",
        "health_factor_wad",
        "collateral_usd",
        "debt_usd",
        "liquidation_price",
    ),
    *("liquidatable", "bad_debt_usd", "bad_debt"),
}


@pytest.fixture(scope="module")
async def rigged(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Lab, Rig]]:
    """A world with a keeper set up and one position on each market, of which the one on 3.0 can be liquidated."""
    async with await open_lab() as lab:
        rig = await make_rig(lab, tmp_path_factory.mktemp("rig"), Terms(max_head_age_s=3_600))
        supply = {"WETH": 10 * ETHER}
        unsafe = PositionSpec(WHO, supply, {"USDC": 1}, HOLDS)
        await open_position(lab.node, lab.world.cast, lab.world.aave["3.0"], unsafe)
        safe = PositionSpec(account(2), supply, {"DAI": 1}, 2 * WAD)
        await open_position(lab.node, lab.world.cast, lab.world.aave["3.6"], safe)
        await set_price(lab.node, lab.world.feeds["WETH"], FALLEN * _E8)
        yield lab, rig


def _copy(rig: Rig, folder: Path, *changes: tuple[str, str]) -> Path:
    """The keeper's files in another folder, with pieces of keeper.toml replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(rig.folder / ".env", folder / ".env")
    text = rig.config.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (folder / "keeper.toml").write_text(text)
    return folder


def _booked(folder: Path, *kinds: str) -> list[Booked]:
    """Entries of these kinds in a folder's record, oldest first."""
    with Store.open(f"sqlite:///{folder / 'keeper.db'}", read_only=True) as store:
        return Ledger(store).entries(None, kind=kinds)[::-1]


async def _treasury_raw(lab: Lab) -> int:
    return await balance_of(lab.node, lab.world.tokens["USDC"], lab.world.cast.treasury.address)


async def _nonce(lab: Lab) -> int:
    operator = checksum(lab.world.cast.operator.address)
    return int(await lab.node.rpc.request("eth_getTransactionCount", operator, "pending"), 16)


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_every_document_is_alone_on_stdout(rigged: tuple[Lab, Rig], tmp_path: Path) -> None:
    """With --json stdout is one JSON document, even when a dead node has to be logged about; stderr has only logs."""
    lab, rig = rigged
    dead = f"http://127.0.0.1:{free_port()}"
    folder = _copy(rig, tmp_path, ("rpc_urls = [", f'rpc_urls = ["{dead}", '))
    who = checksum(WHO)
    commands = ("doctor", "scan", f"explain {who}", "pause status", "scan --liquidatable --limit 1")
    ran = await asyncio.gather(*(keeper(folder, *words.split(), "--json") for words in commands))
    for words, one in zip(commands, ran, strict=True):
        assert one.code == 0, (words, one.err)
        assert one.document["schema"] == 1
        logged = [json.loads(line) for line in one.err.splitlines()]
        assert logged and {each["event"] for each in logged} == {"provider_failed"}, words
    doctor, scan, explain, pause, first = (one.document for one in ran)
    assert doctor["ok"] and {"name", "ok", "required", "detail", "fix"} == set(doctor["checks"][0])
    assert [scope["scope"] for scope in pause["scopes"]] == ["global", "aave-3-0", "aave-3-6"]
    assert not any(scope["paused"] for scope in pause["scopes"]) and not pause["halt_file_present"]
    assert explain["account"] == who and explain["history"] == []
    stages = {each["protocol"]: each["stages"][-1] for each in explain["protocols"]}
    assert (stages["aave-3-0"]["stage"], stages["aave-3-0"]["answer"]) == ("clear", "would_send")
    assert stages["aave-3-6"]["answer"] == "no_debt"
    [aave] = [each for each in explain["protocols"] if each["protocol"] == "aave-3-0"]
    weighed = [each for each in aave["stages"] if each["stage"] == "weigh"]
    nets = [int(each["numbers"]["net_raw"]) for each in weighed]
    assert [each["answer"] for each in weighed].index("chosen") == 0 and nets == sorted(nets, reverse=True)
    behind = [Decimal(each["numbers"]["behind"]).scaleb(6) for each in weighed[1:]]
    assert behind == [nets[0] - net for net in nets[1:]]
    await _check_scan(lab, scan)
    assert [row["account"] for row in first["positions"]] == [who]


async def _check_scan(lab: Lab, scan: dict[str, Any]) -> None:
    assert set(scan) == {"schema", "block", "positions", "refused"} and set(scan["block"]) == {
        "number",
        "hash",
    }
    head = await lab.node.head()
    assert scan["block"] == {"number": head.number, "hash": "0x" + head.hash.hex()}
    unsafe, safe = scan["positions"]
    assert set(unsafe) == POSITION_KEYS
    assert (unsafe["protocol"], unsafe["account"], unsafe["liquidatable"]) == (
        "aave-3-0",
        checksum(WHO),
        True,
    )
    assert (safe["protocol"], safe["account"], safe["liquidatable"]) == (
        "aave-3-6",
        checksum(account(2)),
        False,
    )
    for row, market, who in ((unsafe, "3.0", WHO), (safe, "3.6", account(2))):
        [data] = await account_data(lab.node, lab.world.aave[market], [who])
        assert row["collateral_usd"] == f"{data.collateral_base / _E8:.8f}"
        assert int(row["debt_usd"].replace(".", "")) == pytest.approx(data.debt_base, abs=200)
        assert isinstance(row["health_factor_wad"], str)
        assert int(row["health_factor_wad"]) == pytest.approx(data.health_factor_wad, rel=1e-6)
        # at this price of WETH, all else equal, the health factor is 1
        assert float(row["liquidation_price"]) == pytest.approx(
            FALLEN * WAD / data.health_factor_wad, rel=1e-3
        )


@pytest.mark.slow
async def test_people_read_lines(rigged: tuple[Lab, Rig], tmp_path: Path) -> None:
    """Without --json the same commands print lines: names, reasons, a last line that sums up; never JSON or nothing."""
    folder = _copy(rigged[1], tmp_path)
    commands = ("doctor", "scan", f"explain {checksum(WHO)}", "pause status")
    doctor, scan, explain, pause = await asyncio.gather(
        *(keeper(folder, *words.split()) for words in commands)
    )
    for one in (doctor, scan, explain, pause):
        assert one.code == 0 and not one.err and not one.out.startswith("{")
    assert doctor.out.splitlines()[-1] == "ready to run"
    [row] = [line for line in scan.out.splitlines() if checksum(WHO) in line]
    assert row.split()[0] == "aave-3-0" and row.split()[-1] == "liquidatable", (
        "nothing is cut off where it is piped"
    )
    assert scan.out.splitlines()[-1].startswith("2 positions at block ")
    assert "would_send" in explain.out and "running, epoch 0" in pause.out


@pytest.mark.slow
async def test_a_dry_run_signs_nothing_and_a_run_does(rigged: tuple[Lab, Rig], tmp_path: Path) -> None:
    """--dry-run --once books what it would have sent; --once sends it; the next --once settles it."""
    lab, rig = rigged
    folder = _copy(rig, tmp_path)
    snapshot = await lab.node.snapshot()
    nothing = await keeper(folder, "ledger", "list")
    assert nothing.code == 1 and "no record" in nothing.err and not nothing.out
    dry = await keeper(folder, "run", "--dry-run", "--once")
    assert dry.code == 0 and not dry.out, dry.err
    assert await _nonce(lab) == 0
    assert (await lab.node.rpc.request("txpool_status"))["pending"] == "0x0"
    [entry] = _booked(folder, "refusal", "intent", "signed", "sent")
    assert (entry.body["stage"], entry.body["reason"], entry.account) == ("send", "dry_run", checksum(WHO))
    before_raw = await _treasury_raw(lab)
    assert (await keeper(folder, "run", "--once")).code == 0
    assert await _nonce(lab) == 1
    assert (await keeper(folder, "run", "--once")).code == 0
    [settled] = _booked(folder, "settled")
    assert int(settled.body["profit_raw"]) == await _treasury_raw(lab) - before_raw > 0
    listed, one = await asyncio.gather(
        keeper(folder, "ledger", "list", "--json"),
        keeper(folder, "ledger", "list", "--kind", "settled", "--account", checksum(WHO), "--limit", "1"),
    )
    kinds = [each["kind"] for each in listed.document["entries"]][::-1]
    assert [kind for kind in kinds if kind not in ("warning", "watched")] == [
        *("refusal", "intent", "signed", "sent"),
        "settled",
    ]
    quorum = [each for each in _booked(folder, "warning") if each.body["name"] == "quorum"]
    assert len(quorum) == 3, "each run begins with the standing warning of a quorum of one"
    assert {"seq", "at_s", "kind", "plan_id", "protocol", "account", "body", "hash"} == set(
        listed.document["entries"][0]
    )
    assert len(one.out.splitlines()) == 1 and "settled" in one.out
    await lab.node.revert(snapshot)
    await lab.node.wall_clock()


@pytest.mark.slow
async def test_deploying_from_the_command_line(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """`keeper deploy` writes [contracts] and the Safe's transactions; doctor asks for them, and is green afterwards."""
    lab = await fresh_lab()
    people = lab.world.cast
    write_configuration(lab, tmp_path, Terms(max_head_age_s=3_600))
    words = [
        "deploy",
        "--safe",
        checksum(lab.world.safe.address),
        "--treasury",
        checksum(people.treasury.address),
    ]
    for guardian in people.guardians:
        words += ["--guardian", checksum(guardian.address)]
    words += ["--unpause-delay", "60", "--json"]
    early = await keeper(tmp_path, "scan")
    assert early.code == 0, "reading needs no contracts"
    deployed = await keeper(tmp_path, *words)
    assert deployed.code == 0, deployed.err
    document = deployed.document
    assert [made["name"] for made in document["created"]] == ["PauseGuard", "Liquidator"]
    text = (tmp_path / "keeper.toml").read_text()
    assert all(document[name] in text for name in ("liquidator", "pause_guard", "safe", "treasury"))
    assert f"0x{people.deployer.key.hex()}" not in deployed.out + deployed.err + text

    before = await keeper(tmp_path, "doctor", "--json")
    assert before.code == 1 and not before.document["ok"]
    fixes = [check["fix"] for check in before.document["checks"] if check["required"] and not check["ok"]]
    assert fixes and all(checksum(lab.world.safe.address) in fix for fix in fixes)
    refused = await keeper(tmp_path, "run", "--once")
    assert refused.code == 2 and _sentence(refused)

    batch = json.loads((tmp_path / "safe-setup.json").read_text())
    assert [each["to"] for each in batch["transactions"]] == [
        each["to"] for each in document["safe_transactions"]
    ]
    calls = [
        InnerCall(Address(bytes.fromhex(each["to"][2:])), bytes.fromhex(each["data"][2:]))
        for each in batch["transactions"]
    ]
    proposed = parse((tmp_path / document["safetx"]).read_text(), document["safetx"])
    assert proposed.tx == batched(lab.world.safe.multi_send_call_only, calls, proposed.tx.nonce)
    await execute_tx(lab.node, lab.world.safe, proposed.tx)
    after, again = await asyncio.gather(keeper(tmp_path, "doctor", "--json"), keeper(tmp_path, *words))
    assert after.code == 0 and after.document["ok"]
    assert all(check["ok"] for check in after.document["checks"] if check["required"])
    assert again.code == 0 and again.document["created"] == [] and again.document["safe_transactions"] == []
    assert again.document["liquidator"] == document["liquidator"], (
        "the same code for the same Safe, the same address"
    )


# --- mistakes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong, how the command ends, and what its sentence must name."""

    change: Callable[[_Stage, Path], None]
    names: tuple[str, ...]
    code: int = 2
    words: tuple[str, ...] = ("run", "--once")
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Stage:
    """What mistakes are made with."""

    rig: Rig
    other_chain: str
    altered: Address


def _replaced(old: str, new: str) -> Callable[[_Stage, Path], None]:
    def change(_: _Stage, folder: Path) -> None:
        path = folder / "keeper.toml"
        text = path.read_text()
        assert text.count(old) == 1, old
        path.write_text(text.replace(old, new))

    return change


def _contract(name: str, other: Callable[[_Stage], Address]) -> Callable[[_Stage, Path], None]:
    """Another address in [contracts]."""

    def change(stage: _Stage, folder: Path) -> None:
        right, wrong = checksum(getattr(stage.rig, name)), checksum(other(stage))
        _replaced(f'{name} = "{right}"', f'{name} = "{wrong}"')(stage, folder)

    return change


def _without(name: str) -> Callable[[_Stage, Path], None]:
    return lambda _, folder: (folder / name).unlink()


def _nothing(_: _Stage, folder: Path) -> None:
    assert (folder / "keeper.toml").exists()


def _only_node(url: Callable[[_Stage], str]) -> Callable[[_Stage, Path], None]:
    def change(stage: _Stage, folder: Path) -> None:
        path = folder / "keeper.toml"
        lines = path.read_text().splitlines()
        at = next(number for number, line in enumerate(lines) if line.startswith("rpc_urls"))
        lines[at] = f'rpc_urls = ["{url(stage)}"]'
        path.write_text("\n".join(lines))

    return change


_TYPED_WRONG = actor("typed wrong").key.hex()[:-2] + "zz"
_STRANGER = actor("a stranger with money")
_DEAD = f"http://127.0.0.1:{free_port()}"
MISTAKES = {
    "unknown key": Mistake(
        _replaced("max_fee_gwei = 200.0", "max_fee_gwei = 200.0\nmax_fee_gweii = 3"),
        ("limits.max_fee_gweii", "max_fee_gwei"),
    ),
    "number in quotes": Mistake(
        _replaced("max_fee_gwei = 200.0", 'max_fee_gwei = "200"'), ("limits.max_fee_gwei",)
    ),
    "not TOML": Mistake(_replaced("[profit]", "[profit"), ("keeper.toml",)),
    "no protocol": Mistake(
        _replaced('kind = "aave-v3"\nname = "aave-3-0"', 'kind = "aave-v9"\nname = "aave-3-0"'),
        ("protocols", "aave-v3"),
    ),
    "wrong chain id": Mistake(_replaced("id = 31337", "id = 1"), ("31337", "chain.id is 1")),
    "a node of another chain": Mistake(_only_node(lambda stage: stage.other_chain), ("777", "31337")),
    "no secret": Mistake(_without(".env"), ("KEEPER_PRIVATE_KEY", ".env")),
    "malformed secret": Mistake(_nothing, ("KEEPER_PRIVATE_KEY",), env={"KEEPER_PRIVATE_KEY": _TYPED_WRONG}),
    "secret out of range": Mistake(
        _nothing, ("KEEPER_PRIVATE_KEY",), env={"KEEPER_PRIVATE_KEY": "0x" + "ff" * 32}
    ),
    "no code": Mistake(
        _contract("liquidator", lambda _: account(99)),
        ("contracts.liquidator", checksum(account(99)), "no code"),
    ),
    "another contract": Mistake(
        _contract("pause_guard", lambda stage: stage.rig.liquidator),
        ("contracts.pause_guard", "code"),
    ),
    "altered code": Mistake(
        _contract("liquidator", lambda stage: stage.altered),
        ("contracts.liquidator", "keeper deploy"),
    ),
    "a stranger's key": Mistake(
        _nothing,
        ("setOperator", checksum(_STRANGER.address)),
        env={"KEEPER_PRIVATE_KEY": _STRANGER.key.hex()},
    ),
    "a penniless key": Mistake(
        _nothing, ("operator", "0 wei"), env={"KEEPER_PRIVATE_KEY": actor("penniless").key.hex()}
    ),
    "node down": Mistake(_only_node(lambda _: _DEAD), (_DEAD, "cannot be reached"), code=3),
    "node down for scan": Mistake(_only_node(lambda _: _DEAD), (_DEAD,), code=3, words=("scan", "--json")),
    "no configuration": Mistake(_without("keeper.toml"), ("keeper.toml",)),
    "another file": Mistake(_nothing, ("nowhere.toml",), words=("scan", "--config", "nowhere.toml")),
    "malformed account": Mistake(_nothing, ("0x1234", "40 hex digits"), words=("explain", "0x1234")),
    "wrong checksum": Mistake(
        _nothing, (checksum(WHO).swapcase()[2:],), words=("explain", "0x" + checksum(WHO).swapcase()[2:])
    ),
    "malformed filter": Mistake(_nothing, ("nobody",), words=("ledger", "list", "--account", "nobody")),
    "log level": Mistake(_nothing, ("chatty", "info"), words=("run", "--log-level", "chatty")),
    "store": Mistake(
        _replaced("sqlite:///keeper.db", "mysql:///keeper"), ("store.url", "sqlite:///keeper.db")
    ),
    "override": Mistake(_nothing, ("KEEPER__LIMITS__MAX_FE_GWEI",), env={"KEEPER__LIMITS__MAX_FE_GWEI": "3"}),
    "a signer that is away": Mistake(
        _replaced(
            'kind = "env"', f'kind = "web3signer"\nurl = "{_DEAD}/canary"\naddress = "{checksum(WHO)}"'
        ),
        (_DEAD, "cannot be reached", "[signer]"),
    ),
    "no keystore": Mistake(
        _replaced('kind = "env"', 'kind = "keystore"\nkeystore = "operator.json"'),
        ("signer.keystore", "operator.json"),
        env={"KEEPER_KEYSTORE_PASSWORD": "a password that nobody may read"},
    ),
    "no password": Mistake(
        _replaced('kind = "env"', 'kind = "keystore"\nkeystore = "operator.json"'),
        ("KEEPER_KEYSTORE_PASSWORD", ".env"),
    ),
    "no credentials": Mistake(
        _replaced(
            'kind = "env"',
            f'kind = "aws-kms"\nkey_id = "a"\nregion = "eu-west-1"\naddress = "{checksum(WHO)}"',
        ),
        ("AWS_ACCESS_KEY_ID", ".env"),
    ),
    "malformed deployer key": Mistake(
        _nothing,
        ("KEEPER_DEPLOYER_KEY",),
        words=(
            "deploy",
            *("--safe", checksum(WHO)),
            *("--treasury", checksum(WHO)),
            *("--guardian", checksum(WHO)),
        ),
        env={"KEEPER_DEPLOYER_KEY": _TYPED_WRONG},
    ),
}


@pytest.fixture(scope="module")
async def mistaken(rigged: tuple[Lab, Rig], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Every mistake made once, two at a time."""
    lab, rig = rigged
    await lab.node.set_balances([_STRANGER.address])
    altered = account(98)
    code = bytearray(await lab.node.code(rig.liquidator))
    code[len(code) // 2] ^= 1
    await lab.node.set_code({altered: bytes(code)})
    turns = asyncio.Semaphore(2)

    async def run(name: str, mistake: Mistake, stage: _Stage) -> tuple[str, Ran]:
        folder = _copy(rig, tmp_path_factory.mktemp("mistake"))
        mistake.change(stage, folder)
        async with turns:
            return name, await keeper(folder, *mistake.words, env=mistake.env)

    with Anvil.start(chain_id=777) as other:
        stage = _Stage(rig, other.url, altered)
        return dict(await asyncio.gather(*(run(name, mistake, stage) for name, mistake in MISTAKES.items())))


def _sentence(ran: Ran) -> str:
    """The one line on stderr that is not a log; nothing is on stdout and nobody sees a traceback."""
    assert not ran.out and "Traceback" not in ran.err
    [line] = [line for line in ran.err.splitlines() if not line.startswith("{")]
    assert line.startswith("keeper: ") and line.endswith(".")
    return line.removeprefix("keeper: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(mistaken: dict[str, Ran], name: str) -> None:
    """It names what is wrong, ends with its code, and never shows a secret, not even a mistyped one."""
    mistake, ran = MISTAKES[name], mistaken[name]
    assert ran.code == mistake.code, ran.err
    sentence = _sentence(ran)
    for word in mistake.names:
        assert word in sentence
    assert "canary" not in ran.err
    for secret in mistake.env.values():
        assert len(secret) < 30 or secret.removeprefix("0x") not in ran.err


# --- the daemon ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Running:
    """A chain with a block every second and a keeper's folder on it."""

    lab: Lab
    rig: Rig

    async def fall(self, dollars: float) -> None:
        """Let WETH fall, in a block of its own."""
        await self.lab.node.mine_each_transaction()
        await set_price(self.lab.node, self.lab.world.feeds["WETH"], int(dollars * _E8))
        await self.lab.node.mine_every(1)

    def settled(self) -> int:
        """How many liquidations the record has."""
        return len(_booked(self.rig.folder, "settled"))


async def _running(
    fresh_lab: OpenLab, folder: Path, healths: list[int], urls: tuple[str, ...] = ()
) -> Running:
    """Positions at these health factors (in percent), both markets in turn, and blocks every second."""
    lab = await fresh_lab()
    rig = await make_rig(lab, folder, Terms(), urls)
    for number, market in enumerate(("3.0", "3.6")):
        specs = [
            PositionSpec(account(index), {"WETH": 10 * ETHER}, {"USDC": 1}, percent * WAD // 100)
            for index, percent in enumerate(healths)
            if index % 2 == number
        ]
        if specs:
            await open_positions(lab.node, lab.world.cast, lab.world.aave[market], specs)
    await lab.node.mine_every(1)
    return Running(lab, rig)


@pytest.mark.slow
async def test_the_daemon_runs_until_it_is_told_to_stop(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """It liquidates, refuses a second keeper on its record, ends with 0 at SIGTERM and books how it went."""
    run = await _running(fresh_lab, tmp_path, [110])
    before_raw = await _treasury_raw(run.lab)
    async with daemon(tmp_path) as one:
        second = asyncio.create_task(keeper(tmp_path, "run"))
        await run.fall(FALLEN)
        await until(lambda: run.settled() == 1, "a liquidation")
        listed = await keeper(tmp_path, "ledger", "list", "--json")
        assert listed.code == 0 and "settled" in [entry["kind"] for entry in listed.document["entries"]]
        refused = await second
        assert refused.code == 1 and f"process {one.process.pid}" in _sentence(refused)
        assert one.running
        assert await one.stop() == 0
        assert not await one.process.stdout.read(), "logs go to stderr"
        assert [entry["event"] for entry in one.events("started", "stopped")] == ["started", "stopped"]
    [settled] = _booked(tmp_path, "settled")
    assert int(settled.body["profit_raw"]) == await _treasury_raw(run.lab) - before_raw > 0
    [stopped] = _booked(tmp_path, "stopped")
    assert stopped.body["heads"] > 0 and stopped.body["sent"] == 1 and stopped.body["reaction_p50_us"] > 0
    assert [entry.kind for entry in _booked(tmp_path, "started", "stopped")] == ["started", "stopped"]
    assert (await judge(run.rig.config)).ok


@pytest.mark.slow
async def test_a_dropped_connection_is_taken_up_again(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """The websocket dies and the node is away for some seconds, while prices fall: the daemon comes back and acts."""
    run = await _running(fresh_lab, tmp_path, [110, 130])
    async with gateway(run.lab.anvil.url) as front:
        text = run.rig.config.read_text()
        run.rig.config.write_text(text.replace(run.lab.anvil.ws_url, f"ws://127.0.0.1:{front.port}"))
        async with daemon(tmp_path) as one:
            front.hang_up()
            await run.fall(FALLEN)
            await until(lambda: run.settled() == 1, "a liquidation over a second connection")
            front.open = False
            front.hang_up()
            await run.fall(1_450)
            tried = front.accepted
            await until(lambda: front.accepted >= tried + 3, "attempts to reconnect")
            front.open = True
            await until(lambda: run.settled() >= 2, "a liquidation after the outage")
            assert one.running and one.events("heads_interrupted")
            assert await one.stop() == 0
        assert (await judge(run.rig.config)).ok
    assert {entry.account for entry in _booked(tmp_path, "settled")} == {
        checksum(account(0)),
        checksum(account(1)),
    }


@pytest.mark.slow
async def test_killed_at_any_moment_nothing_is_done_twice(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """Three kills while liquidations are under way: every plan is on chain and in the record once, to the last unit."""
    healths = [110, 110, 118, 118, 126, 126, 136, 136]
    run = await _running(fresh_lab, tmp_path, healths)
    before_raw = await _treasury_raw(run.lab)
    first_block = (await run.lab.node.head()).number
    chance = random.Random(7)
    for dollars in (1_790, 1_660, 1_550):
        async with daemon(tmp_path) as one:
            await run.fall(dollars)
            await asyncio.sleep(chance.uniform(0, 1.5))
            await one.kill()
    async with daemon(tmp_path) as one:
        await run.fall(1_430)

        async def all_healthy() -> bool:
            accounts = [account(index) for index in range(len(healths))]
            try:
                data = [
                    each
                    for market in run.lab.world.aave.values()
                    for each in await account_data(run.lab.node, market, accounts)
                ]
            except RpcError:
                return False  # many blocks in one second: the head is ahead of the wall's time, which calls go by
            return all(each.health_factor_wad >= WAD for each in data)

        await until(all_healthy, "every account to be healthy")
        open_kinds = ("intent", "settled", "reverted", "cancelled", "dropped")
        await until(lambda: _all_closed(_booked(tmp_path, *open_kinds)), "everything to be accounted for")
        assert await one.stop() == 0
    liquidated = load("Liquidator").event("Liquidated")
    logs = await run.lab.node.rpc.request(
        "eth_getLogs",
        {
            "address": checksum(run.rig.liquidator),
            "fromBlock": hex(first_block),
            "topics": ["0x" + liquidated.topic.hex()],
        },
    )
    settled = _booked(tmp_path, "settled")
    assert sorted(log["topics"][1] for log in logs) == sorted(entry.plan_id for entry in settled)
    assert len({entry.plan_id for entry in settled}) == len(settled) >= len(healths)
    gained_raw = await _treasury_raw(run.lab) - before_raw
    assert sum(int(entry.body["profit_raw"]) for entry in settled) == gained_raw > 0
    signed = _booked(tmp_path, "signed")
    assert len({int(entry.body["nonce"]) for entry in signed if entry.body["purpose"] == "plan"}) == len(
        [entry for entry in signed if entry.body["purpose"] == "plan"]
    )
    verdict = await judge(run.rig.config)
    assert verdict.ok, str(verdict)


def _all_closed(entries: list[Booked]) -> bool:
    opened = {entry.plan_id for entry in entries if entry.kind == "intent"}
    return opened == {entry.plan_id for entry in entries if entry.kind != "intent"}


# --- secrets ---------------------------------------------------------------------------------------------------------

_KEY, _API_KEY = "SECRETKEY123", "q7Jc0xT4mW9eRt2LkVbN"
_WRONG = "CanaryWrongPassword"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_no_secret_is_written_anywhere(fresh_lab: OpenLab, tmp_path: Path, kind: str) -> None:
    """Providers' keys, private keys and all a signer needs are in no output, log or record, working or failing."""
    run = await _running(fresh_lab, tmp_path, [110, 130])
    people = run.lab.world.cast
    path = f"/v2/{_KEY}?apikey={_API_KEY}"
    outputs: list[Ran] = []
    async with gateway(run.lab.anvil.url, path) as front, kept(run.lab, run.rig, kind) as custody:
        env_file = (tmp_path / ".env").read_bytes()
        lines = run.rig.config.read_text().splitlines()
        at = next(number for number, line in enumerate(lines) if line.startswith("rpc_urls"))
        urls = [f"{scheme}://127.0.0.1:{front.port}{path}" for scheme in ("ws", "http")]
        lines[at] = f"rpc_urls = {json.dumps(urls)}"
        run.rig.config.write_text("\n".join(lines))
        async with daemon(tmp_path, "--log-level", "debug") as one:
            await run.fall(FALLEN)
            await until(lambda: run.settled() == 1, "a liquidation")
            commands = ("doctor", "scan --json", f"explain {checksum(account(0))}", "ledger list --json")
            for ran in await asyncio.gather(*(keeper(tmp_path, *words.split()) for words in commands)):
                assert ran.code == 0, ran.err
                outputs.append(ran)
            if custody.double is not None:
                outputs += await _with_a_failing_signer(run, one, custody.double)
            front.open = False
            front.hang_up()
            await one.logs("heads_interrupted")
            for words in (("scan",), ("run", "--once")):
                ran = await keeper(tmp_path, *words)
                assert ran.code == 3 and "127.0.0.1" in _sentence(ran)
                outputs.append(ran)
            front.open = True
            assert await one.stop() == 0
        if kind == "keystore":
            ran = await keeper(tmp_path, "run", env={"KEEPER_KEYSTORE_PASSWORD": _WRONG})
            assert ran.code == 2 and "password does not open" in _sentence(ran)
            outputs.append(ran)
    front.hang_up()
    written = _files(tmp_path)
    config = written.pop(run.rig.config)
    assert written.pop(tmp_path / ".env") == env_file and _KEY.encode() in config
    assert {"keeper.db", "keeper.log"} <= {path.name for path in written}
    haystacks = {str(path): body for path, body in written.items()} | {
        "stdout and stderr": "\n".join(ran.out + ran.err for ran in outputs).encode()
    }
    for secret in (*custody.secrets, people.deployer.key, _KEY.encode(), _API_KEY.encode(), _WRONG.encode()):
        for form in _forms(secret):
            for where, body in haystacks.items():
                assert form.lower() not in body.lower(), (where, form)


async def _with_a_failing_signer(run: Running, one: Daemon, double: Double) -> list[Ran]:
    """A signer that refuses and repeats all it was told, lies, and is gone: booked and logged, by its host alone."""
    outputs: list[Ran] = []
    folder = run.rig.folder
    manners: tuple[Manners, ...] = ("refusing", "other_key", "garbage", "absent")
    for number, manner in enumerate(manners):
        double.manners = manner
        await run.fall(FALLEN - 300 - number)
        await one.logs("not_signed", number + 1)
        doctor = await keeper(folder, "doctor", "--json")
        once = await keeper(folder, "explain", checksum(account(1)))
        outputs += [doctor, once]
        answers = manner in ("other_key", "garbage")
        assert doctor.code == (0 if answers else 1) and once.code == 0, doctor.err
    refused = [entry for entry in _booked(folder, "refusal") if entry.body["reason"] == "not_signed"]
    assert refused and "127.0.0.1" in refused[0].body["numbers"]["error"]
    double.manners = "honest"
    await until(lambda: run.settled() >= 2, "a liquidation by the signer that is back")
    return outputs


def _forms(secret: bytes) -> set[bytes]:
    """A secret as itself, as text of it, and as the encodings something might print it in."""
    return {secret, secret.hex().encode(), base64.b64encode(secret), str(int.from_bytes(secret)).encode()}


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
