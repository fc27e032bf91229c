// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {LiquidatorSetup} from "./LiquidatorSetup.sol";
import {Feed} from "./mocks/Feed.sol";
import {LendingPool} from "./mocks/Protocols.sol";
import {FeeToken, HookedToken, RefusingToken, Token} from "./mocks/Tokens.sol";

contract LiquidatorExecuteTest is LiquidatorSetup {
    /// @notice The usual plan: the treasury gains exactly the profit returned and logged; nothing is left behind.
    function test_liquidates() public {
        vm.expectEmit(address(liquidator));
        emit ILiquidator.Liquidated("plan", LENDING, address(usdc), PROFIT, operator);
        uint256 profit = execute(usualPlan());
        assertEq(profit, PROFIT, "profit");
        assertEq(usdc.balanceOf(treasury), PROFIT, "treasury");
        assertNothingLeft();
    }

    /// @notice A token without return values that forbids changing approvals works as debt, flash and profit token.
    function test_usdtLikeToken() public {
        assertEq(execute(planIn(address(usdt))), PROFIT, "profit");
        assertEq(usdt.balanceOf(treasury), PROFIT, "treasury");
        assertNothingLeft();
    }

    /// @notice A USDT-like token that a call and a swap spend only in part keeps no approval that would block the next.
    function test_partlySpentApprovals() public {
        ILiquidator.Plan memory plan = planIn(address(usdt));
        plan.flashAmount = REPAY + 500e6;
        plan.calls[0].approveAmount = REPAY + 500e6;
        plan.minProfit = 0;
        execute(plan);
        assertNothingLeft();
        execute(plan);
        assertNothingLeft();
    }

    /// @notice The profit may stay in the collateral: only the debt is bought back.
    function test_profitInCollateral() public {
        ILiquidator.Plan memory plan = usualPlan();
        plan.swaps[0] = buying(address(weth), address(usdc), ALL, SEIZE);
        plan.profitToken = address(weth);
        plan.minProfit = 0;
        uint256 sold = (uint256(1000.5e6) * 1e18 + 1994e6 - 1) / 1994e6;
        assertEq(execute(plan), SEIZE - sold, "profit");
        assertEq(weth.balanceOf(treasury), SEIZE - sold, "treasury");
        assertEq(usdc.balanceOf(treasury), 0, "no stable left over");
        assertNothingLeft();
    }

    /// @notice A reward that needs no capital needs no flash loan.
    function test_withoutFlashLoan() public {
        ILiquidator.Plan memory plan = usualPlan();
        plan.flashSource = address(0);
        plan.flashToken = address(0);
        plan.flashAmount = 0;
        plan.calls[0] = seizing(address(usdc), 0, address(usdc), 33e6);
        delete plan.swaps;
        plan.tokens = list(address(usdc));
        plan.minProfit = 33e6;
        assertEq(execute(plan), 33e6, "profit");
        assertEq(usdc.balanceOf(treasury), 33e6, "treasury");
        assertNothingLeft();
    }

    /// @notice Several calls of one protocol are one liquidation, and an earlier call's proceeds may pay a later one.
    function testFuzz_severalCalls(uint256 count) public {
        count = bound(count, 1, 8);
        ILiquidator.Plan memory plan = usualPlan();
        plan.flashAmount = REPAY * count;
        plan.calls = new ILiquidator.Call[](count);
        for (uint256 i; i < count; ++i) {
            plan.calls[i] = seizing(address(usdc), REPAY, address(weth), SEIZE);
        }
        plan.minProfit = PROFIT * count;
        assertEq(execute(plan), PROFIT * count, "profit");
        assertNothingLeft();
    }

    /// @notice A position taken over: margin in, position closed, margin out, netted as the Safe declared.
    function testFuzz_takenOverPosition(uint256 deposit, uint256 gain) public {
        asSafe(abi.encodeCall(ILiquidator.setSettledJointly, (MARGIN, true)));
        pool.setPremiumBps(0);
        deposit = bound(deposit, 1, 1e12);
        gain = bound(gain, 0, 1e12);
        ILiquidator.Plan memory plan = marginPlan(deposit, int256(gain));
        plan.minProfit = gain;
        assertEq(execute(plan), gain, "profit");
        assertEq(usdc.balanceOf(treasury), gain, "treasury");
        assertNothingLeft();
    }

    /// @notice Unless declared so, a deposit is a loss and a withdrawal a gain that the treasury must receive.
    function test_depositIsALossUnlessSettledJointly() public {
        ILiquidator.Plan memory plan = marginPlan(100e6, 5e6);
        uint256 required = 105e6 * uint256(1e30) * 9900 / 10_000;
        refused(plan, abi.encodeWithSelector(ILiquidator.SlippageExceeded.selector, 4.95e6 * uint256(1e30), required));
    }

    /// @notice What others gave before the plan goes to the treasury, is neither sold nor counted.
    function testFuzz_donationBeforeIsNoProfit(uint256 dollars, uint256 ether_) public {
        dollars = bound(dollars, 1, 1e12);
        ether_ = bound(ether_, 1, 1e24);
        usdc.mint(address(liquidator), dollars);
        weth.mint(address(liquidator), ether_);
        vm.expectEmit(address(liquidator));
        emit ILiquidator.Swept(address(usdc), dollars);
        vm.expectEmit(address(liquidator));
        emit ILiquidator.Swept(address(weth), ether_);
        assertEq(execute(usualPlan()), PROFIT, "profit");
        assertEq(usdc.balanceOf(treasury), PROFIT + dollars, "treasury USDC");
        assertEq(weth.balanceOf(treasury), ether_, "treasury WETH");
        assertNothingLeft();
    }

    /// @notice A donation before the plan does not lift a failing plan over its profit floor.
    function test_donationBeforeDoesNotHelp() public {
        usdc.mint(address(liquidator), 1000e6);
        ILiquidator.Plan memory plan = usualPlan();
        plan.minProfit = PROFIT + 1;
        refused(plan, abi.encodeWithSelector(ILiquidator.ProfitBelowMinimum.selector, PROFIT, PROFIT + 1));
    }

    /// @notice What others give during a swap, here or to the treasury, goes to the treasury and counts for nothing.
    function test_donationDuringSwapIsNoProfit() public {
        address[2] memory receivers = [address(liquidator), treasury];
        address[2] memory given = [address(usdc), address(weth)];
        uint256 id = vm.snapshotState();
        for (uint256 i; i < 4; ++i) {
            router.setHook(given[i / 2], abi.encodeCall(Token.mint, (receivers[i % 2], 7e6)));
            ILiquidator.Plan memory plan = usualPlan();
            plan.minProfit = PROFIT + 1;
            refused(plan, abi.encodeWithSelector(ILiquidator.ProfitBelowMinimum.selector, PROFIT, PROFIT + 1));
            plan.minProfit = PROFIT;
            assertEq(execute(plan), PROFIT, "profit");
            assertEq(Token(given[i / 2]).balanceOf(treasury), (i < 2 ? PROFIT : 0) + 7e6, "treasury has both");
            assertNothingLeft();
            vm.revertToState(id);
            id = vm.snapshotState();
        }
    }

    /// @notice A token that keeps a fee of each transfer counts as what arrived.
    function test_feeOnTransferCountsAsArrived() public {
        FeeToken fee = new FeeToken();
        Feed feed = new Feed(8, 1e8);
        asSafe(abi.encodeCall(ILiquidator.setFeed, (address(fee), address(feed), MAX_AGE_S)));
        ILiquidator.Plan memory plan = usualPlan();
        plan.flashSource = address(0);
        plan.flashAmount = 0;
        plan.calls[0] = seizing(address(usdc), 0, address(fee), 100e18);
        delete plan.swaps;
        plan.tokens = list(address(usdc), address(fee));
        plan.profitToken = address(fee);
        plan.minProfit = 99e18 + 1;
        refused(plan, abi.encodeWithSelector(ILiquidator.ProfitBelowMinimum.selector, 99e18, 99e18 + 1));
        plan.minProfit = 99e18;
        assertEq(execute(plan), 99e18, "what arrived");
        assertEq(fee.balanceOf(treasury), 99e18, "treasury");
        assertEq(fee.balanceOf(address(liquidator)), 0, "nothing left");
    }

    /// @notice A token that answers false instead of moving fails the plan.
    function test_refusingTokenFailsThePlan() public {
        RefusingToken token = new RefusingToken();
        Feed feed = new Feed(8, 1e8);
        asSafe(abi.encodeCall(ILiquidator.setFeed, (address(token), address(feed), MAX_AGE_S)));
        ILiquidator.Plan memory plan = usualPlan();
        plan.calls[0] = seizing(address(usdc), 0, address(token), 100e18);
        delete plan.swaps;
        plan.flashSource = address(0);
        plan.flashAmount = 0;
        plan.tokens = list(address(usdc), address(token));
        plan.minProfit = 0;
        refused(
            plan,
            abi.encodeWithSelector(ILiquidator.TransferFailed.selector, address(token), treasury, uint256(100e18))
        );
    }

    /// @notice A listed token that calls back at every move reaches neither execute, nor sweep, nor the flash callback,
    /// nor a setting, even when it is an operator.
    function test_reenteringTokenIsRefused() public {
        HookedToken hooked = new HookedToken();
        Feed feed = new Feed(8, int256(WETH_PRICE * 1e8));
        asSafe(abi.encodeCall(ILiquidator.setFeed, (address(hooked), address(feed), MAX_AGE_S)));
        asSafe(abi.encodeCall(ILiquidator.setOperator, (address(hooked), true)));
        router.setRate(address(hooked), FEE, address(usdc), 1994e6);

        ILiquidator.Plan memory plan = usualPlan();
        plan.calls[0] = seizing(address(usdc), REPAY, address(hooked), SEIZE);
        plan.swaps[0] = selling(address(hooked), address(usdc), ALL / 2);
        plan.swaps[0].amount = SEIZE / 2;
        plan.tokens = list(address(usdc), address(hooked));
        plan.minProfit = 0;
        plan.calls[0] = seizing(address(usdc), REPAY / 2, address(hooked), SEIZE);
        plan.flashAmount = REPAY / 2;

        bytes[] memory requests = new bytes[](4);
        requests[0] = abi.encodeCall(ILiquidator.execute, (plan));
        requests[1] = abi.encodeCall(ILiquidator.sweep, (plan.tokens));
        requests[2] = abi.encodeCall(
            liquidator.executeOperation, (address(usdc), REPAY / 2, 0, address(liquidator), abi.encode(plan))
        );
        requests[3] = abi.encodeCall(ILiquidator.setOperator, (stranger, true));
        hooked.setHook(address(liquidator), requests);
        execute(plan);
        assertGe(hooked.calls(), 4 * 4, "approve, pull, zero, send: each tried all four");
        assertEq(hooked.balanceOf(treasury), SEIZE - SEIZE / 2, "treasury");
    }

    /// @notice The protocol's own revert is passed on with the index of the call.
    function test_protocolRevertIsPassedOn() public {
        ILiquidator.Plan memory plan = usualPlan();
        ILiquidator.Call[] memory calls = new ILiquidator.Call[](2);
        calls[0] = plan.calls[0];
        calls[1] =
            ILiquidator.Call(address(pool), address(0), 0, abi.encodeCall(LendingPool.refuse, (stranger)), 0);
        plan.calls = calls;
        bytes memory reason = abi.encodeWithSelector(LendingPool.Unhealthy.selector, stranger);
        refused(plan, abi.encodeWithSelector(ILiquidator.CallFailed.selector, 1, reason));
    }

    /// @notice The profit floor is kept to the unit.
    function testFuzz_profitFloorIsExact(uint256 seize) public {
        seize = bound(seize, 0.51e18, 1e18);
        ILiquidator.Plan memory plan = usualPlan();
        plan.calls[0] = seizing(address(usdc), REPAY, address(weth), seize);
        uint256 profit = seize * 1994e6 / 1e18 - 1000.5e6;
        plan.minProfit = profit + 1;
        refused(plan, abi.encodeWithSelector(ILiquidator.ProfitBelowMinimum.selector, profit, profit + 1));
        plan.minProfit = profit;
        assertEq(execute(plan), profit, "profit");
        assertNothingLeft();
    }
}
