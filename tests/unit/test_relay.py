"""What is said to relays, byte by byte, and what becomes of what they answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web
from eth_account import Account
from eth_account.messages import encode_defunct

from keeper import abi
from keeper.errors import ChainError, RpcError
from keeper.execution.relay import Bundle, Refund, Relay, bundle_name
from keeper.keys import OperatorKey, RelayKey
from keeper.lab.relay import signer_of
from keeper.types import Address, BlockNumber, Hash

KEY = RelayKey("0x" + "22" * 32, 1, "a key")
RAW, OTHER = b"\x02\xaa\xbb", b"\x02\xcc"
PLAN = Hash(b"\x07" * 32)


class Server:
    """Keeps what it is told and answers what the test says."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[bytes] = []
        self.headers: list[str] = []
        self.answer: Any = {"result": None}
        self.status = 200

    async def serve(self, request: web.Request) -> web.Response:
        """One request."""
        self.bodies.append(await request.read())
        self.headers.append(request.headers["X-Flashbots-Signature"])
        if isinstance(self.answer, str):
            return web.Response(text=self.answer, status=self.status)
        number = json.loads(self.bodies[-1])["id"]
        return web.json_response({"jsonrpc": "2.0", "id": number, **self.answer}, status=self.status)

    def order(self) -> Any:
        """What it was told last."""
        return json.loads(self.bodies[-1])


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """On loopback."""
    one = Server()
    application = web.Application()
    application.router.add_post("/{path:.*}", one.serve)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    one.url = f"http://{host}:{port}/SECRETKEY"
    yield one
    await runner.cleanup()


@pytest.fixture
async def relay(server: Server) -> AsyncIterator[Relay]:
    """A relay at that server."""
    one = await Relay.open(server.url, KEY.sign_header)
    yield one
    await one.close()


async def test_a_private_transaction_on_the_wire(server: Server, relay: Relay) -> None:
    """Method and fields are those that relays document, numbers in hex."""
    server.answer = {"result": "0x" + abi.keccak(RAW).hex()}
    assert await relay.send_private(RAW, BlockNumber(300)) == abi.keccak(RAW)
    assert server.order() == {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "eth_sendPrivateTransaction",
        "params": [{"tx": "0x02aabb", "maxBlockNumber": "0x12c", "preferences": {"fast": True}}],
    }
    server.answer = {"result": True}
    await relay.cancel_private(Hash(b"\x01" * 32))
    assert server.order()["method"] == "eth_cancelPrivateTransaction"
    assert server.order()["params"] == [{"txHash": "0x" + "01" * 32}]


async def test_a_bundle_on_the_wire(server: Server, relay: Relay) -> None:
    """One target block, nothing may revert, a name to replace it by; refunds name recipient and transaction."""
    name = UUID("3d8cda4e-5c22-4f6a-9c3f-0c5f5b0a7f11")
    bundle = Bundle([RAW, OTHER], BlockNumber(300), 1_000, 1_120, name)
    await relay.send_bundle(bundle, Refund(90, Address(b"\x0b" * 20)))
    assert server.order() == {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "eth_sendBundle",
        "params": [
            {
                "txs": ["0x02aabb", "0x02cc"],
                "blockNumber": "0x12c",
                "minTimestamp": 1_000,
                "maxTimestamp": 1_120,
                "revertingTxHashes": [],
                "replacementUuid": "3d8cda4e-5c22-4f6a-9c3f-0c5f5b0a7f11",
                "refundPercent": 90,
                "refundRecipient": abi.checksum(Address(b"\x0b" * 20)),
                "refundTxHashes": ["0x" + abi.keccak(OTHER).hex()],
            }
        ],
    }
    await relay.send_bundle(bundle, None)
    assert not any(field.startswith("refund") for field in server.order()["params"][0])
    await relay.cancel_bundle(name)
    assert server.order()["method"] == "eth_cancelBundle"
    assert server.order()["params"] == [{"replacementUuid": str(name)}]


async def test_every_request_is_vouched_for_by_the_relay_key(server: Server, relay: Relay) -> None:
    """`address:signature` over the hash of exactly the bytes sent, as personal_sign signs it."""
    for name in (UUID(int=1), UUID(int=2)):
        await relay.cancel_bundle(name)
    for header, body in zip(server.headers, server.bodies, strict=True):
        address, signature = header.split(":")
        assert address == abi.checksum(KEY.address)
        message = encode_defunct(text="0x" + abi.keccak(body).hex())
        assert Account.recover_message(message, signature=signature) == address
        assert signer_of(header, body) == KEY.address
        assert signer_of(header, body + b" ") is None
        assert signer_of(f"{abi.checksum(PLAN[:20])}:{signature}", body) is None
    assert server.headers[0] != server.headers[1]


def test_the_signature_is_the_reference_librarys() -> None:
    """The header's value, for one known key and body, is what eth-account signs."""
    body = b'{"jsonrpc":"2.0","id":1,"method":"eth_sendBundle","params":[{}]}'
    message = encode_defunct(text="0x" + abi.keccak(body).hex())
    expected = Account.sign_message(message, "0x" + "22" * 32)
    assert KEY.sign_header(body) == f"{abi.checksum(KEY.address)}:0x{expected.signature.hex()}"
    assert not hasattr(KEY, "sign") and not hasattr(OperatorKey, "sign_header")


@pytest.mark.parametrize(
    ("answer", "status", "error", "words"),
    [
        ({"error": {"code": -32000, "message": "bundle too late"}}, 200, RpcError, "bundle too late"),
        ({"error": {"code": -32600, "message": "bad signature"}}, 403, RpcError, "bad signature"),
        ("<html>busy</html>", 503, ChainError, "HTTP status 503"),
        ({"result": 200}, 200, ChainError, "eth_sendPrivateTransaction"),
        ({"result": "0x12"}, 200, ChainError, "eth_sendPrivateTransaction"),
        ({"result": None}, 200, ChainError, "eth_sendPrivateTransaction"),
    ],
)
async def test_whatever_a_relay_answers_is_a_hash_or_an_error(
    server: Server, relay: Relay, answer: Any, status: int, error: type[ChainError], words: str
) -> None:
    """Refusals are told from nonsense, and no error quotes the URL's key."""
    server.answer, server.status = answer, status
    with pytest.raises(error, match=words) as caught:
        await relay.send_private(RAW, BlockNumber(1))
    assert isinstance(caught.value, RpcError) is (error is RpcError)
    assert "SECRETKEY" not in str(caught.value)


def test_a_bundles_name_is_its_plans_and_blocks() -> None:
    """A replacement bears the name of what it replaces; another plan or block bears another; all are version 4."""
    names = {bundle_name(plan, BlockNumber(n)) for plan in (PLAN, Hash(b"\x08" * 32)) for n in (1, 2)}
    assert len(names) == 4 and all(name.version == 4 for name in names)
    assert bundle_name(PLAN, BlockNumber(1)) in names
