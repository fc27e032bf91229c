"""What Morpho and single Uniswap pools lend, and for how much."""

from __future__ import annotations

from typing import Any

import pytest

from keeper.errors import AdapterError
from keeper.flash import MorphoFlash, UniswapV3Flash
from keeper.seams import FlashKind, FlashSource, Reads
from keeper.types import (
    Address,
    BlockNumber,
    BlockTime,
    FlashQuote,
    Hash,
    PoolId,
    Refusal,
    Result,
    Reverted,
)

LENDER = Address(b"\xaa" * 20)
USDC = Address(b"\x01" * 20)
WETH = Address(b"\x02" * 20)
OTHER = Address(b"\x03" * 20)
AT = BlockTime(BlockNumber(1), Hash(bytes(32)), 1)
POOL = (USDC, WETH, 500)


def asked(read: Reads[Any], *values: int | bytes | Reverted) -> Any:
    """What a read of one round makes of these answers."""
    questions = next(read)
    assert len(questions) == len(values)
    try:
        read.send([_result(value) for value in values])
    except StopIteration as end:
        return end.value
    raise AssertionError("more than one round")


def _result(value: int | bytes | Reverted) -> Result:
    if isinstance(value, Reverted):
        return value
    return value.to_bytes(32) if isinstance(value, int) else value.rjust(32, b"\0")


def test_morpho_lends_what_it_holds_for_nothing() -> None:
    """The quote is Morpho's whole balance without a premium; where it holds nothing it lends nothing."""
    morpho: FlashSource = MorphoFlash(LENDER)
    assert (morpho.source(), morpho.kind) == (LENDER, FlashKind.MORPHO)
    assert asked(morpho.flash(USDC, AT), 7) == FlashQuote(LENDER, USDC, 0, 7)
    refusal = asked(morpho.flash(USDC, AT), 0)
    assert isinstance(refusal, Refusal) and refusal.reason == "no_liquidity"


def test_a_pool_lends_either_token_for_its_fee() -> None:
    """The premium is the fee in basis points, and the quote names the pool that is locked; its terms are asked once."""
    pool: FlashSource = UniswapV3Flash(LENDER)
    assert (pool.source(), pool.kind) == (LENDER, FlashKind.UNISWAP_V3)
    quote = asked(pool.flash(USDC, AT), *POOL, 1, 7)
    assert quote == FlashQuote(LENDER, USDC, 5, 7, PoolId(*POOL))
    assert asked(pool.flash(WETH, AT), 1, 8) == FlashQuote(LENDER, WETH, 5, 8, PoolId(*POOL))


@pytest.mark.parametrize(
    ("token", "answers", "reason"),
    [
        pytest.param(OTHER, (*POOL, 1, 7), "not_listed", id="another-token"),
        pytest.param(USDC, (USDC, WETH, 550, 1, 7), "odd_fee", id="half-a-basis-point"),
        pytest.param(USDC, (*POOL, 1, 0), "no_liquidity", id="holds-nothing"),
        pytest.param(USDC, (*POOL, 0, 7), "no_liquidity", id="nothing-in-range"),
    ],
)
def test_what_a_pool_does_not_lend(token: Address, answers: tuple[Any, ...], reason: str) -> None:
    """A token of no pool, a fee that no premium can say, and a pool that would revert are refused with the reason."""
    refusal = asked(UniswapV3Flash(LENDER).flash(token, AT), *answers)
    assert isinstance(refusal, Refusal) and refusal.reason == reason


@pytest.mark.parametrize("answer", [Reverted(b""), b"\xff" * 32])
def test_what_is_no_pool_is_an_error(answer: Any) -> None:
    """An address that answers unlike a pool is never taken for one without liquidity."""
    with pytest.raises(AdapterError):
        asked(UniswapV3Flash(LENDER).flash(USDC, AT), answer, answer, answer, 1, 7)
    with pytest.raises(AdapterError):
        asked(MorphoFlash(LENDER).flash(USDC, AT), Reverted(b""))
