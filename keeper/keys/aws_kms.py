"""A key held by AWS KMS (ECC_SECG_P256K1), by its JSON protocol over HTTPS; it is only ever shown a digest."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, final
from urllib.parse import urlsplit

import msgspec

from keeper import abi
from keeper.chain.rpc import label_of
from keeper.errors import SignerError
from keeper.keys.remote import Http
from keeper.keys.signature import Signature, address_of, read_der, read_public_key
from keeper.keys.sigv4 import Credentials, Scope, authorization
from keeper.types import Address

_ALGORITHM: Final = "ECDSA_SHA_256"
_KIND: Final = re.compile(r"[A-Za-z]{1,60}(?:Exception|Error)")


@final
class AwsKms:
    """See `keeper.keys.signers.Signer`; `endpoint` is an https URL without a path."""

    def __init__(
        self,
        endpoint: str,
        region: str,
        key_id: str,
        who: Credentials,
        address: Address,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.address: Final = address
        self._endpoint: Final = endpoint.rstrip("/")
        self._host: Final = urlsplit(endpoint).netloc.rpartition("@")[2]
        self._region: Final = region
        self._key_id: Final = key_id
        self._who: Final = who
        self._wall_clock: Final = wall_clock
        self._http: Final = Http(label_of(endpoint))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({abi.checksum(self.address)})"

    async def sign(self, payload: bytes) -> Signature:
        """See `Signer`."""
        digest = abi.keccak(payload)
        question = {
            "KeyId": self._key_id,
            "Message": base64.b64encode(digest).decode(),
            "MessageType": "DIGEST",
            "SigningAlgorithm": _ALGORITHM,
        }
        answer = await self._ask("Sign", question)
        try:
            r, s = read_der(_bytes(answer, "Signature"))
        except ValueError as error:
            raise SignerError(f"{self._http.label} answered what is not a signature: {error}.") from None
        return self._http.verified(r, s, digest, self.address)

    async def ready(self) -> str:
        """See `Signer`."""
        answer = await self._ask("GetPublicKey", {"KeyId": self._key_id})
        try:
            address = address_of(read_public_key(_bytes(answer, "PublicKey")))
        except ValueError as error:
            raise SignerError(f"The key of signer.key_id cannot be used: {error}.") from None
        if address != self.address:
            shown, wanted = abi.checksum(address), abi.checksum(self.address)
            raise SignerError(f"The key of signer.key_id is that of {shown}, and signer.address is {wanted}.")
        return f"{self._http.label} has the key of {abi.checksum(self.address)}."

    async def close(self) -> None:
        """See `Signer`."""
        await self._http.close()

    async def _ask(self, action: str, question: Mapping[str, str]) -> Mapping[str, Any]:
        body = msgspec.json.encode(question)
        at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._wall_clock()))
        headers = {
            "Host": self._host,
            "Content-Type": "application/x-amz-json-1.1",
            "X-Amz-Date": at,
            "X-Amz-Target": f"TrentService.{action}",
        }
        if self._who.token:
            headers["X-Amz-Security-Token"] = self._who.token
        scope = Scope(at, self._region, "kms")
        headers["Authorization"] = authorization("POST", "/", headers, body, scope, self._who)
        reply = await self._http.exchange("POST", f"{self._endpoint}/", headers, body)
        try:
            answer: Any = msgspec.json.decode(reply.body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise SignerError(f"{self._http.label} answered HTTP status {reply.status} and no JSON object.")
        if reply.status != 200:
            # the kind alone: the message names the account, and could name anything
            kind = str(answer.get("__type")).rpartition("#")[2]
            kind = kind if _KIND.fullmatch(kind) else "no reason"
            raise SignerError(f"{self._http.label} refused {action} with HTTP status {reply.status}: {kind}.")
        return answer


def _bytes(answer: Mapping[str, Any], name: str) -> bytes:
    """A blob of an answer; raises `ValueError`."""
    text = answer.get(name)
    if not isinstance(text, str):
        raise ValueError(f"{name} is missing")
    return base64.b64decode(text, validate=True)
