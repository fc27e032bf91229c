// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {LiquidatorSetup} from "./LiquidatorSetup.sol";
import {LyingRouter, Router} from "./mocks/Routers.sol";
import {Token} from "./mocks/Tokens.sol";

contract LiquidatorSwapTest is LiquidatorSetup {
    function planWith(ILiquidator.Swap memory leg) internal view returns (ILiquidator.Plan memory plan) {
        plan = usualPlan();
        plan.swaps[0] = leg;
        plan.minProfit = 0;
    }

    /// @notice Only allow-listed routers swap, a removed one no more.
    function testFuzz_routers(address other) public {
        vm.assume(liquidator.venueKindOf(other) == ILiquidator.VenueKind.NONE);
        ILiquidator.Plan memory plan = usualPlan();
        plan.swaps[0].router = other;
        refused(plan, abi.encodeWithSelector(ILiquidator.RouterNotAllowed.selector, other));
        asSafe(abi.encodeCall(ILiquidator.setVenue, (address(router), ILiquidator.VenueKind.NONE)));
        refused(usualPlan(), abi.encodeWithSelector(ILiquidator.RouterNotAllowed.selector, address(router)));
    }

    /// @notice A path through a token without a feed is fine as long as its ends are listed.
    function test_unlistedTokenInTheMiddle() public {
        Token middle = new Token(18);
        router.setRate(address(weth), 500, address(middle), 1e18);
        router.setRate(address(middle), 100, address(usdc), 1994e6);
        ILiquidator.Swap memory leg = selling(address(weth), address(usdc), ALL);
        leg.path = abi.encodePacked(address(weth), uint24(500), address(middle), uint24(100), address(usdc));
        assertEq(execute(planWith(leg)), PROFIT, "profit");
        leg.exactOut = true;
        leg.limit = SEIZE;
        leg.path = abi.encodePacked(address(usdc), uint24(100), address(middle), uint24(500), address(weth));
        ILiquidator.Plan memory plan = planWith(leg);
        plan.profitToken = address(weth);
        assertEq(execute(plan), SEIZE - (uint256(1000.5e6) * 1e18 + 1994e6 - 1) / 1994e6, "profit in WETH");
        assertNothingLeft();
    }

    /// @notice A path is 20 bytes and whole hops of 23, at least one, between two different tokens.
    function testFuzz_pathForm(bytes calldata junk) public {
        vm.assume(junk.length < 43 || (junk.length - 20) % 23 != 0);
        ILiquidator.Swap memory leg = selling(address(weth), address(usdc), ALL);
        leg.path = junk;
        refused(planWith(leg), abi.encodeWithSelector(ILiquidator.InvalidPath.selector, 0));
        leg.path = abi.encodePacked(address(weth), FEE, address(usdc), FEE, address(weth));
        refused(planWith(leg), abi.encodeWithSelector(ILiquidator.InvalidPath.selector, 0));
        leg.path = abi.encodePacked(address(weth));
        refused(planWith(leg), abi.encodeWithSelector(ILiquidator.InvalidPath.selector, 0));
    }

    /// @notice Exact input of the maximum sells what is held beyond the flash debt in that token, and not a donation.
    function test_maximumInput() public {
        // The debt and the flash loan are in WETH, the collateral is USDC: only the excess WETH may be sold.
        ILiquidator.Plan memory plan = usualPlan();
        plan.flashToken = address(weth);
        plan.flashAmount = 1e18;
        plan.calls[0] = seizing(address(weth), 0.5e18, address(usdc), 1100e6);
        plan.swaps = new ILiquidator.Swap[](2);
        plan.swaps[0] = buying(address(usdc), address(weth), ALL, 1100e6);
        plan.swaps[1] = selling(address(weth), address(usdc), ALL);
        plan.minProfit = 0;
        // 0.5 WETH and the premium of 0.0005 are bought; then nothing is in excess and the second leg is skipped.
        uint256 spent = (uint256(0.5005e18) * 1e18 + 4.985e26 - 1) / 4.985e26;
        assertEq(execute(plan), 1100e6 - spent, "profit");
        assertNothingLeft();
    }

    /// @notice An exact output of the maximum that is not missing is skipped; so is an exact input of nothing.
    function test_nothingToSwapIsSkipped() public {
        ILiquidator.Plan memory plan = usualPlan();
        plan.calls[0] = seizing(address(usdc), REPAY, address(usdc), 1050e6);
        plan.swaps = new ILiquidator.Swap[](3);
        plan.swaps[0] = buying(address(weth), address(usdc), ALL, 0);
        plan.swaps[1] = selling(address(weth), address(usdc), ALL);
        plan.swaps[2] = buying(address(usdc), address(weth), ALL, 0);
        plan.minProfit = 49.5e6;
        assertEq(execute(plan), 49.5e6, "profit");
    }

    /// @notice An exact input of nothing that was to give something fails.
    function test_nothingToSellFailsItsLimit() public {
        ILiquidator.Plan memory plan = usualPlan();
        plan.calls[0] = seizing(address(usdc), REPAY, address(usdc), 1050e6);
        plan.swaps[0].limit = 1;
        refused(plan, abi.encodeWithSelector(ILiquidator.SwapLimit.selector, 0, 0, 1));
    }

    /// @notice The router gets the limit, and the limit is kept to the unit.
    function testFuzz_limitsAreExact(uint256 limit) public {
        ILiquidator.Swap memory leg = selling(address(weth), address(usdc), ALL);
        leg.limit = bound(limit, 1046.85e6 + 1, ALL);
        refused(planWith(leg), abi.encodeWithSelector(Router.TooLittle.selector, uint256(1046.85e6), leg.limit));
        leg.limit = bound(limit, 0, 1046.85e6);
        execute(planWith(leg));

        uint256 cost = (uint256(1000.5e6) * 1e18 + 1994e6 - 1) / 1994e6;
        leg = buying(address(weth), address(usdc), ALL, bound(limit, 0, cost - 1));
        refused(planWith(leg), abi.encodeWithSelector(Router.TooMuch.selector, cost, leg.limit));
        leg.limit = cost;
        execute(planWith(leg));
        leg.limit = bound(limit, cost, ALL);
        execute(planWith(leg));
        assertNothingLeft();
    }

    /// @notice No leg spends more than the plan brought in of the token.
    function testFuzz_overspending(uint256 amount) public {
        amount = bound(amount, SEIZE + 1, ALL - 1);
        refused(
            planWith(selling(address(weth), address(usdc), amount)),
            abi.encodeWithSelector(ILiquidator.Overspent.selector, address(weth), SEIZE, amount)
        );
        router.setHook(address(weth), abi.encodeCall(Token.mint, (address(liquidator), SEIZE)));
        ILiquidator.Plan memory plan = usualPlan();
        plan.swaps = new ILiquidator.Swap[](2);
        plan.swaps[0] = selling(address(weth), address(usdc), SEIZE);
        plan.swaps[1] = selling(address(weth), address(usdc), SEIZE);
        refused(plan, abi.encodeWithSelector(ILiquidator.Overspent.selector, address(weth), 0, SEIZE));
    }

    /// @notice A router's claim counts no further than the balances: one that takes and gives nothing fails its limit.
    function testFuzz_lyingRouter(uint256 claim, bool exactOut) public {
        LyingRouter liar = new LyingRouter();
        liar.setClaim(exactOut ? bound(claim, 0, SEIZE) : claim);
        asSafe(abi.encodeCall(ILiquidator.setVenue, (address(liar), ILiquidator.VenueKind.UNISWAP_V3)));
        ILiquidator.Swap memory leg = exactOut
            ? buying(address(weth), address(usdc), 1e6, SEIZE)
            : selling(address(weth), address(usdc), ALL);
        leg.router = address(liar);
        leg.limit = exactOut ? SEIZE : 1;
        refused(planWith(leg), abi.encodeWithSelector(ILiquidator.SwapLimit.selector, 0, 0, exactOut ? 1e6 : 1));
        leg.limit = exactOut ? SEIZE : 0;
        if (!exactOut) {
            refused(
                planWith(leg),
                abi.encodeWithSelector(ILiquidator.Overspent.selector, address(usdc), 0, uint256(1000.5e6))
            );
        }
    }

    /// @notice Several legs through several routers and tokens end with nothing left.
    function test_severalLegs() public {
        router.setRate(address(usdt), 100, address(usdc), 0.9999e18);
        ILiquidator.Plan memory plan = usualPlan();
        plan.tokens = list(address(usdc), address(weth), address(usdt));
        plan.swaps = new ILiquidator.Swap[](3);
        plan.swaps[0] = selling(address(weth), address(usdc), SEIZE / 2);
        plan.swaps[1] = selling(address(weth), address(usdt), ALL);
        plan.swaps[2] = ILiquidator.Swap(
            address(router), abi.encodePacked(address(usdt), uint24(100), address(usdc)), false, ALL, 0
        );
        plan.minProfit = 46.29e6;
        execute(plan);
        assertNothingLeft();
    }

    /* VERSION 2 */

    /// @notice A v2 router sells by a path of addresses, and pays the same.
    function test_v2SellsAndBuys() public {
        assertEq(execute(planWith(selling2(address(weth), address(usdc), ALL))), PROFIT, "profit");
        ILiquidator.Plan memory plan = planWith(buying2(address(weth), address(usdc), ALL, SEIZE));
        plan.profitToken = address(weth);
        uint256 cost = (uint256(1000.5e6) * 1e18 + 1994e6 - 1) / 1994e6;
        assertEq(execute(plan), SEIZE - cost, "profit in WETH");
        assertNothingLeft();
    }

    /// @notice A v2 path may pass tokens without a feed; it runs from what is spent to what is got, also for an exact
    /// output.
    function test_v2UnlistedTokenInTheMiddle() public {
        Token middle = new Token(18);
        router2.setRate(address(weth), 0, address(middle), 1e18);
        router2.setRate(address(middle), 0, address(usdc), 1994e6);
        ILiquidator.Swap memory leg = selling2(address(weth), address(usdc), ALL);
        leg.path = abi.encodePacked(address(weth), address(middle), address(usdc));
        assertEq(execute(planWith(leg)), PROFIT, "profit");
        leg.exactOut = true;
        leg.limit = SEIZE;
        ILiquidator.Plan memory plan = planWith(leg);
        plan.profitToken = address(weth);
        assertEq(execute(plan), SEIZE - (uint256(1000.5e6) * 1e18 + 1994e6 - 1) / 1994e6, "profit in WETH");
        assertNothingLeft();
    }

    /// @notice A v2 path is whole addresses, at least two, with different ends; a v3 path is none.
    function testFuzz_v2PathForm(bytes calldata junk) public {
        vm.assume(junk.length < 40 || junk.length % 20 != 0);
        ILiquidator.Swap memory leg = selling2(address(weth), address(usdc), ALL);
        bytes memory refusal = abi.encodeWithSelector(ILiquidator.InvalidPath.selector, 0);
        leg.path = junk;
        refused(planWith(leg), refusal);
        leg.path = abi.encodePacked(address(weth));
        refused(planWith(leg), refusal);
        leg.path = abi.encodePacked(address(weth), address(usdc), address(weth));
        refused(planWith(leg), refusal);
        leg.path = abi.encodePacked(address(weth), FEE, address(usdc));
        refused(planWith(leg), refusal);
        // A v2 path of two hops' length for v3, and the other way round.
        leg = selling(address(weth), address(usdc), ALL);
        leg.path = abi.encodePacked(address(weth), address(usdc));
        refused(planWith(leg), refusal);
    }

    /// @notice The v2 router gets the limit, and the limit is kept to the unit.
    function testFuzz_v2LimitsAreExact(uint256 limit) public {
        ILiquidator.Swap memory leg = selling2(address(weth), address(usdc), ALL);
        leg.limit = bound(limit, 1046.85e6 + 1, ALL);
        refused(planWith(leg), abi.encodeWithSelector(Router.TooLittle.selector, uint256(1046.85e6), leg.limit));
        leg.limit = bound(limit, 0, 1046.85e6);
        execute(planWith(leg));

        uint256 cost = (uint256(1000.5e6) * 1e18 + 1994e6 - 1) / 1994e6;
        leg = buying2(address(weth), address(usdc), ALL, bound(limit, 0, cost - 1));
        refused(planWith(leg), abi.encodeWithSelector(Router.TooMuch.selector, cost, leg.limit));
        leg.limit = bound(limit, cost, ALL);
        execute(planWith(leg));
        assertNothingLeft();
    }

    /// @notice Of a v2 router's word and the balances the worse counts.
    function testFuzz_v2LyingRouter(uint256 claim, bool exactOut) public {
        LyingRouter liar = new LyingRouter();
        liar.setClaim(exactOut ? bound(claim, 0, SEIZE) : claim);
        asSafe(abi.encodeCall(ILiquidator.setVenue, (address(liar), ILiquidator.VenueKind.UNISWAP_V2)));
        ILiquidator.Swap memory leg = exactOut
            ? buying2(address(weth), address(usdc), 1e6, SEIZE)
            : selling2(address(weth), address(usdc), ALL);
        leg.router = address(liar);
        leg.limit = exactOut ? SEIZE : 1;
        refused(planWith(leg), abi.encodeWithSelector(ILiquidator.SwapLimit.selector, 0, 0, exactOut ? 1e6 : 1));
    }

    /// @notice What a router took in secret is spent, whatever it says: a reward of the same size, paid out in a later
    /// leg, does not take its place in the books.
    function test_takenInSecret() public {
        uint256 cost = (uint256(1001.5e6) * 1e18 + 1994e6 - 1) / 1994e6;
        LyingRouter liar = new LyingRouter();
        liar.setGiving(true);
        liar.setClaim(cost);
        router.setRate(address(usdc), FEE, address(usdt), 1e18);
        router.setHook(address(weth), abi.encodeCall(Token.mint, (address(liquidator), SEIZE - cost)));
        for (uint256 i; i < 2; ++i) {
            ILiquidator.VenueKind kind = i == 0 ? ILiquidator.VenueKind.UNISWAP_V3 : ILiquidator.VenueKind.UNISWAP_V2;
            asSafe(abi.encodeCall(ILiquidator.setVenue, (address(liar), kind)));
            ILiquidator.Swap memory leg = buying(address(weth), address(usdc), 1001.5e6, SEIZE);
            if (i == 1) leg = buying2(address(weth), address(usdc), 1001.5e6, SEIZE);
            leg.router = address(liar);
            ILiquidator.Plan memory plan = planWith(leg);
            plan.swaps = new ILiquidator.Swap[](2);
            (plan.swaps[0], plan.swaps[1]) = (leg, selling(address(usdc), address(usdt), ALL));
            plan.tokens = list(address(usdc), address(weth), address(usdt));
            refused(
                plan,
                abi.encodeWithSelector(
                    ILiquidator.SlippageExceeded.selector, 1e6 * uint256(1e30), 39.5e6 * uint256(1e30)
                )
            );
        }
    }

    /// @notice What others give during a v2 swap counts for nothing: the router's own word is the smaller.
    function test_v2DonationDuringSwap() public {
        router2.setHook(address(usdc), abi.encodeCall(Token.mint, (address(liquidator), 7e6)));
        ILiquidator.Plan memory plan = planWith(selling2(address(weth), address(usdc), ALL));
        plan.minProfit = PROFIT + 1;
        refused(plan, abi.encodeWithSelector(ILiquidator.ProfitBelowMinimum.selector, PROFIT, PROFIT + 1));
        plan.minProfit = PROFIT;
        assertEq(execute(plan), PROFIT, "profit");
    }
}
