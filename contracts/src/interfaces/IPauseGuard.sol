// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title IPauseGuard
/// @notice Paused or running, for one global scope and one scope per protocol.
/// Any guardian, or the Safe, pauses at once. Only the Safe unpauses, after an immutable delay that any guardian can
/// veto.
interface IPauseGuard {
    /* TYPES */

    /// @notice The state of one scope. Fits one storage slot.
    /// @param paused True from a pause to the executed unpause.
    /// @param epoch Grows by one at each unpause, and never otherwise: a plan built before a pause dies with its epoch.
    /// @param pausedAt Time of the pause in force, in seconds; 0 while running.
    /// @param unpauseAt Earliest time of the scheduled unpause, in seconds; 0 when none is scheduled.
    /// @param lastUnpausedAt Time of the last unpause, in seconds; 0 when there was none.
    /// @param reason Reason given by the pause in force; 0 while running.
    struct Scope {
        bool paused;
        uint64 epoch;
        uint40 pausedAt;
        uint40 unpauseAt;
        uint40 lastUnpausedAt;
        bytes8 reason;
    }

    /* ERRORS */

    /// @notice The Safe is the zero address or has no code.
    error InvalidSafe(address safe);

    /// @notice The delay is zero or longer than 30 days.
    error InvalidUnpauseDelay(uint40 unpauseDelay);

    /// @notice The zero address cannot be a guardian: a failed signature recovery returns it.
    error InvalidGuardian(address guardian);

    /// @notice Only the Safe may do this.
    error NotSafe(address caller);

    /// @notice Only a guardian or the Safe may do this.
    error NotGuardian(address caller);

    /// @notice The signature is not 65 bytes long.
    error SignatureLength(uint256 length);

    /// @notice The signature's s lies in the upper half of the curve order, or v is neither 27 nor 28.
    error SignatureMalleable();

    /// @notice The signature was issued no later than the last unpause of the scope.
    error SignatureExpired(uint40 issuedAt, uint40 lastUnpausedAt);

    /// @notice The signature is dated later than now plus the unpause delay.
    error SignatureFromFuture(uint40 issuedAt, uint256 latest);

    /// @notice The scope is running, so there is nothing to unpause.
    error NotPaused(bytes32 scope);

    /// @notice No unpause is scheduled for the scope.
    error UnpauseNotScheduled(bytes32 scope);

    /// @notice The delay of the scheduled unpause has not passed.
    error UnpauseTooEarly(bytes32 scope, uint40 unpauseAt);

    /// @notice The scope is paused.
    error ScopePaused(bytes32 scope);

    /// @notice The scope was unpaused since the caller read its epoch.
    error EpochMismatch(bytes32 scope, uint64 actual, uint64 expected);

    /* EVENTS */

    /// @notice A pause was asked for; emitted also when the scope was paused already.
    event Paused(bytes32 indexed scope, address indexed by, bytes8 reason, bytes32 incident, uint64 epoch);

    /// @notice The Safe scheduled an unpause.
    event UnpauseScheduled(bytes32 indexed scope, uint40 unpauseAt);

    /// @notice A scheduled unpause was cancelled, by a veto or by a new pause.
    event UnpauseVetoed(bytes32 indexed scope, address indexed by);

    /// @notice The scope runs again, under a new epoch.
    event Unpaused(bytes32 indexed scope, uint64 epoch);

    /// @notice A guardian was enabled or disabled.
    event GuardianSet(address indexed guardian, bool enabled);

    /* PAUSING */

    /// @notice Pauses a scope; by a guardian or the Safe. Never reverts because the scope is paused already.
    /// Cancels a scheduled unpause.
    /// @param scope `GLOBAL()` or a protocol's identifier.
    /// @param reason Short ASCII reason, kept by the first pause until the unpause.
    /// @param incident Free identifier of the incident, only logged.
    function pause(bytes32 scope, bytes8 reason, bytes32 incident) external;

    /// @notice Pauses a scope by a guardian's EIP-712 signature of
    /// `Pause(bytes32 scope,bytes8 reason,bytes32 incident,uint40 issuedAt)`, relayed by anyone.
    /// The domain has no chain id, so one signature pauses every deployment at this address.
    /// @dev A signature dies at the first unpause at or after `issuedAt`. Until then it can be replayed, which does
    /// nothing to a paused scope: it cancels only an unpause scheduled no later than `issuedAt`, or else a stranger
    /// could keep the scope paused with an old signature for ever.
    /// @param issuedAt Time the guardian signed, in seconds.
    /// @param signature r, s, v packed in 65 bytes; s in the lower half, v 27 or 28.
    function pauseBySig(
        bytes32 scope,
        bytes8 reason,
        bytes32 incident,
        uint40 issuedAt,
        bytes calldata signature
    ) external;

    /* UNPAUSING */

    /// @notice Schedules the unpause of a paused scope after `UNPAUSE_DELAY()`; only the Safe. Scheduling again
    /// restarts the delay.
    function scheduleUnpause(bytes32 scope) external;

    /// @notice Cancels a scheduled unpause; by a guardian or the Safe.
    function vetoUnpause(bytes32 scope) external;

    /// @notice Unpauses a scope once its scheduled time has come; by anyone.
    function executeUnpause(bytes32 scope) external;

    /* GUARDIANS */

    /// @notice Enables or disables a guardian; only the Safe. A disabled guardian's signatures are refused, also those
    /// made before; enabling the same key again brings back the ones issued after a scope's last unpause.
    function setGuardian(address guardian, bool enabled) external;

    /// @notice Removes a guardian and schedules the unpause of a scope after `UNPAUSE_DELAY()`, in one call; only the
    /// Safe. Nothing the removed guardian does or signed, before or after, cancels that schedule.
    /// @dev Reverts for nothing but the caller and the zero address, so that no state somebody brings about stops the
    /// removal. A scope that runs stays as it is: nothing is scheduled. A schedule in force starts its delay again. An
    /// account that is no guardian any more changes nothing there; the unpause is scheduled all the same.
    function removeGuardianAndScheduleUnpause(address guardian, bytes32 scope) external;

    /* VIEWS */

    /// @notice Reverts unless the global scope and the protocol run, each at the epoch the caller built its plan under.
    function requireRunning(bytes32 protocol, uint64 globalEpoch, uint64 protocolEpoch) external view;

    /// @notice The state of one scope.
    function scopeState(bytes32 scope) external view returns (Scope memory);

    /// @notice The states of several scopes, in the order asked.
    function scopeStates(bytes32[] calldata scopes) external view returns (Scope[] memory);

    /// @notice Whether an account may pause and veto.
    function isGuardian(address account) external view returns (bool);

    /// @notice The only account that unpauses and sets guardians.
    function SAFE() external view returns (address);

    /// @notice Seconds from scheduling an unpause to its execution.
    function UNPAUSE_DELAY() external view returns (uint40);

    /// @notice EIP-712 domain separator: name "PauseGuard", version "1", this address, no chain id.
    function DOMAIN_SEPARATOR() external view returns (bytes32);

    /// @notice EIP-712 type hash of `Pause`.
    function PAUSE_TYPEHASH() external view returns (bytes32);

    /// @notice The scope that stops every protocol.
    function GLOBAL() external view returns (bytes32);
}
