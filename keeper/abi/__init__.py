"""The ABI codec: calldata, return data, events and errors of vendored JSON ABIs, as plain Python values.

Addresses are 20 bytes, bytesN exactly N bytes, integers are `int`, arrays lists, structs tuples. Decoding is strict
where Solidity's own decoder is: a dirty address, a boolean that is neither 0 nor 1, an integer wider than its type
or an offset out of bounds is an error, never a number. Layout: Solidity documentation, "Contract ABI Specification".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec
from eth_hash.backends.pysha3 import keccak256 as _keccak256

from keeper import share_dir
from keeper.abi.codec import WORD, Codec, codec_of, fixed_bytes_codec, tuple_codec
from keeper.errors import AdapterError, ConfigError
from keeper.types import Address, Call, Hash, Log, hex_of

_BUILT_IN_ERRORS: Final[Sequence[Mapping[str, Any]]] = (
    {"type": "error", "name": "Error", "inputs": [{"name": "", "type": "string"}]},
    {"type": "error", "name": "Panic", "inputs": [{"name": "", "type": "uint256"}]},
)


def keccak(data: bytes) -> Hash:
    """Keccak-256."""
    return Hash(_keccak256(data))


@lru_cache(maxsize=8192)
def checksum(address: bytes) -> str:
    """An address as people read it (EIP-55)."""
    plain = address.hex()
    digest = _keccak256(plain.encode()).hex()
    return "0x" + "".join(
        char.upper() if nibble >= "8" else char for char, nibble in zip(plain, digest, strict=False)
    )


def address(text: str) -> Address:
    """20 bytes from 0x-prefixed hex; mixed case must carry a right EIP-55 checksum. Raises `ValueError`."""
    if not re.fullmatch(r"0x[0-9a-fA-F]{40}", text):
        raise ValueError(f"{text!r} is not an address: 0x and 40 hexadecimal digits are expected.")
    value = Address(bytes.fromhex(text[2:]))
    digits = text[2:]
    if digits not in (digits.lower(), digits.upper()) and checksum(value) != text:
        raise ValueError(f"{text} has a wrong checksum: a character may be mistyped.")
    return value


def _canonical(component: Mapping[str, Any]) -> str:
    kind = str(component["type"])
    if not kind.startswith("tuple"):
        return kind
    inner = ",".join(_canonical(part) for part in component["components"])
    return f"({inner}){kind.removeprefix('tuple')}"


def _signature(entry: Mapping[str, Any]) -> str:
    return f"{entry['name']}({','.join(_canonical(part) for part in entry['inputs'])})"


# --- what an ABI holds -----------------------------------------------------------------------------------------------


class Function:
    """One function: calldata in, return data out. What does not fit its types raises `AdapterError`."""

    __slots__ = ("_inputs", "_outputs", "name", "names", "selector", "signature")

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.name: Final[str] = entry["name"]
        self.names: Final = tuple(str(part["name"]) for part in entry["inputs"])  # of its arguments
        self.signature: Final = _signature(entry)
        self.selector: Final = keccak(self.signature.encode())[:4]
        self._inputs: Final = tuple_codec([codec_of(part) for part in entry["inputs"]])
        self._outputs: Final = tuple_codec([codec_of(part) for part in entry["outputs"]])

    def __repr__(self) -> str:
        return f"Function({self.signature})"

    def encode(self, *args: Any) -> bytes:
        """Calldata: selector and arguments; structs are tuples in the order of their fields."""
        return self.selector + _encoded(self.signature, self._inputs, args)

    def call(self, to: Address, *args: Any) -> Call:
        """A read of `to` with these arguments."""
        return Call(to, self.encode(*args))

    def decode(self, returned: bytes) -> tuple[Any, ...]:
        """All outputs of one successful call."""
        return _decoded(f"{self.signature} returned", self._outputs, returned)

    def one(self, returned: bytes) -> Any:
        """The output of a function that has exactly one."""
        values = self.decode(returned)
        if len(values) != 1:
            raise AdapterError(f"{self.signature} has {len(values)} outputs, not one.")
        return values[0]

    def decode_input(self, calldata: bytes) -> tuple[Any, ...]:
        """The arguments in calldata of this function."""
        if calldata[:4] != self.selector:
            raise AdapterError(f"Calldata {hex_of(calldata[:4])}… is not a call of {self.signature}.")
        return _decoded(f"calldata of {self.signature} is", self._inputs, calldata[4:])


class Event:
    """One event; `topic` is its first topic. An indexed value of dynamic type decodes to its hash."""

    __slots__ = ("_data", "_indexed", "_names", "_plain", "signature", "topic")

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.signature: Final = _signature(entry)
        self.topic: Final = keccak(self.signature.encode())
        named = [(part["name"] or str(place), part) for place, part in enumerate(entry["inputs"])]
        self._indexed: Final = [
            (name, _topic_codec(codec_of(part)).decode) for name, part in named if part["indexed"]
        ]
        self._plain: Final = [name for name, part in named if not part["indexed"]]
        self._names: Final = [name for name, _ in named]
        self._data: Final = tuple_codec([codec_of(part) for _, part in named if not part["indexed"]])

    def __repr__(self) -> str:
        return f"Event({self.signature})"

    def decode(self, log: Log) -> dict[str, Any]:
        """The event's values by name, in declared order. Raises `AdapterError` for another event's log."""
        topics = log.topics
        if not topics or topics[0] != self.topic or len(topics) != len(self._indexed) + 1:
            raise AdapterError(f"Log {log.index} of {checksum(log.address)} is not a {self.signature}.")
        values = dict(
            zip(self._plain, _decoded(f"{self.signature} holds", self._data, log.data), strict=True)
        )
        try:
            for (name, decode), topic in zip(self._indexed, topics[1:], strict=True):
                values[name] = decode(topic, 0)
        except ValueError as error:
            raise AdapterError(f"{self.signature} holds a topic that does not decode: {error}.") from error
        return {name: values[name] for name in self._names}


def _topic_codec(codec: Codec) -> Codec:
    return fixed_bytes_codec(WORD) if codec.dynamic or codec.head != WORD else codec


class Abi:
    """A contract's interface: functions and events by name, or by signature where a name is overloaded."""

    def __init__(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self._entries: Final = entries
        self._functions: Final[dict[str, Function]] = {}
        self._events: Final[dict[str, Event]] = {}
        self._errors: Final[dict[bytes, tuple[Mapping[str, Any], Codec]]] = {}
        for entry in [*_BUILT_IN_ERRORS, *_of_kind(entries, "error")]:
            codec = tuple_codec([codec_of(part) for part in entry["inputs"]])
            self._errors[keccak(_signature(entry).encode())[:4]] = (entry, codec)

    @classmethod
    def from_json(cls, entries: Sequence[Mapping[str, Any]]) -> Abi:
        """An interface from the JSON array a compiler prints."""
        return cls(entries)

    def function(self, name: str) -> Function:
        """The function with this name or `name(types)`. Raises `AdapterError` if there is not exactly one."""
        found = self._functions.get(name)
        if found is None:
            found = self._functions[name] = Function(self._find("function", name))
        return found

    def called_by(self, calldata: bytes) -> Function | None:
        """The function whose selector `calldata` begins with; None for one this interface does not name."""
        for entry in _of_kind(self._entries, "function"):
            signature = _signature(entry)
            if len(calldata) >= 4 and keccak(signature.encode())[:4] == calldata[:4]:
                return self.function(signature)
        return None

    def event(self, name: str) -> Event:
        """The event with this name or `Name(types)`. Raises `AdapterError` if there is not exactly one."""
        found = self._events.get(name)
        if found is None:
            found = self._events[name] = Event(self._find("event", name))
        return found

    def constructor(self, *args: Any) -> bytes:
        """The encoded constructor arguments, to be appended to creation code."""
        entries = _of_kind(self._entries, "constructor")
        codec = tuple_codec([codec_of(part) for entry in entries for part in entry["inputs"]])
        return _encoded("constructor", codec, args)

    def error(self, data: bytes, inner: Callable[[bytes], str] = hex_of) -> str | None:
        """Revert data in words, as in `ScopePaused(0x…)`; None for an error this interface does not name.

        `inner` puts into words what an error carries along besides addresses and hashes, such as another's revert data.
        """
        known = self._errors.get(data[:4])
        if known is None:
            return None
        entry, codec = known
        try:
            values = codec.decode(data[4:], 0)
        except ValueError:
            return None
        if entry["name"] == "Panic":
            return f"Panic({values[0]:#04x})"
        return f"{entry['name']}({', '.join(_shown(value, inner) for value in values)})"

    def _find(self, kind: str, name: str) -> Mapping[str, Any]:
        found = [
            entry for entry in _of_kind(self._entries, kind) if name in (entry["name"], _signature(entry))
        ]
        if len(found) != 1:
            raise AdapterError(
                f"The interface has {len(found) or 'no'} {kind}s {name}; give the whole signature."
            )
        return found[0]


def _of_kind(entries: Iterable[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    return [entry for entry in entries if entry["type"] == kind]


def _shown(value: Any, inner: Callable[[bytes], str]) -> str:
    if isinstance(value, bytes):
        if len(value) == 20:
            return checksum(value)
        return hex_of(value) if len(value) == 32 else inner(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_shown(item, inner) for item in value)}]"
    return str(value)


def _encoded(what: str, codec: Codec, args: tuple[Any, ...]) -> bytes:
    try:
        return codec.encode(args)
    except (ValueError, TypeError) as error:
        raise AdapterError(f"Arguments do not fit {what}: {error}.") from error


def _decoded(what: str, codec: Codec, data: bytes) -> tuple[Any, ...]:
    try:
        values: tuple[Any, ...] = codec.decode(data, 0)
    except ValueError as error:
        raise AdapterError(f"{what} {len(data)} bytes that do not decode: {error}.") from error
    return values


@cache
def load(name: str) -> Abi:
    """The interface in `abis/<name>.json`: a JSON array, or an object with it under "abi".

    Raises `ConfigError` when the file is missing or is not an ABI.
    """
    path = _folder() / f"{name}.json"
    try:
        content = msgspec.json.decode(path.read_bytes())
        return Abi.from_json(content["abi"] if isinstance(content, dict) else content)
    except FileNotFoundError:
        raise ConfigError(
            f"abis/{name}.json is missing: install the whole package or build the contracts."
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a contract interface: {error!r}.") from error


def _folder() -> Path:
    return share_dir() / "abis"
