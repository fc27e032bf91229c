"""The chain as the engine sees it: heads, reads at a block hash, logs, simulation, broadcast and receipts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median_low
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec

from keeper.abi import keccak
from keeper.chain.blocks import known, newest
from keeper.chain.heads import follow
from keeper.chain.logs import LogShape, log_of, logs_between, logs_of_block
from keeper.chain.pending import Pending, watch_pool
from keeper.chain.pool import Notice, Pool, Sleep, Work
from keeper.chain.quorum import believe, tell
from keeper.chain.reads import drive, execute_at, require_multicall3
from keeper.chain.rpc import Rpc
from keeper.chain.simulation import (
    SimCall,
    SimResult,
    Storage,
    called,
    lacks_simulation,
    left,
    one_by_one,
    stacked,
)
from keeper.chain.transactions import Sent, raw_of, sender_of, sent_in
from keeper.chain.wire import (
    ANYTHING,
    TEXT,
    already_known,
    count,
    data,
    hash_of,
    quantity,
    reading,
)
from keeper.errors import AdapterError, ChainError, RpcError
from keeper.seams import Reads
from keeper.types import (
    NO_GAS,
    Address,
    BlockNumber,
    Filters,
    Gas,
    Hash,
    Head,
    Log,
    Question,
    Result,
    Wei,
    hex_of,
)

__all__ = ["Chain", "Notice", "Pending", "Receipt", "SimCall", "SimResult"]

T = TypeVar("T")

_FEE_HISTORY_BLOCKS: Final = 10
_FEE_PERCENTILES: Final = (50, 75, 90)
_GAS_SPREAD: Final = 20  # providers may differ by a twentieth in what they say a trial used


@dataclass(frozen=True, slots=True)
class Receipt:
    """A mined transaction, `index` its place in the block.

    What it cost is gas_used · effective_gas_price_wei + l1_fee_wei (0 but on OP-stack chains). `l1_gas` is the part of
    the gas that its bytes were charged (0 but on Arbitrum).
    """

    transaction_hash: Hash
    status: int
    block_number: BlockNumber
    block_hash: Hash
    index: int
    gas_used: Gas
    effective_gas_price_wei: Wei
    l1_fee_wei: Wei
    logs: tuple[Log, ...]
    l1_gas: Gas = NO_GAS


class _ReceiptShape(msgspec.Struct, rename="camel"):
    transaction_hash: str
    status: str
    block_number: str
    block_hash: str
    transaction_index: str
    gas_used: str
    effective_gas_price: str
    logs: list[LogShape]
    l1_fee: str | None = msgspec.field(name="l1Fee", default=None)
    gas_used_for_l1: str | None = msgspec.field(name="gasUsedForL1", default=None)


class _FeesShape(msgspec.Struct, rename="camel"):
    gas_used_ratio: list[float]
    reward: list[list[str]] | None = None


_RECEIPT: Final = msgspec.json.Decoder(_ReceiptShape | None)
_FEES: Final = msgspec.json.Decoder(_FeesShape)


class Chain:
    """One chain through all its configured providers.

    Open with `Chain.open`. Every method raises `ChainError` when no provider answers, or answers nonsense, and
    `RpcError` when what was asked is refused. With a quorum above 1 every head, block, read, trial, nonce and receipt
    is what so many providers say alike, and `NoQuorum` otherwise; logs are what any of so many list.
    """

    def __init__(self, pool: Pool, chain_id: int) -> None:
        self.chain_id: Final = chain_id
        self.quorum: Final = pool.quorum
        self._pool: Final = pool
        self._stacks = True
        self._stackless: Final[set[str]] = set()  # with a quorum: who has no eth_simulateV1

    @classmethod
    async def open(
        cls,
        urls: Sequence[str],
        chain_id: int,
        quorum: int = 1,
        *,
        max_requests_per_s: int | None = None,
        timeout_s: float = 10.0,
        sleep: Sleep = asyncio.sleep,
    ) -> Chain:
        """Connect to http(s) and ws(s) URLs and IPC paths, preferred in this order until they were measured.

        Raises `WrongChain` when one serves another chain, `ChainError` when none answers or Multicall3 is not
        deployed, `ConfigError` when `quorum` cannot be met by that many providers.
        """
        pool = await Pool.open(
            urls, chain_id, timeout_s, quorum=quorum, max_requests_per_s=max_requests_per_s, sleep=sleep
        )
        try:
            await pool.run(require_multicall3)
        except BaseException:
            await pool.close()
            raise
        return cls(pool, chain_id)

    def listen(self, listener: Callable[[Notice], None]) -> None:
        """Be told what happens to providers: one is dropped, logs differ, no heads come and come again."""
        self._pool.listener = listener

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
        return await newest(self._pool)

    def heads(self) -> AsyncGenerator[Head]:
        """The present head, then each one that is newest when asked for; see `keeper.chain.heads.follow`."""
        return follow(self._pool)

    async def block(self, at: BlockNumber | Hash) -> Head:
        """The block with this number or hash; `ChainError` when no provider has it."""
        return await known(self._pool, at)

    # --- state ---

    async def read(self, reads: Reads[T], at: Hash) -> T:
        """Run one read to its value; see `read_all`."""
        value: T = (await self.read_all([reads], at))[0]
        return value

    async def read_all(self, reads: Sequence[Reads[Any]], at: Hash) -> list[Any]:
        """Run reads side by side at one block hash and return their values in order.

        A call that reverts is `Reverted` in its place. With a quorum every round is asked of so many providers.
        """

        async def execute(questions: Sequence[Question]) -> Sequence[Result]:
            async def work(rpc: Rpc) -> list[Result]:
                return await execute_at(rpc, questions, at)

            if self.quorum == 1:
                return await self._pool.run(work)
            return (await believe(self._pool, work))[0]

        return await drive(reads, execute)

    async def nonce(self, account: Address, tag: str = "latest") -> int:
        """Transactions of `account` as of `latest`, `pending` or a block's number in hex."""
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

        return await self._believed(work)

    async def storage(self, address: Address, slot: Hash, at: Hash) -> Hash:
        """One word of a contract's storage at a block hash."""

        async def work(rpc: Rpc) -> Hash:
            where = hex_of(address), hex_of(slot), {"blockHash": hex_of(at)}
            text = await rpc.ask(TEXT, "eth_getStorageAt", *where)
            with reading(rpc.label, "eth_getStorageAt"):
                return hash_of(text)

        return await self._believed(work)

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
        if self.quorum > 1:
            return await self._simulate_agreed(calls, head, next_timestamp_s, next_base_fee)
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

    async def call(self, call: SimCall, head: Head, storage: Storage | None = None) -> Result:
        """What one call from any sender does on `head`, as if contracts held these words by slot."""

        async def work(rpc: Rpc) -> Result:
            return await called(rpc, call, head, storage or {})

        return await self._believed(work)

    async def judge(self, call: SimCall, look: SimCall, head: Head, verdict: Callable[..., T]) -> T:
        """What `verdict` says of what a call answers right after `head`, and of what `look` then answers.

        Nodes must agree on the verdict alone: what anybody's code answers may differ from node to node. The second
        answer is None where a node cannot show it. Raises like `verdict`, whose `AdapterError` is a node's fault.
        """

        async def work(rpc: Rpc) -> T:
            answers = await left(rpc, call, look, head)
            try:
                return verdict(*answers)
            except AdapterError as error:
                raise ChainError(f"{rpc.label} answered what cannot be read: {error}") from error

        return await self._believed(work, pinned=False)

    async def _simulate_agreed(
        self, calls: Sequence[SimCall], head: Head, next_timestamp_s: int, next_base_fee: int
    ) -> list[SimResult]:
        """What a quorum says that transactions do; of their gas, the most that one of them says."""

        async def work(rpc: Rpc) -> list[SimResult]:
            if rpc.label not in self._stackless:
                try:
                    return await stacked(rpc, calls, head, next_timestamp_s, next_base_fee)
                except RpcError as error:
                    if not lacks_simulation(error):
                        raise
                    self._stackless.add(rpc.label)
            return await one_by_one(rpc, calls, head, next_timestamp_s, next_base_fee)

        answers = await believe(self._pool, work, pinned=False, alike=_same_trials)
        return [max(results, key=lambda result: result.gas_used) for results in zip(*answers, strict=True)]

    async def send_raw(self, raw: bytes) -> Hash:
        """Broadcast a signed transaction; one the node has already is no error. `RpcError` when it is refused.

        With a quorum so many providers are told, so that none can swallow it.
        """

        async def work(rpc: Rpc) -> Hash:
            try:
                text = await rpc.ask(TEXT, "eth_sendRawTransaction", hex_of(raw))
            except RpcError as error:
                if already_known(error):
                    return keccak(raw)
                raise
            with reading(rpc.label, "eth_sendRawTransaction"):
                if hash_of(text) != keccak(raw):
                    raise ValueError("the hash is of another transaction")
            return keccak(raw)

        if self.quorum > 1:
            return await tell(self._pool, work)
        return await self._pool.run(work, insist=True)

    async def receipt(self, transaction_hash: Hash) -> Receipt | None:
        """The receipt of a mined transaction; None while it is not mined."""

        async def work(rpc: Rpc) -> Receipt | None:
            shape = await rpc.ask(_RECEIPT, "eth_getTransactionReceipt", hex_of(transaction_hash))
            if shape is None:
                return None
            with reading(rpc.label, "eth_getTransactionReceipt"):
                return _receipt_of(shape)

        return await self._believed(work, pinned=False)

    async def knows(self, transaction_hash: Hash) -> bool:
        """Whether a provider has a transaction, mined or waiting."""

        async def work(rpc: Rpc) -> bool:
            return await rpc.ask(ANYTHING, "eth_getTransactionByHash", hex_of(transaction_hash)) is not None

        return await self._pool.run(work)

    async def watch_pool(self, mentions: Address, saw: Callable[[Pending], Awaitable[None]]) -> None:
        """Tell `saw` of pending transactions that mention an address, where providers show any; see `watch_pool`."""
        await watch_pool(self._pool, mentions, saw)

    async def raw(self, transaction_hash: Hash) -> bytes:
        """The signed bytes of a transaction; empty where no provider tells them."""

        async def work(rpc: Rpc) -> bytes:
            return await raw_of(rpc, transaction_hash)

        return await self._pool.run(work)

    async def sender_of(self, transaction_hash: Hash) -> Address | None:
        """Who sent a transaction, as one provider says; None where it does not know it."""
        return await self._pool.run(lambda rpc: sender_of(rpc, transaction_hash))

    async def sent_in(self, sender: Address, number: int) -> list[Sent]:
        """What `sender` sent in the block with this number, with the bytes it signed."""

        async def work(rpc: Rpc) -> list[Sent]:
            return await sent_in(rpc, sender, number)

        return await self._believed(work, pinned=False)

    async def suggested_tips(self) -> tuple[Wei, ...]:
        """Medians over recent blocks of what the middle transaction paid above the base fee, then rarer ones, rising.

        Where the last blocks were empty, what the node itself suggests.
        """

        async def work(rpc: Rpc) -> tuple[Wei, ...]:
            fees = await rpc.ask(
                _FEES, "eth_feeHistory", hex(_FEE_HISTORY_BLOCKS), "latest", _FEE_PERCENTILES
            )
            with reading(rpc.label, "eth_feeHistory"):
                paid = [
                    [quantity(reward) for reward in rewards]
                    for used, rewards in zip(fees.gas_used_ratio, fees.reward or [], strict=False)
                    if used > 0 and rewards
                ]
                if paid:
                    return tuple(Wei(median_low(tips)) for tips in zip(*paid, strict=True))
            with reading(rpc.label, "eth_maxPriorityFeePerGas"):
                return (Wei(quantity(await rpc.ask(TEXT, "eth_maxPriorityFeePerGas"))),)

        return await self._pool.run(work)

    async def _quantity(self, method: str, *params: Any) -> int:
        async def work(rpc: Rpc) -> int:
            with reading(rpc.label, method):
                return quantity(await rpc.ask(TEXT, method, *params))

        return await self._believed(work, pinned=False)

    async def _believed(self, work: Work[T], *, pinned: bool = True) -> T:
        if self.quorum == 1:
            return await self._pool.run(work)
        return (await believe(self._pool, work, pinned=pinned))[0]


def _same_trials(one: Sequence[SimResult], other: Sequence[SimResult]) -> bool:
    return len(one) == len(other) and all(
        (mine.status, mine.output) == (theirs.status, theirs.output)
        and abs(mine.gas_used - theirs.gas_used) * _GAS_SPREAD <= mine.gas_used
        for mine, theirs in zip(one, other, strict=True)
    )


def _receipt_of(shape: _ReceiptShape) -> Receipt:
    return Receipt(
        transaction_hash=hash_of(shape.transaction_hash),
        status=count(shape.status),
        block_number=BlockNumber(count(shape.block_number)),
        block_hash=hash_of(shape.block_hash),
        index=count(shape.transaction_index),
        gas_used=Gas(count(shape.gas_used)),
        effective_gas_price_wei=Wei(quantity(shape.effective_gas_price)),
        l1_fee_wei=Wei(quantity(shape.l1_fee or "0x0")),
        logs=tuple([log_of(log) for log in shape.logs]),
        l1_gas=Gas(quantity(shape.gas_used_for_l1 or "0x0")),
    )
