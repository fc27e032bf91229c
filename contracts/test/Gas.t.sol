// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {LiquidatorSetup} from "./LiquidatorSetup.sol";
import {PauseGuardSetup} from "./PauseGuardSetup.sol";
import {LendingPool} from "./mocks/Protocols.sol";

/// @notice The executions whose gas is snapshot. Only the one call is metered, protocol and router mocks included.
contract LiquidatorGasTest is LiquidatorSetup {
    function setUp() public override {
        super.setUp();
        // A treasury that holds the tokens already, as it will from the second liquidation on.
        usdc.mint(treasury, 1);
        weth.mint(treasury, 1);
    }

    function meter(ILiquidator.Plan memory plan, uint256 profit) internal {
        vm.prank(operator);
        vm.resumeGasMetering();
        uint256 actual = liquidator.execute(plan);
        vm.pauseGasMetering();
        assertEq(actual, profit, "profit");
    }

    /// @notice Flash loan, one call, one exact-input leg, two tokens.
    function test_gas_executeExactIn() public {
        vm.pauseGasMetering();
        meter(usualPlan(), PROFIT);
    }

    /// @notice Flash loan, one call, one exact-output leg, two tokens.
    function test_gas_executeExactOut() public {
        vm.pauseGasMetering();
        ILiquidator.Plan memory plan = usualPlan();
        plan.swaps[0] = buying(address(weth), address(usdc), ALL, SEIZE);
        plan.profitToken = address(weth);
        plan.minProfit = 1;
        meter(plan, SEIZE - (uint256(1000.5e6) * 1e18 + 1994e6 - 1) / 1994e6);
    }

    /// @notice Flash loan, two calls, one leg, two tokens.
    function test_gas_executeTwoCalls() public {
        vm.pauseGasMetering();
        ILiquidator.Plan memory plan = usualPlan();
        ILiquidator.Call memory first = plan.calls[0];
        plan.calls = new ILiquidator.Call[](2);
        (plan.calls[0], plan.calls[1]) = (first, first);
        plan.flashAmount = 2 * REPAY;
        meter(plan, 2 * PROFIT);
    }

    /// @notice Morpho's liquidation, paid after one exact-input leg, two tokens.
    function test_gas_executeMorphoFirst() public {
        vm.pauseGasMetering();
        meter(morphoPlan(), PROFIT + 0.5e6);
    }

    /// @notice A pool's flash loan, two calls that may fail, one of which does, one leg of version 2, two tokens.
    function test_gas_executeBatch() public {
        vm.pauseGasMetering();
        ILiquidator.Plan memory plan = usualPlan();
        ILiquidator.Call memory first = plan.calls[0];
        first.gasLimit = 200_000;
        plan.calls = new ILiquidator.Call[](2);
        plan.calls[0] = first;
        plan.calls[1] = ILiquidator.Call(
            address(pool), address(0), 0, abi.encodeCall(LendingPool.refuse, (stranger)), 200_000
        );
        plan.flashSource = address(flashPool);
        plan.swaps[0] = selling2(address(weth), address(usdc), ALL);
        meter(plan, PROFIT);
    }

    /// @notice One call with a reward, no flash loan, no leg, one token.
    function test_gas_executeReward() public {
        vm.pauseGasMetering();
        ILiquidator.Plan memory plan = usualPlan();
        plan.flashSource = address(0);
        plan.flashAmount = 0;
        plan.calls[0] = seizing(address(usdc), 0, address(usdc), 33e6);
        plan.calls[0].approveToken = address(0);
        delete plan.swaps;
        plan.tokens = list(address(usdc));
        plan.minProfit = 33e6;
        meter(plan, 33e6);
    }

    /// @notice A plan that meets a pause.
    function test_gas_executePaused() public {
        vm.pauseGasMetering();
        vm.prank(guardian);
        guard.pause(GLOBAL, "TEST", 0);
        bytes memory request = abi.encodeCall(ILiquidator.execute, (usualPlan()));
        vm.prank(operator);
        vm.resumeGasMetering();
        (bool success,) = address(liquidator).call(request);
        vm.pauseGasMetering();
        assertFalse(success, "paused");
    }

    /// @notice A sweep of two empty balances.
    function test_gas_sweepEmpty() public {
        vm.pauseGasMetering();
        address[] memory tokens = list(address(usdc), address(weth));
        vm.resumeGasMetering();
        liquidator.sweep(tokens);
        vm.pauseGasMetering();
        assertEq(usdc.balanceOf(treasury), 1, "nothing came");
    }
}

/// @notice The guard's verbs whose gas is snapshot. Only the one call is metered.
contract PauseGuardGasTest is PauseGuardSetup {
    /// @notice A guardian's first pause of a scope.
    function test_gas_pause() public {
        vm.pauseGasMetering();
        vm.prank(guardian);
        vm.resumeGasMetering();
        guard.pause(LENDING, REASON, INCIDENT);
        vm.pauseGasMetering();
        assertTrue(state(LENDING).paused, "paused");
    }

    /// @notice A relayed signature.
    function test_gas_pauseBySig() public {
        vm.pauseGasMetering();
        bytes memory signature = signatureOf(KEY_ONE, LENDING, clock());
        vm.resumeGasMetering();
        guard.pauseBySig(LENDING, REASON, INCIDENT, uint40(START), signature);
        vm.pauseGasMetering();
        assertTrue(state(LENDING).paused, "paused");
    }

    /// @notice What the check costs a plan.
    function test_gas_requireRunning() public {
        guard.requireRunning(LENDING, 0, 0);
        vm.pauseGasMetering();
        assertFalse(state(LENDING).paused, "runs");
    }

    /// @notice The execution of a due unpause.
    function test_gas_executeUnpause() public {
        vm.pauseGasMetering();
        pauseAs(guardian, LENDING);
        schedule(LENDING);
        vm.warp(START + DELAY);
        vm.resumeGasMetering();
        guard.executeUnpause(LENDING);
        vm.pauseGasMetering();
        assertFalse(state(LENDING).paused, "runs");
    }

    /// @notice The removal of a guardian with the schedule of an unpause.
    function test_gas_removeGuardianAndScheduleUnpause() public {
        vm.pauseGasMetering();
        pauseAs(guardian, LENDING);
        vm.prank(safe);
        vm.resumeGasMetering();
        guard.removeGuardianAndScheduleUnpause(guardian, LENDING);
        vm.pauseGasMetering();
        assertFalse(guard.isGuardian(guardian), "removed");
    }
}
