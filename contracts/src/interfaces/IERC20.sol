// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title IERC20
/// @notice The views of a token. Transfers and approvals go through low-level calls, since some tokens return nothing.
interface IERC20 {
    function balanceOf(address account) external view returns (uint256);
    function decimals() external view returns (uint8);
    function transfer(address to, uint256 amount) external returns (bool);
    function approve(address spender, uint256 amount) external returns (bool);
}
