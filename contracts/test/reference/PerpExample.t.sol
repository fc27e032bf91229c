// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IPerpExchange} from "../../src/interfaces/IPerpExchange.sol";
import {PerpExchange} from "../../src/reference/PerpExchange.sol";
import {Vm} from "../Vm.sol";
import {Feed} from "../mocks/Feed.sol";
import {Token} from "../mocks/Tokens.sol";
import {PerpSetup} from "./PerpSetup.sol";

/// @notice The example of docs/perps.md on the contract. tests/unit/test_perps_page.py holds these figures to the
/// page's and reckons them once more.
contract PerpExampleTest is PerpSetup {
    uint256 internal constant MARKET = 0;

    uint256 internal ann;
    uint256 internal ben;
    uint256 internal cy;
    uint256 internal dan;

    function setUp() public override {
        vm.warp(START);
        vm.roll(BLOCK);
        token = new Token(6);
        exchange = new PerpExchange(address(token), owner);
        ethFeed = new Feed(8, 1000e8);
        setParameters(
            IPerpExchange.Parameters({
                executionCost: 2e18,
                minReward: 3e18,
                maxReward: 500e18,
                wholeBelow: 100e18,
                minProfitRatio: 0.3e18,
                maxRewardRatio: 0.5e18,
                keeperShare: 0.5e18,
                partialRatio: 0.5e18,
                criticalRatio: 0.5e18,
                gateS: 600,
                maxMarkets: 4,
                adl: true
            })
        );
        setMarket(
            MARKET,
            IPerpExchange.MarketParameters({
                feed: address(ethFeed),
                maxAgeS: 3600,
                windowS: 30,
                skewScale: 10_000e18,
                minMargin: 10e18,
                marginSlope: 10e18,
                minInitialRatio: 0.09e18,
                maintenanceScalar: 0.5e18,
                makerFee: 0.0002e18,
                takerFee: 0.0006e18,
                maxFundingVelocity: 3e18,
                penaltyRatio: 0.025e18,
                windowMultiplier: 0.1e18,
                maxPd: 0.01e18
            })
        );
        pay(HOUSE, 20_000e6);
        ann = open(alice, 1100e6);
        ben = open(bob, 1000e6);
        cy = open(carol, 500e6);
        dan = open(dave, 1000e6);
    }

    function check(string memory what, int256 actual, int256 expected) internal pure {
        assertEq(actual, expected, what);
    }

    function check(string memory what, uint256 actual, int256 expected) internal pure {
        assertEq(int256(actual), expected, what);
    }

    /// @notice Every figure of the page, in its order.
    function test_example() public {
        openPositions();
        payFunding();
        closeHalf();
        inheritTheRest();
        bearTheLoss();
        closeTheBooks();
    }

    function openPositions() internal {
        check("Ann's fill price", trade(ann, MARKET, 10e18), 1000.5e18);
        check("Ann's collateral", collateralOf(ann), 1093.997e18);
        check("Ann's equity", equityOf(ann), 1088.997e18);
        check("Ann's initial margin", judged(ann).initial, 1010e18);
        check("Ann's maintenance margin", judged(ann).maintenance, 510e18);
        check("what Ann must keep", judged(ann).required, 637e18);
        check("Ben's fill price", trade(ben, MARKET, -2e18), 1000.9e18);
        check("Ben's collateral", collateralOf(ben), 999.59964e18);
    }

    function payFunding() internal {
        vm.warp(START + 1 days);
        setEth(950);
        check("funding rate", exchange.liveOf(MARKET).rate, 0.0024e18);
        check("owed by one unit long", exchange.liveOf(MARKET).longIndex, 1.14e18);
        check("Ann's equity at 950", equityOf(ann), 577.597e18);
        check("Ann's maintenance margin at 950", judged(ann).maintenance, 485e18);
        check("what Ann must keep at 950", judged(ann).required, 605.75e18);
    }

    function closeHalf() internal {
        IPerpExchange.Quote memory quote = liquidate(ann, MARKET);
        check("size closed", quote.size, 5e18);
        check("charge", quote.charge, 118.75e18);
        check("the keeper's reward", quote.reward, 61.375e18);
        check("the fund's part", quote.toFund, 57.375e18);
        check("Ann's equity after", equityOf(ann), 458.847e18);
        check("Ann's maintenance margin after", judged(ann).maintenance, 235.625e18);
        check("what Ann must keep after", judged(ann).required, 297e18);
    }

    function inheritTheRest() internal {
        setEth(875);
        check("Ann's equity at 875", equityOf(ann), 83.847e18);
        check("Ann's maintenance margin at 875", judged(ann).maintenance, 217.8125e18);
        IPerpExchange.Quote memory quote = inherit(ann, MARKET, 10e18, dan);
        check("size inherited", quote.size, 5e18);
        check("all that Ann can be charged", quote.charge, 83.847e18);
        check("Dan's discount", quote.reward, 41.9235e18);
        check("the fund", exchange.fund(), 99.2985e18);
        check("Dan's equity", equityOf(dan), 1041.9235e18);
    }

    function bearTheLoss() internal {
        setEth(642);
        check("Cy's fill price", trade(cy, MARKET, -2e18), 642.1284e18);
        setEth(640);
        check("Dan's equity at 640", equityOf(dan), -133.0765e18);
        int256 fund = int256(exchange.fund());
        int256 deficit = -equityOf(dan);
        int256[2] memory before = [equityOf(ben), equityOf(HOUSE)];
        vm.recordLogs();
        exchange.deleverage(dan, MARKET, 10);
        check("the fund pays", fund - int256(exchange.fund()), 99.2985e18);
        check("the loss that is left", deficit - fund, 33.778e18);
        check("Ben loses", before[0] - equityOf(ben), 13.5112e18);
        Vm.Log[] memory logs = vm.getRecordedLogs();
        for (uint256 i; i < logs.length; ++i) {
            if (logs[i].topics[0] != IPerpExchange.Socialized.selector) continue;
            (uint256 loss, uint256 perUnit) = abi.decode(logs[i].data, (uint256, uint256));
            check("laid on everybody", loss, 20.2668e18);
            check("on each unit", perUnit, 6.7556e18);
        }
        check("the house loses", before[1] - equityOf(HOUSE), 6.7556e18);
    }

    function closeTheBooks() internal view {
        check("Ann's last equity", equityOf(ann), 0e18);
        check("Ben's last equity", equityOf(ben), 1710.16844e18);
        check("Cy's last equity", equityOf(cy), 490.48874864e18);
        check("Dan's last equity", equityOf(dan), 0e18);
        check("the house's last equity", equityOf(HOUSE), 21_331.3076e18);
        check("fees", exchange.fees(), 6.66021136e18);
        check("tokens held", token.balanceOf(address(exchange)) * RAW, 23_538.625e18);
        assertSolvent(0);
    }
}
