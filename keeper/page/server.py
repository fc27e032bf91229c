"""Serves the signers' page on 127.0.0.1, and does for it what `keeper pause` does, by the same functions.

Three files, one list of calls. Every call is a POST with JSON and the token from the page's URL, which is in the URL's
fragment and so in no request line. Other host names are refused (DNS rebinding) and so are other origins.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from keeper.commands.pause import Builds
from keeper.commands.shapes import SCHEMA
from keeper.errors import ConfigError, KeeperError
from keeper.log import secrets as known_secrets
from keeper.page.calls import CALLS, Table

TOKEN_HEADER: Final = "X-Keeper-Token"  # noqa: S105 - a header's name
_FILES: Final = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_LONGEST_BYTES: Final = 2**21
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


async def serve(
    config: Path,
    builds: Builds,
    *,
    folder: Path,
    port: int,
    offline: bool,
    ready: Callable[[dict[str, Any]], None],
) -> None:
    """Serve until cancelled; `ready` is told URL and SHA-256. Files of signers are read and written in `folder`.

    Raises ConfigError where the port is taken.
    """
    files = {name: (Path(__file__).parent / name).read_bytes() for name in _FILES}
    token = secrets.token_urlsafe(24)
    runner = web.AppRunner(_app(Table(config, folder, builds, offline), files, token), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(f"Port {port} cannot be used ({error.strerror}); choose another.") from error
        [(host, bound)] = runner.addresses
        sha256 = hashlib.sha256(b"".join(files.values())).hexdigest()
        ready({"schema": SCHEMA, "url": f"http://{host}:{bound}/#{token}", "sha256": sha256})
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _app(table: Table, files: dict[str, bytes], token: str) -> web.Application:
    app = web.Application(middlewares=[_guarded], client_max_size=_LONGEST_BYTES)
    for name, content in files.items():
        app.router.add_get("/" if name == "page.html" else f"/{name}", _file(content, _FILES[name]))

    async def call(request: web.Request) -> web.Response:
        given = request.headers.get(TOKEN_HEADER, "").encode("utf-8", "surrogateescape")  # any bytes at all
        if not secrets.compare_digest(given, token.encode()):
            return _error(403, "This page has no token: open the URL that `keeper pause page` printed.")
        found = CALLS.get(request.match_info["name"])
        if found is None:
            return _error(404, "There is no such call.")
        shape, do = found
        try:
            asked = msgspec.json.decode(await request.read(), type=shape)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return _error(400, f"The call was not understood ({error}).")
        try:
            answer = await do(table, asked)
        except KeeperError as error:
            return _error(422, str(error))
        return _json(200, answer)

    app.router.add_post("/api/{name}", call)
    return app


def _file(content: bytes, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=content, content_type=kind, charset="utf-8")

    return answer


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse whoever reached this by another name or from another origin; set the headers of every answer."""
    bound = request.transport.get_extra_info("sockname")[1] if request.transport else 0
    names = {f"127.0.0.1:{bound}", f"localhost:{bound}"}
    origin = request.headers.get("Origin")
    if request.headers.getall("Host", []) not in [[name] for name in names]:
        answer: web.StreamResponse = _error(403, "This page is served to 127.0.0.1 alone.")
    elif origin is not None and origin.removeprefix("http://") != request.host:
        answer = _error(403, "Another page may not call this one.")
    else:
        try:
            answer = await handler(request)
        except web.HTTPException as refused:
            answer = _error(refused.status, refused.reason)
    answer.headers.update(_HEADERS)
    return answer


def _error(status: int, sentence: str) -> web.Response:
    return _json(status, {"error": known_secrets.scrub(sentence)})


def _json(status: int, document: Any) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(document), content_type="application/json", charset="utf-8"
    )
