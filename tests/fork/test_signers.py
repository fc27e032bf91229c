"""Signers' tools on a real Safe: what they propose is what the Safe executes, and every failure is named."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct

from keeper import assembly
from keeper.abi import checksum
from keeper.commands import guardian, pause
from keeper.errors import ChainError, ConfigError, ExecutionError
from keeper.guard.message import SignedPause
from keeper.installation import LIQUIDATOR, PAUSE_GUARD, setup_calls
from keeper.keys import GuardianKey, SafeOwnerKey, recovered
from keeper.lab import drill
from keeper.lab.actors import Actor, actor
from keeper.lab.install import node_modules
from keeper.lab.node import Contract, Tx
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.safe import execute, safe_contract, sign_hash
from keeper.lab.solc import own_artifact
from keeper.lab.world import Lab
from keeper.multisig import proposal, signatures
from keeper.multisig.decode import CALL_ONLY, SAFE, Pins
from keeper.multisig.proposal import Proposal
from keeper.multisig.safe import InnerCall, batch, exec_calldata, pack_signatures
from keeper.multisig.safe_errors import CODES, why_refused
from keeper.typed_data import SafeTx
from keeper.types import GLOBAL_SCOPE, Address, Hash, hex_of

DELAY_S = 1800


def builds() -> Mapping[str, Any]:
    """Our contracts as built."""
    return {name: own_artifact(name) for name in ("PauseGuard", "Liquidator")}


@dataclass(frozen=True)
class Table:
    """Signers around a keeper's files, each acting as `keeper pause` would."""

    lab: Lab
    rig: Rig
    monkeypatch: pytest.MonkeyPatch

    @property
    def folder(self) -> Path:
        """Where the proposals lie."""
        return self.rig.folder

    @property
    def guard(self) -> Contract:
        """The PauseGuard."""
        return Contract(self.lab.node, self.rig.pause_guard, PAUSE_GUARD)

    @property
    def owners(self) -> tuple[Actor, ...]:
        """The Safe's owners."""
        return self.lab.world.cast.owners

    def hold(self, role: str, who: Actor) -> None:
        """Put a key into the environment: of role SIGNER, GUARDIAN or SENDER."""
        self.monkeypatch.setenv(f"KEEPER_{role}_PRIVATE_KEY", "0x" + who.key.hex())

    async def build(self, action: str, *given: str, nonce: int | None = None) -> Path:
        """A new proposal's file."""
        out = self.folder / f"{action}-{len(list(self.folder.iterdir()))}.safetx.json"
        await pause.build(self.rig.config, action, list(given), nonce=nonce, note="", out=out, offline=False)
        return out

    def write(self, made: Proposal, name: str = "hand") -> Path:
        """A proposal made by hand."""
        out = self.folder / f"{name}.safetx.json"
        out.write_text(made.text())
        return out

    async def sign(self, file: Path, *who: Actor, despite: bool = False) -> Path:
        """Have owners sign one after another."""
        for owner in who:
            self.hold("SIGNER", owner)
            await pause.sign(
                self.rig.config,
                file,
                builds,
                signature=None,
                owner=None,
                out=None,
                offline=False,
                despite_red_flags=despite,
            )
        return file

    async def show(self, file: Path, *, offline: bool = False, config: Path | None = None) -> dict[str, Any]:
        """What a signer reads."""
        return await pause.show(config or self.rig.config, file, builds, offline=offline)

    async def flags(self, file: Path, *, offline: bool = False) -> list[str]:
        """The red flags of a file by name."""
        return [flag["name"] for flag in (await self.show(file, offline=offline))["red_flags"]]

    async def execute(self, file: Path, *, despite: bool = False) -> dict[str, Any]:
        """Send it."""
        self.hold("SENDER", self.lab.world.cast.liquidator)
        return await pause.execute(self.rig.config, file, builds, despite_red_flags=despite)

    async def simulate(self, file: Path) -> dict[str, Any]:
        """Try it."""
        return await pause.simulate(self.rig.config, file, builds)

    async def done(self, action: str, *given: str, despite: bool = False) -> dict[str, Any]:
        """Build, have two owners sign, send."""
        file = await self.build(action, *given)
        await self.sign(file, *self.owners[1:], despite=despite)
        return await self.execute(file, despite=despite)

    async def nonce(self) -> int:
        """The Safe's."""
        return int(await safe_contract(self.lab.node, self.lab.world.safe).read("nonce"))

    async def pausing(self, **changes: Any) -> Proposal:
        """A pause of everything, with changed fields of the Safe's transaction."""
        data = PAUSE_GUARD.function("pause").encode(GLOBAL_SCOPE, b"DRILL\0\0\0", Hash(bytes(32)))
        fields: dict[str, Any] = {
            "to": self.rig.pause_guard,
            "value_wei": 0,
            "data": data,
            "operation": 0,
            "nonce": await self.nonce(),
        }
        world = self.lab.world
        return Proposal(world.chain_id, world.safe.address, SafeTx(**(fields | changes)), "")


@pytest.fixture(scope="module")
async def rig(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """A keeper that is set up; taken back afterwards."""
    snapshot = await shared_lab.node.snapshot()
    yield await make_rig(shared_lab, tmp_path_factory.mktemp("keeper"), Terms(unpause_delay_s=DELAY_S))
    await shared_lab.node.revert(snapshot)
    await shared_lab.node.steady_clock()


@pytest.fixture
def table(rig: Rig, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """The chain as it was after the set-up, and a folder of one's own."""
    for name in ("keeper.toml", ".env"):
        (tmp_path / name).write_text((rig.folder / name).read_text())
    return Table(lab, replace(rig, folder=tmp_path, config=tmp_path / "keeper.toml"), monkeypatch)


# --- from words to state ---------------------------------------------------------------------------------------------


async def test_a_pause_goes_from_words_to_the_guards_state(table: Table) -> None:
    """Built, shown without a flag, signed by two, executed by a stranger, and proved by what the guard says."""
    file = await table.build("pause", "global", "EXPLOIT", "case 7")
    shown = await table.show(file)
    assert shown["red_flags"] == [] and shown["unchecked"] == []
    assert shown["calls"][0]["words"].startswith("STOPS EVERYTHING at once. Reason: EXPLOIT")
    assert shown["threshold"] == 2 and len(shown["missing"]) == 3
    await table.sign(file, table.owners[2], table.owners[0])
    shown = await table.show(file)
    assert {each["owner"] for each in shown["signed"]} == {checksum(table.owners[n].address) for n in (0, 2)}
    assert shown["missing"] == [checksum(table.owners[1].address)]
    answer = await table.execute(file)
    assert answer["proved"] == ["everything is paused without a scheduled restart"]
    assert (await table.guard.read("scopeState", GLOBAL_SCOPE))[0] is True


async def test_everything_a_runbook_needs_is_built_and_proved(table: Table) -> None:
    """Each action of the builder is executed by the real Safe and shows in the contract it is about."""
    world, cast = table.lab.world, table.lab.world.cast
    new, old = actor("newcomer").address, cast.operator.address
    market = world.aave["3.0"]
    done = [
        ("pause", "aave-3-0", "ORACLE"),
        ("schedule", "aave-3-0"),
        ("veto", "aave-3-0"),
        ("add-guardian", checksum(new)),
        ("remove-guardian", checksum(new)),
        ("remove-guardian", checksum(cast.guardians[0].address), "aave-3-0"),
        ("operator", checksum(new), "on"),
        ("operator", checksum(new), "off"),
        ("rotate-operator", checksum(old), checksum(new)),
        ("target", "aave-3-0", checksum(market.pool), "0x01020304"),
        ("target", "off", checksum(market.pool), "0x01020304"),
        ("feed", checksum(world.tokens["DAI"].address), checksum(world.feeds["USDC"].proxy), "3600"),
        ("venue", checksum(world.uniswap_v3.router), "off"),
        ("venue", checksum(world.uniswap_v3.router), "uniswap-v3"),
        ("flash-source", checksum(market.pool), "off"),
        ("flash-source", checksum(market.pool), "aave-v3"),
        ("slippage", "77"),
    ]
    for action, *given in done:
        answer = await table.done(action, *given)
        assert answer["proved"], action
    liquidator = Contract(table.lab.node, table.rig.liquidator, LIQUIDATOR)
    assert await liquidator.read("maxSlippageBps") == 77
    assert await liquidator.read("isOperator", new) and not await liquidator.read("isOperator", old)


async def test_the_safes_owners_are_rotated_only_despite_red_flags(table: Table) -> None:
    """Swapping, adding, removing and the threshold work, and each of them is flagged until a signer insists."""
    safe = safe_contract(table.lab.node, table.lab.world.safe)
    first, second = actor("owner 4").address, actor("owner 5").address
    for action, *given in [
        ("swap-owner", checksum(table.owners[0].address), checksum(first)),
        ("add-owner", checksum(second), "2"),
        ("threshold", "3"),
    ]:
        file = await table.build(action, *given)
        wanted = "threshold_change" if action == "threshold" else "owner_change"
        assert await table.flags(file) == [wanted]
        with pytest.raises(ExecutionError, match="Nothing was signed: It changes the Safe itself"):
            await table.sign(file, table.owners[1])
        await table.sign(file, *table.owners[1:], despite=True)
        with pytest.raises(ExecutionError, match="Nothing was sent: It changes the Safe itself"):
            await table.execute(file)
        await table.execute(file, despite=True)
    assert set(await safe.read("getOwners")) == {first, second, *(o.address for o in table.owners[1:])}
    assert await safe.read("getThreshold") == 3


async def test_a_rival_is_replaced_by_an_empty_call(table: Table) -> None:
    """Two proposals for one nonce see each other; after `reject` the other is dead."""
    doomed = await table.build("pause", "global", "DRILL")
    reject = await table.build("reject")
    assert [rival["file"] for rival in (await table.show(doomed))["rivals"]] == [str(reject)]
    assert "use up its nonce" in (await table.show(reject))["calls"][0]["words"]
    await table.sign(doomed, *table.owners[:2])
    await table.sign(reject, *table.owners[:2])
    await table.execute(reject)
    assert await table.flags(doomed) == ["nonce_used"]
    with pytest.raises(ExecutionError, match="can never be executed"):
        await table.execute(doomed)


# --- hashes and signatures -------------------------------------------------------------------------------------------


async def test_files_of_several_signers_become_one(table: Table) -> None:
    """Copies signed apart are merged and execute, whatever the order of their owners."""
    file = await table.build("pause", "global", "DRILL")
    copies = []
    for owner in table.owners[1:]:
        copy = table.folder / f"{owner.name}.safetx.json"
        copy.write_text(file.read_text())
        copies.append(await table.sign(copy, owner))
    out = table.folder / "together.safetx.json"
    assert len(pause.merge(copies[::-1], out)["signed"]) == 2
    await table.execute(out)


async def test_a_wallets_signatures_are_taken_in_both_kinds(table: Table) -> None:
    """An EIP-712 signature and an eth_sign one, made by others, are verified and executed by the Safe."""
    file = await table.build("pause", "global", "DRILL")
    made = proposal.parse(file.read_text(), "it")
    typed = sign_hash(table.owners[0], made.hash)
    message = encode_defunct(primitive=made.hash)
    personal = bytearray(Account.sign_message(message, table.owners[1].key).signature)
    personal[64] += 4
    for owner, given in zip(table.owners[:2], (typed, bytes(personal)), strict=True):
        await pause.sign(
            table.rig.config,
            file,
            builds,
            signature=hex_of(given),
            owner=checksum(owner.address),
            out=None,
            offline=True,
            despite_red_flags=False,
        )
    kinds = {each["owner"]: each["kind"] for each in (await table.show(file))["signed"]}
    assert kinds == {
        checksum(table.owners[0].address): "eip712",
        checksum(table.owners[1].address): "eth_sign",
    }
    await table.execute(file)


async def test_somebody_who_is_no_owner_cannot_sign(table: Table) -> None:
    """The chain says who owns the Safe."""
    file = await table.build("pause", "global", "DRILL")
    with pytest.raises(ExecutionError, match="is no owner of the Safe"):
        await table.sign(file, table.lab.world.cast.lender)


# --- red flags that only the chain can raise -------------------------------------------------------------------------


async def test_flag_nonce_used(table: Table) -> None:
    """A nonce below the Safe's."""
    made = await table.pausing()
    assert await table.flags(table.write(replace(made, tx=replace(made.tx, nonce=made.tx.nonce - 1)))) == [
        "nonce_used"
    ]


async def test_flag_nonce_far_ahead(table: Table) -> None:
    """Ten ahead is an emergency kit, eleven is a mistake."""
    at = await table.nonce()
    assert await table.flags(await table.build("pause", "global", "DRILL", nonce=at + 10)) == []
    assert await table.flags(await table.build("pause", "global", "DRILL", nonce=at + 11)) == [
        "nonce_far_ahead"
    ]


async def test_flag_target_code(table: Table) -> None:
    """One other byte in the PauseGuard's code."""
    file = await table.build("pause", "global", "DRILL")
    code = bytearray(await table.lab.node.code(table.rig.pause_guard))
    code[100] ^= 1
    await table.lab.node.set_code({table.rig.pause_guard: bytes(code)})
    assert await table.flags(file) == ["target_code"]
    with pytest.raises(ExecutionError, match="where the build of PauseGuard has"):
        await table.sign(file, table.owners[0])


async def test_flag_target_code_of_a_guard_for_another_safe(table: Table) -> None:
    """The build, but with other immutables, is not the configured Safe's guard."""
    file = await table.build("pause", "global", "DRILL")
    code = await table.lab.node.code(table.rig.pause_guard)
    foreign = code.replace(bytes(12) + table.lab.world.safe.address, bytes(12) + b"\x99" * 20)
    assert foreign != code
    await table.lab.node.set_code({table.rig.pause_guard: foreign})
    assert await table.flags(file) == ["target_code"]


async def test_flag_not_an_owner(table: Table) -> None:
    """A good signature of somebody who does not own the Safe."""
    made = await table.pausing()
    lender = table.lab.world.cast.lender
    signed = replace(made, signatures={lender.address: sign_hash(lender, made.hash)})
    assert await table.flags(table.write(signed)) == ["not_an_owner"]


async def test_flag_unknown_version(table: Table) -> None:
    """A contract that answers as a Safe of another version."""
    file = await table.build("pause", "global", "DRILL")
    singleton = table.lab.world.safe.singleton
    code = await table.lab.node.code(singleton)
    assert code.count(b"1.4.1") >= 1
    await table.lab.node.set_code({singleton: code.replace(b"1.4.1", b"1.9.9")})
    assert await table.flags(file) == ["unknown_version"]


async def test_flag_chain_hash(table: Table) -> None:
    """A Safe that computes another hash than this program: its type hash was altered."""
    file = await table.build("pause", "global", "DRILL")
    singleton = table.lab.world.safe.singleton
    code = await table.lab.node.code(singleton)
    type_hash = bytes.fromhex("bb8310d486368db6bd6f849402fdd73ad53d316b5a4b2644ad6efe0f941286d8")
    assert type_hash in code
    await table.lab.node.set_code({singleton: code.replace(type_hash, b"\x01" * 32)})
    assert await table.flags(file) == ["chain_hash"]


async def test_flag_delegatecall_spares_only_multi_send_with_its_own_code(table: Table) -> None:
    """A batch through the canonical contract is clean; with other code there, or offline, it is a delegatecall."""
    old, new = table.lab.world.cast.operator.address, actor("newcomer").address
    file = await table.build("rotate-operator", checksum(old), checksum(new))
    shown = await table.show(file)
    assert shown["red_flags"] == [] and len(shown["calls"]) == 2
    assert shown["batch_by"] == checksum(table.lab.world.safe.multi_send_call_only)
    assert await table.flags(file, offline=True) == ["delegatecall"]
    multi_send = next(iter(CALL_ONLY))
    await table.lab.node.set_code({multi_send: b"\x00"})
    assert await table.flags(file) == ["delegatecall"]


async def test_a_batch_is_not_built_where_it_would_do_nothing(table: Table) -> None:
    """A delegatecall to an address without code succeeds and does nothing, so a chain without it is refused.

    Removing a rogue guardian and restarting what it held is one plain call, which needs no batch.
    """
    await table.lab.node.set_code(dict.fromkeys(CALL_ONLY, b""))
    cast = table.lab.world.cast
    with pytest.raises(ConfigError, match="has no MultiSendCallOnly at 0x9641d764"):
        await table.build(
            "rotate-operator", checksum(cast.operator.address), checksum(actor("newcomer").address)
        )
    file = await table.build("remove-guardian", checksum(cast.guardians[0].address), "global")
    shown = await table.show(file)
    assert [call["function"] for call in shown["calls"]] == [
        "removeGuardianAndScheduleUnpause(address,bytes32)"
    ]


async def test_a_safe_that_is_none_is_said(table: Table) -> None:
    """A proposal for an account that is no Safe is flagged offline, and refused with a sentence by the chain."""
    made = replace(await table.pausing(), safe=table.lab.world.cast.lender.address)
    file = table.write(made)
    assert await table.flags(file, offline=True) == ["wrong_safe"]
    with pytest.raises(ConfigError, match="does not answer as a Safe"):
        await table.show(file)


# --- why a Safe refuses ----------------------------------------------------------------------------------------------


async def _answer(table: Table, made: Proposal, packed: bytes) -> str:
    """The code with which the real Safe refuses."""
    stranger = table.lab.world.cast.lender.address
    with pytest.raises(ExecutionError) as caught:
        await table.lab.node.send(Tx(stranger, made.safe, exec_calldata(made.tx, packed)), SAFE)
    return str(caught.value)


async def test_gs026_of_unsorted_signatures_and_of_a_wrong_nonce_are_told_apart(table: Table) -> None:
    """The Safe answers both alike; recomputing says which it is."""
    made = await table.pausing()
    owners = tuple(owner.address for owner in table.owners)
    two = sorted(table.owners[:2], key=lambda owner: owner.address)
    good = [sign_hash(owner, made.hash) for owner in two]
    unsorted = b"".join(reversed(good))
    assert "GS026" in await _answer(table, made, unsorted)
    assert "not in ascending order" in why_refused(made, unsorted, made.tx.nonce, owners)
    ahead = replace(made, tx=replace(made.tx, nonce=made.tx.nonce + 1))
    packed = pack_signatures({owner.address: sign_hash(owner, ahead.hash) for owner in two})
    assert "GS026" in await _answer(table, ahead, packed)
    assert "Wrong nonce" in why_refused(ahead, packed, made.tx.nonce, owners)
    assert "execute what has nonce" in why_refused(ahead, packed, made.tx.nonce, owners)
    assert "worthless" in why_refused(made, packed, made.tx.nonce + 1, owners)
    twice = good[0] + good[0]
    assert "GS026" in await _answer(table, made, twice)
    assert "twice" in why_refused(made, twice, made.tx.nonce, owners)
    lender = table.lab.world.cast.lender
    foreign = pack_signatures({o.address: sign_hash(o, made.hash) for o in (lender, two[0])})
    assert "GS026" in await _answer(table, made, foreign)
    assert f"by {checksum(lender.address)}, who is no owner" in why_refused(
        made, foreign, made.tx.nonce, owners
    )
    spoilt = bytes(64) + b"\x1b" + good[1]
    assert "GS026" in await _answer(table, made, spoilt)
    assert "by nobody" in why_refused(made, spoilt, made.tx.nonce, owners)


async def test_too_few_signatures_are_named_before_anything_is_sent(table: Table) -> None:
    """GS020 on chain; here a sentence with who is missing."""
    file = await table.build("pause", "global", "DRILL")
    await table.sign(file, table.owners[0])
    made = proposal.parse(file.read_text(), "it")
    assert "GS020" in await _answer(table, made, pack_signatures(signatures.valid(made)))
    assert checksum(table.owners[1].address) in str((await table.show(file))["missing"])
    with pytest.raises(ExecutionError, match=r"1 of 2 signatures are there; not signed have 0x"):
        await table.execute(file)


async def test_every_error_code_of_the_safes_source_is_explained() -> None:
    """The table names each code that the published contracts contain."""
    sources = node_modules() / "@safe-global/safe-contracts/contracts"
    code = "".join(path.read_text() for path in sources.rglob("*.sol"))
    found = set(re.findall(r"\"(GS\d{3})\"", code))
    assert len(found) > 25
    assert found <= set(CODES)


async def test_a_simulation_says_why_the_call_inside_fails(table: Table) -> None:
    """An unpause of what runs: GS013, and the guard's own reason beneath, with no signature at all."""
    file = await table.build("schedule", "global")
    answer = await table.simulate(file)
    assert answer["ok"] is False and answer["signatures"] == {"valid": 0, "threshold": 2, "complete": False}
    assert answer["causes"][0].startswith("GS013: the call inside failed")
    assert "NotPaused(0x" in answer["causes"][1]


@pytest.mark.parametrize("signed", [0, 1, 2])
async def test_a_simulation_works_before_all_have_signed(table: Table, signed: int) -> None:
    """With none, some or all signatures the Safe accepts what it would accept."""
    file = await table.build("pause", "global", "DRILL")
    await table.sign(file, *table.owners[:signed])
    answer = await table.simulate(file)
    assert answer["ok"] and answer["calls"][0]["ok"]
    assert answer["signatures"] == {"valid": signed, "threshold": 2, "complete": signed == 2}
    assert await table.nonce() == proposal.parse(file.read_text(), "it").tx.nonce


async def test_a_simulation_names_a_wrong_nonce(table: Table) -> None:
    """With and without signatures."""
    file = await table.build("pause", "global", "DRILL", nonce=await table.nonce() + 1)
    assert "the Safe is at" in (await table.simulate(file))["causes"][0]
    await table.sign(file, table.owners[0])
    causes = (await table.simulate(file))["causes"]
    assert causes[0].startswith("GS026") and causes[1].startswith("Wrong nonce")


# --- what counts as done ---------------------------------------------------------------------------------------------


async def test_status_1_with_an_execution_failure_is_a_failure(table: Table) -> None:
    """With safeTxGas set an inner revert looks like success on chain; it is flagged, tried, refused, and told."""
    data = PAUSE_GUARD.function("scheduleUnpause").encode(GLOBAL_SCOPE)
    file = table.write(await table.pausing(data=data, safe_tx_gas=100_000))
    assert await table.flags(file) == ["safe_tx_gas"]
    await table.sign(file, *table.owners[:2], despite=True)
    assert "ExecutionFailure" in (await table.simulate(file))["causes"][0]
    with pytest.raises(ExecutionError, match=r"Nothing was sent: .*ExecutionFailure"):
        await table.execute(file, despite=True)


async def test_a_failure_that_only_shows_when_mined_is_a_failure(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 1 and ExecutionFailure in the receipt: the command fails and says that the nonce is gone."""
    data = PAUSE_GUARD.function("scheduleUnpause").encode(GLOBAL_SCOPE)
    file = table.write(await table.pausing(data=data, safe_tx_gas=100_000))
    await table.sign(file, *table.owners[:2], despite=True)

    async def blind(*_: Any) -> dict[str, Any]:
        return {"ok": True, "causes": []}

    monkeypatch.setattr(pause, "_tried", blind)
    nonce = await table.nonce()
    with pytest.raises(ExecutionError, match=r"mined with status 1, and yet FAILED: .*Nonce \d+ is used up"):
        await table.execute(file, despite=True)
    assert await table.nonce() == nonce + 1


async def test_success_that_did_not_change_the_guard_is_a_failure(table: Table) -> None:
    """The Safe reports success, but what answers at the guard's address does nothing: the state decides."""
    file = await table.build("pause", "global", "DRILL")
    await table.sign(file, *table.owners[:2])
    # a contract that takes every call and answers it with zeros
    zeros = bytes.fromhex("6101006000f3")
    await table.lab.node.set_code({table.rig.pause_guard: zeros})
    with pytest.raises(ExecutionError, match=r"mined, and yet it did not happen that everything is paused"):
        await table.execute(file, despite=True)


# --- guardians -------------------------------------------------------------------------------------------------------


async def test_a_guardian_pauses_alone_with_its_own_key(table: Table) -> None:
    """Sent by the guardian, proved by the guard; a stranger's key is refused before it pays."""
    table.hold("GUARDIAN", table.lab.world.cast.guardians[0])
    answer = await guardian.pause(table.rig.config, "global", "EXPLOIT", "case 7", send=True, out=None)
    assert answer["proved"] == ["everything is paused without a scheduled restart"]
    table.hold("GUARDIAN", table.lab.world.cast.lender)
    with pytest.raises(ExecutionError, match=r"would revert with NotGuardian"):
        await guardian.pause(table.rig.config, "global", "EXPLOIT", None, send=True, out=None)


async def test_a_guardians_message_is_relayed_by_anybody(table: Table) -> None:
    """Signed without the chain, sent by a stranger; for another guard it is refused."""
    table.hold("GUARDIAN", table.lab.world.cast.guardians[1])
    out = table.folder / "stop.pause.json"
    made = await guardian.pause(table.rig.config, "aave-3-0", "ORACLE", None, send=False, out=out)
    assert made["guardian"] == checksum(table.lab.world.cast.guardians[1].address)
    table.hold("SENDER", table.lab.world.cast.liquidator)
    # the chain's clock stands far behind the wall's here, so the message is dated anew
    word = SignedPause.read(out.read_bytes(), "it").word
    at_s = (await table.lab.node.head()).timestamp_s
    with pytest.raises(ExecutionError, match="SignatureFromFuture"):
        await guardian.relay(table.rig.config, out)
    key = GuardianKey("0x" + table.lab.world.cast.guardians[1].key.hex(), 31337, "a key")
    word = replace(word, issued_at_s=at_s)
    signed = key.sign_pause(table.rig.pause_guard, word)
    out.write_text(SignedPause.made(table.rig.pause_guard, word, signed).text())
    answer = await guardian.relay(table.rig.config, out)
    assert answer["proved"] == ['the protocol "aave-3-0" is paused without a scheduled restart']
    out.write_text(SignedPause.made(Address(b"\x05" * 20), word, signed).text())
    with pytest.raises(ExecutionError, match="which is not yours"):
        await guardian.relay(table.rig.config, out)


async def test_a_restart_is_scheduled_vetoed_scheduled_and_executed(table: Table) -> None:
    """The whole way back; too early is refused with the guard's own reason, and nothing is sent."""
    cast = table.lab.world.cast
    await table.done("pause", "global", "DRILL")
    file = await table.build("schedule", "global")
    words = (await table.show(file))["calls"][0]["words"]
    assert words.startswith("RESTARTS everything 30 min after it is executed, not before 20")
    await table.sign(file, *table.owners[:2])
    await table.execute(file)
    table.hold("GUARDIAN", cast.guardians[0])
    assert (await guardian.veto(table.rig.config, "global"))["proved"] == [
        "everything has no scheduled restart"
    ]
    await table.done("schedule", "global")
    table.hold("SENDER", cast.lender)
    with pytest.raises(ExecutionError, match=r"Nothing was sent: .*UnpauseTooEarly"):
        await guardian.unpause(table.rig.config, "global")
    await table.lab.node.advance(DELAY_S)
    assert (await guardian.unpause(table.rig.config, "global"))["proved"] == ["everything runs"]


async def test_a_drill_rehearses_everything_and_touches_nothing(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps on a fork with their times; the real chain is at the same block; who is no guardian fails the drill."""
    before = await table.lab.node.head()
    who = checksum(table.lab.world.cast.guardians[0].address)
    answer = await drill.run(table.rig.config, who)
    assert answer["ok"] and len(answer["steps"]) == 6 and all(step["ms"] > 0 for step in answer["steps"])
    stranger = await drill.run(table.rig.config, checksum(table.lab.world.cast.lender.address))
    assert [step["ok"] for step in stranger["steps"]] == [False, True, True, False, True, True]

    def missing(name: str) -> Path:
        raise ConfigError(f"{name} is not installed")

    monkeypatch.setattr(drill, "tool", missing)
    answer = await drill.run(table.rig.config, who)
    assert answer["ok"] and len(answer["steps"]) == 2 and "simulation" in answer["how"]
    assert await table.lab.node.head() == before


# --- without the chain -----------------------------------------------------------------------------------------------


async def test_a_dead_node_does_not_stop_a_signer(table: Table) -> None:
    """Showing and signing go on from the file and say what was not checked; sending is refused as unreachable."""
    file = await table.build("pause", "global", "DRILL")
    dead = table.rig.config.read_text().replace(table.lab.anvil.ws_url, "http://127.0.0.1:9")
    table.rig.config.write_text(dead)
    shown = await table.show(file)
    assert shown["red_flags"] == [] and shown["threshold"] is None
    assert "no node answers" in shown["unchecked"][0]
    await table.sign(file, *table.owners[:2])
    with pytest.raises(ChainError, match="This needs the chain"):
        await table.execute(file)


async def test_a_file_alone_is_enough_to_show_and_sign(table: Table) -> None:
    """On a machine without configuration the hashes are the same, and the missing comparison is said."""
    file = await table.build("pause", "global", "DRILL")
    full = await table.show(file)
    table.monkeypatch.chdir(table.folder)
    (table.folder / "keeper.toml").unlink()
    alone = await table.show(file, config=Path("keeper.toml"))
    assert alone["hashes"] == full["hashes"] and alone["ok"]
    assert alone["unchecked"][0].startswith("Whether chain, Safe, targets and pause scopes are yours")
    with pytest.raises(ConfigError, match="There is no configuration at"):
        await table.show(file, config=Path("other.toml"))


async def test_the_keys_hash_is_the_safes_own(table: Table) -> None:
    """What SafeOwnerKey signs recovers over `getTransactionHash`."""
    made = await table.pausing(value_wei=3, safe_tx_gas=1, base_gas=2, gas_price_wei=3)
    key = SafeOwnerKey("0x" + table.owners[0].key.hex(), made.chain_id, "a key")
    tx = made.tx
    fields = (tx.to, tx.value_wei, tx.data, tx.operation, tx.safe_tx_gas, tx.base_gas, tx.gas_price_wei)
    rest = (tx.gas_token, tx.refund_receiver, tx.nonce)
    digest = await safe_contract(table.lab.node, table.lab.world.safe).read(
        "getTransactionHash", *fields, *rest
    )
    assert recovered(digest, key.sign_safe_tx(made.safe, tx)) == key.address


async def test_settings_that_a_deployment_needs_come_as_a_proposal(table: Table) -> None:
    """`keeper deploy`'s calls and the builder's batch are one transaction, and a signed file is not overwritten."""
    world = table.lab.world
    async with assembly.open_parts(assembly.settings(table.rig.config)) as parts:
        needs = await assembly.needs(parts, world.cast.operator.address)
        calls = setup_calls(table.rig.liquidator, needs)
        names = tuple(adapter.name for adapter in parts.adapters)
        pins = Pins(world.chain_id, world.safe.address, table.rig.pause_guard, table.rig.liquidator, names)
        path = await pause.set_up(parts.chain, pins, calls, table.folder / "safe-setup.json")
        assert path == table.folder / "safe-setup.safetx.json"
        made = proposal.parse(path.read_text(), "it")
        inner = [InnerCall(call.to, call.data) for call in calls]
        assert made.tx == batch(world.safe.multi_send_call_only, inner, await table.nonce())
        await table.sign(path, table.owners[0])
        await pause.set_up(parts.chain, pins, calls, table.folder / "safe-setup.json")
        assert len(proposal.parse(path.read_text(), "it").signatures) == 1
        assert await pause.set_up(parts.chain, pins, [], table.folder / "none.json") is None
    await table.sign(path, table.owners[1])
    assert (await table.show(path))["red_flags"] == []
    assert len((await table.execute(path))["proved"]) == len(calls)
    await execute(table.lab.node, world.safe, InnerCall(world.safe.address, b""))
