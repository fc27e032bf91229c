// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {LiquidatorSetup} from "./LiquidatorSetup.sol";
import {PauseGuardSetup} from "./PauseGuardSetup.sol";

/// @notice The plans whose gas is snapshot; everything but the one call is in `setUp`.
contract LiquidatorGasTest is LiquidatorSetup {
    bytes internal exactInRequest;
    bytes internal exactOutRequest;
    bytes internal rewardRequest;
    bytes internal twoCallsRequest;
    address[] internal swept;

    function setUp() public override {
        super.setUp();
        // A treasury that holds the tokens already, as it will from the second liquidation on.
        usdc.mint(treasury, 1);
        weth.mint(treasury, 1);
        exactInRequest = abi.encodeCall(ILiquidator.execute, (usualPlan()));

        ILiquidator.Plan memory plan = usualPlan();
        plan.swaps[0] = buying(address(weth), address(usdc), ALL, SEIZE);
        plan.profitToken = address(weth);
        plan.minProfit = 1;
        exactOutRequest = abi.encodeCall(ILiquidator.execute, (plan));

        plan = usualPlan();
        plan.flashSource = address(0);
        plan.flashAmount = 0;
        plan.calls[0] = seizing(address(usdc), 0, address(usdc), 33e6);
        plan.calls[0].approveToken = address(0);
        delete plan.swaps;
        plan.tokens = list(address(usdc));
        plan.minProfit = 33e6;
        rewardRequest = abi.encodeCall(ILiquidator.execute, (plan));

        plan = usualPlan();
        ILiquidator.Call memory first = plan.calls[0];
        plan.calls = new ILiquidator.Call[](2);
        (plan.calls[0], plan.calls[1]) = (first, first);
        plan.flashAmount = 2 * REPAY;
        plan.minProfit = 2 * PROFIT;
        twoCallsRequest = abi.encodeCall(ILiquidator.execute, (plan));
        swept = list(address(usdc), address(weth));
    }

    function executed(bytes memory request) internal {
        vm.prank(operator);
        (bool success,) = address(liquidator).call(request);
        assertTrue(success, "executed");
    }

    /// @notice Flash loan, one call, one exact-input leg, two tokens.
    function test_gas_executeExactIn() public {
        executed(exactInRequest);
    }

    /// @notice Flash loan, one call, one exact-output leg, two tokens.
    function test_gas_executeExactOut() public {
        executed(exactOutRequest);
    }

    /// @notice Flash loan, two calls, one leg, two tokens.
    function test_gas_executeTwoCalls() public {
        executed(twoCallsRequest);
    }

    /// @notice One call with a reward, no flash loan, no leg, one token.
    function test_gas_executeReward() public {
        executed(rewardRequest);
    }

    /// @notice A plan that meets a pause.
    function test_gas_executePaused() public {
        vm.prank(guardian);
        guard.pause(GLOBAL, "TEST", 0);
        vm.prank(operator);
        (bool success,) = address(liquidator).call(exactInRequest);
        assertFalse(success, "paused");
    }

    /// @notice A sweep of two empty balances.
    function test_gas_sweepEmpty() public {
        liquidator.sweep(swept);
        assertEq(usdc.balanceOf(treasury), 1, "nothing came");
    }
}

/// @notice The guard's verbs whose gas is snapshot.
contract PauseGuardGasTest is PauseGuardSetup {
    bytes internal signature;

    function setUp() public override {
        super.setUp();
        signature = signatureOf(KEY_ONE, LENDING, clock());
    }

    /// @notice A guardian's first pause of a scope.
    function test_gas_pause() public {
        vm.prank(guardian);
        guard.pause(LENDING, REASON, INCIDENT);
        assertTrue(state(LENDING).paused, "paused");
    }

    /// @notice A relayed signature.
    function test_gas_pauseBySig() public {
        guard.pauseBySig(LENDING, REASON, INCIDENT, uint40(START), signature);
        assertTrue(state(LENDING).paused, "paused");
    }

    /// @notice What the check costs a plan.
    function test_gas_requireRunning() public view {
        guard.requireRunning(LENDING, 0, 0);
        assertFalse(state(LENDING).paused, "runs");
    }

    /// @notice Pause, schedule, execute.
    function test_gas_unpause() public {
        pauseAs(guardian, LENDING);
        unpause(LENDING);
        assertFalse(state(LENDING).paused, "runs");
    }
}
