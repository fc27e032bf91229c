// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IAaveV3FlashReceiver} from "../../src/interfaces/IAaveV3Flash.sol";
import {Moving} from "./Tokens.sol";

/// @notice A flash source that breaks the protocol in one chosen way.
contract LyingFlashSource {
    enum Lie {
        NONE,
        NO_CALLBACK,
        TWICE,
        OTHER_INITIATOR,
        OTHER_AMOUNT,
        OTHER_ASSET,
        OTHER_PARAMS,
        KEEPS_LOAN,
        PREMIUM_TEN_PERCENT,
        PULLS_NOTHING,
        PULLS_TWICE,
        CALLS_FROM_ELSEWHERE
    }

    Lie public lie;

    function setLie(Lie lie_) external {
        lie = lie_;
    }

    function flashLoanSimple(address receiver, address asset, uint256 amount, bytes calldata params, uint16)
        external
    {
        if (lie == Lie.NO_CALLBACK) return;
        uint256 premium = lie == Lie.PREMIUM_TEN_PERCENT ? amount / 10 : 0;
        if (lie != Lie.KEEPS_LOAN) Moving.push(asset, receiver, amount);
        if (lie == Lie.CALLS_FROM_ELSEWHERE) {
            new Elsewhere().callBack(receiver, asset, amount, msg.sender, params);
            return;
        }
        _callBack(receiver, asset, amount, premium, params);
        if (lie == Lie.TWICE) _callBack(receiver, asset, amount, premium, params);
        if (lie != Lie.PULLS_NOTHING) Moving.pull(asset, receiver, amount + premium);
        if (lie == Lie.PULLS_TWICE) Moving.pull(asset, receiver, 1);
    }

    function _callBack(address receiver, address asset, uint256 amount, uint256 premium, bytes calldata params)
        internal
    {
        IAaveV3FlashReceiver(receiver).executeOperation(
            lie == Lie.OTHER_ASSET ? address(this) : asset,
            lie == Lie.OTHER_AMOUNT ? amount + 1 : amount,
            premium,
            lie == Lie.OTHER_INITIATOR ? address(this) : msg.sender,
            lie == Lie.OTHER_PARAMS ? bytes.concat(params, hex"00") : params
        );
    }
}

/// @notice Passes a callback on from an address of its own.
contract Elsewhere {
    function callBack(address receiver, address asset, uint256 amount, address initiator, bytes calldata params)
        external
    {
        IAaveV3FlashReceiver(receiver).executeOperation(asset, amount, 0, initiator, params);
    }
}
