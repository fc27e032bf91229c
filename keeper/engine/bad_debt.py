"""Bad debt on record: accounts that owe more than their collateral is worth at the protocol's prices, and write-offs.

An account is booked once when it is first seen so, again only when what is missing has doubled, and once when it is
over, each with the blocks it was about. What the chain's own events say was written off is booked once each, whoever
liquidated. The ledger is the only memory, so a restart books nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from keeper import abi
from keeper.engine.head import StepReport, View
from keeper.errors import AdapterError
from keeper.ledger import Booked, Ledger
from keeper.seams import Adapter
from keeper.types import BadDebt, Head, Health, Log, Marks, PositionKey, Refusal, hex_of

_KIND: Final = "bad_debt"
_GROWN: Final = 2  # times what is on record

_Place = tuple[str, str, int]  # block hash, transaction and index of a log


@dataclass(slots=True)
class _Standing:
    """Since which block, what is on record of it, and the most that was seen."""

    since_block: int
    booked_usd_e8: int
    most_usd_e8: int


class BadDebts:
    """Which accounts have bad debt according to the ledger, and what is to be added to it.

    `heard` are logs, also of when nobody ran and of heads that were lost, of which the next one that is done books what
    they say was written off.
    """

    def __init__(
        self, ledger: Ledger, adapters: Mapping[str, Adapter], wall_clock: Callable[[], float]
    ) -> None:
        self.heard: list[Log] = []
        self._ledger = ledger
        self._adapters = adapters
        self._wall_clock = wall_clock
        self._standing: dict[PositionKey, _Standing] = {}
        self._written_off: set[_Place] = set()
        for entry in ledger.walk(_KIND):
            self._remember(entry)
        self._log = structlog.get_logger("keeper")

    def book(self, unsafe: Sequence[Health], view: View, report: StepReport) -> None:
        """Book whose bad debt is new, has doubled or is over at a head, and what the logs say was written off.

        `unsafe` is everybody who may be liquidated; who could not be judged at this head keeps what is on record.
        """
        untold = {(name, who) for name, who, each in report.refused if each.stage == "assess"}

        def known(key: PositionKey) -> bool:
            marks = _marks(view, key.protocol)
            covered = marks is not None and (key.market == marks.market or key.market in marks.parts)
            return covered and (key.protocol, key.account) not in untold

        self._saw(unsafe, known, report.head)
        for log in self.heard:
            for name, adapter in self._adapters.items():
                try:
                    lost = adapter.written_off(log, _marks(view, name))
                except AdapterError as error:
                    self._log.warning(
                        "unreadable_log", protocol=name, tx=log.transaction_hash, error=str(error)
                    )
                else:
                    self._wrote_off(log, lost)
        self.heard = []

    def _saw(self, unsafe: Sequence[Health], known: Callable[[PositionKey], bool], head: Head) -> None:
        found = {health.key: health.bad_debt for health in unsafe if health.bad_debt}
        for key, owed in found.items():
            usd_e8 = sum(each.usd_e8 or 0 for each in owed)
            standing = self._standing.get(key)
            if standing is None or usd_e8 >= _GROWN * max(standing.booked_usd_e8, 1):
                since = standing.since_block if standing else head.number
                self._standing[key] = _Standing(since, usd_e8, usd_e8)
                amounts = [_amount(each) for each in owed]
                self._state(key, "standing", head, {"since_block": since, "owed": amounts, "usd_e8": usd_e8})
            else:
                standing.most_usd_e8 = max(standing.most_usd_e8, usd_e8)
        for key in [key for key in self._standing if key not in found and known(key)]:
            standing = self._standing.pop(key)
            body = {"since_block": standing.since_block, "most_usd_e8": standing.most_usd_e8}
            self._state(key, "over", head, body)

    def _wrote_off(self, log: Log, told: tuple[PositionKey, BadDebt] | None) -> None:
        place = hex_of(log.block_hash), hex_of(log.transaction_hash), log.index
        if told is None or place in self._written_off:
            return
        self._written_off.add(place)
        key, lost = told
        body = {
            "state": "written_off",
            "market": key.market,
            "block": log.block_number,
            "block_hash": log.block_hash,
            "tx": log.transaction_hash,
            "log_index": log.index,
            **_amount(lost),
            "usd_e8": lost.usd_e8,
        }
        self._ledger.book(_KIND, None, key.protocol, key.account, body, int(self._wall_clock()))

    def _state(self, key: PositionKey, state: str, head: Head, numbers: dict[str, Any]) -> None:
        body = {"state": state, "market": key.market, "block": head.number, "block_hash": head.hash}
        self._ledger.book(_KIND, None, key.protocol, key.account, body | numbers, int(self._wall_clock()))

    def _remember(self, entry: Booked) -> None:
        body = entry.body
        if body["state"] == "written_off":
            self._written_off.add((body["block_hash"], body["tx"], body["log_index"]))
            return
        key = PositionKey(entry.protocol, body["market"], abi.address(entry.account))
        self._standing.pop(key, None)
        if body["state"] == "standing":
            usd_e8 = int(body["usd_e8"])
            self._standing[key] = _Standing(body["since_block"], usd_e8, usd_e8)


def _marks(view: View, protocol: str) -> Marks | None:
    marks = view.marks.get(protocol)
    return None if isinstance(marks, Refusal) else marks


def _amount(owed: BadDebt) -> dict[str, Any]:
    token = owed.token
    return {
        "token": token.address,
        "symbol": token.symbol,
        "decimals": token.decimals,
        "raw": owed.raw,
    }
