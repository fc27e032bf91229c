// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Liquidator} from "../src/Liquidator.sol";
import {PauseGuard} from "../src/PauseGuard.sol";
import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {IMorpho} from "../src/interfaces/IMorpho.sol";
import {SafeStandIn} from "./PauseGuardSetup.sol";
import {TestBase} from "./Vm.sol";
import {Feed} from "./mocks/Feed.sol";
import {FlashPool, Morpho} from "./mocks/Funding.sol";
import {LendingPool, MarginExchange} from "./mocks/Protocols.sol";
import {Router} from "./mocks/Routers.sol";
import {NoReturnToken, Token} from "./mocks/Tokens.sol";

/// @notice A liquidator with a lending pool, a permissionless market, a margin exchange, Morpho, a flash pool, routers,
/// USDC, USDT and WETH.
/// @dev WETH is worth $2,000. The usual plan repays 1,000 USDC of flash loan for 0.525 WETH ($1,050) and sells it with
/// a 0.3 % fee: 1,046.85 - 1,000 - 0.5 premium = 46.35 USDC of profit.
abstract contract LiquidatorSetup is TestBase {
    uint256 internal constant START = 1_800_000_000;
    uint40 internal constant DELAY = 1800;
    uint32 internal constant MAX_AGE_S = 3600;
    uint16 internal constant SLIPPAGE_BPS = 100;
    uint24 internal constant FEE = 3000;
    uint256 internal constant ALL = type(uint256).max;
    bytes32 internal constant GLOBAL = bytes32(0);
    bytes32 internal constant LENDING = "lending";
    bytes32 internal constant MARGIN = "margin";
    uint256 internal constant REPAY = 1000e6;
    uint256 internal constant SEIZE = 0.525e18;
    uint256 internal constant PROFIT = 46.35e6;
    uint256 internal constant WETH_PRICE = 2000;

    address internal safe;
    address internal treasury = address(0x7EA5);
    address internal operator = address(0x0EE7);
    address internal stranger = address(0xBAD);
    address internal guardian = address(0x6A2D);

    PauseGuard internal guard;
    Liquidator internal liquidator;
    LendingPool internal pool;
    MarginExchange internal exchange;
    Morpho internal morpho;
    FlashPool internal flashPool;
    Router internal router;
    Router internal router2; // swaps by v2 paths
    Token internal usdc;
    Token internal weth;
    NoReturnToken internal usdt;
    Feed internal usdcFeed;
    Feed internal wethFeed;
    Feed internal usdtFeed;

    function setUp() public virtual {
        vm.warp(START);
        vm.roll(1000);
        safe = address(new SafeStandIn());
        address[] memory guardians = new address[](1);
        guardians[0] = guardian;
        guard = new PauseGuard(safe, guardians, DELAY);
        liquidator = new Liquidator(safe, treasury, address(guard));
        pool = new LendingPool();
        exchange = new MarginExchange();
        morpho = new Morpho();
        (router, router2) = (new Router(), new Router());
        (usdc, weth, usdt) = (new Token(6), new Token(18), new NoReturnToken());
        flashPool = new FlashPool(address(usdc), address(weth));
        (usdcFeed, usdtFeed) = (new Feed(8, 1e8), new Feed(8, 1e8));
        wethFeed = new Feed(8, int256(WETH_PRICE * 1e8));

        usdc.mint(address(pool), 1e15);
        usdt.mint(address(pool), 1e15);
        weth.mint(address(pool), 1e24);
        usdc.mint(address(morpho), 1e15);
        weth.mint(address(morpho), 1e24);
        usdc.mint(address(flashPool), 1e15);
        weth.mint(address(flashPool), 1e24);
        fairRates();
        configure();
    }

    /// @dev $2,000 per WETH less 0.3 %.
    function fairRates() internal {
        router.setRate(address(weth), FEE, address(usdc), 1994e6);
        router.setRate(address(weth), FEE, address(usdt), 1994e6);
        router.setRate(address(usdc), FEE, address(weth), 4.985e26);
        router.setRate(address(usdt), FEE, address(weth), 4.985e26);
        router2.setRate(address(weth), 0, address(usdc), 1994e6);
        router2.setRate(address(usdc), 0, address(weth), 4.985e26);
    }

    function configure() internal {
        asSafe(abi.encodeCall(ILiquidator.setOperator, (operator, true)));
        allow(address(pool), LendingPool.liquidate.selector, LENDING);
        allow(address(pool), LendingPool.refuse.selector, LENDING);
        allow(address(exchange), MarginExchange.deposit.selector, MARGIN);
        allow(address(exchange), MarginExchange.takeOver.selector, MARGIN);
        allow(address(exchange), MarginExchange.withdraw.selector, MARGIN);
        allow(address(morpho), IMorpho.liquidate.selector, LENDING);
        asSafe(abi.encodeCall(ILiquidator.setFlashSource, (address(pool), ILiquidator.FlashKind.AAVE_V3)));
        asSafe(abi.encodeCall(ILiquidator.setFlashSource, (address(morpho), ILiquidator.FlashKind.MORPHO)));
        asSafe(abi.encodeCall(ILiquidator.setFlashSource, (address(flashPool), ILiquidator.FlashKind.UNISWAP_V3)));
        asSafe(abi.encodeCall(ILiquidator.setVenue, (address(router), ILiquidator.VenueKind.UNISWAP_V3)));
        asSafe(abi.encodeCall(ILiquidator.setVenue, (address(router2), ILiquidator.VenueKind.UNISWAP_V2)));
        asSafe(abi.encodeCall(ILiquidator.setFeed, (address(usdc), address(usdcFeed), MAX_AGE_S)));
        asSafe(abi.encodeCall(ILiquidator.setFeed, (address(usdt), address(usdtFeed), MAX_AGE_S)));
        asSafe(abi.encodeCall(ILiquidator.setFeed, (address(weth), address(wethFeed), MAX_AGE_S)));
        asSafe(abi.encodeCall(ILiquidator.setMaxSlippageBps, (SLIPPAGE_BPS)));
    }

    error SafeCallFailed(bytes request, bytes reason);

    function asSafe(bytes memory request) internal {
        vm.prank(safe);
        (bool success, bytes memory reason) = address(liquidator).call(request);
        if (!success) revert SafeCallFailed(request, reason);
    }

    function allow(address target, bytes4 selector, bytes32 protocol) internal {
        asSafe(abi.encodeCall(ILiquidator.setTarget, (target, selector, protocol)));
    }

    /* PLANS */

    function usualPlan() internal view returns (ILiquidator.Plan memory plan) {
        return planIn(address(usdc));
    }

    /// @dev The usual plan with the debt, flash loan and profit in a stable token.
    function planIn(address stable) internal view returns (ILiquidator.Plan memory plan) {
        plan.planId = "plan";
        plan.flashSource = address(pool);
        plan.flashToken = stable;
        plan.flashAmount = REPAY;
        plan.calls = new ILiquidator.Call[](1);
        plan.calls[0] = seizing(stable, REPAY, address(weth), SEIZE);
        plan.swaps = new ILiquidator.Swap[](1);
        plan.swaps[0] = selling(address(weth), stable, ALL);
        plan.tokens = list(stable, address(weth));
        plan.profitToken = stable;
        plan.minProfit = PROFIT;
        plan.lastBlock = uint64(block.number);
    }

    function seizing(address debt, uint256 repay, address collateral, uint256 seize)
        internal
        view
        returns (ILiquidator.Call memory)
    {
        return ILiquidator.Call(
            address(pool), debt, repay, abi.encodeCall(LendingPool.liquidate, (collateral, debt, repay, seize)), 0
        );
    }

    function selling(address tokenIn, address tokenOut, uint256 amount)
        internal
        view
        returns (ILiquidator.Swap memory)
    {
        return ILiquidator.Swap(address(router), abi.encodePacked(tokenIn, FEE, tokenOut), false, amount, 0);
    }

    function buying(address tokenIn, address tokenOut, uint256 amount, uint256 most)
        internal
        view
        returns (ILiquidator.Swap memory)
    {
        return ILiquidator.Swap(address(router), abi.encodePacked(tokenOut, FEE, tokenIn), true, amount, most);
    }

    /// @dev Deposits margin, takes a position over with a result, withdraws.
    function marginPlan(uint256 deposit, int256 result) internal view returns (ILiquidator.Plan memory plan) {
        plan = usualPlan();
        plan.flashAmount = deposit;
        plan.calls = new ILiquidator.Call[](3);
        plan.calls[0] = ILiquidator.Call(
            address(exchange),
            address(usdc),
            deposit,
            abi.encodeCall(MarginExchange.deposit, (address(usdc), deposit)),
            0
        );
        plan.calls[1] =
            ILiquidator.Call(address(exchange), address(0), 0, abi.encodeCall(MarginExchange.takeOver, (result)), 0);
        plan.calls[2] = ILiquidator.Call(
            address(exchange), address(0), 0, abi.encodeCall(MarginExchange.withdraw, (address(usdc))), 0
        );
        delete plan.swaps;
        plan.minProfit = 0;
    }

    /// @dev The usual liquidation on Morpho, whose callback sells the collateral before the debt is paid.
    function morphoPlan() internal view returns (ILiquidator.Plan memory plan) {
        plan = usualPlan();
        plan.flashSource = address(morpho);
        plan.flashAmount = 0;
        plan.calls[0] = seizingAtMorpho(address(usdc), REPAY, address(weth), SEIZE);
        plan.minProfit = PROFIT + 0.5e6;
    }

    function seizingAtMorpho(address debt, uint256 repay, address collateral, uint256 seize)
        internal
        view
        returns (ILiquidator.Call memory)
    {
        IMorpho.MarketParams memory market = IMorpho.MarketParams(debt, collateral, address(0), address(0), 0);
        return ILiquidator.Call(
            address(morpho), debt, repay, abi.encodeCall(IMorpho.liquidate, (market, stranger, seize, repay, "")), 0
        );
    }

    function selling2(address tokenIn, address tokenOut, uint256 amount)
        internal
        view
        returns (ILiquidator.Swap memory)
    {
        return ILiquidator.Swap(address(router2), abi.encodePacked(tokenIn, tokenOut), false, amount, 0);
    }

    function buying2(address tokenIn, address tokenOut, uint256 amount, uint256 most)
        internal
        view
        returns (ILiquidator.Swap memory)
    {
        return ILiquidator.Swap(address(router2), abi.encodePacked(tokenIn, tokenOut), true, amount, most);
    }

    function list(address one) internal pure returns (address[] memory tokens) {
        tokens = new address[](1);
        tokens[0] = one;
    }

    function list(address one, address two) internal pure returns (address[] memory tokens) {
        tokens = new address[](2);
        (tokens[0], tokens[1]) = (one, two);
    }

    function list(address one, address two, address three) internal pure returns (address[] memory tokens) {
        tokens = new address[](3);
        (tokens[0], tokens[1], tokens[2]) = (one, two, three);
    }

    function execute(ILiquidator.Plan memory plan) internal returns (uint256 profit) {
        vm.prank(operator);
        return liquidator.execute(plan);
    }

    function refused(ILiquidator.Plan memory plan, bytes memory reason) internal {
        vm.expectRevert(reason);
        execute(plan);
    }

    /// @dev Reverts for the reason named, whatever its arguments.
    function refused(ILiquidator.Plan memory plan, bytes4 selector) internal {
        vm.expectPartialRevert(selector);
        execute(plan);
    }

    /* CHECKS */

    /// @dev What a plan makes use of, as bits: each kind of flash source, Morpho's liquidation, v2 legs, calls that may
    /// fail.
    function featuresOf(ILiquidator.Plan memory plan) internal view returns (uint256 bits) {
        ILiquidator.FlashKind kind = liquidator.flashKindOf(plan.flashSource);
        bits = kind == ILiquidator.FlashKind.MORPHO && plan.flashAmount == 0 ? 2 ** 4 : 2 ** uint256(kind);
        for (uint256 i; i < plan.swaps.length; ++i) {
            if (liquidator.venueKindOf(plan.swaps[i].router) == ILiquidator.VenueKind.UNISWAP_V2) bits |= 2 ** 5;
        }
        for (uint256 i; i < plan.calls.length; ++i) {
            if (plan.calls[i].gasLimit != 0) bits |= 2 ** 6;
        }
    }

    /// @dev No balance and no approval is left.
    function assertNothingLeft() internal view {
        address[3] memory tokens = [address(usdc), address(weth), address(usdt)];
        address[6] memory spenders = [
            address(pool),
            address(router),
            address(router2),
            address(exchange),
            address(morpho),
            address(flashPool)
        ];
        for (uint256 i; i < tokens.length; ++i) {
            assertEq(Token(tokens[i]).balanceOf(address(liquidator)), 0, "a balance is left");
            for (uint256 j; j < spenders.length; ++j) {
                assertEq(Token(tokens[i]).allowance(address(liquidator), spenders[j]), 0, "an approval is left");
            }
        }
    }

    /// @dev USD value of one account's tokens, scaled by 1e36.
    function valueOf(address account) internal view returns (uint256) {
        return (usdc.balanceOf(account) + usdt.balanceOf(account)) * 1e30
            + weth.balanceOf(account) * WETH_PRICE * 1e18;
    }
}
