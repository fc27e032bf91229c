"""A provider in front of a node, over http and ws: it passes everything on, and lies, lags or hangs up as told.

A lie about state is told as nodes tell the truth: the node itself answers, with some storage words replaced. So every
read of a liar is consistent, down to its simulations.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import ClientSession, WSMsgType, web

from keeper.lab.node import Node, Tx
from keeper.types import hex_of

Storage = Mapping[str, Mapping[str, str]]  # words by slot by address
Answer = Callable[[str, list[Any], Any], Any]  # method, parameters and the node's result: another result


class Front:
    """One provider."""

    def __init__(self, node_url: str) -> None:
        self.url = ""
        self.ws_url = ""
        self.lie: Storage = {}  # storage words it replaces in every call and simulation
        self.answer: Answer = lambda _method, _params, result: result
        self.announce: Callable[[Any], Any] = lambda header: header  # None: says nothing
        self.delay_s = 0.0
        self.open = True
        self.asked: list[str] = []
        self.node_url = node_url
        self._sockets: set[web.WebSocketResponse] = set()
        self._session: ClientSession | None = None

    async def hang_up(self) -> None:
        """Drop every connection; while `open` is false new ones are refused as well."""
        for socket in list(self._sockets):
            await socket.close()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[Front]:
        """Be reachable."""
        application = web.Application(client_max_size=1 << 26)
        application.router.add_post("/", self._post)
        application.router.add_get("/", self._socket)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        self.url, self.ws_url = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}"
        async with ClientSession() as self._session:
            try:
                yield self
            finally:
                await self.hang_up()
                await runner.cleanup()

    async def _post(self, request: web.Request) -> web.StreamResponse:
        if not self.open:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        question = json.loads(await request.read())
        await asyncio.sleep(self.delay_s)
        assert self._session is not None
        async with self._session.post(self.node_url, json=self._asked(question)) as response:
            return web.json_response(self._answered(question, await response.json()))

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        if not self.open:
            raise web.HTTPServiceUnavailable
        await socket.prepare(request)
        self._sockets.add(socket)
        questions: dict[int, Any] = {}
        assert self._session is not None
        async with self._session.ws_connect(self.node_url, max_msg_size=0) as node:

            async def back() -> None:
                async for message in node:
                    await self._back(socket, json.loads(message.data), questions)

            answering = asyncio.create_task(back())
            try:
                async for message in socket:
                    if message.type is WSMsgType.TEXT or message.type is WSMsgType.BINARY:
                        question = json.loads(message.data)
                        questions[question["id"]] = question
                        await node.send_str(json.dumps(self._asked(question)))
            finally:
                answering.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await answering
                self._sockets.discard(socket)
        return socket

    async def _back(self, socket: web.WebSocketResponse, message: Any, questions: dict[int, Any]) -> None:
        if "id" in message and message["id"] in questions:
            await asyncio.sleep(self.delay_s)
            message = self._answered(questions.pop(message["id"]), message)
        elif "params" in message:
            header = self.announce(message["params"]["result"])
            if header is None:
                return
            message = message | {"params": message["params"] | {"result": header}}
        with contextlib.suppress(ConnectionError):
            await socket.send_str(json.dumps(message))

    def _asked(self, question: Any) -> Any:
        method, params = question["method"], question["params"]
        self.asked.append(method)
        if not self.lie:
            return question
        overrides = {address: {"stateDiff": dict(words)} for address, words in self.lie.items()}
        if method in ("eth_call", "eth_estimateGas"):
            # a call has no overrides of state; what follows them are those of the block
            return question | {"params": [*params[:2], overrides, *params[3:]]}
        if method == "eth_simulateV1":
            [block] = params[0]["blockStateCalls"]
            told = params[0] | {"blockStateCalls": [block | {"stateOverrides": overrides}]}
            return question | {"params": [told, *params[1:]]}
        return question

    def _answered(self, question: Any, message: Any) -> Any:
        if "result" not in message:
            return message
        return message | {"result": self.answer(question["method"], question["params"], message["result"])}


async def as_if(node: Node, txs: Sequence[Tx]) -> Storage:
    """The storage words that these transactions would leave behind, and the chain as if they had not been."""
    snapshot = await node.snapshot()
    words: dict[str, dict[str, str]] = {}
    for receipt in await node.send_all(txs):
        options = {"tracer": "prestateTracer", "tracerConfig": {"diffMode": True}}
        told: Any = await node.rpc.request(
            "debug_traceTransaction", hex_of(receipt.transaction_hash), options
        )
        for address, before in told["pre"].items():
            after = told["post"].get(address, {}).get("storage", {})
            slots = {*before.get("storage", {}), *after}
            if slots:
                zero = "0x" + "00" * 32
                words.setdefault(address, {}).update({slot: after.get(slot, zero) for slot in slots})
    await node.revert(snapshot)
    return words


async def as_before(node: Node, txs: Sequence[Tx]) -> Storage:
    """Send these transactions; the storage words they found, for who denies that they happened."""
    future = await as_if(node, txs)
    past: dict[str, dict[str, str]] = {}
    for address, words in future.items():
        for slot in words:
            word = await node.rpc.request("eth_getStorageAt", address, slot, "latest")
            past.setdefault(address, {})[slot] = str(word)
    await node.send_all(txs)
    return past
