// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {LiquidatorSetup} from "./LiquidatorSetup.sol";
import {LendingPool} from "./mocks/Protocols.sol";
import {Token} from "./mocks/Tokens.sol";

/// @notice A thief with the operator key. He sets the rates of every pool, owns markets that give and take what he
/// likes, sizes the flash loan, lists the tokens, and lets rewards of ours be paid out in the middle of a swap. Every
/// attack contains up to two real liquidations, and some are squeezed: the thief searches the worst rate that still
/// passes.
contract Thief is LiquidatorSetup {
    uint256 internal constant USDC_VALUE = 1e30;
    uint256 internal constant ONE = 1e6;
    /// @dev The leg that is squeezed uses this fee tier; leg i of a plan uses tier i + 1.
    uint24 internal constant SQUEEZED = 99;

    uint256 public successes;
    uint256 public used; // features of the attacks that passed, as bits
    /// @dev Sums over the successful attacks, in USD scaled by 1e36.
    uint256 public legitimateGain;
    uint256 public legitimateNet;
    uint256 public required;
    uint256 public received;
    uint256 public rewards;
    uint256 public worstLossPpm;

    // What the attack under construction would bring, in the thief's own books.
    uint256 internal planGain;
    uint256 internal planNet;
    uint256 internal planRequired;
    uint256 internal random;

    error Passed();

    constructor() {
        setUp();
    }

    function draw(uint256 sides) internal returns (uint256) {
        random = uint256(keccak256(abi.encode(random)));
        return random % sides;
    }

    /* ATTACKS */

    /// @notice One attack with everything drawn.
    function attack(uint256 seed) external {
        random = seed;
        (planGain, planNet, planRequired) = (0, 0, 0);
        pool.setPremiumBps(draw(4) == 0 ? draw(100) : 0);
        flashPool.setFeePpm(draw(4) == 0 ? draw(10_000) : 0);
        router.setHook(address(0), "");
        router2.setHook(address(0), "");
        ILiquidator.Plan memory plan = usualPlan();
        plan.minProfit = 0;
        plan.flashSource = [address(pool), address(pool), address(morpho), address(flashPool)][draw(4)];
        plan.tokens = draw(8) == 0
            ? list(address(usdc), address(usdt))
            : list(address(weth), address(usdc), address(usdt));
        addCalls(plan);
        addSwaps(plan);
        if (draw(3) == 0) addReward();
        if (plan.tokens.length == 3 && draw(8) == 0) squeeze(plan);
        commit(plan);
    }

    /// @notice An attack kept simple, so that it mostly succeeds: one real liquidation, perhaps one market of the
    /// thief's, one sale, either squeezed or near the bound. Or one at Morpho, where it is sold before it is paid.
    function sale(uint256 seed, uint256 ownGain, uint256 oversize) external {
        random = seed;
        (planGain, planNet, planRequired) = (0, 0, 0);
        pool.setPremiumBps(draw(10));
        router.setHook(address(0), "");
        ILiquidator.Plan memory plan = usualPlan();
        plan.minProfit = 0;
        if (draw(3) == 0) {
            plan = morphoPlan();
            plan.minProfit = 0;
            (uint256 repay, uint256 seize) = drawLiquidation();
            plan.calls[0] = seizingAtMorpho(address(usdc), repay, address(weth), seize);
        } else {
            plan.calls = new ILiquidator.Call[](2);
            uint256 own = draw(2);
            plan.calls[1 - own] = liquidation();
            plan.calls[own] = ownMarket(bound(ownGain, 0, 1e12), address(weth));
            plan.flashAmount = plan.calls[0].approveAmount + plan.calls[1].approveAmount;
            plan.flashAmount += bound(oversize, 0, plan.flashAmount);
        }
        plan.swaps[0] = leg(address(weth), address(usdc), SQUEEZED, ALL);
        if (draw(4) == 0) squeeze(plan);
        else setRate(address(weth), address(usdc), SQUEEZED, 9900 + draw(100));
        commit(plan);
    }

    /// @notice Tries all that must never work, in the middle of nowhere.
    function forbidden(uint256 which) external {
        bytes memory params = abi.encode(usualPlan());
        bytes[9] memory requests = [
            abi.encodeCall(liquidator.executeOperation, (address(usdc), 1, 0, address(liquidator), params)),
            abi.encodeCall(liquidator.onMorphoFlashLoan, (1, params)),
            abi.encodeCall(liquidator.onMorphoLiquidate, (1, params)),
            abi.encodeCall(liquidator.uniswapV3FlashCallback, (0, 0, params)),
            abi.encodeCall(ILiquidator.setOperator, (stranger, true)),
            abi.encodeCall(ILiquidator.setMaxSlippageBps, (1000)),
            abi.encodeCall(ILiquidator.setTarget, (address(usdc), Token.transfer.selector, LENDING)),
            abi.encodeCall(ILiquidator.setSettledJointly, (LENDING, true)),
            abi.encodeCall(ILiquidator.setFeed, (address(weth), address(usdcFeed), 1))
        ];
        vm.prank(operator);
        (bool success,) = address(liquidator).call(requests[which % 9]);
        assertFalse(success, "forbidden");
    }

    /// @notice Somebody gives tokens to the liquidator: they are the treasury's from then on.
    function donate(uint256 amount) external {
        amount = bound(amount, 1, 1e10);
        usdc.mint(address(liquidator), amount);
        rewards += amount * USDC_VALUE;
        settle();
    }

    /* CONSTRUCTION */

    function addCalls(ILiquidator.Plan memory plan) internal {
        uint256 real = 1 + draw(2);
        uint256 able = real + draw(3);
        plan.calls = new ILiquidator.Call[](draw(3) == 0 ? able + 1 : able);
        uint256 shift = draw(plan.calls.length);
        uint256 spent;
        for (uint256 i; i < plan.calls.length; ++i) {
            // The real ones stand before, after or around the thief's own.
            uint256 place = (i + shift) % plan.calls.length;
            if (i < real) plan.calls[place] = liquidation();
            else if (i < able) plan.calls[place] = ownMarket(draw(1e9), drawToken());
            else plan.calls[place] = failing();
            if (draw(4) == 0) plan.calls[place].gasLimit = 400_000;
            spent += plan.calls[place].approveAmount;
        }
        plan.flashAmount = spent;
        if (draw(3) == 0) plan.flashAmount += draw(1e10);
    }

    function liquidation() internal returns (ILiquidator.Call memory) {
        (uint256 repay, uint256 seize) = drawLiquidation();
        return seizing(address(usdc), repay, address(weth), seize);
    }

    /// @dev A call that fails and may, with a loan for it.
    function failing() internal returns (ILiquidator.Call memory) {
        return ILiquidator.Call(
            address(pool), address(usdc), draw(1e9), abi.encodeCall(LendingPool.refuse, (stranger)), 50_000
        );
    }

    /// @dev Up to $10,000 of debt for collateral worth up to 15 % more.
    function drawLiquidation() internal returns (uint256 repay, uint256 seize) {
        repay = ONE + draw(1e10);
        seize = repay * (10_000 + draw(1500)) * 1e8 / WETH_PRICE;
        uint256 gain = seize * WETH_PRICE * 1e18;
        planGain += gain;
        planNet += gain - repay * USDC_VALUE;
        book(gain, repay * USDC_VALUE);
    }

    /// @dev A market where the thief takes and gives what he likes: at a loss for us, at par, or at his own expense.
    function ownMarket(uint256 repay, address given) internal returns (ILiquidator.Call memory) {
        uint256[6] memory worthBps = [uint256(0), 5000, 9900, 10_000, 10_000, 10_050];
        uint256 worth = repay * worthBps[draw(6)] / 10_000;
        uint256 amount = given == address(weth) ? worth * 1e12 / WETH_PRICE : worth;
        uint256 value = given == address(weth) ? amount * WETH_PRICE * 1e18 : amount * USDC_VALUE;
        if (given == address(usdc)) {
            book(worth > repay ? (worth - repay) * USDC_VALUE : 0, 0);
        } else {
            book(value, repay * USDC_VALUE);
        }
        return seizing(address(usdc), repay, given, amount);
    }

    /// @dev What the treasury must receive for a call, from the documentation.
    function book(uint256 gain, uint256 paid) internal {
        uint256 excused = paid + gain * SLIPPAGE_BPS / 10_000;
        if (gain > excused) planRequired += gain - excused;
    }

    function addSwaps(ILiquidator.Plan memory plan) internal {
        uint256 wild = draw(4);
        plan.swaps = new ILiquidator.Swap[](wild + 2);
        for (uint24 i; i < wild; ++i) {
            address tokenIn = drawToken();
            address tokenOut = drawToken();
            if (tokenIn == tokenOut) tokenOut = tokenIn == address(usdc) ? address(weth) : address(usdc);
            plan.swaps[i] = leg(tokenIn, tokenOut, i + 1, draw(2) == 0 ? ALL : draw(1e9));
            plan.swaps[i].exactOut = draw(4) == 0;
            if (plan.swaps[i].exactOut) {
                plan.swaps[i].path = abi.encodePacked(tokenOut, i + 1, tokenIn);
                plan.swaps[i].limit = ALL;
            }
            setRate(tokenIn, tokenOut, i + 1, drawKeptBps());
            if (draw(3) == 0) {
                plan.swaps[i].router = address(router2);
                plan.swaps[i].path = abi.encodePacked(tokenIn, tokenOut);
                router2.setRate(tokenIn, 0, tokenOut, rateOf(tokenIn, tokenOut) * drawKeptBps() / 10_000);
            }
        }
        plan.swaps[wild] = leg(address(usdt), address(usdc), 98, ALL);
        setRate(address(usdt), address(usdc), 98, 10_000);
        plan.swaps[wild + 1] = leg(address(weth), address(usdc), SQUEEZED, ALL);
        setRate(address(weth), address(usdc), SQUEEZED, drawKeptBps());
        if (plan.tokens.length == 2) plan.swaps[wild + 1] = leg(address(usdt), address(usdc), 98, ALL);
    }

    function leg(address tokenIn, address tokenOut, uint24 fee, uint256 amount)
        internal
        view
        returns (ILiquidator.Swap memory)
    {
        return ILiquidator.Swap(address(router), abi.encodePacked(tokenIn, fee, tokenOut), false, amount, 0);
    }

    /// @dev A reward that belongs to us is paid during each swap of the plan, here or straight to the treasury.
    function addReward() internal {
        address receiver = draw(2) == 0 ? address(liquidator) : treasury;
        (draw(4) == 0 ? router2 : router)
        .setHook(address(this), abi.encodeCall(this.payReward, (receiver, draw(1e9))));
    }

    function drawToken() internal returns (address) {
        address[3] memory tokens = [address(usdc), address(weth), address(usdt)];
        return tokens[draw(3)];
    }

    /// @dev How much of a swap's fair value the thief leaves us, in basis points.
    function drawKeptBps() internal returns (uint256) {
        uint256[8] memory kept = [uint256(10_000), 10_000, 9999, 9950, 9901, 9899, 9000, 10_100];
        return kept[draw(8)];
    }

    function setRate(address tokenIn, address tokenOut, uint24 fee, uint256 keptBps) internal {
        router.setRate(tokenIn, fee, tokenOut, rateOf(tokenIn, tokenOut) * keptBps / 10_000);
    }

    function rateOf(address tokenIn, address tokenOut) internal view returns (uint256) {
        if (tokenIn == address(weth)) return WETH_PRICE * 1e6;
        return tokenOut == address(weth) ? 1e30 / WETH_PRICE : 1e18;
    }

    /* EXECUTION */

    /// @dev Finds the worst rate of the last sale that still passes.
    function squeeze(ILiquidator.Plan memory plan) internal {
        (uint256 least, uint256 most) = (WETH_PRICE * 1e6 * 96 / 100, WETH_PRICE * 1e6 * 102 / 100);
        for (uint256 i; i < 8; ++i) {
            uint256 rate = (least + most) / 2;
            router.setRate(address(weth), SQUEEZED, address(usdc), rate);
            if (passes(plan)) most = rate;
            else least = rate;
        }
        router.setRate(address(weth), SQUEEZED, address(usdc), most);
    }

    function passes(ILiquidator.Plan memory plan) internal returns (bool) {
        try this.probe(plan) {
            return false;
        } catch (bytes memory reason) {
            return bytes4(reason) == Passed.selector;
        }
    }

    /// @notice Tries a plan and takes it back.
    function probe(ILiquidator.Plan memory plan) external {
        execute(plan);
        revert Passed();
    }

    /// @notice Pays a reward that belongs to us; called by the router during a swap.
    function payReward(address receiver, uint256 amount) external {
        usdc.mint(receiver, amount);
        rewards += amount * USDC_VALUE;
    }

    function commit(ILiquidator.Plan memory plan) internal {
        (uint256 receivedBefore, uint256 rewardsBefore) = (received, rewards);
        vm.prank(operator);
        try liquidator.execute(plan) {
            ++successes;
            used |= featuresOf(plan);
            legitimateGain += planGain;
            legitimateNet += planNet;
            required += planRequired;
            settle();
            uint256 due = planNet + rewards - rewardsBefore;
            uint256 got = received - receivedBefore;
            if (due > got && (due - got) * 1e6 / planGain > worstLossPpm) worstLossPpm = (due - got) * 1e6 / planGain;
        } catch {
            settle();
        }
    }

    function settle() internal {
        liquidator.sweep(list(address(usdc), address(weth), address(usdt)));
        received = valueOf(treasury);
    }

    /// @notice What must hold after any number of attacks.
    function check() external view {
        uint256 allowed = legitimateGain * SLIPPAGE_BPS / 10_000;
        assertGe(received, required + rewards, "each gainful call's value, less the slippage, arrived");
        assertGe(received + allowed, legitimateNet + rewards, "stolen: more than the slippage on what was seized");
        assertNothingLeft();
    }
}

/// @notice What the test runner's invariant mode calls, and with which functions.
struct FuzzSelector {
    address addr;
    bytes4[] selectors;
}

contract LiquidatorInvariants {
    Thief internal thief;

    function setUp() public {
        thief = new Thief();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(thief);
    }

    function targetSelectors() public view returns (FuzzSelector[] memory targets) {
        targets = new FuzzSelector[](1);
        targets[0].addr = address(thief);
        targets[0].selectors = new bytes4[](4);
        targets[0].selectors[0] = Thief.attack.selector;
        targets[0].selectors[1] = Thief.sale.selector;
        targets[0].selectors[2] = Thief.forbidden.selector;
        targets[0].selectors[3] = Thief.donate.selector;
    }

    /// @notice Whoever holds the operator key, with pools, markets and flash loans of his own, loses the treasury at
    /// most the allowed slippage on what real liquidations seized, over any sequence of attacks.
    function invariant_theftIsBounded() public view {
        thief.check();
    }

    /// @notice The thief is worth fearing: many attacks of either kind pass, with every kind of source, leg and call, and
    /// the worst nears the bound of 1 %.
    function test_thiefReachesTheBound() public {
        for (uint256 i; i < 60; ++i) {
            thief.attack(i);
        }
        uint256 drawn = thief.successes();
        for (uint256 i; i < 40; ++i) {
            thief.sale(i, i * 1e9, i % 2 * 1e9);
        }
        thief.check();
        require(drawn >= 10, Unfearsome(drawn));
        require(thief.successes() - drawn >= 10, Unfearsome(thief.successes() - drawn));
        require(thief.worstLossPpm() > 9_900, Unfearsome(thief.worstLossPpm()));
        require(thief.used() == 2 ** 7 - 2, Unfearsome(thief.used()));
    }

    error Unfearsome(uint256 figure);
}
