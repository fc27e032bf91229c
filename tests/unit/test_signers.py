"""Signers' files and red flags, without a chain: one test for each flag, each refusal, each kind of broken file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import _hash_eip191_message, encode_defunct, encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from keeper.abi import checksum
from keeper.commands.pause import grouped, merge
from keeper.commands.safe_chain import reason
from keeper.errors import ConfigError, ExecutionError, KeyMisuse
from keeper.guard import Fees
from keeper.guard.message import SignedPause
from keeper.installation import LIQUIDATOR, PAUSE_GUARD
from keeper.keys import GuardianKey, SafeOwnerKey, SenderKey, recovered
from keeper.multisig import builder
from keeper.multisig.decode import CALL_ONLY, SAFE, Pins, read
from keeper.multisig.flags import Facts, red_flags, unchecked
from keeper.multisig.meaning import Clock, proofs, words
from keeper.multisig.proposal import FIELDS, Proposal, parse
from keeper.multisig.safe import CALL, DELEGATE_CALL, InnerCall, batch
from keeper.multisig.safe_errors import CODES, code_in, explain
from keeper.multisig.signatures import attach, merged, signers
from keeper.seams import FlashKind
from keeper.typed_data import Pause, SafeTx, pause_hash
from keeper.types import GLOBAL_SCOPE, Address, Gas, Hash, Wei, hex_of

SAFE_AT, GUARD_AT, LIQUIDATOR_AT, OTHER = (Address(bytes([n]) * 20) for n in (0x11, 0x22, 0x33, 0x44))
PINS = Pins(1, SAFE_AT, GUARD_AT, LIQUIDATOR_AT, ("aave",))
AAVE = Hash(b"aave".ljust(32, b"\0"))
DRILL = b"DRILL\0\0\0"
MULTI_SEND = next(iter(CALL_ONLY))
KEYS = tuple(SafeOwnerKey(f"0x{n:064x}", 1, "a key") for n in (101, 102, 103))
UNKNOWN = Clock()
FEES = Fees(Wei(1), Wei(1), Gas(100_000))


def pausing(scope: bytes = GLOBAL_SCOPE) -> bytes:
    """Calldata of a pause."""
    return PAUSE_GUARD.function("pause").encode(scope, DRILL, bytes(32))


def proposed(**changes: Any) -> Proposal:
    """A clean pause of everything, with changed fields of the Safe's transaction."""
    fields: dict[str, Any] = {
        "to": GUARD_AT,
        "value_wei": 0,
        "data": pausing(),
        "operation": CALL,
        "nonce": 7,
    }
    return Proposal(1, SAFE_AT, SafeTx(**(fields | changes)), "stop")


def facts(made: Proposal, **changes: Any) -> Facts:
    """A chain that agrees with a proposal."""
    agreed: dict[str, Any] = {
        "now_s": 1_760_000_000,
        "chain_id": 1,
        "version": "1.4.1",
        "nonce": 7,
        "threshold": 2,
        "owners": tuple(key.address for key in KEYS),
        "chain_hash": made.hash,
        "unpause_delay_s": 1800,
        "code_faults": {},
        "code_hashes": dict(CALL_ONLY),
    }
    return Facts(**(agreed | changes))


def flags(made: Proposal, pins: Pins | None = PINS, known: Facts | None = None, **changes: Any) -> list[str]:
    """The flags that stand, by name."""
    known = known or facts(made, **changes)
    reading = read(made.safe, made.tx, pins)
    return [flag.name for flag in red_flags(made, reading, signers(made), pins, known)]


def batched(*calls: InnerCall, to: Address = MULTI_SEND) -> Proposal:
    """A batch through MultiSendCallOnly."""
    return Proposal(1, SAFE_AT, batch(to, calls, 7), "")


# --- red flags -------------------------------------------------------------------------------------------------------


def test_a_clean_pause_raises_no_flag() -> None:
    """What the tools build themselves is clean, alone and in a batch."""
    assert flags(proposed()) == []
    assert flags(batched(InnerCall(GUARD_AT, pausing()), InnerCall(GUARD_AT, pausing(AAVE)))) == []


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("safe_tx_gas", 1, "safe_tx_gas"),
        ("base_gas", 1, "base_gas"),
        ("gas_price_wei", 1, "gas_price"),
        ("gas_token", OTHER, "gas_token"),
        ("refund_receiver", OTHER, "refund_receiver"),
        ("value_wei", 1, "value"),
        ("operation", DELEGATE_CALL, "delegatecall"),
        ("to", OTHER, "unknown_target"),
        ("data", b"\x01\x02\x03\x04", "unknown_selector"),
        ("data", b"", "unknown_selector"),
        ("data", pausing() + b"\0", "unknown_selector"),
        ("data", pausing(b"avae".ljust(32, b"\0")), "unknown_scope"),
    ],
)
def test_flag_of_a_field(field: str, value: Any, flag: str) -> None:
    """One field away from clean raises exactly its flag."""
    assert flags(proposed(**{field: value})) == [flag]


@pytest.mark.parametrize(
    ("function", "arguments", "flag"),
    [
        ("addOwnerWithThreshold", (OTHER, 2), "owner_change"),
        ("removeOwner", (OTHER, OTHER, 2), "owner_change"),
        ("swapOwner", (OTHER, OTHER, OTHER), "owner_change"),
        ("changeThreshold", (1,), "threshold_change"),
        ("enableModule", (OTHER,), "module_change"),
        ("disableModule", (OTHER, OTHER), "module_change"),
        ("setGuard", (OTHER,), "guard_change"),
        ("setFallbackHandler", (OTHER,), "fallback_change"),
        ("approveHash", (bytes(32),), "unknown_selector"),
    ],
)
def test_flag_of_a_change_to_the_safe(function: str, arguments: tuple[Any, ...], flag: str) -> None:
    """Alone and hidden in a batch."""
    data = SAFE.function(function).encode(*arguments)
    assert flags(proposed(to=SAFE_AT, data=data)) == [flag]
    assert flags(batched(InnerCall(GUARD_AT, pausing()), InnerCall(SAFE_AT, data))) == [flag]


def test_flag_delegatecall_names_what_is_wrong() -> None:
    """Elsewhere, with other code there, unchecked, or inside a batch: a delegatecall is never let pass."""
    calls = (InnerCall(GUARD_AT, pausing()), InnerCall(GUARD_AT, pausing()))
    assert flags(batched(*calls, to=OTHER)) == ["delegatecall"]
    assert flags(batched(*calls), code_hashes={MULTI_SEND: Hash(bytes(32))}) == ["delegatecall"]
    made = batched(*calls)
    offline = red_flags(made, read(made.safe, made.tx, PINS), {}, PINS, None)
    assert [flag.name for flag in offline] == ["delegatecall"]
    assert "its code was not checked" in offline[0].what
    packed = bytes([DELEGATE_CALL]) + OTHER + bytes(32) + bytes(32)
    data = bytes.fromhex("8d80ff0a") + (32).to_bytes(32) + len(packed).to_bytes(32) + packed
    data += bytes(-len(packed) % 32)
    inside = proposed(to=MULTI_SEND, operation=DELEGATE_CALL, data=data)
    assert flags(inside) == ["delegatecall", "unknown_target"]


@pytest.mark.parametrize("cut", [1, 21, 85, 100])
def test_flag_unreadable_batch(cut: int) -> None:
    """A batch whose last call runs over its end."""
    packed = (bytes(1) + GUARD_AT + bytes(32) + len(pausing()).to_bytes(32) + pausing())[:cut]
    data = bytes.fromhex("8d80ff0a") + (32).to_bytes(32) + len(packed).to_bytes(32) + packed
    data += bytes(-len(packed) % 32)
    assert flags(proposed(to=MULTI_SEND, operation=DELEGATE_CALL, data=data)) == ["unreadable_batch"]


def test_flag_value_inside_and_beside_a_batch() -> None:
    """Ether leaves the Safe either way."""
    made = batched(InnerCall(GUARD_AT, pausing(), 5), InnerCall(GUARD_AT, pausing()))
    assert flags(made) == ["value"]
    plain = batched(InnerCall(GUARD_AT, pausing()), InnerCall(GUARD_AT, pausing()))
    assert flags(replace(plain, tx=replace(plain.tx, value_wei=5))) == ["value"]


def test_flag_wrong_chain_and_wrong_safe() -> None:
    """The configuration and the node say for whom it should be."""
    made = proposed()
    assert flags(replace(made, chain_id=10), chain_hash=replace(made, chain_id=10).hash) == ["wrong_chain"]
    assert flags(made, None, facts(made, chain_id=10)) == ["wrong_chain"]
    other = replace(made, safe=OTHER)
    assert flags(other) == ["wrong_safe"]


def test_flag_file_hash() -> None:
    """A hash that the file claims and its fields do not have."""
    made = proposed()
    assert flags(replace(made, claimed_hash=made.hash)) == []
    assert flags(replace(made, claimed_hash=Hash(bytes(32)))) == ["file_hash"]


def test_flag_chain_hash() -> None:
    """The Safe computes another hash."""
    assert flags(proposed(), chain_hash=Hash(bytes(32))) == ["chain_hash"]


@pytest.mark.parametrize(
    ("nonce", "wanted"),
    [(8, ["nonce_used"]), (7, []), (0, []), ("far", ["nonce_far_ahead"])],
)
def test_flag_of_the_nonce(nonce: int | str, wanted: list[str]) -> None:
    """Used, next, a few ahead, far ahead."""
    made = proposed(nonce=18) if nonce == "far" else proposed()
    assert flags(made, nonce=7 if nonce == "far" else nonce) == wanted


def test_flag_bad_signature_and_not_an_owner() -> None:
    """A signature is worth what it recovers to, and only from an owner."""
    made = proposed()
    mine = KEYS[0].sign_safe_tx(made.safe, made.tx)
    assert flags(replace(made, signatures={KEYS[0].address: mine})) == []
    assert flags(replace(made, signatures={KEYS[1].address: mine})) == ["bad_signature"]
    other = KEYS[0].sign_safe_tx(made.safe, replace(made.tx, nonce=8))
    assert flags(replace(made, signatures={KEYS[0].address: other})) == ["bad_signature"]
    stranger = SafeOwnerKey(f"0x{7:064x}", 1, "a key")
    given = stranger.sign_safe_tx(made.safe, made.tx)
    assert flags(replace(made, signatures={stranger.address: given})) == ["not_an_owner"]


def test_flag_unknown_scope_of_a_target() -> None:
    """A target in a scope that nobody configured would go on while its protocol is stopped."""
    for scope, wanted in ((AAVE, []), (bytes(32), []), (b"avae".ljust(32, b"\0"), ["unknown_scope"])):
        data = LIQUIDATOR.function("setTarget").encode(OTHER, b"\1\2\3\4", scope)
        assert flags(proposed(to=LIQUIDATOR_AT, data=data)) == wanted


def test_flag_target_code_and_unknown_version() -> None:
    """Code that differs from the build, a Safe of another version."""
    assert flags(proposed(), code_faults={GUARD_AT: "has no code"}) == ["target_code"]
    assert flags(proposed(), version="1.2.0") == ["unknown_version"]


def test_what_was_not_checked_is_said_and_is_no_flag() -> None:
    """Without configuration and chain a pause shows no flag, and two sentences about what is missing."""
    made = proposed()
    reading = read(made.safe, made.tx, None)
    assert red_flags(made, reading, {}, None, None) == []
    assert len(unchecked(reading, None, None, "there is no node")) == 2
    assert "there is no node" in unchecked(reading, None, None, "there is no node")[1]


# --- words -----------------------------------------------------------------------------------------------------------


def said(to: Address, data: bytes, clock: Clock = UNKNOWN) -> str | None:
    """What a call is said to do."""
    [call] = read(SAFE_AT, SafeTx(to, 0, data, CALL, 0), PINS).calls
    return words(call, clock)


def test_words_name_scope_guardian_and_time() -> None:
    """Which scope, which guardian, when."""
    assert said(GUARD_AT, pausing()) == "STOPS EVERYTHING at once. Reason: DRILL."
    assert said(GUARD_AT, pausing(AAVE)) == 'STOPS the protocol "aave" at once. Reason: DRILL.'
    schedule = PAUSE_GUARD.function("scheduleUnpause").encode(AAVE)
    assert said(GUARD_AT, schedule, Clock(1800, 1_760_000_000)) == (
        'RESTARTS the protocol "aave" 30 min after it is executed, not before 2025-10-09 09:23:20 UTC, once anyone '
        "then calls executeUnpause; any guardian can veto until then."
    )
    removal = PAUSE_GUARD.function("setGuardian").encode(OTHER, False)
    assert checksum(OTHER) in str(said(GUARD_AT, removal))
    assert "WITHOUT ANY SIGNATURE" in str(said(SAFE_AT, SAFE.function("enableModule").encode(OTHER)))


def test_every_setter_of_the_liquidator_has_words() -> None:
    """Whatever `keeper deploy` may ask the Safe for is explained; starting a liquidation is not the Safe's work."""
    arguments: Mapping[str, tuple[Any, ...]] = {
        "setOperator": (OTHER, True),
        "setTarget": (OTHER, b"\1\2\3\4", AAVE),
        "setSettledJointly": (AAVE, True),
        "setFlashSource": (OTHER, 1),
        "setVenue": (OTHER, 9),
        "setFeed": (OTHER, OTHER, 3600),
        "setMaxSlippageBps": (77,),
        "sweep": ([OTHER],),
    }
    for name, given_ in arguments.items():
        assert said(LIQUIDATOR_AT, LIQUIDATOR.function(name).encode(*given_)), name
    assert "unknown kind 9" in str(said(LIQUIDATOR_AT, LIQUIDATOR.function("setVenue").encode(OTHER, 9)))
    for kind in FlashKind:
        lending = LIQUIDATOR.function("setFlashSource").encode(OTHER, int(kind))
        assert kind is FlashKind.NONE or f"({kind.name})" in str(said(LIQUIDATOR_AT, lending))
    for callback in (
        LIQUIDATOR.function("executeOperation").encode(OTHER, 1, 1, OTHER, b""),
        LIQUIDATOR.function("onMorphoFlashLoan").encode(1, b""),
        LIQUIDATOR.function("onMorphoLiquidate").encode(1, b""),
        LIQUIDATOR.function("uniswapV3FlashCallback").encode(1, 0, b""),
    ):
        assert said(LIQUIDATOR_AT, callback) is None


RUNNING = (False, 3, 0, 0, 9, bytes(8))
PAUSED = (True, 3, 5, 0, 0, DRILL)
SCHEDULED = (True, 3, 5, 8, 0, DRILL)


@pytest.mark.parametrize(
    ("function", "given_", "done", "not_done"),
    [
        ("pause", (AAVE, DRILL, bytes(32)), [PAUSED], [RUNNING, SCHEDULED]),
        ("scheduleUnpause", (AAVE,), [SCHEDULED], [PAUSED, RUNNING]),
        ("vetoUnpause", (AAVE,), [PAUSED, RUNNING], [SCHEDULED]),
        ("executeUnpause", (AAVE,), [RUNNING], [PAUSED, SCHEDULED]),
    ],
)
def test_a_call_of_the_guard_is_proved_only_by_the_state_it_is_for(
    function: str, given_: tuple[Any, ...], done: list[Any], not_done: list[Any]
) -> None:
    """Each state of the scope is judged as what it is."""
    data = PAUSE_GUARD.function(function).encode(*given_)
    [call] = read(SAFE_AT, SafeTx(GUARD_AT, 0, data, CALL, 0), PINS).calls
    [proof] = proofs(call)
    assert proof.read == PAUSE_GUARD.function("scopeState").call(GUARD_AT, AAVE)
    assert all(proof.holds(state) for state in done)
    assert not any(proof.holds(state) for state in not_done)


@pytest.mark.parametrize(
    ("interface", "to", "function", "given_", "answers"),
    [
        (PAUSE_GUARD, GUARD_AT, "setGuardian", (OTHER, True), [(True, False)]),
        (LIQUIDATOR, LIQUIDATOR_AT, "setOperator", (OTHER, False), [(False, True)]),
        (LIQUIDATOR, LIQUIDATOR_AT, "setTarget", (OTHER, b"\1\2\3\4", AAVE), [(AAVE, bytes(32))]),
        (LIQUIDATOR, LIQUIDATOR_AT, "setSettledJointly", (AAVE, True), [(True, False)]),
        (LIQUIDATOR, LIQUIDATOR_AT, "setFlashSource", (OTHER, 1), [(1, 0)]),
        (LIQUIDATOR, LIQUIDATOR_AT, "setVenue", (OTHER, 0), [(0, 1)]),
        (
            LIQUIDATOR,
            LIQUIDATOR_AT,
            "setFeed",
            (OTHER, SAFE_AT, 9),
            [((SAFE_AT, 9, 8, 18), (SAFE_AT, 8, 8, 18))],
        ),
        (LIQUIDATOR, LIQUIDATOR_AT, "setMaxSlippageBps", (77,), [(77, 78)]),
        (SAFE, SAFE_AT, "addOwnerWithThreshold", (OTHER, 2), [(True, False), (2, 1)]),
        (SAFE, SAFE_AT, "removeOwner", (OTHER, OTHER, 2), [(False, True), (2, 1)]),
        (SAFE, SAFE_AT, "swapOwner", (OTHER, OTHER, GUARD_AT), [(False, True), (True, False)]),
        (SAFE, SAFE_AT, "changeThreshold", (3,), [(3, 2)]),
        (SAFE, SAFE_AT, "enableModule", (OTHER,), [(True, False)]),
        (SAFE, SAFE_AT, "disableModule", (OTHER, OTHER), [(False, True)]),
    ],
)
def test_a_setting_is_proved_only_by_its_getter(
    interface: Any, to: Address, function: str, given_: tuple[Any, ...], answers: list[tuple[Any, Any]]
) -> None:
    """The wanted answer proves it, another one does not."""
    [call] = read(SAFE_AT, SafeTx(to, 0, interface.function(function).encode(*given_), CALL, 0), PINS).calls
    found = proofs(call)
    assert len(found) == len(answers)
    for proof, (right, wrong) in zip(found, answers, strict=True):
        assert proof.read.to == to and proof.holds(right) and not proof.holds(wrong)


def test_a_terminal_cannot_be_fooled_by_a_revert() -> None:
    """A contract's own words are escaped."""
    text = "\x1b[2Jall is well"
    packed = text.encode().ljust(-(-len(text) // 32) * 32, b"\0")
    data = bytes.fromhex("08c379a0") + (32).to_bytes(32) + len(text).to_bytes(32) + packed
    assert reason(data) == "Error(\\x1b[2Jall is well)"


def test_a_terminal_cannot_be_fooled_by_a_scope() -> None:
    """Escape sequences in a scope or a reason are shown escaped."""
    text = str(said(GUARD_AT, pausing(b"\x1b[2J\xff".ljust(32, b"\0"))))
    assert "\x1b" not in text and "\\x1b" in text


def test_hashes_are_grouped_in_eights_in_both_cases() -> None:
    """Capitals as Ledger shows them, small letters as Trezor does."""
    value = Hash(bytes(range(0xE0, 0x100)))
    shown = grouped(value)
    assert shown["ledger"].startswith("0x E0E1E2E3 E4E5E6E7 ") and shown["trezor"].startswith("0x e0e1e2e3 ")
    assert shown["ledger"].replace(" ", "").lower() == hex_of(value) == shown["hex"]
    assert all(len(group) == 8 for group in shown["ledger"].split()[1:])


# --- files -----------------------------------------------------------------------------------------------------------


def file_with(**changes: Any) -> str:
    """A proposal's file with keys set; None removes one, and a dot leads inside."""
    document: dict[str, Any] = json.loads(proposed().text())
    for name, value in changes.items():
        inside, _, key = name.rpartition("__")
        target = document[inside] if inside else document
        if value is None:
            del target[key]
        else:
            target[key] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": 2}, "version is 2, and this program reads 1"),
        ({"version": True}, "version is true"),
        ({"extra": 1}, 'the key "extra" is unknown'),
        ({"note": None}, "the key note is missing"),
        ({"note": "a\x1b[2Jb"}, "not printable text"),
        ({"note": "a\u202eb"}, "not printable text"),
        ({"note": "x" * 2001}, "not printable text"),
        ({"chain_id": 1}, "chain_id is 1, not a decimal number in quotes"),
        ({"chain_id": "0x1"}, "not a decimal number in quotes"),
        ({"chain_id": "01"}, "not a decimal number in quotes"),
        ({"chain_id": "-1"}, "not a decimal number in quotes"),
        ({"chain_id": "٣"}, "not a decimal number in quotes"),
        ({"safe": "0x12"}, "is not an address"),
        ({"safe": "0x63FA7Fe9Ee24094CB5366b076EC6d6DaC8946D3C"}, "wrong checksum"),
        ({"safe": 5}, "is not an address"),
        ({"transaction": []}, r"transaction is \[\], not an object"),
        ({"transaction__extra": "1"}, 'transaction: the key "extra" is unknown'),
        ({"transaction__gasPrice": None}, "the key gasPrice is missing"),
        ({"transaction__operation": "2"}, r"transaction\.operation is \"2\""),
        ({"transaction__nonce": 7}, r"transaction\.nonce is 7"),
        ({"transaction__value": str(2**256)}, r"transaction\.value is"),
        ({"transaction__data": "0x123"}, "not 0x and hexadecimal digits"),
        ({"transaction__data": "1234"}, "not 0x and hexadecimal digits"),
        ({"signatures": []}, "signatures is"),
        ({"signatures__0x12": "0x"}, "is not an address"),
        ({"signatures__0x" + "44" * 20: "0x1234"}, "has 2 bytes, not 65"),
        ({"safe_tx_hash": "0x12"}, "safe_tx_hash has 1 bytes, not 32"),
    ],
)
def test_a_broken_file_is_refused_with_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    """What is wrong, and where; nothing is guessed."""
    with pytest.raises(ExecutionError, match=sentence) as caught:
        parse(file_with(**changes), "it.safetx.json")
    assert str(caught.value).startswith("it.safetx.json")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "nonsense", '{"version": 1, "version": 1}', "[" * 100_000])
def test_what_is_no_object_is_refused(text: str) -> None:
    """No JSON, another shape, a repeated key, hostile nesting."""
    with pytest.raises(ExecutionError):
        parse(text, "it")


def test_an_owner_signs_once_however_it_is_written() -> None:
    """Two spellings of one address are one owner."""
    signature = hex_of(KEYS[0].sign_safe_tx(SAFE_AT, proposed().tx))
    twice = {checksum(KEYS[0].address): signature, hex_of(KEYS[0].address): signature}
    with pytest.raises(ExecutionError, match="signs twice"):
        parse(file_with(signatures=twice), "it")


@given(st.binary(max_size=60), st.integers(0, 2**256 - 1), st.text(max_size=40))
def test_a_file_gives_back_what_was_written(data: bytes, value: int, note: str) -> None:
    """Writing and reading are inverse, also for what another program spells in other letter case."""
    note = "".join(char for char in note if char.isprintable())
    made = replace(proposed(data=data, value_wei=value), note=note)
    assert parse(made.text(), "it") == made
    assert parse(made.text(), "it").text() == made.text()


# --- signatures ------------------------------------------------------------------------------------------------------


def test_a_foreign_or_spoilt_signature_is_refused_by_name() -> None:
    """Another signer, another transaction, nonsense, another length."""
    made = proposed()
    owner = KEYS[0].address
    with pytest.raises(ExecutionError, match=f"is by {checksum(KEYS[1].address)}, not by"):
        attach(made, owner, KEYS[1].sign_safe_tx(made.safe, made.tx))
    with pytest.raises(ExecutionError, match="not by"):
        attach(made, owner, KEYS[0].sign_safe_tx(made.safe, replace(made.tx, nonce=8)))
    with pytest.raises(ExecutionError, match="is nobody's"):
        attach(made, owner, bytes(64) + b"\x1b")
    with pytest.raises(ExecutionError, match="65 bytes, and this one has 64"):
        attach(made, owner, bytes(64))


def test_a_contracts_signature_and_an_approval_are_refused() -> None:
    """v 0 and 1; where a wallet wrote the parity for v the sentence says which byte to write."""
    made, owner = proposed(), KEYS[0].address
    with pytest.raises(ExecutionError, match="contract's signature") as caught:
        attach(made, owner, bytes(12) + owner + (65).to_bytes(32) + b"\0" + b"more")
    assert "1b" not in str(caught.value)
    with pytest.raises(ExecutionError, match="claims an approval given on chain"):
        attach(made, owner, bytes(12) + owner + bytes(32) + b"\1")
    good = KEYS[0].sign_safe_tx(made.safe, made.tx)
    with pytest.raises(ExecutionError, match=r"then give it with 1[bc]"):
        attach(made, owner, good[:64] + bytes([good[64] - 27]))


def test_a_message_signature_is_told_which_byte_it_needs() -> None:
    """A wallet's personal_sign of the hash is the owner's, but a Safe wants v raised by four."""
    made, secret = proposed(), f"0x{101:064x}"
    signature = bytes(Account.sign_message(encode_defunct(primitive=made.hash), secret).signature)
    right = signature[64] + 4
    with pytest.raises(ExecutionError, match=f"with a last byte of {right:02x}"):
        attach(made, KEYS[0].address, signature)
    assert attach(made, KEYS[0].address, signature[:64] + bytes([right])).signatures


def test_a_note_that_could_not_be_read_again_is_not_written() -> None:
    """What a file may not say is refused when it is built."""
    for note in ("two\nlines", "x" * 2001):
        with pytest.raises(ExecutionError, match="The note is"):
            builder.propose(PINS, [InnerCall(GUARD_AT, pausing())], 7, note)


@given(st.binary(min_size=65, max_size=65), st.binary(min_size=32, max_size=32))
def test_recovering_never_fails(signature: bytes, digest: bytes) -> None:
    """Any 65 bytes are somebody's or nobody's; no bytes raise."""
    found = recovered(Hash(digest), signature)
    assert found is None or len(found) == 20


def test_merging_refuses_another_transaction_by_its_field(tmp_path: Path) -> None:
    """Each field is named, and for the same nonce that they are rivals."""
    made = proposed()
    changes: dict[str, Any] = {
        "to": OTHER,
        "value": 1,
        "data": b"",
        "operation": 1,
        "safeTxGas": 1,
        "baseGas": 1,
        "gasPrice": 1,
        "gasToken": OTHER,
        "refundReceiver": OTHER,
        "nonce": 8,
    }
    assert list(changes) == list(FIELDS)
    for name, value in changes.items():
        other = replace(made, tx=replace(made.tx, **{FIELDS[name]: value}))
        with pytest.raises(
            ExecutionError, match=f"b is another transaction than a: {name} differs"
        ) as caught:
            merged([("a", made), ("b", other)])
        assert ("rivals for nonce 7" in str(caught.value)) == (name != "nonce")
    for name, other in (("chain_id", replace(made, chain_id=2)), ("safe", replace(made, safe=OTHER))):
        with pytest.raises(ExecutionError, match=f"{name} differs"):
            merged([("a", made), ("b", other)])


def test_merging_takes_no_bad_signature_and_no_false_hash() -> None:
    """A file that lies is named."""
    made = proposed()
    given_ = KEYS[0].sign_safe_tx(made.safe, made.tx)
    wrong = replace(made, signatures={KEYS[1].address: given_})
    with pytest.raises(ExecutionError, match=r"b: 0x.*is by 0x"):
        merged([("a", made), ("b", wrong)])
    with pytest.raises(ExecutionError, match="b says another hash than its fields give"):
        merged([("a", made), ("b", replace(made, claimed_hash=Hash(bytes(32))))])


def test_a_merge_never_overwrites_another_file(tmp_path: Path) -> None:
    """Only one of the merged files may be written over."""
    one, other, out = (tmp_path / f"{name}.safetx.json" for name in ("a", "b", "c"))
    made = proposed()
    for path, key in ((one, KEYS[0]), (other, KEYS[1])):
        path.write_text(attach(made, key.address, key.sign_safe_tx(made.safe, made.tx)).text())
    out.write_text("mine")
    with pytest.raises(ConfigError, match="is there already and is not overwritten"):
        merge([one, other], out)
    assert len(merge([one, other], one)["signed"]) == 2


# --- building --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "words_", "sentence"),
    [
        ("explode", [], "is nothing to build; choose one of pause, schedule"),
        ("pause", ["global"], r"takes SCOPE REASON \[INCIDENT\]"),
        ("pause", ["avae", "DRILL"], "avae is no pause scope; the scopes are global, aave"),
        ("pause", ["global", "drill"], "is no reason"),
        ("pause", ["global", "TOOLONGREASON"], "is no reason"),
        ("pause", ["global", "DRILL", "x" * 33], "is no incident"),
        ("operator", ["0x12", "on"], "is not an address"),
        ("operator", ["0x" + "00" * 20, "on"], "is the zero address"),
        ("operator", ["0x" + "44" * 20, "maybe"], "neither on nor off"),
        ("target", ["global", "0x" + "44" * 20, "0x01020304"], "belongs to one protocol"),
        ("target", ["aave", "0x" + "44" * 20, "0x0102"], "no function selector"),
        ("venue", ["0x" + "44" * 20, "sushi"], "is not one of uniswap-v3, uniswap-v2, off"),
        ("slippage", ["-1"], "is not basis points"),
        ("swap-owner", ["0x" + "44" * 20, "0x" + "55" * 20], "must be read from the chain"),
    ],
)
def test_what_cannot_be_built_is_said(action: str, words_: list[str], sentence: str) -> None:
    """Arguments that do not fit are a configuration error with one sentence."""
    with pytest.raises(ConfigError, match=sentence):
        builder.build(builder.Site(PINS), action, words_)


def test_the_owner_before_is_found_in_the_safes_own_order() -> None:
    """The first is behind the sentinel, a stranger is refused."""
    site = builder.Site(PINS, tuple(key.address for key in KEYS))
    [call] = builder.build(site, "swap-owner", [checksum(KEYS[0].address), checksum(OTHER)])
    assert SAFE.function("swapOwner").decode_input(call.data)[0] == bytes(19) + b"\1"
    [call] = builder.build(site, "remove-owner", [checksum(KEYS[2].address), "2"])
    assert SAFE.function("removeOwner").decode_input(call.data)[0] == KEYS[1].address
    with pytest.raises(ConfigError, match="is no owner of the Safe"):
        builder.build(site, "remove-owner", [checksum(OTHER), "2"])


# --- keys ------------------------------------------------------------------------------------------------------------


def test_the_senders_key_sends_nothing_of_its_own() -> None:
    """A transfer, a pause or any other call is misuse."""
    key = SenderKey(f"0x{5:064x}", 1, "a key")
    for data in (b"", b"\xde\xad\xbe\xef", pausing()):
        with pytest.raises(KeyMisuse, match="only sends what anybody may send"):
            key.sign_relay(OTHER, data, 0, FEES)


def test_a_guardians_message_is_eip_712_as_others_compute_it() -> None:
    """The digest is eth-account's for the same typed data, and the file gives the message back."""
    word = Pause(AAVE, DRILL, Hash(b"\7" * 32), 1_760_000_000)
    types = {
        "Pause": [
            {"name": "scope", "type": "bytes32"},
            {"name": "reason", "type": "bytes8"},
            {"name": "incident", "type": "bytes32"},
            {"name": "issuedAt", "type": "uint40"},
        ]
    }
    domain = {"name": "PauseGuard", "version": "1", "verifyingContract": checksum(GUARD_AT)}
    message = {"scope": AAVE, "reason": DRILL, "incident": word.incident, "issuedAt": word.issued_at_s}
    expected = bytes(_hash_eip191_message(encode_typed_data(domain, types, message)))
    assert expected == pause_hash(GUARD_AT, word)
    key = GuardianKey(f"0x{6:064x}", 1, "a key")
    signature = key.sign_pause(GUARD_AT, word)
    assert recovered(pause_hash(GUARD_AT, word), signature) == key.address
    signed = SignedPause.made(GUARD_AT, word, signature)
    assert signed.digest == expected and signed.canonical
    assert SignedPause.read(signed.text().encode(), "it") == signed and signed.word == word


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("version", 2, "version is 2"),
        ("scope", "0x12", "scope must be 0x and 64"),
        ("reason", "DRILL", "reason must be 0x and 16"),
        ("issued_at", 5, "issued_at"),
        ("issued_at", str(2**40), "issued_at must be seconds"),
        ("signature", "0x00", "signature must be 0x and 130"),
        ("pause_guard", "me", "is not an address"),
        ("more", 1, "unknown field `more`"),
    ],
)
def test_a_broken_pause_message_is_refused(key: str, value: Any, sentence: str) -> None:
    """One sentence, as for proposals, which says where it stands."""
    message = SignedPause.made(GUARD_AT, Pause(AAVE, DRILL, Hash(bytes(32)), 1), bytes(65))
    document = json.loads(message.text()) | {key: value}
    with pytest.raises(ExecutionError, match=f"^it is not a signed pause: .*{sentence}"):
        SignedPause.read(json.dumps(document).encode(), "it")


def test_a_signed_pause_cannot_fool_a_terminal() -> None:
    """What a hostile file calls its fields is quoted escaped, and cut."""
    text = json.dumps({"\x1b[2J\u2028" + "x" * 5_000: 1}, ensure_ascii=False)
    with pytest.raises(ExecutionError) as caught:
        SignedPause.read(text.encode(), "it")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def test_a_signed_pause_says_each_thing_once() -> None:
    """Of a repeated key programs read one or the other: the file is refused."""
    text = SignedPause.made(GUARD_AT, Pause(AAVE, DRILL, Hash(bytes(32)), 1), bytes(65)).text()
    with pytest.raises(ExecutionError, match="stands there twice"):
        SignedPause.read(text.replace("{", '{"issued_at": "2", ', 1).encode(), "it")


# --- a Safe's errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_says_what_happened_and_what_to_do(code: str) -> None:
    """Found in a revert reason and turned into one sentence with a remedy."""
    assert code_in(f"Error({code})") == code
    sentence = explain(code)
    assert sentence.startswith(f"{code}: ") and "; " in sentence and sentence.endswith(".")


def test_an_unknown_code_is_not_explained_away() -> None:
    """A newer Safe's code is said to be unknown."""
    assert "no error of Safe 1.3.0 or 1.4.1" in explain("GS403")
    assert code_in("execution reverted") is None
