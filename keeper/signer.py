"""`[signer]`: where the operator's key is kept, and how much gas money belongs there.

Passwords and credentials come from the environment or from `.env` like every secret; a keystore's password may also
be in a file of its own, named here or handed over by systemd as the credential `keeper-keystore-password`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from keeper.errors import ConfigError
from keeper.log import secrets
from keeper.thresholds import Section
from keeper.types import Address

KEYSTORE_PASSWORD: Final = "KEEPER_KEYSTORE_PASSWORD"  # noqa: S105 - the name of one
AWS_CREDENTIALS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
SECRETS: Final = (KEYSTORE_PASSWORD, *AWS_CREDENTIALS)
_CREDENTIAL: Final = "keeper-keystore-password"
_CREDENTIALS_DIRECTORY: Final = "CREDENTIALS_DIRECTORY"
_LOOPBACK: Final = ("http://127.0.0.1:", "http://localhost:", "http://[::1]:")


class SignerSection(Section):
    """What every kind has: the bounds of the operator's balance."""

    min_balance_wei: int = Field(
        0, ge=0, description="Below this much gas money the operator is to be refuelled; 0: no such warning."
    )
    max_balance_wei: int = Field(
        0, ge=0, description="Above this much it holds more than a hot key should; 0: no such warning."
    )

    @field_validator("max_balance_wei")
    @classmethod
    def _above(cls, most_wei: int, info: ValidationInfo) -> int:
        if 0 < most_wei <= info.data.get("min_balance_wei", 0):
            raise ValueError("it must be above signer.min_balance_wei; raise it, or set it to 0.")
        return most_wei


class EnvSigner(SignerSection):
    """`kind = "env"`: the operator's key is the secret KEEPER_PRIVATE_KEY."""

    kind: Literal["env"] = Field(
        "env", description="Where the operator's key is kept; env: KEEPER_PRIVATE_KEY."
    )


class KeystoreSigner(SignerSection):
    """`kind = "keystore"`: an encrypted file; its password is the secret KEEPER_KEYSTORE_PASSWORD."""

    kind: Literal["keystore"] = Field(description="An encrypted file (Web3 Secret Storage, version 3).")
    keystore: Path = Field(description="The file.")
    password_file: Path | None = Field(
        None, description="A file with nothing but its password, where KEEPER_KEYSTORE_PASSWORD is not set."
    )

    @field_validator("keystore", "password_file")
    @classmethod
    def _beside(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        base: Mapping[str, Path] = info.context or {}
        return None if path is None else base.get("base", Path()) / path.expanduser()


class Web3SignerSigner(SignerSection):
    """`kind = "web3signer"`: a Consensys Web3Signer in its eth1 mode."""

    kind: Literal["web3signer"] = Field(description="Consensys Web3Signer, by its REST interface.")
    url: str = Field(repr=False, description="Where it is; a URL with a key in it belongs in .env.")
    address: Address = Field(description="The operator's address; nothing signed by another key is used.")

    @field_validator("url")
    @classmethod
    def _usable(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("a signer must be an http:// or https:// URL.")
        return url


class AwsKmsSigner(SignerSection):
    """`kind = "aws-kms"`: a key of AWS KMS; the credentials are the secrets AWS_ACCESS_KEY_ID and its like."""

    kind: Literal["aws-kms"] = Field(description="AWS KMS, with an ECC_SECG_P256K1 key that signs.")
    key_id: str = Field(min_length=1, description="The key's id, ARN or alias.")
    region: str = Field(pattern=r"^[a-z0-9-]+$", description="The region it is in.")
    address: Address = Field(description="The operator's address; nothing signed by another key is used.")
    endpoint: str = Field("", repr=False, description="Another https URL of KMS, as of a VPC endpoint.")

    @field_validator("endpoint")
    @classmethod
    def _usable(cls, url: str) -> str:
        if url and not url.startswith(("https://", *_LOOPBACK)):
            raise ValueError("the endpoint must be an https:// URL, or http:// on this very machine.")
        return url

    @property
    def url(self) -> str:
        """Where KMS is."""
        return self.endpoint or f"https://kms.{self.region}.amazonaws.com"


AnySigner = EnvSigner | KeystoreSigner | Web3SignerSigner | AwsKmsSigner
SIGNERS: Final[Mapping[str, type[SignerSection]]] = {
    "env": EnvSigner,
    "keystore": KeystoreSigner,
    "web3signer": Web3SignerSigner,
    "aws-kms": AwsKmsSigner,
}


def signer_secrets(
    given: Mapping[str, str], section: object, environ: Mapping[str, str]
) -> dict[str, SecretStr]:
    """Passwords and credentials by their names, hidden from now on whether this kind needs them or not.

    A keystore's password that is not `given` is read from its file. Raises `ConfigError`.
    """
    texts = {name: given[name] for name in SECRETS if name in given}
    if KEYSTORE_PASSWORD not in texts and isinstance(section, KeystoreSigner):
        file = _password_file(section, environ)
        if file is not None:
            texts[KEYSTORE_PASSWORD] = _read_password(file)
    for text in texts.values():
        secrets.register(text)
    return {name: SecretStr(text) for name, text in texts.items()}


def _password_file(section: KeystoreSigner, environ: Mapping[str, str]) -> Path | None:
    """The file that holds the keystore's password, where one is named or handed over."""
    if section.password_file is not None:
        return section.password_file
    folder = environ.get(_CREDENTIALS_DIRECTORY)
    handed = Path(folder) / _CREDENTIAL if folder else None
    return handed if handed is not None and handed.exists() else None


def _read_password(path: Path) -> str:
    """The file's content without its last line break; raises `ConfigError`."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise ConfigError(
            f"The keystore's password cannot be read from {path} ({error.strerror}); correct it."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"The keystore's password in {path} is not UTF-8 text; correct it.") from None
