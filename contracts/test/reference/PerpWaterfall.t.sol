// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IPerpExchange} from "../../src/interfaces/IPerpExchange.sol";
import {PerpSetup} from "./PerpSetup.sol";

/// @notice Rule 11: the fund, then winners, then everybody on the other side; and nobody withdraws meanwhile.
contract PerpWaterfallTest is PerpSetup {
    /// @dev Collateral 6,963.9982 and one BTC at 60,003: at 52,000 it owes this.
    uint256 internal constant DEFICIT = 1039.0018e18;
    uint256 internal loser;

    function setUp() public override {
        super.setUp();
        loser = open(alice, 7000e6);
        trade(loser, BTC, 1e18);
    }

    function short(address who, int256 size) internal returns (uint256 account) {
        account = open(who, 20_000e6);
        trade(account, BTC, -size);
    }

    function deleverage(uint256 account, uint256 market, uint256 most) internal {
        vm.prank(keeper);
        exchange.deleverage(account, market, most);
    }

    /// @notice Rule 11: while the fund covers the deficit, to the last unit, nobody else pays.
    function test_rule11_fundFirst() public {
        uint256 winner = short(bob, 0.4e18);
        fundWith(1039.0018e6);
        setBtc(52_000);
        int256 before = equityOf(winner);
        assertEq(equityOf(loser), -int256(DEFICIT), "owes");
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.NotBankrupt.selector, loser));
        exchange.deleverage(loser, BTC, 10);

        btcFeed.set(52_000e18 - 1, block.timestamp);
        assertEq(exchange.quoteLiquidation(loser, BTC).missing, 1, "one unit short");
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.FundShort.selector, DEFICIT + 1, DEFICIT));
        exchange.liquidate(loser, BTC);

        setBtc(52_000);
        vm.expectEmit(address(exchange));
        emit IPerpExchange.BadDebt(loser, DEFICIT, DEFICIT);
        liquidate(loser, BTC);
        assertEq(exchange.fund(), 0, "paid");
        assertEq(token.balanceOf(keeper), 0, "nothing was left for a reward");
        assertEq(equityOf(winner), before, "the winner keeps its gain");
        assertSolvent(100);
    }

    /// @notice Rule 11: what the fund lacks is taken from winners' profit at the bankruptcy price, and what they cannot
    /// take is laid on every unit of the other side, the house among them.
    function test_rule11_thenWinnersThenEverybody() public {
        uint256 winner = short(bob, 0.4e18);
        uint256 other = short(carol, 0.3e18);
        fundWith(39.0018e6);
        setBtc(52_000);
        int256[3] memory before = [equityOf(winner), equityOf(other), equityOf(HOUSE)];
        vm.expectEmit(address(exchange));
        emit IPerpExchange.BadDebt(loser, DEFICIT, 39.0018e18);
        deleverage(loser, BTC, 10);
        assertEq(exchange.fund(), 0, "the fund paid all it had");
        assertEq(equityOf(winner), before[0] - 400e18, "0.4 of the 1000 missing");
        assertEq(equityOf(other), before[1] - 300e18, "0.3 of it");
        assertEq(sizeOf(winner, BTC), 0, "closed");
        assertEq(sizeOf(other, BTC), 0, "closed");
        assertEq(equityOf(HOUSE), before[2] - 300e18, "the house held the rest of the other side");
        assertEq(equityOf(loser), 0, "the loser is even");
        assertEq(sizeOf(loser, BTC), 0, "and out");
        assertFalse(flagged(loser), "and free");
        assertSolvent(100);
    }

    /// @notice Rule 11: a winner loses profit only: whoever did not gain enough is not closed, but shares what is
    /// socialized.
    function test_rule11_winnersLoseProfitOnly() public {
        setBtc(52_900);
        uint256 late = short(dave, 0.5e18);
        setBtc(52_000);
        int256[2] memory before = [equityOf(late), equityOf(HOUSE)];
        // It gained 900 a unit, and 1,039 a unit are missing.
        deleverage(loser, BTC, 10);
        assertEq(sizeOf(late, BTC), -0.5e18, "not closed");
        assertEq(equityOf(late), before[0] - int256(DEFICIT) / 2, "half of the other side");
        assertEq(equityOf(HOUSE), before[1] - int256(DEFICIT) / 2, "the other half");
        assertEq(sizeOf(HOUSE, BTC), 0.5e18, "the house took the rest");
        assertSolvent(100);
    }

    /// @notice Rule 11: what the price gave and funding took is no profit.
    function test_rule11_fundingIsNoProfit() public {
        pay(loser, 1_000_000e6);
        uint256 paying = short(bob, 0.4e18);
        uint256 crowd = open(carol, 9_000_000e6);
        IPerpExchange.MarketParameters memory set = flat();
        set.maxFundingVelocity = 18e18;
        setMarket(BTC, set);
        trade(crowd, BTC, -100e18);
        wait_(2 days); // shorts pay some 21,000 a unit
        uint256 late = open(dave, 7000e6);
        trade(late, BTC, 1e18);
        setBtc(52_000);
        uint256 deficit = uint256(-equityOf(late));
        assertTrue(deficit > 100e18 && deficit < 2000e18, "less than the 8,000 that the price gave");
        deleverage(late, BTC, 10);
        assertEq(sizeOf(paying, BTC), -0.4e18, "no winner");
        assertEq(sizeOf(crowd, BTC), -100e18, "no winner");
        assertTrue(sizeOf(late, BTC) == 0 && equityOf(late) == 0, "everybody paid");
        assertSolvent(1e6);
    }

    /// @notice Rule 11: nor is anybody closed who lost elsewhere what it won here: it would owe and hold nothing, so
    /// that nobody could ever make up for it. It bears its share, and is wound up itself.
    function test_rule11_winnersOweNothingAfterwards() public {
        uint256 winner = short(bob, 0.4e18);
        trade(winner, ETH, 48e18);
        setBtc(45_000);
        setEth(1500);
        trade(winner, ETH, -48e18);
        int256 equity = equityOf(winner);
        assertTrue(equity > int256(judged(winner).required), "healthy");
        assertTrue(equity < -equityOf(loser) * 4 / 10, "and worth less than what would come with its size");
        deleverage(loser, BTC, 10);
        assertEq(sizeOf(winner, BTC), -0.4e18, "not closed");
        deleverage(winner, BTC, 10);
        assertEq(equityOf(winner), 0, "nobody is left who owes");
        assertFalse(flagged(winner), "or stands for the gate to be kept shut");
        assertSolvent(1e6);
    }

    /// @notice Rule 11: a winner whose equity nobody can tell, since another of its markets has no mark, is passed over,
    /// and keeps nobody from being deleveraged.
    function test_rule11_winnersWithoutAMarkArePassedOver() public {
        uint256 winner = short(bob, 0.4e18);
        trade(winner, ETH, 1e18);
        vm.warp(block.timestamp + MAX_AGE + 1);
        setBtc(52_000);
        deleverage(loser, BTC, 10);
        assertEq(sizeOf(winner, BTC), -0.4e18, "not closed");
        assertEq(sizeOf(loser, BTC), 0, "done");
    }

    /// @notice Rule 11: a frozen winner is being wound up itself, and is passed over.
    function test_rule11_frozenWinnersArePassedOver() public {
        uint256 winner = short(bob, 0.4e18);
        setBtc(52_000);
        IPerpExchange.Parameters memory set = usual();
        set.minReward = 60_000e18;
        set.maxReward = 60_000e18;
        setParameters(set);
        exchange.flag(winner);
        setParameters(usual());
        deleverage(loser, BTC, 10);
        assertEq(sizeOf(winner, BTC), -0.4e18, "not closed");
    }

    /// @notice Rule 11: without deleveraging a loss is socialized at once.
    function test_rule11_withoutDeleveraging() public {
        uint256 winner = short(bob, 0.4e18);
        IPerpExchange.Parameters memory set = usual();
        set.adl = false;
        setParameters(set);
        setBtc(52_000);
        int256 before = equityOf(winner);
        // One BTC stands on either side: the winner's 0.4 and the house's 0.6.
        vm.expectEmit(address(exchange));
        emit IPerpExchange.Socialized(loser, BTC, DEFICIT, DEFICIT);
        deleverage(loser, BTC, 0);
        assertEq(sizeOf(winner, BTC), -0.4e18, "not closed");
        assertEq(equityOf(winner), before - int256(DEFICIT * 4 / 10), "its share");
        assertSolvent(100);
    }

    /// @notice Rule 11: the walk begins at a random holder, goes only as far as asked, and nothing is socialized before
    /// it passed all.
    function test_rule11_randomStartInSteps() public {
        uint256[3] memory winners = [short(bob, 0.4e18), short(carol, 0.4e18), short(dave, 0.4e18)];
        setBtc(52_000);
        uint256 state = vm.snapshotState();
        uint256 seen;
        for (uint256 seed; seed < 40; ++seed) {
            vm.prevrandao(bytes32(seed));
            deleverage(loser, BTC, 1);
            uint256 closed = 3;
            for (uint256 i; i < 3; ++i) {
                if (sizeOf(winners[i], BTC) == 0) closed = i;
            }
            seen |= 1 << closed;
            assertEq(sizeOf(loser, BTC), closed == 3 ? int256(1e18) : int256(0.6e18), "one at most");
            assertEq(exchange.stateOf(BTC).shortIndex, 0, "nothing socialized");
            assertTrue(flagged(loser), "not done");
            vm.revertToState(state);
        }
        assertEq(seen, 15, "each of them, and the loser's own place");
        deleverage(loser, BTC, 1);
        deleverage(loser, BTC, 4);
        assertEq(sizeOf(loser, BTC), 0, "done");
        assertEq(exchange.stateOf(BTC).shortIndex, 0, "winners were enough");
        assertEq(equityOf(loser), 0, "even");
        assertSolvent(100);
    }

    /// @notice Rule 11: a walk of some steps costs what those steps cost, so that nobody escapes by crowding a market.
    function test_rule11_anyNumberOfHolders() public {
        for (uint256 i; i < 200; ++i) {
            trade(open(address(uint160(0xC000 + i)), 100e6), BTC, 0.001e18);
        }
        setBtc(50_000);
        uint256 before = gasleft();
        deleverage(loser, BTC, 1);
        assertTrue(before - gasleft() < 95_000, "as with few");
    }

    /// @notice Rule 11: a cross account's loss is split over its positions by their maintenance margins.
    function test_rule11_crossLossByMaintenance() public {
        uint256 cross = open(bob, 11_000e6);
        trade(cross, BTC, 1e18);
        trade(cross, ETH, 20e18);
        setBtc(54_000);
        setEth(1600);
        IPerpExchange.Assessment memory a = judged(cross);
        uint256 deficit = uint256(-a.equity);
        // 54,000 · 0.0625, and 32,000 · (0.0504 · 0.6) and 10.
        assertEq(a.maintenance, 3375e18 + 977.68e18, "maintenance");
        uint256 first = (deficit * 3375 * 100 + 435_267) / 435_268;
        int256 house = equityOf(HOUSE);
        deleverage(cross, BTC, 10);
        assertEq(equityOf(cross), -int256(deficit - first), "BTC's part is paid");
        assertTrue(flagged(cross), "not done");
        deleverage(cross, ETH, 10);
        assertEq(equityOf(cross), 0, "all is paid");
        assertGe(uint256(house - equityOf(HOUSE)), deficit, "by the house");
        assertFalse(flagged(cross), "done");
        assertSolvent(1e6);
    }

    /// @notice Rule 11: the house below its maintenance margin is deleveraged at the mark, until it has it again.
    function test_rule11_houseIsDeleveraged() public {
        uint256[2] memory longs = [open(bob, 100_000e6), open(carol, 100_000e6)];
        trade(longs[0], BTC, 2e18);
        trade(longs[1], BTC, 2e18);
        leaveTheHouse(40_000e6);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.NotBankrupt.selector, HOUSE));
        exchange.deleverage(HOUSE, BTC, 10);
        setBtc(66_000);
        IPerpExchange.Assessment memory a = judged(HOUSE);
        assertTrue(a.equity > 0 && a.equity < int256(a.maintenance), "short of margin");
        int256[2] memory before = [equityOf(longs[0]), equityOf(longs[1])];
        deleverage(HOUSE, BTC, 10);
        a = judged(HOUSE);
        assertTrue(a.equity >= int256(a.maintenance), "it has its margin");
        assertEq(sizeOf(longs[0], BTC) + sizeOf(longs[1], BTC) + sizeOf(loser, BTC), -sizeOf(HOUSE, BTC), "less");
        assertTrue(sizeOf(HOUSE, BTC) > -5e18 && sizeOf(HOUSE, BTC) < 0, "no more than needed");
        assertEq(equityOf(longs[0]), before[0], "at the mark");
        assertEq(equityOf(longs[1]), before[1], "at the mark");
        assertEq(exchange.gatedUntil(), 0, "nothing is missing");
        assertSolvent(100);
    }

    /// @notice Rule 11: a bankrupt house's loss takes the same way: fund, winners, everybody on the other side.
    function test_rule11_bankruptHouse() public {
        uint256 long = open(bob, 100_000e6);
        trade(long, BTC, 2e18);
        leaveTheHouse(20_000e6);
        setBtc(68_000);
        refuseTrade(long, BTC, -0.5e18, IPerpExchange.MarginTooLow.selector);
        fundWith(1000e6);
        uint256 deficit = uint256(-equityOf(HOUSE));
        int256 before = equityOf(long) + equityOf(loser);
        deleverage(HOUSE, BTC, 10);
        assertEq(exchange.fund(), 0, "the fund first");
        assertEq(equityOf(HOUSE), 0, "even");
        assertEq(equityOf(long) + equityOf(loser), before - int256(deficit - 1000e18), "the winners' profit");
        assertEq(sizeOf(HOUSE, BTC), 0, "closed against winners");
        assertEq(exchange.stateOf(BTC).longIndex, 0, "nothing socialized");
        assertSolvent(100);
    }

    /// @notice Rule 11: a bankrupt house without winners in a market lays its loss on all it owes there.
    function test_rule11_bankruptHouseWithoutWinners() public {
        uint256 long = open(bob, 50_000e6);
        trade(long, ETH, 100e18);
        leaveTheHouse(22_000e6);
        setBtc(83_000);
        uint256 deficit = uint256(-equityOf(HOUSE));
        int256 before = equityOf(long);
        deleverage(HOUSE, ETH, 10);
        assertEq(sizeOf(long, ETH), 100e18, "no winner, not closed");
        // ETH's part by maintenance margin: 6,250 of 6,250 and 5,187.5.
        uint256 loss = (deficit * 62_500 + 114_374) / 114_375;
        assertEq(equityOf(HOUSE), int256(loss) - int256(deficit), "that part is covered");
        uint256 borne = uint256(before - equityOf(long));
        assertTrue(borne >= loss && borne < loss + 100, "by whoever is long");
        assertSolvent(1e6);
    }

    /// @notice Rule 11: a bankrupt house that holds nothing any more is helped by the fund, and by nothing else.
    function test_rule11_bankruptHouseWithoutPosition() public {
        leaveTheHouse(7000e6);
        setBtc(69_000);
        IPerpExchange.MarketParameters memory set = flat();
        set.minInitialRatio = 1e18;
        setMarket(BTC, set); // now the winner is liquidatable
        liquidate(loser, BTC);
        uint256 deficit = uint256(-equityOf(HOUSE));
        assertEq(sizeOf(HOUSE, BTC), 0, "holds nothing");
        uint256 fund = exchange.fund();
        assertTrue(fund != 0 && deficit > fund, "the penalty is in the fund, and not enough");
        deleverage(HOUSE, BTC, 10);
        assertEq(equityOf(HOUSE), int256(fund) - int256(deficit), "what the fund had");
        assertEq(exchange.fund(), 0, "spent");
        vm.expectPartialRevert(IPerpExchange.NotLiquidatable.selector);
        exchange.deleverage(HOUSE, BTC, 10);
        assertSolvent(100);
    }

    /// @notice Rule 11: there is no deleveraging where nobody won and nothing is lost.
    function test_rule11_nobodyToDeleverage() public {
        uint256 long = open(bob, 100_000e6);
        trade(long, ETH, 100e18);
        leaveTheHouse(22_000e6);
        setBtc(77_000);
        IPerpExchange.Assessment memory a = judged(HOUSE);
        assertTrue(a.equity > 0 && a.equity < int256(a.maintenance), "short of margin");
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.NobodyToDeleverage.selector, HOUSE, ETH));
        exchange.deleverage(HOUSE, ETH, 10);
        deleverage(HOUSE, BTC, 10);
    }

    /// @dev Takes the house's money but for this.
    function leaveTheHouse(uint256 amount) internal {
        uint256 all = uint256(collateralOf(HOUSE)) / RAW;
        vm.prank(owner);
        exchange.withdraw(HOUSE, all - amount, owner);
    }

    /// @notice Rule 11: from the moment somebody's equity is seen below zero nobody withdraws, not even fees, until the
    /// gate's time has passed since it was last seen.
    function test_rule11_withdrawalGate() public {
        uint256 winner = short(bob, 0.4e18);
        vm.prank(bob);
        exchange.withdraw(winner, 1e6, bob);
        setBtc(52_000);
        exchange.flag(loser);
        uint256 until = START + 600;
        assertEq(exchange.gatedUntil(), until, "gated");
        vm.warp(until - 1);
        setBtc(52_000);
        bytes memory gated = abi.encodeWithSelector(IPerpExchange.WithdrawalsGated.selector, until);
        vm.expectRevert(gated);
        vm.prank(bob);
        exchange.withdraw(winner, 1e6, bob);
        vm.expectRevert(gated);
        vm.prank(owner);
        exchange.collectFees(1, owner);
        exchange.flag(loser); // still there
        vm.warp(until);
        setBtc(52_000);
        vm.expectRevert(abi.encodeWithSelector(IPerpExchange.WithdrawalsGated.selector, until + 599));
        vm.prank(bob);
        exchange.withdraw(winner, 1e6, bob);
        deleverage(loser, BTC, 10);
        until = exchange.gatedUntil();
        assertEq(until, block.timestamp + 600, "the gate opens some time after");
        vm.warp(until);
        setBtc(52_000);
        vm.prank(bob);
        exchange.withdraw(winner, 1e6, bob);
        vm.prank(owner);
        exchange.collectFees(1, owner);
    }
}
