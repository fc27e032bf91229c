"""Doubles of Consensys Web3Signer and of AWS KMS: neither of them, but servers on loopback that speak their formats.

Each holds one key and accepts exactly what the real service accepts; what it would refuse it refuses in its words, and
notes in `faults`. Both can be told to be slow, silent or absent, and to lie about the signature.
"""

from __future__ import annotations

import asyncio
import base64
import calendar
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from aiohttp import web
from eth_keys.datatypes import PrivateKey

from keeper import abi
from keeper.keys.sigv4 import Credentials, Scope, authorization
from keeper.types import Hash

# slow: late, but in time; silent: never answers; absent: drops every connection; refusing: answers its own refusal;
# other_key, other_digest: signs, but not with our key or not what it was asked to; high_s: our signature with the upper
# s; garbage: answers what is no signature
Manners = Literal[
    "honest", "slow", "silent", "absent", "refusing", "other_key", "other_digest", "high_s", "garbage"
]

_LATE_S: Final = 0.3
_SKEW_S: Final = 300
_ORDER: Final = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
CALLER: Final = Credentials("AKIDEXAMPLE", "a secret access key of nobody", "a session token")
_KMS_JSON: Final = "application/x-amz-json-1.1"


@dataclass
class _Double:
    """What both share: a key, manners, and a memory of what was asked; `prefix` is the path of a proxy before it."""

    key: bytes
    manners: Manners = "honest"
    url: str = ""
    prefix: str = ""
    asked: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def delay(self, request: web.Request) -> None:
        """Be late, silent or absent, as it was told."""
        self.waiting.set()
        if self.manners == "absent" and request.transport is not None:
            request.transport.abort()
        if self.manners == "silent":
            await self.gone.wait()
        if self.manners == "slow":
            await asyncio.sleep(_LATE_S)

    def signature(self, digest: Hash) -> tuple[int, int, int]:
        """r, s and parity, true or not."""
        key = PrivateKey(abi.keccak(self.key) if self.manners == "other_key" else self.key)
        made = key.sign_msg_hash(abi.keccak(digest) if self.manners == "other_digest" else digest)
        if self.manners == "high_s":
            return made.r, _ORDER - made.s, 1 - made.v
        return made.r, made.s, made.v

    def public_key(self) -> bytes:
        """The 64 bytes of its key."""
        return PrivateKey(self.key).public_key.to_bytes()


@dataclass
class Web3SignerDouble(_Double):
    """The two paths of Web3Signer's eth1 mode that sign and list keys."""

    async def serve(self, request: web.Request) -> web.Response:
        """One request."""
        body = await request.read()
        await self.delay(request)
        path = request.path.removeprefix(self.prefix)
        self.asked.append(f"{request.method} {path}")
        if not request.path.startswith(self.prefix):
            return self._refuse(404, f"{request.path} is not below {self.prefix}")
        if self.manners == "refusing":
            return web.Response(status=500, text="Internal Server Error")
        if (request.method, path) == ("GET", "/api/v1/eth1/publicKeys"):
            return web.json_response(["0x" + "11" * 64, "0x" + self.public_key().hex()])
        head, _, identifier = path.rpartition("/")
        if (request.method, head) != ("POST", "/api/v1/eth1/sign"):
            return self._refuse(404, f"there is no {request.method} {path}")
        return self._sign(identifier, body)

    def _sign(self, identifier: str, body: bytes) -> web.Response:
        try:
            text = json.loads(body)["data"]
            data = bytes.fromhex(text.removeprefix("0x"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._refuse(400, "the body is not an object with hex as its data")
        if not data:
            return self._refuse(400, "there is nothing to sign")
        if identifier.lower().removeprefix("0x") != self.public_key().hex():
            return self._refuse(404, f"no key is called {identifier}")
        if self.manners == "garbage":
            return web.Response(text="0x" + "00" * 20)
        r, s, parity = self.signature(abi.keccak(data))
        return web.Response(text=f"0x{r:064x}{s:064x}{parity + 27:02x}")

    def _refuse(self, status: int, why: str) -> web.Response:
        self.faults.append(why)
        return web.Response(status=status, text="")


@dataclass
class KmsDouble(_Double):
    """`Sign` and `GetPublicKey` of KMS for one key, for whoever signs the request with `credentials`."""

    key_id: str = "alias/keeper"
    region: str = "eu-west-1"
    credentials: Credentials = CALLER

    async def serve(self, request: web.Request) -> web.Response:
        """One request."""
        body = await request.read()
        await self.delay(request)
        action = request.headers.get("X-Amz-Target", "")
        self.asked.append(action)
        if self.manners == "refusing":
            # the real service names the caller; this one tells all it was told
            return self._answer(
                400, {"__type": "AccessDeniedException", "message": str(dict(request.headers))}
            )
        if not self._vouched(request, body):
            return self._refuse("InvalidSignatureException", "the request is not signed as it arrived")
        if request.headers.get("Content-Type") != _KMS_JSON or (request.method, request.path) != (
            "POST",
            "/",
        ):
            return self._refuse("UnknownOperationException", "it is not a POST of KMS's JSON to /")
        question = json.loads(body)
        if question.get("KeyId") != self.key_id:
            return self._refuse("NotFoundException", f"no key is called {question.get('KeyId')}")
        if action == "TrentService.GetPublicKey" and set(question) == {"KeyId"}:
            return self._answer(200, self._public_key())
        expected = {"KeyId", "Message", "MessageType", "SigningAlgorithm"}
        if action != "TrentService.Sign" or set(question) != expected:
            return self._refuse("UnknownOperationException", f"{action} does not take {sorted(question)}")
        digest = base64.b64decode(question["Message"], validate=True)
        if len(digest) != 32 or question["MessageType"] != "DIGEST":
            return self._refuse("ValidationException", "the message is not a digest of 32 bytes")
        if question["SigningAlgorithm"] != "ECDSA_SHA_256":
            return self._refuse("InvalidKeyUsageException", "the key does not sign by this algorithm")
        return self._answer(200, self._signed(Hash(digest)))

    def _vouched(self, request: web.Request, body: bytes) -> bool:
        """Whether the signature covers the request as it arrived, of now and for KMS in this region."""
        given = request.headers.get("Authorization", "")
        names = given.partition("SignedHeaders=")[2].partition(",")[0].split(";")
        needed = {"host", "content-type", "x-amz-date", "x-amz-target"}
        if self.credentials.token:
            needed.add("x-amz-security-token")
        headers = {name: request.headers.get(name, "") for name in names}
        at = request.headers.get("X-Amz-Date", "")
        if not needed <= set(names) or headers.get("x-amz-security-token", "") != self.credentials.token:
            return False
        try:
            late = abs(time.time() - calendar.timegm(time.strptime(at, "%Y%m%dT%H%M%SZ"))) > _SKEW_S
        except ValueError:
            return False
        scope = Scope(at, self.region, "kms")
        return not late and given == authorization("POST", "/", headers, body, scope, self.credentials)

    def _public_key(self) -> dict[str, Any]:
        header = bytes.fromhex("3056301006072a8648ce3d020106052b8104000a03420004")
        return {
            "KeyId": f"arn:aws:kms:{self.region}:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "PublicKey": base64.b64encode(header + self.public_key()).decode(),
            "KeySpec": "ECC_SECG_P256K1",
            "KeyUsage": "SIGN_VERIFY",
            "SigningAlgorithms": ["ECDSA_SHA_256"],
        }

    def _signed(self, digest: Hash) -> dict[str, Any]:
        r, s, _ = self.signature(digest)
        made = b"0\x05nonsense" if self.manners == "garbage" else encode_der(r, s)
        return {
            "KeyId": f"arn:aws:kms:{self.region}:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "Signature": base64.b64encode(made).decode(),
            "SigningAlgorithm": "ECDSA_SHA_256",
        }

    def _refuse(self, kind: str, why: str) -> web.Response:
        self.faults.append(why)
        return self._answer(400, {"__type": kind, "message": why})

    def _answer(self, status: int, content: dict[str, Any]) -> web.Response:
        return web.Response(status=status, body=json.dumps(content).encode(), content_type=_KMS_JSON)


def encode_der(r: int, s: int) -> bytes:
    """An ECDSA-Sig-Value (RFC 3279)."""
    parts = b"".join(
        b"\x02" + bytes((len(content),)) + content
        for content in (number.to_bytes(number.bit_length() // 8 + 1) for number in (r, s))
    )
    return b"0" + bytes((len(parts),)) + parts


@asynccontextmanager
async def open_double(double: Web3SignerDouble | KmsDouble) -> AsyncIterator[None]:
    """Serve it at `double.url`, on a port of its own, until the end."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", double.serve)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    double.url = f"http://{host}:{port}{double.prefix}"
    try:
        yield
    finally:
        double.gone.set()
        await runner.cleanup()
