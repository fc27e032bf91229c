// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IUniswapV2Router} from "../../src/interfaces/IUniswapV2Router.sol";
import {IUniswapV3Router} from "../../src/interfaces/IUniswapV3Router.sol";
import {Moving, Token} from "./Tokens.sol";

/// @notice Swaps packed v3 paths at rates set by anybody per pair and fee tier, and v2 paths at those of tier zero:
/// whoever sets the rate controls the pool.
contract Router is IUniswapV2Router, IUniswapV3Router {
    using Moving for address;

    error TooLittle(uint256 amountOut, uint256 minimum);
    error TooMuch(uint256 amountIn, uint256 maximum);
    error Late();
    error NoPool();
    error HookFailed();

    uint256 internal constant WAD = 1e18;

    // Raw units out per raw unit in, times 1e18.
    mapping(bytes32 pool => uint256) public rateWad;
    address public hookTarget;
    bytes public hook;

    function setRate(address tokenIn, uint24 fee, address tokenOut, uint256 rate) external {
        rateWad[keccak256(abi.encodePacked(tokenIn, fee, tokenOut))] = rate;
    }

    /// @notice A call to make during each swap, as a token in the path could.
    function setHook(address target, bytes calldata request) external {
        (hookTarget, hook) = (target, request);
    }

    function exactInput(ExactInputParams calldata params) external payable returns (uint256 amount) {
        if (block.timestamp > params.deadline) revert Late();
        address(bytes20(params.path[:20])).pull(msg.sender, params.amountIn);
        _runHook();
        amount = params.amountIn;
        for (uint256 i = 20; i < params.path.length; i += 23) {
            amount = amount * _rate(keccak256(params.path[i - 20:i + 23])) / WAD;
        }
        if (amount < params.amountOutMinimum) revert TooLittle(amount, params.amountOutMinimum);
        Token(address(bytes20(params.path[params.path.length - 20:]))).mint(params.recipient, amount);
    }

    function exactOutput(ExactOutputParams calldata params) external payable returns (uint256 amount) {
        if (block.timestamp > params.deadline) revert Late();
        amount = params.amountOut;
        for (uint256 i = 20; i < params.path.length; i += 23) {
            // The path runs from what comes out to what goes in; pools are keyed in to out.
            bytes32 pool = keccak256(
                abi.encodePacked(params.path[i + 3:i + 23], params.path[i:i + 3], params.path[i - 20:i])
            );
            uint256 rate = _rate(pool);
            amount = (amount * WAD + rate - 1) / rate;
        }
        if (amount > params.amountInMaximum) revert TooMuch(amount, params.amountInMaximum);
        Token(address(bytes20(params.path[:20]))).mint(params.recipient, params.amountOut);
        _runHook();
        address(bytes20(params.path[params.path.length - 20:])).pull(msg.sender, amount);
    }

    function swapExactTokensForTokens(
        uint256 amountIn,
        uint256 amountOutMin,
        address[] calldata path,
        address to,
        uint256 deadline
    ) external returns (uint256[] memory amounts) {
        if (block.timestamp > deadline) revert Late();
        uint256 last = path.length - 1;
        amounts = new uint256[](last + 1);
        amounts[0] = amountIn;
        path[0].pull(msg.sender, amountIn);
        _runHook();
        for (uint256 i; i < last; ++i) {
            amounts[i + 1] = amounts[i] * _rate(_v2Pool(path, i)) / WAD;
        }
        if (amounts[last] < amountOutMin) revert TooLittle(amounts[last], amountOutMin);
        Token(path[last]).mint(to, amounts[last]);
    }

    function swapTokensForExactTokens(
        uint256 amountOut,
        uint256 amountInMax,
        address[] calldata path,
        address to,
        uint256 deadline
    ) external returns (uint256[] memory amounts) {
        if (block.timestamp > deadline) revert Late();
        uint256 last = path.length - 1;
        amounts = new uint256[](last + 1);
        amounts[last] = amountOut;
        for (uint256 i = last; i != 0; --i) {
            uint256 rate = _rate(_v2Pool(path, i - 1));
            amounts[i - 1] = (amounts[i] * WAD + rate - 1) / rate;
        }
        if (amounts[0] > amountInMax) revert TooMuch(amounts[0], amountInMax);
        Token(path[last]).mint(to, amountOut);
        _runHook();
        path[0].pull(msg.sender, amounts[0]);
    }

    function _v2Pool(address[] calldata path, uint256 hop) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(path[hop], uint24(0), path[hop + 1]));
    }

    function _rate(bytes32 pool) internal view returns (uint256 rate) {
        rate = rateWad[pool];
        if (rate == 0) revert NoPool();
    }

    function _runHook() internal {
        if (hookTarget == address(0)) return;
        (bool success,) = hookTarget.call(hook);
        if (!success) revert HookFailed();
    }
}

/// @notice Takes all it may, gives nothing, or an exact output if it is told to, and claims whatever it is told to.
contract LyingRouter is IUniswapV2Router, IUniswapV3Router {
    uint256 public claim;
    bool public giving;

    function setClaim(uint256 claim_) external {
        claim = claim_;
    }

    function setGiving(bool giving_) external {
        giving = giving_;
    }

    function exactInput(ExactInputParams calldata params) external payable returns (uint256) {
        Moving.pull(address(bytes20(params.path[:20])), msg.sender, params.amountIn);
        return claim;
    }

    function exactOutput(ExactOutputParams calldata params) external payable returns (uint256) {
        Moving.pull(address(bytes20(params.path[params.path.length - 20:])), msg.sender, params.amountInMaximum);
        if (giving) Token(address(bytes20(params.path[:20]))).mint(params.recipient, params.amountOut);
        return claim;
    }

    function swapExactTokensForTokens(uint256 amountIn, uint256, address[] calldata path, address, uint256)
        external
        returns (uint256[] memory amounts)
    {
        Moving.pull(path[0], msg.sender, amountIn);
        amounts = new uint256[](path.length);
        amounts[path.length - 1] = claim;
    }

    function swapTokensForExactTokens(
        uint256 amountOut,
        uint256 amountInMax,
        address[] calldata path,
        address to,
        uint256
    ) external returns (uint256[] memory amounts) {
        Moving.pull(path[0], msg.sender, amountInMax);
        if (giving) Token(path[path.length - 1]).mint(to, amountOut);
        amounts = new uint256[](path.length);
        amounts[0] = claim;
    }
}
