"""A small real chain behind several providers, with a keeper set up on it, where pauses and reorganisations are made.

Everything is sent as signed bytes and mined when the test says so; what every block says of the pause is read from the
node itself, by a way on which no provider lies. A chain is undone by snapshot and used again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from eth_account import Account

from keeper import abi
from keeper.fixed import WAD
from keeper.guard import scope_of
from keeper.guard.message import SignedPause
from keeper.lab.aave import Version
from keeper.lab.actors import Actor, account, actor
from keeper.lab.artifacts import chainlink
from keeper.lab.node import ETHER, Contract
from keeper.lab.positions import PositionSpec, account_data, open_positions
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.safe import sign_hash
from keeper.lab.world import BASE_FEE_WEI, Lab, WorldSpec, open_lab
from keeper.multisig.safe import CALL, exec_calldata, pack_signatures
from keeper.typed_data import SafeTx, safe_tx_hash
from keeper.types import GLOBAL_SCOPE, Address, Hash, hex_of
from tests.chaos.guard_model import CONFIRMATIONS, MAX_HEAD_AGE_S, UNPAUSE_DELAY_S, Block, Scope
from tests.front import Front

MARKET: Final[Version] = "3.0"
PROTOCOL: Final = "aave-3-0"
SCOPES: Final = (GLOBAL_SCOPE, scope_of(PROTOCOL))
PRICES: Final = (1_760, 1_700, 1_640)
CANARY_USD, MOST_USD = 200, 1_600
BLOCK_TIME_S: Final = 12
PAUSE, SAFE = abi.load("PauseGuard"), abi.load("Safe")
LIQUIDATED: Final = abi.load("Liquidator").event("Liquidated")
PAUSED: Final = PAUSE.event("Paused")
STRANGER: Final = actor("stranger")
_REASON: Final = b"CHAOS\0\0\0"
_GWEI: Final = 10**9
_E8: Final = 10**8
_DEEPEST_REORG: Final = 8
_HISTORY: Final = 6_000  # blocks whose states are kept
_SCOPES_SLOT: Final = 1  # of PauseGuard's mapping
_UNKNOWN_BLOCK: Final = {"code": -32_000, "message": "header not found"}
_GAS: Final = 900_000
_TERMS: Final = Terms(
    unpause_delay_s=UNPAUSE_DELAY_S,
    max_loss_usd_per_day="1000000",
    max_consecutive_reverts=1_000,
    max_head_age_s=MAX_HEAD_AGE_S,
    unpause_confirmations=CONFIRMATIONS,
    canary_usd=str(CANARY_USD),
)
_LIMITS: Final = {
    "max_gas_spend_wei_per_hour = 1000000000000000000": "max_gas_spend_wei_per_hour = 10" + "0" * 20,
    "max_repay_usd = 10000000.0": f"max_repay_usd = {MOST_USD}.0",
}


class Provider(Front):
    """One provider: it may freeze at a block, keep announcements back, or lie about storage."""

    def __init__(self, node_url: str, blocks: dict[Hash, Block]) -> None:
        super().__init__(node_url)
        self.handed: Callable[[bytes], None] = lambda raw: None  # told of every transaction handed in
        self.frozen: Any = None  # the header it stopped at
        self.muted = False
        self.listened = False  # somebody waits for pending transactions
        self._blocks = blocks
        self.announce = lambda header: None if self.silent else header

    @property
    def silent(self) -> bool:
        """Whether it announces nothing."""
        return self.muted or self.frozen is not None

    async def hang_up(self) -> None:
        """Drop every connection."""
        self.listened = False
        await super().hang_up()

    def heal(self) -> None:
        """Nothing is wrong with it any more."""
        self.frozen, self.muted, self.lie, self.open = None, False, {}, True

    @property
    def healthy(self) -> bool:
        """Whether it tells the truth of now."""
        return not (self.silent or self.lie) and self.open

    def _asked(self, question: Any) -> Any:
        if question["method"] == "eth_sendRawTransaction":
            self.handed(bytes.fromhex(question["params"][0][2:]))
        if question["method"] == "eth_subscribe" and question["params"][0] == "newPendingTransactions":
            self.listened = True
        return super()._asked(question)

    def _answered(self, question: Any, message: Any) -> Any:
        told = super()._answered(question, message)
        if self.frozen is None or "result" not in told:
            return told
        method, params, number = question["method"], question["params"], int(self.frozen["number"], 16)
        at = next(
            (each["blockHash"] for each in params if isinstance(each, dict) and "blockHash" in each), None
        )
        if at is not None:
            block = self._blocks.get(Hash(bytes.fromhex(at[2:])))
            if block is not None and block.number > number:
                return {"jsonrpc": "2.0", "id": told["id"], "error": _UNKNOWN_BLOCK}
        if method == "eth_blockNumber":
            return told | {"result": hex(number)}
        if method == "eth_getBlockByNumber" and (params[0] == "latest" or int(params[0], 16) >= number):
            wanted = params[0] == "latest" or int(params[0], 16) == number
            return told | {"result": self.frozen if wanted else None}
        if method == "eth_getBlockByHash" and told["result"] and int(told["result"]["number"], 16) > number:
            return told | {"result": None}
        return told


@dataclass(slots=True)
class Ground:
    """The chain and the providers; `blocks` are all that it ever had, `head` the newest, `rig` this keeper's files."""

    lab: Lab
    rig: Rig
    quorum: int
    providers: list[Provider] = field(default_factory=list)
    blocks: dict[Hash, Block] = field(default_factory=dict)
    head: Block = field(default_factory=lambda: Block(0, Hash(b""), Hash(b""), 0, {}, frozenset()))
    executed: list[tuple[Block, int, bytes]] = field(default_factory=list)  # block, place in it and plan
    pauses: dict[Hash, int] = field(default_factory=dict)  # by block, the place of its first pause
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def halt(self) -> Path:
        """The halt file."""
        return self.rig.folder / "keeper.halt"

    @property
    def record(self) -> Path:
        """The keeper's record."""
        return self.rig.folder / "keeper.db"

    # --- blocks ---

    async def mine(self, advance_s: int = 0) -> Block:
        """The next block, with what is pending."""
        if advance_s:
            await self._rpc("evm_setNextBlockTimestamp", self.head.time_s + advance_s)
        await self.lab.node.mine()
        return await self._look("latest")

    async def reorg(self, depth: int) -> None:
        """The last blocks are replaced by empty ones, and what was in them is nowhere any more."""
        await self._rpc("anvil_reorg", depth, [])
        await self.lab.node.drop_pending()
        first = self.head.number - depth + 1
        for number in range(first, self.head.number + 1):
            await self._look(hex(number))

    async def _look(self, at: str) -> Block:
        """Remember a block: what it says of the pause, what was executed in it."""
        shape = await self._rpc("eth_getBlockByNumber", at, False)
        number, name = int(shape["number"], 16), Hash(bytes.fromhex(shape["hash"][2:]))
        here = hex(number)
        states, are = PAUSE.function("scopeStates"), PAUSE.function("isGuardian")
        guardians = self.lab.world.cast.guardians
        wanted = [states.encode(list(SCOPES)), *(are.encode(each.address) for each in guardians)]
        guard = hex_of(self.rig.pause_guard)
        answers: list[Any] = await self.lab.node.rpc.batch(
            [
                *(("eth_call", [{"to": guard, "data": hex_of(data)}, here]) for data in wanted),
                (
                    "eth_getLogs",
                    [{"blockHash": shape["hash"], "address": [guard, hex_of(self.rig.liquidator)]}],
                ),
            ]
        )
        logs = answers[-1]
        assert isinstance(logs, list), answers
        [rows] = states.decode(bytes.fromhex(answers[0][2:]))
        self.head = Block(
            number,
            name,
            Hash(bytes.fromhex(shape["parentHash"][2:])),
            int(shape["timestamp"], 16),
            {scope: Scope(row[0], row[1], row[3], row[4]) for scope, row in zip(SCOPES, rows, strict=True)},
            frozenset(
                bytes(each.address)
                for each, answer in zip(guardians, answers[1:-1], strict=True)
                if int(answer, 16)
            ),
        )
        self.blocks[name] = self.head
        for log in logs:
            topic, place = bytes.fromhex(log["topics"][0][2:]), int(log["transactionIndex"], 16)
            if topic == LIQUIDATED.topic:
                self.executed.append((self.head, place, bytes.fromhex(log["topics"][1][2:])))
            elif topic == PAUSED.topic:
                self.pauses.setdefault(name, place)
        return self.head

    def canonical(self, block: Block) -> bool:
        """Whether a block is on the chain of the newest one."""
        at: Block | None = self.head
        while at is not None and at.number > block.number:
            at = self.blocks.get(at.parent)
        return at == block

    # --- transactions ---

    async def send(self, who: Actor, to: Address, data: bytes, *, nonce: int | None = None) -> Hash:
        """Hand signed bytes to the node; no two are alike."""
        if nonce is None:
            nonce = int(await self._rpc("eth_getTransactionCount", hex_of(who.address), "pending"), 16)
        fee_wei = 200 * _GWEI + next(self._numbers)
        signed = Account.from_key(who.key).sign_transaction(
            {
                "type": 2,
                "chainId": self.lab.world.chain_id,
                "nonce": nonce,
                "to": abi.checksum(to),
                "value": 0,
                "data": data,
                "gas": _GAS,
                "maxFeePerGas": fee_wei,
                "maxPriorityFeePerGas": 20 * _GWEI + next(self._numbers),
            }
        )
        return Hash(
            bytes.fromhex((await self._rpc("eth_sendRawTransaction", hex_of(signed.raw_transaction)))[2:])
        )

    async def replace(self, who: Actor, transaction: Hash) -> None:
        """Its sender takes a waiting transaction back by one of nothing to itself."""
        shape = await self._rpc("eth_getTransactionByHash", hex_of(transaction))
        if shape is None or shape["blockNumber"] is not None:
            return
        signed = Account.from_key(who.key).sign_transaction(
            {
                "type": 2,
                "chainId": self.lab.world.chain_id,
                "nonce": int(shape["nonce"], 16),
                "to": abi.checksum(who.address),
                "value": 0,
                "gas": 21_000,
                "maxFeePerGas": 400 * _GWEI,
                "maxPriorityFeePerGas": 40 * _GWEI,
            }
        )
        await self._rpc("eth_sendRawTransaction", hex_of(signed.raw_transaction))

    async def drop(self, transaction: Hash) -> None:
        """The pool forgets it."""
        await self._rpc("anvil_dropTransaction", hex_of(transaction))

    async def by_safe(
        self, function: str, *arguments: Any, nonce_off: int = 0
    ) -> tuple[Actor, Address, bytes]:
        """Who sends what where so that the Safe calls PauseGuard, signed by two owners."""
        safe, world = self.lab.world.safe, self.lab.world
        nonce = int(await Contract(self.lab.node, safe.address, SAFE).read("nonce")) + nonce_off
        tx = SafeTx(self.rig.pause_guard, 0, PAUSE.function(function).encode(*arguments), CALL, nonce)
        digest = safe_tx_hash(world.chain_id, safe.address, tx)
        signatures = pack_signatures({owner.address: sign_hash(owner, digest) for owner in safe.owners[:2]})
        return safe.owners[0], safe.address, exec_calldata(tx, signatures)

    def pause(self, scope: Hash) -> bytes:
        """A guardian's call."""
        return PAUSE.function("pause").encode(scope, _REASON, bytes(32))

    def word(self, who: Actor, scope: Hash, issued_at_s: int) -> SignedPause:
        """A guardian's signed message."""
        unsigned = SignedPause(self.rig.pause_guard, scope, _REASON, Hash(bytes(32)), issued_at_s, bytes(65))
        return replace(unsigned, signature=sign_hash(who, unsigned.digest))

    async def price(self, dollars: int) -> None:
        """The feed reports ETH; mined with the next block."""
        feed = self.lab.world.feeds["WETH"]
        flux = chainlink("FluxAggregator").abi
        round_id = int(await Contract(self.lab.node, feed.aggregator, flux).read("latestRound")) + 1
        await self.send(
            self.lab.world.cast.reporter,
            feed.aggregator,
            flux.function("submit").encode(round_id, dollars * _E8),
        )

    async def unhealthy(self) -> int:
        """Borrowers below a health factor of 1, as the market says."""
        data = await account_data(self.lab.node, self.lab.world.aave[MARKET], [s.account for s in BORROWERS])
        return sum(each.health_factor_wad < WAD for each in data)

    # --- providers ---

    async def freeze(self, provider: Provider) -> None:
        """It hears of no block any more."""
        provider.frozen = await self._rpc("eth_getBlockByNumber", "latest", False)

    def lie(self, provider: Provider, scope: Hash, *, paused: bool | None, epochs: int) -> None:
        """It says something else of a scope than the chain does now."""
        slot = abi.keccak(scope + _SCOPES_SLOT.to_bytes(32))
        state = self.head.scopes[scope]
        said = state.paused if paused is None else paused
        word = int(said) | (max(0, state.epoch + epochs) << 8)
        word |= (self.head.time_s if said else 0) << 72 | state.last_unpaused_at_s << 152
        provider.lie = {hex_of(self.rig.pause_guard): {hex_of(slot): f"0x{word:064x}"}}

    @property
    def shown(self) -> bool:
        """Whether somebody shows the keeper what waits in the pool, and enough others can say what it would do."""
        reached = [each for each in self.providers if each.open and each.frozen is None]
        return len(reached) >= self.quorum and any(each.listened and not each.muted for each in reached)

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong with any provider."""
        return all(each.healthy for each in self.providers)

    async def quiet(self) -> None:
        """Until nobody has asked anything for a moment."""
        before, still = -1, 0
        while still < 4:
            await asyncio.sleep(0.005)
            asked = sum(len(each.asked) for each in self.providers)
            before, still = asked, still + 1 if asked == before else 0

    async def _rpc(self, method: str, *params: Any) -> Any:
        return await self.lab.node.rpc.request(method, *params)

    # --- from one run to the next ---

    @asynccontextmanager
    async def undone(self, folder: Path) -> AsyncIterator[Ground]:
        """A keeper's files of its own; afterwards the chain is as it was."""
        node = self.lab.node
        snapshot = await node.snapshot()
        folder.mkdir(parents=True)  # noqa: ASYNC240 - a folder of the test's own
        for name in ("keeper.toml", ".env"):
            shutil.copy(self.rig.folder / name, folder / name)
        here = replace(self, rig=replace(self.rig, folder=folder, config=folder / "keeper.toml"))
        here.blocks.clear()
        here.executed, here.pauses = [], {}
        await node.steady_clock(BLOCK_TIME_S)
        await node.set_base_fee(BASE_FEE_WEI)
        await node.mine_on_demand()
        for _ in range(_DEEPEST_REORG):
            await here.mine()
        try:
            yield here
        finally:
            for each in self.providers:
                each.heal()
                each.asked.clear()
                await each.hang_up()
            await node.drop_pending()
            await node.revert(snapshot)
            await node.drop_pending()


BORROWERS: Final = [
    PositionSpec(
        account(100 + number), {"WETH": 200 * ETHER}, {"USDC": 1}, (1_090 + 25 * number) * WAD // 1_000
    )
    for number in range(4)
]


@asynccontextmanager
async def open_ground(folder: Path, quorum: int, providers: int) -> AsyncIterator[Ground]:
    """A fresh chain with borrowers, a keeper set up, and so many providers of which `quorum` must agree."""
    async with AsyncExitStack() as stack:
        lab = await stack.enter_async_context(
            await open_lab(WorldSpec(aave=(MARKET,)), clock="steady", history=_HISTORY)
        )
        rig = await make_rig(lab, folder, _TERMS)
        await open_positions(lab.node, lab.world.cast, lab.world.aave[MARKET], BORROWERS)
        await lab.node.set_balances([STRANGER.address])
        ground = Ground(lab, rig, quorum)
        for _ in range(providers):
            front = Provider(lab.anvil.url, ground.blocks)
            await stack.enter_async_context(front.serve())
            ground.providers.append(front)
        urls = json.dumps([each.ws_url for each in ground.providers])
        text = re.sub(r"(?m)^rpc_urls = .*$", f"rpc_urls = {urls}\nquorum = {quorum}", rig.config.read_text())
        for before, after in _LIMITS.items():
            assert before in text, "the rig writes it"
            text = text.replace(before, after)
        rig.config.write_text(text)
        yield ground
