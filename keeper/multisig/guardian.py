"""A guardian's signed pause as a file, `NAME.pause.json`: anybody may relay it, to the chain or to a daemon.

    {"version": 1, "pause_guard": "0x…", "scope": "0x…32 bytes", "reason": "0x…8 bytes", "incident": "0x…32 bytes",
     "issued_at": "1760000000", "signature": "0x…65 bytes"}

Scope and reason are zero-padded ASCII; scope 0 is everything. `issued_at` is in seconds since the epoch. The signature
is EIP-712 `Pause` under PauseGuard's domain, which names no chain; whose it is follows from it and is never written.
"""

from __future__ import annotations

import json
from typing import Final

from keeper import abi
from keeper.errors import ExecutionError
from keeper.installation import PAUSE_GUARD
from keeper.keys import recovered
from keeper.multisig.proposal import address, hexadecimal, keys, number, read_object, shown
from keeper.typed_data import Pause, pause_hash
from keeper.types import Address, Hash, hex_of

SUFFIX: Final = ".pause.json"
_KEYS: Final = ("version", "pause_guard", "scope", "reason", "incident", "issued_at", "signature")


def text(pause_guard: Address, pause: Pause, signature: bytes) -> str:
    """The file."""
    document = {
        "version": 1,
        "pause_guard": abi.checksum(pause_guard),
        "scope": hex_of(pause.scope),
        "reason": hex_of(pause.reason),
        "incident": hex_of(pause.incident),
        "issued_at": str(pause.issued_at_s),
        "signature": hex_of(signature),
    }
    return json.dumps(document, indent=2) + "\n"


def parse(content: str, where: str) -> tuple[Address, Pause, bytes]:
    """Guard, pause and signature from a file's text. Raises ExecutionError with one sentence."""
    found = read_object(content, where)
    keys(found, _KEYS, where)
    if found["version"] != 1 or isinstance(found["version"], bool):
        raise ExecutionError(f"{where}: version is {shown(found['version'])}, and this program reads 1.")
    pause = Pause(
        Hash(hexadecimal(found["scope"], f"{where}: scope", 32)),
        hexadecimal(found["reason"], f"{where}: reason", 8),
        Hash(hexadecimal(found["incident"], f"{where}: incident", 32)),
        number(found["issued_at"], f"{where}: issued_at", 2**40 - 1),
    )
    guard = address(found["pause_guard"], f"{where}: pause_guard")
    return guard, pause, hexadecimal(found["signature"], f"{where}: signature", 65)


def require_signer(pause_guard: Address, pause: Pause, signature: bytes, who: Address) -> None:
    """Raise ExecutionError unless the signature is `who`'s, of this very pause."""
    signer = recovered(pause_hash(pause_guard, pause), signature)
    if signer != who:
        by = "nobody's" if signer is None else f"by {abi.checksum(signer)}"
        raise ExecutionError(
            f"That signature is {by}, not by {abi.checksum(who)}: another account signed, or something else was signed."
        )


def relay_calldata(pause: Pause, signature: bytes) -> bytes:
    """Calldata of `PauseGuard.pauseBySig`."""
    given = (pause.scope, pause.reason, pause.incident, pause.issued_at_s, signature)
    return PAUSE_GUARD.function("pauseBySig").encode(*given)
