"""How ABI types are laid out in 32-byte words, strictly.

Codecs are built once per type from closures, because quotes, reads and logs are decoded on the hot path, where a
general-purpose library costs fifteen times as much.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keeper.errors import AdapterError
from keeper.types import Address

WORD: Final = 32
_ARRAY: Final = re.compile(r"(.*)\[(\d*)\]")

_uint = int.from_bytes


@dataclass(frozen=True, slots=True)
class Codec:
    """How one ABI type is laid out: `head` bytes in place, and behind an offset as well when `dynamic`.

    `decode(data, at)` reads the value that starts at byte `at`; both functions raise `ValueError` (an
    `OverflowError`, a `TypeError`) for what does not fit the type. Codecs of single words rely on whoever holds
    them (a tuple or an array) to have checked that `data` is long enough.
    """

    head: int
    dynamic: bool
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes, int], Any]


def _uint_codec(bits: int) -> Codec:
    limit = 1 << bits

    def encode(value: Any) -> bytes:
        number = operator.index(value)
        if not 0 <= number < limit:
            raise ValueError(f"{number} does not fit uint{bits}")
        return number.to_bytes(WORD, "big")

    def decode(data: bytes, at: int) -> int:
        number = _uint(data[at : at + WORD], "big")
        if number >= limit:
            raise ValueError(f"a word is wider than uint{bits}")
        return number

    def decode_full(data: bytes, at: int) -> int:
        return _uint(data[at : at + WORD], "big")

    return Codec(WORD, False, encode, decode_full if bits == 256 else decode)


def _int_codec(bits: int) -> Codec:
    limit = 1 << (bits - 1)

    def encode(value: Any) -> bytes:
        number = operator.index(value)
        if not -limit <= number < limit:
            raise ValueError(f"{number} does not fit int{bits}")
        return number.to_bytes(WORD, "big", signed=True)

    def decode(data: bytes, at: int) -> int:
        number = _uint(data[at : at + WORD], "big", signed=True)
        if not -limit <= number < limit:
            raise ValueError(f"a word is wider than int{bits}")
        return number

    return Codec(WORD, False, encode, decode)


def fixed_bytes_codec(size: int) -> Codec:
    """bytesN."""
    padding = bytes(WORD - size)

    def encode(value: Any) -> bytes:
        if not isinstance(value, bytes) or len(value) != size:
            raise ValueError(f"{value!r} is not bytes{size}")
        return value + padding

    def decode(data: bytes, at: int) -> bytes:
        if data[at + size : at + WORD] != padding:
            raise ValueError(f"a word is wider than bytes{size}")
        return data[at : at + size]

    return Codec(WORD, False, encode, decode)


def _address_codec() -> Codec:
    padding = bytes(12)

    def encode(value: Any) -> bytes:
        if not isinstance(value, bytes) or len(value) != 20:
            raise ValueError(f"{value!r} is not an address of 20 bytes")
        return padding + value

    def decode(data: bytes, at: int) -> Address:
        if data[at : at + 12] != padding:
            raise ValueError("a word is wider than an address")
        return Address(data[at + 12 : at + WORD])

    return Codec(WORD, False, encode, decode)


def _bool_codec() -> Codec:
    words = {False: bytes(WORD), True: (1).to_bytes(WORD, "big")}
    values = {word: value for value, word in words.items()}

    def encode(value: Any) -> bytes:
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is not a bool")
        return words[value]

    def decode(data: bytes, at: int) -> bool:
        value = values.get(data[at : at + WORD])
        if value is None:
            raise ValueError("a word is neither true nor false")
        return value

    return Codec(WORD, False, encode, decode)


def _need(data: bytes, end: int) -> None:
    if end > len(data):
        raise ValueError(f"{end} bytes are needed and {len(data)} are there")


def _bytes_codec() -> Codec:
    def encode(value: Any) -> bytes:
        if not isinstance(value, bytes):
            raise ValueError(f"{value!r} is not bytes")
        return len(value).to_bytes(WORD, "big") + value + bytes(-len(value) % WORD)

    def decode(data: bytes, at: int) -> bytes:
        _need(data, at + WORD)
        start = at + WORD
        end = start + _uint(data[at:start], "big")
        _need(data, end)
        return data[start:end]

    return Codec(WORD, True, encode, decode)


def _string_codec() -> Codec:
    raw = _bytes_codec()
    return Codec(
        WORD,
        True,
        lambda value: raw.encode(str.encode(value)),
        lambda data, at: raw.decode(data, at).decode(),
    )


def tuple_codec(parts: Sequence[Codec]) -> Codec:
    """Heads one after another, dynamic parts behind them; a `Codec` of `tuple` values."""
    size = sum(part.head for part in parts)
    dynamic = any(part.dynamic for part in parts)
    places: list[tuple[int, Callable[[bytes, int], Any], bool]] = []
    place = 0
    for part in parts:
        places.append((place, part.decode, part.dynamic))
        place += part.head
    encoders = [part.encode for part in parts]
    offsets = [(place, decoder) for place, decoder, _ in places]

    def check(value: Any) -> None:
        if not isinstance(value, (tuple, list)) or len(value) != len(parts):
            raise ValueError(f"{value!r} is not a struct of {len(parts)} values")

    def encode_static(value: Any) -> bytes:
        check(value)
        return b"".join([encoder(item) for encoder, item in zip(encoders, value, strict=True)])

    def encode(value: Any) -> bytes:
        check(value)
        return _join(parts, value, size)

    def decode_static(data: bytes, at: int) -> tuple[Any, ...]:
        _need(data, at + size)
        return tuple([decoder(data, at + place) for place, decoder in offsets])

    def decode(data: bytes, at: int) -> tuple[Any, ...]:
        _need(data, at + size)
        return tuple(
            [
                decoder(
                    data, at + _uint(data[at + place : at + place + WORD], "big") if behind else at + place
                )
                for place, decoder, behind in places
            ]
        )

    if dynamic:
        return Codec(WORD, True, encode, decode)
    return Codec(size, False, encode_static, decode_static)


def _array_codec(item: Codec, count: int | None) -> Codec:
    """`count` items, or as many as a leading word says; a `Codec` of `list` values."""

    def check(value: Any) -> None:
        if not isinstance(value, (tuple, list)) or count not in (None, len(value)):
            raise ValueError(
                f"{value!r} is not an array of {'any number of' if count is None else count} items"
            )

    def encode(value: Any) -> bytes:
        check(value)
        body = _join([item] * len(value), value, item.head * len(value))
        return body if count is not None else len(value).to_bytes(WORD, "big") + body

    def decode(data: bytes, at: int) -> list[Any]:
        if count is None:
            _need(data, at + WORD)
            length = _uint(data[at : at + WORD], "big")
            at += WORD
        else:
            length = count
        end = at + length * item.head
        _need(data, end)
        if item.dynamic:
            return [
                item.decode(data, at + _uint(data[place : place + WORD], "big"))
                for place in range(at, end, WORD)
            ]
        return [item.decode(data, place) for place in range(at, end, item.head)]

    if count is None or item.dynamic:
        return Codec(WORD, True, encode, decode)
    return Codec(item.head * count, False, encode, decode)


def _join(parts: Sequence[Codec], values: Sequence[Any], head_size: int) -> bytes:
    heads: list[bytes] = []
    tails: list[bytes] = []
    offset = head_size
    for part, value in zip(parts, values, strict=True):
        encoded = part.encode(value)
        if part.dynamic:
            heads.append(offset.to_bytes(WORD, "big"))
            tails.append(encoded)
            offset += len(encoded)
        else:
            heads.append(encoded)
    return b"".join(heads + tails)


_CODECS: Final[Mapping[str, Codec]] = {
    "address": _address_codec(),
    "bool": _bool_codec(),
    "string": _string_codec(),
    "bytes": _bytes_codec(),
    **{f"uint{bits}": _uint_codec(bits) for bits in range(8, 257, 8)},
    **{f"int{bits}": _int_codec(bits) for bits in range(8, 257, 8)},
    **{f"bytes{size}": fixed_bytes_codec(size) for size in range(1, 33)},
}


def codec_of(component: Mapping[str, Any]) -> Codec:
    """The codec of an ABI component (its `type`, and `components` of a tuple)."""
    kind = str(component["type"])
    if array := _ARRAY.fullmatch(kind):
        inner, count = array.groups()
        return _array_codec(codec_of({**component, "type": inner}), int(count) if count else None)
    if kind == "tuple":
        return tuple_codec([codec_of(part) for part in component["components"]])
    codec = _CODECS.get(kind)
    if codec is None:
        raise AdapterError(f"{kind!r} is not an ABI type this keeper reads.")
    return codec
