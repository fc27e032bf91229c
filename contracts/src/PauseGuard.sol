// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IPauseGuard} from "./interfaces/IPauseGuard.sol";

/// @title PauseGuard
/// @notice Stops the keeper at once on one guardian's word, and restarts it only on the Safe's, after a delay.
/// @dev Immutable and separate from the Liquidator, so that replacing the Liquidator cannot lose a pause. Makes no
/// external call, so nobody can make a pause fail.
contract PauseGuard is IPauseGuard {
    /* CONSTANTS */

    /// @inheritdoc IPauseGuard
    bytes32 public constant GLOBAL = bytes32(0);

    /// @inheritdoc IPauseGuard
    bytes32 public constant PAUSE_TYPEHASH =
        keccak256("Pause(bytes32 scope,bytes8 reason,bytes32 incident,uint40 issuedAt)");

    /// @dev A longer delay is a typing error that would lock the keeper for good.
    uint40 private constant MAX_UNPAUSE_DELAY = 30 days;

    /// @dev Half the order of secp256k1: above it every signature has a lower twin.
    uint256 private constant HALF_CURVE_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;

    /* IMMUTABLES */

    /// @inheritdoc IPauseGuard
    address public immutable SAFE;

    /// @inheritdoc IPauseGuard
    uint40 public immutable UNPAUSE_DELAY;

    /// @inheritdoc IPauseGuard
    bytes32 public immutable DOMAIN_SEPARATOR;

    /* STORAGE */

    /// @inheritdoc IPauseGuard
    mapping(address account => bool) public isGuardian;

    mapping(bytes32 scope => Scope) internal _scopes;

    /* CONSTRUCTOR */

    /// @param safe The Safe; must have code on this chain already.
    /// @param guardians The first guardians.
    /// @param unpauseDelay Seconds between scheduling and executing an unpause; above zero, at most 30 days.
    constructor(address safe, address[] memory guardians, uint40 unpauseDelay) {
        if (safe.code.length == 0) revert InvalidSafe(safe);
        if (unpauseDelay == 0 || unpauseDelay > MAX_UNPAUSE_DELAY) revert InvalidUnpauseDelay(unpauseDelay);
        SAFE = safe;
        UNPAUSE_DELAY = unpauseDelay;
        // No chain id: one signature pauses every deployment at this address, and pausing is the safe direction.
        DOMAIN_SEPARATOR = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,address verifyingContract)"),
                keccak256("PauseGuard"),
                keccak256("1"),
                address(this)
            )
        );
        for (uint256 i; i < guardians.length; ++i) {
            _setGuardian(guardians[i], true);
        }
    }

    /* MODIFIERS */

    modifier onlySafe() {
        if (msg.sender != SAFE) revert NotSafe(msg.sender);
        _;
    }

    modifier onlyGuardianOrSafe() {
        if (!isGuardian[msg.sender] && msg.sender != SAFE) revert NotGuardian(msg.sender);
        _;
    }

    /* PAUSING */

    /// @inheritdoc IPauseGuard
    function pause(bytes32 scope, bytes8 reason, bytes32 incident) external onlyGuardianOrSafe {
        _pause(scope, msg.sender, reason, incident, uint40(block.timestamp));
    }

    /// @inheritdoc IPauseGuard
    function pauseBySig(bytes32 scope, bytes8 reason, bytes32 incident, uint40 issuedAt, bytes calldata signature)
        external
    {
        uint40 lastUnpausedAt = _scopes[scope].lastUnpausedAt;
        if (issuedAt <= lastUnpausedAt) revert SignatureExpired(issuedAt, lastUnpausedAt);
        // A use at time t has issuedAt <= t + delay, and the next unpause comes at t + delay or later (a schedule made
        // before the use survives it only if it is younger than issuedAt): so no signature outlives that unpause.
        uint256 latest = block.timestamp + UNPAUSE_DELAY;
        if (issuedAt > latest) revert SignatureFromFuture(issuedAt, latest);

        bytes32 structHash = keccak256(abi.encode(PAUSE_TYPEHASH, scope, reason, incident, issuedAt));
        address signer = _recover(keccak256(abi.encodePacked("\x19\x01", DOMAIN_SEPARATOR, structHash)), signature);
        if (!isGuardian[signer]) revert NotGuardian(signer);
        _pause(scope, signer, reason, incident, issuedAt);
    }

    /// @dev `issuedAt` is when the guardian decided; it overrules the unpauses scheduled until then.
    function _pause(bytes32 scope, address by, bytes8 reason, bytes32 incident, uint40 issuedAt) internal {
        Scope memory state = _scopes[scope];
        if (state.unpauseAt != 0 && issuedAt >= state.unpauseAt - UNPAUSE_DELAY) {
            state.unpauseAt = 0;
            emit UnpauseVetoed(scope, by);
        }
        if (!state.paused) {
            state.paused = true;
            state.pausedAt = uint40(block.timestamp);
            state.reason = reason;
        }
        _scopes[scope] = state;
        emit Paused(scope, by, reason, incident, state.epoch);
    }

    /* UNPAUSING */

    /// @inheritdoc IPauseGuard
    function scheduleUnpause(bytes32 scope) external onlySafe {
        if (!_scopes[scope].paused) revert NotPaused(scope);
        _scheduleUnpause(scope);
    }

    function _scheduleUnpause(bytes32 scope) internal {
        uint40 unpauseAt = uint40(block.timestamp) + UNPAUSE_DELAY;
        _scopes[scope].unpauseAt = unpauseAt;
        emit UnpauseScheduled(scope, unpauseAt);
    }

    /// @inheritdoc IPauseGuard
    function vetoUnpause(bytes32 scope) external onlyGuardianOrSafe {
        if (_scopes[scope].unpauseAt == 0) revert UnpauseNotScheduled(scope);
        _scopes[scope].unpauseAt = 0;
        emit UnpauseVetoed(scope, msg.sender);
    }

    /// @inheritdoc IPauseGuard
    function executeUnpause(bytes32 scope) external {
        Scope memory state = _scopes[scope];
        if (state.unpauseAt == 0) revert UnpauseNotScheduled(scope);
        if (block.timestamp < state.unpauseAt) revert UnpauseTooEarly(scope, state.unpauseAt);
        uint64 epoch = state.epoch + 1;
        _scopes[scope] = Scope({
            paused: false,
            epoch: epoch,
            pausedAt: 0,
            unpauseAt: 0,
            lastUnpausedAt: uint40(block.timestamp),
            reason: 0
        });
        emit Unpaused(scope, epoch);
    }

    /* GUARDIANS */

    /// @inheritdoc IPauseGuard
    function setGuardian(address guardian, bool enabled) external onlySafe {
        _setGuardian(guardian, enabled);
    }

    /// @inheritdoc IPauseGuard
    function removeGuardianAndScheduleUnpause(address guardian, bytes32 scope) external onlySafe {
        _setGuardian(guardian, false);
        // No revert for a running scope: whoever executes a due unpause just before must not save the guardian.
        if (_scopes[scope].paused) _scheduleUnpause(scope);
    }

    function _setGuardian(address guardian, bool enabled) internal {
        if (guardian == address(0)) revert InvalidGuardian(guardian);
        isGuardian[guardian] = enabled;
        emit GuardianSet(guardian, enabled);
    }

    /* VIEWS */

    /// @inheritdoc IPauseGuard
    function requireRunning(bytes32 protocol, uint64 globalEpoch, uint64 protocolEpoch) external view {
        _requireRunning(GLOBAL, globalEpoch);
        _requireRunning(protocol, protocolEpoch);
    }

    function _requireRunning(bytes32 scope, uint64 expected) internal view {
        Scope memory state = _scopes[scope];
        if (state.paused) revert ScopePaused(scope);
        if (state.epoch != expected) revert EpochMismatch(scope, state.epoch, expected);
    }

    /// @inheritdoc IPauseGuard
    function scopeState(bytes32 scope) external view returns (Scope memory) {
        return _scopes[scope];
    }

    /// @inheritdoc IPauseGuard
    function scopeStates(bytes32[] calldata scopes) external view returns (Scope[] memory states) {
        states = new Scope[](scopes.length);
        for (uint256 i; i < scopes.length; ++i) {
            states[i] = _scopes[scopes[i]];
        }
    }

    /* SIGNATURES */

    /// @dev Returns the zero address, which is never a guardian, when no key made the signature.
    function _recover(bytes32 digest, bytes calldata signature) internal pure returns (address) {
        if (signature.length != 65) revert SignatureLength(signature.length);
        bytes32 r = bytes32(signature[:32]);
        bytes32 s = bytes32(signature[32:64]);
        uint8 v = uint8(signature[64]);
        if (uint256(s) > HALF_CURVE_ORDER || (v != 27 && v != 28)) revert SignatureMalleable();
        return ecrecover(digest, v, r, s);
    }
}
