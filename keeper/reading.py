"""A TOML file with the environment laid over it, turned into models; every complaint names its key and its source.

TOML says what a value is, the environment only how it is written, and a model says what it should be. `Document.parse`
brings the three together before pydantic checks ranges: it converts addresses and the text of overrides to the
declared types and refuses what pydantic would forgive (numbers in quotes, booleans as numbers, unknown keys in models
that allow them). Values of fields declared with `repr=False` may hold secrets and are never quoted.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import re
import tempfile
import tomllib
import types
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

from dotenv.parser import parse_stream
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from keeper import abi
from keeper.errors import ConfigError
from keeper.types import ZERO_ADDRESS, Address

M = TypeVar("M", bound=BaseModel)
Key = tuple[str | int, ...]

_OVERRIDE: Final = "KEEPER__"
_SECRET: Final = "KEEPER_"  # noqa: S105  # the prefix of their names
_LISTS: Final = (list, tuple, set, frozenset, Sequence, Set)
_MAPPINGS: Final = (dict, Mapping)


class _Written(str):
    """The text of an environment variable: what it means depends on the key it overrides."""

    __slots__ = ()


class _Bad(Exception):
    """A value that does not fit its key; the message says why."""


@dataclass(frozen=True, slots=True)
class _Source:
    text: str
    where: str


class Document:
    """The merged tables of one configuration, and what was found wrong with them."""

    def __init__(self, path: Path, tables: dict[str, Any], secrets: Mapping[str, str]) -> None:
        self.path: Final = path
        self.tables: Final = tables
        self.secrets: Final = secrets
        self._problems: list[str] = []
        self._failed: set[Key] = set()
        self._origins: dict[Key, str] = {}

    @classmethod
    def read(cls, path: Path, environ: Mapping[str, str], secret_names: Sequence[str]) -> Document:
        """Read the file, `.env` beside it and `environ`; raises `ConfigError` when one cannot be read at all."""
        tables = read_tables(path)
        sources: dict[str, _Source] = {}
        problems: list[str] = []
        dotenv = path.parent / ".env"
        if dotenv.exists():
            found = _read_dotenv(dotenv)
            sources |= found
            problems += [
                f"{dotenv}: {name} is not a setting of the keeper; correct or remove it{_suggest(name, secret_names)}."
                for name in found
                if name.startswith(_SECRET) and not name.startswith(_OVERRIDE) and name not in secret_names
            ]
        sources |= {name: _Source(text, "environment") for name, text in environ.items()}
        secrets = {
            name: sources[name].text for name in secret_names if name in sources and sources[name].text
        }
        document = cls(path, tables, secrets)
        document._problems += problems
        document._origins |= {(name,): sources[name].where for name in secrets}
        overrides = {name: source for name, source in sources.items() if name.startswith(_OVERRIDE)}
        for name in sorted(overrides, key=_override_order):
            document._override(name, overrides[name])
        return document

    def fail(self, key: Key, sentence: str) -> None:
        """Note what is wrong with a key; an empty key means the file as a whole."""
        self._failed.add(key)
        written = (self._origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self._origins)
        self._problems.append(": ".join(filter(None, (next(written, str(self.path)), dotted(key), sentence))))

    def check(self) -> None:
        """Raise `ConfigError` with one line per problem, if there is any."""
        if self._problems:
            raise ConfigError("\n".join(self._problems))

    def parse(self, model: type[M], key: Key, raw: Any) -> M | None:
        """`raw` as a frozen model, or None with the problems noted."""
        if not isinstance(raw, dict):
            self.fail(key, f"{shown(raw)} is not a table; write [{dotted(key)}] above its keys.")
            return None
        typed = self._table(model, key, raw)
        try:
            return model.model_validate(typed, context={"base": self.path.parent})
        except ValidationError as error:
            for item in error.errors(include_url=False):
                place = key + item["loc"]
                if not any(
                    place[: len(failed)] == failed for failed in self._failed if len(failed) > len(key)
                ):
                    self.fail(place, _sentence(item, model, item["loc"]))
            return None

    def unknown(self, key: Key, allowed: Sequence[str]) -> None:
        """Note a key nothing reads."""
        self.fail(key, f"this key is unknown; correct or remove it{_suggest(str(key[-1]), allowed)}.")

    def list_of_tables(self, name: str) -> list[dict[str, Any]]:
        """The `[[name]]` tables; none, with a problem noted, where it is something else."""
        raw = self.tables.get(name, [])
        if isinstance(raw, list) and all(isinstance(table, dict) for table in raw):
            return raw
        self.fail((name,), f"{shown(raw)} is not a list of tables; write [[{name}]] above each.")
        return []

    def _table(self, model: type[BaseModel], key: Key, raw: Mapping[str, Any]) -> dict[str, Any]:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        typed: dict[str, Any] = {}
        for name, value in raw.items():
            field = fields.get(name)
            if field is None:
                self.unknown((*key, name), list(fields))
            else:
                typed[name] = self._typed(field.annotation, (*key, name), value, field)
        return typed

    def _typed(self, annotation: Any, key: Key, raw: Any, field: FieldInfo) -> Any:
        annotation = _unwrapped(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if isinstance(raw, dict):
                return self._table(annotation, key, raw)
            self.fail(key, f"{shown(raw)} is not a table.")
            return raw
        try:
            origin, args = get_origin(annotation) or annotation, get_args(annotation)
            if origin in _LISTS:
                item = args[0] if len(args) == 1 or args[1:] == (...,) else Any
                items = enumerate(_list(raw))
                return [self._typed(item, (*key, index), value, field) for index, value in items]
            if origin in _MAPPINGS and isinstance(raw, dict) and args:
                return {
                    self._typed(args[0], (*key, name), name, field): self._typed(
                        args[1], (*key, name), value, field
                    )
                    for name, value in raw.items()
                }
            return _scalar(annotation, raw)
        except _Bad as bad:
            value = "the value" if field.repr is False else shown(raw)
            self.fail(key, f"{value} {bad}")
            return raw

    def _override(self, name: str, source: _Source) -> None:
        parts: list[str | int] = [
            int(part) if part.isdecimal() else part.lower()
            for part in name.removeprefix(_OVERRIDE).split("__")
        ]
        where = f"{name} ({source.where})"
        node: Any = self.tables
        for depth, part in enumerate(parts):
            last = depth == len(parts) - 1
            fresh: Any = _Written(source.text) if last else [] if isinstance(parts[depth + 1], int) else {}
            if isinstance(node, dict) and isinstance(part, str) and part:
                new = last or part not in node
            elif isinstance(node, list) and isinstance(part, int) and part <= len(node):
                new = last or part == len(node)
                node += [None] if part == len(node) else []
            else:
                self._origins[tuple(parts)] = where
                self.fail(tuple(parts), "there is no such place in the configuration; correct the name.")
                return
            if new:
                node[part] = fresh
                self._origins[tuple(parts[: depth + 1])] = where
            node = node[part]


def read_tables(path: Path, parse_float: Any = Decimal) -> dict[str, Any]:
    """The tables of a TOML file; raises `ConfigError` when it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=parse_float)
    except FileNotFoundError:
        raise ConfigError(
            f"There is no configuration at {path}; write one with `keeper init`, or name another with --config."
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); correct its permissions.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML ({error}); correct it there.") from error
    except (ValueError, InvalidOperation) as error:  # thousands of digits
        raise ConfigError(f"{path} holds a number that is out of all bounds; correct it.") from error


def rewrite_table(path: Path, table: str, values: Mapping[str, str]) -> None:
    """Set text values of one top-level table and leave every other byte of the file as it is.

    The table is added at the end when it is missing. The file is replaced atomically with its mode kept. Raises
    `ConfigError`, with the file untouched, when the result would not read back as exactly that change.
    """
    before = read_tables(path, parse_float=str)
    old = before.get(table, {})
    text = path.read_bytes().decode("utf-8")
    after = _with_values(text, table, values)
    expected = before | {table: old | dict(values) if isinstance(old, dict) else old}
    try:
        understood = tomllib.loads(after, parse_float=str) == expected
    except tomllib.TOMLDecodeError:
        understood = False
    if not understood:
        raise ConfigError(
            f"{path}: [{table}] is written in a way that cannot be edited; write it as a plain table."
        )
    _replace(path.resolve(), after.encode("utf-8"))


def dotted(key: Key) -> str:
    """`("protocols", 0, "name")` as `protocols[0].name`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def shown(value: Any) -> str:
    """A value as a person wrote it, cut short."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _unwrapped(annotation: Any) -> Any:
    """The bare type behind Annotated, Optional and NewTypes other than Address."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, types.UnionType):
            arms = [arm for arm in get_args(annotation) if arm is not type(None)]
            if len(arms) != 1:
                return Any
            annotation = arms[0]
        elif annotation is not Address and hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        else:
            return annotation


def _list(raw: Any) -> list[Any]:
    if isinstance(raw, _Written):
        text = raw.strip()
        if text.startswith("["):
            try:
                items: list[Any] = tomllib.loads(f"items = {text}", parse_float=Decimal)["items"]
            except (ValueError, InvalidOperation):
                raise _Bad("is not a list; write it as JSON or separate its items with commas.") from None
            return items
        return [_Written(part.strip()) for part in text.split(",")] if text else []
    if not isinstance(raw, list):
        raise _Bad("is not a list; put it in [brackets].")
    return raw


def _scalar(annotation: Any, raw: Any) -> Any:
    text = str(raw).strip() if isinstance(raw, _Written) else None
    if annotation is Address:
        return _address(raw)
    if annotation is int:
        if text is not None and re.fullmatch(r"[+-]?[0-9]{1,100}", text):
            return int(text)
        if type(raw) is not int:
            raise _Bad("is not a whole number; write digits only, without quotes, point or unit.")
    elif annotation is Decimal:
        if type(raw) is int or text is not None:
            try:
                return Decimal(raw if text is None else text)
            except InvalidOperation:
                raise _Bad("is not a number; write digits with an optional point.") from None
        if not isinstance(raw, Decimal):
            raise _Bad("is not a number; write it without quotes and without its unit.")
    elif annotation is bool:
        if text in ("true", "false"):
            return text == "true"
        if not isinstance(raw, bool):
            raise _Bad("is neither true nor false.")
    elif (annotation is str or get_origin(annotation) is Literal) and not isinstance(raw, str):
        raise _Bad("is not text; put it in quotes.")
    return text if text is not None else raw


def _address(raw: Any) -> Address:
    if not isinstance(raw, str):
        raise _Bad('is not an address; write it as "0x…" in quotes.')
    try:
        address = abi.address(str(raw).strip())
    except ValueError:
        checksum = " with the right checksum" if re.fullmatch(r"0x[0-9a-fA-F]{40}", raw) else ""
        raise _Bad(f"is not an address{checksum}; copy it again from its source.") from None
    if address == ZERO_ADDRESS:
        raise _Bad("is the zero address; put the real one.")
    return address


def _sentence(error: Any, model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    kind, message = error["type"], str(error["msg"])
    if kind == "missing":
        return "this key is missing; add it."
    if kind == "value_error":
        return str(error["ctx"]["error"])
    field = model.model_fields.get(str(loc[0])) if loc else None
    value = "the value" if field is not None and field.repr is False else shown(error["input"])
    if kind == "too_short":
        return "this list is empty; put something in it."
    if found := re.fullmatch(r"(?:Decimal input|Input|Value) should (.*)", message):
        return f"{value} should {found[1]}; correct it."
    return f"{value}: {message}; correct it."


def _suggest(name: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _read_dotenv(path: Path) -> dict[str, _Source]:
    found: dict[str, _Source] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}); correct or remove it.") from error
    for binding in parse_stream(io.StringIO(text)):
        line = binding.original.line
        if binding.error or (binding.key is not None and binding.value is None):
            # without its text: the line may hold a secret
            raise ConfigError(f"{path}: line {line} is not NAME=value; correct it.")
        if binding.key is not None and binding.value is not None:
            found[binding.key] = _Source(binding.value, str(path))
    return found


def _override_order(name: str) -> list[tuple[int, str]]:
    return [(int(part) if part.isdecimal() else -1, part) for part in name.split("__")]


def _with_values(text: str, table: str, values: Mapping[str, str]) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = re.split(r"(?<=\n)", text)
    header = re.compile(rf"\s*\[\s*{re.escape(table)}\s*\]\s*(?:#.*)?\s*")
    start = next((index for index, line in enumerate(lines) if header.fullmatch(line)), None)
    if start is None:
        gap = "" if not text else newline if text.endswith("\n") else newline * 2
        body = "".join(f'{name} = "{value}"{newline}' for name, value in values.items())
        return f"{text}{gap}[{table}]{newline}{body}"
    rest = range(start + 1, len(lines))
    end = next((index for index in rest if lines[index].lstrip().startswith("[")), len(lines))
    missing = dict(values)
    last = start
    for index in range(start + 1, end):
        found = re.fullmatch(r"""(\s*([\w-]+)\s*=\s*)(?:"[^"]*"|'[^']*')(.*)""", lines[index], re.DOTALL)
        if found and found[2] in missing:
            lines[index] = f'{found[1]}"{missing.pop(found[2])}"{found[3]}'
        if lines[index].strip() and not lines[index].lstrip().startswith("#"):
            last = index
    if missing and not lines[last].endswith("\n"):
        lines[last] += newline
    lines[last] += "".join(f'{name} = "{value}"{newline}' for name, value in missing.items())
    return "".join(lines)


def _replace(path: Path, content: bytes) -> None:
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(path.stat().st_mode & 0o7777)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); correct its permissions.") from error
