// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {PauseGuard} from "../src/PauseGuard.sol";
import {IPauseGuard} from "../src/interfaces/IPauseGuard.sol";
import {PauseGuardSetup} from "./PauseGuardSetup.sol";

contract PauseGuardGuardiansTest is PauseGuardSetup {
    /// @notice The constructor stores what it was given, and the domain is the documented one.
    function test_construction() public view {
        assertEq(guard.SAFE(), safe, "safe");
        assertEq(guard.UNPAUSE_DELAY(), DELAY, "delay");
        assertEq(guard.GLOBAL(), GLOBAL, "global scope");
        assertTrue(guard.isGuardian(guardian) && guard.isGuardian(secondGuardian), "guardians");
        assertFalse(guard.isGuardian(safe), "the Safe needs no entry");
        bytes32 typeHash = keccak256("EIP712Domain(string name,string version,address verifyingContract)");
        bytes32 domain =
            keccak256(abi.encode(typeHash, keccak256("PauseGuard"), keccak256("1"), address(guard)));
        assertEq(guard.DOMAIN_SEPARATOR(), domain, "domain");
    }

    /// @notice A Safe without code, a delay out of bounds and a zero guardian are refused.
    function test_constructionRefused() public {
        address[] memory none = new address[](0);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.InvalidSafe.selector, address(0)));
        new PauseGuard(address(0), none, DELAY);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.InvalidSafe.selector, stranger));
        new PauseGuard(stranger, none, DELAY);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.InvalidUnpauseDelay.selector, uint40(0)));
        new PauseGuard(safe, none, 0);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.InvalidUnpauseDelay.selector, uint40(30 days + 1)));
        new PauseGuard(safe, none, 30 days + 1);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.InvalidGuardian.selector, address(0)));
        new PauseGuard(safe, new address[](1), DELAY);
    }

    /// @notice The bounds of the delay themselves are allowed.
    function test_delayBounds() public {
        address[] memory none = new address[](0);
        assertEq(new PauseGuard(safe, none, 1).UNPAUSE_DELAY(), 1, "least");
        assertEq(new PauseGuard(safe, none, 30 days).UNPAUSE_DELAY(), 30 days, "most");
    }

    /// @notice Only the Safe sets guardians, and a removed guardian pauses no more.
    function testFuzz_onlySafeSetsGuardians(address caller) public {
        vm.assume(caller != safe);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.NotSafe.selector, caller));
        vm.prank(caller);
        guard.setGuardian(caller, true);

        vm.expectEmit(address(guard));
        emit IPauseGuard.GuardianSet(guardian, false);
        vm.prank(safe);
        guard.setGuardian(guardian, false);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.NotGuardian.selector, guardian));
        vm.prank(guardian);
        guard.pause(LENDING, REASON, INCIDENT);
    }

    /// @notice The zero address, which a failed recovery returns, can never be a guardian.
    function test_zeroGuardianRefused() public {
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.InvalidGuardian.selector, address(0)));
        vm.prank(safe);
        guard.setGuardian(address(0), true);
    }

    /* REMOVAL AND UNPAUSE IN ONE CALL */

    function removeAndSchedule(address account, bytes32 scope) internal {
        vm.prank(safe);
        guard.removeGuardianAndScheduleUnpause(account, scope);
    }

    /// @notice Only the Safe, and neither a guardian nor the one to be removed.
    function testFuzz_onlySafeRemovesAndSchedules(address caller) public {
        vm.assume(caller != safe);
        pauseAs(guardian, LENDING);
        address[2] memory callers = [caller, guardian];
        for (uint256 i; i < callers.length; ++i) {
            vm.expectRevert(abi.encodeWithSelector(IPauseGuard.NotSafe.selector, callers[i]));
            vm.prank(callers[i]);
            guard.removeGuardianAndScheduleUnpause(secondGuardian, LENDING);
        }
        assertTrue(guard.isGuardian(secondGuardian), "guardian stays");
        assertEq(state(LENDING).unpauseAt, 0, "nothing scheduled");
    }

    /// @notice One call removes the guardian who vetoes for ever and schedules; after the delay the scope runs.
    function test_rogueIsRemovedAndUnpauseScheduled() public {
        pauseAs(secondGuardian, LENDING);
        schedule(LENDING);
        vm.prank(secondGuardian);
        guard.vetoUnpause(LENDING);
        vm.expectEmit(address(guard));
        emit IPauseGuard.GuardianSet(secondGuardian, false);
        vm.expectEmit(address(guard));
        emit IPauseGuard.UnpauseScheduled(LENDING, uint40(START + DELAY));
        removeAndSchedule(secondGuardian, LENDING);
        assertFalse(guard.isGuardian(secondGuardian), "removed");
        assertTrue(guard.isGuardian(guardian), "the other stays");
        assertTrue(state(LENDING).paused, "paused until the delay has passed");

        vm.warp(START + DELAY - 1);
        vm.expectRevert(
            abi.encodeWithSelector(IPauseGuard.UnpauseTooEarly.selector, LENDING, uint40(START + DELAY))
        );
        guard.executeUnpause(LENDING);
        vm.warp(START + DELAY);
        guard.executeUnpause(LENDING);
        assertFalse(state(LENDING).paused, "runs");
        assertEq(state(LENDING).epoch, 1, "epoch");
    }

    /// @notice Nothing the removed guardian does or has signed cancels the schedule, whatever the signature's date and
    /// whether or not it was relayed before.
    function testFuzz_removedGuardianCannotVeto(uint256 dated, uint256 waited, bool usedBefore) public {
        uint40 issuedAt = uint40(bound(dated, START - 30 days, START + DELAY));
        bytes memory signature = signatureOf(KEY_TWO, LENDING, issuedAt);
        pauseAs(guardian, LENDING);
        if (usedBefore) relay(LENDING, issuedAt, signature);
        removeAndSchedule(secondGuardian, LENDING);
        vm.warp(START + bound(waited, 0, DELAY));

        bytes memory reason = abi.encodeWithSelector(IPauseGuard.NotGuardian.selector, secondGuardian);
        vm.expectRevert(reason);
        relay(LENDING, issuedAt, signature);
        vm.expectRevert(reason);
        vm.prank(secondGuardian);
        guard.vetoUnpause(LENDING);
        vm.expectRevert(reason);
        pauseAs(secondGuardian, LENDING);
        vm.warp(START + DELAY);
        guard.executeUnpause(LENDING);
        assertFalse(state(LENDING).paused, "runs");
    }

    /// @notice The guardians who remain may veto this schedule like any other.
    function test_othersStillVeto() public {
        pauseAs(secondGuardian, LENDING);
        removeAndSchedule(secondGuardian, LENDING);
        vm.prank(guardian);
        guard.vetoUnpause(LENDING);
        assertEq(state(LENDING).unpauseAt, 0, "vetoed");
    }

    /// @notice A due unpause executed just before does not save the guardian, and no unpause lies in wait for the next
    /// pause of a scope that runs.
    function test_runningScopeIsNotScheduled() public {
        pauseAs(guardian, LENDING);
        unpause(LENDING);
        IPauseGuard.Scope memory before = state(LENDING);
        removeAndSchedule(secondGuardian, LENDING);
        assertFalse(guard.isGuardian(secondGuardian), "removed");
        assertEq(keccak256(abi.encode(state(LENDING))), keccak256(abi.encode(before)), "state");
        pauseAs(guardian, LENDING);
        assertEq(state(LENDING).unpauseAt, 0, "nothing scheduled");
    }

    /// @notice Doing it again, or naming somebody who is no guardian, only starts the delay again.
    function testFuzz_removalIsIdempotent(address unknown, uint256 waited) public {
        vm.assume(unknown != address(0) && unknown != guardian);
        pauseAs(guardian, LENDING);
        removeAndSchedule(secondGuardian, LENDING);
        uint256 later = START + bound(waited, 1, 10 * uint256(DELAY));
        vm.warp(later);
        removeAndSchedule(secondGuardian, LENDING);
        assertEq(state(LENDING).unpauseAt, later + DELAY, "again");
        vm.warp(later + 1);
        removeAndSchedule(unknown, LENDING);
        assertEq(state(LENDING).unpauseAt, later + 1 + DELAY, "unknown");
        assertTrue(guard.isGuardian(guardian), "the other stays");
    }

    /// @notice The zero address is refused, as everywhere, and nothing is scheduled.
    function test_removalOfZeroRefused() public {
        pauseAs(guardian, LENDING);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.InvalidGuardian.selector, address(0)));
        vm.prank(safe);
        guard.removeGuardianAndScheduleUnpause(address(0), LENDING);
        assertEq(state(LENDING).unpauseAt, 0, "nothing scheduled");
    }

    /// @notice Other scopes keep their pause and their schedule.
    function test_removalLeavesOtherScopes() public {
        pauseAs(secondGuardian, GLOBAL);
        pauseAs(secondGuardian, LENDING);
        schedule(GLOBAL);
        vm.warp(START + 60);
        removeAndSchedule(secondGuardian, LENDING);
        assertEq(state(GLOBAL).unpauseAt, START + DELAY, "the other schedule stands");
        assertEq(state(LENDING).unpauseAt, START + 60 + DELAY, "this one is new");
    }

    /// @notice A key enabled again signs again, also by what it signed since the last unpause: why a rogue key is
    /// never enabled again.
    function test_enablingAgainRevivesSignatures() public {
        bytes memory signature = signatureOf(KEY_TWO, LENDING, clock());
        removeAndSchedule(secondGuardian, LENDING);
        vm.prank(safe);
        guard.setGuardian(secondGuardian, true);
        relay(LENDING, clock(), signature);
        assertTrue(state(LENDING).paused, "paused");
    }
}
