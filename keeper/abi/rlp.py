"""RLP (Ethereum yellow paper, appendix B), as far as transactions need it."""

from __future__ import annotations

from collections.abc import Iterator


def rlp(item: int | bytes) -> bytes:
    """One number or byte string."""
    content = item if isinstance(item, bytes) else item.to_bytes((item.bit_length() + 7) // 8)
    if len(content) == 1 and content[0] < 0x80:
        return content
    return _prefix(0x80, len(content)) + content


def rlp_list(content: bytes) -> bytes:
    """A list of what is encoded already."""
    return _prefix(0xC0, len(content)) + content


def strings(encoded: bytes) -> Iterator[bytes]:
    """The byte strings of a list, one after another, up to the first list among them; ValueError where it is none."""
    at = _content_at(encoded, 0, 0xC0)
    while at < len(encoded) and encoded[at] < 0xC0:
        if encoded[at] < 0x80:
            yield encoded[at : at + 1]
            at += 1
            continue
        start = _content_at(encoded, at, 0x80)
        at = start + _length(encoded, at, 0x80)
        if at > len(encoded):
            raise ValueError("The RLP ends in the middle of a string.")
        yield encoded[start:at]


def _content_at(encoded: bytes, at: int, base: int) -> int:
    if not base <= encoded[at] < base + 0x40:
        raise ValueError("The RLP is not a list of strings.")
    return at + 1 + max(encoded[at] - base - 55, 0)


def _length(encoded: bytes, at: int, base: int) -> int:
    short = encoded[at] - base
    return short if short < 56 else int.from_bytes(encoded[at + 1 : at + 1 + short - 55])


def _prefix(base: int, length: int) -> bytes:
    if length < 56:
        return bytes((base + length,))
    size = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((base + 55 + len(size),)) + size
