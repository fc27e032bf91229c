"""A node that says what a test tells it to, over http, ws and ipc on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from aiohttp import WSMsgType, web


@dataclass(frozen=True)
class Refuse(Exception):
    """Answer with this JSON-RPC error."""

    code: int
    message: str
    data: Any = None


@dataclass(frozen=True)
class Literal:
    """Answer with these bytes instead of a well-formed message; `{id}` stands for the request's id."""

    text: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Silence:
    """Never answer."""


class HangUp:
    """Close the connection instead of answering."""


Method = Callable[..., Any]


class ScriptedNode:
    """Serves `methods` by name; whatever they return is the result, or one of the classes above."""

    def __init__(self, folder: Path, methods: dict[str, Method]) -> None:
        self.methods = methods
        self.requests: list[tuple[str, list[Any]]] = []
        self.connections = 0
        self.ipc_path = str(folder / "node.ipc")
        self.url = ""
        self.ws_url = ""
        self._sockets: list[web.WebSocketResponse] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_post("/{tail:.*}", self._post)
        application.router.add_get("/{tail:.*}", self._socket)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url, self.ws_url = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}"
        self._server = await asyncio.start_unix_server(self._stream, self.ipc_path, limit=1 << 26)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hang_up()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        if self._runner is not None:
            await self._runner.cleanup()

    def at(self, transport: str) -> str:
        """The URL or path for `http`, `ws` or `ipc`."""
        return {"http": self.url, "ws": self.ws_url, "ipc": self.ipc_path}[transport]

    def asked(self, method: str) -> int:
        """How often a method was requested."""
        return sum(name == method for name, _ in self.requests)

    async def push(self, message: Any) -> None:
        """Send a message nobody asked for to every socket."""
        text = json.dumps(message)
        for socket in self._sockets:
            await socket.send_str(text)
        for writer in self._writers:
            writer.write(text.encode() + b"\n")

    async def notify(self, subscription: str, result: Any) -> None:
        """Send a notification of a subscription to every socket."""
        await self.push(
            {
                "jsonrpc": "2.0",
                "method": "eth_subscription",
                "params": {"subscription": subscription, "result": result},
            }
        )

    async def hang_up(self) -> None:
        """Close every socket."""
        for socket in self._sockets:
            await socket.close()
        for writer in self._writers:
            writer.close()
        self._sockets.clear()
        self._writers.clear()

    def _answer(self, request: Any) -> Any:
        name, params = request["method"], request["params"]
        self.requests.append((name, params))
        message = {"jsonrpc": "2.0", "id": request["id"]}
        method = self.methods.get(name)
        if method is None:
            return message | {"error": {"code": -32601, "message": f"the method {name} does not exist"}}
        try:
            result = method(*params)
        except Refuse as refusal:
            error = {"code": refusal.code, "message": refusal.message}
            return message | {"error": error if refusal.data is None else error | {"data": refusal.data}}
        if isinstance(result, Literal):
            return replace(result, text=result.text.replace("{id}", str(request["id"])))
        return result if isinstance(result, Silence | HangUp) else message | {"result": result}

    async def _post(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        answer: Any
        if isinstance(body, list):
            answers = [self._answer(one) for one in body]
            odd = [one for one in answers if isinstance(one, Literal | Silence | HangUp)]
            answer = odd[0] if odd else answers[::-1]  # in another order, as the specification allows
        else:
            answer = self._answer(body)
        if isinstance(answer, Silence):
            await asyncio.sleep(3600)
        if isinstance(answer, HangUp):
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if isinstance(answer, Literal):
            return web.Response(text=answer.text, status=answer.status, headers=answer.headers)
        return web.json_response(answer)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        self._sockets.append(socket)
        self.connections += 1
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                reply = self._reply(json.loads(message.data))
                if reply is None:
                    await socket.close()
                elif reply:
                    await socket.send_str(reply)
        return socket

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.connections += 1
        while line := await reader.readline():
            reply = self._reply(json.loads(line))
            if reply is None:
                break
            if reply:
                writer.write(reply.encode() + b"\n")
        writer.close()

    def _reply(self, request: Any) -> str | None:
        """What goes out on a socket: a message, nothing (empty), or the end (None)."""
        answer = self._answer(request)
        if isinstance(answer, HangUp):
            return None
        if isinstance(answer, Silence):
            return ""
        return answer.text if isinstance(answer, Literal) else json.dumps(answer)
