"""How a provider is reached: HTTP, WebSocket or a Unix socket, all behind `Rpc`."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import aiohttp
import msgspec

from keeper.chain.pace import Pace, retry_after_s
from keeper.chain.rpc import Request, Rpc, label_of
from keeper.chain.subscription import Subscription
from keeper.chain.wire import (
    ANSWER,
    ANSWERS,
    ENCODE,
    TEXT,
    UNREADABLE,
    Answer,
    Question,
    RateLimited,
    TimedOut,
    decode,
    outcome_of,
    result_of,
)
from keeper.errors import ChainError, RpcError

T = TypeVar("T")

Headers = Callable[[bytes], Mapping[str, str]]
_WebSocket = aiohttp.ClientWebSocketResponse[bool]

_MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
_HEARTBEAT_S: Final = 30.0  # WebSocket pings, so that a dead peer is noticed between blocks
_GOODBYE_S: Final = 1.0  # how long a WebSocket peer may take to agree that it is over


async def connect(
    url: str, timeout_s: float = 10.0, pace: Pace | None = None, headers: Headers | None = None
) -> Rpc:
    """Connect to an http(s) or ws(s) URL or to the path of an IPC socket. Raises `ChainError`.

    HTTP connects with its first request, and sends each with what `headers` makes of its body.
    """
    label = label_of(url)
    if label.startswith("http"):
        return _Http(url, label, timeout_s, pace, headers)
    kind = _Ws if label.startswith("ws") else _Ipc
    opening = kind.open(url, label, timeout_s, pace)
    return await _guarded(opening, label, timeout_s, "connecting")


# --- HTTP ------------------------------------------------------------------------------------------------------------


class _Http(Rpc):
    def __init__(
        self, url: str, label: str, timeout_s: float, pace: Pace | None, headers: Headers | None
    ) -> None:
        super().__init__(label, timeout_s, pace)
        self._url: Final = url
        self._headers: Final = headers
        # no total limit here: `_guarded` holds the clock for the whole exchange
        connecting = aiohttp.TraceConfig()
        connecting.on_connection_create_end.append(self._connected)
        self._session: Final = aiohttp.ClientSession(
            trace_configs=[connecting],
            timeout=aiohttp.ClientTimeout(total=None),
            connector=aiohttp.TCPConnector(limit=8, keepalive_timeout=60),
            headers={"Content-Type": "application/json"},
        )

    @property
    def alive(self) -> bool:
        return not self._session.closed

    async def close(self) -> None:
        await self._session.close()

    async def _exchange(self, method: str, params: Sequence[Any]) -> msgspec.Raw:
        number = next(self._ids)
        body = await self._post(ENCODE(Question(number, method, params)), method)
        answer = decode(ANSWER, body, self.label, method)
        return result_of(answer, method, self.label)

    async def _exchange_all(self, requests: Sequence[Request]) -> Sequence[msgspec.Raw | RpcError]:
        numbers = [next(self._ids) for _ in requests]
        questions = [Question(number, *request) for number, request in zip(numbers, requests, strict=True)]
        body = await self._post(ENCODE(questions), "a batch")
        if body.lstrip()[:1] == b"{":  # the batch as a whole was refused
            result_of(decode(ANSWER, body, self.label, "a batch"), "a batch", self.label)
        answers = {answer.id: answer for answer in decode(ANSWERS, body, self.label, "a batch")}
        if len(answers) != len(numbers) or answers.keys() != set(numbers):
            raise ChainError(f"{self.label} answered {len(answers)} of {len(numbers)} requests of a batch.")
        return [
            outcome_of(answers[number], method, self.label)
            for number, (method, _) in zip(numbers, requests, strict=True)
        ]

    async def _post(self, body: bytes, method: str) -> bytes:
        return await _guarded(self._posted(body, method), self.label, self.timeout_s, method)

    async def _posted(self, body: bytes, method: str) -> bytes:
        if self._session.closed:
            raise ChainError(f"The connection to {self.label} is closed.")
        try:
            return await self._attempt(body, method)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                raise
            # the node closed an idle connection just as it was used again; no request of ours means more when sent
            # twice: a transaction broadcast again is the same transaction
            return await self._attempt(body, method)

    async def _connected(self, *_: object) -> None:
        self.renewed = True

    async def _attempt(self, body: bytes, method: str) -> bytes:
        headers = self._headers(body) if self._headers else None
        async with self._session.post(
            self._url, data=body, headers=headers, allow_redirects=False
        ) as response:
            content = await response.read()
            _require_patience(response.status, response.headers, self.label, method)
            # some nodes send their JSON-RPC error with a 4xx or 5xx status
            if response.status != 200 and content[:1] not in (b"{", b"["):
                raise ChainError(f"{self.label} answered {method} with HTTP status {response.status}.")
            return content


# --- sockets ---------------------------------------------------------------------------------------------------------


class _Socket(Rpc):
    """What WebSocket and IPC share: questions in flight by id, and dispatch of whatever arrives."""

    def __init__(self, label: str, timeout_s: float, pace: Pace | None) -> None:
        super().__init__(label, timeout_s, pace)
        self._loop: Final = asyncio.get_running_loop()
        self._waiting: Final[dict[int, tuple[str, asyncio.Future[msgspec.Raw]]]] = {}
        self._subscriptions: Final[dict[str, Subscription]] = {}
        self._failure: str | None = None

    @property
    def pushes(self) -> bool:
        return True

    @property
    def alive(self) -> bool:
        return self._failure is None

    async def subscribe(self, *params: Any) -> Subscription:
        raw = await self._exchange("eth_subscribe", params)
        subscription = self._subscriptions.get(decode(TEXT, raw, self.label, "eth_subscribe"))
        if subscription is None:
            raise ChainError(self._failure or f"{self.label} dropped a subscription.")
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        for name, known in list(self._subscriptions.items()):
            if known is subscription:
                del self._subscriptions[name]
                await self._exchange("eth_unsubscribe", (name,))

    @abstractmethod
    def _write(self, message: bytes) -> Awaitable[None] | None:
        """Send one message; an awaitable if the transport must be waited for. A failure ends in `_drop`."""

    @abstractmethod
    def _abandon(self) -> None:
        """Stop reading, without waiting."""

    async def _exchange(self, method: str, params: Sequence[Any]) -> msgspec.Raw:
        if self._failure is not None:
            raise ChainError(self._failure)
        number = next(self._ids)
        message = ENCODE(Question(number, method, params))
        future: asyncio.Future[msgspec.Raw] = self._loop.create_future()
        self._waiting[number] = (method, future)
        # a bare timer is several times cheaper than a timeout scope around every request
        timer = self._loop.call_later(self.timeout_s, self._expire, number)
        try:
            if (writing := self._write(message)) is not None:
                await writing
            return await future
        finally:
            timer.cancel()
            del self._waiting[number]

    async def _exchange_all(self, requests: Sequence[Request]) -> Sequence[msgspec.Raw | RpcError]:
        # pipelined: a socket needs no batch, and not every node takes one there
        answers = await asyncio.gather(
            *(self._exchange(*request) for request in requests), return_exceptions=True
        )
        settled: list[msgspec.Raw | RpcError] = []
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, RpcError):
                raise answer
            settled.append(answer)
        return settled

    def _expire(self, number: int) -> None:
        method, future = self._waiting[number]
        if not future.done():
            future.set_exception(TimedOut(f"{self.label} did not answer {method} in {self.timeout_s:g} s."))

    def _dispatch(self, message: bytes) -> None:
        try:
            answer = ANSWER.decode(message)
        except UNREADABLE as error:
            # without an id nobody can be told, and what follows cannot be trusted either
            self._drop(f"{self.label} sent a message that is not JSON-RPC: {error}.")
            return
        if answer.id is not None:
            self._settle(answer, answer.id)
        elif answer.params is not None:
            subscription = self._subscriptions.get(answer.params.subscription)
            if subscription is not None:
                subscription.push(answer.params.result)
        elif answer.error is not None:
            self._drop(f"{self.label} refused a message: {answer.error.message}.")

    def _settle(self, answer: Answer, number: int) -> None:
        method, future = self._waiting.get(number, ("", None))
        if future is None or future.done():
            return  # whoever asked has given up
        try:
            result = result_of(answer, method, self.label)
            if method == "eth_subscribe":
                # now, because the first notification may follow in this very read
                self._subscriptions[decode(TEXT, result, self.label, method)] = Subscription(self.label)
        except ChainError as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _drop(self, why: str) -> None:
        """The connection is unusable: everyone waiting learns it, now and later."""
        if self._failure is not None:
            return
        self._failure = why
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(ChainError(why))
        for subscription in self._subscriptions.values():
            subscription.fail(why)
        self._subscriptions.clear()
        self._abandon()


class _Ws(_Socket):
    def __init__(
        self,
        label: str,
        timeout_s: float,
        pace: Pace | None,
        session: aiohttp.ClientSession,
        ws: _WebSocket,
    ) -> None:
        super().__init__(label, timeout_s, pace)
        self._session: Final = session
        self._ws: Final = ws
        self._reader: Final = asyncio.create_task(self._read(), name=f"read {label}")

    @classmethod
    async def open(cls, url: str, label: str, timeout_s: float, pace: Pace | None) -> Rpc:
        session = aiohttp.ClientSession()
        try:
            ws = await session.ws_connect(
                url,
                max_msg_size=_MAX_ANSWER_BYTES,
                heartbeat=_HEARTBEAT_S,
                timeout=aiohttp.ClientWSTimeout(ws_close=_GOODBYE_S),
                decode_text=False,
            )
        except BaseException as error:
            await session.close()
            if isinstance(error, aiohttp.WSServerHandshakeError):
                _require_patience(error.status, error.headers or {}, label, "connecting")
            raise
        return cls(label, timeout_s, pace, session, ws)

    async def close(self) -> None:
        self._drop(f"The connection to {self.label} is closed.")
        await asyncio.wait([self._reader])
        await self._ws.close()
        await self._session.close()

    async def _write(self, message: bytes) -> None:
        try:
            await self._ws.send_frame(message, aiohttp.WSMsgType.TEXT)
        except (OSError, aiohttp.ClientError) as error:
            self._drop(f"{self.label} closed the connection ({type(error).__name__}).")

    def _abandon(self) -> None:
        self._reader.cancel()

    async def _read(self) -> None:
        try:
            async for message in self._ws:
                self._dispatch(message.data)
        finally:
            self._drop(f"{self.label} closed the connection.")


class _Ipc(_Socket, asyncio.Protocol):
    """Newline-separated messages on a Unix socket, parsed inside `data_received`."""

    _transport: asyncio.Transport

    def __init__(self, label: str, timeout_s: float, pace: Pace | None) -> None:
        super().__init__(label, timeout_s, pace)
        self._partial: Final[list[bytes]] = []
        self._closed: Final = self._loop.create_future()

    @classmethod
    async def open(cls, path: str, label: str, timeout_s: float, pace: Pace | None) -> Rpc:
        loop = asyncio.get_running_loop()
        _, rpc = await loop.create_unix_connection(lambda: cls(label, timeout_s, pace), path)
        return rpc

    async def close(self) -> None:
        self._drop(f"The connection to {self.label} is closed.")
        await self._closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop(f"{self.label} closed the connection.")
        if not self._closed.done():
            self._closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        *whole, rest = data.split(b"\n")
        if whole:
            whole[0] = b"".join((*self._partial, whole[0]))
            self._partial.clear()
        if rest:
            self._partial.append(rest)
        for message in whole:
            if message:
                self._dispatch(message)

    def _write(self, message: bytes) -> None:
        self._transport.write(message + b"\n")

    def _abandon(self) -> None:
        self._transport.abort()


def _require_patience(status: int, headers: Mapping[str, str], label: str, what: str) -> None:
    """Raise `RateLimited` where an HTTP answer asks for fewer requests."""
    after = headers.get("Retry-After")
    if status == 429 or (status == 503 and after):
        raise RateLimited(
            f"{label} answered {what} with HTTP status {status}: it is asked too often.", retry_after_s(after)
        ) from None


async def _guarded(work: Coroutine[Any, Any, T], label: str, timeout_s: float, what: str) -> T:
    """Await I/O within the timeout; what the transport raises may quote the URL, so it is not chained."""
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        raise TimedOut(f"{label} did not answer {what} in {timeout_s:g} s.") from None
    except (OSError, aiohttp.ClientError) as error:
        raise ChainError(f"{label} cannot be reached for {what}: {type(error).__name__}.") from None
