// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {IPauseGuard} from "../src/interfaces/IPauseGuard.sol";
import {LiquidatorSetup} from "./LiquidatorSetup.sol";
import {LendingPool, MarginExchange} from "./mocks/Protocols.sol";
import {Token} from "./mocks/Tokens.sol";

/// @notice What keeps a plan from starting.
contract LiquidatorRefuseTest is LiquidatorSetup {
    function pause(bytes32 scope) internal {
        vm.prank(guardian);
        guard.pause(scope, "TEST", 0);
    }

    function unpause(bytes32 scope) internal {
        vm.prank(safe);
        guard.scheduleUnpause(scope);
        vm.warp(block.timestamp + DELAY);
        guard.executeUnpause(scope);
    }

    /// @notice Only an operator executes; not the Safe, not a removed operator.
    function testFuzz_onlyOperator(address caller) public {
        vm.assume(caller != operator);
        ILiquidator.Plan memory plan = usualPlan();
        vm.expectRevert(abi.encodeWithSelector(ILiquidator.NotOperator.selector, caller));
        vm.prank(caller);
        liquidator.execute(plan);
        asSafe(abi.encodeCall(ILiquidator.setOperator, (operator, false)));
        refused(plan, abi.encodeWithSelector(ILiquidator.NotOperator.selector, operator));
    }

    /// @notice A plan executes up to its last block and not in the next.
    function testFuzz_lastBlock(uint64 lastBlock, uint64 late) public {
        vm.assume(lastBlock < type(uint64).max);
        ILiquidator.Plan memory plan = usualPlan();
        plan.lastBlock = lastBlock;
        uint256 number = bound(late, uint256(lastBlock) + 1, type(uint64).max);
        vm.roll(number);
        refused(plan, abi.encodeWithSelector(ILiquidator.PlanExpired.selector, lastBlock, number));
        vm.roll(lastBlock);
        assertEq(execute(plan), PROFIT, "profit");
    }

    /// @notice A paused global scope or protocol stops the plan; another protocol's pause does not.
    function test_pausedScopes() public {
        ILiquidator.Plan memory plan = usualPlan();
        pause(MARGIN);
        uint256 id = vm.snapshotState();
        pause(LENDING);
        refused(plan, abi.encodeWithSelector(IPauseGuard.ScopePaused.selector, LENDING));
        vm.revertToState(id);
        pause(GLOBAL);
        refused(plan, abi.encodeWithSelector(IPauseGuard.ScopePaused.selector, GLOBAL));
        vm.revertToState(id);
        assertEq(execute(plan), PROFIT, "another protocol is paused");
    }

    /// @notice A plan built before a pause is dead after the unpause, for either scope; one built after it works.
    function testFuzz_oldEpochs(bool globally, uint256 pauses) public {
        bytes32 scope = globally ? GLOBAL : LENDING;
        ILiquidator.Plan memory plan = usualPlan();
        plan.lastBlock = type(uint64).max;
        pauses = bound(pauses, 1, 3);
        uint64 epoch;
        for (uint256 i; i < pauses; ++i) {
            pause(scope);
            unpause(scope);
            wethFeed.set(wethFeed.answer(), block.timestamp);
            usdcFeed.set(usdcFeed.answer(), block.timestamp);
            refused(plan, abi.encodeWithSelector(IPauseGuard.EpochMismatch.selector, scope, epoch + 1, epoch));
            ++epoch;
            if (globally) plan.globalEpoch = epoch;
            else plan.protocolEpoch = epoch;
        }
        assertEq(execute(plan), PROFIT, "the current epoch");
    }

    /// @notice The Safe decides what is called: other selectors and other targets are refused, in any position.
    function testFuzz_targets(address target, bytes4 selector, bool second) public {
        vm.assume(liquidator.protocolOf(target, selector) == 0);
        ILiquidator.Plan memory plan = usualPlan();
        ILiquidator.Call memory wrong = ILiquidator.Call(target, address(0), 0, abi.encodePacked(selector), 0);
        if (second) {
            ILiquidator.Call memory right = plan.calls[0];
            plan.calls = new ILiquidator.Call[](2);
            (plan.calls[0], plan.calls[1]) = (right, wrong);
        } else {
            plan.calls[0] = wrong;
        }
        refused(plan, abi.encodeWithSelector(ILiquidator.TargetNotAllowed.selector, target, selector));
    }

    /// @notice A token's own functions are no protocol call, so an operator cannot move or approve tokens directly.
    function test_tokensAreNoTargets() public {
        ILiquidator.Plan memory plan = usualPlan();
        plan.calls[0] =
            ILiquidator.Call(address(usdc), address(0), 0, abi.encodeCall(Token.approve, (stranger, ALL)), 0);
        refused(
            plan,
            abi.encodeWithSelector(ILiquidator.TargetNotAllowed.selector, address(usdc), Token.approve.selector)
        );
    }

    /// @notice A removed target is refused again.
    function test_removedTarget() public {
        bytes4 selector = LendingPool.liquidate.selector;
        allow(address(pool), selector, 0);
        refused(
            usualPlan(), abi.encodeWithSelector(ILiquidator.TargetNotAllowed.selector, address(pool), selector)
        );
    }

    /// @notice All calls belong to one protocol, or one pause could be dodged behind another protocol's call.
    function test_mixedProtocols() public {
        ILiquidator.Plan memory plan = usualPlan();
        ILiquidator.Call memory first = plan.calls[0];
        plan.calls = new ILiquidator.Call[](2);
        plan.calls[0] = first;
        plan.calls[1] =
            ILiquidator.Call(address(exchange), address(0), 0, abi.encodeCall(MarginExchange.takeOver, (0)), 0);
        refused(plan, abi.encodeWithSelector(ILiquidator.MixedProtocols.selector, LENDING, MARGIN));
    }

    /// @notice A plan without a protocol call has no protocol to be paused, so it is refused.
    function test_noCalls() public {
        ILiquidator.Plan memory plan = usualPlan();
        delete plan.calls;
        refused(plan, abi.encodeWithSelector(ILiquidator.NoCalls.selector));
    }

    /// @notice Every token has a feed, stands once, and the plan's tokens contain all that is used.
    function test_tokens() public {
        ILiquidator.Plan memory plan = usualPlan();
        Token unknown = new Token(18);
        plan.tokens = list(address(usdc), address(weth), address(unknown));
        refused(plan, abi.encodeWithSelector(ILiquidator.FeedMissing.selector, address(unknown)));
        plan.tokens = list(address(usdc), address(weth), address(0));
        refused(plan, abi.encodeWithSelector(ILiquidator.FeedMissing.selector, address(0)));
        plan.tokens = list(address(usdc), address(weth), address(usdc));
        refused(plan, abi.encodeWithSelector(ILiquidator.TokenListedTwice.selector, address(usdc)));

        plan.tokens = list(address(weth), address(usdc));
        plan.profitToken = address(usdt);
        refused(plan, abi.encodeWithSelector(ILiquidator.TokenNotListed.selector, address(usdt)));
        plan.profitToken = address(weth);
        plan.flashToken = address(usdt);
        refused(plan, abi.encodeWithSelector(ILiquidator.TokenNotListed.selector, address(usdt)));

        plan = usualPlan();
        plan.calls[0].approveToken = address(usdt);
        refused(plan, abi.encodeWithSelector(ILiquidator.TokenNotListed.selector, address(usdt)));
        plan = usualPlan();
        plan.swaps[0] = selling(address(usdt), address(usdc), 1);
        refused(plan, abi.encodeWithSelector(ILiquidator.TokenNotListed.selector, address(usdt)));
        plan.swaps[0] = selling(address(weth), address(usdt), ALL);
        refused(plan, abi.encodeWithSelector(ILiquidator.TokenNotListed.selector, address(usdt)));
    }

    /// @notice A feed's answer must be positive, at most so old, and not from the future, for every token of the plan.
    function testFuzz_feeds(int256 answer, uint256 age, bool quoted) public {
        ILiquidator.Plan memory plan = usualPlan();
        (address token, address feed) =
            quoted ? (address(weth), address(wethFeed)) : (address(usdc), address(usdcFeed));
        int256 fair = wethFeed.answer();
        if (!quoted) fair = usdcFeed.answer();
        answer = answer > 0 ? -answer : answer;
        setFeed(feed, answer, START);
        refused(plan, abi.encodeWithSelector(ILiquidator.StaleFeed.selector, token, START));
        setFeed(feed, 0, START);
        refused(plan, abi.encodeWithSelector(ILiquidator.StaleFeed.selector, token, START));

        uint256 updatedAt = START - bound(age, MAX_AGE_S + 1, START);
        setFeed(feed, fair, updatedAt);
        refused(plan, abi.encodeWithSelector(ILiquidator.StaleFeed.selector, token, updatedAt));
        setFeed(feed, fair, START + 1);
        refused(plan, abi.encodeWithSelector(ILiquidator.StaleFeed.selector, token, START + 1));
        setFeed(feed, fair, START - bound(age, 0, MAX_AGE_S));
        assertEq(execute(plan), PROFIT, "fresh enough");
    }

    function setFeed(address feed, int256 answer, uint256 updatedAt) internal {
        (bool success,) = feed.call(abi.encodeWithSignature("set(int256,uint256)", answer, updatedAt));
        assertTrue(success, "feed set");
    }
}
