"""Markets, the accounts that owe them something, and which of those the chain itself calls unhealthy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keeper.abi import load
from keeper.errors import AdapterError
from keeper.lab.judge.evidence import Evidence
from keeper.lab.judge.terms import Listed, Terms
from keeper.types import ZERO_ADDRESS, Address, Call, Token, hex_of

_POOL: Final = load("AavePool")
_PROVIDER: Final = load("AaveAddressesProvider")
_ORACLE: Final = load("AaveOracle")
_ERC20: Final = load("Erc20")
_PAIR: Final = load("UniswapV3Pool")
_WAD: Final = 10**18
_PPM_PER_BPS: Final = 100

# Bits of a reserve's configuration word (Aave's ReserveConfiguration).
_ACTIVE, _PAUSED, _FLASH_LOANS = 56, 60, 63
# Places in the answer of Pool.getReserveData.
_A_TOKEN, _STABLE_DEBT, _VARIABLE_DEBT = 8, 9, 10


@dataclass(frozen=True, slots=True)
class Reserve:
    """A listed asset; `debt_tokens` count what is owed of it, `price_base` is 0 where the oracle has none."""

    token: Token
    price_base: int
    a_token: Address
    debt_tokens: tuple[Address, ...]
    lends: bool


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """One Aave V3 market as it stands on chain."""

    name: str
    provider: Address
    pool: Address
    revision: int
    premium_bps: int
    reserves: tuple[Reserve, ...]


@dataclass(frozen=True, slots=True)
class Loan:
    """Where a token can be had for one transaction: from the aToken, the Morpho or the Uniswap pool that holds it.

    A Uniswap pool trades for nobody while it lends; `locks` are its tokens.
    """

    pool: Address
    holder: Address
    premium_bps: int
    available_raw: int
    locks: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class Holding:
    """What an account owes or holds of a reserve."""

    reserve: Reserve
    amount_raw: int


@dataclass(frozen=True, slots=True, eq=False)
class Account:
    """An unhealthy account: `debt_base` is all it owes in the market's base currency."""

    market: Market
    address: Address
    health_factor_wad: int
    debt_base: int
    debts: tuple[Holding, ...]
    collaterals: tuple[Holding, ...]


async def read_market(evidence: Evidence, listed: Listed) -> Market:
    """A market's pool and reserves. Raises `AdapterError` when the provider is not Aave's."""
    pool = await evidence.read(_PROVIDER.function("getPool"), listed.address)
    revision = await evidence.read(_POOL.function("POOL_REVISION"), pool)
    premium_bps = await evidence.read(_POOL.function("FLASHLOAN_PREMIUM_TOTAL"), pool)
    assets = await evidence.read(_POOL.function("getReservesList"), pool)
    rows = await evidence.read_all(_POOL.function("getReserveData"), [(pool, asset) for asset in assets])
    decimals = await evidence.read_all(_ERC20.function("decimals"), [(asset,) for asset in assets])
    symbols = await evidence.calls([_ERC20.function("symbol").call(asset) for asset in assets])
    oracle = await evidence.read(_PROVIDER.function("getPriceOracle"), listed.address)
    price_of = _ORACLE.function("getAssetPrice")
    prices = await evidence.calls([price_of.call(oracle, asset) for asset in assets])
    reserves = [
        Reserve(
            token=Token(asset, _symbol(symbol, asset), places),
            price_base=0 if price is None else price_of.one(price),
            a_token=row[_A_TOKEN],
            debt_tokens=tuple(one for one in (row[_VARIABLE_DEBT], row[_STABLE_DEBT]) if one != ZERO_ADDRESS),
            lends=row[0][0] >> _ACTIVE & row[0][0] >> _FLASH_LOANS & ~(row[0][0] >> _PAUSED) & 1 == 1,
        )
        for asset, row, places, symbol, price in zip(assets, rows, decimals, symbols, prices, strict=True)
    ]
    return Market(listed.name, listed.address, pool, revision, premium_bps, tuple(reserves))


async def read_loans(
    evidence: Evidence, markets: Sequence[Market], terms: Terms, tokens: Sequence[Address]
) -> dict[Address, list[Loan]]:
    """What every market, Morpho and listed Uniswap pool lends of every token for one transaction."""
    loans: dict[Address, list[Loan]] = {}
    for token, loan in [
        *await _of_markets(evidence, markets),
        *await _of_morphos(evidence, terms.flash_morphos, tokens),
        *await _of_pools(evidence, terms.flash_pools),
    ]:
        loans.setdefault(token, []).append(loan)
    return loans


async def _of_markets(evidence: Evidence, markets: Sequence[Market]) -> list[tuple[Address, Loan]]:
    places = [(market, reserve) for market in markets for reserve in market.reserves if reserve.lends]
    held = await evidence.read_all(
        _ERC20.function("balanceOf"), [(reserve.token.address, reserve.a_token) for _, reserve in places]
    )
    # Since 3.1 a pool counts its liquidity itself and lends no more than that.
    virtual = _POOL.function("getVirtualUnderlyingBalance")
    counted = await evidence.calls(
        [virtual.call(market.pool, reserve.token.address) for market, reserve in places]
    )
    loans = []
    for (market, reserve), balance, own_count in zip(places, held, counted, strict=True):
        available = balance if own_count is None else min(balance, virtual.one(own_count))
        loan = Loan(market.pool, reserve.a_token, market.premium_bps, available)
        loans.append((reserve.token.address, loan))
    return loans


async def _of_morphos(
    evidence: Evidence, morphos: Sequence[Address], tokens: Sequence[Address]
) -> list[tuple[Address, Loan]]:
    """Morpho lends whatever it holds, free."""
    asked = [(token, morpho) for morpho in morphos for token in tokens]
    held = await evidence.read_all(_ERC20.function("balanceOf"), asked)
    return [(token, Loan(morpho, morpho, 0, raw)) for (token, morpho), raw in zip(asked, held, strict=True)]


async def _of_pools(evidence: Evidence, pools: Sequence[Address]) -> list[tuple[Address, Loan]]:
    """A Uniswap pool lends both its tokens for its fee, in millionths, as long as it has liquidity at its price."""
    asked = [(pool,) for pool in pools]
    terms = [
        await evidence.read_all(_PAIR.function(name), asked)
        for name in ("token0", "token1", "fee", "liquidity")
    ]
    loans = []
    for pool, token0, token1, fee, liquidity in zip(pools, *terms, strict=True):
        # plans count premiums in basis points
        if not liquidity or fee % _PPM_PER_BPS:
            continue
        both = [(token0, pool), (token1, pool)]
        held = await evidence.read_all(_ERC20.function("balanceOf"), both)
        locks = frozenset((token0, token1))
        for (token, _), raw in zip(both, held, strict=True):
            loans.append((token, Loan(pool, pool, fee // _PPM_PER_BPS, raw, locks)))
    return loans


async def borrowers(evidence: Evidence, market: Market) -> list[Address]:
    """Everybody who ever borrowed, by the market's own `Borrow` events from the first block on."""
    logs = await evidence.logs([_POOL.event("Borrow").topic], market.pool)
    return list(dict.fromkeys(Address(log.topics[2][12:]) for log in logs))


async def indebted(evidence: Evidence, market: Market) -> tuple[int, list[Account]]:
    """How many accounts owe anything, and those of them that `Pool.getUserAccountData` calls unhealthy."""
    accounts = await borrowers(evidence, market)
    data = _POOL.function("getUserAccountData")
    answers = await evidence.read_all(data, [(market.pool, account) for account in accounts])
    owing = [(account, row) for account, row in zip(accounts, answers, strict=True) if row[1]]
    unhealthy = [(account, row) for account, row in owing if row[5] < _WAD]
    holdings = await asyncio.gather(*(_holdings(evidence, market, account) for account, _ in unhealthy))
    return len(owing), [
        Account(market, account, row[5], row[1], debts, collaterals)
        for (account, row), (debts, collaterals) in zip(unhealthy, holdings, strict=True)
    ]


async def _holdings(
    evidence: Evidence, market: Market, account: Address
) -> tuple[tuple[Holding, ...], tuple[Holding, ...]]:
    balance_of = _ERC20.function("balanceOf")
    calls: list[Call] = []
    for reserve in market.reserves:
        calls += [balance_of.call(token, account) for token in (reserve.a_token, *reserve.debt_tokens)]
    answers = iter(await evidence.calls(calls))
    debts, collaterals = [], []
    for reserve in market.reserves:
        held = _balance(next(answers))
        owed = sum(_balance(next(answers)) for _ in reserve.debt_tokens)
        if held:
            collaterals.append(Holding(reserve, held))
        if owed:
            debts.append(Holding(reserve, owed))
    return tuple(debts), tuple(collaterals)


async def read_token(evidence: Evidence, address: Address) -> Token:
    """A token by its own word."""
    [symbol] = await evidence.calls([_ERC20.function("symbol").call(address)])
    return Token(address, _symbol(symbol, address), await evidence.read(_ERC20.function("decimals"), address))


def _balance(answer: bytes | None) -> int:
    if answer is None:
        raise AdapterError("A reserve's own token refuses to say a balance: the market is not Aave V3.")
    return int(_ERC20.function("balanceOf").one(answer))


def _symbol(answer: bytes | None, token: Address) -> str:
    """The symbol, also of the old tokens that answer bytes32; the address where there is none."""
    if answer is not None and len(answer) == 32:
        return answer.rstrip(b"\0").decode("utf-8", "replace")
    try:
        return str(_ERC20.function("symbol").one(answer or b""))
    except AdapterError:
        return hex_of(token)
