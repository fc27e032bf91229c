// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {PauseGuard} from "../src/PauseGuard.sol";
import {IPauseGuard} from "../src/interfaces/IPauseGuard.sol";
import {SafeStandIn} from "./PauseGuardSetup.sol";
import {TestBase} from "./Vm.sol";

/// @notice The symbolic runner's own cheatcodes.
interface Svm {
    function enableSymbolicStorage(address account) external;
    function createCalldata(string calldata contractName) external returns (bytes memory);
}

/// @notice Proofs for halmos (`scripts/audit`); forge runs nothing here. Each starts from an arbitrary state of the
/// guard, not a reached one, and makes one call, so it holds for sequences of any length.
contract PauseGuardSymbolic is TestBase {
    Svm internal constant svm = Svm(address(uint160(uint256(keccak256("svm cheat code")))));
    uint40 internal constant DELAY = 1800;

    PauseGuard internal guard;
    address internal safe;

    function setUp() public {
        safe = address(new SafeStandIn());
        guard = new PauseGuard(safe, new address[](0), DELAY);
        svm.enableSymbolicStorage(address(guard));
    }

    /// @dev Any time; what only the guard itself writes is assumed as `check_scheduleIsNowPlusDelay` proves it.
    function arbitrary(bytes32 scope, uint40 time) internal returns (IPauseGuard.Scope memory state) {
        vm.assume(time > DELAY && time < type(uint40).max - DELAY);
        vm.warp(time);
        state = guard.scopeState(scope);
        vm.assume(state.unpauseAt == 0 || (state.unpauseAt > DELAY && state.unpauseAt <= time + DELAY));
    }

    /// @notice A paused scope is unpaused by nothing but `executeUnpause` of a schedule that is due, whoever calls what,
    /// the Safe included; and only that changes the epoch, by one.
    function check_onlyDueSchedulesUnpause(address caller, bytes32 scope, uint40 time) public {
        IPauseGuard.Scope memory before = arbitrary(scope, time);
        bytes memory request = svm.createCalldata("PauseGuard");
        vm.prank(caller);
        (bool success,) = address(guard).call(request);
        vm.assume(success);
        IPauseGuard.Scope memory later = guard.scopeState(scope);
        bool due = before.unpauseAt != 0 && before.unpauseAt <= time;
        if (before.paused && !later.paused) {
            assert(bytes4(request) == IPauseGuard.executeUnpause.selector && due);
            assert(later.epoch == before.epoch + 1 && later.lastUnpausedAt == time);
        }
        if (later.epoch != before.epoch) {
            assert(bytes4(request) == IPauseGuard.executeUnpause.selector && due && !later.paused);
        }
    }

    /// @notice Who is not the Safe schedules nothing and changes no guardian; he can only take a schedule back.
    function check_onlySafeSchedulesAndNames(address caller, address account, bytes32 scope, uint40 time) public {
        vm.assume(caller != safe);
        IPauseGuard.Scope memory before = arbitrary(scope, time);
        bool guardianBefore = guard.isGuardian(account);
        bytes memory request = svm.createCalldata("PauseGuard");
        vm.prank(caller);
        (bool success,) = address(guard).call(request);
        vm.assume(success);
        IPauseGuard.Scope memory later = guard.scopeState(scope);
        assert(later.unpauseAt == before.unpauseAt || later.unpauseAt == 0);
        assert(guard.isGuardian(account) == guardianBefore);
    }

    /// @notice A schedule is the one that was there, none, or one that starts now.
    function check_scheduleIsNowPlusDelay(address caller, bytes32 scope, uint40 time) public {
        IPauseGuard.Scope memory before = arbitrary(scope, time);
        bytes memory request = svm.createCalldata("PauseGuard");
        vm.prank(caller);
        (bool success,) = address(guard).call(request);
        vm.assume(success);
        uint40 unpauseAt = guard.scopeState(scope).unpauseAt;
        assert(unpauseAt == before.unpauseAt || unpauseAt == 0 || unpauseAt == time + DELAY);
    }

    /// @notice A guardian's or the Safe's pause works in every state.
    function check_pauseAlwaysWorks(address caller, bytes32 scope, bytes8 reason, bytes32 incident, uint40 time)
        public
    {
        arbitrary(scope, time);
        vm.assume(caller == safe || guard.isGuardian(caller));
        vm.prank(caller);
        (bool success,) = address(guard).call(abi.encodeCall(IPauseGuard.pause, (scope, reason, incident)));
        assert(success);
        IPauseGuard.Scope memory later = guard.scopeState(scope);
        assert(later.paused && later.unpauseAt == 0);
    }

    /// @notice The Safe's removal works in every state and schedules what is paused; and then no call by the removed
    /// account takes the schedule back.
    function check_removalAlwaysWorks(address account, bytes32 scope, uint40 time, uint40 after_) public {
        vm.assume(account != address(0) && account != safe);
        bool paused = arbitrary(scope, time).paused;
        vm.prank(safe);
        (bool success,) = address(guard).call(
            abi.encodeCall(IPauseGuard.removeGuardianAndScheduleUnpause, (account, scope))
        );
        assert(success && !guard.isGuardian(account));
        uint40 unpauseAt = guard.scopeState(scope).unpauseAt;
        if (paused) assert(unpauseAt == time + DELAY);

        vm.assume(after_ >= time && after_ < time + DELAY);
        vm.warp(after_);
        vm.prank(account);
        (success,) = address(guard).call(abi.encodeCall(IPauseGuard.vetoUnpause, (scope)));
        assert(!success);
        vm.prank(account);
        (success,) = address(guard).call(abi.encodeCall(IPauseGuard.pause, (scope, "", 0)));
        assert(!success);
        vm.assume(paused);
        assert(guard.scopeState(scope).unpauseAt == unpauseAt);
    }

    /// @notice Plans pass exactly while both scopes run under the epochs they were built for.
    function check_requireRunning(bytes32 scope, uint64 globalEpoch, uint64 epoch) public view {
        IPauseGuard.Scope memory one = guard.scopeState(bytes32(0));
        IPauseGuard.Scope memory other = guard.scopeState(scope);
        bool running = !one.paused && !other.paused && one.epoch == globalEpoch && other.epoch == epoch;
        (bool success,) = address(guard).staticcall(
            abi.encodeCall(IPauseGuard.requireRunning, (scope, globalEpoch, epoch))
        );
        assert(success == running);
    }
}
