// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {PauseGuard} from "../src/PauseGuard.sol";
import {IPauseGuard} from "../src/interfaces/IPauseGuard.sol";
import {PauseGuardSetup} from "./PauseGuardSetup.sol";

contract PauseGuardPauseBySigTest is PauseGuardSetup {
    uint40 internal constant NOW = uint40(START);

    /// @notice Anyone relays a guardian's signature, and the pause is the guardian's.
    function testFuzz_anyoneRelays(address relayer, bytes32 scope) public {
        bytes memory signature = signatureOf(KEY_TWO, scope, clock());
        vm.expectEmit(address(guard));
        emit IPauseGuard.Paused(scope, secondGuardian, REASON, INCIDENT, 0);
        vm.prank(relayer);
        guard.pauseBySig(scope, REASON, INCIDENT, clock(), signature);
        assertTrue(state(scope).paused, "paused");
    }

    /// @notice The domain has no chain id: the same signature pauses on every chain.
    function test_signatureWorksOnEveryChain() public {
        bytes memory signature = signatureOf(KEY_ONE, GLOBAL, clock());
        vm.chainId(8453);
        relay(GLOBAL, clock(), signature);
        assertTrue(state(GLOBAL).paused, "paused");
    }

    /// @notice A signature binds scope, reason, incident and time: with any of them changed, the signer is a stranger.
    function testFuzz_signatureBindsEveryField(bytes32 scope, bytes8 reason, bytes32 incident, uint40 age) public {
        uint40 issuedAt = uint40(bound(age, 1, START));
        vm.assume(scope != LENDING || reason != REASON || incident != INCIDENT || issuedAt != clock());
        bytes memory signature = signatureOf(KEY_ONE, LENDING, clock());
        vm.expectPartialRevert(IPauseGuard.NotGuardian.selector);
        guard.pauseBySig(scope, reason, incident, issuedAt, signature);
    }

    /// @notice A signature for another guard is worthless here.
    function test_signatureForAnotherGuard() public {
        bytes memory signature = signatureOf(KEY_ONE, LENDING, clock());
        guard = new PauseGuard(safe, new address[](0), DELAY);
        vm.prank(safe);
        guard.setGuardian(guardian, true);
        vm.expectPartialRevert(IPauseGuard.NotGuardian.selector);
        relay(LENDING, NOW, signature);
    }

    /// @notice The Safe's or a stranger's key signs nothing; a removed guardian's neither.
    function test_onlyGuardiansSign() public {
        bytes memory signature = signatureOf(KEY_STRANGER, LENDING, clock());
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.NotGuardian.selector, stranger));
        relay(LENDING, NOW, signature);

        signature = signatureOf(KEY_ONE, LENDING, clock());
        vm.prank(safe);
        guard.setGuardian(guardian, false);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.NotGuardian.selector, guardian));
        relay(LENDING, NOW, signature);
    }

    /// @notice The higher twin of a signature is refused.
    function testFuzz_highSRefused(bytes32 scope) public {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(KEY_ONE, digestOf(scope, clock()));
        bytes memory twin = abi.encodePacked(r, bytes32(CURVE_ORDER - uint256(s)), v == 27 ? uint8(28) : uint8(27));
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.SignatureMalleable.selector));
        relay(scope, NOW, twin);
    }

    /// @notice A v other than 27 and 28 is refused.
    function testFuzz_oddVRefused(uint8 v) public {
        vm.assume(v != 27 && v != 28);
        (, bytes32 r, bytes32 s) = vm.sign(KEY_ONE, digestOf(LENDING, clock()));
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.SignatureMalleable.selector));
        relay(LENDING, NOW, abi.encodePacked(r, s, v));
    }

    /// @notice A signature of any length but 65 is refused, compact signatures too.
    function testFuzz_wrongLengthRefused(bytes calldata junk) public {
        vm.assume(junk.length != 65);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.SignatureLength.selector, junk.length));
        relay(LENDING, NOW, junk);
    }

    /// @notice Garbage of the right form recovers to nobody, who is no guardian.
    function test_garbageRecoversToNobody() public {
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.NotGuardian.selector, address(0)));
        relay(LENDING, NOW, abi.encodePacked(bytes32(0), bytes32(uint256(1)), uint8(27)));
    }

    /// @notice A used signature is dead after the unpause, whenever within its leeway it was dated.
    function testFuzz_usedSignatureDiesAtUnpause(uint256 dated, uint256 waited, bool scheduledBefore) public {
        uint40 issuedAt = uint40(bound(dated, START - 30 days, START + DELAY));
        bytes memory signature = signatureOf(KEY_ONE, LENDING, issuedAt);
        if (scheduledBefore) {
            pauseAs(secondGuardian, LENDING);
            schedule(LENDING);
        }
        relay(LENDING, issuedAt, signature);
        vm.warp(START + bound(waited, 0, 30 days));
        if (state(LENDING).unpauseAt == 0) schedule(LENDING);
        if (clock() < state(LENDING).unpauseAt) vm.warp(state(LENDING).unpauseAt);
        guard.executeUnpause(LENDING);

        uint40 unpausedAt = clock();
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.SignatureExpired.selector, issuedAt, unpausedAt));
        relay(LENDING, issuedAt, signature);
        vm.warp(START + 365 days);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.SignatureExpired.selector, issuedAt, unpausedAt));
        relay(LENDING, issuedAt, signature);
        assertFalse(state(LENDING).paused, "runs on");
    }

    /// @notice A signature issued after the unpause pauses again; one issued in its very second does not.
    function test_expiryIsExact() public {
        pauseAs(guardian, LENDING);
        unpause(LENDING);
        uint40 unpausedAt = clock();
        bytes memory old = signatureOf(KEY_ONE, LENDING, unpausedAt);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.SignatureExpired.selector, unpausedAt, unpausedAt));
        relay(LENDING, unpausedAt, old);
        relay(LENDING, unpausedAt + 1, signatureOf(KEY_ONE, LENDING, unpausedAt + 1));
        assertTrue(state(LENDING).paused, "paused");
        assertEq(state(LENDING).epoch, 1, "epoch");
    }

    /// @notice A signature may be dated ahead by the unpause delay and not a second more.
    function test_futureLeewayIsExact() public {
        uint40 latest = clock() + DELAY;
        bytes memory ahead = signatureOf(KEY_ONE, LENDING, latest + 1);
        vm.expectRevert(abi.encodeWithSelector(IPauseGuard.SignatureFromFuture.selector, latest + 1, uint256(latest)));
        relay(LENDING, latest + 1, ahead);
        relay(LENDING, latest, signatureOf(KEY_ONE, LENDING, latest));
        assertTrue(state(LENDING).paused, "paused");
    }

    /// @notice A fresh signature cancels a scheduled unpause.
    function test_freshSignatureCancelsSchedule() public {
        pauseAs(guardian, LENDING);
        schedule(LENDING);
        uint40 issuedAt = clock();
        bytes memory signature = signatureOf(KEY_TWO, LENDING, issuedAt);
        vm.warp(START + DELAY);
        vm.expectEmit(address(guard));
        emit IPauseGuard.UnpauseVetoed(LENDING, secondGuardian);
        relay(LENDING, issuedAt, signature);
        assertEq(state(LENDING).unpauseAt, 0, "schedule cancelled");
    }

    /// @notice A stranger cannot keep a scope paused by replaying the signature that paused it.
    function testFuzz_replayCannotBlockUnpause(uint256 age, uint256 replayedAt) public {
        uint40 issuedAt = uint40(START - bound(age, 1, 30 days));
        bytes memory signature = signatureOf(KEY_ONE, LENDING, issuedAt);
        relay(LENDING, issuedAt, signature);
        schedule(LENDING);
        vm.warp(START + bound(replayedAt, 0, DELAY));
        relay(LENDING, issuedAt, signature);
        assertEq(state(LENDING).unpauseAt, START + DELAY, "schedule stands");
        vm.warp(START + DELAY);
        guard.executeUnpause(LENDING);
        assertFalse(state(LENDING).paused, "runs");
    }
}
