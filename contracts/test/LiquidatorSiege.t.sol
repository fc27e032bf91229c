// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IUniswapV3Router} from "../src/interfaces/IUniswapV3Router.sol";
import {IAaveV3FlashReceiver} from "../src/interfaces/IAaveV3Flash.sol";
import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {IMorpho, IMorphoCallbacks} from "../src/interfaces/IMorpho.sol";
import {IUniswapV3FlashReceiver} from "../src/interfaces/IUniswapV3Flash.sol";
import {FuzzSelector} from "./LiquidatorInvariants.t.sol";
import {SiegeSetup} from "./SiegeSetup.sol";
import {Exchange, Lender} from "./mocks/Markets.sol";
import {LendingPool} from "./mocks/Protocols.sol";

/// @notice A thief with the operator key. He trades before and after his plans, routes them through pools and a token
/// of his that strikes in the middle of a swap, replays old plans, and tries what the Safe never listed. What he
/// gains, wherever in the exchange he keeps it, is weighed after each act.
contract Besieger is SiegeSetup {
    struct Tally {
        uint256 loot; // USD scaled by 1e36: all that is neither the lender's nor the treasury's
        uint256 own; // his honest gain from liquidations with his own money
        uint256 seized; // by the Liquidator
        uint256 usdcOfTreasury;
        uint256 wethOfTreasury;
    }

    uint256 internal constant STRIKES = 12;
    uint256 internal constant FORBIDDEN = 7; // the first ones, always
    uint256 internal constant LOCKED = 9; // the first ones, in the middle of a plan

    bytes[] internal plans; // executed ones, encoded
    bool internal paused;
    uint256 internal random;

    uint256 public breaches; // forbidden acts that worked, as bits
    uint256 public struck; // strikes made in plans that passed, as bits
    uint256 public successes;
    uint256 public used; // features of the plans that passed, as bits
    uint256 public worstLossPpm;

    error Passed();

    function draw(uint256 sides) internal returns (uint256) {
        random = uint256(keccak256(abi.encode(random)));
        return random % sides;
    }

    /* ACTS */

    /// @notice A sandwich: trade, execute a plan that is drawn or squeezed, trade back.
    function attack(uint256 seed) external weighed {
        random = seed;
        sicken(2e10);
        uint256 moved = draw(2) == 0 ? 0 : draw(200e18);
        uint256 got = moved == 0 ? 0 : trade(address(weth), address(usdc), moved);
        ILiquidator.Plan memory plan = drawPlan();
        armed = draw(3) == 0 ? draw(2 ** STRIKES) : 0;
        if (draw(3) == 0) squeeze(plan);
        else price(9900 + draw(110));
        commit(plan);
        if (got != 0) trade(address(usdc), address(weth), got);
    }

    /// @notice The same plan again, in another world: after a pause, an unpause, another price.
    function replay(uint256 which, uint256 keptBps) external weighed {
        if (plans.length == 0) return;
        price(bound(keptBps, 9000, 11_000));
        commit(abi.decode(plans[which % plans.length], (ILiquidator.Plan)));
    }

    /// @notice A plan through the thief's own protocol, router or flash source, with his own token in it or with a
    /// selector the Safe did not list is refused.
    function useOwn(uint256 which, uint256 seed) external weighed {
        random = seed;
        sicken(2e10);
        ILiquidator.Plan memory plan = drawPlan();
        price(10_100);
        which %= 6;
        if (which == 0) {
            plan.calls[0].target = address(pool);
            plan.calls[0].data = abi.encodeCall(LendingPool.liquidate, (address(weth), address(usdc), 0, 0));
        }
        if (which == 1) plan.swaps[0].router = address(router);
        if (which == 2) plan.flashSource = draw(2) == 0 ? address(pool) : address(liar);
        if (which == 3) plan.tokens = list(address(usdc), address(weth), address(evil));
        if (which == 4) plan.calls[0].data = abi.encodeCall(Lender.sicken, (1));
        if (which == 5) (plan.calls[0].target, plan.flashSource, plan.flashAmount) = (address(liar), address(liar), 0);
        (bool success,) = address(liquidator).call(abi.encodeCall(ILiquidator.execute, (plan)));
        assertFalse(success, "something of the thief's own was used");
    }

    /// @notice The strikes of the evil token, made at rest.
    function strikeAtRest(uint256 which, uint256 seed) external weighed {
        random = seed;
        sicken(1e9);
        // Executing plans at rest is for the other acts.
        if (which % STRIKES != LOCKED - 1) strikeWith(which % STRIKES, FORBIDDEN);
    }

    function donate(uint256 amount) external weighed {
        assertTrue(usdc.transfer(address(liquidator), bound(amount, 1, 1e10)), "given");
    }

    function pauseOrResume(bool everything) external {
        bytes32 scope = everything ? GLOBAL : LENDING;
        if (guard.scopeState(scope).paused) {
            vm.prank(safe);
            guard.scheduleUnpause(scope);
            vm.warp(block.timestamp + DELAY);
            guard.executeUnpause(scope);
            usdcFeed.set(1e8, block.timestamp);
            wethFeed.set(int256(WETH_PRICE * 1e8), block.timestamp);
        } else {
            vm.prank(guardian);
            guard.pause(scope, "TEST", 0);
        }
        paused = guard.scopeState(GLOBAL).paused || guard.scopeState(LENDING).paused;
    }

    function sicken(uint256 amount) internal {
        lender.sicken(amount);
        blue.sicken(amount);
    }

    /* PLANS */

    function drawPlan() internal returns (ILiquidator.Plan memory plan) {
        plan.flashSource = [address(lender), address(bank), address(blue), address(flashPool)][draw(4)];
        plan.flashToken = address(usdc);
        plan.calls = new ILiquidator.Call[](1 + draw(3));
        for (uint256 i; i < plan.calls.length; ++i) {
            uint256 repay = 1e6 + draw(5e9);
            uint256 approved = repay + draw(2) * draw(1e6);
            plan.calls[i] = ILiquidator.Call(
                address(lender), address(usdc), approved, abi.encodeCall(Lender.liquidate, (repay)), 0
            );
            if (draw(3) == 0) plan.calls[i] = atBlue(repay, approved);
            if (draw(4) == 0) plan.calls[i].gasLimit = 300_000;
            // More than there is to liquidate.
            else if (i != 0 && draw(4) == 0) plan.calls[i] = failing();
            plan.flashAmount += repay;
        }
        if (draw(4) == 0) plan.flashAmount += draw(plan.flashAmount);
        if (draw(4) == 0) {
            plan.calls = new ILiquidator.Call[](1);
            plan.calls[0] = atBlue(1e6 + draw(5e9), 0);
            (plan.flashSource, plan.flashAmount) = (address(blue), 0);
        }
        plan.tokens = list(address(usdc), address(weth));
        plan.profitToken = address(usdc);
        plan.globalEpoch = guard.scopeState(GLOBAL).epoch;
        plan.protocolEpoch = guard.scopeState(LENDING).epoch;
        plan.lastBlock = type(uint64).max;
        drawSwaps(plan);
    }

    /// @dev Half of them let the evil token strike in the middle of the call.
    function atBlue(uint256 repay, uint256 approved) internal returns (ILiquidator.Call memory) {
        IMorpho.MarketParams memory market;
        if (draw(2) == 0) market.collateralToken = address(evil);
        bytes memory data = abi.encodeCall(IMorpho.liquidate, (market, address(this), 0, repay, ""));
        return ILiquidator.Call(address(blue), address(usdc), approved, data, 0);
    }

    function failing() internal returns (ILiquidator.Call memory call) {
        call = atBlue(ALL, ALL);
        call.gasLimit = 100_000;
    }

    /// @dev A plan that borrows and calls, and to which nothing but the lock or the callback's check can object.
    function harmless(uint256 flashAmount) internal returns (ILiquidator.Plan memory plan) {
        plan = drawPlan();
        plan.flashAmount = flashAmount;
        plan.flashSource = flashAmount == 0 ? address(0) : address(lender);
        (plan.swaps, plan.calls) = (new ILiquidator.Swap[](0), new ILiquidator.Call[](1));
        plan.calls[0] = ILiquidator.Call(address(lender), address(0), 0, abi.encodeCall(Lender.reward, ()), 0);
    }

    function drawSwaps(ILiquidator.Plan memory plan) internal {
        bytes memory honest = abi.encodePacked(address(weth), HONEST, address(usdc));
        bytes memory own = abi.encodePacked(address(weth), OWN, address(evil), OWN, address(usdc));
        uint256 kind = draw(5);
        plan.swaps = new ILiquidator.Swap[](kind == 3 ? 2 : 1);
        plan.swaps[0] = ILiquidator.Swap(address(exchange_), kind == 0 ? honest : own, false, ALL, 0);
        if (kind == 3) {
            plan.swaps[0].amount = draw(1e18);
            plan.swaps[1] = ILiquidator.Swap(address(exchange_), honest, false, ALL, 0);
        }
        if (kind != 4 && draw(3) == 0) {
            plan.swaps[0].router = address(exchange2);
            plan.swaps[0].path = kind == 0
                ? abi.encodePacked(address(weth), address(usdc))
                : abi.encodePacked(address(weth), address(evil), address(usdc));
        }
        if (kind == 4) {
            own = abi.encodePacked(address(usdc), OWN, address(evil), OWN, address(weth));
            plan.swaps[0] = ILiquidator.Swap(address(exchange_), own, true, draw(2) == 0 ? ALL : plan.flashAmount, ALL);
            if (draw(3) == 0) {
                plan.swaps[0].router = address(exchange2);
                plan.swaps[0].path = abi.encodePacked(address(weth), address(evil), address(usdc));
            }
        }
    }

    /// @dev Finds the worst price of his own pools that still passes.
    function squeeze(ILiquidator.Plan memory plan) internal {
        (uint256 least, uint256 most) = (9000, 11_000);
        for (uint256 i; i < 9; ++i) {
            uint256 middle = (least + most) / 2;
            price(middle);
            try this.probe(plan) {}
            catch (bytes memory reason) {
                if (bytes4(reason) == Passed.selector) most = middle;
                else least = middle;
            }
        }
        price(most);
    }

    /// @notice Tries a plan and takes it back.
    function probe(ILiquidator.Plan memory plan) external {
        liquidator.execute(plan);
        revert Passed();
    }

    function commit(ILiquidator.Plan memory plan) internal {
        uint256 arms = armed;
        try liquidator.execute(plan) {
            assertFalse(paused, "a plan passed while paused");
            assertEq(plan.globalEpoch, guard.scopeState(GLOBAL).epoch, "a plan outlived a global pause");
            assertEq(plan.protocolEpoch, guard.scopeState(LENDING).epoch, "a plan outlived a pause");
            assertEq(usdc.balanceOf(address(liquidator)), 0, "USDC is left");
            assertEq(weth.balanceOf(address(liquidator)), 0, "WETH is left");
            ++successes;
            used |= featuresOf(plan);
            struck |= arms & ~armed;
            plans.push(abi.encode(plan));
        } catch {}
        armed = 0;
    }

    /* STRIKES */

    /// @notice The evil token was moved: all armed strikes, once.
    function strike() external {
        uint256 arms = armed;
        armed = 0;
        for (uint256 i; i < STRIKES; ++i) {
            if (arms >> i & 1 == 1) strikeWith(i, LOCKED);
        }
    }

    /// @dev The first ones must not work; the others are anybody's right.
    function strikeWith(uint256 which, uint256 forbidden) internal {
        (address target, bytes memory request) = strikeOf(which);
        (bool success,) = target.call(request);
        if (success && which < forbidden) breaches |= 2 ** which;
    }

    function strikeOf(uint256 which) internal returns (address, bytes memory) {
        address victim = address(liquidator);
        if (which == 0) {
            bytes memory params = abi.encode(harmless(0));
            bytes[4] memory callbacks = [
                abi.encodeCall(IAaveV3FlashReceiver.executeOperation, (address(usdc), 0, 0, victim, params)),
                abi.encodeCall(IMorphoCallbacks.onMorphoFlashLoan, (0, params)),
                abi.encodeCall(IMorphoCallbacks.onMorphoLiquidate, (0, params)),
                abi.encodeCall(IUniswapV3FlashReceiver.uniswapV3FlashCallback, (0, 0, params))
            ];
            return (victim, callbacks[draw(4)]);
        }
        // A loan of the listed source in the Liquidator's name, and one of the thief's own source; free of premium.
        if (which < 3) {
            bytes memory params = abi.encode(harmless(1000));
            return (
                which == 1 ? address(lender) : address(liar),
                abi.encodeCall(Lender.flashLoanSimple, (victim, address(usdc), 1000, params, 0))
            );
        }
        address from = draw(2) == 0 ? victim : treasury;
        if (which == 3) return (address(usdc), abi.encodeCall(usdc.transferFrom, (from, address(this), 1)));
        if (which == 4) return (address(weth), abi.encodeCall(weth.transferFrom, (from, address(this), 1)));
        if (which == 5) return (victim, abi.encodeCall(ILiquidator.setOperator, (address(evil), true)));
        if (which == 6) {
            ILiquidator.VenueKind kind = ILiquidator.VenueKind.UNISWAP_V3;
            return (victim, abi.encodeCall(ILiquidator.setVenue, (address(router), kind)));
        }
        // In the middle of a plan the Liquidator is locked.
        if (which == 7) return (victim, abi.encodeCall(ILiquidator.sweep, (list(address(usdc), address(weth)))));
        if (which == 8) return (victim, abi.encodeCall(ILiquidator.execute, (harmless(0))));
        if (which == 9) return (address(usdc), abi.encodeCall(usdc.transfer, (from, 1 + draw(1e9))));
        if (which == 10) return (address(lender), abi.encodeCall(Lender.liquidate, (1 + draw(1e9))));
        return (
            address(exchange_),
            abi.encodeCall(
                Exchange.exactInput,
                (
                    IUniswapV3Router.ExactInputParams(
                        abi.encodePacked(address(weth), HONEST, address(usdc)),
                        address(this),
                        block.timestamp,
                        1 + draw(100e18),
                        0
                    )
                )
            )
        );
    }

    /* WEIGHING */

    modifier weighed() {
        Tally memory before = tally();
        _;
        weigh(before, tally());
    }

    function tally() internal view returns (Tally memory) {
        uint256 own = lender.seizedBy(address(this)) * WETH_PRICE * 1e18;
        uint256 seized = lender.seizedBy(address(liquidator)) + blue.seizedBy(address(liquidator));
        uint256 loot = valueOf(address(this)) + valueOf(address(liar)) + valueOf(address(flashPool));
        return Tally({
            loot: loot + valueOf(address(exchange_)) + valueOf(address(exchange2)),
            own: own - lender.repaidBy(address(this)) * USDC_VALUE,
            seized: seized * WETH_PRICE * 1e18,
            usdcOfTreasury: usdc.balanceOf(treasury),
            wethOfTreasury: weth.balanceOf(treasury)
        });
    }

    /// @dev Per act: he gains at most the slippage on what the Liquidator seized, and takes nothing from the treasury.
    function weigh(Tally memory before, Tally memory later) internal {
        uint256 seized = later.seized - before.seized;
        uint256 fair = before.loot + later.own - before.own;
        uint256 most = fair + seized * SLIPPAGE_BPS / 10_000;
        assertLe(later.loot, most, "stolen: more than the slippage on what was seized");
        assertGe(later.usdcOfTreasury, before.usdcOfTreasury, "USDC left the treasury");
        assertGe(later.wethOfTreasury, before.wethOfTreasury, "WETH left the treasury");
        if (seized != 0 && later.loot > fair) {
            uint256 lossPpm = (later.loot - fair) * 1e6 / seized;
            if (lossPpm > worstLossPpm) worstLossPpm = lossPpm;
        }
    }

    /// @notice What must hold after any acts: the lender has what liquidations left it, nobody may spend the
    /// Liquidator's tokens, and nothing forbidden ever worked.
    function check() external view {
        uint256 seized = lender.seizedBy(address(this)) + lender.seizedBy(address(liquidator));
        assertEq(usdc.balanceOf(address(lender)), LENT_USDC + lender.repaid() + lender.premiums(), "lender's USDC");
        assertEq(weth.balanceOf(address(lender)), LENT_WETH - seized, "lender's WETH");
        assertEq(usdc.balanceOf(address(bank)), LENT_USDC + bank.premiums(), "bank's USDC");
        assertEq(usdc.balanceOf(address(blue)), LENT_USDC + blue.repaid(), "Morpho's USDC");
        assertEq(weth.balanceOf(address(blue)), LENT_WETH - blue.seizedBy(address(liquidator)), "Morpho's WETH");
        assertEq(breaches, 0, "something forbidden worked");
        address[11] memory spenders = [
            address(this),
            address(lender),
            address(bank),
            address(blue),
            address(flashPool),
            address(exchange_),
            address(exchange2),
            address(pool),
            address(router),
            address(evil),
            address(liar)
        ];
        for (uint256 i; i < spenders.length; ++i) {
            assertEq(usdc.allowance(address(liquidator), spenders[i]), 0, "a USDC approval is left");
            assertEq(weth.allowance(address(liquidator), spenders[i]), 0, "a WETH approval is left");
        }
    }
}

contract LiquidatorSiegeInvariants {
    Besieger internal thief;

    error Unfearsome(uint256 figure);

    function setUp() public {
        thief = new Besieger();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(thief);
    }

    function targetSelectors() public view returns (FuzzSelector[] memory targets) {
        targets = new FuzzSelector[](1);
        targets[0].addr = address(thief);
        targets[0].selectors = new bytes4[](6);
        targets[0].selectors[0] = Besieger.attack.selector;
        targets[0].selectors[1] = Besieger.replay.selector;
        targets[0].selectors[2] = Besieger.useOwn.selector;
        targets[0].selectors[3] = Besieger.strikeAtRest.selector;
        targets[0].selectors[4] = Besieger.donate.selector;
        targets[0].selectors[5] = Besieger.pauseOrResume.selector;
    }

    /// @notice The lender and the treasury change by legal liquidations alone, and no act gains the thief more than the
    /// slippage on what it seized.
    function invariant_siegeHolds() public view {
        thief.check();
    }

    /// @notice The thief is worth fearing: many attacks pass, with every kind of source, leg and call, each strike is made
    /// inside one, and the worst nears 1 % less the loan's premium, which comes out of the slippage and goes to the
    /// lender.
    function test_siegeReachesTheBound() public {
        for (uint256 i; i < 150; ++i) {
            thief.attack(i);
            thief.replay(i, 9990);
        }
        thief.check();
        require(thief.successes() >= 50, Unfearsome(thief.successes()));
        require(thief.struck() == 2 ** 12 - 1, Unfearsome(thief.struck()));
        require(thief.worstLossPpm() > 9_450, Unfearsome(thief.worstLossPpm()));
        require(thief.used() == 2 ** 7 - 2, Unfearsome(thief.used()));
    }
}
