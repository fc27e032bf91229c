"""A node's front that goes wrong on order: JSON-RPC over HTTP and WebSocket, on loopback, before a real Anvil.

What is wrong at a time is a list of `Fault`s. The front counts blocks only when it is told of one, so that whoever
drives a chain in lock-step decides what happens at which; requests it counts itself.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, web

from keeper.chain.rpc import Rpc
from keeper.chain.subscription import Subscription
from keeper.chain.transports import connect
from keeper.errors import RpcError
from keeper.lab.anvil import HOST
from keeper.lab.chaos.faults import BLOCK, NOTICE, POOL, Fault, Kind
from keeper.lab.chaos.mempool import Mempool
from keeper.types import hex_of

_NODE_TIMEOUT_S: Final = 60.0
_GARBAGE: Final = "<html><body>upstream connect error or disconnect/reset before headers</body></html>"
_TOO_MANY, _LIMIT_EXCEEDED, _INTERNAL = 429, -32_005, -32_603


class _Cut(Exception):
    """The connection is to be cut instead of an answer."""


class _Status(Exception):
    """The answer is an HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Question(msgspec.Struct):
    method: str
    id: Any = None
    params: list[Any] = []  # msgspec copies it


_QUESTION: Final = msgspec.json.Decoder(_Question)
_QUESTIONS: Final = msgspec.json.Decoder(list[_Question])


def _already() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(frozen=True, slots=True)
class _Socket:
    """An open WebSocket and what it subscribed to, by the name it was told."""

    ws: web.WebSocketResponse
    transport: asyncio.Transport
    subscriptions: dict[str, Subscription] = field(default_factory=dict)


@dataclass(slots=True)
class Proxy:
    """One front. `injected` says how often each kind of fault bit; `watch` sees every transaction handed in, first."""

    node: Rpc
    mempool: Mempool
    port: int = 0
    faults: tuple[Fault, ...] = ()
    block: int = -1
    injected: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    watch: Callable[[bytes], None] | None = None
    _met: Counter[int] = field(default_factory=Counter)
    _frozen: dict[int, int] = field(default_factory=dict)
    _sockets: set[asyncio.Transport] = field(default_factory=set)
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _holders: int = 0
    _passing: int = 0
    _passable: asyncio.Event = field(default_factory=_already)
    _idle: asyncio.Event = field(default_factory=_already)
    _names: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def url(self) -> str:
        """Where it answers HTTP."""
        return f"http://{HOST}:{self.port}"

    @property
    def ws_url(self) -> str:
        """Where it answers on a WebSocket."""
        return f"ws://{HOST}:{self.port}"

    def play(self, faults: Sequence[Fault]) -> None:
        """Begin anew before block 0 and request 0, with other faults; whoever waits for an answer is cut off."""
        self.renew(faults)
        self.block = -1
        self.cut()

    def renew(self, faults: Sequence[Fault]) -> None:
        """Other faults from now on; blocks go on counting, requests begin anew."""
        self.faults = tuple(faults)
        self._met.clear()
        self._frozen.clear()

    def cut(self) -> None:
        """Cut every connection that is open or waits."""
        self._over.set()
        self._over = asyncio.Event()
        for transport in self._sockets:
            transport.abort()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Let nothing through to the node meanwhile, and nothing be on its way there.

        Anvil answers a call at the head's hash with the state of the block it is just mining; no real node does, so
        whoever mines holds the front.
        """
        self._holders += 1
        self._passable.clear()
        try:
            await self._idle.wait()
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._passable.set()

    async def next_block(self) -> None:
        """A block passes: what spans it is wrong from now on, and the pool offers again what it keeps."""
        self.block += 1
        if self._active(BLOCK):
            self.cut()
        await self.mempool.next_block()

    # --- requests ----------------------------------------------------------------------------------------------------

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One HTTP request, or one WebSocket for its lifetime."""
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._socket(request)
        body = await request.read()
        try:
            text = await self._texts(body)
            if text is not None:
                return web.Response(text=text, content_type="application/json")
            over = self._over
            await over.wait()
        except _Status as status:
            headers = {"Retry-After": "1"} if status.status == _TOO_MANY else {}
            return web.Response(status=status.status, text=f"status {status.status}", headers=headers)
        except _Cut:
            pass
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    async def _texts(self, body: bytes) -> str | None:
        if not body.lstrip().startswith(b"["):
            return await self.answer(_QUESTION.decode(body))
        answers = [await self.answer(question) for question in _QUESTIONS.decode(body)]
        return None if None in answers else f"[{','.join(answer for answer in answers if answer)}]"

    async def answer(self, question: _Question) -> str | None:
        """The text of an answer, or None where there is none. Raises `_Cut` and `_Status`."""
        method, params = question.method, question.params
        self.requests[method] += 1
        bites = {fault.kind: (place, fault) for place, fault in self._active(method)}
        await self._before(bites)
        if "stale_head" in bites and method == "eth_getBlockByNumber" and params[0] == "latest":
            params = [hex(await self._frozen_at(bites["stale_head"][0])), *params[1:]]
        try:
            result = await self._result(method, params, bites)
        except RpcError as error:
            data = {"data": hex_of(error.data)} if error.data else {}
            outcome: dict[str, Any] = {"error": {"code": error.code, "message": error.message, **data}}
        else:
            if "lost_answer" in bites:
                raise _Cut
            outcome = {"result": await self._altered(method, result, bites)}
        text = _encoded({"id": question.id, **outcome})
        if "truncate" in bites:
            return text[: len(text) // 2]
        return _GARBAGE if "garbage" in bites else text

    async def _before(self, bites: dict[Kind, tuple[int, Fault]]) -> None:
        """What happens to a question before the node hears of it."""
        if "delay" in bites:
            await asyncio.sleep(bites["delay"][1].amount / 1000)
        if "drop" in bites:
            over = self._over
            await over.wait()
            raise _Cut
        if "reset" in bites:
            raise _Cut
        if "rate_limit" in bites:
            raise _Status(_TOO_MANY)
        if "server_error" in bites:
            raise _Status(bites["server_error"][1].amount)

    async def _result(self, method: str, params: list[Any], bites: dict[Kind, tuple[int, Fault]]) -> Any:
        while not self._passable.is_set():  # who holds it next may be sooner than whoever was let go
            await self._passable.wait()
        self._passing += 1
        self._idle.clear()
        try:
            return await self._passed(method, params, bites)
        finally:
            self._passing -= 1
            if not self._passing:
                self._idle.set()

    async def _passed(self, method: str, params: list[Any], bites: dict[Kind, tuple[int, Fault]]) -> Any:
        if method != "eth_sendRawTransaction":
            return await self.node.request(method, *params)
        raw = bytes.fromhex(params[0][2:])
        if self.watch is not None:
            self.watch(raw)
        return await self.mempool.hand_in(raw, bites.keys() & set(POOL))

    async def _altered(self, method: str, result: Any, bites: dict[Kind, tuple[int, Fault]]) -> Any:
        """What is made of a node's answer."""
        if "missing_logs" in bites:
            result = []
        if "missing_receipts" in bites:
            result = None
        if "duplicate_logs" in bites:
            result = [log for log in result for _ in range(2)]
        if "removed_logs" in bites:
            result = [each for log in result for each in (log, {**log, "removed": True})]
        if "wrong_chain" in bites:
            result = hex(bites["wrong_chain"][1].amount)
        if "lying_slot" in bites:
            result = lied(result, bites["lying_slot"][1].amount)
        if "stale_head" in bites and method == "eth_blockNumber":
            result = hex(await self._frozen_at(bites["stale_head"][0]))
        return result

    async def _frozen_at(self, place: int) -> int:
        if place not in self._frozen:
            self._frozen[place] = int(await self.node.request("eth_blockNumber"), 16)
        return self._frozen[place]

    def _active(self, method: str) -> list[tuple[int, Fault]]:
        active = []
        for place, fault in enumerate(self.faults):
            if fault.concerns(method):
                number = self.block if fault.unit == "block" else self._met[place]
                self._met[place] += 1
                if fault.spans(number):
                    self.injected[fault.kind] += 1
                    active.append((place, fault))
        return active

    # --- sockets -----------------------------------------------------------------------------------------------------

    async def _socket(self, request: web.BaseRequest) -> web.StreamResponse:
        ws = web.WebSocketResponse(max_msg_size=0)
        await ws.prepare(request)
        assert request.transport is not None, "it was there a moment ago"
        socket = _Socket(ws, request.transport)
        self._sockets.add(request.transport)
        try:
            async with asyncio.TaskGroup() as tasks:
                async for message in ws:
                    if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                        question = _QUESTION.decode(message.data)
                        tasks.create_task(self._reply(socket, question, tasks))
                raise _Cut  # what is still being answered has nobody to be told
        except* (_Cut, ConnectionError):
            pass
        finally:
            socket.transport.abort()
            self._sockets.discard(socket.transport)
            for subscription in socket.subscriptions.values():
                await self.node.unsubscribe(subscription)
        return ws

    async def _reply(self, socket: _Socket, question: _Question, tasks: asyncio.TaskGroup) -> None:
        text: str | None
        try:
            if question.method in ("eth_subscribe", "eth_unsubscribe"):
                text = await self._subscribed(socket, question, tasks)
            else:
                text = await self.answer(question)
        except _Status as status:
            code = _LIMIT_EXCEEDED if status.status == _TOO_MANY else _INTERNAL
            error = {"code": code, "message": f"status {status.status}"}
            text = _encoded({"id": question.id, "error": error})
        if text is not None:
            await socket.ws.send_str(text)

    async def _subscribed(self, socket: _Socket, question: _Question, tasks: asyncio.TaskGroup) -> str:
        self.requests[question.method] += 1
        await self._before({fault.kind: (place, fault) for place, fault in self._active(question.method)})
        result: Any = hex(next(self._names))
        if question.method == "eth_subscribe":
            socket.subscriptions[result] = await self.node.subscribe(*question.params)
            tasks.create_task(self._push(socket, result))
        else:
            ended = socket.subscriptions.pop(str(question.params[0]), None)
            if ended is not None:
                await self.node.unsubscribe(ended)
            result = ended is not None
        return _encoded({"id": question.id, "result": result})

    async def _push(self, socket: _Socket, name: str) -> None:
        async for notice in socket.subscriptions[name]:
            bites = {fault.kind: fault for _, fault in self._active(NOTICE)}
            if "lost_notices" in bites or "stale_head" in bites:
                continue
            if "slow_notices" in bites:
                await asyncio.sleep(bites["slow_notices"].amount / 1000)
            params = {"subscription": name, "result": notice}
            await socket.ws.send_str(_encoded({"method": "eth_subscription", "params": params}))


@asynccontextmanager
async def open_proxy(node: str) -> AsyncIterator[Proxy]:
    """A front to the node at a URL or an IPC path, on a port of its own, with nothing wrong yet."""
    rpc = await connect(node, _NODE_TIMEOUT_S)
    proxy = Proxy(rpc, Mempool(rpc))
    runner = web.ServerRunner(web.Server(proxy.handle), shutdown_timeout=0.1)
    try:
        await runner.setup()
        await web.TCPSite(runner, HOST, 0).start()
        proxy.port = runner.addresses[0][1]
        yield proxy
    finally:
        proxy.cut()
        await runner.cleanup()
        await rpc.close()


def lied(answer: str, choice: int) -> str:
    """Return data with one bit of one word flipped, both chosen by a number; what has no word stays."""
    words = (len(answer) - 2) // 64
    if words == 0:
        return answer
    start = 2 + 64 * (choice % words)
    word = int(answer[start : start + 64], 16) ^ (1 << (choice // words % 256))
    return f"{answer[:start]}{word:064x}{answer[start + 64 :]}"


def _encoded(message: dict[str, Any]) -> str:
    return msgspec.json.encode({"jsonrpc": "2.0", **message}).decode()
