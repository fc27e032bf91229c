// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// Doubles, of our own, of the contracts by which rollups tell what a transaction's bytes cost. They answer as the real
/// ones and reckon more simply; the chain they stand on charges nothing of it.

/// @title GasPriceOracleDouble
/// @notice Stands for the GasPriceOracle predeploy of OP-stack chains: a fee by the bytes of the unsigned transaction, as
/// Ecotone reckons it without blobs (16 a byte, 4 if it is zero, 68 bytes more for the signature). Not Fjord's
/// compression.
contract GasPriceOracleDouble {
    uint256 public weiPerUnit;
    uint256 public operatorFee;

    function set(uint256 price, uint256 fee) external {
        (weiPerUnit, operatorFee) = (price, fee);
    }

    function getL1Fee(bytes calldata data) external view returns (uint256) {
        uint256 units = 68 * 16;
        for (uint256 i; i < data.length; ++i) {
            units += data[i] == 0 ? 4 : 16;
        }
        return units * weiPerUnit;
    }

    function getOperatorFee(uint256) external view returns (uint256) {
        return operatorFee;
    }
}

/// @title NodeInterfaceDouble
/// @notice Stands for Arbitrum's NodeInterface, for which nodes answer themselves: like the real one it is there for
/// calls from outside only. Gas by the byte, without compression, and 140 bytes more for everything else.
contract NodeInterfaceDouble {
    uint256 public gasPerByte;

    function set(uint256 gas) external {
        gasPerByte = gas;
    }

    function gasEstimateL1Component(address, bool, bytes calldata data)
        external
        payable
        returns (uint64 gasEstimateForL1, uint256 baseFee, uint256 l1BaseFeeEstimate)
    {
        require(msg.sender == tx.origin, "no contract can call it");
        return (uint64((data.length + 140) * gasPerByte), block.basefee, 0);
    }
}
