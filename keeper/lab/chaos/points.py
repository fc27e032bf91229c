"""Named places in the keeper's work where it may die, reached without a line in the keeper itself.

A point is before or after a call of one method. Those on the way from a plan to its outcome come in the order in
which a transaction passes them; `before` the call is after whatever came before it, so "recorded, not yet broadcast"
is before `Chain.send_raw`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal


@dataclass(frozen=True, slots=True)
class Point:
    """Before or after `method` of `owner` (module:class); with `telling` only after it returned something.

    `needs` names what must go wrong for the keeper to get there at all.
    """

    name: str
    owner: str
    method: str
    moment: Literal["before", "after"]
    telling: bool = False
    needs: Literal["", "stuck", "reorg"] = ""

    def owner_class(self) -> type:
        """The class the method is of."""
        module, _, name = self.owner.partition(":")
        found: type = getattr(importlib.import_module(module), name)
        return found


_STORE: Final = "keeper.store.store:Store"
_SENDER: Final = "keeper.execution.sender:Sender"
_KEY: Final = "keeper.keys:OperatorKey"
_CHAIN: Final = "keeper.chain.client:Chain"
_WATCH: Final = "keeper.watch:Watch"

POINTS: Final = {
    point.name: point
    for point in (
        Point("reserving", _STORE, "reserve", "before"),
        Point("reserved, not committed", _STORE, "reserve", "after"),
        Point("intent stored, not signed", _KEY, "sign", "before"),
        Point("signed, not recorded", _KEY, "sign", "after"),
        Point("signature not committed", _STORE, "signed", "after"),
        Point("recorded, not broadcast", _CHAIN, "send_raw", "before"),
        Point("broadcast, not noted", _CHAIN, "send_raw", "after"),
        Point("sent not committed", _STORE, "sent", "after"),
        Point("sent noted", _SENDER, "send", "after", telling=True),
        Point("receipt seen, not booked", _CHAIN, "receipt", "after", telling=True),
        Point("outcome not committed", _STORE, "settled", "after"),
        Point("outcome booked", _SENDER, "settle", "after", telling=True),
        Point("cancelling, not signed", _KEY, "sign_cancel", "before", needs="stuck"),
        Point("cancellation signed, not recorded", _KEY, "sign_cancel", "after", needs="stuck"),
        Point("outcome taken back, not committed", _STORE, "reopen", "after", needs="reorg"),
        Point("cursor not saved", _WATCH, "save", "before"),
        Point("cursor not committed", _STORE, "set_cursor", "after"),
        Point("positions not refreshed", _WATCH, "refresh", "before"),
        Point("accounts not committed", _STORE, "add_accounts", "after"),
        Point("taking over", _SENDER, "recover", "before"),
    )
}


@contextmanager
def armed(name: str, nth: int, strike: Callable[[], None]) -> Iterator[None]:
    """Call `strike` the `nth` time (from 1) the point is reached, and every time after that."""
    point = POINTS[name]
    owner = point.owner_class()
    original = getattr(owner, point.method)
    reached = 0

    def reach() -> None:
        nonlocal reached
        reached += 1
        if reached >= nth:
            strike()

    def answered(value: Any) -> None:
        if point.moment == "after" and (value or not point.telling):
            reach()

    @functools.wraps(original)
    def called(*arguments: Any, **named: Any) -> Any:
        if point.moment == "before":
            reach()
        value = original(*arguments, **named)
        answered(value)
        return value

    @functools.wraps(original)
    async def awaited(*arguments: Any, **named: Any) -> Any:
        if point.moment == "before":
            reach()
        value = await original(*arguments, **named)
        answered(value)
        return value

    setattr(owner, point.method, awaited if inspect.iscoroutinefunction(original) else called)
    try:
        yield
    finally:
        setattr(owner, point.method, original)
