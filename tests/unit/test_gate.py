"""What closes the gate, what opens it again, what it remembers, and how small a keeper begins after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from keeper import abi
from keeper.breakers.trips import PAUSE_LOST, Place, clear, lost_pauses
from keeper.errors import ExecutionError, LedgerError
from keeper.guard import STOPPED, Gate, PauseState, Ramp, Scope, Stage, named, scope_named, scope_of
from keeper.guard.message import SignedPause, Verdict
from keeper.guard.sightings import paused_by
from keeper.keys import recovered
from keeper.ledger import Ledger
from keeper.multisig.safe import InnerCall, batch, exec_calldata
from keeper.store import Store
from keeper.typed_data import SafeTx
from keeper.types import GLOBAL_SCOPE, Address, BlockNumber, BlockTime, Hash

AAVE, MORPHO = scope_of("aave"), scope_of("morpho")
GUARD, SAFE, MULTI_SEND = (Address(bytes([number]) * 20) for number in (1, 2, 3))
TX = Hash(b"\x07" * 32)
RUNNING = Scope(False, 4, 0, 0, 0, "")
PAUSED = Scope(True, 4, 1_000, 0, 0, "DRILL")
UNPAUSED = Scope(False, 5, 0, 0, 1_100, "")
KEY = "0x" + "11" * 32
PAUSE = abi.load("PauseGuard").function("pause")
BY_SIG = abi.load("PauseGuard").function("pauseBySig")
MESSAGE = SignedPause(GUARD, AAVE, b"DRILL\0\0\0", Hash(bytes(32)), 1_050, b"\x01" * 65)
TOLD = Verdict(told=True, vetoes=False)
_E8 = 10**8


def at(number: int, scopes: Mapping[Hash, Scope]) -> PauseState:
    """What the chain says at a block; scopes not named run."""
    return PauseState(
        BlockTime(BlockNumber(number), Hash(bytes(32)), 1_000 + number),
        {GLOBAL_SCOPE: RUNNING, AAVE: RUNNING, MORPHO: RUNNING, **scopes},
    )


def gate(confirmations: int = 2) -> Gate:
    """A gate without a halt file."""
    return Gate(Path("/nonexistent/halt"), confirmations)


def cause(closed: Gate, protocol: str = "aave") -> str | None:
    """Which cause stops a protocol."""
    stop = closed.standing(protocol)
    if stop is None:
        return None
    assert stop.reason in STOPPED, "what is in flight is taken back"
    return str(stop.numbers.get("cause", stop.reason))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty record."""
    with Store.open(f"sqlite:///{tmp_path / 'keeper.db'}", chain_id=1) as store:
        yield Ledger(store)


def book(ledger: Ledger, closed: Gate) -> None:
    """Put a gate's changes on record, as the engine does."""
    for change in closed.changes:
        body = {"scope": named(change.scope), "cause": change.cause, "head": 1, **change.body}
        ledger.book(change.kind, None, "", None, body, 1)
    closed.changes = []


def again(ledger: Ledger) -> Gate:
    """The gate of the next run."""
    fresh = gate()
    fresh.remember(ledger.entries(None, kind=("pause", "resume"))[::-1])
    return fresh


# --- scopes ---


def test_a_scope_closes_itself_and_the_global_one_everything() -> None:
    """A protocol's pause stops that protocol alone."""
    closed = gate()
    closed.see_chain(at(1, {AAVE: PAUSED}))
    assert (cause(closed), cause(closed, "morpho")) == ("chain", None)
    closed.see_chain(at(2, {GLOBAL_SCOPE: PAUSED, AAVE: PAUSED}))
    assert (cause(closed), cause(closed, "morpho")) == ("chain", "chain")


@pytest.mark.parametrize("scope", [GLOBAL_SCOPE, AAVE])
def test_a_scope_is_found_again_by_its_name(scope: Hash) -> None:
    """The record names scopes as people do."""
    assert scope_named(named(scope)) == scope


# --- the chain ---


def test_only_a_final_unpause_opens() -> None:
    """The epoch has grown, but until it is deep enough the scope stays closed, and says so."""
    closed = gate()
    closed.see_chain(at(1, {AAVE: PAUSED}))
    after = at(2, {AAVE: UNPAUSED})
    closed.see_chain(after)
    assert closed.unsettled(after)
    closed.see_final(after, 1_100)
    stop = closed.standing("aave")
    assert stop is not None and stop.reason == "unpause_not_final"
    closed.see_final(after, 1_101)
    assert cause(closed) is None and not closed.unsettled(after)
    assert [(c.kind, c.cause) for c in closed.changes] == [("pause", "chain"), ("resume", "chain")]


def test_a_pause_that_is_gone_without_an_unpause_is_lost() -> None:
    """The same epoch and no pause: its block was orphaned. However long it lasts, only the chain opens it."""
    closed = gate()
    closed.see_chain(at(1, {AAVE: PAUSED}))
    for number in range(2, 200):
        state = at(number, {})
        closed.see_chain(state)
        closed.see_final(state, None)
    assert closed.closed("lost") == [AAVE] and cause(closed) is not None
    closed.see_chain(at(200, {AAVE: PAUSED}))
    assert closed.closed("lost") == []
    closed.see_chain(at(201, {AAVE: UNPAUSED}))
    closed.see_final(at(201, {AAVE: UNPAUSED}), None)
    assert cause(closed) is None


def test_an_orphaned_unpause_closes_again() -> None:
    """While it was not final the chain went back: paused as before, and not lost."""
    closed = gate()
    closed.see_chain(at(1, {AAVE: PAUSED}))
    after = at(2, {AAVE: UNPAUSED})
    closed.see_chain(after)
    closed.see_final(after, 1_000)
    closed.see_chain(at(2, {AAVE: PAUSED}))
    stop = closed.standing("aave")
    assert stop is not None and stop.reason == "paused" and not closed.closed("lost")


def test_an_unpause_and_its_pause_orphaned_together_are_lost() -> None:
    """The chain went back to before both: nobody unpaused what was paused."""
    closed = gate()
    closed.see_chain(at(1, {AAVE: PAUSED}))
    after = at(2, {AAVE: UNPAUSED})
    closed.see_chain(after)
    closed.see_final(after, 1_000)
    closed.see_chain(at(3, {}))
    assert closed.closed("lost") == [AAVE]


def test_an_old_unpause_books_nothing() -> None:
    """A first start on a chain that was unpaused long ago is neither a pause nor a resume."""
    fresh = gate()
    state = at(900, {AAVE: UNPAUSED})
    fresh.see_chain(state)
    fresh.see_final(state, 1_898)
    assert cause(fresh) is None and not fresh.changes


# --- what is only announced ---


def test_a_pending_pause_is_lifted_after_three_blocks() -> None:
    """Seen at block 10 it may land until 13; at 13 without it, it is over."""
    closed = gate()
    closed.see_pending(GLOBAL_SCOPE, TX, BlockNumber(10))
    assert closed.shut.is_set()
    for number in (10, 11, 12):
        closed.see_chain(at(number, {}))
        assert cause(closed) == "pending"
    closed.see_chain(at(13, {}))
    assert cause(closed) is None and not closed.closed("lost")


def test_a_pending_pause_that_lands_is_the_chains() -> None:
    """It is not provisional any more: three blocks later it still holds."""
    closed = gate()
    closed.see_pending(AAVE, TX, BlockNumber(10))
    for number in range(11, 20):
        closed.see_chain(at(number, {AAVE: PAUSED}))
    assert cause(closed) == "chain" and not closed.closed("pending")


def test_a_signed_pause_holds_until_the_chain_has_it() -> None:
    """Blocks alone never lift it."""
    closed = gate()
    closed.see_signed(MESSAGE, TOLD)
    for number in range(1, 50):
        closed.see_chain(at(number, {}))
    assert cause(closed) == "signed"
    closed.see_chain(at(50, {AAVE: PAUSED}))
    assert cause(closed) == "chain" and closed.messages == {AAVE: MESSAGE}, "kept, lest it be erased"


def test_a_veto_holds_until_the_schedule_is_gone() -> None:
    """The scope is paused already: only that nothing is scheduled any more shows that the chain took the message."""
    closed = gate()
    closed.see_signed(MESSAGE, Verdict(told=True, vetoes=True))
    closed.see_chain(at(1, {AAVE: replace(PAUSED, unpause_at_s=1_080)}))
    assert closed.closed("signed") == [AAVE]
    closed.see_chain(at(2, {AAVE: PAUSED}))
    assert closed.closed("signed") == []


@pytest.mark.parametrize("vetoes", [True, False], ids=["veto", "pause"])
def test_an_earlier_head_does_not_answer_a_guardians_words(vetoes: bool) -> None:
    """It was asked about before they came, and is told of after: what it says of the scope is of before, too."""
    closed = gate()
    closed.see_chain(at(3, {AAVE: PAUSED}))
    closed.see_signed(MESSAGE, Verdict(told=True, vetoes=vetoes, block=5))
    closed.see_chain(at(4, {AAVE: PAUSED}))
    assert closed.closed("signed") == [AAVE]
    closed.see_chain(at(5, {AAVE: PAUSED}))
    assert closed.closed("signed") == []


def test_words_older_than_an_unpause_are_dead() -> None:
    """The chain was paused and unpaused in between, by others: what a guardian said before no longer holds."""
    closed = gate()
    closed.see_signed(MESSAGE, TOLD)
    state = at(2, {AAVE: UNPAUSED})
    closed.see_chain(state)
    closed.see_final(state, None)
    assert cause(closed) is None and not closed.messages


def test_words_younger_than_an_unpause_outlive_its_finality(ledger: Ledger) -> None:
    """A guardian speaks again before the unpause is final: when it is, the words still hold, over a restart too."""
    closed = gate()
    closed.see_chain(at(1, {AAVE: PAUSED}))
    after = at(2, {AAVE: UNPAUSED})
    closed.see_chain(after)
    closed.see_final(after, 1_000)
    message = replace(MESSAGE, issued_at_s=1_101)
    closed.see_signed(message, TOLD)
    closed.see_final(after, None)
    book(ledger, closed)
    for each in (closed, again(ledger)):
        assert cause(each) == "signed" and each.messages == {AAVE: message}


def test_what_the_chain_will_not_take_stays_closed(ledger: Ledger) -> None:
    """A relay that reverts is not tried for ever, after a restart neither, and the gate does not open for it."""
    closed = gate()
    closed.see_signed(MESSAGE, TOLD)
    closed.give_up(AAVE, "reverted")
    closed.see_chain(at(9, {}))
    book(ledger, closed)
    for each in (closed, again(ledger)):
        assert cause(each) == "lost" and not each.messages and not each.closed("signed")


def test_an_unpause_from_before_does_not_open_what_the_chain_will_not_take(ledger: Ledger) -> None:
    """It was final long ago, and a restart judges it anew; only an unpause after those words says they are over."""
    closed = gate()
    closed.see_signed(replace(MESSAGE, issued_at_s=1_200), TOLD)
    closed.give_up(AAVE, "reverted")
    book(ledger, closed)
    for each in (closed, again(ledger)):
        before = at(900, {AAVE: UNPAUSED})
        each.see_chain(before)
        each.see_final(before, None)
        assert cause(each) == "lost"
        after = at(901, {AAVE: replace(UNPAUSED, epoch=6, last_unpaused_at_s=1_300)})
        each.see_chain(after)
        each.see_final(after, None)
        assert cause(each) is None


def test_a_halt_file_removed_between_two_runs_is_booked_as_gone(ledger: Ledger, tmp_path: Path) -> None:
    """The record says that it is over, once; and one that is still there is not booked anew."""
    file = tmp_path / "halt"
    file.touch()
    before = Gate(file, 2)
    assert cause(before) == "halted"
    book(ledger, before)
    for there in (True, False):
        after = Gate(file, 2)
        after.remember(ledger.entries(None, kind=("pause", "resume"))[::-1])
        assert cause(after) == ("halted" if there else None)
        assert [change.kind for change in after.changes] == ([] if there else ["resume"])
        file.unlink(missing_ok=True)


def test_a_halt_file_that_cannot_be_looked_for_is_there() -> None:
    """Unknown is a stop, and no crash that would leave alone what is in flight."""
    closed = Gate(Path("/" + "x" * 300), 2)
    assert cause(closed) == "halted" and closed.shut.is_set()


# --- restarts ---


def test_a_second_pause_is_remembered_as_the_second(ledger: Ledger) -> None:
    """It came before the unpause of the first was final; orphaned while nobody looked, that unpause does not end it."""
    closed = gate()
    closed.see_chain(at(1, {AAVE: PAUSED}))
    after = at(2, {AAVE: UNPAUSED})
    closed.see_chain(after)
    closed.see_final(after, 1_000)
    closed.see_chain(at(3, {AAVE: replace(PAUSED, epoch=UNPAUSED.epoch)}))
    book(ledger, closed)
    for each in (closed, again(ledger)):
        each.see_chain(after)
        each.see_final(after, None)
        assert each.closed("lost") == [AAVE] and cause(each) is not None


def test_a_guardians_later_words_are_remembered(ledger: Ledger) -> None:
    """They came before the chain had the earlier ones, and an unpause between the two ends only those."""
    closed = gate()
    closed.see_signed(MESSAGE, TOLD)
    later = replace(MESSAGE, issued_at_s=1_101)
    closed.see_signed(later, TOLD)
    book(ledger, closed)
    for each in (closed, again(ledger)):
        each.see_chain(at(3, {AAVE: UNPAUSED}))
        each.see_final(at(3, {AAVE: UNPAUSED}), None)
        assert cause(each) == "signed" and each.messages == {AAVE: later}


def test_every_cause_survives_a_restart(ledger: Ledger) -> None:
    """What was closed is closed again before the first head is read, with all it takes to go on."""
    closed = gate()
    closed.see_chain(at(1, {AAVE: PAUSED}))
    closed.carried(AAVE, b"\x02raw")
    closed.see_signed(replace(MESSAGE, scope=MORPHO), TOLD)
    closed.see_pending(GLOBAL_SCOPE, TX, BlockNumber(1))
    book(ledger, closed)
    restarted = again(ledger)
    assert {name: restarted.closed(name) for name in ("chain", "signed", "pending")} == {
        "chain": [AAVE],
        "signed": [MORPHO],
        "pending": [GLOBAL_SCOPE],
    }
    assert restarted.carriers == {AAVE: (b"\x02raw",)}
    assert restarted.messages == {MORPHO: replace(MESSAGE, scope=MORPHO)}
    assert not restarted.changes, "it is on record"
    restarted.see_chain(at(40, {}))
    assert restarted.closed("lost") == [AAVE], "erased while nobody looked"
    restarted.see_chain(at(43, {}))
    assert not restarted.closed("pending")


def test_what_opened_stays_open_after_a_restart(ledger: Ledger) -> None:
    """The last word of each cause counts."""
    closed = gate()
    closed.see_chain(at(1, {AAVE: PAUSED}))
    closed.see_chain(at(2, {AAVE: UNPAUSED}))
    closed.see_final(at(2, {AAVE: UNPAUSED}), None)
    book(ledger, closed)
    assert cause(again(ledger)) is None


def test_a_person_clears_only_what_is_lost(ledger: Ledger) -> None:
    """`keeper breakers clear pause_lost` opens what the chain lost, and nothing it still has or a guardian says."""
    closed = gate()
    closed.see_chain(at(1, {AAVE: PAUSED, MORPHO: PAUSED}))
    closed.see_chain(at(2, {MORPHO: PAUSED}))
    closed.see_signed(replace(MESSAGE, scope=GLOBAL_SCOPE), TOLD)
    book(ledger, closed)
    [lost] = lost_pauses(ledger)
    assert lost.place == Place(PAUSE_LOST, "aave") and lost.refusal().numbers["epoch"] == PAUSED.epoch
    with pytest.raises(LedgerError, match="must say why"):
        clear(ledger, lost, " ", 2)
    clear(ledger, lost, "the incident is over", 2)
    assert not lost_pauses(ledger)
    resumed = again(ledger)
    assert resumed.closed("chain") == [MORPHO] and resumed.closed("lost") == []
    assert resumed.closed("signed") == [GLOBAL_SCOPE] and not resumed.changes


# --- what a transaction would pause ---


def _exec(to: Address, data: bytes, operation: int = 0) -> bytes:
    return exec_calldata(SafeTx(to, 0, data, operation, 0), b"")


@pytest.mark.parametrize("wrapped", ["direct", "by signature", "safe", "batch", "safe in safe"])
def test_a_pause_is_found_however_it_is_wrapped(wrapped: str) -> None:
    """Direct calls, a guardian's signature, a Safe, a batch of a Safe, and a Safe that owns a Safe."""
    call = PAUSE.encode(AAVE, b"DRILL\0\0\0", bytes(32))
    both = batch(
        MULTI_SEND, [InnerCall(GUARD, call), InnerCall(GUARD, PAUSE.encode(MORPHO, bytes(8), bytes(32)))], 0
    )
    to, data, scopes = {
        "direct": (GUARD, call, {AAVE}),
        "by signature": (GUARD, MESSAGE.calldata, {AAVE}),
        "safe": (SAFE, _exec(GUARD, call), {AAVE}),
        "batch": (SAFE, _exec(both.to, both.data, both.operation), {AAVE, MORPHO}),
        "safe in safe": (SAFE, _exec(SAFE, _exec(GUARD, call)), {AAVE}),
    }[wrapped]
    assert paused_by(to, data, GUARD) == scopes


@pytest.mark.parametrize(
    ("to", "data"),
    [
        (SAFE, PAUSE.encode(AAVE, bytes(8), bytes(32))),
        (GUARD, PAUSE.selector),
        (GUARD, abi.load("PauseGuard").function("executeUnpause").encode(AAVE)),
        (SAFE, _exec(GUARD, PAUSE.encode(AAVE, bytes(8), bytes(32)))[:-64]),
        (SAFE, abi.load("MultiSend").function("multiSend").encode(GUARD * 4)),
        (GUARD, b""),
    ],
    ids=["elsewhere", "selector only", "unpause", "truncated", "no batch", "empty"],
)
def test_nothing_else_is(to: Address, data: bytes) -> None:
    """Nor does anything malformed raise."""
    assert paused_by(to, data, GUARD) == set()


# --- a guardian's message ---


def _signed(**changes: Any) -> SignedPause:
    message = replace(MESSAGE, **changes)
    signature = Account.unsafe_sign_hash(message.digest, KEY).signature
    return replace(message, signature=bytes(signature))


def test_a_message_travels_unchanged_and_names_its_signer() -> None:
    """A line of JSON and back; the signer is recovered as the contract does."""
    message = _signed()
    assert SignedPause.of(message.document()) == message
    assert SignedPause.read(message.text().encode(), "it") == message, "and as a file"
    assert message.canonical and recovered(message.digest, message.signature) == abi.address(
        Account.from_key(KEY).address
    )
    assert BY_SIG.decode_input(message.calldata)[0] == AAVE


def test_every_field_is_signed() -> None:
    """Another scope, reason, incident, time or contract is another digest."""
    changed = [
        replace(MESSAGE, scope=MORPHO),
        replace(MESSAGE, reason=b"LEGAL\0\0\0"),
        replace(MESSAGE, incident=TX),
        replace(MESSAGE, issued_at_s=1_051),
        replace(MESSAGE, pause_guard=SAFE),
    ]
    assert len({each.digest for each in (MESSAGE, *changed)}) == 6


def test_a_twin_signature_is_nobodys() -> None:
    """What the contract refuses as malleable or with another v is not read here either."""
    message = _signed()
    r, s, v = message.signature[:32], int.from_bytes(message.signature[32:64]), message.signature[64]
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    twin = r + (order - s).to_bytes(32, "big") + bytes([55 - v])
    by_eth_sign = message.signature[:64] + bytes([v + 4])
    for bad in (twin, by_eth_sign, message.signature[:64] + bytes([v - 27]), bytes(65)):
        assert not replace(message, signature=bad).canonical


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 2}, "version is 2"),
        ({"scope": "0x00"}, "scope must be"),
        ({"reason": ""}, "reason must be"),
        ({"reason": "DRILL"}, "reason must be"),
        ({"issued_at": 1_050}, "issued_at"),
        ({"issued_at": "0"}, "issued_at must be"),
        ({"issued_at": "soon"}, "issued_at must be"),
        ({"issued_at": str(2**40)}, "issued_at must be"),
        ({"signature": "0x"}, "signature must be"),
        ({"pause_guard": "0x12"}, "not an address"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_malformed_message_is_one_clear_error(change: dict[str, Any], why: str) -> None:
    """It says which part is wrong."""
    with pytest.raises(ExecutionError, match=why):
        SignedPause.of({**MESSAGE.document(), **change})


# --- beginning small ---


def _resume(ledger: Ledger, scope: str = "global", cause: str = "chain") -> None:
    ledger.book("resume", None, "", None, {"scope": scope, "cause": cause, "head": 1}, 1)


def _outcome(ledger: Ledger, kind: str, number: int, protocol: str = "aave") -> None:
    cost = {"gas_cost_wei": 1, "gas_cost_usd_e8": 1}
    bodies: dict[str, dict[str, Any]] = {
        "settled": {**cost, "profit_token": GUARD, "profit_raw": 5},
        "reverted": cost,
        "lost_race": cost,
        "cancelled": cost,
        "reorged": {},
    }
    ledger.book(kind, Hash(bytes([number]) * 32), protocol, None, bodies[kind], 2)


def _caps(ledger: Ledger, most: int = 10_000, protocol: str = "aave") -> Stage | None:
    return Ramp(ledger, 1_000 * _E8, most * _E8).stage(protocol)


def test_a_first_start_and_what_was_only_announced_have_no_ramp(ledger: Ledger) -> None:
    """Nor has the end of a halt file."""
    assert _caps(ledger) is None
    for cause_ in ("pending", "signed", "halted"):
        _resume(ledger, cause=cause_)
    assert _caps(ledger) is None


def test_the_cap_doubles_with_each_success_up_to_the_limit(ledger: Ledger) -> None:
    """A canary, then twice as much with each that paid; races lost and cancellations change nothing."""
    _outcome(ledger, "settled", 9)
    _resume(ledger)
    ramp = Ramp(ledger, 1_000 * _E8, 8_000 * _E8)
    caps = []
    for number in range(1, 4):
        caps.append(ramp.stage("aave"))
        _outcome(ledger, "lost_race", 20 + number)
        _outcome(ledger, "cancelled", 30 + number)
        _outcome(ledger, "settled", number)
    assert caps == [
        Stage(1_000 * _E8, True, None),
        Stage(2_000 * _E8, False, None),
        Stage(4_000 * _E8, False, None),
    ]
    assert ramp.stage("aave") is None and _caps(ledger, 8_000) is None
    _outcome(ledger, "reverted", 8)
    assert ramp.stage("aave") is None and _caps(ledger, 8_000) is None, "over is over until the next pause"
    _resume(ledger)
    assert ramp.stage("aave") == Stage(1_000 * _E8, True, None)


def test_a_revert_starts_over(ledger: Ledger) -> None:
    """The next one is a canary again."""
    _resume(ledger)
    _outcome(ledger, "settled", 1)
    _outcome(ledger, "settled", 2)
    assert _caps(ledger) == Stage(4_000 * _E8, False, None)
    _outcome(ledger, "reverted", 3)
    assert _caps(ledger) == Stage(1_000 * _E8, True, None)


def test_an_orphaned_success_does_not_count(ledger: Ledger) -> None:
    """The chain took it back, and with it the trust."""
    _resume(ledger)
    _outcome(ledger, "settled", 1)
    _outcome(ledger, "reorged", 1)
    assert _caps(ledger) == Stage(1_000 * _E8, True, None)
    _outcome(ledger, "settled", 1)
    assert _caps(ledger) == Stage(2_000 * _E8, False, None)


def test_a_protocols_ramp_is_its_own(ledger: Ledger) -> None:
    """Another protocol is not limited by it, and its successes do not count for it; the global ramp counts all."""
    _resume(ledger, "aave")
    _outcome(ledger, "settled", 1, "morpho")
    assert _caps(ledger) == Stage(1_000 * _E8, True, "aave")
    assert _caps(ledger, protocol="morpho") is None
    _resume(ledger)
    _outcome(ledger, "settled", 2, "morpho")
    assert _caps(ledger, protocol="morpho") == Stage(2_000 * _E8, False, None)
    assert _caps(ledger) == Stage(1_000 * _E8, True, "aave"), "the narrower of the two"


def test_a_canary_as_large_as_the_limit_is_none(ledger: Ledger) -> None:
    """Whoever wants no ramp says so by its size."""
    _resume(ledger)
    assert _caps(ledger, most=1_000) is None
