// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IPerpExchange} from "../../src/interfaces/IPerpExchange.sol";
import {PerpReckoner} from "./PerpReckoner.sol";
import {PerpSetup} from "./PerpSetup.sol";

/// @notice Margin, funding, tiers, penalty and reward equal an independent reckoning, with parameters, sizes, prices
/// and times drawn.
contract PerpFormulasTest is PerpSetup {
    PerpReckoner internal reckoner;
    uint256 internal random;

    function setUp() public override {
        super.setUp();
        reckoner = new PerpReckoner(exchange);
    }

    function draw(uint256 least, uint256 most) internal returns (uint256) {
        random = uint256(keccak256(abi.encode(random)));
        return bound(random, least, most);
    }

    /* WORLDS */

    function drawWorld(uint256 seed) internal returns (uint256[3] memory accounts) {
        random = seed;
        setParameters(drawParameters());
        setMarket(ETH, drawMarket(tiered()));
        setMarket(BTC, drawMarket(flat()));
        fundWith(draw(1, 5000e6));
        for (uint256 i; i < 3; ++i) {
            accounts[i] = open([alice, bob, carol][i], draw(1e6, 100_000e6));
        }
        for (uint256 i; i < 8; ++i) {
            uint256 account = accounts[draw(0, 2)];
            uint256 market = draw(0, 1);
            int256 size = int256(draw(1, 10 ** draw(1, market == ETH ? 20 : 18)));
            attemptTrade(account, market, draw(0, 1) == 0 ? size : -size);
            wait_(draw(0, 1) * draw(0, 3 days));
        }
    }

    function attemptTrade(uint256 account, uint256 market, int256 size) internal {
        address who = ownerOf(account);
        vm.prank(who);
        try exchange.trade(account, market, size, size > 0 ? type(uint256).max : 0) {} catch {}
    }

    function drawParameters() internal returns (IPerpExchange.Parameters memory set) {
        set = usual();
        set.executionCost = uint128(draw(0, 10e18));
        set.minReward = uint128(draw(0, 10e18));
        set.minProfitRatio = uint64(draw(0, 2e18));
        set.maxReward = uint128(draw(1e18, 5000e18));
        set.maxRewardRatio = uint64(draw(0, 1e18));
        set.keeperShare = uint64(draw(0, 1e18));
        set.wholeBelow = uint128(draw(0, 500e18));
        set.partialRatio = uint64(draw(0.1e18, 1e18));
        set.criticalRatio = uint64(draw(0, 1e18));
    }

    function drawMarket(IPerpExchange.MarketParameters memory set)
        internal
        returns (IPerpExchange.MarketParameters memory)
    {
        set.skewScale = uint128(draw(1000e18, 1_000_000e18));
        set.minMargin = uint128(draw(0, 1) * draw(0, 50e18));
        set.marginSlope = uint64(draw(0, 1) * draw(0, 5e18));
        set.minInitialRatio = uint64(draw(0.01e18, 0.2e18));
        set.maintenanceScalar = uint64(draw(0.3e18, 1e18));
        set.penaltyRatio = uint64(draw(0, 0.05e18));
        set.maxFundingVelocity = uint64(draw(0, 9e18));
        set.windowMultiplier = uint64(draw(0, 1) * draw(0, 0.01e18));
        return set;
    }

    /// @dev Moves a market's price so that an account's equity lands somewhere around its margins, or anywhere.
    function movePrice(uint256 account) internal {
        uint256 market = draw(0, 1);
        int256 size = sizeOf(account, market);
        int256 price = int256(exchange.liveOf(market).price);
        if (size == 0) {
            price = price * int256(draw(500, 1500)) / 1000;
        } else {
            IPerpExchange.Assessment memory a = judged(account);
            int256 target = int256(draw(0, 2 * a.required)) - int256(draw(0, 1) * a.required / 8);
            price += (target - a.equity) * 1e18 / size;
        }
        if (price < 1e10) price = 1e10;
        if (price > 1e24) price = 1e24;
        if (market == ETH) ethFeed.set(price / 1e10, block.timestamp);
        else btcFeed.set(price, block.timestamp);
    }

    /* PROPERTIES */

    /// @notice Every account, the house too, is assessed as reckoned, at any time after any prices.
    function testFuzz_assessments(uint256 seed) public {
        uint256[3] memory accounts = drawWorld(seed);
        for (uint256 i; i < 3; ++i) {
            movePrice(accounts[i]);
            wait_(draw(0, 1 hours));
            for (uint256 account; account < 4; ++account) {
                assertAssessed(account);
            }
        }
        assertSolvent(1e5);
    }

    function assertAssessed(uint256 account) internal view {
        IPerpExchange.Assessment memory a = judged(account);
        PerpReckoner.Sums memory s = reckoner.sums(account);
        assertEq(a.equity, s.equity, "equity");
        assertEq(int256(a.notional), s.notional, "notional");
        assertEq(int256(a.initial), s.initial, "initial");
        assertEq(int256(a.maintenance), s.maintenance, "maintenance");
        assertEq(int256(a.required), s.required, "required");
    }

    /// @notice A trade is filled, costs and is charged what is reckoned, and the house gets what the trader pays.
    function testFuzz_trades(uint256 seed) public {
        uint256[3] memory accounts = drawWorld(seed);
        for (uint256 i; i < 4; ++i) {
            uint256 account = accounts[draw(0, 2)];
            uint256 market = draw(0, 1);
            int256 size = int256(draw(1, 10 ** draw(1, 19))) * (draw(0, 1) == 0 ? int256(1) : -1);
            (int256 fill, int256 cost, int256 fee) = reckoner.traded(market, size);
            int256[2] memory due = [
                paidIn(account, market) - cost - fee - reckoner.pending(account, market),
                paidIn(HOUSE, market) + cost - reckoner.pending(HOUSE, market)
            ];
            uint256 fees = exchange.fees();
            address who = ownerOf(account);
            vm.prank(who);
            try exchange.trade(account, market, size, size > 0 ? type(uint256).max : 0) returns (uint256 filled) {
                assertEq(int256(filled), fill, "fill");
                assertEq(int256(exchange.fees() - fees), fee, "fee");
                assertEq(paidIn(account, market), due[0], "the trader pays");
                assertEq(paidIn(HOUSE, market), due[1], "the house gets");
            } catch {}
        }
    }

    /// @dev Collateral less cost: what a trade changes by its cost, whatever it realizes.
    function paidIn(uint256 account, uint256 market) internal view returns (int256) {
        return collateralOf(account) - exchange.holding(account, market).cost;
    }

    /// @notice The funding rate and indices are the reckoned ones, and what is settled is what was pending.
    function testFuzz_funding(uint256 seed) public {
        drawWorld(seed);
        wait_(draw(1, 10 days));
        for (uint256 market; market < 2; ++market) {
            PerpReckoner.Look memory l = reckoner.look(market);
            IPerpExchange.Live memory live = exchange.liveOf(market);
            IPerpExchange.MarketState memory state = exchange.stateOf(market);
            assertEq(live.rate, l.rate, "rate");
            assertEq(live.longIndex, state.longIndex + l.perUnit, "long");
            assertEq(live.shortIndex, state.shortIndex - l.perUnit, "short");
            int256 before = equityOf(HOUSE);
            setMarket(market, exchange.parametersOf(market)); // writes the indices
            assertEq(exchange.stateOf(market).longIndex, live.longIndex, "written");
            assertEq(equityOf(HOUSE), before, "and nobody's equity changed");
        }
    }

    /// @notice A liquidation in cash closes, charges and pays what is reckoned, if and only if it should.
    function testFuzz_cashLiquidation(uint256 seed) public {
        uint256 account = drawWorld(seed)[draw(0, 2)];
        for (uint256 i; i < 4; ++i) {
            movePrice(account);
            uint256 market = draw(0, 1);
            int256 size = reckoner.tier(account, market);
            IPerpExchange.Quote memory quote = exchange.quoteLiquidation(account, market);
            assertEq(int256(quote.liquidatable), size, "tier");
            PerpReckoner.Sums memory s = reckoner.sums(account);
            bool covered = s.equity + int256(exchange.fund()) >= 0;
            int256 closed = reckoner.capacity(market);
            if (size < closed) closed = size;
            (int256 charge, int256 paid) = (0, 0);
            if (closed != 0) (charge, paid) = reckoner.cash(account, market, closed, size);
            uint256 before = token.balanceOf(keeper);
            vm.prank(keeper);
            try exchange.liquidate(account, market) {
                assertTrue(size != 0 && covered, "it should not");
                assertEq(int256((token.balanceOf(keeper) - before) * RAW), paid, "paid");
                assertEq(equityOf(account), s.equity > 0 ? s.equity - charge : int256(0), "charged");
                assertEq(int256(quote.size), closed, "closed");
            } catch {
                assertTrue(closed == 0 || !covered, "it should");
            }
        }
        assertSolvent(1e5);
    }

    /// @notice Inheriting moves, charges and gives what is reckoned.
    function testFuzz_inheritance(uint256 seed) public {
        uint256 account = drawWorld(seed)[draw(0, 2)];
        uint256 heir = open(dave, 10_000_000e6);
        movePrice(account);
        uint256 market = draw(0, 1);
        int256 size = reckoner.tier(account, market);
        PerpReckoner.Sums memory s = reckoner.sums(account);
        if (size == 0 || s.equity + int256(exchange.fund()) < 0) return;
        int256 asked = int256(draw(1, 2 * uint256(size)));
        int256 closed = asked < size ? asked : size;
        (int256 charge, int256 given) = reckoner.discount(account, market, closed);
        int256 house = equityOf(HOUSE);
        IPerpExchange.Quote memory quote = inherit(account, market, uint256(asked), heir);
        assertEq(int256(quote.size), closed, "size");
        assertEq(int256(quote.charge), charge, "charge");
        assertEq(int256(quote.reward), given, "discount");
        assertEq(equityOf(account), s.equity > 0 ? s.equity - charge : int256(0), "charged");
        int256 gained = equityOf(heir) - 10_000_000e18;
        assertTrue(gained == given || gained == given - 1, "the heir gains the discount, less a unit of rounding");
        assertEq(equityOf(HOUSE), house, "the house is not part of it");
        assertSolvent(1e5);
    }
}
