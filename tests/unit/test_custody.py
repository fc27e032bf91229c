"""Whoever holds the operator's key: what they are asked, byte by byte, and what becomes of every answer."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from eth_account import Account

from keeper import abi, log
from keeper.errors import ConfigError, SignerError
from keeper.keys.aws_kms import AwsKms
from keeper.keys.remote import Http
from keeper.keys.signature import address_of
from keeper.keys.signers import LocalSigner, Signer, from_keystore
from keeper.keys.sigv4 import Credentials, Scope, authorization
from keeper.keys.web3signer import Web3Signer
from keeper.lab.anvil import free_port
from keeper.lab.signer_doubles import CALLER, KmsDouble, Manners, Web3SignerDouble, open_double
from keeper.types import Address

KEY = b"\x11" * 32
PAYLOAD = b"\x02" + bytes(300)
Open = Callable[..., Any]


@asynccontextmanager
async def _web3signer(manners: Manners = "honest") -> AsyncIterator[tuple[Web3SignerDouble, Signer]]:
    double = Web3SignerDouble(KEY, manners, prefix="/q7Jc0xT4mW9eRt2LkVbN")
    async with open_double(double):
        signer = Web3Signer(double.url + "/", address_of(double.public_key()))
        try:
            yield double, signer
        finally:
            await signer.close()


@asynccontextmanager
async def _kms(manners: Manners = "honest", **changes: Any) -> AsyncIterator[tuple[KmsDouble, Signer]]:
    double = KmsDouble(KEY, manners)
    async with open_double(double):
        given: dict[str, Any] = {"region": double.region, "key_id": double.key_id, "who": CALLER}
        given |= {"address": address_of(double.public_key())} | changes
        signer = AwsKms(double.url, **given)
        try:
            yield double, signer
        finally:
            await signer.close()


REMOTE = pytest.mark.parametrize("remote", [_web3signer, _kms])


@pytest.fixture(autouse=True)
def no_secrets_left() -> Any:
    """Forget what a keystore registered."""
    yield
    log.secrets.clear()


# --- in this process -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kdf", ["scrypt", "pbkdf2"])
async def test_a_keystore_is_opened(tmp_path: Path, kdf: Any) -> None:
    """A file made elsewhere signs as its key does, and its key is hidden from logs from then on."""
    path = tmp_path / "operator.json"
    path.write_text(json.dumps(Account.encrypt(KEY, "pass wörd", kdf, 2)))
    signer = from_keystore(path, "pass wörd")
    assert await signer.sign(PAYLOAD) == await LocalSigner(KEY, "here").sign(PAYLOAD)
    assert str(path) in await signer.ready()
    assert log.secrets.scrub(f"it is {KEY.hex()}") == "it is [secret]"


def _damaged(change: Callable[[Any], None]) -> str:
    content = Account.encrypt(KEY, "right", "pbkdf2", 2)
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_damaged(lambda _: None), "password does not open"),
        ("", "not a Web3 Secret Storage file"),
        ("[]", "not a Web3 Secret Storage file"),
        (_damaged(lambda c: c.update(version=4)), "not a Web3 Secret Storage file"),
        (_damaged(lambda c: c.pop("crypto")), "damaged"),
        (_damaged(lambda c: c["crypto"].update(kdf="md5")), "damaged"),
        (_damaged(lambda c: c["crypto"].update(ciphertext="zz")), "damaged"),
        (_damaged(lambda c: c["crypto"]["kdfparams"].update(c="many")), "damaged"),
        (None, "cannot be read"),
    ],
)
def test_a_keystore_that_does_not_open(tmp_path: Path, content: str | None, words: str) -> None:
    """A wrong password and every damage is one sentence with the file's name and no word of the password."""
    path = tmp_path / "operator.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=words) as caught:
        from_keystore(path, "canary")
    assert str(path) in str(caught.value) and "canary" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


# --- over HTTP -------------------------------------------------------------------------------------------------------


@REMOTE
async def test_a_remote_signs_what_the_key_would(remote: Open) -> None:
    """Its signature is valid for our address, the request is one the real service takes, and nothing is asked twice."""
    async with remote() as (double, signer):
        assert abi.checksum(signer.address) in await signer.ready()
        made = await signer.sign(PAYLOAD)
        again = await signer.sign(PAYLOAD)
        assert made == again == await LocalSigner(KEY, "here").sign(PAYLOAD)
        assert double.faults == [] and len(double.asked) == 3


@REMOTE
@pytest.mark.parametrize("manners", ["slow", "high_s"])
async def test_a_remote_may_be_slow_and_answer_the_upper_s(remote: Open, manners: Manners) -> None:
    """What comes out is the low signature all the same."""
    async with remote(manners) as (_, signer):
        assert await signer.sign(PAYLOAD) == await LocalSigner(KEY, "here").sign(PAYLOAD)


@REMOTE
@pytest.mark.parametrize(
    ("manners", "words"),
    [
        ("other_key", "not our signature"),
        ("other_digest", "not our signature"),
        ("garbage", "not a signature"),
        ("refusing", "refused|HTTP status"),
        ("absent", "cannot be reached"),
    ],
)
async def test_a_remote_that_fails_is_a_typed_error(remote: Open, manners: Manners, words: str) -> None:
    """Nothing but our signature of this digest comes out, and the error says where and nothing secret."""
    async with remote(manners) as (double, signer):
        with pytest.raises(SignerError, match=words) as caught:
            await signer.sign(PAYLOAD)
        shown = str(caught.value)
        assert f"http://127.0.0.1:{double.url.split(':')[2].split('/')[0]}" in shown
        for secret in ("q7Jc0xT4", CALLER.secret_access_key, CALLER.token, "Credential", "111122223333"):
            assert secret not in shown
        assert caught.value.__cause__ is None


async def test_a_silent_remote_is_given_up() -> None:
    """Past its time an answer is no longer waited for."""
    double = Web3SignerDouble(KEY, "silent")
    async with open_double(double):
        http = Http("the double", timeout_s=0.05)
        with pytest.raises(SignerError, match=r"the double did not answer within 0\.05 s"):
            await http.exchange("GET", double.url, {}, None)
        await http.close()


@pytest.mark.parametrize("signer", ["web3signer", "aws-kms"])
async def test_a_dead_remote(signer: str) -> None:
    """Nobody listens there: a sentence with the host alone."""
    url = f"http://127.0.0.1:{free_port()}"
    address = Address(b"\x01" * 20)
    dead: Signer
    if signer == "web3signer":
        dead = Web3Signer(f"{url}/canary", address)
    else:
        dead = AwsKms(url, "eu-west-1", "a key", CALLER, address)
    for attempt in (dead.ready(), dead.sign(PAYLOAD)):
        with pytest.raises(SignerError, match=f"{url} cannot be reached") as caught:
            await attempt
        assert "canary" not in str(caught.value)
    await dead.close()


@REMOTE
async def test_a_broken_off_request_leaves_the_connection_usable(remote: Open) -> None:
    """A stop in the middle of asking is a plain cancellation; asked again, the same signer signs."""
    async with remote("silent") as (double, signer):
        asking = asyncio.ensure_future(signer.sign(PAYLOAD))
        await double.waiting.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        double.manners = "honest"
        assert await signer.sign(PAYLOAD) == await LocalSigner(KEY, "here").sign(PAYLOAD)


async def test_web3signer_is_given_the_payload() -> None:
    """It hashes by itself; a key is named by its 64 bytes, which are looked up once by the configured address."""
    async with _web3signer() as (double, signer):
        await signer.sign(PAYLOAD)
        identifier = "0x" + double.public_key().hex()
        assert double.asked == ["GET /api/v1/eth1/publicKeys", f"POST /api/v1/eth1/sign/{identifier}"]


async def test_a_web3signer_without_our_key() -> None:
    """It is said whose key is missing there."""
    double = Web3SignerDouble(KEY)
    async with open_double(double):
        stranger = Address(b"\x01" * 20)
        signer = Web3Signer(double.url, stranger)
        with pytest.raises(SignerError, match=f"no key of {abi.checksum(stranger)}"):
            await signer.ready()
        await signer.close()


async def test_kms_is_shown_a_digest_and_must_have_our_key() -> None:
    """The key of its id must be the configured operator's, and its refusals are named by their kind alone."""
    async with _kms(address=Address(b"\x01" * 20)) as (double, signer):
        with pytest.raises(SignerError, match=r"is that of 0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A, and"):
            await signer.ready()
        assert double.asked == ["TrentService.GetPublicKey"]
    async with _kms(key_id="another") as (double, signer):
        with pytest.raises(SignerError, match=r"refused Sign with HTTP status 400: NotFoundException\."):
            await signer.sign(PAYLOAD)
    for who in (
        Credentials("AKIDEXAMPLE", "wrong"),
        Credentials("other", CALLER.secret_access_key, CALLER.token),
    ):
        async with _kms(who=who) as (double, signer):
            with pytest.raises(SignerError, match="InvalidSignatureException"):
                await signer.sign(PAYLOAD)
    async with _kms(wall_clock=lambda: 10**9) as (double, signer):
        with pytest.raises(SignerError, match="InvalidSignatureException"):
            await signer.sign(PAYLOAD)
        assert double.faults == ["the request is not signed as it arrived"]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"Signature": 1}',
        b'{"Signature": "?"}',
        b"{" + b" " * 2**21,
    ],
)
@pytest.mark.parametrize("status", [200, 302, 400, 500])
async def test_no_answer_is_believed_or_breaks_it(answer: bytes, status: int) -> None:
    """Nonsense, redirections and floods under any status end in a `SignerError`, for both services."""

    async def serve(_: web.Request) -> web.Response:
        return web.Response(status=status, body=answer, headers={"Location": "http://127.0.0.1:1/"})

    runner = web.ServerRunner(web.Server(serve))  # type: ignore[arg-type]  # it does get requests
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = "http://{}:{}".format(*runner.addresses[0][:2])
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runner.cleanup)
        for signer in (
            Web3Signer(url, Address(b"\x01" * 20)),
            AwsKms(url, "eu-west-1", "a key", CALLER, Address(b"\x01" * 20)),
        ):
            stack.push_async_callback(signer.close)
            for attempt in (signer.ready(), signer.sign(PAYLOAD)):
                with pytest.raises(SignerError):
                    await attempt


# --- Signature Version 4 ---------------------------------------------------------------------------------------------

_SCOPE = Scope("20150830T123600Z", "us-east-1", "service")
_WHO = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
_TOKEN = (
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwth"
    "Ax7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXA"
    "kiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
)
_DATED = {"Host": "example.amazonaws.com", "X-Amz-Date": "20150830T123600Z"}


@pytest.mark.parametrize(
    ("method", "headers", "body", "names", "signature"),
    [
        (
            "POST",
            _DATED,
            b"",
            "host;x-amz-date",
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ),
        (
            "POST",
            {"My-Header1": "value1", **_DATED},
            b"",
            "host;my-header1;x-amz-date",
            "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
        ),
        (
            "POST",
            {"Content-Type": "application/x-www-form-urlencoded", **_DATED},
            b"Param1=value1",
            "content-type;host;x-amz-date",
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
        (
            "POST",
            {"X-Amz-Security-Token": _TOKEN, **_DATED},
            b"",
            "host;x-amz-date;x-amz-security-token",
            "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
        ),
        (
            "GET",
            {"My-Header1": " value1", "My-Header2": ' "a   b   c"', **_DATED},
            b"",
            "host;my-header1;my-header2;x-amz-date",
            "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ),
    ],
    ids=["post-vanilla", "post-header-key-sort", "post-form-urlencoded", "post-sts-before", "get-value-trim"],
)
def test_the_published_vectors(
    method: str, headers: dict[str, str], body: bytes, names: str, signature: str
) -> None:
    """The signatures of AWS's own test suite, of those requests that have no query and no path."""
    expected = (
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    assert authorization(method, "/", headers, body, _SCOPE, _WHO) == expected


def test_credentials_are_not_shown() -> None:
    """Their repr names the caller alone."""
    assert repr(CALLER) == "Credentials(access_key_id='AKIDEXAMPLE')"
    assert base64.b64encode(CALLER.secret_access_key.encode()).decode() not in repr(CALLER)
