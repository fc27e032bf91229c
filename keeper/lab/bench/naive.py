"""The two loops everybody writes first: web3.py account by account, and web3.py over Multicall3.

Both are written as their documentation shows, over HTTP, with the default middleware, and are given the head for
nothing: their time begins when they know of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from keeper import share_dir
from keeper.abi import checksum
from keeper.errors import ExecutionError
from keeper.fixed import MAX_UINT256, WAD
from keeper.lab.actors import Actor
from keeper.types import Address

_CHUNK: Final = 200  # calls in one aggregate3: more would not fit into what nodes let one call use
_GAS: Final = 1_000_000
_HEALTH_FACTOR: Final = 5  # its place in the answer of getUserAccountData


@dataclass(frozen=True, slots=True)
class Sweep:
    """One look at a sample of accounts and the transaction that follows from it."""

    looking_s: float
    sending_s: float
    sampled: int

    def scaled_s(self, accounts: int) -> float:
        """What it takes to look at all accounts at this rate and send."""
        return self.looking_s * accounts / self.sampled + self.sending_s


class Naive:
    """A liquidator in web3.py; blocking, as web3.py's own examples are."""

    def __init__(
        self, url: str, pool: Address, multicall3: Address, pair: tuple[Address, Address], actor: Actor
    ) -> None:
        """`pair` is the collateral to seize and the debt to repay."""
        from web3 import HTTPProvider, Web3  # noqa: PLC0415 - it takes a second to import

        self._w3 = Web3(HTTPProvider(url))
        self._pool: Any = self._w3.eth.contract(address=checksum(pool), abi=_abi("AavePool"))  # type: ignore[call-overload]
        self._multicall: Any = self._w3.eth.contract(address=checksum(multicall3), abi=_abi("Multicall3"))  # type: ignore[call-overload]
        self._pair = tuple(checksum(token) for token in pair)
        self._actor = actor

    def one_by_one(self, accounts: Sequence[Address]) -> Sweep:
        """`getUserAccountData` of each account in turn, then liquidate."""
        names = [checksum(account) for account in accounts]
        began_s = time.monotonic()
        unsafe = [
            name
            for name in names
            if self._pool.functions.getUserAccountData(name).call()[_HEALTH_FACTOR] < WAD
        ]
        return self._liquidate(unsafe, began_s, len(names))

    def in_batches(self, accounts: Sequence[Address]) -> Sweep:
        """The same reads through `Multicall3.aggregate3`, then liquidate."""
        names = [checksum(account) for account in accounts]
        began_s = time.monotonic()
        ask = self._pool.functions.getUserAccountData
        unsafe = []
        for first in range(0, len(names), _CHUNK):
            chunk = names[first : first + _CHUNK]
            calls = [(self._pool.address, True, ask(name)._encode_transaction_data()) for name in chunk]
            answers = self._multicall.functions.aggregate3(calls).call()
            for name, (_, answer) in zip(chunk, answers, strict=True):
                health_factor = self._w3.codec.decode(["uint256"] * (_HEALTH_FACTOR + 1), answer)[
                    _HEALTH_FACTOR
                ]
                if health_factor < WAD:
                    unsafe.append(name)
        return self._liquidate(unsafe, began_s, len(names))

    def _liquidate(self, unsafe: Sequence[str], began_s: float, sampled: int) -> Sweep:
        looked_s = time.monotonic()
        if len(unsafe) != 1:
            raise ExecutionError(f"{len(unsafe)} accounts were unsafe where the bench made one so.")
        sender = checksum(self._actor.address)
        order = self._pool.functions.liquidationCall(*self._pair, unsafe[0], MAX_UINT256, False)
        nonce = self._w3.eth.get_transaction_count(sender)  # type: ignore[arg-type]
        transaction = order.build_transaction({"from": sender, "nonce": nonce, "gas": _GAS})
        signed = self._w3.eth.account.sign_transaction(transaction, self._actor.key)
        self._w3.eth.send_raw_transaction(signed.raw_transaction)
        return Sweep(looked_s - began_s, time.monotonic() - looked_s, sampled)


def _abi(name: str) -> Any:
    described = msgspec.json.decode((share_dir() / "abis" / f"{name}.json").read_bytes())
    return described["abi"] if isinstance(described, dict) else described
