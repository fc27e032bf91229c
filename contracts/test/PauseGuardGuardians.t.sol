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
}
