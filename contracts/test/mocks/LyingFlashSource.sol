// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IAaveV3FlashReceiver} from "../../src/interfaces/IAaveV3Flash.sol";
import {IMorpho, IMorphoCallbacks} from "../../src/interfaces/IMorpho.sol";
import {IUniswapV3FlashReceiver, IUniswapV3FlashSource} from "../../src/interfaces/IUniswapV3Flash.sol";
import {Moving, Token} from "./Tokens.sol";

/// @notice A flash source of every kind that breaks the protocol in one chosen way.
contract LyingFlashSource is IMorpho, IUniswapV3FlashSource {
    enum Lie {
        NONE,
        NO_CALLBACK,
        TWICE,
        OTHER_INITIATOR,
        OTHER_AMOUNT,
        OTHER_ASSET,
        OTHER_PARAMS,
        OTHER_FUNCTION,
        KEEPS_LOAN,
        PREMIUM_TEN_PERCENT,
        PULLS_NOTHING,
        PULLS_TWICE,
        CALLS_FROM_ELSEWHERE
    }

    enum Way {
        AAVE_V3,
        MORPHO,
        UNISWAP_V3,
        LIQUIDATION
    }

    struct Loan {
        Way way;
        address receiver;
        address asset;
        uint256 amount;
        uint256 premium;
    }

    Lie public lie;

    /// @notice What it might have pulled last, by the approval it was given.
    uint256 public approved;

    /// @notice The token it lends as a Uniswap v3 pool.
    address public token0;

    function setLie(Lie lie_) external {
        lie = lie_;
    }

    function setToken0(address token) external {
        token0 = token;
    }

    function flashLoanSimple(address receiver, address asset, uint256 amount, bytes calldata params, uint16)
        external
    {
        _lend(Loan(Way.AAVE_V3, receiver, asset, amount, 0), params);
    }

    function flashLoan(address token, uint256 assets, bytes calldata data) external {
        _lend(Loan(Way.MORPHO, msg.sender, token, assets, 0), data);
    }

    function flash(address, uint256 amount0, uint256 amount1, bytes calldata data) external {
        _lend(Loan(Way.UNISWAP_V3, msg.sender, token0, amount0 + amount1, 0), data);
    }

    function liquidate(
        MarketParams calldata market,
        address,
        uint256 seizedAssets,
        uint256 repaidShares,
        bytes calldata data
    ) external returns (uint256, uint256) {
        if (lie != Lie.KEEPS_LOAN) Token(market.collateralToken).mint(msg.sender, seizedAssets);
        _lend(Loan(Way.LIQUIDATION, msg.sender, market.loanToken, repaidShares, 0), data);
        return (seizedAssets, repaidShares);
    }

    function _lend(Loan memory loan, bytes calldata params) internal {
        if (lie == Lie.NO_CALLBACK) return;
        if (lie == Lie.PREMIUM_TEN_PERCENT) loan.premium = loan.amount / 10;
        if (lie != Lie.KEEPS_LOAN && loan.way != Way.LIQUIDATION) {
            Moving.push(loan.asset, loan.receiver, loan.amount);
        }
        bytes memory request = _request(loan, params);
        if (lie == Lie.CALLS_FROM_ELSEWHERE) {
            new Elsewhere().callBack(loan.receiver, request);
            return;
        }
        Passing.on(loan.receiver, request);
        if (lie == Lie.TWICE) Passing.on(loan.receiver, request);
        approved = Token(loan.asset).allowance(loan.receiver, address(this));
        if (loan.way == Way.UNISWAP_V3) return;
        if (lie != Lie.PULLS_NOTHING) Moving.pull(loan.asset, loan.receiver, loan.amount + loan.premium);
        if (lie == Lie.PULLS_TWICE) Moving.pull(loan.asset, loan.receiver, 1);
    }

    function _request(Loan memory loan, bytes memory params) internal view returns (bytes memory) {
        uint256 amount = lie == Lie.OTHER_AMOUNT ? loan.amount + 1 : loan.amount;
        if (lie == Lie.OTHER_PARAMS) params = bytes.concat(params, hex"00");
        Way way = loan.way;
        if (lie == Lie.OTHER_FUNCTION) way = way == Way.MORPHO ? Way.LIQUIDATION : Way.MORPHO;
        if (way == Way.MORPHO) return abi.encodeCall(IMorphoCallbacks.onMorphoFlashLoan, (amount, params));
        if (way == Way.LIQUIDATION) return abi.encodeCall(IMorphoCallbacks.onMorphoLiquidate, (amount, params));
        if (way == Way.UNISWAP_V3) {
            return abi.encodeCall(IUniswapV3FlashReceiver.uniswapV3FlashCallback, (loan.premium, 0, params));
        }
        address asset = lie == Lie.OTHER_ASSET ? address(this) : loan.asset;
        address initiator = lie == Lie.OTHER_INITIATOR ? address(this) : msg.sender;
        return abi.encodeCall(
            IAaveV3FlashReceiver.executeOperation, (asset, amount, loan.premium, initiator, params)
        );
    }
}

/// @notice Passes a callback on from an address of its own.
contract Elsewhere {
    function callBack(address receiver, bytes calldata request) external {
        Passing.on(receiver, request);
    }
}

/// @notice Calls, and reverts with the reason that the callee reverted with.
library Passing {
    function on(address receiver, bytes memory request) internal {
        (bool success, bytes memory reason) = receiver.call(request);
        if (success) return;
        assembly ("memory-safe") {
            revert(add(reason, 32), mload(reason))
        }
    }
}
