// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title IAaveV3FlashSource
/// @notice The flash loan of an Aave v3 pool: sends `amount`, calls the receiver, then pulls `amount` plus the premium.
interface IAaveV3FlashSource {
    function flashLoanSimple(
        address receiver,
        address asset,
        uint256 amount,
        bytes calldata params,
        uint16 referralCode
    ) external;
}

/// @title IAaveV3FlashReceiver
/// @notice What an Aave v3 pool calls on the receiver of a flash loan.
interface IAaveV3FlashReceiver {
    function executeOperation(
        address asset,
        uint256 amount,
        uint256 premium,
        address initiator,
        bytes calldata params
    ) external returns (bool);
}
