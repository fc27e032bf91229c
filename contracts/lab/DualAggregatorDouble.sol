// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title Stands for Chainlink's DualAggregator, the aggregator behind a feed whose updates are auctioned, for tests
/// @notice One proxy, an immutable, gets the reports that came by the auction; a standard report reaches it only once it
/// is older than the cutoff. Everybody else gets the newest report. Reports need no signatures here, and rounds are one
/// list as in the real one. Written from its published behaviour.
contract DualAggregatorDouble {
    struct Report {
        int256 answer;
        uint256 at;
    }

    string public constant typeAndVersion = "DualAggregator 1.0.0";
    uint8 public constant decimals = 8;
    uint256 public constant version = 6;

    string public description;
    uint256 public cutoffS;
    uint256 public latestRound;
    uint256 public latestSecondaryRound;

    address private immutable _secondaryProxy;
    mapping(uint256 round => Report) private _reports;

    constructor(string memory description_, address secondaryProxy, uint256 cutoffS_, int256 answer) {
        description = description_;
        _secondaryProxy = secondaryProxy;
        cutoffS = cutoffS_;
        transmitSecondary(answer);
    }

    /// @notice A standard report, as by the public pool.
    function transmit(int256 answer) public {
        _reports[++latestRound] = Report(answer, block.timestamp);
    }

    /// @notice The same by the auction.
    function transmitSecondary(int256 answer) public {
        transmit(answer);
        latestSecondaryRound = latestRound;
    }

    function latestRoundData() external view returns (uint80, int256, uint256, uint256, uint80) {
        (uint256 round, Report memory report) = _latest();
        return (uint80(round), report.answer, report.at, report.at, uint80(round));
    }

    function latestAnswer() external view returns (int256) {
        (, Report memory report) = _latest();
        return report.answer;
    }

    function latestTimestamp() external view returns (uint256) {
        (, Report memory report) = _latest();
        return report.at;
    }

    function _latest() private view returns (uint256 round, Report memory report) {
        round = latestRound;
        if (msg.sender == _secondaryProxy) {
            while (round > latestSecondaryRound && _reports[round].at + cutoffS >= block.timestamp) --round;
        }
        report = _reports[round];
    }
}

interface IAnswering {
    function decimals() external view returns (uint8);
    function latestAnswer() external view returns (int256);
}

/// @title Stands for Aave's PriceCapAdapterStable, a price source that reads a feed and cuts what it says, for tests
contract CapAdapterDouble {
    IAnswering public immutable ASSET_TO_USD_AGGREGATOR;
    int256 public immutable cap;

    constructor(address feed, int256 cap_) {
        (ASSET_TO_USD_AGGREGATOR, cap) = (IAnswering(feed), cap_);
    }

    function decimals() external view returns (uint8) {
        return ASSET_TO_USD_AGGREGATOR.decimals();
    }

    function latestAnswer() external view returns (int256 answer) {
        answer = ASSET_TO_USD_AGGREGATOR.latestAnswer();
        if (answer > cap) answer = cap;
    }
}
