// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {PauseGuard} from "../src/PauseGuard.sol";
import {IPauseGuard} from "../src/interfaces/IPauseGuard.sol";
import {PauseGuardSetup} from "./PauseGuardSetup.sol";
import {TestBase} from "./Vm.sol";
import {Token} from "./mocks/Tokens.sol";

/// @notice Plays the Safe, guardians who come and go, an operator and strangers in any order, and keeps a record of its
/// own of what is legal: each call must succeed or fail as the record says, and leave the state the record says.
contract PauseGuardPlayer is TestBase {
    struct Record {
        bool paused;
        uint256 epoch;
        uint256 scheduledAt; // 0 = no schedule in force
        uint256 lastUnpausedAt;
    }

    // A signature that was relayed, for replays and forgeries.
    struct Message {
        bytes32 scope;
        uint40 issuedAt;
        address signer;
        bytes signature;
        bool worked;
    }

    uint256 internal constant CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
    bytes8 internal constant REASON = "TEST";

    PauseGuard internal immutable guard;
    address internal immutable safe;
    Token internal immutable token;
    /// @dev The token's address stands wherever a caller chooses bytes freely.
    bytes32 internal immutable incident;

    uint256[] internal keys; // of guardians, past and future ones too; the last is a stranger's
    address[] internal keepers; // the keys' addresses
    address internal operator = address(0x0EE7);
    bytes32[] internal scopes = [bytes32(0), bytes32("lending"), bytes32("perps")];

    mapping(bytes32 scope => Record) internal records;
    mapping(address account => bool) internal guardians;
    /// @dev Epochs a scope has run under.
    mapping(bytes32 scope => mapping(uint256 epoch => bool)) internal used;
    Message[] internal relayed;
    uint256 public unpauses;

    constructor(PauseGuard guard_, address safe_, Token token_, uint256[] memory keys_) {
        (guard, safe, token, keys) = (guard_, safe_, token_, keys_);
        incident = bytes32(uint256(uint160(address(token_))));
        for (uint256 i; i < keys_.length; ++i) {
            keepers.push(vm.addr(keys_[i]));
            guardians[keepers[i]] = guard_.isGuardian(keepers[i]);
        }
        for (uint256 i; i < scopes.length; ++i) {
            used[scopes[i]][0] = true;
        }
    }

    function scopeOf(uint256 which) internal view returns (bytes32) {
        return scopes[which % scopes.length];
    }

    function keeperOf(uint256 who) internal view returns (address) {
        return keepers[who % keepers.length];
    }

    /// @dev The Safe half of the time, else anybody.
    function callerOf(uint256 who) internal view returns (address) {
        return who % 2 == 0 ? safe : who % 16 == 1 ? operator : keeperOf(who / 2);
    }

    function asked(address caller, bytes memory request) internal returns (bool success) {
        vm.prank(caller);
        (success,) = address(guard).call(request);
    }

    /* WHAT CAN HAPPEN */

    function waitFor(uint256 time) external {
        vm.warp(block.timestamp + bound(time, 0, 3000));
    }

    /// @notice To the second before, of or after the time a scheduled unpause is due.
    function waitUntilDue(uint256 which, uint256 seconds_) external {
        uint256 scheduledAt = records[scopeOf(which)].scheduledAt;
        uint256 time = scheduledAt + guard.UNPAUSE_DELAY() - 1 + seconds_ % 3;
        if (scheduledAt != 0 && time > block.timestamp) vm.warp(time);
    }

    /// @notice A pause by a guardian or the Safe never fails, whatever went before; anybody else's always does.
    function pause(uint256 who, uint256 which) external {
        (address caller, bytes32 scope) = (callerOf(who), scopeOf(which));
        bool allowed = caller == safe || guardians[caller];
        bool success = asked(caller, abi.encodeCall(IPauseGuard.pause, (scope, REASON, incident)));
        assertTrue(success == allowed, "who pauses: a guardian or the Safe, always");
        if (success) (records[scope].paused, records[scope].scheduledAt) = (true, 0);
    }

    function scheduleUnpause(uint256 who, uint256 which) external {
        (address caller, bytes32 scope) = (callerOf(who), scopeOf(which));
        bool success = asked(caller, abi.encodeCall(IPauseGuard.scheduleUnpause, (scope)));
        assertTrue(success == (caller == safe && records[scope].paused), "who schedules what");
        if (success) records[scope].scheduledAt = block.timestamp;
    }

    function vetoUnpause(uint256 who, uint256 which) external {
        (address caller, bytes32 scope) = (callerOf(who), scopeOf(which));
        bool allowed = (caller == safe || guardians[caller]) && records[scope].scheduledAt != 0;
        bool success = asked(caller, abi.encodeCall(IPauseGuard.vetoUnpause, (scope)));
        assertTrue(success == allowed, "who vetoes what");
        if (success) records[scope].scheduledAt = 0;
    }

    function executeUnpause(uint256 who, uint256 which) external {
        bytes32 scope = scopeOf(which);
        Record storage record = records[scope];
        bool due = record.scheduledAt != 0 && block.timestamp >= record.scheduledAt + guard.UNPAUSE_DELAY();
        bool success = asked(callerOf(who), abi.encodeCall(IPauseGuard.executeUnpause, (scope)));
        assertTrue(success == due, "an unpause is executed exactly when the Safe's schedule is due");
        if (success) {
            records[scope] = Record(false, record.epoch + 1, 0, block.timestamp);
            ++unpauses;
            uint64 epoch = guard.scopeState(scope).epoch;
            assertFalse(used[scope][epoch], "an epoch came again");
            used[scope][epoch] = true;
            // Every signature that had an effect before is dead now.
            for (uint256 i; i < relayed.length; ++i) {
                bool matters = relayed[i].worked && relayed[i].scope == scope;
                if (matters) assertLe(relayed[i].issuedAt, block.timestamp, "a signature survived");
            }
        }
    }

    function setGuardian(uint256 who, uint256 whom, bool enabled) external {
        (address caller, address account) = (callerOf(who), keeperOf(whom));
        bool success = asked(caller, abi.encodeCall(IPauseGuard.setGuardian, (account, enabled)));
        assertTrue(success == (caller == safe), "who sets guardians");
        if (success) guardians[account] = enabled;
    }

    function removeAndSchedule(uint256 who, uint256 whom, uint256 which) external {
        (address caller, address account, bytes32 scope) = (callerOf(who), keeperOf(whom), scopeOf(which));
        bytes memory request = abi.encodeCall(IPauseGuard.removeGuardianAndScheduleUnpause, (account, scope));
        assertTrue(asked(caller, request) == (caller == safe), "who removes: the Safe, always");
        if (caller == safe) {
            guardians[account] = false;
            if (records[scope].paused) records[scope].scheduledAt = block.timestamp;
        }
    }

    /* SIGNATURES */

    function relaySignature(uint256 who, uint256 which, uint256 dated) external {
        bytes32 scope = scopeOf(which);
        uint40 issuedAt = dateOf(records[scope], dated);
        bytes32 structHash = keccak256(abi.encode(guard.PAUSE_TYPEHASH(), scope, REASON, incident, issuedAt));
        bytes32 digest = keccak256(abi.encodePacked("\x19\x01", guard.DOMAIN_SEPARATOR(), structHash));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(keys[who % keys.length], digest);
        relayed.push(Message(scope, issuedAt, keeperOf(who), abi.encodePacked(r, s, v), false));
        relay(relayed[relayed.length - 1]);
    }

    /// @dev Any time around now, or the very second of the last unpause or the schedule.
    function dateOf(Record memory record, uint256 dated) internal view returns (uint40) {
        if (dated % 6 == 0 && record.lastUnpausedAt != 0) return uint40(record.lastUnpausedAt);
        if (dated % 6 == 1 && record.scheduledAt != 0) return uint40(record.scheduledAt);
        return uint40(bound(dated, block.timestamp - 5000, block.timestamp + 2500));
    }

    function replaySignature(uint256 which) external {
        if (relayed.length != 0) relay(relayed[which % relayed.length]);
    }

    function relay(Message storage message) internal {
        Record storage record = records[message.scope];
        bool alive = guardians[message.signer] && message.issuedAt > record.lastUnpausedAt
            && message.issuedAt <= block.timestamp + guard.UNPAUSE_DELAY();
        assertTrue(submitted(message, REASON, incident) == alive, "a signature works exactly while it is alive");
        if (alive) {
            message.worked = true;
            record.paused = true;
            if (message.issuedAt >= record.scheduledAt) record.scheduledAt = 0;
        }
    }

    /// @notice A relayed signature with one thing changed is nobody's.
    function forgeSignature(uint256 which, uint256 how, uint256 bit) external {
        if (relayed.length == 0) return;
        Message memory message = relayed[which % relayed.length];
        (bytes8 reason, bytes32 about) = (REASON, incident);
        how %= 6;
        if (how == 0) message.scope ^= bytes32(2 ** (bit % 256));
        if (how == 1) message.issuedAt ^= uint40(2 ** (bit % 40));
        if (how == 2) reason ^= bytes8(uint64(2 ** (bit % 64)));
        if (how == 3) about ^= bytes32(2 ** (bit % 256));
        if (how == 4) message.signature[bit % 65] ^= bytes1(uint8(2 ** (bit % 8)));
        if (how == 5) message.signature = twinOf(message.signature);
        assertFalse(submitted(message, reason, about), "a forged signature was taken");
    }

    function submitted(Message memory message, bytes8 reason, bytes32 about) internal returns (bool) {
        return asked(
            operator,
            abi.encodeCall(
                IPauseGuard.pauseBySig, (message.scope, reason, about, message.issuedAt, message.signature)
            )
        );
    }

    /// @dev The same key's other signature of the same message.
    function twinOf(bytes memory signature) internal pure returns (bytes memory twin) {
        (bytes32 r, bytes32 s) = abi.decode(bytes.concat(signature, new bytes(31)), (bytes32, bytes32));
        return abi.encodePacked(r, bytes32(CURVE_ORDER - uint256(s)), 55 - uint8(signature[64]));
    }

    /* MISCHIEF */

    /// @notice Calls with free arguments, coins attached or not, by whoever has no right to them: all must fail.
    function meddle(uint256 who, uint256 what, bytes32 one, bytes32 other, uint256 coins) external {
        bytes4[8] memory selectors = [
            IPauseGuard.scheduleUnpause.selector,
            IPauseGuard.setGuardian.selector,
            IPauseGuard.removeGuardianAndScheduleUnpause.selector,
            Token.transfer.selector,
            Token.approve.selector,
            Token.transferFrom.selector,
            bytes4(0),
            bytes4(other)
        ];
        if (what % 3 == 0) one = incident;
        address caller = who % 4 == 0 ? operator : keeperOf(who);
        bytes4 selector = selectors[what % selectors.length];
        if (what % selectors.length == 7 && known(selector)) return;
        coins = bound(coins, 0, 1) * 1 ether;
        vm.deal(caller, coins);
        vm.prank(caller);
        (bool success,) = address(guard).call{value: coins}(abi.encodePacked(selector, one, other, one, other));
        assertFalse(success, "mischief");
    }

    /// @dev Selectors that are played elsewhere or only read.
    function known(bytes4 selector) internal pure returns (bool) {
        return selector == IPauseGuard.pause.selector || selector == IPauseGuard.vetoUnpause.selector
            || selector == IPauseGuard.executeUnpause.selector || selector == IPauseGuard.requireRunning.selector
            || selector == IPauseGuard.scopeState.selector || selector == IPauseGuard.scopeStates.selector
            || selector == IPauseGuard.isGuardian.selector || selector == IPauseGuard.SAFE.selector
            || selector == IPauseGuard.UNPAUSE_DELAY.selector || selector == IPauseGuard.DOMAIN_SEPARATOR.selector
            || selector == IPauseGuard.PAUSE_TYPEHASH.selector || selector == IPauseGuard.GLOBAL.selector;
    }

    /* WHAT MUST HOLD */

    /// @notice The contract's state is what the record says, for every scope and account.
    function check() public view {
        for (uint256 i; i < scopes.length; ++i) {
            IPauseGuard.Scope memory state = guard.scopeState(scopes[i]);
            Record memory record = records[scopes[i]];
            assertTrue(state.paused == record.paused, "paused by pauses and running by executed unpauses only");
            assertEq(state.epoch, record.epoch, "the epoch counts the unpauses");
            uint256 unpauseAt = record.scheduledAt == 0 ? 0 : record.scheduledAt + guard.UNPAUSE_DELAY();
            assertEq(state.unpauseAt, unpauseAt, "schedule");
            assertTrue(state.unpauseAt == 0 || state.paused, "only a paused scope has a schedule");
            assertEq(state.lastUnpausedAt, record.lastUnpausedAt, "last unpause");
        }
        for (uint256 i; i < keepers.length; ++i) {
            assertTrue(guard.isGuardian(keepers[i]) == guardians[keepers[i]], "guardians are whom the Safe named");
        }
    }
}

contract PauseGuardInvariants is PauseGuardSetup {
    uint256 internal constant RICHES = 1e24;

    PauseGuardPlayer internal player;
    Token internal token;
    address[] internal owners;

    function setUp() public override {
        super.setUp();
        uint256[] memory keys = new uint256[](4);
        (keys[0], keys[1], keys[2], keys[3]) = (KEY_ONE, KEY_TWO, uint256(0xC4A7), KEY_STRANGER);
        token = new Token(18);
        // Everybody trusts the guard with everything, and it owns something itself.
        owners = [address(guard), safe, guardian, secondGuardian, stranger];
        for (uint256 i; i < owners.length; ++i) {
            token.mint(owners[i], RICHES);
            vm.prank(owners[i]);
            token.approve(address(guard), type(uint256).max);
        }
        player = new PauseGuardPlayer(guard, safe, token, keys);
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(player);
    }

    /// @notice A scope runs again only through an executed Safe schedule after the delay, under an epoch that was never
    /// used before; guardians are whom the Safe named; strangers change nothing but by live signatures and due
    /// executions; guardians and the Safe can always pause. No token and no coin moves, although everybody has approved
    /// the guard.
    function invariant_onlyExecutedSchedulesUnpause() public view {
        player.check();
        for (uint256 i; i < owners.length; ++i) {
            assertEq(token.balanceOf(owners[i]), RICHES, "a token moved");
            assertEq(token.allowance(owners[i], address(guard)), type(uint256).max, "an approval changed");
        }
        assertEq(address(guard).balance, 0, "a coin came");
    }

    /// @notice The sequences the invariants need to be worth anything can happen: pause, schedule, wait, unpause,
    /// replay, forge, remove, enable again.
    function test_playerReachesUnpauses() public {
        for (uint256 i; i < 3; ++i) {
            player.relaySignature(0, 1, i * 7919);
            player.pause(3, 1);
            player.scheduleUnpause(0, 1);
            player.forgeSignature(0, i, i);
            player.removeAndSchedule(0, 0, 1);
            player.replaySignature(0);
            player.waitFor(DELAY);
            player.executeUnpause(1, 1);
            player.setGuardian(0, 0, true);
            player.replaySignature(0);
            player.meddle(i, i, bytes32(i), bytes32(i), i);
            player.check();
        }
        assertEq(player.unpauses(), 3, "unpauses");
    }
}
