"""Markets made of thin air: random but well-formed, so that arithmetic can be tried without a chain."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np

from keeper.fixed import RAY
from keeper.protocols.aave_v3.market import EMode, Market, Reserve, ReserveConfig
from keeper.protocols.aave_v3.marks import AaveMarks, ReserveState
from keeper.protocols.aave_v3.rules import Rules
from keeper.types import (
    ZERO_ADDRESS,
    Address,
    BlockNumber,
    BlockTime,
    Hash,
    Marks,
    Positions,
    Token,
)

PROTOCOL = "aave"
MARKET = "0x" + "a5" * 20
AT = BlockTime(BlockNumber(1), Hash(bytes(32)), 1_700_000_000)


def address(number: int) -> Address:
    """A distinct address."""
    return Address(number.to_bytes(20))


def config_word(
    *,
    threshold_bps: int,
    bonus_bps: int = 10_500,
    decimals: int = 18,
    active: bool = True,
    paused: bool = False,
    fee_bps: int = 0,
    category: int = 0,
) -> int:
    """A packed ReserveConfigurationMap."""
    return (
        threshold_bps << 16
        | bonus_bps << 32
        | decimals << 48
        | int(active) << 56
        | int(paused) << 60
        | fee_bps << 152
        | category << 168
    )


def reserve(reserve_id: int, decimals: int) -> Reserve:
    """A reserve whose addresses follow from its id."""
    base = 1_000 * (reserve_id + 1)
    return Reserve(
        id=reserve_id,
        token=Token(address(base), f"T{reserve_id}", decimals),
        unit=10**decimals,
        a_token=address(base + 1),
        debt_token=address(base + 2),
        stable_debt_token=ZERO_ADDRESS,
        price_source=address(base + 3),
        timed=True,
        grace_until_s=0,
    )


def market(rules: Rules, reserves: Sequence[Reserve | None], emodes: Mapping[int, EMode]) -> Market:
    """A loaded market."""
    return Market(
        provider=address(1),
        pool=address(2),
        configurator=address(3),
        oracle=address(4),
        sentinel=ZERO_ADDRESS,
        acl_manager=address(5),
        data_provider=address(6),
        rules=rules,
        base_decimals=8,
        reserves=tuple(reserves),
        emodes=emodes,
        warnings=(),
    )


def random_marks(
    rules: Rules, chance: random.Random, count: int, decimals_of: Sequence[int] = (0, 2, 6, 8, 18, 18)
) -> AaveMarks:
    """A market of `count` reserves with thresholds from 0 to 97 %, prices from a cent to a million, three e-modes."""
    reserves: list[Reserve | None] = []
    states: list[ReserveState | None] = []
    for reserve_id in range(count):
        if reserve_id and chance.random() < 0.05:
            reserves.append(None)
            states.append(None)
            continue
        decimals = chance.choice(decimals_of)
        word = config_word(
            threshold_bps=chance.choice((0, 1, 100, 4_500, 7_000, 7_250, 8_250, 8_300, 9_300, 9_700)),
            decimals=decimals,
            category=chance.choice((0, 1, 2, 3)) if rules.category_emode else 0,
        )
        reserves.append(reserve(reserve_id, decimals))
        states.append(
            ReserveState(
                config=ReserveConfig(word),
                liquidity_index_ray=RAY + chance.randrange(RAY // 3),
                debt_index_ray=RAY + chance.randrange(RAY),
                liquidity_raw=None,
                price=int(10 ** chance.uniform(6, 14)),
                price_age_s=0,
                stale=False,
            )
        )
    emodes = {
        category: EMode(
            category,
            chance.choice((9_000, 9_300, 9_700)),
            10_100,
            ZERO_ADDRESS,
            0 if rules.category_emode else chance.getrandbits(count),
        )
        for category in (1, 2, 3)
    }
    prices = {1: int(10 ** chance.uniform(7, 12))} if rules.category_emode else {}
    return AaveMarks(market(rules, reserves, emodes), AT.timestamp_s, tuple(states), prices, True, 5)


def marks_of(exact: AaveMarks) -> Marks:
    """The marks an adapter would hand on."""
    return Marks(AT, MARKET, exact, exact.weights())


def positions_of(
    accounts: Sequence[tuple[int, Mapping[int, int], Mapping[int, int]]], width: int, first: int = 1
) -> Positions:
    """Positions from (e-mode, scaled collateral by reserve, scaled debt by reserve), accounts numbered from `first`."""
    words = np.zeros((len(accounts), 3 + 2 * width, 2), dtype=np.uint64)
    for row, (_, collateral, debt) in enumerate(accounts):
        bitmap = sum(2 << 2 * i for i in collateral) + sum(1 << 2 * i for i in debt)
        values = {0: bitmap & (1 << 128) - 1, 1: bitmap >> 128}
        values |= {3 + 2 * i: scaled for i, scaled in collateral.items()}
        values |= {4 + 2 * i: scaled for i, scaled in debt.items()}
        for column, value in values.items():
            words[row, column] = value >> 64, value & (1 << 64) - 1
    return Positions(
        protocol=PROTOCOL,
        market=MARKET,
        accounts=tuple(address(first + row) for row in range(len(accounts))),
        words=words,
        group=np.array([group for group, _, _ in accounts], dtype=np.int64),
        live=np.array([bool(debt) for _, _, debt in accounts], dtype=np.bool_),
        always_check=np.zeros(len(accounts), dtype=np.bool_),
    )
