"""What a transaction pays: the stated bidding rule and the gas limit.

Rule: the tip is what the node suggests; the ceiling is twice the next base fee plus the tip, never above the
operator's `max_fee_gwei`. Profit is judged at the price the next block will charge: its base fee plus the tip.
"""

from __future__ import annotations

from typing import Final

from keeper.guard import Fees
from keeper.trial import next_base_fee
from keeper.types import Gas, Head, Refusal, Wei

_GAS_MARGIN_PERCENT: Final = 30
_GAS_MARGIN_FLAT: Final = 60_000


def inclusion_price(head: Head, tip_wei: Wei) -> Wei:
    """What a unit of gas costs in the next block."""
    return Wei(next_base_fee(head) + tip_wei)


def bid(head: Head, tip_wei: Wei, gas_used: Gas, max_fee_wei: Wei) -> Fees | Refusal:
    """Fees for a transaction whose trial used `gas_used`.

    The gas limit carries a margin because a block that already touched the market makes the trial skip storage
    writes (interest accrual) that inclusion a block later pays for.
    """
    price = inclusion_price(head, tip_wei)
    if price > max_fee_wei:
        return Refusal("clear", "fee_over_limit", {"inclusion_price_wei": price, "max_fee_wei": max_fee_wei})
    ceiling = Wei(min(2 * next_base_fee(head) + tip_wei, max_fee_wei))
    limit = Gas(gas_used * (100 + _GAS_MARGIN_PERCENT) // 100 + _GAS_MARGIN_FLAT)
    return Fees(max_fee_wei=ceiling, tip_wei=tip_wei, gas_limit=limit)


def cancel_fees(offered: tuple[Wei, Wei], head: Head, tip_wei: Wei, most_fee_wei: Wei) -> tuple[Wei, Wei]:
    """Max fee and tip that replace a stuck transaction which `offered` its own.

    Both a quarter above what it offered, because nodes ask for more of both, and at least today's rule; but never
    more than a quarter above `most_fee_wei`, so that no wait makes a transfer of nothing dear.
    """
    offered_fee_wei, offered_tip_wei = offered
    wanted = max(_dearer(offered_fee_wei), 2 * next_base_fee(head) + tip_wei)
    ceiling = min(wanted, _dearer(most_fee_wei))
    return Wei(ceiling), Wei(min(ceiling, _dearer(max(offered_tip_wei, tip_wei))))


def _dearer(wei: int) -> int:
    return wei * 5 // 4 + 1
