// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title IUniswapV3FlashSource
/// @notice The flash loan of a Uniswap v3 pool: sends both amounts, calls the caller back, and then must hold them
/// again with the fees. It swaps for nobody meanwhile.
interface IUniswapV3FlashSource {
    function token0() external view returns (address);
    function flash(address recipient, uint256 amount0, uint256 amount1, bytes calldata data) external;
}

/// @title IUniswapV3FlashReceiver
/// @notice What a Uniswap v3 pool calls on whoever asked it for a flash loan.
interface IUniswapV3FlashReceiver {
    function uniswapV3FlashCallback(uint256 fee0, uint256 fee1, bytes calldata data) external;
}
