// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {IMorpho} from "../src/interfaces/IMorpho.sol";
import {LiquidatorSetup} from "./LiquidatorSetup.sol";
import {Feed} from "./mocks/Feed.sol";
import {FlashPool} from "./mocks/Funding.sol";
import {LyingFlashSource} from "./mocks/LyingFlashSource.sol";
import {RefusingToken, Token} from "./mocks/Tokens.sol";

/// @notice Loans of Morpho Blue and of Uniswap v3 pools, and Morpho's liquidation that is paid afterwards.
contract LiquidatorFundingTest is LiquidatorSetup {
    uint256 internal constant POOL_FEE = 0.5e6; // 500 ppm of the loan
    LyingFlashSource internal liar;

    function setUp() public override {
        super.setUp();
        liar = new LyingFlashSource();
        liar.setToken0(address(usdc));
        usdc.mint(address(liar), 1e15);
        allow(address(liar), IMorpho.liquidate.selector, LENDING);
    }

    function planFrom(address source) internal view returns (ILiquidator.Plan memory plan) {
        plan = usualPlan();
        plan.flashSource = source;
        plan.minProfit = 0;
    }

    /// @dev A plan of which the liar lends, or pays out first, in the way of a kind.
    function lyingPlan(LyingFlashSource.Way way, LyingFlashSource.Lie lie)
        internal
        returns (ILiquidator.Plan memory plan)
    {
        liar.setLie(lie);
        ILiquidator.FlashKind kind = ILiquidator.FlashKind.MORPHO;
        if (way == LyingFlashSource.Way.UNISWAP_V3) kind = ILiquidator.FlashKind.UNISWAP_V3;
        asSafe(abi.encodeCall(ILiquidator.setFlashSource, (address(liar), kind)));
        plan = way == LyingFlashSource.Way.LIQUIDATION ? morphoPlan() : usualPlan();
        plan.calls[0].target = way == LyingFlashSource.Way.LIQUIDATION ? address(liar) : address(pool);
        plan.flashSource = address(liar);
        plan.minProfit = 0;
    }

    function refusal(address caller) internal pure returns (bytes memory) {
        return abi.encodeWithSelector(ILiquidator.CallbackRefused.selector, caller);
    }

    function ways() internal pure returns (LyingFlashSource.Way[3] memory) {
        return [
            LyingFlashSource.Way.MORPHO,
            LyingFlashSource.Way.UNISWAP_V3,
            LyingFlashSource.Way.LIQUIDATION
        ];
    }

    /* HONEST SOURCES */

    /// @notice Morpho lends without a premium.
    function test_morphoLoan() public {
        assertEq(execute(planFrom(address(morpho))), PROFIT + 0.5e6, "no premium");
        assertEq(usdc.balanceOf(address(morpho)), 1e15, "repaid to the unit");
        assertNothingLeft();
    }

    /// @notice A pool lends either of its tokens for its fee, which is rounded up.
    function testFuzz_poolLoan(uint256 ppm, bool otherFirst) public {
        ppm = bound(ppm, 0, 40_000);
        FlashPool lender = otherFirst
            ? new FlashPool(address(weth), address(usdc))
            : new FlashPool(address(usdc), address(weth));
        usdc.mint(address(lender), 1e15);
        lender.setFeePpm(ppm);
        asSafe(abi.encodeCall(ILiquidator.setFlashSource, (address(lender), ILiquidator.FlashKind.UNISWAP_V3)));
        asSafe(abi.encodeCall(ILiquidator.setMaxSlippageBps, (1000)));
        ILiquidator.Plan memory plan = planFrom(address(lender));
        plan.flashAmount = REPAY + 1;
        uint256 fee = ((REPAY + 1) * ppm + 999_999) / 1_000_000;
        assertEq(execute(plan), PROFIT + 0.5e6 - fee, "profit less the fee");
        assertEq(usdc.balanceOf(address(lender)), 1e15 + fee, "repaid with the fee");
        assertNothingLeft();
    }

    /// @notice A token like USDT is borrowed from a pool as well.
    function test_poolLoanOfUsdt() public {
        FlashPool lender = new FlashPool(address(usdt), address(weth));
        usdt.mint(address(lender), 1e15);
        asSafe(abi.encodeCall(ILiquidator.setFlashSource, (address(lender), ILiquidator.FlashKind.UNISWAP_V3)));
        ILiquidator.Plan memory plan = planIn(address(usdt));
        plan.flashSource = address(lender);
        assertEq(execute(plan), PROFIT, "profit");
        assertEq(usdt.balanceOf(address(lender)), 1e15 + POOL_FEE, "repaid with the fee");
        assertNothingLeft();
    }

    /// @notice A token that answers false instead of going back to the pool fails the plan, whoever else would notice.
    function test_loanNotReturned() public {
        RefusingToken token = new RefusingToken();
        token.setRefused(address(1)); // nobody yet
        asSafe(abi.encodeCall(ILiquidator.setFeed, (address(token), address(new Feed(8, 1e8)), MAX_AGE_S)));
        ILiquidator.Plan memory plan = lyingPlan(LyingFlashSource.Way.UNISWAP_V3, LyingFlashSource.Lie.NONE);
        liar.setToken0(address(token));
        token.mint(address(liar), 1000e18);
        plan.flashToken = address(token);
        plan.flashAmount = 1000e18;
        plan.tokens = list(address(usdc), address(weth), address(token));
        plan.calls[0] = seizing(address(token), 1000e18, address(weth), SEIZE);
        plan.swaps = new ILiquidator.Swap[](2);
        plan.swaps[0] = buying(address(weth), address(token), ALL, SEIZE);
        plan.swaps[1] = selling(address(weth), address(usdc), ALL);
        router.setRate(address(weth), FEE, address(token), 1994e18);
        assertGe(execute(plan), 46e6, "profit");
        token.mint(address(liar), 1000e18);
        pool.setHook(address(token), abi.encodeCall(RefusingToken.setRefused, (address(liar))));
        refused(
            plan,
            abi.encodeWithSelector(
                ILiquidator.TransferFailed.selector, address(token), address(liar), uint256(1000e18)
            )
        );
    }

    /// @notice A token that is none of the pool's cannot be borrowed there.
    function test_poolWithoutTheToken() public {
        ILiquidator.Plan memory plan = planIn(address(usdt));
        plan.flashSource = address(flashPool);
        (bool success,) = address(this).call(abi.encodeCall(this.tryPlan, (plan)));
        assertFalse(success, "another token was borrowed");
    }

    function tryPlan(ILiquidator.Plan memory plan) external {
        execute(plan);
    }

    /// @notice While it lends, a pool is locked: not even the plan's own call gets a second loan of it.
    function test_poolIsLocked() public {
        pool.setHook(
            address(flashPool), abi.encodeCall(FlashPool.flash, (address(liquidator), 1, 0, bytes("")))
        );
        refused(planFrom(address(flashPool)), ILiquidator.CallFailed.selector);
    }

    /// @notice A pool's fee beyond the allowed slippage fails the plan, though the profit floor would let it pass.
    function testFuzz_poolFeeComesOutOfTheSlippage(uint256 ppm) public {
        router.setRate(address(weth), FEE, address(usdc), 2000e6);
        ppm = bound(ppm, 0, 50_000);
        flashPool.setFeePpm(ppm);
        // $1,050 seized: $10.50 may be lost.
        if (ppm <= 10_500) {
            assertEq(execute(planFrom(address(flashPool))), 50e6 - ppm * 1000, "profit");
        } else {
            uint256 actual = (50e6 - ppm * 1000) * uint256(1e30);
            refused(
                planFrom(address(flashPool)),
                abi.encodeWithSelector(ILiquidator.SlippageExceeded.selector, actual, 39.5e6 * uint256(1e30))
            );
        }
    }

    /* STRANGERS AND LIARS */

    /// @notice Nobody calls the callbacks from outside: no operator, no Safe, no listed source.
    function testFuzz_callbacksFromOutside(address caller, bytes calldata params) public {
        bytes[3] memory requests = [
            abi.encodeCall(liquidator.onMorphoFlashLoan, (1, params)),
            abi.encodeCall(liquidator.onMorphoLiquidate, (1, params)),
            abi.encodeCall(liquidator.uniswapV3FlashCallback, (1, 0, params))
        ];
        address[5] memory callers = [caller, operator, address(morpho), address(flashPool), safe];
        for (uint256 i; i < 15; ++i) {
            vm.prank(callers[i / 3]);
            (bool success, bytes memory reason) = address(liquidator).call(requests[i % 3]);
            assertFalse(success, "let in");
            assertEq(keccak256(reason), keccak256(refusal(callers[i / 3])), "refused for the caller");
        }
    }

    /// @notice Without a lie the same source works, so the refusals below are due to the lies.
    function test_honestLiar() public {
        for (uint256 i; i < 2; ++i) {
            LyingFlashSource.Way way = ways()[i * 2];
            assertEq(execute(lyingPlan(way, LyingFlashSource.Lie.NONE)), PROFIT + 0.5e6, "no premium");
            assertEq(liar.approved(), REPAY, "approved to the unit");
        }
        assertEq(
            execute(lyingPlan(LyingFlashSource.Way.UNISWAP_V3, LyingFlashSource.Lie.NONE)), PROFIT + 0.5e6, "no fee"
        );
        assertEq(liar.approved(), 0, "repaid by transfer");
        assertEq(usdc.balanceOf(address(liar)), 1e15 + REPAY, "all paid back, and the liquidation paid for");
        assertNothingLeft();
    }

    /// @notice Another plan, another function, a second time, from elsewhere, or never: refused for every kind.
    function test_liesAboutTheCallback() public {
        for (uint256 i; i < 3; ++i) {
            LyingFlashSource.Way way = ways()[i];
            refused(lyingPlan(way, LyingFlashSource.Lie.OTHER_PARAMS), refusal(address(liar)));
            refused(lyingPlan(way, LyingFlashSource.Lie.OTHER_FUNCTION), refusal(address(liar)));
            refused(lyingPlan(way, LyingFlashSource.Lie.TWICE), refusal(address(liar)));
            refused(
                lyingPlan(way, LyingFlashSource.Lie.CALLS_FROM_ELSEWHERE), ILiquidator.CallbackRefused.selector
            );
            refused(
                lyingPlan(way, LyingFlashSource.Lie.NO_CALLBACK),
                abi.encodeWithSelector(ILiquidator.FlashNotGiven.selector, address(liar))
            );
        }
        refused(lyingPlan(LyingFlashSource.Way.MORPHO, LyingFlashSource.Lie.OTHER_AMOUNT), refusal(address(liar)));
    }

    /// @notice A source that keeps what it lends, or takes more than it may, gets nothing out of the proceeds.
    function test_keptOrGreedy() public {
        for (uint256 i; i < 2; ++i) {
            ILiquidator.Plan memory plan = lyingPlan(ways()[i], LyingFlashSource.Lie.KEEPS_LOAN);
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
        bytes4 moveFailed = bytes4(keccak256("MoveFailed(address)"));
        refused(lyingPlan(LyingFlashSource.Way.MORPHO, LyingFlashSource.Lie.PREMIUM_TEN_PERCENT), moveFailed);
        refused(lyingPlan(LyingFlashSource.Way.MORPHO, LyingFlashSource.Lie.PULLS_TWICE), moveFailed);
        refused(lyingPlan(LyingFlashSource.Way.LIQUIDATION, LyingFlashSource.Lie.PREMIUM_TEN_PERCENT), moveFailed);
        refused(lyingPlan(LyingFlashSource.Way.LIQUIDATION, LyingFlashSource.Lie.PULLS_TWICE), moveFailed);
        refused(
            lyingPlan(LyingFlashSource.Way.UNISWAP_V3, LyingFlashSource.Lie.PREMIUM_TEN_PERCENT),
            abi.encodeWithSelector(ILiquidator.Overspent.selector, address(usdc), uint256(1046.85e6), uint256(1100e6))
        );
        // Collateral that never came cannot pay.
        refused(
            lyingPlan(LyingFlashSource.Way.LIQUIDATION, LyingFlashSource.Lie.KEEPS_LOAN),
            abi.encodeWithSelector(ILiquidator.Overspent.selector, address(usdc), 0, REPAY)
        );
    }

    /// @notice What a source does not take back goes to the treasury and is no profit; no approval is left.
    function test_notTakenBack() public {
        for (uint256 i; i < 2; ++i) {
            uint256 before = usdc.balanceOf(treasury);
            uint256 profit = execute(lyingPlan(ways()[i * 2], LyingFlashSource.Lie.PULLS_NOTHING));
            assertEq(profit, PROFIT + 0.5e6, "the loan is no profit");
            assertEq(usdc.balanceOf(treasury) - before, profit + REPAY, "but it goes to the treasury");
            assertEq(usdc.allowance(address(liquidator), address(liar)), 0, "approval zeroed");
            assertNothingLeft();
        }
    }

    /* MORPHO'S LIQUIDATION */

    /// @notice The collateral is sold first and pays the debt: no loan, no premium, no capital, nothing left.
    function test_liquidatesFirst() public {
        vm.expectEmit(address(liquidator));
        emit ILiquidator.Liquidated("plan", LENDING, address(usdc), PROFIT + 0.5e6, operator);
        assertEq(execute(morphoPlan()), PROFIT + 0.5e6, "profit");
        assertEq(usdc.balanceOf(treasury), PROFIT + 0.5e6, "treasury");
        assertEq(usdc.balanceOf(address(morpho)), 1e15 + REPAY, "the debt is paid");
        assertNothingLeft();
    }

    /// @notice The end check is that of the same liquidation with a loan free of premium, to the unit: what one lets
    /// pass the other does, and both refuse with the same numbers.
    function testFuzz_sameEndCheck(uint256 seize, uint256 repay, uint256 rate, bool sameToken) public {
        seize = bound(seize, 0, 2e18);
        repay = bound(repay, 1, 3000e6);
        router.setRate(address(weth), FEE, address(usdc), bound(rate, 1900e6, 2010e6));
        address collateral = sameToken ? address(usdc) : address(weth);
        if (sameToken) seize = seize * WETH_PRICE / 1e12;
        ILiquidator.Plan memory after_ = morphoPlan();
        after_.calls[0] = seizingAtMorpho(address(usdc), repay, collateral, seize);
        after_.minProfit = 0;
        ILiquidator.Plan memory lent = usualPlan();
        lent.flashSource = address(morpho);
        lent.flashAmount = repay;
        lent.calls[0] = seizing(address(usdc), repay, collateral, seize);
        lent.minProfit = 0;
        assertEq(outcomeOf(after_), outcomeOf(lent), "same outcome");
    }

    /// @dev The profit, or the hash of the reason.
    function outcomeOf(ILiquidator.Plan memory plan) internal returns (bytes32 outcome) {
        uint256 id = vm.snapshotState();
        vm.prank(operator);
        try liquidator.execute(plan) returns (uint256 profit) {
            outcome = bytes32(profit);
        } catch (bytes memory reason) {
            outcome = keccak256(reason);
        }
        vm.revertToState(id);
    }

    /// @notice What is paid afterwards must be in the plan's flash token, or Morpho cannot take it.
    function test_paidInAnotherToken() public {
        ILiquidator.Plan memory plan = morphoPlan();
        plan.flashToken = address(weth);
        plan.minProfit = 0;
        delete plan.swaps;
        (bool success,) = address(this).call(abi.encodeCall(this.tryPlan, (plan)));
        assertFalse(success, "the debt was not paid in its token");
        plan.flashToken = address(usdt);
        refused(plan, abi.encodeWithSelector(ILiquidator.TokenNotListed.selector, address(usdt)));
    }

    /// @notice Nothing but one liquidation of the very source goes without an amount.
    function test_onlyOneLiquidation() public {
        bytes memory reason =
            abi.encodeWithSelector(ILiquidator.FlashWithoutAmount.selector, address(morpho));
        ILiquidator.Plan memory plan = morphoPlan();
        plan.calls = new ILiquidator.Call[](2);
        (plan.calls[0], plan.calls[1]) = (morphoPlan().calls[0], morphoPlan().calls[0]);
        refused(plan, reason);

        // The same call of another contract, which the Safe listed for it; the source itself it did not.
        plan = morphoPlan();
        plan.calls[0].target = address(liar);
        refused(plan, reason);

        // Another listed function of Morpho: the Safe's word is for a selector.
        allow(address(morpho), IMorpho.flashLoan.selector, LENDING);
        plan = morphoPlan();
        plan.calls[0].data = bytes.concat(IMorpho.flashLoan.selector, withoutSelector(plan.calls[0].data));
        refused(plan, reason);

        allow(address(morpho), IMorpho.liquidate.selector, 0);
        refused(
            morphoPlan(),
            abi.encodeWithSelector(
                ILiquidator.TargetNotAllowed.selector, address(morpho), IMorpho.liquidate.selector
            )
        );
    }

    function withoutSelector(bytes memory data) internal pure returns (bytes memory rest) {
        rest = new bytes(data.length - 4);
        for (uint256 i; i < rest.length; ++i) {
            rest[i] = data[i + 4];
        }
    }

    /// @notice With an ordinary call Morpho's liquidation works as any; data of the operator's own buys no callback.
    function test_callbackOfTheOperatorsOwn() public {
        ILiquidator.Plan memory plan = usualPlan();
        plan.calls[0] = seizingAtMorpho(address(usdc), REPAY, address(weth), SEIZE);
        assertEq(execute(plan), PROFIT, "without a callback");
        IMorpho.MarketParams memory market =
            IMorpho.MarketParams(address(usdc), address(weth), address(0), address(0), 0);
        plan.calls[0].data =
            abi.encodeCall(IMorpho.liquidate, (market, stranger, SEIZE, REPAY, abi.encode(morphoPlan())));
        refused(
            plan, abi.encodeWithSelector(ILiquidator.CallFailed.selector, 0, refusal(address(morpho)))
        );
    }

    /// @notice In the middle of the liquidation the contract is locked, and its callbacks answer to nobody else.
    function test_lockedWhileItLiquidates() public {
        bytes memory params = abi.encode(morphoPlan());
        bytes[5] memory requests = [
            abi.encodeCall(ILiquidator.execute, (usualPlan())),
            abi.encodeCall(ILiquidator.sweep, (list(address(usdc), address(weth)))),
            abi.encodeCall(liquidator.onMorphoLiquidate, (0, params)),
            abi.encodeCall(liquidator.onMorphoFlashLoan, (0, params)),
            abi.encodeCall(
                liquidator.executeOperation, (address(usdc), 0, 0, address(liquidator), params)
            )
        ];
        Striker striker = new Striker(address(liquidator));
        asSafe(abi.encodeCall(ILiquidator.setOperator, (address(striker), true)));
        for (uint256 i; i < requests.length; ++i) {
            morpho.setHook(address(striker), abi.encodeCall(Striker.strike, (requests[i])));
            execute(morphoPlan());
        }
        assertEq(striker.refusals(), requests.length, "each was tried and refused");
        assertNothingLeft();
    }

    /// @notice A market of the thief's own, whose collateral is worthless, costs us nothing: nothing else can pay.
    function testFuzz_ownMarket(uint256 repay, uint256 given) public {
        repay = bound(repay, 1, 1e12);
        Token worthless = new Token(18);
        ILiquidator.Plan memory plan = morphoPlan();
        plan.calls[0] = seizingAtMorpho(address(usdc), repay, address(worthless), 1e18);
        plan.minProfit = 0;
        delete plan.swaps;
        refused(plan, abi.encodeWithSelector(ILiquidator.Overspent.selector, address(usdc), 0, repay));
        // What he pays in himself, meanwhile, is all that he gets.
        given = bound(given, repay, 1e13);
        morpho.setHook(address(usdc), abi.encodeCall(Token.mint, (address(liquidator), given)));
        assertEq(execute(plan), given - repay, "his own money");
        assertEq(usdc.balanceOf(treasury), given - repay, "treasury");
        assertNothingLeft();
    }
}

/// @notice Counts what a contract refuses.
contract Striker {
    address internal immutable victim;
    uint256 public refusals;

    constructor(address victim_) {
        victim = victim_;
    }

    function strike(bytes calldata request) external {
        (bool success,) = victim.call(request);
        if (!success) ++refusals;
    }
}
