"""The pause as the daemon keeps it: what may be signed, and the only place that says so.

`Guard.clear` mints `Clearance`, without which `keeper.keys` signs nothing; `Gate` is what closes between two heads;
`Ramp` lets a keeper that was stopped begin small again. Unknown, stale or disagreeing reads are a pause.
"""

from keeper.guard.clearance import Clearance, Guard
from keeper.guard.gate import STOPPED, Gate
from keeper.guard.limits import Fees, Limits, Spending, Spent
from keeper.guard.ramp import Ramp, Stage
from keeper.guard.scopes import PauseState, Scope, named, read_scopes, scope_named, scope_of

__all__ = [
    "STOPPED",
    "Clearance",
    "Fees",
    "Gate",
    "Guard",
    "Limits",
    "PauseState",
    "Ramp",
    "Scope",
    "Spending",
    "Spent",
    "Stage",
    "named",
    "read_scopes",
    "scope_named",
    "scope_of",
]
