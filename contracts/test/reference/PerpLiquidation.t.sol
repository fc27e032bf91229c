// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IPerpExchange} from "../../src/interfaces/IPerpExchange.sol";
import {PerpSetup} from "./PerpSetup.sol";

/// @notice Rules 7 to 10: penalty and payouts, the keeper's clamp, partial tiers, the rate window.
contract PerpLiquidationTest is PerpSetup {
    uint256 internal account;

    function setUp() public override {
        super.setUp();
        account = open(alice, 7000e6);
        // Filled at 60,003; the collateral after the fee is 6,963.9982.
        trade(account, BTC, 1e18);
    }

    function equityAt(uint256 dollars) internal pure returns (int256) {
        return 6963.9982e18 + int256(dollars) * 1e18 - 60_003e18;
    }

    /// @notice Rule 7: 2.5 % of what is closed; the keeper gets half and costs in cash, the fund the rest.
    function test_rule7_penaltyInCash() public {
        setBtc(57_000);
        assertEq(equityOf(account), equityAt(57_000), "equity");
        IPerpExchange.Quote memory expected = exchange.quoteLiquidation(account, BTC);
        IPerpExchange.Quote memory quote = liquidate(account, BTC);
        assertEq(keccak256(abi.encode(quote)), keccak256(abi.encode(expected)), "the view told it");
        assertEq(quote.size, 0.5e18, "half");
        assertEq(quote.charge, 712.5e18, "2.5 % of 28,500");
        assertEq(quote.reward, 358.25e18, "half of it, and costs of 2");
        assertEq(quote.toFund, 354.25e18, "the rest");
        assertEq(exchange.fund(), 354.25e18, "in the fund");
        assertEq(token.balanceOf(keeper), 358.25e6, "in the keeper's hands");
        assertEq(equityOf(account), equityAt(57_000) - 712.5e18, "charged that and nothing else");
        assertEq(sizeOf(account, BTC), 0.5e18, "closed at the mark");
        assertEq(sizeOf(HOUSE, BTC), -0.5e18, "against the house");
        assertSolvent(100);
    }

    /// @notice Rule 7: an heir takes the position over at the mark, with half the penalty as a discount, against margin
    /// of its own; the house is not part of it.
    function test_rule7_penaltyAsDiscount() public {
        uint256 heir = open(bob, 3000e6);
        setBtc(57_000);
        IPerpExchange.Quote memory expected = exchange.quoteInheritance(account, BTC, 0.4e18);
        IPerpExchange.Quote memory quote = inherit(account, BTC, 0.4e18, heir);
        assertEq(keccak256(abi.encode(quote)), keccak256(abi.encode(expected)), "the view told it");
        assertEq(quote.charge, 570e18, "2.5 % of 22,800");
        assertEq(quote.reward, 285e18, "half");
        assertEq(exchange.fund(), 285e18, "the other half");
        assertEq(equityOf(heir), 3000e18 + 285e18, "the heir gains the discount and no more");
        assertEq(sizeOf(heir, BTC), 0.4e18, "inherited");
        assertEq(sizeOf(account, BTC), 0.6e18, "left");
        assertEq(equityOf(account), equityAt(57_000) - 570e18, "charged that and nothing else");
        assertEq(sizeOf(HOUSE, BTC), -1e18, "the house's side is as it was");
        assertSolvent(100);
    }

    /// @notice Rule 7: an heir without the margin inherits nothing, and no more is inherited than the tiers allow.
    function test_rule7_heirNeedsMargin() public {
        uint256 heir = open(bob, 2000e6);
        setBtc(57_000);
        vm.expectPartialRevert(IPerpExchange.MarginTooLow.selector);
        vm.prank(bob);
        exchange.inherit(account, BTC, 0.5e18, heir);
        pay(heir, 1000e6);
        assertEq(inherit(account, BTC, 1e18, heir).size, 0.5e18, "the tier's size");
        address[2] memory callers = [carol, alice];
        uint256[2] memory heirs = [heir, account];
        bytes4[2] memory reasons =
            [IPerpExchange.NotAccountOwner.selector, IPerpExchange.InvalidHeir.selector];
        for (uint256 i; i < 2; ++i) {
            vm.expectPartialRevert(reasons[i]);
            vm.prank(callers[i]);
            exchange.inherit(account, BTC, 1e18, heirs[i]);
        }
        vm.expectPartialRevert(IPerpExchange.InvalidHeir.selector);
        vm.prank(owner);
        exchange.inherit(account, BTC, 1e18, HOUSE);
    }

    /// @notice Rule 7: with negative equity the keeper gets all the penalty, from the fund, after the deficit.
    function test_rule7_bankruptPaysAllToTheKeeper() public {
        fundWith(2000e6);
        setBtc(53_000);
        uint256 deficit = uint256(-equityAt(53_000));
        IPerpExchange.Quote memory quote = liquidate(account, BTC);
        assertEq(quote.size, 1e18, "all of it");
        assertEq(quote.reward, 1327e18, "2.5 % of 53,000, and costs");
        assertEq(quote.charge, 0, "the account has nothing");
        assertEq(exchange.fund(), 2000e18 - deficit - 1327e18, "the fund paid");
        assertEq(equityOf(account), 0, "and filled the hole");
        assertSolvent(100);
    }

    /// @notice Rule 7: an heir of a bankrupt gets all the penalty as far as the fund reaches, and nobody liquidates
    /// what the fund does not cover.
    function test_rule7_fundLimitsTheBankruptsPenalty() public {
        uint256 heir = open(bob, 100_000e6);
        setBtc(53_000);
        uint256 deficit = uint256(-equityAt(53_000));
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.FundShort.selector, deficit, 0));
        exchange.liquidate(account, BTC);
        assertEq(exchange.quoteLiquidation(account, BTC).missing, deficit, "the view says what is missing");
        fundWith(50e6);
        IPerpExchange.Quote memory quote = inherit(account, BTC, 1e18, heir);
        assertEq(quote.reward, 50e18 - deficit, "what the fund had left");
        assertEq(exchange.fund(), 0, "spent");
        assertSolvent(100);
    }

    /// @notice Rule 8: each branch of the clamp: least reward, least profit, share and cost, share of margin, maximum.
    function test_rule8_keeperClamp() public {
        setBtc(57_000);
        IPerpExchange.Parameters memory set = usual();
        assertEq(rewardWith(set), 358.25e18, "cost and share");
        set.minReward = 400e18;
        assertEq(rewardWith(set), 402e18, "cost and least reward");
        set.executionCost = 500e18;
        set.minProfitRatio = 0.9e18;
        assertEq(rewardWith(set), 950e18, "cost and least profit");
        set.executionCost = 700e18;
        assertEq(rewardWith(set), 990.249550e18, "half of the closed part's margin, in whole raw units");
        set.maxReward = 600e18;
        assertEq(rewardWith(set), 600e18, "the maximum");
    }

    function rewardWith(IPerpExchange.Parameters memory set) internal returns (uint256) {
        setParameters(set);
        return exchange.quoteLiquidation(account, BTC).reward;
    }

    /// @notice Rule 8: the reward may exceed the penalty, and then the account pays the reward.
    function test_rule8_accountPaysTheReward() public {
        setBtc(57_000);
        IPerpExchange.Parameters memory set = usual();
        set.minReward = 800e18;
        setParameters(set);
        IPerpExchange.Quote memory quote = liquidate(account, BTC);
        assertEq(quote.charge, 802e18, "the reward");
        assertEq(quote.toFund, 0, "nothing is left for the fund");
    }

    /// @notice Rule 8: what the window cut short carries a share of the penalty once, for all that should have been
    /// closed; the steps after carry costs only.
    function test_rule8_laterStepsCarryNoShare() public {
        limitTheWindow();
        setBtc(56_000);
        IPerpExchange.Quote memory first = liquidate(account, BTC);
        assertEq(first.size, 0.24e18, "cut");
        assertEq(first.liquidatable, 0.5e18, "of a half");
        assertEq(first.reward, 352e18, "the share of the half, and costs");
        assertTrue(flagged(account), "not done");
        wait_(30);
        IPerpExchange.Quote memory second = liquidate(account, BTC);
        assertEq(second.reward, 5e18, "costs and the least reward");
        assertEq(second.charge, 336e18, "the penalty is the same");
        assertEq(second.toFund, 331e18, "and goes to the fund");
    }

    /// @dev Lets the house take over 0.24 BTC in 30 seconds: 0.0008 of 10,000, times 0.001, times 30.
    function limitTheWindow() internal {
        IPerpExchange.MarketParameters memory set = flat();
        set.windowMultiplier = 0.001e18;
        setMarket(BTC, set);
    }

    /// @notice Rule 9: between half the maintenance margin and what is required half is closed, below it all, and small
    /// positions always whole.
    function test_rule9_tiers() public {
        setBtc(57_342);
        assertEq(tierAt(), 0, "healthy");
        setBtc(57_341);
        assertEq(tierAt(), 0.5e18, "just below");
        setBtc(55_000);
        assertEq(tierAt(), 0.5e18, "1,960 of 3,437");
        setBtc(54_500);
        assertEq(tierAt(), 1e18, "1,460 of 3,406");
        setBtc(57_000);
        IPerpExchange.Parameters memory set = usual();
        set.wholeBelow = 57_000e18;
        setParameters(set);
        assertEq(tierAt(), 1e18, "small");
        set.wholeBelow -= 1;
        setParameters(set);
        assertEq(tierAt(), 0.5e18, "not small");
        set.criticalRatio = 1e18;
        setParameters(set);
        setBtc(56_000);
        assertEq(tierAt(), 1e18, "2,960 of 3,500 is deep when all of it counts");
    }

    function tierAt() internal view returns (uint256) {
        return exchange.quoteLiquidation(account, BTC).liquidatable;
    }

    /// @notice Rule 9: the half is of all the account holds, so a position smaller than that goes whole, a larger one
    /// loses more than half.
    function test_rule9_halfIsOfTheWholeAccount() public {
        uint256 cross = open(bob, 17_500e6);
        trade(cross, BTC, 1e18);
        trade(cross, ETH, 15e18);
        setBtc(48_300);
        setEth(1900);
        assertEq(exchange.quoteLiquidation(cross, ETH).liquidatable, 15e18, "28,500 of 76,800 goes whole");
        // 38,400 of 48,300, rounded up.
        assertEq(exchange.quoteLiquidation(cross, BTC).liquidatable, uint256(38_400e18 + 48_299) / 48_300, "more");
    }

    /// @notice Rule 9: partial liquidations go on until the account is healthy.
    function test_rule9_repeatsUntilHealthy() public {
        setBtc(55_500);
        uint256 steps;
        while (exchange.quoteLiquidation(account, BTC).liquidatable != 0) {
            liquidate(account, BTC);
            ++steps;
        }
        assertEq(steps, 2, "two halves");
        assertFalse(flagged(account), "healthy again");
        assertEq(sizeOf(account, BTC), 0.25e18, "a quarter is left");
    }

    /// @notice Rule 10: the house takes over only the window's size; then one window's worth a block while skew is
    /// small.
    function test_rule10_rateWindow() public {
        limitTheWindow();
        setBtc(54_000);
        assertEq(liquidate(account, BTC).size, 0.24e18, "the window's");
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.RateLimited.selector, BTC));
        exchange.liquidate(account, BTC);
        vm.roll(block.number + 1);
        assertEq(exchange.capacityOf(BTC), 0.24e18, "another in the next block");
        assertEq(liquidate(account, BTC).size, 0.24e18, "taken");
        // 0.52 of 10,000 is not below 0.000052.
        IPerpExchange.MarketParameters memory set = exchange.parametersOf(BTC);
        set.maxPd = 0.000052e18;
        setMarket(BTC, set);
        vm.roll(block.number + 1);
        assertEq(exchange.capacityOf(BTC), 0, "not while the skew is large");
        set.maxPd += 1;
        setMarket(BTC, set);
        assertEq(exchange.capacityOf(BTC), 0.24e18, "but just below");
        set.maxPd = 0;
        setMarket(BTC, set);
        vm.warp(block.timestamp + 29);
        assertEq(exchange.capacityOf(BTC), 0, "the window is not over");
        vm.warp(block.timestamp + 1);
        assertEq(exchange.capacityOf(BTC), 0.24e18, "a new window");
        setBtc(54_000);
        assertEq(liquidate(account, BTC).size, 0.24e18, "in it");
        assertEq(exchange.capacityOf(BTC), 0, "used up");
    }

    /// @notice Rule 10: a new window begins with nothing used, and remembers what is used in it.
    function test_rule10_newWindowIsEmpty() public {
        limitTheWindow();
        uint256 small = open(bob, 700e6);
        trade(small, BTC, 0.1e18);
        setBtc(54_000);
        liquidate(account, BTC);
        vm.warp(block.timestamp + 30);
        setBtc(54_000);
        assertEq(liquidate(small, BTC).size, 0.1e18, "all of the small one");
        assertEq(exchange.capacityOf(BTC), 0.14e18, "the rest of the window");
    }

    /// @notice Rule 10: what is inherited does not touch the house, so no window holds it.
    function test_rule10_heirsNeedNoWindow() public {
        limitTheWindow();
        uint256 heir = open(bob, 100_000e6);
        setBtc(54_500);
        liquidate(account, BTC);
        assertEq(exchange.capacityOf(BTC), 0, "used up");
        assertEq(inherit(account, BTC, 0.76e18, heir).size, 0.76e18, "all the rest");
        assertFalse(flagged(account), "done");
    }
}
