// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IPerpExchange} from "../../src/interfaces/IPerpExchange.sol";
import {PerpExchange} from "../../src/reference/PerpExchange.sol";
import {TestBase} from "../Vm.sol";
import {Feed} from "../mocks/Feed.sol";
import {Token} from "../mocks/Tokens.sol";

/// @notice One exchange with two markets, tiered ETH and flat BTC, a rich house, and four traders; and how to drive it.
abstract contract PerpSetup is TestBase {
    uint256 internal constant START = 1_800_000_000;
    uint256 internal constant BLOCK = 1000;
    uint256 internal constant HOUSE = 0;
    uint256 internal constant ETH = 0;
    uint256 internal constant BTC = 1;
    uint256 internal constant WAD = 1e18;
    uint256 internal constant RAW = 1e12; // money per raw unit of the token
    uint256 internal constant HOUSE_MONEY = 10_000_000e6;
    uint32 internal constant MAX_AGE = 3600;

    PerpExchange internal exchange;
    Token internal token;
    Feed internal ethFeed;
    Feed internal btcFeed;
    address internal owner = address(0xA0);
    address internal guardian = address(0xA1);
    address internal keeper = address(0xA2);
    address internal alice = address(0xB1);
    address internal bob = address(0xB2);
    address internal carol = address(0xB3);
    address internal dave = address(0xB4);

    function setUp() public virtual {
        vm.warp(START);
        vm.roll(BLOCK);
        token = new Token(6);
        exchange = new PerpExchange(address(token), owner);
        ethFeed = new Feed(8, 2000e8);
        btcFeed = new Feed(18, 60_000e18);
        vm.prank(owner);
        exchange.setGuardian(guardian);
        setParameters(usual());
        setMarket(ETH, tiered());
        setMarket(BTC, flat());
        pay(HOUSE, HOUSE_MONEY);
    }

    /* PARAMETERS */

    function usual() internal pure returns (IPerpExchange.Parameters memory) {
        return IPerpExchange.Parameters({
            executionCost: 2e18,
            minReward: 3e18,
            maxReward: 5000e18,
            wholeBelow: 100e18,
            minProfitRatio: 0.3e18,
            maxRewardRatio: 0.5e18,
            keeperShare: 0.5e18,
            partialRatio: 0.5e18,
            criticalRatio: 0.5e18,
            gateS: 600,
            maxMarkets: 4,
            adl: true
        });
    }

    function tiered() internal view returns (IPerpExchange.MarketParameters memory) {
        return IPerpExchange.MarketParameters({
            feed: address(ethFeed),
            maxAgeS: MAX_AGE,
            windowS: 30,
            skewScale: 100_000e18,
            minMargin: 10e18,
            marginSlope: 2e18,
            minInitialRatio: 0.05e18,
            maintenanceScalar: 0.6e18,
            makerFee: 0.0002e18,
            takerFee: 0.0006e18,
            maxFundingVelocity: 3e18,
            penaltyRatio: 0.025e18,
            windowMultiplier: 0.2e18, // 480 ETH in a window
            maxPd: 0.01e18
        });
    }

    /// @dev As Perpetual Protocol's Curie has it: 10 % and 6.25 % of the notional, whatever its size.
    function flat() internal view returns (IPerpExchange.MarketParameters memory set) {
        set = tiered();
        set.feed = address(btcFeed);
        set.skewScale = 10_000e18;
        set.minMargin = 0;
        set.marginSlope = 0;
        set.minInitialRatio = 0.1e18;
        set.maintenanceScalar = 0.625e18;
        set.windowMultiplier = 0;
    }

    function setParameters(IPerpExchange.Parameters memory set) internal {
        vm.prank(owner);
        exchange.setParameters(set);
    }

    function setMarket(uint256 market, IPerpExchange.MarketParameters memory set) internal {
        vm.prank(owner);
        exchange.setMarket(market, set);
    }

    /* WHAT PEOPLE DO */

    function open(address who, uint256 amount) internal returns (uint256 account) {
        return openAs(who, amount, false);
    }

    function openAs(address who, uint256 amount, bool isolated) internal returns (uint256 account) {
        vm.prank(who);
        account = exchange.createAccount(isolated);
        if (amount != 0) pay(account, amount);
    }

    function fundWith(uint256 amount) internal {
        token.mint(address(this), amount);
        token.approve(address(exchange), amount);
        exchange.growFund(amount);
    }

    function pay(uint256 account, uint256 amount) internal {
        token.mint(address(this), amount);
        token.approve(address(exchange), amount);
        exchange.deposit(account, amount);
    }

    function ownerOf(uint256 account) internal view returns (address) {
        return exchange.accountOf(account).owner;
    }

    /// @dev At any price.
    function trade(uint256 account, uint256 market, int256 sizeDelta) internal returns (uint256 fill) {
        vm.prank(ownerOf(account));
        return exchange.trade(account, market, sizeDelta, sizeDelta > 0 ? type(uint256).max : 0);
    }

    function refuseTrade(uint256 account, uint256 market, int256 sizeDelta, bytes4 reason) internal {
        address who = ownerOf(account);
        vm.expectPartialRevert(reason);
        vm.prank(who);
        exchange.trade(account, market, sizeDelta, sizeDelta > 0 ? type(uint256).max : 0);
    }

    function liquidate(uint256 account, uint256 market) internal returns (IPerpExchange.Quote memory) {
        vm.prank(keeper);
        return exchange.liquidate(account, market);
    }

    function inherit(uint256 account, uint256 market, uint256 size, uint256 heir)
        internal
        returns (IPerpExchange.Quote memory)
    {
        vm.prank(ownerOf(heir));
        return exchange.inherit(account, market, size, heir);
    }

    function setEth(uint256 dollars) internal {
        ethFeed.set(int256(dollars * 1e8), block.timestamp);
    }

    function setBtc(uint256 dollars) internal {
        btcFeed.set(int256(dollars * 1e18), block.timestamp);
    }

    /// @dev Time passes; the feeds say the same again.
    function wait_(uint256 time) internal {
        vm.warp(block.timestamp + time);
        vm.roll(block.number + time / 12 + 1);
        ethFeed.set(ethFeed.answer(), block.timestamp);
        btcFeed.set(btcFeed.answer(), block.timestamp);
    }

    /* WHAT ONE SEES */

    function judged(uint256 account) internal view returns (IPerpExchange.Assessment memory) {
        return exchange.assess(account);
    }

    function equityOf(uint256 account) internal view returns (int256) {
        return exchange.assess(account).equity;
    }

    function sizeOf(uint256 account, uint256 market) internal view returns (int256) {
        return exchange.holding(account, market).size;
    }

    function collateralOf(uint256 account) internal view returns (int256) {
        return exchange.accountOf(account).collateral;
    }

    function flagged(uint256 account) internal view returns (bool) {
        return exchange.accountOf(account).flagged;
    }

    function assertEq(int256 actual, int256 expected, string memory what) internal pure {
        if (actual != expected) revert Differs(what, actual, expected);
    }

    error Differs(string what, int256 actual, int256 expected);

    /// @dev Sum of equity + fund + fees <= tokens held, and what is missing is only the dust of roundings.
    function assertSolvent(uint256 dust) internal view {
        int256 claims = int256(exchange.fund() + exchange.fees());
        for (uint256 account; account < exchange.accountCount(); ++account) {
            claims += equityOf(account);
        }
        int256 held = int256(token.balanceOf(address(exchange)) * exchange.SCALE());
        assertTrue(claims <= held, "more is owed than held");
        assertTrue(claims + int256(dust) >= held, "money vanished");
    }
}
