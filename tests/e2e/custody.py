"""A keeper whose operator's key is kept elsewhere: configuration and secrets for each kind of signer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from eth_account import Account

from keeper.abi import checksum
from keeper.keys.sigv4 import Credentials
from keeper.lab.rig import Rig
from keeper.lab.signer_doubles import KmsDouble, Web3SignerDouble, open_double
from keeper.lab.world import Lab

KINDS = ("env", "keystore", "web3signer", "aws-kms")
REMOTE = ("web3signer", "aws-kms")
PASSWORD = "CanaryKeystorePassword 7"
URL_KEY = "CanaryWeb3SignerUrlKey1"
CALLER = Credentials("CANARYACCESSKEY1", "CanarySecretAccessKey/2+", "CanarySessionToken//3=")
Double = Web3SignerDouble | KmsDouble


@dataclass(frozen=True, slots=True)
class Custody:
    """Where the key is now: the double, where there is one, and everything that nobody may ever read."""

    double: Double | None
    secrets: tuple[bytes, ...]


@asynccontextmanager
async def kept(lab: Lab, rig: Rig, kind: str, double: Double | None = None) -> AsyncIterator[Custody]:
    """Move the operator's key out of `.env` to a signer of this kind, which is there until the end."""
    key = lab.world.cast.operator.key
    address = checksum(lab.world.cast.operator.address)
    if double is None and kind == "web3signer":
        double = Web3SignerDouble(key)
    if double is None and kind == "aws-kms":
        double = KmsDouble(key)
    if isinstance(double, KmsDouble):
        double.credentials = CALLER
    if isinstance(double, Web3SignerDouble):
        double.prefix = f"/{URL_KEY}"
    if double is None:
        _write(lab, rig, kind, "", "")
        yield Custody(None, _secrets(lab))
        return
    async with open_double(double):
        _write(lab, rig, kind, double.url, address)
        yield Custody(double, _secrets(lab))


def _secrets(lab: Lab) -> tuple[bytes, ...]:
    texts = (PASSWORD, URL_KEY, CALLER.access_key_id, CALLER.secret_access_key, CALLER.token)
    return (lab.world.cast.operator.key, *(text.encode() for text in texts))


def _write(lab: Lab, rig: Rig, kind: str, url: str, address: str) -> None:
    key = lab.world.cast.operator.key
    section, lines = 'kind = "env"', [f"KEEPER_PRIVATE_KEY=0x{key.hex()}"]
    if kind == "keystore":
        section, lines = (
            'kind = "keystore"\nkeystore = "operator.json"',
            [f"KEEPER_KEYSTORE_PASSWORD={PASSWORD}"],
        )
        (rig.folder / "operator.json").write_text(json.dumps(Account.encrypt(key, PASSWORD, "scrypt", 2)))
    if kind == "web3signer":
        section, lines = f'kind = "web3signer"\naddress = "{address}"', [f"KEEPER__SIGNER__URL={url}"]
    if kind == "aws-kms":
        section = f'kind = "aws-kms"\nkey_id = "alias/keeper"\nregion = "eu-west-1"\naddress = "{address}"'
        section += f'\nendpoint = "{url}"'
        lines = [
            f"AWS_ACCESS_KEY_ID={CALLER.access_key_id}",
            f"AWS_SECRET_ACCESS_KEY={CALLER.secret_access_key}",
            f"AWS_SESSION_TOKEN={CALLER.token}",
        ]
    text = rig.config.read_text()
    assert text.count('kind = "env"') == 1
    rig.config.write_text(text.replace('kind = "env"', section))
    (rig.folder / ".env").write_text("\n".join([*lines, ""]))
