"""The Merkle tree of RFC 6962 (section 2.1) over the hashes of the entries: one root stands for all of them.

A leaf is SHA-256(0x00 ‖ entry's hash), a node SHA-256(0x01 ‖ left ‖ right); a tree of n leaves splits at the largest
power of two below n. The two prefixes keep a node from passing for a leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

EMPTY_ROOT: Final = hashlib.sha256().digest()


def leaf(entry_hash: bytes) -> bytes:
    """What stands in the tree for an entry."""
    return hashlib.sha256(b"\0" + entry_hash).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """All that is needed of a tree to let it grow: the roots of its complete subtrees, largest first."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def grown(self, entry_hashes: Iterable[bytes]) -> Frontier:
        """The tree with more entries; each costs two hashes on average."""
        size, peaks = self.size, list(self.peaks)
        for entry_hash in entry_hashes:
            peaks.append(leaf(entry_hash))
            merged = size
            while merged & 1:
                right = peaks.pop()
                peaks[-1] = _node(peaks[-1], right)
                merged >>= 1
            size += 1
        return Frontier(size, tuple(peaks))

    @property
    def root(self) -> bytes:
        """The root of the whole tree."""
        if not self.peaks:
            return EMPTY_ROOT
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = _node(peak, root)
        return root


def path_to(index: int, entry_hashes: Sequence[bytes]) -> list[bytes]:
    """The proof that entry `index` (from 0) is in the tree of `entry_hashes`: its siblings, from the leaf up."""
    size = len(entry_hashes)
    if size == 1:
        return []
    split = 1 << (size - 1).bit_length() - 1
    left, right = entry_hashes[:split], entry_hashes[split:]
    if index < split:
        return [*path_to(index, left), Frontier().grown(right).root]
    return [*path_to(index - split, right), Frontier().grown(left).root]


def root_by_path(index: int, size: int, entry_hash: bytes, path: Sequence[bytes]) -> bytes | None:
    """The root a proof leads to (RFC 9162, section 2.1.3.2); None where it does not fit a tree of `size`."""
    if not 0 <= index < size:
        return None
    place, last, root = index, size - 1, leaf(entry_hash)
    for sibling in path:
        if last == 0:
            return None
        if place & 1 or place == last:
            root = _node(sibling, root)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            root = _node(root, sibling)
        place, last = place >> 1, last >> 1
    return root if last == 0 else None
