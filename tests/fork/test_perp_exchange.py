"""The reference exchange on a chain: random traders, crashes, keepers; the books close to the last unit."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

from keeper.errors import ExecutionError
from keeper.fixed import WAD
from keeper.lab.actors import account
from keeper.lab.chainlink import set_prices
from keeper.lab.node import Contract, Node
from keeper.lab.perp_exchange import (
    FLAT,
    HOUSE,
    MARKETS,
    TIERED,
    ExchangeParameters,
    PerpExchange,
    TraderSpec,
    deploy_perp_exchange,
    exchange_of,
    open_accounts,
    random_traders,
    trade_tx,
)
from keeper.lab.tokens import balance_of
from keeper.lab.world import Lab
from keeper.types import Log

E8 = 10**8


@pytest.fixture
async def exchange(lab: Lab) -> PerpExchange:
    """The exchange with both markets and a rich house."""
    return await deploy_perp_exchange(lab.node, lab.world.cast, lab.world.tokens["USDC"], lab.world.feeds)


async def held_less_owed(node: Node, exchange: PerpExchange) -> int:
    """Tokens held less the sum of equity, fund and fees, in units of 1e-18."""
    contract = exchange_of(node, exchange)
    owed = int(await contract.read("fund")) + int(await contract.read("fees"))
    for number in range(int(await contract.read("accountCount"))):
        owed += (await contract.read("assess", number))[0]
    scale = int(await contract.read("SCALE"))
    return await balance_of(node, exchange.token, exchange.address) * scale - owed


async def test_the_exchange_goes_by_what_it_was_given(lab: Lab, exchange: PerpExchange) -> None:
    """Every parameter stands where it belongs, in the contract's order."""
    contract = exchange_of(lab.node, exchange)
    fields = _components(contract, "parameters")
    given = ExchangeParameters()
    assert await contract.read("parameters") == tuple(getattr(given, _snake(name)) for name in fields)
    fields = _components(contract, "parametersOf")
    for symbol, market in {"WETH": TIERED, "WBTC": FLAT}.items():
        read = dict(zip(fields, await contract.read("parametersOf", exchange.market(symbol)), strict=True))
        assert read.pop("feed") == lab.world.feeds[symbol].proxy
        assert read == {name: getattr(market, _snake(name)) for name in read}
    assert (await contract.read("liveOf", exchange.market("WETH")))[0] == 2000 * WAD


async def test_random_traders_stand_where_they_wanted(lab: Lab, exchange: PerpExchange) -> None:
    """All of them open; sizes are as asked, none is liquidatable, and the house holds the opposite."""
    specs = random_traders(random.Random(1), exchange, lab.world.prices_e8, 12)
    numbers = await open_accounts(lab.node, lab.world.cast, exchange, specs)
    contract = exchange_of(lab.node, exchange)
    house = dict.fromkeys(exchange.markets, 0)
    for number, spec in zip(numbers, specs, strict=True):
        equity, _, initial, _, required = await contract.read("assess", number)
        assert equity >= max(initial, required)
        owner, isolated, flagged, *_ = await contract.read("accountOf", number)
        assert (owner, isolated, flagged) == (spec.owner, spec.isolated, False)
        for symbol, size in spec.sizes.items():
            assert (await contract.read("holding", number, exchange.market(symbol)))[0] == size
            house[symbol] -= size
    assert any(spec.isolated for spec in specs) and any(len(spec.sizes) > 1 for spec in specs)
    for symbol, size in house.items():
        assert (await contract.read("holding", HOUSE, exchange.market(symbol)))[0] == size
    assert 0 <= await held_less_owed(lab.node, exchange) < 10_000


async def test_a_keeper_is_paid_as_quoted(lab: Lab, exchange: PerpExchange) -> None:
    """After a fall, every liquidation does what its quote said, until nobody is liquidatable."""
    specs = random_traders(random.Random(2), exchange, lab.world.prices_e8, 8)
    numbers = await open_accounts(lab.node, lab.world.cast, exchange, specs)
    await _fall(lab, 6)
    contract, keeper = exchange_of(lab.node, exchange), lab.world.cast.liquidator.address
    paid = 0
    for number in numbers:
        for symbol in exchange.markets:
            market = exchange.market(symbol)
            while (quote := await contract.read("quoteLiquidation", number, market))[1]:
                if quote[7] or not quote[2]:
                    break
                before = await balance_of(lab.node, exchange.token, keeper)
                receipt = await contract.send(keeper, "liquidate", number, market)
                (log,) = _events(contract, receipt.logs, "Liquidated")
                reward = log["quote"][4]
                got = await balance_of(lab.node, exchange.token, keeper) - before
                assert got * 10**12 == reward
                # A second has passed since the quote, with its funding.
                assert abs(reward - quote[4]) < WAD // 100
                paid += 1
    assert paid >= 2
    assert 0 <= await held_less_owed(lab.node, exchange) < 100_000


async def test_losses_are_borne_and_the_books_close(lab: Lab) -> None:
    """A crash that bankrupts longs is borne by the fund, by winners and by everybody, and nobody is left bankrupt."""
    exchange = await deploy_perp_exchange(
        lab.node, lab.world.cast, lab.world.tokens["USDC"], lab.world.feeds, MARKETS
    )
    size = 40 * WAD
    specs = [
        TraderSpec(account(1), 10_000 * 10**6, {"WETH": size}),
        TraderSpec(account(2), 10_000 * 10**6, {"WETH": -size // 2}),
    ]
    loser, winner = await open_accounts(lab.node, lab.world.cast, exchange, specs)
    await _fall(lab, 20)
    contract, market = exchange_of(lab.node, exchange), exchange.market("WETH")
    assert (await contract.read("assess", loser))[0] < 0
    with pytest.raises(ExecutionError, match="FundShort"):
        await contract.send(lab.world.cast.liquidator.address, "liquidate", loser, market)
    receipt = await contract.send(lab.world.cast.liquidator.address, "deleverage", loser, market, 100)
    (deleveraged,) = _events(contract, receipt.logs, "Deleveraged")
    (socialized,) = _events(contract, receipt.logs, "Socialized")
    assert deleveraged["winner"] == winner and deleveraged["size"] == size // 2
    assert abs(deleveraged["loss"] - socialized["loss"]) <= 1
    assert (await contract.read("assess", loser))[0] == 0
    with pytest.raises(ExecutionError, match="WithdrawalsGated"):
        await contract.send(specs[1].owner, "withdraw", winner, 1, specs[1].owner)
    assert 0 <= await held_less_owed(lab.node, exchange) < 100_000


async def test_a_trade_without_margin_says_why(lab: Lab, exchange: PerpExchange) -> None:
    """The exchange's own reason reaches whoever drives it."""
    spec = TraderSpec(account(1), 100 * 10**6)
    (number,) = await open_accounts(lab.node, lab.world.cast, exchange, [spec])
    with pytest.raises(ExecutionError, match="MarginTooLow"):
        await lab.node.send(
            trade_tx(lab.node, exchange, spec.owner, number, "WETH", 10 * WAD),
            exchange_of(lab.node, exchange).abi,
        )


async def _fall(lab: Lab, percent: int) -> None:
    prices = {
        lab.world.feeds[symbol]: lab.world.prices_e8[symbol] * (100 - percent) // 100 for symbol in MARKETS
    }
    await set_prices(lab.node, prices)


def _events(contract: Contract, logs: tuple[Log, ...], name: str) -> list[Mapping[str, Any]]:
    event = contract.abi.event(name)
    return [
        event.decode(log) for log in logs if log.address == contract.address and log.topics[0] == event.topic
    ]


def _components(contract: Contract, function: str) -> list[str]:
    """The names of a returned struct's fields."""
    (entry,) = (
        entry for entry in contract.abi._entries if entry["type"] == "function" and entry["name"] == function
    )
    return [part["name"] for part in entry["outputs"][0]["components"]]


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name)
