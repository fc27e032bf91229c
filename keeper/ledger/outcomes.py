"""What an outcome must state, which outcomes count, and what a correction changes.

Sums are over mined outcomes that stand: those no later `reorged` entry of the same plan took back.

A correction names the entry it corrects and states the reason and the amounts that are right. In every sum the
corrected outcome then has those amounts, at its own time and place; a later correction of the same entry goes before
an earlier one, amount by amount. Only amounts can be corrected, not what happened: a revert stays a revert. What was
booked stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from keeper.errors import LedgerError
from keeper.ledger.entry import Booked

_GAS: Final = ("gas_cost_wei", "gas_cost_usd_e8")
_PROFIT: Final = ("profit_raw", "profit_usd_e8")

# What an outcome must state, so that no sum has to guess; `profit_raw` is in units of `profit_token`.
_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "settled": (*_GAS, "profit_token", "profit_raw"),
    "reverted": _GAS,
    "cancelled": _GAS,
    "relayed": _GAS,
    "recovered": ("gas_cost_wei",),
    "lost_race": (),
}
OUTCOMES: Final = tuple(_REQUIRED)
BAD_DEBT: Final = "bad_debt"  # `budget` of an outcome whose plan was allowed to lose
STRANGERS_MARKET: Final = (
    "strangers_market"  # of an intent, the market nobody chose; of a revert, whose fault it is
)


def check(kind: str, body: Mapping[str, Any]) -> None:
    """Raise `LedgerError` unless an outcome states what it must; other kinds may state anything."""
    for name in _REQUIRED.get(kind, ()):
        if name not in body:
            raise LedgerError(f"A {kind} entry must state {name}; add it to the body.")
    for name in (*_GAS, *_PROFIT) if kind in _REQUIRED else ():
        _check_amount(f"{name} of a {kind} entry", body.get(name, 0))
    token = body.get("profit_token", bytes(20))
    if not isinstance(token, bytes) or len(token) != 20:
        raise LedgerError(f"profit_token of a {kind} entry is {token!r}; it must be a 20-byte address.")


def check_correction(body: Mapping[str, Any], corrected: Booked) -> None:
    """Raise `LedgerError` unless `body` corrects what can be corrected."""
    what = f"the {corrected.kind} entry {corrected.seq}"
    if corrected.kind == "correction":
        raise LedgerError(
            f"Entry {corrected.seq} is a correction itself; correct the entry it is about again."
        )
    if not isinstance(body.get("reason"), str) or not body["reason"].strip():
        raise LedgerError(f"A correction of {what} must say why; add a reason.")
    allowed = (*_GAS, *_PROFIT) if corrected.kind == "settled" else _GAS if corrected.kind in OUTCOMES else ()
    for name, value in body.items():
        if name in ("corrects", "reason"):
            continue
        if name not in allowed:
            may = ", ".join(allowed) or "nothing but the reason"
            raise LedgerError(f"A correction of {what} may state {may}, not {name}.")
        _check_amount(f"{name} of a correction", value)


def standing(
    outcomes: Iterable[Booked], reorgs: Iterable[Booked], corrections: Iterable[Booked]
) -> list[Booked]:
    """The outcomes that stand, with their amounts as corrected."""
    last_reorg: dict[str, int] = {}
    for entry in reorgs:
        last_reorg[entry.plan_id] = max(entry.seq, last_reorg.get(entry.plan_id, 0))
    amounts: dict[int, dict[str, Any]] = {}
    for entry in sorted(corrections, key=lambda entry: entry.seq):
        stated = {name: value for name, value in entry.body.items() if name in (*_GAS, *_PROFIT)}
        amounts.setdefault(entry.body["corrects"], {}).update(stated)
    return [
        replace(entry, body={**entry.body, **amounts[entry.seq]}) if entry.seq in amounts else entry
        for entry in outcomes
        if entry.seq > last_reorg.get(entry.plan_id, 0)
    ]


def loss_usd_e8(outcome: Booked) -> int:
    """What an outcome lost in USD (8 decimals), never below zero; see `Ledger.loss_usd_e8`."""
    cost = int(outcome.body.get("gas_cost_usd_e8", 0))
    earned = int(outcome.body.get("profit_usd_e8", cost)) if outcome.kind == "settled" else 0
    return max(0, cost - earned)


def _check_amount(what: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LedgerError(f"{what} is {value!r}; it must be a whole number, 0 or more.")
