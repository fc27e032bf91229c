"""Oracle rounds: told where the feed tells them, and only for the price that is theirs."""

from __future__ import annotations

import dataclasses
import random

from keeper.protocols.aave_v3.marks import AaveMarks
from keeper.protocols.aave_v3.rules import rules_of
from tests.protocols.aave_v3_markets import random_marks


def _with_round(marks: AaveMarks, reserve_id: int, round_id: int | None) -> AaveMarks:
    states = list(marks.states)
    states[reserve_id] = dataclasses.replace(marks.state(reserve_id), round_id=round_id)
    return dataclasses.replace(marks, states=tuple(states))


def test_a_round_belongs_to_its_own_price() -> None:
    """A reserve's price has its feed's round; an e-mode's price, or one whose feed tells nothing, has none."""
    marks = random_marks(rules_of(1)[0], random.Random(5), 3)
    told = _with_round(marks, 0, 77)
    own = told.state(0).price
    assert told.round_of(0, own) == 77
    assert told.round_of(0, own + 1) is None, "the price of an e-mode"
    assert marks.round_of(0, own) is None
