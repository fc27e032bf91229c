// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IPerpExchange} from "../../src/interfaces/IPerpExchange.sol";
import {PerpSetup} from "./PerpSetup.sol";

/// @notice Which account is somebody's newest, paying into it, and taking everything out of one.
contract PerpAccountsTest is PerpSetup {
    /// @dev What an account has is paid to its owner to the raw unit, and less than one stays.
    function test_withdrawAll_pays_the_owner_everything() public {
        uint256 account = open(alice, 5000e6);
        trade(account, BTC, 0.123456789012345678e18);
        trade(account, BTC, -0.123456789012345678e18);
        uint256 had = uint256(collateralOf(account));
        assertTrue(had % RAW != 0, "nothing to round");
        vm.prank(alice);
        uint256 amount = exchange.withdrawAll(account);
        assertTrue(amount == had / RAW && token.balanceOf(alice) == amount, "not all was paid");
        assertTrue(collateralOf(account) == int256(had % RAW), "not the rest");
        vm.prank(alice);
        assertTrue(exchange.withdrawAll(account) == 0, "paid twice");
        assertSolvent(RAW);
    }

    /// @dev Whoever still holds a position gets nothing: it is the last word of a takeover.
    function test_withdrawAll_refuses_an_account_with_a_position() public {
        uint256 account = open(alice, 50_000e6);
        trade(account, BTC, 1e18);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.PositionsOpen.selector, account, uint256(1) << BTC));
        vm.prank(alice);
        exchange.withdrawAll(account);
    }

    /// @dev Only the owner, and not while withdrawals are gated.
    function test_withdrawAll_is_the_owners_and_gated() public {
        uint256 account = open(alice, 1000e6);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.NotAccountOwner.selector, account, bob));
        vm.prank(bob);
        exchange.withdrawAll(account);

        uint256 broke = open(bob, 7000e6);
        trade(broke, BTC, 1e18);
        setBtc(50_000);
        exchange.flag(broke);
        vm.expectPartialRevert(IPerpExchange.WithdrawalsGated.selector);
        vm.prank(alice);
        exchange.withdrawAll(account);
        wait_(600);
        vm.prank(alice);
        assertTrue(exchange.withdrawAll(account) == 1000e6, "not all was paid");
    }

    /// @dev Into one's own newest account, which is opened the first time; never into another's.
    function test_payIn_is_into_the_callers_newest_account() public {
        uint256 other = open(bob, 0);
        token.mint(alice, 3e6);
        vm.prank(alice);
        token.approve(address(exchange), 3e6);
        vm.prank(alice);
        uint256 account = exchange.payIn(1e6);
        assertTrue(account == other + 1 && ownerOf(account) == alice, "not opened");
        assertTrue(!exchange.accountOf(account).isolated, "for one market only");
        vm.prank(alice);
        assertTrue(exchange.payIn(2e6) == account && exchange.accountCount() == account + 1, "opened again");
        assertTrue(collateralOf(account) == 3e18 && collateralOf(other) == 0, "not where it belongs");
    }

    /// @dev Trading, inheriting and withdrawing go by `NEWEST` as by the number, whatever others opened meanwhile.
    function test_NEWEST_is_the_callers_newest_account() public {
        uint256 newest = exchange.NEWEST();
        uint256 broke = open(bob, 6800e6);
        trade(broke, BTC, 1e18);
        open(alice, 0);
        uint256 account = open(alice, 50_000e6);
        open(bob, 0);
        setBtc(57_000);
        vm.prank(alice);
        exchange.trade(newest, ETH, 1e18, type(uint256).max);
        assertTrue(exchange.holding(account, ETH).size == 1e18, "not traded");
        vm.prank(alice);
        exchange.inherit(broke, BTC, 1e17, newest);
        assertTrue(exchange.holding(account, BTC).size == 1e17, "not inherited");
        vm.prank(alice);
        exchange.withdraw(newest, 1e6, alice);
        vm.prank(alice);
        exchange.trade(newest, ETH, -1e18, 0);
        vm.prank(alice);
        exchange.trade(newest, BTC, -1e17, 0);
        vm.prank(alice);
        uint256 amount = exchange.withdrawAll(newest);
        assertTrue(token.balanceOf(alice) == amount + 1e6 && collateralOf(account) < int256(RAW), "not withdrawn");
        assertSolvent(RAW);
    }

    /// @dev It is nobody's for who never opened one: neither the house nor the last that was opened.
    function test_NEWEST_is_no_account_before_the_first() public {
        open(bob, 1000e6);
        uint256 newest = exchange.NEWEST();
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.NotAccountOwner.selector, 0, alice));
        vm.prank(alice);
        exchange.withdrawAll(newest);
    }

    /// @dev Zero before the first, then the last one that somebody opened, whoever opens more.
    function test_newestOf_is_the_last_that_somebody_opened() public {
        assertTrue(exchange.newestOf(alice) == 0, "one before the first");
        open(alice, 0);
        uint256 second = open(alice, 0);
        uint256 other = open(bob, 0);
        assertTrue(exchange.newestOf(alice) == second && exchange.newestOf(bob) == other, "not the newest");
    }
}
