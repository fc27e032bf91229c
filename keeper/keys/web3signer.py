"""A key held by Consensys Web3Signer, by the REST interface of its eth1 mode.

It hashes with keccak itself, so it is given the payload and can apply rules of its own to it. It knows keys by their
64 bytes; which of them is ours is found by the address that the configuration names.
"""

from __future__ import annotations

import re
from typing import Any, Final, final

import msgspec

from keeper import abi
from keeper.chain.rpc import label_of
from keeper.errors import SignerError
from keeper.keys.remote import Http
from keeper.keys.signature import Signature, address_of
from keeper.types import Address, hex_of

_JSON: Final = {"Content-Type": "application/json"}
_PUBLIC_KEY: Final = re.compile(r"0x[0-9a-fA-F]{128}")
_SIGNATURE: Final = re.compile(r"0x([0-9a-fA-F]{64})([0-9a-fA-F]{64})[0-9a-fA-F]{2}")


@final
class Web3Signer:
    """See `keeper.keys.signers.Signer`; `url` is where its API begins, without /api."""

    def __init__(self, url: str, address: Address) -> None:
        self.address: Final = address
        self._url: Final = url.rstrip("/")
        self._http: Final = Http(label_of(url))
        self._identifier: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({abi.checksum(self.address)})"

    async def sign(self, payload: bytes) -> Signature:
        """See `Signer`."""
        identifier = self._identifier or await self._find()
        body = msgspec.json.encode({"data": hex_of(payload)})
        text = await self._ask("POST", f"/api/v1/eth1/sign/{identifier}", body)
        found = _SIGNATURE.fullmatch(text.strip())
        if found is None:
            raise SignerError(f"The signer {self._http.label} answered what is not a signature at all.")
        r, s = (int(half, 16) for half in found.groups())
        return self._http.verified(r, s, abi.keccak(payload), self.address)

    async def ready(self) -> str:
        """See `Signer`."""
        await self._find()
        return f"{self._http.label} has the key of {abi.checksum(self.address)}."

    async def close(self) -> None:
        """See `Signer`."""
        await self._http.close()

    async def _find(self) -> str:
        text = await self._ask("GET", "/api/v1/eth1/publicKeys", None)
        try:
            names: Any = msgspec.json.decode(text)
        except (ValueError, RecursionError):
            names = None
        known = [str(name) for name in names] if isinstance(names, list) else []
        for name in filter(_PUBLIC_KEY.fullmatch, known):
            if address_of(bytes.fromhex(name[2:])) == self.address:
                self._identifier = name.lower()
                return self._identifier
        raise SignerError(
            f"The signer {self._http.label} has no key of {abi.checksum(self.address)}; load it there."
        )

    async def _ask(self, method: str, path: str, body: bytes | None) -> str:
        reply = await self._http.exchange(method, self._url + path, _JSON, body)
        if reply.status != 200:
            raise SignerError(f"The signer {self._http.label} refused with HTTP status {reply.status}.")
        return reply.body.decode("utf-8", "replace")
