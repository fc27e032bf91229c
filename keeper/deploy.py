"""Putting PauseGuard and Liquidator on a chain, and handing the rest to the Safe's signers.

Both contracts are created through the deterministic deployer with salt 0, so their addresses follow from what is
deployed: a second run finds the first one's work and does nothing. The deployer key pays and owns nothing; every
setting is a call of the Safe, written as a batch that its signers load into their own tool.

web3 is used here and nowhere else of what ships, and imported only when something is deployed.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keeper import abi, nesting
from keeper.chain.rpc import label_of
from keeper.config import Settings
from keeper.errors import ChainError, ConfigError, ExecutionError, WrongChain
from keeper.guard import Fees
from keeper.installation import (
    LIQUIDATOR,
    PAUSE_GUARD,
    Build,
    SafeCall,
    code_fault,
    immutables_fault,
    liquidator_immutables,
    pause_guard_immutables,
)
from keeper.keys import DETERMINISTIC_DEPLOYER, DeployerKey
from keeper.types import Address, Gas, Hash, Wei, hex_of

if TYPE_CHECKING:
    from web3 import AsyncWeb3

_SALT: Final = bytes(32)
_MINED_TIMEOUT_S: Final = 180
_GAS_MARGIN_PERCENT: Final = 10
_SAFE: Final = abi.load("Safe")


@dataclass(frozen=True, slots=True)
class Creation:
    """A contract this run created."""

    name: str
    address: Address
    transaction_hash: Hash
    gas_used: Gas
    cost_wei: Wei


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where everything is; `created` is empty when all was there already."""

    pause_guard: Address
    liquidator: Address
    safe: Address
    treasury: Address
    created: tuple[Creation, ...] = ()


@dataclass(frozen=True, slots=True)
class _Part:
    """One contract to be: `abi` explains why its constructor reverts."""

    build: Build
    abi: abi.Abi
    init_code: bytes
    address: Address
    immutables: Mapping[str, bytes]


def create2_address(init_code: bytes) -> Address:
    """Where the deterministic deployer creates `init_code` (EIP-1014, salt 0)."""
    seed = b"\xff" + DETERMINISTIC_DEPLOYER + _SALT + abi.keccak(init_code)
    return Address(abi.keccak(seed)[12:])


async def deploy(
    settings: Settings,
    deployer: DeployerKey,
    safe: Address,
    treasury: Address,
    guardians: Iterable[Address],
    unpause_delay_s: int,
    builds: Mapping[str, Build],
) -> Deployment:
    """Create whatever of PauseGuard and Liquidator is not there, and verify both against `builds` by name.

    The order of `guardians` does not matter. Nothing is written but to the chain, and there only what is missing; the
    result is complete or there is none, so whoever stores it cannot store half of it.

    Raises:
        WrongChain: no node serves the configured chain.
        ConfigError: the chain has no deterministic deployer, `safe` is not a Safe, or the deployer cannot pay.
        ExecutionError: a constructor or a transaction reverts, or what is there is not the build.
        ChainError: no node answers, or a transaction is not mined in time; deploying again continues.
    """
    parts = _parts(safe, treasury, guardians, unpause_delay_s, builds)
    async with _node(settings) as node:
        await node.require_code(DETERMINISTIC_DEPLOYER, settings.chain.id)
        await node.require_safe(safe)
        created = []
        for part in parts:
            if not await node.code(part.address):
                created.append(await node.create(part, deployer, settings.limits.max_fee_wei))
            code = await node.code(part.address)
            fault = code_fault(part.build, code) or immutables_fault(part.build, code, part.immutables)
            if fault is not None:
                raise ExecutionError(
                    f"{part.build.name} at {abi.checksum(part.address)} {fault}; do not use that chain."
                )
    pause_guard, liquidator = parts
    return Deployment(pause_guard.address, liquidator.address, safe, treasury, tuple(created))


def _parts(
    safe: Address,
    treasury: Address,
    guardians: Iterable[Address],
    unpause_delay_s: int,
    builds: Mapping[str, Build],
) -> tuple[_Part, _Part]:
    # sorted, so that the same people named in another order are not another contract
    arguments = PAUSE_GUARD.constructor(safe, sorted(set(guardians)), unpause_delay_s)
    init_code = builds["PauseGuard"].creation_code() + arguments
    address = create2_address(init_code)
    immutables = pause_guard_immutables(safe, unpause_delay_s, address)
    pause_guard = _Part(builds["PauseGuard"], PAUSE_GUARD, init_code, address, immutables)

    init_code = builds["Liquidator"].creation_code() + LIQUIDATOR.constructor(
        safe, treasury, pause_guard.address
    )
    immutables = liquidator_immutables(safe, treasury, pause_guard.address)
    address = create2_address(init_code)
    return pause_guard, _Part(builds["Liquidator"], LIQUIDATOR, init_code, address, immutables)


# --- the node, by web3 -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Node:
    web3: AsyncWeb3[Any]
    label: str

    async def code(self, address: Address) -> bytes:
        with _answering(self.label, "eth_getCode"):
            return bytes(await self.web3.eth.get_code(_checked(address)))

    async def require_code(self, address: Address, chain_id: int) -> None:
        if not await self.code(address):
            raise ConfigError(
                f"Chain {chain_id} has no deterministic deployer at {abi.checksum(address)}: have it deployed there "
                "(its one transaction is public and works on every chain), then deploy again."
            )

    async def require_safe(self, safe: Address) -> None:
        threshold = _SAFE.function("getThreshold")
        with _answering(self.label, "eth_call"):
            code = await self.web3.eth.get_code(_checked(safe))
            answer = await self._call({"to": _checked(safe), "data": hex_of(threshold.encode())})
        if not code or isinstance(answer, str) or len(answer) != 32 or not any(answer):
            raise ConfigError(
                f"{abi.checksum(safe)} is not a Safe on this chain: it names no threshold; check --safe."
            )

    async def create(self, part: _Part, deployer: DeployerKey, max_fee_wei: Wei) -> Creation:
        name = part.build.name
        with _answering(self.label, f"the deployment of {name}"):
            # alone first: through the deterministic deployer the constructor's reason would be lost
            reason = await self._call({"from": _checked(deployer.address), "data": hex_of(part.init_code)})
            if isinstance(reason, str):
                shown = part.abi.error(bytes.fromhex(reason.removeprefix("0x"))) or reason
                raise ExecutionError(f"{name} cannot be deployed: its constructor reverts with {shown}.")
            nonce = await self._next_nonce(deployer.address)
            fees = await self._fees(part, deployer.address, max_fee_wei)
            signed = deployer.sign_deploy(part.init_code, nonce, fees)
            await self.web3.eth.send_raw_transaction(signed.raw)
            receipt = await self._mined(name, signed.hash)
        if receipt["status"] != 1:
            raise ExecutionError(
                f"The transaction {hex_of(signed.hash)} that creates {name} was mined and reverted after "
                f"{receipt['gasUsed']} gas; deploy again."
            )
        gas_used = Gas(receipt["gasUsed"])
        cost_wei = Wei(gas_used * receipt["effectiveGasPrice"])
        return Creation(name, part.address, signed.hash, gas_used, cost_wei)

    async def _call(self, transaction: dict[str, Any]) -> bytes | str:
        """What a call returns, or the hex of what it reverts with."""
        from web3.exceptions import ContractLogicError  # noqa: PLC0415 - see the module's docstring

        try:
            return bytes(await self.web3.eth.call(transaction))  # type: ignore[arg-type]  # a plain dict of hex is a TxParams
        except ContractLogicError as error:
            return error.data if isinstance(error.data, str) else "0x"

    async def _next_nonce(self, deployer: Address) -> int:
        mined = await self.web3.eth.get_transaction_count(_checked(deployer), "latest")
        pending = await self.web3.eth.get_transaction_count(_checked(deployer), "pending")
        if pending != mined:
            # it may be the creation itself, sent by a run that did not wait long enough
            raise ChainError(
                f"{pending - mined} transactions of {abi.checksum(deployer)} are not mined yet: wait for them, then "
                "deploy again."
            )
        return int(mined)

    async def _fees(self, part: _Part, deployer: Address, max_fee_wei: Wei) -> Fees:
        eth = self.web3.eth
        base_fee_wei = (await eth.get_block("latest"))["baseFeePerGas"]
        tip_wei = await eth.max_priority_fee
        if base_fee_wei + tip_wei > max_fee_wei:
            raise ExecutionError(
                f"Gas costs {base_fee_wei + tip_wei} wei now, above limits.max_fee_gwei ({max_fee_wei} wei): wait or "
                "raise the limit."
            )
        ceiling_wei = min(2 * base_fee_wei + tip_wei, max_fee_wei)
        balance_wei = await eth.get_balance(_checked(deployer))
        gas = await eth.estimate_gas(
            {
                "from": _checked(deployer),
                "to": _checked(DETERMINISTIC_DEPLOYER),
                "data": hex_of(_SALT + part.init_code),  # type: ignore[typeddict-item]  # hex is what HexStr means
            }
        )
        gas = gas * (100 + _GAS_MARGIN_PERCENT) // 100
        if balance_wei < gas * ceiling_wei:
            raise ConfigError(
                f"The deployer {abi.checksum(deployer)} holds {balance_wei} wei, but {part.build.name} may cost "
                f"{gas * ceiling_wei} wei ({gas} gas at {ceiling_wei} wei): send it the difference."
            )
        return Fees(Wei(ceiling_wei), Wei(min(tip_wei, ceiling_wei)), Gas(gas))

    async def _mined(self, name: str, transaction_hash: Hash) -> Mapping[str, Any]:
        from eth_typing import HexStr  # noqa: PLC0415 - with web3
        from web3.exceptions import TimeExhausted  # noqa: PLC0415 - see the module's docstring

        try:
            wanted = HexStr(hex_of(transaction_hash))
            return await self.web3.eth.wait_for_transaction_receipt(wanted, _MINED_TIMEOUT_S, 0.2)
        except TimeExhausted:
            raise ChainError(
                f"The transaction {hex_of(transaction_hash)} that creates {name} is not mined after "
                f"{_MINED_TIMEOUT_S} s: deploy again once it is."
            ) from None


@asynccontextmanager
async def _node(settings: Settings) -> AsyncIterator[_Node]:
    """The first configured node that answers; raises `WrongChain` if that one serves another chain."""
    from web3 import AsyncHTTPProvider  # noqa: PLC0415 - see the module's docstring

    faults = []
    for url in settings.chain.rpc_urls:
        node = _Node(_web3(url), label_of(url))
        try:
            with _answering(node.label, "eth_chainId"):
                if not isinstance(node.web3.provider, AsyncHTTPProvider):
                    await node.web3.provider.connect()
                served = await node.web3.eth.chain_id
        except ChainError as error:
            faults.append(str(error))
            await node.web3.provider.disconnect()
            continue
        try:
            if served != settings.chain.id:
                raise WrongChain(
                    f"{node.label} serves chain {served}, but chain.id is {settings.chain.id}; check chain.rpc_urls."
                )
            yield node
        finally:
            await node.web3.provider.disconnect()
        return
    raise ChainError(f"No node of chain.rpc_urls answers: {' '.join(faults)}")


def _web3(url: str) -> AsyncWeb3[Any]:
    """Without retries of its own: the next node is the better one."""
    from web3 import AsyncHTTPProvider, AsyncIPCProvider, AsyncWeb3, WebSocketProvider  # noqa: PLC0415

    nesting.restore()
    if url.startswith(("http://", "https://")):
        return AsyncWeb3(AsyncHTTPProvider(url, exception_retry_configuration=None))
    if url.startswith(("ws://", "wss://")):
        return AsyncWeb3(WebSocketProvider(url, max_connection_retries=1))
    return AsyncWeb3(AsyncIPCProvider(url, max_connection_retries=1))


@contextmanager
def _answering(label: str, what: str) -> Iterator[None]:
    """Failures of the transport and refusals of the node as `ChainError`, without the URL, which may hold a key."""
    from aiohttp import ClientError  # noqa: PLC0415 - with web3, see the module's docstring
    from web3.exceptions import Web3Exception, Web3RPCError  # noqa: PLC0415

    try:
        yield
    except Web3RPCError as error:
        answer = error.rpc_response or {}
        refusal: Any = answer.get("error") or {}
        raise ChainError(f"{label} refused {what}: {refusal.get('message', 'it gave no reason')}.") from None
    except (Web3Exception, ClientError, OSError, TimeoutError) as error:
        raise ChainError(f"{label} failed during {what} ({type(error).__name__}).") from None


def _checked(address: Address) -> Any:
    return abi.checksum(address)


# --- what is left to the signers -------------------------------------------------------------------------------------


def transaction_builder_json(
    calls: Sequence[SafeCall], chain_id: int, safe: Address, created_at_ms: int
) -> str:
    """The calls as a file that Safe's Transaction Builder imports as one batch (format 1.0, with its checksum).

    Its format carries raw calldata without words, so the words go into the batch's description, numbered.
    """
    batch: dict[str, Any] = {
        "version": "1.0",
        "chainId": str(chain_id),
        "createdAt": created_at_ms,
        "meta": {
            "name": "Set up the liquidation keeper",
            "description": " ".join(f"{number}. {call.what}." for number, call in enumerate(calls, 1)),
            "txBuilderVersion": "1.18.0",
            "createdFromSafeAddress": abi.checksum(safe),
            "createdFromOwnerAddress": "",
        },
        "transactions": [
            {
                "to": abi.checksum(call.to),
                "value": "0",
                "data": hex_of(call.data),
                "contractMethod": None,
                "contractInputsValues": None,
            }
            for call in calls
        ],
    }
    batch["meta"]["checksum"] = batch_checksum(batch)
    return json.dumps(batch, indent=2, ensure_ascii=False) + "\n"


def batch_checksum(batch: Mapping[str, Any]) -> str:
    """What Transaction Builder compares to see whether a batch was edited: it ignores name and checksum."""
    meta = {key: value for key, value in batch["meta"].items() if key != "checksum"}
    return hex_of(abi.keccak(_serialized({**batch, "meta": {**meta, "name": None}}).encode()))


def _serialized(value: Any) -> str:
    """JSON as that checksum wants it: an object is its sorted keys, then its values in that order."""
    if isinstance(value, Mapping):
        keys = sorted(value)
        return "{" + _compact(keys) + "".join(f"{_serialized(value[key])}," for key in keys) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_serialized(item) for item in value) + "]"
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
