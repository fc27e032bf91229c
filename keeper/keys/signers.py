"""Whoever holds the operator's secret: what is asked of them, and those that hold it in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Protocol, final

from coincurve import PrivateKey

from keeper import abi, nesting
from keeper.errors import ConfigError, KeyMisuse
from keeper.keys.signature import Signature
from keeper.log import secrets
from keeper.types import Address, Hash

_SECRET_BYTES: Final = 32
_VERSION: Final = 3  # of the Web3 Secret Storage Definition
_WRONG_PASSWORD: Final = "MAC mismatch"  # noqa: S105  # what the library calls it


class Signer(Protocol):
    """Holds one secp256k1 key, and signs what the doors of `OperatorKey` let through to it."""

    @property
    def address(self) -> Address:
        """Whose signatures it makes."""

    async def sign(self, payload: bytes) -> Signature:
        """Sign the keccak hash of `payload`. Raises `SignerError`; whatever else it returns was verified."""

    async def ready(self) -> str:
        """Where the key is, as a sentence for people, after asking for it there. Raises `SignerError`."""

    async def close(self) -> None:
        """Drop connections."""


@final
class LocalSigner:
    """A key in this process; it signs without waiting. Its secret cannot be read back, printed or pickled."""

    __slots__ = ("__secret", "_where", "address")

    def __init__(self, secret: str | bytes, where: str) -> None:
        try:
            self.__secret = PrivateKey(_bytes_of(secret))
        except ValueError:  # without its cause: the message may quote the secret
            raise ConfigError(f"{where} is not a private key: it must be 32 bytes in hex.") from None
        self._where = where
        public = self.__secret.public_key.format(compressed=False)[1:]
        self.address: Address = Address(abi.keccak(public)[12:])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({abi.checksum(self.address)})"

    def __reduce__(self) -> str:
        raise KeyMisuse("A key cannot be stored or copied.")

    def sign_digest(self, digest: Hash) -> Signature:
        """Sign what was hashed already."""
        made = self.__secret.sign_recoverable(digest, hasher=None)
        return Signature(int.from_bytes(made[:32]), int.from_bytes(made[32:64]), made[64])

    async def sign(self, payload: bytes) -> Signature:
        """See `Signer`."""
        return self.sign_digest(abi.keccak(payload))

    async def ready(self) -> str:
        """See `Signer`."""
        return f"The key of {abi.checksum(self.address)} is {self._where}."

    async def close(self) -> None:
        """See `Signer`."""


def _bytes_of(secret: str | bytes) -> bytes:
    content = bytes.fromhex(secret.removeprefix("0x")) if isinstance(secret, str) else secret
    if len(content) != _SECRET_BYTES:
        raise ValueError("Its length is wrong.")
    return content


def from_keystore(path: Path, password: str) -> LocalSigner:
    """The key in a Web3 Secret Storage file (version 3); scrypt takes about a second. Raises `ConfigError`."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"signer.keystore {path} cannot be read ({error.strerror}); correct it.") from None
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise ConfigError(
            f"signer.keystore {path} is not a Web3 Secret Storage file of version {_VERSION}; correct it."
        )
    # Half of what a command without a keystore would take to start.
    from eth_account import Account  # noqa: PLC0415

    nesting.restore()
    try:
        secret = bytes(Account.decrypt(content, password))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        if str(error) == _WRONG_PASSWORD:
            raise ConfigError(f"The password does not open signer.keystore {path}; correct it.") from None
        raise ConfigError(f"signer.keystore {path} is damaged; restore it from its backup.") from None
    secrets.register(secret)
    return LocalSigner(secret, f"in the keystore {path}")
