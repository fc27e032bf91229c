// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title Emits the logs it is given
/// @notice Its code stands in for a protocol's for a moment, so that accounts written into storage have the same
/// history of events as if they had come by transactions. Calldata: records of four topics and four data words.
contract LogWriter {
    uint256 private constant RECORD_BYTES = 256;

    fallback() external {
        for (uint256 at = 0; at + RECORD_BYTES <= msg.data.length; at += RECORD_BYTES) {
            assembly ("memory-safe") {
                let data := mload(0x40)
                calldatacopy(data, add(at, 128), 128)
                log4(
                    data,
                    128,
                    calldataload(at),
                    calldataload(add(at, 32)),
                    calldataload(add(at, 64)),
                    calldataload(add(at, 96))
                )
            }
        }
    }
}
