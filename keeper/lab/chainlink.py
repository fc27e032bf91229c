"""Price feeds: Chainlink's FluxAggregator behind its EACAggregatorProxy, fed by one reporter.

FluxAggregator and not the mock, because it emits `NewRound` and `AnswerUpdated` as feeds on a live chain do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from keeper.lab.actors import Cast
from keeper.lab.artifacts import chainlink, own
from keeper.lab.node import Contract, Node, Receipt, Tx
from keeper.types import ZERO_ADDRESS, Address

DECIMALS = 8
_MIN_ANSWER, _MAX_ANSWER = 1, 10**20
_ROUND_TIMEOUT_S = 300
_SUBMIT_GAS = 400_000


@dataclass(frozen=True, slots=True)
class Feed:
    """One price feed: consumers read `proxy`, its `reporter` writes `aggregator`."""

    symbol: str
    proxy: Address
    aggregator: Address
    reporter: Address
    decimals: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a feed says: the price in `10**-decimals` dollars and when it was reported."""

    round_id: int
    price_raw: int
    updated_at_s: int


async def deploy_feed(node: Node, cast: Cast, symbol: str, price_e8: int) -> Feed:
    """A USD feed with one reporter and a first answer."""
    deployer, reporter = cast.deployer.address, cast.reporter.address
    flux, proxy = chainlink("FluxAggregator"), chainlink("EACAggregatorProxy")
    aggregator = await node.deploy(
        deployer,
        # No LINK token: reporters are paid nothing here, so it is never called.
        flux.creation_code(
            ZERO_ADDRESS,
            0,
            _ROUND_TIMEOUT_S,
            ZERO_ADDRESS,
            _MIN_ANSWER,
            _MAX_ANSWER,
            DECIMALS,
            f"{symbol} / USD",
        ),
    )
    await Contract(node, aggregator, flux.abi).send(
        deployer, "changeOracles", [], [reporter], [reporter], 1, 1, 0
    )
    facade = await node.deploy(deployer, proxy.creation_code(aggregator, ZERO_ADDRESS))
    feed = Feed(symbol, facade, aggregator, reporter, DECIMALS)
    await set_prices(node, {feed: price_e8})
    return feed


async def auction(node: Node, cast: Cast, feed: Feed, cutoff_s: int) -> Contract:
    """Put a double of Chainlink's DualAggregator behind a feed's proxy, which from now on gets the auctioned answers.

    The double; it starts with the feed's price, and its reports are anybody's.
    """
    deployer, double = cast.deployer.address, own("DualAggregatorDouble")
    price_e8 = (await latest(node, feed)).price_raw
    code = double.creation_code(f"{feed.symbol} / USD", feed.proxy, cutoff_s, price_e8)
    aggregator = await node.deploy(deployer, code)
    proxy = Contract(node, feed.proxy, chainlink("EACAggregatorProxy").abi)
    await proxy.send(deployer, "proposeAggregator", aggregator)
    await proxy.send(deployer, "confirmAggregator", aggregator)
    return Contract(node, aggregator, double.abi)


async def set_price(node: Node, feed: Feed, price_e8: int) -> Receipt:
    """Report a price, as a new round in a new block. Other feeds keep theirs, and grow stale as time passes."""
    return (await set_prices(node, {feed: price_e8}))[0]


async def set_prices(node: Node, prices_e8: Mapping[Feed, int]) -> list[Receipt]:
    """Report several prices in one block."""
    txs = []
    abi = chainlink("FluxAggregator").abi
    for feed, price_e8 in prices_e8.items():
        contract = Contract(node, feed.aggregator, abi)
        round_id = int(await contract.read("latestRound")) + 1
        txs.append(contract.tx(feed.reporter, "submit", round_id, price_e8, gas=_SUBMIT_GAS))
    return await _in_one_block(node, txs)


async def latest(node: Node, feed: Feed) -> Answer:
    """What the feed's consumers read now."""
    proxy = Contract(node, feed.proxy, chainlink("EACAggregatorProxy").abi)
    round_id, answer, _, updated_at, _ = await proxy.read("latestRoundData")
    return Answer(round_id, answer, updated_at)


async def _in_one_block(node: Node, txs: list[Tx]) -> list[Receipt]:
    abi = chainlink("FluxAggregator").abi
    return [await node.send(txs[0], abi)] if len(txs) == 1 else await node.send_all(txs, abi)
