"""A double of a relay and its block builder: not one, but an HTTP server on loopback that speaks their wire format.

It verifies who sent a request, simulates what it is given on the head, and includes it in the block it is for when the
test says that a block is built. It can be told to be late, silent or lying.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from aiohttp import web
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes

from keeper import abi
from keeper.chain.blocks import latest
from keeper.chain.simulation import SimCall, stacked
from keeper.charges import next_base_fee
from keeper.errors import RpcError
from keeper.lab.node import Node
from keeper.types import Address, Gas, Hash, Head, hex_of

# lying: says ok and includes nothing; wrong_hash: takes it and answers another hash; leaking: tells the public pool;
# absent: drops every connection
Manners = Literal["honest", "late", "silent", "lying", "wrong_hash", "leaking", "absent"]

_LATE_S: Final = 0.6
_REFUSED: Final = -32000


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: its method, whoever signed for it, and the one object it carries."""

    method: str
    signer: Address
    order: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Held:
    """Transactions for a range of blocks; `name` replaces and cancels them for their signer."""

    raws: tuple[bytes, ...]
    first_block: int
    last_block: int
    max_timestamp_s: int | None = None


class RelayDouble:
    """One double; `requests` is everything it was asked by somebody it could verify. Open with `open_relay`."""

    def __init__(self, node: Node, manners: Manners) -> None:
        self.url = ""
        self.manners: Manners = manners
        self.requests: list[Asked] = []
        self._node = node
        self._held: dict[tuple[Address, str], _Held] = {}
        self._gone = asyncio.Event()

    def asked(self, method: str) -> list[Asked]:
        """Requests of one method, oldest first."""
        return [one for one in self.requests if one.method == method]

    @property
    def holding(self) -> int:
        """How much it was given that it neither refused nor was asked to forget."""
        return len(self._held)

    async def serve(self, request: web.Request) -> web.Response:
        """One request over HTTP."""
        if self.manners == "absent" and request.transport is not None:
            request.transport.abort()
        body = await request.read()
        signer = signer_of(request.headers.get("X-Flashbots-Signature", ""), body)
        if signer is None:
            return _answer(None, error="error in validating the signature", status=403)
        question = json.loads(body)
        asked = Asked(question["method"], signer, question["params"][0])
        self.requests.append(asked)
        if self.manners == "silent":
            await self._gone.wait()
        if self.manners == "late":
            await asyncio.sleep(_LATE_S)
        try:
            return _answer(question["id"], result=await self._do(asked))
        except RpcError as error:
            return _answer(question["id"], error=error.message)

    def leave(self) -> None:
        """Let go of whoever waits for an answer that does not come."""
        self._gone.set()

    async def _do(self, asked: Asked) -> Any:
        order = asked.order
        if asked.method == "eth_sendPrivateTransaction":
            raw = bytes.fromhex(order["tx"][2:])
            head = await latest(self._node.rpc)
            held = _Held((raw,), head.number + 1, int(order["maxBlockNumber"], 16))
            await self._take(asked.signer, hex_of(abi.keccak(raw)), held)
            return hex_of(abi.keccak(raw + b"?" if self.manners == "wrong_hash" else raw))
        if asked.method == "eth_sendBundle":
            raws = tuple(bytes.fromhex(text[2:]) for text in order["txs"])
            number = int(order["blockNumber"], 16)
            held = _Held(raws, number, number, order["maxTimestamp"])
            await self._take(asked.signer, order["replacementUuid"], held)
            digest = abi.keccak(b"".join(map(abi.keccak, raws)))
            return {"bundleHash": hex_of(digest)}
        if asked.method == "eth_cancelBundle":
            self._held.pop((asked.signer, order["replacementUuid"]), None)
            return 200
        if asked.method == "eth_cancelPrivateTransaction":
            return self._held.pop((asked.signer, order["txHash"]), None) is not None
        raise RpcError(asked.method, -32601, f"the method {asked.method} does not exist")

    async def _take(self, signer: Address, name: str, held: _Held) -> None:
        if self.manners == "lying":
            return
        why = await self._fails(held.raws, await latest(self._node.rpc))
        if why:
            raise RpcError("", _REFUSED, f"simulation failed: {why}")
        self._held[signer, name] = held
        if self.manners == "leaking":
            for raw in held.raws:
                await _offer(self._node, raw)

    async def best(self, head: Head) -> list[bytes]:
        """What it would put into the block after `head`: of bundles the longest that succeeds, and single ones."""
        number = head.number + 1
        chosen: dict[Hash, bytes] = {}
        for held in sorted(self._held.values(), key=lambda one: (-len(one.raws), one.last_block)):
            in_time = held.max_timestamp_s is None or head.timestamp_s < held.max_timestamp_s
            if held.first_block <= number <= held.last_block and in_time:
                raws = [raw for raw in held.raws if abi.keccak(raw) not in chosen]
                if raws and not await self._fails([*chosen.values(), *raws], head):
                    chosen |= {abi.keccak(raw): raw for raw in raws}
        return list(chosen.values())

    async def _fails(self, raws: Sequence[bytes], head: Head) -> str:
        """Why these do not all succeed, in this order, in the block after `head`; empty where they do."""
        base_fee_wei = next_base_fee(head)
        calls: list[SimCall] = []
        nonces: dict[str, int] = {}
        for raw in raws:
            fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
            sender = Account.recover_transaction(raw)
            if sender not in nonces:
                nonces[sender] = int(
                    await self._node.rpc.request("eth_getTransactionCount", sender, "latest"), 16
                )
            if fields["nonce"] != nonces[sender]:
                return f"nonce {fields['nonce']} where {nonces[sender]} is next"
            nonces[sender] += 1
            if fields["maxFeePerGas"] < base_fee_wei:
                return "max fee per gas less than block base fee"
            data = bytes(fields["data"])
            calls.append(SimCall(abi.address(sender), Address(bytes(fields["to"])), data, Gas(fields["gas"])))
        results = await stacked(self._node.rpc, calls, head, head.timestamp_s + 1, base_fee_wei)
        return next((f"execution reverted {hex_of(each.output)}" for each in results if not each.status), "")


@asynccontextmanager
async def open_relay(node: Node, manners: Manners = "honest") -> AsyncIterator[RelayDouble]:
    """A double on a port of its own, in front of a node whose blocks `build` makes."""
    double = RelayDouble(node, manners)
    application = web.Application()
    application.router.add_post("/{path:.*}", double.serve)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    double.url = f"http://{host}:{port}"
    try:
        yield double
    finally:
        double.leave()
        await runner.cleanup()


async def build(node: Node, *relays: RelayDouble) -> None:
    """Mine the next block with the best that these relays have for it, and with what is in the public pool."""
    head = await latest(node.rpc)
    for relay in relays:
        for raw in await relay.best(head):
            await _offer(node, raw)
    await node.mine()


def signer_of(header: str, body: bytes) -> Address | None:
    """Who vouches for a body in `address:signature`; None where the signature is not the address's."""
    name, _, signature = header.partition(":")
    message = encode_defunct(text=hex_of(abi.keccak(body)))
    try:
        recovered = Account.recover_message(message, signature=signature)
    except ValueError:
        return None
    return abi.address(recovered) if recovered.lower() == name.lower() else None


async def _offer(node: Node, raw: bytes) -> None:
    try:
        await node.rpc.request("eth_sendRawTransaction", hex_of(raw))
    except RpcError as error:
        if "already" not in error.message.lower() and "nonce too low" not in error.message:
            raise


def _answer(number: Any, *, result: Any = None, error: str = "", status: int = 200) -> web.Response:
    content = {"error": {"code": _REFUSED, "message": error}} if error else {"result": result}
    return web.json_response({"jsonrpc": "2.0", "id": number, **content}, status=status)
