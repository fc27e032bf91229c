"""A Uniswap V3 pool as of one block: its price and liquidity, and the ticks around it as far as swaps needed them.

All of it is read at one block hash. What the next block needs is most likely what this one did: the same questions,
asked again in one round. Only where the price moved on, or a larger swap goes further, others follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Self

from keeper import abi
from keeper.errors import AdapterError
from keeper.seams import Reads
from keeper.types import Address, Call, Result, Reverted, hex_of
from keeper.venues.uniswap_v3.swapping import Lane
from keeper.venues.uniswap_v3.ticks import WORD, Tick, word_of

_POOL: Final = abi.load("UniswapV3Pool")
_SLOT0: Final = _POOL.function("slot0")
_LIQUIDITY: Final = _POOL.function("liquidity")
_SPACING: Final = _POOL.function("tickSpacing")
_BITMAP: Final = _POOL.function("tickBitmap")
_TICK: Final = _POOL.function("ticks")

# Initialised ticks either side of the price: less than the first number are too few, and then so many are read.
_TOO_FEW, _NEAR = 4, 16

_Subject = tuple[bool, int]  # whether it is a word of the bitmap or else a tick, and which
_Learnt = tuple[Call, _Subject, Result]


class PoolState:
    """A pool at the block it was read at. `liquidity` is what is in range; no price: it was never initialised."""

    __slots__ = (
        "_answers",
        "_asked",
        "_lanes",
        "_ticks",
        "_words",
        "address",
        "fee_ppm",
        "liquidity",
        "spacing",
        "sqrt_price_x96",
        "tick",
    )

    def __init__(
        self,
        address: Address,
        fee_ppm: int,
        spacing: int,
        about: Sequence[Result],
    ) -> None:
        """From the answers of `slot0` and `liquidity`; nothing is known of its ticks yet."""
        slot0, liquidity = (_told(answer, address) for answer in about)
        self.address: Final = address
        self.fee_ppm: Final = fee_ppm
        self.spacing: Final = spacing
        price, tick, *_ = _SLOT0.decode(slot0)
        self.sqrt_price_x96: Final[int] = price
        self.tick: Final[int] = tick
        self.liquidity: Final[int] = _LIQUIDITY.one(liquidity)
        self._words: Final[dict[int, int]] = {}
        self._ticks: Final[dict[int, Tick]] = {}
        self._asked: Final[dict[Call, _Subject]] = {}
        self._answers: Final[list[Result]] = list(about)
        up, down = (
            Lane(price, tick, self.liquidity, fee_ppm, spacing, self._words, self._ticks, down=down)
            for down in (False, True)
        )
        self._lanes: Final = (up, down)

    def lane(self, *, down: bool) -> Lane:
        """Swaps from token 0 to token 1 (`down`), or the other way."""
        return self._lanes[down]

    def questions(self) -> list[Call]:
        """Everything this state was read from, to be asked at another block."""
        return [*first_questions(self.address)[:2], *self._asked]

    def renewed(self, answers: Sequence[Result]) -> Self:
        """The pool at the block where `questions` are answered so: itself where nothing is different there."""
        if answers == self._answers:
            return self
        # more may have been asked since: that comes last, and is left out
        subjects = self._asked.items()
        words: list[_Learnt] = []
        ticks: list[_Learnt] = []
        for (call, subject), answer in zip(subjects, answers[2:], strict=False):
            (words if subject[0] else ticks).append((call, subject, answer))
        state = type(self)(self.address, self.fee_ppm, self.spacing, answers[:2])
        # what is kept: where this block's swaps went, and what is around the price
        low, _, high = sorted((state.tick, *(lane.reached for lane in self._lanes)))
        span = range(word_of(low, self.spacing) - 1, word_of(high, self.spacing) + 2)
        state._note(each for each in words if each[1][1] in span)
        near = {tick for lane in state._lanes for tick in lane.ticks_ahead(_NEAR)}
        state._note(
            each
            for each in ticks
            if state._is_initialised(each[1][1]) and (each[1][1] in near or low <= each[1][1] <= high)
        )
        return state

    def settle(self) -> Reads[None]:
        """Learn what lies around the price; no round where enough of it is known."""
        if not self.sqrt_price_x96:
            return
        here = word_of(self.tick, self.spacing)
        if words := [word for word in (here - 1, here, here + 1) if word not in self._words]:
            yield from self.learn(words, [])
        if any(lane.ticks_ahead(_TOO_FEW) for lane in self._lanes):
            yield from self.learn([], [tick for lane in self._lanes for tick in lane.ticks_ahead(_NEAR)])

    def learn(self, words: Sequence[int], ticks: Sequence[int]) -> Reads[None]:
        """Read words of the bitmap and initialised ticks, at the same block. One round."""
        subjects = [*((True, word) for word in words), *((False, tick) for tick in ticks)]
        calls = [(_BITMAP if is_word else _TICK).call(self.address, index) for is_word, index in subjects]
        answers = yield calls
        self._note(zip(calls, subjects, answers, strict=True))

    def _note(self, learnt: Iterable[_Learnt]) -> None:
        for call, (is_word, index), answer in learnt:
            if call in self._asked:
                continue  # swaps of one round asked for the same
            told = _told(answer, self.address)
            if is_word:
                self._words[index] = _BITMAP.one(told)
            else:
                _, net, *growths = _TICK.decode(told)[:4]
                self._ticks[index] = Tick(net, growths.count(0))
            self._asked[call] = (is_word, index)
            self._answers.append(answer)

    def _is_initialised(self, tick: int) -> bool:
        word = self._words.get(word_of(tick, self.spacing), 0)
        return bool(word >> tick // self.spacing % WORD & 1)


def first_questions(address: Address) -> list[Call]:
    """What is asked of a pool that nothing is known of: `slot0`, `liquidity`, `tickSpacing`."""
    return [_SLOT0.call(address), _LIQUIDITY.call(address), _SPACING.call(address)]


def first_state(address: Address, fee_ppm: int, answers: Sequence[Result]) -> PoolState:
    """The state that the answers to `first_questions` tell."""
    *about, spacing = answers
    return PoolState(address, fee_ppm, _SPACING.one(_told(spacing, address)), about)


def gone(answers: Sequence[Result]) -> bool:
    """Whether there is no contract that gave these answers: its creation was undone by a reorganisation."""
    return isinstance(answers[0], Reverted) or not answers[0]


def _told(answer: Result, address: Address) -> bytes:
    if isinstance(answer, Reverted):
        raise AdapterError(f"The pool {hex_of(address)} of the factory does not answer as Uniswap V3's do.")
    return answer
