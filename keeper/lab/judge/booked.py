"""The ledger against the chain: every outcome, every transaction, every nonce, every cent of profit.

The chain's side comes from receipts, blocks and events alone. Dollar figures are not compared: which block's price
they were taken at is the keeper's own affair, and they follow from amounts that are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from keeper.abi import checksum, load
from keeper.errors import ConfigError
from keeper.lab.judge.case import Case, Liquidated, about, decoded, standing
from keeper.lab.judge.evidence import Evidence
from keeper.lab.judge.outcomes import explain
from keeper.lab.judge.record import Entry, broken_chain, read_record
from keeper.lab.judge.terms import Terms
from keeper.lab.judge.verdict import Difference, PausedLiquidation
from keeper.lab.judge.written_off import false_write_offs
from keeper.types import GLOBAL_SCOPE, Address, Hash, Log, hex_of

_LIQUIDATOR: Final = load("Liquidator")
_PAUSE_GUARD: Final = load("PauseGuard")
_ERC20: Final = load("Erc20")
_LIQUIDATED, _SWEPT, _OPERATOR_SET = (
    _LIQUIDATOR.event(name) for name in ("Liquidated", "Swept", "OperatorSet")
)
_PAUSED, _UNPAUSED = (_PAUSE_GUARD.event(name) for name in ("Paused", "Unpaused"))
_TRANSFER: Final = _ERC20.event("Transfer")
_BALANCE_OF: Final = _ERC20.function("balanceOf")


@dataclass(frozen=True, slots=True)
class Books:
    """What the comparison found; `totals` are plain JSON values."""

    differences: tuple[Difference, ...]
    paused_liquidations: tuple[PausedLiquidation, ...]
    totals: Mapping[str, Any]


async def examine(evidence: Evidence, terms: Terms) -> Books:
    """Compare the ledger with the chain. Raises `ConfigError` where no Liquidator is at the configured address."""
    entries = read_record(terms.record)
    own_logs = await evidence.logs([], terms.liquidator)
    if not own_logs:
        raise ConfigError(
            f"contracts.liquidator {checksum(terms.liquidator)} never did anything on this chain."
        )
    first = own_logs[0].block_number
    operators = list(dict.fromkeys(event["operator"] for event in decoded(own_logs, _OPERATOR_SET)))
    events = [
        Liquidated(log, event["planId"], event["protocol"], event["profitToken"], event["profit"])
        for log, event in (
            (log, _LIQUIDATED.decode(log)) for log in own_logs if log.topics[0] == _LIQUIDATED.topic
        )
    ]
    sent = await evidence.transactions(operators, first)
    hashes = {one for entry in entries if (one := entry.transaction) is not None}
    hashes |= {one.hash for one in sent} | {event.log.transaction_hash for event in events}
    case = Case(
        terms=terms,
        entries=entries,
        outcomes=standing(entries),
        receipts=await evidence.receipts(sorted(hashes)),
        events=events,
        swept=[log for log in own_logs if log.topics[0] == _SWEPT.topic],
        sent=sent,
        nonces={
            checksum(operator).lower(): nonce
            for operator, nonce in (await evidence.nonces(operators)).items()
        },
    )
    explained = await explain(case, evidence)
    in_flight, unaccounted = _unaccounted(case)
    treasury, differing = await _treasury(evidence, case, first)
    differences = [
        *broken_chain(entries),
        *explained.differences,
        *_unbooked(case),
        *_twice(case),
        *unaccounted,
        *_sums(case),
        *await false_write_offs(case, evidence),
        *differing,
        *await _addresses(evidence, terms),
    ]
    paused = _paused(await evidence.logs([], terms.pause_guard), events)
    totals = {
        "ledger_entries": len(entries),
        "liquidations": len(events),
        "outcomes": explained.outcomes,
        "explained": dict(explained.reasons),
        "in_flight": in_flight,
        "operator_transactions": len(sent),
        "gas_cost_wei": str(sum(case.receipts[one.hash].cost_wei for one in sent)),
        "gas_booked_wei": str(sum(entry.integer("gas_cost_wei") or 0 for entry in case.outcomes)),
        "treasury": treasury,
    }
    return Books(tuple(differences), tuple(paused), totals)


# --- transactions, plans and nonces -----------------------------------------------------------------------------------


def _unbooked(case: Case) -> Iterable[Difference]:
    """What happened on chain that the ledger does not know."""
    settled = {
        (entry.transaction, entry.plan_id.lower()) for entry in case.outcomes if entry.kind == "settled"
    }
    for event in case.events:
        if (event.log.transaction_hash, hex_of(event.plan_id)) not in settled:
            yield Difference(
                "unbooked_liquidation",
                "the Liquidator liquidated and no settled entry says so",
                plan_id=hex_of(event.plan_id),
                transaction=hex_of(event.log.transaction_hash),
                chain=str(event.profit_raw),
            )
    signed = {entry.transaction for entry in case.of_kind("signed")}
    known = {entry.transaction for entry in case.outcomes} | {
        event.log.transaction_hash for event in case.events
    }
    for one in case.sent:
        if one.to != case.terms.liquidator:
            continue
        if one.hash not in signed:
            yield Difference(
                "unsigned_transaction",
                "the operator sent it to the Liquidator and no signed entry says so",
                transaction=hex_of(one.hash),
                chain=f"nonce {one.nonce} in block {one.block_number}",
            )
        if one.hash not in known:
            yield Difference(
                "unbooked_transaction",
                "it was mined and the ledger has no outcome of it",
                transaction=hex_of(one.hash),
                chain=f"status {case.receipts[one.hash].status}",
            )


def _twice(case: Case) -> Iterable[Difference]:
    """No plan settles twice, on either side, and no nonce serves two plans."""
    booked = Counter(entry.plan_id for entry in case.outcomes if entry.kind == "settled")
    mined = Counter(hex_of(event.plan_id) for event in case.events)
    for check, counts in (("settled_twice", booked), ("liquidated_twice", mined)):
        for plan_id, count in counts.items():
            if count > 1:
                yield Difference(check, f"one plan, {count} times", plan_id=plan_id)
    operators = case.operators()
    plans: defaultdict[tuple[str, int | None], dict[str, Entry]] = defaultdict(dict)
    for entry in case.of_kind("signed"):
        if entry.word("purpose") != "cancel":
            plans[operators[entry.plan_id], entry.integer("nonce")].setdefault(entry.plan_id, entry)
    for (_, nonce), users in plans.items():
        for entry in list(users.values())[1:]:
            yield about(entry, "nonce_reused", f"nonce {nonce} was signed for another plan before")


def _unaccounted(case: Case) -> tuple[int, list[Difference]]:
    """How many signed transactions may still be mined, and those that cannot and have no outcome."""
    concluded = {entry.plan_id for entry in case.outcomes}
    signed = {entry.transaction for entry in case.of_kind("signed")}
    operators, most = case.operators(), max(case.nonces.values(), default=0)
    in_flight = 0
    lost = [
        about(entry, "sent_unsigned", "it was sent and no signed entry says so")
        for entry in case.of_kind("sent")
        if entry.transaction not in signed
    ]
    for entry in case.of_kind("signed"):
        if entry.plan_id in concluded:
            continue
        mined = entry.transaction in case.receipts
        nonce = entry.integer("nonce")
        if mined or nonce is None or nonce < case.nonces.get(operators[entry.plan_id], most):
            why = "was mined" if mined else "can no longer be mined, its nonce is used"
            lost.append(about(entry, "unaccounted", f"it {why} and the ledger has no outcome of its plan"))
        else:
            in_flight += 1
    return in_flight, lost


# --- sums -------------------------------------------------------------------------------------------------------------


def _sums(case: Case) -> Iterable[Difference]:
    booked: Counter[str] = Counter()
    for entry in case.outcomes:
        if entry.kind == "settled":
            booked[entry.word("profit_token")] += entry.integer("profit_raw") or 0
    mined: Counter[str] = Counter()
    for event in case.events:
        mined[hex_of(event.profit_token)] += event.profit_raw
    for token in sorted(booked.keys() | mined.keys()):
        if booked[token] != mined[token]:
            yield Difference(
                "profit_sum",
                f"booked profits in {token} do not sum to those of the Liquidator's events",
                booked=str(booked[token]),
                chain=str(mined[token]),
            )


async def _treasury(
    evidence: Evidence, case: Case, first: int
) -> tuple[list[dict[str, str]], list[Difference]]:
    """The treasury's balances since the Liquidator's first block: from whom, and whether they add up."""
    tokens = dict.fromkeys([case.terms.profit_token, *(event.profit_token for event in case.events)])
    treasury = case.terms.treasury
    rows, differing = [], []
    for token in tokens:
        received, paid = await _transfers(evidence, token, treasury, first)
        before = await evidence.read(_BALANCE_OF, token, treasury, at=first - 1) if first else 0
        delta = await evidence.read(_BALANCE_OF, token, treasury) - before
        from_us = sum(value for sender, value in received if sender == case.terms.liquidator)
        from_others = sum(value for sender, value in received if sender != case.terms.liquidator)
        swept = sum(sweep["amount"] for sweep in decoded(case.swept, _SWEPT) if sweep["token"] == token)
        profit = sum(event.profit_raw for event in case.events if event.profit_token == token)
        # A plan in another profit token may leave some of this one behind: it is swept or arrives as a remainder.
        remainder = from_us - swept - profit
        rows.append(
            {
                "token": checksum(token),
                "profit_raw": str(profit),
                "swept_raw": str(swept),
                "remainders_raw": str(remainder),
                "from_others_raw": str(from_others),
                "paid_out_raw": str(paid),
                "delta_raw": str(delta),
            }
        )
        if delta != from_us + from_others - paid:
            text = "the treasury's balance moved otherwise than by the transfers it received and made"
            differing.append(
                Difference(
                    "treasury_balance", text, booked=str(from_us + from_others - paid), chain=str(delta)
                )
            )
        if remainder < 0:
            text = f"less {checksum(token)} reached the treasury from the Liquidator than its events say"
            differing.append(
                Difference("treasury_inflow", text, booked=str(profit), chain=str(from_us - swept))
            )
    return rows, differing


async def _addresses(evidence: Evidence, terms: Terms) -> list[Difference]:
    """Whether the configured treasury and guard are those the Liquidator was made with."""
    differing = []
    for name, getter, configured in (
        ("treasury", "TREASURY", terms.treasury),
        ("pause_guard", "GUARD", terms.pause_guard),
    ):
        stated = await evidence.read(_LIQUIDATOR.function(getter), terms.liquidator)
        if stated != configured:
            text = f"contracts.{name} is not the Liquidator's"
            differing.append(Difference(name, text, booked=checksum(configured), chain=checksum(stated)))
    return differing


async def _transfers(
    evidence: Evidence, token: Address, treasury: Address, first: int
) -> tuple[list[tuple[Address, int]], int]:
    """What the treasury received, by sender, and the sum of what it paid."""
    word = Hash(bytes(12) + treasury)
    incoming = await evidence.logs([_TRANSFER.topic, None, word], token, first)
    outgoing = await evidence.logs([_TRANSFER.topic, word], token, first)
    received = [(moved["from"], moved["value"]) for moved in decoded(incoming, _TRANSFER)]
    return received, sum(moved["value"] for moved in decoded(outgoing, _TRANSFER))


# --- the pause --------------------------------------------------------------------------------------------------------


def _paused(guard_logs: Sequence[Log], events: Sequence[Liquidated]) -> list[PausedLiquidation]:
    """Liquidations mined while their protocol or everything was paused, in the order of the chain's events."""
    timeline = [*guard_logs, *(event.log for event in events)]
    timeline.sort(key=lambda log: (log.block_number, log.index))
    by_place = {(event.log.block_number, event.log.index): event for event in events}
    paused: set[Hash] = set()
    found = []
    for log in timeline:
        event = by_place.get((log.block_number, log.index))
        if event is not None:
            for scope in (GLOBAL_SCOPE, event.protocol):
                if scope in paused:
                    name = scope.rstrip(b"\0").decode("ascii", "replace") or "everything"
                    transaction = event.log.transaction_hash
                    found.append(PausedLiquidation(event.plan_id, transaction, log.block_number, name))
        elif log.topics[0] == _PAUSED.topic:
            paused.add(log.topics[1])
        elif log.topics[0] == _UNPAUSED.topic:
            paused.discard(log.topics[1])
    return found
