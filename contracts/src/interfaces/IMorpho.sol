// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title IMorpho
/// @notice The flash loan and the liquidation of Morpho Blue. Both call the caller back where `data` is not empty, and
/// then pull what is due to them: `assets`, without a premium, or the loan tokens repaid.
interface IMorpho {
    struct MarketParams {
        address loanToken;
        address collateralToken;
        address oracle;
        address irm;
        uint256 lltv;
    }

    function flashLoan(address token, uint256 assets, bytes calldata data) external;

    /// @dev One of `seizedAssets` and `repaidShares` is zero. Sends the collateral before it calls back.
    function liquidate(
        MarketParams calldata market,
        address borrower,
        uint256 seizedAssets,
        uint256 repaidShares,
        bytes calldata data
    ) external returns (uint256 seized, uint256 repaid);
}

/// @title IMorphoCallbacks
/// @notice What Morpho Blue calls on whoever borrows or liquidates.
interface IMorphoCallbacks {
    function onMorphoFlashLoan(uint256 assets, bytes calldata data) external;
    function onMorphoLiquidate(uint256 repaidAssets, bytes calldata data) external;
}
