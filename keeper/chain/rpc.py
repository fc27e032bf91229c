"""A provider of JSON-RPC, however it is reached: one connection, one timeout, one kind of error.

Whatever a node does wrong ends as a `ChainError` that names the provider by its label, never by its URL, which may
carry a key; exceptions of the transport may quote the URL and are therefore not chained. An answered refusal is an
`RpcError`. On sockets, answers and notifications are dispatched where they are read, so the task that waits wakes
in the next turn of the event loop.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from keeper.chain.pace import Pace
from keeper.chain.subscription import Subscription
from keeper.chain.wire import ANYTHING, decode
from keeper.errors import ChainError, RpcError

T = TypeVar("T")

Request = tuple[str, Sequence[Any]]  # method and params

_BATCH: Final = 500


def label_of(url: str) -> str:
    """A provider's name for people: scheme, host and port without credentials, path or query; or the IPC path."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "ws", "wss"):
        return f"ipc:{url}"
    host = parts.hostname or ""
    try:
        port = parts.port
    except ValueError:
        port = None
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}"


class Rpc(ABC):
    """One provider. Every method raises `RpcError` for an answered refusal and `ChainError` for all else.

    With a `pace` requests wait for their turn, and are given up where that takes longer than the timeout.
    """

    renewed = False  # whether a connection was made below since this was last set to false

    def __init__(self, label: str, timeout_s: float, pace: Pace | None) -> None:
        self.label: Final = label
        self.timeout_s: Final = timeout_s
        self._pace: Final = pace
        self._ids: Final = itertools.count(1)

    async def request(self, method: str, *params: Any) -> Any:
        """The decoded result of one request."""
        return await self.ask(ANYTHING, method, *params)

    async def ask(self, decoder: msgspec.json.Decoder[T], method: str, *params: Any) -> T:
        """The result of one request in the shape `decoder` expects; any other shape is a `ChainError`."""
        if self._pace is not None:
            await self._pace.turn(1, self.timeout_s, self.label)
        return decode(decoder, await self._exchange(method, params), self.label, method)

    async def batch(self, requests: Sequence[Request]) -> list[Any | RpcError]:
        """Results of many requests in their order; a refused one is its `RpcError` in its place."""
        results: list[Any | RpcError] = []
        for first in range(0, len(requests), _BATCH):
            chunk = requests[first : first + _BATCH]
            if self._pace is not None:
                await self._pace.turn(len(chunk), self.timeout_s, self.label)
            for (method, _), raw in zip(chunk, await self._exchange_all(chunk), strict=True):
                results.append(
                    raw if isinstance(raw, RpcError) else decode(ANYTHING, raw, self.label, method)
                )
        return results

    async def subscribe(self, *params: Any) -> Subscription:
        """A running `eth_subscribe`; `ChainError` over HTTP, which has none."""
        raise ChainError(f"{self.label} has no subscriptions: configure a ws or ipc endpoint.")

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; one that has already ended is no error."""
        raise ChainError(f"{self.label} has no subscriptions.")

    @property
    def paced(self) -> bool:
        """Whether requests are counted, so that none should be wasted."""
        return self._pace is not None

    @property
    def pushes(self) -> bool:
        """Whether `subscribe` works here."""
        return False

    @property
    def alive(self) -> bool:
        """Whether requests still have a chance on this connection."""
        return True

    @abstractmethod
    async def close(self) -> None:
        """Drop the connection; whoever still waits gets a `ChainError`."""

    @abstractmethod
    async def _exchange(self, method: str, params: Sequence[Any]) -> msgspec.Raw: ...

    @abstractmethod
    async def _exchange_all(self, requests: Sequence[Request]) -> Sequence[msgspec.Raw | RpcError]: ...
