// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {TestBase} from "../Vm.sol";
import {PerpPlayer} from "./PerpPlayer.sol";

/// @notice What the test runner's invariant mode calls, and with which functions.
struct FuzzSelector {
    address addr;
    bytes4[] selectors;
}

contract PerpInvariants is TestBase {
    PerpPlayer internal player;

    error Rare(uint256 what, uint256 times);

    function setUp() public {
        player = new PerpPlayer();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(player);
    }

    function targetSelectors() public view returns (FuzzSelector[] memory targets) {
        targets = new FuzzSelector[](1);
        targets[0].addr = address(player);
        // Trading, ruin and liquidation more often than the rest.
        bytes4[18] memory selectors = [
            PerpPlayer.doTrade.selector,
            PerpPlayer.doTrade.selector,
            PerpPlayer.doTrade.selector,
            PerpPlayer.doRuin.selector,
            PerpPlayer.doRuin.selector,
            PerpPlayer.doLiquidate.selector,
            PerpPlayer.doLiquidate.selector,
            PerpPlayer.doInherit.selector,
            PerpPlayer.doDeleverage.selector,
            PerpPlayer.doDeleverage.selector,
            PerpPlayer.doMove.selector,
            PerpPlayer.doWait.selector,
            PerpPlayer.doFlag.selector,
            PerpPlayer.doUnflag.selector,
            PerpPlayer.doDeposit.selector,
            PerpPlayer.doWithdraw.selector,
            PerpPlayer.doPause.selector,
            PerpPlayer.doSwitchAdl.selector
        ];
        targets[0].selectors = new bytes4[](selectors.length);
        for (uint256 i; i < selectors.length; ++i) {
            targets[0].selectors[i] = selectors[i];
        }
    }

    /// @notice Sum of equity + fund + fees never exceeds the tokens held; no position is born liquidatable; a
    /// liquidation never lowers the margin ratio unless it closes the account; losses fall on the fund, then on
    /// winners, then on everybody; pauses, flags and the withdrawal gate hold.
    /// forge-config: default.invariant.runs = 64
    /// forge-config: deep.invariant.runs = 10000
    function invariant_booksAndOrderHold() public view {
        player.check();
    }

    /// @notice Everything that the invariants are about does happen, in as many calls as a sequence has.
    function test_playerReachesEverything() public {
        vm.pauseGasMetering();
        uint256[12] memory times;
        uint256 random = 1;
        for (uint256 world; world < 40; ++world) {
            player = new PerpPlayer();
            for (uint256 i; i < 50; ++i) {
                random = uint256(keccak256(abi.encode(random)));
                play(random % 18, random >> 8, random >> 72, random >> 136, random >> 200);
            }
            player.check();
            uint256[12] memory one = player.times();
            for (uint256 i; i < 12; ++i) {
                times[i] += one[i];
            }
        }
        uint256[12] memory least = [uint256(100), 40, 20, 8, 12, 8, 10, 2, 6, 3, 20, 4];
        for (uint256 i; i < 12; ++i) {
            require(times[i] >= least[i], Rare(i, times[i]));
        }
    }

    function play(uint256 act, uint256 a, uint256 b, uint256 c, uint256 d) internal {
        a %= 2 ** 64;
        b %= 2 ** 64;
        c %= 2 ** 64;
        if (act < 3) player.doTrade(a, b, c * 1e4, d % 2 == 0);
        else if (act < 6) player.doRuin(a, b, c, d);
        else if (act < 8) player.doLiquidate(a, b);
        else if (act == 8) player.doInherit(a, b, c, d);
        else if (act < 11) player.doDeleverage(a, b, c, d);
        else if (act == 11) player.doMove(a, b);
        else if (act == 12) player.doWait(a);
        else if (act == 13) player.doFlag(a);
        else if (act == 14) player.doUnflag(a);
        else if (act == 15) player.doDeposit(a, b);
        else if (act == 16) player.doWithdraw(a, b);
        else if (a % 2 == 0) player.doPause(b);
        else player.doSwitchAdl(b);
    }
}
