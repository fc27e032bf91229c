"""What a transaction's bytes cost beside its execution, whoever charges it (`keeper.charges` asks)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from keeper.types import NO_GAS, NO_WEI, Gas, Wei

DataFeeKind = Literal["none", "op-stack", "arbitrum"]

_BLOCKS: Final = 3  # of the chain that takes the bytes, while a transaction is waited for


@dataclass(frozen=True, slots=True)
class DataFee:
    """Wei, or gas more; neither where a chain charges nothing for bytes."""

    wei: Wei = NO_WEI
    gas: Gas = NO_GAS

    @property
    def worst_wei(self) -> Wei:
        """The most those wei can become until inclusion: each block is at most an eighth dearer than the one before."""
        return Wei(-(-self.wei * 9**_BLOCKS // 8**_BLOCKS))


NO_DATA_FEE: Final = DataFee()


@dataclass(frozen=True, slots=True)
class DataRates:
    """About what a plan's bytes cost before they are known: those of any plan, and those of each leg more."""

    plan: DataFee = NO_DATA_FEE
    leg: DataFee = NO_DATA_FEE

    @classmethod
    def by(cls, one: DataFee, two: DataFee) -> DataRates:
        """From what plans of one leg and of two pay."""
        leg = DataFee(Wei(max(0, two.wei - one.wei)), Gas(max(0, two.gas - one.gas)))
        return cls(DataFee(Wei(one.wei - leg.wei), Gas(one.gas - leg.gas)), leg)

    def of(self, legs: int) -> DataFee:
        """Of a plan of so many legs."""
        return DataFee(Wei(self.plan.wei + legs * self.leg.wei), Gas(self.plan.gas + legs * self.leg.gas))


NO_DATA_RATES: Final = DataRates()
