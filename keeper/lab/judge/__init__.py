"""The independent judge: what a finished chain says that the keeper should have done, and what it booked wrongly.

It reads the chain from scratch and shares no code with what it judges: accounts are found in the market's own events,
their health is asked of the market itself, liquidations are tried by running them on a fork, and the ledger is opened
as a plain database. `python -m keeper.lab.judge` prints the verdict.

An account was left if some liquidation of it would have netted more than the configured minimum by more than a
tolerance, which there is because gas is an estimate: what the liquidation and the swaps use on the fork plus a
constant for the Liquidator, at the next block's base fee and the node's suggested tip. Swaps are those a plan can
hold: each trade by one route of at most two hops, over the wrapped native token or the profit token.

Aave's accounts are searched by `search`, traders of perps and borrowers of Morpho by `perps`; either's ways become a
`Point` of the same kind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from keeper.abi import load
from keeper.errors import ChainError, ConfigError, WrongChain
from keeper.lab.anvil import Anvil
from keeper.lab.judge.accounts import Account, Market, indebted, read_loans, read_market, read_token
from keeper.lab.judge.booked import examine
from keeper.lab.judge.curie import read_curie
from keeper.lab.judge.evidence import Evidence
from keeper.lab.judge.morpho import read_morpho
from keeper.lab.judge.perps import Perps, Trader, judge_traders
from keeper.lab.judge.point import stand_ins
from keeper.lab.judge.reference import read_reference
from keeper.lab.judge.routes import survey
from keeper.lab.judge.scene import JUDGE, Scene, read_data_wei, read_prices
from keeper.lab.judge.search import Searcher
from keeper.lab.judge.synthetix import read_synthetix
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
from keeper.types import GLOBAL_SCOPE

__all__ = ["Amount", "Best", "Difference", "PausedLiquidation", "Unhealthy", "Verdict", "judge"]

TOLERANCE_USD: Final = Decimal("0.50")
_LIQUIDATOR: Final = load("Liquidator")
_PAUSE_GUARD: Final = load("PauseGuard")


@dataclass(frozen=True, slots=True)
class _Suspects:
    """Who is unhealthy, and all Aave markets, because any of them may lend."""

    markets: Sequence[Market]
    accounts: Sequence[Account]
    traders: Sequence[Trader]

    @property
    def everybody(self) -> Sequence[Account | Trader]:
        """Accounts of all protocols."""
        return (*self.accounts, *self.traders)


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
    unknown = sorted(set(markets) - set(terms.names))
    if unknown:
        names = ", ".join(terms.names) or "none"
        raise ConfigError(f"{config_path} has no market {', '.join(unknown)}; it has {names}.")
    url, chain = await _open(terms, rpc_url)
    try:
        books = await examine(chain, terms)
        found = [await read_market(chain, listed) for listed in terms.markets]
        wanted = [market for market in found if not markets or market.name in markets]
        indebted_count, accounts = await _accounts(chain, wanted)
        perps = [market for market in await _perps(chain, terms) if not markets or market.name in markets]
        holders, traders = await _traders(chain, perps)
        suspects = _Suspects(found, accounts, traders)
        searched, effort = await _search(url, chain, terms, suspects, int(tolerance_usd.scaleb(8)))
        unhealthy = await _excuse(chain, terms, searched)
    finally:
        await chain.close()
    totals = {
        "block": chain.head.number,
        "accounts_with_debt": indebted_count,
        "accounts_with_position": holders,
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


async def _perps(chain: Evidence, terms: Terms) -> list[Perps]:
    return [
        *[await read_curie(chain, listed) for listed in terms.curies],
        *[await read_synthetix(chain, listed) for listed in terms.synthetix],
        *[await read_reference(chain, listed) for listed in terms.references],
        *[market for listed in terms.morphos for market in await read_morpho(chain, listed)],
    ]


async def _traders(chain: Evidence, perps: Sequence[Perps]) -> tuple[int, list[Trader]]:
    found = [await market.traders(chain) for market in perps]
    return sum(count for count, _ in found), [trader for _, some in found for trader in some]


async def _search(
    url: str, chain: Evidence, terms: Terms, suspects: _Suspects, tolerance_usd_e8: int
) -> tuple[list[Unhealthy], dict[str, Any]]:
    """Search on a fork of the pinned head, which is gone afterwards."""
    effort = {"amounts_tried": 0, "trades_quoted": 0, "liquidations_run": 0}
    if not suspects.everybody:
        return [], effort
    actors = await stand_ins(chain, [JUDGE, terms.liquidator]) if suspects.traders else {}
    fork = await asyncio.to_thread(Anvil.start, fork_url=url, fork_block=chain.head.number)
    try:
        forked = await Evidence.open(fork.url, chain.head.number, actors)
        try:
            scene = await _scene(chain, forked, terms, suspects)
            if scene is None:
                return [_unpriced(one) for one in suspects.everybody], effort
            searcher = Searcher(scene, tolerance_usd_e8)
            found = await searcher.judge(suspects.accounts)
            rows, tried, runs = await judge_traders(scene, suspects.traders, tolerance_usd_e8)
            effort = {
                "amounts_tried": searcher.amounts_tried + tried,
                "trades_quoted": scene.exchanges.quoted,
                "liquidations_run": searcher.runs + runs,
            }
            return [*found, *rows], effort
        finally:
            await forked.close()
    finally:
        await asyncio.to_thread(fork.stop)


async def _scene(chain: Evidence, forked: Evidence, terms: Terms, suspects: _Suspects) -> Scene | None:
    """What the search needs; None while gas or profit has no price, when nothing may be liquidated."""
    tokens = {
        holding.reserve.token.address: holding.reserve.token
        for account in suspects.accounts
        for holding in (*account.debts, *account.collaterals)
    }
    tokens |= {token.address: token for trader in suspects.traders for token in trader.tokens}
    ends = [
        tokens.get(one) or await read_token(chain, one) for one in (terms.wrapped_native, terms.profit_token)
    ]
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
        data_wei=await read_data_wei(chain, terms),
        max_slippage_bps=min(terms.max_slippage_bps, allowed_bps),
        loans=await read_loans(chain, suspects.markets, terms, list(tokens)),
        exchanges=await survey(forked, terms.exchanges, tokens.values(), ends),
    )


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
            excused.append(replace(one, reason=excuse))
    return excused


def _unpriced(one: Account | Trader) -> Unhealthy:
    detail = "no fresh price of the native or the profit token"
    return Unhealthy(one.market.name, one.address, one.health_factor_wad, None, "no_price", detail)
