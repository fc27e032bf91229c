// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IPerpExchange} from "../../src/interfaces/IPerpExchange.sol";
import {PerpExchange} from "../../src/reference/PerpExchange.sol";
import {Vm} from "../Vm.sol";
import {Feed} from "../mocks/Feed.sol";
import {FeeToken, HookedToken, NoReturnToken, RefusingToken, Token} from "../mocks/Tokens.sol";
import {PerpSetup} from "./PerpSetup.sol";

/// @notice Rule 12: flags, pauses, events, pages; and money, margin modes and settings.
contract PerpStatesTest is PerpSetup {
    /* FLAGS */

    /// @notice Rule 12: a flag freezes: no trade, no withdrawal, no inheritance; a deposit and the flag's end are free.
    function test_rule12_flagFreezes() public {
        uint256 account = open(alice, 7000e6);
        trade(account, BTC, 1e18);
        uint256 other = open(bob, 7000e6);
        trade(other, BTC, 1e18);
        setBtc(57_000);
        vm.expectEmit(address(exchange));
        IPerpExchange.Assessment memory a = judged(account);
        emit IPerpExchange.Flagged(account, keeper, a.equity, a.required);
        vm.prank(keeper);
        exchange.flag(account);
        assertTrue(flagged(account), "flagged");
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.AlreadyFlagged.selector, account));
        exchange.flag(account);

        setBtc(60_000);
        bytes memory frozen = abi.encodeWithSelector(IPerpExchange.AccountIsFlagged.selector, account);
        vm.expectRevert(frozen);
        vm.prank(alice);
        exchange.trade(account, BTC, -1e18, 0);
        vm.expectRevert(frozen);
        vm.prank(alice);
        exchange.withdraw(account, 1, alice);
        vm.expectRevert(frozen);
        vm.prank(alice);
        exchange.inherit(other, BTC, 1e18, account);
        vm.expectPartialRevert(IPerpExchange.NotLiquidatable.selector);
        exchange.liquidate(account, BTC);

        setBtc(57_000);
        vm.expectPartialRevert(IPerpExchange.MarginTooLow.selector);
        exchange.unflag(account);
        pay(account, 1000e6);
        vm.expectEmit(address(exchange));
        emit IPerpExchange.Unflagged(account);
        exchange.unflag(account);
        trade(account, BTC, -1e18);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.NotFlagged.selector, account));
        exchange.unflag(account);
    }

    /// @notice Rule 12: healthy accounts are not flagged; the house is once it is below its maintenance margin.
    function test_rule12_whoIsFlagged() public {
        uint256 account = open(alice, 100_000e6);
        trade(account, BTC, 1e18);
        vm.expectPartialRevert(IPerpExchange.NotLiquidatable.selector);
        exchange.flag(account);
        vm.expectPartialRevert(IPerpExchange.NotLiquidatable.selector);
        exchange.flag(HOUSE);
        vm.prank(owner);
        exchange.withdraw(HOUSE, HOUSE_MONEY - 7000e6, owner);
        setBtc(64_000);
        exchange.flag(HOUSE);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.AccountIsFlagged.selector, HOUSE));
        vm.prank(owner);
        exchange.withdraw(HOUSE, 1, owner);
        vm.expectPartialRevert(IPerpExchange.NotLiquidatable.selector);
        exchange.liquidate(HOUSE, BTC);
    }

    /* PAUSES */

    /// @notice Rule 12: the guardian pauses either, only the owner unpauses.
    function test_rule12_whoPauses() public {
        bytes4 refused = IPerpExchange.NotGuardian.selector;
        vm.expectRevert(abi.encodeWithSelector(refused, alice));
        vm.prank(alice);
        exchange.setPauses(true, true);
        vm.prank(guardian);
        exchange.setPauses(true, false);
        assertTrue(exchange.openPaused() && !exchange.liquidationPaused(), "one");
        vm.expectRevert(abi.encodeWithSelector(refused, guardian));
        vm.prank(guardian);
        exchange.setPauses(false, true);
        vm.prank(guardian);
        exchange.setPauses(true, true);
        vm.expectRevert(abi.encodeWithSelector(refused, guardian));
        vm.prank(guardian);
        exchange.setPauses(true, false);
        vm.prank(owner);
        exchange.setPauses(false, false);
        assertFalse(exchange.openPaused() || exchange.liquidationPaused(), "none");
    }

    /// @notice Rule 12: while opening is paused positions can only be reduced, and liquidation goes on; the other way
    /// round trading goes on.
    function test_rule12_pausesAreSeparate() public {
        uint256 account = open(alice, 8000e6);
        uint256 heir = open(bob, 8000e6);
        trade(account, BTC, 1e18);
        vm.prank(guardian);
        exchange.setPauses(true, false);
        refuseTrade(account, BTC, 0.01e18, IPerpExchange.OpenIsPaused.selector);
        refuseTrade(account, BTC, -1e18 - 1, IPerpExchange.OpenIsPaused.selector);
        refuseTrade(account, ETH, 1e18, IPerpExchange.OpenIsPaused.selector);
        trade(account, BTC, -0.01e18);
        setBtc(56_000);
        liquidate(account, BTC);

        vm.prank(owner);
        exchange.setPauses(false, true);
        setBtc(54_000);
        bytes memory paused = abi.encodeWithSelector(IPerpExchange.LiquidationIsPaused.selector);
        vm.expectRevert(paused);
        exchange.liquidate(account, BTC);
        vm.expectRevert(paused);
        exchange.flag(account);
        vm.expectRevert(paused);
        vm.prank(bob);
        exchange.inherit(account, BTC, 1e18, heir);
        setBtc(40_000);
        vm.expectRevert(paused);
        exchange.deleverage(account, BTC, 10);
        trade(heir, BTC, 0.1e18);
    }

    /* EVENTS AND PAGES */

    /// @notice Rule 12: the logs alone tell every position and every account's collateral.
    function test_rule12_logsTellPositions() public {
        vm.recordLogs();
        pay(HOUSE, 1e6);
        uint256 idle = open(owner, 5e6);
        vm.prank(owner);
        exchange.withdraw(idle, 1e6, owner);
        uint256 first = open(alice, 7000e6);
        uint256 second = open(bob, 30_000e6);
        trade(first, BTC, 1e18);
        trade(second, BTC, -0.4e18);
        trade(second, ETH, 3e18);
        wait_(1 hours);
        trade(second, ETH, -5e18);
        setBtc(57_000);
        liquidate(first, BTC);
        setBtc(53_000);
        inherit(first, BTC, 0.05e18, second);
        setBtc(30_000);
        exchange.deleverage(first, BTC, 10);
        Vm.Log[] memory logs = vm.getRecordedLogs();
        for (uint256 account; account <= second; ++account) {
            int256 collateral;
            int256[2] memory size;
            int256[2] memory cost;
            for (uint256 i; i < logs.length; ++i) {
                bytes32[] memory topics = logs[i].topics;
                if (topics.length < 2 || topics[1] != bytes32(account)) continue;
                if (topics[0] == IPerpExchange.Modified.selector) {
                    uint256 market = uint256(topics[2]);
                    (, size[market], cost[market], collateral) =
                        abi.decode(logs[i].data, (int256, int256, int256, int256));
                }
                bool moved =
                    topics[0] == IPerpExchange.Deposited.selector || topics[0] == IPerpExchange.Withdrawn.selector;
                if (moved) (, collateral) = abi.decode(logs[i].data, (uint256, int256));
            }
            assertEq(collateralOf(account), collateral, "collateral");
            for (uint256 market; market < 2; ++market) {
                assertEq(sizeOf(account, market), size[market], "size");
                assertEq(exchange.holding(account, market).cost, cost[market], "cost");
            }
        }
    }

    /// @notice Rule 12: accounts and holders come in pages, whole and without repetition.
    function test_rule12_pages() public {
        for (uint256 i; i < 5; ++i) {
            trade(open(alice, 10_000e6), ETH, 1e18);
        }
        assertEq(exchange.accountCount(), 6, "with the house");
        assertEq(exchange.accounts(0, 100).length, 6, "all");
        assertEq(exchange.accounts(4, 100).length, 2, "the end");
        assertEq(exchange.accounts(6, 1).length, 0, "beyond");
        IPerpExchange.Account[] memory page = exchange.accounts(1, 2);
        assertEq(page.length, 2, "a page");
        assertEq(page[0].owner, alice, "owner");
        assertEq(page[0].markets, 1, "markets");
        assertHolders(12_345);
        trade(2, ETH, -1e18);
        assertHolders(1345);
        trade(5, ETH, -1e18);
        assertHolders(134);
        trade(2, ETH, -1e18);
        assertHolders(1234);
        assertEq(exchange.holders(ETH, 3, 9).length, 1, "the end");
        assertEq(exchange.holders(ETH, 4, 9).length, 0, "beyond");
    }

    /// @dev The holders as digits in ascending order.
    function assertHolders(uint256 digits) internal view {
        uint256[] memory list = exchange.holders(ETH, 0, 100);
        uint256 found;
        for (uint256 i; i < list.length; ++i) {
            found |= 1 << list[i];
        }
        uint256 expected;
        uint256 count;
        for (; digits != 0; digits /= 10) {
            expected |= 1 << (digits % 10);
            ++count;
        }
        assertEq(found, expected, "who");
        assertEq(list.length, count, "once each");
    }

    /* MARGIN MODES */

    /// @notice An isolated account holds one market at a time, a cross account as many as it may, also by inheritance.
    function test_isolatedAndCross() public {
        uint256 isolated = openAs(alice, 50_000e6, true);
        trade(isolated, ETH, 1e18);
        refuseTrade(isolated, BTC, 0.1e18, IPerpExchange.TooManyMarkets.selector);
        trade(isolated, ETH, -1e18);
        trade(isolated, BTC, 0.1e18);
        IPerpExchange.Parameters memory set = usual();
        set.maxMarkets = 1;
        setParameters(set);
        uint256 cross = open(bob, 50_000e6);
        trade(cross, ETH, 1e18);
        refuseTrade(cross, BTC, 0.1e18, IPerpExchange.TooManyMarkets.selector);
        uint256 other = open(carol, 7000e6);
        trade(other, BTC, 1e18);
        setBtc(57_000);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.TooManyMarkets.selector, cross));
        vm.prank(bob);
        exchange.inherit(other, BTC, 0.1e18, cross);
    }

    /* TRADING */

    /// @notice A trader names the worst price it takes, and only an account's owner trades.
    function test_tradeLimitAndOwner() public {
        uint256 account = open(alice, 50_000e6);
        (uint256 fill, uint256 fee) = exchange.quoteTrade(ETH, 10e18);
        assertEq(fill, 2000.1e18, "as quoted");
        assertEq(fee, 12.0006e18, "as quoted");
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.PriceLimit.selector, fill, fill - 1));
        vm.prank(alice);
        exchange.trade(account, ETH, 10e18, fill - 1);
        vm.prank(alice);
        exchange.trade(account, ETH, 10e18, fill);
        (fill, fee) = exchange.quoteTrade(ETH, -15e18);
        // From 10 to -5: two thirds shrink the skew.
        assertEq(fill, 2000.05e18, "the middle of the way");
        assertEq(fee, uint256(20_000.5e18) * 2 / 10_000 + uint256(10_000.25e18) * 6 / 10_000, "maker and taker");
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.PriceLimit.selector, fill, fill + 1));
        vm.prank(alice);
        exchange.trade(account, ETH, -15e18, fill + 1);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.NotAccountOwner.selector, account, bob));
        vm.prank(bob);
        exchange.trade(account, ETH, -1e18, 0);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.AmountZero.selector));
        vm.prank(alice);
        exchange.trade(account, ETH, 0, 0);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.UnknownMarket.selector, 2));
        vm.prank(alice);
        exchange.trade(account, 2, 1e18, 0);
        trade(account, ETH, -15e18);
        assertEq(sizeOf(account, ETH), -5e18, "turned");
        assertEq(exchange.holding(account, ETH).cost, -10_000.25e18, "at the new price");
        assertSolvent(100);
    }

    /* MONEY */

    /// @notice Only collateral above margin and above unrealized losses can be withdrawn, and never unrealized gains.
    function test_withdrawLimits() public {
        uint256 account = open(alice, 10_000e6);
        trade(account, BTC, 1e18);
        setBtc(70_000);
        // 9,963.9982 of collateral; 7,000 of initial margin.
        vm.expectRevert(
            abi.encodeWithSelector(IPerpExchange.NotWithdrawable.selector, account, 2963.9983e6, 2963.9982e6)
        );
        vm.prank(alice);
        exchange.withdraw(account, 2963.9983e6, alice);
        setBtc(59_000);
        // 1,003 lost, 5,900 of initial margin.
        vm.expectRevert(
            abi.encodeWithSelector(IPerpExchange.NotWithdrawable.selector, account, 4000e6, 3060.9982e6)
        );
        vm.prank(alice);
        exchange.withdraw(account, 4000e6, alice);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.NotAccountOwner.selector, account, bob));
        vm.prank(bob);
        exchange.withdraw(account, 1, bob);
        vm.prank(alice);
        exchange.withdraw(account, 3060.9982e6, carol);
        assertEq(token.balanceOf(carol), 3060.9982e6, "paid");
        assertSolvent(100);
        setBtc(58_000);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.NotWithdrawable.selector, account, 1, 0));
        vm.prank(alice);
        exchange.withdraw(account, 1, alice);
    }

    /// @notice Deposits name an account there is, and an amount.
    function test_depositLimits() public {
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.UnknownAccount.selector, 1));
        exchange.deposit(1, 1);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.AmountZero.selector));
        exchange.deposit(HOUSE, 0);
        vm.expectPartialRevert(IPerpExchange.TransferFailed.selector);
        exchange.deposit(HOUSE, 1);
    }

    /// @notice Only the owner takes fees, and no more than there are.
    function test_collectFees() public {
        trade(open(alice, 10_000e6), ETH, 10e18);
        assertEq(exchange.fees(), 12.0006e18, "fees");
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.NotOwner.selector, alice));
        vm.prank(alice);
        exchange.collectFees(1, alice);
        vm.expectPartialRevert(bytes4(keccak256("Panic(uint256)")));
        vm.prank(owner);
        exchange.collectFees(12.0007e6, owner);
        vm.prank(owner);
        exchange.collectFees(12.0006e6, carol);
        assertEq(token.balanceOf(carol), 12.0006e6, "paid");
        assertSolvent(100);
    }

    /// @notice Tokens of 18, 6 and no decimals work, also one that returns nothing; above 18 decimals, with a fee on
    /// transfer, or refusing, they do not.
    function test_tokens() public {
        uint8[3] memory decimals = [18, 6, 0];
        for (uint256 i; i < 3; ++i) {
            Token one = new Token(decimals[i]);
            PerpExchange venue = new PerpExchange(address(one), owner);
            one.mint(address(this), 5);
            one.approve(address(venue), 5);
            venue.deposit(HOUSE, 5);
            assertEq(venue.assess(HOUSE).equity, int256(5 * 10 ** (18 - decimals[i])), "scaled");
            vm.prank(owner);
            venue.withdraw(HOUSE, 5, carol);
            assertEq(one.balanceOf(carol), 5, "and back");
        }
        NoReturnToken silent = new NoReturnToken();
        PerpExchange quiet = new PerpExchange(address(silent), owner);
        silent.mint(address(this), 5);
        silent.approve(address(quiet), 5);
        quiet.deposit(HOUSE, 5);
        vm.prank(owner);
        quiet.withdraw(HOUSE, 5, carol);
        assertEq(silent.balanceOf(carol), 5, "silent");

        Token fine = new Token(19);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.InvalidParameter.selector, bytes32("decimals")));
        new PerpExchange(address(fine), owner);
        FeeToken taxed = new FeeToken();
        PerpExchange fussy = new PerpExchange(address(taxed), owner);
        taxed.mint(address(this), 1000);
        taxed.approve(address(fussy), 1000);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.TransferFailed.selector, 1000, 990));
        fussy.deposit(HOUSE, 1000);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.TransferFailed.selector, 1000, 990));
        fussy.growFund(1000);
        RefusingToken refusing = new RefusingToken();
        PerpExchange stuck = new PerpExchange(address(refusing), owner);
        refusing.mint(address(this), 5);
        refusing.approve(address(stuck), 5);
        stuck.deposit(HOUSE, 5);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.TransferFailed.selector, 5, 0));
        vm.prank(owner);
        stuck.withdraw(HOUSE, 5, carol);
    }

    /// @notice A token that calls back finds every door locked.
    function test_noReentrance() public {
        HookedToken hooked = new HookedToken();
        PerpExchange venue = new PerpExchange(address(hooked), address(hooked));
        hooked.mint(address(this), 10);
        hooked.approve(address(venue), 10);
        bytes[] memory requests = new bytes[](9);
        requests[0] = abi.encodeCall(IPerpExchange.deposit, (HOUSE, 1));
        requests[1] = abi.encodeCall(IPerpExchange.withdraw, (HOUSE, 1, alice));
        requests[2] = abi.encodeCall(IPerpExchange.trade, (1, ETH, 1, 0));
        requests[3] = abi.encodeCall(IPerpExchange.growFund, (1));
        requests[4] = abi.encodeCall(IPerpExchange.collectFees, (0, alice));
        requests[5] = abi.encodeCall(IPerpExchange.flag, (HOUSE));
        requests[6] = abi.encodeCall(IPerpExchange.liquidate, (1, ETH));
        requests[7] = abi.encodeCall(IPerpExchange.inherit, (1, ETH, 1, 2));
        requests[8] = abi.encodeCall(IPerpExchange.deleverage, (1, ETH, 1));
        hooked.setHook(address(venue), requests);
        venue.deposit(HOUSE, 5);
        assertEq(hooked.calls(), 9, "tried them all");
    }

    /* SETTINGS */

    /// @notice Only the owner sets anything, and a new owner owns the house too.
    function test_onlyOwnerSets() public {
        bytes[5] memory requests = [
            abi.encodeCall(IPerpExchange.setOwner, (alice)),
            abi.encodeCall(IPerpExchange.setGuardian, (alice)),
            abi.encodeCall(IPerpExchange.setParameters, (usual())),
            abi.encodeCall(IPerpExchange.setMarket, (ETH, tiered())),
            abi.encodeCall(IPerpExchange.collectFees, (0, alice))
        ];
        for (uint256 i; i < requests.length; ++i) {
            vm.prank(guardian);
            (bool success, bytes memory reason) = address(exchange).call(requests[i]);
            assertFalse(success, "set");
            assertEq(bytes32(bytes4(reason)), bytes32(IPerpExchange.NotOwner.selector), "reason");
        }
        vm.prank(owner);
        exchange.setOwner(alice);
        assertEq(exchange.owner(), alice, "owner");
        vm.prank(alice);
        exchange.withdraw(HOUSE, 1, alice);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.InvalidParameter.selector, bytes32("owner")));
        vm.prank(alice);
        exchange.setOwner(address(0));
    }

    /// @notice Parameters out of range are refused by name.
    function test_parameterRanges() public {
        bytes32[6] memory names = [
            bytes32("keeperShare"), "maxRewardRatio", "criticalRatio", "partialRatio", "partialRatio", "maxMarkets"
        ];
        for (uint256 i; i < names.length; ++i) {
            IPerpExchange.Parameters memory set = usual();
            if (i == 0) set.keeperShare = 1e18 + 1;
            if (i == 1) set.maxRewardRatio = 1e18 + 1;
            if (i == 2) set.criticalRatio = 1e18 + 1;
            if (i == 3) set.partialRatio = 1e18 + 1;
            if (i == 4) set.partialRatio = 0;
            if (i == 5) set.maxMarkets = 0;
            vm.expectRevert(abi.encodeWithSelector(IPerpExchange.InvalidParameter.selector, names[i]));
            vm.prank(owner);
            exchange.setParameters(set);
        }
    }

    /// @notice A market's parameters out of range are refused by name, and markets are added in order.
    function test_marketRanges() public {
        bytes32[8] memory names = [
            bytes32("skewScale"),
            "minInitialRatio",
            "maintenanceScalar",
            "maintenanceScalar",
            "makerFee",
            "takerFee",
            "penaltyRatio",
            "feed"
        ];
        for (uint256 i; i < names.length; ++i) {
            IPerpExchange.MarketParameters memory set = tiered();
            if (i == 0) set.skewScale = 0;
            if (i == 1) set.minInitialRatio = 0;
            if (i == 2) set.maintenanceScalar = 0;
            if (i == 3) set.maintenanceScalar = 1e18 + 1;
            if (i == 4) set.makerFee = 1e18 + 1;
            if (i == 5) set.takerFee = 1e18 + 1;
            if (i == 6) set.penaltyRatio = 1e18 + 1;
            if (i == 7) set.feed = address(new Feed(19, 1));
            vm.expectRevert(abi.encodeWithSelector(IPerpExchange.InvalidParameter.selector, names[i]));
            vm.prank(owner);
            exchange.setMarket(ETH, set);
        }
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.UnknownMarket.selector, 3));
        vm.prank(owner);
        exchange.setMarket(3, tiered());
        setMarket(2, tiered());
        assertEq(exchange.marketCount(), 3, "added");
    }

    /// @notice Funding until a change of parameters goes by the old ones.
    function test_fundingBeforeAChange() public {
        trade(open(alice, 1_000_000e6), ETH, 100e18);
        wait_(1 days);
        int256 before = exchange.liveOf(ETH).longIndex;
        IPerpExchange.MarketParameters memory set = tiered();
        set.maxFundingVelocity = 0;
        setMarket(ETH, set);
        assertEq(exchange.liveOf(ETH).longIndex, before, "kept");
        wait_(1 days);
        assertEq(exchange.liveOf(ETH).rate, 0.003e18, "the rate stays where it was");
    }
}
