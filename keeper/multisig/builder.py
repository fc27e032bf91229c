"""Proposals built from a few words: pausing and restarting, guardians, the Liquidator's settings, the Safe's owners.

`keeper pause build` and `keeper deploy` both come here, so a transaction made at leisure and one made at night look
the same. One call is a plain call; several are one batch through MultiSendCallOnly, all or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keeper import abi
from keeper.errors import ConfigError
from keeper.guard import scope_of
from keeper.installation import LIQUIDATOR, PAUSE_GUARD
from keeper.multisig.decode import CALL_ONLY, SAFE, Pins, read
from keeper.multisig.meaning import words
from keeper.multisig.proposal import Proposal
from keeper.multisig.proposal import words as checked
from keeper.multisig.safe import CALL, InnerCall, batch
from keeper.seams import FlashKind, VenueKind
from keeper.typed_data import Pause, SafeTx
from keeper.types import GLOBAL_SCOPE, ZERO_ADDRESS, Address, Hash

MULTI_SEND: Final = next(iter(CALL_ONLY))
GLOBAL: Final = "global"
_SENTINEL: Final = Address(bytes(19) + b"\x01")  # the head of the Safe's list of owners
_DAY_AND_HOUR_S: Final = 90_000


@dataclass(frozen=True, slots=True)
class Site:
    """Whose transactions are built; `owners` in the order the Safe lists them, empty where the chain was not asked."""

    pins: Pins
    owners: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Action:
    """Something to build: the words it takes, what it is for, and the calls it makes."""

    takes: str
    means: str
    calls: Callable[[Site, list[str]], list[InnerCall]]


def propose(
    pins: Pins, calls: Sequence[InnerCall], nonce: int, note: str = "", multi_send: Address = MULTI_SEND
) -> Proposal:
    """The calls as one unsigned transaction; without a note, what they do is noted. Raises ExecutionError for none."""
    if len(calls) == 1:
        [call] = calls
        tx = SafeTx(call.to, call.value_wei, call.data, CALL, nonce)
    else:
        tx = batch(multi_send, calls, nonce)
    said = [words(call) or "" for call in read(pins.safe, tx, pins).calls]
    return Proposal(pins.chain_id, pins.safe, tx, checked(note or " ".join(said), "The note"))


def build(site: Site, action: str, given: list[str]) -> list[InnerCall]:
    """The calls of an action. Raises ConfigError for an unknown one, or where its words do not fit."""
    if action not in ACTIONS:
        raise ConfigError(f"{action} is nothing to build; choose one of {', '.join(ACTIONS)}.")
    takes = ACTIONS[action].takes
    wanted = takes.split()
    least = sum(1 for word in wanted if not word.startswith("["))
    if not least <= len(given) <= len(wanted):
        raise ConfigError(f"{action} takes {takes or 'nothing more'}; {len(given)} words were given.")
    return ACTIONS[action].calls(site, given)


def pause_of(
    protocols: Sequence[str], scope: str, reason: str, incident: str | None, issued_at_s: int
) -> Pause:
    """A pause from words. Raises ConfigError."""
    return Pause(scope_named(protocols, scope), _reason(reason), _incident(incident), issued_at_s)


def scope_named(protocols: Sequence[str], name: str) -> Hash:
    """A pause scope: `global`, or a configured protocol's name. Raises ConfigError."""
    if name == GLOBAL:
        return GLOBAL_SCOPE
    if name not in protocols:
        raise ConfigError(f"{name} is no pause scope; the scopes are {', '.join([GLOBAL, *protocols])}.")
    return scope_of(name)


def _pause(site: Site, given: list[str]) -> list[InnerCall]:
    pause = pause_of(site.pins.protocols, given[0], given[1], given[2] if len(given) > 2 else None, 0)
    return _guard(site, "pause", pause.scope, pause.reason, pause.incident)


def _remove_guardian(site: Site, given: list[str]) -> list[InnerCall]:
    guardian = _account(given[0])
    if len(given) == 1:
        return _guard(site, "setGuardian", guardian, False)
    scope = scope_named(site.pins.protocols, given[1])
    return _guard(site, "removeGuardianAndScheduleUnpause", guardian, scope)


def _target(site: Site, given: list[str]) -> list[InnerCall]:
    protocol, target, selector = given[0], _account(given[1]), _selector(given[2])
    scope = Hash(bytes(32)) if protocol == "off" else scope_named(site.pins.protocols, protocol)
    if protocol == GLOBAL:
        raise ConfigError("A target belongs to one protocol; name it, or off to forbid the target.")
    return _liquidator(site, "setTarget", target, selector, scope)


def _feed(site: Site, given: list[str]) -> list[InnerCall]:
    age_s = _number(given[2], "an age in seconds") if len(given) > 2 else _DAY_AND_HOUR_S
    return _liquidator(site, "setFeed", _account(given[0]), _account(given[1]), age_s)


def _kind(
    setter: str, kinds: type[VenueKind] | type[FlashKind]
) -> Callable[[Site, list[str]], list[InnerCall]]:
    names = {kind.name.lower().replace("_", "-"): int(kind) for kind in kinds if kind} | {"off": 0}

    def calls(site: Site, given: list[str]) -> list[InnerCall]:
        if given[1] not in names:
            raise ConfigError(f"{given[1]} is not one of {', '.join(names)}.")
        return _liquidator(site, setter, _account(given[0]), names[given[1]])

    return calls


def _slippage(site: Site, given: list[str]) -> list[InnerCall]:
    return _liquidator(site, "setMaxSlippageBps", _number(given[0], "basis points"))


def _operator(site: Site, given: list[str]) -> list[InnerCall]:
    if given[1] not in ("on", "off"):
        raise ConfigError(f"{given[1]} is neither on nor off.")
    return _liquidator(site, "setOperator", _account(given[0]), given[1] == "on")


def _rotate_operator(site: Site, given: list[str]) -> list[InnerCall]:
    old, new = _account(given[0]), _account(given[1])
    return _liquidator(site, "setOperator", old, False) + _liquidator(site, "setOperator", new, True)


def _swap_owner(site: Site, given: list[str]) -> list[InnerCall]:
    old, new = _account(given[0]), _account(given[1])
    return _safe(site, "swapOwner", _before(site, old), old, new)


def _add_owner(site: Site, given: list[str]) -> list[InnerCall]:
    return _safe(site, "addOwnerWithThreshold", _account(given[0]), _number(given[1], "a threshold"))


def _remove_owner(site: Site, given: list[str]) -> list[InnerCall]:
    owner = _account(given[0])
    return _safe(site, "removeOwner", _before(site, owner), owner, _number(given[1], "a threshold"))


def _before(site: Site, owner: Address) -> Address:
    """The owner listed before this one, which the Safe wants to be told."""
    if not site.owners:
        raise ConfigError(
            "The order of the Safe's owners must be read from the chain; build without --offline."
        )
    if owner not in site.owners:
        raise ConfigError(f"{abi.checksum(owner)} is no owner of the Safe.")
    at = site.owners.index(owner)
    return site.owners[at - 1] if at else _SENTINEL


def _guard(site: Site, function: str, *arguments: Any) -> list[InnerCall]:
    return [InnerCall(site.pins.pause_guard, PAUSE_GUARD.function(function).encode(*arguments))]


def _liquidator(site: Site, function: str, *arguments: Any) -> list[InnerCall]:
    return [InnerCall(site.pins.liquidator, LIQUIDATOR.function(function).encode(*arguments))]


def _safe(site: Site, function: str, *arguments: Any) -> list[InnerCall]:
    return [InnerCall(site.pins.safe, SAFE.function(function).encode(*arguments))]


def _scoped(function: str) -> Callable[[Site, list[str]], list[InnerCall]]:
    return lambda site, given: _guard(site, function, scope_named(site.pins.protocols, given[0]))


def _account(text: str) -> Address:
    try:
        value = abi.address(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if value == ZERO_ADDRESS:
        raise ConfigError(f"{text} is the zero address; nobody holds it.")
    return value


def _number(text: str, what: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise ConfigError(f"{text} is not {what}; write a whole number.")
    return int(text)


def _selector(text: str) -> bytes:
    if not re.fullmatch(r"0x[0-9a-fA-F]{8}", text):
        raise ConfigError(f"{text} is no function selector; write 0x and 8 hexadecimal digits.")
    return bytes.fromhex(text[2:])


def _reason(text: str) -> bytes:
    if not re.fullmatch(r"[A-Z0-9]{1,8}", text):
        raise ConfigError(
            f"{text} is no reason; write 1 to 8 capital letters or digits, as in EXPLOIT or DRILL."
        )
    return text.encode().ljust(8, b"\0")


def _incident(text: str | None) -> Hash:
    if text is None:
        return Hash(bytes(32))
    if re.fullmatch(r"0x[0-9a-fA-F]{64}", text):
        return Hash(bytes.fromhex(text[2:]))
    if text.isascii() and text.isprintable() and 0 < len(text) <= 32:
        return Hash(text.encode().ljust(32, b"\0"))
    raise ConfigError(f"{text} is no incident; write up to 32 plain characters, or 0x and 64 digits.")


ACTIONS: Final[Mapping[str, Action]] = {
    "pause": Action("SCOPE REASON [INCIDENT]", "stop everything, or one protocol", _pause),
    "schedule": Action("SCOPE", "restart after the guard's delay", _scoped("scheduleUnpause")),
    "veto": Action("SCOPE", "take a scheduled restart back", _scoped("vetoUnpause")),
    "add-guardian": Action(
        "ACCOUNT",
        "let it stop and veto",
        lambda site, given: _guard(site, "setGuardian", _account(given[0]), True),
    ),
    "remove-guardian": Action(
        "ACCOUNT [SCOPE]", "take that right from it, and restart a scope that it held", _remove_guardian
    ),
    "operator": Action("ACCOUNT on|off", "who may start liquidations", _operator),
    "rotate-operator": Action("OLD NEW", "both at once", _rotate_operator),
    "target": Action("PROTOCOL|off TARGET SELECTOR", "what the Liquidator may call", _target),
    "feed": Action("TOKEN FEED [MAX_AGE_S]", "how a token is valued", _feed),
    "venue": Action("ROUTER uniswap-v3|uniswap-v2|off", "where it may swap", _kind("setVenue", VenueKind)),
    "flash-source": Action(
        "SOURCE aave-v3|morpho|uniswap-v3|off", "where it may borrow", _kind("setFlashSource", FlashKind)
    ),
    "slippage": Action("BPS", "the most a liquidation may lose", _slippage),
    "swap-owner": Action("OLD NEW", "replace an owner of the Safe", _swap_owner),
    "add-owner": Action("ACCOUNT THRESHOLD", "one more owner", _add_owner),
    "remove-owner": Action("ACCOUNT THRESHOLD", "one owner less", _remove_owner),
    "threshold": Action(
        "THRESHOLD",
        "how many owners must sign",
        lambda site, given: _safe(site, "changeThreshold", _number(given[0], "a threshold")),
    ),
    "reject": Action(
        "", "use up a nonce, so that its rivals die", lambda site, given: [InnerCall(site.pins.safe, b"")]
    ),
}
