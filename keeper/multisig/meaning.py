"""A call in words that a person understands at three in the morning, and what must hold once it was executed.

Only calls that have words here are expected of a Safe that owns a keeper; `show` flags all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from keeper import abi
from keeper.installation import LIQUIDATOR, PAUSE_GUARD
from keeper.multisig.decode import SAFE, Decoded
from keeper.seams import FlashKind, VenueKind
from keeper.types import GLOBAL_SCOPE, ZERO_ADDRESS, Address, Call, hex_of

# Calls by which a Safe changes itself, by the red flag each raises.
SELF_CHANGES: Final = {
    "addOwnerWithThreshold": "owner_change",
    "removeOwner": "owner_change",
    "swapOwner": "owner_change",
    "changeThreshold": "threshold_change",
    "enableModule": "module_change",
    "disableModule": "module_change",
    "setGuard": "guard_change",
    "setFallbackHandler": "fallback_change",
}


# What a setter changes: the getter, the setter's arguments it takes, and what it must answer: an argument, or a value.
_GETTERS: Final[Mapping[str, Sequence[tuple[abi.Abi, str, Sequence[str], Any]]]] = {
    "setGuardian": [(PAUSE_GUARD, "isGuardian", ["guardian"], "enabled")],
    "removeGuardianAndScheduleUnpause": [(PAUSE_GUARD, "isGuardian", ["guardian"], False)],
    "setOperator": [(LIQUIDATOR, "isOperator", ["operator"], "enabled")],
    "setTarget": [(LIQUIDATOR, "protocolOf", ["target", "selector"], "protocol")],
    "setSettledJointly": [(LIQUIDATOR, "settledJointly", ["protocol"], "jointly")],
    "setFlashSource": [(LIQUIDATOR, "flashKindOf", ["source"], "kind")],
    "setVenue": [(LIQUIDATOR, "venueKindOf", ["router"], "kind")],
    "setMaxSlippageBps": [(LIQUIDATOR, "maxSlippageBps", [], "bps")],
    "addOwnerWithThreshold": [(SAFE, "isOwner", ["owner"], True), (SAFE, "getThreshold", [], "_threshold")],
    "removeOwner": [(SAFE, "isOwner", ["owner"], False), (SAFE, "getThreshold", [], "_threshold")],
    "swapOwner": [(SAFE, "isOwner", ["oldOwner"], False), (SAFE, "isOwner", ["newOwner"], True)],
    "changeThreshold": [(SAFE, "getThreshold", [], "_threshold")],
    "enableModule": [(SAFE, "isModuleEnabled", ["module"], True)],
    "disableModule": [(SAFE, "isModuleEnabled", ["module"], False)],
}


@dataclass(frozen=True, slots=True)
class Clock:
    """When a restart could come: the guard's delay and the head's time; None where the chain was not asked."""

    unpause_delay_s: int | None = None
    now_s: int | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """What a call is to bring about: `holds` judges the decoded answer to `read`; `what` says it in words."""

    read: Call
    decode: Callable[[bytes], Any]
    holds: Callable[[Any], bool]
    what: str


def scope_words(scope: bytes) -> str:
    """A pause scope as people say it."""
    return "everything" if scope == GLOBAL_SCOPE else f'the protocol "{ascii_of(scope)}"'


def ascii_of(padded: bytes) -> str:
    """Zero-padded ASCII, in quotes' own escapes where it is not printable."""
    text = padded.rstrip(b"\0").decode("ascii", "backslashreplace")
    return text if text.isprintable() else repr(text)[1:-1]


def words(call: Decoded, clock: Clock = Clock()) -> str | None:
    """What the call does; None for one that nobody expects of this Safe."""
    if call.contract == "Safe" and not call.data and not call.value_wei:
        return "Does nothing but use up its nonce: every other transaction with that nonce dies."
    given = list(call.arguments.values())
    match call.contract:
        case "PauseGuard":
            return _guard_words(call.function, given, clock)
        case "Liquidator":
            return _liquidator_words(call.function, given)
        case "Safe":
            return _safe_words(call.function, given)
    return None


def _guard_words(function: str, given: list[Any], clock: Clock) -> str | None:
    match function, given:
        case "pause", [scope, reason, incident]:
            what = "STOPS EVERYTHING" if scope == GLOBAL_SCOPE else f"STOPS {scope_words(scope)}"
            case_text = f", incident {hex_of(incident)}" if any(incident) else ""
            return f"{what} at once. Reason: {ascii_of(reason) or 'none given'}{case_text}."
        case "scheduleUnpause", [scope]:
            return f"RESTARTS {scope_words(scope)} {_after(clock)}; any guardian can veto until then."
        case "vetoUnpause", [scope]:
            return f"Takes back the scheduled restart of {scope_words(scope)}: it stays stopped."
        case "executeUnpause", [scope]:
            return f"RESTARTS {scope_words(scope)} NOW, if its scheduled delay has passed."
        case "setGuardian", [guardian, True]:
            return f"Makes {abi.checksum(guardian)} a guardian: it may stop and veto, and never restart."
        case "setGuardian", [guardian, False]:
            return f"Takes the right to stop and to veto from the guardian {abi.checksum(guardian)}."
        case "removeGuardianAndScheduleUnpause", [guardian, scope]:
            removed = f"Takes the right to stop and to veto from the guardian {abi.checksum(guardian)}"
            return f"{removed} and RESTARTS {scope_words(scope)} {_after(clock)}; other guardians can veto."
    return None


def _liquidator_words(function: str, given: list[Any]) -> str | None:
    match function, given:
        case "setOperator", [operator, enabled]:
            done = "Lets" if enabled else "No longer lets"
            return f"{done} {abi.checksum(operator)} start liquidations."
        case "setTarget", [target, selector, protocol]:
            there = f"{hex_of(selector)} of {abi.checksum(target)}"
            if not any(protocol):
                return f"No longer lets the Liquidator call {there}."
            return f"Lets the Liquidator call {there}, stopped with {scope_words(protocol)}."
        case "setSettledJointly", [protocol, jointly]:
            how = "all calls of one execution together" if jointly else "each call alone"
            return f"Judges {scope_words(protocol)} by {how}."
        case "setFlashSource", [source, kind]:
            return f"{_may(kind)} borrow from {abi.checksum(source)}{_kind(FlashKind, kind)}."
        case "setVenue", [router, kind]:
            return f"{_may(kind)} swap at {abi.checksum(router)}{_kind(VenueKind, kind)}."
        case "setFeed", [token, feed, max_age_s]:
            if feed == ZERO_ADDRESS:
                return f"Takes the price feed from the token {abi.checksum(token)}."
            return (
                f"Values the token {abi.checksum(token)} by the feed {abi.checksum(feed)}, "
                f"no answer older than {max_age_s} s."
            )
        case "setMaxSlippageBps", [bps]:
            return f"A liquidation may lose at most {bps / 100:g} % of what it seizes."
        case "sweep", [_]:
            return "Sends what lies in the Liquidator to the treasury."
    return None


def _safe_words(function: str, given: list[Any]) -> str | None:
    match function, given:
        case "addOwnerWithThreshold", [owner, threshold]:
            return (
                f"Makes {abi.checksum(owner)} an owner of the Safe, which then needs {threshold} signatures."
            )
        case "removeOwner", [_, owner, threshold]:
            return f"Removes the owner {abi.checksum(owner)} from the Safe, which then needs {threshold} signatures."
        case "swapOwner", [_, old, new]:
            return f"Replaces the Safe's owner {abi.checksum(old)} by {abi.checksum(new)}."
        case "changeThreshold", [threshold]:
            return f"Has {threshold} of the Safe's owners sign from now on."
        case "enableModule", [module]:
            return f"Lets {abi.checksum(module)} act for the Safe WITHOUT ANY SIGNATURE."
        case "disableModule", [_, module]:
            return f"No longer lets the module {abi.checksum(module)} act for the Safe."
        case "setGuard", [guard]:
            return (
                f"Makes {abi.checksum(guard)} judge every transaction of the Safe; it can block all of them."
            )
        case "setFallbackHandler", [handler]:
            return f"Makes {abi.checksum(handler)} answer for the Safe to calls that it does not know."
    return None


def proofs(call: Decoded) -> list[Proof]:
    """What to read after the call to see that it happened; nothing where nothing lasting changes."""
    to, given = call.to, call.arguments
    found = [
        _answer(interface, to, getter, [given[name] for name in asked], given.get(wanted, wanted))
        for interface, getter, asked, wanted in _GETTERS.get(call.function, ())
    ]
    match call.function, given:
        case "pause", {"scope": scope}:
            found.append(
                _scope(
                    to,
                    scope,
                    "is paused without a scheduled restart",
                    lambda state: state[0] and not state[3],
                )
            )
        case "scheduleUnpause", {"scope": scope}:
            found.append(
                _scope(to, scope, "has a scheduled restart", lambda state: state[0] and state[3] > 0)
            )
        case "vetoUnpause", {"scope": scope}:
            found.append(_scope(to, scope, "has no scheduled restart", lambda state: not state[3]))
        case "executeUnpause", {"scope": scope}:
            found.append(_scope(to, scope, "runs", lambda state: not state[0]))
        case "removeGuardianAndScheduleUnpause", {"scope": scope}:
            # a scope that runs already is left running
            found.append(
                _scope(
                    to, scope, "runs or has a scheduled restart", lambda state: not state[0] or state[3] > 0
                )
            )
        case "setFeed", {"token": token, "feed": feed, "maxAgeS": max_age_s}:
            wanted = (feed, max_age_s)
            found.append(_answer(LIQUIDATOR, to, "feedOf", [token], wanted, lambda answer: tuple(answer[:2])))
    return found


def text(value: Any) -> str:
    """An argument as people compare it."""
    if isinstance(value, bytes):
        return abi.checksum(value) if len(value) == len(ZERO_ADDRESS) else hex_of(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(text(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def moment(at_s: int) -> str:
    """A time as people read it."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _scope(guard: Address, scope: bytes, what: str, holds: Callable[[Any], bool]) -> Proof:
    state = PAUSE_GUARD.function("scopeState")
    return Proof(state.call(guard, scope), state.one, holds, f"{scope_words(scope)} {what}")


def _answer(
    interface: abi.Abi,
    to: Address,
    getter: str,
    asked: list[Any],
    wanted: Any,
    part: Callable[[Any], Any] = lambda answer: answer,
) -> Proof:
    function = interface.function(getter)
    what = f"{getter}({', '.join(text(value) for value in asked)}) is {text(wanted)}"
    return Proof(function.call(to, *asked), function.one, lambda answer: bool(part(answer) == wanted), what)


def _after(clock: Clock) -> str:
    if clock.unpause_delay_s is None:
        return "after the guard's delay"
    minutes, seconds = divmod(clock.unpause_delay_s, 60)
    delay = f"{minutes} min" if minutes and not seconds else f"{clock.unpause_delay_s} s"
    at = "" if clock.now_s is None else f", not before {moment(clock.now_s + clock.unpause_delay_s)},"
    return f"{delay} after it is executed{at} once anyone then calls executeUnpause"


def _may(kind: int) -> str:
    return "Lets the Liquidator" if kind else "No longer lets the Liquidator"


def _kind(kinds: type[FlashKind] | type[VenueKind], kind: int) -> str:
    known = {int(member): member.name for member in kinds}
    return f" ({known.get(kind, f'of an unknown kind {kind}')})" if kind else ""
