"""Borrowers: opened by real transactions, to a wanted health factor, many at a time; and liquidation by hand.

Accounts are impersonated, the lender pays for what they supply, and the market itself says how much they may borrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from keeper.abi import checksum
from keeper.errors import ExecutionError
from keeper.fixed import BPS, MAX_UINT256, WAD, mul_div_down
from keeper.lab.aave import AaveMarket, oracle_of, pool_of
from keeper.lab.actors import Cast
from keeper.lab.node import Contract, Node, Receipt, Tx
from keeper.lab.tokens import approve_txs, erc20, mint_txs
from keeper.types import Address

_VARIABLE_RATE = 2
# Near what each uses, so that a block of 30 million holds many.
_SUPPLY_GAS, _FLAG_GAS, _BORROW_GAS, _BORROW_GAS_PER_ASSET = 400_000, 400_000, 500_000, 80_000


@dataclass(frozen=True, slots=True)
class AccountData:
    """What `Pool.getUserAccountData` says; values in dollars with 8 decimals."""

    collateral_base: int
    debt_base: int
    available_base: int
    liquidation_threshold_bps: int
    ltv_bps: int
    health_factor_wad: int


@dataclass(frozen=True, slots=True)
class PositionSpec:
    """A position to open.

    `supply` is raw amounts by symbol. `borrow` is weights by symbol when `health_factor_wad` is given (the debt's value
    is split by them), raw amounts when it is None. `idle` assets are supplied but not used as collateral.
    """

    account: Address
    supply: Mapping[str, int]
    borrow: Mapping[str, int] = field(default_factory=dict)
    health_factor_wad: int | None = None
    e_mode: int = 0
    idle: tuple[str, ...] = ()


async def open_position(node: Node, cast: Cast, market: AaveMarket, spec: PositionSpec) -> AccountData:
    """Open one position; see `open_positions`."""
    return (await open_positions(node, cast, market, [spec]))[0]


async def open_positions(
    node: Node, cast: Cast, market: AaveMarket, specs: Sequence[PositionSpec]
) -> list[AccountData]:
    """Open positions in a few blocks and say what the market says of each.

    The debt is rounded down by a raw unit of its token, and the market's average threshold to a basis point, so the
    health factor is at least the wanted one and hardly above. Raises ExecutionError when the loan-to-value limit
    does not allow so low a health factor; open it higher and let the price fall.
    """
    pool = pool_of(node, market)
    await node.set_balances({spec.account for spec in specs})
    await node.send_all(await _supplies(node, cast, market, specs), pool.abi)
    flags = [tx for spec in specs for tx in _flags(pool, market, spec)]
    await node.send_all(flags, pool.abi)
    before = await account_data(node, market, [spec.account for spec in specs])
    prices = await _prices(node, market, {symbol for spec in specs for symbol in spec.borrow})
    borrows = []
    for spec, account in zip(specs, before, strict=True):
        gas = _BORROW_GAS + _BORROW_GAS_PER_ASSET * (len(spec.supply) + len(spec.borrow))
        for symbol, amount in _amounts(market, spec, account, prices).items():
            order = (market.reserves[symbol].token.address, amount, _VARIABLE_RATE, 0, spec.account)
            borrows.append(pool.tx(spec.account, "borrow", *order, gas=gas))
    await node.send_all(borrows, pool.abi)
    return await account_data(node, market, [spec.account for spec in specs])


async def account_data(node: Node, market: AaveMarket, accounts: Sequence[Address]) -> list[AccountData]:
    """What the market says of accounts at the head, in order."""
    function = pool_of(node, market).abi.function("getUserAccountData")
    answers = await node.call_all([function.call(market.pool, account) for account in accounts])
    return [AccountData(*function.decode(answer)) for answer in answers]


async def liquidate(
    node: Node,
    cast: Cast,
    market: AaveMarket,
    account: Address,
    collateral: str,
    debt: str,
    repay_raw: int = MAX_UINT256,
) -> Receipt:
    """Let the cast's liquidator repay up to `repay_raw` (else all that may be) of a debt for collateral, by hand.

    It is given a fortune to repay from, so what matters is the difference of its balances. Raises ExecutionError with
    the market's reason.
    """
    liquidator, token = cast.liquidator.address, market.reserves[debt].token
    owed = int(
        await Contract(node, market.reserves[debt].variable_debt, erc20(node, token).abi).read(
            "balanceOf", account
        )
    )
    await node.send_all(
        [
            *mint_txs(cast, token, liquidator, 2 * owed),
            *await approve_txs(node, token, liquidator, market.pool, MAX_UINT256),
        ]
    )
    seized = market.reserves[collateral].token.address
    order = (seized, token.address, account, repay_raw, False)
    return await pool_of(node, market).send(liquidator, "liquidationCall", *order)


async def _supplies(node: Node, cast: Cast, market: AaveMarket, specs: Sequence[PositionSpec]) -> list[Tx]:
    lender, pool = cast.lender.address, pool_of(node, market)
    totals: dict[str, int] = {}
    for spec in specs:
        for symbol, amount in spec.supply.items():
            totals[symbol] = totals.get(symbol, 0) + amount
    txs: list[Tx] = []
    for symbol, total in totals.items():
        token = market.reserves[symbol].token
        txs += mint_txs(cast, token, lender, total)
        txs += await approve_txs(node, token, lender, market.pool, total)
    for spec in specs:
        for symbol, amount in spec.supply.items():
            order = (market.reserves[symbol].token.address, amount, spec.account, 0)
            txs.append(pool.tx(lender, "supply", *order, gas=_SUPPLY_GAS))
    return txs


def _flags(pool: Contract, market: AaveMarket, spec: PositionSpec) -> list[Tx]:
    """Collateral switches and e-mode. An isolated asset never becomes collateral by itself."""
    txs = []
    for symbol in spec.supply:
        asset = market.reserves[symbol].token.address
        if symbol in spec.idle and not market.reserves[symbol].isolated:
            txs.append(pool.tx(spec.account, "setUserUseReserveAsCollateral", asset, False, gas=_FLAG_GAS))
        elif symbol not in spec.idle and market.reserves[symbol].isolated:
            txs.append(pool.tx(spec.account, "setUserUseReserveAsCollateral", asset, True, gas=_FLAG_GAS))
    if spec.e_mode:
        txs.append(pool.tx(spec.account, "setUserEMode", spec.e_mode, gas=_FLAG_GAS))
    return txs


def _amounts(
    market: AaveMarket, spec: PositionSpec, account: AccountData, prices: Mapping[str, int]
) -> dict[str, int]:
    if spec.health_factor_wad is None or not spec.borrow:
        return dict(spec.borrow)
    threshold, ltv = account.liquidation_threshold_bps, account.ltv_bps
    debt_base = mul_div_down(account.collateral_base * threshold, WAD, BPS * spec.health_factor_wad)
    if debt_base * BPS > account.collateral_base * ltv:
        lowest = threshold / ltv if ltv else float("inf")
        raise ExecutionError(
            f"{checksum(spec.account)} cannot borrow down to health factor {spec.health_factor_wad / WAD:.4f}: its "
            f"loan-to-value limit allows no lower than {lowest:.4f}; open it higher and let the price fall."
        )
    weights = sum(spec.borrow.values())
    return {
        symbol: mul_div_down(
            debt_base * weight, 10 ** market.reserves[symbol].token.decimals, weights * prices[symbol]
        )
        for symbol, weight in spec.borrow.items()
    }


async def _prices(node: Node, market: AaveMarket, symbols: Iterable[str]) -> dict[str, int]:
    function = oracle_of(node, market).abi.function("getAssetPrice")
    wanted = sorted(symbols)
    calls = [function.call(market.oracle, market.reserves[symbol].token.address) for symbol in wanted]
    answers = await node.call_all(calls)
    return {symbol: int(function.one(answer)) for symbol, answer in zip(wanted, answers, strict=True)}
