"""Asking a signer over HTTP: one exchange, with a clock on it and no word of the address or the credentials kept."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp

from keeper.errors import SignerError
from keeper.keys.signature import Signature, completed
from keeper.types import Address, Hash

_TIMEOUT_S: Final = 2.0  # a head is old by then
_LONGEST_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered."""

    status: int
    body: bytes


class Http:
    """A connection to one signer, opened with its first request; `label` is the scheme and host of its URL."""

    def __init__(self, label: str, timeout_s: float = _TIMEOUT_S) -> None:
        self.label: Final = label
        self._timeout_s: Final = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def exchange(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Reply:
        """Send one request and read all of its answer; raises `SignerError` where there is none in time."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return await self._attempt(self._session, method, url, headers, body)
                except aiohttp.ServerDisconnectedError:
                    # it closed an idle connection just as it was used again; the same request twice is one signature
                    return await self._attempt(self._session, method, url, headers, body)
        except TimeoutError:
            raise SignerError(
                f"The signer {self.label} did not answer within {self._timeout_s:g} s."
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            # without its cause: it names the whole URL
            raise SignerError(
                f"The signer {self.label} cannot be reached ({type(error).__name__})."
            ) from None

    async def _attempt(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> Reply:
        async with session.request(
            method, url, headers=headers, data=body, allow_redirects=False
        ) as response:
            content = bytearray()
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > _LONGEST_BYTES:
                    raise SignerError(f"The signer {self.label} answered more than {_LONGEST_BYTES} bytes.")
            return Reply(response.status, bytes(content))

    async def close(self) -> None:
        """Drop the connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def verified(self, r: int, s: int, digest: Hash, signer: Address) -> Signature:
        """The signature of `digest` by `signer` that was answered as r and s, or `SignerError`."""
        try:
            return completed(r, s, digest, signer)
        except ValueError as error:
            raise SignerError(
                f"The signer {self.label} answered what is not our signature: {error}."
            ) from None
