// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IAaveV3FlashReceiver} from "../../src/interfaces/IAaveV3Flash.sol";
import {Moving, Token} from "./Tokens.sol";

/// @notice Lends flash loans like an Aave v3 pool and liquidates at a price and bonus set by hand. It remembers what it
/// gave and took, so that tests can tell what a liquidation was worth.
contract LendingPool {
    error FlashFailed();
    error Unhealthy(address user);

    uint256 public premiumBps = 5;
    address public hookTarget;
    bytes public hook;

    function setPremiumBps(uint256 bps) external {
        premiumBps = bps;
    }

    /// @notice A call to make during each liquidation.
    function setHook(address target, bytes calldata request) external {
        (hookTarget, hook) = (target, request);
    }

    function flashLoanSimple(address receiver, address asset, uint256 amount, bytes calldata params, uint16)
        external
    {
        uint256 premium = amount * premiumBps / 10_000;
        Moving.push(asset, receiver, amount);
        if (!IAaveV3FlashReceiver(receiver).executeOperation(asset, amount, premium, msg.sender, params)) {
            revert FlashFailed();
        }
        Moving.pull(asset, receiver, amount + premium);
    }

    /// @notice Takes `repay` of the debt and gives `seize` of the collateral: what the account, its health and the
    /// oracle would decide is decided by the test.
    function liquidate(address collateral, address debt, uint256 repay, uint256 seize) external {
        if (repay != 0) Moving.pull(debt, msg.sender, repay);
        if (hookTarget != address(0)) {
            (bool success,) = hookTarget.call(hook);
            if (!success) revert FlashFailed();
        }
        if (seize != 0) Token(collateral).mint(msg.sender, seize);
    }

    /// @notice Takes all the gas there is.
    function burn() external pure {
        assembly ("memory-safe") {
            invalid()
        }
    }

    /// @notice Reverts with a reason of any length.
    function shout(uint256 length) external pure {
        bytes memory reason = new bytes(length);
        if (length != 0) reason[0] = 0x2a;
        assembly ("memory-safe") {
            revert(add(reason, 32), length)
        }
    }

    /// @notice Whether it was given as much gas as it wanted.
    function want(uint256 gas_) external view {
        if (gasleft() < gas_) revert FlashFailed();
    }

    /// @notice Always reverts with a typed error.
    function refuse(address user) external pure {
        revert Unhealthy(user);
    }
}

/// @notice A margin account: paid in one call, gained in another.
contract MarginExchange {
    mapping(address account => uint256) public margin;

    function deposit(address token, uint256 amount) external {
        Moving.pull(token, msg.sender, amount);
        margin[msg.sender] += amount;
    }

    /// @notice Takes a position over and closes it: the account's margin changes by `result`.
    function takeOver(int256 result) external {
        margin[msg.sender] = uint256(int256(margin[msg.sender]) + result);
    }

    function withdraw(address token) external {
        Token(token).mint(msg.sender, margin[msg.sender]);
        margin[msg.sender] = 0;
    }
}
