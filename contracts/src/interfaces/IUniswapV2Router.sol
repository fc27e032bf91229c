// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title IUniswapV2Router
/// @notice The two swaps between tokens of Uniswap's v2-periphery Router02; `amounts` runs along the path.
interface IUniswapV2Router {
    function swapExactTokensForTokens(
        uint256 amountIn,
        uint256 amountOutMin,
        address[] calldata path,
        address to,
        uint256 deadline
    ) external returns (uint256[] memory amounts);

    function swapTokensForExactTokens(
        uint256 amountOut,
        uint256 amountInMax,
        address[] calldata path,
        address to,
        uint256 deadline
    ) external returns (uint256[] memory amounts);
}
