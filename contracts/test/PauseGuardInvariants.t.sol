// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {PauseGuard} from "../src/PauseGuard.sol";
import {IPauseGuard} from "../src/interfaces/IPauseGuard.sol";
import {PauseGuardSetup} from "./PauseGuardSetup.sol";
import {TestBase} from "./Vm.sol";

/// @notice Plays the Safe, two guardians and strangers in any order, and keeps its own record of what must hold.
contract PauseGuardPlayer is TestBase {
    struct Record {
        uint256 scheduledAt; // 0 = no schedule in force
        uint256 unpauses;
        bool paused;
    }

    PauseGuard internal immutable guard;
    address internal immutable safe;
    uint256[] internal keys;
    address internal stranger = address(0xBAD);
    bytes32[] internal scopes = [bytes32(0), bytes32("lending"), bytes32("perps")];
    mapping(bytes32 scope => Record) internal records;

    // A signature that took effect or was relayed before, for replays.
    struct Relayed {
        bytes32 scope;
        uint40 issuedAt;
        bytes signature;
    }

    Relayed[] internal relayed;
    uint256 public unpauses;

    constructor(PauseGuard guard_, address safe_, uint256[] memory keys_) {
        guard = guard_;
        safe = safe_;
        keys = keys_;
    }

    function waitFor(uint256 time) external {
        vm.warp(block.timestamp + bound(time, 0, 3000));
        check();
    }

    function guardianPauses(uint256 who, uint256 which, bool bySafe) external {
        bytes32 scope = scopes[which % scopes.length];
        vm.prank(bySafe ? safe : vm.addr(keys[who % keys.length]));
        guard.pause(scope, "TEST", 0);
        records[scope].paused = true;
        records[scope].scheduledAt = 0;
        check();
    }

    function strangerPauses(uint256 which) external {
        vm.prank(stranger);
        (bool success,) = address(guard).call(
            abi.encodeCall(IPauseGuard.pause, (scopes[which % scopes.length], bytes8("TEST"), bytes32(0)))
        );
        assertFalse(success, "a stranger paused");
        check();
    }

    function relaySignature(uint256 who, uint256 which, uint256 dated) external {
        bytes32 scope = scopes[which % scopes.length];
        uint40 issuedAt = uint40(bound(dated, block.timestamp - 5000, block.timestamp + 2500));
        bytes32 structHash =
            keccak256(abi.encode(guard.PAUSE_TYPEHASH(), scope, bytes8("TEST"), bytes32(0), issuedAt));
        bytes32 digest = keccak256(abi.encodePacked("\x19\x01", guard.DOMAIN_SEPARATOR(), structHash));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[who % keys.length], digest);
        submit(Relayed(scope, issuedAt, abi.encodePacked(r, s, v)));
    }

    function replaySignature(uint256 which) external {
        if (relayed.length != 0) submit(relayed[which % relayed.length]);
    }

    function submit(Relayed memory message) internal {
        IPauseGuard.Scope memory before = guard.scopeState(message.scope);
        bool alive = message.issuedAt > before.lastUnpausedAt
            && message.issuedAt <= block.timestamp + guard.UNPAUSE_DELAY();
        vm.prank(stranger);
        (bool success,) = address(guard).call(
            abi.encodeCall(
                IPauseGuard.pauseBySig,
                (message.scope, bytes8("TEST"), bytes32(0), message.issuedAt, message.signature)
            )
        );
        assertTrue(success == alive, "a signature works exactly while it is alive");
        if (success) {
            Record storage record = records[message.scope];
            record.paused = true;
            if (message.issuedAt >= record.scheduledAt) record.scheduledAt = 0;
            relayed.push(message);
        }
        check();
    }

    function scheduleUnpause(uint256 which, uint256 who) external {
        bytes32 scope = scopes[which % scopes.length];
        address caller = who % 4 == 0 ? stranger : who % 4 == 1 ? vm.addr(keys[who % keys.length]) : safe;
        vm.prank(caller);
        (bool success,) = address(guard).call(abi.encodeCall(IPauseGuard.scheduleUnpause, (scope)));
        assertTrue(success == (caller == safe && records[scope].paused), "who schedules what");
        if (success) records[scope].scheduledAt = block.timestamp;
        check();
    }

    function vetoUnpause(uint256 which, uint256 who) external {
        bytes32 scope = scopes[which % scopes.length];
        address caller = who % 3 == 0 ? stranger : who % 3 == 1 ? vm.addr(keys[who % keys.length]) : safe;
        vm.prank(caller);
        (bool success,) = address(guard).call(abi.encodeCall(IPauseGuard.vetoUnpause, (scope)));
        assertTrue(success == (caller != stranger && records[scope].scheduledAt != 0), "who vetoes what");
        if (success) records[scope].scheduledAt = 0;
        check();
    }

    function executeUnpause(uint256 which) external {
        bytes32 scope = scopes[which % scopes.length];
        Record storage record = records[scope];
        vm.prank(stranger);
        (bool success,) = address(guard).call(abi.encodeCall(IPauseGuard.executeUnpause, (scope)));
        bool due = record.scheduledAt != 0 && block.timestamp >= record.scheduledAt + guard.UNPAUSE_DELAY();
        assertTrue(success == due, "an unpause is executed exactly when the Safe's schedule is due");
        if (success) {
            record.paused = false;
            record.scheduledAt = 0;
            ++record.unpauses;
            ++unpauses;
            // Every signature that had an effect before is dead now.
            for (uint256 i; i < relayed.length; ++i) {
                if (relayed[i].scope == scope) {
                    assertLe(relayed[i].issuedAt, guard.scopeState(scope).lastUnpausedAt, "a signature survived");
                }
            }
        }
        check();
    }

    /// @notice The contract's state is what the record says, for every scope.
    function check() public view {
        for (uint256 i; i < scopes.length; ++i) {
            IPauseGuard.Scope memory state = guard.scopeState(scopes[i]);
            Record memory record = records[scopes[i]];
            assertTrue(state.paused == record.paused, "paused by pauses and running by executed unpauses only");
            assertEq(state.epoch, record.unpauses, "the epoch counts the unpauses");
            uint256 unpauseAt = record.scheduledAt == 0 ? 0 : record.scheduledAt + guard.UNPAUSE_DELAY();
            assertEq(state.unpauseAt, unpauseAt, "schedule");
            assertTrue(state.unpauseAt == 0 || state.paused, "only a paused scope has a schedule");
            assertLe(state.lastUnpausedAt, block.timestamp, "no unpause in the future");
        }
    }
}

contract PauseGuardInvariants is PauseGuardSetup {
    PauseGuardPlayer internal player;

    function setUp() public override {
        super.setUp();
        uint256[] memory keys = new uint256[](2);
        (keys[0], keys[1]) = (KEY_ONE, KEY_TWO);
        player = new PauseGuardPlayer(guard, safe, keys);
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(player);
    }

    /// @notice A scope runs again only through an executed Safe schedule after the delay; the epoch is the number of
    /// unpauses, so it never repeats; strangers change nothing but by live signatures and due executions.
    function invariant_onlyExecutedSchedulesUnpause() public view {
        player.check();
    }

    /// @notice The sequence the invariant needs to be worth anything can happen: pause, schedule, wait, unpause,
    /// replay.
    function test_playerReachesUnpauses() public {
        for (uint256 i; i < 3; ++i) {
            player.relaySignature(0, 1, i * 7919);
            player.guardianPauses(0, 1, false);
            player.scheduleUnpause(1, 3);
            player.waitFor(DELAY);
            player.executeUnpause(1);
            player.replaySignature(0);
        }
        assertEq(player.unpauses(), 3, "unpauses");
    }
}
