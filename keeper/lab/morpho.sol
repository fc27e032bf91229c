// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// Doubles for Morpho markets, of our own: npm has neither the rate model nor the oracle that most markets use.

interface IFeed {
    function decimals() external view returns (uint8);
    function latestRoundData() external view returns (uint80, int256, uint256, uint256, uint80);
}

struct MarketParams {
    address loanToken;
    address collateralToken;
    address oracle;
    address irm;
    uint256 lltv;
}

struct Market {
    uint128 totalSupplyAssets;
    uint128 totalSupplyShares;
    uint128 totalBorrowAssets;
    uint128 totalBorrowShares;
    uint128 lastUpdate;
    uint128 fee;
}

/// @title AdaptiveIrm
/// @notice Stands for AdaptiveCurveIrm: a rate that rises while more than 90 % is borrowed and falls while less is, so
/// that it depends on the time since the last accrual and on what earlier ones left behind. Not its formula.
contract AdaptiveIrm {
    uint256 private constant WAD = 1e18;
    uint256 private constant TARGET = 0.9e18;
    uint256 private constant FIRST = 0.04e18 / uint256(365 days);
    uint256 private constant LEAST = 0.001e18 / uint256(365 days);
    uint256 private constant MOST = 2e18 / uint256(365 days);
    uint256 private constant DOUBLES_IN_S = 5 days;

    mapping(bytes32 id => uint256) public rateAtTarget;

    function borrowRateView(MarketParams calldata params, Market calldata market) external view returns (uint256 rate) {
        (rate,) = _rate(keccak256(abi.encode(params)), market);
    }

    function borrowRate(MarketParams calldata params, Market calldata market) external returns (uint256 rate) {
        bytes32 id = keccak256(abi.encode(params));
        (rate, rateAtTarget[id]) = _rate(id, market);
    }

    /// @dev The average of the rate at both ends of the time since the last accrual, and the rate at target at its end.
    function _rate(bytes32 id, Market calldata market) private view returns (uint256, uint256) {
        uint256 used = market.totalSupplyAssets == 0 ? 0 : market.totalBorrowAssets * WAD / market.totalSupplyAssets;
        uint256 first = rateAtTarget[id];
        if (first == 0) return (_curve(FIRST, used), FIRST);
        uint256 share = (block.timestamp - market.lastUpdate) * WAD / DOUBLES_IN_S;
        uint256 last = used > TARGET
            ? first + first * share / WAD * (used - TARGET) / (WAD - TARGET)
            : first * WAD / (WAD + share * (TARGET - used) / TARGET);
        last = last > MOST ? MOST : last < LEAST ? LEAST : last;
        return (_curve((first + last) / 2, used), last);
    }

    /// @dev A quarter of the rate at target where nothing is borrowed, four times that where everything is.
    function _curve(uint256 atTarget, uint256 used) private pure returns (uint256) {
        if (used <= TARGET) return atTarget / 4 + atTarget * 3 * used / TARGET / 4;
        return atTarget + atTarget * 3 * (used - TARGET) / (WAD - TARGET);
    }
}

/// @title ChainlinkOracle
/// @notice Stands for MorphoChainlinkOracleV2 without vaults: the same questions and scale, up to two feeds for the
/// collateral and one for the loan.
contract ChainlinkOracle {
    IFeed public immutable BASE_FEED_1;
    IFeed public immutable BASE_FEED_2;
    IFeed public immutable QUOTE_FEED_1;
    uint256 public immutable SCALE_FACTOR;
    address public constant QUOTE_FEED_2 = address(0);
    address public constant BASE_VAULT = address(0);
    address public constant QUOTE_VAULT = address(0);

    constructor(IFeed baseFeed, IFeed secondFeed, uint256 baseDecimals, IFeed quoteFeed, uint256 quoteDecimals) {
        BASE_FEED_1 = baseFeed;
        BASE_FEED_2 = secondFeed;
        QUOTE_FEED_1 = quoteFeed;
        uint256 feedDecimals = _decimals(baseFeed) + _decimals(secondFeed);
        SCALE_FACTOR = 10 ** (36 + quoteDecimals + _decimals(quoteFeed) - baseDecimals - feedDecimals);
    }

    function price() external view returns (uint256) {
        return SCALE_FACTOR * _answer(BASE_FEED_1) * _answer(BASE_FEED_2) / _answer(QUOTE_FEED_1);
    }

    function _answer(IFeed feed) private view returns (uint256) {
        if (address(feed) == address(0)) return 1;
        (, int256 answer,,,) = feed.latestRoundData();
        require(answer >= 0, "negative answer");
        return uint256(answer);
    }

    function _decimals(IFeed feed) private view returns (uint256) {
        return address(feed) == address(0) ? 0 : feed.decimals();
    }
}
