"""A keeper's real contracts beside a Perp Curie exchange, and takeovers through them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from keeper import abi
from keeper.chain.client import SimCall
from keeper.guard import scope_of
from keeper.lab.actors import account
from keeper.lab.curie import MARKETS, MarketSpec, part_of, trade
from keeper.lab.node import Receipt, Tx
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.safe import execute
from keeper.lab.tokens import balance_of
from keeper.lab.world import Lab
from keeper.multisig.safe import InnerCall
from keeper.planner import encode_execute
from keeper.protocols.perp_curie import PerpCurie, PerpCurieConfig
from keeper.types import (
    Address,
    BlockTime,
    FlashQuote,
    Gas,
    Hash,
    Health,
    Marks,
    Option,
    Outcome,
    Plan,
    ProtocolCall,
    Refusal,
    Wei,
    hex_of,
)
from tests.protocols.perp_curie_lab import ETHER, USDC, WHALE, Follower, following, move_market

LIQUIDATOR = abi.load("Liquidator")
TRADER, OTHER = account(51), account(52)


@dataclass(slots=True)
class Scene:
    """A follower of an exchange that the Safe has allowed to the Liquidator."""

    follower: Follower
    rig: Rig
    lab: Lab

    async def fall(self, trader: Address, size: int, cash_usd: int, *, symbol: str = "WETH") -> None:
        """Open a leveraged position and move the market against it, until its margin is short."""
        follower = self.follower
        if cash_usd:
            await follower.fund([trader], cash_usd * USDC)
        await trade(follower.node, follower.curie, trader, symbol, size)
        balance = part_of(follower.node, follower.curie, "AccountBalance")
        house = part_of(follower.node, follower.curie, "Vault")
        for _ in range(8):
            value = int(await house.read("getAccountValue", trader)) * 10**12
            if value < int(await balance.read("getMarginRequirementForLiquidation", trader)):
                return
            await move_market(follower, symbol, -0.04 if size > 0 else 0.04)
        raise AssertionError("the market did not move enough")

    async def sink(self, trader: Address, symbol: str) -> None:
        """Move the market on against a long position until it is worth less than it owes by a hundred dollars."""
        house = part_of(self.follower.node, self.follower.curie, "Vault")
        for _ in range(12):
            if int(await house.read("getAccountValue", trader)) < -100 * USDC:
                return
            await self.follower.set_price({symbol: 0.75})
            await move_market(self.follower, symbol, -0.05)
        raise AssertionError("the market did not move enough")

    async def look(self, trader: Address, ahead_s: int = 1) -> tuple[BlockTime, Marks, Health]:
        """The head, marks for the next block, and a trader's health then."""
        head = await self.follower.follow()
        marks = await self.follower.marks(head, ahead_s)
        health = self.follower.assessed(trader, marks)
        assert isinstance(health, Health), health
        return head, marks, health

    def options(self, health: Health, marks: Marks) -> list[Option]:
        """What may be taken of an account."""
        position = self.follower.book.position(health.key)
        found = self.follower.adapter.options(position, health, marks)
        return [option for option in found if isinstance(option, Option)]

    async def outcome(self, option: Option, marks: Marks, repay_raw: int | None = None) -> Outcome | Refusal:
        """What an option would move."""
        amount = option.max_repay_raw if repay_raw is None else repay_raw
        return await self.follower.chain.read(self.follower.adapter.outcome(option, amount), marks.at.hash)

    def calldata(
        self,
        option: Option,
        head: BlockTime,
        *,
        calls: Sequence[ProtocolCall] | None = None,
        repay_raw: int | None = None,
        min_profit_raw: int = 0,
    ) -> bytes:
        """`Liquidator.execute` of an option's calls with a flash loan of the settlement token."""
        plan = self.plan(option, head, calls=calls, repay_raw=repay_raw, min_profit_raw=min_profit_raw)
        return encode_execute(plan, 0, 0, plan.at.number + 50)

    def plan(
        self,
        option: Option,
        head: BlockTime,
        *,
        calls: Sequence[ProtocolCall] | None = None,
        repay_raw: int | None = None,
        min_profit_raw: int = 0,
    ) -> Plan:
        """An option's calls with a flash loan of the settlement token."""
        world = self.lab.world
        amount = option.max_repay_raw if repay_raw is None else repay_raw
        if calls is None:
            calls = self.follower.adapter.liquidation_calls(option, amount)
        lender = world.aave["3.6"].pool
        usdc = world.tokens["USDC"]
        tokens = tuple(dict.fromkeys([option.repay_token.address, option.seize_token.address]))
        return Plan(
            plan_id=Hash(b"\x07" * 32),
            key=option.key,
            option=option,
            outcome=Outcome(amount, 0),
            flash=FlashQuote(lender, usdc.address, 5, 10**15),
            calls=tuple(calls),
            legs=(),
            tokens=tokens,
            profit_token=usdc,
            expected_profit_raw=0,
            min_profit_raw=min_profit_raw,
            gas_cost_raw=0,
            gas_estimate=0,
            gas_cost_wei=Wei(0),
            profit_price_usd_e8=10**8,
            repay_usd_e8=0,
            health_factor_wad=0,
            at=head,
        )

    async def tried(
        self,
        option: Option,
        marks: Marks,
        min_profit_raw: int = 0,
        *,
        calls: Sequence[ProtocolCall] | None = None,
        repay_raw: int | None = None,
    ) -> int | str:
        """What the treasury would gain in a block at the marks' time, or why it reverts; nothing changes."""
        head = await self.follower.chain.block(marks.at.hash)
        data = self.calldata(
            option, marks.at, calls=calls, min_profit_raw=min_profit_raw, repay_raw=repay_raw
        )
        call = SimCall(self.lab.world.cast.operator.address, self.rig.liquidator, data, Gas(16_000_000))
        at_s = marks.at.timestamp_s
        [result] = await self.follower.chain.simulate([call], head, at_s, head.base_fee_wei)
        if result.status:
            return int.from_bytes(result.output)
        return LIQUIDATOR.error(result.output) or hex_of(result.output)

    async def execute(
        self,
        option: Option,
        *,
        calls: Sequence[ProtocolCall] | None = None,
        repay_raw: int | None = None,
        min_profit_raw: int = 0,
    ) -> tuple[int, Receipt]:
        """Send it as the operator; the treasury's gain and the receipt. Raises ExecutionError when it reverts."""
        world, node = self.lab.world, self.lab.node
        treasury, usdc = world.cast.treasury.address, world.tokens["USDC"]
        before = await balance_of(node, usdc, treasury)
        head = await node.head()
        data = self.calldata(option, head, calls=calls, repay_raw=repay_raw, min_profit_raw=min_profit_raw)
        receipt = await node.send(Tx(world.cast.operator.address, self.rig.liquidator, data), LIQUIDATOR)
        return await balance_of(node, usdc, treasury) - before, receipt

    async def left_over(self) -> tuple[list[Address], int]:
        """The markets and the balance that the Liquidator has on the exchange."""
        node, curie, who = self.follower.node, self.follower.curie, self.rig.liquidator
        bases = await part_of(node, curie, "AccountBalance").read("getBaseTokens", who)
        return list(bases), int(await part_of(node, curie, "Vault").read("getBalance", who))


@asynccontextmanager
async def taking(lab: Lab, folder: Path, markets: Sequence[MarketSpec] = MARKETS) -> AsyncIterator[Scene]:
    """A scene on `lab`: contracts deployed, the exchange allowed, its calls settled together."""
    rig = await make_rig(lab, folder, Terms(max_slippage_bps=300))
    async with following(lab, markets) as follower:
        config = PerpCurieConfig(name="curie", clearing_house=follower.curie.clearing_house)
        follower.adapter = PerpCurie(config, rig.liquidator)
        head = await lab.node.head()
        await follower.chain.read(follower.adapter.load(), head.hash)
        scope = scope_of("curie")
        allow, join = LIQUIDATOR.function("setTarget"), LIQUIDATOR.function("setSettledJointly")
        calls = [
            InnerCall(rig.liquidator, allow.encode(*target, scope)) for target in follower.adapter.targets()
        ]
        calls.append(InnerCall(rig.liquidator, join.encode(scope, True)))
        await execute(lab.node, lab.world.safe, *calls)
        yield Scene(follower, rig, lab)


__all__ = ["ETHER", "OTHER", "TRADER", "USDC", "WHALE", "Scene", "taking"]
