"""What a rollup charges for bytes: asked of its own contracts, decided by, limited by, booked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from keeper.abi import checksum
from keeper.charges import Charges, next_base_fee
from keeper.commands import explain
from keeper.data_fee import DataFee, DataFeeKind
from keeper.fixed import WAD, convert_up
from keeper.lab import rollups
from keeper.lab.actors import account
from keeper.lab.chainlink import set_price
from keeper.lab.judge import judge
from keeper.lab.positions import PositionSpec, open_position
from keeper.lab.rig import Terms
from keeper.lab.world import Lab
from keeper.types import Gas, Hash, Refusal, Wei
from tests.e2e.line import Line, open_line
from tests.front import Front

ETHER = 10**18
GWEI = 10**9
BORROWER = account(1)
_E8 = 10**8


@asynccontextmanager
async def fallen(lab: Lab, folder: Path, terms: Terms, front: Front | None = None) -> AsyncIterator[Line]:
    """A keeper, and one account that it has to liquidate."""
    spec = PositionSpec(BORROWER, {"WETH": 10 * ETHER}, {"USDC": 1}, 110 * WAD // 100)
    await open_position(lab.node, lab.world.cast, lab.world.aave["3.6"], spec)
    async with open_line(lab, folder, terms, [front.url] if front else ()) as line:
        await line.step()
        await set_price(lab.node, lab.world.feeds["WETH"], 1_750 * _E8)
        yield line


def numbers_of(line: Line, report: Any) -> dict[str, Any]:
    """The only refusal of the account at a head, which must be of this reason."""
    [refusal] = [refusal for _, who, refusal in report.refused if who == BORROWER]
    return {"reason": refusal.reason, **refusal.numbers}


async def test_the_chains_own_contracts_are_asked(lab: Lab, tmp_path: Path) -> None:
    """On an OP-stack chain the fee of the whole encoded transaction, on Arbitrum the gas; elsewhere nothing."""
    async with open_line(lab, tmp_path) as line:
        chain, cast = line.parts.chain, lab.world.cast
        liquidator = line.rig.liquidator
        data = [b"\x01" * 1_000, b"\x00" * 1_000]

        def charges(kind: DataFeeKind) -> Charges:
            return Charges(chain, kind, cast.operator.address, liquidator)

        assert await charges("none").of(data, line.head) == [DataFee(), DataFee()]
        [missing, _] = await charges("op-stack").of(data, line.head)
        assert isinstance(missing, Refusal) and missing.reason == "no_data_fee"
        [missing, _] = await charges("arbitrum").of(data, line.head)
        assert isinstance(missing, Refusal) and missing.reason == "no_data_fee"

        await rollups.op_stack(lab.node, cast, 7)
        await rollups.arbitrum(lab.node, cast, 3)
        head = await chain.head()
        dear, cheap = await charges("op-stack").of(data, head)
        assert isinstance(dear, DataFee) and isinstance(cheap, DataFee)
        assert dear.wei - cheap.wei == 12 * 1_000 * 7
        # the envelope around the calldata is some fifty bytes, and a signature's 68 come on top
        assert (1_000 + 68 + 30) * 16 * 7 < dear.wei < (1_000 + 68 + 60) * 16 * 7
        assert dear.gas == cheap.gas == 0
        assert await charges("arbitrum").of(data, head) == [DataFee(gas=Gas(1_140 * 3))] * 2


async def test_configuration_and_chain_agree(lab: Lab, tmp_path: Path) -> None:
    """Each kind is found out where it is not configured, and missed where it is."""
    async with open_line(lab, tmp_path) as line:
        chain, cast = line.parts.chain, lab.world.cast
        kinds: tuple[DataFeeKind, ...] = ("none", "op-stack", "arbitrum")

        async def agreeing() -> list[str]:
            head = await chain.head()
            asked = [Charges(chain, kind, cast.operator.address, line.rig.liquidator) for kind in kinds]
            return [kind for kind, one in zip(kinds, asked, strict=True) if await one.fault(head) is None]

        assert await agreeing() == ["none"]
        interface = await rollups.arbitrum(lab.node, cast, 1)
        assert await agreeing() == ["arbitrum"]
        await lab.node.set_code({interface.address: b""})
        await rollups.op_stack(lab.node, cast, 1)
        assert await agreeing() == ["op-stack"]
        await rollups.op_stack(lab.node, cast, 1, operator_fee_wei=1)
        assert await agreeing() == []  # what cannot be priced is not traded on
        head = await chain.head()
        priced = Charges(chain, "op-stack", cast.operator.address, line.rig.liquidator)
        [answer] = await priced.of([b""], head)
        assert isinstance(answer, Refusal) and answer.reason == "operator_fee"


async def test_a_fee_in_wei_decides_and_is_booked(lab: Lab, tmp_path: Path) -> None:
    """Dearer than the profit it is refused with the numbers; else it is sent for a minimum that covers the fee, what
    it may cost counts, and the receipt's fee stands beside the expected one.
    """
    front = Front(lab.anvil.url)
    paid_wei = 123_456 * GWEI

    def answer(method: str, _params: list[Any], result: Any) -> Any:
        charged = method == "eth_getTransactionReceipt" and result
        return result | {"l1Fee": hex(paid_wei)} if charged else result

    front.answer = answer
    async with front.serve(), fallen(lab, tmp_path, Terms(data_fee="op-stack"), front) as line:
        assert numbers_of(line, await line.step())["reason"] == "no_data_fee"  # unknown is not free
        oracle = await rollups.op_stack(lab.node, lab.world.cast, 500_000 * GWEI)
        refused = numbers_of(line, await line.step())
        assert refused["reason"] == "unprofitable"
        free_raw = refused["gas_cost_raw"]
        direct = line.rig.folder / "direct.toml"
        direct.write_text(line.rig.config.read_text().replace(front.url, lab.anvil.url))
        assert (await judge(direct)).left == ()

        await oracle.send(lab.world.cast.deployer.address, "set", 50 * GWEI, 0)
        told = await explain(line.rig.config, checksum(BORROWER))
        [stages] = [each["stages"] for each in told["protocols"] if each["protocol"] == "aave-3-6"]
        told_wei = [
            int(each["numbers"]["data_fee_wei"]) for each in stages if each["stage"] in ("plan", "trial")
        ]
        about_wei, exact_wei = told_wei
        assert exact_wei * 7 // 10 < about_wei < exact_wei * 13 // 10
        report = await line.step()
        assert len(report.sent) == 1, report.refused
        [intent] = line.booked("intent")
        fee_wei = int(intent.body["data_fee_wei"])
        assert abs(fee_wei - exact_wei) < exact_wei // 50  # of another block, with other numbers in it
        assert 300 * 16 * 50 * GWEI < fee_wei < 3_000 * 16 * 50 * GWEI
        fee_raw = fee_wei * int(intent.body["native_price_usd_e8"]) * 10**6 // 10**18 // 10**8
        assert free_raw > 100 * fee_raw
        assert int(intent.body["min_profit_raw"]) >= int(intent.body["gas_cost_raw"]) + 10**6
        assert int(intent.body["gas_cost_raw"]) >= fee_raw * 9 // 10
        [signed] = line.booked("signed")
        gas_wei = int(signed.body["max_fee_wei"]) * int(signed.body["gas_limit"])
        assert int(signed.body["max_data_fee_wei"]) > fee_wei
        assert line.store.in_flight_wei() == gas_wei + int(signed.body["max_data_fee_wei"])

        await line.steps()
        [settled] = line.booked("settled")
        assert int(settled.body["data_fee_wei"]) == paid_wei
        assert int(settled.body["expected_data_fee_wei"]) == fee_wei
        receipt = await line.parts.chain.receipt(Hash(bytes.fromhex(settled.body["tx"][2:])))
        assert receipt is not None
        gas_wei = receipt.gas_used * receipt.effective_gas_price_wei
        assert int(settled.body["gas_cost_wei"]) == gas_wei + paid_wei
        assert line.ledger.gas_spent_wei(0) == gas_wei + paid_wei


async def test_a_fee_in_gas_decides_and_is_in_the_limit(lab: Lab, tmp_path: Path) -> None:
    """Arbitrum's gas for bytes is in the trial's gas and so in limit, price and minimum; the receipt's is booked."""
    front = Front(lab.anvil.url)

    def answer(method: str, _params: list[Any], result: Any) -> Any:
        charged = method == "eth_getTransactionReceipt" and result
        return result | {"gasUsedForL1": hex(1_234)} if charged else result

    front.answer = answer
    async with front.serve(), fallen(lab, tmp_path, Terms(data_fee="arbitrum"), front) as line:
        interface = await rollups.arbitrum(lab.node, lab.world.cast, 1_000_000)
        assert numbers_of(line, await line.step())["reason"] in ("unprofitable", "gas_over_limit")
        await interface.send(lab.world.cast.deployer.address, "set", 200)
        report = await line.step()
        assert len(report.sent) == 1, report.refused
        [intent] = line.booked("intent")
        data_gas, tried_gas = int(intent.body["data_gas"]), int(intent.body["tried_gas"])
        assert data_gas > 500 * 200
        [signed] = line.booked("signed")
        assert int(signed.body["gas_limit"]) == tried_gas * 130 // 100 + 60_000
        mined = await line.steps()
        assert [each.status for report in mined for each in report.settled] == [1]
        [settled] = line.booked("settled")
        # anvil charges nothing for bytes: what it took is what the trial took without them
        assert int(settled.body["gas_used"]) == tried_gas - data_gas
        assert (settled.body["data_gas"], settled.body["expected_data_gas"]) == (1_234, data_gas)


async def test_gas_for_bytes_is_counted_once(lab: Lab, tmp_path: Path) -> None:
    """A node that counts it in what it simulates tells so by a transfer of nothing; else the trial adds it."""
    front = Front(lab.anvil.url)
    extra: list[int] = [0]

    def answer(method: str, _params: list[Any], result: Any) -> Any:
        if method != "eth_simulateV1":
            return result
        [block] = result
        calls = [call | {"gasUsed": hex(int(call["gasUsed"], 16) + extra[0])} for call in block["calls"]]
        return [block | {"calls": calls}]

    front.answer = answer
    async with front.serve(), open_line(lab, tmp_path, Terms(), [front.url]) as line:
        await rollups.arbitrum(lab.node, lab.world.cast, 10)
        head = await line.parts.chain.head()
        charges = Charges(line.parts.chain, "arbitrum", lab.world.cast.operator.address, account(9))
        [(plain, fee)] = await charges.simulate([b"\x01" * 100], Gas(10**6), head, head.timestamp_s + 1)
        assert isinstance(fee, DataFee) and fee.gas == 240 * 10
        extra[0] = fee.gas
        [(counting, same)] = await charges.simulate([b"\x01" * 100], Gas(10**6), head, head.timestamp_s + 1)
        assert (counting.gas_used, same) == (plain.gas_used, fee)


async def test_a_rollups_next_base_fee_is_never_taken_too_low(lab: Lab, tmp_path: Path) -> None:
    """An eighth above the head's, however empty its block was; elsewhere exactly what EIP-1559 makes it."""
    async with open_line(lab, tmp_path) as line:
        head = replace(line.head, base_fee_wei=Wei(8 * GWEI + 1), gas_used=Gas(0))
        for kind in ("op-stack", "arbitrum"):
            charges = Charges(line.parts.chain, kind, account(1), account(2))
            assert charges.next_base_fee(head) == 9 * GWEI + 2
        plain = Charges(line.parts.chain, "none", account(1), account(2))
        assert plain.next_base_fee(head) == next_base_fee(head) < head.base_fee_wei


async def test_gas_is_priced_as_the_next_block_charges_it(lab: Lab, tmp_path: Path) -> None:
    """What a plan was priced by is base fee and tip of the block that includes it, to the wei."""
    async with fallen(lab, tmp_path, Terms()) as line:
        await lab.node.mine_on_demand()
        await line.step()
        await lab.node.mine()
        await line.steps()
        [intent, *_], [settled, *_] = line.booked("intent"), line.booked("settled")
        receipt = await line.parts.chain.receipt(Hash(bytes.fromhex(settled.body["tx"][2:])))
        assert receipt is not None and receipt.block_number == int(intent.body["block"]) + 1
        planned_wei = int(intent.body["gas_estimate"]) * receipt.effective_gas_price_wei
        prices = int(intent.body["native_price_usd_e8"]), int(intent.body["profit_price_usd_e8"])
        assert int(intent.body["gas_cost_raw"]) == convert_up(planned_wei, *prices, 18, 6)


async def test_a_share_of_the_profit_goes_to_the_tip(lab: Lab, tmp_path: Path) -> None:
    """A tenth of what would be left is paid for inclusion, on record, and the treasury keeps the rest."""
    async with fallen(lab, tmp_path, Terms(priority_share_bps=1_000)) as line:
        report = await line.step()
        assert len(report.sent) == 1, report.refused
        [intent], [signed] = line.booked("intent"), line.booked("signed")
        earned_wei = (
            int(intent.body["expected_profit_raw"])
            * 10**12
            * int(intent.body["profit_price_usd_e8"])
            // int(intent.body["native_price_usd_e8"])
        )
        tried_gas, base_wei = int(intent.body["tried_gas"]), int(intent.body["next_base_fee_wei"])
        tip_wei = int(signed.body["tip_wei"])
        assert abs(earned_wei - tried_gas * base_wei - 10 * tried_gas * tip_wei) < earned_wei // 20
        await line.steps()
        [settled] = line.booked("settled")
        receipt = await line.parts.chain.receipt(Hash(bytes.fromhex(settled.body["tx"][2:])))
        assert receipt is not None and receipt.effective_gas_price_wei == base_wei + tip_wei
        assert settled.body["profit_raw"] == settled.body["expected_profit_raw"]
        assert int(settled.body["profit_usd_e8"]) - int(settled.body["gas_cost_usd_e8"]) > 10**8
