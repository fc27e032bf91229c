"""Logs: whatever is logged, by whomever, on whichever path, no secret can be read from it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from keeper import abi, log
from keeper.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
KEY = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
PASSWORD = "pa$$ wörd/canary"
URL_KEY = "canaryApiKey0123456789"
NODE = f"https://user:{URL_KEY}@node.example:8545/v3/{URL_KEY}?key={URL_KEY}#{URL_KEY}"
RAW = bytes.fromhex(KEY)
CANARIES = (
    KEY,
    str(int(KEY, 16)),
    repr(RAW)[2:-1],
    base64.b64encode(RAW).decode(),
    str(list(RAW)),
    PASSWORD,
    URL_KEY,
)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def process_hooks() -> Iterator[None]:
    """Put back whatever `configure` takes over in the process."""
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    log.secrets.clear()


@pytest.fixture(params=["json", "readable"])
def stderr(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error with logs configured onto it, once as JSON and once for a terminal; secrets registered."""
    stream: io.StringIO = io.StringIO() if request.param == "json" else _Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    log.secrets.register("0x" + KEY)
    log.secrets.register(PASSWORD)
    log.configure("debug")
    return stream


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """The JSON events logged so far."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log.configure("debug", json=True)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def _assert_clean(text: str) -> None:
    assert text, "nothing was logged at all"
    lowered = text.lower().replace("\\\\", "\\")  # JSON doubles backslashes
    assert [canary for canary in CANARIES if canary.lower() in lowered] == []
    assert "canary" not in lowered


@dataclass(frozen=True)
class _Login:
    host: str
    password: str
    hidden: str = field(default="canary", repr=False)


def _raise_nested() -> None:
    private_key = "0x" + KEY
    try:
        raise ValueError(f"bad key {private_key}")
    except ValueError as error:
        error.add_note(f"while talking to {NODE}")
        raise RuntimeError(f"login with {PASSWORD} failed") from error


@pytest.mark.parametrize(
    "value",
    [
        KEY,
        "0x" + KEY,
        KEY.upper(),
        RAW,
        int(KEY, 16),
        f"password={PASSWORD}!",
        quote(PASSWORD, safe=""),
        base64.b64encode(RAW).decode(),
        repr(RAW),
        f"key: {list(RAW)}",
        json.dumps({"p": PASSWORD}),
        NODE,
        NODE.replace("https", "wss").upper(),
        f"postgresql+psycopg://keeper:{URL_KEY}@db/keeper",
        {"deep": [{"er": ({PASSWORD},)}], PASSWORD: 1},
        ValueError(f"cannot reach {NODE}"),
        _Login("node", PASSWORD),
        SecretStr(PASSWORD),
        {"nested": {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": PASSWORD}}}}}}}}}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_secret_survives_in_any_value(stderr: io.StringIO, value: Any) -> None:
    """A canary in any form and at any depth, as value, message or bound context, is not in the output."""
    logger = log.get_logger("keeper.test").bind(bound=value)
    logger.info("event", value=value, several=[value])
    logger.warning("message %s", value)
    logger.info(f"message {value}")
    _assert_clean(stderr.getvalue())


def test_no_secret_survives_in_exceptions(stderr: io.StringIO) -> None:
    """Messages, causes and notes of exceptions are scrubbed, and frames come without their local variables."""
    try:
        _raise_nested()
    except RuntimeError as error:
        log.get_logger("keeper").exception("failed")
        log.get_logger("keeper").error("failed", exc_info=error)
        logging.getLogger("library").exception("failed %s", NODE)
        try:
            raise ExceptionGroup(f"group {PASSWORD}", [error])
        except ExceptionGroup:
            log.get_logger("keeper").exception("failed")
    text = stderr.getvalue()
    _assert_clean(text)
    assert text.count("_raise_nested") >= 4, "tracebacks are part of the log"
    assert "private_key =" not in text.replace('private_key = "0x" + KEY', "")


def test_no_secret_survives_from_libraries(stderr: io.StringIO) -> None:
    """Records of `logging`, with arguments and extras, and warnings take the same way out."""
    library = logging.getLogger("aiohttp.client")
    library.debug("POST %s with %r", NODE, {"password": PASSWORD})
    library.error("extra", extra={"payload": [PASSWORD, RAW]})
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"deprecated: {NODE}", UserWarning, stacklevel=1)
    _assert_clean(stderr.getvalue())
    assert "aiohttp.client" in stderr.getvalue()
    assert "deprecated" in stderr.getvalue()


def test_a_key_alone_in_a_library_log_is_hidden(stderr: io.StringIO) -> None:
    """Once a node's URL is registered, its key is hidden where a library logs the path without the host."""
    log.secrets.register_url(NODE)
    log.secrets.register_url(f"wss://other.example/{URL_KEY}ws")
    logging.getLogger("urllib3").debug('"POST /v3/%s HTTP/1.1" 200', URL_KEY)
    logging.getLogger("urllib3").debug("GET /%sws", URL_KEY)
    _assert_clean(stderr.getvalue())
    assert "/v3/" in stderr.getvalue()


def test_a_record_that_cannot_be_rendered_leaks_nothing(
    stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `logging` would print a broken record's arguments, only the logger's name is said."""
    root = logging.getLogger()  # without pytest's own handlers, which raise
    ours = [handler for handler in root.handlers if type(handler).__module__ == log.__name__]
    monkeypatch.setattr(root, "handlers", ours)
    logging.getLogger("careless").error("%d attempts", PASSWORD)
    _assert_clean(stderr.getvalue())
    assert "careless could not be rendered" in stderr.getvalue()


def test_unhandled_exceptions_are_scrubbed(stderr: io.StringIO) -> None:
    """The hooks for exceptions nobody caught, in the main thread, other threads and finalisers, log scrubbed."""
    try:
        _raise_nested()
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
        sys.unraisablehook(
            type("Args", (), {"exc_value": error, "object": None})()  # the type cannot be built by hand
        )
    thread = threading.Thread(target=_raise_nested)
    thread.start()
    thread.join()
    _assert_clean(stderr.getvalue())
    assert stderr.getvalue().count("_raise_nested") >= 3


async def test_a_forgotten_task_is_scrubbed(stderr: io.StringIO) -> None:
    """asyncio's complaint about an exception nobody retrieved takes the same way."""
    loop = asyncio.get_running_loop()
    loop.call_exception_handler({"message": f"lost {NODE}", "exception": ValueError(PASSWORD)})
    _assert_clean(stderr.getvalue())
    assert "asyncio" in stderr.getvalue()


def test_a_real_crash_is_scrubbed() -> None:
    """A process that dies of an exception prints JSON to stderr, no secret, nothing on stdout, and fails."""
    code = f"""
from keeper import log
log.secrets.register({PASSWORD!r})
log.configure()
def main():
    local = {KEY!r}
    raise ValueError("cannot reach {NODE} with " + {PASSWORD!r})
main()
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    _assert_clean(run.stderr)
    event = json.loads(run.stderr)
    assert (event["event"], event["level"]) == ("unhandled exception", "critical")
    assert "https://node.example:8545 with [secret]" in event["exception"]
    assert (run.stdout, run.returncode) == ("", 1)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://eth.example/v2/key", "https://eth.example"),
        ("http://127.0.0.1:8545", "http://127.0.0.1:8545"),
        ("ws://[::1]:8546/key", "ws://[::1]:8546"),
        ("WSS://Host.example?key=1", "WSS://Host.example"),
        ("https://h.example#frag", "https://h.example"),
        ("https://user:pw@h.example/", "https://h.example"),
        ("https://user@h.example:1/", "https://h.example:1"),
        ("https://us:12/pw@h.example/", "https://[secret]"),
        ("https://us:pw?x@h.example/", "https://[secret]"),
        ("https://", "https://[secret]"),
        ("(see https://h.example/key).", "(see https://h.example"),
        ("'https://h.example/key' and 'wss://k.example/key'", "'https://h.example' and 'wss://k.example'"),
        ("https://h.example, which", "https://h.example which"),
        ("no url: a/b?c=d", "no url: a/b?c=d"),
        ("https://h.example/a\nnext", "https://h.example\nnext"),
    ],
)
def test_of_a_url_only_scheme_and_host_stay(url: str, shown: str) -> None:
    """User info, path, query and fragment go; what might be a password instead of a host goes too."""
    assert log.secrets.scrub(url) == shown


@given(user=st.text(min_size=1), password=st.text(min_size=1), path=st.text(), query=st.text())
def test_no_part_of_a_url_but_the_host_survives(user: str, password: str, path: str, query: str) -> None:
    """Whatever characters a well-formed URL quotes into its parts, the scrubbed text is scheme and host."""
    url = f"https://{quote(user, safe='')}:{quote(password, safe='')}@h.example/{quote(path)}?{quote(query)}"
    assert log.secrets.scrub(f"at {url} now") == "at https://h.example now"


def test_a_short_secret_does_not_garble_numbers() -> None:
    """A short secret is hidden where it stands alone and not inside amounts; one too short is refused."""
    log.secrets.register("1234")
    assert log.secrets.scrub("1234 pw:1234, 9123456 0x1234ab") == "[secret] pw:[secret], 9123456 0x1234ab"
    with pytest.raises(ConfigError, match="fewer than 4 characters"):
        log.secrets.register("abc")


def test_of_overlapping_secrets_nothing_stays() -> None:
    """A secret that contains another is hidden whole, in whichever order they were registered."""
    for first, second in (("hunter2-hunter2", "hunter2"), ("hunter2", "hunter2-hunter2")):
        log.secrets.clear()
        log.secrets.register(first)
        log.secrets.register(second)
        assert log.secrets.scrub("=hunter2-hunter2=hunter2=") == "=[secret]=[secret]="


class _Colour(Enum):
    RED = "red"


def test_values_keep_their_exact_meaning(lines: Callable[[], list[dict[str, Any]]]) -> None:
    """Addresses are checksummed, bytes hex, integers beyond 2**53 text; what is no data is only named."""
    log.get_logger("keeper.test").info(
        "event",
        account=b"\xab" * 20,
        tx=b"\x01" * 32,
        exact=2**53,
        wei=2**53 + 1,
        negative=-(2**60),
        usd=Decimal("1.50"),
        path=Path("a/b"),
        colour=_Colour.RED,
        yes=True,
        nothing=None,
        infinite=float("inf"),
        some={1: (b"\x02",)},
        thing=object(),
    )
    [event] = lines()
    del event["timestamp"]
    assert event == {
        "event": "event",
        "level": "info",
        "logger": "keeper.test",
        "account": abi.checksum(b"\xab" * 20),
        "tx": "0x" + "01" * 32,
        "exact": 2**53,
        "wei": str(2**53 + 1),
        "negative": str(-(2**60)),
        "usd": "1.50",
        "path": "a/b",
        "colour": "red",
        "yes": True,
        "nothing": None,
        "infinite": "inf",
        "some": {"1": ["0x02"]},
        "thing": "<object>",
    }


def test_a_cycle_ends(lines: Callable[[], list[dict[str, Any]]]) -> None:
    """A value that contains itself is cut instead of never being logged."""
    loop: list[Any] = []
    loop.append(loop)
    log.get_logger("keeper").info("event", loop=loop)
    assert "…" in json.dumps(lines()[0], ensure_ascii=False)


def test_context_is_bound_for_the_block_only(lines: Callable[[], list[dict[str, Any]]]) -> None:
    """Head, protocol, account and plan are on every event inside, also a library's, and gone outside."""
    with log.bound(head=7, protocol="aave"), log.bound(account=b"\x01" * 20, plan=b"\x02" * 32):
        log.get_logger("keeper").info("inside")
        logging.getLogger("library").info("inside")
    with log.bound(head=8):
        log.get_logger("keeper").info("next")
    log.get_logger("keeper").info("outside")
    ours, theirs, after, outside = lines()
    for event in (ours, theirs):
        assert {name: event[name] for name in ("head", "protocol", "account", "plan")} == {
            "head": 7,
            "protocol": "aave",
            "account": abi.checksum(b"\x01" * 20),
            "plan": "0x" + "02" * 32,
        }
    assert (after["head"], "protocol" in after, "head" in outside) == (8, False, False)


async def test_context_follows_into_tasks(lines: Callable[[], list[dict[str, Any]]]) -> None:
    """A task started inside a block carries its context and does not mix with its siblings."""

    async def work(protocol: str) -> None:
        with log.bound(protocol=protocol):
            await asyncio.sleep(0)
            log.get_logger("keeper").info("work")

    with log.bound(head=3):
        async with asyncio.TaskGroup() as group:
            group.create_task(work("a"))
            group.create_task(work("b"))
    assert sorted((event["head"], event["protocol"]) for event in lines()) == [(3, "a"), (3, "b")]


def test_levels_are_obeyed_by_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the level neither our events nor a library's are written; an unknown level is a ConfigError."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log.configure("warning", json=True)
    log.get_logger("keeper").info("quiet")
    logging.getLogger("library").info("quiet")
    log.get_logger("keeper").warning("loud")
    logging.getLogger("library").warning("loud")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud", "loud"]
    with pytest.raises(ConfigError, match="'loud' is unknown; choose one of debug, info"):
        log.configure("loud")


def test_json_is_for_machines_and_lines_for_terminals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without being told, JSON is written unless stderr is a terminal; stdout stays untouched either way."""
    for stream, json_expected in ((io.StringIO(), True), (_Terminal(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        log.configure()
        log.get_logger("keeper").info("event", n=1)
        assert stream.getvalue().startswith("{") is json_expected
        assert stream.getvalue().count("\n") == 1
    assert capsys.readouterr().out == ""


def test_a_token_name_cannot_drive_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control characters from the chain are spelt out: no escape sequence, and one line per event."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log.configure(json=False)
    log.get_logger("keeper").info("token\n", symbol="\x1b[2J\x9bK\r\nfake", keys={"\x1b]0;x\x07": ["\x00"]})
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert not {chr(code) for code in (*range(10), *range(11, 32), *range(127, 160))} & set(text)
    assert "\\x1b[2J" in text
