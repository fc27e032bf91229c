// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Liquidator} from "../src/Liquidator.sol";
import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {LiquidatorSetup} from "./LiquidatorSetup.sol";
import {SafeStandIn} from "./PauseGuardSetup.sol";
import {HookedToken} from "./mocks/Tokens.sol";

contract LiquidatorSweepTest is LiquidatorSetup {
    /// @notice Anyone sweeps any token and the native coin, only ever to the treasury.
    function testFuzz_anyoneSweepsToTreasury(address caller, uint128 dollars, uint128 tethers, uint96 wei_) public {
        vm.assume(caller != treasury);
        usdc.mint(address(liquidator), dollars);
        usdt.mint(address(liquidator), tethers);
        vm.deal(address(this), wei_);
        (bool success,) = address(liquidator).call{value: wei_}("");
        assertTrue(success, "native coin accepted");
        vm.prank(caller);
        liquidator.sweep(list(address(usdc), address(0), address(usdt)));
        assertEq(usdc.balanceOf(treasury), dollars, "USDC");
        assertEq(usdt.balanceOf(treasury), tethers, "USDT");
        assertEq(treasury.balance, wei_, "native coin");
        assertEq(address(liquidator).balance, 0, "no native coin left");
        assertNothingLeft();
    }

    /// @notice The sweep works while everything is paused.
    function test_sweepWhilePaused() public {
        vm.prank(guardian);
        guard.pause(GLOBAL, "TEST", 0);
        usdc.mint(address(liquidator), 5e6);
        vm.expectEmit(address(liquidator));
        emit ILiquidator.Swept(address(usdc), 5e6);
        vm.prank(stranger);
        liquidator.sweep(list(address(usdc)));
        assertEq(usdc.balanceOf(treasury), 5e6, "swept");
    }

    /// @notice A token that calls back during a sweep enters neither sweep nor execute.
    function test_sweepIsNotReentered() public {
        HookedToken hooked = new HookedToken();
        hooked.mint(address(liquidator), 1e18);
        asSafe(abi.encodeCall(ILiquidator.setOperator, (address(hooked), true)));
        bytes[] memory requests = new bytes[](2);
        requests[0] = abi.encodeCall(ILiquidator.sweep, (list(address(usdc))));
        requests[1] = abi.encodeCall(ILiquidator.execute, (usualPlan()));
        hooked.setHook(address(liquidator), requests);
        liquidator.sweep(list(address(hooked)));
        assertEq(hooked.calls(), 2, "both were tried");
        assertEq(hooked.balanceOf(treasury), 1e18, "swept");
    }

    /// @notice A plan cannot be disturbed by a sweep in its midst.
    function test_noSweepDuringExecute() public {
        pool.setHook(address(liquidator), abi.encodeCall(ILiquidator.sweep, (list(address(usdc)))));
        refused(usualPlan(), ILiquidator.CallFailed.selector);
    }

    /// @notice A treasury that does not take the native coin fails the sweep of it, and loses nothing.
    function test_treasuryWithoutReceive() public {
        treasury = address(new SafeStandIn());
        liquidator = new Liquidator(safe, treasury, address(guard));
        vm.deal(address(liquidator), 1 ether);
        vm.expectRevert(abi.encodeWithSelector(ILiquidator.TransferFailed.selector, address(0), treasury, 1 ether));
        liquidator.sweep(list(address(0)));
        assertEq(address(liquidator).balance, 1 ether, "still there");
    }

    /// @notice An address without code is no token: a sweep of it fails rather than pretend.
    function testFuzz_noToken(address token) public {
        vm.assume(token.code.length == 0 && token != address(0) && uint160(token) > 0xffff);
        (bool success,) = address(liquidator).call(abi.encodeCall(ILiquidator.sweep, (list(token))));
        assertFalse(success, "swept nothing from nowhere");
    }
}
