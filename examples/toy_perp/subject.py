"""The toy exchange on a lab, and everybody but the keeper."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from toy_perp import Judged

from keeper.abi import Abi
from keeper.errors import RpcError
from keeper.lab.actors import account
from keeper.lab.chainlink import latest, set_price
from keeper.lab.conformance import Act, Stop, Subject, Told
from keeper.lab.node import Contract
from keeper.lab.solc import OWN_SETTINGS, OWN_SOLC, compile_sources
from keeper.lab.tokens import approve_txs, mint
from keeper.lab.world import Lab, open_lab
from keeper.types import Address, Health, hex_of

_USD = 10**6
_VAULT_RAW = 100_000_000 * _USD


class ToySubject:
    """One toy exchange for ether in dollars, whose vault can pay every winner."""

    name = "toy"

    def __init__(self, lab: Lab, exchange: Contract) -> None:
        self.lab, self.exchange = lab, exchange
        self._usdc, self._feed = lab.world.tokens["USDC"], lab.world.feeds["WETH"]
        self.table = f"""
[[protocols]]
kind = "toy-perp"
name = "{self.name}"
exchange = "{hex_of(exchange.address)}"
from_block = 0
"""
        self.events: Mapping[str, Sequence[Act]] = {
            "Changed by more margin": (self._add,),
            "Changed by closing": (self._close,),
            "Liquidated": (self.make_unsafe, self._liquidate),
        }
        self.stops: Mapping[str, Stop] = {
            "its own pause": Stop((self._pause,), "options", "protocol_paused"),
            "stale price": Stop((self._wait,), "marks", "stale_price"),
        }

    async def populate(self, chance: Random, count: int) -> Sequence[Address]:
        """Between a hundredth of an ether and fifty, at twice to nine times the margin."""
        accounts = [account(1000 + number) for number in range(count)]
        for each in accounts:
            await self._open_random(chance, each)
        return accounts

    async def disturb(self, chance: Random, accounts: Sequence[Address]) -> None:
        """A new price, some minutes, and a trade of every third account."""
        price_e8 = (await latest(self.lab.node, self._feed)).price_raw
        await set_price(self.lab.node, self._feed, int(price_e8 * chance.uniform(0.88, 1.13)))
        await self.lab.node.advance(chance.randint(1, 600))
        for each in chance.sample(list(accounts), len(accounts) // 3):
            told = await self.told(each)
            if told is None:
                await self._open_random(chance, each)
            elif told.liquidatable or chance.random() < 0.5:
                await self._add(each)
            else:
                await self._close(each)

    async def open_one(self) -> Address:
        """Ten ether, bought with a margin of about a seventh of their price."""
        one = account(999)
        await self._open(one, 3_000 * _USD, 10 * 10**18)
        return one

    async def make_unsafe(self, account: Address) -> None:
        """The price falls until a tenth of the margin is left."""
        margin, size, entry = await self.exchange.read("held", account)
        await set_price(self.lab.node, self._feed, entry - margin * 10**20 // size * 9 // 10)

    async def told(self, account: Address) -> Told | None:
        """What `judge` says."""
        if not (await self.exchange.read("held", account))[1]:
            return None
        try:
            equity, maintenance = await self.exchange.read("judge", account)
        except RpcError:
            return Told(None)
        return Told(equity < maintenance, {"equity": equity, "maintenance": maintenance})

    def figures(self, health: Health) -> Mapping[str, object]:
        """The same of the adapter."""
        judged: Judged = health.detail
        return {"equity": judged.equity_raw, "maintenance": judged.maintenance_raw}

    async def _open_random(self, chance: Random, account: Address) -> None:
        price_e8 = (await latest(self.lab.node, self._feed)).price_raw
        size = int(10 ** chance.uniform(16, 19.7))
        margin_raw = int(size * price_e8 // 10**20 / chance.uniform(2, 9))
        await self._open(account, margin_raw, chance.choice((1, -1)) * size)

    async def _open(self, account: Address, margin_raw: int, size: int) -> None:
        await self._fund(account, margin_raw)
        await self.exchange.send(account, "open", margin_raw, size)

    async def _add(self, account: Address) -> None:
        await self._fund(account, 100 * _USD)
        await self.exchange.send(account, "add", 100 * _USD)

    async def _close(self, account: Address) -> None:
        await self.exchange.send(account, "close")

    async def _liquidate(self, account: Address) -> None:
        await self.exchange.send(self.lab.world.cast.liquidator.address, "liquidate", account)

    async def _pause(self, _: Address) -> None:
        await self.exchange.send(self.lab.world.cast.deployer.address, "setPaused", True)

    async def _wait(self, _: Address) -> None:
        await self.lab.node.advance(90_010)

    async def _fund(self, account: Address, money_raw: int) -> None:
        node, cast = self.lab.node, self.lab.world.cast
        await node.set_balances([account])
        await mint(node, cast, self._usdc, account, money_raw)
        await node.send_all(await approve_txs(node, self._usdc, account, self.exchange.address, money_raw))


@asynccontextmanager
async def toy() -> AsyncIterator[Subject]:
    """A lab with one toy exchange, empty but for its vault."""
    async with await open_lab(clock="steady") as lab:
        root, world = Path(__file__).parent / "toy_perp", lab.world
        artifact = compile_sources("toy", ["ToyPerp.sol"], [root], {}, OWN_SOLC, OWN_SETTINGS)["ToyPerp"]
        abi = Abi.from_json(artifact.abi)
        given = abi.constructor(world.tokens["USDC"].address, world.feeds["WETH"].proxy)
        at = await lab.node.deploy(world.cast.deployer.address, artifact.creation_code() + given)
        await mint(lab.node, world.cast, world.tokens["USDC"], at, _VAULT_RAW)
        yield ToySubject(lab, Contract(lab.node, at, abi))
