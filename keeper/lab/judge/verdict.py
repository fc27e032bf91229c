"""What the judge found, as values, as a JSON document and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from keeper.abi import checksum
from keeper.types import Address, Hash, Token, hex_of

SCHEMA: Final = 1

# Reasons of an unhealthy account that was left rightly, or not.
LEFT: Final = "left"
WITHIN_TOLERANCE: Final = "within_tolerance"


@dataclass(frozen=True, slots=True)
class Amount:
    """A raw amount of a token."""

    token: Token
    raw: int

    def document(self) -> dict[str, Any]:
        """The amount as JSON."""
        return {
            "token": checksum(self.token.address),
            "symbol": self.token.symbol,
            "decimals": self.token.decimals,
            "raw": str(self.raw),
        }

    def __str__(self) -> str:
        return (
            f"{format(Decimal(self.raw).scaleb(-self.token.decimals).normalize(), 'f')} {self.token.symbol}"
        )


@dataclass(frozen=True, slots=True)
class Best:
    """The best liquidation found for an account, as it ran on the fork; `profit` is before gas.

    `position` is what it takes over or closes of a perp, short below zero; for a takeover `repay` is the margin and
    `seize` what comes back of it. `route` is readable: each trade's tokens with the fee tiers between them, or v2.
    `over_slippage` means that the Liquidator's end check would have refused it.
    """

    position: Amount | None
    repay: Amount
    seize: Amount
    profit: Amount
    route: tuple[str, ...]
    flash_source: Address | None
    flash_premium_bps: int
    gas: int
    gas_cost_usd_e8: int
    net_profit_usd_e8: int
    over_slippage: bool

    def document(self) -> dict[str, Any]:
        """The liquidation as JSON."""
        return {
            "position": None if self.position is None else self.position.document(),
            "repay": self.repay.document(),
            "seize": self.seize.document(),
            "profit": self.profit.document(),
            "route": list(self.route),
            "flash_source": None if self.flash_source is None else checksum(self.flash_source),
            "flash_premium_bps": self.flash_premium_bps,
            "gas": self.gas,
            "gas_cost_usd": usd(self.gas_cost_usd_e8),
            "net_profit_usd": usd(self.net_profit_usd_e8),
            "over_slippage": self.over_slippage,
        }


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """An account that its protocol lets liquidate: the best found for it, and why it was left if rightly.

    `health_factor_wad` is None where the protocol tells none; a perp account's is its value over the margin required.
    `reason` is `left` where it should not have been; `detail` says more where there is more to say.
    """

    protocol: str
    account: Address
    health_factor_wad: int | None
    best: Best | None
    reason: str
    detail: str = ""

    def document(self) -> dict[str, Any]:
        """The account as JSON."""
        return {
            "protocol": self.protocol,
            "account": checksum(self.account),
            "health_factor_wad": None if self.health_factor_wad is None else str(self.health_factor_wad),
            "best": None if self.best is None else self.best.document(),
            "reason": self.reason,
            "detail": self.detail,
        }

    def __str__(self) -> str:
        text = f"{self.protocol} {checksum(self.account)}"
        if self.health_factor_wad is not None:
            text += f" health {self.health_factor_wad / 10**18:.4f}"
        text += f": {self.reason}"
        if self.detail:
            text += f" ({self.detail})"
        if self.best is None:
            return text
        best = self.best
        route = "; ".join(best.route) or "no trade"
        if best.position is not None:
            text += f"\n    position {best.position}"
        return (
            f"{text}\n    repay {best.repay}, seize {best.seize}, {route}: profit {best.profit}, "
            f"gas ${usd(best.gas_cost_usd_e8)}, net ${usd(best.net_profit_usd_e8)}"
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """Something the record says that the chain does not, or the reverse; `seq` is the ledger entry concerned."""

    check: str
    detail: str
    seq: int | None = None
    plan_id: str = ""
    transaction: str = ""
    booked: str | None = None
    chain: str | None = None

    def document(self) -> dict[str, Any]:
        """The difference as JSON."""
        return {
            "check": self.check,
            "detail": self.detail,
            "seq": self.seq,
            "plan_id": self.plan_id or None,
            "tx": self.transaction or None,
            "booked": self.booked,
            "chain": self.chain,
        }

    def __str__(self) -> str:
        where = "" if self.seq is None else f"entry {self.seq}: "
        figures = "" if self.booked is self.chain is None else f" (booked {self.booked}, chain {self.chain})"
        about = (
            f" tx {self.transaction}" if self.transaction else f" plan {self.plan_id}" if self.plan_id else ""
        )
        return f"{self.check}: {where}{self.detail}{figures}{about}"


@dataclass(frozen=True, slots=True)
class PausedLiquidation:
    """A liquidation that was mined while its protocol or everything was paused."""

    plan_id: Hash
    transaction: Hash
    block_number: int
    scope: str

    def document(self) -> dict[str, Any]:
        """The liquidation as JSON."""
        return {
            "plan_id": hex_of(self.plan_id),
            "tx": hex_of(self.transaction),
            "block": self.block_number,
            "scope": self.scope,
        }

    def __str__(self) -> str:
        return f"block {self.block_number}: {hex_of(self.transaction)} while {self.scope} was paused"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything the judge found at one head. `totals` are plain JSON values."""

    unhealthy: tuple[Unhealthy, ...]
    differences: tuple[Difference, ...]
    paused_liquidations: tuple[PausedLiquidation, ...]
    totals: Mapping[str, Any]

    @property
    def left(self) -> tuple[Unhealthy, ...]:
        """Unhealthy accounts that were profitable to liquidate."""
        return tuple(one for one in self.unhealthy if one.reason == LEFT)

    @property
    def ok(self) -> bool:
        """Whether nothing profitable was left, nothing differs and nothing ran while paused."""
        return not (self.left or self.differences or self.paused_liquidations)

    def document(self) -> dict[str, Any]:
        """The verdict as one JSON document."""
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "left": [one.document() for one in self.left],
            "unhealthy": [one.document() for one in self.unhealthy],
            "differences": [one.document() for one in self.differences],
            "paused_liquidations": [one.document() for one in self.paused_liquidations],
            "totals": dict(self.totals),
        }

    def __str__(self) -> str:
        lines = []
        for title, found in (
            ("Unhealthy", self.unhealthy),
            ("Differences", self.differences),
            ("Liquidated while paused", self.paused_liquidations),
        ):
            if found:
                lines += [f"{title}:", *(f"  {one}" for one in found)]
        lines += ["Totals:", *(f"  {name}: {value}" for name, value in self.totals.items())]
        judgement = (
            "nothing profitable was left and every figure agrees with the chain"
            if self.ok
            else f"{len(self.left)} left, {len(self.differences)} differences, "
            f"{len(self.paused_liquidations)} liquidated while paused"
        )
        return "\n".join([*lines, f"Verdict: {'OK' if self.ok else 'NOT OK'}: {judgement}."])


def usd(amount_e8: int) -> str:
    """Dollars as a decimal string."""
    return format(Decimal(amount_e8).scaleb(-8), "f")
