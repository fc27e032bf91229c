"""Thousands of borrowers at once, written straight into a market's storage.

One account, the founder, really supplies and borrows what all of them will have together; then its scaled balances
are divided among them in storage. So total supplies, liquidity, indices and rates stay exactly those of a market
with these borrowers, and every one of them can be liquidated. Their `Borrow` events are written too, by the Pool's
own address, so that whoever discovers accounts by logs finds them.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keeper.abi import checksum, keccak
from keeper.errors import ExecutionError
from keeper.fixed import BPS, MAX_UINT256, RAY, WAD
from keeper.lab.aave import (
    E_MODES,
    ETH_CORRELATED,
    STABLECOINS,
    AaveMarket,
    Reserve,
    oracle_of,
    pool_of,
    supply_by_lender,
)
from keeper.lab.actors import Cast, account
from keeper.lab.artifacts import aave_v3_0, own
from keeper.lab.node import Contract, Node, Tx
from keeper.lab.positions import AccountData, PositionSpec, account_data, open_position
from keeper.types import Address

# Storage layout, read rather than assumed: mappings are looked for below this slot.
_SLOTS = 100
_PROBE_E_MODE = STABLECOINS.category
_UINT120 = 2**120 - 1  # a scaled balance; 3.6 keeps a delegation mode in the eight bits above it
_INDEX_SHIFT = 128
_RECORDS_PER_TX, _RECORD_GAS = 500, 9_000
_FOUNDER_MARGIN = 3  # times the crowd's debt, in extra collateral, so that the founder itself stays healthy
_MORE = 10_001
_VARIABLE_RATE = 2
_SAMPLE = 25
_TOLERANCE = 2e-4  # 3.0 truncates the average threshold to whole basis points, 3.6 does not


@dataclass(frozen=True, slots=True)
class Portfolio:
    """What a kind of borrower holds: shares of its collateral's and of its debt's value by symbol.

    In an e-mode all of `supply` must belong to the category. `share` is how common the kind is.
    """

    supply: Mapping[str, float]
    borrow: Mapping[str, float]
    share: float
    e_mode: int = 0


PORTFOLIOS = (
    Portfolio({"WETH": 1.0}, {"USDC": 1.0}, 0.5),
    Portfolio({"WBTC": 0.6, "WETH": 0.4}, {"USDC": 0.7, "DAI": 0.3}, 0.25),
    Portfolio({"wstETH": 1.0}, {"WETH": 1.0}, 0.1, ETH_CORRELATED.category),
    Portfolio({"WETH": 0.3, "WBTC": 0.3, "DAI": 0.4}, {"USDT": 1.0}, 0.1),
    Portfolio({"USDC": 0.5, "DAI": 0.5}, {"USDT": 1.0}, 0.05, STABLECOINS.category),
)


@dataclass(frozen=True, slots=True)
class Crowd:
    """Borrowers that were written and the health factors they were meant to have."""

    accounts: tuple[Address, ...]
    health_factors: tuple[float, ...]


async def write_accounts(
    node: Node,
    cast: Cast,
    market: AaveMarket,
    count: int,
    *,
    seed: int = 1,
    health_factors: tuple[float, float] = (1.02, 3.0),
    portfolios: Sequence[Portfolio] = PORTFOLIOS,
    collateral_usd: tuple[float, float] = (3_000.0, 300_000.0),
    first_account: int = 1_000_000,
) -> Crowd:
    """Write `count` borrowers, health factors and sizes log-uniform in their ranges, and check a sample.

    Raises ExecutionError when what the market says of a sampled account is not what was written.
    """
    chance = random.Random(seed)
    facts = await _facts(node, market, {s for p in portfolios for s in (*p.supply, *p.borrow)})
    kinds = chance.choices(portfolios, [portfolio.share for portfolio in portfolios], k=count)
    wanted = [_log_uniform(chance, health_factors) for _ in range(count)]
    accounts = tuple(account(first_account + number) for number in range(count))
    holdings = [
        _holding(facts, kind, _log_uniform(chance, collateral_usd), health_factor)
        for kind, health_factor in zip(kinds, wanted, strict=True)
    ]
    founder = account(first_account + count)
    await _found(node, cast, market, facts, founder, holdings)
    layout = await _layout(node, market, facts, founder)
    # Events first: anvil hashes the whole state for every block, which is slow once the crowd is in it.
    await _announce(node, cast, market, accounts, holdings)
    await node.set_storage(_words(market, facts, layout, accounts, holdings))
    await _shrink(node, market, facts, layout, founder, holdings)
    await _check(node, market, accounts, wanted)
    return Crowd(accounts, tuple(wanted))


@dataclass(frozen=True, slots=True)
class _Fact:
    """What is needed of one reserve."""

    reserve: Reserve
    price_base: int
    threshold: float
    supply_index_ray: int
    debt_index_ray: int


@dataclass(frozen=True, slots=True)
class _Holding:
    """Scaled amounts by symbol."""

    supply: dict[str, int]
    borrow: dict[str, int]
    e_mode: int


@dataclass(frozen=True, slots=True)
class _Layout:
    """Places of mappings: each token's `_userState`, the Pool's `_usersConfig` and `_usersEModeCategory`."""

    balances: dict[Address, int]
    config: int
    e_mode: int


async def _facts(node: Node, market: AaveMarket, symbols: set[str]) -> dict[str, _Fact]:
    pool, oracle = pool_of(node, market), oracle_of(node, market)
    facts = {}
    for symbol in sorted(symbols):
        reserve = market.reserves[symbol]
        asset = reserve.token.address
        configuration = (await pool.read("getConfiguration", asset))[0]
        facts[symbol] = _Fact(
            reserve=reserve,
            price_base=await oracle.read("getAssetPrice", asset),
            threshold=(configuration >> 16 & 0xFFFF) / 10_000,  # ReserveConfiguration: bits 16-31
            supply_index_ray=await pool.read("getReserveNormalizedIncome", asset),
            debt_index_ray=await pool.read("getReserveNormalizedVariableDebt", asset),
        )
    return facts


def _holding(
    facts: Mapping[str, _Fact], kind: Portfolio, collateral_usd: float, health_factor: float
) -> _Holding:
    own_threshold = {mode.category: mode.liquidation_threshold_bps / 10_000 for mode in E_MODES}.get(
        kind.e_mode
    )
    threshold = sum(share * (own_threshold or facts[s].threshold) for s, share in kind.supply.items())
    debt_usd = collateral_usd * threshold / health_factor

    def scaled(symbol: str, value_usd: float, index_ray: int) -> int:
        fact = facts[symbol]
        raw = int(value_usd * 1e8 * 10**fact.reserve.token.decimals / fact.price_base)
        return raw * RAY // index_ray

    return _Holding(
        {s: scaled(s, collateral_usd * share, facts[s].supply_index_ray) for s, share in kind.supply.items()},
        {s: scaled(s, debt_usd * share, facts[s].debt_index_ray) for s, share in kind.borrow.items()},
        kind.e_mode,
    )


async def _found(
    node: Node,
    cast: Cast,
    market: AaveMarket,
    facts: Mapping[str, _Fact],
    founder: Address,
    holdings: Sequence[_Holding],
) -> None:
    """Let the founder supply and borrow all of it for real, from liquidity the lender adds."""
    supply, borrow = _totals(holdings)
    # A little more than all of it: indices grow until the founder's transactions are mined.
    raw_supply = {
        s: total * facts[s].supply_index_ray // RAY * _MORE // BPS + 2 for s, total in supply.items()
    }
    raw_borrow = {s: total * facts[s].debt_index_ray // RAY * _MORE // BPS + 2 for s, total in borrow.items()}
    debt_base = sum(
        amount * facts[s].price_base // 10 ** facts[s].reserve.token.decimals
        for s, amount in raw_borrow.items()
    )
    support = max(raw_supply, key=lambda s: facts[s].threshold)
    raw_supply[support] += (
        _FOUNDER_MARGIN * debt_base * 10 ** facts[support].reserve.token.decimals // facts[support].price_base
    )
    await supply_by_lender(node, cast, market, {s: 2 * amount for s, amount in raw_borrow.items()})
    await open_position(node, cast, market, PositionSpec(founder, raw_supply, raw_borrow))


async def _layout(node: Node, market: AaveMarket, facts: Mapping[str, _Fact], founder: Address) -> _Layout:
    """Find the mappings by where the founder's own values lie."""
    config = (await pool_of(node, market).read("getUserConfiguration", founder))[0]
    balances = {}
    for fact in facts.values():
        for token in (fact.reserve.a_token, fact.reserve.variable_debt):
            if scaled := await _scaled_balance(node, token, founder):
                balances[token] = await _mapping(node, token, founder, scaled, _UINT120)
    probe, pool = account(1), pool_of(node, market)
    await node.set_balances([probe])
    await pool.send(probe, "setUserEMode", _PROBE_E_MODE)
    e_mode = await _mapping(node, market.pool, probe, _PROBE_E_MODE, MAX_UINT256)
    await pool.send(probe, "setUserEMode", 0)
    return _Layout(balances, await _mapping(node, market.pool, founder, config, MAX_UINT256), e_mode)


async def _mapping(node: Node, contract: Address, key: Address, value: int, mask: int) -> int:
    words = await node.storage_all(contract, (_slot(key, place) for place in range(_SLOTS)))
    places = [place for place, word in enumerate(words) if word & mask == value]
    if len(places) != 1:
        raise ExecutionError(
            f"The storage of {checksum(contract)} is not laid out as any known version of Aave."
        )
    return places[0]


def _words(
    market: AaveMarket,
    facts: Mapping[str, _Fact],
    layout: _Layout,
    accounts: Sequence[Address],
    holdings: Sequence[_Holding],
) -> list[tuple[Address, int, int]]:
    words = []
    for holder, holding in zip(accounts, holdings, strict=True):
        config = 0
        for symbol, scaled in holding.supply.items():
            fact = facts[symbol]
            token = fact.reserve.a_token
            word = fact.supply_index_ray << _INDEX_SHIFT | scaled
            words.append((token, _slot(holder, layout.balances[token]), word))
            config |= 2 << 2 * fact.reserve.id
        for symbol, scaled in holding.borrow.items():
            fact = facts[symbol]
            token = fact.reserve.variable_debt
            word = fact.debt_index_ray << _INDEX_SHIFT | scaled
            words.append((token, _slot(holder, layout.balances[token]), word))
            config |= 1 << 2 * fact.reserve.id
        words.append((market.pool, _slot(holder, layout.config), config))
        if holding.e_mode:
            words.append((market.pool, _slot(holder, layout.e_mode), holding.e_mode))
    return words


async def _shrink(
    node: Node,
    market: AaveMarket,
    facts: Mapping[str, _Fact],
    layout: _Layout,
    founder: Address,
    holdings: Sequence[_Holding],
) -> None:
    """Take from the founder what the crowd was given."""
    supply, borrow = _totals(holdings)
    given = {facts[s].reserve.a_token: total for s, total in supply.items()}
    given |= {facts[s].reserve.variable_debt: total for s, total in borrow.items()}
    words = []
    for token, total in given.items():
        slot = _slot(founder, layout.balances[token])
        word = await node.storage(token, slot)
        if (word & _UINT120) < total:
            raise ExecutionError(
                f"The founder holds less of {checksum(token)} in {checksum(market.pool)} than it gave."
            )
        words.append((token, slot, word - total))
    await node.set_storage(words)


async def _announce(
    node: Node, cast: Cast, market: AaveMarket, accounts: Sequence[Address], holdings: Sequence[_Holding]
) -> None:
    """Emit the `Borrow` events from the Pool's address, whose code is put back afterwards."""
    event = pool_of(node, market).abi.event("Borrow")
    records = []
    for holder, holding in zip(accounts, holdings, strict=True):
        for symbol, scaled in holding.borrow.items():
            # Borrow(reserve, user, onBehalfOf, amount, interestRateMode, borrowRate, referralCode)
            asset, who = market.reserves[symbol].token.address, bytes(12) + holder
            topics = event.topic + bytes(12) + asset + who + bytes(32)
            records.append(topics + who + _word(scaled) + _word(_VARIABLE_RATE) + bytes(32))
    writer, sender = own("LogWriter"), cast.deployer.address
    code = await node.code(market.pool)
    stand_in = await node.code(await node.deploy(sender, writer.creation_code()))
    await node.set_code({market.pool: stand_in})
    try:
        chunks = [records[at : at + _RECORDS_PER_TX] for at in range(0, len(records), _RECORDS_PER_TX)]
        txs = [
            Tx(sender, market.pool, b"".join(chunk), gas=_RECORD_GAS * (len(chunk) + 10)) for chunk in chunks
        ]
        await node.send_all(txs)
    finally:
        await node.set_code({market.pool: code})


async def _check(
    node: Node, market: AaveMarket, accounts: Sequence[Address], wanted: Sequence[float]
) -> None:
    step = max(1, len(accounts) // _SAMPLE)
    sampled: list[AccountData] = await account_data(node, market, accounts[::step])
    for holder, data, health_factor in zip(accounts[::step], sampled, wanted[::step], strict=True):
        found = data.health_factor_wad / WAD
        if not data.debt_base or abs(found / health_factor - 1) > _TOLERANCE:
            raise ExecutionError(
                f"{checksum(holder)} has health factor {found:.6f}, not {health_factor:.6f}."
            )


def _totals(holdings: Sequence[_Holding]) -> tuple[Counter[str], Counter[str]]:
    supply: Counter[str] = Counter()
    borrow: Counter[str] = Counter()
    for holding in holdings:
        supply.update(holding.supply)
        borrow.update(holding.borrow)
    return supply, borrow


async def _scaled_balance(node: Node, token: Address, holder: Address) -> int:
    return int(
        await Contract(node, token, aave_v3_0("VariableDebtToken").abi).read("scaledBalanceOf", holder)
    )


def _slot(key: Address, place: int) -> int:
    """Where a mapping at `place` keeps the value of `key` (Solidity's storage layout)."""
    return int.from_bytes(keccak(bytes(12) + key + place.to_bytes(32, "big")), "big")


def _log_uniform(chance: random.Random, bounds: tuple[float, float]) -> float:
    return math.exp(chance.uniform(math.log(bounds[0]), math.log(bounds[1])))


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")
