"""Structured logs on stderr from which nothing secret can be read.

Every event, whether from structlog or from a library that uses `logging`, passes one scrubber right before it is
rendered: registered secrets are replaced wherever they occur, and of any URL only the scheme and the host stay,
because providers put API keys in user info, path and query. Tracebacks carry no local variables.

JSON lines where stderr is not a terminal, readable lines where it is. In JSON, bytes are hex (20 bytes: a checksummed
address) and integers beyond 2**53 are decimal strings, since readers in other languages would round them.
"""

from __future__ import annotations

import base64
import json as jsonlib
import logging
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, MutableMapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from numbers import Integral, Real
from pathlib import PurePath
from types import TracebackType
from typing import Any, Final, TextIO
from urllib.parse import quote, unquote, urlsplit

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from keeper import abi
from keeper.errors import ConfigError

MAX_EXACT_JSON_INT: Final = 2**53
_HIDDEN: Final = "[secret]"
_SHORTEST_SECRET: Final = 4
_SHORTEST_URL_KEY: Final = 12  # shorter parts of a URL are words like "v2", "ethereum" or a user's name
_DEPTH: Final = 8
_LEVELS: Final = ("debug", "info", "warning", "error", "critical")

_URL: Final = re.compile(r"\b(https?|wss?|postgres(?:ql)?(?:\+\w+)?)://([^\s\"'<>\\`]*)", re.IGNORECASE)
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\])(?::\d{1,5})?")
_HEX_SECRET: Final = re.compile(r"(?:0x)?((?:[0-9a-fA-F]{2}){16,})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


class Secrets:
    """What must never be read anywhere: register values once, scrub every text on its way out."""

    def __init__(self) -> None:
        self._forms: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def register(self, value: str | bytes) -> None:
        """Hide `value` from now on, also as hex, decimal, base64, URL-quoted or escaped, in any letter case.

        Raises `ConfigError` for a secret so short that hiding it would garble ordinary text.
        """
        text = value if isinstance(value, str) else value.hex()
        if len(text) < _SHORTEST_SECRET:
            raise ConfigError(f"A secret has fewer than {_SHORTEST_SECRET} characters; choose a longer one.")
        self._forms |= {
            text,
            quote(text, safe=""),
            unquote(text),
            jsonlib.dumps(text)[1:-1],
            repr(text)[1:-1],
        }
        self._forms.add(base64.b64encode(text.encode()).decode())
        if match := _HEX_SECRET.fullmatch(text):
            self._forms |= _forms_of_bytes(bytes.fromhex(match[1]))
        longest_first = sorted(self._forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_whole, longest_first)), re.IGNORECASE)

    def register_url(self, url: str) -> None:
        """Hide what may be a key in `url` even where it appears alone, as in a library's "POST /v2/<key>"."""
        parts = urlsplit(url)
        values = parts.path.split("/") + [pair.rpartition("=")[2] for pair in parts.query.split("&")]
        user, _, password = parts.netloc.rpartition("@")[0].partition(":")
        for key in [*values, user]:
            if len(key) >= _SHORTEST_URL_KEY:
                self.register(key)
        if password:
            self.register(password)

    def scrub(self, text: str) -> str:
        """`text` without registered secrets and without anything but scheme and host of its URLs."""
        if self._pattern is not None:
            text = self._pattern.sub(_HIDDEN, text)
        return _URL.sub(_bare_url, text) if "://" in text else text

    def clear(self) -> None:
        """Forget every secret (between tests)."""
        self._forms.clear()
        self._pattern = None


secrets: Final = Secrets()


def configure(level: str = "info", json: bool | None = None) -> None:
    """Send all logs of the process to stderr, scrubbed; `json=None` means JSON unless stderr is a terminal.

    Also takes over `logging`, warnings and the hooks for exceptions nobody caught. Raises `ConfigError` for an
    unknown level. Calling it again replaces the earlier set-up.
    """
    if level not in _LEVELS:
        raise ConfigError(f"The log level {level!r} is unknown; choose one of {', '.join(_LEVELS)}.")
    number = logging.getLevelNamesMapping()[level.upper()]
    stream = sys.stderr
    terminal = stream.isatty()
    readable = terminal if json is None else not json
    stamp: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Processor] = [_format_exception, _scrub_readable if readable else _scrub]
    if readable:
        render.append(
            structlog.dev.ConsoleRenderer(
                colors=terminal, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
            )
        )
    else:
        render.append(structlog.processors.JSONRenderer(serializer=jsonlib.dumps, ensure_ascii=False))
    structlog.configure(
        processors=[*stamp, *render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *names: _Stream(stream, *names),
        cache_logger_on_first_use=False,
    )
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*stamp, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(level=number, handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _unhandled
    threading.excepthook = _unhandled_in_thread
    sys.unraisablehook = _unraisable


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose events carry `logger=name`; the same as `structlog.get_logger(name)`, typed."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


@contextmanager
def bound(
    *,
    head: int | None = None,
    protocol: str | None = None,
    account: bytes | None = None,
    plan: bytes | None = None,
) -> Iterator[None]:
    """Add what is being worked on to every event logged inside, also in tasks started there."""
    given = {"head": head, "protocol": protocol, "account": account, "plan": plan}
    with structlog.contextvars.bound_contextvars(
        **{name: value for name, value in given.items() if value is not None}
    ):
        yield


def plain(value: Any, depth: int = _DEPTH) -> Any:
    """`value` as scrubbed JSON types. Objects that are not data become their type's name, never their repr."""
    match value:
        case None | bool():
            return value
        case Enum():
            return plain(value.value, depth)
        case str():
            return secrets.scrub(str(value))
        case Integral():
            number = int(value)
            return number if abs(number) <= MAX_EXACT_JSON_INT else secrets.scrub(str(number))
        case Decimal() | date() | PurePath():
            return secrets.scrub(str(value))
        case Real():
            number_f = float(value)
            return number_f if abs(number_f) < float("inf") else str(number_f)
        case bytes() | bytearray() | memoryview():
            raw = bytes(value)
            return secrets.scrub(abi.checksum(raw) if len(raw) == 20 else "0x" + raw.hex())
        case BaseException():
            return secrets.scrub("".join(traceback.format_exception_only(value)).strip())
    if depth == 0:
        return "…"
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name), depth - 1) for field in fields(value) if field.repr
        }
    if isinstance(value, Mapping):
        return {str(plain(key, 0)): plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, Sequence | Set):
        return [plain(item, depth - 1) for item in value]
    return f"<{type(value).__name__}>"


def _whole(form: str) -> str:
    """A pattern for one form; a short one is hidden only where it stands alone, or it would garble numbers."""
    pattern = re.escape(form)
    return pattern if len(form) >= _SHORTEST_URL_KEY else rf"(?<![0-9A-Za-z]){pattern}(?![0-9A-Za-z])"


def _forms_of_bytes(raw: bytes) -> set[str]:
    return {
        raw.hex(),
        str(int.from_bytes(raw, "big")),
        repr(raw)[2:-1],
        base64.b64encode(raw).decode(),
        str(list(raw)),
    }


def _bare_url(match: re.Match[str]) -> str:
    scheme, rest = match[1], match[2]
    netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]
    tail = rest[len(netloc) :]
    host = netloc.rpartition("@")[2].rstrip(".,;:)}")
    # An "@" further on may mean that user info held a slash: then nothing here is known to be the host.
    if "@" in tail or not _HOST.fullmatch(host):
        return f"{scheme}://{_HIDDEN}"
    return f"{scheme}://{host}"


def _format_exception(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    given = event.pop("exc_info", None)
    error: BaseException | None = None
    match given:
        case BaseException():
            error = given
        case (_, BaseException() as found, _):
            error = found
        case _ if given:
            error = sys.exc_info()[1]
    if error is not None:
        # capture_locals stays off: a frame's variables are where keys live
        event["exception"] = "".join(traceback.TracebackException.from_exception(error).format()).rstrip("\n")
    return event


def _scrub(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    clean = plain(event)
    return dict(clean)


def _scrub_readable(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """As `_scrub`; control characters are spelt out too, for a token's name could otherwise drive the terminal."""
    traceback_text = event.pop("exception", None)
    clean = _spell_out(plain(event))
    if traceback_text is not None:
        lines = secrets.scrub(str(traceback_text)).split("\n")
        clean["exception"] = "\n".join(_spell_out(line) for line in lines)
    return dict(clean)


def _spell_out(value: Any) -> Any:
    if isinstance(value, str):
        return _CONTROL.sub(lambda found: repr(found[0])[1:-1], value)
    if isinstance(value, dict):
        return {_spell_out(key): _spell_out(item) for key, item in value.items()}
    return [_spell_out(item) for item in value] if isinstance(value, list) else value


class _Stream(structlog.WriteLogger):
    """Writes lines, and knows the name it was asked for."""

    def __init__(self, stream: TextIO, name: str = "keeper") -> None:
        super().__init__(stream)
        self.name = name


class _Handler(logging.StreamHandler[Any]):
    """A handler whose own failure says so without printing the record's arguments, as `logging` would."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        self.stream.write(
            f'{{"event": "a log record of {record.name} could not be rendered", "level": "error"}}\n'
        )


def _unhandled(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    get_logger("keeper").critical("unhandled exception", exc_info=(kind, error, trace))


def _unhandled_in_thread(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread else "unknown"
    get_logger("keeper").critical("unhandled exception in a thread", thread=name, exc_info=args.exc_value)


def _unraisable(args: Any) -> None:
    get_logger("keeper").error("exception that could not be raised", exc_info=args.exc_value)
