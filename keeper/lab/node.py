"""What can be done to a local node: its clock, its mining, its state, and transactions from any sender.

Everything goes through one `Rpc`. A transaction that reverts is an error here, with the contract's own reason: a
fixture that half worked would make every later figure a lie.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from keeper.abi import Abi
from keeper.chain.rpc import Request, Rpc
from keeper.chain.transports import connect
from keeper.errors import ChainError, ExecutionError, RpcError
from keeper.types import Address, BlockNumber, BlockTime, Call, Gas, Hash, Log, Wei, hex_of

ETHER: Final = 10**18
TX_GAS: Final = 16_000_000  # below EIP-7825's cap of 2^24
_TIP_WEI = 10**9
_MINED_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Tx:
    """A transaction the node signs for any sender; `to` is None for a contract creation."""

    sender: Address
    to: Address | None
    data: bytes = b""
    value_wei: int = 0
    gas: int = TX_GAS


@dataclass(frozen=True, slots=True)
class Receipt:
    """A mined transaction that did not revert; `contract` is what it created."""

    transaction_hash: Hash
    block_number: BlockNumber
    gas_used: Gas
    gas_price_wei: Wei
    contract: Address | None
    logs: tuple[Log, ...]


class Node:
    """One local node under full control. Open with `Node.open(url)`, close when done."""

    def __init__(self, rpc: Rpc) -> None:
        self.rpc = rpc

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect to a local anvil by http, ws or ipc path."""
        return cls(await connect(url))

    async def close(self) -> None:
        """Drop the connection; the node runs on."""
        await self.rpc.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    # --- the clock and mining ---

    async def head(self) -> BlockTime:
        """The latest block."""
        block = await self.rpc.request("eth_getBlockByNumber", "latest", False)
        return BlockTime(
            number=BlockNumber(int(block["number"], 16)),
            hash=Hash(_bytes(block["hash"])),
            timestamp_s=int(block["timestamp"], 16),
        )

    async def mine(self, blocks: int = 1) -> None:
        """Mine that many blocks now, whatever the mining mode."""
        await self.rpc.request("anvil_mine", hex(blocks))

    async def advance(self, seconds: int) -> None:
        """Mine one block `seconds` after the head."""
        head = await self.head()
        await self.rpc.request("evm_setNextBlockTimestamp", head.timestamp_s + seconds)
        await self.mine()

    async def steady_clock(self, step_s: int = 1) -> None:
        """From the head on, every block is exactly `step_s` after the one before: two runs see the same times."""
        head = await self.head()
        await self.rpc.request("anvil_setBlockTimestampInterval", step_s)
        # A node that has just loaded a state goes by the wall's time until it is told otherwise, twice.
        await self.rpc.request("anvil_setTime", head.timestamp_s)
        await self.rpc.request("evm_setNextBlockTimestamp", head.timestamp_s + step_s)

    async def wall_clock(self) -> None:
        """From now on block timestamps are the wall's time. Raises ChainError if the head is ahead of the wall."""
        head, now = await self.head(), int(time.time())
        if head.timestamp_s > now:
            raise ChainError(
                f"The chain is {head.timestamp_s - now} s ahead of the wall clock and cannot go back."
            )
        await self.rpc.request("anvil_removeBlockTimestampInterval")
        await self.rpc.request("anvil_setTime", now)

    async def mine_each_transaction(self) -> None:
        """Every transaction gets its own block at once (anvil's default)."""
        await self.rpc.request("evm_setIntervalMining", 0)
        await self.rpc.request("evm_setAutomine", True)

    async def mine_every(self, seconds: int) -> None:
        """A block every so many seconds, with whatever is pending."""
        await self.rpc.request("evm_setAutomine", False)
        await self.rpc.request("evm_setIntervalMining", seconds)

    async def mine_on_demand(self) -> None:
        """No block until `mine`."""
        await self.rpc.request("evm_setIntervalMining", 0)
        await self.rpc.request("evm_setAutomine", False)

    async def set_base_fee(self, base_fee_wei: int) -> None:
        """The base fee of the next block; the following ones move from there by EIP-1559."""
        await self.rpc.request("anvil_setNextBlockBaseFeePerGas", hex(base_fee_wei))

    async def drop_pending(self) -> None:
        """Forget every transaction that is not mined yet."""
        await self.rpc.request("anvil_dropAllTransactions")

    # --- state ---

    async def snapshot(self) -> str:
        """Remember everything up to the head; the id works for one `revert`."""
        return str(await self.rpc.request("evm_snapshot"))

    async def revert(self, snapshot: str) -> None:
        """Go back to a snapshot, which is used up."""
        if not await self.rpc.request("evm_revert", snapshot):
            raise ChainError(f"There is no snapshot {snapshot} to go back to; each works once.")

    async def set_balances(self, accounts: Iterable[Address], value_wei: int = 100 * ETHER) -> None:
        """Give every account exactly that much of the native currency."""
        await self._all([("anvil_setBalance", [hex_of(account), hex(value_wei)]) for account in accounts])

    async def set_code(self, code: Mapping[Address, bytes]) -> None:
        """Put runtime code at addresses."""
        await self._all(
            [("anvil_setCode", [hex_of(address), hex_of(body)]) for address, body in code.items()]
        )

    async def set_storage(self, words: Iterable[tuple[Address, int, int]]) -> None:
        """Write (contract, slot, word) triples straight into storage."""
        await self._all(
            [
                ("anvil_setStorageAt", [hex_of(address), f"0x{slot:064x}", f"0x{word:064x}"])
                for address, slot, word in words
            ]
        )

    async def code(self, address: Address) -> bytes:
        """Runtime code at the head."""
        return _bytes(await self.rpc.request("eth_getCode", hex_of(address), "latest"))

    async def storage(self, address: Address, slot: int) -> int:
        """One storage word at the head."""
        return int(
            await self.rpc.request("eth_getStorageAt", hex_of(address), f"0x{slot:064x}", "latest"), 16
        )

    async def storage_all(self, address: Address, slots: Iterable[int]) -> list[int]:
        """Many storage words of one contract at the head, in order."""
        at = hex_of(address)
        words = await self._all([("eth_getStorageAt", [at, f"0x{slot:064x}", "latest"]) for slot in slots])
        return [int(word, 16) for word in words]

    async def dump(self) -> bytes:
        """The whole state as the JSON that `Anvil.start(load_state=…)` takes."""
        return gzip.decompress(_bytes(await self.rpc.request("anvil_dumpState")))

    # --- calls and transactions ---

    async def call(
        self, to: Address, data: bytes, sender: Address | None = None, at: Hash | None = None
    ) -> bytes:
        """eth_call at a block hash, or at the head. Raises RpcError with the revert data."""
        message = {"to": hex_of(to), "data": hex_of(data)} | (
            {} if sender is None else {"from": hex_of(sender)}
        )
        block: Any = "latest" if at is None else {"blockHash": hex_of(at)}
        return _bytes(await self.rpc.request("eth_call", message, block))

    async def call_all(self, calls: Sequence[Call]) -> list[bytes]:
        """Many eth_calls at the head, in order. Raises RpcError for the first that reverts."""
        messages = [{"to": hex_of(call.to), "data": hex_of(call.data)} for call in calls]
        answers = await self._all([("eth_call", [message, "latest"]) for message in messages])
        return [_bytes(answer) for answer in answers]

    async def send(self, tx: Tx, abi: Abi | None = None) -> Receipt:
        """Send and wait until it is mined.

        Raises ExecutionError when it reverts, naming the reason by `abi` where one is given.
        """
        mined = await self.rpc.request("eth_sendTransactionSync", _message(tx))
        if mined["status"] != "0x1":
            raise await self._reverted(tx, mined, abi)
        return _receipt(mined)

    async def send_all(self, txs: Sequence[Tx], abi: Abi | None = None) -> list[Receipt]:
        """Send many, packed in order into as few blocks as hold them, and wait.

        `gas` of each should be near what it uses: a block takes transactions until their limits fill it.
        Raises ExecutionError for the first that reverts.
        """
        automine = await self.rpc.request("anvil_getAutomine")
        if automine:
            await self.rpc.request("evm_setAutomine", False)
        try:
            hashes = await self._all(
                [("eth_sendTransaction", [message]) for message in await self._ordered(txs)]
            )
            deadline = time.monotonic() + _MINED_TIMEOUT_S
            while int((await self.rpc.request("txpool_status"))["pending"], 16):
                if time.monotonic() > deadline:
                    raise ChainError(
                        f"The node did not mine {len(txs)} transactions in {_MINED_TIMEOUT_S:.0f} s."
                    )
                await self.mine()
        finally:
            if automine:
                await self.rpc.request("evm_setAutomine", True)
        mined = await self._all([("eth_getTransactionReceipt", [tx_hash]) for tx_hash in hashes])
        for tx, receipt in zip(txs, mined, strict=True):
            if receipt is None:
                raise ChainError("The node dropped a pending transaction; raise its sender's balance.")
            if receipt["status"] != "0x1":
                raise await self._reverted(tx, receipt, abi)
        return [_receipt(receipt) for receipt in mined]

    async def deploy(self, sender: Address, creation_code: bytes) -> Address:
        """Create a contract and return its address."""
        created = (await self.send(Tx(sender, None, creation_code))).contract
        if created is None:
            raise ExecutionError("A contract creation was mined without creating a contract.")
        return created

    async def _all(self, calls: Sequence[Request]) -> list[Any]:
        answers = await self.rpc.batch(calls)
        for answer in answers:
            if isinstance(answer, RpcError):
                raise answer
        return answers

    async def _ordered(self, txs: Sequence[Tx]) -> list[dict[str, str]]:
        """Messages that are mined in this order, though a node may take the requests of a batch in any.

        Nonces order what one sender sends; fees that fall from one transaction to the next order the senders.
        """
        senders = list(dict.fromkeys(tx.sender for tx in txs))
        counts = await self._all(
            [("eth_getTransactionCount", [hex_of(sender), "pending"]) for sender in senders]
        )
        nonces = {sender: int(count, 16) for sender, count in zip(senders, counts, strict=True)}
        fee_wei = 2 * int(await self.rpc.request("eth_gasPrice"), 16) + len(txs)
        messages = []
        for place, tx in enumerate(txs):
            fees = {"maxFeePerGas": hex(fee_wei - place), "maxPriorityFeePerGas": hex(_TIP_WEI)}
            messages.append(_message(tx) | fees | {"nonce": hex(nonces[tx.sender])})
            nonces[tx.sender] += 1
        return messages

    async def _reverted(self, tx: Tx, mined: Any, abi: Abi | None) -> ExecutionError:
        """The reason, found by calling again on the state before: receipts carry none."""
        where = f"Transaction {mined['transactionHash']}"
        try:
            await self.rpc.request("eth_call", _message(tx), hex(int(mined["blockNumber"], 16) - 1))
        except RpcError as error:
            reason = (abi.error(error.data) if abi and error.data else None) or error.message
            return ExecutionError(f"{where} reverted: {reason}.")
        return ExecutionError(f"{where} reverted, but not on the state of the block before.")


@dataclass(frozen=True, slots=True)
class Contract:
    """A deployed contract and how to speak to it."""

    node: Node
    address: Address
    abi: Abi

    async def read(self, function: str, *args: Any, at: Hash | None = None) -> Any:
        """Call a view: its one output, or the tuple of several. Raises RpcError when it reverts."""
        spoken = self.abi.function(function)
        outputs = spoken.decode(await self.node.call(self.address, spoken.encode(*args), at=at))
        return outputs[0] if len(outputs) == 1 else outputs

    def tx(self, sender: Address, function: str, *args: Any, value_wei: int = 0, gas: int = TX_GAS) -> Tx:
        """A transaction to it, not sent."""
        return Tx(sender, self.address, self.abi.function(function).encode(*args), value_wei, gas)

    async def send(self, sender: Address, function: str, *args: Any, value_wei: int = 0) -> Receipt:
        """Send a transaction to it and wait. Raises ExecutionError with its reason when it reverts."""
        return await self.node.send(self.tx(sender, function, *args, value_wei=value_wei), self.abi)


def _message(tx: Tx) -> dict[str, str]:
    message = {
        "from": hex_of(tx.sender),
        "data": hex_of(tx.data),
        "value": hex(tx.value_wei),
        "gas": hex(tx.gas),
    }
    return message if tx.to is None else message | {"to": hex_of(tx.to)}


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def _receipt(mined: Any) -> Receipt:
    block_number, block_hash = BlockNumber(int(mined["blockNumber"], 16)), Hash(_bytes(mined["blockHash"]))
    transaction_hash = Hash(_bytes(mined["transactionHash"]))
    created = mined.get("contractAddress")
    return Receipt(
        transaction_hash=transaction_hash,
        block_number=block_number,
        gas_used=Gas(int(mined["gasUsed"], 16)),
        gas_price_wei=Wei(int(mined["effectiveGasPrice"], 16)),
        contract=Address(_bytes(created)) if created else None,
        logs=tuple(
            Log(
                address=Address(_bytes(log["address"])),
                topics=tuple(Hash(_bytes(topic)) for topic in log["topics"]),
                data=_bytes(log["data"]),
                block_number=block_number,
                block_hash=block_hash,
                transaction_hash=transaction_hash,
                index=int(log["logIndex"], 16),
            )
            for log in mined["logs"]
        ),
    )
