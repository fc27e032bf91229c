"""A guardian's signed pause as a file, `NAME.pause.json`, or a line: good for everybody who checks it.

    {"version": 1, "pause_guard": "0x…", "scope": "0x…32 bytes", "reason": "0x…8 bytes", "incident": "0x…32 bytes",
     "issued_at": "1760000000", "signature": "0x…65 bytes"}

Scope and reason are zero-padded ASCII; scope 0 is everything. `issued_at` is in seconds since the epoch. The signature
is EIP-712 `Pause` under PauseGuard's domain, which names no chain, so one message pauses every deployment at the same
address; whose it is follows from it and is never written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import msgspec

from keeper import abi
from keeper.errors import AdapterError, ConfigError, ExecutionError
from keeper.guard.scopes import PAUSE_GUARD, read_scopes
from keeper.seams import Reads
from keeper.typed_data import Pause, pause_hash
from keeper.types import Address, BlockTime, Hash, Refusal, Reverted, hex_of

SUFFIX: Final = ".pause.json"
_VERSION: Final = 1
_LAST_TIME_S: Final = 2**40 - 1
_LONGEST_SAID: Final = 200
_HALF_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0  # as PauseGuard's


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    pause_guard: str
    scope: str
    reason: str
    incident: str
    issued_at: str
    signature: str


_DOCUMENT: Final = msgspec.json.Decoder(_Document)


@dataclass(frozen=True, slots=True)
class SignedPause:
    """What a guardian signed. `issued_at_s` is when, by the guardian's clock, in seconds since the epoch."""

    pause_guard: Address
    scope: Hash
    reason: bytes
    incident: Hash
    issued_at_s: int
    signature: bytes

    @classmethod
    def made(cls, pause_guard: Address, word: Pause, signature: bytes) -> Self:
        """A guardian's word with its signature."""
        return cls(pause_guard, word.scope, word.reason, word.incident, word.issued_at_s, signature)

    @classmethod
    def read(cls, text: bytes, where: str) -> Self:
        """Parse a file or a line. Raises `ExecutionError` with one sentence that begins with `where`."""
        try:
            document = _DOCUMENT.decode(text)
            names = json.loads(text, object_pairs_hook=lambda pairs: [name for name, _ in pairs])
            if len(names) != len(set(names)):
                raise ValueError("a key stands there twice.")  # other programs may read the other one
            return cls._of(document)
        except (ValueError, RecursionError, ConfigError) as error:  # msgspec's own errors are ValueErrors
            said = ascii(str(error))[1:-1][:_LONGEST_SAID]  # it may quote what fools a terminal
            raise ExecutionError(f"{where} is not a signed pause: {said}") from error

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """From its plain JSON types, as `document` gave them."""
        return cls.read(msgspec.json.encode(document), "The record")

    @classmethod
    def _of(cls, document: _Document) -> Self:
        if document.version != _VERSION:
            raise ValueError(f"version is {document.version}, and this program reads {_VERSION}.")
        if (
            not re.fullmatch(r"[1-9][0-9]{0,12}", document.issued_at)
            or int(document.issued_at) > _LAST_TIME_S
        ):
            raise ValueError("issued_at must be seconds since 1970, a decimal number in quotes.")
        return cls(
            abi.address(document.pause_guard),
            Hash(_bytes("scope", document.scope, 32)),
            _bytes("reason", document.reason, 8),
            Hash(_bytes("incident", document.incident, 32)),
            int(document.issued_at),
            _bytes("signature", document.signature, 65),
        )

    def document(self) -> dict[str, Any]:
        """Its plain JSON types."""
        return {
            "version": _VERSION,
            "pause_guard": abi.checksum(self.pause_guard),
            "scope": hex_of(self.scope),
            "reason": hex_of(self.reason),
            "incident": hex_of(self.incident),
            "issued_at": str(self.issued_at_s),
            "signature": hex_of(self.signature),
        }

    def text(self) -> str:
        """The file."""
        return json.dumps(self.document(), indent=2) + "\n"

    @property
    def word(self) -> Pause:
        """What was signed, without by whom."""
        return Pause(self.scope, self.reason, self.incident, self.issued_at_s)

    @property
    def digest(self) -> Hash:
        """What the guardian's key signed."""
        return pause_hash(self.pause_guard, self.word)

    @property
    def canonical(self) -> bool:
        """Whether PauseGuard reads the signature: no malleable twin, and nothing but the digest itself signed."""
        return self.signature[64] in (27, 28) and int.from_bytes(self.signature[32:64]) <= _HALF_ORDER

    @property
    def calldata(self) -> bytes:
        """`PauseGuard.pauseBySig`, which anybody may send."""
        words = (self.scope, self.reason, self.incident, self.issued_at_s, self.signature)
        return PAUSE_GUARD.function("pauseBySig").encode(*words)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A message that the contract would take at `block`: whether it has to be `told` there, and whether it `vetoes`."""

    told: bool
    vetoes: bool
    block: int = 0


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
    return Verdict(not state.paused or vetoes, vetoes, at.number)


def _bytes(name: str, text: str, size: int) -> bytes:
    if not re.fullmatch(rf"0x[0-9a-fA-F]{{{2 * size}}}", text):
        raise ValueError(f"{name} must be 0x and {2 * size} hexadecimal digits.")
    return bytes.fromhex(text[2:])
