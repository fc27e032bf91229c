"""The next nonce: above what is used and claimed, but first whatever was given back below."""

from __future__ import annotations

from pathlib import Path

from keeper.execution.nonces import Nonces
from keeper.store import Store
from keeper.types import Address, Hash, PositionKey

SENDER, OTHER = Address(b"\x01" * 20), Address(b"\x02" * 20)
KEY = PositionKey("aave", "0x", Address(b"\x03" * 20))


def _reserve(store: Store, plan: int, nonce: int, sender: Address = SENDER) -> Hash:
    plan_id = Hash(bytes([plan]) * 32)
    store.reserve(plan_id, nonce, sender=sender, key=KEY, at_s=1)
    return plan_id


def test_what_was_given_back_comes_first(tmp_path: Path) -> None:
    """In this run as after a start; a nonce that was used meanwhile is not taken again, nor one of another key."""
    with Store.open(f"sqlite:///{tmp_path / 'keeper.db'}") as store:
        nonces = Nonces(store, SENDER)
        nonces.recover(7)
        assert [nonces.take() for _ in range(4)] == [7, 8, 9, 10]
        plans = [_reserve(store, plan, nonce) for plan, nonce in enumerate((7, 8, 9, 10))]
        _reserve(store, 99, 3, OTHER)
        store.release(_reserve(store, 98, 2, OTHER), 1)
        for plan_id in (plans[0], plans[2]):
            store.release(plan_id, 1)
        nonces.give_back([9, 7])
        assert store.given_back(SENDER) == {7, 9}
        assert nonces.take() == 7
        _reserve(store, 10, 7)
        assert store.given_back(SENDER) == {9}
        again = Nonces(store, SENDER)
        again.recover(8)
        assert [again.take() for _ in range(3)] == [9, 11, 12]
        late = Nonces(store, SENDER)
        late.recover(10)
        assert late.take() == 11
        nonces.used = 20
        assert nonces.take() == 20


def test_a_wrong_count_is_forgotten_with_the_next(tmp_path: Path) -> None:
    """A node that says too much or too little is believed only until it is asked again."""
    with Store.open(f"sqlite:///{tmp_path / 'keeper.db'}") as store:
        nonces = Nonces(store, SENDER)
        nonces.recover(1_000)
        nonces.used = 4
        assert nonces.take() == 4
        nonces.used = 0
        assert nonces.take() == 5
