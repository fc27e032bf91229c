// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {LiquidatorSetup} from "./LiquidatorSetup.sol";
import {Token} from "./mocks/Tokens.sol";

/// @notice What a thief with the operator key and pools of his own tries, and what the end check makes of it.
contract LiquidatorEndCheckTest is LiquidatorSetup {
    uint256 internal constant USDC_VALUE = 1e30;
    uint24 internal constant OWN_POOL = 1;
    /// @dev The usual seizure: $1,050 for $1,000; $10.50 of slippage is allowed, so $39.50 must arrive.
    uint256 internal constant REQUIRED = 39.5e6;

    function setUp() public override {
        super.setUp();
        pool.setPremiumBps(0);
    }

    /// @dev A plan without a profit floor, its swap going through the thief's pool, which gives `proceeds` for all.
    function thiefsPlan(uint256 proceeds) internal returns (ILiquidator.Plan memory plan) {
        plan = usualPlan();
        plan.minProfit = 0;
        plan.swaps[0] = stealing(address(weth), address(usdc), ALL, SEIZE, proceeds);
    }

    /// @dev A leg through a pool of the thief's own; `amountIn` gives `amountOut`, rounded up to the nearest unit.
    function stealing(address tokenIn, address tokenOut, uint256 amount, uint256 amountIn, uint256 amountOut)
        internal
        returns (ILiquidator.Swap memory leg)
    {
        router.setRate(tokenIn, OWN_POOL, tokenOut, (amountOut * 1e18 + amountIn - 1) / amountIn);
        leg = selling(tokenIn, tokenOut, amount);
        leg.path = abi.encodePacked(tokenIn, OWN_POOL, tokenOut);
    }

    function tooLittle(uint256 actual, uint256 required) internal pure returns (bytes memory) {
        return abi.encodeWithSelector(
            ILiquidator.SlippageExceeded.selector, actual * USDC_VALUE, required * USDC_VALUE
        );
    }

    /// @notice The bound is exact to the unit: what must arrive passes, one unit less fails.
    function test_boundIsExact() public {
        refused(thiefsPlan(REPAY + REQUIRED - 1), tooLittle(REQUIRED - 1, REQUIRED));
        assertEq(execute(thiefsPlan(REPAY + REQUIRED)), REQUIRED, "least profit");
    }

    /// @notice For any seizure and slippage: passes exactly from the required value on.
    function testFuzz_bound(uint256 seize, uint256 bps, uint256 proceeds) public {
        seize = bound(seize, 0.4e18, 10e18);
        bps = bound(bps, 0, 1000);
        asSafe(abi.encodeCall(ILiquidator.setMaxSlippageBps, (uint16(bps))));
        uint256 gained = seize * WETH_PRICE * 1e18;
        uint256 excused = REPAY * USDC_VALUE + gained * bps / 10_000;
        uint256 required = gained > excused ? gained - excused : 0;
        proceeds = bound(proceeds, REPAY, REPAY + (required / USDC_VALUE + 1) * 2);

        ILiquidator.Plan memory plan = thiefsPlan(0);
        plan.calls[0] = seizing(address(usdc), REPAY, address(weth), seize);
        plan.swaps[0] = stealing(address(weth), address(usdc), ALL, seize, proceeds);
        uint256 got = seize * ((proceeds * 1e18 + seize - 1) / seize) / 1e18;
        uint256 actual = (got - REPAY) * USDC_VALUE;
        if (actual < required) {
            refused(plan, abi.encodeWithSelector(ILiquidator.SlippageExceeded.selector, actual, required));
        } else {
            assertEq(execute(plan), got - REPAY, "profit");
        }
    }

    /// @notice Legs do not add up: twenty round trips through the thief's pools lose no more than one.
    function testFuzz_roundTrips(uint256 trips, uint256 keepBps) public {
        trips = bound(trips, 1, 20);
        keepBps = bound(keepBps, 9000, 9999);
        ILiquidator.Plan memory plan = thiefsPlan(0);
        plan.swaps = new ILiquidator.Swap[](2 * trips + 1);
        uint256 proceeds = SEIZE;
        for (uint256 i; i < trips; ++i) {
            plan.swaps[2 * i] = stealing(address(weth), address(usdc), ALL, 1e18, 2000e6);
            // Of what the debt leaves over, each trip takes its share.
            plan.swaps[2 * i + 1] = stealing(address(usdc), address(weth), ALL, 2000e6, 1e18 * keepBps / 10_000);
        }
        plan.swaps[2 * trips] = stealing(address(weth), address(usdc), ALL, 1e18, 2000e6);
        proceeds = 50e6;
        for (uint256 i; i < trips; ++i) {
            proceeds = proceeds * keepBps / 10_000;
        }
        if (proceeds + 100 < REQUIRED) {
            refused(plan, ILiquidator.SlippageExceeded.selector);
        } else if (proceeds > REQUIRED + 100) {
            assertGe(execute(plan), REQUIRED, "profit");
        }
    }

    /// @notice A flash loan far larger than needed excuses nothing: its premium comes out of the slippage.
    function testFuzz_oversizedFlashLoan(uint256 excess) public {
        pool.setPremiumBps(5);
        ILiquidator.Plan memory plan = thiefsPlan(REPAY + 50e6);
        plan.flashAmount = REPAY + bound(excess, 0, 1e12);
        uint256 premium = plan.flashAmount * 5 / 10_000;
        if (premium > 50e6) {
            refused(plan, ILiquidator.Overspent.selector);
        } else if (50e6 - premium < REQUIRED) {
            refused(plan, tooLittle(50e6 - premium, REQUIRED));
        } else {
            assertEq(execute(plan), 50e6 - premium, "profit");
        }
    }

    /// @notice A loss in a market of the thief's own, before or after, cannot eat a real liquidation's bonus.
    function testFuzz_ownMarketLoses(uint256 loss, bool first) public {
        loss = bound(loss, 10.5e6 + 1, 50e6);
        ILiquidator.Plan memory plan = thiefsPlan(REPAY + 50e6);
        ILiquidator.Call[] memory calls = new ILiquidator.Call[](2);
        calls[first ? 0 : 1] = seizing(address(usdc), loss, address(usdt), 0);
        calls[first ? 1 : 0] = plan.calls[0];
        plan.calls = calls;
        plan.flashAmount = REPAY + loss;
        refused(plan, tooLittle(50e6 - loss, REQUIRED));
    }

    /// @notice Collateral that the thief sells us at its price in his own market allows no more slippage.
    function testFuzz_ownMarketAtPar(uint256 sold) public {
        sold = bound(sold, 1, 100);
        ILiquidator.Plan memory plan = thiefsPlan(0);
        ILiquidator.Call[] memory calls = new ILiquidator.Call[](2);
        calls[0] = plan.calls[0];
        calls[1] = seizing(address(usdc), sold * 2000e6, address(weth), sold * 1e18);
        plan.calls = calls;
        plan.flashAmount = REPAY + sold * 2000e6;
        plan.swaps[0] = stealing(
            address(weth), address(usdc), ALL, SEIZE + sold * 1e18, REPAY + sold * 2000e6 + REQUIRED - 1000
        );
        refused(plan, ILiquidator.SlippageExceeded.selector);
        plan.swaps[0] = stealing(
            address(weth), address(usdc), ALL, SEIZE + sold * 1e18, REPAY + sold * 2000e6 + REQUIRED
        );
        assertGe(execute(plan), REQUIRED, "profit");
    }

    /// @notice Turning the proceeds into another listed token does not get around the bound.
    function test_proceedsInAnotherToken() public {
        ILiquidator.Plan memory plan = thiefsPlan(0);
        plan.tokens = list(address(usdc), address(weth), address(usdt));
        plan.swaps = new ILiquidator.Swap[](2);
        plan.swaps[0] = buying(address(weth), address(usdc), ALL, SEIZE);
        plan.swaps[0].path = abi.encodePacked(address(usdc), OWN_POOL, address(weth));
        router.setRate(address(weth), OWN_POOL, address(usdc), 2000e6);
        plan.swaps[1] = stealing(address(weth), address(usdt), ALL, 0.025e18, REQUIRED - 1);
        plan.profitToken = address(usdt);
        refused(plan, tooLittle(REQUIRED - 1, REQUIRED));
        plan.swaps[1] = stealing(address(weth), address(usdt), ALL, 0.025e18, REQUIRED);
        assertEq(execute(plan), REQUIRED, "profit");
    }

    /// @notice Collateral left out of the plan's tokens cannot be spent: the thief would have to pay the debt himself,
    /// and the collateral waits for the sweep.
    function test_collateralLeftOut() public {
        ILiquidator.Plan memory plan = thiefsPlan(0);
        plan.tokens = list(address(usdc), address(usdt));
        delete plan.swaps;
        refused(plan, abi.encodeWithSelector(ILiquidator.Overspent.selector, address(usdc), 0, REPAY));

        // He gives USDC for a crumb of USDT through a pool of his own.
        ILiquidator.Call[] memory calls = new ILiquidator.Call[](2);
        calls[0] = plan.calls[0];
        calls[1] = seizing(address(usdc), 0, address(usdt), 1);
        plan.calls = calls;
        plan.swaps = new ILiquidator.Swap[](1);
        plan.swaps[0] = stealing(address(usdt), address(usdc), ALL, 1, REPAY + 1);
        assertEq(execute(plan), 1, "the crumb, paid for");
        assertEq(weth.balanceOf(address(liquidator)), SEIZE, "collateral waits");
        // The next plan that names it sends it to the treasury first.
        execute(thiefsPlan(REPAY + REQUIRED));
        assertEq(weth.balanceOf(treasury), SEIZE, "collateral arrived");
        assertEq(usdc.balanceOf(treasury), REQUIRED + 1, "and is no profit of the other plan");
    }

    /// @notice A reward that belongs to the treasury, paid out during the swap, does not hide a theft of the same size.
    function test_rewardDoesNotHideTheft() public {
        address[2] memory receivers = [address(liquidator), treasury];
        for (uint256 i; i < receivers.length; ++i) {
            router.setHook(address(usdc), abi.encodeCall(Token.mint, (receivers[i], 30e6)));
            refused(thiefsPlan(REPAY + REQUIRED - 1), tooLittle(REQUIRED - 1, REQUIRED));
        }
    }

    /// @notice Without any slippage set, only a loss-free plan passes.
    function test_noSlippageAllowed() public {
        asSafe(abi.encodeCall(ILiquidator.setMaxSlippageBps, (0)));
        refused(thiefsPlan(REPAY + 50e6 - 1), tooLittle(50e6 - 1, 50e6));
        assertEq(execute(thiefsPlan(REPAY + 50e6)), 50e6, "all of it");
    }

    /// @notice A jointly settled protocol's net gain is bound by the same slippage.
    function testFuzz_jointlySettledBound(uint256 gain, uint256 stolen) public {
        asSafe(abi.encodeCall(ILiquidator.setSettledJointly, (MARGIN, true)));
        gain = bound(gain, 2e6, 1e9);
        stolen = bound(stolen, 0, gain);
        ILiquidator.Plan memory plan = marginPlan(100e6, int256(gain));
        plan.swaps = new ILiquidator.Swap[](1);
        plan.tokens = list(address(usdc), address(usdt));
        plan.profitToken = address(usdt);
        plan.swaps[0] = stealing(address(usdc), address(usdt), ALL, 1e18, (gain - stolen) * 1e18 / gain);
        uint256 got = gain * ((gain - stolen) * 1e18 / gain) / 1e18;
        uint256 required = gain * USDC_VALUE - gain * USDC_VALUE * SLIPPAGE_BPS / 10_000;
        if (got == 0) return;
        if (got * USDC_VALUE < required) {
            refused(
                plan, abi.encodeWithSelector(ILiquidator.SlippageExceeded.selector, got * USDC_VALUE, required)
            );
        } else {
            assertEq(execute(plan), got, "profit");
        }
    }
}
