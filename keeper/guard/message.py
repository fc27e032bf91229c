"""A guardian's signed pause as it travels: one line of JSON, good for everybody who checks it.

    {"version": 1, "pause_guard": "0x…", "scope": "0x… (32 bytes)", "reason": "DRILL", "incident": "0x… (32 bytes)",
     "issued_at": 1700000000, "signature": "0x… (65 bytes)"}

What is signed is the contract's `Pause(bytes32 scope,bytes8 reason,bytes32 incident,uint40 issuedAt)` (EIP-712); its
domain names no chain, so one message pauses every deployment at the same address.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import msgspec

from keeper import abi
from keeper.errors import AdapterError, ConfigError
from keeper.guard.scopes import PAUSE_GUARD, read_scopes
from keeper.seams import Reads
from keeper.typed_data import Pause, pause_hash
from keeper.types import Address, BlockTime, Hash, Refusal, Reverted, hex_of

_VERSION: Final = 1
_REASON: Final = re.compile(r"[ -~]{1,8}")
_HEX_REASON: Final = 2 + 2 * 8
_LAST_TIME_S: Final = 2**40 - 1


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    pause_guard: str
    scope: str
    reason: str
    incident: str
    issued_at: int | str
    signature: str


_LINE: Final = msgspec.json.Decoder(_Line)


@dataclass(frozen=True, slots=True)
class SignedPause:
    """What a guardian signed. `issued_at_s` is when, by the guardian's clock, in seconds since the epoch."""

    pause_guard: Address
    scope: Hash
    reason: str
    incident: Hash
    issued_at_s: int
    signature: bytes

    @classmethod
    def read(cls, line: bytes) -> Self:
        """Parse one line. Raises `ConfigError` saying what is wrong with it."""
        try:
            return cls._of(_LINE.decode(line))
        except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
            raise ConfigError(f"This is not a signed pause: {error}") from error

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """From its plain JSON types, as `document` gave them."""
        return cls.read(msgspec.json.encode(document))

    @classmethod
    def _of(cls, line: _Line) -> Self:
        if line.version != _VERSION:
            raise ValueError(f"version {line.version} is not known here; version {_VERSION} is.")
        reason = line.reason
        if len(reason) == _HEX_REASON:  # as signers' files have it
            reason = _bytes("reason", reason, 8).rstrip(b"\0").decode("ascii")
        if not _REASON.fullmatch(reason):
            raise ValueError("reason must be 1 to 8 printable ASCII characters.")
        issued_at_s = int(line.issued_at)
        if not 0 < issued_at_s <= _LAST_TIME_S:
            raise ValueError("issued_at must be seconds since 1970.")
        return cls(
            abi.address(line.pause_guard),
            Hash(_bytes("scope", line.scope, 32)),
            reason,
            Hash(_bytes("incident", line.incident, 32)),
            issued_at_s,
            _bytes("signature", line.signature, 65),
        )

    def document(self) -> dict[str, Any]:
        """Its plain JSON types."""
        return {
            "version": _VERSION,
            "pause_guard": abi.checksum(self.pause_guard),
            "scope": hex_of(self.scope),
            "reason": self.reason,
            "incident": hex_of(self.incident),
            "issued_at": self.issued_at_s,
            "signature": hex_of(self.signature),
        }

    @property
    def digest(self) -> Hash:
        """What the guardian's key signed."""
        pause = Pause(self.scope, self._reason, self.incident, self.issued_at_s)
        return pause_hash(self.pause_guard, pause)

    @property
    def calldata(self) -> bytes:
        """`PauseGuard.pauseBySig`, which anybody may send."""
        words = (self.scope, self._reason, self.incident, self.issued_at_s, self.signature)
        return PAUSE_GUARD.function("pauseBySig").encode(*words)

    @property
    def _reason(self) -> bytes:
        return self.reason.encode("ascii").ljust(8, b"\0")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A message that the contract would take: whether the chain has to be `told`, and it `vetoes` an unpause there."""

    told: bool
    vetoes: bool


def read_verdict(
    message: SignedPause, signer: Address, protocol: str | None, at: BlockTime
) -> Reads[Verdict | Refusal]:
    """What the message would do by the chain's state at `at`, or why the contract would refuse it.

    `protocol` is the scope's configured name, None for the global scope.
    """
    scopes = yield from read_scopes(message.pause_guard, [protocol] if protocol else [], at)
    if isinstance(scopes, Refusal):
        return scopes
    guardian, delay = PAUSE_GUARD.function("isGuardian"), PAUSE_GUARD.function("UNPAUSE_DELAY")
    answers = yield [guardian.call(message.pause_guard, signer), delay.call(message.pause_guard)]
    if any(isinstance(answer, Reverted) for answer in answers):
        return Refusal("pause", "pause_unknown")
    try:
        is_guardian, delay_s = guardian.one(bytes(answers[0])), delay.one(bytes(answers[1]))  # type: ignore[arg-type]
    except AdapterError as error:
        return Refusal("pause", "pause_unknown", {"error": str(error)})
    if not is_guardian:
        return Refusal("pause", "not_a_guardian", {"signer": abi.checksum(signer)})
    state = scopes.scopes[message.scope]
    if message.issued_at_s <= state.last_unpaused_at_s:
        numbers = {"issued_at_s": message.issued_at_s, "last_unpaused_at_s": state.last_unpaused_at_s}
        return Refusal("pause", "signature_expired", numbers)
    if message.issued_at_s > at.timestamp_s + delay_s:
        numbers = {"issued_at_s": message.issued_at_s, "latest_s": at.timestamp_s + delay_s}
        return Refusal("pause", "signature_from_future", numbers)
    vetoes = bool(state.unpause_at_s) and message.issued_at_s >= state.unpause_at_s - delay_s
    return Verdict(not state.paused or vetoes, vetoes)


def _bytes(name: str, text: str, size: int) -> bytes:
    if not re.fullmatch(rf"0x[0-9a-fA-F]{{{2 * size}}}", text):
        raise ValueError(f"{name} must be 0x and {2 * size} hexadecimal digits.")
    return bytes.fromhex(text[2:])
