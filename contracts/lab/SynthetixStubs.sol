// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title What perps markets and sUSD ask of Synthetix' Exchanger, with nothing ever to settle
/// @notice A stub, for tests: nobody exchanges synths here, so nothing is owed, nobody waits and no fee is dynamic.
contract SynthetixExchangerStub {
    function settle(address, bytes32)
        external
        pure
        returns (uint256 reclaimed, uint256 refunded, uint256 entries)
    {
        return (0, 0, 0);
    }

    function settlementOwing(address, bytes32)
        external
        pure
        returns (uint256 reclaimAmount, uint256 rebateAmount, uint256 entries)
    {
        return (0, 0, 0);
    }

    function maxSecsLeftInWaitingPeriod(address, bytes32) external pure returns (uint256) {
        return 0;
    }

    function dynamicFeeRateForExchange(bytes32, bytes32) external pure returns (uint256 feeRate, bool tooVolatile) {
        return (0, false);
    }
}

/// @title What perps markets ask of Synthetix' FeePool
/// @notice A stub, for tests: fees lie at the real pool's fee address, and are counted but never paid out.
contract SynthetixFeePoolStub {
    address public constant FEE_ADDRESS = 0xfeEFEEfeefEeFeefEEFEEfEeFeefEEFeeFEEFEeF;

    uint256 public feesToDistribute;

    function recordFeePaid(uint256 amount) external {
        feesToDistribute += amount;
    }
}
