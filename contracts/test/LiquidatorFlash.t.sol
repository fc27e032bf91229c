// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {LiquidatorSetup} from "./LiquidatorSetup.sol";
import {LyingFlashSource} from "./mocks/LyingFlashSource.sol";
import {LendingPool} from "./mocks/Protocols.sol";
import {Token} from "./mocks/Tokens.sol";

contract LiquidatorFlashTest is LiquidatorSetup {
    LyingFlashSource internal liar;

    function setUp() public override {
        super.setUp();
        liar = new LyingFlashSource();
        usdc.mint(address(liar), 1e15);
        asSafe(abi.encodeCall(ILiquidator.setFlashSource, (address(liar), ILiquidator.FlashKind.AAVE_V3)));
    }

    function planWith(LyingFlashSource.Lie lie) internal returns (ILiquidator.Plan memory plan) {
        liar.setLie(lie);
        plan = usualPlan();
        plan.flashSource = address(liar);
        plan.minProfit = 0;
    }

    function refusal(address caller) internal pure returns (bytes memory) {
        return abi.encodeWithSelector(ILiquidator.CallbackRefused.selector, caller);
    }

    /// @notice Without a lie the same source works, so the refusals below are due to the lies.
    function test_honestSource() public {
        assertEq(execute(planWith(LyingFlashSource.Lie.NONE)), PROFIT + 0.5e6, "no premium");
        assertEq(liar.approved(), REPAY, "approved to the unit");
        assertNothingLeft();
    }

    /// @notice Nobody calls the flash callback from outside: no operator, no Safe, no allow-listed source.
    function testFuzz_callbackFromOutside(address caller, address initiator, bytes calldata params) public {
        address[4] memory callers = [caller, operator, address(pool), safe];
        for (uint256 i; i < callers.length; ++i) {
            vm.expectRevert(refusal(callers[i]));
            vm.prank(callers[i]);
            liquidator.executeOperation(address(usdc), 1, 0, initiator, params);
        }
    }

    /// @notice A flash loan that somebody else starts with the liquidator as receiver fails.
    function test_loanStartedByAnother() public {
        ILiquidator.Plan memory plan = usualPlan();
        vm.expectRevert(refusal(address(pool)));
        vm.prank(stranger);
        pool.flashLoanSimple(address(liquidator), address(usdc), REPAY, abi.encode(plan), 0);
    }

    /// @notice Nor can it be started while a plan's own loan is out, by a protocol call or by a swap.
    function test_loanStartedByAnotherDuringAPlan() public {
        ILiquidator.Plan memory plan = usualPlan();
        bytes memory request = abi.encodeCall(
            LendingPool.flashLoanSimple, (address(liquidator), address(usdc), REPAY, abi.encode(plan), 0)
        );
        pool.setHook(address(pool), request);
        refused(
            plan,
            abi.encodeWithSelector(
                ILiquidator.CallFailed.selector, 0, abi.encodeWithSelector(LendingPool.FlashFailed.selector)
            )
        );
        pool.setHook(address(0), "");
        router.setHook(address(pool), request);
        refused(plan, bytes4(keccak256("HookFailed()")));
    }

    /// @notice Another initiator, other terms, another plan, another sender, or a second time: refused.
    function test_liesAboutTheCallback() public {
        refused(planWith(LyingFlashSource.Lie.TWICE), refusal(address(liar)));
        refused(planWith(LyingFlashSource.Lie.OTHER_INITIATOR), refusal(address(liar)));
        refused(planWith(LyingFlashSource.Lie.OTHER_AMOUNT), refusal(address(liar)));
        refused(planWith(LyingFlashSource.Lie.OTHER_ASSET), refusal(address(liar)));
        refused(planWith(LyingFlashSource.Lie.OTHER_PARAMS), refusal(address(liar)));
        refused(planWith(LyingFlashSource.Lie.OTHER_FUNCTION), refusal(address(liar)));
        refused(planWith(LyingFlashSource.Lie.CALLS_FROM_ELSEWHERE), ILiquidator.CallbackRefused.selector);
    }

    /// @notice A source that never calls back fails the plan.
    function test_noCallback() public {
        refused(
            planWith(LyingFlashSource.Lie.NO_CALLBACK),
            abi.encodeWithSelector(ILiquidator.FlashNotGiven.selector, address(liar))
        );
    }

    /// @notice A source that keeps the loan but wants it back gets nothing out of the proceeds.
    function test_keptLoan() public {
        ILiquidator.Plan memory plan = planWith(LyingFlashSource.Lie.KEEPS_LOAN);
        plan.calls[0] = seizing(address(usdc), 0, address(usdc), 100e6);
        plan.flashAmount = 50e6;
        delete plan.swaps;
        refused(
            plan,
            abi.encodeWithSelector(
                ILiquidator.SlippageExceeded.selector, 50e6 * uint256(1e30), 99e6 * uint256(1e30)
            )
        );
    }

    /// @notice A premium beyond the allowed slippage fails the plan, though the profit floor would let it pass.
    function test_greedyPremium() public {
        ILiquidator.Plan memory plan = planWith(LyingFlashSource.Lie.PREMIUM_TEN_PERCENT);
        plan.calls[0] = seizing(address(usdc), REPAY, address(weth), 0.6e18);
        uint256 actual = (0.6e18 * uint256(1994e6) / 1e18 - 1100e6) * 1e30;
        uint256 required = (200e6 - 12e6) * uint256(1e30);
        refused(plan, abi.encodeWithSelector(ILiquidator.SlippageExceeded.selector, actual, required));
    }

    /// @notice A source that does not take its loan back leaves no approval and no balance here.
    function test_loanNotTakenBack() public {
        uint256 profit = execute(planWith(LyingFlashSource.Lie.PULLS_NOTHING));
        assertEq(profit, PROFIT + 0.5e6, "the loan is no profit");
        assertEq(usdc.balanceOf(treasury), profit + REPAY, "but it goes to the treasury");
        assertEq(usdc.allowance(address(liquidator), address(liar)), 0, "approval zeroed");
        assertNothingLeft();
    }

    /// @notice The approval is exactly what is owed: a unit more cannot be pulled.
    function test_pullsMore() public {
        ILiquidator.Plan memory plan = planWith(LyingFlashSource.Lie.PULLS_TWICE);
        refused(plan, bytes4(keccak256("MoveFailed(address)")));
    }

    /// @notice Only allow-listed sources lend, a removed one no more; an amount without a source is refused.
    function testFuzz_sources(address source) public {
        vm.assume(source != address(0) && liquidator.flashKindOf(source) == ILiquidator.FlashKind.NONE);
        ILiquidator.Plan memory plan = usualPlan();
        plan.flashSource = source;
        refused(plan, abi.encodeWithSelector(ILiquidator.FlashSourceNotAllowed.selector, source));
        plan.flashSource = address(0);
        refused(plan, abi.encodeWithSelector(ILiquidator.FlashWithoutSource.selector, REPAY));
        asSafe(abi.encodeCall(ILiquidator.setFlashSource, (address(pool), ILiquidator.FlashKind.NONE)));
        refused(
            usualPlan(), abi.encodeWithSelector(ILiquidator.FlashSourceNotAllowed.selector, address(pool))
        );
    }

    /// @notice A debt that the proceeds do not cover is never paid from a donation.
    function test_debtNotPaidFromDonation() public {
        ILiquidator.Plan memory plan = usualPlan();
        plan.swaps[0].amount = SEIZE / 2;
        plan.minProfit = 0;
        router.setHook(address(usdc), abi.encodeCall(Token.mint, (address(liquidator), 1000e6)));
        refused(
            plan,
            abi.encodeWithSelector(
                ILiquidator.Overspent.selector, address(usdc), uint256(523.425e6), uint256(1000.5e6)
            )
        );
    }
}
