"""A running daemon and its providers: they fail, lie, lag and come back while it works."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import set_price
from keeper.lab.judge import judge
from keeper.lab.positions import PositionSpec, open_positions
from keeper.lab.rig import Rig, Terms, make_rig
from keeper.lab.world import Lab
from keeper.ledger import Booked, Ledger
from keeper.store import Store
from tests.conftest import OpenLab
from tests.e2e.process import Daemon, daemon, until
from tests.front import Front

ETHER = 10**18
_E8 = 10**8
_BLOCK_S = 1


@dataclass(slots=True)
class Scene:
    """A chain with a block every second, a keeper's files, and the providers in them."""

    lab: Lab
    rig: Rig
    fronts: Sequence[Front]

    async def open(self, *numbers: int) -> None:
        """10 WETH each against USDC at 110 %."""
        specs = [
            PositionSpec(account(number), {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
            for number in numbers
        ]
        await open_positions(self.lab.node, self.lab.world.cast, self.lab.world.aave["3.0"], specs)

    async def fall(self) -> None:
        """Every position opened at 110 % is unsafe."""
        await set_price(self.lab.node, self.lab.world.feeds["WETH"], 1_750 * _E8)

    def booked(self, *kinds: str) -> list[Booked]:
        """Entries of these kinds, oldest first."""
        with Store.open(f"sqlite:///{self.rig.folder}/keeper.db", read_only=True) as store:
            return Ledger(store).entries(None, kind=kinds)[::-1]

    def warned(self, name: str) -> list[str]:
        """Whom warnings of this name are about, oldest first."""
        return [each.body["provider"] for each in self.booked("warning") if each.body["name"] == name]

    def settled(self, count: int) -> Callable[[], bool]:
        """Whether so many liquidations are settled."""
        return lambda: len(self.booked("settled")) >= count


@asynccontextmanager
async def scene(opened: OpenLab, folder: Path, providers: int, quorum: int) -> AsyncIterator[Scene]:
    """Honest providers before one node."""
    lab = await opened()
    rig = await make_rig(lab, folder, Terms())
    async with AsyncExitStack() as stack:
        fronts = [await stack.enter_async_context(Front(lab.anvil.url).serve()) for _ in range(providers)]
        urls = ", ".join(f'"{front.ws_url}"' for front in fronts)
        text = rig.config.read_text()
        text = text.replace(f'rpc_urls = ["{lab.anvil.ws_url}"]', f"rpc_urls = [{urls}]\nquorum = {quorum}")
        rig.config.write_text(text)
        made = Scene(lab, rig, fronts)
        await made.open(0)
        await lab.node.mine_every(_BLOCK_S)
        yield made


async def _ends_well(made: Scene, one: Daemon) -> None:
    assert one.running and await one.stop() == 0
    assert (await judge(made.rig.config)).ok


async def test_fewer_than_a_quorum_is_a_stop_that_ends_by_itself(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """One of three providers is left and two must agree: nothing is sent, that is booked, and it goes on by itself."""
    async with scene(fresh_lab, tmp_path, 3, 2) as made, daemon(tmp_path) as one:
        gone = made.fronts[:2]
        for front in gone:
            front.open = False
            await front.hang_up()
        await made.fall()
        await until(lambda: len(made.booked("refusal")) >= 1, "a refusal")
        for refusal in made.booked("refusal"):
            assert refusal.body["stage"] == "follow" and refusal.body["reason"] in ("no_heads", "no_quorum")
            assert "1 of the 2 providers that must agree answered" in refusal.body["numbers"]["error"]
        assert not made.booked("intent")
        gone[0].open = True
        await until(made.settled(1), "a liquidation with two of three")
        await _ends_well(made, one)


async def test_the_stale_the_foreign_the_forked_and_the_liar_are_dropped(
    fresh_lab: OpenLab, tmp_path: Path
) -> None:
    """Four of six providers go wrong, each in its own way: the record names them all, and the work goes on."""
    async with scene(fresh_lab, tmp_path, 6, 2) as made, daemon(tmp_path) as one:
        stale, foreign, forked, lying = made.fronts[:4]
        old = await made.lab.node.rpc.request("eth_getBlockByNumber", "latest", False)

        def standing(method: str, params: list[Any], result: Any) -> Any:
            return old if method == "eth_getBlockByNumber" and params[0] == "latest" else result

        stale.announce, stale.answer = (lambda _: None), standing
        foreign.answer = lambda method, _, result: "0x1" if method == "eth_chainId" else result
        await foreign.hang_up()
        lying.answer = lambda method, _, result: result[:-2] + "00" if method == "eth_call" else result
        with made.lab.anvil.fork(block_time_s=_BLOCK_S) as other:
            forked.node_url = other.url
            await forked.hang_up()
            wrong = {front.ws_url for front in (stale, foreign, forked, lying)}
            await until(lambda: set(made.warned("provider_dropped")) == wrong, "all four to be dropped")
            await made.fall()
            await until(made.settled(1), "a liquidation")
            for front in made.fronts:
                front.node_url, front.answer = made.lab.anvil.url, lambda _, __, result: result
            await _ends_well(made, one)
        warnings = [each.body for each in made.booked("warning") if each.body["name"] == "provider_dropped"]
        why = {body["provider"]: body["detail"] for body in reversed(warnings)}
        assert "is behind" in why[stale.ws_url]
        assert "serves chain 1" in why[foreign.ws_url]
        assert "on a fork" in why[forked.ws_url]
        assert "lied" in why[lying.ws_url]


async def test_what_happened_while_the_socket_was_down_is_known(fresh_lab: OpenLab, tmp_path: Path) -> None:
    """An account that appears between two connections is found by ranged logs and liquidated."""
    async with scene(fresh_lab, tmp_path, 1, 1) as made, daemon(tmp_path) as one:
        [front] = made.fronts
        front.open = False
        await front.hang_up()
        await made.open(1)
        await one.logs("heads_interrupted", 2)
        front.open = True
        await made.fall()
        await until(made.settled(2), "both liquidations")
        assert made.warned("heads_resumed") == [""]
        await _ends_well(made, one)
    warnings = [each.body["detail"] for each in made.booked("warning")]
    assert sum(text.startswith("chain.quorum is 1: one provider is believed") for text in warnings) == 1
