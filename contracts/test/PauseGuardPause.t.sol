// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IPauseGuard} from "../src/interfaces/IPauseGuard.sol";
import {PauseGuardSetup} from "./PauseGuardSetup.sol";

contract PauseGuardPauseTest is PauseGuardSetup {
    /// @notice Any guardian and the Safe pause at once, and the state tells when and why.
    function test_guardianOrSafePauses() public {
        address[3] memory callers = [guardian, secondGuardian, safe];
        for (uint256 i; i < callers.length; ++i) {
            bytes32 scope = bytes32(i);
            vm.expectEmit(address(guard));
            emit IPauseGuard.Paused(scope, callers[i], REASON, INCIDENT, 0);
            pauseAs(callers[i], scope);
            IPauseGuard.Scope memory paused = state(scope);
            assertTrue(paused.paused, "paused");
            assertEq(paused.pausedAt, START, "time");
            assertEq(bytes32(paused.reason), bytes32(REASON), "reason");
            assertEq(paused.epoch, 0, "epoch");
        }
    }

    /// @notice Nobody else pauses.
    function testFuzz_strangerCannotPause(address caller, bytes32 scope) public {
        vm.assume(caller != guardian && caller != secondGuardian && caller != safe);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.NotGuardian.selector, caller));
        vm.prank(caller);
        guard.pause(scope, REASON, INCIDENT);
    }

    /// @notice A second pause passes, keeps the first time and reason, and changes no epoch.
    function test_pauseIsIdempotent() public {
        pauseAs(guardian, LENDING);
        vm.warp(START + 60);
        vm.expectEmit(address(guard));
        emit IPauseGuard.Paused(LENDING, secondGuardian, "OTHER", INCIDENT, 0);
        vm.prank(secondGuardian);
        guard.pause(LENDING, "OTHER", INCIDENT);
        IPauseGuard.Scope memory paused = state(LENDING);
        assertTrue(paused.paused, "paused");
        assertEq(paused.pausedAt, START, "first time kept");
        assertEq(bytes32(paused.reason), bytes32(REASON), "first reason kept");
        assertEq(paused.epoch, 0, "epoch");
    }

    /// @notice A pause cancels a scheduled unpause, even one that is due already.
    function testFuzz_pauseCancelsSchedule(uint256 waited) public {
        pauseAs(guardian, LENDING);
        schedule(LENDING);
        vm.warp(START + bound(waited, 0, 10 * uint256(DELAY)));
        vm.expectEmit(address(guard));
        emit IPauseGuard.UnpauseVetoed(LENDING, secondGuardian);
        pauseAs(secondGuardian, LENDING);
        assertEq(state(LENDING).unpauseAt, 0, "schedule cancelled");
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.UnpauseNotScheduled.selector, LENDING));
        guard.executeUnpause(LENDING);
    }

    /// @notice A pause of one scope leaves the others alone.
    function testFuzz_scopesAreSeparate(bytes32 one, bytes32 other) public {
        vm.assume(one != other);
        pauseAs(guardian, one);
        assertFalse(state(other).paused, "other scope runs");
        bytes32[] memory scopes = new bytes32[](2);
        (scopes[0], scopes[1]) = (other, one);
        IPauseGuard.Scope[] memory states = guard.scopeStates(scopes);
        assertFalse(states[0].paused, "first asked");
        assertTrue(states[1].paused, "second asked");
    }

    /// @notice The check for a plan fails on a paused global scope, a paused protocol, and an old epoch of either.
    function test_requireRunning() public {
        guard.requireRunning(LENDING, 0, 0);

        pauseAs(guardian, LENDING);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.ScopePaused.selector, LENDING));
        guard.requireRunning(LENDING, 0, 0);
        guard.requireRunning("other", 0, 0);

        pauseAs(guardian, GLOBAL);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.ScopePaused.selector, GLOBAL));
        guard.requireRunning("other", 0, 0);

        unpause(LENDING);
        unpause(GLOBAL);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.EpochMismatch.selector, GLOBAL, uint64(1), uint64(0)));
        guard.requireRunning(LENDING, 0, 1);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.EpochMismatch.selector, LENDING, uint64(1), uint64(0)));
        guard.requireRunning(LENDING, 1, 0);
        guard.requireRunning(LENDING, 1, 1);
    }
}
