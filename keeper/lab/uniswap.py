"""Uniswap V3 and V2 with liquidity: the published bytecode, pools at the world's prices, and ways to move them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt

from keeper.lab.actors import Cast
from keeper.lab.artifacts import published
from keeper.lab.node import TX_GAS, Contract, Node, Tx
from keeper.lab.tokens import approve_txs, erc20, mint_txs
from keeper.types import ZERO_ADDRESS, Address, Token

_V3 = "@uniswap/v3-core/artifacts/contracts"
_V3_PERIPHERY = "@uniswap/v3-periphery/artifacts/contracts"
_FACTORY = f"{_V3}/UniswapV3Factory.sol/UniswapV3Factory.json"
_POOL = f"{_V3}/UniswapV3Pool.sol/UniswapV3Pool.json"
_ROUTER = f"{_V3_PERIPHERY}/SwapRouter.sol/SwapRouter.json"
_QUOTER = f"{_V3_PERIPHERY}/lens/QuoterV2.sol/QuoterV2.json"
_POSITIONS = f"{_V3_PERIPHERY}/NonfungiblePositionManager.sol/NonfungiblePositionManager.json"
_V2_FACTORY = "@uniswap/v2-core/build/UniswapV2Factory.json"
_V2_PAIR = "@uniswap/v2-core/build/UniswapV2Pair.json"
_V2_ROUTER = "@uniswap/v2-periphery/build/UniswapV2Router02.json"

TICK_SPACING: Mapping[int, int] = {100: 1, 500: 10, 3000: 60, 10000: 200}
_MAX_TICK = 887_272
_TICK_BASE = 1.0001
DEADLINE_S = 2**40
_E8, _BPS = 10**8, 10_000
_PLENTY_USD = 10**10
_NO_LIMIT = 10**40  # raw units: a price stops the trade
_SAME = 10**9  # prices this close are not traded
_TRADE_GAS, _SWAP_GAS, _TRANSFER_GAS = 1_500_000, 600_000, 200_000

Mint = Callable[[Cast, Token, Address, int], list[Tx]]


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A pool to open at the world's prices with `depth_usd` of each token.

    V3 liquidity lies between the price divided and multiplied by `range_factor`; V2 pools ignore it and the fee.
    """

    symbols: tuple[str, str]
    fee: int
    depth_usd: int
    range_factor: float = 4.0


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool with its tokens in the pool's own order; `position_id` is the deployer's liquidity (V3)."""

    address: Address
    token0: Token
    token1: Token
    fee: int
    position_id: int


@dataclass(frozen=True, slots=True)
class UniswapV3:
    """Uniswap V3 with its periphery."""

    factory: Address
    router: Address
    quoter: Address
    positions: Address
    pools: tuple[Pool, ...]

    def pool(self, one: Token, other: Token, fee: int) -> Pool:
        """The pool of two tokens at a fee tier. Raises KeyError when there is none."""
        for pool in self.pools:
            if {pool.token0, pool.token1} == {one, other} and pool.fee == fee:
                return pool
        raise KeyError(f"no {one.symbol}/{other.symbol} pool at {fee}")


@dataclass(frozen=True, slots=True)
class UniswapV2:
    """Uniswap V2 with its router."""

    factory: Address
    router: Address
    pairs: tuple[Pool, ...]


async def deploy_uniswap_v3(node: Node, cast: Cast, weth: Token) -> UniswapV3:
    """The protocol without pools."""
    deployer = cast.deployer.address
    factory = await node.deploy(deployer, published(_FACTORY).creation_code())
    # v3-core 1.0.1 predates the 0.01 % tier that governance enabled later
    await Contract(node, factory, published(_FACTORY).abi).send(deployer, "enableFeeAmount", 100, 1)
    return UniswapV3(
        factory=factory,
        router=await node.deploy(deployer, published(_ROUTER).creation_code(factory, weth.address)),
        quoter=await node.deploy(deployer, published(_QUOTER).creation_code(factory, weth.address)),
        positions=await node.deploy(
            deployer, published(_POSITIONS).creation_code(factory, weth.address, ZERO_ADDRESS)
        ),
        pools=(),
    )


async def open_v3_pool(
    node: Node,
    cast: Cast,
    uniswap: UniswapV3,
    tokens: Mapping[str, Token],
    prices_e8: Mapping[str, int],
    spec: PoolSpec,
    mint: Mint = mint_txs,
) -> Pool:
    """Create a pool at the world's prices and give it the deployer's liquidity, which `mint` makes."""
    deployer = cast.deployer.address
    (token0, amount0), (token1, amount1) = _sorted_amounts(tokens, prices_e8, spec)
    await _fund(node, cast, ((token0, amount0), (token1, amount1)), uniswap.positions, mint)
    positions = Contract(node, uniswap.positions, published(_POSITIONS).abi)
    sqrt_price_x96 = isqrt((amount1 << 192) // amount0)
    await positions.send(
        deployer,
        "createAndInitializePoolIfNecessary",
        *(token0.address, token1.address, spec.fee, sqrt_price_x96),
    )
    ticks = _ticks(amount1 / amount0, spec.fee, 1 / spec.range_factor, spec.range_factor)
    order = (token0.address, token1.address, spec.fee, *ticks, amount0, amount1, 0, 0, deployer, DEADLINE_S)
    minted = await positions.send(deployer, "mint", order)
    increased = positions.abi.event("IncreaseLiquidity")
    position_id = next(
        increased.decode(log)["tokenId"] for log in minted.logs if log.topics[0] == increased.topic
    )
    factory = Contract(node, uniswap.factory, published(_FACTORY).abi)
    address = await factory.read("getPool", token0.address, token1.address, spec.fee)
    return Pool(address, token0, token1, spec.fee, position_id)


async def add_ranges(
    node: Node,
    cast: Cast,
    uniswap: UniswapV3,
    pool: Pool,
    prices_e8: Mapping[str, int],
    ranges: Sequence[tuple[float, float, int]],
) -> None:
    """More liquidity of the deployer's: each between two multiples of the price, of so many dollars a token."""
    deployer, tokens = cast.deployer.address, (pool.token0, pool.token1)
    one_usd = [_E8 * 10**token.decimals / prices_e8[token.symbol] for token in tokens]
    total_usd = sum(usd for _, _, usd in ranges)
    sides = [(token, int(total_usd * each)) for token, each in zip(tokens, one_usd, strict=True)]
    await _fund(node, cast, sides, uniswap.positions)
    positions = Contract(node, uniswap.positions, published(_POSITIONS).abi)
    pair = (pool.token0.address, pool.token1.address, pool.fee)
    orders = [
        (*pair, *_ticks(one_usd[1] / one_usd[0], pool.fee, low, high), *(int(usd * each) for each in one_usd))
        for low, high, usd in ranges
    ]
    txs = [
        positions.tx(deployer, "mint", (*order, 0, 0, deployer, DEADLINE_S), gas=_SWAP_GAS)
        for order in orders
    ]
    await node.send_all(txs, positions.abi)


async def deploy_uniswap_v2(
    node: Node,
    cast: Cast,
    tokens: Mapping[str, Token],
    prices_e8: Mapping[str, int],
    specs: Sequence[PoolSpec],
) -> UniswapV2:
    """The protocol with pairs at the world's prices."""
    deployer = cast.deployer.address
    factory = await node.deploy(deployer, published(_V2_FACTORY).creation_code(deployer))
    router = await node.deploy(deployer, published(_V2_ROUTER).creation_code(factory, tokens["WETH"].address))
    pairs = []
    for spec in specs:
        sides = _sorted_amounts(tokens, prices_e8, spec)
        (token0, amount0), (token1, amount1) = sides
        await _fund(node, cast, sides, router)
        await Contract(node, router, published(_V2_ROUTER).abi).send(
            deployer,
            "addLiquidity",
            *(token0.address, token1.address, amount0, amount1, 0, 0, deployer, DEADLINE_S),
        )
        address = await Contract(node, factory, published(_V2_FACTORY).abi).read(
            "getPair", token0.address, token1.address
        )
        pairs.append(Pool(address, token0, token1, 3000, 0))
    return UniswapV2(factory, router, tuple(pairs))


async def move_pool(
    node: Node, cast: Cast, uniswap: UniswapV3, pool: Pool, price0_e8: int, price1_e8: int
) -> None:
    """Trade a V3 pool to the ratio of two dollar prices, as arbitrage does after a market move."""
    sqrt_target = _sqrt_price_x96(pool, price0_e8, price1_e8)
    slot0 = await Contract(node, pool.address, published(_POOL).abi).read("slot0")
    if slot0[0] == sqrt_target:
        return
    falling = sqrt_target < slot0[0]
    token_in, price_in = (pool.token0, price0_e8) if falling else (pool.token1, price1_e8)
    amount = _PLENTY_USD * _E8 * 10**token_in.decimals // price_in
    await _fund(node, cast, ((token_in, amount),), uniswap.router)
    trade = _trade(node, cast.deployer.address, uniswap, pool, sqrt_target, falling=falling)
    await node.send(replace(trade, gas=TX_GAS), published(_ROUTER).abi)


async def drain_pool(node: Node, cast: Cast, uniswap: UniswapV3, pool: Pool, bps: int) -> None:
    """Withdraw that part of a V3 pool's liquidity."""
    deployer = cast.deployer.address
    positions = Contract(node, uniswap.positions, published(_POSITIONS).abi)
    liquidity = (await positions.read("positions", pool.position_id))[7]
    withdrawn = (pool.position_id, liquidity * bps // _BPS, 0, 0, DEADLINE_S)
    await positions.send(deployer, "decreaseLiquidity", withdrawn)
    await positions.send(deployer, "collect", (pool.position_id, deployer, 2**128 - 1, 2**128 - 1))


async def shift_pools(
    node: Node,
    cast: Cast,
    v3: UniswapV3,
    v2: UniswapV2,
    symbols: Collection[str],
    prices_e8: Mapping[str, int],
    left_bps: int,
) -> None:
    """Bring every pool between these tokens to the ratio of two dollar prices, and leave so much of its liquidity.

    All in one block: V3 pools are traded there, as arbitrage does; V2 pairs are given what they lack.
    """
    deployer = cast.deployer.address
    pools = [pool for pool in v3.pools if {pool.token0.symbol, pool.token1.symbol} <= set(symbols)]
    pairs = [pair for pair in v2.pairs if {pair.token0.symbol, pair.token1.symbol} <= set(symbols)]
    tokens = {side.symbol: side for pool in (*pools, *pairs) for side in (pool.token0, pool.token1)}
    txs: list[Tx] = []
    for token in tokens.values():
        amount_raw = _PLENTY_USD * _E8 * 10**token.decimals // prices_e8[token.symbol]
        txs += mint_txs(cast, token, deployer, amount_raw)
        txs += await approve_txs(node, token, deployer, v3.router, amount_raw)
    for pool in pools:
        txs += await _shifted(node, deployer, v3, pool, prices_e8, left_bps)
    for pair in pairs:
        txs += await _filled(node, deployer, pair, prices_e8, left_bps)
    await node.set_balances([deployer], 10**32)  # wrapped coin is paid for
    await node.send_all(txs)


async def _shifted(
    node: Node, deployer: Address, v3: UniswapV3, pool: Pool, prices_e8: Mapping[str, int], left_bps: int
) -> list[Tx]:
    price0_e8, price1_e8 = prices_e8[pool.token0.symbol], prices_e8[pool.token1.symbol]
    target = _sqrt_price_x96(pool, price0_e8, price1_e8)
    now = (await Contract(node, pool.address, published(_POOL).abi).read("slot0"))[0]
    txs: list[Tx] = []
    if abs(target - now) * _SAME > now:
        txs.append(_trade(node, deployer, v3, pool, target, falling=target < now))
    if left_bps < _BPS:
        positions = Contract(node, v3.positions, published(_POSITIONS).abi)
        liquidity = (await positions.read("positions", pool.position_id))[7]
        withdrawn = (pool.position_id, liquidity * (_BPS - left_bps) // _BPS, 0, 0, DEADLINE_S)
        txs.append(positions.tx(deployer, "decreaseLiquidity", withdrawn, gas=_SWAP_GAS))
    return txs


def _trade(
    node: Node, deployer: Address, uniswap: UniswapV3, pool: Pool, sqrt_target: int, *, falling: bool
) -> Tx:
    """As much as it takes to bring a pool to a price."""
    token_in, token_out = (pool.token0, pool.token1) if falling else (pool.token1, pool.token0)
    order = (
        *(token_in.address, token_out.address, pool.fee, deployer),
        *(DEADLINE_S, _NO_LIMIT, 0, sqrt_target),
    )
    router = Contract(node, uniswap.router, published(_ROUTER).abi)
    return router.tx(deployer, "exactInputSingle", order, gas=_TRADE_GAS)


async def _filled(
    node: Node, deployer: Address, pair: Pool, prices_e8: Mapping[str, int], left_bps: int
) -> list[Tx]:
    contract = Contract(node, pair.address, published(_V2_PAIR).abi)
    reserve0, reserve1, _ = await contract.read("getReserves")
    txs: list[Tx] = []
    if left_bps < _BPS:
        shares, supply = await contract.read("balanceOf", deployer), await contract.read("totalSupply")
        burnt = shares * (_BPS - left_bps) // _BPS
        reserve0, reserve1 = (each - burnt * each // supply for each in (reserve0, reserve1))
        txs.append(contract.tx(deployer, "transfer", pair.address, burnt, gas=_TRANSFER_GAS))
        txs.append(contract.tx(deployer, "burn", deployer, gas=_SWAP_GAS))
    worths_e8 = [
        reserve * prices_e8[token.symbol] * 10**other.decimals
        for reserve, token, other in (
            (reserve0, pair.token0, pair.token1),
            (reserve1, pair.token1, pair.token0),
        )
    ]
    poorer = pair.token0 if worths_e8[0] < worths_e8[1] else pair.token1
    richer = pair.token1 if poorer is pair.token0 else pair.token0
    lacking_raw = abs(worths_e8[1] - worths_e8[0]) // (prices_e8[poorer.symbol] * 10**richer.decimals)
    if lacking_raw > 0:
        txs.append(erc20(node, poorer).tx(deployer, "transfer", pair.address, lacking_raw, gas=_TRANSFER_GAS))
        txs.append(contract.tx(deployer, "sync", gas=_SWAP_GAS))
    return txs


async def quote_v3(
    node: Node, uniswap: UniswapV3, token_in: Token, token_out: Token, fee: int, amount_raw: int
) -> int:
    """What QuoterV2 says one pool gives for an exact input."""
    quoter = Contract(node, uniswap.quoter, published(_QUOTER).abi)
    order = (token_in.address, token_out.address, amount_raw, fee, 0)
    return int((await quoter.read("quoteExactInputSingle", order))[0])


async def swap_v3(
    node: Node,
    uniswap: UniswapV3,
    sender: Address,
    token_in: Token,
    token_out: Token,
    fee: int,
    amount_raw: int,
) -> int:
    """Swap the sender's own tokens through one pool; what it received."""
    await node.send_all(await approve_txs(node, token_in, sender, uniswap.router, amount_raw))
    before = await erc20(node, token_out).read("balanceOf", sender)
    order = (token_in.address, token_out.address, fee, sender, DEADLINE_S, amount_raw, 0, 0)
    await Contract(node, uniswap.router, published(_ROUTER).abi).send(sender, "exactInputSingle", order)
    return int(await erc20(node, token_out).read("balanceOf", sender)) - int(before)


def v2_router(node: Node, uniswap: UniswapV2) -> Contract:
    """Uniswap V2's router."""
    return Contract(node, uniswap.router, published(_V2_ROUTER).abi)


def _sqrt_price_x96(pool: Pool, price0_e8: int, price1_e8: int) -> int:
    """The pool's price where its tokens are worth so much."""
    return isqrt((price0_e8 * 10**pool.token1.decimals << 192) // (price1_e8 * 10**pool.token0.decimals))


def _sorted_amounts(
    tokens: Mapping[str, Token], prices_e8: Mapping[str, int], spec: PoolSpec
) -> tuple[tuple[Token, int], tuple[Token, int]]:
    one, other = sorted((tokens[symbol] for symbol in spec.symbols), key=lambda token: token.address)
    return tuple(  # type: ignore[return-value]
        (token, spec.depth_usd * _E8 * 10**token.decimals // prices_e8[token.symbol])
        for token in (one, other)
    )


def _ticks(price: float, fee: int, low: float, high: float) -> tuple[int, int]:
    """Around two multiples of a price."""
    spacing = TICK_SPACING[fee]
    lower, upper = (math.log(price * each) / math.log(_TICK_BASE) for each in (low, high))
    edge = _MAX_TICK // spacing * spacing
    return max(-edge, math.floor(lower / spacing) * spacing), min(edge, math.ceil(upper / spacing) * spacing)


async def _fund(
    node: Node, cast: Cast, sides: Sequence[tuple[Token, int]], spender: Address, mint: Mint = mint_txs
) -> None:
    deployer = cast.deployer.address
    txs = [tx for token, amount in sides for tx in mint(cast, token, deployer, amount)]
    for token, amount in sides:
        txs += await approve_txs(node, token, deployer, spender, amount)
    await node.send_all(txs)
