"""What a check finds, in which words, and when it forbids a start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from keeper.errors import ConfigError
from keeper.types import Refusal


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `detail` says what was found, `fix` what to do where it is not `ok`: a sentence each."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = True


@dataclass(slots=True)
class Findings:
    """Checks in the order they were made."""

    checks: list[Check] = field(default_factory=list)

    def good(self, name: str, detail: str, *, required: bool = True) -> None:
        """It is as it should be."""
        self.checks.append(Check(name, True, detail, "", required))

    def bad(self, name: str, detail: str, fix: str) -> None:
        """The keeper must not run like this."""
        self.checks.append(Check(name, False, detail, fix))

    def warn(self, name: str, detail: str, fix: str) -> None:
        """The keeper may run, but somebody should look."""
        self.checks.append(Check(name, False, detail, fix, required=False))


def require(checks: Iterable[Check]) -> list[Check]:
    """The warnings among the checks; raises the first required one that failed as one sentence, a `ConfigError`."""
    warnings = []
    for check in checks:
        if not check.ok and check.required:
            raise ConfigError(f"{check.detail.removesuffix('.')}: {check.fix[:1].lower()}{check.fix[1:]}")
        if not check.ok:
            warnings.append(check)
    return warnings


def why_not(refusal: Refusal) -> str:
    """A refusal of `read_price` as a clause about the feed."""
    numbers = refusal.numbers
    if refusal.reason == "stale_price":
        return f"last answered {numbers['age_s']} s ago, more than the {numbers['max_age_s']} s allowed"
    if "answer" in numbers:
        return f"answers {numbers['answer']}, which is no price"
    return "does not answer latestRoundData() and decimals() as an aggregator does"


def dollars(usd_e8: int) -> str:
    """Dollars with at least two decimals and no zeros behind those."""
    whole, fraction = divmod(usd_e8, 10**8)
    return f"{whole}.{f'{fraction:08d}'.rstrip('0'):0<2}"
