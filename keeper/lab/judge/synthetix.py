"""Synthetix V2x perps: positions flagged and liquidated for real on the fork.

The second step is gated by the market, by the position's size and by the skew. A gated position can be flagged and
pays later, so what both steps would pay is learnt with the gate lifted by its own owner, on the fork.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keeper.abi import Abi, load
from keeper.errors import AdapterError
from keeper.lab.judge.accounts import read_token
from keeper.lab.judge.evidence import Done, Evidence, Step
from keeper.lab.judge.perps import Trader, Ways
from keeper.lab.judge.point import Point, moved, together
from keeper.lab.judge.scene import JUDGE, Scene
from keeper.lab.judge.terms import Listed
from keeper.lab.judge.verdict import Amount
from keeper.types import ZERO_ADDRESS, Address, Token, hex_of

_MARKET: Final = load("SynthetixPerpsMarket")
_STATE: Final = load("SynthetixPerpsState")
_RESOLVER: Final = load("SynthetixAddressResolver")
_SYNTH: Final = load("SynthetixSynth")
_ERC20: Final = load("Erc20")
_FLAG, _LIQUIDATE = _MARKET.function("flagPosition"), _MARKET.function("liquidatePosition")
_UNSAFE: Final = _MARKET.function("canLiquidate")
_POSITION, _FLAGGER = _STATE.function("positions"), _STATE.function("positionFlagger")
_SETTINGS: Final = Abi.from_json(
    [
        {
            "type": "function",
            "name": "owner",
            "inputs": [],
            "outputs": [{"name": "", "type": "address"}],
        },
        *(
            {
                "type": "function",
                "name": name,
                "inputs": [{"name": "key", "type": "bytes32"}, {"name": "value", "type": "uint256"}],
                "outputs": [],
            }
            for name in ("setMaxPD", "setMaxLiquidationDelta")
        ),
    ]
)
_GATES: Final = tuple(_SETTINGS.function(name) for name in ("setMaxPD", "setMaxLiquidationDelta"))
_LIFTED: Final = 2**128
_SIZE: Final = 4  # its place in a position
_NO_ROUTE: Final = ("no_route", "sUSD cannot be sold")

# What Liquidator.execute costs beside the calls: feeds, books and the end check; there is no loan.
_OTHER_GAS: Final = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class Synthetix:
    """One market as it stands on chain; `owner` sets its gates in `settings`."""

    name: str
    proxy: Address
    state: Address
    settings: Address
    owner: Address
    key: bytes
    asset: Token
    susd: Token

    async def traders(self, evidence: Evidence) -> tuple[int, list[Trader]]:
        """Whoever's position ever changed, by the market's own events, and the market's word on each."""
        logs = await evidence.logs([_MARKET.event("PositionModified").topic], self.proxy)
        accounts = list(dict.fromkeys(Address(log.topics[2][12:]) for log in logs))
        positions = await evidence.read_all(_POSITION, [(self.state, who) for who in accounts])
        holders = [who for who, held in zip(accounts, positions, strict=True) if held[_SIZE]]
        unsafe = await evidence.read_all(_UNSAFE, [(self.proxy, who) for who in holders])
        flaggers = await evidence.read_all(_FLAGGER, [(self.state, who) for who in holders])
        return len(holders), [
            Trader(self, who, None, (self.susd,))
            for who, bad, flagger in zip(holders, unsafe, flaggers, strict=True)
            if bad or flagger != ZERO_ADDRESS
        ]

    async def ways(self, scene: Scene, trader: Trader) -> Ways:
        """Both steps at once, or the one still to be taken; where they are gated, each alone with the gate lifted."""
        who, evidence = trader.address, scene.evidence
        flagger = await evidence.read(_FLAGGER, self.state, who)
        size = (await evidence.read(_POSITION, self.state, who))[_SIZE]
        flag, liquidate = _FLAG.call(self.proxy, who), _LIQUIDATE.call(self.proxy, who)
        calls = [flag, liquidate] if flagger == ZERO_ADDRESS else [liquidate]
        # Whoever flagged is paid for it at the liquidation: where the Liquidator did, it must be who goes on.
        actor = scene.terms.liquidator if flagger == scene.terms.liquidator else JUDGE
        lifting = [Step(self.owner, self.settings, gate.encode(self.key, _LIFTED)) for gate in _GATES]
        now = self._point(size, [], [together(actor, calls)])
        later = self._point(size, lifting, [together(actor, [call]) for call in calls])
        done_now, done_later = await evidence.simulate([now.steps, later.steps])
        refused = next((_reason(step) for step in done_now if not step.ok), None)
        if refused is None:
            if actor != JUDGE:
                reward_raw = moved(done_now, self.susd, "to", actor)
                calls.append(_ERC20.function("transfer").call(self.susd.address, JUDGE, reward_raw))
                now = self._point(size, [], [together(actor, calls)])
                [done_now] = await evidence.simulate([now.steps])
            return Ways((now.as_run(done_now),), _NO_ROUTE, tried=1)
        if not all(step.ok for step in done_later):
            return Ways((), ("protocol_refuses", refused), tried=1)
        if flagger != ZERO_ADDRESS:
            return Ways((), ("gated", refused), tried=1)
        return Ways((later.as_run(done_later),), _NO_ROUTE, f"gated, to be flagged: {refused}", tried=1)

    def _point(self, size: int, setup: Sequence[Step], acts: Sequence[Step]) -> Point:
        return Point(
            debt=self.susd,
            collateral=self.susd,
            loan=None,
            borrowed_raw=0,
            setup=tuple(setup),
            acts=tuple(acts),
            other_gas=_OTHER_GAS * len(acts),
            position=Amount(self.asset, size),
        )


async def read_synthetix(evidence: Evidence, listed: Listed) -> Synthetix:
    """A market's contracts. Raises `AdapterError` when the proxy is not a Synthetix V2x perps market's."""
    proxy = listed.address
    _, part, _ = await evidence.read(_MARKET.function("getRoute"), proxy, _LIQUIDATE.selector)
    if part == ZERO_ADDRESS:
        raise AdapterError(f"{hex_of(proxy)} routes no liquidation: is this a Synthetix V2x perps market?")
    state = await evidence.read(_MARKET.function("marketState"), part)
    book = await evidence.read(_MARKET.function("resolver"), part)
    named = _RESOLVER.function("getAddress")
    synth, settings = [
        await evidence.read(named, book, name.ljust(32, b"\0"))
        for name in (b"SynthsUSD", b"PerpsV2MarketSettings")
    ]
    key, base = [await evidence.read(_MARKET.function(name), proxy) for name in ("marketKey", "baseAsset")]
    asset = Token(proxy, base.rstrip(b"\0").decode("ascii", "replace"), 18)
    susd = await read_token(evidence, await evidence.read(_SYNTH.function("proxy"), synth))
    owner = await evidence.read(_SETTINGS.function("owner"), settings)
    return Synthetix(listed.name, proxy, state, settings, owner, key, asset, susd)


def _reason(done: Done) -> str:
    return _MARKET.error(done.output) or hex_of(done.output)
