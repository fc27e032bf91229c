"""The independent judge: what a finished chain says that the keeper should have done, and what it booked wrongly.

It reads the chain from scratch and shares no code with what it judges: accounts are found in the market's own events,
their health is asked of the market itself, liquidations are tried by running them on a fork, and the ledger is opened
as a plain database. `python -m keeper.lab.judge` prints the verdict.

An account was left if some liquidation of it would have netted more than the configured minimum by more than a
tolerance, which there is because gas is an estimate: what the liquidation and the swaps use on the fork plus a
constant for the Liquidator, at the next block's base fee and the node's suggested tip. Swaps are those a plan can
hold: each trade by one route of at most two hops, over the wrapped native token or the profit token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from keeper.abi import load
from keeper.errors import ChainError, ConfigError, WrongChain
from keeper.lab.anvil import Anvil
from keeper.lab.judge.accounts import Account, Market, indebted, read_loans, read_market
from keeper.lab.judge.booked import examine
from keeper.lab.judge.evidence import Evidence
from keeper.lab.judge.routes import survey
from keeper.lab.judge.scene import Scene, read_prices
from keeper.lab.judge.search import Searcher
from keeper.lab.judge.terms import Terms, read_terms
from keeper.lab.judge.verdict import (
    LEFT,
    WITHIN_TOLERANCE,
    Amount,
    Best,
    Difference,
    PausedLiquidation,
    Unhealthy,
    Verdict,
)
from keeper.types import GLOBAL_SCOPE, Address, Token

__all__ = ["Amount", "Best", "Difference", "PausedLiquidation", "Unhealthy", "Verdict", "judge"]

TOLERANCE_USD: Final = Decimal("0.50")
_ERC20: Final = load("Erc20")
_LIQUIDATOR: Final = load("Liquidator")
_PAUSE_GUARD: Final = load("PauseGuard")


async def judge(
    config_path: Path,
    rpc_url: str | None = None,
    tolerance_usd: Decimal = TOLERANCE_USD,
    markets: Sequence[str] = (),
) -> Verdict:
    """Judge the chain that a configuration names, or the one behind `rpc_url`, as it stands at its head.

    Only accounts of `markets` (configured names) are judged where some are given; the books are always judged whole.
    The chain itself is only read. Raises `ConfigError` and `ChainError`.
    """
    began_s = time.monotonic()
    terms = read_terms(config_path)
    unknown = sorted(set(markets) - {market.name for market in terms.markets})
    if unknown:
        raise ConfigError(f"{config_path} has no market {', '.join(unknown)}; it has {_names(terms)}.")
    url, chain = await _open(terms, rpc_url)
    try:
        books = await examine(chain, terms)
        found = [await read_market(chain, listed) for listed in terms.markets]
        wanted = [market for market in found if not markets or market.name in markets]
        counts, accounts = await _accounts(chain, wanted)
        searched, effort = await _search(url, chain, terms, found, accounts, int(tolerance_usd.scaleb(8)))
        unhealthy = await _excuse(chain, terms, searched)
    finally:
        await chain.close()
    totals = {
        "block": chain.head.number,
        "accounts_with_debt": counts,
        "unhealthy": len(unhealthy),
        "min_profit_usd": str(Decimal(terms.min_profit_usd_e8).scaleb(-8)),
        "tolerance_usd": str(tolerance_usd),
        "gas_price_wei": str(chain.head.gas_price_wei),
        **effort,
        **books.totals,
        "seconds": round(time.monotonic() - began_s, 2),
    }
    return Verdict(tuple(unhealthy), books.differences, books.paused_liquidations, totals)


async def _open(terms: Terms, rpc_url: str | None) -> tuple[str, Evidence]:
    """The first node that answers, on the configured chain."""
    failures = []
    for url in (rpc_url,) if rpc_url else terms.rpc_urls:
        try:
            chain = await Evidence.open(url)
        except ChainError as error:
            failures.append(str(error))
            continue
        chain_id = int(await chain.rpc.request("eth_chainId"), 16)
        if chain_id != terms.chain_id:
            await chain.close()
            raise WrongChain(
                f"{chain.rpc.label} serves chain {chain_id} and the configuration is for {terms.chain_id}."
            )
        return url, chain
    raise ChainError(f"No node answers: {'; '.join(failures)}")


async def _accounts(chain: Evidence, markets: Sequence[Market]) -> tuple[int, list[Account]]:
    found = [await indebted(chain, market) for market in markets]
    return sum(count for count, _ in found), [account for _, some in found for account in some]


async def _search(
    url: str,
    chain: Evidence,
    terms: Terms,
    markets: Sequence[Market],
    accounts: Sequence[Account],
    tolerance_usd_e8: int,
) -> tuple[list[Unhealthy], dict[str, Any]]:
    """Search on a fork of the pinned head, which is gone afterwards."""
    effort = {"amounts_tried": 0, "trades_quoted": 0, "liquidations_run": 0}
    if not accounts:
        return [], effort
    fork = await asyncio.to_thread(Anvil.start, fork_url=url, fork_block=chain.head.number)
    try:
        forked = await Evidence.open(fork.url, chain.head.number)
        try:
            scene = await _scene(chain, forked, terms, markets, accounts)
            if scene is None:
                reason = "no fresh price of the native or the profit token"
                return [_unpriced(account, reason) for account in accounts], effort
            searcher = Searcher(scene, tolerance_usd_e8)
            found = await searcher.judge(accounts)
            effort = {
                "amounts_tried": searcher.amounts_tried,
                "trades_quoted": scene.exchanges.quoted,
                "liquidations_run": searcher.runs,
            }
            return found, effort
        finally:
            await forked.close()
    finally:
        await asyncio.to_thread(fork.stop)


async def _scene(
    chain: Evidence, forked: Evidence, terms: Terms, markets: Sequence[Market], accounts: Sequence[Account]
) -> Scene | None:
    """What the search needs; None while gas or profit has no price, when nothing may be liquidated."""
    tokens = {
        holding.reserve.token.address: holding.reserve.token
        for account in accounts
        for holding in (*account.debts, *account.collaterals)
    }
    ends = [tokens.get(one) or await _token(chain, one) for one in (terms.wrapped_native, terms.profit_token)]
    prices = await read_prices(chain, terms, [*tokens, terms.profit_token])
    if prices.native_usd_e8 is None or terms.profit_token not in prices.unit:
        return None
    allowed_bps = await chain.read(_LIQUIDATOR.function("maxSlippageBps"), terms.liquidator)
    return Scene(
        evidence=forked,
        terms=terms,
        profit=ends[1],
        prices=prices,
        native_usd_e8=prices.native_usd_e8,
        gas_price_wei=chain.head.gas_price_wei,
        max_slippage_bps=min(terms.max_slippage_bps, allowed_bps),
        loans=await read_loans(chain, markets),
        exchanges=await survey(forked, terms.exchanges, tokens.values(), ends),
    )


async def _token(chain: Evidence, address: Address) -> Token:
    symbol = await chain.read(_ERC20.function("symbol"), address)
    return Token(address, symbol, await chain.read(_ERC20.function("decimals"), address))


async def _excuse(chain: Evidence, terms: Terms, unhealthy: Sequence[Unhealthy]) -> list[Unhealthy]:
    """What the operator or the signers decided excuses leaving a profitable account."""
    scope_state = _PAUSE_GUARD.function("scopeState")
    scopes = {"": GLOBAL_SCOPE, **{one.protocol: one.protocol.encode().ljust(32, b"\0") for one in unhealthy}}
    states = await chain.read_all(scope_state, [(terms.pause_guard, scope) for scope in scopes.values()])
    paused = {name for name, state in zip(scopes, states, strict=True) if state[0]}
    excused = []
    for one in unhealthy:
        excuse = None
        if one.account in terms.deny_accounts:
            excuse = "denied"
        elif "" in paused or one.protocol in paused:
            excuse = "paused"
        elif chain.head.gas_price_wei > terms.max_fee_wei:
            excuse = "fee_over_limit"
        if excuse is None or one.reason not in (LEFT, WITHIN_TOLERANCE):
            excused.append(one)
        else:
            excused.append(
                Unhealthy(one.protocol, one.account, one.health_factor_wad, one.best, excuse, one.detail)
            )
    return excused


def _unpriced(account: Account, detail: str) -> Unhealthy:
    return Unhealthy(
        account.market.name, account.address, account.health_factor_wad, None, "no_price", detail
    )


def _names(terms: Terms) -> str:
    return ", ".join(market.name for market in terms.markets) or "none"
