// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {PauseGuard} from "../src/PauseGuard.sol";
import {IPauseGuard} from "../src/interfaces/IPauseGuard.sol";
import {TestBase} from "./Vm.sol";

/// @notice Stands in for the Safe: an address with code that the tests speak for.
contract SafeStandIn {}

/// @notice One guard with two guardians, and how to drive it.
abstract contract PauseGuardSetup is TestBase {
    uint40 internal constant DELAY = 1800;
    uint256 internal constant START = 1_800_000_000;
    uint256 internal constant KEY_ONE = 0xA11CE;
    uint256 internal constant KEY_TWO = 0xB0B;
    uint256 internal constant KEY_STRANGER = 0xBAD;
    bytes32 internal constant GLOBAL = bytes32(0);
    bytes32 internal constant LENDING = "lending";
    bytes32 internal constant INCIDENT = keccak256("incident");
    bytes8 internal constant REASON = "DRILL";
    uint256 internal constant CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    PauseGuard internal guard;
    address internal safe;
    address internal guardian = vm.addr(KEY_ONE);
    address internal secondGuardian = vm.addr(KEY_TWO);
    address internal stranger = vm.addr(KEY_STRANGER);

    function setUp() public virtual {
        vm.warp(START);
        safe = address(new SafeStandIn());
        address[] memory guardians = new address[](2);
        guardians[0] = guardian;
        guardians[1] = secondGuardian;
        guard = new PauseGuard(safe, guardians, DELAY);
    }

    function state(bytes32 scope) internal view returns (IPauseGuard.Scope memory) {
        return guard.scopeState(scope);
    }

    function pauseAs(address caller, bytes32 scope) internal {
        vm.prank(caller);
        guard.pause(scope, REASON, INCIDENT);
    }

    function schedule(bytes32 scope) internal {
        vm.prank(safe);
        guard.scheduleUnpause(scope);
    }

    /// @dev Schedules, waits and executes.
    function unpause(bytes32 scope) internal {
        schedule(scope);
        vm.warp(block.timestamp + DELAY);
        guard.executeUnpause(scope);
    }

    function digestOf(bytes32 scope, uint40 issuedAt) internal view returns (bytes32) {
        bytes32 typeHash = keccak256("Pause(bytes32 scope,bytes8 reason,bytes32 incident,uint40 issuedAt)");
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,address verifyingContract)"),
                keccak256("PauseGuard"),
                keccak256("1"),
                address(guard)
            )
        );
        bytes32 structHash = keccak256(abi.encode(typeHash, scope, REASON, INCIDENT, issuedAt));
        return keccak256(abi.encodePacked("\x19\x01", domain, structHash));
    }

    function signatureOf(uint256 key, bytes32 scope, uint40 issuedAt) internal view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digestOf(scope, issuedAt));
        return abi.encodePacked(r, s, v);
    }

    function relay(bytes32 scope, uint40 issuedAt, bytes memory signature) internal {
        vm.prank(stranger);
        guard.pauseBySig(scope, REASON, INCIDENT, issuedAt, signature);
    }

    function clock() internal view returns (uint40) {
        return uint40(block.timestamp);
    }
}
