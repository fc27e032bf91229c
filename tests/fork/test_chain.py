from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import pytest
from eth_account import Account

from keeper import abi
from keeper.chain.client import Chain, SimCall
from keeper.errors import ChainError, RpcError, WrongChain
from keeper.lab.anvil import CHAIN_ID, Anvil
from keeper.lab.node import Node, Tx
from keeper.lab.preinstalls import install_preinstalls
from keeper.seams import Reads
from keeper.types import Address, BlockNumber, Call, Filters, Gas, Hash, Question, Result, Reverted, Slot

SENDER = Account.from_key(
    "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
)  # Anvil's first
SENDER_ADDRESS = abi.address(SENDER.address)
MULTICALL3 = Address(bytes.fromhex("ca11bde05977b3631167028862be2a173976ca11"))

BLOCK = Address(b"\xb0" * 20)  # returns block.number and block.timestamp
REVERTS = Address(b"\xb1" * 20)  # reverts with the word 42
INVALID = Address(b"\xb2" * 20)  # runs into an invalid opcode, which eats all gas
BARE = Address(b"\xb3" * 20)  # reverts without data
HUNGRY = Address(b"\xb4" * 20)  # loops as often as its calldata says, 26 gas each time
COUNTER = Address(b"\xb5" * 20)  # adds one to slot 0, logs and returns it; topic 7
GETTER_OF = bytes.fromhex("5f545f5260205ff3")  # returns slot 0; put over COUNTER's code to look at it
NOBODY = Address(b"\xb6" * 20)
CODES = {
    BLOCK: bytes.fromhex("435f524260205260405ff3"),
    REVERTS: bytes.fromhex("602a5f5260205ffd"),
    INVALID: bytes.fromhex("fe"),
    BARE: bytes.fromhex("5f5ffd"),
    HUNGRY: bytes.fromhex("5f355b60019003806002575f5ff3"),
    COUNTER: bytes.fromhex("5f546001015f81905580" + "5f52600760205fa160205ff3"),
}
SEVEN = Hash((7).to_bytes(32, "big"))


def word(value: int) -> bytes:
    """One ABI word."""
    return value.to_bytes(32, "big")


def signed_transaction(nonce: int, to: Address) -> bytes:
    """A transaction without value that tips 3 gwei."""
    signed = SENDER.sign_transaction(
        {
            "type": 2,
            "chainId": CHAIN_ID,
            "nonce": nonce,
            "to": abi.checksum(to),
            "value": 0,
            "data": b"",
            "gas": 100_000,
            "maxFeePerGas": 10**11,
            "maxPriorityFeePerGas": 3 * 10**9,
        }
    )
    return bytes(signed.raw_transaction)


def asking(*rounds: Sequence[Question]) -> Reads[list[Sequence[Result]]]:
    """Each round's results."""
    answers = []
    for calls in rounds:
        answers.append((yield calls))
    return answers


@pytest.fixture(scope="module")
async def anvil() -> AsyncIterator[Anvil]:
    """A chain with Multicall3 and the little contracts above."""
    with Anvil.start(ipc=True) as started:
        async with await Node.open(started.url) as node:
            await install_preinstalls(node, CHAIN_ID)
            await node.set_code(CODES)
            await node.mine(3)
        yield started


@pytest.fixture
async def node(anvil: Anvil) -> AsyncIterator[Node]:
    """Control over it; whatever a test does to it is undone."""
    async with await Node.open(anvil.url) as opened:
        before = await opened.snapshot()
        yield opened
        await opened.revert(before)


@pytest.fixture(params=["http", "ws", "ipc"])
async def chain(anvil: Anvil, request: pytest.FixtureRequest) -> AsyncIterator[Chain]:
    """The client over each transport."""
    url = {"http": anvil.url, "ws": anvil.ws_url, "ipc": str(anvil.ipc_path)}[request.param]
    async with await Chain.open([url], CHAIN_ID) as opened:
        yield opened


async def test_every_round_of_a_read_sees_the_same_block(node: Node, chain: Chain) -> None:
    """Reads stay at their block hash while the chain moves on, for number, time and state alike."""
    head = await chain.head()
    await node.set_storage([(COUNTER, 0, 5)])
    await node.advance(100)
    await node.set_code({COUNTER: GETTER_OF})
    await node.mine()
    later = await chain.head()
    assert await chain.read(asking([Call(COUNTER, b"")]), later.hash) == [[word(5)]]
    look = [Call(BLOCK, b"")]
    then, now = word(head.number) + word(head.timestamp_s), word(later.number) + word(later.timestamp_s)
    assert await chain.read(asking(look, look), head.hash) == [[then], [then]]
    assert await chain.read_all([asking(look), asking(look, look)], later.hash) == [[[now]], [[now], [now]]]
    assert (await chain.block(head.number)).hash == head.hash
    assert (await chain.block(head.hash)).number == head.number


async def test_words_of_storage_come_beside_calls(node: Node, chain: Chain) -> None:
    """A round of calls and slots in any order is answered in that order, at its block alone; an empty word is zeros."""
    await node.set_storage([(COUNTER, 0, 5), (COUNTER, 7, 2**255 + 1)])
    await node.mine()
    head = await chain.head()
    await node.send(Tx(SENDER_ADDRESS, COUNTER))
    zero, seven = Hash(word(0)), Hash(word(7))
    mixed: list[Question] = [
        Slot(COUNTER, seven),
        Call(BLOCK, b""),
        Slot(COUNTER, zero),
        Slot(NOBODY, zero),
        Call(REVERTS, b""),
    ]
    block = word(head.number) + word(head.timestamp_s)
    expected = [word(2**255 + 1), block, word(5), word(0), Reverted(word(42))]
    assert await chain.read(asking(mixed, mixed[:1]), head.hash) == [expected, expected[:1]]
    later = await chain.head()
    assert await chain.read(asking(mixed[2:3]), later.hash) == [[word(6)]]


async def test_an_unknown_block_is_a_chain_error(chain: Chain) -> None:
    """No other block is read instead, whatever is asked."""
    unknown = Hash(b"\x99" * 32)
    filters = [Filters((COUNTER,), (SEVEN,))]
    for asked in (
        chain.read(asking([Call(BLOCK, b"")]), unknown),
        chain.read(asking([Slot(COUNTER, SEVEN)]), unknown),
        chain.code(BLOCK, unknown),
        chain.block(unknown),
        chain.block(BlockNumber(10**6)),
        chain.logs_at(filters, unknown),
        chain.logs(filters, 0, 10**6),
    ):
        with pytest.raises(ChainError):
            await asked


async def test_calls_fail_in_their_place_only(node: Node, chain: Chain) -> None:
    """A revert keeps its data, an opcode that eats all gas starves no neighbour, no code answers nothing."""
    head = await chain.head()
    calls = [Call(target, b"") for target in (BLOCK, REVERTS, INVALID, BARE, NOBODY, INVALID, BLOCK, REVERTS)]
    seen = word(head.number) + word(head.timestamp_s)
    reverted, bare = Reverted(word(42)), Reverted(b"")
    assert await chain.read(asking(calls), head.hash) == [
        [seen, reverted, bare, bare, b"", bare, seen, reverted]
    ]


async def test_a_round_too_heavy_for_one_call_is_answered_in_full(chain: Chain) -> None:
    """Twenty calls of 2.6 M gas do not fit in one eth_call of 30 M; all of them succeed nevertheless."""
    head = await chain.head()
    calls = [Call(HUNGRY, word(100_000)) for _ in range(20)]
    assert await chain.read(asking(calls), head.hash) == [[b""] * 20]


async def test_thousands_of_calls_come_back_in_order(node: Node, chain: Chain) -> None:
    """Chunks in flight at the same time do not mix."""
    balance = abi.load("Multicall3").function("getEthBalance")
    accounts = [Address(number.to_bytes(20, "big")) for number in range(1, 1701)]
    await node.set_balances(accounts[::100], 7)
    head = await chain.head()
    calls = [balance.call(MULTICALL3, account) for account in accounts]
    (results,) = await chain.read(asking(calls), head.hash)
    assert [balance.one(result) for result in results if isinstance(result, bytes)] == [
        await chain.balance(account) if place % 100 == 0 else 0 for place, account in enumerate(accounts)
    ]


async def test_heads_arrive_and_the_newest_wins(node: Node, chain: Chain) -> None:
    """A consumer that was busy finds the newest head, which is the chain's."""
    async with aclosing(chain.heads()) as heads:
        assert (await anext(heads)).hash == (await chain.head()).hash
        await node.mine(4)
        await asyncio.sleep(0.1)
        newest = await anext(heads)
        head = await chain.head()
        assert (newest.number, newest.hash, newest.parent_hash) == (head.number, head.hash, head.parent_hash)
        assert (newest.base_fee_wei, newest.gas_limit) == (head.base_fee_wei, head.gas_limit)


async def test_ranged_logs_equal_the_logs_of_each_block(node: Node, chain: Chain) -> None:
    """What a range returns is what its blocks hold, and what the receipts said."""
    first = (await chain.head()).number
    sent = []
    for _ in range(3):
        sent.append(await node.send(Tx(SENDER_ADDRESS, COUNTER)))
        await node.mine()
    last = (await chain.head()).number
    filters = [Filters((COUNTER, NOBODY), (SEVEN, Hash(bytes(32)))), Filters((BLOCK,), (SEVEN,))]
    ranged = await chain.logs(filters, first, last)
    assert ranged == [log for receipt in sent for log in receipt.logs]
    assert [int.from_bytes(log.data, "big") for log in ranged] == [1, 2, 3]
    blocks = [await chain.block(BlockNumber(number)) for number in range(first, last + 1)]
    assert ranged == [log for block in blocks for log in await chain.logs_at(filters, block.hash)]
    assert await chain.logs([Filters((COUNTER,), (Hash(bytes(32)),))], first, last) == []


async def test_simulation_stacks_on_the_next_block_and_leaves_no_trace(chain: Chain) -> None:
    """Each call sees those before it and the overridden number and time; failures fail alone; nothing stays."""
    head = await chain.head()
    targets = (COUNTER, BLOCK, REVERTS, INVALID, COUNTER)
    calls = [SimCall(NOBODY, target, b"", Gas(1_000_000)) for target in targets]
    one, block, reverted, invalid, two = await chain.simulate(calls, head, head.timestamp_s + 12, 10**9)
    assert (one.status, one.output, two.status, two.output) == (1, word(1), 1, word(2))
    assert block.output == word(head.number + 1) + word(head.timestamp_s + 12)
    assert (reverted.status, reverted.output) == (0, word(42))
    assert (invalid.status, invalid.output, invalid.gas_used) == (0, b"", 1_000_000)
    assert 40_000 < one.gas_used < 50_000
    again = await chain.simulate(calls[:1], head, head.timestamp_s + 12, 10**9)
    assert again[0].output == word(1)


async def test_trying_one_by_one_agrees_where_nothing_depends(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without eth_simulateV1, independent calls have the same status, output and, when they succeed, gas."""
    head = await chain.head()
    calls = [SimCall(NOBODY, target, b"", Gas(1_000_000)) for target in (COUNTER, BLOCK, REVERTS, INVALID)]
    stacked = await chain.simulate(calls, head, head.timestamp_s + 12, 10**9)
    monkeypatch.setattr(chain, "_stacks", False)
    alone = await chain.simulate(calls, head, head.timestamp_s + 12, 10**9)
    assert [(r.status, r.output) for r in alone] == [(r.status, r.output) for r in stacked]
    assert [r.gas_used for r in alone[:2]] == [r.gas_used for r in stacked[:2]]


async def test_a_transaction_is_sent_mined_and_accounted_for(node: Node, chain: Chain) -> None:
    """Broadcast gives the hash, twice is once, the receipt tells what it did and cost, and the nonce moves."""
    await node.mine_on_demand()
    nonce = await chain.nonce(SENDER_ADDRESS)
    raw = signed_transaction(nonce, COUNTER)
    balance_wei = await chain.balance(SENDER_ADDRESS)
    sent = await chain.send_raw(raw)
    assert sent == abi.keccak(raw) == await chain.send_raw(raw)
    assert await chain.receipt(sent) is None
    assert (await chain.nonce(SENDER_ADDRESS), await chain.nonce(SENDER_ADDRESS, "pending")) == (
        nonce,
        nonce + 1,
    )
    await node.mine()
    receipt = await chain.receipt(sent)
    assert receipt is not None
    assert (receipt.status, receipt.transaction_hash) == (1, sent)
    assert receipt.block_hash == (await chain.block(receipt.block_number)).hash
    assert [(log.topics, log.data) for log in receipt.logs] == [((SEVEN,), word(1))]
    paid_wei = receipt.gas_used * receipt.effective_gas_price_wei
    assert balance_wei - await chain.balance(SENDER_ADDRESS) == paid_wei
    assert await chain.nonce(SENDER_ADDRESS) == nonce + 1
    assert await chain.suggested_tips() == (3 * 10**9,) * 3
    with pytest.raises(RpcError, match="nonce too low"):
        await chain.send_raw(signed_transaction(nonce, NOBODY))
    await node.mine_each_transaction()


async def test_code_is_read_at_a_block(node: Node, chain: Chain) -> None:
    """An upgrade shows in the block it happened in, not before."""
    before = (await chain.head()).hash
    await node.mine()
    assert await chain.code(REVERTS, before) == CODES[REVERTS]
    assert await chain.code(NOBODY, before) == b""


async def test_another_chain_or_one_without_multicall3_is_refused() -> None:
    """Opening checks the chain id and that reads can work at all."""
    with Anvil.start(chain_id=5) as bare:
        with pytest.raises(WrongChain, match="serves chain 5"):
            await Chain.open([bare.url], CHAIN_ID)
        with pytest.raises(ChainError, match="no Multicall3"):
            await Chain.open([bare.ws_url], 5)


async def test_providers_that_disagree_are_not_believed() -> None:
    """Two nodes that tell the same block hash but different state make a quorum read stop."""
    with Anvil.start(timestamp_s=1_700_000_000) as honest, Anvil.start(timestamp_s=1_700_000_000) as lying:
        for anvil, code in ((honest, CODES[REVERTS]), (lying, CODES[BLOCK])):
            async with await Node.open(anvil.url) as node:
                await install_preinstalls(node, CHAIN_ID)
                await node.advance(100)  # a block of its own: Anvil's genesis runs with another clock
                await node.set_code({BLOCK: CODES[BLOCK], REVERTS: code})
        async with await Chain.open([honest.ws_url, lying.url], CHAIN_ID, quorum=2) as chain:
            head = await chain.head()
            agreed = await chain.read(asking([Call(BLOCK, b"")]), head.hash)
            assert agreed == [[word(head.number) + word(head.timestamp_s)]]
            with pytest.raises(ChainError, match="2 providers disagree"):
                await chain.read(asking([Call(REVERTS, b"")]), head.hash)


async def test_a_node_that_dies_is_replaced() -> None:
    """Heads and reads go on at the next provider, without an error reaching the caller."""
    with Anvil.start(timestamp_s=1_700_000_000) as first, Anvil.start(timestamp_s=1_700_000_000) as second:
        for anvil in (first, second):
            async with await Node.open(anvil.url) as node:
                await install_preinstalls(node, CHAIN_ID)
                await node.set_code(CODES)
        async with (
            await Chain.open([first.ws_url, second.ws_url], CHAIN_ID) as chain,
            await Node.open(second.url) as node,
            aclosing(chain.heads()) as heads,
        ):
            await anext(heads)
            first.stop()
            await node.mine(2)
            head = await anext(heads)
            assert head.hash == (await chain.head()).hash
            assert head.number == 2
            assert await chain.read(asking([Call(REVERTS, b"")]), head.hash) == [[Reverted(word(42))]]
