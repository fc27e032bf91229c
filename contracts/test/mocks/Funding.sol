// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IMorpho, IMorphoCallbacks} from "../../src/interfaces/IMorpho.sol";
import {IUniswapV3FlashReceiver, IUniswapV3FlashSource} from "../../src/interfaces/IUniswapV3Flash.sol";
import {Moving, Token} from "./Tokens.sol";

/// @notice Lends and liquidates like Morpho Blue. What an account owes and its health are the test's to decide: a
/// liquidation seizes just `seizedAssets` and costs just `repaidShares`.
contract Morpho is IMorpho {
    error NothingLent();
    error HookFailed();

    address public hookTarget;
    bytes public hook;

    /// @notice A call to make during each liquidation, as a collateral of somebody's own could.
    function setHook(address target, bytes calldata request) external {
        (hookTarget, hook) = (target, request);
    }

    function flashLoan(address token, uint256 assets, bytes calldata data) external {
        if (assets == 0) revert NothingLent();
        Moving.push(token, msg.sender, assets);
        IMorphoCallbacks(msg.sender).onMorphoFlashLoan(assets, data);
        Moving.pull(token, msg.sender, assets);
    }

    function liquidate(
        MarketParams calldata market,
        address,
        uint256 seizedAssets,
        uint256 repaidShares,
        bytes calldata data
    ) external returns (uint256, uint256) {
        Token(market.collateralToken).mint(msg.sender, seizedAssets);
        if (hookTarget != address(0)) {
            (bool success,) = hookTarget.call(hook);
            if (!success) revert HookFailed();
        }
        if (data.length != 0) IMorphoCallbacks(msg.sender).onMorphoLiquidate(repaidShares, data);
        Moving.pull(market.loanToken, msg.sender, repaidShares);
        return (seizedAssets, repaidShares);
    }
}

/// @notice Lends like a Uniswap v3 pool: its fee in millionths, rounded up; locked while it lends.
contract FlashPool is IUniswapV3FlashSource {
    error Locked();
    error NotRepaid();

    address public immutable token0;
    address public immutable token1;
    uint256 public feePpm = 500;
    bool internal locked;

    constructor(address first, address second) {
        (token0, token1) = (first, second);
    }

    function setFeePpm(uint256 ppm) external {
        feePpm = ppm;
    }

    function flash(address recipient, uint256 amount0, uint256 amount1, bytes calldata data) external {
        if (locked) revert Locked();
        locked = true;
        (uint256 due0, uint256 due1) = (_lend(token0, recipient, amount0), _lend(token1, recipient, amount1));
        uint256 fee0 = (amount0 * feePpm + 999_999) / 1_000_000;
        uint256 fee1 = (amount1 * feePpm + 999_999) / 1_000_000;
        IUniswapV3FlashReceiver(msg.sender).uniswapV3FlashCallback(fee0, fee1, data);
        if (Token(token0).balanceOf(address(this)) < due0 + fee0) revert NotRepaid();
        if (Token(token1).balanceOf(address(this)) < due1 + fee1) revert NotRepaid();
        locked = false;
    }

    function _lend(address token, address recipient, uint256 amount) internal returns (uint256 due) {
        due = Token(token).balanceOf(address(this));
        if (amount != 0) Moving.push(token, recipient, amount);
    }
}
