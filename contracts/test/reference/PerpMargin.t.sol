// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IPerpExchange} from "../../src/interfaces/IPerpExchange.sol";
import {Feed} from "../mocks/Feed.sol";
import {PerpSetup} from "./PerpSetup.sol";

/// @notice Rules 1 to 6: equity, the liquidation condition, margins, no position born liquidatable, mark, funding.
contract PerpMarginTest is PerpSetup {
    /// @notice Rule 1: equity is collateral, plus size times mark less cost, less funding that is owed but not settled.
    function test_rule1_equity() public {
        uint256 account = open(alice, 10_000e6);
        // Halfway through the skew it makes: 2000 (1 + 5/100000).
        assertEq(trade(account, ETH, 10e18), 2000.1e18, "fill");
        assertEq(collateralOf(account), 9987.9994e18, "the taker fee is paid");
        setEth(2100);
        assertEq(equityOf(account), 10_986.9994e18, "unrealized");
        wait_(1 days);
        // 3/day^2 · 10/100000 for a day is 0.0003; its mean 0.00015 · 2100 · 10 = 3.15.
        assertEq(equityOf(account), 10_983.8494e18, "pending funding");
        assertEq(collateralOf(account), 9987.9994e18, "nothing is settled by waiting");
        trade(account, ETH, -4e18);
        // Sold at 2100 (1 + 8/100000) = 2100.168: 8400.672 less 4/10 of the cost, less maker fee and funding.
        assertEq(exchange.holding(account, ETH).cost, 12_000.6e18, "cost of what stays");
        int256 realized = 8400.672e18 - 8000.4e18 - 1.6801344e18 - 3.15e18;
        assertEq(collateralOf(account), 9987.9994e18 + realized, "realized");
        assertSolvent(100);
    }

    /// @notice Rule 1: a loss above the collateral is a debt, which counts against other positions' gains.
    function test_rule1_debt() public {
        uint256 account = open(alice, 10_000e6);
        trade(account, ETH, 20e18);
        trade(account, BTC, -1e18);
        setEth(1400);
        setBtc(48_000);
        trade(account, ETH, -20e18);
        assertTrue(collateralOf(account) < 0, "a debt");
        int256 gain = -48_000e18 - int256(exchange.holding(account, BTC).cost);
        assertEq(equityOf(account), collateralOf(account) + gain, "the gain covers it");
        assertSolvent(100);
    }

    /// @notice Rule 2: liquidatable exactly when equity is below maintenance margin and reward.
    function test_rule2_liquidatable() public {
        uint256 account = open(alice, 7000e6);
        trade(account, BTC, 1e18);
        setBtc(58_000);
        IPerpExchange.Assessment memory a = judged(account);
        IPerpExchange.Parameters memory set = usual();
        // The reward is the one free term: set it so that what is required equals the equity.
        set.minReward = uint128(uint256(a.equity) - a.maintenance) - set.executionCost;
        setParameters(set);
        a = judged(account);
        assertEq(a.equity, int256(a.required), "on the edge");
        assertTrue(a.equity > int256(a.maintenance), "above the maintenance margin");
        assertEq(exchange.quoteLiquidation(account, BTC).liquidatable, 0, "healthy");
        vm.expectPartialRevert(IPerpExchange.NotLiquidatable.selector);
        exchange.liquidate(account, BTC);
        ++set.minReward;
        setParameters(set);
        assertTrue(exchange.quoteLiquidation(account, BTC).liquidatable != 0, "one unit below");
        liquidate(account, BTC);
    }

    /// @notice Rule 3: margins grow with size, each with a fixed minimum, and the flat option is a slope of zero.
    function test_rule3_tieredAndFlatMargin() public {
        uint256 account = open(alice, 100_000e6);
        trade(account, ETH, 100e18);
        IPerpExchange.Assessment memory a = judged(account);
        // 100/100000 · 2 + 0.05 = 0.052; 0.6 of it is 0.0312; of 200,000, plus 10.
        assertEq(a.initial, 10_410e18, "tiered initial");
        assertEq(a.maintenance, 6250e18, "tiered maintenance");
        uint256 other = open(bob, 100_000e6);
        trade(other, BTC, -1e18);
        a = judged(other);
        assertEq(a.initial, 6000e18, "flat initial");
        assertEq(a.maintenance, 3750e18, "flat maintenance");
        assertEq(a.required, 3750e18 + 752e18, "and the reward: half of 2.5 %, and costs");
        trade(account, BTC, -1e18);
        a = judged(account);
        assertEq(a.initial, 16_410e18, "cross margin adds up");
        assertEq(a.notional, 260_000e18, "so does the notional");
    }

    /// @notice Rule 4: no trade leaves less than the initial margin, nor less than what liquidation asks for; only what
    /// reduces may go below the initial margin.
    function test_rule4_neverBornLiquidatable() public {
        uint256 account = open(alice, 6000e6);
        refuseTrade(account, BTC, 1e18, IPerpExchange.MarginTooLow.selector);
        pay(account, 100e6);
        trade(account, BTC, 1e18);
        setBtc(59_000);
        assertTrue(judged(account).equity < int256(judged(account).initial), "below the initial margin");
        refuseTrade(account, BTC, 0.01e18, IPerpExchange.MarginTooLow.selector);
        refuseTrade(account, BTC, -2e18, IPerpExchange.MarginTooLow.selector);
        trade(account, BTC, -0.01e18);

        IPerpExchange.Parameters memory set = usual();
        set.minReward = 4000e18;
        setParameters(set);
        refuseTrade(account, BTC, -0.01e18, IPerpExchange.MarginTooLow.selector);
        uint256 other = open(bob, 7000e6);
        refuseTrade(other, BTC, 1e18, IPerpExchange.MarginTooLow.selector);
        pay(other, 1000e6);
        trade(other, BTC, 1e18);
        assertEq(exchange.quoteLiquidation(other, BTC).liquidatable, 0, "not liquidatable");
    }

    /// @notice Rule 4: whoever gets a position that the house has no margin for is refused, unless it helps the house.
    function test_rule4_houseNeedsMargin() public {
        vm.prank(owner);
        exchange.withdraw(HOUSE, HOUSE_MONEY - 7000e6, owner);
        uint256 account = open(alice, 100_000e6);
        trade(account, BTC, 1e18);
        refuseTrade(account, BTC, 1e18, IPerpExchange.MarginTooLow.selector);
        setBtc(61_000);
        trade(account, BTC, -1.5e18);
        assertEq(sizeOf(HOUSE, BTC), 0.5e18, "the house turned");
    }

    /// @notice Rule 5: the mark is any Chainlink-style answer of whatever decimals, and never a stale one.
    function test_rule5_markIsStrict() public {
        assertEq(exchange.liveOf(ETH).price, 2000e18, "8 decimals");
        assertEq(exchange.liveOf(BTC).price, 60_000e18, "18 decimals");
        vm.warp(START + MAX_AGE);
        assertEq(exchange.liveOf(ETH).price, 2000e18, "of age");
        vm.warp(START + MAX_AGE + 1);
        bytes memory stale =
            abi.encodeWithSelector(IPerpExchange.StaleMark.selector, ETH, int256(2000e8), START);
        uint256 account = open(alice, 10_000e6);
        vm.expectRevert(stale);
        exchange.liveOf(ETH);
        vm.expectRevert(stale);
        vm.prank(alice);
        exchange.trade(account, ETH, 1e18, 3000e18);
        int256[3] memory answers = [int256(0), -1, 2000e8];
        for (uint256 i; i < answers.length; ++i) {
            uint256 updatedAt = block.timestamp + i / 2;
            ethFeed.set(answers[i], updatedAt);
            vm.expectRevert(
                abi.encodeWithSelector(IPerpExchange.StaleMark.selector, ETH, answers[i], updatedAt)
            );
            exchange.liveOf(ETH);
        }
    }

    /// @notice Rule 5: an account is not judged by the fresh half of its marks, and a dead feed can be replaced.
    function test_rule5_staleMarkStopsTheAccount() public {
        uint256 account = open(alice, 6000e6);
        trade(account, ETH, 1e18);
        trade(account, BTC, 0.1e18);
        vm.warp(START + MAX_AGE + 1);
        setBtc(2100);
        vm.expectPartialRevert(IPerpExchange.StaleMark.selector);
        exchange.assess(account);
        vm.expectPartialRevert(IPerpExchange.StaleMark.selector);
        exchange.liquidate(account, BTC);
        IPerpExchange.MarketParameters memory set = tiered();
        set.feed = address(new Feed(6, 1900e6));
        setMarket(ETH, set);
        assertEq(exchange.liveOf(ETH).price, 1900e18, "the new feed");
        liquidate(account, BTC);
    }

    /// @notice Rule 5: a feed that answers no more can be replaced too.
    function test_rule5_revertingFeedIsReplaced() public {
        trade(open(alice, 20_000e6), ETH, 1e18);
        vm.etch(address(ethFeed), hex"fe");
        vm.expectRevert(bytes(""));
        exchange.liveOf(ETH);
        IPerpExchange.MarketParameters memory set = tiered();
        set.feed = address(new Feed(8, 1900e8));
        setMarket(ETH, set);
        assertEq(exchange.liveOf(ETH).price, 1900e18, "the new feed");
    }

    /// @notice Rule 6: the rate drifts by skew, one unit pays the mean of its ends times time times price, the other
    /// side gets it, and the house settles the difference.
    function test_rule6_fundingByIndex() public {
        uint256 long = open(alice, 1_000_000e6);
        uint256 short = open(bob, 1_000_000e6);
        trade(long, ETH, 300e18);
        trade(short, ETH, -100e18);
        int256[3] memory before = [equityOf(long), equityOf(short), equityOf(HOUSE)];
        wait_(12 hours);
        IPerpExchange.Live memory live = exchange.liveOf(ETH);
        // 3/day^2 · 200/100000 · half a day.
        assertEq(live.rate, 0.003e18, "rate");
        assertEq(live.longIndex, 1.5e18, "mean of 0.0015 for half a day at 2000");
        assertEq(live.shortIndex, -1.5e18, "mirrored");
        assertEq(equityOf(long), before[0] - 450e18, "the longs pay");
        assertEq(equityOf(short), before[1] + 150e18, "the shorts get");
        assertEq(equityOf(HOUSE), before[2] + 300e18, "the house gets the rest");

        trade(short, ETH, -300e18); // now 100 short: the rate falls
        wait_(1 days);
        assertEq(exchange.liveOf(ETH).rate, 0, "back to zero in a day");
        // The mean of 0.003 and 0 for a day at 2000.
        assertEq(exchange.liveOf(ETH).longIndex, 1.5e18 + 3e18, "positive on the way");
        assertSolvent(100);
    }

    /// @notice Rule 6: the velocity is clamped, however large the skew.
    function test_rule6_velocityIsClamped() public {
        uint256 account = open(alice, 1_000_000e6);
        trade(account, ETH, 100e18);
        IPerpExchange.MarketParameters memory set = tiered();
        set.skewScale = 60e18;
        set.marginSlope = 0;
        setMarket(ETH, set);
        wait_(1 days);
        assertEq(exchange.liveOf(ETH).rate, 3e18, "no more than the velocity");
    }
}
