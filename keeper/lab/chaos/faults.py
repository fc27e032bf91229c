"""What goes wrong, as data: faults with a span, moves of the world, and a script of both that a seed reproduces.

Nothing here does anything. `proxy` and `mempool` apply what happens between keeper and node, `line` and `kills` what
happens to the keeper's process, `stage` what happens to the world.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self, get_args

import msgspec

from keeper.errors import ConfigError

# Between keeper and node. Every answer of the chosen methods:
Transport = Literal[
    "delay",  # comes `amount` ms late
    "drop",  # never comes, nor does the question reach the node
    "reset",  # instead of it the connection is cut
    "rate_limit",  # is 429 with Retry-After
    "server_error",  # is HTTP status `amount`
    "truncate",  # is the first half of its JSON
    "garbage",  # is not JSON at all
]
# What an answer says:
Content = Literal[
    "duplicate_logs",  # every log comes twice
    "missing_logs",  # no log comes
    "removed_logs",  # every log comes again as removed
    "missing_receipts",  # there is no receipt yet
    "stale_head",  # the newest block is the one at the beginning of the span; state answers stay true
    "wrong_chain",  # the chain id is `amount`
    "lying_slot",  # one bit of one word of an eth_call, which `amount` chooses, is flipped
]
# Sockets and what they push:
Socket = Literal[
    "slow_notices",  # notifications come `amount` ms late
    "lost_notices",  # notifications do not come
    "dropped_sockets",  # every open WebSocket is cut at each block
]
# A transaction handed in:
Pool = Literal[
    "replacement_rule",  # replaces another only with both fees a tenth higher, as Geth asks
    "keeping_pool",  # is kept while its fee is below the base fee, and after a reorg, as Geth does
    "already_known",  # a second time is an error, as with Geth
    "lost_answer",  # is taken, and the connection cut before the answer
    "swallow",  # is acknowledged and forgotten
]
# The process:
Process = Literal[
    "clock_jump",  # the wall clock is `amount` s off
    "full_disk",  # the record cannot grow
    "locked_database",  # somebody else writes to the record
]
Kind = Transport | Content | Socket | Pool | Process

# What real pools do all the time: no fault that would be over some day.
RULES: Final[frozenset[str]] = frozenset({"replacement_rule", "keeping_pool", "already_known"})
LIES: Final[frozenset[str]] = frozenset({"missing_logs", "lying_slot"})
TRANSPORT: Final[tuple[Kind, ...]] = get_args(Transport)
CONTENT: Final[tuple[Kind, ...]] = get_args(Content)
SOCKET: Final[tuple[Kind, ...]] = get_args(Socket)
POOL: Final[tuple[Kind, ...]] = get_args(Pool)
PROCESS: Final[tuple[Kind, ...]] = get_args(Process)

# What a kind can be about besides methods: a notification that is pushed, a block that passes.
NOTICE, BLOCK = "notice", "block"
# What a kind can be about; any method where it is not named.
METHODS: Final[dict[str, tuple[str, ...]]] = {
    "duplicate_logs": ("eth_getLogs",),
    "missing_logs": ("eth_getLogs",),
    "removed_logs": ("eth_getLogs",),
    "missing_receipts": ("eth_getTransactionReceipt",),
    "stale_head": ("eth_blockNumber", "eth_getBlockByNumber", NOTICE),
    "wrong_chain": ("eth_chainId",),
    "lying_slot": ("eth_call",),
    "slow_notices": (NOTICE,),
    "lost_notices": (NOTICE,),
    "dropped_sockets": (BLOCK,),
    **dict.fromkeys(POOL, ("eth_sendRawTransaction",)),
    **dict.fromkeys(PROCESS, ()),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong from `first` on, `count` times, counted in blocks or in requests it could bite.

    `methods` empty: all it can be about. `amount` is what the kind says it is.
    """

    kind: Kind
    first: int
    count: int
    unit: Literal["block", "request"] = "block"
    methods: tuple[str, ...] = ()
    amount: int = 0

    def concerns(self, method: str) -> bool:
        """Whether a request of this method could be bitten; or a notice, or a block."""
        wanted = self.methods or METHODS.get(self.kind)
        return method not in (NOTICE, BLOCK) if wanted is None else method in wanted

    def spans(self, number: int) -> bool:
        """Whether block, or request, `number` is within the span."""
        return self.first <= number < self.first + self.count

    @property
    def lies(self) -> bool:
        """Whether a keeper with one provider cannot tell: what it then believes may outlast the fault."""
        return self.kind in LIES


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens before block `block` is handled.

    price: `what` reports `amount` hundredths of a percent of its present price. base_fee: the next block's is
    `amount` gwei. reorg: `amount` blocks are replaced by empty ones. pause: everything is paused for `amount` blocks.
    kill: the process dies at the point `what` the `amount`th time it gets there.
    """

    kind: Literal["price", "base_fee", "reorg", "pause", "kill"]
    block: int
    amount: int
    what: str = ""


@dataclass(frozen=True, slots=True)
class Script:
    """What goes wrong over `blocks` blocks of `block_time_s`; the keeper speaks to its node by `transport`."""

    blocks: int
    faults: tuple[Fault, ...] = ()
    events: tuple[Event, ...] = ()
    transport: Literal["http", "ws"] = "ws"

    @property
    def lies(self) -> bool:
        """Whether any fault is a lie that one provider gets away with."""
        return any(fault.lies for fault in self.faults)

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """A script from its JSON. Raises ConfigError when it is none."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ConfigError(f"The fault script cannot be read: {error}.") from error


# What can befall a keeper that is driven head by head, to which nothing is pushed; groups are equally likely.
STEPWISE: Final[tuple[tuple[Kind, ...], ...]] = (
    TRANSPORT,
    CONTENT,
    POOL,
    POOL,
    (*PROCESS, "dropped_sockets"),
)
# What a keeper asks while it works, the more decisive the more often.
_ASKED: Final = (
    *("eth_sendRawTransaction",) * 4,
    *("eth_getTransactionReceipt", "eth_getTransactionCount", "eth_simulateV1", "eth_call") * 2,
    *("eth_getLogs", "eth_getBlockByNumber", "eth_getBlockByHash", "eth_blockNumber", "eth_chainId"),
    *("eth_feeHistory", "eth_getCode"),
)


def random_script(chance: random.Random, points: Sequence[str]) -> Script:
    """A script in which prices fall several times, and up to six things go wrong, mostly just then.

    `points` are the names of places where the process may die.
    """
    blocks = chance.randint(8, 16)
    falls = sorted(chance.sample(range(blocks - 2), chance.randint(2, 4)))
    events = [
        Event("price", fall, chance.randint(8_800, 9_600), chance.choice(("WETH", "WETH", "WBTC")))
        for fall in falls
    ]
    faults: list[Fault] = []
    for _ in range(chance.randint(1, 6)):
        near = chance.choice(falls) if chance.random() < 0.7 else chance.randrange(blocks - 1)
        if chance.random() < 0.4:
            events.append(random_event(chance, min(near + chance.randint(0, 2), blocks - 1), points))
        else:
            faults.append(random_fault(chance, near, blocks, STEPWISE))
    if chance.random() < 0.15:
        # what is sent is lost for so long that its nonce has to be taken back
        faults.append(Fault("swallow", chance.choice(falls), chance.randint(4, 12)))
    if chance.random() < 0.15:
        # gas grows dear right after something was sent, and the pool keeps it: it has to be outbid
        near = chance.choice(falls)
        events.append(Event("base_fee", near + 1, chance.choice((10, 40, 90))))
        faults += [Fault("keeping_pool", near, 8), Fault("replacement_rule", near, 8)]
    events.sort(key=lambda event: event.block)
    return Script(blocks, tuple(faults), tuple(events), chance.choice(("ws", "http")))


def random_fault(chance: random.Random, first: int, blocks: int, groups: Sequence[Sequence[Kind]]) -> Fault:
    """A fault of a kind out of these groups, from block `first` on and over before `blocks` are.

    Between keeper and node it may be counted in requests instead, from any early one on.
    """
    kind = chance.choice(chance.choice(groups))
    methods = (chance.choice(_ASKED),) if kind in TRANSPORT and chance.random() < 0.8 else ()
    amount = 0
    if kind in ("delay", "slow_notices"):
        amount = chance.choice((5, 30, 30, 150, 150, 1_700))
    elif kind == "server_error":
        amount = chance.choice((500, 502, 503, 504))
    elif kind == "wrong_chain":
        amount = chance.choice((1, 10))
    elif kind == "lying_slot":
        amount = chance.randrange(2**20)
    elif kind == "clock_jump":
        amount = chance.choice((-86_400, -60, 20, 60, 7_200))
    if kind not in PROCESS and chance.random() < 0.3:
        return Fault(
            kind, chance.randint(0, 8 if methods else 40), chance.randint(1, 4), "request", methods, amount
        )
    most = {"drop": 2, "clock_jump": 10}.get(kind, 4)
    return Fault(
        kind, first, chance.randint(1, max(1, min(most, blocks - 1 - first))), "block", methods, amount
    )


def random_event(chance: random.Random, block: int, points: Sequence[str]) -> Event:
    """Anything that may happen besides the falls."""
    kind = chance.choice(
        ("price", "base_fee", "base_fee", "reorg", "reorg", "pause", "kill", "kill", "kill", "kill")
    )
    if kind == "price":
        return Event("price", block, chance.randint(9_000, 10_300), chance.choice(("WETH", "WBTC")))
    if kind == "base_fee":
        return Event("base_fee", block, chance.choice((2, 10, 40, 90)))
    if kind == "reorg":
        return Event("reorg", block, chance.randint(1, 4))
    if kind == "pause":
        return Event("pause", block, chance.randint(1, 3))
    return Event("kill", block, chance.choice((1, 1, 1, 2)), chance.choice(points))
