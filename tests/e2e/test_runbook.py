"""The runbook can be followed: each section's commands, as they are shown, in their order, on a real chain."""

from __future__ import annotations

import re
import shlex
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from keeper import abi
from keeper.abi import checksum
from keeper.fixed import WAD
from keeper.lab.actors import Actor, account, actor
from keeper.lab.chainlink import set_price
from keeper.lab.node import Contract
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.world import Lab
from keeper.ledger import Ledger
from keeper.store import Store
from tests.conftest import OpenLab
from tests.e2e.custody import kept
from tests.e2e.process import Daemon, Ran, daemon, keeper, until

ROOT = Path(__file__).parents[2]
ETHER = 10**18
_E8 = 10**8
_CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_NEW = actor("whoever comes next")
Act = Callable[[], Awaitable[None]]


def shown(title: str) -> list[str]:
    """The commands of one section."""
    text = (ROOT / "docs" / "runbook.md").read_text()
    [section] = [part for part in text.split("\n## ") if part.startswith(title + "\n")]
    return [line[2:] for block in _CONSOLE.findall(section) for line in block.splitlines()]


def _titles() -> list[str]:
    return re.findall(r"^## (.*)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)


@dataclass(slots=True)
class Case:
    """A keeper in its folder, and what its daemon has booked."""

    lab: Lab
    rig: Rig
    ran: dict[str, Ran] = field(default_factory=dict)
    running: Daemon | None = None
    title: str = ""

    async def follow(
        self, title: str, before: Mapping[str, Act] | None = None, after: Mapping[str, Act] | None = None
    ) -> None:
        """Run a section; what its words ask of people is done before or after the command that is named."""
        steps, folder, self.title = shown(title), self.rig.folder, title
        assert {*(before or {}), *(after or {})} <= set(steps), "the test acts where the runbook says so"
        async with AsyncExitStack() as stack:
            for step in steps:
                if before and step in before:
                    await before[step]()
                words = [self.names().get(word, word) for word in shlex.split(step)]
                if words[0] == "touch":
                    (folder / words[1]).touch()
                elif words[0] == "rm":
                    (folder / words[1]).unlink()
                elif words == ["keeper", "run"]:
                    self.running = await stack.enter_async_context(daemon(folder))
                else:
                    self.ran[step] = await keeper(folder, *words[1:], env=self.keys(words))
                if words[-1].endswith(".safetx.json"):
                    await self.through_the_safe(words[-1])
                if after and step in after:
                    await after[step]()
            if self.running is not None:
                assert await self.running.stop() == 0
                self.running = None

    def booked(self, *kinds: str) -> int:
        """How many entries of these kinds there are."""
        with Store.open(f"sqlite:///{self.rig.folder / 'keeper.db'}", read_only=True) as store:
            return len(Ledger(store).entries(None, kind=kinds))

    def codes(self) -> set[int]:
        """How the commands ended."""
        return {ran.code for ran in self.ran.values()}

    def names(self) -> dict[str, str]:
        """Who is meant by the runbook's placeholders; each section has one exchange."""
        swap = self.title.startswith("An owner")
        old = self.lab.world.cast.owners[2] if swap else self.lab.world.cast.operator
        return {"0x…OLD": checksum(old.address), "0x…NEW": checksum(_NEW.address)}

    def keys(self, words: list[str]) -> dict[str, str]:
        """What people put into the environment of one command."""
        if words[:2] != ["keeper", "pause"]:
            return {}
        people = self.lab.world.cast
        return _environment(GUARDIAN=people.guardians[0], SENDER=people.liquidator)

    async def through_the_safe(self, file: str) -> None:
        """Two of three owners sign it, and somebody executes it."""
        people = self.lab.world.cast
        words = ("--despite-red-flags",) if file.startswith("swap") else ()
        shown = await keeper(self.rig.folder, "pause", "show", file)
        assert shown.code == (1 if words else 0), shown.out + shown.err
        for owner in people.owners[:2]:
            env = _environment(SIGNER=owner)
            signed = await keeper(self.rig.folder, "pause", "sign", file, *words, env=env)
            assert signed.code == 0, signed.err
        env = _environment(SENDER=people.liquidator)
        done = await keeper(self.rig.folder, "pause", "exec", file, *words, env=env)
        assert done.code == 0, done.err

    async def renew(self) -> None:
        """The new operator gets its gas money, and the keeper its key."""
        await self.lab.node.set_balances([_NEW.address], ETHER)
        (self.rig.folder / ".env").write_text(f"KEEPER_PRIVATE_KEY=0x{_NEW.key.hex()}\n")


def _environment(**keys: Actor) -> dict[str, str]:
    return {f"KEEPER_{role}_PRIVATE_KEY": f"0x{who.key.hex()}" for role, who in keys.items()}


async def _case(fresh_lab: OpenLab, folder: Path) -> Case:
    """One account that a price fall makes unsafe, and a keeper that has been run once."""
    lab = await fresh_lab()
    spec = PositionSpec(account(1), {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
    await open_positions(lab.node, lab.world.cast, lab.world.aave["3.0"], [spec])
    case = Case(lab, await make_rig(lab, folder, Terms(max_head_age_s=3_600)))
    assert (await keeper(folder, "run", "--once")).code == 0
    return case


def test_every_section_is_followed() -> None:
    """No section's commands go untested."""
    source = Path(__file__).read_text()
    missing = [title for title in _titles() if f'"{title}"' not in source and shown(title)]
    assert missing == []


async def test_a_stolen_key_is_replaced(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """Stopped, backed up, paused, rotated and unpaused; the new key liquidates, and the old one has no right left."""
    case = await _case(fresh_lab, tmp_path)
    lab = case.lab
    await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)

    async def delayed() -> None:
        assert case.booked("intent", "signed") == 0, "nothing was signed while it was stopped"
        await lab.node.advance(10)

    await case.follow("Stop at once")
    status = case.ran["keeper pause status"].out
    assert "halt file" in status and "EXPLOIT" in status
    await case.follow(
        "The operator's key may be stolen",
        before={
            "keeper pause build rotate-operator 0x…OLD 0x…NEW --out rotate.safetx.json": case.renew,
            "keeper pause unpause global": delayed,
        },
        after={"keeper run": lambda: until(lambda: case.booked("settled") == 1, "a liquidation")},
    )
    assert case.codes() == {0}, {step: ran.err for step, ran in case.ran.items() if ran.code}
    assert (tmp_path / "incident.db").exists()
    nonces = [
        await lab.node.rpc.request("eth_getTransactionCount", checksum(who.address), "latest")
        for who in (lab.world.cast.operator, _NEW)
    ]
    assert nonces == ["0x0", "0x1"]


async def test_the_operator_is_rotated(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """What was in flight is taken back by the old key; the new one liquidates."""
    case = await _case(fresh_lab, tmp_path)
    lab = case.lab
    await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
    await lab.node.mine_on_demand()
    assert (await keeper(tmp_path, "run", "--once")).code == 0

    async def taken_back() -> None:
        await lab.node.rpc.request("anvil_dropAllTransactions")
        await lab.node.mine_every(1)
        async with daemon(tmp_path, log="old.log") as one:
            await until(lambda: case.booked("cancelled") == 1, "the nonce to be taken back")
            assert await one.stop() == 0
        await lab.node.mine_each_transaction()

    await case.follow(
        "Rotating the operator",
        before={
            "keeper pause build rotate-operator 0x…OLD 0x…NEW --out rotate.safetx.json": case.renew,
        },
        after={
            "touch keeper.halt": taken_back,
            "keeper run": lambda: until(lambda: case.booked("settled") == 1, "a liquidation"),
        },
    )
    assert case.codes() == {0}, {step: ran.err for step, ran in case.ran.items() if ran.code}
    assert "cancelled" in case.ran["keeper ledger list --kind cancelled --limit 5"].out


async def test_a_signer_that_is_away(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """The doctor says so and the record says what was refused, each in words that lead to the runbook."""
    case = await _case(fresh_lab, tmp_path)
    async with kept(case.lab, case.rig, "web3signer") as custody:
        assert custody.double is not None
        async with daemon(tmp_path) as one:
            custody.double.manners = "absent"
            await set_price(case.lab.node, case.lab.world.feeds["WETH"], 1_750 * _E8)
            await one.logs("not_signed")
            await case.follow("The signer does not answer, or the password is lost")
            assert await one.stop() == 0
    doctor = case.ran["keeper doctor"]
    assert doctor.code == 1 and "cannot be reached" in doctor.out
    refused = case.ran["keeper ledger list --kind refusal --limit 10"]
    assert refused.code == 0 and "not_signed" in refused.out


async def test_a_stuck_nonce_is_freed(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """Halted, the daemon takes it back; then the list of what was taken back is not empty."""
    case = await _case(fresh_lab, tmp_path)
    lab = case.lab
    await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
    await lab.node.mine_on_demand()
    assert (await keeper(tmp_path, "run", "--once")).code == 0
    await lab.node.rpc.request("anvil_dropAllTransactions")
    await lab.node.mine_every(1)
    await case.follow(
        "A stuck nonce",
        after={"keeper run": lambda: until(lambda: case.booked("cancelled") == 1, "it to be taken back")},
    )
    assert case.codes() == {0}
    assert "cancelled" in case.ran["keeper ledger list --kind cancelled --limit 5"].out
    assert not (tmp_path / "keeper.halt").exists()


async def test_bad_debt_is_found(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """Who owes more than he holds is listed, and since when that is so is on record."""
    case = await _case(fresh_lab, tmp_path)
    await set_price(case.lab.node, case.lab.world.feeds["WETH"], 1_400 * _E8)
    assert (await keeper(tmp_path, "run", "--once", "--dry-run")).code == 0
    await case.follow("Bad debt")
    assert case.codes() == {0}
    who = checksum(account(1))
    for words in ("scan --liquidatable --limit 50", "ledger list --kind bad_debt --limit 20"):
        assert who in case.ran[f"keeper {words}"].out


async def test_nodes_are_exchanged(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """With other nodes and a quorum the record verifies, and what would be done is shown before it is done."""
    case = await _case(fresh_lab, tmp_path)

    async def exchanged() -> None:
        text = case.rig.config.read_text()
        url = case.lab.anvil.url
        nodes = f'rpc_urls = ["{url}", "{url.replace("http", "ws")}"]\nquorum = 2'
        case.rig.config.write_text(re.sub(r"rpc_urls = \[.*\]", nodes, text))

    await case.follow("A node lies, or all nodes may be poisoned", before={"keeper ledger verify": exchanged})
    assert case.codes() == {0}, {step: ran.err for step, ran in case.ran.items() if ran.code}
    assert "quorum" in case.ran["keeper ledger list --kind warning --limit 20"].out
    assert "2 of 2 nodes must agree" in case.ran["keeper doctor"].out


async def test_what_owners_and_payers_look_at(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """The Safe gets another owner and the operator holds too much: the checks still say what is true."""
    case = await _case(fresh_lab, tmp_path)
    text = case.rig.config.read_text()
    case.rig.config.write_text(text.replace('kind = "env"', 'kind = "env"\nmax_balance_wei = 1'))
    await case.follow("An owner of the Safe lost a key, or must be replaced")
    owners = await Contract(case.lab.node, case.lab.world.safe.address, abi.load("Safe")).read("getOwners")
    assert _NEW.address in owners and case.lab.world.cast.owners[2].address not in owners
    await case.follow("Refuelling")
    assert case.codes() == {0}
    assert "more than signer.max_balance_wei (1)" in case.ran["keeper doctor"].out
