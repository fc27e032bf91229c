"""What a head came to, put on record and told: refusals, bad debt, and what protocols warn of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import structlog

from keeper.engine.bad_debt import BadDebts
from keeper.engine.head import StepReport, View
from keeper.ledger import Ledger
from keeper.seams import Adapter
from keeper.types import Health


class Booking:
    """Writes down what is news. `bad_debts` is whose debt exceeds what they have."""

    def __init__(
        self, ledger: Ledger, adapters: Mapping[str, Adapter], wall_clock: Callable[[], float]
    ) -> None:
        self.bad_debts = BadDebts(ledger, adapters, wall_clock)
        self._ledger = ledger
        self._adapters = adapters
        self._wall_clock = wall_clock
        self._warned: set[tuple[str, str]] = set()
        self._log = structlog.get_logger("keeper")

    def head(self, report: StepReport, unsafe: Sequence[Health], view: View) -> None:
        """Book what is new of `unsafe` accounts, of the logs that were heard, and of what was refused at a head."""
        self.bad_debts.book(unsafe, view, report)
        head, at_s = report.head.number, int(self._wall_clock())
        for protocol, account, refusal in report.refused:
            entry = self._ledger.book_refusal(
                refusal, protocol=protocol, account=account, head=head, at_s=at_s
            )
            if entry is not None:
                self._log.info(
                    "refused",
                    head=head,
                    protocol=protocol,
                    account=account,
                    stage=refusal.stage,
                    reason=refusal.reason,
                    **{f"n_{name}": value for name, value in refusal.numbers.items()},
                )

    def warned(self) -> None:
        """What the protocols warn of now was told already."""
        self._warned = self._warnings()

    def warn(self) -> None:
        """Say what the protocols warn of since they were loaded again (a pool upgraded to an unknown revision)."""
        standing = self._warnings()
        for name, text in sorted(standing - self._warned):
            self._log.warning("standing_warning", protocol=name, detail=text)
            self._ledger.book("warning", None, name, None, {"detail": text}, int(self._wall_clock()))
        self._warned = standing

    def _warnings(self) -> set[tuple[str, str]]:
        return {(name, text) for name, adapter in self._adapters.items() for text in adapter.warnings()}
