"""Everything that must be true before the keeper may run, each with what to do where it is not.

`keeper doctor` shows all of it; `keeper run` refuses to start on the first required check that fails. What can pass
by itself (an old head, a stale feed, a pause) or hurts one market only is a warning: the guard and the trial stop the
keeper there anyway, and a daemon that will not start cannot recover.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from keeper.breakers.trips import Trip
from keeper.chain.client import Chain
from keeper.config import Settings
from keeper.errors import AdapterError
from keeper.installation import Build, Needs
from keeper.preflight.contracts import check_contracts
from keeper.preflight.findings import Check, Findings, require
from keeper.preflight.surroundings import (
    charges_of,
    check_addresses,
    check_breakers,
    check_charges,
    check_files,
    check_head,
    check_money,
    check_protocols,
    check_quorum,
    check_signer,
)
from keeper.seams import Adapter, FlashSource, Venue
from keeper.types import Address, BlockTime

__all__ = ["Check", "preflight", "require"]


async def preflight(
    chain: Chain,
    settings: Settings,
    adapters: Sequence[Adapter],
    venues: Sequence[Venue],
    flash_sources: Sequence[FlashSource],
    operator: Address,
    ready: Callable[[], Awaitable[str]],
    builds: Mapping[str, Build],
    now_s: float,
    tripped: Sequence[Trip] = (),
) -> list[Check]:
    """Check everything at one head, `now_s` being wall-clock seconds; adapters are loaded on the way.

    `ready` asks whoever holds the operator's key; `builds` are our two contracts by name, `tripped` the breakers that
    stop it by the record. Raises `ChainError` only when no node answers; that the chain is the configured one and can
    be read at all was settled when it was opened.
    """
    found = Findings()
    head = await chain.head()
    at = BlockTime(head.number, head.hash, head.timestamp_s)
    check_head(found, settings, head, now_s)
    codes = await check_addresses(found, chain, settings, head)
    loaded = await check_protocols(found, chain, adapters, head)
    await check_signer(found, ready)
    charges = charges_of(chain, settings, operator)
    await check_charges(found, charges, head)
    await check_money(found, chain, charges, settings, operator, head, at)
    needs = Needs(
        operator=operator,
        adapters=loaded,
        venues=venues,
        flash_sources=[source for source in flash_sources if _is_loaded(source)],
        max_slippage_bps=settings.profit.max_slippage_bps,
    )
    await check_contracts(found, chain, settings, codes, builds, needs, at)
    check_quorum(found, settings)
    check_files(found, settings)
    check_breakers(found, tripped)
    return found.checks


def _is_loaded(source: FlashSource) -> bool:
    """Whether what the source belongs to could be loaded; if not, that is a failed check already."""
    try:
        source.source()
    except AdapterError:
        return False
    return True
