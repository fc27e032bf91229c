"""The tree: RFC 6962's own vectors, growth by pieces, and proofs that prove only what they are for."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keeper.store import merkle
from keeper.store.merkle import Frontier, path_to, root_by_path

# The leaves and roots that Certificate Transparency's implementations test themselves with.
_VECTORS = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def _hashes(size: int) -> list[bytes]:
    return [hashlib.sha256(bytes([number])).digest() for number in range(size)]


def test_roots_are_those_of_the_standard() -> None:
    """Trees of 0 to 8 leaves have the roots that other implementations of RFC 6962 compute."""
    leaves = [bytes.fromhex(text) for text in _VECTORS]
    assert Frontier().root == merkle.EMPTY_ROOT == hashlib.sha256(b"").digest()
    roots = [Frontier().grown(leaves[:size]).root.hex() for size in range(1, 9)]
    assert roots == _ROOTS


@given(st.lists(st.integers(0, 40), max_size=6))
@settings(deadline=None)
def test_growing_by_pieces_is_growing_at_once(pieces: list[int]) -> None:
    """However the entries come, the tree is the same."""
    grown = Frontier()
    for piece in pieces:
        grown = grown.grown(_hashes(grown.size + piece)[grown.size :])
    assert grown == Frontier().grown(_hashes(sum(pieces)))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 21, 64, 65])
def test_every_entry_can_be_proved(size: int) -> None:
    """Each entry's path leads to the root, and is no longer than the tree is high."""
    hashes = _hashes(size)
    root = Frontier().grown(hashes).root
    for index, entry_hash in enumerate(hashes):
        path = path_to(index, hashes)
        assert root_by_path(index, size, entry_hash, path) == root
        assert len(path) <= (size - 1).bit_length()


@given(st.integers(2, 40), st.data())
@settings(deadline=None)
def test_a_proof_proves_nothing_else(size: int, data: st.DataObject) -> None:
    """Another entry, another place, another size, a changed, shortened or prolonged path: none leads to the root."""
    hashes = _hashes(size)
    root = Frontier().grown(hashes).root
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(0, size - 1).filter(lambda one: one != index))
    path = path_to(index, hashes)
    broken = data.draw(st.integers(0, len(path) - 1))
    changed = [bytes(32) if at == broken else one for at, one in enumerate(path)]
    assert root_by_path(index, size, hashes[other], path) != root
    assert root_by_path(other, size, hashes[index], path) != root
    assert root_by_path(index, size, hashes[index], changed) != root
    assert root_by_path(index, size, hashes[index], path[:-1]) != root
    assert root_by_path(index, size, hashes[index], [*path, bytes(32)]) != root
    assert root_by_path(index, 2 * size + 1, hashes[index], path) != root
    assert root_by_path(size, size, hashes[index], path) is None
