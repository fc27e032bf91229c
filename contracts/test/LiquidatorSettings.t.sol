// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Liquidator} from "../src/Liquidator.sol";
import {ILiquidator} from "../src/interfaces/ILiquidator.sol";
import {LiquidatorSetup} from "./LiquidatorSetup.sol";
import {Feed} from "./mocks/Feed.sol";
import {Token} from "./mocks/Tokens.sol";

contract LiquidatorSettingsTest is LiquidatorSetup {
    /// @notice The constructor stores what it was given, and every setting starts empty.
    function test_construction() public {
        Liquidator fresh = new Liquidator(safe, treasury, address(guard));
        assertEq(fresh.SAFE(), safe, "safe");
        assertEq(fresh.TREASURY(), treasury, "treasury");
        assertEq(fresh.GUARD(), address(guard), "guard");
        assertEq(fresh.maxSlippageBps(), 0, "no slippage until the Safe allows some");
        assertFalse(fresh.isOperator(safe), "not even the Safe operates");
    }

    /// @notice Zero addresses and a guard without code are refused.
    function test_constructionRefused() public {
        vm.expectRevert(abi.encodeWithSelector(ILiquidator.InvalidAddress.selector, address(0)));
        new Liquidator(address(0), treasury, address(guard));
        vm.expectRevert(abi.encodeWithSelector(ILiquidator.InvalidAddress.selector, address(0)));
        new Liquidator(safe, address(0), address(guard));
        vm.expectRevert(abi.encodeWithSelector(ILiquidator.InvalidAddress.selector, stranger));
        new Liquidator(safe, treasury, stranger);
    }

    /// @notice Nobody but the Safe changes any setting; the operator least of all.
    function testFuzz_onlySafe(address caller) public {
        vm.assume(caller != safe);
        bytes[] memory requests = new bytes[](7);
        requests[0] = abi.encodeCall(ILiquidator.setOperator, (stranger, true));
        requests[1] = abi.encodeCall(ILiquidator.setTarget, (address(usdc), Token.transfer.selector, LENDING));
        requests[2] = abi.encodeCall(ILiquidator.setSettledJointly, (LENDING, true));
        requests[3] = abi.encodeCall(
            ILiquidator.setFlashSource, (address(router), ILiquidator.FlashKind.AAVE_V3)
        );
        requests[4] = abi.encodeCall(ILiquidator.setVenue, (address(pool), ILiquidator.VenueKind.UNISWAP_V3));
        requests[5] = abi.encodeCall(ILiquidator.setFeed, (address(weth), address(usdcFeed), 1));
        requests[6] = abi.encodeCall(ILiquidator.setMaxSlippageBps, (1000));
        address[2] memory callers = [caller, operator];
        for (uint256 i; i < requests.length; ++i) {
            for (uint256 j; j < callers.length; ++j) {
                vm.prank(callers[j]);
                (bool success, bytes memory reason) = address(liquidator).call(requests[i]);
                assertFalse(success, "refused");
                assertEq(
                    keccak256(reason),
                    keccak256(abi.encodeWithSelector(ILiquidator.NotSafe.selector, callers[j])),
                    "reason"
                );
            }
        }
    }

    /// @notice Every setter stores, logs and takes back.
    function test_settersStoreAndLog() public {
        vm.expectEmit(address(liquidator));
        emit ILiquidator.OperatorSet(stranger, true);
        asSafe(abi.encodeCall(ILiquidator.setOperator, (stranger, true)));
        assertTrue(liquidator.isOperator(stranger), "operator");

        vm.expectEmit(address(liquidator));
        emit ILiquidator.TargetSet(address(exchange), "abcd", "other");
        allow(address(exchange), "abcd", "other");
        assertEq(liquidator.protocolOf(address(exchange), "abcd"), "other", "protocol");
        allow(address(exchange), "abcd", 0);
        assertEq(liquidator.protocolOf(address(exchange), "abcd"), 0, "removed");

        vm.expectEmit(address(liquidator));
        emit ILiquidator.SettledJointlySet(MARGIN, true);
        asSafe(abi.encodeCall(ILiquidator.setSettledJointly, (MARGIN, true)));
        assertTrue(liquidator.settledJointly(MARGIN), "jointly");

        vm.expectEmit(address(liquidator));
        emit ILiquidator.FlashSourceSet(address(pool), ILiquidator.FlashKind.NONE);
        asSafe(abi.encodeCall(ILiquidator.setFlashSource, (address(pool), ILiquidator.FlashKind.NONE)));
        assertTrue(liquidator.flashKindOf(address(pool)) == ILiquidator.FlashKind.NONE, "flash source removed");

        vm.expectEmit(address(liquidator));
        emit ILiquidator.VenueSet(address(router), ILiquidator.VenueKind.NONE);
        asSafe(abi.encodeCall(ILiquidator.setVenue, (address(router), ILiquidator.VenueKind.NONE)));
        assertTrue(liquidator.venueKindOf(address(router)) == ILiquidator.VenueKind.NONE, "venue removed");

        vm.expectEmit(address(liquidator));
        emit ILiquidator.MaxSlippageSet(1000);
        asSafe(abi.encodeCall(ILiquidator.setMaxSlippageBps, (1000)));
        assertEq(liquidator.maxSlippageBps(), 1000, "slippage");
    }

    /// @notice A feed is stored with both decimals, and removed by the zero address.
    function test_feeds() public {
        Token token = new Token(8);
        Feed feed = new Feed(18, 1e18);
        vm.expectEmit(address(liquidator));
        emit ILiquidator.FeedSet(address(token), address(feed), 60);
        asSafe(abi.encodeCall(ILiquidator.setFeed, (address(token), address(feed), 60)));
        ILiquidator.Feed memory stored = liquidator.feedOf(address(token));
        assertEq(stored.feed, address(feed), "feed");
        assertEq(stored.maxAgeS, 60, "age");
        assertEq(stored.tokenDecimals, 8, "token decimals");
        assertEq(stored.feedDecimals, 18, "feed decimals");
        asSafe(abi.encodeCall(ILiquidator.setFeed, (address(token), address(0), 0)));
        assertEq(liquidator.feedOf(address(token)).feed, address(0), "removed");
    }

    /// @notice Settings that could not work or would be unsafe are refused.
    function test_unsafeSettingsRefused() public {
        Token token = new Token(24);
        Feed feed = new Feed(13, 1);
        setRefused(
            abi.encodeCall(ILiquidator.setFeed, (address(token), address(feed), 60)),
            abi.encodeWithSelector(ILiquidator.DecimalsTooHigh.selector, uint8(24), uint8(13))
        );
        setRefused(
            abi.encodeCall(ILiquidator.setFeed, (address(weth), address(wethFeed), 0)),
            abi.encodeWithSelector(ILiquidator.MaxAgeZero.selector, address(weth))
        );
        setRefused(
            abi.encodeCall(ILiquidator.setMaxSlippageBps, (1001)),
            abi.encodeWithSelector(ILiquidator.SlippageTooHigh.selector, uint16(1001), uint16(1000))
        );
        bytes memory nobody = abi.encodeWithSelector(ILiquidator.InvalidAddress.selector, stranger);
        setRefused(abi.encodeCall(ILiquidator.setTarget, (stranger, "abcd", LENDING)), nobody);
        setRefused(
            abi.encodeCall(ILiquidator.setFlashSource, (stranger, ILiquidator.FlashKind.AAVE_V3)), nobody
        );
        setRefused(abi.encodeCall(ILiquidator.setVenue, (stranger, ILiquidator.VenueKind.UNISWAP_V3)), nobody);
        setRefused(
            abi.encodeCall(ILiquidator.setOperator, (address(0), true)),
            abi.encodeWithSelector(ILiquidator.InvalidAddress.selector, address(0))
        );
    }

    function setRefused(bytes memory request, bytes memory reason) internal {
        vm.prank(safe);
        (bool success, bytes memory actual) = address(liquidator).call(request);
        assertFalse(success, "refused");
        assertEq(keccak256(actual), keccak256(reason), "reason");
    }
}
