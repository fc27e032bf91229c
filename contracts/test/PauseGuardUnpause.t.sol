// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IPauseGuard} from "../src/interfaces/IPauseGuard.sol";
import {PauseGuardSetup} from "./PauseGuardSetup.sol";

contract PauseGuardUnpauseTest is PauseGuardSetup {
    /// @notice Only the Safe schedules, guardians included among the others.
    function testFuzz_onlySafeSchedules(address caller) public {
        vm.assume(caller != safe);
        pauseAs(guardian, LENDING);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.NotSafe.selector, caller));
        vm.prank(caller);
        guard.scheduleUnpause(LENDING);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.NotSafe.selector, guardian));
        vm.prank(guardian);
        guard.scheduleUnpause(LENDING);
    }

    /// @notice A running scope cannot be scheduled: no unpause lies in wait for the next pause.
    function test_runningScopeCannotBeScheduled() public {
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.NotPaused.selector, LENDING));
        vm.prank(safe);
        guard.scheduleUnpause(LENDING);
    }

    /// @notice Without a schedule nobody unpauses, not even the Safe.
    function testFuzz_noExecutionWithoutSchedule(address caller, uint256 waited) public {
        pauseAs(guardian, LENDING);
        vm.warp(START + bound(waited, 0, 365 days));
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.UnpauseNotScheduled.selector, LENDING));
        vm.prank(caller);
        guard.executeUnpause(LENDING);
    }

    /// @notice The delay is kept to the second; then anyone executes, the epoch grows and the state is clean.
    function testFuzz_delayIsExact(address caller, uint256 early) public {
        pauseAs(guardian, LENDING);
        vm.expectEmit(address(guard));
        emit IPauseGuard.UnpauseScheduled(LENDING, uint40(START + DELAY));
        schedule(LENDING);
        vm.warp(START + bound(early, 0, DELAY - 1));
        vm.expectRevert(
            abi.encodeWithSelector(IPauseGuard.UnpauseTooEarly.selector, LENDING, uint40(START + DELAY))
        );
        vm.prank(caller);
        guard.executeUnpause(LENDING);

        vm.warp(START + DELAY);
        vm.expectEmit(address(guard));
        emit IPauseGuard.Unpaused(LENDING, 1);
        vm.prank(caller);
        guard.executeUnpause(LENDING);
        IPauseGuard.Scope memory running = state(LENDING);
        assertFalse(running.paused, "runs");
        assertEq(running.epoch, 1, "epoch");
        assertEq(running.pausedAt, 0, "no pause in force");
        assertEq(running.unpauseAt, 0, "no schedule");
        assertEq(running.lastUnpausedAt, START + DELAY, "unpaused now");
        assertEq(bytes32(running.reason), 0, "no reason");
    }

    /// @notice One schedule serves one unpause.
    function test_scheduleIsUsedUp() public {
        pauseAs(guardian, LENDING);
        unpause(LENDING);
        pauseAs(guardian, LENDING);
        vm.warp(START + 365 days);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.UnpauseNotScheduled.selector, LENDING));
        guard.executeUnpause(LENDING);
    }

    /// @notice Scheduling again restarts the delay.
    function testFuzz_reschedulingRestarts(uint256 waited) public {
        pauseAs(guardian, LENDING);
        schedule(LENDING);
        uint256 later = START + bound(waited, 1, 10 * uint256(DELAY));
        vm.warp(later);
        schedule(LENDING);
        assertEq(state(LENDING).unpauseAt, later + DELAY, "restarted");
        vm.expectRevert(
            abi.encodeWithSelector(IPauseGuard.UnpauseTooEarly.selector, LENDING, uint40(later + DELAY))
        );
        guard.executeUnpause(LENDING);
    }

    /// @notice Any guardian and the Safe veto, until the unpause is executed; the scope stays paused.
    function test_vetoCancels() public {
        address[3] memory callers = [guardian, secondGuardian, safe];
        pauseAs(guardian, LENDING);
        for (uint256 i; i < callers.length; ++i) {
            schedule(LENDING);
            vm.warp(block.timestamp + DELAY);
            vm.expectEmit(address(guard));
            emit IPauseGuard.UnpauseVetoed(LENDING, callers[i]);
            vm.prank(callers[i]);
            guard.vetoUnpause(LENDING);
            vm.expectRevert(abi.encodeWithSelector(IPauseGuard.UnpauseNotScheduled.selector, LENDING));
            guard.executeUnpause(LENDING);
            assertTrue(state(LENDING).paused, "paused");
        }
    }

    /// @notice A stranger cannot veto, and there must be something to veto.
    function testFuzz_vetoRefused(address caller) public {
        vm.assume(caller != guardian && caller != secondGuardian && caller != safe);
        pauseAs(guardian, LENDING);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.UnpauseNotScheduled.selector, LENDING));
        vm.prank(guardian);
        guard.vetoUnpause(LENDING);
        schedule(LENDING);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.NotGuardian.selector, caller));
        vm.prank(caller);
        guard.vetoUnpause(LENDING);
        assertEq(state(LENDING).unpauseAt, START + DELAY, "schedule stands");
    }
}
