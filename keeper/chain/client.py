"""The chain as the engine sees it: heads, reads at a block hash, logs, simulation, broadcast and receipts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from statistics import median_low
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec

from keeper.abi import keccak
from keeper.chain.heads import Sleep, block_at, follow, latest
from keeper.chain.logs import LogShape, log_of, logs_between, logs_of_block
from keeper.chain.pool import Pool
from keeper.chain.reads import drive, execute_at, require_multicall3
from keeper.chain.rpc import Rpc
from keeper.chain.simulation import SimCall, SimResult, lacks_simulation, one_by_one, stacked
from keeper.chain.wire import TEXT, data, failed_execution, hash_of, quantity, reading
from keeper.errors import ChainError, ConfigError, RpcError
from keeper.seams import Reads
from keeper.types import Address, BlockNumber, Call, Filters, Gas, Hash, Head, Log, Result, Wei, hex_of

__all__ = ["Chain", "Receipt", "SimCall", "SimResult"]

T = TypeVar("T")

_FEE_HISTORY_BLOCKS: Final = 10
_FEE_PERCENTILE: Final = 50
_PATIENCE_S: Final = (0.05, 0.1, 0.2, 0.4)  # for a provider that hears of a block later than the others
_KNOWN_TRANSACTION: Final = re.compile(r"already (known|imported)|known transaction", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Receipt:
    """A mined transaction. What it cost is gas_used · effective_gas_price_wei + l1_fee_wei (0 but on rollups)."""

    transaction_hash: Hash
    status: int
    block_number: BlockNumber
    block_hash: Hash
    gas_used: Gas
    effective_gas_price_wei: Wei
    l1_fee_wei: Wei
    logs: tuple[Log, ...]


class _ReceiptShape(msgspec.Struct, rename="camel"):
    transaction_hash: str
    status: str
    block_number: str
    block_hash: str
    gas_used: str
    effective_gas_price: str
    logs: list[LogShape]
    l1_fee: str | None = msgspec.field(name="l1Fee", default=None)


class _FeesShape(msgspec.Struct, rename="camel"):
    gas_used_ratio: list[float]
    reward: list[list[str]] | None = None


_RECEIPT: Final = msgspec.json.Decoder(_ReceiptShape | None)
_FEES: Final = msgspec.json.Decoder(_FeesShape)


class Chain:
    """One chain through all its configured providers.

    Open with `Chain.open`. Every method raises `ChainError` when no provider answers, or answers nonsense, and
    `RpcError` when what was asked is refused.
    """

    def __init__(self, pool: Pool, chain_id: int, quorum: int, sleep: Sleep) -> None:
        self.chain_id: Final = chain_id
        self.quorum: Final = quorum
        self._pool: Final = pool
        self._sleep: Final = sleep
        self._stacks = True

    @classmethod
    async def open(
        cls,
        urls: Sequence[str],
        chain_id: int,
        quorum: int = 1,
        *,
        timeout_s: float = 10.0,
        sleep: Sleep = asyncio.sleep,
    ) -> Chain:
        """Connect to http(s) and ws(s) URLs and IPC paths, preferred in this order.

        Raises `WrongChain` when one serves another chain, `ChainError` when none answers or Multicall3 is not
        deployed, `ConfigError` when `quorum` cannot be met by that many providers.
        """
        if not 1 <= quorum <= max(len(urls), 1):
            raise ConfigError(
                f"chain.quorum is {quorum} with {len(urls)} chain.rpc_urls; it must be 1 to {len(urls)}."
            )
        pool = await Pool.open(urls, chain_id, timeout_s)
        try:
            await pool.run(require_multicall3)
        except BaseException:
            await pool.close()
            raise
        return cls(pool, chain_id, quorum, sleep)

    async def close(self) -> None:
        """Drop every connection."""
        await self._pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    # --- blocks ---

    async def head(self) -> Head:
        """The newest block."""
        return await self._pool.run(latest)

    def heads(self) -> AsyncGenerator[Head]:
        """The present head, then each one that is newest when asked for; see `keeper.chain.heads.follow`."""
        return follow(self._pool, self._sleep)

    async def block(self, at: BlockNumber | Hash) -> Head:
        """The block with this number or hash; `ChainError` when no provider has it."""
        return await self._pool.run(lambda rpc: block_at(rpc, at))

    # --- state ---

    async def read(self, reads: Reads[T], at: Hash, *, quorum: bool = False) -> T:
        """Run one read to its value; see `read_all`."""
        value: T = (await self.read_all([reads], at, quorum=quorum))[0]
        return value

    async def read_all(self, reads: Sequence[Reads[Any]], at: Hash, *, quorum: bool = False) -> list[Any]:
        """Run reads side by side at one block hash and return their values in order.

        A call that reverts is `Reverted` in its place. With `quorum`, every round is asked of that many providers
        and `ChainError` raised unless all answer the same bytes: unknown or disagreeing means stop.
        """

        async def execute(calls: Sequence[Call]) -> Sequence[Result]:
            return await self._pool.run(lambda rpc: execute_at(rpc, calls, at))

        async def execute_agreed(calls: Sequence[Call]) -> Sequence[Result]:
            answers = await self._pool.run_each(lambda rpc: self._patiently(rpc, calls, at), self.quorum)
            if any(answer != answers[0] for answer in answers):
                raise ChainError(
                    f"{self.quorum} providers disagree about the state at block {hex_of(at)}; trust none."
                )
            return answers[0]

        return await drive(reads, execute_agreed if quorum and self.quorum > 1 else execute)

    async def _patiently(self, rpc: Rpc, calls: Sequence[Call], at: Hash) -> Sequence[Result]:
        """Execute at a block the provider may only be about to hear of; else no new head would be agreed on."""
        for wait_s in _PATIENCE_S:
            try:
                return await execute_at(rpc, calls, at)
            except RpcError as error:
                if failed_execution(error):
                    raise
            await self._sleep(wait_s)
        return await execute_at(rpc, calls, at)

    async def nonce(self, account: Address, tag: str = "latest") -> int:
        """Transactions of `account` as of `latest` or `pending`."""
        return await self._quantity("eth_getTransactionCount", hex_of(account), tag)

    async def balance(self, account: Address, tag: str = "latest") -> Wei:
        """Native currency of `account`."""
        return Wei(await self._quantity("eth_getBalance", hex_of(account), tag))

    async def code(self, address: Address, at: Hash) -> bytes:
        """Runtime code at a block hash; empty where there is no contract."""

        async def work(rpc: Rpc) -> bytes:
            text = await rpc.ask(TEXT, "eth_getCode", hex_of(address), {"blockHash": hex_of(at)})
            with reading(rpc.label, "eth_getCode"):
                return data(text)

        return await self._pool.run(work)

    # --- logs ---

    async def logs(self, filters: Sequence[Filters], from_block: int, to_block: int) -> list[Log]:
        """Logs that match any filter, both blocks included, in chain order; complete or `ChainError`."""
        return await logs_between(self._pool, filters, from_block, to_block)

    async def logs_at(self, filters: Sequence[Filters], block_hash: Hash) -> list[Log]:
        """Logs of one block that match any filter; `ChainError` when no provider knows the block."""
        return await logs_of_block(self._pool, filters, block_hash)

    # --- transactions ---

    async def simulate(
        self, calls: Sequence[SimCall], head: Head, next_timestamp_s: int, next_base_fee: int
    ) -> list[SimResult]:
        """Try transactions in the block after `head`, each seeing what those before it did.

        Where no provider has eth_simulateV1 they are tried one by one on `head` instead, each alone.
        """
        if not calls:
            return []
        if self._stacks:
            try:
                return await self._pool.run(
                    lambda rpc: stacked(rpc, calls, head, next_timestamp_s, next_base_fee)
                )
            except RpcError as error:
                if not lacks_simulation(error):
                    raise
                self._stacks = False
        return await self._pool.run(lambda rpc: one_by_one(rpc, calls, head, next_timestamp_s, next_base_fee))

    async def send_raw(self, raw: bytes) -> Hash:
        """Broadcast a signed transaction; one the node has already is no error. `RpcError` when it is refused."""

        async def work(rpc: Rpc) -> Hash:
            try:
                text = await rpc.ask(TEXT, "eth_sendRawTransaction", hex_of(raw))
            except RpcError as error:
                if _KNOWN_TRANSACTION.search(error.message):
                    return keccak(raw)
                raise
            with reading(rpc.label, "eth_sendRawTransaction"):
                return hash_of(text)

        return await self._pool.run(work, insist=True)

    async def receipt(self, transaction_hash: Hash) -> Receipt | None:
        """The receipt of a mined transaction; None while it is not mined."""

        async def work(rpc: Rpc) -> Receipt | None:
            shape = await rpc.ask(_RECEIPT, "eth_getTransactionReceipt", hex_of(transaction_hash))
            if shape is None:
                return None
            with reading(rpc.label, "eth_getTransactionReceipt"):
                return _receipt_of(shape)

        return await self._pool.run(work)

    async def suggested_tip(self) -> Wei:
        """The median of what the middle transaction of each recent block paid above the base fee.

        Where the last blocks were empty, what the node itself suggests.
        """

        async def work(rpc: Rpc) -> Wei:
            fees = await rpc.ask(
                _FEES, "eth_feeHistory", hex(_FEE_HISTORY_BLOCKS), "latest", [_FEE_PERCENTILE]
            )
            with reading(rpc.label, "eth_feeHistory"):
                tips = [
                    quantity(rewards[0])
                    for used, rewards in zip(fees.gas_used_ratio, fees.reward or [], strict=False)
                    if used > 0 and rewards
                ]
            if tips:
                return Wei(median_low(tips))
            with reading(rpc.label, "eth_maxPriorityFeePerGas"):
                return Wei(quantity(await rpc.ask(TEXT, "eth_maxPriorityFeePerGas")))

        return await self._pool.run(work)

    async def _quantity(self, method: str, *params: Any) -> int:
        async def work(rpc: Rpc) -> int:
            with reading(rpc.label, method):
                return quantity(await rpc.ask(TEXT, method, *params))

        return await self._pool.run(work)


def _receipt_of(shape: _ReceiptShape) -> Receipt:
    return Receipt(
        transaction_hash=hash_of(shape.transaction_hash),
        status=quantity(shape.status),
        block_number=BlockNumber(quantity(shape.block_number)),
        block_hash=hash_of(shape.block_hash),
        gas_used=Gas(quantity(shape.gas_used)),
        effective_gas_price_wei=Wei(quantity(shape.effective_gas_price)),
        l1_fee_wei=Wei(quantity(shape.l1_fee or "0x0")),
        logs=tuple([log_of(log) for log in shape.logs]),
    )
