"""What the conformance suite must know of each protocol in the repository."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import astuple, dataclass, field, replace

from keeper.abi import load
from keeper.chain.client import Chain
from keeper.chain.reads import MULTICALL3
from keeper.errors import ExecutionError, RpcError
from keeper.fixed import MAX_UINT256, WAD
from keeper.lab import curie, morpho, perp_exchange, synthetix
from keeper.lab.aave import Version, configurator_of, pool_of
from keeper.lab.actors import account
from keeper.lab.chainlink import latest, set_prices
from keeper.lab.conformance import Act, Stop, Subject, Told
from keeper.lab.curie import house_of, part_of
from keeper.lab.morpho import MorphoMarket
from keeper.lab.node import Contract
from keeper.lab.perp_exchange import random_traders
from keeper.lab.perps import open_perps_lab
from keeper.lab.positions import account_data, liquidate, open_position
from keeper.lab.synthetix import RATE_STALE_PERIOD_S, UNIT, PerpSpec, key_of, random_perps, trade_tx
from keeper.lab.tokens import erc20, mint, mint_txs
from keeper.lab.world import Lab, open_lab
from keeper.protocols.perp_curie import PerpCurie, PerpCurieConfig
from keeper.protocols.reference_perp.exchange import account_key, number_of
from keeper.protocols.synthetix_v2_perps import SynthetixV2Perps, SynthetixV2PerpsConfig
from keeper.types import Address, Health
from tests.protocols import aave_v3_lab, morpho_blue_lab, perp_curie_lab, reference_perp_lab, synthetix_lab
from tests.protocols.reference_perp_lab import BTC, ETH, ISO, following_exchange, units

_E8 = 10**8
_ETHER = 10**18
_USDC = 10**6
_LONG_S = 90_010  # every feed of the labs is stale by then
ONE, OTHER = account(1), account(2)


# --- Aave V3 ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class AaveSubject:
    """A market of the lab's own."""

    lab: Lab
    follower: aave_v3_lab.Follower
    name: str
    table: str = ""
    events: Mapping[str, Sequence[Act]] = field(default_factory=dict)
    stops: Mapping[str, Stop] = field(default_factory=dict)

    def __post_init__(self) -> None:
        node, market, cast = self.follower.node, self.follower.market, self.follower.world.cast
        pool, lender = pool_of(node, market), cast.lender.address
        usdc, weth = (market.reserves[symbol] for symbol in ("USDC", "WETH"))

        def by(sender: Address | None, name: str, *given: object) -> Act:
            """The account itself, without a `sender`; None among the arguments is the account."""

            async def act(who: Address) -> object:
                return await pool.send(
                    sender or who, name, *(who if each is None else each for each in given)
                )

            return act

        async def give(who: Address) -> object:
            a_weth = Contract(node, weth.a_token, load("Erc20"))
            return await a_weth.send(who, "transfer", lender, _ETHER // 100)

        async def paid(who: Address) -> None:
            for one in (who, lender):
                await mint(node, cast, usdc.token, one, 1_000 * _USDC)
                await erc20(node, usdc.token).send(one, "approve", market.pool, 2**255)

        async def liquidated(who: Address) -> object:
            return await liquidate(node, cast, market, who, "WETH", "USDC")

        async def pause(_: Address) -> object:
            pausing = configurator_of(node, market)
            return await pausing.send(
                cast.deployer.address, "setReservePause(address,bool)", weth.token.address, True
            )

        async def wait(_: Address) -> None:
            await node.advance(_LONG_S)

        self.events = {
            "borrow": (by(None, "borrow", usdc.token.address, _USDC, 2, 0, None),),
            "repay by another": (paid, by(lender, "repay", usdc.token.address, _USDC, 2, None)),
            "supply": (paid, by(None, "supply", usdc.token.address, _USDC, None, 0)),
            "withdraw": (by(None, "withdraw", weth.token.address, 10**15, lender),),
            "e-mode": (by(None, "setUserEMode", 1),),
            "giving aTokens away": (give,),
            "liquidation": (self.make_unsafe, liquidated),
        }
        self.stops = {
            "its own pause": Stop((pause,), "options", "reserve_paused"),
            "stale price": Stop((wait,), "marks", "stale_price"),
        }

    async def populate(self, chance: random.Random, count: int) -> Sequence[Address]:
        """Open random positions."""
        return await aave_v3_lab.open_random(self.follower, chance, 1_000, count)

    async def disturb(self, chance: random.Random, accounts: Sequence[Address]) -> None:
        """Move prices and time, and let some accounts trade."""
        await self.follower.set_prices(aave_v3_lab.random_factors(chance))
        await self.follower.node.advance(chance.choice((1, 86_400)))
        pool, usdc = pool_of(self.follower.node, self.follower.market), self.follower.market.reserves["USDC"]
        for who in chance.sample(accounts, 3):
            with suppress(ExecutionError):  # the pool's own business
                await pool.send(who, "borrow", usdc.token.address, _USDC, 2, 0, who)

    async def open_one(self) -> Address:
        """Open the position that is liquidated."""
        spec = replace(aave_v3_lab.POSITION, account=ONE)
        await open_position(self.follower.node, self.follower.world.cast, self.follower.market, spec)
        return ONE

    async def make_unsafe(self, account: Address) -> None:
        """Let its price fall."""
        await self.follower.set_prices({"WETH": 0.9})

    async def told(self, account: Address) -> Told | None:
        """What the contracts say of it."""
        [used] = await pool_of(self.follower.node, self.follower.market).read("getUserConfiguration", account)
        if not used & int("01" * 128, 2):
            return None
        [data] = await account_data(self.follower.node, self.follower.market, [account])
        figures = {
            "collateral": data.collateral_base,
            "debt": data.debt_base,
            "health": data.health_factor_wad,
        }
        return Told(data.health_factor_wad < WAD, figures)

    def figures(self, health: Health) -> Mapping[str, object]:
        """The same figures of ours."""
        factor = MAX_UINT256 if health.health_factor_wad is None else health.health_factor_wad
        return {"collateral": health.collateral_base, "debt": health.debt_base, "health": factor}


@asynccontextmanager
async def aave(version: Version) -> AsyncIterator[Subject]:
    """An Aave market of that version."""
    async with await open_lab(clock="steady") as lab, aave_v3_lab.following(version, lab) as follower:
        yield AaveSubject(lab, follower, f"aave-{version.replace('.', '-')}")


# --- the reference exchange ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ReferenceSubject:
    """An exchange with three markets; a key's account is its number."""

    lab: Lab
    follower: reference_perp_lab.ExchangeFollower
    table: str
    name: str = "reference"
    events: Mapping[str, Sequence[Act]] = field(default_factory=dict)
    stops: Mapping[str, Stop] = field(default_factory=dict)

    def __post_init__(self) -> None:
        follower = self.follower

        async def deposit(who: Address) -> object:
            return await follower.govern("deposit", number_of(who), _USDC)

        async def withdraw(who: Address) -> object:
            return await follower.send(ONE, "withdraw", number_of(who), _USDC, ONE)

        async def trade(who: Address) -> object:
            return await follower.trade(ONE, number_of(who), BTC, units(0.1))

        async def close(who: Address) -> object:
            return await follower.trade(ONE, number_of(who), ETH, -units(20))

        async def flag(who: Address) -> object:
            return await follower.send(OTHER, "flag", number_of(who))

        async def rescue(who: Address) -> object:
            return await follower.govern("deposit", number_of(who), 5_000 * _USDC)

        async def unflag(who: Address) -> object:
            return await follower.send(OTHER, "unflag", number_of(who))

        async def liquidated(who: Address) -> object:
            return await follower.send(OTHER, "liquidate", number_of(who), ETH)

        async def pause(_: Address) -> object:
            return await follower.govern("setPauses", False, True)

        async def wait(_: Address) -> None:
            others = [feed for feed in follower.feeds if feed.symbol != "WETH"]
            prices = {feed: (await latest(follower.node, feed)).price_raw for feed in others}
            await follower.node.advance(_LONG_S)
            await set_prices(follower.node, prices)

        self.events = {
            "deposit": (deposit,),
            "withdrawal": (withdraw,),
            "trade": (trade,),
            "closing": (close,),
            "flag": (self.make_unsafe, flag),
            "end of a flag": (self.make_unsafe, flag, rescue, unflag),
            "liquidation": (self.make_unsafe, liquidated),
        }
        self.stops = {
            "its own pause": Stop((pause,), "options", "protocol_paused"),
            "stale price": Stop((wait,), "assess", "stale_price"),
        }

    async def populate(self, chance: random.Random, count: int) -> Sequence[Address]:
        """Open random positions."""
        follower, prices_e8 = self.follower, {}
        for feed in follower.feeds:
            prices_e8[feed.symbol] = (await latest(follower.node, feed)).price_raw
        specs = random_traders(chance, follower.exchange, prices_e8, count, reference_perp_lab.MARKETS)
        numbers = await follower.open(*(replace(spec, sizes={}) for spec in specs))
        for number, spec in zip(numbers, specs, strict=True):
            for symbol, size in spec.sizes.items():
                with suppress(ExecutionError):  # the skew of those before took the rest of its margin
                    await follower.trade(spec.owner, number, follower.exchange.market(symbol), size)
        return [account_key(number) for number in numbers]

    async def disturb(self, chance: random.Random, accounts: Sequence[Address]) -> None:
        """Move prices and time, and let some accounts trade."""
        follower, contract = self.follower, self.follower.contract
        await follower.node.advance(chance.randint(1, 6 * 3_600))
        fall_to = chance.choice((0.85, 1.15))
        await follower.move(
            **{each: fall_to * chance.uniform(0.97, 1.03) for each in follower.exchange.markets}
        )
        for who in chance.sample(accounts, 4):
            number, market = number_of(who), chance.choice((ETH, BTC, ISO))
            size = (await contract.read("holding", number, market))[0]
            owner = (await contract.read("accountOf", number))[0]
            delta = chance.choice((-size, -size // 2, -3 * size // 2))
            with suppress(ExecutionError):  # the exchange's own business
                await follower.trade(owner, number, market, delta)

    async def open_one(self) -> Address:
        """Open the position that is liquidated."""
        return account_key(await self.follower.open_one(ONE, 4_000, (ETH, units(20))))

    async def make_unsafe(self, account: Address) -> None:
        """Let its price fall."""
        await self.follower.move(WETH=0.925)

    async def told(self, account: Address) -> Told | None:
        """What the contracts say of it."""
        contract, number = self.follower.contract, number_of(account)
        _, _, flagged, _, _, markets = await contract.read("accountOf", number)
        if not markets:
            return None
        judged = await contract.read("assess", number)
        return Told(judged[0] < judged[4], {"assess": tuple(judged), "flagged": bool(flagged)})

    def figures(self, health: Health) -> Mapping[str, object]:
        """The same figures of ours."""
        return {"assess": astuple(health.detail.judged), "flagged": bool(health.detail.holding.flagged)}


@asynccontextmanager
async def reference() -> AsyncIterator[Subject]:
    """The reference exchange."""
    async with await open_lab(clock="steady") as lab, following_exchange(lab) as follower:
        await lab.node.set_balances([ONE, OTHER])
        yield ReferenceSubject(lab, follower, perp_exchange.table(follower.exchange))


# --- Synthetix V2x perps ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class SynthetixSubject:
    """Its ETH market."""

    lab: Lab
    follower: synthetix_lab.PerpsFollower
    table: str
    name: str
    events: Mapping[str, Sequence[Act]] = field(default_factory=dict)
    stops: Mapping[str, Stop] = field(default_factory=dict)

    def __post_init__(self) -> None:
        follower = self.follower

        def by(sender: Address | None, name: str, *given: object) -> Act:
            """The account itself, without a `sender`; None among the arguments is the account."""

            async def act(who: Address) -> object:
                return await follower.send(
                    sender or who, name, *(who if each is None else each for each in given)
                )

            return act

        async def late(_: Address) -> None:
            await follower.node.advance(3_600)

        async def late_enough(_: Address) -> None:
            await follower.node.advance(65)

        async def endorse(_: Address) -> object:
            return await follower.govern("FuturesMarketManager", "addEndorsedAddresses", [OTHER])

        async def suspend(_: Address) -> object:
            return await follower.govern("SystemStatus", "suspendFuturesMarket", key_of("sETHPERP"), 7)

        async def wait(_: Address) -> None:
            await follower.node.advance(RATE_STALE_PERIOD_S + 10)

        order = by(None, "submitOffchainDelayedOrder", -UNIT, 0)
        flag = by(OTHER, "flagPosition", None)
        self.events = {
            "withdrawal of margin": (by(None, "transferMargin", -5 * UNIT),),
            "trade": (by(None, "modifyPosition", -UNIT, 0),),
            "closing": (by(None, "closePosition", 0),),
            "order": (order,),
            "end of an order": (order, late, by(None, "cancelOffchainDelayedOrder", None)),
            "execution of an order": (
                by(None, "submitDelayedOrder", -UNIT, 60, 0),
                late_enough,
                by(OTHER, "executeDelayedOrder", None),
            ),
            "flag": (self.make_unsafe, flag),
            "liquidation": (self.make_unsafe, flag, by(OTHER, "liquidatePosition", None)),
            "forced liquidation": (
                self.make_unsafe,
                flag,
                endorse,
                by(OTHER, "forceLiquidatePosition", None),
            ),
        }
        self.stops = {
            "its own pause": Stop((suspend,), "marks", "market_suspended"),
            "stale price": Stop((wait,), "marks", "stale_price"),
        }

    async def populate(self, chance: random.Random, count: int) -> Sequence[Address]:
        """Open random positions."""
        price_usd = (await latest(self.follower.node, self.follower.market.feed)).price_raw / _E8
        specs = random_perps(chance, price_usd, 1_000, count)
        await self.follower.open(*specs)
        return [spec.account for spec in specs]

    async def disturb(self, chance: random.Random, accounts: Sequence[Address]) -> None:
        """Move prices and time, and let some accounts trade."""
        follower, contract = self.follower, self.follower.contract
        await follower.node.advance(chance.randint(1, 6 * 3_600))
        await follower.move(chance.uniform(0.93, 1.06))
        for who in chance.sample(accounts, 4):
            size = (await contract.read("positions", who))[4]
            delta = chance.choice((-size, -size // 2, size // 4))
            with suppress(ExecutionError):  # the market's own business
                await follower.node.send(trade_tx(contract, who, delta), contract.abi)

    async def open_one(self) -> Address:
        """Open the position that is liquidated."""
        await self.follower.open(PerpSpec(ONE, 2_000 * UNIT, 20 * UNIT))
        return ONE

    async def make_unsafe(self, account: Address) -> None:
        """Let its price fall."""
        await self.follower.move(0.95)

    async def told(self, account: Address) -> Told | None:
        """What the contracts say of it."""
        contract = self.follower.contract
        if not (await contract.read("positions", account))[4]:
            return None
        flagged = await contract.read("isFlagged", account)
        figures = {
            "margin": (await contract.read("remainingMargin", account))[0],
            "flagged": flagged,
        }
        return Told(flagged or await contract.read("canLiquidate", account), figures)

    def figures(self, health: Health) -> Mapping[str, object]:
        """The same figures of ours."""
        return {"margin": health.detail.remaining_raw, "flagged": health.detail.flagger is not None}


@asynccontextmanager
async def synthetix_eth() -> AsyncIterator[Subject]:
    """The ETH market of Synthetix."""
    lab, perps = await open_perps_lab("steady")
    deployed, market = perps.synthetix, perps.synthetix.markets["ETH"]
    async with lab, await Chain.open([lab.anvil.url], lab.world.chain_id) as chain:
        config = SynthetixV2PerpsConfig(
            name="snx-eth", markets=(market.proxy,), susd_usd_feed=deployed.susd_feed.proxy
        )
        (adapter,) = SynthetixV2Perps.made_of(config, None)
        follower = synthetix_lab.PerpsFollower(lab.node, lab.world, chain, deployed, market, adapter)
        await lab.node.set_balances([ONE, OTHER])
        yield SynthetixSubject(lab, follower, synthetix.table(deployed), synthetix_lab.named(deployed, "ETH"))


# --- Perp Curie ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class CurieSubject:
    """An exchange whose prices average over seconds."""

    lab: Lab
    follower: perp_curie_lab.Follower
    table: str
    name: str = "curie"
    events: Mapping[str, Sequence[Act]] = field(default_factory=dict)
    stops: Mapping[str, Stop] = field(default_factory=dict)

    def __post_init__(self) -> None:
        node, exchange, cast = self.follower.node, self.follower.curie, self.follower.world.cast
        house, vault = house_of(node, exchange), part_of(node, exchange, "Vault")
        usdc = exchange.settlement

        async def deposit(who: Address) -> None:
            await self.follower.fund([who], _USDC)

        async def collateral(who: Address) -> None:
            await curie.deposit(node, cast, exchange, exchange.collaterals["WBTC"], {who: 10**5})

        async def trade(who: Address) -> object:
            return await curie.trade(node, exchange, who, "WETH", -_ETHER)

        async def close(who: Address) -> object:
            return await curie.close(node, exchange, who, "WETH")

        async def withdraw(who: Address) -> object:
            return await vault.send(who, "withdraw", usdc.address, _USDC)

        async def provide(who: Address) -> object:
            depth, prices = (_ETHER // 100, 20 * _ETHER), (1_500, 2_500)
            return await curie.provide(node, exchange, who, "WETH", depth, prices)

        async def liquidated(who: Address) -> object:
            base = exchange.markets["WETH"].base_token
            return await house.send(perp_curie_lab.WHALE, "liquidate(address,address)", who, base)

        async def pause(_: Address) -> object:
            return await house.send(cast.deployer.address, "pause")

        async def wait(_: Address) -> None:
            await node.advance(_LONG_S)
            await self.follower.set_price({"WBTC": 1.0})

        self.events = {
            "deposit": (deposit,),
            "deposit of collateral": (collateral,),
            "trade": (trade,),
            "closing": (close,),
            "withdrawal": (deposit, withdraw),
            "maker order": (deposit, provide),
            "liquidation": (self.make_unsafe, liquidated),
        }
        self.stops = {
            "its own pause": Stop((pause,), "options", "protocol_paused"),
            "stale price": Stop((wait,), "assess", "stale_price"),
        }

    async def populate(self, chance: random.Random, count: int) -> Sequence[Address]:
        """Open random positions."""
        return await perp_curie_lab.random_accounts(chance, self.follower, 1_000, count)

    async def disturb(self, chance: random.Random, accounts: Sequence[Address]) -> None:
        """Move prices and time, and let some accounts trade."""
        moves = {symbol: chance.uniform(-0.45, 0.45) for symbol in perp_curie_lab.SYMBOLS}
        await self.follower.set_price({symbol: 1 + move / 2 for symbol, move in moves.items()})
        for symbol, move in moves.items():
            await perp_curie_lab.move_market(self.follower, symbol, move)
        for who in chance.sample(accounts, 4):
            symbol = chance.choice(perp_curie_lab.SYMBOLS)
            await perp_curie_lab.random_trade(chance, self.follower, who, symbol)

    async def open_one(self) -> Address:
        """Open the position that is liquidated."""
        await self.follower.fund([ONE], 1_320 * _USDC)
        await curie.trade(self.follower.node, self.follower.curie, ONE, "WETH", 6 * _ETHER)
        return ONE

    async def make_unsafe(self, account: Address) -> None:
        """Let its price fall."""
        node = self.follower.node
        await set_prices(node, {self.follower.world.feeds["WETH"]: 1_800 * _E8})
        await curie.move_to(node, self.follower.curie, perp_curie_lab.WHALE, "WETH", 1_880)
        await node.advance(12)  # longer than its prices average
        await node.mine()

    async def told(self, account: Address) -> Told | None:
        """What the contracts say of it."""
        node, exchange = self.follower.node, self.follower.curie
        vault, balance = (part_of(node, exchange, name) for name in ("Vault", "AccountBalance"))
        bases = await balance.read("getBaseTokens", account)
        if not bases and await vault.read("getSettlementTokenValue", account) >= 0:
            return None
        try:
            value = await vault.read("getAccountValue", account)
        except RpcError:  # a market without a price
            return Told(None)
        requirement = await balance.read("getMarginRequirementForLiquidation", account)
        short = value * 10**12 < requirement
        figures = {"value": value, "requirement": requirement}
        return Told(short or await vault.read("isLiquidatable", account), figures)

    def figures(self, health: Health) -> Mapping[str, object]:
        """The same figures of ours."""
        value = health.detail.value_wad // 10**12
        return {"value": value, "requirement": health.detail.requirement_wad}


@asynccontextmanager
async def perp_curie() -> AsyncIterator[Subject]:
    """Perp Curie."""
    lab, perps = await open_perps_lab("steady")
    async with lab, await Chain.open([lab.anvil.url], lab.world.chain_id) as chain:
        config = PerpCurieConfig(name="curie", clearing_house=perps.curie.clearing_house)
        follower = perp_curie_lab.Follower(lab, chain, perps.curie, PerpCurie(config))
        await follower.fund([perp_curie_lab.WHALE], 20_000_000 * _USDC)
        yield CurieSubject(lab, follower, curie.table(perps.curie))


# --- Morpho Blue -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class MorphoSubject:
    """Morpho with six markets; an account has its position in one of them.

    Nothing pauses Morpho: what stops a market is an oracle or a rate model that no longer answers.
    """

    lab: Lab
    follower: morpho_blue_lab.Follower
    table: str
    name: str = "morpho"
    events: Mapping[str, Sequence[Act]] = field(default_factory=dict)
    stops: Mapping[str, Stop] = field(default_factory=dict)

    def __post_init__(self) -> None:
        node, cast, deployed = self.follower.node, self.follower.world.cast, self.follower.morpho
        blue, market = self.follower.blue, deployed.markets[morpho_blue_lab.WETH_USDC]
        rich = cast.liquidator.address

        def by_itself(name: str, amount_raw: int, *shares: int) -> Act:
            async def act(who: Address) -> object:
                return await blue.send(who, name, market.params, amount_raw, *shares, who, OTHER)

            return act

        async def given(_: Address) -> None:
            for token in (market.loan, market.collateral):
                await node.send_all(mint_txs(cast, token, rich, 10 * 10**token.decimals))
                await erc20(node, token).send(rich, "approve", deployed.address, MAX_UINT256)

        async def repaid(who: Address) -> object:
            return await blue.send(rich, "repay", market.params, _USDC, 0, who, b"")

        async def added(who: Address) -> object:
            return await blue.send(rich, "supplyCollateral", market.params, _ETHER, who, b"")

        async def fallen(who: Address) -> None:
            await self.make_unsafe(who)
            await self.follower.fund()

        async def liquidated(who: Address) -> object:
            return await blue.send(rich, "liquidate", market.params, who, _ETHER, 0, b"")

        def broken(contract: Address) -> Act:
            async def act(_: Address) -> None:
                await node.set_code({contract: bytes.fromhex("60006000fd")})

            return act

        async def wait(_: Address) -> None:
            await node.advance(_LONG_S)

        self.events = {
            "borrow": (by_itself("borrow", _USDC, 0),),
            "repay by another": (given, repaid),
            "collateral from another": (given, added),
            "withdrawal of collateral": (by_itself("withdrawCollateral", 10**15),),
            "liquidation": (fallen, liquidated),
        }
        self.stops = {
            "an oracle that fails": Stop((broken(market.oracle),), "assess", "oracle_reverts"),
            "a rate model that fails": Stop((broken(market.irm),), "assess", "no_rate"),
            "stale price": Stop((wait,), "assess", "stale_price"),
        }

    async def populate(self, chance: random.Random, count: int) -> Sequence[Address]:
        """Open random positions in all markets."""
        specs = morpho_blue_lab.random_specs(chance, self.follower, 1_000, count)
        await self.follower.open(*specs)
        return [spec.account for spec in specs]

    async def disturb(self, chance: random.Random, accounts: Sequence[Address]) -> None:
        """Move prices and time, and let some accounts borrow."""
        await self.follower.set_prices(
            {symbol: chance.uniform(0.8, 1.1) for symbol in ("WETH", "WBTC", "wstETH")}
        )
        mock = self.follower.morpho.markets[morpho_blue_lab.WBTC_WETH]
        price = await morpho.price_of(self.follower.node, mock)
        await self.follower.set_mock_price(mock, price * chance.randint(85, 110) // 100)
        await self.follower.node.advance(chance.choice((1, 86_400)))
        for who in chance.sample(accounts, 3):
            for market, _, shares in await self._held(who):
                if shares:
                    with suppress(ExecutionError):  # Morpho's own business
                        await self.follower.blue.send(who, "borrow", market.params, 100, 0, who, who)

    async def open_one(self) -> Address:
        """Open the position that is liquidated."""
        await self.follower.open(replace(morpho_blue_lab.POSITION, account=ONE))
        return ONE

    async def make_unsafe(self, account: Address) -> None:
        """Let its collateral's price fall."""
        await self.follower.set_prices({"WETH": 0.93})

    async def told(self, account: Address) -> Told | None:
        """What Morpho says of it once it has accrued interest, cut as Morpho cuts it."""
        for market, collateral_raw, shares in await self._held(account):
            if shares:
                return await self._judged(market, collateral_raw, shares)
        return None

    def figures(self, health: Health) -> Mapping[str, object]:
        """The same figures of ours."""
        return {"owed": health.detail.owed_raw, "most": health.detail.max_borrow_raw}

    async def _held(self, account: Address) -> list[tuple[MorphoMarket, int, int]]:
        """Collateral and borrow shares in every market."""
        markets, blue = self.follower.morpho.markets, self.follower.blue
        held = [(market, await blue.read("position", market.id, account)) for market in markets]
        return [(market, collateral_raw, shares) for market, (_, shares, collateral_raw) in held]

    async def _judged(self, market: MorphoMarket, collateral_raw: int, shares: int) -> Told:
        blue, node = load("MorphoBlue"), self.follower.node
        accrue, totals = blue.function("accrueInterest"), blue.function("market")
        asked = [
            (self.follower.morpho.address, False, accrue.encode(market.params)),
            (self.follower.morpho.address, False, totals.encode(market.id)),
            (market.oracle, False, load("MorphoOracle").function("price").encode()),
        ]
        together = load("Multicall3").function("aggregate3")
        try:
            (_, (_, told), (_, price)) = together.one(await node.call(MULTICALL3, together.encode(asked)))
        except RpcError:
            return Told(None)
        _, _, assets, all_shares, *_ = totals.decode(told)
        owed_raw = -(-shares * (assets + 1) // (all_shares + 10**6))
        most_raw = collateral_raw * int.from_bytes(price) // morpho.PRICE_SCALE * market.lltv_wad // WAD
        return Told(most_raw < owed_raw, {"owed": owed_raw, "most": most_raw})


@asynccontextmanager
async def morpho_blue() -> AsyncIterator[Subject]:
    """Morpho Blue."""
    async with morpho_blue_lab.following_fresh(listed=True) as follower:
        await follower.node.set_balances([ONE, OTHER, follower.world.cast.liquidator.address])
        yield MorphoSubject(follower.lab, follower, morpho.table(follower.morpho, follower.world))


Opened = Callable[[], AbstractAsyncContextManager[Subject]]

SUBJECTS: Mapping[str, Opened] = {
    "aave-v3.0": lambda: aave("3.0"),
    "aave-v3.6": lambda: aave("3.6"),
    "morpho-blue": morpho_blue,
    "perp-curie": perp_curie,
    "reference-perp": reference,
    "synthetix-v2-perps": synthetix_eth,
}
