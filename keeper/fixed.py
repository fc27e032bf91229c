"""Fixed-point arithmetic on plain integers; the rounding is in the verb.

`half_up` variants reproduce Aave's WadRayMath and PercentageMath; a keeper's own figures use `_down` or `_up`,
whichever is against itself.
"""

from __future__ import annotations

from typing import Final

WAD: Final = 10**18
RAY: Final = 10**27
BPS: Final = 10_000
MAX_UINT256: Final = 2**256 - 1
SECONDS_PER_YEAR: Final = 365 * 24 * 60 * 60


def mul_div_down(a: int, b: int, denominator: int) -> int:
    """⌊a·b / denominator⌋ for non-negative integers."""
    return a * b // denominator


def mul_div_up(a: int, b: int, denominator: int) -> int:
    """⌈a·b / denominator⌉ for non-negative integers."""
    return -(-a * b // denominator)


def wad_div_half_up(a: int, b: int) -> int:
    """a / b in wad, half a unit rounded up (Aave `WadRayMath.wadDiv`)."""
    return (a * WAD + b // 2) // b


def wad_mul_half_up(a: int, b: int) -> int:
    """a · b in wad, half a unit rounded up (Aave `WadRayMath.wadMul`)."""
    return (a * b + WAD // 2) // WAD


def ray_mul_half_up(a: int, b: int) -> int:
    """a · b in ray, half a unit rounded up (Aave `WadRayMath.rayMul`)."""
    return (a * b + RAY // 2) // RAY


def ray_mul_down(a: int, b: int) -> int:
    """⌊a · b⌋ in ray (Aave 3.5+ `WadRayMath.rayMulFloor`)."""
    return a * b // RAY


def ray_mul_up(a: int, b: int) -> int:
    """⌈a · b⌉ in ray (Aave 3.5+ `WadRayMath.rayMulCeil`)."""
    return -(-a * b // RAY)


def ray_div_half_up(a: int, b: int) -> int:
    """a / b in ray, half a unit rounded up (Aave `WadRayMath.rayDiv`)."""
    return (a * RAY + b // 2) // b


def percent_mul_half_up(value: int, bps: int) -> int:
    """value · bps / 10 000, half a unit rounded up (Aave `PercentageMath.percentMul`)."""
    return (value * bps + BPS // 2) // BPS


def percent_div_half_up(value: int, bps: int) -> int:
    """value · 10 000 / bps, half a unit rounded up (Aave `PercentageMath.percentDiv`)."""
    return (value * BPS + bps // 2) // bps


def convert_down(
    amount_raw: int, price_from: int, price_to: int, decimals_from: int, decimals_to: int
) -> int:
    """Raw units of one token as raw units of another at two prices in one currency, rounded down."""
    return mul_div_down(amount_raw * price_from, 10**decimals_to, price_to * 10**decimals_from)


def convert_up(amount_raw: int, price_from: int, price_to: int, decimals_from: int, decimals_to: int) -> int:
    """Raw units of one token as raw units of another at two prices in one currency, rounded up."""
    return mul_div_up(amount_raw * price_from, 10**decimals_to, price_to * 10**decimals_from)
