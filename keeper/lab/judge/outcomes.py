"""Every outcome of the ledger, explained from the chain alone: what was mined, by whom, and why it failed.

An outcome is explained when the chain's own receipts, events, traces and nonces say the same; anything else is a
difference. Figures are compared to the unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from keeper.abi import checksum, load
from keeper.lab.judge.case import Case, about, decoded
from keeper.lab.judge.evidence import Evidence, Mined, Sent
from keeper.lab.judge.record import Entry
from keeper.lab.judge.verdict import Difference
from keeper.types import Hash, hex_of

_TRANSFER: Final = load("Erc20").event("Transfer")
_SWEPT: Final = load("Liquidator").event("Swept")
_MARKET: Final = load("SynthetixPerpsMarket")
# Who was liquidated, by each protocol's own event; a flag lost to another is a race lost as well.
_LIQUIDATIONS: Final = (
    (load("AavePool").event("LiquidationCall"), "user"),
    (load("MorphoBlue").event("Liquidate"), "borrower"),
    (load("CurieClearingHouse").event("PositionLiquidated"), "trader"),
    (load("CurieVault").event("CollateralLiquidated"), "trader"),
    (_MARKET.event("PositionFlagged"), "account"),
    (_MARKET.event("PositionLiquidated"), "account"),
    (load("PerpExchange").event("Liquidated"), "account"),
)
_ABIS: Final = tuple(load(name) for name in ("Liquidator", "PauseGuard", "AavePool"))

_STATUS: Final = {"settled": 1, "reverted": 0, "cancelled": 1, "lost_race": 0}


@dataclass(frozen=True, slots=True)
class Explained:
    """How many outcomes there are, what explains how many of them, and what contradicts the others."""

    outcomes: int
    reasons: Mapping[str, int]
    differences: tuple[Difference, ...]


async def explain(case: Case, evidence: Evidence) -> Explained:
    """Explain every outcome, also those a reorganisation undid."""
    undone = case.of_kind("reorged")
    rivals = {
        Hash(bytes.fromhex(entry.word("rival_tx").removeprefix("0x"))) for entry in case.of_kind("lost_race")
    }
    named = await evidence.named(sorted({*case.receipts, *rivals}))
    receipts = {**case.receipts, **await evidence.receipts(sorted(rivals - case.receipts.keys()))}
    now = await evidence.block_hashes(sorted({entry.integer("block") or 0 for entry in undone}))
    reasons: Counter[str] = Counter()
    differences: list[Difference] = []
    for entry in (*case.outcomes, *undone):
        if entry.kind == "reorged":
            found = _orphaned(entry, now)
        elif entry.kind == "dropped":
            found = _taken(case, entry)
        else:
            found = _mined(case, entry, named)
        if entry.kind == "lost_race" and not found:
            found = _raced(case, entry, named, receipts)
        differences += found
        if not found:
            reasons[await _reason(case, entry, evidence)] += 1
    return Explained(len(case.outcomes) + len(undone), dict(sorted(reasons.items())), tuple(differences))


async def _reason(case: Case, entry: Entry, evidence: Evidence) -> str:
    """The outcome in a word, with the contract's own error where it reverted."""
    mined = case.receipts.get(entry.transaction or Hash(b""))
    if entry.kind == "reorged" or mined is None or mined.status == 1:
        return entry.kind
    reverted = await evidence.revert_of(mined.transaction_hash)
    errors = (interface.error(reverted) for interface in _ABIS)
    error = next((text for text in errors if text is not None), "without a reason of ours")
    return f"{entry.kind}: {error.partition('(')[0]}"


def _mined(case: Case, entry: Entry, named: Mapping[Hash, Sent]) -> list[Difference]:
    """The entry against its receipt and transaction."""
    mined = case.receipts.get(entry.transaction or Hash(b""))
    if mined is None:
        return [about(entry, "receipt", f"the chain knows no transaction of this {entry.kind} entry")]
    figures = [
        ("status", _STATUS.get(entry.kind, mined.status), mined.status),
        ("block", entry.integer("block"), mined.block_number),
        ("block_hash", entry.word("block_hash"), hex_of(mined.block_hash)),
        ("gas_used", entry.integer("gas_used"), mined.gas_used),
        ("gas_cost_wei", entry.integer("gas_cost_wei"), mined.cost_wei),
    ]
    if entry.kind == "settled":
        figures += [*_gains(case, entry, mined), *_told(case, entry, mined)]
    found = [
        about(entry, name, f"{name} differs", booked, chain)
        for name, booked, chain in figures
        if booked != chain
    ]
    transaction = named[mined.transaction_hash]
    moves_nothing = (
        transaction.to == transaction.sender and not transaction.value_wei and not transaction.data
    )
    if entry.kind == "cancelled" and not moves_nothing:
        found.append(
            about(entry, "cancellation", "what cancelled it is no transfer of nothing to the sender")
        )
    if entry.kind != "recovered" and entry.transaction not in _signed_before(case, entry):
        found.append(about(entry, "signed_before", "no signed entry of its transaction comes before it"))
    return found


def _gains(case: Case, entry: Entry, mined: Mined) -> list[tuple[str, Any, Any]]:
    """The profit as booked, as the Liquidator's event says it, and as it arrived at the treasury."""
    mine = [event for event in case.events if event.log.transaction_hash == mined.transaction_hash]
    event = next((event for event in mine if hex_of(event.plan_id) == entry.plan_id.lower()), None)
    if event is None:
        return [("liquidated_event", entry.plan_id, ", ".join(hex_of(one.plan_id) for one in mine) or "none")]
    arrived = sum(
        transfer["value"]
        for transfer in decoded(mined.logs, _TRANSFER, event.profit_token)
        if (transfer["from"], transfer["to"]) == (case.terms.liquidator, case.terms.treasury)
    )
    swept = sum(
        sweep["amount"]
        for sweep in decoded(mined.logs, _SWEPT, case.terms.liquidator)
        if sweep["token"] == event.profit_token
    )
    profit_raw = entry.integer("profit_raw")
    return [
        *_received(case, entry, mined),
        ("profit_token", entry.word("profit_token"), checksum(event.profit_token).lower()),
        ("profit_raw", profit_raw, event.profit_raw),
        ("treasury_delta", profit_raw, arrived - swept),
    ]


def _received(case: Case, entry: Entry, mined: Mined) -> list[tuple[str, Any, Any]]:
    """All that came to the treasury, as booked and as the tokens said; entries of older keepers do not state it."""
    if "received" not in entry.body:
        return []
    came: dict[str, int] = {}
    for token in {log.address for log in mined.logs}:
        for transfer in decoded(mined.logs, _TRANSFER, token):
            if (transfer["from"], transfer["to"]) == (case.terms.liquidator, case.terms.treasury):
                name = checksum(token).lower()
                came[name] = came.get(name, 0) + transfer["value"]
    told = {str(each["token"]).lower(): int(each["raw"]) for each in entry.body["received"]}
    return [("received", sorted(told.items()), sorted(came.items()))]


def _signed_before(case: Case, entry: Entry) -> set[Hash | None]:
    return {one.transaction for one in case.of_kind("signed") if one.seq < entry.seq}


def _raced(
    case: Case, entry: Entry, named: Mapping[Hash, Sent], receipts: Mapping[Hash, Mined]
) -> list[Difference]:
    """A lost race has a winner: somebody else's liquidation of the account, after the plan and before ours."""
    rival_hash = Hash(bytes.fromhex(entry.word("rival_tx").removeprefix("0x")))
    rival, ours = named.get(rival_hash), named[entry.transaction or Hash(b"")]
    if rival is None:
        return [about(entry, "rival", "the chain knows no transaction of the rival it names")]
    planned = next(
        (one.integer("block") or 0 for one in case.of_kind("intent") if one.plan_id == entry.plan_id), 0
    )
    logs = receipts[rival_hash].logs
    liquidated = {_account(one[whom]) for event, whom in _LIQUIDATIONS for one in decoded(logs, event)}
    between = (planned, -1) < (rival.block_number, 0) and (
        (rival.block_number, rival.index) < (ours.block_number, ours.index)
    )
    if not liquidated.intersection(_accounts(case, entry)) or not between:
        return [
            about(entry, "rival", "the rival it names did not liquidate the account between plan and receipt")
        ]
    return []


def _accounts(case: Case, entry: Entry) -> list[str]:
    """Whom the plan was to liquidate, as its intent says."""
    intents = [one for one in case.of_kind("intent") if one.plan_id == entry.plan_id]
    several = [str(each["account"]).lower() for one in intents for each in one.body.get("accounts", ())]
    return several or [entry.account.lower()]


def _told(case: Case, entry: Entry, mined: Mined) -> list[tuple[str, Any, Any]]:
    """Of a plan of several accounts, who was liquidated and who was not: as booked, and by the protocol's events."""
    accounts = _accounts(case, entry)
    if len(accounts) < 2:
        return []
    done = {_account(one[whom]) for event, whom in _LIQUIDATIONS for one in decoded(mined.logs, event)}
    same = [
        one for one in case.entries if (one.plan_id, one.transaction) == (entry.plan_id, entry.transaction)
    ]
    booked = {one.account.lower(): one.kind for one in same if one.kind in ("liquidated", "skipped")}
    chain = {one: "liquidated" if one in done else "skipped" for one in accounts}
    return [("accounts", sorted(booked.items()), sorted(chain.items()))]


def _account(named: bytes | int) -> str:
    """As the ledger writes it: an account that goes by a number is the address that the number makes."""
    return hex_of(named.to_bytes(20) if isinstance(named, int) else named)


def _taken(case: Case, entry: Entry) -> list[Difference]:
    """A dropped plan's nonce went to a transaction that was never signed for it."""
    own = {one.transaction for one in case.of_kind("signed") if one.plan_id == entry.plan_id}
    nonce = entry.integer("nonce")
    if any(one.nonce == nonce and one.hash not in own for one in case.sent):
        return []
    return [about(entry, "dropped", f"no other transaction of the operator has nonce {nonce}")]


def _orphaned(entry: Entry, now: Mapping[int, Hash]) -> list[Difference]:
    """A reorganised outcome's block is no longer on the chain."""
    number = entry.integer("block") or 0
    if number in now and hex_of(now[number]) == entry.word("block_hash"):
        return [about(entry, "reorged", "the block it calls orphaned is on the chain")]
    return []
