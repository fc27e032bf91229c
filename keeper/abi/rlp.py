"""RLP (Ethereum yellow paper, appendix B), as far as transactions need it."""

from __future__ import annotations


def rlp(item: int | bytes) -> bytes:
    """One number or byte string."""
    content = item if isinstance(item, bytes) else item.to_bytes((item.bit_length() + 7) // 8)
    if len(content) == 1 and content[0] < 0x80:
        return content
    return _prefix(0x80, len(content)) + content


def rlp_list(content: bytes) -> bytes:
    """A list of what is encoded already."""
    return _prefix(0xC0, len(content)) + content


def _prefix(base: int, length: int) -> bytes:
    if length < 56:
        return bytes((base + length,))
    size = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((base + 55 + len(size),)) + size
