"""Taking a position over: which sizes, what margin each needs, what is left once it is closed again, and the calls.

Whoever liquidates on Perp Curie pays nothing and receives a position at the mark price less half the penalty. What that
is worth is decided by the pool that it is closed in. So an option is one size, its amount is the margin that is
borrowed and deposited, and its outcome is what the vault gives back in the same transaction: everything, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from keeper.fixed import BPS, MAX_UINT256, WAD, mul_div_up
from keeper.protocols.perp_curie.closing import Closing, read_closing
from keeper.protocols.perp_curie.health import Account, Stake
from keeper.protocols.perp_curie.marks import CurieMarks
from keeper.protocols.perp_curie.rules import (
    DUST,
    mul_div,
    mul_ratio,
    position_value_wad,
    without_dust,
)
from keeper.protocols.perp_curie.system import (
    BALANCE,
    ERC20,
    EXCHANGE,
    FUND,
    HOUSE,
    VAULT,
    answered,
)
from keeper.seams import Reads, each, together
from keeper.types import ZERO_ADDRESS, Address, Health, Option, Outcome, ProtocolCall, Refusal

LIQUIDATE: Final = HOUSE.function("liquidate(address,address,int256)")
CLOSE: Final = HOUSE.function("closePosition")
CANCEL: Final = HOUSE.function("cancelAllExcessOrders")
DEPOSIT: Final = VAULT.function("deposit")
WITHDRAW: Final = VAULT.function("withdrawAll")
REQUIRE_CLOSED: Final = EXCHANGE.function("getPnlToBeRealized")

# The mark price moves until the call is mined; the margin must still do then. It comes back, so it costs a loan's fee.
HEADROOM_BPS: Final = 100
_HALVINGS: Final = 10
_DUST_WAD: Final = WAD  # a dollar's worth of a position is not worth a transaction
_INT256_MIN: Final = -(2**255)
_NO_REFERRAL: Final = bytes(32)

_CAPACITY, _BALANCE_OF = FUND.function("getInsuranceFundCapacity"), ERC20.function("balanceOf")
_BASES, _SETTLED = BALANCE.function("getBaseTokens"), VAULT.function("getBalance")


@dataclass(frozen=True, slots=True)
class Takeover:
    """What an option remembers: a signed size of one position of an account, all as of the marks.

    `margin_wad` is what the clearing house asks for at least, `open_notional_wad` what the inherited position cost.
    """

    owner: Address
    marks: CurieMarks
    account: Account
    stake: Stake
    size: int
    notional_wad: int
    penalty_wad: int
    discount_wad: int
    margin_wad: int
    ordered: tuple[Address, ...]

    @property
    def open_notional_wad(self) -> int:
        """The quote that the liquidator's position starts with."""
        return self.discount_wad - self.notional_wad

    @property
    def names(self) -> dict[str, Any]:
        """The market and the size, as numbers of a refusal."""
        return {"market": self.stake.market.symbol, "size_wad": str(self.size)}


def takeovers(health: Health, marks: CurieMarks) -> list[Option | Refusal]:
    """Every market of a liquidatable account in sizes from the largest down to dust; why not, where it is not open."""
    account: Account = health.detail
    ordered: tuple[Address, ...] = ()
    if account.with_orders:
        # in markets that are not open the exchange overlooks orders, and lets nobody cancel them
        bases = marks.makers[health.key.account].ordered
        ordered = tuple(base for base in bases if not marks.markets[base].stopped)
    found: list[Option | Refusal] = []
    for stake in account.stakes:
        stopped = marks.markets[stake.market.base].stopped
        if stopped and stake.liquidatable:
            found.append(Refusal("options", stopped, {"market": stake.market.symbol}))
        elif stake.liquidatable:
            found += [_option(health, marks, stake, size, ordered) for size in _sizes(stake, marks)]
    return found or [Refusal("options", "no_position", {"value_wad": str(account.value_wad)})]


def outcome_of(choice: Takeover, margin_raw: int, liquidator: Address) -> Reads[Outcome | Refusal]:
    """What comes back of a margin once the position is taken over, closed and everything is withdrawn.

    Whatever anybody deposited in the liquidator's name comes with it, and makes no takeover worth more.
    Refused with numbers: where the exchange would revert, where the position would not close within the block's tick
    limit, and where less comes back than goes in.
    """
    marks, market = choice.marks, choice.stake.market
    system, state = marks.system, marks.markets[market.base]
    if margin_raw * system.unit_wad < choice.margin_wad:
        numbers = {"margin_raw": margin_raw, "needed_wad": str(choice.margin_wad)}
        return Refusal("outcome", "margin_short", choice.names | numbers)
    cancelled = choice.owner if market.base in choice.ordered else None
    around: list[Any] = yield from together(
        [
            read_closing(system, market, liquidator, cancelled, state.tick, marks.timestamp_s),
            each(
                [
                    _BASES.call(system.balance, liquidator),
                    _SETTLED.call(system.vault, liquidator),
                    _BALANCE_OF.call(system.settlement.address, system.vault),
                    _CAPACITY.call(system.fund),
                ]
            ),
        ]
    )
    closing: Closing = around[0]
    functions = (_BASES, _SETTLED, _BALANCE_OF, _CAPACITY)
    bases, balance, deposited, capacity = map(answered, functions, around[1])
    refused = (
        _left_over(choice, bases, balance)
        or _over_cap(choice, deposited + margin_raw)
        or _fund_short(choice, capacity)
    )
    if refused:
        return refused
    closed = closing.close(choice.size, state.index_wad)
    if isinstance(closed, Refusal):
        return replace(closed, numbers=choice.names | dict(closed.numbers))
    quote, _ = closed
    pnl = quote + choice.open_notional_wad
    back_raw = margin_raw + pnl // system.unit_wad
    numbers = {"margin_raw": margin_raw, "returned_raw": back_raw, "discount_wad": str(choice.discount_wad)}
    numbers |= {"closing_cost_wad": str(choice.discount_wad - pnl)}
    if back_raw < 0:
        return Refusal("outcome", "loss_over_margin", choice.names | numbers)
    if back_raw <= margin_raw:
        return Refusal("outcome", "losing_takeover", choice.names | numbers)
    return Outcome(margin_raw, back_raw + balance)


def calls_of(choice: Takeover, margin_raw: int, liquidator: Address) -> Sequence[ProtocolCall]:
    """Deposit the margin, cancel the account's orders, take over, close, withdraw everything, and be left with nothing.

    The last is a question that the exchange cannot answer while the liquidator holds a rest of the position: it
    overflows on a profit so extreme. Without a position there is nothing to compute, and it answers 0.
    """
    system, base = choice.marks.system, choice.stake.market.base
    settlement = system.settlement.address
    extreme = -_INT256_MIN - 1
    opposite = -extreme if choice.size > 0 else extreme
    steps: list[tuple[Address, bytes]] = [
        *((system.house, CANCEL.encode(choice.owner, ordered)) for ordered in choice.ordered),
        (system.house, LIQUIDATE.encode(choice.owner, base, choice.size)),
        (system.house, CLOSE.encode((base, 0, 0, MAX_UINT256, _NO_REFERRAL))),
        (system.vault, WITHDRAW.encode(settlement)),
        (system.exchange, REQUIRE_CLOSED.encode((liquidator, base, opposite, _INT256_MIN))),
    ]
    deposited = ProtocolCall(system.vault, settlement, margin_raw, DEPOSIT.encode(settlement, margin_raw))
    return [deposited, *(ProtocolCall(to, ZERO_ADDRESS, 0, data) for to, data in steps)]


def _sizes(stake: Stake, marks: CurieMarks) -> Iterator[int]:
    """The most that may be taken, and its halvings down to a dollar's worth."""
    sign = 1 if stake.liquidatable > 0 else -1
    mark = marks.markets[stake.market.base].mark_wad
    for halving in range(_HALVINGS + 1):
        size = abs(stake.liquidatable) >> halving
        if halving and size * mark // WAD < _DUST_WAD:
            return
        yield sign * size


def _option(
    health: Health, marks: CurieMarks, stake: Stake, size: int, ordered: tuple[Address, ...]
) -> Option:
    system, account = marks.system, health.detail
    notional = mul_div(size, marks.markets[stake.market.base].mark_wad, WAD)
    penalty = mul_ratio(abs(notional), system.parameters.penalty_ppm)
    discount = penalty if account.value_wad < 0 else penalty // 2
    # a long position is owed for in quote, a short one in base (AccountBalance.getTotalDebtValue)
    debt = max(notional - discount, 0) if size > 0 else -notional
    margin = mul_ratio(debt, system.parameters.im_ratio_ppm)
    choice = Takeover(
        health.key.account, marks, account, stake, size, notional, penalty, discount, margin, ordered
    )
    margin_raw = mul_div_up(margin, BPS + HEADROOM_BPS, BPS * system.unit_wad) + 1
    return Option(
        key=health.key,
        repay_token=system.settlement,
        seize_token=system.settlement,
        max_repay_raw=margin_raw,
        partial_max_repay_raw=margin_raw,
        min_repay_raw=margin_raw,
        repay_price_base=WAD,
        seize_price_base=WAD,
        detail=choice,
    )


def _left_over(choice: Takeover, bases: Sequence[Address], balance_raw: int) -> Refusal | None:
    """A position or a debt that the liquidator already has would be mixed up with the one taken over."""
    if not bases and balance_raw >= 0:
        return None
    return Refusal("outcome", "left_over", choice.names | {"markets": len(bases), "balance_raw": balance_raw})


def _over_cap(choice: Takeover, deposited_raw: int) -> Refusal | None:
    """V_GTSTBC."""
    cap = choice.marks.system.parameters.balance_cap_raw
    if deposited_raw <= cap:
        return None
    numbers = {"vault_raw": deposited_raw, "cap_raw": cap}
    return Refusal("outcome", "deposit_cap", choice.names | numbers)


def _fund_short(choice: Takeover, capacity_raw: int) -> Refusal | None:
    """CH_IIC: the insurance fund must cover what the account still owes afterwards."""
    marks, stake, account = choice.marks, choice.stake, choice.account
    mark, unit = marks.markets[stake.market.base].mark_wad, marks.system.unit_wad
    before = position_value_wad(stake.size, mark)
    after = position_value_wad(without_dust(stake.size - choice.size), mark)
    left = account.value_wad - before + after + choice.notional_wad - choice.penalty_wad
    # of a position closed whole the exchange may forget less than ten units of either token
    dropped = 0 if without_dust(stake.size - choice.size) else 2 * DUST
    owed = -((left - dropped) // unit * unit)
    capacity = capacity_raw * unit + (choice.penalty_wad - choice.discount_wad) // unit * unit
    if owed <= 0 or owed <= capacity:
        return None
    numbers = {"owed_wad": str(owed), "fund_wad": str(capacity)}
    return Refusal("outcome", "insurance_fund_short", choice.names | numbers)
