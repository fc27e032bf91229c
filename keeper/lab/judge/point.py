"""One amount that a protocol accepted, as it ran on the fork; every protocol's liquidations come down to this.

Nothing is computed here: what was paid and received is read from the tokens' Transfer events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from keeper.abi import load
from keeper.lab.artifacts import own
from keeper.lab.judge.accounts import Loan
from keeper.lab.judge.evidence import Done, Evidence, Step
from keeper.lab.judge.scene import BPS, JUDGE, Scene
from keeper.lab.judge.verdict import Amount
from keeper.types import ZERO_ADDRESS, Address, Call, Token

_ERC20: Final = load("Erc20")
_TRANSFER: Final = _ERC20.event("Transfer")
_STAND_IN: Final = "CallsTogether"


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """What was borrowed for it, paid and received, and the gas of the judge's own transactions.

    `setup` puts the world as a plan would find it, `acts` are the judge's: they alone cost gas and move its tokens.
    `other_gas` is what a keeper's transactions use beside them. A perp's `position` is what is taken over or closed.
    """

    debt: Token
    collateral: Token
    loan: Loan | None
    borrowed_raw: int
    setup: tuple[Step, ...]
    acts: tuple[Step, ...]
    other_gas: int
    position: Amount | None = None
    repaid_raw: int = 0
    seized_raw: int = 0
    gas: int = 0

    @property
    def steps(self) -> tuple[Step, ...]:
        """The first steps of every run."""
        return (*self.setup, *self.acts)

    @property
    def premium_raw(self) -> int:
        """The flash loan's price, rounded up."""
        return 0 if self.loan is None else -(-self.borrowed_raw * self.loan.premium_bps // BPS)

    @property
    def owed_raw(self) -> int:
        """What the seized collateral must bring back of the repaid token."""
        return self.repaid_raw + self.premium_raw

    def as_run(self, done: Sequence[Done]) -> Point:
        """The point as one run of its steps really had it."""
        mine = done[len(self.setup) : len(self.steps)]
        return replace(
            self,
            repaid_raw=moved(mine, self.debt, "from", JUDGE),
            seized_raw=moved(mine, self.collateral, "to", JUDGE),
            gas=sum(step.gas_used for step in mine),
        )


def cheapest(scene: Scene, token: Token, amount_raw: int, *traded: Token) -> Loan | None:
    """The cheapest loan of at least that much; one that locks a pool of what is `traded` only where there is no other.

    The token itself and the profit token are traded in any case.
    """
    swapped = {token.address, scene.profit.address, *(other.address for other in traded)}
    loans = [loan for loan in scene.loans.get(token.address, ()) if loan.available_raw >= amount_raw]
    return min(
        loans, key=lambda loan: (bool(loan.locks) and loan.locks <= swapped, loan.premium_bps), default=None
    )


def most_lent_raw(scene: Scene, token: Token) -> int:
    """The largest loan there is."""
    return max((loan.available_raw for loan in scene.loans.get(token.address, ())), default=0)


def lent(loan: Loan, token: Token, amount_raw: int) -> Step:
    """The debt comes from where it would be lent, so that lender has what it would have during a flash loan."""
    return Step(loan.holder, token.address, _ERC20.function("transfer").encode(JUDGE, amount_raw))


def approval(token: Token, spender: Address, amount_raw: int) -> Call:
    """Let a contract take so much."""
    return _ERC20.function("approve").call(token.address, spender, amount_raw)


def together(actor: Address, calls: Iterable[Call]) -> Step:
    """One transaction in which `actor`, at whom `stand_ins` put the code for it, makes these calls."""
    run = own(_STAND_IN).abi.function("run")
    return Step(ZERO_ADDRESS, actor, run.encode([(call.to, call.data) for call in calls]))


async def stand_ins(evidence: Evidence, actors: Sequence[Address]) -> Mapping[Address, bytes]:
    """The code that lets accounts make many calls in one transaction."""
    code = await evidence.built(own(_STAND_IN).creation_code())
    return dict.fromkeys(actors, code)


def moved(done: Sequence[Done], token: Token, way: Literal["from", "to"], who: Address) -> int:
    """How much of a token left an account, or reached it."""
    total = 0
    for log in (log for step in done for log in step.logs):
        if log.address == token.address and log.topics[0] == _TRANSFER.topic:
            transfer = _TRANSFER.decode(log)
            if transfer[way] == who:
                total += transfer["value"]
    return total
