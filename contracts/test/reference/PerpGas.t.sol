// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {PerpSetup} from "./PerpSetup.sol";

/// @notice The exchange's verbs whose gas is snapshot. Only the one call is metered.
contract PerpExchangeGasTest is PerpSetup {
    uint256 internal account;
    uint256 internal other;

    function setUp() public override {
        super.setUp();
        account = open(alice, 7000e6);
        other = open(bob, 50_000e6);
        trade(account, BTC, 1e18);
        trade(other, BTC, -0.4e18);
        token.mint(keeper, 1);
        fundWith(1e6);
    }

    /// @notice A cross account's second market.
    function test_gas_trade() public {
        vm.pauseGasMetering();
        vm.prank(bob);
        vm.resumeGasMetering();
        exchange.trade(other, ETH, 1e18, type(uint256).max);
        vm.pauseGasMetering();
        assertEq(sizeOf(other, ETH), 1e18, "traded");
    }

    /// @notice Half a position, in cash, which heals the account.
    function test_gas_liquidate() public {
        vm.pauseGasMetering();
        wait_(60);
        setBtc(57_000);
        vm.prank(keeper);
        vm.resumeGasMetering();
        exchange.liquidate(account, BTC);
        vm.pauseGasMetering();
        assertEq(sizeOf(account, BTC), 0.5e18, "half");
    }

    /// @notice The same half, inherited.
    function test_gas_inherit() public {
        vm.pauseGasMetering();
        wait_(60);
        setBtc(57_000);
        vm.prank(bob);
        vm.resumeGasMetering();
        exchange.inherit(account, BTC, 1e18, other);
        vm.pauseGasMetering();
        assertEq(sizeOf(account, BTC), 0.5e18, "half");
    }

    /// @notice One winner, and the rest socialized.
    function test_gas_deleverage() public {
        vm.pauseGasMetering();
        wait_(60);
        setBtc(52_000);
        vm.resumeGasMetering();
        exchange.deleverage(account, BTC, 10);
        vm.pauseGasMetering();
        assertEq(sizeOf(account, BTC), 0, "closed");
    }

    /// @notice What judging an account of one position costs.
    function test_gas_assess() public {
        exchange.assess(account);
        vm.pauseGasMetering();
        assertEq(sizeOf(account, BTC), 1e18, "there");
    }
}
