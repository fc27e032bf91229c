// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title Makes calls in order, all of them or none
/// @notice Its code stands in for an account's on a fork, so that what one transaction of a keeper would do is done by
/// one there. A call that fails reverts with that call's own reason.
contract CallsTogether {
    struct Call {
        address to;
        bytes data;
    }

    function run(Call[] calldata calls) external {
        for (uint256 i; i < calls.length; ++i) {
            (bool success, bytes memory reason) = calls[i].to.call(calls[i].data);
            if (success) continue;
            assembly ("memory-safe") {
                revert(add(reason, 32), mload(reason))
            }
        }
    }
}
