// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {LiquidatorSetup} from "./LiquidatorSetup.sol";
import {LendingPool, MarginExchange} from "./mocks/Protocols.sol";

/// @notice Several accounts in one plan, of which some may fail.
contract LiquidatorBatchTest is LiquidatorSetup {
    uint256 internal constant CALL_GAS = 200_000;
    LendingPool internal cold;

    function setUp() public override {
        super.setUp();
        allow(address(pool), LendingPool.burn.selector, LENDING);
        allow(address(pool), LendingPool.shout.selector, LENDING);
        allow(address(pool), LendingPool.want.selector, LENDING);
        cold = new LendingPool();
        allow(address(cold), LendingPool.want.selector, LENDING);
    }

    /// @dev Usual liquidations, all of which may fail, with the loan for all of them.
    function batch(uint256 count) internal view returns (ILiquidator.Plan memory plan) {
        plan = usualPlan();
        plan.calls = new ILiquidator.Call[](count);
        for (uint256 i; i < count; ++i) {
            plan.calls[i] = seizing(address(usdc), REPAY, address(weth), SEIZE);
            plan.calls[i].gasLimit = CALL_GAS;
        }
        plan.flashAmount = REPAY * count;
        plan.minProfit = 0;
    }

    function fails(ILiquidator.Plan memory plan, uint256 index, bytes memory data) internal pure {
        plan.calls[index].data = data;
    }

    /// @notice Calls that fail are told, with their reason, and the others go on; the loan taken for them is repaid.
    function testFuzz_someFail(uint256 count, uint256 failing) public {
        count = bound(count, 1, 8);
        failing = bound(failing, 0, 2 ** count - 2);
        ILiquidator.Plan memory plan = batch(count);
        bytes memory reason = abi.encodeWithSelector(LendingPool.Unhealthy.selector, stranger);
        uint256 done = count;
        for (uint256 i; i < count; ++i) {
            if (failing >> i & 1 == 0) continue;
            fails(plan, i, abi.encodeCall(LendingPool.refuse, (stranger)));
            --done;
            vm.expectEmit(address(liquidator));
            emit ILiquidator.CallSkipped("plan", i, reason);
        }
        // 46.85 of each sale, less the premium of the loan for all.
        uint256 profit = done * 46.85e6 - count * 0.5e6;
        assertEq(execute(plan), profit, "profit");
        assertEq(usdc.balanceOf(treasury), profit, "treasury");
        assertNothingLeft();
    }

    /// @notice One that must not fail still undoes all, wherever it stands.
    function test_othersMustNotFail() public {
        for (uint256 i; i < 2; ++i) {
            ILiquidator.Plan memory plan = batch(2);
            plan.calls[i].gasLimit = 0;
            fails(plan, i, abi.encodeCall(LendingPool.refuse, (stranger)));
            bytes memory reason = abi.encodeWithSelector(LendingPool.Unhealthy.selector, stranger);
            refused(plan, abi.encodeWithSelector(ILiquidator.CallFailed.selector, i, reason));
        }
    }

    /// @notice A plan of which nothing succeeds is no liquidation.
    function testFuzz_nothingSucceeds(uint256 count) public {
        pool.setPremiumBps(0);
        count = bound(count, 1, 4);
        ILiquidator.Plan memory plan = batch(count);
        for (uint256 i; i < count; ++i) {
            fails(plan, i, abi.encodeCall(LendingPool.refuse, (stranger)));
        }
        refused(plan, abi.encodeWithSelector(ILiquidator.NothingDone.selector));
    }

    /// @notice Where calls only make sense together none may fail.
    function testFuzz_jointlySettled(uint256 index) public {
        ILiquidator.Plan memory plan = marginPlan(100e6, 5e6);
        index = bound(index, 0, 2);
        plan.calls[index].gasLimit = CALL_GAS;
        asSafe(abi.encodeCall(ILiquidator.setSettledJointly, (MARGIN, true)));
        refused(plan, abi.encodeWithSelector(ILiquidator.MustNotFail.selector, index));
        plan.calls[index].gasLimit = 0;
        assertEq(execute(plan), 5e6 - 0.05e6, "together");
    }

    /// @notice A call gets as much gas as it was promised and no more: who burns it all sinks nobody else.
    function test_gasIsBounded() public {
        ILiquidator.Plan memory plan = batch(3);
        fails(plan, 1, abi.encodeCall(LendingPool.burn, ()));
        vm.expectEmit(address(liquidator));
        emit ILiquidator.CallSkipped("plan", 1, "");
        vm.prank(operator);
        assertEq(liquidator.execute{gas: 1_500_000}(plan), 2 * 46.85e6 - 1.5e6, "the others");

        fails(plan, 1, abi.encodeCall(LendingPool.want, (CALL_GAS + 1)));
        vm.expectEmit(address(liquidator));
        emit ILiquidator.CallSkipped("plan", 1, abi.encodeWithSelector(LendingPool.FlashFailed.selector));
        execute(plan);
    }

    /// @notice At no amount of gas does a call fail for want of it: either it gets what it was promised, or the whole
    /// plan reverts.
    function testFuzz_neverStarved(uint256 gas_) public {
        ILiquidator.Plan memory plan = batch(2);
        plan.calls[1].approveToken = address(0);
        // So much that the 64th part that is held back exceeds any other margin.
        uint256 promised = 64 * 100_000;
        plan.calls[1].gasLimit = promised;
        // Less what the callee takes before it looks.
        fails(plan, 1, abi.encodeCall(LendingPool.want, (promised - 1500)));
        bytes memory request = abi.encodeCall(ILiquidator.execute, (plan));
        gas_ = bound(gas_, promised, promised + 700_000);
        vm.recordLogs();
        vm.prank(operator);
        (bool success,) = address(liquidator).call{gas: gas_}(request);
        if (!success) return;
        assertEq(countOf(ILiquidator.CallSkipped.selector), 0, "a call starved");
    }

    /// @notice Nor at the very edge, where the call to a cold target itself must be paid for.
    function test_notStarvedAtTheEdge() public {
        ILiquidator.Plan memory plan = batch(2);
        plan.calls[1] = ILiquidator.Call(
            address(cold), address(0), 0, abi.encodeCall(LendingPool.want, (CALL_GAS - 400)), CALL_GAS
        );
        (uint256 least, uint256 most) = (CALL_GAS, 10 * CALL_GAS);
        while (most - least > 1) {
            uint256 middle = (least + most) / 2;
            (bool success,) = tried(plan, middle);
            if (success) most = middle;
            else least = middle;
        }
        for (uint256 i; i < 100; ++i) {
            (bool success, uint256 skipped) = tried(plan, most + 50 * i);
            assertTrue(success, "more gas is enough too");
            assertEq(skipped, 0, "a call starved");
        }
    }

    /// @dev Whether a plan passes with so much gas, and how many calls it skipped; taken back.
    function tried(ILiquidator.Plan memory plan, uint256 gas_) internal returns (bool success, uint256 skipped) {
        bytes memory request = abi.encodeCall(ILiquidator.execute, (plan));
        uint256 id = vm.snapshotState();
        vm.cool(address(cold));
        vm.recordLogs();
        vm.prank(operator);
        (success,) = address(liquidator).call{gas: gas_}(request);
        skipped = countOf(ILiquidator.CallSkipped.selector);
        vm.revertToState(id);
    }

    /// @notice With too little gas for the promise the plan says so.
    function test_gasTooLow() public {
        ILiquidator.Plan memory plan = batch(2);
        plan.calls[1].gasLimit = 1 << 40;
        refused(plan, ILiquidator.GasTooLow.selector);
        plan.calls[1].gasLimit = ALL;
        (bool success,) = address(this).call(abi.encodeCall(this.tryPlan, (plan)));
        assertFalse(success, "no such gas");
    }

    function tryPlan(ILiquidator.Plan memory plan) external {
        execute(plan);
    }

    /// @notice A reason is kept up to 256 bytes, however long it is, and costs no more.
    function testFuzz_reasonIsBounded(uint256 length) public {
        length = bound(length, 1, 20_000);
        ILiquidator.Plan memory plan = batch(2);
        plan.calls[0].gasLimit = 1_000_000;
        fails(plan, 0, abi.encodeCall(LendingPool.shout, (length)));
        bytes memory kept = new bytes(length < 256 ? length : 256);
        kept[0] = 0x2a;
        vm.expectEmit(address(liquidator));
        emit ILiquidator.CallSkipped("plan", 0, kept);
        execute(plan);
    }

    /// @notice What failed left no approval, so that nobody spends it later.
    function test_approvalOfTheFailed() public {
        ILiquidator.Plan memory plan = batch(2);
        // The last one, and another lender: no later approval of the pool takes its place.
        plan.flashSource = address(morpho);
        fails(plan, 1, abi.encodeCall(LendingPool.refuse, (stranger)));
        execute(plan);
        assertNothingLeft();
    }

    /// @notice Failing calls and the loan for them excuse nothing: what the others gained must still arrive.
    function testFuzz_failingBurnsNoBonus(uint256 borrowed) public {
        ILiquidator.Plan memory plan = batch(2);
        fails(plan, 1, abi.encodeCall(LendingPool.refuse, (stranger)));
        router.setRate(address(weth), FEE, address(usdc), 2000e6);
        plan.flashAmount = bound(borrowed, REPAY, 1e12);
        uint256 premium = plan.flashAmount * 5 / 10_000;
        if (premium > 50e6) {
            refused(plan, ILiquidator.Overspent.selector);
        } else if (premium > 10.5e6) {
            refused(
                plan,
                abi.encodeWithSelector(
                    ILiquidator.SlippageExceeded.selector, (50e6 - premium) * 1e30, 39.5e6 * uint256(1e30)
                )
            );
        } else {
            assertEq(execute(plan), 50e6 - premium, "profit");
        }
    }

    function countOf(bytes32 topic) internal returns (uint256 count) {
        Log[] memory logs = abi.decode(abi.encode(vm.getRecordedLogs()), (Log[]));
        for (uint256 i; i < logs.length; ++i) {
            if (logs[i].topics[0] == topic) ++count;
        }
    }

    struct Log {
        bytes32[] topics;
        bytes data;
        address emitter;
    }
}
