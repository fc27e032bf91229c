from __future__ import annotations

from pathlib import Path

import pytest

from keeper.errors import AdapterError, RpcError
from keeper.fixed import BPS, mul_div_up
from keeper.lab.curie import part_of, perp_curie, trade
from keeper.lab.node import Contract, Tx
from keeper.lab.tokens import balance_of, erc20, mint
from keeper.lab.world import Lab
from keeper.protocols.perp_curie import PerpCurie, PerpCurieConfig
from keeper.types import Address, BlockNumber, BlockTime, Health, Marks, Option, Outcome, Refusal
from tests.protocols.perp_curie_takeover import ETHER, OTHER, TRADER, USDC, Scene, taking


def _base(scene: Scene, symbol: str = "WETH") -> Address:
    return scene.follower.curie.markets[symbol].base_token


async def _governed(scene: Scene, name: str, function: str, *arguments: object) -> None:
    """The exchange's owner changes a setting."""
    part = part_of(scene.follower.node, scene.follower.curie, name)
    await part.send(scene.lab.world.cast.deployer.address, function, *arguments)


async def _whole(scene: Scene) -> tuple[Option, Marks]:
    """The largest takeover of the trader, for the next block."""
    _, marks, health = await scene.look(TRADER)
    return scene.options(health, marks)[0], marks


async def _refused(scene: Scene, reason: str, code: str) -> Refusal:
    """The largest takeover is refused for this reason, and the exchange reverts with this code."""
    option, marks = await _whole(scene)
    refusal = await scene.outcome(option, marks)
    assert isinstance(refusal, Refusal), refusal
    assert (refusal.stage, refusal.reason) == ("outcome", reason)
    assert refusal.numbers["market"] == "vWETH"
    happened = await scene.tried(option, marks)
    assert isinstance(happened, str) and code.encode().hex() in happened, happened
    return refusal


async def test_the_exchange_s_own_pause_ends_every_option(lab: Lab, tmp_path: Path) -> None:
    """While the clearing house or the vault is paused nothing is offered, and the reason says which is."""
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        deployer = lab.world.cast.deployer.address
        for name, paused in (("clearing_house", "ClearingHouse"), ("vault", "Vault")):
            node, curie = scene.follower.node, scene.follower.curie
            at = curie.clearing_house if paused == "ClearingHouse" else curie.vault
            contract = Contract(node, at, perp_curie(paused).abi)
            await contract.send(deployer, "pause")
            _, marks, health = await scene.look(TRADER)
            position = scene.follower.book.position(health.key)
            [refusal] = scene.follower.adapter.options(position, health, marks)
            assert isinstance(refusal, Refusal) and refusal.reason == "protocol_paused"
            assert [which for which, is_it in refusal.numbers.items() if is_it] == [name]
            await contract.send(deployer, "unpause")
        option, marks = await _whole(scene)
        assert isinstance(await scene.outcome(option, marks), Outcome)


async def test_a_stale_feed_refuses(lab: Lab, tmp_path: Path) -> None:
    """A market whose Chainlink answer is older than allowed has no mark price, to the second."""
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        await scene.follower.fund([OTHER], 500 * USDC)
        await trade(lab.node, scene.follower.curie, OTHER, "WBTC", ETHER // 40)
        await scene.follower.set_price({"WETH": 0.9})
        updated = await scene.follower.node.head()
        await scene.follower.node.advance(90_000)
        await scene.follower.set_price({"WBTC": 1.0})
        head = await scene.follower.follow()
        marks = await scene.follower.marks(head)
        assert head.timestamp_s - updated.timestamp_s > 90_000
        assert scene.follower.assessed(TRADER, marks) == Refusal("assess", "stale_price", {"market": "vWETH"})
        assert isinstance(scene.follower.assessed(OTHER, marks), Health)


async def test_a_market_without_history_is_not_ready(lab: Lab, tmp_path: Path) -> None:
    """Where a pool does not reach back as far as the mark price averages, the exchange reverts with OLD and the market
    is not ready; it is again when it does.
    """
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        await _governed(scene, "ClearingHouseConfig", "setMarkPriceMarketTwapInterval", 86_400)
        head = await scene.follower.follow()
        answer = await scene.follower.chain.read(scene.follower.adapter.marks(head), head.hash)
        assert answer == Refusal(
            "marks", "no_market", {"vWETH": "market_not_ready", "vWBTC": "market_not_ready"}
        )
        balance = part_of(lab.node, scene.follower.curie, "AccountBalance")
        with pytest.raises(RpcError, match="OLD"):
            await balance.read("getMarkPrice", _base(scene))
        # what is read of accounts meanwhile is not lost: their profit comes from storage
        before = scene.follower.book.position(scene.follower.key(TRADER)).words
        head = await scene.follower.node.head()
        await scene.follower.refresh([scene.follower.key(TRADER)], head)
        assert scene.follower.book.position(scene.follower.key(TRADER)).words == before
        await _governed(scene, "ClearingHouseConfig", "setMarkPriceMarketTwapInterval", 1_800)
        marks = await scene.follower.marks(await scene.follower.follow())
        assert isinstance(scene.follower.assessed(TRADER, marks), Health)


async def test_too_little_margin_is_refused(lab: Lab, tmp_path: Path) -> None:
    """Less margin than the exchange asks for is refused with what is needed, to the unit: CH_NEFCI."""
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        option, marks = await _whole(scene)
        needed_raw = -(-option.detail.margin_wad // 10**12)
        assert needed_raw < option.max_repay_raw
        assert isinstance(await scene.outcome(option, marks, needed_raw), Outcome)
        refusal = await scene.outcome(option, marks, needed_raw - 1)
        assert isinstance(refusal, Refusal) and refusal.reason == "margin_short"
        short = await scene.tried(option, marks, repay_raw=needed_raw - 1)
        assert isinstance(short, str) and b"CH_NEFCI".hex() in short
        assert isinstance(await scene.tried(option, marks, repay_raw=needed_raw), int)


async def test_an_empty_insurance_fund_is_refused(lab: Lab, tmp_path: Path) -> None:
    """Where the account would owe more than the insurance fund has, nothing can be taken over: CH_IIC."""
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 420)
        await scene.sink(TRADER, symbol="WETH")
        option, marks = await _whole(scene)
        outcome = await scene.outcome(option, marks)
        assert isinstance(outcome, Outcome)
        # of an account that owes, the whole penalty is the liquidator's
        assert option.detail.discount_wad == option.detail.penalty_wad
        premium_raw = mul_div_up(outcome.repay_raw, 5, BPS)
        assert await scene.tried(option, marks) == outcome.seize_raw - outcome.repay_raw - premium_raw
        node, fund, usdc = scene.follower.node, scene.follower.curie.insurance_fund, lab.world.tokens["USDC"]
        await node.set_balances([fund])
        held = await balance_of(node, usdc, fund)
        tx = Tx(fund, usdc.address, erc20(node, usdc).abi.function("transfer").encode(OTHER, held))
        await node.send(tx)
        refusal = await _refused(scene, "insurance_fund_short", "CH_IIC")
        assert int(refusal.numbers["owed_wad"]) > int(refusal.numbers["fund_wad"])


async def test_a_full_vault_is_refused(lab: Lab, tmp_path: Path) -> None:
    """A deposit over the vault's cap is refused: V_GTSTBC."""
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        held = await balance_of(scene.follower.node, lab.world.tokens["USDC"], scene.follower.curie.vault)
        await _governed(scene, "ClearingHouseConfig", "setSettlementTokenBalanceCap", held + 1_000)
        refusal = await _refused(scene, "deposit_cap", "V_GTSTBC")
        assert refusal.numbers["cap_raw"] == held + 1_000


async def test_a_market_without_trades_is_refused(lab: Lab, tmp_path: Path) -> None:
    """Where governance allows no tick to be crossed, nothing can be closed: EX_MIP."""
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        await _governed(scene, "Exchange", "setMaxTickCrossedWithinBlock", _base(scene), 0)
        await _refused(scene, "market_closed_for_trades", "EX_MIP")


async def test_a_close_that_leads_from_the_index_is_refused(lab: Lab, tmp_path: Path) -> None:
    """A close that would lead the pool's price further from the index than allowed is refused: EX_OPB."""
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        await scene.follower.set_price({"WETH": 1.2})
        await _governed(scene, "MarketRegistry", "setMarketMaxPriceSpreadRatio", _base(scene), 1)
        await _refused(scene, "over_price_spread", "EX_OPB")


async def test_a_deposit_in_the_liquidator_s_name_stops_nothing(lab: Lab, tmp_path: Path) -> None:
    """Anybody may deposit for the Liquidator: it comes along, to the unit, and makes no losing takeover pay."""
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        option, marks = await _whole(scene)
        without = await scene.outcome(option, marks)
        await _gift(scene)
        option, marks = await _whole(scene)
        outcome = await scene.outcome(option, marks)
        assert isinstance(without, Outcome) and isinstance(outcome, Outcome)
        assert abs(outcome.seize_raw - without.seize_raw - USDC) < USDC // 10
        await _governed(scene, "MarketRegistry", "setFeeRatio", _base(scene), 13_000)
        loss, marks = await _whole(scene)
        refusal = await scene.outcome(loss, marks)
        assert isinstance(refusal, Refusal) and refusal.reason == "losing_takeover"
        await _governed(scene, "MarketRegistry", "setFeeRatio", _base(scene), 1_000)
        option, marks = await _whole(scene)
        outcome = await scene.outcome(option, marks)
        assert isinstance(outcome, Outcome)
        expected = outcome.seize_raw - outcome.repay_raw - mul_div_up(outcome.repay_raw, 5, BPS)
        gained, _ = await scene.execute(option)
        assert gained == expected
        assert await scene.left_over() == ([], 0)


async def _gift(scene: Scene) -> None:
    """Somebody deposits a dollar for the Liquidator."""
    node, curie, usdc = scene.follower.node, scene.follower.curie, scene.lab.world.tokens["USDC"]
    await mint(node, scene.lab.world.cast, usdc, OTHER, USDC)
    await node.set_balances([OTHER])
    await erc20(node, usdc).send(OTHER, "approve", curie.vault, USDC)
    await part_of(node, curie, "Vault").send(OTHER, "depositFor", scene.rig.liquidator, usdc.address, USDC)


async def test_without_a_liquidator_nothing_is_offered(lab: Lab, tmp_path: Path) -> None:
    """Before the contracts are deployed accounts are judged, but nothing is planned."""
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        _, marks, health = await scene.look(TRADER)
        config = PerpCurieConfig(name="curie", clearing_house=scene.follower.curie.clearing_house)
        adapter = PerpCurie(config)
        await scene.follower.chain.read(adapter.load(), marks.at.hash)
        position = scene.follower.book.position(health.key)
        [refusal] = adapter.options(position, health, marks)
        assert isinstance(refusal, Refusal) and refusal.reason == "no_liquidator"


async def test_another_layout_refuses_to_load(lab: Lab, tmp_path: Path) -> None:
    """Storage is read by place: where the words before it are not what the contracts say, nothing is loaded. Marks of
    the past are refused loudly too.
    """
    async with taking(lab, tmp_path) as scene:
        await scene.fall(TRADER, 2 * ETHER, 500)
        head = await scene.follower.follow()
        past = BlockTime(BlockNumber(head.number), head.hash, head.timestamp_s - 1)
        with pytest.raises(AdapterError, match="after the timestamp"):
            await scene.follower.chain.read(scene.follower.adapter.marks(past), head.hash)
        await lab.node.set_storage([(scene.follower.curie.exchange, 206, 1)])
        await lab.node.mine()
        head = await lab.node.head()
        with pytest.raises(AdapterError, match="not laid out"):
            await scene.follower.chain.read(scene.follower.adapter.load(), head.hash)
